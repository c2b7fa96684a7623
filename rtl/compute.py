"""The compute engine: issues MULTIPLY tiles to the array on a static schedule.

Nothing inside the array waits. When a tile is issued, in cycle t, every unit's start is known,
so each gets its command through a `LaunchQueue`:

==================  ===========================================================================
A feeder of row 0   x: t + 1 + max(0, lead) (OS), t + 1 + values (WS, while the weights load)
column feeder       x (OS), t + 1 (WS)
start walker        z: t + 1 + max(0, -lead) (OS), x + F - 3 (WS)
output walker       v: x + F + length + R + X + s - 1 (OS), x + F + R * delta + X - 1 (WS)
release             t + max(length, R * s) + K (OS), t + length + R * delta + X + F + C (WS)
signal              v + addresses + C - 1
==================  ===========================================================================

with s the interleave, F = 2 + `Uspe.adder_delay` the cycles from an A feeder's command to the
adder of the first USPE, length = s * steps, delta = s * values + 1 the skew of the rows when
weight stationary, lead = s * (R - 1) - (F - 3) how long before the operands the start values
must set out, X the registers at crossings (`SatConfig.crossings`), and K = |lead| + max(R + X, C).

When the next tile may be issued, e being the cycle t + length:

* WS: max(length, R * delta + X + 3) after t, so that a pass may add to the sums of the last one;
* OS: not before e, nor so early that its finished sums would meet those of this tile in the
  chains: next t + next length >= e + R * s. If it starts from given sums (START, OUTPUT), these
  share the chains with this tile's finished sums: either it follows at once, in cycle e, and
  both lengths are at least R * s, or R * s cycles after e. KEEP tiles keep the ring's phase.
* When the dataflow or the number of held weights changes: when the array has emptied.
* At most `TILES_IN_FLIGHT` are under way.

`dataflow/cycles/compute.h` states the same for the cycle model; tests hold the two together.
"""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.feed import (
    ColumnFeeder,
    RowFeeder,
    SumWalker,
    column_command_layout,
    column_read_layout,
    granule_bits,
    pick_b,
    row_command_layout,
    sum_command_layout,
)
from sat.rtl.launch import LaunchQueue, time_bits
from sat.rtl.layouts import OPERAND_BITS, command_layout
from sat.rtl.stce import Stce
from sat.rtl.uspe import Uspe
from sat.rtl.verilog import part

TILES_IN_FLIGHT = 8
"""Tiles between issue and signal."""

PREPARE_CYCLES = 2
"""Cycles from the accept of an instruction to its earliest issue."""


def feed_delay(config: SatConfig) -> int:
    """Return F: cycles from an A feeder's command to the adder's input of its first USPE."""
    return 2 + Uspe.adder_delay(config)


