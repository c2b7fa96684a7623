"""A lane of the weight update by the hundred thousand: Verilated, against the golden model."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from sat.rtl.config import FpTiming
from sat.rtl.fp import multiplier32
from sat.rtl.fp.formats import FP32
from sat.rtl.fp.multiplier32 import Multiplier32
from sat.rtl.verilog import emit
from sat.rtl.wuve import Wuve, wuve_latency
from sat.sim import fp_bulk
from sat.sim.golden.fp import canonical_nan32
from sat.sim.golden.update import Rates, sgd

pytestmark = pytest.mark.xdist_group("arithmetic")

MILLION = 1_000_000
CORNERS = [0, 1, 2, 0x3FFFFF, 0x400000, 0x7FFFFF, 0x800000, 0x800001, 0xFFFFFF, 0x1FFFFFFF]
CORNERS += [0x20000000, 0x3F000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x5F000000]
CORNERS += [0x7F000000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
CORNERS += [x | 0x80000000 for x in CORNERS]
LATENCY = wuve_latency(FpTiming())
RATE_NAMES = ("learning_rate", "momentum", "decay", "decay_pruned", "unscale")


def bits(x: float) -> int:
    """Return the bits of an FP32 number."""
    return int(np.float32(x).view(np.uint32))


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return FP32 bits of products, each rounded once by the processor."""
    with np.errstate(all="ignore"):
        return canonical_nan32((a.view(np.float32) * b.view(np.float32)).view(np.uint32))


