"""The device behind PCIe: the driver's files, and a Verilated card that behaves as behind them."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from amaranth import *
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

import sat
from sat.cli import main
from sat.dataflow.cycles import predict
from sat.dataflow.products import Product
from sat.devices.xdma import XdmaDevice
from sat.errors import DeviceError
from sat.fpga.board import build_of
from sat.fpga.card import GREETING_OFFSET, Greeter
from sat.fpga.link.client import LinkError
from sat.fpga.link.protocol import Greeting, MemoryKind
from sat.fpga.link.xdma import CardFiles, XdmaLink
from sat.fpga.simulated_card import SimulatedCard
from sat.rtl import csr
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.golden import stce
from sat.sim.memory import MemoryTiming
from tests.fpga.products import operands, trained

CONFIG = SatConfig(
    rows=2, cols=2, max_n=4, a_words=64, b_words=64, sum_words=256, update_lanes=1, update_words=64,
    copy_words=64, tile_weights=256, axi=AxiConfig(data_bits=128, address_bits=24),
)  # fmt: skip
MEMORY_BYTES = 1 << 15
TIMING = MemoryTiming(read_latency=23, write_latency=9)
GREETING = Greeting(MEMORY_BYTES, build_of(CONFIG), memory=MemoryKind.DDR4)
GREETING_BYTES = GREETING.encode()


@pytest.fixture(scope="module")
def card():
    return SimulatedCard(CONFIG, TIMING, MEMORY_BYTES)


@pytest.fixture
def device(card):
    card.closed = False
    with sat.device("xdma:0", config=CONFIG, files=card) as made:
        yield made


# A card that is files and nothing else: a bus of registers that nobody serves, a memory.


def make_files(folder, greeting=GREETING_BYTES):
    user = bytearray(2 * GREETING_OFFSET)
    user[: len(greeting)] = csr.ID_VALUE.to_bytes(4, "little")
    user[GREETING_OFFSET : GREETING_OFFSET + len(greeting)] = greeting
    (folder / "xdma0_user").write_bytes(user)
    (folder / "xdma0_h2c_0").write_bytes(bytes(MEMORY_BYTES))
    (folder / "xdma0_c2h_0").symlink_to(folder / "xdma0_h2c_0")


@pytest.fixture
def link(tmp_path):
    make_files(tmp_path)
    files = CardFiles(0, str(tmp_path))
    yield XdmaLink(files)
    files.close()


def test_files_are_read_and_written_at_the_cards_addresses(link, tmp_path):
    assert link.hello() == GREETING
    data = np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes()
    link.write(0x1000, data)
    assert link.read(0x1000, 4096) == data
    assert (tmp_path / "xdma0_h2c_0").read_bytes()[0x1000:0x2000] == data
    link.write_register(csr.parts("WINDOW_SIZE")[1].offset, 0x12345678)
    offset = csr.REGISTERS["WINDOW_SIZE_HI"].offset
    assert (tmp_path / "xdma0_user").read_bytes()[offset:][:4] == bytes.fromhex("78563412")
    assert link.read_register(offset) == 0x12345678
    for address, size in ((2, 4), (0, 3), (-4, 4)):
        with pytest.raises(ValueError, match=f"address={address}, size={size}: must be multiples"):
            link.read(address, size)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 70), min_size=40, max_size=40), st.integers(1, 40))
def test_a_transfer_that_comes_in_parts_is_whole(counts, words):
    class InParts:
        """Moves no more than the next count says."""

        def __init__(self):
            self.memory, self.counts = bytearray(512), [*counts, *[999] * 40]

        def write(self, name, data, offset):
            count = min(len(data), self.counts.pop(0))
            self.memory[offset : offset + count] = data[:count]
            return count

        def read(self, name, size, offset):
            return bytes(self.memory[offset : offset + min(size, self.counts.pop(0))])

    files = InParts()
    data = bytes(range(4 * words))
    XdmaLink(files).write(64, data)
    assert files.memory[64 : 64 + len(data)] == data and not any(files.memory[:64])
    assert XdmaLink(files).read(64, len(data)) == data


def test_a_transfer_that_stops_is_told(link, monkeypatch):
    counts = [100, 0]
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[: counts.pop(0)], at))
    with pytest.raises(LinkError, match="of 256 bytes for the card's memory at 0x40, 100 went"):
        link.write(0x40, bytes(256))
    counts[:] = [60, 0]
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, counts.pop(0), at))
    with pytest.raises(LinkError, match="of 256 bytes of the card's memory at 0x40, 60 came"):
        link.read(0x40, 256)
    counts[:] = [2]
    with pytest.raises(LinkError, match="register 0x4: 2 bytes came"):
        link.read_register(4)
    counts[:] = [3]
    with pytest.raises(LinkError, match="register 0x4: 3 bytes went"):
        link.write_register(4, 1)


@pytest.mark.parametrize(
    "said, told",
    [
        (b"\xff" * 24, "does not answer .all ones.*start the host anew"),
        (bytes(24), "is no card of SAT's: program it"),
        (Greeting(4096, bytes(8), version=7).encode(), "version 7 of the link, this host 1"),
    ],
)
def test_what_is_no_card_is_told(said, told, tmp_path):
    make_files(tmp_path, said)
    files = CardFiles(0, str(tmp_path))
    with pytest.raises(LinkError, match=told):
        XdmaLink(files).hello()
    files.close()


def test_another_configuration_is_told_and_the_files_are_given_back(tmp_path):
    make_files(tmp_path)
    told = f"xdma:0': the board's gateware {build_of(CONFIG).hex()}.*array 16x16"
    with pytest.raises(DeviceError, match=told):
        XdmaDevice("0", files=CardFiles(0, str(tmp_path)))
    CardFiles(0, str(tmp_path)).close()


def test_missing_files_are_told(tmp_path):
    with pytest.raises(LinkError, match=r"xdma0_user: there is no such file, and none .*: load"):
        CardFiles(0, str(tmp_path))
    make_files(tmp_path)
    with pytest.raises(LinkError, match=r"xdma3_user: .*a card that is there \(.*xdma0_user\)"):
        CardFiles(3, str(tmp_path))
    (tmp_path / "xdma0_c2h_0").unlink()
    with pytest.raises(LinkError, match=r"xdma0_c2h_0: there is no such file"):
        CardFiles(0, str(tmp_path))


@pytest.mark.parametrize(
    "number, told",
    [
        (errno.EACCES, "Permission denied: run as a user who may"),
        (errno.ENXIO, "No such device or address: is the card still there"),
    ],
)
def test_files_that_cannot_be_opened_are_told(number, told, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    make_files(tmp_path)
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(LinkError, match=told):
        CardFiles(0, str(tmp_path))


def test_a_second_user_of_a_card_is_refused(link, tmp_path):
    with pytest.raises(LinkError, match="another program uses the card: end it"):
        CardFiles(0, str(tmp_path))


@pytest.mark.parametrize("spec", ["xdma:", "xdma:one", "xdma:-1", "xdma"])
def test_a_card_has_a_number(spec):
    with pytest.raises(ValueError, match="there is no such device|must be the number of a card"):
        sat.device(spec)


# The card's own gateware.


@pytest.mark.parametrize("seed", range(4))
def test_reads_of_greeting_and_registers_are_answered_in_order(seed):
    """A device that takes its time, a host that asks again at once and waits to take answers."""
    greeter = Greeter(GREETING)
    words = greeter.words
    rng = np.random.default_rng(seed)
    asked = [4 * int(at) for at in rng.integers(0, 2 * GREETING_OFFSET // 4, 60)]
    asked[::2] = [GREETING_OFFSET + 4 * int(at) for at in rng.integers(0, 8, 30)]

    async def host(ctx):
        bus, got, sent = greeter.bus, [], 0
        while len(got) < len(asked):
            ctx.set(bus.arvalid, sent < len(asked))
            ctx.set(bus.araddr, asked[min(sent, len(asked) - 1)])
            ctx.set(bus.rready, int(rng.integers(0, 2)))
            _, _, taken, came, data, resp = await ctx.tick().sample(
                bus.arvalid & bus.arready, bus.rvalid & bus.rready, bus.rdata, bus.rresp
            )
            sent += bool(taken)
            if came:
                got.append((data, resp))
        for address, (data, resp) in zip(asked, got, strict=True):
            number = (address - GREETING_OFFSET) // 4
            if address < GREETING_OFFSET:
                assert (data, resp) == (1000 + address, 0)
            elif number < len(words):
                assert (data, resp) == (words[number], 0)
            else:
                assert resp == 2

    async def slow_device(ctx):
        bus, waiting = greeter.device, None
        while True:
            ctx.set(bus.arready, waiting is None and int(rng.integers(0, 2)))
            ctx.set(bus.rvalid, waiting is not None and waiting[1] <= 0)
            ctx.set(bus.rdata, 0 if waiting is None else 1000 + waiting[0])
            _, _, taken, address, given = await ctx.tick().sample(
                bus.arvalid & bus.arready, bus.araddr, bus.rvalid & bus.rready
            )
            if given:
                waiting = None
            elif waiting is not None:
                waiting = (waiting[0], waiting[1] - 1)
            if taken:
                assert waiting is None
                waiting = (address, int(rng.integers(0, 4)))

    simulator = Simulator(greeter)
    simulator.add_clock(1e-6)
    simulator.add_testbench(host)
    simulator.add_testbench(slow_device, background=True)
    simulator.run()


def test_registers_of_a_card_are_the_devices_and_a_greeting(card):
    card.closed = False
    link = XdmaLink(card)
    assert link.hello() == GREETING
    assert link.read_register(csr.REGISTERS["ID"].offset) == csr.ID_VALUE
    offset = csr.REGISTERS["PROGRAM_LENGTH"].offset
    link.write_register(offset, 99)
    for number in range(8):
        link.write_register(GREETING_OFFSET + 4 * number, 12345)
    assert link.read_register(offset) == 99
    assert link.hello() == GREETING
    assert link.read_register(GREETING_OFFSET + 4 * 6) == 0xFFFFFFFF
    with pytest.raises(OSError, match="Protocol error"):
        card.read("user", 8, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        card.read("h2c_0", 4, 0)


# The device.


@pytest.mark.parametrize("pattern", ["dense", "2:8", "1:4"])
@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_products_are_golden_to_the_bit_in_the_cycles_of_the_memory(device, pattern, dataflow):
    a, b = operands(7, 24, 5)
    right = b if pattern == "dense" else sat.prune(b, pattern, axis=0)
    with sat.device("golden") as golden:
        got = device.matmul(a, right, dataflow=dataflow)
        want = golden.matmul(a, right)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    run = device.last_run
    n, m = (1, 1) if pattern == "dense" else map(int, pattern.split(":"))
    compiled, least = device.compile(Product(7, 5, 24, n=n, m=m), dataflow)
    assert run.cycles == predict(compiled.program, CONFIG, TIMING).cycles
    assert run.bound and not run.mispredicted and run.predicted_cycles == least < run.cycles


def test_a_product_larger_than_the_memory_is_computed_in_parts(device):
    a, b = operands(16, 400, 16)
    got, want = device.matmul(a, b), stce.matmul(a, b)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    run = device.last_run
    assert len(run.parts) > 1 and run.cycles > run.predicted_cycles
    assert run.predicted_cycles == device.predict(Product(16, 16, 400))


def test_a_training_step_leaves_the_bits_of_golden(device):
    """FF, BP, WU and the update of a layer, whole stages on the card, twice."""
    with sat.device("golden", config=CONFIG) as golden:
        assert torch.equal(trained(device), trained(golden))


def test_after_a_transfer_that_failed_everything_is_sent_anew(device, card, monkeypatch):
    a, b = operands(4, 16, 3)
    want = stce.matmul(a, b)
    assert np.array_equal(device.matmul(a, b), want)
    with monkeypatch.context() as patched:
        patched.setattr(card, "write", lambda name, data, offset: 0 if name == "h2c_0" else 4)
        with pytest.raises(DeviceError, match=r"xdma:0': of .* bytes for the card's memory"):
            device.matmul(a + np.float16(1), b)
    card.rtl.memory[:] = 255  # the card was programmed anew
    assert np.array_equal(device.matmul(a, b), want)


def test_a_card_that_is_gone_is_told(device, card, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(card, "write", fail)
    with pytest.raises(DeviceError, match=r"xdma:0': the port failed .*Input/output error"):
        device.matmul(*operands(2, 8, 2))


@pytest.mark.long
def test_a_method_runs_on_a_card(capsys, monkeypatch):
    """`sat run lightsb`: its first products on a card, whose files are the simulation's."""
    small = SimulatedCard(CONFIG, TIMING, 1 << 20)
    monkeypatch.setattr("sat.devices.xdma.CardFiles", lambda number: small)
    monkeypatch.setattr("sat.devices.xdma.CARD_CONFIG", CONFIG)
    arguments = ["run", "lightsb", "--device", "xdma:0", "--array", "2x2"]
    assert main([*arguments, "--quick", "--first", "20"]) == 0
    out = capsys.readouterr().out
    assert "0 differ; 0 products took fewer cycles than the least" in out
