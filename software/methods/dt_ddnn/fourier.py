"""Fourier transforms of one symbol, on the host or as products."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

POINTS = 256
"""Of a symbol's transform, at 7.68 MHz."""
TRANSFORMS = ("fft", "products")


def require_transform(transform: str) -> None:
    """Raise ValueError for a way of computing transforms that there is not."""
    if transform not in TRANSFORMS:
        raise ValueError(f"transform={transform!r}: must be one of {', '.join(TRANSFORMS)}")


def dft(x: Tensor, transform: str, *, inverse: bool = False) -> Tensor:
    """Return the unitary transform of the last axis.

    Parameters
    ----------
    x : torch.Tensor
        (…, 256) complex64.
    transform : {"fft", "products"}
        By FFT, or by one real product of (…, 512) by (512, 512): four of 256 for a complex one.
    inverse : bool

    Returns
    -------
    torch.Tensor
        (…, 256) complex64.

    Raises
    ------
    ValueError
        If there is no such transform.
    """
    require_transform(transform)
    if transform == "fft":
        return torch.fft.ifft(x, norm="ortho") if inverse else torch.fft.fft(x, norm="ortho")
    real, imaginary = (torch.cat((x.real, x.imag), -1) @ _matrix(inverse)).split(POINTS, -1)
    return torch.complex(real, imaginary)


@cache
def _matrix(inverse: bool) -> Tensor:
    """Return the transform of real parts beside imaginary ones, (512, 512) float32."""
    line = torch.eye(POINTS, dtype=torch.complex128)
    waves = torch.fft.ifft(line, norm="ortho") if inverse else torch.fft.fft(line, norm="ortho")
    above, below = (
        torch.cat(parts, 1) for parts in ((waves.real, waves.imag), (-waves.imag, waves.real))
    )
    return torch.cat((above, below)).float()
