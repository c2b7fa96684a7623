"""STCE: the sparse tensor computing engine, a systolic array of USPEs."""

from __future__ import annotations

from typing import NamedTuple

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SatConfig
from sat.rtl.uspe import Uspe, a_link_layout, b_link_layout
from sat.rtl.verilog import leaf


class Link(NamedTuple):
    """A signal that passes from USPE to USPE.

    It comes into the array's edge as the member ``edge``, enters each USPE at its port ``enters``,
    leaves it for the next at ``leaves``; the last one's is the member ``end``, if that is used.
    """

    edge: str
    enters: str
    leaves: str
    end: str | None = None


ROW_LINKS = (Link("a", "a_in", "a_out"),)
"""What passes from west to east."""

COLUMN_LINKS = (Link("b", "b_in", "b_out"), Link("psum_in", "psum_in", "psum_out", "psum_out"))
"""What passes from north to south."""


class Stce(wiring.Component):
    """R x C `Uspe`: A words go east, B values and sums go south, one USPE a cycle.

    What enters column c must do so c cycles after what enters column 0. A row's word must meet
    the sums that come from the row above: see `sat.rtl.compute` for the skew of the rows. In front
    of the rows that are `SatConfig.crossings` all that goes south passes one register more.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    ws : ``In(1)``
        1: weight stationary. May change only while the array is empty.
    a : ``In(a_link_layout).array(rows)``
        A words into the west edge.
    b : ``In(b_link_layout).array(cols)``
        B values into the north edge.
    psum_in, psum_out : ``In(32).array(cols)``, ``Out(32).array(cols)``
        FP32 sums into the north edge and out of the south edge.

    Source: Fang et al. 2023, the STCE.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "ws": In(1),
                "a": In(a_link_layout(config)).array(config.rows),
                "b": In(b_link_layout(config)).array(config.cols),
                "psum_in": In(32).array(config.cols),
                "psum_out": Out(32).array(config.cols),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows, cols = self.config.rows, self.config.cols
        south = [{link: getattr(self, link.edge)[c] for link in COLUMN_LINKS} for c in range(cols)]
        for r in range(rows):
            if r in self.config.crossings:
                for c in range(cols):
                    for link, value in south[c].items():
                        south[c][link] = _register(m, value, f"{link.enters}_{r}_{c}")
            east = {link: getattr(self, link.edge)[r] for link in ROW_LINKS}
            for c in range(cols):
                uspe = leaf(platform, lambda: Uspe(self.config), "uspe")
                m.submodules[f"uspe_{r}_{c}"] = uspe.element
                m.d.comb += uspe.ws.eq(self.ws)
                for passing in (east, south[c]):
                    for link, value in passing.items():
                        m.d.comb += getattr(uspe, link.enters).eq(value)
                        passing[link] = getattr(uspe, link.leaves)
        for link in COLUMN_LINKS:
            if link.end is not None:
                m.d.comb += [getattr(self, link.end)[c].eq(south[c][link]) for c in range(cols)]
        return m


def _register(m: Module, value: Value, name: str) -> Value:
    """Return a value of the cycle before."""
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register
