"""Bytes over two wires: 8 data bits, no parity, one stop bit."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

_FRACTION = 16
"""Bits of a bit's phase. A clock that is no multiple of the baud rate gives bits a cycle apart."""


def _step(clock_hz: float, baud: float) -> int:
    """Return how far a bit gets in a cycle, in units of 2**-16 bits."""
    if not 0 < baud <= clock_hz / 4:
        raise ValueError(
            f"baud={baud:g}: must be positive and at most a quarter of the clock, "
            f"{clock_hz / 4:g}; lower it or raise the clock"
        )
    return round(baud / clock_hz * (1 << _FRACTION))


class UartReceiver(wiring.Component):
    """Receive bytes; each is at ``o`` for one cycle, ready or not.

    A bit is read in its middle, counted from the edge of the start bit; a start bit that is not
    low in its middle, or a stop bit that is not high, drops the byte.

    Parameters
    ----------
    clock_hz, baud : float
        At least 4 cycles a bit.

    Members
    -------
    rx : ``In(1)``
        The wire, in the clock's domain already.
    valid, data : ``Out(1)``, ``Out(8)``
        A byte.
    """

    def __init__(self, clock_hz: float, baud: float) -> None:
        self.step = _step(clock_hz, baud)
        super().__init__({"rx": In(1), "valid": Out(1), "data": Out(8)})

    def elaborate(self, platform):
        m = Module()
        phase = Signal(_FRACTION + 1)
        left, bits = Signal(range(11)), Signal(9)
        following = Signal(_FRACTION + 1)
        m.d.comb += following.eq(phase[:_FRACTION] + self.step)
        m.d.sync += self.valid.eq(0)
        with m.If(left == 0), m.If(~self.rx):
            # Half a bit on is the middle of the start bit.
            m.d.sync += [left.eq(10), phase.eq(1 << (_FRACTION - 1))]
        with m.Else():
            m.d.sync += phase.eq(following)
            with m.If(following[-1]):
                m.d.sync += [left.eq(left - 1), bits.eq(Cat(bits[1:], self.rx))]
                with m.If((left == 10) & self.rx):
                    m.d.sync += left.eq(0)  # a spike
                with m.If(left == 1):
                    m.d.sync += [self.valid.eq(self.rx), self.data.eq(bits[1:])]
        self.state = left, phase
        return m


class UartTransmitter(wiring.Component):
    """Send bytes, ten bits each, back to back.

    Parameters
    ----------
    clock_hz, baud : float
        At least 4 cycles a bit.

    Members
    -------
    i : ``In(stream.Signature(8))``
    tx : ``Out(1)``
        The wire; high at rest.
    """

    def __init__(self, clock_hz: float, baud: float) -> None:
        self.step = _step(clock_hz, baud)
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        phase = Signal(_FRACTION + 1)
        left = Signal(range(11))
        bits = Signal(10, init=1)
        following = Signal(_FRACTION + 1)
        ends = Signal()
        m.d.comb += [
            following.eq(phase[:_FRACTION] + self.step),
            ends.eq((left != 0) & following[-1]),
            self.i.ready.eq((left == 0) | (ends & (left == 1))),
            self.tx.eq((left == 0) | bits[0]),
        ]
        with m.If(left != 0):
            m.d.sync += phase.eq(following)
            with m.If(ends):
                m.d.sync += [left.eq(left - 1), bits.eq(bits >> 1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [left.eq(10), bits.eq(Cat(C(0, 1), self.i.payload, C(1, 1)))]
            with m.If(left == 0):
                m.d.sync += phase.eq(0)
        self.state = left, phase
        return m
