"""The boards that gateware is made for: one table, of what commands and tools must know of each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sat.fpga.sdram.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class Target:
    """A board.

    Parameters
    ----------
    name : str
        What commands call it.
    pins : str
        The module of its pins, whose ``build_files(board, clock_hz)`` makes what tools are given.
        It is imported when that is wanted.
    nextpnr : tuple of str
        Its FPGA, package and speed, as nextpnr has them.
    capacity : mapping of str to int
        COMB, FF, DSP and block RAM of its FPGA.
    sdram : Geometry
        Its chip.
    memory : str
        ``"block"`` or ``"sdram"``: what is its memory unless told otherwise.
    baud : int
        Of the link unless told otherwise.
    loader : str
        What openFPGALoader calls it.
    port : str
        What the computer is connected to.
    """

    name: str
    pins: str
    nextpnr: tuple[str, ...]
    capacity: Mapping[str, int]
    sdram: Geometry
    memory: str
    baud: int
    loader: str
    port: str

    def build_files(self, board: Any, clock_hz: int) -> dict[str, str]:
        """Return what tools are given for a board's gateware (`sat.fpga.ecp5.build_files`)."""
        files: dict[str, str] = importlib.import_module(self.pins).build_files(board, clock_hz)
        return files


@dataclass(frozen=True, kw_only=True)
class VivadoTarget:
    """A card whose bitstream Vivado makes, of a project that is written for it.

    Parameters
    ----------
    name : str
        What commands call it.
    project : str
        The module of its project, whose ``project_files(card, clock_hz)`` makes the files of one,
        and whose ``crossings(rows, cols)`` says where an array goes from die to die. It is imported
        when that is wanted.
    clock_hz : int
        Of the device unless told otherwise.
    """

    name: str
    project: str
    clock_hz: int

    def crossings(self, rows: int, cols: int) -> tuple[int, ...]:
        """Return the rows behind which an array goes from die to die (`SatConfig.crossings`)."""
        found: tuple[int, ...] = importlib.import_module(self.project).crossings(rows, cols)
        return found

    def project_files(self, card: Any, clock_hz: int) -> dict[str, str]:
        """Return the files of a card's project (`sat.fpga.vivado.project_files`)."""
        module = importlib.import_module(self.project)
        files: dict[str, str] = module.project_files(card, clock_hz)
        return files


M12L64322A = Geometry(rows=11, columns=8, data_bits=32, refreshes=4096, masked=False)
"""8 MB in columns of 32 bits, with a REFRESH each 15.6 us (ESMT, revision 2.3); as a Colorlight i9
has it, without masks."""

BOARDS = {
    target.name: target
    for target in (
        Target(
            name="ulx3s-85f",
            pins="sat.fpga.ulx3s",
            nextpnr=("--85k", "--package", "CABGA381", "--speed", "6"),
            capacity={"COMB": 83_640, "FF": 83_640, "DSP": 156, "block RAM": 208},
            sdram=Geometry(),
            memory="block",
            baud=3_000_000,
            loader="ulx3s",
            port="port US1",
        ),
        Target(
            name="colorlight-i9",
            pins="sat.fpga.colorlight",
            nextpnr=("--45k", "--package", "CABGA381", "--speed", "6"),
            capacity={"COMB": 43_848, "FF": 43_848, "DSP": 72, "block RAM": 108},
            sdram=M12L64322A,
            memory="sdram",
            baud=115_200,
            loader="colorlight-i9",
            port="extension board",
        ),
    )
}
"""By name."""

CARDS = {
    target.name: target
    for target in (VivadoTarget(name="vcu1525", project="sat.fpga.vivado", clock_hz=100_000_000),)
}
"""Those that are Vivado's to finish, by name."""
