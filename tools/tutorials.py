"""Run the tutorials of docs/tutorials/ and write what they print into their pages.

A page's ``python`` blocks are one program, its ``console`` blocks commands (lines of ``$ …``), both
run in one folder; what a block prints stands below it, in a ``text`` block or below its command.
``--check`` writes nothing and fails where a page is not what running it gives.

    python tools/tutorials.py [--check] [PAGE.md ...]
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
BLOCK = re.compile(r"```(python|console)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)


def ran(page: str) -> str:
    """Return a page with what its blocks print now.

    Parameters
    ----------
    page : str
        Markdown.

    Raises
    ------
    Exception
        What a block raises; RuntimeError if a command fails.
    """
    names: dict[str, Any] = {"__name__": "__main__"}

    def run(block: re.Match[str]) -> str:
        kind, text = block[1], block[2]
        if kind == "console":
            return f"```console\n{console(text)}```\n"
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(text, "tutorial", "exec"), names)  # the page is the program
        out = said.getvalue().rstrip()
        return f"```python\n{text}```\n" + (f"\n```text\n{out}\n```\n" if out else "")

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        try:
            return BLOCK.sub(run, page)
        finally:
            os.chdir(before)
            sys.path.remove(folder)


def console(text: str) -> str:
    """Return commands, each with its output below it."""
    lines = []
    path = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    for command in re.findall(r"^\$ (.*(?:\\\n.*)*)$", text, re.M):
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True,
            env={**os.environ, "PATH": path, "COLUMNS": "96"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr}")
        lines += [f"$ {command}", *[line.rstrip() for line in done.stdout.splitlines()]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Return 1 if ``--check`` finds a page that is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    code = 0
    for file in args.pages or sorted(TUTORIALS.glob("*.md")):
        old = file.read_text()
        new = ran(old)
        if old == new:
            continue
        if args.check:
            code = 1
            sys.stdout.writelines(
                difflib.unified_diff(
                    old.splitlines(True), new.splitlines(True), f"{file.name}: as it stands", "now"
                )
            )
        else:
            file.write_text(new)
    return code


if __name__ == "__main__":
    sys.exit(main())
