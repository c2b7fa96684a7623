"""What a component takes of an UltraScale+, by Yosys alone: no Vivado, no place, no route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from amaranth.lib import wiring

from sat.fpga.area import cells_of

XCVU9P = {"LUT": 1_182_240, "FF": 2_364_480, "DSP": 6_840, "RAMB36": 2_160}
"""What the FPGA of a VCU1525 has, in three super logic regions (AMD DS923, table 1)."""

_PAIRED_INPUTS = 5

_RAM_LUTS = {"RAM32X1D": 2, "RAM64X1D": 2, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8}
"""LUTs of a cell of distributed RAM (AMD UG974)."""


@dataclass(frozen=True)
class UltraArea:
    """Cells of an UltraScale+.

    Parameters
    ----------
    lut, memory_lut : float
        LUTs of six inputs as logic; as distributed RAM and shift registers.
    pairs : float
        Of ``lut``, how many share a LUT with another (`pairs_of`); 0 where nobody counted. Yosys
        itself has each small function take a LUT.
    ff, dsp : float
        Flip-flops; DSP48E2 multipliers.
    ramb36 : float
        Block RAMs of 36 kbit; one of 18 kbit is half a one.
    """

    lut: float = 0
    memory_lut: float = 0
    pairs: float = 0
    ff: float = 0
    dsp: float = 0
    ramb36: float = 0

    @property
    def luts(self) -> float:
        """LUTs in all, one for each function."""
        return self.lut + self.memory_lut

    @property
    def shared_luts(self) -> float:
        """LUTs in all, one for each pair."""
        return self.luts - self.pairs

    def __add__(self, other: UltraArea) -> UltraArea:
        return UltraArea(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, count: float) -> UltraArea:
        return UltraArea(*(getattr(self, f.name) * count for f in fields(self)))

    def __sub__(self, other: UltraArea) -> UltraArea:
        return self + other * -1


def area_of(cells: Mapping[str, int]) -> UltraArea:
    """Return the area of cells, given how many there are of each type."""

    def count(*prefixes: str) -> int:
        return sum(number for cell, number in cells.items() if cell.startswith(prefixes))

    # An inverter that is left over takes a LUT.
    return UltraArea(
        lut=sum(cells.get(f"LUT{inputs}", 0) for inputs in range(1, 7)) + count("INV"),
        memory_lut=count("SRL") + sum(cells.get(ram, 0) * n for ram, n in _RAM_LUTS.items()),
        ff=count("FD"),
        dsp=count("DSP48E2"),
        ramb36=count("RAMB36") + count("RAMB18") / 2,
    )


def synthesis(top: str = "top") -> tuple[str, ...]:
    """Return Yosys' commands that make a flat netlist of a module: for 200 MHz, of few LUTs.

    Without a period abc9 maps for the least delay, at any price. Yosys' own prices of a LUT are 1
    to 5, by its inputs, as if small ones were put together later; here each counts as one.
    """
    command = f"synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top {top}"
    return (
        "scratchpad -set abc9.D 5000",
        f"{command} -run begin:map_luts",
        *(f"setattr -mod -set abc9_lut 1 =LUT{inputs}" for inputs in range(1, 7)),
        f"{command} -run map_luts:",
    )


def ultrascale_area(component: wiring.Component) -> UltraArea:
    """Return what a component takes of an UltraScale+, flat and by itself.

    Raises
    ------
    sat.sim.build.BuildError
        If Yosys is missing or fails.
    """
    return area_of(cells_of(component, *synthesis(), distributed_ram=True))


def pairs_of(module: Mapping[str, Any]) -> int:
    """Return how many LUTs of a netlist can share one with another, with no wire more.

    A LUT of six inputs is two of five with the same inputs (AMD UG574). A function goes with
    another if its inputs are among the other's, five at most. Vivado pairs more than that:
    functions whose inputs are five in all, or two that are near each other.

    Parameters
    ----------
    module : dict
        Of Yosys' JSON: cells of an UltraScale+.
    """
    alone = Counter(
        frozenset(
            wire
            for port, (wire,) in cell["connections"].items()
            if cell["port_directions"][port] == "input" and isinstance(wire, int)
        )
        for cell in module["cells"].values()
        if cell["type"].startswith(("LUT", "INV"))
    )
    pairs = 0
    for inputs in sorted(alone, key=lambda inputs: (-len(inputs), sorted(inputs))):
        if len(inputs) > _PAIRED_INPUTS:
            continue
        pairs += alone[inputs] // 2
        alone[inputs] %= 2
        # The largest that fits: what has few inputs finds another more easily.
        among = (
            frozenset(some)
            for size in reversed(range(1, len(inputs)))
            for some in combinations(sorted(inputs), size)
        )
        other = next((some for some in among if alone[some]), None) if alone[inputs] else None
        if other is not None:
            pairs += 1
            alone[inputs] = 0
            alone[other] -= 1
    return pairs
