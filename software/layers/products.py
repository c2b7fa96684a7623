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
    at_positions,
    backward_phases,
    every_phase,
    forward_taps,
    front,
    pad,
    place,
    windows,
)
from sat.sparsity.pattern import DENSE


def _widen(x: Tensor, channels: int) -> Tensor:
    """Return ``x`` with zeros behind its last axis, up to ``channels``."""
    extra = channels - x.shape[-1]
    return functional.pad(x, (0, extra)) if extra else x


def output(engine: Engine, g: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return FF: (batch, height, width, out) float32."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    outs, ins = len(weight) // g.groups, weight.shape[-1]
    channels = _lane_channels(engine, "FF", g, ins)
    low = front(reads)
    parts = []
    for group in range(g.groups):
        x_part = _widen(x[..., group * ins : (group + 1) * ins], channels)
        w_part = _widen(weight[group * outs : (group + 1) * outs], channels)
        values, indices = engine.operand("FF", "input", pad(x_part, reads), {"in": -1})
        depth = g.taps * channels
        left = Operand(
            windows(values, taps, low),
            None if indices is None else windows(indices, taps, low),
            depth,
            engine.plan.pattern,
        )
        copy = engine.weight("FF", group, w_part, {"out": 0, "in": -1})
        right = copy.operand("all", lambda x: x.flatten(1), depth)
        start = None if bias is None else bias[group * outs : (group + 1) * outs]
        parts.append(engine.product("FF", left, right, start))
    y = parts[0] if g.groups == 1 else torch.cat(parts, 1)
    return y.reshape(len(x), *(t.outputs for t in taps), len(weight))


def _lanes_at(phases: Sequence[Phase], w: Tensor) -> Tensor:
    """Return what phases take of (lanes, *kernel, channels) as (lanes, kept)."""
    return at_positions(w, phases).flatten(1)


def _lane_channels(engine: Engine, stage: str, g: Geometry, channels: int) -> int:
    """Return the channels at one position of a lane, filled up where groups would cross."""
    m = engine.plan.pattern.m
    return -(-channels // m) * m if engine.compact(stage) and g.taps > 1 else channels


def input_gradient(
    engine: Engine, g: Geometry, grad: Tensor, weight: Tensor, shape: torch.Size
) -> Tensor:
    """Return BP: (batch, height, width, in) float32."""
    phases = backward_phases(g, shape[1:-1])
    reads = [[phase.taps for phase in axis] for axis in phases]
    outs, ins = len(weight) // g.groups, weight.shape[-1]
    channels = _lane_channels(engine, "BP", g, outs)
    low = front(reads)
    dx = torch.zeros(shape)
    for group in range(g.groups):
        grad_part = _widen(grad[..., group * outs : (group + 1) * outs], channels)
        w_part = weight[group * outs : (group + 1) * outs].permute(3, 1, 2, 0)
        grad_values, grad_indices = engine.operand(
            "BP", "output_gradient", pad(grad_part, reads), {"out": -1}
        )
        copy = engine.weight("BP", group, _widen(w_part, channels), {"in": 0, "out": -1})
        dx_part = dx[..., group * ins : (group + 1) * ins]
        # Inputs that no phase reaches feed no output: their gradient is zero.
        for chosen in every_phase(phases):
            taps = [phase.taps for phase in chosen]
            depth = prod(t.count for t in taps) * channels
            left = Operand(
                windows(grad_values, taps, low),
                None if grad_indices is None else windows(grad_indices, taps, low),
                depth,
                engine.plan.pattern,
            )
            positions = tuple(tuple(phase.positions) for phase in chosen)
            right = copy.operand(positions, functools.partial(_lanes_at, chosen), depth)
            target = place(dx_part, chosen, g.stride)
            target.copy_(engine.product("BP", left, right).reshape(target.shape))
    return dx


def weight_gradient(engine: Engine, g: Geometry, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return WU: (out, kernel rows, kernel columns, in) float32."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    outs, ins = len(weight) // g.groups, weight.shape[-1]
    samples = prod(grad.shape[:-1])
    parts = []
    for group in range(g.groups):
        grad_part = grad[..., group * outs : (group + 1) * outs].reshape(samples, outs)
        values, _ = engine.operand("WU", "output_gradient", grad_part, {"out": -1})
        left = Operand(values.t(), None, samples, DENSE)
        x_part = x[..., group * ins : (group + 1) * ins]
        values, _ = engine.operand("WU", "input", x_part, {"in": -1})
        right = Operand(windows(pad(values, reads), taps, front(reads)).t(), None, samples, DENSE)
        parts.append(engine.product("WU", left, right).reshape(outs, *g.kernel, ins))
    dw = parts[0] if g.groups == 1 else torch.cat(parts)
    return dw


def to_ohwi(weight: Tensor) -> Tensor:
    """Return a weight of a SAT layer as (out, kernel rows, kernel columns, in): a view."""
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight[:, None, None, :]


def from_ohwi(weight: Tensor, like: Tensor) -> Tensor:
    """Return (out, kernel rows, kernel columns, in) in the order of ``like``: a view."""
    return weight.permute(0, 3, 1, 2) if like.ndim == 4 else weight[:, 0, 0, :]
