"""Products of float32 and float64 operands on a device that multiplies float16.

An operand is cut into three float16 parts, ``x = 2**e * (p0 + p1 + p2)``, 11 significant bits
each: 24 bits, all of a float32, fit. The parts of one product are laid out along its depth, small
terms first, and the device folds all of them in one go::

    a0·b0 + a0·b1 + a1·b0 + a1·b1 + a0·b2 + a2·b0        (dropped: below 2**-33 of |a|·|b|)

so a product costs six times the depth of a float16 one. Powers of two, one for each row of A and
each column of B, bring the largest element to 2**14 ... 2**15. An element less than 2**-15 times
the largest of its row (or column) would lose bits at float16's lower end. Such elements go to a
*band* of their own, scaled further; bands multiply apart and meet in float64. Data of one scale
has one band, or a second one with few elements: of those, only the rows, columns and places of the
depth that have any are multiplied. What is left out are zeros times finite numbers: a sum that
starts at +0 is never -0, so adding them would change no bit.

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
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.offload.workspace import Workspace
from sat.sim.build import compile_library
from sat.sim.golden import stce
from sat.sim.threads import Stopped, current_stop, share_threads, side_by_side

Floats = NDArray[np.floating]
Product16 = Callable[[NDArray[np.float16], NDArray[np.float16]], NDArray[np.float32]]
"""Takes (…, rows, depth) and (…, depth, cols) float16 to (…, rows, cols) float32."""

PASSES = 6
"""Products of parts that make one of float32 operands."""

SOURCE = Path(__file__).resolve().with_suffix(".cpp")
HEADERS = stce.SOURCE.parent


def load(path: Path) -> ctypes.CDLL:
    """Return a compiled ``precision.cpp``, its functions ready to be called."""
    library = share_threads(ctypes.CDLL(str(path)))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    for name, arguments, result in (
        ("begin", [pointer] * 2 + [number] * 7 + [pointer], pointer),
        ("lay", [pointer] * 3, number),
        ("add", [pointer] * 4, number),
        ("end", [pointer], None),
        (
            "whole",
            [pointer] * 5 + [number, pointer, pointer, number] + [pointer] * 3 + [number],
            number,
        ),
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


def matmul(
    a: Floats,
    b: Floats,
    product: Product16,
    *,
    threads: int = 1,
    workspace: Workspace | None = None,
) -> NDArray[np.float64]:
    """Return ``a @ b`` to about float32's accuracy, from products of float16 operands.

    Parameters
    ----------
    a, b : numpy.ndarray
        (rows, depth) and (depth, cols), or as many of each one after the other, float32 or float64.
    product : callable
        The device's product.
    threads : int
        Threads that cut large operands and put products together.
    workspace : Workspace, optional
        Memory to use, for the result, too, which then holds until the next product.

    Returns
    -------
    numpy.ndarray
        (rows, cols) or (count, rows, cols) float64: not yet rounded to the caller's type, so that
        it may be too large for float32. Infinities and NaNs of the operands give what IEEE 754
        says.

    Raises
    ------
    MemoryError
        If there is not enough memory, or no more threads can be started.
    sat.sim.build.BuildError
        If ``precision.cpp`` has to be compiled and cannot be.
    """
    native, space = _native(), workspace or Workspace()
    (*stack, rows, depth), cols = a.shape, b.shape[-1]
    left, right = np.ascontiguousarray(a), np.ascontiguousarray(b)
    total, to_total = space.array("total", (*stack, rows, cols), np.float64)
    total.fill(0)
    said = (ctypes.c_long * 6)()  # what is next, as the C++ file says
    work = native.fp32_begin(
        left.ctypes.data,
        right.ctypes.data,
        left.dtype == np.float64,
        right.dtype == np.float64,
        prod(stack),
        rows,
        depth,
        cols,
        threads,
        said,
    )
    try:
        good = work is not None
        while good and said[0]:
            count, some_rows, passes, some_cols = said[2:]
            some = (count,) if stack else ()
            a16, to_a = space.array("a", (*some, some_rows, passes), np.float16)
            b16, to_b = space.array("b", (*some, passes, some_cols), np.float16)
            good = native.fp32_lay(work, to_a, to_b)
            if good:
                sums = np.ascontiguousarray(product(a16, b16))
                good = native.fp32_add(work, sums.ctypes.data, to_total, said)
        if not good:
            raise MemoryError(
                f"product of {rows} x {depth} x {cols}: memory or threads ran out; use smaller "
                "operands or fewer threads"
            )
        finite = said[1]
    finally:
        if work is not None:
            native.fp32_end(work)
    if finite:
        return total
    special = product(_signs(a), _signs(b))
    return np.where(np.isfinite(special), total, special)


MOST = 64
"""Products, one for each pair of bands, that are made in one call."""


def whole(
    a: Tensor,
    b: Tensor,
    start: Tensor | None,
    wide: torch.dtype,
    kernel: int,
    threads: int = 1,
) -> tuple[Tensor, list[tuple[int, int, int, int]]] | None:
    """Return ``start + a @ b`` of products that the host itself computes, in one call.

    The passes of a product follow each other without being laid out along its depth: the bits are
    the same.

    Parameters
    ----------
    a, b : Tensor
        (rows, depth) and (depth, cols), or as many of each one after the other, float32 or float64.
    start : Tensor, optional
        (cols,), or as the result; float32, or as ``wide``.
    wide : torch.dtype
        float32 or float64: type of the result.
    kernel : int
        Where the golden model's kernel is (`sat.sim.golden.stce.kernel`).
    threads : int

    Returns
    -------
    result : Tensor
        (…, rows, cols): the sum of the terms in float64, and of the start, rounded once.
    products : list of tuple of int
        (count, rows, depth, cols) of each product that was computed.
    None
        If there are infinities, NaNs, or numbers of very many magnitudes: `matmul` takes them.

    Raises
    ------
    MemoryError
        If there is not enough memory, or no more threads can be started.
    Stopped
        If the work of this thread was asked to end.
    """
    (*stack, rows, depth), cols = a.shape, b.shape[-1]
    shape = (*stack, rows, cols)
    count = stack[0] if stack else 1
    (left, a_last), (right, b_first) = _without_gaps(a), _without_gaps(b)
    forms = (ctypes.c_long * 4)(
        a.dtype is torch.float64, b.dtype is torch.float64, a_last, not b_first
    )
    out = torch.empty(shape, dtype=wide)
    first = start if wide is torch.float32 else None
    at_start, strides = None, None
    if first is not None:
        at_start = first.data_ptr()
        strides = (ctypes.c_long * 3)(*([0] * (3 - len(shape))), *first.expand(shape).stride())
    jobs = (ctypes.c_long * (4 * MOST))()
    native = _native()

    def compute() -> int:
        done: int = native.fp32_whole(
            left.data_ptr(),
            right.data_ptr(),
            at_start,
            strides,
            out.data_ptr(),
            wide is torch.float64,
            forms,
            (ctypes.c_long * 4)(count, rows, depth, cols),
            threads,
            kernel,
            current_stop().address,
            jobs,
            MOST,
        )
        return done

    long = count * rows * depth * cols >= stce.LONG_MACS // PASSES
    done = side_by_side([compute])[0] if long else compute()
    if done == -1:
        return None
    if done == -3:
        raise Stopped
    if done == -2:
        raise MemoryError(
            f"product of {rows} x {depth} x {cols}: memory or threads ran out; use smaller "
            "operands or fewer threads"
        )
    if start is not None and first is None:
        out += start
    sizes = iter(jobs[: 4 * done])
    return out, list(zip(sizes, sizes, sizes, sizes, strict=True))


def _without_gaps(x: Tensor) -> tuple[Tensor, bool]:
    """Return an operand whose memory is in the order of its axes, or of its transpose's.

    And whether it is in the order of its axes.
    """
    if x.is_contiguous():
        return x, True
    if x.mT.is_contiguous():
        return x, False
    return x.contiguous(), True
