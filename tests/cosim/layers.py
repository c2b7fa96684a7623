"""Shared by the tests of whole layers: random layers, their tensors, the comparison."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sat.dataflow.compile.step import STAGES, CompiledStep, Sgd, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.host import LayerTensors
from sat.dataflow.layers import boundary_bytes
from sat.dataflow.mapping import round_up
from sat.devices.stages import write_step
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl, Outcome
from sat.sim.golden import layer as golden_layer
from sat.sim.golden.device import GoldenDevice
from sat.sim.golden.fp import canonical_nan16
from sat.sim.golden.layer import Step
from sat.sim.golden.update import Rates
from sat.sim.layer import Layer


def random_layer(rng: random.Random, config: SatConfig, largest: int = 24) -> Layer:
    """Return a small layer of any kind that the device runs."""
    m = rng.choice([1, 1, *(m for m in (2, 4, 8, 16) if m <= config.max_m)])
    pattern = (rng.randint(1, m), m)
    kind = rng.choice(["conv", "conv", "conv", "pointwise", "linear", "depthwise", "grouped"])
    groups = 1
    if kind == "depthwise":
        ins = outs = groups = rng.randint(2, largest)
        pattern = (1, 1)
    elif kind == "grouped":
        groups = rng.randint(2, 3)
        ins = groups * config.max_m * rng.randint(1, 2)
        outs = groups * config.max_m * rng.randint(1, 2)
    else:
        step = pattern[1]
        ins = step * rng.randint(1, max(1, largest // step))
        outs = step * rng.randint(1, max(1, largest // step))
    shape = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    lines = pixels = 1
    if kind != "linear":
        lines, pixels = rng.randint(1, 9), rng.randint(1, 9)
        shape["stride"] = (rng.choice([1, 1, 2, 3]), rng.choice([1, 1, 2, 3]))
    if kind in ("conv", "depthwise", "grouped"):
        for axis, size in enumerate((lines, pixels)):
            k = rng.choice([1, 2, 3, 3, 5])
            d = rng.choice([1, 1, 2])
            need = d * (k - 1) + 1
            p = max(-(-(need - size) // 2), rng.randint(0, 2))
            for name, value in (("kernel", k), ("dilation", d), ("padding", p)):
                shape[name] = shape[name][:axis] + (value,) + shape[name][axis + 1 :]
    # Words of channels and words of masks must fill each other.
    whole = config.max_m % config.cols == 0
    bytes_of_masks = config.max_m % 8 == 0 and config.cols % config.max_m == 0
    masks = whole or (kind != "grouped" and (kind != "depthwise" or bytes_of_masks))
    wu = (1, 1)
    if config.prune_gathers and kind != "depthwise":
        m = rng.choice([m for m in (2, 4, 8, 16) if m <= config.max_m])
        wu = (rng.randint(1, m), m)
    return Layer(
        batch=rng.randint(1, 20 if kind == "linear" else 3),
        lines=lines,
        pixels=pixels,
        in_channels=ins,
        out_channels=outs,
        **shape,
        groups=groups,
        ff=pattern,
        bp=pattern,
        wu=wu,
        bias=rng.random() < 0.5,
        relu=masks and rng.random() < 0.5,
        masked=masks and rng.random() < 0.5,
    )


def random_tensors(seed: int, layer: Layer, specials: float = 0.0) -> dict[str, np.ndarray]:
    """Return random x, dy, w, v, bias and in_mask; ``specials`` of x and w are odd numbers."""
    rng = np.random.default_rng(seed)
    out = (layer.batch, *layer.out_size, layer.out_channels)
    weights = (layer.out_channels, *layer.kernel, layer.in_per_group)
    made = {
        "x": rng.standard_normal((layer.batch, layer.lines, layer.pixels, layer.in_channels)),
        "dy": rng.standard_normal(out) * 2.0**-4,
        "w": rng.standard_normal(weights) * 2.0**-2,
        "v": rng.standard_normal(weights) * 2.0**-4,
        "bias": rng.standard_normal(layer.out_channels),
    }
    made = {
        name: values.astype(np.float16 if name in ("x", "dy") else np.float32)
        for name, values in made.items()
    }
    odd = [0.0, -0.0, 2.0**-24, -(2.0**-15), 65504.0]
    for name in ("x", "w"):
        hit = rng.random(made[name].shape) < specials
        made[name][hit] = rng.choice(odd, hit.sum())
    made["in_mask"] = rng.random(made["x"].shape) < 0.6
    return made


def same_bits(got: np.ndarray, want: np.ndarray, what: str) -> None:
    """Assert that two arrays agree in every bit, any NaN being like any other."""
    kind = {2: np.uint16, 4: np.uint32}.get(got.dtype.itemsize, np.uint8)
    got_bits, want_bits = (np.ascontiguousarray(x).view(kind) for x in (got, want))
    if kind is np.uint16:
        got_bits, want_bits = canonical_nan16(got_bits), canonical_nan16(want_bits)
    different = got_bits != want_bits
    assert got.shape == want.shape
    assert not different.any(), (
        f"{what}: {different.sum()} of {got.size} differ, first at "
        f"{tuple(np.argwhere(different)[0])}: {got[different][0]!r} != {want[different][0]!r}"
    )


def compare(step: CompiledStep, device: LayerTensors, want: Step) -> None:
    """Assert that device memory holds what the stages of a step give."""
    names = {name for name, _, _ in step.stages}
    if "ff" in names:
        same_bits(device.read("y"), want.y, "y")
        if step.layer.relu:
            assert np.array_equal(device.read_mask("out_mask"), want.mask)
    if "bp" in names:
        same_bits(device.read("dx"), want.dx, "dx")
    if "wu" in names:
        same_bits(device.read("g"), want.g, "g")
    if "update" in names:
        same_bits(device.read("w"), want.w, "w")
        same_bits(device.read("v"), want.v, "v")
        # What the device pruned is what the host prunes of the new weights.
        for name in ("ff",) if step.layer.depthwise else ("ff", "bp"):
            values, indices = device.read_copy(name)
            fresh = LayerTensors(device.memory.copy(), step.memory)
            fresh.prune()
            want_values, want_indices = fresh.read_copy(name)
            same_bits(values, want_values, f"values of {name}")
            assert np.array_equal(indices, want_indices), f"indices of {name}"


def random_sgd(rng: random.Random) -> Sgd:
    """Return rates of an update, each zero now and then."""
    rates = [0.0, 1e-3, 0.1, 0.9]
    return Sgd(
        learning_rate=rng.choice(rates), momentum=rng.choice(rates),
        weight_decay=rng.choice(rates), sr_ste=rng.choice(rates),
        loss_scale=2.0 ** rng.randint(0, 12),
    )  # fmt: skip


def any_mapping(rng: random.Random, seen: Counter[str]) -> Callable[..., Any]:
    """Return what takes the place of `fewest_cycles`: any shape, first of what sort, then which.

    Parameters
    ----------
    seen : Counter
        Receives the sorts that were chosen.
    """

    def choose(shapes, estimate, cost, floor, least):
        sort = rng.choice(sorted({shape.sort for shape in shapes}))
        seen[sort] += 1
        return rng.choice([shape for shape in shapes if shape.sort == sort])

    return choose


SORTS = ("tiles", "blocks", "ws", "bands", "tap", "taps")
"""Sorts of mappings that layers have."""


def run_on_both(
    device: DeviceRtl, golden: GoldenDevice, layer: Layer, seed: int, specials: float, sgd: Sgd
) -> Outcome:
    """Run a step on a simulated and a golden device; compare memory, cycles and the golden step.

    With odd seeds the weights and their copies lie apart, as they do where they stay.
    """
    config, timing = device.config, device.timing
    if layer.wu != (1, 1):
        sgd = replace(sgd, sr_ste=0.0)  # which is refused
    step = compile_step(layer, config, timing, STAGES, sgd)
    predicted = predict(step.program, config, timing, step.address)
    if seed % 2:
        step = step.with_weights_at(round_up(step.end, boundary_bytes(config)))
    tensors = random_tensors(seed, layer, specials)
    size = max(step.end, step.memory.held.stop) + 4096
    assert size <= len(device.memory)
    device.memory[:size] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    on_device = write_step(device.memory, step, tensors)
    step.program.validate(config, step.address, (0, len(device.memory)))
    golden.memory = device.memory[:size].copy()
    outcome = device.run(step.address, len(step.program))
    assert outcome.status is Status.DONE, (layer, outcome)
    verdict = golden.run(step.address, len(step.program))
    assert verdict.status is Status.DONE
    different = np.nonzero(golden.memory != device.memory[:size])[0]
    assert not len(different), (layer, len(different), different[:4])
    assert (outcome.non_finite, outcome.skipped) == (verdict.non_finite, verdict.skipped)
    compare(step, on_device, golden_layer.step(layer, Rates(**sgd.fields()), **tensors))
    assert outcome.cycles == predicted.cycles, (layer, outcome.cycles, predicted.cycles)
    return outcome
