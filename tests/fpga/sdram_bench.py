"""A controller or a memory with the chip's model at its pins, in Amaranth's simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from amaranth import *
from amaranth.lib import wiring
from amaranth.sim import Simulator

from sat.fpga.sdram.geometry import Geometry
from sat.fpga.sdram.model import Rule, SdramChip

Testbench = Callable[[Any], Any]

SMALL = Geometry(rows=11, columns=4, refreshes=2048)
WIDE = replace(SMALL, data_bits=32, masked=False)
"""As wide as a word of 32 bits, and without masks: as a Colorlight i9 has its chip."""


class WithChip(Elaboratable):
    """A component whose ``pins`` meet a chip, half a cycle later."""

    def __init__(
        self,
        component: wiring.Component | None,
        clock_hz: float,
        geometry: Geometry,
        powered: bool = False,
    ):
        self.component, self.clock_hz = component, clock_hz
        self.chip = SdramChip(clock_hz, geometry, powered=powered)
        self.reset = Signal()

    def elaborate(self, platform):
        m = Module()
        m.domains.sdram = ClockDomain(reset_less=True)
        m.submodules.chip = self.chip
        m.d.comb += ClockSignal("sdram").eq(~ClockSignal("sync"))
        if self.component is not None:
            m.submodules.component = ResetInserter(self.reset)(self.component)
            wiring.connect(m, self.component.pins, self.chip.pins)
        return m


def simulate(
    bench: WithChip, *testbenches: Testbench, background: Sequence[Testbench] = ()
) -> None:
    """Run testbenches to their ends, and others meanwhile; no rule of the chip may be broken."""

    async def watch(ctx: Any) -> None:
        async for *_, broken in ctx.tick().sample(bench.chip.broken):
            assert broken == Rule.NONE

    run(bench, *testbenches, background=[watch, *background])


def run(bench: WithChip, *testbenches: Testbench, background: Sequence[Testbench] = ()) -> None:
    """Run testbenches, whatever the chip finds."""
    simulator = Simulator(bench)
    simulator.add_clock(1 / bench.clock_hz)
    for testbench in testbenches:
        simulator.add_testbench(testbench)
    for testbench in background:
        simulator.add_testbench(testbench, background=True)
    simulator.run()
