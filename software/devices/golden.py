"""The golden device: the functional model that defines every other device's bits."""

from __future__ import annotations

import ctypes
import time
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.arrays import empty_array
from sat.dataflow.compile.step import Sgd
from sat.dataflow.products import Product
from sat.devices.account import Prediction
from sat.devices.base import Device, Run, Tensors, exclusive, make_config
from sat.devices.operand import (
    RightOperand,
    Windows,
    bytes_passing,
    product_between,
    product_of,
)
from sat.devices.stages import check_tensors, stage_macs
from sat.rtl.config import SatConfig
from sat.sim.golden import layer as golden
from sat.sim.golden import stce
from sat.sim.golden.update import Rates, narrow
from sat.sim.golden.update import non_finite as count_non_finite
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

MACS_A_THREAD = 1 << 18
"""Multiply-accumulates that take longer than to hand them to a thread that waits: microseconds."""

PLANS = 4096
"""Sizes and types of products that a device knows by heart."""


_KINDS = {getattr(torch, name): kind for name, kind in stce.KINDS.items()}

Operand = TypeVar("Operand", Tensor | Windows, Tensor | Windows | RightOperand)


class _Form:
    """What is the same for all products of some sizes, strides and types.

    Parameters
    ----------
    product : Product
    plan : stce.Plan
    predicted : Prediction
        Of its cycles.
    """

    __slots__ = ("macs", "passing", "plan", "predicted", "product", "right")

    def __init__(self, product: Product, plan: stce.Plan, predicted: Prediction) -> None:
        self.product, self.plan, self.predicted = product, plan, predicted
        self.macs, self.passing = product.macs, bytes_passing(product)
        self.right = 2 * product.count * product.depth * product.cols  # bytes, if it is dense


def _key(x: Tensor | Windows | RightOperand) -> tuple[object, ...]:
    """Return what an operand's form depends on."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype
    return (x.layout,) if isinstance(x, Windows) else (x.layout, x.pattern.n, x.pattern.m)


def _lies(x: Tensor | Windows | RightOperand) -> tuple[stce.Layout | stce.LoopLayout, int]:
    """Return an operand's layout, and its type as the kernel knows it."""
    if isinstance(x, Tensor):
        return (tuple(x.shape), tuple(x.stride())), _KINDS[x.dtype]
    return x.layout, 0


def _has_gaps(x: Tensor | Windows | RightOperand) -> bool:
    """Return whether numbers that have to be rounded do not fill their memory, one after another.

    In whatever order.
    """
    if not isinstance(x, Tensor) or x.dtype is torch.float16:
        return False
    step = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != step:
            return True
        step *= size
    return False


def _without_gaps(x: Operand) -> Operand:
    return x.contiguous() if isinstance(x, Tensor) and _has_gaps(x) else x


