"""A time step of a stiff linear and a mild nonlinear part, for the spectral solvers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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
