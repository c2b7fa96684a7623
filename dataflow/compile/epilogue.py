"""What becomes of the sums of FF and BP: pixels, ReLU, its masks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from sat.dataflow.columns import Array, Block, Field, Value
from sat.dataflow.compile.patches import Grid, Runs
from sat.dataflow.compile.planner import Planner
from sat.dataflow.layers import Region
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Format, Opcode


@dataclass(frozen=True)
class Epilogue:
    """What becomes of the sums: rows of pixels in ``result``, from byte ``offset`` on.

    Parameters
    ----------
    result : Region
        FP16 pixels.
    column : int
        Channel of the product's first column.
    grid : Grid
        Where the product's rows lie.
    relu : bool
    out_mask, in_mask : Region or None
        The mask that is written; that is applied.
    """

    result: Region
    column: int
    grid: Grid
    relu: bool = False
    out_mask: Region | None = None
    in_mask: Region | None = None

    def alike(self, config: SatConfig) -> Hashable:
        """Return all that the cycles of its STOREs and masks depend on."""
        places = self.result, self.out_mask, self.in_mask
        regions = tuple(place and place.alike(config) for place in places)
        return regions, self.column, self.grid


class PixelSums(Planner):
    """A product whose sums become pixels."""

    epilogue: Epilogue

    def runs(self, row_tile: Array) -> Runs:
        """Return the runs of pixels of tiles; rows are counted in the tile."""
        row, row_end = self.row_tile(row_tile)
        runs = self.epilogue.grid.runs(row, row_end)
        return runs._replace(begin=runs.begin - row[runs.owner])

    def _mask_place(self, col_tile: Array) -> tuple[Array, Array]:
        """Return tiles' first byte in a pixel's mask, and their bytes."""
        col, col_end = self.column_tile(col_tile)
        cols, size = self.config.cols, self.config.mask_bytes
        word, column = np.divmod(self.epilogue.column + col, cols)
        count = col_end - col
        # Depthwise channels come a word of A at a time, which may be a part of a mask word.
        size_wanted = np.where(count <= min(8, cols), 1, -(-count // cols) * size)
        return word * size + column // 8, size_wanted

    @property
    def masked(self) -> bool:
        return self.epilogue.in_mask is not None

    def masks(self, row_tile: Array, col_tile: Array) -> list[Block]:
        region = self.epilogue.in_mask
        assert region is not None
        byte, size = self._mask_place(col_tile)
        runs = self.runs(row_tile)
        fields: dict[str, Field] = {
            "address": region.address + runs.pixel * region.pitch + byte[runs.owner],
            "pitch": runs.apart * region.pitch,
            "rows": runs.size,
            "row_bytes": size[runs.owner],
            "destination": Buffer.MASK,
            "base": runs.begin * self.sum_width(),
            "stride": self.sum_width(),
            "groups": runs.size,
        }
        return [Block(Opcode.LOAD, fields, runs.owner, np.arange(len(runs.owner)))]

    def stores(self, row_tile: Array, col_tile: Array) -> list[Block]:
        epilogue = self.epilogue
        col, col_end = self.column_tile(col_tile)
        runs = self.runs(row_tile)
        place: dict[str, Value] = {
            "rows": runs.size,
            "base": runs.begin * self.sum_width(),
            "stride": self.sum_width(),
        }
        result, mask = epilogue.result, epilogue.out_mask
        number = 2 * np.arange(len(runs.owner))
        fields: dict[str, Field] = {
            **place,
            "address": result.address
            + runs.pixel * result.pitch
            + 2 * (epilogue.column + col[runs.owner]),
            "pitch": runs.apart * result.pitch,
            "row_bytes": 2 * (col_end - col)[runs.owner],
            "format": Format.FP16,
            "relu": int(epilogue.relu),
            "masked": int(epilogue.in_mask is not None),
        }
        blocks = [Block(Opcode.STORE, fields, runs.owner, number)]
        if mask is not None:
            byte, size = self._mask_place(col_tile)
            fields = {
                **place,
                "address": mask.address + runs.pixel * mask.pitch + byte[runs.owner],
                "pitch": runs.apart * mask.pitch,
                "row_bytes": size[runs.owner],
                "format": Format.MASK,
            }
            blocks.append(Block(Opcode.STORE, fields, runs.owner, number + 1))
        return blocks
