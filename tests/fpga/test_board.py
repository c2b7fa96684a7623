"""A whole board in simulation, at its pins: programs over the link have golden bits and cycles."""

from __future__ import annotations

import pytest

from sat.dataflow.products import Product, StartShape
from sat.fpga.board import Board
from sat.fpga.link.client import Link, LinkError
from sat.fpga.machine import BoardMachine
from sat.fpga.memory import BLOCK_RAM_TIMING
from sat.fpga.simulation import SimulatedBoard
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from tests.fpga.board_bench import CONFIG, machine_on, run_product

MEMORY_BYTES = 1 << 15


@pytest.fixture(scope="module")
def board():
    made = SimulatedBoard(Board(CONFIG, clock_hz=4, baud=1, memory_bytes=MEMORY_BYTES), 4.0)
    yield made
    made.close()


def run(machine, product, dataflow, seed):
    cycles, predicted = run_product(machine, product, BLOCK_RAM_TIMING, dataflow, seed)
    assert cycles == predicted


@pytest.mark.parametrize("dataflow", ["os", "ws"])
@pytest.mark.parametrize("pattern", [(1, 1), (2, 8), (1, 4)])
def test_products_have_golden_bits_and_predicted_cycles(board, dataflow, pattern):
    machine = machine_on(board)
    n, m = pattern
    product = Product(rows=9, depth=24, cols=5, n=n, m=m, start=StartShape.ZERO)
    run(machine, product, dataflow, 1)
    sent = machine.bytes_sent
    run(machine, product, dataflow, 1)
    # The image was sent once, and the second time only what the program had written over.
    assert machine.bytes_sent - sent <= 4 * product.rows * product.cols


def test_a_program_that_fails_says_where_and_the_next_runs(board):
    machine = machine_on(board)
    machine.memory[:32] = 0xFF
    outcome = machine.run(0, 1, [range(32)], [], limit_seconds=1e9)
    assert outcome.status is Status.BAD_OPCODE and outcome.error_pc == 0
    run(machine, Product(rows=3, depth=8, cols=2, n=1, m=1, start=StartShape.ZERO), "os", 2)


def test_a_link_cut_in_a_program_and_a_transfer_recovers(board):
    machine = machine_on(board)
    product = Product(rows=8, depth=32, cols=4, n=1, m=1, start=StartShape.ZERO)
    machine.link.tries, write = 2, board.write
    left = [2000]

    def cut(data):
        left[0] -= len(data)
        return write(data) if left[0] > 0 else len(data)

    board.write = cut
    with pytest.raises(LinkError, match=r"no answer to 2 tries"):
        run(machine, product, "os", 3)
    board.write = write
    machine = machine_on(board)
    run(machine, product, "os", 3)


def test_another_configuration_is_told(board):
    other = SatConfig(rows=4, cols=4)
    with pytest.raises(LinkError, match=r"another configuration.*array 4x4"):
        BoardMachine(Link(board, patience=100_000, clock=lambda: board.now), other)
