"""Corners of the arithmetic units, written out as bits, on Amaranth's own simulator."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth import *
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.rtl.fp.adder import Adder
from sat.rtl.fp.convert import Fp16ToFp32, Fp32ToFp16
from sat.rtl.fp.multiplier import Multiplier
from sat.rtl.fp.operand import (
    OPERAND_NEGATIVE_ZERO,
    OPERAND_ZERO,
    OperandDecoder,
    operand_of,
)
from sat.sim.golden import fp

NAN, INFINITY, MAX = 0x7FC00000, 0x7F800000, 0x7F7FFFFF
MINUS = 1 << 31

SUMS = [
    # zeros
    (0, 0, 0),
    (MINUS, MINUS, MINUS),
    (0, MINUS, 0),
    (MINUS, 0, 0),
    # x + -0 is x
    (1, MINUS, 1),
    (MINUS | 0x7FFFFF, MINUS, MINUS | 0x7FFFFF),
    (MAX, MINUS, MAX),
    (MINUS, MINUS | 0x3F800000, MINUS | 0x3F800000),
    # x + -x is +0
    (1, MINUS | 1, 0),
    (0xBF800001, 0x3F800001, 0),
    (MAX, MINUS | MAX, 0),
    # ties: to the even neighbour
    (0x3F800000, 0x33800000, 0x3F800000),
    (0x3F800001, 0x33800000, 0x3F800002),
    (0x3F800000, 0xB3000000, 0x3F800000),
    (0x3F7FFFFF, 0x33000000, 0x3F800000),
    # one bit beside a tie, the last of them only through the sticky bit
    (0x3F800000, 0x33800001, 0x3F800001),
    (0x3F800000, 0x337FFFFF, 0x3F800000),
    (0x3F800000, 0xB3000001, 0x3F7FFFFF),
    (0x3F800000, 0xB2FFFFFF, 0x3F800000),
    # far apart
    (0x7F000000, 1, 0x7F000000),
    (0x7F000000, MINUS | 1, 0x7F000000),
    (1, 0x3F800000, 0x3F800000),
    # cancellation is exact
    (0x3F800000, 0xBF7FFFFF, 0x33800000),
    (0x3F800001, 0xBF800000, 0x34000000),
    (0x01000000, 0x80FFFFFF, 0x00000001),
    # a rounding that carries through the whole mantissa
    (0x3FFFFFFF, 0x33800000, 0x40000000),
    # subnormals
    (1, 1, 2),
    (0x007FFFFF, 1, 0x00800000),
    (0x00800000, MINUS | 1, 0x007FFFFF),
    (0x00400000, 0x00400000, 0x00800000),
    (0x007FFFFF, 0x007FFFFF, 0x00FFFFFE),
    (0x00800001, 0x80800000, 0x00000001),
    # overflow: at half a place beyond the largest, not before
    (MAX, 0x73000000, INFINITY),
    (MAX, 0x72FFFFFF, MAX),
    (MINUS | MAX, MINUS | MAX, MINUS | INFINITY),
    (0x7F000000, 0x7F000000, INFINITY),
    # infinities
    (INFINITY, MINUS | MAX, INFINITY),
    (MINUS | INFINITY, 0, MINUS | INFINITY),
    (INFINITY, INFINITY, INFINITY),
    (INFINITY, MINUS | INFINITY, NAN),
    (MINUS | INFINITY, INFINITY, NAN),
    # NaNs: quiet, signalling, negative
    (NAN, 0x3F800000, NAN),
    (0x3F800000, 0xFFC00001, NAN),
    (0x7F800001, MINUS, NAN),
    (0xFFFFFFFF, INFINITY, NAN),
    (0x7F800001, MINUS | 0x7F800001, NAN),
]

PRODUCTS = [
    (0x3C00, 0x3C00, 0x3F800000),
    (0xBC00, 0x3C00, 0xBF800000),
    (0x3C01, 0x3C01, 0x3F804008),
    # The largest times itself and the smallest times itself: both normal, both exact.
    (0x7BFF, 0x7BFF, 0x4F7FC004),
    (0x0001, 0x0001, 0x27800000),
    (0x8001, 0x03FF, 0xAC7FC000),
    (0x0400, 0x0001, 0x2C800000),
    # zeros
    (0x0000, 0x0000, 0),
    (0x8000, 0x0000, MINUS),
    (0x8000, 0x8000, 0),
    (0x0000, 0xC500, MINUS),
    # infinities
    (0x7C00, 0x0001, INFINITY),
    (0x7C00, 0xBC00, MINUS | INFINITY),
    (0xFC00, 0xFC00, INFINITY),
    (0x7C00, 0x0000, NAN),
    (0x8000, 0x7C00, NAN),
    # NaNs
    (0x7E00, 0x0000, NAN),
    (0x3C00, 0x7C01, NAN),
    (0xFE00, 0x7C00, NAN),
    (0xFFFF, 0xFFFF, NAN),
]

NARROWED = [
    (0, 0),
    (MINUS, 0x8000),
    (0x3F800000, 0x3C00),
    # ties, and one bit beside
    (0x3F801000, 0x3C00),
    (0x3F801001, 0x3C01),
    (0x3F803000, 0x3C02),
    (0x3F802FFF, 0x3C01),
    # the largest; half a place beyond it; further
    (0x477FE000, 0x7BFF),
    (0x477FEFFF, 0x7BFF),
    (0x477FF000, 0x7C00),
    (MINUS | MAX, 0xFC00),
    # subnormals: the largest, its tie with the smallest normal, the smallest, its half
    (0x387FC000, 0x03FF),
    (0x387FDFFF, 0x03FF),
    (0x387FE000, 0x0400),
    (0x38800000, 0x0400),
    (0x33800000, 0x0001),
    (0x33C00000, 0x0002),
    (0x33000001, 0x0001),
    (0x33000000, 0x0000),
    (0xB3000000, 0x8000),
    (0x32FFFFFF, 0x0000),
    # FP32's own subnormals
    (1, 0),
    (0x807FFFFF, 0x8000),
    (INFINITY, 0x7C00),
    (MINUS | INFINITY, 0xFC00),
    (NAN, 0x7E00),
    (0x7F800001, 0x7E00),
    (0xFFFFFFFF, 0x7E00),
]

WIDENED = [
    (0x0000, 0),
    (0x8000, MINUS),
    (0x0001, 0x33800000),
    (0x83FF, 0xB87FC000),
    (0x0400, 0x38800000),
    (0x3C00, 0x3F800000),
    (0x7BFF, 0x477FE000),
    (0x7C00, INFINITY),
    (0xFC00, MINUS | INFINITY),
    (0x7C01, NAN),
    (0xFE00, NAN),
]

DECODED = [
    (0x0000, OPERAND_ZERO),
    (0x8000, OPERAND_NEGATIVE_ZERO),
    (0x3C00, 25 << 10),
    (0x0001, 1 << 10),
    (0x0003, 2 << 10 | 0x200),
    (0x03FF, 10 << 10 | 0x3FE),
    (0x8400, 1 << 16 | 11 << 10),
    (0x7BFF, 40 << 10 | 0x3FF),
    (0x7C00, 63 << 10),
    (0xFC00, 1 << 16 | 63 << 10),
    (0x7C01, 63 << 10 | 0x200),
    (0xFFFF, 1 << 16 | 63 << 10 | 0x200),
]


def stream(unit, inputs: tuple[str, str], output: str, pairs: list[tuple[int, int]]) -> list[int]:
    """Return a pipelined unit's outputs, `latency` cycles behind a new pair each cycle."""
    got = []

    async def bench(ctx):
        for cycle in range(len(pairs) + unit.latency):
            for name, bits in zip(inputs, pairs[min(cycle, len(pairs) - 1)], strict=True):
                ctx.set(Value.cast(getattr(unit, name)), bits)
            if cycle >= unit.latency:
                got.append(ctx.get(getattr(unit, output)))
            await ctx.tick()

    # Something that is clocked, for a unit of latency 0.
    m = Module()
    m.submodules.unit = unit
    clocked = Signal()
    m.d.sync += clocked.eq(~clocked)
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return got


