"""Programs of random bytes: the same status everywhere, nothing hangs, the next program is right.

Bytes are biased so that programs get somewhere: opcodes that exist, legal instructions among the
others, waits that are sometimes met. Golden device and host validator judge a hundred thousand
(``make test-long``; a part of them always), the RTL a thousand of the same.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.host import read_result, write_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product
from sat.dataflow.program import Program, ProgramError, validate
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.isa import (
    ENGINES,
    HEADER_BITS,
    INSTRUCTION_BYTES,
    Buffer,
    Instruction,
    Opcode,
    Status,
)
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice, Outcome
from sat.sim.memory import MemoryTiming

pytestmark = pytest.mark.xdist_group("errors")

CONFIG = SatConfig(rows=3, cols=5, a_words=64, b_words=64, sum_words=128, watchdog_cycles=1024)
PRUNES = replace(CONFIG, cols=8, prune_gathers=True)
WIDE = replace(CONFIG, update_lanes=8, axi=AxiConfig(data_bits=256, ports=2))
MEMORY = 1 << 16
CODE = MEMORY - (1 << 12)
"""Programs lie here; legal stores do not reach it, or the verdict on them would be a race."""

OWN = {name: range(4 * n, 4 * n + 4) for n, name in enumerate(ENGINES)}
"""Semaphores that each engine waits for, so that time never decides who gets one."""


@lru_cache
def device(config: SatConfig) -> DeviceRtl:
    return DeviceRtl(config, memory_bytes=MEMORY)


@lru_cache
def legal_bodies(config: SatConfig) -> list[Instruction]:
    """Return legal instructions of every kind."""
    made = []
    for product in (Product(30, 33, 50), Product(9, 14, 40, 2, 8)):
        for dataflow in ("os", "ws"):
            mapping = legal_mappings(product, config, dataflow)[-1]
            made += compile_product(product, config, mapping).program
    made = [i for i in made if i.body]
    tensor = {"images": 2, "lines": 4, "pixels": 4, "pixel_pitch": 16}
    made.append(Instruction(Opcode.TENSOR, {**tensor, "line_pitch": 64, "image_pitch": 256}))
    made.append(Instruction(Opcode.WINDOW, {"lines": 4, "pixels": 4, "step_y": 1, "step_x": 1}))
    gather = {"rows": 5, "taps_y": 2, "taps_x": 1, "segment_bytes": 16, "stride": 2, "groups": 2}
    made.append(Instruction(Opcode.GATHER, gather))
    if config.prune_gathers:
        window = {"lines": 4, "pixels": 4, "step_y": 1, "step_x": 1, "n": 2, "log2_m": 2}
        made += 3 * [Instruction(Opcode.WINDOW, window)]
        gather = {"rows": 8, "taps_y": 1, "taps_x": 1, "segment_bytes": 16, "groups": 1}
        gather |= {"transpose": 1, "destination": Buffer.B}
        made += 3 * [Instruction(Opcode.GATHER, gather)]
    made.append(Instruction(Opcode.RATES, {"unscale": 0x3F800000}))
    update = {"rows": 4, "columns": 8, "stride": 2, "ff_n": 2, "ff_log2_m": 3, "bp_n": 1}
    made.append(Instruction(Opcode.UPDATE, {**update, "ff_stride": 1, "bp_stride": 1}))
    return made


def masks(rng: random.Random, opcode: int) -> list[int]:
    """Return wait, release and signal; waits are an engine's own, mostly few or none."""
    own = [OWN[name] for name, opcodes in ENGINES.items() if opcode in [o.value for o in opcodes]]
    wait = 0
    if own and rng.random() < 0.3:
        wait = 1 << rng.choice(own[0])
    return [wait, *(rng.choice([0, 0, rng.getrandbits(16), 0xFFFF]) for _ in range(2))]


