"""What commands that make a board's gateware share."""

from __future__ import annotations

import argparse
from typing import Any

from sat.commands.common import count
from sat.fpga.boards import BOARDS

MEMORIES = ("block", "sdram")
_BLOCK_RAM_BYTES = 1 << 17


def add_board(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is on a board; ``board`` is its name."""
    parser.add_argument("--array", help="rows x columns (default: the boards' own, 4x4)")
    own = ", ".join(f"{target.memory} on {name}" for name, target in BOARDS.items())
    parser.add_argument(
        "--memory", choices=MEMORIES, help=f"block RAM, or the board's SDRAM (default {own})"
    )
    parser.add_argument(
        "--memory-bytes", type=count, help=f"of block RAM (default {_BLOCK_RAM_BYTES})"
    )


def uses_sdram(args: argparse.Namespace) -> bool:
    """Return whether a board's memory is its SDRAM."""
    return bool((args.memory or BOARDS[args.board].memory) == "sdram")


def make_board(args: argparse.Namespace, *, clock_hz: float, baud: float) -> Any:
    """Return the `sat.fpga.board.Board` that options ask for.

    Raises
    ------
    ValueError
        There is no such board.
    """
    from sat.fpga.board import BOARD_CONFIG, Board

    config = BOARD_CONFIG if args.array is None else BOARD_CONFIG.with_array(args.array)
    if uses_sdram(args):
        if args.memory_bytes is not None:
            raise ValueError(
                f"--memory-bytes {args.memory_bytes}: is of block RAM, and SDRAM has the size of "
                "its chip; leave it out, or take --memory block"
            )
        return Board(config, clock_hz=clock_hz, baud=baud, sdram=BOARDS[args.board].sdram)
    size = args.memory_bytes or _BLOCK_RAM_BYTES
    return Board(config, clock_hz=clock_hz, baud=baud, memory_bytes=size)


def memory_text(args: argparse.Namespace) -> str:
    """Return what a report says of a board's memory."""
    if uses_sdram(args):
        return f"{BOARDS[args.board].sdram.size >> 20} MB of SDRAM"
    return f"{(args.memory_bytes or _BLOCK_RAM_BYTES) / 1024:g} KB of block RAM"
