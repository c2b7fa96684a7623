"""Layers in device memory: where the tensors of a training step lie, and how weights are packed.

`LayerMemory` places what a training step of a `Layer` reads and writes:

========== =========================================== ==========================================
region     rows                                        a row
========== =========================================== ==========================================
x, dx      pixels of the input, image by image (NHWC)  FP16 channels, padded (`padded_in`)
y, dy      pixels of the output                        FP16 channels, padded (`padded_out`)
mask, …    pixels                                      a bit a channel, in words of C columns
w, v, g    output channels, padded                     FP32: tap after tap, channels padded
ff, bp     output channels; input channels             FP16: tap after tap, what the pattern keeps
ff_index … the same                                    their 4-bit indices
bias       1                                           FP32 output channels
========== =========================================== ==========================================

Where WU prunes, its result has rows of input channels, for what is pruned must be the product's
right operand: so w, v, g are ``turned``: rows are input channels, a row tap after tap the output
channels. A depthwise layer has rows of taps, a row the channels; one copy, ``ff``, with a row for
each channel and its taps, serves FF and BP; its indices never change.

Padding must be 0 in activations and gradients and -0 in weights: (+0) * (-0) is -0, and adding -0
changes no sum, so padding changes no bit of a result.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from sat.dataflow.fit import DoesNotFit
from sat.dataflow.mapping import ceil_div, round_up
from sat.rtl.axi import BOUNDARY_BYTES
from sat.rtl.config import M_CHOICES, MOST_BEAT_WORDS, SatConfig, least_words
from sat.sim.layer import Layer as Layer
from sat.sim.layer import Pair as Pair


@dataclass(frozen=True)
class Packing:
    """How the channels along which weights are pruned are stored.

    Parameters
    ----------
    channels : int
        Padded: a whole number of words.
    n, m : int
        The pattern on the device. Few channels are a pattern that keeps just them.
    """

    channels: int
    n: int
    m: int

    @classmethod
    def of(cls, channels: int, pattern: Pair, config: SatConfig) -> Packing:
        """Return the packing of a pattern over channels of one group."""
        n, m = pattern
        padded = round_up(channels, config.max_m)
        # Padding is -0 and comes last, so it is never chosen before a channel.
        if m == 1 and round_up(channels, 2) < config.max_m:
            return cls(padded, round_up(channels, 2), config.max_m)
        if m == channels < config.max_m and n % 2 == 0:
            return cls(padded, n, config.max_m)
        return cls(padded, n, m)

    @property
    def dense(self) -> bool:
        return self.m == 1

    @property
    def kept(self) -> int:
        """Values that a tap stores."""
        return self.channels * self.n // self.m

    @property
    def segment(self) -> int:
        """Values from one tap to the next: whole bytes of indices."""
        return round_up(self.kept, 2)


def boundary_bytes(config: SatConfig) -> int:
    """Return what bursts are cut at, in bytes of memory: 4 KiB of each data port.

    What moves by a multiple of it takes as many cycles as where it was.
    """
    return BOUNDARY_BYTES * config.axi.ports


@dataclass(frozen=True)
class Region:
    """A matrix in device memory: byte address, bytes from row to row, rows, bytes of a row."""

    address: int
    pitch: int
    rows: int
    row_bytes: int

    @property
    def end(self) -> int:
        """First byte address behind the matrix."""
        return self.address + (self.rows - 1) * self.pitch + max(self.pitch, self.row_bytes)

    def moved(self, by: int) -> Region:
        """Return the region ``by`` bytes further on."""
        return replace(self, address=self.address + by)

    def alike(self, config: SatConfig) -> tuple[int, int, int]:
        """Return what the cycles of its rows' loads and stores depend on.

        Bursts are cut at boundaries. Where no row crosses one, only the place in a beat matters.
        """
        boundary = boundary_bytes(config)
        block = min(self.pitch & -self.pitch, boundary) or boundary
        whole = self.address % block + self.row_bytes <= block
        apart = config.axi.beat_bytes if whole else boundary
        return self.address % apart, self.pitch, self.row_bytes


def _fits_word(layer: Layer, word: int) -> bool:
    """Whether words of so many channels fit a layer's patterns and groups."""
    if word < max(layer.ff[1], layer.bp[1], layer.wu[1]):
        return False
    alone = layer.groups == 1 or layer.depthwise
    return alone or (layer.in_per_group % word == 0 and layer.out_per_group % word == 0)


