"""WU as instructions: the gradient of the weights, from transposed gathers."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.gradient_shapes import (
    Chunks,
    TapLoads,
    axes,
    chunk_words,
    gradient_shapes,
    group_strides,
    kept_of,
    last_channels,
    least_cycles,
    prunes,
    slot_words,
)
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.patches import Patches, groups_of
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.shapes import GradientShape
from sat.dataflow.compile.slots import Steps
from sat.dataflow.floor import floor_cycles, os_drain, stored_cycles
from sat.dataflow.layers import Layer, LayerMemory, Region
from sat.dataflow.mapping import ceil_div, round_up
from sat.dataflow.products import Product
from sat.rtl.config import INDICES_TOGETHER, SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start
from sat.sim.memory import MemoryTiming


class GradientPlanner(Planner):
    """WU: dw[out, tap, in] = sum over positions of dy[position, out] * x[position at tap, in].

    The depth is all positions of the batch, too long for the buffers: a block of tiles stays in
    the output buffer while chunks of positions pass, and every tile adds to its sums chunk by
    chunk. Both operands are gathered transposed, so that positions lie along the words.

    Rows are output channels and columns input channels. Where WU prunes it is the other way
    round: dy, pruned by the GATHERs that load it, is the right operand.
    """

    def __init__(
        self,
        layer: Layer,
        where: LayerMemory,
        shape: GradientShape,
        first_in: int,
        first_out: int,
    ):
        config = where.config
        self.prunes = prunes(layer)
        sizes, firsts = (layer.out_per_group, layer.in_per_group), (first_out, first_in)
        if self.prunes:
            sizes, firsts = sizes[::-1], firsts[::-1]
        n, m = layer.wu
        product = Product(*sizes, layer.out_positions, n, m)
        nowhere = Region(0, 0, 1, 1)
        indices = nowhere if self.prunes else None
        memory = MemoryMap(nowhere, nowhere, nowhere, indices, None, where["g"])
        super().__init__(product, config, memory)
        self.layer, self.where, self.shape = layer, where, shape
        self.first_row, self.first_col = firsts
        s, self.split = config.interleave, shape.split
        self.row_axis, self.col_axis = axes(
            layer, config, shape.split, (shape.row_tiles, shape.col_tiles)
        )
        self.tile_rows, self.tile_cols = self.row_axis.tile, self.col_axis.tile
        self.cut = Chunks(layer, shape.positions, shape.lines)
        self.taps = TapLoads.of(layer, config.max_m, shape.lines)
        words = chunk_words(layer, config, self.cut, self.taps)
        groups = self.row_axis.groups, self.col_axis.groups
        strides = group_strides(words, groups, config) if shape.wide else words
        self.row_stride, self.col_stride = strides
        self.a_slot, self.b_slot = map(slot_words, words, groups, strides)
        self.i_slot = ceil_div(self.b_slot, INDICES_TOGETHER)
        self.sum_slot = config.rows * s
        self.chunks = self.cut.count
        self.row_loads = self.row_axis.loads
        self.col_loads = self.col_axis.loads
        # x has a tap, dy is the same for all.
        loads = len(self.taps.first)
        a_taps, b_taps = (loads, 1) if self.prunes else (1, loads)
        self.a_keys = a_taps * len(self.row_loads) * self.chunks
        self.b_keys = b_taps * len(self.col_loads) * self.chunks
        self.row_tiles = self.row_axis.passes * self.col_axis.passes * layer.taps
        self.col_tiles = 1
        self.outer_blocks = (
            len(self.row_axis.blocks) * len(self.col_axis.blocks) * ceil_div(layer.taps, shape.taps)
        )

    def gathers(
        self, into: Buffer, channel: Array, channels: Array, chunk: Array, tap: Array | None
    ) -> Block:
        """Return what gathers chunks of positions so that they lie along the words.

        Parameters
        ----------
        channel, channels : (count,) int64
            The first that is read of a pixel, and how many.
        tap : (count,) int64 or None
            Of x, the load's first; None: dy's pixels.
        """
        config, layer = self.config, self.layer
        first, rows = self.cut.span(chunk)
        y, x = self._start(tap)
        segment = round_up(2 * channels, config.granule_bytes)
        banks, stride = (
            (config.rows, self.row_stride) if into is Buffer.A else (config.cols, self.col_stride)
        )
        if tap is not None:
            rows = rows + self.taps.more * layer.out_size[1]
        # Of a pruned group all positions come: zeros past the last.
        rows = -(-rows // layer.wu[1]) * layer.wu[1]
        fields: dict[str, Field] = {
            **self.pixels(False).position(first),
            "y": y,
            "x": x,
            "taps_y": 1,
            "taps_x": 1,
            "offset": 2 * channel,
            "segment_bytes": segment,
            "rows": rows,
            "destination": into,
            "transpose": 1,
            "stride": stride,
            "groups": -(-(segment // 2) // banks),
        }
        return Block(Opcode.GATHER, fields, np.arange(len(chunk)), 2)

    def _start(self, tap: Array | None) -> tuple[Value, Value]:
        """Return the source of taps at position (0, 0)."""
        if tap is None:
            return 0, 0
        layer = self.layer
        y, x = np.divmod(tap, layer.kernel[1])
        return (
            y * layer.dilation[0] - layer.padding[0],
            x * layer.dilation[1] - layer.padding[1],
        )

    def pixels(self, of_x: bool) -> Patches:
        """Return the pixels of x, or of dy, one tap a position."""
        layer, where = self.layer, self.where
        region, image, step, size = where["dy"], layer.out_size, (1, 1), layer.out_size
        if of_x:
            region, image, step = where["x"], (layer.lines, layer.pixels), layer.stride
            size = size[0] + self.taps.more, size[1]
        return Patches(region, layer.batch, image, size, (0, 0), step, (0, 0), (1, 1), 0, 0)

    def a_loads(self, keys: Array) -> list[Block]:
        return self._loads(Buffer.A, keys, self.row_loads, self.first_row, self.prunes)

    def b_loads(self, keys: Array) -> list[Block]:
        if not self.prunes:
            return self._loads(Buffer.B, keys, self.col_loads, self.first_col, True)
        # A GATHER that prunes has a channel a lane.
        tensor, window = self.pixels(False).setup(len(keys))
        n, m = self.layer.wu
        pattern: dict[str, Field] = {"n": n, "log2_m": m.bit_length() - 1}
        made = [tensor, replace(window, fields={**window.fields, **pattern})]
        block, chunk = np.divmod(keys, self.chunks)
        first, channels = np.array(self.col_loads).T
        together = self.config.b_groups if self.shape.wide else 1
        lanes = together * self.config.cols
        for number in range(ceil_div(self.col_axis.groups, together)):
            (some,) = np.nonzero(channels[block] > number * lanes)
            if not len(some):
                continue
            from_, left = (
                first[block[some]] + number * lanes,
                channels[block[some]] - number * lanes,
            )
            gather = self.gathers(
                Buffer.B, self.first_col + from_, np.minimum(left, lanes), chunk[some], None
            )
            fields = {**gather.fields, "base": number * together * self.col_stride}
            made.append(replace(gather, fields=fields, owner=some, at=2 + number))
        return made

    def _loads(
        self,
        into: Buffer,
        keys: Array,
        loads: list[tuple[int, int]],
        first_channel: int,
        of_x: bool,
    ) -> list[Block]:
        """Return what gathers x at a tap, or dy, as they are."""
        rest, chunk = np.divmod(keys, self.chunks)
        number, block = np.divmod(rest, len(loads))
        first, channels = np.array(loads).T
        tap = self.taps.first[number] if of_x else None
        gathers = self.gathers(into, first_channel + first[block], channels[block], chunk, tap)
        return [*self.pixels(of_x).setup(len(keys)), gathers]

    @cached_property
    def _tiles(self) -> dict[str, Array]:
        """All tiles in order: block, tap, number of what is loaded, channels from, to."""
        taps = self.taps.order
        every = itertools.product(
            self.row_axis.blocks, self.col_axis.blocks, range(0, len(taps), self.shape.taps)
        )
        row_of = {first: number for number, (first, _) in enumerate(self.row_loads)}
        col_of = {first: number for number, (first, _) in enumerate(self.col_loads)}
        made = []
        for block, (rows, cols, first) in enumerate(itertools.islice(every, self.outer_blocks)):
            row = row_of[self.row_axis.loaded(rows[0])[0]]
            col = col_of[self.col_axis.loaded(cols[0])[0]]
            made += [
                (block, tap, row, col, *of_row, *of_col)
                for tap in taps[first : first + self.shape.taps]
                for of_row in _cut(rows, self.tile_rows)
                for of_col in _cut(cols, self.tile_cols)
            ]
        names = ("block", "tap", "row", "col", "row_first", "row_end", "col_first", "col_end")
        return dict(zip(names, np.array(made).T, strict=True))

    def stores(self, row_tile: Array, col_tile: Array) -> list[Block]:
        region, (_, packing) = self.memory.result, self.where.copies[0]
        tap, row, row_end, col, col_end = (
            self._tiles[name][row_tile]
            for name in ("tap", "row_first", "row_end", "col_first", "col_end")
        )
        fields: dict[str, Value] = {
            "address": region.address
            + (self.first_row + row) * region.pitch
            + 4 * (tap * packing.channels + col),
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "stride": self.sum_width(),
            "check": 1,
        }
        return [Block(Opcode.STORE, fields, np.arange(len(row_tile)))]

    def steps(self) -> Steps:
        config, shape, chunks = self.config, self.shape, self.chunks
        tiles = self._tiles
        # Of each block all tiles pass chunk by chunk.
        block = tiles["block"]
        output, chunk = np.divmod(np.arange(len(block) * chunks), chunks)
        order = np.argsort(block[output] * chunks + chunk, kind="stable")
        output, chunk = output[order], chunk[order]
        first, last = chunk == 0, chunk == chunks - 1
        # A tile alone keeps its sums in the array.
        alone = (np.bincount(block) == 1)[block[output]]
        _, positions = self.cut.span(chunk)
        words = -(-positions // config.max_m)
        kept = kept_of(self.layer, positions)
        tap, row, col = (tiles[name][output] for name in ("tap", "row", "col"))
        row_first = np.array([first for first, _ in self.row_loads])
        col_first = np.array([first for first, _ in self.col_loads])
        row_group = (tiles["row_first"][output] - row_first[row]) // config.rows
        col_group = (tiles["col_first"][output] - col_first[col]) // config.cols
        again = np.where(alone, Start.KEEP.value, Start.OUTPUT.value)
        of_x, of_dy = self.taps.number[tap], np.zeros_like(tap)
        a_load, b_load = (of_x, of_dy) if self.prunes else (of_dy, of_x)
        indices = {}
        if self.prunes:
            index_stride = self.col_stride // INDICES_TOGETHER
            indices = {"i_base": col_group * index_stride, "i_stride": index_stride}
        return Steps(
            a=(a_load * len(self.row_loads) + row) * chunks + chunk,
            b=(b_load * len(self.col_loads) + col) * chunks + chunk,
            start=None,
            body={
                **self.common(),
                **indices,
                "dataflow": Dataflow.OS.value,
                "start": np.where(first, Start.ZERO.value, again),
                "emit": (last | ~alone).astype(np.int64),
                "split": shape.split,
                "words": words,
                "values": self.per_word,
                "last": kept - (words - 1) * self.per_word,
                "a_base": row_group * self.row_stride
                + (self.taps.offset[tap] if self.prunes else 0),
                "a_stride": self.row_stride,
                "b_base": col_group * self.col_stride,
                "b_stride": self.col_stride,
            },
            output=output,
            opens=first,
            closes=last,
            row=output,
            col=np.zeros_like(output),
            adds=~first & ~alone,
            added=~last & ~alone,
        )


def _cut(block: tuple[int, int], size: int) -> Iterator[tuple[int, int]]:
    """Yield the channels of a block's tiles: the first, and the first behind them."""
    first, end = block
    for at in range(first, end, size):
        yield at, min(at + size, end)


