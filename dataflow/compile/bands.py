"""Products of patches that overlap, their pixels loaded once: a bank holds a band of positions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value, spread
from sat.dataflow.compile.epilogue import Epilogue, PixelSums
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.patches import Patches, Runs, run_begins
from sat.dataflow.compile.planner import blocks
from sat.dataflow.compile.slots import NONE, Steps
from sat.dataflow.estimate import INSTRUCTION, Traffic, segment_cycles, store_cycles
from sat.dataflow.floor import column_beats, floor_cycles, os_drain, read_beats
from sat.dataflow.layers import Pair
from sat.dataflow.mapping import BandMapping, ceil_div, os_slots, slot_count, values_per_word
from sat.dataflow.products import Product, StartShape
from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class _Side:
    """A band along one axis: the pixels that its positions meet, from tap 0 on, in taps' order.

    Parameters
    ----------
    count : int
        Positions.
    step, tap : int
        Source pixels from position to position; from tap to tap.
    taps : int
    """

    count: int
    step: int
    tap: int
    taps: int

    @property
    def unit(self) -> int:
        """Source pixels from one pixel of the band to the next."""
        return self.tap if self.taps > 1 else self.step

    @property
    def apart(self) -> int:
        """Pixels of the band from one place to the next."""
        return abs(self.step // self.unit)

    @property
    def size(self) -> int:
        """Pixels of the band."""
        return (self.count - 1) * self.apart + self.taps

    @property
    def first(self) -> int:
        """The position whose tap 0 is the band's first pixel."""
        return 0 if self.step // self.unit > 0 else self.count - 1

    def position(self, place: int) -> int:
        """Return the position whose tap 0 is ``place * apart`` pixels on."""
        return abs(self.first - place)


def _sides(patches: Patches, size: Pair) -> tuple[_Side, _Side]:
    """Return the bands' lines and pixels."""
    y, x = (
        _Side(size[axis], patches.step[axis], patches.tap[axis], patches.taps[axis])
        for axis in range(2)
    )
    return y, x


def _overlap(patches: Patches) -> bool:
    """Whether patches overlap, and lie on one grid of pixels."""
    axes = list(zip(patches.step, patches.tap, patches.taps, strict=True))
    return max(patches.taps) > 1 and all(taps == 1 or step % tap == 0 for step, tap, taps in axes)


