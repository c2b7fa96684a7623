"""Evolution with a stiff linear and a mild nonlinear part, for the spectral solvers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def require_flow(name: str, fields: np.ndarray, time: float, step: float, viscosity: float) -> None:
    """Raise ValueError unless these are periodic fields on an even square grid, and times."""
    size = fields.shape[-1]
    if fields.ndim < 2 or fields.shape[-2] != size or size % 2:
        raise ValueError(f"{name} has shape {fields.shape}: must be (…, size, size), even")
    for what, value in (("time", time), ("step", step)):
        if not 0 < value < math.inf:
            raise ValueError(f"{what}={value}: must be positive and finite")
    if not viscosity >= 0:
        raise ValueError(f"viscosity={viscosity}: must not be negative")


def integrate(
    w: np.ndarray,
    slope: Callable[[np.ndarray], np.ndarray],
    decay: np.ndarray,
    time: float,
    step: float,
) -> np.ndarray:
    """Return w after some time of w' = slope(w) - decay w, as `integrating_factor_step` does.

    Parameters
    ----------
    w, decay : numpy.ndarray
        Coefficients, and the rate of each.
    slope : callable
    time, step : float
        A whole number of steps is taken, none longer than ``step``.
    """
    steps = max(1, math.ceil(time / step - 1e-9))
    h = time / steps
    half = np.exp(-decay * h / 2)
    for _ in range(steps):
        w = integrating_factor_step(w, slope, half, h)
    return w


def integrating_factor_step(
    w: np.ndarray, slope: Callable[[np.ndarray], np.ndarray], half: np.ndarray, h: float
) -> np.ndarray:
    """Return w after a step of w' = L w + slope(w): L exactly, the rest by Runge-Kutta, order 4.

    Parameters
    ----------
    w : numpy.ndarray
        Coefficients for which L is diagonal.
    slope : callable
    half : numpy.ndarray
        e^(L h / 2).
    h : float

    Source
    ------
    Cox and Matthews 2002, Journal of Computational Physics 176, section 2.
    """
    a = slope(w)
    b = slope(half * (w + h / 2 * a))
    c = slope(half * w + h / 2 * b)
    d = slope(half**2 * w + h * half * c)
    return np.asarray(half**2 * (w + h / 6 * a) + h / 3 * half * (b + c) + h / 6 * d)
