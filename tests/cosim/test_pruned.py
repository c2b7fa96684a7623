"""GATHERs that prune along the positions, then N:M MULTIPLYs: every bit and cycle, everywhere."""

from __future__ import annotations

import random
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.cycles import predict
from sat.dataflow.mapping import legal_mappings
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
import reference
from products import assert_same_bits, halves, make_case, random_product, run_case
from pruned import CONFIGS, Tile, random_tile

TIMINGS = [
    MemoryTiming(),
    MemoryTiming(read_latency=1, write_latency=1),
    MemoryTiming(read_latency=70, write_latency=30, cycles_per_beat=3),
]
MEMORY = 1 << 18


@lru_cache
def devices(name: str, timing: MemoryTiming) -> tuple[DeviceRtl, GoldenDevice]:
    """Return a simulated device and a golden one with the same buffers all along."""
    device = DeviceRtl(CONFIGS[name], timing, memory_bytes=MEMORY)
    return device, GoldenDevice(CONFIGS[name], device.memory.copy())


def run_tile(device: DeviceRtl, golden: GoldenDevice, tile: Tile, seed: int) -> np.ndarray:
    """Run a tile on both; return dw as the device has it."""
    program, at = tile.program(), tile.places[3]
    numbers = halves(np.random.default_rng(seed), MEMORY // 2, 0.1 * (seed % 2))
    if seed % 3 == 0:
        numbers = np.round(np.clip(numbers, -2, 2))  # many are equal
    device.memory[:] = numbers.astype(np.float16).view(np.uint8)
    raw = program.encode()
    device.memory[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
    program.validate(tile.config, at, (0, MEMORY))
    golden.memory = device.memory.copy()
    outcome, verdict = device.run(at, len(program)), golden.run(at, len(program))
    assert outcome.status is verdict.status is Status.DONE, tile
    assert np.array_equal(device.memory, golden.memory), tile
    assert outcome.cycles == predict(program, tile.config, device.timing, at).cycles, tile
    result = device.memory[tile.places[2] :][: tile.result_bytes].view(np.float32)
    return result.reshape(tile.rows, -1)


def sweep(name: str, count: int, seed: int) -> Counter[tuple[int, int]]:
    """Run random tiles; return how often each pattern was met."""
    rng = random.Random(f"{name} {seed}")
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(count):
        tile = random_tile(rng, CONFIGS[name])
        run_tile(*devices(name, rng.choice(TIMINGS)), tile, rng.randrange(1 << 32))
        seen[tile.n, tile.m] += 1
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_tiles_as_golden_and_as_predicted(name):
    """Random patterns, taps off the edges, chunks in turn while the array runs."""
    assert len(sweep(name, 40, 0)) >= 2


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_a_thousand_tiles(name):
    sweep(name, 1000, 1)


@pytest.mark.parametrize(
    ("name", "n", "m"),
    [
        ("2x2, 4 bytes", 1, 2),
        ("3x7 of 2", 1, 2),
        ("8x8, 16 bytes", 2, 4),
        ("8x8, 16 bytes", 2, 8),
        ("2x6 of 4, 2 x 16 bytes", 2, 4),
        ("1x16 of 16, 64 bytes", 4, 16),
        ("1x16 of 16, 64 bytes", 2, 8),
    ],
)
def test_sums_number_by_number(name, n, m):
    """dw by loops that share no code with SAT: pruning, taps, products, the order of sums."""
    config: SatConfig = CONFIGS[name]
    wide = config.cols // config.granule_halves * config.granule_halves
    for seed in range(2):
        tile = Tile(
            config=config, n=n, m=m, images=2, lines=3, pixels=3 + seed, step=1, y=-1, x=1,
            split=0, channels=(config.granule_halves, wide), chunk=2 * config.max_m,
            one_window=bool(seed),
        )  # fmt: skip
        device, golden = devices(name, TIMINGS[0])
        got = run_tile(device, golden, tile, seed)
        want = tile.gradient(device.memory, reference.product)
        rows = min(tile.channels[0], tile.rows)
        assert_same_bits(got[:rows, :wide].copy(), want[:rows])


@pytest.mark.parametrize("name", ["8x8, 16 bytes", "1x16 of 16, 64 bytes"])
def test_products_go_on_as_before(name):
    """LOADs into index banks whose lanes are written apart."""
    rng = random.Random(name)
    device, _ = devices(name, TIMINGS[0])
    for seed in range(12):
        product = random_product(rng, CONFIGS[name])
        case = make_case(product, seed, 0.05 * (seed % 2))
        ran = run_case(
            device, CONFIGS[name], case, rng.choice(legal_mappings(product, CONFIGS[name]))
        )
        assert_same_bits(ran.got, case.want)
        assert ran.cycles == ran.predicted
