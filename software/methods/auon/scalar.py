"""AuON's scalar: the root mean square of a hyperbolic cosine, and what it can ever be."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosh_rms(x: Tensor) -> float:
    """Return ``sqrt(mean(cosh(x)²))``, summed in float64.

    As ``sqrt(1 + mean(sinh(x)²))``, which is the same and keeps the digits of r - 1.

    Parameters
    ----------
    x : torch.Tensor
        Any shape with at least one number, real floating point; it is not changed.

    Raises
    ------
    ValueError
        If ``x`` is empty, complex or integer.

    Source
    ------
    Maity 2025, arXiv 2509.24320 (first version): the "emergency brake".
    """
    if not x.is_floating_point() or not x.numel():
        raise ValueError(
            f"x is {tuple(x.shape)} of {x.dtype}: must hold real floating point numbers, at least "
            "one; use x.float()"
        )
    return math.sqrt(1 + float(x.sinh().square().sum(dtype=torch.float64)) / x.numel())


def cosh_rms_bounds(n: int, gamma: float = 1.0) -> tuple[float, float]:
    """Return the least and greatest `cosh_rms` of n numbers whose squares add up to gamma².

    ``sinh²(√s)`` is convex in s and 0 at 0, so its sum over numbers with a fixed sum of squares is
    least where all are alike and greatest where one has everything.

    Parameters
    ----------
    n : int
        At least 1.
    gamma : float
        Positive, at most 40.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n={n!r}: must be an int of at least 1; give the entries of the matrix")
    require_gamma(gamma)
    return (
        math.sqrt(1 + math.sinh(gamma / math.sqrt(n)) ** 2),
        math.sqrt(1 + math.sinh(gamma) ** 2 / n),
    )


def orthogonality(u: Tensor) -> float:
    """Return how far the shorter side's vectors are from orthogonal ones of equal length.

    ``‖U Uᵀ / d - I‖_F / √k``, k the shorter side and d the mean of the diagonal of U Uᵀ: 0 for a
    multiple of a semi-orthogonal matrix, ``√(k - 1)`` for one of rank 1.

    Parameters
    ----------
    u : torch.Tensor
        (rows, cols), not zero.

    Raises
    ------
    ValueError
        If ``u`` is no matrix, or zero.
    """
    if u.ndim != 2:
        raise ValueError(f"u has shape {tuple(u.shape)}: must be (rows, cols); flatten it first")
    x = u if u.shape[0] <= u.shape[1] else u.mT
    gram = x @ x.mT
    scale = gram.diagonal().mean()
    if not scale > 0:
        raise ValueError("u is zero or has a NaN: there are no directions to compare; leave it out")
    k = len(gram)
    off = gram / scale - torch.eye(k, dtype=gram.dtype)
    return float(torch.linalg.matrix_norm(off)) / math.sqrt(k)


def require_gamma(gamma: float) -> None:
    """Raise unless ``gamma`` is positive and float32 holds its cosh squared."""
    if not 0 < gamma <= 40:
        raise ValueError(
            f"gamma={gamma}: must be positive and at most 40 (the square of cosh overflows "
            "float32 beyond); the authors' is 1.5"
        )
