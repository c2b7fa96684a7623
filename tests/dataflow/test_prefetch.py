"""First loads in front of a FENCE: which may stand there; bits stay, and nothing is slower."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.columns import masks
from sat.dataflow.compile import parts
from sat.dataflow.compile.prefetch import fastest, joined, prefetched
from sat.dataflow.compile.step import STAGES, Sgd, Stage, compile_step, compile_updates
from sat.dataflow.cost import program_cycles, stage_cost, update_cycles
from sat.dataflow.cycles import predict
from sat.dataflow.layers import LayerMemory
from sat.dataflow.program import Program
from sat.devices.stages import write_step
from sat.rtl.config import SatConfig
from sat.rtl.isa import ENGINES, Opcode, Status
from sat.sim.golden.device import GoldenDevice
from sat.sim.golden.layer import step as golden_step
from sat.sim.golden.update import Rates
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parents[1] / "cosim"))
from layers import any_mapping, compare, random_layer, random_sgd, random_tensors

CONFIG = SatConfig(rows=4, cols=4)
TIMING = MemoryTiming(read_latency=40, write_latency=40)
WRITES = {
    "ff": {"y", "out_mask"},
    "bp": {"dx"},
    "wu": {"g"},
    "update": {"w", "v", "ff", "ff_index", "bp", "bp_index"},
}
"""What each stage leaves in memory."""
PAIRS = [(a, b) for a in STAGES for b in STAGES]


def stage_words(layer: Layer, *names: str, timing: MemoryTiming = TIMING) -> list[np.ndarray]:
    where = LayerMemory(layer, CONFIG)
    step = compile_step(layer, CONFIG, timing, tuple(dict.fromkeys(names)))
    rates = Sgd().fields()
    return [Stage.of(n, layer, where, rates).instructions(step.plans[n]) for n in names]


def loads_of(words: np.ndarray) -> list:
    """Return what the load engine does, without semaphores."""
    return [(i.opcode, i.body) for i in Program.of(words) if i.opcode in ENGINES["load"]]


def region_of(where: LayerMemory, address: int) -> str:
    (name,) = (n for n, r in where.regions.items() if r.address <= address < r.end)
    return name


@pytest.mark.parametrize("seed", range(30))
def test_what_is_moved(monkeypatch, seed):
    """Any stage behind any other, under any mapping: nothing moved reads what is written there."""
    rng = random.Random(seed)
    monkeypatch.setattr(parts, "fewest_cycles", any_mapping(rng, Counter()))
    layer = random_layer(rng, CONFIG)
    where = LayerMemory(layer, CONFIG)
    names = rng.choice(PAIRS)
    stages = stage_words(layer, *names)
    made = prefetched(stages)
    before, moved = loads_of(stages[0]), loads_of(made[0])[len(loads_of(stages[0])) :]
    # Loads keep their order; all else stands as it did.
    assert loads_of(made[0]) == before + moved
    assert before + loads_of(stages[1]) == loads_of(made[0]) + loads_of(made[1])
    for old, new in zip(stages, made, strict=True):
        rest = [
            [(i.opcode, i.body) for i in Program.of(words) if i.opcode not in ENGINES["load"]]
            for words in (old, new)
        ]
        assert rest[0] == rest[1]
    read = {region_of(where, body["address"]) for _, body in moved if "address" in body}
    assert not read & WRITES[names[0]], (names, read)
    # Semaphores end at 0, and the first consumer waits for what is left.
    raised = Counter()
    for words in made:
        for name, sign in (("wait", -1), ("release", 1), ("signal", 1)):
            for mask in masks(words, name):
                raised.update({n: sign for n in range(16) if mask >> n & 1})
    assert not any(raised.values())


def test_who_gives_what_away():
    """Of a layer's stages: all that the first MULTIPLY needs, or only what is there already."""
    layer = Layer(
        batch=3, lines=6, pixels=6, in_channels=16, out_channels=16, kernel=(3, 3), padding=(1, 1),
        ff=(2, 4), bp=(2, 4), bias=True,
    )  # fmt: skip
    where = LayerMemory(layer, CONFIG)

    def moved(*names: str) -> list[str]:
        stages = stage_words(layer, *names)
        count = len(loads_of(stages[0]))
        given = loads_of(prefetched(stages)[0])[count:]
        return [region_of(where, body["address"]) for _, body in given if "address" in body]

    assert moved("ff", "bp") == ["dy", "bp", "bp_index"]
    assert moved("bp", "wu") == ["dy", "x"]
    # The gradient is not there yet, and a tile's loads go together.
    assert moved("wu", "update") == []
    # The pixels are there, the new weights are not.
    assert moved("update", "ff") == ["x"]
    assert moved("ff", "ff") == ["x", "ff", "ff_index", "bias"]
    assert moved("update", "update") == []


