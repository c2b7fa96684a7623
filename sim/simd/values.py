"""Where each net lies, and how bits of several words become one word.

A *variable* is a word of up to 32 bits in each lane. A variable of one bit is kept as a mask, 0 or
all ones: that is what comparisons give and selections take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sat.sim.simd.netlist import Bit, Bits, Cell, Netlist

LANE_BITS = 32


@dataclass(frozen=True)
class Variable:
    """A C++ variable that holds ``width`` neighbouring bits of a value."""

    name: str
    width: int


def literal(value: int) -> str:
    """Return a constant as C++."""
    return f"{value & 0xFFFFFFFF:#x}u"


def low(width: int) -> int:
    """Return ``width`` ones."""
    return (1 << width) - 1


def extended(bits: Bits, width: int, signed: int) -> Bits:
    """Return bits cut or extended to a width, with zeros or copies of the top bit."""
    fill: Bit = bits[-1] if signed and bits else "0"
    return (*bits, *(fill for _ in range(width - len(bits))))[:width]


class Values:
    """The variables of a leaf, and expressions over them."""

    def __init__(self) -> None:
        self._where: dict[int, tuple[Variable, int] | Bit] = {}

    def place(self, name: str, pieces: Iterable[Bits]) -> list[Variable]:
        """Give each piece of a value a variable: ``name_0``, ``name_1``, …"""
        made = []
        for number, piece in enumerate(pieces):
            variable = Variable(f"{name}_{number}", len(piece))
            for offset, bit in enumerate(piece):
                assert isinstance(bit, int), (name, bit)
                self._where[bit] = variable, offset
            made.append(variable)
        return made

    def alias(self, bit: Bit, other: Bit) -> None:
        """Say that a net always equals another or a constant."""
        assert isinstance(bit, int)
        self._where[bit] = other

    def find(self, bit: Bit) -> tuple[Variable, int] | str:
        """Return a net's variable and offset, or ``"0"`` or ``"1"``."""
        found: tuple[Variable, int] | Bit = bit
        while isinstance(found, int):
            found = self._where[found]
        return found if isinstance(found, tuple) else "1" if found == "1" else "0"

    def mask(self, bit: Bit) -> str:
        """Return a net as a mask."""
        found = self.find(bit)
        if isinstance(found, str):
            return f"V{{}} - {literal(1)}" if found == "1" else "V{}"
        variable, offset = found
        if variable.width == 1:
            return variable.name
        return f"is_set({variable.name}, {literal(1 << offset)})"

    def word(self, bits: Bits) -> str:
        """Return up to 32 bits as a word: bits above them are 0."""
        assert len(bits) <= LANE_BITS, bits
        terms, constant, at = [], 0, 0
        while at < len(bits):
            found = self.find(bits[at])
            if isinstance(found, str):
                constant |= int(found) << at
                at += 1
                continue
            variable, offset = found
            end = at + 1
            if variable.width > 1:
                while end < len(bits) and self.find(bits[end]) == (variable, offset + end - at):
                    end += 1
            repeats = at + 1
            while repeats < len(bits) and self.find(bits[repeats]) == found:
                repeats += 1
            if repeats - at > 1 or variable.width == 1:
                kept = literal(low(repeats - at) << at)
                mask = self.mask(bits[at])
                terms.append(mask if repeats - at == LANE_BITS else f"({mask} & {kept})")
                at = repeats
            else:
                terms.append(_moved(variable, offset, end - at, at))
                at = end
        if constant or not terms:
            terms.append(f"(V{{}} + {literal(constant)})")
        return terms[0] if len(terms) == 1 else f"({' | '.join(terms)})"

    def needs(self, bits: Iterable[Bit]) -> set[str]:
        """Return the names of the variables that bits lie in."""
        found = (self.find(bit) for bit in bits)
        return {place[0].name for place in found if isinstance(place, tuple)}


def _moved(variable: Variable, offset: int, width: int, to: int) -> str:
    """Return ``width`` bits of a word from ``offset``, moved to place ``to``."""
    text = variable.name
    if to < offset:
        text = f"({text} >> {offset - to})"
    elif to > offset:
        text = f"({text} << {to - offset})"
    # What the move itself has not pushed out must be masked.
    above = offset + width < variable.width and to + width < LANE_BITS
    below = offset > 0 and to > 0
    return f"({text} & {literal(low(width) << to)})" if above or below else text


class Cuts:
    """Where wide values are cut into variables: where their readers cut them.

    Parameters
    ----------
    netlist : Netlist
    values : sequence of Bits
        All that nets are driven by: input ports and cells' outputs.
    """

    def __init__(self, netlist: Netlist, values: Sequence[Bits]):
        self._before: dict[Bit, Bit] = {}
        after: dict[Bit, Bit] = {}
        for value in values:
            self._before.update(zip(value[1:], value, strict=False))
            after.update(zip(value, value[1:], strict=False))
        self._starts: set[Bit] = set()
        registers = []
        for cell in netlist.cells:
            if "Q" in cell.connections:
                registers.append((cell.connections["D"], cell.connections["Q"]))
            for read in _reads(cell):
                for number, bit in enumerate(read):
                    if number == 0 or read[number - 1] != self._before.get(bit):
                        self._starts.add(bit)
                    if number + 1 == len(read) or read[number + 1] != after.get(bit):
                        self._starts.add(after.get(bit, bit))
        # A register that is cut somewhere cuts what it takes at the same place.
        found = True
        while found:
            known = len(self._starts)
            for taken, held in registers:
                self._starts |= {d for d, q in zip(taken, held, strict=True) if q in self._starts}
            found = len(self._starts) > known

    def pieces(self, value: Bits) -> list[Bits]:
        """Return a value in pieces of up to 32 bits, as few as cuts allow."""
        made, at = [], 0
        while at < len(value):
            end = min(at + LANE_BITS, len(value))
            if end < len(value):
                cut = next((n for n in range(end, at, -1) if value[n] in self._starts), end)
                end = cut
            made.append(value[at:end])
            at = end
        return made


def _reads(cell: Cell) -> list[Bits]:
    """Return the words that a cell reads, each as its translation takes it."""
    read = []
    for port, bits in cell.connections.items():
        if port in ("Y", "Q", "D", "RD_DATA"):
            continue
        width = len(bits)
        if cell.type in ("$pmux", "$bmux") and port in "AB":
            width = cell.parameters["WIDTH"]
        elif cell.type == "$mem_v2":
            width = cell.parameters["ABITS" if "ADDR" in port else "WIDTH"]
        read += [bits[at : at + width] for at in range(0, len(bits), max(width, 1))]
    return read
