"""When the fetch unit offers which instruction: the Python side of `sat.rtl.fetch`."""

from __future__ import annotations

from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.fetch import FETCH_INSTRUCTIONS
from sat.sim.memory import MemoryTiming


class FetchTiming:
    """When each instruction is at the fetch unit's output."""

    def __init__(self, address: int, length: int, config: SatConfig, memory: MemoryTiming):
        self.first, self.length, self.memory = address // isa.INSTRUCTION_BYTES, length, memory
        self.beats_each = isa.INSTRUCTION_BYTES // config.axi.beat_bytes
        self.room = config.instruction_queue - FETCH_INSTRUCTIONS
        self.available: list[int] = []
        self.taken: list[int] = []  # cycle in which the sequencer took each
        self._ready = 0  # first cycle in which a burst may be asked for
        self._free = 0

    def when(self, pc: int) -> int:
        """Return the first cycle in which instruction ``pc`` is offered."""
        while pc >= len(self.available):
            asked = len(self.available)
            count = FETCH_INSTRUCTIONS - (self.first + asked) % FETCH_INSTRUCTIONS
            count = min(count, self.length - asked)
            decided = self._ready
            if asked > self.room:
                # The queue must have let go of all but `room` of what was asked for.
                decided = max(decided, self.taken[asked - self.room - 1] + 1)
            first = max(decided + 1 + self.memory.read_latency, self._free)
            step = self.memory.cycles_per_beat
            for n in range(1, count + 1):
                self.available.append(first + (n * self.beats_each - 1) * step + 1)
            last = self.available[-1] - 1
            self._free = last + step
            self._ready = last + 1
        return self.available[pc]
