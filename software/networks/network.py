"""What a training step of a network multiplies, operation by operation: sizes, never numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sat.dataflow.products import Product
from sat.sim.layer import Layer

STAGES = ("ff", "bp", "wu")
"""The products of a training step: forward, backward to the input, weight gradient."""


class CannotCapture(ValueError):
    """A model, or a file of one, whose work cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a network that multiplies matrices, and what training adds to it.

    Parameters
    ----------
    name : str
        Path of the module that ran it, as in `torch.nn.Module.named_modules`; a number follows if
        the module ran several.
    kind : {"conv", "linear", "product"}
        A layer with weights, or a product that is no layer of the array: of two activations, as in
        attention, or a convolution in three dimensions.
    layer : Layer or None
        The dense layer, if it is one.
    products : dict of str to tuple of Product
        The dense products of each stage that there is. A layer has one each, as a convolution
        that is lowered to rows of positions.
    weight : str or None
        Name of the parameter.
    """

    name: str
    kind: str
    layer: Layer | None
    products: dict[str, tuple[Product, ...]]
    weight: str | None = None

    def macs(self, stage: str) -> int:
        """Return the dense multiply-accumulates of a stage; 0 if it has none."""
        return sum(product.macs for product in self.products.get(stage, ()))


@dataclass(frozen=True, kw_only=True)
class Elementwise:
    """Work of the forward pass that is not on the array: calls, and elements that they make."""

    calls: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network at one input: its matrix work and what is beside it.

    Parameters
    ----------
    name : str
    batch : int
        First size of the first input.
    operations : tuple of Operation
        In the order of the forward pass.
    elementwise : dict of str to Elementwise
        By torch's name of the operation, the largest first: not on the array.
    parameters : int
        Numbers that are trained.
    """

    name: str
    batch: int
    operations: tuple[Operation, ...]
    elementwise: dict[str, Elementwise] = field(default_factory=dict)
    parameters: int = 0

    def stages(self) -> Iterator[tuple[Operation, str]]:
        """Yield each operation with each of its stages: FF in order, then BP and WU in reverse."""
        for operation in self.operations:
            yield operation, "ff"
        for operation in reversed(self.operations):
            for stage in ("bp", "wu"):
                if stage in operation.products:
                    yield operation, stage

    def macs(self, stage: str | None = None) -> int:
        """Return dense multiply-accumulates of a stage, or of all."""
        stages = STAGES if stage is None else (stage,)
        return sum(op.macs(name) for op in self.operations for name in stages)
