"""Training steps of a 64-channel 3x3 convolution on the simulated 8x8 array, stage by stage.

Prints a table of cycles, utilisation and speed-up, each stage simulated and compared with the
golden model; what pre-generation saves against pruning at use; and what the weight update with both
prunings adds to a step at a larger batch (by the cycle model, which the table's runs agree with).
"""

from __future__ import annotations

import argparse
import sys

from sat.dataflow.compile.step import STAGES, Sgd, compile_step
from sat.dataflow.cycles import predict
from sat.devices.stages import simulate_layer
from sat.rtl.config import SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

DDR = MemoryTiming(read_latency=40, write_latency=20)
"""Of the order of a DDR memory behind an interconnect, in cycles at 100 MHz."""
PATTERNS = ((1, 1), (2, 8))


def layer_of(pattern: tuple[int, int], batch: int, size: int) -> Layer:
    """Return the layer under a pattern."""
    return Layer(
        batch=batch,
        lines=size,
        pixels=size,
        in_channels=64,
        out_channels=64,
        kernel=(3, 3),
        padding=(1, 1),
        ff=pattern,
        bp=pattern,
        bias=True,
        relu=True,
        masked=True,
    )


def stages_table(config: SatConfig, size: int) -> bool:
    """Print the table; return whether every run was equal and as predicted."""
    good = True
    dense: dict[str, int] = {}
    update = 0
    print(f"conv 64x64 3x3, {size}x{size} pixels, batch 1, {config.array}, memory {DDR}")
    print("pattern stage      cycles  predicted  utilisation  vs dense  differ")
    for pattern in PATTERNS:
        for stage in ("ff", "bp", "wu", "update"):
            run = simulate_layer(layer_of(pattern, 1, size), config, DDR, (stage,))
            dense.setdefault(stage, run.cycles)
            good &= run.mismatches == 0 and run.cycles == run.predicted_cycles
            print(
                f"{pattern[0]}:{pattern[1]}     {stage:<6} {run.cycles:>10,} "
                f"{run.predicted_cycles:>10,} {run.utilisation:>12.4f} "
                f"{dense[stage] / run.cycles:>8.2f}x {run.mismatches:>7}"
            )
        update = run.cycles
    # Pruned at use, FF and BP each send all weights through the same lanes once more. Waiting for
    # memory not counted, which favours it; one pass a step, however often a tile is loaded.
    at_use = 2 * (64 * 64 * 9 // config.update_lanes)
    extra = update - dense["update"]
    print(
        f"both prunings within the update: {extra:,} cycles; at use: at least {at_use:,}; "
        f"pre-generation saves {at_use - extra:,} ({1 - extra / at_use:.0%})"
    )
    return good


def update_share(config: SatConfig, size: int, batch: int) -> None:
    """Print what the update adds to a step."""
    for pattern in PATTERNS:
        layer = layer_of(pattern, batch, size)
        cycles = {}
        for stage in STAGES:
            step = compile_step(layer, config, DDR, (stage,), Sgd())
            cycles[stage] = predict(step.program, config, DDR, step.address).cycles
        products = sum(cycles[stage] for stage in ("ff", "bp", "wu"))
        print(
            f"{pattern[0]}:{pattern[1]}, {size}x{size}, batch {batch}: FF + BP + WU {products:,} "
            f"cycles, update and both prunings {cycles['update']:,}: "
            f"{cycles['update'] / products:.2%} more"
        )


def main() -> int:
    """Run the benchmark; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--array", default="8x8")
    parser.add_argument("--size", type=int, default=28)
    args = parser.parse_args()
    config = SatConfig().with_array(args.array)
    good = stages_table(config, args.size)
    for size in (args.size // 2, args.size):
        update_share(config, size, 16)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
