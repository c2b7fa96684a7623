"""Counting semaphores, and the gates that hold instructions back until theirs are raised."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SEMAPHORE_BITS, SEMAPHORES


class Semaphores(wiring.Component):
    """Sixteen counters with a gate for each engine.

    A raise in cycle x counts from cycle x + 1. A gate opens in a cycle in which every semaphore
    of its mask is at least 1; ``take`` says that the instruction went through, which takes 1
    from each. Gates with lower numbers go first where two want the same semaphore in a cycle.

    Parameters
    ----------
    gates, raisers : int

    Members
    -------
    raise_mask : ``In(16).array(raisers)``
        Semaphores to raise by 1; several in one cycle add up.
    want, open, take : ``In(16)``, ``Out(1)``, ``In(1)`` arrays
    overflow : ``Out(1)``
        A semaphore would rise above 255; held until reset.
    """

    def __init__(self, gates: int, raisers: int):
        self.gates, self.raisers = gates, raisers
        super().__init__(
            {
                "raise_mask": In(SEMAPHORES).array(raisers),
                "want": In(SEMAPHORES).array(gates),
                "offered": In(1).array(gates),
                "open": Out(1).array(gates),
                "take": In(1).array(gates),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        raised = Signal(SEMAPHORES)
        claimed: Value = Const(0, SEMAPHORES)
        for gate in range(self.gates):
            want = self.want[gate]
            m.d.comb += self.open[gate].eq((want & (~raised | claimed)) == 0)
            through = self.offered[gate] & self.open[gate]
            claimed = claimed | (want & through.replicate(SEMAPHORES))
        self.state = []  # the counts: what proofs speak of (tests/formal)
        for number in range(SEMAPHORES):
            count = Signal(SEMAPHORE_BITS, name=f"count_{number}")
            self.state.append(count)
            raises = sum(self.raise_mask[r][number] for r in range(self.raisers))
            takes = sum(self.take[g] & self.want[g][number] for g in range(self.gates))
            after = Signal(SEMAPHORE_BITS + 2, name=f"after_{number}")
            m.d.comb += [raised[number].eq(count != 0), after.eq(count + raises - takes)]
            m.d.sync += count.eq(after)
            with m.If(after[SEMAPHORE_BITS:].any()):
                m.d.sync += self.overflow.eq(1)
        return m
