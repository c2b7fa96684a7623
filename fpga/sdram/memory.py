"""A board's memory in SDRAM, behind the device's AXI ports and the link."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.server import WordBusSignature
from sat.fpga.sdram.chip import Geometry, PinSignature
from sat.fpga.sdram.controller import SETTLED_CYCLES, SdramController
from sat.rtl.axi import (
    ID_BITS,
    Axi4ReadSignature,
    Axi4Signature,
    Axi4WriteSignature,
    Response,
)
from sat.rtl.config import AxiConfig, require
from sat.rtl.streams import Queue
from sat.sim.memory import MemoryTiming

LEAST_TIMING = MemoryTiming(read_latency=8, write_latency=2, cycles_per_beat=1)
"""No answer of an `SdramMemory` is sooner. How much later it is depends on what the others ask for,
and the cycle model, whose ports know nothing of each other, cannot say."""

_AHEAD = 16
"""Words read ahead of the bus, so that one that was held up is followed by the next at once."""

_TURN = 32
"""Words that a side has one after the other while others wait: changing rows costs five cycles."""


class Side(enum.Enum, shape=2):
    """Who asks for words."""

    INSTRUCTIONS = 0
    LOADS = 1
    STORES = 2
    LINK = 3


class ReadSide(wiring.Component):
    """The read channels of an AXI4 port, as words that are asked for and come in order.

    Members
    -------
    port : ``In(Axi4ReadSignature)``
    request : ``Out(stream.Signature)``
        The word's number.
    replied, reply : ``In``
        The words, in order.
    """

    def __init__(self, axi: AxiConfig, address_bits: int) -> None:
        self.axi, self.address_bits = axi, address_bits
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
        burst = data.StructLayout({"id": ID_BITS, "word": axi.address_bits, "last": 8})
        about = data.StructLayout({"id": ID_BITS, "resp": Response, "last": 1})
        m.submodules.bursts = bursts = Queue(burst, axi.outstanding)
        m.submodules.asked = asked = Queue(about, _AHEAD)
        m.submodules.words = words = Queue(axi.data_bits, _AHEAD)
        number, word, last = Signal(8), Signal(axi.address_bits), Signal()
        taken = self.request.valid & self.request.ready
        m.d.comb += [
            port.arready.eq(bursts.i.ready),
            bursts.i.valid.eq(port.arvalid),
            bursts.i.p.id.eq(port.arid),
            bursts.i.p.word.eq(port.araddr >> shift),
            bursts.i.p.last.eq(port.arlen),
            word.eq(bursts.o.p.word + number),
            last.eq(number == bursts.o.p.last),
            # Who asks has a place for what comes.
            self.request.valid.eq(bursts.o.valid & asked.i.ready),
            self.request.payload.eq(word),
            bursts.o.ready.eq(taken & last),
            asked.i.valid.eq(taken),
            asked.i.p.id.eq(bursts.o.p.id),
            asked.i.p.resp.eq(_response(word, self.address_bits)),
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
        return m


class WriteSide(wiring.Component):
    """The write channels of an AXI4 port, as words that are to be written.

    A burst is answered when its last word was taken: whatever is asked for later sees it.

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
        burst = data.StructLayout({"id": ID_BITS, "word": axi.address_bits})
        beat = data.StructLayout({"data": axi.data_bits, "lanes": axi.beat_bytes, "last": 1})
        answer = data.StructLayout({"id": ID_BITS, "resp": Response})
        m.submodules.bursts = bursts = Queue(burst, axi.outstanding)
        m.submodules.beats = beats = Queue(beat, 4)
        m.submodules.answers = answers = Queue(answer, axi.outstanding)
        number, failed = Signal(8), Signal()
        word = Signal(axi.address_bits)
        resp = _response(word, self.address_bits)
        outside = resp != Response.OKAY
        there = bursts.o.valid & beats.o.valid & answers.i.ready
        taken = Signal()
        m.d.comb += [
            port.awready.eq(bursts.i.ready),
            bursts.i.valid.eq(port.awvalid),
            bursts.i.p.id.eq(port.awid),
            bursts.i.p.word.eq(port.awaddr >> shift),
            port.wready.eq(beats.i.ready),
            beats.i.valid.eq(port.wvalid),
            beats.i.p.data.eq(port.wdata),
            beats.i.p.lanes.eq(port.wstrb),
            beats.i.p.last.eq(port.wlast),
            word.eq(bursts.o.p.word + number),
            self.request.valid.eq(there & ~outside),
            self.request.p.address.eq(word),
            self.request.p.data.eq(beats.o.p.data),
            self.request.p.lanes.eq(beats.o.p.lanes),
            taken.eq(there & (outside | self.request.ready)),
            beats.o.ready.eq(taken),
            bursts.o.ready.eq(taken & beats.o.p.last),
            answers.i.valid.eq(taken & beats.o.p.last),
            answers.i.p.id.eq(bursts.o.p.id),
            answers.i.p.resp.eq(Mux(failed | outside, Response.DECERR, Response.OKAY)),
            port.bvalid.eq(answers.o.valid),
            port.bid.eq(answers.o.p.id),
            port.bresp.eq(answers.o.p.resp),
            answers.o.ready.eq(port.bready),
        ]
        with m.If(taken):
            m.d.sync += [
                number.eq(Mux(beats.o.p.last, 0, number + 1)),
                failed.eq(~beats.o.p.last & (failed | outside)),
            ]
        return m


