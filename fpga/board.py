"""A board: the device, its memory, and the link to a host over two wires."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from sat.fpga.link.protocol import BUILD_BYTES
from sat.fpga.link.server import LinkServer, WordBusSignature
from sat.fpga.memory import BlockMemory
from sat.fpga.sdram.chip import PinSignature
from sat.fpga.sdram.geometry import Geometry
from sat.fpga.sdram.memory import SdramMemory
from sat.rtl.axi import AxiLiteSignature, Response
from sat.rtl.config import AxiConfig, FpTiming, SatConfig, require
from sat.rtl.csr import ADDRESS_BITS as CSR_ADDRESS_BITS
from sat.rtl.device import Device

BOARD_CONFIG = SatConfig(
    rows=4,
    cols=4,
    max_n=4,
    interleave=8,
    fp=FpTiming(multiplier_stages=2, adder_stages=8, update_multiplier_stages=5, prune_stages=3),
    update_lanes=1,
    axi=AxiConfig(data_bits=32, address_bits=25, outstanding=4),
)
"""The device that boards have unless told otherwise."""


LINK_BAUD = 3_000_000
"""Of the link, unless told otherwise: as fast as the ULX3S' USB bridge, an FT231X (FTDI DS_FT231X).
"""


def build_of(config: SatConfig) -> bytes:
    """Return the bytes by which a host knows a board's configuration."""
    return bytes.fromhex(config.digest)[:BUILD_BYTES]


class RegisterBridge(wiring.Component):
    """Take words of the link to AXI4-Lite accesses of the device's registers.

    Members
    -------
    bus : ``In(WordBusSignature(32))``
    csr : ``Out(AxiLiteSignature)``
    """

    def __init__(self) -> None:
        super().__init__(
            {"bus": In(WordBusSignature(32)), "csr": Out(AxiLiteSignature(CSR_ADDRESS_BITS))}
        )

    def elaborate(self, platform):
        m = Module()
        bus, csr = self.bus, self.csr
        wanted = bus.request & bus.register
        outside = bus.address[CSR_ADDRESS_BITS:].any()
        address_given, data_given = Signal(), Signal()
        m.d.comb += [
            csr.awaddr.eq(bus.address),
            csr.araddr.eq(bus.address),
            csr.wdata.eq(bus.data),
            csr.wstrb.eq(0b1111),
            bus.read_data.eq(csr.rdata),
        ]
        with m.If(wanted & outside):
            m.d.comb += [bus.done.eq(1), bus.refused.eq(1)]
        with m.Elif(wanted & bus.write):
            m.d.comb += [
                csr.awvalid.eq(~address_given),
                csr.wvalid.eq(~data_given),
                csr.bready.eq(1),
                bus.done.eq(csr.bvalid),
                bus.refused.eq(csr.bresp != Response.OKAY),
            ]
            with m.If(csr.awvalid & csr.awready):
                m.d.sync += address_given.eq(1)
            with m.If(csr.wvalid & csr.wready):
                m.d.sync += data_given.eq(1)
            with m.If(csr.bvalid):
                m.d.sync += [address_given.eq(0), data_given.eq(0)]
        with m.Elif(wanted):
            m.d.comb += [
                csr.arvalid.eq(~address_given),
                csr.rready.eq(1),
                bus.done.eq(csr.rvalid),
                bus.refused.eq(csr.rresp != Response.OKAY),
            ]
            with m.If(csr.arvalid & csr.arready):
                m.d.sync += address_given.eq(1)
            with m.If(csr.rvalid):
                m.d.sync += address_given.eq(0)
        self.state = address_given, data_given
        return m


class Board(wiring.Component):
    """All of a board but its pins and clock.

    Parameters
    ----------
    config : SatConfig
    clock_hz, baud : float
        Of the link; at least 4 cycles a bit.
    memory_bytes : int
        Of block RAM, from address 0; a power of two.
    sdram : Geometry, optional
        Of an SDRAM that is the memory instead, as much of it as the device can address.

    Raises
    ------
    ValueError
        The device has several data ports, or one wider than 256 bits; the SDRAM cannot have the
        clock.

    Members
    -------
    rx, tx : ``In(1)``, ``Out(1)``
        The link's wires, as they come from the pins.
    leds : ``Out(8)``
        Bit 0: a request is answered; bit 1: a program has ended. The others are 0.
    sdram : ``Out(PinSignature)``
        The SDRAM's pins, if there is one.
    """

    def __init__(
        self,
        config: SatConfig,
        *,
        clock_hz: float = 25e6,
        baud: float = LINK_BAUD,
        memory_bytes: int = 1 << 17,
        sdram: Geometry | None = None,
    ) -> None:
        axi = config.axi
        require(
            axi.instructions == axi,
            f"ports={axi.ports} x data_bits={axi.data_bits}: a board's memory has one data port "
            "as wide as that of instructions; take 1 port of at most 256 bits",
        )
        self.config, self.clock_hz, self.baud = config, clock_hz, baud
        self.memory: BlockMemory | SdramMemory = (
            BlockMemory(axi, memory_bytes) if sdram is None else SdramMemory(axi, clock_hz, sdram)
        )
        chip = {} if sdram is None else {"sdram": Out(PinSignature(sdram))}
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "leds": Out(8), **chip})

    def elaborate(self, platform):
        m = Module()
        m.submodules.device = device = Device(self.config)
        m.submodules.memory = store = self.memory
        m.submodules.link = link = LinkServer(
            self.clock_hz, self.baud, store.size, build_of(self.config), store.kind
        )
        m.submodules.registers = registers = RegisterBridge()
        rx = Signal(init=1)
        m.submodules.rx = FFSynchronizer(self.rx, rx, init=1)
        wiring.connect(m, device.imem, store.imem)
        wiring.connect(m, device.dmem, store.dmem)
        wiring.connect(m, registers.csr, device.csr)
        if isinstance(store, SdramMemory):
            wiring.connect(m, store.pins, wiring.flipped(self.sdram))
        bus = link.bus
        for slave in (store.bus, registers.bus):
            m.d.comb += [
                slave.request.eq(bus.request),
                slave.write.eq(bus.write),
                slave.register.eq(bus.register),
                slave.address.eq(bus.address),
                slave.data.eq(bus.data),
            ]
        m.d.comb += [
            bus.done.eq(store.bus.done | registers.bus.done),
            bus.refused.eq(registers.bus.refused),
            bus.read_data.eq(Mux(bus.register, registers.bus.read_data, store.bus.read_data)),
            link.rx.eq(rx),
            self.tx.eq(link.tx),
            self.leds.eq(Cat(link.busy, device.irq)),
        ]
        return m
