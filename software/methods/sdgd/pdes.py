"""PDEs in many dimensions whose operator is a sum over them, with solutions to be judged by.

Everything is dimensionless. Constraints are `Jet`s, so that derivatives obey the product rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.jets import Jet

Model = Callable[[Tensor], Tensor]
"""Points (points, inputs) to values (points,)."""

_EDGE = 1e-5
"""How far outside the ball rounding may put a point."""


class DimensionwisePDE(ABC):
    """A PDE L u = R with L u = sum_i L_i u + rest, i over the axes of space.

    Parameters
    ----------
    d : int
        Axes of space, and terms of the sum.
    seed : int
        Of what is random about it; `sample` goes on from there.
    """

    extra_axes: tuple[int, ...] = ()
    """Axes after those of space that ``rest`` differentiates by, once."""

    def __init__(self, d: int, seed: int = 0) -> None:
        require_counts(d=d)
        self.d = d
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def inputs(self) -> int:
        """Columns of a point: axes of space, then others."""
        return self.d + len(self.extra_axes)

    def axes(self, idx: Tensor) -> Tensor:
        """Return the axes (directions,) to differentiate along for terms ``idx``."""
        return torch.cat([idx, torch.tensor(self.extra_axes, dtype=torch.int64)])

    def require(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` are points (N, inputs) of the domain."""
        if x.ndim != 2 or x.shape[1] != self.inputs or not len(x):
            raise ValueError(
                f"x has shape {tuple(x.shape)}: must be (N, {self.inputs}), N at least 1; reshape "
                "it"
            )

    @abstractmethod
    def terms(self, jet: Jet) -> Tensor:
        """Return L_i u (terms, points) from the jet of u along `axes` of these terms."""

    @abstractmethod
    def rest(self, model: Model, x: Tensor, jet: Jet) -> Tensor:
        """Return what is no sum over axes, or is kept whole: (points,)."""

    @abstractmethod
    def rhs(self, x: Tensor) -> Tensor:
        """Return R (points,)."""

    @abstractmethod
    def solution(self, x: Tensor) -> Tensor:
        """Return the solution (points,)."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """Return n new points (n, inputs) float32."""

    @abstractmethod
    def constrain(self, n: Jet, x: Tensor, axes: Tensor) -> Jet:
        """Return u from a network's output, one that keeps the side condition exactly."""


