"""The simulated accelerator: every product runs on the RTL, cycle for cycle."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sat.dataflow.compile import CompiledProduct
from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.compile.step import CompiledStep, Sgd, compile_step, compile_updates
from sat.dataflow.cycles import predict
from sat.dataflow.host import read_result, write_left, write_right
from sat.dataflow.layers import boundary_bytes
from sat.dataflow.limits import check_addresses
from sat.dataflow.mapping import round_up
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program
from sat.dataflow.recent import PROGRAM_INSTRUCTIONS, Recent
from sat.dataflow.search import best_mapping
from sat.devices.base import Device, Run, Tensors, exclusive, make_config
from sat.devices.operand import RightOperand, bytes_passing, product_of
from sat.devices.residents import Residents
from sat.devices.stages import RESULTS, check_tensors, stage_macs, write_step
from sat.errors import DeviceError
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl, Outcome, WaveFile, check_memory_bytes
from sat.sim.engines import choose
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class _Weights:
    """What is held of a layer's weights, as the host knows it: FP32 weights and momenta.

    Both pruned copies are those of ``w``: the host writes them with weights that it sends, the
    device with those that it updates.
    """

    layer: Layer
    tensors: Tensors

    def fits(self, layer: Layer) -> bool:
        """Whether weights of the layer lie as these do."""
        names = ("in_channels", "out_channels", "kernel", "groups", "ff", "bp")
        return all(getattr(self.layer, n) == getattr(layer, n) for n in names)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def _seen(layer: Layer, stage: str) -> tuple[Layer, str]:
    """Return a layer as one of its stages sees it."""
    ff, bp = stage == "ff", stage == "bp"
    bias, relu, masked = ff and layer.bias, ff and layer.relu, bp and layer.masked
    return replace(layer, bias=bias, relu=relu, masked=masked), stage


class RtlDevice(Device):
    """Runs products on the simulated RTL.

    A product is mapped and compiled once for its sizes, pattern and dataflow. Resident operands
    (`sat.resident`) and layers' weights stay in the simulated memory; all else is sent with each
    program.

    Parameters
    ----------
    array : str, optional
        ``"RxC"``; the configuration's own (8x8) if not given.
    config : SatConfig, optional
    memory : MemoryTiming, optional
    memory_bytes : int, optional
        Size of the simulated memory at first: 64 MiB, or all that addresses reach, if not given.
        It grows with what does not fit, as far as addresses reach.
    waves : str, optional
        File for a waveform (FST) of everything that runs; complete when the device is closed. Not
        with ``engine="simd"``.
    engine : str
        How it is simulated (`sat.sim.engines`): ``"verilator"``, ``"simd"``, or ``"auto"``, the
        faster of the two. Bits and cycles are the same.
    **options
        Further fields of `SatConfig`.

    Attributes
    ----------
    planned : set of (Layer, str)
        Stages that ran as a schedule says (`use_plans`).

    Raises
    ------
    TypeError, ValueError
        If an option breaks its rule.
    DeviceError
        If the waveform's file cannot be written.
    """

    name = "rtl"

    def __init__(
        self,
        array: str | None = None,
        *,
        config: SatConfig | None = None,
        memory: MemoryTiming | None = None,
        memory_bytes: int | None = None,
        waves: str | None = None,
        engine: str = "auto",
        **options: Any,
    ):
        super().__init__(make_config(config, array, **options))
        self.memory_timing = memory or MemoryTiming()
        if memory_bytes is None:
            memory_bytes = min(1 << 26, 1 << self.config.axi.address_bits)
        self._memory_bytes = check_memory_bytes(memory_bytes, self.config)
        self.engine = choose(engine, self.config, waves is not None)
        self._waves = None if waves is None else WaveFile(waves)
        self._device: DeviceRtl | None = None
        self._residents = Residents(boundary_bytes(self.config))
        self.use_plans({})

    def use_plans(self, plans: Mapping[tuple[Layer, str], StagePlan]) -> None:
        """Map stages of layers as a schedule says; those that are not named, by the search.

        What a stage does not see of a layer, such as FF's bias in WU, does not count.

        Parameters
        ----------
        plans : mapping of (Layer, str) to StagePlan
            Replaces those given before. That of an update says nothing.
        """
        self._plans = {_seen(*key): plan for key, plan in plans.items() if plan.mappings}
        self.planned: set[tuple[Layer, str]] = set()
        self._steps: Recent[tuple[CompiledStep, int]] = Recent(
            PROGRAM_INSTRUCTIONS, lambda made: len(made[0].program)
        )

    def _simulator(self, need: int, purpose: str) -> DeviceRtl:
        """Return the simulator, with ``need`` bytes of memory at least."""
        check_addresses(need, self.config, purpose)
        size = self._memory_bytes if self._device is None else len(self._device.memory)
        if size < need:
            # Twice what is needed, as a power of two, if addresses go so far.
            size = min(1 << (2 * need - 1).bit_length(), 1 << self.config.axi.address_bits)
        if self._device is None:
            self._device = DeviceRtl(
                self.config,
                self.memory_timing,
                memory_bytes=size,
                waves=self._waves,
                engine=self.engine,
            )
            # Building it takes minutes, in which another thread may have closed this.
            self._require_open()
        elif len(self._device.memory) < size:
            self._device.grow(size)
        return self._device

    def _room_beside(self, scratch: int, size: int) -> int | None:
        """Return the memory that a program and a block to keep need; None if it is too much."""
        need = round_up(scratch, boundary_bytes(self.config)) + size
        return need if need <= 1 << self.config.axi.address_bits else None

    def compile(self, product: Product, dataflow: str = "auto") -> tuple[CompiledProduct, int]:
        """Return the program for a product, and the cycles it takes."""
        return best_mapping(product, self.config, self.memory_timing, dataflow)

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return the cycles that the program for a product takes."""
        return self.compile(product, dataflow)[1]

    def _cycles(self, program: Program, address: int) -> int:
        """Return the cycles that a program takes."""
        return predict(program, self.config, self.memory_timing, address).cycles

    def _matmul(
        self,
        a: np.ndarray,
        b: RightOperand,
        start: np.ndarray | None,
        dataflow: str,
    ) -> tuple[np.ndarray, Run]:
        product = product_of(a, b, start)
        if start is not None and product.start is StartShape.ROW:
            start = start[..., 0, :]
        compiled, predicted = self.compile(product, dataflow)
        where = compiled.memory
        # A resident operand lies apart; what is below it belongs to this product alone.
        apart = self._room_beside(where.held.start, len(where.held)) if b.resident else None
        device = self._simulator(apart or where.end, str(product))
        place = None
        if apart:
            place = self._residents.place(b, len(where.held), where.held.start, len(device.memory))
            compiled = compiled.with_b_at(place.block.start)
            where = compiled.memory
        else:
            self._residents.evict_below(where.end)
        kept = place is not None and place.contents is not None
        if not kept:
            write_right(device.memory, where, b.values, b.indices)
        write_left(device.memory, where, compiled.program, a, start)
        outcome, seconds = self._run(device, where.program.address, compiled.program, str(product))
        if place is not None:
            place.contents = "right operand"
        result = read_result(device.memory, where).reshape(*a.shape[:-1], product.cols)
        return result, self._account(
            outcome,
            macs=product.macs,
            predicted_cycles=predicted,
            wall_seconds=seconds,
            bytes_host=bytes_passing(product) + (0 if kept else b.nbytes),
            bytes_kept=b.nbytes if kept else 0,
        )

    def _run(
        self, device: DeviceRtl, address: int, program: Program, purpose: str
    ) -> tuple[Outcome, float]:
        """Run a program; return how it ended and the host's seconds, or raise if it failed."""
        began = time.perf_counter()
        outcome = device.run(address, len(program))
        seconds = time.perf_counter() - began
        self._require_done(outcome, purpose)
        return outcome, seconds

    def _require_done(self, outcome: Outcome, purpose: str) -> None:
        if outcome.status is not Status.DONE:
            raise DeviceError(
                f"the program for {purpose} stopped with {outcome.status.name} at instruction "
                f"{outcome.error_pc}"
            )

    def _account(self, outcome: Outcome, *, macs: int, **known: Any) -> Run:
        """Return a run with what the device itself counted."""
        beat = self.config.axi.beat_bytes
        return Run(
            cycles=outcome.cycles,
            macs=macs,
            utilisation=macs / (outcome.cycles * self.config.rows * self.config.cols),
            bytes_read=outcome.beats_read * beat,
            bytes_written=outcome.beats_written * beat,
            **known,
        )

    def _there(self, owner: object, layer: Layer) -> Tensors:
        """Return what is held of an owner's weights, for this layer."""
        place = None if owner is None else self._residents.find(owner)
        held: _Weights | None = None if place is None else place.contents
        return held.tensors if held is not None and held.fits(layer) else {}

    @exclusive
    def run_stages(
        self,
        names: tuple[str, ...],
        layer: Layer,
        tensors: Tensors,
        rates: Sgd | None,
        owner: object = None,
    ) -> tuple[Tensors, Run]:
        """Run stages of a layer as one program.

        Parameters and returns are those of `sat.devices.staged.StagedDevice.stages`.

        Raises
        ------
        DeviceError
            The program did not end well.
        """
        check_tensors(names, layer, tensors, self._there(owner, layer))

        def make() -> tuple[CompiledStep, int]:
            seen = {name: _seen(layer, name) for name in names}
            plans = {n: self._plans[key] for n, key in seen.items() if key in self._plans}
            self.planned |= {seen[name] for name in plans}
            step = compile_step(layer, self.config, self.memory_timing, names, rates, plans=plans)
            return step, self._cycles(step.program, step.address)

        # The rates of an update are in its program, and change from step to step.
        step, predicted = self._steps.get((layer, names), make, anew="update" in names)
        purpose = f"{', '.join(names)} of {layer}"
        size = len(step.memory.held)
        apart = None if owner is None else self._room_beside(step.end, size)
        device = self._simulator(apart or step.end, purpose)
        place = None
        there: Tensors = {}
        if not apart:
            self._residents.evict_below(step.end)
        else:
            place = self._residents.place(owner, size, step.end, len(device.memory))
            step = step.with_weights_at(place.block.start)
            there = self._there(owner, layer)
            # Until the program has ended well, nothing is known to be there.
            place.contents = None
            # Growing, or making room, may have taken what was there before.
            check_tensors(names, layer, tensors, there)
        kept = [
            name for name in there if name in tensors and _same_bits(there[name], tensors[name])
        ]
        sent = {name: values for name, values in tensors.items() if name not in kept}
        on_device = write_step(device.memory, step, sent, held=bool(there))
        outcome, seconds = self._run(device, step.address, step.program, purpose)
        results = {name: on_device.read(name) for stage in names for name in RESULTS[stage]}
        if place is not None:
            known = {**sent, **results}
            fresh = {name: known[name].copy() for name in ("w", "v") if name in known}
            place.contents = _Weights(layer, there | fresh)
        fetched = sum(values.nbytes for values in results.values())
        return results, self._account(
            outcome,
            macs=stage_macs(layer, names),
            predicted_cycles=predicted,
            wall_seconds=seconds,
            bytes_host=sum(values.nbytes for values in sent.values()) + fetched,
            bytes_kept=sum(tensors[name].nbytes for name in kept),
        )

    @exclusive
    def run_updates(
        self, layers: Sequence[Layer], tensors: Sequence[Tensors], rates: Sgd | None = None
    ) -> tuple[list[Tensors], Run]:
        """Run the updates of several layers as one program.

        Parameters
        ----------
        layers : sequence of Layer
        tensors : sequence of dict
            Of each layer w, v, g (float32).
        rates : Sgd, optional

        Returns
        -------
        results : list of dict
            Of each layer its new w and v.
        run : Run

        Raises
        ------
        DeviceError
            The program did not end well.
        """
        for layer, given in zip(layers, tensors, strict=True):
            check_tensors(("update",), layer, given)
        steps = compile_updates(layers, self.config, self.memory_timing, rates)
        program, address, end = steps[0].program, steps[0].address, steps[0].end
        predicted = predict(program, self.config, self.memory_timing, address).cycles
        purpose = f"the updates of {len(layers)} layers"
        device = self._simulator(end, purpose)
        self._residents.evict_below(end)
        written = [
            write_step(device.memory, step, given)
            for step, given in zip(steps, tensors, strict=True)
        ]
        outcome, seconds = self._run(device, address, program, purpose)
        results = [{name: of.read(name) for name in RESULTS["update"]} for of in written]
        passing = [values.nbytes for each in (*tensors, *results) for values in each.values()]
        return results, self._account(
            outcome,
            macs=0,
            predicted_cycles=predicted,
            wall_seconds=seconds,
            bytes_host=sum(passing),
            bytes_kept=0,
        )

    def close(self) -> None:
        """Free the simulator; a product that another thread waits for ends with an error there.

        Raises
        ------
        DeviceError
            If the waveform could not be written to its end.
        """
        super().close()
        self._residents.clear()
        if self._device is not None:
            self._device.close()
        elif self._waves is not None:
            self._waves.close()
