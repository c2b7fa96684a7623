"""Harnesses around the board's end of the link: whatever comes over the wire, it does not hang.

Each block is shown to come nearer to rest with every cycle in which what it waits for does not let
it wait: a measure falls. The wire and the hosts at it are free. What is assumed stands in the
docstrings; the rest are the links of a chain: transmitter, framer, control.
"""

from __future__ import annotations

from amaranth import Cat, Signal
from amaranth.hdl import Assume
from amaranth.lib.wiring import In

from sat.fpga.board import RegisterBridge
from sat.fpga.link.framing import Framer
from sat.fpga.link.protocol import CRC_BYTES, RESPONSE_HEADER_BYTES
from sat.fpga.link.server import LinkServer
from sat.fpga.link.uart import UartReceiver, UartTransmitter
from sat.fpga.memory import READ_CYCLES, BlockMemory
from sat.rtl.config import AxiConfig

CLOCK, BAUD = 4.0, 1.0
BIT = 1 << 16
"""A bit's time in the units of a UART's phase."""


def transmitter(h):
    """A byte is taken within ten bits of the one before."""
    unit = UartTransmitter(CLOCK, BAUD)
    h.add("unit", unit)
    left, phase = unit.state
    h.m.d.comb += [
        unit.i.valid.eq(h.free(1, "valid")),
        unit.i.payload.eq(h.free(8, "payload")),
    ]
    due = Signal(20)
    h.m.d.comb += due.eq((left << 16) - phase[:16])
    before, waited = h.last(due, "was_due"), h.last(~unit.i.ready, "waited")
    h.check(left <= 10)
    h.check(due == before - unit.step, h.after & waited)
    h.check(unit.i.ready, due <= unit.step)
    return h


def receiver(h):
    """After a start bit the next one is looked for within ten bits, whatever the wire does."""
    unit = UartReceiver(CLOCK, BAUD)
    h.add("unit", unit)
    left, phase = unit.state
    h.m.d.comb += unit.rx.eq(h.free(1, "rx"))
    due = Signal(20)
    h.m.d.comb += due.eq((left << 16) - phase[:16])
    before, busy = h.last(due, "was_due"), h.last(left != 0, "was_busy")
    h.check(left <= 10)
    h.check((left == 0) | (due == before - unit.step), h.after & busy)
    # A byte never comes while another is under way.
    h.check(left == 0, unit.valid)
    return h


def framer(h):
    """A byte of a body is taken after at most 20 that go out; a frame ends on its own."""
    unit = Framer()
    h.add("unit", unit)
    at, left, held = unit.state
    m = h.m
    m.d.comb += [
        unit.i.valid.eq(h.free(1, "valid")),
        unit.i.p.byte.eq(h.free(8, "byte")),
        unit.i.p.last.eq(h.free(1, "last")),
        unit.o.ready.eq(h.free(1, "ready")),
    ]
    # How far it is from taking a byte; in FLAG and BODY it waits for one.
    due = Signal(6)
    with m.If(at["BODY"]):
        m.d.comb += due.eq(held)
    with m.Elif(at["FLAG"]):
        m.d.comb += due.eq(3 + held)
    with m.Elif(at["CRC"]):
        m.d.comb += due.eq(6 + 3 * left + held)
    with m.Else():
        m.d.comb += due.eq(6 + 3 * CRC_BYTES + held + 1)
    blocked = unit.o.valid & ~unit.o.ready
    took = unit.i.valid & unit.i.ready
    idle = (at["FLAG"] | at["BODY"]) & (held == 0) & ~unit.i.valid
    before = h.last(due, "was_due")
    h.check(left <= CRC_BYTES)
    h.check(Cat(*at.values()) != 0)
    h.check(due < before, h.after & h.last(~blocked & ~took & ~idle, "moved"))
    h.check(due <= before, h.after & h.last(~took, "did_not_take"))
    h.check(unit.i.ready == (due == 0))
    h.check(unit.o.valid == (held != 0))
    # Of a body, byte after byte; behind its last the frame closes.
    ended = h.last(took & unit.i.p.last, "had_ended")
    h.check(at["END"] == ended, h.after)
    return h


