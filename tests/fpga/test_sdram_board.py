"""A board with SDRAM at its pins: the chip keeps its rules, programs have golden's bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from amaranth import *
from amaranth.lib import wiring
from amaranth.sim import Simulator

import sat
from sat.cli import main
from sat.data import load_data
from sat.dataflow.products import Product
from sat.devices import ComparingDevice
from sat.devices.staged import StagedDevice
from sat.fpga.board import BOARD_CONFIG, Board
from sat.fpga.boards import BOARDS
from sat.fpga.link.protocol import MemoryKind
from sat.fpga.pty import PtyBoard
from sat.fpga.sdram.geometry import Geometry
from sat.fpga.sdram.simulated import BoardWithSdram
from sat.fpga.simulation import SimulatedBoard
from sat.sparsity.pattern import Pattern
from sat.training.trainer import Trainer
from tests.fpga.board_bench import machine_on

CLOCK_HZ = 25e6
CHIP = Geometry()
"""The board's own: 32 MB."""
CONFIG = BOARD_CONFIG.with_array("2x2")
SMALL = Geometry(rows=11, columns=4, refreshes=2048)


def simulated(chip):
    inside = Board(CONFIG, clock_hz=CLOCK_HZ, baud=CLOCK_HZ / 4, sdram=chip)
    return SimulatedBoard(BoardWithSdram(inside), 4.0)


@pytest.fixture(scope="module")
def board():
    made = simulated(CHIP)
    yield made
    made.close()


@pytest.fixture(scope="module")
def colorlight():
    """A Colorlight i9: 32 bits wide, and without masks."""
    made = simulated(BOARDS["colorlight-i9"].sdram)
    yield made
    made.close()


@pytest.fixture
def device(board):
    with PtyBoard(board) as served, sat.device(f"uart:{served.port}", config=CONFIG) as made:
        yield made


def check_product(device, dataflow, pattern):
    """A product's bits are golden's, and its cycles no fewer than the least."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((9, 64)).astype(np.float16)
    b = rng.standard_normal((64, 5)).astype(np.float16)
    right = b if pattern == "dense" else sat.prune(b, pattern, axis=0)
    compared = ComparingDevice(device)
    compared.matmul(a, right, dataflow=dataflow)
    run = compared.last_run
    assert compared.compared == 45 and compared.mismatches == compared.mispredicted == 0
    # Fetching, loading and storing share the wires; the bound knows the wires, not who waits.
    assert run.bound and compared.bounded == (run.cycles, run.predicted_cycles)
    assert run.predicted_cycles <= run.cycles < 2 * run.predicted_cycles
    sparsity = {"dense": (1, 1), "2:8": (2, 8)}[pattern]
    product = Product(9, 5, 64, *sparsity)
    assert device.predict(product, dataflow) == run.predicted_cycles


@pytest.mark.parametrize("dataflow", ["os", "ws"])
@pytest.mark.parametrize("pattern", ["dense", "2:8"])
def test_products_have_golden_bits_from_sdram_and_no_fewer_cycles_than_the_least(
    device, dataflow, pattern
):
    assert device.bounded and device.greeting.memory_bytes == CHIP.size == 32 << 20
    check_product(device, dataflow, pattern)


def test_products_and_a_step_have_golden_bits_from_wide_sdram_without_masks(colorlight):
    """The step writes FP16, indices and masks: parts of words."""
    with PtyBoard(colorlight) as served, sat.device(f"uart:{served.port}", config=CONFIG) as device:
        assert device.bounded and device.greeting.memory_bytes == 8 << 20
        assert device.greeting.memory is MemoryKind.SDRAM_32
        check_product(device, "os", "dense")
        check_product(device, "ws", "2:8")
        check_step(device, (1,), 3)


def test_resident_operands_stay_in_sdram(device):
    rng = np.random.default_rng(2)
    b = sat.resident(rng.standard_normal((48, 32)).astype(np.float16))
    a = rng.standard_normal((2, 4, 48)).astype(np.float16)
    with sat.device("golden", config=CONFIG) as golden:
        for one, kept in zip(a, (0, b.nbytes), strict=True):
            got, want = device.matmul(one, b), golden.matmul(one, b)
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
            assert device.last_run.bytes_kept == kept


class PartOnBoard(StagedDevice):
    """Layers with so many channels in run on one device, the others on golden."""

    def __init__(self, on, channels):
        super().__init__(on, compare=True)
        self.channels, self.other = channels, StagedDevice(sat.device("golden", config=CONFIG))

    def stages(self, names, layer, tensors, rates=None, owner=None):
        if layer.in_channels in self.channels:
            return super().stages(names, layer, tensors, rates, owner)
        return self.other.stages(names, layer, tensors, rates, owner)


def demo_step(device, channels):
    """Train the demo's first step, four digits large; return the device and the weights."""
    staged = PartOnBoard(device, channels)
    trainer = Trainer(
        "cnn", load_data("digits"), scheme="bdwp", pattern=Pattern(2, 8), device=staged, batch=4
    )
    trainer.fit(1)
    return staged, [one.detach().clone() for one in trainer.model.parameters()]


