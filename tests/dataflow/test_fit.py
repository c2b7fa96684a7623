"""What a device refuses, what it says would help, and semaphores that count no higher than 255."""

from __future__ import annotations

import numpy as np
import pytest

from sat.dataflow.compile import compile_product
from sat.dataflow.compile.step import STAGES, Sgd, check_layer, compile_step
from sat.dataflow.cycles import predict
from sat.dataflow.fit import DoesNotFit, with_fixes
from sat.dataflow.mapping import legal_mappings, slot_count
from sat.dataflow.products import Product, StartShape
from sat.dataflow.program import Program, ProgramError
from sat.devices.stages import write_step
from sat.rtl.config import SEMAPHORE_MAX, AxiConfig, FpTiming, SatConfig
from sat.rtl.isa import Instruction, Opcode, Status
from sat.sim.golden import layer as golden
from sat.sim.golden.device import GoldenDevice
from sat.sim.golden.update import narrow
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

SMALL = SatConfig(
    rows=2, cols=2, max_m=2, max_n=2, a_words=16, b_words=16, sum_words=16, update_lanes=1,
    update_words=16, copy_words=16, tile_weights=256, axi=AxiConfig(data_bits=32),
)  # fmt: skip
DEEP = {"a_words": 4096, "b_words": 4096, "sum_words": 4096}


def compiled(layer: Layer, config: SatConfig, stages=STAGES):
    return compile_step(layer, config, MemoryTiming(), stages, Sgd(momentum=0.9))


@pytest.mark.parametrize(
    ("array", "channels"),
    [(f"{n}x{n}", 128) for n in (9, 11, 13, 15, 17, 31, 33, 63)]
    + [("9x9", 64), ("15x15", 64), ("7x3", 96), ("1x1", 40), ("1x64", 64), ("64x1", 72)],
)
def test_no_array_refuses_a_gradient(array, channels):
    layer = Layer(in_channels=channels, out_channels=channels, batch=8)
    assert len(compiled(layer, SatConfig().with_array(array), ("wu",)).program) > 1


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 7), (7, 7)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_smallest_device_trains_every_layer(kernel, depthwise):
    """One row, one column, the least of every buffer: all stages fit."""
    for data_bits, max_m in ((32, 2), (256, 16)):
        config = SatConfig(
            rows=1, cols=1, max_m=max_m, max_n=1, interleave=1, fp=FpTiming(adder_stages=1),
            a_words=16, b_words=16, sum_words=16, update_lanes=1, update_words=64 * max_m // 8,
            copy_words=64, tile_weights=256, axi=AxiConfig(data_bits=data_bits),
        )  # fmt: skip
        channels = 10 if depthwise or kernel == (1, 1) else 3
        layer = Layer(
            lines=3, pixels=4, in_channels=channels, out_channels=channels, kernel=kernel,
            padding=(3, 3), groups=channels if depthwise else 1,
        )  # fmt: skip
        step = compiled(layer, config, ("wu", "update"))
        step.program.validate(config, step.address)


