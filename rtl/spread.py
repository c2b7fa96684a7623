"""Between the memory ports and the banks: what of a beat is written, and where in it it stands.

Parts of the load engine (`sat.rtl.load`); banks and sub-banks are those of
`sat.rtl.layouts.bank_write_layout`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from amaranth import *
from amaranth.lib import data

from sat.rtl.config import SatConfig


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
    m: Module, config: SatConfig, segment: data.View, last_granule: Value, granule: Signal
) -> Beat:
    """Return where in the beat at hand the data side is.

    ``segment.first`` is the granule of a beat with which the segment begins; ``granule`` of its
    granules came before this beat.
    """
    together, per_beat = config.beat_words, config.axi.beat_bytes // 2
    done = Signal(range(max(per_beat, 2)), name="offset")
    if together == 1:
        last = granule == last_granule
        return Beat(done, done, per_beat - done, Const(1), Const(1), last)
    per_granule = config.granule_bytes // 2
    first, has, words = (Signal(range(together + 1), name=n) for n in ("first", "has", "left"))
    offset, elements = Signal(range(per_beat), name="at"), Signal(range(per_beat + 1))
    rest = Signal(21)
    m.d.comb += [
        rest.eq(last_granule - granule + 1),
        first.eq(Mux(granule == 0, segment.first, 0)),
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
    transpose: Value,
    copied: Value,
    address: Value,
) -> list[Value]:
    """Return the beat's elements as sub-banks are to find them.

    Transposed, bank x (modulo the elements of a beat) finds its own at place x div K of
    sub-bank (address + x) mod K; ``copied``, the first word is offered to all; else nothing
    changes.
    """
    together, per_word = config.beat_words, config.max_m
    if together == 1:
        return elements
    after = [Signal(16, name=f"dealt_{n}") for n in range(len(elements))]
    m.d.comb += [place.eq(element) for place, element in zip(after, elements, strict=True)]
    with m.If(copied):
        m.d.comb += [place.eq(elements[n % per_word]) for n, place in enumerate(after)]
    with m.If(transpose), m.Switch(address[: together.bit_length() - 1]):
        for start in range(together):
            with m.Case(start):
                m.d.comb += [
                    place.eq(elements[n % per_word * together + (n // per_word - start) % together])
                    for n, place in enumerate(after)
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
    first, words : Value
        Not diagonal: the sub-bank of the first word, how many words there are.
    transpose, diagonal : Value
        As in the write.
    """

    banks: Value
    lanes: Value
    address: Value
    first: Value
    words: Value
    transpose: Value
    diagonal: Value

    @classmethod
    def of_lane(cls, config: SatConfig, banks: Value, number: Value) -> Place:
        """Return where a lane of each bank lies, by its number in the bank: a transposed write."""
        bits = config.lane_bits
        lanes = (1 << number[:bits])[: config.max_m]
        return cls(banks, lanes, number[bits:], Const(0), Const(0), Const(1), Const(1))

    def chosen(self, which: Value, other: Place) -> Place:
        """Return this place or another."""
        return Place(
            *(Mux(which, getattr(self, e.name), getattr(other, e.name)) for e in fields(self))
        )


def put(
    m: Module, config: SatConfig, write: data.View, when: Value, lanes: list[Value], place: Place
) -> None:
    """Have a write of the next cycle take a beat's lanes to their place.

    Every part of a word sees the same beat; ``place.lanes`` says which of them takes it.
    """
    together, has = config.beat_words, dict(write.shape().members)
    m.d.sync += write.banks.eq(0)
    with m.If(when):
        m.d.sync += write.banks.eq(place.banks)
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
            behind = (number - place.first)[:shift]  # words behind the first of this write
            row = (place.address + Mux(place.diagonal, 0, behind)) >> shift
            m.d.sync += [
                write.address[number].eq(row),
                write.enable[number].eq(
                    Mux(place.diagonal, place.address[:shift] == number, behind < place.words)
                ),
            ]