def factors(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return FP32 pairs, most of them where products round, underflow or overflow."""
    a, b = (rng.integers(0, 1 << 32, count, dtype=np.uint32) for _ in range(2))
    kind = rng.integers(0, 8, count)
    mantissa = (b & 0x807FFFFF).astype(np.int64)

    def put(which: int, value: np.ndarray, into: np.ndarray) -> None:
        np.copyto(into, value.astype(np.uint32), where=kind == which)

    put(1, rng.choice(np.array(CORNERS, np.uint32), count), a)
    put(2, rng.choice(np.array(CORNERS, np.uint32), count), b)
    # Few bits in one mantissa or both: ties.
    put(6, a & 0xFFFFE000, a)
    field = (a >> 23 & 255).astype(np.int64)
    # The product's exponent around the smallest subnormal and normal numbers; around the largest.
    low = np.clip(127 - field + rng.integers(-30, 6, count), 0, 254) << 23
    put(3, mantissa | low, b)
    put(4, mantissa | np.clip(381 - field + rng.integers(-3, 4, count), 0, 254) << 23, b)
    put(6, mantissa & 0xFFFFF000 | low, b)
    # A subnormal factor.
    put(5, a & (0x807FFFFF >> rng.integers(0, 23, count)), a)
    put(7, rng.choice(np.array(CORNERS, np.uint32), count), a)
    put(7, rng.choice(np.array(CORNERS, np.uint32), count), b)
    # Half of the smallest subnormal and a little more, of which no bit is left in 48 bits: the
    # product of mantissas is 2**47 and less than 2**24 more, its exponent field -24.
    whole = (a & 0x7FFFFF | 0x800000).astype(np.int64)
    above = -(-(1 << 47) // whole)
    reach = (kind == 0) & (above < 1 << 24)
    exponent = rng.integers(1, 103, count)
    np.copyto(a, (a & 0x807FFFFF | exponent << 23).astype(np.uint32), where=reach)
    b_high = b.astype(np.int64) & 0x80000000
    np.copyto(b, (b_high | 103 - exponent << 23 | above & 0x7FFFFF).astype(np.uint32), where=reach)
    return a, b


def run_multiplier(a: np.ndarray, b: np.ndarray, text: str, stages: int = 3) -> np.ndarray:
    """Return what a Verilated multiplier gives, a pair a cycle."""
    return fp_bulk.run("multiplier32", a, b, text=text, stages=stages)


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_ten_million_products(stages):
    text = emit(Multiplier32(stages))
    for part in range(5):
        a, b = factors(np.random.default_rng([32, part]), 2 * MILLION)
        assert np.array_equal(run_multiplier(a, b, text, stages), multiply(a, b))


def test_products_of_all_corners():
    a, b = (x.ravel() for x in np.meshgrid(*2 * [np.array(CORNERS, np.uint32)]))
    assert np.array_equal(run_multiplier(a, b, emit(Multiplier32())), multiply(a, b))


@pytest.mark.parametrize(
    "right, wrong",
    [
        (
            'shift_right_sticky(m, integer, down, "lowered")',
            "integer >> down",
        ),  # bits lost below a subnormal
        ("rounded >= FP32.infinity", "rounded >= 2**32"),  # overflow without infinity
        ("(a.exponent | ~normal_a)", "a.exponent"),  # subnormals at half their value
        ("(zero_a & special_b)", "0"),  # 0 * infinity = infinity
    ],
)
def test_planted_faults_are_found(right, wrong):
    source = inspect.getsource(multiplier32)
    assert source.count(right) == 1
    planted: dict[str, object] = {"__name__": "planted"}
    exec(compile(source.replace(right, wrong), "planted", "exec"), planted)
    a, b = factors(np.random.default_rng(0), MILLION // 2)
    got = run_multiplier(a, b, emit(planted["Multiplier32"]()))
    assert not np.array_equal(got, multiply(a, b))


class Packed(wiring.Component):
    """A lane behind the two inputs and the output of an adder, for `sat.sim.fp_bulk`.

    Even cycles bring w and v, odd ones g and a word of control: bit 0 ``pruned``; bits 1 to 3, if
    not 0, say which rate to set to g (6: ``skip``). The lane takes its weight in the odd cycle; in
    the even one it computes with whatever is there, so it is full all the time. w' leaves
    `wuve_latency` cycles after the odd cycle, v' a cycle later.
    """

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.lane = lane = Wuve(FpTiming())
        odd, rates, skip = Signal(), Signal.like(lane.rates), Signal()
        w, v, v_out = (Signal(32, name=name) for name in ("w", "v", "v_out"))
        m.d.sync += [odd.eq(~odd), v_out.eq(lane.v_out)]
        with m.If(~odd):
            m.d.sync += [w.eq(self.a), v.eq(self.b)]
        with m.Else(), m.Switch(self.b[1:4]):
            for number, name in enumerate(RATE_NAMES, 1):
                with m.Case(number):
                    m.d.sync += rates[name].eq(self.a)
            with m.Case(6):
                m.d.sync += skip.eq(self.a)
        m.d.comb += [
            Cat(lane.w, lane.v, lane.g).eq(Cat(w, v, self.a)),
            lane.pruned.eq(self.b[0]),
            lane.rates.eq(rates),
            lane.skip.eq(skip),
            self.total.eq(Mux(odd ^ (LATENCY % 2), lane.w_out, v_out)),
        ]
        return m


@functools.cache
def packed() -> str:
    return emit(Packed())


def run_lane(
    w: np.ndarray, v: np.ndarray, g: np.ndarray, pruned: np.ndarray, rates: Rates, skip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return bits of w' and v', as the Verilated lane gives them."""
    settings = [getattr(rates, name) for name in RATE_NAMES] + [int(skip)]
    ahead, behind = len(settings), LATENCY // 2 + 2
    a, b = (np.zeros((ahead + len(w) + behind, 2), np.uint32) for _ in range(2))
    a[:ahead, 1], b[:ahead, 1] = settings, 2 * np.arange(1, ahead + 1)
    weights = slice(ahead, ahead + len(w))
    a[weights] = np.stack([w, g], axis=1)
    b[weights] = np.stack([v, pruned], axis=1)
    # With a latency of 1, the output of cycle x + 1 comes back beside the input of cycle x.
    total = fp_bulk.run("adder", a.ravel(), b.ravel(), text=packed(), stages=1)
    first = 2 * ahead + LATENCY
    out = total[first : first + 2 * len(w)].reshape(-1, 2)
    return out[:, 0], out[:, 1]


def numbers(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return FP32 bits: moderate numbers, corners, anything."""
    moderate = rng.standard_normal(count).astype(np.float32).view(np.uint32)
    kind = rng.random(count)
    anything = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    corners = rng.choice(np.array(CORNERS, np.uint32), count)
    return np.select([kind < 0.6, kind < 0.8], [moderate, corners], anything).astype(np.uint32)


def want_bits(
    w: np.ndarray, v: np.ndarray, g: np.ndarray, pruned: np.ndarray, rates: Rates
) -> list[np.ndarray]:
    """Return bits of w' and v' of the golden model."""
    made = sgd(*(x.view(np.float32) for x in (w, v, g)), pruned.astype(bool), rates)
    return [x.view(np.uint32) for x in made]


SETTINGS = [
    Rates(bits(0.1), bits(0.9), bits(5e-4), bits(5e-4 + 2e-4), bits(2.0**-16)),
    Rates(bits(0.1), bits(0.9), 0, bits(2e-4), bits(1.0)),  # SR-STE without weight decay
    Rates(bits(0.1), 0, bits(1e-2), 0, bits(1 / 3)),
    Rates(bits(0.1), bits(-0.0), bits(-0.0), bits(-0.0), bits(1.0)),
    Rates(bits(1.0), bits(1.0), bits(1.0), bits(-1.0), bits(1.0)),  # sums that cancel
    Rates(bits(1e-38), bits(2.0**-20), bits(1e-30), bits(1e-42), bits(1e-38)),  # subnormals
    Rates(bits(3e38), bits(3e38), bits(3e38), bits(3e38), bits(3e38)),  # overflow
    Rates(FP32.infinity, bits(0.9), FP32.canonical_nan, 0x7F800001, bits(1.0)),
    Rates(0, bits(0.9), bits(1e-2), bits(1e-2), 0),
]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_two_hundred_thousand_updates(number):
    rng = np.random.default_rng([7, number])
    w, v, g = (numbers(rng, 200_000) for _ in range(3))
    pruned = rng.integers(0, 2, len(w), dtype=np.uint32)
    got = run_lane(w, v, g, pruned, SETTINGS[number], skip=False)
    want = want_bits(w, v, g, pruned, SETTINGS[number])
    for name, x, y in zip("wv", got, want, strict=True):
        assert np.array_equal(x, y), f"{name}': {np.count_nonzero(x != y)} wrong"
    assert np.count_nonzero(got[1] != v) > 150_000


def test_random_rates():
    for seed in range(100):
        rng = np.random.default_rng([8, seed])
        rates = Rates(*(int(x) for x in numbers(rng, 5)))
        w, v, g = (numbers(rng, 2_000) for _ in range(3))
        pruned = rng.integers(0, 2, len(w), dtype=np.uint32)
        got = run_lane(w, v, g, pruned, rates, skip=False)
        assert np.array_equal(got, want_bits(w, v, g, pruned, rates)), rates


def test_skip_returns_every_bit():
    rng = np.random.default_rng(9)
    w, v, g = (numbers(rng, 100_000) for _ in range(3))
    got = run_lane(w, v, g, np.ones_like(w), SETTINGS[0], skip=True)
    assert np.array_equal(got, [w, v])
    # Signalling NaNs among them: arithmetic would have quietened them.
    assert np.count_nonzero(w == 0x7F800001) > 100


def test_a_weight_a_cycle_on_the_simulator_of_amaranth():
    rng = np.random.default_rng(10)
    count = 400
    w, v, g = (numbers(rng, count) for _ in range(3))
    pruned = rng.integers(0, 2, count, dtype=np.uint32)
    lane = Wuve(FpTiming())
    got = []

    async def bench(ctx):
        ctx.set(lane.rates, {name: getattr(SETTINGS[0], name) for name in RATE_NAMES})
        for cycle in range(count + LATENCY):
            if cycle >= LATENCY:
                got.append((ctx.get(lane.w_out), ctx.get(lane.v_out)))
            if cycle < count:
                for port, values in ((lane.w, w), (lane.v, v), (lane.g, g), (lane.pruned, pruned)):
                    ctx.set(port, int(values[cycle]))
            await ctx.tick()

    sim = Simulator(lane)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert np.array_equal(np.array(got, np.uint32).T, want_bits(w, v, g, pruned, SETTINGS[0]))
