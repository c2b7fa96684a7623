"""``sat demo``: sparse training of digits, first on the simulated RTL, beside dense."""

from __future__ import annotations

import argparse
from functools import partial

from sat.commands.common import (
    DONE,
    FAILED,
    add_engine,
    count,
    output_file,
    seed_number,
    to_json,
    usage,
    use_one_thread,
)

SUMMARY = "train digits, first steps on the simulated RTL, beside dense"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=count, default=12, help="default 12")
    parser.add_argument("--steps", type=count, default=3, help="steps on the RTL (default 3)")
    parser.add_argument("--batch", type=count, default=32, help="default 32")
    parser.add_argument("--array", default="8x8", help="rows x columns (default 8x8)")
    add_engine(parser)
    parser.add_argument("--pattern", default="2:8", help="N:M (default 2:8)")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument(
        "--figure", metavar="FILE.png", default="out/demo.png",
        type=partial(output_file, make_folder=True), help="where the picture goes",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from sat.training.demo import demo

    use_one_thread()
    with usage():
        result = demo(
            epochs=args.epochs,
            rtl_steps=args.steps,
            batch=args.batch,
            array=args.array,
            engine=args.engine or "auto",
            pattern=args.pattern,
            seed=args.seed,
            figure=args.figure,
            progress=True,
        )
    print(to_json(result.to_dict()) if args.json else result)
    return DONE if result.passed else FAILED
