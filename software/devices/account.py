"""What a product cost: plain data, which may be copied, and sent to other processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sat.dataflow.products import Product
from sat.rtl.config import SatConfig
from sat.sim.memory import MemoryTiming


class Run:
    """Account of one product on a device.

    Parameters
    ----------
    macs : int
        Multiply-accumulates: rows · cols · stored depth.
    cycles : int, optional
        Cycles that the device counted; None if it counts none.
    predicted_cycles : int or callable, optional
        Cycles by the cycle model, or what computes them, called when they are first asked for.
    bound : bool
        They are the least that it can take: memory, such as SDRAM, adds to them.
    utilisation : float, optional
        ``macs`` over what the array could have done in ``cycles``, 0 to 1.
    bytes_read, bytes_written : int, optional
        Bytes that crossed the device's memory port; None if it has none.
    bytes_host : int
        Bytes of operands that the host sent, and of results that it fetched.
    bytes_kept : int
        Bytes of operands that need not be sent, since the device had kept them.
    wall_seconds : float, optional
        Time that the host waited, in seconds.
    device : str, optional
        Which one ran, where a device is made of several.
    parts : tuple of Run
        Accounts of what was computed one after the other, where a product or a stack was cut.
    """

    def __init__(
        self,
        *,
        macs: int,
        cycles: int | None = None,
        predicted_cycles: int | Callable[[], int] | None = None,
        bound: bool = False,
        utilisation: float | None = None,
        bytes_read: int | None = None,
        bytes_written: int | None = None,
        bytes_host: int = 0,
        bytes_kept: int = 0,
        wall_seconds: float | None = None,
        device: str | None = None,
        parts: tuple[Run, ...] = (),
    ) -> None:
        self.macs = macs
        self.cycles = cycles
        self.bound = bound
        self.utilisation = utilisation
        self.bytes_read = bytes_read
        self.bytes_written = bytes_written
        self.bytes_host = bytes_host
        self.bytes_kept = bytes_kept
        self.wall_seconds = wall_seconds
        self.device = device
        self.parts = parts
        self._predicted_cycles = predicted_cycles

    @property
    def predicted_cycles(self) -> int | None:
        """Cycles by the cycle model; None if the device has none."""
        if callable(self._predicted_cycles):
            self._predicted_cycles = self._predicted_cycles()
        return self._predicted_cycles

    @property
    def mispredicted(self) -> bool:
        """Whether it took other cycles than predicted; of a `bound`, fewer."""
        predicted = self.predicted_cycles
        if self.cycles is None or predicted is None:
            return False
        return self.cycles < predicted if self.bound else self.cycles != predicted

    def __repr__(self) -> str:
        shown = {
            "cycles": self.cycles,
            "macs": self.macs,
            "utilisation": self.utilisation,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_host": self.bytes_host,
            "bytes_kept": self.bytes_kept,
            "wall_seconds": self.wall_seconds,
        }
        return f"Run({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


@functools.lru_cache(maxsize=4096)
def best_cycles(product: Product, config: SatConfig, memory: MemoryTiming, dataflow: str) -> int:
    """Return the cycles that an array takes for a product, by the cycle model.

    Raises
    ------
    ValueError
        If the array has no mapping for it.
    """
    # The scheduler is needed only here: a product's bits do not depend on it.
    from sat.dataflow.search import best_mapping

    return best_mapping(product, config, memory, dataflow)[1]


@dataclass(frozen=True)
class Prediction:
    """Cycles that are computed when they are asked for: what `best_cycles` takes."""

    product: Product
    config: SatConfig
    memory: MemoryTiming
    dataflow: str

    def __call__(self) -> int:
        return best_cycles(self.product, self.config, self.memory, self.dataflow)


@dataclass(frozen=True)
class Slowest:
    """Cycles until all of several runs that began together have ended."""

    runs: tuple[Run, ...]

    def __call__(self) -> int:
        return max(run.predicted_cycles or 0 for run in self.runs)


@dataclass(frozen=True)
class InTurn:
    """Cycles of several runs, one after the other."""

    runs: tuple[Run, ...]

    def __call__(self) -> int:
        return sum(run.predicted_cycles or 0 for run in self.runs)


def in_turn(parts: Sequence[Run]) -> Run:
    """Return the account of what was computed in parts, one after the other."""
    return Run(
        macs=sum(run.macs for run in parts),
        cycles=sum_known([run.cycles for run in parts]),
        predicted_cycles=InTurn(tuple(parts)),
        bound=any(run.bound for run in parts),
        bytes_read=sum_known([run.bytes_read for run in parts]),
        bytes_written=sum_known([run.bytes_written for run in parts]),
        bytes_host=sum(run.bytes_host for run in parts),
        bytes_kept=sum(run.bytes_kept for run in parts),
        wall_seconds=sum(run.wall_seconds or 0.0 for run in parts),
        parts=tuple(parts),
    )


def sum_known(counts: Sequence[int | None]) -> int | None:
    """Return the sum of counts, or None if one is not known."""
    return None if None in counts else sum(c for c in counts if c is not None)
