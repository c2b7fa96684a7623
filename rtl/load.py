"""Load engine: from memory into the operand, index and start buffers."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.axi import Axi4ReadSignature, Response, address_constants
from sat.rtl.bursts import BurstWalker
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.fp.operand import OperandDecoder
from sat.rtl.layouts import (
    PC_BITS,
    command_layout,
    index_write_layout,
    operand_write_layout,
    start_write_layout,
)
from sat.rtl.streams import Queue

COMMANDS_AHEAD = 4
"""Instructions whose data are still due while addresses of the next go out, at most."""


class LoadEngine(wiring.Component):
    """Run LOAD instructions: read rows of memory, spread them over the banks of a buffer.

    An address side sends bursts as fast as memory takes them, up to `AxiConfig.outstanding`
    ahead; a data side follows with its own counters, so that the addresses of an instruction
    go out while the data of earlier ones arrive. Data are taken in every cycle, but for START,
    whose rows are repacked from beats to words of C columns, a word a cycle.

    Timing. Accepted in cycle a, an instruction's first address is on the bus in cycle a + 2,
    then one a cycle. The beat taken in cycle t is on the write port of its buffer in t + 1, and
    so is the signal of the instruction whose last beat (START: last word) it is. The next
    instruction is accepted from the cycle in which the last address is on the bus.
    `sat.dataflow.cycles_load` states the same in Python.

    Where row x, word w of a matrix goes:

    =========== ==================================== ==========================================
    A by row    bank x mod R                         base + (x div R) * stride + w
    A by word   banks (w mod words_per_pass) *       base + (w div words_per_pass) * stride + x
                copies and the copies - 1 behind it
    B, INDEX    bank x mod C                         base + (x div C) * stride + w
    START       column c: bank c mod C               base + x * stride + c div C
    =========== ==================================== ==========================================

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    i : ``In(stream.Signature(command_layout(LOAD)))``
        Instructions, already checked.
    release, signal : ``Out(16)``
        Semaphore masks, each for one cycle; for a LOAD the same cycle.
    done, busy : ``Out(1)``
        ``done`` in the cycle of the signal; ``busy`` from the cycle after an accept to it.
    halt : ``In(1)``
        Send no further address; ``busy`` falls when the data on their way have come.
    error, error_pc : ``Out``
        Memory answered with an error; held until reset.
    beat : ``Out(1)``
        A beat was taken.
    port : ``Out(Axi4ReadSignature)``
    a_write, b_write, i_write, s_write : ``Out``
        Writes into the buffers.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(command_layout(isa.LOAD))),
                "release": Out(SEMAPHORES),
                "signal": Out(SEMAPHORES),
                "done": Out(1),
                "busy": Out(1),
                "halt": In(1),
                "error": Out(1),
                "error_pc": Out(PC_BITS),
                "beat": Out(1),
                "port": Out(Axi4ReadSignature(config.axi)),
                "a_write": Out(operand_write_layout(config, config.rows, config.a_words)),
                "b_write": Out(operand_write_layout(config, config.cols, config.b_words)),
                "i_write": Out(index_write_layout(config)),
                "s_write": Out(start_write_layout(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, port = self.config, self.port
        axi = config.axi
        address_constants(m, port, "ar", axi)

        # Address side.
        m.submodules.walker = walker = BurstWalker(axi)
        m.submodules.commands = commands = Queue(command_layout(isa.LOAD), COMMANDS_AHEAD)
        take = self.i.valid & self.i.ready
        m.d.comb += [
            self.i.ready.eq(walker.i.ready & commands.i.ready),
            walker.i.valid.eq(take),
            walker.i.p.address.eq(self.i.p.body.address),
            walker.i.p.pitch.eq(self.i.p.body.pitch),
            walker.i.p.rows.eq(self.i.p.body.rows),
            walker.i.p.row_bytes.eq(self.i.p.body.row_bytes),
            commands.i.valid.eq(take),
            commands.i.p.eq(self.i.p),
        ]
        outstanding = Signal(range(axi.outstanding + 1))
        taken = port.rvalid & port.rready
        send = walker.o.valid & walker.o.ready
        m.d.comb += walker.o.ready.eq(
            (~port.arvalid | port.arready)
            & (outstanding != axi.outstanding)
            & ~self.halt
            & ~self.error
        )
        with m.If(send):
            m.d.sync += [
                port.arvalid.eq(1),
                port.araddr.eq(walker.o.p.address),
                port.arlen.eq(walker.o.p.beats - 1),
            ]
        with m.Elif(port.arready):
            m.d.sync += port.arvalid.eq(0)
        m.d.sync += outstanding.eq(outstanding + send - (taken & port.rlast))

        # Data side: `command` is the instruction whose data come next.
        command = commands.o.p
        load = command.body
        is_start = load.destination == isa.Buffer.START
        finish = Signal()
        m.d.comb += [
            commands.o.ready.eq(finish),
            self.beat.eq(taken),
        ]
        stopped = (self.halt | self.error) & (outstanding == 0) & ~port.arvalid
        m.d.comb += self.busy.eq(((commands.level != 0) | self.done) & ~stopped)
        good = finish & ~self.error & ~(taken & (port.rresp != Response.OKAY))
        m.d.sync += [
            self.done.eq(good),
            self.signal.eq(Mux(good, command.signal, 0)),
            self.release.eq(Mux(good, command.release, 0)),
        ]
        with m.If(taken & (port.rresp != Response.OKAY) & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_pc.eq(command.pc)]

        row = Signal(16)
        self._operands(m, load, ~is_start, row, finish)
        start_ready = self._starts(m, load, is_start & (commands.level != 0), row, finish)
        m.d.comb += port.rready.eq((commands.level != 0) & Mux(is_start, start_ready, 1))
        return m

    def _operands(self, m: Module, load, enable: Value, row: Signal, finish: Signal) -> None:
        """Spread beats of A, B and INDEX."""
        config, port = self.config, self.port
        parts = config.beats_per_word
        lanes_per_beat = config.axi.data_bits // 16
        taken = port.rvalid & port.rready & enable

        part = Signal(range(max(parts, 2)))
        beat = Signal(20)  # of the row
        word_offset = Signal(16)  # by row: the word; by word: the pass's stride
        place = Signal(8)  # by word: the word's number in its pass
        first_bank = Signal(8)  # by word
        bank = Signal(8)  # by row
        group_offset = Signal(16)  # by row: the group's stride; by word: the row
        beats = Signal(20)
        m.d.comb += beats.eq(
            (load.row_bytes + (config.axi.beat_bytes - 1)) // config.axi.beat_bytes
        )
        banks = Mux(load.destination == isa.Buffer.A, config.rows, config.cols)
        last_of_row = beat == beats - 1
        last_row = row == load.rows - 1

        with m.If(taken):
            m.d.sync += beat.eq(beat + 1)
            with m.If(part != parts - 1):
                m.d.sync += part.eq(part + 1)
            with m.Else():
                m.d.sync += part.eq(0)
                with m.If(~load.by_word):
                    m.d.sync += word_offset.eq(word_offset + 1)
                with m.Elif(place == load.words_per_pass - 1):
                    m.d.sync += [
                        place.eq(0),
                        first_bank.eq(0),
                        word_offset.eq(word_offset + load.stride),
                    ]
                with m.Else():
                    m.d.sync += [place.eq(place + 1), first_bank.eq(first_bank + load.copies)]
            with m.If(last_of_row):
                m.d.sync += [
                    beat.eq(0),
                    part.eq(0),
                    word_offset.eq(0),
                    place.eq(0),
                    first_bank.eq(0),
                    row.eq(row + 1),
                ]
                with m.If(load.by_word):
                    m.d.sync += group_offset.eq(group_offset + 1)
                with m.Elif(bank == banks - 1):
                    m.d.sync += [bank.eq(0), group_offset.eq(group_offset + load.stride)]
                with m.Else():
                    m.d.sync += bank.eq(bank + 1)
                with m.If(last_row):
                    m.d.comb += finish.eq(1)
                    m.d.sync += [row.eq(0), bank.eq(0), group_offset.eq(0)]

        address = Signal(16)
        m.d.comb += address.eq(load.base + word_offset + group_offset)
        lanes = Signal(config.max_m)
        m.d.comb += lanes.eq(((1 << lanes_per_beat) - 1) << (part * lanes_per_beat))
        by_row_mask = Signal(64)
        by_word_mask = Signal(64)
        m.d.comb += [
            by_row_mask.eq(1 << bank[:6]),
            by_word_mask.eq(((1 << load.copies[:7]) - 1) << first_bank[:6]),
        ]
        raw = data.View(data.ArrayLayout(16, lanes_per_beat), port.rdata)
        decoded = []
        for lane in range(lanes_per_beat):
            m.submodules[f"decoder_{lane}"] = decoder = OperandDecoder()
            m.d.comb += decoder.i.eq(raw[lane])
            decoded.append(decoder.o)
        for write, buffer, values in (
            (self.a_write, isa.Buffer.A, decoded),
            (self.b_write, isa.Buffer.B, decoded),
            (self.i_write, isa.Buffer.INDEX, [raw[n] for n in range(lanes_per_beat)]),
        ):
            m.d.sync += write.banks.eq(0)
            with m.If(taken & (load.destination == buffer)):
                m.d.sync += [
                    write.banks.eq(Mux(load.by_word, by_word_mask, by_row_mask)),
                    write.address.eq(address),
                    write.lanes.eq(lanes),
                ]
                # Every part of a word sees the same beat; `lanes` says which of them takes it.
                m.d.sync += [
                    write.data[n].eq(values[n % lanes_per_beat]) for n in range(config.max_m)
                ]

    def _starts(self, m: Module, load, active: Value, row: Signal, finish: Signal) -> Value:
        """Repack rows of sums from beats to words of C columns; return when a beat is taken."""
        config, port = self.config, self.port
        cols = config.cols
        per_beat = config.axi.beat_bytes // 4
        size = cols - 1 + per_beat
        held = Signal(32 * size)
        count = Signal(range(size + 1))
        left = Signal(18)  # sums of the row still to come, less one
        fresh = Signal(init=1)  # no beat of the row has come
        complete = Signal()  # all beats of the row have come
        word = Signal(16)
        row_offset = Signal(16)
        row_address = Signal(12)
        begin = Signal(init=1)  # no row of the instruction has begun

        emit = (count >= cols) | (complete & (count != 0))
        emitted = Signal(range(cols + 1))
        kept = Signal(range(size + 1))
        m.d.comb += [
            emitted.eq(Mux(emit, Mux(count >= cols, cols, count), 0)),
            kept.eq(count - emitted),
        ]
        ready = ~complete & (kept < cols)
        taken = active & port.rvalid & ready

        sums = Signal(18)
        m.d.comb += sums.eq(load.row_bytes >> 2)
        at = Signal(12)
        m.d.comb += at.eq(Mux(begin, load.address[:12], row_address))
        offset_bits = (per_beat - 1).bit_length()
        offset = Signal(range(max(per_beat, 2)))
        m.d.comb += offset.eq(Mux(fresh, (at >> 2)[:offset_bits], 0))
        due = Signal(18)
        m.d.comb += due.eq(Mux(fresh, sums, left))
        brought = Signal(range(per_beat + 1))
        m.d.comb += brought.eq(per_beat - offset)
        with m.If(due < per_beat - offset):
            m.d.comb += brought.eq(due)

        remaining = Signal(32 * size)
        m.d.comb += remaining.eq(Mux(emit, held >> (32 * cols), held))
        arriving = Signal(32 * per_beat)
        m.d.comb += arriving.eq(port.rdata >> (offset << 5))
        shift = Signal((32 * size).bit_length())
        m.d.comb += shift.eq(kept << 5)
        # What lies above `count` is no sum: it must be 0 for the OR that appends.
        valid = Signal(32 * per_beat)
        for lane in range(per_beat):
            with m.If(lane < brought):
                m.d.comb += valid[32 * lane : 32 * lane + 32].eq(
                    arriving[32 * lane : 32 * lane + 32]
                )
        m.d.sync += [
            held.eq(Mux(taken, remaining | (valid << shift)[: 32 * size], remaining)),
            count.eq(kept + Mux(taken, brought, 0)),
        ]
        with m.If(taken):
            m.d.sync += [
                left.eq(due - brought),
                fresh.eq(0),
                complete.eq(due == brought),
            ]
        with m.If(emit):
            m.d.sync += word.eq(word + 1)
            with m.If(complete & (kept == 0)):
                m.d.sync += [
                    complete.eq(0),
                    fresh.eq(1),
                    begin.eq(0),
                    word.eq(0),
                    row.eq(row + 1),
                    row_offset.eq(row_offset + load.stride),
                    row_address.eq(at + load.pitch[:12]),
                ]
                with m.If(row == load.rows - 1):
                    m.d.comb += finish.eq(1)
                    m.d.sync += [row.eq(0), row_offset.eq(0), begin.eq(1)]

        m.d.sync += [
            self.s_write.banks.eq(
                Mux(emit, Mux(count >= cols, ~0, (1 << count[: cols.bit_length()]) - 1), 0)
            ),
            self.s_write.address.eq(load.base + row_offset + word),
            Value.cast(self.s_write.data).eq(held[: 32 * cols]),
        ]
        return ready
