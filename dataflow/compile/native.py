"""The native part of planning a program (order.cpp) from Python."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sat.dataflow.columns import Array
from sat.sim.build import compile_library

SOURCE = Path(__file__).parent / "order.cpp"


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compile_library("order", [SOURCE], ("-O2",))))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.order_fills.restype = number
    library.order_fills.argtypes = [pointer, number, number, number, *[pointer] * 4]
    library.order_rows.restype = None
    library.order_rows.argtypes = [pointer, pointer, number, number, number, pointer]
    return library


class Fills(NamedTuple):
    """What the slots of a buffer hold in turn: fill n is in slot n % slots.

    Parameters
    ----------
    of_step : (steps,) int64
        The fill that serves each step, or -1.
    key, first_use, last_use : (fills,) int64
    """

    of_step: Array
    key: Array
    first_use: Array
    last_use: Array


def fills(keys: Array, slots: int, distinct: int) -> Fills:
    """Return how a buffer's slots are filled: each in turn, when what a step needs is not there.

    Parameters
    ----------
    keys : (steps,) int64
        What steps need, below ``distinct``, or -1.
    """
    keys = np.ascontiguousarray(keys, np.int64)
    made = np.empty((4, len(keys)), np.int64)
    count = _library().order_fills(
        keys.ctypes.data, len(keys), slots, distinct, *(row.ctypes.data for row in made)
    )
    return Fills(made[0], *(row[:count] for row in made[1:]))


class Loads(NamedTuple):
    """Loads in the order of their use, as `Loads` of order.cpp: (loads,) int64 each."""

    first_use: Array
    freed: Array
    is_mask: Array
    at: Array
    size: Array


class Stores(NamedTuple):
    """Steps and their stores, as `Steps` of order.cpp: (steps,) int64 each."""

    after: Array
    at: Array
    size: Array


def rows(
    loads: Loads,
    stores: Stores,
    multiplies: int,
    total: int,
    lookahead: int,
    ahead: int,
    behind: int,
) -> Array:
    """Return the rows of a table of ``total`` instructions in the order of the program."""
    made = np.empty(total, np.int64)
    given = [np.ascontiguousarray(column, np.int64) for column in (*loads, *stores)]
    pointers = [column.ctypes.data for column in given]
    of_loads = (ctypes.c_int64 * 6)(*pointers[:5], len(given[0]))
    of_steps = (ctypes.c_int64 * 5)(*pointers[5:], multiplies, len(given[5]))
    _library().order_rows(
        ctypes.byref(of_loads),
        ctypes.byref(of_steps),
        lookahead,
        ahead,
        behind,
        made.ctypes.data,
    )
    return made
