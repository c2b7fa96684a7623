"""The device of an offload: what every product passes, to be paid from the budget and booked."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.arrays import array_of, tensor_of
from sat.dataflow.products import Product
from sat.devices.base import Device, RoundingDevice, Run
from sat.devices.context import current_label
from sat.devices.operand import RightOperand, Windows, product_between, product_of
from sat.errors import CycleBudgetError
from sat.offload import precision
from sat.offload.report import DeviceWork, OffloadReport, Work, size_text
from sat.offload.rounding import Lost, halves
from sat.offload.workspace import Workspace
from sat.sim.golden import stce

Array16 = NDArray[np.float16]


class Meter(Device):
    """The offload's device, as its handlers and SAT layers see it: budget and account."""

    def __init__(self, inner: Device, report: OffloadReport, max_cycles: int | None) -> None:
        super().__init__(inner.config)
        self.name, self.any_pattern = inner.name, inner.any_pattern
        self.inner, self.report, self.max_cycles = inner, report, max_cycles
        self.cycles = 0  # spent of the budget
        self.work: Work | None = None  # the operation that is being computed
        self.lost = Lost()  # by rounding the operands of a SAT layer's next product
        self._rounding: RoundingDevice | None = None
        if isinstance(inner, RoundingDevice) and inner.rounds:
            self._rounding = inner
        self.takes_windows = self._rounding is not None

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        return self.inner.predict(product, dataflow)

    def _matmul(
        self,
        a: Array16,
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        product = product_of(a, b, start)
        if self.max_cycles is not None:
            self._spend(product, dataflow)
        began = time.perf_counter()
        result, run = self.inner.compute(a, b, start, dataflow)
        self._book(product, run, time.perf_counter() - began)
        return result, run

    def multiply(
        self,
        a: Tensor | Windows,
        b: Tensor | Windows | RightOperand,
        start: Tensor | None,
        space: Workspace | None = None,
        outer: int = 1,
    ) -> Tensor:
        """Return ``start + a @ b`` for the operation at hand, operands rounded to float16.

        Parameters
        ----------
        a : (rows, depth) or (count, rows, depth) tensor
            Or Windows, as b, if this meter takes them.
        b : (…, depth, cols) tensor or RightOperand
        start : (…, rows, cols) or (cols,) float32 tensor, or None
        space : Workspace, optional
            Memory for the result, if it will be read before the next product.
        outer : int
            Columns are (outer, others), and the result's are (others, outer); 1 unless this meter
            takes windows, and without a start.

        Returns
        -------
        Tensor
            (…, rows, cols) float32.
        """
        assert self.work is not None, "products are computed for an operation"
        lost = self.work.lost
        if self._rounding is None:
            assert not isinstance(a, Windows) and not isinstance(b, Windows), "copied before"
            right = b if isinstance(b, RightOperand) else RightOperand.dense(halves(b, lost))
            first = None
            if start is not None:
                first = array_of(start.expand(*a.shape[:-1], right.cols))
            return tensor_of(self._matmul(halves(a, lost), right, first, "auto")[0])
        if self.max_cycles is not None:
            self._spend(_product(a, b, start), "auto")
        out = None
        if space is not None:
            cols = b.cols if isinstance(b, RightOperand) else b.shape[-1]
            out = space.tensor("product", (*a.shape[:-1], cols), torch.float32)
        began = time.perf_counter()
        result, product, run = self._rounding.multiply(a, b, start, lost.counts, out, outer)
        self._book(product, run, time.perf_counter() - began)
        return result

    def multiply_precisely(
        self, a: Tensor, b: Tensor, start: Tensor | None, wide: torch.dtype
    ) -> Tensor | None:
        """Return ``start + a @ b`` at float32's precision; None if this device has no short way.

        Parameters and returns are those of `sat.offload.precision.whole`.
        """
        device = self._rounding
        if device is None or self.max_cycles is not None:
            return None
        began = time.perf_counter()
        threads = device.threads_for(precision.PASSES * a.numel() * b.shape[-1])
        made = precision.whole(a, b, start, wide, stce.kernel(), threads)
        if made is None:
            return None
        result, sizes = made
        seconds = (time.perf_counter() - began) / max(1, len(sizes))
        for count, rows, depth, cols in sizes:
            shape = (count, rows, depth) if a.ndim == 3 else (rows, depth)
            product = product_between(shape, cols, 1, 1, None)
            self._book(product, device.computed(product, seconds), seconds)
        return result

    def _book(self, product: Product, run: Run, seconds: float) -> None:
        """Book a product, to the operation at hand or as a SAT layer's own."""
        work = self.work
        if work is None:
            size = size_text(product.count, product.rows, product.depth, product.cols)
            if not product.dense:
                size += f" {product.n}:{product.m}"
            work = self.report.work(current_label() or "product", size, None)
            work.calls += 1
            work.flops += 2 * run.macs
            work.seconds += seconds
            work.lost.add(self.lost)
            self.lost.clear()
        self.report.device_seconds += seconds
        # Parts by several devices are shares of a stack; those of one device make one product.
        shared = any(part.device for part in run.parts)
        for part in run.parts if shared else (run,):
            name = part.device or self.name
            share = product
            if shared:
                share = replace(product, count=part.macs * product.count // product.macs)
            done = work.devices.get(name)
            if done is None:
                done = work.devices[name] = DeviceWork()
            done.add(share, part)
            if self.report.traces:
                size = size_text(share.count, share.rows, share.depth, share.cols)
                self.report.event(work.op, size, name, part, seconds)

    def _spend(self, product: Product, dataflow: str) -> None:
        need = self.inner.predict(product, dataflow)
        assert self.max_cycles is not None
        if self.cycles + need > self.max_cycles:
            raise CycleBudgetError(
                f"a product of {product.rows} x {product.depth} x {product.cols} takes {need:,} "
                f"cycles, after {self.cycles:,} already: more than max_cycles="
                f"{self.max_cycles:,}; raise it, shrink the problem, or use device 'golden' "
                "without a budget"
            )
        self.cycles += need


def _product(
    a: Tensor | Windows, b: Tensor | Windows | RightOperand, start: Tensor | None
) -> Product:
    n, m, cols = 1, 1, 0
    if isinstance(b, RightOperand):
        n, m, cols = b.pattern.n, b.pattern.m, b.cols
    else:
        cols = b.shape[-1]
    row_step = None
    if start is not None:
        row_step = start.stride(-2) if start.ndim > 1 and start.shape[-2] > 1 else 0
    return product_between(a.shape, cols, n, m, row_step)


class Account:
    """Books the products that are computed inside as one call of an operation."""

    __slots__ = ("began", "flops", "meter", "outer", "work")

    def __init__(self, meter: Meter, work: Work, flops: int) -> None:
        self.meter, self.work, self.flops = meter, work, flops

    def __enter__(self) -> None:
        self.outer, self.meter.work = self.meter.work, self.work
        self.began = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        self.meter.work = self.outer
        if kind is None:
            self.work.seconds += time.perf_counter() - self.began
            self.work.calls += 1
            self.work.flops += self.flops
