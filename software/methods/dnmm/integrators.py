"""Integrals over a box: trapezoidal rules, and importance sampling from a pool."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity
from torch import Tensor

from sat.methods.problems.arguments import require_counts

MOST_DIMENSIONS = 3
LEAST_EFFECTIVE = 100
SMALLEST_WIDTH = 1e-2
"""Of a kernel, over the box's sides: data that lie on one point have none of their own."""


class BoxIntegrator(ABC):
    """Points and weights in a box: an integral is a weighted sum of values.

    Attributes
    ----------
    box : torch.Tensor
        (2, d) float64, lowest and highest corner.
    points : torch.Tensor
        (n, d) float64.
    weights : torch.Tensor
        (n,) float64.
    """

    points: Tensor
    weights: Tensor

    def __init__(self, box: Tensor) -> None:
        box = torch.as_tensor(box, dtype=torch.float64)
        if box.ndim != 2 or len(box) != 2 or not bool((box[0] < box[1]).all()):
            raise ValueError(
                f"box={box.tolist()}: must be (2, d), every lower end below its upper one"
            )
        if not bool(torch.isfinite(box).all()):
            raise ValueError(f"box={box.tolist()}: must be finite; cut it off where nothing is")
        self.box = box

    @property
    def dim(self) -> int:
        """d."""
        return self.box.shape[1]

    def integrate(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the integral of ``f``, which takes points (n, d) to values (n, …).

        A sum in the values' dtype, on the host; gradients pass through it.
        """
        values = f(self.points)
        weights = self.weights.to(values.dtype)
        return (values * weights.view(-1, *[1] * (values.ndim - 1))).sum(0)

    @abstractmethod
    def refined(self, factor: int) -> BoxIntegrator:
        """Return a rule of the same kind with ``factor`` times the points, along each axis."""


class TensorTrapezoid(BoxIntegrator):
    """The trapezoidal rule along each axis.

    Parameters
    ----------
    n : int
        Points along each axis, at least 2.
    box : torch.Tensor
        (2, d), d at most 3.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(self, n: int, box: Tensor) -> None:
        super().__init__(box)
        require_counts(n=n)
        if n < 2:
            raise ValueError(f"n={n}: must be at least 2, the ends of a side")
        if self.dim > MOST_DIMENSIONS:
            raise ValueError(
                f"{n} points a side in {self.dim} dimensions are {n**self.dim:,}: at most "
                f"{MOST_DIMENSIONS} dimensions; use ImportancePool"
            )
        self.n = n
        axes, weights = [], []
        for low, high in self.box.T.tolist():
            axes.append(torch.linspace(low, high, n, dtype=torch.float64))
            weight = torch.full((n,), (high - low) / (n - 1), dtype=torch.float64)
            weight[[0, -1]] /= 2
            weights.append(weight)
        self.points = torch.cartesian_prod(*axes).view(-1, self.dim)
        self.weights = torch.cartesian_prod(*weights).view(-1, self.dim).prod(1)

    def refined(self, factor: int) -> TensorTrapezoid:
        """Return a rule with ``factor`` times the intervals along each axis."""
        return type(self)(factor * (self.n - 1) + 1, self.box)


class Trapezoid1D(TensorTrapezoid):
    """The trapezoidal rule of n points on an interval."""

    def __init__(self, n: int, box: Tensor) -> None:
        super().__init__(n, box)
        if self.dim != 1:
            raise ValueError(f"box has {self.dim} dimensions: must have 1; use TensorTrapezoid")


class ImportancePool(BoxIntegrator):
    """Points drawn once, half uniform in the box, half from a kernel estimate of the data.

    Those that leave the box are drawn again; weights are 1 / (n q), q the density they come from,
    by the two parts' very shares where n is odd. The uniform half is what finds mass where no data
    are.

    Parameters
    ----------
    n : int
        At least 2.
    x : torch.Tensor
        (N, d) data in the box.
    box : torch.Tensor
        (2, d).
    generator : torch.Generator

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Warns
    -----
    UserWarning
        If the weights are worth fewer than 100 equal ones.

    Source
    ------
    Trentin 2023 samples from a mixture of a uniform density and the current network by Metropolis
    and Hastings; a fixed pool is ours, and leaves no bias.
    """

    def __init__(self, n: int, x: Tensor, box: Tensor, generator: torch.Generator) -> None:
        super().__init__(box)
        require_counts(n=n)
        if n < 2:
            raise ValueError(f"n={n}: must be at least 2, one of each part; 6000 is usual")
        x = x.double()
        if x.ndim != 2 or not len(x) or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}: must be (N, {self.dim}), as the box")
        if not bool(((x >= self.box[0]) & (x <= self.box[1])).all()):
            raise ValueError("x has points outside the box: widen it, or drop them")
        self.n, self.x, self.generator = n, x, generator
        sides = self.box[1] - self.box[0]
        self.width = silverman_width(x, float(sides.min()) * SMALLEST_WIDTH)
        kept: list[Tensor] = []
        uniform = torch.rand(n // 2, self.dim, generator=generator, dtype=torch.float64)
        count = n - len(uniform)
        while count:
            places = torch.randint(len(x), (2 * count,), generator=generator)
            noise = torch.randn(2 * count, self.dim, generator=generator, dtype=torch.float64)
            drawn = x[places] + self.width * noise
            inside = ((drawn >= self.box[0]) & (drawn <= self.box[1])).all(1)
            kept.append(drawn[inside][:count])
            count -= len(kept[-1])
        self.points = torch.cat([self.box[0] + sides * uniform, *kept])
        share = self._inside()
        flat = math.log(len(uniform) / n) - float(sides.log().sum())
        around = math.log(1 - len(uniform) / n) - math.log(share)
        peaked = around + kernel_log_density(x, self.width, self.points)
        log_q = torch.from_numpy(logsumexp([torch.full_like(peaked, flat), peaked], axis=0))
        self.weights = (-log_q).exp() / n
        effective = float(self.weights.sum().square() / self.weights.square().sum())
        if effective < LEAST_EFFECTIVE:
            warnings.warn(
                f"{n} points in {self.dim} dimensions are worth {effective:.0f} of equal weight: "
                f"integrals are rough; take n={round(n * LEAST_EFFECTIVE / effective)} or more",
                stacklevel=2,
            )

    def _inside(self) -> float:
        """Return the kernel estimate's mass in the box, a product of normal ones a kernel."""
        root = math.sqrt(2) * self.width
        above, below = ((end - self.x) / root for end in (self.box[1], self.box[0]))
        return float(((torch.erf(above) - torch.erf(below)) / 2).prod(1).mean())

    def refined(self, factor: int) -> ImportancePool:
        """Return a fresh pool of ``factor`` times the points."""
        return ImportancePool(factor * self.n, self.x, self.box, self.generator)


def silverman_width(x: Tensor, least: float = 0.0) -> float:
    """Return Silverman's width of a normal kernel for x (N, d), the same along all axes."""
    n, d = x.shape
    spread = float(x.var(0, correction=0).mean().sqrt())
    return max(spread * (n * (d + 2) / 4) ** (-1 / (d + 4)), least)


def kernel_log_density(x: Tensor, width: float, points: Tensor) -> Tensor:
    """Return the logarithm of the kernel estimate of x (N, d) at points (n, d), (n,) float64."""
    estimate = KernelDensity(bandwidth=width, rtol=1e-6).fit(x.double().numpy())
    return torch.from_numpy(estimate.score_samples(points.double().numpy()))
