"""Golden model of a layer's training step: FF, BP, WU, update, apart from any program.

Contraction order, which fixes the bits (`docs/numerics.md`): FF sums over kernel lines, kernel
pixels, input channels; BP over the same taps, then output channels; WU over images, output lines,
output pixels, of which its pattern leaves some out, for each output channel by itself. A tap off
the image multiplies +0; taps that the stride skips in BP do not exist.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sat.sim.golden import sore, stce
from sat.sim.golden.update import Rates, narrow, non_finite, sgd
from sat.sim.layer import Layer

Met = tuple[int, ...]


def _compact(b: np.ndarray, n: int, m: int) -> np.ndarray | stce.NMOperand:
    """Return a (depth, cols) float16 matrix pruned along its depth."""
    if m == 1:
        return np.ascontiguousarray(b)
    values, indices = sore.select(np.ascontiguousarray(b), n, m, axis=0)
    return stce.NMOperand(values, indices, (n, m), b.shape[0])


def _taps(layer: Layer) -> Iterator[tuple[int, int]]:
    for y in range(layer.kernel[0]):
        for x in range(layer.kernel[1]):
            yield y, x


def _at_taps(layer: Layer, x: np.ndarray) -> Iterator[np.ndarray]:
    """Yield x at each tap of all output positions, (positions, channels), +0 outside the image."""
    (lines, pixels), (above, left) = x.shape[1:3], layer.padding
    padded = np.zeros((len(x), lines + 2 * above, pixels + 2 * left, x.shape[3]), x.dtype)
    padded[:, above : above + lines, left : left + pixels] = x
    size = layer.out_size
    for tap in _taps(layer):
        first = [tap[axis] * layer.dilation[axis] for axis in range(2)]
        spans = [
            slice(first[axis], first[axis] + layer.stride[axis] * (size[axis] - 1) + 1,
                  layer.stride[axis])
            for axis in range(2)
        ]  # fmt: skip
        yield np.ascontiguousarray(padded[:, spans[0], spans[1]].reshape(-1, x.shape[-1]))


def forward(layer: Layer, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return FF's sums.

    Parameters
    ----------
    x : (batch, lines, pixels, in_channels) float16
    w : (out_channels, kernel lines, kernel pixels, in_channels / groups) float16, not yet pruned
    bias : (out_channels,) float32 or None

    Returns
    -------
    (batch, out lines, out pixels, out_channels) float32
    """
    at_taps = list(_at_taps(layer, x))
    sums = np.empty((layer.out_positions, layer.out_channels), np.float32)
    for group in range(layer.groups):
        ins, outs = _channels(layer, group)
        a = np.concatenate([at[:, ins] for at in at_taps], axis=1)
        b = _compact(w[outs].reshape(layer.out_per_group, -1).T, *layer.ff)
        start = None if bias is None else np.broadcast_to(bias[outs], sums[:, outs].shape).copy()
        sums[:, outs] = stce.matmul(np.ascontiguousarray(a), b, start)
    return sums.reshape(layer.batch, *layer.out_size, -1)


def _channels(layer: Layer, group: int) -> tuple[slice, slice]:
    ins, outs = layer.in_per_group, layer.out_per_group
    return slice(group * ins, (group + 1) * ins), slice(group * outs, (group + 1) * outs)


