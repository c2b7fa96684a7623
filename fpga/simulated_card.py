"""A card in simulation: its gateware Verilated, behind what the driver's files do."""

from __future__ import annotations

import errno
import os

from sat.fpga.card import ADDRESS_BITS, Card, card_verilog
from sat.fpga.link.xdma import FROM_CARD, REGISTERS, TO_CARD
from sat.rtl.config import SatConfig
from sat.sim.device_rtl import DeviceRtl
from sat.sim.engines import Design
from sat.sim.memory import MEMORIES, MemoryTiming

_CYCLES = 1000
"""Cycles that pass while the host reads a register: PCIe takes microseconds."""
_NO_ANSWER = bytes([255] * 4)


class SimulatedCard:
    """A card, and the driver's three files of it (`sat.fpga.link.xdma.Files`).

    Calls do what the driver's do: a transfer that leaves the memory stops there and says how far
    it came, one that begins outside fails; a register's bus moves 32 bits at a time, and reads of
    what is not there are all ones.

    Parameters
    ----------
    config : SatConfig
    timing : MemoryTiming, optional
        Of the memory that is simulated.
    memory_bytes : int, optional
        Of the card: all that the device addresses, if not given.

    Attributes
    ----------
    card : Card
    rtl : DeviceRtl
    closed : bool
    """

    def __init__(
        self,
        config: SatConfig,
        timing: MemoryTiming = MEMORIES["ddr4"].timing,
        memory_bytes: int | None = None,
    ) -> None:
        self.card = Card(config, memory_bytes)
        self.rtl = DeviceRtl(
            config,
            timing,
            memory_bytes=self.card.greeting.memory_bytes,
            design=Design(card_verilog(self.card)),
        )
        self.closed = False

    def read(self, name: str, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes of a file from ``offset`` on."""
        self._require(name, FROM_CARD, REGISTERS)
        if name == FROM_CARD:
            return self.rtl.memory[self._inside(offset) :][:size].tobytes()
        _require_word(size, offset)
        self.rtl.advance(_CYCLES)
        try:
            return self.rtl.read_word(offset % (1 << ADDRESS_BITS)).to_bytes(4, "little")
        except OSError:
            return _NO_ANSWER

    def write(self, name: str, data: bytes | memoryview, offset: int) -> int:
        """Write to a file at ``offset``; return how many bytes went."""
        self._require(name, TO_CARD, REGISTERS)
        if name == TO_CARD:
            part = self.rtl.memory[self._inside(offset) :][: len(data)]
            part[:] = memoryview(data)[: len(part)]
            return len(part)
        _require_word(len(data), offset)
        try:
            value = int.from_bytes(data, "little")
            self.rtl.write_word(offset % (1 << ADDRESS_BITS), value)
        except OSError:
            pass  # posted: nobody hears of it
        return 4

    def close(self) -> None:
        """Close the files; the card stays, and what is in its memory."""
        self.closed = True

    def _require(self, name: str, *allowed: str) -> None:
        if self.closed or name not in allowed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _inside(self, offset: int) -> int:
        if not 0 <= offset < len(self.rtl.memory):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return offset


def _require_word(size: int, offset: int) -> None:
    if size != 4 or offset % 4:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
