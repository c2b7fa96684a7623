"""Modules told apart, and how long paths are: by hand, and of a block that goes through Yosys."""

from __future__ import annotations

import pytest
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.blocks import Blocks
from sat.fpga.estimate import BLOCK_RAM, CARRY, LUT, MULTIPLY, WIRE, Path, Paths, Step, paths_of
from sat.fpga.modules import Modules
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.verilog import emit
from sat.sim.build import BuildError

TEXT = """module top(a);
  leaf one (
    .a(a)
  );
  \\top.part  part (
    .a(a)
  );
endmodule

module \\top.part (a);
  leaf one (
    .a(a)
  );
  leaf two (
    .a(a)
  );
  LUT2 free (
    .a(a)
  );
endmodule

module leaf(a);
endmodule
"""


def test_modules_are_told_apart_and_counted():
    modules = Modules.of(TEXT)
    assert list(modules.texts) == ["top", "top.part", "leaf"]
    assert "".join(modules.texts.values()) == TEXT.replace("\n\n", "\n")
    assert modules.below("top.part") == ["leaf", "top.part"]
    assert modules.below("top") == ["leaf", "top", "top.part"]
    assert modules.count("leaf", "top") == 3 and modules.count("top.part", "top") == 1
    apart = frozenset({"top.part"})
    assert modules.count("leaf", "top", apart) == 1
    assert modules.below("top", apart) == ["leaf", "top", "top.part"]
    assert modules.below("top.part", apart) == ["leaf", "top.part"]


def cell(kind, outputs=("O", "Q", "CO", "P", "DOA", "DOUTADOUT"), parameters=None, **wires):
    ways = {port: "output" if port in outputs else "input" for port in wires}
    return {
        "type": kind, "connections": wires, "port_directions": ways,
        "parameters": parameters or {},
    }  # fmt: skip


def module(cells, ports=None, **names):
    nets = {name: {"hide_name": 0, "bits": bits} for name, bits in names.items()}
    made = {name: {"direction": way, "bits": bits} for name, (way, bits) in (ports or {}).items()}
    return {"cells": dict(enumerate(cells)), "netnames": nets, "ports": made}


def ff(d, q):
    return cell("FDRE", C=[1], CE=["1"], D=[d], Q=[q], R=["0"])


def test_levels_add_up_from_register_to_register():
    found = paths_of(
        module(
            [ff(9, 2), cell("LUT2", I0=[2], I1=["1"], O=[3]), cell("LUT1", I0=[3], O=[9])],
            here=[2],
        )
    )
    (path,) = found.inside
    assert path == Path(pytest.approx(3 * WIRE + 2 * LUT), 2, 0, "here", "here")
    assert str(path) == "1.4 ns, 2: here -> here"


def test_a_carry_chain_takes_wires_only_at_its_ends():
    chain = [
        cell("CARRY4", CI=["0"], CYINIT=["0"], S=[2, 3, 3, 3], DI=["0"] * 4, O=[20, 21, 22, 23],
             CO=[10, 11, 12, 13]),
        cell("CARRY4", CI=[13], CYINIT=["0"], S=["0"] * 4, DI=["0"] * 4, O=[24, 25, 26, 27],
             CO=[14, 15, 16, 17]),
    ]  # fmt: skip
    found = paths_of(module([ff(90, 2), ff(91, 3), *chain, ff(27, 4), ff(20, 5)],
                            a=[2], b=[3], sum=[4], low=[5]))  # fmt: skip
    by_end = {path.to: path for path in found.inside}
    assert by_end["sum"].ns == pytest.approx(WIRE + 2 * CARRY + WIRE)
    assert by_end["sum"].carries == 2 and by_end["sum"].levels == 0
    # The lowest sum is of the lowest bit alone.
    assert by_end["low"].where == "a" and by_end["low"].carries == 1


@pytest.mark.parametrize(
    "registers, ends, begins",
    [
        ({}, None, None),
        ({"AREG": 1}, WIRE, MULTIPLY),
        ({"MREG": 1}, WIRE + MULTIPLY / 2, MULTIPLY / 2),
        ({"AREG": 1, "MREG": 1}, WIRE, MULTIPLY / 2),
        ({"AREG": 1, "MREG": 1, "PREG": 1}, WIRE, 0.0),
        ({"PREG": 1}, WIRE + MULTIPLY, 0.0),
    ],
)
def test_a_multiplier_is_as_long_as_its_registers_leave_it(registers, ends, begins):
    dsp = cell("DSP48E2", A=[2], B=["0"], C=["0"], D=["0"], P=[3], CLK=[1], parameters=registers)
    found = paths_of(module([ff(90, 2), dsp, ff(3, 4)], a=[2], product=[3], out=[4]))
    by_end = {path.to: path.ns for path in found.inside}
    if ends is None:
        assert by_end == {"out": pytest.approx(WIRE + MULTIPLY + WIRE)}
    else:
        assert by_end == {
            "product": pytest.approx(ends), "out": pytest.approx(begins + WIRE)
        }  # fmt: skip


