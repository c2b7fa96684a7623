"""The cycle model: what it was once held to, what follows from any program, what it refuses.

Cycle for cycle the RTL holds it: `tests/cosim` whole programs, `tests/rtl` each engine.
"""

from __future__ import annotations

import json
import lzma
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sat.dataflow.compile import compile_product
from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.cycles import EngineTiming, predict
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program, ProgramError
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.isa import ENGINES, INSTRUCTION_BYTES, Dataflow, Instruction, Opcode, Status
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

RECORDED = Path(__file__).parent / "recorded_cycles.jsonl.xz"


def test_programs_take_the_cycles_that_were_recorded():
    """260 programs on 159 devices: their times as they were recorded.

    A line each: the program as text, device, memory; cycles, beats, CRC-32 of all times. A model in
    Python, apart from this one, gave the first record; this one gave the same. What a change of the
    RTL's timing moves is recorded anew from this model when `tests/cosim` has held it to the RTL.
    """
    lines = lzma.decompress(RECORDED.read_bytes()).decode().splitlines()
    assert len(lines) == 260
    for line in lines:
        case = json.loads(line)
        config = SatConfig.from_json(json.dumps(case["config"]))
        program = Program.parse(case["program"])
        found = predict(program, config, MemoryTiming(**case["memory"]), case["address"])
        assert found.cycles == case["cycles"], case
        assert (found.beats_read, found.beats_written) == (
            case["beats_read"],
            case["beats_written"],
        )
        assert zlib.crc32(found.times.tobytes()) == case["times"], case


@st.composite
def devices(draw) -> tuple[SatConfig, MemoryTiming]:
    """Draw any device with moderate buffers, and a memory."""
    interleave = draw(st.sampled_from([1, 2, 4, 8]))
    max_m = draw(st.sampled_from([2, 4, 8, 16]))
    words = st.sampled_from([64, 128, 512])
    try:
        config = SatConfig(
            rows=draw(st.integers(1, 12)), cols=draw(st.integers(1, 12)),
            max_m=max_m, max_n=draw(st.integers(1, max_m)), interleave=interleave,
            fp=FpTiming(
                multiplier_stages=draw(st.integers(1, 3)),
                adder_stages=draw(st.integers(1, interleave)),
                update_multiplier_stages=draw(st.integers(3, 5)),
                prune_stages=draw(st.integers(1, 3)),
            ),
            a_words=draw(words), b_words=draw(words), sum_words=draw(st.sampled_from([256, 512])),
            update_lanes=draw(st.sampled_from([1, 2, 8, 32])),
            queue_depth=draw(st.sampled_from([2, 4, 16])),
            axi=AxiConfig(
                data_bits=draw(st.sampled_from([32, 64, 128, 256, 512])),
                ports=draw(st.sampled_from([1, 1, 2, 4])),
                burst_beats=draw(st.sampled_from([1, 4, 64, 256])),
                outstanding=draw(st.sampled_from([2, 16, 64])),
            ),
        )  # fmt: skip
    except ValueError:
        assume(False)
        raise
    latency = st.integers(1, 150)
    memory = MemoryTiming(
        read_latency=draw(latency),
        write_latency=draw(latency),
        cycles_per_beat=draw(st.integers(1, 4)),
    )
    return config, memory


