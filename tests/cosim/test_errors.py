"""Bad programs and failing memory: the right status and instruction, and the next program runs."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.host import write_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product
from sat.dataflow.program import Program, ProgramError
from sat.errors import DeviceClosedError
from sat.rtl import csr
from sat.rtl.config import SatConfig
from sat.rtl.isa import Instruction, Opcode, Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden.device import GoldenDevice

sys.path.insert(0, str(Path(__file__).parent))
from products import assert_same_bits, make_case, run_case

pytestmark = pytest.mark.xdist_group("errors")

CONFIG = SatConfig(rows=3, cols=5, a_words=64, b_words=64, sum_words=128, watchdog_cycles=1024)
MEMORY = 1 << 16
PRODUCT = Product(10, 12, 20, 2, 8)


@lru_cache
def device() -> DeviceRtl:
    return DeviceRtl(CONFIG, memory_bytes=MEMORY)


@pytest.fixture
def ready():
    """A device with a program in memory; afterwards the device must still work."""
    case = make_case(PRODUCT, 7)
    mapping = legal_mappings(PRODUCT, CONFIG)[0]
    compiled = compile_product(PRODUCT, CONFIG, mapping)
    dev = device()
    write_product(
        dev.memory,
        compiled.memory,
        compiled.program,
        case.a,
        case.values,
        case.indices,
        case.start,
    )
    yield dev, compiled
    ran = run_case(dev, CONFIG, case, mapping)
    assert_same_bits(ran.got, case.want)
    assert ran.cycles == ran.predicted


def first(program: Program, opcode: Opcode) -> int:
    return next(pc for pc, i in enumerate(program) if i.opcode is opcode)


def changed(program: Program, opcode: Opcode, **fields: int) -> tuple[Program, int]:
    """Return the program with fields of the first instruction of a kind changed, and its pc."""
    pc = first(program, opcode)
    old = program[pc]
    new = Instruction(opcode, {**old.body, **fields}, old.wait, old.release, old.signal)
    return Program([*program[:pc], new, *program[pc + 1 :]]), pc


BAD = [
    (Opcode.LOAD, {"rows": 0}, Status.BAD_FIELD, "rows=0"),
    (Opcode.LOAD, {"groups": 9}, Status.BAD_FIELD, "groups=9"),
    (Opcode.LOAD, {"base": 64}, Status.BAD_FIELD, "ends at word"),
    (Opcode.LOAD, {"destination": 1, "by_word": 1}, Status.BAD_FIELD, "only A"),
    (Opcode.LOAD, {"address": 8}, Status.BAD_ADDRESS, "multiple of 16"),
    (Opcode.LOAD, {"address": MEMORY - 16}, Status.BAD_ADDRESS, "outside the window"),
    (Opcode.LOAD, {"address": 1 << 40}, Status.BAD_ADDRESS, "outside the window"),
    (Opcode.MULTIPLY, {"n": 9}, Status.BAD_FIELD, "n=9"),
    (Opcode.MULTIPLY, {"log2_m": 4}, Status.BAD_FIELD, "max_m=8"),
    (Opcode.MULTIPLY, {"words": 0}, Status.BAD_FIELD, "words=0"),
    (Opcode.MULTIPLY, {"split": 3}, Status.BAD_FIELD, "split=3"),
    (Opcode.MULTIPLY, {"last": 31}, Status.BAD_FIELD, "last=31"),
    (Opcode.MULTIPLY, {"o_base": 120}, Status.BAD_FIELD, "OUTPUT"),
    (Opcode.STORE, {"row_bytes": 0}, Status.BAD_FIELD, "row_bytes=0"),
    (Opcode.STORE, {"row_bytes": 6}, Status.BAD_FIELD, "row_bytes=6: must be a multiple of 4"),
    (Opcode.STORE, {"source": 7}, Status.BAD_FIELD, "source=7"),
    (Opcode.STORE, {"relu": 1}, Status.BAD_FIELD, "relu=1: only with format FP16"),
    (Opcode.STORE, {"source": 1, "check": 1}, Status.BAD_FIELD, "only sums have a format"),
    (Opcode.STORE, {"pitch": 1 << 20}, Status.BAD_ADDRESS, "outside the window"),
]


@pytest.mark.parametrize("opcode, fields, status, message", BAD)
def test_bad_instruction_stops_the_program_there(ready, opcode, fields, status, message):
    dev, compiled = ready
    program, pc = changed(compiled.program, opcode, **fields)
    with pytest.raises(ProgramError, match=message) as refused:
        program.validate(CONFIG, window=(0, MEMORY))
    assert (refused.value.status, refused.value.pc) == (status, pc)
    raw = np.frombuffer(program.encode(), np.uint8)
    dev.memory[: len(raw)] = raw
    golden = GoldenDevice(CONFIG, dev.memory.copy())
    outcome = dev.run(0, len(program))
    assert (outcome.status, outcome.error_pc) == (status, pc)
    verdict = golden.run(0, len(program))
    assert (verdict.status, verdict.pc) == (status, pc)


def test_bad_opcode(ready):
    dev, compiled = ready
    dev.memory[3 * 32] = 0x77
    outcome = dev.run(0, len(compiled.program))
    assert (outcome.status, outcome.error_pc) == (Status.BAD_OPCODE, 3)
    with pytest.raises(ProgramError, match="opcode 0x77 is unknown") as refused:
        Program.decode(dev.memory[: 32 * len(compiled.program)].tobytes())
    assert refused.value.pc == 3


def test_program_without_end(ready):
    dev, compiled = ready
    length = len(compiled.program) - 1
    outcome = dev.run(0, length)
    assert (outcome.status, outcome.error_pc) == (Status.NO_END, length - 1)


@pytest.mark.parametrize(
    "address, length, status",
    [
        (0, 0, Status.BAD_FIELD),
        (16, 4, Status.BAD_ADDRESS),
        (MEMORY - 32, 2, Status.BAD_ADDRESS),
        (1 << 33, 1, Status.BAD_ADDRESS),
    ],
)
def test_program_in_a_bad_place(ready, address, length, status):
    dev, _ = ready
    outcome = dev.run(address, length)
    assert (outcome.status, outcome.error_pc) == (status, 0)


@pytest.mark.parametrize("nth", [0, 1, 3])
@pytest.mark.parametrize(
    "port, status, opcode",
    [
        ("fetch", Status.AXI_FETCH, None),
        ("read", Status.AXI_READ, Opcode.LOAD),
        ("write", Status.AXI_WRITE, Opcode.STORE),
    ],
)
def test_memory_error(ready, port, status, opcode, nth):
    dev, compiled = ready
    dev.fail(port, nth)
    outcome = dev.run(0, len(compiled.program))
    assert outcome.status is status
    if opcode is None:
        assert outcome.error_pc == 4 * nth
    else:
        assert compiled.program[outcome.error_pc].opcode is opcode


def test_wait_that_nobody_meets(ready):
    dev, compiled = ready
    program = Program(
        replace(i, signal=0) if i.opcode is Opcode.MULTIPLY else i for i in compiled.program
    )
    raw = np.frombuffer(program.encode(), np.uint8)
    dev.memory[: len(raw)] = raw
    assert dev.run(0, len(program), max_cycles=100_000).status is Status.WATCHDOG


def test_semaphore_that_overflows(ready):
    dev, compiled = ready
    load = compiled.program[first(compiled.program, Opcode.LOAD)]
    load = replace(load, wait=0, release=1 << 9, signal=1 << 9)
    program = Program([*[load] * 130, Instruction(Opcode.END, {})])
    raw = np.frombuffer(program.encode(), np.uint8)
    memory = dev.memory.copy()
    dev.memory[: len(raw)] = raw
    assert dev.run(0, len(program)).status is Status.SEMAPHORE
    dev.memory[:] = memory


def test_semaphores_at_their_limit(ready):
    """LOADs raise, RATES take a few at a time: RTL as predicted, and well if the validator says so.

    Whether the counter passes 255 depends on how far the two engines are apart.
    """
    dev, compiled = ready
    rng = random.Random(0)
    load = compiled.program[first(compiled.program, Opcode.LOAD)]
    load = replace(load, wait=0, release=0, signal=1)
    rates = Instruction(Opcode.RATES, {}, wait=1)
    memory = dev.memory.copy()
    seen = Counter()
    for _ in range(40):
        made = [load] * rng.randint(235, 255)
        for _ in range(rng.randint(1, 12)):
            some = [load] * rng.randint(0, 9) + [rates] * rng.randint(0, 9)
            rng.shuffle(some)
            made += some
        program = Program([*made, Instruction(Opcode.END, {})])
        raw = np.frombuffer(program.encode(), np.uint8)
        dev.memory[: len(raw)] = raw
        outcome = dev.run(0, len(program))
        try:
            assert predict(program, CONFIG, dev.timing).cycles == outcome.cycles
            predicted = Status.DONE
        except ProgramError as error:
            predicted = error.status
        assert outcome.status is predicted
        try:
            program.validate(CONFIG, window=(0, MEMORY))
            assert outcome.status is Status.DONE
            seen["valid"] += 1
        except ProgramError as error:
            assert error.status is Status.SEMAPHORE
        seen[outcome.status] += 1
    assert min(seen[key] for key in (Status.DONE, Status.SEMAPHORE, "valid")) >= 5, seen
    dev.memory[:] = memory


def test_soft_reset_stops_a_program(ready):
    dev, compiled = ready
    with pytest.raises(TimeoutError, match="did not end in 50 cycles"):
        dev.run(0, len(compiled.program), max_cycles=50)


def test_registers(ready):
    dev, _ = ready
    assert dev.read("ID") == csr.ID_VALUE
    assert dev.read("CONFIG") == 3 | 5 << 8 | 8 << 16 | 8 << 24
    dev.write("WINDOW_BASE", 0x123456789ABC)
    assert dev.read("WINDOW_BASE") == 0x123456789ABC
    with pytest.raises(OSError, match="write of 0x1 to STATUS was answered with 2"):
        dev.write("STATUS", 1)


def test_closed_device_says_so():
    dev = DeviceRtl(CONFIG, memory_bytes=MEMORY)
    dev.close()
    with pytest.raises(DeviceClosedError, match="closed"):
        dev.run(0, 1)
