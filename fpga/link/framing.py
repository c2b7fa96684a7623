"""Frames to and from bytes, in gateware (`sat.fpga.link.protocol`)."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.protocol import CRC, CRC_BYTES, ESCAPE, FLAG, TURN


class Deframer(wiring.Component):
    """Take bytes to the bytes of frames.

    Members
    -------
    valid, byte : ``In(1)``, ``In(8)``
        What was received.
    first : ``Out(1)``
        A FLAG: whatever came since the last one is over.
    o_valid, o_byte : ``Out(1)``, ``Out(8)``
        The next byte of body or CRC, unescaped.
    good : ``Out(1)``
        With ``first``: what is over was a frame whose CRC fits.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "valid": In(1),
                "byte": In(8),
                "first": Out(1),
                "o_valid": Out(1),
                "o_byte": Out(8),
                "good": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = CRC.create()
        escaped, some = Signal(), Signal()
        flag, escape = self.byte == FLAG, self.byte == ESCAPE
        m.d.comb += [
            self.first.eq(self.valid & flag),
            self.o_valid.eq(self.valid & ~flag & ~(escape & ~escaped)),
            self.o_byte.eq(self.byte ^ Mux(escaped, TURN, 0)),
            crc.start.eq(self.first),
            crc.valid.eq(self.o_valid),
            crc.data.eq(self.o_byte),
            self.good.eq(self.first & some & ~escaped & crc.match_detected),
        ]
        with m.If(self.valid):
            m.d.sync += [
                escaped.eq(~flag & escape & ~escaped),
                some.eq(~flag & (some | self.o_valid)),
            ]
        return m


class Framer(wiring.Component):
    """Take bodies to the bytes of frames.

    Members
    -------
    i : ``In(stream.Signature({"byte": 8, "last": 1}))``
        A body, byte by byte.
    o : ``Out(stream.Signature(8))``
    """

    def __init__(self) -> None:
        body = data.StructLayout({"byte": 8, "last": 1})
        super().__init__({"i": In(stream.Signature(body)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = CRC.create()
        # What goes out next, before escaping; FLAGs themselves go as they are.
        byte, present, raw = Signal(8), Signal(), Signal()
        escaping = Signal()
        special = ~raw & ((byte == FLAG) | (byte == ESCAPE))
        sent = Signal()
        m.d.comb += [
            self.o.valid.eq(present),
            self.o.payload.eq(Mux(escaping, byte ^ TURN, Mux(special, ESCAPE, byte))),
            sent.eq(self.o.valid & self.o.ready & ~(special & ~escaping)),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += escaping.eq(special & ~escaping)
        with m.If(sent):
            m.d.sync += present.eq(0)
        left = Signal(range(CRC_BYTES + 1))
        tail = Signal(8 * CRC_BYTES)
        with m.FSM() as control:
            with m.State("FLAG"), m.If(self.i.valid & ~present):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [byte.eq(FLAG), raw.eq(1), present.eq(1)]
                m.next = "BODY"
            with m.State("BODY"), m.If(~present):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.comb += [crc.valid.eq(1), crc.data.eq(self.i.p.byte)]
                    m.d.sync += [byte.eq(self.i.p.byte), raw.eq(0), present.eq(1)]
                    with m.If(self.i.p.last):
                        m.next = "END"
            with m.State("END"):
                m.d.sync += [tail.eq(crc.crc), left.eq(CRC_BYTES)]
                m.next = "CRC"
            with m.State("CRC"), m.If(~present):
                with m.If(left != 0):
                    m.d.sync += [byte.eq(tail), tail.eq(tail >> 8), left.eq(left - 1)]
                    m.d.sync += present.eq(1)
                with m.Else():
                    m.d.sync += [byte.eq(FLAG), raw.eq(1), present.eq(1)]
                    m.next = "FLAG"
        # For proofs.
        self.state = (
            {name: control.ongoing(name) for name in ("FLAG", "BODY", "END", "CRC")},
            left,
            Mux(present, Mux(special & ~escaping, 2, 1), 0),
        )
        return m
