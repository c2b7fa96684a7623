"""Schedules as files: versioned JSON, read with a clear error for whatever is wrong with one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.cost import Cost
from sat.dataflow.products import Product, StartShape
from sat.networks.network import Elementwise
from sat.rtl.config import SatConfig
from sat.schedules.machine import Machine
from sat.schedules.roofline import Bounds
from sat.schedules.schedule import ALL_STAGES, Entry, Schedule
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming
from sat.sparsity.pattern import Pattern

FORMAT = "sat schedule"
VERSION = 2
"""Of the file; it grows with every change that an older reader would misread."""

AGAIN = "make it again with `sat schedule MODEL --output FILE`"


class BadSchedule(ValueError):
    """A file is no schedule that this version reads, or one for another device."""


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule as what JSON holds; `from_dict` reads it."""
    machine = schedule.machine
    made = {
        "format": FORMAT,
        "version": VERSION,
        "network": schedule.network,
        "batch": schedule.batch,
        "parameters": schedule.parameters,
        "pattern": str(schedule.pattern),
        "wu": str(schedule.wu),
        "device": json.loads(machine.config.to_json()),
        "memory": {"name": machine.memory, **asdict(machine.timing)},
        "cycles": schedule.cycles(),
        "bound": schedule.bound,
        "stages": [_entry(entry) for entry in schedule.entries],
        "elementwise": {name: asdict(work) for name, work in schedule.elementwise.items()},
    }
    return dict(json.loads(json.dumps(made)))


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "operation": entry.operation,
        "stage": entry.stage,
        "kind": entry.kind,
        "pattern": str(entry.pattern),
        "reason": entry.reason,
        "layer": None if entry.layer is None else asdict(entry.layer),
        "products": [{**asdict(p), "start": p.start.value} for p in entry.products],
        "macs": entry.macs,
        "dense_macs": entry.dense_macs,
        "plan": entry.plan.to_json(),
        "cost": asdict(entry.cost),
        "bounds": asdict(entry.bounds),
        "joined": entry.joined,
    }


def save(schedule: Schedule, path: str | Path) -> None:
    """Write a schedule to a file."""
    Path(path).write_text(json.dumps(to_dict(schedule), indent=1) + "\n", encoding="utf-8")


def load_schedule(path: str | Path) -> Schedule:
    """Return the schedule in a file.

    Raises
    ------
    BadSchedule
        The file cannot be read, is no schedule, is of another version, or contradicts itself.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSchedule(f"schedule {str(path)!r}: cannot be read ({error}); {AGAIN}") from error
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise BadSchedule(f"schedule {str(path)!r}: is broken JSON ({error}); {AGAIN}") from error
    return from_dict(raw, str(path))


def from_dict(raw: Any, source: str = "schedule") -> Schedule:
    """Return the schedule that `to_dict` wrote.

    Parameters
    ----------
    source : str
        Where it is from, for messages.

    Raises
    ------
    BadSchedule
        As `load_schedule`.
    """
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise BadSchedule(f"schedule {source!r}: is no schedule (no format {FORMAT!r}); {AGAIN}")
    version = raw.get("version")
    if version != VERSION:
        older = isinstance(version, int) and version < VERSION
        raise BadSchedule(
            f"schedule {source!r}: has version {version!r}, {'older' if older else 'other'} than "
            f"{VERSION}, which this SAT reads; {AGAIN}"
        )
    try:
        schedule = _schedule(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BadSchedule(f"schedule {source!r}: is broken ({what}); {AGAIN}") from error
    if schedule.cycles() != raw["cycles"]:
        raise BadSchedule(
            f"schedule {source!r}: contradicts itself: its stages take {schedule.cycles():,} "
            f"cycles, and it says {raw['cycles']:,}; {AGAIN}"
        )
    return schedule


def _schedule(raw: dict[str, Any]) -> Schedule:
    entries = tuple(_read_entry(entry) for entry in raw["stages"])
    _check_joined(entries)
    memory = dict(raw["memory"])
    name = memory.pop("name")
    config = SatConfig.from_json(json.dumps(raw["device"]))
    return Schedule(
        network=_text(raw["network"]),
        batch=_number(raw["batch"], 1),
        parameters=_number(raw["parameters"]),
        pattern=Pattern.parse(raw["pattern"]),
        wu=Pattern.parse(raw["wu"]),
        machine=Machine(config, MemoryTiming(**memory), _text(name)),
        entries=entries,
        elementwise={key: Elementwise(**work) for key, work in raw["elementwise"].items()},
    )


def _read_entry(raw: dict[str, Any]) -> Entry:
    if raw["stage"] not in ALL_STAGES:
        raise ValueError(f"stage {raw['stage']!r}: must be one of {', '.join(ALL_STAGES)}")
    layer = raw["layer"]
    if layer is not None:
        sizes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in layer.items()
        }
        layer = Layer(**sizes)
    products = tuple(Product(**{**p, "start": StartShape(p["start"])}) for p in raw["products"])
    if (layer is None) == (not products):
        raise ValueError(f"stage {raw['operation']} {raw['stage']}: a layer, or products")
    cost = Cost(**{key: _number(value) for key, value in raw["cost"].items()})
    _number(cost.cycles, 1)
    bounds = Bounds(**{key: _number(value) for key, value in raw["bounds"].items()})
    return Entry(
        operation=_text(raw["operation"]),
        stage=raw["stage"],
        kind=_text(raw["kind"]),
        pattern=Pattern.parse(raw["pattern"]),
        reason=_text(raw["reason"]),
        layer=layer,
        products=products,
        macs=_number(raw["macs"]),
        dense_macs=_number(raw["dense_macs"]),
        plan=StagePlan.from_json(raw["plan"]),
        cost=cost,
        bounds=bounds,
        joined=_truth(raw["joined"]),
    )


def _check_joined(entries: Sequence[Entry]) -> None:
    """Check that each joined entry may be in one program with the one before."""
    for before, entry in itertools.pairwise([None, *entries]):
        assert entry is not None
        if not entry.joined:
            continue
        name = f"stage {entry.operation} {entry.stage}"
        if before is None or before.layer is None or entry.layer is None:
            raise ValueError(f"{name}: is joined to what is no stage of a layer")
        pair = before.stage, entry.stage
        same = before.operation == entry.operation and before.layer == entry.layer
        if pair != ("update", "update") and not (pair == ("bp", "wu") and same):
            raise ValueError(
                f"{name}: is joined to {before.operation} {before.stage}; WU may be to BP of its "
                "operation, an update to another"
            )


def _number(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{value!r}: must be an integer of at least {least}")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}: must be true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: must be text")
    return value


def check_device(schedule: Schedule, config: SatConfig, timing: MemoryTiming) -> None:
    """Check that a schedule was made for a device and its memory.

    Raises
    ------
    BadSchedule
        Its cycles, mappings and programs are another device's; the message names what differs.
    """
    own, other = schedule.machine.config, config
    differs = [
        f"{entry.name}={getattr(other, entry.name)} (schedule: {getattr(own, entry.name)})"
        for entry in fields(SatConfig)
        if getattr(own, entry.name) != getattr(other, entry.name)
    ]
    if schedule.machine.timing != timing:
        differs.append(f"memory {timing} (schedule: {schedule.machine.timing})")
    if differs:
        raise BadSchedule(
            f"schedule of {schedule.network} is for another device: this one has "
            f"{', '.join(differs)}; {AGAIN} for this device, or take the schedule's"
        )
