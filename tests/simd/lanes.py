"""Compile a leaf for the tests, and run it for words of any width."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sat.rtl.stce import Link
from sat.sim.build import compile_library
from sat.sim.engines import LANES
from sat.sim.simd.grid import Grid
from sat.sim.simd.netlist import Netlist

DRIVER = """
#include <array>
#include <memory>
#include "grid.h"
using Port = std::array<uint32_t, {words}>;
extern "C" {{
Grid* grid_new() {{ return new Grid; }}
void grid_delete(Grid* grid) {{ delete grid; }}
void cycle(Grid* grid, bool rst, const Port* in, Port* out) {{
    for (int c = 0; c < Grid::COLS; ++c) grid->enter_i(c, in[c]);
    grid->settle({rst});
    for (int c = 0; c < Grid::COLS; ++c) grid->leave_i(c, out[c]);
    grid->step({rst});
}}
}}
"""


class Columns:
    """Leaves with an input `i` and an output `o`, side by side."""

    def __init__(self, leaf: Netlist, folder: Path, *, cols: int, flags: Sequence[str] = ("-O1",)):
        bits = len(leaf.ports["i"].bits)
        self.cols, self.words = cols, (bits + 31) // 32
        uniform = ("rst",) if "rst" in leaf.ports else ()
        grid = Grid("Grid", leaf, 1, cols, (), (Link("i", "i", "o", "o"),), uniform)
        (folder / "grid.h").write_text(grid.header())
        (folder / "lanes.h").write_text(LANES.read_text())
        source = folder / "driver.cpp"
        source.write_text(DRIVER.format(words=self.words, rst="rst" if uniform else ""))
        self._lib = ctypes.CDLL(str(compile_library("lanes_test", [source], flags)))
        self._lib.grid_new.restype = ctypes.c_void_p
        self._lib.grid_delete.argtypes = [ctypes.c_void_p]
        words = np.ctypeslib.ndpointer(np.uint32, flags="C")
        self._lib.cycle.argtypes = [ctypes.c_void_p, ctypes.c_bool, words, words]
        self._grid = self._lib.grid_new()

    def cycle(self, values: Sequence[int], rst: bool = False) -> list[int]:
        """Give each column a value; return what the columns show in this cycle."""
        given = np.array([_words(value, self.words) for value in values], np.uint32)
        shown = np.zeros((self.cols, self.words), np.uint32)
        self._lib.cycle(self._grid, rst, given, shown)
        return [int.from_bytes(row.tobytes(), "little") for row in shown]

    def __del__(self):
        if getattr(self, "_grid", None):
            self._lib.grid_delete(self._grid)


def _words(value: int, count: int) -> np.ndarray:
    return np.frombuffer(value.to_bytes(4 * count, "little"), np.uint32)
