"""Stages as programs: golden and RTL leave the same, and both say what is missing or too large."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import sat
from sat.dataflow.compile.step import Sgd, compile_step
from sat.dataflow.fit import DoesNotFit
from sat.dataflow.products import Product
from sat.dataflow.recent import Recent
from sat.devices import GoldenDevice
from sat.devices.rtl import RtlDevice
from sat.devices.staged import StagedDevice
from sat.devices.stages import count_different
from sat.errors import DeviceClosedError
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.layer import Layer
from sat.sim.memory import MemoryTiming

LAYERS = {
    "linear": Layer(batch=5, in_channels=16, out_channels=8, ff=(2, 8), bp=(2, 4), bias=True),
    "relu, masked": Layer(
        batch=2, lines=5, pixels=4, in_channels=8, out_channels=16, kernel=(3, 2), padding=(1, 1),
        stride=(2, 1), bias=True, relu=True, masked=True, ff=(1, 4), bp=(2, 8),
    ),
    "depthwise": Layer(
        lines=4, pixels=5, in_channels=12, out_channels=12, groups=12, kernel=(3, 3),
        padding=(1, 1), relu=True, masked=True,
    ),
}  # fmt: skip
SGD = Sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.01, sr_ste=0.02, loss_scale=4)


def tensors_of(layer: Layer, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = (layer.out_channels, *layer.kernel, layer.in_per_group)
    x = rng.standard_normal((layer.batch, layer.lines, layer.pixels, layer.in_channels))
    dy = rng.standard_normal((layer.batch, *layer.out_size, layer.out_channels))
    made = {"x": x.astype(np.float16), "dy": dy.astype(np.float16)}
    made |= {name: rng.standard_normal(weights).astype(np.float32) for name in ("w", "v", "g")}
    made["bias"] = rng.standard_normal(layer.out_channels).astype(np.float32)
    return made | {"in_mask": rng.random(x.shape) < 0.5}


@pytest.fixture(scope="module")
def rtl():
    with RtlDevice("4x4") as device:
        yield device


PROGRAMS = [
    ("ff",), ("bp",), ("wu",), ("update",), ("wu", "update"), ("update", "wu"), ("update", "ff"),
    ("ff", "bp", "wu", "update"), ("wu", "update", "bp"), ("update", "update"),
]  # fmt: skip


@pytest.mark.xdist_group("4x4")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("finite", [True, False])
def test_golden_leaves_what_the_rtl_leaves(rtl, name, finite):
    """Stages in any order, ReLU and masks, updates that a gradient without end skips."""
    layer = LAYERS[name]
    tensors = tensors_of(layer)
    if not finite:
        tensors["dy"].flat[3] = np.inf
        tensors["g"].flat[5] = np.nan
    for names in PROGRAMS:
        want, _ = rtl.run_stages(names, layer, tensors, SGD)
        got, _ = GoldenDevice().run_stages(names, layer, tensors, SGD)
        assert got.keys() == want.keys()
        for tensor in want:
            assert count_different(got[tensor], want[tensor]) == 0, (names, tensor)
        assert (
            ("w" not in want)
            or not np.array_equal(want["w"], tensors["w"])
            or (names[0] != "update" and not finite)
        )
    staged = StagedDevice(rtl, compare=True)
    staged.stages(("ff", "bp", "wu", "update"), layer, tensors, SGD)
    assert staged.mismatches == 0 < staged.compared


@pytest.mark.parametrize("kind", ["golden", "rtl"])
def test_what_is_missing_is_named(kind, rtl):
    device = rtl if kind == "rtl" else GoldenDevice()
    layer = LAYERS["relu, masked"]
    tensors = tensors_of(layer)
    reads = {
        ("ff",): ("x", "w", "bias"),
        ("bp",): ("dy", "w", "in_mask"),
        ("wu",): ("x", "dy"),
        ("update",): ("w", "v", "g"),
        ("wu", "update"): ("x", "dy", "w", "v"),
    }
    for names, needed in reads.items():
        given = {name: tensors[name] for name in needed}
        for name in needed:
            with pytest.raises(ValueError, match=f"tensor '{name}' is missing: {names[-1]}|wu"):
                device.run_stages(names, layer, {n: t for n, t in given.items() if n != name}, SGD)
        device.run_stages(names, layer, given, SGD)
    for wrong, error, text in (
        (
            {"x": tensors["x"][1:]},
            ValueError,
            r"x has shape \(1, 5, 4, 8\): must be",
        ),
        ({"x": tensors["x"].astype(np.float32)}, TypeError, "x has dtype float32"),
        ({"in_mask": tensors["in_mask"] * 1.0}, TypeError, "in_mask has dtype float64"),
        ({"y": tensors["x"]}, ValueError, "tensor 'y'"),
    ):
        with pytest.raises(error, match=text):
            device.run_stages(("ff",), layer, tensors | wrong, SGD)
    with pytest.raises(ValueError, match="stage='fb': must be one of ff, bp, wu, update"):
        device.run_stages(("fb",), layer, tensors, SGD)


def test_closed_devices_compute_nothing():
    layer, a = LAYERS["linear"], np.ones((2, 8), np.float16)
    tensors = tensors_of(layer)
    for make in (GoldenDevice, lambda: RtlDevice("4x4")):
        device = make()
        staged = StagedDevice(device)
        device.close()
        for work, arguments in (
            (device.matmul, (a, a.T)),
            (device.run_stages, (("ff",), layer, tensors, None)),
            (staged.matmul, (a, a.T)),
            (staged.stages, (("ff",), layer, tensors, None)),
        ):
            with pytest.raises(DeviceClosedError, match="closed"):
                work(*arguments)


# Memory and addresses.


@pytest.mark.parametrize("bits", [16, 17, 20, 25, 26, 32, 48])
def test_narrow_addresses_need_no_memory_bytes(bits, monkeypatch):
    """The simulator's memory is no larger than its addresses reach; the next test runs one."""
    sizes = []

    def simulator(config, timing, *, memory_bytes, waves, engine):
        sizes.append(memory_bytes)
        raise InterruptedError

    monkeypatch.setattr("sat.devices.rtl.DeviceRtl", simulator)
    device = sat.device("rtl", array="4x4", axi=AxiConfig(address_bits=bits))
    a = np.ones((2, 8), np.float16)
    with pytest.raises(InterruptedError):
        device.matmul(a, a.T)
    assert sizes == [1 << min(bits, 26)]


