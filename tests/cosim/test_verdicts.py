"""Random instructions: the RTL, the golden device and the validator give the same verdict."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program, ProgramError
from sat.rtl.config import SatConfig
from sat.rtl.isa import BODIES, INSTRUCTION_BYTES, Instruction, Opcode, Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice

pytestmark = pytest.mark.xdist_group("errors")

CONFIG = SatConfig(rows=3, cols=5, a_words=64, b_words=64, sum_words=128, watchdog_cycles=1024)
MEMORY = 1 << 16


@lru_cache
def device() -> DeviceRtl:
    return DeviceRtl(CONFIG, memory_bytes=MEMORY)


@lru_cache
def legal_instructions() -> list[Instruction]:
    """Return instructions of compiled products, without their semaphores."""
    found = []
    for product in (
        Product(30, 33, 50),
        Product(9, 14, 40, 2, 8, StartShape.MATRIX),
        Product(20, 11, 70, 3, 4, StartShape.ROW),
    ):
        for dataflow in ("os", "ws"):
            mapping = legal_mappings(product, CONFIG, dataflow)[-1]
            program = compile_product(product, CONFIG, mapping, base=4096).program
            found += [Instruction(i.opcode, i.body) for i in program if i.body]
    return found


def mutated(rng: random.Random) -> bytes:
    """Return a legal instruction with up to three fields disturbed, or one random bit flipped."""
    old = rng.choice(legal_instructions())
    layout = BODIES[old.opcode]
    body = dict(old.body)
    for _ in range(rng.randint(0, 3)):
        name = rng.choice(list(body))
        width = layout[name].width
        value = rng.choice(
            [body[name] + 1, body[name] - 1, 0, 1, rng.getrandbits(width), body[name] * 2]
        )
        body[name] = value % (1 << width)
    raw = bytearray(Instruction(old.opcode, body).encode())
    if rng.random() < 0.1:
        # Not into the masks: a wait that nobody meets only costs time.
        bit = rng.choice([*range(8), *range(56, 256)])
        raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw)


@pytest.mark.parametrize("part", range(4))
def test_same_verdict_on_disturbed_instructions(part):
    rng = random.Random(part)
    end = Instruction(Opcode.END, {}).encode()
    seen = set()
    dev = device()
    for _ in range(600):
        raw = mutated(rng) + end
        dev.memory[: len(raw)] = np.frombuffer(raw, np.uint8)
        golden = GoldenDevice(CONFIG, dev.memory.copy())
        outcome = dev.run(0, 2, max_cycles=200_000)
        verdict = golden.run(0, 2)
        if golden.memory[: len(raw)].tobytes() != raw:
            continue  # it overwrote itself: what the fetch unit sees of that is a race
        assert outcome.status is verdict.status, (Instruction.decode(raw[:32]), verdict)
        if verdict.status is not Status.DONE:
            assert outcome.error_pc == verdict.pc == 0
            with pytest.raises(ProgramError) as refused:
                Program.decode(raw).validate(CONFIG, window=(0, MEMORY))
            assert refused.value.status is verdict.status
        seen.add(verdict.status)
    assert seen >= {Status.DONE, Status.BAD_FIELD, Status.BAD_ADDRESS, Status.BAD_OPCODE}


@pytest.mark.parametrize("part", range(2))
def test_same_verdict_on_random_bytes(part):
    rng = np.random.default_rng(part)
    dev = device()
    for _ in range(300):
        raw = rng.integers(0, 256, 4 * INSTRUCTION_BYTES, dtype=np.uint8)
        # Opcodes that exist, mostly: else every program would end at the first.
        known = rng.choice([o.value for o in Opcode], 4)
        raw[::INSTRUCTION_BYTES] = np.where(rng.random(4) < 0.8, known, raw[::INSTRUCTION_BYTES])
        for at in range(1, 7):
            raw[at::INSTRUCTION_BYTES] = 0
        dev.memory[: len(raw)] = raw
        golden = GoldenDevice(CONFIG, dev.memory.copy())
        outcome = dev.run(0, 4, max_cycles=200_000)
        verdict = golden.run(0, 4)
        if not np.array_equal(golden.memory[: len(raw)], raw):
            continue
        assert outcome.status is verdict.status
        if verdict.status is not Status.DONE:
            assert outcome.error_pc == verdict.pc
