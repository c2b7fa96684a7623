"""From LOAD and GATHER instructions to the segments of memory that they read."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl import isa
from sat.rtl.config import SatConfig
from sat.rtl.isa import Opcode

SETTINGS_CYCLES = 3
"""Cycles after TENSOR or WINDOW in which the bytes of its steps are worked out."""

SETUP_CYCLES = 6
"""Cycles that a GATHER's start takes to be worked out, more than a LOAD's."""


def walk_layout() -> data.StructLayout:
    """Return what a `SegmentWalker` receives: a load engine's instruction."""
    return data.StructLayout({"opcode": 8, "body": isa.BODY_BITS})


def segment_layout(config: SatConfig) -> data.StructLayout:
    """Return a segment: its first byte, its bytes, whether it is zeros instead."""
    return data.StructLayout({"address": config.axi.address_bits, "size": 20, "zero": 1})


class _Multiplier:
    """A multiplier that products share, one a cycle; its factors stand in registers."""

    def __init__(self, m: Module, name: str, factor_bits: int, bits: int) -> None:
        self._m = m
        # Sources of pixels may lie before the first.
        self._a = Signal(signed(17), name=f"{name}_a", reset_less=True)
        self._b = Signal(factor_bits, name=f"{name}_b", reset_less=True)
        self._product = Signal(bits, name=f"{name}_product")
        m.d.comb += self._product.eq(self._a * self._b)

    def form(self, left: Signal, cycle: int, result: Signal, a: Value, b: Value) -> None:
        """Have a register take the product of two numbers, ``cycle`` cycles before the end.

        ``left``: the cycles to the end. The factors must be there a cycle earlier.
        """
        with self._m.If(left == cycle + 1):
            self._m.d.sync += [self._a.eq(a), self._b.eq(b)]
        with self._m.If(left == cycle):
            self._m.d.sync += result.eq(self._product)


