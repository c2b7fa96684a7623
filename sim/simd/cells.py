"""Each kind of combinational cell as an expression over lanes.

Words of up to 32 bits are computed whole; bitwise cells and selections of any width piece by
piece. The meaning of widths and signs is Yosys': operands are extended to the width of the result
(of the wider operand for comparisons), with signs if both are signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sat.sim.simd.netlist import Bits, Cell
from sat.sim.simd.values import LANE_BITS, Cuts, Values, Variable, extended, literal, low

Assignment = tuple[Variable, str]
"""A variable and the C++ expression that it gets."""


@dataclass(frozen=True)
class _Translation:
    """A cell under translation."""

    cell: Cell
    values: Values
    cuts: Cuts
    name: str

    def bits(self, port: str) -> Bits:
        return self.cell.connections[port]

    def signed(self, *ports: str) -> int:
        return int(all(self.cell.parameters[f"{port}_SIGNED"] for port in ports))

    @property
    def y(self) -> Bits:
        return self.bits("Y")

    def narrow(self, width: int) -> None:
        """Refuse what does not fit a lane."""
        if width > LANE_BITS:
            raise self.cell.fail(f"it computes {width} bits, a lane has {LANE_BITS}")

    def word(self, port: str, width: int, signed: int) -> str:
        """Return an operand extended to a width that fits a lane."""
        self.narrow(width)
        return self.values.word(extended(self.bits(port), width, signed))

    def truth(self, port: str) -> str:
        """Return a mask: whether any bit of an operand is set."""
        bits = self.bits(port)
        if len(bits) == 1:
            return f"({self.values.mask(bits[0])})"
        parts = [bits[at : at + LANE_BITS] for at in range(0, len(bits), LANE_BITS)]
        return f"is_set({' | '.join(map(self.values.word, parts))}, {literal(low(LANE_BITS))})"

    def whole(self, text: str) -> list[Assignment]:
        """Assign a word, whose bits above the result's are cut off."""
        width = len(self.y)
        self.narrow(width)
        (variable,) = self.values.place(self.name, [self.y])
        if width == 1:
            return [(variable, f"is_set({text}, 1u)")]
        return [(variable, text if width == LANE_BITS else f"({text}) & {literal(low(width))}")]

    def flag(self, mask: str) -> list[Assignment]:
        """Assign a mask to the lowest bit; the others are 0."""
        for bit in self.y[1:]:
            self.values.alias(bit, "0")
        (variable,) = self.values.place(self.name, [self.y[:1]])
        return [(variable, mask)]

    def pieces(self) -> Iterator[tuple[Variable, slice]]:
        """Place the result in pieces; return each with its range of bits."""
        pieces = self.cuts.pieces(self.y)
        at = 0
        for variable in self.values.place(self.name, pieces):
            yield variable, slice(at, at + variable.width)
            at += variable.width

    def piece(self, bits: Bits, part: slice) -> str:
        """Return part of a value in the form of a variable of that width."""
        return in_form(self.values, bits[part])


def in_form(values: Values, bits: Bits) -> str:
    """Return bits as a variable keeps them: one bit as a mask, more as a word."""
    return values.mask(bits[0]) if len(bits) == 1 else values.word(bits)


def _bitwise(pattern: str, inverted: bool = False) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        ports = [port for port in ("A", "B") if port in t.cell.connections]
        signed = t.signed(*ports)
        operands = [extended(t.bits(port), len(t.y), signed) for port in ports]
        made = []
        for variable, part in t.pieces():
            text = pattern.format(*(f"({t.piece(bits, part)})" for bits in operands))
            if inverted and 1 < variable.width < LANE_BITS:
                text = f"({text}) & {literal(low(variable.width))}"
            made.append((variable, text))
        return made

    return rule


def _arithmetic(operator: str) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        width, signed = len(t.y), t.signed("A", "B")
        return t.whole(f"({t.word('A', width, signed)} {operator} {t.word('B', width, signed)})")

    return rule


def _negate(t: _Translation) -> list[Assignment]:
    return t.whole(f"V{{}} - {t.word('A', len(t.y), t.signed('A'))}")


def _equal(pattern: str) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        width = max(len(t.bits("A")), len(t.bits("B")))
        a, b = (extended(t.bits(port), width, t.signed("A", "B")) for port in "AB")
        same = []
        for at in range(0, width, LANE_BITS):
            left, right = a[at : at + LANE_BITS], b[at : at + LANE_BITS]
            if len(left) == 1:
                same.append(f"~(({t.values.mask(left[0])}) ^ ({t.values.mask(right[0])}))")
            else:
                same.append(f"(V)({t.values.word(left)} == {t.values.word(right)})")
        return t.flag(pattern.format(" & ".join(same)))

    return rule


def _order(operator: str) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        width, signed = max(len(t.bits("A")), len(t.bits("B"))), t.signed("A", "B")
        t.narrow(width)
        # A lane's own order is signed; numbers below 2^31 are the same in both.
        kind = "I" if signed or width < LANE_BITS else "V"
        a, b = (t.word(port, LANE_BITS if signed else width, signed) for port in "AB")
        return t.flag(f"(V)(({kind})({a}) {operator} ({kind})({b}))")

    return rule


