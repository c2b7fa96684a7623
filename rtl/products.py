"""Products of an instruction's fields, for the rules that it is checked by (`sat.rtl.check`)."""

from __future__ import annotations

from collections.abc import Callable

from amaranth import *

from sat.rtl.isa import Opcode

SLOTS = 2
"""Cycles of an instruction in which multipliers work, each on a product of its own."""

UNITS = ((17, 17), (17, 32), (17, 32))
"""The multipliers: widths of the factors that each takes."""


class Products:
    """Multipliers that all rules share: a pair of factors a cycle each.

    Rules ask for products of fields that are steady; the first multiplier that is wide enough
    and has a free slot makes them. The factors of the second slot come from registers.
    """

    def __init__(self) -> None:
        self._results = [
            [Signal(a + b, name=f"product_{unit}_{slot}") for slot in range(SLOTS)]
            for unit, (a, b) in enumerate(UNITS)
        ]
        # By unit and slot: two factors, and whether they come as they are, not from registers.
        self._wanted: dict[Opcode, dict[tuple[int, int], tuple[Value, Value, bool]]] = {}

    def of(self, opcode: Opcode) -> Callable[..., Value]:
        """Return what the rules of an instruction get their products from.

        It takes two factors, the first of 17 bits, and gives the register that has their product
        from cycle `SLOTS` of the instruction on. ``late``: a factor is worked out of fields, which
        the first slot leaves no time for; ``after``: one is a product that was asked for before;
        ``first``: it is there a cycle before the others.
        """
        wanted = self._wanted.setdefault(opcode, {})

        def times(
            a: Value, b: Value, late: bool = False, after: bool = False, first: bool = False
        ) -> Value:
            free = (
                (unit, slot)
                for unit, (a_bits, b_bits) in enumerate(UNITS)
                for slot in range(int(late or after), 1 if first else SLOTS)
                if (unit, slot) not in wanted and len(a) <= a_bits and len(b) <= b_bits
            )
            unit, slot = next(free)
            wanted[unit, slot] = a, b, slot == 0 or after
            return self._results[unit][slot][: len(a) + len(b)]

        return times

    def make(
        self, m: Module, kinds: dict[Opcode, Signal], age: Value, fresh: Value, coming: Value
    ) -> None:
        """Multiply: in cycle ``age`` of an instruction, of whichever kind, what it has there.

        ``fresh``: the next cycle may be the first of an instruction, of opcode ``coming``.
        """
        for unit, (widths, results) in enumerate(zip(UNITS, self._results, strict=True)):
            given: list[Value] = [Const(0), Const(0)]
            late: list[Value] = [Const(0), Const(0)]
            direct = Signal(name=f"direct_{unit}")  # the factors of this cycle come as they are
            soon: Value = Const(0)
            for code, wanted in self._wanted.items():
                own = {slot: made for (of, slot), made in wanted.items() if of == unit}
                at_once = [slot for slot, (_, _, direct) in own.items() if direct]
                # One pair of a kind at most: that it is of this kind chooses it, not the cycle.
                assert len(at_once) <= 1, f"{code.name}: two products of multiplier {unit} at once"
                for slot, (a, b, _) in own.items():
                    into = given if slot in at_once else late
                    for n, factor in enumerate((a, b)):
                        into[n] = into[n] | (factor & kinds[code].replicate(len(factor)))
                for slot in at_once:
                    before = (
                        fresh & (coming == code.value)
                        if slot == 0
                        else kinds[code] & (age == slot - 1)
                    )
                    soon = soon | before
            m.d.sync += direct.eq(soon)
            factors = []
            for n, bits in enumerate(widths):
                held = Signal(bits, name=f"held_{unit}_{n}", reset_less=True)
                m.d.sync += held.eq(late[n])
                factors.append(Mux(direct, given[n][:bits], held))
            product = Signal(sum(widths), name=f"product_{unit}")
            m.d.comb += product.eq(factors[0] * factors[1])
            for slot, result in enumerate(results):
                with m.If(age == slot):
                    m.d.sync += result.eq(product)
