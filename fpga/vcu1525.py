"""The VCU1525: pins, clocks and memory of the card, and what its FPGA has.

Pins, standards and the part are those of the published constraints of the card and of its twin, the
Alveo U200, which has the same FPGA in the same package on the same board (AMD UG1268, UG1289).
Restated from corundum/corundum: ``fpga/mqnic/VCU1525/fpga_100g/fpga.xdc`` at 240ce56 for PCIe, LEDs
and clocks, ``fpga/mqnic/Alveo/fpga_100g/fpga_au200.xdc`` at 7914445 for the memory. Of the four
DIMMs it is the second, ``c1``, in the FPGA's middle region, where PCIe is.
"""

from __future__ import annotations

from dataclasses import dataclass

PART = "xcvu9p-fsgd2104-2L-e"
SLRS = 3
"""Super logic regions, one above the other; PCIe, this memory and the pins of LEDs are in SLR1."""

MEMORY_PART = "MTA18ASF2G72PZ-2G3"
"""The card's DIMMs: 16 GiB, registered, 72 bits with ECC, DDR4-2400."""
MEMORY_CLOCK_PS = 3332
"""Period of the oscillator of each DIMM's bank, 300 MHz."""
CONTROLLER_HZ = 300_000_000
"""Of the memory controller's side: a quarter of 1,200 MHz, the clock of DDR4-2400."""
MEMORY_ADDRESS_BITS = 34
PCIE_LANES = 16


@dataclass(frozen=True)
class Pin:
    """A pin of a port.

    Parameters
    ----------
    port : str
        As Verilog and constraints name it, with its bit if it has several.
    site : str
        Of the package.
    standard : str
        Its electrical standard; empty for those of transceivers.
    """

    port: str
    site: str
    standard: str = ""


def _bits(port: str, sites: str, standard: str) -> list[Pin]:
    return [Pin(f"{port}[{n}]", site, standard) for n, site in enumerate(sites.split())]


def _pairs(port: str, sites: str, standard: str) -> list[Pin]:
    """Return pins of a differential port, whose sites are given as t, c, t, c, …"""
    found = sites.split()
    return [
        Pin(f"{port}_{side}[{n}]", site, standard)
        for start, side in enumerate("tc")
        for n, site in enumerate(found[start::2])
    ]


_PCIE = {
    "pcie_rx_p": "AF2 AG4 AH2 AJ4 AK2 AL4 AM2 AN4 AP2 AR4 AT2 AU4 AV2 AW4 BA2 BC2",
    "pcie_rx_n": "AF1 AG3 AH1 AJ3 AK1 AL3 AM1 AN3 AP1 AR3 AT1 AU3 AV1 AW3 BA1 BC1",
    "pcie_tx_p": "AF7 AG9 AH7 AJ9 AK7 AL9 AM7 AN9 AP7 AR9 AT7 AU9 AV7 BB5 BD5 BF5",
    "pcie_tx_n": "AF6 AG8 AH6 AJ8 AK6 AL8 AM6 AN8 AP6 AR8 AT6 AU8 AV6 BB4 BD4 BF4",
}
_ADDRESS = "AN24 AT24 AW24 AN26 AY22 AY23 AV24 BA22 AY25 BA23 AM26 BA25 BB22 AL24 AL25 AM25 AN23"
_DATA = """
BD9 BD7 BC7 BD8 BD10 BE10 BE7 BF7 AU13 AV13 AW13 AW14 AU14 AY11 AV14 BA11
BA12 BB12 BA13 BA14 BC9 BB9 BA7 BA8 AN13 AR13 AM13 AP13 AM14 AR15 AL14 AT15
BE13 BD14 BF12 BD13 BD15 BD16 BF14 BF13 AY17 BA17 AY18 BA18 BA15 BB15 BC11 BD11
AV16 AV17 AU16 AU17 BB17 BB16 AT18 AT17 AM15 AL15 AN17 AN16 AR18 AP18 AL17 AL16
BF25 BF24 BD25 BE25 BD23 BC23 BF23 BE23
"""
_STROBES = """
BF10 BF9 BE8 BF8 AW15 AY15 AY13 AY12 BB11 BB10 BA10 BA9 AT14 AT13 AN14 AP14 BE12 BE11
BE15 BF15 BC13 BC12 BB14 BC14 AV18 AW18 AW16 AY16 AP16 AR16 AM17 AM16 BC24 BD24 BE22 BF22
"""

PINS = (
    *(pin for port, sites in _PCIE.items() for pin in _bits(port, sites, "")),
    Pin("pcie_refclk_p", "AM11"),
    Pin("pcie_refclk_n", "AM10"),
    Pin("pcie_reset_n", "BD21", "LVCMOS12"),
    Pin("memory_clk_p", "AW20", "LVDS"),
    Pin("memory_clk_n", "AW19", "LVDS"),
    *_bits("led", "BC21 BB21 BA20", "LVCMOS12"),
    *_bits("ddr4_adr", _ADDRESS, "SSTL12_DCI"),
    *_bits("ddr4_ba", "AU24 AP26", "SSTL12_DCI"),
    *_bits("ddr4_bg", "BC22 AW26", "SSTL12_DCI"),
    *_bits("ddr4_cke", "BB25", "SSTL12_DCI"),
    *_bits("ddr4_cs_n", "AV23", "SSTL12_DCI"),
    *_bits("ddr4_odt", "AW23", "SSTL12_DCI"),
    *_pairs("ddr4_ck", "AT25 AU25", "DIFF_SSTL12_DCI"),
    Pin("ddr4_act_n", "AW25", "SSTL12_DCI"),
    Pin("ddr4_par", "AT23", "SSTL12_DCI"),
    Pin("ddr4_reset_n", "AR17", "LVCMOS12"),
    *_bits("ddr4_dq", _DATA, "POD12_DCI"),
    *_pairs("ddr4_dqs", _STROBES, "DIFF_POD12_DCI"),
)
"""Every pin that the card's top uses."""