def outputs(unit, inputs: list[int]) -> list[int]:
    """Return a combinational unit's outputs."""
    got = []

    async def bench(ctx):
        for bits in inputs:
            ctx.set(unit.i, bits)
            got.append(ctx.get(Value.cast(unit.o)))

    simulator = Simulator(unit)
    simulator.add_testbench(bench)
    simulator.run()
    return got


def hexes(values) -> list[str]:
    return [f"{value:08x}" for value in values]


@pytest.mark.parametrize("stages", range(1, 9))
def test_sums(stages):
    unit = Adder(stages)
    assert unit.latency == stages
    got = stream(unit, ("a", "b"), "total", [(a, b) for a, b, _ in SUMS])
    assert hexes(got) == hexes(total for _, _, total in SUMS)


def test_sums_do_not_depend_on_the_order():
    got = stream(Adder(), ("a", "b"), "total", [(b, a) for a, b, _ in SUMS])
    assert hexes(got) == hexes(total for _, _, total in SUMS)


@pytest.mark.parametrize("stages", range(4))
def test_products(stages):
    unit = Multiplier(stages)
    assert unit.latency == stages
    pairs = [tuple(operand_of(np.array(x[:2], np.uint16)).tolist()) for x in PRODUCTS]
    got = stream(unit, ("a", "b"), "product", pairs)
    assert hexes(got) == hexes(product for _, _, product in PRODUCTS)


