"""Convolutions as matrix products: what a kernel's taps read, for any number of axes.

Pictures here are channels-last, ``(batch, *sizes, channels)``, weights ``(out, *kernel, in)``: the
depth of a product then runs over the kernel's positions, row by row, and over the channels inside
each. Everything that is computed from a convolution (SAT layers, `sat.offload`) uses these.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional

from sat.arrays import array_of
from sat.devices.operand import Windows
from sat.offload.workspace import Workspace
from sat.sim.golden.stce import LoopLayout, Loops

CACHED = 4096
"""Shapes of convolutions that are known by heart."""


@dataclass(frozen=True)
class Geometry:
    """A convolution's shape, one entry an axis; a linear layer is one with a single position.

    Parameters
    ----------
    kernel, stride, dilation : tuple of int
    padding : tuple of (int, int)
        Zeros before and after, an axis each.
    groups : int
    """

    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    def outputs(self, axis: int, size: int) -> int:
        """Return the size of the output along an axis of the picture."""
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + sum(self.padding[axis]) - span) // self.stride[axis] + 1


POINT = Geometry()
"""A linear layer."""


@dataclass(frozen=True)
class Taps:
    """Reads along one axis: output i, tap j reads position ``first + i * stride + j * step``."""

    first: int
    step: int
    count: int
    stride: int
    outputs: int

    @property
    def least(self) -> int:
        """Smallest position read; taps may descend."""
        return self.first + min(0, (self.count - 1) * self.step)

    @property
    def greatest(self) -> int:
        """Greatest position read."""
        reach = max(0, (self.count - 1) * self.step)
        return self.first + (self.outputs - 1) * self.stride + reach


@dataclass(frozen=True)
class Phase:
    """Positions of the input's gradient, along one axis, that the same taps reach.

    Parameters
    ----------
    start : int
        The first; the next ones follow at the distance of the stride.
    taps : Taps
        What they read of the output's gradient.
    positions : list of int
        Of the kernel, one for each tap.
    """

    start: int
    taps: Taps
    positions: list[int]


def forward_taps(
    g: Geometry, sizes: Sequence[int], outputs: Sequence[int] | None = None
) -> tuple[Taps, ...]:
    """Return what each axis of a convolution reads of an input of these sizes.

    Parameters
    ----------
    outputs : sequence of int, optional
        Sizes of the output, where they are not all that the input has room for: an input that was
        made by a transposed convolution may be longer, by its output padding.
    """
    return _forward_taps(g, tuple(sizes), None if outputs is None else tuple(outputs))


@functools.lru_cache(CACHED)
def _forward_taps(
    g: Geometry, sizes: tuple[int, ...], outputs: tuple[int, ...] | None
) -> tuple[Taps, ...]:
    made = outputs or [g.outputs(axis, size) for axis, size in enumerate(sizes)]
    return tuple(
        Taps(-g.padding[i][0], g.dilation[i], g.kernel[i], g.stride[i], count)
        for i, count in enumerate(made)
    )


def backward_phases(g: Geometry, sizes: Sequence[int]) -> tuple[tuple[Phase, ...], ...]:
    """Split the input's gradient, axis by axis, into convolutions of the output's gradient.

    Input position h takes from output o through kernel position r exactly if
    ``o * stride + r * dilation - padding == h``. All h with the same remainder modulo the stride
    share their r, and along them o moves by 1: no zeros are inserted, no product is wasted. The r
    ascend, as the device sums over them, so the o that they read descend.
    """
    return _backward_phases(g, tuple(sizes))


@functools.lru_cache(CACHED)
def _backward_phases(g: Geometry, sizes: tuple[int, ...]) -> tuple[tuple[Phase, ...], ...]:
    return tuple(_axis_phases(g, axis, size) for axis, size in enumerate(sizes))


def _axis_phases(g: Geometry, axis: int, size: int) -> tuple[Phase, ...]:
    stride, dilation, low = g.stride[axis], g.dilation[axis], g.padding[axis][0]
    step = -(dilation // gcd(stride, dilation))
    phases = []
    for start in range(min(stride, size)):
        reach = range(g.kernel[axis])
        positions = [r for r in reach if (start + low - r * dilation) % stride == 0]
        first = (start + low - positions[0] * dilation) // stride if positions else 0
        outputs = (size - start + stride - 1) // stride
        phases.append(Phase(start, Taps(first, step, len(positions), 1, outputs), positions))
    return tuple(phases)


def every_phase(phases: Sequence[Sequence[Phase]]) -> Iterator[tuple[Phase, ...]]:
    """Yield the combinations of all axes' phases that any tap reaches."""
    for combined in itertools.product(*phases):
        if all(phase.taps.count for phase in combined):
            yield combined