@pytest.mark.parametrize("seed", range(20))
def test_bits_and_cycles(seed):
    """Golden's bits behind any pair of stages; no pair is slower than with a FENCE alone."""
    rng = random.Random(f"bits {seed}")
    layer, names = random_layer(rng, CONFIG), rng.choice(PAIRS)
    step = compile_step(layer, CONFIG, TIMING, names)
    stages = stage_words(layer, *names)
    plain, fetched = (joined(each)[0] for each in (stages, prefetched(stages)))
    assert len(plain) == len(fetched) == len(step.program)
    memories = []
    for program in (Program.of(plain), Program.of(fetched)):
        memory = np.random.default_rng(seed).integers(0, 256, step.end + 4096, dtype=np.uint8)
        tensors = random_tensors(seed, layer)
        tensors["g"] = golden_step(layer, Rates(**Sgd().fields()), **tensors).g
        write_step(memory, step, tensors)
        raw = np.frombuffer(program.encode(), np.uint8)
        memory[step.address : step.address + len(raw)] = raw
        program.validate(CONFIG, step.address, (0, len(memory)))
        assert GoldenDevice(CONFIG, memory).run(step.address, len(program)).status is Status.DONE
        memories.append(memory[: step.address])
    assert np.array_equal(*memories)
    either = [predict(words, CONFIG, TIMING).cycles for words in (plain, fetched)]
    assert predict(step.program, CONFIG, TIMING).cycles == min(either)


@pytest.mark.parametrize("batch, saves", [(3, False), (5, True)])
def test_the_faster_one_is_taken(batch, saves):
    """On slow memory first loads may outlast what they are fetched in: then the FENCE waits."""
    slow = MemoryTiming(read_latency=100, write_latency=60, cycles_per_beat=3)
    layer = Layer(batch=batch, lines=7, pixels=3, in_channels=36, out_channels=24, masked=True)
    stages = stage_words(layer, "bp", "wu", timing=slow)
    either = [joined(each)[0] for each in (stages, prefetched(stages))]
    plain, fetched = (predict(words, CONFIG, slow).cycles for words in either)
    assert saves == (fetched < plain) and fetched != plain
    words, ends, found = fastest(stages, CONFIG, slow)
    assert found is not None and found.cycles == min(plain, fetched)
    assert np.array_equal(words, either[saves]) and ends[-1] == len(words) - 1


@pytest.mark.parametrize("seed", range(6))
def test_updates_of_several_layers(seed):
    """One program, each layer's bits, the shares its cycles, fewer than one by one."""
    rng = random.Random(f"updates {seed}")
    layers = [random_layer(rng, CONFIG) for _ in range(rng.randint(2, 4))]
    sgd = random_sgd(rng)
    steps = compile_updates(layers, CONFIG, TIMING, sgd)
    memory = np.zeros(steps[-1].end + 4096, np.uint8)
    given = [random_tensors(seed + n, layer) for n, layer in enumerate(layers)]
    wanted = [
        golden_step(layer, Rates(**sgd.fields()), **tensors)
        for layer, tensors in zip(layers, given, strict=True)
    ]
    written = []
    for step, tensors, want in zip(steps, given, wanted, strict=True):
        here = {"w": tensors["w"], "v": tensors["v"], "g": want.g}
        written.append(write_step(memory, step, here))
    program, address = steps[0].program, steps[0].address
    program.validate(CONFIG, address, (0, len(memory)))
    assert GoldenDevice(CONFIG, memory).run(address, len(program)).status is Status.DONE
    for step, on_device, want in zip(steps, written, wanted, strict=True):
        compare(step, on_device, want)
    cycles = update_cycles(layers, CONFIG, TIMING)
    assert sum(cycles) == predict(program, CONFIG, TIMING, address).cycles
    alone = [stage_cost("update", layer, CONFIG, TIMING).cycles for layer in layers]
    assert min(cycles) > 0 and sum(cycles) < sum(alone)


@pytest.mark.parametrize("stages", [("bp", "wu"), ("ff", "bp", "wu", "update")])
def test_shares_of_a_program(stages):
    layer = Layer(batch=5, lines=4, pixels=4, in_channels=24, out_channels=16, ff=(2, 8), bp=(2, 8))
    costs = {name: stage_cost(name, layer, CONFIG, TIMING) for name in stages}
    plans = {name: cost.plan for name, cost in costs.items()}
    cycles = program_cycles(layer, plans, CONFIG, TIMING)
    step = compile_step(layer, CONFIG, TIMING, stages, plans=plans)
    found = predict(step.program, CONFIG, TIMING, step.address)
    assert sum(cycles) == found.cycles < sum(cost.cycles for cost in costs.values())
    assert min(cycles) > 0 and len(cycles) == len(stages)
    # A layer that is alike to the model is not compiled again, and takes the same.
    assert program_cycles(layer, plans, CONFIG, TIMING) is cycles
    opcodes = [step.program[end].opcode for _, _, end in step.stages]
    assert opcodes == [Opcode.FENCE] * (len(stages) - 1) + [Opcode.END]
    assert all(step.program[end - 1].opcode is Opcode.STORE for _, _, end in step.stages)
