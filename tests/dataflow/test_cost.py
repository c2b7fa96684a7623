"""What stages and products cost: what their programs take, under plans that files hold."""

from __future__ import annotations

import json

import pytest

from sat.dataflow.compile.parts import StagePlan
from sat.dataflow.compile.step import STAGES, compile_step
from sat.dataflow.cost import product_cost, stage_cost
from sat.dataflow.cycles import predict
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.products import Product
from sat.dataflow.search import best_mapping
from sat.rtl.config import SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

CONFIG, MEMORY = SatConfig(), MemoryTiming(read_latency=40, cycles_per_beat=2)
LAYERS = [
    Layer(batch=2, lines=9, pixels=9, in_channels=16, out_channels=32, kernel=(3, 3),
          stride=(2, 2), ff=(2, 8), bp=(2, 8)),
    Layer(batch=1, lines=7, pixels=6, in_channels=24, out_channels=24, groups=24, kernel=(3, 3)),
    Layer(batch=33, in_channels=40, out_channels=16, bias=True, relu=True, masked=True),
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layer", LAYERS, ids=["strided", "depthwise", "linear"])
def test_a_stage_costs_what_its_program_takes(layer, stage):
    cost = stage_cost(stage, layer, CONFIG, MEMORY)
    step = compile_step(layer, CONFIG, MEMORY, (stage,), plans={stage: cost.plan})
    found = predict(step.program, CONFIG, MEMORY, step.address)
    beat = CONFIG.axi.beat_bytes
    assert cost.cycles == found.cycles and cost.compute_cycles == found.compute_cycles
    assert (cost.bytes_read, cost.bytes_written) == (
        found.beats_read * beat,
        found.beats_written * beat,
    )
    assert cost.instructions == len(step.program)
    assert cost.needs == {
        "array": found.compute_cycles,
        "read": 2 * found.beats_read,
        "write": 2 * found.beats_written,
    }
    assert cost.needs[cost.bound] == max(cost.needs.values()) <= cost.cycles
    # A plan goes through a file, and a program follows it.
    plan = StagePlan.from_json(json.loads(json.dumps(cost.plan.to_json())))
    assert plan == cost.plan
    assert stage_cost(stage, layer, CONFIG, MEMORY, plan=plan) == cost
    slow = StagePlan(plan.mappings, plan.order._replace(ahead=0, behind=0))
    assert stage_cost(stage, layer, CONFIG, MEMORY, plan=slow).cycles >= cost.cycles


def test_a_dataflow_may_be_forced():
    layer = LAYERS[2]
    both = {
        dataflow: stage_cost("ff", layer, CONFIG, MEMORY, dataflow=dataflow)
        for dataflow in ("os", "ws", "auto")
    }
    assert {name: both[name].plan.dataflow for name in ("os", "ws")} == {"os": "os", "ws": "ws"}
    assert both["auto"].cycles <= min(both["os"].cycles, both["ws"].cycles)
    assert stage_cost("update", layer, CONFIG, MEMORY).plan.dataflow == ""


def test_a_product_costs_what_its_program_takes():
    product = Product(70, 30, 64, 2, 8, count=3)
    cost = product_cost(product, CONFIG, MEMORY)
    compiled, cycles = best_mapping(product, CONFIG, MEMORY)
    assert (cost.cycles, cost.mapping) == (cycles, compiled.mapping)
    assert cost.instructions == len(compiled.program)


def test_what_cannot_be_is_named():
    layer = LAYERS[2]
    with pytest.raises(DoesNotFit, match="no mapping has dataflow='ws'"):
        stage_cost("wu", layer, CONFIG, MEMORY, dataflow="ws")
    with pytest.raises(ValueError, match="dataflow='both': must be"):
        stage_cost("ff", layer, CONFIG, MEMORY, dataflow="both")
    with pytest.raises(ValueError, match="stage='fp': must be one of ff, bp, wu, update"):
        stage_cost("fp", layer, CONFIG, MEMORY)
    other = stage_cost("bp", LAYERS[0], CONFIG, MEMORY).plan
    with pytest.raises(ValueError, match="4 mappings for a stage of 1 different products"):
        stage_cost("ff", layer, CONFIG, MEMORY, plan=other)
    for broken in ({}, {"mappings": [{"kind": "is"}], "order": {}}, {"mappings": 3, "order": {}}):
        with pytest.raises(ValueError, match="is no plan of a stage"):
            StagePlan.from_json(broken)
