"""A chip that keeps to its data sheet, and tells the first rule that its controller breaks.

For simulation, at the pins. Ages of commands are counted in cycles of its own clock and compared in
nanoseconds with the data sheet's numbers (`sat.fpga.sdram.chip`).
"""

from __future__ import annotations

import math
from typing import Any

from amaranth import *
from amaranth.hdl import Instance
from amaranth.lib import enum, memory, wiring
from amaranth.lib.wiring import In

from sat.fpga.sdram import chip
from sat.fpga.sdram.chip import CAS_LATENCY, Command, PinSignature
from sat.fpga.sdram.geometry import Geometry
from sat.rtl.verilog import VerilogPlatform

GARBAGE = 0xBAD0BAD0
"""On the wires while nobody drives them."""

_CELLS = """
module sdram_cells #(parameter BITS = 1, LANES = 2) (
  input clk, input [BITS-1:0] address, input [LANES-1:0] lanes,
  input [8*LANES-1:0] given, output [8*LANES-1:0] stored
);
  reg [8*LANES-1:0] cells [0:(1 << BITS) - 1];
  assign stored = cells[address];
  for (genvar k = 0; k < LANES; k = k + 1)
    always @(posedge clk) if (lanes[k]) cells[address][8*k +: 8] <= given[8*k +: 8];
endmodule
"""
"""The chip's columns as Verilog, zeros at first: simulators clear them."""


class Rule(enum.Enum, shape=5):
    """What a controller did first that it must not."""

    NONE = 0
    POWER_UP = 1
    """A command before the chip was powered long enough, or with CKE low."""
    UNKNOWN_COMMAND = 2
    NOT_READY = 3
    """ACTIVATE, READ or WRITE before all banks were closed, refreshed and the mode set."""
    MODE = 4
    """A mode that this model has not: other than bursts of one column after two cycles."""
    BANK_OPEN = 5
    """ACTIVATE of an open bank; REFRESH or MODE with any bank open."""
    BANK_CLOSED = 6
    """READ or WRITE in a closed bank."""
    ROW_CYCLE = 7
    ROW = 8
    ROW_MOST = 9
    ROW_TO_COLUMN = 10
    PRECHARGE = 11
    BANK_TO_BANK = 12
    WRITE_RECOVERY = 13
    MODE_CYCLES = 14
    REFRESH_LATE = 15
    CONTENTION = 16
    """Both sides drive the wires, or neither has let go of them for a cycle."""
    AUTO_PRECHARGE = 17
    """READ or WRITE with A10 high."""


