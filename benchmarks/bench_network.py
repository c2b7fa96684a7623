"""A network's training step in exact cycles: CPU seconds, instructions, how many are leapt over.

Every stage of every different layer of a network is mapped and costed (`sat.dataflow.cost`), on
32x32 with four ports of 512 bits, dense or with a pattern; layers whose channels no pattern divides
stay dense. Then the chosen programs are costed again, running every instruction: the cycles must
be the same, and the ratio of CPU seconds is what leaping gains.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.cost import stage_cost
from sat.dataflow.cycles import predict
from sat.networks.sources import load
from sat.rtl.config import AxiConfig, SatConfig
from sat.schedules.scheduler import sparse_layer
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming
from sat.sparsity.pattern import Pattern

MEMORY = MemoryTiming(read_latency=40, write_latency=40)
CONFIG = SatConfig(
    rows=32, cols=32, a_words=1024, b_words=1024, sum_words=2048,
    axi=AxiConfig(data_bits=512, ports=4, outstanding=64),
)  # fmt: skip


def jobs(source: str, batch: int, pattern: Pattern) -> Counter[tuple[str, Layer]]:
    """Return the stages of a network's layers, and how often each comes."""
    found: Counter[tuple[str, Layer]] = Counter()
    for operation in load(source, batch=batch).operations:
        layer = operation.layer
        if layer is None:
            continue
        pruned, _ = sparse_layer(layer, pattern)
        for stage in STAGES:
            # WU is dense under every pattern.
            if stage == "update" or stage in operation.products:
                found[stage, layer if stage == "wu" else pruned] += 1
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="resnet50")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pattern", default="2:8")
    parser.add_argument("--slowest", type=int, default=5, help="stages to list")
    args = parser.parse_args()
    stages = jobs(args.source, args.batch, Pattern.parse(args.pattern))
    # Libraries are built, and what Python imports on first use is there.
    warm = Layer(batch=3, in_channels=16, out_channels=16)
    for stage in STAGES:
        stage_cost(stage, warm, CONFIG, MEMORY)

    taken = {}
    for stage, layer in stages:
        began = time.process_time()
        cost = stage_cost(stage, layer, CONFIG, MEMORY)
        taken[stage, layer] = time.process_time() - began, cost
    seconds = sum(entry[0] for entry in taken.values())
    cycles = sum(taken[job][1].cycles * times for job, times in stages.items())
    instructions = sum(cost.instructions for _, cost in taken.values())
    print(
        f"{args.source}, batch {args.batch}, {args.pattern}: {sum(stages.values())} stages, "
        f"{len(stages)} different, {cycles:,} cycles a step; {seconds:.2f} CPU s, programs of "
        f"{instructions:,} instructions"
    )
    leaps = plain = 0.0
    leapt = 0
    for (stage, layer), (_, cost) in taken.items():
        step = compile_step(layer, CONFIG, MEMORY, (stage,), plans={stage: cost.plan})
        for leap in (True, False):
            began = time.process_time()
            found = predict(step.program, CONFIG, MEMORY, step.address, leaps=leap)
            spent = time.process_time() - began
            assert found.cycles == cost.cycles, (stage, layer)
            if leap:
                leaps, leapt = leaps + spent, leapt + found.leapt
            else:
                plain += spent
    print(
        f"model on these programs: {leaps:.2f} CPU s with leaps "
        f"({instructions / leaps / 1e6:.1f} M instructions/s, {leapt / instructions:.0%} leapt "
        f"over), {plain:.2f} without ({instructions / plain / 1e6:.1f} M/s): {plain / leaps:.1f} x"
    )
    slowest = sorted(taken.items(), key=lambda entry: -entry[1][0])[: args.slowest]
    for (stage, layer), (spent, cost) in slowest:
        size = f"{layer.lines}x{layer.pixels} {layer.in_channels}→{layer.out_channels}"
        kernel = "x".join(map(str, layer.kernel))
        print(f"{spent:6.2f} s  {stage:<6} {kernel} {size}: {cost.instructions:,} instructions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
