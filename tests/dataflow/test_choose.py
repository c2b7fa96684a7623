"""Mappings of layers' products: never slower than the estimate's choice, and no trap of it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sat.dataflow.compile import choose
from sat.dataflow.compile.choose import ENOUGH, fewest_cycles
from sat.dataflow.compile.memory import memory_map
from sat.dataflow.compile.output_stationary import OsPlanner
from sat.dataflow.compile.step import compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.mapping import estimate, os_mappings
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Instruction, Opcode
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

CONFIGS = [
    SatConfig(),
    SatConfig(rows=3, cols=5, a_words=64, b_words=64),
    SatConfig(rows=4, cols=4, max_m=16, axi=AxiConfig(data_bits=256), interleave=8),
    SatConfig(rows=16, cols=16),
]


@given(
    st.sampled_from(CONFIGS),
    st.tuples(st.integers(1, 300), st.integers(1, 60), st.integers(1, 120)),
    st.sampled_from([(1, 1), (2, 8), (1, 4)]),
    st.sampled_from(list(StartShape)),
    st.sampled_from([1, 3]),
)
def test_the_choice_is_never_slower_than_the_estimates(config, sizes, pattern, start, step):
    product, memory = Product(*sizes, *pattern, start), MemoryTiming(cycles_per_beat=step)
    mappings = os_mappings(product, config)
    assume(mappings)
    where = memory_map(product, config, 0)
    emitted = []

    def emit(part, mapping):
        emitted.append(part.rows)
        return OsPlanner(part, config, mapping, where).emit()

    def cycles(made):
        return predict(Program([*made, Instruction(Opcode.END, {})]), config, memory).cycles

    chosen = cycles(fewest_cycles(product, config, memory, mappings, emit))
    likely = min(mappings, key=lambda m: estimate(product, config, memory, m))
    assert chosen <= cycles(emit(product, likely))
    assert emitted.count(product.rows) <= max(3, len(mappings) + 1)
    if set(emitted) == {product.rows}:
        # All were costed as a whole: none is better by more than what is good enough.
        best = min(cycles(emit(product, mapping)) for mapping in mappings)
        assert chosen - best <= chosen // ENOUGH


def stage_cycles(layer: Layer, config: SatConfig, memory: MemoryTiming, stage: str) -> int:
    step = compile_step(layer, config, memory, (stage,))
    return predict(step.program, config, memory, step.address).cycles


CONV = {"lines": 28, "pixels": 28, "kernel": (3, 3), "padding": (1, 1)}
TRAPS = [
    ("8x8", "bp", 3.4, Layer(batch=64, in_channels=256, out_channels=3072, bp=(2, 8))),
    ("16x16", "bp", 3.0, Layer(batch=64, in_channels=256, out_channels=3072, bp=(2, 8))),
    ("16x16", "ff", 2.0, Layer(batch=1, in_channels=128, out_channels=128, **CONV)),
    ("32x32", "ff", 2.0, Layer(batch=1, in_channels=128, out_channels=128, **CONV)),
]


@pytest.mark.parametrize("array, stage, factor, layer", TRAPS)
def test_layers_that_the_estimate_misjudges(monkeypatch, array, stage, factor, layer):
    """Much depth and many columns, where it took operands to stay that must be loaded anew."""
    config, memory = SatConfig().with_array(array), MemoryTiming(read_latency=40)
    chosen = stage_cycles(layer, config, memory, stage)
    # Anything is good enough: the first, which is the estimate's.
    monkeypatch.setattr(choose, "ENOUGH", 1)
    estimated = stage_cycles(layer, config, memory, stage)
    assert chosen * factor < estimated, estimated / chosen
