"""Streaming selection by the hundred thousand: the Verilated lane against the golden one."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import sore as rtl_sore
from sat.rtl.sore import SoreLane
from sat.rtl.verilog import emit
from sat.sim import fp_bulk
from sat.sim.golden import sore

pytestmark = pytest.mark.xdist_group("arithmetic")

# Zeros, subnormals, neighbours, the largest, infinities, NaNs: all of both signs.
CORNERS = [0, 1, 2, 0x3FF, 0x400, 0x3C00, 0x3C01, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0x7FFF]
CORNERS += [x | 0x8000 for x in CORNERS]


def patterns(max_m: int) -> list[tuple[int, int]]:
    """Return every N:M, as (n, log2 of M), smaller M first."""
    sizes = range(max_m.bit_length())
    return [(n, log2_m) for log2_m in sizes for n in range(1, (1 << log2_m) + 1)]


class Packed(wiring.Component):
    """A lane behind the two inputs and the output of an adder, for `sat.sim.fp_bulk`."""

    def __init__(self, lane: SoreLane):
        self.lane = lane
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.lane = lane = self.lane
        m.d.comb += [
            Cat(lane.value, lane.valid).eq(self.a),
            Cat(lane.n, lane.log2_m).eq(self.b),
            self.total.eq(Cat(lane.out_value, lane.out_index, lane.out_valid, lane.kept)),
        ]
        return m


@functools.cache
def packed(max_m: int, stages: int = 1) -> str:
    return emit(Packed(SoreLane(max_m, stages)))


def elements(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return FP16 bits: anything, corners, and many equal magnitudes."""
    anything = rng.integers(0, 1 << 16, shape)
    few = rng.integers(0x3BFF, 0x3C02, shape) | 0x8000 * rng.integers(0, 2, shape)
    kind = rng.random(shape)
    chosen = np.select([kind < 0.3, kind < 0.6], [anything, few], rng.choice(CORNERS, shape))
    return chosen.astype(np.uint16)


def expected(groups: np.ndarray, n: int, ends: np.ndarray, cycles: int, stages: int) -> np.ndarray:
    """Return what a lane shows in each cycle.

    Parameters
    ----------
    groups : (count, M) uint16
    n : int
    ends : (count,) int
        Cycle of each group's last element.
    cycles, stages : int

    Returns
    -------
    (3, cycles) int64
        Valid; a value and, above it, its index; kept.
    """
    table = np.zeros((3, cycles), np.int64)
    halves = groups.view(np.float16)
    values, indices = sore.select(halves, n, groups.shape[1], axis=1)
    at = ends[:, None] + stages + np.arange(n)
    table[0, at] = 1
    table[1, at] = values.view(np.uint16) | indices.astype(np.int64) << 16
    kept = sore.mask(halves, n, groups.shape[1], axis=1)
    table[2, ends[:, None] + stages + np.arange(groups.shape[1])] = kept
    return table


def stream(
    max_m: int, busy: float, per_pattern: int, stages: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs a and b of `Packed`, and what must come out, over all patterns in turn."""
    rng = np.random.default_rng([max_m, int(10 * busy)])
    arriving, steering, sets = [], [], []
    start = 0
    for n, log2_m in patterns(max_m):
        m = 1 << log2_m
        groups = elements(rng, (per_pattern // m, m))
        when = np.flatnonzero(rng.random(4 * groups.size) < busy)[: groups.size]
        cycles = int(when[-1]) + 1
        a = rng.integers(0, 1 << 16, cycles)  # what stands at the input in a gap means nothing
        a[when] = groups.ravel().astype(np.int64) | 1 << 16
        arriving.append(a)
        steering.append(np.full(cycles, n | log2_m << 5))
        sets.append((groups, n, start + when[m - 1 :: m]))
        start += cycles
    arriving.append(np.zeros(max_m + stages - 1, np.int64))
    steering.append(steering[-1][-1].repeat(max_m + stages - 1))
    a, b = (np.concatenate(x).astype(np.uint32) for x in (arriving, steering))
    return a, b, sum(expected(*part, len(a) + 1, stages) for part in sets)


def observed(text: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return what the Verilated lane shows in each cycle, as `expected` has it."""
    total = np.zeros(len(a) + 1, np.int64)
    # With a latency of 1, what the lane shows in cycle x + 1 comes back beside its input of x.
    total[1:] = fp_bulk.run("adder", a, b, text=text, stages=1)
    valid = total >> 20 & 1
    return np.stack([valid, np.where(valid, total & 0xFFFFF, 0), total >> 21])


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("max_m", [2, 4, 8, 16])
@pytest.mark.parametrize("busy", [1.0, 0.6])
def test_every_pattern(max_m, busy, stages):
    """Groups back to back or with gaps; the next pattern follows without a pause."""
    a, b, want = stream(max_m, busy, 20_000, stages)
    stored = sum((20_000 >> log2_m) * n for n, log2_m in patterns(max_m))
    assert want[0].sum() == want[2].sum() == stored and want.max(axis=1)[0] == 1
    got = observed(packed(max_m, stages), a, b)
    wrong = np.flatnonzero((got != want).any(axis=0))
    assert not wrong.size, f"{wrong.size} cycles differ, the first is {wrong[0]}"


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("keys[i] >= key", "keys[i] > key"),  # equal magnitudes: the later one would win
        ("is_nan.replicate(15)", "0"),  # NaNs ordered by their payload
        ("beaten[i] + ~wins[i]", "beaten[i]"),  # what comes later would beat nothing
    ],
)
def test_planted_faults_are_found(right, wrong):
    source = inspect.getsource(rtl_sore)
    assert source.count(right) == 1
    planted: dict[str, object] = {"__name__": "planted"}
    exec(compile(source.replace(right, wrong), "planted", "exec"), planted)
    a, b, want = stream(4, 1.0, 2_000)
    assert np.array_equal(observed(packed(4), a, b), want)
    text = emit(Packed(planted["SoreLane"](4)))
    assert not np.array_equal(observed(text, a, b), want)
