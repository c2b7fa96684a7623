"""The device's AXI ports as a board's memory serves them: bursts, taken apart into words."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.axi import (
    ID_BITS,
    Axi4ReadSignature,
    Axi4Signature,
    Axi4WriteSignature,
    Response,
)
from sat.rtl.config import AxiConfig
from sat.rtl.streams import Queue


class ReadSide(wiring.Component):
    """The read channels of an AXI4 port, as words that are asked for and come in order.

    A word that comes c cycles after it was taken is a beat after c + 2, counted from its address.

    Parameters
    ----------
    axi : AxiConfig
    address_bits : int
        Of a word's number; what lies beyond is answered with an error.
    ahead : int
        Words read ahead of the bus, so that one that was held up is followed by the next at once.

    Members
    -------
    port : ``In(Axi4ReadSignature)``
    request : ``Out(stream.Signature)``
        The word's number.
    replied, reply : ``In``
        The words, in order.
    """

    def __init__(self, axi: AxiConfig, address_bits: int, ahead: int) -> None:
        self.axi, self.address_bits, self.ahead = axi, address_bits, ahead
        super().__init__(
            {
                "port": In(Axi4ReadSignature(axi)),
                "request": Out(stream.Signature(address_bits)),
                "replied": In(1),
                "reply": In(axi.data_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        port, axi = self.port, self.axi
        shift = (axi.beat_bytes - 1).bit_length()
        burst = data.StructLayout(
            {"id": ID_BITS, "word": axi.address_bits, "outside": 1, "last": 8}
        )
        about = data.StructLayout({"id": ID_BITS, "resp": Response, "last": 1})
        m.submodules.bursts = bursts = Queue(burst, axi.outstanding)
        m.submodules.asked = asked = Queue(about, self.ahead)
        m.submodules.words = words = Queue(axi.data_bits, self.ahead)
        number, last = Signal(8), Signal()
        taken = self.request.valid & self.request.ready
        m.d.comb += [
            port.arready.eq(bursts.i.ready),
            bursts.i.valid.eq(port.arvalid),
            bursts.i.p.id.eq(port.arid),
            bursts.i.p.word.eq(port.araddr >> shift),
            bursts.i.p.outside.eq(_outside(port.araddr >> shift, self.address_bits)),
            bursts.i.p.last.eq(port.arlen),
            last.eq(number == bursts.o.p.last),
            # Who asks has a place for what comes.
            self.request.valid.eq(bursts.o.valid & asked.i.ready),
            self.request.payload.eq(bursts.o.p.word + number),
            bursts.o.ready.eq(taken & last),
            asked.i.valid.eq(taken),
            asked.i.p.id.eq(bursts.o.p.id),
            asked.i.p.resp.eq(Mux(bursts.o.p.outside, Response.DECERR, Response.OKAY)),
            asked.i.p.last.eq(last),
            words.i.valid.eq(self.replied),
            words.i.payload.eq(self.reply),
            port.rvalid.eq(words.o.valid),
            port.rid.eq(asked.o.p.id),
            port.rresp.eq(asked.o.p.resp),
            port.rlast.eq(asked.o.p.last),
            port.rdata.eq(words.o.payload),
            words.o.ready.eq(port.rready),
            asked.o.ready.eq(port.rready & words.o.valid),
        ]
        with m.If(taken):
            m.d.sync += number.eq(Mux(last, 0, number + 1))
        # For proofs: bursts, words that were asked for, and those of them that have come.
        self.state = bursts.level, asked.level, words.level
        return m


class WriteSide(wiring.Component):
    """The write channels of an AXI4 port, as words that are to be written.

    Beats are taken once their burst's address was. A burst is answered when its last word was
    taken: whatever is asked for later sees it; two cycles after its last beat, at the soonest.

    Parameters
    ----------
    axi : AxiConfig
    address_bits : int
        Of a word's number; what lies beyond is not written, and answered with an error.

    Members
    -------
    port : ``In(Axi4WriteSignature)``
    request : ``Out(stream.Signature)``
        The word's number, what it is to be, and which of its bytes.
    """

    def __init__(self, axi: AxiConfig, address_bits: int) -> None:
        self.axi, self.address_bits = axi, address_bits
        self.word = data.StructLayout(
            {"address": address_bits, "data": axi.data_bits, "lanes": axi.beat_bytes}
        )
        super().__init__(
            {"port": In(Axi4WriteSignature(axi)), "request": Out(stream.Signature(self.word))}
        )

    def elaborate(self, platform):
        m = Module()
        port, axi = self.port, self.axi
        shift = (axi.beat_bytes - 1).bit_length()
        burst = data.StructLayout({"id": ID_BITS, "word": axi.address_bits, "outside": 1})
        beat = data.StructLayout({"data": axi.data_bits, "lanes": axi.beat_bytes, "last": 1})
        answer = data.StructLayout({"id": ID_BITS, "resp": Response})
        m.submodules.bursts = bursts = Queue(burst, axi.outstanding)
        m.submodules.beats = beats = Queue(beat, 4)
        m.submodules.answers = answers = Queue(answer, axi.outstanding)
        number, outside = Signal(8), bursts.o.p.outside
        there = bursts.o.valid & beats.o.valid & answers.i.ready
        taken = Signal()
        # Bursts whose last beat has not come; those in the queue have one that was not written.
        coming = Signal(range(axi.outstanding + 1))
        opened, ended = port.awvalid & port.awready, port.wvalid & port.wready & port.wlast
        next_coming = coming + opened - ended
        put = port.wvalid & port.wready
        m.d.sync += [
            coming.eq(next_coming),
            # A register, for much of the device waits for it.
            port.wready.eq((next_coming != 0) & (beats.level + put < beats.depth)),
        ]
        m.d.comb += [
            port.awready.eq(bursts.i.ready),
            bursts.i.valid.eq(port.awvalid),
            bursts.i.p.id.eq(port.awid),
            bursts.i.p.word.eq(port.awaddr >> shift),
            bursts.i.p.outside.eq(_outside(port.awaddr >> shift, self.address_bits)),
            beats.i.valid.eq(put),
            beats.i.p.data.eq(port.wdata),
            beats.i.p.lanes.eq(port.wstrb),
            beats.i.p.last.eq(port.wlast),
            self.request.valid.eq(there & ~outside),
            self.request.p.address.eq(bursts.o.p.word + number),
            self.request.p.data.eq(beats.o.p.data),
            self.request.p.lanes.eq(beats.o.p.lanes),
            taken.eq(there & (outside | self.request.ready)),
            beats.o.ready.eq(taken),
            bursts.o.ready.eq(taken & beats.o.p.last),
            answers.i.valid.eq(taken & beats.o.p.last),
            answers.i.p.id.eq(bursts.o.p.id),
            answers.i.p.resp.eq(Mux(outside, Response.DECERR, Response.OKAY)),
            port.bvalid.eq(answers.o.valid),
            port.bid.eq(answers.o.p.id),
            port.bresp.eq(answers.o.p.resp),
            answers.o.ready.eq(port.bready),
        ]
        with m.If(taken):
            m.d.sync += number.eq(Mux(beats.o.p.last, 0, number + 1))
        # For proofs: bursts, those of them whose last beat has not come, beats, and answers.
        self.state = bursts.level, coming, beats, answers.level
        return m


class DevicePorts(wiring.Component):
    """The ports of a device for instructions and data, as words to read and to write.

    Parameters
    ----------
    axi : AxiConfig
    size : int
        Bytes of the memory, from address 0; a power of two.
    ahead : int
        As for `ReadSide`.

    Members
    -------
    imem : ``In(Axi4ReadSignature)``
    dmem : ``In(Axi4Signature)``

    Attributes
    ----------
    instructions, loads : ReadSide
    stores : WriteSide
        For whoever serves them; submodules of this.
    """

    def __init__(self, axi: AxiConfig, size: int, ahead: int) -> None:
        bits = (size // axi.beat_bytes - 1).bit_length()
        self.instructions = ReadSide(axi, bits, ahead)
        self.loads = ReadSide(axi, bits, ahead)
        self.stores = WriteSide(axi, bits)
        super().__init__({"imem": In(Axi4ReadSignature(axi)), "dmem": In(Axi4Signature(axi))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.instructions = self.instructions
        m.submodules.loads = self.loads
        m.submodules.stores = self.stores
        wiring.connect(m, wiring.flipped(self.imem), self.instructions.port)
        reads = set(self.loads.port.signature.members)
        for name, member in self.dmem.signature.members.items():
            ours = getattr(self.dmem, name)
            its = getattr(self.loads.port if name in reads else self.stores.port, name)
            # Members of the port as we see it: what the device gives is an input.
            m.d.comb += its.eq(ours) if member.flow == In else ours.eq(its)
        return m


def _outside(word: Value, address_bits: int) -> Value:
    """Return whether a burst lies outside the memory, by its first word.

    A memory is a multiple of 4 KiB, which no burst crosses.
    """
    return word[address_bits:].any()
