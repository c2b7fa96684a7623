"""Random fields that boundary value problems take as their data, and what errors are measured in.

Numpy alone: no method's code is in what a method is judged by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def neumann_field(
    count: int,
    points: Array,
    dim: int,
    rng: np.random.Generator,
    *,
    shift: float = 9.0,
    mean: bool = False,
) -> Array:
    """Return samples of a Gaussian field on the unit cube with covariance (-Δ + shift)⁻².

    Δ has no flux through the edges: its eigenfunctions are products of cosines, of which those
    that the points tell apart are summed.

    Parameters
    ----------
    count : int
        Samples.
    points : numpy.ndarray
        (size,) float64 within [0, 1], of every axis.
    dim : int
        Axes, 1 or 2.
    rng : numpy.random.Generator
    shift : float
        Added to the eigenvalues; the larger, the rougher.
    mean : bool
        Whether the constant is among the modes.

    Returns
    -------
    numpy.ndarray
        (count, size) or (count, size, size) float64.
    """
    number = np.arange(len(points))
    modes = np.cos(np.pi * np.outer(points, number)) * np.where(number, np.sqrt(2), 1)
    squares = np.pi**2 * number**2
    if dim == 1:
        deviation = 1 / (squares + shift)
        deviation[0] *= mean
        return np.asarray((rng.standard_normal((count, len(points))) * deviation) @ modes.T)
    deviation = 1 / (squares[:, None] + squares + shift)
    deviation[0, 0] *= mean
    weights = rng.standard_normal((count, *deviation.shape)) * deviation
    return np.asarray(modes @ weights @ modes.T)


def relative_l2(pred: Tensor, true: Tensor) -> Tensor:
    """Return ‖pred - true‖₂ / ‖true‖₂ of each sample.

    Parameters
    ----------
    pred, true : torch.Tensor
        (batch, …), of one shape.

    Returns
    -------
    torch.Tensor
        (batch,).

    Raises
    ------
    ValueError
        If shapes differ, which broadcasting would hide.
    """
    if pred.shape != true.shape or pred.ndim < 2:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)} and true {tuple(true.shape)}: must be one shape "
            "(batch, ...); reshape one of them"
        )
    return (pred - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
