"""WU as instructions: the gradient of the weights, from transposed gathers."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.patches import Patches, groups_of
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.shapes import GradientShape
from sat.dataflow.compile.slots import Steps
from sat.dataflow.floor import floor_cycles, os_drain, read_beats, stored_cycles
from sat.dataflow.layers import Layer, LayerMemory, Pair, Region
from sat.dataflow.mapping import ceil_div, round_up, slot_count
from sat.dataflow.products import Product
from sat.rtl import isa
from sat.rtl.config import INDICES_TOGETHER, SatConfig
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
    def loads(self) -> list[tuple[int, int]]:
        """What is loaded for any block: first channel, how many."""
        return list(dict.fromkeys(self.loaded(first) for first, _ in self.blocks))

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


class _Side(NamedTuple):
    """What shapes are ranked by of an axis."""

    tiles: int
    groups: int
    blocks: int
    passes: int
    pixel_cycles: int

    @classmethod
    def of(cls, axis: _Axis, config: SatConfig) -> _Side:
        cycles = _pixel_cycles(axis, config)
        return cls(axis.tiles, axis.groups, len(axis.blocks), axis.passes, cycles)


def _axes(layer: Layer, config: SatConfig, split: int, tiles: Pair) -> tuple[_Axis, _Axis]:
    """Return the rows and columns of the product in blocks of so many tiles."""
    wide = config.interleave >> split, 1 << split
    outs, ins = layer.out_per_group, layer.in_per_group
    rows, cols = (ins, outs) if _prunes(layer) else (outs, ins)
    return (
        _Axis(rows, config.rows, config.rows * wide[0], tiles[0], config.granule_halves),
        _Axis(cols, config.cols, config.cols * wide[1], tiles[1], config.granule_halves),
    )


def _prunes(layer: Layer) -> bool:
    """Whether dy is pruned: the right operand then, for an array has its N:M operand there."""
    return layer.wu != (1, 1)


def _kept(layer: Layer, positions: Value) -> Value:
    """Return how many of so many positions WU's pattern keeps."""
    n, m = layer.wu
    return positions // m * n + np.minimum(positions % m, n)


