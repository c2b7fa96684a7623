"""The sequencer's check of every instruction before it is dispatched.

`sat.sim.golden.check` states the same rules in plain arithmetic, with messages.
"""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Buffer, Dataflow, Opcode, Start, Status

CHECK_CYCLES = 2
"""Cycles from a steady instruction to its verdict."""


class Checker(wiring.Component):
    """Check an instruction against the device and the window of legal addresses.

    The verdict on an instruction that is steady from cycle x on is there from cycle x + 2 on:
    products are formed in the first cycle, compared in the second.

    Members
    -------
    word : ``In(256)``
    last : ``In(1)``
        It is the program's last instruction.
    window_base, window_end : ``In(49)``
        Legal byte addresses, the end exclusive.
    status : ``Out(Status)``
        `Status.IDLE` if nothing is wrong.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "word": In(isa.INSTRUCTION_BITS),
                "last": In(1),
                "window_base": In(isa.ADDRESS_BITS + 1),
                "window_end": In(isa.ADDRESS_BITS + 1),
                "status": Out(Status),
            }
        )

    def elaborate(self, platform):
        m = Module()
        opcode = self.word[:8]

        def body(layout: data.StructLayout) -> data.View:
            return data.View(layout, self.word[isa.HEADER_BITS :][: layout.size])

        verdicts = {
            Opcode.LOAD: self._load(m, body(isa.LOAD)),
            Opcode.MULTIPLY: self._multiply(m, body(isa.MULTIPLY)),
            Opcode.STORE: self._store(m, body(isa.STORE)),
            Opcode.FENCE: (Const(0), Const(0)),
            Opcode.END: (Const(0), Const(0)),
        }
        status = Signal(Status)
        with m.Switch(opcode):
            for code, (bad_field, bad_address) in verdicts.items():
                with m.Case(code.value):
                    with m.If(bad_field):
                        m.d.comb += status.eq(Status.BAD_FIELD)
                    with m.Elif(bad_address):
                        m.d.comb += status.eq(Status.BAD_ADDRESS)
                    with m.Elif(self.last & (code is not Opcode.END)):
                        m.d.comb += status.eq(Status.NO_END)
            with m.Default():
                m.d.comb += status.eq(Status.BAD_OPCODE)
        m.d.sync += self.status.eq(status)
        return m

    @staticmethod
    def _later(m: Module, value: Value) -> Signal:
        """Return a value a cycle later: what separates the products from the comparisons."""
        register = Signal(value.shape())
        m.d.sync += register.eq(value)
        return register

    def _outside(self, m: Module, address: Value, pitch: Value, rows: Value, size: Value) -> Value:
        """Return whether rows of memory leave the window."""
        span = self._later(m, (rows - 1)[:16] * pitch)
        end = address + span + size
        return (address < self.window_base) | (end > self.window_end)

    def _load(self, m: Module, i) -> tuple[Value, Value]:
        config = self.config
        beat, word = config.axi.beat_bytes, config.word_bytes
        is_a = i.destination == Buffer.A
        is_start = i.destination == Buffer.START
        size = Signal(21)
        m.d.comb += size.eq((i.row_bytes + (beat - 1)) // beat * beat)
        words = Signal(20)
        m.d.comb += words.eq((i.row_bytes + (word - 1)) // word)
        groups_less = (i.groups - 1)[:16]

        # By row and by word share the shape of their rules: `groups` groups of `each` things.
        things = Mux(i.by_word, words, i.rows)
        inner = Mux(i.by_word, i.rows, words)
        each = Mux(i.by_word, i.words_per_pass, Mux(is_a, config.rows, config.cols))
        covered = self._later(m, i.groups * each)
        covered_less = self._later(m, groups_less * each)
        top = self._later(m, groups_less * i.stride) + i.base + inner
        depth = Mux(
            is_a, config.a_words, Mux(i.destination == Buffer.B, config.b_words, config.i_words)
        )
        passes = self._later(m, i.copies * i.words_per_pass)
        bad_banks = (
            (covered < things)
            | (covered_less >= things)
            | (top > depth)
            | (
                i.by_word
                & (~is_a | (i.copies == 0) | (i.words_per_pass == 0) | (passes > config.rows))
            )
        )
        columns = self._later(m, i.stride * (4 * config.cols))
        rows_high = self._later(m, i.rows * i.stride) + i.base
        bad_start = (
            i.by_word
            | (i.groups != i.rows)
            | (i.row_bytes[:2] != 0)
            | (i.row_bytes > columns)
            | (rows_high > config.sum_words)
        )
        bad_field = (
            (i.rows == 0)
            | (i.row_bytes == 0)
            | (i.groups == 0)
            | Mux(is_start, bad_start, bad_banks)
        )
        low = (beat - 1).bit_length()
        misaligned = Mux(
            is_start,
            (i.address[:2] != 0) | (i.pitch[:2] != 0),
            (i.address[:low] != 0) | (i.pitch[:low] != 0),
        )
        # A START row may begin inside a beat; only its own bytes count.
        outside = self._outside(m, i.address, i.pitch, i.rows, Mux(is_start, i.row_bytes, size))
        return bad_field, misaligned | outside

    def _store(self, m: Module, i) -> tuple[Value, Value]:
        config = self.config
        high = self._later(m, i.rows * i.stride) + i.base
        columns = self._later(m, i.stride * config.cols)
        bad_field = (
            (i.rows == 0) | (i.columns == 0) | (i.columns > columns) | (high > config.sum_words)
        )
        misaligned = (i.address[:2] != 0) | (i.pitch[:2] != 0)
        outside = self._outside(m, i.address, i.pitch, i.rows, i.columns << 2)
        return bad_field, misaligned | outside

    def _multiply(self, m: Module, i) -> tuple[Value, Value]:
        config = self.config
        s, rows = config.interleave, config.rows
        log2_max = config.max_m.bit_length() - 1
        per_word = Signal(6)
        group = Signal(5)
        m.d.comb += [
            group.eq(1 << Mux(i.log2_m > log2_max, 0, i.log2_m)),
            per_word.eq(i.n << (log2_max - Mux(i.log2_m > log2_max, log2_max, i.log2_m))[:3]),
        ]
        bad_pattern = (i.log2_m > log2_max) | (i.n == 0) | (i.n > group)
        bad_common = (
            bad_pattern
            | (i.b_skip >= config.max_m)
            | (i.i_skip >= config.indices_per_word)
            | (i.words == 0)
        )
        reads_sums = (i.start == Start.START) | (i.start == Start.OUTPUT)
        sparse = i.log2_m != 0

        # Output stationary.
        steps = self._later(m, (i.words - 1)[:16] * i.values + i.last)
        group_rows = Signal(4)
        group_cols = Signal(4)
        m.d.comb += [group_rows.eq((s >> i.split) - 1), group_cols.eq((1 << i.split) - 1)]
        a_top = self._later(m, group_rows * i.a_stride + i.a_base + i.words)

        def reach(skip: Value, count: Value, per_word: int) -> Value:
            return (skip + count + (per_word - 1)) // per_word

        b_groups = self._later(m, group_cols * i.b_stride + i.b_base)
        i_groups = self._later(m, group_cols * i.i_stride + i.i_base)
        tile = rows * s
        bad_os = (
            (i.values != per_word)
            | (i.last == 0)
            | (i.last > i.values)
            | (i.split > s.bit_length() - 1)
            | (i.count != 0)
            | (a_top > config.a_words)
            | (b_groups + reach(i.b_skip, steps, config.max_m) > config.b_words)
            | (
                sparse
                & (i_groups + reach(i.i_skip, steps, config.indices_per_word) > config.i_words)
            )
            | (reads_sums & (i.s_base + tile > config.sum_words))
            | (i.emit & (i.o_base + tile > config.sum_words))
        )

        # Weight stationary: what a number of held weights allows is a small table.
        divides = Signal()
        most = Signal(12)
        with m.Switch(Cat(i.values, per_word)):
            for word_values in range(1, config.max_m + 1):
                for hold in range(1, config.max_n + 1):
                    copies = word_values // hold
                    if word_values % hold == 0 and copies <= rows:
                        with m.Case(hold | word_values << 5):
                            m.d.comb += [divides.eq(1), most.eq(rows // copies * word_values)]
        batch_rows = self._later(m, i.words * s)
        bad_ws = (
            (i.start == Start.KEEP)
            | ~i.emit
            | (i.split != 0)
            | ~divides
            | (i.last != i.values)
            | (i.count == 0)
            | (i.count > most)
            | (i.a_base + batch_rows > config.a_words)
            | (i.b_base + reach(i.b_skip, i.count, config.max_m) > config.b_words)
            | (
                sparse
                & (i.i_base + reach(i.i_skip, i.count, config.indices_per_word) > config.i_words)
            )
            | (reads_sums & (i.s_base + batch_rows > config.sum_words))
            | (i.o_base + batch_rows > config.sum_words)
        )
        ws = i.dataflow == Dataflow.WS
        return bad_common | Mux(ws, bad_ws, bad_os), Const(0)
