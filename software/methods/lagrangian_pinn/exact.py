"""Exact solutions of convection and diffusion on the periodic line of 2π, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES = 200


def convection_diffusion(x: Array, t: Array | float, c: float, nu: float) -> Array:
    """Return exp(-ν t) sin(x - c t), which starts from sin x.

    Parameters
    ----------
    x : numpy.ndarray
        Radians.
    t : numpy.ndarray or float
        Seconds.
    c : float
        Speed, rad/s.
    nu : float
        Diffusion, rad²/s.
    """
    return np.asarray(np.exp(-nu * t) * np.sin(x - c * t))


def burgers_cole_hopf(x: Array, t: Array | float, nu: float, c: float = 0.0) -> Array:
    """Return the solution of u_t + u u_x = ν u_xx that starts from c + sin x.

    Cole and Hopf's: with c out of the way (x - c t for x), u - c is the mean of sin η, weighted by
    exp(-(1 - cos η) / 2ν) and a normal law about x of variance 2ν t, by 200 nodes of Gauss and
    Hermite.

    Parameters
    ----------
    x, t
        As `convection_diffusion`; of one shape, or broadcast.
    nu : float
        Positive, at least 0.02 for t ≤ 1: the integrand is resolved there.
    c : float
        Mean of the initial values, rad/s.

    Raises
    ------
    ValueError
        If ``nu`` is not positive, or a time negative.
    """
    if not nu > 0:
        raise ValueError(f"nu={nu}: must be positive for Cole and Hopf's solution")
    if not np.all(np.asarray(t) >= 0):
        raise ValueError(f"t has {np.min(t)}: must not be negative; time starts at 0")
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    x, t = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(t, np.float64))
    eta = (x - c * t)[..., None] - 2 * np.sqrt(nu * t)[..., None] * nodes
    mass = weights * np.exp((np.cos(eta) - 1) / (2 * nu))
    return np.asarray(c + (mass * np.sin(eta)).sum(-1) / mass.sum(-1))


def kolmogorov_n_width(snapshots: Array, n: int) -> float:
    """Return how far snapshots are from the best space of n dimensions, relative to their size.

    Parameters
    ----------
    snapshots : numpy.ndarray
        (points, times).
    n : int
        0 to the number of snapshots.

    Returns
    -------
    float
        √(Σ_{i>n} σ_i² / Σ σ_i²), of the singular values: 1 for n = 0.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    snapshots = np.asarray(snapshots, np.float64)
    if snapshots.ndim != 2:
        raise ValueError(f"snapshots has shape {snapshots.shape}: must be (points, times)")
    if not 0 <= n <= min(snapshots.shape):
        raise ValueError(
            f"n={n}: must be within 0 to {min(snapshots.shape)}, the rank there can be"
        )
    if not np.isfinite(snapshots).all() or not snapshots.any():
        raise ValueError("snapshots: must be finite, and not all 0, or they have no size")
    energies = np.linalg.svd(snapshots, compute_uv=False) ** 2
    return float(np.sqrt(energies[n:].sum() / energies.sum()))
