"""Layers under any of their mappings: the golden device gives the golden layer's bits."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.compile import parts
from sat.dataflow.compile.step import Sgd, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.layers import boundary_bytes
from sat.dataflow.mapping import round_up
from sat.devices.stages import write_step
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import Status
from sat.sim.golden import layer as golden_layer
from sat.sim.golden.device import GoldenDevice
from sat.sim.golden.update import Rates
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parents[1] / "cosim"))
from layers import SORTS, any_mapping, compare, random_layer, random_sgd, random_tensors

CONFIGS = {
    "4x4": SatConfig(rows=4, cols=4),
    "8x8": SatConfig(),
    "3x4": SatConfig(
        rows=3, cols=4, max_m=4, max_n=2, a_words=128, interleave=8, axi=AxiConfig(data_bits=64)
    ),
    "wide": SatConfig(rows=4, cols=4, axi=AxiConfig(data_bits=256, ports=2)),
    "4x8": SatConfig(rows=4, cols=8, max_m=16, axi=AxiConfig(data_bits=256), interleave=4),
}
STAGES = ("ff", "bp", "wu")


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_under_any_mapping(monkeypatch, name):
    config, timing = CONFIGS[name], MemoryTiming()
    rng, seen = random.Random(name), Counter()
    monkeypatch.setattr(parts, "fewest_cycles", any_mapping(rng, seen))
    for number in range(40):
        layer, sgd = random_layer(rng, config), random_sgd(rng)
        step = compile_step(layer, config, timing, STAGES, sgd)
        tensors = random_tensors(number, layer, 0.05 * (number % 2))
        memory = np.random.default_rng(number).integers(0, 256, step.end + 4096, dtype=np.uint8)
        on_device = write_step(memory, step, tensors)
        step.program.validate(config, step.address, (0, len(memory)))
        assert predict(step.program, config, timing, step.address).cycles > 0
        verdict = GoldenDevice(config, memory).run(step.address, len(step.program))
        assert verdict.status is Status.DONE
        compare(step, on_device, golden_layer.step(layer, Rates(**sgd.fields()), **tensors))
    assert min(seen[sort] for sort in SORTS) >= 3, seen


@pytest.mark.parametrize("ports", [1, 2, 4])
def test_weights_take_as_many_cycles_on_any_boundary(ports):
    """Bursts are cut at 4 KiB of each port: moved by a multiple of all that, nothing changes."""
    config = SatConfig(rows=4, cols=4, axi=AxiConfig(data_bits=256, ports=ports, burst_beats=256))
    layer = Layer(batch=2, in_channels=136, out_channels=48)
    timing = MemoryTiming(read_latency=40, write_latency=40)
    step = compile_step(layer, config, timing, (*STAGES, "update"), Sgd(momentum=0.9))
    boundary = boundary_bytes(config)
    assert boundary == 4096 * ports and step.memory.held.start % boundary == 0
    begin = round_up(step.end, boundary)
    for place in range(begin, begin + 5 * boundary, boundary):
        moved = step.with_weights_at(place)
        got = predict(moved.program, config, timing, moved.address).cycles
        assert got == predict(step.program, config, timing, step.address).cycles
