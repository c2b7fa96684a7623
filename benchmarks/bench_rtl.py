"""Speed of the simulated device: time to build, simulated cycles a second, bits compared.

Prints a JSON line for each array, memory side and engine; ``--arrays``, ``--memories`` (ports) and
``--engines`` name them, ``--fresh`` builds anew. Seconds are the wall's; CPU seconds, of this
process and of the compilers, are what compares on a machine that does other work.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np

from sat.dataflow.host import read_result, write_product
from sat.dataflow.products import Product
from sat.dataflow.search import best_mapping
from sat.rtl.config import SatConfig
from sat.rtl.isa import Status
from sat.sim.device_rtl import DeviceRtl
from sat.sim.golden import sore, stce
from sat.sim.memory import MEMORIES, MemoryTiming

SIZES = {"4x4": 128, "8x8": 256, "16x16": 256, "32x32": 128, "64x64": 128}
ENGINES = ("verilator", "simd")
HOURS = ("verilator", "64x64")  # to build: only if it is asked for by name


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(array: str, size: int, memory: str, engine: str) -> dict[str, object]:
    """Return the figures of one array with a memory's ports, dense and 2:8 products of size³."""
    config = MEMORIES[memory].device(SatConfig().with_array(array))
    began, spent = time.perf_counter(), cpu_seconds()
    device = DeviceRtl(config, memory_bytes=1 << 24, engine=engine)
    row: dict[str, object] = {
        "array": array,
        "data_ports": f"{config.axi.ports} x {config.axi.data_bits}",
        "engine": engine,
        "build_seconds": round(time.perf_counter() - began, 1),
        "build_cpu_seconds": round(cpu_seconds() - spent, 1),
        "product": f"{size}x{size}x{size}",
    }
    rng = np.random.default_rng(0)
    a = rng.standard_normal((size, size)).astype(np.float16)
    b = rng.standard_normal((size, size)).astype(np.float16)
    for name, n, m in (("dense", 1, 1), ("2:8", 2, 8)):
        if m == 1:
            values, indices, right = b, None, b
        else:
            values, indices = sore.select(b, n, m, axis=0)
            right = stce.NMOperand(values, indices, (n, m), size)
        for dataflow in ("os", "ws"):
            product = Product(size, size, size, n, m)
            compiled, predicted = best_mapping(product, config, MemoryTiming(), dataflow)
            write_product(
                device.memory, compiled.memory, compiled.program, a, values, indices, None
            )
            began, spent = time.perf_counter(), time.process_time()
            outcome = device.run(compiled.memory.program.address, len(compiled.program))
            seconds, spent = time.perf_counter() - began, time.process_time() - spent
            assert outcome.status is Status.DONE, outcome
            got = read_result(device.memory, compiled.memory)
            row[f"{name} {dataflow}"] = {
                "bit_exact": bool(np.array_equal(got, stce.matmul(a, right))),
                "cycles": outcome.cycles,
                "predicted_cycles": predicted,
                "utilisation": round(
                    product.macs / (outcome.cycles * config.rows * config.cols), 4
                ),
                "sim_cycles_per_second": round(outcome.cycles / seconds),
                "sim_cycles_per_cpu_second": round(outcome.cycles / spent),
            }
    device.close()
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", nargs="*", default=["8x8"], choices=SIZES)
    parser.add_argument("--memories", nargs="*", default=["narrow"], choices=MEMORIES)
    parser.add_argument("--engines", nargs="*", choices=ENGINES)
    parser.add_argument("--fresh", action="store_true", help="build in an empty cache")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.fresh:
            os.environ["SAT_CACHE"] = folder
        for array in arguments.arrays:
            for memory in arguments.memories:
                for engine in arguments.engines or ENGINES:
                    if arguments.engines or (engine, array) != HOURS:
                        row = measure(array, SIZES[array], memory, engine)
                        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
