"""What SAT layers take and give: types, autocast, memory formats, views, empty batches."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import sat

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAST = torch.channels_last


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYERS = {
    "linear": lambda: (nn.Linear(16, 24), (4, 16)),
    "linear, 3 axes": lambda: (nn.Linear(16, 8, bias=False), (2, 3, 16)),
    "linear, 1 axis": lambda: (nn.Linear(16, 8), (16,)),
    "conv": lambda: (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 5, 4)),
    "conv, groups": lambda: (nn.Conv2d(16, 32, 3, stride=2, groups=2), (2, 16, 5, 4)),
    "conv, 1x1": lambda: (nn.Conv2d(8, 8, 1, bias=False), (2, 8, 3, 3)),
    "conv, no batch": lambda: (nn.Conv2d(8, 16, 3), (8, 5, 5)),
    "conv, depthwise": lambda: (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 5, 5)),
}


def pair(name, scheme="bdwp"):
    """Return torch's layer, the same one as a SAT layer, and an input's shape."""
    torch.manual_seed(0)
    plain, shape = LAYERS[name]()
    layer = nn.Sequential(copy.deepcopy(plain))
    sat.sparsify_(layer, scheme)
    return plain, layer, shape


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_types_are_those_of_torch_where_torch_takes_them(name, dtype, autocast):
    plain, layer, shape = pair(name, "dense")
    x = randn(*shape).to(dtype)
    made = []
    for net in (plain, layer):
        leaf = x.clone().requires_grad_()
        net.zero_grad()
        if net is plain and (autocast is None or dtype is torch.float64):
            leaf = x.float().clone().requires_grad_()  # torch refuses others beside float32 weights
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            y = net(leaf)
        y.float().square().sum().backward()
        grads = [leaf.grad, *(p.grad for p in net.parameters())]
        made.append((y, grads))
    (want, want_grads), (got, grads) = made
    if dtype is torch.float64:
        assert got.dtype is torch.float32
    else:
        assert got.dtype is want.dtype
    assert grads[0].dtype is dtype and all(g.dtype is torch.float32 for g in grads[1:])
    for a, b in zip((got, *grads), (want, *want_grads), strict=True):
        a, b = a.detach().double(), b.detach().double()
        assert float((a - b).norm() / b.norm()) < 2e-2


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_models_of_other_types_train(name, dtype):
    plain, layer, shape = pair(name)
    layer.to(dtype)
    x = randn(*shape).to(dtype).requires_grad_()
    twin = copy.deepcopy(layer).float()
    for p, q in zip(twin.parameters(), layer.parameters(), strict=True):
        p.data = q.detach().float()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    y = layer(x)
    assert y.dtype is dtype
    wide = x.detach().float().requires_grad_()
    z = twin(wide)
    assert torch.equal(y, z.to(dtype))
    dy = randn(*y.shape, seed=1).half().float()
    if dtype is torch.bfloat16:
        dy = dy.bfloat16().float()
    y.backward(dy.to(dtype))
    z.backward(dy)
    assert torch.equal(x.grad, wide.grad.to(dtype))
    for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
        assert p.grad.dtype is dtype and torch.equal(p.grad, q.grad.to(dtype))
    optimizer.step()
    assert not torch.equal(layer(x), y)


def test_operands_are_rounded_once_and_overflow_to_infinity():
    layer = nn.Linear(8, 8, bias=False)
    sat.sparsify_(layer, "dense")
    with torch.no_grad():
        layer.weight.copy_(torch.eye(8))
        y = layer(torch.tensor([[1e5, 65519.0, 2.0**-24, 1 + 2.0**-11, 0, 0, 0, 0]]))
    assert torch.isinf(y[0, 0]) or torch.isnan(y[0, 0])
    y = layer(torch.tensor([[65519.0, 2.0**-24, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 0, 0, 0, 0]]))
    assert y[0, :4].tolist() == [65504.0, 2.0**-24, 1.0, 1 + 2.0**-9]


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("needs", [True, False])
def test_results_may_be_changed_in_place(name, grad, needs):
    plain, layer, shape = pair(name, "dense")
    changes = [
        nn.ReLU(inplace=True),
        lambda y: y.add_(1),
        lambda y: y.mul_(2),
        lambda y: y.__iadd__(y.detach()),
        lambda y: y.clamp_(min=0),
        lambda y: y.view(-1).add_(1).view(y.shape),
    ]
    for change in changes:
        x = randn(*shape).requires_grad_(needs)
        with torch.set_grad_enabled(grad):
            y = layer(x)
            assert not y._is_view() and y._base is None and y.is_contiguous()
            changed = change(y)
        if grad:
            changed.sum().backward()
            assert layer[0].weight.grad is not None


def strides(net, x):
    leaf = x.detach().requires_grad_()
    leaf = leaf.clone(memory_format=torch.preserve_format)
    y = net(leaf)
    weight = net.weight if hasattr(net, "weight") else net[0].weight
    dx, dw = torch.autograd.grad(y, (leaf, weight), torch.ones_like(y))
    return y.stride(), dx.stride(), dw.stride()


PICTURES = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=LAST),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: torch.cat([x, x], 1)[:, ::2],
    "expanded": lambda x: x[:1].expand(len(x), -1, -1, -1),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize("weight_last", [False, True])
@pytest.mark.parametrize("sizes", [(2, 8, 6, 6), (1, 8, 3, 3), (2, 8, 6, 3)], ids=str)
def test_convolutions_have_the_strides_of_torch(pictures, weight_last, sizes):
    for groups, outs in itertools.product((1, 8), (8, 16)):
        plain = nn.Conv2d(8, outs, 3, padding=1, groups=groups)
        if weight_last:
            plain = plain.to(memory_format=LAST)
        layer = nn.Sequential(copy.deepcopy(plain))
        sat.sparsify_(layer, "dense")
        x = PICTURES[pictures](randn(*sizes))
        want, got = strides(plain, x), strides(layer, x)
        if pictures == "empty":
            assert layer(x).shape == plain(x).shape
        else:
            assert got == want


def test_channels_last_stays_through_a_network():
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    sat.sparsify_(net)
    x = randn(2, 8, 6, 6)
    want = net(x)
    y = net.to(memory_format=LAST)(x.contiguous(memory_format=LAST))
    assert y.is_contiguous(memory_format=LAST) and torch.equal(y, want)
    y.permute(0, 2, 3, 1).view(-1, 8)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.cat([x, x], -1)[..., ::2],
        lambda x: x[:1].expand(x.shape),
    ],
)
def test_linear_layers_have_the_strides_of_torch(view):
    plain, layer = nn.Linear(16, 8), nn.Sequential(nn.Linear(16, 8))
    sat.sparsify_(layer, "dense")
    for shape in ((4, 16), (2, 3, 16), (2, 3, 4, 16), (1, 1, 16)):
        x = view(randn(*shape))
        assert layer(x).stride() == plain(x).stride()


def test_storages_of_a_program_may_still_be_resized():
    for name in ("linear", "conv"):
        for dtype in (torch.float16, torch.float32):
            _, layer, shape = pair(name)
            x = randn(*shape).to(dtype).requires_grad_()
            y = layer(x)
            y.sum().backward()
            for tensor in (
                x,
                y,
                x.grad,
                *layer.parameters(),
                *(p.grad for p in layer.parameters()),
            ):
                assert tensor.untyped_storage().resizable()


# --- nothing to compute ---------------------------------------------------------------------------

EMPTY = {
    "linear": (lambda: nn.Linear(16, 8), (0, 16)),
    "linear, 3 axes": (lambda: nn.Linear(16, 8), (3, 0, 16)),
    "linear, no outputs": (lambda: nn.Linear(16, 0), (3, 16)),
    "linear, no inputs": (lambda: nn.Linear(0, 8), (3, 0)),
    "conv": (lambda: nn.Conv2d(8, 16, 3, stride=2, bias=False), (0, 8, 5, 5)),
    "conv, groups": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=2), (0, 8, 5, 5)),
    "conv, last": (lambda: nn.Conv2d(8, 16, 3).to(memory_format=LAST), (0, 8, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("scheme", ["dense", "bdwp", "sdgp", "srste"])
def test_empty_batches_pass_forward_and_backward(name, scheme):
    make, shape = EMPTY[name]
    plain = make()
    layer = nn.Sequential(copy.deepcopy(plain))
    sat.sparsify_(layer, scheme)
    made = []
    for net in (plain, layer):
        x = torch.zeros(shape).requires_grad_()
        y = net(x)
        y.sum().backward()
        made.append([y, x.grad, *(p.grad for p in net.parameters())])
    for number, (want, got) in enumerate(zip(*made, strict=True)):
        assert got.shape == want.shape and got.dtype is want.dtype
        if not (scheme == "srste" and number == 2):  # which decays pruned weights all the same
            assert torch.equal(got, want)
    with torch.no_grad():
        assert layer(torch.zeros(shape)).shape == made[0][0].shape
