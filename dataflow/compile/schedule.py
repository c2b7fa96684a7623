"""From plans to instructions: slots of buffers, semaphores, and the order of loads and products."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.slots import Fill, Ring, Semaphore, Step, bit
from sat.dataflow.mapping import slot_count
from sat.rtl.isa import Buffer, Instruction, Opcode, Start

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


def schedule(planners: Sequence[Planner], order: Order = ORDERS[0]) -> list[Instruction]:
    """Return the instructions of products one after the other, without END.

    Products whose slots are of one size share them: the loads of one go on while another is
    multiplied. Before other sizes stands a FENCE. When done, every semaphore is at 0.
    """
    (made,) = schedules(planners, [order])
    return made


def schedules(planners: Sequence[Planner], orders: Sequence[Order]) -> Iterator[list[Instruction]]:
    """Yield the instructions in each of several orders: the same ones."""
    grouped = itertools.groupby(planners, lambda planner: planner.slots)
    parts = [_Schedule(list(together)) for _, together in grouped]
    fence = Instruction(Opcode.FENCE, {})
    for order in orders:
        made: list[Instruction] = []
        for part in parts:
            made += [fence] if made else []
            made += part.instructions(order)
        yield _without_repeats(made)


class _Loaded(NamedTuple):
    """What fills a slot: before which step, after which (-1: none), and whether it is a mask."""

    first_use: int
    freed: int
    is_mask: bool
    loads: list[Instruction]


class _Schedule:
    """Products that share their slots."""

    def __init__(self, planners: Sequence[Planner]):
        first = planners[0]
        config = first.config
        a_slot, b_slot, i_slot, sum_slot = first.slots
        self.dense = first.product.dense
        self.a = Ring(slot_count(config.a_words, a_slot))
        b_slots = slot_count(config.b_words, b_slot)
        if not self.dense:
            b_slots = min(b_slots, slot_count(config.i_words, i_slot))
        self.b = Ring(b_slots)
        self.output_slots = slot_count(config.sum_words, sum_slot)
        self.start, self.mask = Ring(self.output_slots), Ring(self.output_slots)
        self.buffers = {
            "a": (self.a, Semaphore.A_FULL, Semaphore.A_FREE),
            "b": (self.b, Semaphore.B_FULL, Semaphore.B_FREE),
            "start": (self.start, Semaphore.START_FULL, Semaphore.START_FREE),
            "mask": (self.mask, Semaphore.MASK_FULL, Semaphore.MASK_FREE),
        }
        self.slot_words = {
            Buffer.A: a_slot,
            Buffer.B: b_slot,
            Buffer.INDEX: i_slot,
            Buffer.START: sum_slot,
            Buffer.MASK: sum_slot,
        }
        self.steps: list[Step] = []
        taken = 0
        for number, planner in enumerate(planners):
            taken += self._place(number, planner, taken)
        self._made()

    def _place(self, number: int, planner: Planner, taken: int) -> int:
        """Give a product's operands their slots; return the places that its sums take."""
        places = 0
        for step in planner.steps():
            places = max(places, step.output + 1)
            step.output += taken
            at = len(self.steps)
            step.fills["a"] = self.a.use((number, *step.a), at, partial(planner.a_loads, step.a))
            step.fills["b"] = self.b.use((number, *step.b), at, partial(planner.b_loads, step.b))
            if step.start is not None:
                load = partial(planner.start_loads, step.start)
                step.fills["start"] = self.start.use((number, *step.start), at, load)
            if step.masks:
                # Every closing step has masks or none has: mask and output slots stay in step.
                self.mask.use((step.output,), at, partial(list, step.masks))
            self.steps.append(step)
        return places

    def _made(self) -> None:
        """Make the instructions: loads in the order of their use, MULTIPLYs, stores."""
        releases = {name: self.buffers[name][0].releases() for name in ("a", "b", "start")}
        self.loads: list[_Loaded] = []
        for first_use, _, number, name in sorted(
            (fill.first_use, rank, number, name)
            for rank, (name, (ring, _, _)) in enumerate(self.buffers.items())
            for number, fill in enumerate(ring.fills)
        ):
            ring, full, free = self.buffers[name]
            fill = ring.fills[number]
            freed = -1 if fill.evicts is None else ring.fills[fill.evicts].last_use
            made = _loads(fill, full, free, self.slot_words)
            self.loads.append(_Loaded(first_use, freed, name == "mask", made))

        self.multiplies: list[Instruction] = []
        self.stores: list[list[Instruction]] = []
        # The step whose stores free a step's place, or -1.
        self.after: list[int] = []
        closed: list[int] = []
        outputs = sum(step.opens for step in self.steps)
        for number, step in enumerate(self.steps):
            wait = release = signal = 0
            for name, fill_number in step.fills.items():
                ring, full, free = self.buffers[name]
                if ring.fills[fill_number].first_use == number:
                    wait |= bit(full)
                if releases[name].get(number) == fill_number:
                    release |= bit(free)
            after = -1
            if step.opens and step.output >= self.output_slots:
                wait |= bit(Semaphore.OUTPUT_FREE)
                after = closed[step.output - self.output_slots]
            self.after.append(after)
            if step.adds:
                wait |= bit(Semaphore.SUMS)
            if step.added:
                signal |= bit(Semaphore.SUMS)
            if step.stores:
                signal |= bit(Semaphore.OUTPUT_FULL)
                closed.append(number)
            body = self._body(step)
            self.multiplies.append(Instruction(Opcode.MULTIPLY, body, wait, release, signal))
            reused = step.output + self.output_slots < outputs
            self.stores.append(_stores(step, body["o_base"], reused))

    def instructions(self, order: Order) -> list[Instruction]:
        """Return the instructions in an order."""
        program: list[Instruction] = []
        stored = 0  # steps whose stores are there
        next_load, early = 0, deque[int]()

        def store(upto: int) -> None:
            nonlocal stored
            while stored < upto:
                program.extend(self.stores[stored])
                stored += 1

        for number, multiply in enumerate(self.multiplies):
            while early and early[0] <= number:
                early.popleft()
            while next_load < len(self.loads):
                first_use, freed, is_mask, made = self.loads[next_load]
                if first_use > number and (
                    first_use > number + LOOKAHEAD or freed >= number or len(early) >= order.ahead
                ):
                    break
                if is_mask:
                    # Stores free its place.
                    if first_use > number and freed >= stored:
                        break
                    store(freed + 1)
                program += made
                if first_use > number:
                    early.extend([first_use] * len(made))
                next_load += 1
            store(self.after[number] + 1)
            program.append(multiply)
            store(number + 1 - order.behind)
        store(len(self.multiplies))
        return program

    def _body(self, step: Step) -> dict[str, Any]:
        """Return a MULTIPLY's fields, bases counted from the start of the buffers."""
        body = dict(step.body)
        a_slot = self.a.fills[step.fills["a"]].slot
        b_slot = self.b.fills[step.fills["b"]].slot
        bases = [("a_base", a_slot, Buffer.A), ("b_base", b_slot, Buffer.B)]
        if not self.dense:
            bases.append(("i_base", b_slot, Buffer.INDEX))
        for name, slot, buffer in bases:
            body[name] = slot * self.slot_words[buffer] + body.get(name, 0)
        sum_slot = self.slot_words[Buffer.START]
        body["o_base"] = step.output % self.output_slots * sum_slot
        if "start" in step.fills:
            body["s_base"] = self.start.fills[step.fills["start"]].slot * sum_slot
        elif body["start"] is Start.OUTPUT:
            body["s_base"] = body["o_base"]
        return body


