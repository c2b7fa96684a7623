"""What every product's plan shares: which operands its MULTIPLYs need, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.slots import Key, Load, Step
from sat.dataflow.mapping import ceil_div, values_per_word
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Opcode


class Planner:
    """A product's plan: the steps, and the loads and stores that they name.

    Attributes
    ----------
    outer_blocks : int
        Blocks of tiles along the outer axis; set to fewer, it is a plan of the first ones.
    """

    def __init__(self, product: Product, config: SatConfig, memory: MemoryMap):
        self.product, self.config, self.memory = product, config, memory
        self.per_word = values_per_word(product, config)
        self.words = ceil_div(product.depth, config.max_m)
        self.a_slot = self.b_slot = self.i_slot = self.sum_slot = 1
        self.outer_blocks = 1

    @property
    def slots(self) -> tuple[int, int, int, int]:
        """Words of a slot in the banks of A, B, indices, and sums."""
        return self.a_slot, self.b_slot, self.i_slot, self.sum_slot

    def steps(self) -> Iterator[Step]:
        """Yield the MULTIPLYs in order."""
        raise AssertionError("each dataflow has its own")

    def a_loads(self, key: Key) -> list[Load]:
        """Return what fills a slot of A."""
        raise AssertionError("each dataflow has its own")

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        """Return the first stored value of a chunk of the depth, and the first behind it."""
        raise AssertionError("each dataflow has its own")

    def column_tile(self, tile: int) -> tuple[int, int]:
        """Return the first column of a tile, and the first behind it."""
        raise AssertionError("each dataflow has its own")

    def row_tile(self, tile: int) -> tuple[int, int]:
        """Return the first row of a tile, and the first behind it."""
        raise AssertionError("each dataflow has its own")

    def sum_width(self) -> int:
        """Return the words of a sum bank that one row of a tile takes."""
        return 1

    # B values and indices: columns are the rows in memory, a chunk is a part of each.

    def aligned(self, chunk: int, bits: int) -> tuple[int, int, int]:
        """Return a chunk's first byte, bytes, and how many values precede it there.

        The first byte is on a granule; ``bits`` is the size of one value.
        """
        first, end = self.chunk_values(chunk)
        skip = first % (8 * self.config.granule_bytes // bits)
        start_byte = (first - skip) * bits // 8
        return start_byte, ceil_div(end * bits, 8) - start_byte, skip

    def b_loads(self, key: Key) -> list[Load]:
        """Return what fills a slot of B and its indices."""
        tile, chunk = key
        first, end = self.column_tile(tile)
        cols = end - first
        loads: list[Load] = []
        for region, bits, buffer, stride in (
            (self.memory.b, 16, Buffer.B, self.b_stride),
            (self.memory.indices, 4, Buffer.INDEX, self.i_stride),
        ):
            if region is None:
                continue
            byte, length, _ = self.aligned(chunk, bits)
            body = {
                "address": region.address + first * region.pitch + byte,
                "pitch": region.pitch,
                "rows": cols,
                "row_bytes": length,
                "destination": buffer,
                "stride": stride,
                "groups": ceil_div(cols, self.config.cols),
            }
            loads.append((Opcode.LOAD, body))
        return loads

    @property
    def b_stride(self) -> int:
        return self.b_slot

    @property
    def i_stride(self) -> int:
        return self.i_slot

    def start_key(self, row: int, col: int) -> Key:
        """Return what a tile's start values are: those of all its column if rows are alike."""
        return (0 if self.product.start is StartShape.ROW else row, col)

    def start_loads(self, key: Key) -> list[Load]:
        """Return what fills a slot of the start buffer.

        The first tile of a column has as many rows as any.
        """
        region = self.memory.start
        assert region is not None
        (row, row_end), (col, col_end) = self.row_tile(key[0]), self.column_tile(key[1])
        body = {
            "address": region.address + row * region.pitch + 4 * col,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "destination": Buffer.START,
            "stride": self.sum_width(),
            "groups": row_end - row,
        }
        return [(Opcode.LOAD, body)]

    def masks(self, row_tile: int, col_tile: int) -> list[Load]:
        """Return the LOADs of the mask bits that a tile's STOREs need."""
        return []

    def stores(self, row_tile: int, col_tile: int) -> list[dict[str, Any]]:
        """Return the STOREs of a tile, bases counted from its place."""
        region = self.memory.result
        (row, row_end), (col, col_end) = self.row_tile(row_tile), self.column_tile(col_tile)
        body = {
            "address": region.address + row * region.pitch + 4 * col,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "stride": self.sum_width(),
        }
        return [body]

    def common(self) -> dict[str, Any]:
        """Return the fields that all MULTIPLYs of the product share."""
        product = self.product
        return {"n": product.n, "log2_m": product.m.bit_length() - 1}


def blocks(
    rows_outer: bool, tiles: tuple[int, int], block: tuple[int, int], outer_blocks: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield the tiles (row, column) of each block, along the inner axis first.

    Parameters
    ----------
    rows_outer : bool
        Rows are the outer axis, of blocks; within a block, they are the inner one.
    tiles, block : (int, int)
        Tiles along rows and columns; of a block.
    outer_blocks : int
        Blocks along the outer axis, or the first ones only.
    """
    outers = range(0, tiles[not rows_outer], block[not rows_outer])
    for outer in outers[:outer_blocks]:
        for inner in range(0, tiles[rows_outer], block[rows_outer]):
            yield [
                (o, i) if rows_outer else (i, o)
                for i in range(inner, min(inner + block[rows_outer], tiles[rows_outer]))
                for o in range(outer, min(outer + block[not rows_outer], tiles[not rows_outer]))
            ]
