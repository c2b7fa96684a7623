"""On-chip banks for operands, indices and sums.

Every bank has one write port and its read ports answer a cycle after the address.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.layouts import ALONE, Groups

BLOCK_WORDS = 32
"""From so many words on a bank is never made of LUTs, which the array needs: a 32x32 behind beats
of 64 bytes has 700 banks of 32 or 64 words."""


def bank_memory(shape: Any, words: int) -> memory.Memory:
    """Return the memory of a bank.

    What a read gives in the cycle in which its address is written is of no account: semaphores and
    schedules keep reads that count apart from writes (`tests/cosim/test_collisions.py`). Yosys is
    told so, for block RAM that does not give the old value by itself would need comparators and
    bypasses around it. `BLOCK_WORDS` words or more are block RAM.

    Parameters
    ----------
    shape : shape-castable
        Of a word.
    words : int
    """
    attrs: dict[str, int | str] = {"no_rw_check": 1}
    if words >= BLOCK_WORDS:
        attrs["ram_style"] = "block"
    return memory.Memory(shape=shape, depth=words, init=[], attrs=attrs)


class OperandBuffer(wiring.Component):
    """Banks of words, each word a number of lanes that can be written apart.

    Parameters
    ----------
    write : StructLayout
        A write, as `sat.rtl.layouts.bank_write_layout` has it.
    words : int
        Words in a bank.
    together : int
        Neighbouring lanes that are always written together: a beat's.
    elements : int
        Elements of a beat, for transposed writes.
    groups : Groups
        Of channels that such a write brings.
    shown : int, optional
        Lanes that a read gives, all of a word if nothing is said: neighbours, and no write has
        lanes of more than one such part of a word. Then `words` is counted in words, but
        ``address`` in these parts, and the memory is as narrow.

    A layout with ``transpose`` has banks that can each take an element of their own; see
    `sat.rtl.layouts.operand_write_layout`.

    Members
    -------
    write : ``In(write)``
    address, data : ``In``, ``Out`` arrays
        One read port for each bank.
    """

    def __init__(
        self,
        write: data.StructLayout,
        words: int,
        together: int = 1,
        elements: int = 1,
        groups: Groups = ALONE,
        shown: int | None = None,
    ):
        self.words, self.together, self.elements, self.groups = words, together, elements, groups
        self.banks = write["banks"].width // groups.count
        lanes = write["lanes"].width
        self.parts = write["data"].shape.length // lanes
        self.lanes = data.ArrayLayout(write["data"].shape.elem_shape, lanes)
        self.shown = lanes if shown is None else shown
        # What several sub-banks are offered.
        self._beats: dict[int, list[Value]] = {}
        self._rows: dict[tuple[int, int], Value] = {}
        super().__init__(
            {
                "write": In(write),
                "address": In((words * lanes // self.shown - 1).bit_length()).array(self.banks),
                "data": Out(data.ArrayLayout(self.lanes.elem_shape, self.shown)).array(self.banks),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for number in range(self.banks):
            if self.shown < self.lanes.length:
                self._narrow_bank(m, number)
            elif self.parts == 1:
                self._bank(m, number)
            else:
                self._sub_banks(m, number)
        return m

    def _place(self, number: int, part: int) -> int:
        """Return at which place a sub-bank of a bank finds its group."""
        return self.groups.place((part - number) % self.parts)

    def _offered(self, m: Module, number: int, part: int) -> list[Value]:
        """Return the beat that a sub-bank is offered: transposed, of each word its own element."""
        beat = [self.write.data[n] for n in range(self.lanes.length * self.parts)]
        if "transpose" not in dict(self.write.shape().members):
            return beat
        banks = self.elements // self.groups.count
        element = (self._place(number, part) * banks + number % banks) // self.parts
        if element not in self._beats:
            turned = [
                Signal(self.lanes.elem_shape, name=f"beat_{element}_{n}") for n in range(len(beat))
            ]
            for n, lane in enumerate(turned):
                own = beat[n // self.lanes.length * self.lanes.length + element]
                m.d.comb += lane.eq(Mux(self.write.transpose, own, beat[n]))
            self._beats[element] = turned
        return self._beats[element]

    def _row(self, m: Module, number: int, part: int) -> Value:
        """Return the row that a sub-bank of a bank is offered."""
        rows, place = self.write.address, self._place(number, part)
        if self.groups.count == 1:
            return rows[part]
        if (part, place) not in self._rows:
            self._rows[part, place] = row = Signal(rows[part].shape(), name=f"row_{part}_{place}")
            m.d.comb += row.eq(
                Mux(self.write.diagonal, rows[place * self.groups.apart], rows[part])
            )
        return self._rows[part, place]

    def _memory(self, m: Module, name: str, number: int, part: int, enable: Value):
        """Make a memory with its write port; return it and the read port."""
        lanes, words = self.lanes.length, self.words // self.parts
        m.submodules[name] = made = bank_memory(self.lanes, words)
        write, read = made.write_port(granularity=self.together), made.read_port()
        parts = Cat(self.write.lanes[n] for n in range(0, lanes, self.together))
        address = self.write.address if self.parts == 1 else self._row(m, number, part)
        m.d.comb += [write.addr.eq(address), write.en.eq(Mux(enable, parts, 0))]
        own = self._offered(m, number, part)[part * lanes : (part + 1) * lanes]
        m.d.comb += [write.data[lane].eq(value) for lane, value in enumerate(own)]
        return read

    def _bank(self, m: Module, number: int) -> None:
        read = self._memory(m, f"bank_{number}", number, 0, self.write.banks[number])
        m.d.comb += [read.addr.eq(self.address[number]), self.data[number].eq(read.data)]

    def _narrow_bank(self, m: Module, number: int) -> None:
        """Make a bank whose words are parts of words: a write is for one of them."""
        shown, starts = self.shown, range(0, self.lanes.length, self.shown)
        masks = [self.write.lanes[at : at + shown] for at in starts]
        bits = (len(masks) - 1).bit_length()
        part = Signal(bits, name=f"part_{number}")
        lanes = Signal(shown, name=f"lanes_{number}")
        # No more than one mask has bits.
        m.d.comb += [
            part.eq(reduce(or_, (Mux(mask.any(), at, 0) for at, mask in enumerate(masks)))),
            lanes.eq(reduce(or_, masks)),
        ]
        m.submodules[f"bank_{number}"] = made = bank_memory(
            self.data[number].shape(), self.words * len(masks)
        )
        write, read = made.write_port(granularity=self.together), made.read_port()
        m.d.comb += [
            write.addr.eq(Cat(part, self.write.address)),
            write.en.eq(Mux(self.write.banks[number], lanes[:: self.together], 0)),
            read.addr.eq(self.address[number]),
            self.data[number].eq(read.data),
        ]
        own = self._offered(m, number, 0)[:shown]
        m.d.comb += [write.data[lane].eq(value) for lane, value in enumerate(own)]

    def _sub_banks(self, m: Module, number: int) -> None:
        """Make a bank of sub-banks that are written side by side and read one at a time."""
        parts = self.parts
        bits = parts.bit_length() - 1
        enable = self.write.enable
        turned = Mux(self.write.diagonal, enable.rotate_left(number % parts), enable)
        enables = Signal(parts, name=f"enables_{number}")
        banks = self.write.banks
        if self.groups.count == 1:
            m.d.comb += enables.eq(Mux(banks[number], turned, 0))
        else:
            places = (self._place(number, part) for part in range(parts))
            m.d.comb += enables.eq(turned & Cat(banks[n * self.banks + number] for n in places))
        wanted, shown = (Signal(bits, name=f"{name}_{number}") for name in ("wanted", "shown"))
        m.d.comb += wanted.eq(self.address[number] + number)
        m.d.sync += shown.eq(wanted)
        reads = [
            self._memory(m, f"bank_{number}_{part}", number, part, enables[part])
            for part in range(parts)
        ]
        for part, read in enumerate(reads):
            m.d.comb += [
                read.addr.eq(self.address[number] >> bits),
                read.en.eq(wanted == part),
            ]
        m.d.comb += self.data[number].eq(Array(read.data for read in reads)[shown])


class StartBuffer(wiring.Component):
    """Banks of FP32 start values, written a row of columns at a time.

    Members
    -------
    write : ``In(sat.rtl.layouts.start_write_layout)``
    address, data : ``In``, ``Out`` arrays
        One read port for each bank.
    """

    def __init__(self, write: data.StructLayout, words: int):
        self.words, self.banks = words, write["banks"].width
        super().__init__(
            {
                "write": In(write),
                "address": In((words - 1).bit_length()).array(self.banks),
                "data": Out(32).array(self.banks),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for number in range(self.banks):
            m.submodules[f"bank_{number}"] = made = bank_memory(32, self.words)
            write, read = made.write_port(), made.read_port()
            m.d.comb += [
                write.addr.eq(self.write.address),
                write.data.eq(self.write.data[number]),
                write.en.eq(self.write.banks[number]),
                read.addr.eq(self.address[number]),
                self.data[number].eq(read.data),
            ]
        return m


class OutputBuffer(wiring.Component):
    """Banks of FP32 sums: each column writes its own, compute and store read.

    Members
    -------
    write, write_address, write_data : ``In`` arrays
        One write port for each bank.
    address, data : ``In``, ``Out`` arrays
        One read port for each bank (compute).
    row_address, row_data : ``In``, ``Out(ArrayLayout(32, banks))``
        One read port across all banks (store).
    """

    def __init__(self, banks: int, words: int):
        self.banks, self.words = banks, words
        bits = (words - 1).bit_length()
        super().__init__(
            {
                "write": In(1).array(banks),
                "write_address": In(bits).array(banks),
                "write_data": In(32).array(banks),
                "address": In(bits).array(banks),
                "data": Out(32).array(banks),
                "row_address": In(bits),
                "row_data": Out(data.ArrayLayout(32, banks)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for number in range(self.banks):
            m.submodules[f"bank_{number}"] = made = bank_memory(32, self.words)
            write, read, row = made.write_port(), made.read_port(), made.read_port()
            m.d.comb += [
                write.addr.eq(self.write_address[number]),
                write.data.eq(self.write_data[number]),
                write.en.eq(self.write[number]),
                read.addr.eq(self.address[number]),
                self.data[number].eq(read.data),
                row.addr.eq(self.row_address),
                self.row_data[number].eq(row.data),
            ]
        return m


class MaskBuffer(wiring.Component):
    """One bit for each sum of the output buffer, at the same address.

    Members
    -------
    write : ``In(sat.rtl.layouts.mask_write_layout)``
    address, data : ``In``, ``Out``
    """

    def __init__(self, write: data.StructLayout, words: int):
        self.words, self.columns = words, write["data"].width
        super().__init__(
            {
                "write": In(write),
                "address": In((words - 1).bit_length()),
                "data": Out(self.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.bank = made = bank_memory(self.columns, self.words)
        write, read = made.write_port(), made.read_port()
        m.d.comb += [
            write.addr.eq(self.write.address),
            write.data.eq(self.write.data),
            write.en.eq(self.write.write),
            read.addr.eq(self.address),
            self.data.eq(read.data),
        ]
        return m


class MadeBuffer(wiring.Component):
    """Banks of what the update engine makes, one for each of its lanes, for the store engine.

    Parameters
    ----------
    lanes : int
    words : int
        Words in a bank.
    bits : int
        Bits of a word.
    part : int
        Bits that can be written apart.
    together : int
        Words that are read at once: word ``a`` lies in sub-bank a mod together.

    Members
    -------
    write, write_address, write_data : ``In`` arrays
        For each bank: the parts to write (mask), where, the whole word.
    address : ``In``
        The first word to read, for all banks.
    data : ``Out`` array
        Of each bank, from that word on, as many as are read: each at its sub-bank's place.
    """

    def __init__(self, lanes: int, words: int, bits: int, part: int, together: int = 1):
        self.lanes, self.words, self.bits, self.part = lanes, words, bits, part
        self.together = together
        address = (words - 1).bit_length()
        super().__init__(
            {
                "write": In(bits // part).array(lanes),
                "write_address": In(address).array(lanes),
                "write_data": In(bits).array(lanes),
                "address": In(address),
                "data": Out(bits * together).array(lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift = (self.together - 1).bit_length()
        rows = []
        for sub in range(self.together):
            # The row of the first word of this sub-bank that is not before `address`.
            row = Signal(self.address.shape(), name=f"row_{sub}")
            m.d.comb += row.eq((self.address + (self.together - 1 - sub)) >> shift)
            rows.append(row)
        for number in range(self.lanes):
            to, what = self.write_address[number], self.write[number]
            for sub in range(self.together):
                shape = data.ArrayLayout(self.part, self.bits // self.part)
                made = bank_memory(shape, self.words // self.together)
                name = f"bank_{number}_{sub}" if self.together > 1 else f"bank_{number}"
                m.submodules[name] = made
                write, read = made.write_port(granularity=1), made.read_port()
                m.d.comb += [
                    write.addr.eq(to >> shift),
                    Value.cast(write.data).eq(self.write_data[number]),
                    write.en.eq(what if shift == 0 else Mux(to[:shift] == sub, what, 0)),
                    read.addr.eq(rows[sub]),
                    self.data[number].word_select(sub, self.bits).eq(Value.cast(read.data)),
                ]
        return m
