"""Between the memory ports and the banks: what of a beat is written, and where in it it stands.

Parts of the load engine (`sat.rtl.load`); banks and sub-banks are those of
`sat.rtl.layouts.bank_write_layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from amaranth import *
from amaranth.hdl import ValueLike
from amaranth.lib import data

from sat.rtl.config import SatConfig
from sat.rtl.layouts import Groups


def chosen(which: Value, yes: list[Value], no: list[Value]) -> list[Value]:
    """Return the elements of one of two lists."""
    return [Mux(which, *both) for both in zip(yes, no, strict=True)]


@dataclass(frozen=True)
class Beat:
    """Where in a beat the data side is.

    Attributes
    ----------
    done : Signal
        Elements of it that are written; the data side counts them.
    offset : Value
        Its next element.
    elements, words : Value
        What of it is still to be written, in elements and in granules.
    granules : Value
        Granules that all of it brings.
    last : Value
        It is the last of its segment.
    """

    done: Signal
    offset: Value
    elements: Value
    words: Value
    granules: Value
    last: Value


def beat_at_hand(
    m: Module, config: SatConfig, segment: data.View, rest: Value, fresh: Value
) -> Beat:
    """Return where in the beat at hand the data side is.

    ``segment.first`` is the granule of a beat with which the segment begins: this beat, if
    ``fresh``; ``rest`` of its granules are left with it.
    """
    together, per_beat = config.beat_words, config.axi.beat_bytes // 2
    done = Signal(range(max(per_beat, 2)), name="offset")
    if together == 1:
        return Beat(done, done, per_beat - done, Const(1), Const(1), rest == 1)
    per_granule = config.granule_bytes // 2
    first, has, words = (Signal(range(together + 1), name=n) for n in ("first", "has", "left"))
    offset, elements = Signal(range(per_beat), name="at"), Signal(range(per_beat + 1))
    m.d.comb += [
        first.eq(Mux(fresh, segment.first, 0)),
        has.eq(Mux(rest < together - first, rest, together - first)),
        offset.eq(first * per_granule + done),
        elements.eq(has * per_granule - done),
        words.eq(elements // per_granule),
    ]
    return Beat(done, offset, elements, words, has, has == rest)


def turned(m: Module, config: SatConfig, elements: list[Signal], turn: Value) -> list[Signal]:
    """Return the elements of a beat, turned down by so many: by those within granules first."""
    per_beat, per_granule = config.axi.beat_bytes // 2, config.granule_bytes // 2
    low_bits = (per_granule - 1).bit_length()
    # By row a turn is in whole granules; transposed, bank 0 must find its channel first.
    turns = {
        (first * per_granule + bank) % per_beat
        for banks in (config.rows, config.cols)
        for first in range(config.beat_words)
        for bank in range(0, banks * per_beat, banks)
    }
    stages = [("low", 1, turn[:low_bits], {by % per_granule for by in turns})]
    if config.beat_words > 1:
        stages.append(("high", per_granule, turn[low_bits:], {by // per_granule for by in turns}))
    for name, unit, part, cases in stages:
        after = [Signal(16, name=f"{name}_{n}") for n in range(per_beat)]
        with m.Switch(part):
            for by in sorted(cases | {0}):
                with m.Case(by):
                    m.d.comb += [
                        after[n].eq(elements[(n + by * unit) % per_beat]) for n in range(per_beat)
                    ]
        elements = after
    return elements


def dealt(
    m: Module,
    config: SatConfig,
    elements: list[Value],
    copied: Value,
    transposed: Sequence[tuple[Value, Targets]],
) -> list[Value]:
    """Return the beat's elements as sub-banks are to find them.

    Transposed, of the groups of channels at each place (one of the conditions holds, then), bank
    x, modulo the elements that a group has of a beat, finds its own in the sub-bank that has its
    word; ``copied``, the first word is offered to all; else nothing changes.
    """
    together, per_word = config.beat_words, config.max_m
    if together == 1:
        return elements
    after = [Signal(16, name=f"dealt_{n}") for n in range(len(elements))]
    m.d.comb += [place.eq(element) for place, element in zip(after, elements, strict=True)]
    with m.If(copied):
        m.d.comb += [place.eq(elements[n % per_word]) for n, place in enumerate(after)]
    for when, targets in transposed:
        groups = targets.groups
        own = per_word // groups.count  # elements that a word has of a group
        for place, address in enumerate(targets.addresses):
            with m.If(when), m.Switch(address[: together.bit_length() - 1]):
                for start in range(together):
                    if groups.place(start) != place:
                        continue
                    with m.Case(start):
                        m.d.comb += [
                            after[part * per_word + n].eq(
                                elements[n * together + (part - start) % together]
                            )
                            for part in range(together)
                            for n in range(place * own, (place + 1) * own)
                        ]
    return after


@dataclass(frozen=True)
class Place:
    """Where a write goes, and how: `sat.rtl.layouts.bank_write_layout`.

    Attributes
    ----------
    banks, lanes : Value
        Masks of those that take it.
    address : Value
        The first word.
    stride : Value
        Transposed: words from one group of channels to the next.
    first, words : Value
        Not diagonal: the sub-bank of the first word, how many words there are.
    transpose, diagonal : Value
        As in the write.
    """

    banks: Value
    lanes: Value
    address: Value
    stride: Value
    first: Value
    words: Value
    transpose: Value
    diagonal: Value

    @classmethod
    def of_lane(cls, config: SatConfig, banks: Value, number: Value, stride: Value) -> Place:
        """Return where a lane of each bank lies, by its number in the bank: a transposed write."""
        bits = config.lane_bits
        lanes = (1 << number[:bits])[: config.max_m]
        return cls(banks, lanes, number[bits:], stride, Const(0), Const(0), Const(1), Const(1))

    def chosen(self, which: Value, other: Place) -> Place:
        """Return this place or another."""
        return Place(
            *(Mux(which, getattr(self, e.name), getattr(other, e.name)) for e in fields(self))
        )


Sides = Sequence[tuple[Value, Groups]]
"""Of A and of B: whether a write is for it, and its groups of channels."""


def reach(
    config: SatConfig, sides: Sides, banks: ValueLike, stride: Value
) -> tuple[ValueLike, ValueLike]:
    """Return at which bank transposed writes end, counted on over the groups written together.

    And how many words further the next ones go.
    """
    end, further = banks, stride
    for is_own, groups in sides:
        if groups.count > 1:
            wide = is_own & (stride[: config.beat_words.bit_length() - 1] == groups.apart)
            end = Mux(wide, config.axi.beat_bytes // 2, end)
            further = Mux(wide, stride * groups.count, further)
    return end, further


def to_place(config: SatConfig, sides: Sides, address: Value) -> ValueLike:
    """Return by how many elements a transposed beat is turned up to bring groups to their places.

    There bank 0 finds its channel of the first group, which goes to ``address``.
    """
    found: ValueLike = 0
    for is_own, groups in sides:
        if groups.count > 1:
            elements = config.axi.beat_bytes // 2 // groups.count
            found = Mux(is_own, first_place(groups, address) * elements, found)
    return found


def first_place(groups: Groups, address: Value) -> Value:
    """Return at which place the first group is, by its address."""
    low, bits = (n.bit_length() - 1 for n in (groups.apart, groups.count))
    return address[low : low + bits]


def by_place(of_groups: Sequence[Value], first: Value) -> list[Value]:
    """Return what belongs to groups by their places: at place ``first`` is the first group's."""
    count = len(of_groups)
    return [
        Array(of_groups[(place - start) % count] for start in range(count))[first]
        for place in range(count)
    ]


