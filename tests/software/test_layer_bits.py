"""One set of bits: a layer trained by products, by whole stages and under offload."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import sat
from sat import Prune, Scheme
from sat.data import load_data
from sat.devices.staged import StagedDevice
from sat.rtl.config import SatConfig
from sat.training.trainer import Trainer

CONVOLUTIONS = {
    "plain": {},
    "padding": {"padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "stride above kernel": {"stride": 3, "kernel_size": 2},
    "uneven": {"kernel_size": (3, 1), "stride": (1, 2), "padding": (2, 0)},
    "dilation": {"dilation": 2, "padding": 2, "stride": 2},
    "groups": {"groups": 2, "padding": 1},
    "groups, stride": {"groups": 2, "padding": 1, "stride": 2, "bias": False},
    "1x1": {"kernel_size": 1},
}
SCHEMES = {
    "dense": "dense",
    "bdwp": "bdwp",
    "sdwp": "sdwp",
    "srste": "srste",
    "sdgp": "sdgp",
    "bdwp_wu": "bdwp_wu",
    "FF only": Scheme("FF only", prunes={"FF": Prune("weight", "in")}),
    "WU only": Scheme("WU only", prunes={"WU": Prune("output_gradient", "batch")}),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear():
    torch.manual_seed(0)
    # No GELU: oneDNN has one of other bits, which offload switches off.
    layers = [nn.Linear(24, 32), nn.LayerNorm(32), nn.Linear(32, 16, bias=False), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 8)), randn(6, 24)


def convolution(kernel_size=3, **options):
    torch.manual_seed(0)
    first = nn.Conv2d(16, 32, kernel_size, **options)
    layers = [first, nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1)]
    return nn.Sequential(*layers), randn(2, 16, 7, 6)


@contextlib.contextmanager
def staged():
    config = SatConfig(prune_gathers=True)
    with (
        sat.device("golden", config=config) as golden,
        sat.use_device(StagedDevice(golden)) as device,
    ):
        yield
    assert device.runs, "no layer ran as whole stages"


WAYS = {
    "products": contextlib.nullcontext,
    "stages": staged,
    "offload": lambda: sat.offload("golden"),
    "offload fp32": lambda: sat.offload("golden", precision="fp32"),
}


def trained(make, scheme, pattern, way):
    """Return everything that three steps leave: outputs, gradients, parameters."""
    model, x = make()
    sat.sparsify_(model, scheme, pattern)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    left = []
    for number in range(3):
        pictures = (x + number / 4).requires_grad_()
        optimizer.zero_grad()
        with way():
            y = model(pictures)
            y.square().mean().mul(64).backward()
        optimizer.step()
        left += [y.detach(), pictures.grad]
        left += [t.detach().clone() for p in model.parameters() for t in (p.grad, p)]
    return left


def assert_same_bits(make, scheme, pattern, ways):
    want = trained(make, scheme, pattern, WAYS["products"])
    assert all(torch.isfinite(t).all() for t in want) and len({t.sum().item() for t in want}) > 6
    for way in ways:
        for a, b in zip(trained(make, scheme, pattern, WAYS[way]), want, strict=True):
            assert torch.equal(a.view(torch.int32), b.view(torch.int32)), way


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("scheme", ["bdwp", "dense"])
def test_convolutions_have_the_same_bits_by_products_and_by_stages(name, scheme):
    assert_same_bits(lambda: convolution(**CONVOLUTIONS[name]), scheme, "2:8", ["stages"])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pattern", ["2:8", "1:2"])
def test_linear_layers_have_the_same_bits_every_way(scheme, pattern):
    by_stages = ["stages"] if scheme not in ("srste", "sdgp") else []
    assert_same_bits(linear, SCHEMES[scheme], pattern, [*by_stages, "offload", "offload fp32"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_convolutions_have_the_same_bits_every_way(scheme):
    by_stages = ["stages"] if scheme not in ("srste", "sdgp") else []
    make = lambda: convolution(stride=2, padding=1, groups=2)  # noqa: E731
    assert_same_bits(make, SCHEMES[scheme], "2:4", [*by_stages, "offload"])


def test_weights_that_are_ties_only_as_float16_keep_the_first_by_products_and_by_stages():
    model = nn.Linear(8, 8, bias=False)
    sat.sparsify_(model, "bdwp", "2:8")
    with torch.no_grad():
        model.weight.copy_(1 + torch.arange(64).reshape(8, 8) * 2.0**-20)
    made = []
    for way in ("products", "stages"):
        x = torch.eye(8).requires_grad_()
        with WAYS[way]():
            y = model(x)
            y.backward(torch.eye(8))
        made.append((y.detach(), x.grad))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1])
    # Output o sees inputs 0 and 1 only; input i is reached from outputs 0 and 1 only.
    assert made[0][0][:2].eq(1).all() and made[0][0][2:].eq(0).all()
    assert made[0][1][:2].eq(1).all() and made[0][1][2:].eq(0).all()


def test_a_dense_layer_of_torch_under_offload_sums_as_a_dense_sat_layer():
    plain, x = convolution(stride=2, padding=1)
    layer = plain[0]
    results = []
    for wrapped in (False, True):
        if wrapped:
            sat.sparsify_(layer, "dense")
        pictures = x.clone().requires_grad_()
        layer.zero_grad()
        with sat.offload("golden"):
            y = layer(pictures)
            y.backward(torch.ones_like(y))
        results.append((y.half(), pictures.grad.half(), layer.weight.grad.clone()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("scheme", ["bdwp", "srste"])
def test_trainers_have_the_same_bits_whatever_the_device(scheme):
    """Products, stages, a device of several: losses, masters, momenta and statistics."""
    data = load_data("digits")
    found = []
    for way in ("products", "stages", "pool"):
        with sat.device("golden*2" if way == "pool" else "golden") as device:
            if way == "stages":
                device = StagedDevice(device)
            trainer = Trainer("cnn", data, scheme=scheme, pattern="2:8", device=device, steps=3)
            losses = trainer.fit(3).losses
        momenta = [s["momentum_buffer"] for s in trainer.optimizer.state.values()]
        found.append([torch.tensor(losses), *momenta, *trainer.model.state_dict().values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
