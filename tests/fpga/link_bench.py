"""The link's gateware with a memory behind it, and noise on its wires."""

from __future__ import annotations

import random

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.server import LinkServer

CLOCK, BAUD = 4.0, 1.0
MEMORY_BYTES = 8192
REGISTERS = 16
"""Bytes of registers; what lies above is refused."""


class LinkBench(wiring.Component):
    """`LinkServer`, a memory that takes a word in two cycles, and registers that count writes."""

    def __init__(self) -> None:
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.link = link = LinkServer(CLOCK, BAUD, MEMORY_BYTES)
        m.submodules.ram = ram = memory.Memory(shape=32, depth=MEMORY_BYTES // 4, init=[])
        write, read = ram.write_port(), ram.read_port()
        bus, waited, writes = link.bus, Signal(), Signal(32)
        m.d.sync += waited.eq(bus.request & ~waited)
        m.d.comb += [
            link.rx.eq(self.rx),
            self.tx.eq(link.tx),
            read.addr.eq(bus.address >> 2),
            write.addr.eq(bus.address >> 2),
            write.data.eq(bus.data),
            write.en.eq(bus.done & bus.write & ~bus.register),
            bus.done.eq(waited),
            bus.refused.eq(bus.register & (bus.address >= REGISTERS)),
            # A register reads as the number of writes to any.
            bus.read_data.eq(Mux(bus.register, writes, read.data)),
        ]
        with m.If(bus.done & bus.write & bus.register & ~bus.refused):
            m.d.sync += writes.eq(writes + 1)
        return m


class Noise:
    """A port whose bytes are turned, lost or doubled, both ways, each at a rate of its own."""

    def __init__(self, port, rate: float, seed: int) -> None:
        self.port, self.rate = port, rate
        self.random = random.Random(seed)
        self.hits = 0

    def _through(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            lot = self.random.random()
            if lot >= 3 * self.rate:
                out.append(byte)
                continue
            self.hits += 1
            if lot < self.rate:
                out.append(byte ^ 1 << self.random.randrange(8))
            elif lot < 2 * self.rate:
                out += bytes([byte, byte])
        return bytes(out)

    def write(self, data: bytes) -> int:
        self.port.write(self._through(data))
        return len(data)

    def read(self, size: int) -> bytes:
        return self._through(self.port.read(size))
