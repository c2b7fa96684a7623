"""Products on the Verilated device: every bit as the golden model, every cycle as predicted."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from products import assert_same_bits, make_case, random_product, run_case

CONFIGS = {
    "1x1": SatConfig(rows=1, cols=1),
    "3x5": SatConfig(rows=3, cols=5, a_words=64, b_words=64, sum_words=128),
    "8x8": SatConfig(),
    "16x16": SatConfig(rows=16, cols=16),
    "4x4 of 16, s=8": SatConfig(
        rows=4, cols=4, max_m=16, max_n=4, interleave=8,
        fp=FpTiming(multiplier_stages=2, adder_stages=8), a_words=32, b_words=32,
        axi=AxiConfig(data_bits=256, burst_beats=4, outstanding=2),
    ),
    "2x3 of 4, narrow": SatConfig(
        rows=2, cols=3, max_m=4, max_n=2, a_words=32, b_words=16, sum_words=32,
        axi=AxiConfig(data_bits=32),
    ),
}  # fmt: skip
TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=100, write_latency=60, cycles_per_beat=3),
]


@lru_cache
def device(name: str, timing: MemoryTiming) -> DeviceRtl:
    """Return the simulated device of a configuration, made once."""
    return DeviceRtl(CONFIGS[name], timing, memory_bytes=1 << 21)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CONFIGS]
)
@pytest.mark.parametrize("part", range(4))
def test_random_products(name, part):
    """Random sizes, patterns, mappings, memories: 4 x 6 x 25 products, specials in half."""
    config = CONFIGS[name]
    rng = random.Random(f"{name} {part}")
    for number in range(25):
        product = random_product(rng, config)
        case = make_case(product, rng.randrange(1 << 32), 0.05 if number % 2 else 0.0)
        mapping = rng.choice(legal_mappings(product, config))
        ran = run_case(device(name, rng.choice(TIMINGS)), config, case, mapping)
        assert_same_bits(ran.got, case.want)
        assert ran.cycles == ran.predicted, (product, mapping)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CONFIGS]
)
def test_random_stacks(name):
    """Stacks of 2 to 9 products as one program, which takes fewer cycles than one each."""
    config = CONFIGS[name]
    rng = random.Random(f"stacks {name}")
    for number in range(10):
        one = random_product(rng, config)
        product = replace(one, count=rng.randint(2, 9))
        case = make_case(product, rng.randrange(1 << 32), 0.05 if number % 2 else 0.0)
        mapping = rng.choice(legal_mappings(product, config))
        timing = rng.choice(TIMINGS)
        ran = run_case(device(name, timing), config, case, mapping)
        assert_same_bits(ran.got, case.want)
        assert ran.cycles == ran.predicted, (product, mapping)
        alone = predict(compile_product(one, config, mapping).program, config, timing).cycles
        assert ran.cycles < product.count * alone


PATTERNS = [(1, 1), (1, 2), (2, 4), (1, 4), (3, 4), (2, 8), (4, 8), (5, 8), (8, 8)]


@pytest.mark.xdist_group("16x16")
@pytest.mark.parametrize("n, m", PATTERNS)
def test_every_mapping_and_array_gives_the_same_bits(n, m):
    """One product, every legal mapping (both dataflows) on four arrays: the same bits."""
    product = Product(37, 29, 45, n, m)
    case = make_case(product, 10 * n + m)
    for name in ("1x1", "3x5", "8x8", "16x16"):
        mappings = legal_mappings(product, CONFIGS[name])
        assert {mapping.dataflow for mapping in mappings} == {"os", "ws"}
        if name == "1x1":
            mappings = random.Random(n * m).sample(mappings, 4)
        for mapping in mappings:
            ran = run_case(device(name, TIMINGS[0]), CONFIGS[name], case, mapping)
            assert_same_bits(ran.got, case.want)
            assert ran.cycles == ran.predicted, (name, mapping)
