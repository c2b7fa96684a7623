"""Load engine: from memory into the buffers."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.axi import Axi4ReadSignature, Response, address_constants
from sat.rtl.bursts import BurstCutter
from sat.rtl.columns import take_masks, take_starts
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.fp.operand import OperandDecoder
from sat.rtl.isa import Buffer
from sat.rtl.layouts import (
    ALONE,
    PC_BITS,
    any_command_layout,
    index_groups,
    index_write_layout,
    mask_write_layout,
    operand_write_layout,
    start_write_layout,
    update_write_layout,
)
from sat.rtl.load_command import data_command_layout, operand_sides, prepared, segment_granules
from sat.rtl.prune import GatherPruner, kept
from sat.rtl.segments import SegmentWalker, segment_layout
from sat.rtl.spread import (
    Place,
    Targets,
    beat_at_hand,
    chosen,
    dealt,
    put,
    to_place,
    turned,
)
from sat.rtl.streams import Queue

COMMANDS_AHEAD = 4
"""Instructions that wait behind the one whose data come, at most."""


def segments_ahead(config: SatConfig) -> int:
    """Return how many segments' data may still be due, at most.

    Where a beat may hold a whole segment, no fewer than bursts.
    """
    return 32 if config.beat_words == 1 else max(32, config.axi.outstanding)


class LoadEngine(wiring.Component):
    """Run LOAD, TENSOR, WINDOW and GATHER: read memory, spread it over the banks of a buffer.

    An address side sends bursts as fast as memory takes them, up to `AxiConfig.outstanding`
    ahead; a data side follows with its own counters, so that the addresses of an instruction
    go out while the data of earlier ones arrive. GATHER reads the taps of a convolution straight
    from the activations (implicit im2col); taps outside the tensor cost no memory access, a
    cycle for each beat of zeros.

    Timing. Accepted in cycle a, a LOAD's first segment is cut in cycle a + 1, its first address
    on the bus in cycle a + 3, then one a cycle. A beat is taken in every cycle, but for

    * START, whose rows are repacked from beats to words of C columns, a word a cycle;
    * MASK, a word a cycle;
    * by word, where beats hold several words: a write ends with a pass, and with ``copies``
      above 1 is one word;
    * transposed GATHER: a beat goes to its banks in one write unless it meets the last bank, of the
      last of the groups of channels that are written together (`SatConfig.wide_groups`; where the
      stride is not `SatConfig.wide_stride` modulo ``beat_words``, of every group);
    * behind a pruning GATHER, the cycles in which `sat.rtl.prune.GatherPruner` gives what is left.

    The beat taken in cycle t is on the write port of its buffer in t + 1, and so is the signal of
    the instruction whose last beat (START, MASK: last word) it is; pruned, that of the last value
    kept is. `dataflow/cycles/load.h` states the same for the cycle model.

    Where row x, word w of a matrix goes (GATHER: row is position, its words tap after tap):

    =========== ==================================== ==========================================
    A by row    bank x mod R                         base + (x div R) * stride + w
    A by word   banks (w mod words_per_pass) *       base + (w div words_per_pass) * stride + x
                copies and the copies - 1 behind it
    B, INDEX    bank x mod C                         base + (x div C) * stride + w
    START       column c: bank c mod C               base + x * stride + c div C
    MASK        column c: bit c mod C                base + x * stride + c div C
    WEIGHT, …   bank x mod lanes                     base + (x div lanes) * stride + w
    transposed  channel c: bank c mod R (B: C)       base + (c div R) * stride + x div max_m,
                                                     lane x mod max_m
    pruned      channel c: bank c mod C              base + (c div C) * stride + k div max_m,
                                                     lane k mod max_m: the k-th kept; its index:
                                                     INDEX, the same number
    =========== ==================================== ==========================================

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    i : ``In(stream.Signature(any_command_layout()))``
        Instructions, already checked.
    release, signal : ``Out(16)``
        Semaphore masks, each for one cycle; for this engine the same cycle.
    done, busy : ``Out(1)``
        ``done`` in the cycle of the signal; ``busy`` from the cycle after an accept to it.
    halt : ``In(1)``
        Send no further address; ``busy`` falls when the data on their way have come.
    error, error_pc : ``Out``
        Memory answered with an error; held until reset.
    beat, moving : ``Out(1)``
        A beat was taken; that, or zeros were written.
    port : ``Out(Axi4ReadSignature)``
    a_write, b_write, i_write, s_write, m_write, u_write : ``Out``
        Writes into the buffers.

    Source: the implicit im2col is the "image to column on the fly" of Fang et al. 2023's data
    engine; the transposed gather for the weight gradient is this project's.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(any_command_layout())),
                "release": Out(SEMAPHORES),
                "signal": Out(SEMAPHORES),
                "done": Out(1),
                "busy": Out(1),
                "halt": In(1),
                "error": Out(1),
                "error_pc": Out(PC_BITS),
                "beat": Out(1),
                "moving": Out(1),
                "port": Out(Axi4ReadSignature(config.axi)),
                "a_write": Out(operand_write_layout(config, config.rows, config.a_words)),
                "b_write": Out(operand_write_layout(config, config.cols, config.b_words)),
                "i_write": Out(index_write_layout(config)),
                "s_write": Out(start_write_layout(config)),
                "m_write": Out(mask_write_layout(config)),
                "u_write": Out(update_write_layout(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, port = self.config, self.port
        axi = config.axi
        address_constants(m, port, "ar", axi)

        # Address side.
        m.submodules.walker = walker = SegmentWalker(config)
        m.submodules.cutter = cutter = BurstCutter(segment_layout(config), axi)
        m.submodules.commands = commands = Queue(any_command_layout(), COMMANDS_AHEAD)
        # Of each segment: is it zeros, and with which granule of a beat does it begin?
        bits = (config.beat_words - 1).bit_length()
        ahead = data.StructLayout({"zero": 1, **({"first": bits} if bits else {})})
        m.submodules.zeros = zeros = Queue(ahead, segments_ahead(config), head=True)
        take = self.i.valid & self.i.ready
        m.d.comb += [
            self.i.ready.eq(walker.i.ready & commands.i.ready),
            walker.i.valid.eq(take),
            walker.i.p.opcode.eq(self.i.p.opcode),
            walker.i.p.body.eq(self.i.p.body),
            commands.i.valid.eq(take),
            commands.i.p.eq(self.i.p),
            cutter.i.p.eq(walker.o.p),
            cutter.i.valid.eq(walker.o.valid & zeros.i.ready),
            walker.o.ready.eq(cutter.i.ready & zeros.i.ready),
            zeros.i.valid.eq(walker.o.valid & cutter.i.ready),
            zeros.i.p.zero.eq(walker.o.p.zero),
        ]
        if bits:
            low = (config.granule_bytes - 1).bit_length()
            first = walker.o.p.address[low : low + bits]
            m.d.comb += zeros.i.p.first.eq(Mux(walker.o.p.zero, 0, first))
        outstanding = Signal(range(axi.outstanding + 1))
        taken = port.rvalid & port.rready
        send = cutter.o.valid & cutter.o.ready
        m.d.comb += cutter.o.ready.eq(
            (~port.arvalid | port.arready)
            & (outstanding != axi.outstanding)
            & ~self.halt
            & ~self.error
        )
        with m.If(send):
            m.d.sync += [
                port.arvalid.eq(1),
                port.araddr.eq(cutter.o.p.address),
                port.arlen.eq(cutter.o.p.beats - 1),
            ]
        with m.Elif(port.arready):
            m.d.sync += port.arvalid.eq(0)
        m.d.sync += outstanding.eq(outstanding + send - (taken & port.rlast))

        # Data side: `command` is the instruction whose data come next.
        finish = Signal()
        command = Signal(data_command_layout())
        present = command.settings | command.spread | command.start | command.mask
        m.d.comb += [
            commands.o.ready.eq(~present | finish),
            self.beat.eq(taken),
            self.moving.eq(taken | (zeros.o.valid & zeros.o.p.zero)),
        ]
        with m.If(commands.o.ready):
            m.d.sync += prepared(config, command, commands.o.p, commands.o.valid)
        with m.If(command.settings):
            m.d.comb += finish.eq(1)
        stopped = (self.halt | self.error) & (outstanding == 0) & ~port.arvalid
        m.d.comb += self.busy.eq(((commands.level != 0) | present | self.done) & ~stopped)
        good = finish & ~self.error & ~(taken & (port.rresp != Response.OKAY))
        m.d.sync += [
            self.done.eq(good),
            self.signal.eq(Mux(good, command.signal, 0)),
            self.release.eq(Mux(good, command.release, 0)),
        ]
        with m.If(taken & (port.rresp != Response.OKAY) & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_pc.eq(command.pc)]

        row = Signal(16)
        rest = Signal(20)  # granules of the segment, with the beat at hand
        spread_ready = self._operands(m, command, zeros.o, rest, row, finish)
        with m.If(commands.o.ready):
            m.d.sync += rest.eq(segment_granules(config, commands.o.p))
        ends = command, zeros.o, row, finish
        start_ready = take_starts(m, config, port, self.s_write, *ends)
        mask_ready = take_masks(m, config, port, self.m_write, *ends)
        m.d.comb += port.rready.eq(
            (command.spread & spread_ready)
            | (command.start & start_ready)
            | (command.mask & mask_ready)
        )
        return m

    def _pruner(self, m: Module, command: data.View, finish: Signal) -> GatherPruner:
        """Return what prunes GATHERs; it tells when such an instruction is finished."""
        m.submodules.pruner = pruner = GatherPruner(self.config)
        m.d.comb += [
            pruner.n.eq(command.n),
            pruner.log2_m.eq(command.log2_m),
            pruner.first.eq(command.base * self.config.max_m),
        ]
        with m.If(pruner.done):
            m.d.comb += finish.eq(1)
        return pruner

    def _operands(
        self,
        m: Module,
        command: data.View,
        zeros: stream.Interface,
        rest: Signal,
        row: Signal,
        finish: Signal,
    ) -> Value:
        """Spread beats over operand, index and update banks; return when a beat is taken."""
        config, port = self.config, self.port
        together, per_beat = config.beat_words, config.axi.beat_bytes // 2
        max_bits = (config.max_m - 1).bit_length()

        destination, transpose, by_word = command.destination, command.transpose, command.by_word
        stride, copies = command.stride, command.copies
        words_per_pass = command.words_per_pass
        is_a, is_b = destination == Buffer.A, destination == Buffer.B
        is_index = destination == Buffer.INDEX
        updated = ~is_a & ~is_b & ~is_index
        several, limit = command.several, command.limit

        part = Signal(range(max(config.beats_per_word, 2)))
        fresh = Signal(init=1)  # none of the segment has come
        tap = Signal(16)
        word_offset = Signal(16)  # by row: the word; by word: the pass's stride
        place = Signal(8)  # by word: the word's number in its pass
        first_bank = Signal(8)  # by word
        bank = Signal(8)
        group_offset = Signal(16)  # the group's stride; by word: the row
        pruner = self._pruner(m, command, finish) if config.prune_gathers else None
        prune, draining = command.prune, Const(0) if pruner is None else pruner.draining
        step = Signal()
        m.d.comb += step.eq(command.spread & zeros.valid & (zeros.p.zero | port.rvalid) & ~draining)

        beat = beat_at_hand(m, config, zeros.p, rest, fresh)
        offset = beat.offset
        sides = operand_sides(config, is_a, is_b)
        of_a, of_b = (groups for _, groups in sides)
        count = Signal(range(config.axi.beat_bytes // 2 + 1))  # transposed: elements of this write
        m.d.comb += count.eq(beat.elements)
        with m.If(beat.elements > limit - bank):
            m.d.comb += count.eq(limit - bank)
        words = Signal.like(beat.words)  # else: granules of this write
        m.d.comb += words.eq(beat.words)
        if together > 1:
            with m.If(by_word & ~several):
                m.d.comb += words.eq(1)
            with m.Elif(by_word & (beat.words > words_per_pass - place)):
                m.d.comb += words.eq(words_per_pass - place)
        beat_done = Signal()
        m.d.comb += beat_done.eq(
            Mux(transpose, count == beat.elements, words == beat.words if together > 1 else 1)
        )

        last_row = row == command.last_row
        next_bank = bank + Mux(transpose, count, 1)
        advance = count
        if together > 1:
            advance = Mux(transpose, count, words * (config.granule_bytes // 2))
        with m.If(step if together > 1 else step & transpose):
            m.d.sync += beat.done.eq(Mux(beat_done, 0, beat.done + advance))
        with m.If(step & transpose):
            m.d.sync += bank.eq(Mux(next_bank == limit, 0, next_bank))
            with m.If(next_bank == limit):
                m.d.sync += group_offset.eq(group_offset + command.further)
        with m.If(step if together > 1 else step & beat_done):
            with m.If(part != command.parts - 1):
                m.d.sync += part.eq(part + 1)
            with m.Else():
                m.d.sync += part.eq(0)
                with m.If(~by_word):
                    m.d.sync += word_offset.eq(word_offset + words)
                with m.Elif(place + words == words_per_pass):
                    m.d.sync += [
                        place.eq(0),
                        first_bank.eq(0),
                        word_offset.eq(word_offset + stride),
                    ]
                with m.Else():
                    m.d.sync += [
                        place.eq(place + words),
                        first_bank.eq(first_bank + Mux(several, words, copies)),
                    ]
        with m.If(step & beat_done):
            m.d.sync += [
                rest.eq(Mux(beat.last, command.granules, rest - beat.granules)),
                fresh.eq(beat.last),
            ]
            with m.If(beat.last):
                m.d.comb += zeros.ready.eq(1)
                m.d.sync += [part.eq(0), tap.eq(tap + 1)]
            with m.If(beat.last & (tap == command.last_tap)):
                m.d.sync += [
                    tap.eq(0),
                    word_offset.eq(0),
                    place.eq(0),
                    first_bank.eq(0),
                    row.eq(row + 1),
                ]
                with m.If(transpose):
                    m.d.sync += [bank.eq(0), group_offset.eq(0)]
                with m.Elif(by_word):
                    m.d.sync += group_offset.eq(group_offset + 1)
                with m.Elif(next_bank == command.banks):
                    m.d.sync += [bank.eq(0), group_offset.eq(group_offset + stride)]
                with m.Else():
                    m.d.sync += bank.eq(next_bank)
                with m.If(last_row):
                    with m.If(~prune):
                        m.d.comb += finish.eq(1)
                    m.d.sync += [row.eq(0), bank.eq(0), group_offset.eq(0)]

        address = Signal(16)
        m.d.comb += address.eq(
            command.base + group_offset + Mux(transpose, row >> max_bits, word_offset)
        )
        per_granule = config.granule_bytes // 2
        lanes = Signal(config.max_m)
        with m.If(transpose):
            m.d.comb += lanes.eq(1 << row[:max_bits])
        with m.Else():
            m.d.comb += lanes.eq(((1 << per_granule) - 1) << (part * per_granule))
        mask = Signal(max(64, of_a.count * config.rows, of_b.count * config.cols))
        first = Mux(by_word, first_bank, bank)
        ones = Mux(transpose, count, Mux(by_word, Mux(several, words, copies[:7]), 1))
        bits = len(mask).bit_length()
        m.d.comb += mask.eq(((1 << ones[:bits]) - 1) << first[: bits - 1])

        # Turn the beat until everything is where its bank finds it.
        raw = [Signal(16, name=f"raw_{n}") for n in range(per_beat)]
        m.d.comb += Cat(raw).eq(Mux(zeros.p.zero, 0, port.rdata))
        turn = Signal(range(max(per_beat, 2)))
        to = Signal(range(max(together, 2)))  # sub-bank of the first word
        if together == 1:
            m.d.comb += turn.eq(Mux(transpose, offset - bank, 0))
        else:
            at = bank + Mux(prune, 0, to_place(config, sides, address))
            m.d.comb += [
                to.eq(Mux(by_word & ~several, 0, address + first)),
                turn.eq(offset - Mux(transpose, at, to * per_granule)),
            ]
        elements = turned(m, config, raw, turn)
        place = Place(mask, lanes, address, stride, to, words, transpose, by_word | transpose)
        gives, gives_index, index_place = step, step & is_index, place
        indices = elements  # which are never dealt, but for those of the pruner
        if pruner is not None:
            m.d.comb += [
                *(one.eq(elements[n]) for n, one in enumerate(pruner.elements)),
                pruner.lanes.eq(Mux(step & prune, mask, 0)),
                pruner.complete.eq(step & prune & beat_done & beat.last),
                pruner.last.eq(last_row),
            ]
            (values, to_value), (packed, to_index) = kept(m, config, pruner, stride)
            indices, elements = (chosen(prune, own, elements) for own in (packed, values))
            gives = Mux(prune, pruner.valid, step)
            gives_index = Mux(prune, pruner.index_valid, gives_index)
            index_place = to_index.chosen(prune, place)
            place = to_value.chosen(prune, place)
        a_to, b_to = Targets(of_a, config.rows, place), Targets(of_b, config.cols, place)
        i_to = Targets(index_groups(config), config.cols, index_place)
        u_to = Targets(ALONE, config.update_lanes, place)
        transposed = [(transpose, a_to)]
        if of_a != of_b:
            transposed = [(transpose & is_a, a_to), (transpose & ~is_a, b_to)]
        elements = dealt(m, config, elements, by_word & ~several, transposed)
        decoded = []
        for number, element in enumerate(elements):
            m.submodules[f"decoder_{number}"] = decoder = OperandDecoder()
            m.d.comb += decoder.i.eq(element)
            decoded.append(decoder.o)
        granules = [Cat(elements[n : n + per_granule]) for n in range(0, per_beat, per_granule)]
        put(m, config, self.a_write, gives & is_a, decoded, a_to)
        put(m, config, self.b_write, gives & is_b, decoded, b_to)
        put(m, config, self.i_write, gives_index, indices, i_to)
        put(m, config, self.u_write, gives & updated, granules, u_to)
        number = destination.as_value() - Buffer.WEIGHT.value
        m.d.comb += self.u_write.lanes.eq(1)
        with m.If(step & updated):
            m.d.sync += self.u_write.buffers.eq(1 << number[:2])
        return zeros.valid & ~zeros.p.zero & beat_done & ~draining
