"""What a data sheet says of a 256 Mbit SDRAM of 16 bits: geometry, commands, rules of time.

Boards of one kind come with different chips, so each rule is the slower of W9825G6JH-75 (Winbond,
revision A04, table 9.5) and AS4C16M16SA-7 (Alliance Memory, revision 3.0, table 16).
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import require

DATA_BITS = 16
POWER_UP_NS = 200_000
"""From a stable clock to the first command."""
REFRESH_NS = 64_000_000
"""In which every row is refreshed once."""
ROW_CYCLE_NS = 65
"""ACTIVATE or REFRESH to ACTIVATE or REFRESH (tRC, tRFC)."""
ROW_NS, ROW_MOST_NS = 45, 100_000
"""ACTIVATE to PRECHARGE (tRAS)."""
ROW_TO_COLUMN_NS = 21
"""ACTIVATE to READ or WRITE (tRCD)."""
PRECHARGE_NS = 21
"""PRECHARGE to ACTIVATE or REFRESH (tRP)."""
BANK_TO_BANK_NS, BANK_TO_BANK_CYCLES = 14, 2
"""ACTIVATE of a bank to that of another (tRRD): the longer of the two."""
WRITE_NS, WRITE_CYCLES = 14, 2
"""WRITE to PRECHARGE (tWR), likewise."""
MODE_CYCLES = 2
"""MODE to any command (tMRD)."""
REFRESHES = 8
"""REFRESH commands of a start."""
POSTPONED = 8
"""REFRESH commands that may be owed."""
SLOW_CL2_HZ = 100_000_000
"""Highest clock at which data come two cycles after their command."""


class Command(enum.Enum, shape=4):
    """Levels of cs_n, ras_n, cas_n, we_n, first bit last."""

    MODE = 0b0000
    REFRESH = 0b0001
    PRECHARGE = 0b0010
    ACTIVATE = 0b0011
    WRITE = 0b0100
    READ = 0b0101
    NOP = 0b0111


ALL_BANKS = 1 << 10
"""Address bit of PRECHARGE: all banks. With READ and WRITE, auto precharge: it is not used."""
CAS_LATENCY = 2
MODE = CAS_LATENCY << 4
"""Mode register: bursts of one column, data after two cycles."""


@dataclass(frozen=True)
class Geometry:
    """Address bits of a chip.

    Parameters
    ----------
    rows, columns, banks : int
        Rows have more than 10: their bit 10 says something else with other commands.

    Raises
    ------
    ValueError
        There are too few.
    """

    rows: int = 13
    columns: int = 9
    banks: int = 2

    def __post_init__(self) -> None:
        least = {"rows": 11, "columns": 1, "banks": 1}
        for name, bits in least.items():
            value = getattr(self, name)
            require(value >= bits, f"{name}={value}: must be {bits} address bits or more")
        require(self.columns <= 10, f"columns={self.columns}: must be 10 address bits or fewer")

    @property
    def address_bits(self) -> int:
        """Bits of a column's number in the whole chip."""
        return self.rows + self.columns + self.banks

    @property
    def size(self) -> int:
        """Bytes."""
        return DATA_BITS // 8 << self.address_bits


def cycles(ns: float, clock_hz: float) -> int:
    """Return the clock cycles that last at least ``ns`` nanoseconds."""
    whole = int(ns * clock_hz // 1_000_000_000)
    return whole + (whole * 1_000_000_000 < ns * clock_hz)


@dataclass(frozen=True)
class Cycles:
    """Least distances between commands, in cycles of a clock; see the constants of this module."""

    power_up: int
    refresh_every: int
    row_cycle: int
    row: int
    row_to_column: int
    precharge: int
    write: int

    @classmethod
    def at(cls, clock_hz: float, geometry: Geometry) -> Cycles:
        """Return the rules at a clock.

        Raises
        ------
        ValueError
            The clock is too fast for the CAS latency, or too slow to refresh.
        """
        require(
            1_000_000 <= clock_hz <= SLOW_CL2_HZ,
            f"clock_hz={clock_hz:g}: an SDRAM that answers after {CAS_LATENCY} cycles takes 1 MHz "
            f"to {SLOW_CL2_HZ / 1e6:g} MHz; choose a clock between",
        )
        return cls(
            power_up=cycles(POWER_UP_NS, clock_hz),
            # Early rather than late: a command under way is ended first.
            refresh_every=int(REFRESH_NS * clock_hz / 1e9 / (1 << geometry.rows)) - 16,
            row_cycle=cycles(ROW_CYCLE_NS, clock_hz),
            row=cycles(ROW_NS, clock_hz),
            row_to_column=cycles(ROW_TO_COLUMN_NS, clock_hz),
            precharge=cycles(PRECHARGE_NS, clock_hz),
            write=max(WRITE_CYCLES, cycles(WRITE_NS, clock_hz)),
        )


class PinSignature(wiring.Signature):
    """Pins of a chip, from the controller's side; its clock is made beside them."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(
            {
                "command": Out(Command, init=Command.NOP),
                "cke": Out(1),
                "ba": Out(geometry.banks),
                "a": Out(geometry.rows),
                "dqm": Out(DATA_BITS // 8),
                "dq_o": Out(DATA_BITS),
                "dq_oe": Out(1),
                "dq_i": In(DATA_BITS),
            }
        )
