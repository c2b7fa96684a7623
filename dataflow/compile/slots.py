"""What planned programs are made of: operands in the slots of buffers, and semaphores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from sat.rtl.isa import Opcode


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


Load = tuple[Opcode, dict[str, Any]]
"""An instruction of the load engine, its base counted from the start of its slot."""
Key = tuple[int, ...]
"""Names what a slot holds."""


@dataclass
class Fill:
    """One chunk of an operand in one slot of its buffer."""

    slot: int
    first_use: int
    last_use: int
    loads: list[Load]
    evicts: int | None


@dataclass
class Step:
    """One MULTIPLY: which operands it needs, and what becomes of its sums."""

    a: Key
    b: Key
    body: dict[str, Any]  # bases counted from the start of the slots
    output: int  # number of its place among all places ever taken in the output buffer
    opens: bool  # takes that place
    stores: list[dict[str, Any]] = field(default_factory=list)  # closes it
    start: Key | None = None
    masks: list[Load] = field(default_factory=list)  # what its stores need
    adds: bool = False  # to sums that an earlier MULTIPLY left in its place
    added: bool = False  # a later one adds to these
    fills: dict[str, int] = field(default_factory=dict)


class Ring:
    """Slots of a buffer, filled in turn; a fill stays until the slot's turn comes again."""

    def __init__(self, slots: int):
        self.slots = slots
        self.fills: list[Fill] = []
        self.resident: dict[Key, int] = {}
        self._keys: list[Key] = []

    def use(self, key: Key, step: int, loads: Callable[[], list[Load]]) -> int:
        """Return the fill that holds ``key`` at ``step``, made now if it is not there."""
        if key not in self.resident:
            number = len(self.fills)
            evicts = number - self.slots if number >= self.slots else None
            if evicts is not None:
                del self.resident[self._keys[evicts]]
            self.fills.append(Fill(number % self.slots, step, step, loads(), evicts))
            self._keys.append(key)
            self.resident[key] = number
        number = self.resident[key]
        self.fills[number].last_use = step
        return number

    def releases(self) -> dict[int, int]:
        """Return which step frees which fill, for the fills that a later one replaces."""
        freed = {
            f.evicts: self.fills[f.evicts].last_use for f in self.fills if f.evicts is not None
        }
        steps = {step: fill for fill, step in freed.items()}
        # Semaphores count: the k-th release must be the k-th fill's.
        assert list(freed.values()) == sorted(steps), "fills are not freed in the order of filling"
        return steps
