"""Convolutions of any number of axes, plain, transposed and their gradients, as products."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from sat.offload.handlers import Products, Size, handles, wide_type
from sat.offload.lowering import (
    Geometry,
    at_positions,
    backward_phases,
    every_phase,
    forward_taps,
    front,
    pad,
    place,
    windows,
)


def _geometry(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    axes = weight.ndim - 2

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) * axes if len(value) == 1 else tuple(value)

    return Geometry(
        tuple(weight.shape[2:]),
        each(stride),
        tuple((p, p) for p in each(padding)),
        each(dilation),
        groups,
    )


def _groups(x: Tensor, groups: int, axis: int = -1) -> list[Tensor]:
    return list(x.chunk(groups, axis)) if groups > 1 else [x]


def _correlate(
    mode: Products,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    g: Geometry,
    wide: torch.dtype,
    outputs: Sequence[int] | None = None,
) -> Tensor:
    """Return a convolution: x (batch, *sizes, in), w (out, *kernel, in per group)."""
    taps = forward_taps(g, x.shape[1:-1], outputs)
    reads = [[t] for t in taps]
    biases = [None] * g.groups if bias is None else _groups(bias, g.groups)
    made = []
    for x_part, w_part, start in zip(
        _groups(x, g.groups), _groups(w, g.groups, 0), biases, strict=True
    ):
        left = windows(pad(x_part, reads), taps, front(reads))
        right = w_part.reshape(len(w_part), -1).t()
        made.append(mode.matmul(left[None], right[None], wide, start)[0])
    y = made[0] if g.groups == 1 else torch.cat(made, 1)
    return y.reshape(len(x), *(t.outputs for t in taps), -1)


def _scatter(
    mode: Products,
    dy: Tensor,
    w: Tensor,
    bias: Tensor | None,
    g: Geometry,
    sizes: Sequence[int],
    wide: torch.dtype,
) -> Tensor:
    """Return the adjoint of `_correlate`: dy (batch, *outputs, out) to (batch, *sizes, in)."""
    phases = backward_phases(g, sizes)
    reads = [[phase.taps for phase in axis] for axis in phases]
    low = front(reads)
    ins = w.shape[-1]
    dx = torch.zeros(len(dy), *sizes, ins * g.groups, dtype=wide)
    if bias is not None:
        dx += bias.detach()
    for number, (dy_part, w_part) in enumerate(
        zip(_groups(dy, g.groups), _groups(w, g.groups, 0), strict=True)
    ):
        channels = slice(number * ins, (number + 1) * ins)
        padded = pad(dy_part, reads)
        lanes = w_part.movedim(-1, 0).movedim(1, -1)  # (in, *kernel, out)
        for chosen in every_phase(phases):
            left = windows(padded, [phase.taps for phase in chosen], low)
            right = at_positions(lanes, chosen).reshape(ins, -1).t()
            start = None if bias is None else bias[channels]
            target = place(dx[..., channels], chosen, g.stride)
            made = mode.matmul(left[None], right[None], wide, start)
            target.copy_(made.view(target.shape))
    return dx


def _weight_gradient(
    mode: Products, x: Tensor, dy: Tensor, g: Geometry, wide: torch.dtype
) -> Tensor:
    """Return (out, *kernel, in per group) from x (batch, *sizes, in), dy (batch, *outputs, out)."""
    taps = forward_taps(g, x.shape[1:-1], dy.shape[1:-1])
    reads = [[t] for t in taps]
    made = []
    for x_part, dy_part in zip(_groups(x, g.groups), _groups(dy, g.groups), strict=True):
        left = dy_part.reshape(-1, dy_part.shape[-1]).t()
        right = windows(pad(x_part, reads), taps, front(reads))
        part = mode.matmul(left[None], right[None], wide)[0]
        made.append(part.reshape(len(part), *g.kernel, -1))
    return torch.cat(made) if len(made) > 1 else made[0]


def _last(mode: Products, x: Tensor) -> Tensor:
    """Return a picture or weight with its second axis last, rounded now if it will be anyway."""
    x = x.detach()
    early = mode.precision == "fp16" and not x.is_complex()
    return (x.half() if early else x).movedim(1, -1)


def _first(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.movedim(-1, 1).to(dtype).contiguous()


def _conv_size(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Size | None:
    axes = x.ndim - 2
    options = (stride, padding, dilation, output_padding)
    if x.ndim != weight.ndim or axes < 1 or x.dtype != weight.dtype or groups < 1:
        return None
    if any(len(option) not in (1, axes) for option in options):
        return None
    least = zip(options, (1, 0, 1, 0), strict=True)
    if any(min(option) < bound for option, bound in least) or len(weight) % groups:
        return None
    ins, outs = weight.shape[1] * groups, len(weight)
    if transposed:
        ins, outs = outs, ins
    if x.shape[1] != ins or not (bias is None or (bias.shape == (outs,) and bias.dtype == x.dtype)):
        return None
    g = _geometry(weight, stride, padding, dilation, groups)
    made = _outputs(x, g, transposed, output_padding)
    if made is None:
        return None
    rows = len(x) * prod(x.shape[2:] if transposed else made)
    return groups, rows, prod(weight.shape[1:]), len(weight) // groups


def _outputs(x: Tensor, g: Geometry, transposed: bool, output_padding: Any) -> list[int] | None:
    """Return the sizes of a convolution's output by axis, or None if there is none."""
    sizes = x.shape[2:]
    if not transposed:
        made = [g.outputs(axis, size) for axis, size in enumerate(sizes)]
        return made if min(made) > 0 else None
    extra = tuple(output_padding) * len(sizes) if len(output_padding) == 1 else output_padding
    made = [
        (size - 1) * s - sum(p) + d * (k - 1) + e + 1
        for size, s, p, d, k, e in zip(
            sizes, g.stride, g.padding, g.dilation, g.kernel, extra, strict=True
        )
    ]
    steps = map(max, g.stride, g.dilation)
    fits = min(made) > 0 and all(e < step for e, step in zip(extra, steps, strict=True))
    return made if fits else None