def _response(word: Value, address_bits: int) -> Value:
    """Return what an access to a word is answered with."""
    return Mux(word[address_bits:].any(), Response.DECERR, Response.OKAY)


class SdramMemory(wiring.Component):
    """Memory that instructions, loads, stores and the link share, word by word.

    Each in turn has up to `_TURN` words as long as it asks for one after the other.

    Parameters
    ----------
    axi : AxiConfig
    clock_hz : float
    geometry : Geometry, optional

    Raises
    ------
    ValueError
        The chip cannot have the clock; the address space is smaller than a row.

    Members
    -------
    imem : ``In(Axi4ReadSignature)``
    dmem : ``In(Axi4Signature)``
    bus : ``In(WordBusSignature(32))``
        The link's; addresses inside the memory.
    pins : ``Out(PinSignature)``
    size
        Bytes, from address 0: the chip's, or the address space if that is smaller.
    """

    def __init__(self, axi: AxiConfig, clock_hz: float, geometry: Geometry | None = None) -> None:
        self.axi = axi
        self.controller = SdramController(clock_hz, axi.data_bits, len(Side), geometry)
        geometry = self.controller.geometry
        self.size = min(geometry.size, 1 << axi.address_bits)
        require(self.size >= 4096, f"size={self.size}: must be 4096 bytes at the least")
        super().__init__(
            {
                "imem": In(Axi4ReadSignature(axi)),
                "dmem": In(Axi4Signature(axi)),
                "bus": In(WordBusSignature(32)),
                "pins": Out(PinSignature(geometry)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi, core = self.axi, self.controller
        bits = (self.size // axi.beat_bytes - 1).bit_length()
        m.submodules.controller = core
        m.submodules.instructions = instructions = ReadSide(axi, bits)
        m.submodules.loads = loads = ReadSide(axi, bits)
        m.submodules.stores = stores = WriteSide(axi, bits)
        wiring.connect(m, wiring.flipped(self.imem), instructions.port)
        wiring.connect(m, wiring.flipped(self.pins), core.pins)
        reads = set(loads.port.signature.members)
        for name, member in self.dmem.signature.members.items():
            ours = getattr(self.dmem, name)
            its = getattr(loads.port if name in reads else stores.port, name)
            # Members of the port as we see it: what the device gives is an input.
            m.d.comb += its.eq(ours) if member.flow == In else ours.eq(its)
        # After a reset, words may still come that were asked for before.
        settling = Signal(range(SETTLED_CYCLES + 1), init=SETTLED_CYCLES)
        settled = settling == 0
        m.d.sync += settling.eq(settling - ~settled)
        asked: dict[Side, data.View] = {side: Signal(core.request.p.shape()) for side in Side}
        valid: dict[Side, Value] = {}
        taken = Signal(len(Side))
        for side, reader in ((Side.INSTRUCTIONS, instructions), (Side.LOADS, loads)):
            m.d.comb += [
                asked[side].address.eq(reader.request.payload),
                reader.request.ready.eq(taken[side.value]),
                reader.replied.eq(settled & core.replied & (core.reply.tag == side.value)),
                reader.reply.eq(core.reply.data),
            ]
            valid[side] = reader.request.valid
        m.d.comb += [
            asked[Side.STORES].write.eq(1),
            asked[Side.STORES].address.eq(stores.request.p.address),
            asked[Side.STORES].data.eq(stores.request.p.data),
            asked[Side.STORES].lanes.eq(stores.request.p.lanes),
            stores.request.ready.eq(taken[Side.STORES.value]),
        ]
        valid[Side.STORES] = stores.request.valid
        valid[Side.LINK] = self._link(m, asked[Side.LINK], taken[Side.LINK.value])
        self._arbiter(m, asked, {side: one & settled for side, one in valid.items()}, taken)
        return m

    def _link(self, m: Module, request: data.View, taken: Value) -> Value:
        """Serve the link's words; return whether one is asked for."""
        bus, beat, core = self.bus, self.axi.beat_bytes, self.controller
        shift = (beat - 1).bit_length()
        lane = bus.address[2:shift] if shift > 2 else Const(0, 0)
        waiting = Signal()  # for a word that is being read
        mine = bus.request & ~bus.register
        replied = core.replied & (core.reply.tag == Side.LINK.value)
        m.d.comb += [
            request.write.eq(bus.write),
            request.address.eq(bus.address >> shift),
            request.data.eq(bus.data.replicate(beat // 4)),
            request.lanes.eq(C(0b1111, beat) << (lane << 2)),
            bus.read_data.eq(core.reply.data.word_select(lane, 32)),
            bus.done.eq(Mux(bus.write, taken, replied)),
        ]
        m.d.sync += waiting.eq(Mux(waiting, ~replied, taken & ~bus.write))
        return mine & ~waiting

    def _arbiter(
        self, m: Module, asked: dict[Side, data.View], valid: dict[Side, Value], taken: Signal
    ) -> None:
        """Give the controller one side's word after the other."""
        core, owner, turn = self.controller, Signal(Side), Signal(range(_TURN))
        chosen = Signal(Side)
        stays = Signal()
        with m.Switch(owner):
            for side in Side:
                with m.Case(side):
                    # The owner again, if its turn lasts; else who comes next, itself last.
                    order = [Side((side.value + step) % len(Side)) for step in range(1, 5)]
                    for other in reversed(order):
                        with m.If(valid[other]):
                            m.d.comb += chosen.eq(other)
                    m.d.comb += stays.eq(valid[side] & (turn != _TURN - 1))
                    with m.If(stays):
                        m.d.comb += chosen.eq(side)
        some = Cat(*valid.values()).any()
        m.d.comb += core.request.valid.eq(some)
        with m.Switch(chosen):
            for side in Side:
                with m.Case(side):
                    m.d.comb += [
                        core.request.p.eq(asked[side]),
                        core.request.p.tag.eq(side),
                        taken[side.value].eq(valid[side] & core.request.ready),
                    ]
        with m.If(some & core.request.ready):
            m.d.sync += [owner.eq(chosen), turn.eq(Mux(stays, turn + 1, 0))]
