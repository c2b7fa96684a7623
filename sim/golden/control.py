"""What the sequencer does without time: dispatch in order, queues, semaphores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sat.rtl.config import SEMAPHORE_BITS, SEMAPHORES, SatConfig
from sat.rtl.isa import ENGINES, Instruction, Opcode, Status


class Stopped(Exception):
    """An instruction can never be dispatched, or a semaphore overflows.

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

    Parameters
    ----------
    config : SatConfig
    """

    def __init__(self, config: SatConfig):
        self.config = config
        self._counts = [0] * SEMAPHORES
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
            return
        name = self._engine[instruction.opcode]
        queue = self._queues[name]
        if len(queue) == self.config.queue_depth:
            raise Stopped(
                Status.WATCHDOG, f"the {name} engine's queue is full: {self._missing(queue[0])}"
            )
        queue.append(instruction)
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
                            if self._counts[n] >> SEMAPHORE_BITS:
                                raise Stopped(Status.SEMAPHORE, f"semaphore {n} overflows")

    def _missing(self, instruction: Instruction) -> str:
        lacking = [n for n in _bits(instruction.wait) if not self._counts[n]]
        return f"{instruction.opcode.name} waits for semaphore {lacking[0]}, which nothing raises"


def _bits(mask: int) -> list[int]:
    return [n for n in range(SEMAPHORES) if mask >> n & 1]