def server(h):
    """Every request that is accepted is answered, once, and the next one is listened to.

    Assumed: nothing of the wire. Waited for: the memory or the device to answer on the bus, the
    framer to take a byte.
    """
    unit = LinkServer(CLOCK, BAUD, 1 << 13)
    h.add("unit", unit)
    control = unit.state
    at, out, bus, m = control.at, control.out, unit.bus, h.m
    m.d.comb += [
        unit.rx.eq(h.free(1, "rx")),
        bus.done.eq(bus.request & h.free(1, "done")),
        bus.refused.eq(h.free(1, "refused")),
        bus.read_data.eq(h.free(32, "read_data")),
    ]
    words, step, part, count = control.words, control.step, control.part, control.count
    # Phases in the order that a request passes them, and what is left in each.
    phase, left = Signal(3), Signal(16)
    writing = count[2:] - step
    answering = words - step
    for name, number, rest in (
        ("IDLE", 0, 0),
        ("DRAIN", 1, 0),
        ("BYTES", 2, (answering << 3) - part),
        ("WORD", 2, (answering << 3) + 1),
        ("HEAD", 3, RESPONSE_HEADER_BYTES - part),
        ("PEEK", 4, 0),
        ("WRITE", 4, writing << 1),
        ("FETCH", 4, (writing << 1) + 1),
        ("JUDGE", 5, 0),
    ):
        with m.If(at[name]):
            m.d.comb += [phase.eq(number), left.eq(rest)]
    due = Signal(19)
    m.d.comb += due.eq((phase << 16) | left)
    before = h.last(due, "was_due")
    waits = (bus.request & ~bus.done) | (out.valid & ~out.ready)
    h.check(due < before, h.after & h.last(~waits & ~at["IDLE"], "moved"))
    h.check(due == before, h.after & h.last(waits, "had_waited"))
    h.check(phase == 5, h.after & h.last(at["IDLE"] & control.accepted, "had_accepted"))
    # Nothing else wakes it, and it asks for nothing at rest.
    h.check(at["IDLE"], h.after & h.last(at["IDLE"] & ~control.accepted, "rested"))
    h.check(~bus.request & ~out.valid, at["IDLE"])
    # The counters stay in their bounds.
    h.check((count[:2] == 0) & (step < count[2:]) & (count <= 1024), at["FETCH"] | at["WRITE"])
    h.check(control.writes & (words == 0), at["FETCH"] | at["WRITE"])
    h.check(words <= 256)
    h.check(step < words, at["WORD"] | at["BYTES"])
    h.check(~control.on_register | (words == 1), at["WORD"] | at["BYTES"])
    h.check((words == 0) | (step == 0), at["HEAD"])
    h.check(~control.on_register | (words <= 1), at["HEAD"])
    h.check(words == 1, at["PEEK"])
    h.check((part == 0) | at["HEAD"] | at["BYTES"])
    h.check(step == 0, at["PEEK"])
    # A response is one body, ended once: the framer is never left in the middle of one.
    taken, within = out.valid & out.ready, Signal()
    with m.If(taken):
        m.d.sync += within.eq(~out.p.last)
    h.check(within == ((at["HEAD"] & (part != 0)) | at["WORD"] | at["BYTES"]))
    h.check(h.last(taken & out.p.last, "had_ended") == at["DRAIN"], h.after)
    return h


def memory(h):
    """The link waits for the device alone: it writes a word in the first cycle in which the device
    stores none, and has read one `READ_CYCLES` after the first in which the device reads none.

    Assumed: a request stays until it is done. Nothing is assumed of the device.
    """
    axi = AxiConfig(data_bits=32, address_bits=16, outstanding=2)
    unit = BlockMemory(axi, 4096)
    h.add("unit", unit)
    reads, stores, under_way = unit.state
    bus, m = unit.bus, h.m
    request, write = h.free(1, "request"), h.free(1, "write")
    address, data = h.free(10, "address"), h.free(32, "data")
    asked = Cat(request, write, address, data)
    going = h.last(bus.request & ~bus.done, "was_going")
    m.d.comb += [
        bus.request.eq(request),
        bus.write.eq(write),
        bus.address.eq(address << 2),
        bus.data.eq(data),
        Assume(~(h.after & going) | (asked == h.last(asked, "had_asked"))),
    ]
    for name, port in (("imem", unit.imem), ("dmem", unit.dmem)):
        for member, entry in port.signature.members.items():
            if entry.flow == In:
                m.d.comb += getattr(port, member).eq(h.free(entry.shape, f"{name}_{member}"))
    h.check(bus.done, request & write & ~stores)
    begun = h.last(request & ~write & ~reads & (under_way == 0), "had_begun")
    before = h.last(under_way, "was_under_way")
    h.check(under_way == Cat(begun, before)[:READ_CYCLES], h.after)
    h.check((under_way & (under_way - 1)) == 0)
    h.check(request & ~write, under_way != 0)
    h.check(bus.done == (under_way[-1] | (request & write & ~stores)))
    return h


def bridge(h):
    """An access of a register ends when the device has answered it, and leaves nothing behind.

    Assumed: a request stays until it is done; the device answers what it took, and no more. Waited
    for: the device to take addresses and data, and to answer.
    """
    unit = RegisterBridge()
    h.add("unit", unit)
    address_given, data_given = unit.state
    bus, csr, m = unit.bus, unit.csr, h.m
    request, write = h.free(1, "request"), h.free(1, "write")
    address = h.free(32, "address")
    asked = Cat(request, write, address)
    going = h.last(bus.request & ~bus.done, "was_going")
    m.d.comb += [
        bus.request.eq(request),
        bus.register.eq(1),
        bus.write.eq(write),
        bus.address.eq(address),
        Assume(~(h.after & going) | (asked == h.last(asked, "had_asked"))),
        csr.awready.eq(h.free(1, "awready")),
        csr.wready.eq(h.free(1, "wready")),
        csr.arready.eq(h.free(1, "arready")),
        csr.bvalid.eq(h.free(1, "bvalid") & address_given & data_given),
        csr.rvalid.eq(h.free(1, "rvalid") & address_given & ~data_given),
        csr.bresp.eq(h.free(2, "bresp")),
        csr.rresp.eq(h.free(2, "rresp")),
    ]
    # Every cycle of a request offers the device something, or is ready for its answer.
    offers = csr.awvalid | csr.wvalid | csr.arvalid
    h.check(offers | csr.bready | csr.rready | bus.done, request)
    h.check(offers | (csr.bready & data_given) | (csr.rready & ~write) | bus.done, request)
    due = Signal(2)
    m.d.comb += due.eq(request + (request & ~address_given) + (request & write & ~data_given))
    took = (csr.awvalid & csr.awready) | (csr.wvalid & csr.wready) | (csr.arvalid & csr.arready)
    before = h.last(due, "was_due")
    h.check(due < before, h.after & going & h.last(took, "took"))
    h.check(due == before, h.after & going & h.last(~took, "did_not_take"))
    h.check(bus.done, csr.bvalid & csr.bready | csr.rvalid & csr.rready)
    h.check(request, address_given | data_given)
    h.check(~address_given & ~data_given, h.after & h.last(bus.done, "was_done"))
    h.check(~csr.awvalid & ~csr.wvalid & ~csr.arvalid, ~request)
    return h
