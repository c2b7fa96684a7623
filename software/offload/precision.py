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

The numbers are cut and put together by ``precision.cpp``, compiled on first use.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sat.sim.build import compile_library
from sat.sim.golden import stce

Floats = NDArray[np.floating]
Product16 = Callable[[NDArray[np.float16], NDArray[np.float16]], NDArray[np.float32]]
"""Takes (…, rows, depth) and (…, depth, cols) float16 to (…, rows, cols) float32."""

SOURCE = Path(__file__).resolve().with_suffix(".cpp")
HEADERS = stce.SOURCE.parent


def load(path: Path) -> ctypes.CDLL:
    """Return a compiled ``precision.cpp``, its functions ready to be called."""
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    for name, arguments, result in (
        ("begin", [pointer] * 2 + [number] * 6, pointer),
        ("finite", [pointer], number),
        ("next", [pointer], number),
        ("lay", [pointer] * 3, None),
        ("add", [pointer] * 3, None),
        ("end", [pointer], None),
    ):
        function = getattr(library, f"fp32_{name}")
        function.argtypes, function.restype = arguments, result
    return library


@functools.cache
def _native() -> ctypes.CDLL:
    return load(compile_library("precision", [SOURCE], include_dirs=[HEADERS]))


def _signs(x: Floats) -> NDArray[np.float16]:
    """Return what decides which infinities and NaNs a product makes: signs, infinities, NaNs."""
    return np.where(np.isfinite(x), np.sign(x), x).astype(np.float16)


def matmul(a: Floats, b: Floats, product: Product16) -> NDArray[np.float64]:
    """Return ``a @ b`` to about float32's accuracy, from products of float16 operands.

    Parameters
    ----------
    a, b : numpy.ndarray
        (…, rows, depth) and (…, depth, cols), float32 or float64; the same stack in front.
    product : callable
        The device's product.

    Returns
    -------
    numpy.ndarray
        (…, rows, cols) float64: not yet rounded to the caller's type, so that it may be too large
        for float32. Infinities and NaNs of the operands give what IEEE 754 says.

    Raises
    ------
    MemoryError
        If there is not enough memory.
    sat.sim.build.BuildError
        If ``precision.cpp`` has to be compiled and cannot be.
    """
    native = _native()
    (*stack, rows, depth), cols = a.shape, b.shape[-1]
    left, right = np.ascontiguousarray(a), np.ascontiguousarray(b)
    total = np.zeros((*stack, rows, cols))
    work = native.fp32_begin(
        left.ctypes.data,
        right.ctypes.data,
        left.dtype == np.float64,
        right.dtype == np.float64,
        prod(stack),
        rows,
        depth,
        cols,
    )
    if work is None:
        raise MemoryError(
            f"product of {rows} x {depth} x {cols}: memory ran out; use smaller operands"
        )
    try:
        finite = native.fp32_finite(work)
        while passes := native.fp32_next(work):
            a16 = np.empty((*stack, rows, passes), np.float16)
            b16 = np.empty((*stack, passes, cols), np.float16)
            native.fp32_lay(work, a16.ctypes.data, b16.ctypes.data)
            sums = np.ascontiguousarray(product(a16, b16))
            native.fp32_add(work, sums.ctypes.data, total.ctypes.data)
    finally:
        native.fp32_end(work)
    if finite:
        return total
    special = product(_signs(a), _signs(b))
    return np.where(np.isfinite(special), total, special)
