"""What a component takes of an FPGA, by synthesis alone: no place, no route."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.lib import wiring

from sat.fpga.wheels import run_yosys
from sat.rtl.verilog import emit
from sat.sim.build import BuildError

PERIOD_PS = 20_000
"""Period that single blocks are mapped for, to compare their areas: 50 MHz."""


@dataclass(frozen=True)
class Area:
    """Cells of a Lattice ECP5.

    Parameters
    ----------
    lut4, ff : int
        Look-up tables of four inputs; flip-flops.
    carry : int
        CCU2C cells, two LUTs each.
    distributed_ram : int
        DPR16X4 cells, 16 words of 4 bits in four LUTs each.
    dsp : int
        MULT18X18D multipliers.
    block_ram : int
        DP16KD blocks of 18 kbit.
    """

    lut4: int
    ff: int
    carry: int
    distributed_ram: int
    dsp: int
    block_ram: int

    @property
    def comb(self) -> int:
        """LUTs in all, as nextpnr counts them (TRELLIS_COMB)."""
        return self.lut4 + 2 * self.carry + 4 * self.distributed_ram

    def require(self, capacity: Mapping[str, int]) -> None:
        """Raise BuildError unless an FPGA has as much.

        Parameters
        ----------
        capacity : mapping of str to int
            COMB, FF, DSP and block RAM that it has.
        """
        need = {"COMB": self.comb, "FF": self.ff, "DSP": self.dsp, "block RAM": self.block_ram}
        over = [
            f"{need[what]:,} of {there:,} {what}"
            for what, there in capacity.items()
            if need[what] > there
        ]
        if over:
            raise BuildError(
                f"the design does not fit the FPGA, it needs {' and '.join(over)}: make the array "
                "or the memory smaller"
            )


_CELLS = {
    "LUT4": "lut4",
    "TRELLIS_FF": "ff",
    "CCU2C": "carry",
    "TRELLIS_DPR16X4": "distributed_ram",
    "MULT18X18D": "dsp",
    "DP16KD": "block_ram",
}


def area_of(cells: Mapping[str, int]) -> Area:
    """Return the area of cells, given how many there are of each type."""
    return Area(**{field: cells.get(cell, 0) for cell, field in _CELLS.items()})


def ecp5_area(component: wiring.Component, period_ps: int = PERIOD_PS) -> Area:
    """Return what a component takes of an ECP5, flat and by itself.

    Parameters
    ----------
    component : wiring.Component
    period_ps : int
        Period to map for, in ps.

    Raises
    ------
    sat.sim.build.BuildError
        If Yosys is missing or fails.
    """
    return area_of(
        cells_of(component, f"scratchpad -set abc9.D {period_ps}", "synth_ecp5 -top top")
    )


def cells_of(
    component: wiring.Component, *commands: str, distributed_ram: bool = False
) -> dict[str, int]:
    """Return how many cells of each type Yosys' commands make of a component.

    Parameters
    ----------
    component : wiring.Component
    commands : str
        Between reading it and counting.
    distributed_ram : bool
        As `sat.rtl.verilog.emit` has it.

    Raises
    ------
    sat.sim.build.BuildError
        If Yosys is missing or fails.
    """
    script = ("read_verilog top.v", *commands, "tee -q -o area.json stat -json")
    text = emit(component, distributed_ram=distributed_ram)
    made = run_yosys({"top.v": text}, script, "area.json")
    cells: dict[str, int] = json.loads(made.read_text())["design"]["num_cells_by_type"]
    return cells
