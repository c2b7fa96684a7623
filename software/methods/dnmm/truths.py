"""Densities that are known: mixtures of extreme values, and the error of an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.stats import genextreme
from torch import Tensor

from sat.methods.dnmm.integrators import BoxIntegrator

Density = Callable[[Tensor], Tensor]
"""Points (n, d) to values (n,)."""


class GEVMixture:
    """A mixture of generalised extreme value laws in one dimension.

    F(x) = exp(-(1 - c (x - m) / s)^(1/c)): shape c in scipy's sign, location m, scale s.

    Parameters
    ----------
    weights, shapes, locations, scales : sequence of float
        Of the components.

    Raises
    ------
    ValueError
        If they are not equally many, a weight or scale is not positive, or weights do not add up
        to 1.
    """

    def __init__(
        self,
        weights: Sequence[float] = (0.4, 0.35, 0.25),
        shapes: Sequence[float] = (-0.1, 0.2, 0.0),
        locations: Sequence[float] = (0.0, 6.0, 11.0),
        scales: Sequence[float] = (1.0, 0.6, 1.2),
    ) -> None:
        if len({len(v) for v in (weights, shapes, locations, scales)}) != 1:
            raise ValueError("weights, shapes, locations and scales must be equally many")
        if min(weights) <= 0 or abs(sum(weights) - 1) > 1e-9:
            raise ValueError(f"weights={tuple(weights)}: must be positive, of sum 1")
        if min(scales) <= 0:
            raise ValueError(f"scales={tuple(scales)}: must be positive")
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.parts = list(zip(shapes, locations, scales, strict=True))

    def pdf(self, x: Tensor) -> Tensor:
        """Return the density (n,) float64 of x (n, 1)."""
        values = x.double().numpy()[:, 0]
        parts = [
            torch.from_numpy(genextreme.pdf(values, c, loc=m, scale=s)) for c, m, s in self.parts
        ]
        return (torch.stack(parts, 1) * self.weights).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n draws (n, 1) float64, by the inverse of F."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        c, m, s = torch.tensor(self.parts, dtype=torch.float64)[chosen].unbind(1)
        e = -u.log()
        standard = torch.where(c == 0, -e.log(), (1 - e**c) / torch.where(c == 0, 1.0, c))
        return (m + s * standard)[:, None]


class GumbelMixture:
    """Two components A z + b in two dimensions, z two independent standard Gumbel variables."""

    def __init__(self) -> None:
        self.matrices = torch.tensor(
            [[[1.0, 0.0], [0.6, 0.5]], [[0.6, -0.5], [0.2, 0.8]]], dtype=torch.float64
        )
        self.shifts = torch.tensor([[0.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
        self.weights = torch.tensor([0.5, 0.5], dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density (n,) float64 of x (n, 2)."""
        parts = []
        for matrix, shift in zip(self.matrices, self.shifts, strict=True):
            # By Cramer's rule: two by two, and no product of matrices.
            (a, b), (c, d) = matrix.tolist()
            determinant = a * d - b * c
            p, q = (x.double() - shift).unbind(1)
            z = torch.stack([d * p - b * q, a * q - c * p], 1) / determinant
            log = (-z - (-z).exp()).sum(1)
            parts.append(log - matrix.new_tensor(abs(determinant)).log())
        return torch.logsumexp(torch.stack(parts, 1) + self.weights.log(), 1)

    def pdf(self, x: Tensor) -> Tensor:
        """Return the density (n,) float64 of x (n, 2)."""
        return self.log_prob(x).exp()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n draws (n, 2) float64."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        u = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        z = -(-u.log()).log()
        return (self.matrices[chosen] * z[:, None]).sum(2) + self.shifts[chosen]


@torch.no_grad()
def integrated_squared_error(f: Density, g: Density, grid: BoxIntegrator) -> float:
    """Return the integral of (f - g)² over the grid's box, in its units.

    Parameters
    ----------
    f, g : callable
        Points (n, d) to densities (n,).
    grid : BoxIntegrator
        Such as ``Trapezoid1D(3001, box)``.
    """
    return float(grid.integrate(lambda x: (f(x).double() - g(x).double()).square()))
