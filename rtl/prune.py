"""Pruning of transposed GATHERs: of every M positions of a channel the N largest go on."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import INDEX_BITS, INDICES_TOGETHER, SatConfig
from sat.rtl.layouts import index_groups, operand_groups
from sat.rtl.sore import SoreLane
from sat.rtl.spread import Place, Targets, all_by_place, dealt


class GatherPruner(wiring.Component):
    """A SORE lane for each column, of each group of channels that are written together.

    Positions come one after another, all channels of one together, channel c to lane c: that is
    bank c mod C. Lanes see the same positions and keep equally many of every M, so that they give
    their k-th values in the same cycle, all for the same place of what their banks hold of them.

    Timing. If a position that ends a group is complete in cycle t, the group's k-th kept values
    are given in cycle t + 1 + `FpTiming.sore_stages` + k. So the last of an instruction are given,
    ``done`` with them, `FpTiming.sore_stages` + N cycles after its last position; ``draining``
    until then. Indices are given by fours, with the last of four values or the last of all.

    Parameters
    ----------
    config : SatConfig
        With ``prune_gathers``.

    Members
    -------
    n, log2_m : ``In``
        The pattern; steady from an instruction's first position to ``done``.
    first : ``In``
        Number of the first channels' first element in their banks, a multiple of 4; steady
        likewise.
    lanes, elements : ``In``
        FP16 values that come in this cycle, and for which lanes.
    complete, last : ``In(1)``
        With them a position is complete; it is the instruction's last. Positions are whole groups.
    draining, done : ``Out(1)``
        See above. No element may come while ``draining``.
    valid, values, element : ``Out``
        Kept values of the lanes, and the first channels' number in their banks.
    index_valid, indices : ``Out``
        For each lane the indices from ``element`` - ``element`` mod 4 on; 0 behind ``element``.
    kept : ``Out``
        The lanes that have any.

    Source: Fang et al. 2023, SORE; pruning along positions in the load engine is this project's.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        element = range(config.b_words * config.max_m)
        lanes = config.b_groups * config.cols
        super().__init__(
            {
                "n": In(5),
                "log2_m": In(3),
                "first": In(element),
                "lanes": In(lanes),
                "elements": In(16).array(lanes),
                "complete": In(1),
                "last": In(1),
                "draining": Out(1),
                "done": Out(1),
                "valid": Out(1),
                "values": Out(16).array(lanes),
                "element": Out(element),
                "index_valid": Out(1),
                "indices": Out(16).array(lanes),
                "kept": Out(lanes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        stages = self.config.fp.sore_stages

        # A position enters the lanes in the cycle after it is complete. No lane is ever cleared:
        # positions come in whole groups, and what an error cuts off ends in a reset.
        enters = Signal()
        m.d.sync += enters.eq(self.complete)
        drain = Signal(range(stages + self.config.max_m + 1))
        m.d.comb += [self.draining.eq(drain != 0), self.done.eq(drain == 1)]
        with m.If(self.complete & self.last):
            m.d.sync += drain.eq(stages + self.n)
        with m.Elif(self.draining):
            m.d.sync += drain.eq(drain - 1)
        m.d.sync += self.kept.eq(Mux(self.done, 0, self.kept | self.lanes))

        fresh = Signal(init=1)  # no position of the instruction is complete
        with m.If(self.complete & fresh):
            m.d.sync += [self.element.eq(self.first), fresh.eq(0)]
        with m.If(self.valid):
            m.d.sync += self.element.eq(self.element + 1)
        with m.If(self.done):
            m.d.sync += fresh.eq(1)
        place = self.element[: (INDICES_TOGETHER - 1).bit_length()]
        m.d.comb += self.index_valid.eq(self.valid & ((place == INDICES_TOGETHER - 1) | self.done))

        for number in range(len(self.lanes)):
            m.submodules[f"lane_{number}"] = lane = SoreLane(self.config.max_m, stages)
            element = Signal(16, name=f"element_{number}", reset_less=True)
            with m.If(self.lanes[number]):
                m.d.sync += element.eq(self.elements[number])
            m.d.comb += [
                lane.n.eq(self.n),
                lane.log2_m.eq(self.log2_m),
                lane.valid.eq(enters),
                lane.value.eq(element),
                self.values[number].eq(lane.out_value),
            ]
            if number == 0:
                m.d.comb += self.valid.eq(lane.out_valid)
            for n in range(INDICES_TOGETHER):
                index = Signal(INDEX_BITS, name=f"index_{number}_{n}", reset_less=True)
                with m.If(self.valid & (place == n)):
                    m.d.sync += index.eq(lane.out_index)
                m.d.comb += (
                    self.indices[number]
                    .word_select(n, INDEX_BITS)
                    .eq(Mux(place == n, lane.out_index, Mux(place > n, index, 0)))
                )
        return m


def kept(
    m: Module, config: SatConfig, pruner: GatherPruner, stride: Value
) -> list[tuple[list[Value], Place]]:
    """Return what a pruner gives as elements of a beat, and where it goes: values, then indices.

    Values are by the places of their groups of channels, ``stride`` words apart; indices are dealt,
    too.
    """
    found = []
    for given, groups, unit in (
        (pruner.values, operand_groups(config, config.cols), 1),
        (pruner.indices, index_groups(config), INDICES_TOGETHER),
    ):
        place = Place.of_lane(config, pruner.kept, pruner.element // unit, stride // unit)
        none = [Const(0, 16)] * (config.axi.beat_bytes // 2 - len(given))
        elements = [*all_by_place(m, given, groups, place.address), *none]
        if given is pruner.indices:
            targets = Targets(groups, config.cols, place)
            elements = dealt(m, config, elements, Const(0), [(Const(1), targets)])
        found.append((elements, place))
    return found
