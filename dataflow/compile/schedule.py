"""From plans to instructions: slots of buffers, semaphores, and the order of loads and products."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sat.dataflow.columns import Array, Block, Value, Words, encode, owned, without_repeats
from sat.dataflow.compile import native
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.slots import NONE, Semaphore, Steps, bit, joined
from sat.dataflow.mapping import slot_count
from sat.rtl.isa import Buffer, Opcode, Source, Start

LOOKAHEAD = 12
"""MULTIPLYs by which loads run ahead of the one that needs them, where the buffers allow."""


class Order(NamedTuple):
    """How loads and stores lie between MULTIPLYs.

    Instructions are dispatched in order, and one whose engine's queue is full holds up all that
    follow: loads too far ahead of their use, or stores too close behind their sums, keep the array
    waiting.

    Parameters
    ----------
    ahead : int
        Loads that may stand before the MULTIPLY that a later one serves.
    behind : int
        MULTIPLYs that may stand between sums and their stores.
    """

    ahead: int
    behind: int


ORDERS = (Order(6, 3), Order(4, 3), Order(8, 1), Order(64, 0))
"""Those worth trying; the first is right for most."""


def schedule(planners: Sequence[Planner], order: Order = ORDERS[0]) -> Words:
    """Return the instructions of products one after the other, without END.

    Products whose slots are of one size share them: the loads of one go on while another is
    multiplied. Before other sizes stands a FENCE. When done, every semaphore is at 0.
    """
    (made,) = schedules(planners, [order])
    return made


def schedules(planners: Sequence[Planner], orders: Sequence[Order]) -> Iterator[Words]:
    """Yield the instructions in each of several orders: the same ones."""
    yield from map(Scheduled(planners).instructions, orders)


class Scheduled:
    """Products whose operands have their slots: what is left is the order of instructions."""

    def __init__(self, planners: Sequence[Planner]):
        grouped = itertools.groupby(planners, lambda planner: planner.slots)
        self._parts = [_Schedule(list(together)) for _, together in grouped]

    def instructions(self, order: Order) -> Words:
        """Return the instructions in an order, without END, as `schedule`."""
        fence = encode(Opcode.FENCE, 1, {})
        made: list[Words] = []
        for part in self._parts:
            made += [fence] if made else []
            made.append(part.instructions(order))
        # What TENSOR and WINDOW set is set until the next one.
        words = made[0] if len(made) == 1 else np.concatenate(made)
        return without_repeats(words, (Opcode.TENSOR, Opcode.WINDOW))


class _Filled(NamedTuple):
    """What fills slots: the loads of each fill, before which step, after which (-1: none)."""

    words: Words
    size: Array
    first_use: Array
    freed: Array


class _Schedule:
    """Products that share their slots."""

    def __init__(self, planners: Sequence[Planner]):
        self.planners = planners
        first = planners[0]
        config = first.config
        a_slot, b_slot, i_slot, self.sum_slot = first.slots
        self.dense = first.product.dense
        self.slot_words = {
            Buffer.A: a_slot,
            Buffer.B: b_slot,
            Buffer.INDEX: i_slot,
            Buffer.START: self.sum_slot,
            Buffer.MASK: self.sum_slot,
        }
        self.a_slots = slot_count(config.a_words, a_slot)
        self.b_slots = slot_count(config.b_words, b_slot)
        if not self.dense:
            self.b_slots = min(self.b_slots, slot_count(config.i_words, i_slot))
        self.output_slots = slot_count(config.sum_words, self.sum_slot)
        plans = [planner.all_steps() for planner in planners]
        self.first_step = np.cumsum([0, *(len(plan) for plan in plans)])
        self.steps = self._joined(plans)
        self._place()

    def _joined(self, plans: Sequence[Steps]) -> Steps:
        """Return the steps of all products; what they need has numbers of its own in each."""
        counts = [len(plan) for plan in plans]
        self.first_key = {
            name: np.cumsum(
                [0, *(getattr(p, f"{name}_keys") * p.product.count for p in self.planners)]
            )
            for name in ("a", "b", "start")
        }
        outputs = np.cumsum([0, *(int(plan.output[-1]) + 1 for plan in plans)])
        if len(plans) == 1:
            return plans[0]

        def chained(name: str, firsts: Array) -> Array:
            return np.concatenate(
                [getattr(p, name) + n for p, n in zip(plans, firsts[:-1], strict=True)]
            )

        def flags(name: str) -> Any:
            given = [getattr(plan, name) for plan in plans]
            if all(column is None for column in given):
                return None
            return np.concatenate(
                [
                    np.zeros(n, bool) if column is None else column
                    for column, n in zip(given, counts, strict=True)
                ]
            )

        start = None
        if plans[0].start is not None:
            start = np.concatenate(
                [
                    np.where(plan.start == NONE, NONE, plan.start + n)
                    for plan, n in zip(plans, self.first_key["start"][:-1], strict=True)
                    if plan.start is not None
                ]
            )
        names = dict.fromkeys(name for plan in plans for name in plan.body)
        return Steps(
            a=chained("a", self.first_key["a"]),
            b=chained("b", self.first_key["b"]),
            start=start,
            body={name: joined([p.body.get(name, 0) for p in plans], counts) for name in names},
            output=chained("output", outputs),
            opens=flags("opens"),
            closes=flags("closes"),
            row=np.concatenate([plan.row for plan in plans]),
            col=np.concatenate([plan.col for plan in plans]),
            adds=flags("adds"),
            added=flags("added"),
        )

    def _place(self) -> None:
        """Give operands their slots, and make the instructions."""
        steps, count = self.steps, len(self.steps)
        wait, release, signal = (np.zeros(count, np.int64) for _ in range(3))
        body: dict[str, Value] = dict(steps.body)
        filled: list[_Filled] = []

        def fill(name: str, keys: Array, slots: int, full: Semaphore, free: Semaphore) -> Array:
            """Fill a buffer's slots; return the slot of each step."""
            made = native.fills(keys, slots, int(self.first_key[name][-1]))
            wait[made.first_use] |= bit(full)
            evicted = made.last_use[: max(0, len(made.key) - slots)]
            # Semaphores count: the k-th release must be the k-th fill's.
            assert (np.diff(evicted) > 0).all(), "fills are not freed in the order of filling"
            release[evicted] |= bit(free)
            blocks = self._of_planners(name, made.key)
            freed = np.concatenate([np.full(len(made.key) - len(evicted), -1), evicted])
            number = np.arange(len(made.key))
            words, counts = self._loads(blocks, number % slots, freed >= 0, full, free)
            filled.append(_Filled(words, counts, made.first_use, freed))
            return made.of_step % slots

        slot = fill("a", steps.a, self.a_slots, Semaphore.A_FULL, Semaphore.A_FREE)
        body["a_base"] = slot * self.slot_words[Buffer.A] + body.get("a_base", 0)
        slot = fill("b", steps.b, self.b_slots, Semaphore.B_FULL, Semaphore.B_FREE)
        body["b_base"] = slot * self.slot_words[Buffer.B] + body.get("b_base", 0)
        if not self.dense:
            body["i_base"] = slot * self.slot_words[Buffer.INDEX] + body.get("i_base", 0)
        base = steps.output % self.output_slots * self.sum_slot
        body["o_base"] = base
        s_base = np.where(np.asarray(body["start"]) == Start.OUTPUT.value, base, 0)
        if steps.start is not None:
            slot = fill(
                "start", steps.start, self.output_slots, Semaphore.START_FULL, Semaphore.START_FREE
            )
            s_base = np.where(steps.start == NONE, s_base, slot * self.sum_slot)
        body["s_base"] = s_base

        closers = np.flatnonzero(steps.closes)
        self.after = np.full(count, -1)
        later = np.flatnonzero(steps.opens & (steps.output >= self.output_slots))
        wait[later] |= bit(Semaphore.OUTPUT_FREE)
        self.after[later] = closers[steps.output[later] - self.output_slots]
        if steps.adds is not None:
            wait[steps.adds] |= bit(Semaphore.SUMS)
        if steps.added is not None:
            signal[steps.added] |= bit(Semaphore.SUMS)
        signal[closers] |= bit(Semaphore.OUTPUT_FULL)
        self.multiplies = encode(Opcode.MULTIPLY, count, body, wait, release, signal)

        full, free = bit(Semaphore.OUTPUT_FULL), bit(Semaphore.OUTPUT_FREE)
        masked = self.planners[0].masked
        if masked:
            # Every tile has masks or none has: mask and output slots stay in step.
            full |= bit(Semaphore.MASK_FULL)
            free |= bit(Semaphore.MASK_FREE)
            tiles = np.arange(len(closers))
            freed = np.where(
                tiles < self.output_slots, -1, closers[np.maximum(0, tiles - self.output_slots)]
            )
            words, counts = self._loads(
                self._of_tiles(closers, lambda planner: planner.masks),
                tiles % self.output_slots,
                freed >= 0,
                Semaphore.MASK_FULL,
                Semaphore.MASK_FREE,
            )
            filled.append(_Filled(words, counts, closers, freed))
        reused = steps.output[closers] + self.output_slots < steps.opens.sum()
        self._store(closers, base[closers], reused, full, free)
        self._sort(filled, masked)

    def _of_planners(self, name: str, keys: Array) -> list[Block]:
        """Return the blocks of loads that fill slots with what has these numbers."""
        planners, firsts = self.planners, self.first_key[name]
        if len(planners) == 1:
            return _stacked(planners[0], name, keys, np.arange(len(keys)))
        whose = np.searchsorted(firsts, keys, "right") - 1
        blocks: list[Block] = []
        for number, planner in enumerate(planners):
            owners = np.flatnonzero(whose == number)
            if len(owners):
                blocks += _stacked(planner, name, keys[owners] - firsts[number], owners)
        return blocks

    def _of_tiles(
        self, closers: Array, method: Callable[[Planner], Callable[[Array, Array], list[Block]]]
    ) -> list[Block]:
        """Return the blocks that the tiles of steps need, by number of the closing step."""
        steps, bounds = self.steps, np.searchsorted(closers, self.first_step)
        blocks: list[Block] = []
        for planner, first, end in zip(self.planners, bounds[:-1], bounds[1:], strict=True):
            own = closers[first:end]
            number, row = np.divmod(steps.row[own], planner.row_tiles)
            made = method(planner)(row, steps.col[own])
            blocks += [_moved(planner, block, number, first) for block in made]
        return blocks

    def _loads(
        self,
        blocks: Sequence[Block],
        slot: Array,
        evicts: Any,
        full: Semaphore,
        free: Semaphore,
    ) -> tuple[Words, Array]:
        """Return fills' loads, one fill after another, and how many each has.

        The first of a fill waits for the slot, the last tells that it is full. What sets up a
        GATHER touches no slot and need not wait.
        """
        owner, order = owned(blocks)
        data = np.concatenate(
            [np.full(len(b.owner), b.opcode in (Opcode.LOAD, Opcode.GATHER)) for b in blocks]
        )
        first, last = _ends(owner, order[data[order]])
        wait = np.where(first & evicts[owner], bit(free), 0)
        signal = np.where(last, bit(full), 0)
        words, at = [], 0
        for block in blocks:
            end = at + len(block.owner)
            if "destination" in block.fields:
                destination = block.fields["destination"]
                assert isinstance(destination, Buffer)
                base = slot[block.owner] * self.slot_words[destination]
                base = base + block.number("base")
                block = replace(block, fields={**block.fields, "base": base})
            words.append(block.encode(wait=wait[at:end], signal=signal[at:end]))
            at = end
        return np.concatenate(words)[order], np.bincount(owner, minlength=len(slot))

    def _store(self, closers: Array, base: Array, reused: Any, full: int, free: int) -> None:
        """Make the STOREs of tiles: the first waits for its sums, the last frees its place."""
        blocks = self._of_tiles(closers, lambda planner: planner.stores)
        owner, order = owned(blocks)
        first, last = _ends(owner, order)
        wait = np.where(first, full, 0)
        signal = np.where(last & reused[owner], free, 0)
        words, at = [], 0
        for block in blocks:
            end = at + len(block.owner)
            fields = {**block.fields, "base": base[block.owner] + block.number("base")}
            words.append(
                replace(block, fields=fields).encode(wait=wait[at:end], signal=signal[at:end])
            )
            at = end
        self.stores = np.concatenate(words)[order]
        self.store_count = np.zeros(len(self.steps), np.int64)
        self.store_count[closers] = np.bincount(owner, minlength=len(closers))

    def _sort(self, filled: Sequence[_Filled], masked: bool) -> None:
        """Lay all instructions into one table, and put the loads in the order of their use."""
        self.table = np.concatenate(
            [*(buffer.words for buffer in filled), self.multiplies, self.stores]
        )
        counts = np.concatenate([buffer.size for buffer in filled])
        rank = np.repeat(np.arange(len(filled)), [len(buffer.size) for buffer in filled])
        number = np.concatenate([np.arange(len(buffer.size)) for buffer in filled])
        first_use = np.concatenate([buffer.first_use for buffer in filled])
        freed = np.concatenate([buffer.freed for buffer in filled])
        is_mask = (rank == len(filled) - 1) & masked
        order = np.lexsort((number, rank, first_use))
        at = np.cumsum(counts) - counts
        self.loads = native.Loads(
            *(column[order] for column in (first_use, freed, is_mask, at, counts))
        )
        self.first_multiply = int(counts.sum())

    def instructions(self, order: Order) -> Words:
        """Return the instructions in an order."""
        stores_at = np.cumsum(self.store_count) - self.store_count
        rows = native.rows(
            self.loads,
            native.Stores(
                self.after, stores_at + self.first_multiply + len(self.steps), self.store_count
            ),
            self.first_multiply,
            len(self.table),
            LOOKAHEAD,
            order.ahead,
            order.behind,
        )
        return self.table[rows]


