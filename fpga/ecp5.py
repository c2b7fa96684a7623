"""A board's gateware at the pins of an ECP5: clock, reset, link, LEDs, SDRAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth import *
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import Component
from amaranth.vendor import LatticeECP5Platform

from sat.fpga.pll import Pll
from sat.rtl.verilog import plain_names


@dataclass(frozen=True)
class Pins:
    """Which of a platform's resources gateware uses, beside its clock, ``uart`` and ``sdram``.

    Parameters
    ----------
    platform : type
        The board as amaranth-boards describes it.
    leds : int
        LEDs that it has, of a board's eight.
    reset : str, optional
        A button that resets while pressed.
    high : tuple of (str, str)
        Parts of resources that are kept high.
    """

    platform: type[LatticeECP5Platform]
    leds: int
    reset: str | None = None
    high: tuple[tuple[str, str], ...] = ()


class Ecp5Top(Elaboratable):
    """A board's gateware at its pins; the clock is the crystal's or a PLL's.

    Parameters
    ----------
    board : Component
        With ``rx``, ``tx`` and ``leds``; and ``sdram``, if it uses that.
    pins : Pins
    clock_hz : int
        The crystal's frequency, or one that a `Pll` makes of it.

    Raises
    ------
    ValueError
        No PLL makes that frequency.
    """

    def __init__(self, board: Component, pins: Pins, clock_hz: int) -> None:
        self.board, self.pins = board, pins
        crystal_hz = round(pins.platform().default_clk_frequency)
        self.pll = None if clock_hz == crystal_hz else Pll.of(crystal_hz, clock_hz)

    def elaborate(self, platform):
        m = Module()
        m.submodules.board = board = self.board

        def pin(direction: str, name: str, number: int = 0, part: str | None = None):
            """Return a buffer of a pin, by its resource's name and, there, the part's."""
            port = ports[name, number]
            buffer = io.Buffer(direction, port if part is None else getattr(port, part))
            m.submodules[f"{part or name}_{number}"] = buffer
            return buffer

        crystal, button = platform.default_clk, self.pins.reset
        leds = board.leds[: self.pins.leds]
        names = [(name, 0) for name in (crystal, button, "uart") if name is not None]
        names += [(name, 0) for name, _ in self.pins.high]
        names += [("led", number) for number in range(len(leds))]
        ports = {(name, n): platform.request(name, n, dir="-") for name, n in names}
        clock = pin("i", crystal).i
        pressed = C(0) if button is None else pin("i", button).i
        m.domains.sync = ClockDomain()
        locked = Signal(init=1)
        if self.pll is None:
            m.d.comb += ClockSignal().eq(clock)
        else:
            m.submodules.pll = self.pll.instance(clock, ClockSignal(), locked)
        m.submodules.reset = ResetSynchronizer(~locked | pressed)
        m.d.comb += [
            board.rx.eq(pin("i", "uart", part="rx").i),
            pin("o", "uart", part="tx").o.eq(board.tx),
        ]
        m.d.comb += [pin("o", name, part=part).o.eq(1) for name, part in self.pins.high]
        for number, led in enumerate(leds):
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
        outputs = {name: levels[bit] for bit, name in enumerate(("we", "cas", "ras", "cs"))}
        outputs |= {"clk_en": pins.cke, "ba": pins.ba, "a": pins.a, "dqm": pins.dqm}
        for name, value in outputs.items():
            # What the board ties to a level has no pin: to select the chip, CKE, masks.
            if hasattr(ports, name):
                m.d.comb += buffer("o", name).o.eq(value)
        wires = buffer("io", "dq")
        m.d.comb += [wires.o.eq(pins.dq_o), wires.oe.eq(pins.dq_oe), pins.dq_i.eq(wires.i)]
        m.submodules.sdram_clk = clock = io.DDRBuffer("o", ports.clk)
        m.d.comb += [clock.o[0].eq(0), clock.o[1].eq(1)]


def build_files(board: Component, pins: Pins, clock_hz: int) -> dict[str, str]:
    """Return what Yosys and nextpnr are given for a board's gateware.

    Parameters
    ----------
    board, pins, clock_hz
        As for `Ecp5Top`.

    Returns
    -------
    dict of str
        ``top.il`` and ``top.lpf``: the design, and its pins.

    Raises
    ------
    ValueError
        As `Ecp5Top`.
    """
    top = Ecp5Top(board, pins, clock_hz)
    plan = pins.platform(toolchain="Trellis").prepare(top, "top", emit_src=False)
    return {"top.il": plain_names(plan.files["top.il"]), "top.lpf": plan.files["top.lpf"]}
