"""Random devices, random work: scalar reference, golden device, validator, cycle model and RTL.

Every field of `SatConfig` varies. Whole training steps and single products are compared bit for
bit with `reference.py`, which shares no code with SAT; programs pass the validator, which refuses
what could overflow a semaphore with any timing; on the RTL, cycles are those predicted.
"""

from __future__ import annotations

import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.compile.step import STAGES, CompiledStep, Sgd, check_layer, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.fit import DoesNotFit, with_fixes
from sat.dataflow.host import read_result, write_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program
from sat.devices.stages import write_step
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl, Outcome
from sat.sim.golden import sore
from sat.sim.golden.device import GoldenDevice
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
import reference
from configurations import random_config
from layers import random_layer, random_tensors, same_bits
from products import halves

MEMORY = 1 << 21
"""Bytes of the memories here; the narrowest address is that wide."""

MACS = 4000
"""Multiplications of a stage that the scalar reference is asked for, at most."""


def random_sgd(rng: random.Random, layer: Layer) -> Sgd:
    made = Sgd(
        learning_rate=rng.choice([0.05, 0.5]),
        momentum=rng.choice([0.0, 0.9]),
        weight_decay=rng.choice([0.0, 5e-4]),
        sr_ste=rng.choice([0.0, 2e-4]),
        loss_scale=rng.choice([1.0, 8.0]),
    )
    # SR-STE beside a pruned WU is refused.
    return made if layer.wu == (1, 1) else replace(made, sr_ste=0.0)


