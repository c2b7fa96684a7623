"""WU of depthwise layers as instructions: taps by channels, on the N:M datapath."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.gradient import GradientPlanner, WeightGradient
from sat.dataflow.compile.patches import groups_of
from sat.dataflow.compile.shapes import DepthwiseShape, GradientShape
from sat.dataflow.compile.slots import Steps
from sat.dataflow.layers import Layer, LayerMemory
from sat.dataflow.mapping import ceil_div, round_up, slot_count
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class _Layout:
    """What a `DepthwiseShape` makes of a device's banks."""

    config: SatConfig
    shape: DepthwiseShape

    @property
    def tile_rows(self) -> int:
        return self.config.rows * (self.config.interleave >> self.shape.split)

    @property
    def tile_cols(self) -> int:
        return self.config.cols << self.shape.split

    def tap_tiles(self, layer: Layer) -> list[range]:
        """Return the taps of each tile: a rectangle of the kernel if it is loaded on its own."""
        lines, pixels = layer.kernel
        if self.shape.whole:
            size, step = self.tile_rows, layer.taps
        elif pixels <= self.tile_rows:
            size = self.tile_rows // pixels * pixels
            step = layer.taps
        else:
            size, step = self.tile_rows, pixels
        return [
            range(at, min(at + size, first + step))
            for first in range(0, layer.taps, step)
            for at in range(first, first + step, size)
        ]

    def index_stride(self) -> int:
        """Return the words of an index bank that a column takes."""
        return ceil_div(self.shape.positions, self.config.indices_per_word)

    def slots(self, layer: Layer) -> tuple[int, int, int]:
        """Return the words of A, B and index banks that a chunk takes."""
        config, positions, whole = self.config, self.shape.positions, self.shape.whole
        tile_groups = self.tile_rows // config.rows
        columns = round_up(config.max_m, self.tile_cols) // config.cols
        groups = round_up(layer.taps, self.tile_rows) // config.rows if whole else tile_groups
        return (
            groups * positions,
            columns * ceil_div(positions, config.max_m),
            (columns if whole else 1 << self.shape.split) * self.index_stride(),
        )


