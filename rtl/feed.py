"""Feeders: the counters that read the operand and sum banks in the array's rhythm.

All of them are statically timed. A command that arrives in cycle x makes the feeder present its
first address in cycle x + 1 and the last one a known number of cycles later; a next command may
arrive in the cycle of the last address.
"""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import INDEX_BITS, INDICES_TOGETHER, SatConfig
from sat.rtl.layouts import OPERAND_BITS


def _address(words: int) -> int:
    return (words - 1).bit_length()


def _low_mask(m: Module, split: Value) -> Value:
    """Return a mask of the low ``split`` bits of a slot number."""
    mask = Signal(3)
    m.d.comb += mask.eq((1 << split) - 1)
    return mask


def row_command_layout(config: SatConfig) -> data.StructLayout:
    """Return what a `RowFeeder` receives for a tile."""
    a = _address(config.a_words)
    return data.StructLayout(
        {
            "base": a,
            "outer_step": a,  # words from one outer step to the next
            "inner_step": a,  # words from one group of rows to the next
            "split": 2,  # log2 of the consecutive slots that share a word
            "last_word": 16,  # outer steps, less one
            "last_value": 5,  # values that meet each word, less one
            "final_value": 5,  # … the last word, less one
            "start": 1,  # sums start in this tile
            "zero": 1,  # they start from +0, not from what comes from the north
            "emit": 1,  # sums end in this tile
            "ws": 1,
            "bank": 1,  # WS: which set of held weights
        }
    )


