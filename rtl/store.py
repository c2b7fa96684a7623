"""Store engine: from the output buffer and the update engine's banks into memory."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.axi import Axi4WriteSignature, Response, address_constants
from sat.rtl.bursts import BurstWalker
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.fp.convert import Fp32ToFp16
from sat.rtl.fp.formats import FP32
from sat.rtl.isa import Format, Source
from sat.rtl.layouts import PC_BITS, command_layout
from sat.rtl.streams import Queue

READ_CYCLES = 3
"""Cycles from an accept to its first word."""

STORES_IN_FLIGHT = 4
"""Instructions whose responses are still due, at most."""


def overlaps(config: SatConfig) -> bool:
    """Return whether a row's first word is taken together with the last beat of the row before.

    So it is where a beat may be a whole row. It lengthens the way from WREADY to the shifter, which
    narrow devices are spared.
    """
    return config.beat_words > 1


class Epilogue(wiring.Component):
    """Turn a word of sums into what is stored of it, in the same cycle.

    FP16 is rounded to nearest even; ReLU then makes what is negative or -0 to +0 and keeps NaN. The
    mask has a 1 where ReLU's input, as FP16, is above 0 or NaN: torch's rule for the gradient.

    Members
    -------
    sums : ``In(ArrayLayout(32, cols))``
    halves, zeros : ``In(ArrayLayout(16, cols))``, ``In(cols)``
        The same, rounded; which of them are +0 or -0.
    mask : ``In(cols)``
        Bits of the mask buffer.
    format, relu, masked : ``In``
        Fields of the STORE.
    o : ``Out``
        The word: C FP32 or FP16 values, or mask bits, from the low bits up.
    non_finite : ``Out(cols)``
        Sums that are infinite or NaN.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "sums": In(data.ArrayLayout(32, config.cols)),
                "halves": In(data.ArrayLayout(16, config.cols)),
                "zeros": In(config.cols),
                "mask": In(config.cols),
                "format": In(Format),
                "relu": In(1),
                "masked": In(1),
                "o": Out(32 * config.cols),
                "non_finite": Out(config.cols),
            }
        )

    def elaborate(self, platform):
        m = Module()
        wide, narrow, passes = [], [], []
        for column in range(self.config.cols):
            total = data.View(FP32.layout, self.sums[column])
            half = self.halves[column]
            above = Signal(name=f"above_{column}")
            drop = Signal(name=f"drop_{column}")
            m.d.comb += [
                # NaN is positive here.
                above.eq(~half[15] & ~self.zeros[column]),
                drop.eq(self.masked & ~self.mask[column]),
                self.non_finite[column].eq(total.exponent == FP32.max_exponent),
            ]
            wide.append(Mux(drop, 0, self.sums[column]))
            narrow.append(Mux(drop | (self.relu & half[15]), 0, half))
            passes.append(above)
        with m.Switch(self.format):
            with m.Case(Format.FP32):
                m.d.comb += self.o.eq(Cat(wide))
            with m.Case(Format.FP16):
                m.d.comb += self.o.eq(Cat(narrow))
            with m.Case(Format.MASK):
                m.d.comb += self.o.eq(Cat(passes))
        return m


