"""Compiled programs on the golden device: every mapping of any product gives the fold's bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.host import pack_indices, read_result, write_product
from sat.dataflow.layers import boundary_bytes
from sat.dataflow.mapping import OsMapping, ceil_div, legal_mappings
from sat.dataflow.products import Product, StartShape, kept_values
from sat.dataflow.program import Program, ProgramError
from sat.dataflow.search import best_mapping
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Instruction, Opcode, Status
from sat.sim.golden import sore, stce
from sat.sim.golden.device import GoldenDevice
from sat.sim.memory import MemoryTiming

CONFIGS = [
    SatConfig(),
    SatConfig(rows=3, cols=5),
    SatConfig(rows=1, cols=1),
    SatConfig(rows=4, cols=4, max_m=16, a_words=16, b_words=16, axi=AxiConfig(data_bits=256)),
    SatConfig(rows=2, cols=3, a_words=32, b_words=16, axi=AxiConfig(data_bits=32)),
    SatConfig(rows=3, cols=2, max_m=4, max_n=2, a_words=32, b_words=32,
              axi=AxiConfig(data_bits=64)),
    SatConfig(rows=4, cols=4, axi=AxiConfig(data_bits=256, ports=4)),
]  # fmt: skip


@st.composite
def mapped_products(draw):
    """Draw a device, a product it can run and one of its mappings."""
    config = draw(st.sampled_from(CONFIGS))
    m = draw(st.sampled_from([1, *(m for m in (2, 4, 8, 16) if m <= config.max_m)]))
    product = Product(
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 70)),
        draw(st.integers(1, m)),
        m,
        draw(st.sampled_from(list(StartShape))),
        draw(st.sampled_from([1, 1, 2, 3, 7])),
    )
    return config, product, draw(st.sampled_from(legal_mappings(product, config)))


@given(mapped_products(), st.integers(0, 1 << 32), st.none() | st.integers(0, 3))
def test_every_mapping_gives_the_folds_bits_wherever_b_lies(case, seed, pages):
    config, product, mapping = case
    rng = np.random.default_rng(seed)
    stack = () if product.count == 1 else (product.count,)
    a = rng.standard_normal((*stack, product.rows, product.depth)).astype(np.float16)
    b = rng.standard_normal((*stack, product.depth, product.cols)).astype(np.float16)
    start = first = None
    if product.start is StartShape.ROW:
        start = rng.standard_normal((*stack, product.cols)).astype(np.float32)
        rows = (*stack, product.rows, product.cols)
        first = np.broadcast_to(start[..., None, :], rows) if stack else start
    elif product.start is StartShape.MATRIX:
        start = rng.standard_normal((*stack, product.rows, product.cols)).astype(np.float32)
        first = start
    values, indices, right = b, None, b
    if not product.dense:
        values, indices = sore.select(b, product.n, product.m, axis=-2)
        right = stce.NMOperand(values, indices, (product.n, product.m), product.depth)
    compiled = compile_product(product, config, mapping)
    if pages is not None:
        cycles = predict(compiled.program, config, MemoryTiming()).cycles
        end, boundary = compiled.memory.held.stop, boundary_bytes(config)
        compiled = compiled.with_b_at((ceil_div(end, boundary) + pages) * boundary)
        assert compiled.memory.held.start >= end
        assert predict(compiled.program, config, MemoryTiming()).cycles == cycles
    memory = np.full(compiled.memory.end, 0xA5, np.uint8)
    compiled.program.validate(config, window=(0, len(memory)))
    write_product(memory, compiled.memory, compiled.program, a, values, indices, start)
    outcome = GoldenDevice(config, memory).run(0, len(compiled.program))
    assert outcome.status is Status.DONE
    got = read_result(memory, compiled.memory)
    assert np.array_equal(got.view(np.uint32), stce.matmul(a, right, first).view(np.uint32))


def test_text_of_a_program_is_the_program():
    product = Product(20, 30, 40, 2, 8, StartShape.MATRIX)
    program, _ = best_mapping(product, SatConfig(), MemoryTiming())
    text = program.program.text()
    assert Program.parse(text) == program.program
    assert Program.decode(program.program.encode()) == program.program
    with pytest.raises(ValueError, match="line 2: 'JUMP' is no opcode"):
        Program.parse("FENCE # wait\nJUMP wait=1\n")
    with pytest.raises(ValueError, match="line 1: 'rows' is not NAME=NUMBER"):
        Program.parse("LOAD rows")


def test_search_beats_or_equals_each_exact_candidate():
    product, config, memory = Product(64, 64, 64, 2, 8), SatConfig(), MemoryTiming()
    _, cycles = best_mapping(product, config, memory)
    ideal = product.macs // 64
    assert ideal < cycles < 2 * ideal
    os_only = best_mapping(product, config, memory, "os")
    assert isinstance(os_only[0].mapping, OsMapping) and os_only[1] >= cycles


def test_model_refuses_programs_that_would_hang():
    config, memory = SatConfig(), MemoryTiming()
    product = Product(8, 8, 8)
    program = best_mapping(product, config, memory)[0].program
    silent = [Instruction(i.opcode, i.body, i.wait, i.release, 0) for i in program]
    with pytest.raises(ProgramError, match="waits for semaphore 0"):
        predict(Program(silent), config, memory)
    with pytest.raises(ProgramError, match="must be END"):
        predict(Program(program[:-1]), config, memory)
    fence = Program([Instruction(Opcode.FENCE, {}), Instruction(Opcode.END, {})])
    assert predict(fence, config, memory).cycles < 60


def test_bad_products_and_patterns():
    with pytest.raises(ValueError, match="rows=0"):
        Product(0, 1, 1)
    with pytest.raises(ValueError, match="pattern 3:2"):
        Product(1, 1, 1, 3, 2)
    with pytest.raises(ValueError, match="this device has max_m=8"):
        legal_mappings(Product(4, 4, 16, 2, 16), SatConfig())
    with pytest.raises(ValueError, match="dataflow='rs'"):
        legal_mappings(Product(4, 4, 16), SatConfig(), "rs")
    with pytest.raises(ValueError, match="read_latency=0"):
        MemoryTiming(read_latency=0)


@given(st.integers(1, 200), st.sampled_from([2, 4, 8, 16]), st.data())
def test_kept_values_are_what_selection_keeps(depth, m, data):
    n = data.draw(st.integers(1, m))
    values, _ = sore.select(np.ones((depth, 1), np.float16), n, m, axis=0)
    assert kept_values(depth, n, m) == len(values)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
def test_indices_pack_in_pairs(indices):
    packed = pack_indices(np.array([indices], np.uint8))
    back = [nibble for byte in packed[0] for nibble in (byte & 15, byte >> 4)]
    assert back[: len(indices)] == indices and len(packed[0]) == -(-len(indices) // 2)
