"""What a stage of a layer, or a product, takes at its best: exact cycles, bytes, what bounds it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Mapping as Named
from dataclasses import dataclass, fields

import numpy as np

from sat.dataflow.columns import Words
from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.compile.prefetch import fastest
from sat.dataflow.compile.step import Stage, check_program, compile_step, compile_updates
from sat.dataflow.cycles import Prediction, Times, predict
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.layers import LayerMemory
from sat.dataflow.limits import check_sizes
from sat.dataflow.mapping import Mapping
from sat.dataflow.products import Product
from sat.dataflow.recent import PROGRAM_INSTRUCTIONS, Recent
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
        Of a stage that is one of several in a program: from the end of the one before, as
        `program_cycles`.
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
_together: Recent[tuple[int, ...]] = Recent(KEPT, lambda cycles: 1)

_programs: Recent[Words] = Recent(2 * PROGRAM_INSTRUCTIONS, len)

TOGETHER = ("bp", "wu")
"""Stages whose instructions are kept for `program_cycles`."""

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
        With the patterns of FF, BP and WU.
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
        found = step.found or predict(step.program, config, memory, step.address)
        if stage in TOGETHER:
            kept = stage, layer, config, step.plans[stage]
            _programs.get(kept, lambda: step.program.words[:-1])
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
        kind = _kind([made], config)
        if kind is None:
            return make()
        cost = _alike.get((kind, memory, dataflow), make)
        check_program(where, cost.instructions, (stage,))
        return cost

    return _known.get(key, find if plan is None and stage != "update" else make)


def _kind(stages: Sequence[Stage], config: SatConfig) -> Hashable | None:
    """Return what the cycles of stages depend on, but memory and plans; None if it is not known."""
    kinds = tuple(tuple(part.alike for part in stage.parts) for stage in stages)
    if any(stage.first for stage in stages) or any(not k or None in k for k in kinds):
        return None
    names = (entry.name for entry in fields(config) if entry.name not in OF_UPDATES)
    return kinds, tuple(getattr(config, name) for name in names)


def program_cycles(
    layer: Layer, stages: Named[str, StagePlan], config: SatConfig, memory: MemoryTiming
) -> tuple[int, ...]:
    """Return what each of a layer's stages takes in one program of them all: together its cycles.

    A stage ends with its last result in memory, the last one with the program.

    Parameters
    ----------
    stages : dict of str to StagePlan
        In their order.

    Raises
    ------
    DoesNotFit, ValueError
        As `stage_cost`.
    """

    def make() -> tuple[int, ...]:
        where = LayerMemory(layer, config)
        each = [_words(name, where, plan) for name, plan in plans]
        words, ends, found = fastest(each, config, memory)
        check_program(where, len(words), tuple(stages))
        return _shares(ends, found or predict(words, config, memory))

    def find() -> tuple[int, ...]:
        where = LayerMemory(layer, config)
        kind = _kind([Stage.of(name, layer, where, {}) for name in stages], config)
        return make() if kind is None else _together.get((kind, plans, memory), make)

    plans = tuple(stages.items())
    return _together.get((layer, config, plans, memory), find)


def _words(stage: str, where: LayerMemory, plan: StagePlan) -> Words:
    """Return a stage's instructions without END, as its cost was found by, if they are kept."""

    def make() -> Words:
        return Stage.of(stage, where.layer, where, {}).instructions(plan)

    return _programs.get((stage, where.layer, where.config, plan), make)


def update_cycles(
    layers: Sequence[Layer], config: SatConfig, memory: MemoryTiming
) -> tuple[int, ...]:
    """Return what the update of each layer takes in one program of them all.

    Raises
    ------
    DoesNotFit
        The device cannot run a layer.
    """

    def make() -> tuple[int, ...]:
        steps = compile_updates(layers, config, memory)
        ends = [end for step in steps for _, _, end in step.stages]
        program, found = steps[0].program, steps[0].found
        return _shares(ends, found or predict(program, config, memory))

    return _together.get((tuple(layers), config, memory), make)


def _shares(ends: Sequence[int], found: Prediction) -> tuple[int, ...]:
    """Return what stages take of a program's cycles: a STORE stands last in each."""
    stored = found.times[np.array(ends[:-1], int) - 1, Times._fields.index("signal")]
    return tuple(int(n) for n in np.diff([0, *stored, found.cycles]))


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
