"""Harnesses around a board's end of the device's AXI ports: no word is lost, no beat is early."""

from __future__ import annotations

from amaranth import Cat, Signal
from amaranth.hdl import Assume
from amaranth.lib.wiring import In

from sat.fpga.ports import ReadSide, WriteSide
from sat.rtl.config import AxiConfig

AXI = AxiConfig(data_bits=32, address_bits=16, outstanding=2)
AHEAD = 4


def _free_port(h, port, name):
    for member, entry in port.signature.members.items():
        if entry.flow == In:
            h.m.d.comb += getattr(port, member).eq(h.free(entry.shape, f"{name}_{member}"))


def reads(h):
    """Whatever comes was asked for, and has a place; what is answered has come.

    Assumed: no more words come than were taken. Nothing of the bus.
    """
    unit = ReadSide(AXI, 10, AHEAD)
    h.add("unit", unit)
    bursts, asked, there = unit.state
    m, port = h.m, unit.port
    _free_port(h, port, "port")
    coming = Signal(range(AHEAD + 1))
    taken = unit.request.valid & unit.request.ready
    m.d.comb += [
        unit.request.ready.eq(h.free(1, "ready")),
        unit.replied.eq(h.free(1, "replied")),
        unit.reply.eq(h.free(32, "reply")),
        Assume(~unit.replied | (coming != 0)),
    ]
    m.d.sync += coming.eq(coming + taken - unit.replied)
    h.check(asked == there + coming)
    h.check(asked <= AHEAD)
    h.check(there < AHEAD, unit.replied)
    h.check(port.rvalid == (there != 0))
    # A burst that was taken asks on as long as there is a place; none is taken without one.
    h.check(unit.request.valid == ((bursts != 0) & (asked != AHEAD)))
    h.check(port.arready == (bursts != AXI.outstanding))
    return h


def writes(h):
    """Beats are taken for bursts whose addresses were, and each burst is answered once.

    Nothing is assumed.
    """
    unit = WriteSide(AXI, 10)
    h.add("unit", unit)
    bursts, coming, beats, waiting = unit.state
    m, port = h.m, unit.port
    _free_port(h, port, "port")
    m.d.comb += unit.request.ready.eq(h.free(1, "ready"))
    ended = port.wvalid & port.wready & port.wlast
    written = beats.o.valid & beats.o.ready & beats.o.p.last
    answered = port.bvalid & port.bready
    # Bursts that have come whole and are not written.
    whole = Signal(range(AXI.outstanding + 2))
    m.d.sync += whole.eq(whole + ended - written)
    h.check(bursts == coming + whole)
    h.check(bursts <= AXI.outstanding)
    h.check(coming != 0, port.wready)
    h.check(bursts != 0, written)
    # As many answers as bursts were written, and each has a place.
    h.check(waiting <= AXI.outstanding)
    before, had = h.last(waiting, "was_waiting"), h.last(Cat(written, answered), "had")
    h.check(waiting == before + had[0] - had[1], h.after)
    h.check(port.bvalid == (waiting != 0))
    # A beat of a burst waits for the memory, or for answers to be taken; for nothing else.
    h.check(
        unit.request.valid | beats.o.ready | (waiting == AXI.outstanding),
        beats.o.valid & (bursts != 0),
    )
    return h
