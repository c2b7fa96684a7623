"""Arithmetic units against the golden model: exhaustive where small, else by the million."""

from __future__ import annotations

import os
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from sat.rtl.fp import adder as adder_module
from sat.rtl.fp.adder import Adder
from sat.rtl.fp.formats import FP16, FP32
from sat.rtl.fp.multiplier import Multiplier
from sat.rtl.fp.operand import operand_of
from sat.rtl.verilog import emit
from sat.sim import fp_bulk
from sat.sim.golden import fp

pytestmark = pytest.mark.xdist_group("arithmetic")

MILLION = 1_000_000
CHUNK = 2 * MILLION
LONG_VECTORS = int(os.environ.get("SAT_LONG_VECTORS", 1_000 * MILLION))
ALL_FP16 = np.arange(1 << 16, dtype=np.uint32)

SPECIAL32 = np.array(
    [0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0xFFFFFF, 0x3F800000, 0x3F800001, 0x3F7FFFFF]
    + [0x33800000, 0x34000000, 0x7F7FFFFF, 0x7F000000, 0x7F800000, 0x7FC00000, 0x7F800001]
    # Around FP16's borders: its smallest and half of it, its largest and half a place beyond.
    + [0x33000000, 0x33000001, 0x33800001, 0x387FC000, 0x38800000, 0x387FE000, 0x387FDFFF]
    + [0x477FE000, 0x477FEFFF, 0x477FF000, 0x47800000],
    np.uint32,
)
SPECIAL32 = np.concatenate([SPECIAL32, SPECIAL32 | np.uint32(0x80000000)])


