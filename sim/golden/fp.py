"""The arithmetic of SAT on arrays of bits: what each floating-point unit must give.

Numbers are bits (``uint16`` for FP16, ``uint32`` for FP32), so that signs of zero and NaNs are
compared too. The arithmetic is numpy's ``float32``, which is wide enough:

* A product of two FP16 numbers has at most 22 bits of mantissa and an exponent of -48 to 31.
  FP32 has 24 bits and -126 to 127, so the product is exact.
* A sum of two FP32 numbers is one operation of the processor, which IEEE 754 has it round once,
  to nearest even, from the exact value.
* FP16 to FP32 is exact; FP32 to FP16 is one rounding to nearest even.

Every NaN that comes out is the canonical one. Tests hold all of it against exact rationals.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sat.rtl.fp.formats import FP16, FP32

Bits16 = npt.NDArray[np.uint16]
Bits32 = npt.NDArray[np.uint32]


def _bits(name: str, x: np.ndarray, dtype: type[np.unsignedinteger]) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype != dtype:
        want = np.dtype(dtype)
        raise TypeError(
            f"{name} has dtype {x.dtype}: must be bits as {want}; a float{8 * want.itemsize} array "
            f"gives them with {name}.view(np.{want})"
        )
    return x


def _require_subnormals() -> None:
    # Libraries built with -ffast-math, and torch.set_flush_denormal, change this for the thread.
    smallest = np.array([1], np.uint32).view(np.float32)
    if (smallest + smallest).view(np.uint32)[0] != 2:
        raise RuntimeError(
            "this thread's processor mode flushes subnormal numbers to zero, which IEEE 754 "
            "arithmetic does not: call torch.set_flush_denormal(False)"
        )


def canonical_nan16(bits: Bits16) -> Bits16:
    """Return FP16 bits in which every NaN is the canonical one.

    Parameters
    ----------
    bits : uint16, any shape

    Returns
    -------
    uint16, of the same shape

    Raises
    ------
    TypeError
        If the dtype is another.
    """
    bits = _bits("bits", bits, np.uint16)
    return np.where((bits & 0x7FFF) > FP16.infinity, np.uint16(FP16.canonical_nan), bits)


def canonical_nan32(bits: Bits32) -> Bits32:
    """Return FP32 bits in which every NaN is the canonical one.

    Parameters
    ----------
    bits : uint32, any shape

    Returns
    -------
    uint32, of the same shape

    Raises
    ------
    TypeError
        If the dtype is another.
    """
    bits = _bits("bits", bits, np.uint32)
    return np.where((bits & 0x7FFFFFFF) > FP32.infinity, np.uint32(FP32.canonical_nan), bits)


def fp16_to_fp32(bits: Bits16) -> Bits32:
    """Widen FP16 numbers to FP32, exactly.

    Parameters
    ----------
    bits : uint16, any shape

    Returns
    -------
    uint32, of the same shape

    Raises
    ------
    TypeError
        If the dtype is another.
    """
    bits = _bits("bits", bits, np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return canonical_nan32(bits.view(np.float16).astype(np.float32).view(np.uint32))


def fp32_to_fp16(bits: Bits32) -> Bits16:
    """Round FP32 numbers to FP16: to nearest even, overflow to infinity, subnormals kept.

    Parameters
    ----------
    bits : uint32, any shape

    Returns
    -------
    uint16, of the same shape

    Raises
    ------
    TypeError
        If the dtype is another.
    """
    bits = _bits("bits", bits, np.uint32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return canonical_nan16(bits.view(np.float32).astype(np.float16).view(np.uint16))


def multiply(a: Bits16, b: Bits16) -> Bits32:
    """Multiply FP16 numbers to FP32 numbers, exactly.

    Parameters
    ----------
    a, b : uint16, of shapes that broadcast

    Returns
    -------
    uint32, of the common shape

    Raises
    ------
    TypeError
        If a dtype is another.
    """
    x, y = (fp16_to_fp32(_bits(n, v, np.uint16)).view(np.float32) for n, v in (("a", a), ("b", b)))
    with np.errstate(invalid="ignore"):  # zero times infinity
        return canonical_nan32(np.asarray(x * y).view(np.uint32))


def multiply32(a: Bits32, b: Bits32) -> Bits32:
    """Return the products of FP32 numbers, rounded once to nearest even.

    Parameters
    ----------
    a, b : uint32, of shapes that broadcast

    Returns
    -------
    uint32

    Raises
    ------
    TypeError
        If ``a`` or ``b`` does not hold bits of FP32.
    RuntimeError
        If this thread flushes subnormal numbers to zero.
    """
    x, y = (_bits(name, v, np.uint32).view(np.float32) for name, v in (("a", a), ("b", b)))
    _require_subnormals()
    with np.errstate(all="ignore"):
        return canonical_nan32(np.asarray(x * y).view(np.uint32))


def add(a: Bits32, b: Bits32) -> Bits32:
    """Add FP32 numbers: round to nearest even, subnormals kept.

    Parameters
    ----------
    a, b : uint32, of shapes that broadcast

    Returns
    -------
    uint32, of the common shape

    Raises
    ------
    TypeError
        If a dtype is another.
    RuntimeError
        If this thread's processor mode flushes subnormal numbers to zero.
    """
    _require_subnormals()
    x, y = (_bits(n, v, np.uint32).view(np.float32) for n, v in (("a", a), ("b", b)))
    with np.errstate(over="ignore", invalid="ignore"):
        return canonical_nan32(np.asarray(x + y).view(np.uint32))