def _fits_masks(layer: Layer, word: int, cols: int) -> bool:
    """Whether the bits of a layer's masks lie in words of so many columns."""
    if layer.groups == 1 or not (layer.relu or layer.masked):
        return True
    if layer.depthwise:
        return word % cols == 0 or (word % 8 == 0 and cols % word == 0)
    return (not layer.relu or layer.out_per_group % cols == 0) and (
        not layer.masked or layer.in_per_group % cols == 0
    )


def _check_channels(layer: Layer, config: SatConfig) -> None:
    """Check a layer's groups of channels against the device's words and columns.

    Raises
    ------
    DoesNotFit
        With the nearest device whose words and columns fit.
    """
    word, cols = config.max_m, config.cols
    if _fits_word(layer, word) and _fits_masks(layer, word, cols):
        return
    one_by_one = "send its products one by one"
    words = sorted((m for m in M_CHOICES if _fits_word(layer, m)), key=lambda m: (abs(m - word), m))
    if not words:
        raise DoesNotFit(
            f"groups={layer.groups}: {layer.in_per_group} input and {layer.out_per_group} output "
            f"channels a group are no whole words of 2, 4, 8 or 16 channels, nor one channel each",
            {},
            one_by_one,
        )
    fixes: dict[str, int] = {}
    if words[0] != word:
        word = words[0]
        fixes["max_m"] = word
        if config.max_n > word:
            fixes["max_n"] = word
        # Narrower words are more of them in a beat.
        ports = config.axi.ports
        beat = min(config.axi.beat_bytes, MOST_BEAT_WORDS * 2 * word)
        if beat < config.axi.beat_bytes:
            fixes["axi.data_bits"] = 8 * beat // ports
        fixes |= {
            name: least
            for name, least in least_words(max(1, beat // (2 * word))).items()
            if getattr(config, name) < least
        }
    cols = next(c for c in range(cols, 0, -1) if _fits_masks(layer, word, c))
    if cols != config.cols:
        fixes["cols"] = cols
    if config.max_m < max(layer.ff[1], layer.bp[1], layer.wu[1]):
        n, m = max(layer.ff, layer.bp, layer.wu, key=lambda pattern: pattern[1])
        what = f"pattern {n}:{m}: this device has max_m={config.max_m}"
    elif not _fits_word(layer, config.max_m):
        what = (
            f"groups={layer.groups}: {layer.in_per_group} input and {layer.out_per_group} output "
            f"channels a group; this device runs depthwise layers, and groups of whole words of "
            f"max_m={config.max_m} channels"
        )
    else:
        what = (
            f"groups={layer.groups} with a mask: {layer.in_per_group} input and "
            f"{layer.out_per_group} output channels a group (depthwise: words of {config.max_m}) "
            f"and mask words of cols={config.cols} columns do not fill each other"
        )
    raise DoesNotFit(what, fixes, one_by_one)


class LayerMemory:
    """Where a layer's tensors lie.

    Parameters
    ----------
    layer : Layer
    config : SatConfig
    base : int
        Byte address of the first region.

    Attributes
    ----------
    regions : dict of str to Region
        By the names above, and ``in_mask``, ``out_mask``; those that the layer has.
    held : range
        Byte addresses of w, v and the pruned copies: what stays from step to step. They begin
        at a multiple of `boundary_bytes`, so that they may lie elsewhere (`moved`).
    ff, bp : Packing
    turned : bool
        Whether rows of w, v and g are input channels.
    padded_in, padded_out : int
        Channels of a pixel, padded.
    end : int
        First byte address behind all that was placed from ``base`` on.

    Raises
    ------
    DoesNotFit
        The device cannot run this layer's groups or patterns.
    """

    def __init__(self, layer: Layer, config: SatConfig, base: int = 0):
        self.layer, self.config = layer, config
        word = config.max_m
        _check_channels(layer, config)
        self.turned = layer.wu != (1, 1)
        if self.turned and not config.prune_gathers:
            raise DoesNotFit(
                f"wu pattern {layer.wu[0]}:{layer.wu[1]}: this device has prune_gathers=False, so "
                "it loads gradients as they are",
                {"prune_gathers": True},
                "send its products one by one",
            )
        if self.turned and config.cols % config.granule_halves:
            cols = round_up(config.cols, config.granule_halves)
            raise DoesNotFit(
                f"wu pattern {layer.wu[0]}:{layer.wu[1]}: pruned channels come in granules of "
                f"{config.granule_halves}, which cols={config.cols} cuts",
                {"cols": cols},
                "send its products one by one",
            )
        self.padded_in = round_up(layer.in_channels, word)
        self.padded_out = round_up(layer.out_channels, word)
        self.at = base
        self.regions: dict[str, Region] = {}

        def place(name: str, rows: int, row_bytes: int) -> None:
            pitch = round_up(row_bytes, config.granule_bytes)
            first = round_up(self.at, max(64, config.axi.beat_bytes))
            made = Region(first, pitch, rows, row_bytes)
            self.regions[name] = made
            self.at = made.end

        if layer.depthwise:
            self.ff = self.bp = Packing(word, 1, word)
            # UPDATE prunes both ways; whole tiles of it need whole beats.
            weights = layer.taps, 4 * self.padded_out
        else:
            self.ff = Packing.of(layer.in_per_group, layer.ff, config)
            self.bp = Packing.of(layer.out_per_group, layer.bp, config)
            rows = self.bp.channels * layer.groups
            columns = self.ff.channels * layer.groups
            weights = rows, 4 * layer.taps * self.ff.channels
            if self.turned:
                weights = columns, 4 * layer.taps * self.bp.channels
        self.at = start = round_up(base, boundary_bytes(config))
        place("w", *weights)
        place("v", *weights)
        if layer.depthwise:
            place("ff", self.padded_out, 2 * layer.taps)
            place("ff_index", self.padded_out, ceil_div(layer.taps, 2))
        else:
            for name, packing, lines in (("ff", self.ff, rows), ("bp", self.bp, columns)):
                place(name, lines, 2 * layer.taps * packing.segment)
                if not packing.dense:
                    place(f"{name}_index", lines, layer.taps * packing.segment // 2)
        self.held = range(start, self.at)
        place("g", *weights)
        place("x", layer.in_positions, 2 * self.padded_in)
        place("dx", layer.in_positions, 2 * self.padded_in)
        place("y", layer.out_positions, 2 * self.padded_out)
        place("dy", layer.out_positions, 2 * self.padded_out)
        if layer.masked:
            self._mask("in_mask", layer.in_positions, layer.in_channels)
        if layer.relu:
            self._mask("out_mask", layer.out_positions, layer.out_channels)
        if layer.bias:
            place("bias", 1, 4 * layer.out_channels)
        if layer.depthwise:
            # WU's constant indices: lane x for column x, for the longest chunk of positions.
            place("lane_index", word, config.a_words * word // 2)
        self.end = self.at

    def moved(self, by: int) -> LayerMemory:
        """Return the same with what is `held` lying ``by`` bytes further on."""
        made = copy.copy(self)
        made.regions = {
            name: region.moved(by) if region.address in self.held else region
            for name, region in self.regions.items()
        }
        made.held = range(self.held.start + by, self.held.stop + by)
        return made

    def _mask(self, name: str, positions: int, channels: int) -> None:
        config = self.config
        pitch = ceil_div(channels, config.cols) * config.mask_bytes
        made = Region(round_up(self.at, max(64, config.granule_bytes)), pitch, positions, pitch)
        self.regions[name] = made
        self.at = made.end

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    @property
    def copies(self) -> tuple[tuple[str, Packing], tuple[str, Packing]]:
        """The copies that are pruned along rows of w, and along its columns: names, packings.

        UPDATE, whose fields call the first FF's, knows nothing of `turned`.
        """
        ff, bp = ("ff", self.ff), ("bp", self.bp)
        return (bp, ff) if self.turned else (ff, bp)
