"""The whole model: a U-Net with a neural spectral block on each of its five scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.lsm.block import NeuralSpectralBlock
from sat.methods.problems.arguments import require_counts

SCALES = 5
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_UP = {2: "bilinear", 3: "trilinear"}


class DoubleConv(nn.Sequential):
    """Twice a convolution over 3 points an axis, without bias, batch norm, ReLU."""

    def __init__(self, axes: int, source: int, target: int, middle: int | None = None) -> None:
        middle = middle or target
        conv, norm = _CONV[axes], _NORM[axes]
        super().__init__(
            conv(source, middle, 3, padding=1, bias=False), norm(middle), nn.ReLU(),
            conv(middle, target, 3, padding=1, bias=False), norm(target), nn.ReLU(),
        )  # fmt: skip


class Up(nn.Module):
    """The coarse field on the finer one's grid, beside it, through a `DoubleConv`."""

    def __init__(self, axes: int, source: int, target: int) -> None:
        super().__init__()
        self.mode = _UP[axes]
        self.conv = DoubleConv(axes, source, target, source // 2)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        low = functional.interpolate(low, scale_factor=2, mode=self.mode, align_corners=True)
        pads: list[int] = []
        # Odd axes lost a point on the way down; torch pads the last axis first.
        for wanted, size in zip(reversed(skip.shape[2:]), reversed(low.shape[2:]), strict=True):
            pads += [(wanted - size) // 2, wanted - size - (wanted - size) // 2]
        out: Tensor = self.conv(torch.cat([skip, functional.pad(low, pads)], 1))
        return out


class LSM(nn.Module):
    """Fields to fields on a grid; in two dimensions, or as many as the patch has axes.

    Parameters
    ----------
    in_dim, out_dim : int
        Channels of the fields.
    d_model : int
        Channels C of the finest scale; a multiple of ``heads``. Then 2C, 4C, 8C, 8C.
    num_token, num_basis, heads
        As `NeuralSpectralBlock`.
    patch : sequence of int
        Points of a patch along each axis, the same on every scale.
    padding : sequence of int
        Zeros at the end of each axis, first axis first; the padded size must be a multiple of
        16 patch points, so that all five scales divide into patches.
    spectral : bool
        Whether there are blocks; without, the U-Net alone.
    frequency : {"fraction", "harmonic"}
        As `NeuralSpectralBlock`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.3 and the authors' ``models/LSM_2D.py``, ``LSM_3D.py``.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        d_model: int = 64,
        num_token: int = 4,
        num_basis: int = 12,
        patch: Sequence[int] = (3, 3),
        padding: Sequence[int] = (0, 0),
        heads: int = 8,
        spectral: bool = True,
        *,
        frequency: str = "fraction",
    ) -> None:
        super().__init__()
        require_counts(in_dim=in_dim, out_dim=out_dim, d_model=d_model)
        if len(padding) != len(patch):
            raise ValueError(f"padding={tuple(padding)}: must have as many axes as patch={patch}")
        for axis, pad in enumerate(padding):
            if not isinstance(pad, int) or pad < 0:
                raise ValueError(f"padding[{axis}]={pad!r}: must be an int of at least 0; raise it")
        axes = len(patch)
        self.in_dim, self.patch, self.padding = in_dim, tuple(patch), tuple(padding)
        widths = [d_model * k for k in (1, 2, 4, 8, 8)]
        blocks: list[nn.Module] = [
            NeuralSpectralBlock(width, num_basis, patch, num_token, heads, frequency)
            for width in widths
        ]
        self.lift = nn.Linear(in_dim + axes, d_model)
        self.first = DoubleConv(axes, d_model, d_model)
        self.down = nn.ModuleList(
            nn.Sequential(_POOL[axes](2), DoubleConv(axes, source, target))
            for source, target in zip(widths, widths[1:], strict=False)
        )
        self.blocks = nn.ModuleList(blocks if spectral else [nn.Identity() for _ in blocks])
        self.up = nn.ModuleList(
            Up(axes, source * d_model, target * d_model)
            for source, target in ((16, 4), (8, 2), (4, 1), (2, 1))
        )
        self.out = _CONV[axes](d_model, d_model, 1)
        self.hidden = nn.Linear(d_model, 128)
        self.head = nn.Linear(128, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return fields on the grid of x.

        Parameters
        ----------
        x : torch.Tensor
            (batch, *grid, in_dim); coordinates 0 … 1 of each axis are appended here.

        Returns
        -------
        torch.Tensor
            (batch, *grid, out_dim).

        Raises
        ------
        ValueError
            If x has another number of axes or channels, is complex, or its padded size on an axis
            is no multiple of 16 patch points.
        """
        grid = self._require(x)
        h: Tensor = self.lift(torch.cat([x, *self._coordinates(x)], -1)).movedim(-1, 1)
        # torch pads the last axis first.
        pads = [n for pad in reversed(self.padding) for n in (0, pad)]
        h = self._trunk(functional.pad(h, pads))
        # By size: [:-pad] would leave nothing of an axis that is not padded.
        for axis, size in enumerate(grid, start=2):
            h = h.narrow(axis, 0, size)
        h = h.movedim(1, -1)
        out: Tensor = self.head(functional.gelu(self.hidden(h)))
        return out

    def finest(self, x: Tensor) -> Tensor:
        """Return what the finest scale's block is given: (batch, d_model, *padded grid)."""
        self._require(x)
        h: Tensor = self.lift(torch.cat([x, *self._coordinates(x)], -1)).movedim(-1, 1)
        pads = [n for pad in reversed(self.padding) for n in (0, pad)]
        out: Tensor = self.first(functional.pad(h, pads))
        return out

    def _trunk(self, h: Tensor) -> Tensor:
        features = [self.first(h)]
        for down in self.down:
            features.append(down(features[-1]))
        y: Tensor = self.blocks[-1](features[-1])
        for up, block, feature in zip(
            self.up, reversed(self.blocks[:-1]), reversed(features[:-1]), strict=True
        ):
            y = up(y, block(feature))
        out: Tensor = self.out(y)
        return out

    def _coordinates(self, x: Tensor) -> list[Tensor]:
        grid = x.shape[1:-1]
        axes = [torch.linspace(0, 1, size, dtype=x.dtype, device=x.device) for size in grid]
        return [c.expand(len(x), *grid)[..., None] for c in torch.meshgrid(*axes, indexing="ij")]

    def _require(self, x: Tensor) -> tuple[int, ...]:
        axes = len(self.patch)
        if x.ndim != axes + 2 or x.shape[-1] != self.in_dim:
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, {axes} axes, {self.in_dim}) "
                "with the channels last; transpose it or change in_dim"
            )
        if x.is_complex():
            raise ValueError(f"input is {x.dtype}: must be real; give its parts as channels")
        grid = tuple(x.shape[1:-1])
        for axis, (size, pad, points) in enumerate(
            zip(grid, self.padding, self.patch, strict=True)
        ):
            step = 2 ** (SCALES - 1) * points
            if (size + pad) % step:
                raise ValueError(
                    f"axis {axis} has {size} points and {pad} of padding, {size + pad}: must be a "
                    f"multiple of {step} = {2 ** (SCALES - 1)} x {points}, for patches on all "
                    f"{SCALES} scales; make its padding {-size % step}"
                )
        return grid


class LSM3d(LSM):
    """`LSM` in three dimensions: a patch and padding of three axes unless given."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        d_model: int = 32,
        num_token: int = 4,
        num_basis: int = 12,
        patch: Sequence[int] = (3, 3, 3),
        padding: Sequence[int] = (0, 0, 0),
        heads: int = 8,
        spectral: bool = True,
        **options: Any,
    ) -> None:
        if len(patch) != 3:
            raise ValueError(f"patch={tuple(patch)}: must have 3 axes; use LSM for 2")
        super().__init__(
            in_dim, out_dim, d_model, num_token, num_basis, patch, padding, heads, spectral,
            **options,
        )  # fmt: skip