def backward(layer: Layer, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return BP's sums.

    Parameters
    ----------
    dy : (batch, out lines, out pixels, out_channels) float16
    w : as for `forward`

    Returns
    -------
    (batch, lines, pixels, in_channels) float32
    """
    sums = np.zeros((layer.batch, layer.lines, layer.pixels, layer.in_channels), np.float32)
    for (taps_y, taps_x), pixels in _met(layer).items():
        if not taps_y or not taps_x:
            continue
        ys, xs = np.array(pixels).T
        sources, weights = [], []
        for ty in taps_y:
            for tx in taps_x:
                sources.append(_source(layer, dy, ys, xs, ty, tx))
                weights.append(w[:, ty, tx])
        for group in range(layer.groups):
            ins, outs = _channels(layer, group)
            a = np.concatenate([source[:, outs] for source in sources], axis=1)
            b = np.concatenate([weight[outs] for weight in weights], axis=0)
            product = stce.matmul(np.ascontiguousarray(a), _compact(b, *layer.bp))
            sums[:, ys, xs, ins] = product.reshape(layer.batch, len(pixels), -1)
    return sums


@functools.lru_cache(maxsize=64)
def _met(layer: Layer) -> dict[tuple[Met, Met], list[tuple[int, int]]]:
    """Return the input positions, (line, pixel), by the kernel lines and pixels that meet them."""
    lines, pixels = (
        [
            tuple(
                k
                for k in range(layer.kernel[axis])
                if (at + layer.padding[axis] - k * layer.dilation[axis]) % layer.stride[axis] == 0
            )
            for at in range(size)
        ]
        for axis, size in enumerate((layer.lines, layer.pixels))
    )
    found: dict[tuple[Met, Met], list[tuple[int, int]]] = {}
    for y, met_y in enumerate(lines):
        for x, met_x in enumerate(pixels):
            found.setdefault((met_y, met_x), []).append((y, x))
    return found


def _source(
    layer: Layer, dy: np.ndarray, ys: np.ndarray, xs: np.ndarray, tap_y: int, tap_x: int
) -> np.ndarray:
    """Return dy where a tap leads from input pixels, (batch * pixels, channels)."""
    y = (ys + layer.padding[0] - tap_y * layer.dilation[0]) // layer.stride[0]
    x = (xs + layer.padding[1] - tap_x * layer.dilation[1]) // layer.stride[1]
    inside = (y >= 0) & (y < dy.shape[1]) & (x >= 0) & (x < dy.shape[2])
    found = np.zeros((dy.shape[0], len(ys), dy.shape[3]), np.float16)
    found[:, inside] = dy[:, y[inside], x[inside]]
    return found.reshape(-1, dy.shape[3])


def gradient(layer: Layer, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Return WU's sums.

    Parameters
    ----------
    x, dy : as for `forward` and `backward`

    Returns
    -------
    (out_channels, kernel lines, kernel pixels, in_channels / groups) float32
    """
    positions = dy.reshape(-1, layer.out_channels)
    sums = np.empty((layer.out_channels, *layer.kernel, layer.in_per_group), np.float32)
    at_taps = dict(zip(_taps(layer), _at_taps(layer, x), strict=True))
    for group in range(layer.groups):
        ins, outs = _channels(layer, group)
        compact = _compact(positions[:, outs], *layer.wu)
        for tap, at in at_taps.items():
            product = stce.matmul(np.ascontiguousarray(at[:, ins].T), compact)
            sums[outs, tap[0], tap[1]] = product.T
    return sums


def kept(layer: Layer, w: np.ndarray) -> np.ndarray:
    """Return which weights FF keeps: bool, of the shape of ``w``, (out, …, in) float16."""
    return sore.mask(w, *layer.ff, axis=w.ndim - 1)


def outputs(
    layer: Layer, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return y as FF leaves it, float16, and where ReLU lets it through; as for `forward`."""
    y = narrow(forward(layer, x, w, bias if layer.bias else None))
    mask = ~(y <= 0)
    return (np.where(mask, y, np.float16(0)) if layer.relu else y), mask


def input_gradients(
    layer: Layer, dy: np.ndarray, w: np.ndarray, in_mask: np.ndarray | None
) -> np.ndarray:
    """Return dx as BP leaves it, float16; as for `backward`, and the mask of a masked layer."""
    dx = narrow(backward(layer, dy, w))
    if not layer.masked:
        return dx
    if in_mask is None:
        raise ValueError("in_mask is missing: a masked layer needs the mask of its input")
    return np.where(in_mask, dx, np.float16(0))


def updated(
    layer: Layer,
    rates: Rates,
    w: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    skip: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return w and v after the update, float32; as they were if it is skipped."""
    if skip:
        return w.copy(), v.copy()
    return sgd(w, v, g, ~kept(layer, narrow(w)), rates)


@dataclass(frozen=True)
class Step:
    """What a training step of a layer gives.

    Attributes
    ----------
    y, dx : float16, of the output's and the input's shape
    mask : bool, of the output's shape
        Where ReLU lets through: y, before it, above 0 or NaN.
    g, w, v : (out_channels, kernel lines, kernel pixels, in_channels / groups) float32
        Gradient, new weights, new momenta.
    non_finite : int
        Gradients that are infinite or NaN; if there are any, w and v are the old ones.
    """

    y: np.ndarray
    mask: np.ndarray
    dx: np.ndarray
    g: np.ndarray
    w: np.ndarray
    v: np.ndarray
    non_finite: int


def step(
    layer: Layer,
    rates: Rates,
    *,
    x: np.ndarray,
    dy: np.ndarray,
    w: np.ndarray,
    v: np.ndarray,
    bias: np.ndarray | None = None,
    in_mask: np.ndarray | None = None,
) -> Step:
    """Return a whole training step.

    Parameters
    ----------
    layer : Layer
    rates : Rates
    x, dy : float16
        As for `forward` and `backward`.
    w, v : float32
        As in `Step`, before the update.
    bias : (out_channels,) float32, if the layer has one
    in_mask : bool, of x's shape, if the layer is masked
    """
    halves = narrow(w)
    y, mask = outputs(layer, x, halves, bias)
    dx = input_gradients(layer, dy, halves, in_mask)
    g = gradient(layer, x, dy)
    bad = non_finite(g)
    w, v = updated(layer, rates, w, v, g, skip=bad > 0)
    return Step(y, mask, dx, g, w, v, bad)
