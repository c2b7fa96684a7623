"""Training steps of single layers on the simulated RTL, compared with the golden model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sat.dataflow.compile.step import STAGES, CompiledStep, Sgd, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.host import LayerTensors
from sat.errors import DeviceError
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden import layer as golden
from sat.sim.golden.update import Rates
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

RESULTS = {"ff": ("y",), "bp": ("dx",), "wu": ("g",), "update": ("w", "v")}
"""Tensors that each stage leaves in memory."""


READS = {"ff": ("x", "w"), "bp": ("dy", "w"), "wu": ("x", "dy"), "update": ("w", "v", "g")}
"""Tensors that each stage reads, besides the bias and the mask of layers that have one."""


def check_tensors(
    names: Sequence[str], layer: Layer, tensors: Mapping[str, np.ndarray], held: Iterable[str] = ()
) -> None:
    """Check that tensors are what stages read: all that no earlier one makes, of the right shape.

    Parameters
    ----------
    names : sequence of str
        Stages, of `sat.dataflow.compile.step.STAGES`, in their order.
    held : iterable of str
        Tensors that the device has already.

    Raises
    ------
    ValueError
        A stage is unknown, a tensor is missing, unknown, or has another shape.
    TypeError
        A tensor is no array of its dtype.
    """
    pixels, outs = (layer.batch, layer.lines, layer.pixels), (layer.batch, *layer.out_size)
    weights = (layer.out_channels, *layer.kernel, layer.in_per_group)
    known: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "x": ((*pixels, layer.in_channels), np.float16),
        "dy": ((*outs, layer.out_channels), np.float16),
        "w": (weights, np.float32),
        "v": (weights, np.float32),
        "g": (weights, np.float32),
        "bias": ((layer.out_channels,), np.float32),
        "in_mask": ((*pixels, layer.in_channels), np.bool_),
    }
    for name, values in tensors.items():
        if name not in known:
            raise ValueError(f"tensor {name!r}: a layer's stages read {', '.join(known)}")
        shape, dtype = known[name]
        found = getattr(values, "dtype", type(values).__name__)
        if not isinstance(values, np.ndarray) or found != dtype:
            raise TypeError(f"{name} has dtype {found}: must be a numpy array of {np.dtype(dtype)}")
        if values.shape != shape:
            raise ValueError(f"{name} has shape {values.shape}: must be {shape} for {layer}")
    there = {*tensors, *held}
    for stage in names:
        if stage not in READS:
            raise ValueError(f"stage={stage!r}: must be one of {', '.join(READS)}")
        extra = {"ff": ("bias",) if layer.bias else (), "bp": ("in_mask",) if layer.masked else ()}
        for name in (*READS[stage], *extra.get(stage, ())):
            if name not in there:
                shape, dtype = known[name]
                raise ValueError(
                    f"tensor {name!r} is missing: {stage} of this layer reads it; give it, "
                    f"{np.dtype(dtype)} of shape {shape}"
                )
        there.update(RESULTS[stage])


@dataclass(frozen=True)
class LayerRun:
    """What a layer's stages did on the RTL, and how that compares.

    Attributes
    ----------
    stages : tuple of str
    cycles, predicted_cycles : int
        Counted by the device; by the cycle model.
    macs : int
        Multiply-accumulates of the stages that multiply, pruned weights left out.
    dense_macs : int
        The same products without pruning, taps on the padding included.
    utilisation : float
        ``macs`` over what the array could have done in ``cycles``, 0 to 1.
    compared, mismatches : int
        Numbers compared with the golden step; those whose bits differ.
    differs : tuple of str
        Tensors that differ.
    non_finite, skipped : int
        Gradients that are no finite number; UPDATEs that were skipped for them.
    instructions : int
    bytes_read, bytes_written : int
    wall_seconds : float
        Of the simulation.
    """

    stages: tuple[str, ...]
    cycles: int
    predicted_cycles: int
    macs: int
    dense_macs: int
    utilisation: float
    compared: int
    mismatches: int
    differs: tuple[str, ...]
    non_finite: int
    skipped: int
    instructions: int
    bytes_read: int
    bytes_written: int
    wall_seconds: float


def random_tensors(layer: Layer, seed: int) -> dict[str, np.ndarray]:
    """Return normal deviates for all that a step reads, of the sizes that training has."""
    rng = np.random.default_rng(seed)
    weights = (layer.out_channels, *layer.kernel, layer.in_per_group)
    fan_in = layer.taps * layer.in_per_group
    x = rng.standard_normal((layer.batch, layer.lines, layer.pixels, layer.in_channels))
    dy = rng.standard_normal((layer.batch, *layer.out_size, layer.out_channels))
    return {
        "x": x.astype(np.float16),
        "dy": (dy / 64).astype(np.float16),
        "w": (rng.standard_normal(weights) * (2 / fan_in) ** 0.5).astype(np.float32),
        "v": (rng.standard_normal(weights) / 64).astype(np.float32),
        "bias": rng.standard_normal(layer.out_channels).astype(np.float32),
        "in_mask": rng.random(x.shape) < 0.5,
    }


def stage_macs(layer: Layer, stages: Sequence[str]) -> int:
    """Return the multiply-accumulates of stages, without what their patterns prune."""
    made = 0
    for stage in stages:
        n, m = layer.pattern(stage)
        made += 0 if stage == "update" else layer.dense_macs * n // m
    return made


def write_step(
    memory: np.ndarray, step: CompiledStep, tensors: Mapping[str, np.ndarray], *, held: bool = False
) -> LayerTensors:
    """Put a step's program and tensors into device memory; prune weights that are new there.

    Parameters
    ----------
    memory : flat uint8
    step : CompiledStep
    tensors : mapping
        What the program reads, by name.
    held : bool
        Whether weights, momenta and both pruned copies are in the memory already, but for those
        among ``tensors``.
    """
    device = LayerTensors(memory, step.memory)
    device.clear()
    if not held:
        device.clear_held()
    for name, values in tensors.items():
        if name == "in_mask":
            if step.layer.masked:
                device.write_mask(name, values)
        elif name != "bias" or step.layer.bias:
            device.write(name, values)
    if "w" in tensors:
        device.prune()
    raw = np.frombuffer(step.program.encode(), np.uint8)
    memory[step.address : step.address + len(raw)] = raw
    return device


def count_different(got: np.ndarray, want: np.ndarray) -> int:
    """Return how many numbers differ in a bit; any NaN is like any other."""
    same = (got == want) & (np.signbit(got) == np.signbit(want))
    return int(np.count_nonzero(~(same | (np.isnan(got) & np.isnan(want)))))


def simulate_layer(
    layer: Layer,
    config: SatConfig,
    memory: MemoryTiming | None = None,
    stages: Sequence[str] = STAGES,
    *,
    sgd: Sgd | None = None,
    seed: int = 0,
    waves: str | None = None,
    engine: str = "auto",
) -> LayerRun:
    """Run stages of a layer's training step as one program on the simulated RTL.

    Random tensors; every tensor that a stage leaves in memory is compared with the golden step.

    Raises
    ------
    ValueError
        The layer does not fit the device.
    DeviceError
        The program did not end well.
    """
    timing = memory or MemoryTiming()
    rates = sgd or Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    step = compile_step(layer, config, timing, stages, rates)
    tensors = random_tensors(layer, seed)
    if "update" in stages and "wu" not in stages:
        # The update alone takes the gradient from memory.
        tensors["g"] = golden.gradient(layer, tensors["x"], tensors["dy"])
    inputs = {name: tensors[name] for name in ("x", "dy", "w", "v", "bias", "in_mask")}
    want = golden.step(layer, Rates(**rates.fields()), **inputs)
    size = max(1 << 20, 1 << step.end.bit_length())
    with DeviceRtl(config, timing, memory_bytes=size, waves=waves, engine=engine) as device:
        on_device = write_step(device.memory, step, tensors)
        began = time.perf_counter()
        outcome = device.run(step.address, len(step.program))
        wall = time.perf_counter() - began
        if outcome.status is not Status.DONE:
            raise DeviceError(
                f"the program for {layer} stopped with {outcome.status.name} at instruction "
                f"{outcome.error_pc}"
            )
        compared = mismatches = 0
        differs = []
        for stage in stages:
            for name in RESULTS[stage]:
                got, wanted = on_device.read(name), getattr(want, name)
                different = count_different(got, wanted)
                compared, mismatches = compared + got.size, mismatches + different
                if different:
                    differs.append(name)
    beat = config.axi.beat_bytes
    macs = stage_macs(layer, stages)
    return LayerRun(
        stages=tuple(stages),
        cycles=outcome.cycles,
        predicted_cycles=predict(step.program, config, timing, step.address).cycles,
        macs=macs,
        dense_macs=layer.dense_macs * sum(stage != "update" for stage in stages),
        utilisation=macs / (outcome.cycles * config.rows * config.cols),
        compared=compared,
        mismatches=mismatches,
        differs=tuple(differs),
        non_finite=outcome.non_finite,
        skipped=outcome.skipped,
        instructions=len(step.program),
        bytes_read=outcome.beats_read * beat,
        bytes_written=outcome.beats_written * beat,
        wall_seconds=wall,
    )
