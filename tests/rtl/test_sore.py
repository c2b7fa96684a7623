"""SORE lanes: the golden selection, the documented cycles."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.rtl.sore import SoreLane
from sat.sim.golden import sore

SPECIALS = [0x0000, 0x8000, 0x3C00, 0xBC00, 0x0001, 0x8001, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01]
"""±0, ±1, ±least, largest, ±infinity, two NaNs."""


def run_lane(lane: SoreLane, n: int, log2_m: int, values: np.ndarray, gaps: list[int]):
    """Feed a stream; return (cycle, value, index) of what comes out, entries, kept by cycle."""
    entered: list[int] = []
    out: list[tuple[int, int, int]] = []
    kept: dict[int, int] = {}

    async def drive(ctx):
        ctx.set(lane.n, n)
        ctx.set(lane.log2_m, log2_m)
        at, wait = 0, gaps[0]
        for cycle in range(len(values) * (max(gaps) + 1) + 3 * lane.max_m + 3 + lane.stages):
            send = at < len(values) and wait == 0
            ctx.set(lane.valid, send)
            if send:
                ctx.set(lane.value, int(values[at]))
                entered.append(cycle)
                at += 1
                wait = gaps[at % len(gaps)]
            elif wait:
                wait -= 1
            if ctx.get(lane.out_valid):
                out.append((cycle, ctx.get(lane.out_value), ctx.get(lane.out_index)))
            kept[cycle] = ctx.get(lane.kept)
            await ctx.tick()

    sim = Simulator(lane)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    return entered, out, kept


def check_lane(lane: SoreLane, n: int, log2_m: int, values: np.ndarray, gaps: list[int]) -> None:
    m = 1 << log2_m
    entered, out, kept = run_lane(lane, n, log2_m, values, gaps)
    halves = values.view(np.float16)
    want_values, want_indices = sore.select(halves, n, m)
    mask = sore.mask(halves, n, m)
    # The k-th kept element of a group comes `stages` + k cycles after the group's last.
    cycles = [
        entered[group * m + m - 1] + lane.stages + k
        for group in range(len(values) // m)
        for k in range(n)
    ]
    assert [entry[0] for entry in out] == cycles
    assert [entry[1] for entry in out] == want_values.view(np.uint16).tolist()
    assert [entry[2] for entry in out] == want_indices.tolist()
    for element, keep in enumerate(mask):
        group, place = divmod(element, m)
        assert kept[entered[group * m + m - 1] + lane.stages + place] == keep


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("max_m", [2, 4, 8, 16])
def test_every_pattern(max_m, stages):
    """Every N:M up to the largest, full throughput, ties and specials in plenty."""
    rng = np.random.default_rng(max_m)
    for log2_m in range(max_m.bit_length()):
        for n in range(1, (1 << log2_m) + 1):
            count = (1 << log2_m) * 5
            values = np.where(
                rng.random(count) < 0.5,
                rng.choice(np.array(SPECIALS, np.uint16), count),
                rng.integers(0, 1 << 16, count, dtype=np.uint16),
            ).astype(np.uint16)
            check_lane(SoreLane(max_m, stages), n, log2_m, values, [0])


@settings(max_examples=40)
@given(st.data())
def test_gaps_between_elements(data):
    log2_m = data.draw(st.integers(0, 3))
    n = data.draw(st.integers(1, 1 << log2_m))
    element = st.one_of(st.sampled_from(SPECIALS), st.integers(0, 0xFFFF))
    groups = data.draw(st.integers(1, 4))
    size = groups << log2_m
    values = np.array(data.draw(st.lists(element, min_size=size, max_size=size)), np.uint16)
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=7))
    check_lane(SoreLane(8, data.draw(st.integers(1, 2))), n, log2_m, values, gaps)


@pytest.mark.parametrize("stages", [1, 2])
def test_clear_forgets_an_incomplete_group(stages):
    """After a program that was stopped within a group, the next starts with a fresh one."""
    lane = SoreLane(8, stages)
    seen = []

    async def drive(ctx):
        ctx.set(lane.n, 1)
        ctx.set(lane.log2_m, 2)
        ctx.set(lane.valid, 1)
        ctx.set(lane.value, 0x7BFF)
        await ctx.tick().repeat(3)
        ctx.set(lane.valid, 0)
        ctx.set(lane.clear, 1)
        await ctx.tick()
        ctx.set(lane.clear, 0)
        ctx.set(lane.valid, 1)
        for value in (1, 2, 4, 3):
            ctx.set(lane.value, value)
            await ctx.tick()
        ctx.set(lane.valid, 0)
        for _ in range(8):
            if ctx.get(lane.out_valid):
                seen.append((ctx.get(lane.out_value), ctx.get(lane.out_index)))
            await ctx.tick()

    sim = Simulator(lane)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    assert seen == [(4, 2)]
