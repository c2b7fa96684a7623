"""What no program goes below: cycles that a mapping takes at the least, without its program.

A program begins with the loads of its first MULTIPLY, and ends with the stores of its last tile;
between these, the array takes operands, and memory brings them, each at its pace. What is counted
here are rules of the engines alone (`rtl/compute.py`, `rtl/load.py`, `rtl/store.py`), so a mapping
whose floor is above what another takes need not be costed.
"""

from __future__ import annotations

from sat.dataflow.mapping import (
    Mapping,
    OsMapping,
    WsMapping,
    ceil_div,
    os_fits,
    os_tiles,
    slot_count,
    values_per_word,
    ws_slots,
)
from sat.dataflow.products import Product
from sat.rtl.check import CHECK_CYCLES
from sat.rtl.compute import PREPARE_CYCLES, feed_delay
from sat.rtl.config import SatConfig
from sat.rtl.segments import SETTINGS_CYCLES, SETUP_CYCLES
from sat.rtl.store import READ_CYCLES as STORE_READ_CYCLES
from sat.sim.memory import MemoryTiming

SEMAPHORE = 2
"""Cycles from what an instruction waits for until its engine takes it, or behind its dispatch."""


def floor_cycles(
    config: SatConfig, memory: MemoryTiming, *, first: int, array: int, loads: int, drain: int,
    stored: int, gathers: bool = False, zeros: int = 0,
) -> int:  # fmt: skip
    """Return what a program takes at the least.

    Parameters
    ----------
    first : int
        Cycles in which the first MULTIPLY's operands come.
    array : int
        From the first MULTIPLY's issue until the array may take what comes after the last one.
    loads : int
        Cycles in which all operands come.
    drain : int
        From there, or from the last load, until the last tile's sums are in the output buffer.
    stored : int
        Cycles in which its STORE writes.
    gathers : bool
        The first load is a GATHER, behind a TENSOR and a WINDOW.
    zeros : int
        Cycles in which it may bring zeros before it has to wait for memory.
    """
    # The first instructions, and the first operands, are each a read away.
    begin = 2 * memory.read_latency + CHECK_CYCLES + 2 * SEMAPHORE
    begin -= min(memory.read_latency, zeros)
    if gathers:
        begin += 2 * (1 + SETTINGS_CYCLES) + SETUP_CYCLES
    end = SEMAPHORE + STORE_READ_CYCLES + stored + memory.write_latency
    return begin + max(first + SEMAPHORE + PREPARE_CYCLES + array, loads) + drain + end


def stored_cycles(rows: int, cols: int, result_bytes: int, config: SatConfig) -> int:
    """Return the cycles in which rows of sums are stored: a beat, and a word of sums, a cycle."""
    return rows * max(read_beats(cols * result_bytes, config), ceil_div(cols, config.cols))


def read_beats(size: int, config: SatConfig) -> int:
    """Return the cycles that so many bytes in a row take to come, or as many zeros."""
    return ceil_div(size, config.axi.beat_bytes)


def column_beats(values: int, product: Product, config: SatConfig) -> int:
    """Return the cycles in which stored values of a column of B, and their indices, come."""
    beats = read_beats(2 * values, config)
    return beats if product.dense else beats + read_beats(ceil_div(values, 2), config)


def os_drain(config: SatConfig) -> int:
    """Return the cycles from a tile's last operands until its sums are in the output buffer."""
    s, feed = config.interleave, feed_delay(config)
    # Start values set out so long before the operands.
    lead = max(0, s * (config.rows - 1) - (feed - 3))
    return lead + feed + s * (config.rows + 1) + config.row_cycles + config.cols - 1


