"""Whole stages of layers as device programs: convolution, epilogue and weight update included."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.compile.step import Sgd, check_layer
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.products import Product
from sat.devices.base import Device, Run, StageRunner, Tensors, exclusive
from sat.devices.golden import GoldenDevice
from sat.devices.operand import RightOperand
from sat.devices.stages import count_different
from sat.rtl.config import SatConfig
from sat.sim.layer import Layer


@dataclass(frozen=True)
class StageRun:
    """One program: stages of a layer on a device.

    Attributes
    ----------
    stages : tuple of str
        Of `sat.dataflow.compile.step.STAGES`.
    layer : Layer
    run : Run
    twin_cycles : int or None
        Cycles of the same stages without pruning, if they were asked for.
    """

    stages: tuple[str, ...]
    layer: Layer
    run: Run
    twin_cycles: int | None


def stages_name(names: Sequence[str]) -> str:
    """Return what reports call a program's stages: "FF", "BP+WU", "update"."""
    return "+".join(name if name == "update" else name.upper() for name in names)


@functools.lru_cache(maxsize=4096)
def _runs(layer: Layer, config: SatConfig) -> bool:
    try:
        check_layer(layer, config)
    except DoesNotFit:
        return False
    return True


class StagedDevice(Device):
    """A device that is given layers, not products: FF, BP with WU, and update as one program each.

    On the RTL the load engine reads the activations (no im2col on the host), BP and WU run in one
    program, WUVE updates the FP32 weights and SORE prunes them. On a golden device the golden
    layer computes the same bits. Outputs and input gradients are FP16, as the device stores them.
    Single products go to the wrapped device. It is not closed with this one.

    Parameters
    ----------
    device : Device
        One that runs stages (`StageRunner`): golden or rtl.
    compare : bool
        Whether to compare every tensor with the golden layer, bit for bit.
    dense_twins : bool
        Whether to count the cycles of the same stages without pruning, too (on the RTL).
    on_program : callable, optional
        Called with no arguments after each program, twins included.

    Attributes
    ----------
    runs : list of StageRun
    compared, mismatches : int
        Numbers compared, and how many differed.
    first : str or None
        Where the first difference was.
    """

    def __init__(
        self,
        device: Device,
        *,
        compare: bool = False,
        dense_twins: bool = False,
        on_program: Callable[[], object] | None = None,
    ) -> None:
        if not isinstance(device, StageRunner):
            raise TypeError(
                f"device {device.name}: only golden and rtl devices run whole stages; "
                "give one of these"
            )
        super().__init__(device.config)
        self.name, self.any_pattern = device.name, device.any_pattern
        self.device = device
        self.compare, self.dense_twins, self.on_program = compare, dense_twins, on_program
        self.runs: list[StageRun] = []
        self.compared = self.mismatches = 0
        self.first: str | None = None
        self._golden = GoldenDevice(device.config)

    @property
    def mispredicted(self) -> int:
        """Programs whose counted cycles are not those that the cycle model predicts."""
        return sum(entry.run.mispredicted for entry in self.runs)

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
        return self.device.compute(a, b, start, dataflow)

    def runs_layer(self, layer: Layer) -> bool:
        """Return whether the device can run this layer's stages (else its products are sent)."""
        return _runs(layer, self.config)

    @exclusive
    def stages(
        self,
        names: Sequence[str],
        layer: Layer,
        tensors: Tensors,
        rates: Sgd | None = None,
        owner: object = None,
    ) -> tuple[Tensors, Run]:
        """Run stages as one program.

        Parameters
        ----------
        names : sequence of str
        layer : Layer
        tensors : dict
            What the stages read: x, dy (float16), w, v, g, bias (float32).
        rates : Sgd, optional
            For the update.
        owner : object, optional
            Whose weights these are, such as a module. Weights, momenta and both pruned copies stay
            on the device while it lives: what the host has unchanged is not sent again, and what
            the device updated and pruned itself is there for the next program.

        Returns
        -------
        results : dict
            y, dx (float16), g, w, v (float32), of the stages that ran.
        run : Run

        Raises
        ------
        DeviceError
            The program did not end well.
        """
        key = tuple(names)
        results, run = self.device.run_stages(key, layer, tensors, rates, owner)
        if self.compare:
            self._compare(key, layer, tensors, rates, results)
        twin = run.cycles
        dense = replace(layer, ff=(1, 1), bp=(1, 1))
        if self.dense_twins and layer != dense:
            self._called()
            unpruned, twin_run = self.device.run_stages(key, dense, tensors, rates)
            twin = twin_run.cycles
            if self.compare:
                self._compare(key, dense, tensors, rates, unpruned)
        self.runs.append(StageRun(key, layer, run, twin))
        self.last_run = run
        self._called()
        return results, run

    def _compare(
        self,
        names: tuple[str, ...],
        layer: Layer,
        tensors: Tensors,
        rates: Sgd | None,
        results: Tensors,
    ) -> None:
        for name, want in self._golden.run_stages(names, layer, tensors, rates)[0].items():
            different = count_different(results[name], want)
            self.compared += want.size
            self.mismatches += different
            if different and self.first is None:
                self.first = f"{name} of {layer}: {different} of {want.size} differ"

    def _called(self) -> None:
        if self.on_program is not None:
            self.on_program()