@dataclass(frozen=True)
class _Shape:
    """What a `BandMapping` makes of patches."""

    config: SatConfig
    mapping: BandMapping
    patches: Patches
    per_word: int
    offsets: tuple[int, ...]
    dense: bool

    @cached_property
    def sides(self) -> tuple[_Side, _Side]:
        return _sides(self.patches, (self.mapping.lines, self.mapping.pixels))

    @cached_property
    def tap_words(self) -> int:
        return self.patches.segment // self.config.word_bytes

    @cached_property
    def line_words(self) -> int:
        """Words from one line of a band to the next."""
        return self.sides[1].size * self.tap_words

    @cached_property
    def sums(self) -> int:
        """Interleaved sums of a bank below each other."""
        return self.config.interleave >> self.mapping.split

    @cached_property
    def along_x(self) -> bool:
        """Whether these are neighbours in a line; or in a column."""
        return self.mapping.pixels % self.sums == 0

    @cached_property
    def tiles(self) -> list[list[Pair]]:
        """The places (line, pixel) of each tile's sums."""
        lines, pixels = range(self.mapping.lines), range(self.mapping.pixels)
        if self.along_x:
            return [
                [(line, first + n) for n in range(self.sums)]
                for line in lines
                for first in pixels[:: self.sums]
            ]
        return [
            [(first + n, pixel) for n in range(self.sums)]
            for first in lines[:: self.sums]
            for pixel in pixels
        ]

    @property
    def tile_count(self) -> int:
        """How many tiles there are."""
        return self.mapping.lines * self.mapping.pixels // self.sums

    @cached_property
    def grid(self) -> Pair:
        """Bands along the lines and the pixels of an image."""
        size = self.patches.size
        return ceil_div(size[0], self.mapping.lines), ceil_div(size[1], self.mapping.pixels)

    @cached_property
    def bands(self) -> int:
        return self.patches.images * self.grid[0] * self.grid[1]

    @cached_property
    def sets(self) -> int:
        """Sets of bands, one to a row of the array."""
        return ceil_div(self.bands, self.config.rows)

    @cached_property
    def pieces(self) -> list[tuple[int, int, int, int]]:
        """Parts of a patch that lie together in A and in B.

        (word of A from the patch's first, words, part of B, its value).
        """
        lines, pixels = self.patches.taps
        words = self.tap_words
        kept = words * self.per_word
        if len(self.offsets) > 1:
            return [
                (y * self.line_words + x * words, words, y * pixels + x, 0)
                for y, x in itertools.product(range(lines), range(pixels))
            ]
        if self.mapping.pixels == 1:
            return [(0, lines * pixels * words, 0, 0)]
        return [(y * self.line_words, pixels * words, 0, y * pixels * kept) for y in range(lines)]

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        """Parts of a column of B: the first value, how many."""
        kept = self.tap_words * self.per_word
        if len(self.offsets) == 1:
            return [(self.offsets[0], self.patches.taps[0] * self.patches.taps[1] * kept)]
        return [(offset, kept) for offset in self.offsets]

    @cached_property
    def part_words(self) -> tuple[int, int]:
        """Words of B and index banks that a part takes."""
        values = self.parts[0][1]
        words = values // self.per_word
        _, b, i = os_slots(self.config, 0, words, self.per_word, self.dense, self.offsets)
        return b, i

    @cached_property
    def slots(self) -> tuple[int, int, int]:
        """Words of a slot of A, B and indices."""
        b, i = self.part_words
        parts = len(self.parts)
        return (
            self.sides[0].size * self.line_words,
            parts * b << self.mapping.split,
            1 if self.dense else parts * i << self.mapping.split,
        )

    @cached_property
    def fits(self) -> tuple[int, int]:
        """Slots of A, and of B and its indices."""
        config = self.config
        depths = (config.a_words, config.b_words, config.i_words)
        a, b, i = map(slot_count, depths, self.slots)
        return a, min(b, i)

    @cached_property
    def tile_cycles(self) -> int:
        """Cycles that the array takes for a tile: no piece is shorter than the chain."""
        s, chain = self.config.interleave, self.config.rows * self.config.interleave
        return sum(max(chain, s * words * self.per_word) for _, words, _, _ in self.pieces)

    def loads(self, col_tiles: int) -> tuple[int, int]:
        """Return how often A and B are loaded, as `sat.dataflow.floor.os_loads`."""
        mapping = self.mapping
        a_fit, b_fit = self.fits
        a_loads = b_loads = 1
        if mapping.rows_outer and col_tiles > b_fit:
            b_loads = ceil_div(self.sets, mapping.block)
        if not mapping.rows_outer and self.sets > a_fit:
            a_loads = ceil_div(col_tiles, mapping.block)
        return a_loads, b_loads


