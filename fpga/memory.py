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

BLOCK_RAM_TIMING = MemoryTiming(read_latency=3, write_latency=1, cycles_per_beat=1)
"""How a `BlockMemory` answers the device: what the cycle model predicts with."""

_AHEAD = 4
"""Beats read ahead of the bus, so that one that was held up is followed by the next at once."""


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
        What it read the cycle before.
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
        last, under_way = Signal(), Signal()
        m.d.comb += [
            word.eq(bursts.o.p.word + number),
            last.eq(number == bursts.o.p.last),
            # One beat may be between memory and queue.
            self.issue.eq(bursts.o.valid & (beats.level + under_way < _AHEAD)),
            self.address.eq(word),
            bursts.o.ready.eq(self.issue & last),
        ]
        of, final, answer = Signal(ID_BITS), Signal(), Signal(Response)
        m.d.sync += under_way.eq(self.issue)
        with m.If(self.issue):
            m.d.sync += [
                number.eq(Mux(last, 0, number + 1)),
                of.eq(bursts.o.p.id),
                final.eq(last),
                answer.eq(Mux(word < self.words, Response.OKAY, Response.DECERR)),
            ]
        m.d.comb += [
            beats.i.valid.eq(under_way),
            beats.i.p.id.eq(of),
            beats.i.p.data.eq(self.data),
            beats.i.p.resp.eq(answer),
            beats.i.p.last.eq(final),
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
        m.d.comb += [
            first.addr.eq(instructions.address),
            instructions.data.eq(first.data),
            loads.data.eq(second.data),
        ]
        # The link's words: the device goes first.
        bus, lane = self.bus, self.bus.address[2:shift] if shift > 2 else Const(0, 0)
        place = (bus.address >> shift)[: len(second.addr)]
        reading, read_now = Signal(), Signal()
        m.d.comb += [
            read_now.eq(bus.request & ~bus.write & ~bus.register & ~loads.issue & ~reading),
            second.addr.eq(Mux(loads.issue, loads.address, place)),
            bus.read_data.eq(second.data.word_select(lane, 32)),
        ]
        m.d.sync += reading.eq(read_now)
        stored = self._write(m, write, words, shift)
        written = bus.request & bus.write & ~bus.register & ~stored
        with m.If(~stored):
            m.d.comb += [
                write.addr.eq(place),
                write.data.eq(bus.data.replicate(beat // 4)),
                write.en.eq(Mux(written, C(0b1111, beat) << (lane << 2), 0)),
            ]
        m.d.comb += bus.done.eq(reading | written)
        # For proofs: when the device reads, and when it stores.
        self.state = loads.issue, stored
        return m

    def _write(self, m: Module, write: Any, words: int, shift: int) -> Value:
        """Serve the write channels; return whether a beat is stored in this cycle."""
        axi, port = self.axi, self.dmem
        burst = data.StructLayout({"id": ID_BITS, "word": axi.address_bits})
        answer = data.StructLayout({"id": ID_BITS, "resp": Response})
        m.submodules.stores = stores = Queue(burst, axi.outstanding)
        m.submodules.answers = answers = Queue(answer, axi.outstanding)
        taken, number, failed = Signal(), Signal(8), Signal()
        word, outside = Signal(axi.address_bits), Signal()
        m.d.comb += [
            port.awready.eq(stores.i.ready),
            stores.i.valid.eq(port.awvalid),
            stores.i.p.id.eq(port.awid),
            stores.i.p.word.eq(port.awaddr >> shift),
            port.wready.eq(stores.o.valid & answers.i.ready),
            taken.eq(port.wvalid & port.wready),
            word.eq(stores.o.p.word + number),
            outside.eq(word >= words),
            stores.o.ready.eq(taken & port.wlast),
            answers.i.valid.eq(taken & port.wlast),
            answers.i.p.id.eq(stores.o.p.id),
            answers.i.p.resp.eq(Mux(failed | outside, Response.DECERR, Response.OKAY)),
            port.bvalid.eq(answers.o.valid),
            port.bid.eq(answers.o.p.id),
            port.bresp.eq(answers.o.p.resp),
            answers.o.ready.eq(port.bready),
        ]
        with m.If(taken):
            m.d.comb += [
                write.addr.eq(word),
                write.data.eq(port.wdata),
                write.en.eq(Mux(outside, 0, port.wstrb)),
            ]
            m.d.sync += [
                number.eq(Mux(port.wlast, 0, number + 1)),
                failed.eq(~port.wlast & (failed | outside)),
            ]
        return taken
