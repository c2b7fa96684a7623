"""The decoded form in which an FP16 operand lies in the on-chip buffers."""

from __future__ import annotations

import numpy as np
from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP16

OPERAND = data.StructLayout({"fraction": 10, "exponent": 6, "sign": 1})
"""An FP16 number without subnormals: 17 bits.

``exponent`` 0 is zero and 63 infinity (fraction 0) or NaN; any other is the number
``1.fraction * 2 ** (exponent - 25)``, so that a multiplier needs no leading-zero counter.
"""

OPERAND_BIAS = 25
OPERAND_SPECIAL = 63
OPERAND_ZERO = 0
OPERAND_NEGATIVE_ZERO = 1 << 16
_REBIAS = OPERAND_BIAS - FP16.bias


class OperandDecoder(wiring.Component):
    """Decode an FP16 number, in the same cycle.

    Members
    -------
    i : ``In(16)``
        FP16 bits.
    o : ``Out(OPERAND)``
    """

    def __init__(self) -> None:
        super().__init__({"i": In(16), "o": Out(OPERAND)})

    def elaborate(self, platform):
        m = Module()
        number = data.View(FP16.layout, self.i)
        m.d.comb += self.o.sign.eq(number.sign)
        with m.If(number.exponent == FP16.max_exponent):
            m.d.comb += [
                self.o.exponent.eq(OPERAND_SPECIAL),
                self.o.fraction.eq((number.mantissa != 0) << 9),
            ]
        with m.Elif(number.exponent != 0):
            m.d.comb += [
                self.o.exponent.eq(number.exponent + _REBIAS),
                self.o.fraction.eq(number.mantissa),
            ]
        with m.Else():
            # A subnormal: shift its leading one out.
            for leading in range(10):
                with m.If(number.mantissa[leading:] == 1):
                    m.d.comb += [
                        self.o.exponent.eq(leading + 1),
                        self.o.fraction.eq(number.mantissa << (10 - leading)),
                    ]
        return m


def operand_of(raw: np.ndarray) -> np.ndarray:
    """Return FP16 bits in decoded form, through the value of each number.

    Parameters
    ----------
    raw : ndarray of uint16

    Returns
    -------
    ndarray of uint32, of the same shape
    """
    raw = np.asarray(raw, np.uint16)
    sign = (raw >> 15).astype(np.uint32) << 16
    value = np.abs(raw.view(np.float16).astype(np.float64))
    # frexp gives a mantissa from 0.5 to 1: 1.fraction is twice that.
    mantissa, exponent = np.frexp(np.where(np.isfinite(value), value, 1.0))
    fraction = (mantissa * 2048).astype(np.uint32) & 1023
    finite = (exponent + (OPERAND_BIAS - 1)).astype(np.uint32) << 10 | fraction
    finite = np.where(value == 0, 0, finite)
    special = np.where(np.isnan(value), 0x200, 0) | OPERAND_SPECIAL << 10
    return (np.where(np.isfinite(value), finite, special) | sign).astype(np.uint32)
