"""What subcommands share: exit codes, argument types, how results are printed."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DONE, FAILED, BAD_USAGE = 0, 1, 2
# What shells give to commands that a signal ended.
INTERRUPTED, TERMINATED = 130, 143


class UsageError(Exception):
    """An argument that no parser could refuse alone."""


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Turn what the library says about arguments of the user into bad usage."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(" ".join(str(error).split())) from error


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


def input_file(text: str) -> str:
    """Return the name of a file that can be read, before the work that needs it."""
    try:
        with Path(text).open("rb"):
            return text
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: cannot be read ({_reason(error)}); name a file that can"
        ) from error


def output_file(text: str, *, make_folder: bool = False) -> str:
    """Return the name of a file that results can go to, before the work that makes them.

    Parameters
    ----------
    text : str
        A file that is there is left as it is; one that is not is not made.
    make_folder : bool
        Whether to make its folder if it does not exist.
    """
    path = Path(text)
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        new = not os.path.lexists(path)
        if new or path.is_file():
            with path.open("ab") as file:
                if new:
                    file.write(bytes(4096))  # a full disk is to show here
            if new:
                path.unlink()
        elif path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif path.is_char_device() and not os.isatty(fd := os.open(path, os.O_WRONLY)):
            os.write(fd, b" ")
            os.close(fd)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: cannot be written ({_reason(error)}); name a file that can"
        ) from error
    return text


def output_folder(text: str) -> str:
    """Return the name of a folder that results can go to; it is made if it does not exist."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=text) as file:
            file.write(bytes(4096))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be a folder that can be written ({_reason(error)}); name another"
        ) from error
    return text


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def require_memory(need: int, what: str) -> None:
    """Refuse work whose numbers this machine's memory cannot hold.

    Parameters
    ----------
    need : int
        Bytes, at least.
    what : str
        The options that ask for it.

    Raises
    ------
    ValueError
        If there are fewer free.
    """
    free = _free_memory()
    if need > free:
        raise ValueError(
            f"{what}: needs {_gigabytes(need)} of memory or more, and {_gigabytes(free)} are free; "
            "choose smaller sizes"
        )


def _gigabytes(count: int) -> str:
    return f"{count // 10**9:,} GB" if count >= 10**10 else f"{count / 1e9:.2g} GB"


def _free_memory() -> int:
    """Return how many bytes this process can still have."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        free = min(free, most - int((group / "memory.current").read_text()))
    return free


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
