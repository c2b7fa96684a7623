"""Instruction fetch: the program, in order, from memory into a queue."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.axi import Axi4ReadSignature, Response, address_constants
from sat.rtl.config import SatConfig
from sat.rtl.isa import INSTRUCTION_BITS, INSTRUCTION_BYTES
from sat.rtl.layouts import PC_BITS
from sat.rtl.streams import Queue

FETCH_INSTRUCTIONS = 4
"""Instructions in a burst, at most: an aligned block of 128 bytes, so none crosses 4 KiB."""

FETCHED = data.StructLayout({"word": INSTRUCTION_BITS, "pc": PC_BITS, "failed": 1})
"""A fetched instruction; ``failed`` says that memory answered with an error."""


class Fetch(wiring.Component):
    """Read a program ahead of its execution.

    From the cycle after reset it reads instructions ``address + 32 * n``, n from 0 to
    ``length - 1``, a burst at a time. A burst's address is on the bus in the cycle after
    the queue has room for `FETCH_INSTRUCTIONS` and the last beat of the burst before has come.
    An instruction is at ``o`` in the cycle after its last beat.

    Members
    -------
    address, length : ``In``
        The program; constant outside reset.
    halt : ``In(1)``
        Send no further address.
    o : ``Out(stream.Signature(FETCHED))``
    idle : ``Out(1)``
        No burst is under way.
    beat : ``Out(1)``
        A beat was taken.
    port : ``Out(Axi4ReadSignature)``
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "address": In(config.axi.address_bits),
                "length": In(PC_BITS),
                "halt": In(1),
                "o": Out(stream.Signature(FETCHED)),
                "idle": Out(1),
                "beat": Out(1),
                "port": Out(Axi4ReadSignature(config.axi.instructions)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        port, axi = self.port, self.config.axi.instructions
        address_constants(m, port, "ar", axi)
        depth = self.config.instruction_queue
        beats_each = INSTRUCTION_BYTES // axi.beat_bytes

        m.submodules.queue = queue = Queue(FETCHED, depth)
        m.d.comb += [
            self.o.valid.eq(queue.o.valid),
            self.o.p.eq(queue.o.p),
            queue.o.ready.eq(self.o.ready),
        ]
        requested = Signal(PC_BITS)
        under_way = Signal()
        at = Signal(axi.address_bits)
        m.d.comb += at.eq(self.address + (requested << (INSTRUCTION_BYTES - 1).bit_length()))
        to_block = Signal(range(FETCH_INSTRUCTIONS + 1))
        instructions = Signal(range(FETCH_INSTRUCTIONS + 1))
        m.d.comb += [
            to_block.eq(
                FETCH_INSTRUCTIONS
                - at.bit_select(
                    (INSTRUCTION_BYTES - 1).bit_length(), (FETCH_INSTRUCTIONS - 1).bit_length()
                )
            ),
            instructions.eq(to_block),
        ]
        with m.If(self.length - requested < to_block):
            m.d.comb += instructions.eq(self.length - requested)
        with m.If(
            ~under_way
            & (requested != self.length)
            & (queue.level <= depth - FETCH_INSTRUCTIONS)
            & ~self.halt
        ):
            m.d.sync += [
                under_way.eq(1),
                port.arvalid.eq(1),
                port.araddr.eq(at),
                port.arlen.eq(instructions * beats_each - 1),
                requested.eq(requested + instructions),
            ]
        with m.If(port.arvalid & port.arready):
            m.d.sync += port.arvalid.eq(0)

        taken = port.rvalid & port.rready
        failed = Signal()
        pc = Signal(PC_BITS)
        part = Signal(range(max(beats_each, 2)))
        # The beats before the one on the bus, the first in the low bits.
        received = Signal(INSTRUCTION_BITS)
        word = Cat(received, port.rdata)[-INSTRUCTION_BITS:]
        now_failed = failed | (port.rresp != Response.OKAY)
        m.d.comb += [
            port.rready.eq(1),
            self.idle.eq(~under_way),
            self.beat.eq(taken),
            queue.i.valid.eq(taken & (part == beats_each - 1)),
            queue.i.p.word.eq(word),
            queue.i.p.pc.eq(pc),
            queue.i.p.failed.eq(now_failed),
        ]
        with m.If(taken):
            m.d.sync += [
                part.eq(Mux(part == beats_each - 1, 0, part + 1)),
                received.eq(word),
                failed.eq(now_failed & (part != beats_each - 1)),
            ]
            with m.If(part == beats_each - 1):
                m.d.sync += pc.eq(pc + 1)
            with m.If(port.rlast):
                m.d.sync += under_way.eq(0)
        return m