class SegmentWalker(wiring.Component):
    """Walk rows, or positions and their taps, a segment a cycle.

    TENSOR and WINDOW set registers that later GATHERs use; they give no segments, and the next
    instruction is taken `SETTINGS_CYCLES` + 1 later. A LOAD taken in cycle x gives its first
    segment in cycle x + 1, a GATHER in x + 1 + `SETUP_CYCLES`; the next instruction is taken in the
    cycle after the last segment has left.

    For each position (pixel of a line of an image), for each line of taps, for each tap: the
    segment at source line ``y + line * step_y + tap * tap_y`` and pixel likewise; zeros where
    that is outside the tensor. Every product with a position is a running sum: only the first
    one is multiplied out, by two multipliers that all products share.

    Members
    -------
    i : ``In(stream.Signature(walk_layout()))``
    o : ``Out(stream.Signature(segment_layout))``
    """

    def __init__(self, config: SatConfig):
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(walk_layout())),
                "o": Out(stream.Signature(segment_layout(config))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = self.config.axi.address_bits

        def body(layout: data.StructLayout) -> data.View:
            return data.View(layout, self.i.p.body[: layout.size])

        tensor = Signal(isa.TENSOR)
        window = Signal(isa.WINDOW, init={"lines": 1, "pixels": 1})
        gather = Signal(isa.GATHER)
        # Bytes from position to position and from tap to tap.
        step_line, step_pixel = Signal(bits), Signal(bits)
        tap_line, tap_pixel = Signal(bits), Signal(bits)

        active = Signal()
        setup = Signal(range(SETUP_CYCLES + 1))  # cycles until a GATHER walks
        settings = Signal(range(SETTINGS_CYCLES + 1))  # cycles until the steps are known
        is_gather = Signal()
        rows_left = Signal(16)  # besides this one
        size = Signal(20)
        image, line, pixel = Signal(17), Signal(12), Signal(12)
        y0, x0 = Signal(signed(22)), Signal(signed(22))  # first tap of the position
        y, x = Signal(signed(22)), Signal(signed(22))  # of the tap
        image_at = Signal(bits)  # source line 0 of the image, at the first byte wanted
        first_line, line_at = Signal(bits), Signal(bits)  # first tap of line 0; of this line
        first_pixel, pixel_at = Signal(bits), Signal(bits)  # its bytes into a line; of this one
        tap_line_at, tap_pixel_at = Signal(bits), Signal(bits)
        left_y, left_x = Signal(8), Signal(8)  # taps after this one

        zero = (
            (image >= tensor.images)
            | (y < 0)
            | (y >= tensor.lines)
            | (x < 0)
            | (x >= tensor.pixels)
        )
        m.d.comb += [
            self.i.ready.eq(~active & (setup == 0) & (settings == 0)),
            self.o.valid.eq(active),
            self.o.p.address.eq(tap_line_at + tap_pixel_at),
            self.o.p.size.eq(size),
            self.o.p.zero.eq(is_gather & zero),
        ]

        def first_tap() -> list:
            return [left_y.eq(gather.taps_y - 1), left_x.eq(gather.taps_x - 1)]

        last_line, last_pixel = Signal(12), Signal(12)  # of positions
        m.d.sync += [last_line.eq(window.lines - 1), last_pixel.eq(window.pixels - 1)]
        with m.If(active & self.o.ready):
            with m.If(left_x != 0):
                m.d.sync += [
                    left_x.eq(left_x - 1),
                    x.eq(x + window.tap_x),
                    tap_pixel_at.eq(tap_pixel_at + tap_pixel),
                ]
            with m.Elif(left_y != 0):
                m.d.sync += [
                    left_y.eq(left_y - 1),
                    left_x.eq(gather.taps_x - 1),
                    y.eq(y + window.tap_y),
                    x.eq(x0),
                    tap_line_at.eq(tap_line_at + tap_line),
                    tap_pixel_at.eq(pixel_at),
                ]
            with m.Else():
                m.d.sync += [rows_left.eq(rows_left - 1), *first_tap()]
                with m.If(rows_left == 0):
                    m.d.sync += active.eq(0)
                with m.If(~is_gather):
                    # A LOAD: a position is a row, `step_pixel` its pitch.
                    m.d.sync += [left_y.eq(0), left_x.eq(0)]
                    m.d.sync += tap_line_at.eq(tap_line_at + image_at)
                with m.Elif(pixel != last_pixel):
                    m.d.sync += [
                        pixel.eq(pixel + 1),
                        x0.eq(x0 + window.step_x),
                        x.eq(x0 + window.step_x),
                        y.eq(y0),
                        pixel_at.eq(pixel_at + step_pixel),
                        tap_pixel_at.eq(pixel_at + step_pixel),
                        tap_line_at.eq(line_at),
                    ]
                with m.Else():
                    m.d.sync += [
                        pixel.eq(0),
                        x0.eq(gather.x),
                        x.eq(gather.x),
                        pixel_at.eq(first_pixel),
                        tap_pixel_at.eq(first_pixel),
                    ]
                    with m.If(line != last_line):
                        m.d.sync += [
                            line.eq(line + 1),
                            y0.eq(y0 + window.step_y),
                            y.eq(y0 + window.step_y),
                            line_at.eq(line_at + step_line),
                            tap_line_at.eq(line_at + step_line),
                        ]
                    with m.Else():
                        next_line = first_line + tensor.image_pitch
                        m.d.sync += [
                            line.eq(0),
                            image.eq(image + 1),
                            y0.eq(gather.y),
                            y.eq(gather.y),
                            first_line.eq(next_line),
                            line_at.eq(next_line),
                            tap_line_at.eq(next_line),
                        ]

        with m.If(self.i.valid & self.i.ready), m.Switch(self.i.p.opcode):
            with m.Case(Opcode.TENSOR.value):
                m.d.sync += [tensor.eq(body(isa.TENSOR)), settings.eq(SETTINGS_CYCLES)]
            with m.Case(Opcode.WINDOW.value):
                m.d.sync += [window.eq(body(isa.WINDOW)), settings.eq(SETTINGS_CYCLES)]
            with m.Case(Opcode.GATHER.value):
                m.d.sync += [gather.eq(body(isa.GATHER)), setup.eq(SETUP_CYCLES)]
            with m.Default():
                load = body(isa.LOAD)
                m.d.sync += [
                    active.eq(1),
                    is_gather.eq(0),
                    rows_left.eq(load.rows - 1),
                    size.eq(load.row_bytes),
                    tap_line_at.eq(load.address),
                    tap_pixel_at.eq(0),
                    image_at.eq(load.pitch),
                    left_y.eq(0),
                    left_x.eq(0),
                ]

        # Products, a cycle each, then their sums. One multiplier is for lines and what is below
        # them, the other for pixels. What lies outside the address space is cut off.
        lines, pixels = Signal(bits), Signal(bits)
        below, beside = Signal(20), Signal(20)  # source lines and pixels before the position
        line_unit = _Multiplier(m, "line_unit", min(bits, 36), bits)
        pixel_unit = _Multiplier(m, "pixel_unit", min(bits, 28), bits)
        with m.If(settings != 0):
            m.d.sync += settings.eq(settings - 1)
        line_unit.form(settings, 2, step_line, window.step_y, tensor.line_pitch)
        pixel_unit.form(settings, 2, step_pixel, window.step_x, tensor.pixel_pitch)
        line_unit.form(settings, 1, tap_line, window.tap_y, tensor.line_pitch)
        pixel_unit.form(settings, 1, tap_pixel, window.tap_x, tensor.pixel_pitch)
        with m.If(setup != 0):
            m.d.sync += setup.eq(setup - 1)
        line_unit.form(setup, 5, image_at, gather.image, tensor.image_pitch)
        line_unit.form(setup, 4, first_line, gather.y, tensor.line_pitch)
        line_unit.form(setup, 3, lines, gather.line, step_line)
        line_unit.form(setup, 2, below, gather.line, window.step_y)
        pixel_unit.form(setup, 5, first_pixel, gather.x, tensor.pixel_pitch)
        pixel_unit.form(setup, 4, pixels, gather.pixel, step_pixel)
        pixel_unit.form(setup, 3, beside, gather.pixel, window.step_x)
        with m.If(setup == 1):
            start_line = tensor.address + gather.offset + image_at + first_line
            y_first, x_first = gather.y + below, gather.x + beside
            m.d.sync += [
                active.eq(1),
                is_gather.eq(1),
                rows_left.eq(gather.rows - 1),
                size.eq(gather.segment_bytes),
                image.eq(gather.image),
                line.eq(gather.line),
                pixel.eq(gather.pixel),
                y.eq(y_first),
                y0.eq(y_first),
                x.eq(x_first),
                x0.eq(x_first),
                first_line.eq(start_line),
                line_at.eq(start_line + lines),
                tap_line_at.eq(start_line + lines),
                pixel_at.eq(first_pixel + pixels),
                tap_pixel_at.eq(first_pixel + pixels),
                *first_tap(),
            ]
        return m
