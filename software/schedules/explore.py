"""Many devices for a network: cycles against area, as a file that grows and can be gone on with.

The file has a line of JSON a design, in the order of the designs, behind a first line that says
what was asked for. A run that was killed is resumed by the same call, and gives the same bytes.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sat.networks.network import Network
from sat.networks.sources import load
from sat.schedules.area import MEASURED, area
from sat.schedules.machine import machine
from sat.schedules.scheduler import make_schedule
from sat.sparsity.pattern import Pattern

FORMAT, VERSION = "sat exploration", 1

OBJECTIVES = ("cycles_per_example", "lut4", "dsp", "ram")
"""What a design on the front is not beaten in by any other: all of them, the less the better."""


class OtherExploration(ValueError):
    """A file holds the results of something else."""


class NoCluster(ValueError):
    """There is no Ray cluster to ask."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A device, its memory, and what it runs.

    Parameters
    ----------
    array : str
    memory : str
    words : int
        Depth of operand banks.
    lanes : int
        Of the update engine.
    pattern : str
    batch : int
    """

    array: str
    memory: str
    words: int
    lanes: int
    pattern: str
    batch: int


@dataclass(frozen=True, kw_only=True)
class Space:
    """What to explore: every combination.

    Parameters
    ----------
    source : str
        Of the network, as `sat.networks.sources.load` takes it.
    arrays, memories, patterns : tuple of str
    words, lanes, batches : tuple of int
    """

    source: str
    arrays: tuple[str, ...] = ("8x8", "16x16", "32x32")
    memories: tuple[str, ...] = ("narrow", "ddr4", "ddr4x4")
    words: tuple[int, ...] = (512, 1024)
    lanes: tuple[int, ...] = (8, 32)
    patterns: tuple[str, ...] = ("dense", "2:4", "2:8")
    batches: tuple[int, ...] = (32, 128)

    def designs(self) -> list[Design]:
        """Return all designs, in the order of the file."""
        axes = (self.arrays, self.memories, self.words, self.lanes, self.patterns, self.batches)
        return [
            Design(array=array, memory=memory, words=words, lanes=lanes, pattern=n_m, batch=batch)
            for array, memory, words, lanes, n_m, batch in itertools.product(*axes)
        ]

    def head(self) -> dict[str, Any]:
        """Return the file's first line."""
        return {"format": FORMAT, "version": VERSION, "area": MEASURED, **asdict(self)}


@functools.lru_cache(maxsize=8)
def _network(source: str, batch: int) -> Network:
    return load(source, batch=batch)


def evaluate(source: str, design: Design) -> dict[str, Any]:
    """Return a design's figures, or why there is no such device."""
    made: dict[str, Any] = asdict(design)
    pattern = Pattern.parse(design.pattern)
    try:
        device = machine(
            design.array, design.memory, max_m=max(8, pattern.m), words=design.words,
            lanes=design.lanes,
        )  # fmt: skip
    except ValueError as error:
        return {**made, "refused": str(error)}
    schedule = make_schedule(_network(source, design.batch), device, pattern)
    return {
        **made,
        "cycles": schedule.cycles(),
        "cycles_per_example": schedule.cycles() / schedule.batch,
        "utilisation": schedule.utilisation(),
        **asdict(area(device.config)),
    }


def alike(designs: Sequence[Design]) -> list[list[Design]]:
    """Return runs of designs that share what they cost: all but lanes, patterns and batches.

    WU does not depend on patterns of weights, no product on the lanes (`sat.dataflow.cost`), so who
    evaluates one knows much of the next.
    """

    def shared(design: Design) -> tuple[str, str, int]:
        return design.array, design.memory, design.words

    return [list(group) for _, group in itertools.groupby(designs, shared)]


def evaluate_all(source: str, designs: Sequence[Design]) -> list[dict[str, Any]]:
    """Return the figures of several designs, as `evaluate`."""
    return [evaluate(source, design) for design in designs]


