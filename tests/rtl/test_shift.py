"""Shifts and counts by halves, against Python's integers."""

from __future__ import annotations

import pytest
from amaranth import *
from amaranth.sim import Simulator
from hypothesis import given
from hypothesis import strategies as st

from sat.rtl.fp.shift import leading_zeros, shift_right_sticky


def values(make, inputs):
    """Return what a function of signals makes of each tuple of inputs."""
    m = Module()
    signals, out = make(m)
    simulator = Simulator(m)
    found = []

    async def bench(ctx):
        for numbers in inputs:
            for signal, number in zip(signals, numbers, strict=True):
                ctx.set(signal, number)
            found.append(ctx.get(out))

    simulator.add_testbench(bench)
    simulator.run()
    return found


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 27, 28, 32, 48, 64])
def test_leading_zeros_at_every_place(width):
    def make(m):
        value = Signal(width)
        return [value], leading_zeros(m, value, "zeros")

    each = [0, *(1 << n for n in range(width)), *((1 << n) - 1 for n in range(1, width + 1))]
    assert values(make, [(x,) for x in each]) == [width - x.bit_length() for x in each]


@given(st.data())
def test_a_shift_keeps_a_sticky_bit(data):
    width = data.draw(st.sampled_from([1, 2, 3, 27, 48]))
    bits = data.draw(st.sampled_from([1, 2, 5, 6]))
    number = st.integers(0, (1 << width) - 1)
    pairs = data.draw(st.lists(st.tuples(number, st.integers(0, (1 << bits) - 1)), min_size=1))

    def make(m):
        value, distance = Signal(width), Signal(bits)
        return [value, distance], shift_right_sticky(m, value, distance, "shifted")

    lost = [x & ((1 << d) - 1) != 0 for x, d in pairs]
    want = [x >> d | sticky for (x, d), sticky in zip(pairs, lost, strict=True)]
    assert values(make, pairs) == want
