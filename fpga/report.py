"""What a bitstream takes of its FPGA, block by block, how fast it is, and where it is slow."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sat.fpga.area import Area, area_of
from sat.fpga.flow import Implementation, Seconds, fmax_mhz
from sat.fpga.timing import TimingPath, signal_name

_RESOURCES = {
    "LUT4": "TRELLIS_COMB",
    "FF": "TRELLIS_FF",
    "DSP": "MULT18X18D",
    "block RAM": "DP16KD",
    "PLL": "EHXPLLL",
}
"""What the FPGA has, and nextpnr's word for it. Carries and distributed RAM take LUT4s, too."""

_DEPTH = 2
"""Names below the board's own that make a block, such as ``device.update``."""
_LARGE = 500
"""COMB of a part of a block that is told by itself."""


@dataclass(frozen=True)
class Use:
    """How much of something is used, of how much."""

    used: int
    available: int


@dataclass(frozen=True)
class Report:
    """A bitstream's report.

    Parameters
    ----------
    board, array, memory : str
    clock_mhz, fmax_mhz : float
        What was asked for, and what the routed design reaches.
    sha256 : str
        Of the bitstream.
    bitstream_bytes : int
    gateware : str
    tools : dict of str
        As `Implementation` has them: with the same ones the bitstream has the same bytes.
    used : dict of Use
        By resource.
    blocks : dict of Area
        What was mapped, by block: names of the design's hierarchy.
    paths : tuple of TimingPath
        The slowest ones between different signals, slowest first.
    seconds : dict of Seconds
        By step.
    """

    board: str
    array: str
    memory: str
    clock_mhz: float
    fmax_mhz: float
    sha256: str
    bitstream_bytes: int
    gateware: str
    tools: dict[str, str]
    used: dict[str, Use]
    blocks: dict[str, Area]
    paths: tuple[TimingPath, ...]
    seconds: dict[str, Seconds]

    @classmethod
    def of(cls, made: Implementation, board: str, array: str, memory: str, clock_hz: int) -> Report:
        """Return the report of what the tools made."""
        utilisation = made.timing["utilization"]
        return cls(
            board=board,
            array=array,
            memory=memory,
            clock_mhz=clock_hz / 1e6,
            fmax_mhz=round(fmax_mhz(made.timing), 2),
            sha256=made.sha256,
            bitstream_bytes=len(made.bitstream),
            gateware=made.gateware,
            tools=made.tools,
            used={
                name: Use(utilisation[cell]["used"], utilisation[cell]["available"])
                for name, cell in _RESOURCES.items()
            },
            blocks=blocks(made.netlist),
            paths=made.paths,
            seconds=made.seconds,
        )

    @property
    def met(self) -> bool:
        """Whether the design is as fast as it was asked to be."""
        return self.fmax_mhz >= self.clock_mhz

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        speed = f"{self.fmax_mhz:.2f} MHz routed, {self.clock_mhz:g} asked for: {verdict}"
        lines = [
            f"{self.board}, array {self.array}, {self.memory}: {speed}",
            "",
            f"- bitstream: {self.bitstream_bytes:,} bytes, SHA-256 {self.sha256}",
            f"- gateware: {self.gateware}",
            f"- tools: {', '.join(f'{name} {version}' for name, version in self.tools.items())}",
        ]
        lines += [
            f"- {step}: {took.cpu:,.0f} s of processor, {took.wall:,.0f} s"
            for step, took in self.seconds.items()
        ]
        uses = [
            (name, f"{use.used:,}", f"{use.available:,}", f"{use.used / use.available:.0%}")
            for name, use in self.used.items()
        ]
        lines += ["", *_table(("of the FPGA", "used", "of", "share"), uses)]
        areas = [
            (name, f"{a.comb:,}", f"{a.lut4:,}", f"{a.ff:,}", f"{a.dsp:,}", f"{a.block_ram:,}")
            for name, a in self.blocks.items()
        ]
        lines += ["", *_table(("block", "COMB", "LUT4", "FF", "DSP", "block RAM"), areas)]
        ways = [
            (f"{p.ns:.2f}", f"{p.logic_ns:.2f}", f"{p.cells}", _way(p.through)) for p in self.paths
        ]
        lines += ["", *_table(("ns", "in cells", "cells", "slowest paths"), ways)]
        return "\n".join(lines)


def blocks(netlist: dict[str, Any]) -> dict[str, Area]:
    """Return what the blocks of a flat netlist take, largest first.

    A cell counts where the signal that it serves is; what the mapper makes of logic of two blocks
    counts for one of them. Large parts of blocks are told by themselves.

    Parameters
    ----------
    netlist : dict
        Yosys' JSON of a module whose gateware is called ``board``.
    """
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for name, cell in netlist["cells"].items():
        if cell["type"].startswith("$"):
            continue  # notes on what was flattened
        board, *inside = signal_name(name).split(".")
        place = tuple(inside[: min(_DEPTH + 1, len(inside) - 1)])
        counts[("pins",) if board != "board" else place or ("board",)][cell["type"]] += 1
    for place in [place for place in counts if len(place) > _DEPTH]:
        if area_of(counts[place]).comb < _LARGE:
            counts[place[:_DEPTH]] += counts.pop(place)
    made = {".".join(place): area_of(cells) for place, cells in counts.items()}
    return dict(sorted(made.items(), key=lambda item: (-item[1].comb, item[0])))


def _way(names: tuple[str, ...]) -> str:
    """Return the signals of a path; what a name shares with the one before it is left out."""
    said: list[str] = []
    before: list[str] = []
    for name in names:
        parts = name.removeprefix("board.").split(".")
        same = 0
        while same < min(len(parts), len(before)) - 1 and parts[same] == before[same]:
            same += 1
        said.append(("…" if same else "") + ".".join(parts[same:]))
        before = parts
    if len(said) > 6:
        said[3:-3] = ["…"]
    return " → ".join(said)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return rows as Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
