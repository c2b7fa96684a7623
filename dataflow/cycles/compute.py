"""When the compute engine does what: the Python side of `sat.rtl.compute`'s schedule."""

from __future__ import annotations

from collections import deque

from sat.dataflow.cycles.timing import Times
from sat.rtl import isa
from sat.rtl.compute import PREPARE_CYCLES, TILES_IN_FLIGHT, feed_delay
from sat.rtl.config import SatConfig


class ComputeTiming:
    """Exact timing of a `sat.rtl.compute.ComputeEngine`, instruction by instruction.

    Parameters
    ----------
    config : SatConfig

    Attributes
    ----------
    idle : int
        First cycle in which ``busy`` is low after everything accepted so far.
    busy_cycles : int
        Cycles in which operands entered the array.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        self.feed = feed_delay(config)
        self.chain = config.rows * config.interleave
        self.lead = config.interleave * (config.rows - 1) - (self.feed - 3)
        self.idle = 0
        self.busy_cycles = 0
        self._issued = -1  # cycle of the last issue
        self._end = -self.chain  # its `e` (OS), or the earliest next issue (WS)
        self._long = False
        self._kind: tuple[bool, int] | None = None
        self._signals: deque[int] = deque(maxlen=TILES_IN_FLIGHT)

    def run(self, instruction: isa.Instruction, earliest: int) -> Times:
        """Return when a MULTIPLY offered from cycle ``earliest`` on is accepted and done."""
        config, chain, feed = self.config, self.chain, self.feed
        tile = instruction
        s = config.interleave
        ws = tile.dataflow == isa.Dataflow.WS.value
        start = isa.Start(tile.start)
        length = s * ((tile.words - 1) * tile.values + tile.last)
        skew = config.rows * (s * tile.values + 1)
        long = length >= chain

        accept = max(earliest, self._issued + 1)
        issue = max(accept + PREPARE_CYCLES, self._end)
        if len(self._signals) == TILES_IN_FLIGHT:
            issue = max(issue, self._signals[0] + 1)
        kind = (ws, tile.values if ws else 0)
        if self._signals and kind != self._kind:
            issue = max(issue, self._signals[-1] + 1)
        if not ws:
            issue = max(issue, self._end + chain - length)
            if start in (isa.Start.START, isa.Start.OUTPUT):
                at_once = issue == self._end and self._long and long
                if not at_once:
                    issue = max(issue, self._end + chain)
            if start is isa.Start.KEEP:
                issue += -(issue - self._issued) % s

        if ws:
            operands = issue + 1 + tile.values
            first_sum = operands + feed - 1 + skew
            release = issue + length + skew + feed + config.cols
            signal = first_sum + length + config.cols - 1
            self._end = issue + max(length, skew + 3)
        else:
            operands = issue + 1 + max(0, self.lead)
            first_sum = operands + feed + config.rows + s - 1 + length
            release = issue + max(length, chain) + abs(self.lead) + max(config.rows, config.cols)
            signal = first_sum + chain + config.cols - 1
            self._end = issue + length
        self._issued, self._long, self._kind = issue, long, kind
        self._signals.append(signal)
        self.idle = signal + 1
        self.busy_cycles += length
        return Times(accept, release, signal)
