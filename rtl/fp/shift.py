"""Shifts and counts by halves: a level of multiplexers for each bit of the distance."""

from __future__ import annotations

from amaranth import *


def shift_right_sticky(m: Module, value: Signal, distance: Signal, name: str) -> Signal:
    """Return ``value >> distance``, its last bit set if any bit that left it was ("sticky").

    The bits that leave are gathered on their way, level by level: shifting back and comparing
    with ``value`` would cost a second shifter. The longest steps come first: their zeros from above
    then cost no LUTs of their own, and the last level leaves room in its LUTs for what follows.

    Parameters
    ----------
    value : Signal
    distance : Signal
        Any; from the width of ``value`` on only the sticky bit is left.
    name : str
        Of the signals made here.
    """
    # A shift by a bit's worth and masks, not multiplexers: distances are as good as random, and
    # the processor that simulates a choice would guess it wrong half of the time.
    dropped: Value = Const(0, 1)
    for bit in reversed(range(len(distance))):
        step = min(1 << bit, len(value))
        here = Signal(len(value), name=f"{name}_{bit}")
        m.d.comb += here.eq(value >> Cat(C(0, bit), distance[bit]))
        dropped = dropped | (value[:step] & distance[bit].replicate(step))
        value = here
    sticky, shifted = Signal(name=f"{name}_sticky"), Signal(len(value), name=name)
    m.d.comb += [sticky.eq(dropped != 0), shifted.eq(value | sticky)]
    return shifted


def leading_zeros(m: Module, value: Value, name: str) -> Signal:
    """Return the number of zeros above the leading one of ``value``; its width if it is 0."""
    width = 1 << (len(value) - 1).bit_length()
    # Ones below stop the count of a value that is 0 at its width.
    padded = Cat(C((1 << (width - len(value))) - 1, width - len(value)), value)
    # Of parts side by side: whether one is empty, and its zeros if it is not. Two make one.
    parts: list[tuple[Value, list[Value]]] = [(~bit, []) for bit in padded]
    while len(parts) > 1:
        merged: list[tuple[Value, list[Value]]] = []
        for (low_empty, low), (high_empty, high) in zip(parts[::2], parts[1::2], strict=True):
            at = f"{name}_{width // len(parts) * 2}_{len(merged)}"
            empty = Signal(name=f"{at}_empty")
            zeros = [Signal(name=f"{at}_zeros_{n}") for n in range(len(low))]
            m.d.comb += empty.eq(low_empty & high_empty)
            m.d.comb += [
                of_both.eq(Mux(high_empty, of_low, of_high))
                for of_both, of_low, of_high in zip(zeros, low, high, strict=True)
            ]
            merged.append((empty, [*zeros, high_empty]))
        parts = merged
    ((empty, zeros),) = parts
    count = Signal(range(len(value) + 1), name=name)
    m.d.comb += count.eq(Cat(zeros) + empty)
    return count
