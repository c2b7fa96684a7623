"""Operand banks against words in a dict, for each way in which a bank is cut."""

from __future__ import annotations

import pytest
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.rtl.buffers import OperandBuffer
from sat.rtl.layouts import bank_write_layout

WORDS, BANKS, LANES, BITS = 16, 3, 4, 5


def run(buffer: OperandBuffer, steps: list[tuple[dict, list[int]]]) -> list[list[list[int]]]:
    """Do a write and a read of each bank a cycle; return the lanes that each bank answered."""
    answers = []

    async def drive(ctx):
        for write, addresses in steps:
            ctx.set(buffer.write, write)
            for bank, address in enumerate(addresses):
                ctx.set(buffer.address[bank], address)
            await ctx.tick()
            answers.append([[ctx.get(lane) for lane in bank] for bank in buffer.data])

    sim = Simulator(buffer)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
    return answers


@pytest.mark.parametrize("shown", [1, 2, LANES])
@pytest.mark.parametrize("apart", [False, True])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_read_gives_what_was_written_last(shown, apart, data):
    """Writes of a part of a word, all of it or lane by lane, into any banks."""
    layout = bank_write_layout(BANKS, WORDS, 1, LANES, BITS)
    buffer = OperandBuffer(layout, WORDS, 1 if apart else shown, shown=shown)
    lane = st.integers(0, (1 << BITS) - 1)
    steps, wants = [], []
    held = [[[0] * LANES for _ in range(WORDS)] for _ in range(BANKS)]
    for _ in range(40):
        part = data.draw(st.integers(0, LANES // shown - 1)) * shown
        mask = (1 << shown) - 1
        if apart:
            mask = data.draw(st.integers(0, mask))
        values = data.draw(st.lists(lane, min_size=shown, max_size=shown)) * (LANES // shown)
        banks, word = data.draw(st.integers(0, 7)), data.draw(st.integers(0, WORDS - 1))
        # Not what is written in the same cycle: `bank_memory`.
        others = [at for at in range(WORDS * LANES // shown) if at * shown // LANES != word]
        reads = [data.draw(st.sampled_from(others)) for _ in range(BANKS)]
        write = {"banks": banks, "lanes": mask << part, "address": word, "data": values}
        steps.append((write, reads))
        wants.append(
            [
                held[bank][at * shown // LANES][at * shown % LANES :][:shown]
                for bank, at in enumerate(reads)
            ]
        )
        for bank in range(BANKS):
            for at in range(part, part + shown):
                if banks >> bank & 1 and mask >> (at - part) & 1:
                    held[bank][word][at] = values[at]
    assert run(buffer, steps) == wants
