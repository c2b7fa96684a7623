"""The SDRAM controller: words in, commands out, each no sooner than the data sheet allows.

Bursts are of one column, a READ or WRITE a cycle: runs may begin and end anywhere. A row stays open
until another of its bank is asked for or a refresh is due. Where the chip's DQM are not wired, some
bytes of a column are written by reading it first and writing it whole.
"""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.sdram.chip import (
    ALL_BANKS,
    CAS_LATENCY,
    MODE,
    MODE_CYCLES,
    REFRESHES,
    Command,
    Cycles,
    PinSignature,
)
from sat.fpga.sdram.geometry import Geometry
from sat.rtl.config import require

READ_CYCLES = CAS_LATENCY + 2
"""From a READ's cycle to that in which its column is in the reply: registers on both sides of the
pins, and the chip, whose clock is half a cycle late."""

SETTLED_CYCLES = 63
"""In which a word that was asked for has come, a refresh and a change of rows included."""


def _kept(*shape: Any, **options: Any) -> Any:
    """Return a signal that a reset leaves as it is: a chip wants its refreshes all the same."""
    return Signal(*shape, reset_less=True, **options)


class Request(data.StructLayout):
    """A word to read or write.

    ``address`` counts words; ``lanes`` says which bytes are written; ``tag`` comes back with what
    is read.
    """

    def __init__(self, word_bits: int, address_bits: int, tags: int) -> None:
        super().__init__(
            {
                "tag": range(tags),
                "write": 1,
                "address": address_bits,
                "data": word_bits,
                "lanes": word_bits // 8,
            }
        )


class Reply(data.StructLayout):
    """A word that was read."""

    def __init__(self, word_bits: int, tags: int) -> None:
        super().__init__({"tag": range(tags), "data": word_bits})


