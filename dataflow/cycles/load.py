"""When the load engine does what: the Python side of `sat.rtl.load`'s timing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sat.dataflow.cycles.timing import Times
from sat.rtl import isa
from sat.rtl.bursts import bursts
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Opcode
from sat.rtl.load import COMMANDS_AHEAD, SEGMENTS_AHEAD, transposed_parts
from sat.rtl.segments import SETUP_CYCLES, Segment, Walk
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
        self._walk = Walk()
        self._next_accept = 0
        self._taken = -1  # cycle in which the last segment went into the cutter
        self._sent = -1  # cycle in which the last burst left the cutter
        self._last_beats: deque[int] = deque([-2] * config.axi.outstanding)  # per burst
        self._popped: deque[int] = deque([-2] * SEGMENTS_AHEAD)  # per segment: its last step
        self._memory_free = 0  # first cycle in which memory may offer the next beat
        self._side_free = 0  # first cycle in which the data side may take the next
        self._finished: deque[int] = deque([-1] * COMMANDS_AHEAD)
        self._parts = {
            buffer.value: [
                at + count == config.axi.data_bits // 16
                for at, _, count in transposed_parts(banks, config.axi.data_bits // 16)
            ]
            for buffer, banks in ((Buffer.A, config.rows), (Buffer.B, config.cols))
        }

    def run(self, instruction: isa.Instruction, earliest: int) -> Times:
        """Return when an instruction offered from cycle ``earliest`` on is accepted and done."""
        accept = max(earliest, self._next_accept, self._finished.popleft() + 1)
        i = instruction
        if i.opcode in (Opcode.TENSOR, Opcode.WINDOW):
            self._walk.set(i)
            self._next_accept = accept + 1
            finish = max(accept + 1, self._side_free)
        else:
            setup = SETUP_CYCLES if i.opcode is Opcode.GATHER else 0
            # The walker offers a segment a cycle from here on.
            self._taken = max(self._taken, accept + setup)
            if i.opcode is Opcode.LOAD and i.destination == Buffer.START.value:
                finish = self._start(i)
            elif i.opcode is Opcode.LOAD and i.destination == Buffer.MASK.value:
                finish = self._mask(i)
            elif i.opcode is Opcode.GATHER and i.transpose:
                finish = self._transposed(i)
            else:
                finish = self._operand(i)
            self._next_accept = self._taken + 1
        self._side_free = finish + 1
        self._finished.append(finish)
        self.idle = finish + 2
        return Times(accept, finish + 1, finish + 1)

    def _segments(self, i: isa.Instruction) -> Iterator[Segment]:
        """Yield the segments; `_taken` is then the cycle in which the cutter takes each."""
        for segment in self._walk.segments(i):
            self._taken = max(self._taken + 1, self._sent, self._popped.popleft() + 1)
            yield segment

    def _bursts(self, segment: Segment) -> Iterator[tuple[int, int]]:
        """Yield the beats of each burst and the cycle in which memory offers the first."""
        earliest = self._taken + 1
        latency = 1 + self.memory.read_latency
        for burst in bursts(segment.address, 0, 1, segment.size, self.config.axi):
            # A burst follows the last one, and the end of the burst `outstanding` before it.
            self._sent = max(self._sent + 1, earliest, self._last_beats.popleft() + 1)
            self.beats += burst.beats
            yield burst.beats, max(self._sent + latency, self._memory_free)

    def _zero_beats(self, segment: Segment) -> int:
        return -(-segment.size // self.config.axi.beat_bytes)

    def _operand(self, i: isa.Instruction) -> int:
        step = self.memory.cycles_per_beat
        free = self._side_free
        for segment in self._segments(i):
            if segment.zero:
                free = max(free, self._taken + 1) + self._zero_beats(segment)
            else:
                for beats, offered in self._bursts(segment):
                    last = max(offered, free) + (beats - 1) * step
                    free, self._memory_free = last + 1, last + step
                    self._last_beats.append(last)
            self._popped.append(free - 1)
        return free - 1

    def _transposed(self, i: isa.Instruction) -> int:
        step = self.memory.cycles_per_beat
        ends = self._parts[i.destination]
        free = self._side_free
        for segment in self._segments(i):
            part = 0

            def parts(part: int) -> int:
                """Return how many writes the beat takes that begins with this one."""
                count = 1
                while not ends[(part + count - 1) % len(ends)]:
                    count += 1
                return count

            if segment.zero:
                free = max(free, self._taken + 1)
                for _ in range(self._zero_beats(segment)):
                    count = parts(part)
                    part, free = part + count, free + count
            else:
                for beats, offered in self._bursts(segment):
                    for _ in range(beats):
                        count = parts(part)
                        part += count
                        taken = max(offered, free, self._memory_free) + count - 1
                        free, self._memory_free = taken + 1, taken + step
                    self._last_beats.append(free - 1)
            self._popped.append(free - 1)
        return free - 1

    def _mask(self, i: isa.Instruction) -> int:
        """Follow the beats one by one: each takes a cycle for each of its words."""
        step, size = self.memory.cycles_per_beat, self.config.mask_bytes
        beat_bytes = self.config.axi.beat_bytes
        free = self._side_free
        for segment in self._segments(i):
            at, end = segment.address % beat_bytes, segment.address % beat_bytes + segment.size
            for beats, offered in self._bursts(segment):
                for _ in range(beats):
                    upto = min(end, at // beat_bytes * beat_bytes + beat_bytes)
                    words = -(-(upto - at) // size)
                    taken = max(offered, free, self._memory_free) + words - 1
                    free, self._memory_free = taken + 1, taken + step
                    at = upto
                self._last_beats.append(free - 1)
            self._popped.append(free - 1)
        return free - 1

    def _start(self, i: isa.Instruction) -> int:
        """Follow the beats one by one: the repacking may hold them up."""
        step = self.memory.cycles_per_beat
        cols, per_beat = self.config.cols, self.config.axi.beat_bytes // 4
        ready = self._side_free  # first cycle in which a beat may be taken
        finish = 0
        for segment in self._segments(i):
            offset = segment.address // 4 % per_beat
            left = segment.size // 4
            count, at = 0, ready  # sums held after the beat taken in cycle `at`
            for beats, offered in self._bursts(segment):
                for _ in range(beats):
                    taken = max(offered, self._memory_free, ready)
                    count -= cols * min(taken - at, count // cols)
                    brought = min(per_beat - offset, left)
                    offset, left = 0, left - brought
                    count, at = count + brought, taken
                    ready = taken + max(1, count // cols)
                    self._memory_free = taken + step
                self._last_beats.append(at)
            self._popped.append(at)
            finish = at + -(-count // cols)
            ready = finish + 1
        return finish
