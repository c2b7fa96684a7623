"""Queues between engines."""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out


class Queue(wiring.Component):
    """First in, first out; an item put in cycle x is at the output from cycle x + 1.

    Full throughput: an item a cycle in and out. It accepts whenever it is not full; being
    emptied in the same cycle does not make room.

    Parameters
    ----------
    shape : shape-castable
    depth : int
        Items it holds, at least 1.
    head : bool
        Whether the first item stands in registers, for what has a long way to go behind them.

    Members
    -------
    i, o : ``In``, ``Out(stream.Signature(shape))``
    level : ``Out``
        Items in it.
    """

    def __init__(self, shape: Any, depth: int, head: bool = False):
        if depth < 1:
            raise ValueError(f"depth={depth}: a queue holds at least 1 item")
        self.depth, self.head = depth, head
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth = self.depth
        # A memory, not registers: a place costs an FPGA a few LUTs instead of a flip-flop a bit
        # and a multiplexer of all places.
        m.submodules.items = items = memory.Memory(shape=self.i.p.shape(), depth=depth, init=[])
        write, read = items.write_port(), items.read_port(domain="comb")
        first = Signal(range(depth))
        free = Signal(range(depth))
        self.state = (items, first, free)  # what proofs speak of (tests/formal)
        put = self.i.valid & self.i.ready
        take = self.o.valid & self.o.ready
        m.d.comb += [
            self.i.ready.eq(self.level != depth),
            self.o.valid.eq(self.level != 0),
            write.addr.eq(free),
            write.data.eq(self.i.p),
            write.en.eq(put),
        ]

        def after(place: Signal) -> Value:
            return Mux(place == depth - 1, 0, place + 1)

        if self.head:
            item = Signal(self.i.p.shape(), name="head", reset_less=True)
            m.d.comb += [read.addr.eq(after(first)), self.o.p.eq(item)]
            with m.If(put & (self.level == take)):  # it is the first of those that are left
                m.d.sync += item.eq(self.i.p)
            with m.Elif(take):
                m.d.sync += item.eq(read.data)
        else:
            m.d.comb += [read.addr.eq(first), self.o.p.eq(read.data)]
        with m.If(put):
            m.d.sync += free.eq(after(free))
        with m.If(take):
            m.d.sync += first.eq(after(first))
        m.d.sync += self.level.eq(self.level + put - take)
        return m
