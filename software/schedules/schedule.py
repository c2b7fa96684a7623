"""A network's training step on a machine: which layer is sparse, what each stage takes, the sum.

Stages run one after the other, each under its best mapping, so a schedule's cycles are a sum. BP
and WU of a layer are one program, and so are all updates: between these the host has nothing to do,
and what one loads first is fetched while the one before drains (`sat.dataflow.compile.prefetch`).
How much a perfect overlap of all stages could save is stated as a bound: `Schedule.bound`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.cost import Cost
from sat.dataflow.products import Product
from sat.networks.network import STAGES, Elementwise
from sat.schedules.machine import Machine
from sat.schedules.roofline import Bounds, total
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE, Pattern

ALL_STAGES = (*STAGES, "update")
"""FF, BP, WU and the weight update."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A stage of an operation.

    Parameters
    ----------
    operation : str
        Its name in the network.
    stage : str
        Of `ALL_STAGES`.
    kind : str
        ``"conv"``, ``"linear"`` or ``"product"``.
    pattern : Pattern
        Of the stage's right operand; `DENSE` for the update.
    reason : str
        Why the operation is sparse, or dense.
    layer : Layer or None
        The layer whose stage runs whole on the device; None if products are sent.
    products : tuple of Product
        Those that are sent, one by one.
    macs, dense_macs : int
        Multiply-accumulates, without and with pruned weights.
    plan : StagePlan
        How the stage is mapped; of products, a mapping for each.
    cost : Cost
        Exact; of products, of one program after the other.
    bounds : Bounds
    joined : bool
        Whether the stage is in one program with the entry before, whose end its cycles count from.
    """

    operation: str
    stage: str
    kind: str
    pattern: Pattern
    reason: str
    layer: Layer | None
    products: tuple[Product, ...]
    macs: int
    dense_macs: int
    plan: StagePlan
    cost: Cost
    bounds: Bounds
    joined: bool = False

    @property
    def cycles(self) -> int:
        return self.cost.cycles

    @property
    def dataflow(self) -> str:
        """``"os"``, ``"ws"``, ``"os+ws"``, or ``"-"`` for the update."""
        return self.plan.dataflow or "-"

    def utilisation(self, machine: Machine) -> float:
        """Return the share of the array's multiply-accumulates that are used, 0 to 1."""
        return self.macs / (self.cycles * machine.peak)

    @property
    def of_roofline(self) -> float:
        """Share of the roofline that the stage reaches, 0 to 1.

        A little above 1 at the most where the stage before has had time for first loads.
        """
        return self.bounds.cycles / self.cycles


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """All stages of a training step.

    Parameters
    ----------
    network : str
    batch, parameters : int
    pattern : Pattern
        What was asked for.
    wu : Pattern
        That of WU.
    machine : Machine
    entries : tuple of Entry
        FF in the order of the forward pass, BP and WU in reverse, then the updates.
    elementwise : dict of str to Elementwise
        Not on the array, and in no cycle here.
    """

    network: str
    batch: int
    parameters: int
    pattern: Pattern
    machine: Machine
    entries: tuple[Entry, ...]
    elementwise: dict[str, Elementwise]
    wu: Pattern = DENSE

    @property
    def sparsity(self) -> str:
        """Its patterns, for titles."""
        return str(self.pattern) if self.wu.dense else f"{self.pattern}, WU {self.wu}"

    @property
    def plans(self) -> dict[tuple[Layer, str], StagePlan]:
        """The plan of each layer's stage, as devices take them."""
        return {(e.layer, e.stage): e.plan for e in self.entries if e.layer is not None}

    @property
    def programs(self) -> list[tuple[Entry, ...]]:
        """The entries of each program; a stage whose products are sent stands for one each."""
        made: list[tuple[Entry, ...]] = []
        for entry in self.entries:
            if entry.joined:
                made[-1] += (entry,)
            else:
                made.append((entry,))
        return made

    def of(self, stage: str) -> list[Entry]:
        """Return the entries of a stage."""
        return [entry for entry in self.entries if entry.stage == stage]

    def cycles(self, stage: str | None = None) -> int:
        """Return the cycles of a stage, or of the step."""
        return sum(entry.cycles for entry in self.entries if stage in (None, entry.stage))

    def macs(self, stage: str | None = None) -> int:
        """Return the multiply-accumulates of a stage, or of the step, without pruned weights."""
        return sum(entry.macs for entry in self.entries if stage in (None, entry.stage))

    def utilisation(self, stage: str | None = None) -> float:
        """Return the share of the array's multiply-accumulates that are used, 0 to 1."""
        return self.macs(stage) / max(1, self.cycles(stage) * self.machine.peak)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written over the data ports."""
        return sum(entry.cost.bytes_read + entry.cost.bytes_written for entry in self.entries)

    @property
    def roofline(self) -> int:
        """Cycles if each stage met its own roofline."""
        return sum(entry.bounds.cycles for entry in self.entries)

    @property
    def bound(self) -> int:
        """Cycles that the step takes at the least, even if all stages overlapped perfectly.

        No mapping, order, prefetch or overlap across layers goes below it: the array's
        multiply-accumulates, and the bytes that every stage has to move.
        """
        return total([entry.bounds for entry in self.entries]).cycles