class RowFeeder(wiring.Component):
    """Read the words of A for one row of the array, in the order in which the row uses them.

    For each word, for each of its values, for each interleaved slot: one word a cycle, from bank
    address ``base + word * outer_step + (slot >> split) * inner_step``.

    The command is passed on to the next row when that row is due: 1 cycle later (output
    stationary) or ``interleave * values + 1`` cycles later, when the first sum of this row
    reaches the next (weight stationary).

    Members
    -------
    command, command_valid : ``In``
        A tile, in the cycle in which it is valid.
    next_command, next_valid : ``Out``
        The same for the next row.
    address : ``Out``
        Read address of this row's bank.
    flags : ``Out``
        The rest of the A link for the word whose address was presented in
        the cycle before: they belong to the read data of this cycle.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        command = row_command_layout(config)
        super().__init__(
            {
                "command": In(command),
                "command_valid": In(1),
                "next_command": Out(command),
                "next_valid": Out(1),
                "address": Out(_address(config.a_words)),
                "flags": Out(row_flags_layout(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        s = config.interleave
        current = Signal(row_command_layout(config))
        active = Signal()
        slot = Signal(range(max(s, 2)))
        value = Signal(5)
        word = Signal(16)
        outer_address = Signal(_address(config.a_words))
        inner_address = Signal(_address(config.a_words))

        last_word = word == current.last_word
        last_value = value == Mux(last_word, current.final_value, current.last_value)
        last_slot = slot == s - 1
        with m.If(active):
            with m.If(~last_slot):
                m.d.sync += slot.eq(slot + 1)
                # Slots that share a word agree in all but their low `split` bits.
                shared = _low_mask(m, current.split)
                with m.If((slot & shared) == shared):
                    m.d.sync += inner_address.eq(inner_address + current.inner_step)
            with m.Else():
                m.d.sync += [slot.eq(0), inner_address.eq(0)]
                with m.If(~last_value):
                    m.d.sync += value.eq(value + 1)
                with m.Else():
                    m.d.sync += [
                        value.eq(0),
                        word.eq(word + 1),
                        outer_address.eq(outer_address + current.outer_step),
                    ]
                    with m.If(last_word):
                        m.d.sync += active.eq(0)

        # Hand the command on when the next row is due.
        countdown = Signal(range(s * config.max_n + 2))
        pending = Signal()
        m.d.comb += [
            self.next_command.eq(current),
            # Weight stationary: only the first row starts sums, the others continue them.
            self.next_command.zero.eq(current.zero & ~current.ws),
            self.next_valid.eq(pending & (countdown == 0)),
        ]
        with m.If(pending):
            m.d.sync += countdown.eq(countdown - 1)
            with m.If(countdown == 0):
                m.d.sync += pending.eq(0)

        with m.If(self.command_valid):
            m.d.sync += [
                current.eq(self.command),
                active.eq(1),
                slot.eq(0),
                value.eq(0),
                word.eq(0),
                outer_address.eq(self.command.base),
                inner_address.eq(0),
                pending.eq(1),
                countdown.eq(Mux(self.command.ws, (self.command.last_value + 1) * s, 0)),
            ]

        m.d.comb += self.address.eq(outer_address + inner_address)
        ends = Mux(current.ws, 1, last_word)
        m.d.sync += [
            self.flags.valid.eq(active),
            self.flags.first.eq(active & current.start & (value == 0) & (current.ws | (word == 0))),
            self.flags.zero.eq(current.zero),
            self.flags.last.eq(active & current.emit & last_value & ends),
            self.flags.weight.eq(value),
            self.flags.bank.eq(current.bank),
        ]
        return m


def row_flags_layout(config: SatConfig) -> data.StructLayout:
    """Return the part of an A link that a `RowFeeder` makes: all but the word itself."""
    return data.StructLayout(
        {
            "valid": 1,
            "first": 1,
            "zero": 1,
            "last": 1,
            "weight": config.weight_bits,
            "bank": 1,
        }
    )


def column_command_layout(config: SatConfig) -> data.StructLayout:
    """Return what the `ColumnFeeder` receives for a tile."""
    b, i = _address(config.b_words), _address(config.i_words)
    return data.StructLayout(
        {
            "ws": 1,
            "b_base": b,
            "b_stride": b,
            "b_skip": config.lane_bits,
            "i_base": i,
            "i_stride": i,
            "i_skip": 6,
            "split": 2,
            "n": 5,
            "log2_m": 3,
            "last_step": 20,  # OS: values per column, less one
            "count": 12,  # WS: real weights of the pass, per column
            "values": 5,  # WS: weights that each USPE holds
            "bank": 1,
        }
    )


def column_read_layout(config: SatConfig) -> data.StructLayout:
    """Return one read of a column's B and index banks, and what to make of the two words."""
    return data.StructLayout(
        {
            "b_address": _address(config.b_words),
            "i_address": _address(config.i_words),
            "lane": config.lane_bits,  # which value of the B word
            "nibble": (config.indices_per_word - 1).bit_length(),  # which index of its word
            "group": config.lane_bits,  # first lane of the value's group of M in the A word
            "sparse": 1,  # add the stored index to `group`
            "real": 1,
            "hold": 1,
            "row": config.row_bits,
            "weight": config.weight_bits,
            "bank": 1,
        }
    )


