"""The network: an encoder and a decoder of blocks over patches, as scOT's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.drift_net.blocks import Block, ConditionalLayerNorm, DriftBlock, DropPath, around
from sat.methods.problems.arguments import require_counts

MakeBlock = Callable[..., Block]
"""(dim, resolution, *, shifted, drop_path, time_conditioning) to a block."""


class PatchMerging(nn.Module):
    """Four neighbours to one point of twice the channels."""

    def __init__(self, dim: int, conditional: bool) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = ConditionalLayerNorm(2 * dim, conditional=conditional)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """Return (batch, height / 2, width / 2, 2 dim) for x (batch, height, width, dim)."""
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        out: Tensor = self.norm(self.reduction(torch.cat(parts, -1)), time)
        return out


class PatchUnmerging(nn.Module):
    """One point to four of half the channels."""

    def __init__(self, dim: int, conditional: bool) -> None:
        super().__init__()
        self.upsample = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = ConditionalLayerNorm(dim // 2, conditional=conditional)
        self.mix = nn.Linear(dim // 2, dim // 2, bias=False)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """Return (batch, 2 height, 2 width, dim / 2) for x (batch, height, width, dim)."""
        batch, height, width, dim = x.shape
        x = self.upsample(x).view(batch, height, width, 2, 2, dim // 2).transpose(2, 3)
        x = x.reshape(batch, 2 * height, 2 * width, dim // 2)
        out: Tensor = self.mix(self.norm(x, time))
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, norm, a perceptron of four times the width, scaled by 1e-6 at the start.

    Source
    ------
    Liu et al., arXiv 2201.03545.
    """

    def __init__(self, dim: int, conditional: bool, periodic: bool, drop_path: float) -> None:
        super().__init__()
        self.depthwise = around(nn.Conv2d(dim, dim, 7, groups=dim), periodic)
        self.norm = ConditionalLayerNorm(dim, conditional=conditional)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scale = nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """Return (batch, height, width, dim) for x of that shape."""
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.scale * self.mlp(self.norm(y, time)))


