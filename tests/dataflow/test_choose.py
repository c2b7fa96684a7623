"""Mappings of products: none that was listed is better than the choice, and what it must reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.dataflow import search
from sat.dataflow.columns import with_end
from sat.dataflow.compile import choose, compile_product
from sat.dataflow.compile.choose import EACH, SURE, Trial, cycles, fastest_order, fewest_cycles
from sat.dataflow.compile.memory import memory_map
from sat.dataflow.compile.product import planner_of
from sat.dataflow.compile.schedule import ORDERS, schedule, schedules
from sat.dataflow.compile.step import compile_step
from sat.dataflow.cost import stage_cost
from sat.dataflow.cycles import predict
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

CONFIGS = [
    SatConfig(),
    SatConfig(rows=3, cols=5, a_words=64, b_words=64),
    SatConfig(rows=4, cols=4, max_m=16, axi=AxiConfig(data_bits=256), interleave=8),
    SatConfig(rows=16, cols=16),
]
PRODUCTS = st.builds(
    lambda sizes, pattern, start: Product(*sizes, *pattern, start),
    st.tuples(st.integers(1, 200), st.integers(1, 60), st.integers(1, 120)),
    st.sampled_from([(1, 1), (2, 8), (1, 4)]),
    st.sampled_from(list(StartShape)),
)


@settings(max_examples=30)
@given(st.sampled_from(CONFIGS), PRODUCTS, st.sampled_from([1, 3]))
def test_no_mapping_that_was_listed_is_better(config, product, step):
    memory = MemoryTiming(cycles_per_beat=step)
    costs = {}

    def listed(shapes, estimate, cost, floor, least, enough):
        # All that is listed is costed: no floor is high enough to leave one out.
        def kept(shape):
            costs[shape] = cost(shape)
            return costs[shape]

        return fewest_cycles(shapes, estimate, kept, lambda shape: 0, least, enough)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "fewest_cycles", listed)
        compiled, found = search._search(product, config, memory, "auto")
    if costs:  # one mapping alone need not be costed
        assert found == min(costs.values()) == costs[compiled.mapping]
    assert found == predict(compiled.program, config, memory).cycles
    _, quick = search._search(product, config, memory, "auto")
    assert quick - found <= found / SURE
    for mapping, exact in costs.items():
        made = compile_product(product, config, mapping)
        assert predict(made.program, config, memory).cycles == exact
    sorts = [mapping.sort for mapping in costs]
    assert all(sorts.count(sort) <= EACH for sort in sorts)
    # Nothing was left out but what is no more promising than all that were listed of its sort.
    if (
        found * (search.ENOUGH - 1)
        > search.ENOUGH * product.macs // (config.rows * config.cols) + search.ENOUGH
    ):
        every = [mapping.sort for mapping in set(legal_mappings(product, config))]
        assert all(sorts.count(sort) == min(EACH, every.count(sort)) for sort in every)


@settings(max_examples=30)
@given(st.sampled_from(CONFIGS), PRODUCTS, st.data())
def test_the_best_order_is_taken(config, product, data):
    memory = MemoryTiming(read_latency=40)
    mapping = data.draw(st.sampled_from(legal_mappings(product, config)))
    planner = planner_of(product, config, mapping, memory_map(product, config, 0))
    made = list(schedules([planner], ORDERS))
    costs = []
    order, best, known = fastest_order([planner], config, memory)
    assert best.tobytes() == schedule([planner], order).tobytes()
    for instructions in (best, *made):
        program = Program.of(with_end(instructions))
        program.validate(config)
        costs.append(predict(program, config, memory).cycles)
    assert costs[0] == min(costs) == known.cycles
    assert costs[1] == cycles([planner], config, memory)
    # Orders differ in nothing but order.
    assert len({tuple(sorted(i.tobytes() for i in order)) for order in made}) == 1


LONG = [Product(9000, 60, 96, 2, 8), Product(6000, 33, 40), Product(4000, 200, 64, 1, 4)]


@pytest.mark.parametrize("product", LONG, ids=str)
def test_long_products_are_costed_by_a_part(product):
    """Products of like blocks: what is worked out of two parts is what the whole takes."""
    config, memory = SatConfig(), MemoryTiming(read_latency=40)
    mappings = {m.sort: m for m in legal_mappings(product, config)}.values()
    for mapping in mappings:

        def make(mapping=mapping):
            return planner_of(product, config, mapping, memory_map(product, config, 0))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choose, "SAMPLE", 200)
            trial = Trial(make, config, memory)
        exact = cycles([make()], config, memory)
        assert trial.cycles() == pytest.approx(exact, rel=0.02), mapping
        assert not trial.whole or trial.cycles() == exact
        # By the first blocks, or by all: no order is chosen that takes more than the first.
        _, _, found = fastest_order([make()], config, memory, trial=trial)
        assert found.cycles <= exact


def share(layer: Layer, config: SatConfig, stage: str) -> float:
    """Return which share of the array's multipliers a stage uses, memory 40 cycles away."""
    memory = MemoryTiming(read_latency=40, write_latency=40)
    step = compile_step(layer, config, memory, (stage,))
    n, m = {"ff": layer.ff, "bp": layer.bp, "wu": (1, 1)}[stage]
    least = layer.dense_macs * n / m / (config.rows * config.cols)
    return least / predict(step.program, config, memory, step.address).cycles


