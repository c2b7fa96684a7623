"""Training on whole-step programs: RTL and golden device give the same model, step for step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import sat
from sat.cli import main
from sat.data import load_data
from sat.devices.golden import GoldenDevice
from sat.devices.staged import StagedDevice
from sat.layers.products import to_ohwi
from sat.rtl.config import AxiConfig, SatConfig
from sat.sim.golden.update import Rates, narrow, sgd
from sat.sim.layer import Layer
from sat.training.trainer import Trainer

pytestmark = pytest.mark.xdist_group("4x4")


def trainer(device: StagedDevice, model: str, scheme: str, pattern: str = "2:8") -> Trainer:
    data = load_data("digits")
    return Trainer(model, data, scheme=scheme, pattern=pattern, device=device, epochs=1, batch=16)


@pytest.mark.parametrize(
    "model, scheme", [("cnn", "bdwp"), ("mlp", "bdwp"), ("mlp", "dense"), ("mlp", "sdgp")]
)
def test_rtl_trains_the_same_model_as_golden(model, scheme):
    """Two steps, every tensor compared: the models agree in every bit afterwards."""
    with sat.device("rtl", array="4x4") as rtl:
        checked = StagedDevice(rtl, compare=True)
        on_rtl = trainer(checked, model, scheme)
        on_golden = trainer(StagedDevice(GoldenDevice()), model, scheme)
        for either in (on_rtl, on_golden):
            either.fit(2)
    assert on_rtl.result.losses == on_golden.result.losses
    for ours, theirs in zip(on_rtl.model.parameters(), on_golden.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (checked.mismatches, checked.mispredicted) == (0, 0) and checked.compared > 1000
    stages = {entry.stages for entry in checked.runs}
    assert stages >= {("ff",), ("update",)} and (("bp", "wu") in stages)
    sparse = [entry for entry in checked.runs if entry.layer.ff == (2, 8)]
    assert bool(sparse) == (scheme == "bdwp")


def test_rtl_trains_with_all_three_products_sparse():
    """Two steps of `bdwp_wu` on a device that prunes gradients as it loads them: golden's bits."""
    config = SatConfig(
        rows=4, cols=4, max_m=4, max_n=4, prune_gathers=True, axi=AxiConfig(data_bits=64)
    )
    with sat.device("rtl", config=config) as rtl:
        checked = StagedDevice(rtl, compare=True)
        on_rtl = trainer(checked, "cnn", "bdwp_wu", "2:4")
        golden = StagedDevice(GoldenDevice(config=config))
        on_golden = trainer(golden, "cnn", "bdwp_wu", "2:4")
        for either in (on_rtl, on_golden):
            either.fit(2)
    assert on_rtl.result.losses == on_golden.result.losses
    for ours, theirs in zip(on_rtl.model.parameters(), on_golden.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (checked.mismatches, checked.mispredicted) == (0, 0) and checked.compared > 1000
    layers = {entry.layer for entry in checked.runs}
    assert {layer.wu for layer in layers if layer.ff == (2, 4)} == {(2, 4)}


def test_update_is_the_golden_one_and_keeps_torchs_state():
    """The optimizer's step on a SAT layer's weight is `sgd`, its momentum stays in the state."""
    taken = trainer(StagedDevice(GoldenDevice()), "mlp", "bdwp")
    weight = taken.model.fc2.weight
    for _ in range(2):
        state = taken.optimizer.state[weight].get("momentum_buffer")
        w = weight.detach().clone()
        v = torch.zeros_like(w) if state is None else state.clone()
        taken.fit(1)
        group = taken.optimizer.param_groups[0]
        numbers = (group["lr"], group["momentum"], group["weight_decay"], 0.0, 1.0)
        bits = [int(np.float32(x).view(np.uint32)) for x in numbers]
        arrays = [to_ohwi(t).numpy() for t in (w, v, weight.grad)]
        want_w, want_v = sgd(*arrays, np.zeros(arrays[0].shape, bool), Rates(*bits))
        assert np.array_equal(to_ohwi(weight.detach()).numpy(), want_w)
        buffer = taken.optimizer.state[weight]["momentum_buffer"]
        assert np.array_equal(to_ohwi(buffer).numpy(), want_v)
        assert narrow(want_w).dtype == np.float16


def test_layers_that_the_device_cannot_run_whole_are_sent_as_products():
    device = StagedDevice(GoldenDevice())
    conv = {"lines": 8, "pixels": 8, "kernel": (3, 3), "padding": (1, 1)}
    assert device.runs_layer(Layer(in_channels=12, out_channels=12, groups=12, **conv))
    assert device.runs_layer(Layer(in_channels=32, out_channels=16, groups=2, **conv))
    odd = Layer(in_channels=12, out_channels=12, groups=3, **conv)
    assert not device.runs_layer(odd)
    with pytest.raises(ValueError, match="groups=3: 4 input and 4 output channels.*max_m=4"):
        device_memory(odd)
    wide = Layer(in_channels=16, out_channels=16, ff=(2, 16), **conv)
    assert not device.runs_layer(wide)


def device_memory(layer: Layer) -> None:
    from sat.dataflow.layers import LayerMemory

    LayerMemory(layer, SatConfig())


def test_only_devices_that_run_stages_can_be_staged():
    with pytest.raises(TypeError, match="only golden and rtl devices run whole stages"):
        StagedDevice(StagedDevice(GoldenDevice()))


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("stage", ["ff", "bp", "wu", "update", "step"])
def test_simulate_a_layer(kind, stage, capsys):
    args = ["simulate", "--layer", kind, "--stage", stage, "--channels", "16"]
    args += ["--size", "5"] if kind == "conv" else []
    args += ["--batch", "3", "--pattern", "2:8", "--relu", "--array", "4x4", "--json"]
    assert main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bit_exact"] and found["mismatches"] == 0 < found["compared"]
    assert found["cycles"] == found["predicted_cycles"]
    macs = {"ff": 1 / 4, "bp": 1 / 4, "wu": 1, "update": 0, "step": 1.5}[stage]
    assert found["macs"] == macs * 3 * 16 * 16 * (9 * 25 if kind == "conv" else 1)


def test_simulate_refuses_a_layer_that_is_none(capsys):
    args = ["simulate", "--layer", "conv", "--channels", "12", "--pattern", "2:8"]
    assert main(args) == 2
    assert "M must divide the 12 channels" in capsys.readouterr().err
