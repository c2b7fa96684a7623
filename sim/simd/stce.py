"""The STCE as a class of lanes, and how the rest of a device hands it its edges each cycle."""

from __future__ import annotations

from collections.abc import Iterable

from sat.rtl.config import SatConfig
from sat.rtl.stce import COLUMN_LINKS, ROW_LINKS
from sat.rtl.uspe import Uspe
from sat.sim.simd.grid import Grid
from sat.sim.simd.netlist import netlist

PART = "stce"
"""What `sat.rtl.verilog.emit` calls the array; the class is `Stce`."""


def header(config: SatConfig) -> str:
    """Return C++: the class `Stce` and how it is coupled to the model of the rest.

    ``show(array, top)`` sets the rest's inputs to what the array gives in this cycle;
    ``advance(array, top)`` takes what the rest gives and ends the cycle for the array.

    Raises
    ------
    sat.sim.simd.netlist.NetlistError
        A cell of the USPE has no translation.
    """
    grid = Grid(
        name="Stce",
        leaf=netlist(Uspe(config), "uspe"),
        rows=config.rows,
        cols=config.cols,
        row_links=ROW_LINKS,
        column_links=COLUMN_LINKS,
        uniform=("rst", "ws"),
    )
    return "\n".join([grid.header(), *_coupling(config), ""])


def _coupling(config: SatConfig) -> Iterable[str]:
    flags = f"top.rst, top.{PART}_ws"
    sides = ((ROW_LINKS, config.rows), (COLUMN_LINKS, config.cols))
    yield "template <class Top>"
    yield "void show(Stce& array, Top& top) {"
    yield f"    array.settle({flags});"
    for links, count in sides:
        for link in links:
            if link.end is not None:
                for i in range(count):
                    yield f"    array.leave_{link.enters}({i}, top.{PART}_{link.end}_{i});"
    yield "}"
    yield "template <class Top>"
    yield "void advance(Stce& array, const Top& top) {"
    for links, count in sides:
        for link in links:
            for i in range(count):
                yield f"    array.enter_{link.enters}({i}, top.{PART}_{link.edge}_{i});"
    yield f"    array.step({flags});"
    yield "}"


def boundary_header(config: SatConfig) -> str:
    """Return C++: ``boundary(top, words)`` appends all that crosses the array's edge in a cycle.

    First `ws`, then each member of the `Stce` in turn, as words of 32 bits.
    """
    lines = [
        "#pragma once",
        '#include "lanes.h"',
        "",
        "template <class Top, class Words>",
        "void boundary(const Top& top, Words& words) {",
        f"    lanes::append(words, top.{PART}_ws);",
    ]
    for links, count in ((ROW_LINKS, config.rows), (COLUMN_LINKS, config.cols)):
        for link in links:
            for member in filter(None, (link.edge, link.end)):
                lines += [
                    f"    lanes::append(words, top.{PART}_{member}_{i});" for i in range(count)
                ]
    return "\n".join([*lines, "}", ""])