class TwoBody(DimensionwisePDE):
    """Δu + f(u) = R in the unit ball, u = 0 on the sphere, for a known u of pairs of axes.

    u(x) = (1 - ‖x‖²) Σ_{i<d} c_i sin(x_i + cos x_{i+1} + x_{i+1} cos x_i), c_i normal.

    Parameters
    ----------
    d : int
        At least 2.
    seed : int
        Of c, which is that of the released code's seed, and of the points.
    coefficients : torch.Tensor, optional
        c (d - 1,), instead of random ones.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 5.1; points are a normal vector's direction times a radius uniform in (0, 1), as in the
    released code.
    """

    def __init__(self, d: int, seed: int = 0, coefficients: Tensor | None = None) -> None:
        super().__init__(d, seed)
        if d < 2:
            raise ValueError(f"d={d}: must be at least 2, as the solution is made of pairs")
        if coefficients is None:
            drawn = np.random.RandomState(seed).standard_normal(d - 1)
            coefficients = torch.from_numpy(drawn)
        if coefficients.shape != (d - 1,):
            raise ValueError(
                f"coefficients has shape {tuple(coefficients.shape)}: must be ({d - 1},), one a "
                "pair of neighbouring axes"
            )
        self.coefficients = coefficients

    @abstractmethod
    def reaction(self, u: Tensor) -> Tensor:
        """Return f(u)."""

    def require(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` are points (N, d) of the unit ball."""
        super().require(x)
        radius = float(x.detach().norm(dim=1).amax())
        if not radius <= 1 + _EDGE:
            raise ValueError(
                f"x has a point at distance {radius:.6g} from the centre: must be at most 1, where "
                "1 - |x|² is no factor of the solution any more; scale it"
            )

    def _angles(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return neighbours a and b, c sin s and c cos s of their s, and c."""
        a, b, c = x[:, :-1], x[:, 1:], self.coefficients.to(x)
        s = a + b.cos() + b * a.cos()
        return a, b, c * s.sin(), c * s.cos(), c

    def solution(self, x: Tensor) -> Tensor:
        """Return u (points,)."""
        sines = self._angles(x)[2]
        return (1 - x.square().sum(1)) * sines.sum(1)

    def laplacian(self, x: Tensor) -> Tensor:
        """Return Δu of the solution (points,), by the product rule."""
        a, b, sines, cosines, _ = self._angles(x)
        # Of s by a and by b.
        by_a, by_b = 1 - b * a.sin(), a.cos() - b.sin()
        inner = -sines * (by_a.square() + by_b.square()) - cosines * (b * a.cos() + b.cos())
        along = (cosines * (a * by_a + b * by_b)).sum(1)
        factor = 1 - x.square().sum(1)
        return factor * inner.sum(1) - 4 * along - 2 * self.d * sines.sum(1)

    def rhs(self, x: Tensor) -> Tensor:
        """Return Δu + f(u) of the solution (points,)."""
        return self.laplacian(x) + self.reaction(self.solution(x))

    def sample(self, n: int) -> Tensor:
        """Return n new points (n, d) float32 of the ball."""
        require_counts(n=n)
        x = torch.randn(n, self.d, generator=self.generator)
        radius = torch.rand(n, 1, generator=self.generator)
        return x / x.norm(dim=1, keepdim=True) * radius

    def terms(self, jet: Jet) -> Tensor:
        """Return u_ii (terms, points)."""
        return jet.second[..., 0]

    def rest(self, model: Model, x: Tensor, jet: Jet) -> Tensor:
        """Return f(u) (points,)."""
        return self.reaction(jet.value[:, 0])

    def constrain(self, n: Jet, x: Tensor, axes: Tensor) -> Jet:
        """Return (1 - ‖x‖²) times the network."""
        first = -2 * x.T[axes][..., None]
        second = x.new_full((len(n.second), 1, 1), -2.0)
        return Jet(1 - x.square().sum(1, keepdim=True), first, second) * n


class TwoBodyPoisson(TwoBody):
    """Δu = R."""

    def reaction(self, u: Tensor) -> Tensor:
        """Return 0."""
        return torch.zeros_like(u)


class SineGordon(TwoBody):
    """Δu + sin u = R."""

    def reaction(self, u: Tensor) -> Tensor:
        """Return sin u."""
        return u.sin()


class AllenCahn(TwoBody):
    """Δu + u - u³ = R."""

    def reaction(self, u: Tensor) -> Tensor:
        """Return u - u³."""
        return u - u**3


class HJBLog(DimensionwisePDE):
    """u_t + Δu - ‖∇u‖² = 0 for t in [0, 1], u(x, 1) = g(x) = log((1 + ‖x‖²) / 2).

    A point is (x, t). The solution is Cole and Hopf's, -log E exp(-g(x + √(2(1 - t)) W)), W normal.

    Parameters
    ----------
    d : int
        Axes of x.
    seed : int
        Of points and of W.
    sample_gradient : bool
        Whether ‖∇u‖² is among the terms that are sampled; else it is kept whole, by one more
        reverse pass.
    draws : int
        Of W, for `solution`.

    Source
    ------
    Section 5.3 and its released code: x normal, t uniform.
    """

    def __init__(
        self, d: int, seed: int = 0, *, sample_gradient: bool = True, draws: int = 20_000
    ) -> None:
        self.extra_axes = (d,)
        super().__init__(d, seed)
        require_counts(draws=draws)
        self.sample_gradient, self.draws = sample_gradient, draws

    def require(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` are points (N, d + 1) with times in [0, 1]."""
        super().require(x)
        time = x[:, -1]
        if not bool(((time >= 0) & (time <= 1)).all()):
            raise ValueError(
                f"x has times from {float(time.min()):.6g} to {float(time.max()):.6g}: must be "
                "within [0, 1]; the last column is the time"
            )

    @staticmethod
    def terminal(x: Tensor) -> Tensor:
        """Return g (…) of x (…, d)."""
        return x.square().sum(-1).log1p() - math.log(2)

    def solution(self, x: Tensor) -> Tensor:
        """Return u (points,) by Monte Carlo; its deviation falls with the root of ``draws``."""
        self.require(x)
        logs = []
        for point in x:
            w = torch.randn(self.draws, self.d, generator=self.generator).to(x)
            at = point[:-1] + (2 * (1 - point[-1])).sqrt() * w
            logs.append(math.log(self.draws) - (-self.terminal(at)).logsumexp(0))
        return torch.stack(logs)

    def rhs(self, x: Tensor) -> Tensor:
        """Return 0 (points,)."""
        return x.new_zeros(len(x))

    def sample(self, n: int) -> Tensor:
        """Return n new points (n, d + 1) float32."""
        require_counts(n=n)
        x = torch.randn(n, self.d, generator=self.generator)
        return torch.cat([x, torch.rand(n, 1, generator=self.generator)], 1)

    def terms(self, jet: Jet) -> Tensor:
        """Return u_ii - u_i², or u_ii alone: (terms, points)."""
        second = jet.second[..., 0]
        if not self.sample_gradient:
            return second
        return second - jet.first[: len(second), :, 0].square()

    def rest(self, model: Model, x: Tensor, jet: Jet) -> Tensor:
        """Return u_t, less ‖∇u‖² if that is kept whole: (points,)."""
        slope = jet.first[-1, :, 0]
        if self.sample_gradient:
            return slope
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (whole,) = torch.autograd.grad(model(at).sum(), at, create_graph=keep)
        return slope - whole[:, :-1].square().sum(1)

    def constrain(self, n: Jet, x: Tensor, axes: Tensor) -> Jet:
        """Return (1 - t) times the network, plus g."""
        count, space = len(n.second), axes < self.d
        falling = -(~space).to(x).view(-1, 1, 1)
        zeros = x.new_zeros(count, 1, 1)
        factor = Jet(1 - x[:, -1:], falling, zeros)
        # g_i = 2 x_i / q and g_ii = 2 / q - g_i², with q = 1 + ‖x‖².
        q = 1 + x[:, :-1].square().sum(1, keepdim=True)
        first = 2 * (x.T[axes] * space[:, None])[..., None] / q
        lift = Jet(q.log() - math.log(2), first, 2 / q - first[:count].square())
        return factor * n + lift
