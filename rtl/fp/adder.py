"""The FP32 adder."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.fp.formats import FP32
from sat.rtl.fp.rounding import rounds_up

_STEPS = ("swap", "align", "add", "count", "normalise", "round")

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

    Steps: *swap* puts the larger magnitude first; *align* shifts the smaller by the difference
    of the exponents, keeping guard, round and sticky bits; *add* adds or subtracts; *count* finds
    the leading one; *normalise* shifts it to its place, no further than a subnormal's; *round*
    adds one in the last place, whose carry may run into the exponent; the rest packs the result.

    Parameters
    ----------
    stages : int
        Registers, 1 to 7.

    Members
    -------
    a, b : ``In(32)``
    total : ``Out(32)``
        `latency` cycles later.
    """

    def __init__(self, stages: int = 4):
        if stages not in _CUTS:
            raise ValueError(f"stages={stages}: must be 1 to 7")
        self.stages = stages
        super().__init__({"a": In(32), "b": In(32), "total": Out(32)})

    @property
    def latency(self) -> int:
        """Cycles from summands to sum."""
        return self.stages

    def elaborate(self, platform):
        m = Module()
        cuts = _CUTS[self.stages]

        def after(step: str, **values: Signal) -> list[Signal]:
            """Return what goes on to the next step, through registers if one stands here."""
            assert step in _STEPS
            if step not in cuts:
                return list(values.values())
            registers = []
            for name, value in values.items():
                register = Signal(len(value), name=f"{step}_{name}", reset_less=True)
                m.d.sync += register.eq(value)
                registers.append(register)
            return registers

        # swap
        large, small = Signal(32), Signal(32)
        with m.If(self.a[:31] < self.b[:31]):
            m.d.comb += [large.eq(self.b), small.eq(self.a)]
        with m.Else():
            m.d.comb += [large.eq(self.a), small.eq(self.b)]
        large, small = after("swap", large=large, small=small)

        # align: 24 bits of mantissa, then guard, round and sticky.
        large_field, small_field = large[23:31], small[23:31]
        normal, small_normal = large_field != 0, small_field != 0
        exponent, small_exponent = Signal(8), Signal(8)
        distance = Signal(8)
        reach = Signal(5)
        mantissa, whole, shifted, aligned = (Signal(27) for _ in range(4))
        sticky = Signal()
        subtract, sign, nan, infinite, zero_sign = (Signal() for _ in range(5))
        both_special = (large_field == 255) & (small_field == 255)
        m.d.comb += [
            # Subnormals have the exponent of the smallest normal numbers.
            exponent.eq(large_field | ~normal),
            small_exponent.eq(small_field | ~small_normal),
            distance.eq(exponent - small_exponent),
            reach.eq(Mux(distance > 27, 27, distance)),
            mantissa.eq(Cat(C(0, 3), large[:23], normal)),
            whole.eq(Cat(C(0, 3), small[:23], small_normal)),
            shifted.eq(whole >> reach),
            sticky.eq((shifted << reach)[:27] != whole),
            aligned.eq(shifted | sticky),
            subtract.eq(large[31] ^ small[31]),
            sign.eq(large[31]),
            nan.eq(
                ((large_field == 255) & (large[:23] != 0))
                | ((small_field == 255) & (small[:23] != 0))
                | (both_special & subtract)
            ),
            infinite.eq(large_field == 255),
            # A sum of exactly zero: negative only if both summands are.
            zero_sign.eq(large[31] & small[31]),
        ]
        exponent, mantissa, aligned, subtract, sign, nan, infinite, zero_sign = after(
            "align",
            exponent=exponent,
            mantissa=mantissa,
            aligned=aligned,
            subtract=subtract,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # add
        total = Signal(28)
        with m.If(subtract):
            m.d.comb += total.eq(mantissa - aligned)
        with m.Else():
            m.d.comb += total.eq(mantissa + aligned)
        total, exponent, sign, nan, infinite, zero_sign = after(
            "add",
            total=total,
            exponent=exponent,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # count: zeros above the leading one, by halves.
        zeros = Signal(5)
        rest: Value = Cat(C(0b11111, 5), total[:27])
        found: list[Value] = []
        for half in (16, 8, 4, 2, 1):
            upper = rest[half:]
            empty = Signal(name=f"empty_{half}")
            narrowed = Signal(half, name=f"rest_{half}")
            m.d.comb += [empty.eq(upper == 0), narrowed.eq(Mux(empty, rest[:half], upper))]
            found.insert(0, empty)
            rest = narrowed
        m.d.comb += zeros.eq(Cat(found))
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

        # normalise
        up = Signal(5)
        normalised = Signal(27)
        field = Signal(8)
        is_zero = Signal()
        with m.If(total[27]):
            m.d.comb += [normalised.eq(total[1:] | total[0]), field.eq(exponent + 1)]
        with m.Else():
            m.d.comb += [
                up.eq(Mux(zeros < exponent, zeros, exponent - 1)),
                normalised.eq(total << up),
                field.eq(Mux(normalised[26], exponent - up, 0)),
            ]
        m.d.comb += is_zero.eq(total == 0)
        normalised, field, is_zero, sign, nan, infinite, zero_sign = after(
            "normalise",
            normalised=normalised,
            field=field,
            is_zero=is_zero,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        # round: the mantissa's carry runs into the exponent field, where it belongs.
        rounded = Signal(31)
        m.d.comb += rounded.eq(
            Cat(normalised[3:26], field)
            + rounds_up(normalised[3], normalised[2], normalised[:2] != 0)
        )
        rounded, is_zero, sign, nan, infinite, zero_sign = after(
            "round",
            rounded=rounded,
            is_zero=is_zero,
            sign=sign,
            nan=nan,
            infinite=infinite,
            zero_sign=zero_sign,
        )

        with m.If(nan):
            m.d.sync += self.total.eq(FP32.canonical_nan)
        with m.Elif(is_zero & ~infinite):
            m.d.sync += self.total.eq(Cat(C(0, 31), zero_sign))
        with m.Elif(infinite | (rounded[23:] == FP32.max_exponent)):
            m.d.sync += self.total.eq(Cat(C(FP32.infinity, 31), sign))
        with m.Else():
            m.d.sync += self.total.eq(Cat(rounded, sign))
        return m
