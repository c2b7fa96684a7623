"""Speed of the exact cycle model: instructions a second, beside what makes the instructions.

For stages of a convolution and products of a transformer: microseconds an instruction that it takes
to compile a program, its mapping searched, and to predict its cycles, running every instruction and
leaping over what repeats. Then what a first use costs: building
the model in an empty cache, in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from sat.dataflow.compile import compile_product
from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product
from sat.dataflow.program import Program
from sat.rtl.config import SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

MEMORY = MemoryTiming(read_latency=40, write_latency=20)
LAYER = Layer(
    batch=4, lines=28, pixels=28, in_channels=64, out_channels=64, kernel=(3, 3), padding=(1, 1),
    ff=(2, 8), bp=(2, 8), bias=True, relu=True, masked=True,
)  # fmt: skip
PRODUCTS = (Product(512, 768, 768, 2, 8), Product(512, 512, 64))
FIRST = "from sat.dataflow.cycles.model import _library; _library()"


def seconds(run: Callable[[], Any], times: int) -> float:
    """Return the CPU seconds of the fastest of several runs."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)


def cases(config: SatConfig) -> Iterator[tuple[str, Callable[[], tuple[Program, int]]]]:
    """Yield names, and what compiles a program and returns it with its address."""

    def stage(name: str) -> tuple[Program, int]:
        step = compile_step(LAYER, config, MEMORY, (name,))
        return step.program, step.address

    def product(product: Product, dataflow: str) -> tuple[Program, int]:
        mapping = legal_mappings(product, config, dataflow)[-1]
        return compile_product(product, config, mapping).program, 0

    for name in STAGES:
        yield f"conv 64x64 3x3 {name}", lambda name=name: stage(name)
    for p in PRODUCTS:
        for dataflow in ("os", "ws"):
            title = f"{p.rows}x{p.depth}x{p.cols} {p.n}:{p.m} {dataflow}"
            yield title, lambda p=p, dataflow=dataflow: product(p, dataflow)


def main() -> None:
    """Run the benchmark."""
    config = SatConfig()
    predict(*next(cases(config))[1]()[:1], config, MEMORY)  # builds the model, if it is not there
    print("                                              microseconds an instruction")
    print(
        "program              instructions      cycles  compile   plain   leaps  leapt "
        "instructions/s: plain, leaps"
    )
    for name, compile_it in cases(config):
        program, address = compile_it()
        count = len(program)
        made = seconds(compile_it, 2)
        plain, predicted = (
            seconds(
                lambda program=program, address=address, leaps=leaps: predict(
                    program, config, MEMORY, address, leaps=leaps
                ),
                5,
            )
            for leaps in (False, True)
        )
        found = predict(program, config, MEMORY, address)
        cycles, leapt = found.cycles, found.leapt / count
        micros = [1e6 * x / count for x in (made, plain, predicted)]
        print(
            f"{name:<20} {count:>12,} {cycles:>11,} {micros[0]:>8.2f} {micros[1]:>7.3f} "
            f"{micros[2]:>7.3f} {leapt:>6.0%} {count / plain:>12,.0f} {count / predicted:>12,.0f}",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as cache:
        for what in ("built", "kept"):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", FIRST], check=True, env={**os.environ, "SAT_CACHE": cache}
            )
            print(f"first use in a new process, model {what}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
