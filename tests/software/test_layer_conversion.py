"""`sparsify_` and `desparsify_`: what becomes of each layer of a model, and its undoing."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import sat


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 10),
    )


def test_report_names_every_layer_and_reason():
    report = sat.sparsify_(model())
    rows = [(r.name, r.kind, r.shape, r.scheme, r.pattern, r.reason) for r in report.layers]
    assert rows == [
        ("0", "Conv2d", (16, 1, 3, 3), "dense", "dense", "in_channels 1 is no multiple of 8"),
        ("2", "Conv2d", (8, 16, 3, 3), "bdwp", "2:8", "channels are multiples of 8"),
        ("4", "Linear", (10, 288), "dense", "dense", "out_features 10 is no multiple of 8"),
    ]
    lines = str(report).splitlines()
    assert len(lines) == 4 and lines[0].split() == [
        "layer",
        "kind",
        "weight",
        "scheme",
        "pattern",
        "reason",
    ]
    assert "8x16x3x3" in lines[2]


def test_filter_decides_before_the_rule():
    verdicts = {"0": True, "2": False, "4": None}
    report = sat.sparsify_(model(), filter_fn=lambda name, layer: verdicts[name])
    assert [(r.pattern, r.reason) for r in report.layers] == [
        ("2:8", "filter_fn"),
        ("dense", "filter_fn"),
        ("dense", "out_features 10 is no multiple of 8"),
    ]


def test_dense_scheme_or_pattern_prunes_nothing():
    x = randn(2, 1, 8, 8)
    nets = [model(), model()]
    first = sat.sparsify_(nets[0], "dense", "2:8")
    second = sat.sparsify_(nets[1], "bdwp", "dense")
    assert {r.pattern for r in (*first.layers, *second.layers)} == {"dense"}
    assert {r.reason for r in first.layers} == {"scheme dense prunes nothing"}
    assert torch.equal(nets[0](x), nets[1](x))


def test_layers_that_stay_in_torch_are_reported():
    class Own(nn.Linear):
        pass

    net = nn.ModuleList([Own(8, 8), nn.Conv1d(8, 8, 1), nn.LSTM(8, 8), nn.Linear(8, 8)])
    report = sat.sparsify_(net)
    assert [(r.kind, r.scheme, r.reason) for r in report.layers] == [
        ("Own", "host", "no SAT layer for class Own"),
        ("Conv1d", "host", "no SAT layer for class Conv1d"),
        ("LSTM", "host", "no SAT layer for class LSTM"),
        ("Linear", "bdwp", "channels are multiples of 8"),
    ]
    assert type(net[0]) is Own


def test_round_trip_keeps_parameters_state_and_outputs():
    net, x = model(), randn(2, 1, 8, 8)
    before, parameters = net(x), dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert str(sat.sparsify_(net)) and type(net[0]) is sat.SatConv2d
    assert not torch.equal(net(x), before)
    assert all(net.get_parameter(name) is p for name, p in parameters.items())
    assert list(net.state_dict()) == list(model().state_dict())
    twin = model()
    sat.sparsify_(twin)
    net(x).sum().backward()
    optimizer.step()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))
    plain = model()
    plain.load_state_dict(net.state_dict())
    assert sat.desparsify_(net) is net
    assert [type(layer) for layer in net] == [type(layer) for layer in plain]
    assert torch.equal(net(x), plain(x))
    assert net[0].__dict__.keys() == plain[0].__dict__.keys()
    sat.desparsify_(net)  # nothing left to undo


def test_converting_again_replaces_the_decision():
    net = model()
    sat.sparsify_(net, "bdwp", "2:8")
    report = sat.sparsify_(net, "sdwp", "1:2")
    assert [r.kind for r in report.layers] == ["Conv2d", "Conv2d", "Linear"]
    assert [r.scheme for r in report.layers] == ["dense", "sdwp", "sdwp"]
    sat.desparsify_(net)
    assert type(net[2]) is nn.Conv2d


def test_one_layer_alone_hooks_copies_and_files():
    layer = nn.Linear(24, 16)
    sat.sparsify_(layer)
    fresh = copy.deepcopy(layer)
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(1))
    x = randn(5, 24)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected) and len(seen) == 2
    stream = io.BytesIO()
    torch.save(fresh, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), expected)


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: sat.sparsify_(torch.ones(3)), TypeError, "module is a Tensor: must be an nn.Mod"),
        (lambda: sat.desparsify_(3), TypeError, "module is a int: must be an nn.Module"),
        (lambda: sat.sparsify_(nn.ReLU()), ValueError, "module ReLU has no layer of class nn.Lin"),
        (lambda: sat.sparsify_(model(), "xyz"), ValueError, "scheme 'xyz': there is no such"),
        (lambda: sat.sparsify_(model(), pattern="8:2"), ValueError, "pattern 8:2: N must be from"),
        (lambda: sat.sparsify_(model(), device="rtl"), TypeError, "device is a str: must be a Dev"),
        (
            lambda: sat.sparsify_(model(), filter_fn=lambda name, layer: 1),
            TypeError,
            "filter_fn returned 1 for layer '0': must be True (sparse), False (dense) or None",
        ),
    ],
)
def test_bad_arguments_name_value_rule_and_fix(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        make()


def test_other_padding_is_refused_before_anything_changes():
    net = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(
        ValueError, match="layer '1' has padding_mode='reflect': SAT pads with zeros; pad in a"
    ):
        sat.sparsify_(net)
    assert type(net[0]) is nn.Linear


# --- modules that hold their weights in other ways ------------------------------------------------


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


class Split(nn.Module):
    """A parametrization by two tensors."""

    def forward(self, a, b):
        return a * b

    def right_inverse(self, x):
        return x, torch.ones(len(x), *[1] * (x.ndim - 1))


def user(layer):
    return parametrize.register_parametrization(layer, "weight", Halved())


def split(layer):
    return parametrize.register_parametrization(layer, "weight", Split())


def twice(layer):
    return user(parametrizations.weight_norm(layer))


def bias_too(layer):
    return parametrize.register_parametrization(user(layer), "bias", Halved())


def unstructured(layer):
    return prune.l1_unstructured(layer, "weight", 0.3)


HELD = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "user's": user,
    "of two tensors": split,
    "two of them": twice,
    "the bias's, too": bias_too,
    "spectral_norm of old": nn.utils.spectral_norm,
    "pruned": unstructured,
}
LAYERS = {
    "Linear": lambda: (nn.Linear(16, 16), randn(4, 16)),
    "Conv2d": lambda: (nn.Conv2d(16, 16, 3, padding=1), randn(2, 16, 4, 4)),
}


def dense_of(net, x):
    """Return what torch computes with the weight that the model has now."""
    layer = net[0]
    with torch.no_grad():
        weight = layer.weight
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x, weight, layer.bias)
        return nn.functional.conv2d(x, weight, layer.bias, padding=layer.padding)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_that_are_made_anew_are_pruned_trained_and_left_again(held, kind, when):
    torch.manual_seed(0)
    layer, x = LAYERS[kind]()
    if when == "before":
        layer = HELD[held](layer)
    net = nn.Sequential(layer, nn.Flatten(), nn.ReLU())
    rows = sat.sparsify_(net, "bdwp", "2:8").layers
    assert [(r.name, r.kind, r.pattern) for r in rows] == [("0", kind, "2:8")]
    assert rows[0].shape == tuple(layer.weight.shape)
    if when == "after":
        HELD[held](layer)
    with sat.record_products() as log:
        net(x).sum().backward()
    assert [r.stage for r in log] == ["FF", "WU"]
    assert [str(r.pattern) for r in log] == ["2:8", "dense"]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    net.eval()
    again = sat.sparsify_(net, "bdwp", "1:2")
    assert [(r.kind, r.pattern) for r in again.layers] == [(kind, "1:2")]
    with sat.record_products() as log:
        net(x)
    assert [str(r.pattern) for r in log] == ["1:2"]
    if "old" not in held and held != "pruned":  # whose copies torch does not make
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x), net(x))
        sat.desparsify_(twin)  # leaves the first one as it is
        assert not torch.equal(twin(x), net(x))
    sat.desparsify_(net)
    with sat.record_products() as log:
        assert torch.allclose(net[:1](x), dense_of(net, x), atol=1e-5)
    assert not log.records
    if parametrize.is_parametrized(net[0]):
        parametrize.remove_parametrizations(net[0], "weight")
    if not parametrize.is_parametrized(net[0]):
        assert type(net[0]) is (nn.Linear if kind == "Linear" else nn.Conv2d)


def test_parametrizations_may_go_while_the_layer_is_sparse():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 16)))
    sat.sparsify_(net)
    y = net(randn(4, 16))
    parametrize.remove_parametrizations(net[0], "weight")
    assert type(net[0]) is sat.SatLinear
    assert torch.allclose(net(randn(4, 16)), y, atol=1e-3)


def test_a_parametrization_is_computed_once_in_a_forward_pass():
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            Counted.calls += 1
            return x

    layer = nn.Linear(16, 16)
    sat.sparsify_(layer)
    parametrize.register_parametrization(layer, "weight", Counted())
    before = Counted.calls
    sat.sparsify_(layer)
    assert Counted.calls == before
    layer(randn(4, 16))
    assert Counted.calls == before + 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_of_old():
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 16)), nn.Linear(16, 16))
    sat.sparsify_(net)
    net(randn(4, 16)).sum().backward()
    assert net[0].weight_g.grad.abs().sum() > 0 and net[0].weight_v.grad.abs().sum() > 0


PARTS = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(16, affine=False),
    "LayerNorm": lambda: nn.LayerNorm(16, elementwise_affine=False),
    "GroupNorm": lambda: nn.GroupNorm(4, 16, affine=False),
    "loss": nn.CrossEntropyLoss,
    "weighted loss": lambda: nn.CrossEntropyLoss(torch.ones(3)),
    "text": lambda: _with_attribute("weight", "heavy"),
    "a function": lambda: _with_attribute("weight", len),
    "a table of elements": lambda: nn.LayerNorm((4, 16)),
}


def _with_attribute(name, value):
    part = nn.Identity()
    setattr(part, name, value)
    return part


@pytest.mark.parametrize("part", PARTS)
def test_modules_without_products_have_no_row(part):
    net = nn.ModuleList([nn.Linear(16, 16), PARTS[part]()])
    assert len(sat.sparsify_(net).layers) == 1


LAZY = {
    "linear": lambda: (nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(8)), (4, 16)),
    "convolution": lambda: (
        nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8)),
        (2, 8, 4, 4),
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("kind", LAZY)
def test_lazy_layers_are_decided_by_their_first_input(kind):
    net, shape = LAZY[kind]()
    report = sat.sparsify_(net)
    assert "if the first input's channels are multiples of 8" in str(report)
    with sat.record_products() as log:
        net(randn(*shape)).sum().backward()
    assert {str(r.pattern) for r in log if r.stage == "FF"} == {"2:8"}
    assert type(net[-1]) is sat.SatLinear
    sat.desparsify_(net)
    assert type(net[-1]) is nn.Linear


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_lazy_layers_that_the_pattern_does_not_fit_are_dense_and_undone_before_use():
    net = nn.Sequential(nn.LazyLinear(16))
    sat.sparsify_(net)
    with sat.record_products() as log:
        net(randn(4, 15))
    assert [str(r.pattern) for r in log] == ["dense"]
    fresh = nn.Sequential(nn.LazyLinear(16))
    sat.sparsify_(fresh)
    sat.desparsify_(fresh)
    assert type(fresh[0]) is nn.LazyLinear and torch.is_tensor(fresh(randn(4, 15)))


# --- what is not a SAT layer, said ----------------------------------------------------------------


class Conv1D(nn.Module):
    """As in transformers."""

    def __init__(self, outs, ins):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(ins, outs))
        self.bias = nn.Parameter(torch.zeros(outs))


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.table = nn.Parameter(torch.zeros(4, 6))


def test_products_that_are_not_recognised_have_rows():
    parts = {
        "first": nn.Linear(16, 16),
        "conv1d": Conv1D(24, 8),
        "raw": Raw(),
        "list": nn.ParameterList([torch.zeros(3, 5)]),
        "bilinear": nn.Bilinear(4, 5, 6),
        "attention": nn.MultiheadAttention(8, 2),
        "rnn": nn.GRU(8, 8),
        "cell": nn.LSTMCell(8, 8),
        "transposed": nn.ConvTranspose2d(8, 8, 3),
        "table": nn.Embedding(5, 8),
        "norm": nn.LayerNorm(8),
    }
    rows = {r.name: r for r in sat.sparsify_(nn.ModuleDict(parts)).layers}
    assert rows["conv1d"].shape == (8, 24)
    assert rows["conv1d"].reason == "not recognised: what weight multiplies is dense"
    assert rows["raw"].reason == "not recognised: what table multiplies is dense"
    assert rows["raw"].shape == (4, 6) and rows["list"].shape == (3, 5)
    assert rows["attention.out_proj"].reason.startswith("nn.MultiheadAttention multiplies by its")
    assert rows["table"].reason.startswith("a table to look up")
    hosted = {name for name, r in rows.items() if r.scheme == "host"}
    assert hosted == {*parts, "attention.out_proj"} - {"first", "norm"}


def test_an_own_attention_with_a_plain_linear_layer_keeps_it_dense_and_says_so():
    class Attention(nn.MultiheadAttention):
        def __init__(self):
            super().__init__(16, 2, batch_first=True)
            self.out_proj = nn.Linear(16, 16)

    net = nn.Sequential(nn.Linear(16, 16), Attention())
    rows = {r.name: r for r in sat.sparsify_(net).layers}
    assert rows["1.out_proj"].scheme == "host" and type(net[1].out_proj) is nn.Linear


def test_shared_weights_are_named():
    net = nn.ModuleDict({"embed": nn.Embedding(24, 16), "head": nn.Linear(16, 24, bias=False)})
    net["head"].weight = net["embed"].weight
    rows = {r.name: r for r in sat.sparsify_(net).layers}
    shared = "weight shared by 'embed' (Embedding), 'head' (Linear)"
    assert rows["head"].reason == f"channels are multiples of 8; {shared}"