CONV = {"lines": 28, "pixels": 28, "kernel": (3, 3), "padding": (1, 1)}
BIG = SatConfig(
    rows=16, cols=16, max_m=16, sum_words=1024, axi=AxiConfig(data_bits=256, outstanding=64)
)
CASES = [
    # Linear layers' sparse BP: more depth than the buffers hold.
    (SatConfig(), "bp", 0.96, Layer(batch=64, in_channels=256, out_channels=3072, bp=(2, 8))),
    (BIG, "bp", 0.93, Layer(batch=256, in_channels=256, out_channels=3072, bp=(2, 8))),
    # Much depth and many columns, on a port that cannot bring them for each tile.
    (BIG, "ff", 0.98, Layer(batch=1, in_channels=128, out_channels=128, **CONV)),
    (BIG, "ff", 0.94, Layer(batch=2, in_channels=64, out_channels=64, ff=(2, 8), **CONV)),
    # Strides: products of few taps, one after the other.
    (
        BIG,
        "bp",
        0.94,
        Layer(batch=2, in_channels=128, out_channels=128, stride=(2, 2), **CONV),
    ),
    # Odd depths of the weights' gradient.
    (BIG, "wu", 0.97, Layer(batch=8, in_channels=128, out_channels=128, **CONV | {"lines": 7})),
]


@pytest.mark.parametrize("config, stage, least, layer", CASES)
def test_what_products_must_reach(config, stage, least, layer):
    assert share(layer, config, stage) >= least


PRUNING = SatConfig(
    rows=32, cols=32, a_words=1024, b_words=1024, sum_words=2048, prune_gathers=True,
    axi=AxiConfig(data_bits=512, ports=4, outstanding=64),
)  # fmt: skip
"""32x32 on 256 bytes a cycle."""

GRADIENTS = [
    # Lines and pixels, channels, kernel, batch, stride; the most cycles of dense WU.
    (56, (64, 64), 3, 2, 1, 226_657),
    (28, (128, 128), 3, 2, 1, 226_669),
    (28, (128, 128), 3, 8, 2, 226_670),
    (14, (256, 256), 3, 4, 1, 452_865),
    (7, (512, 512), 3, 8, 1, 904_225),
    (56, (256, 64), 1, 4, 1, 201_953),
    (56, (64, 256), 1, 4, 1, 201_953),
    (1, (768, 3072), 1, 1024, 1, 2_362_977),
    (1, (3072, 768), 1, 1024, 1, 2_362_977),
]
"""The layers of `benchmarks/bench_sparse_wu.py`."""


@pytest.mark.parametrize("size, channels, kernel, batch, stride, most", GRADIENTS)
def test_sparse_gradients_are_worth_it(size, channels, kernel, batch, stride, most):
    """WU at 2:8, of which the array needs a quarter of the cycles, takes at most 1 / 3.4."""
    dense = Layer(
        batch=batch, lines=size, pixels=size, in_channels=channels[0], out_channels=channels[1],
        kernel=(kernel, kernel), stride=(stride, stride), padding=(kernel // 2, kernel // 2),
    )  # fmt: skip
    memory = MemoryTiming(read_latency=40, write_latency=40)
    cycles = [
        stage_cost("wu", layer, PRUNING, memory).cycles
        for layer in (dense, replace(dense, wu=(2, 8)))
    ]
    assert cycles[0] <= most and cycles[0] >= 3.4 * cycles[1], cycles


def test_a_convolution_loads_its_pixels_once_where_they_fit():
    """Nine taps overlap: gathered for each position they would be read nine times."""
    layer = Layer(batch=2, in_channels=64, out_channels=64, ff=(2, 8), **CONV)
    narrow = replace(BIG, axi=AxiConfig(data_bits=64, outstanding=64))
    memory = MemoryTiming(read_latency=40)
    step = compile_step(layer, narrow, memory, ("ff",))
    read = predict(step.program, narrow, memory, step.address).beats_read * 8
    pixels = layer.in_positions * 128
    assert read < 3 * pixels + 64 * 9 * 16 * 3, read / pixels


def test_what_is_good_enough_ends_the_list():
    costed = []

    class Shape(int):
        sort = "alone"

    def cost(shape):
        costed.append(shape)
        return 10**5 + shape

    shapes = [Shape(n) for n in (9, 3, 7, 5)]

    def none(shape):
        return 0

    assert fewest_cycles(shapes, float, cost, none, 0) == 3 and costed == [3, 5, 7]
    costed.clear()
    assert fewest_cycles(shapes, float, cost, none, 10**5) == 3 and costed == [3]
    costed.clear()
    backwards = fewest_cycles(shapes, lambda shape: -shape, cost, none, 10**5, 1 << 20)
    assert backwards == 5 and costed == [9, 7, 5]
    costed.clear()
    # What is sure to save next to nothing is not costed: 10**5 + 7 of 10**5 + 9, and 5, do not.
    floors = {9: 0, 7: 10**5 + 8, 5: 10**5 - 1}.__getitem__
    backwards = fewest_cycles(shapes, lambda shape: -shape, cost, floors, 10**5, 1 << 20)
    assert backwards == 5 and costed == [9, 5]
    costed.clear()
    # One alone needs no cost.
    assert fewest_cycles(shapes[:1], float, cost, none, 0) == 9 and costed == []
