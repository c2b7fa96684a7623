"""Whole training steps on the Verilated device: all of memory as the golden device has it.

Each step is one program: FF with bias and ReLU, BP with a mask, WU, weight update, both prunings.
The golden device runs the same program; the golden step is computed apart from any program.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.compile import parts
from sat.dataflow.compile.step import STAGES, Sgd, compile_step, compile_updates
from sat.dataflow.cycles import predict
from sat.devices.stages import write_step
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden import layer as golden_layer
from sat.sim.golden.device import GoldenDevice
from sat.sim.golden.update import Rates
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import (
    SORTS,
    any_mapping,
    compare,
    random_layer,
    random_sgd,
    random_tensors,
    run_on_both,
)

CONFIGS = {"4x4": SatConfig(rows=4, cols=4), "8x8": SatConfig()}
TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=100, write_latency=60, cycles_per_beat=3),
]
SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4, sr_ste=2e-4, loss_scale=8)
PATTERNS = [(1, 1), (2, 4), (2, 8), (1, 4), (4, 8)]
SHAPES = {
    "conv3x3": {"kernel": (3, 3), "padding": (1, 1)},
    "conv3x3 s2": {"kernel": (3, 3), "padding": (1, 1), "stride": (2, 2)},
    "conv1x1": {},
    "depthwise": {"kernel": (3, 3), "padding": (1, 1), "groups": 16},
    "linear": {"batch": 13, "lines": 1, "pixels": 1},
}

arrays = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CONFIGS]


@lru_cache
def devices(name: str, timing: MemoryTiming) -> tuple[DeviceRtl, GoldenDevice]:
    """Return a simulated device and a golden one with the same buffers all along."""
    device = DeviceRtl(CONFIGS[name], timing, memory_bytes=1 << 21)
    return device, GoldenDevice(CONFIGS[name], device.memory.copy())


def run_step(name: str, timing: MemoryTiming, layer: Layer, seed: int, specials: float, sgd: Sgd):
    """Run a step on the devices of a configuration."""
    return run_on_both(*devices(name, timing), layer, seed, specials, sgd)


@pytest.mark.parametrize("name", arrays)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_step(name, shape, pattern):
    """The layers that networks are made of, under the patterns that papers use."""
    if shape == "depthwise" and pattern != (1, 1):
        with pytest.raises(ValueError, match="leave it dense"):
            Layer(in_channels=16, out_channels=16, **SHAPES[shape], ff=pattern)
        return
    sizes = {"batch": 2, "lines": 6, "pixels": 5, "in_channels": 16, "out_channels": 16}
    layer = Layer(
        **{**sizes, **SHAPES[shape]}, ff=pattern, bp=pattern, bias=True, relu=True, masked=True
    )
    outcome = run_step(name, TIMINGS[0], layer, 1, 0.0, SGD)
    assert (outcome.non_finite, outcome.skipped) == (0, 0)


@pytest.mark.parametrize("name", arrays)
@pytest.mark.parametrize("part", range(4))
def test_random_steps(name, part):
    """Random layers, memories, rates: 2 x 4 x 26; odd numbers in every second."""
    rng = random.Random(f"{name} {part}")
    for number in range(26):
        layer = random_layer(rng, CONFIGS[name])
        sgd = random_sgd(rng)
        seed, specials = rng.randrange(1 << 32), 0.05 * (number % 2)
        run_step(name, rng.choice(TIMINGS), layer, seed, specials, sgd)


@pytest.mark.parametrize("name", arrays)
def test_steps_under_any_mapping(monkeypatch, name):
    """Random layers, their products under mappings of every sort, chosen by lot."""
    rng, seen = random.Random(f"mappings {name}"), Counter()
    monkeypatch.setattr(parts, "fewest_cycles", any_mapping(rng, seen))
    for number in range(26):
        layer = random_layer(rng, CONFIGS[name])
        run_step(name, rng.choice(TIMINGS), layer, number, 0.05 * (number % 2), random_sgd(rng))
    assert min(seen[sort] for sort in SORTS) >= 2, seen


def run_program(name: str, timing: MemoryTiming, steps, tensors) -> None:
    """Run a program of steps on both devices: all of memory, and cycles as predicted."""
    device, golden = devices(name, timing)
    program, address, size = steps[0].program, steps[0].address, steps[-1].end + 4096
    device.memory[:size] = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    for step, given in zip(steps, tensors, strict=True):
        write_step(device.memory, step, given)
    golden.memory = device.memory[:size].copy()
    outcome, verdict = device.run(address, len(program)), golden.run(address, len(program))
    assert outcome.status is verdict.status is Status.DONE
    assert np.array_equal(golden.memory, device.memory[:size])
    predicted = predict(program, CONFIGS[name], timing, address)
    assert outcome.cycles == predicted.cycles, (outcome.cycles, predicted.cycles)


@pytest.mark.parametrize("name", arrays)
def test_any_two_stages(name):
    """Random layers, any stage behind any other, whose first loads may be fetched in it."""
    rng = random.Random(f"two stages {name}")
    for number in range(24):
        layer, timing = random_layer(rng, CONFIGS[name]), rng.choice(TIMINGS)
        stages = rng.choice(STAGES), rng.choice(STAGES)
        step = compile_step(layer, CONFIGS[name], timing, stages, random_sgd(rng))
        tensors = random_tensors(number, layer)
        tensors["g"] = np.random.default_rng(number).standard_normal(tensors["w"].shape)
        tensors["g"] = tensors["g"].astype(np.float32)
        run_program(name, timing, [step], [tensors])


@pytest.mark.parametrize("name", arrays)
def test_updates_of_several_layers(name):
    """Random layers whose weights are updated by one program."""
    rng = random.Random(f"updates {name}")
    for number in range(6):
        layers, timing = [random_layer(rng, CONFIGS[name]) for _ in range(3)], rng.choice(TIMINGS)
        steps = compile_updates(layers, CONFIGS[name], timing, random_sgd(rng))
        tensors = [random_tensors(number, layer) for layer in layers]
        for given in tensors:
            given["g"] = given["v"] / 2
        run_program(name, timing, steps, tensors)


@pytest.mark.parametrize("name", arrays)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_gradient_that_is_not_finite_skips_the_whole_update(name, bad):
    """One bad gradient anywhere: no weight changes, the count is reported, copies stay right."""
    layer = Layer(
        batch=2, lines=5, pixels=4, in_channels=40, out_channels=48, kernel=(3, 3),
        padding=(1, 1), ff=(2, 8), bp=(2, 8),
    )  # fmt: skip
    timing = TIMINGS[0]
    device, _ = devices(name, timing)
    step = compile_step(layer, CONFIGS[name], timing, STAGES, SGD)
    tensors = random_tensors(3, layer)
    # The last output channel: its gradients are stored last.
    tensors["dy"][1, 4, 3, 47] = bad
    on_device = write_step(device.memory, step, tensors)
    copies = {copy: on_device.read_copy(copy) for copy in ("ff", "bp")}
    outcome = device.run(step.address, len(step.program))
    want = golden_layer.step(layer, Rates(**SGD.fields()), **tensors)
    assert outcome.status is Status.DONE
    assert outcome.non_finite == np.count_nonzero(~np.isfinite(want.g)) > 0
    assert outcome.skipped == sum(i.opcode.name == "UPDATE" for i in step.program) > 1
    compare(step, on_device, want)
    for name_of, (values, indices) in copies.items():
        after = on_device.read_copy(name_of)
        assert np.array_equal(after[0].view(np.uint16), values.view(np.uint16))
        assert np.array_equal(after[1], indices)
    # The next program finds the device ready, and its own count at 0.
    good = run_step(name, timing, replace(layer, batch=1), 4, 0.0, SGD)
    assert (good.non_finite, good.skipped) == (0, 0)
