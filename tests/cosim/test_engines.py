"""The array by lanes and the Verilated array: the same bits, cycles and counters, everywhere."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.host import write_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product
from sat.devices.stages import write_step
from sat.rtl.config import FpTiming, SatConfig
from sat.rtl.device import Device
from sat.rtl.isa import Status
from sat.rtl.verilog import emit
from sat.sim.device_rtl import DeviceRtl
from sat.sim.engines import SIMD_FROM, choose, make_design
from sat.sim.golden.device import GoldenDevice
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import random_layer, random_sgd, random_tensors, run_on_both
from products import assert_same_bits, make_case, random_product, run_case

ENGINES = ("verilator", "simd")
SMALL = SatConfig(rows=2, cols=3, a_words=64, b_words=64, sum_words=64)
SHAPES = {
    "1x8": SatConfig(rows=1, cols=8),
    "4x4": SatConfig(rows=4, cols=4),
    "4x4 of 16, s=8": SatConfig(
        rows=4, cols=4, max_m=16, max_n=4, interleave=8,
        fp=FpTiming(multiplier_stages=2, adder_stages=7),
    ),
    "8x8": SatConfig(),
    "16x16": SatConfig().with_array("16x16"),
    "32x32": SatConfig().with_array("32x32"),
}  # fmt: skip


@lru_cache
def watched(engine: str) -> DeviceRtl:
    """Return a small device that records what crosses its array's edge."""
    design = make_design(SMALL, engine, boundary=True)
    return DeviceRtl(SMALL, memory_bytes=1 << 20, engine=engine, design=design)


def everywhere(program) -> list[tuple]:
    """Run the same on both engines; return what each left: memory, outcome, the array's edge."""
    left = []
    for engine in ENGINES:
        device = watched(engine)
        device.memory[:] = 0xA5
        device.boundary()
        outcome = program(device)
        left.append((device.memory.copy(), outcome, device.boundary()))
    return left


def assert_equal(left: list[tuple]) -> None:
    (memory, outcome, crossed), (other_memory, other, other_crossed) = left
    assert np.array_equal(memory, other_memory)
    assert outcome == other
    assert len(crossed) > 0 and np.array_equal(crossed, other_crossed)


@pytest.mark.parametrize("seed", range(12))
def test_products_cross_the_edge_alike(seed):
    """Products of any pattern and dataflow: memory, counters, and the array's edge every cycle."""
    rng = random.Random(seed)
    product = random_product(rng, SMALL)
    case = make_case(product, seed, 0.05 * (seed % 2))
    mapping = rng.choice(legal_mappings(product, SMALL))
    assert_equal(everywhere(lambda device: run_case(device, SMALL, case, mapping).cycles))


@pytest.mark.parametrize("seed", range(4))
def test_steps_cross_the_edge_alike(seed):
    """Whole training steps: FF, BP, WU, update."""
    rng = random.Random(seed)
    layer = random_layer(rng, SMALL, largest=16)
    step = compile_step(layer, SMALL, MemoryTiming(), STAGES, random_sgd(rng))

    def program(device):
        write_step(device.memory, step, random_tensors(seed, layer))
        return device.run(step.address, len(step.program))

    assert_equal(everywhere(program))


def test_errors_and_resets_cross_the_edge_alike():
    """A program that stops with an error, a soft reset, then a good program."""
    case = make_case(Product(9, 7, 30, 2, 8), 3)
    mapping = legal_mappings(case.product, SMALL)[0]

    def program(device):
        device.fail("read", 2)
        compiled = compile_product(case.product, SMALL, mapping)
        write_product(
            device.memory, compiled.memory, compiled.program,
            case.a, case.values, case.indices, case.start,
        )  # fmt: skip
        failed = device.run(compiled.memory.program.address, len(compiled.program))
        assert failed.status is not Status.DONE
        device.soft_reset()
        return failed, run_case(device, SMALL, case, mapping).cycles

    assert_equal(everywhere(program))


@lru_cache
def by_lanes(name: str, timing: MemoryTiming, purpose: str) -> DeviceRtl:
    """Return a device with its array by lanes, one for each purpose."""
    return DeviceRtl(SHAPES[name], timing, memory_bytes=1 << 21, engine="simd")


@lru_cache
def both(name: str, timing: MemoryTiming) -> tuple[DeviceRtl, GoldenDevice]:
    """Return such a device and a golden one with the same buffers all along."""
    device = by_lanes(name, timing, "steps")
    return device, GoldenDevice(SHAPES[name], device.memory.copy())


TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=100, write_latency=60, cycles_per_beat=3),
]


def sweep(name: str, products: int, layers: int, seed: int) -> None:
    """Run random products and steps: golden bits, predicted cycles."""
    config = SHAPES[name]
    rng = random.Random(f"{name} {seed}")
    for number in range(products):
        product = random_product(rng, config)
        case = make_case(product, rng.randrange(1 << 32), 0.05 * (number % 2))
        device = by_lanes(name, rng.choice(TIMINGS), "products")
        ran = run_case(device, config, case, rng.choice(legal_mappings(product, config)))
        assert_same_bits(ran.got, case.want)
        assert ran.cycles == ran.predicted, (product, ran.mapping)
    for number in range(layers):
        layer, sgd = random_layer(rng, config), random_sgd(rng)
        specials = 0.05 * (number % 2)
        run_on_both(*both(name, rng.choice(TIMINGS)), layer, rng.randrange(1 << 32), specials, sgd)


@pytest.mark.xdist_group("8x8")
def test_products_and_steps_on_8x8():
    sweep("8x8", products=30, layers=8, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("name", SHAPES)
def test_products_and_steps_on_every_shape(name):
    """Six shapes with 100 products and 34 layers each: 600 and 204."""
    sweep(name, products=100, layers=34, seed=1)


def test_the_engine_that_a_request_stands_for():
    small, large = SatConfig(rows=1, cols=1), SatConfig().with_array("32x32")
    assert small.rows * small.cols < SIMD_FROM <= large.rows * large.cols
    assert (choose("auto", small), choose("auto", large)) == ("verilator", "simd")
    assert choose("auto", large, waves=True) == "verilator"
    assert choose("simd", small) == "simd"
    with pytest.raises(ValueError, match="engine='fast': must be one of auto, verilator, simd"):
        choose("fast", small)
    with pytest.raises(ValueError, match="no signals of the array"):
        choose("simd", large, waves=True)
    crossing = replace(large, crossings=(16,))
    assert choose("auto", crossing) == "verilator"
    with pytest.raises(ValueError, match=r"crossings=\(16,\): use engine='verilator'"):
        choose("simd", crossing)
    with pytest.raises(ValueError, match="Device has no part 'lace'"):
        emit(Device(SMALL), outside=("lace",))
