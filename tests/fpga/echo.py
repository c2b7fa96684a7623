"""The smallest board that is one: it sends back what it hears and shows it on its LEDs."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.uart import UartReceiver, UartTransmitter


class Echo(wiring.Component):
    """A byte's way from ``rx`` to ``tx`` and ``leds``."""

    def __init__(self, clock_hz: float, baud: float) -> None:
        self.clock_hz, self.baud = clock_hz, baud
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "leds": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self.clock_hz, self.baud)
        m.submodules.transmitter = transmitter = UartTransmitter(self.clock_hz, self.baud)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            transmitter.i.valid.eq(receiver.valid),
            transmitter.i.payload.eq(receiver.data),
            self.tx.eq(transmitter.tx),
        ]
        with m.If(receiver.valid):
            m.d.sync += self.leds.eq(receiver.data)
        return m
