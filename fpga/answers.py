"""How soon boards' memories answer, by what they are: those whose times are not exact."""

from __future__ import annotations

from dataclasses import dataclass

from sat.fpga.link.protocol import MemoryKind
from sat.fpga.sdram.memory import WIRES, least_timing, likely_timing
from sat.rtl.config import AxiConfig
from sat.sim.memory import MEMORIES, MemoryTiming

_SOONEST = MemoryTiming(read_latency=1, write_latency=1, cycles_per_beat=1)


@dataclass(frozen=True)
class AnswerTimes:
    """What is known of a memory whose answers depend on rows, refreshes and who else asks.

    Parameters
    ----------
    least : MemoryTiming
        No answer is sooner.
    likely : MemoryTiming
        What answers are like: for the choice of mappings.
    wires : int or None
        Bits that pass the memory's wires in a cycle of the device, at most; None if that is not
        known, as where memory has a clock of its own.
    """

    least: MemoryTiming
    likely: MemoryTiming
    wires: int | None = None

    @classmethod
    def of(cls, kind: MemoryKind, axi: AxiConfig) -> AnswerTimes | None:
        """Return the times of a kind of memory behind such a port; None if they are exact."""
        if kind in WIRES:
            wires = WIRES[kind]
            return cls(least_timing(axi, wires), likely_timing(axi, wires), wires)
        if kind is MemoryKind.DDR4:
            return cls(_SOONEST, MEMORIES["ddr4"].timing)
        return None
