"""The arithmetic reference itself, against exact rationals, the `struct` module and torch."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sat.rtl.fp.formats import FP16, FP32, FloatFormat
from sat.sim.golden import fp

ALL_FP16 = np.arange(1 << 16, dtype=np.uint16)

CORNERS16 = st.sampled_from([0, 1, 2, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7E00])
CORNERS32 = st.sampled_from(
    [0, 1, 0x7FFFFF, 0x800000, 0x33800000, 0x3F800000, 0x3F800001, 0x7F7FFFFF]
    + [0x7F800000, 0x7F800001, 0x7FC00000]
)
RAW16 = st.integers(0, (1 << 16) - 1) | st.builds(
    lambda x, s: x | s << 15, CORNERS16, st.booleans()
)
RAW32 = st.integers(0, (1 << 32) - 1) | st.builds(
    lambda x, s: x | s << 31, CORNERS32, st.booleans()
)


@st.composite
def near_pairs(draw):
    """FP32 pairs whose exponents differ little: they align, cancel and tie."""
    a = draw(RAW32)
    field = min(max((a >> 23 & 255) + draw(st.integers(-27, 27)), 0), 254)
    mantissa = draw(st.integers(0, (1 << 23) - 1) | st.sampled_from([0, 1, 0x400000, 0x7FFFFF]))
    return a, draw(st.integers(0, 1)) << 31 | field << 23 | mantissa


def one(function, dtype, *bits: int) -> int:
    """Return a function's result for single numbers."""
    return int(function(*(np.array([x], dtype) for x in bits))[0])


def is_finite(x: float) -> bool:
    return math.isfinite(x)


def exact_sum(a: int, b: int) -> int:
    """Return FP32 bits of a sum, by rationals and the rules for what is not finite."""
    x, y = FP32.decode(a), FP32.decode(b)
    if is_finite(x) and is_finite(y):
        both_negative = a >> 31 & b >> 31 == 1
        return FP32.encode(Fraction(x) + Fraction(y), negative_zero=both_negative)
    if math.isnan(x) or math.isnan(y) or (x == -y):
        return FP32.canonical_nan
    return a if not is_finite(x) else b


def exact_product(a: int, b: int) -> int:
    """Return FP32 bits of a product of FP16 numbers, by rationals and rules."""
    x, y = FP16.decode(a), FP16.decode(b)
    negative = (a ^ b) >> 15
    if is_finite(x) and is_finite(y):
        product = Fraction(x) * Fraction(y)
        bits = FP32.encode(product, negative_zero=bool(negative))
        assert Fraction(FP32.decode(bits)) == product, "not exact"
        return bits
    if math.isnan(x) or math.isnan(y) or x == 0 or y == 0:
        return FP32.canonical_nan
    return FP32.infinity | negative << 31


def exact_narrowing(a: int) -> int:
    """Return FP16 bits of an FP32 number, by rationals and rules."""
    x = FP32.decode(a)
    if math.isnan(x):
        return FP16.canonical_nan
    if math.isinf(x):
        return FP16.infinity | a >> 31 << 15
    return FP16.encode(Fraction(x), negative_zero=a >> 31 == 1)


@given(st.tuples(RAW32, RAW32) | near_pairs())
@example((0x3F800000, 0x33800000))  # a tie
@example((0x7F7FFFFF, 0x73000000))  # half a place beyond the largest
@example((0x00800000, 0x80000001))  # from normal to subnormal
@example((0x80000000, 0x80000000))
@example((0x7F800000, 0xFF800000))
def test_add_is_the_rational_sum(pair):
    assert one(fp.add, np.uint32, *pair) == exact_sum(*pair)


@given(RAW16, RAW16)
@example(1, 1)
@example(0x7BFF, 0x7BFF)
@example(0x0000, 0xFC00)
@example(0x8000, 0x0000)
def test_multiply_is_the_rational_product(a, b):
    assert one(fp.multiply, np.uint16, a, b) == exact_product(a, b)


@pytest.mark.parametrize("b", [0x0001, 0x83FF, 0x3C01, 0x7BFF, 0x8000, 0xFC00, 0x7D00])
def test_multiply_of_every_fp16_value(b):
    got = fp.multiply(ALL_FP16, np.full_like(ALL_FP16, b))
    assert got.tolist() == [exact_product(a, b) for a in range(1 << 16)]


@given(RAW32)
def test_narrowing_is_the_rational_one(a):
    assert one(fp.fp32_to_fp16, np.uint32, a) == exact_narrowing(a)


