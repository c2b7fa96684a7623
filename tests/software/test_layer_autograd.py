"""Derivatives of SAT layers beyond the first: against explicit formulas, and torch.func's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import sat
from sat import Prune, Scheme
from sat.layers.plan import loss_scale
from sat.sim.golden import sore

INPUTS = Scheme(
    "prunes inputs", prunes={"FF": Prune("input", "in"), "WU": Prune("output_gradient", "out")}
)
SCHEMES = ["dense", "bdwp", "srste", "sdgp", "sdwp", INPUTS]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear():
    torch.manual_seed(0)
    return nn.Linear(16, 24), randn(4, 16)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2), randn(2, 16, 5, 4)


MAKERS = {"linear": linear, "convolution": convolution}


def masked(x, axis, groups=1):
    """Return a tensor with zeros where 2:8 prunes it as float16, straight through."""
    array = x.detach().half().numpy()
    shape = array.shape
    cut = array.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])
    keep = torch.from_numpy(sore.mask(cut, 2, 8, axis + 1).reshape(shape))
    return x + (torch.where(keep, x, 0) - x).detach()


def seen(plain, scheme, stage, name, x):
    """Return an operand of a stage as the scheme prunes it, in float64."""
    prune = sat.layers.schemes.get_scheme(scheme).pruning(stage, name)
    if prune is None:
        return x
    groups = getattr(plain, "groups", 1)
    for channels in prune.axes:
        weight = name == "weight"
        axis = (0 if channels == "out" else 1) if weight else 1
        x = masked(x, axis, 1 if weight and channels == "in" else groups)
    return x


def product(plain, x, w, bias=None):
    if isinstance(plain, nn.Linear):
        return nn.functional.linear(x, w, bias)
    options = (plain.stride, plain.padding, plain.dilation, plain.groups)
    return nn.functional.conv2d(x, w, bias, *options)


def adjoint(plain, dy, x, w, which):
    """Return BP (0) or WU (1) of torch's own layer, differentiable in all of dy, x and w."""
    x, w = x + 0, w + 0
    if not x.requires_grad:
        x.requires_grad_()
    if not w.requires_grad:
        w.requires_grad_()
    y = product(plain, x, w)
    return torch.autograd.grad(y, (x, w)[which], dy, create_graph=True)[0]


def near(got, want, bound=4e-3):
    assert got.shape == want.shape
    assert float((got.double() - want).detach().norm() / want.detach().norm()) < bound


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_gradient_penalty_is_that_of_the_pruned_products(name, scheme):
    """Penalties on BP and on WU, differentiated by dy, x and the weight, in float64 by torch."""
    plain, x = MAKERS[name]()
    layer = copy.deepcopy(plain)
    sat.sparsify_(layer, scheme, "2:8", lambda name, layer: True)
    dy = randn(*plain(x).shape, seed=1)
    along = (randn(*x.shape, seed=2), randn(*plain.weight.shape, seed=3))

    leaves = [t.clone().requires_grad_() for t in (dy, x)]
    made = torch.autograd.grad(layer(leaves[1]), (leaves[1], layer.weight), leaves[0],
                               create_graph=True)  # fmt: skip
    want_leaves = [t.detach().double().requires_grad_() for t in (dy, x, plain.weight)]
    dy64, x64, w64 = want_leaves
    want = (
        adjoint(plain, seen(plain, scheme, "BP", "output_gradient", dy64), x64,
                seen(plain, scheme, "BP", "weight", w64), 0),
        adjoint(plain, seen(plain, scheme, "WU", "output_gradient", dy64),
                seen(plain, scheme, "WU", "input", x64), w64, 1),
    )  # fmt: skip
    if scheme == "srste":
        keep = seen(plain, scheme, "FF", "weight", w64).detach() != 0
        want = (want[0], want[1] + 2e-4 * torch.where(keep, 0, w64))
    for got, ideal in zip(made, want, strict=True):
        near(got, ideal)
    for which in (0, 1):
        got = torch.autograd.grad(
            made[which], (leaves[0], leaves[1], layer.weight), along[which],
            retain_graph=True, allow_unused=True,
        )  # fmt: skip
        ideal = torch.autograd.grad(
            want[which], want_leaves, along[which].double(), retain_graph=True, allow_unused=True
        )
        for a, b in zip(got, ideal, strict=True):
            assert (a is None or not a.any()) == (b is None or not b.any())
            if b is not None and b.any():
                near(a, b)


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_run_on_the_device(name, fake_rtl):
    layer, x = MAKERS[name]()
    sat.sparsify_(layer, "bdwp", filter_fn=lambda name, layer: True)
    x.requires_grad_()
    with fake_rtl() as device, sat.use_device(device), sat.record_products() as log:
        (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        before = device.products
        dx.square().sum().backward()
    assert device.products > before and len(log) == device.products
    assert {"FF", "BP", "WU"} == {record.stage for record in log}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(16, 8, 3, stride=2),
        nn.Flatten(),
        nn.Linear(32, 8),
    ), randn(3, 8, 5, 5)


def loss_of(model):
    def loss(parameters, x):
        return functional_call(model, parameters, (x,)).square().mean()

    return loss


