"""The rules of docs/numerics.md once more, number by number: loops that share no code with SAT.

Slow, and meant to be: one multiplication and one addition at a time, each rounded by numpy's
scalars. Arrays are only what numbers lie in.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

F16, F32 = np.float16, np.float32
QUIET = np.array(0x7FC00000, np.uint32).view(F32)[()]


def _plain(x):
    return QUIET if math.isnan(x) else x


def fold(start, pairs):
    """Return start + a0 * b0 + a1 * b1 + …, from the left, each sum rounded to FP32."""
    total = F32(start)
    with np.errstate(all="ignore"):
        for a, b in pairs:
            total = F32(total + F32(a) * F32(b))
    return _plain(total)


def half(x):
    """Return an FP32 number as FP16, to nearest even."""
    with np.errstate(all="ignore"):
        return F16(_plain(x))


def chosen(group, n):
    """Return, in ascending order, the indices of the n numbers that pruning keeps."""

    def weight(i):
        return (math.inf, 1) if math.isnan(group[i]) else (abs(float(group[i])), 0)

    best = []
    for _ in range(min(n, len(group))):
        left = [i for i in range(len(group)) if i not in best]
        top = left[0]
        for i in left[1:]:
            if weight(i) > weight(top):
                top = i
        best.append(top)
    return sorted(best)


def kept(line, n, m):
    """Return, in ascending order, the indices that N:M pruning keeps of a line of numbers."""
    if m == 1:
        return list(range(len(line)))
    return [
        first + i for first in range(0, len(line), m) for i in chosen(line[first : first + m], n)
    ]


def product(a, b, n, m, start):
    """Return start + a * b, b pruned along its depth; start is a matrix or 0."""
    rows, cols = len(a), b.shape[1]
    result = np.empty((rows, cols), F32)
    for col in range(cols):
        depth = kept(b[:, col], n, m)
        for row in range(rows):
            first = start[row, col] if np.ndim(start) else start
            result[row, col] = fold(first, ((a[row, k], b[k, col]) for k in depth))
    return result


class LayerStep:
    """A training step of a layer; attributes are what it leaves: y, mask, dx, g, w, v.

    Parameters
    ----------
    layer : sat.sim.layer.Layer
        Read as a record.
    rates : dict of str to float
        learning_rate, momentum, weight_decay, sr_ste, loss_scale.
    """

    def __init__(self, layer, rates, *, x, dy, w, v, bias, in_mask):
        self.layer = layer
        h = np.array([half(value) for value in w.ravel()], F16).reshape(w.shape)
        # Which weights each direction keeps: along input channels, along output channels.
        self.ff_kept, self.bp_kept = np.zeros(w.shape, bool), np.zeros(w.shape, bool)
        outs, ins = layer.out_channels // layer.groups, w.shape[3]
        for ky, kx in itertools.product(*map(range, layer.kernel)):
            for out in range(layer.out_channels):
                self.ff_kept[out, ky, kx, kept(h[out, ky, kx], *layer.ff)] = True
            for group, i in itertools.product(range(layer.groups), range(ins)):
                column = h[group * outs : (group + 1) * outs, ky, kx, i]
                picked = [group * outs + o for o in kept(column, *layer.bp)]
                self.bp_kept[picked, ky, kx, i] = True
        self._forward(x, h, bias)
        self._backward(dy, h, in_mask)
        self._gradient(x, dy)
        self.w, self.v = w.copy(), v.copy()
        self.skipped = not np.isfinite(self.g).all()
        if not self.skipped:
            self._update(rates)

    def _source(self, axis, position, tap):
        layer = self.layer
        return position * layer.stride[axis] - layer.padding[axis] + tap * layer.dilation[axis]

    def _forward(self, x, h, bias):
        layer = self.layer
        ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        shape = (layer.batch, *layer.out_size, layer.out_channels)
        self.y, self.mask = np.empty(shape, F16), np.empty(shape, bool)
        for b, oy, ox, out in np.ndindex(*shape):
            pairs = []
            for ky, kx, i in np.ndindex(*h.shape[1:]):
                if self.ff_kept[out, ky, kx, i]:
                    iy, ix = self._source(0, oy, ky), self._source(1, ox, kx)
                    inside = 0 <= iy < layer.lines and 0 <= ix < layer.pixels
                    value = x[b, iy, ix, out // outs * ins + i] if inside else F16(0)
                    pairs.append((value, h[out, ky, kx, i]))
            y = half(fold(bias[out] if layer.bias else 0, pairs))
            self.mask[b, oy, ox, out] = not y <= 0
            self.y[b, oy, ox, out] = F16(0) if layer.relu and y <= 0 else y

    def _backward(self, dy, h, in_mask):
        layer = self.layer
        ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        shape = (layer.batch, layer.lines, layer.pixels, layer.in_channels)
        self.dx = np.empty(shape, F16)
        for b, iy, ix, channel in np.ndindex(*shape):
            group, i = divmod(channel, ins)
            pairs = []
            for ky, kx, o in np.ndindex(*layer.kernel, outs):
                out = group * outs + o
                from_y = iy + layer.padding[0] - ky * layer.dilation[0]
                from_x = ix + layer.padding[1] - kx * layer.dilation[1]
                if from_y % layer.stride[0] or from_x % layer.stride[1]:
                    continue
                if not self.bp_kept[out, ky, kx, i]:
                    continue
                oy, ox = from_y // layer.stride[0], from_x // layer.stride[1]
                inside = 0 <= oy < dy.shape[1] and 0 <= ox < dy.shape[2]
                pairs.append((dy[b, oy, ox, out] if inside else F16(0), h[out, ky, kx, i]))
            dx = half(fold(0, pairs))
            dropped = layer.masked and not in_mask[b, iy, ix, channel]
            self.dx[b, iy, ix, channel] = F16(0) if dropped else dx

    def _gradient(self, x, dy):
        layer = self.layer
        ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        self.g = np.empty((layer.out_channels, *layer.kernel, ins), F32)
        places = list(np.ndindex(*dy.shape[:3]))
        # Which positions each output channel keeps.
        stays = [[places[p] for p in kept(one, *layer.wu)] for one in dy.reshape(len(places), -1).T]
        for out, ky, kx, i in np.ndindex(*self.g.shape):
            pairs = []
            for b, oy, ox in stays[out]:
                iy, ix = self._source(0, oy, ky), self._source(1, ox, kx)
                inside = 0 <= iy < layer.lines and 0 <= ix < layer.pixels
                value = x[b, iy, ix, out // outs * ins + i] if inside else F16(0)
                pairs.append((dy[b, oy, ox, out], value))
            self.g[out, ky, kx, i] = fold(0, pairs)

    def _update(self, rates):
        rate, momentum, decay = (
            F32(rates[name]) for name in ("learning_rate", "momentum", "weight_decay")
        )
        pruned_decay = F32(rates["weight_decay"] + rates["sr_ste"])
        unscale = F32(1 / rates["loss_scale"])
        for at in np.ndindex(*self.w.shape):
            w, d = self.w[at], F32(self.g[at] * unscale)
            own = decay if self.ff_kept[at] else pruned_decay
            if own:
                d = F32(d + F32(own * w))
            if momentum:
                d = F32(F32(momentum * self.v[at]) + d)
            self.v[at], self.w[at] = d, F32(w + F32(-rate * d))