def _stacked(planner: Planner, name: str, keys: Array, owners: Array) -> list[Block]:
    """Return what fills slots with something of a stack of products."""
    number, key = np.divmod(keys, getattr(planner, f"{name}_keys"))
    loads = {"a": planner.a_loads, "b": planner.b_loads, "start": planner.start_loads}[name]
    return [_moved(planner, block, number, owners) for block in loads(key)]


def _moved(planner: Planner, block: Block, number: Array, owners: Array | int) -> Block:
    """Return a block of a stack's products, owned by owners or what comes from one on."""
    fields = block.fields
    if planner.product.count > 1:
        where = fields.get("destination", fields.get("source", Source.OUTPUT))
        assert isinstance(where, Buffer | Source)
        apart = planner.apart[where] * number[block.owner]
        fields = {**fields, "address": block.number("address") + apart}
    owner = owners[block.owner] if isinstance(owners, np.ndarray) else owners + block.owner
    return replace(block, fields=fields, owner=owner)


def _ends(owner: Array, order: Array) -> tuple[Any, Any]:
    """Return which instructions are the first, and the last, of their owners in an order."""
    in_order = owner[order]
    change = np.flatnonzero(np.diff(in_order))
    first, last = np.zeros(len(owner), bool), np.zeros(len(owner), bool)
    if len(order):
        first[order[np.concatenate([[0], change + 1])]] = True
        last[order[np.concatenate([change, [len(order) - 1]])]] = True
    return first, last
