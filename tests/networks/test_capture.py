"""Capture: the products of a training step against torch's own count, and against hand counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sat.dataflow.products import Product
from sat.networks.capture import capture
from sat.networks.network import CannotCapture
from sat.networks.zoo import NETWORKS, Attention
from sat.sim.layer import Layer


def counted(model: nn.Module, *inputs) -> tuple[int, int]:
    """Return multiply-accumulates of a forward pass and of a whole step, by torch's counter."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = model(*inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward // 2, counter.get_total_flops() // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_by_name_multiply_what_torch_counts(name):
    entry = NETWORKS[name]
    with torch.device("meta"):
        model = entry.make()
    x = entry.example(2)
    network = capture(model, x, name=name)
    assert (network.macs("ff"), network.macs()) == counted(model, x)
    assert network.batch == 2
    assert network.parameters == sum(p.numel() for p in model.parameters())


def test_published_sizes():
    """Parameters of the networks as others count them."""
    published = {
        "resnet50": 25_557_032,  # torchvision's table
        "gpt2-small": 124_439_808,  # with the scores' weight tied to the embedding
        "vgg19": 20_086_692,  # 20.04 M and the normalisations' biases, one classifier of 100
    }
    for name, parameters in published.items():
        with torch.device("meta"):
            made = sum(p.numel() for p in NETWORKS[name].make().parameters())
        assert abs(made - parameters) <= 0.001 * parameters, (name, made)


def test_a_small_network_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, groups=16), nn.Flatten(),
        nn.Linear(16 * 9, 10, bias=False),
    )  # fmt: skip
    network = capture(model, torch.zeros(4, 3, 8, 8))
    first, second, last = network.operations
    size = {"batch": 4, "lines": 8, "pixels": 8, "out_channels": 16, "kernel": (3, 3), "bias": True}
    assert first.layer == Layer(**size, in_channels=3, padding=(1, 1))
    assert first.products == {"ff": (Product(256, 16, 27),), "wu": (Product(27, 16, 256),)}
    assert second.layer == Layer(**size, in_channels=16, stride=(2, 2), groups=16)
    assert second.products["bp"] == (Product(36, 9, 1, count=16),)
    assert last.layer == Layer(batch=4, in_channels=144, out_channels=10)
    assert [op.name for op in network.operations] == ["0", "2", "4"]
    assert [op.weight for op in network.operations] == ["0.weight", "2.weight", "4.weight"]
    assert network.elementwise["relu"].elements == 4 * 16 * 8 * 8
    assert [(op.name, stage) for op, stage in network.stages()] == [
        ("0", "ff"), ("2", "ff"), ("4", "ff"), ("4", "bp"), ("4", "wu"), ("2", "bp"), ("2", "wu"),
        ("0", "wu"),
    ]  # fmt: skip


def test_attention_is_two_products_beside_its_layers():
    model = Attention(32, 4, causal=True)
    kinds = [op.kind for op in capture(model, torch.zeros(2, 5, 32)).operations]
    assert kinds == ["linear", "product", "product", "linear"]


def test_frozen_parameters_need_no_gradient():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    model[0].requires_grad_(False)
    first, second = capture(model, torch.zeros(3, 4)).operations
    assert set(first.products) == {"ff"}
    assert set(second.products) == {"ff", "wu"}


def test_a_weight_from_the_left_is_a_layer_too():
    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(7, 5))

        def forward(self, x):
            return self.weight @ x

    (operation,) = capture(Left(), torch.zeros(5, 3)).operations
    assert operation.layer == Layer(batch=3, in_channels=5, out_channels=7)


@settings(max_examples=30)
@given(st.data())
def test_convolutions_of_any_kind_multiply_what_torch_counts(data):
    draw = data.draw
    axes = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from((1, 2)))
    cin, cout = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    model = kind(
        cin, cout, draw(st.integers(1, 3)), stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)), dilation=draw(st.integers(1, 2)), groups=groups,
    )  # fmt: skip
    x = torch.zeros(2, cin, *(6,) * axes).requires_grad_()
    network = capture(model, x)
    forward, whole = counted(model, x)
    # torch's counter leaves groups out of the weight gradient.
    assert (network.macs("ff"), network.macs()) == (forward, whole if groups == 1 else 3 * forward)
    assert (network.operations[0].layer is None) == (transposed or axes == 3)


def test_the_model_is_left_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    capture(model, torch.ones(8, 4))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks
    tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    tied[1].weight = tied[0].weight

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = tied

        def forward(self, x):
            return self.both[1](self.both[0](x))

    assert {op.weight for op in capture(Twice(), torch.ones(2, 4)).operations} == {"both.0.weight"}


class Looks(nn.Module):
    def forward(self, x):
        return x @ x.T if x.sum().item() > 0 else x


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (Looks(), (torch.ones(2, 2),), "device='cpu'"),
        (nn.Linear(4, 5), (torch.zeros(2, 3),), "check the example input's shapes"),
        (nn.Linear(4, 5), (), "check the example input"),
        (nn.ReLU(), (torch.zeros(2),), "multiplies no matrices"),
        (F.relu, (torch.zeros(2),), "must be a torch.nn.Module"),
    ],
)
def test_what_cannot_be_captured_says_why(model, inputs, said):
    with pytest.raises(CannotCapture, match=said):
        capture(model, *inputs)


def test_a_model_that_looks_at_numbers_runs_with_them():
    (operation,) = capture(Looks(), torch.ones(3, 2), device="cpu").operations
    assert operation.products["ff"] == (Product(3, 3, 2),)
    with pytest.raises(CannotCapture, match="device='gpu'"):
        capture(Looks(), torch.ones(3, 2), device="gpu")
