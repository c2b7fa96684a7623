"""Burgers' equation u_t + u u_x + u u_y = ν Δu on the periodic unit square, by Fourier series."""

from __future__ import annotations

import numpy as np
from scipy import fft

from sat.methods.problems.fields import Array
from sat.methods.problems.integrating import integrate, require_flow


def bumps(points: Array, n: int, rng: np.random.Generator, *, count: int = 3) -> Array:
    """Return sums of Gaussian bumps in the middle of the unit square, small at its edges.

    Parameters
    ----------
    points : numpy.ndarray
        (size,) of each axis.
    n : int
        Fields.
    rng : numpy.random.Generator
    count : int
        Bumps of each: of height 0.3 to 1 and either sign, their centres within [0.35, 0.65]²,
        their deviations 0.06 to 0.1.

    Returns
    -------
    numpy.ndarray
        (n, size, size) float64, x first.
    """
    heights = rng.uniform(0.3, 1.0, (n, count)) * rng.choice((-1, 1), (n, count))
    centres = rng.uniform(0.35, 0.65, (n, count, 2))
    widths = rng.uniform(0.06, 0.1, (n, count, 1))
    alone = [np.exp(-(((points - centres[..., axis, None]) / widths) ** 2) / 2) for axis in (0, 1)]
    return np.asarray(np.einsum("nc,ncx,ncy->nxy", heights, *alone))


def evolve(u: Array, time: float, *, viscosity: float, step: float) -> Array:
    """Return fields after some time.

    Products are dealiased by the 2/3 rule; viscosity is integrated exactly, the rest by
    Runge-Kutta's method of order 4.

    Parameters
    ----------
    u : numpy.ndarray
        (…, size, size) float64 at i / size, x first; size even.
    time : float
        A whole number of steps is taken, none longer than ``step``.
    viscosity : float
    step : float

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    RuntimeError
        If values are no longer finite: the step is too long.
    """
    require_flow("u", u, time, step, viscosity)
    size = u.shape[-1]
    kx, ky = fft.fftfreq(size, 1 / size)[:, None], fft.rfftfreq(size, 1 / size)[None]
    kept = (np.abs(kx) < size / 3) & (ky < size / 3)
    # u u_x + u u_y is the divergence of (u², u²) / 2.
    symbol = -1j * np.pi * (kx + ky) * kept

    def slope(w: np.ndarray) -> np.ndarray:
        return np.asarray(symbol * fft.rfft2(fft.irfft2(w, (size, size)) ** 2))

    w = integrate(
        fft.rfft2(u) * kept, slope, viscosity * 4 * np.pi**2 * (kx**2 + ky**2), time, step
    )
    out = fft.irfft2(w, (size, size))
    if not np.isfinite(out).all():
        raise RuntimeError(f"step={step}: too long, the fields are no longer finite; shorten it")
    return np.asarray(out)


def on_nodes(u: Array, size: int) -> Array:
    """Return periodic fields (…, fine, fine) at the nodes i / (size - 1), by their series."""
    fine = u.shape[-1]
    waves = fft.fftfreq(fine, 1 / fine)
    phases = np.exp(2j * np.pi * np.outer(np.linspace(0, 1, size), waves)) / fine
    return np.asarray((phases @ fft.fft2(u) @ phases.T).real)


def burgers_2d(
    n: int,
    size: int,
    steps: int,
    dt: float,
    nu: float = 0.01,
    seed: int = 0,
    *,
    solver_size: int = 128,
    step: float = 2e-3,
) -> Array:
    """Return trajectories that start from `bumps`.

    Parameters
    ----------
    n : int
        Trajectories.
    size : int
        Nodes of an axis of what is returned, edges included; at least 2.
    steps : int
        Times after the first, ``dt`` apart.
    dt, nu : float
    seed : int
    solver_size : int
        Points of an axis of the solver, even.
    step : float
        Longest time step.

    Returns
    -------
    numpy.ndarray
        (n, steps + 1, size, size) float64: node [i, j] at (i, j) / (size - 1).

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    for name, value, least in (("n", n, 1), ("size", size, 2), ("steps", steps, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: must be an int of at least {least}; raise it")
    u = bumps(np.arange(solver_size) / solver_size, n, np.random.default_rng(seed))
    times = [on_nodes(u, size)]
    for _ in range(steps):
        u = evolve(u, dt, viscosity=nu, step=step)
        times.append(on_nodes(u, size))
    return np.stack(times, 1)