def borders16() -> np.ndarray:
    """Return where the result of narrowing changes, and the FP32 neighbours on both sides.

    Midway between each two neighbouring FP16 numbers, and half a place beyond the largest. As
    rounding is monotonic, what is right here is right everywhere between.
    """
    wide = [FP16.decode(x) for x in range(FP16.infinity)]
    wide.append(wide[-1] + (wide[-1] - wide[-2]))
    middles = [FP32.encode((x + y) / 2) for x, y in zip(wide, wide[1:], strict=False)]
    near = np.array(middles, np.int64)[:, None] + [-1, 0, 1]
    near = near.astype(np.uint32).ravel()
    return np.concatenate([near, near | np.uint32(1 << 31)])


def test_narrowing_at_every_border():
    borders = borders16()
    assert len(borders) == 2 * 3 * FP16.infinity
    got = fp.fp32_to_fp16(borders)
    assert got.tolist() == [exact_narrowing(a) for a in borders.tolist()]
    assert np.array_equal(
        got, torch.from_numpy(borders.view(np.float32)).half().numpy().view(np.uint16)
    )


def test_widening_of_every_fp16_value():
    got = fp.fp16_to_fp32(ALL_FP16).tolist()
    for raw, wide in enumerate(got):
        (value,) = struct.unpack("<e", struct.pack("<H", raw))
        if math.isnan(value):
            assert wide == FP32.canonical_nan
        else:
            assert wide == FP32.encode(value)
    nan = np.isnan(ALL_FP16.view(np.float16))
    by_torch = torch.from_numpy(ALL_FP16.view(np.float16)).float().numpy().view(np.uint32)
    assert np.array_equal(np.array(got, np.uint32)[~nan], by_torch[~nan])


def test_every_fp16_value_comes_back():
    assert np.array_equal(fp.fp32_to_fp16(fp.fp16_to_fp32(ALL_FP16)), fp.canonical_nan16(ALL_FP16))


def test_canonical_nans():
    nan = np.array([math.isnan(FP16.decode(x)) for x in range(1 << 16)])
    assert np.array_equal(fp.canonical_nan16(ALL_FP16), np.where(nan, 0x7E00, ALL_FP16))
    nans = np.array([0x7F800001, 0x7FC00001, 0xFFC00000, 0xFF800001, 0xFFFFFFFF], np.uint32)
    others = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x3F800000], np.uint32)
    assert (fp.canonical_nan32(nans) == 0x7FC00000).all()
    assert np.array_equal(fp.canonical_nan32(others), others)


def test_idle_slots_change_nothing():
    x = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    x = np.concatenate([x, np.array([0, 1 << 31, 1, 0x7F800000], np.uint32)])
    assert np.array_equal(fp.add(x, np.full_like(x, 1 << 31)), fp.canonical_nan32(x))


def test_shapes_broadcast():
    a = np.zeros((3, 1), np.uint32)
    assert fp.add(a, np.zeros(4, np.uint32)).shape == (3, 4)
    assert fp.multiply(np.zeros((2, 1), np.uint16), np.zeros(5, np.uint16)).shape == (2, 5)
    assert fp.fp32_to_fp16(a).shape == (3, 1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fp.add(np.zeros(1, np.float32), np.zeros(1, np.uint32)), r"a has dtype float32"),
        (lambda: fp.add(np.zeros(1, np.uint32), np.zeros(1, np.int64)), r"b has dtype int64"),
        (lambda: fp.multiply(np.zeros(1, np.uint32), np.zeros(1, np.uint16)), r"a has dtype"),
        (lambda: fp.fp32_to_fp16(np.zeros(1, np.float32)), r"bits\.view\(np\.uint32\)"),
        (lambda: fp.fp16_to_fp32(np.zeros(1, np.float16)), r"bits\.view\(np\.uint16\)"),
        (lambda: fp.canonical_nan16(np.zeros(1, np.uint32)), r"bits has dtype uint32"),
    ],
)
def test_other_dtypes_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_flushed_subnormals_are_noticed():
    one_bit = np.ones(1, np.uint32)
    if not torch.set_flush_denormal(True):
        pytest.fail("this processor cannot flush subnormals: the guard cannot be tested here")
    try:
        with pytest.raises(RuntimeError, match="set_flush_denormal"):
            fp.add(one_bit, one_bit)
    finally:
        torch.set_flush_denormal(False)
    assert fp.add(one_bit, one_bit) == 2


@pytest.mark.parametrize("bits", [(1, 10), (12, 10), (5, 0), (5, 53)])
def test_impossible_formats_are_refused(bits):
    with pytest.raises(ValueError, match="must be"):
        FloatFormat(*bits)


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"bits=0x10000: must be 0 to 0xffff"):
        FP16.decode(1 << 16)
    with pytest.raises(ValueError, match=r"bits=-0x1: must be"):
        FP32.decode(-1)


def test_encode_takes_exact_numbers_only():
    assert FP16.encode(3) == FP16.encode(3.0) == 0x4200
    with pytest.raises(TypeError, match="float32"):
        FP16.encode(np.float32(1))
