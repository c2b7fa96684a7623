"""Timing of the memory behind the AXI ports: one definition for simulator and cycle model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """How long memory takes, in cycles of the device clock.

    Each of the two ports (instructions, data) behaves so, on its own:

    * an address (AR, AW) is taken in any cycle;
    * the first beat of a read is offered ``read_latency`` cycles after the cycle that took its
      address, or later when earlier beats are still due: beats come in order of address, each
      at least ``cycles_per_beat`` after the previous one was taken;
    * a write beat is taken in any cycle after the one that took its address, beats at least
      ``cycles_per_beat`` apart;
    * the response of a write is offered ``write_latency`` cycles after its last beat was taken,
      one response a cycle, in order.
    """

    read_latency: int = 20
    write_latency: int = 8
    cycles_per_beat: int = 1

    def __post_init__(self) -> None:
        for name in ("read_latency", "write_latency", "cycles_per_beat"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= 4096:
                raise ValueError(f"{name}={value!r}: must be an integer from 1 to 4096 cycles")
