"""What a schedule is for: a device, and the memory behind its ports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sat.rtl.config import SatConfig
from sat.sim.memory import MEMORIES, MemoryTiming

ADDRESS_BITS = 40
"""Of a device that holds whole networks: the activations of a step are more than 4 GB."""

CLOCK_HZ = 200_000_000
"""What cycles are turned to seconds by, if nothing else is said: the paper's clock."""


@dataclass(frozen=True)
class Machine:
    """A device and its memory.

    Parameters
    ----------
    config : SatConfig
    timing : MemoryTiming
    memory : str
        The memory's name in `sat.sim.memory.MEMORIES`, or another for reports.
    """

    config: SatConfig
    timing: MemoryTiming
    memory: str = "other"

    @property
    def peak(self) -> int:
        """Multiply-accumulates that the array takes in a cycle."""
        return self.config.rows * self.config.cols

    @property
    def bytes_per_cycle(self) -> float:
        """Bytes that the data ports bring in a cycle, and as many that they take."""
        return self.config.axi.beat_bytes / self.timing.cycles_per_beat

    def __str__(self) -> str:
        return f"{self.config.array}, memory {self.memory} ({self.bytes_per_cycle:g} B a cycle)"


def machine(
    array: str = "32x32",
    memory: str = "ddr4",
    *,
    max_m: int = 8,
    words: int = 1024,
    lanes: int | None = None,
    interleave: int = 4,
    prune_gathers: bool = False,
) -> Machine:
    """Return a machine by the few numbers that reports vary.

    Parameters
    ----------
    array : str
        ``"RxC"``.
    memory : str
        Of `sat.sim.memory.MEMORIES`.
    max_m : int
        The largest M.
    words : int
        Depth of the operand banks, in words of ``max_m`` elements; the sums' are twice as deep.
    lanes : int, optional
        Of the update engine; as many as the array has columns, up to 32 (the paper's), if not
        given.
    interleave : int
        Sums that take turns in a USPE; the adder has as many stages, up to 4.
    prune_gathers : bool
        Whether WU may prune.

    Raises
    ------
    ValueError
        There is no such memory, or a number breaks a rule of `SatConfig`.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory {memory!r}: must be one of {', '.join(MEMORIES)}")
    base = SatConfig()
    fp = replace(base.fp, adder_stages=min(base.fp.adder_stages, interleave))
    array_only = replace(base, interleave=interleave, fp=fp).with_array(array)
    if lanes is None:
        lanes = min(32, 1 << (array_only.cols.bit_length() - 1))
    config = replace(
        array_only,
        max_m=max_m,
        max_n=min(base.max_n, max_m),
        a_words=words,
        b_words=words,
        sum_words=max(2 * words, array_only.sum_words),
        update_lanes=lanes,
        # Long rows: a beat of pruned copies is worth its cycle.
        tile_weights=max(256, min(16384, 16 * lanes * lanes)),
        axi=replace(base.axi, address_bits=ADDRESS_BITS),
    )
    config = replace(MEMORIES[memory].device(config), prune_gathers=prune_gathers)
    return Machine(config, MEMORIES[memory].timing, memory)


def machine_of(path: str | Path, memory: str) -> Machine:
    """Return the machine of a file that `SatConfig.to_json` wrote, with a memory's latency.

    Raises
    ------
    ValueError
        The file cannot be read or is no configuration; or there is no such memory.
    """
    if memory not in MEMORIES:
        raise ValueError(f"memory {memory!r}: must be one of {', '.join(MEMORIES)}")
    try:
        config = SatConfig.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"device {str(path)!r}: is no configuration ({error})") from error
    return Machine(config, MEMORIES[memory].timing, memory)