def _end_with_parent() -> None:
    """End this process when the one that started it does, even killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def explore(
    space: Space,
    path: str | Path,
    *,
    processes: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate all designs of a space, but for those that a file already has.

    Parameters
    ----------
    path : str or Path
        The file; what is missing is added, design by design.
    processes : int, optional
        Side by side; as many as there are cores if not given.
    ray : str, optional
        Address of a Ray cluster that evaluates instead, as `ray.init` takes it: ``"auto"`` for the
        one that this machine belongs to, ``"local"`` for one of its own.
    progress : callable, optional
        Called with designs done, and all, after each.

    Raises
    ------
    OtherExploration
        The file holds something else.
    CannotCapture
        The network's source is not known, or its work cannot be told.
    NoCluster
        Ray is not installed, or nothing answers at the address.
    """
    designs, path = space.designs(), Path(path)
    for batch in space.batches:
        _network(space.source, batch)  # whatever is wrong with it shows here
    rows = _resume(space, designs, path)
    missing = designs[len(rows) :]
    if ray is not None:
        evaluated = _on_cluster(space.source, missing, ray)
    else:
        evaluated = _evaluated(space.source, missing, processes or os.cpu_count() or 1)
    with path.open("a", encoding="utf-8") as file:
        for row in evaluated:
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(designs))
    return rows


def _evaluated(source: str, designs: Sequence[Design], processes: int) -> Iterator[dict[str, Any]]:
    work = functools.partial(evaluate_all, source)
    if processes == 1 or len(designs) < 2:
        yield from (evaluate(source, design) for design in designs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _end_with_parent) as pool:
        try:
            for rows in pool.map(work, alike(designs)):
                yield from rows
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_cluster(source: str, designs: Sequence[Design], address: str) -> Iterator[dict[str, Any]]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise NoCluster(f"ray={address!r}: needs Ray ({error}); pip install 'sat[ray]'") from error
    if not designs:
        return
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        # Ray asks for minutes where nobody answers.
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise NoCluster(f"ray={address!r}: no cluster there ({error}); see `ray status`") from error
    try:
        task = ray.remote(evaluate_all)
        # All are asked for at once; rows come in the order of the file.
        for made in [task.remote(source, group) for group in alike(designs)]:
            yield from ray.get(made)
    finally:
        ray.shutdown()


def _resume(space: Space, designs: Sequence[Design], path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, whose torn last line is cut off; write the head of a new one."""
    head = json.dumps(space.head())
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    lines = whole.splitlines()
    if not lines:
        if text and not head.startswith(text):
            raise OtherExploration(f"{path}: is no exploration; give another file")
        path.write_text(head + "\n", encoding="utf-8")
        return []
    if lines[0] != head:
        raise OtherExploration(
            f"{path}: holds another exploration, or one of another version; give another file, or "
            "delete it"
        )
    try:
        rows = [json.loads(line) for line in lines[1:]]
        same = [{k: row[k] for k in asdict(d)} == asdict(d) for row, d in zip(rows, designs)]  # noqa: B905
    except (ValueError, KeyError, TypeError) as error:
        raise OtherExploration(f"{path}: is broken ({error}); delete it") from error
    if not all(same) or len(rows) > len(designs):
        raise OtherExploration(f"{path}: its designs are not this exploration's; delete it")
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole.encode("utf-8")))
    return rows


def front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the designs that no other of the same pattern and batch beats, the fastest first.

    A design is beaten by one that is no worse in any of `OBJECTIVES`, and better in one.
    """
    found = [row for row in rows if "refused" not in row]

    def values(row: dict[str, Any]) -> tuple[float, ...]:
        return tuple(row[name] for name in OBJECTIVES)

    def beaten(row: dict[str, Any]) -> bool:
        own = values(row)
        return any(
            (other["batch"], other["pattern"]) == (row["batch"], row["pattern"])
            and values(other) != own
            and all(a <= b for a, b in zip(values(other), own, strict=True))
            for other in found
        )

    return sorted((row for row in found if not beaten(row)), key=values)
