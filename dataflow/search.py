"""Choose a product's mapping by its exact cost."""

from __future__ import annotations

from dataclasses import replace

from sat.dataflow.compile.product import CompiledProduct, compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.mapping import estimate, legal_mappings
from sat.dataflow.products import Product
from sat.dataflow.recent import PROGRAM_INSTRUCTIONS, Recent
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming

EXACT = 4
"""Mappings that are compiled and costed exactly, the most promising first."""

SAMPLE = 2
"""Products of a stack that mappings are compared by."""


_found: Recent[tuple[CompiledProduct, int]] = Recent(
    PROGRAM_INSTRUCTIONS, lambda found: len(found[0].program)
)


def best_mapping(
    product: Product, config: SatConfig, memory: MemoryTiming, dataflow: str = "auto"
) -> tuple[CompiledProduct, int]:
    """Return the compiled product with the fewest cycles among the promising mappings.

    Programs are kept, `PROGRAM_INSTRUCTIONS` of them, for the next who asks.

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
    key = product, config, memory, dataflow
    return _found.get(key, lambda: _search(product, config, memory, dataflow))


def _search(
    product: Product, config: SatConfig, memory: MemoryTiming, dataflow: str
) -> tuple[CompiledProduct, int]:
    if product.count > SAMPLE:
        # One after the other, products of a stack cost the same: the mapping of a few is the
        # mapping of all.
        few, _ = best_mapping(replace(product, count=SAMPLE), config, memory, dataflow)
        compiled = compile_product(product, config, few.mapping)
        return compiled, predict(compiled.program, config, memory).cycles
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