@pytest.mark.parametrize(
    "unit, table",
    [(Fp32ToFp16, NARROWED), (Fp16ToFp32, WIDENED), (OperandDecoder, DECODED)],
)
def test_single_numbers(unit, table):
    got = outputs(unit(), [given for given, _ in table])
    assert hexes(got) == hexes(wanted for _, wanted in table)


def test_the_golden_model_gives_the_same():
    a, b, total = (np.array(x, np.uint32) for x in zip(*SUMS, strict=True))
    assert hexes(fp.add(a, b)) == hexes(total)
    x, y = (np.array([row[k] for row in PRODUCTS], np.uint16) for k in (0, 1))
    assert hexes(fp.multiply(x, y)) == hexes(product for _, _, product in PRODUCTS)
    wide, half = zip(*NARROWED, strict=True)
    assert hexes(fp.fp32_to_fp16(np.array(wide, np.uint32))) == hexes(half)
    half, wide = zip(*WIDENED, strict=True)
    assert hexes(fp.fp16_to_fp32(np.array(half, np.uint16))) == hexes(wide)
    half, operands = zip(*DECODED, strict=True)
    assert hexes(operand_of(np.array(half, np.uint16))) == hexes(operands)


RAW32 = st.integers(0, (1 << 32) - 1)
NEAR = st.tuples(RAW32, st.integers(-30, 30), RAW32).map(
    lambda x: (x[0], x[2] & 0x807FFFFF | min(max((x[0] >> 23 & 255) + x[1], 0), 255) << 23)
)


@settings(max_examples=20)
@given(st.lists(st.tuples(RAW32, RAW32) | NEAR, min_size=1, max_size=20))
def test_any_sums_in_a_row(pairs):
    """Neighbours in the pipeline do not disturb each other."""
    a, b = (np.array(x, np.uint32) for x in zip(*pairs, strict=True))
    assert hexes(stream(Adder(), ("a", "b"), "total", pairs)) == hexes(fp.add(a, b))