TRANSFORMS = {
    "grad": lambda f, p, x: grad(f)(p, x),
    "per-sample gradients": lambda f, p, x: vmap(grad(f), (None, 0))(p, x[:, None]),
    "ensembles": lambda f, p, x: vmap(grad(f), (0, None))(
        {name: torch.stack([v, -v]) for name, v in p.items()}, x
    ),
    "vmap over both": lambda f, p, x: vmap(f)(
        {name: torch.stack([v, v / 2, v / 4]) for name, v in p.items()}, x[:, None]
    ),
    "vmap, last axis": lambda f, p, x: vmap(lambda t: f(p, t), in_dims=3)(
        torch.stack([x, x + 1], 3)
    ),
    "jvp": lambda f, p, x: jvp(f, (p, x), ({n: torch.ones_like(v) for n, v in p.items()}, x)),
    "jvp of grad": lambda f, p, x: jvp(lambda t: grad(f, 1)(p, t), (x,), (torch.ones_like(x),)),
    "jvp of grad of weights": lambda f, p, x: jvp(
        lambda q: grad(f)(q, x), (p,), ({n: torch.ones_like(v) for n, v in p.items()},)
    ),
    "hessian": lambda f, p, x: hessian(lambda t: f(p, t))(x[:1]),
    "reverse over reverse": lambda f, p, x: jacrev(jacrev(lambda t: f(p, t)))(x[:1]),
    "jacfwd": lambda f, p, x: jacfwd(lambda t: f(p, t))(x[:1]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dense_layers_under_torch_func_are_near_torch(name):
    model, x = net()
    plain = copy.deepcopy(model).double()
    sat.sparsify_(model, "dense")
    parameters = dict(model.named_parameters())
    wide = {name: p.double() for name, p in parameters.items()}
    got = TRANSFORMS[name](loss_of(model), parameters, x)
    want = TRANSFORMS[name](loss_of(plain), wide, x.double())
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (got, want)), strict=True):
        near(a, b, 1e-2)


@pytest.mark.parametrize("scheme", ["bdwp", "srste", "sdgp"])
def test_transforms_of_sparse_layers_agree_with_autograd(scheme):
    model, x = net()
    sat.sparsify_(model, scheme, "2:4")
    loss, parameters = loss_of(model), dict(model.named_parameters())

    def by_autograd(sample):
        model.zero_grad()
        loss(parameters, sample).backward()
        return {name: p.grad.clone() for name, p in parameters.items()}

    whole = grad(loss)(parameters, x)
    each = vmap(grad(loss), (None, 0))(parameters, x[:, None])
    for name, want in by_autograd(x).items():
        assert torch.equal(whole[name], want)
    for i in range(len(x)):
        for name, want in by_autograd(x[i : i + 1]).items():
            # Torch's own sums of biases have another order.
            torch.testing.assert_close(each[name][i], want, rtol=1e-6, atol=1e-9)
    # Straight through: what the loss is along a direction is not what BP gives, but FF's own.
    tangent = randn(*x.shape, seed=5)
    _, along = jvp(lambda t: model[0](t), (x,), (tangent,))
    bias = model[0].bias[:, None, None]
    assert torch.allclose(along, model[0](tangent) - bias, atol=2e-3)


def test_third_derivatives():
    model, x = net()
    plain = copy.deepcopy(model).double()
    sat.sparsify_(model, "dense")
    made = []
    for chosen, pictures in ((model, x), (plain, x.double())):
        leaf = pictures.clone().requires_grad_()
        y = chosen(leaf).square().sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        made.append(y.detach())
    near(*made, 1e-2)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("name", ["jacobian", "hessian"])
def test_vectorised_jacobians_are_those_one_by_one(name, strategy):
    model, x = net()
    sat.sparsify_(model, "dense")
    x = x[:1]
    if name == "jacobian":
        made = [functional.jacobian(model, x, strategy=strategy, vectorize=True),
                functional.jacobian(model, x)]  # fmt: skip
    else:
        made = [
            functional.hessian(lambda t: model(t).square().sum(), x, vectorize=True,
                               outer_jacobian_strategy=strategy),
            functional.hessian(lambda t: model(t).square().sum(), x),
        ]  # fmt: skip
    near(made[0], made[1].double(), 3e-3)


def test_batches_of_gradients_and_dual_numbers():
    layer, x = linear()
    sat.sparsify_(layer)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    every = torch.autograd.grad(
        y, (leaf, layer.weight, layer.bias), torch.eye(96).view(96, 4, 24), is_grads_batched=True,
        retain_graph=True,
    )  # fmt: skip
    for i in (0, 17, 95):
        one = torch.autograd.grad(
            y.flatten()[i], (leaf, layer.weight, layer.bias), retain_graph=True
        )
        assert all(torch.equal(a[i], b) for a, b in zip(every, one, strict=True))
    tangent = randn(4, 16, seed=1)
    with forward_ad.dual_level():
        made = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    assert torch.equal(made, jvp(layer, (x,), (tangent,))[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_have_the_same_bits(reentrant):
    model, x = net()
    sat.sparsify_(model, "bdwp", "2:4")
    grads = []
    for run in (model, lambda t: checkpoint(model, t, use_reentrant=reentrant)):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        grads.append([leaf.grad, *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_srste_decay_of_second_derivatives_grows_with_the_loss_scale():
    found = []
    for scale in (1.0, 8.0):
        layer, x = linear()
        sat.sparsify_(layer, "srste")
        with loss_scale(scale):
            (dw,) = torch.autograd.grad(layer(x).sum() * 0, layer.weight, create_graph=True)
            found.append(torch.autograd.grad(dw.sum(), layer.weight)[0])
    assert np.count_nonzero(found[0]) == 3 * 16 * 24 // 4
    assert torch.equal(found[0] * 8, found[1])
