"""When the store engine does what: the Python side of `sat.rtl.store`'s timing."""

from __future__ import annotations

from collections import deque

from sat.dataflow.cycles.timing import Times
from sat.rtl import isa
from sat.rtl.bursts import bursts
from sat.rtl.config import SatConfig
from sat.rtl.store import STORES_IN_FLIGHT
from sat.sim.golden.check import store_element
from sat.sim.memory import MemoryTiming


class StoreTiming:
    """Exact timing of a `sat.rtl.store.StoreEngine` on a memory, instruction by instruction.

    Parameters
    ----------
    config : SatConfig
    memory : MemoryTiming

    Attributes
    ----------
    idle : int
        First cycle in which ``busy`` is low after everything accepted so far.
    beats : int
        Beats written so far.
    """

    def __init__(self, config: SatConfig, memory: MemoryTiming):
        self.config, self.memory = config, memory
        self.idle = 0
        self.beats = 0
        self._next_accept = 0
        self._address = -1  # cycle of the last address on the bus
        self._free = 0  # first cycle in which memory may take the next beat
        self._answer = -1  # cycle of the last response
        self._answers: deque[int] = deque([-2] * config.axi.outstanding)  # per burst
        self._retired: deque[int] = deque([-1] * STORES_IN_FLIGHT)  # last response of each

    def run(self, instruction: isa.Instruction, earliest: int) -> Times:
        """Return when a STORE offered from cycle ``earliest`` on is accepted and done."""
        i = instruction
        _, word_bytes = store_element(i, self.config)
        step, latency = self.memory.cycles_per_beat, self.memory.write_latency
        per_beat = self.config.axi.beat_bytes
        accept = max(earliest, self._next_accept, self._retired.popleft() + 1)
        self._address = max(self._address, accept + 1)
        word_ready = accept + 2  # first cycle in which a word may be taken
        release = 0
        for row in range(i.rows):
            address = i.address + row * i.pitch
            count, left = address % per_beat, i.row_bytes
            word = word_ready  # next cycle in which a word may be taken
            cycle = word - 1  # of the last beat or word taken
            for burst in bursts(address, 0, 1, i.row_bytes, self.config.axi):
                # The address follows the last one and the response `outstanding` before it; its
                # beats may go from the cycle in which it is on the bus, memory takes them later.
                self._address = max(self._address + 1, self._answers.popleft() + 2)
                for _ in range(burst.beats):
                    # Words come in until a beat is full: one a cycle.
                    while count < per_beat and left:
                        cycle = max(cycle + 1, word)
                        brought = min(word_bytes, left)
                        count, left = count + brought, left - brought
                        if not left:
                            release = cycle + 1
                    taken = max(cycle + 1, self._free, self._address + 1)
                    self._free = taken + step
                    # With the beat goes a word, if there is one and less than a beat stays.
                    count = max(0, count - per_beat)
                    cycle = taken
                    if left and count < per_beat:
                        brought = min(word_bytes, left)
                        count, left = count + brought, left - brought
                        if not left:
                            release = taken + 1
                self._answer = max(self._answer + 1, cycle + latency)
                self._answers.append(self._answer)
                self.beats += burst.beats
            word_ready = cycle + 1
        self._next_accept = max(cycle + 1, self._address)
        self._retired.append(self._answer)
        self.idle = self._answer + 2
        return Times(accept, release, self._answer + 1)
