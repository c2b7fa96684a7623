"""Choose among the mappings of a product that is part of a layer, by their exact cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from sat.dataflow.columns import Words, with_end
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.schedule import ORDERS, Order, Scheduled, schedule
from sat.dataflow.cycles import Prediction, Times, predict
from sat.rtl.config import SatConfig
from sat.rtl.isa import Opcode
from sat.sim.memory import MemoryTiming


class Sorted(Protocol):
    """What can be chosen among; shapes of one sort are alike to the estimate."""

    @property
    def sort(self) -> str: ...


Shape = TypeVar("Shape", bound=Sorted)

EACH = 3
"""Mappings of each sort that are costed, the most promising first."""

SAMPLE = 800
"""MULTIPLYs from which on a mapping is costed by a part of its product, if it has blocks enough."""

ENOUGH = 4096
"""A mapping is good enough when others could save at most 1/4096 of its cycles."""

SURE = 1 << 16
"""A mapping is left out when it is sure to save at most 1/65536 of another's cycles."""

OPCODE = np.uint64(0xFF)
RELEASE = Times._fields.index("release")


def cycles(planners: Sequence[Planner], config: SatConfig, memory: MemoryTiming) -> int:
    """Return what products take, exactly."""
    return predict(with_end(schedule(planners)), config, memory).cycles


class Trial:
    """A product under a mapping, to be compared with others: all of it, or its first blocks.

    Of a long product the first blocks are costed, and what is left takes as long as the second
    half of these, where blocks repeat: within 2 % of what it takes.

    Parameters
    ----------
    make : callable
        Returns the plan.
    """

    def __init__(self, make: Callable[[], Planner], config: SatConfig, memory: MemoryTiming):
        self.config, self.memory = config, memory
        planner = make()
        self._left = 0.0  # blocks that are not run, for each that is in the second half
        blocks = planner.outer_blocks
        if blocks > 4:
            planner.outer_blocks = 1
            part = max(2, SAMPLE // 2 // len(planner.steps()))
            planner = make()
            # Less is run than the whole.
            if 3 * part < blocks:
                planner.outer_blocks = 2 * part
                self._left = (blocks - 2 * part) / part
        self._scheduled = Scheduled([planner])
        self._made: dict[Order, tuple[Words, Prediction]] = {}

    @property
    def whole(self) -> bool:
        """Whether all of the product is run."""
        return not self._left

    def run(self, order: Order) -> tuple[Words, Prediction]:
        """Return the instructions, without END, and what they take with one."""
        if order not in self._made:
            words = self._scheduled.instructions(order)
            found = predict(with_end(words), self.config, self.memory, times=not self.whole)
            self._made[order] = words, found
        return self._made[order]

    def cycles(self, order: Order = ORDERS[0]) -> float:
        """Return what all of the product takes, exactly if all of it is run."""
        words, found = self.run(order)
        if self.whole:
            return found.cycles
        done = found.times[:-1][words[:, 0] & OPCODE == Opcode.MULTIPLY.value, RELEASE]
        return found.cycles + float(done[-1] - done[len(done) // 2 - 1]) * self._left


def fewest_cycles(
    shapes: Sequence[Shape],
    estimate: Callable[[Shape], Any],
    cost: Callable[[Shape], float],
    floor: Callable[[Shape], float],
    least: float,
    enough: int = ENOUGH,
) -> Shape:
    """Return the shape with the fewest cycles of those that are listed.

    The most promising are listed, `EACH` of a sort, until one is good enough. One is not costed
    where its floor says that it saves no more than 1/`SURE` of the best so far: the choice costs
    no more than any of those that are listed, or by so much.

    Parameters
    ----------
    estimate : callable
        Returns what shapes are ranked by: roughly how many cycles one takes.
    cost : callable
        Returns how many it takes, exactly.
    floor : callable
        Returns how many it takes at the least.
    least : float
        Cycles that any shape takes.
    enough : int
        A shape is good enough when others could save at most 1/enough of its cycles.
    """
    if len(shapes) == 1:
        return shapes[0]
    best: tuple[float, Shape] | None = None
    listed = Counter[str]()
    for shape in sorted(shapes, key=estimate):
        if best is not None and best[0] - least <= best[0] / enough:
            break
        if listed[shape.sort] == EACH:
            continue
        listed[shape.sort] += 1
        if best is not None and best[0] - floor(shape) <= best[0] / SURE:
            continue
        found = cost(shape)
        if best is None or found < best[0]:
            best = found, shape
    assert best is not None, "a product has a mapping"
    return best[1]


def fastest_order(
    planners: Sequence[Planner],
    config: SatConfig,
    memory: MemoryTiming,
    least: float = 0,
    trial: Trial | None = None,
) -> tuple[Order, Words, Prediction]:
    """Return the order of products' instructions that takes fewest cycles, and them, without END.

    And what they take with an END behind them. No order is chosen that takes more than the first.

    Parameters
    ----------
    least : float
        Cycles that any order takes: one that is good enough is not compared with others.
    trial : Trial, optional
        Of a product alone, if it was costed: orders of a long one are compared by its first blocks.
    """

    def orders() -> Iterator[Order]:
        yield ORDERS[0]
        if trial is None or trial.whole:
            yield from ORDERS[1:]
        elif (chosen := min(ORDERS, key=trial.cycles)) != ORDERS[0]:
            yield chosen

    run = trial.run if trial is not None and trial.whole else None
    if run is None:
        scheduled = Scheduled(planners)

        def run(order: Order) -> tuple[Words, Prediction]:
            made = scheduled.instructions(order)
            return made, predict(with_end(made), config, memory)

    best: tuple[Order, Words, Prediction] | None = None
    for order in orders():
        made, found = run(order)
        if best is None or found.cycles < best[2].cycles:
            best = order, made, found
        # In any order the array takes as many operands.
        least = max(least, found.compute_cycles)
        if best[2].cycles - least <= best[2].cycles / ENOUGH:
            break
    assert best is not None
    return best
