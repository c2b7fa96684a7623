"""The hopper's model, one evaluation for any time, and the bed's, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.neuraldem.blocks import (
    CrossDitBlock,
    DitBlock,
    MultimodalDitBlock,
    require_heads,
)
from sat.methods.neuraldem.embedding import ScalarConditioner
from sat.methods.neuraldem.particles import SupernodePooling, sample_particles
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.embedding import SinCosEmbedding


class FieldDecoder(nn.Module):
    """Latent tokens asked at any places, by a cross block; a norm and a layer follow.

    Parameters
    ----------
    d, heads : int
    out : int
        Channels of the field.
    ndim : int
    zero_init : bool
    """

    def __init__(self, d: int, heads: int, out: int, ndim: int, zero_init: bool = False) -> None:
        super().__init__()
        require_counts(out=out)
        self.embed = SinCosEmbedding(d, ndim)
        self.ask = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d), nn.GELU())
        self.block = CrossDitBlock(d, heads, zero_init)
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, out)

    def forward(self, tokens: Tensor, positions: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, places, out) for places of each sample, or (places, ndim) for all."""
        query = self.ask(self.embed(positions))
        query = query.expand(len(tokens), -1, -1)
        out: Tensor = self.head(self.norm(self.block(query, tokens, condition)))
        return out


class HopperModel(nn.Module):
    """Fields of a flow at any time and place, from scalars alone: not step by step.

    Each field has latent tokens, blocks and a decoder of its own.

    Parameters
    ----------
    fields : mapping of str to int
        Channels of each field.
    scalars : sequence of str
        Such as time, outlet, friction.
    ndim : int
    d, heads, tokens, depth : int
    ranges : mapping, optional
        As `ScalarConditioner`.
    zero_init : bool

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        fields: Mapping[str, int],
        scalars: Sequence[str],
        ndim: int = 2,
        d: int = 384,
        heads: int = 6,
        tokens: int = 32,
        depth: int = 1,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if not fields:
            raise ValueError("fields={}: must have at least one field")
        require_heads(d, heads)
        require_counts(tokens=tokens, depth=depth)
        self.condition = ScalarConditioner(d, scalars, ranges)
        self.tokens = nn.ParameterDict({name: torch.randn(tokens, d) for name in fields})
        self.blocks = nn.ModuleDict(
            {
                name: nn.ModuleList(DitBlock(d, heads, zero_init) for _ in range(depth))
                for name in fields
            }
        )
        self.decoders = nn.ModuleDict(
            {name: FieldDecoder(d, heads, out, ndim, zero_init) for name, out in fields.items()}
        )

    def forward(self, scalars: Tensor, positions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the fields that are asked for.

        Parameters
        ----------
        scalars : torch.Tensor
            (batch, scalars).
        positions : mapping of str to torch.Tensor
            Of each field: (places, ndim), or (batch, places, ndim).

        Returns
        -------
        dict of str to torch.Tensor
            (batch, places, channels).

        Raises
        ------
        ValueError
            If there is no such field, or scalars are missing.
        """
        condition = self.condition(scalars)
        out = {}
        for name, places in positions.items():
            if name not in self.tokens:
                raise ValueError(f"field {name!r}: there is none; fields are {list(self.tokens)}")
            x = self.tokens[name].expand(len(scalars), -1, -1)
            for block in self.blocks[name].children():
                x = block(x, condition)
            out[name] = self.decoders[name](x, places, condition)
        return out


