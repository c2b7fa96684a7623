"""The device behind a serial port: pyserial, a pseudo-terminal, a Verilated board at its pins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tty
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sat
from sat.cli import main
from sat.dataflow.products import Product, StartShape
from sat.devices.operand import RightOperand, product_of
from sat.devices.splitting import cut, halves, in_halves
from sat.devices.uart import _Prompt
from sat.errors import DeviceError
from sat.fpga.board import Board
from sat.fpga.link.protocol import MemoryKind
from sat.fpga.pty import PtyBoard
from sat.fpga.simulation import SimulatedBoard
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.golden import stce
from tests.fpga.products import operands, trained

CONFIG = SatConfig(
    rows=2, cols=2, max_n=4, a_words=64, b_words=64, sum_words=256, update_lanes=1, update_words=64,
    copy_words=16, tile_weights=256, axi=AxiConfig(data_bits=32, address_bits=24),
)  # fmt: skip
MEMORY_BYTES = 1 << 15


@pytest.fixture(scope="module")
def served():
    board = SimulatedBoard(Board(CONFIG, clock_hz=4, baud=1, memory_bytes=MEMORY_BYTES), 4.0)
    with PtyBoard(board) as made:
        yield made
    board.close()


@pytest.fixture
def device(served):
    with sat.device(f"uart:{served.port}", config=CONFIG) as made:
        yield made


@pytest.mark.parametrize("pattern", ["dense", "2:8", "1:4"])
def test_products_are_golden_to_the_bit_and_take_the_predicted_cycles(device, pattern):
    a, b = operands(7, 24, 5)
    right = b if pattern == "dense" else sat.prune(b, pattern, axis=0)
    with sat.device("golden") as golden:
        start = np.arange(5, dtype=np.float32)
        for first in (None, start):
            got, want = device.matmul(a, right, first), golden.matmul(a, right, first)
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
            assert device.last_run.cycles == device.last_run.predicted_cycles


def test_a_product_larger_than_the_memory_is_computed_in_parts(device):
    a, b = operands(16, 400, 16)
    got, want = device.matmul(a, b), stce.matmul(a, b)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    run = device.last_run
    assert len(run.parts) > 1 and run.cycles == run.predicted_cycles
    assert run.predicted_cycles == device.predict(Product(16, 16, 400))


def test_a_training_step_leaves_the_bits_of_golden(device):
    """FF, BP, WU and the update of a layer, whole stages on the board, twice."""
    with sat.device("golden", config=CONFIG) as golden:
        assert torch.equal(trained(device), trained(golden))


def test_offload_reports_the_board(device):
    with sat.offload(device) as report:
        torch.nn.functional.linear(torch.randn(3, 8), torch.randn(4, 8))
    assert report.coverage == 1 and report.cycles > 0
    assert "uart" in report.devices


def test_another_board_after_the_link_failed_is_told(device, monkeypatch):
    a, b = operands(2, 8, 2)
    device._board = None
    monkeypatch.setattr(device, "greeting", replace(device.greeting, memory=MemoryKind.SDRAM))
    with pytest.raises(DeviceError, match=r"another board is there now.*make a new device"):
        device.matmul(a, b)


def test_a_ports_name_may_say_the_baud_rate(monkeypatch):
    made = []
    monkeypatch.setattr(
        "sat.devices.uart.UartDevice", lambda *port, **more: made.append((port, more))
    )
    sat.device("uart:/dev/ttyACM0@115200", array="2x2")
    sat.device("uart:/dev/ttyUSB0")
    assert made == [(("/dev/ttyACM0",), {"array": "2x2", "baud": 115200}), (("/dev/ttyUSB0",), {})]
    with pytest.raises(ValueError, match=r"'fast' is no baud rate; write digits behind the @"):
        sat.device("uart:/dev/ttyACM0@fast")


def test_a_second_user_of_the_port_is_refused(served, device):
    with pytest.raises(DeviceError, match=r"cannot be opened.*close other programs"):
        sat.device(f"uart:{served.port}", config=CONFIG)


def test_another_array_is_told(served):
    with pytest.raises(DeviceError, match=r"another configuration.*array 4x4"):
        sat.device(f"uart:{served.port}")


def test_a_pulled_cable_is_told_and_put_back_works(served, device):
    a, b = operands(4, 16, 3)
    tries, device._link.tries = device._link.tries, 2
    served.connected.clear()
    with pytest.raises(DeviceError, match=r"no answer to 2 tries"):
        device.matmul(a, b)
    served.connected.set()
    device._link.tries = tries
    assert np.array_equal(device.matmul(a, b), stce.matmul(a, b))


def test_a_port_that_is_no_board_is_told_soon():
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    began = time.monotonic()
    try:
        with pytest.raises(DeviceError, match="no SAT board answers"):
            sat.device(f"uart:{os.ttyname(theirs)}")
    finally:
        os.close(ours)
        os.close(theirs)
    assert time.monotonic() - began < 30  # 1.75 s of waiting, on however busy a machine


def test_a_read_waits_for_the_first_byte_only():
    class Port:
        """Would wait for bytes that are not there."""

        def __init__(self, there):
            self.there = there

        @property
        def in_waiting(self):
            return len(self.there)

        def read(self, size):
            assert size <= max(1, len(self.there))
            said, self.there = self.there[:size], self.there[size:]
            return said

    assert _Prompt(Port(b"")).read(4096) == b""
    assert _Prompt(Port(b"a")).read(4096) == b"a"
    assert _Prompt(Port(b"abcdef")).read(4096) == b"abcdef"
    assert _Prompt(Port(b"abcdef")).read(4) == b"abcd"


def test_what_is_no_port_is_told():
    with pytest.raises(DeviceError, match=r"uart:/dev/nothing': the port cannot be opened"):
        sat.device("uart:/dev/nothing")
    with pytest.raises(ValueError, match=r"baud='fast'"):
        sat.device("uart:/dev/nothing", baud="fast")
    with pytest.raises(ValueError, match=r"uart:"):
        sat.device("uart:")


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40), st.sampled_from([None, 1, 3]))
def test_any_cut_keeps_every_bit(rows, depth, cols, count):
    rng = np.random.default_rng(rows * depth + cols)
    stack = () if count is None else (count,)
    a = rng.standard_normal((*stack, rows, depth)).astype(np.float16)
    b = RightOperand.dense(rng.standard_normal((*stack, depth, cols)).astype(np.float16))
    start = rng.standard_normal((*stack, rows, cols)).astype(np.float32)
    whole = product_of(a, b, start)
    assert whole.start is (StartShape.MATRIX if rows > 1 else StartShape.ROW)

    def compute(a, b, start):
        assert product_of(a, b, start).macs < whole.macs
        return stce.matmul(a, b.values, start)

    found = cut(whole, CONFIG)
    if found is None:
        assert rows == cols == 1 and depth <= CONFIG.max_m
        return
    first, second = halves(whole, *found)
    assert first.macs + second.macs == whole.macs
    got, want = in_halves(a, b, start, *found, compute), stce.matmul(a, b.values, start)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--array", "0x2"], "rows=0: must be"),
        (["--array", "two"], "array='two'"),
        (["--memory-bytes", "5000"], "size=5000: must be a power of two"),
    ],
)
def test_a_board_that_cannot_be_is_refused_in_a_line(arguments, said, capsys):
    assert main(["board", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("memory", ["block", "sdram"])
def test_the_command_serves_a_board(memory):
    command = [sys.executable, "-m", "sat", "board", "--array", "2x2", "--json"]
    command += ["--memory", memory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = json.loads(process.stdout.readline())["port"]
            a, b = operands(5, 32, 3)
            with sat.device(f"uart:{port}", array="2x2") as device:
                assert np.array_equal(device.matmul(a, b), stce.matmul(a, b))
                run = device.last_run
                assert run.bound == (memory == "sdram") and not run.mispredicted
        finally:
            process.terminate()
    assert process.returncode == 0
