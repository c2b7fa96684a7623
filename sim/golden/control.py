"""What the sequencer does without time: dispatch in order, queues, semaphores."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator

from sat.rtl.config import SEMAPHORE_MAX, SEMAPHORES, SatConfig
from sat.rtl.isa import ENGINES, Instruction, Opcode, Status


class Stopped(Exception):
    """An instruction can never be dispatched, or a semaphore may overflow.

    Attributes
    ----------
    status : Status
    message : str
    """

    def __init__(self, status: Status, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Dispatch:
    """Dispatch instructions in program order; each runs as soon as it has its semaphores.

    Where engines compete for a semaphore, time decides on the device; here the engine that comes
    first in `ENGINES`. Programs that mean something leave no such choice.

    How high a semaphore rises depends on how long engines and memory take. A program is stopped
    where a counter could overflow with any timing; so what passes here overflows on no device.

    Parameters
    ----------
    config : SatConfig
    """

    def __init__(self, config: SatConfig):
        self.config = config
        self._counts = [0] * SEMAPHORES
        self._order = _Order(config)
        self._queues: dict[str, deque[Instruction]] = {name: deque() for name in ENGINES}
        self._engine = {opcode: name for name, opcodes in ENGINES.items() for opcode in opcodes}

    def take(self, instruction: Instruction) -> Iterator[Instruction]:
        """Dispatch an instruction; yield those that run now, in an order that they may run in.

        Raises
        ------
        Stopped
            The device would stop here.
        """
        if instruction.opcode in (Opcode.END, Opcode.FENCE):
            for name, queue in self._queues.items():
                if queue:
                    raise Stopped(
                        Status.WATCHDOG,
                        f"{instruction.opcode.name} waits for the {name} engine, where "
                        f"{self._missing(queue[0])}",
                    )
            self._order.fence()
            return
        name = self._engine[instruction.opcode]
        queue = self._queues[name]
        if len(queue) == self.config.queue_depth:
            raise Stopped(
                Status.WATCHDOG, f"the {name} engine's queue is full: {self._missing(queue[0])}"
            )
        queue.append(instruction)
        overflowing = self._order.add(name, instruction)
        if overflowing is not None:
            raise Stopped(
                Status.SEMAPHORE,
                f"semaphore {overflowing} may rise above {SEMAPHORE_MAX}: too little is waited "
                "for, for certain, before it is raised again",
            )
        moved = True
        while moved:
            moved = False
            for queue in self._queues.values():
                while queue and all(self._counts[n] for n in _bits(queue[0].wait)):
                    ready = queue.popleft()
                    for n in _bits(ready.wait):
                        self._counts[n] -= 1
                    yield ready
                    moved = True
                    for mask in (ready.release, ready.signal):
                        for n in _bits(mask):
                            self._counts[n] += 1
                            if self._counts[n] > SEMAPHORE_MAX:
                                raise Stopped(Status.SEMAPHORE, f"semaphore {n} overflows")

    def _missing(self, instruction: Instruction) -> str:
        lacking = [n for n in _bits(instruction.wait) if not self._counts[n]]
        return f"{instruction.opcode.name} waits for semaphore {lacking[0]}, which nothing raises"


Accepted = tuple[int, ...]
"""For each engine, how many of its instructions it has accepted for certain."""


class _Order:
    """What must have happened before what, whatever the time that anything takes.

    An instruction is accepted after those before it in its engine; after the raises that it waits
    for, which come after the acceptance of the instruction that makes them; and after its
    dispatch, for which all before it in the program are dispatched and its queue has room.
    Semaphores that several engines raise, or wait for, order nothing here.
    """

    def __init__(self, config: SatConfig):
        self._engines = list(ENGINES)
        none = (0,) * len(ENGINES)
        self._dispatched = none  # before the last dispatch
        self._accepted = dict.fromkeys(ENGINES, none)  # with the last of each engine
        self._queued = {name: deque([none] * config.queue_depth) for name in ENGINES}
        self._raises: list[list[Accepted]] = [[] for _ in range(SEMAPHORES)]
        self._waits: list[dict[str, list[int]]] = [{} for _ in range(SEMAPHORES)]
        self._raisers: list[set[str]] = [set() for _ in range(SEMAPHORES)]
        self._count = dict.fromkeys(ENGINES, 0)

    def fence(self) -> None:
        """All that was dispatched is done."""
        self._dispatched = tuple(self._count.values())

    def add(self, name: str, instruction: Instruction) -> int | None:
        """Take in what is dispatched next; return a semaphore that it may raise too high."""
        place = self._engines.index(name)
        # The instruction that leaves the queue makes room for this one.
        self._dispatched = _join(self._dispatched, self._queued[name].popleft())
        before = _join(self._dispatched, self._accepted[name])
        for semaphore in _bits(instruction.wait):
            waits = self._waits[semaphore]
            mine = waits.setdefault(name, [])
            raises = self._raises[semaphore]
            single = len(waits) == len(self._raisers[semaphore]) == 1
            if single and len(mine) < len(raises):
                before = _join(before, raises[len(mine)])
            mine.append(self._count[name])
        self._count[name] += 1
        accepted = (*before[:place], self._count[name], *before[place + 1 :])
        self._accepted[name] = accepted
        self._queued[name].append(accepted)
        found = None
        for mask in (instruction.release, instruction.signal):
            for semaphore in _bits(mask):
                self._raises[semaphore].append(accepted)
                self._raisers[semaphore].add(name)
                taken = sum(
                    bisect_left(waits, accepted[self._engines.index(engine)])
                    for engine, waits in self._waits[semaphore].items()
                )
                single = len(self._raisers[semaphore]) == 1
                if single and len(self._raises[semaphore]) - taken > SEMAPHORE_MAX:
                    found = semaphore
        return found


def _join(a: Accepted, b: Accepted) -> Accepted:
    return tuple(map(max, a, b))


def _bits(mask: int) -> list[int]:
    return [n for n in range(SEMAPHORES) if mask >> n & 1]
