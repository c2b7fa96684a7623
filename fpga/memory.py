"""A board's memory in block RAM, behind the device's AXI ports and the link."""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.server import WordBusSignature
from sat.rtl.axi import ID_BITS, Axi4ReadSignature, Axi4Signature, Response
from sat.rtl.config import AxiConfig, is_power_of_two
from sat.rtl.streams import Queue
from sat.sim.memory import MemoryTiming

BLOCK_RAM_TIMING = MemoryTiming(read_latency=5, write_latency=1, cycles_per_beat=1)
"""How a `BlockMemory` answers the device: what the cycle model predicts with."""

READ_CYCLES = 3
"""From an address to its word: block RAM lies all over the FPGA, so a register stands on either
side of it."""

_AHEAD = 8
"""Beats read ahead of the bus, so that one that was held up is followed by the next at once."""


def later(m: Module, value: Any, cycles: int, name: str) -> Any:
    """Return a signal as it was some cycles ago."""
    for number in range(cycles):
        stage = Signal.like(value, name=f"{name}_{number}")
        m.d.sync += stage.eq(value)
        value = stage
    return value


class ReadPort(wiring.Component):
    """Serve the read channels of an AXI4 port from a memory's read port.

    Beats come as `BLOCK_RAM_TIMING` has it.

    Members
    -------
    port : ``In(Axi4ReadSignature)``
    issue : ``Out(1)``
        The memory is asked in this cycle.
    address : ``Out``
        Its word.
    data : ``In``
        Its word, `READ_CYCLES` later.
    """

    def __init__(self, axi: AxiConfig, words: int) -> None:
        self.axi, self.words = axi, words
        super().__init__(
            {
                "port": In(Axi4ReadSignature(axi)),
                "issue": Out(1),
                "address": Out(range(words)),
                "data": In(axi.data_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        port, axi = self.port, self.axi
        shift = (axi.beat_bytes - 1).bit_length()
        burst = data.StructLayout({"id": ID_BITS, "word": axi.address_bits, "last": 8})
        beat = data.StructLayout(
            {"id": ID_BITS, "data": axi.data_bits, "resp": Response, "last": 1}
        )
        m.submodules.bursts = bursts = Queue(burst, axi.outstanding)
        m.submodules.beats = beats = Queue(beat, _AHEAD)
        m.d.comb += [
            port.arready.eq(bursts.i.ready),
            bursts.i.valid.eq(port.arvalid),
            bursts.i.p.id.eq(port.arid),
            bursts.i.p.word.eq(port.araddr >> shift),
            bursts.i.p.last.eq(port.arlen),
        ]
        number, word = Signal(8), Signal(axi.address_bits)
        last = Signal()
        room = Signal(range(_AHEAD + 1), init=_AHEAD)  # for beats that are not asked for yet
        m.d.comb += [
            word.eq(bursts.o.p.word + number),
            last.eq(number == bursts.o.p.last),
            self.issue.eq(bursts.o.valid & (room != 0)),
            self.address.eq(word),
            bursts.o.ready.eq(self.issue & last),
        ]
        m.d.sync += room.eq(room - self.issue + (port.rvalid & port.rready))
        with m.If(self.issue):
            m.d.sync += number.eq(Mux(last, 0, number + 1))
        about = data.StructLayout({"valid": 1, "id": ID_BITS, "resp": Response, "last": 1})
        asked = Signal(about)
        m.d.comb += [
            asked.valid.eq(self.issue),
            asked.id.eq(bursts.o.p.id),
            asked.resp.eq(Mux(word < self.words, Response.OKAY, Response.DECERR)),
            asked.last.eq(last),
        ]
        read = later(m, asked, READ_CYCLES, "asked")
        m.d.comb += [
            beats.i.valid.eq(read.valid),
            beats.i.p.id.eq(read.id),
            beats.i.p.data.eq(self.data),
            beats.i.p.resp.eq(read.resp),
            beats.i.p.last.eq(read.last),
            port.rvalid.eq(beats.o.valid),
            port.rid.eq(beats.o.p.id),
            port.rdata.eq(beats.o.p.data),
            port.rresp.eq(beats.o.p.resp),
            port.rlast.eq(beats.o.p.last),
            beats.o.ready.eq(port.rready),
        ]
        return m


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
        m.submodules.instructions = instructions = ReadPort(axi, words)
        m.submodules.loads = loads = ReadPort(axi, words)
        wiring.connect(m, wiring.flipped(self.imem), instructions.port)
        for name in loads.port.signature.members:
            ours, its = getattr(self.dmem, name), getattr(loads.port, name)
            outward = loads.port.signature.members[name].flow == Out
            m.d.comb += its.eq(ours) if not outward else ours.eq(its)
        first, second = ram.read_port(), ram.read_port()
        wanted = Signal.like(second.addr)
        m.d.sync += [first.addr.eq(instructions.address), second.addr.eq(wanted)]
        m.d.comb += [
            instructions.data.eq(later(m, first.data, 1, "instruction")),
            loads.data.eq(later(m, second.data, 1, "loaded")),
        ]
        # The link's words: the device goes first. What is written waits a cycle, as the address
        # of what is read does.
        bus, lane = self.bus, self.bus.address[2:shift] if shift > 2 else Const(0, 0)
        place = (bus.address >> shift)[: len(second.addr)]
        asked, under_way = Signal(), Signal(READ_CYCLES)
        m.d.sync += under_way.eq(Cat(asked, under_way[:-1]))
        m.d.comb += [
            asked.eq(bus.request & ~bus.write & ~bus.register & ~loads.issue & (under_way == 0)),
            wanted.eq(Mux(loads.issue, loads.address, place)),
            bus.read_data.eq(loads.data.word_select(lane, 32)),
        ]
        store = data.StructLayout({"word": range(words), "data": axi.data_bits, "lanes": beat})
        now = Signal(store)
        then = later(m, now, 1, "store")
        m.d.comb += [
            write.addr.eq(then.word),
            write.data.eq(then.data),
            write.en.eq(then.lanes),
        ]
        stored = self._write(m, now)
        written = bus.request & bus.write & ~bus.register & ~stored
        with m.If(~stored):
            m.d.comb += [
                now.word.eq(place),
                now.data.eq(bus.data.replicate(beat // 4)),
                now.lanes.eq(Mux(written, C(0b1111, beat) << (lane << 2), 0)),
            ]
        m.d.comb += bus.done.eq(under_way[-1] | written)
        # For proofs: when the device reads, when it stores, and the link's read under way.
        self.state = loads.issue, stored, under_way
        return m

    def _write(self, m: Module, store: data.View) -> Value:
        """Serve the write channels; return whether a beat is stored in this cycle."""
        axi, port = self.axi, self.dmem
        words, shift = self.size // axi.beat_bytes, (axi.beat_bytes - 1).bit_length()
        burst = data.StructLayout({"id": ID_BITS, "word": axi.address_bits})
        answer = data.StructLayout({"id": ID_BITS, "resp": Response})
        m.submodules.stores = stores = Queue(burst, axi.outstanding)
        m.submodules.answers = answers = Queue(answer, axi.outstanding)
        opened, taken, ended = Signal(), Signal(), Signal()
        number, failed = Signal(8), Signal()
        word, outside = Signal(axi.address_bits), Signal()
        m.d.comb += [
            # A burst that is let in has a place for its answer: its beats wait for nothing.
            port.awready.eq(stores.level + answers.level < axi.outstanding),
            opened.eq(port.awvalid & port.awready),
            stores.i.valid.eq(opened),
            stores.i.p.id.eq(port.awid),
            stores.i.p.word.eq(port.awaddr >> shift),
            taken.eq(port.wvalid & port.wready),
            ended.eq(taken & port.wlast),
            word.eq(stores.o.p.word + number),
            outside.eq(word >= words),
            stores.o.ready.eq(ended),
            answers.i.valid.eq(ended),
            answers.i.p.id.eq(stores.o.p.id),
            answers.i.p.resp.eq(Mux(failed | outside, Response.DECERR, Response.OKAY)),
            port.bvalid.eq(answers.o.valid),
            port.bid.eq(answers.o.p.id),
            port.bresp.eq(answers.o.p.resp),
            answers.o.ready.eq(port.bready),
        ]
        # A register, for much of the device waits for it: some burst is open.
        m.d.sync += port.wready.eq(opened | (stores.level > 1) | ((stores.level == 1) & ~ended))
        with m.If(taken):
            m.d.comb += [
                store.word.eq(word),
                store.data.eq(port.wdata),
                store.lanes.eq(Mux(outside, 0, port.wstrb)),
            ]
            m.d.sync += [
                number.eq(Mux(port.wlast, 0, number + 1)),
                failed.eq(~port.wlast & (failed | outside)),
            ]
        return taken