def check_step(device, channels, programs):
    """A step whose layers with so many channels are on the board leaves what golden leaves."""
    staged, weights = demo_step(device, channels)
    assert len(staged.runs) == programs and all(run.run.bound for run in staged.runs)
    assert staged.compared > 1000 and staged.mismatches == staged.mispredicted == 0
    with sat.device("golden", config=CONFIG) as golden:
        want = demo_step(golden, channels)[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, want, strict=True))


def test_the_demos_first_step_with_its_first_layer_on_the_board(device):
    """FF, WU, and the update."""
    check_step(device, (1,), 3)


@pytest.mark.long
def test_the_demos_first_step_on_the_board(device):
    """91 million cycles, most of them of the link."""
    check_step(device, (1, 16, 32, 256), 12)


def test_memory_is_kept_over_refreshes_and_a_reset(board):
    """In four banks and many rows; to the chip, a refresh that comes too late is a broken rule."""
    link = machine_on(board, CONFIG).link
    words = {at: at.to_bytes(4, "little") for at in range(0, CHIP.size, CHIP.size // 32 + 2052)}
    for at, data in words.items():
        link.write(at, data)
    board.run(int(2e-3 * CLOCK_HZ))
    board.reset()
    link = machine_on(board, CONFIG).link
    assert {at: link.read(at, 4) for at in words} == words


def test_a_board_that_breaks_a_rule_of_the_chip_has_no_link():
    """A controller that does not wait for the power."""
    inside = Board(CONFIG, clock_hz=CLOCK_HZ, baud=CLOCK_HZ / 4, sdram=SMALL)
    memory = inside.memory
    memory.controller.cycles = replace(memory.controller.cycles, power_up=100)
    inside.elaborate = lambda platform: only_memory(inside)  # type: ignore[method-assign]
    made = BoardWithSdram(inside)
    levels = []

    async def test(ctx):
        for _ in range(150):
            levels.append(ctx.get(made.tx))
            await ctx.tick()

    simulator = Simulator(made)
    simulator.add_clock(1 / CLOCK_HZ)
    simulator.add_testbench(test)
    simulator.run()
    assert levels[:100] == [1] * 100 and levels[-1] == 0


def only_memory(board):
    m = Module()
    m.submodules.memory = memory = board.memory
    m.d.comb += board.tx.eq(1)
    wiring.connect(m, memory.pins, wiring.flipped(board.sdram))
    return m


def test_block_ram_has_no_pins():
    with pytest.raises(ValueError, match=r"block RAM: make it with sdram=Geometry\(\)"):
        BoardWithSdram(Board(CONFIG))


@pytest.mark.parametrize("name, pins", [("ulx3s-85f", 39), ("colorlight-i9", 49)])
def test_every_pin_of_the_chip_is_on_the_board(name, pins):
    """From the platform's own table; and both edges of a clock."""
    target = BOARDS[name]
    board = Board(CONFIG, clock_hz=CLOCK_HZ, sdram=target.sdram)
    files = target.build_files(board, int(CLOCK_HZ))
    placed = [line for line in files["top.lpf"].splitlines() if line.startswith("LOCATE")]
    assert sum("sdram_0" in line for line in placed) == pins
    assert "ODDRX1F" in files["top.il"]


def test_memory_bytes_are_of_block_ram(capsys):
    for command in (["board"], ["synth", "ulx3s-85f"]):
        assert main([*command, "--memory", "sdram", "--memory-bytes", "65536"]) == 2
        said = capsys.readouterr().err
        assert "--memory-bytes 65536: is of block RAM" in said and said.count("\n") == 1
