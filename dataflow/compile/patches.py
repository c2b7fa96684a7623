"""Pixels and taps: what GATHERs read, and where rows of pixels lie."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.columns import Array, Block, spread
from sat.dataflow.layers import Layer, LayerMemory, Pair, Region
from sat.rtl.config import SatConfig
from sat.rtl.isa import Opcode


class Runs(NamedTuple):
    """Runs of rows whose pixels are evenly spaced: (runs,) int64 each.

    Parameters
    ----------
    owner : whose it is, ascending
    begin, size : the first row, how many
    pixel, apart : the pixel of the first, pixels from one to the next
    """

    owner: Array
    begin: Array
    size: Array
    pixel: Array
    apart: Array


def run_begins(there: NDArray[np.bool_], pixel: Array) -> NDArray[np.bool_]:
    """Return where runs of following rows at evenly spaced pixels begin: (rows, lanes).

    Parameters
    ----------
    there : (rows, lanes) bool
        The others belong to no run.
    """
    begins = np.zeros_like(there)
    count = np.zeros(there.shape[1], np.int64)  # of the run that the row before belongs to
    apart = np.ones_like(count)
    before = np.zeros_like(count)
    for row, (is_there, at) in enumerate(zip(there, pixel, strict=True)):
        step = at - before
        goes_on = is_there & (count > 0) & ((count == 1) | (step == apart))
        begins[row] = is_there & ~goes_on
        apart = np.where(goes_on, step, apart)
        count = np.where(goes_on, count + 1, is_there)
        before = at
    return begins


@dataclass(frozen=True)
class Grid:
    """Positions of a product's rows: a regular grid on the pixels of images.

    Parameters
    ----------
    size : (int, int)
        Lines of positions in an image, positions in a line.
    first, step : (int, int)
        Line and pixel of the first position; from one to the next.
    image : (int, int)
        Lines and pixels of an image.
    """

    size: Pair
    first: Pair
    step: Pair
    image: Pair

    @classmethod
    def all(cls, image: Pair) -> Grid:
        """Return every pixel."""
        return cls(image, (0, 0), (1, 1), image)

    def pixel(self, image: Array, line: Array, pixel: Array) -> Array:
        """Return the pixels, counted through all images, of positions."""
        y = self.first[0] + line * self.step[0]
        x = self.first[1] + pixel * self.step[1]
        return (image * self.image[0] + y) * self.image[1] + x

    def runs(self, begin: Array, end: Array) -> Runs:
        """Return the runs of pixels of several ranges of positions."""
        if self == Grid.all(self.image):
            return Runs(np.arange(len(begin)), begin, end - begin, begin, np.ones_like(begin))
        # One for each line that a range meets.
        first, last = begin // self.size[1], (end - 1) // self.size[1]
        owner, place = spread(last - first + 1)
        line = first[owner] + place
        at = np.maximum(begin[owner], line * self.size[1])
        count = np.minimum(end[owner], (line + 1) * self.size[1]) - at
        image, in_image = np.divmod(line, self.size[0])
        pixel = self.pixel(image, in_image, at - line * self.size[1])
        return Runs(owner, at, count, pixel, np.full_like(at, self.step[1]))


@dataclass(frozen=True)
class Patches:
    """What a GATHER reads for each position: taps on a tensor of pixels.

    Parameters
    ----------
    region : Region
        The tensor, a row a pixel.
    images : int
    image : (int, int)
        Lines and pixels of the tensor.
    size : (int, int)
        Lines of positions, positions in a line.
    start, step, tap : (int, int)
        Source of the first tap at position (0, 0); from position to position; from tap to tap.
    taps : (int, int)
    offset, segment : int
        First byte of a pixel that is read, and bytes.
    """

    region: Region
    images: int
    image: Pair
    size: Pair
    start: Pair
    step: Pair
    tap: Pair
    taps: Pair
    offset: int
    segment: int

    @property
    def first_zeros(self) -> int:
        """Segments that are off the tensor before the first one on it, at most.

        They are of position (0, 0), unless all of its taps are off: then any number.
        """
        y, x = (
            [
                0 <= self.start[axis] + n * self.tap[axis] < self.image[axis]
                for n in range(self.taps[axis])
            ]
            for axis in range(2)
        )
        if not any(y) or not any(x):
            return self.images * self.size[0] * self.size[1] * len(y) * len(x)
        return y.index(True) * len(x) + x.index(True)

    def alike(self, config: SatConfig) -> Hashable:
        """Return all that the cycles of its GATHERs depend on: not where taps are that are not."""
        tap = tuple(step if taps > 1 else 0 for step, taps in zip(self.tap, self.taps, strict=True))
        sizes = self.images, self.image, self.size, self.start, self.step, tap, self.taps
        return self.region.alike(config), sizes, self.offset, self.segment

    def setup(self, count: int, **window: int) -> list[Block]:
        """Return a TENSOR and a WINDOW for each of several owners; the window's as given."""
        pitch = self.region.pitch
        tensor = {
            "address": self.region.address,
            "images": self.images,
            "lines": self.image[0],
            "pixels": self.image[1],
            "pixel_pitch": pitch,
            "line_pitch": pitch * self.image[1],
            "image_pitch": pitch * self.image[1] * self.image[0],
        }
        window = window or {
            "lines": self.size[0],
            "pixels": self.size[1],
            "step_y": self.step[0],
            "step_x": self.step[1],
            "tap_y": self.tap[0],
            "tap_x": self.tap[1],
        }
        owner = np.arange(count)
        return [Block(Opcode.TENSOR, tensor, owner), Block(Opcode.WINDOW, window, owner, 1)]

    def position(self, number: Array) -> dict[str, Array]:
        """Return the fields that name positions."""
        rest, pixel = np.divmod(number, self.size[1])
        image, line = np.divmod(rest, self.size[0])
        return {"image": image, "line": line, "pixel": pixel}

    def words(self, first: int, end: int, word_bytes: int) -> Iterator[tuple[int, dict[str, int]]]:
        """Yield (word, fields) of the rectangles of taps that make up some words of a row."""
        per_tap = self.segment // word_bytes
        at = first
        while at < end:
            tap, inner = divmod(at, per_tap)
            tap_y, tap_x = divmod(tap, self.taps[1])
            count, taps = min(per_tap - inner, end - at), (1, 1)
            if count == per_tap:
                taps = (1, min(self.taps[1] - tap_x, (end - at) // per_tap))
                if taps[1] == self.taps[1]:
                    taps = ((end - at) // (per_tap * taps[1]), taps[1])
            yield (
                at,
                {
                    "y": self.start[0] + tap_y * self.tap[0],
                    "x": self.start[1] + tap_x * self.tap[1],
                    "taps_y": taps[0],
                    "taps_x": taps[1],
                    "offset": self.offset + inner * word_bytes,
                    "segment_bytes": count * word_bytes,
                },
            )
            at += count * taps[0] * taps[1]


def groups_of(layer: Layer, memory: LayerMemory) -> Iterator[tuple[int, int, int]]:
    """Yield (first input channel, first output channel, output channels) of what runs together.

    Depthwise channels run a word at a time: their weights are a pattern that picks one channel
    of a word.
    """
    if layer.depthwise:
        word = memory.config.max_m
        for first in range(0, layer.in_channels, word):
            yield first, first, min(word, layer.in_channels - first)
    else:
        for group in range(layer.groups):
            yield group * layer.in_per_group, group * layer.out_per_group, layer.out_per_group
