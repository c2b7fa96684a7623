"""Stages one behind the other: what one loads first comes while the one before drains.

Between the stages of a program stands a FENCE: nothing of one starts before all results of the one
before are in memory. While the last sums leave the array and are written, the load engine is idle.
So the loads that a stage's first MULTIPLY, or UPDATE, waits for stand in front of the FENCE:

* behind all other loads, and before the STOREs of the last results, which have to wait anyway;
* the first one waits until the last MULTIPLY, or UPDATE, before the FENCE has read its operands:
  whatever words of the buffers are filled then, nobody reads them any more;
* no semaphore says that they are filled: the FENCE waits for that.

*What may be moved.* A load reads nothing between the lowest and the highest byte that the stage
before writes, from the last FENCE in it on: all that is older is in memory. Loads keep their order
and move whole fills at a time, so a stage gives all, some, or none of those first ones away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from sat.dataflow.columns import Array, Words, encode, masks, read, set_masks
from sat.dataflow.compile.slots import Semaphore, bit
from sat.dataflow.cycles import Prediction, predict
from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import ENGINES, Opcode
from sat.sim.memory import MemoryTiming

READ_BY = {Opcode.MULTIPLY: Semaphore.A_FREE, Opcode.UPDATE: Semaphore.UPDATE_FREE}
"""What uses operands, and the semaphore by which it lets loads follow."""


def joined(stages: Sequence[Words]) -> tuple[Words, list[int]]:
    """Return stages one behind the other with a FENCE between them, and END.

    Returns
    -------
    words : (count, 4) uint64
    ends : list of int
        For each stage the number of the instruction behind it: a FENCE, or END.
    """
    fence = encode(Opcode.FENCE, 1, {})
    words = [piece for stage in stages for piece in (stage, fence)][:-1]
    ends = itertools.accumulate((len(stage) for stage in stages), lambda end, n: end + 1 + n)
    return np.concatenate([*words, encode(Opcode.END, 1, {})]), list(ends)


def fastest(
    stages: Sequence[Words], config: SatConfig, memory: MemoryTiming
) -> tuple[Words, list[int], Prediction | None]:
    """Return stages `joined`, `prefetched` if they take fewer cycles so, and what they take.

    Loads may be long, and the FENCE wait for them: then the stage's further loads come later. What
    one stage takes is not asked for: None.
    """
    made = joined(stages)
    if len(stages) == 1:
        return *made, None
    both = [made, joined(prefetched(stages))]
    found = [predict(words, config, memory, times=True) for words, _ in both]
    best = int(found[1].cycles < found[0].cycles)
    return *both[best], found[best]


def prefetched(stages: Sequence[Words]) -> list[Words]:
    """Return stages whose first loads stand at the end of the stage before, where they may.

    Parameters
    ----------
    stages : sequence of (count, 4) uint64
        Without END; each begins and ends with every semaphore at 0, and runs behind a FENCE.

    Returns
    -------
    list of (count, 4) uint64
        As many; together they load, multiply and store the same.
    """
    made = list(stages)
    for n in range(1, len(made)):
        made[n - 1 : n + 1] = _moved(*made[n - 1 : n + 1])
    return made


def _moved(before: Words, after: Words) -> tuple[Words, Words]:
    """Return two stages with first loads of the second in the first."""
    fences = _places(before, Opcode.FENCE)
    tail = before[fences[-1] + 1 :] if len(fences) else before
    place, uses = _place(tail), _places(after, *READ_BY, Opcode.FENCE)
    if place is None or not len(uses):
        return before, after
    use = uses[0]
    loads = _places(after[:use], *ENGINES["load"])
    loads = loads[: _movable(after[loads], int(masks(after[use], "wait")), _written(tail))]
    if not len(loads):
        return before, after
    moved, before, after = after[loads], before.copy(), after.copy()
    filled = np.bitwise_or.reduce(masks(moved, "signal"))
    set_masks(after[use], "wait", masks(after[use], "wait") & ~filled)
    set_masks(moved, "signal", 0)
    # The last operands are read, and the first of the moved may write.
    last = before[_places(before, *READ_BY)[-1]]
    free = bit(READ_BY[_opcode(last)])
    assert not masks(last, "release") & free, "no load of a stage waits for its last operands"
    set_masks(last, "release", masks(last, "release") | free)
    set_masks(moved[_places(moved, Opcode.LOAD, Opcode.GATHER)[0]], "wait", free)
    at = len(before) - len(tail) + place
    return np.insert(before, at, moved, axis=0), np.delete(after, loads, axis=0)


def _opcode(instruction: Words) -> Opcode:
    return Opcode(int(instruction[0]) & 0xFF)


def _places(words: Words, *opcodes: Opcode) -> Array:
    """Return where instructions of these opcodes stand."""
    wanted = np.zeros(256, bool)
    wanted[[opcode.value for opcode in opcodes]] = True
    return np.flatnonzero(wanted[words[:, 0].astype(np.uint8)])


def _place(tail: Words) -> int | None:
    """Return where more loads may stand: at the last STORE that waits; None if it is not last."""
    stores = _places(tail, Opcode.STORE)
    waiting = stores[masks(tail[stores], "wait") > 0]
    uses, others = _places(tail, *READ_BY), _places(tail, *READ_BY, *ENGINES["load"])
    if not len(uses) or not len(waiting) or waiting[-1] < others[-1]:
        return None
    return int(waiting[-1])


def _written(tail: Words) -> range:
    """Return byte addresses, from the lowest that STOREs write to the highest."""
    stores = tail[_places(tail, Opcode.STORE)]
    address, pitch, rows, size = (
        read(stores, Opcode.STORE, name) for name in ("address", "pitch", "rows", "row_bytes")
    )
    return range(int(address.min()), int((address + (rows - 1) * pitch + size).max()))


def _spans(loads: Words) -> Iterator[range]:
    """Yield for each instruction of the load engine all bytes from its lowest to its highest."""
    pixels = range(1 << isa.ADDRESS_BITS)  # what a GATHER may read before any TENSOR
    for load in loads:
        opcode = _opcode(load)
        if opcode is Opcode.LOAD:
            yield _span(load, "row_bytes", rows="pitch")
        elif opcode is Opcode.TENSOR:
            sides = {f"{side}s": f"{side}_pitch" for side in ("image", "line", "pixel")}
            pixels = _span(load, "pixel_pitch", **sides)
            yield range(0)
        else:
            yield pixels if opcode is Opcode.GATHER else range(0)


def _span(load: Words, size: str, **steps: str) -> range:
    """Return the bytes from the first on, given the names of what counts steps, and their size."""

    def field(name: str) -> int:
        return int(read(load[None], _opcode(load), name)[0])

    reach = sum((field(count) - 1) * field(step) for count, step in steps.items())
    return range(field("address"), field("address") + reach + field(size))


def _movable(loads: Words, awaited: int, written: range) -> int:
    """Return how many of a stage's first loads may be moved.

    Parameters
    ----------
    loads : (count, 4) uint64
        What the load engine does before the stage's first MULTIPLY or UPDATE.
    awaited : int
        Semaphores that this one waits for.
    written : range
        Byte addresses that the stage before may write.
    """
    movable = 0
    for number, (load, span) in enumerate(zip(loads, _spans(loads), strict=True), 1):
        signal = int(masks(load, "signal"))
        apart = span.stop <= written.start or written.stop <= span.start
        if not apart or masks(load, "wait") or signal & ~awaited:
            break
        if signal:
            movable, awaited = number, awaited & ~signal
    return movable
