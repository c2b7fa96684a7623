"""Products over the link of a simulated board, against golden."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sat.dataflow.host import read_result, write_product
from sat.dataflow.products import Product
from sat.dataflow.search import best_mapping
from sat.fpga.link.client import Link
from sat.fpga.machine import BoardMachine
from sat.fpga.simulation import SimulatedBoard
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Status
from sat.sim.golden import sore, stce
from sat.sim.memory import MemoryTiming

CONFIG = SatConfig(
    rows=2, cols=2, max_n=4, a_words=64, b_words=64, sum_words=256, update_lanes=1, update_words=64,
    copy_words=16, tile_weights=256, axi=AxiConfig(data_bits=32, address_bits=24),
)  # fmt: skip


def machine_on(board: SimulatedBoard, config: SatConfig = CONFIG) -> BoardMachine:
    """Return the machine behind a board's link."""
    clock: Callable[[], float] = lambda: board.now  # noqa: E731
    return BoardMachine(Link(board, patience=100_000, clock=clock), config, clock=clock)


def run_product(
    machine: BoardMachine, product: Product, timing: MemoryTiming, dataflow: str, seed: int
) -> tuple[int, int]:
    """Run a product whose bits must be golden's; return its cycles, and those predicted."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((product.rows, product.depth)).astype(np.float16)
    dense = rng.standard_normal((product.depth, product.cols)).astype(np.float16)
    compiled, cycles = best_mapping(product, CONFIG, timing, dataflow)
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
    got = read_result(machine.memory, where)
    want = stce.matmul(a, full)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    return outcome.cycles, cycles
