"""The command ``sat``.

Exit codes: 0 done and equal, 1 a mismatch or a failed run, 2 bad usage.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sat.commands import COMMANDS
from sat.commands.common import BAD_USAGE, DONE, FAILED, UsageError


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``sat``; return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if not given.
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        if args.version:
            import sat

            print(sat.__version__)
            return DONE
        if args.command is None:
            parser.error("no command")
    except SystemExit as stop:
        return int(stop.code or 0)
    from sat.errors import SatError
    from sat.sim.build import BuildError

    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"sat {args.command}: error: {error}", file=sys.stderr)
        return BAD_USAGE
    except (SatError, BuildError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader left; nothing more can be said to it, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        print(f"sat {args.command}: failed: {error}", file=sys.stderr)
        return FAILED