class SdramController(wiring.Component):
    """Serve words, in the order in which they are asked for.

    A reset does not reach it: what the chip holds is kept, and words that were asked for before
    come, within `SETTLED_CYCLES`.

    Parameters
    ----------
    clock_hz : float
        Of its clock; the chip has the same, half a cycle later.
    word_bits : int
        Of a word; a power of two from 32: its columns are served one after the other.
    tags : int
        Of requests.
    geometry : Geometry

    Raises
    ------
    ValueError
        The chip cannot have the clock; the word is none.

    Members
    -------
    request : ``In(stream.Signature(Request))``
    reply, replied : ``Out(Reply)``, ``Out(1)``
        Words that were read, in order; they wait for nobody.
    pins : ``Out(PinSignature)``
    """

    def __init__(
        self, clock_hz: float, word_bits: int, tags: int, geometry: Geometry | None = None
    ) -> None:
        self.geometry = geometry = geometry or Geometry()
        require(
            word_bits >= 32 and word_bits & (word_bits - 1) == 0,
            f"word_bits={word_bits}: must be a power of two from 32",
        )
        self.cycles = Cycles.at(clock_hz, geometry)
        self.parts = word_bits // geometry.data_bits
        self.word_bits, self.tags = word_bits, tags
        part_bits = (self.parts - 1).bit_length()
        request = Request(word_bits, geometry.address_bits - part_bits, tags)
        super().__init__(
            {
                "request": In(stream.Signature(request)),
                "reply": Out(Reply(word_bits, tags)),
                "replied": Out(1),
                "pins": Out(PinSignature(geometry)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        at, shape = self.cycles, self.geometry
        pins = {
            name: _kept(member.shape, init=member.init or 0, name=name)
            for name, member in self.pins.signature.members.items()
            if member.flow == Out
        }
        m.d.comb += [getattr(self.pins, name).eq(register) for name, register in pins.items()]
        # The command of this cycle; its pins have it in the next.
        command = _kept(Command, init=Command.NOP)
        bank, address = _kept(shape.banks), _kept(shape.rows)
        m.d.sync += [
            pins["command"].eq(command),
            pins["ba"].eq(bank),
            pins["a"].eq(address),
            pins["cke"].eq(1),
        ]

        # The word that is served, and one that waits: whether it does depends on no row.
        active, busy = _kept(self.request.p.shape()), _kept()
        following, waiting = _kept(self.request.p.shape()), _kept()
        # Nothing, where a word is a column: Verilog has no signals of no bits.
        part = _kept(range(self.parts)) if self.parts > 1 else C(0, 0)
        number = Cat(part, active.address)
        column, rest = number[: shape.columns], number[shape.columns :]
        its_bank, its_row = rest[: shape.banks], rest[shape.banks :]
        banks = range(1 << shape.banks)
        opened = Array(_kept(name=f"open_{n}") for n in banks)
        row = Array(_kept(shape.rows, name=f"row_{n}") for n in banks)
        some_open = Cat(*opened).any()
        # Cycles until another command may come; until a row may be closed; until a refresh.
        wait = _kept(range(max(at.power_up, at.row_cycle) + 1), init=at.power_up)
        held = _kept(range(max(at.row, at.row_cycle, at.write) + 1))
        until = _kept(range(at.refresh_every + 1), init=at.refresh_every)
        step = _kept(range(REFRESHES + 2))
        due, ready = _kept(), _kept()
        m.d.sync += [wait.eq(wait - (wait != 0)), held.eq(held - (held != 0))]
        m.d.sync += until.eq(Mux(until == 0, at.refresh_every - 1, until - 1))
        with m.If(until == 0):
            m.d.sync += due.eq(1)

        recent = _kept(CAS_LATENCY + 1)  # READs whose columns are, or will be, on the wires
        reading, writing, done = _kept(), _kept(), _kept()
        lanes = active.lanes.word_select(part, shape.lanes)
        # Without masks: a READ of a column for its bytes that stay, and whether it is under way.
        joining, joins = (C(0), None) if shape.masked else (_kept(), _kept())
        m.d.sync += recent.eq(Cat(reading if shape.masked else reading | joining, recent[:-1]))
        m.d.comb += [
            done.eq((reading | writing) & (part == self.parts - 1)),
            self.request.ready.eq(~waiting),
        ]
        with m.If(~busy | done):
            m.d.sync += [
                active.eq(Mux(waiting, following, self.request.p)),
                busy.eq(waiting | self.request.valid),
                waiting.eq(0),
            ]
        with m.Elif(~waiting):
            m.d.sync += waiting.eq(self.request.valid)
        with m.If(~waiting):
            m.d.sync += following.eq(self.request.p)

        def pause(length: int) -> Any:
            return wait.eq(length - 1)

        closing = [command.eq(Command.PRECHARGE), address.eq(ALL_BANKS)]
        with m.If(wait != 0):
            pass
        with m.Elif(~ready):
            # Power-up: close all, refresh, set the mode.
            m.d.sync += step.eq(step + 1)
            with m.If(step == 0):
                m.d.comb += closing
                m.d.sync += pause(at.precharge)
            with m.Elif(step <= REFRESHES):
                m.d.comb += command.eq(Command.REFRESH)
                m.d.sync += pause(at.row_cycle)
            with m.Else():
                m.d.comb += [command.eq(Command.MODE), address.eq(MODE)]
                m.d.sync += [pause(MODE_CYCLES), ready.eq(1)]
        with m.Elif(due & (part == 0) & some_open), m.If(held == 0):
            m.d.comb += closing
            m.d.sync += [pause(at.precharge), *(one.eq(0) for one in opened)]
        with m.Elif(due & (part == 0)):
            m.d.comb += command.eq(Command.REFRESH)
            m.d.sync += [pause(at.row_cycle), due.eq(0)]
        with m.Elif(busy & opened[its_bank] & (row[its_bank] == its_row)):
            m.d.comb += [bank.eq(its_bank), address.eq(column)]
            with m.If(~active.write):
                m.d.comb += [reading.eq(1), command.eq(Command.READ)]
            if not shape.masked:
                with m.Elif(~lanes.all()), m.If(~joins):
                    m.d.comb += [joining.eq(1), command.eq(Command.READ)]
                    m.d.sync += joins.eq(1)
            with m.Elif(recent == 0):
                m.d.comb += [writing.eq(1), command.eq(Command.WRITE)]
                m.d.sync += held.eq(Mux(held > at.write, held - 1, at.write - 1))
            if self.parts > 1:
                m.d.sync += part.eq(part + (reading | writing))
        with m.Elif(busy & opened[its_bank]), m.If(held == 0):
            m.d.comb += [bank.eq(its_bank), command.eq(Command.PRECHARGE)]
            m.d.sync += [pause(at.precharge), opened[its_bank].eq(0)]
        with m.Elif(busy):
            m.d.comb += [bank.eq(its_bank), address.eq(its_row), command.eq(Command.ACTIVATE)]
            m.d.sync += [
                pause(at.row_to_column),
                opened[its_bank].eq(1),
                row[its_bank].eq(its_row),
                # tRC, too: what closes the row comes so late that the next may open in time.
                held.eq(max(at.row, at.row_cycle - at.precharge) - 1),
            ]

        m.d.sync += [
            pins["dq_oe"].eq(writing),
            pins["dq_o"].eq(active.data.word_select(part, shape.data_bits)),
            pins["dqm"].eq(Mux(writing, ~lanes, 0)),
        ]
        joined, column = self._replies(m, reading, joining, done, active.tag)
        if not shape.masked:
            given = active.data.word_select(part, shape.data_bits)
            kept = Cat(~lane.replicate(8) for lane in lanes)
            with m.If(joined):
                m.d.sync += [given.eq(given & ~kept | column & kept), lanes.eq(~0), joins.eq(0)]
        return m

    def _replies(
        self, m: Module, reading: Value, joining: Value, last: Value, tag: Value
    ) -> tuple[Value, Value]:
        """Gather the columns of words that were read.

        Return whether a column has come that was read to be joined, and the column.
        """
        bits = self.geometry.data_bits
        about = data.StructLayout({"valid": 1, "last": 1, "tag": range(self.tags)})
        asked = _kept(about)
        m.d.comb += [asked.valid.eq(reading), asked.last.eq(last), asked.tag.eq(tag)]
        for number in range(READ_CYCLES - 1):
            stage = _kept(about, name=f"asked_{number}")
            m.d.sync += stage.eq(asked)
            asked = stage
        column, word = _kept(bits), _kept(self.reply.shape())
        replied = _kept()
        m.d.comb += [self.replied.eq(replied), self.reply.eq(word)]
        m.d.sync += [column.eq(self.pins.dq_i), replied.eq(asked.valid & asked.last)]
        with m.If(asked.valid):
            m.d.sync += [
                word.tag.eq(asked.tag),
                word.data.eq(Cat(word.data[bits:], column)),
            ]
        joined = joining
        if not self.geometry.masked:
            under_way = _kept(READ_CYCLES - 1)
            m.d.sync += under_way.eq(Cat(joining, under_way[:-1]))
            joined = under_way[-1]
        return joined, column