def _reduce_and(t: _Translation) -> list[Assignment]:
    bits = t.bits("A")
    parts = [bits[at : at + LANE_BITS] for at in range(0, len(bits), LANE_BITS)]
    full = (f"(V)({t.values.word(part)} == {literal(low(len(part)))})" for part in parts)
    return t.flag(" & ".join(full))


def _parity(pattern: str) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        bits = t.bits("A")
        parts = [bits[at : at + LANE_BITS] for at in range(0, len(bits), LANE_BITS)]
        return t.flag(pattern.format(f"parity({' ^ '.join(map(t.values.word, parts))})"))

    return rule


def _truths(pattern: str) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        ports = [port for port in ("A", "B") if port in t.cell.connections]
        return t.flag(pattern.format(*map(t.truth, ports)))

    return rule


def _shift(function: str) -> Callable[[_Translation], list[Assignment]]:
    def rule(t: _Translation) -> list[Assignment]:
        if t.signed("B"):
            raise t.cell.fail("its distance is signed")
        signed = t.signed("A")
        width = max(len(t.y), len(t.bits("A")))
        t.narrow(width)
        arithmetic = function == "right" and t.cell.type == "$sshr" and signed
        a = t.word("A", LANE_BITS if arithmetic else width, signed)
        distance = t.bits("B")
        far = distance[5:]  # any of these shifts everything out
        name = "right_signed" if arithmetic else function
        text = f"{name}({a}, {t.values.word(distance[:5])})"
        if far:
            parts = [far[at : at + LANE_BITS] for at in range(0, len(far), LANE_BITS)]
            beyond = f"is_set({' | '.join(map(t.values.word, parts))}, {literal(-1)})"
            rest = f"right_signed({a}, V{{}} + 31u)" if arithmetic else "V{}"
            text = f"select({beyond}, {rest}, {text})"
        return t.whole(text)

    return rule


def _mux(t: _Translation) -> list[Assignment]:
    made = []
    for variable, part in t.pieces():
        a, b = t.piece(t.bits("A"), part), t.piece(t.bits("B"), part)
        made.append((variable, f"select({t.values.mask(t.bits('S')[0])}, {b}, {a})"))
    return made


def _pmux(t: _Translation) -> list[Assignment]:
    width, select, b = len(t.y), t.bits("S"), t.bits("B")
    made = []
    for variable, part in t.pieces():
        text = t.piece(t.bits("A"), part)
        for number, bit in enumerate(select):
            choice = b[number * width : (number + 1) * width]
            text = f"select({t.values.mask(bit)}, {t.piece(choice, part)}, {text})"
        made.append((variable, text))
    return made


def _bmux(t: _Translation) -> list[Assignment]:
    width, a = len(t.y), t.bits("A")
    made = []
    for variable, part in t.pieces():
        texts = [t.piece(a[at : at + width], part) for at in range(0, len(a), width)]
        for bit in t.bits("S"):
            mask = t.values.mask(bit)
            pairs = zip(texts[::2], texts[1::2], strict=True)
            texts = [f"select({mask}, {one}, {zero})" for zero, one in pairs]
        made.append((variable, texts[0]))
    return made


_RULES: dict[str, Callable[[_Translation], list[Assignment]]] = {
    "$pos": _bitwise("{}"),
    "$not": _bitwise("~{}", inverted=True),
    "$and": _bitwise("{} & {}"),
    "$or": _bitwise("{} | {}"),
    "$xor": _bitwise("{} ^ {}"),
    "$xnor": _bitwise("~({} ^ {})", inverted=True),
    "$add": _arithmetic("+"),
    "$sub": _arithmetic("-"),
    "$mul": _arithmetic("*"),
    "$neg": _negate,
    "$eq": _equal("{}"),
    "$eqx": _equal("{}"),
    "$ne": _equal("~({})"),
    "$nex": _equal("~({})"),
    "$lt": _order("<"),
    "$le": _order("<="),
    "$ge": _order(">="),
    "$gt": _order(">"),
    "$reduce_and": _reduce_and,
    "$reduce_or": _truths("{}"),
    "$reduce_bool": _truths("{}"),
    "$reduce_xor": _parity("{}"),
    "$reduce_xnor": _parity("~({})"),
    "$logic_not": _truths("~{}"),
    "$logic_and": _truths("{} & {}"),
    "$logic_or": _truths("{} | {}"),
    "$shl": _shift("left"),
    "$sshl": _shift("left"),
    "$shr": _shift("right"),
    "$sshr": _shift("right"),
    "$mux": _mux,
    "$pmux": _pmux,
    "$bmux": _bmux,
}

COMBINATIONAL = frozenset(_RULES)
"""The types that `translate` knows."""


def translate(cell: Cell, values: Values, cuts: Cuts, name: str) -> list[Assignment]:
    """Place a cell's result in variables called ``name_…`` and return what each gets.

    Raises
    ------
    NetlistError
        The cell's type is unknown, or it computes more than 32 bits.
    """
    if cell.type not in _RULES:
        raise cell.fail("there is no translation of this type")
    return _RULES[cell.type](_Translation(cell, values, cuts, name))