def front(taps: Sequence[Sequence[Taps]]) -> tuple[int, ...]:
    """Return the zeros that must stand in front of a picture, by axis."""
    return _front(tuple(map(tuple, taps)))


@functools.lru_cache(CACHED)
def _front(taps: tuple[tuple[Taps, ...], ...]) -> tuple[int, ...]:
    return tuple(max([0, *(-t.least for t in axis if t.count)]) for axis in taps)


@functools.lru_cache(CACHED)
def _back(taps: tuple[tuple[Taps, ...], ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the zeros that must stand behind a picture, by axis."""
    return tuple(
        max([0, *(t.greatest - size + 1 for t in axis if t.count)])
        for axis, size in zip(taps, sizes, strict=True)
    )


def pad(
    x: Tensor,
    taps: Sequence[Sequence[Taps]],
    space: Workspace | None = None,
) -> Tensor:
    """Return a picture with zeros wherever any of the taps (by axis) read outside of it.

    `front` says where the old first position is now. In a workspace's memory, if one is given, and
    if the picture is of float16 or float32.
    """
    every, sizes = tuple(map(tuple, taps)), x.shape[1:-1]
    lows, highs = _front(every), _back(every, sizes)
    if not any(lows) and not any(highs):
        return x
    if space is None or x.dtype not in (torch.float16, torch.float32):
        sides = (side for pair in zip(lows[::-1], highs[::-1], strict=True) for side in pair)
        return functional.pad(x, (0, 0, *sides))
    array = array_of(x)
    grown = (a + n + b for a, n, b in zip(lows, sizes, highs, strict=True))
    shape = (len(array), *grown, array.shape[-1])
    made, _ = space.array(f"padded {array.dtype}", shape, array.dtype.type)
    made.view(np.uint8).fill(0)  # as bytes: numpy fills float16 number by number
    inside = (slice(low, low + size) for low, size in zip(lows, sizes, strict=True))
    made[(slice(None), *inside)] = array
    return torch.from_numpy(made)


def windows(x: Tensor, taps: Sequence[Taps], front: Sequence[int]) -> Tensor:
    """Return what the taps read, channels fastest: (batch * outputs, taps * channels).

    Parameters
    ----------
    x : (batch, *sizes, channels), from `pad`
    taps : one for each axis
    front : zeros that `pad` put in front of each axis
    """
    every = zip(taps, x.shape[1:-1], strict=True)
    if all((t.first, t.count, t.stride, t.outputs) == (0, 1, 1, size) for t, size in every):
        return x.reshape(-1, x.shape[-1])
    return stacked_windows(x, taps, front, 1)[0]


def stacked_windows(
    x: Tensor,
    taps: Sequence[Taps],
    front: Sequence[int],
    groups: int,
    space: Workspace | None = None,
) -> Tensor:
    """Return `windows` of each group of channels: (groups, batch * outputs, taps * channels).

    In a workspace's memory, if one is given.
    """
    view = _window_view(x, taps, front, groups)
    channels = view.shape[-1]
    rows, count = len(x) * prod(t.outputs for t in taps), prod(t.count for t in taps)
    if channels == 1:
        # Groups stay side by side: so they are copied, and read, by rows.
        beside = _copied(np.moveaxis(view, 0, -2), space)
        lanes = beside.reshape(rows, count, groups).transpose(2, 0, 1)
    else:
        lanes = _copied(view, space).reshape(groups, rows, count * channels)
    return torch.from_numpy(lanes).view(x.dtype)


def windows_in(x: Tensor, taps: Sequence[Taps], front: Sequence[int], groups: int) -> Windows:
    """Return what `stacked_windows` copies where it lies, in a picture of float16."""
    return Windows(x, *_window_layout(x.shape, x.stride(), tuple(taps), tuple(front), groups))


@functools.lru_cache(CACHED)
def _window_layout(
    shape: torch.Size,
    strides: tuple[int, ...],
    taps: tuple[Taps, ...],
    front: tuple[int, ...],
    groups: int,
) -> tuple[int, LoopLayout]:
    """Return how far the first number is from the picture's, and where the others are."""
    outer, *inner, last = strides
    channels = shape[-1] // groups
    first = sum((t.first + low) * s for t, low, s in zip(taps, front, inner, strict=True))
    rows = Loops(
        (shape[0], *(t.outputs for t in taps)),
        (outer, *(t.stride * s for t, s in zip(taps, inner, strict=True))),
    )
    cols = Loops(
        (*(t.count for t in taps), channels),
        (*(t.step * s for t, s in zip(taps, inner, strict=True)), last),
    )
    return first, LoopLayout(groups, channels * last, rows, cols)


def _window_view(
    x: Tensor, taps: Sequence[Taps], front: Sequence[int], groups: int
) -> NDArray[Any]:
    """Return a view of what `stacked_windows` copies: (groups, batch, *outputs, *taps, channels).

    Of bfloat16, the bits, as int16.
    """
    # numpy copies such views several times faster than torch, and steps backwards.
    bits = x.view(torch.int16) if x.dtype is torch.bfloat16 else x  # which numpy lacks
    array = array_of(bits)
    strides = array.strides
    inner = strides[1:-1]
    corner = tuple(slice(t.first + low, None) for t, low in zip(taps, front, strict=True))
    channels = x.shape[-1] // groups
    view: NDArray[Any] = np.lib.stride_tricks.as_strided(
        array[(slice(None), *corner)],
        (
            groups,
            len(x),
            *(t.outputs for t in taps),
            *(t.count for t in taps),
            channels,
        ),
        (
            channels * strides[-1],
            strides[0],
            *(t.stride * s for t, s in zip(taps, inner, strict=True)),
            *(t.step * s for t, s in zip(taps, inner, strict=True)),
            strides[-1],
        ),
    )
    return view


def _copied(view: NDArray[Any], space: Workspace | None) -> NDArray[Any]:
    if space is None:
        return np.ascontiguousarray(view)
    made, _ = space.array(f"windows {view.dtype}", view.shape, view.dtype.type)
    np.copyto(made, view)
    return made


def at_positions(w: Tensor, phases: Sequence[Phase], first_axis: int = 1) -> Tensor:
    """Return what phases take of (lanes, *kernel, channels): their kernel positions.

    Or of a weight whose kernel's axes begin elsewhere.
    """
    for axis, phase in enumerate(phases, start=first_axis):
        # Evenly spaced, as strides and dilations are: a view.
        first, last = phase.positions[0], phase.positions[-1]
        step = max(1, (last - first) // max(1, len(phase.positions) - 1))
        w = w[(slice(None),) * axis + (slice(first, last + 1, step),)]
    return w


def place(dx: Tensor, phases: Sequence[Phase], stride: Sequence[int]) -> Tensor:
    """Return the view of (batch, *sizes, …) that the phases compute."""
    where = tuple(slice(p.start, None, s) for p, s in zip(phases, stride, strict=True))
    return dx[(slice(None), *where)]


def result_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return how torch lays out what a convolution gives: channels last if either operand is.

    But volumes of float64, for which it has one kernel only.
    """
    if x.ndim == 5 and x.dtype is torch.float64:
        return torch.contiguous_format
    formats = (suggest_memory_format(x), suggest_memory_format(weight))
    return next((f for f in formats if f is not torch.contiguous_format), torch.contiguous_format)
