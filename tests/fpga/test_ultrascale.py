"""Cells of an UltraScale+ as LUTs, flip-flops, multipliers and block RAMs."""

from __future__ import annotations

from sat.fpga.ultrascale import UltraArea, area_of, ultrascale_area
from sat.rtl.fp.adder import Adder


def test_cells_are_counted_as_the_luts_that_they_take():
    """By hand, of each kind; a carry chain takes no LUT of its own."""
    cells = {
        "LUT1": 1, "LUT6": 2, "INV": 3, "SRL16E": 4, "RAM32M16": 2, "RAM64X1D": 1, "FDRE": 5,
        "FDSE": 1, "DSP48E2": 2, "RAMB36E2": 1, "RAMB18E2": 3, "CARRY4": 9, "MUXF7": 9,
    }  # fmt: skip
    area = area_of(cells)
    assert area == UltraArea(lut=6, memory_lut=22, ff=6, dsp=2, ramb36=2.5)
    assert area.luts == 28
    assert area * 2 - area == area + UltraArea()


def test_an_adder_goes_through_yosys():
    area = ultrascale_area(Adder(4))
    assert 400 < area.luts < 450 and area.ff == 173 and area.dsp == 0
