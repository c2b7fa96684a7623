"""How far an image is from the true one; numpy and scipy alone, so that they may judge the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]

RADIUS, SIGMA = 5, 1.5
"""Of SSIM's window, 11 x 11."""


def psnr(image: Array, truth: Array) -> float:
    """Return -10 log₁₀ of the mean squared error, in dB; infinite for equal images.

    Parameters
    ----------
    image, truth : numpy.ndarray
        Of one shape, values in [0, 1].

    Raises
    ------
    ValueError
        If shapes differ.
    """
    _require_same(image, truth)
    error = float(np.mean((image - truth) ** 2))
    return -10 * float(np.log10(error)) if error else float("inf")


def ssim(image: Array, truth: Array) -> float:
    """Return the structural similarity, 1 for equal images; mean over windows and channels.

    Windows of 11 x 11, Gaussian of deviation 1.5, that lie within the image; C₁ = 0.01²,
    C₂ = 0.03².

    Parameters
    ----------
    image, truth : numpy.ndarray
        (height, width, channels), values in [0, 1], at least 11 x 11.

    Raises
    ------
    ValueError
        If shapes differ or are none of an image.

    Source
    ------
    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13.
    """
    _require_same(image, truth)
    least = 2 * RADIUS + 1
    if image.ndim != 3 or min(image.shape[:2]) < least:
        raise ValueError(
            f"image has shape {image.shape}: must be (height, width, channels) of at least "
            f"{least} x {least}"
        )

    def smooth(x: Array) -> Array:
        whole = gaussian_filter(x, SIGMA, radius=RADIUS, axes=(0, 1))
        return np.asarray(whole[RADIUS:-RADIUS, RADIUS:-RADIUS])

    x, y = np.asarray(image, np.float64), np.asarray(truth, np.float64)
    a, b = smooth(x), smooth(y)
    aa, bb, ab = smooth(x * x) - a * a, smooth(y * y) - b * b, smooth(x * y) - a * b
    light = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    return float((light * (2 * ab + 0.03**2) / (aa + bb + 0.03**2)).mean())


def _require_same(image: Array, truth: Array) -> None:
    if image.shape != truth.shape:
        raise ValueError(f"image has shape {image.shape} and truth {truth.shape}: must be one")
