"""Store engine: from the output buffer into memory."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.axi import Axi4WriteSignature, Response, address_constants
from sat.rtl.bursts import BurstWalker
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.layouts import PC_BITS, command_layout
from sat.rtl.streams import Queue

STORES_IN_FLIGHT = 4
"""Instructions whose responses are still due, at most."""


class StoreEngine(wiring.Component):
    """Run STORE instructions: write rows of sums, from words of C columns to beats.

    Timing. Accepted in cycle a, an instruction's first address is on the bus in cycle a + 2,
    then one a cycle. The first word of a row is taken from the buffer in cycle a + 2, or in the
    cycle after the last beat of the row before; a further word in any cycle that leaves less
    than a beat behind. A beat is on the bus as soon as it is full (or its row complete) and its
    address has left. The next instruction is accepted after the last beat of this one. The
    signal follows the last response by a cycle; release follows the last word.
    `sat.dataflow.cycles_store` states the same in Python.

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
    address, row : ``Out``, ``In(ArrayLayout(32, cols))``
        Read port of the output buffer: a word of all banks, a cycle after its address.
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
                "address": Out((config.sum_words - 1).bit_length()),
                "row": In(data.ArrayLayout(32, config.cols)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, port = self.config, self.port
        axi, cols = config.axi, config.cols
        per_beat = axi.beat_bytes // 4
        address_constants(m, port, "aw", axi)

        # Address side.
        m.submodules.walker = walker = BurstWalker(axi)
        open_burst = data.StructLayout({"beats": 9, "last": 1})
        m.submodules.bursts = bursts = Queue(open_burst, axi.outstanding)
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
            walker.i.p.row_bytes.eq(self.i.p.body.columns << 2),
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

        # Data side: words in, beats out.
        size = per_beat - 1 + cols
        held = Signal(32 * size)
        count = Signal(range(size + 1))  # sums held, and places before the row's first
        before = Signal(range(max(per_beat, 2)))  # such places in the first beat
        complete = Signal()
        rows_left = Signal(16)
        left = Signal(16)  # columns still to come
        row_base = Signal(16)
        word = Signal(8)
        row_address = Signal(12)
        offset_bits = (per_beat - 1).bit_length()

        full = (count >= per_beat) | complete
        m.d.comb += [
            port.wvalid.eq(active & full & bursts.o.valid),
            port.wdata.eq(held[: axi.data_bits]),
        ]
        for lane in range(per_beat):
            strobe = (lane >= before) & (lane < count)
            m.d.comb += port.wstrb[4 * lane : 4 * lane + 4].eq(strobe.replicate(4))
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
        m.d.comb += kept.eq(count)
        with m.If(beat):
            m.d.comb += kept.eq(Mux(count > per_beat, count - per_beat, 0))
        remaining = Signal(32 * size)
        m.d.comb += remaining.eq(Mux(beat, held >> axi.data_bits, held))
        # The word at `address` of the last cycle is there unless the row has just begun.
        word_ready = Signal()
        append = active & word_ready & ~complete & (kept < per_beat)
        brought = Signal(range(cols + 1))
        m.d.comb += brought.eq(Mux(left < cols, left, cols))
        shift = Signal(range(32 * per_beat))
        m.d.comb += shift.eq(kept << 5)
        arriving = Signal(32 * size)
        m.d.comb += arriving.eq(Value.cast(self.row) << shift)
        # What lies above `kept` is left over from earlier words: it must go before the OR.
        below = Signal(32 * size)
        for place in range(size):
            with m.If(place < kept):
                m.d.comb += below[32 * place : 32 * place + 32].eq(
                    remaining[32 * place : 32 * place + 32]
                )
        end_of_row = beat & complete & (count <= per_beat)
        m.d.comb += self.address.eq(row_base + word + append)
        m.d.sync += [
            word_ready.eq(1),
            held.eq(Mux(append, below | arriving, remaining)),
            count.eq(kept + Mux(append, brought, 0)),
            self.release.eq(0),
        ]
        with m.If(append):
            m.d.sync += [word.eq(word + 1), left.eq(left - brought)]
            with m.If(left == brought):
                m.d.sync += [
                    complete.eq(1),
                    word.eq(0),
                    row_base.eq(row_base + store.stride),
                    word_ready.eq(0),
                ]
                with m.If(rows_left == 0):
                    m.d.sync += self.release.eq(command.release)
        next_address = Signal(12)
        m.d.comb += next_address.eq(row_address + store.pitch[:12])
        with m.If(end_of_row):
            m.d.sync += [
                complete.eq(0),
                left.eq(store.columns),
                rows_left.eq(rows_left - 1),
                row_address.eq(next_address),
                before.eq((next_address >> 2)[:offset_bits]),
                count.eq((next_address >> 2)[:offset_bits]),
            ]
            with m.If(rows_left == 0):
                m.d.sync += active.eq(0)
        with m.If(take):
            body = self.i.p.body
            m.d.sync += [
                active.eq(1),
                command.eq(self.i.p),
                complete.eq(0),
                left.eq(body.columns),
                rows_left.eq(body.rows - 1),
                row_base.eq(body.base),
                word.eq(0),
                word_ready.eq(0),
                row_address.eq(body.address[:12]),
                before.eq((body.address >> 2)[:offset_bits]),
                count.eq((body.address >> 2)[:offset_bits]),
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
