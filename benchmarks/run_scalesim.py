"""Run SCALE-Sim on products, in the Python that has it; called by `bench_scalesim.py`.

Reads a JSON object from standard input: array (rows, cols), buffer_kb of each of its three buffers,
products (name, rows, cols, depth each). Prints one: version, seconds of CPU after its import, peak
memory, and of each product its total cycles, stalls and utilisation.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from scalesim.scale_sim import scalesim

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {cols}
IfmapSramSzkB: {kb}
FilterSramSzkB: {kb}
OfmapSramSzkB: {kb}
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth: 64
Dataflow: os
MemoryBanks: 1
ReadRequestBuffer: 128
WriteRequestBuffer: 128
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 64
IfmapSRAMBankNum: 1
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 64
FilterSRAMBankNum: 1
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
SparseRep: ellpack_block
OptimizedMapping: false
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""
"""Output stationary, dense, and a memory that is as fast as the array asks (CALC)."""


def main() -> int:
    """Run what standard input asks for."""
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        # Its address traces are not wanted; its reports are read from where it puts them.
        os.chdir(folder)
        rows, cols = asked["array"]
        Path("run.cfg").write_text(CONFIG.format(rows=rows, cols=cols, kb=asked["buffer_kb"]))
        lines = [f"{name},{m},{n},{k},\n" for name, m, n, k in asked["products"]]
        Path("products.csv").write_text("Layer,M,N,K,\n" + "".join(lines))
        Path("layout.csv").write_text("Layer,\n")
        began = time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            run = scalesim(
                save_disk_space=True,
                verbose=False,
                config="run.cfg",
                topology="products.csv",
                layout="layout.csv",
                input_type_gemm=True,
            )
            run.run_scale(top_path=folder)
        seconds = time.process_time() - began
        (report,) = Path(folder).glob("*/COMPUTE_REPORT.csv")
        with report.open(newline="") as file:
            head, *found = [[cell.strip() for cell in row] for row in csv.reader(file)]
    made = [dict(zip(head, row, strict=False)) for row in found]
    print(
        json.dumps(
            {
                "version": importlib.metadata.version("scalesim"),
                "seconds": seconds,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "cycles": [int(float(row["Total Cycles"])) for row in made],
                "stalls": [int(float(row["Stall Cycles"])) for row in made],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
