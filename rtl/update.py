"""The update engine: WUVE and SORE lanes over tiles of weights, both prunings from one pass."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.buffers import bank_memory
from sat.rtl.config import SEMAPHORES, SatConfig
from sat.rtl.fp.convert import Fp32ToFp16
from sat.rtl.isa import Opcode
from sat.rtl.layouts import any_command_layout
from sat.rtl.sore import SoreLane
from sat.rtl.update_walk import (
    READ_CYCLES,
    CopyWriter,
    TileWalk,
    column_drain,
    index_bits,
    row_drain,
    row_latency,
    wait_cycles,
)
from sat.rtl.verilog import leaf
from sat.rtl.wuve import Wuve


class UpdateEngine(wiring.Component):
    """Run UPDATE: new weights and momenta, and both pruned copies, from one pass over a tile.

    ``update_lanes`` (L) lanes work side by side, lane l on rows l, l + L, …, a weight a cycle. In
    the *row pass* a weight goes through WUVE; its FP16 copy goes through a SORE lane along its
    row (the FF copy) and into a tile memory. In the *column pass* the tile memory is read down
    the columns, lane l on columns l, l + L, …, through a SORE lane each (the BP copy). Lane l
    is l cycles behind lane 0, so that no two read the same bank. The tile memory has two halves:
    the row pass of the next UPDATE overlaps the column pass of the last.

    Whether FF prunes a weight before its update, which SR-STE's decay depends on, is known when
    its group is complete; until then it waits in a delay line of `wait_cycles`.

    Timing, with E = ceil(rows / L) * columns weights a lane in the row pass, and
    D = ceil(columns / L) * ceil(rows / L) * L in the column pass:

    ============ ==================================================================
    addresses    a + 1 … a + E
    release      a + E + 1
    column pass  c = max(a + E + `row_drain`, signal of the UPDATE before)
    next accept  c
    signal       c + D + `column_drain`
    RATES        accepted when all is idle; release and signal a cycle later
    ============ ==================================================================

    `dataflow/cycles/update.h` states the same for the cycle model.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    i : ``In(stream.Signature(any_command_layout()))``
        RATES and UPDATE, already checked.
    release, signal : ``Out(16)``
        Semaphore masks, each for one cycle.
    done, busy : ``Out(1)``
        ``done`` in the cycle of the signal; ``busy`` from the cycle after an accept to it.
    skip : ``In(1)``
        An UPDATE accepted now leaves weights and momenta as they are.
    skipped : ``Out(1)``
        One was, for one cycle: the one after its accept.
    in_address, w_data, v_data, g_data :
        Read ports of the input banks; data a cycle after the address.
    out_write, out_address, w_out, v_out : ``Out``
        Whole words for the output banks.
    ff_write, ff_address, ff_lane, ff_value, ff_index : ``Out`` arrays
        An element of the FF copy for each lane, and the same with ``bp``.

    Source: Fang et al. 2023: WUVE, SORE and pre-generation. Two passes over a tile memory, which
    give both directions from one read of the weights, are this project's.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        lanes = config.update_lanes
        words = data.ArrayLayout(32, config.granule_weights)
        copy = {
            "write": Out(1).array(lanes),
            "address": Out(index_bits(config.copy_words)).array(lanes),
            "lane": Out(index_bits(config.granule_halves)).array(lanes),
            "value": Out(16).array(lanes),
            "index": Out(4).array(lanes),
        }
        super().__init__(
            {
                "i": In(stream.Signature(any_command_layout())),
                "release": Out(SEMAPHORES),
                "signal": Out(SEMAPHORES),
                "done": Out(1),
                "busy": Out(1),
                "skip": In(1),
                "skipped": Out(1),
                "in_address": Out(index_bits(config.update_words)),
                "w_data": In(words).array(lanes),
                "v_data": In(words).array(lanes),
                "g_data": In(words).array(lanes),
                "out_write": Out(1).array(lanes),
                "out_address": Out(index_bits(config.update_words)),
                "w_out": Out(words).array(lanes),
                "v_out": Out(words).array(lanes),
                **{f"ff_{name}": member for name, member in copy.items()},
                **{f"bp_{name}": member for name, member in copy.items()},
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes = config.update_lanes
        lane_bits = (lanes - 1).bit_length()
        depth = config.tile_weights // lanes
        rounding = config.fp.round_stages
        # The tile of the row pass, and of the column pass.
        rates = Signal(isa.RATES)
        tile, row_command, skip = Signal(isa.UPDATE), Signal(any_command_layout()), Signal()
        turned, column_command = Signal(isa.UPDATE), Signal(any_command_layout())
        half, turned_half = Signal(), Signal()
        row_busy, column_busy = Signal(), Signal()
        take = self.i.valid & self.i.ready
        is_update = self.i.p.opcode == Opcode.UPDATE.value
        begin = Signal()
        turn = Signal()  # the row pass is over, its tile goes to the column pass
        m.d.comb += [
            self.i.ready.eq(Mux(is_update, ~row_busy | turn, ~row_busy & ~column_busy)),
            begin.eq(take & is_update),
        ]
        set_rates = Signal()
        m.d.sync += [set_rates.eq(take & ~is_update), self.skipped.eq(begin & self.skip)]
        with m.If(take & ~is_update):
            m.d.sync += [rates.eq(self.i.p.body[: isa.RATES.size]), row_command.eq(self.i.p)]
        with m.If(begin):
            m.d.sync += [
                tile.eq(self.i.p.body[: isa.UPDATE.size]),
                row_command.eq(self.i.p),
                skip.eq(self.skip),
                half.eq(~half),
            ]

        # Row pass.
        groups = Signal(16)
        m.d.comb += groups.eq((tile.rows + (lanes - 1)) >> lane_bits)
        m.submodules.reads = reads = TileWalk(config)
        m.submodules.writes = writes = TileWalk(config)
        # The reads start in the cycle in which the tile is taken in.
        incoming = data.View(isa.UPDATE, self.i.p.body[: isa.UPDATE.size])
        for walk, given, base in (
            (reads, incoming, incoming.in_base),
            (writes, tile, tile.out_base),
        ):
            m.d.comb += [
                walk.groups.eq((given.rows + (lanes - 1)) >> lane_bits),
                walk.columns.eq(given.columns),
                walk.base.eq(base),
                walk.stride.eq(tile.stride),
            ]
        m.d.comb += [reads.start.eq(begin), self.in_address.eq(reads.word)]

        def later(value: Value, cycles: int, name: str) -> Value:
            for i in range(cycles):
                stage = Signal(len(value), name=f"{name}_{i}", reset_less=len(value) > 1)
                m.d.sync += stage.eq(value)
                value = stage
            return value

        begun = later(begin, 1, "begin")
        m.d.comb += writes.start.eq(later(begun, row_latency(config) - 1, "begun"))
        read_done = later(reads.last, 1, "read_done")
        place = later(reads.place, 1, "place")
        entering = later(reads.active, READ_CYCLES, "entering")
        drain = Signal(range(row_drain(config)))
        drained = Signal()
        with m.If(reads.last):
            m.d.sync += drain.eq(row_drain(config) - 1)
        with m.Elif(drain != 0):
            m.d.sync += drain.eq(drain - 1)
        # No tile is read while another drains: `reads` has no say in it.
        m.d.comb += turn.eq(drained & ~column_busy)
        with m.If(drain == 1):
            m.d.sync += drained.eq(1)
        with m.Elif(turn):
            m.d.sync += drained.eq(0)
        with m.If(begin):
            m.d.sync += row_busy.eq(1)
        with m.Elif(turn):
            m.d.sync += row_busy.eq(0)
        rounded = later(writes.active, rounding, "rounded")
        element = Signal(index_bits(depth))  # of the tile memory's half, for this FP16 copy
        with m.If(writes.start):
            m.d.sync += element.eq(0)
        with m.Elif(rounded):
            m.d.sync += element.eq(element + 1)
        ff_kept = Signal(16)
        m.d.sync += ff_kept.eq((tile.columns * tile.ff_n) >> tile.ff_log2_m)
        end_of_word = writes.place == config.granule_weights - 1
        m.d.comb += self.out_address.eq(writes.word)

        tiles = []
        for lane in range(lanes):
            entry = Signal(96, name=f"entry_{lane}", reset_less=True)
            m.d.sync += entry.eq(
                Cat(
                    Array(bank[lane][n] for n in range(config.granule_weights))[place]
                    for bank in (self.w_data, self.v_data, self.g_data)
                )
            )
            # What FF prunes now.
            m.submodules[f"old_half_{lane}"] = old_half = Fp32ToFp16(stages=rounding)
            old_sore = leaf(platform, self._sore_lane, "sore_lane")
            m.submodules[f"old_sore_{lane}"] = old_sore.element
            m.d.comb += [
                old_half.i.eq(entry[:32]),
                old_sore.clear.eq(begun),
                old_sore.valid.eq(later(entering, rounding, f"old_rounded_{lane}")),
                old_sore.value.eq(old_half.o),
                old_sore.n.eq(tile.ff_n),
                old_sore.log2_m.eq(tile.ff_log2_m),
            ]
            # Smaller groups are complete earlier: their answers wait for the weights.
            answers = [old_sore.kept]
            for wait in range(config.max_m):
                answers.append(later(answers[-1], 1, f"kept_{lane}_{wait}"))
            kept = Signal(name=f"kept_{lane}")
            with m.Switch(tile.ff_log2_m):
                for log2_m in range(config.max_m.bit_length()):
                    with m.Case(log2_m):
                        m.d.comb += kept.eq(answers[config.max_m - (1 << log2_m)])
            waited = later(entry, wait_cycles(config), f"wait_{lane}")
            wuve = leaf(platform, lambda: Wuve(config.fp), "wuve")
            m.submodules[f"wuve_{lane}"] = wuve.element
            m.d.comb += [
                Value.cast(wuve.rates).eq(rates),
                wuve.skip.eq(skip),
                Cat(wuve.w, wuve.v, wuve.g).eq(waited),
                wuve.pruned.eq(~kept),
            ]

            # What comes out: words of weights and momenta, the FF copy, the tile memory.
            mine = Signal(name=f"mine_{lane}")
            m.d.comb += [
                mine.eq(writes.active & ((writes.group << lane_bits) + lane < tile.rows)),
                self.out_write[lane].eq(mine & end_of_word),
            ]
            for result, port in ((wuve.w_out, self.w_out), (wuve.v_out, self.v_out)):
                for n in range(config.granule_weights - 1):
                    held = Signal(32, reset_less=True)
                    with m.If(writes.place == n):
                        m.d.sync += held.eq(result)
                    m.d.comb += port[lane][n].eq(held)
                m.d.comb += port[lane][config.granule_weights - 1].eq(result)
            m.submodules[f"half_{lane}"] = new_half = Fp32ToFp16(stages=rounding)
            sore = leaf(platform, self._sore_lane, "sore_lane")
            m.submodules[f"ff_sore_{lane}"] = sore.element
            m.submodules[f"ff_writer_{lane}"] = writer = CopyWriter(config)
            m.d.comb += [
                new_half.i.eq(wuve.w_out),
                sore.clear.eq(begun),
                sore.valid.eq(rounded),
                sore.value.eq(new_half.o),
                sore.n.eq(tile.ff_n),
                sore.log2_m.eq(tile.ff_log2_m),
                writer.start.eq(writes.start),
                writer.lines.eq((tile.rows + (lanes - 1 - lane)) >> lane_bits),
                writer.kept.eq(ff_kept),
                writer.base.eq(tile.ff_base),
                writer.stride.eq(tile.ff_stride),
            ]
            self._copy(m, "ff", lane, sore, writer)
            m.submodules[f"tile_{lane}"] = halves = bank_memory(16, 2 * depth)
            put = halves.write_port()
            m.d.comb += [
                put.addr.eq(element + Mux(half, depth, 0)),
                put.data.eq(new_half.o),
                put.en.eq(rounded),
            ]
            tiles.append(halves.read_port())

        # Column pass.
        with m.If(turn):
            m.d.sync += [
                turned.eq(tile),
                column_command.eq(row_command),
                turned_half.eq(half),
                column_busy.eq(1),
            ]
        self._columns(m, platform, turn, tile.bp_base, turned, turned_half, tiles, depth)
        rows_padded = Signal(17)
        column_groups = Signal(16)
        left = Signal(33)
        m.d.comb += [
            rows_padded.eq(groups << lane_bits),
            column_groups.eq((tile.columns + (lanes - 1)) >> lane_bits),
        ]
        finish = column_busy & (left == 0)
        with m.If(turn):
            m.d.sync += left.eq(rows_padded * column_groups + (column_drain(config) - 2))
        with m.Elif(column_busy & (left != 0)):
            m.d.sync += left.eq(left - 1)
        updated = Signal()
        m.d.sync += updated.eq(finish)
        with m.If(finish):
            m.d.sync += column_busy.eq(0)
        signal = Signal(SEMAPHORES)
        with m.If(finish):
            m.d.sync += signal.eq(column_command.signal)
        m.d.comb += [
            self.release.eq(Mux(read_done | set_rates, row_command.release, 0)),
            self.signal.eq(Mux(updated, signal, Mux(set_rates, row_command.signal, 0))),
            self.done.eq(updated | set_rates),
            self.busy.eq(row_busy | column_busy | updated | set_rates),
        ]
        return m

    def _sore_lane(self) -> SoreLane:
        return SoreLane(self.config.max_m, self.config.fp.sore_stages)

    def _copy(self, m: Module, name: str, lane: int, sore: SoreLane, writer: CopyWriter) -> None:
        """Connect a SORE lane to its writer and to the ports of a copy."""
        m.d.comb += [
            writer.valid.eq(sore.out_valid),
            getattr(self, f"{name}_write")[lane].eq(writer.write),
            getattr(self, f"{name}_address")[lane].eq(writer.address),
            getattr(self, f"{name}_lane")[lane].eq(writer.lane),
            getattr(self, f"{name}_value")[lane].eq(sore.out_value),
            getattr(self, f"{name}_index")[lane].eq(sore.out_index),
        ]

    def _columns(
        self,
        m: Module,
        platform: object,
        start: Value,
        first_base: Value,
        tile: Signal,
        half: Signal,
        tiles: list,
        depth: int,
    ) -> None:
        """Read the tile memory down the columns, a SORE lane for each lane.

        ``tile`` holds from the cycle after ``start``; lane 0 needs its ``bp_base`` in that cycle.
        """
        config = self.config
        lanes = config.update_lanes
        lane_bits = (lanes - 1).bit_length()
        last_group = Signal(16)
        last_columns = Signal(16)
        kept = Signal(16)
        m.d.comb += [
            last_group.eq(((tile.rows + (lanes - 1)) >> lane_bits) - 1),
            last_columns.eq(((tile.columns + (lanes - 1)) >> lane_bits) - 1),
        ]
        m.d.sync += kept.eq((tile.rows * tile.bp_n) >> tile.bp_log2_m)
        starting: Value = start
        addresses = []
        for lane in range(lanes):
            # Lane l begins l cycles after lane 0 and reads bank (cycle - l) mod L.
            active = Signal(name=f"column_active_{lane}")
            bank = Signal(range(max(lanes, 2)), name=f"column_bank_{lane}")
            group = Signal(16, name=f"column_group_{lane}")
            column = Signal(16, name=f"column_{lane}")  # group of columns
            address = Signal(index_bits(depth), name=f"column_address_{lane}")
            own = Signal(16, name=f"column_own_{lane}")
            m.d.comb += own.eq((column << lane_bits) + lane)
            bottom = (bank == lanes - 1) & (group == last_group)
            with m.If(active):
                m.d.sync += bank.eq(Mux(bank == lanes - 1, 0, bank + 1))
                with m.If(bottom):
                    m.d.sync += [
                        group.eq(0),
                        column.eq(column + 1),
                        address.eq(((column + 1) << lane_bits) + lane),
                    ]
                    with m.If(column == last_columns):
                        m.d.sync += active.eq(0)
                with m.Elif(bank == lanes - 1):
                    m.d.sync += [group.eq(group + 1), address.eq(address + tile.columns)]
            with m.If(starting):
                m.d.sync += [
                    active.eq(1),
                    bank.eq(0),
                    group.eq(0),
                    column.eq(0),
                    address.eq(lane),
                ]
            addresses.append((active, bank, address))
            row = Signal(17, name=f"column_row_{lane}")
            m.d.comb += row.eq((group << lane_bits) + bank)
            read_bank = Signal.like(bank, name=f"column_read_bank_{lane}")
            shown = Signal(name=f"column_shown_{lane}")  # by the memory
            valid, value = (
                Signal(name=f"column_valid_{lane}"),
                Signal(16, name=f"column_value_{lane}"),
            )
            m.d.sync += [
                read_bank.eq(bank),
                shown.eq(active & (row < tile.rows) & (own < tile.columns)),
            ]
            domain = m.d.sync if config.fp.round_stages else m.d.comb
            domain += [
                valid.eq(shown),
                value.eq(Array(port.data for port in tiles)[read_bank]),
            ]
            sore = leaf(platform, self._sore_lane, "sore_lane")
            m.submodules[f"bp_sore_{lane}"] = sore.element
            m.submodules[f"bp_writer_{lane}"] = writer = CopyWriter(config)
            m.d.comb += [
                sore.valid.eq(valid),
                sore.value.eq(value),
                sore.n.eq(tile.bp_n),
                sore.log2_m.eq(tile.bp_log2_m),
                writer.start.eq(starting),
                writer.lines.eq((tile.columns + (lanes - 1 - lane)) >> lane_bits),
                writer.kept.eq(kept),
                writer.base.eq(tile.bp_base if lane else first_base),
                writer.stride.eq(tile.bp_stride),
                sore.clear.eq(starting),
            ]
            self._copy(m, "bp", lane, sore, writer)
            next_start = Signal(name=f"column_start_{lane}")
            m.d.sync += next_start.eq(starting)
            starting = next_start
        for number, port in enumerate(tiles):
            for active, bank, address in addresses:
                with m.If(active & (bank == number)):
                    m.d.comb += port.addr.eq(address + Mux(half, depth, 0))
