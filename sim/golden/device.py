"""The whole device as a function: same program and memory in, same memory and status out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sat.rtl import isa
from sat.rtl.config import INDEX_BITS, INDICES_TOGETHER, SatConfig
from sat.rtl.fp.formats import FP32
from sat.rtl.isa import (
    Buffer,
    Dataflow,
    Format,
    Instruction,
    Opcode,
    Source,
    Start,
    Status,
)
from sat.sim.golden.check import UPDATED, GatherState, check, check_start, store_element
from sat.sim.golden.control import Dispatch, Stopped
from sat.sim.golden.fp import fp32_to_fp16
from sat.sim.golden.sore import select
from sat.sim.golden.update import Rates, non_finite, update_tile


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its status and, for an error, the instruction's number."""

    status: Status
    pc: int
    non_finite: int = 0
    """Sums that a STORE with ``check`` found infinite or NaN."""
    skipped: int = 0
    """UPDATEs that left the weights as they were because of them."""


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
        self._mask = np.zeros((c.sum_words, c.cols), bool)
        lanes, beat = c.update_lanes, c.granule_bytes
        for buffer in UPDATED:
            self._banks[buffer] = np.zeros((lanes, c.update_words, beat // 2), np.uint16)
        # What UPDATE leaves, as bytes: bank, word, byte of the word.
        self._made = {
            source: np.zeros((lanes, depth, size), np.uint8)
            for source, depth, size in (
                (Source.WEIGHT, c.update_words, beat),
                (Source.MOMENTUM, c.update_words, beat),
                (Source.FF_VALUES, c.copy_words, beat),
                (Source.FF_INDICES, c.copy_words, beat // 4),
                (Source.BP_VALUES, c.copy_words, beat),
                (Source.BP_INDICES, c.copy_words, beat // 4),
            )
        }
        self._begin()

    def _begin(self) -> None:
        """Forget what lasts for one program only."""
        self._state = GatherState()
        self._tensor = Instruction(Opcode.TENSOR, {})
        self._window = Instruction(Opcode.WINDOW, {"lines": 1, "pixels": 1})
        self._rates = Rates()
        self._non_finite = self._skipped = 0

    def run(self, address: int, length: int) -> Outcome:
        """Run ``length`` instructions at byte ``address``; return how they ended.

        Instructions are checked and dispatched in program order, wait in their engine's queue
        for their semaphores, and take effect when they have them (`sat.sim.golden.control`).
        """
        window = (0, len(self.memory))
        self._begin()
        fault = check_start(address, length, window)
        if fault is not None:
            return Outcome(fault.status, 0)
        dispatch = Dispatch(self.config)
        for pc in range(length):
            at = address + pc * isa.INSTRUCTION_BYTES
            raw = self.memory[at : at + isa.INSTRUCTION_BYTES].tobytes()
            fault = check(raw, self.config, window, self._state)
            if fault is not None:
                return self._outcome(fault.status, pc)
            instruction = Instruction.decode(raw)
            if pc == length - 1 and instruction.opcode is not Opcode.END:
                return self._outcome(Status.NO_END, pc)
            self._state.follow(instruction)
            try:
                for ready in dispatch.take(instruction):
                    self.step(ready)
            except Stopped as stopped:
                return self._outcome(stopped.status, pc)
            if instruction.opcode is Opcode.END:
                return self._outcome(Status.DONE, pc)
        raise AssertionError("the loop ends with END or with the last instruction")

    def _outcome(self, status: Status, pc: int) -> Outcome:
        return Outcome(status, pc, self._non_finite, self._skipped)

    def step(self, instruction: Instruction) -> None:
        """Carry out one legal instruction, whatever it waits for."""
        match instruction.opcode:
            case Opcode.LOAD:
                self._load(instruction)
            case Opcode.TENSOR:
                self._tensor = instruction
            case Opcode.WINDOW:
                self._window = instruction
            case Opcode.GATHER:
                self._gather(instruction)
            case Opcode.MULTIPLY:
                self._multiply(instruction)
            case Opcode.STORE:
                self._store(instruction)
            case Opcode.RATES:
                self._rates = Rates.of(instruction)
            case Opcode.UPDATE:
                self._update(instruction)

    def _load(self, i: Instruction) -> None:
        config, memory = self.config, self.memory
        buffer = Buffer(i.destination)
        starts = i.address + np.arange(i.rows) * i.pitch
        if buffer is Buffer.START:
            count = i.row_bytes // 4
            columns = np.arange(count)
            for row, at in enumerate(starts):
                places = i.base + row * i.stride + columns // config.cols
                values = memory[at : at + i.row_bytes].view(np.float32)
                self._start[columns % config.cols, places] = values
        elif buffer is Buffer.MASK:
            for row, at in enumerate(starts):
                row_bytes = max(i.row_bytes, config.mask_bytes)
                padded = np.zeros(row_bytes, np.uint8)
                padded[: i.row_bytes] = memory[at : at + i.row_bytes]
                words = padded.reshape(-1, config.mask_bytes)
                bits = np.unpackbits(words, axis=1, bitorder="little")[:, : config.cols]
                self._mask[i.base + row * i.stride :][: len(bits)] = bits
        else:
            beat = config.granule_bytes
            row_bytes = -(-i.row_bytes // beat) * beat
            rows = [memory[at : at + row_bytes].view(np.uint16) for at in starts]
            self._spread(i, buffer, rows)

    def _spread(self, i: Instruction, buffer: Buffer, rows: list[np.ndarray]) -> None:
        """Spread rows of 16-bit lanes over the banks of a buffer."""
        banks = self._banks[buffer]
        per_word = banks.shape[2]
        for row, lanes in enumerate(rows):
            for word in range(-(-len(lanes) // per_word)):
                part = lanes[word * per_word : (word + 1) * per_word]
                if i.by_word:
                    group, place = divmod(word, i.words_per_pass)
                    first = place * i.copies
                    where = i.base + group * i.stride + row
                    banks[first : first + i.copies, where, : len(part)] = part
                else:
                    group, bank = divmod(row, len(banks))
                    banks[bank, i.base + group * i.stride + word, : len(part)] = part

    def _gather(self, i: Instruction) -> None:
        tensor, window = self._tensor, self._window
        pixels = window.lines * window.pixels
        first = (i.image * window.lines + i.line) * window.pixels + i.pixel
        rows = []
        for position in range(first, first + i.rows):
            image, rest = divmod(position, pixels)
            line, pixel = divmod(rest, window.pixels)
            segments = []
            for tap_y in range(i.taps_y):
                y = i.y + line * window.step_y + tap_y * window.tap_y
                for tap_x in range(i.taps_x):
                    x = i.x + pixel * window.step_x + tap_x * window.tap_x
                    segments.append(self._segment(i, tensor, image, y, x))
            rows.append(np.concatenate(segments))
        buffer = Buffer(i.destination)
        if not i.transpose:
            self._spread(i, buffer, rows)
            return
        if window.log2_m and buffer is Buffer.B:
            self._prune(i, np.array(rows).view(np.float16))
            return
        banks = self._banks[buffer]
        channels = np.arange(i.segment_bytes // 2)
        for row, values in enumerate(rows):
            word, lane = divmod(row, self.config.max_m)
            group, bank = np.divmod(channels, len(banks))
            banks[bank, i.base + group * i.stride + word, lane] = values

    def _prune(self, i: Instruction, rows: np.ndarray) -> None:
        """Keep N of every M positions, (positions, channels) float16, in B; where, in INDEX."""
        values, indices = select(rows, self._window.n, 1 << self._window.log2_m)
        group, bank = np.divmod(np.arange(rows.shape[1]), self.config.cols)
        first = (i.base + group * i.stride) * self.config.max_m
        # Indices come by fours.
        indices = np.pad(indices, ((0, -len(indices) % INDICES_TOGETHER), (0, 0)))
        fours = indices.reshape(-1, INDICES_TOGETHER, rows.shape[1]).astype(np.uint16)
        shifts = np.arange(INDICES_TOGETHER, dtype=np.uint16) * INDEX_BITS
        packed = (fours << shifts[:, None]).sum(axis=1)
        # The channels' k-th are written together: should groups overlap, the last written stay.
        for buffer, written, at in (
            (Buffer.B, values.view(np.uint16), first),
            (Buffer.INDEX, packed, first // INDICES_TOGETHER),
        ):
            banks = self._banks[buffer].reshape(self.config.cols, -1)
            for k, of_channels in enumerate(written):
                banks[bank, at + k] = of_channels

    def _segment(
        self, i: Instruction, tensor: Instruction, image: int, y: int, x: int
    ) -> np.ndarray:
        """Return what a tap reads of a pixel: zeros outside the tensor."""
        if not (image < tensor.images and 0 <= y < tensor.lines and 0 <= x < tensor.pixels):
            return np.zeros(i.segment_bytes // 2, np.uint16)
        at = tensor.address + image * tensor.image_pitch + y * tensor.line_pitch
        at += x * tensor.pixel_pitch + i.offset
        return self.memory[at : at + i.segment_bytes].view(np.uint16)

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
        for row in range(i.rows):
            data = self._sums(i, row) if i.source == Source.OUTPUT.value else self._copy(i, row)
            at = i.address + row * i.pitch
            self.memory[at : at + i.row_bytes] = data[: i.row_bytes]

    def _copy(self, i: Instruction, row: int) -> np.ndarray:
        """Return a row that UPDATE made, as bytes."""
        group, bank = divmod(row, self.config.update_lanes)
        return self._made[Source(i.source)][bank, i.base + group * i.stride :].reshape(-1)

    def _sums(self, i: Instruction, row: int) -> np.ndarray:
        """Return a row of the output buffer as bytes in the format asked for."""
        format = Format(i.format)
        _, word_bytes = store_element(i, self.config)
        first = i.base + row * i.stride
        words = slice(first, first + -(-i.row_bytes // word_bytes))
        sums = self._output[:, words].T.copy()  # (words, columns)
        if format is Format.ZERO:
            return np.zeros(sums.nbytes, np.uint8)
        if i.check:
            self._non_finite += non_finite(sums.reshape(-1)[: i.row_bytes // 4])
        halves = fp32_to_fp16(sums.view(np.uint32)).view(np.float16)
        if format is Format.MASK:
            bits = ~(halves <= 0)
            packed = np.packbits(bits, axis=1, bitorder="little")
            padded = np.zeros((len(bits), self.config.mask_bytes), np.uint8)
            padded[:, : packed.shape[1]] = packed
            return padded.reshape(-1)
        if i.relu:
            halves = np.where(halves <= 0, np.float16(0), halves)
        made = halves if format is Format.FP16 else sums
        if i.masked:
            made = np.where(self._mask[words], made, made.dtype.type(0))
        return made.reshape(-1).view(np.uint8)

    def _update(self, i: Instruction) -> None:
        lanes = self.config.update_lanes
        words = i.columns * 4 // self.config.granule_bytes

        def where(base: int, stride: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            lines = np.arange(count)
            return lines % lanes, base + lines // lanes * stride

        bank, first = where(i.in_base, i.stride, i.rows)
        at = first[:, None] + np.arange(words)
        w, v, g = (
            self._banks[b][bank[:, None], at].reshape(i.rows, -1).view(np.float32)
            for b in (Buffer.WEIGHT, Buffer.MOMENTUM, Buffer.GRADIENT)
        )
        skip = self._non_finite != 0
        self._skipped += skip
        ff, bp = (i.ff_n, 1 << i.ff_log2_m), (i.bp_n, 1 << i.bp_log2_m)
        made = update_tile(w, v, g, ff, bp, self._rates, skip)
        bank, first = where(i.out_base, i.stride, i.rows)
        at = first[:, None] + np.arange(words)
        for source, matrix in ((Source.WEIGHT, made.w), (Source.MOMENTUM, made.v)):
            beats = np.ascontiguousarray(matrix).view(np.uint8).reshape(i.rows, words, -1)
            self._made[source][bank[:, None], at] = beats
        for values, indices, copy, base, stride in (
            (Source.FF_VALUES, Source.FF_INDICES, made.ff, i.ff_base, i.ff_stride),
            (Source.BP_VALUES, Source.BP_INDICES, made.bp, i.bp_base, i.bp_stride),
        ):
            for line, (kept, index) in enumerate(zip(copy.values, copy.indices, strict=True)):
                lane, word = line % lanes, base + line // lanes * stride
                to = self._made[values][lane, word:].reshape(-1).view(np.float16)
                to[: len(kept)] = kept
                packed = self._made[indices][lane, word:].reshape(-1)
                nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
                nibbles[: len(index)] = index
                packed[:] = nibbles[0::2] | nibbles[1::2] << 4
