"""LightSB: densities and plan by quadrature, drift by Doob's transform, samplers, closed form."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from sat.methods.lightsb import LightSB, demo, gaussian_bridge


def random_bridge(dim, k, epsilon, covariance, seed=0):
    """Return a float64 bridge with random components, and them."""
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.rand(k, generator=generator).double() + 0.1
    r = torch.randn(k, dim, generator=generator).double()
    root = torch.randn(k, dim, dim, generator=generator).double()
    s = root @ root.mT / dim + 0.2 * torch.eye(dim).double()
    if covariance == "diagonal":
        s = torch.diag_embed(torch.diagonal(s, dim1=1, dim2=2))
    bridge = LightSB(dim, k, epsilon, covariance).double()
    bridge.set_components(alpha, r, s)
    return bridge, alpha, r, s


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


BOTH = pytest.mark.parametrize("covariance", ["diagonal", "full"])


@BOTH
@settings(max_examples=15)
@given(dim=st.integers(1, 4), k=st.integers(1, 6), epsilon=st.sampled_from([0.05, 1.0, 20.0]))
def test_potential_and_plan_are_mixtures(covariance, dim, k, epsilon):
    bridge, alpha, r, s = random_bridge(dim, k, epsilon, covariance)
    x = randn(5, dim)
    parts = MultivariateNormal(r, epsilon * s).log_prob(x[:, None])
    assert torch.allclose(bridge.log_v(x), torch.logsumexp(parts + alpha.log(), 1))
    exponents = (torch.einsum("bi,kij,bj->bk", x, s, x) + 2 * torch.einsum("bi,ki->bk", x, r)) / (
        2 * epsilon
    )
    log_weights = exponents + alpha.log()
    assert torch.allclose(bridge.log_c(x), torch.logsumexp(log_weights, 1))
    means = r + torch.einsum("kij,bj->bki", s, x)
    weights = torch.softmax(log_weights, 1)
    assert torch.allclose(bridge.conditional_mean(x), (weights[..., None] * means).sum(1))


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_c_is_the_integral_of_the_potential(epsilon):
    """c(x0) = ∫ exp(x0·x1 / ε) v(x1) dx1 (section 3.1)."""
    bridge, *_ = random_bridge(1, 4, epsilon, "diagonal", seed=3)
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        log_v = bridge.log_v(grid)
        for x0 in (-1.0, 0.0, 0.75):
            inside = grid[:, 0] * x0 / epsilon + log_v
            integral = torch.logsumexp(inside, 0) + math.log(80 / 400_000)
            got = bridge.log_c(torch.tensor([[x0]]).double())
            assert abs(float(got - integral)) < 1e-8


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_drift_is_doobs_transform(epsilon, t):
    """g = ε ∇ log ∫ N(x1 | x, ε (1 - t)) exp(x1² / 2ε) v(x1) dx1, by quadrature."""
    bridge, *_ = random_bridge(1, 3, epsilon, "diagonal", seed=1)
    grid = torch.linspace(-25, 25, 200_001, dtype=torch.float64)[:, None]
    x = torch.tensor([[-0.8], [0.1], [1.3]]).double().requires_grad_()
    log_v = bridge.log_v(grid).detach()
    log_phi = (grid[:, 0].square() / (2 * epsilon) + log_v)[None]
    kernel = -(x - grid.T).square() / (2 * epsilon * (1 - t))
    (gradient,) = torch.autograd.grad(torch.logsumexp(kernel + log_phi, 1).sum(), x)
    got = bridge.drift(x.detach(), t)
    assert torch.allclose(got, epsilon * gradient, rtol=1e-6, atol=1e-8)


def plane(reach, count):
    """Return a grid of the plane, and the logarithm of a cell's area."""
    axis = torch.linspace(-reach, reach, count, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), 2 * math.log(2 * reach / (count - 1))


@BOTH
@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_in_the_plane_c_and_v_integrate_and_the_plan_is_a_law(covariance, epsilon):
    bridge, alpha, r, s = random_bridge(2, 3, epsilon, covariance, seed=6)
    grid, log_cell = plane(30, 1201)
    x0 = randn(3, 2, seed=7)
    with torch.no_grad():
        log_v = bridge.log_v(grid)
        assert float(torch.logsumexp(log_v, 0) + log_cell) == pytest.approx(
            math.log(float(alpha.sum())), abs=1e-9
        )
        log_plan = (x0 @ grid.mT) / epsilon + log_v
        log_c = bridge.log_c(x0)
        assert torch.allclose(torch.logsumexp(log_plan, 1) + log_cell, log_c, atol=1e-8)
        weights = (log_plan + log_cell - log_c[:, None]).exp()
        assert torch.allclose(weights @ grid, bridge.conditional_mean(x0), atol=1e-8)
        # The plan's x1 given x0 is the mixture of N(r + S x0, ε S).
        means = r + torch.einsum("kij,bj->bki", s, x0)
        parts = MultivariateNormal(means[0], epsilon * s).log_prob(grid[:, None])
        mixture = torch.logsumexp(parts + torch.log_softmax(bridge._log_weights(x0[:1]), 1), 1)
        some = mixture > -40  # beyond, the plan is a difference of large numbers
        expected = (log_plan[0] - log_c[0])[some]
        assert torch.allclose(mixture[some], expected, atol=1e-8)