def pairs32(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return FP32 pairs, many of them at corners of addition."""
    a = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    b = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    kind = rng.integers(0, 8, count)
    sign = rng.integers(0, 2, count, dtype=np.uint32) << np.uint32(31)

    def put(which: int, value: np.ndarray, into: np.ndarray) -> None:
        np.copyto(into, value.astype(np.uint32), where=kind == which)

    put(1, rng.choice(SPECIAL32, count), a)
    put(2, rng.choice(SPECIAL32, count), b)
    # Exponents near each other: alignment, rounding, cancellation.
    field = np.clip((a >> 23 & 255).astype(np.int64) + rng.integers(-30, 31, count), 0, 254)
    put(3, b & 0x807FFFFF | field << 23, b)
    # The other sign and a few units in the last place apart.
    put(4, (a ^ 0x80000000).astype(np.int64) + rng.integers(-4, 5, count), b)
    # Subnormals and the smallest normal numbers.
    put(5, a & 0x81FFFFFF, a)
    put(5, b & 0x81FFFFFF, b)
    # Ties: mantissas with few bits.
    put(6, a & 0xFFF80001, a)
    put(6, b & 0x7F800000 | sign, b)
    put(7, a, b)
    return a, b


def pairs16(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return FP16 pairs; a share of them specials and subnormals."""
    corners = [0, 1, 2, 0x3FF, 0x400, 0x401, 0x3C00, 0x3C01, 0x7BFF, 0x7C00, 0x7C01, 0x7E00]
    corners = np.array(corners + [x | 0x8000 for x in corners], np.uint32)
    made = []
    for _ in range(2):
        x = rng.integers(0, 1 << 16, count, dtype=np.uint32)
        kind = rng.integers(0, 6, count)
        x = np.where(kind == 0, rng.choice(corners, count), x)
        made.append(np.where(kind == 1, x & 0x83FF, x).astype(np.uint32))
    return made[0], made[1]


def check_adder(rng, count, **options):
    a, b = pairs32(rng, count)
    assert np.array_equal(fp_bulk.run("adder", a, b, **options), fp.add(a, b))


def check_multiplier(rng, count, **options):
    a, b = pairs16(rng, count)
    got = fp_bulk.run("multiplier", operand_of(a), operand_of(b), **options)
    assert np.array_equal(got, fp.multiply(a.astype(np.uint16), b.astype(np.uint16)))


def check_multiplier32(rng, count):
    a, b = pairs32(rng, count)
    # Half of the products near the border of what is normal, subnormal, or nothing at all.
    field = np.clip(rng.integers(95, 130, count) - (a >> 23 & 255).astype(np.int64), 0, 254)
    b = np.where(rng.random(count) < 0.5, b & 0x807FFFFF | field << 23, b).astype(np.uint32)
    assert np.array_equal(fp_bulk.run("multiplier32", a, b), fp.multiply32(a, b))


def check_narrow(rng, count):
    a = pairs32(rng, count)[0]
    # Half of them where FP16 has its numbers: fields 100 to 145.
    near = (a & 0x807FFFFF) | (rng.integers(100, 146, count).astype(np.uint32) << 23)
    a = np.where(rng.random(count) < 0.5, near, a).astype(np.uint32)
    # … and a share exactly between two FP16 numbers, or one bit beside.
    tie = (a & 0xFFFFE000) | rng.choice(np.array([0xFFF, 0x1000, 0x1001], np.uint32), count)
    a = np.where(rng.random(count) < 0.3, tie, a).astype(np.uint32)
    assert np.array_equal(fp_bulk.run("narrow", a), fp.fp32_to_fp16(a))


CHECKS = {
    "adder": check_adder,
    "multiplier": check_multiplier,
    "multiplier32": check_multiplier32,
    "narrow": check_narrow,
}


@pytest.mark.parametrize("unit", CHECKS)
def test_ten_million_random_vectors(unit):
    for part in range(5):
        CHECKS[unit](np.random.default_rng([part, len(unit)]), CHUNK)


@pytest.mark.long
@pytest.mark.parametrize("unit", CHECKS)
def test_a_billion_random_vectors(unit):
    for part in range(-(-LONG_VECTORS // CHUNK)):
        CHECKS[unit](np.random.default_rng([part, len(unit), 1]), CHUNK)


@pytest.mark.parametrize("stages", [1, 2, 3, 5, 6, 7, 8])
def test_adder_of_other_depths(stages):
    assert Adder(stages).latency == stages
    check_adder(np.random.default_rng(stages), MILLION // 2, stages=stages)


@pytest.mark.parametrize("stages", [0, 2, 3])
def test_multiplier_of_other_depths(stages):
    assert Multiplier(stages).latency == stages
    check_multiplier(np.random.default_rng(stages), MILLION // 2, stages=stages)


def test_adder_on_all_pairs_of_specials():
    a, b = (x.ravel() for x in np.meshgrid(SPECIAL32, SPECIAL32))
    assert np.array_equal(fp_bulk.run("adder", a, b), fp.add(a, b))


def test_every_fp16_value_decodes():
    assert np.array_equal(fp_bulk.run("decoder", ALL_FP16), operand_of(ALL_FP16))
    # operand_of itself, against the format's own definition.
    for raw, operand in zip(ALL_FP16, operand_of(ALL_FP16), strict=True):
        fraction, exponent, sign = operand & 1023, int(operand >> 10 & 63), operand >> 16
        value = FP16.decode(int(raw))
        assert sign == raw >> 15
        if value != value:
            assert (exponent, fraction) == (63, 0x200)
        elif abs(value) == float("inf"):
            assert (exponent, fraction) == (63, 0)
        elif value == 0:
            assert (exponent, fraction) == (0, 0)
        else:
            exact = Fraction(1024 + int(fraction), 1024) * Fraction(2) ** (exponent - 25)
            assert 1 <= exponent <= 40 and exact == abs(Fraction(value))


def test_every_fp16_value_widens():
    want = fp.fp16_to_fp32(ALL_FP16.astype(np.uint16))
    assert np.array_equal(fp_bulk.run("widen", ALL_FP16), want)


def test_every_fp16_value_survives_narrowing():
    half = ALL_FP16.astype(np.uint16)
    got = fp_bulk.run("narrow", fp.fp16_to_fp32(half))
    assert np.array_equal(got, fp.canonical_nan16(half))


def test_narrowing_agrees_with_torch():
    a = pairs32(np.random.default_rng(9), MILLION)[0]
    half = torch.from_numpy(a.view(np.float32)).half()
    want = np.where(half.isnan(), FP16.canonical_nan, half.numpy().view(np.uint16))
    assert np.array_equal(fp_bulk.run("narrow", a), want)


@pytest.mark.parametrize("fmt, dtype", [(FP16, np.float16), (FP32, np.float32)])
def test_formats_encode_and_decode(fmt, dtype):
    count = 1 << 16
    raw = np.arange(count) if fmt is FP16 else np.random.default_rng(0).integers(0, 1 << 32, count)
    values = raw.astype(f"uint{fmt.bits}").view(dtype)
    for bits, value in zip(raw.tolist(), values.tolist(), strict=True):
        if value != value:
            assert fmt.decode(bits) != fmt.decode(bits)
            assert fmt.encode(value) == fmt.canonical_nan
        else:
            assert fmt.decode(bits) == value and fmt.encode(value) == bits


@pytest.mark.parametrize(
    "wrong",
    [
        lambda last, guard, rest: guard & last,  # forgets the sticky bit
        lambda last, guard, rest: guard & rest,  # ties go down
        lambda last, guard, rest: guard,  # ties go up
    ],
)
def test_wrong_rounding_is_found(monkeypatch, wrong):
    monkeypatch.setattr(adder_module, "rounds_up", wrong)
    a, b = pairs32(np.random.default_rng(0), MILLION // 10)
    got = fp_bulk.run("adder", a, b, text=emit(Adder()))
    assert not np.array_equal(got, fp.add(a, b))


def test_a_lost_sticky_bit_is_found():
    """Planted in the Verilog: what the alignment shifts out behind the round bit is forgotten."""
    text = fp_bulk.verilog("adder")
    wrong = re.sub(r"(assign aligned_sticky = ).*;", r"\g<1>1'h0;", text)
    assert wrong != text
    a, b = pairs32(np.random.default_rng(0), MILLION // 10)
    assert not np.array_equal(fp_bulk.run("adder", a, b, text=wrong), fp.add(a, b))


@pytest.mark.parametrize("unit, stages", [(Adder, 0), (Adder, 9), (Multiplier, 4)])
def test_impossible_depths_are_refused(unit, stages):
    with pytest.raises(ValueError, match=f"stages={stages}: must be"):
        unit(stages)


def test_bulk_runs_take_what_fits_only():
    bits, none = np.zeros(3, np.uint32), np.zeros(0, np.uint32)
    assert fp_bulk.run("adder", none, none).shape == (0,)
    with pytest.raises(ValueError, match="unit='divider': must be one of adder"):
        fp_bulk.run("divider", bits)
    with pytest.raises(ValueError, match="1 arrays: unit 'adder' takes 2"):
        fp_bulk.run("adder", bits)
    with pytest.raises(ValueError, match="all the same"):
        fp_bulk.run("adder", bits, bits[:2])
    with pytest.raises(TypeError, match="float32"):
        fp_bulk.run("narrow", bits.astype(np.float32))
