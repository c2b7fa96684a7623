"""What `sat.offload` costs: programs inside it against plain PyTorch, beside bounds.

Each is timed in turn, plain, `precision="fp16"`, `"fp32"`, round after round, on the golden model;
ratios are of medians. With one thread the processor's time is taken, which others on the machine
disturb less; with more, the clock's. With more than one only programs are timed.

    python benchmarks/bench_offload.py [--threads 1 2] [--rounds 3] [--profile NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable

import torch

import sat

sys.path.insert(0, __file__.rpartition("/")[0] or ".")
from offload_programs import Step, programs, s4d_steps

WAYS = ("plain", "fp16", "fp32")


def inside(way: str) -> contextlib.AbstractContextManager[object]:
    """Return where a program runs: outside, or in an offload of that precision."""
    return contextlib.nullcontext() if way == "plain" else sat.offload("golden", precision=way)


def medians(step: Step, rounds: int, repeat: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the median seconds of a step, each way, the ways taken in turn."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            with inside(way):
                step()
                began = clock()
                for _ in range(repeat):
                    step()
                if number:  # the first round warms up
                    times[way].append((clock() - began) / repeat)
    return {way: statistics.median(all_times) for way, all_times in times.items()}


class Table:
    """Figures beside their bounds."""

    def __init__(self) -> None:
        self.over = 0

    def row(self, name: str, value: float, bound: float | None, unit: str) -> None:
        """Print a figure and whether it keeps its bound, if there is one."""
        good = bound is None or value <= bound
        self.over += not good
        word = "" if bound is None else "PASS" if good else "over"
        kept = "" if bound is None else f" (<= {bound:g})"
        print(f"  {word:<4}  {name}: {value:.4g} {unit}{kept}", flush=True)


def small(table: Table, rounds: int, clock: Callable[[], float]) -> None:
    """Time products that cost next to nothing, and stacks of them."""
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    one = medians(lambda: torch.mm(a, b), rounds, 1000, clock)
    for way, bound in (("fp16", 30), ("fp32", 50)):
        name = f"8x8x8, added to plain's {one['plain'] * 1e6:.1f} us, {way}"
        table.row(name, (one[way] - one["plain"]) * 1e6, bound, "us")
    stacks = [torch.randn(64, n, n) for n in (8, 8, 64, 64)]
    eight = medians(lambda: torch.bmm(*stacks[:2]), rounds, 100, clock)
    for way in ("fp16", "fp32"):
        table.row(f"64 * 8x8x8, {way}", eight[way] * 1e6, 200, "us")
    large = medians(lambda: torch.bmm(*stacks[2:]), rounds, 20, clock)
    for way, bound in (("fp16", 4), ("fp32", 25)):
        table.row(f"64 * 64x64x64, {way}", large[way] / large["plain"], bound, "x plain")
    tiny = torch.randn(4096, 4, 4)
    many = medians(lambda: torch.bmm(tiny, tiny), rounds, 5, clock)
    table.row("4096 * 4x4x4, fp16", many["fp16"] / many["plain"], 50, "x plain")


def s4d(table: Table, rounds: int, clock: Callable[[], float]) -> None:
    """Time what `sat run s4d` consists of: as many steps of each of its models."""
    plain = precise = 0.0
    for name, step in s4d_steps().items():
        found = medians(step, rounds, 1, clock)
        plain, precise = plain + found["plain"], precise + found["fp32"]
        print(f"S4D's demo, a step of {name!r}: plain {found['plain'] * 1e3:.3g} ms")
        table.row("fp32", found["fp32"] / found["plain"], None, "x plain")
    table.row("S4D's demo, a step of each model, fp32", precise / plain, 1.5, "x plain")


BOUNDS: dict[str, dict[int, tuple[float | None, str, float | None]]] = {
    "ResNet-18": {1: (1.4, "fp16", 4), 2: (1.8, "fp16", None)},
    "GPT": {1: (1.5, "plain", 6)},
    "EfficientNet-B0": {1: (4, "plain", None)},
    "depthwise": {1: (10, "plain", None)},
    "LSTM": {1: (5, "plain", None)},
}
"""Of programs, by the first word of their name, and of threads: of fp16 over plain; what fp32 is
held against, and the bound of that."""


def all_programs(
    table: Table, steps: dict[str, Step], rounds: int, threads: int, clock: Callable[[], float]
) -> None:
    """Time the programs."""
    for name, step in steps.items():
        word = name.split()[0]
        found = medians(step, rounds, 20 if word == "depthwise" else 1, clock)
        print(f"{name}: plain {found['plain'] * 1e3:.3g} ms")
        least, against, precise = BOUNDS[word].get(threads, (None, "plain", None))
        table.row("fp16", found["fp16"] / found["plain"], least, "x plain")
        table.row("fp32", found["fp32"] / found[against], precise, f"x {against}")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="times each program is taken")
    parser.add_argument("--profile", metavar="NAME", help="profile the program of this name, fp16")
    args = parser.parse_args()
    steps = programs()
    if args.profile is not None:
        torch.set_num_threads(1)
        step = next(step for name, step in steps.items() if args.profile in name)
        profiler = cProfile.Profile(time.process_time)
        with sat.offload("golden") as report:
            step()
            profiler.runcall(step)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        print(report.table(rows=12))
        return 0
    table = Table()
    for threads in args.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        what = "the processor's time" if threads == 1 else "the clock's time"
        print(f"offload to golden against plain PyTorch, threads: {threads}, {what}")
        if threads == 1:
            small(table, args.rounds, clock)
        all_programs(table, steps, args.rounds, threads, clock)
        if threads == 1:
            s4d(table, args.rounds, clock)
    print(f"{table.over} over their bounds" if table.over else "all keep their bounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