@st.composite
def programs(draw) -> tuple[Program, int, SatConfig, MemoryTiming]:
    """Draw a program, its address, device and memory."""
    config, memory = draw(devices())
    m = draw(st.sampled_from([1, *(m for m in (2, 4, 8, 16) if m <= config.max_m)]))
    pattern = draw(st.integers(1, m)), m
    try:
        if draw(st.booleans()):
            sizes = [draw(st.integers(1, 60)) for _ in range(3)]
            product = Product(*sizes, *pattern, draw(st.sampled_from(list(StartShape))))
            mapping = draw(st.sampled_from(legal_mappings(product, config)))
            program = compile_product(product, config, mapping).program
            address = INSTRUCTION_BYTES * draw(st.integers(0, 9))
        else:
            k = draw(st.sampled_from([1, 3]))
            layer = Layer(
                batch=draw(st.integers(1, 2)), lines=draw(st.integers(1, 6)),
                pixels=draw(st.integers(1, 6)), in_channels=m * draw(st.integers(1, 3)),
                out_channels=m * draw(st.integers(1, 3)), kernel=(k, k), padding=(k // 2, k // 2),
                ff=pattern, bp=pattern, bias=draw(st.booleans()), relu=draw(st.booleans()),
                masked=draw(st.booleans()),
            )  # fmt: skip
            stages = draw(st.sampled_from([STAGES, *((stage,) for stage in STAGES)]))
            step = compile_step(layer, config, memory, stages)
            program, address = step.program, step.address
    except ValueError:
        # What does not fit the drawn buffers.
        assume(False)
        raise
    return program, address, config, memory


def beats_of(rows: list[tuple[int, int]], beat: int) -> int:
    """Return the beats that rows, each (address, bytes), touch."""
    return sum((at + size - 1) // beat - at // beat + 1 for at, size in rows)


def rows_of(i: Instruction) -> list[tuple[int, int]]:
    return [(i.address + row * i.pitch, i.row_bytes) for row in range(i.rows)]


@given(programs())
def test_times_of_any_program_are_in_order_and_its_sums_are_its_instructions(case):
    program, address, config, memory = case
    found = predict(program, config, memory, address)
    assert found.times.shape == (len(program), 3) and found.times.dtype == np.int64
    for opcodes in ENGINES.values():
        own = np.array([i.opcode in opcodes for i in program])
        accept, release, signal = found.times[own].T
        assert np.all(np.diff(accept) > 0) and np.all(np.diff(signal) > 0)
        assert np.all(accept < release) and np.all(release <= signal)
        assert np.all(signal < found.cycles)
    engineless = np.array([i.opcode in (Opcode.FENCE, Opcode.END) for i in program])
    assert np.all(found.times[engineless] == -1) and np.all(found.times[~engineless] >= 0)
    multiplies = [i for i in program if i.opcode is Opcode.MULTIPLY]
    steps = sum((i.words - 1) * i.values + i.last for i in multiplies)
    assert found.compute_cycles == config.interleave * steps
    beat = config.axi.beat_bytes
    stored = [row for i in program if i.opcode is Opcode.STORE for row in rows_of(i)]
    assert found.beats_written == beats_of(stored, beat)
    if not any(i.opcode is Opcode.GATHER for i in program):
        loaded = [row for i in program if i.opcode is Opcode.LOAD for row in rows_of(i)]
        assert found.beats_read == beats_of(loaded, beat)


@given(programs(), st.integers(0, 1 << 20))
def test_only_the_place_in_a_block_and_what_stands_before_end_matter(case, blocks):
    program, address, config, memory = case
    found = predict(program, config, memory, address)
    again = predict(program.encode(), config, memory, address + 128 * blocks)
    assert again.cycles == found.cycles and np.array_equal(again.times, found.times)
    behind = predict(program.encode() + bytes(96), config, memory, address)
    assert behind.cycles == found.cycles and np.all(behind.times[len(program) :] == -1)


@given(programs())
def test_an_engine_alone_takes_what_the_program_gives_it(case):
    """Offered when its semaphores and queue let it, each engine goes through the same times."""
    program, address, config, memory = case
    found = predict(program, config, memory, address)
    for name, opcodes in ENGINES.items():
        timing = EngineTiming(name, config, memory)
        for i, times in zip(program, found.times.tolist(), strict=True):
            if i.opcode in opcodes:
                # At the engine from its accept on at the latest, it is accepted no later.
                assert list(timing.run(i, times[0])) == times
                assert timing.idle > times[2]


def multiply(**masks: int) -> Instruction:
    body = {"dataflow": Dataflow.OS, "emit": 1, "n": 1, "words": 1, "values": 8, "last": 8}
    return Instruction(Opcode.MULTIPLY, {**body, "a_stride": 2, "b_stride": 2}, **masks)


def test_programs_without_one_order_are_refused():
    config, memory = SatConfig(), MemoryTiming()
    end = Instruction(Opcode.END, {})
    load = Instruction(Opcode.WINDOW, {"lines": 1, "pixels": 1}, signal=1)

    def refused(match: str, *instructions: Instruction) -> ValueError:
        with pytest.raises(ValueError, match=match) as caught:
            predict(Program([*instructions, end]), config, memory)
        return caught.value

    refused("semaphore 0 is raised by the load and the multiply engine", load, multiply(signal=1))
    takes = Instruction(Opcode.RATES, {}, wait=1)
    refused(
        "semaphore 0 is waited for by the multiply and the update engine",
        load, load, multiply(wait=1), takes,
    )  # fmt: skip
    # Its signal comes long after the release of the next.
    refused(
        "semaphore 2 is raised by instruction 1 of the multiply engine before",
        multiply(signal=4), multiply(release=4),
    )  # fmt: skip
    error = refused("instruction 1: MULTIPLY waits for semaphore 1", load, multiply(wait=3))
    assert isinstance(error, ProgramError) and error.status is Status.WATCHDOG


def test_bytes_that_are_no_program_are_refused():
    config, memory = SatConfig(), MemoryTiming()
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match=f"a program of {size} bytes"):
            predict(bytes(size), config, memory)
    end = Instruction(Opcode.END, {}).encode()
    with pytest.raises(ProgramError, match="instruction 0: 7f.* is no instruction") as caught:
        predict(bytes([0x7F]) + bytes(31) + end, config, memory)
    assert (caught.value.status, caught.value.pc) == (Status.BAD_OPCODE, 0)
    store = Instruction(Opcode.STORE, {"rows": 1, "row_bytes": 4, "source": 7}).encode()
    with pytest.raises(ProgramError, match="is no instruction") as caught:
        predict(store + end, config, memory)
    assert caught.value.status is Status.BAD_FIELD