def _chunk_words(layer: Layer, config: SatConfig, positions: int) -> Pair:
    """Return the words of a bank of A, and of B, that a channel takes for so many positions."""
    words = ceil_div(positions, config.max_m)
    if not _prunes(layer):
        return words, words
    # What is pruned starts on a word of indices.
    return words, round_up(ceil_div(int(_kept(layer, positions)), config.max_m), INDICES_TOGETHER)


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
        self.prunes = _prunes(layer)
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
        self.row_axis, self.col_axis = _axes(
            layer, config, shape.split, (shape.row_tiles, shape.col_tiles)
        )
        self.tile_rows, self.tile_cols = self.row_axis.tile, self.col_axis.tile
        self.a_words, self.b_words = _chunk_words(layer, config, shape.positions)
        self.a_slot = self.row_axis.groups * self.a_words
        self.b_slot = self.col_axis.groups * self.b_words
        self.i_slot = ceil_div(self.b_slot, INDICES_TOGETHER)
        self.sum_slot = config.rows * s
        self.chunks = ceil_div(layer.out_positions, shape.positions)
        self.row_loads = self.row_axis.loads
        self.col_loads = self.col_axis.loads
        # x has a tap, dy is the same for all.
        a_taps, b_taps = (layer.taps, 1) if self.prunes else (1, layer.taps)
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
            Of x; None: dy's pixels.
        """
        config, layer, positions = self.config, self.layer, self.shape.positions
        first = chunk * positions
        y, x = self._start(tap)
        segment = round_up(2 * channels, config.granule_bytes)
        banks, stride = (
            (config.rows, self.a_words) if into is Buffer.A else (config.cols, self.b_words)
        )
        # Of a pruned group all positions come: zeros past the last.
        rows = np.minimum(positions, round_up(layer.out_positions, layer.wu[1]) - first)
        fields: dict[str, Field] = {
            **self.pixels(tap is not None).position(first),
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
        if of_x:
            region, image, step = where["x"], (layer.lines, layer.pixels), layer.stride
        else:
            region, image, step = where["dy"], layer.out_size, (1, 1)
        return Patches(
            region, layer.batch, image, layer.out_size, (0, 0), step, (0, 0), (1, 1), 0, 0
        )

    def a_loads(self, keys: Array) -> list[Block]:
        return self._loads(Buffer.A, keys, self.row_loads, self.first_row, self.prunes)

    def b_loads(self, keys: Array) -> list[Block]:
        if not self.prunes:
            return self._loads(Buffer.B, keys, self.col_loads, self.first_col, True)
        # A GATHER that prunes has a channel a bank.
        tensor, window = self.pixels(False).setup(len(keys))
        n, m = self.layer.wu
        pattern: dict[str, Field] = {"n": n, "log2_m": m.bit_length() - 1}
        made = [tensor, replace(window, fields={**window.fields, **pattern})]
        block, chunk = np.divmod(keys, self.chunks)
        first, channels = np.array(self.col_loads).T
        cols = self.config.cols
        for group in range(self.col_axis.groups):
            (some,) = np.nonzero(channels[block] > group * cols)
            if not len(some):
                continue
            from_, left = first[block[some]] + group * cols, channels[block[some]] - group * cols
            gather = self.gathers(
                Buffer.B, self.first_col + from_, np.minimum(left, cols), chunk[some], None
            )
            fields = {**gather.fields, "base": group * self.b_words}
            made.append(replace(gather, fields=fields, owner=some, at=2 + group))
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
        tap, block = np.divmod(rest, len(loads))
        first, channels = np.array(loads).T
        gathers = self.gathers(
            into, first_channel + first[block], channels[block], chunk, tap if of_x else None
        )
        return [*self.pixels(of_x).setup(len(keys)), gathers]

    @cached_property
    def _tiles(self) -> dict[str, Array]:
        """All tiles in order: block, tap, number of what is loaded, channels from, to."""
        taps = range(self.layer.taps)
        every = itertools.product(
            self.row_axis.blocks, self.col_axis.blocks, taps[:: self.shape.taps]
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
        config, shape, depth, chunks = (
            self.config,
            self.shape,
            self.layer.out_positions,
            self.chunks,
        )
        tiles = self._tiles
        # Of each block all tiles pass chunk by chunk.
        block = tiles["block"]
        output, chunk = np.divmod(np.arange(len(block) * chunks), chunks)
        order = np.argsort(block[output] * chunks + chunk, kind="stable")
        output, chunk = output[order], chunk[order]
        first, last = chunk == 0, chunk == chunks - 1
        # A tile alone keeps its sums in the array.
        alone = (np.bincount(block) == 1)[block[output]]
        positions = np.minimum(shape.positions, depth - chunk * shape.positions)
        words = -(-positions // config.max_m)
        kept = _kept(self.layer, positions)
        tap, row, col = (tiles[name][output] for name in ("tap", "row", "col"))
        row_first = np.array([first for first, _ in self.row_loads])
        col_first = np.array([first for first, _ in self.col_loads])
        row_group = (tiles["row_first"][output] - row_first[row]) // config.rows
        col_group = (tiles["col_first"][output] - col_first[col]) // config.cols
        again = np.where(alone, Start.KEEP.value, Start.OUTPUT.value)
        a_tap, b_tap = (tap, 0) if self.prunes else (0, tap)
        indices = {}
        if self.prunes:
            index_stride = self.b_words // INDICES_TOGETHER
            indices = {"i_base": col_group * index_stride, "i_stride": index_stride}
        return Steps(
            a=(a_tap * len(self.row_loads) + row) * chunks + chunk,
            b=(b_tap * len(self.col_loads) + col) * chunks + chunk,
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
                "a_base": row_group * self.a_words,
                "a_stride": self.a_words,
                "b_base": col_group * self.b_words,
                "b_stride": self.b_words,
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


def _pixel_cycles(axis: _Axis, config: SatConfig) -> int:
    """Return the cycles in which a block's channels of a pixel come: as many as there are banks."""
    return ceil_div(axis.most_loaded, min(axis.banks, config.axi.beat_bytes // 2))


def _least_cycles(channels: int, axis: _Axis, config: SatConfig) -> int:
    """Return the cycles that channels of a pixel take at the least: they fit port and banks."""
    return max(read_beats(2 * channels, config), ceil_div(channels, axis.banks))


def _last(axis: _Axis) -> int:
    """Return the channels of the last tile."""
    first, end = axis.blocks[-1]
    return end - first - (ceil_div(end - first, axis.tile) - 1) * axis.tile


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
    cuts = []
    for positions in {round_up(ceil_div(depth, count), word) for count in counts}:
        if min(positions, depth) <= most_positions:
            # A tile's pass is no shorter than its sums' way through the chain.
            chunks = ceil_div(depth, positions)
            last = depth - (chunks - 1) * positions
            kept, last = int(_kept(layer, positions)), int(_kept(layer, last))
            short = chunks * (kept < config.rows) + (last < config.rows)
            taken = (chunks - 1) * kept + last + short * config.rows
            cuts.append((positions, *_chunk_words(layer, config, positions), chunks, taken))
    for split in range(s.bit_length()):
        whole = (axis.passes for axis in _axes(layer, config, split, (1, 1)))
        most = tuple(min(places, passes) for passes in whole)
        all_rows = (_axes(layer, config, split, (n, 1))[0] for n in range(1, most[0] + 1))
        all_cols = (_axes(layer, config, split, (1, n))[1] for n in range(1, most[1] + 1))
        sides = ([_Side.of(axis, config) for axis in axes] for axes in (all_rows, all_cols))
        for rows, cols in itertools.product(*sides):
            if rows.tiles * cols.tiles > places:
                continue
            # Taps of a block share dy; x is loaded anew.
            most_taps = min(layer.taps, places // (rows.tiles * cols.tiles))
            taps = ceil_div(layer.taps, ceil_div(layer.taps, most_taps))
            row_groups, col_groups = rows.groups, cols.groups
            blocks = rows.blocks * cols.blocks
            passes = rows.passes * cols.passes
            row_beats, col_beats = rows.pixel_cycles, cols.pixel_cycles
            for positions, a_words, b_words, chunks, taken in cuts:
                a_slot, b_slot = row_groups * a_words, col_groups * b_words
                if a_slot > config.a_words or b_slot > config.b_words:
                    continue
                # Loads, stores and the array side by side need two places each.
                alone = 2 * a_slot > config.a_words or 2 * b_slot > config.b_words
                for together in {1, taps}:
                    tiles = rows.tiles * cols.tiles * together
                    shape = GradientShape(split, rows.tiles, cols.tiles, positions, together)
                    compute = s * passes * layer.taps * taken
                    turns = blocks * ceil_div(layer.taps, together)
                    if tiles > 1:
                        # A tile's sums must be back before its next chunk.
                        kept = int(_kept(layer, positions))
                        wait = s * kept + 2 * config.rows * s + 2 * config.cols + 40
                        compute = max(compute, turns * chunks * wait)
                    of_rows, of_cols = turns, blocks * layer.taps
                    if _prunes(layer):
                        of_rows, of_cols = of_cols, of_rows
                    loads = depth * (of_rows * row_beats + of_cols * col_beats)
                    first = positions * (row_beats + col_beats) + chunks * blocks * 8
                    cycles = compute + loads if alone else max(compute, loads)
                    if 2 * tiles > places > 1:
                        cycles += turns * tiles * config.rows * s * 4
                    yield cycles + first, shape


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
        """All that its programs' cycles depend on besides the device: not the patterns."""
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
        macs = sums * int(_kept(layer, layer.out_positions))
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

    def floor(self, mapping: GradientShape, memory: MemoryTiming) -> int:
        """Return cycles that no program goes below under a mapping (`sat.dataflow.floor`)."""
        config, layer = self.config, self.layer
        rows, cols = _axes(layer, config, mapping.split, (mapping.row_tiles, mapping.col_tiles))
        positions = min(mapping.positions, layer.out_positions)
        chunks = ceil_div(layer.out_positions, positions)
        rest = layer.out_positions - (chunks - 1) * positions
        s, chain = config.interleave, config.rows * config.interleave
        row_taps, col_taps = (layer.taps, 1) if _prunes(layer) else (1, layer.taps)
        kept, last = int(_kept(layer, positions)), int(_kept(layer, rest))
        tile = (chunks - 1) * max(s * kept, chain) + max(s * last, chain)
        first_row, *_ = row_beats = [_least_cycles(n, rows, config) for _, n in rows.loads]
        first_col, *_ = col_beats = [_least_cycles(n, cols, config) for _, n in cols.loads]
        return floor_cycles(
            config,
            memory,
            first=positions * (first_row + first_col),
            array=rows.passes * cols.passes * layer.taps * tile - max(0, chain - s * kept),
            loads=layer.out_positions * (row_taps * sum(row_beats) + col_taps * sum(col_beats)),
            drain=os_drain(config),
            stored=stored_cycles(_last(rows), _last(cols), 4, config),
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
