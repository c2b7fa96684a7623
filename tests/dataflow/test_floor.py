"""Floors: no program under a mapping takes less, and what is left out for one is no better."""

from __future__ import annotations

import contextlib
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow import cost
from sat.dataflow.compile import parts
from sat.dataflow.compile.choose import SURE, cycles, fewest_cycles
from sat.dataflow.compile.memory import memory_map
from sat.dataflow.compile.product import planner_of
from sat.dataflow.compile.step import Stage, compile_step
from sat.dataflow.cost import stage_cost, stage_floor
from sat.dataflow.cycles import predict
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.floor import mapping_floor
from sat.dataflow.layers import LayerMemory
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parents[1] / "cosim"))
from layers import random_layer

CONFIGS = [
    SatConfig(),
    SatConfig(rows=3, cols=5, a_words=64, b_words=64),
    SatConfig(rows=4, cols=4, max_m=16, axi=AxiConfig(data_bits=256), interleave=8),
    SatConfig(rows=16, cols=16, sum_words=1024, axi=AxiConfig(data_bits=256, ports=2)),
    SatConfig(rows=4, cols=4, interleave=1, fp=replace(SatConfig().fp, adder_stages=1)),
]
MEMORIES = st.builds(
    MemoryTiming,
    read_latency=st.sampled_from([1, 20, 40]),
    write_latency=st.sampled_from([1, 40]),
    cycles_per_beat=st.sampled_from([1, 1, 3]),
)


def fitting_layer(seed: int, config: SatConfig) -> Layer:
    """Return a layer that the device runs."""
    rng = random.Random(seed)
    while True:
        layer = random_layer(rng, config)
        with contextlib.suppress(DoesNotFit):
            LayerMemory(layer, config)
            return layer


@settings(max_examples=60)
@given(
    st.sampled_from(CONFIGS),
    MEMORIES,
    st.tuples(st.integers(1, 400), st.integers(1, 90), st.integers(1, 150)),
    st.sampled_from([(1, 1), (2, 8), (1, 4)]),
    st.sampled_from(list(StartShape)),
    st.sampled_from([1, 1, 3]),
    st.data(),
)
def test_no_program_of_a_product_goes_below_its_floor(
    config, memory, sizes, pattern, start, count, data
):
    product = Product(*sizes, *pattern, start, count)
    for _ in range(3):
        mapping = data.draw(st.sampled_from(legal_mappings(product, config)))
        planner = planner_of(product, config, mapping, memory_map(product, config, 0))
        least = mapping_floor(product, config, memory, mapping)
        assert 0 < least <= cycles([planner], config, memory), mapping


@settings(max_examples=40)
@given(st.sampled_from(CONFIGS), MEMORIES, st.integers(0, 1 << 32))
def test_no_program_of_a_layer_goes_below_its_floor(config, memory, seed):
    rng, layer = random.Random(seed), fitting_layer(seed, config)
    where = LayerMemory(layer, config)
    for stage in ("ff", "bp", "wu"):
        for part in Stage.of(stage, layer, where, {}).parts[:2]:
            for mapping in rng.sample(part.mappings(), min(4, len(part.mappings()))):
                exact = cycles([part.planner(mapping)], config, memory)
                assert part.least <= exact
                assert part.floor(mapping, memory) <= exact, (layer, stage, mapping)


@pytest.mark.parametrize("stage", ["ff", "bp"])
def test_zeros_of_the_first_taps_wait_for_no_memory(stage):
    """All of a first chunk may be off the image: zeros, while the first read is under way."""
    config, memory = CONFIGS[1], MemoryTiming(read_latency=40, write_latency=1)
    layer = Layer(
        batch=3, lines=2, pixels=7, in_channels=24, out_channels=16, kernel=(5, 2),
        padding=(2, 0) if stage == "bp" else (4, 1), ff=(8, 8), bp=(8, 8),
    )  # fmt: skip
    (part,) = Stage.of(stage, layer, LayerMemory(layer, config), {}).parts
    assert part.patches.first_zeros == {"bp": 2, "ff": 9}[stage]
    slack = [
        cycles([part.planner(mapping)], config, memory) - part.floor(mapping, memory)
        for mapping in part.mappings()[::2]
    ]
    assert min(slack) >= 0


