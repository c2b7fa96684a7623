"""The native cycle model from Python: a program and a device in, cycles out."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.cycles.definitions import Verdict, header, parameters
from sat.dataflow.program import Program, ProgramError
from sat.rtl.config import SEMAPHORE_MAX, SatConfig
from sat.rtl.isa import ENGINES, INSTRUCTION_BYTES, Instruction, Opcode, Status
from sat.sim.build import cached, compile_library, digest
from sat.sim.memory import MemoryTiming

SOURCE = Path(__file__).parent / "model.cpp"
FLAGS = ("-O2",)

Raw = bytes | NDArray[np.uint64]
"""Instructions as the device reads them."""


class Times(NamedTuple):
    """Cycles in which an instruction is accepted, releases its inputs, signals its outputs."""

    accept: int
    release: int
    signal: int


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a program takes.

    Attributes
    ----------
    cycles : int
        Cycles in which STATUS is RUNNING.
    beats_read, beats_written : int
        Data beats on the memory port.
    compute_cycles : int
        Cycles in which the array took operands.
    leapt : int
        Instructions that were leapt over.
    """

    cycles: int
    beats_read: int
    beats_written: int
    compute_cycles: int
    leapt: int
    _times: Callable[[], NDArray[np.int64]]

    @functools.cached_property
    def times(self) -> NDArray[np.int64]:
        """For each instruction of an engine the cycles of its `Times`: (instructions, 3).

        -1 for FENCE and END, and for what lies behind END.
        """
        return self._times()


