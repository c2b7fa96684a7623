"""Output stationary products as instructions."""

from __future__ import annotations

from collections.abc import Iterator

from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.planner import Planner, blocks
from sat.dataflow.compile.slots import Key, Load, Step
from sat.dataflow.mapping import OsMapping, ceil_div, os_slots
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start


class OsPlanner(Planner):
    """A product under an `OsMapping`: a tile of sums stays while the depth passes."""

    def __init__(
        self,
        product: Product,
        config: SatConfig,
        mapping: OsMapping,
        memory: MemoryMap,
        offsets: tuple[int, ...] = (0,),
    ):
        super().__init__(product, config, memory)
        self.mapping = mapping
        self.offsets = offsets
        self.tile_rows = config.rows * (config.interleave >> mapping.split)
        self.tile_cols = config.cols << mapping.split
        self.row_tiles = ceil_div(product.rows, self.tile_rows)
        self.col_tiles = ceil_div(product.cols, self.tile_cols)
        self.chunks = ceil_div(self.words, mapping.chunk_words)
        self.a_slot, self.b_slot, self.i_slot = os_slots(
            config, mapping.split, mapping.chunk_words, self.per_word, product.dense, offsets
        )
        self.sum_slot = config.rows * config.interleave
        self.outer_blocks = (
            ceil_div(self.row_tiles, mapping.row_block)
            if mapping.rows_outer
            else ceil_div(self.col_tiles, mapping.col_block)
        )

    @property
    def b_stride(self) -> int:
        return self.b_slot >> self.mapping.split

    @property
    def i_stride(self) -> int:
        return self.i_slot >> self.mapping.split

    def sum_width(self) -> int:
        return 1 << self.mapping.split

    def row_tile(self, tile: int) -> tuple[int, int]:
        return tile * self.tile_rows, min((tile + 1) * self.tile_rows, self.product.rows)

    def column_tile(self, tile: int) -> tuple[int, int]:
        return tile * self.tile_cols, min((tile + 1) * self.tile_cols, self.product.cols)

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        size = self.mapping.chunk_words * self.per_word
        return chunk * size, min((chunk + 1) * size, self.product.kept)

    def _chunk_words(self, chunk: int) -> int:
        return min(self.mapping.chunk_words, self.words - chunk * self.mapping.chunk_words)

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        region = self.memory.a
        row, row_end = self.row_tile(tile)
        byte = chunk * self.mapping.chunk_words * self.config.word_bytes
        body = {
            "address": region.address + row * region.pitch + byte,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": min(
                self._chunk_words(chunk) * self.config.word_bytes, region.row_bytes - byte
            ),
            "destination": Buffer.A,
            "stride": self.mapping.chunk_words,
            "groups": ceil_div(row_end - row, self.config.rows),
        }
        return [(Opcode.LOAD, body)]

    def _step(self, row: int, col: int, chunk: int, output: int) -> Step:
        """Return the MULTIPLY of a tile's chunk whose sums take a place in the output buffer."""
        mapping, product = self.mapping, self.product
        first, last = chunk == 0, chunk == self.chunks - 1
        given = first and product.start is not StartShape.ZERO
        again = Start.OUTPUT if mapping.depth_outer else Start.KEEP
        words = self._chunk_words(chunk)
        begin, end = self.chunk_values(chunk)
        return Step(
            a=(row, chunk),
            b=(col, chunk),
            start=self.start_key(row, col) if given else None,
            body={
                **self.common(),
                "dataflow": Dataflow.OS,
                "start": (Start.START if given else Start.ZERO) if first else again,
                "emit": int(last or mapping.depth_outer),
                "split": mapping.split,
                "words": words,
                "values": self.per_word,
                "last": end - begin - (words - 1) * self.per_word,
                "b_skip": self.aligned(chunk, 16)[2],
                "i_skip": 0 if product.dense else self.aligned(chunk, 4)[2],
                "a_stride": mapping.chunk_words,
                "b_stride": self.b_stride,
                "i_stride": 0 if product.dense else self.i_stride,
            },
            output=output,
            opens=first,
            stores=self.stores(row, col) if last else [],
            masks=self.masks(row, col) if last else [],
            adds=mapping.depth_outer and not first,
            added=mapping.depth_outer and not last,
        )

    def steps(self) -> Iterator[Step]:
        mapping = self.mapping
        output = 0
        for tiles in blocks(
            mapping.rows_outer,
            (self.row_tiles, self.col_tiles),
            (mapping.row_block, mapping.col_block),
            self.outer_blocks,
        ):
            places = list(enumerate(tiles, output))
            output += len(tiles)
            chunks = range(self.chunks)
            if mapping.depth_outer:
                order = ((place, chunk) for chunk in chunks for place in places)
            else:
                order = ((place, chunk) for place in places for chunk in chunks)
            for (at, (row, col)), chunk in order:
                yield self._step(row, col, chunk, at)
