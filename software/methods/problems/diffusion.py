"""Nonlinear diffusion on a line: -((1 + u²) u')' = f on (0, 1), u = 0 at both ends.

By finite volumes and damped Picard steps of scipy's banded solver, beside the exact solution: by
Kirchhoff's transform w = u + u³/3 solves -w'' = f (Carslaw and Jaeger, "Conduction of heat in
solids", 1959, section 1.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solveh_banded
from scipy.special import erf
from torch import Tensor

from sat.methods.problems.arguments import require_counts

Array = NDArray[np.float64]
DAMPING, TOLERANCE, MOST = 0.7, 1e-8, 30


@dataclass(frozen=True)
class Snapshots:
    """Solutions under random loads, float64.

    Attributes
    ----------
    parameters : torch.Tensor
        (count, 3) within [0, 1]: place, size and width of the load.
    loads, solutions : torch.Tensor
        (count, n).
    """

    parameters: Tensor
    loads: Tensor
    solutions: Tensor


class NonlinearDiffusion1D:
    """The equation at n interior points, its conductivity on faces the mean of its neighbours'.

    Parameters
    ----------
    n : int
        Interior points, h = 1 / (n + 1) apart.

    Raises
    ------
    ValueError
        If ``n`` is no positive int.
    """

    def __init__(self, n: int = 200) -> None:
        require_counts(n=n)
        self.n = n
        self.points: Array = np.arange(1, n + 1) / (n + 1)

    # ------------------------------------------------------------------------ loads and solutions

    @staticmethod
    def shape(parameters: ArrayLike) -> tuple[Array, Array, Array]:
        """Return place p, size A and width w of loads A exp(-(x - p)² / 2w²), (count, 1) each.

        Of parameters (count, 3) a, b, c: p = 0.1 + 0.8 a, A = 10^(2.5 b), w = 0.03 + 0.05 c.
        """
        a, b, c = np.asarray(parameters, dtype=np.float64)[:, :, None].swapaxes(0, 1)
        return 0.1 + 0.8 * a, 10 ** (2.5 * b), 0.03 + 0.05 * c

    def load(self, parameters: ArrayLike) -> Array:
        """Return loads (count, n) of parameters (count, 3)."""
        place, size, width = self.shape(parameters)
        return np.asarray(size * np.exp(-((self.points - place) ** 2) / (2 * width**2)))

    def exact(self, parameters: ArrayLike) -> Array:
        """Return exact solutions (count, n) under the loads of parameters (count, 3)."""
        place, size, width = self.shape(parameters)

        def twice(x: Array) -> Array:
            """Integrate the load twice; the first integral is odd about its place."""
            z = (x - place) / (np.sqrt(2) * width)
            scale = size * width**2 * np.sqrt(np.pi)
            return np.asarray(scale * (z * erf(z) + np.exp(-(z**2)) / np.sqrt(np.pi)))

        left, right = twice(np.zeros(1)), twice(np.ones(1))
        w = left + (right - left) * self.points - twice(self.points)
        # u³ + 3u = 3w has one real root: u = 2 sinh t makes the left side 2 sinh 3t.
        return np.asarray(2 * np.sinh(np.arcsinh(1.5 * w) / 3))

    def solve(self, load: ArrayLike) -> Array:
        """Return the solution (n,) under a load (n,).

        Raises
        ------
        ValueError
            If the load has another shape, or is not finite.
        """
        right = np.asarray(load, dtype=np.float64)
        if right.shape != (self.n,) or not np.isfinite(right).all():
            raise ValueError(f"load of shape {right.shape}: must be ({self.n},) and finite")
        u, spacing = np.zeros(self.n), 1 / (self.n + 1)
        for _ in range(MOST):
            k = 1 + np.concatenate([[0], u, [0]]) ** 2
            face = (k[1:] + k[:-1]) / (2 * spacing**2)
            bands = np.stack([np.concatenate([[0], -face[1:-1]]), face[1:] + face[:-1]])
            step = DAMPING * (solveh_banded(bands, right) - u)
            u = u + step
            if np.abs(step).max() <= TOLERANCE * np.abs(u).max():
                break
        return u

    def snapshots(self, count: int, seed: int = 0) -> Snapshots:
        """Return solutions under loads whose parameters are uniform.

        Raises
        ------
        ValueError
            If ``count`` is no positive int.
        """
        require_counts(count=count)
        rng = np.random.default_rng(seed)
        parameters = np.stack([rng.random(count) for _ in range(3)], 1)
        loads = self.load(parameters)
        solutions = np.stack([self.solve(load) for load in loads])
        return Snapshots(*map(torch.from_numpy, (parameters, loads, solutions)))

    # ------------------------------------------------------------------------- for Galerkin models

    def assemble(self, u: Tensor, x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return the operator at u and the load x in a basis: Gᵀ diag(k) G, and Vᵀ x.

        Parameters
        ----------
        u, x : torch.Tensor
            (n,) float64.
        basis : torch.Tensor
            (n, modes); G are its differences from point to point.

        Returns
        -------
        matrix, load : torch.Tensor
            (modes, modes) and (modes,).
        """
        slope = self._differences(basis)
        return slope.mT @ (self._conductivity(u)[:, None] * slope), basis.mT @ x

    def residual(self, u: Tensor, x: Tensor) -> Tensor:
        """Return -((1 + u²) u')' - x at the points, (n,); it takes no product."""
        flux = self._conductivity(u) * self._differences(u[:, None])[:, 0]
        return (flux[:-1] - flux[1:]) * (self.n + 1) - x

    def _differences(self, columns: Tensor) -> Tensor:
        edge = columns.new_zeros(1, columns.shape[1])
        return torch.cat([edge, columns, edge]).diff(dim=0) * (self.n + 1)

    @staticmethod
    def _conductivity(u: Tensor) -> Tensor:
        edge = u.new_zeros(1)
        k = 1 + torch.cat([edge, u, edge]) ** 2
        return (k[1:] + k[:-1]) / 2