class _DepthwisePlanner(GradientPlanner):
    """WU of a word of depthwise channels: dw[tap, channel].

    A's rows are taps, gathered untransposed: a position is a word of channels. B's column c is
    channel c of dy, and the pattern 1:max_m with the constant index c picks it from that word.
    """

    def __init__(self, layer: Layer, where: LayerMemory, shape: DepthwiseShape, first: int):
        super().__init__(
            layer, where, GradientShape(shape.split, 1, 1, shape.positions), first, first
        )
        word = where.config.max_m
        self.layout = _Layout(where.config, shape)
        self.channels = min(word, layer.in_channels - first)
        self.product = Product(layer.taps, self.channels, layer.out_positions * word, 1, word)
        self.per_word = 1
        self.a_slot, self.b_slot, self.i_slot = self.layout.slots(layer)
        self.a_keys = len(self._row_keys) * self.chunks
        self.b_keys = len(self._col_keys) * self.chunks
        self.row_tiles = len(self.layout.tap_tiles(layer))
        self.col_tiles = len(self._columns())

    def a_loads(self, keys: Array) -> list[Block]:
        block, chunk = np.divmod(keys, self.chunks)
        layer, config = self.layer, self.config
        patches = replace(self.pixels(True), tap=layer.dilation, taps=layer.kernel)
        first, count = np.array(self._row_keys)[block].T
        lines, pixels = np.divmod(count, layer.kernel[1])
        y, x = self._start(first)
        positions = self.layout.shape.positions
        fields: dict[str, Field] = {
            **patches.position(chunk * positions),
            "y": y,
            "x": x,
            "taps_y": np.maximum(1, lines),
            "taps_x": np.where(lines > 0, layer.kernel[1], pixels),
            "offset": 2 * self.first_row,
            "segment_bytes": config.word_bytes,
            "rows": self._positions(chunk),
            "destination": Buffer.A,
            "by_word": 1,
            "copies": 1,
            "words_per_pass": config.rows,
            "stride": positions,
            "groups": -(-count // config.rows),
        }
        gathers = Block(Opcode.GATHER, fields, np.arange(len(keys)), 2)
        return [*patches.setup(len(keys)), gathers]

    def b_loads(self, keys: Array) -> list[Block]:
        block, chunk = np.divmod(keys, self.chunks)
        column, count = np.array(self._col_keys)[block].T
        config = self.config
        every = np.full(len(keys), self.first_col)
        word = np.full(len(keys), config.max_m)
        gathers = self.gathers(Buffer.B, every, word, chunk, None)
        region = self.where["lane_index"]
        fields: dict[str, Field] = {
            "address": region.address + column * region.pitch,
            "pitch": region.pitch,
            "rows": count,
            "row_bytes": -(-self._positions(chunk) // 2),
            "destination": Buffer.INDEX,
            "stride": self.i_stride,
            "groups": -(-count // config.cols),
        }
        index = Block(Opcode.LOAD, fields, np.arange(len(keys)), 3)
        return [*self.pixels(False).setup(len(keys)), gathers, index]

    def _positions(self, chunk: Array) -> Array:
        positions = self.layout.shape.positions
        return np.minimum(positions, self.layer.out_positions - chunk * positions)

    def _columns(self) -> range:
        """Return the first channel of each tile."""
        return range(0, self.channels, self.layout.tile_cols)

    @property
    def _row_keys(self) -> list[tuple[int, int]]:
        """What a chunk loads of taps: the first, how many."""
        if self.layout.shape.whole:
            return [(0, self.layer.taps)]
        return [(taps.start, len(taps)) for taps in self.layout.tap_tiles(self.layer)]

    @property
    def _col_keys(self) -> list[tuple[int, int]]:
        """What a chunk loads of the columns' indices: the first, how many."""
        word = self.config.max_m
        if self.layout.shape.whole:
            return [(0, word)]
        return [(at, min(self.layout.tile_cols, word - at)) for at in self._columns()]

    def stores(self, row_tile: Array, col_tile: Array) -> list[Block]:
        region = self.memory.result
        taps = self.layout.tap_tiles(self.layer)
        first = np.array([tile.start for tile in taps])[row_tile]
        column = np.array(self._columns())[col_tile]
        fields: dict[str, Value] = {
            "address": region.address + first * region.pitch + 4 * (self.first_col + column),
            "pitch": region.pitch,
            "rows": np.array([len(tile) for tile in taps])[row_tile],
            "row_bytes": 4 * np.minimum(self.layout.tile_cols, self.channels - column),
            "stride": self.sum_width(),
            "check": 1,
        }
        return [Block(Opcode.STORE, fields, np.arange(len(row_tile)))]

    def steps(self) -> Steps:
        config, layout, layer, chunks = self.config, self.layout, self.layer, self.chunks
        columns, taps = self._columns(), layout.tap_tiles(layer)
        # The sums of a tile stay in the array; a further tile goes over the chunks again.
        output, chunk = np.divmod(np.arange(len(taps) * len(columns) * chunks), chunks)
        row, col = np.divmod(output, len(columns))
        first, last = chunk == 0, chunk == chunks - 1
        a_block, b_block = row, col
        row_group = col_group = index_group = np.zeros_like(row)
        col_group = np.array(columns)[col] // config.cols
        if layout.shape.whole:
            # A chunk loads all that any tile needs, or what this one does.
            a_block = b_block = np.zeros_like(row)
            row_group = np.array([tile.start for tile in taps])[row] // config.rows
            index_group = col_group
        positions = layout.shape.positions
        return Steps(
            a=a_block * chunks + chunk,
            b=b_block * chunks + chunk,
            start=None,
            body={
                **self.common(),
                "dataflow": Dataflow.OS.value,
                "start": np.where(first, Start.ZERO.value, Start.KEEP.value),
                "emit": last.astype(np.int64),
                "split": layout.shape.split,
                "words": self._positions(chunk),
                "values": 1,
                "last": 1,
                "a_base": row_group * positions,
                "a_stride": positions,
                "b_base": col_group * self.col_stride,
                "b_stride": self.col_stride,
                "i_base": index_group * self.i_stride,
                "i_stride": self.i_stride,
            },
            output=output,
            opens=first,
            closes=last,
            row=row,
            col=col,
        )

    @property
    def i_stride(self) -> int:
        return self.layout.index_stride()


def _shape(layer: Layer, config: SatConfig) -> DepthwiseShape:
    """Return the shape with the fewest passes, then the longest chunks, that fits.

    One always does: a tile's taps at one position take ``interleave`` words of A, a word's
    channels at most ``max_m`` of B, the indices of ``cols`` columns one.
    """
    found = []
    longest = round_up(layer.out_positions, config.max_m)
    most = config.a_words.bit_length()
    sizes = [(config.max_m << n, False) for n in range(most)]
    sizes += [(config.max_m >> n, True) for n in range(1, config.max_m.bit_length())]
    for split in range(config.interleave.bit_length()):
        for (positions, short), whole in itertools.product(sizes, (True, False)):
            shape = DepthwiseShape(split, min(positions, longest), whole)
            layout = _Layout(config, shape)
            depths = (config.a_words, config.b_words, config.i_words)
            room = min(map(slot_count, depths, layout.slots(layer)))
            if room:
                passes = len(layout.tap_tiles(layer)) * ceil_div(config.max_m, layout.tile_cols)
                rank = (not whole or short, room == 1, passes, -shape.positions)
                found.append((rank, shape))
    return min(found, key=lambda entry: entry[0])[1]


@dataclass(frozen=True)
class DepthwiseProduct(WeightGradient):
    """WU of a word of depthwise channels: the first of them."""

    first: int

    @property
    def alike(self) -> None:
        """Return None: nobody asked for it yet."""

    @property
    def least(self) -> int:
        """Cycles that the array needs at the least."""
        word = self.config.max_m
        macs = self.layer.out_positions * self.layer.taps * word
        return ceil_div(macs, self.config.rows * self.config.cols)

    def mappings(self) -> list[DepthwiseShape]:
        """Return the one mapping."""
        return [_shape(self.layer, self.config)]

    def estimate(self, mapping: DepthwiseShape, memory: MemoryTiming) -> int:
        """Return any number: there is nothing to rank."""
        return 0

    def floor(self, mapping: DepthwiseShape, memory: MemoryTiming) -> int:
        """Return what the array needs: there is nothing to compare."""
        return self.least

    def planner(self, mapping: DepthwiseShape) -> GradientPlanner:
        """Return the plan under a mapping."""
        return _DepthwisePlanner(self.layer, self.where, mapping, self.first)


def depthwise_gradient(layer: Layer, where: LayerMemory) -> list[DepthwiseProduct]:
    """Return the products of a depthwise layer's WU; infinite and NaN sums are counted."""
    return [DepthwiseProduct(layer, where, first) for first, _, _ in groups_of(layer, where)]