def random_program(rng: random.Random, config: SatConfig) -> bytes:
    """Return up to 12 instructions of more or less random bytes, mostly with END at the end."""
    made = b""
    for _ in range(rng.randint(1, 12)):
        if rng.random() < 0.6:
            old = rng.choice(legal_bodies(config))
            raw = bytearray(Instruction(old.opcode, old.body).encode())
            if rng.random() < 0.15:
                raw[rng.randrange(7, INSTRUCTION_BYTES)] = rng.randrange(256)
        else:
            raw = bytearray(rng.randbytes(INSTRUCTION_BYTES))
            if rng.random() < 0.9:
                raw[0] = rng.choice([o.value for o in Opcode])
        if rng.random() < 0.95:
            word = raw[0]
            for n, mask in enumerate(masks(rng, raw[0])):
                word |= mask << (8 + 16 * n)
            raw[: HEADER_BITS // 8] = word.to_bytes(HEADER_BITS // 8, "little")
        made += bytes(raw)
    return made + (Instruction(Opcode.END, {}).encode() if rng.random() < 0.9 else b"")


def judge(raw: bytes, memory: np.ndarray, config: SatConfig) -> Outcome | None:
    """Return the golden device's verdict, None if the program wrote over itself."""
    golden = GoldenDevice(config, memory)
    golden.memory[CODE : CODE + len(raw)] = np.frombuffer(raw, np.uint8)
    verdict = golden.run(CODE, len(raw) // INSTRUCTION_BYTES)
    return verdict if golden.memory[CODE : CODE + len(raw)].tobytes() == raw else None


def check_validator(raw: bytes, verdict: Outcome, config: SatConfig) -> None:
    """Assert that the host finds the same fault at the same instruction."""
    try:
        validate(raw, config, CODE, (0, MEMORY))
    except ProgramError as error:
        assert (error.status, error.pc) == (verdict.status, verdict.pc)
    else:
        assert verdict.status is Status.DONE


def fuzz(count: int, seed: int, config: SatConfig = CONFIG) -> Counter[Status]:
    rng = random.Random(seed)
    memory = np.random.default_rng(seed).integers(0, 256, MEMORY, dtype=np.uint8)
    seen: Counter[Status] = Counter()
    for _ in range(count):
        raw = random_program(rng, config)
        verdict = judge(raw, memory, config)
        if verdict is not None:
            check_validator(raw, verdict, config)
            seen[verdict.status] += 1
    return seen


@pytest.mark.parametrize("part, config", list(enumerate([CONFIG, WIDE, PRUNES])))
def test_golden_device_and_validator_agree(part, config):
    seen = fuzz(5_000, part, config)
    expected = {Status.DONE, Status.BAD_OPCODE, Status.BAD_FIELD, Status.BAD_ADDRESS}
    assert set(seen) >= expected | {Status.NO_END, Status.WATCHDOG}
    assert min(seen[status] for status in expected) > 50


@pytest.mark.long
def test_a_hundred_thousand_programs():
    assert sum(fuzz(100_000, 99).values()) > 90_000


def as_predicted(raw: bytes, config: SatConfig, timing: MemoryTiming, cycles: int) -> bool:
    """Return whether the cycle model has an answer; it must be these cycles."""
    try:
        found = predict(raw, config, timing, CODE)
    except ValueError as refused:
        # Masks are random: semaphores that several engines raise have no one order.
        assert "semaphore" in str(refused)
        return False
    assert found.cycles == cycles, Program.decode(raw).text()
    return True


@pytest.mark.parametrize("part, config", list(enumerate([CONFIG, CONFIG, WIDE, WIDE, PRUNES])))
def test_rtl_gives_the_same_verdict_and_goes_on(part, config):
    """250 programs on the RTL, each followed by a product that must be right."""
    rng = random.Random(1000 + part)
    dev = device(config)
    product = Product(4, 6, 24, 2, 4)
    compiled = compile_product(product, config, legal_mappings(product, config)[0])
    numbers = np.random.default_rng(part)
    a = numbers.standard_normal((4, 24)).astype(np.float16)
    values = numbers.standard_normal((12, 6)).astype(np.float16)
    indices = np.tile(np.array([[0], [3]], np.uint8), (6, 6))
    want = None
    predicted = 0
    seen: Counter[Status] = Counter()
    for _ in range(250):
        raw = random_program(rng, config)
        dev.memory[:] = numbers.integers(0, 256, MEMORY, dtype=np.uint8)
        verdict = judge(raw, dev.memory.copy(), config)
        if verdict is None:
            continue
        dev.memory[CODE : CODE + len(raw)] = np.frombuffer(raw, np.uint8)
        outcome = dev.run(CODE, len(raw) // INSTRUCTION_BYTES, max_cycles=3_000_000)
        if Status.SEMAPHORE not in (verdict.status, outcome.status):
            # A semaphore that overflows stops the program some cycles later: what else is
            # found until then is a matter of time.
            assert outcome.status is verdict.status, Program.decode(raw).text()
            if verdict.status is not Status.DONE:
                assert outcome.error_pc == verdict.pc
        if outcome.status is Status.DONE:
            predicted += as_predicted(raw, config, dev.timing, outcome.cycles)
        seen[outcome.status] += 1
        write_product(dev.memory, compiled.memory, compiled.program, a, values, indices, None)
        good = dev.run(compiled.memory.program.address, len(compiled.program))
        assert good.status is Status.DONE
        result = read_result(dev.memory, compiled.memory)
        want = result if want is None else want
        assert np.array_equal(result, want)
    assert seen[Status.DONE] > 10 and seen[Status.WATCHDOG] > 5, seen
    assert predicted > 10
