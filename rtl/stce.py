"""STCE: the sparse tensor computing engine, a systolic array of USPEs."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SatConfig
from sat.rtl.uspe import Uspe, a_link_layout, b_link_layout
from sat.rtl.verilog import leaf


class Stce(wiring.Component):
    """R x C `Uspe`: A words go east, B values and sums go south, one USPE a cycle.

    What enters column c must do so c cycles after what enters column 0. A row's word must meet
    the sums that come from the row above: see `sat.rtl.compute` for the skew of the rows.

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
        b = [self.b[c] for c in range(cols)]
        psums = [self.psum_in[c] for c in range(cols)]
        for r in range(rows):
            a = self.a[r]
            for c in range(cols):
                uspe = leaf(platform, lambda: Uspe(self.config), "uspe")
                m.submodules[f"uspe_{r}_{c}"] = uspe.element
                m.d.comb += [
                    uspe.ws.eq(self.ws),
                    uspe.a_in.eq(a),
                    uspe.b_in.eq(b[c]),
                    uspe.psum_in.eq(psums[c]),
                ]
                a, b[c], psums[c] = uspe.a_out, uspe.b_out, uspe.psum_out
        for c in range(cols):
            m.d.comb += self.psum_out[c].eq(psums[c])
        return m
