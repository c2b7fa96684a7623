"""The cocotb bench of the device: compiled products over paused and failing AXI ports."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sat.dataflow.compile import compile_product
from sat.dataflow.host import write_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.rtl.config import SatConfig
from sat.rtl.device import Device
from sat.rtl.isa import Status
from sat.rtl.verilog import emit
from sat.sim.benches.runner import run_bench
from sat.sim.golden.device import GoldenDevice

sys.path.insert(0, str(Path(__file__).parent))
from products import CANARY, make_case

CONFIG = SatConfig(rows=4, cols=4, a_words=64, b_words=64, sum_words=128)
PRODUCTS = [
    (Product(11, 9, 24), "os"),
    (Product(13, 10, 30, 2, 8, StartShape.MATRIX), "os"),
    (Product(9, 7, 40, 2, 4, StartShape.ROW), "ws"),
    (Product(8, 12, 17), "ws"),
]


def test_device_on_axi_ports(tmp_path):
    scenarios = {}
    for number, (product, dataflow) in enumerate(PRODUCTS):
        case = make_case(product, number, 0.05)
        compiled = compile_product(product, CONFIG, legal_mappings(product, CONFIG, dataflow)[0])
        where = compiled.memory
        image = np.full(where.end + 256, CANARY, np.uint8)
        write_product(image, where, compiled.program, case.a, case.values, case.indices, case.start)
        expected = image.copy()
        outcome = GoldenDevice(CONFIG, expected).run(where.program.address, len(compiled.program))
        assert outcome.status is Status.DONE
        name = f"s{number}"
        scenarios[f"{name}_image"], scenarios[f"{name}_expected"] = image, expected
        scenarios[f"{name}_program"] = np.array([where.program.address, len(compiled.program)])
    names = np.array([f"s{n}" for n in range(len(PRODUCTS))])
    file = tmp_path / "scenarios.npz"
    np.savez(file, names=names, **scenarios)
    tests, failures = run_bench(
        emit(Device(CONFIG)), "sat.sim.benches.device", tmp_path, {"SAT_SCENARIOS": str(file)}
    )
    assert (tests, failures) == (9, 0)