class BedModel(nn.Module):
    """A fluidised bed, one step on: particles and fluid see one another, mixing only looks on.

    Particles are pooled into supernodes; fluid (velocity and void fraction) and mixing are patches
    of a grid. Particles of the next step are drawn from the predicted solid fraction.

    Parameters
    ----------
    grid : sequence of int
        Cells along each axis; multiples of ``patch``.
    patch : int
        Cells of a patch along each axis.
    scalars : sequence of str
    box : sequence of float
        Lengths of the domain, from 0.
    d, heads, depth : int
    supernodes : int
    radius : float
        As `SupernodePooling`.
    norms : sequence of int
        Blocks before which tokens pass a norm without weights.
    scale : float
        Coordinates are brought to 0 … scale for their embedding.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        grid: Sequence[int],
        patch: int,
        scalars: Sequence[str],
        *,
        box: Sequence[float],
        d: int = 768,
        heads: int = 12,
        depth: int = 12,
        supernodes: int = 512,
        radius: float = 1.0,
        norms: Sequence[int] = (5, 9),
        scale: float = 200.0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        require_heads(d, heads)
        require_counts(patch=patch, depth=depth, supernodes=supernodes)
        if len(box) != len(grid):
            raise ValueError(f"box={tuple(box)}: must have as many axes as grid={tuple(grid)}")
        for axis, cells in enumerate(grid):
            if cells % patch:
                raise ValueError(f"grid[{axis}]={cells}: must be a multiple of patch={patch}")
        self.grid, self.patch, self.norms = tuple(grid), patch, tuple(norms)
        self.supernodes, self.scale = supernodes, scale
        ndim = len(self.grid)
        self.register_buffer("box", torch.tensor(box, dtype=torch.float32), persistent=False)
        cells = math.prod([patch] * ndim)
        self.channels = {"fluid": ndim + 1, "mixing": 1}
        self.condition = ScalarConditioner(d, scalars)
        self.pool = SupernodePooling(d, ndim, ndim, radius * scale / float(max(box)))
        self.after_pool = nn.Linear(d, d)
        self.place = SinCosEmbedding(d, ndim)
        self.embed = nn.ModuleDict(
            {name: nn.Linear(c * cells, d) for name, c in self.channels.items()}
        )
        self.blocks = nn.ModuleList(
            MultimodalDitBlock(d, heads, ("particles", "fluid"), ("mixing",), zero_init)
            for _ in range(depth)
        )
        self.particles = FieldDecoder(d, heads, ndim, ndim, zero_init)
        self.decoders = nn.ModuleDict(
            {name: FieldDecoder(d, heads, c * cells, ndim, zero_init)
             for name, c in self.channels.items()}
        )  # fmt: skip

    box: Tensor

    def forward(
        self,
        scalars: Tensor,
        positions: Tensor,
        displacements: Tensor,
        fluid: Tensor,
        mixing: Tensor,
        query: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return displacements (log scale), fluid and mixing one step on.

        Parameters
        ----------
        scalars : torch.Tensor
            (batch, scalars).
        positions, displacements : torch.Tensor
            (batch, particles, ndim) within the box; displacements on the log scale.
        fluid : torch.Tensor
            (batch, ndim + 1, *grid): velocity, void fraction.
        mixing : torch.Tensor
            (batch, 1, *grid).
        query : torch.Tensor
            (batch, places, ndim): where displacements are asked for.
        generator : torch.Generator
            Of supernodes.
        """
        condition = self.condition(scalars)
        size = self.scale / self.box.max()
        chosen = [
            torch.randperm(positions.shape[1], generator=generator)[: self.supernodes]
            for _ in positions
        ]
        pooled = [
            self.pool(f, p * size, nodes)
            for f, p, nodes in zip(displacements, positions, chosen, strict=True)
        ]
        x = {"particles": self.after_pool(torch.stack(pooled))}
        centers = self._centers() * size
        for name, field in (("fluid", fluid), ("mixing", mixing)):
            x[name] = self.embed[name](self._patches(field)) + self.place(centers)
        for number, block in enumerate(self.blocks):
            if number in self.norms:
                x = {name: functional.layer_norm(y, y.shape[-1:]) for name, y in x.items()}
            x = block(x, condition)
        out = {"particles": self.particles(x["particles"], query * size, condition)}
        for name, decoder in self.decoders.items():
            out[name] = self._fields(decoder(x[name], centers, condition))
        return out

    @torch.no_grad()
    def step(
        self, scalars: Tensor, state: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the state one step on: positions, displacements, fluid, mixing, as `forward`'s."""
        now = [state[name] for name in ("positions", "displacements", "fluid", "mixing")]
        seen = self(scalars, *now, state["positions"], generator)
        solid, count = 1 - seen["fluid"][:, -1], state["positions"].shape[1]
        ends = torch.stack([torch.zeros_like(self.box), self.box])
        drawn = torch.stack([sample_particles(s, count, ends, generator) for s in solid])
        moved = self(scalars, *now, drawn, generator)["particles"]
        return {
            "positions": drawn, "displacements": moved, "fluid": seen["fluid"],
            "mixing": seen["mixing"],
        }  # fmt: skip

    def rollout(
        self, scalars: Tensor, state: dict[str, Tensor], steps: int, generator: torch.Generator
    ) -> list[dict[str, Tensor]]:
        """Return the states of some steps; their displacements are on the log scale."""
        require_counts(steps=steps)
        states = []
        for _ in range(steps):
            state = self.step(scalars, state, generator)
            states.append(state)
        return states

    def _centers(self) -> Tensor:
        axes = [
            (torch.arange(cells // self.patch) + 0.5) * self.patch * length / cells
            for cells, length in zip(self.grid, self.box.tolist(), strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)

    def _patches(self, field: Tensor) -> Tensor:
        """Return (batch, patches, channels · cells) of (batch, channels, *grid)."""
        ndim = len(self.grid)
        for axis in range(ndim):
            field = field.unflatten(2 + 2 * axis, (-1, self.patch))
        numbers, cells = range(2, 2 + 2 * ndim, 2), range(3, 3 + 2 * ndim, 2)
        return field.permute(0, *numbers, 1, *cells).flatten(1, ndim).flatten(2)

    def _fields(self, patches: Tensor) -> Tensor:
        """Undo `_patches`."""
        ndim = len(self.grid)
        counts = [cells // self.patch for cells in self.grid]
        x = patches.reshape(len(patches), *counts, -1, *[self.patch] * ndim)
        order = [0, ndim + 1]
        for axis in range(ndim):
            order += [1 + axis, ndim + 2 + axis]
        return x.permute(order).reshape(len(patches), -1, *self.grid)
