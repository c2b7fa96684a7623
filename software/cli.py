"""The command ``sat``.

Exit codes: 0 done and equal, 1 a mismatch or a failed run, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from sat.commands import COMMANDS
from sat.commands.common import BAD_USAGE, DONE, FAILED, INTERRUPTED, TERMINATED, UsageError


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sat", description="N:M sparse training on open hardware.")
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    added = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"sat.commands.{name}")
        sub = added.add_parser(name, help=command.SUMMARY, description=command.run.__doc__)
        sub.set_defaults(run=command.run)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_arguments(sub)
    return parser


class _Ended(KeyboardInterrupt):
    """A signal asks the command to end, as Ctrl-C does: whatever it started ends with it."""


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn signals that end a command into `_Ended`; yield which have come."""
    seen: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise _Ended

    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    # What the parent has switched off stays so: in the background of a script, Ctrl-C is.
    caught = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {s: signal.getsignal(s) for s in caught if signal.getsignal(s) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, end)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_anything() -> None:
    """Let what a terminal's encoding lacks be replaced, not be an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _say(command: str, text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"sat {command}".rstrip() + f": {text}", file=sys.stderr)


def _flush() -> None:
    if sys.stdout is not None:  # closed by the parent
        sys.stdout.flush()


def _leave_output() -> None:
    """Have nothing left to write to an output that takes no more: not even at exit."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _lacks_memory(error: BaseException) -> bool:
    # Torch has no class of its own for it.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in ("allocate memory", "Storage size calculation"))
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``sat``; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if not given.
    """
    _show_anything()
    command = ""
    with _signals() as seen:
        try:
            args = _parser().parse_args(argv)
            if args.version:
                import sat

                print(sat.__version__)
                return DONE
            if args.command is None:
                _parser().error("no command")
            command = args.command
            return _run(args)
        except SystemExit as stop:
            return int(stop.code or 0)
        except BaseException as error:
            # Interrupted in the middle of an import, Python may raise something else.
            if not seen and not isinstance(error, KeyboardInterrupt):
                raise
            _leave_output()
            _say(command, "interrupted" if signal.SIGINT in seen or not seen else "terminated")
            return INTERRUPTED if signal.SIGINT in seen or not seen else TERMINATED


def _run(args: argparse.Namespace) -> int:
    """Run a command whose arguments are read; return its exit code."""
    from sat.errors import SatError
    from sat.sim.build import BuildError

    try:
        code: int = args.run(args)
        _flush()
        return code
    except UsageError as error:
        _say(args.command, f"error: {error}")
        return BAD_USAGE
    except (SatError, BuildError, OSError, ImportError) as error:
        _leave_output()
        if not isinstance(error, BrokenPipeError):  # else the reader left, and hears nothing
            _say(args.command, f"failed: {error}")
        return FAILED
    except (MemoryError, OverflowError, RuntimeError) as error:
        if not isinstance(error, OverflowError) and not _lacks_memory(error):
            raise
        reason = (str(error).splitlines() or ["memory ran out"])[0]
        _say(args.command, f"error: this machine cannot hold it ({reason}); choose smaller sizes")
        return BAD_USAGE
