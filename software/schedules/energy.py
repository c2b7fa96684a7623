"""Energy of a schedule, estimated: actions, times a table of what each takes.

The table is M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
figure 1.1.9: 45 nm, 0.9 V. SAT has not been made in 45 nm: what comes out compares schedules with
each other; it is no measurement, and no claim about a chip or an FPGA.
"""

from __future__ import annotations

from dataclasses import dataclass

from sat.schedules.schedule import Schedule

SOURCE = "Horowitz, ISSCC 2014 (45 nm, 0.9 V)"

PICOJOULES = {
    "FP16 multiply": 1.1,
    "FP32 add": 0.9,
    "FP32 multiply": 3.7,
    "SRAM byte (8 KB)": 10 / 8,
    "DRAM byte": 1300 / 8,
}
"""Of one action; of DRAM the lower end of the table's 1.3 to 2.6 nJ for 64 bits."""

UPDATE = {"FP32 multiply": 4, "FP32 add": 3}
"""Of one weight's update in WUVE."""


@dataclass(frozen=True)
class Energy:
    """An estimate.

    Attributes
    ----------
    actions : dict of str to int
        How many of each of `PICOJOULES`.
    """

    actions: dict[str, int]

    @property
    def picojoules(self) -> dict[str, float]:
        """What each kind of action takes."""
        return {name: PICOJOULES[name] * count for name, count in self.actions.items()}

    @property
    def joules(self) -> float:
        return sum(self.picojoules.values()) / 1e12


def estimate(schedule: Schedule) -> Energy:
    """Return the estimated energy of a step.

    Counted are multiply-accumulates, updates, bytes over the data ports, and of the banks those
    bytes once more and what the array takes: in each cycle in which it takes operands a word a row
    and a value a column. Clock, control, leakage and the links are not.
    """
    config = schedule.machine.config
    macs = moved = array = weights = 0
    for entry in schedule.entries:
        macs += entry.macs
        moved += entry.cost.bytes_read + entry.cost.bytes_written
        array += entry.cost.compute_cycles * (config.rows * config.word_bytes + 2 * config.cols)
        if entry.stage == "update" and entry.layer is not None:
            layer = entry.layer
            weights += layer.taps * layer.in_per_group * layer.out_channels
    return Energy(
        {
            "FP16 multiply": macs,
            "FP32 add": macs + UPDATE["FP32 add"] * weights,
            "FP32 multiply": UPDATE["FP32 multiply"] * weights,
            "SRAM byte (8 KB)": moved + array,
            "DRAM byte": moved,
        }
    )