def os_array(product: Product, config: SatConfig, mapping: OsMapping) -> tuple[int, int]:
    """Return the cycles that the array takes for a tile's first chunk of operands, and for all.

    A tile's sums leave through the chain, and come back through it from the output buffer: a
    MULTIPLY behind another takes no less than the chain does, and one that adds to sums of the
    output buffer waits for it, unless it is long.
    """
    s, per_word = config.interleave, values_per_word(product, config)
    chain = config.rows * s
    chunks = ceil_div(ceil_div(product.depth, config.max_m), mapping.chunk_words)
    values = mapping.chunk_words * per_word
    length = s * min(values, product.kept)
    last = s * (product.kept - (chunks - 1) * values)
    if mapping.depth_outer:
        later = [x if x >= chain else x + chain for x in (length, last)]
        return length, max(length, chain) + (chunks - 2) * later[0] + later[1]
    return length, (chunks - 1) * max(length, chain) + max(last, chain)


def os_loads(product: Product, config: SatConfig, mapping: OsMapping) -> tuple[int, int]:
    """Return how often A and B are loaded: once if all of it stays, or for each block of the other.

    Slots are filled in turn: what passes them over and over and is more than they hold is never
    there when it is needed again.
    """
    chunks = ceil_div(ceil_div(product.depth, config.max_m), mapping.chunk_words)
    row_tiles, col_tiles = os_tiles(product, config, mapping.split)
    row_blocks = ceil_div(row_tiles, mapping.row_block)
    col_blocks = ceil_div(col_tiles, mapping.col_block)
    a_fit, b_fit = os_fits(product, config, mapping.split, mapping.chunk_words)
    if mapping.depth_outer:
        a_stays = mapping.row_block * chunks <= a_fit and mapping.rows_outer
        b_stays = mapping.col_block * chunks <= b_fit and not mapping.rows_outer
        a_loads, b_loads = col_blocks, row_blocks
    else:
        a_stays = mapping.rows_outer and mapping.row_block * chunks <= a_fit
        b_stays = not mapping.rows_outer and mapping.col_block * chunks <= b_fit
        a_loads = col_tiles if mapping.rows_outer else col_blocks
        b_loads = row_blocks if mapping.rows_outer else row_tiles
    if a_stays or row_tiles * chunks <= a_fit:
        a_loads = 1
    if b_stays or col_tiles * chunks <= b_fit:
        b_loads = 1
    return a_loads, b_loads


def ws_array(config: SatConfig, mapping: WsMapping) -> int:
    """Return the cycles that the array takes for a pass: of its rows of A, or of its own rows."""
    return max(mapping.tile_rows * mapping.hold, ws_skew(config, mapping) + 3)


def ws_skew(config: SatConfig, mapping: WsMapping) -> int:
    """Return the cycles by which the array's last row is behind its first."""
    return config.rows * config.interleave * mapping.hold + config.row_cycles


def mapping_floor(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mapping: Mapping,
    result_bytes: int = 4,
    gathers: bool = False,
    zeros: int = 0,
) -> int:
    """Return cycles that no program of a product goes below under a mapping.

    Parameters
    ----------
    result_bytes : int
        That are written of a sum.
    gathers : bool
        A is gathered.
    zeros : int
        Words of A that come as zeros before any other.
    """
    given = product, config, memory
    if isinstance(mapping, OsMapping):
        return _output_stationary(*given, mapping, result_bytes, gathers, zeros)
    return _weight_stationary(*given, mapping, result_bytes, gathers, zeros)


