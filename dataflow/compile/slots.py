"""What planned programs are made of: operands in the slots of buffers, and semaphores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.columns import Array, Value


class Semaphore(IntEnum):
    """What the compiler's semaphores mean, by bit number."""

    A_FULL = 0
    A_FREE = 1
    B_FULL = 2
    B_FREE = 3
    START_FULL = 4
    START_FREE = 5
    OUTPUT_FULL = 6
    OUTPUT_FREE = 7
    MASK_FULL = 8
    MASK_FREE = 9
    SUMS = 10
    """Sums are in the output buffer for the next MULTIPLY to add to."""
    UPDATE_FULL = 11
    UPDATE_FREE = 12
    MADE_FULL = 13
    MADE_FREE = 14


def bit(semaphore: Semaphore) -> int:
    """Return the mask with just this semaphore."""
    return 1 << semaphore


NONE = -1
"""No start values."""


@dataclass(frozen=True)
class Steps:
    """The MULTIPLYs of a plan in order, an element each; what they need, what becomes of sums.

    Parameters
    ----------
    a, b : (count,) int64
        Numbers, in the plan, of what they need of the operands.
    start : (count,) int64 or None
        Of their start values, or `NONE`; None if there are none at all.
    body : dict of str to int or (count,) int64
        Fields, bases counted from the start of the slots.
    output : (count,) int64
        Number of its place among all places ever taken in the output buffer.
    opens, closes : (count,) bool
        Takes that place; is the last to add to its sums, which are stored then.
    adds, added : (count,) bool or None
        To sums that an earlier one left in its place; a later one adds to these.
    row, col : (count,) int64
        Its tile.
    """

    a: Array
    b: Array
    start: Array | None
    body: Mapping[str, Value]
    output: Array
    opens: NDArray[np.bool_]
    closes: NDArray[np.bool_]
    row: Array
    col: Array
    adds: NDArray[np.bool_] | None = None
    added: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.a)

    def stacked(self, count: int, a: int, b: int, start: int, rows: int) -> Steps:
        """Return the plan of a stack of equal products, one after the other.

        Parameters
        ----------
        a, b, start, rows : int
            How many different operands, start values and rows of tiles a product has.
        """
        number = np.repeat(np.arange(count), len(self))

        def again(column: Array, apart: int) -> Array:
            return np.tile(column, count) + apart * number

        starts = self.start
        if starts is not None:
            starts = np.where(np.tile(starts, count) == NONE, NONE, again(starts, start))

        def flags(column: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
            return None if column is None else np.tile(column, count)

        return replace(
            self,
            a=again(self.a, a),
            b=again(self.b, b),
            start=starts,
            body={
                name: np.tile(value, count) if isinstance(value, np.ndarray) else value
                for name, value in self.body.items()
            },
            output=again(self.output, int(self.output[-1]) + 1),
            opens=np.tile(self.opens, count),
            closes=np.tile(self.closes, count),
            row=again(self.row, rows),
            col=np.tile(self.col, count),
            adds=flags(self.adds),
            added=flags(self.added),
        )


def joined(columns: Sequence[Value], counts: Sequence[int]) -> Value:
    """Return one column of several, each of which may be one number for all."""
    first = columns[0]
    if all(not isinstance(column, np.ndarray) and column == first for column in columns):
        return first
    return np.concatenate(
        [
            np.broadcast_to(
                np.asarray(
                    int(getattr(c, "value", c)) if not isinstance(c, np.ndarray) else c, np.int64
                ),
                (n,),
            )
            for c, n in zip(columns, counts, strict=True)
        ]
    )
