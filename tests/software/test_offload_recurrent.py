"""Recurrent layers under offload, taken as a whole: bits and account are those of torch's steps."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch._C import DispatchKey

import sat
from sat.offload import recurrent

HIDDEN = 7
MAKE = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}
OPTIONS = [
    {},
    {"batch_first": True},
    {"num_layers": 2, "dropout": 0.3},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
]


def layer(kind, options, x, *, state, seed=0):
    """Return a layer's parameters, its first states, and what calls it: as a whole, or by steps."""
    torch.manual_seed(seed)
    made = MAKE[kind](x.shape[2], HIDDEN, **options)
    directions = 2 if made.bidirectional else 1
    shape = (made.num_layers * directions, x.shape[0 if made.batch_first else 1], HIDDEN)
    states = [
        torch.randn(shape) if state else torch.zeros(shape) for _ in range(1 + (kind == "lstm"))
    ]

    def call(x, states, params, *, whole):
        op = getattr(torch.ops.aten, kind).input
        hx = list(states) if kind == "lstm" else states[0]
        args = (x, hx, params, made.bias, made.num_layers, made.dropout, True)
        args = (*args, made.bidirectional, made.batch_first)
        torch.manual_seed(1)  # of dropout
        return op(*args) if whole else op._op_dk(DispatchKey.CompositeImplicitAutograd, *args)

    return list(made._flat_weights), states, call


def gradients(outputs, leaves, **options):
    """Return what is left of outputs of any shape in gradients."""
    loss = sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in outputs)
    return torch.autograd.grad(loss, leaves, allow_unused=True, **options)


def same(got, want):
    """Whether tensors, or None, have the same bits."""
    pairs = list(zip(got, want, strict=True))
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def taken(monkeypatch):
    """Return a list that grows by a layer's name whenever one is taken as a whole."""
    names = []
    layers = recurrent._layers

    def noted(current, cell, *args):
        names.append(cell.__name__)
        return layers(current, cell, *args)

    monkeypatch.setattr(recurrent, "_layers", noted)
    return names


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", MAKE)
def test_bits_and_account_are_those_of_steps(kind, options, precision, taken):
    x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(3))
    # Outputs and last states used: all, outputs alone, one output, states alone, the last of them.
    uses = [lambda *y: y, lambda *y: y[:1], lambda *y: (y[0][:, -1],), lambda *y: y[1:2]]
    uses.append(lambda *y: y[-1:])
    for number, use in enumerate(uses):
        params, states, call = layer(kind, options, x, state=number % 2 == 0)
        # All differentiated, or without the input, the states or the weights of states.
        frozen = [[], [0], [1], [1 + len(states) + 1], []][number]
        found = []
        for whole in (True, False):
            leaves = [t.detach().clone() for t in (x, *states, *params)]
            for i, leaf in enumerate(leaves):
                leaf.requires_grad_(i not in frozen)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            with sat.offload("golden", precision=precision) as report:
                own = leaves[1 : 1 + len(states)]
                made = call(leaves[0], own, leaves[1 + len(states) :], whole=whole)
                found.append((*made, *gradients(use(*made), wanted)))
            rows = sorted(line.split()[:8] for line in report.table(rows=99).splitlines())
            found.append(rows)
        assert same(found[0], found[2])
        assert found[1] == found[3] and report.coverage == 1.0
    assert len(taken) == len(uses)


def test_gradients_of_gradients():
    x = torch.randn(4, 2, 3)
    for kind in MAKE:
        found = []
        for whole in (True, False):
            params, states, call = layer(kind, {}, x, state=True)
            leaves = [t.detach().clone().requires_grad_() for t in (x, *states, *params)]
            with sat.offload("golden", precision="fp32") as report:
                own = leaves[1 : 1 + len(states)]
                y = call(leaves[0], own, leaves[1 + len(states) :], whole=whole)[0]
                first = gradients([y], leaves, create_graph=True)
                found.append(gradients(first, leaves))
            assert report.coverage == 1.0
        for got, want in zip(*found, strict=True):
            assert (got is None) == (want is None)
            assert got is None or (got - want).abs().max() <= 1e-5 * want.abs().max() + 1e-7


def test_a_backward_pass_outside_of_the_block_is_torchs_own():
    x = torch.randn(5, 2, 3)
    params, states, call = layer("gru", {}, x, state=True)
    found = []
    for whole in (True, False):
        leaves = [p.detach().clone().requires_grad_() for p in params]
        with sat.offload("golden") as report:
            y = call(x, states, leaves, whole=whole)[0]
            before = report.calls
        found.append(gradients([y], leaves))
        assert report.calls == before
    assert same(*found)


def test_what_is_not_plain_is_taken_step_by_step(taken):
    x = torch.randn(5, 2, 3)
    with sat.offload("golden", precision="fp32") as report:
        nn.LSTM(3, 6, proj_size=4)(x)
        nn.GRU(3, 6).double()(x.double())
        nn.GRU(3, 6)(nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]]))
        with torch.autocast("cpu", torch.bfloat16):
            nn.GRU(3, 6)(x)
        net = nn.GRU(3, 6)
        torch.func.grad(lambda one: net(one)[0].sum())(x)
        torch.func.jvp(lambda one: net(one)[0], (x,), (x,))
        with pytest.raises(RuntimeError):
            torch.gru(x, torch.zeros(1, 2, 5), net._flat_weights, True, 1, 0.0, True, False, False)
        assert not taken and report.coverage == 1.0
        nn.GRU(3, 6)(x)
    assert taken == ["Gru"]


def test_threads_without_a_block_and_programs_after_one_are_torchs_own(taken):
    torch.manual_seed(0)
    net, x = nn.GRU(3, 6), torch.randn(5, 2, 3)
    want, made = net(x)[0], []
    with sat.offload("golden") as report:
        thread = threading.Thread(target=lambda: made.append(net(x)[0]))
        thread.start()
        thread.join()
        assert report.calls == 0
    made.append(net(x)[0])
    assert not taken and all(torch.equal(y, want) for y in made)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert not has("aten::gru.input", "AutogradCPU")
