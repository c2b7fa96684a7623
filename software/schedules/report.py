"""A schedule as a table, and beside another one, such as the dense twin's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sat.dataflow.mapping import BandMapping, WsMapping
from sat.rtl.config import SatConfig
from sat.schedules.schedule import ALL_STAGES, Entry, Schedule

SHOWN = {"ff": "FF", "bp": "BP", "wu": "WU", "update": "update"}
"""What reports call the stages."""


@dataclass(frozen=True)
class Comparison:
    """A schedule beside the dense twin's: same network, machine and batch."""

    schedule: Schedule
    dense: Schedule

    @property
    def speedup(self) -> float:
        """How many times faster the step is."""
        return self.dense.cycles() / self.schedule.cycles()

    @property
    def limit(self) -> float:
        """What the speed-up would be if each stage of both met its roofline."""
        return self.dense.roofline / self.schedule.roofline

    @property
    def arithmetic(self) -> float:
        """What it would be if only multiply-accumulates counted."""
        return self.dense.macs() / max(1, self.schedule.macs())

    def to_dict(self) -> dict[str, Any]:
        return {
            "dense_cycles": self.dense.cycles(),
            "speedup": self.speedup,
            "roofline_speedup": self.limit,
            "arithmetic_speedup": self.arithmetic,
            "dense_utilisation": {
                stage: self.dense.utilisation(stage)
                for stage in ALL_STAGES
                if stage != "update" and self.dense.of(stage)
            },
        }


def rows(schedule: Schedule) -> list[dict[str, Any]]:
    """Return a row of figures for each stage of each operation, for JSON and tables."""
    machine = schedule.machine
    return [
        {
            "operation": entry.operation,
            "stage": entry.stage,
            "pattern": str(entry.pattern),
            "dataflow": entry.dataflow,
            "plan": entry.plan.to_json(),
            "cycles": entry.cycles,
            "utilisation": entry.utilisation(machine),
            "bytes_read": entry.cost.bytes_read,
            "bytes_written": entry.cost.bytes_written,
            "roofline_cycles": entry.bounds.cycles,
            "bound_by": entry.bounds.by,
            "of_roofline": entry.of_roofline,
            "joined": entry.joined,
        }
        for entry in schedule.entries
    ]


def summary(schedule: Schedule, clock_hz: float) -> dict[str, Any]:
    """Return the figures of a whole step."""
    return {
        "network": schedule.network,
        "batch": schedule.batch,
        "pattern": str(schedule.pattern),
        "wu": str(schedule.wu),
        "array": schedule.machine.config.array,
        "memory": schedule.machine.memory,
        "bytes_per_cycle": schedule.machine.bytes_per_cycle,
        "cycles": schedule.cycles(),
        "seconds": schedule.cycles() / clock_hz,
        "clock_hz": clock_hz,
        "images_per_second": schedule.batch * clock_hz / schedule.cycles(),
        "macs": schedule.macs(),
        "utilisation": schedule.utilisation(),
        "bytes_moved": schedule.bytes_moved,
        "roofline_cycles": schedule.roofline,
        "bound_cycles": schedule.bound,
        "cycles_by_stage": {name: schedule.cycles(name) for name in ALL_STAGES},
    }


HEAD = (
    "operation", "stage", "N:M", "dataflow", "tile", "cycles", "utilisation", "MB in", "MB out",
    "bound by", "of roofline",
)  # fmt: skip
LEFT = 5
"""Columns that begin at the left; the others hold numbers."""


def cells(schedule: Schedule) -> list[tuple[str, ...]]:
    """Return what tables show of each stage, a text for each of `HEAD`; joined ones have a "+"."""
    machine = schedule.machine
    return [
        (
            entry.operation,
            ("+ " if entry.joined else "") + SHOWN[entry.stage],
            str(entry.pattern),
            entry.dataflow,
            tiles(entry, machine.config),
            f"{entry.cycles:,}",
            "-" if entry.stage == "update" else f"{entry.utilisation(machine):.3f}",
            f"{entry.cost.bytes_read / 1e6:.2f}",
            f"{entry.cost.bytes_written / 1e6:.2f}",
            entry.bounds.by,
            f"{entry.of_roofline:.3f}",
        )
        for entry in schedule.entries
    ]


