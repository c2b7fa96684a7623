"""From a product and its mapping to a program and a memory map."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sat.dataflow.columns import Words, with_end
from sat.dataflow.compile.memory import MemoryMap, memory_map
from sat.dataflow.compile.output_stationary import OsPlanner
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.schedule import schedule
from sat.dataflow.compile.weight_stationary import WsPlanner
from sat.dataflow.mapping import Mapping, OsMapping
from sat.dataflow.products import Product
from sat.dataflow.program import Program
from sat.rtl import isa
from sat.rtl.config import SatConfig


@dataclass(frozen=True)
class CompiledProduct:
    """A program that computes a product, and where it expects and leaves the matrices."""

    product: Product
    mapping: Mapping
    program: Program
    memory: MemoryMap

    def with_b_at(self, address: int) -> CompiledProduct:
        """Return the same for a B that lies elsewhere; it takes as many cycles.

        Parameters
        ----------
        address : int
            A multiple of `boundary_bytes`.
        """
        memory = self.memory
        by = address - memory.b.address
        indices = memory.indices and memory.indices.moved(by)
        where = replace(memory, b=memory.b.moved(by), indices=indices)
        return replace(self, program=self.program.moved(memory.held, by), memory=where)


def compile_product(
    product: Product, config: SatConfig, mapping: Mapping, base: int = 0
) -> CompiledProduct:
    """Compile a product under a mapping.

    Parameters
    ----------
    base : int
        Byte address of the first region.

    Returns
    -------
    CompiledProduct
        Its program ends with END; it stores every sum once.
    """
    # The program's length sets where the matrices lie, and they do not set its length: compile
    # for a map without a program, then move the matrices, the last first. Each keeps its place on
    # a boundary, so what lies between two boundaries moves as one.
    draft = memory_map(product, config, 0, base)
    program = Program.of(_emit(product, config, mapping, draft))
    memory = memory_map(product, config, len(program) * isa.INSTRUCTION_BYTES, base)
    program = program.moved(draft.held, memory.b.address - draft.b.address)
    others = range(draft.a.address, draft.b.address)
    program = program.moved(others, memory.a.address - draft.a.address)
    return CompiledProduct(product, mapping, program, memory)


def planner_of(product: Product, config: SatConfig, mapping: Mapping, memory: MemoryMap) -> Planner:
    """Return the plan of a product, or of a stack of them."""
    if isinstance(mapping, OsMapping):
        return OsPlanner(product, config, mapping, memory)
    return WsPlanner(product, config, mapping, memory)


def _emit(product: Product, config: SatConfig, mapping: Mapping, memory: MemoryMap) -> Words:
    return with_end(schedule([planner_of(product, config, mapping, memory)]))
