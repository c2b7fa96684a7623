"""From a layer to one program that runs its training step, or any stages of it.

The instructions of a stage begin and end with every engine idle and every semaphore at 0, so a
program is stages with a FENCE between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sat.dataflow.compile.activations import backward, forward
from sat.dataflow.compile.depthwise import depthwise_gradient
from sat.dataflow.compile.gradient import gradient
from sat.dataflow.compile.update import UpdatePlan, update
from sat.dataflow.fit import attempt
from sat.dataflow.layers import Layer, LayerMemory
from sat.dataflow.limits import check_addresses, check_sizes
from sat.dataflow.mapping import round_up
from sat.dataflow.program import Program
from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Instruction, Opcode
from sat.sim.memory import MemoryTiming

STAGES = ("ff", "bp", "wu", "update")


def stage(
    name: str, layer: Layer, where: LayerMemory, memory: MemoryTiming, rates: dict[str, int]
) -> list[Instruction]:
    """Return a stage's instructions.

    Raises
    ------
    ValueError
        ``name`` is none of `STAGES`, or the layer does not fit the device.
    """
    builders = {
        "ff": partial(forward, layer, where, memory),
        "bp": partial(backward, layer, where, memory),
        "wu": partial(depthwise_gradient, layer, where)
        if layer.depthwise
        else partial(gradient, layer, where, memory),
        "update": partial(update, layer, where, rates),
    }
    if name not in builders:
        raise ValueError(f"stage={name!r}: must be one of {', '.join(builders)}")
    return builders[name]()


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
        Each stage's name, its first instruction and the first behind it.
    address : int
        Byte address of the program.
    end : int
        First byte address behind everything.
    """

    layer: Layer
    memory: LayerMemory
    program: Program
    stages: tuple[tuple[str, int, int], ...]
    address: int
    end: int

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
) -> CompiledStep:
    """Compile stages of a layer's training step, in the order given.

    A FENCE stands between stages: BP must not see a copy half updated, and no weight may change
    before every gradient has been checked.

    Raises
    ------
    ValueError
        A stage is unknown.
    DoesNotFit
        The device cannot run the layer: the message names what would help.
    """

    def make(config: SatConfig) -> CompiledStep:
        where = LayerMemory(layer, config, base)
        check_sizes(where)
        rates = (sgd or Sgd()).fields()
        instructions: list[Instruction] = []
        marks = []
        for name in stages:
            if instructions:
                instructions.append(Instruction(Opcode.FENCE, {}))
            first = len(instructions)
            instructions += stage(name, layer, where, memory, rates)
            marks.append((name, first, len(instructions)))
        instructions.append(Instruction(Opcode.END, {}))
        address = round_up(where.end, 4 * isa.INSTRUCTION_BYTES)
        program = Program(instructions)
        end = address + len(program) * isa.INSTRUCTION_BYTES
        check_addresses(end, config, f"{', '.join(stages)} of {layer}")
        return CompiledStep(layer, where, program, tuple(marks), address, end)

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
