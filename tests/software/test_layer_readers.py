"""Weights of SAT layers that others read: torch's fused paths, nested tensors, modules of users."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sat


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stack(kind, scheme="bdwp"):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=kind == "pre")
    net = layer if kind in ("layer", "pre") else nn.TransformerEncoder(layer, 2, layer.norm1)
    net.eval()
    sat.sparsify_(net, scheme)
    return net


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["layer", "pre", "encoder", "encoder, padded"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fused_encoder_layers_call_sat_layers(kind, mode):
    net, x = stack(kind), randn(2, 5, 32)
    options = {}
    if "padded" in kind:
        options["src_key_padding_mask"] = torch.arange(5) >= torch.tensor([[5], [3]])
    want = net(x, **options).detach()
    with mode(), sat.record_products() as log, warnings.catch_warnings():
        got = net(x, **options)
    count = 2 if "encoder" in kind else 1
    assert [r.stage for r in log] == ["FF"] * 2 * count
    assert not log.idle
    real = ~options["src_key_padding_mask"] if options else slice(None)
    torch.testing.assert_close(got[real], want[real], atol=2e-3, rtol=2e-3)
    sat.desparsify_(net)
    with torch.no_grad(), sat.record_products() as log:
        net(x, **options)
    assert not log.records and not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_one_product(layout):
    net = nn.Sequential(nn.Linear(16, 8))
    sat.sparsify_(net)
    parts = [randn(3, 16), randn(5, 16, seed=1)]
    leaves = [p.clone().requires_grad_() for p in parts]
    x = torch.nested.as_nested_tensor(leaves, layout=layout)
    with sat.record_products() as log:
        y = net(x)
    assert [r.rows for r in log] == [8] and y.is_nested
    for got, part in zip(y.unbind(), parts, strict=True):
        assert torch.equal(got, net(part))
    sum(part.sum() for part in y.unbind()).backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_convolutions_refuse_nested_tensors():
    layer = nn.Conv2d(8, 8, 1)
    sat.sparsify_(layer)
    x = torch.nested.nested_tensor([randn(8, 3, 3), randn(8, 4, 4)])
    with pytest.raises(
        TypeError, match="input is a nested tensor: a convolution's pictures are of"
    ):
        layer(x)


class Reader(nn.Module):
    """A module that multiplies by its layer's weight itself."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.proj = nn.Conv2d(16, 16, 1) if how is READERS["conv2d"] else nn.Linear(16, 16)

    def forward(self, x):
        return self.how(x, self.proj)


READERS = {
    "linear": lambda x, layer: nn.functional.linear(x, layer.weight, layer.bias),
    "matmul": lambda x, layer: x @ layer.weight.t() + layer.bias,
    "einsum": lambda x, layer: torch.einsum("bi,oi->bo", x, layer.weight),
    "conv2d": lambda x, layer: nn.functional.conv2d(x[..., None, None], layer.weight).flatten(1),
    "in place of": lambda x, layer: nn.functional.linear(x, layer.weight.data),
}


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_readers_are_told_of_in_reports_and_by_a_warning(how, mode):
    net = nn.ModuleDict({"block": Reader(READERS[how]), "head": nn.Linear(16, 8)})
    sat.sparsify_(net)
    x = randn(4, 16)
    with mode(), sat.record_products() as log:
        net["head"](net["block"](x))
    assert list(log.idle) == ["block.proj"]
    assert "test_layer_readers.py:" in log.idle["block.proj"]
    other = nn.ModuleDict({"block": Reader(READERS[how]), "head": nn.Linear(16, 8)})
    sat.sparsify_(other)
    with mode(), sat.offload("golden") as report:
        other["head"](other["block"](x))
    (row,) = [work for work in report if work.op == "SAT layers"]
    assert row.reason.startswith("SAT layers that never multiplied: 'block.proj' (weight read by")
    assert "block.proj" in str(report) and row.flops == row.calls == 0
    with pytest.warns(UserWarning, match="'block.proj' has never been called, but .* reads its w"):
        net["block"](x)
    net["block"](x)  # said once


def test_layers_that_are_called_or_only_looked_at_are_not_told_of():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(16, 16)

        def forward(self, x):
            return self.proj(x.to(self.proj.weight.dtype))

    net = nn.Sequential(Careful(), nn.Linear(16, 16))
    sat.sparsify_(net)
    for _ in range(2):
        nn.init.xavier_uniform_(net[0].proj.weight)
    with sat.record_products() as log, sat.offload("golden") as report:
        for _ in range(3):
            net(randn(4, 16))
    assert not log.idle and not any(work.op == "SAT layers" for work in report)


def test_layers_that_nobody_used_are_in_the_reports():
    experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(12)])
    sat.sparsify_(experts)
    unrelated = nn.Linear(16, 16)
    sat.sparsify_(unrelated)
    with sat.record_products() as log, sat.offload("golden") as report:
        experts[3](randn(4, 16))
    assert list(log.idle) == sorted(str(i) for i in range(12) if i != 3)
    assert "and 3 more" in str(report)
    sat.desparsify_(experts[5])
    with sat.record_products() as log:
        experts[3](randn(4, 16))
    assert "5" not in log.idle and len(log.idle) == 10
