"""A device beside the golden model: every result compared, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.products import Product
from sat.devices.base import Device, Run
from sat.devices.golden import GoldenDevice
from sat.devices.operand import RightOperand
from sat.sim.golden import sore


@dataclass(frozen=True)
class Mismatch:
    """A result that differs.

    Parameters
    ----------
    product : int
        Number of the product, from 0, each of a stack counted; a dense twin has the number of its
        product.
    row, col : int
        Where in the result.
    got, expected : int
        Bits of the device's and of the reference's FP32 value.
    """

    product: int
    row: int
    col: int
    got: int
    expected: int

    def __str__(self) -> str:
        return (
            f"product {self.product}, element [{self.row}, {self.col}]: got 0x{self.got:08x} "
            f"({_value(self.got)}), expected 0x{self.expected:08x} ({_value(self.expected)})"
        )


def _value(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


class ComparingDevice(Device):
    """Compute each product on a device and on a reference, and compare all bits, NaN as NaN.

    Results are the device's. Neither device is closed with this one.

    Parameters
    ----------
    device : Device
        Under test.
    reference : Device, optional
        What is right; a golden device if not given.
    dense_twins : bool
        Whether to compute and compare each N:M product as a dense one, too, to count its cycles.
    on_product : callable, optional
        Called with no arguments after each product of the device, dense twins included.

    Attributes
    ----------
    compared, mismatches : int
        FP32 results compared, and how many differed.
    first : Mismatch or None
    runs : list of tuple
        (run, dense run) of each product or stack: the same run twice if it is dense itself, None
        for the dense run if none was made.
    """

    def __init__(
        self,
        device: Device,
        reference: Device | None = None,
        *,
        dense_twins: bool = False,
        on_product: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(device.config)
        self.name = device.name
        self.any_pattern = device.any_pattern
        self.device = device
        self.reference = reference if reference is not None else GoldenDevice(device.config)
        self.dense_twins = dense_twins
        self.on_product = on_product
        self.compared = 0
        self.mismatches = 0
        self.first: Mismatch | None = None
        self.runs: list[tuple[Run, Run | None]] = []
        self._products = 0

    @property
    def mispredicted(self) -> int:
        """Products whose counted cycles are not those that the cycle model predicts."""
        return sum(run.mispredicted for run in self._all_runs())

    @property
    def bounded(self) -> tuple[int, int]:
        """Cycles of products whose predicted cycles are a bound: counted, and the least."""
        runs = [run for run in self._all_runs() if run.bound]
        least = sum(run.predicted_cycles or 0 for run in runs)
        return sum(run.cycles or 0 for run in runs), least

    def _all_runs(self) -> list[Run]:
        return list({id(run): run for pair in self.runs for run in pair if run}.values())

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return what the device predicts."""
        return self.device.predict(product, dataflow)

    def _matmul(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        result, run = self._both(a, b, start, dataflow)
        twin: Run | None = run if b.indices is None else None
        if b.indices is not None and self.dense_twins:
            dense = sore.expand(b.values, b.indices, b.pattern.n, b.pattern.m, b.depth, -2)
            twin = self._both(a, RightOperand.dense(dense), start, dataflow)[1]
        self.runs.append((run, twin))
        self._products += b.count or 1
        return result, run

    def _both(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        result, run = self.device.compute(a, b, start, dataflow)
        expected, _ = self.reference.compute(a, b, start, dataflow)
        differ = (result.view(np.uint32) != expected.view(np.uint32)) & ~(
            np.isnan(result) & np.isnan(expected)
        )
        self.compared += result.size
        self.mismatches += int(np.count_nonzero(differ))
        if self.first is None and differ.any():
            *number, row, col = where = tuple(int(i) for i in np.argwhere(differ)[0])
            self.first = Mismatch(
                self._products + sum(number),
                row,
                col,
                int(result.view(np.uint32)[where]),
                int(expected.view(np.uint32)[where]),
            )
        if self.on_product is not None:
            self.on_product()
        return result, run
