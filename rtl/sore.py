"""SORE: the sparse online reduction engine, streaming selection of N of every M elements."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP16


class SoreLane(wiring.Component):
    """Keep the N largest magnitudes of every M elements of a stream, an element a cycle.

    Every element is compared, as it comes, with those of its group that came before: it counts
    the ones that beat it, and each of them counts it if it beats them. With the group's last
    element all counts are final, and an element is kept if fewer than N beat it. Equal
    magnitudes keep the earlier one; NaN counts as larger than all, any two NaN as equal.

    Timing. If the last element of a group comes in cycle t, its k-th kept element is at the
    output in cycle t + `stages` + k, and ``kept`` tells of its j-th element in cycle
    t + `stages` + j: all done before the answers to the next group can begin.

    Parameters
    ----------
    max_m : int
        Largest M.
    stages : int
        Registers, 1 or 2; the second stands between comparing and counting.

    Members
    -------
    n, log2_m : ``In``
        The pattern, N:2**log2_m; 1:1 keeps everything. Steady from a group's first element to
        its last.
    clear : ``In(1)``
        Forget a group that is not complete: the next element starts one.
    valid, value : ``In(1)``, ``In(16)``
        An element.
    out_valid, out_value, out_index : ``Out``
        A kept element and its place in its group; ascending inside a group.
    kept : ``Out(1)``
        See above.

    Source: Fang et al. 2023, SORE; the counting is this project's.
    """

    def __init__(self, max_m: int, stages: int = 1):
        if stages not in (1, 2):
            raise ValueError(f"stages={stages}: must be 1 or 2")
        self.max_m, self.stages = max_m, stages
        self.index_bits = max(1, (max_m - 1).bit_length())
        super().__init__(
            {
                "n": In(5),
                "log2_m": In(3),
                "clear": In(1),
                "valid": In(1),
                "value": In(16),
                "out_valid": Out(1),
                "out_value": Out(16),
                "out_index": Out(4),
                "kept": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        size, bits = self.max_m, self.index_bits
        number = data.View(FP16.layout, self.value)
        is_nan = (number.exponent == FP16.max_exponent) & (number.mantissa != 0)
        key = Signal(15)
        m.d.comb += key.eq(self.value[:15] | is_nan.replicate(15))

        # The group that is coming in: every element meets those before it.
        at = Signal(bits)
        last = at == ((1 << self.log2_m) - 1)[:bits]
        keys = [Signal(15, name=f"key_{i}", reset_less=True) for i in range(size)]
        with m.If(self.valid):
            m.d.sync += at.eq(Mux(last, 0, at + 1))
            for i in range(size):
                with m.If(at == i):
                    m.d.sync += keys[i].eq(key)
        with m.If(self.clear):
            m.d.sync += at.eq(0)

        def stage(value: Value, name: str) -> Value:
            if self.stages == 1:
                return value
            register = Signal(len(value), name=name, reset_less=len(value) > 1)
            m.d.sync += register.eq(value)
            return register

        # Who beats whom.
        counting, ends = stage(self.valid, "counting"), stage(self.valid & last, "ends")
        place, limit = stage(at, "place"), stage(self.n, "limit")
        value = stage(self.value, "value_counted")
        wins = stage(Cat(keys[i] >= key for i in range(size)), "wins")  # against what has come
        values = [Signal(16, name=f"value_{i}", reset_less=True) for i in range(size)]
        beaten = [Signal(5, name=f"beaten_{i}", reset_less=True) for i in range(size)]
        now = [Signal(5, name=f"now_{i}") for i in range(size)]  # with this element counted
        of_new = Signal(5)
        m.d.comb += of_new.eq(sum((i < place) & wins[i] for i in range(size)))
        for i in range(size):
            here = place == i
            m.d.comb += now[i].eq(Mux(here, of_new, beaten[i] + ~wins[i]))
            with m.If(counting):
                m.d.sync += beaten[i].eq(now[i])
                with m.If(here):
                    m.d.sync += values[i].eq(value)

        # The group that is going out.
        out_values = [Signal(16, name=f"out_{i}", reset_less=True) for i in range(size)]
        pending = Signal(size)
        mask = Signal(size)
        lowest = Signal(size)
        m.d.comb += [
            lowest.eq(pending & (~pending + 1)),
            self.out_valid.eq(pending != 0),
            self.kept.eq(mask[0]),
        ]
        for i in range(size):
            with m.If(lowest[i]):
                m.d.comb += [self.out_value.eq(out_values[i]), self.out_index.eq(i)]
        m.d.sync += [pending.eq(pending & ~lowest), mask.eq(mask >> 1)]
        with m.If(ends):
            keep = Cat((now[i] < limit) & (1 if i == 0 else i <= place) for i in range(size))
            m.d.sync += [pending.eq(keep), mask.eq(keep)]
            for i in range(size):
                m.d.sync += out_values[i].eq(Mux(place == i, value, values[i]))
        return m