@pytest.mark.xdist_group("4x4")
def test_memory_grows_as_far_as_addresses_reach():
    """Products that end just below the last address run, resident or not; larger ones are named."""
    axi = AxiConfig(address_bits=16)
    with RtlDevice("4x4", axi=axi, memory_bytes=1 << 14) as device:
        ends = {}
        for rows in range(8, 400, 8):
            end = device.compile(Product(rows, 16, 64))[0].memory.end
            ends[end] = rows
        fitting = max(end for end in ends if end <= 1 << 16)
        too_large = min(end for end in ends if end > 1 << 16)
        assert fitting > (1 << 16) - 6000
        b = np.ones((64, 16), np.float16)
        small = np.ones((3, 64), np.float16)
        for operand in (b, sat.resident(b)):
            for a in (small, np.ones((ends[fitting], 64), np.float16), small):
                assert (device.matmul(a, operand) == 64).all()
            with pytest.raises(DoesNotFit, match=rf"{too_large} bytes.*2\*\*16.*address_bits=17"):
                device.matmul(np.ones((ends[too_large], 64), np.float16), operand)
            assert (device.matmul(small, operand) == 64).all()


@pytest.mark.xdist_group("4x4")
def test_a_layer_runs_where_only_its_weights_to_keep_do_not_fit():
    """A program beside weights that stay may not fit, when the program alone does."""
    config = SatConfig(rows=4, cols=4, axi=AxiConfig(address_bits=16))
    layer = Layer(batch=8, in_channels=48, out_channels=48)
    end = compile_step(layer, config, MemoryTiming(), ("ff",)).end
    assert 40_000 < end < 1 << 16
    tensors = {name: tensors_of(layer)[name] for name in ("x", "w")}

    class Owner:
        pass

    owner = Owner()
    with RtlDevice(config=config, memory_bytes=1 << 15) as device:
        for _ in range(2):
            y = device.run_stages(("ff",), layer, tensors, None, owner)[0]["y"]
        want = GoldenDevice().run_stages(("ff",), layer, tensors, None)[0]["y"]
        assert np.array_equal(y, want)


