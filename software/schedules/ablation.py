"""What each of the paper's ideas saves on a network: the same step without it.

========================= ======================================================================
one dataflow              only output stationary, or only weight stationary, mappings (WU has
                          output stationary ones only); exact
nothing ahead             no load stands before the MULTIPLY in front of the one that needs it,
                          and stores come right behind their sums; exact
no overlap                the array waits for all operands, memory for all sums: at the least, what
                          each takes by itself, one after the other
no interleave             an adder of as many stages, one sum at a time: the array takes an
                          operand every so many cycles; at the least, loads and stores hidden
no prefetch across stages each stage is a program of its own; exact
no pre-generation         pruning at use: FF and BP of a sparse layer each send its FP32 weights
                          through the same lanes once more, and the update prunes nothing; at
                          the least, one pass a stage, latency hidden
========================= ======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.cost import stage_cost, update_cycles
from sat.dataflow.mapping import ceil_div
from sat.networks.network import Network
from sat.schedules.machine import Machine
from sat.schedules.schedule import Entry, Schedule
from sat.schedules.scheduler import make_schedule
from sat.sim.layer import Layer


@dataclass(frozen=True)
class Loss:
    """What a step takes without an idea.

    Attributes
    ----------
    idea : str
    cycles : int
        Of the step.
    exact : bool
        By the cycle model; or the least that it can be.
    """

    idea: str
    cycles: int
    exact: bool


def ablation(schedule: Schedule, network: Network) -> list[Loss]:
    """Return what a schedule's step takes without each of the ideas.

    Parameters
    ----------
    network : Network
        That the schedule was made of.
    """
    machine, entries = schedule.machine, schedule.entries
    one = {
        flow: make_schedule(
            network, machine, schedule.pattern, wu=schedule.wu, dataflow=flow
        ).cycles()
        for flow in ("os", "ws")
    }
    alone = make_schedule(network, machine, schedule.pattern, prefetch=False).cycles()
    # Pruning at use leaves no copies to prune: the updates are the dense layers'.
    dense = [_dense(e.layer) for e in schedule.of("update") if e.layer is not None]
    updates = sum(update_cycles(dense, machine.config, machine.timing)) if dense else 0
    at_use = updates + sum(_at_use(e, machine) for e in entries if e.stage != "update")
    return [
        Loss("output stationary only", one["os"], True),
        Loss("weight stationary only", one["ws"], True),
        Loss("nothing ahead", sum(_in_turn(e, machine) for e in entries), True),
        Loss("no overlap of array and memory", sum(_after_each_other(e) for e in entries), False),
        Loss("no interleave", sum(_alone(e, machine) for e in entries), False),
        Loss("no prefetch across stages", alone, True),
        Loss("no pre-generation", at_use, False),
    ]


def _in_turn(entry: Entry, machine: Machine) -> int:
    if entry.layer is None or not entry.plan.mappings:
        return entry.cycles
    plan = StagePlan(entry.plan.mappings, entry.plan.order._replace(ahead=0, behind=0))
    config, timing = machine.config, machine.timing
    return stage_cost(entry.stage, entry.layer, config, timing, plan=plan).cycles


def _after_each_other(entry: Entry) -> int:
    return max(entry.cycles, sum(entry.cost.needs.values()))


def _alone(entry: Entry, machine: Machine) -> int:
    return max(entry.cycles, entry.cost.compute_cycles * machine.config.interleave)


def _dense(layer: Layer) -> Layer:
    return replace(layer, ff=(1, 1), bp=(1, 1))


def _at_use(entry: Entry, machine: Machine) -> int:
    layer = entry.layer
    if layer is None or entry.stage == "wu" or entry.pattern.dense:
        return entry.cycles
    weights = layer.taps * layer.in_per_group * layer.out_channels
    lanes = ceil_div(weights, machine.config.update_lanes)
    return entry.cycles + max(lanes, int(4 * weights / machine.bytes_per_cycle))
