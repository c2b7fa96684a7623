"""The simulated accelerator: every product runs on the Verilated RTL, cycle for cycle."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sat.dataflow.compile import CompiledProduct
from sat.dataflow.cycles import predict
from sat.dataflow.host import read_result, write_product
from sat.dataflow.layers import Layer
from sat.dataflow.products import Product, StartShape
from sat.dataflow.search import best_mapping
from sat.dataflow.step import CompiledStep, Sgd, compile_step
from sat.devices.base import Device, Run, Tensors, make_config
from sat.errors import DeviceError
from sat.layers import RESULTS, stage_macs, write_step
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.memory import MemoryTiming
from sat.sparsity.pattern import Pattern


class RtlDevice(Device):
    """Runs products on the Verilated RTL.

    A product is mapped and compiled once for its sizes, pattern and dataflow; the program, its
    matrices and nothing else cross into the simulated memory.

    Parameters
    ----------
    array : str, optional
        ``"RxC"``; the configuration's own (8x8) if not given.
    config : SatConfig, optional
    memory : MemoryTiming, optional
    waves : str, optional
        File for a waveform (FST) of everything that runs.
    **options
        Further fields of `SatConfig`.
    """

    name = "rtl"

    def __init__(
        self,
        array: str | None = None,
        *,
        config: SatConfig | None = None,
        memory: MemoryTiming | None = None,
        waves: str | None = None,
        **options: Any,
    ):
        super().__init__(make_config(config, array, **options))
        self.memory_timing = memory or MemoryTiming()
        self._waves = waves
        self._device: DeviceRtl | None = None
        self._compiled: dict[tuple[Product, str], tuple[CompiledProduct, int]] = {}
        self._steps: dict[tuple[Layer, tuple[str, ...]], tuple[CompiledStep, int]] = {}

    def _simulator(self, need: int) -> DeviceRtl:
        if self._device is None or len(self._device.memory) < need:
            if self._device is not None:
                self._device.close()
            size = max(1 << 24, 1 << (need - 1).bit_length())
            self._device = DeviceRtl(
                self.config, self.memory_timing, memory_bytes=size, waves=self._waves
            )
        return self._device

    def compile(self, product: Product, dataflow: str = "auto") -> tuple[CompiledProduct, int]:
        """Return the program for a product, and the cycles it takes."""
        key = (product, dataflow)
        if key not in self._compiled:
            self._compiled[key] = best_mapping(product, self.config, self.memory_timing, dataflow)
        return self._compiled[key]

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return the cycles that the program for a product takes."""
        return self.compile(product, dataflow)[1]

    def _matmul(
        self,
        a: np.ndarray,
        values: np.ndarray,
        indices: np.ndarray | None,
        pattern: Pattern,
        start: np.ndarray | None,
        dataflow: str,
    ) -> tuple[np.ndarray, Run]:
        shape = StartShape.ZERO
        if start is not None:
            # A bias is one row of memory; numpy's broadcast of it has no step from row to row.
            bias = start.shape[0] == 1 or start.strides[0] == 0
            shape = StartShape.ROW if bias else StartShape.MATRIX
            start = start[0] if bias else start
        product = Product(a.shape[0], values.shape[1], a.shape[1], pattern.n, pattern.m, shape)
        compiled, predicted = self.compile(product, dataflow)
        device = self._simulator(compiled.memory.end)
        write_product(device.memory, compiled.memory, compiled.program, a, values, indices, start)
        began = time.perf_counter()
        outcome = device.run(compiled.memory.program.address, len(compiled.program))
        wall = time.perf_counter() - began
        if outcome.status is not Status.DONE:
            raise DeviceError(
                f"the program for {product} stopped with {outcome.status.name} at instruction "
                f"{outcome.error_pc}"
            )
        beat = self.config.axi.beat_bytes
        return read_result(device.memory, compiled.memory), Run(
            cycles=outcome.cycles,
            predicted_cycles=predicted,
            macs=product.macs,
            utilisation=product.macs / (outcome.cycles * self.config.rows * self.config.cols),
            bytes_read=outcome.beats_read * beat,
            bytes_written=outcome.beats_written * beat,
            wall_seconds=wall,
        )

    def run_stages(
        self, names: tuple[str, ...], layer: Layer, tensors: Tensors, rates: Sgd | None
    ) -> tuple[Tensors, Run]:
        """Run stages of a layer as one program.

        Parameters and returns are those of `sat.devices.staged.StagedDevice.stages`.

        Raises
        ------
        DeviceError
            The program did not end well.
        """
        key = (layer, names)
        # The rates of an update are in its program, and change from step to step.
        if key not in self._steps or "update" in names:
            step = compile_step(layer, self.config, self.memory_timing, names, rates)
            cycles = predict(step.program, self.config, self.memory_timing, step.address).cycles
            self._steps[key] = step, cycles
        step, predicted = self._steps[key]
        device = self._simulator(step.end)
        on_device = write_step(device.memory, step, tensors)
        began = time.perf_counter()
        outcome = device.run(step.address, len(step.program))
        wall = time.perf_counter() - began
        if outcome.status is not Status.DONE:
            raise DeviceError(
                f"the program for {', '.join(names)} of {layer} stopped with "
                f"{outcome.status.name} at instruction {outcome.error_pc}"
            )
        beat, macs = self.config.axi.beat_bytes, stage_macs(layer, names)
        results = {name: on_device.read(name) for stage in names for name in RESULTS[stage]}
        return results, Run(
            cycles=outcome.cycles,
            predicted_cycles=predicted,
            macs=macs,
            utilisation=macs / (outcome.cycles * self.config.rows * self.config.cols),
            bytes_read=outcome.beats_read * beat,
            bytes_written=outcome.beats_written * beat,
            wall_seconds=wall,
        )

    def close(self) -> None:
        """Free the simulator."""
        if self._device is not None:
            self._device.close()
            self._device = None
        super().close()
