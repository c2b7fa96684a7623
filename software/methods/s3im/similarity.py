"""Structural similarity of rays that have nothing to do with each other: S3IM, and SSIM's map."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts

LAYOUTS = ("official", "tiled")
SIGMA, C1, C2 = 1.5, 0.01**2, 0.03**2
"""Of the window, and SSIM's constants for values in [0, 1]."""
FAR = 0.5
"""How far outside [0, 1] values may be before the constants are said not to fit them."""


def gaussian_window(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return weights (size, size) ∝ exp(-(i² + j²) / (2 · 1.5²)), of sum 1.

    i and j are counted from size // 2, so that of an even size the window is off its centre, as in
    the released code.
    """
    require_counts(size=size)
    line = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * SIGMA**2))
    line = line / line.sum()
    return (line[:, None] * line).to(dtype)


def ssim_map(x: Tensor, y: Tensor, window: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Return SSIM of each window and channel: (batch, channels, rows, cols).

    ((2 μₓ μᵧ + C₁) (2 σₓᵧ + C₂)) / ((μₓ² + μᵧ² + C₁) (σₓ² + σᵧ² + C₂)). Variances are means of
    squares less squares of means, which cancel: float16 and bfloat16 are taken to float32 first,
    and sums over windows are no products that a device of fewer bits might take.

    Parameters
    ----------
    x, y : torch.Tensor
        (batch, channels, height, width), of one shape, values in [0, 1].
    window : torch.Tensor
        (height, width): weights of sum 1, no larger than the padded images.
    stride : int
        From one window to the next.
    padding : int
        Zeros on each side.

    Raises
    ------
    ValueError
        If shapes or numbers do not fit.

    Source
    ------
    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13.
    """
    require_counts(stride=stride)
    if not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding={padding!r}: must be an int and not negative")
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: must be one, (batch, channels, "
            "height, width)"
        )
    rows, cols = window.shape
    if rows > x.shape[2] + 2 * padding or cols > x.shape[3] + 2 * padding:
        raise ValueError(
            f"a window of {rows} x {cols} does not fit images of {x.shape[2]} x {x.shape[3]} with "
            f"{padding} zeros on each side; take a smaller one"
        )
    x, y = _at_least_float32(x), _at_least_float32(y)
    moments = torch.stack([x, y, x * x, y * y, x * y])
    moments = functional.pad(moments, [padding] * 4)
    views = moments.unfold(-2, rows, stride).unfold(-2, cols, stride)
    a, b, aa, bb, ab = (views * window.to(x)).sum((-2, -1))
    light = (2 * a * b + C1) / (a * a + b * b + C1)
    return light * (2 * (ab - a * b) + C2) / (aa - a * a + (bb - b * b) + C2)


def s3im(
    pred: Tensor,
    target: Tensor,
    *,
    kernel_size: int = 4,
    stride: int = 4,
    repeats: int = 10,
    patch_shape: tuple[int, int] = (64, 64),
    channels: int = 3,
    generator: torch.Generator | None = None,
    layout: str = "official",
) -> Tensor:
    """Return the stochastic structural similarity of a batch of rays, a scalar, 1 if all are equal.

    Rays are put in their own order and in ``repeats`` - 1 random ones, the same for both, and each
    order is looked at as an image of ``patch_shape``. Draw rays over the whole training set: of a
    crop of one picture this is ordinary SSIM.

    Parameters
    ----------
    pred, target : torch.Tensor
        (rays, channels) floating point, values in [0, 1]; rays = height · width of the patch. No
        gradient reaches the target.
    kernel_size, stride : int
        Of SSIM's windows; zeros around are (kernel_size - 1) // 2.
    repeats : int
        Orders, the rays' own included.
    patch_shape : (int, int)
    channels : int
        3 for colours.
    generator : torch.Generator, optional
        Of the orders, ``torch.randperm`` for each; torch's own if there is none.
    layout : {"official", "tiled"}
        "official": one image of height x (width · repeats), its rows one after another the orders
        one after another, so that windows may see the end of one and the start of the next.
        "tiled": an image for each order.

    Returns
    -------
    torch.Tensor
        () float32, or float64 if ``pred`` is.

    Raises
    ------
    ValueError
        If a shape or number breaks its rule, or values are not finite.
    TypeError
        If values are no floating point numbers.

    Source
    ------
    Section 3, equations 5 to 8; the authors' ``model_components/s3im.py`` and ``ssim.py``.
    """
    _require_options(kernel_size, stride, repeats, patch_shape, channels, layout)
    height, width = patch_shape
    _require_rays(pred, target, height * width, patch_shape, channels)
    orders = _draw_orders(len(pred), repeats, generator).flatten().to(pred.device)

    def image(values: Tensor) -> Tensor:
        lines = _at_least_float32(values).index_select(0, orders).T
        if layout == "official":
            return lines.reshape(1, channels, height, width * repeats)
        return lines.reshape(channels, repeats, height, width).transpose(0, 1)

    x, y = image(pred), image(target.detach())
    window = gaussian_window(kernel_size, x.dtype)
    return ssim_map(x, y, window, stride, (kernel_size - 1) // 2).mean()


class S3IMLoss(nn.Module):
    """weight · (1 - S3IM), to be added to a mean squared error.

    Parameters
    ----------
    weight : float
        λ; 1 in the released Replica runs of TensoRF and DVGO, 0 is off.
    kernel_size, stride, repeats, patch_shape, channels, generator, layout
        As `s3im`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        weight: float = 1.0,
        *,
        kernel_size: int = 4,
        stride: int = 4,
        repeats: int = 10,
        patch_shape: tuple[int, int] = (64, 64),
        channels: int = 3,
        generator: torch.Generator | None = None,
        layout: str = "official",
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight={weight}: must be finite and not negative; 0 switches it off")
        _require_options(kernel_size, stride, repeats, patch_shape, channels, layout)
        self.weight, self.kernel_size, self.stride = weight, kernel_size, stride
        self.repeats, self.patch_shape, self.channels = repeats, patch_shape, channels
        self.generator, self.layout = generator, layout

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return a scalar; arguments as `s3im`. Each call draws its orders anew."""
        similarity = s3im(
            pred, target, kernel_size=self.kernel_size, stride=self.stride, repeats=self.repeats,
            patch_shape=self.patch_shape, channels=self.channels, generator=self.generator,
            layout=self.layout,
        )  # fmt: skip
        return self.weight * (1 - similarity)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _draw_orders(rays: int, repeats: int, generator: torch.Generator | None) -> Tensor:
    """Return (repeats, rays) int64, the first counting up."""
    device = "cpu" if generator is None else generator.device
    drawn = [torch.randperm(rays, generator=generator, device=device) for _ in range(repeats - 1)]
    return torch.stack([torch.arange(rays, device=device), *drawn])


def _require_options(
    kernel_size: int, stride: int, repeats: int, patch_shape: tuple[int, int], channels: int,
    layout: str,
) -> None:  # fmt: skip
    if not isinstance(patch_shape, (tuple, list)) or len(patch_shape) != 2:
        raise ValueError(f"patch_shape={patch_shape!r}: must be (height, width), as (64, 64)")
    height, width = patch_shape
    require_counts(
        stride=stride, repeats=repeats, channels=channels, patch_height=height, patch_width=width
    )
    if not isinstance(kernel_size, int) or not 2 <= kernel_size <= min(patch_shape):
        raise ValueError(
            f"kernel_size={kernel_size!r}: must be an int from 2 to {min(patch_shape)}, the "
            "shorter side of patch_shape"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: must be one of {', '.join(LAYOUTS)}")


def _require_rays(
    pred: Tensor, target: Tensor, rays: int, patch_shape: tuple[int, int], channels: int
) -> None:
    if pred.shape != target.shape or pred.ndim != 2 or pred.shape[1] != channels:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}: must both be "
            f"(rays, {channels}); for other channels than colours set channels"
        )
    if len(pred) != rays:
        raise ValueError(
            f"{len(pred)} rays, and patch_shape={patch_shape} holds {rays}: must be as many; set "
            "patch_shape to factors of the batch"
        )
    for name, values in (("pred", pred), ("target", target)):
        if not values.is_floating_point():
            raise TypeError(
                f"{name} has dtype {values.dtype}: must be floating point in [0, 1]; divide bytes "
                "by 255"
            )
        low, high = (float(end) for end in values.detach().aminmax())
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"{name} has infinities or NaNs: must be finite; check the renderer")
        if low < -FAR or high > 1 + FAR:
            warnings.warn(
                f"{name} reaches from {low:g} to {high:g}: SSIM's constants are for [0, 1]",
                stacklevel=3,
            )
    if target.requires_grad:
        warnings.warn("target requires a gradient: none reaches it", stacklevel=3)
