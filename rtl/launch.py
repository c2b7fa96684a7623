"""Launches: commands that wait for their cycle."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import SatConfig


def time_bits(config: SatConfig) -> int:
    """Return the width of the counter that times launches: twice the longest tile fits."""
    longest = (
        config.a_words * config.max_m * config.interleave
        + 64 * (config.rows + config.cols + 16) * config.interleave
    )
    return longest.bit_length() + 1


class LaunchQueue(wiring.Component):
    """Hold commands until their cycle has come.

    A command pushed in cycle x with time t > x comes out, for exactly that cycle, in cycle t.
    Times must not decrease from one command to the next, nor lie further ahead than half the
    range of the time counter; the queue must not be pushed when full.

    Members
    -------
    now : ``In``
        The time counter.
    push, time, item : ``In``
        A command.
    valid, out : ``Out``
        The command whose cycle it is.
    """

    def __init__(self, shape: data.Layout | int, depth: int, bits: int):
        self.shape, self.depth, self.bits = shape, depth, bits
        super().__init__(
            {
                "now": In(bits),
                "push": In(1),
                "time": In(bits),
                "item": In(shape),
                "valid": Out(1),
                "out": Out(shape),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth = self.depth
        command = data.StructLayout({"time": self.bits, "item": self.shape})
        m.submodules.commands = commands = memory.Memory(shape=command, depth=depth, init=[])
        write, read = commands.write_port(), commands.read_port(domain="comb")
        taken, put = Signal(range(depth)), Signal(range(depth))
        level = Signal(range(depth + 1))
        m.d.comb += [
            write.addr.eq(put),
            write.data.time.eq(self.time),
            write.data.item.eq(self.item),
            write.en.eq(self.push),
            read.addr.eq(taken),
            self.valid.eq((level != 0) & (read.data.time == self.now)),
            self.out.eq(read.data.item),
        ]

        def after(pointer: Signal) -> Value:
            return Mux(pointer == depth - 1, 0, pointer + 1)

        with m.If(self.push):
            m.d.sync += put.eq(after(put))
        with m.If(self.valid):
            m.d.sync += taken.eq(after(taken))
        m.d.sync += level.eq(level + self.push - self.valid)
        return m
