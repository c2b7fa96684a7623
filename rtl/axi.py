"""AXI4 and AXI4-Lite ports, with AXI's own flat names, so that bus models bind by prefix."""

from __future__ import annotations

from typing import Any

from amaranth import *
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from sat.rtl.config import AxiConfig

ID_BITS = 1
BURST_INCR = 1
BOUNDARY_BYTES = 4096
"""No burst crosses a multiple of this (AMBA AXI specification, burst address rules)."""


class Response(enum.Enum, shape=2):
    """What RRESP and BRESP say."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def _address_channel(prefix: str, address_bits: int) -> dict[str, Any]:
    return {
        f"{prefix}id": Out(ID_BITS),
        f"{prefix}addr": Out(address_bits),
        f"{prefix}len": Out(8),
        f"{prefix}size": Out(3),
        f"{prefix}burst": Out(2),
        f"{prefix}lock": Out(1),
        f"{prefix}cache": Out(4),
        f"{prefix}prot": Out(3),
        f"{prefix}valid": Out(1),
        f"{prefix}ready": In(1),
    }


# A signature's data are as wide as all ports together: engines see one port, `sat.rtl.stripes`
# splits it. What leaves the device has an `AxiConfig` of one port (`AxiConfig.port`).


def _read_members(axi: AxiConfig) -> dict[str, Any]:
    return {
        **_address_channel("ar", axi.address_bits),
        "rid": In(ID_BITS),
        "rdata": In(axi.beat_bits),
        "rresp": In(2),
        "rlast": In(1),
        "rvalid": In(1),
        "rready": Out(1),
    }


def _write_members(axi: AxiConfig) -> dict[str, Any]:
    return {
        **_address_channel("aw", axi.address_bits),
        "wdata": Out(axi.beat_bits),
        "wstrb": Out(axi.beat_bytes),
        "wlast": Out(1),
        "wvalid": Out(1),
        "wready": In(1),
        "bid": In(ID_BITS),
        "bresp": In(2),
        "bvalid": In(1),
        "bready": Out(1),
    }


class Axi4ReadSignature(wiring.Signature):
    """The read channels of an AXI4 port, from the master's side."""

    def __init__(self, axi: AxiConfig):
        super().__init__(_read_members(axi))


class Axi4WriteSignature(wiring.Signature):
    """The write channels of an AXI4 port, from the master's side."""

    def __init__(self, axi: AxiConfig):
        super().__init__(_write_members(axi))


class Axi4Signature(wiring.Signature):
    """All channels of an AXI4 port, from the master's side."""

    def __init__(self, axi: AxiConfig):
        super().__init__({**_read_members(axi), **_write_members(axi)})


class AxiLiteSignature(wiring.Signature):
    """A 32-bit AXI4-Lite port, from the master's side."""

    def __init__(self, address_bits: int):
        super().__init__(
            {
                "awaddr": Out(address_bits),
                "awprot": Out(3),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(32),
                "wstrb": Out(4),
                "wvalid": Out(1),
                "wready": In(1),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "araddr": Out(address_bits),
                "arprot": Out(3),
                "arvalid": Out(1),
                "arready": In(1),
                "rdata": In(32),
                "rresp": In(2),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )


def address_constants(m: Module, port: Any, prefix: str, axi: AxiConfig) -> None:
    """Drive what all bursts of a master have in common: increasing addresses, whole beats."""
    m.d.comb += [
        getattr(port, f"{prefix}size").eq((axi.port_bytes - 1).bit_length()),
        getattr(port, f"{prefix}burst").eq(BURST_INCR),
        # Normal, non-cacheable, bufferable memory; data accesses.
        getattr(port, f"{prefix}cache").eq(0b0011),
    ]
