"""From a layer to one program that runs its training step, or any stages of it.

The instructions of a stage begin and end with every engine idle and every semaphore at 0, so a
program is stages with a FENCE between them, whose first loads stand before it where they may and
cycles are saved (`sat.dataflow.compile.prefetch`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sat.dataflow.columns import Words
from sat.dataflow.compile.activations import backward, forward
from sat.dataflow.compile.depthwise import depthwise_gradient
from sat.dataflow.compile.gradient import gradient
from sat.dataflow.compile.parts import Part, StagePlan, instructions, plan
from sat.dataflow.compile.prefetch import fastest
from sat.dataflow.compile.update import UpdatePlan, update
from sat.dataflow.cycles import Prediction
from sat.dataflow.fit import attempt
from sat.dataflow.layers import Layer, LayerMemory
from sat.dataflow.limits import check_addresses, check_sizes
from sat.dataflow.mapping import round_up
from sat.dataflow.program import Program
from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming

STAGES = ("ff", "bp", "wu", "update")


@dataclass(frozen=True)
class Stage:
    """What a stage of a layer does: instructions of their own, then products.

    Parameters
    ----------
    first : sequence of (count, 4) uint64
        The update; zeros where no tap reaches.
    parts : sequence of Part
    """

    first: Sequence[Words]
    parts: Sequence[Part]

    @classmethod
    def of(cls, name: str, layer: Layer, where: LayerMemory, rates: dict[str, int]) -> Stage:
        """Return a stage.

        Raises
        ------
        ValueError
            ``name`` is none of `STAGES`, or the layer does not fit the device.
        """
        if name == "ff":
            return cls([], forward(layer, where))
        if name == "bp":
            return cls(*backward(layer, where))
        if name == "wu":
            make = depthwise_gradient if layer.depthwise else gradient
            return cls([], make(layer, where))
        if name == "update":
            return cls([update(layer, where, rates)], [])
        raise ValueError(f"stage={name!r}: must be one of {', '.join(STAGES)}")

    def best(
        self, config: SatConfig, memory: MemoryTiming, dataflow: str = "auto"
    ) -> tuple[StagePlan, Words, Prediction | None]:
        """Return the best plan, all without END, and what that takes if it is known.

        As `sat.dataflow.compile.parts.plan`, whose prediction is of the products alone.
        """
        best, made, found = plan(self.parts, config, memory, dataflow)
        return best, np.concatenate([*self.first, made]), None if self.first else found

    def instructions(self, plan: StagePlan) -> Words:
        """Return all under a plan, without END."""
        return np.concatenate([*self.first, instructions(self.parts, plan)])


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """What `torch.optim.SGD` is given, as the device takes it.

    Parameters
    ----------
    learning_rate, momentum, weight_decay : float
    sr_ste : float
        SR-STE's lambda: decay of the weights that FF prunes, besides ``weight_decay``.
    loss_scale : float
        What the loss was multiplied by.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    sr_ste: float = 0.0
    loss_scale: float = 1.0

    def fields(self) -> dict[str, int]:
        """Return the fields of RATES: bits of FP32 numbers, each rounded once."""
        numbers = {
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "decay": self.weight_decay,
            "decay_pruned": self.weight_decay + self.sr_ste,
            "unscale": 1 / self.loss_scale,
        }
        return {name: int(np.float32(x).view(np.uint32)) for name, x in numbers.items()}


@dataclass(frozen=True)
class CompiledStep:
    """A program for stages of a layer, and where its tensors lie.

    Attributes
    ----------
    stages : tuple of (str, int, int)
        Each stage's name, its first instruction and the first behind it; the last of them is a
        STORE.
    address : int
        Byte address of the program.
    end : int
        First byte address behind everything.
    plans : dict of str to StagePlan
        How each stage is mapped.
    found : Prediction or None
        What the program takes, if that was found when it was made.
    """

    layer: Layer
    memory: LayerMemory
    program: Program
    stages: tuple[tuple[str, int, int], ...]
    address: int
    end: int
    plans: Mapping[str, StagePlan]
    found: Prediction | None = None

    def with_weights_at(self, address: int) -> CompiledStep:
        """Return the same for weights that lie elsewhere; it takes as many cycles.

        Parameters
        ----------
        address : int
            Of what `LayerMemory` says is held; a multiple of `boundary_bytes`.
        """
        by = address - self.memory.held.start
        return replace(
            self,
            memory=self.memory.moved(by),
            program=self.program.moved(self.memory.held, by),
        )


