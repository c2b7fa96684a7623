"""What pruning WU is worth, by the exact model: layers' WU, and steps of the paper's networks.

For each layer of `bench_roofline` on 32x32: cycles of WU dense and with output gradients pruned
2:8. For each of the paper's networks: a step with all three products sparse beside a dense one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from bench_roofline import DEVICES, LAYERS, MEMORY

from sat.dataflow.cost import stage_cost
from sat.networks.sources import load
from sat.networks.zoo import PAPER
from sat.schedules.machine import Machine, machine
from sat.schedules.report import Comparison
from sat.schedules.roofline import layer_bounds
from sat.schedules.scheduler import make_schedule
from sat.sparsity.pattern import Pattern


def layers(device: str, pattern: Pattern) -> None:
    """Print WU of each layer, dense and sparse."""
    config = replace(DEVICES[device], prune_gathers=True)
    for name, dense in LAYERS.items():
        sparse = replace(dense, wu=(pattern.n, pattern.m))
        cycles, limit = [], []
        for layer in (dense, sparse):
            cycles.append(stage_cost("wu", layer, config, MEMORY).cycles)
            limit.append(layer_bounds(layer, "wu", Machine(config, MEMORY)).cycles)
        print(
            f"{device:<10} {name:<26} WU {cycles[0]:>10,} {pattern} {cycles[1]:>9,} "
            f"{cycles[0] / cycles[1]:.2f}x (rooflines {limit[0] / limit[1]:.2f}x)",
            flush=True,
        )


def networks(memory: str, pattern: Pattern, names: list[str]) -> None:
    """Print steps of networks, and their average."""
    device = machine("32x32", memory, max_m=max(8, pattern.m), prune_gathers=True)
    found = []
    for name in names:
        network = load(name)
        dense = make_schedule(network, device)
        both = Comparison(make_schedule(network, device, pattern, wu=pattern), dense)
        stages = {s: dense.cycles(s) / both.schedule.cycles(s) for s in ("ff", "bp", "wu")}
        shares = " ".join(f"{stage} {ratio:.2f}x" for stage, ratio in stages.items())
        print(
            f"{memory:<8} {name:<9} {pattern} {both.schedule.cycles():>12,} cycles "
            f"{both.speedup:.3f}x (rooflines {both.limit:.3f}x): {shares}",
            flush=True,
        )
        found.append(both)
    mean = sum(both.speedup for both in found) / len(found)
    limit = sum(both.limit for both in found) / len(found)
    used = [both.dense.utilisation(stage) for both in found for stage in ("ff", "bp", "wu")]
    print(
        f"{memory} {pattern}: average {mean:.3f}x, rooflines {limit:.3f}x, dense utilisation "
        f"{sum(used) / len(used):.3f}",
        flush=True,
    )


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", default="2:8")
    parser.add_argument("--networks", nargs="*", default=list(PAPER))
    parser.add_argument("--memories", nargs="*", default=["ddr4", "ddr4x4"])
    args = parser.parse_args()
    pattern = Pattern.parse(args.pattern)
    for device in ("32x32/64B", "32x32/256B"):
        layers(device, pattern)
    for memory in args.memories:
        networks(memory, pattern, args.networks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
