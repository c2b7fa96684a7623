"""``sat board``: a simulated board behind a serial port, for those who have none."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading

from sat.commands.common import DONE, output_file, usage
from sat.commands.gateware import add_board, make_board, uses_sdram
from sat.fpga.boards import BOARDS

SUMMARY = "simulate a board behind a serial port"
_CLOCK_HZ = 25e6
"""Of a board: an SDRAM's rules are in nanoseconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--board", choices=BOARDS, default="ulx3s-85f", help="which (default ulx3s-85f)"
    )
    add_board(parser)
    parser.add_argument("--waves", metavar="FILE.fst", type=output_file, help="write a waveform")


def run(args: argparse.Namespace) -> int:
    """Simulate a board at its pins, and serve it on a pseudo-terminal until Ctrl-C.

    Any program uses it as ``uart:PORT``, with the same array.
    """
    from sat.fpga.pty import PtyBoard
    from sat.fpga.sdram.simulated import BoardWithSdram
    from sat.fpga.simulation import SimulatedBoard
    from sat.rtl.verilog import emit

    with usage():
        # Four cycles a bit, as fast as its UART can: nobody waits for a wire here.
        board = make_board(args, clock_hz=_CLOCK_HZ, baud=_CLOCK_HZ / 4)
        text = emit(BoardWithSdram(board) if uses_sdram(args) else board)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    simulated = SimulatedBoard(text, 4.0, waves=args.waves)
    with contextlib.closing(simulated), PtyBoard(simulated) as served:
        if args.json:
            print(json.dumps({"port": served.port, "array": board.config.array}), flush=True)
        else:
            print(f"uart:{served.port}", flush=True)
            print(f"array {board.config.array}; Ctrl-C ends it", flush=True)
        stop.wait()
    return DONE