REFUSED = {
    "pattern": (Layer(in_channels=32, out_channels=32, ff=(2, 16)), SatConfig()),
    "pattern on narrow words": (Layer(in_channels=32, out_channels=32, bp=(3, 16)), SMALL),
    "groups": (Layer(in_channels=24, out_channels=48, groups=6), SatConfig()),
    "groups on 64 columns": (
        Layer(in_channels=8, out_channels=8, groups=4),
        SatConfig(rows=4, cols=64),
    ),
    "groups with a mask": (
        Layer(in_channels=32, out_channels=48, groups=2, relu=True, masked=True),
        SatConfig(rows=4, cols=5),
    ),
    "depthwise with a mask": (
        Layer(in_channels=20, out_channels=20, groups=20, relu=True),
        SatConfig(rows=4, cols=6),
    ),
    "update banks": (Layer(in_channels=16, out_channels=16, ff=(2, 8), bp=(2, 8)),
                     SatConfig(rows=2, cols=2, update_words=16, copy_words=16, update_lanes=1,
                               axi=AxiConfig(data_bits=32))),
    "update tile": (Layer(in_channels=64, out_channels=64, ff=(3, 16), bp=(5, 16)),
                    SatConfig(max_m=16, tile_weights=256)),
    "addresses": (Layer(in_channels=64, out_channels=64, lines=20, pixels=20),
                  SatConfig(axi=AxiConfig(address_bits=16))),
    "several at once": (
        Layer(in_channels=64, out_channels=64, lines=9, pixels=9, ff=(3, 16), bp=(5, 16)),
        SatConfig(rows=3, cols=7, tile_weights=256, update_words=16, copy_words=16,
                  axi=AxiConfig(address_bits=17)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_named_helps(name):
    """The fix is needed, each part of it is, and with it the layer compiles."""
    layer, config = REFUSED[name]
    with pytest.raises(DoesNotFit) as refused:
        compiled(layer, config)
    with pytest.raises(DoesNotFit):
        check_layer(layer, config)
    fixes = refused.value.fixes
    assert fixes
    for field, value in fixes.items():
        assert f"{field}={value}" in str(refused.value)
    helped = with_fixes(config, fixes)
    check_layer(layer, helped)
    step = compiled(layer, helped)
    step.program.validate(helped, step.address, (0, 1 << helped.axi.address_bits))
    for left_out in fixes:
        with pytest.raises(ValueError):
            compiled(layer, with_fixes(config, {k: v for k, v in fixes.items() if k != left_out}))


def test_what_no_device_runs_says_so():
    layer = Layer(in_channels=6, out_channels=9, groups=3)
    with pytest.raises(DoesNotFit, match="one by one") as refused:
        compiled(layer, SatConfig())
    assert not refused.value.fixes


def test_weights_that_no_row_can_hold():
    config = SatConfig(rows=2, cols=3, max_n=2)
    product = Product(8, 8, 16)
    with pytest.raises(DoesNotFit, match="max_n=4.*dataflow='os'") as refused:
        legal_mappings(product, config, "ws")
    assert legal_mappings(product, with_fixes(config, refused.value.fixes), "ws")
    assert legal_mappings(product, config)


@pytest.mark.parametrize(
    ("change", "size", "limit"),
    [
        ({"batch": 65536}, 65536, 65535),
        ({"lines": 4096}, 4096, 4095),
        ({"pixels": 4096}, 4096, 4095),
        ({"lines": 600, "stride": (256, 1)}, 256, 255),
        ({"lines": 300, "kernel": (2, 1), "dilation": (128, 1)}, 128, 127),
        ({"pixels": 300, "kernel": (1, 256)}, 256, 255),
        ({"in_channels": 32768}, 32768, 32760),
        ({"out_channels": 40000}, 40000, 32760),
    ],
)
def test_sizes_past_their_field(change, size, limit):
    """One more is refused with the size and the limit; the limit itself compiles."""
    base = {"in_channels": 8, "out_channels": 8}
    layer, config = Layer(**base | change), SatConfig(a_words=32768)
    with pytest.raises(DoesNotFit, match=rf"{size} in Layer.* {limit}"):
        check_layer(layer, config)
    with pytest.raises(DoesNotFit, match=rf"{size} in Layer.* {limit}"):
        compiled(layer, config)

    def lowered(value):
        if isinstance(value, tuple):
            return tuple(limit if v == size else v for v in value)
        return limit if value == size else value

    step = compiled(Layer(**base | {k: lowered(v) for k, v in change.items()}), config)
    assert len(step.program) > 4


def test_a_layer_past_the_addresses():
    layer = Layer(in_channels=64, out_channels=64, lines=40, pixels=40)
    with pytest.raises(DoesNotFit, match="2\\*\\*18") as refused:
        compiled(layer, SatConfig(axi=AxiConfig(address_bits=18)))
    (bits,) = refused.value.fixes.values()
    assert compiled(layer, SatConfig(axi=AxiConfig(address_bits=bits))).end <= 1 << bits
    assert compiled(layer, SatConfig()).end > 1 << bits - 1


def test_chunks_of_taps_that_begin_inside_a_beat():
    """BP of the second kernel line: its values begin in the middle of a beat, chunks of it do."""
    config = SatConfig(
        rows=4, cols=4, a_words=16, interleave=1, fp=FpTiming(adder_stages=1)
    )  # fmt: skip
    layer = Layer(
        lines=4, pixels=5, in_channels=8, out_channels=40, kernel=(2, 3), stride=(2, 1),
        padding=(0, 1), ff=(4, 8), bp=(4, 8),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {
        "dy": rng.standard_normal((1, *layer.out_size, 40)).astype(np.float16),
        "w": rng.standard_normal((40, 2, 3, 8)).astype(np.float32),
    }
    step = compiled(layer, config, ("bp",))
    memory = np.zeros(step.end, np.uint8)
    device = write_step(memory, step, tensors)
    assert GoldenDevice(config, memory).run(step.address, len(step.program)).status is Status.DONE
    want = narrow(golden.backward(layer, tensors["dy"], narrow(tensors["w"])))
    assert np.array_equal(device.read("dx"), want)


# Semaphores.


@pytest.mark.parametrize("dataflow", ["os", "ws"])
@pytest.mark.parametrize(
    "product",
    [
        Product(1100, 3, 8, 2, 8),
        Product(3, 1100, 8),
        Product(600, 3, 8, 1, 4, StartShape.MATRIX),
        Product(3, 600, 16, 2, 4, StartShape.ROW),
        Product(2, 2, 4000),
    ],
)
def test_no_semaphore_overflows_in_deep_buffers(product, dataflow):
    """Thousands of slots: the validator allows for every timing, the cycle model for its own."""
    config = SatConfig(rows=2, cols=2, interleave=1, fp=FpTiming(adder_stages=1), **DEEP)
    for mapping in legal_mappings(product, config, dataflow)[::5]:
        made = compile_product(product, config, mapping)
        made.program.validate(config, made.memory.program.address)
        for latency in (1, 200):
            predict(made.program, config, MemoryTiming(read_latency=latency))


@pytest.mark.parametrize("stage", STAGES)
def test_no_semaphore_overflows_in_deep_buffers_of_layers(stage):
    config = SatConfig(
        rows=2, cols=2, interleave=1, fp=FpTiming(adder_stages=1), update_words=8192,
        copy_words=8192, tile_weights=256, **DEEP,
    )  # fmt: skip
    layers = [
        Layer(lines=40, pixels=20, in_channels=8, out_channels=16, ff=(2, 8), bp=(2, 8)),
        Layer(lines=3, pixels=3, in_channels=48, out_channels=48, relu=True, masked=True),
    ]
    if stage == "update":
        layers = [Layer(in_channels=256, out_channels=320)]
    for layer in layers:
        step = compiled(layer, config, (stage,))
        step.program.validate(config, step.address)
        predict(step.program, config, MemoryTiming(), step.address)


def raising(count: int, waits: int) -> Program:
    """Return ``count`` LOADs that raise semaphore 0, and UPDATEs that may wait for some.

    The UPDATEs follow the LOADs, and no LOAD waits for them: how many have come before the last
    LOAD is a matter of time.
    """
    load = Instruction(Opcode.LOAD, {"rows": 1, "row_bytes": 16, "groups": 1}, signal=1)
    update = Instruction(Opcode.RATES, {}, wait=1)
    made = [load] * (count - waits)
    for _ in range(waits):
        made += [load, update]
    return Program([*made, Instruction(Opcode.END, {})])


def test_validator_and_cycle_model_at_the_edge():
    config = SatConfig()
    assert slot_count(32768, 1) == SEMAPHORE_MAX
    raising(SEMAPHORE_MAX, 0).validate(config)
    predict(raising(SEMAPHORE_MAX, 0), config, MemoryTiming())
    with pytest.raises(ProgramError, match="semaphore 0 may rise above 255") as refused:
        raising(SEMAPHORE_MAX + 1, 0).validate(config)
    assert (refused.value.status, refused.value.pc) == (Status.SEMAPHORE, SEMAPHORE_MAX)
    with pytest.raises(ProgramError, match="semaphore 0 above 255") as refused:
        predict(raising(SEMAPHORE_MAX + 1, 0), config, MemoryTiming())
    assert (refused.value.status, refused.value.pc) == (Status.SEMAPHORE, SEMAPHORE_MAX)
    # RATES are quick: with this memory each has run before the next LOAD ends. Another device
    # may hold up to a queue of them back, so the validator wants as many fewer.
    quick = raising(SEMAPHORE_MAX + 40, 60)
    predict(quick, config, MemoryTiming())
    raising(SEMAPHORE_MAX + 40, 40 + config.queue_depth + 2).validate(config)
    with pytest.raises(ProgramError, match="may rise above"):
        raising(SEMAPHORE_MAX + 40, 40).validate(config)
