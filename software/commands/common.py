"""What subcommands share: exit codes, argument types, how results are printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

DONE, FAILED, BAD_USAGE = 0, 1, 2


class UsageError(Exception):
    """An argument that no parser could refuse alone."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turn what the library says about arguments of the user into bad usage."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer of at least 1")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer of at least 0")
    return int(text)


def seed_number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer from 0 to 2**63 - 1")
    return int(text)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how an RTL device is simulated."""
    parser.add_argument(
        "--engine", help="how rtl is simulated: verilator, simd, or auto (default), the faster"
    )


def device_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of the options that any device command has, for `sat.device`.

    Raises
    ------
    ValueError
        An engine was given for a device that is not simulated.
    """
    kinds = getattr(args, "device", "rtl")
    if args.engine is not None and {kind.split("*")[0] for kind in kinds.split(",")} != {"rtl"}:
        raise ValueError(
            f"--engine {args.engine}: only rtl is simulated by an engine, not {kinds}; leave "
            "--engine out or give --device rtl"
        )
    given = {"array": args.array, "engine": args.engine}
    return {name: value for name, value in given.items() if value is not None}


def to_json(values: Any) -> str:
    """Return values as JSON, which has no NaN and no infinity: null for them."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [known(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(values), allow_nan=False)


def print_values(values: dict[str, Any], as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print results as one JSON object, or as lines of name and value with notes below."""
    if as_json:
        print(to_json(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        if not isinstance(value, (list, dict)):
            print(f"{name:<{width}}  {text(value)}")
    for note in notes:
        print(note)


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def use_one_thread() -> None:
    """Make sums on the host independent of the number of cores: a seed then fixes the run.

    Costs nothing here: the products, which take the time, are not torch's.
    """
    import torch

    torch.set_num_threads(1)