class ColumnFeeder(wiring.Component):
    """Walk the B and index banks of column 0; the other columns follow a cycle each.

    Output stationary: for each value along the depth, for each interleaved slot; a slot's column
    is its low ``split`` bits. Weight stationary: the weights of a pass, once, row after row,
    each with the row that keeps it; slots beyond ``count`` are padding.

    Members
    -------
    command, command_valid : ``In``
        A tile, in the cycle in which it is valid.
    read : ``Out(column_read_layout)``
        Addresses for this cycle.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "command": In(column_command_layout(config)),
                "command_valid": In(1),
                "read": Out(column_read_layout(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        s = config.interleave
        per_word = config.indices_per_word
        current = Signal(column_command_layout(config))
        active = Signal()
        slot = Signal(range(max(s, 2)))
        done = Signal(20)  # values done
        position = Signal(range(2 * config.max_m))  # lane in the B word
        b_word = Signal(_address(config.b_words))
        nibble = Signal(range(2 * per_word))
        i_word = Signal(_address(config.i_words))
        in_group = Signal(5)
        group = Signal(config.lane_bits)
        b_offset = Signal(_address(config.b_words))
        i_offset = Signal(_address(config.i_words))
        weight = Signal(5)
        row = Signal(range(max(config.rows, 2)))

        last_of_value = current.ws | (slot == s - 1)
        shared = _low_mask(m, current.split)
        with m.If(active):
            with m.If(~last_of_value):
                m.d.sync += slot.eq(slot + 1)
                with m.If((slot & shared) == shared):
                    m.d.sync += [b_offset.eq(0), i_offset.eq(0)]
                with m.Else():
                    m.d.sync += [
                        b_offset.eq(b_offset + current.b_stride),
                        i_offset.eq(i_offset + current.i_stride),
                    ]
            with m.Else():
                m.d.sync += [slot.eq(0), b_offset.eq(0), i_offset.eq(0), done.eq(done + 1)]
                with m.If(position == config.max_m - 1):
                    m.d.sync += [position.eq(0), b_word.eq(b_word + 1)]
                with m.Else():
                    m.d.sync += position.eq(position + 1)
                with m.If(nibble == per_word - 1):
                    m.d.sync += [nibble.eq(0), i_word.eq(i_word + 1)]
                with m.Else():
                    m.d.sync += nibble.eq(nibble + 1)
                with m.If(in_group == current.n - 1):
                    # The group number wraps with the word: max_m is a multiple of M.
                    m.d.sync += [in_group.eq(0), group.eq(group + (1 << current.log2_m))]
                with m.Else():
                    m.d.sync += in_group.eq(in_group + 1)
                with m.If(weight == current.values - 1):
                    m.d.sync += [weight.eq(0), row.eq(row + 1)]
                    with m.If(current.ws & (row == config.rows - 1)):
                        m.d.sync += active.eq(0)
                with m.Else():
                    m.d.sync += weight.eq(weight + 1)
                with m.If(~current.ws & (done == current.last_step)):
                    m.d.sync += active.eq(0)

        with m.If(self.command_valid):
            m.d.sync += [
                current.eq(self.command),
                active.eq(1),
                slot.eq(0),
                done.eq(0),
                position.eq(self.command.b_skip),
                b_word.eq(self.command.b_base),
                nibble.eq(self.command.i_skip),
                i_word.eq(self.command.i_base),
                in_group.eq(0),
                group.eq(0),
                b_offset.eq(0),
                i_offset.eq(0),
                weight.eq(0),
                row.eq(0),
            ]

        m.d.comb += [
            self.read.b_address.eq(b_word + b_offset),
            self.read.i_address.eq(i_word + i_offset),
            self.read.lane.eq(position),
            self.read.nibble.eq(nibble),
            self.read.group.eq(group),
            self.read.sparse.eq(current.log2_m != 0),
            self.read.real.eq(active & (~current.ws | (done < current.count))),
            self.read.hold.eq(active & current.ws),
            self.read.row.eq(row),
            self.read.weight.eq(weight),
            self.read.bank.eq(current.bank),
        ]
        return m


def _pick(word: Value, bits: int) -> Array:
    """Return a word's parts for selection: a multiplexer, which simulates faster than a shift."""
    return Array(word[at : at + bits] for at in range(0, len(word), bits))


def granule_bits(config: SatConfig) -> tuple[int, int]:
    """Return how many low bits of a lane's and of an index's number count within a granule."""
    halves = config.granule_halves
    return (halves - 1).bit_length(), (halves * INDICES_TOGETHER - 1).bit_length()