def _stores(step: Step, base: int, reused: bool) -> list[Instruction]:
    """Return a tile's STOREs: the first waits for its sums, the last frees its place."""
    full, free = bit(Semaphore.OUTPUT_FULL), bit(Semaphore.OUTPUT_FREE)
    if step.masks:
        full |= bit(Semaphore.MASK_FULL)
        free |= bit(Semaphore.MASK_FREE)
    last = len(step.stores) - 1
    return [
        Instruction(
            Opcode.STORE,
            {**body, "base": base + body.get("base", 0)},
            wait=full if n == 0 else 0,
            signal=free if n == last and reused else 0,
        )
        for n, body in enumerate(step.stores)
    ]


def _loads(
    fill: Fill, full: Semaphore, free: Semaphore, slot_words: dict[Buffer, int]
) -> list[Instruction]:
    """Return a fill's loads: the first waits for the slot, the last tells that it is full.

    What sets up a GATHER touches no slot and need not wait.
    """
    made = []
    data = [i for i, (opcode, _) in enumerate(fill.loads) if opcode in (Opcode.LOAD, Opcode.GATHER)]
    for i, (opcode, body) in enumerate(fill.loads):
        if i not in data:
            made.append(Instruction(opcode, body))
            continue
        base = fill.slot * slot_words[body["destination"]] + body.get("base", 0)
        made.append(
            Instruction(
                opcode,
                {**body, "base": base},
                wait=bit(free) if i == data[0] and fill.evicts is not None else 0,
                signal=bit(full) if i == data[-1] else 0,
            )
        )
    return made


def _without_repeats(program: list[Instruction]) -> list[Instruction]:
    """Return the program without TENSORs and WINDOWs that set what is set."""
    made: list[Instruction] = []
    current: dict[Opcode, Instruction] = {}
    for i in program:
        if i.opcode in (Opcode.TENSOR, Opcode.WINDOW):
            if current.get(i.opcode) == i:
                continue
            current[i.opcode] = i
        made.append(i)
    return made
