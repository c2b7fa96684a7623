"""FF and BP as instructions: products of gathered patches and a pruned copy of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from sat.dataflow.columns import Field, Words, encode, spread
from sat.dataflow.compile.convolution import PatchProduct, Weights
from sat.dataflow.compile.epilogue import Epilogue
from sat.dataflow.compile.patches import Grid, Patches, groups_of
from sat.dataflow.layers import Layer, LayerMemory
from sat.dataflow.mapping import ceil_div
from sat.rtl.config import SatConfig
from sat.rtl.isa import Format, Opcode


def forward(layer: Layer, where: LayerMemory) -> list[PatchProduct]:
    """Return the products of FF: y = [ReLU](bias + x * w), and ReLU's mask."""
    packing = where.ff
    made = []
    for first_in, first_out, columns in groups_of(layer, where):
        patches = Patches(
            where["x"],
            layer.batch,
            (layer.lines, layer.pixels),
            layer.out_size,
            (-layer.padding[0], -layer.padding[1]),
            layer.stride,
            layer.dilation,
            layer.kernel,
            2 * first_in,
            2 * packing.channels,
        )
        weights = Weights(
            where["ff"],
            where.regions.get("ff_index"),
            first_out,
            packing,
            tuple(range(layer.taps)),
            1 if layer.depthwise else packing.segment,
        )
        bias = None
        if layer.bias:
            bias = replace(where["bias"], address=where["bias"].address + 4 * first_out, pitch=0)
        epilogue = Epilogue(
            where["y"],
            first_out,
            Grid.all(layer.out_size),
            layer.relu,
            where.regions.get("out_mask"),
        )
        made.append(PatchProduct(where.config, patches, weights, columns, epilogue, bias))
    return made


@dataclass(frozen=True)
class _Phase:
    """Along one axis: input positions ``first``, ``first + stride``, … and the taps they meet.

    The source of tap ``taps[0]`` at the first of them is ``start``; every further tap is ``tap``
    on, every further position one on.
    """

    first: int
    count: int
    taps: tuple[int, ...]
    start: int
    tap: int


def phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    """Return the input positions of a convolution by what they meet in BP.

    Input position p meets tap k where (p + padding - k * dilation) is a multiple of the stride.
    """
    made = []
    for first in range(min(stride, size)):
        taps = tuple(k for k in range(kernel) if (first + padding - k * dilation) % stride == 0)
        start = (first + padding - taps[0] * dilation) // stride if taps else 0
        step = dilation // math.gcd(dilation, stride)
        made.append(_Phase(first, ceil_div(size - first, stride), taps, start, -step))
    return made


def backward(layer: Layer, where: LayerMemory) -> tuple[list[Words], list[PatchProduct]]:
    """Return STOREs of zeros and the products of BP: dx = [mask *] (dy * w, transposed)."""
    packing = where.bp
    lines, pixels = (
        phases(
            (layer.lines, layer.pixels)[axis],
            layer.kernel[axis],
            layer.stride[axis],
            layer.padding[axis],
            layer.dilation[axis],
        )
        for axis in range(2)
    )
    made: list[PatchProduct] = []
    zeros: list[Words] = []
    for first_in, first_out, _ in groups_of(layer, where):
        columns = min(
            where.config.max_m if layer.depthwise else layer.in_per_group,
            layer.in_channels - first_in,
        )
        for y in lines:
            for x in pixels:
                grid = Grid(
                    (y.count, x.count),
                    (y.first, x.first),
                    layer.stride,
                    (layer.lines, layer.pixels),
                )
                epilogue = Epilogue(
                    where["dx"], first_in, grid, in_mask=where.regions.get("in_mask")
                )
                taps = tuple(ty * layer.kernel[1] + tx for ty in y.taps for tx in x.taps)
                if not taps:
                    zeros.append(_zeros(layer, where.config, epilogue, columns))
                    continue
                patches = Patches(
                    where["dy"],
                    layer.batch,
                    layer.out_size,
                    grid.size,
                    (y.start, x.start),
                    (1, 1),
                    (y.tap, x.tap),
                    (len(y.taps), len(x.taps)),
                    2 * first_out,
                    2 * packing.channels,
                )
                name = "ff" if layer.depthwise else "bp"
                weights = Weights(
                    where[name],
                    where.regions.get(f"{name}_index"),
                    first_in,
                    packing,
                    taps,
                    1 if layer.depthwise else packing.segment,
                )
                made.append(PatchProduct(where.config, patches, weights, columns, epilogue))
    return zeros, made


def _zeros(layer: Layer, config: SatConfig, epilogue: Epilogue, columns: int) -> Words:
    """Return STOREs of zeros for input positions that no tap meets."""
    grid, result = epilogue.grid, epilogue.result
    # A STORE names sums that are there, though it reads none: two zeros for each.
    widest = 2 * config.cols * config.sum_words
    whole = np.array([0]), np.array([layer.batch * grid.size[0] * grid.size[1]])
    runs = grid.runs(*whole)
    # Of each run its columns, cut to what a STORE takes, and its rows.
    across = -(-columns // widest)
    run, column = np.divmod(np.arange(len(runs.owner) * across), across)
    column = column * widest
    width = np.minimum(widest, columns - column)
    stride = -(-2 * width // (4 * config.cols))
    most = config.sum_words // stride
    owner, part = spread(-(-runs.size[run] // most))
    run, column, width, stride, most = (x[owner] for x in (run, column, width, stride, most))
    first = part * most
    pixel = runs.pixel[run] + first * runs.apart[run]
    fields: dict[str, Field] = {
        "address": result.address + pixel * result.pitch + 2 * (epilogue.column + column),
        "pitch": runs.apart[run] * result.pitch,
        "rows": np.minimum(most, runs.size[run] - first),
        "row_bytes": 2 * width,
        "format": Format.ZERO,
        "stride": stride,
    }
    return encode(Opcode.STORE, len(owner), fields)
