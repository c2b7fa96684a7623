"""Convolutions of any number of axes, plain, transposed and their gradients, as products."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from sat.devices.operand import Windows
from sat.offload.handlers import Products, Size, handles, wide_type
from sat.offload.layout import channels_first, channels_last
from sat.offload.lowering import (
    CACHED,
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
    result_format,
    stacked_windows,
    windows_in,
)


def _geometry(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    return _geometry_of(weight.shape[2:], tuple(stride), tuple(padding), tuple(dilation), groups)


@functools.lru_cache(CACHED)
def _geometry_of(
    kernel: torch.Size,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Geometry:
    def each(value: tuple[int, ...]) -> tuple[int, ...]:
        return value * len(kernel) if len(value) == 1 else value

    return Geometry(
        tuple(kernel),
        each(stride),
        tuple((p, p) for p in each(padding)),
        each(dilation),
        groups,
    )


def _correlate(
    mode: Products,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    g: Geometry,
    wide: torch.dtype,
    outputs: Sequence[int] | None = None,
) -> Tensor:
    """Return a convolution: x (batch, *sizes, in), w (out, *kernel, in per group).

    As (batch, *outputs, groups, out per group): groups are a stack of products.
    """
    taps = forward_taps(g, x.shape[1:-1], outputs)
    reads = tuple((t,) for t in taps)
    left = _windows(mode, pad(x, reads, mode.space), taps, front(reads), g.groups)
    right = w.reshape(g.groups, len(w) // g.groups, -1).transpose(1, 2)
    start = _by_group(bias, g.groups, left.shape[1])
    made = mode.matmul(left, right, wide, start, passing=True)
    return made.view(g.groups, len(x), *(t.outputs for t in taps), -1).movedim(0, -2)


def _windows(
    mode: Products, x: Tensor, taps: Sequence[Taps], low: Sequence[int], groups: int
) -> Tensor | Windows:
    """Return what taps read of a padded picture, as `stacked_windows`, copied only if need be."""
    if mode.takes_windows and x.dtype is torch.float16:
        return windows_in(x, taps, low, groups)
    return stacked_windows(x, taps, low, groups, mode.space)


def _by_group(bias: Tensor | None, groups: int, rows: int) -> Tensor | None:
    """Return a bias as the starts of a stack of products, the same for all rows."""
    return None if bias is None else bias.view(groups, 1, -1).expand(-1, rows, -1)


def _scatter(
    mode: Products,
    dy: Tensor,
    w: Tensor,
    bias: Tensor | None,
    g: Geometry,
    sizes: Sequence[int],
    wide: torch.dtype,
) -> Tensor:
    """Return the adjoint of `_correlate`: dy (batch, *outputs, out) to (batch, *sizes, in).

    The weight is (*kernel, out, in per group). As (batch, *sizes, groups, in per group).
    """
    phases = backward_phases(g, sizes)
    reads = tuple(tuple(phase.taps for phase in axis) for axis in phases)
    padded = pad(dy, reads, mode.space)
    ins = w.shape[-1]

    def part(chosen: Sequence[Phase]) -> Tensor:
        taps = [phase.taps for phase in chosen]
        left = _windows(mode, padded, taps, front(reads), g.groups)
        # (*kernel, out, in) to (groups, kernel positions and out per group, in)
        kept = at_positions(w, chosen, 0).flatten(0, -3).unflatten(1, (g.groups, -1))
        right = kept.movedim(1, 0).flatten(1, 2)
        start = _by_group(bias, g.groups, left.shape[1])
        made = mode.matmul(left, right, wide, start, passing=True)
        return made.view(g.groups, len(dy), *(t.outputs for t in taps), ins).movedim(0, -2)

    if set(g.stride) == {1}:
        return part([axis[0] for axis in phases])  # one phase, which is all there is
    dx = torch.zeros(len(dy), *sizes, g.groups, ins, dtype=wide)
    if bias is not None:
        dx += bias.detach().view(g.groups, ins)
    for chosen in every_phase(phases):
        place(dx, chosen, g.stride).copy_(part(chosen))
    return dx


def _weight_gradient(
    mode: Products,
    x: Tensor,
    dy: Tensor,
    g: Geometry,
    weight: Tensor,
    layout: torch.memory_format,
) -> Tensor:
    """Return a gradient like the weight from x (batch, *sizes, in), dy (batch, *outputs, out)."""
    wide = wide_type(weight.dtype)
    taps = forward_taps(g, x.shape[1:-1], dy.shape[1:-1])
    reads = tuple((t,) for t in taps)
    outs = dy.shape[-1]
    left = dy.reshape(-1, g.groups, outs // g.groups).permute(1, 2, 0)
    right = _windows(mode, pad(x, reads, mode.space), taps, front(reads), g.groups)
    if isinstance(right, Windows):
        # Its columns come out as torch has them, channels before the kernel.
        as_is = weight.dtype is wide and layout is torch.contiguous_format
        made = mode.matmul(left, right, wide, passing=True, lasting=as_is, outer=g.taps)
        made = made.view(weight.shape)
        return made if as_is else made.to(weight.dtype, memory_format=layout, copy=True)
    made = mode.matmul(left, right, wide, passing=True).view(outs, *g.kernel, -1)
    return channels_first(made, weight.dtype, layout)


def _last(mode: Products, x: Tensor, name: str, *, outside: bool = False) -> Tensor:
    """Return a picture or weight with its second axis last, rounded now if it will be anyway."""
    early = mode.precision == "fp16" and not x.is_complex()
    return channels_last(x, mode.lost if early else None, mode.space, name, outside=outside)


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
    pictures, lanes = _last(mode, x, "x"), _last(mode, weight, "weight", outside=transposed)
    if transposed:
        sizes = _outputs(x, g, True, output_padding)
        assert sizes is not None
        made = _scatter(mode, pictures, lanes, bias, g, sizes, wide)
    else:
        made = _correlate(mode, pictures, lanes, bias, g, wide)
    return channels_first(made.flatten(-2), x.dtype, result_format(x, weight))


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
    gradient, pictures = _last(mode, dy, "dy"), _last(mode, x, "x")
    lanes = _last(mode, weight, "weight", outside=not transposed)
    layout = result_format(x, weight)
    dx = dw = db = None
    if output_mask[0]:
        if transposed:
            made = _correlate(mode, gradient, lanes, None, g, wide, x.shape[2:])
        else:
            made = _scatter(mode, gradient, lanes, None, g, x.shape[2:], wide)
        dx = channels_first(made.flatten(-2), x.dtype, layout)
    if output_mask[1]:
        pair = (gradient, pictures) if transposed else (pictures, gradient)
        dw = _weight_gradient(mode, *pair, g, weight, layout)
    if output_mask[2]:
        db = dy.detach().sum([0, *range(2, dy.ndim)])
    return dx, dw, db
