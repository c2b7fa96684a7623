"""What the native cycle model takes from `sat.rtl`: encodings, constants, a device's parameters.

Each fact is stated once, beside the RTL. Encodings and constants become a C++ header that the
compiler is handed in front of the model; what depends on the device or its memory becomes the
`Parameters` that a prediction is given. An engine's new parameter is a line in `parameters`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence

from amaranth.hdl import Shape

from sat.rtl import isa
from sat.rtl.axi import BOUNDARY_BYTES
from sat.rtl.check import CHECK_CYCLES
from sat.rtl.compute import PREPARE_CYCLES, TILES_IN_FLIGHT, feed_delay
from sat.rtl.config import SEMAPHORE_MAX, SEMAPHORES, SatConfig
from sat.rtl.fetch import FETCH_INSTRUCTIONS
from sat.rtl.isa import Buffer, Dataflow, Format, Instruction, Opcode, Source, Start
from sat.rtl.load import COMMANDS_AHEAD, segments_ahead
from sat.rtl.segments import SETTINGS_CYCLES, SETUP_CYCLES
from sat.rtl.store import READ_CYCLES as STORE_READ_CYCLES
from sat.rtl.store import STORES_IN_FLIGHT, overlaps
from sat.rtl.update_walk import column_drain, row_drain
from sat.sim.golden.check import store_element
from sat.sim.memory import MemoryTiming


class Verdict(enum.Enum):
    """What the model makes of a program."""

    PREDICTED = 0
    NO_END = 1
    """The last instruction is not END."""
    NO_INSTRUCTION = 2
    """No instruction of the device's."""
    NOTHING_RAISES = 3
    """It waits for a semaphore that nothing before it raises often enough."""
    TWO_WAITERS = 4
    """Two engines wait for a semaphore."""
    TWO_RAISERS = 5
    """Two engines raise a semaphore."""
    OUT_OF_ORDER = 6
    """A semaphore is raised earlier than an earlier instruction of the engine raises it."""
    RAISED_TOO_HIGH = 7
    """A semaphore's counter overflows."""


FORMAT_BITS = Shape.cast(Format).width

CONSTANTS = {
    "CHECK_CYCLES": CHECK_CYCLES,
    "COMMANDS_AHEAD": COMMANDS_AHEAD,
    "ENGINES": len(isa.ENGINES),
    "FETCH_INSTRUCTIONS": FETCH_INSTRUCTIONS,
    "FORMAT_BITS": FORMAT_BITS,
    "INSTRUCTION_BYTES": isa.INSTRUCTION_BYTES,
    "PREPARE_CYCLES": PREPARE_CYCLES,
    "SEMAPHORES": SEMAPHORES,
    "SEMAPHORE_MAX": SEMAPHORE_MAX,
    "SETTINGS_CYCLES": SETTINGS_CYCLES,
    "SETUP_CYCLES": SETUP_CYCLES,
    "STORES_IN_FLIGHT": STORES_IN_FLIGHT,
    "STORE_READ_CYCLES": STORE_READ_CYCLES,
    "TILES_IN_FLIGHT": TILES_IN_FLIGHT,
}


def parameters(config: SatConfig, memory: MemoryTiming) -> dict[str, int | list[int]]:
    """Return what predictions depend on besides the program, by the names that the model uses."""
    return {
        "rows": config.rows,
        "cols": config.cols,
        "row_cycles": config.row_cycles,
        "interleave": config.interleave,
        "update_lanes": config.update_lanes,
        "queue_depth": config.queue_depth,
        "instruction_queue": config.instruction_queue,
        "beat_bytes": config.axi.beat_bytes,
        "boundary_beats": BOUNDARY_BYTES // config.axi.port_bytes,
        "fetch_beat_bytes": config.axi.instructions.beat_bytes,
        "granule_bytes": config.granule_bytes,
        "beat_words": config.beat_words,
        "a_groups": config.a_groups,
        "b_groups": config.b_groups,
        "segments_ahead": segments_ahead(config),
        "sore_stages": config.fp.sore_stages,
        "burst_beats": config.axi.burst_beats,
        "outstanding": config.axi.outstanding,
        "mask_bytes": config.mask_bytes,
        "feed_delay": feed_delay(config),
        "row_drain": row_drain(config),
        "column_drain": column_drain(config),
        "store_overlaps": int(overlaps(config)),
        "store_word_bytes": _store_word_bytes(config),
        "read_latency": memory.read_latency,
        "write_latency": memory.write_latency,
        "cycles_per_beat": memory.cycles_per_beat,
    }


def _store_word_bytes(config: SatConfig) -> list[int]:
    """Return the bytes that a STORE reads at once, by source and format; 0: no such source."""
    made = [0] * (1 << Shape.cast(Source).width + FORMAT_BITS)
    for source in Source:
        for format in Format:
            store = Instruction(Opcode.STORE, {"source": source, "format": format})
            _, word = store_element(store, config)
            together = 1 if source is Source.OUTPUT else config.beat_words
            made[source.value << FORMAT_BITS | format.value] = together * word
    return made


def header() -> str:
    """Return the C++ header."""
    lines = ["#pragma once", "#include <cstdint>"]
    lines += [f"constexpr int64_t {name} = {value};" for name, value in CONSTANTS.items()]
    for kind in (Opcode, Buffer, Dataflow, Start, Verdict):
        members = ", ".join(f"{member.name} = {member.value}" for member in kind)
        lines.append(f"enum class {kind.__name__} {{ {members} }};")
    lines.append(f"enum class Engine {{ {', '.join(isa.ENGINES)} }};")
    lines.append(f"constexpr int ENGINE_OF[256] = {{ {_listed(_engine_of())} }};")
    lines.append("struct Field { int at, width; bool is_signed; };")
    lines += _fields("HEADER", {n: (f.offset, f.width, range(0)) for n, f in isa.HEADER})
    for opcode, places in isa.PLACES.items():
        lines += _fields(opcode.name, places)
    lines.append("struct Parameters {")
    for name, value in parameters(SatConfig(), MemoryTiming()).items():
        lines.append(f"int64_t {name}{f'[{len(value)}]' if isinstance(value, list) else ''};")
    lines.append("};")
    return "\n".join(lines) + "\n"


def _fields(name: str, places: Mapping[str, tuple[int, int, range]]) -> Iterator[str]:
    """Yield where in an instruction the fields of an opcode lie."""
    yield f"namespace {name} {{"
    for field, (at, width, legal) in places.items():
        signed = "true" if legal.start < 0 else "false"
        yield f"constexpr Field {field} = {{ {at}, {width}, {signed} }};"
    yield "}"


def _engine_of() -> list[int]:
    """Return the number of the engine of each opcode; -1: none."""
    made = [-1] * 256
    for number, opcodes in enumerate(isa.ENGINES.values()):
        for opcode in opcodes:
            made[opcode.value] = number
    return made


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
