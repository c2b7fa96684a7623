"""Leaves with registers and memories, and whole arrays, cycle by cycle."""

from __future__ import annotations

import ctypes
import random
import sys
from pathlib import Path

import pytest
from amaranth import ClockDomain, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from sat.rtl.config import FpTiming, SatConfig
from sat.rtl.stce import COLUMN_LINKS, ROW_LINKS, Stce
from sat.rtl.uspe import Uspe, a_link_layout, b_link_layout
from sat.rtl.verilog import emit
from sat.sim.engines import LANES
from sat.sim.simd.grid import Grid
from sat.sim.simd.netlist import NetlistError, from_rtlil, netlist
from sat.sim.simd.stce import header
from sat.sim.verilator import verilate

sys.path.insert(0, str(Path(__file__).parent))
from lanes import Columns

WIDTH = 48


class Mixer(wiring.Component):
    """A leaf of the awkward kinds: part writes, two write ports, odd first values, wide words."""

    def __init__(self):
        super().__init__({"i": In(WIDTH), "o": Out(WIDTH)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.kept = kept = memory.Memory(shape=12, depth=8, init=[])
        whole, parts = kept.write_port(), kept.write_port(granularity=4)
        read = kept.read_port(domain="comb")
        held = Signal(WIDTH, init=0xABCDE1234567)
        odd = Signal(init=1)
        count = Signal(7, init=93, reset_less=True)
        m.d.comb += [
            whole.addr.eq(self.i[:3]),
            whole.data.eq(self.i[10:22]),
            whole.en.eq(self.i[3]),
            parts.addr.eq(self.i[4:7]),
            parts.data.eq(self.i[22:34] ^ held[:12]),
            # Both ports never write one word at once: which of them wins would be undefined.
            parts.en.eq(self.i[7:10] & (whole.addr != parts.addr).replicate(3)),
            read.addr.eq(self.i[34:37]),
        ]
        m.d.sync += [
            held.eq(held ^ self.i ^ (read.data << 20)),
            odd.eq(odd ^ self.i[40]),
            count.eq(count + self.i[:5]),
            self.o.eq(held.rotate_left(5) ^ (count << 9)),
        ]
        with m.If(odd):
            m.d.sync += self.o.eq(held)
        return m


def amaranth_says(inputs: list[int], resets: list[bool]) -> list[int]:
    """Return what Amaranth's own simulator makes of one column."""
    dut, rst, shown = Mixer(), Signal(), []
    top = Module()
    top.domains.sync = domain = ClockDomain()
    top.submodules.dut = dut
    top.d.comb += domain.rst.eq(rst)
    simulator = Simulator(top)
    simulator.add_clock(1e-6)

    async def bench(ctx):
        for value, reset in zip(inputs, resets, strict=True):
            ctx.set(dut.i, value)
            ctx.set(rst, reset)
            shown.append(ctx.get(dut.o))
            await ctx.tick()

    simulator.add_testbench(bench)
    simulator.run()
    return shown


def test_registers_and_memories_as_amaranth_simulates_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_CACHE", str(tmp_path))
    columns = Columns(netlist(Mixer(), "mixer"), tmp_path, cols=3)
    rng = random.Random(1)
    cycles = 400
    inputs = [[rng.getrandbits(WIDTH) for _ in range(3)] for _ in range(cycles)]
    resets = [rng.random() < 0.02 for _ in range(cycles)]
    got = [columns.cycle(given, rst) for given, rst in zip(inputs, resets, strict=True)]
    for column in range(3):
        want = amaranth_says([given[column] for given in inputs], resets)
        assert [shown[column] for shown in got] == want


class Leaf(wiring.Component):
    """A leaf whose body the test gives."""

    def __init__(self, body, width=8):
        self.body = body
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        self.body(m, self.i, self.o)
        return m


def _through(m, i, o):
    m.d.comb += o.eq(i + 1)
    m.d.sync += Signal(name="clocked").eq(i[0])


def _clocked_read(m, i, o):
    m.submodules.kept = kept = memory.Memory(shape=8, depth=4, init=[])
    write, read = kept.write_port(), kept.read_port()
    m.d.comb += [write.addr.eq(i), write.data.eq(i), write.en.eq(i[7]), read.addr.eq(i)]
    m.d.comb += o.eq(read.data)


def _filled(m, i, o):
    m.submodules.kept = kept = memory.Memory(shape=8, depth=4, init=[1, 2, 3])
    write, read = kept.write_port(), kept.read_port(domain="comb")
    m.d.comb += [write.addr.eq(i), write.data.eq(i), write.en.eq(i[7]), read.addr.eq(i[2:])]
    m.d.sync += o.eq(read.data)


@pytest.mark.parametrize(
    "body, message",
    [
        (_through, "output 'o' of leaf depends on 'i_i_0' of the same cycle"),
        (_clocked_read, "it has a clocked read port"),
        (_filled, "it does not start with all words 0"),
    ],
)
def test_what_cannot_be_translated_is_refused(body, message, tmp_path):
    with pytest.raises(NetlistError, match=message):
        Columns(netlist(Leaf(body), "leaf"), tmp_path, cols=2)


LOOP = """
module \\leaf
  wire width 8 input 1 \\i
  wire width 8 output 2 \\o
  wire input 3 \\clk
  cell $not \\turn
    parameter \\A_SIGNED 0
    parameter \\A_WIDTH 8
    parameter \\Y_WIDTH 8
    connect \\A \\o
    connect \\Y \\o
  end
end
"""


def test_logic_that_depends_on_itself_is_refused(tmp_path):
    """Amaranth itself finds such a loop, so this one is written by hand."""
    with pytest.raises(NetlistError, match="cell turn .* depends on its own result"):
        Columns(from_rtlil(LOOP, "leaf", optimise=False), tmp_path, cols=2)


def test_inputs_must_be_linked(tmp_path):
    leaf = netlist(Uspe(SatConfig()), "uspe")
    with pytest.raises(NetlistError, match="input 'a_in' of uspe is neither linked nor uniform"):
        Grid("Stce", leaf, 2, 2, (), COLUMN_LINKS, ("rst", "ws")).header()
    with pytest.raises(NetlistError, match="has no port 'xs'"):
        Grid("Stce", leaf, 2, 2, ROW_LINKS, COLUMN_LINKS, ("rst", "ws", "xs")).header()


# Every depth of adder and multiplier, every size of word: each has cells of its own.
CONFIGS = [
    SatConfig(rows=3, cols=5),
    SatConfig(
        rows=2, cols=3, max_m=16, max_n=4, interleave=8,
        fp=FpTiming(multiplier_stages=3, adder_stages=7),
    ),
    SatConfig(
        rows=5, cols=2, max_m=16, max_n=16,
        fp=FpTiming(multiplier_stages=2, adder_stages=3),
    ),
]  # fmt: skip


@pytest.mark.parametrize("adder", range(1, 8))
def test_every_pipeline_has_a_translation(adder):
    timing = FpTiming(multiplier_stages=1 + adder % 3, adder_stages=adder)
    text = header(SatConfig(rows=2, cols=2, interleave=8, fp=timing))
    assert "step_all" in text


ARRAY_DRIVER = """
#include <memory>
#include "Vtop.h"
#include "array.h"
extern "C" {
// Cycles of random words at all edges on both arrays; returns how many sums differ.
uint64_t differences(uint64_t seed, uint64_t cycles, int idle) {
    VerilatedContext context;
    Vtop top{&context};
    auto array = std::make_unique<Stce>();
    uint64_t state = seed, wrong = 0;
    auto random = [&state] {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return uint32_t(state >> 16);
    };
    for (uint64_t cycle = 0; cycle < cycles; ++cycle) {
        top.rst = cycle < 2 || cycle % 997 == 0;
        if (cycle % 128 == 0) top.ws = random() & 1;
        drive(top, random, idle && random() % 4 == 0);
        top.clk = 0;
        top.eval();
        wrong += compare(*array, top);
        top.clk = 1;
        top.eval();
    }
    top.final();
    return wrong;
}
}
"""


def array_driver(config: SatConfig) -> str:
    """Return C++ that drives a Verilated array and one of lanes with the same words."""
    a, b = a_link_layout(config).size, b_link_layout(config).size
    lines = [
        "template <class Top, class Random> void drive(Top& top, Random random, bool quiet) {",
        "    uint32_t words[16];",
        "    auto fill = [&](int bits) {",
        "        for (int i = 0; 32 * i < bits; ++i) {",
        "            words[i] = quiet ? 0 : random();",
        "            if (32 * i + 32 > bits) words[i] &= ~0u >> (32 * i + 32 - bits);",
        "        }",
        "    };",
    ]
    for member, count, bits in (
        ("a", config.rows, a), ("b", config.cols, b), ("psum_in", config.cols, 32)
    ):  # fmt: skip
        for i in range(count):
            lines.append(f"    fill({bits}); lanes::give(top.{member}___05F{i}, words);")
    lines += ["}", "template <class Top> uint64_t compare(Stce& array, Top& top) {"]
    lines += ["    uint64_t wrong = 0; uint32_t sum;", "    array.settle(top.rst, top.ws);"]
    for c in range(config.cols):
        lines.append(f"    array.leave_psum_in({c}, sum); wrong += sum != top.psum_out___05F{c};")
    for links, count in ((ROW_LINKS, config.rows), (COLUMN_LINKS, config.cols)):
        for link in links:
            for i in range(count):
                lines.append(f"    array.enter_{link.enters}({i}, top.{link.edge}___05F{i});")
    lines += ["    array.step(top.rst, top.ws);", "    return wrong;", "}"]
    return header(config) + "\n".join(lines) + "\n"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.array)
def test_array_as_verilator_simulates_it(config, tmp_path):
    """Random words at all edges, both dataflows, held weights, resets, idle slots: every sum."""
    driver = tmp_path / "driver.cpp"
    driver.write_text(ARRAY_DRIVER)
    library = verilate(
        emit(Stce(config)),
        "top",
        driver,
        headers={"array.h": array_driver(config), "lanes.h": LANES.read_text()},
        opt="-O1",
        driver_opt="-O1 -march=native",
        name=f"stce_{config.array}",
    )
    differences = ctypes.CDLL(str(library)).differences
    differences.restype = ctypes.c_uint64
    differences.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    for seed in range(1, 5):
        assert differences(seed, 20_000, seed % 2) == 0


def test_wide_words_are_cut_where_they_are_read():
    """The lanes of an A word are variables of their own: no shift is spent on taking one."""
    text = header(SatConfig(rows=2, cols=2))
    for lane in range(7):
        assert f"lanes::take<{17 * lane}, 17>(port)" in text
    assert text.count("lanes::take<") == 10  # with the last lane the flags; a B value; a sum
