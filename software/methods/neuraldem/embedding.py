"""Scalars as one condition, by vectors of sines and cosines."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sat.methods.problems.embedding import SinCosEmbedding


class ScalarConditioner(nn.Module):
    """Scalars to one condition of width 4 d: each embedded, by a layer of its own, then together.

    Parameters
    ----------
    d : int
    names : sequence of str
    ranges : mapping of str to (float, float), optional
        What was trained on; a scalar outside warns.

    Raises
    ------
    ValueError
        If there are no names, or a range is of another scalar.
    """

    def __init__(
        self,
        d: int,
        names: Sequence[str],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        if not names:
            raise ValueError("names=[]: must have at least one scalar")
        for name in ranges or {}:
            if name not in names:
                raise ValueError(f"ranges: {name!r} is none of {', '.join(names)}")
        self.names, self.ranges = tuple(names), dict(ranges or {})
        self.embed = SinCosEmbedding(d, 1)
        self.each = nn.ModuleList(nn.Sequential(nn.Linear(d, d), nn.GELU()) for _ in names)
        self.whole = nn.Sequential(
            nn.Linear(len(names) * d, d), nn.GELU(), nn.Linear(d, 4 * d), nn.GELU()
        )

    def forward(self, scalars: Tensor) -> Tensor:
        """Return conditions (batch, 4 d) of scalars (batch, names).

        Raises
        ------
        ValueError
            If there are not as many as names, or one is not finite.
        """
        if scalars.ndim != 2 or scalars.shape[1] != len(self.names):
            raise ValueError(
                f"scalars have shape {tuple(scalars.shape)}: must be (batch, {len(self.names)}), "
                f"of {', '.join(self.names)}"
            )
        for place, name in enumerate(self.names):
            low, high = (float(end) for end in scalars[:, place].detach().aminmax())
            if not math.isfinite(low) or not math.isfinite(high):
                raise ValueError(f"scalar {name!r} is not finite; give all scalars")
            least, most = self.ranges.get(name, (-math.inf, math.inf))
            if low < least or high > most:
                warnings.warn(
                    f"scalar {name!r} reaches from {low:g} to {high:g}: trained on {least:g} to "
                    f"{most:g}",
                    stacklevel=2,
                )
        parts = [
            layer(self.embed(scalars[:, place : place + 1]))
            for place, layer in enumerate(self.each.children())
        ]
        out: Tensor = self.whole(torch.cat(parts, -1))
        return out
