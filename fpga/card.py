"""A card: the device behind PCIe, with memory that the host reaches by itself."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.board import build_of
from sat.fpga.link.protocol import Greeting, MemoryKind
from sat.rtl import csr
from sat.rtl.axi import Axi4ReadSignature, Axi4Signature, AxiLiteSignature, Response
from sat.rtl.config import AxiConfig, FpTiming, SatConfig
from sat.rtl.device import Device
from sat.rtl.verilog import emit

CARD_CONFIG = SatConfig(
    rows=16,
    cols=16,
    interleave=8,
    fp=FpTiming(multiplier_stages=2, adder_stages=8, update_multiplier_stages=5, prune_stages=3),
    update_lanes=8,
    axi=AxiConfig(data_bits=512, address_bits=31, outstanding=64),
)
"""The device that cards have unless told otherwise: beats as wide as a DDR4 controller's."""

GREETING_OFFSET = 1 << csr.ADDRESS_BITS
"""Where the registers' bus has what the card says of itself; below are the device's registers."""
ADDRESS_BITS = csr.ADDRESS_BITS + 1
"""Of the registers' bus."""


class Greeter(wiring.Component):
    """Puts a greeting, words that are read only, above the device's registers.

    One read is under way at a time. Writes to the greeting are answered as those to any register
    that the host may not write: the device sees them as writes to ID.

    Parameters
    ----------
    greeting : Greeting

    Members
    -------
    bus : ``In(AxiLiteSignature(ADDRESS_BITS))``
    device : ``Out(AxiLiteSignature)``
        The device's registers.
    """

    def __init__(self, greeting: Greeting) -> None:
        raw = greeting.encode()
        self.words = [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
        super().__init__(
            {
                "bus": In(AxiLiteSignature(ADDRESS_BITS)),
                "device": Out(AxiLiteSignature(csr.ADDRESS_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus, device = self.bus, self.device
        for name, member in AxiLiteSignature(csr.ADDRESS_BITS).members.items():
            ours, its = getattr(bus, name), getattr(device, name)
            m.d.comb += its.eq(ours) if member.flow == Out else ours.eq(its)

        with m.If(bus.awaddr[csr.ADDRESS_BITS]):
            m.d.comb += device.awaddr.eq(csr.REGISTERS["ID"].offset)

        # A read of the device, and one of the greeting, whose answer is not taken yet.
        theirs, own = Signal(), Signal()
        word, known = Signal(32), Signal()
        idle = Signal()
        here = bus.araddr[csr.ADDRESS_BITS]
        m.d.comb += [
            idle.eq(~theirs & ~own),
            device.arvalid.eq(bus.arvalid & idle & ~here),
            bus.arready.eq(idle & (here | device.arready)),
            device.rready.eq(bus.rready & ~own),
        ]
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [theirs.eq(~here), own.eq(here), word.eq(0), known.eq(0)]
            with m.Switch(bus.araddr[2 : csr.ADDRESS_BITS]):
                for number, value in enumerate(self.words):
                    with m.Case(number):
                        m.d.sync += [word.eq(value), known.eq(1)]
        with m.If(bus.rvalid & bus.rready):
            m.d.sync += [theirs.eq(0), own.eq(0)]
        with m.If(own):
            m.d.comb += [
                bus.rvalid.eq(1),
                bus.rdata.eq(word),
                bus.rresp.eq(Mux(known, Response.OKAY, Response.SLVERR)),
            ]
        return m


class Card(wiring.Component):
    """What of a card is its own: the device, and registers that greet the host.

    Memory, PCIe and clocks are the board's, outside.

    Parameters
    ----------
    config : SatConfig
    memory_bytes : int, optional
        Of the card's memory, from address 0: all that the device addresses, if not given.

    Members
    -------
    csr : ``In(AxiLiteSignature(ADDRESS_BITS))``
        The device's registers; from `GREETING_OFFSET` on a `Greeting`.
    imem, dmem, irq
        The device's.
    """

    def __init__(self, config: SatConfig, memory_bytes: int | None = None) -> None:
        self.config = config
        axi = config.axi
        self.greeting = Greeting(
            1 << axi.address_bits if memory_bytes is None else memory_bytes,
            build_of(config),
            memory=MemoryKind.DDR4,
        )
        super().__init__(
            {
                "csr": In(AxiLiteSignature(ADDRESS_BITS)),
                "imem": Out(Axi4ReadSignature(axi.instructions)),
                **{name: Out(Axi4Signature(axi.port)) for name in axi.data_ports},
                "irq": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.device = device = Device(self.config)
        m.submodules.greeter = greeter = Greeter(self.greeting)
        wiring.connect(m, wiring.flipped(self.csr), greeter.bus)
        wiring.connect(m, greeter.device, device.csr)
        for name in ("imem", *self.config.axi.data_ports):
            wiring.connect(m, getattr(device, name), wiring.flipped(getattr(self, name)))
        m.d.comb += self.irq.eq(device.irq)
        return m


def card_verilog(card: Card, name: str = "top") -> str:
    """Return a card's Verilog, for LUTs that are memories of 32 words."""
    return emit(card, name, distributed_ram=True)