class BandPlanner(PixelSums):
    """A product of patches under a `BandMapping`."""

    def __init__(
        self,
        product: Product,
        config: SatConfig,
        mapping: BandMapping,
        memory: MemoryMap,
        patches: Patches,
        offsets: tuple[int, ...],
        epilogue: Epilogue,
    ):
        super().__init__(product, config, memory)
        self.mapping, self.patches, self.epilogue = mapping, patches, epilogue
        self.shape = shape = _Shape(config, mapping, patches, self.per_word, offsets, product.dense)
        self.tiles = shape.tiles
        self.col_tiles = ceil_div(product.cols, config.cols << mapping.split)
        units = shape.sets if mapping.rows_outer else self.col_tiles
        self.outer_blocks = ceil_div(units, mapping.block)
        self.split = mapping.split
        self.a_slot, self.b_slot, self.i_slot = shape.slots
        self.sum_slot = config.rows * config.interleave
        self.a_keys, self.b_keys = shape.sets, self.col_tiles
        self.row_tiles = shape.sets * len(self.tiles)

    def row_tile(self, tile: Array) -> tuple[Array, Array]:
        # Of a tile all rows of the array, bands and sums that there are not included.
        size = self.config.rows * self.shape.sums
        return tile * size, (tile + 1) * size

    def column_tile(self, tile: Array) -> tuple[Array, Array]:
        size = self.config.cols << self.mapping.split
        return tile * size, np.minimum((tile + 1) * size, self.product.cols)

    @cached_property
    def _all_runs(self) -> Runs:
        """The runs of every tile that there are steps of."""
        rows, shape, grid = self.config.rows, self.shape, self.epilogue.grid
        lines, pixels = shape.grid
        y_side, x_side = shape.sides
        # A lane is a group of a tile: in a row of the array each, places of a band.
        groups = np.array(self.tiles)
        sets = shape.sets
        if self.mapping.rows_outer:
            sets = min(sets, self.outer_blocks * self.mapping.block)
        number, tile = np.divmod(np.arange(sets * len(self.tiles)), len(self.tiles))
        line = np.abs(y_side.first - groups[tile, :, 0]).ravel()
        pixel = np.abs(x_side.first - groups[tile, :, 1]).ravel()
        band = np.repeat(number * rows, shape.sums) + np.arange(rows)[:, None]
        rest, band_x = np.divmod(band, pixels)
        image, band_y = np.divmod(rest, lines)
        at_y = band_y * self.mapping.lines + line
        at_x = band_x * self.mapping.pixels + pixel
        there = (band < shape.bands) & (at_y < grid.size[0]) & (at_x < grid.size[1])
        where = grid.pixel(image, at_y, at_x)
        begins = run_begins(there, where)
        lane, row = np.nonzero(begins.T)
        which = np.cumsum(begins.T.ravel()) - 1
        count = np.bincount(which[there.T.ravel()], minlength=len(lane))
        second = where[np.minimum(row + 1, rows - 1), lane]
        apart = np.where(count > 1, second - where[row, lane], 1)
        owner, group = np.divmod(lane, shape.sums)
        return Runs(owner, group * rows + row, count, where[row, lane], apart)

    @cached_property
    def _run_counts(self) -> Array:
        """How many runs each tile has; none, if it is beyond the image in all bands."""
        return np.bincount(self._all_runs.owner, minlength=self.row_tiles)

    def runs(self, row_tile: Array) -> Runs:
        counts = self._run_counts
        owner, place = spread(counts[row_tile])
        which = (np.cumsum(counts) - counts)[row_tile[owner]] + place
        return Runs(*(column[which] for column in self._all_runs))._replace(owner=owner)

    def a_loads(self, keys: Array) -> list[Block]:
        config, patches, shape = self.config, self.patches, self.shape
        sides, mapping = shape.sides, self.mapping
        setup = patches.setup(
            len(keys),
            lines=shape.grid[0],
            pixels=shape.grid[1],
            step_y=mapping.lines * patches.step[0],
            step_x=mapping.pixels * patches.step[1],
            tap_y=sides[0].unit,
            tap_x=sides[1].unit,
        )
        rest, pixel = np.divmod(keys * config.rows, shape.grid[1])
        image, line = np.divmod(rest, shape.grid[0])
        fields: dict[str, Field] = {
            "image": image,
            "line": line,
            "pixel": pixel,
            "y": patches.start[0] + sides[0].first * patches.step[0],
            "x": patches.start[1] + sides[1].first * patches.step[1],
            "taps_y": sides[0].size,
            "taps_x": sides[1].size,
            "offset": patches.offset,
            "segment_bytes": patches.segment,
            "rows": np.minimum(config.rows, shape.bands - keys * config.rows),
            "destination": Buffer.A,
            "stride": self.a_slot,
            "groups": 1,
        }
        return [*setup, Block(Opcode.GATHER, fields, np.arange(len(keys)), 2)]

    def chunk_values(self, chunk: Array) -> tuple[Array, Array]:
        first, count = np.array(self.shape.parts).T
        return first[chunk], (first + count)[chunk]

    def b_loads(self, keys: Array) -> list[Block]:
        b_words, i_words = self.shape.part_words
        blocks: list[Block] = []
        for number in range(len(self.shape.parts)):
            part = np.full(len(keys), number)
            for block in self.column_loads(keys, part, number * b_words, number * i_words):
                blocks.append(replace(block, at=len(blocks)))
        return blocks

    def _pieces(self) -> dict[str, Array]:
        """Return what differs between the MULTIPLYs of a tile, for each of them."""
        config = self.config
        b_words, i_words = self.shape.part_words
        a_word, words, part, value = np.array(self.shape.pieces).T
        b_at = self.aligned(part, 16)[2] + value
        fields = {
            "words": words,
            "a_base": a_word,
            "b_base": part * b_words + b_at // config.max_m,
            "b_skip": b_at % config.max_m,
        }
        if not self.product.dense:
            i_at = self.aligned(part, 4)[2] + value
            fields["i_base"] = part * i_words + i_at // config.indices_per_word
            fields["i_skip"] = i_at % config.indices_per_word
        return fields

    def steps(self) -> Steps:
        mapping, shape = self.mapping, self.shape
        pieces = self._pieces()
        count = len(pieces["words"])
        # Words of A from a place to the next, along lines and pixels.
        y_words, x_words = (
            side.apart * words
            for side, words in zip(shape.sides, (shape.line_words, shape.tap_words), strict=True)
        )
        sets, cols, _ = blocks(
            mapping.rows_outer,
            (shape.sets, self.col_tiles),
            (mapping.block, 1) if mapping.rows_outer else (1, mapping.block),
            self.outer_blocks,
        )
        # Each set's tiles, those that are not beyond the image in all bands, each in pieces.
        tiles = len(self.tiles)
        row = (sets[:, None] * tiles + np.arange(tiles)).ravel()
        there = self._run_counts[row] > 0
        output = np.repeat(np.arange(int(there.sum())), count)
        row = np.repeat(row[there], count)
        col = np.repeat(np.repeat(cols, tiles)[there], count)
        piece = np.arange(len(row)) % count
        first, last = piece == 0, piece == count - 1
        number, tile = np.divmod(row, tiles)
        place = np.array([y * y_words + x * x_words for (y, x), *_ in self.tiles], np.int64)
        given = self.product.start is not StartShape.ZERO
        begin = Start.START if given else Start.ZERO
        fields: dict[str, Value] = {name: value[piece] for name, value in pieces.items()}
        return Steps(
            a=number,
            b=col,
            start=np.where(first, self.start_key(row, col), NONE) if given else None,
            body={
                **self.common(),
                "dataflow": Dataflow.OS.value,
                "split": mapping.split,
                "values": self.per_word,
                "last": self.per_word,
                "a_stride": x_words if shape.along_x else y_words,
                "b_stride": self.b_stride,
                "i_stride": 0 if self.product.dense else self.i_stride,
                **fields,
                "start": np.where(first, begin.value, Start.KEEP.value),
                "emit": last.astype(np.int64),
                "a_base": place[tile] + fields["a_base"],
            },
            output=output,
            opens=first,
            closes=last,
            row=row,
            col=col,
        )


