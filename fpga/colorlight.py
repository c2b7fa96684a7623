"""The pins of a Colorlight i9 v7.2 in its extension board: a debugger's serial port, a LED, SDRAM.

Pins of the module as wuxx/Colorlight-FPGA-Projects has them (``colorlight_i9_v7.2.md``), those of
the debugger's serial port as LiteX-Boards (``platforms/colorlight_i5.py``), for i5 and i9. The
SDRAM's CKE is tied high, its CS and DQM low.
"""

from __future__ import annotations

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.lib.wiring import Component
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.resources import LEDResources, SDRAMResource, UARTResource

from sat.fpga import ecp5

_LEVELS = Attrs(IO_TYPE="LVCMOS33")


class ColorlightI9Platform(LatticeECP5Platform):
    """The board, as amaranth-boards would have it."""

    device = "LFE5U-45F"
    package = "BG381"
    speed = "6"
    default_clk = "clk25"
    resources = (
        Resource("clk25", 0, Pins("P3", dir="i"), Clock(25e6), _LEVELS),
        *LEDResources(pins="L2", invert=True, attrs=Attrs(IO_TYPE="LVCMOS33", DRIVE="4")),
        UARTResource(0, rx="H18", tx="J17", attrs=Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP")),
        SDRAMResource(
            0,
            clk="B9", ras_n="B10", cas_n="A9", we_n="A10", ba="B11 C8",
            a="B13 C14 A16 A17 B16 B15 A14 A13 A12 A11 B12",
            dq="B6 A5 A6 A7 C7 B8 B5 A8 D8 D7 E8 D6 C6 D5 E7 C5 "
            "C10 D9 E11 D11 C11 D12 E9 C12 E14 C15 E13 D15 E12 B17 D14 D13",
            attrs=Attrs(PULLMODE="NONE", DRIVE="4", SLEWRATE="FAST", IO_TYPE="LVCMOS33"),
        ),
    )  # fmt: skip
    connectors = ()


PINS = ecp5.Pins(ColorlightI9Platform, leds=1)


def build_files(board: Component, clock_hz: int) -> dict[str, str]:
    """Return what tools are given for a board's gateware (`sat.fpga.ecp5.build_files`)."""
    return ecp5.build_files(board, PINS, clock_hz)
