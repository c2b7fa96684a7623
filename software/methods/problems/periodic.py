"""Boundary value problems on the periodic unit square, solved exactly by Fourier series."""

from __future__ import annotations

import numpy as np

from sat.methods.problems.fields import Array


def waves(count: int, highest: int, rng: np.random.Generator) -> Array:
    """Return random real trigonometric polynomials, as values on their own smallest grid.

    Gaussian, of mean 0 and variance 1 everywhere: all waves with |k| ≤ ``highest`` but the
    constant, of one variance.

    Parameters
    ----------
    count : int
    highest : int
        Largest length of a wave vector, at least 1.
    rng : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        (count, size, size) float64 with size = 2 · highest + 1.
    """
    size = 2 * highest + 1
    number = np.fft.fftfreq(size, 1 / size)
    length = np.hypot(number[:, None], number)
    kept = (length <= highest) & (length > 0)
    # White noise has all waves alike; the mean square of what is kept is its share of them.
    spectrum = np.fft.fft2(rng.standard_normal((count, size, size))) * kept
    return np.asarray(np.fft.ifft2(spectrum).real * np.sqrt(size**2 / kept.sum()))


def on_grid(values: Array, n: int) -> Array:
    """Return trigonometric polynomials (…, size, size), size odd, on n x n points; n ≥ size."""
    size = values.shape[-1]
    if size % 2 == 0 or n < size:
        raise ValueError(f"n={n}: must be at least the polynomial's own {size}, which must be odd")
    half = size // 2
    spectrum = np.fft.fftshift(np.fft.fft2(values), axes=(-2, -1))
    wide = np.zeros((*values.shape[:-2], n, n), complex)
    low = n // 2 - half
    wide[..., low : low + size, low : low + size] = spectrum
    back = np.fft.ifft2(np.fft.ifftshift(wide, axes=(-2, -1))).real
    return np.asarray(back * (n / size) ** 2)


def reaction(f: Array, diffusion: float = 0.01) -> Array:
    """Return u with (1 - diffusion · Δ) u = f + f² / 2, exact for what the grid can hold.

    Parameters
    ----------
    f : numpy.ndarray
        (…, n, n) on points i / n; of waves shorter than a quarter of n, so that f² fits, too.
    diffusion : float

    Returns
    -------
    numpy.ndarray
        (…, n, n) float64.
    """
    n = f.shape[-1]
    number = 2 * np.pi * np.fft.fftfreq(n, 1 / n)
    symbol = 1 + diffusion * (number[:, None] ** 2 + number**2)
    return np.asarray(np.fft.ifft2(np.fft.fft2(f + f**2 / 2) / symbol).real)
