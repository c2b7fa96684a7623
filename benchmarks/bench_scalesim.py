"""SCALE-Sim beside SAT's cycle model: a network's forward layers, dense, output stationary.

For each layer's FF, one example: SCALE-Sim's cycles and ours, and the CPU seconds of each in this
run. Ours hold the choice of a mapping and the exact cost of the whole program, from fetch to the
last store. SCALE-Sim 3.0.0 does not run on the numpy of this project, so it has an environment of
its own:

    python -m venv scalesim && scalesim/bin/pip install scalesim==3.0.0 'numpy<2.3'
    python benchmarks/bench_scalesim.py --scalesim scalesim/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from sat.dataflow.cost import product_cost, stage_cost
from sat.dataflow.mapping import ceil_div
from sat.dataflow.products import Product
from sat.networks.sources import load
from sat.schedules.machine import machine
from sat.sim.layer import Layer

RUNNER = Path(__file__).with_name("run_scalesim.py")


def folds(product: Product, rows: int, cols: int) -> int:
    """Return SCALE-Sim's cycles by hand: tile after tile, each with its skew, none overlapping."""
    tiles = ceil_div(product.rows, rows) * ceil_div(product.cols, cols)
    return tiles * (product.depth + rows + cols - 2) - 1


def main() -> int:
    """Run both, and print a line a layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="resnet18")
    parser.add_argument("--scalesim", required=True, help="a Python that imports scalesim")
    parser.add_argument("--array", default="32x32")
    parser.add_argument("--memory", default="ddr4x4")
    parser.add_argument("--layers", type=int, help="only the first so many")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = machine(args.array, args.memory)
    config, timing = device.config, device.timing
    operations = [op for op in load(args.network, batch=1).operations if "ff" in op.products]
    operations = operations[: args.layers]

    # Libraries are built, and what Python imports on first use is there.
    stage_cost("ff", Layer(batch=3, in_channels=16, out_channels=16), config, timing)
    began = time.process_time()
    ours = []
    for operation in operations:
        if operation.layer is not None:
            ours.append(stage_cost("ff", operation.layer, config, timing, dataflow="os").cycles)
        else:
            each = [
                product_cost(p, config, timing, dataflow="os") for p in operation.products["ff"]
            ]
            ours.append(sum(cost.cycles for cost in each))
    own_seconds = time.process_time() - began

    products = [(op.name, p) for op in operations for p in op.products["ff"]]
    asked = {
        "array": [config.rows, config.cols],
        "buffer_kb": config.a_words * config.word_bytes * config.rows // 1024,
        "products": [(name, p.rows, p.cols, p.depth) for name, p in products],
    }
    done = subprocess.run(
        [args.scalesim, str(RUNNER)], input=json.dumps(asked), capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{args.scalesim}: {done.stderr[-2000:]}")
    theirs = json.loads(done.stdout)

    rows = []
    for number, operation in enumerate(operations):
        own = [n for n, (name, _) in enumerate(products) if name == operation.name]
        (product,) = operation.products["ff"][:1]
        macs = sum(p.macs for p in operation.products["ff"])
        counts = [products[n][1].count for n in own]
        cycles = sum(theirs["cycles"][n] * k for n, k in zip(own, counts, strict=True))
        by_hand = sum(folds(products[n][1], config.rows, config.cols) for n in own)
        rows.append(
            {
                "layer": operation.name,
                "product": [product.rows, product.cols, product.depth],
                "least": ceil_div(macs, device.peak),
                "scalesim": cycles,
                "folds": by_hand,
                "ours": ours[number],
            }
        )
    seconds = {"scalesim": theirs["seconds"], "ours": own_seconds}
    summary = {
        "network": args.network,
        "array": args.array,
        "memory": args.memory,
        "scalesim_version": theirs["version"],
        "scalesim_peak_mb": theirs["peak_mb"],
        "cpu_seconds": seconds,
        "ratio": seconds["scalesim"] / seconds["ours"],
        "rows": rows,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    print("layer, rows x cols x depth: MACs at one a multiplier; SCALE-Sim (by hand); ours; ratio")
    for row in rows:
        size = "x".join(map(str, row["product"]))
        print(
            f"{row['layer']:<24} {size:<16} {row['least']:>9,} {row['scalesim']:>9,} "
            f"({row['folds']:,}) {row['ours']:>9,} {row['scalesim'] / row['ours']:.3f}"
        )
    total = {name: sum(row[name] for row in rows) for name in ("least", "scalesim", "ours")}
    print(
        f"together: {total['least']:,}; SCALE-Sim {theirs['version']} {total['scalesim']:,}, "
        f"{theirs['seconds']:.1f} CPU s, {theirs['peak_mb']:,} MB; ours {total['ours']:,}, "
        f"{own_seconds:.3f} CPU s: {summary['ratio']:.0f} x less"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
