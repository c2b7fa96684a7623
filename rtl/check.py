"""The sequencer's check of every instruction before it is dispatched.

`sat.sim.golden.check` states the same rules in plain arithmetic, with messages.
"""

from __future__ import annotations

from collections.abc import Callable

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.config import INDICES_TOGETHER, SatConfig
from sat.rtl.isa import Buffer, Dataflow, Format, Opcode, Source, Start, Status
from sat.rtl.products import SLOTS, Products

CHECK_CYCLES = SLOTS + 1
"""Cycles from a steady instruction to its verdict."""


class Checker(wiring.Component):
    """Check an instruction against the device and the window of legal addresses.

    An instruction is steady while ``valid``. Products of its fields are formed in its first
    `SLOTS` cycles, compared in the next; `CHECK_CYCLES` after the first the verdict is there.
    What a GATHER may do depends on the TENSOR and WINDOW before it: ``follow`` says that the
    instruction was dispatched.

    Members
    -------
    word, valid : ``In(256)``, ``In(1)``
        An instruction; between two ``valid`` is low for a cycle at least, in whose first the word
        is still there.
    coming : ``In(8)``
        While ``valid`` is low: the opcode of the instruction that may be valid in the next cycle.
    last : ``In(1)``
        It is the program's last instruction.
    follow : ``In(1)``
        It is dispatched in this cycle.
    window_base, window_end : ``In(49)``
        Legal byte addresses, the end exclusive.
    decided, status, right : ``Out(1)``, ``Out(Status)``, ``Out(1)``
        The verdict: `Status.IDLE` if nothing is wrong, which ``right`` says in one bit.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "word": In(isa.INSTRUCTION_BITS),
                "valid": In(1),
                "coming": In(8),
                "last": In(1),
                "follow": In(1),
                "window_base": In(isa.ADDRESS_BITS + 1),
                "window_end": In(isa.ADDRESS_BITS + 1),
                "decided": Out(1),
                "status": Out(Status),
                "right": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        opcode = self.word[:8]
        age = Signal(range(CHECK_CYCLES + 1))
        m.d.comb += self.decided.eq(age == CHECK_CYCLES)
        with m.If(~self.valid):
            m.d.sync += age.eq(0)
        with m.Elif(~self.decided):
            m.d.sync += age.eq(age + 1)
        products = Products()

        def body(layout: data.StructLayout) -> data.View:
            return data.View(layout, self.word[isa.HEADER_BITS :][: layout.size])

        nothing = (Const(0), Const(0))
        verdicts = {
            Opcode.LOAD: self._load(m, body(isa.LOAD), products.of(Opcode.LOAD)),
            Opcode.TENSOR: self._tensor(m, body(isa.TENSOR), products.of(Opcode.TENSOR)),
            Opcode.WINDOW: (self._window(m, body(isa.WINDOW)), Const(0)),
            Opcode.GATHER: (self._gather(m, opcode, body, products.of(Opcode.GATHER)), Const(0)),
            Opcode.MULTIPLY: (
                self._multiply(m, body(isa.MULTIPLY), products.of(Opcode.MULTIPLY)),
                Const(0),
            ),
            Opcode.STORE: self._store(m, body(isa.STORE), products.of(Opcode.STORE)),
            Opcode.RATES: nothing,
            Opcode.UPDATE: (
                self._update(m, body(isa.UPDATE), products.of(Opcode.UPDATE)),
                Const(0),
            ),
            Opcode.FENCE: nothing,
            Opcode.END: nothing,
        }
        # Known from the first cycle on: there is no time left to decode the opcode.
        kinds = {code: Signal(name=f"is_{code.name.lower()}") for code in verdicts}
        with m.If(~self.valid):
            m.d.sync += [kind.eq(self.coming == code.value) for code, kind in kinds.items()]
        products.make(m, kinds, age, ~self.valid, self.coming)
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
        m.d.sync += [self.status.eq(status), self.right.eq(status == Status.IDLE)]
        return m

    def _early(self, m: Module, value: Value) -> Signal:
        """Return the register of what fields give, before products are there."""
        register = Signal(value.shape(), name="early", reset_less=True)
        m.d.sync += register.eq(value)
        return register

    def _outside(self, m: Module, address: Value, span: Value, size: Value) -> Value:
        """Return whether memory from an address on leaves the window.

        ``span``, of products, and then ``size``, which is there a cycle before.
        """
        room = self.window_end - address - size
        below = self._early(m, (address < self.window_base) | (room < 0))
        # No window ends beyond the address space: what is above is not compared bit by bit.
        bits = self.config.axi.address_bits + 1
        return below | (span[bits:] != 0) | (span[:bits] > self._early(m, room[:bits]))

    def _banks(
        self,
        m: Module,
        times: Callable[..., Value],
        i: data.View,
        is_a: Value,
        is_b: Value,
        is_index: Value,
        rows: Value,
        words: Value,
        by_word: Value,
        late: tuple[Value, Value] | None = None,
        pruning: tuple[Value, Value, Value] | None = None,
    ) -> Value:
        """Return whether rows of words miss the banks of a buffer.

        ``late``: when a row has other words than ``words``, and how many: a product. ``pruning``:
        whether rows are pruned along the lanes (what is written together, then), N and log2 M.
        """
        config = self.config
        # By row and by word share the shape of their rules: `groups` groups of `each` things.
        things = Mux(by_word, words, rows)
        inner = Mux(by_word, rows, words)
        own_banks = Mux(is_a, config.rows, Mux(is_b | is_index, config.cols, config.update_lanes))
        each = Mux(by_word, i.words_per_pass, own_banks)
        covered = times(i.groups, each, late=True)
        groups, stride = (i.groups - 1)[:16], i.stride
        depth = Mux(
            is_a,
            config.a_words,
            Mux(is_b, config.b_words, Mux(is_index, config.i_words, config.update_words)),
        )
        room = depth - i.base
        if pruning is not None:
            # Few groups, the last with least room: products tell the values kept, times M, instead.
            pruned, n, log2_m = pruning
            further = sum(Mux(groups == k, k * stride, 0) for k in range(1, config.b_groups))
            room = Mux(pruned, (room - further) << config.lane_bits << log2_m, room)
            groups, stride = Mux(pruned, i.rows, groups), Mux(pruned, n, stride)
            inner = Mux(pruned, 0, inner)
        start = times(groups, stride, late=True)
        passes = times(i.copies, i.words_per_pass)
        bad_things = (covered < self._early(m, things)) | (covered >= self._early(m, things + each))
        bad_inner = start > self._early(m, room - inner)
        if late is not None:
            when, words = late
            bad_words = (covered < words) | (covered >= words + self._early(m, each))
            bad_things = Mux(self._early(m, when & by_word), bad_words, bad_things)
            bad_rows = start + words > self._early(m, room)
            bad_inner = Mux(self._early(m, when & ~by_word), bad_rows, bad_inner)
        return (
            (i.groups == 0)
            | bad_things
            | bad_inner
            | (
                by_word
                & (~is_a | (i.copies == 0) | (i.words_per_pass == 0) | (passes > config.rows))
            )
        )

    def _load(self, m: Module, i: data.View, times: Callable[..., Value]) -> tuple[Value, Value]:
        config = self.config
        beat, word = config.granule_bytes, config.word_bytes
        is_a, is_b, is_index, is_start, is_mask = (
            i.destination == buffer
            for buffer in (Buffer.A, Buffer.B, Buffer.INDEX, Buffer.START, Buffer.MASK)
        )
        by_columns = is_start | is_mask
        updated = ~is_a & ~is_b & ~is_index & ~by_columns
        size = Signal(21)
        m.d.comb += size.eq((i.row_bytes + (beat - 1)) // beat * beat)
        words = self._early(m, Mux(updated, size // beat, (i.row_bytes + (word - 1)) // word))
        rows_high = times(i.rows, i.stride) + i.base
        bad_banks = self._banks(m, times, i, is_a, is_b, is_index, i.rows, words, i.by_word)
        span = times((i.rows - 1)[:16], i.pitch, late=True)
        room = times(i.stride, Mux(is_start, 4 * config.cols, config.mask_bytes))
        # A row of a mask may be a part of a word.
        mask_ones = Signal(3, init=config.mask_bytes - 1)
        m.d.comb += mask_ones.eq(config.mask_bytes - 1)
        for part in (1, 2, 4):
            if part < config.mask_bytes:
                with m.If(i.row_bytes == part):
                    m.d.comb += mask_ones.eq(part - 1)
        bad_columns = (
            self._early(
                m,
                i.by_word
                | (i.groups != i.rows)
                | Mux(is_start, i.row_bytes[:2] != 0, (i.row_bytes & mask_ones) != 0),
            )
            | (i.row_bytes > room)
            | (rows_high > config.sum_words)
        )
        bad_field = (
            (i.rows == 0)
            | (i.row_bytes == 0)
            | (i.groups == 0)
            | Mux(by_columns, bad_columns, bad_banks)
        )
        low = (beat - 1).bit_length()

        def misaligned(bits: int) -> Value:
            return (i.address[:bits] != 0) | (i.pitch[:bits] != 0)

        # A START or MASK row may begin inside a beat; only its own bytes count.
        outside = self._outside(m, i.address, span, Mux(by_columns, i.row_bytes, size))
        bad_mask = ((i.address | i.pitch) & mask_ones) != 0
        bad_place = Mux(is_start, misaligned(2), Mux(is_mask, bad_mask, misaligned(low)))
        return bad_field, self._early(m, bad_place) | outside

    def _tensor(self, m: Module, i: data.View, times: Callable[..., Value]) -> tuple[Value, Value]:
        low = (self.config.granule_bytes - 1).bit_length()
        bad_field = (i.images == 0) | (i.lines == 0) | (i.pixels == 0) | (i.pixel_pitch == 0)
        misaligned = (
            (i.address[:low] != 0)
            | (i.pixel_pitch[:low] != 0)
            | (i.line_pitch[:low] != 0)
            | (i.image_pitch[:low] != 0)
        )
        images = times((i.images - 1)[:16], i.image_pitch, late=True)
        lines = times((i.lines - 1)[:12], i.line_pitch, late=True)
        pixels = times(i.pixels, i.pixel_pitch, first=True)
        return bad_field, misaligned | self._outside(m, i.address, images + lines, pixels)

    def _window(self, m: Module, i: data.View) -> Value:
        no_pattern = (i.n | i.log2_m) != 0
        if self.config.prune_gathers:
            no_pattern &= self._bad_pattern(m, i.n, i.log2_m) | (i.log2_m == 0)
        return self._early(m, (i.lines == 0) | (i.pixels == 0) | no_pattern)

    def _gather(
        self, m: Module, opcode: Value, body: Callable[..., data.View], times: Callable[..., Value]
    ) -> Value:
        config = self.config
        beat_low = (config.granule_bytes - 1).bit_length()
        word_low = (config.word_bytes - 1).bit_length()
        i = body(isa.GATHER)
        pitch = Signal(20)
        lines, pixels = Signal(12, init=1), Signal(12, init=1)
        n, log2_m = Signal(5), Signal(3)
        tensor, window = body(isa.TENSOR), body(isa.WINDOW)
        followed = Signal()
        m.d.sync += followed.eq(self.follow)
        with m.If(followed & (opcode == Opcode.TENSOR.value)):
            m.d.sync += pitch.eq(tensor.pixel_pitch)
        with m.If(followed & (opcode == Opcode.WINDOW.value)):
            m.d.sync += [lines.eq(window.lines), pixels.eq(window.pixels)]
            m.d.sync += [n.eq(window.n), log2_m.eq(window.log2_m)]

        is_a, is_b = i.destination == Buffer.A, i.destination == Buffer.B
        taps = times(i.taps_y, i.taps_x)[:16]
        tall = self._early(m, (i.rows + (config.max_m - 1)) >> (config.max_m - 1).bit_length())
        rows = Mux(i.transpose, i.segment_bytes >> 1, i.rows)
        of_taps = Signal(28)
        pruned = i.transpose & is_b & (log2_m != 0) if config.prune_gathers else Const(0)
        pruning = (pruned, n, log2_m) if config.prune_gathers else None
        late = ~i.transpose, of_taps
        bad_banks = self._banks(
            m, times, i, is_a, is_b, Const(0), rows, tall, i.by_word, late, pruning
        )
        m.d.comb += of_taps.eq(times(taps, i.segment_bytes >> word_low, after=True))
        bad_shape = Mux(
            i.transpose,
            (~is_a & ~is_b)
            | i.by_word
            | (i.taps_y != 1)
            | (i.taps_x != 1)
            | (i.segment_bytes[:beat_low] != 0),
            ~is_a | (i.segment_bytes[:word_low] != 0),
        )
        bad_pruned = (i.rows & ((1 << log2_m) - 1)) != 0
        unit = -(-INDICES_TOGETHER // config.max_m)
        together = (i.stride & (config.beat_words - 1)) == config.wide_stride(config.cols)
        bad_pruned |= (i.base & (unit - 1)) != 0
        bad_pruned |= (i.groups != 1) & (~together | (i.groups > config.b_groups))
        bad_field = (
            (i.rows == 0)
            | (i.taps_y == 0)
            | (i.taps_x == 0)
            | (i.segment_bytes == 0)
            | (i.line >= lines)
            | (i.pixel >= pixels)
            | (i.offset + i.segment_bytes > pitch)
            | (i.offset[:beat_low] != 0)
            | bad_shape
            | (pruned & bad_pruned)
        )
        return self._early(m, bad_field) | bad_banks

    def _store(self, m: Module, i: data.View, times: Callable[..., Value]) -> tuple[Value, Value]:
        config = self.config
        beat, cols = config.granule_bytes, config.cols
        summed = i.source == Source.OUTPUT
        wide = (i.source == Source.WEIGHT) | (i.source == Source.MOMENTUM)
        halves = (i.source == Source.FF_VALUES) | (i.source == Source.BP_VALUES)
        nibbles = (i.source == Source.FF_INDICES) | (i.source == Source.BP_INDICES)
        is32 = (i.format == Format.FP32) | (i.format == Format.ZERO)
        is16, is_mask = i.format == Format.FP16, i.format == Format.MASK

        word = Signal(range(max(4 * cols, beat) + 1))
        element = Signal(4)  # low bits of a row's bytes that must be 0
        with m.If(summed):
            m.d.comb += [
                word.eq(Mux(is32, 4 * cols, Mux(is16, 2 * cols, config.mask_bytes))),
                element.eq(Mux(is_mask, 0, Mux(i.format == Format.FP32, 3, 1))),
            ]
        with m.Else():
            m.d.comb += [
                word.eq(Mux(nibbles, beat // 4, beat)),
                element.eq(Mux(wide, 3, Mux(halves, 1, 0))),
            ]
        room = times(i.stride, word, late=True)
        lane_bits = (config.update_lanes - 1).bit_length()
        groups = Mux(summed, i.rows, (i.rows + (config.update_lanes - 1)) >> lane_bits)
        start = times(groups, i.stride, late=True)
        span = times((i.rows - 1)[:16], i.pitch, late=True)
        depth = Mux(summed, config.sum_words, Mux(wide, config.update_words, config.copy_words))
        bad_field = self._early(
            m,
            (i.rows == 0)
            | (i.row_bytes == 0)
            | ~(summed | wide | halves | nibbles)
            | (~summed & ((i.format != Format.FP32) | i.masked | i.check))
            | (i.relu & ~is16)
            | (i.masked & ((i.format == Format.ZERO) | is_mask))
            | (i.check & (i.format != Format.FP32))
            | ((i.row_bytes[:4] & element) != 0),
        )
        bad_field |= (i.row_bytes > room) | (start > self._early(m, depth - i.base))
        return bad_field, self._outside(m, i.address, span, i.row_bytes)

    def _bad_pattern(self, m: Module, n: Value, log2_m: Value) -> Value:
        """Return whether N:M is no pattern of this device."""
        log2_max = self.config.max_m.bit_length() - 1
        group = Signal(5)
        m.d.comb += group.eq(1 << Mux(log2_m > log2_max, 0, log2_m))
        return (log2_m > log2_max) | (n == 0) | (n > group)

    def _update(self, m: Module, i: data.View, times: Callable[..., Value]) -> Value:
        config = self.config
        lanes, per_beat, halves = config.update_lanes, config.granule_weights, config.granule_halves
        lane_bits = (lanes - 1).bit_length()

        def partial(count: Value, log2_m: Value, least: int) -> Value:
            """Return whether a count is not a multiple of M and of ``least``."""
            ones = Signal(4)
            m.d.comb += ones.eq(((1 << log2_m) - 1)[:4] | (least - 1))
            return (count[:4] & ones) != 0

        def spread(lines: Value, stride: Value) -> Value:
            """Return where the last group of lines that are dealt to the lanes begins."""
            groups = Signal(17)
            m.d.comb += groups.eq(((lines + (lanes - 1)) >> lane_bits) - 1)
            return times(groups[:16], stride, late=True)

        def kept(count: Value, n: Value, log2_m: Value) -> Value:
            """Return the words that hold a line's stored values."""
            values = Signal(21)
            m.d.comb += values.eq(times(count, n, first=True) >> log2_m)
            return self._early(m, (values + (halves - 1)) // halves)

        weights = i.columns // per_beat
        rows = Signal(17)
        m.d.comb += rows.eq((i.rows + (lanes - 1)) >> lane_bits << lane_bits)
        size = times(rows, i.columns)
        last, ff_last = spread(i.rows, i.stride), spread(i.rows, i.ff_stride)
        bp_last = spread(i.columns, i.bp_stride)
        bad_field = (
            (i.rows == 0)
            | (i.columns == 0)
            | self._bad_pattern(m, i.ff_n, i.ff_log2_m)
            | self._bad_pattern(m, i.bp_n, i.bp_log2_m)
            | partial(i.columns, i.ff_log2_m, per_beat)
            | partial(i.rows, i.bp_log2_m, 1)
        )
        ff_room, bp_room = (
            self._early(m, config.copy_words - base) for base in (i.ff_base, i.bp_base)
        )
        return (
            self._early(m, bad_field)
            | (size > config.tile_weights)
            | (last > self._early(m, config.update_words - weights - i.in_base))
            | (last > self._early(m, config.update_words - weights - i.out_base))
            | (ff_last + kept(i.columns, i.ff_n, i.ff_log2_m) > ff_room)
            | (bp_last + kept(i.rows, i.bp_n, i.bp_log2_m) > bp_room)
        )

    def _multiply(self, m: Module, i: data.View, times: Callable[..., Value]) -> Value:
        config = self.config
        s, rows = config.interleave, config.rows
        log2_max = config.max_m.bit_length() - 1
        per_word = Signal(6)
        m.d.comb += per_word.eq(
            i.n << (log2_max - Mux(i.log2_m > log2_max, log2_max, i.log2_m))[:3]
        )
        bad_common = (
            self._bad_pattern(m, i.n, i.log2_m)
            | (i.b_skip >= config.max_m)
            | (i.i_skip >= config.indices_per_word)
            | (i.words == 0)
        )
        reads_sums = (i.start == Start.START) | (i.start == Start.OUTPUT)
        sparse = i.log2_m != 0

        # Output stationary.
        steps = times((i.words - 1)[:16], i.values, late=True)
        group_rows = Signal(4)
        group_cols = Signal(4)
        m.d.comb += [group_rows.eq((s >> i.split) - 1), group_cols.eq((1 << i.split) - 1)]
        a_last = times(group_rows, i.a_stride, late=True)

        def reach(skip: Value, count: Value, per_word: int) -> Value:
            return (skip + count + (per_word - 1)) // per_word

        def streamed(skip: Value, per_word: int) -> Value:
            return (steps + self._early(m, skip + i.last + (per_word - 1))) // per_word

        b_last = times(group_cols, i.b_stride, late=True)
        i_last = times(group_cols, i.i_stride)
        a_room = self._early(m, config.a_words - i.a_base - i.words)
        b_room = self._early(m, config.b_words - i.b_base)
        i_room = self._early(m, config.i_words - i.i_base)
        tile = rows * s
        bad_os = (
            (i.values != per_word)
            | (i.last == 0)
            | (i.last > i.values)
            | (i.split > s.bit_length() - 1)
            | (i.count != 0)
            | (reads_sums & (i.s_base + tile > config.sum_words))
            | (i.emit & (i.o_base + tile > config.sum_words))
        )
        misses_os = (
            (a_last > a_room)
            | (b_last + streamed(i.b_skip, config.max_m) > b_room)
            | (sparse & (i_last + streamed(i.i_skip, config.indices_per_word) > i_room))
        )

        # Weight stationary: what a number of held weights allows is a small table, looked up while
        # products are formed.
        divides = Signal()
        most = Signal(12)
        m.d.sync += divides.eq(0)
        with m.Switch(Cat(i.values, per_word)):
            for word_values in range(1, config.max_m + 1):
                for hold in range(1, config.max_n + 1):
                    copies = word_values // hold
                    if word_values % hold == 0 and copies <= rows:
                        with m.Case(hold | word_values << 5):
                            m.d.sync += [divides.eq(1), most.eq(rows // copies * word_values)]
        batch_rows = i.words * s
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
        bad_field = self._early(m, bad_common | Mux(ws, bad_ws, bad_os))
        return bad_field | (~ws & misses_os)
