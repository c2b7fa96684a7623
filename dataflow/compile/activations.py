"""FF and BP as instructions: products of gathered patches and a pruned copy of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from sat.dataflow.compile.choose import fewest_cycles
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.output_stationary import OsPlanner
from sat.dataflow.compile.patches import Grid, Patches, groups_of, one_after_another
from sat.dataflow.compile.slots import Key, Load
from sat.dataflow.layers import Layer, LayerMemory, Packing, Region
from sat.dataflow.mapping import OsMapping, ceil_div, os_mappings
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Format, Instruction, Opcode
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums: rows of pixels in ``result``, from byte ``offset`` on.

    Parameters
    ----------
    result : Region
        FP16 pixels.
    column : int
        Channel of the product's first column.
    grid : Grid
        Where the product's rows lie.
    relu : bool
    out_mask, in_mask : Region or None
        The mask that is written; that is applied.
    """

    result: Region
    column: int
    grid: Grid
    relu: bool = False
    out_mask: Region | None = None
    in_mask: Region | None = None


class _PatchPlanner(OsPlanner):
    """A product whose A is gathered from pixels and whose sums become pixels."""

    def __init__(
        self,
        product: Product,
        config: SatConfig,
        mapping: OsMapping,
        memory: MemoryMap,
        patches: Patches,
        offsets: tuple[int, ...],
        epilogue: Epilogue,
    ):
        super().__init__(product, config, mapping, memory, offsets)
        self.patches, self.epilogue = patches, epilogue

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        row, row_end = self.row_tile(tile)
        first = chunk * self.mapping.chunk_words
        end = min(first + self.mapping.chunk_words, self.words)
        loads = self.patches.setup()
        for word, fields in self.patches.words(first, end, self.config.word_bytes):
            body = {
                **self.patches.position(row),
                **fields,
                "rows": row_end - row,
                "destination": Buffer.A,
                "base": word - first,
                "stride": self.mapping.chunk_words,
                "groups": ceil_div(row_end - row, self.config.rows),
            }
            loads.append((Opcode.GATHER, body))
        return loads

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        first, end = super().chunk_values(chunk)
        if len(self.offsets) == 1:
            return self.offsets[0] + first, self.offsets[0] + end
        # Taps lie apart, each a whole number of chunks.
        tap, part = divmod(chunk, self.chunks // len(self.offsets))
        begin = self.offsets[tap] + part * (end - first)
        return begin, begin + end - first

    def _mask_place(self, col_tile: int) -> tuple[int, int]:
        """Return a tile's first byte in a pixel's mask, and its bytes."""
        col, col_end = self.column_tile(col_tile)
        cols, size = self.config.cols, self.config.mask_bytes
        word, column = divmod(self.epilogue.column + col, cols)
        count = col_end - col
        # Depthwise channels come a word of A at a time, which may be a part of a mask word.
        size_wanted = 1 if count <= min(8, cols) else ceil_div(count, cols) * size
        return word * size + column // 8, size_wanted

    def masks(self, row_tile: int, col_tile: int) -> list[Load]:
        region = self.epilogue.in_mask
        if region is None:
            return []
        row, row_end = self.row_tile(row_tile)
        byte, size = self._mask_place(col_tile)
        loads: list[Load] = []
        for begin, count, pixel, step in self.epilogue.grid.runs(row, row_end):
            body = {
                "address": region.address + pixel * region.pitch + byte,
                "pitch": step * region.pitch,
                "rows": count,
                "row_bytes": size,
                "destination": Buffer.MASK,
                "base": (begin - row) * self.sum_width(),
                "stride": self.sum_width(),
                "groups": count,
            }
            loads.append((Opcode.LOAD, body))
        return loads

    def stores(self, row_tile: int, col_tile: int) -> list[dict[str, Any]]:
        epilogue = self.epilogue
        row, row_end = self.row_tile(row_tile)
        col, col_end = self.column_tile(col_tile)
        byte, size = self._mask_place(col_tile)
        made = []
        for begin, count, pixel, step in epilogue.grid.runs(row, row_end):
            place = {
                "rows": count,
                "base": (begin - row) * self.sum_width(),
                "stride": self.sum_width(),
            }
            result, mask = epilogue.result, epilogue.out_mask
            at = result.address + pixel * result.pitch + 2 * (epilogue.column + col)
            made.append(
                {
                    **place,
                    "address": at,
                    "pitch": step * result.pitch,
                    "row_bytes": 2 * (col_end - col),
                    "format": Format.FP16,
                    "relu": int(epilogue.relu),
                    "masked": int(epilogue.in_mask is not None),
                }
            )
            if mask is not None:
                made.append(
                    {
                        **place,
                        "address": mask.address + pixel * mask.pitch + byte,
                        "pitch": step * mask.pitch,
                        "row_bytes": size,
                        "format": Format.MASK,
                    }
                )
        return made


@dataclass(frozen=True)
class _Weights:
    """A pruned copy as B: its rows are the product's columns.

    ``taps`` are the taps that the product uses, in the order of the copy; ``segment`` is the
    values from one tap to the next, ``kept`` those that a tap stores.
    """

    values: Region
    indices: Region | None
    first_row: int
    packing: Packing
    taps: tuple[int, ...]
    segment: int

    def offsets(self) -> tuple[int, ...]:
        """Return where values start: one number if the taps follow each other, else one a tap."""
        first = self.taps[0]
        together = self.taps == tuple(range(first, first + len(self.taps)))
        if together and (self.segment == self.packing.kept or len(self.taps) == 1):
            return (first * self.segment,)
        return tuple(tap * self.segment for tap in self.taps)

    def rows(self, region: Region | None) -> Region | None:
        if region is None:
            return None
        return replace(region, address=region.address + self.first_row * region.pitch)


def _patch_product(
    config: SatConfig,
    memory: MemoryTiming,
    patches: Patches,
    weights: _Weights,
    columns: int,
    epilogue: Epilogue,
    bias: Region | None,
) -> list[Instruction]:
    """Return the product of patches and weights under the mapping that is fastest."""
    packing = weights.packing
    per_tap = patches.segment // config.word_bytes
    product = Product(
        patches.images * patches.size[0] * patches.size[1],
        columns,
        len(weights.taps) * packing.channels,
        packing.n,
        packing.m,
        StartShape.ZERO if bias is None else StartShape.ROW,
    )
    offsets = weights.offsets()
    if len(offsets) == 1:
        mappings = os_mappings(product, config, offsets)
    else:
        # A chunk lies within a tap, and all are of one size; a word fits every device's buffers.
        sizes = (size for size in range(per_tap, 0, -1) if per_tap % size == 0)
        mappings = next(
            found for size in sizes if (found := os_mappings(product, config, offsets, size))
        )
    values = weights.rows(weights.values)
    assert values is not None
    nowhere = Region(0, 0, 1, 1)
    where = MemoryMap(
        nowhere, nowhere, values, weights.rows(weights.indices), bias, epilogue.result
    )

    def emit(product: Product, mapping: OsMapping) -> list[Instruction]:
        planner = _PatchPlanner(product, config, mapping, where, patches, offsets, epilogue)
        return planner.emit()

    return fewest_cycles(product, config, memory, mappings, emit)


def forward(layer: Layer, where: LayerMemory, memory: MemoryTiming) -> list[Instruction]:
    """Return FF: y = [ReLU](bias + x * w), and ReLU's mask."""
    packing = where.ff
    made: list[list[Instruction]] = []
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
        weights = _Weights(
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
        made.append(_patch_product(where.config, memory, patches, weights, columns, epilogue, bias))
    return one_after_another(made)


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


def backward(layer: Layer, where: LayerMemory, memory: MemoryTiming) -> list[Instruction]:
    """Return BP: dx = [mask *] (dy * w, transposed)."""
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
    made: list[list[Instruction]] = []
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
                    made.append(_zeros(layer, where.config, epilogue, columns))
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
                weights = _Weights(
                    where[name],
                    where.regions.get(f"{name}_index"),
                    first_in,
                    packing,
                    taps,
                    1 if layer.depthwise else packing.segment,
                )
                made.append(
                    _patch_product(where.config, memory, patches, weights, columns, epilogue, None)
                )
    return one_after_another(made)


def _zeros(layer: Layer, config: SatConfig, epilogue: Epilogue, columns: int) -> list[Instruction]:
    """Return STOREs of zeros for input positions that no tap meets."""
    grid, result = epilogue.grid, epilogue.result
    # A STORE names sums that are there, though it reads none: two zeros for each.
    widest = 2 * config.cols * config.sum_words
    made = []
    for begin, count, pixel, step in grid.runs(0, layer.batch * grid.size[0] * grid.size[1]):
        for column in range(0, columns, widest):
            width = min(widest, columns - column)
            stride = ceil_div(2 * width, 4 * config.cols)
            most = config.sum_words // stride
            for first in range(begin, begin + count, most):
                at = result.address + (pixel + (first - begin) * step) * result.pitch
                body = {
                    "address": at + 2 * (epilogue.column + column),
                    "pitch": step * result.pitch,
                    "rows": min(most, begin + count - first),
                    "row_bytes": 2 * width,
                    "format": Format.ZERO,
                    "stride": stride,
                }
                made.append(Instruction(Opcode.STORE, body))
    return made
