"""How WU is laid on the array: of layers, and of depthwise ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GradientShape:
    """How WU is laid out: tile split, tiles that share operands, positions of a chunk, taps.

    With ``lines`` a chunk is so many lines of an image, or what is left of them; with ``wide``
    groups of channels lie so that they are written together (`SatConfig.wide_groups`).
    """

    split: int
    row_tiles: int
    col_tiles: int
    positions: int
    taps: int = 1
    lines: int = 0
    wide: bool = False

    dataflow = "os"

    @property
    def sort(self) -> str:
        wide = "wide " * self.wide
        if self.lines:
            return f"{wide}lines"
        return f"{wide}taps" if self.taps > 1 else f"{wide}tap"


@dataclass(frozen=True)
class DepthwiseShape:
    """How WU of a word of depthwise channels is laid out.

    Parameters
    ----------
    split : int
        As in `OsMapping`.
    positions : int
        Of a chunk.
    whole : bool
        Whether all taps, and the indices of all columns, are loaded for a chunk; or a tile's only.
    """

    split: int
    positions: int
    whole: bool

    dataflow = "os"
    sort = "depthwise"
