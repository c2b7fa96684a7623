"""Choose a product's mapping by its exact cost."""

from __future__ import annotations

import functools

from sat.dataflow.compile import CompiledProduct, compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.mapping import (
    Mapping,
    OsMapping,
    ceil_div,
    legal_mappings,
    values_per_word,
)
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming

EXACT = 4
"""Mappings that are compiled and costed exactly, the most promising first."""


def estimate(product: Product, config: SatConfig, memory: MemoryTiming, mapping: Mapping) -> float:
    """Return roughly how many cycles a mapping takes: array or memory, whichever is slower."""
    beat = config.axi.beat_bytes
    words = ceil_div(product.depth, config.max_m)
    per_word = values_per_word(product, config)
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
        pass_words = config.rows // (per_word // mapping.hold)
        passes = ceil_div(words, pass_words)
        skew = config.rows * (s * mapping.hold + 1) + 3
        compute = row_tiles * col_tiles * passes * max(tile_rows * mapping.hold, skew)
        fit = config.a_words // (mapping.chunk_passes * tile_rows)
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


@functools.lru_cache(maxsize=4096)
def best_mapping(
    product: Product, config: SatConfig, memory: MemoryTiming, dataflow: str = "auto"
) -> tuple[CompiledProduct, int]:
    """Return the compiled product with the fewest cycles among the promising mappings.

    Returns
    -------
    compiled : CompiledProduct
    cycles : int
        What the program takes, exactly, with this memory.

    Raises
    ------
    ValueError
        As `sat.dataflow.mapping.legal_mappings`.
    """
    mappings = legal_mappings(product, config, dataflow)
    mappings.sort(key=lambda mapping: estimate(product, config, memory, mapping))
    best: tuple[int, CompiledProduct] | None = None
    for mapping in mappings[:EXACT]:
        compiled = compile_product(product, config, mapping)
        cycles = predict(compiled.program, config, memory).cycles
        if best is None or cycles < best[0]:
            best = cycles, compiled
    assert best is not None
    return best[1], best[0]
