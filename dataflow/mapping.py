"""How a product is laid on the array: dataflow, tile shape, order, chunks of depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.fit import DoesNotFit
from sat.dataflow.products import Product
from sat.rtl.config import SEMAPHORE_MAX, SatConfig

Counts = TypeVar("Counts", int, NDArray[np.int64])


def ceil_div(a: Counts, b: int) -> Counts:
    """Return a / b rounded up."""
    return -(-a // b)


def round_up(a: Counts, b: int) -> Counts:
    """Return the least multiple of b that is not below a."""
    return ceil_div(a, b) * b


def slot_count(words: int, slot_words: int) -> int:
    """Return how many slots of a buffer a program uses.

    Each slot that is full, or free, is a raise of one semaphore that nobody may have waited for
    yet: no more slots are used than its counter can count, whatever the timing.
    """
    return min(words // slot_words, SEMAPHORE_MAX)


def values_per_word(product: Product, config: SatConfig) -> int:
    """Return how many stored values of B meet one word of A (``max_m`` elements)."""
    return product.n * config.max_m // product.m


@dataclass(frozen=True, kw_only=True)
class OsMapping:
    """Output stationary: a tile of sums stays in the array while the depth passes.

    Parameters
    ----------
    split : int
        log2 of the interleaved sums of a USPE that lie side by side in a row; the others lie
        below each other. A tile is ``rows * (interleave >> split)`` by ``cols << split``.
    chunk_words : int
        Words of the depth that one MULTIPLY takes.
    rows_outer : bool
        Blocks of tile rows outside, of tile columns inside; or the other way.
    row_block, col_block : int
        Tile rows and tile columns of a block.
    depth_outer : bool
        The chunks of the depth pass a block one after the other, and the sums of all its tiles
        wait in the output buffer; or all chunks pass one tile, whose sums stay in the array.
    """

    split: int
    chunk_words: int
    rows_outer: bool
    row_block: int = 1
    col_block: int = 1
    depth_outer: bool = False

    dataflow = "os"

    @property
    def sort(self) -> str:
        return "blocks" if self.depth_outer else "tiles"


@dataclass(frozen=True, kw_only=True)
class WsMapping:
    """Weight stationary: weights stay in the array while rows of A pass, pass after pass.

    Parameters
    ----------
    hold : int
        Weights in each USPE.
    pass_words : int
        Words of the depth that one pass takes: as many as the array's rows hold, or fewer.
    tile_rows : int
        Rows of a tile; a multiple of the interleave.
    chunk_passes : int
        Passes whose operands are loaded together.
    rows_outer : bool
        Row blocks outside, tile columns inside; or the other way.
    col_block : int
        Tile columns that a chunk of A meets while it is there; their sums wait in the output
        buffer.
    """

    hold: int
    pass_words: int
    tile_rows: int
    chunk_passes: int
    rows_outer: bool
    col_block: int = 1

    dataflow = sort = "ws"


@dataclass(frozen=True, kw_only=True)
class BandMapping:
    """Output stationary, for patches that overlap: a bank holds all pixels of a band of positions.

    Each row of the array has a band of its own, a rectangle of positions of an image. The pixels
    that any of them meets are loaded once; MULTIPLYs read windows of them, and the interleaved
    sums of a bank are neighbours.

    Parameters
    ----------
    split : int
        As in `OsMapping`.
    lines, pixels : int
        Positions of a band.
    rows_outer : bool
        Sets of bands outside, tile columns inside; or the other way.
    block : int
        Sets of bands (or tile columns) that stay while the others pass.
    """

    split: int
    lines: int
    pixels: int
    rows_outer: bool
    block: int

    dataflow = "os"
    sort = "bands"


Mapping = OsMapping | WsMapping
"""Of a product."""

LayerMapping = Mapping | BandMapping
"""Of a product that is part of a convolution."""


def _halvings(value: int) -> Iterator[int]:
    """Yield value, about half of it, … down to 1."""
    while True:
        yield value
        if value == 1:
            return
        value = ceil_div(value, 2)


def legal_mappings(product: Product, config: SatConfig, dataflow: str = "auto") -> list[Mapping]:
    """Return the mappings worth trying; each is legal on the device.

    Parameters
    ----------
    dataflow : {"auto", "os", "ws"}

    Raises
    ------
    DoesNotFit
        The device cannot run the pattern, or hold it weight stationary.
    ValueError
        ``dataflow`` is none of these.
    """
    if product.m > config.max_m:
        raise DoesNotFit(
            f"pattern {product.n}:{product.m}: this device has max_m={config.max_m}",
            {"max_m": product.m},
            "use a smaller M",
        )
    if dataflow not in ("auto", "os", "ws"):
        raise ValueError(f"dataflow={dataflow!r}: must be 'auto', 'os' or 'ws'")
    found: list[Mapping] = []
    if dataflow != "ws":
        found += os_mappings(product, config)
    if dataflow != "os":
        found += ws_mappings(product, config)
    if not found:
        # Output stationary, a word at a time always fits; weights have to fit the USPEs.
        per_word = values_per_word(product, config)
        hold = next(n for n in range(1, per_word + 1) if _holds(config, per_word, n))
        raise DoesNotFit(
            f"{product} cannot be weight stationary: the {per_word} values of B that meet a word "
            f"of A need {config.rows} rows of USPEs that hold {hold}, and these hold at most "
            f"{config.max_n}",
            {"max_n": hold},
            "choose dataflow='os'",
        )
    return found


def os_mappings(
    product: Product,
    config: SatConfig,
    offsets: tuple[int, ...] = (0,),
    chunk_words: int | None = None,
) -> list[OsMapping]:
    """Return the output stationary mappings worth trying.

    Parameters
    ----------
    offsets : tuple of int
        Where values of a column of B may begin, counted from its first in memory.
    chunk_words : int, optional
        Words of every chunk of the depth; if not given, what the buffers hold.
    """
    found: list[OsMapping] = []
    for split in range(config.interleave.bit_length()):
        found += _depth_inside(product, config, split, offsets, chunk_words)
        found += _depth_outside(product, config, split, offsets, chunk_words)
    return found


def os_tiles(product: Product, config: SatConfig, split: int) -> tuple[int, int]:
    """Return the tiles along the rows and the columns of an output stationary product."""
    return (
        ceil_div(product.rows, config.rows * (config.interleave >> split)),
        ceil_div(product.cols, config.cols << split),
    )


def os_fits(
    product: Product,
    config: SatConfig,
    split: int,
    chunk_words: int,
    offsets: tuple[int, ...] = (0,),
) -> tuple[int, int]:
    """Return how many chunks of tiles the banks of A, and of B and its indices, hold."""
    per_word = values_per_word(product, config)
    slots = os_slots(config, split, chunk_words, per_word, product.dense, offsets)
    depths = (config.a_words, config.b_words, config.i_words)
    a_fit, b_fit, i_fit = map(slot_count, depths, slots)
    return a_fit, min(b_fit, i_fit)


def _depth_inside(
    product: Product,
    config: SatConfig,
    split: int,
    offsets: tuple[int, ...],
    chunk_words: int | None,
) -> Iterator[OsMapping]:
    """Yield mappings whose tiles take all their depth at once."""
    words = ceil_div(product.depth, config.max_m)
    # The longest chunk of which both operand buffers hold two (or all there is).
    for chunk in _halvings(words) if chunk_words is None else (chunk_words,):
        fits = os_fits(product, config, split, chunk, offsets)
        if chunk == 1 or min(fits) >= 2:
            break
    if min(fits) < 1:
        return
    tiles = os_tiles(product, config, split)
    for rows_outer in (True, False):
        # The block stays while the other operand streams past it: all its chunks must fit.
        room = (fits[not rows_outer] - 1) // ceil_div(words, chunk)
        most = max(1, min(tiles[not rows_outer], room))
        for block in dict.fromkeys((most, ceil_div(most, 2), ceil_div(most, 4))):
            yield OsMapping(
                split=split,
                chunk_words=chunk,
                rows_outer=rows_outer,
                row_block=block if rows_outer else 1,
                col_block=1 if rows_outer else block,
            )


def _depth_outside(
    product: Product,
    config: SatConfig,
    split: int,
    offsets: tuple[int, ...],
    chunk_words: int | None,
) -> Iterator[OsMapping]:
    """Yield mappings whose blocks of tiles keep their sums in the output buffer."""
    words = ceil_div(product.depth, config.max_m)
    chunks = dict.fromkeys(ceil_div(words, n) for n in range(2, words + 1))
    if chunk_words is not None:
        chunks = dict.fromkeys([chunk_words] if chunk_words < words else [])
    fits = {chunk: os_fits(product, config, split, chunk, offsets) for chunk in chunks}
    tiles = os_tiles(product, config, split)
    places = slot_count(config.sum_words, config.rows * config.interleave)
    for rows_outer in (True, False):
        outer, inner = tiles if rows_outer else tiles[::-1]
        found = set()
        for at_most in range(1, min(outer, places) + 1):
            # No block smaller than it must be for as many blocks.
            block = ceil_div(outer, ceil_div(outer, at_most))
            other = min(inner, places // block)
            other = ceil_div(inner, ceil_div(inner, other))
            if block * other == 1 or (block, other) in found:
                continue
            found.add((block, other))
            # One operand's block stays while the other's streams past: the longest chunk of which
            # the next is loaded in time, and the longest that fits.
            longest = []
            for room in (2 * block, block + 1):
                for chunk in chunks:
                    resident, passing = fits[chunk] if rows_outer else fits[chunk][::-1]
                    if resident >= room and passing >= 2:
                        longest.append(chunk)
                        break
            for chunk in dict.fromkeys(longest):
                yield OsMapping(
                    split=split,
                    chunk_words=chunk,
                    rows_outer=rows_outer,
                    row_block=block if rows_outer else other,
                    col_block=other if rows_outer else block,
                    depth_outer=True,
                )


def os_slots(
    config: SatConfig,
    split: int,
    chunk_words: int,
    per_word: int,
    dense: bool,
    offsets: tuple[int, ...] = (0,),
) -> tuple[int, int, int]:
    """Return the words of A, B and index banks that a tile's chunk takes."""
    values = chunk_words * per_word
    # A chunk that starts inside a granule brings the values before it along.
    b_skip = _skip(config.granule_bytes // 2, values, offsets)
    i_skip = _skip(config.granule_bytes * 2, values, offsets)
    b_words = ceil_div(values + b_skip, config.max_m)
    i_words = ceil_div(values + i_skip, config.indices_per_word)
    return (
        (config.interleave >> split) * chunk_words,
        b_words << split,
        1 if dense else i_words << split,
    )


def _skip(per_granule: int, chunk_values: int, offsets: tuple[int, ...] = (0,)) -> int:
    """Return the most values that a chunk's first granule may hold before the chunk's own."""
    for values in (chunk_values, *offsets):
        if values % per_granule:
            return per_granule - 1
    return 0


def _holds(config: SatConfig, per_word: int, hold: int) -> bool:
    """Whether the array's rows can hold a word's values, ``hold`` in each USPE."""
    return per_word % hold == 0 and per_word // hold <= config.rows


def _pass_words(
    config: SatConfig, per_word: int, hold: int, dense: bool, offsets: tuple[int, ...]
) -> int:
    """Return the words of a pass: all that the rows hold, or half, … of it if banks are shallow."""
    for words in _halvings(config.rows // (per_word // hold)):
        _, b_slot, i_slot = ws_slots(config, 1, 1, words * per_word, dense, offsets)
        if b_slot <= config.b_words and i_slot <= config.i_words:
            break
    return words


def ws_mappings(
    product: Product, config: SatConfig, offsets: tuple[int, ...] = (0,)
) -> list[WsMapping]:
    """Return the weight stationary mappings worth trying; ``offsets`` as in `os_mappings`."""
    s = config.interleave
    per_word = values_per_word(product, config)
    words = ceil_div(product.depth, config.max_m)
    found: list[WsMapping] = []
    for hold in range(1, config.max_n + 1):
        if not _holds(config, per_word, hold):
            continue
        pass_words = _pass_words(config, per_word, hold, product.dense, offsets)
        passes = ceil_div(words, pass_words)
        most = min(round_up(product.rows, s), config.sum_words // 2 // s * s, config.a_words)
        for tile_rows in {round_up(t, s) for t in _halvings(most) if t >= min(most, 16)}:
            for chunk in _halvings(passes):
                a_slot, b_slot, i_slot = ws_slots(
                    config, tile_rows, chunk, pass_words * per_word, product.dense, offsets
                )
                fit = min(
                    slot_count(config.a_words, a_slot),
                    slot_count(config.b_words, b_slot),
                    slot_count(config.i_words, i_slot),
                )
                # One pass at a time gives the finest overlap; longer chunks, fewer loads.
                if fit < (1 if chunk == 1 else 2):
                    continue
                cols = ceil_div(product.cols, config.cols)
                places = slot_count(config.sum_words, tile_rows)
                shared = ceil_div(cols, ceil_div(cols, places))
                for rows_outer in (True, False):
                    for col_block in {1, shared} if chunk < passes else {1}:
                        found.append(
                            WsMapping(
                                hold=hold,
                                pass_words=pass_words,
                                tile_rows=tile_rows,
                                chunk_passes=chunk,
                                rows_outer=rows_outer,
                                col_block=col_block,
                            )
                        )
    return found


def ws_slots(
    config: SatConfig,
    tile_rows: int,
    chunk_passes: int,
    pass_values: int,
    dense: bool,
    offsets: tuple[int, ...] = (0,),
) -> tuple[int, int, int]:
    """Return the words of A, B and index banks that a chunk of passes takes."""
    values = chunk_passes * pass_values
    return (
        chunk_passes * tile_rows,
        ceil_div(values + _skip(config.granule_bytes // 2, values, offsets), config.max_m),
        1
        if dense
        else ceil_div(
            values + _skip(config.granule_bytes * 2, values, offsets), config.indices_per_word
        ),
    )
