"""USPE: the unified sparse processing element, one multiply-accumulate of the array."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SatConfig
from sat.rtl.fp.adder import Adder
from sat.rtl.fp.multiplier import Multiplier
from sat.rtl.fp.operand import OPERAND, OPERAND_NEGATIVE_ZERO
from sat.rtl.layouts import OPERAND_BITS


def a_link_layout(config: SatConfig) -> data.StructLayout:
    """Return what travels west to east: a word of A and what to do with it."""
    return data.StructLayout(
        {
            "lanes": data.ArrayLayout(OPERAND_BITS, config.max_m),
            "valid": 1,  # 0: an idle slot, the sum in the ring stays as it is
            "first": 1,  # this product starts a sum
            "zero": 1,  # … from +0; else from what comes from the north
            "last": 1,  # this product ends a sum: send it south
            "weight": config.weight_bits,  # WS: which held weight to use
            "bank": 1,  # WS: which of the two sets of held weights to use
        }
    )


def b_link_layout(config: SatConfig) -> data.StructLayout:
    """Return what travels north to south: a value of B and, for WS, where to keep it."""
    return data.StructLayout(
        {
            "value": OPERAND,
            "index": config.lane_bits,  # the lane of the A word that it multiplies
            "real": 1,  # 0: padding, it must not change a sum
            "hold": 1,  # WS: keep it in the row where `row` is 0
            "row": config.row_bits,
            "weight": config.weight_bits,
            "bank": 1,
        }
    )


class Uspe(wiring.Component):
    """Multiply a selected lane of an A word by a value of B and add it to one of several sums.

    The FP32 adder needs several cycles, so ``interleave`` (s) independent sums take turns; the
    adder's pipeline, padded to s stages, is the ring that holds them. A sum's next product must
    meet it exactly s cycles after the last one. An idle slot adds -0, which changes no sum.

    Timing, counted from the cycle in which a word is on ``a_in``: it is at the adder's input
    `adder_delay` cycles later, and its sum is back there s cycles after that.

    Sums enter from the north (``psum_in``) in the cycle in which their first product is at the
    adder's input. They leave to the south (``psum_out``):

    * weight stationary, s * weights + 1 cycles later: straight from the ring;
    * output stationary, through a chain of s + 1 registers, which carries start values in and
      finished sums out. In back-to-back tiles a start value leaves its place in the chain in
      the very cycle in which a finished sum of the previous tile takes it.

    Parameters
    ----------
    config : SatConfig

    Members
    -------
    ws : ``In(1)``
        1: weight stationary. May change only while the array is empty.
    a_in, a_out : `a_link_layout`
        A words, passed on one cycle later.
    b_in, b_out : `b_link_layout`
        B values, passed on one cycle later.
    psum_in, psum_out : ``In(32)``, ``Out(32)``
        FP32 sums.

    Source: Fang et al. 2023 (the unified PE with selectable OS/WS interconnect and interleaved
    sums); the shared chain and the decoded operands are this project's.
    """

    def __init__(self, config: SatConfig):
        self.config = config
        a_link, b_link = a_link_layout(config), b_link_layout(config)
        super().__init__(
            {
                "ws": In(1),
                "a_in": In(a_link),
                "a_out": Out(a_link),
                "b_in": In(b_link),
                "b_out": Out(b_link),
                "psum_in": In(32),
                "psum_out": Out(32),
            }
        )

    @staticmethod
    def adder_delay(config: SatConfig) -> int:
        """Return the cycles from ``a_in`` to the adder's input."""
        # The link register, the selected-operand register, the multiplier.
        return 2 + config.fp.multiplier_stages

    def elaborate(self, platform):
        m = Module()
        config = self.config

        # s0: the links.
        s0_a = Signal(a_link_layout(config), reset_less=True)
        s0_b = Signal(b_link_layout(config), reset_less=True)
        m.d.sync += [s0_a.eq(self.a_in), s0_b.eq(self.b_in)]
        m.d.comb += [
            self.a_out.eq(s0_a),
            self.b_out.eq(s0_b),
            self.b_out.row.eq(s0_b.row - 1),
        ]

        # The held weights: two sets, so that the next pass loads while this one computes.
        kept = data.StructLayout({"value": OPERAND, "index": config.lane_bits, "real": 1})
        per_set = 1 << config.weight_bits
        m.submodules.weights = weights = memory.Memory(shape=kept, depth=2 * per_set, init=[])
        write = weights.write_port()
        read = weights.read_port(domain="comb")
        m.d.comb += [
            write.addr.eq(Cat(s0_b.weight, s0_b.bank)),
            write.data.value.eq(s0_b.value),
            write.data.index.eq(s0_b.index),
            write.data.real.eq(s0_b.real),
            write.en.eq(s0_b.hold & (s0_b.row == 0)),
            read.addr.eq(Cat(s0_a.weight, s0_a.bank)),
        ]

        # s1: the two operands. An idle slot multiplies -0 by +0.
        b = Signal(kept)
        with m.If(self.ws):
            m.d.comb += b.eq(read.data)
        with m.Else():
            m.d.comb += [b.value.eq(s0_b.value), b.index.eq(s0_b.index), b.real.eq(1)]
        s1_x = Signal(OPERAND_BITS, reset_less=True)
        s1_y = Signal(OPERAND_BITS, reset_less=True)
        s1_first = Signal()
        s1_zero = Signal()
        s1_last = Signal()
        with m.If(s0_a.valid & b.real):
            m.d.sync += [
                s1_x.eq(Array(s0_a.lanes[n] for n in range(config.max_m))[b.index]),
                s1_y.eq(b.value),
            ]
        with m.Else():
            m.d.sync += [s1_x.eq(OPERAND_NEGATIVE_ZERO), s1_y.eq(0)]
        m.d.sync += [
            s1_first.eq(s0_a.valid & s0_a.first),
            s1_zero.eq(s0_a.zero),
            s1_last.eq(s0_a.valid & s0_a.last),
        ]

        m.submodules.multiplier = multiplier = Multiplier(stages=config.fp.multiplier_stages)
        m.d.comb += [multiplier.a.eq(s1_x), multiplier.b.eq(s1_y)]
        first = _delay(m, s1_first, multiplier.latency, "first")
        zero = _delay(m, s1_zero, multiplier.latency, "zero")
        last = _delay(m, s1_last, multiplier.latency, "last")

        # The ring: the adder and what is missing to `interleave` stages.
        m.submodules.adder = adder = Adder(stages=config.fp.adder_stages)
        ring = _delay(m, adder.total, config.interleave - adder.latency, "ring")
        m.d.comb += [
            adder.a.eq(multiplier.product),
            adder.b.eq(Mux(first, Mux(zero, 0, self.psum_in), ring)),
        ]
        finished = _delay(m, last, config.interleave, "finished")

        enters = Signal(32)
        m.d.comb += enters.eq(Mux(finished, ring, self.psum_in))
        if getattr(platform, "distributed_ram", False):
            self._chain_of_memory(m, enters)
        else:
            self._chain_of_registers(m, enters)
        return m

    def _chain_of_memory(self, m: Module, enters: Value) -> None:
        """Send sums south as `_chain_of_registers` does, where LUTs are memories of 32 words.

        What a place of the memory gives is what it took when its turn came last. Weight
        stationary, it is always the same place's turn.
        """
        last = self.config.interleave
        m.submodules.chain = chain = memory.Memory(shape=32, depth=last + 1, init=[])
        write, read = chain.write_port(), chain.read_port(domain="comb")
        place = Signal(range(last + 1))
        with m.If(~self.ws):
            m.d.sync += place.eq(Mux(place == last, 0, place + 1))
        m.d.comb += [
            write.addr.eq(place),
            write.data.eq(enters),
            write.en.eq(1),
            read.addr.eq(place),
            self.psum_out.eq(read.data),
        ]

    def _chain_of_registers(self, m: Module, enters: Value) -> None:
        """Send sums south, a cycle later (WS) or `interleave` + 1."""
        # Which end of the chain goes south is chosen in front of the last register: `ws` is steady,
        # but what it drives is all over the array.
        chain_head, leaves = Signal(32, reset_less=True), Signal(32, reset_less=True)
        m.d.sync += chain_head.eq(enters)
        chain = _delay(m, chain_head, self.config.interleave - 1, "chain")
        m.d.sync += leaves.eq(Mux(self.ws, enters, chain))
        m.d.comb += self.psum_out.eq(leaves)


def _delay(m: Module, value: Value, cycles: int, name: str) -> Value:
    for i in range(cycles):
        # Sums need no reset: nothing reads them before a `first` has started one.
        stage = Signal(len(value), name=f"{name}_{i + 1}", reset_less=len(value) > 1)
        m.d.sync += stage.eq(value)
        value = stage
    return value
