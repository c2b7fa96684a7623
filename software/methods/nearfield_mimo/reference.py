"""What the demo judges by: measurements, a U-Net and images in numpy and scipy alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]

LIGHT = 299_792_458.0


def measure(
    tx: Real, rx: Real, places: Real, freqs: Real, reflectivity: Complex, *, block: int = 1024
) -> Complex:
    """Return what an array measures of scenes, term by term of the Born sum.

    Parameters
    ----------
    tx, rx, places : numpy.ndarray
        (Nt, 3), (Nr, 3) and (Nvox, 3), metres.
    freqs : numpy.ndarray
        (Nf,) Hz.
    reflectivity : numpy.ndarray
        (scenes, Nvox) complex.
    block : int
        Voxels at a time.

    Returns
    -------
    numpy.ndarray
        (scenes, Nf, Nt, Nr) complex128.
    """
    y = np.zeros((len(reflectivity), len(freqs), len(tx), len(rx)), complex)
    for at in range(0, len(places), block):
        here = places[at : at + block]
        out = np.sqrt(((tx[:, None] - here) ** 2).sum(2))[:, None]
        back = np.sqrt(((rx[:, None] - here) ** 2).sum(2))
        for k, f in enumerate(freqs):
            waves = np.exp(-2j * np.pi * f * (out + back) / LIGHT) / (4 * np.pi * out * back)
            y[:, k] += np.tensordot(reflectivity[:, at : at + block], waves, (1, 2))
    return y


def half_adjoint(a: Complex, y: Complex) -> Complex:
    """Return Aᴴ y of operands rounded to float16, their products summed in float64."""
    ar, ai, yr, yi = (
        x.astype(np.float16).astype(np.float64) for x in (a.real, a.imag, y.real, y.imag)
    )
    return np.asarray((yr @ ar + yi @ ai) + 1j * (yi @ ar - yr @ ai))


def ridge(a: Complex, y: Complex, mu: float) -> Complex:
    """Return the least of ‖a s - y‖² + mu ‖s‖² by LAPACK's least squares on stacked rows."""
    stacked = np.concatenate([a, np.sqrt(mu) * np.eye(a.shape[1])])
    right = np.concatenate([y, np.zeros(a.shape[1])])
    return np.asarray(np.linalg.lstsq(stacked, right, rcond=None)[0])


def psnr(image: Real, truth: Real) -> float:
    """Return the mean over volumes of -10 log₁₀ of their mean squared error, in dB: peak 1."""
    error = ((image - truth) ** 2).reshape(len(truth), -1).mean(1)
    return float((-10 * np.log10(error)).mean())


def best_scale(image: Real, truth: Real) -> float:
    """Return the factor, one for all volumes, with which `psnr` is largest: of 200 up to 2."""
    return max(np.arange(1, 201) / 100, key=lambda c: psnr(c * image, truth))


def unet(state: Mapping[str, Real], u: Real, eps: float) -> Real:
    """Return a U-Net's output in evaluation mode, by correlations of scipy.

    Parameters
    ----------
    state : mapping of str to numpy.ndarray
        Parameters and running statistics by name.
    u : numpy.ndarray
        (channels, nx, ny, nz), axes of 8 n or 8 n + 1.
    eps : float
        Of batch normalisation.
    """

    def conv(x: Real, name: str) -> Real:
        w, b = state[f"{name}.weight"], state[f"{name}.bias"]
        sums = [
            sum(correlate(c, k, mode="constant") for c, k in zip(x, row, strict=True)) for row in w
        ]
        return np.asarray(np.stack(sums) + b[:, None, None, None])

    def normed(x: Real, name: str) -> Real:
        mean, var, g, b = (
            state[f"{name}.{part}"][:, None, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return np.asarray(np.maximum((x - mean) / np.sqrt(var + eps) * g + b, 0))

    def double(x: Real, name: str) -> Real:
        x = normed(conv(x, f"{name}.0"), f"{name}.1")
        return normed(conv(x, f"{name}.3"), f"{name}.4")

    crop = [size % 8 for size in u.shape[1:]]
    x, skips = u[:, crop[0] :, crop[1] :, crop[2] :], []
    for level in range(3):
        x = double(x, f"down.{level}")
        skips.append(x)
        c, *sizes = x.shape
        x = x.reshape(c, sizes[0] // 2, 2, sizes[1] // 2, 2, sizes[2] // 2, 2).max((2, 4, 6))
    for level in range(3):
        w = state[f"up.{level}.weight"]
        wide = np.zeros((w.shape[1], *(2 * size for size in x.shape[1:])))
        for i, j, k in np.ndindex(w.shape[2:]):
            wide[:, i::2, j::2, k::2] = np.tensordot(w[:, :, i, j, k], x, (0, 0))
        wide += state[f"up.{level}.bias"][:, None, None, None]
        x = double(np.concatenate([wide, skips.pop()]), f"merge.{level}")
    x = np.pad(x, [(0, 0), *((one, 0) for one in crop)])
    x = conv(normed(conv(x, "head.0"), "head.1"), "out")
    return np.asarray(1 / (1 + np.exp(-x[0])))
