"""Leaps of the cycle model: all figures, times, refusals are those of running all instructions."""

from __future__ import annotations

import pickle
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow.columns import with_end
from sat.dataflow.compile import compile_product, parts
from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.cycles import Prediction, predict
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Instruction, Opcode
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parents[1] / "cosim"))
from layers import any_mapping, random_layer, random_sgd
from pruned import CONFIGS as PRUNING
from pruned import random_tile

CONFIGS = [
    SatConfig(rows=4, cols=4),
    SatConfig(),
    SatConfig(
        rows=3, cols=4, max_m=4, max_n=2, a_words=128, interleave=8, axi=AxiConfig(data_bits=64)
    ),
    SatConfig(rows=4, cols=4, axi=AxiConfig(data_bits=256, ports=2)),
    SatConfig(rows=4, cols=8, max_m=16, axi=AxiConfig(data_bits=256), interleave=4),
    SatConfig(rows=16, cols=16, axi=AxiConfig(data_bits=512, ports=4, outstanding=64)),
]
MEMORIES = st.builds(
    MemoryTiming,
    read_latency=st.sampled_from([1, 20, 40, 150]),
    write_latency=st.sampled_from([1, 8, 40, 150]),
    cycles_per_beat=st.integers(1, 3),
)


def same(
    program: Program | bytes, config: SatConfig, memory: MemoryTiming, address: int = 0
) -> Prediction | None:
    """Return the prediction with leaps; that without is the same in all. None: both refuse."""
    made = []
    for leaps in (True, False):
        try:
            made.append(predict(program, config, memory, address, leaps=leaps))
        except ValueError as error:
            made.append((type(error), str(error)))
    found, plain = made
    if isinstance(plain, tuple):
        assert found == plain
        return None
    names = ("cycles", "compute_cycles", "beats_read", "beats_written")
    assert [getattr(found, name) for name in names] == [getattr(plain, name) for name in names]
    assert np.array_equal(found.times, plain.times)
    assert plain.leapt == 0 <= found.leapt < len(found.times)
    return found


@given(st.sampled_from(CONFIGS), MEMORIES, st.integers(0, 1 << 32))
@settings(max_examples=60)
def test_layers_leapt_over_take_what_they_take(config, memory, seed):
    """Random layers of some size under any of their mappings."""
    rng = random.Random(seed)
    layer = random_layer(rng, config)
    bigger = {"batch": layer.batch * rng.randint(2, 12)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "fewest_cycles", any_mapping(rng, Counter()))
        step = compile_step(
            Layer(**{**layer.__dict__, **bigger}), config, memory, STAGES, random_sgd(rng)
        )
    same(step.program, config, memory, step.address)


@given(st.sampled_from(list(PRUNING)), MEMORIES, st.integers(0, 1 << 32))
@settings(max_examples=40)
def test_pruned_tiles_leapt_over_take_what_they_take(name, memory, seed):
    """Tiles of many chunks, then the same pruned to another N: alike but for how long it takes."""
    rng = random.Random(seed)
    tile = random_tile(rng, PRUNING[name])
    tile = replace(tile, images=rng.randint(10, 60), chunk=tile.m * rng.randint(1, 2))
    others = [replace(tile, n=rng.randint(1, tile.m)) for _ in range(rng.randint(0, 3))]
    made = [i for each in (tile, *others) for i in list(each.program())[:-1]]
    same(Program([*made, Instruction(Opcode.END, {})]), PRUNING[name], memory)


@given(
    st.sampled_from(CONFIGS),
    MEMORIES,
    st.tuples(st.integers(1, 700), st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from([(1, 1), (2, 4), (1, 4)]),
    st.sampled_from(list(StartShape)),
    st.sampled_from([1, 1, 5]),
    st.data(),
)
@settings(max_examples=60)
def test_products_leapt_over_take_what_they_take(
    config, memory, sizes, pattern, start, count, data
):
    product = Product(*sizes, *pattern, start, count)
    mapping = data.draw(st.sampled_from(legal_mappings(product, config)))
    program = compile_product(product, config, mapping).program
    same(program, config, memory, 32 * data.draw(st.integers(0, 5)))


@given(
    st.sampled_from(CONFIGS),
    MEMORIES,
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60)),
    st.integers(2, 40),
    st.sampled_from([0, 16, 64, 1 << 12, 1 << 14, 48, 1040]),
    st.integers(0, 1 << 32),
)
@settings(max_examples=80)
def test_blocks_that_repeat_at_other_addresses(config, memory, sizes, repeats, apart, seed):
    """A product over and over, its operands further on each time; sometimes one instruction less.

    What is left out may make the program wait for ever, or a semaphore overflow: with leaps, at the
    same instruction.
    """
    rng = random.Random(seed)
    product = Product(*sizes)
    mapping = rng.choice(legal_mappings(product, config))
    program = compile_product(product, config, mapping).program
    step = apart // config.granule_bytes * config.granule_bytes
    everything = range(0, 1 << 40)
    blocks = [program.moved(everything, n * step).words[:-1].copy() for n in range(repeats)]
    if rng.random() < 0.5:
        blocks[rng.randrange(repeats)] = np.delete(blocks[0], rng.randrange(len(blocks[0])), 0)
    if rng.random() < 0.3:
        # A semaphore that something raises every time and nothing waits for.
        for block in blocks:
            block[-1, 0] |= np.uint64(1 << 55)
    same(Program.of(with_end(np.concatenate(blocks))), config, memory)


def test_a_semaphore_that_nothing_waits_for_overflows_where_it_did():
    config, memory = SatConfig(), MemoryTiming()
    rates = Instruction(Opcode.RATES, {}, signal=1 << 5)
    for count, overflows in ((255, False), (256, True), (5000, True)):
        program = Program([*[rates] * count, Instruction(Opcode.END, {})])
        if overflows:
            assert same(program, config, memory) is None
            with pytest.raises(ValueError, match="instruction 255: it raises semaphore 5 above"):
                predict(program, config, memory)
        else:
            assert same(program, config, memory) is not None


LEAPT = [Product(9000, 60, 96, 2, 8), Product(6000, 33, 40), Product(400, 1600, 640)]


@pytest.mark.parametrize("product", LEAPT, ids=str)
def test_most_of_long_products_is_leapt_over(product):
    config, memory = SatConfig(), MemoryTiming(read_latency=40)
    for mapping in {m.sort: m for m in legal_mappings(product, config)}.values():
        found = same(compile_product(product, config, mapping).program, config, memory)
        assert found is not None and found.leapt >= 0.6 * len(found.times), mapping
        # It goes to other processes.
        assert np.array_equal(pickle.loads(pickle.dumps(found)).times, found.times)
