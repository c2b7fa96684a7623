"""The host's image of a board's memory: what a program uses is there, and little else is sent."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.fpga.link.client import LinkError
from sat.fpga.link.protocol import Greeting, MemoryKind
from sat.fpga.machine import BoardMachine
from sat.rtl import csr
from sat.rtl.isa import Status
from tests.fpga.board_bench import CONFIG

SIZE = 1 << 9


class Board:
    """A board without a device: a memory of its own, and registers that say a program has ended."""

    gap_words = 4

    def __init__(self, size=SIZE, kind=MemoryKind.BLOCK_RAM):
        self.memory = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        self.kind, self.fails = kind, False

    def hello(self):
        build = bytes.fromhex(CONFIG.digest)[:8]
        return Greeting(len(self.memory), build, memory=self.kind)

    def read_register(self, offset):
        if offset == csr.REGISTERS["ID"].offset:
            return csr.ID_VALUE
        return Status.DONE.value if offset == csr.REGISTERS["STATUS"].offset else 0

    def write_register(self, offset, value):
        pass

    def write(self, address, data):
        if self.fails:
            raise LinkError("cut")
        self.memory[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def read(self, address, size):
        return self.memory[address : address + size].tobytes()


spans = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: range(*sorted(pair))),
    max_size=5,
)
steps = st.lists(st.tuples(spans, spans, st.booleans(), st.integers(0, 2**32 - 1)), max_size=6)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_what_a_program_uses_is_there_and_what_it_wrote_comes_back(steps):
    board = Board()
    machine = BoardMachine(board, CONFIG)
    for used, written, fails, seed in steps:
        rng = np.random.default_rng(seed)
        places = rng.integers(0, SIZE, 20)
        machine.memory[places] = rng.integers(0, 256, 20, np.uint8)
        board.fails = fails
        before, sent = machine.memory.copy(), machine.bytes_sent
        try:
            machine.run(0, 1, used, written)
        except LinkError:
            continue
        for span in used:
            part = slice(span.start, span.stop)
            assert np.array_equal(board.memory[part], before[part])
        for span in written:
            part = slice(span.start, span.stop)
            assert np.array_equal(machine.memory[part], board.memory[part])
        # Nothing that is there already is sent again.
        sent = machine.bytes_sent
        machine.run(0, 1, used, [])
        assert machine.bytes_sent == sent
    board.fails = False


def test_of_a_large_memory_only_what_is_used_is_looked_at():
    """Of 32 MB a program uses 8 KB: what it takes on the host is of that order."""
    machine = BoardMachine(Board(32 << 20, MemoryKind.SDRAM), CONFIG)
    machine.memory[0], machine.memory[(32 << 20) - 1] = 1, 2
    tracemalloc.start()
    machine.run(0, 1, [range(4096), range((32 << 20) - 4096, 32 << 20)], [range(4096)])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert machine.bytes_sent == 8192 and most < 1 << 20


def test_another_memory_is_told_from_the_greeting():
    greeting = Greeting(1 << 20, bytes(8), memory=MemoryKind.SDRAM)
    raw = greeting.encode()
    assert Greeting.decode(raw) == greeting
    kind_at = len(raw) - 3
    assert raw[kind_at] == MemoryKind.SDRAM
    unknown = raw[:kind_at] + b"\x07" + raw[kind_at + 1 :]
    assert Greeting.decode(unknown) is None


def test_spans_may_touch_and_repeat():
    board = Board()
    machine = BoardMachine(board, CONFIG)
    machine.run(0, 1, [range(8, 16), range(0, 9), range(16, 16), range(8, 16)], [])
    assert machine.bytes_sent == 16
    assert not board.memory[:16].any() and board.memory[16:].any()


@pytest.mark.parametrize("address", [0, 100])
def test_what_lies_between_used_spans_is_left_alone(address):
    board = Board()
    kept = board.memory.copy()
    machine = BoardMachine(board, CONFIG)
    machine.run(0, 1, [range(address, address + 4), range(400, 404)], [])
    changed = np.flatnonzero(board.memory != kept)
    assert set(changed) <= {*range(address, address + 4), *range(400, 404)}
