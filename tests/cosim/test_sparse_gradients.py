"""Whole training steps whose WU prunes the output gradient, on the Verilated device.

As `test_layers.py`: all of memory as the golden device has it, the golden step's results, the
predicted cycles; on a device whose beats are words, on one whose beats hold several, and on one
whose beats hold several groups of channels.
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
from sat.dataflow.compile.step import Sgd, compile_step
from sat.dataflow.cost import stage_cost
from sat.dataflow.fit import DoesNotFit
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import any_mapping, random_layer, random_sgd, run_on_both
from pruned import CONFIGS as PRUNED

CONFIGS = {
    "4x4": SatConfig(
        rows=4, cols=4, max_m=4, max_n=4, prune_gathers=True, axi=AxiConfig(data_bits=64)
    ),
    "8x8 wide": SatConfig(
        prune_gathers=True, fp=FpTiming(prune_stages=3), axi=AxiConfig(data_bits=512)
    ),
    # Two groups of channels are written together, of A and of B.
    "8x8 of 2": PRUNED["8x8 of 2, 32 bytes"],
}
TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=100, write_latency=60, cycles_per_beat=3),
]
SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4, loss_scale=8)
arrays = [pytest.param(name, marks=pytest.mark.xdist_group(f"wu {name}")) for name in CONFIGS]


@lru_cache
def devices(name: str, timing: MemoryTiming) -> tuple[DeviceRtl, GoldenDevice]:
    """Return a simulated device and a golden one with the same buffers all along."""
    device = DeviceRtl(CONFIGS[name], timing, memory_bytes=1 << 21)
    return device, GoldenDevice(CONFIGS[name], device.memory.copy())


@pytest.mark.parametrize("name", arrays)
def test_random_steps(name):
    """Random layers, memories, rates: 3 x 52; odd numbers in every second."""
    rng, sparse = random.Random(f"wu {name}"), 0
    for number in range(52):
        layer = random_layer(rng, CONFIGS[name])
        sparse += layer.wu[0] < layer.wu[1]
        devices_of = devices(name, rng.choice(TIMINGS))
        run_on_both(*devices_of, layer, number, 0.05 * (number % 2), random_sgd(rng))
    # A device of pairs has one pattern that prunes, and 2:2.
    assert sparse >= (26 if CONFIGS[name].max_m > 2 else 16)


@pytest.mark.parametrize("name", arrays)
def test_steps_under_any_mapping(monkeypatch, name):
    rng, seen = random.Random(f"wu mappings {name}"), Counter()
    monkeypatch.setattr(parts, "fewest_cycles", any_mapping(rng, seen))
    for number in range(12):
        layer = random_layer(rng, CONFIGS[name])
        run_on_both(*devices(name, TIMINGS[0]), layer, number, 0.0, random_sgd(rng))
    groups = ["wide tap", "wide taps"] if CONFIGS[name].a_groups > 1 else []
    assert min(seen[sort] for sort in ["tap", "taps", *groups]) >= 1, seen


@pytest.mark.xdist_group("wu 8x8 of 2")
def test_dense_gradients_in_groups_of_channels(monkeypatch):
    """What no GATHER prunes is written in groups of channels, too, into A and into B."""
    rng, seen = random.Random("dense groups"), Counter()

    def wide(shapes, estimate, cost, floor, least):
        chosen = rng.choice([shape for shape in shapes if getattr(shape, "wide", False)] or shapes)
        seen[chosen.sort] += 1
        return chosen

    monkeypatch.setattr(parts, "fewest_cycles", wide)
    for number in range(16):
        layer = replace(random_layer(rng, CONFIGS["8x8 of 2"], largest=40), wu=(1, 1))
        both = devices("8x8 of 2", TIMINGS[number % 3])
        run_on_both(*both, layer, number, 0.05 * (number % 2), random_sgd(rng))
    assert seen["wide tap"] >= 6 and seen["wide taps"] >= 1, seen


@pytest.mark.parametrize("name", arrays)
def test_taps_that_share_loads(monkeypatch, name):
    """Chunks of lines: a load serves the taps below each other that lie whole words apart."""
    rng, seen = random.Random(f"lines {name}"), Counter()

    def lines(shapes, estimate, cost, floor, least):
        chosen = rng.choice([shape for shape in shapes if getattr(shape, "lines", 0)] or shapes)
        seen[chosen.sort.removeprefix("wide ")] += 1
        return chosen

    monkeypatch.setattr(parts, "fewest_cycles", lines)
    patterns = [(n, m) for n, m in ((1, 2), (2, 4), (1, 4)) if m <= CONFIGS[name].max_m]
    for number in range(10):
        stride, dilation = rng.choice([(1, 1), (1, 1), (2, 1), (1, 2)])
        kernel = rng.choice([2, 3, 3, 5]), rng.choice([1, 3])
        layer = Layer(
            batch=rng.randint(1, 2), lines=rng.randint(9, 12), pixels=rng.choice([8, 12, 16]),
            in_channels=rng.choice([8, 16]), out_channels=rng.choice([8, 24]), kernel=kernel,
            stride=(stride, rng.choice([1, 2])), dilation=(dilation, 1),
            padding=(rng.randint(0, 2), kernel[1] // 2), wu=rng.choice(patterns),
        )  # fmt: skip
        run_on_both(*devices(name, TIMINGS[number % 3]), layer, number, 0.05, SGD)
    assert seen["lines"] >= 5, seen


@pytest.mark.parametrize("pattern", [(1, 2), (2, 4), (1, 4)])
def test_step_of_a_layer_that_networks_have(pattern):
    layer = Layer(
        batch=2, lines=6, pixels=5, in_channels=16, out_channels=16, kernel=(3, 3),
        padding=(1, 1), ff=pattern, bp=pattern, wu=pattern, bias=True, relu=True, masked=True,
    )  # fmt: skip
    outcome = run_on_both(*devices("4x4", TIMINGS[0]), layer, 1, 0.0, SGD)
    assert (outcome.non_finite, outcome.skipped) == (0, 0)


def test_positions_that_are_no_whole_groups_end_as_the_pattern_says():
    """3 x 3 positions at 2:4: the last group has one, which is kept."""
    layer = Layer(in_channels=8, out_channels=8, lines=3, pixels=3, wu=(2, 4))
    run_on_both(*devices("4x4", TIMINGS[0]), layer, 0, 0.0, SGD)


def test_sparse_gradients_take_fewer_cycles():
    """A 3x3 convolution of 64 channels on 8x8: WU at 2:8 is 3.4 times faster than dense."""
    config = CONFIGS["8x8 wide"]
    dense = Layer(
        batch=4, lines=8, pixels=8, in_channels=64, out_channels=64, kernel=(3, 3), padding=(1, 1)
    )
    sparse = Layer(**{**dense.__dict__, "wu": (2, 8)})
    cycles = [stage_cost("wu", layer, config, MemoryTiming()).cycles for layer in (dense, sparse)]
    assert cycles[0] / cycles[1] > 3.4, cycles


def test_devices_and_rates_that_cannot_are_told():
    layer = Layer(in_channels=16, out_channels=16, batch=16, wu=(2, 8))
    with pytest.raises(DoesNotFit, match="prune_gathers=False.*build the device with"):
        compile_step(layer, SatConfig(), MemoryTiming())
    config = CONFIGS["8x8 wide"]
    with pytest.raises(ValueError, match="sr_ste with wu=2:8.*sr_ste=0"):
        compile_step(layer, config, MemoryTiming(), sgd=Sgd(sr_ste=1e-4))
    with pytest.raises(ValueError, match="wu pattern 2:8: WU of a depthwise layer"):
        Layer(in_channels=8, out_channels=8, groups=8, wu=(2, 8))
    # 16 words of FP16 in a granule are more than 8 columns: no such device prunes.
    with pytest.raises(DoesNotFit, match="max_m=8; send its products one by one") as caught:
        compile_step(Layer(in_channels=16, out_channels=16, wu=(2, 16)), config, MemoryTiming())
    assert not caught.value.fixes


def test_wu_is_numpys_product_of_what_numpy_keeps():
    """WU of one tap by numpy's own choice of the largest, in float64: within FP32's rounding."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((32, c)).astype(np.float16) for c in (8, 16))
    from sat.sim.golden.layer import gradient

    layer = Layer(batch=32, in_channels=8, out_channels=16, wu=(2, 8))
    groups = np.abs(dy.reshape(4, 8, 16))
    kept = groups >= np.sort(groups, axis=1)[:, -2:-1]
    pruned = np.where(kept, dy.reshape(4, 8, 16), 0).reshape(32, 16).astype(np.float64)
    got = gradient(layer, x[:, None, None], dy[:, None, None])[:, 0, 0]
    assert np.allclose(got, pruned.T @ x.astype(np.float64), rtol=1e-5, atol=1e-5)
