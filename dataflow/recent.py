"""A cache that is bounded by what it holds, not by how many."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

PROGRAM_INSTRUCTIONS = 1 << 19
"""Instructions of compiled programs that a cache keeps: 32 bytes each, 17 MB in all."""


class Recent(Generic[Value]):
    """Values by key, of a weight each; those used least recently go first. Safe in threads.

    Parameters
    ----------
    most : int
        Weight of all values together; the last value made stays, whatever it weighs.
    weight : callable
        Returns the weight of a value, at least 1.
    """

    def __init__(self, most: int, weight: Callable[[Value], int]) -> None:
        self.most, self._weight = most, weight
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def weight(self) -> int:
        """Weight of all that is kept."""
        return self._held

    def get(self, key: Hashable, make: Callable[[], Value], *, anew: bool = False) -> Value:
        """Return the value of a key, made if it is not there, or ``anew``."""
        with self._lock:
            if key in self._values and not anew:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        weight = self._weight(value)
        with self._lock:
            if key in self._values:
                self._held -= self._values.pop(key)[1]
            self._values[key] = value, weight
            self._held += weight
            while self._held > self.most and len(self._values) > 1:
                _, (_, gone) = self._values.popitem(last=False)
                self._held -= gone
        return value
