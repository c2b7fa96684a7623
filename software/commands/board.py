"""``sat board``: a simulated board behind a serial port, for those who have none."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading

from sat.commands.common import DONE, count, output_file, usage

SUMMARY = "simulate a board behind a serial port"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--array", help="rows x columns (default: the boards' own, 4x4)")
    parser.add_argument(
        "--memory-bytes", type=count, default=1 << 17, help="of block RAM (default 131072)"
    )
    parser.add_argument("--waves", metavar="FILE.fst", type=output_file, help="write a waveform")


def run(args: argparse.Namespace) -> int:
    """Simulate a board at its pins, and serve it on a pseudo-terminal until Ctrl-C.

    Any program uses it as ``uart:PORT``, with the same array.
    """
    from sat.fpga.board import BOARD_CONFIG, Board
    from sat.fpga.pty import PtyBoard
    from sat.fpga.simulation import SimulatedBoard
    from sat.rtl.verilog import emit

    with usage():
        config = BOARD_CONFIG if args.array is None else BOARD_CONFIG.with_array(args.array)
        # Four cycles a bit, as fast as its UART can: nobody waits for a wire here.
        board = Board(config, clock_hz=4.0, baud=1.0, memory_bytes=args.memory_bytes)
        text = emit(board)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    simulated = SimulatedBoard(text, 4.0, waves=args.waves)
    with contextlib.closing(simulated), PtyBoard(simulated) as served:
        if args.json:
            print(json.dumps({"port": served.port, "array": config.array}), flush=True)
        else:
            print(f"uart:{served.port}", flush=True)
            print(f"array {config.array}; Ctrl-C ends it", flush=True)
        stop.wait()
    return DONE
