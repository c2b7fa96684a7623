"""Counting semaphores, and the gates that hold instructions back until theirs are raised."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SEMAPHORE_BITS, SEMAPHORES


class Semaphores(wiring.Component):
    """Sixteen counters with a gate for each engine.

    A raise in cycle x counts from cycle x + 1. A gate that holds an instruction opens in a cycle
    in which every semaphore of its mask is at least 1, which takes 1 from each. A gate waits for
    those of lower numbers that could open and want one of its semaphores: no two gates take from
    the same semaphore in a cycle.

    Parameters
    ----------
    gates, raisers : int

    Members
    -------
    raise_mask : ``In(16).array(raisers)``
        Semaphores to raise by 1; several in one cycle add up.
    want, offered, open : ``In(16)``, ``In(1)``, ``Out(1)`` arrays
        An instruction's mask; that there is one; it goes through, in this cycle.
    overflow : ``Out(1)``
        A semaphore rose above 255; held until reset.
    """

    def __init__(self, gates: int, raisers: int):
        self.gates, self.raisers = gates, raisers
        super().__init__(
            {
                "raise_mask": In(SEMAPHORES).array(raisers),
                "want": In(SEMAPHORES).array(gates),
                "offered": In(1).array(gates),
                "open": Out(1).array(gates),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        raised = Signal(SEMAPHORES)  # the count is not 0
        could = Signal(self.gates)
        for gate, want in enumerate(self.want):
            before = [could[g] & (self.want[g] & want).any() for g in range(gate)]
            m.d.comb += [
                could[gate].eq(self.offered[gate] & ((want & ~raised) == 0)),
                self.open[gate].eq(could[gate] & ~Cat(before).any()),
            ]
        self.state = []  # the counts: what proofs speak of (tests/formal)
        held = Signal()
        for number in range(SEMAPHORES):
            # A bit more than counts have: a raise too many, before anything is lost.
            count = Signal(SEMAPHORE_BITS + 1, name=f"count_{number}")
            self.state.append(count)
            take = Cat(self.open[g] & self.want[g][number] for g in range(self.gates)).any()
            raises = Cat(mask[number] for mask in self.raise_mask)
            # The gates are late: both sums are there when they come. A gate takes from 1 at least.
            more = Signal(SEMAPHORE_BITS + 1, name=f"more_{number}")
            m.d.comb += more.eq(count + sum(raises))
            m.d.sync += [
                count.eq(Mux(take, more - 1, more)),
                raised[number].eq(raises.any() | Mux(take, count[1:].any(), count.any())),
            ]
        m.d.comb += self.overflow.eq(held | Cat(count[-1] for count in self.state).any())
        m.d.sync += held.eq(self.overflow)
        return m
