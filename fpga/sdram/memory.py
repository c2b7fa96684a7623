"""A board's memory in SDRAM, behind the device's AXI ports and the link."""

from __future__ import annotations

from amaranth import *
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

from sat.fpga.link.protocol import MemoryKind
from sat.fpga.link.server import WordBusSignature
from sat.fpga.ports import DevicePorts
from sat.fpga.sdram.chip import PinSignature
from sat.fpga.sdram.controller import READ_CYCLES, SETTLED_CYCLES, SdramController
from sat.fpga.sdram.geometry import Geometry
from sat.rtl.axi import Axi4ReadSignature, Axi4Signature
from sat.rtl.config import AxiConfig, require
from sat.sim.memory import MemoryTiming

WIRES = {MemoryKind.SDRAM: 16, MemoryKind.SDRAM_32: 32}
"""Bits of a column, by what a board greets with."""


def least_timing(axi: AxiConfig, wires: int) -> MemoryTiming:
    """Return the timing than which no answer of an `SdramMemory` is sooner.

    How much later it is depends on what the others ask for, and the cycle model, whose ports know
    nothing of each other, cannot say.
    """
    # The ports, the controller, and a cycle for each column.
    latency = 2 + READ_CYCLES + axi.data_bits // wires
    return MemoryTiming(read_latency=latency, write_latency=2, cycles_per_beat=1)


def likely_timing(axi: AxiConfig, wires: int) -> MemoryTiming:
    """Return what answers are like: for the choice of mappings."""
    columns = axi.data_bits // wires
    return MemoryTiming(read_latency=16, write_latency=8, cycles_per_beat=columns)


_AHEAD = 16
"""Words read ahead of the bus, so that one that was held up is followed by the next at once."""

_TURN = 32
"""Words that a side has one after the other while others wait: changing rows costs five cycles."""


class Side(enum.Enum, shape=2):
    """Who asks for words."""

    INSTRUCTIONS = 0
    LOADS = 1
    STORES = 2
    LINK = 3


class SdramMemory(wiring.Component):
    """Memory that instructions, loads, stores and the link share, word by word.

    Each in turn has up to `_TURN` words as long as it asks for one after the other.

    Parameters
    ----------
    axi : AxiConfig
    clock_hz : float
    geometry : Geometry, optional

    Raises
    ------
    ValueError
        The chip cannot have the clock; the address space is smaller than a row.

    Members
    -------
    imem : ``In(Axi4ReadSignature)``
    dmem : ``In(Axi4Signature)``
    bus : ``In(WordBusSignature(32))``
        The link's; addresses inside the memory.
    pins : ``Out(PinSignature)``
    size
        Bytes, from address 0: the chip's, or the address space if that is smaller.
    kind
        What the board greets with.
    """

    def __init__(self, axi: AxiConfig, clock_hz: float, geometry: Geometry | None = None) -> None:
        self.axi = axi
        self.controller = SdramController(clock_hz, axi.data_bits, len(Side), geometry)
        geometry = self.controller.geometry
        self.kind = next(kind for kind, bits in WIRES.items() if bits == geometry.data_bits)
        self.size = min(geometry.size, 1 << axi.address_bits)
        require(self.size >= 4096, f"size={self.size}: must be 4096 bytes at the least")
        super().__init__(
            {
                "imem": In(Axi4ReadSignature(axi)),
                "dmem": In(Axi4Signature(axi)),
                "bus": In(WordBusSignature(32)),
                "pins": Out(PinSignature(geometry)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi, core = self.axi, self.controller
        m.submodules.controller = core
        m.submodules.ports = ports = DevicePorts(axi, self.size, _AHEAD)
        wiring.connect(m, wiring.flipped(self.imem), ports.imem)
        wiring.connect(m, wiring.flipped(self.dmem), ports.dmem)
        wiring.connect(m, wiring.flipped(self.pins), core.pins)
        stores = ports.stores
        # After a reset, words may still come that were asked for before.
        settling = Signal(range(SETTLED_CYCLES + 1), init=SETTLED_CYCLES)
        settled = Signal()
        m.d.sync += [settling.eq(settling - (settling != 0)), settled.eq(settling == 0)]
        asked: dict[Side, data.View] = {side: Signal(core.request.p.shape()) for side in Side}
        valid: dict[Side, Value] = {}
        taken = Signal(len(Side))
        for side, reader in ((Side.INSTRUCTIONS, ports.instructions), (Side.LOADS, ports.loads)):
            m.d.comb += [
                asked[side].address.eq(reader.request.payload),
                reader.request.ready.eq(taken[side.value]),
                reader.replied.eq(settled & core.replied & (core.reply.tag == side.value)),
                reader.reply.eq(core.reply.data),
            ]
            valid[side] = reader.request.valid
        m.d.comb += [
            asked[Side.STORES].write.eq(1),
            asked[Side.STORES].address.eq(stores.request.p.address),
            asked[Side.STORES].data.eq(stores.request.p.data),
            asked[Side.STORES].lanes.eq(stores.request.p.lanes),
            stores.request.ready.eq(taken[Side.STORES.value]),
        ]
        valid[Side.STORES] = stores.request.valid
        valid[Side.LINK] = self._link(m, asked[Side.LINK], taken[Side.LINK.value])
        self._arbiter(m, asked, {side: one & settled for side, one in valid.items()}, taken)
        return m

    def _link(self, m: Module, request: data.View, taken: Value) -> Value:
        """Serve the link's words; return whether one is asked for."""
        bus, beat, core = self.bus, self.axi.beat_bytes, self.controller
        shift = (beat - 1).bit_length()
        lane = bus.address[2:shift] if shift > 2 else Const(0, 0)
        waiting = Signal()  # for a word that is being read
        mine = bus.request & ~bus.register
        replied = core.replied & (core.reply.tag == Side.LINK.value)
        m.d.comb += [
            request.write.eq(bus.write),
            request.address.eq(bus.address >> shift),
            request.data.eq(bus.data.replicate(beat // 4)),
            request.lanes.eq(C(0b1111, beat) << (lane << 2)),
            bus.read_data.eq(core.reply.data.word_select(lane, 32)),
            bus.done.eq(Mux(bus.write, taken, replied)),
        ]
        m.d.sync += waiting.eq(Mux(waiting, ~replied, taken & ~bus.write))
        return mine & ~waiting

    def _arbiter(
        self, m: Module, asked: dict[Side, data.View], valid: dict[Side, Value], taken: Signal
    ) -> None:
        """Give the controller one side's word after the other."""
        core, owner, turn = self.controller, Signal(Side), Signal(range(_TURN))
        chosen = Signal(Side)
        stays = Signal()
        with m.Switch(owner):
            for side in Side:
                with m.Case(side):
                    # The owner again, if its turn lasts; else who comes next, itself last.
                    order = [Side((side.value + step) % len(Side)) for step in range(1, 5)]
                    for other in reversed(order):
                        with m.If(valid[other]):
                            m.d.comb += chosen.eq(other)
                    m.d.comb += stays.eq(valid[side] & (turn != _TURN - 1))
                    with m.If(stays):
                        m.d.comb += chosen.eq(side)
        some = Cat(*valid.values()).any()
        m.d.comb += core.request.valid.eq(some)
        with m.Switch(chosen):
            for side in Side:
                with m.Case(side):
                    m.d.comb += [
                        core.request.p.eq(asked[side]),
                        core.request.p.tag.eq(side),
                        taken[side.value].eq(valid[side] & core.request.ready),
                    ]
        with m.If(some & core.request.ready):
            m.d.sync += [owner.eq(chosen), turn.eq(Mux(stays, turn + 1, 0))]
