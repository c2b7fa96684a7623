"""The FP32 multiplier of the weight update."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP32
from sat.rtl.fp.rounding import rounds_up
from sat.rtl.fp.shift import leading_zeros, shift_right_sticky

LATENCY = 3
"""Cycles from factors to product."""


class Multiplier32(wiring.Component):
    """Multiply two FP32 numbers: round to nearest even, subnormals exact, one canonical NaN.

    A new pair may come in every cycle; the product is there `LATENCY` cycles later.

    Steps: the integer product of the mantissas; a shift that puts its leading one to the top, or
    no further than a subnormal's place (to the right where the exponents are too small for even
    that, keeping a sticky bit); rounding, whose carry runs into the exponent field.

    Members
    -------
    a, b : ``In(32)``
    product : ``Out(32)``
    """

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "product": Out(32)})

    @property
    def latency(self) -> int:
        """Cycles from factors to product."""
        return LATENCY

    def elaborate(self, platform):
        m = Module()
        a, b = data.View(FP32.layout, self.a), data.View(FP32.layout, self.b)
        normal_a, normal_b = a.exponent != 0, b.exponent != 0
        special_a = a.exponent == FP32.max_exponent
        special_b = b.exponent == FP32.max_exponent
        zero_a, zero_b = self.a[:31] == 0, self.b[:31] == 0
        nan_a, nan_b = special_a & (a.mantissa != 0), special_b & (b.mantissa != 0)

        # The mantissas' product, and the exponent field that bit 46 of it would have.
        integer = Signal(48, reset_less=True)
        exponent = Signal(signed(10), reset_less=True)
        sign, nan, infinite = (Signal(name=n, reset_less=True) for n in ("sign", "nan", "infinite"))
        m.d.sync += [
            integer.eq(Cat(a.mantissa, normal_a) * Cat(b.mantissa, normal_b)),
            # Subnormals have the exponent of the smallest normal numbers.
            exponent.eq((a.exponent | ~normal_a) + (b.exponent | ~normal_b) - FP32.bias),
            sign.eq(a.sign ^ b.sign),
            nan.eq(nan_a | nan_b | (special_a & zero_b) | (zero_a & special_b)),
            infinite.eq(special_a | special_b),
        ]

        # Put the leading one to bit 47, as far as the exponent goes.
        zeros = leading_zeros(m, integer, "zeros")
        up, down = Signal(6), Signal(6)
        lifted = Signal(48)
        with m.If(exponent < 0):
            m.d.comb += down.eq(Mux(exponent < -48, 48, -exponent))
        with m.Else():
            m.d.comb += up.eq(Mux(zeros > exponent, exponent, zeros))
        m.d.comb += lifted.eq(integer << up)
        lowered = shift_right_sticky(m, integer, down, "lowered")
        shifted = Signal(48, reset_less=True)
        field = Signal(9, reset_less=True)
        late = [Signal(name=f"{s.name}_2", reset_less=True) for s in (sign, nan, infinite)]
        m.d.sync += [
            shifted.eq(Mux(exponent < 0, lowered, lifted)),
            field.eq(Mux((exponent >= 0) & lifted[47], exponent + 1 - up, 0)),
            *(new.eq(old) for new, old in zip(late, (sign, nan, infinite), strict=True)),
        ]
        sign, nan, infinite = late

        rounded = Signal(33)
        m.d.comb += rounded.eq(
            Cat(shifted[24:47], field) + rounds_up(shifted[24], shifted[23], shifted[:23] != 0)
        )
        overflow = rounded >= FP32.infinity
        with m.If(nan):
            m.d.sync += self.product.eq(FP32.canonical_nan)
        with m.Elif(infinite | overflow):
            m.d.sync += self.product.eq(Cat(C(FP32.infinity, 31), sign))
        with m.Else():
            m.d.sync += self.product.eq(Cat(rounded[:31], sign))
        return m
