"""What becomes of the sums of FF and BP: pixels, ReLU, its masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sat.dataflow.compile.patches import Grid
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.slots import Load
from sat.dataflow.layers import Region
from sat.dataflow.mapping import ceil_div
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


class PixelSums(Planner):
    """A product whose sums become pixels."""

    epilogue: Epilogue

    def runs(self, row_tile: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (row of the tile, rows, pixel, pixels apart) of rows at evenly spaced pixels."""
        row, row_end = self.row_tile(row_tile)
        for begin, count, pixel, step in self.epilogue.grid.runs(row, row_end):
            yield begin - row, count, pixel, step

    def _mask_place(self, col_tile: int) -> tuple[int, int]:
        """Return a tile's first byte in a pixel's mask, and its bytes."""
        col, col_end = self.column_tile(col_tile)
        cols, size = self.config.cols, self.config.mask_bytes
        word, column = divmod(self.epilogue.column + col, cols)
        count = col_end - col
        # Depthwise channels come a word of A at a time, which may be a part of a mask word.
        size_wanted = 1 if count <= min(8, cols) else ceil_div(count, cols) * size
        return word * size + column // 8, size_wanted

    def masks(self, row_tile: int, col_tile: int) -> list[Load]:
        region = self.epilogue.in_mask
        if region is None:
            return []
        byte, size = self._mask_place(col_tile)
        loads: list[Load] = []
        for begin, count, pixel, step in self.runs(row_tile):
            body = {
                "address": region.address + pixel * region.pitch + byte,
                "pitch": step * region.pitch,
                "rows": count,
                "row_bytes": size,
                "destination": Buffer.MASK,
                "base": begin * self.sum_width(),
                "stride": self.sum_width(),
                "groups": count,
            }
            loads.append((Opcode.LOAD, body))
        return loads

    def stores(self, row_tile: int, col_tile: int) -> list[dict[str, Any]]:
        epilogue = self.epilogue
        col, col_end = self.column_tile(col_tile)
        byte, size = self._mask_place(col_tile)
        made = []
        for begin, count, pixel, step in self.runs(row_tile):
            place = {
                "rows": count,
                "base": begin * self.sum_width(),
                "stride": self.sum_width(),
            }
            result, mask = epilogue.result, epilogue.out_mask
            at = result.address + pixel * result.pitch + 2 * (epilogue.column + col)
            made.append(
                {
                    **place,
                    "address": at,
                    "pitch": step * result.pitch,
                    "row_bytes": 2 * (col_end - col),
                    "format": Format.FP16,
                    "relu": int(epilogue.relu),
                    "masked": int(epilogue.in_mask is not None),
                }
            )
            if mask is not None:
                made.append(
                    {
                        **place,
                        "address": mask.address + pixel * mask.pitch + byte,
                        "pitch": step * mask.pitch,
                        "row_bytes": size,
                        "format": Format.MASK,
                    }
                )
        return made
