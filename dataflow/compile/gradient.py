"""WU as instructions: the gradient of the weights, from transposed gathers."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.patches import Patches, groups_of
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.shapes import GradientShape
from sat.dataflow.compile.slots import Key, Load, Step
from sat.dataflow.layers import Layer, LayerMemory, Pair, Region
from sat.dataflow.mapping import ceil_div, round_up, slot_count
from sat.dataflow.products import Product
from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class _Axis:
    """How the channels along one side of the gradient are cut into blocks of tiles.

    GATHERs start on a beat of channels, tiles on a bank. So a block is whole beats, or, where its
    tiles are narrower than a beat, beats are cut into blocks that share what is loaded.

    Parameters
    ----------
    channels : int
        Of a group of the layer.
    banks : int
        Rows or columns of the array: channels that lie side by side.
    tile : int
        Channels of a tile, a multiple of ``banks``.
    tiles : int
        The most tiles of a block.
    beat : int
        Channels of a beat.
    """

    channels: int
    banks: int
    tile: int
    tiles: int
    beat: int

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First channel of each block, and the first behind it."""
        channels, span, beat = self.channels, self.tiles * self.tile, self.beat
        if span >= channels:
            return [(0, channels)]
        if span >= beat:
            step = span // beat * beat
            return [(at, min(at + step, channels)) for at in range(0, channels, step)]
        return [
            (at, min(at + span, first + beat, channels))
            for first in range(0, channels, beat)
            for at in range(first, min(first + beat, channels), span)
        ]

    def loaded(self, first: int) -> tuple[int, int]:
        """Return the channels loaded for the block that begins with one: the first, how many."""
        span, start = self.tiles * self.tile, first // self.beat * self.beat
        size = max(self.beat, span if span >= self.channels else span // self.beat * self.beat)
        return start, min(size, self.channels - start)

    @property
    def most_loaded(self) -> int:
        """Channels that the largest block loads, in whole beats."""
        return round_up(self.loaded(0)[1], self.beat)

    @property
    def groups(self) -> int:
        """Words of a bank that a block takes for each word of positions."""
        reach = max(
            round_up(end - first, self.tile) + first - self.loaded(first)[0]
            for first, end in self.blocks
        )
        # Whole beats of channels come, and whole tiles are read.
        return max(ceil_div(self.most_loaded, self.banks), reach // self.banks)

    @property
    def passes(self) -> int:
        """Tiles of all blocks."""
        return sum(ceil_div(end - first, self.tile) for first, end in self.blocks)


def _axes(layer: Layer, config: SatConfig, split: int, tiles: Pair) -> tuple[_Axis, _Axis]:
    """Return the rows and columns of the gradient in blocks of so many tiles."""
    wide = config.interleave >> split, 1 << split
    return (
        _Axis(
            layer.out_per_group, config.rows, config.rows * wide[0], tiles[0], config.granule_halves
        ),
        _Axis(
            layer.in_per_group, config.cols, config.cols * wide[1], tiles[1], config.granule_halves
        ),
    )


class GradientPlanner(Planner):
    """WU: dw[out, tap, in] = sum over positions of dy[position, out] * x[position at tap, in].

    The depth is all positions of the batch, too long for the buffers: a block of tiles stays in
    the output buffer while chunks of positions pass, and every tile adds to its sums chunk by
    chunk. Both operands are gathered transposed, so that positions lie along the words.
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
        rows, cols = layer.out_per_group, layer.in_per_group
        product = Product(rows, cols, layer.out_positions)
        nowhere = Region(0, 0, 1, 1)
        memory = MemoryMap(nowhere, nowhere, nowhere, None, None, where["g"])
        super().__init__(product, config, memory)
        self.layer, self.where, self.shape = layer, where, shape
        self.first_in, self.first_out = first_in, first_out
        s = config.interleave
        self.row_axis, self.col_axis = _axes(
            layer, config, shape.split, (shape.row_tiles, shape.col_tiles)
        )
        self.tile_rows, self.tile_cols = self.row_axis.tile, self.col_axis.tile
        self.chunk_words = ceil_div(shape.positions, config.max_m)
        self.a_slot = self.row_axis.groups * self.chunk_words
        self.b_slot = self.col_axis.groups * self.chunk_words
        self.sum_slot = config.rows * s
        self.outer_blocks = (
            len(self.row_axis.blocks) * len(self.col_axis.blocks) * ceil_div(layer.taps, shape.taps)
        )

    def sum_width(self) -> int:
        return 1 << self.shape.split

    def patches(self, tap: int | None, channel: int, channels: int) -> Patches:
        """Return dy's pixels (no tap) or x's at a tap, from a channel on."""
        layer, where = self.layer, self.where
        segment = round_up(2 * channels, where.config.granule_bytes)
        if tap is None:
            region, image, start, step = where["dy"], layer.out_size, (0, 0), (1, 1)
        else:
            region, image, step = where["x"], (layer.lines, layer.pixels), layer.stride
            place = divmod(tap, layer.kernel[1])
            start = (
                place[0] * layer.dilation[0] - layer.padding[0],
                place[1] * layer.dilation[1] - layer.padding[1],
            )
        return Patches(
            region, layer.batch, image, layer.out_size, start, step, (0, 0), (1, 1), 2 * channel,
            segment,
        )  # fmt: skip

    def transposed(self, patches: Patches, chunk: int, buffer: Buffer) -> list[Load]:
        """Return what gathers a chunk of positions so that they lie along the words."""
        config, positions = self.config, self.shape.positions
        first = chunk * positions
        banks = config.rows if buffer is Buffer.A else config.cols
        body = {
            **patches.position(first),
            "y": patches.start[0],
            "x": patches.start[1],
            "taps_y": 1,
            "taps_x": 1,
            "offset": patches.offset,
            "segment_bytes": patches.segment,
            "rows": min(positions, self.product.depth - first),
            "destination": buffer,
            "transpose": 1,
            "stride": self.chunk_words,
            "groups": ceil_div(patches.segment // 2, banks),
        }
        return [*patches.setup(), (Opcode.GATHER, body)]

    def a_loads(self, key: Key) -> list[Load]:
        row, chunk = key
        _, channels = self.row_axis.loaded(row)
        return self.transposed(self.patches(None, self.first_out + row, channels), chunk, Buffer.A)

    def b_loads(self, key: Key) -> list[Load]:
        tap, col, chunk = key
        _, channels = self.col_axis.loaded(col)
        patches = self.patches(tap, self.first_in + col, channels)
        return self.transposed(patches, chunk, Buffer.B)

    def _gradient_store(self, tap: int, rows: range, cols: range) -> dict[str, Any]:
        region, channels = self.memory.result, self.where.ff.channels
        at = region.address + (self.first_out + rows.start) * region.pitch
        return {
            "address": at + 4 * (tap * channels + cols.start),
            "pitch": region.pitch,
            "rows": len(rows),
            "row_bytes": 4 * len(cols),
            "stride": self.sum_width(),
            "check": 1,
        }

    def _blocks(self) -> Iterator[list[tuple[int, int, int, range, range]]]:
        """Yield the tiles of each block: tap, first channels that are loaded, channels."""
        taps = range(self.layer.taps)
        every = itertools.product(
            self.row_axis.blocks, self.col_axis.blocks, taps[:: self.shape.taps]
        )
        for row_block, col_block, first in itertools.islice(every, self.outer_blocks):
            first_row, _ = self.row_axis.loaded(row_block[0])
            first_col, _ = self.col_axis.loaded(col_block[0])
            yield [
                (tap, first_row, first_col, rows, cols)
                for tap in taps[first : first + self.shape.taps]
                for rows in _cut(row_block, self.tile_rows)
                for cols in _cut(col_block, self.tile_cols)
            ]

    def steps(self) -> Iterator[Step]:
        config, shape, depth = self.config, self.shape, self.product.depth
        chunks = ceil_div(depth, shape.positions)
        opened = 0
        for tiles in self._blocks():
            alone = len(tiles) == 1
            for chunk in range(chunks):
                first, last = chunk == 0, chunk == chunks - 1
                positions = min(shape.positions, depth - chunk * shape.positions)
                words = ceil_div(positions, config.max_m)
                for number, (tap, first_row, first_col, rows, cols) in enumerate(tiles):
                    row_group = (rows.start - first_row) // config.rows
                    col_group = (cols.start - first_col) // config.cols
                    # A tile alone keeps its sums in the array.
                    again = Start.KEEP if alone else Start.OUTPUT
                    yield Step(
                        a=(first_row, chunk),
                        b=(tap, first_col, chunk),
                        body={
                            **self.common(),
                            "dataflow": Dataflow.OS,
                            "start": Start.ZERO if first else again,
                            "emit": int(last or not alone),
                            "split": shape.split,
                            "words": words,
                            "values": self.per_word,
                            "last": positions - (words - 1) * self.per_word,
                            "a_base": row_group * self.chunk_words,
                            "a_stride": self.chunk_words,
                            "b_base": col_group * self.chunk_words,
                            "b_stride": self.chunk_words,
                        },
                        output=opened + number,
                        opens=first,
                        stores=[self._gradient_store(tap, rows, cols)] if last else [],
                        adds=not first and not alone,
                        added=not last and not alone,
                    )
            opened += len(tiles)


def _cut(block: tuple[int, int], size: int) -> Iterator[range]:
    """Yield the channels of a block's tiles."""
    first, end = block
    for at in range(first, end, size):
        yield range(at, min(at + size, end))


def _pixel_cycles(axis: _Axis, config: SatConfig) -> int:
    """Return the cycles in which a block's channels of a pixel come: as many as there are banks."""
    return ceil_div(axis.most_loaded, min(axis.banks, config.axi.beat_bytes // 2))


def _gradient_shapes(layer: Layer, config: SatConfig) -> Iterator[tuple[float, GradientShape]]:
    """Yield shapes that fit the buffers, each with roughly the cycles it takes.

    There always is one: with a tile to a block, and a word of positions, a block's channels take
    at most 16 words of a bank, the least that a bank has.
    """
    s, word, depth = config.interleave, config.max_m, layer.out_positions
    most_positions = isa.field_range(isa.GATHER, "rows").stop - 1
    # Each place may hold sums that nobody has waited for yet (SUMS).
    places = slot_count(config.sum_words, config.rows * s)
    # Chunks of about the same size: a short one at the end would wait for the chain.
    counts = (ceil_div(depth, word << n) for n in range(config.a_words.bit_length()))
    sizes = {round_up(ceil_div(depth, count), word) for count in counts}
    for split in range(s.bit_length()):
        whole = (axis.passes for axis in _axes(layer, config, split, (1, 1)))
        most = tuple(min(places, passes) for passes in whole)
        all_rows = [_axes(layer, config, split, (n, 1))[0] for n in range(1, most[0] + 1)]
        all_cols = [_axes(layer, config, split, (1, n))[1] for n in range(1, most[1] + 1)]
        for rows, cols in itertools.product(all_rows, all_cols):
            if rows.tiles * cols.tiles > places:
                continue
            # Taps of a block share dy.
            most_taps = min(layer.taps, places // (rows.tiles * cols.tiles))
            taps = ceil_div(layer.taps, ceil_div(layer.taps, most_taps))
            row_groups, col_groups = rows.groups, cols.groups
            blocks = len(rows.blocks) * len(cols.blocks)
            passes = rows.passes * cols.passes
            row_beats = _pixel_cycles(rows, config)
            col_beats = _pixel_cycles(cols, config)
            for positions in sizes:
                if min(positions, depth) > most_positions:
                    continue
                a_slot, b_slot = row_groups * positions // word, col_groups * positions // word
                if a_slot > config.a_words or b_slot > config.b_words:
                    continue
                # Loads, stores and the array side by side need two places each.
                alone = 2 * a_slot > config.a_words or 2 * b_slot > config.b_words
                chunks = ceil_div(depth, positions)
                for together in {1, taps}:
                    tiles = rows.tiles * cols.tiles * together
                    shape = GradientShape(split, rows.tiles, cols.tiles, positions, together)
                    # A tile's pass is no shorter than its sums' way through the chain.
                    last = depth - (chunks - 1) * positions
                    short = chunks * (positions < config.rows) + (last < config.rows)
                    compute = s * passes * layer.taps * (depth + short * config.rows)
                    turns = blocks * ceil_div(layer.taps, together)
                    if tiles > 1:
                        # A tile's sums must be back before its next chunk.
                        wait = s * positions + 2 * config.rows * s + 2 * config.cols + 40
                        compute = max(compute, turns * chunks * wait)
                    loads = depth * (turns * row_beats + blocks * layer.taps * col_beats)
                    first = positions * (row_beats + col_beats) + chunks * blocks * 8
                    cycles = compute + loads if alone else max(compute, loads)
                    if 2 * tiles > places > 1:
                        cycles += turns * tiles * config.rows * s * 4
                    yield cycles + first, shape


@dataclass(frozen=True)
class GradientProduct:
    """WU of a group of a layer: its first channels."""

    layer: Layer
    where: LayerMemory
    first_in: int
    first_out: int

    @property
    def config(self) -> SatConfig:
        return self.where.config

    @property
    def key(self) -> Hashable:
        """All groups are mapped alike."""
        return "wu", self.layer

    @property
    def least(self) -> int:
        """Cycles that the array needs at the least."""
        macs = self.layer.dense_macs // self.layer.groups
        return ceil_div(macs, self.config.rows * self.config.cols)

    @cached_property
    def _roughly(self) -> dict[GradientShape, float]:
        return {shape: cycles for cycles, shape in _gradient_shapes(self.layer, self.config)}

    def mappings(self) -> list[GradientShape]:
        """Return the mappings worth trying; there is one."""
        return list(self._roughly)

    def estimate(self, mapping: GradientShape, memory: MemoryTiming) -> tuple[float, int]:
        """Return roughly how many cycles a mapping takes, and its positions."""
        return self._roughly[mapping], mapping.positions

    def planner(self, mapping: GradientShape) -> GradientPlanner:
        """Return the plan under a mapping."""
        return GradientPlanner(self.layer, self.where, mapping, self.first_in, self.first_out)


def gradient(layer: Layer, where: LayerMemory) -> list[GradientProduct]:
    """Return the products of WU: g = dy, transposed, * x; infinite and NaN sums are counted."""
    return [
        GradientProduct(layer, where, first_in, first_out)
        for first_in, first_out, _ in groups_of(layer, where)
    ]
