"""From a network to its schedule: which layers are sparse, what each stage takes at its best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.cost import (
    Cost,
    StageCost,
    product_cost,
    program_cycles,
    stage_cost,
    stage_floor,
    update_cycles,
)
from sat.dataflow.fit import DoesNotFit
from sat.networks.network import Network, Operation
from sat.schedules.machine import Machine
from sat.schedules.roofline import (
    dense_macs,
    layer_bounds,
    layer_macs,
    product_bounds,
    total,
)
from sat.schedules.schedule import Entry, Schedule
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE, Pattern


def make_schedule(
    network: Network,
    machine: Machine,
    pattern: Pattern = DENSE,
    *,
    wu: Pattern = DENSE,
    dataflow: str = "auto",
    host_patches: bool = True,
    prefetch: bool = True,
    progress: Callable[[Entry], None] | None = None,
) -> Schedule:
    """Return the schedule of a network's training step.

    Parameters
    ----------
    network : Network
    machine : Machine
    pattern : Pattern
        Of the weights that both FF and BP prune (BDWP), where a layer's channels allow.
    wu : Pattern
        Of the output gradients that WU prunes, along the positions of the batch: of every layer
        but depthwise ones.
    dataflow : {"auto", "os", "ws"}
        Which mappings to choose among, where a stage has any of them (WU is "os" always).
    host_patches : bool
        Whether the host may lay out the patches of a first convolution (`laid_out`) where that
        is faster.
    prefetch : bool
        Whether BP and WU of a layer are one program, and all updates, where that is faster.
    progress : callable, optional
        Called with each entry when it is made.

    Raises
    ------
    ValueError
        The device cannot run the pattern.
    """
    for each in (pattern, wu):
        if each.m > machine.config.max_m:
            raise ValueError(
                f"pattern {each}: this device has max_m={machine.config.max_m}; build it with "
                f"max_m={each.m}"
            )
    if not (wu.dense or machine.config.prune_gathers):
        raise ValueError(
            f"wu={wu}: this device has prune_gathers=False; build it with prune_gathers=True"
        )
    scheduler = _Scheduler(network, machine, pattern, wu, dataflow, host_patches)
    entries = []
    for together in scheduler.programs():
        for entry in scheduler.joined(together) if prefetch else together:
            entries.append(entry)
            if progress is not None:
                progress(entry)
    return Schedule(
        network=network.name,
        batch=network.batch,
        parameters=network.parameters,
        pattern=pattern,
        wu=wu,
        machine=machine,
        entries=tuple(entries),
        elementwise=network.elementwise,
    )


def sparse_layer(layer: Layer, pattern: Pattern, wu: Pattern = DENSE) -> tuple[Layer, str]:
    """Return a layer with its patterns, and why: sparse where M divides its channels (BDWP).

    WU's depends on no channels, but a depthwise layer has none.

    Returns
    -------
    layer : Layer
        With FF pruned along input channels and BP along output channels, or dense.
    reason : str
    """
    if not layer.depthwise:
        layer = replace(layer, wu=(wu.n, wu.m))
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


def laid_out(layer: Layer) -> Layer:
    """Return a convolution as one of 1 x 1 pixels on patches that lie in memory.

    The channels of a pixel are those of all its taps, tap after tap: the same sums in the same
    order, so the same bits. A first layer has few channels, which fill few of the array's columns
    in WU; the pictures come from the host, which can lay them out so when it loads them.
    """
    lines, pixels = layer.out_size
    return Layer(
        batch=layer.batch,
        lines=lines,
        pixels=pixels,
        in_channels=layer.taps * layer.in_channels,
        out_channels=layer.out_channels,
        wu=layer.wu,
        bias=layer.bias,
        relu=layer.relu,
    )


def summed(costs: Sequence[Cost]) -> Cost:
    """Return the cost of programs one after the other."""
    names = [entry.name for entry in fields(Cost)]
    return Cost(**{name: sum(getattr(cost, name) for cost in costs) for name in names})


LAID_OUT = "the host lays out its patches"


@dataclass(frozen=True)
class _Scheduler:
    """What `make_schedule` was given."""

    network: Network
    machine: Machine
    pattern: Pattern
    wu: Pattern
    dataflow: str
    host_patches: bool

    def programs(self) -> Iterator[list[Entry]]:
        """Yield the stages in their order; together those that may be one program."""
        layers = {operation.name: self.layer(operation) for operation in self.network.operations}

        def entry(operation: Operation, stage: str) -> Entry:
            layer, reason = layers[operation.name]
            if layer is None:
                return self.of_products(operation, stage, reason)
            return self.of_layer(operation, layer, stage, reason)

        # Between FF of two layers, and before each BP, the host works.
        stages = itertools.groupby(self.network.stages(), lambda of: (of[0].name, of[1] == "ff"))
        for _, together in stages:
            yield [entry(*of) for of in together]
        # Every gradient has been checked before a weight changes; shared ones change once. Where
        # products are sent one by one, the host updates.
        updated: dict[str | None, Entry] = {}
        for operation in self.network.operations:
            trained = layers[operation.name][0] is not None and "wu" in operation.products
            if trained and operation.weight not in updated:
                updated[operation.weight] = entry(operation, "update")
        yield list(updated.values())

    def joined(self, entries: list[Entry]) -> list[Entry]:
        """Return entries as one program, if they are layers' and it is faster so."""
        layers = [entry.layer for entry in entries if entry.layer is not None]
        if len(entries) < 2 or len(layers) < len(entries):
            return entries
        config, timing = self.machine.config, self.machine.timing
        if entries[0].stage == "update":
            cycles = update_cycles(layers, config, timing)
        else:
            plans = {entry.stage: entry.plan for entry in entries}
            cycles = program_cycles(layers[0], plans, config, timing)
        if sum(cycles) >= sum(entry.cycles for entry in entries):
            return entries
        return [
            replace(entry, joined=number > 0, cost=replace(entry.cost, cycles=cycles[number]))
            for number, entry in enumerate(entries)
        ]

    def layer(self, operation: Operation) -> tuple[Layer | None, str]:
        """Return what runs an operation's stages whole, if anything does, and why it is so."""
        if operation.layer is None:
            return None, "no layer: nothing to prune"
        layer, reason = sparse_layer(operation.layer, self.pattern, self.wu)
        first = "bp" not in operation.products and layer.groups == 1 and layer.taps > 1
        whole = None
        if self.host_patches and first and (layer.ff, layer.bp) == ((1, 1), (1, 1)):
            whole = laid_out(layer)
        try:
            # A convolution that is sure to be slower is not even costed.
            if whole is not None and self.slower(layer, operation, self.cycles(whole, operation)):
                return whole, f"{reason}; {LAID_OUT}"
            for stage in operation.products:
                self.cost(layer, stage)
        except DoesNotFit as error:
            return None, f"{reason}; its products are sent ({error.what})"
        if whole is not None and self.cycles(whole, operation) < self.cycles(layer, operation):
            return whole, f"{reason}; {LAID_OUT}"
        return layer, reason

    def slower(self, layer: Layer, operation: Operation, cycles: int) -> bool:
        """Whether the stages of an operation as a layer's are sure to take more than so many."""
        config, timing = self.machine.config, self.machine.timing
        # WU first: a first layer's few channels fill few columns.
        for stage in reversed(operation.products):
            cycles -= stage_floor(stage, layer, config, timing)
            if cycles < 0:
                return True
        return False

    def cycles(self, layer: Layer, operation: Operation) -> int:
        """Return what the stages of an operation take as a layer's."""
        return sum(self.cost(layer, stage).cycles for stage in operation.products)

    def cost(self, layer: Layer, stage: str) -> StageCost:
        """Return a stage's exact cost."""
        config, timing = self.machine.config, self.machine.timing
        if self.dataflow != "auto" and stage != "update":
            try:
                return stage_cost(stage, layer, config, timing, dataflow=self.dataflow)
            except DoesNotFit:
                pass  # it has no such mapping: WU, or weights that no row of USPEs holds
        return stage_cost(stage, layer, config, timing)

    def of_layer(self, operation: Operation, layer: Layer, stage: str, reason: str) -> Entry:
        """Return a stage that runs whole."""
        cost = self.cost(layer, stage)
        return Entry(
            operation=operation.name,
            stage=stage,
            kind=operation.kind,
            pattern=Pattern(*layer.pattern(stage)),
            reason=reason,
            layer=layer,
            products=(),
            macs=layer_macs(layer, stage),
            dense_macs=dense_macs(layer, stage),
            plan=cost.plan,
            cost=summed([cost]),
            bounds=layer_bounds(layer, stage, self.machine),
        )

    def of_products(self, operation: Operation, stage: str, reason: str) -> Entry:
        """Return a stage whose products are sent, pruned where the operation's layer would be."""
        chosen = DENSE
        if operation.layer is not None:
            layer, _ = sparse_layer(operation.layer, self.pattern, self.wu)
            chosen = Pattern(*layer.pattern(stage))
        products = tuple(replace(p, n=chosen.n, m=chosen.m) for p in operation.products[stage])
        config, timing = self.machine.config, self.machine.timing
        costs = []
        for product in products:
            try:
                cost = product_cost(product, config, timing, dataflow=self.dataflow)
            except DoesNotFit:
                cost = product_cost(product, config, timing)
            costs.append(cost)
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
            bounds=total([product_bounds(product, self.machine) for product in products]),
        )
