"""The whole device as a function: same program and memory in, same memory and status out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sat.rtl import isa
from sat.rtl.config import INDEX_BITS, SatConfig
from sat.rtl.fp.formats import FP32
from sat.rtl.isa import Buffer, Dataflow, Instruction, Opcode, Start, Status
from sat.sim.golden.check import check, check_start


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its status and, for an error, the instruction's number."""

    status: Status
    pc: int


def _fold(a: np.ndarray, values: np.ndarray, places: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return ``sums`` plus, step after step, ``a[:, places[p]] * values[p]``.

    Parameters
    ----------
    a : (rows, depth) float16
    values : (steps, cols) float16
    places : (steps, cols) int: the element of ``a``'s row that each value multiplies
    sums : (rows, cols) float32

    Binary32 holds every product of two binary16 values, so numpy rounds once a step, to nearest
    even. Written apart from the compiled fold of `sat.sim.golden.stce`, which it checks.
    """
    wide, factors = a.astype(np.float32), values.astype(np.float32)
    sums = sums.astype(np.float32)
    with np.errstate(all="ignore"):
        for place, factor in zip(places, factors, strict=True):
            sums = sums + wide[:, place] * factor
    sums[np.isnan(sums)] = np.uint32(FP32.canonical_nan).view(np.float32)
    return sums


class GoldenDevice:
    """Run programs on a memory, instruction after instruction.

    It holds values and never counts cycles. Engines of the RTL run side by side; for a program
    whose semaphores order what depends on each other, both leave the same memory.

    Parameters
    ----------
    config : SatConfig
    memory : ndarray of uint8
        Device memory from address 0; changed in place.
    """

    def __init__(self, config: SatConfig, memory: np.ndarray):
        if memory.dtype != np.uint8 or memory.ndim != 1:
            raise TypeError(
                f"memory is {memory.ndim}-d {memory.dtype}: it must be a flat array of uint8"
            )
        self.config, self.memory = config, memory
        c = config
        self._banks = {
            Buffer.A: np.zeros((c.rows, c.a_words, c.max_m), np.uint16),
            Buffer.B: np.zeros((c.cols, c.b_words, c.max_m), np.uint16),
            Buffer.INDEX: np.zeros((c.cols, c.i_words, c.max_m), np.uint16),
        }
        self._start = np.zeros((c.cols, c.sum_words), np.float32)
        self._output = np.zeros((c.cols, c.sum_words), np.float32)
        self._ring = np.zeros((0, 0), np.float32)

    def run(self, address: int, length: int) -> Outcome:
        """Run ``length`` instructions at byte ``address``; return how they ended."""
        window = (0, len(self.memory))
        fault = check_start(address, length, window)
        if fault is not None:
            return Outcome(fault.status, 0)
        for pc in range(length):
            at = address + pc * isa.INSTRUCTION_BYTES
            raw = self.memory[at : at + isa.INSTRUCTION_BYTES].tobytes()
            fault = check(raw, self.config, window)
            if fault is not None:
                return Outcome(fault.status, pc)
            instruction = Instruction.decode(raw)
            if instruction.opcode is Opcode.END:
                return Outcome(Status.DONE, pc)
            if pc == length - 1:
                return Outcome(Status.NO_END, pc)
            self.step(instruction)
        raise AssertionError("the loop ends with END or with the last instruction")

    def step(self, instruction: Instruction) -> None:
        """Carry out one legal instruction."""
        if instruction.opcode is Opcode.LOAD:
            self._load(instruction)
        elif instruction.opcode is Opcode.MULTIPLY:
            self._multiply(instruction)
        elif instruction.opcode is Opcode.STORE:
            self._store(instruction)

    def _load(self, i: Instruction) -> None:
        config, memory = self.config, self.memory
        if i.destination == Buffer.START.value:
            count = i.row_bytes // 4
            for row in range(i.rows):
                at = i.address + row * i.pitch
                values = memory[at : at + i.row_bytes].view(np.float32)
                columns = np.arange(count)
                places = i.base + row * i.stride + columns // config.cols
                self._start[columns % config.cols, places] = values
            return
        banks = self._banks[Buffer(i.destination)]
        beat = config.axi.beat_bytes
        row_bytes = -(-i.row_bytes // beat) * beat
        words = -(-row_bytes // config.word_bytes)
        for row in range(i.rows):
            at = i.address + row * i.pitch
            lanes = memory[at : at + row_bytes].view(np.uint16)
            for word in range(words):
                part = lanes[word * config.max_m : (word + 1) * config.max_m]
                if i.by_word:
                    group, place = divmod(word, i.words_per_pass)
                    first = place * i.copies
                    where = i.base + group * i.stride + row
                    banks[first : first + i.copies, where, : len(part)] = part
                else:
                    group, bank = divmod(row, len(banks))
                    banks[bank, i.base + group * i.stride + word, : len(part)] = part

    def _column_values(
        self, i: Instruction, column: int, word: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a column's ``count`` values and the lanes of A's words that they multiply."""
        config = self.config
        values = self._banks[Buffer.B][column].reshape(-1)
        start = (i.b_base + word * i.b_stride) * config.max_m + i.b_skip
        values = values[start : start + count]
        if i.log2_m:
            # Four indices to a 16-bit lane, the first in the low bits.
            packed = self._banks[Buffer.INDEX][column].reshape(-1, 1)
            per_lane = 16 // INDEX_BITS
            stored = (packed >> (INDEX_BITS * np.arange(per_lane))).reshape(-1) & 15
            at = (i.i_base + word * i.i_stride) * config.indices_per_word + i.i_skip
            stored = stored[at : at + count].astype(np.int64)
        else:
            stored = np.zeros(count, np.int64)
        group = (np.arange(count) // i.n) << i.log2_m
        return values.view(np.float16), (group + stored) % config.max_m

    def _multiply(self, i: Instruction) -> None:
        if i.dataflow == Dataflow.OS.value:
            self._multiply_os(i)
        else:
            self._multiply_ws(i)

    def _multiply_os(self, i: Instruction) -> None:
        config = self.config
        s, width = config.interleave, 1 << i.split
        rows, cols = config.rows * (s >> i.split), config.cols * width
        steps = (i.words - 1) * i.values + i.last
        words = self._banks[Buffer.A]
        a = np.empty((rows, i.words * config.max_m), np.float16)
        for row in range(rows):
            group, bank = divmod(row, config.rows)
            at = i.a_base + group * i.a_stride
            a[row] = words[bank, at : at + i.words].reshape(-1).view(np.float16)
        values = np.empty((steps, cols), np.float16)
        places = np.empty((steps, cols), np.int32)
        word_of = np.arange(steps) // i.values * config.max_m
        for col in range(cols):
            column, bank = divmod(col, config.cols)
            values[:, col], lanes = self._column_values(i, bank, column, steps)
            places[:, col] = word_of + lanes
        # Where sum (row, col) lies: bank col mod C, word row * width + col div C.
        banks = np.arange(cols) % config.cols
        word = np.arange(rows)[:, None] * width + np.arange(cols) // config.cols
        start = Start(i.start)
        if start is Start.KEEP and self._ring.shape == (rows, cols):
            sums = self._ring
        elif start is Start.START:
            sums = self._start[banks, i.s_base + word]
        elif start is Start.OUTPUT:
            sums = self._output[banks, i.s_base + word]
        else:
            sums = np.zeros((rows, cols), np.float32)
        self._ring = _fold(a, values, places, sums)
        if i.emit:
            self._output[banks, i.o_base + word] = self._ring

    def _multiply_ws(self, i: Instruction) -> None:
        config = self.config
        per_word = i.n * config.max_m >> i.log2_m
        copies = per_word // i.values
        rows = i.words * config.interleave
        words = -(-i.count // per_word)
        a = np.empty((rows, words * config.max_m), np.float16)
        for word in range(words):
            # Every copy holds the same word; the rows that use different copies must agree.
            bank = self._banks[Buffer.A][word * copies, i.a_base : i.a_base + rows]
            a[:, word * config.max_m : (word + 1) * config.max_m] = bank.view(np.float16)
        values = np.empty((i.count, config.cols), np.float16)
        places = np.empty((i.count, config.cols), np.int32)
        word_of = np.arange(i.count) // per_word * config.max_m
        for col in range(config.cols):
            values[:, col], lanes = self._column_values(i, col, 0, i.count)
            places[:, col] = word_of + lanes
        start = Start(i.start)
        if start is Start.ZERO:
            sums = np.zeros((rows, config.cols), np.float32)
        else:
            source = self._start if start is Start.START else self._output
            sums = source[:, i.s_base : i.s_base + rows].T
        self._output[:, i.o_base : i.o_base + rows] = _fold(a, values, places, sums).T

    def _store(self, i: Instruction) -> None:
        columns = np.arange(i.columns)
        for row in range(i.rows):
            words = i.base + row * i.stride + columns // self.config.cols
            sums = self._output[columns % self.config.cols, words]
            at = i.address + row * i.pitch
            self.memory[at : at + 4 * i.columns] = sums.view(np.uint8)
