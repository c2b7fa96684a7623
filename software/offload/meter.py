"""The device of an offload: what every product passes, to be paid from the budget and booked."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.products import Product
from sat.devices.base import Device, Run
from sat.devices.context import current_label
from sat.devices.operand import RightOperand, product_of
from sat.errors import CycleBudgetError
from sat.offload.report import DeviceWork, OffloadReport, Work, size_text
from sat.offload.rounding import Lost

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
        seconds = time.perf_counter() - began
        work = self.work
        if work is None:
            # A SAT layer's own product.
            size = size_text(product.count, product.rows, product.depth, product.cols)
            size += "" if b.pattern.dense else f" {b.pattern}"
            work = self.report.work(current_label() or "product", size, None)
            work.calls += 1
            work.flops += 2 * run.macs
            work.seconds += seconds
            work.lost.add(self.lost)
            self.lost.clear()
        self.report.device_seconds += seconds
        for part in run.parts or (run,):
            name = part.device or self.name
            share = product
            if run.parts:
                share = replace(product, count=part.macs * product.count // product.macs)
            done = work.devices.get(name)
            if done is None:
                done = work.devices[name] = DeviceWork()
            done.add(share, part)
            if self.report.traces:
                size = size_text(share.count, share.rows, share.depth, share.cols)
                self.report.event(work.op, size, name, part, seconds)
        return result, run

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
