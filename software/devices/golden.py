"""The golden device: the functional model that defines every other device's bits."""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from sat.arrays import empty_array
from sat.dataflow.compile.step import Sgd
from sat.dataflow.products import Product
from sat.devices.account import Prediction
from sat.devices.base import Device, Run, Tensors, exclusive, make_config
from sat.devices.operand import RightOperand, bytes_passing, product_of
from sat.devices.stages import check_tensors, stage_macs
from sat.rtl.config import SatConfig
from sat.sim.golden import layer as golden
from sat.sim.golden import stce
from sat.sim.golden.update import Rates, narrow
from sat.sim.golden.update import non_finite as count_non_finite
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

MACS_A_THREAD = 1 << 20
"""Multiply-accumulates that take longer than to start a thread, some tens of microseconds."""


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
        macs = product.macs
        threads = 1 if self.threads == 1 else min(self.threads, 1 + macs // MACS_A_THREAD)
        before = time.perf_counter()
        result = empty_array((*a.shape[:-1], product.cols))
        stce.fold(a, b.values, b.indices, start, product.n, product.m, threads, result)
        seconds = time.perf_counter() - before
        kept = b.resident and b in self._kept
        if b.resident:
            self._kept.add(b)
        return result, Run(
            macs=macs,
            predicted_cycles=self._prediction(product, dataflow),
            wall_seconds=seconds,
            bytes_host=bytes_passing(product) + (0 if kept else b.nbytes),
            bytes_kept=b.nbytes if kept else 0,
        )

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
