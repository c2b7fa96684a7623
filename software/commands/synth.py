"""``sat synth``: a board's gateware, from Amaranth to its bitstream, and a report."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sat.commands.common import DONE, FAILED, count, natural, output_folder, to_json, usage
from sat.commands.gateware import add_board, make_board, memory_text, uses_sdram
from sat.fpga.boards import BOARDS, CARDS

SUMMARY = "make a board's bitstream, or a card's Vivado project"
_CRYSTAL_HZ = 25_000_000


def megahertz(text: str) -> int:
    """Return a frequency in Hz of one in MHz."""
    try:
        hz = round(float(text) * 1e6)
    except (ValueError, OverflowError):
        hz = 0
    if hz < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a frequency in MHz")
    return hz


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", choices=[*BOARDS, *CARDS])
    add_board(parser)
    parser.add_argument(
        "--clock", type=megahertz, metavar="MHZ",
        help="of the gateware (default 25, the board's crystal, others by a PLL; of a card 100)",
    )  # fmt: skip
    parser.add_argument(
        "--baud", type=count, help="of the link (default: as fast as the board's serial port)"
    )
    parser.add_argument(
        "--crossings", action="store_true",
        help="of a card: a register more where the array goes from one die to the next",
    )  # fmt: skip
    parser.add_argument("--seed", type=natural, default=1, help="of the placement (default 1)")
    parser.add_argument(
        "--folder", metavar="FOLDER", type=output_folder, default="out",
        help="for bitstream and report (default out)",
    )  # fmt: skip
    parser.add_argument(
        "--fresh", action="store_true", help="make everything again, even what is cached"
    )


def run(args: argparse.Namespace) -> int:
    """Synthesise, place and route a board's gateware; write its bitstream and a report.

    The bitstream is written if the routed design is as fast as --clock asks. The same arguments
    give the same bytes. What was made before comes from the build cache. Of a card, whose tools are
    Vivado, a project is written.
    """
    if args.board in CARDS:
        return _project(args)
    if args.crossings:
        with usage():
            raise ValueError(
                f"--crossings: is of cards, whose FPGAs are several dies, not of {args.board}"
            )
    args.clock = args.clock or _CRYSTAL_HZ
    from sat.fpga.flow import implement
    from sat.fpga.report import Report

    target = BOARDS[args.board]
    with usage():
        board = make_board(args, clock_hz=args.clock, baud=args.baud or target.baud)
        config = board.config
        if config.rows * config.cols > target.capacity["DSP"]:
            raise ValueError(
                f"array={config.array}: the FPGA has {target.capacity['DSP']} multipliers, not one "
                "for each element; make it smaller"
            )
        files = target.build_files(board, args.clock)
    with _cache(args.fresh), _progress(not args.json) as heard:
        made = implement(
            files, target.nextpnr, args.clock, target.capacity, seed=args.seed, heard=heard
        )
    report = Report.of(made, args.board, config.array, memory_text(args), args.clock)
    name = f"{args.board}-{config.array}-{args.clock / 1e6:g}MHz"
    name += "-sdram" if uses_sdram(args) else ""
    stem = Path(args.folder, name)
    stem.with_name(f"{name}.json").write_text(to_json(report.to_dict()) + "\n")
    stem.with_name(f"{name}.md").write_text(f"# {name}\n\n`{_command(args)}`\n\n{report}\n")
    if report.met:
        stem.with_name(f"{name}.bit").write_bytes(made.bitstream)
    else:
        stem.with_name(f"{name}.bit").unlink(missing_ok=True)
    print(to_json(report.to_dict()) if args.json else report)
    if report.met:
        return DONE
    print(
        f"sat synth: {report.fmax_mhz:.2f} MHz is less than --clock {report.clock_mhz:g}: no "
        "bitstream; ask for less, or try another --seed",
        file=sys.stderr,
    )
    return FAILED


def _command(args: argparse.Namespace) -> str:
    """Return what was called, but for where things are put."""
    words = ["sat", "synth", args.board, "--clock", f"{args.clock / 1e6:g}"]
    for name in ("array", "memory", "memory_bytes", "baud"):
        value = getattr(args, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return " ".join([*words, "--seed", str(args.seed)])


def _project(args: argparse.Namespace) -> int:
    """Write a card's Vivado project."""
    from sat.fpga.card import CARD_CONFIG, Card

    target = CARDS[args.board]
    given = {"baud": args.baud, "memory-bytes": args.memory_bytes, "fresh": args.fresh}
    given |= {"memory": args.memory, "seed": args.seed != 1}
    with usage():
        for name in sorted(name for name, value in given.items() if value):
            raise ValueError(f"--{name}: is of boards that are placed here, not of {args.board}")
        config = CARD_CONFIG if args.array is None else CARD_CONFIG.with_array(args.array)
        if args.crossings:
            config = replace(config, crossings=target.crossings(config.rows, config.cols))
        clock = args.clock or target.clock_hz
        files = target.project_files(Card(config), clock)
    folder = Path(args.folder, f"{args.board}-{config.array}-{clock / 1e6:g}MHz")
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    if args.json:
        print(to_json({"folder": str(folder), "files": sorted(files), "digest": config.digest}))
        return DONE
    print(f"{folder}: {', '.join(sorted(files))}")
    if config.crossings:
        print(f"Its device has crossings={config.crossings}: the host's must be told so, too.")
    print("The bitstream is Vivado's to make, which is none of this project's tools. There:")
    print("    vivado -mode batch -source build.tcl")
    return DONE


@contextlib.contextmanager
def _cache(fresh: bool) -> Iterator[None]:
    """Use an empty build cache, if asked to."""
    if not fresh:
        yield
        return
    before = os.environ.get("SAT_CACHE")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["SAT_CACHE"] = empty
        try:
            yield
        finally:
            if before is None:
                del os.environ["SAT_CACHE"]
            else:
                os.environ["SAT_CACHE"] = before


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str], None] | None]:
    """Show what the tools are at, and for how long."""
    from tqdm import tqdm

    if not shown:
        yield None
        return
    interval, last = 0.2 if sys.stderr.isatty() else 30.0, -math.inf
    with tqdm(bar_format="{elapsed} {desc}") as bar:

        def heard(text: str) -> None:
            nonlocal last
            if time.monotonic() - last > interval:
                last = time.monotonic()
                bar.set_description_str(text)

        yield heard
