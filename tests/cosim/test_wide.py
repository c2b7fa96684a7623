"""Large arrays on wide memory, array on vectors: every bit as golden, every cycle as predicted."""

from __future__ import annotations

import random
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from sat.dataflow.compile.step import Sgd
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import random_layer, random_sgd, run_on_both

CONFIGS = {
    "16x16, 2 x 256 bits": SatConfig(
        rows=16, cols=16, update_lanes=8, axi=AxiConfig(data_bits=256, ports=2, outstanding=64)
    ),
    "32x32, 4 x 512 bits": SatConfig(
        rows=32, cols=32, a_words=1024, b_words=1024, sum_words=2048, update_lanes=32,
        tile_weights=16384, axi=AxiConfig(data_bits=512, ports=4, outstanding=64),
    ),
}  # fmt: skip
TIMING = MemoryTiming(read_latency=40, write_latency=40)
SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4, sr_ste=2e-4, loss_scale=8)


@lru_cache
def devices(name: str) -> tuple[DeviceRtl, GoldenDevice]:
    """Return a simulated device and a golden one with the same buffers all along."""
    device = DeviceRtl(CONFIGS[name], TIMING, memory_bytes=1 << 24, engine="simd")
    return device, GoldenDevice(CONFIGS[name], device.memory.copy())


@pytest.mark.parametrize(
    "part", [pytest.param(n, marks=pytest.mark.long if n else ()) for n in range(5)]
)
def test_random_layers_16x16(part):
    """5 x 11 whole steps of random layers; odd numbers in every second."""
    name = "16x16, 2 x 256 bits"
    rng = random.Random(f"wide {part}")
    for number in range(11):
        layer = random_layer(rng, CONFIGS[name], largest=48)
        seed, specials = rng.randrange(1 << 32), 0.05 * (number % 2)
        run_on_both(*devices(name), layer, seed, specials, random_sgd(rng))


@pytest.mark.long
@pytest.mark.parametrize("pattern", [(1, 1), (2, 8)])
@pytest.mark.parametrize(
    "shape",
    [
        {"lines": 7, "pixels": 9, "in_channels": 64, "out_channels": 64, "kernel": (3, 3),
         "padding": (1, 1), "masked": True},
        {"lines": 9, "pixels": 8, "in_channels": 128, "out_channels": 64, "masked": True},
        {"batch": 96, "in_channels": 136, "out_channels": 200},
    ],
    ids=["conv3x3", "conv1x1", "linear"],
)  # fmt: skip
def test_a_step_of_each_kind_32x32(shape, pattern):
    layer = Layer(**{"batch": 2, **shape}, ff=pattern, bp=pattern, bias=True, relu=True)
    outcome = run_on_both(*devices("32x32, 4 x 512 bits"), layer, 1, 0.0, SGD)
    assert (outcome.non_finite, outcome.skipped) == (0, 0)