class SdramChip(wiring.Component):
    """The chip.

    Its clock is the domain ``sdram``: the pins' clock, half a cycle behind the controller's.

    Parameters
    ----------
    clock_hz : float
    geometry : Geometry, optional
    powered : bool
        It had its power long ago, so that simulations need not wait for it.

    Members
    -------
    pins : ``In(PinSignature)``
    broken : ``Out(Rule)``
        The first rule that was broken, for good.
    """

    def __init__(
        self, clock_hz: float, geometry: Geometry | None = None, *, powered: bool = False
    ) -> None:
        self.clock_hz, self.geometry, self.powered = clock_hz, geometry or Geometry(), powered
        super().__init__({"pins": In(PinSignature(self.geometry)), "broken": wiring.Out(Rule)})

    def _age(self, m: Module, name: str, ns: float, start: bool = False) -> Signal:
        """Return the cycles since something happened, as far as they matter: reset it to 1."""
        most = math.ceil(ns * self.clock_hz / 1e9) + 2
        age = Signal(range(most + 1), name=name, init=1 if start else most)
        m.d.sdram += age.eq(Mux(age == most, most, age + 1))
        return age

    def _least(self, age: Signal, ns: float, cycles: int = 0) -> Any:
        """Return whether it is at least as long ago."""
        return age >= max(cycles, math.ceil(ns * self.clock_hz / 1e9 - 1e-9))

    def elaborate(self, platform):
        m = Module()
        pins, shape = self.pins, self.geometry
        banks = range(1 << shape.banks)
        powered = self._age(m, "powered", chip.POWER_UP_NS, start=not self.powered)
        moded = self._age(m, "moded", 1e9 * chip.MODE_CYCLES / self.clock_hz)
        refreshed = self._age(m, "refreshed", chip.ROW_CYCLE_NS)
        activated = self._age(m, "activated", 1e9 * chip.BANK_TO_BANK_CYCLES / self.clock_hz)
        opening = [self._age(m, f"opening_{n}", chip.ROW_MOST_NS) for n in banks]
        closing = [self._age(m, f"closing_{n}", chip.PRECHARGE_NS) for n in banks]
        wrote = [
            self._age(m, f"wrote_{n}", max(chip.WRITE_NS, 1e9 * chip.WRITE_CYCLES / self.clock_hz))
            for n in banks
        ]
        opened = [Signal(name=f"open_{n}") for n in banks]
        row = Array(Signal(shape.rows, name=f"row_{n}") for n in banks)
        closed_all, mode_set, refreshes = Signal(), Signal(), Signal(range(chip.REFRESHES + 1))

        def need(condition: Any, rule: Rule) -> None:
            with m.If(~condition & (self.broken == Rule.NONE)):
                m.d.sdram += self.broken.eq(rule)

        def closable(number: int) -> None:
            need(self._least(opening[number], chip.ROW_NS), Rule.ROW)
            need(self._least(wrote[number], chip.WRITE_NS, chip.WRITE_CYCLES), Rule.WRITE_RECOVERY)

        self._refreshing(m, need)
        cell = Cat(pins.a[: shape.columns], pins.ba, row[pins.ba])
        lanes, stored = Signal(shape.lanes), Signal(shape.data_bits)
        m.submodules.cells = self._cells(platform, cell, lanes, pins.dq_o, stored)
        coming = Signal(CAS_LATENCY)
        values = [Signal(shape.data_bits, name=f"value_{n}") for n in range(CAS_LATENCY)]
        reading = pins.command == Command.READ
        m.d.sdram += coming.eq(Cat(reading, coming[:-1]))
        for value, before in zip(values, [stored, *values], strict=False):
            m.d.sdram += value.eq(before)
        m.d.comb += pins.dq_i.eq(Mux(coming[-1], values[-1], GARBAGE))
        let_go = Signal()  # the chip drove the wires in the cycle before
        m.d.sdram += let_go.eq(coming[-1])
        need(~(pins.dq_oe & (coming[-1] | let_go)), Rule.CONTENTION)

        awake = self._least(powered, chip.POWER_UP_NS) & pins.cke
        idle = (pins.command == Command.NOP) | pins.command.as_value()[3]  # or not selected
        with m.If(~idle):
            need(awake, Rule.POWER_UP)
            need(self._least(moded, 0, chip.MODE_CYCLES), Rule.MODE_CYCLES)
            need(self._least(refreshed, chip.ROW_CYCLE_NS), Rule.ROW_CYCLE)
        for number in banks:
            with m.If(opened[number]):
                most = int(chip.ROW_MOST_NS * self.clock_hz / 1e9)
                need(opening[number] <= most, Rule.ROW_MOST)
        ready = closed_all & mode_set & (refreshes == chip.REFRESHES)
        with m.Switch(pins.command):
            with m.Case(Command.MODE):
                need(~Cat(*opened).any(), Rule.BANK_OPEN)
                need((pins.a == chip.MODE) & (pins.ba == 0), Rule.MODE)
                for number in banks:
                    need(self._least(closing[number], chip.PRECHARGE_NS), Rule.PRECHARGE)
                m.d.sdram += [mode_set.eq(1), moded.eq(1)]
            with m.Case(Command.REFRESH):
                need(~Cat(*opened).any(), Rule.BANK_OPEN)
                need(closed_all, Rule.NOT_READY)
                for number in banks:
                    need(self._least(closing[number], chip.PRECHARGE_NS), Rule.PRECHARGE)
                    need(self._least(opening[number], chip.ROW_CYCLE_NS), Rule.ROW_CYCLE)
                m.d.sdram += refreshed.eq(1)
                with m.If(refreshes != chip.REFRESHES):
                    m.d.sdram += refreshes.eq(refreshes + 1)
            with m.Case(Command.PRECHARGE):
                for number in banks:
                    with m.If(opened[number] & (pins.a[10] | (pins.ba == number))):
                        closable(number)
                        m.d.sdram += [opened[number].eq(0), closing[number].eq(1)]
                with m.If(pins.a[10]):
                    m.d.sdram += closed_all.eq(1)
                    m.d.sdram += [closing[number].eq(1) for number in banks]
            with m.Case(Command.ACTIVATE):
                need(ready, Rule.NOT_READY)
                need(
                    self._least(activated, chip.BANK_TO_BANK_NS, chip.BANK_TO_BANK_CYCLES),
                    Rule.BANK_TO_BANK,
                )
                m.d.sdram += [activated.eq(1), row[pins.ba].eq(pins.a)]
                with m.Switch(pins.ba):
                    for number in banks:
                        with m.Case(number):
                            need(~opened[number], Rule.BANK_OPEN)
                            need(self._least(closing[number], chip.PRECHARGE_NS), Rule.PRECHARGE)
                            need(self._least(opening[number], chip.ROW_CYCLE_NS), Rule.ROW_CYCLE)
                            m.d.sdram += [opened[number].eq(1), opening[number].eq(1)]
            with m.Case(Command.READ, Command.WRITE):
                need(~pins.a[10], Rule.AUTO_PRECHARGE)
                with m.Switch(pins.ba):
                    for number in banks:
                        with m.Case(number):
                            need(opened[number], Rule.BANK_CLOSED)
                            need(
                                self._least(opening[number], chip.ROW_TO_COLUMN_NS),
                                Rule.ROW_TO_COLUMN,
                            )
                            with m.If(pins.command == Command.WRITE):
                                need(pins.dq_oe, Rule.CONTENTION)
                                m.d.comb += lanes.eq(~pins.dqm if shape.masked else ~0)
                                m.d.sdram += wrote[number].eq(1)
            with m.Default():
                need(idle, Rule.UNKNOWN_COMMAND)
        return m

    def _cells(
        self, platform: Any, address: Value, lanes: Value, given: Value, stored: Value
    ) -> Elaboratable | Instance:
        """Return the submodule that holds the columns: bytes of ``given`` by ``lanes``."""
        bits, shape = self.geometry.address_bits, self.geometry
        if isinstance(platform, VerilogPlatform):
            # Amaranth writes a memory's first contents down, word by word: 16 million lines.
            platform.leaves["sdram_cells"] = _CELLS
            return Instance(
                "sdram_cells",
                p_BITS=bits,
                p_LANES=shape.lanes,
                i_clk=ClockSignal("sdram"),
                i_address=address,
                i_lanes=lanes,
                i_given=given,
                o_stored=stored,
            )
        m = Module()
        m.submodules.memory = cells = memory.Memory(shape=shape.data_bits, depth=1 << bits, init=[])
        write, read = (
            cells.write_port(domain="sdram", granularity=8),
            cells.read_port(domain="comb"),
        )
        m.d.comb += [
            write.addr.eq(address),
            write.data.eq(given),
            write.en.eq(lanes),
            read.addr.eq(address),
            stored.eq(read.data),
        ]
        return m

    def _refreshing(self, m: Module, need: Any) -> None:
        """Refreshes owed: one more with each part of 64 ms, one less with each that is done."""
        every = int(chip.REFRESH_NS * self.clock_hz / 1e9 / self.geometry.refreshes)
        since, owed = Signal(range(every)), Signal(range(chip.POSTPONED + 3))
        begun = Signal()
        done = self.pins.command == Command.REFRESH
        turn = begun & (since == every - 1)
        m.d.sdram += since.eq(Mux(turn | ~begun, 0, since + 1))
        with m.If(self.pins.command == Command.MODE):
            m.d.sdram += begun.eq(1)
        with m.If(turn & ~done):
            m.d.sdram += owed.eq(owed + 1)
        with m.Elif(~turn & done & (owed != 0)):
            m.d.sdram += owed.eq(owed - 1)
        need(owed <= chip.POSTPONED, Rule.REFRESH_LATE)
