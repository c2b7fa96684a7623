"""How a product is laid on the array: dataflow, tile shape, order, chunks of depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sat.dataflow.fit import DoesNotFit
from sat.dataflow.products import Product
from sat.rtl.config import SEMAPHORE_MAX, SatConfig
from sat.sim.memory import MemoryTiming


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
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
        Blocks of tile rows outside, tile columns inside; or the other way.
    block : int
        Tile rows (or tile columns) in a block.
    """

    split: int
    chunk_words: int
    rows_outer: bool
    block: int

    dataflow = "os"


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
    """

    hold: int
    pass_words: int
    tile_rows: int
    chunk_passes: int
    rows_outer: bool

    dataflow = "ws"


Mapping = OsMapping | WsMapping


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
        found += _ws_mappings(product, config)
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
    s = config.interleave
    per_word = values_per_word(product, config)
    words = ceil_div(product.depth, config.max_m)
    found: list[OsMapping] = []
    for split in range(s.bit_length()):
        tile_rows, tile_cols = config.rows * (s >> split), config.cols << split
        row_tiles = ceil_div(product.rows, tile_rows)
        col_tiles = ceil_div(product.cols, tile_cols)
        # The longest chunk of which both operand buffers hold two (or all there is).
        for chunk in _halvings(words) if chunk_words is None else (chunk_words,):
            a_slot, b_slot, i_slot = os_slots(
                config, split, chunk, per_word, product.dense, offsets
            )
            a_fit = slot_count(config.a_words, a_slot)
            b_fit = slot_count(config.b_words, b_slot)
            i_fit = slot_count(config.i_words, i_slot)
            if chunk == 1 or (min(a_fit, b_fit, i_fit) >= 2):
                break
        if min(a_fit, b_fit, i_fit) < 1:
            continue
        b_fit = min(b_fit, i_fit)
        for rows_outer, outer, fit in ((True, row_tiles, a_fit), (False, col_tiles, b_fit)):
            # The block stays while the other operand streams past it: all its chunks must fit.
            most = max(1, min(outer, (fit - 1) // ceil_div(words, chunk)))
            for block in {most, ceil_div(most, 2), ceil_div(most, 4)}:
                found.append(
                    OsMapping(split=split, chunk_words=chunk, rows_outer=rows_outer, block=block)
                )
    return found


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
    whole = all(values % per_granule == 0 for values in (chunk_values, *offsets))
    return 0 if whole else per_granule - 1


def _holds(config: SatConfig, per_word: int, hold: int) -> bool:
    """Whether the array's rows can hold a word's values, ``hold`` in each USPE."""
    return per_word % hold == 0 and per_word // hold <= config.rows


def _pass_words(config: SatConfig, per_word: int, hold: int, dense: bool) -> int:
    """Return the words of a pass: all that the rows hold, or half, … of it if banks are shallow."""
    for words in _halvings(config.rows // (per_word // hold)):
        _, b_slot, i_slot = ws_slots(config, 1, 1, words * per_word, dense)
        if b_slot <= config.b_words and i_slot <= config.i_words:
            break
    return words


def _ws_mappings(product: Product, config: SatConfig) -> list[Mapping]:
    s = config.interleave
    per_word = values_per_word(product, config)
    words = ceil_div(product.depth, config.max_m)
    found: list[Mapping] = []
    for hold in range(1, config.max_n + 1):
        if not _holds(config, per_word, hold):
            continue
        pass_words = _pass_words(config, per_word, hold, product.dense)
        passes = ceil_div(words, pass_words)
        most = min(round_up(product.rows, s), config.sum_words // 2 // s * s, config.a_words)
        for tile_rows in {round_up(t, s) for t in _halvings(most) if t >= min(most, 16)}:
            for chunk in _halvings(passes):
                a_slot, b_slot, i_slot = ws_slots(
                    config, tile_rows, chunk, pass_words * per_word, product.dense
                )
                fit = min(
                    slot_count(config.a_words, a_slot),
                    slot_count(config.b_words, b_slot),
                    slot_count(config.i_words, i_slot),
                )
                # One pass at a time gives the finest overlap; longer chunks, fewer loads.
                if fit < (1 if chunk == 1 else 2):
                    continue
                for rows_outer in (True, False):
                    found.append(
                        WsMapping(
                            hold=hold,
                            pass_words=pass_words,
                            tile_rows=tile_rows,
                            chunk_passes=chunk,
                            rows_outer=rows_outer,
                        )
                    )
    return found


def ws_slots(
    config: SatConfig, tile_rows: int, chunk_passes: int, pass_values: int, dense: bool
) -> tuple[int, int, int]:
    """Return the words of A, B and index banks that a chunk of passes takes."""
    values = chunk_passes * pass_values
    return (
        chunk_passes * tile_rows,
        ceil_div(values + _skip(config.granule_bytes // 2, values), config.max_m),
        1
        if dense
        else ceil_div(values + _skip(config.granule_bytes * 2, values), config.indices_per_word),
    )


def estimate(product: Product, config: SatConfig, memory: MemoryTiming, mapping: Mapping) -> float:
    """Return roughly how many cycles a mapping takes: array or memory, whichever is slower."""
    beat = config.axi.beat_bytes
    words = ceil_div(product.depth, config.max_m)
    a_row = 2 * product.depth / beat
    b_row = (2 if product.dense else 2.5) * product.kept / beat
    s = config.interleave
    if isinstance(mapping, OsMapping):
        tile_rows = config.rows * (s >> mapping.split)
        tile_cols = config.cols << mapping.split
        row_tiles = ceil_div(product.rows, tile_rows)
        col_tiles = ceil_div(product.cols, tile_cols)
        tile = max(s * product.kept, s * config.rows)
        compute = row_tiles * col_tiles * tile
        chunks = ceil_div(words, mapping.chunk_words)
        outer, inner = (row_tiles, col_tiles) if mapping.rows_outer else (col_tiles, row_tiles)
        inner_loads = ceil_div(outer, mapping.block)
        outer_loads = 1 if chunks == 1 else inner
    else:
        tile_cols = config.cols
        tile_rows = mapping.tile_rows
        row_tiles = ceil_div(product.rows, tile_rows)
        col_tiles = ceil_div(product.cols, tile_cols)
        passes = ceil_div(words, mapping.pass_words)
        skew = config.rows * (s * mapping.hold + 1) + 3
        compute = row_tiles * col_tiles * passes * max(tile_rows * mapping.hold, skew)
        fit = slot_count(config.a_words, mapping.chunk_passes * tile_rows)
        chunks = ceil_div(passes, mapping.chunk_passes)
        outer, inner = (row_tiles, col_tiles) if mapping.rows_outer else (col_tiles, row_tiles)
        inner_loads = outer
        outer_loads = 1 if not mapping.rows_outer or chunks <= fit else inner
    rows_loaded = outer_loads if mapping.rows_outer else inner_loads
    cols_loaded = inner_loads if mapping.rows_outer else outer_loads
    # A row's burst costs at least a cycle of address; START and results are the same for all.
    read = (
        product.rows * max(1.0, a_row) * rows_loaded + product.cols * max(1.0, b_row) * cols_loaded
    )
    first = min(tile_rows, product.rows) * a_row + min(tile_cols, product.cols) * b_row
    return max(compute, read * memory.cycles_per_beat) + first * memory.cycles_per_beat
