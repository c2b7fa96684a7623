"""Cycles of products on a board with SDRAM, beside the least that is predicted.

The board is simulated at its pins with all of the chip; its clock decides how many cycles a refresh
and a change of rows take. Run as ``python benchmarks/bench_sdram.py [--array 2x2] [--clock 25]
[--board ulx3s-85f]``.
"""

from __future__ import annotations

import argparse
import contextlib

import numpy as np

import sat
from sat.devices import ComparingDevice
from sat.fpga.board import BOARD_CONFIG, Board
from sat.fpga.boards import BOARDS
from sat.fpga.pty import PtyBoard
from sat.fpga.sdram.simulated import BoardWithSdram
from sat.fpga.simulation import SimulatedBoard

SIZES = ((9, 64, 5), (16, 64, 16), (4, 256, 32))
"""Rows, depth, columns."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--array", default="2x2")
    parser.add_argument("--clock", type=float, default=25.0, help="MHz")
    parser.add_argument("--board", choices=BOARDS, default="ulx3s-85f", help="whose chip")
    args = parser.parse_args()
    config, clock_hz = BOARD_CONFIG.with_array(args.array), args.clock * 1e6
    board = Board(config, clock_hz=clock_hz, baud=clock_hz / 4, sdram=BOARDS[args.board].sdram)
    simulated = SimulatedBoard(BoardWithSdram(board), 4.0)
    rng = np.random.default_rng(0)
    ratios = []
    print(f"{args.board}, array {config.array}, {args.clock:g} MHz")
    print("rows x depth x cols  pattern  dataflow     counted       least  ratio")
    with contextlib.ExitStack() as stack:
        stack.callback(simulated.close)
        port = stack.enter_context(PtyBoard(simulated)).port
        device = stack.enter_context(sat.device(f"uart:{port}", config=config))
        compared = ComparingDevice(device)
        for rows, depth, cols in SIZES:
            a = rng.standard_normal((rows, depth)).astype(np.float16)
            b = rng.standard_normal((depth, cols)).astype(np.float16)
            for pattern in ("dense", "2:8"):
                right = b if pattern == "dense" else sat.prune(b, pattern, axis=0)
                for dataflow in ("os", "ws"):
                    compared.matmul(a, right, dataflow=dataflow)
                    run = compared.last_run
                    ratios.append(run.cycles / run.predicted_cycles)
                    print(
                        f"{f'{rows} x {depth} x {cols}':<19}  {pattern:<7}  {dataflow:<8}  "
                        f"{run.cycles:>10,}  {run.predicted_cycles:>10,}  {ratios[-1]:>5.3f}"
                    )
        print(
            f"counted / least: {min(ratios):.3f} to {max(ratios):.3f}, mean {np.mean(ratios):.3f}; "
            f"{compared.mismatches} of {compared.compared:,} numbers differ, "
            f"{compared.mispredicted} products below the least"
        )
    return int(compared.mismatches or compared.mispredicted)


if __name__ == "__main__":
    raise SystemExit(main())
