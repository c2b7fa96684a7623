"""SDGD's derivatives against Hessians, its gradients by enumeration, its problems by autodiff."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sat
from sat.methods.problems.jets import Jet, JetMLP, function_jet
from sat.methods.problems.training import descend
from sat.methods.sdgd import (
    AllenCahn,
    ConstrainedMLP,
    DimensionSampler,
    HJBLog,
    SDGDTrainer,
    SineGordon,
    TwoBodyPoisson,
    laplacian_terms,
    sdgd_residual,
)
from sat.methods.sdgd.demo import cole_hopf, kept_bytes

PROBLEMS = (TwoBodyPoisson, SineGordon, AllenCahn)


def hessians(function, x):
    """(points, inputs, inputs), by forward over reverse mode of each point."""
    return torch.func.vmap(torch.func.hessian(lambda point: function(point[None])[0]))(x)


def slopes(function, x):
    return torch.func.vmap(torch.func.grad(lambda point: function(point[None])[0]))(x)


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


# ----------------------------------------------------------------------------- derivatives


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_jets_of_networks_are_their_derivatives(twice, once, hidden, seed):
    torch.manual_seed(seed)
    net = JetMLP([8, *[5] * hidden, 1]).double()
    x, axes = torch.randn(3, 8, dtype=torch.float64), torch.randperm(8)[: twice + once]

    def f(z):
        return net(z)[:, 0]

    bent = hessians(f, x)
    slope = slopes(f, x)
    for jet in (net.along(x, axes, twice), function_jet(f, x, axes, twice)):
        torch.testing.assert_close(jet.value[:, 0], f(x), rtol=0, atol=1e-14)
        torch.testing.assert_close(jet.first[..., 0].T, slope[:, axes], rtol=0, atol=1e-13)
        second = bent.diagonal(dim1=1, dim2=2)[:, axes[:twice]]
        torch.testing.assert_close(jet.second[..., 0].T, second, rtol=0, atol=1e-13)


def test_jets_of_inputs_with_derivatives_of_their_own():
    """A network of (sin 3s, s²) along s, against autodiff."""
    torch.manual_seed(0)
    net = JetMLP([2, 6, 6, 2]).double()
    s = torch.linspace(-1, 1, 7, dtype=torch.float64)
    sine, line = 3 * s, s[:, None]
    first = torch.stack([3 * sine.cos(), 2 * s], 1)[None]
    second = torch.stack([-9 * sine.sin(), torch.full_like(s, 2)], 1)[None]
    jet = net.jet(Jet(torch.stack([sine.sin(), s**2], 1), first, second))
    scaled = jet * Jet(line, torch.ones(1, 1, 1), torch.zeros(1, 1, 1)) + jet

    def f(point):
        out = net(torch.stack([(3 * point).sin(), point**2])[None])[0]
        return out * point + out

    for i, point in enumerate(s):
        torch.testing.assert_close(scaled.value[i], f(point), rtol=0, atol=1e-13)
        once = torch.func.jacfwd(f)
        torch.testing.assert_close(scaled.first[0, i], once(point), rtol=0, atol=1e-13)
        twice = torch.func.jacfwd(once)(point)
        torch.testing.assert_close(scaled.second[0, i], twice, rtol=0, atol=1e-12)


def test_all_products_of_derivatives_are_offloaded():
    """Counted by hand: none of forward mode's, or of vmap's, slips past."""
    torch.manual_seed(0)
    net, points, twice = JetMLP([6, 16, 8, 1]), 7, 2
    x, axes = torch.randn(points, 6), torch.tensor([4, 1])
    with sat.offload("golden") as report:
        net.along(x, axes, twice)
    streams = 1 + 2 * twice
    assert report.flops == 2 * points * (6 * 16 + streams * (16 * 8 + 8)) and report.coverage == 1

    def by_torch():
        return function_jet(lambda z: net(z)[:, 0], x, axes, twice)

    with FlopCounterMode(display=False) as counter:
        host = by_torch()
    with sat.offload("golden") as report:
        device = by_torch()
    # Torch multiplies by the weights' zero derivatives, too: its own count, not less than ours.
    assert report.flops == counter.get_total_flops() and report.coverage == 1
    assert report.flops >= 2 * points * (1 + 3 * twice) * (16 * 8 + 8)
    for name in ("value", "first", "second"):
        exact, got = getattr(host, name).detach(), getattr(device, name).detach()
        assert 0 < float((got - exact).norm()) < 2e-3 * float(exact.norm())


def test_a_pruned_weight_is_the_same_in_all_streams():
    torch.manual_seed(0)
    pde = SineGordon(16)
    model = ConstrainedMLP(pde, 16, 2)
    x, idx = pde.sample(4), torch.tensor([3, 9])
    sat.sparsify_(model, "srste", "2:8", filter_fn=lambda _, layer: layer.out_features > 1)
    twin = ConstrainedMLP(pde, 16, 2)
    with torch.no_grad():
        for own, copied in zip(model.net.layers, twin.net.layers, strict=True):
            weight = own.weight.detach()
            if len(weight) > 1:
                groups = weight.view(len(weight), -1, 8).abs()
                kept = groups >= groups.sort(dim=-1, descending=True).values[..., 1:2]
                weight = weight * kept.view_as(weight)
            copied.weight.copy_(weight)
        for own, copied in zip(model.net.biases, twin.net.biases, strict=True):
            copied.copy_(own)
    # SAT layers compute in float16; another mask would be off by tens of per cent.
    pruned, dense = model.along(x, idx, 2), twin.along(x, idx, 2)
    for name in ("value", "first", "second"):
        got, expected = getattr(pruned, name), getattr(dense, name)
        assert float((got - expected).detach().norm()) < 2e-3 * float(expected.detach().norm())


@pytest.mark.parametrize("activation", (nn.Tanh, nn.SiLU))
def test_other_networks_by_torch_func(activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 1), nn.Flatten(0)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    got = laplacian_terms(net, x, torch.tensor([2, 0]))
    bent = hessians(net, x).diagonal(dim1=1, dim2=2)[:, [2, 0]]
    torch.testing.assert_close(got, bent, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------- problems


@pytest.mark.parametrize("kind", PROBLEMS)
def test_right_hand_sides_are_the_solutions(kind):
    pde = kind(6, 3)
    x = pde.sample(5).double()
    u = pde.solution(x)
    trace = hessians(pde.solution, x).diagonal(dim1=1, dim2=2).sum(1)
    reaction = {TwoBodyPoisson: 0 * u, SineGordon: u.sin(), AllenCahn: u - u**3}[kind]
    torch.testing.assert_close(pde.rhs(x), trace + reaction, rtol=0, atol=1e-12)
    sphere = x / x.norm(dim=1, keepdim=True)
    assert float(pde.solution(sphere).abs().max()) < 1e-14
    assert float(ConstrainedMLP(pde, 8, 1).double()(sphere).detach().abs().max()) < 1e-14


def test_solution_by_loops():
    pde = SineGordon(4, 7)
    c = np.random.RandomState(7).standard_normal(3)
    x = pde.sample(3).double()
    for point, u in zip(x.numpy(), pde.solution(x).numpy(), strict=True):
        total = 0.0
        for i in range(3):
            a, b = point[i], point[i + 1]
            total += c[i] * np.sin(a + np.cos(b) + b * np.cos(a))
        assert u == pytest.approx((1 - point @ point) * total, abs=1e-14)


def test_points_have_uniform_radii():
    radii = SineGordon(30, 0).sample(4000).norm(dim=1)
    quantiles = radii.quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.03)


def test_exact_solutions_have_no_residual():
    """Of Sine-Gordon by its formula; of HJB by quadrature, differentiated by differences."""
    pde = SineGordon(5, 1)
    x = pde.sample(6).double()
    idx = torch.arange(5)
    assert float(sdgd_residual(pde.solution, x, pde, mode="full")) < 1e-24
    assert float(sdgd_residual(pde.solution, x, pde, None, idx[:2], "alg1")) < 1e-24
    point = torch.tensor([0.3, -0.8, 0.5, 0.4], dtype=torch.float64)
    h, unit = 1e-3, torch.eye(4, dtype=torch.float64)
    u = cole_hopf(point)
    ahead, behind = ([cole_hopf(point + s * h * e) for e in unit] for s in (1, -1))
    slope = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
    bends = [(a + b - 2 * u) / h**2 for a, b in zip(ahead[:3], behind[:3], strict=True)]
    assert slope[3] + sum(bends) - sum(s**2 for s in slope[:3]) == pytest.approx(0, abs=1e-5)


def test_hjb_by_draws_and_its_operator():
    pde = HJBLog(6, 0, draws=40_000)
    x = pde.sample(4).double()
    exact = torch.tensor([cole_hopf(point) for point in x], dtype=torch.float64)
    torch.testing.assert_close(pde.solution(x), exact, rtol=0, atol=0.02)
    torch.manual_seed(0)
    for sampled in (True, False):
        pde = HJBLog(6, 0, sample_gradient=sampled)
        model = ConstrainedMLP(pde, 8, 2).double()
        end = torch.cat([x[:, :-1], torch.ones(4, 1)], 1)
        torch.testing.assert_close(model(end), pde.terminal(end[:, :-1]))
        slope = slopes(model, x)
        bent = hessians(model, x).diagonal(dim1=1, dim2=2)[:, :6].sum(1)
        residual = slope[:, 6] + bent - slope[:, :6].square().sum(1)
        loss = sdgd_residual(model, x, pde, mode="full")
        torch.testing.assert_close(loss, residual.square().mean() / 2, rtol=1e-12, atol=0)
        # The whole gradient's own graph is part of the loss's.
        probe = model.net.layers[0].weight
        (got,) = torch.autograd.grad(loss, probe)
        with torch.no_grad():
            h = 1e-6
            probe[0, 0] += h
            above = sdgd_residual(model, x, pde, mode="full")
            probe[0, 0] -= 2 * h
            below = sdgd_residual(model, x, pde, mode="full")
        assert float(got[0, 0]) == pytest.approx(float(above - below) / (2 * h), rel=1e-5)


# --------------------------------------------------------------------------------- gradients


@settings(max_examples=25)
@given(st.integers(2, 4), st.integers(0, 10**6), st.sampled_from(PROBLEMS))
def test_gradients_by_enumeration(d, seed, kind):
    torch.manual_seed(seed)
    pde = kind(d, seed % 1000)
    model = ConstrainedMLP(pde, 4, 1).double()
    x = pde.sample(3).double()
    size = 1 + seed % (d - 1)
    sets = [torch.tensor(pair) for pair in combinations(range(d), size)]
    true = gradient(sdgd_residual(model, x, pde, mode="full"), model)
    tolerance = {"rtol": 0, "atol": 1e-12 * float(true.abs().max())}
    first = [gradient(sdgd_residual(model, x, pde, None, j, "alg1"), model) for j in sets]
    torch.testing.assert_close(torch.stack(first).mean(0), true, **tolerance)
    second = [
        gradient(sdgd_residual(model, x, pde, i, j, "alg2"), model) for i, j in product(sets, sets)
    ]
    torch.testing.assert_close(torch.stack(second).mean(0), true, **tolerance)
    # All terms leave nothing to chance.
    every = torch.arange(d)
    for mode, idx in (("alg1", (None, every)), ("alg2", (every, every)), ("shared", (every, None))):
        loss = sdgd_residual(model, x, pde, *idx, mode)
        torch.testing.assert_close(loss, sdgd_residual(model, x, pde, mode="full"))
        torch.testing.assert_close(gradient(loss, model), true, **tolerance)


def test_shared_terms_are_biased_by_their_variance():
    torch.manual_seed(0)
    pde = SineGordon(5, 0, torch.full((4,), 0.05, dtype=torch.float64))
    model = ConstrainedMLP(pde, 8, 2).double()
    x = pde.sample(8).double()
    sets = [torch.tensor(pair) for pair in combinations(range(5), 2)]
    true = gradient(sdgd_residual(model, x, pde, mode="full"), model)
    losses = [sdgd_residual(model, x, pde, i, mode="shared") for i in sets]
    shared = torch.stack([gradient(loss, model) for loss in losses]).mean(0)
    assert float((shared - true).norm() / true.norm()) > 1e-3
    whole = hessians(model, x).diagonal(dim1=1, dim2=2)
    each = torch.stack([whole[:, i].sum(1) * 5 / 2 for i in sets])
    added = gradient((each - whole.sum(1)).square().mean() / 2, model)
    torch.testing.assert_close(shared, true + added, rtol=0, atol=1e-12)


def test_sampler_draws_sets_alike_and_without_replacement():
    sampler = DimensionSampler(5, 2, torch.Generator().manual_seed(0))
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(4000):
        drawn = tuple(sorted(sampler.draw().tolist()))
        assert len(set(drawn)) == 2
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 10 and min(counts.values()) > 320 and max(counts.values()) < 480


def test_bytes_kept_grow_with_the_terms():
    one, two, four = (kept_bytes(n) for n in (8, 16, 32))
    assert four - two == 2 * (two - one) and kept_bytes(100) > 20 * kept_bytes(1)


@pytest.mark.parametrize("mode", ("shared", "alg2", "alg1"))
def test_training_learns(mode):
    torch.manual_seed(0)
    pde = SineGordon(20, 0)
    x = pde.sample(1000)
    model = ConstrainedMLP(pde, 32, 2)

    def error():
        with torch.no_grad():
            return float((model(x) - pde.solution(x)).norm() / pde.solution(x).norm())

    trainer = SDGDTrainer(model, pde, 50, 8, 5e-3, 150, mode=mode, accumulate=2, seed=1)
    steps = []
    before, curve = error(), trainer.train(steps.append)
    assert error() < 0.3 * before and len(curve) == len(steps) == 150


def test_accumulated_gradients_are_means():
    pde = TwoBodyPoisson(6, 0)
    torch.manual_seed(0)
    model = ConstrainedMLP(pde, 8, 1)
    trainer = SDGDTrainer(model, pde, 10, 2, accumulate=3)
    pde.generator.manual_seed(5)
    got = sum(gradient(loss, model) for loss in trainer.losses(0))
    pde.generator.manual_seed(5)
    x, sampler = pde.sample(10), DimensionSampler(6, 2, torch.Generator().manual_seed(0))
    each = [
        gradient(sdgd_residual(model, x, pde, sampler.draw(), mode="shared"), model)
        for _ in range(3)
    ]
    torch.testing.assert_close(got, torch.stack(each).mean(0))


# --------------------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    pde = SineGordon(4)
    model, x, idx = ConstrainedMLP(pde, 4, 1), pde.sample(3), torch.tensor([0, 1])

    def bad(make, text, error=ValueError):
        with pytest.raises(error, match=text):
            make()

    generator = torch.Generator()
    bad(lambda: DimensionSampler(4, 5, generator), "batch=5: must be at most n_terms=4")
    bad(lambda: DimensionSampler(4, 0, generator), "batch=0")
    bad(lambda: laplacian_terms(model, x, torch.tensor([0, 0])), "idx has an entry twice")
    bad(
        lambda: laplacian_terms(model, x, torch.tensor([0, 4])),
        "entries 0 to 4: must be within 0 to 3",
    )
    bad(lambda: laplacian_terms(model, x, torch.tensor([-1])), "entries -1")
    bad(lambda: laplacian_terms(model, x, torch.tensor([0.0])), "dtype float32")
    bad(lambda: laplacian_terms(model, x, torch.zeros(0, dtype=torch.int64)), "0 entries")
    bad(lambda: laplacian_terms(model, x[0], idx), r"x has shape \(4,\)")
    bad(lambda: sdgd_residual(model, x[:, :3], pde, idx, mode="shared"), r"must be \(N, 4\)")
    bad(lambda: sdgd_residual(model, x[:0], pde, idx, mode="shared"), "N at least 1")
    bad(lambda: sdgd_residual(model, 3 * x, pde, idx, mode="shared"), "must be at most 1")
    bad(lambda: sdgd_residual(model, x, pde, idx, mode="alg3"), "mode='alg3'")
    bad(lambda: sdgd_residual(model, x, pde, idx, mode="alg2"), "idx_bwd is None")
    bad(lambda: sdgd_residual(model, x, pde, idx, idx, mode="shared"), "idx_bwd is given")
    bad(lambda: SineGordon(4, coefficients=torch.ones(4)), r"coefficients has shape \(4,\)")
    bad(lambda: SineGordon(1), "d=1: must be at least 2")
    relu = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    bad(lambda: laplacian_terms(relu, x, idx), "layer '1' is a ReLU: must have second derivatives")
    hjb = HJBLog(3)
    late = torch.cat([torch.zeros(1, 3), torch.full((1, 1), 1.5)], 1)
    bad(
        lambda: sdgd_residual(ConstrainedMLP(hjb, 4, 1), late, hjb, mode="full"), r"within \[0, 1\]"
    )
    trainer = SDGDTrainer(model, pde, 4, 2, steps=1, mode="alg2")
    trainer.backward.generator.set_state(trainer.forward.generator.get_state())
    bad(trainer.train, "have the same state")
    bad(lambda: SDGDTrainer(model, pde, mode="sgd"), "mode='sgd'")
    bad(lambda: SDGDTrainer(model, pde, 4, 2, lr=-1.0, steps=1).train(), "lr=-1.0")
    bad(lambda: JetMLP([3]), "widths=")
    bad(lambda: JetMLP([3, 0]), "widths=0")
    bad(
        lambda: descend(model, lambda _: [x.sum() * float("nan")], steps=1, lr=1.0),
        "step 0: the loss is nan",
        FloatingPointError,
    )
    with torch.no_grad():
        model.net.biases[0].fill_(float("inf"))
        model.net.layers[1].weight.fill_(float("inf"))
    bad(
        lambda: sdgd_residual(model, x, pde, idx, mode="shared"),
        "infinities or NaNs",
        FloatingPointError,
    )
