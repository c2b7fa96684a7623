"""Area of a device by one formula, from blocks that were synthesised for an ECP5 (docs/fpga.md).

Measured are the blocks below, each by itself, and a device of 4x4 and one of 2x2. What lies between
and beyond is interpolation: elements and lanes times what one takes, the rest by the array's edges.
"""

from __future__ import annotations

from dataclasses import dataclass

from sat.dataflow.mapping import ceil_div
from sat.rtl.config import SatConfig

MEASURED = "blocks of docs/fpga.md, synthesised for an ECP5; sums of them are interpolation"


@dataclass(frozen=True)
class Area:
    """What a device takes.

    Attributes
    ----------
    lut4, dsp : int
        Of logic, and multipliers of 18 x 18 bits.
    ram : int
        Block RAMs of 18 kbit.
    """

    lut4: int
    dsp: int
    ram: int

    def __add__(self, other: Area) -> Area:
        return Area(self.lut4 + other.lut4, self.dsp + other.dsp, self.ram + other.ram)

    def __mul__(self, count: int) -> Area:
        return Area(self.lut4 * count, self.dsp * count, self.ram * count)


USPE = Area(737, 1, 0)
FIXED = Area(3178 + 2235 + 1665, 5 + 5, 0)
"""Sequencer and checker, load engine, store engine."""
FP32_MULTIPLIER, FP32_ADDER, SORE_LANE = Area(737, 4, 0), Area(437, 0, 0), Area(365, 0, 0)
LANE = FP32_MULTIPLIER * 4 + FP32_ADDER * 3 + SORE_LANE * 3
"""Of the update engine: WUVE, both prunings, and what FF prunes now."""
UPDATE_REST = Area(6019, 19, 0) + LANE * -1
WHOLE = Area(30_889, 46, 0)
"""4x4, one lane, with its memory and link."""
EDGE = 8
"""Rows and columns of it: what no block accounts for is shared out among them."""
REST = WHOLE + (USPE * 16 + FIXED + UPDATE_REST + LANE) * -1

RAM_BITS, RAM_DEPTH = 36, 512
"""Of a block RAM, at its widest."""


def area(config: SatConfig) -> Area:
    """Return roughly what a device takes: interpolated, but for 4x4 and 2x2 with one lane."""
    logic = USPE * (config.rows * config.cols) + FIXED + UPDATE_REST + LANE * config.update_lanes
    edges = config.rows + config.cols
    # A wider choice of a word's element: 17 bits, two thirds of a LUT4 for each more.
    choice = round(17 * 2 / 3 * (config.max_m - 8)) * config.rows * config.cols
    rest = Area(ceil_div(REST.lut4 * edges, EDGE) + choice, REST.dsp, 0)
    return logic + rest + Area(0, 0, ram_blocks(config))


def ram_blocks(config: SatConfig) -> int:
    """Return the block RAMs of all buffers."""

    def banks(count: int, bits: int, depth: int) -> int:
        return count * ceil_div(bits, RAM_BITS) * ceil_div(depth, RAM_DEPTH)

    # Operands are decoded: 17 bits each. Sums are read by STORE and by the array: two copies.
    word, index = 17 * config.max_m, 8 * config.word_bytes
    granule, lanes = 8 * config.granule_bytes, config.update_lanes
    return (
        banks(config.rows, word, config.a_words)
        + banks(config.cols, word, config.b_words)
        + banks(config.cols, index, config.i_words)
        + banks(3 * config.cols, 32, config.sum_words)
        + banks(5 * lanes, granule, config.update_words)
        + banks(2 * lanes, granule, config.copy_words)
        + banks(2 * lanes, granule // 4, config.copy_words)
        + banks(2 * lanes, 16, ceil_div(config.tile_weights, lanes))
    )