def all_by_place(
    m: Module, elements: Sequence[Value], groups: Groups, address: Value
) -> Sequence[Value]:
    """Return elements, one of each bank for each group, by the groups' places."""
    if groups.count == 1:
        return elements
    banks, first = len(elements) // groups.count, first_place(groups, address)
    after = [Signal(16, name=f"placed_{n}") for n in range(len(elements))]
    for bank in range(banks):
        own = by_place(elements[bank::banks], first)
        m.d.comb += [after[n * banks + bank].eq(value) for n, value in enumerate(own)]
    return after


class Targets:
    """A write's place in a buffer: of each of the groups of channels that the buffer may take.

    Parameters
    ----------
    groups : Groups
        Of the buffer.
    banks : int
        Its banks.
    place : Place
        Of the first group. If it is diagonal, ``place.banks`` has a mask for each, the first
        lowest; else one mask for all.

    Attributes
    ----------
    addresses : list of Value
        A word for each of the groups' places.
    banks : Value
        Masks, one for each of these.
    """

    def __init__(self, groups: Groups, banks: int, place: Place):
        self.groups, self.place = groups, place
        self.addresses, self.banks = [place.address], place.banks
        if groups.count == 1:
            return
        first = first_place(groups, place.address)
        every = range(groups.count)
        words = [(place.address + n * place.stride)[:16] for n in every]
        masks = [place.banks[n * banks : (n + 1) * banks] for n in every]
        self.addresses = by_place(words, first)
        self.banks = Cat(Mux(place.diagonal, own, masks[0]) for own in by_place(masks, first))


def put(
    m: Module, config: SatConfig, write: data.View, when: Value, lanes: list[Value], to: Targets
) -> None:
    """Have a write of the next cycle take a beat's lanes to their place.

    Every part of a word sees the same beat; ``lanes`` of the place says which of them takes it.
    """
    together, place, has = config.beat_words, to.place, dict(write.shape().members)
    m.d.sync += write.banks.eq(0)
    with m.If(when):
        m.d.sync += write.banks.eq(to.banks)
        m.d.sync += [lane.eq(lanes[n % len(lanes)]) for n, lane in enumerate(write.data)]
        if "buffers" not in has:
            m.d.sync += write.lanes.eq(place.lanes)
        if "transpose" in has:
            m.d.sync += write.transpose.eq(place.transpose)
        if together == 1:
            m.d.sync += write.address.eq(place.address)
            return
        shift = together.bit_length() - 1
        m.d.sync += write.diagonal.eq(place.diagonal)
        for number in range(together):
            own = to.addresses[to.groups.place(number)]
            behind = (number - place.first)[:shift]  # words behind the first of this write
            row = Mux(place.diagonal, own, place.address + behind) >> shift
            m.d.sync += [
                write.address[number].eq(row),
                write.enable[number].eq(
                    Mux(place.diagonal, own[:shift] == number, behind < place.words)
                ),
            ]
