"""Where a product's matrices lie in device memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sat.dataflow.layers import Region, boundary_bytes
from sat.dataflow.mapping import ceil_div, round_up
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Source


@dataclass(frozen=True)
class MemoryMap:
    """Where a product's matrices lie.

    Rows of A and of the result are rows of the product; rows of B (values, indices) are its
    columns. ``start`` has one row when it is the same for all rows of the product. B comes last,
    at a multiple of `boundary_bytes`, so that it may lie elsewhere (`CompiledProduct.with_b_at`).
    The products of a stack follow each other in each region.
    """

    program: Region
    a: Region
    b: Region
    indices: Region | None
    start: Region | None
    result: Region
    count: int = 1

    def of(self, number: int) -> MemoryMap:
        """Return where one product of a stack lies."""

        def part(region: Region) -> Region:
            rows = region.rows // self.count
            pitch = 0 if region is self.start and rows == 1 else region.pitch
            address = region.address + number * rows * region.pitch
            return replace(region, address=address, pitch=pitch, rows=rows)

        return replace(
            self,
            a=part(self.a),
            b=part(self.b),
            indices=self.indices and part(self.indices),
            start=self.start and part(self.start),
            result=part(self.result),
            count=1,
        )

    def apart(self) -> dict[Buffer | Source, int]:
        """Return the bytes from one product of a stack to the next, of what goes where."""
        regions: dict[Buffer | Source, Region | None] = {
            Buffer.A: self.a,
            Buffer.B: self.b,
            Buffer.INDEX: self.indices,
            Buffer.START: self.start,
            Source.OUTPUT: self.result,
        }
        return {
            where: region.rows // self.count * region.pitch
            for where, region in regions.items()
            if region is not None
        }

    @property
    def held(self) -> range:
        """Byte addresses of B and its indices."""
        return range(self.b.address, (self.indices or self.b).end)

    @property
    def end(self) -> int:
        """First byte address behind everything."""
        regions = (self.program, self.a, self.b, self.indices, self.start, self.result)
        return max(r.end for r in regions if r is not None)


def memory_map(product: Product, config: SatConfig, program_bytes: int, base: int = 0) -> MemoryMap:
    """Return a memory map for a product: rows padded to granules, regions one after another."""
    granule, beat = config.granule_bytes, config.axi.beat_bytes
    at = base

    def region(rows: int, row_bytes: int) -> Region:
        nonlocal at
        made = Region(round_up(at, max(64, beat)), round_up(row_bytes, granule), rows, row_bytes)
        at = made.end
        return made

    program = region(1, program_bytes)
    count = product.count
    a = region(count * product.rows, 2 * product.depth)
    start = None
    if product.start is StartShape.ROW:
        start = region(count, 4 * product.cols)
        start = replace(start, pitch=0) if count == 1 else start
    elif product.start is StartShape.MATRIX:
        start = region(count * product.rows, 4 * product.cols)
    result = region(count * product.rows, 4 * product.cols)
    at = round_up(at, boundary_bytes(config))
    b = region(count * product.cols, 2 * product.kept)
    indices = None
    if not product.dense:
        indices = region(count * product.cols, ceil_div(product.kept, 2))
    return MemoryMap(program, a, b, indices, start, result, count)
