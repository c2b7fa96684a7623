"""The FP32 adder."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP32
from sat.rtl.fp.rounding import rounds_up
from sat.rtl.fp.shift import shift_right_sticky
from sat.rtl.fp.steps import pass_on

_STEPS = ("swap", "distance", "align", "add", "count", "normalise", "round")

# After which steps a register stands; one more is always at the output. The cuts halve the
# longest run of steps that is left.
_CUTS: dict[int, tuple[str, ...]] = {
    1: (),
    2: ("add",),
    3: ("align", "count"),
    4: ("align", "add", "normalise"),
    5: ("swap", "align", "add", "normalise"),
    6: ("swap", "align", "add", "count", "normalise"),
    7: ("swap", "align", "add", "count", "normalise", "round"),
    8: _STEPS,
}


class Adder(wiring.Component):
    """Add two FP32 numbers: round to nearest even, subnormals exact, one canonical NaN.

    A new pair of numbers may come in every cycle.

    ============================= ===========================================
    a NaN, or infinity - infinity  the canonical NaN
    infinity + other               that infinity
    x + -x                         +0
    -0 + -0                        -0
    x + -0                         x, for every x: what idle slots rely on
    ============================= ===========================================

    Steps: *swap* puts the larger magnitude first; *distance* is the difference of the exponents;
    *align* shifts the smaller by it, keeping guard, round and sticky bits; *add* adds or subtracts;
    *count* finds the leading one; *normalise* shifts it to its place, no further than a
    subnormal's; *round* adds one in the last place, whose carry may run into the exponent; the rest
    packs the result.

    Which summand is larger and whether to subtract are as good as random, so both choices are
    made with exclusive-ors, not multiplexers: the processor that simulates them would guess
    wrong half of the time. The leading one is mostly near the top, so it is looked for from
    there. In Verilator this takes about half the time of multiplexers and a search by halves;
    Yosys for ECP5 gives 8 % fewer LUTs and 20 % fewer carry cells.

    Parameters
    ----------
    stages : int
        Registers, 1 to 8.

    Members
    -------
    a, b : ``In(32)``
    total : ``Out(32)``
        `latency` cycles later.
    """

    def __init__(self, stages: int = 4):
        if stages not in _CUTS:
            raise ValueError(f"stages={stages}: must be 1 to 8")
        self.stages = stages
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    @property
    def latency(self) -> int:
        """Cycles from summands to sum."""
        return self.stages

    def elaborate(self, platform):
        m = Module()

        def after(step: str, **values: Signal) -> list[Signal]:
            assert step in _STEPS
            return pass_on(m, _CUTS[self.stages], step, **values)

        # swap
        b_is_larger = Signal()
        difference, large, small = Signal(32), Signal(32), Signal(32)
        m.d.comb += [
            b_is_larger.eq(self.a[:31] < self.b[:31]),
            difference.eq((self.a ^ self.b) & b_is_larger.replicate(32)),
            large.eq(self.a ^ difference),
            small.eq(self.b ^ difference),
        ]
        large, small = after("swap", large=large, small=small)

        # distance, and 24 bits of mantissa, then guard, round and sticky.
        large_field, small_field = large[23:31], small[23:31]
        normal, small_normal = large_field != 0, small_field != 0
        exponent, small_exponent = Signal(8), Signal(8)
        distance = Signal(8)
        reach = Signal(5)
        mantissa, whole = Signal(27), Signal(27)
        subtract, sign, nan, infinite, zero_sign = (Signal() for _ in range(5))
        m.d.comb += [
            # Subnormals have the exponent of the smallest normal numbers.
            exponent.eq(large_field | ~normal),
            small_exponent.eq(small_field | ~small_normal),
            distance.eq(exponent - small_exponent),
            # Far enough for all bits to leave, if further than five bits can say.
            reach.eq(distance[:5] | distance[5:].any().replicate(5)),
            mantissa.eq(Cat(C(0, 3), large[:23], normal)),
            whole.eq(Cat(C(0, 3), small[:23], small_normal)),
            subtract.eq(large[31] ^ small[31]),
            sign.eq(large[31]),
            # A NaN is larger than infinity: if there is one, then `large` is one.
            nan.eq((large[:31] > FP32.infinity) | ((small[:31] == FP32.infinity) & subtract)),
            infinite.eq(large_field == FP32.max_exponent),
            # A sum of exactly zero: negative only if both summands are.
            zero_sign.eq(large[31] & small[31]),
        ]
        exponent, reach, mantissa, whole, subtract, sign, nan, infinite, zero_sign = after(
            "distance",
            exponent=exponent,
            reach=reach,
            mantissa=mantissa,
            whole=whole,
            subtract=subtract,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # align; what is subtracted is inverted here, in the LUTs of the shifter's last level: those
        # of the carry chain have no room for it.
        aligned = shift_right_sticky(m, whole, reach, "aligned")
        addend = Signal(28)
        m.d.comb += addend.eq(Cat(aligned, C(0, 1)) ^ subtract.replicate(28))
        exponent, mantissa, addend, subtract, sign, nan, infinite, zero_sign = after(
            "align",
            exponent=exponent,
            mantissa=mantissa,
            addend=addend,
            subtract=subtract,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # add
        total = Signal(28)
        m.d.comb += total.eq(mantissa + addend + subtract)
        total, exponent, sign, nan, infinite, zero_sign = after(
            "add",
            total=total,
            exponent=exponent,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # count: zeros above the leading one.
        zeros = Signal(5)
        with m.If(total[27]):
            m.d.comb += zeros.eq(0)
        for count in range(1, 28):
            with m.Elif(total[27 - count]):
                m.d.comb += zeros.eq(count)
        with m.Else():
            m.d.comb += zeros.eq(28)
        total, zeros, exponent, sign, nan, infinite, zero_sign = after(
            "count",
            total=total,
            zeros=zeros,
            exponent=exponent,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # normalise: bit 27 is where a carry goes, one place above that of the larger summand, so
        # a shift by the exponent leaves a subnormal in its place.
        up = Signal(5)
        lifted = Signal(28)
        normalised = Signal(27)
        field = Signal(8)
        result_sign = Signal()
        m.d.comb += [
            up.eq(Mux(zeros > exponent, exponent, zeros)),
            lifted.eq(total << up),
            normalised.eq(lifted[1:] | lifted[0]),
            field.eq(Mux(lifted[27], exponent + 1 - up, 0)),
            result_sign.eq(~nan & Mux((total == 0) & ~infinite, zero_sign, sign)),
        ]
        normalised, field, sign, nan, infinite = after(
            "normalise",
            normalised=normalised,
            field=field,
            sign=result_sign,
            nan=nan,
            infinite=infinite,
        )

        # round: the mantissa's carry runs into the exponent field, where it belongs.
        rounded = Signal(31)
        m.d.comb += rounded.eq(
            Cat(normalised[3:26], field)
            + rounds_up(normalised[3], normalised[2], normalised[:2] != 0)
        )
        rounded, sign, nan, infinite = after(
            "round", rounded=rounded, sign=sign, nan=nan, infinite=infinite
        )

        # A NaN is an infinity with the top bit of its mantissa set.
        special = Cat(C(0, FP32.mantissa_bits - 1), nan, C(FP32.max_exponent, FP32.exponent_bits))
        overflow = rounded[FP32.mantissa_bits :] == FP32.max_exponent
        result = Signal(32, reset_less=True)
        m.d.sync += result.eq(Cat(Mux(infinite | overflow, special, rounded), sign))
        m.d.comb += self.total.eq(result)
        return m
