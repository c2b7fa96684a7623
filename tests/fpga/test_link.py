"""The link: its frames, its gateware against them, and what noise does to it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat.fpga.link.client import Link, LinkError
from sat.fpga.link.protocol import (
    FLAG,
    MOST_BYTES,
    FrameReader,
    Greeting,
    LinkStatus,
    Operation,
    Request,
    Response,
    frame,
)
from sat.fpga.link.uart import UartReceiver
from sat.fpga.simulation import SimulatedBoard
from sat.rtl.verilog import emit

sys.path.insert(0, str(Path(__file__).parent))
from link_bench import BAUD, CLOCK, MEMORY_BYTES, REGISTERS, LinkBench, Noise

BODIES = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4)


@given(BODIES, st.binary(max_size=10))
def test_frames_come_back_after_any_noise(bodies, noise):
    reader = FrameReader()
    sent = b"".join(map(frame, bodies))
    list(reader.read(noise))
    assert list(reader.read(bytes([FLAG]) + sent)) == bodies


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_damaged_frame_is_dropped_and_the_next_read(body, data):
    sent = bytearray(frame(body))
    place = data.draw(st.integers(1, len(sent) - 2))
    sent[place] ^= 1 << data.draw(st.integers(0, 7))
    reader = FrameReader()
    found = list(reader.read(bytes(sent) + frame(b"next")))
    assert found[-1] == b"next"
    assert body not in found[:-1]


def test_responses_are_told_from_noise():
    assert Response.decode(b"abc") is None
    assert Response.decode(bytes([1, Operation.READ, 0, 0])) is None  # a request's own echo
    made = Response(7, Operation.READ, LinkStatus.DONE, b"data")
    assert Response.decode(made.encode()) == made


@pytest.mark.parametrize("baud", [0, -1, CLOCK / 3, CLOCK])
def test_a_baud_rate_that_the_clock_cannot_have_is_refused(baud):
    with pytest.raises(ValueError, match="baud=.*quarter of the clock"):
        UartReceiver(CLOCK, baud)


@pytest.fixture(scope="module")
def verilog():
    return emit(LinkBench())


@pytest.fixture
def board(verilog):
    made = SimulatedBoard(verilog, CLOCK / BAUD)
    yield made
    made.close()


def link_to(board, port=None, **options) -> Link:
    """Return a link whose patience is counted in cycles of the simulated board."""
    return Link(port or board, patience=100_000, clock=lambda: board.now, **options)


def exchange(board, request: bytes) -> Response | None:
    """Send a body's frame; return the response, or None if none comes."""
    board.write(frame(request))
    board.run(6000)
    bodies = list(FrameReader().read(board.read(4096)))
    return Response.decode(bodies[0]) if bodies else None


def test_memory_and_registers(board):
    link = link_to(board)
    assert link.hello() == Greeting(MEMORY_BYTES, bytes(8))
    data = random.Random(0).randbytes(MEMORY_BYTES)
    link.write(0, data)
    assert link.read(0, MEMORY_BYTES) == data
    assert link.read(400, 12) == data[400:412]
    assert link.read_register(0) == 0
    link.write_register(4, 1)
    assert link.read_register(12) == 1
    assert link.sent_again == link.damaged == board.framing_errors == 0


def test_a_host_too_hasty_for_the_link_does_not_flood_it(board):
    """A frame of 1 KiB takes 41,000 cycles; its answer is not waited for so long at first."""
    link = Link(board, patience=4000, clock=lambda: board.now)
    link.hello()
    data = random.Random(1).randbytes(4 * MOST_BYTES)
    link.write(0, data)
    assert link.read(0, len(data)) == data
    assert 0 < link.sent_again < 12


def test_every_byte_passes(board):
    """FLAGs and ESCAPEs in data, header and CRC."""
    link = link_to(board)
    link.hello()
    each = bytes(range(256)) + bytes([FLAG, FLAG - 1] * 128)
    for at in (0x7C, 0x7D00, 0x7E0):
        if at + len(each) <= MEMORY_BYTES:
            link.write(at, each)
            assert link.read(at, len(each)) == each


