"""Layers that start and are regularised for orthogonality, and the regulariser of a whole model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn

from sat.methods.orthogonal_conv.existence import orth_conv_exists
from sat.methods.orthogonal_conv.loss import dense_orth, l_orth

_KERNELS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


class OrthConv2d(nn.Conv2d):
    """A convolution to be made orthogonal by its loss: Glorot's start, circular padding.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride : int
        The kernel is square, of odd size.
    padding : {"circular", "valid", "same"}
        Around the picture, none, or zeros. Only circular convolutions can be orthogonal in every
        case that L_orth = 0 allows; see `orth_conv_exists`.
    bias : bool
    strict : bool
        Whether an architecture without orthogonal kernels is refused, not only warned about.
    device, dtype
        As for ``nn.Conv2d``.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or ``strict`` and no orthogonal kernel exists.

    Warns
    -----
    UserWarning
        If none exists, and where out = S² in: random starts often stall there. More restarts or a
        larger kernel help.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: str = "circular",
        bias: bool = True,
        strict: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        report = orth_conv_exists(in_channels, out_channels, kernel_size, stride, padding)
        if strict:
            report.require()
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=0 if padding == "valid" else kernel_size // 2,
            padding_mode="circular" if padding == "circular" else "zeros",
            bias=bias,
            device=device,
            dtype=dtype,
        )
        if not report.exists:
            warnings.warn(
                f"no orthogonal kernel exists: {report.condition} is needed; change channels, "
                "kernel size or stride",
                stacklevel=2,
            )
        elif report.square:
            warnings.warn(
                f"out = S^2 in = {out_channels}: orthogonal kernels exist, but descent often "
                "stalls; look at orth_loss, restart, or take a larger kernel",
                stacklevel=2,
            )

    def reset_parameters(self) -> None:
        """Draw the kernel as Glorot and Bengio 2010 do, the bias as ``nn.Conv2d`` does."""
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)

    def orth_loss(self) -> Tensor:
        """Return L_orth of the kernel."""
        return l_orth(self.weight, self.stride[0])


class OrthLinear(nn.Linear):
    """A dense layer to be made orthogonal by its loss: Glorot's start."""

    def reset_parameters(self) -> None:
        """Draw the weight as Glorot and Bengio 2010 do, the bias as ``nn.Linear`` does."""
        super().reset_parameters()
        nn.init.xavier_uniform_(self.weight)

    def orth_loss(self) -> Tensor:
        """Return ``‖W Wᵀ - I‖²``, or of Wᵀ W, the smaller side."""
        return dense_orth(self.weight)


def orth_regularizer(model: nn.Module, lam: float, *, skip: Collection[str] = ()) -> Tensor:
    """Return lam times the sum of all convolutions' L_orth and dense layers' ``‖W Wᵀ - I‖²``.

    Parameters
    ----------
    model : nn.Module
        Its ``nn.Conv1d``, ``nn.Conv2d``, transposed ones and ``nn.Linear`` count, `OrthConv2d` and
        `OrthLinear` among them; a parametrised weight, such as a masked one, as it is used.
    lam : float
        Weight, finite and not negative.
    skip : collection of str
        Names of layers to leave out.

    Returns
    -------
    torch.Tensor
        A scalar.

    Raises
    ------
    ValueError
        If ``lam`` breaks its rule, no layer is left, a name is none of a layer, or a layer has
        groups, dilation, different strides or a kernel that `l_orth` refuses.
    """
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam={lam}: must be finite and not negative; 0 switches it off")
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (*_KERNELS, nn.Linear))
    }
    for name in skip:
        if name not in layers:
            raise ValueError(f"skip: {name!r} is no layer; there are {', '.join(layers) or 'none'}")
    losses = [_loss(name, layer) for name, layer in layers.items() if name not in skip]
    if not losses:
        raise ValueError(
            f"model {type(model).__name__} has no convolution or dense layer to regularise; give "
            "one that has"
        )
    return lam * torch.stack(losses).sum()


def _loss(name: str, layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Linear):
        return dense_orth(layer.weight)
    assert isinstance(layer, _KERNELS)
    if layer.groups != 1 or set(layer.dilation) != {1} or len(set(layer.stride)) != 1:
        raise ValueError(
            f"layer {name!r} has groups={layer.groups}, dilation={layer.dilation}, "
            f"stride={layer.stride}: must be one group, no dilation and one stride; skip it, or "
            "take l_orth of each group's kernel"
        )
    try:
        return l_orth(layer.weight, layer.stride[0], layer.weight.ndim - 2)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}; or skip it") from error
