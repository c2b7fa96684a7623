"""Orthonormal fast transforms of 2^m numbers: Fourier's in bit-reversed order, Walsh's."""

from __future__ import annotations

import math
from functools import cache, partial

import torch
from torch import Tensor

from sat.methods.qmcpy.digits import require_power, reverse_bits

TRANSFORMS = ("fft", "products")
SIDE = 6
"""Stages of at most 2^6 numbers, as products."""


def fwht(x: Tensor, transform: str = "fft") -> Tensor:
    """Return the Walsh-Hadamard transform in Sylvester's order, its own inverse.

    Parameters
    ----------
    x : torch.Tensor
        (…, 2^m), floating point or complex.
    transform : {"fft", "products"}
        Butterflies, or products with ±1 matrices of at most 64 x 64.

    Returns
    -------
    torch.Tensor
        (…, 2^m): ``H x / 2^(m/2)``.

    Raises
    ------
    ValueError
        If the length is no power of two, or there is no such transform.
    """
    m = _require(x, transform)
    if transform == "products":
        y = x.reshape(*x.shape[:-1], *_sides(m))
        for _ in _sides(m):
            # The last axis is transformed and becomes the first behind the batch.
            y = (y @ _hadamard(y.shape[-1]).to(x.dtype)).movedim(-1, x.ndim - 1)
        return y.reshape(x.shape) * 2.0 ** (-m / 2)
    y = x
    for k in range(m):
        even, odd = y.unflatten(-1, (-1, 2, 2**k)).unbind(-2)
        y = torch.stack([even + odd, even - odd], -2).flatten(-3)
    return y * 2.0 ** (-m / 2)


def fftbr(x: Tensor, transform: str = "fft") -> Tensor:
    """Return the Fourier transform of numbers in bit-reversed order.

    Parameters
    ----------
    x : torch.Tensor
        (…, 2^m), real or complex.
    transform : {"fft", "products"}
        As for `fwht`; products are with Fourier matrices of at most 64 x 64, factors between
        stages elementwise.

    Returns
    -------
    torch.Tensor
        (…, 2^m) complex: orthonormal transform of x[reverse_bits(0)], x[reverse_bits(1)], ….

    Raises
    ------
    ValueError
        As `fwht`.
    """
    m = _require(x, transform)
    turned = x[..., reverse_bits(torch.arange(2**m), m)]
    if transform == "products":
        return _fourier(_to_complex(turned), -1.0) * 2.0 ** (-m / 2)
    return torch.fft.fft(turned, norm="ortho")


def ifftbr(x: Tensor, transform: str = "fft") -> Tensor:
    """Return the inverse of `fftbr`, in bit-reversed order.

    Parameters
    ----------
    x : torch.Tensor
        (…, 2^m) complex.
    transform : {"fft", "products"}

    Returns
    -------
    torch.Tensor
        (…, 2^m) complex.

    Raises
    ------
    ValueError
        As `fwht`.
    """
    m = _require(x, transform)
    if transform == "products":
        made = _fourier(_to_complex(x), 1.0) * 2.0 ** (-m / 2)
    else:
        made = torch.fft.ifft(x, norm="ortho")
    return made[..., reverse_bits(torch.arange(2**m), m)]


def _require(x: Tensor, transform: str) -> int:
    if transform not in TRANSFORMS:
        raise ValueError(f"transform={transform!r}: must be one of {', '.join(TRANSFORMS)}")
    if x.ndim == 0:
        raise ValueError("x is a scalar: it must have an axis to transform")
    return require_power("length of the last axis", x.shape[-1])


def _sides(m: int) -> list[int]:
    """Return sizes of the stages, near each other, at most 64 each."""
    count = max(-(-m // SIDE), 1)
    return [2 ** (m // count + (k < m % count)) for k in range(count)]


@cache
def _hadamard(n: int) -> Tensor:
    rows = torch.arange(n)
    signs = torch.ones(n, n, dtype=torch.float64)
    for k in range(n.bit_length() - 1):
        signs *= 1 - 2 * ((rows[:, None] & rows) >> k & 1).double()
    return signs


def _to_complex(x: Tensor) -> Tensor:
    return x if x.is_complex() else torch.complex(x, torch.zeros_like(x))


def _roots(numerators: Tensor, n: int, sign: float, dtype: torch.dtype) -> Tensor:
    """Return exp(± 2 pi i k / n) of integers k, from reduced angles in float64."""
    angles = sign * 2 * math.pi / n * (numerators % n).double()
    return torch.polar(torch.ones_like(angles), angles).to(dtype)


def _fourier(x: Tensor, sign: float) -> Tensor:
    """Return the unnormalised transform of the last axis, (…, n), stage by stage."""
    n = x.shape[-1]
    m = n.bit_length() - 1
    first = _sides(m)[0]
    table = partial(_roots, sign=sign, dtype=x.dtype)
    if first == n:
        k = torch.arange(n)
        return x @ table(torch.outer(k, k), n)
    # Cooley and Tukey: j = j1 (n / first) + j2, k = k1 + first k2.
    rest = n // first
    k1, j2 = torch.arange(first), torch.arange(rest)
    y = x.unflatten(-1, (first, rest)).mT @ table(torch.outer(k1, k1), first)
    y = y * table(torch.outer(j2, k1), n)
    return _fourier(y.mT, sign).mT.flatten(-2)
