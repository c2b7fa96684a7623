"""Bursts, queues and semaphores: their contracts, in Amaranth's simulator."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator
from hypothesis import given
from hypothesis import strategies as st

from sat.dataflow import cycles
from sat.rtl.axi import BOUNDARY_BYTES
from sat.rtl.bursts import BurstWalker
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.semaphores import Semaphores
from sat.rtl.streams import Queue

AXI = AxiConfig(data_bits=64, burst_beats=16)
ROWS = st.tuples(
    st.integers(0, 9000).map(lambda n: 4 * n),
    st.integers(0, 500).map(lambda n: 4 * n),
    st.integers(1, 5),
    st.integers(1, 700),
)


def bursts(address: int, pitch: int, rows: int, row_bytes: int) -> list[tuple[int, int, bool]]:
    """Return address, beats and ``last`` of the bursts that the cycle model sees in rows."""
    config = SatConfig(axi=AXI)
    found = [
        burst
        for row in range(rows)
        for burst in cycles.bursts(address + row * pitch, row_bytes, config)
    ]
    return [(at, beats, n == len(found)) for n, (at, beats) in enumerate(found, 1)]


def simulate(design, testbench) -> None:
    """Run a testbench to its end."""
    sim = Simulator(design)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()


@given(ROWS)
def test_bursts_cover_every_row_and_cross_nothing(case):
    address, pitch, rows, row_bytes = case
    beat = AXI.beat_bytes
    covered = []
    for first, beats, _ in bursts(address, pitch, rows, row_bytes):
        assert 1 <= beats <= AXI.burst_beats and first % beat == 0
        end = first + beats * beat
        assert first // BOUNDARY_BYTES == (end - 1) // BOUNDARY_BYTES
        covered += range(first // beat, end // beat)
    wanted = []
    for row in range(rows):
        first = address + row * pitch
        wanted += range(first // beat, (first + row_bytes - 1) // beat + 1)
    assert covered == wanted


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0, 1 << 32))
def test_walker_gives_the_same_bursts(cases, seed):
    rng = random.Random(seed)
    walker = BurstWalker(AXI)
    wanted = [burst for case in cases for burst in bursts(*case)]
    found = []

    async def testbench(ctx):
        waiting = list(cases)
        while len(found) < len(wanted):
            ctx.set(walker.i.valid, bool(waiting))
            if waiting:
                names = ("address", "pitch", "rows", "row_bytes")
                ctx.set(walker.i.payload, dict(zip(names, waiting[0], strict=True)))
            ready = rng.random() < 0.7
            ctx.set(walker.o.ready, ready)
            if waiting and ctx.get(walker.i.ready):
                waiting.pop(0)
            if ready and ctx.get(walker.o.valid):
                got = ctx.get(walker.o.payload)
                found.append((got.address, got.beats, bool(got.last)))
            await ctx.tick()

    simulate(walker, testbench)
    assert found == wanted


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_queue_keeps_order_and_loses_nothing(depth, head):
    rng = random.Random(depth)
    queue = Queue(8, depth, head)

    async def testbench(ctx):
        inside, sent = [], 0
        for _ in range(500):
            put, take = rng.random() < 0.6, rng.random() < 0.5
            ctx.set(queue.i.valid, put)
            ctx.set(queue.i.payload, sent % 256)
            ctx.set(queue.o.ready, take)
            assert ctx.get(queue.level) == len(inside)
            assert ctx.get(queue.i.ready) == (len(inside) < depth)
            assert ctx.get(queue.o.valid) == bool(inside)
            room = len(inside) < depth
            if inside and take:
                assert ctx.get(queue.o.payload) == inside.pop(0)
            if put and room:
                inside.append(sent % 256)
                sent += 1
            await ctx.tick()
        assert sent > 100

    simulate(queue, testbench)
    with pytest.raises(ValueError, match="depth=0"):
        Queue(8, 0)


def test_semaphores_count_and_gates_go_in_order():
    semaphores = Semaphores(3, 2)
    rng = random.Random(1)

    async def testbench(ctx):
        counts = [0] * 16
        for _ in range(400):
            raised = [rng.getrandbits(16) & rng.getrandbits(16) for _ in range(2)]
            wants = [1 << rng.randrange(16) | 1 << rng.randrange(16) for _ in range(3)]
            offered = [rng.random() < 0.8 for _ in range(3)]
            for r in range(2):
                ctx.set(semaphores.raise_mask[r], raised[r])
            claimed = 0
            takes = []
            for g in range(3):
                ctx.set(semaphores.want[g], wants[g])
                ctx.set(semaphores.offered[g], offered[g])
                bits = [n for n in range(16) if wants[g] >> n & 1]
                could = offered[g] and all(counts[n] for n in bits)
                takes.append(could and not wants[g] & claimed)
                if could:
                    claimed |= wants[g]
            for g in range(3):
                assert ctx.get(semaphores.open[g]) == takes[g]
            for n in range(16):
                counts[n] += sum(mask >> n & 1 for mask in raised)
                counts[n] -= sum(takes[g] and wants[g] >> n & 1 for g in range(3))
            await ctx.tick()
            assert ctx.get(semaphores.overflow) == 0

    simulate(semaphores, testbench)


def test_semaphore_overflow_is_reported():
    semaphores = Semaphores(1, 2)

    async def testbench(ctx):
        ctx.set(semaphores.raise_mask[0], 1 << 5)
        ctx.set(semaphores.raise_mask[1], 1 << 5)
        for cycle in range(130):
            assert ctx.get(semaphores.overflow) == (cycle > 127)
            await ctx.tick()

    simulate(semaphores, testbench)