def band_mappings(
    product: Product, config: SatConfig, patches: Patches, offsets: tuple[int, ...]
) -> Iterator[BandMapping]:
    """Yield the band mappings worth trying: none if patches do not overlap."""
    if not _overlap(patches):
        return
    per_word = values_per_word(product, config)
    for lines, pixels in itertools.product(*(_band_sizes(size) for size in patches.size)):
        if lines * pixels == 1 or not _encodes(patches, (lines, pixels)):
            continue
        for split in range(config.interleave.bit_length()):
            sums = config.interleave >> split
            if pixels % sums and lines % sums:
                continue
            mapping = BandMapping(split=split, lines=lines, pixels=pixels, rows_outer=True, block=1)
            shape = _Shape(config, mapping, patches, per_word, offsets, product.dense)
            if shape.slots[0] * 2 > config.a_words:
                break
            a_fit, b_fit = shape.fits
            col_tiles = ceil_div(product.cols, config.cols << split)
            if b_fit < min(2, col_tiles):
                continue
            most = max(1, min(a_fit - 1, shape.sets))
            for block in {1, most}:
                yield BandMapping(
                    split=split, lines=lines, pixels=pixels, rows_outer=True, block=block
                )
            most = max(1, min(b_fit - 1, col_tiles))
            if b_fit < col_tiles:
                yield BandMapping(
                    split=split, lines=lines, pixels=pixels, rows_outer=False, block=most
                )


