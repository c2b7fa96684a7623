"""Products of float32 and float64 operands on a device that multiplies float16.

An operand is cut into three float16 parts, ``x = 2**e * (p0 + p1 + p2)``, 11 significant bits
each: 24 bits, all of a float32, fit. The parts of one product are laid out along its depth, small
terms first, and the device folds all of them in one go::

    a0·b0 + a0·b1 + a1·b0 + a1·b1 + a0·b2 + a2·b0        (dropped: below 2**-33 of |a|·|b|)

so a product costs six times the depth of a float16 one. Powers of two, one for each row of A and
each column of B, bring the largest element to 2**14 ... 2**15. An element less than 2**-15 times
the largest of its row (or column) would lose bits at float16's lower end. Such elements go to a
*band* of their own, scaled further; bands multiply apart, over those places of the depth where
both have elements, and meet in float64. Data of one scale has one band, or a second one with few
elements.

So every float32 operand is represented exactly, whatever its exponent. What is left is the error
of the FP32 fold (`docs/offload.md`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Product16 = Callable[[NDArray[np.float16], NDArray[np.float16]], NDArray[np.float32]]
"""Takes (…, rows, depth) and (…, depth, cols) float16 to (…, rows, cols) float32."""

PASSES = ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0))
"""Parts of A and B that are multiplied, smallest products first."""

TOP = 15
"""The largest element of a row or column is scaled to [2**(TOP - 1), 2**TOP)."""

SAFE = 100
"""Powers of two up to this, either way, are float32 numbers with room for a band."""

BAND = 15
"""Binades in a band: its least element's 24th bit is float16's least subnormal, 2**-24."""


@dataclass(frozen=True)
class Band:
    """Elements of similar size of an operand.

    Parameters
    ----------
    parts : list of numpy.ndarray
        Three float16 arrays of the operand's shape; zero where an element is of another band.
    depths : numpy.ndarray
        (depth,) bool: where along the depth the band has elements.
    exponents : numpy.ndarray
        int, of the operand's shape with depth 1: the elements are ``sum(parts) * 2**exponents``.
    """

    parts: list[NDArray[np.float16]]
    depths: NDArray[np.bool_]
    exponents: NDArray[np.int64]


def split(x: Floats, depth_axis: int) -> list[Band]:
    """Cut an operand into bands of three float16 parts.

    Parameters
    ----------
    x : numpy.ndarray
        At least two axes, float32 or float64, finite.
    depth_axis : int
        -1 for a left operand, -2 for a right one.

    Returns
    -------
    list of Band
        Largest elements first; empty if all are zero. The sum of all is ``x``: exactly for
        float32, to 2**-33 of each element for float64.
    """
    rest: Floats = np.asarray(x)
    bands: list[Band] = []
    others = tuple(axis for axis in range(rest.ndim) if axis != rest.ndim + depth_axis)
    while True:
        sizes = np.abs(rest)
        largest = sizes.max(axis=depth_axis, keepdims=True)
        if not largest.any():
            return bands
        # frexp's mantissas are in [0.5, 1): the largest becomes one in [2**(TOP - 1), 2**TOP).
        exponents = np.where(largest > 0, np.frexp(largest)[1], 0).astype(np.int64) - TOP
        if rest.dtype == np.float32 and np.abs(exponents).max() > SAFE:
            # Scales near the ends of float32 are no float32 numbers.
            rest, sizes = rest.astype(np.float64), sizes.astype(np.float64)
        outside = sizes < _power(exponents + TOP - BAND - 1, rest.dtype)
        outside &= sizes != 0
        last = not outside.any()
        now = _scaled(rest if last else np.where(outside, 0, rest), -exponents)
        # torch rounds much faster than numpy (float64 by way of float32: the next part takes what
        # that leaves).
        left, parts = torch.from_numpy(np.ascontiguousarray(now)), []
        for _ in range(3):
            part = left.half()
            left = left - part.to(left.dtype)
            parts.append(part.numpy())
        depths = np.asarray(_magnitudes(parts[0]).any(axis=others))
        bands.append(Band(parts, depths, exponents))
        if last:
            return bands
        rest = np.where(outside, rest, 0)


def _magnitudes(part: NDArray[np.float16]) -> NDArray[np.uint16]:
    """Return bits without signs: numpy finds non-zero integers faster than float16s."""
    return part.view(np.uint16) & np.uint16(0x7FFF)


def _power(exponents: NDArray[np.int64], dtype: np.dtype[Any]) -> Floats:
    """Return powers of two."""
    return np.ldexp(np.ones((), dtype), exponents)


def _scaled(x: Floats, exponents: NDArray[np.int64]) -> Floats:
    """Return ``x * 2**exponents``; by a product where the power is a number of x's type."""
    if np.abs(exponents).max() > (SAFE if x.dtype == np.float32 else 8 * SAFE):
        return np.ldexp(x, exponents)
    return x * _power(exponents, x.dtype)


def _finite_matmul(a: Floats, b: Floats, product: Product16) -> NDArray[np.float64]:
    total = np.zeros((*a.shape[:-1], b.shape[-1]))
    right = split(b, -2)
    for left_band in split(a, -1):
        for right_band in right:
            both = left_band.depths & right_band.depths
            if not both.any():
                continue
            every = both.all()
            lefts = [p if every else p[..., both] for p in left_band.parts]
            rights = [p if every else p[..., both, :] for p in right_band.parts]
            used = [[_magnitudes(p).any() for p in parts] for parts in (lefts, rights)]
            # A part that is zero throughout (small integers, say) adds nothing.
            passes = [(i, j) for i, j in PASSES if used[0][i] and used[1][j]]
            sums = product(
                np.concatenate([lefts[i] for i, _ in passes], axis=-1),
                np.concatenate([rights[j] for _, j in passes], axis=-2),
            )
            scaled = _scaled(sums.astype(np.float64), left_band.exponents)
            total += _scaled(scaled, right_band.exponents)
    return total


def _signs(x: Floats) -> NDArray[np.float16]:
    """Return what decides which infinities and NaNs a product makes: signs, infinities, NaNs."""
    return np.where(np.isfinite(x), np.sign(x), x).astype(np.float16)


def matmul(a: Floats, b: Floats, product: Product16) -> NDArray[np.float64]:
    """Return ``a @ b`` to about float32's accuracy, from products of float16 operands.

    Parameters
    ----------
    a, b : numpy.ndarray
        (…, rows, depth) and (…, depth, cols), float32 or float64.
    product : callable
        The device's product.

    Returns
    -------
    numpy.ndarray
        (…, rows, cols) float64: not yet rounded to the caller's type, so that it may be too large
        for float32. Infinities and NaNs of the operands give what IEEE 754 says.
    """
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    if finite_a.all() and finite_b.all():
        return _finite_matmul(a, b, product)
    result = _finite_matmul(np.where(finite_a, a, 0), np.where(finite_b, b, 0), product)
    special = product(_signs(a), _signs(b))
    return np.where(np.isfinite(special), result, special)