@handles("convolution", _conv_size)
def _convolution(
    mode: Products,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    g, wide = _geometry(weight, stride, padding, dilation, groups), wide_type(x.dtype)
    pictures, lanes = _last(mode, x), _last(mode, weight)
    if not transposed:
        return _first(_correlate(mode, pictures, lanes, bias, g, wide), x.dtype)
    sizes = _outputs(x, g, True, output_padding)
    assert sizes is not None
    return _first(_scatter(mode, pictures, lanes, bias, g, sizes, wide), x.dtype)


def _backward_size(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Any,
) -> Size | None:
    return _conv_size(
        x, weight, None, stride, padding, dilation, transposed, output_padding, groups
    )


@handles("convolution_backward", _backward_size, lambda *args: sum(map(bool, args[-1][:2])))
def _convolution_backward(
    mode: Products,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    g, wide = _geometry(weight, stride, padding, dilation, groups), wide_type(x.dtype)
    gradient, pictures, lanes = (_last(mode, t) for t in (dy, x, weight))
    dx = dw = db = None
    if output_mask[0]:
        if transposed:
            made = _correlate(mode, gradient, lanes, None, g, wide, x.shape[2:])
        else:
            made = _scatter(mode, gradient, lanes, None, g, x.shape[2:], wide)
        dx = _first(made, x.dtype)
    if output_mask[1]:
        pair = (gradient, pictures) if transposed else (pictures, gradient)
        dw = _first(_weight_gradient(mode, *pair, g, wide), weight.dtype)
    if output_mask[2]:
        db = dy.detach().sum([0, *range(2, dy.ndim)])
    return dx, dw, db