def pick_b(
    m: Module,
    config: SatConfig,
    read: data.View,
    values: Value,
    indices: Value,
    link: data.View,
) -> None:
    """Drive ``link`` with the B value that ``read`` names in the two granules read for it.

    Parameters
    ----------
    read : view of `column_read_layout`
        The read whose data are in ``values`` (lanes of operands) and ``indices`` (packed).
    link : view of `sat.rtl.uspe.b_link_layout`
        Driven combinationally.
    """
    lane_bits, nibble_bits = granule_bits(config)
    stored = Signal(INDEX_BITS)
    nibble, lane = read.nibble[:nibble_bits], read.lane[:lane_bits]
    m.d.comb += [
        stored.eq(Mux(read.sparse, _pick(indices, INDEX_BITS)[nibble], 0)),
        link.value.eq(_pick(values, OPERAND_BITS)[lane]),
        link.index.eq(read.group + stored),
        link.real.eq(read.real),
        link.hold.eq(read.hold),
        link.row.eq(read.row),
        link.weight.eq(read.weight),
        link.bank.eq(read.bank),
    ]


def sum_command_layout(config: SatConfig) -> data.StructLayout:
    """Return what a `SumWalker` receives for a tile."""
    return data.StructLayout(
        {
            "ws": 1,
            "base": _address(config.sum_words),
            "split": 2,
            "batches": 16,  # WS: batches of `interleave` rows
            "values": 5,  # WS: weights that each USPE holds
        }
    )


class SumWalker(wiring.Component):
    """Address the sums of a tile in the order in which they pass the array's edge.

    A sum's place in its bank is ``base + row * width + column word``, where ``width`` is 1 for
    weight stationary tiles and ``1 << split`` for output stationary ones.

    * Output stationary: the last row of the array first, each row's slots in turn:
      ``rows * interleave`` addresses, one a cycle.
    * Weight stationary: batch after batch, ``interleave`` addresses in a row, one such run every
      ``interleave * values`` cycles.

    Members
    -------
    command, command_valid : ``In``
        A tile, in the cycle in which it is valid.
    valid, address : ``Out``
        An address.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "command": In(sum_command_layout(config)),
                "command_valid": In(1),
                "valid": Out(1),
                "address": Out(_address(config.sum_words)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        s, rows = config.interleave, config.rows
        address = len(self.address)
        current = Signal(sum_command_layout(config))
        active = Signal()
        slot = Signal(range(max(s, 2)))
        value = Signal(5)  # WS: which weight the ring is at
        left = Signal(16)  # rows or batches left
        row_base = Signal(address)
        group = Signal(address)  # OS: the words of earlier groups of rows
        column = Signal(3)  # OS: column word
        shared = _low_mask(m, current.split)
        m.d.comb += [
            self.valid.eq(active & (value == 0)),
            self.address.eq(row_base + group + column),
        ]
        with m.If(active):
            with m.If(slot != s - 1):
                m.d.sync += slot.eq(slot + 1)
                with m.If(current.ws):
                    m.d.sync += group.eq(group + 1)
                with m.Elif(column == shared):
                    m.d.sync += [
                        column.eq(0),
                        group.eq(group + (rows << current.split).as_unsigned()),
                    ]
                with m.Else():
                    m.d.sync += column.eq(column + 1)
            with m.Else():
                m.d.sync += [slot.eq(0), group.eq(0), column.eq(0)]
                with m.If(current.ws & (value != current.values - 1)):
                    m.d.sync += value.eq(value + 1)
                with m.Else():
                    m.d.sync += [value.eq(0), left.eq(left - 1)]
                    with m.If(current.ws):
                        m.d.sync += row_base.eq(row_base + s)
                    with m.Else():
                        m.d.sync += row_base.eq(row_base - (1 << current.split))
                    with m.If(left == 0):
                        m.d.sync += active.eq(0)
        with m.If(self.command_valid):
            m.d.sync += [
                current.eq(self.command),
                active.eq(1),
                slot.eq(0),
                value.eq(0),
                group.eq(0),
                column.eq(0),
            ]
            with m.If(self.command.ws):
                m.d.sync += [row_base.eq(self.command.base), left.eq(self.command.batches - 1)]
            with m.Else():
                m.d.sync += [
                    row_base.eq(self.command.base + ((rows - 1) << self.command.split)),
                    left.eq(rows - 1),
                ]
        return m
