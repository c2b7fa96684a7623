"""Training steps of the paper's five networks on 32x32: sparse beside dense, by the exact model.

For each network, memory and pattern: cycles, speed-up, what rooflines would allow, utilisation of
the dense step a stage, and the CPU seconds that scheduling the sparse step took (once the network
is captured). With --ablation: what the step takes without each idea.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from sat.networks.sources import load
from sat.networks.zoo import PAPER
from sat.schedules.ablation import ablation
from sat.schedules.machine import CLOCK_HZ, machine
from sat.schedules.report import Comparison, summary
from sat.schedules.scheduler import make_schedule
from sat.sparsity.pattern import Pattern


def main() -> int:
    """Print a line for each, and the averages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(PAPER))
    parser.add_argument("--memories", nargs="*", default=["ddr4", "ddr4x4"])
    parser.add_argument("--patterns", nargs="*", default=["2:8"])
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--json", action="store_true", help="a line of JSON each")
    args = parser.parse_args()
    found: dict[tuple[str, str], list[Comparison]] = {}
    for name in args.networks:
        network = load(name)
        for memory in args.memories:
            for text in args.patterns:
                pattern = Pattern.parse(text)
                device = machine("32x32", memory, max_m=max(8, pattern.m))
                began = time.process_time()
                schedule = make_schedule(network, device, pattern)
                seconds = time.process_time() - began
                both = Comparison(schedule, make_schedule(network, device))
                found.setdefault((memory, text), []).append(both)
                values = {**summary(schedule, CLOCK_HZ), **both.to_dict(), "cpu_seconds": seconds}
                if args.ablation:
                    values["without"] = {
                        loss.idea: loss.cycles / schedule.cycles()
                        for loss in ablation(schedule, network)
                    }
                if args.json:
                    print(json.dumps(values), flush=True)
                else:
                    _print(values)
    if args.json:
        return 0
    for (memory, text), rows in found.items():
        mean = sum(both.speedup for both in rows) / len(rows)
        limit = sum(both.limit for both in rows) / len(rows)
        dense = [both.dense.utilisation(s) for both in rows for s in ("ff", "bp", "wu")]
        print(
            f"{memory} {text}: average {mean:.3f}x, rooflines {limit:.3f}x, dense utilisation "
            f"{sum(dense) / len(dense):.3f}"
        )
    return 0


def _print(values: dict) -> None:
    dense = " ".join(f"{name} {x:.3f}" for name, x in values["dense_utilisation"].items())
    print(
        f"{values['network']:<9} batch {values['batch']:>3} {values['memory']:<7}"
        f"{values['pattern']:>5} {values['cycles']:>13,} cycles {values['speedup']:.3f}x "
        f"(rooflines {values['roofline_speedup']:.3f}x, MACs {values['arithmetic_speedup']:.3f}x) "
        f"dense: {dense}; {values['cpu_seconds']:.1f} CPU s",
        flush=True,
    )
    for idea, share in values.get("without", {}).items():
        print(f"          {idea}: {share:.3f}x the cycles")


if __name__ == "__main__":
    sys.exit(main())
