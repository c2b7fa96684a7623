"""The products of a layer: FF, BP and WU of a convolution, as matrix products.

Pictures are (batch, height, width, channels) float16, the weight is (out, kernel rows, kernel
columns, in) in its own type: channels are fastest in all of them, and so in the depth of FF and BP.
Groups of M lie at one position: where a kernel has several and M does not divide the
channels, the channels are filled up with zeros, which lose every tie against real ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from sat.layers.engine import Engine, Operand
from sat.offload.lowering import (
    Geometry,
    Phase,
    Taps,
    at_positions,
    backward_phases,
    every_phase,
    forward_taps,
    front,
    pad,
    place,
    stacked_windows,
    windows,
)
from sat.sparsity.pattern import DENSE


def _grouped(x: Tensor, groups: int, channels: int) -> Tensor:
    """Return a picture as (…, groups, channels of one), filled up with zeros to ``channels``."""
    x = x.unflatten(-1, (groups, -1))
    return _widen(x, channels)


def _widen(x: Tensor, channels: int) -> Tensor:
    """Return ``x`` with zeros behind its last axis, up to ``channels``."""
    extra = channels - x.shape[-1]
    return functional.pad(x, (0, extra)) if extra else x


def _lanes(x: Tensor, taps: Sequence[Taps], low: Sequence[int]) -> Tensor:
    """Return what taps read of (batch, *sizes, groups, channels): (rows, taps * channels).

    Or, of several groups, as many of them.
    """
    groups = x.shape[-2]
    x = x.flatten(-2)
    return windows(x, taps, low) if groups == 1 else stacked_windows(x, taps, low, groups)


def _operand(
    engine: Engine,
    stage: str,
    name: str,
    x: Tensor,
    reads: Sequence[Sequence[Taps]],
    axes: dict[str, int],
    groups: int,
    channels: int,
) -> tuple[Tensor, Tensor | None]:
    """Return a picture padded, rounded and pruned: (batch, *sizes, groups, kept channels)."""
    padded = pad(_grouped(x, groups, channels).flatten(-2), reads)
    return engine.operand(stage, name, padded.unflatten(-1, (groups, channels)), axes)


def _weights(weight: Tensor, groups: int) -> Tensor:
    """Return a weight as (groups, out of one, …), or as it is for a single group."""
    return weight if groups == 1 else weight.unflatten(0, (groups, -1))


def _picture(made: Tensor, batch: int, sizes: Sequence[int]) -> Tensor:
    """Return the rows of a product, or of one for each group, as (batch, *sizes, channels)."""
    if made.ndim == 2:
        return made.reshape(batch, *sizes, made.shape[1])
    return made.transpose(0, 1).reshape(batch, *sizes, -1)


def output(engine: Engine, g: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return FF: (batch, height, width, out) float32. Groups are a stack of products."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    channels = _lane_channels(engine, "FF", g, weight.shape[-1])
    low, depth = front(reads), g.taps * channels
    values, indices = _operand(engine, "FF", "input", x, reads, {"in": -1}, g.groups, channels)
    left = Operand(
        _lanes(values, taps, low),
        None if indices is None else _lanes(indices, taps, low),
        depth,
        engine.plan.patterns.ff,
    )
    lanes = _widen(_weights(weight, g.groups), channels)
    copy = engine.weight("FF", lanes, {"out": -4, "in": -1})
    right = copy.operand("all", lambda x: x.flatten(-3), depth)
    start = bias if bias is None or g.groups == 1 else bias.view(g.groups, 1, -1)
    made = engine.product("FF", left, right, start)
    return _picture(made, len(x), [t.outputs for t in taps])


def _lanes_at(phases: Sequence[Phase], w: Tensor) -> Tensor:
    """Return what phases take of (…, lanes, *kernel, channels) as (…, lanes, kept)."""
    axes = len(phases) + 1
    return at_positions(w, phases, w.ndim - axes).flatten(-axes)


def _lane_channels(engine: Engine, stage: str, g: Geometry, channels: int) -> int:
    """Return the channels at one position of a lane, filled up where groups would cross."""
    m = engine.plan.patterns.of(stage).m
    return -(-channels // m) * m if engine.compact(stage) and g.taps > 1 else channels


def input_gradient(
    engine: Engine, g: Geometry, grad: Tensor, weight: Tensor, shape: torch.Size
) -> Tensor:
    """Return BP: (batch, height, width, in) float32. Groups are a stack of products."""
    phases = backward_phases(g, shape[1:-1])
    reads = [[phase.taps for phase in axis] for axis in phases]
    channels = _lane_channels(engine, "BP", g, len(weight) // g.groups)
    low = front(reads)
    values, indices = _operand(
        engine, "BP", "output_gradient", grad, reads, {"out": -1}, g.groups, channels
    )
    # (…, in, *kernel, out)
    lanes = _widen(_weights(weight, g.groups).transpose(-1, -4), channels)
    copy = engine.weight("BP", lanes, {"in": -4, "out": -1})
    dx = torch.zeros(shape)
    # Inputs that no phase reaches feed no output: their gradient is zero.
    for chosen in every_phase(phases):
        taps = [phase.taps for phase in chosen]
        depth = prod(t.count for t in taps) * channels
        left = Operand(
            _lanes(values, taps, low),
            None if indices is None else _lanes(indices, taps, low),
            depth,
            engine.plan.patterns.bp,
        )
        positions = tuple(tuple(phase.positions) for phase in chosen)
        right = copy.operand(positions, functools.partial(_lanes_at, chosen), depth)
        made = engine.product("BP", left, right)
        place(dx, chosen, g.stride).copy_(_picture(made, len(grad), [t.outputs for t in taps]))
    return dx


def weight_gradient(engine: Engine, g: Geometry, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return WU: (out, kernel rows, kernel columns, in) float32. Groups are a stack of products."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    samples = prod(grad.shape[:-1])
    outs, ins = len(weight) // g.groups, weight.shape[-1]
    samples_first = _grouped(grad, g.groups, outs).reshape(samples, g.groups, outs)
    dy, places = engine.operand("WU", "output_gradient", samples_first, {"out": -1, "batch": 0})
    values, _ = engine.operand("WU", "input", _grouped(x, g.groups, ins), {"in": -1})
    padded = pad(values.flatten(-2), reads).unflatten(-1, (g.groups, ins))

    def lanes(x: Tensor) -> Tensor:
        turned = x.permute(1, 2, 0)
        return turned[0] if g.groups == 1 else turned

    indices = None if places is None else lanes(places)
    pattern = DENSE if places is None else engine.plan.patterns.wu
    left = Operand(lanes(dy), indices, samples, pattern)
    right = Operand(_lanes(padded, taps, front(reads)).mT, None, samples, DENSE)
    return engine.product("WU", left, right).reshape(len(weight), *g.kernel, ins)


def to_ohwi(weight: Tensor) -> Tensor:
    """Return a weight of a SAT layer as (out, kernel rows, kernel columns, in): a view."""
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight[:, None, None, :]


def from_ohwi(weight: Tensor, like: Tensor) -> Tensor:
    """Return (out, kernel rows, kernel columns, in) in the order of ``like``: a view."""
    return weight.permute(0, 3, 1, 2) if like.ndim == 4 else weight[:, 0, 0, :]