class StoreEngine(wiring.Component):
    """Run STORE instructions: write rows of bytes, from words of a buffer to beats.

    A word of the output buffer is rounded as it comes and then passes the `Epilogue`; words of the
    update engine's banks are beats (indices: a quarter of one) and go as they are.

    Timing. Accepted in cycle a, an instruction's first address is on the bus in cycle a + 2,
    then one a cycle. Words are read ahead: the first of an instruction is taken in cycle
    a + `READ_CYCLES`, the first of a further row in the cycle after the last beat of the row
    before (`overlaps`: in that of the beat), another in any cycle that leaves less than a beat
    behind. A beat is on the bus as soon as it is full (or its row complete) and its address has
    left. The next instruction is accepted after the last beat of this one. The signal follows the
    last response by a cycle; release follows the last word.
    `dataflow/cycles/store.h` states the same for the cycle model.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    i : ``In(stream.Signature(command_layout(STORE)))``
        Instructions, already checked.
    release, signal : ``Out(16)``
        Semaphore masks, each for one cycle.
    done, busy : ``Out(1)``
        ``done`` in the cycle of the signal; ``busy`` from the cycle after an accept to it.
    halt : ``In(1)``
        Send no further address; ``busy`` falls when every address sent has its data and response.
    error, error_pc : ``Out``
        Memory answered with an error; held until reset.
    beat : ``Out(1)``
        A beat was taken.
    port : ``Out(Axi4WriteSignature)``
    address : ``Out(16)``
        Read address of whichever buffer; the data below follow a cycle later.
    row, mask : ``In(ArrayLayout(32, cols))``, ``In(cols)``
        A word of the output buffer, and its bits of the mask buffer.
    source : ``Out(Source)``
        Which banks of the update engine to read.
    made : ``In(beat_bits).array(lanes)``
        Their words from ``address`` on, as many as a beat holds (`MadeBuffer`); indices in the
        low bits.
    non_finite : ``Out(32)``
        Sums that STOREs with ``check`` found infinite or NaN since reset.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(command_layout(isa.STORE))),
                "release": Out(SEMAPHORES),
                "signal": Out(SEMAPHORES),
                "done": Out(1),
                "busy": Out(1),
                "halt": In(1),
                "error": Out(1),
                "error_pc": Out(PC_BITS),
                "beat": Out(1),
                "port": Out(Axi4WriteSignature(config.axi)),
                "address": Out(16),
                "row": In(data.ArrayLayout(32, config.cols)),
                "mask": In(config.cols),
                "source": Out(Source),
                "made": In(config.axi.beat_bits).array(config.update_lanes),
                "non_finite": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, port = self.config, self.port
        axi, cols = config.axi, config.cols
        per_beat = axi.beat_bytes
        address_constants(m, port, "aw", axi)

        # Address side.
        m.submodules.walker = walker = BurstWalker(axi)
        open_burst = data.StructLayout({"beats": 9, "last": 1})
        m.submodules.bursts = bursts = Queue(open_burst, axi.outstanding, head=True)
        m.submodules.lasts = lasts = Queue(1, axi.outstanding)
        retire_layout = data.StructLayout({"pc": PC_BITS, "signal": SEMAPHORES})
        m.submodules.retires = retires = Queue(retire_layout, STORES_IN_FLIGHT)
        active = Signal()  # the data side works on `store`
        command = Signal(command_layout(isa.STORE))
        store = command.body
        take = self.i.valid & self.i.ready
        m.d.comb += [
            self.i.ready.eq(~active & walker.i.ready & retires.i.ready),
            walker.i.valid.eq(take),
            walker.i.p.address.eq(self.i.p.body.address),
            walker.i.p.pitch.eq(self.i.p.body.pitch),
            walker.i.p.rows.eq(self.i.p.body.rows),
            walker.i.p.row_bytes.eq(self.i.p.body.row_bytes),
            retires.i.valid.eq(take),
            retires.i.p.pc.eq(self.i.p.pc),
            retires.i.p.signal.eq(self.i.p.signal),
        ]
        outstanding = Signal(range(axi.outstanding + 1))
        send = walker.o.valid & walker.o.ready
        answered = port.bvalid & port.bready
        m.d.comb += [
            walker.o.ready.eq(
                (~port.awvalid | port.awready)
                & (outstanding != axi.outstanding)
                & ~self.halt
                & ~self.error
            ),
            bursts.i.valid.eq(send),
            bursts.i.p.beats.eq(walker.o.p.beats),
            bursts.i.p.last.eq(walker.o.p.last),
            lasts.i.valid.eq(send),
            lasts.i.p.eq(walker.o.p.last),
        ]
        with m.If(send):
            m.d.sync += [
                port.awvalid.eq(1),
                port.awaddr.eq(walker.o.p.address),
                port.awlen.eq(walker.o.p.beats - 1),
            ]
        with m.Elif(port.awready):
            m.d.sync += port.awvalid.eq(0)
        m.d.sync += outstanding.eq(outstanding + send - answered)

        # Words, ahead of what takes them: the address, what the buffer shows, `word`.
        widest = max(4 * cols, per_beat)
        append = Signal()  # `word` is taken
        word, halves, zeros = self._words(m, take, command, widest, append)
        m.submodules.epilogue = epilogue = Epilogue(config)
        stored = Signal(8 * widest)
        m.d.comb += [
            Value.cast(epilogue.sums).eq(word.bytes),
            epilogue.halves.eq(halves),
            epilogue.zeros.eq(zeros),
            epilogue.mask.eq(word.mask),
            epilogue.format.eq(store.format),
            epilogue.relu.eq(store.relu),
            epilogue.masked.eq(store.masked),
            stored.eq(Mux(store.source == Source.OUTPUT, epilogue.o, word.bytes)),
        ]

        # Data side: words in, beats out.
        size = per_beat - 1 + widest
        held = Signal(8 * size)
        count = Signal(range(size + 1))  # bytes held, and places before the row's first
        before = Signal(range(max(per_beat, 2)))  # such places in the first beat
        complete = Signal()
        final = Signal()  # the last row is complete
        row_address = Signal(12)
        offset_bits = (per_beat - 1).bit_length()

        full = (count >= per_beat) | complete
        m.d.comb += [
            port.wvalid.eq(active & full & bursts.o.valid),
            port.wdata.eq(held[: axi.beat_bits]),
        ]
        for place in range(per_beat):
            m.d.comb += port.wstrb[place].eq((place >= before) & (place < count))
        beat = port.wvalid & port.wready
        sent = Signal(9)
        m.d.comb += [
            self.beat.eq(beat),
            port.wlast.eq(sent == bursts.o.p.beats - 1),
            bursts.o.ready.eq(beat & port.wlast),
        ]
        with m.If(beat):
            m.d.sync += [sent.eq(Mux(port.wlast, 0, sent + 1)), before.eq(0)]

        kept = Signal(range(size + 1))
        end_of_row = beat & complete & (count <= per_beat)
        next_address = Signal(12)
        next_begins: Value = Const(0)
        m.d.comb += [next_address.eq(row_address + store.pitch[:12]), kept.eq(count)]
        with m.If(beat):
            m.d.comb += kept.eq(Mux(count > per_beat, count - per_beat, 0))
        if overlaps(config):
            next_begins = end_of_row & ~final
            with m.If(next_begins):
                m.d.comb += kept.eq(next_address[:offset_bits])
        remaining = Signal(8 * size)
        m.d.comb += remaining.eq(Mux(beat, held >> axi.beat_bits, held))
        m.d.comb += append.eq(active & word.valid & ((~complete & (kept < per_beat)) | next_begins))
        shift = Signal(range(8 * per_beat))
        m.d.comb += shift.eq(kept << 3)
        arriving = Signal(8 * size)
        m.d.comb += arriving.eq(stored << shift)
        # What lies above `kept` is left over from earlier words: it must go before the OR.
        below = Signal(8 * size)
        m.d.comb += below.eq(remaining & ((1 << Cat(C(0, 3), kept[:offset_bits])) - 1))
        m.d.sync += [
            held.eq(Mux(append, below | arriving, remaining)),
            count.eq(kept + Mux(append, word.size, 0)),
            self.release.eq(Mux(append & word.final, command.release, 0)),
        ]
        with m.If(append):
            with m.If(store.check):
                counted = sum(epilogue.non_finite[n] & (4 * n < word.size) for n in range(cols))
                m.d.sync += self.non_finite.eq(self.non_finite + counted)
            m.d.sync += [complete.eq(word.last), final.eq(word.final)]
        with m.If(end_of_row):
            m.d.sync += [row_address.eq(next_address), before.eq(next_address[:offset_bits])]
            with m.If(~(next_begins & append)):
                m.d.sync += [complete.eq(0), count.eq(next_address[:offset_bits])]
            with m.If(final):
                m.d.sync += active.eq(0)
        with m.If(take):
            body = self.i.p.body
            m.d.sync += [
                active.eq(1),
                command.eq(self.i.p),
                complete.eq(0),
                row_address.eq(body.address[:12]),
                before.eq(body.address[:offset_bits]),
                count.eq(body.address[:offset_bits]),
            ]

        # Responses, in the order of the bursts.
        failed = answered & (port.bresp != Response.OKAY)
        last = answered & lasts.o.p
        good = last & ~self.error & ~failed
        m.d.comb += [
            port.bready.eq(1),
            lasts.o.ready.eq(answered),
            retires.o.ready.eq(last),
            self.busy.eq(
                ((retires.level != 0) | self.done)
                & ~((self.halt | self.error) & (outstanding == 0) & ~port.awvalid)
            ),
        ]
        m.d.sync += [self.done.eq(good), self.signal.eq(Mux(good, retires.o.p.signal, 0))]
        with m.If(failed & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_pc.eq(retires.o.p.pc)]
        return m

    def _words(
        self, m: Module, take: Value, command: data.View, widest: int, append: Value
    ) -> tuple[data.View, data.View, Signal]:
        """Return the word at hand, read ahead; ``append`` takes it.

        And its sums as FP16, and which of these are zero.
        """
        config = self.config
        lanes, per_beat = config.update_lanes, config.axi.beat_bytes
        store = command.body
        summed = store.source == Source.OUTPUT
        size = Signal(range(widest + 1))  # bytes of a word
        m.d.comb += size.eq(per_beat)
        with m.If((store.source == Source.FF_INDICES) | (store.source == Source.BP_INDICES)):
            m.d.comb += size.eq(per_beat // 4)
        with m.Elif(summed), m.Switch(store.format):
            with m.Case(Format.FP16):
                m.d.comb += size.eq(2 * config.cols)
            with m.Case(Format.MASK):
                m.d.comb += size.eq(config.mask_bytes)
            with m.Default():
                m.d.comb += size.eq(4 * config.cols)
        about = {"valid": 1, "size": size.shape(), "last": 1, "final": 1}  # of a row, of all
        shown = Signal(data.StructLayout({**about, "lane": range(max(lanes, 2))}))
        word = Signal(
            data.StructLayout(
                {
                    **about,
                    "bytes": 8 * widest,
                    "mask": config.cols,
                }
            )
        )

        # The address to come, and the one whose word the buffer shows.
        reading = Signal()
        address, last_address, row_base = Signal(16), Signal(16), Signal(16)
        rows_left, left = Signal(16), Signal(20)
        lane = Signal.like(shown.lane)
        move_on = shown.valid & (~word.valid | append)
        read = Signal()
        last = left <= size
        m.d.comb += [
            read.eq(reading & (~shown.valid | move_on)),
            self.address.eq(Mux(read, address, last_address)),
        ]
        m.d.sync += last_address.eq(self.address)
        with m.If(read):
            m.d.sync += [
                address.eq(address + Mux(summed, 1, config.beat_words)),
                left.eq(left - size),
                shown.valid.eq(1),
                shown.size.eq(Mux(last, left, size)),
                shown.last.eq(last),
                shown.final.eq(last & (rows_left == 0)),
                shown.lane.eq(lane),
            ]
            with m.If(last):
                m.d.sync += [left.eq(store.row_bytes), rows_left.eq(rows_left - 1)]
                with m.If(summed | (lane == lanes - 1)):
                    next_row = row_base + store.stride
                    m.d.sync += [lane.eq(0), row_base.eq(next_row), address.eq(next_row)]
                with m.Else():
                    m.d.sync += [lane.eq(lane + 1), address.eq(row_base)]
                with m.If(rows_left == 0):
                    m.d.sync += reading.eq(0)
        with m.Elif(move_on):
            m.d.sync += shown.valid.eq(0)
        with m.If(take):
            body = self.i.p.body
            m.d.sync += [
                reading.eq(1),
                address.eq(body.base),
                row_base.eq(body.base),
                left.eq(body.row_bytes),
                rows_left.eq(body.rows - 1),
                lane.eq(0),
            ]

        m.d.comb += self.source.eq(store.source)
        made = Signal(config.axi.beat_bits)
        m.d.comb += made.eq(Array(self.made[n] for n in range(lanes))[shown.lane])
        made = self._in_order(m, made, store.source, last_address)
        halves, zeros = Signal(data.ArrayLayout(16, config.cols)), Signal(config.cols)
        for column in range(config.cols):
            m.submodules[f"narrow_{column}"] = rounder = Fp32ToFp16(stages=1)
            m.d.comb += [
                rounder.i.eq(self.row[column]),
                rounder.enable.eq(move_on),
                halves[column].eq(rounder.o),
                zeros[column].eq(rounder.zero),
            ]
        with m.If(move_on):
            m.d.sync += [
                word.valid.eq(1),
                word.size.eq(shown.size),
                word.last.eq(shown.last),
                word.final.eq(shown.final),
                word.bytes.eq(Mux(summed, self.row.as_value(), made)),
                word.mask.eq(self.mask),
            ]
        with m.Elif(append):
            m.d.sync += word.valid.eq(0)
        return word, halves, zeros

    def _in_order(self, m: Module, made: Value, source: Value, address: Value) -> Value:
        """Return the words from an address on in order: each lies at its sub-bank's place."""
        config = self.config
        together, bits = config.beat_words, 8 * config.granule_bytes
        if together == 1:
            return made
        first = address[: together.bit_length() - 1]  # the sub-bank of the first
        ordered = Signal(config.axi.beat_bits)
        indices = (source == Source.FF_INDICES) | (source == Source.BP_INDICES)
        for is_taken, size in ((~indices, bits), (indices, bits // 4)):
            words = [made[n * size : (n + 1) * size] for n in range(together)]
            with m.If(is_taken), m.Switch(first):
                for by in range(together):
                    with m.Case(by):
                        m.d.comb += ordered.eq(Cat(words[by:], words[:by]))
        return ordered
