"""A network's training step on a machine: which layer is sparse, what each stage takes, the sum.

Stages run one after the other, each a program of its own under its best mapping, so a schedule's
cycles are a sum. How much a perfect overlap across layers could save is stated as a bound:
`Schedule.bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.cost import Cost, product_cost, stage_cost
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.products import Product
from sat.networks.network import STAGES, Elementwise, Network, Operation
from sat.schedules.machine import Machine
from sat.schedules.roofline import (
    Bounds,
    dense_macs,
    layer_bounds,
    layer_macs,
    product_bounds,
    total,
)
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
        Of the stage's right operand; `DENSE` for WU and the update.
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
        """Share of the roofline that the stage reaches, 0 to 1."""
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


def summed(costs: Sequence[Cost]) -> Cost:
    """Return the cost of programs one after the other."""
    names = [entry.name for entry in fields(Cost)]
    return Cost(**{name: sum(getattr(cost, name) for cost in costs) for name in names})


def sparse_layer(layer: Layer, pattern: Pattern) -> tuple[Layer, str]:
    """Return a layer with its patterns, and why: sparse where M divides its channels (BDWP).

    Returns
    -------
    layer : Layer
        With FF pruned along input channels and BP along output channels, or dense.
    reason : str
    """
    if pattern.dense:
        return layer, "asked for"
    each = "" if layer.groups == 1 else " per group"
    fits, reason = pattern.fits(
        {f"in_channels{each}": layer.in_per_group, f"out_channels{each}": layer.out_per_group}
    )
    if not fits:
        return layer, reason
    pair = pattern.n, pattern.m
    return replace(layer, ff=pair, bp=pair), reason


def make_schedule(
    network: Network,
    machine: Machine,
    pattern: Pattern = DENSE,
    *,
    dataflow: str = "auto",
    progress: Callable[[Entry], None] | None = None,
) -> Schedule:
    """Return the schedule of a network's training step.

    Parameters
    ----------
    network : Network
    machine : Machine
    pattern : Pattern
        Of the weights that both FF and BP prune (BDWP), where a layer's channels allow.
    dataflow : {"auto", "os", "ws"}
        Which mappings to choose among, for all stages that have any of them (WU is "os" always).
    progress : callable, optional
        Called with each entry when it is made.

    Raises
    ------
    ValueError
        The device cannot run the pattern.
    """
    if pattern.m > machine.config.max_m:
        raise ValueError(
            f"pattern {pattern}: this device has max_m={machine.config.max_m}; build it with "
            f"max_m={pattern.m}"
        )
    entries = []
    for entry in _entries(network, machine, pattern, dataflow):
        entries.append(entry)
        if progress is not None:
            progress(entry)
    return Schedule(
        network=network.name,
        batch=network.batch,
        parameters=network.parameters,
        pattern=pattern,
        machine=machine,
        entries=tuple(entries),
        elementwise=network.elementwise,
    )


def _entries(
    network: Network, machine: Machine, pattern: Pattern, dataflow: str
) -> Iterator[Entry]:
    for operation, stage in network.stages():
        yield _entry(operation, stage, machine, pattern, dataflow)
    # Every gradient has been checked before a weight changes; shared ones change once.
    updated: set[str | None] = set()
    for operation in network.operations:
        layer = operation.layer
        if layer is None or "wu" not in operation.products or operation.weight in updated:
            continue
        updated.add(operation.weight)
        try:
            made = _entry(operation, "update", machine, pattern, "auto")
        except DoesNotFit:
            continue  # its products are sent one by one, and the host updates
        yield made


def _entry(
    operation: Operation, stage: str, machine: Machine, pattern: Pattern, dataflow: str
) -> Entry:
    reason, layer = "no layer: nothing to prune", operation.layer
    chosen = DENSE
    if layer is not None:
        layer, reason = sparse_layer(layer, pattern)
        n, m = {"ff": layer.ff, "bp": layer.bp}.get(stage, (1, 1))
        chosen = Pattern(n, m)
        try:
            return _of_layer(operation, layer, stage, machine, chosen, reason, dataflow)
        except DoesNotFit as error:
            if stage == "update":
                raise
            reason += f"; sent as products ({error.what})"
    products = tuple(
        replace(product, n=chosen.n, m=chosen.m) for product in operation.products[stage]
    )
    costs = [product_cost(p, machine.config, machine.timing, dataflow=dataflow) for p in products]
    return Entry(
        operation=operation.name,
        stage=stage,
        kind=operation.kind,
        pattern=chosen,
        reason=reason,
        layer=None,
        products=products,
        macs=sum(product.macs for product in products),
        dense_macs=operation.macs(stage),
        plan=StagePlan(tuple(cost.mapping for cost in costs)),
        cost=summed(costs),
        bounds=total([product_bounds(product, machine) for product in products]),
    )


def _of_layer(
    operation: Operation,
    layer: Layer,
    stage: str,
    machine: Machine,
    pattern: Pattern,
    reason: str,
    dataflow: str,
) -> Entry:
    cost = stage_cost(stage, layer, machine.config, machine.timing, dataflow=dataflow)
    return Entry(
        operation=operation.name,
        stage=stage,
        kind=operation.kind,
        pattern=pattern,
        reason=reason,
        layer=layer,
        products=(),
        macs=layer_macs(layer, stage),
        dense_macs=dense_macs(layer, stage),
        plan=cost.plan,
        cost=summed([cost]),
        bounds=layer_bounds(layer, stage, machine),
    )
