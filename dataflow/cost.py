"""What a stage of a layer, or a product, takes at its best: exact cycles, bytes, what bounds it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.compile.step import Stage, check_program, compile_step
from sat.dataflow.cycles import Prediction, predict
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.layers import LayerMemory
from sat.dataflow.limits import check_sizes
from sat.dataflow.mapping import Mapping
from sat.dataflow.products import Product
from sat.dataflow.recent import Recent
from sat.dataflow.search import best_mapping
from sat.rtl.config import SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

KEPT = 1 << 16
"""Costs that are kept for who asks again."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a program takes on a device, exactly: from its start to its END.

    Attributes
    ----------
    cycles : int
    compute_cycles : int
        Cycles in which the array took operands.
    read_cycles, write_cycles : int
        Cycles that the beats read, and written, take of the data port at the least.
    bytes_read, bytes_written : int
        That cross the data port, in whole beats.
    instructions : int
    """

    cycles: int
    compute_cycles: int
    read_cycles: int
    write_cycles: int
    bytes_read: int
    bytes_written: int
    instructions: int

    @property
    def needs(self) -> dict[str, int]:
        """Cycles that each of ``array``, ``read`` and ``write`` needs by itself."""
        return {
            "array": self.compute_cycles,
            "read": self.read_cycles,
            "write": self.write_cycles,
        }

    @property
    def bound(self) -> str:
        """Which of `needs` is the largest: what could not be faster without more of it."""
        return max(self.needs, key=lambda name: self.needs[name])


@dataclass(frozen=True, kw_only=True)
class StageCost(Cost):
    """A stage's cost under its plan, which `compile_step` takes."""

    plan: StagePlan


@dataclass(frozen=True, kw_only=True)
class ProductCost(Cost):
    """A product's cost under its mapping, which `compile_product` takes."""

    mapping: Mapping


_known: Recent[StageCost] = Recent(KEPT, lambda cost: 1)
_alike: Recent[StageCost] = Recent(KEPT, lambda cost: 1)

OF_UPDATES = ("update_lanes", "update_words", "copy_words", "tile_weights")
"""What of a device only the update depends on."""


def stage_cost(
    stage: str,
    layer: Layer,
    config: SatConfig,
    memory: MemoryTiming,
    *,
    dataflow: str = "auto",
    plan: StagePlan | None = None,
) -> StageCost:
    """Return what a stage of a layer takes under a plan, or under the best that is found.

    Layers are equal if their sizes are, so a shape that a network repeats is costed once.

    Parameters
    ----------
    stage : {"ff", "bp", "wu", "update"}
    layer : Layer
        With the patterns of FF and BP; WU is dense under every pattern.
    dataflow : {"auto", "os", "ws"}
        Which mappings to choose among, if no plan is given. WU and the update have no "ws".
    plan : StagePlan, optional
        As in a `StageCost`, or `StagePlan.from_json`.

    Raises
    ------
    DoesNotFit
        The device cannot run the layer, or a product has no mapping of this dataflow.
    ValueError
        ``stage`` or ``dataflow`` is unknown, or ``plan`` is not of this stage.
    """
    key = stage, layer, config, memory, dataflow, plan

    def make() -> StageCost:
        step = compile_step(
            layer,
            config,
            memory,
            (stage,),
            plans=None if plan is None else {stage: plan},
            dataflow=dataflow,
        )
        found = step.found.get(stage) or predict(step.program, config, memory, step.address)
        figures = _figures(found, len(step.program), config, memory)
        return StageCost(**figures, plan=step.plans[stage])

    def find() -> StageCost:
        """Return what a stage that is alike takes: a network has more layers than kinds of them."""
        try:
            where = LayerMemory(layer, config)
            check_sizes(where)
            made = Stage.of(stage, layer, where, {})
        except DoesNotFit:
            return make()  # which says all that would help
        kinds = tuple(part.alike for part in made.parts)
        if not kinds or None in kinds or made.first:
            return make()
        device = tuple(
            getattr(config, entry.name) for entry in fields(config) if entry.name not in OF_UPDATES
        )
        cost = _alike.get((kinds, device, memory, dataflow), make)
        check_program(where, cost.instructions, (stage,))
        return cost

    return _known.get(key, find if plan is None and stage != "update" else make)


def stage_floor(stage: str, layer: Layer, config: SatConfig, memory: MemoryTiming) -> int:
    """Return cycles that no plan of a stage goes below, without any program.

    Parameters
    ----------
    stage : {"ff", "bp", "wu"}

    Raises
    ------
    DoesNotFit
        The device cannot run the layer.
    """
    where = LayerMemory(layer, config)
    check_sizes(where)
    parts = Stage.of(stage, layer, where, {}).parts
    each = [min(part.floor(m, memory) for m in part.mappings()) for part in parts]
    # Products run one after the other, but one begins before the last is stored.
    return max([sum(part.least for part in parts), *each])


def product_cost(
    product: Product, config: SatConfig, memory: MemoryTiming, *, dataflow: str = "auto"
) -> ProductCost:
    """Return what a product takes under the best mapping that is found.

    Raises
    ------
    ValueError
        As `sat.dataflow.search.best_mapping`.
    """
    compiled, _ = best_mapping(product, config, memory, dataflow)
    found = predict(compiled.program, config, memory)
    figures = _figures(found, len(compiled.program), config, memory)
    return ProductCost(**figures, mapping=compiled.mapping)


def _figures(
    found: Prediction, instructions: int, config: SatConfig, memory: MemoryTiming
) -> dict[str, int]:
    """Return the fields of a `Cost`."""
    beat, each = config.axi.beat_bytes, memory.cycles_per_beat
    return {
        "cycles": found.cycles,
        "compute_cycles": found.compute_cycles,
        "read_cycles": found.beats_read * each,
        "write_cycles": found.beats_written * each,
        "bytes_read": found.beats_read * beat,
        "bytes_written": found.beats_written * beat,
        "instructions": instructions,
    }
