"""Programs: lists of instructions, their bytes, their text, and what would stop them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import overload

from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Instruction, Opcode, Status
from sat.sim.golden.check import GatherState, check, check_start
from sat.sim.golden.control import Dispatch, Stopped


class ProgramError(ValueError):
    """A program that the device would refuse.

    Attributes
    ----------
    status : Status
        The status that the device would end with.
    pc : int
        Number of the instruction at fault.
    """

    def __init__(self, status: Status, pc: int, message: str):
        super().__init__(f"instruction {pc}: {message}")
        self.status, self.pc = status, pc


class Program(Sequence[Instruction]):
    """A list of instructions that ends with END.

    Parameters
    ----------
    instructions : iterable of Instruction
    """

    def __init__(self, instructions: Iterable[Instruction]):
        self._instructions = tuple(instructions)
        self._raw: bytes | None = None

    @overload
    def __getitem__(self, index: int) -> Instruction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Instruction]: ...
    def __getitem__(self, index):
        return self._instructions[index]

    def __len__(self) -> int:
        return len(self._instructions)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self._instructions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._instructions == other._instructions

    def __hash__(self) -> int:
        return hash(self.encode())

    def moved(self, block: range, by: int) -> Program:
        """Return the program for data that lie ``by`` bytes further on.

        Parameters
        ----------
        block : range
            Byte addresses of the data; instructions with an address in it are changed.
        """

        def moved(i: Instruction) -> Instruction:
            # A range finds an int at once; anything else it looks for element by element.
            if "address" not in i.body or i.body["address"] not in block:
                return i
            return replace(i, body={**i.body, "address": i.body["address"] + by})

        return Program(map(moved, self))

    def written(self, gap: int = 64) -> list[range]:
        """Return the byte addresses that its STOREs write, ascending, none twice.

        Parameters
        ----------
        gap : int
            Bytes between two spans, up to which they are returned as one.
        """
        spans: list[tuple[int, int]] = []
        for i in self:
            if i.opcode is Opcode.STORE:
                address, pitch, size = (i.body[n] for n in ("address", "pitch", "row_bytes"))
                firsts = range(address, address + pitch * i.body["rows"], pitch or 1)
                spans += [(first, first + size) for first in firsts[: i.body["rows"]]]
        made: list[range] = []
        for first, end in sorted(spans):
            if made and first <= made[-1].stop + gap:
                made[-1] = range(made[-1].start, max(made[-1].stop, end))
            else:
                made.append(range(first, end))
        return made

    def encode(self) -> bytes:
        """Return the program as the device reads it, 32 bytes an instruction."""
        if self._raw is None:
            self._raw = b"".join(i.encode() for i in self)
        return self._raw

    @classmethod
    def decode(cls, raw: bytes) -> Program:
        """Return the program in ``raw``.

        Raises
        ------
        ProgramError
            An opcode is unknown, or the length is no multiple of 32 bytes.
        """
        size = isa.INSTRUCTION_BYTES
        made = []
        for pc, at in enumerate(range(0, len(raw), size)):
            try:
                made.append(Instruction.decode(raw[at : at + size]))
            except ValueError as error:
                raise ProgramError(Status.BAD_OPCODE, pc, str(error)) from None
        return cls(made)

    def text(self) -> str:
        """Return the program as text, a line an instruction, fields of value 0 left out."""
        lines = []
        for i in self:
            fields = {n: getattr(i, n) for n in ("wait", "release", "signal")} | i.body
            given = (f"{name}={value:#x}" for name, value in fields.items() if value)
            lines.append(" ".join([i.opcode.name, *given]))
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> Program:
        """Return the program that ``text`` is the text of; ``#`` starts a comment.

        Raises
        ------
        ValueError
            A line is no instruction; the message names the line.
        """
        made = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                if words[0] not in Opcode.__members__:
                    raise ValueError(
                        f"{words[0]!r} is no opcode: known are {', '.join(Opcode.__members__)}"
                    )
                fields: dict[str, int] = {}
                for word in words[1:]:
                    match = re.fullmatch(r"(\w+)=(-?\w+)", word)
                    if match is None:
                        raise ValueError(f"{word!r} is not NAME=NUMBER")
                    fields[match[1]] = int(match[2], 0)
                masks = {n: fields.pop(n, 0) for n in ("wait", "release", "signal")}
                made.append(Instruction(Opcode[words[0]], fields, **masks))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        return cls(made)

    def validate(
        self, config: SatConfig, address: int = 0, window: tuple[int, int] = (0, 1 << 48)
    ) -> None:
        """Check the program as the device would, before anything is sent.

        Parameters
        ----------
        address : int
            Byte address at which it will lie.
        window : (int, int)
            First legal byte address, and the first behind the legal ones.

        Raises
        ------
        ProgramError
            The first instruction that the device would refuse.
        """
        validate(self.encode(), config, address, window)


def validate(
    raw: bytes, config: SatConfig, address: int = 0, window: tuple[int, int] = (0, 1 << 48)
) -> None:
    """Check a program's bytes as the device would, before anything is sent.

    Finds what the device would refuse, in its order: an unknown opcode, a field or address out
    of range, waits that nothing meets, a semaphore that overflows, a missing END. What lies
    behind END does not count.

    Parameters
    ----------
    raw : bytes
        32 bytes an instruction.
    address : int
        Byte address at which it will lie.
    window : (int, int)
        First legal byte address, and the first behind the legal ones.

    Raises
    ------
    ProgramError
        The first instruction at which the device would stop.
    """
    size = isa.INSTRUCTION_BYTES
    length = len(raw) // size
    fault = check_start(address, length, window)
    if fault is not None:
        raise ProgramError(fault.status, 0, fault.message)
    state, dispatch = GatherState(), Dispatch(config)
    for pc in range(length):
        word = raw[pc * size : (pc + 1) * size]
        fault = check(word, config, window, state)
        if fault is not None:
            raise ProgramError(fault.status, pc, fault.message)
        instruction = Instruction.decode(word)
        if pc == length - 1 and instruction.opcode is not Opcode.END:
            break
        state.follow(instruction)
        try:
            for _ in dispatch.take(instruction):
                pass
        except Stopped as stopped:
            raise ProgramError(stopped.status, pc, stopped.message) from None
        if instruction.opcode is Opcode.END:
            return
    raise ProgramError(Status.NO_END, length - 1, "the program's last must be END")
