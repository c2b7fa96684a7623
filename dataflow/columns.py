"""Instructions by the thousand: columns of field values, encoded at once.

A program of a layer has tens of thousands of instructions that differ in few fields. What makes
them works on numpy arrays, an element an instruction, and never on one instruction at a time.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sat.rtl import isa
from sat.rtl.config import SEMAPHORES
from sat.rtl.isa import Opcode
from sat.sim.build import compile_library

Array = NDArray[np.int64]
Words = NDArray[np.uint64]
"""Encoded instructions: (count, 4)."""
Value = int | Array
Field = Value | Enum
"""What a field of instructions is: the same for all, or of each."""

WORDS = isa.INSTRUCTION_BYTES // 8
COLUMN = 6
"""Numbers of a `Column` of columns.cpp."""
MASKS = {name: 8 + n * SEMAPHORES for n, name in enumerate(("wait", "release", "signal"))}
"""Masks of semaphores, and where they lie in an instruction's first word."""
ALL = (1 << SEMAPHORES) - 1
"""The mask of all semaphores."""
SOURCE = Path(__file__).with_name("columns.cpp")


@dataclass(frozen=True)
class Block:
    """Instructions of one opcode, each of which is needed by an owner.

    Parameters
    ----------
    opcode : Opcode
    fields : dict of str to int, enumeration, or (count,) int64
        What all of them have, or each of them.
    owner : (count,) int64
        For each instruction the number of whose it is, ascending.
    at : int or (count,) int64
        Its place among all instructions of its owner, those of other blocks included.
    """

    opcode: Opcode
    fields: Mapping[str, Field]
    owner: Array
    at: Value = 0

    def number(self, name: str) -> Value:
        """Return a field that is no enumeration; 0 if none was given."""
        value = self.fields.get(name, 0)
        assert not isinstance(value, Enum)
        return value

    def encode(self, wait: Value = 0, release: Value = 0, signal: Value = 0) -> Words:
        """Return the instructions with their semaphores."""
        return encode(self.opcode, len(self.owner), self.fields, wait, release, signal)


def encode(
    opcode: Opcode,
    count: int,
    fields: Mapping[str, Field],
    wait: Value = 0,
    release: Value = 0,
    signal: Value = 0,
) -> Words:
    """Return instructions as the device reads them.

    Raises
    ------
    ValueError
        The opcode has no such field, or a value is outside its range.
    """
    places = isa.PLACES[opcode]
    # Of each field its place, its range, and its values: where they lie, or the one of all.
    table: list[int] = []
    held: list[Array] = []
    for place, mask in zip(MASKS.values(), (wait, release, signal), strict=True):
        table += (place, SEMAPHORES, 0, ALL)
        table += _given(mask, count, held)
    for name, value in fields.items():
        if name not in places:
            raise ValueError(f"{opcode.name} has no field {name!r}: it has {list(places)}")
        at, width, legal = places[name]
        table += (at, width, legal.start, legal.stop - 1)
        table += _given(value, count, held)
    words = np.empty((count, WORDS), np.uint64)
    given = array("q", table)
    wrong = ctypes.c_int64()
    bad = _library().columns_encode(
        opcode.value,
        count,
        given.buffer_info()[0],
        len(table) // COLUMN,
        words.__array_interface__["data"][0],
        ctypes.byref(wrong),
    )
    if bad >= 0:
        name = (*MASKS, *fields)[bad]
        _, _, least, most, *_ = table[COLUMN * bad :]
        raise ValueError(f"{opcode.name}.{name}={wrong.value}: must be {least} to {most}")
    return words


def _given(value: Field, count: int, held: list[Array]) -> tuple[int, int]:
    """Return the address of a field's values (0: none), which are held, and its one value."""
    if not isinstance(value, np.ndarray):
        return 0, int(value.value if isinstance(value, Enum) else value)
    if value.shape != (count,):
        value = np.broadcast_to(value, (count,))
    held.append(np.ascontiguousarray(value, np.int64))
    return held[-1].__array_interface__["data"][0], 0


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(compile_library("columns", [SOURCE], ("-O2",))))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.columns_encode.restype = number
    library.columns_encode.argtypes = [number, number, pointer, number, pointer, pointer]
    library.columns_without_repeats.restype = number
    library.columns_without_repeats.argtypes = [pointer, number, ctypes.c_char_p, number]
    return library


def without_repeats(words: Words, opcodes: Sequence[Opcode]) -> Words:
    """Return instructions without those that are what the last one of their opcode was.

    Parameters
    ----------
    words : Words
        C-contiguous; what is left moves to their front.
    opcodes : sequence of Opcode
        Of which instructions are left out.
    """
    assert words.dtype == np.uint64 and words.flags.c_contiguous, "instructions lie row by row"
    names = bytes(opcode.value for opcode in opcodes)
    kept = _library().columns_without_repeats(words.ctypes.data, len(words), names, len(names))
    return words[:kept]


def with_end(words: Words) -> Words:
    """Return instructions with END behind them."""
    return np.concatenate([words, encode(Opcode.END, 1, {})])


def _put(words: Words, at: int, width: int, value: Array) -> None:
    """Set a field of all instructions; ``words`` is (4, count), 0 where the field is."""
    raw = (value & ((1 << width) - 1)).view(np.uint64)
    word, shift = divmod(at, 64)
    words[word] |= raw << np.uint64(shift)
    if shift + width > 64:
        words[word + 1] |= raw >> np.uint64(64 - shift)


def read(words: Words, opcode: Opcode, name: str) -> Array:
    """Return an unsigned field of instructions of one opcode."""
    at, width, _ = isa.PLACES[opcode][name]
    word, shift = divmod(at, 64)
    value = words[:, word] >> np.uint64(shift)
    if shift + width > 64:
        value = value | words[:, word + 1] << np.uint64(64 - shift)
    return (value & np.uint64((1 << width) - 1)).astype(np.int64)


def write(words: Words, rows: Array, opcode: Opcode, name: str, value: Array) -> None:
    """Set a field of the instructions of one opcode in some rows."""
    at, width, legal = isa.PLACES[opcode][name]
    if len(value) and (value.min() < legal.start or value.max() >= legal.stop):
        raise ValueError(f"{opcode.name}.{name}: must be {legal.start} to {legal.stop - 1}")
    field = np.zeros((WORDS, len(rows)), np.uint64)
    _put(field, at, width, np.full(len(rows), -1))
    kept = words[rows] & ~field.T
    field[:] = 0
    _put(field, at, width, value)
    words[rows] = kept | field.T


def masks(words: Words, name: str) -> Array:
    """Return a mask of instructions, (…, 4): ``wait``, ``release`` or ``signal``."""
    return (words[..., 0] >> np.uint64(MASKS[name])).astype(np.int64) & ALL


def set_masks(words: Words, name: str, value: Value) -> None:
    """Set a mask of instructions, (…, 4)."""
    place = np.uint64(MASKS[name])
    words[..., 0] &= ~(np.uint64(ALL) << place)
    words[..., 0] |= np.asarray(value).astype(np.uint64) << place


def owned(blocks: Sequence[Block]) -> tuple[Array, Array]:
    """Return the owner of each instruction of blocks, one after the other, and their order.

    The order sorts them by owner, then by place.
    """
    owner = np.concatenate([block.owner for block in blocks])
    at = np.concatenate(
        [np.broadcast_to(np.asarray(block.at, np.int64), block.owner.shape) for block in blocks]
    )
    return owner, np.lexsort((at, owner))


def spread(counts: Array) -> tuple[Array, Array]:
    """Return, for owners that have so many instructions, whose each one is, and its place."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner]
