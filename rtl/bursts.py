"""From rows in memory to AXI bursts."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.axi import BOUNDARY_BYTES
from sat.rtl.config import AxiConfig


def rows_layout(axi: AxiConfig) -> data.StructLayout:
    """Return rows in memory, as a `BurstWalker` receives them."""
    return data.StructLayout(
        {"address": axi.address_bits, "pitch": 32, "rows": 16, "row_bytes": 20}
    )


def burst_layout(axi: AxiConfig) -> data.StructLayout:
    """Return a burst: address of its first beat, beats, whether it is the last of its rows.

    The address is that of a port: of several ports each holds its stripe of every beat, from
    `port_bytes` x the beat's number on.
    """
    return data.StructLayout({"address": axi.address_bits, "beats": 9, "last": 1})


class BurstWalker(wiring.Component):
    """Cut rows in memory into bursts of whole beats, one burst a cycle.

    No burst is longer than `AxiConfig.burst_beats` or crosses 4 KiB of a port. Rows taken in
    cycle x give their first burst in cycle x + 1; the next rows are taken in the cycle after the
    last burst has left.

    Members
    -------
    i : ``In(stream.Signature(rows_layout))``
    o : ``Out(stream.Signature(burst_layout))``
    """

    def __init__(self, axi: AxiConfig):
        self.axi = axi
        super().__init__(
            {
                "i": In(stream.Signature(rows_layout(axi))),
                "o": Out(stream.Signature(burst_layout(axi))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi = self.axi
        shift = (axi.beat_bytes - 1).bit_length()
        port_shift = (axi.port_bytes - 1).bit_length()
        room_beats = BOUNDARY_BYTES // axi.port_bytes
        beat_bits = axi.address_bits - shift
        active = Signal()
        row_address = Signal(axi.address_bits)
        pitch, row_bytes = Signal(32), Signal(20)
        rows_left = Signal(16)  # besides this one
        at = Signal(beat_bits)  # next beat
        end = Signal(beat_bits + 1)  # first beat behind the row

        def start_row(address: Value, size: Value) -> list:
            return [
                row_address.eq(address),
                at.eq(address >> shift),
                end.eq(((address + size - 1) >> shift) + 1),
            ]

        left = Signal(beat_bits + 1)
        room = Signal(range(room_beats + 1))
        beats = Signal(9)
        m.d.comb += [
            left.eq(end - at),
            room.eq(room_beats - at[: room_beats.bit_length() - 1]),
            beats.eq(axi.burst_beats),
        ]
        with m.If((left <= room) & (left <= axi.burst_beats)):
            m.d.comb += beats.eq(left)
        with m.Elif(room <= axi.burst_beats):
            m.d.comb += beats.eq(room)
        end_of_row = (left <= room) & (left <= axi.burst_beats)
        m.d.comb += [
            self.i.ready.eq(~active),
            self.o.valid.eq(active),
            self.o.p.address.eq(at << port_shift),
            self.o.p.beats.eq(beats),
            self.o.p.last.eq(end_of_row & (rows_left == 0)),
        ]
        next_row = Signal(axi.address_bits)
        m.d.comb += next_row.eq(row_address + pitch)
        with m.If(~active):
            m.d.sync += [
                active.eq(self.i.valid),
                pitch.eq(self.i.p.pitch),
                row_bytes.eq(self.i.p.row_bytes),
                rows_left.eq(self.i.p.rows - 1),
                *start_row(self.i.p.address, self.i.p.row_bytes),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += at.eq(at + beats)
            with m.If(end_of_row):
                m.d.sync += [rows_left.eq(rows_left - 1), *start_row(next_row, row_bytes)]
                with m.If(rows_left == 0):
                    m.d.sync += active.eq(0)
        return m


class BurstCutter(wiring.Component):
    """Cut segments of memory into bursts of whole beats; segments of zeros give none.

    A segment taken in cycle x gives its first burst in cycle x + 1, then one a cycle; the next is
    taken in the cycle in which its last burst leaves, one of zeros takes a cycle of its own.

    Members
    -------
    i : ``In(stream.Signature(segment_layout))``
    o : ``Out(stream.Signature(burst_layout))``
        ``last`` marks the last burst of a segment.
    """

    def __init__(self, segment: data.StructLayout, axi: AxiConfig):
        self.axi = axi
        super().__init__(
            {"i": In(stream.Signature(segment)), "o": Out(stream.Signature(burst_layout(axi)))}
        )

    def elaborate(self, platform):
        m = Module()
        axi = self.axi
        shift = (axi.beat_bytes - 1).bit_length()
        port_shift = (axi.port_bytes - 1).bit_length()
        room_beats = BOUNDARY_BYTES // axi.port_bytes
        beat_bits = axi.address_bits - shift
        active = Signal()
        at = Signal(beat_bits)
        left = Signal(20)
        room = Signal(range(room_beats + 1))
        beats = Signal(9)
        m.d.comb += [
            room.eq(room_beats - at[: room_beats.bit_length() - 1]),
            beats.eq(axi.burst_beats),
        ]
        with m.If((left <= room) & (left <= axi.burst_beats)):
            m.d.comb += beats.eq(left)
        with m.Elif(room <= axi.burst_beats):
            m.d.comb += beats.eq(room)
        end = (left <= room) & (left <= axi.burst_beats)
        self.state = (active, at, left)  # what proofs speak of (tests/formal)
        m.d.comb += [
            self.o.valid.eq(active),
            self.o.p.address.eq(at << port_shift),
            self.o.p.beats.eq(beats),
            self.o.p.last.eq(end),
            self.i.ready.eq(~active | (self.o.ready & end)),
        ]
        with m.If(active & self.o.ready):
            m.d.sync += [at.eq(at + beats), left.eq(left - beats), active.eq(~end)]
        with m.If(self.i.valid & self.i.ready):
            before = self.i.p.address[:shift]
            m.d.sync += [
                active.eq(~self.i.p.zero),
                at.eq(self.i.p.address >> shift),
                left.eq((before + self.i.p.size + (axi.beat_bytes - 1)) >> shift),
            ]
        return m
