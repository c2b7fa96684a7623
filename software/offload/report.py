"""What an offload did: where the matrix work went, what it cost, and why some of it stayed."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat.dataflow.products import Product
from sat.devices.base import Run
from sat.offload.rounding import Lost

OWN = "an operator of the program's own, of unknown size"
"""Reason for operators in which no matrix work of torch was seen: theirs may be in other code."""

CLOCK_HZ = 100e6
"""Clock that simulated times are given for, where none is named."""


@functools.lru_cache(maxsize=4096)
def size_text(count: int, rows: int, depth: int, cols: int) -> str:
    """Return what reports call the size of a product, or of a stack of ``count``."""
    one = f"{rows} x {depth} x {cols}"
    return one if count == 1 else f"{count} * {one}"


@dataclass
class DeviceWork:
    """Products that a device took for one kind of work.

    Attributes
    ----------
    products, macs : int
    counted : int or None
        Cycles that the device counted; None if it counts none.
    bytes_read, bytes_written : int or None
        At the device's memory port.
    bytes_host : int
        Operands sent and results fetched.
    bytes_kept : int
        Operands that were not sent again, since the device had kept them.
    shapes : dict
        For each `Product`, or stack of them: how often it was computed, and an account of it to
        ask for its prediction.
    """

    products: int = 0
    macs: int = 0
    counted: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    bytes_host: int = 0
    bytes_kept: int = 0
    shapes: dict[Product, list[Any]] = field(default_factory=dict)

    def add(self, product: Product, run: Run) -> None:
        """Account for one product, or one stack of them."""
        self.products += product.count
        self.macs += run.macs
        self.bytes_host += run.bytes_host
        self.bytes_kept += run.bytes_kept
        if run.bytes_read is not None:
            self.bytes_read = (self.bytes_read or 0) + run.bytes_read
        if run.bytes_written is not None:
            self.bytes_written = (self.bytes_written or 0) + run.bytes_written
        if run.cycles is not None:
            self.counted = (self.counted or 0) + run.cycles
        known = self.shapes.get(product)
        if known is None:
            self.shapes[product] = [1, run]
        else:
            known[0] += 1

    @property
    def cycles(self) -> int | None:
        """Cycles: counted ones, else those of the cycle model; None if there is none."""
        if self.counted is not None:
            return self.counted
        pairs = [(count, run.predicted_cycles) for count, run in self.shapes.values()]
        if any(cycles is None for _, cycles in pairs):
            return None
        return sum(count * (cycles or 0) for count, cycles in pairs)


@dataclass
class Work:
    """Calls of one operation with one size.

    Attributes
    ----------
    op : str
        The operation, such as ``"aten.mm"``, or ``"layer FF"`` of a SAT layer.
    size : str
        ``"rows x depth x cols"``, with ``"count * "`` in front for several at once.
    reason : str or None
        Why it stayed on the host; None if a device computed it.
    calls, flops : int
        Calls, and their floating-point operations: two for each multiply-accumulate of the
        operation as it is written, four times that for complex numbers.
    seconds : float
        Time on the host's clock.
    devices : dict
        Work of each device, by its name.
    lost : Lost
        Operands that overflowed or vanished when they were rounded to float16.
    """

    op: str
    size: str
    reason: str | None = None
    calls: int = 0
    flops: int = 0
    seconds: float = 0.0
    devices: dict[str, DeviceWork] = field(default_factory=dict)
    lost: Lost = field(default_factory=Lost)


@dataclass(frozen=True)
class Event:
    """One product on a device, or one operation on the host, in the order of the program."""

    name: str
    size: str
    device: str
    run: Run | None
    seconds: float


class OffloadReport:
    """The account of one `sat.offload`.

    Parameters
    ----------
    device, precision : str
        As asked for.
    clock_hz : float
        Clock that simulated seconds are given for.
    trace : bool
        Whether each product is kept for `to_perfetto`.

    Attributes
    ----------
    seconds, device_seconds : float
        Time of the host's clock inside the block, and in it for devices.
    bookings : int
        How often work was booked.
    """

    def __init__(self, device: str, precision: str, clock_hz: float, trace: bool) -> None:
        self.device = device
        self.precision = precision
        self.clock_hz = clock_hz
        self.seconds = 0.0
        self.device_seconds = 0.0
        self.bookings = 0
        self._work: dict[tuple[str, str, str | None], Work] = {}
        self._events: list[Event] | None = [] if trace else None

    def __iter__(self) -> Iterator[Work]:
        """Yield the kinds of work, most operations first."""
        return iter(sorted(self._work.values(), key=lambda work: -work.flops))

    def work(self, op: str, size: str, reason: str | None) -> Work:
        """Return the entry for a kind of work that is to be booked, made if there is none."""
        self.bookings += 1
        key = (op, size, reason)
        if key not in self._work:
            self._work[key] = Work(op, size, reason)
        return self._work[key]

    @property
    def traces(self) -> bool:
        """Whether events are kept."""
        return self._events is not None

    def event(self, name: str, size: str, device: str, run: Run | None, seconds: float) -> None:
        """Keep an `Event`, if events are kept."""
        if self._events is not None:
            self._events.append(Event(name, size, device, run, seconds))

    @property
    def flops(self) -> int:
        """Floating-point operations of all matrix work."""
        return sum(work.flops for work in self._work.values())

    @property
    def flops_offloaded(self) -> int:
        """Those that devices did."""
        return sum(work.flops for work in self._work.values() if work.reason is None)

    @property
    def coverage(self) -> float:
        """Share of the matrix work that devices did, 0 to 1; 1 if there was none."""
        return self.flops_offloaded / self.flops if self.flops else 1.0

    @property
    def calls(self) -> int:
        """Operations that devices did."""
        # A copy, as others may ask while the program runs.
        return sum(work.calls for work in list(self._work.values()) if work.reason is None)

    @property
    def devices(self) -> dict[str, DeviceWork]:
        """Everything that each device did."""
        total: dict[str, DeviceWork] = {}
        for work in self._work.values():
            for name, part in work.devices.items():
                into = total.setdefault(name, DeviceWork())
                into.products += part.products
                into.macs += part.macs
                into.bytes_host += part.bytes_host
                into.bytes_kept += part.bytes_kept
                for what in ("counted", "bytes_read", "bytes_written"):
                    value = getattr(part, what)
                    if value is not None:
                        setattr(into, what, (getattr(into, what) or 0) + value)
                for product, (count, run) in part.shapes.items():
                    into.shapes.setdefault(product, [0, run])[0] += count
        return total

    @property
    def cycles(self) -> int | None:
        """Cycles of all products, one after the other; None where a device has no cycle model.

        Devices that count none are asked for predictions, which takes a while for many sizes.
        """
        each = [part.cycles for part in self.devices.values()]
        return None if None in each else sum(cycles or 0 for cycles in each)

    @property
    def lost(self) -> Lost:
        """Operands of all products that overflowed or vanished when rounded to float16."""
        total = Lost()
        for work in self._work.values():
            total.add(work.lost)
        return total

    @property
    def calls_of_unknown_size(self) -> int:
        """Calls of operators of the program's own in which no matrix work could be seen."""
        return sum(work.calls for work in self._work.values() if work.reason == OWN)

    def host_reasons(self) -> dict[str, tuple[int, int]]:
        """Return why work stayed on the host: reason to (calls, flops)."""
        found: dict[str, tuple[int, int]] = {}
        for work in self._work.values():
            if work.reason is not None:
                calls, flops = found.get(work.reason, (0, 0))
                found[work.reason] = calls + work.calls, flops + work.flops
        return found

    def to_json(self, *, cycles: bool = False) -> dict[str, Any]:
        """Return everything as plain values.

        Parameters
        ----------
        cycles : bool
            Whether to have cycles predicted where the device counts none: that takes a while for
            many sizes. None of them is known else.
        """

        def device_json(part: DeviceWork) -> dict[str, Any]:
            known = part.cycles if cycles else part.counted
            return {
                "products": part.products,
                "macs": part.macs,
                "cycles": known,
                "cycles_are": None
                if known is None
                else ("predicted" if part.counted is None else "counted"),
                "simulated_seconds": None if known is None else known / self.clock_hz,
                "bytes_read": part.bytes_read,
                "bytes_written": part.bytes_written,
                "bytes_host": part.bytes_host,
                "bytes_kept": part.bytes_kept,
            }

        return {
            "device": self.device,
            "precision": self.precision,
            "clock_hz": self.clock_hz,
            "flops": self.flops,
            "flops_offloaded": self.flops_offloaded,
            "coverage": self.coverage,
            "calls": self.calls,
            "calls_of_unknown_size": self.calls_of_unknown_size,
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "lost": self.lost.to_json(),
            "devices": {name: device_json(part) for name, part in self.devices.items()},
            "work": [
                {
                    "op": work.op,
                    "size": work.size,
                    "reason": work.reason,
                    "calls": work.calls,
                    "flops": work.flops,
                    "seconds": work.seconds,
                    "products": sum(part.products for part in work.devices.values()),
                    "lost": work.lost.to_json(),
                }
                for work in self
            ],
        }

    def table(self, *, rows: int = 12, cycles: bool = False) -> str:
        """Return the account as text.

        Parameters
        ----------
        rows : int
            Kinds of work to show, most operations first.
        cycles : bool
            Whether to have cycles predicted, as for `to_json`; they are left out else.
        """
        head = f"offload to {self.device}, precision {self.precision}: {self.coverage:.1%} of "
        unknown = self.calls_of_unknown_size
        beside = f", and {unknown:,} calls of unknown size" if unknown else ""
        lines = [f"{head}{self.flops:,} matrix FLOPs, {self.calls:,} calls{beside}"]
        entries = list(self)
        if entries:
            wide = max(len(work.op) for work in entries[:rows])
            sized = max(len(work.size) for work in entries[:rows])
            for work in entries[:rows]:
                where = "host: " + work.reason if work.reason else ", ".join(work.devices)
                lines.append(
                    f"  {work.op:<{wide}}  {work.size:<{sized}}  {work.calls:>6,} calls  "
                    f"{work.flops:>15,} FLOPs  {where}" + (f"; {work.lost}" if work.lost else "")
                )
            if len(entries) > rows:
                lines.append(f"  … and {len(entries) - rows} more")
        for name, part in self.devices.items():
            known = part.cycles if cycles else part.counted
            text = f"  {name}: {part.products:,} products, {part.macs:,} MACs"
            if known is None and not cycles:
                text += ", cycles on request"
            if known is not None:
                how = "predicted" if part.counted is None else "counted"
                text += f", {known:,} cycles {how} = {known / self.clock_hz:.4g} s at "
                text += f"{self.clock_hz / 1e6:g} MHz"
            if part.bytes_read is not None:
                text += f", {part.bytes_read:,} bytes read, {part.bytes_written:,} written"
            text += f", {part.bytes_host:,} bytes to and from the host"
            lines.append(text + (f", {part.bytes_kept:,} kept" if part.bytes_kept else ""))
        if self.lost:
            lines.append(f"  operands rounded to float16: {self.lost}")
        for reason, (calls, flops) in self.host_reasons().items():
            lines.append(f"  on the host: {calls:,} calls, {flops:,} FLOPs: {reason}")
        return "\n".join(lines)

    __str__ = table

    def to_perfetto(self, path: str | Path) -> None:
        """Write a trace that https://ui.perfetto.dev shows (Chrome's trace event format).

        Products follow each other on the device's track, at the clock named; host work has a
        track with the host's times.

        Raises
        ------
        ValueError
            If events were not kept: ask for them with ``trace=True``.
        """
        if self._events is None:
            raise ValueError("this report kept no events; use sat.offload(..., trace=True)")
        tracks: dict[str, int] = {}
        at: dict[str, float] = {}
        events: list[dict[str, Any]] = []
        for event in self._events:
            track = tracks.setdefault(event.device, len(tracks) + 1)
            duration, args = event.seconds * 1e6, {"size": event.size}
            if event.run is not None:
                cycles = event.run.cycles
                if cycles is None:
                    cycles = event.run.predicted_cycles
                args["macs"] = str(event.run.macs)
                if cycles is not None:
                    duration = cycles / self.clock_hz * 1e6
                    args["cycles"] = str(cycles)
            # Work follows work, on whichever track: the program is sequential.
            start = max(at.values(), default=0.0)
            at[event.device] = start + duration
            events.append(
                {
                    "name": event.name,
                    "ph": "X",
                    "ts": start,
                    "dur": duration,
                    "pid": 1,
                    "tid": track,
                    "args": args,
                }
            )
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}
            for name, track in tracks.items()
        ]
        Path(path).write_text(json.dumps({"traceEvents": names + events}))
