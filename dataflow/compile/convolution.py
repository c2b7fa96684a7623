"""Products of gathered patches and a pruned copy of the weights, for FF and BP."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sat.dataflow.columns import Array, Block, Field, spread
from sat.dataflow.compile.bands import BandPlanner, band_cycles, band_floor, band_mappings
from sat.dataflow.compile.epilogue import Epilogue, PixelSums
from sat.dataflow.compile.memory import MemoryMap
from sat.dataflow.compile.output_stationary import OsPlanner
from sat.dataflow.compile.patches import Patches
from sat.dataflow.compile.planner import Planner
from sat.dataflow.compile.weight_stationary import WsPlanner
from sat.dataflow.estimate import Traffic, estimate
from sat.dataflow.floor import mapping_floor
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

    def a_loads(self, keys: Array) -> list[Block]:
        tile, chunk = np.divmod(keys, self.chunks)
        row, row_end = self.row_tile(tile)
        size = self.mapping.chunk_words
        rectangles = [
            list(self.patches.words(at, min(at + size, self.words), self.config.word_bytes))
            for at in range(0, self.words, size)
        ]
        # Of each key the rectangles of its chunk.
        counts = np.array([len(chunks) for chunks in rectangles])
        owner, place = spread(counts[chunk])
        which = (np.cumsum(counts) - counts)[chunk[owner]] + place
        flat = list(itertools.chain.from_iterable(rectangles))
        rows = (row_end - row)[owner]
        fields: dict[str, Field] = {
            **self.patches.position(row[owner]),
            **{name: np.array([f[name] for _, f in flat])[which] for name in flat[0][1]},
            "rows": rows,
            "destination": Buffer.A,
            "base": np.array([word for word, _ in flat])[which] - chunk[owner] * size,
            "stride": size,
            "groups": -(-rows // self.config.rows),
        }
        gather = Block(Opcode.GATHER, fields, owner, 2 + place)
        return [*self.patches.setup(len(keys)), gather]

    def chunk_values(self, chunk: Array) -> tuple[Array, Array]:
        return _tap_values(self.offsets, self.chunks, chunk, super().chunk_values(chunk))


class _PatchWsPlanner(PixelSums, WsPlanner):
    """Weight stationary, with an A that is gathered from pixels, a rectangle of taps a chunk."""

    def __init__(self, of: PatchProduct, product: Product, mapping: WsMapping):
        super().__init__(product, of.config, mapping, of.where, of.offsets)
        self.patches, self.epilogue = of.patches, of.epilogue

    def a_loads(self, keys: Array) -> list[Block]:
        tile, chunk = np.divmod(keys, self.chunks)
        mapping = self.mapping
        row, row_end = self.row_tile(tile)
        size = mapping.chunk_passes * self.pass_words
        rectangles = []
        for at in range(0, self.words, size):
            end = min(at + size, self.words)
            ((_, of_chunk),) = self.patches.words(at, end, self.config.word_bytes)
            rectangles.append({**of_chunk, "groups": ceil_div(end - at, self.pass_words)})
        fields: dict[str, Field] = {
            **self.patches.position(row),
            **{name: np.array([f[name] for f in rectangles])[chunk] for name in rectangles[0]},
            "rows": row_end - row,
            "destination": Buffer.A,
            "by_word": 1,
            "stride": mapping.tile_rows,
            "copies": self.copies,
            "words_per_pass": self.pass_words,
        }
        gather = Block(Opcode.GATHER, fields, np.arange(len(keys)), 2)
        return [*self.patches.setup(len(keys)), gather]

    def chunk_values(self, chunk: Array) -> tuple[Array, Array]:
        return _tap_values(self.offsets, self.chunks, chunk, super().chunk_values(chunk))


def _tap_values(
    offsets: tuple[int, ...], chunks: int, chunk: Array, values: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Return where chunks' values lie in a column, if they were ``values`` without gaps."""
    first, end = values
    if len(offsets) == 1:
        return offsets[0] + first, offsets[0] + end
    # Taps lie apart, each a whole number of chunks.
    tap, part = np.divmod(chunk, chunks // len(offsets))
    begin = np.array(offsets)[tap] + part * (end - first)
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
    def alike(self) -> Hashable:
        """All that its programs' cycles depend on besides the device."""
        config, weights = self.config, self.weights
        places = weights.rows(weights.values), weights.rows(weights.indices), self.bias
        regions = tuple(place and place.alike(config) for place in places)
        packing = weights.packing, weights.taps, weights.segment
        return (
            self.patches.alike(config), regions, packing, self.columns,
            self.epilogue.alike(config),
        )  # fmt: skip

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
        per_tap, size = self._tap_words, mapping.chunk_passes * mapping.pass_words
        if per_tap % mapping.pass_words or (len(self.offsets) > 1 and per_tap % size):
            return False
        if size not in self._rectangles:
            words = ceil_div(self.product.depth, self.config.max_m)
            chunks = (
                self.patches.words(at, min(at + size, words), self.config.word_bytes)
                for at in range(0, words, size)
            )
            self._rectangles[size] = all(len(list(chunk)) == 1 for chunk in chunks)
        return self._rectangles[size]

    @cached_property
    def _rectangles(self) -> dict[int, bool]:
        """Whether chunks of so many words are one rectangle of taps each, where that was asked."""
        return {}

    @cached_property
    def key(self) -> Hashable:
        """Products that differ only in where they lie are mapped alike."""
        patches = self.patches
        shape = patches.size, patches.step, patches.tap, patches.taps
        return self.product, self.offsets, shape

    @cached_property
    def _traffic(self) -> Traffic:
        bits = 16 + (self.epilogue.out_mask is not None)
        return Traffic(self._tap_words, bits / 8)

    def estimate(self, mapping: LayerMapping, memory: MemoryTiming) -> float:
        """Return roughly how many cycles a mapping takes."""
        config, product, traffic = self.config, self.product, self._traffic
        if isinstance(mapping, BandMapping):
            return band_cycles(
                product, config, memory, mapping, self.patches, self.offsets, traffic
            )
        return estimate(product, config, memory, mapping, traffic)

    def floor(self, mapping: LayerMapping, memory: MemoryTiming) -> int:
        """Return cycles that no program goes below under a mapping."""
        config, product = self.config, self.product
        if isinstance(mapping, BandMapping):
            return band_floor(product, config, memory, mapping, self.patches, self.offsets)
        zeros = self.patches.first_zeros * self._tap_words
        return mapping_floor(product, config, memory, mapping, 2, gathers=True, zeros=zeros)