class GoldenDevice(Device):
    """Compute products on the host; cycles are predicted for a described array, never counted.

    Every pattern runs, whatever ``max_m``: the result does not depend on the array.

    Parameters
    ----------
    config : SatConfig, optional
        Array that predictions are for.
    threads : int
        Threads of the host that a large product may use; the result does not depend on it.
    memory : MemoryTiming, optional
        Memory that predictions are for.
    **options
        ``array="RxC"`` and fields of `SatConfig`.
    """

    any_pattern = True

    name = "golden"

    def __init__(
        self,
        config: SatConfig | None = None,
        *,
        threads: int = 1,
        memory: MemoryTiming | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ValueError(f"threads={threads!r}: must be an int of at least 1; leave it out")
        super().__init__(make_config(config, **options))
        self.memory_timing = memory or MemoryTiming()
        self.threads = threads
        self._kept: WeakSet[RightOperand] = WeakSet()
        self._forms: dict[tuple[object, ...], _Form] = {}
        # A subclass that computes otherwise is given float16, as all devices.
        self.rounds = type(self)._matmul is GoldenDevice._matmul

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return the cycles that the array of ``config`` takes for a product, by the cycle model.

        Raises
        ------
        ValueError
            If the array has no mapping for it.
        """
        return self._prediction(product, dataflow)()

    def _prediction(self, product: Product, dataflow: str) -> Prediction:
        return Prediction(product, self.config, self.memory_timing, dataflow)

    def _matmul(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        product = product_of(a, b, start)
        before = time.perf_counter()
        result = empty_array((*a.shape[:-1], product.cols))
        threads = self.threads_for(product.macs)
        stce.fold(a, b.values, b.indices, start, product.n, product.m, threads, result)
        seconds = time.perf_counter() - before
        kept = self._keep(b)
        return result, Run(
            macs=product.macs,
            predicted_cycles=self._prediction(product, dataflow),
            wall_seconds=seconds,
            bytes_host=bytes_passing(product) + (0 if kept else b.nbytes),
            bytes_kept=b.nbytes if kept else 0,
        )

    def multiply(
        self,
        a: Tensor | Windows,
        b: Tensor | Windows | RightOperand,
        start: Tensor | None,
        lost: ctypes.Array[ctypes.c_long],
        out: Tensor | None = None,
        outer: int = 1,
    ) -> tuple[Tensor, Product, Run]:
        """Return ``start + a @ b`` of operands rounded to float16; see `RoundingDevice`."""
        with self._turn():
            self._require_open()
            before = time.perf_counter()
            form = self._form(a, b, start, outer)
            if form is None:
                a, b = _without_gaps(a), _without_gaps(b)
                form = self._form(a, b, start, outer)
                assert form is not None, "what is laid out anew has no gaps"
            result = torch.empty(form.plan.shape) if out is None else out
            at_a = a.data_ptr() if isinstance(a, Tensor) else a.address
            at_b, indices = b.data_ptr() if isinstance(b, Tensor) else 0, None
            if isinstance(b, Windows):
                at_b = b.address
            elif isinstance(b, RightOperand):
                at_b, indices = b.addresses
            at_start = None if start is None else start.data_ptr()
            status = form.plan.run(at_a, at_b, indices, at_start, result.data_ptr(), lost)
            assert status == -1, "a compact operand is checked where it is made"
            kept, right = False, form.right
            if isinstance(b, RightOperand):
                kept, right = self._keep(b), b.nbytes
            self.last_run = run = Run(
                macs=form.macs,
                predicted_cycles=form.predicted,
                wall_seconds=time.perf_counter() - before,
                bytes_host=form.passing + (0 if kept else right),
                bytes_kept=right if kept else 0,
            )
        return result, form.product, run

    def computed(self, product: Product, seconds: float) -> Run:
        """Return the account of a product computed elsewhere; see `RoundingDevice`."""
        self._require_open()
        right = 2 * product.count * product.depth * product.cols
        self.last_run = run = Run(
            macs=product.macs,
            predicted_cycles=self._prediction(product, "auto"),
            wall_seconds=seconds,
            bytes_host=bytes_passing(product) + right,
        )
        return run

    def _form(
        self,
        a: Tensor | Windows,
        b: Tensor | Windows | RightOperand,
        start: Tensor | None,
        outer: int,
    ) -> _Form | None:
        """Return the form of a product; None if an operand to be rounded has gaps."""
        key = (*_key(a), *_key(b), outer)
        if start is not None:
            key = (*key, start.shape, start.stride())
        form = self._forms.get(key)
        if form is None and not (_has_gaps(a) or _has_gaps(b)):
            if len(self._forms) >= PLANS:
                self._forms.clear()
            form = self._forms[key] = self._new_form(a, b, start, outer)
        return form

    def _new_form(
        self,
        a: Tensor | Windows,
        b: Tensor | Windows | RightOperand,
        start: Tensor | None,
        outer: int,
    ) -> _Form:
        n, m = (b.pattern.n, b.pattern.m) if isinstance(b, RightOperand) else (1, 1)
        cols = b.cols if isinstance(b, RightOperand) else b.shape[-1]
        shape = (*a.shape[:-1], cols)
        first: stce.Layout | None = None
        row_step = None
        if start is not None:
            first = shape, tuple(start.expand(shape).stride())
            row_step = first[1][-2] if shape[-2] > 1 else 0
        product = product_between(tuple(a.shape), shape[-1], n, m, row_step)
        (left, a_kind), (right, b_kind) = _lies(a), _lies(b)
        threads = self.threads_for(product.macs)
        plan = stce.Plan(left, right, first, n, m, threads, (a_kind, b_kind), outer)
        return _Form(product, plan, self._prediction(product, "auto"))

    def threads_for(self, macs: int) -> int:
        """Return how many threads a product of so many multiply-accumulates uses."""
        return 1 if self.threads == 1 else min(self.threads, 1 + macs // MACS_A_THREAD)

    def _keep(self, b: RightOperand) -> bool:
        """Return whether an operand need not be sent; it will stay if it is resident."""
        if not b.resident:
            return False
        kept = b in self._kept
        self._kept.add(b)
        return kept

    @exclusive
    def run_stages(
        self,
        names: tuple[str, ...],
        layer: Layer,
        tensors: Tensors,
        rates: Sgd | None,
        owner: object = None,
    ) -> tuple[Tensors, Run]:
        """Compute what stages of a layer leave; no cycles are counted.

        Parameters and returns are those of `sat.devices.staged.StagedDevice.stages`.
        """
        check_tensors(names, layer, tensors)
        before = time.perf_counter()
        results: Tensors = {}
        now = dict(tensors)
        numbers = Rates(**(rates or Sgd()).fields())
        non_finite = 0
        for name in names:
            made: Tensors = {}
            if name == "ff":
                bias = now["bias"] if layer.bias else None
                made["y"], _ = golden.outputs(layer, now["x"], narrow(now["w"]), bias)
            elif name == "bp":
                mask = now["in_mask"] if layer.masked else None
                made["dx"] = golden.input_gradients(layer, now["dy"], narrow(now["w"]), mask)
            elif name == "wu":
                made["g"] = golden.gradient(layer, now["x"], now["dy"])
                non_finite += count_non_finite(made["g"])
            else:
                # A gradient that this program found not to be finite skips its updates.
                made["w"], made["v"] = golden.updated(
                    layer, numbers, now["w"], now["v"], now["g"], skip=non_finite > 0
                )
            results |= made
            now |= made
        seconds = time.perf_counter() - before
        return results, Run(macs=stage_macs(layer, names), wall_seconds=seconds)
