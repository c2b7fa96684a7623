"""Rounding to nearest, ties to even."""

from __future__ import annotations

from amaranth import *


def rounds_up(last: Value, guard: Value, rest: Value) -> Value:
    """Return whether to add one in the last place kept.

    Parameters
    ----------
    last : Value
        The last bit kept.
    guard : Value
        The first bit dropped.
    rest : Value
        Whether any bit behind it is set ("sticky").
    """
    return guard & (rest | last)
