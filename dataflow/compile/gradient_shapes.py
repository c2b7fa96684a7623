"""How WU is cut: blocks of tiles along both sides of the gradient, chunks of positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sat.dataflow.columns import Array, Value
from sat.dataflow.compile.shapes import GradientShape
from sat.dataflow.floor import read_beats
from sat.dataflow.layers import Layer, Pair
from sat.dataflow.mapping import ceil_div, round_up, slot_count
from sat.rtl import isa
from sat.rtl.config import INDICES_TOGETHER, SatConfig


@dataclass(frozen=True)
class Axis:
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
    banks: int
    most_loaded: int

    @classmethod
    def of(cls, axis: Axis) -> _Side:
        size = axis.groups, len(axis.blocks), axis.passes, axis.banks, axis.most_loaded
        return cls(axis.tiles, *size)

    def pixel_cycles(self, config: SatConfig, wide: bool) -> int:
        """Return the cycles in which a block's channels of a pixel come: as the banks take them."""
        banks = self.banks * (config.wide_groups(self.banks) if wide else 1)
        return ceil_div(self.most_loaded, min(banks, config.axi.beat_bytes // 2))


def axes(layer: Layer, config: SatConfig, split: int, tiles: Pair) -> tuple[Axis, Axis]:
    """Return the rows and columns of the product in blocks of so many tiles."""
    wide = config.interleave >> split, 1 << split
    outs, ins = layer.out_per_group, layer.in_per_group
    rows, cols = (ins, outs) if prunes(layer) else (outs, ins)
    return (
        Axis(rows, config.rows, config.rows * wide[0], tiles[0], config.granule_halves),
        Axis(cols, config.cols, config.cols * wide[1], tiles[1], config.granule_halves),
    )


def prunes(layer: Layer) -> bool:
    """Whether dy is pruned: the right operand then, for an array has its N:M operand there."""
    return layer.wu != (1, 1)


def kept_of(layer: Layer, positions: Value) -> Value:
    """Return how many of so many positions WU's pattern keeps."""
    n, m = layer.wu
    return positions // m * n + np.minimum(positions % m, n)


@dataclass(frozen=True)
class Chunks:
    """How the positions of the batch are cut: all of them alike, or by lines of images.

    Parameters
    ----------
    layer : Layer
    positions : int
        Of a chunk, but the last.
    lines : int
        Of a chunk, but the last of an image; 0: positions of the batch, one after another.
    """

    layer: Layer
    positions: int
    lines: int = 0

    @property
    def bands(self) -> int:
        """Chunks of an image, if they are lines."""
        return ceil_div(self.layer.out_size[0], self.lines)

    @property
    def count(self) -> int:
        if self.lines:
            return self.layer.batch * self.bands
        return ceil_div(self.layer.out_positions, self.positions)

    def span(self, chunk: Array) -> tuple[Array, Array]:
        """Return the first positions of chunks, and how many each has."""
        layer = self.layer
        if not self.lines:
            first = chunk * self.positions
            return first, np.minimum(self.positions, layer.out_positions - first)
        lines, pixels = layer.out_size
        image, band = np.divmod(chunk, self.bands)
        line = band * self.lines
        return (image * lines + line) * pixels, np.minimum(self.lines, lines - line) * pixels


@dataclass(frozen=True)
class TapLoads:
    """What loads of x bring the pixels of which taps.

    A line further down lies a line of positions further on in what is loaded: where that is whole
    words, a load of some more lines serves several taps of a column of the kernel.

    Parameters
    ----------
    order : tuple of int
        The taps, those of a load side by side.
    number, offset : (taps,) int64
        The load that brings a tap, and the word at which its pixels begin there.
    first : (loads,) int64
        The first tap of each.
    more : int
        Lines that a load has more than its chunk.
    """

    order: tuple[int, ...]
    number: Array
    offset: Array
    first: Array
    more: int

    @classmethod
    def of(cls, layer: Layer, word: int, lines: int) -> TapLoads:
        """Return them for words of so many positions, in chunks of ``lines`` (0: of positions)."""
        every = np.arange(layer.taps)
        if not lines:
            return cls(tuple(range(layer.taps)), every, np.zeros_like(every), every, 0)
        rows, columns = np.divmod(every, layer.kernel[1])
        # Of a stride, only every so many lines are read.
        down, between = np.divmod(rows * layer.dilation[0], layer.stride[0])
        positions = down * layer.out_size[1]
        kinds = (columns * layer.stride[0] + between) * word + positions % word
        _, first, number = np.unique(kinds, return_index=True, return_inverse=True)
        further = first[number]
        offset = (positions - positions[further]) // word
        order = tuple(np.argsort(number, kind="stable").tolist())
        return cls(order, number, offset, first, int((down - down[further]).max()))

    def loads(self, together: int) -> int:
        """Return how many loads there are if so many taps at a time share them."""
        taps = self.number[list(self.order)]
        return sum(len(set(taps[at : at + together])) for at in range(0, len(taps), together))


class _Cut(NamedTuple):
    """Chunks as shapes are ranked by them: words of a channel, positions that the array takes."""

    chunks: Chunks
    taps: TapLoads
    a_words: int
    b_words: int
    taken: int

    @classmethod
    def of(cls, layer: Layer, config: SatConfig, chunks: Chunks) -> _Cut:
        taps = TapLoads.of(layer, config.max_m, chunks.lines)
        _, sizes = chunks.span(np.arange(chunks.count))
        kept = np.asarray(kept_of(layer, sizes))
        # A tile's pass is no shorter than its sums' way through the chain.
        short = chunks.count * (kept[0] < config.rows) + (kept[-1] < config.rows)
        taken = int(kept.sum() + short * config.rows)
        return cls(chunks, taps, *chunk_words(layer, config, chunks, taps), taken)

    @property
    def x_positions(self) -> int:
        """Positions of x that a load brings, of all chunks."""
        layer, more = self.chunks.layer, self.taps.more * self.chunks.count
        return layer.out_positions + more * layer.out_size[1]


def chunk_words(layer: Layer, config: SatConfig, chunks: Chunks, taps: TapLoads) -> Pair:
    """Return the words of a bank of A, and of B, that a channel takes for a chunk."""
    words = ceil_div(chunks.positions + taps.more * layer.out_size[1], config.max_m)
    if not prunes(layer):
        return words, words
    # What is pruned starts on a word of indices.
    kept = ceil_div(int(kept_of(layer, chunks.positions)), config.max_m)
    return words, round_up(kept, INDICES_TOGETHER)


def _cuts(layer: Layer, config: SatConfig) -> Iterator[_Cut]:
    """Yield the ways to cut positions that are worth trying."""
    word, depth = config.max_m, layer.out_positions
    most_positions = isa.field_range(isa.GATHER, "rows").stop - 1
    # Chunks of about the same size: a short one at the end would wait for the chain.
    counts = (ceil_div(depth, word << n) for n in range(config.a_words.bit_length()))
    for positions in {round_up(ceil_div(depth, count), word) for count in counts}:
        if min(positions, depth) <= most_positions:
            yield _Cut.of(layer, config, Chunks(layer, positions))
    lines, pixels = layer.out_size
    m = layer.wu[1]
    # Lines pay where loads are what takes long; groups of positions must not cross chunks.
    if not prunes(layer) or (layer.batch > 1 and lines * pixels % m):
        return
    for some in sorted({ceil_div(lines, count) for count in range(1, lines + 1)}):
        cut = _Cut.of(layer, config, Chunks(layer, some * pixels, some))
        reach = (some + cut.taps.more) * pixels
        whole = some == lines or some * pixels % m == 0
        if len(cut.taps.first) < layer.taps and whole and reach <= most_positions:
            yield cut


def group_stride(words: int, groups: int, banks: int, config: SatConfig) -> int:
    """Return the words from a group of channels to the next that lets them be written together.

    There are so many groups, each of so many words.
    """
    if min(groups, config.wide_groups(banks)) == 1:
        return words
    return words + (config.wide_stride(banks) - words) % config.beat_words


def group_strides(words: Pair, groups: Pair, config: SatConfig) -> Pair:
    """Return `group_stride` of A and of B."""
    return (
        group_stride(words[0], groups[0], config.rows, config),
        group_stride(words[1], groups[1], config.cols, config),
    )


def slot_words(words: int, groups: int, stride: int) -> int:
    """Return the words of a bank that groups of channels take, one stride apart."""
    return (groups - 1) * stride + words


def least_cycles(channels: int, axis: Axis, config: SatConfig) -> int:
    """Return the cycles that channels of a pixel take at the least: they fit port and banks."""
    banks = axis.banks * config.wide_groups(axis.banks)
    return max(read_beats(2 * channels, config), ceil_div(channels, banks))


def last_channels(axis: Axis) -> int:
    """Return the channels of the last tile."""
    first, end = axis.blocks[-1]
    return end - first - (ceil_div(end - first, axis.tile) - 1) * axis.tile


def gradient_shapes(layer: Layer, config: SatConfig) -> Iterator[tuple[float, GradientShape]]:
    """Yield shapes that fit the buffers, each with roughly the cycles it takes.

    There always is one: with a tile to a block, and a word of positions, a block's channels take
    at most 16 words of a bank, the least that a bank has.
    """
    s, depth = config.interleave, layer.out_positions
    # Each place may hold sums that nobody has waited for yet (SUMS).
    places = slot_count(config.sum_words, config.rows * s)
    cuts = list(_cuts(layer, config))
    for split in range(s.bit_length()):
        whole = (axis.passes for axis in axes(layer, config, split, (1, 1)))
        most = tuple(min(places, passes) for passes in whole)
        all_rows = (axes(layer, config, split, (n, 1))[0] for n in range(1, most[0] + 1))
        all_cols = (axes(layer, config, split, (1, n))[1] for n in range(1, most[1] + 1))
        sides = ([_Side.of(axis) for axis in axes] for axes in (all_rows, all_cols))
        for rows, cols in itertools.product(*sides):
            if rows.tiles * cols.tiles > places:
                continue
            # Taps of a block share dy; x is loaded anew.
            most_taps = min(layer.taps, places // (rows.tiles * cols.tiles))
            taps = ceil_div(layer.taps, ceil_div(layer.taps, most_taps))
            row_groups, col_groups = rows.groups, cols.groups
            blocks = rows.blocks * cols.blocks
            passes = rows.passes * cols.passes
            beats = {
                wide: (rows.pixel_cycles(config, wide), cols.pixel_cycles(config, wide))
                for wide in (False, True)
            }
            pays = beats[True] != beats[False]
            for cut, wide in itertools.product(cuts, (True, False)):
                positions, chunks = cut.chunks.positions, cut.chunks.count
                own = cut.a_words, cut.b_words
                strides = group_strides(own, (row_groups, col_groups), config)
                # Wide where a pixel comes in fewer cycles; narrow, unless that is wide by itself.
                if not (pays if wide else not pays or strides != own):
                    continue
                strides = strides if wide else own
                a_slot = slot_words(cut.a_words, row_groups, strides[0])
                b_slot = slot_words(cut.b_words, col_groups, strides[1])
                if a_slot > config.a_words or b_slot > config.b_words:
                    continue
                # Loads, stores and the array side by side need two places each.
                alone = 2 * a_slot > config.a_words or 2 * b_slot > config.b_words
                for together in {1, taps}:
                    if cut.chunks.lines and cut.taps.loads(together) > len(cut.taps.first):
                        continue  # a load would come twice, and the first stay for the second
                    tiles = rows.tiles * cols.tiles * together
                    shape = GradientShape(
                        split, rows.tiles, cols.tiles, positions, together, cut.chunks.lines, wide
                    )
                    compute = s * passes * layer.taps * cut.taken
                    turns = blocks * ceil_div(layer.taps, together)
                    if tiles > 1:
                        # A tile's sums must be back before its next chunk.
                        kept = int(kept_of(layer, positions))
                        wait = s * kept + 2 * config.rows * s + 2 * config.cols + 40
                        compute = max(compute, turns * chunks * wait)
                    of_dy, of_x = turns * depth, blocks * cut.taps.loads(together) * cut.x_positions
                    if prunes(layer):
                        of_dy, of_x = of_x, of_dy
                    narrow = of_dy * beats[False][0] + of_x * beats[False][1]
                    if wide and strides != own and narrow <= compute:
                        continue  # the array waits for no loads as it is
                    loads = of_dy * beats[wide][0] + of_x * beats[wide][1]
                    first = positions * sum(beats[wide]) + chunks * blocks * 8
                    cycles = compute + loads if alone else max(compute, loads)
                    if 2 * tiles > places > 1:
                        cycles += turns * tiles * config.rows * s * 4
                    yield cycles + first, shape
