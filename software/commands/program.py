"""``sat program``: load a bitstream into a board."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from sat.commands.common import DONE, UsageError
from sat.errors import SatError
from sat.fpga.boards import BOARDS

SUMMARY = "load a bitstream into a board"


class ProgramError(SatError):
    """A board could not be programmed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", choices=BOARDS)
    parser.add_argument("bitstream", metavar="FILE.bit", help="as `sat synth` makes it")
    parser.add_argument(
        "--flash", action="store_true",
        help="into the board's flash, so that it stays; otherwise until power is off",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load a bitstream with openFPGALoader; the board's USB port is at the computer."""
    target = BOARDS[args.board]
    if not Path(args.bitstream).is_file():
        raise UsageError(f"bitstream {args.bitstream!r}: no such file; make one with `sat synth`")
    loader = shutil.which(os.environ.get("OPENFPGALOADER") or "openFPGALoader")
    if loader is None:
        raise ProgramError(
            "openFPGALoader is missing: install it (Debian: apt-get install openfpgaloader), or "
            "set OPENFPGALOADER to the program"
        )
    place = ["--write-flash"] if args.flash else ["--write-sram"]
    command = [loader, "--board", target.loader, *place, args.bitstream]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode != 0:
        said = ran.stdout.strip().splitlines()[-1:] or ["it wrote no message"]
        raise ProgramError(
            f"openFPGALoader failed with status {ran.returncode} ({said[0]}): connect the board's "
            f"{target.port}, switch it on, and see that you may use it (group plugdev)"
        )
    print(f"{args.bitstream} is on the board")
    return DONE