@settings(max_examples=25)
@given(st.sampled_from(CONFIGS), MEMORIES, st.integers(0, 1 << 32))
def test_no_stage_goes_below_its_floor_and_none_is_worse_for_it(config, memory, seed):
    layer = fitting_layer(seed, config)

    def all_of_them(shapes, estimate, cost, floor, least):
        return fewest_cycles(shapes, estimate, cost, lambda shape: 0, least)

    for stage in ("ff", "bp", "wu"):
        quick = compile_step(layer, config, memory, (stage,))
        found = predict(quick.program, config, memory, quick.address)
        assert stage_floor(stage, layer, config, memory) <= found.cycles
        known = quick.found
        assert known is None or (known.cycles, known.beats_read, known.beats_written) == (
            found.cycles, found.beats_read, found.beats_written
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "fewest_cycles", all_of_them)
            slow = compile_step(layer, config, memory, (stage,))
        best = predict(slow.program, config, memory, slow.address).cycles
        # Products of a stage are chosen one by one, and overlap where they meet.
        alone = len(Stage.of(stage, layer, quick.memory, {}).parts) == 1
        assert found.cycles - best <= best / (SURE if alone else 100)


def fresh(stage: str, layer: Layer, config: SatConfig, memory: MemoryTiming):
    """Return what a stage takes, by its own program."""
    step = compile_step(layer, config, memory, (stage,))
    return predict(step.program, config, memory, step.address).cycles, len(step.program)


SHAPE = {"batch": 3, "lines": 12, "pixels": 12}
TWINS = [
    ("ff", Layer(**SHAPE, in_channels=16, out_channels=32),
     "bp", Layer(**SHAPE, in_channels=32, out_channels=16)),
    ("wu", Layer(**SHAPE, in_channels=16, out_channels=32),
     "wu", Layer(**SHAPE, in_channels=16, out_channels=32, ff=(2, 8), bp=(2, 8))),
]  # fmt: skip


@pytest.mark.parametrize("stage, layer, other_stage, other", TWINS)
def test_stages_that_are_alike_are_costed_once(monkeypatch, stage, layer, other_stage, other):
    config, memory = SatConfig(), MemoryTiming(read_latency=40)
    made = []

    def counted(*args, **named):
        made.append(args)
        return compile_step(*args, **named)

    monkeypatch.setattr(cost, "compile_step", counted)
    for cache in ("_known", "_alike"):
        monkeypatch.setattr(cost, cache, type(cost._known)(100, lambda value: 1))
    lanes = replace(config, update_lanes=2)
    pairs = [(stage, layer, config), (other_stage, other, config), (stage, layer, lanes)]
    costs = [stage_cost(*pair, memory) for pair in pairs]
    assert len(made) == 1
    for pair, found in zip(pairs, costs, strict=True):
        assert (found.cycles, found.instructions) == fresh(*pair, memory)
    # Another device, another memory, another dataflow are not alike.
    stage_cost(stage, layer, replace(config, a_words=64), memory)
    stage_cost(stage, layer, config, MemoryTiming(read_latency=41))
    stage_cost(stage, layer, config, memory, dataflow="os")
    assert len(made) == 4


@settings(max_examples=30)
@given(st.sampled_from(CONFIGS), MEMORIES, st.integers(0, 1 << 32))
def test_a_stage_that_is_alike_takes_as_long(config, memory, seed):
    """Many layers of few sizes: whatever is taken for alike has the cycles of its own program."""
    rng = random.Random(seed)
    size, channels = rng.choice([4, 7, 8]), [config.max_m * n for n in (1, 2, 4)]
    for _ in range(4):
        kernel = rng.choice([1, 1, 3])
        layer = Layer(
            batch=rng.choice([1, 4]), lines=size, pixels=size, in_channels=rng.choice(channels),
            out_channels=rng.choice(channels), kernel=(kernel, kernel),
            padding=(kernel // 2, kernel // 2), bias=rng.random() < 0.3,
        )  # fmt: skip
        for stage in ("ff", "bp", "wu"):
            found = stage_cost(stage, layer, config, memory)
            assert (found.cycles, found.instructions) == fresh(stage, layer, config, memory)
