"""A whole board in simulation, at its pins: programs over the link have golden bits and cycles."""

from __future__ import annotations

import numpy as np
import pytest

from sat.dataflow.host import read_result, write_product
from sat.dataflow.products import Product, StartShape
from sat.dataflow.search import best_mapping
from sat.fpga.board import Board
from sat.fpga.link.client import Link, LinkError
from sat.fpga.machine import BoardMachine
from sat.fpga.memory import BLOCK_RAM_TIMING
from sat.fpga.simulation import SimulatedBoard
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Status
from sat.sim.golden import sore, stce

CONFIG = SatConfig(
    rows=2, cols=2, max_n=4, a_words=64, b_words=64, sum_words=256, update_lanes=1, update_words=64,
    copy_words=16, tile_weights=256, axi=AxiConfig(data_bits=32, address_bits=24),
)  # fmt: skip
MEMORY_BYTES = 1 << 15


@pytest.fixture(scope="module")
def board():
    made = SimulatedBoard(Board(CONFIG, clock_hz=4, baud=1, memory_bytes=MEMORY_BYTES), 4.0)
    yield made
    made.close()


def machine_on(board) -> BoardMachine:
    clock = lambda: board.now  # noqa: E731
    return BoardMachine(Link(board, patience=100_000, clock=clock), CONFIG, clock=clock)


def run(machine, product, dataflow, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((product.rows, product.depth)).astype(np.float16)
    dense = rng.standard_normal((product.depth, product.cols)).astype(np.float16)
    compiled, cycles = best_mapping(product, CONFIG, BLOCK_RAM_TIMING, dataflow)
    where = compiled.memory
    if product.n == product.m == 1:
        values, indices, full = dense, None, dense
    else:
        values, indices = sore.select(dense, product.n, product.m, 0)
        full = sore.expand(values, indices, product.n, product.m, product.depth, 0)
    write_product(machine.memory, where, compiled.program, a, values, indices, None)
    result = range(where.result.address, where.result.end)
    outcome = machine.run(
        where.program.address,
        len(compiled.program),
        [range(where.end)],
        [result],
        limit_seconds=1e9,
    )
    assert outcome.status is Status.DONE
    assert outcome.cycles == cycles
    got = read_result(machine.memory, where)
    want = stce.matmul(a, full)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


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
