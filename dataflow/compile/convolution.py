"""Products of gathered patches and a pruned copy of the weights, for FF and BP."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property

from sat.dataflow.compile.bands import BandPlanner, band_cycles, band_mappings
from sat.dataflow.compile.epilogue import Epilogue, PixelSums
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.output_stationary import OsPlanner
from sat.dataflow.compile.patches import Patches
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.slots import Key, Load
from sat.dataflow.compile.weight_stationary import WsPlanner
from sat.dataflow.estimate import Traffic, estimate
from sat.dataflow.layers import Packing, Region
from sat.dataflow.mapping import (
    BandMapping,
    LayerMapping,
    OsMapping,
    WsMapping,
    ceil_div,
    os_mappings,
    ws_mappings,
)
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Opcode
from sat.sim.memory import MemoryTiming


@dataclass(frozen=True)
class Weights:
    """A pruned copy as B: its rows are the product's columns.

    ``taps`` are the taps that the product uses, in the order of the copy; ``segment`` is the
    values from one tap to the next, ``kept`` those that a tap stores.
    """

    values: Region
    indices: Region | None
    first_row: int
    packing: Packing
    taps: tuple[int, ...]
    segment: int

    def offsets(self) -> tuple[int, ...]:
        """Return where values start: one number if the taps follow each other, else one a tap."""
        first = self.taps[0]
        together = self.taps == tuple(range(first, first + len(self.taps)))
        if together and (self.segment == self.packing.kept or len(self.taps) == 1):
            return (first * self.segment,)
        return tuple(tap * self.segment for tap in self.taps)

    def rows(self, region: Region | None) -> Region | None:
        if region is None:
            return None
        return replace(region, address=region.address + self.first_row * region.pitch)


class _PatchOsPlanner(PixelSums, OsPlanner):
    """Output stationary, with an A that is gathered from pixels."""

    def __init__(self, of: PatchProduct, product: Product, mapping: OsMapping):
        super().__init__(product, of.config, mapping, of.where, of.offsets)
        self.patches, self.epilogue = of.patches, of.epilogue

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        row, row_end = self.row_tile(tile)
        first = chunk * self.mapping.chunk_words
        end = min(first + self.mapping.chunk_words, self.words)
        loads = self.patches.setup()
        for word, fields in self.patches.words(first, end, self.config.word_bytes):
            body = {
                **self.patches.position(row),
                **fields,
                "rows": row_end - row,
                "destination": Buffer.A,
                "base": word - first,
                "stride": self.mapping.chunk_words,
                "groups": ceil_div(row_end - row, self.config.rows),
            }
            loads.append((Opcode.GATHER, body))
        return loads

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        return _tap_values(self.offsets, self.chunks, chunk, super().chunk_values(chunk))


class _PatchWsPlanner(PixelSums, WsPlanner):
    """Weight stationary, with an A that is gathered from pixels, a rectangle of taps a chunk."""

    def __init__(self, of: PatchProduct, product: Product, mapping: WsMapping):
        super().__init__(product, of.config, mapping, of.where, of.offsets)
        self.patches, self.epilogue = of.patches, of.epilogue

    def a_loads(self, key: Key) -> list[Load]:
        tile, chunk = key
        mapping = self.mapping
        row, row_end = self.row_tile(tile)
        size = mapping.chunk_passes * self.pass_words
        first, end = chunk * size, min((chunk + 1) * size, self.words)
        ((_, fields),) = self.patches.words(first, end, self.config.word_bytes)
        body = {
            **self.patches.position(row),
            **fields,
            "rows": row_end - row,
            "destination": Buffer.A,
            "by_word": 1,
            "stride": mapping.tile_rows,
            "groups": ceil_div(end - first, self.pass_words),
            "copies": self.copies,
            "words_per_pass": self.pass_words,
        }
        return [*self.patches.setup(), (Opcode.GATHER, body)]

    def chunk_values(self, chunk: int) -> tuple[int, int]:
        return _tap_values(self.offsets, self.chunks, chunk, super().chunk_values(chunk))


def _tap_values(
    offsets: tuple[int, ...], chunks: int, chunk: int, values: tuple[int, int]
) -> tuple[int, int]:
    """Return where a chunk's values lie in a column, if they were ``values`` without gaps."""
    first, end = values
    if len(offsets) == 1:
        return offsets[0] + first, offsets[0] + end
    # Taps lie apart, each a whole number of chunks.
    tap, part = divmod(chunk, chunks // len(offsets))
    begin = offsets[tap] + part * (end - first)
    return begin, begin + end - first


@dataclass(frozen=True)
class PatchProduct:
    """Patches of pixels times a pruned copy, whose sums become pixels.

    Parameters
    ----------
    columns : int
        Of the product: channels of the result.
    bias : Region or None
        FP32 start values, a row for all positions.
    """

    config: SatConfig
    patches: Patches
    weights: Weights
    columns: int
    epilogue: Epilogue
    bias: Region | None = None

    @cached_property
    def product(self) -> Product:
        patches, packing = self.patches, self.weights.packing
        return Product(
            patches.images * patches.size[0] * patches.size[1],
            self.columns,
            len(self.weights.taps) * packing.channels,
            packing.n,
            packing.m,
            StartShape.ZERO if self.bias is None else StartShape.ROW,
        )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        return self.weights.offsets()

    @cached_property
    def where(self) -> MemoryMap:
        nowhere = Region(0, 0, 1, 1)
        values = self.weights.rows(self.weights.values)
        assert values is not None
        indices = self.weights.rows(self.weights.indices)
        return MemoryMap(nowhere, nowhere, values, indices, self.bias, self.epilogue.result)

    @property
    def least(self) -> int:
        """Cycles that the array needs at the least."""
        return ceil_div(self.product.macs, self.config.rows * self.config.cols)

    def planner(self, mapping: LayerMapping) -> Planner:
        """Return the plan under a mapping."""
        product = self.product
        if isinstance(mapping, OsMapping):
            return _PatchOsPlanner(self, product, mapping)
        if isinstance(mapping, WsMapping):
            return _PatchWsPlanner(self, product, mapping)
        return BandPlanner(
            product,
            self.config,
            mapping,
            self.where,
            self.patches,
            self.offsets,
            self.epilogue,
        )

    @property
    def _tap_words(self) -> int:
        return self.patches.segment // self.config.word_bytes

    def mappings(self) -> list[LayerMapping]:
        """Return the mappings worth trying; there is one."""
        product, config, offsets = self.product, self.config, self.offsets
        per_tap = self._tap_words
        found: list[LayerMapping] = []
        if len(offsets) == 1:
            found += os_mappings(product, config, offsets)
        else:
            # A chunk lies within a tap, and all are of one size; a word fits every buffer.
            sizes = (size for size in range(per_tap, 0, -1) if per_tap % size == 0)
            found += next(
                some for size in sizes if (some := os_mappings(product, config, offsets, size))
            )
        found += (m for m in ws_mappings(product, config, offsets) if self._gathers(m))
        found += band_mappings(product, config, self.patches, offsets)
        return found

    def _gathers(self, mapping: WsMapping) -> bool:
        """Whether each chunk of a weight stationary mapping is one rectangle of taps."""
        words, per_tap = ceil_div(self.product.depth, self.config.max_m), self._tap_words
        size = mapping.chunk_passes * mapping.pass_words
        if len(self.offsets) > 1 and per_tap % size:
            return False
        chunks = (
            self.patches.words(at, min(at + size, words), self.config.word_bytes)
            for at in range(0, words, size)
        )
        return per_tap % mapping.pass_words == 0 and all(len(list(c)) == 1 for c in chunks)

    @cached_property
    def key(self) -> Hashable:
        """Products that differ only in where they lie are mapped alike."""
        patches = self.patches
        shape = patches.size, patches.step, patches.tap, patches.taps
        return self.product, self.offsets, shape

    def estimate(self, mapping: LayerMapping, memory: MemoryTiming) -> float:
        """Return roughly how many cycles a mapping takes."""
        config, product = self.config, self.product
        bits = 16 + (self.epilogue.out_mask is not None)
        traffic = Traffic(self._tap_words, bits / 8)
        if isinstance(mapping, BandMapping):
            return band_cycles(
                product, config, memory, mapping, self.patches, self.offsets, traffic
            )
        return estimate(product, config, memory, mapping, traffic)
