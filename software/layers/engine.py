"""Operands of a layer's products, pruned and rounded, and the engine that takes the products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sat.arrays import array_of
from sat.devices.base import Device
from sat.devices.context import ProductLog, ProductRecord, product_label
from sat.devices.operand import RightOperand
from sat.devices.staged import StagedDevice, stages_name
from sat.layers.plan import LayerPlan
from sat.layers.schemes import CONTRACTION
from sat.offload.meter import Meter
from sat.offload.rounding import Lost, halves
from sat.sim.golden import sore
from sat.sim.layer import Layer
from sat.sparsity.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Operand:
    """An operand of a product by lanes, rows of A or columns of B: (lanes, kept) each.

    Of a stack of products (groups, lanes, kept). ``indices`` is None for a dense one; ``depth`` is
    the length of a lane before pruning. One that is used again is ``resident``: devices keep it,
    where it is the right one.
    """

    values: Tensor
    indices: Tensor | None
    depth: int
    pattern: Pattern
    resident: bool = False

    @functools.cached_property
    def right(self) -> RightOperand:
        """The operand as columns of B."""
        values = np.ascontiguousarray(array_of(self.values).swapaxes(-1, -2))
        if self.indices is None:
            return RightOperand.dense(values, resident=self.resident)
        indices = np.ascontiguousarray(array_of(self.indices).swapaxes(-1, -2))
        return RightOperand(values, indices, self.pattern, self.depth, self.resident)


@dataclass(frozen=True)
class Copy:
    """FP16 copy of a weight, compact or dense, and the master, plan and pattern that it is of.

    ``operands`` are those made of it so far, by what they take of the weight.
    """

    plan: LayerPlan
    pattern: Pattern
    source: Tensor
    values: Tensor
    indices: Tensor | None
    operands: dict[Any, Operand] = field(default_factory=dict)

    def operand(self, part: Any, lanes: Callable[[Tensor], Tensor], depth: int) -> Operand:
        """Return a part of the copy as an operand, the same one each time.

        Parameters
        ----------
        part : hashable
            Names the part.
        lanes : callable
            Takes values, and indices, to (…, lanes, kept).
        depth : int
            Length of a lane before pruning.
        """
        if part not in self.operands:
            indices = None if self.indices is None else lanes(self.indices)
            self.operands[part] = Operand(
                lanes(self.values), indices, depth, self.pattern, resident=True
            )
        return self.operands[part]


Copies = dict[str, Copy]
"""By stage."""

# Apart from the modules, so that copying, pickling and saving one does not take them along.
COPIES: WeakKeyDictionary[nn.Module, Copies] = WeakKeyDictionary()


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    bits = _BITS[a.itemsize]
    return torch.equal(a.view(bits), b.view(bits))


def kept(plan: LayerPlan, stage: str, halves: NDArray[np.float16], axis: int) -> NDArray[np.bool_]:
    """Return which elements the plan's scheme and a stage's pattern keep along an axis."""
    pattern = plan.patterns.of(stage)
    values, places = plan.scheme.select(halves, pattern, axis, stage)
    ones = np.ones(values.shape, np.float16)
    n, m = pattern.n, pattern.m
    return sore.expand(ones, places, n, m, halves.shape[axis], axis) != 0


@dataclass(frozen=True)
class Engine:
    """Takes the products of one layer: its plan, and the device and log of its forward pass."""

    plan: LayerPlan
    device: Device
    log: ProductLog | None
    copies: Copies = field(default_factory=dict)
    owner: nn.Module | None = None
    lost: Lost = field(default_factory=Lost)  # by rounding, since the last product

    def rounded(self, x: Tensor) -> Tensor:
        """Return numbers rounded to float16; an offload's report counts what that lost."""
        return torch.from_numpy(halves(x.detach().resolve_neg(), self.lost))

    def weight(self, stage: str, w: Tensor, axes: dict[str, int]) -> Copy:
        """Return the layer's weight, pruned and rounded as by `operand`.

        It is the same copy as long as the weight is the same. So a weight is pruned once after
        each update and sent to a device once, however often it is used. Bits are compared, not
        version counters, which ``weight.data`` gets around.
        """
        held = self.copies.get(stage)
        now = w.detach()
        if held is not None and held.plan == self.plan and _same_bits(held.source, now):
            return held
        pattern = self.plan.patterns.of(stage)
        made = Copy(self.plan, pattern, now.clone(), *self.operand(stage, "weight", w, axes))
        self.copies[stage] = made
        return made

    def compact(self, stage: str) -> bool:
        """Whether an operand of the stage is stored in N:M form."""
        prune = self.plan.pruning(stage)
        return prune is not None and prune.axes[-1] == CONTRACTION[stage]

    def operand(
        self, stage: str, name: str, x: Tensor, axes: dict[str, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Round ``x`` to FP16, then prune it as the scheme says: the device's rule.

        Parameters
        ----------
        stage, name : str
            As in `sat.layers.schemes`.
        x : floating point
        axes : dict
            Axis of the input channels ("in"), of the output channels ("out"), of the positions of
            the batch ("batch"); those that the operand has.

        Returns
        -------
        values : float16
            Stored values; all of them for a dense operand, masked ones +0.
        indices : uint8 or None
        """
        plan = self.plan
        rounded = self.rounded(x)
        prune = plan.pruning(stage, name)
        if prune is None:
            return rounded, None
        array = array_of(rounded)
        *before, last = prune.axes
        if last != CONTRACTION[stage]:
            before.append(last)
        for axis in before:
            array = np.where(kept(plan, stage, array, axes[axis]), array, np.float16(0))
        if last != CONTRACTION[stage]:
            return torch.from_numpy(array), None
        values, indices = plan.scheme.select(array, plan.patterns.of(stage), axes[last], stage)
        return torch.from_numpy(values), torch.from_numpy(indices)

    def product(
        self, stage: str, left: Operand, right: Operand, start: Tensor | None = None
    ) -> Tensor:
        """Return (…, left lanes, right lanes) float32.

        ``start`` has one value per right lane: (lanes,), or (groups, 1, lanes) for a stack.
        """
        if left.indices is not None:
            # The device takes a compact operand on its right: compute the transpose.
            if start is not None:
                column = start[..., None] if start.ndim == 1 else start.mT
                start = column.expand(*column.shape[:-1], left.values.shape[-2])
            return self._matmul(stage, right, left, start).mT
        return self._matmul(stage, left, right, start)

    def stages(
        self, layer: Layer, names: Sequence[str], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run stages of the layer as one program and note it; None of them is a product."""
        device = self.device
        assert isinstance(device, StagedDevice), "only such a device is given layers"
        arrays = {name: array_of(t.detach().contiguous()) for name, t in tensors.items()}
        results, run = device.stages(names, layer, arrays, owner=self.owner)
        if self.log is not None:
            self.log.records.append(
                ProductRecord(
                    self.plan.name,
                    stages_name(names),
                    layer.out_positions,
                    layer.out_channels,
                    layer.taps * layer.in_per_group,
                    Pattern(*layer.pattern(names[0])),
                    device.name,
                    run,
                )
            )
        return {name: torch.from_numpy(array) for name, array in results.items()}

    def _matmul(self, stage: str, left: Operand, right: Operand, start: Tensor | None) -> Tensor:
        a = array_of(left.values.contiguous())
        first = None if start is None else array_of(start.detach().contiguous())
        if isinstance(self.device, Meter):
            self.device.lost.add(self.lost)
            self.lost.clear()
        with product_label(f"{self.plan.name or 'layer'} {stage}"):
            result, run = self.device.matmul_run(a, right.right, first)
        if self.log is not None:
            self.log.records.append(
                ProductRecord(
                    self.plan.name,
                    stage,
                    left.values.shape[-2],
                    right.values.shape[-2],
                    right.depth,
                    right.right.pattern,
                    self.device.name,
                    run,
                    len(a) if a.ndim == 3 else 1,
                )
            )
        return torch.from_numpy(result)
