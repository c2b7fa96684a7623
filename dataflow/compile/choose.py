"""Choose among the mappings of a product that is part of a layer, by their exact cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sat.dataflow.cycles import predict
from sat.dataflow.mapping import OsMapping, ceil_div, estimate
from sat.dataflow.products import Product
from sat.dataflow.program import Program
from sat.rtl.config import SatConfig
from sat.rtl.isa import Instruction, Opcode
from sat.sim.memory import MemoryTiming

ENOUGH = 256
"""A mapping is good enough when others could save at most 1/256 of its cycles."""


def fewest_cycles(
    product: Product,
    config: SatConfig,
    memory: MemoryTiming,
    mappings: Sequence[OsMapping],
    emit: Callable[[Product, OsMapping], list[Instruction]],
) -> list[Instruction]:
    """Return the instructions, without END, of the mapping with the fewest cycles.

    Of a product with many rows, mappings are compared by what their first rows cost, a block of
    each, and what as many more rows add to that. The best then competes as a whole with the one
    that `estimate` likes best.

    Parameters
    ----------
    emit : callable
        Returns the instructions of a product, or of its first rows, under a mapping; when done
        they leave every semaphore at 0.
    """
    ranked = sorted(mappings, key=lambda m: estimate(product, config, memory, m))
    blocks = [_tile_rows(config, m) * (m.block if m.rows_outer else 1) for m in ranked]
    step = max(blocks)
    few, more = (replace(product, rows=n * step) for n in (1, 2))

    def cost(part: Product, mapping: OsMapping) -> tuple[float, list[Instruction]]:
        made = emit(part, mapping)
        found = predict(Program([*made, Instruction(Opcode.END, {})]), config, memory)
        return found.cycles, made

    def extended(product: Product, mapping: OsMapping) -> tuple[float, list[Instruction]]:
        first, second = (cost(part, mapping)[0] for part in (few, more))
        return first + (second - first) * (product.rows - step) / step, []

    def fewest(
        mappings: Sequence[OsMapping],
        cost: Callable[[Product, OsMapping], tuple[float, list[Instruction]]],
    ) -> tuple[OsMapping, list[Instruction]]:
        best: tuple[float, OsMapping, list[Instruction]] | None = None
        for mapping in mappings:
            # No mapping takes less than its operands take to enter the array.
            least = _operand_cycles(product, config, mapping)
            if best is not None and best[0] - least <= best[0] / ENOUGH:
                continue
            cycles, made = cost(product, mapping)
            if best is None or cycles < best[0]:
                best = cycles, mapping, made
        assert best is not None, "a product has a mapping"
        return best[1:]

    if more.rows < product.rows:
        likely, _ = fewest(ranked, extended)
        ranked = list(dict.fromkeys([ranked[0], likely]))
    return fewest(ranked, cost)[1]


def _tile_rows(config: SatConfig, mapping: OsMapping) -> int:
    return config.rows * (config.interleave >> mapping.split)


def _operand_cycles(product: Product, config: SatConfig, mapping: OsMapping) -> int:
    """Return the cycles in which operands enter the array."""
    tiles = ceil_div(product.rows, _tile_rows(config, mapping)) * ceil_div(
        product.cols, config.cols << mapping.split
    )
    return tiles * config.interleave * product.kept
