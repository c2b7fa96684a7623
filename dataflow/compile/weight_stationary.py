"""Weight stationary products as instructions."""

from __future__ import annotations

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.planner import Planner, blocks
from sat.dataflow.compile.slots import NONE, Steps
from sat.dataflow.mapping import WsMapping, ceil_div, ws_slots
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start


class WsPlanner(Planner):
    """A product under a `WsMapping`: weights stay while rows of A pass, pass after pass."""

    def __init__(
        self,
        product: Product,
        config: SatConfig,
        mapping: WsMapping,
        memory: MemoryMap,
        offsets: tuple[int, ...] = (0,),
    ):
        super().__init__(product, config, memory)
        self.mapping, self.offsets = mapping, offsets
        self.copies = self.per_word // mapping.hold
        self.pass_words = mapping.pass_words
        self.pass_values = self.pass_words * self.per_word
        self.passes = ceil_div(self.words, self.pass_words)
        self.chunks = ceil_div(self.passes, mapping.chunk_passes)
        self.row_tiles = ceil_div(product.rows, mapping.tile_rows)
        self.col_tiles = ceil_div(product.cols, config.cols)
        self.a_slot, self.b_slot, self.i_slot = ws_slots(
            config,
            mapping.tile_rows,
            mapping.chunk_passes,
            self.pass_values,
            product.dense,
            offsets,
        )
        self.sum_slot = mapping.tile_rows
        self.a_keys, self.b_keys = self.row_tiles * self.chunks, self.col_tiles * self.chunks
        self.outer_blocks = (
            self.row_tiles if mapping.rows_outer else ceil_div(self.col_tiles, mapping.col_block)
        )

    def row_tile(self, tile: Array) -> tuple[Array, Array]:
        size = self.mapping.tile_rows
        return tile * size, np.minimum((tile + 1) * size, self.product.rows)

    def column_tile(self, tile: Array) -> tuple[Array, Array]:
        size = self.config.cols
        return tile * size, np.minimum((tile + 1) * size, self.product.cols)

    def chunk_values(self, chunk: Array) -> tuple[Array, Array]:
        size = self.mapping.chunk_passes * self.pass_values
        return chunk * size, np.minimum((chunk + 1) * size, self.product.kept)

    def a_loads(self, keys: Array) -> list[Block]:
        tile, chunk = np.divmod(keys, self.chunks)
        region, mapping = self.memory.a, self.mapping
        row, row_end = self.row_tile(tile)
        first_word = chunk * mapping.chunk_passes * self.pass_words
        words = np.minimum(mapping.chunk_passes * self.pass_words, self.words - first_word)
        byte = first_word * self.config.word_bytes
        fields: dict[str, Field] = {
            "address": region.address + row * region.pitch + byte,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": np.minimum(words * self.config.word_bytes, region.row_bytes - byte),
            "destination": Buffer.A,
            "by_word": 1,
            "stride": mapping.tile_rows,
            "groups": -(-words // self.pass_words),
            "copies": self.copies,
            "words_per_pass": self.pass_words,
        }
        return [Block(Opcode.LOAD, fields, np.arange(len(keys)))]

    def _pass_fields(self) -> dict[str, Value]:
        """Return the fields that depend on the pass, for each of them."""
        mapping, product, config = self.mapping, self.product, self.config
        number = np.arange(self.passes)
        chunk, within = np.divmod(number, mapping.chunk_passes)
        at = number * self.pass_values
        offset = at - chunk * mapping.chunk_passes * self.pass_values
        b_at = self.aligned(chunk, 16)[2] + offset
        i_at = np.zeros_like(at) if product.dense else self.aligned(chunk, 4)[2] + offset
        first = Start.ZERO if product.start is StartShape.ZERO else Start.START
        return {
            "start": np.where(number == 0, first.value, Start.OUTPUT.value),
            "count": np.minimum(self.pass_values, product.kept - at),
            "b_skip": b_at % config.max_m,
            "b_base": b_at // config.max_m,
            "i_skip": i_at % config.indices_per_word,
            "i_base": i_at // config.indices_per_word,
            "a_base": within * mapping.tile_rows,
        }

    def steps(self) -> Steps:
        mapping, product = self.mapping, self.product
        rows, cols, block = blocks(
            mapping.rows_outer,
            (self.row_tiles, self.col_tiles),
            (1, mapping.col_block),
            self.outer_blocks,
        )
        output, number = np.divmod(np.arange(len(rows) * self.passes), self.passes)
        chunk = number // mapping.chunk_passes
        order = np.argsort(block[output] * self.chunks + chunk, kind="stable")
        output, number, chunk = output[order], number[order], chunk[order]
        row, col = rows[output], cols[output]
        first = number == 0
        start = None
        if product.start is not StartShape.ZERO:
            start = np.where(first, self.start_key(row, col), NONE)
        return Steps(
            a=row * self.chunks + chunk,
            b=col * self.chunks + chunk,
            start=start,
            body={
                **self.common(),
                "dataflow": Dataflow.WS.value,
                "emit": 1,
                "words": mapping.tile_rows // self.config.interleave,
                "values": mapping.hold,
                "last": mapping.hold,
                **{
                    name: value[number] if isinstance(value, np.ndarray) else value
                    for name, value in self._pass_fields().items()
                },
            },
            output=output,
            opens=first,
            closes=number == self.passes - 1,
            row=row,
            col=col,
        )
