"""WU as instructions: the gradient of the weights, from transposed gathers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.patches import Patches, groups_of, one_after_another
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.slots import Key, Load, Step
from sat.dataflow.layers import Layer, LayerMemory, Pair, Region
from sat.dataflow.mapping import ceil_div, round_up
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Instruction, Opcode, Start


@dataclass(frozen=True)
class GradientShape:
    """How WU is laid out: tile split, tiles that share operands, positions of a chunk."""

    split: int
    row_tiles: int
    col_tiles: int
    positions: int


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
        self.tile_rows, self.tile_cols = (
            config.rows * (s >> shape.split),
            config.cols << shape.split,
        )
        self.block_rows = min(shape.row_tiles * self.tile_rows, round_up(rows, self.tile_rows))
        self.block_cols = min(shape.col_tiles * self.tile_cols, round_up(cols, self.tile_cols))
        self.chunk_words = shape.positions // config.max_m
        self.a_slot, self.b_slot = gradient_slots(layer, config, shape)
        self.sum_slot = config.rows * s

    def sum_width(self) -> int:
        return 1 << self.shape.split

    def patches(self, tap: int | None, channel: int, channels: int) -> Patches:
        """Return dy's pixels (no tap) or x's at a tap, from a channel on."""
        layer, where = self.layer, self.where
        beat = where.config.axi.beat_bytes
        segment = round_up(2 * channels, beat)
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
        channels = min(self.block_rows, self.product.rows - row)
        return self.transposed(self.patches(None, self.first_out + row, channels), chunk, Buffer.A)

    def b_loads(self, key: Key) -> list[Load]:
        tap, col, chunk = key
        channels = min(self.block_cols, self.product.cols - col)
        patches = self.patches(tap, self.first_in + col, channels)
        return self.transposed(patches, chunk, Buffer.B)

    def _gradient_store(self, row: int, tap: int, col: int) -> list[dict[str, Any]]:
        region, channels = self.memory.result, self.where.ff.channels
        at = region.address + (self.first_out + row) * region.pitch
        return [
            {
                "address": at + 4 * (tap * channels + col),
                "pitch": region.pitch,
                "rows": min(self.tile_rows, self.product.rows - row),
                "row_bytes": 4 * min(self.tile_cols, self.product.cols - col),
                "stride": self.sum_width(),
                "check": 1,
            }
        ]

    def steps(self) -> Iterator[Step]:
        config, shape, product = self.config, self.shape, self.product
        chunks = ceil_div(product.depth, shape.positions)
        groups = config.interleave >> shape.split
        opened = 0
        for tap, row, col in self._blocks():
            tiles = [
                (r, c)
                for r in range(row, min(row + self.block_rows, product.rows), self.tile_rows)
                for c in range(col, min(col + self.block_cols, product.cols), self.tile_cols)
            ]
            alone = len(tiles) == 1
            for chunk in range(chunks):
                first, last = chunk == 0, chunk == chunks - 1
                positions = min(shape.positions, product.depth - chunk * shape.positions)
                words = ceil_div(positions, config.max_m)
                for number, (r, c) in enumerate(tiles):
                    # A tile alone keeps its sums in the array.
                    again = Start.KEEP if alone else Start.OUTPUT
                    yield Step(
                        a=(row, chunk),
                        b=(tap, col, chunk),
                        body={
                            **self.common(),
                            "dataflow": Dataflow.OS,
                            "start": Start.ZERO if first else again,
                            "emit": int(last or not alone),
                            "split": shape.split,
                            "words": words,
                            "values": self.per_word,
                            "last": positions - (words - 1) * self.per_word,
                            "a_base": (r - row) // self.tile_rows * groups * self.chunk_words,
                            "a_stride": self.chunk_words,
                            "b_base": (c - col) // config.cols * self.chunk_words,
                            "b_stride": self.chunk_words,
                        },
                        output=opened + number,
                        opens=first,
                        stores=self._gradient_store(r, tap, c) if last else [],
                        adds=not first and not alone,
                        added=not last and not alone,
                    )
            opened += len(tiles)

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        for tap in range(self.layer.taps):
            for row in range(0, self.product.rows, self.block_rows):
                for col in range(0, self.product.cols, self.block_cols):
                    yield tap, row, col


def gradient_slots(layer: Layer, config: SatConfig, shape: GradientShape) -> Pair:
    """Return the words of A and of B that a chunk of a block takes."""
    per_beat, words = config.beat_halves, shape.positions // config.max_m
    groups = []
    for banks, wide, tiles, channels in (
        (config.rows, config.interleave >> shape.split, shape.row_tiles, layer.out_per_group),
        (config.cols, 1 << shape.split, shape.col_tiles, layer.in_per_group),
    ):
        block = min(tiles * wide * banks, round_up(channels, wide * banks))
        # Whole beats of channels come, and whole tiles are read.
        loaded = round_up(min(block, channels), per_beat)
        groups.append(max(ceil_div(loaded, banks), ceil_div(block, banks)))
    return groups[0] * words, groups[1] * words


def _gradient_shapes(layer: Layer, config: SatConfig) -> Iterator[tuple[float, GradientShape]]:
    """Yield shapes that fit the buffers, each with roughly the cycles it takes."""
    s, word = config.interleave, config.max_m
    rows, cols, depth = layer.out_per_group, layer.in_per_group, layer.out_positions
    places = config.sum_words // (config.rows * s)
    for split in range(s.bit_length()):
        tile_rows, tile_cols = config.rows * (s >> split), config.cols << split
        for row_tiles in range(1, min(places, ceil_div(rows, tile_rows)) + 1):
            for col_tiles in range(1, min(places, ceil_div(cols, tile_cols)) + 1):
                tiles = row_tiles * col_tiles
                if tiles > places:
                    continue
                whole_rows = row_tiles * tile_rows >= rows
                whole_cols = col_tiles * tile_cols >= cols
                if not whole_rows and row_tiles * tile_rows % config.beat_halves:
                    continue
                if not whole_cols and col_tiles * tile_cols % config.beat_halves:
                    continue
                for positions in {
                    min(round_up(depth, word), word << n)
                    for n in range(config.a_words.bit_length())
                }:
                    shape = GradientShape(split, row_tiles, col_tiles, positions)
                    a_slot, b_slot = gradient_slots(layer, config, shape)
                    if a_slot > config.a_words or b_slot > config.b_words:
                        continue
                    # Loads, stores and the array side by side need two places each.
                    alone = 2 * a_slot > config.a_words or 2 * b_slot > config.b_words
                    row_blocks = ceil_div(rows, row_tiles * tile_rows)
                    col_blocks = ceil_div(cols, col_tiles * tile_cols)
                    chunks = ceil_div(depth, positions)
                    blocks = row_blocks * col_blocks
                    passes = ceil_div(rows, tile_rows) * ceil_div(cols, tile_cols)
                    # A tile's pass is no shorter than its sums' way through the chain.
                    compute = s * passes * max(depth, chunks * config.rows)
                    if tiles > 1:
                        # A tile's sums must be back before its next chunk.
                        wait = s * positions + 2 * config.rows * s + 2 * config.cols + 40
                        compute = max(compute, blocks * chunks * wait)
                    beats = ceil_div(min(rows, row_tiles * tile_rows), config.beat_halves)
                    beats += ceil_div(min(cols, col_tiles * tile_cols), config.beat_halves)
                    loads = depth * blocks * beats
                    first = positions * beats + chunks * blocks * 8
                    cycles = compute + loads if alone else max(compute, loads)
                    if 2 * tiles > places > 1:
                        cycles += blocks * tiles * config.rows * s * 4
                    yield cycles * layer.taps + first, shape


def gradient(layer: Layer, where: LayerMemory) -> list[Instruction]:
    """Return WU: g = dy, transposed, * x; infinite and NaN sums are counted."""
    config = where.config
    shapes = list(_gradient_shapes(layer, config))
    if not shapes:
        raise ValueError(
            f"the weight gradient of {layer} does not fit the device's buffers "
            f"(a_words={config.a_words}, b_words={config.b_words}); enlarge them"
        )
    cost = {shape: cycles for cycles, shape in shapes}
    shape = min(cost, key=lambda s: (cost[s], s.positions))
    return one_after_another(
        GradientPlanner(layer, where, shape, first_in, first_out).emit()
        for first_in, first_out, _ in groups_of(layer, where)
    )
