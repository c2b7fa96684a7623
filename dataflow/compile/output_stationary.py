"""Output stationary products as instructions."""

from __future__ import annotations

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.planner import Planner, blocks
from sat.dataflow.compile.slots import NONE, Steps
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
        self.mapping, self.split = mapping, mapping.split
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
        self.a_keys, self.b_keys = self.row_tiles * self.chunks, self.col_tiles * self.chunks
        self.outer_blocks = (
            ceil_div(self.row_tiles, mapping.row_block)
            if mapping.rows_outer
            else ceil_div(self.col_tiles, mapping.col_block)
        )

    def row_tile(self, tile: Array) -> tuple[Array, Array]:
        return tile * self.tile_rows, np.minimum((tile + 1) * self.tile_rows, self.product.rows)

    def column_tile(self, tile: Array) -> tuple[Array, Array]:
        return tile * self.tile_cols, np.minimum((tile + 1) * self.tile_cols, self.product.cols)

    def chunk_values(self, chunk: Array) -> tuple[Array, Array]:
        size = self.mapping.chunk_words * self.per_word
        return chunk * size, np.minimum((chunk + 1) * size, self.product.kept)

    def _chunk_words(self, chunk: Array) -> Array:
        size = self.mapping.chunk_words
        return np.minimum(size, self.words - chunk * size)

    def a_loads(self, keys: Array) -> list[Block]:
        tile, chunk = np.divmod(keys, self.chunks)
        region = self.memory.a
        row, row_end = self.row_tile(tile)
        byte = chunk * self.mapping.chunk_words * self.config.word_bytes
        fields: dict[str, Field] = {
            "address": region.address + row * region.pitch + byte,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": np.minimum(
                self._chunk_words(chunk) * self.config.word_bytes, region.row_bytes - byte
            ),
            "destination": Buffer.A,
            "stride": self.mapping.chunk_words,
            "groups": -(-(row_end - row) // self.config.rows),
        }
        return [Block(Opcode.LOAD, fields, np.arange(len(keys)))]

    def _chunk_fields(self) -> dict[str, Value]:
        """Return the fields that depend on the chunk, for each of them."""
        product = self.product
        chunk = np.arange(self.chunks)
        words = self._chunk_words(chunk)
        begin, end = self.chunk_values(chunk)
        again = Start.OUTPUT if self.mapping.depth_outer else Start.KEEP
        first = Start.ZERO if product.start is StartShape.ZERO else Start.START
        return {
            "start": np.where(chunk == 0, first.value, again.value),
            "emit": 1 if self.mapping.depth_outer else (chunk == self.chunks - 1).astype(np.int64),
            "words": words,
            "last": end - begin - (words - 1) * self.per_word,
            "b_skip": self.aligned(chunk, 16)[2],
            "i_skip": 0 if product.dense else self.aligned(chunk, 4)[2],
        }

    def steps(self) -> Steps:
        mapping, product, chunks = self.mapping, self.product, self.chunks
        rows, cols, block = blocks(
            mapping.rows_outer,
            (self.row_tiles, self.col_tiles),
            (mapping.row_block, mapping.col_block),
            self.outer_blocks,
        )
        output, chunk = np.divmod(np.arange(len(rows) * chunks), chunks)
        if mapping.depth_outer:
            order = np.argsort(block[output] * chunks + chunk, kind="stable")
            output, chunk = output[order], chunk[order]
        row, col = rows[output], cols[output]
        first, last = chunk == 0, chunk == chunks - 1
        start = None
        if product.start is not StartShape.ZERO:
            start = np.where(first, self.start_key(row, col), NONE)
        by_chunk = {
            name: value[chunk] if isinstance(value, np.ndarray) else value
            for name, value in self._chunk_fields().items()
        }
        return Steps(
            a=row * chunks + chunk,
            b=col * chunks + chunk,
            start=start,
            body={
                **self.common(),
                "dataflow": Dataflow.OS.value,
                "split": mapping.split,
                "values": self.per_word,
                "a_stride": mapping.chunk_words,
                "b_stride": self.b_stride,
                "i_stride": 0 if product.dense else self.i_stride,
                **by_chunk,
            },
            output=output,
            opens=first,
            closes=last,
            row=row,
            col=col,
            adds=~first if mapping.depth_outer else None,
            added=~last if mapping.depth_outer else None,
        )
