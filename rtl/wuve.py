"""WUVE: the weight update vector engine, one lane."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.config import FpTiming
from sat.rtl.fp.adder import Adder
from sat.rtl.fp.multiplier32 import Multiplier32


def wuve_latency(fp: FpTiming) -> int:
    """Return the cycles from a weight to its successor."""
    return 2 * fp.update_multiplier_stages + 3 * fp.adder_stages


class Wuve(wiring.Component):
    """Update a weight a cycle by SGD with momentum, decay and loss scale.

    The arithmetic is that of `sat.sim.golden.update.sgd`, operation by operation. With M the
    stages of a multiplier and A those of an adder:

    ============ ============================= ===========================
    cycle        multipliers                   adders
    ============ ============================= ===========================
    0            unscale * g, decay * w
    M            momentum * v (A later)        d = unscaled + decayed
    M + A                                      v' = m * v + d
    M + 2A       -learning_rate * v'
    2M + 2A                                    w' = w + that
    2M + 3A      out
    ============ ============================= ===========================

    Parameters
    ----------
    fp : FpTiming

    Members
    -------
    rates : ``In(isa.RATES)``
        Steady while weights are on their way, and from the cycle before the first.
    skip : ``In(1)``
        Give w and v back as they are; steady as well.
    w, v, g : ``In(32)``
    pruned : ``In(1)``
        FF prunes this weight.
    w_out, v_out : ``Out(32)``
        `wuve_latency` cycles later.

    Source: Fang et al. 2023, WUVE.
    """

    def __init__(self, fp: FpTiming) -> None:
        self.fp = fp
        super().__init__(
            {
                "rates": In(isa.RATES),
                "skip": In(1),
                "w": In(32),
                "v": In(32),
                "g": In(32),
                "pruned": In(1),
                "w_out": Out(32),
                "v_out": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rates = self.rates
        mul, add_cycles = self.fp.update_multiplier_stages, self.fp.adder_stages

        def later(value: Value, cycles: int, name: str) -> Value:
            for i in range(cycles):
                stage = Signal(len(value), name=f"{name}_{i}", reset_less=True)
                m.d.sync += stage.eq(value)
                value = stage
            return value

        def multiply(a: Value, b: Value, name: str) -> Value:
            m.submodules[name] = unit = Multiplier32(mul)
            m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
            return unit.product

        def add(a: Value, b: Value, name: str) -> Value:
            m.submodules[name] = unit = Adder(stages=add_cycles)
            m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
            return unit.total

        decay = Mux(self.pruned, rates.decay_pruned, rates.decay)
        unscaled = multiply(self.g, rates.unscale, "unscale")
        decayed = multiply(self.w, decay, "decay")
        # -0 changes no sum: that leaves a term out.
        no_decay = later(decay[:31] == 0, mul, "no_decay")
        d = add(unscaled, Mux(no_decay, 1 << 31, decayed), "add_decay")
        moved = multiply(later(self.v, add_cycles, "v_wait"), rates.momentum, "momentum")
        # The rates are steady: what is known of them takes no time from the weights.
        no_momentum = later(rates.momentum[:31] == 0, 1, "no_momentum")
        v_new = add(Mux(no_momentum, 1 << 31, moved), d, "add_momentum")
        rate = Cat(rates.learning_rate[:31], ~rates.learning_rate[31])
        step = multiply(v_new, rate, "rate")
        before = 2 * mul + 2 * add_cycles
        w_waited = later(self.w, before, "w_wait")
        w_new = add(w_waited, step, "add_step")
        w_old = later(w_waited, add_cycles, "w_old")
        v_old = later(self.v, before + add_cycles, "v_old")
        m.d.comb += [
            self.w_out.eq(Mux(self.skip, w_old, w_new)),
            self.v_out.eq(Mux(self.skip, v_old, later(v_new, mul + add_cycles, "v_new"))),
        ]
        return m
