"""Roughly how many cycles a mapping takes: which of many are worth costing exactly."""

from __future__ import annotations

from dataclasses import dataclass

from sat.dataflow.floor import os_array, os_loads, ws_array
from sat.dataflow.mapping import (
    Mapping,
    OsMapping,
    WsMapping,
    ceil_div,
    os_tiles,
    slot_count,
    values_per_word,
)
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming

INSTRUCTION = 4
"""Cycles that an instruction is worth: shorter programs of about the same speed are better."""


@dataclass(frozen=True)
class Traffic:
    """What a product's operands and results are in memory.

    Parameters
    ----------
    segment_words : int or None
        Words of A that lie together; None: a row's.
    result_bytes : float
        Bytes that are written of a sum.
    """

    segment_words: int | None = None
    result_bytes: float = 4


def segment_cycles(count: float, size: float, config: SatConfig, memory: MemoryTiming) -> float:
    """Return the cycles in which segments of so many bytes come, one after the other."""
    beats = ceil_div(int(size), config.axi.beat_bytes)
    # No more bursts are under way than the port takes.
    waits = ceil_div(beats, config.axi.burst_beats) * (memory.read_latency + 3)
    return count * max(beats * memory.cycles_per_beat, waits / config.axi.outstanding)


def estimate(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mapping: Mapping,
    traffic: Traffic = Traffic(),
) -> float:
    """Return roughly how many cycles a mapping takes: array or memory, whichever is slower."""
    if isinstance(mapping, OsMapping):
        return _output_stationary(product, config, memory, mapping, traffic)
    return _weight_stationary(product, config, memory, mapping, traffic)


def _a_cycles(
    rows: float, words: int, config: SatConfig, memory: MemoryTiming, traffic: Traffic
) -> float:
    """Return the cycles that rows of A take to load, words of each."""
    segment = min(words, traffic.segment_words or words)
    return segment_cycles(
        rows * ceil_div(words, segment), segment * config.word_bytes, config, memory
    )


def _b_cycles(
    cols: float, values: int, product: Product, config: SatConfig, memory: MemoryTiming
) -> float:
    """Return the cycles that columns of B take to load, values of each and their indices."""
    cycles = segment_cycles(cols, 2 * values, config, memory)
    if not product.dense:
        cycles += segment_cycles(cols, values / 2, config, memory)
    return cycles


def store_cycles(
    rows: float, width: int, config: SatConfig, memory: MemoryTiming, traffic: Traffic
) -> float:
    """Return the cycles in which rows of a tile are stored."""
    beats = ceil_div(int(width * traffic.result_bytes), config.axi.beat_bytes)
    return rows * (max(ceil_div(width, config.cols), beats * memory.cycles_per_beat) + 1)


def _output_stationary(
    product: Product, config: SatConfig, memory: MemoryTiming, mapping: OsMapping, traffic: Traffic
) -> float:
    per_word = values_per_word(product, config)
    chain = config.rows * config.interleave
    words = ceil_div(product.depth, config.max_m)
    chunks = ceil_div(words, mapping.chunk_words)
    row_tiles, col_tiles = os_tiles(product, config, mapping.split)
    row_blocks = ceil_div(row_tiles, mapping.row_block)
    col_blocks = ceil_div(col_tiles, mapping.col_block)
    rows = config.rows * (config.interleave >> mapping.split)
    cols = config.cols << mapping.split
    length, tile = os_array(product, config, mapping)
    compute = row_tiles * col_tiles * tile
    a_loads, b_loads = os_loads(product, config, mapping)
    a_chunk = _a_cycles(1, min(mapping.chunk_words, words), config, memory, traffic)
    b_values = min(mapping.chunk_words * per_word, product.kept)
    b_chunk = _b_cycles(1, b_values, product, config, memory)
    load = (a_loads * product.rows * a_chunk + b_loads * product.cols * b_chunk) * chunks
    if product.start is StartShape.MATRIX:
        load += (
            product.rows
            * col_tiles
            * max(1 << mapping.split, 4 * min(cols, product.cols) / config.axi.beat_bytes)
        )

    width = min(cols, product.cols)
    store = store_cycles(min(rows, product.rows), width, config, memory, traffic)
    stores = store_cycles(product.rows * col_tiles, width, config, memory, traffic)
    first = min(rows, product.rows) * a_chunk + width * b_chunk
    if mapping.depth_outer:
        # The first chunks of a block come as fast as memory brings them.
        first = (
            min(mapping.row_block * rows, product.rows) * a_chunk
            + min(mapping.col_block * cols, product.cols) * b_chunk
        ) / 2
        block = min(mapping.row_block, row_tiles) * min(mapping.col_block, col_tiles)
        compute += (chain + memory.read_latency) * row_blocks * col_blocks
        stores += max(0, block * store - (2 * block - 1) * length) * row_blocks * col_blocks
    instructions = row_tiles * col_tiles * (chunks + 1)
    return max(compute, load, stores) + first + store + INSTRUCTION * instructions


def _weight_stationary(
    product: Product, config: SatConfig, memory: MemoryTiming, mapping: WsMapping, traffic: Traffic
) -> float:
    per_word = values_per_word(product, config)
    words = ceil_div(product.depth, config.max_m)
    row_tiles = ceil_div(product.rows, mapping.tile_rows)
    col_tiles = ceil_div(product.cols, config.cols)
    passes = ceil_div(words, mapping.pass_words)
    compute = row_tiles * col_tiles * passes * ws_array(config, mapping)

    chunks = ceil_div(passes, mapping.chunk_passes)
    fit = slot_count(config.a_words, mapping.chunk_passes * mapping.tile_rows)
    a_loads = ceil_div(col_tiles, mapping.col_block)
    if mapping.rows_outer and chunks <= fit:
        a_loads = 1
    chunk_words = min(mapping.chunk_passes * mapping.pass_words, words)
    a_chunk = _a_cycles(1, chunk_words, config, memory, traffic)
    if per_word > mapping.hold:
        # A word that goes to several banks goes alone.
        a_chunk = max(a_chunk, chunk_words)
    b_chunk = _b_cycles(1, min(chunk_words * per_word, product.kept), product, config, memory)
    load = (a_loads * product.rows * a_chunk + row_tiles * product.cols * b_chunk) * chunks
    if product.start is StartShape.MATRIX:
        load += product.rows * col_tiles
    width = min(config.cols, product.cols)
    stores = store_cycles(product.rows * col_tiles, width, config, memory, traffic)
    rows = min(mapping.tile_rows, product.rows)
    first = rows * a_chunk + width * b_chunk
    store = store_cycles(rows, width, config, memory, traffic)
    instructions = row_tiles * col_tiles * (passes + 1)
    return max(compute, load, stores) + first + store + INSTRUCTION * instructions
