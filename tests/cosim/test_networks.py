"""Layers of networks, scaled down, as whole training steps on the RTL: bits and cycles, error 0.

Every different layer of every network that is known by name: kernel, stride, padding, groups as
they are, channels 16 times fewer, images 8 times smaller, dense and pruned, on three memories.
"""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import pytest

from sat.dataflow.mapping import ceil_div, round_up
from sat.networks.sources import load
from sat.networks.zoo import NETWORKS
from sat.rtl.config import SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import random_sgd, run_on_both

CONFIGS = {"4x4": SatConfig(rows=4, cols=4), "8x8": SatConfig()}
TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=100, write_latency=60, cycles_per_beat=3),
]
PATTERNS = [(1, 1), (2, 8), (2, 4)]


@lru_cache
def devices(name: str, timing: MemoryTiming) -> tuple[DeviceRtl, GoldenDevice]:
    """Return a simulated device and a golden one."""
    device = DeviceRtl(CONFIGS[name], timing, memory_bytes=1 << 21)
    return device, GoldenDevice(CONFIGS[name], device.memory.copy())


def scaled(layer: Layer) -> Layer:
    """Return a small copy: the same operation on fewer channels, smaller images, fewer of them."""

    def channels(count: int) -> int:
        # Colours stay three.
        return count if count < 8 else round_up(min(40, ceil_div(count, 16)), 8)

    def side(axis: int, size: int) -> int:
        reach = layer.dilation[axis] * (layer.kernel[axis] - 1) + 1
        return size if size == 1 else max(reach, 2 * layer.stride[axis], ceil_div(size, 8))

    positions = layer.lines * layer.pixels
    return replace(
        layer,
        batch=min(layer.batch, 1 + (positions > 1) if positions > 1 else 24),
        lines=side(0, layer.lines),
        pixels=side(1, layer.pixels),
        in_channels=channels(layer.in_channels),
        out_channels=channels(layer.out_channels),
    )


@cache
def layers_of(network: str) -> tuple[Layer, ...]:
    """Return a network's different layers, scaled down."""
    operations = load(network).operations
    found = [scaled(op.layer) for op in operations if op.layer is not None]
    return tuple(dict.fromkeys(found))


def run(layer: Layer, number: int, name: str) -> None:
    """Run a layer's training step under one of the patterns that it takes."""
    rng = random.Random(number)
    pattern, timing = PATTERNS[number % 3], TIMINGS[number // 3 % 3]
    if layer.in_channels % 8 or layer.out_channels % 8:
        pattern = (1, 1)
    layer = replace(
        layer,
        ff=pattern,
        bp=pattern,
        relu=rng.random() < 0.5,
        masked=rng.random() < 0.5,
    )
    run_on_both(*devices(name, timing), layer, number, 0.0, random_sgd(rng))


@pytest.mark.xdist_group("8x8")
@pytest.mark.parametrize("network", NETWORKS)
def test_two_layers_of_each_network(network):
    layers = layers_of(network)
    rng = random.Random(network)
    for number, layer in enumerate(rng.sample(layers, min(2, len(layers)))):
        run(layer, 4 * number + 1, "8x8")


@pytest.mark.long
def test_every_layer_of_every_network():
    """All layers, patterns and memories, on the smaller device and the larger in turn."""
    cases = list(
        itertools.product(
            dict.fromkeys(itertools.chain.from_iterable(map(layers_of, NETWORKS))), range(9)
        )
    )
    assert len(cases) >= 300
    for count, (layer, number) in enumerate(cases):
        run(layer, number, list(CONFIGS)[count % 2])
