"""Programs in which a GATHER prunes along the positions and N:M MULTIPLYs follow: tiles of WU."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from sat.dataflow.program import Program
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.isa import Buffer, Instruction, Opcode, Start

CONFIGS = {
    "2x2, 4 bytes": SatConfig(
        rows=2, cols=2, a_words=64, b_words=64, sum_words=64, prune_gathers=True,
        axi=AxiConfig(data_bits=32),
    ),
    "3x7 of 2": SatConfig(
        rows=3, cols=7, max_m=2, max_n=2, a_words=64, b_words=64, sum_words=64,
        prune_gathers=True, fp=FpTiming(prune_stages=3),
    ),
    "8x8, 16 bytes": SatConfig(prune_gathers=True),
    "2x6 of 4, 2 x 16 bytes": SatConfig(
        rows=2, cols=6, max_m=4, max_n=2, interleave=2, a_words=64, b_words=64, sum_words=64,
        prune_gathers=True, fp=FpTiming(adder_stages=2), axi=AxiConfig(data_bits=128, ports=2),
    ),
    "1x16 of 16, 64 bytes": SatConfig(
        rows=1, cols=16, max_m=16, max_n=1, interleave=1, a_words=64, b_words=64, sum_words=64,
        prune_gathers=True, fp=FpTiming(adder_stages=1, prune_stages=3),
        axi=AxiConfig(data_bits=512, outstanding=64),
    ),
    # Two groups of channels in a write of A and of B; four of B.
    "8x8 of 2, 32 bytes": SatConfig(
        rows=8, cols=8, max_m=2, max_n=2, a_words=128, b_words=128, sum_words=128,
        prune_gathers=True, axi=AxiConfig(data_bits=256),
    ),
    "1x16 of 4, 128 bytes": SatConfig(
        rows=1, cols=16, max_m=4, max_n=1, interleave=8, a_words=512, b_words=1024, sum_words=64,
        prune_gathers=True, fp=FpTiming(prune_stages=3),
        axi=AxiConfig(data_bits=512, ports=2, outstanding=64),
    ),
}  # fmt: skip
SLOTS = 2
FREE, FULL, DONE = 1, 2, 4
"""Semaphores: a slot is read, is filled; sums are written."""


def up(a: int, b: int) -> int:
    return -(-a // b) * b


@dataclass(frozen=True)
class Tile:
    """dw[in, out] = sum over positions of x[position at the tap, in] * dy[position, out].

    Parameters
    ----------
    n, m : int
        The pattern of dy along the positions.
    images, lines, pixels, step : int
        Positions of a batch; of x there are `step` lines and pixels to each.
    y, x : int
        Of x, the tap at position (0, 0).
    split : int
        As MULTIPLY has it.
    channels : (int, int)
        Channels of x and dy that are read: whole granules.
    chunk : int
        Positions that lie in the buffers at once, whole groups of m.
    one_window : bool
        The GATHERs of x are under the WINDOW with the pattern, too.
    wide : bool
        Strides let groups of channels be written together, where the device can.
    """

    config: SatConfig
    n: int
    m: int
    images: int
    lines: int
    pixels: int
    step: int
    y: int
    x: int
    split: int
    channels: tuple[int, int]
    chunk: int
    one_window: bool
    wide: bool = False

    @property
    def positions(self) -> int:
        return self.images * self.lines * self.pixels

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.images, self.lines * self.step, self.pixels * self.step, self.channels[0]

    @property
    def dy_shape(self) -> tuple[int, ...]:
        return self.images, self.lines, self.pixels, self.channels[1]

    @property
    def places(self) -> tuple[int, int, int, int]:
        """First bytes of x, dy, dw and the program."""
        found = [0]
        for size in (2 * np.prod(self.x_shape), 2 * np.prod(self.dy_shape), self.result_bytes):
            found.append(up(found[-1] + int(size), 4096))
        return tuple(found)

    @property
    def rows(self) -> int:
        return self.config.rows * (self.config.interleave >> self.split)

    @property
    def result_bytes(self) -> int:
        return 4 * self.rows * (self.config.cols << self.split)

    def _stride(self, words: int, banks: int) -> int:
        """Return the words from a group of channels, which has so many, to the next."""
        config = self.config
        if not self.wide or config.wide_groups(banks) == 1:
            return words
        return words + (config.wide_stride(banks) - words) % config.beat_words

    @property
    def a_stride(self) -> int:
        return self._stride(self.chunk // self.config.max_m + 1, self.config.rows)

    @property
    def a_slot(self) -> int:
        """Words of a bank that a chunk of x takes, whole granules of channels."""
        return self.a_stride * -(-up(self.rows, self.config.granule_halves) // self.config.rows)

    @property
    def b_stride(self) -> int:
        """Words from a group of columns to the next: whole words of indices."""
        return self._stride(up(self.chunk // self.config.max_m + 1, 4), self.config.cols)

    def gradient(self, memory: np.ndarray, product) -> np.ndarray:
        """Return dw, (channels of x, channels of dy) float32, by ``product(a, b, n, m, start)``."""
        at_x, at_dy, *_ = self.places
        x = memory[at_x:][: 2 * int(np.prod(self.x_shape))].view(np.float16).reshape(self.x_shape)
        dy = memory[at_dy:][: 2 * int(np.prod(self.dy_shape))].view(np.float16)
        depth = up(self.positions, self.m)
        a = np.zeros((depth, self.channels[0]), np.float16)
        b = np.zeros((depth, self.channels[1]), np.float16)
        b[: self.positions] = dy.reshape(self.positions, -1)
        for position in range(self.positions):
            image, rest = divmod(position, self.lines * self.pixels)
            line, pixel = divmod(rest, self.pixels)
            y, at = self.y + line * self.step, self.x + pixel * self.step
            if 0 <= y < self.x_shape[1] and 0 <= at < self.x_shape[2]:
                a[position] = x[image, y, at]
        return product(a.T, b, self.n, self.m, np.float32(0))

    def _settings(self, of_x: bool) -> list[Instruction]:
        shape, at = (self.x_shape, self.places[0]) if of_x else (self.dy_shape, self.places[1])
        pitch = 2 * shape[3]
        tensor = {
            "address": at,
            "images": shape[0],
            "lines": shape[1],
            "pixels": shape[2],
            "pixel_pitch": pitch,
            "line_pitch": pitch * shape[2],
            "image_pitch": pitch * shape[2] * shape[1],
        }
        window = {
            "lines": self.lines,
            "pixels": self.pixels,
            "step_y": self.step if of_x else 1,
            "step_x": self.step if of_x else 1,
        }
        if self.one_window or not of_x:
            window |= {"n": self.n, "log2_m": self.m.bit_length() - 1}
        return [Instruction(Opcode.TENSOR, tensor), Instruction(Opcode.WINDOW, window)]

    def _gather(self, of_x: bool, first: int, count: int, slot: int) -> list[Instruction]:
        config = self.config
        image, rest = divmod(first, self.lines * self.pixels)
        line, pixel = divmod(rest, self.pixels)
        fields = {"image": image, "line": line, "pixel": pixel, "rows": count, "taps_y": 1}
        fields |= {"taps_x": 1, "transpose": 1}
        if of_x:
            fields |= {
                "y": self.y,
                "x": self.x,
                "segment_bytes": 2 * self.channels[0],
                "base": slot * self.a_slot,
                "stride": self.a_stride,
                "groups": -(-self.channels[0] // config.rows),
            }
            return [Instruction(Opcode.GATHER, fields)]
        made = []
        together = config.b_groups if self.wide else 1
        whole = config.cols // config.granule_halves * config.granule_halves * together
        for number, channel in enumerate(range(0, self.channels[1], whole)):
            channels = min(whole, self.channels[1] - channel)
            own = {
                "destination": Buffer.B,
                "offset": 2 * channel,
                "segment_bytes": 2 * channels,
                "base": ((slot << self.split) + number * together) * self.b_stride,
                "stride": self.b_stride,
                "groups": -(-channels // config.cols),
            }
            made.append(Instruction(Opcode.GATHER, fields | own))
        return made

    def program(self) -> Program:
        """Return the program: chunk after chunk in two slots, sums kept in the array."""
        config = self.config
        made: list[Instruction] = []
        chunks = range(0, self.positions, self.chunk)
        for number, first in enumerate(chunks):
            count = up(min(self.chunk, self.positions - first), self.m)
            slot = number % SLOTS
            loads = [
                load
                for of_x in (True, False)
                for load in (*self._settings(of_x), *self._gather(of_x, first, count, slot))
            ]
            wait = FREE if number >= SLOTS else 0
            loads[0] = Instruction(Opcode.TENSOR, loads[0].body, wait=wait)
            loads[-1] = Instruction(Opcode.GATHER, loads[-1].body, signal=FULL)
            words, per_word = -(-count // config.max_m), config.max_m // self.m * self.n
            b_base = (slot << self.split) * self.b_stride
            body = {
                "start": Start.KEEP if number else Start.ZERO,
                "emit": first == chunks[-1],
                "n": self.n,
                "log2_m": self.m.bit_length() - 1,
                "split": self.split,
                "words": words,
                "values": per_word,
                "last": count // self.m * self.n - (words - 1) * per_word,
                "a_base": slot * self.a_slot,
                "a_stride": self.a_stride,
                "b_base": b_base,
                "b_stride": self.b_stride,
                "i_base": b_base // 4,
                "i_stride": self.b_stride // 4,
            }
            last = first == chunks[-1]
            multiply = {"release": 0 if number + SLOTS >= len(chunks) else FREE}
            made += [
                *loads,
                Instruction(Opcode.MULTIPLY, body, FULL, **multiply, signal=DONE * last),
            ]
        width = 1 << self.split
        store = {
            "address": self.places[2],
            "pitch": 4 * config.cols * width,
            "rows": self.rows,
            "row_bytes": 4 * config.cols * width,
            "stride": width,
        }
        made += [Instruction(Opcode.STORE, store, wait=DONE), Instruction(Opcode.END, {})]
        return Program(made)


def random_tile(rng: random.Random, config: SatConfig) -> Tile:
    """Return a tile of any pattern of the device, of chunks that fill its buffers more or less."""
    m = rng.choice([m for m in (2, 4, 8, 16) if m <= config.max_m])
    split = rng.randint(0, config.interleave.bit_length() - 1)
    granule = config.granule_halves
    whole = config.cols // granule * granule
    rows = config.rows * (config.interleave >> split)
    wide = max(config.a_groups, config.b_groups) > 1 and rng.random() < 0.8
    room = min(
        config.a_words // SLOTS // -(-up(rows, granule) // config.rows) - 1,
        (config.b_words // SLOTS >> split) // 4 * 4 - 1,
    )
    room -= config.beat_words * wide
    chunk = up(rng.randint(1, min(room, 6) * config.max_m), m)
    if chunk > room * config.max_m:
        chunk -= m
    step = rng.choice([1, 1, 2])
    cols = whole if rng.random() < 0.5 else granule * rng.randint(1, whole // granule)
    return Tile(
        config=config,
        n=rng.randint(1, m),
        m=m,
        images=rng.randint(1, 3),
        lines=rng.randint(1, 5),
        pixels=rng.randint(1, 6),
        step=step,
        y=rng.randint(-2, 2),
        x=rng.randint(-2, 2),
        split=split,
        channels=(up(rng.randint(1, rows), granule), (whole * ((1 << split) - 1)) + cols),
        chunk=chunk,
        one_window=rng.random() < 0.5,
        wide=wide,
    )
