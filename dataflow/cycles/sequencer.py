"""When the sequencer hands which instruction to its engine, and what a whole program takes."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

from sat.dataflow.cycles.compute import ComputeTiming
from sat.dataflow.cycles.fetch import FetchTiming
from sat.dataflow.cycles.load import LoadTiming
from sat.dataflow.cycles.store import StoreTiming
from sat.dataflow.cycles.timing import Times
from sat.dataflow.cycles.update import UpdateTiming
from sat.dataflow.program import Program, ProgramError
from sat.rtl.check import CHECK_CYCLES
from sat.rtl.config import SEMAPHORE_MAX, SEMAPHORES, SatConfig
from sat.rtl.isa import ENGINES, Opcode, Status
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class Prediction:
    """What a program takes.

    Attributes
    ----------
    cycles : int
        Cycles in which STATUS is RUNNING.
    times : list of Times or None
        For each instruction of an engine its accept, release and signal; None for FENCE, END.
    beats_read, beats_written : int
        Data beats on the memory port.
    """

    cycles: int
    times: list[Times | None]
    beats_read: int
    beats_written: int


def predict(
    program: Program, config: SatConfig, memory: MemoryTiming, address: int = 0
) -> Prediction:
    """Return exactly what a program takes.

    Parameters
    ----------
    program : Program
        One that the device accepts, ordered by semaphores each of which one engine raises and
        one engine waits for, raised before (in the program) it is waited for.
    address : int
        Byte address of the program; only its place in a block of 128 bytes matters.

    Raises
    ------
    ProgramError
        An instruction waits for what no earlier one raises: the program would hang, or depend
        on a race. Or a semaphore's counter overflows, with this memory; the instruction is the
        one that raises it too high.
    ValueError
        A semaphore is raised, or waited for, by more than one engine.
    """
    fetch = FetchTiming(address, len(program), config, memory)
    load, store = LoadTiming(config, memory), StoreTiming(config, memory)
    engines: dict[str, LoadTiming | ComputeTiming | StoreTiming | UpdateTiming] = {
        "load": load,
        "multiply": ComputeTiming(config),
        "store": store,
        "update": UpdateTiming(config),
    }
    engine_of = {opcode: name for name, opcodes in ENGINES.items() for opcode in opcodes}
    accepts = {name: deque([-1] * config.queue_depth) for name in engines}
    raises: list[list[tuple[int, int]]] = [[] for _ in range(SEMAPHORES)]  # (cycle, instruction)
    takes: list[list[int]] = [[] for _ in range(SEMAPHORES)]
    raisers: list[str | None] = [None] * SEMAPHORES
    waiters: list[str | None] = [None] * SEMAPHORES
    times: list[Times | None] = []
    dispatched = -1

    def owner(owners: list[str | None], semaphore: int, engine: str, verb: str) -> None:
        other = owners[semaphore]
        if other is not None and other != engine:
            raise ValueError(
                f"semaphore {semaphore} is {verb} by the {other} and the {engine} engine: "
                "the cycle model needs one on each side; use another semaphore"
            )
        owners[semaphore] = engine

    for pc, instruction in enumerate(program):
        opcode = instruction.opcode
        taken = max(fetch.when(pc), dispatched + 1)
        fetch.taken.append(taken)
        decided = taken + 1 + CHECK_CYCLES
        if opcode in (Opcode.FENCE, Opcode.END):
            dispatched = max(decided, *(engine.idle for engine in engines.values()))
            times.append(None)
            if opcode is Opcode.END:
                for semaphore in range(SEMAPHORES):
                    _check_counter(semaphore, raises[semaphore], takes[semaphore])
                return Prediction(dispatched + 1, times, load.beats, store.beats)
            continue
        name = engine_of[opcode]
        dispatched = max(decided, accepts[name].popleft() + 1)
        offered = dispatched + 1
        for semaphore in _bits(instruction.wait):
            owner(waiters, semaphore, name, "waited for")
            taken_before = len(takes[semaphore])
            if taken_before == len(raises[semaphore]):
                raise ProgramError(
                    Status.WATCHDOG,
                    pc,
                    f"{opcode.name} waits for semaphore {semaphore}, which nothing before it "
                    "raises often enough",
                )
            offered = max(offered, raises[semaphore][taken_before][0] + 1)
        moment = engines[name].run(instruction, offered)
        for semaphore in _bits(instruction.wait):
            takes[semaphore].append(moment.accept)
        accepts[name].append(moment.accept)
        times.append(moment)
        for mask, cycle in (
            (instruction.release, moment.release),
            (instruction.signal, moment.signal),
        ):
            for semaphore in _bits(mask):
                owner(raisers, semaphore, name, "raised")
                raises[semaphore].append((cycle, pc))
    raise ProgramError(Status.NO_END, len(program) - 1, "the program's last must be END")


def _check_counter(semaphore: int, raises: list[tuple[int, int]], takes: list[int]) -> None:
    """Raise if a counter would ever pass `SEMAPHORE_MAX`.

    Of raises and takes in one cycle both count: each raise needs the take `SEMAPHORE_MAX` before
    it to be no later.
    """
    raises = sorted(raises)
    for (cycle, pc), taken in itertools.zip_longest(
        raises[SEMAPHORE_MAX:], takes[: max(0, len(raises) - SEMAPHORE_MAX)]
    ):
        if taken is None or taken > cycle:
            raise ProgramError(
                Status.SEMAPHORE,
                pc,
                f"it raises semaphore {semaphore} above {SEMAPHORE_MAX}: nothing has waited for "
                f"it often enough by cycle {cycle}",
            )


def _bits(mask: int) -> list[int]:
    return [n for n in range(SEMAPHORES) if mask >> n & 1]