def log_process(x, t, epsilon, alpha, r, s):
    """Return the logarithm of which ε times the gradient is the drift (section 3.3).

    Its last factor is 1 / N(A⁻¹ h | 0, A⁻¹): the integral of exp(h·y - yᵀ A y / 2), to a constant.
    """
    eye, zero = torch.eye(len(r[0])).double(), torch.zeros(len(r[0])).double()
    inverse = torch.linalg.inv(s)
    spread = torch.linalg.inv(t / (epsilon * (1 - t)) * eye + inverse / epsilon)
    h = x[:, None] / (epsilon * (1 - t)) + torch.einsum("kij,kj->ki", inverse, r) / epsilon
    peak = torch.einsum("kij,bkj->bki", spread, h)
    parts = alpha.log() + MultivariateNormal(zero, epsilon * s).log_prob(r)
    parts = parts - MultivariateNormal(zero, spread).log_prob(peak)
    rest = MultivariateNormal(zero, epsilon * (1 - t) * eye).log_prob(x)
    return rest + torch.logsumexp(parts, 1)


@BOTH
@settings(max_examples=15)
@given(
    dim=st.integers(1, 4),
    k=st.integers(1, 5),
    epsilon=st.sampled_from([0.1, 1.0, 10.0]),
    t=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_drift_is_the_gradient_of_its_logarithm(covariance, dim, k, epsilon, t, seed):
    bridge, alpha, r, s = random_bridge(dim, k, epsilon, covariance, seed)
    x = randn(4, dim, seed=seed).requires_grad_()
    value = log_process(x, t, epsilon, alpha, r, s).sum()
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.allclose(bridge.drift(x.detach(), t), epsilon * gradient, rtol=1e-6, atol=1e-7)


def test_a_full_drift_is_doobs_transform_in_the_plane():
    epsilon = 0.5
    bridge, *_ = random_bridge(2, 3, epsilon, "full", seed=0)
    grid, _ = plane(30, 801)
    log_phi = (grid.square().sum(1) / (2 * epsilon) + bridge.log_v(grid)).detach()
    for t in (0.3, 0.7):
        x = randn(3, 2, seed=1).requires_grad_()
        kernel = -(x[:, None] - grid).square().sum(2) / (2 * epsilon * (1 - t))
        (gradient,) = torch.autograd.grad(torch.logsumexp(kernel + log_phi, 1).sum(), x)
        got = bridge.drift(x.detach(), t)
        assert torch.allclose(got, epsilon * gradient, rtol=1e-5, atol=1e-6)


def test_both_samplers_end_where_the_plan_does():
    """Energy distances of end points, over that of two draws of the plan."""
    bridge, *_ = random_bridge(2, 4, 0.5, "full", seed=8)
    generator = torch.Generator().manual_seed(3)
    x0 = randn(1000, 2, seed=9)
    first, second = bridge.sample(x0, 2, generator)
    apart = demo.energy_distance(first, second)
    for method, steps in (("euler", 200), ("bridge", 20)):
        end = bridge.trajectory(x0, steps, method, generator)[-1]
        assert demo.energy_distance(end, first) <= 2 * apart
    assert demo.energy_distance(x0, first) > 10 * apart


def test_full_and_diagonal_bridges_agree_where_both_can():
    diagonal, alpha, r, s = random_bridge(3, 4, 0.5, "diagonal")
    full = LightSB(3, 4, 0.5, "full").double()
    full.set_components(alpha, r, s)
    x = randn(6, 3, seed=4)
    for name in ("log_c", "log_v", "conditional_mean"):
        assert torch.allclose(getattr(full, name)(x), getattr(diagonal, name)(x))
    assert torch.allclose(full.drift(x, 0.4), diagonal.drift(x, 0.4))
    assert torch.allclose(full.loss(x, x), diagonal.loss(x, x))


@BOTH
def test_at_time_zero_the_drift_leads_to_the_conditional_mean(covariance):
    bridge, *_ = random_bridge(3, 5, 0.7, covariance)
    x = randn(8, 3)
    assert torch.allclose(bridge.drift(x, 0.0), bridge.conditional_mean(x) - x)


@BOTH
def test_samplers_draw_from_the_plan(covariance):
    bridge, _, r, s = random_bridge(2, 3, 0.5, covariance, seed=2)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.tensor([[0.3, -0.5]]).double()
    drawn = bridge.sample(x0, 40_000, generator)[:, 0]
    weights = torch.softmax(bridge._log_weights(x0), 1)[0].detach()
    means = r + s @ x0[0]
    mean = (weights[:, None] * means).sum(0)
    spread = 0.5 * s + (means - mean)[:, :, None] * (means - mean)[:, None]
    covariance_matrix = (weights[:, None, None] * spread).sum(0)
    assert (drawn.mean(0) - mean).abs().max() < 0.03
    assert (drawn.mT.cov() - covariance_matrix).abs().max() < 0.05
    for method, steps in (("euler", 200), ("bridge", 7)):
        path = bridge.trajectory(x0.expand(4000, 2), steps, method, generator)
        assert path.shape == (steps + 1, 4000, 2) and torch.equal(path[0], x0.expand(4000, 2))
        assert (path[-1].mean(0) - mean).abs().max() < 0.08
        assert (path[-1].mT.cov() - covariance_matrix).abs().max() < 0.12
    middle = bridge.trajectory(x0.expand(4000, 2), 2, "bridge", generator)[1]
    # Half way: half of the end's variance a quarter, and ε / 4 of the Brownian bridge.
    want = covariance_matrix / 4 + 0.5 / 4 * torch.eye(2)
    assert (middle.mT.cov() - want).abs().max() < 0.05


@settings(max_examples=10)
@given(dim=st.integers(1, 5), epsilon=st.sampled_from([0.1, 1.0, 10.0]), seed=st.integers(0, 99))
def test_closed_form_is_a_fixed_point_of_the_loss(dim, epsilon, seed):
    """At the closed form's r and S the plan has both marginals: LightSB can represent it."""
    a, b = randn(2, dim, dim, seed=seed)
    cov0 = a @ a.T + 0.5 * torch.eye(dim)
    cov1 = b @ b.T + 0.5 * torch.eye(dim)
    exact = gaussian_bridge(cov0, torch.zeros(dim).double(), cov1, epsilon)
    s = torch.linalg.solve(cov0, exact.cross)  # cross = cov0 · S
    assert torch.allclose(s, s.mT, atol=1e-8)
    assert torch.allclose(s @ cov0 @ s + epsilon * s, cov1, rtol=1e-6, atol=1e-8)


def test_closed_form_agrees_with_sinkhorn():
    epsilon, count = 0.5, 1500
    generator = np.random.default_rng(0)
    x0, x1 = generator.standard_normal((2, count, 1))
    x1 = 0.5 * x1
    weights = ot.sinkhorn(ot.unif(count), ot.unif(count), ot.dist(x0, x1) / 2, epsilon)
    cross = float((weights * (x0 - x0.mean()) * (x1 - x1.mean()).T).sum())
    variances = [torch.tensor([[x.var()]]) for x in (x0, x1)]
    exact = gaussian_bridge(variances[0], torch.zeros(1), variances[1], epsilon)
    assert abs(cross - float(exact.cross)) < 0.02 * float(exact.cross)


def test_training_finds_the_closed_form():
    errors = demo.gaussian_errors(2, 1.0, seed=5, steps=800)
    assert max(errors.values()) < 0.02


def test_energy_distance_tells_laws_apart():
    a, b = randn(500, 2), randn(500, 2, seed=1)
    assert 0 < demo.energy_distance(a, b) < 0.02
    assert demo.energy_distance(a, b + 1) > 0.3
    exact = ot.dist(a.numpy(), b.numpy(), "euclidean").mean()
    inner = [ot.dist(x.numpy(), x.numpy(), "euclidean").mean() for x in (a, b)]
    assert demo.energy_distance(a, b) == pytest.approx(2 * exact - sum(inner), abs=1e-6)


def test_sinkhorn_means_are_the_barycentric_projection():
    x0, x1 = randn(60, 2), randn(80, 2, seed=1)
    cost = ot.dist(x0.numpy(), x1.numpy()) / 2
    plan = torch.from_numpy(ot.sinkhorn(ot.unif(60), ot.unif(80), cost, 0.5, stopThr=1e-12))
    expected = plan @ x1 / plan.sum(1, keepdim=True)
    got = demo.sinkhorn_means(x0, x0, x1, 0.5)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_end_points_of_an_untrained_bridge_are_far_from_the_data(monkeypatch):
    monkeypatch.setattr(demo, "DRAWS", {"process": 2, "data": 4})
    bridge = LightSB(2, 5, demo.EPSILON)
    generator = torch.Generator().manual_seed(0)
    ratios = demo.end_point_ratios(bridge, 0, generator, count=300)
    assert ratios["data"] > 5
    assert ratios["bridge"] < 3 and ratios["euler"] < 3


def test_swiss_roll_training_lowers_the_loss():
    bridge, losses = demo.train_swiss_roll(0, 300, n_potentials=50)
    assert np.mean(losses[-50:]) < np.mean(losses[:20]) - 0.1
    assert all(math.isfinite(loss) for loss in losses)
    assert bridge.sample(torch.zeros(3, 2), 2).shape == (2, 3, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 3, 1.0), "dim=0"),
        ((2, 0, 1.0), "n_potentials=0"),
        ((2, 3, 0.0), "epsilon=0.0: must be positive"),
        ((2, 3, -1.0), "epsilon=-1.0"),
        ((2, 3, math.nan), "epsilon=nan"),
        ((2, 3, 1.0, "round"), "covariance='round'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LightSB(*arguments)


def test_bad_samples_and_components_are_refused():
    bridge = LightSB(2, 3, 1.0, "full")
    good = torch.zeros(4, 2)
    bad = good.clone()
    bad[2, 1] = math.nan
    for call in (bridge.log_c, bridge.log_v, bridge.sample, bridge.initialise):
        with pytest.raises(ValueError, match=r"\[2\] is \[0.0, nan\]: samples must be finite"):
            call(bad)
    with pytest.raises(ValueError, match=r"must be \(samples, 2\)"):
        bridge.loss(good, torch.zeros(4, 3))
    for t in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="must be from 0 to below 1"):
            bridge.drift(good, t)
    with pytest.raises(ValueError, match="n_steps=0"):
        bridge.trajectory(good, 0)
    with pytest.raises(ValueError, match="method='rk4'"):
        bridge.trajectory(good, 3, "rk4")
    with pytest.raises(ValueError, match="steps=0"):
        bridge.fit(lambda n: good, lambda n: good, 0)
    alpha, r, s = torch.ones(3), torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2).clone()
    skew = s.clone()
    skew[1, 0, 1] = 0.5
    with pytest.raises(ValueError, match="not symmetric, by 0.5"):
        bridge.set_components(alpha, r, skew)
    with pytest.raises(ValueError, match=r"S\[0\] is not positive definite"):
        bridge.set_components(alpha, r, -s)
    with pytest.raises(ValueError, match="weight of 0.0"):
        bridge.set_components(0 * alpha, r, s)
    with pytest.raises(ValueError, match=r"must be \(3,\), \(3, 2\), \(3, 2, 2\)"):
        bridge.set_components(alpha, r[:2], s)
    for name, arguments in (
        ("alpha", (math.inf * alpha, r, s)),
        ("r", (alpha, r + math.nan, s)),
        ("S", (alpha, r, s * math.inf)),
    ):
        with pytest.raises(ValueError, match=rf"{name}\[0\] is .*: components must be finite"):
            bridge.set_components(*arguments)
    with pytest.raises(ValueError, match=r"x0 is torch.float64: must be torch.float32"):
        bridge.log_c(good.double())
    tilted = s + 0.3 * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="S is not diagonal"):
        LightSB(2, 3, 1.0).set_components(alpha, r, tilted)
    tilted[0] = 1e6 * torch.eye(2)
    with pytest.raises(ValueError, match="S is not diagonal"):
        LightSB(2, 3, 1.0).set_components(alpha, r, tilted)


def test_rounding_is_no_asymmetry():
    s = torch.tensor([[[1.0, 1e-9], [0.0, 1.0]]])
    LightSB(2, 1, 1.0, "full").set_components(torch.ones(1), torch.zeros(1, 2), s)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epsilon": -1.0}, "epsilon=-1.0: must be positive"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"mean1": torch.zeros(3)}, r"covariance0 has shape \(2, 2\): must be \(3, 3\)"),
        ({"covariance1": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "not symmetric, by 0.5"),
        ({"covariance1": torch.full((2, 2), math.nan)}, "covariance1 is not symmetric, by nan"),
        ({"covariance0": torch.zeros(2, 2)}, "covariance0 is not positive definite"),
    ],
)
def test_closed_form_refuses_what_is_no_gaussian(change, message):
    law = {
        "covariance0": torch.eye(2),
        "mean1": torch.zeros(2),
        "covariance1": torch.eye(2),
        "epsilon": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        gaussian_bridge(**law | change)
