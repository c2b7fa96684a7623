"""Conversions between FP16 and FP32."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP16, FP32
from sat.rtl.fp.operand import OPERAND_BIAS, OPERAND_SPECIAL, OperandDecoder
from sat.rtl.fp.rounding import rounds_up


class Fp32ToFp16(wiring.Component):
    """Round an FP32 number to FP16, in the same cycle.

    To nearest even; too large becomes infinity; subnormals are kept; NaN is the canonical one.

    Members
    -------
    i : ``In(32)``
    o : ``Out(16)``
    """

    def __init__(self) -> None:
        super().__init__({"i": In(32), "o": Out(16)})

    def elaborate(self, platform):
        m = Module()
        number = data.View(FP32.layout, self.i)
        # Below this field a number is subnormal in FP16: its mantissa goes further right.
        smallest = FP32.bias - FP16.bias + 1
        mantissa = Signal(24)
        field = Signal(6)
        right = Signal(5)
        kept = Signal(24)
        lost = Signal()
        m.d.comb += mantissa.eq(Cat(number.mantissa, number.exponent != 0))
        with m.If(number.exponent < smallest):
            with m.If(number.exponent < smallest - 12):
                m.d.comb += right.eq(13)
            with m.Else():
                m.d.comb += right.eq(smallest - number.exponent)
        with m.Else():
            m.d.comb += field.eq(number.exponent - (smallest - 1))
        m.d.comb += [
            kept.eq(mantissa >> right),
            lost.eq((kept << right)[:24] != mantissa),
        ]
        # 11 bits of mantissa stay, 13 go: a guard bit and those behind it.
        rounded = Signal(17)
        m.d.comb += rounded.eq(
            Cat(kept[13:23], field) + rounds_up(kept[13], kept[12], (kept[:12] != 0) | lost)
        )
        too_large = (number.exponent >= smallest + 30) | (rounded >= FP16.infinity)
        with m.If((number.exponent == FP32.max_exponent) & (number.mantissa != 0)):
            m.d.comb += self.o.eq(FP16.canonical_nan)
        with m.Elif(too_large):
            m.d.comb += self.o.eq(Cat(C(FP16.infinity, 15), number.sign))
        with m.Else():
            m.d.comb += self.o.eq(Cat(rounded[:15], number.sign))
        return m


class Fp16ToFp32(wiring.Component):
    """Widen an FP16 number to FP32, exactly, in the same cycle; NaN is the canonical one.

    Members
    -------
    i : ``In(16)``
    o : ``Out(32)``
    """

    def __init__(self) -> None:
        super().__init__({"i": In(16), "o": Out(32)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.decoder = decoder = OperandDecoder()
        operand = decoder.o
        m.d.comb += decoder.i.eq(self.i)
        with m.If(operand.exponent == 0):
            m.d.comb += self.o.eq(Cat(C(0, 31), operand.sign))
        with m.Elif(operand.exponent != OPERAND_SPECIAL):
            exponent = (operand.exponent + (FP32.bias - OPERAND_BIAS))[:8]
            m.d.comb += self.o.eq(Cat(C(0, 13), operand.fraction, exponent, operand.sign))
        with m.Elif(operand.fraction != 0):
            m.d.comb += self.o.eq(FP32.canonical_nan)
        with m.Else():
            m.d.comb += self.o.eq(Cat(C(FP32.infinity, 31), operand.sign))
        return m
