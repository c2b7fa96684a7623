"""Weight stationary products as instructions."""

from __future__ import annotations

from collections.abc import Iterator

from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.planner import Planner, blocks
from sat.dataflow.compile.slots import Key, Load, Step
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
        self.outer_blocks = (
            self.row_tiles if mapping.rows_outer else ceil_div(self.col_tiles, mapping.col_block)
        )

    def row_tile(self, tile: int) -> tuple[int, int]:
        size = self.mapping.tile_rows
        return tile * size, min((tile + 1) * size, self.product.rows)

    def column_tile(self, tile: int) -> tuple[int, int]:
        size = self.config.cols
        return tile * size, min((tile + 1) * size, self.product.cols)

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        size = self.mapping.chunk_passes * self.pass_values
        return chunk * size, min((chunk + 1) * size, self.product.kept)

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        region, mapping = self.memory.a, self.mapping
        row, row_end = self.row_tile(tile)
        first_word = chunk * mapping.chunk_passes * self.pass_words
        words = min(mapping.chunk_passes * self.pass_words, self.words - first_word)
        byte = first_word * self.config.word_bytes
        body = {
            "address": region.address + row * region.pitch + byte,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": min(words * self.config.word_bytes, region.row_bytes - byte),
            "destination": Buffer.A,
            "by_word": 1,
            "stride": mapping.tile_rows,
            "groups": ceil_div(words, self.pass_words),
            "copies": self.copies,
            "words_per_pass": self.pass_words,
        }
        return [(Opcode.LOAD, body)]

    def _step(self, row: int, col: int, number: int, output: int) -> Step:
        """Return the MULTIPLY of a tile's pass whose sums take a place in the output buffer."""
        mapping, product, config = self.mapping, self.product, self.config
        chunk, within = divmod(number, mapping.chunk_passes)
        first, last = number == 0, number == self.passes - 1
        given = first and product.start is not StartShape.ZERO
        at = number * self.pass_values
        offset = at - chunk * mapping.chunk_passes * self.pass_values
        b_at = self.aligned(chunk, 16)[2] + offset
        i_at = 0 if product.dense else self.aligned(chunk, 4)[2] + offset
        return Step(
            a=(row, chunk),
            b=(col, chunk),
            start=self.start_key(row, col) if given else None,
            body={
                **self.common(),
                "dataflow": Dataflow.WS,
                "start": (Start.START if given else Start.ZERO) if first else Start.OUTPUT,
                "emit": 1,
                "words": mapping.tile_rows // config.interleave,
                "values": mapping.hold,
                "last": mapping.hold,
                "count": min(self.pass_values, product.kept - at),
                "b_skip": b_at % config.max_m,
                "b_base": b_at // config.max_m,
                "i_skip": i_at % config.indices_per_word,
                "i_base": i_at // config.indices_per_word,
                "a_base": within * mapping.tile_rows,
            },
            output=output,
            opens=first,
            stores=self.stores(row, col) if last else [],
            masks=self.masks(row, col) if last else [],
        )

    def steps(self) -> Iterator[Step]:
        mapping = self.mapping
        output = 0
        for tiles in blocks(
            mapping.rows_outer,
            (self.row_tiles, self.col_tiles),
            (1, mapping.col_block),
            self.outer_blocks,
        ):
            places = list(enumerate(tiles, output))
            output += len(tiles)
            for chunk in range(self.chunks):
                first = chunk * mapping.chunk_passes
                for at, (row, col) in places:
                    for number in range(first, min(first + mapping.chunk_passes, self.passes)):
                        yield self._step(row, col, number, at)