def test_memories_begin_and_end_paths():
    bank = cell("RAMB36E2", CLKARDCLK=[1], ADDRARDADDR=[2], DOUTADOUT=[3])
    small = cell("RAM32M", ADDRA=[3], DIA=[3], DOA=[4], WCLK=[1])
    found = paths_of(module([ff(4, 2), bank, small], word=[3], read=[4], address=[2]))
    by_end = {path.to: path for path in found.inside}
    assert by_end["address"].ns == pytest.approx(BLOCK_RAM + WIRE + LUT + WIRE)
    assert by_end["address"].where == "word"
    assert by_end["read"].ns == pytest.approx(BLOCK_RAM + WIRE)
    assert by_end["word"].ns == pytest.approx(WIRE)


def test_a_block_inside_goes_by_its_ports():
    box = Paths(
        given={"o": Step(1.0, 2, 0, "inner")},
        taken={"i": Path(2.0, 3, 1, "i", "inner")},
        through={"t": {"i": Step(0.5, 1)}},
    )
    inner = cell("box", outputs=("o", "t"), i=[2], o=[3], t=[4])
    found = paths_of(
        module(
            [ff(3, 2), inner, ff(4, 5)],
            {"x": ("output", [4]), "y": ("input", [2])},
            a=[2], b=[5],
        ),
        {"box": box},
    )  # fmt: skip
    by_end = {path.to: path for path in found.inside}
    assert by_end["a"].ns == pytest.approx(1.0 + WIRE) and by_end["a"].where == "1.o"
    assert by_end["1.i"].ns == pytest.approx(WIRE + 2.0) and by_end["1.i"].levels == 3
    assert by_end["b"].ns == pytest.approx(WIRE + 0.5 + WIRE)
    assert found.given["x"].ns == pytest.approx(WIRE + 0.5)
    assert found.through["x"]["y"].ns == pytest.approx(WIRE + 0.5)
    assert found.taken["y"].ns == pytest.approx(WIRE + 2.0)


def test_what_the_model_does_not_know_is_told():
    with pytest.raises(BuildError, match="cell 0 is a MAGIC: the model of paths does not know it"):
        paths_of(module([cell("MAGIC", I=[1], O=[2])]))
    loop = [cell("LUT1", I0=[2], O=[3]), cell("LUT1", I0=[3], O=[2])]
    with pytest.raises(BuildError, match="depends on itself without a register"):
        paths_of(module(loop))


def test_leaves_are_synthesised_once_and_counted(monkeypatch):
    """A device whose netlists are stood in for: which texts are asked for, and how they add up."""
    config = SatConfig(
        rows=2, cols=3, max_n=4, a_words=64, b_words=64, sum_words=256, update_lanes=1,
        update_words=64, copy_words=64, tile_weights=256,
        axi=AxiConfig(data_bits=128, address_bits=24),
    )  # fmt: skip
    blocks = Blocks(config)
    assert blocks.names[-1] == "top" and set(blocks.names[:3]) == {"uspe", "wuve", "sore_lane"}
    assert blocks.modules.count("uspe", "top") == 6

    def netlist(self, name):
        return module([cell("LUT1", I0=[2], O=[3])] * (100 if name == "uspe" else 1))

    monkeypatch.setattr(Blocks, "netlist", netlist)
    lanes = blocks.modules.count("sore_lane", "top")
    others = len(blocks.names) - 3
    assert blocks.area().luts == 6 * 100 + 1 + lanes + others


class Sum(wiring.Component):
    """Two registers, a sum of 32 bits, a register."""

    def __init__(self):
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    def elaborate(self, platform):
        m = Module()
        a, b = Signal(32), Signal(32)
        m.d.sync += [a.eq(self.a), b.eq(self.b), self.total.eq(a + b)]
        return m


def test_a_sum_goes_through_yosys(monkeypatch):
    blocks = Blocks.__new__(Blocks)
    blocks.modules = Modules.of(emit(Sum()))
    blocks._apart, blocks._made = {"top": frozenset()}, {}
    made = blocks.block("top")
    assert made.area.ff == 96 and 31 <= made.area.luts <= 33
    (path, *_) = made.paths.inside
    # A LUT, a carry cell for each four bits.
    assert path.levels == 1 and 7 <= path.carries <= 8 and path.to == "total"