class _Found(ctypes.Structure):
    """`Found` of sequencer.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("verdict", "cycles", "beats_read", "beats_written", "compute_cycles"),
            *("pc", "semaphore", "engine", "other", "leapt"),
        )
    ]


@functools.cache
def _library() -> ctypes.CDLL:
    text = header()

    def write(folder: Path) -> Path:
        made = folder / "definitions.h"
        made.write_text(text)
        return made

    definitions = cached("cycles", digest([text]), ".h", write)
    # Its path holds its digest, and so does the library's through the flag.
    flags = (*FLAGS, "-include", str(definitions))
    library = ctypes.CDLL(str(compile_library("cycles", [SOURCE], flags)))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    for name, result, arguments in (
        ("predict", None, [pointer, number, number, pointer, number, pointer, pointer]),
        ("device", pointer, [pointer]),
        ("free", None, [pointer]),
        ("run", None, [pointer, number, ctypes.c_char_p, number, pointer]),
        ("idle", number, [pointer]),
        ("bursts", number, [number, number, pointer, pointer, number]),
    ):
        function = getattr(library, f"cycles_{name}")
        function.restype, function.argtypes = result, arguments
    return library


@functools.lru_cache(maxsize=256)
def _parameters(config: SatConfig, memory: MemoryTiming) -> ctypes.Array[ctypes.c_int64]:
    """Return `Parameters` as the model takes them."""
    flat: list[int] = []
    for value in parameters(config, memory).values():
        flat += value if isinstance(value, list) else [value]
    return (ctypes.c_int64 * len(flat))(*flat)


def _size(raw: Raw) -> int:
    return len(raw) if isinstance(raw, bytes) else raw.nbytes


def predict(
    program: Program | bytes | NDArray[np.uint64],
    config: SatConfig,
    memory: MemoryTiming,
    address: int = 0,
    *,
    leaps: bool = True,
    times: bool = False,
) -> Prediction:
    """Return exactly what a program takes.

    Parameters
    ----------
    program : Program, bytes or (instructions, 4) uint64
        One that the device accepts (or what it encodes to), ordered by semaphores each of which
        one engine raises and one engine waits for, raised before (in the program) it is waited
        for.
    address : int
        Byte address of the program; only its place in a block of 128 bytes matters.
    leaps : bool
        Leap over what repeats where that changes no figure; or run every instruction.
    times : bool
        `Prediction.times` is wanted: it comes of the same run, not of another.

    Raises
    ------
    ProgramError
        An instruction waits for what no earlier one raises: the program would hang, or depend
        on a race. Or a semaphore's counter overflows, with this memory; the instruction is the
        one that raises it too high. Or there is no END, or what is no instruction.
    ValueError
        A semaphore is raised, or waited for, by more than one engine, or raised by a release and
        a signal of one engine that do not follow the program's order.
    """
    raw: Raw
    if isinstance(program, np.ndarray):
        raw = np.ascontiguousarray(program, np.uint64)
    else:
        raw = program.encode() if isinstance(program, Program) else bytes(program)
    size = _size(raw)
    length, rest = divmod(size, INSTRUCTION_BYTES)
    if not length or rest:
        raise ValueError(
            f"a program of {size} bytes: must be instructions of {INSTRUCTION_BYTES} bytes, "
            "at least one"
        )
    made = np.empty((length, 3), np.int64) if times else None
    found = _run(raw, config, memory, address, leaps, made)
    if found.verdict != Verdict.PREDICTED.value:
        raise _refusal(bytes(raw), found)
    return Prediction(
        found.cycles,
        found.beats_read,
        found.beats_written,
        found.compute_cycles,
        found.leapt,
        functools.partial(_times, raw, config, memory, address, leaps, made),
    )


def _times(
    raw: Raw,
    config: SatConfig,
    memory: MemoryTiming,
    address: int,
    leaps: bool,
    made: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Return `Prediction.times`, if they are made already."""
    if made is not None:
        return made
    made = np.empty((_size(raw) // INSTRUCTION_BYTES, 3), np.int64)
    _run(raw, config, memory, address, leaps, made)
    return made


def _run(
    raw: Raw,
    config: SatConfig,
    memory: MemoryTiming,
    address: int,
    leaps: bool,
    times: NDArray[np.int64] | None,
) -> _Found:
    """Run the model."""
    found = _Found()
    _library().cycles_predict(
        raw if isinstance(raw, bytes) else raw.ctypes.data,
        _size(raw) // INSTRUCTION_BYTES,
        address,
        _parameters(config, memory),
        int(leaps),
        None if times is None else times.ctypes.data,
        ctypes.byref(found),
    )
    return found


def _refusal(raw: bytes, found: _Found) -> ValueError:
    """Return why there is no prediction."""
    verdict, pc, names = Verdict(found.verdict), found.pc, list(ENGINES)
    if verdict is Verdict.NO_END:
        return ProgramError(Status.NO_END, pc, "the program's last must be END")
    word = raw[pc * INSTRUCTION_BYTES : (pc + 1) * INSTRUCTION_BYTES]
    if verdict is Verdict.NO_INSTRUCTION:
        known = word[0] in {opcode.value for opcode in Opcode}
        status = Status.BAD_FIELD if known else Status.BAD_OPCODE
        return ProgramError(status, pc, f"{word.hex()} is no instruction of this device's")
    semaphore, opcode = found.semaphore, Opcode(word[0])
    if verdict is Verdict.NOTHING_RAISES:
        return ProgramError(
            Status.WATCHDOG,
            pc,
            f"{opcode.name} waits for semaphore {semaphore}, which nothing before it raises often "
            "enough",
        )
    if verdict is Verdict.RAISED_TOO_HIGH:
        return ProgramError(
            Status.SEMAPHORE,
            pc,
            f"it raises semaphore {semaphore} above {SEMAPHORE_MAX}: nothing has waited for it "
            f"often enough by cycle {found.cycles}",
        )
    if verdict is Verdict.OUT_OF_ORDER:
        return ValueError(
            f"semaphore {semaphore} is raised by instruction {pc} of the {names[found.engine]} "
            "engine before an earlier instruction raises it: the cycle model needs raises in the "
            "order of the program; use one semaphore for releases and another for signals"
        )
    verb = "raised" if verdict is Verdict.TWO_RAISERS else "waited for"
    return ValueError(
        f"semaphore {semaphore} is {verb} by the {names[found.other]} and the "
        f"{names[found.engine]} engine: the cycle model needs one on each side; use another "
        "semaphore"
    )


class EngineTiming:
    """Exact timing of one engine, instruction by instruction: what tests hold its RTL to.

    Parameters
    ----------
    engine : str
        One of `sat.rtl.isa.ENGINES`.
    config : SatConfig
    memory : MemoryTiming, optional
        For the engines that have a port.
    """

    def __init__(self, engine: str, config: SatConfig, memory: MemoryTiming | None = None):
        library = _library()
        self._engine = list(ENGINES).index(engine)
        self._device = library.cycles_device(_parameters(config, memory or MemoryTiming()))
        weakref.finalize(self, library.cycles_free, self._device)

    def run(self, instruction: Instruction, earliest: int) -> Times:
        """Return when an instruction offered from cycle ``earliest`` on is accepted and done."""
        times = (ctypes.c_int64 * 3)()
        raw = instruction.encode()
        _library().cycles_run(self._device, self._engine, raw, earliest, times)
        return Times(*times)

    @property
    def idle(self) -> int:
        """First cycle in which ``busy`` is low after everything accepted so far."""
        return int(_library().cycles_idle(self._device))


def bursts(address: int, size: int, config: SatConfig) -> list[tuple[int, int]]:
    """Return address and beats of the bursts that cover ``size`` bytes at ``address``."""
    given = _parameters(config, MemoryTiming())
    count = _library().cycles_bursts(address, size, given, None, 0)
    made = np.empty((count, 2), np.int64)
    _library().cycles_bursts(address, size, given, made.ctypes.data, count)
    return [(int(at), int(beats)) for at, beats in made]