REACHES = tuple(
    (
        isa.field_range(isa.WINDOW, f"step_{axis}"),
        isa.field_range(isa.GATHER, f"taps_{axis}"),
        isa.field_range(isa.GATHER, axis),
    )
    for axis in "yx"
)
"""Steps from band to band, positions of a band, and its first one, that instructions can name."""


def _encodes(patches: Patches, size: Pair) -> bool:
    """Whether instructions can say how bands lie."""
    return all(
        count * step in steps and side.size in sizes and start + side.first * step in firsts
        for count, step, start, side, (steps, sizes, firsts) in zip(
            size, patches.step, patches.start, _sides(patches, size), REACHES, strict=True
        )
    )


LONGEST = 16
"""Positions of the longest side of a band: more share hardly more pixels."""


def _band_sizes(size: int) -> list[int]:
    """Return sides of bands that cut a side of so many positions about evenly."""
    return sorted({ceil_div(size, n) for n in range(1, size + 1) if ceil_div(size, n) <= LONGEST})


def band_cycles(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mapping: BandMapping,
    patches: Patches,
    offsets: tuple[int, ...],
    traffic: Traffic,
) -> float:
    """Return roughly how many cycles a band mapping takes."""
    shape = _Shape(
        config, mapping, patches, values_per_word(product, config), offsets, product.dense
    )
    cols = config.cols << mapping.split
    col_tiles = ceil_div(product.cols, cols)
    tile = shape.tile_cycles
    tiles = shape.sets * shape.tile_count * col_tiles
    a_loads, b_loads = shape.loads(col_tiles)
    y, x = shape.sides
    band = segment_cycles(y.size * x.size, patches.segment, config, memory)
    column = 0.0
    for _, values in shape.parts:
        column += segment_cycles(1, 2 * values, config, memory)
        if not product.dense:
            column += segment_cycles(1, values / 2, config, memory)
    loads = a_loads * shape.bands * band + b_loads * product.cols * column
    width = min(cols, product.cols)
    stores = store_cycles(product.rows * col_tiles, width, config, memory, traffic)
    first = min(shape.bands, config.rows) * band + width * column
    last = store_cycles(config.rows * shape.sums, width, config, memory, traffic)
    lines, pixels = shape.grid
    in_turn = pixels if pixels > 1 else lines
    runs = ceil_div(min(config.rows, shape.bands), in_turn) + (in_turn % config.rows > 0)
    instructions = tiles * (len(shape.pieces) + shape.sums * runs)
    return max(tiles * tile, loads, stores) + first + last + INSTRUCTION * instructions


def band_floor(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mapping: BandMapping,
    patches: Patches,
    offsets: tuple[int, ...],
) -> int:
    """Return cycles that no program of a band mapping goes below (`sat.dataflow.floor`)."""
    shape = _Shape(
        config, mapping, patches, values_per_word(product, config), offsets, product.dense
    )
    cols = config.cols << mapping.split
    col_tiles = ceil_div(product.cols, cols)
    # Tiles beyond the image in all bands are left out; the others hold all positions.
    tiles = ceil_div(product.rows, config.rows * shape.sums) * col_tiles
    a_loads, b_loads = shape.loads(col_tiles)
    y, x = shape.sides
    # Pixels that are beyond the tensor come as zeros, as fast as others.
    band = y.size * x.size * read_beats(patches.segment, config)
    column = sum(column_beats(values, product, config) for _, values in shape.parts)
    piece = config.interleave * shape.per_word * shape.pieces[0][1]
    return floor_cycles(
        config,
        memory,
        first=min(shape.bands, config.rows) * band + min(cols, product.cols) * column,
        array=tiles * shape.tile_cycles - max(0, config.rows * config.interleave - piece),
        loads=a_loads * shape.bands * band + b_loads * product.cols * column,
        drain=os_drain(config),
        stored=1,
        gathers=True,
        # Lines of a band that are off the tensor, as the first ones of a padded image are.
        zeros=min(shape.bands, config.rows) * band,
    )
