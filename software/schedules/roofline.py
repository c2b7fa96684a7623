"""The least that a stage takes, whatever its mapping: multipliers, bytes in, bytes out.

========= ===================================================================================
compute   stored multiply-accumulates / (rows * columns of the array); of the update, weights
          / lanes
read      every operand crosses the ports once, a beat at a time
write     every result does, likewise (ports read and write at the same time)
========= ===================================================================================

Bytes are those of the layout in memory (`sat.dataflow.layers`): channels padded to words, compact
copies of pruned weights, masks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sat.dataflow.compile.activations import phases
from sat.dataflow.layers import LayerMemory
from sat.dataflow.mapping import ceil_div
from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.schedules.machine import Machine
from sat.sim.layer import Layer

READS = {
    "ff": ("x", "ff", "ff_index", "bias"),
    "bp": ("dy", "bp", "bp_index", "in_mask"),
    "wu": ("x", "dy"),
    "update": ("w", "v", "g"),
}
"""What each stage reads, of `sat.dataflow.layers.LayerMemory`, where the layer has it."""

WRITES = {
    "ff": ("y", "out_mask"),
    "bp": ("dx",),
    "wu": ("g",),
    "update": ("w", "v", "ff", "ff_index", "bp", "bp_index"),
}


@dataclass(frozen=True)
class Bounds:
    """Cycles that a stage takes at the least.

    Parameters
    ----------
    compute, read, write : int
    """

    compute: int
    read: int
    write: int

    @property
    def cycles(self) -> int:
        """The roofline: the most of the three, at least 1."""
        return max(self.compute, self.read, self.write, 1)

    @property
    def by(self) -> str:
        """What bounds the stage."""
        return max(("compute", "read", "write"), key=lambda name: getattr(self, name))


def layer_macs(layer: Layer, stage: str) -> int:
    """Return the stored multiply-accumulates of a stage of a layer; 0 for the update.

    Taps on the padding count, as the array multiplies there, too: in FF and WU those of each output
    pixel, in BP those of each input pixel. For the usual paddings all three are as many.
    """
    n, m = layer.pattern(stage)
    return dense_macs(layer, stage) * n // m


def dense_macs(layer: Layer, stage: str) -> int:
    """Return the same without pruning."""
    if stage == "update":
        return 0
    if stage != "bp":
        return layer.dense_macs
    macs = layer.batch * layer.out_per_group * layer.in_channels
    sizes = layer.lines, layer.pixels
    for axis in zip(sizes, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True):
        macs *= sum(phase.count * len(phase.taps) for phase in phases(*axis))
    return macs


def layer_bounds(layer: Layer, stage: str, machine: Machine) -> Bounds:
    """Return the least that a stage of a layer takes.

    Raises
    ------
    DoesNotFit
        The device cannot run this layer's groups or patterns.
    """
    config = machine.config
    where = LayerMemory(layer, config)
    if stage == "update":
        compute = ceil_div(where["w"].rows * where["w"].row_bytes // 4, config.update_lanes)
    else:
        compute = ceil_div(layer_macs(layer, stage), machine.peak)
    reads, writes = READS[stage], WRITES[stage]
    if layer.depthwise:
        # One copy serves both.
        reads = tuple("ff" if name == "bp" else name for name in reads)
        writes = tuple(name for name in writes if "index" not in name)

    def cycles(names: tuple[str, ...]) -> int:
        size = sum(_bytes(where, name) for name in names)
        return ceil_div(size, config.axi.beat_bytes) * machine.timing.cycles_per_beat

    return Bounds(compute, cycles(reads), cycles(writes))


def product_bounds(product: Product, machine: Machine) -> Bounds:
    """Return the least that a product, or a stack of them, takes."""
    config = machine.config
    values = product.cols * product.kept
    index = 0 if product.dense else values // 2
    read = product.count * (2 * product.rows * product.depth + 2 * values + index)
    write = product.count * 4 * product.rows * product.cols
    beat, pace = config.axi.beat_bytes, machine.timing.cycles_per_beat
    return Bounds(
        ceil_div(product.macs, machine.peak), ceil_div(read, beat) * pace,
        ceil_div(write, beat) * pace,
    )  # fmt: skip


def total(bounds: list[Bounds]) -> Bounds:
    """Return the least that stages take together, even if each overlapped with all others."""
    return Bounds(*(sum(getattr(b, name) for b in bounds) for name in ("compute", "read", "write")))


def drain_cycles(layer: Layer, stage: str, config: SatConfig) -> int:
    """Return the cycles in which a stage's sums leave the array, one a column and cycle."""
    sums = {
        "ff": layer.out_positions * layer.out_channels,
        "bp": layer.in_positions * layer.in_channels,
        "wu": layer.taps * layer.in_per_group * layer.out_channels,
    }[stage]
    return ceil_div(sums, config.cols)


@functools.lru_cache(maxsize=4096)
def _met(layer: Layer) -> int:
    """Return how many input pixels any tap meets: with strides, not all."""
    met = layer.batch
    for axis, size in enumerate((layer.lines, layer.pixels)):
        first, step, tap = -layer.padding[axis], layer.stride[axis], layer.dilation[axis]
        met *= len(
            {
                at
                for position in range(layer.out_size[axis])
                for k in range(layer.kernel[axis])
                if 0 <= (at := first + position * step + k * tap) < size
            }
        )
    return met


def _bytes(where: LayerMemory, name: str) -> int:
    layer, region = where.layer, where.regions.get(name)
    if region is None:
        return 0
    # Results are stored without the padding of their channels; pixels that no tap meets stay.
    sizes = {
        "x": _met(layer) * region.row_bytes,
        "y": 2 * layer.out_positions * layer.out_channels,
        "dx": 2 * layer.in_positions * layer.in_channels,
        "g": 4 * layer.taps * layer.in_per_group * layer.out_channels,
    }
    return sizes.get(name, region.rows * region.row_bytes)
