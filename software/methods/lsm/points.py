"""Fields on scattered points: to a grid and back by their lowest Fourier modes, LSM between."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.lsm.model import LSM
from sat.methods.problems.arguments import require_counts


class PointProjection(nn.Module):
    """Values at points of the unit square to a periodic grid, or back, by Fourier modes.

    In: û(k) = mean of u e^(-2πi k·x) over the points, mixed by complex weights of each mode, then
    summed on the grid. Out: the same with grid and points exchanged. Real products of cosines and
    sines throughout.

    Parameters
    ----------
    source, target : int
        Channels.
    modes : int
        Wave numbers |k1|, |k2| below it.
    weight : {"learned", "identity"}
        "identity" (of equal channels) mixes nothing: the projection alone.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Li, Huang, Liu, Anandkumar, geo-FNO, arXiv 2207.05209, section 3.3, which the paper takes for
    elasticity.
    """

    waves: Tensor

    def __init__(self, source: int, target: int, modes: int = 8, weight: str = "learned") -> None:
        super().__init__()
        require_counts(source=source, target=target, modes=modes)
        if weight not in ("learned", "identity"):
            raise ValueError(f"weight={weight!r}: must be 'learned' or 'identity'")
        if weight == "identity" and source != target:
            raise ValueError(f"target={target}: must equal source={source} without weights")
        numbers = torch.arange(1 - modes, modes)
        waves = torch.cartesian_prod(numbers, numbers)
        # Half of them: the fields are real, so the others are conjugates.
        half = (waves[:, 0] > 0) | ((waves[:, 0] == 0) & (waves[:, 1] >= 0))
        self.register_buffer("waves", waves[half].double(), persistent=False)
        self.weight = (
            nn.Parameter(torch.rand(2, len(self.waves), source, target) / (source * target))
            if weight == "learned"
            else None
        )

    def forward(self, u: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """Return values at other points.

        Parameters
        ----------
        u : torch.Tensor
            (batch, points, source).
        here, there : torch.Tensor
            (batch, points, 2) and (batch, others, 2) within [0, 1]; one batch may stand for all.

        Returns
        -------
        torch.Tensor
            (batch, others, target).
        """
        cos, sin = self._waves(here)
        real, imag = cos.mT @ u / u.shape[1], -(sin.mT @ u) / u.shape[1]
        if self.weight is not None:
            a, b = self.weight
            real, imag = (
                torch.einsum("bki,kio->bko", real, a) - torch.einsum("bki,kio->bko", imag, b),
                torch.einsum("bki,kio->bko", real, b) + torch.einsum("bki,kio->bko", imag, a),
            )
        cos, sin = self._waves(there)
        # Every mode but the constant stands for its conjugate, too.
        twice = torch.where(self.waves.any(1), 2.0, 1.0).to(u.dtype)[:, None]
        return cos @ (twice * real) - sin @ (twice * imag)

    def _waves(self, points: Tensor) -> tuple[Tensor, Tensor]:
        # Whole turns of the phase are dropped in float64, before it is rounded.
        turns = (points.double() @ self.waves.mT).remainder(1)
        angle = (2 * math.pi * turns).to(points.dtype)
        return angle.cos(), angle.sin()


class PointLSM(nn.Module):
    """`LSM` for scattered points: project onto a grid, solve there, project back.

    Parameters
    ----------
    in_dim, out_dim : int
        Channels at the points.
    grid : int
        Points of an axis of the grid between; a multiple of 16 of ``patch``'s points.
    modes : int
        As `PointProjection`; at most half of the grid.
    d_model : int
    **options
        Of `LSM`.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        grid: int = 48,
        modes: int = 8,
        d_model: int = 32,
        **options: Any,
    ) -> None:
        super().__init__()
        require_counts(in_dim=in_dim, grid=grid)
        if 2 * modes > grid:
            raise ValueError(f"modes={modes}: must be at most half of grid={grid}; lower it")
        self.in_dim, self.size = in_dim, grid
        self.lift = nn.Linear(in_dim + 2, d_model)
        self.into = PointProjection(d_model, d_model, modes)
        self.model = LSM(d_model, d_model, d_model, **options)
        self.back = PointProjection(d_model, d_model, modes)
        self.local = nn.Linear(d_model, d_model)
        self.head = nn.Sequential(nn.Linear(d_model, 128), nn.GELU(), nn.Linear(128, out_dim))

    def forward(self, u: Tensor, points: Tensor) -> Tensor:
        """Return values at the same points.

        Parameters
        ----------
        u : torch.Tensor
            (batch, points, in_dim).
        points : torch.Tensor
            (batch, points, 2) within [0, 1].

        Returns
        -------
        torch.Tensor
            (batch, points, out_dim).

        Raises
        ------
        ValueError
            If shapes do not fit, or points lie outside the unit square.
        """
        if u.ndim != 3 or u.shape[-1] != self.in_dim or points.shape != (*u.shape[:2], 2):
            raise ValueError(
                f"u has shape {tuple(u.shape)} and points {tuple(points.shape)}: must be (batch, "
                f"points, {self.in_dim}) and (batch, points, 2)"
            )
        low, high = points.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"points reach from {float(low):g} to {float(high):g}: must lie within [0, 1]; "
                "scale the domain to the unit square"
            )
        axis = torch.arange(self.size, dtype=u.dtype, device=u.device) / self.size
        grid = torch.cartesian_prod(axis, axis)[None]
        h = self.lift(torch.cat([u, points], -1))
        field = self.into(h, points, grid).view(len(u), self.size, self.size, -1)
        field = self.model(field).flatten(1, 2)
        out: Tensor = self.head(
            torch.nn.functional.gelu(self.back(field, grid, points) + self.local(h))
        )
        return out
