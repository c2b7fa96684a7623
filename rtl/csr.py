"""The register map, and the AXI4-Lite slave that serves it.

`REGISTERS` is its one definition: hardware, host and documentation read it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.axi import AxiLiteSignature, Response
from sat.rtl.config import SatConfig

ADDRESS_BITS = 8
ID_VALUE = 0x53415431
"""Reads as "SAT1"."""
CONTROL_START = 1
CONTROL_RESET = 2


class Access(enum.Enum):
    """Who may write a register."""

    READ = 0
    """Nobody: the device does."""
    WRITE = 1
    """The host, while no program runs."""
    CONTROL = 2
    """The host, at any time; reads as 0."""


@dataclass(frozen=True)
class Register:
    """A 32-bit register.

    Parameters
    ----------
    name : str
        Halves of a 64-bit value are named ``…_LO`` and ``…_HI``.
    offset : int
        Byte offset.
    access : Access
    doc : str
    """

    name: str
    offset: int
    access: Access
    doc: str

    @property
    def word(self) -> int:
        """Which half of a 64-bit value this is: 0 low or only, 1 high."""
        return int(self.name.endswith("_HI"))


def _map() -> dict[str, Register]:
    table = [
        ("ID", Access.READ, f"{ID_VALUE:#x}"),
        ("CONFIG", Access.READ, "rows [7:0], cols [15:8], max_m [23:16], max_n [31:24]"),
        ("CONTROL", Access.CONTROL, "1: start the program; 2: stop and reset"),
        ("STATUS", Access.READ, "a `Status` (see the instruction set)"),
        ("ERROR_PC", Access.READ, "after an error: number of the instruction at fault"),
        ("PROGRAM_ADDRESS_LO", Access.WRITE, "byte address of the program, a multiple of 32"),
        ("PROGRAM_ADDRESS_HI", Access.WRITE, "high half of it"),
        ("PROGRAM_LENGTH", Access.WRITE, "instructions in the program, 1 to 2**24 - 1"),
        ("WINDOW_BASE_LO", Access.WRITE, "first byte address that programs may use"),
        ("WINDOW_BASE_HI", Access.WRITE, "high half of it"),
        ("WINDOW_SIZE_LO", Access.WRITE, "bytes that programs may use"),
        ("WINDOW_SIZE_HI", Access.WRITE, "high half of it"),
        ("CYCLES_LO", Access.READ, "cycles in which STATUS was RUNNING, for the last program"),
        ("CYCLES_HI", Access.READ, "high half of it"),
        ("BEATS_READ", Access.READ, "beats (of all data ports) that LOADs of the program read"),
        ("BEATS_WRITTEN", Access.READ, "beats that its STOREs wrote"),
        ("COMPUTE_CYCLES_LO", Access.READ, "cycles of it in which a MULTIPLY was under way"),
        ("COMPUTE_CYCLES_HI", Access.READ, "high half of it"),
        ("NON_FINITE", Access.READ, "gradients of it that a STORE found infinite or NaN"),
        ("SKIPPED", Access.READ, "UPDATEs of it that were skipped because of them"),
    ]
    return {
        name: Register(name, 4 * number, access, doc)
        for number, (name, access, doc) in enumerate(table)
    }


REGISTERS: dict[str, Register] = _map()


def parts(name: str) -> list[Register]:
    """Return a register, or the two halves of a 64-bit one, low half first.

    Raises
    ------
    KeyError
        There is no register ``name``.
    """
    if name in REGISTERS:
        return [REGISTERS[name]]
    return [REGISTERS[f"{name}_LO"], REGISTERS[f"{name}_HI"]]


class CsrBlock(wiring.Component):
    """Serve the registers over AXI4-Lite.

    One access at a time on each channel. An access to no register, a write to a read-only one
    or (CONTROL apart) while a program runs is answered with SLVERR and changes nothing. Writes
    take whole registers: strobes other than 1111 are answered with SLVERR.

    Members
    -------
    bus : ``In(AxiLiteSignature)``
    running : ``In(1)``
        A program runs.
    start, reset : ``Out(1)``
        CONTROL was written, for one cycle.
    values : one ``In(32)`` named ``r_<name>`` for each readable register of the device and one
        ``Out(32)`` for each that the host writes.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        members = {
            "bus": In(AxiLiteSignature(ADDRESS_BITS)),
            "running": In(1),
            "start": Out(1),
            "reset": Out(1),
        }
        for register in REGISTERS.values():
            if register.access is not Access.CONTROL:
                flow = In if register.access is Access.READ else Out
                members[f"r_{register.name.lower()}"] = flow(32)
        super().__init__(members)

    def value(self, name: str) -> Value:
        """Return a register's signal, or both halves of a 64-bit one."""
        return Cat(getattr(self, f"r_{register.name.lower()}") for register in parts(name))

    def elaborate(self, platform):
        m = Module()
        bus = self.bus

        # Writes: address and data may come in either order.
        address, has_address = Signal(ADDRESS_BITS), Signal()
        word, strobes, has_data = Signal(32), Signal(4), Signal()
        m.d.comb += [
            bus.awready.eq(~has_address & ~bus.bvalid),
            bus.wready.eq(~has_data & ~bus.bvalid),
        ]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address.eq(bus.awaddr), has_address.eq(1)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [word.eq(bus.wdata), strobes.eq(bus.wstrb), has_data.eq(1)]
        with m.If(bus.bvalid & bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(has_address & has_data):
            m.d.sync += [
                has_address.eq(0),
                has_data.eq(0),
                bus.bvalid.eq(1),
                bus.bresp.eq(Response.SLVERR),
            ]
            with m.Switch(address):
                for register in REGISTERS.values():
                    if register.access is Access.READ:
                        continue
                    allowed = strobes.all()
                    if register.access is Access.WRITE:
                        allowed &= ~self.running
                    with m.Case(register.offset), m.If(allowed):
                        m.d.sync += bus.bresp.eq(Response.OKAY)
                        if register.access is Access.WRITE:
                            m.d.sync += getattr(self, f"r_{register.name.lower()}").eq(word)
                        else:
                            m.d.comb += [
                                self.start.eq((word & CONTROL_START).any() & ~self.running),
                                self.reset.eq((word & CONTROL_RESET).any()),
                            ]

        m.d.comb += bus.arready.eq(~bus.rvalid)
        with m.If(bus.rvalid & bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(0), bus.rresp.eq(Response.SLVERR)]
            with m.Switch(bus.araddr):
                for register in REGISTERS.values():
                    with m.Case(register.offset):
                        m.d.sync += bus.rresp.eq(Response.OKAY)
                        if register.access is not Access.CONTROL:
                            source = getattr(self, f"r_{register.name.lower()}")
                            m.d.sync += bus.rdata.eq(source)
        return m
