"""When the load engine does what: the Python side of `sat.rtl.load`'s timing."""

from __future__ import annotations

from collections import deque

from sat.dataflow.timing import Times
from sat.rtl import isa
from sat.rtl.bursts import bursts
from sat.rtl.config import SatConfig
from sat.rtl.load import COMMANDS_AHEAD
from sat.sim.memory import MemoryTiming


class LoadTiming:
    """Exact timing of a `sat.rtl.load.LoadEngine` on a memory, instruction by instruction.

    Parameters
    ----------
    config : SatConfig
    memory : MemoryTiming

    Attributes
    ----------
    idle : int
        First cycle in which ``busy`` is low after everything accepted so far.
    beats : int
        Beats read so far.
    """

    def __init__(self, config: SatConfig, memory: MemoryTiming):
        self.config, self.memory = config, memory
        self.idle = 0
        self.beats = 0
        self._next_accept = 0
        self._address = -1  # cycle of the last address on the bus
        self._last_beats: deque[int] = deque([-2] * config.axi.outstanding)  # per burst
        self._free = 0  # first cycle in which memory may offer the next beat
        self._finished: deque[int] = deque([-1] * COMMANDS_AHEAD)

    def run(self, instruction: isa.Instruction, earliest: int) -> Times:
        """Return when a LOAD offered from cycle ``earliest`` on is accepted and done."""
        accept = max(earliest, self._next_accept, self._finished.popleft() + 1)
        i = instruction
        self._address = max(self._address, accept + 1)
        if i.destination == isa.Buffer.START.value:
            finish = self._start(i)
        else:
            finish = self._operand(i)
        self._next_accept = self._address
        self._finished.append(finish)
        self.idle = finish + 2
        return Times(accept, finish + 1, finish + 1)

    def _send(self) -> int:
        """Return the cycle in which the next burst's address is on the bus."""
        # An address follows the last one, and the end of the burst `outstanding` before it.
        self._address = max(self._address + 1, self._last_beats.popleft() + 2)
        return self._address

    def _operand(self, i: isa.Instruction) -> int:
        latency, step = self.memory.read_latency, self.memory.cycles_per_beat
        free = self._free
        last = 0
        for burst in bursts(i.address, i.pitch, i.rows, i.row_bytes, self.config.axi):
            first = max(self._send() + latency, free)
            last = first + (burst.beats - 1) * step
            free = last + step
            self._last_beats.append(last)
            self.beats += burst.beats
        self._free = free
        return last

    def _start(self, i: isa.Instruction) -> int:
        """Follow the beats one by one: the repacking may hold them up."""
        latency, step = self.memory.read_latency, self.memory.cycles_per_beat
        cols, per_beat = self.config.cols, self.config.axi.beat_bytes // 4
        ready = 0  # first cycle in which a beat may be taken
        finish = 0
        for row in range(i.rows):
            address = i.address + row * i.pitch
            offset = address // 4 % per_beat
            left = i.row_bytes // 4
            count, at = 0, ready  # sums held after the beat taken in cycle `at`
            for burst in bursts(address, 0, 1, i.row_bytes, self.config.axi):
                due = self._send() + latency
                for _ in range(burst.beats):
                    taken = max(due, self._free, ready)
                    count -= cols * min(taken - at, count // cols)
                    brought = min(per_beat - offset, left)
                    offset, left = 0, left - brought
                    count, at = count + brought, taken
                    ready = taken + max(1, count // cols)
                    self._free = taken + step
                self._last_beats.append(at)
                self.beats += burst.beats
            finish = at + -(-count // cols)
            ready = finish + 1
        # The next instruction's first beat waits until the last word has left.
        self._free = max(self._free, finish + 1)
        return finish
