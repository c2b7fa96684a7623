"""What data sheets say of SDRAMs: commands, rules of time.

Each rule is the slowest of the chips that boards come with: W9825G6JH-75 (Winbond, revision A04,
table 9.5), AS4C16M16SA-7 (Alliance Memory, revision 3.0, table 16), and M12L64322A (ESMT, revision
2.3: tWR of its grade -7T, and what LiteDRAM's ``litedram/modules.py`` has of it: tRP, tRCD and tWR
15 ns, tRFC 55, tRAS 40, tRRD 10).
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.sdram.geometry import Geometry
from sat.rtl.config import require

POWER_UP_NS = 200_000
"""From a stable clock to the first command."""
REFRESH_NS = 64_000_000
"""In which there are `Geometry.refreshes`."""
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
            refresh_every=int(REFRESH_NS * clock_hz / 1e9 / geometry.refreshes) - 16,
            row_cycle=cycles(ROW_CYCLE_NS, clock_hz),
            row=cycles(ROW_NS, clock_hz),
            row_to_column=cycles(ROW_TO_COLUMN_NS, clock_hz),
            precharge=cycles(PRECHARGE_NS, clock_hz),
            write=max(WRITE_CYCLES, cycles(WRITE_NS, clock_hz)),
        )


class PinSignature(wiring.Signature):
    """Pins of a chip, from the controller's side; its clock is made beside them.

    Where ``dqm`` is not wired (`Geometry.masked`), it stays 0.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(
            {
                "command": Out(Command, init=Command.NOP),
                "cke": Out(1),
                "ba": Out(geometry.banks),
                "a": Out(geometry.rows),
                "dqm": Out(geometry.lanes),
                "dq_o": Out(geometry.data_bits),
                "dq_oe": Out(1),
                "dq_i": In(geometry.data_bits),
            }
        )
