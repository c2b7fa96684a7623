"""The floating-point formats, defined once for hardware, golden model and tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from amaranth.lib import data


@dataclass(frozen=True)
class FloatFormat:
    """An IEEE 754 binary interchange format.

    Parameters
    ----------
    exponent_bits : int
        2 to 11.
    mantissa_bits : int
        1 to 52, the leading one not counted.

    Raises
    ------
    ValueError
        If a width is another: `decode` gives a Python float, which must hold every number.
    """

    exponent_bits: int
    mantissa_bits: int

    def __post_init__(self) -> None:
        for name, least, most in (("exponent_bits", 2, 11), ("mantissa_bits", 1, 52)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}={value}: must be {least} to {most}")

    @property
    def bits(self) -> int:
        """Width of a number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def layout(self) -> data.StructLayout:
        """The fields, mantissa in the low bits."""
        return data.StructLayout(
            {"mantissa": self.mantissa_bits, "exponent": self.exponent_bits, "sign": 1}
        )

    @property
    def bias(self) -> int:
        """What an exponent field is above the exponent."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """The exponent field of infinities and NaNs."""
        return (1 << self.exponent_bits) - 1

    @property
    def infinity(self) -> int:
        """Bits of +infinity."""
        return self.max_exponent << self.mantissa_bits

    @property
    def canonical_nan(self) -> int:
        """Bits of the one NaN that SAT gives."""
        return self.infinity | 1 << (self.mantissa_bits - 1)

    @property
    def max_finite(self) -> int:
        """Bits of the largest finite number."""
        return self.infinity - 1

    def decode(self, bits: int) -> float:
        """Return the number with these bits, exactly.

        Raises
        ------
        ValueError
            If they are more bits than the format has.
        """
        if not 0 <= bits < 1 << self.bits:
            raise ValueError(f"bits={bits:#x}: must be 0 to {(1 << self.bits) - 1:#x}")
        sign = -1.0 if bits >> (self.bits - 1) else 1.0
        exponent = bits >> self.mantissa_bits & self.max_exponent
        mantissa = bits & ((1 << self.mantissa_bits) - 1)
        if exponent == self.max_exponent:
            return math.nan if mantissa else sign * math.inf
        if exponent == 0:
            return sign * math.ldexp(mantissa, 1 - self.bias - self.mantissa_bits)
        mantissa |= 1 << self.mantissa_bits
        return sign * math.ldexp(mantissa, exponent - self.bias - self.mantissa_bits)

    def encode(self, number: float | int | Fraction, negative_zero: bool = False) -> int:
        """Return the bits nearest to a number: ties to even, overflow to infinity.

        Parameters
        ----------
        number : float, int or Fraction
            Rounded once, from its exact value.
        negative_zero : bool
            For an int or a Fraction of value 0: give -0.

        Raises
        ------
        TypeError
            If the number is of another type.
        """
        if isinstance(number, float):
            if math.isnan(number):
                return self.canonical_nan
            negative = math.copysign(1.0, number) < 0
            if math.isinf(number):
                return self.infinity | negative << (self.bits - 1)
            number = Fraction(number)
        elif not isinstance(number, int | Fraction):
            raise TypeError(
                f"number has type {type(number).__name__}: must be float, int or Fraction; "
                "an array's element gives its own with .item()"
            )
        else:
            negative = number < 0 or (number == 0 and negative_zero)
        sign = int(negative) << (self.bits - 1)
        size = abs(number)
        if size == 0:
            return sign
        # The exponent of the last place, no less than that of a subnormal.
        exponent = size.numerator.bit_length() - size.denominator.bit_length()
        if size < Fraction(2) ** exponent:
            exponent -= 1
        exponent = max(exponent, 1 - self.bias)
        whole = round(size / Fraction(2) ** (exponent - self.mantissa_bits))  # ties to even
        # A subnormal has exponent field 0; a carry out of the mantissa raises the field by 1.
        return sign | min(whole + ((exponent + self.bias - 1) << self.mantissa_bits), self.infinity)


FP16 = FloatFormat(exponent_bits=5, mantissa_bits=10)
FP32 = FloatFormat(exponent_bits=8, mantissa_bits=23)
