"""The cocotb bench of the device: products and training steps over paused and failing AXI ports."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.compile.step import STAGES, Sgd, compile_step
from sat.dataflow.host import write_product
from sat.dataflow.mapping import legal_mappings
from sat.dataflow.products import Product, StartShape
from sat.devices.stages import write_step
from sat.rtl.config import AxiConfig, SatConfig
from sat.rtl.device import Device
from sat.rtl.isa import Status
from sat.rtl.verilog import emit
from sat.sim.benches import runner
from sat.sim.benches.runner import run_bench
from sat.sim.golden.device import GoldenDevice
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

sys.path.insert(0, str(Path(__file__).parent))
from layers import random_tensors
from products import CANARY, make_case

CONFIGS = {
    "one port": SatConfig(rows=4, cols=4, a_words=64, b_words=64, sum_words=128),
    "two ports": SatConfig(
        rows=2, cols=4, a_words=64, b_words=64, sum_words=128, update_lanes=4,
        axi=AxiConfig(data_bits=128, ports=2, outstanding=4),
    ),
}  # fmt: skip
PRODUCTS = [
    (Product(11, 9, 24), "os"),
    (Product(13, 10, 30, 2, 8, StartShape.MATRIX), "os"),
    (Product(9, 7, 40, 2, 4, StartShape.ROW), "ws"),
    (Product(8, 12, 17), "ws"),
]
LAYERS = [
    Layer(
        lines=4, pixels=3, in_channels=8, out_channels=8, kernel=(3, 3), padding=(1, 1),
        ff=(2, 4), bp=(2, 4), bias=True, relu=True, masked=True,
    ),
    Layer(batch=3, in_channels=16, out_channels=8, ff=(2, 8), bp=(2, 8), bias=True),
]  # fmt: skip
SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4, loss_scale=8)


def product_image(number: int, config: SatConfig) -> tuple[np.ndarray, int, int]:
    """Return memory with a product in it, the program's address and its length."""
    product, dataflow = PRODUCTS[number]
    case = make_case(product, number, 0.05)
    compiled = compile_product(product, config, legal_mappings(product, config, dataflow)[0])
    where = compiled.memory
    image = np.full(where.end + 256, CANARY, np.uint8)
    write_product(image, where, compiled.program, case.a, case.values, case.indices, case.start)
    return image, where.program.address, len(compiled.program)


def layer_image(number: int, config: SatConfig) -> tuple[np.ndarray, int, int]:
    """Return memory with a whole training step in it, the program's address and its length."""
    step = compile_step(LAYERS[number], config, MemoryTiming(), STAGES, SGD)
    image = np.full(step.end + 256, CANARY, np.uint8)
    write_step(image, step, random_tensors(number, LAYERS[number]))
    return image, step.address, len(step.program)


@pytest.mark.parametrize("name", CONFIGS)
def test_device_on_axi_ports(name, tmp_path):
    config = CONFIGS[name]
    made = {f"product {n}": product_image(n, config) for n in range(len(PRODUCTS))}
    made |= {f"layer {n}": layer_image(n, config) for n in range(len(LAYERS))}
    scenarios = {}
    for name, (image, address, length) in made.items():
        expected = image.copy()
        assert GoldenDevice(config, expected).run(address, length).status is Status.DONE
        scenarios[f"{name}_image"], scenarios[f"{name}_expected"] = image, expected
        scenarios[f"{name}_program"] = np.array([address, length])
    file = tmp_path / "scenarios.npz"
    np.savez(file, names=np.array(list(made)), **scenarios)
    tests, failures = run_bench(
        emit(Device(config)), "sat.sim.benches.device", tmp_path, {"SAT_SCENARIOS": str(file)}
    )
    assert (tests, failures) == (9, 0)


def test_a_program_linked_to_another_environments_cocotb_is_not_taken(tmp_path, monkeypatch):
    keys = []

    def cached(kind, key, suffix, build):
        keys.append(key)
        raise InterruptedError

    monkeypatch.setattr(runner, "cached", cached)
    for folder in (runner.libs_dir, tmp_path, tmp_path):
        monkeypatch.setattr(runner, "libs_dir", folder)
        with pytest.raises(InterruptedError):
            run_bench("module top; endmodule", "nothing", tmp_path, {})
    assert keys[0] != keys[1] == keys[2]
