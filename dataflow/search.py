"""Choose a product's mapping by its exact cost."""

from __future__ import annotations

from dataclasses import replace

from sat.dataflow.compile.choose import fewest_cycles
from sat.dataflow.compile.product import CompiledProduct, compile_product
from sat.dataflow.cycles import predict
from sat.dataflow.estimate import estimate
from sat.dataflow.floor import mapping_floor
from sat.dataflow.mapping import Mapping, ceil_div, legal_mappings
from sat.dataflow.products import Product
from sat.dataflow.recent import PROGRAM_INSTRUCTIONS, Recent
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming

ENOUGH = 256
"""A mapping is good enough when others could save at most 1/256 of its cycles."""

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

    def cost(mapping: Mapping) -> int:
        program = compile_product(product, config, mapping).program
        return predict(program, config, memory).cycles

    chosen = fewest_cycles(
        legal_mappings(product, config, dataflow),
        lambda mapping: estimate(product, config, memory, mapping),
        cost,
        lambda mapping: mapping_floor(product, config, memory, mapping),
        ceil_div(product.macs, config.rows * config.cols),
        ENOUGH,
    )
    compiled = compile_product(product, config, chosen)
    return compiled, predict(compiled.program, config, memory).cycles