def table(schedule: Schedule) -> str:
    """Return the table a layer and stage."""
    return columns(HEAD, cells(schedule), LEFT)


def tiles(entry: Entry, config: SatConfig) -> str:
    """Return the tiles of a stage's mappings: rows x columns of the result, or weights held."""
    found = []
    for mapping in entry.plan.mappings:
        if isinstance(mapping, WsMapping):
            found.append(f"{mapping.tile_rows}x{config.cols} hold {mapping.hold}")
            continue
        split = getattr(mapping, "split", 0)
        shape = f"{config.rows * (config.interleave >> split)}x{config.cols << split}"
        if isinstance(mapping, BandMapping):
            shape += f" bands {mapping.lines}x{mapping.pixels}"
        found.append(shape)
    return ", ".join(dict.fromkeys(found)) or "-"


def columns(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows of cells as text; the first ``left`` columns begin at the left."""
    widths = [max(len(row[n]) for row in (head, *body)) for n in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *body)
    )


def dense_layers(schedule: Schedule) -> list[tuple[str, str]]:
    """Return each operation that stays dense although a pattern was asked for, and why."""
    if schedule.pattern.dense:
        return []
    found: dict[str, list[Entry]] = {}
    for entry in schedule.entries:
        found.setdefault(entry.operation, []).append(entry)
    return [
        (name, entries[0].reason)
        for name, entries in found.items()
        if all(entry.pattern.dense for entry in entries if entry.stage != "wu")
    ]


def notes(schedule: Schedule, clock_hz: float, comparison: Comparison | None = None) -> list[str]:
    """Return what stands below the table: sums, bounds, dense layers, what is not on the array."""
    machine, cycles = schedule.machine, schedule.cycles()
    stages = ", ".join(f"{SHOWN[name]} {schedule.cycles(name):,}" for name in ALL_STAGES)
    milliseconds = 1e3 * cycles / clock_hz
    said = [
        f"{schedule.network}, batch {schedule.batch}, {schedule.sparsity}, on {machine}",
        f"{cycles:,} cycles a step, {milliseconds:.2f} ms at {clock_hz / 1e6:g} MHz: {stages}",
        (
            f"utilisation {schedule.utilisation():.3f}; each stage at its roofline: "
            f"{schedule.roofline:,} ({schedule.roofline / cycles:.3f}); no overlap whatever goes "
            f"below {schedule.bound:,} ({schedule.bound / cycles:.3f})"
        ),
    ]
    if any(entry.joined for entry in schedule.entries):
        said.append(
            "+: in one program with the stage before, fetching first operands while that one "
            f"drains: {len(schedule.entries)} stages, {len(schedule.programs)} programs"
        )
    if comparison is not None:
        said.append(
            f"dense: {comparison.dense.cycles():,} cycles, utilisation "
            f"{comparison.dense.utilisation():.3f}: {comparison.speedup:.3f}x faster; rooflines "
            f"allow {comparison.limit:.3f}x, multiply-accumulates {comparison.arithmetic:.3f}x"
        )
    dense = dense_layers(schedule)
    if dense:
        reasons: dict[str, list[str]] = {}
        for name, reason in dense:
            reasons.setdefault(reason, []).append(name)
        said += [f"dense: {_some(names)}: {reason}" for reason, names in reasons.items()]
    if schedule.elementwise:
        work = [f"{name} {w.elements:,}" for name, w in schedule.elementwise.items()]
        said.append(
            f"not on the array, in no cycle above (elements of the forward pass): {_some(work, 6)}"
        )
    return said


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
