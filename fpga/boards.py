"""The boards that gateware is made for: one table, of what commands and tools must know of each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    loader : str
        What openFPGALoader calls it.
    port : str
        Where its USB cable goes.
    """

    name: str
    pins: str
    nextpnr: tuple[str, ...]
    capacity: Mapping[str, int]
    loader: str
    port: str

    def build_files(self, board: Any, clock_hz: int) -> dict[str, str]:
        """Return what tools are given for a board's gateware (`sat.fpga.ecp5.build_files`)."""
        files: dict[str, str] = importlib.import_module(self.pins).build_files(board, clock_hz)
        return files


BOARDS = {
    target.name: target
    for target in (
        Target(
            name="ulx3s-85f",
            pins="sat.fpga.ulx3s",
            nextpnr=("--85k", "--package", "CABGA381", "--speed", "6"),
            capacity={"COMB": 83_640, "FF": 83_640, "DSP": 156, "block RAM": 208},
            loader="ulx3s",
            port="US1",
        ),
    )
}
"""By name."""
