"""The exact FP16 multiplier."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP32
from sat.rtl.fp.operand import OPERAND, OPERAND_BIAS, OPERAND_SPECIAL


class Multiplier(wiring.Component):
    """Multiply two FP16 numbers, in decoded form, to an FP32 number, exactly.

    The product of two 11-bit mantissas has 22 bits and its exponent lies in -48 … 31, so every
    finite product is a normal FP32 number or zero: there is nothing to round.

    ============================= ================================
    a NaN, or zero times infinity the canonical NaN
    infinity times other          infinity with the product's sign
    zero times finite             zero with the product's sign
    ============================= ================================

    Parameters
    ----------
    stages : int
        Registers, 0 to 3: the first at the output, the second behind the integer product, the
        third at the inputs.

    Members
    -------
    a, b : ``In(OPERAND)``
    product : ``Out(32)``
        `latency` cycles later.
    """

    def __init__(self, stages: int = 1):
        if stages not in range(4):
            raise ValueError(f"stages={stages}: must be 0 to 3")
        self.stages = stages
        super().__init__({"a": In(OPERAND), "b": In(OPERAND), "product": Out(32)})

    @property
    def latency(self) -> int:
        """Cycles from operands to product."""
        return self.stages

    def elaborate(self, platform):
        m = Module()

        def stage(when: bool, signal: Signal, name: str) -> Signal:
            if not when:
                return signal
            register = Signal(signal.shape(), name=name, reset_less=True)
            m.d.sync += register.eq(signal)
            return register

        a = stage(self.stages == 3, self.a, "a_in")
        b = stage(self.stages == 3, self.b, "b_in")

        integer = Signal(22)
        exponent = Signal(9)
        sign, nan, infinite, zero = Signal(), Signal(), Signal(), Signal()
        special_a, special_b = a.exponent == OPERAND_SPECIAL, b.exponent == OPERAND_SPECIAL
        zero_a, zero_b = a.exponent == 0, b.exponent == 0
        nan_a, nan_b = special_a & (a.fraction != 0), special_b & (b.fraction != 0)
        m.d.comb += [
            integer.eq(Cat(a.fraction, C(1, 1)) * Cat(b.fraction, C(1, 1))),
            exponent.eq(a.exponent + b.exponent + (FP32.bias - 2 * OPERAND_BIAS)),
            sign.eq(a.sign ^ b.sign),
            nan.eq(nan_a | nan_b | (special_a & zero_b) | (zero_a & special_b)),
            infinite.eq(special_a | special_b),
            zero.eq(zero_a | zero_b),
        ]
        middle = self.stages >= 2
        integer = stage(middle, integer, "p_integer")
        exponent = stage(middle, exponent, "p_exponent")
        sign = stage(middle, sign, "p_sign")
        nan = stage(middle, nan, "p_nan")
        infinite = stage(middle, infinite, "p_infinite")
        zero = stage(middle, zero, "p_zero")

        # The product of two mantissas lies in 1 … 4, as good as equally often below and above 2:
        # a shift by one bit, because a simulator's processor would guess a multiplexer wrong.
        carry = integer[21]
        shifted, mantissa, field = Signal(22), Signal(23), Signal(8)
        m.d.comb += [
            shifted.eq(integer << ~carry),
            mantissa.eq(Cat(C(0, 2), shifted[:21])),
            field.eq(exponent + carry),
        ]
        product = Signal(32)
        with m.If(nan):
            m.d.comb += product.eq(FP32.canonical_nan)
        with m.Elif(infinite):
            m.d.comb += product.eq(Cat(C(FP32.infinity, 31), sign))
        with m.Elif(zero):
            m.d.comb += product.eq(Cat(C(0, 31), sign))
        with m.Else():
            m.d.comb += product.eq(Cat(mantissa, field, sign))
        m.d.comb += self.product.eq(stage(self.stages >= 1, product, "product_out"))
        return m
