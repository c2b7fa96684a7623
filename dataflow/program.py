"""Programs: lists of instructions, their bytes, their text, and what would stop them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from sat.dataflow.columns import WORDS, Words, read, spread, write
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
    """A list of instructions that ends with END: held as bytes, decoded when it is looked at.

    Parameters
    ----------
    instructions : iterable of Instruction
    """

    def __init__(self, instructions: Iterable[Instruction]):
        self._raw = b"".join(i.encode() for i in instructions)

    @classmethod
    def of(cls, words: Words) -> Program:
        """Return the program of encoded instructions, (count, 4) uint64."""
        made = cls(())
        made._raw = words.tobytes()
        return made

    @property
    def words(self) -> Words:
        """The encoded instructions, (count, 4) uint64; not to be changed."""
        return np.frombuffer(self._raw, np.uint64).reshape(-1, WORDS)

    @functools.cached_property
    def _instructions(self) -> tuple[Instruction, ...]:
        size = isa.INSTRUCTION_BYTES
        raw = self._raw
        return tuple(Instruction.decode(raw[at : at + size]) for at in range(0, len(raw), size))

    @overload
    def __getitem__(self, index: int) -> Instruction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Instruction]: ...
    def __getitem__(self, index):
        return self._instructions[index]

    def __len__(self) -> int:
        return len(self._raw) // isa.INSTRUCTION_BYTES

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self._instructions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def moved(self, block: range, by: int) -> Program:
        """Return the program for data that lie ``by`` bytes further on.

        Parameters
        ----------
        block : range
            Byte addresses of the data; instructions with an address in it are changed.
        """

        words = self.words.copy()
        opcodes = words[:, 0] & np.uint64(0xFF)
        for opcode, places in isa.PLACES.items():
            if "address" in places:
                at = np.flatnonzero(opcodes == opcode.value)
                address = read(words[at], opcode, "address")
                inside = (address >= block.start) & (address < block.stop)
                write(words, at[inside], opcode, "address", address[inside] + by)
        return Program.of(words)

    def addresses(self) -> np.ndarray:
        """Return the byte addresses of data that its instructions name, ascending, as uint64."""
        words = self.words
        opcodes = words[:, 0] & np.uint64(0xFF)
        named = [
            read(words[opcodes == opcode.value], opcode, "address").astype(np.uint64)
            for opcode, places in isa.PLACES.items()
            if "address" in places
        ]
        return np.unique(np.concatenate(named))

    def written(self, gap: int = 64) -> list[range]:
        """Return the byte addresses that its STOREs write, ascending, none twice.

        Parameters
        ----------
        gap : int
            Bytes between two spans, up to which they are returned as one.
        """
        words = self.words
        stores = words[words[:, 0] & np.uint64(0xFF) == Opcode.STORE.value]
        address, pitch, rows, size = (
            read(stores, Opcode.STORE, name) for name in ("address", "pitch", "rows", "row_bytes")
        )
        if not len(stores):
            return []
        store, row = spread(rows)
        first = address[store] + row * pitch[store]
        order = np.argsort(first, kind="stable")
        first, end = first[order], np.maximum.accumulate((first + size[store])[order])
        # A span begins where nothing before it reaches.
        begins = np.concatenate([[0], np.flatnonzero(first[1:] > end[:-1] + gap) + 1])
        ends = np.concatenate([begins[1:], [len(first)]]) - 1
        return [range(int(a), int(b)) for a, b in zip(first[begins], end[ends], strict=True)]

    def encode(self) -> bytes:
        """Return the program as the device reads it, 32 bytes an instruction."""
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
