"""Networks that clean a volume: the 3-D U-Net, with cubic or flat kernels, and a ResNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts

LEVELS = 3
START_BIAS = -3.0
"""Of the output, before the sigmoid: volumes are mostly empty, and 0 would start at 0.5."""
EPS = 1e-3
"""Of batch normalisation, as in the released code (Keras' own)."""


class UNet3d(nn.Module):
    """The U-Net of Deep2S: (batch, in_ch, nx, ny, nz) to magnitudes (batch, nx, ny, nz) in (0, 1).

    Three levels of two convolutions, each followed by batch normalisation and ReLU, and of a max
    pooling; at the bottom no convolution; up by transposed convolutions, whose result and the
    level's are concatenated. An axis of 8 n + 1 voxels loses its first one on the way in, and gets
    zeros for it before the last 3 x 3 x 3 convolution.

    Parameters
    ----------
    in_ch : int
        1 for magnitudes, 2 for real and imaginary parts.
    base : int
        Channels of the first level; 2 and 4 times as many on the next ones.
    flat : bool
        Kernels of 3 x 3 x 1 (and 2 x 2 x 1 on the way up): slices of one z meet in poolings only.

    Raises
    ------
    ValueError
        If a number is no positive int.

    Source
    ------
    get_UNet3D and get_UNet2D of the released code; arXiv 2312.16959, section 3.
    """

    def __init__(self, in_ch: int = 1, base: int = 32, *, flat: bool = False) -> None:
        super().__init__()
        require_counts(in_ch=in_ch, base=base)
        self.in_ch = in_ch
        widths = [base * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            _double(before, width, flat)
            for before, width in zip([in_ch, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool3d(2)
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        before = widths[-1]
        for width in reversed(widths):
            # Flat ones leave every second slice of z to the skip alone, as in the released code.
            self.up.append(
                nn.ConvTranspose3d(before, width, (2, 2, 1), 2, output_padding=(0, 0, 1))
                if flat
                else nn.ConvTranspose3d(before, width, 2, 2)
            )
            self.merge.append(_double(2 * width, width, flat))
            before = width
        self.head = nn.Sequential(*_convolved(base, 2 * base, flat))
        self.out = nn.Conv3d(2 * base, 1, 1)
        nn.init.constant_(self.out.bias, START_BIAS)  # type: ignore[arg-type]

    def forward(self, u: Tensor) -> Tensor:
        """Return magnitudes.

        Raises
        ------
        ValueError
            If ``u`` has another number of channels, or an axis is not 8 n or 8 n + 1 voxels long.
        """
        _require_volume(u, self.in_ch)
        require_croppable(u.shape[2:])
        odd = [size % 2**LEVELS for size in u.shape[2:]]
        x = u[:, :, odd[0] :, odd[1] :, odd[2] :]
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        x = nn.functional.pad(x, (odd[2], 0, odd[1], 0, odd[0], 0))
        return torch.sigmoid(self.out(self.head(x)))[:, 0]


class ResNet3d(nn.Module):
    """The ResNet in the U-Net's place: a convolution, eight with batch normalisation, a skip.

    Parameters
    ----------
    in_ch : int
        The first channel is what the last convolution's result is added to.
    width, blocks : int

    Raises
    ------
    ValueError
        If a number is no positive int.

    Source
    ------
    get_ResNet of the released code.
    """

    def __init__(self, in_ch: int = 1, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        require_counts(in_ch=in_ch, width=width, blocks=blocks)
        self.in_ch = in_ch
        layers: list[nn.Module] = [nn.Conv3d(in_ch, width, 3, padding=1), nn.ReLU()]
        for _ in range(blocks):
            layers += _convolved(width, width, False)
        self.body = nn.Sequential(*layers, nn.Conv3d(width, 1, 3, padding=1))

    def forward(self, u: Tensor) -> Tensor:
        """Return magnitudes (batch, nx, ny, nz) for ``u`` (batch, in_ch, nx, ny, nz); no bounds."""
        _require_volume(u, self.in_ch)
        return (self.body(u) + u[:, :1])[:, 0]


class SlicedConv3d(nn.Module):
    """A 3-D convolution as one in two dimensions, of slices stacked with their neighbours.

    Each slice of constant z is a picture whose channels are those of the slice before, its own and
    those of the next one. The sums are the same; but `conv` is an ``nn.Conv2d``, the kind of layer
    that N:M patterns are known for, and a group of M inputs is of one neighbour's channels, where
    M divides them.

    Parameters
    ----------
    layer : nn.Conv3d
        Stride 1, no dilation and groups, padded to keep its size. Its weight is copied.

    Raises
    ------
    ValueError
        If the layer is another.
    """

    def __init__(self, layer: nn.Conv3d) -> None:
        super().__init__()
        if not sliceable(layer):
            raise ValueError(
                f"{layer}: must have stride 1, dilation 1, one group, an odd kernel and zeros "
                "around that keep its size"
            )
        height, width, self.depth = layer.kernel_size
        self.conv = nn.Conv2d(
            layer.in_channels * self.depth, layer.out_channels, (height, width),
            padding=layer.padding[:2], bias=layer.bias is not None,  # type: ignore[arg-type]
        )  # fmt: skip
        with torch.no_grad():
            # (out, in, h, w, d) to (out, d · in, h, w)
            self.conv.weight.copy_(layer.weight.permute(0, 4, 1, 2, 3).flatten(1, 2))
            if layer.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, out, nx, ny, nz) for (batch, in, nx, ny, nz)."""
        nz = x.shape[-1]
        reach = self.depth // 2
        padded = nn.functional.pad(x, (reach, reach))
        slices = [padded[..., shift : shift + nz] for shift in range(self.depth)]
        stacked = torch.cat(slices, 1).permute(0, 4, 1, 2, 3).flatten(0, 1)
        y: Tensor = self.conv(stacked)
        return y.unflatten(0, (-1, nz)).permute(0, 2, 3, 4, 1)


def sliceable(layer: nn.Conv3d) -> bool:
    """Return whether `SlicedConv3d` takes a layer."""
    kept = all(
        2 * pad == kernel - 1 for pad, kernel in zip(layer.padding, layer.kernel_size, strict=True)
    ) if not isinstance(layer.padding, str) else False  # fmt: skip
    plain = layer.stride == layer.dilation == (1, 1, 1) and layer.groups == 1
    return kept and plain and layer.padding_mode == "zeros" and not layer.transposed


def slice_convolutions(module: nn.Module, least: int = 16) -> list[str]:
    """Replace 3-D convolutions of a module by `SlicedConv3d`, in place; return their names.

    Parameters
    ----------
    module : nn.Module
    least : int
        Input channels from which on: layers of fewer stay as they are.

    Returns
    -------
    list of str
        Of the two-dimensional layers that are new.

    Raises
    ------
    ValueError
        If there is no such convolution.
    """
    found = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv3d)
        and layer.in_channels >= least
        and layer.kernel_size != (1, 1, 1)
        and sliceable(layer)
    ]
    if not found:
        raise ValueError(
            f"least={least}: no convolution has as many input channels; lower it, or widen the net"
        )
    for name, layer in found:
        module.set_submodule(name, SlicedConv3d(layer))
    return [f"{name}.conv" for name, _ in found]


def require_croppable(shape: torch.Size | tuple[int, ...]) -> None:
    """Raise ValueError for axes that three poolings do not halve, with at most a voxel cropped."""
    for axis, size in zip("xyz", shape, strict=True):
        if size < 2**LEVELS or size % 2**LEVELS > 1:
            raise ValueError(
                f"axis {axis} has {size} voxels: must be 8 n or 8 n + 1, as three poolings halve "
                "it; pad or cut the grid"
            )


def _require_volume(u: Tensor, in_ch: int) -> None:
    if u.ndim != 5 or u.shape[1] != in_ch or u.is_complex():
        raise ValueError(
            f"u has shape {tuple(u.shape)}: must be real volumes (batch, {in_ch}, nx, ny, nz)"
        )


def _convolved(before: int, after: int, flat: bool) -> list[nn.Module]:
    kernel, padding = ((3, 3, 1), (1, 1, 0)) if flat else ((3, 3, 3), (1, 1, 1))
    return [
        nn.Conv3d(before, after, kernel, padding=padding),
        nn.BatchNorm3d(after, eps=EPS),
        nn.ReLU(),
    ]


def _double(before: int, after: int, flat: bool) -> nn.Sequential:
    return nn.Sequential(*_convolved(before, after, flat), *_convolved(after, after, flat))