class DriftNet(nn.Module):
    """Fields to fields on a square grid, one time step on.

    Parameters
    ----------
    in_ch, out_ch : int
        Channels of the fields.
    image_size : int
        Points of an axis; a multiple of patch · 2^(stages - 1), with an even number of points on
        the coarsest grid.
    patch : int
        Points of an axis of a patch.
    dim : int
        Channels of the finest stage; twice as many on each coarser one.
    depths : sequence of int
        Blocks of each stage of the encoder, and of the decoder's at the same grid.
    time_conditioning : bool
        Whether norms know the time.
    skips : sequence of int, optional
        ConvNeXt blocks on the paths from encoder to decoder, one number a stage but the coarsest;
        two each if not given.
    increment : bool
        Whether what is added to the input is returned (then in_ch = out_ch).
    periodic : bool
        Whether convolutions wrap around.
    drop_path : float
        Of the last block; rising from 0.
    block : callable, optional
        (dim, resolution, *, shifted, drop_path, time_conditioning, periodic) to a `Block`;
        `DriftBlock` if not given. ``shifted`` is true in every second block of a stage.
    **options
        Of `DriftBlock`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.1; the authors' ``driftnet/model.py``; scOT: Herde et al., arXiv 2405.19101.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        image_size: int,
        patch: int = 4,
        dim: int = 48,
        depths: Sequence[int] = (4, 4, 4, 4),
        time_conditioning: bool = True,
        *,
        skips: Sequence[int] | None = None,
        increment: bool = False,
        periodic: bool = True,
        drop_path: float = 0.0,
        block: MakeBlock | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        require_counts(in_ch=in_ch, out_ch=out_ch, image_size=image_size, patch=patch, dim=dim)
        require_counts(**{f"depths[{i}]": depth for i, depth in enumerate(depths)})
        stages = len(depths)
        unit = patch * 2**stages
        if not stages or image_size % unit:
            raise ValueError(
                f"image_size={image_size}: must be a multiple of {unit} = patch {patch} x "
                f"2^{stages} for {stages} stages with an even coarsest grid; pad the field"
            )
        if increment and in_ch != out_ch:
            raise ValueError(f"out_ch={out_ch}: must equal in_ch={in_ch} with increment=True")
        paths = [2] * (stages - 1) if skips is None else list(skips)
        if len(paths) != stages - 1:
            raise ValueError(f"skips={skips}: must have {stages - 1} numbers, one a path")
        self.in_ch, self.size, self.increment = in_ch, image_size, increment
        self.conditional = time_conditioning
        grid = [image_size // patch // 2**i for i in range(stages)]
        widths = [dim * 2**i for i in range(stages)]
        rates = torch.linspace(0, drop_path, 2 * sum(depths)).tolist()
        make = _drift_block if block is None else block

        def stage(i: int, rate: list[float]) -> nn.ModuleList:
            common = {"time_conditioning": time_conditioning, "periodic": periodic}
            return nn.ModuleList(
                make(widths[i], grid[i], shifted=n % 2 == 1, drop_path=r, **common, **options)
                for n, r in enumerate(rate)
            )

        parts, at = [], 0
        for depth in (*depths, *reversed(depths)):
            parts.append(rates[at : at + depth])
            at += depth
        self.embed = nn.Conv2d(in_ch, dim, patch, patch)
        self.embed_norm = ConditionalLayerNorm(dim, conditional=time_conditioning)
        self.encoder = nn.ModuleList(stage(i, parts[i]) for i in range(stages))
        self.merge = nn.ModuleList(PatchMerging(width, time_conditioning) for width in widths[:-1])
        self.skips = nn.ModuleList(
            nn.ModuleList(
                ConvNeXtBlock(width, time_conditioning, periodic, drop_path) for _ in range(count)
            )
            for width, count in zip(widths, paths, strict=False)
        )
        self.decoder = nn.ModuleList(stage(i, parts[-1 - i]) for i in range(stages))
        self.unmerge = nn.ModuleList(
            PatchUnmerging(width, time_conditioning) for width in widths[1:]
        )
        self.recover = nn.ConvTranspose2d(dim, out_ch, patch, patch)
        self.smooth = around(nn.Conv2d(out_ch, out_ch, 5, bias=False), periodic)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Return fields one step on.

        Parameters
        ----------
        x : torch.Tensor
            (batch, in_ch, image_size, image_size) real, normalised.
        time : torch.Tensor, optional
            (batch,) in [0, 1]; 0 if not given.

        Returns
        -------
        torch.Tensor
            (batch, out_ch, image_size, image_size).

        Raises
        ------
        ValueError
            If x is of another shape or not real, or time not one number a sample.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.in_ch, self.size, self.size):
            raise ValueError(
                f"input has shape {tuple(x.shape)}: must be (batch, {self.in_ch}, {self.size}, "
                f"{self.size}); gates are made for this grid, make a network for another"
            )
        if not x.is_floating_point():
            raise ValueError(f"input is {x.dtype}: must be real floating point; convert it")
        if time is None:
            time = x.new_zeros(len(x))
        if time.shape != (len(x),):
            raise ValueError(f"time has shape {tuple(time.shape)}: must be ({len(x)},)")
        h = self.embed_norm(self.embed(x).permute(0, 2, 3, 1), time)
        kept: list[Tensor] = []
        for i, blocks in enumerate(self.encoder):
            before = h
            for block in blocks.children():
                h = block(h, time)
            if i < len(self.merge):
                skip = h
                for block in self.skips[i].children():
                    skip = block(skip, time)
                kept.append(skip)
                h = self.merge[i](h + before, time)
        for i in reversed(range(len(self.decoder))):
            if i < len(kept):
                h = self.unmerge[i](h, time) + kept[i]
            for block in self.decoder[i].children():
                h = block(h, time)
        out: Tensor = self.smooth(self.recover(h.permute(0, 3, 1, 2)))
        return x + out if self.increment else out


def _drift_block(dim: int, resolution: int, *, shifted: bool, **options: Any) -> Block:
    return DriftBlock(dim, resolution, **options)
