"""Speed of the golden model's matrix products, as ratios taken in one run.

Prints two JSON lines:

* ``dense_vs_torch``: time of single-thread ``torch.mm`` in float32 divided by our dense product;
* ``sparse_vs_dense``: time of our dense product divided by our 2:8 product.

Ours are whole calls from float16 operands, conversions included; torch starts from float32. The
three are timed in turn, round after round, and the best time of each counts, so that a change of
the machine's speed during the run meets all of them.

    python benchmarks/bench_golden.py [--size 1024] [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from sat.sim.golden import sore, stce

PATTERN = (2, 8)


def best_seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the shortest time of each call in seconds, the calls made in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - before)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="rows, cols and depth")
    parser.add_argument("--rounds", type=int, default=15, help="times each product is taken")
    arguments = parser.parse_args()
    size, rounds = arguments.size, arguments.rounds
    if size < 1 or rounds < 1:
        parser.error(f"--size {size} --rounds {rounds}: both must be at least 1")
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(np.float16) for _ in range(2))
    compact = stce.NMOperand(*sore.select(b, *PATTERN), PATTERN, size)
    a32, b32 = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    calls = {
        "torch": lambda: torch.mm(a32, b32),
        "dense": lambda: stce.matmul(a, b),
        "sparse": lambda: stce.matmul(a, compact),
    }
    for call in calls.values():
        call()
    best = best_seconds(calls, rounds)
    shape = {"rows": size, "cols": size, "depth": size, "rounds": rounds}
    for name, slow, fast in (
        ("dense_vs_torch", "torch", "dense"),
        ("sparse_vs_dense", "dense", "sparse"),
    ):
        line = {
            "name": name,
            "ratio": round(best[slow] / best[fast], 3),
            f"{slow}_seconds": round(best[slow], 6),
            f"{fast}_seconds": round(best[fast], 6),
            **shape,
        }
        if name == "sparse_vs_dense":
            line["pattern"] = "{}:{}".format(*PATTERN)
        print(json.dumps(line))


if __name__ == "__main__":
    main()
