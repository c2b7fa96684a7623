"""A board with SDRAM at its pins: the chip keeps its rules, programs have golden's bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.sim import Simulator

from sat.dataflow.products import Product, StartShape
from sat.fpga.board import Board
from sat.fpga.sdram.chip import Geometry
from sat.fpga.sdram.memory import LEAST_TIMING
from sat.fpga.sdram.simulated import BoardWithSdram
from sat.fpga.simulation import SimulatedBoard
from sat.fpga.ulx3s import build_files
from tests.fpga.board_bench import CONFIG, machine_on, run_product

CLOCK_HZ = 25e6
CHIP = Geometry(rows=11, columns=4, banks=2)
"""A 128th of the board's own: every bit of it is written down in the Verilog."""


@pytest.fixture(scope="module")
def board():
    inside = Board(CONFIG, clock_hz=CLOCK_HZ, baud=CLOCK_HZ / 4, sdram=CHIP)
    made = SimulatedBoard(BoardWithSdram(inside), 4.0)
    yield made
    made.close()


@pytest.mark.parametrize("dataflow", ["os", "ws"])
@pytest.mark.parametrize("pattern", [(1, 1), (2, 8)])
def test_products_have_golden_bits_from_sdram(board, dataflow, pattern):
    machine = machine_on(board)
    assert len(machine.memory) == CHIP.size == 256 << 10
    n, m = pattern
    product = Product(rows=9, depth=64, cols=5, n=n, m=m, start=StartShape.ZERO)
    cycles, least = run_product(machine, product, LEAST_TIMING, dataflow, 1)
    # Fetching, loading and storing share 16 wires, and a row of this chip has but 16 columns.
    assert least < cycles < 4 * least


def test_memory_is_kept_over_refreshes_and_a_reset(board):
    """In four banks and many rows; to the chip, a refresh that comes too late is a broken rule."""
    machine = machine_on(board)
    link = machine.link
    words = {at: at.to_bytes(4, "little") for at in range(0, CHIP.size, CHIP.size // 32 + 4)}
    for at, data in words.items():
        link.write(at, data)
    board.run(int(2e-3 * CLOCK_HZ))
    board.reset()
    link = machine_on(board).link
    assert {at: link.read(at, 4) for at in words} == words


def test_a_board_that_breaks_a_rule_of_the_chip_has_no_link():
    """A controller that does not wait for the power."""
    inside = Board(CONFIG, clock_hz=CLOCK_HZ, baud=CLOCK_HZ / 4, sdram=CHIP)
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


def test_every_pin_of_the_chip_is_on_the_board():
    """From the platform's own table: 39 pins, and both edges of a clock."""
    files = build_files(Board(CONFIG, clock_hz=CLOCK_HZ, sdram=Geometry()), int(CLOCK_HZ))
    placed = [line for line in files["top.lpf"].splitlines() if line.startswith("LOCATE")]
    assert sum("sdram_0" in line for line in placed) == 39
    assert "ODDRX1F" in files["top.il"]
