"""Several data ports that act as one: each carries its stripe of every beat.

Beat n of the memory that programs see is n-th beat of every port: of its bytes, port p has
``port_bytes`` from ``p * port_bytes`` on. So all ports get the same burst, and a beat is moved when
all of them move it. Ports may pause each on their own.
"""

from __future__ import annotations

from functools import reduce
from operator import and_

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.axi import (
    Axi4ReadSignature,
    Axi4Signature,
    Axi4WriteSignature,
    Response,
    address_constants,
)
from sat.rtl.config import AxiConfig


class Stripes(wiring.Component):
    """Make one port of several; no cycle is added.

    An address, or a beat of a write, that some ports have taken waits for the others. Beats of
    a read, and responses, wait at the ports that are ahead. Of the responses to a beat or a
    burst the first that is not OKAY counts.

    Members
    -------
    read : ``In(Axi4ReadSignature(axi))``
    write : ``In(Axi4WriteSignature(axi))``
    ports : ``Out(Axi4Signature(axi.port)).array(axi.ports)``
    """

    def __init__(self, axi: AxiConfig):
        self.axi = axi
        super().__init__(
            {
                "read": In(Axi4ReadSignature(axi)),
                "write": In(Axi4WriteSignature(axi)),
                "ports": Out(Axi4Signature(axi.port)).array(axi.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        ports = list(self.ports)
        bits = self.axi.data_bits
        self.state = {}  # of each channel, which ports are ahead: what proofs speak of

        def fork(side: wiring.PureInterface, channel: str, names: tuple[str, ...]) -> None:
            """Offer what a master offers to every port, to each once."""
            valid, ready = getattr(side, f"{channel}valid"), getattr(side, f"{channel}ready")
            self.state[channel] = taken = Signal(len(ports), name=f"{channel}_taken")
            there = Signal(len(ports), name=f"{channel}_there")
            for number, port in enumerate(ports):
                m.d.comb += [
                    getattr(port, f"{channel}valid").eq(valid & ~taken[number]),
                    there[number].eq(taken[number] | getattr(port, f"{channel}ready")),
                ]
                m.d.comb += [
                    getattr(port, f"{channel}{name}").eq(getattr(side, f"{channel}{name}"))
                    for name in names
                ]
            m.d.comb += ready.eq(there.all())
            with m.If(valid):
                m.d.sync += taken.eq(Mux(there.all(), 0, there))

        def join(side: wiring.PureInterface, channel: str) -> None:
            """Offer to a master what all ports offer."""
            valid, ready = getattr(side, f"{channel}valid"), getattr(side, f"{channel}ready")
            m.d.comb += valid.eq(reduce(and_, (getattr(p, f"{channel}valid") for p in ports)))
            m.d.comb += [getattr(p, f"{channel}ready").eq(valid & ready) for p in ports]
            response: Value = Const(Response.OKAY.value, 2)
            for port in reversed(ports):
                own = getattr(port, f"{channel}resp")
                response = Mux(own != Response.OKAY, own, response)
            m.d.comb += getattr(side, f"{channel}resp").eq(response)

        fork(self.read, "ar", ("addr", "len"))
        join(self.read, "r")
        fork(self.write, "aw", ("addr", "len"))
        fork(self.write, "w", ("last",))
        join(self.write, "b")
        m.d.comb += [
            self.read.rdata.eq(Cat(port.rdata for port in ports)),
            self.read.rlast.eq(ports[0].rlast),  # their bursts are alike
        ]
        for number, port in enumerate(ports):
            address_constants(m, port, "ar", self.axi)
            address_constants(m, port, "aw", self.axi)
            m.d.comb += [
                port.wdata.eq(self.write.wdata.word_select(number, bits)),
                port.wstrb.eq(self.write.wstrb.word_select(number, bits // 8)),
            ]
        return m