# `runs_layer`, and what is kept.


@pytest.mark.parametrize(
    ("layer", "config", "runs"),
    [
        (Layer(in_channels=64, out_channels=64, batch=2), SatConfig().with_array("9x9"), True),
        (Layer(in_channels=64, out_channels=64, ff=(2, 16)), SatConfig(), False),
        (Layer(in_channels=8, out_channels=8, groups=2), SatConfig(), False),
        (Layer(in_channels=8, out_channels=8, groups=2),
         SatConfig(max_m=4, max_n=4, axi=AxiConfig(data_bits=64)), True),
        (Layer(in_channels=12, out_channels=12, groups=12, relu=True), SatConfig(cols=6), False),
        (Layer(in_channels=8, out_channels=8, batch=70_000), SatConfig(), False),
        (Layer(in_channels=8, out_channels=8, batch=700, lines=20),
         SatConfig(axi=AxiConfig(address_bits=18)), False),
        (Layer(in_channels=16, out_channels=16, ff=(3, 8), bp=(3, 8)),
         SatConfig(update_words=16, update_lanes=1), False),
    ],
)  # fmt: skip
def test_runs_layer_tells_the_truth(layer, config, runs):
    staged = StagedDevice(GoldenDevice(config))
    assert staged.runs_layer(layer) is runs
    if runs:
        compile_step(layer, config, MemoryTiming())
    else:
        with pytest.raises(DoesNotFit):
            compile_step(layer, config, MemoryTiming())


def test_runs_layer_counts_the_program_too():
    """Tensors that fit, with programs that do not: no address is left for them."""
    layer = Layer(in_channels=40, out_channels=40, lines=5, pixels=5)
    verdicts = set()
    for bits in range(16, 20):
        config = SatConfig(rows=1, cols=1, axi=AxiConfig(address_bits=bits))
        runs = StagedDevice(GoldenDevice(config)).runs_layer(layer)
        try:
            compile_step(layer, config, MemoryTiming())
        except DoesNotFit:
            assert not runs
        else:
            assert runs
        verdicts.add(runs)
    assert verdicts == {False, True}


def test_what_is_kept_is_bounded():
    made = []

    def make(weight):
        def value():
            made.append(weight)
            return weight

        return value

    recent = Recent(10, lambda value: value)
    for key, weight in enumerate((4, 4, 4)):
        recent.get(key, make(weight))
    assert (len(recent), recent.weight) == (2, 8)  # the first went
    assert recent.get(1, make(4)) == 4 and made == [4, 4, 4]
    recent.get(3, make(5))
    assert recent.get(1, make(4)) == 4 and made == [4, 4, 4, 5]  # 2 went, being older
    recent.get(4, make(50))
    assert (len(recent), recent.weight) == (1, 50)
    recent.get(4, make(3), anew=True)
    assert (len(recent), recent.weight, made[-1]) == (1, 3, 3)


def test_devices_keep_programs_up_to_a_bound(monkeypatch):
    from sat.dataflow import search

    monkeypatch.setattr(search._found, "most", 2000)
    device = RtlDevice("4x4")
    for rows, cols in itertools.product(range(1, 30), range(1, 8)):
        device.predict(Product(rows, cols, 16))
        assert search._found.weight <= 2000
    layer = LAYERS["linear"]
    monkeypatch.setattr(device._steps, "most", 500)
    for batch in range(1, 20):
        step = replace(layer, batch=batch)
        device._steps.get((step, ("ff",)), lambda step=step: (
            compile_step(step, device.config, MemoryTiming(), ("ff",)), 0))  # fmt: skip
        assert device._steps.weight <= 500 or len(device._steps) == 1
