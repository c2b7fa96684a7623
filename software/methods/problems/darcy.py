"""Darcy flow: -∇·(a ∇u) = f on the unit interval and square, u = 0 on the edge.

In one dimension exact, in two by finite volumes and a sparse factorisation. Source of the method:
Patankar, "Numerical heat transfer and fluid flow", 1980, section 4.2 (harmonic means on faces).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from sat.methods.problems.fields import Array, neumann_field


def darcy_1d(a: ArrayLike, f: ArrayLike = 1.0) -> tuple[Array, Array]:
    """Return the exact solution where a and f are constant in each cell.

    a u' = C - F with F = ∫ f, linear in a cell, so a cell's integral of (C - F) / a is exact by
    its midpoint; C makes u(1) = 0.

    Parameters
    ----------
    a : array-like
        (samples, cells), positive; cells of equal size.
    f : array-like
        A number, (cells,) or (samples, cells).

    Returns
    -------
    u : numpy.ndarray
        (samples, cells + 1) float64, at the cells' ends.
    flux : numpy.ndarray
        (samples, cells + 1) float64: s = a u' there.

    Raises
    ------
    ValueError
        If a is not positive and finite, or shapes do not fit.
    """
    a = _positive(a, 2, "(samples, cells)")
    h = 1 / a.shape[1]
    cells = np.broadcast_to(np.asarray(f, dtype=np.float64), a.shape)
    zero = np.zeros((len(a), 1))
    ends = np.concatenate([zero, np.cumsum(h * cells, 1)], 1)
    middle = (ends[:, 1:] + ends[:, :-1]) / 2
    constant = (middle / a).sum(1, keepdims=True) / (1 / a).sum(1, keepdims=True)
    u = np.concatenate([zero, np.cumsum(h * (constant - middle) / a, 1)], 1)
    return u, constant - ends


def darcy_2d(a: ArrayLike, f: ArrayLike = 1.0) -> Array:
    """Return solutions on nodes of the square by finite volumes.

    Fluxes between neighbours by the harmonic mean of their a; second order where a is smooth.

    Parameters
    ----------
    a : array-like
        (samples, nodes, nodes), positive; nodes of the edge included.
    f : array-like
        A number, (nodes, nodes) or (samples, nodes, nodes).

    Returns
    -------
    numpy.ndarray
        (samples, nodes, nodes) float64, 0 on the edge.

    Raises
    ------
    ValueError
        If a is not positive and finite, not square, or has no inner node.
    """
    a = _positive(a, 3, "(samples, nodes, nodes)")
    nodes = a.shape[1]
    if nodes != a.shape[2] or nodes < 3:
        raise ValueError(
            f"a has shape {a.shape}: must be (samples, nodes, nodes) of at least 3 nodes an axis; "
            "the nodes of the edge count"
        )
    right = np.broadcast_to(np.asarray(f, dtype=np.float64), a.shape)[:, 1:-1, 1:-1]
    inner = nodes - 2
    number = np.arange(inner**2).reshape(inner, inner)
    u = np.zeros(a.shape)
    for sample, (field, load) in enumerate(zip(a, right, strict=True)):
        down = 2 / (1 / field[1:] + 1 / field[:-1])
        along = 2 / (1 / field[:, 1:] + 1 / field[:, :-1])
        up, low = down[:-1, 1:-1], down[1:, 1:-1]
        left, far = along[1:-1, :-1], along[1:-1, 1:]
        rows = [number, number[1:], number[:-1], number[:, 1:], number[:, :-1]]
        cols = [number, number[:-1], number[1:], number[:, :-1], number[:, 1:]]
        values = [up + low + left + far, -up[1:], -low[:-1], -left[:, 1:], -far[:, :-1]]
        flat = [np.concatenate([part.ravel() for part in parts]) for parts in (values, rows, cols)]
        matrix = coo_matrix((flat[0], (flat[1], flat[2])), shape=(inner**2, inner**2)).tocsc()
        u[sample, 1:-1, 1:-1] = spsolve(matrix, load.ravel() / (nodes - 1) ** 2).reshape(inner, -1)
    return u


def two_phases(field: Array, phases: tuple[float, float]) -> Array:
    """Return the upper phase where a field is not negative, the lower elsewhere."""
    return np.where(field >= 0, max(phases), min(phases))


def darcy_samples(
    n: int, size: int, seed: int, *, a: tuple[float, float] = (3.0, 12.0), f: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return two-phase media and their solutions.

    Parameters
    ----------
    n : int
        Samples, at least 1.
    size : int
        Nodes of an axis, the edge's included; at least 3.
    seed : int
    a : tuple of float
        Values of the phases, positive.
    f : float
        Source, the same everywhere.

    Returns
    -------
    a, u : torch.Tensor
        (n, size, size) float32 each.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    for name, value, least in (("n", n, 1), ("size", size, 3)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: must be an int of at least {least}; raise it")
    if min(a) <= 0:
        raise ValueError(f"a={a}: both phases must be positive; raise the lower one")
    field = neumann_field(n, np.linspace(0, 1, size), 2, np.random.default_rng(seed))
    media = two_phases(field, a)
    return torch.from_numpy(media).float(), torch.from_numpy(darcy_2d(media, f)).float()


def _positive(a: ArrayLike, ndim: int, shape: str) -> Array:
    a = np.asarray(a, dtype=np.float64)
    if a.ndim != ndim:
        raise ValueError(f"a has shape {a.shape}: must be {shape}; reshape it")
    wrong = ~((a > 0) & (a < np.inf))
    if wrong.any():
        raise ValueError(
            f"a={a[wrong][0]}: must be positive and finite everywhere, or there is no flow to "
            "solve for; check the phases"
        )
    return a
