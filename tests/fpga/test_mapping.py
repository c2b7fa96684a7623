"""Logic is mapped with delays of block RAM and multipliers; what tells of them is gone after."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from amaranth import *
from amaranth.back import rtlil
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.mapping import mapping_files, mapping_script
from sat.fpga.wheels import run_yosys
from sat.rtl.fp.adder import Adder
from sat.rtl.verilog import plain_names

CLOCK_HZ = 50_000_000


class ReadAndMultiply(wiring.Component):
    """A word of block RAM, and what it makes of it."""

    def __init__(self) -> None:
        super().__init__({"address": In(9), "word": In(18), "write": In(1), "o": Out(36)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.bank = bank = memory.Memory(shape=18, depth=512, init=[3, 1, 4, 1, 5])
        write, read = bank.write_port(), bank.read_port()
        factor = Signal(18)
        m.d.comb += [
            write.addr.eq(self.address),
            write.data.eq(self.word),
            write.en.eq(self.write),
            read.addr.eq(self.address),
        ]
        m.d.sync += [factor.eq(self.word), self.o.eq(read.data * factor)]
        return m


def cells(script: tuple[str, ...], sources: dict[str, str]) -> list[dict]:
    made = json.loads(run_yosys(sources, script, "top.json").read_text())
    return [cell for cell in made["modules"]["top"]["cells"].values() if cell["type"][0] != "$"]


@pytest.fixture(scope="module")
def both():
    """Return the cells by the project's way of mapping, and by Yosys' own."""
    text = plain_names(rtlil.convert(ReadAndMultiply(), name="top"))
    ours = cells(mapping_script(CLOCK_HZ, "top.json"), {"top.il": text, **mapping_files()})
    plain = ("read_rtlil top.il", "synth_ecp5 -top top -json top.json")
    return ours, cells(plain, {"top.il": text})


@pytest.mark.parametrize("kind", ["DP16KD", "MULT18X18D"])
def test_slow_cells_are_those_that_yosys_makes(both, kind):
    """Parameters, contents, connected and constant pins: all but the names of nets."""

    def seen(netlist):
        return [
            (
                cell["parameters"],
                {
                    pin: [bit if isinstance(bit, str) else "net" for bit in bits]
                    for pin, bits in cell["connections"].items()
                },
            )
            for cell in netlist
            if cell["type"] == kind
        ]

    ours, plain = (seen(netlist) for netlist in both)
    assert len(ours) == 1
    assert ours == plain


def test_no_box_is_left(both):
    ours, plain = (Counter(cell["type"] for cell in netlist) for netlist in both)
    assert ours == plain


def test_a_slower_clock_takes_fewer_luts():
    text = plain_names(rtlil.convert(Adder(4), name="top"))
    slow, fast = (
        Counter(
            cell["type"]
            for cell in cells(mapping_script(hz, "top.json"), {"top.il": text, **mapping_files()})
        )["LUT4"]
        for hz in (25_000_000, 250_000_000)
    )
    assert slow < 0.9 * fast
