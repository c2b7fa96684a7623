"""The pins of a ULX3S with an LFE5U-85F: a reset button, the USB bridge, eight LEDs, SDRAM."""

from __future__ import annotations

from amaranth.lib.wiring import Component
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from sat.fpga import ecp5

PINS = ecp5.Pins(
    ULX3S_85F_Platform,
    leds=8,
    reset="button_fire",
    # Low, it has the ESP32 beside the FPGA load a bitstream of its own.
    high=(("esp32", "gpio0"),),
)


def build_files(board: Component, clock_hz: int) -> dict[str, str]:
    """Return what tools are given for a board's gateware (`sat.fpga.ecp5.build_files`)."""
    return ecp5.build_files(board, PINS, clock_hz)
