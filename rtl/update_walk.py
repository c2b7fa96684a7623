"""How an update goes over a tile: its cycles, its walk over the weights, where copies are put."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SatConfig
from sat.rtl.wuve import wuve_latency

READ_CYCLES = 2
"""Cycles from a weight's address to the register in front of its lane."""


def wait_cycles(config: SatConfig) -> int:
    """Return how long a weight waits until it is known whether FF prunes it."""
    return config.max_m + config.fp.prune_stages - 1


def row_latency(config: SatConfig) -> int:
    """Return the cycles from a weight's address to its successor."""
    return READ_CYCLES + wait_cycles(config) + wuve_latency(config.fp)


def row_drain(config: SatConfig) -> int:
    """Return the cycles from the last weight's address until the row pass has left its pipeline."""
    return row_latency(config) + config.fp.prune_stages + config.max_m + 1


def column_drain(config: SatConfig) -> int:
    """Return the cycles from the last read of lane 0 to the end of the column pass."""
    fp = config.fp
    return config.update_lanes + config.max_m + 1 + fp.round_stages + fp.sore_stages


def index_bits(words: int) -> int:
    """Return the bits of a number below ``words``, one at least."""
    return max(1, (words - 1).bit_length())


class TileWalk(wiring.Component):
    """Walk the weights of a tile as a lane sees them: row group after row group, a cycle each.

    Members
    -------
    start : ``In(1)``
        The first weight's cycle is the next.
    groups, columns, base, stride : ``In``
        Row groups, columns, first word, in the cycle of the start; words from group to group, from
        the cycle after it on.
    active, last : ``Out(1)``
        A weight; the tile's last.
    group, word, place : ``Out``
        Its row group, its word in the banks, its place in the word.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "groups": In(16),
                "columns": In(16),
                "base": In(16),
                "stride": In(16),
                "active": Out(1),
                "last": Out(1),
                "group": Out(16),
                "word": Out(16),
                "place": Out(index_bits(config.granule_weights)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift = (self.config.granule_weights - 1).bit_length()
        column, row_word = Signal(16), Signal(16)
        last_column, last_group = Signal(16), Signal(16)
        end = column == last_column
        m.d.comb += [
            self.last.eq(self.active & end & (self.group == last_group)),
            self.word.eq(row_word + (column >> shift)),
            self.place.eq(column[:shift]),
        ]
        with m.If(self.active):
            m.d.sync += column.eq(Mux(end, 0, column + 1))
            with m.If(end):
                m.d.sync += [self.group.eq(self.group + 1), row_word.eq(row_word + self.stride)]
            with m.If(self.last):
                m.d.sync += self.active.eq(0)
        with m.If(self.start):
            m.d.sync += [
                self.active.eq(1),
                column.eq(0),
                last_column.eq(self.columns - 1),
                last_group.eq(self.groups - 1),
                self.group.eq(0),
                row_word.eq(self.base),
            ]
        return m


class CopyWriter(wiring.Component):
    """Put the kept elements of a lane's lines where they belong in the banks of a copy.

    Members
    -------
    start : ``In(1)``
        Before the first element of a tile.
    lines, kept, base, stride : ``In``
        Lines that the lane has, elements of each, first word, words from line to line; steady,
        and ``kept`` from the cycle before the first element.
    valid : ``In(1)``
        An element.
    write, address, lane : ``Out``
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "lines": In(16),
                "kept": In(16),
                "base": In(16),
                "stride": In(16),
                "valid": In(1),
                "write": Out(1),
                "address": Out(index_bits(config.copy_words)),
                "lane": Out(index_bits(config.granule_halves)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift = (self.config.granule_halves - 1).bit_length()
        line, place, line_word = Signal(16), Signal(16), Signal(16)
        end = Signal(16)
        m.d.sync += end.eq(self.kept - 1)
        m.d.comb += [
            # A lane without a line of its own in the last group goes through it all the same.
            self.write.eq(self.valid & (line < self.lines)),
            self.address.eq(line_word + (place >> shift)),
            self.lane.eq(place[:shift]),
        ]
        with m.If(self.valid):
            m.d.sync += place.eq(place + 1)
            with m.If(place == end):
                m.d.sync += [
                    place.eq(0),
                    line.eq(line + 1),
                    line_word.eq(line_word + self.stride),
                ]
        with m.If(self.start):
            m.d.sync += [line.eq(0), place.eq(0), line_word.eq(self.base)]
        return m
