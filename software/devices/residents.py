"""What a device keeps in its memory between programs, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass
class Placement:
    """A block of device memory that belongs to an owner.

    Attributes
    ----------
    block : range
        Byte addresses; the first is a multiple of the residents' ``boundary``.
    used : int
        When it was last asked for; larger is later.
    contents : object
        What its user knows to be there; None if nothing, as at first.
    """

    block: range
    used: int
    contents: Any = None


class Residents:
    """Blocks at the top of a device's memory, given to owners as long as they live.

    Below lies the program at hand with all that it alone needs. Where room runs out, the block
    that was not used for longest goes.

    Parameters
    ----------
    boundary : int
        Bytes; blocks begin at multiples of it (`sat.dataflow.layers.boundary_bytes`).
    """

    def __init__(self, boundary: int) -> None:
        self._boundary = boundary
        self._placed: WeakKeyDictionary[Any, Placement] = WeakKeyDictionary()
        self._time = 0

    def __len__(self) -> int:
        return len(self._placed)

    def find(self, owner: Any) -> Placement | None:
        """Return an owner's block, if it has one."""
        return self._placed.get(owner)

    def blocks(self) -> list[range]:
        """Return the blocks that are given."""
        return [placement.block for placement in self._placed.values()]

    def clear(self) -> None:
        """Forget everything."""
        self._placed.clear()

    def evict_below(self, floor: int) -> None:
        """Forget blocks that begin below a byte address."""
        for owner, placement in list(self._placed.items()):
            if placement.block.start < floor:
                del self._placed[owner]

    def place(self, owner: Any, size: int, floor: int, end: int) -> Placement:
        """Return an owner's block; one with ``contents`` None is new.

        Parameters
        ----------
        owner : object
            Weakly referred to: when it is gone, so is its block.
        size : int
            Bytes; another size than last time gives a new block.
        floor, end : int
            Byte addresses between which blocks may lie; what is below ``floor`` is forgotten. The
            end is the same in all calls between two `clear`.

        Raises
        ------
        ValueError
            If not even an empty memory has room.
        """
        self._time += 1
        self.evict_below(floor)
        held = self._placed.get(owner)
        if held is not None and len(held.block) == size:
            held.used = self._time
            return held
        self._placed.pop(owner, None)
        while (start := self._gap(size, floor, end)) is None:
            if not self._placed:
                raise ValueError(
                    f"{size} bytes to keep: must fit between {floor:#x} and {end:#x}; "
                    "make the memory larger"
                )
            oldest = min(self._placed.items(), key=lambda item: item[1].used)[0]
            del self._placed[oldest]
        placement = Placement(range(start, start + size), self._time)
        self._placed[owner] = placement
        return placement

    def _gap(self, size: int, floor: int, end: int) -> int | None:
        """Return the highest address with room for a block, or None."""
        top = end
        for block in sorted((p.block for p in self._placed.values()), key=lambda b: -b.start):
            start = self._down(top - size)
            if start >= block.stop:
                return start
            top = block.start
        start = self._down(top - size)
        return start if start >= floor else None

    def _down(self, address: int) -> int:
        """Return the boundary at or below an address: bursts are then cut as compiled for."""
        return address // self._boundary * self._boundary
