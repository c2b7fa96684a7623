"""Incompressible flow on the periodic square [0, 2π)², as vorticity, by Fourier series."""

from __future__ import annotations

import numpy as np

from sat.methods.problems.fields import Array
from sat.methods.problems.integrating import integrate, require_flow


def random_vorticity(
    n: int, size: int, rng: np.random.Generator, *, deviation: float = 0.7, shift: float = 9.0
) -> Array:
    """Return Gaussian fields with covariance (-Δ + shift)⁻² and mean 0.

    Parameters
    ----------
    n, size : int
        Fields, and points of an axis.
    rng : numpy.random.Generator
    deviation : float
        Standard deviation, the same everywhere.
    shift : float
        Added to the eigenvalues of -Δ; the larger, the rougher.

    Returns
    -------
    numpy.ndarray
        (n, size, size) float64.
    """
    squares = _squares(size)
    share = 1 / (squares + shift)
    share[0, 0] = 0
    spectrum = np.fft.rfft2(rng.standard_normal((n, size, size))) * share
    fields = np.fft.irfft2(spectrum, (size, size))
    # White noise has one variance in all modes: the field's is their mean square share.
    whole = np.fft.fftfreq(size, 1 / size)
    every = 1 / (whole[:, None] ** 2 + whole**2 + shift)
    every[0, 0] = 0
    return np.asarray(fields * deviation / np.sqrt((every**2).mean()))


def evolve(
    vorticity: Array, time: float, *, viscosity: float, forcing: Array | float = 0.0, step: float
) -> Array:
    """Return vorticity after some time: ω_t + u·∇ω = ν Δω + forcing, u = curl⁻¹ ω.

    Products are dealiased by the 2/3 rule; viscosity is integrated exactly, the rest by
    Runge-Kutta's method of order 4.

    Parameters
    ----------
    vorticity : numpy.ndarray
        (…, size, size) float64 of mean 0, its axes x and y.
    time : float
        A whole number of steps is taken, none longer than ``step``.
    viscosity : float
        ν, not negative.
    forcing : numpy.ndarray or float
        Of the vorticity's shape, or broadcast to it.
    step : float
        Longest time step.

    Returns
    -------
    numpy.ndarray
        As ``vorticity``.

    Raises
    ------
    ValueError
        If a number breaks its rule.
    RuntimeError
        If values are no longer finite: the step is too long for this flow.
    """
    require_flow("vorticity", vorticity, time, step, viscosity)
    size = vorticity.shape[-1]
    kx, ky = _waves(size)
    squares = _squares(size)
    inverse = np.divide(1.0, squares, out=np.zeros_like(squares), where=squares > 0)
    kept = (np.abs(kx) < size / 3) & (np.abs(ky) < size / 3)
    force = np.fft.rfft2(np.broadcast_to(forcing, vorticity.shape))

    def slope(w: np.ndarray) -> np.ndarray:
        stream = w * inverse  # u = ∂ψ/∂y, v = -∂ψ/∂x, -Δψ = ω
        shape = (size, size)
        u, v = np.fft.irfft2(1j * ky * stream, shape), np.fft.irfft2(-1j * kx * stream, shape)
        along = u * np.fft.irfft2(1j * kx * w, shape) + v * np.fft.irfft2(1j * ky * w, shape)
        return np.asarray((force - np.fft.rfft2(along)) * kept)

    w = integrate(np.fft.rfft2(vorticity) * kept, slope, viscosity * squares, time, step)
    out = np.fft.irfft2(w, (size, size))
    if not np.isfinite(out).all():
        raise RuntimeError(f"step={step}: too long, the flow is no longer finite; shorten it")
    return np.asarray(out)


def navier_stokes_2d(
    n: int,
    size: int,
    steps: int,
    dt: float,
    nu: float,
    forcing: float,
    seed: int,
    *,
    solver_size: int | None = None,
    step: float = 0.02,
) -> Array:
    """Return random flows driven by forcing · cos 4y.

    Parameters
    ----------
    n : int
        Flows.
    size : int
        Points of an axis of what is returned: every second, fourth … of the solver's.
    steps : int
        Times after the first, ``dt`` apart.
    dt : float
    nu : float
        Viscosity.
    forcing : float
        Amplitude.
    seed : int
    solver_size : int, optional
        Points of an axis of the solver, a multiple of ``size``; twice ``size`` if not given.
    step : float
        Longest time step.

    Returns
    -------
    numpy.ndarray
        (n, steps + 1, size, size) float64: vorticity.

    Raises
    ------
    ValueError
        If a number breaks its rule.
    """
    fine = 2 * size if solver_size is None else solver_size
    for name, value in (("n", n), ("size", size), ("steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be an int of at least 1; raise it")
    if fine % size:
        raise ValueError(f"solver_size={fine}: must be a multiple of size={size}")
    w = random_vorticity(n, fine, np.random.default_rng(seed))
    drive = forcing * np.cos(4 * 2 * np.pi * np.arange(fine) / fine)
    skip = fine // size
    flows = [w[:, ::skip, ::skip]]
    for _ in range(steps):
        w = evolve(w, dt, viscosity=nu, forcing=drive, step=step)
        flows.append(w[:, ::skip, ::skip])
    return np.stack(flows, 1)


def _waves(size: int) -> tuple[Array, Array]:
    """Return wave numbers of rfft2: kx (size, 1) and ky (1, size // 2 + 1)."""
    rows, cols = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    return np.asarray(rows[:, None], np.float64), np.asarray(cols[None], np.float64)


def _squares(size: int) -> Array:
    kx, ky = _waves(size)
    return np.asarray(kx**2 + ky**2)