def _output_stationary(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mapping: OsMapping,
    result_bytes: int,
    gathers: bool,
    zeros: int,
) -> int:
    words, per_word = ceil_div(product.depth, config.max_m), values_per_word(product, config)
    chunk_words = min(mapping.chunk_words, words)
    chunks = ceil_div(words, mapping.chunk_words)
    rows, cols = config.rows * (config.interleave >> mapping.split), config.cols << mapping.split
    row_tiles, col_tiles = os_tiles(product, config, mapping.split)
    length, tile = os_array(product, config, mapping)
    a_loads, b_loads = os_loads(product, config, mapping)
    # All chunks are as long as the first, but for the last one.
    a_chunk = read_beats(chunk_words * config.word_bytes, config)
    a_last = read_beats((words - (chunks - 1) * chunk_words) * config.word_bytes, config)
    values = min(chunk_words * per_word, product.kept)
    b_chunk = column_beats(values, product, config)
    b_last = column_beats(product.kept - (chunks - 1) * values, product, config)
    a_all, b_all = (chunks - 1) * a_chunk + a_last, (chunks - 1) * b_chunk + b_last
    last_rows = product.rows - (row_tiles - 1) * rows
    last_cols = product.cols - (col_tiles - 1) * cols
    a_first = min(rows, product.rows) * a_chunk
    tiles = product.count * row_tiles * col_tiles
    loads = a_loads * product.rows * a_all + b_loads * product.cols * b_all
    return floor_cycles(
        config,
        memory,
        first=a_first + min(cols, product.cols) * b_chunk,
        # Nothing is in the chain before the first MULTIPLY.
        array=tiles * tile - max(0, config.rows * config.interleave - length),
        loads=product.count * loads,
        drain=os_drain(config),
        stored=stored_cycles(last_rows, last_cols, result_bytes, config),
        gathers=gathers,
        # Taps that are off the tensor in the first row may be all that a chunk has of any.
        zeros=a_first if zeros >= chunk_words else zeros,
    )


def _weight_stationary(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mapping: WsMapping,
    result_bytes: int,
    gathers: bool,
    zeros: int,
) -> int:
    words, per_word = ceil_div(product.depth, config.max_m), values_per_word(product, config)
    row_tiles = ceil_div(product.rows, mapping.tile_rows)
    col_tiles = ceil_div(product.cols, config.cols)
    passes = ceil_div(words, mapping.pass_words)
    chunks = ceil_div(passes, mapping.chunk_passes)
    chunk_words = min(mapping.chunk_passes * mapping.pass_words, words)
    values = min(chunk_words * per_word, product.kept)
    a_slot, b_slot, i_slot = ws_slots(
        config, mapping.tile_rows, mapping.chunk_passes, mapping.pass_words * per_word,
        product.dense,
    )  # fmt: skip
    a_fit = slot_count(config.a_words, a_slot)
    b_fit = min(slot_count(config.b_words, b_slot), slot_count(config.i_words, i_slot))
    all_a, all_b = row_tiles * chunks <= a_fit, col_tiles * chunks <= b_fit
    a_loads = 1 if all_a or (mapping.rows_outer and chunks <= a_fit) else 0
    b_loads = 1 if all_b or (not mapping.rows_outer and mapping.col_block * chunks <= b_fit) else 0
    a_loads = a_loads or ceil_div(col_tiles, mapping.col_block)
    b_loads = b_loads or row_tiles

    def a_cycles(words: int) -> int:
        # A word that goes to several banks goes alone.
        alone = per_word > mapping.hold
        return words if alone else read_beats(words * config.word_bytes, config)

    a_chunk, b_chunk = a_cycles(chunk_words), column_beats(values, product, config)
    a_all = (chunks - 1) * a_chunk + a_cycles(words - (chunks - 1) * chunk_words)
    rest = product.kept - (chunks - 1) * values
    b_all = (chunks - 1) * b_chunk + column_beats(rest, product, config)
    a_first = min(mapping.tile_rows, product.rows) * a_chunk
    length = mapping.tile_rows * mapping.hold
    multiplies = product.count * row_tiles * col_tiles * passes
    last_rows = product.rows - (row_tiles - 1) * mapping.tile_rows
    last_cols = product.cols - (col_tiles - 1) * config.cols
    return floor_cycles(
        config,
        memory,
        first=a_first + min(config.cols, product.cols) * b_chunk,
        array=(multiplies - 1) * ws_array(config, mapping) + length,
        loads=product.count * (a_loads * product.rows * a_all + b_loads * product.cols * b_all),
        drain=mapping.hold + feed_delay(config) + ws_skew(config, mapping) + config.cols - 2,
        stored=stored_cycles(last_rows, last_cols, result_bytes, config),
        gathers=gathers,
        zeros=a_first if zeros >= chunk_words else zeros,
    )
