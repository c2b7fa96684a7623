"""WU of depthwise layers as instructions: taps by channels, on the N:M datapath."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from sat.dataflow.compile.gradient import GradientPlanner
from sat.dataflow.compile.patches import groups_of
from sat.dataflow.compile.shapes import DepthwiseShape, GradientShape
from sat.dataflow.compile.slots import Key, Load, Step
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

    def _positions(self, chunk: int) -> int:
        positions = self.shape.positions
        return min(positions, self.layer.out_positions - chunk * positions)

    def a_loads(self, key: Key) -> list[Load]:
        first_tap, count, chunk = key
        layer, config = self.layer, self.config
        patches = replace(
            self.patches(0, self.first_in, config.max_m),
            tap=layer.dilation,
            taps=layer.kernel,
        )
        lines, pixels = divmod(count, layer.kernel[1])
        line, pixel = divmod(first_tap, layer.kernel[1])
        body = {
            **patches.position(chunk * self.shape.positions),
            "y": patches.start[0] + line * layer.dilation[0],
            "x": patches.start[1] + pixel * layer.dilation[1],
            "taps_y": max(1, lines),
            "taps_x": layer.kernel[1] if lines else pixels,
            "offset": patches.offset,
            "segment_bytes": config.word_bytes,
            "rows": self._positions(chunk),
            "destination": Buffer.A,
            "by_word": 1,
            "copies": 1,
            "words_per_pass": config.rows,
            "stride": self.shape.positions,
            "groups": ceil_div(count, config.rows),
        }
        return [*patches.setup(), (Opcode.GATHER, body)]

    def b_loads(self, key: Key) -> list[Load]:
        column, count, chunk = key
        config = self.config
        loads = self.transposed(self.patches(None, self.first_out, config.max_m), chunk, Buffer.B)
        (_, body) = loads[-1]
        body["rows"] = self._positions(chunk)
        region = self.where["lane_index"]
        index = {
            "address": region.address + column * region.pitch,
            "pitch": region.pitch,
            "rows": count,
            "row_bytes": ceil_div(self._positions(chunk), 2),
            "destination": Buffer.INDEX,
            "stride": self.i_stride,
            "groups": ceil_div(count, config.cols),
        }
        return [*loads, (Opcode.LOAD, index)]

    def steps(self) -> Iterator[Step]:
        config, shape, layer, layout = self.config, self.shape, self.layer, self.layout
        chunks = ceil_div(layer.out_positions, shape.positions)
        region = self.memory.result
        tiles = itertools.product(
            layout.tap_tiles(layer), range(0, self.channels, layout.tile_cols)
        )
        for opened, (taps, column) in enumerate(tiles):
            cols = min(layout.tile_cols, self.channels - column)
            # What a chunk loads: all that any tile needs, or what this one does.
            rows_key, cols_key = (0, layer.taps), (0, config.max_m)
            row_group, col_group = taps.start // config.rows, column // config.cols
            index_group = col_group
            if not layout.shape.whole:
                rows_key, row_group = (taps.start, len(taps)), 0
                cols_key = (column, min(layout.tile_cols, config.max_m - column))
                index_group = 0
            # The sums of a tile stay in the array; a further tile goes over the chunks again.
            for chunk in range(chunks):
                first, last = chunk == 0, chunk == chunks - 1
                store = {
                    "address": region.address
                    + taps.start * region.pitch
                    + 4 * (self.first_out + column),
                    "pitch": region.pitch,
                    "rows": len(taps),
                    "row_bytes": 4 * cols,
                    "stride": self.sum_width(),
                    "check": 1,
                }
                yield Step(
                    a=(*rows_key, chunk),
                    b=(*cols_key, chunk),
                    body={
                        **self.common(),
                        "dataflow": Dataflow.OS,
                        "start": Start.ZERO if first else Start.KEEP,
                        "emit": int(last),
                        "split": shape.split,
                        "words": self._positions(chunk),
                        "values": 1,
                        "last": 1,
                        "a_base": row_group * shape.positions,
                        "a_stride": shape.positions,
                        "b_base": col_group * self.chunk_words,
                        "b_stride": self.chunk_words,
                        "i_base": index_group * self.i_stride,
                        "i_stride": self.i_stride,
                    },
                    output=opened,
                    opens=first,
                    stores=[store] if last else [],
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
class DepthwiseProduct:
    """WU of a word of depthwise channels: the first of them."""

    layer: Layer
    where: LayerMemory
    first: int

    @property
    def config(self) -> SatConfig:
        return self.where.config

    @property
    def key(self) -> Hashable:
        """All words are mapped alike."""
        return "wu", self.layer

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

    def planner(self, mapping: DepthwiseShape) -> GradientPlanner:
        """Return the plan under a mapping."""
        return _DepthwisePlanner(self.layer, self.where, mapping, self.first)


def depthwise_gradient(layer: Layer, where: LayerMemory) -> list[DepthwiseProduct]:
    """Return the products of a depthwise layer's WU; infinite and NaN sums are counted."""
    return [DepthwiseProduct(layer, where, first) for first, _, _ in groups_of(layer, where)]
