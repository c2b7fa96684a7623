"""Timing of the memory behind the AXI ports: one definition for simulator and cycle model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sat.rtl.config import SatConfig


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """How long memory takes, in cycles of the device clock.

    Each port (instructions, data) behaves so, on its own; several data ports are moved together
    (`sat.rtl.stripes`), so all that is said of the one holds for them:

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
            if type(value) is not int or not 1 <= value <= 4096:
                raise ValueError(f"{name}={value!r}: must be an integer from 1 to 4096 cycles")


@dataclass(frozen=True, kw_only=True)
class ReferenceMemory:
    """A memory that figures are given for: the ports that it needs, and how long it takes.

    Parameters
    ----------
    title : str
    ports, port_bits : int
        Data ports, and the width of each: with ``timing`` of a beat a cycle, what it brings.
    timing : MemoryTiming
    outstanding : int
        Bursts under way that its latency asks for, where a beat may be a burst.
    """

    title: str
    ports: int
    port_bits: int
    timing: MemoryTiming
    outstanding: int = 16

    @property
    def bytes_per_cycle(self) -> float:
        """Bytes that all ports bring in a cycle."""
        return self.ports * self.port_bits / 8 / self.timing.cycles_per_beat

    def device(self, config: SatConfig) -> SatConfig:
        """Return ``config`` with the ports that this memory needs.

        Raises
        ------
        ValueError
            No device has such ports, or not with this array; the message says which rule forbids.
        """
        try:
            axi = replace(
                config.axi,
                data_bits=self.port_bits,
                ports=self.ports,
                outstanding=max(config.axi.outstanding, self.outstanding),
            )
            return replace(config, axi=axi)
        except ValueError as error:
            raise ValueError(
                f"{self.title}, {self.bytes_per_cycle:g} bytes a cycle by {self.ports} x "
                f"{self.port_bits} bits: {error}; name a memory with a narrower port"
            ) from None


MEMORIES = {
    "narrow": ReferenceMemory(
        title="memory narrow",
        ports=1,
        port_bits=128,
        timing=MemoryTiming(read_latency=40, write_latency=40),
    ),
    "ddr4": ReferenceMemory(
        title="memory ddr4 (one DDR4-2400 channel at 200 MHz)",
        ports=1,
        port_bits=512,
        timing=MemoryTiming(read_latency=40, write_latency=40),
        outstanding=64,
    ),
    "ddr4x4": ReferenceMemory(
        title="memory ddr4x4 (four DDR4-2400 channels at 200 MHz)",
        ports=4,
        port_bits=512,
        timing=MemoryTiming(read_latency=40, write_latency=40),
        outstanding=64,
    ),
}
"""The memories that figures are given for, by name; latencies in cycles, of the order of DDR's."""
