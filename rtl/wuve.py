"""WUVE: the weight update vector engine, one lane."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.fp import multiplier32
from sat.rtl.fp.adder import Adder
from sat.rtl.fp.multiplier32 import Multiplier32

ADDER_STAGES = 4
WUVE_LATENCY = 2 * multiplier32.LATENCY + 3 * ADDER_STAGES
"""Cycles from a weight to its successor."""


class Wuve(wiring.Component):
    """Update a weight a cycle by SGD with momentum, decay and loss scale.

    The arithmetic is that of `sat.sim.golden.update.sgd`, operation by operation:

    ======== ============================= ===========================
    cycle    multipliers                   adders
    ======== ============================= ===========================
    0        unscale * g, decay * w
    3        momentum * v (4 later)        d = unscaled + decayed
    7                                      v' = m * v + d
    11       -learning_rate * v'
    14                                     w' = w + that
    18       out
    ======== ============================= ===========================

    Members
    -------
    rates : ``In(isa.RATES)``
        Steady while weights are on their way.
    skip : ``In(1)``
        Give w and v back as they are; steady as well.
    w, v, g : ``In(32)``
    pruned : ``In(1)``
        FF prunes this weight.
    w_out, v_out : ``Out(32)``
        `WUVE_LATENCY` cycles later.

    Source: Fang et al. 2023, WUVE.
    """

    def __init__(self) -> None:
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
        rates, mul = self.rates, multiplier32.LATENCY

        def later(value: Value, cycles: int, name: str) -> Value:
            for i in range(cycles):
                stage = Signal(len(value), name=f"{name}_{i}", reset_less=True)
                m.d.sync += stage.eq(value)
                value = stage
            return value

        def multiply(a: Value, b: Value, name: str) -> Value:
            m.submodules[name] = unit = Multiplier32()
            m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
            return unit.product

        def add(a: Value, b: Value, name: str) -> Value:
            m.submodules[name] = unit = Adder(stages=ADDER_STAGES)
            m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
            return unit.total

        decay = Mux(self.pruned, rates.decay_pruned, rates.decay)
        unscaled = multiply(self.g, rates.unscale, "unscale")
        decayed = multiply(self.w, decay, "decay")
        # -0 changes no sum: that leaves a term out.
        no_decay = later(decay[:31] == 0, mul, "no_decay")
        d = add(unscaled, Mux(no_decay, 1 << 31, decayed), "add_decay")
        moved = multiply(later(self.v, ADDER_STAGES, "v_wait"), rates.momentum, "momentum")
        v_new = add(Mux(rates.momentum[:31] == 0, 1 << 31, moved), d, "add_momentum")
        rate = Cat(rates.learning_rate[:31], ~rates.learning_rate[31])
        step = multiply(v_new, rate, "rate")
        before = WUVE_LATENCY - ADDER_STAGES
        w_waited = later(self.w, before, "w_wait")
        w_new = add(w_waited, step, "add_step")
        m.d.comb += [
            self.w_out.eq(Mux(self.skip, later(w_waited, ADDER_STAGES, "w_old"), w_new)),
            self.v_out.eq(
                Mux(
                    self.skip,
                    later(self.v, WUVE_LATENCY, "v_old"),
                    later(v_new, mul + ADDER_STAGES, "v_new"),
                )
            ),
        ]
        return m