@dataclass(frozen=True)
class WeightGradient:
    """A part of a layer's WU."""

    layer: Layer
    where: LayerMemory

    @property
    def config(self) -> SatConfig:
        return self.where.config

    @property
    def key(self) -> Hashable:
        """All parts are mapped alike."""
        return "wu", self.layer


@dataclass(frozen=True)
class GradientProduct(WeightGradient):
    """WU of a group of a layer: its first channels."""

    first_in: int
    first_out: int

    @property
    def alike(self) -> Hashable:
        """All that its programs' cycles depend on besides the device: not the weights' patterns."""
        where = self.where
        regions = tuple(where[name].alike(self.config) for name in ("x", "dy", "g"))
        layer = replace(self.layer, ff=(1, 1), bp=(1, 1))
        _, packing = where.copies[0]
        return layer, self.first_in, self.first_out, packing.channels, regions

    @property
    def least(self) -> int:
        """Cycles that the array needs at the least."""
        layer = self.layer
        sums = layer.taps * layer.in_per_group * layer.out_per_group
        macs = sums * int(kept_of(layer, layer.out_positions))
        return ceil_div(macs, self.config.rows * self.config.cols)

    @cached_property
    def _roughly(self) -> dict[GradientShape, float]:
        return {shape: cycles for cycles, shape in gradient_shapes(self.layer, self.config)}

    def mappings(self) -> list[GradientShape]:
        """Return the mappings worth trying; there is one."""
        return list(self._roughly)

    def estimate(self, mapping: GradientShape, memory: MemoryTiming) -> tuple[float, int]:
        """Return roughly how many cycles a mapping takes, and its positions."""
        return self._roughly[mapping], mapping.positions

    def floor(self, mapping: GradientShape, memory: MemoryTiming) -> int:
        """Return cycles that no program goes below under a mapping (`sat.dataflow.floor`)."""
        config, layer = self.config, self.layer
        rows, cols = axes(layer, config, mapping.split, (mapping.row_tiles, mapping.col_tiles))
        cut = Chunks(layer, mapping.positions, mapping.lines)
        taps = TapLoads.of(layer, config.max_m, mapping.lines)
        _, sizes = cut.span(np.arange(cut.count))
        kept = np.asarray(kept_of(layer, sizes))
        first_row, *_ = row_beats = [least_cycles(n, rows, config) for _, n in rows.loads]
        first_col, *_ = col_beats = [least_cycles(n, cols, config) for _, n in cols.loads]
        s, chain = config.interleave, config.rows * config.interleave
        of_x = len(taps.first) * (layer.out_positions + taps.more * cut.count * layer.out_size[1])
        of_rows, of_cols = layer.out_positions, of_x
        if prunes(layer):
            of_rows, of_cols = of_x, of_rows
        tile = int(np.maximum(s * kept, chain).sum())
        return floor_cycles(
            config,
            memory,
            first=int(sizes[0]) * (first_row + first_col),
            array=rows.passes * cols.passes * layer.taps * tile - max(0, chain - s * int(kept[0])),
            loads=of_rows * sum(row_beats) + of_cols * sum(col_beats),
            drain=os_drain(config),
            stored=stored_cycles(last_channels(rows), last_channels(cols), 4, config),
            gathers=True,
        )

    def planner(self, mapping: GradientShape) -> GradientPlanner:
        """Return the plan under a mapping."""
        return GradientPlanner(self.layer, self.where, mapping, self.first_in, self.first_out)


def gradient(layer: Layer, where: LayerMemory) -> list[GradientProduct]:
    """Return the products of WU: g = dy, transposed, * x; infinite and NaN sums are counted."""
    return [
        GradientProduct(layer, where, first_in, first_out)
        for first_in, first_out, _ in groups_of(layer, where)
    ]