class ComputeEngine(wiring.Component):
    """Run MULTIPLY instructions: one array tile each, back to back.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    i : ``In(stream.Signature(command_layout(MULTIPLY)))``
        Instructions, already checked.
    release, signal : ``Out(16)``
        Semaphore masks, each for one cycle.
    done : ``Out(1)``
        High in the cycle of ``signal``.
    busy : ``Out(1)``
        High from the cycle after an accept to the cycle of its ``signal``.
    a_address, a_data, b_address, b_data, i_address, i_data, s_address, s_data :
        Read ports of the operand, index and start banks; data follow a cycle after the address.
        Those of B and of indices are granules of a word, numbered throughout.
    o_read_address, o_read_data, o_write, o_write_address, o_write_data :
        Ports of the output banks.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        rows, cols = config.rows, config.cols
        word = data.ArrayLayout(OPERAND_BITS, config.max_m)
        lanes, parts = config.granule_halves, config.beats_per_word
        sums = (config.sum_words - 1).bit_length()
        super().__init__(
            {
                "i": In(stream.Signature(command_layout(isa.MULTIPLY))),
                "release": Out(SEMAPHORES),
                "signal": Out(SEMAPHORES),
                "done": Out(1),
                "busy": Out(1),
                "a_address": Out((config.a_words - 1).bit_length()).array(rows),
                "a_data": In(word).array(rows),
                "b_address": Out((config.b_words * parts - 1).bit_length()).array(cols),
                "b_data": In(data.ArrayLayout(OPERAND_BITS, lanes)).array(cols),
                "i_address": Out((config.i_words * parts - 1).bit_length()).array(cols),
                "i_data": In(data.ArrayLayout(16, lanes)).array(cols),
                "s_address": Out(sums).array(cols),
                "s_data": In(32).array(cols),
                "o_read_address": Out(sums).array(cols),
                "o_read_data": In(32).array(cols),
                "o_write": Out(1).array(cols),
                "o_write_address": Out(sums).array(cols),
                "o_write_data": Out(32).array(cols),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        rows, cols, s = config.rows, config.cols, config.interleave
        feed = feed_delay(config)
        lead = s * (rows - 1) - (feed - 3)
        last_row = config.row_cycles
        bits = time_bits(config)
        now = Signal(bits)
        m.d.sync += now.eq(now + 1)

        # One instruction waits here while its length is worked out.
        full = Signal()
        ready = Signal()
        command = Signal(command_layout(isa.MULTIPLY))
        tile = command.body
        steps = Signal(20)
        m.d.comb += self.i.ready.eq(~full)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [full.eq(1), ready.eq(0), command.eq(self.i.payload)]
        m.d.sync += steps.eq((tile.words - 1) * tile.values + tile.last)
        with m.If(full):
            m.d.sync += ready.eq(1)

        # When it may be issued.
        ws = tile.dataflow == isa.Dataflow.WS
        length = Signal(bits)
        skew = Signal(bits)  # WS: R * delta + X
        m.d.comb += [length.eq(steps * s), skew.eq(tile.values * (rows * s) + last_row)]
        chain = rows * s  # how many sums a column's chain takes in or gives out
        left = Signal(bits)  # cycles until the last tile's `e` (OS) or next issue (WS)
        after = Signal(range(chain + 1), init=chain)  # cycles since then, at most `chain`
        last_long = Signal()
        last_ws = Signal()
        last_values = Signal(5)
        phase = Signal(range(max(s, 2)))
        in_flight = Signal(range(TILES_IN_FLIGHT + 1))
        from_sums = (tile.start == isa.Start.START) | (tile.start == isa.Start.OUTPUT)
        keep = tile.start == isa.Start.KEEP
        long = length >= chain
        may_os = (
            (long | (after + length >= chain))
            & (~from_sums | (after == chain) | ((after == 0) & last_long & long))
            & (~keep | (phase == 0))
        )
        same = (last_ws == ws) & (~ws | (last_values == tile.values))
        issue = Signal()
        m.d.comb += issue.eq(
            full
            & ready
            & (left == 0)
            & (in_flight != TILES_IN_FLIGHT)
            & ((in_flight == 0) | same)
            & (ws | may_os)
        )
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Elif(after != chain):
            m.d.sync += after.eq(after + 1)
        m.d.sync += phase.eq(Mux(phase == s - 1, 0, phase + 1))
        bank = Signal()
        with m.If(issue):
            m.d.sync += [
                full.eq(0),
                left.eq(
                    Mux(ws, Mux(length > skew + 3, length, skew + 3), length) - 1,
                ),
                after.eq(0),
                last_long.eq(long),
                last_ws.eq(ws),
                last_values.eq(tile.values),
                phase.eq(1 % s),
                bank.eq(bank ^ ws),
            ]
        m.d.sync += in_flight.eq(in_flight + issue - self.done)
        m.d.comb += self.busy.eq(full | (in_flight != 0))

        # The launches.
        x, z, v, signal_time = (Signal(bits, name=n) for n in ("x", "z", "v", "signal_time"))
        with m.If(ws):
            m.d.comb += [
                x.eq(now + 1 + tile.values),
                z.eq(x + (feed - 3)),
                v.eq(x + (feed - 1) + skew),
                signal_time.eq(v + length + (cols - 1)),
            ]
        with m.Else():
            m.d.comb += [
                x.eq(now + 1 + max(0, lead)),
                z.eq(now + 1 + max(0, -lead)),
                v.eq(x + (feed + last_row + s - 1) + length),
                signal_time.eq(v + (chain + cols - 1)),
            ]

        def launch(
            name: str,
            shape: data.Layout | int,
            time: Value,
            when: Value = C(1),  # noqa: B008
            late: bool = False,
        ):
            """Return a queue and the command that an issue pushes; ``late``, a cycle later.

            Then the time, a long sum, ends in a register. It must be 3 cycles ahead or more.
            """
            queue = LaunchQueue(shape, TILES_IN_FLIGHT, bits)
            m.submodules[f"launch_{name}"] = queue
            item = Signal(shape, name=f"{name}_item")
            domain = m.d.sync if late else m.d.comb
            domain += [queue.time.eq(time), queue.push.eq(issue & when), queue.item.eq(item)]
            m.d.comb += queue.now.eq(now)
            return queue, item

        row_launch, row = launch("rows", row_command_layout(config), x)
        m.d.comb += [
            row.base.eq(tile.a_base),
            row.outer_step.eq(Mux(ws, s, 1)),
            row.inner_step.eq(Mux(ws, 1, tile.a_stride)),
            row.split.eq(tile.split),
            row.last_word.eq(tile.words - 1),
            row.last_value.eq(tile.values - 1),
            row.final_value.eq(tile.last - 1),
            row.start.eq(~keep),
            row.zero.eq(tile.start == isa.Start.ZERO),
            row.emit.eq(tile.emit),
            row.ws.eq(ws),
            row.bank.eq(bank),
        ]
        column_launch, column = launch(
            "columns", column_command_layout(config), Mux(ws, now + 1, x)
        )
        m.d.comb += [
            column[name].eq(tile[name])
            for name in ("b_base", "b_stride", "b_skip", "i_base", "i_stride", "i_skip")
        ]
        m.d.comb += [
            column.ws.eq(ws),
            column.split.eq(tile.split),
            column.n.eq(tile.n),
            column.log2_m.eq(tile.log2_m),
            column.last_step.eq(steps - 1),
            column.count.eq(tile.count),
            column.values.eq(tile.values),
            column.bank.eq(bank),
        ]
        start_command = data.StructLayout({"output": 1, "walk": sum_command_layout(config)})
        start_launch, start_item = launch("start", start_command, z, from_sums)
        output_launch, output = launch(
            "output", sum_command_layout(config), v, tile.emit, late=True
        )
        m.d.comb += start_item.output.eq(tile.start == isa.Start.OUTPUT)
        for walk, base in ((start_item.walk, tile.s_base), (output, tile.o_base)):
            m.d.comb += [
                walk.ws.eq(ws),
                walk.base.eq(base),
                walk.split.eq(tile.split),
                walk.batches.eq(tile.words),
                walk.values.eq(tile.values),
            ]
        release_time = Mux(
            ws,
            now + length + skew + (feed + cols),
            now + Mux(long, length, chain) + (abs(lead) + max(last_row, cols)),
        )
        # They come a cycle early, into registers: semaphores have no time for a queue's.
        release_launch, release = launch("release", SEMAPHORES, release_time - 1, late=True)
        signal_launch, signal = launch("signal", SEMAPHORES, signal_time - 1, late=True)
        m.d.comb += [release.eq(command.release), signal.eq(command.signal)]
        m.d.sync += [
            self.release.eq(Mux(release_launch.valid, release_launch.out, 0)),
            self.signal.eq(Mux(signal_launch.valid, signal_launch.out, 0)),
            self.done.eq(signal_launch.valid),
        ]

        # The array and its edges.
        stce = Stce(config)
        m.submodules.stce = part(platform, stce, "stce")
        m.d.comb += stce.ws.eq(last_ws)
        next_command, next_valid = row_launch.out, row_launch.valid
        for r in range(rows):
            if r in config.crossings:
                command_before, valid_before = next_command, next_valid
                next_command = Signal(row_command_layout(config), name=f"command_{r}")
                next_valid = Signal(name=f"valid_{r}")
                m.d.sync += [next_command.eq(command_before), next_valid.eq(valid_before)]
            m.submodules[f"row_feeder_{r}"] = feeder = RowFeeder(config)
            m.d.comb += [
                feeder.command.eq(next_command),
                feeder.command_valid.eq(next_valid),
                self.a_address[r].eq(feeder.address),
                stce.a[r].lanes.eq(self.a_data[r]),
            ]
            m.d.comb += [
                stce.a[r][name].eq(feeder.flags[name])
                for name in ("valid", "first", "zero", "last", "weight", "bank")
            ]
            next_command, next_valid = feeder.next_command, feeder.next_valid

        m.submodules.column_feeder = columns = ColumnFeeder(config)
        m.d.comb += [
            columns.command.eq(column_launch.out),
            columns.command_valid.eq(column_launch.valid),
        ]
        read = columns.read
        lane_bits, nibble_bits = granule_bits(config)
        for c in range(cols):
            m.d.comb += [
                self.b_address[c].eq(Cat(read.lane[lane_bits:], read.b_address)),
                self.i_address[c].eq(Cat(read.nibble[nibble_bits:], read.i_address)),
            ]
            due = Signal(column_read_layout(config), name=f"read_{c}")
            m.d.sync += due.eq(read)
            pick_b(m, config, due, self.b_data[c].as_value(), self.i_data[c].as_value(), stce.b[c])
            read = due

        # Sums into the north edge …
        m.submodules.start_walker = start = SumWalker(config)
        start_output = Signal()
        with m.If(start_launch.valid):
            m.d.sync += start_output.eq(start_launch.out.output)
        m.d.comb += [
            start.command.eq(start_launch.out.walk),
            start.command_valid.eq(start_launch.valid),
        ]
        address, output = start.address, start_output
        for c in range(cols):
            m.d.comb += [self.s_address[c].eq(address), self.o_read_address[c].eq(address)]
            next_address = Signal.like(start.address, name=f"start_address_{c}")
            next_output = Signal(name=f"start_output_{c}")
            m.d.sync += [next_address.eq(address), next_output.eq(output)]
            psum = Signal(32, name=f"psum_{c}")
            m.d.sync += psum.eq(Mux(next_output, self.o_read_data[c], self.s_data[c]))
            m.d.comb += stce.psum_in[c].eq(psum)
            address, output = next_address, next_output

        # … and out of the south edge.
        m.submodules.output_walker = walker = SumWalker(config)
        m.d.comb += [
            walker.command.eq(output_launch.out),
            walker.command_valid.eq(output_launch.valid),
        ]
        address, valid = walker.address, walker.valid
        for c in range(cols):
            m.d.comb += [
                self.o_write[c].eq(valid),
                self.o_write_address[c].eq(address),
                self.o_write_data[c].eq(stce.psum_out[c]),
            ]
            next_address = Signal.like(walker.address, name=f"output_address_{c}")
            next_write = Signal(name=f"output_write_{c}")
            m.d.sync += [next_address.eq(address), next_write.eq(valid)]
            address, valid = next_address, next_write
        return m
