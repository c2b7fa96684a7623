"""On-chip banks for operands, indices and sums.

Every bank has one write port and its read ports answer a cycle after the address.
"""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out


def bank_memory(shape: Any, words: int) -> memory.Memory:
    """Return the memory of a bank.

    What a read gives in the cycle in which its address is written is of no account: semaphores and
    schedules keep reads that count apart from writes (`tests/cosim/test_collisions.py`). Yosys is
    told so, for block RAM that does not give the old value by itself would need comparators and
    bypasses around it.

    Parameters
    ----------
    shape : shape-castable
        Of a word.
    words : int
    """
    return memory.Memory(shape=shape, depth=words, init=[], attrs={"no_rw_check": 1})


class OperandBuffer(wiring.Component):
    """Banks of words, each word a number of lanes that can be written apart.

    Parameters
    ----------
    write : StructLayout
        A write: ``banks`` (mask), ``address``, ``lanes`` (mask), ``data`` (array of lanes).
    words : int
        Words in a bank.
    together : int
        Neighbouring lanes that are always written together: a beat's.
    elements : int
        Elements of a beat, for transposed writes.

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
    ):
        self.words, self.together, self.elements = words, together, elements
        self.banks = write["banks"].width
        self.lanes = write["data"].shape
        super().__init__(
            {
                "write": In(write),
                "address": In((words - 1).bit_length()).array(self.banks),
                "data": Out(self.lanes).array(self.banks),
            }
        )

    def elaborate(self, platform):
        m = Module()
        parts = Cat(self.write.lanes[n] for n in range(0, self.lanes.length, self.together))
        for number in range(self.banks):
            m.submodules[f"bank_{number}"] = made = bank_memory(self.lanes, self.words)
            write, read = made.write_port(granularity=self.together), made.read_port()
            m.d.comb += [
                write.addr.eq(self.write.address),
                write.en.eq(Mux(self.write.banks[number], parts, 0)),
                read.addr.eq(self.address[number]),
                self.data[number].eq(read.data),
            ]
            m.d.comb += write.data.eq(self.write.data)
            if "transpose" in dict(self.write.shape().members):
                element = self.write.data[number % self.elements]
                with m.If(self.write.transpose):
                    m.d.comb += [write.data[lane].eq(element) for lane in range(self.lanes.length)]
        return m


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


class BeatBuffer(wiring.Component):
    """Banks of words, one for each lane of the update engine, with a part write for each bank.

    Parameters
    ----------
    lanes : int
    words : int
        Words in a bank.
    bits : int
        Bits of a word.
    part : int
        Bits that can be written apart.

    Members
    -------
    write, write_address, write_data : ``In`` arrays
        For each bank: the parts to write (mask), where, the whole word.
    address, data : ``In``, ``Out`` arrays
        One read port for each bank.
    """

    def __init__(self, lanes: int, words: int, bits: int, part: int):
        self.lanes, self.words, self.bits, self.part = lanes, words, bits, part
        address = (words - 1).bit_length()
        super().__init__(
            {
                "write": In(bits // part).array(lanes),
                "write_address": In(address).array(lanes),
                "write_data": In(bits).array(lanes),
                "address": In(address).array(lanes),
                "data": Out(bits).array(lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for number in range(self.lanes):
            made = bank_memory(data.ArrayLayout(self.part, self.bits // self.part), self.words)
            m.submodules[f"bank_{number}"] = made
            write, read = made.write_port(granularity=1), made.read_port()
            m.d.comb += [
                write.addr.eq(self.write_address[number]),
                Value.cast(write.data).eq(self.write_data[number]),
                write.en.eq(self.write[number]),
                read.addr.eq(self.address[number]),
                self.data[number].eq(Value.cast(read.data)),
            ]
        return m
