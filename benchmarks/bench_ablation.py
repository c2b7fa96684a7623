"""A layer's training step without each of the paper's ideas, every program run on the RTL.

Cycles that the simulated device counts, beside those that the cycle model gives; bits beside
golden's. The array is 8x8 by default, so that the step is a matter of a minute.
"""

from __future__ import annotations

import argparse
import sys

from sat.rtl.config import SatConfig
from sat.schedules.layer_ablation import layer_ablation
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming
from sat.sparsity.pattern import Pattern


def main() -> int:
    """Print a line a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--array", default="8x8")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--size", type=int, default=8, help="lines and pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pattern", default="2:8")
    args = parser.parse_args()
    config = SatConfig().with_array(args.array)
    pattern = Pattern.parse(args.pattern)
    layer = Layer(
        batch=args.batch, lines=args.size, pixels=args.size, in_channels=args.channels,
        out_channels=args.channels, kernel=(3, 3), padding=(1, 1), ff=(pattern.n, pattern.m),
        bp=(pattern.n, pattern.m),
    )  # fmt: skip
    memory = MemoryTiming(read_latency=40, write_latency=40)
    whole: dict[str, int] = {}
    wrong = 0
    for found in layer_ablation(layer, config, memory):
        whole.setdefault(found.of, found.cycles)
        wrong += not found.right
        print(
            f"{found.idea:<24} {found.cycles:>9,} cycles counted, {found.predicted:>9,} predicted, "
            f"{found.different} different: {found.cycles / whole[found.of]:.3f} x {found.of}",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
