"""The FP32 multiplier of the weight update."""

from __future__ import annotations

from functools import partial

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP32
from sat.rtl.fp.rounding import rounds_up
from sat.rtl.fp.shift import leading_zeros, shift_right_sticky
from sat.rtl.fp.steps import pass_on

# After which steps a register stands; one more is always at the output.
_CUTS: dict[int, tuple[str, ...]] = {
    3: ("product", "shift"),
    4: ("product", "count", "shift"),
    5: ("parts", "product", "count", "shift"),
}


class Multiplier32(wiring.Component):
    """Multiply two FP32 numbers: round to nearest even, subnormals exact, one canonical NaN.

    A new pair may come in every cycle.

    Steps: *parts* and *product* make the integer product of the mantissas, from the products of
    their halves if a register stands between; *count* finds its leading one, and how far that
    may go: to the top, or no further than a subnormal's place (to the right where the exponents
    are too small for even that); *shift* brings it there, keeping a sticky bit; rounding, whose
    carry runs into the exponent field.

    Parameters
    ----------
    stages : int
        Registers, 3 to 5.

    Members
    -------
    a, b : ``In(32)``
    product : ``Out(32)``
        `latency` cycles later.
    """

    def __init__(self, stages: int = 3) -> None:
        if stages not in _CUTS:
            raise ValueError(f"stages={stages}: must be 3 to 5")
        self.stages = stages
        super().__init__({"a": In(32), "b": In(32), "product": Out(32)})

    @property
    def latency(self) -> int:
        """Cycles from factors to product."""
        return self.stages

    def elaborate(self, platform):
        m = Module()
        cuts = _CUTS[self.stages]
        after = partial(pass_on, m, cuts)

        a, b = data.View(FP32.layout, self.a), data.View(FP32.layout, self.b)
        normal_a, normal_b = a.exponent != 0, b.exponent != 0
        special_a = a.exponent == FP32.max_exponent
        special_b = b.exponent == FP32.max_exponent
        zero_a, zero_b = self.a[:31] == 0, self.b[:31] == 0
        nan_a, nan_b = special_a & (a.mantissa != 0), special_b & (b.mantissa != 0)

        # The mantissas' product, and the exponent field that bit 46 of it would have.
        factors = Cat(a.mantissa, normal_a), Cat(b.mantissa, normal_b)
        integer = Signal(48)
        exponent = Signal(signed(10))
        sign, nan, infinite = Signal(), Signal(), Signal()
        m.d.comb += [
            # Subnormals have the exponent of the smallest normal numbers.
            exponent.eq((a.exponent | ~normal_a) + (b.exponent | ~normal_b) - FP32.bias),
            sign.eq(a.sign ^ b.sign),
            nan.eq(nan_a | nan_b | (special_a & zero_b) | (zero_a & special_b)),
            infinite.eq(special_a | special_b),
        ]
        if "parts" in cuts:
            # Products of halves fit a multiplier of 18 bits each.
            (a_low, a_high), (b_low, b_high) = ((f[:12], f[12:]) for f in factors)
            low, high = Signal(24, reset_less=True), Signal(24, reset_less=True)
            across = [Signal(24, name=f"across_{n}", reset_less=True) for n in range(2)]
            m.d.sync += [
                low.eq(a_low * b_low),
                high.eq(a_high * b_high),
                across[0].eq(a_low * b_high),
                across[1].eq(a_high * b_low),
            ]
            m.d.comb += integer.eq(Cat(low, high) + ((across[0] + across[1]) << 12))
        else:
            m.d.comb += integer.eq(factors[0] * factors[1])
        exponent, sign, nan, infinite = after(
            "parts", exponent=exponent, sign=sign, nan=nan, infinite=infinite
        )
        integer, exponent, sign, nan, infinite = after(
            "product", integer=integer, exponent=exponent, sign=sign, nan=nan, infinite=infinite
        )

        # Put the leading one to bit 47, as far as the exponent goes.
        zeros = leading_zeros(m, integer, "zeros")
        up, down = Signal(6), Signal(6)
        with m.If(exponent < 0):
            m.d.comb += down.eq(Mux(exponent < -48, 48, -exponent))
        with m.Else():
            m.d.comb += up.eq(Mux(zeros > exponent, exponent, zeros))
        integer, exponent, up, down, sign, nan, infinite = after(
            "count",
            integer=integer,
            exponent=exponent,
            up=up,
            down=down,
            sign=sign,
            nan=nan,
            infinite=infinite,
        )
        lifted = Signal(48)
        m.d.comb += lifted.eq(integer << up)
        lowered = shift_right_sticky(m, integer, down, "lowered")
        shifted = Signal(48)
        field = Signal(9)
        m.d.comb += [
            shifted.eq(Mux(exponent < 0, lowered, lifted)),
            field.eq(Mux((exponent >= 0) & lifted[47], exponent + 1 - up, 0)),
        ]
        shifted, field, sign, nan, infinite = after(
            "shift", shifted=shifted, field=field, sign=sign, nan=nan, infinite=infinite
        )

        rounded = Signal(33)
        m.d.comb += rounded.eq(
            Cat(shifted[24:47], field) + rounds_up(shifted[24], shifted[23], shifted[:23] != 0)
        )
        overflow = rounded >= FP32.infinity
        product = Signal(32, reset_less=True)
        with m.If(nan):
            m.d.sync += product.eq(FP32.canonical_nan)
        with m.Elif(infinite | overflow):
            m.d.sync += product.eq(Cat(C(FP32.infinity, 31), sign))
        with m.Else():
            m.d.sync += product.eq(Cat(rounded[:31], sign))
        m.d.comb += self.product.eq(product)
        return m
