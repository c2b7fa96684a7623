"""A board's memory in block RAM, behind the device's AXI ports and the link."""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In

from sat.fpga.link.protocol import MemoryKind
from sat.fpga.link.server import WordBusSignature
from sat.fpga.ports import DevicePorts
from sat.rtl.axi import Axi4ReadSignature, Axi4Signature
from sat.rtl.config import AxiConfig, is_power_of_two
from sat.sim.memory import MemoryTiming

BLOCK_RAM_TIMING = MemoryTiming(read_latency=5, write_latency=2, cycles_per_beat=1)
"""How a `BlockMemory` answers the device: what the cycle model predicts with."""

READ_CYCLES = 3
"""From an address to its word: block RAM lies all over the FPGA, so a register stands on either
side of it."""

_AHEAD = 8
"""Words read ahead of the bus, so that one that was held up is followed by the next at once."""


def later(m: Module, value: Any, cycles: int, name: str) -> Any:
    """Return a signal as it was some cycles ago."""
    for number in range(cycles):
        stage = Signal.like(value, name=f"{name}_{number}")
        m.d.sync += stage.eq(value)
        value = stage
    return value


class BlockMemory(wiring.Component):
    """Memory that the device reads and writes at full rate, and the link in what cycles are left.

    Instructions and data are read through a port each, as the cycle model has it, so an FPGA keeps
    two copies. The link never holds the device up: programs take the cycles that they take alone.

    Parameters
    ----------
    axi : AxiConfig
    size : int
        Bytes, from address 0; a power of two, at least 4096.

    Members
    -------
    imem : ``In(Axi4ReadSignature)``
    dmem : ``In(Axi4Signature)``
    bus : ``In(WordBusSignature(32))``
        The link's; addresses inside the memory.
    """

    kind = MemoryKind.BLOCK_RAM

    def __init__(self, axi: AxiConfig, size: int) -> None:
        if not is_power_of_two(size) or not 4096 <= size <= 1 << axi.address_bits:
            raise ValueError(
                f"size={size}: must be a power of two from 4096 to the address space, "
                f"{1 << axi.address_bits}"
            )
        self.axi, self.size = axi, size
        super().__init__(
            {
                "imem": In(Axi4ReadSignature(axi)),
                "dmem": In(Axi4Signature(axi)),
                "bus": In(WordBusSignature(32)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi, beat = self.axi, self.axi.beat_bytes
        words, shift = self.size // beat, (beat - 1).bit_length()
        m.submodules.ram = ram = memory.Memory(shape=axi.data_bits, depth=words, init=[])
        write = ram.write_port(granularity=8)
        m.submodules.ports = ports = DevicePorts(axi, self.size, _AHEAD)
        wiring.connect(m, wiring.flipped(self.imem), ports.imem)
        wiring.connect(m, wiring.flipped(self.dmem), ports.dmem)
        first, second = ram.read_port(), ram.read_port()
        wanted = Signal.like(second.addr)
        m.d.sync += [first.addr.eq(ports.instructions.request.payload), second.addr.eq(wanted)]
        for reader, words_read in ((ports.instructions, first), (ports.loads, second)):
            m.d.comb += [
                reader.request.ready.eq(1),
                reader.replied.eq(later(m, reader.request.valid, READ_CYCLES, "asked")),
                reader.reply.eq(later(m, words_read.data, 1, "read")),
            ]
        # The link's words: the device goes first. What is written waits a cycle, as the address
        # of what is read does.
        bus, lane = self.bus, self.bus.address[2:shift] if shift > 2 else Const(0, 0)
        loads, stores = ports.loads, ports.stores
        place = (bus.address >> shift)[: len(second.addr)]
        asked, under_way = Signal(), Signal(READ_CYCLES)
        m.d.sync += under_way.eq(Cat(asked, under_way[:-1]))
        loading, stored = loads.request.valid, stores.request.valid
        m.d.comb += [
            asked.eq(bus.request & ~bus.write & ~bus.register & ~loading & (under_way == 0)),
            wanted.eq(Mux(loading, loads.request.payload, place)),
            bus.read_data.eq(loads.reply.word_select(lane, 32)),
        ]
        store = data.StructLayout({"word": range(words), "data": axi.data_bits, "lanes": beat})
        now = Signal(store)
        then = later(m, now, 1, "store")
        written = bus.request & bus.write & ~bus.register & ~stored
        m.d.comb += [
            write.addr.eq(then.word),
            write.data.eq(then.data),
            write.en.eq(then.lanes),
            stores.request.ready.eq(1),
            bus.done.eq(under_way[-1] | written),
        ]
        with m.If(stored):
            m.d.comb += [
                now.word.eq(stores.request.p.address),
                now.data.eq(stores.request.p.data),
                now.lanes.eq(stores.request.p.lanes),
            ]
        with m.Else():
            m.d.comb += [
                now.word.eq(place),
                now.data.eq(bus.data.replicate(beat // 4)),
                now.lanes.eq(Mux(written, C(0b1111, beat) << (lane << 2), 0)),
            ]
        # For proofs: when the device reads, when it stores, and the link's read under way.
        self.state = loading, stored, under_way
        return m
