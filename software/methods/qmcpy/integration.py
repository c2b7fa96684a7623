"""Integrals with errors: replications, adaptive doubling, Bayesian cubature; other measures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

from sat.methods.qmcpy.digits import require_power
from sat.methods.qmcpy.gram import FastGram
from sat.methods.qmcpy.sequences import PointSequence


@dataclass(frozen=True)
class Estimate:
    """An integral.

    Parameters
    ----------
    mean : float
    half_width : float
        Of its interval.
    n : int
        Points of each replication.
    converged : bool
        Whether the half-width is within the tolerance; true where none was asked for.
    """

    mean: float
    half_width: float
    n: int
    converged: bool = True


def replicated_mean(values: Tensor, level: float = 0.99) -> Estimate:
    """Return the mean over replications, with Student's t interval.

    Parameters
    ----------
    values : torch.Tensor
        (R, n), a function at n points of R independent randomizations; R at least 2.
    level : float
        Of the interval, from 0 to 1, both excluded.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    _require_level(level)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise ValueError(
            f"values has shape {tuple(values.shape)}: must be (R, n) with at least 2 replications, "
            "or there is no interval"
        )
    means = values.double().mean(1)
    count = len(means)
    half = student.ppf((1 + level) / 2, count - 1) * float(means.std()) / math.sqrt(count)
    return Estimate(float(means.mean()), float(half), values.shape[1])


def cubature(
    f: Callable[[Tensor], Tensor],
    sequence: PointSequence,
    abs_tol: float = 0.0,
    rel_tol: float = 0.0,
    *,
    replications: int = 16,
    level: float = 0.99,
    n_start: int = 64,
    n_max: int = 2**16,
    seed: int = 0,
) -> Estimate:
    """Return an integral over [0, 1)^d, points doubled until the interval is narrow enough.

    Parameters
    ----------
    f : callable
        Takes points (R, n, d) float64 to values (R, n).
    sequence : PointSequence
        Randomized; in an order whose points go on.
    abs_tol, rel_tol : float
        The half-width shall be at most the larger of ``abs_tol`` and ``rel_tol |mean|``.
    replications : int
        R, at least 2; 8 or more for an interval to trust.
    level : float
    n_start, n_max : int
        First and largest number of points of a replication, powers of two.
    seed : int

    Returns
    -------
    Estimate
        ``converged`` is False if ``n_max`` points were not enough.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    for name, value in (("abs_tol", abs_tol), ("rel_tol", rel_tol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be finite and not negative")
    if not abs_tol + rel_tol > 0:
        raise ValueError("abs_tol and rel_tol are 0: give one, or no number of points suffices")
    require_power("n_start", n_start)
    require_power("n_max", n_max)
    if replications < 2:
        raise ValueError(f"replications={replications}: must be at least 2 for an interval")
    n = n_start
    values = _values(f, sequence.sample(n, replications, 0, seed))
    while True:
        found = replicated_mean(values, level)
        wanted = max(abs_tol, rel_tol * abs(found.mean))
        if found.half_width <= wanted or 2 * n > n_max:
            return Estimate(found.mean, found.half_width, n, found.half_width <= wanted)
        new = _values(f, sequence.sample(n, replications, n, seed))
        values = torch.cat([values, new], 1)
        n *= 2


def bayesian_mean(gram: FastGram, values: Tensor, level: float = 0.99) -> Estimate:
    """Return an integral as a Gaussian process sees it, from one randomization.

    Parameters
    ----------
    gram : FastGram
        Kernel and points.
    values : torch.Tensor
        (n,) float64, the function there.
    level : float

    Returns
    -------
    Estimate
        The posterior mean is the plain mean, for ones are an eigenvector of these Gram matrices.
        The half-width is the process's own, its scale by maximum likelihood: scale² (1 - n / λ)
        with λ the eigenvalue of the ones.

    Raises
    ------
    ValueError, ArithmeticError
        If an argument breaks its rule, or the Gram matrix is singular.

    Source
    ------
    Jagadeeswaran, Hickernell 2019, Statistics and Computing 29.
    """
    _require_level(level)
    n = len(gram)
    if values.shape != (n,):
        raise ValueError(f"values has shape {tuple(values.shape)}: must be ({n},)")
    y = values.double()
    centred = y - y.mean()
    scale = float((centred * gram.solve(centred)).sum()) / n
    # The kernel's integral over one argument is its scale, whatever the point.
    share = 1 - n * gram.kernel.scale / float(gram.eigenvalues[0])
    half = norm.ppf((1 + level) / 2) * math.sqrt(max(scale * gram.kernel.scale * share, 0.0))
    return Estimate(float(y.mean()), float(half), n)


def uniform(points: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return points (…, d) of the unit cube in a box, lower and upper (d,).

    Raises
    ------
    ValueError
        If a lower bound is not below its upper one.
    """
    if not bool((lower < upper).all()):
        raise ValueError(f"lower={lower.tolist()}, upper={upper.tolist()}: must be below, each")
    return lower + (upper - lower) * points


def gaussian(points: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """Return points (…, d) of the unit cube as normal ones.

    Parameters
    ----------
    points : torch.Tensor
        (…, d) float64, above 0 and below 1.
    mean, cov : torch.Tensor
        (d,), and (d, d) symmetric, not negative.

    Returns
    -------
    torch.Tensor
        (…, d): mean + A Φ⁻¹(points), A Aᵀ = cov by its eigenvectors, largest first, so that the
        first dimensions carry most.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    d = points.shape[-1]
    if mean.shape != (d,) or cov.shape != (d, d):
        raise ValueError(
            f"mean {tuple(mean.shape)}, cov {tuple(cov.shape)}: must be ({d},) and ({d}, {d})"
        )
    if not bool(((points > 0) & (points < 1)).all()):
        raise ValueError(
            "points reach 0 or 1, which are infinitely far out; randomize the sequence, whose "
            "first point is the origin"
        )
    values, vectors = torch.linalg.eigh(cov.double())
    if not bool(torch.allclose(cov, cov.mT)) or float(values[0]) < -1e-12 * float(values[-1]):
        raise ValueError("cov: must be symmetric with no negative eigenvalue")
    factor = (vectors * values.clamp(min=0).sqrt()).flip(-1)
    return mean + torch.special.ndtri(points.double()) @ factor.mT


def truncated_exponential(points: Tensor, rate: float, upper: float) -> Tensor:
    """Return points of the unit cube with density rate e^(-rate x), cut off above ``upper``.

    Raises
    ------
    ValueError
        If a number is not positive.
    """
    for name, value in (("rate", rate), ("upper", upper)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: must be positive and finite")
    return -torch.log1p(points * math.expm1(-rate * upper)) / rate


def _values(f: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    values = f(points)
    if values.shape != points.shape[:2]:
        raise ValueError(
            f"f returned shape {tuple(values.shape)} for points {tuple(points.shape)}: must be "
            f"{tuple(points.shape[:2])}"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError("f returned values that are not finite")
    return values


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be above 0 and below 1")