def compile_step(
    layer: Layer,
    config: SatConfig,
    memory: MemoryTiming,
    stages: Sequence[str] = STAGES,
    sgd: Sgd | None = None,
    base: int = 0,
    plans: Mapping[str, StagePlan] | None = None,
    dataflow: str = "auto",
) -> CompiledStep:
    """Compile stages of a layer's training step, in the order given.

    A FENCE stands between stages: BP must not see a copy half updated, and no weight may change
    before every gradient has been checked. What a stage loads first is fetched before the FENCE
    where the stage before does not write it and cycles are saved.

    Parameters
    ----------
    plans : mapping of str to StagePlan, optional
        How stages are mapped, by their names; those that are not there are searched.
    dataflow : {"auto", "os", "ws"}
        Which mappings are searched.

    Raises
    ------
    ValueError
        A stage or dataflow is unknown, or a plan is not of its stage.
    DoesNotFit
        The device cannot run the layer: the message names what would help.
    """

    def make(config: SatConfig) -> CompiledStep:
        where = LayerMemory(layer, config, base)
        check_sizes(where)
        rates = (sgd or Sgd()).fields()
        made: list[Words] = []
        chosen: dict[str, StagePlan] = {}
        found: dict[str, Prediction] = {}
        for name in stages:
            stage = Stage.of(name, layer, where, rates)
            given = (plans or {}).get(name)
            if given is None:
                chosen[name], words, cycles = stage.best(config, memory, dataflow)
                if cycles is not None:
                    found[name] = cycles
            else:
                chosen[name], words = given, stage.instructions(given)
            made.append(words)
        words, ends, together = fastest(made, config, memory)
        program = Program.of(words)
        address, end = check_program(where, len(program), stages)
        marks = tuple(zip(stages, [0, *(n + 1 for n in ends)], ends, strict=False))
        return CompiledStep(
            layer, where, program, marks, address, end, chosen,
            found.get(stages[0]) if len(stages) == 1 else together,
        )  # fmt: skip

    return attempt(make, config)


def check_program(where: LayerMemory, instructions: int, stages: Sequence[str]) -> tuple[int, int]:
    """Return where a program lies behind a layer's tensors, and the first address behind it.

    Raises
    ------
    DoesNotFit
        The device's addresses do not reach it.
    """
    address = round_up(where.end, 4 * isa.INSTRUCTION_BYTES)
    end = address + instructions * isa.INSTRUCTION_BYTES
    check_addresses(end, where.config, f"{', '.join(stages)} of {where.layer}")
    return address, end


def compile_updates(
    layers: Sequence[Layer],
    config: SatConfig,
    memory: MemoryTiming,
    sgd: Sgd | None = None,
    base: int = 0,
) -> tuple[CompiledStep, ...]:
    """Compile the updates of several layers as one program; each layer's tensors lie by themselves.

    Returns
    -------
    tuple of CompiledStep
        A layer each: all have the same program, behind all tensors.

    Raises
    ------
    DoesNotFit
        As `compile_step`.
    """

    def make(config: SatConfig) -> tuple[CompiledStep, ...]:
        places: list[LayerMemory] = []
        for layer in layers:
            places.append(LayerMemory(layer, config, places[-1].end if places else base))
            check_sizes(places[-1])
        rates = (sgd or Sgd()).fields()
        each = [Stage.of("update", w.layer, w, rates).instructions(StagePlan()) for w in places]
        words, ends, found = fastest(each, config, memory)
        program = Program.of(words)
        address, end = check_program(places[-1], len(program), ["updates"])
        starts = [0, *(n + 1 for n in ends)]
        return tuple(
            CompiledStep(
                where.layer, where, program, (("update", first, last),), address, end,
                {"update": StagePlan()}, found,
            )
            for where, first, last in zip(places, starts, ends, strict=False)
        )  # fmt: skip

    return attempt(make, config)


SURELY_ENOUGH = 64
"""Times a layer's tensors at which its programs surely have room beside them."""


def check_layer(layer: Layer, config: SatConfig) -> None:
    """Check that a device can run all stages of a layer, mostly without compiling them.

    Raises
    ------
    DoesNotFit
        As `compile_step` for `STAGES`.
    """

    def make(config: SatConfig) -> None:
        where = LayerMemory(layer, config)
        check_sizes(where)
        UpdatePlan.of(layer, where)
        check_addresses(where.end, config, f"the tensors of {layer}")
        if SURELY_ENOUGH * where.end > 1 << config.axi.address_bits:
            compile_step(layer, config, MemoryTiming())

    attempt(make, config)
