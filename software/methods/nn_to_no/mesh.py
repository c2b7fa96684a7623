"""Meshes with quadrature weights, and the norms that go with them."""

from __future__ import annotations

import torch
from torch import Tensor


class QuadratureMesh:
    """Points and the weights that make a sum over them an integral.

    Parameters
    ----------
    points : torch.Tensor
        (points, dim).
    weights : torch.Tensor
        (points,), not negative; they add up to the domain's measure.
    measure : float
        Of the domain; the weights may miss it by 1 %.

    Raises
    ------
    ValueError
        If weights are negative, of another length, or add up to something else.

    Source
    ------
    Section 3, "quadrature weights".
    """

    def __init__(self, points: Tensor, weights: Tensor, measure: float = 1.0) -> None:
        if points.ndim != 2 or not len(points):
            raise ValueError(f"points has shape {tuple(points.shape)}: must be (points, dim)")
        require_weights(weights, len(points))
        total = float(weights.sum())
        if not abs(total - measure) <= 0.01 * measure:
            raise ValueError(
                f"weights add up to {total:g}: must add up to the domain's measure {measure:g} "
                "within 1 %; scale them"
            )
        self.points, self.weights, self.measure = points, weights, measure

    @classmethod
    def uniform(cls, n: int, dim: int = 1, periodic: bool = True) -> QuadratureMesh:
        """Return n points an axis of the unit cube; float64.

        Periodic: i / n with equal weights; else from edge to edge with those of the trapezoid rule.

        Raises
        ------
        ValueError
            If there are too few points, or ``dim`` is none of 1, 2 and 3.
        """
        least = 1 if periodic else 2
        if not isinstance(n, int) or n < least:
            raise ValueError(f"n={n!r}: must be an int of at least {least}; raise it")
        if dim not in (1, 2, 3):
            raise ValueError(f"dim={dim!r}: must be 1, 2 or 3")
        if periodic:
            axis = torch.arange(n, dtype=torch.float64) / n
            weights = torch.full((n,), 1 / n, dtype=torch.float64)
        else:
            axis = torch.linspace(0, 1, n, dtype=torch.float64)
            weights = trapezoid(axis)
        points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
        return cls(points, torch.cartesian_prod(*[weights] * dim).reshape(-1, dim).prod(1))

    @classmethod
    def from_points_1d(cls, x: Tensor) -> QuadratureMesh:
        """Return points (points,) with the trapezoid rule's weights, from the first to the last.

        Raises
        ------
        ValueError
            If points are unsorted, repeated, or fewer than two.
        """
        return cls(x[:, None], trapezoid(x), float(x[-1] - x[0]))

    def __len__(self) -> int:
        return len(self.points)

    def integrate(self, f: Tensor) -> Tensor:
        """Return the integral of f (…, points, channels): (…, channels)."""
        return self.weights.to(f.dtype) @ f


def require_weights(weights: Tensor, points: int) -> None:
    """Raise ValueError unless weights are one a point and not negative."""
    if weights.shape != (points,):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}: must be ({points},), one a point"
        )
    if not bool((weights >= 0).all()):
        raise ValueError(
            f"weights has {float(weights.min()):g}: must not be negative; check the mesh"
        )


def trapezoid(x: Tensor) -> Tensor:
    """Return the trapezoid rule's weights of sorted points (points,)."""
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: must be (points,), at least 2")
    steps = x.diff()
    wrong = (steps <= 0).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"x[{place}]={float(x[place]):g} and x[{place + 1}]={float(x[place + 1]):g}: points "
            "must ascend without repeats; sort them and drop what is double"
        )
    zero = steps.new_zeros(1)
    return (torch.cat([steps, zero]) + torch.cat([zero, steps])) / 2


def l2(p: Tensor, t: Tensor, mesh: QuadratureMesh, relative: bool = False) -> Tensor:
    """Return (∫ |p - t|²)^½ of each sample, over that of t if relative.

    Parameters
    ----------
    p, t : torch.Tensor
        (batch, points, channels).
    mesh : QuadratureMesh
    relative : bool

    Returns
    -------
    torch.Tensor
        (batch,).

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    if p.shape != t.shape or p.ndim != 3 or p.shape[1] != len(mesh):
        raise ValueError(
            f"p has shape {tuple(p.shape)} and t {tuple(t.shape)}: must both be (batch, "
            f"{len(mesh)}, channels)"
        )

    def size(f: Tensor) -> Tensor:
        return mesh.integrate(f.square()).sum(-1).sqrt()

    return size(p - t) / size(t) if relative else size(p - t)


def scale_of(n: int, base: int) -> int:
    """Return how many times finer a grid of n points is than one of ``base``.

    Raises
    ------
    ValueError
        If it is coarser, or no whole multiple.
    """
    if n < base:
        raise ValueError(
            f"{n} points: must be at least base_res={base}; resample to it, or use mode='authors'"
        )
    if n % base:
        near = round(n / base) * base
        raise ValueError(
            f"{n} points: must be a multiple of base_res={base}; resample to {near}, or use "
            "in_out_interpolation"
        )
    return n // base
