"""The products that a stage of a layer is made of, and how each of them is mapped."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from sat.dataflow.columns import WORDS, Words
from sat.dataflow.compile.choose import Trial, fastest_order, fewest_cycles
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.schedule import ORDERS, Order, schedule
from sat.dataflow.compile.shapes import DepthwiseShape, GradientShape
from sat.dataflow.cycles import Prediction
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.mapping import BandMapping, OsMapping, WsMapping
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming

Shape: TypeAlias = OsMapping | WsMapping | BandMapping | GradientShape | DepthwiseShape
"""How a product of a stage is laid on the array."""

SHAPES: dict[str, type[Shape]] = {
    "os": OsMapping,
    "ws": WsMapping,
    "bands": BandMapping,
    "wu": GradientShape,
    "depthwise": DepthwiseShape,
}
"""By their names in files."""


class Part(Protocol):
    """A product of a stage."""

    @property
    def config(self) -> SatConfig:
        """The device."""

    @property
    def key(self) -> Hashable:
        """What it is but where it lies: parts of one key are mapped alike."""

    @property
    def alike(self) -> Hashable:
        """All that its programs' cycles depend on besides the device; None if that is not known."""

    @property
    def least(self) -> int:
        """Cycles that the array needs at the least."""

    def mappings(self) -> Sequence[Any]:
        """Return the mappings worth trying; there is one."""

    def estimate(self, mapping: Any, memory: MemoryTiming) -> Any:
        """Return what mappings are ranked by: roughly how many cycles one takes."""

    def floor(self, mapping: Any, memory: MemoryTiming) -> int:
        """Return cycles that no program goes below under a mapping."""

    def planner(self, mapping: Any) -> Planner:
        """Return the plan under a mapping."""


@dataclass(frozen=True)
class StagePlan:
    """How the products of a stage are mapped: all that a program of it depends on besides sizes.

    Parameters
    ----------
    mappings : tuple of Shape
        One for each of the stage's different products, in their order. A strided convolution's
        BP has several; the update has none.
    order : Order
        How loads and stores lie between MULTIPLYs.
    """

    mappings: tuple[Shape, ...] = ()
    order: Order = ORDERS[0]

    @property
    def dataflow(self) -> str:
        """``"os"``, ``"ws"``, both as ``"os+ws"``, or ``""`` for a stage without products."""
        return "+".join(sorted({mapping.dataflow for mapping in self.mappings}))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        names = {kind: name for name, kind in SHAPES.items()}
        return {
            "mappings": [
                {"kind": names[type(mapping)], **dataclasses.asdict(mapping)}
                for mapping in self.mappings
            ],
            "order": self.order._asdict(),
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> StagePlan:
        """Return the plan that `to_json` wrote.

        Raises
        ------
        ValueError
            It is none.
        """
        try:
            mappings = []
            for entry in given["mappings"]:
                fields = dict(entry)
                mappings.append(SHAPES[fields.pop("kind")](**fields))
            return cls(tuple(mappings), Order(**given["order"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{given!r} is no plan of a stage: {error!r}") from None


def plan(
    parts: Sequence[Part],
    config: SatConfig,
    memory: MemoryTiming,
    dataflow: str = "auto",
) -> tuple[StagePlan, Words, Prediction | None]:
    """Return the plan that takes the fewest cycles, of those that are costed, and its instructions.

    And what these and an END behind them take, if there are any.

    Parameters
    ----------
    dataflow : {"auto", "os", "ws"}
        Which mappings to choose among.

    Raises
    ------
    DoesNotFit
        A product has no mapping of this dataflow.
    ValueError
        ``dataflow`` is none of these.
    """
    if dataflow not in ("auto", "os", "ws"):
        raise ValueError(f"dataflow={dataflow!r}: must be 'auto', 'os' or 'ws'")
    known: dict[Hashable, Shape] = {}
    trial = None
    for part in parts:
        if part.key not in known:
            known[part.key], trial = _choose(part, memory, dataflow)
    if not parts:
        return StagePlan(), instructions(parts, StagePlan()), None
    mappings = tuple(known.values())
    least = sum(part.least for part in parts)
    alone = trial if len(parts) == 1 else None
    order, made, found = fastest_order(_planners(parts, mappings), config, memory, least, alone)
    return StagePlan(mappings, order), made, found


def _choose(part: Part, memory: MemoryTiming, dataflow: str) -> tuple[Shape, Trial | None]:
    """Return the mapping that takes the fewest cycles, of those that are listed, and its trial."""
    shapes = [m for m in part.mappings() if dataflow in ("auto", m.dataflow)]
    if not shapes:
        raise DoesNotFit(
            f"{part.key}: no mapping has dataflow={dataflow!r}", {}, "choose dataflow='auto'"
        )
    trials: dict[Shape, Trial] = {}

    def cost(mapping: Shape) -> float:
        trials[mapping] = Trial(lambda: part.planner(mapping), part.config, memory)
        return trials[mapping].cycles()

    chosen = fewest_cycles(
        shapes,
        lambda mapping: part.estimate(mapping, memory),
        cost,
        lambda mapping: part.floor(mapping, memory),
        part.least,
    )
    return chosen, trials.get(chosen)


def instructions(parts: Sequence[Part], plan: StagePlan) -> Words:
    """Return the instructions of products, without END.

    Raises
    ------
    ValueError
        The plan is not of these products.
    """
    if not parts:
        return np.zeros((0, WORDS), np.uint64)
    return schedule(_planners(parts, plan.mappings), plan.order)


def _planners(parts: Sequence[Part], mappings: Iterable[Shape]) -> list[Planner]:
    keys = list(dict.fromkeys(part.key for part in parts))
    mappings = tuple(mappings)
    if len(mappings) != len(keys):
        raise ValueError(f"{len(mappings)} mappings for a stage of {len(keys)} different products")
    known = dict(zip(keys, mappings, strict=True))
    return [part.planner(known[part.key]) for part in parts]
