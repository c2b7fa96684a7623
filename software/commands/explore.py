"""``sat explore``: many devices for a network, cycles against area."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sat.commands.common import DONE, count, output_file, to_json, usage

SUMMARY = "many devices for a network: cycles against area"


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return a type of arguments that are lists with commas."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(kind(part) for part in text.split(",")))

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as for sat schedule")
    parser.add_argument(
        "file", metavar="FILE.jsonl", type=output_file,
        help="results, a line a design; gone on with",
    )  # fmt: skip
    lists: dict[str, tuple[Callable[[str], Any], str]] = {
        "arrays": (str, "8x8,16x16,32x32"),
        "memories": (str, "narrow,ddr4,ddr4x4"),
        "words": (count, "512,1024"),
        "lanes": (count, "8,32"),
        "patterns": (str, "dense,2:4,2:8"),
        "batches": (count, "32,128"),
    }
    for name, (kind, usual) in lists.items():
        parser.add_argument(f"--{name}", type=listed(kind), default=usual, help=f"default {usual}")
    parser.add_argument("--processes", type=count, help="side by side (default: all cores)")
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="a Ray cluster evaluates: auto, local, or ray://HOST:PORT (pip install sat[ray])",
    )  # fmt: skip
    parser.add_argument(
        "--picture", metavar="FILE.png", type=output_file, help="cycles against area"
    )


def run(args: argparse.Namespace) -> int:
    """Schedule a network on every combination of devices; print those that no other beats.

    A run that was stopped goes on where it was, with the same arguments.
    """
    from tqdm import tqdm

    from sat.schedules.area import MEASURED
    from sat.schedules.explore import Space, explore, front
    from sat.sparsity.pattern import Pattern

    with usage():
        for pattern in args.patterns:
            Pattern.parse(pattern)
        _check(args)
        space = Space(
            source=args.model, arrays=args.arrays, memories=args.memories, words=args.words,
            lanes=args.lanes, patterns=args.patterns, batches=args.batches,
        )  # fmt: skip
        bars: list[tqdm] = []

        def progress(done: int, designs: int) -> None:
            if not bars:
                bars.append(tqdm(total=designs, initial=done - 1, disable=args.json, unit="design"))
            bars[0].update()

        try:
            rows = explore(
                space, args.file, processes=args.processes, ray=args.ray, progress=progress
            )
        finally:
            for bar in bars:
                bar.close()
    chosen = front(rows)
    if args.picture is not None:
        from sat.schedules.pictures import pareto

        Path(args.picture).write_bytes(pareto(rows, chosen, args.model))
    if args.json:
        print(to_json({"designs": len(rows), "area": MEASURED, "front": chosen}))
        return DONE
    print(_table(chosen))
    refused = sum("refused" in row for row in rows)
    print(f"{len(rows)} designs, {refused} refused, {len(chosen)} that no other beats; {MEASURED}")
    return DONE


def _check(args: argparse.Namespace) -> None:
    """Refuse what no device has, before any work; what only some have is told a design."""
    from sat.schedules.machine import machine

    for memory in args.memories:
        machine("4x4", memory)
    for array in args.arrays:
        machine(array, args.memories[0])
    for words in args.words:
        machine("4x4", "narrow", words=words)
    for lanes in args.lanes:
        machine("4x4", "narrow", lanes=lanes)


def _table(rows: list[dict[str, Any]]) -> str:
    from sat.schedules.report import columns

    head = ("array", "memory", "N:M", "words", "lanes", "batch", "cycles an example", "util",
            "LUT4", "DSP", "RAM")  # fmt: skip
    body = [
        (
            row["array"], row["memory"], row["pattern"], str(row["words"]), str(row["lanes"]),
            str(row["batch"]), f"{row['cycles_per_example']:,.0f}", f"{row['utilisation']:.3f}",
            f"{row['lut4']:,}", f"{row['dsp']:,}", f"{row['ram']:,}",
        )
        for row in rows
    ]  # fmt: skip
    return columns(head, body, 3)
