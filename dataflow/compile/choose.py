"""Choose among the mappings of a product that is part of a layer, by their exact cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sat.dataflow.columns import Words, with_end
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.schedule import ORDERS, Order, schedule, schedules
from sat.dataflow.cycles import predict
from sat.rtl.config import SatConfig
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


def cycles(planners: Sequence[Planner], config: SatConfig, memory: MemoryTiming) -> int:
    """Return what products take, exactly."""
    return predict(with_end(schedule(planners)).tobytes(), config, memory).cycles


def sampled_cycles(make: Callable[[], Planner], config: SatConfig, memory: MemoryTiming) -> float:
    """Return what mappings are compared by: a product's cycles, exactly if it is not long.

    Of a long one its first blocks are costed, and as many more, where these repeat: within 2 % of
    what it takes.

    Parameters
    ----------
    make : callable
        Returns the plan.
    """

    def plan(blocks: int) -> Planner:
        made = make()
        made.outer_blocks = blocks
        return made

    whole = make()
    blocks = whole.outer_blocks
    if blocks > 4:
        part = max(2, SAMPLE // 2 // len(plan(1).steps()))
        # Less is run than the whole.
        if 3 * part < blocks:
            first, second = (cycles([plan(count)], config, memory) for count in (part, 2 * part))
            return first + (second - first) * (blocks - part) / part
    return cycles([whole], config, memory)


def fewest_cycles(
    shapes: Sequence[Shape],
    estimate: Callable[[Shape], Any],
    cost: Callable[[Shape], float],
    least: float,
    enough: int = ENOUGH,
) -> Shape:
    """Return the shape with the fewest cycles of those that are listed.

    The most promising are listed, `EACH` of a sort, until one is good enough; the choice costs no
    more than any of them.

    Parameters
    ----------
    estimate : callable
        Returns what shapes are ranked by: roughly how many cycles one takes.
    cost : callable
        Returns how many it takes, exactly.
    least : float
        Cycles that any shape takes.
    enough : int
        A shape is good enough when others could save at most 1/enough of its cycles.
    """
    best: tuple[float, Shape] | None = None
    listed = Counter[str]()
    for shape in sorted(shapes, key=estimate):
        if best is not None and best[0] - least <= best[0] / enough:
            break
        listed[shape.sort] += 1
        if listed[shape.sort] > EACH:
            continue
        found = cost(shape)
        if best is None or found < best[0]:
            best = found, shape
    assert best is not None, "a product has a mapping"
    return best[1]


def fastest_order(
    planners: Sequence[Planner], config: SatConfig, memory: MemoryTiming, least: float = 0
) -> tuple[Order, Words]:
    """Return the order of products' instructions that takes fewest cycles, and them, without END.

    Parameters
    ----------
    least : float
        Cycles that any order takes: one that is good enough is not compared with others.
    """
    best: tuple[int, Order, Words] | None = None
    for order, made in zip(ORDERS, schedules(planners, ORDERS), strict=True):
        found = predict(with_end(made).tobytes(), config, memory)
        if best is None or found.cycles < best[0]:
            best = found.cycles, order, made
        # In any order the array takes as many operands.
        least = max(least, found.compute_cycles)
        if best[0] - least <= best[0] / ENOUGH:
            break
    assert best is not None
    return best[1:]
