"""What every product's plan shares: which operands its MULTIPLYs need, and where they lie."""

from __future__ import annotations

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.slots import Steps
from sat.dataflow.mapping import ceil_div, values_per_word
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Opcode


class Planner:
    """A plan of a product, or of a stack of them: the steps, and the loads and stores of each.

    What a plan needs and stores has numbers, from 0 on. Methods take arrays of them; blocks of
    instructions that they return name as owner the place in that array.

    Attributes
    ----------
    split : int
        Log2 of how many of a USPE's interleaved sums lie side by side in a row of the tile (OS): so
        many groups of columns has a slot of B. 0 for WS.
    outer_blocks : int
        Blocks of tiles along the outer axis; set to fewer, it is a plan of the first ones.
    row_tiles, col_tiles : int
        Tiles along rows and columns.
    a_keys, b_keys : int
        Different contents of slots of A and B.
    """

    row_tiles: int
    col_tiles: int
    a_keys: int
    b_keys: int

    def __init__(self, product: Product, config: SatConfig, memory: MemoryMap):
        self.product, self.config = product, config
        self.apart = memory.apart()
        self.memory = memory if product.count == 1 else memory.of(0)
        self.per_word = values_per_word(product, config)
        self.words = ceil_div(product.depth, config.max_m)
        self.a_slot = self.b_slot = self.i_slot = self.sum_slot = 1
        self.split = 0
        self.outer_blocks = 1

    @property
    def slots(self) -> tuple[int, int, int, int]:
        """Words of a slot in the banks of A, B, indices, and sums."""
        return self.a_slot, self.b_slot, self.i_slot, self.sum_slot

    def steps(self) -> Steps:
        """Return the MULTIPLYs of one product in order."""
        raise AssertionError("each dataflow has its own")

    def all_steps(self) -> Steps:
        """Return the MULTIPLYs of all products of the stack."""
        count, one = self.product.count, self.steps()
        if count == 1:
            return one
        return one.stacked(count, self.a_keys, self.b_keys, self.start_keys, self.row_tiles)

    def a_loads(self, keys: Array) -> list[Block]:
        """Return what fills slots of A."""
        raise AssertionError("each dataflow has its own")

    def chunk_values(self, chunk: Array) -> tuple[Array, Array]:
        """Return the first stored values of chunks of the depth, and the first behind them."""
        raise AssertionError("each dataflow has its own")

    def column_tile(self, tile: Array) -> tuple[Array, Array]:
        """Return the first columns of tiles, and the first behind them."""
        raise AssertionError("each dataflow has its own")

    def row_tile(self, tile: Array) -> tuple[Array, Array]:
        """Return the first rows of tiles, and the first behind them."""
        raise AssertionError("each dataflow has its own")

    def sum_width(self) -> int:
        """Return the words of a sum bank that one row of a tile takes."""
        return 1 << self.split

    # B values and indices: columns are the rows in memory, a chunk is a part of each.

    def aligned(self, chunk: Array, bits: int) -> tuple[Array, Array, Array]:
        """Return chunks' first byte, bytes, and how many values precede them there.

        The first byte is on a granule; ``bits`` is the size of one value.
        """
        first, end = self.chunk_values(chunk)
        skip = first % (8 * self.config.granule_bytes // bits)
        start_byte = (first - skip) * bits // 8
        return start_byte, -(-end * bits // 8) - start_byte, skip

    def b_loads(self, keys: Array) -> list[Block]:
        """Return what fills slots of B and its indices."""
        chunks = self.b_keys // self.col_tiles
        return self.column_loads(keys // chunks, keys % chunks)

    def column_loads(self, tile: Array, chunk: Array, base: int = 0, index: int = 0) -> list[Block]:
        """Return the LOADs of chunks of tiles of columns, to words ``base`` of B, ``index``."""
        first, end = self.column_tile(tile)
        cols = end - first
        blocks: list[Block] = []
        for region, bits, buffer, stride, at in (
            (self.memory.b, 16, Buffer.B, self.b_stride, base),
            (self.memory.indices, 4, Buffer.INDEX, self.i_stride, index),
        ):
            if region is None:
                continue
            byte, length, _ = self.aligned(chunk, bits)
            fields: dict[str, Field] = {
                "address": region.address + first * region.pitch + byte,
                "pitch": region.pitch,
                "rows": cols,
                "row_bytes": length,
                "destination": buffer,
                "stride": stride,
                "groups": -(-cols // self.config.cols),
                "base": at,
            }
            blocks.append(Block(Opcode.LOAD, fields, np.arange(len(tile)), len(blocks)))
        return blocks

    @property
    def b_stride(self) -> int:
        return self.b_slot >> self.split

    @property
    def i_stride(self) -> int:
        return self.i_slot >> self.split

    @property
    def start_keys(self) -> int:
        """Different contents of slots of the start buffer."""
        return self.col_tiles * (1 if self.product.start is StartShape.ROW else self.row_tiles)

    def start_key(self, row: Array, col: Array) -> Array:
        """Return what tiles' start values are: those of all a column if rows are alike."""
        return (0 if self.product.start is StartShape.ROW else row * self.col_tiles) + col

    def start_loads(self, keys: Array) -> list[Block]:
        """Return what fills slots of the start buffer.

        The first tile of a column has as many rows as any.
        """
        region = self.memory.start
        assert region is not None
        (row, row_end) = self.row_tile(keys // self.col_tiles)
        (col, col_end) = self.column_tile(keys % self.col_tiles)
        fields: dict[str, Field] = {
            "address": region.address + row * region.pitch + 4 * col,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "destination": Buffer.START,
            "stride": self.sum_width(),
            "groups": row_end - row,
        }
        return [Block(Opcode.LOAD, fields, np.arange(len(keys)))]

    @property
    def masked(self) -> bool:
        """Whether tiles' STOREs need mask bits."""
        return False

    def masks(self, row_tile: Array, col_tile: Array) -> list[Block]:
        """Return the LOADs of the mask bits that tiles' STOREs need."""
        raise AssertionError("only pixels have masks")

    def stores(self, row_tile: Array, col_tile: Array) -> list[Block]:
        """Return the STOREs of tiles, bases counted from their places."""
        region = self.memory.result
        (row, row_end), (col, col_end) = self.row_tile(row_tile), self.column_tile(col_tile)
        fields: dict[str, Value] = {
            "address": region.address + row * region.pitch + 4 * col,
            "pitch": region.pitch,
            "rows": row_end - row,
            "row_bytes": 4 * (col_end - col),
            "stride": self.sum_width(),
        }
        return [Block(Opcode.STORE, fields, np.arange(len(row)))]

    def common(self) -> dict[str, Value]:
        """Return the fields that all MULTIPLYs of the product share."""
        product = self.product
        return {"n": product.n, "log2_m": product.m.bit_length() - 1}


def blocks(
    rows_outer: bool, tiles: tuple[int, int], block: tuple[int, int], outer_blocks: int
) -> tuple[Array, Array, Array]:
    """Return the rows and columns of tiles in order, and the number of each one's block.

    Parameters
    ----------
    rows_outer : bool
        Rows are the outer axis, of blocks; within a block, they are the inner one.
    tiles, block : (int, int)
        Tiles along rows and columns; of a block.
    split : int
        Log2 of how many of a USPE's interleaved sums lie side by side in a row of the tile (OS): so
        many groups of columns has a slot of B. 0 for WS.
    outer_blocks : int
        Blocks along the outer axis, or the first ones only.
    """
    outer_block, inner_block = block[not rows_outer], block[rows_outer]
    inners = tiles[rows_outer]
    outers = min(tiles[not rows_outer], outer_blocks * outer_block)
    inner, outer = np.divmod(np.arange(inners * outers), outers)
    number = outer // outer_block * ceil_div(inners, inner_block) + inner // inner_block
    # Within a block the inner axis comes first, and so it does in what is sorted.
    order = np.argsort(number, kind="stable")
    outer, inner, number = outer[order], inner[order], number[order]
    return (outer, inner, number) if rows_outer else (inner, outer, number)
