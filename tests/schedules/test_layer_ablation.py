"""A layer's step without each of the paper's ideas, on the RTL: golden's bits, predicted cycles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sat.dataflow.compile.step import compile_step
from sat.dataflow.cycles import predict
from sat.rtl.config import SatConfig
from sat.rtl.isa import ENGINES, Opcode
from sat.schedules.layer_ablation import (
    WHOLE,
    WHOLE_PRODUCTS,
    in_turn,
    layer_ablation,
    one_sum,
    stage_products,
)
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

CONFIG, MEMORY = SatConfig(), MemoryTiming(read_latency=40, write_latency=40)
LAYER = Layer(
    batch=2, lines=6, pixels=6, in_channels=16, out_channels=16, kernel=(3, 3), padding=(1, 1),
    ff=(2, 8), bp=(2, 8),
)  # fmt: skip


@pytest.mark.xdist_group("8x8")
def test_every_idea_is_worth_cycles():
    found = {entry.idea: entry for entry in layer_ablation(LAYER, CONFIG, MEMORY)}
    assert all(entry.right for entry in found.values()), found
    loss = {name: entry.cycles / found[entry.of].cycles for name, entry in found.items()}
    assert loss.pop(WHOLE) == loss.pop(WHOLE_PRODUCTS) == 1
    assert set(loss) >= {"output stationary only", "nothing ahead", "no overlap",
                         "no pre-generation", "no interleave"}  # fmt: skip
    # The choice is no worse than one dataflow; every other idea gains.
    assert all(loss[name] >= 1 for name in loss if "only" in name)
    assert min(loss[name] for name in loss if "only" not in name) > 1
    assert loss["no overlap"] > 1.3 and loss["no pre-generation"] > 1.2


def test_one_engine_at_a_time():
    step = compile_step(LAYER, CONFIG, MEMORY, ("ff",))
    program = in_turn(step.program)
    assert [i for i in program if i.opcode is not Opcode.FENCE] == list(step.program)
    engines = {opcode: name for name, opcodes in ENGINES.items() for opcode in opcodes}
    for before, after in zip(program, program[1:], strict=False):
        names = engines.get(before.opcode), engines.get(after.opcode)
        assert None in names or names[0] == names[1]
    times = predict(program, CONFIG, MEMORY, step.address).times
    at = [n for n, i in enumerate(program) if i.opcode in engines]
    for before, after in zip(at, at[1:], strict=False):
        if engines[program[before].opcode] != engines[program[after].opcode]:
            assert times[before].max() < times[after][0]


def test_products_are_those_of_the_stages():
    products = stage_products(LAYER)
    assert [product.macs for product in products] == [
        LAYER.dense_macs // 4, LAYER.dense_macs // 4, LAYER.dense_macs
    ]  # fmt: skip
    for product in products:
        tiles = one_sum(product, CONFIG)
        assert (tiles.rows, tiles.cols, tiles.depth) == (8, 8, product.depth)
        assert tiles.macs >= product.macs
    with pytest.raises(ValueError, match="groups=1 and stride"):
        stage_products(replace(LAYER, stride=(2, 2)))