def random_product(rng: random.Random, config: SatConfig, macs: int = MACS) -> Product:
    """Return a product of at most so many multiplications, one side often long."""
    m = rng.choice([1, *(m for m in (2, 4, 8, 16) if m <= config.max_m)])
    sizes = [rng.randint(1, 12), rng.randint(1, 12)]
    longest = max(1, macs // (sizes[0] * sizes[1]))
    sizes.append(rng.randint(1, rng.choice([min(longest, 20), longest])))
    rng.shuffle(sizes)
    return Product(*sizes, rng.randint(1, m), m, rng.choice(list(StartShape)))


def small_layer(rng: random.Random, config: SatConfig) -> Layer:
    while True:
        layer = random_layer(rng, config, largest=16)
        if layer.dense_macs <= MACS:
            return layer


def fitting(layer: Layer, config: SatConfig) -> SatConfig:
    """Return the device, or if it refuses the layer the one that it says would not."""
    try:
        check_layer(layer, config)
    except DoesNotFit as refused:
        # What random layers meet can all be helped.
        assert refused.fixes
        for name, value in refused.fixes.items():
            assert f"{name}={value}" in str(refused)
        with pytest.raises(DoesNotFit):
            compile_step(layer, config, MemoryTiming())
        config = with_fixes(config, refused.fixes)
        check_layer(layer, config)
    return config


def valid(program: Program, config: SatConfig, address: int) -> Program:
    program.validate(config, address, (0, min(MEMORY, 1 << config.axi.address_bits)))
    return program


class Golden:
    """The golden device, used as `DeviceRtl` is."""

    def __init__(self, config: SatConfig):
        self.memory = np.zeros(MEMORY, np.uint8)
        self._device = GoldenDevice(config, self.memory)

    def run(self, address: int, length: int):
        return self._device.run(address, length)


def check_product(rng: random.Random, device, config: SatConfig, timing: MemoryTiming) -> None:
    """Run a random product under a random mapping and compare."""
    wanted = random_product(rng, config)
    mapping = rng.choice(legal_mappings(wanted, config))
    compiled = compile_product(wanted, config, mapping)
    where = compiled.memory
    valid(compiled.program, config, where.program.address)
    numbers = np.random.default_rng(rng.getrandbits(32))
    specials = rng.choice([0.0, 0.05])
    a = halves(numbers, (wanted.rows, wanted.depth), specials)
    b = halves(numbers, (wanted.depth, wanted.cols), specials)
    values, indices, start = b, None, None
    if not wanted.dense:
        values, indices = sore.select(b, wanted.n, wanted.m, axis=0)
    if wanted.start is not StartShape.ZERO:
        rows = wanted.rows if wanted.start is StartShape.MATRIX else 1
        start = numbers.standard_normal((rows, wanted.cols)).astype(np.float32)
    device.memory[: where.end] = 0xA5
    write_product(device.memory, where, compiled.program, a, values, indices, start)
    outcome = device.run(where.program.address, len(compiled.program))
    assert outcome.status is Status.DONE, (config, wanted, mapping, outcome)
    first = 0 if start is None else np.broadcast_to(start, (wanted.rows, wanted.cols))
    want = reference.product(a, b, wanted.n, wanted.m, first)
    same_bits(read_result(device.memory, where), want, f"{wanted} {mapping} on {config}")
    check_cycles(outcome, compiled.program, config, timing, where.program.address)


def check_step(rng: random.Random, device, config: SatConfig, timing: MemoryTiming) -> None:
    """Run a whole training step of a random layer and compare."""
    layer = small_layer(rng, config)
    sgd = random_sgd(rng, layer)
    try:
        step = compile_step(layer, config, timing, STAGES, sgd)
    except DoesNotFit:
        return  # `fitting` holds refusals to their word
    run_step(rng, device, config, timing, step, sgd)


def run_step(
    rng: random.Random,
    device,
    config: SatConfig,
    timing: MemoryTiming,
    step: CompiledStep,
    sgd: Sgd,
) -> None:
    layer = step.layer
    valid(step.program, config, step.address)
    tensors = random_tensors(rng.getrandbits(32), layer, specials=rng.choice([0.0, 0.05]))
    if rng.random() < 0.1:
        tensors["dy"].flat[0] = np.inf  # some gradient is infinite or NaN: no weight may change
    device.memory[: step.end] = 0
    on_device = write_step(device.memory, step, tensors)
    outcome = device.run(step.address, len(step.program))
    assert outcome.status is Status.DONE, (config, layer, outcome)
    want = reference.LayerStep(layer, asdict(sgd), **tensors)
    for name in ("y", "dx", "g", "w", "v"):
        same_bits(on_device.read(name), getattr(want, name), f"{name} of {layer} on {config}")
    if layer.relu:
        assert np.array_equal(on_device.read_mask("out_mask"), want.mask), (layer, config)
    check_cycles(outcome, step.program, config, timing, step.address)


def check_cycles(outcome, program, config, timing, address) -> None:
    if isinstance(outcome, Outcome):
        assert outcome.cycles == predict(program, config, timing, address).cycles, config


def judge(seed: int) -> None:
    """Work of one random device, without RTL."""
    rng = random.Random(seed)
    config = random_config(rng)
    timing = MemoryTiming()
    for _ in range(2):
        check_product(rng, Golden(config), config, timing)
    layer = small_layer(rng, config)
    sgd = random_sgd(rng, layer)
    config = fitting(layer, config)
    step = compile_step(layer, config, timing, STAGES, sgd)
    run_step(rng, Golden(config), config, timing, step, sgd)


@pytest.mark.parametrize("part", range(4))
def test_random_devices(part):
    for seed in range(8 * part, 8 * part + 8):
        judge(seed)


@pytest.mark.long
@pytest.mark.parametrize("part", range(50))
def test_many_random_devices(part):
    for seed in range(1000 + 40 * part, 1040 + 40 * part):
        judge(seed)


def simulate(config: SatConfig, seed: int, products: int, steps: int) -> None:
    """Random work on the RTL of a device."""
    rng = random.Random(seed)
    for timing in (
        MemoryTiming(),
        MemoryTiming(read_latency=90, write_latency=3, cycles_per_beat=2),
    ):
        with DeviceRtl(config, timing, memory_bytes=MEMORY) as device:
            for _ in range(products):
                check_product(rng, device, config, timing)
            for _ in range(steps):
                check_step(rng, device, config, timing)


@pytest.mark.xdist_group("errors")
def test_a_device_as_rtl():
    """A small array with the least buffers and an odd shape: what default devices never meet."""
    config = SatConfig(
        rows=3,
        cols=2,
        max_m=4,
        max_n=3,
        interleave=2,
        fp=FpTiming(multiplier_stages=2, adder_stages=2),
        a_words=16,
        b_words=16,
        sum_words=16,
        update_lanes=1,
        update_words=16,
        copy_words=16,
        tile_weights=256,
        axi=AxiConfig(data_bits=32, burst_beats=4, outstanding=2),
        queue_depth=2,
        crossings=(1,),
    )
    simulate(config, 0, products=15, steps=12)


SMALL = {
    "interleave": 1, "fp": FpTiming(adder_stages=1), "sum_words": 16, "a_words": 32,
    "update_words": 32, "copy_words": 64, "tile_weights": 256, "queue_depth": 2,
}  # fmt: skip
WIDE = {
    "two ports, 4 words": SatConfig(
        rows=2, cols=1, max_m=4, max_n=2, b_words=64, update_lanes=2,
        axi=AxiConfig(data_bits=128, ports=2, outstanding=4), **SMALL,
    ),
    "one port, 4 words": SatConfig(
        rows=3, cols=2, max_n=3, b_words=32, update_lanes=4, axi=AxiConfig(data_bits=512), **SMALL
    ),
    "four ports, 16 words": SatConfig(
        rows=1, cols=3, max_m=4, max_n=4, b_words=128, update_lanes=8,
        axi=AxiConfig(data_bits=256, ports=4, outstanding=64), **SMALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_a_wide_device_as_rtl(name):
    """Beats of several words, on one port and on more: rows, gathers, updates, bit for bit."""
    simulate(WIDE[name], 0, products=10, steps=8)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(24))
def test_random_devices_as_rtl(seed):
    simulate(random_config(random.Random(seed), side=4, depth=1024), seed, products=20, steps=6)
