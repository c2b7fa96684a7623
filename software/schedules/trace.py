"""A schedule as a timeline for Perfetto (https://ui.perfetto.dev), in its JSON trace format."""

from __future__ import annotations

from typing import Any

from sat.schedules.report import SHOWN
from sat.schedules.schedule import ALL_STAGES, Schedule


def trace(schedule: Schedule, clock_hz: float) -> dict[str, Any]:
    """Return trace events: a track a stage, a slice an operation, and counters beside them.

    Parameters
    ----------
    clock_hz : float
        Of the device; times are in microseconds.
    """
    machine = schedule.machine
    micro = 1e6 / clock_hz
    title = f"{schedule.network}, batch {schedule.batch}, {schedule.sparsity}, {machine}"
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": title}}
    ]
    for number, stage in enumerate(ALL_STAGES):
        named = {"name": SHOWN[stage]}
        events.append({"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": named})
    at = 0
    for entry in schedule.entries:
        begin, length = at * micro, entry.cycles * micro
        args = {
            "pattern": str(entry.pattern),
            "dataflow": entry.dataflow,
            "cycles": entry.cycles,
            "utilisation": entry.utilisation(machine),
            "bytes read": entry.cost.bytes_read,
            "bytes written": entry.cost.bytes_written,
            "bound by": entry.bounds.by,
            "of roofline": entry.of_roofline,
            "in one program with the stage before": entry.joined,
        }
        events.append(
            {
                "ph": "X", "pid": 1, "tid": ALL_STAGES.index(entry.stage), "ts": begin,
                "dur": length, "name": f"{entry.operation} {SHOWN[entry.stage]}",
                "cat": entry.kind, "args": args,
            }
        )  # fmt: skip
        counters = {
            "utilisation": entry.utilisation(machine),
            "bytes a cycle": (entry.cost.bytes_read + entry.cost.bytes_written) / entry.cycles,
        }
        events += [
            {"ph": "C", "pid": 1, "ts": begin, "name": name, "args": {name: value}}
            for name, value in counters.items()
        ]
        at += entry.cycles
    events += [
        {"ph": "C", "pid": 1, "ts": at * micro, "name": name, "args": {name: 0}}
        for name in ("utilisation", "bytes a cycle")
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
