"""Conversions between FP16 and FP32."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP16, FP32
from sat.rtl.fp.operand import OPERAND_BIAS, OPERAND_SPECIAL, OperandDecoder
from sat.rtl.fp.rounding import rounds_up
from sat.rtl.fp.shift import shift_right_sticky


class Fp32ToFp16(wiring.Component):
    """Round an FP32 number to FP16.

    To nearest even; too large becomes infinity; subnormals are kept; NaN is the canonical one.

    Parameters
    ----------
    stages : int
        Registers, 0 or 1: it stands between the shift to FP16's exponents and the rounding.

    Members
    -------
    i : ``In(32)``
    enable : ``In(1)``
        The register takes the number of this cycle.
    o, zero : ``Out(16)``, ``Out(1)``
        In the same cycle; with a register, in those after ``enable``. ``zero``: it is +0 or -0,
        known before the rounding.
    """

    def __init__(self, stages: int = 0) -> None:
        if stages not in (0, 1):
            raise ValueError(f"stages={stages}: must be 0 or 1")
        self.stages = stages
        super().__init__({"i": In(32), "enable": In(1, init=1), "o": Out(16), "zero": Out(1)})

    def elaborate(self, platform):
        m = Module()
        number = data.View(FP32.layout, self.i)
        # Below this field a number is subnormal in FP16: its mantissa goes further right.
        smallest = FP32.bias - FP16.bias + 1
        mantissa = Signal(24)
        field = Signal(6)
        right = Signal(range(14))
        m.d.comb += mantissa.eq(Cat(number.mantissa, number.exponent != 0))
        with m.If(number.exponent < smallest):
            with m.If(number.exponent < smallest - 12):
                m.d.comb += right.eq(13)
            with m.Else():
                # 1 to 12: four bits say it all, without a carry.
                m.d.comb += right.eq((smallest - number.exponent[:4])[:4])
        with m.Else():
            # Four bits of what is subtracted are 0.
            low, high = number.exponent[:4], number.exponent[4:6]
            m.d.comb += field.eq(Cat(low, (high - ((smallest - 1) >> 4))[:2]))
        # 11 bits of mantissa stay, 13 go: a guard bit and those behind it.
        shifted = shift_right_sticky(m, mantissa, right, "shifted")
        kept, guard, rest = Signal(10), Signal(), Signal()
        sign, nan, large = Signal(), Signal(), Signal()
        m.d.comb += [
            kept.eq(shifted[13:]),
            guard.eq(shifted[12]),
            rest.eq(shifted[:12] != 0),
            sign.eq(number.sign),
            nan.eq((number.exponent == FP32.max_exponent) & (number.mantissa != 0)),
            large.eq(number.exponent >= smallest + 30),
        ]

        def stage(signal: Signal, name: str) -> Signal:
            if self.stages == 0:
                return signal
            register = Signal(len(signal), name=f"{name}_shifted", reset_less=True)
            with m.If(self.enable):
                m.d.sync += register.eq(signal)
            return register

        field, kept, guard, rest, sign, nan, large = (
            stage(signal, name)
            for signal, name in (
                (field, "field"),
                (kept, "kept"),
                (guard, "guard"),
                (rest, "rest"),
                (sign, "sign"),
                (nan, "nan"),
                (large, "large"),
            )
        )
        rounded = Signal(17)
        m.d.comb += rounded.eq(Cat(kept, field) + rounds_up(kept[0], guard, rest))
        m.d.comb += self.zero.eq(~large & (field == 0) & (kept == 0) & ~(guard & rest))
        with m.If(nan):
            m.d.comb += self.o.eq(FP16.canonical_nan)
        with m.Elif(large | (rounded >= FP16.infinity)):
            m.d.comb += self.o.eq(Cat(C(FP16.infinity, 15), sign))
        with m.Else():
            m.d.comb += self.o.eq(Cat(rounded[:15], sign))
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
