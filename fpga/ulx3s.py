"""The ULX3S with an LFE5U-85F: pins, clock and reset around a board's gateware."""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import Component
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from sat.fpga.pll import Pll
from sat.rtl.verilog import plain_names

CRYSTAL_HZ = 25_000_000
"""The oscillator on the board."""

NAME = "ulx3s-85f"
"""What commands call it."""
LOADER_NAME = "ulx3s"
"""What openFPGALoader calls it."""
NEXTPNR_OPTIONS = ("--85k", "--package", "CABGA381", "--speed", "6")
CAPACITY = {"COMB": 83_640, "FF": 83_640, "DSP": 156, "block RAM": 208}
"""What its FPGA has."""


class Ulx3sTop(Elaboratable):
    """A board's gateware at its pins: 25 MHz or a PLL, a reset button, the USB bridge, eight LEDs.

    Parameters
    ----------
    board : Component
        With ``rx``, ``tx`` and ``leds``; and ``sdram``, if it uses that.
    clock_hz : int
        The crystal's frequency, or one that a `Pll` makes of it.

    Raises
    ------
    ValueError
        No PLL makes that frequency.
    """

    def __init__(self, board: Component, clock_hz: int) -> None:
        self.board = board
        self.pll = None if clock_hz == CRYSTAL_HZ else Pll.of(CRYSTAL_HZ, clock_hz)

    def elaborate(self, platform):
        m = Module()
        m.submodules.board = board = self.board

        def pin(direction: str, name: str, number: int = 0, part: str | None = None):
            """Return a buffer of a pin, by its resource's name and, there, the part's."""
            port = ports[name, number]
            buffer = io.Buffer(direction, port if part is None else getattr(port, part))
            m.submodules[f"{part or name}_{number}"] = buffer
            return buffer

        names = [(name, 0) for name in ("clk25", "button_fire", "uart", "esp32")]
        names += [("led", number) for number in range(len(board.leds))]
        ports = {(name, n): platform.request(name, n, dir="-") for name, n in names}
        crystal, button = pin("i", "clk25").i, pin("i", "button_fire").i
        m.domains.sync = ClockDomain()
        locked = Signal(init=1)
        if self.pll is None:
            m.d.comb += ClockSignal().eq(crystal)
        else:
            m.submodules.pll = self.pll.instance(crystal, ClockSignal(), locked)
        m.submodules.reset = ResetSynchronizer(~locked | button)
        m.d.comb += [
            board.rx.eq(pin("i", "uart", part="rx").i),
            pin("o", "uart", part="tx").o.eq(board.tx),
            # Low, it has the ESP32 beside the FPGA load a bitstream of its own.
            pin("o", "esp32", part="gpio0").o.eq(1),
        ]
        for number, led in enumerate(board.leds):
            m.d.comb += pin("o", "led", number).o.eq(led)
        if hasattr(board, "sdram"):
            self._sdram(m, board.sdram, platform.request("sdram", 0, dir="-"))
        return m

    def _sdram(self, m: Module, pins: Any, ports: Any) -> None:
        """Connect the SDRAM; it sees a clock half a cycle behind what its other pins show."""

        def buffer(direction: str, name: str) -> Any:
            made = io.Buffer(direction, getattr(ports, name))
            m.submodules[f"sdram_{name}"] = made
            return made

        # The ports of cs, ras, cas and we invert: what is asserted there is low at the pin.
        levels = ~pins.command.as_value()
        for bit, name in enumerate(("we", "cas", "ras", "cs")):
            m.d.comb += buffer("o", name).o.eq(levels[bit])
        for name, value in (
            ("clk_en", pins.cke),
            ("ba", pins.ba),
            ("a", pins.a),
            ("dqm", pins.dqm),
        ):
            m.d.comb += buffer("o", name).o.eq(value)
        wires = buffer("io", "dq")
        m.d.comb += [wires.o.eq(pins.dq_o), wires.oe.eq(pins.dq_oe), pins.dq_i.eq(wires.i)]
        m.submodules.sdram_clk = clock = io.DDRBuffer("o", ports.clk)
        m.d.comb += [clock.o[0].eq(0), clock.o[1].eq(1)]


def build_files(board: Component, clock_hz: int) -> dict[str, str]:
    """Return what Yosys and nextpnr are given for a board's gateware.

    Parameters
    ----------
    board, clock_hz
        As for `Ulx3sTop`.

    Returns
    -------
    dict of str
        ``top.il`` and ``top.lpf``: the design, and its pins.

    Raises
    ------
    ValueError
        As `Ulx3sTop`.
    """
    top = Ulx3sTop(board, clock_hz)
    plan = ULX3S_85F_Platform(toolchain="Trellis").prepare(top, "top", emit_src=False)
    return {"top.il": plain_names(plan.files["top.il"]), "top.lpf": plan.files["top.lpf"]}
