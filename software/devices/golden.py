"""The golden device: the functional model that defines every other device's bits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sat.devices.base import Device, Run, make_config
from sat.rtl.config import SatConfig
from sat.sim.golden import stce
from sat.sparsity.pattern import Pattern


class GoldenDevice(Device):
    """Compute products on the host; cycles are predicted for a described array, never counted.

    Every pattern runs, whatever ``max_m``: the result does not depend on the array.

    Parameters
    ----------
    config : SatConfig, optional
        Array that predictions are for.
    threads : int
        Threads of the host that a product may use; the result does not depend on it.
    **options
        ``array="RxC"`` and fields of `SatConfig`.
    """

    any_pattern = True

    def __init__(
        self, config: SatConfig | None = None, *, threads: int = 1, **options: Any
    ) -> None:
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ValueError(f"threads={threads!r}: must be an int of at least 1; leave it out")
        super().__init__("golden", make_config(config, **options))
        self.threads = threads

    def _matmul(
        self,
        a: NDArray[np.float16],
        values: NDArray[np.float16],
        indices: NDArray[np.uint8] | None,
        pattern: Pattern,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        (rows, depth), (kept, cols) = a.shape, values.shape
        b: NDArray[np.float16] | stce.NMOperand = values
        if indices is not None:
            b = stce.NMOperand(values, indices, (pattern.n, pattern.m), depth)
        if start is not None and start.strides[0] == 0:
            start = start[0]
        before = time.perf_counter()
        result = stce.matmul(a, b, start, self.threads)
        seconds = time.perf_counter() - before
        return result, Run(
            macs=rows * cols * kept,
            array=(self.config.rows, self.config.cols),
            dataflow=dataflow,
            wall_seconds=seconds,
        )