@pytest.mark.parametrize(
    "request_, status",
    [
        (Request(1, 9), LinkStatus.BAD_OPERATION),
        (Request(1, Operation.READ, 0, 6), LinkStatus.BAD_COUNT),
        (Request(1, Operation.READ, 0, MOST_BYTES + 4), LinkStatus.BAD_COUNT),
        (Request(1, Operation.READ, 0, 4, b"data"), LinkStatus.BAD_COUNT),
        (Request(1, Operation.WRITE, 0, 8, b"data"), LinkStatus.BAD_COUNT),
        (Request(1, Operation.WRITE, 0, 0, b"data"), LinkStatus.BAD_COUNT),
        (Request(1, Operation.READ_REGISTER, 0, 8), LinkStatus.BAD_COUNT),
        (Request(1, Operation.READ, 2, 4), LinkStatus.BAD_ADDRESS),
        (Request(1, Operation.READ, MEMORY_BYTES - 4, 8), LinkStatus.BAD_ADDRESS),
        (Request(1, Operation.WRITE, 2**32 - 4, 4, b"data"), LinkStatus.BAD_ADDRESS),
        (Request(1, Operation.READ_REGISTER, REGISTERS, 4), LinkStatus.BAD_ADDRESS),
        (Request(1, Operation.WRITE_REGISTER, REGISTERS, 4, b"data"), LinkStatus.BAD_ADDRESS),
    ],
)
def test_bad_requests_are_answered_and_change_nothing(board, request_, status):
    answer = exchange(board, request_.encode())
    assert answer == Response(1, request_.operation, status)
    link = link_to(board)
    link.hello()
    assert link.read(0, MEMORY_BYTES) == bytes(MEMORY_BYTES)
    assert link.read_register(0) == 0


@pytest.mark.parametrize("operation", [Operation.READ, Operation.WRITE])
def test_a_request_of_no_bytes_is_answered_and_changes_nothing(board, operation):
    answer = exchange(board, Request(1, operation, 8, 0).encode())
    assert answer == Response(1, operation, LinkStatus.DONE)
    link = link_to(board)
    link.hello()
    assert link.read(0, MEMORY_BYTES) == bytes(MEMORY_BYTES)


def test_a_write_sent_twice_is_done_once(board):
    write = Request(5, Operation.WRITE_REGISTER, 0, 4, b"data").encode()
    first, second = exchange(board, write), exchange(board, write)
    assert first == second == Response(5, Operation.WRITE_REGISTER, LinkStatus.DONE)
    read = Request(6, Operation.READ_REGISTER, 0, 4).encode()
    assert exchange(board, read).data == (1).to_bytes(4, "little")
    assert exchange(board, read).data == (1).to_bytes(4, "little")


def test_spikes_breaks_and_a_cut_in_the_middle_do_no_harm(board):
    link = link_to(board)
    link.hello()
    link.write(0, b"kept")
    board.hold(0, 1)  # shorter than half a bit
    board.hold(1, 50)
    assert link.read(0, 4) == b"kept"
    board.hold(0, 500)  # a break
    assert link.read(0, 4) == b"kept"
    # A frame that ends in the middle, and then another host.
    board.write(frame(Request(9, Operation.WRITE, 0, 8, b"overhead").encode())[:11])
    board.run(2000)
    again = link_to(board)
    again.hello()
    assert again.read(0, 8) == b"kept" + bytes(4)
    board.reset()
    again.hello()
    assert again.read(0, 4) == b"kept"


class Silent:
    """A port with nothing behind it."""

    def read(self, size):
        return b""

    def write(self, data):
        return len(data)


class Echo(Silent):
    """A port that says what it hears, as a modem does."""

    def __init__(self):
        self.heard = b""

    def write(self, data):
        self.heard += data
        return len(data)

    def read(self, size):
        said, self.heard = self.heard, b""
        return said


@pytest.mark.parametrize("port", [Silent(), Echo()])
def test_what_is_no_board_is_told_soon(port):
    with pytest.raises(LinkError, match=r"no SAT board answers: HELLO.*no answer to 2 tries"):
        Link(port, patience=0.05, tries=2).hello()


def test_addresses_between_words_are_refused_before_they_are_sent():
    link = Link(Silent())
    with pytest.raises(ValueError, match="address=2, size=4: must be multiples of 4"):
        link.read(2, 4)
    with pytest.raises(ValueError, match="size=3"):
        link.write(0, b"abc")


def transfers(board, count: int, rate: float, seed: int) -> Noise:
    """Write and read at random through noise; everything that arrives must be right."""
    noise = Noise(board, rate, seed)
    link = link_to(board, noise, tries=50)
    link.hello()
    chance = random.Random(seed)
    model, writes = bytearray(MEMORY_BYTES), 0
    # In simulation a read without bytes is a timeout.
    for _ in range(count):
        size = 4 * chance.choice([1, 1, 2, 4, 8])
        at = 4 * chance.randrange((MEMORY_BYTES - size) // 4)
        kind = chance.randrange(8)
        if kind == 0:
            link.write_register(0, 1)
            writes += 1
        elif kind < 4:
            model[at : at + size] = data = chance.randbytes(size)
            link.write(at, data)
        else:
            assert link.read(at, size) == model[at : at + size]
    assert link.read_register(0) == writes
    return noise


def test_transfers_through_noise_arrive_intact(board):
    noise = transfers(board, 300, 1e-3, 0)
    assert noise.hits > 10


@pytest.mark.long
def test_ten_thousand_transfers_through_noise(board):
    noise = transfers(board, 10_000, 1e-3, 1)
    assert noise.hits > 500
