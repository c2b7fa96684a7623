"""SSVI: scores, noise, compact gradients, updates by an interpreter, figures, bad input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn
from torch.nn import functional

import sat
from sat.methods.ssvi import (
    CRITERIA,
    SSVI,
    SparseBayesConv2d,
    SparseBayesLinear,
    expected_calibration_error,
    fit,
    negative_log_likelihood,
    predict,
    removal_score,
    replace_fraction,
    training_flops,
)
from sat.methods.ssvi.demo import build, load_digits
from sat.methods.ssvi.training import using


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scores(mu, sigma, criterion, **options):
    return removal_score(torch.tensor(mu), torch.tensor(sigma), criterion, **options)


# ------------------------------------------------------------------------------------- scores


def moment(mu, sigma, function):
    """E function(|theta|) by the trapezoidal rule, on either side of the kink at 0."""
    total = 0.0
    for sign in (-1, 1):
        t = np.linspace(0, abs(mu) + 25 * sigma, 20_001)
        values = function(t) * norm(mu, sigma).pdf(sign * t)
        total += float(np.trapezoid(values, t))
    return total


@given(st.floats(-3, 3), st.floats(0.05, 2), st.floats(0.2, 2))
@settings(max_examples=25)
def test_scores_are_their_integrals(mu, sigma, lam):
    mean = moment(mu, sigma, lambda t: t)
    deviation = math.sqrt(mu * mu + sigma * sigma - mean * mean)
    first = moment(mu, sigma, lambda t: np.exp(lam * t))
    second = moment(mu, sigma, lambda t: np.exp(2 * lam * t))
    expected = {
        "snr_abs": mean / deviation, "snr": abs(mu) / sigma, "mean": abs(mu), "e_abs": mean,
        "e_exp": math.log(first), "snr_exp": first / math.sqrt(second - first * first),
    }  # fmt: skip
    assert set(expected) == set(CRITERIA)
    for name, value in expected.items():
        found = removal_score(
            torch.tensor([mu], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64),
            name, lam,
        )  # fmt: skip
        assert float(found) == pytest.approx(value, rel=1e-5, abs=1e-9), name


def test_the_score_in_numbers_and_where_the_direct_formula_fails():
    assert float(scores([0.0], [1.0], "snr_abs")) == pytest.approx(1.3236, abs=1e-4)
    assert float(scores([0.3], [0.4], "e_abs")) == pytest.approx(0.40493, abs=1e-5)
    assert float(scores([0.3], [0.4], "snr_abs")) == pytest.approx(1.38058, abs=1e-5)
    large = scores([1e3, 1e4, 1e6], [1.0, 1.0, 1.0], "snr_abs")
    np.testing.assert_allclose(large, [1e3, 1e4, 1e6], rtol=1e-12)
    assert bool(torch.isfinite(scores([900.0], [1.0], "e_exp")).all())


@given(st.integers(0, 9999))
@settings(max_examples=20)
def test_snr_abs_ranks_as_r_does(seed):
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.rand(200, generator=generator, dtype=torch.float64) + 0.01
    r = 10 ** torch.empty_like(sigma).uniform_(-2, 1.4, generator=generator)
    order = r.argsort()
    assert torch.equal(
        removal_score(r * sigma, sigma, "snr_abs")[order].diff() > 0, r[order].diff() > 0
    )


def test_fractions():
    assert replace_fraction(0, 100) == 0.3 and replace_fraction(50, 100, 1.0) == pytest.approx(0.5)
    assert replace_fraction(100, 100) == replace_fraction(200, 100) == 0


# ------------------------------------------------------------------------------------- layers


def test_noise_has_its_law():
    layer = SparseBayesLinear(32, 4, 0.5, sigma_init=0.4)
    x = torch.randn(32)
    with torch.no_grad():
        out = layer(x.expand(20_000, 32))
        mean, dense = layer.scatter(layer.mu) @ x, layer.scatter(layer.sigma)
        deviation = (dense.square() @ x.square()).sqrt()
    np.testing.assert_allclose((out.mean(0) - mean) / deviation * math.sqrt(2e4), 0, atol=3.5)
    np.testing.assert_allclose(out.std(0) / deviation, 1, atol=0.02)
    # Noise of an output is its own: not one draw of weights for a batch.
    assert abs(float(torch.corrcoef(out.T[:2])[0, 1])) < 0.03
    assert float(out.std(0).min()) > 0 and not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x, sample=False), layer(x, sample=False))


def test_weights_are_drawn_once_for_a_batch():
    layer = SparseBayesLinear(8, 3, 0.5, sigma_init=0.4)
    with using(layer, "weights"), torch.no_grad():
        out = layer(torch.eye(8))
    assert not bool(out[:, :].mT[~layer.mask].any())  # inactive weights are 0 in every draw
    assert bool((out.mT[layer.mask] != layer.mu).all())


def test_kl_is_torchs_of_active_weights():
    layer = SparseBayesLinear(8, 8, 0.25, prior_std=0.3, sigma_init=0.2)
    own = torch.distributions.Normal(layer.mu, layer.sigma)
    exact = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 0.3)).sum()
    torch.testing.assert_close(layer.kl(), exact)
    assert float(SparseBayesLinear(8, 8, 0.25, bayes=False).kl()) == 0


@given(st.sampled_from(("0.3", "1", "2:8", "2:4")), st.booleans(), st.integers(0, 99))
@settings(max_examples=20)
def test_gradients_are_those_of_the_dense_layer_at_active_places(kind, wanted, seed):
    torch.manual_seed(seed)
    options = {"pattern": kind} if ":" in kind else {"density": float(kind)}
    layer = SparseBayesLinear(16, 5, sigma_init=0.3, **options).double()
    layer.want_dense_gradient(wanted)
    x = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    weight = layer.scatter(layer.mu).detach().requires_grad_()
    spread = layer.scatter(layer.sigma.square()).detach().requires_grad_()
    again = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    noise = torch.randn(3, 7, 5, dtype=torch.float64)
    dense = again @ weight.mT + noise * (again.square() @ spread.mT + 1e-8).sqrt() + layer.bias
    torch.manual_seed(seed)
    out = layer(x)
    torch.testing.assert_close(out, dense)
    (out**3).sum().backward()
    (dense**3).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    torch.testing.assert_close(layer.mu.grad, weight.grad.flatten()[layer.places])
    chain = 2 * layer.sigma * torch.sigmoid(layer.rho)
    torch.testing.assert_close(layer.rho.grad, chain.detach() * spread.grad.flatten()[layer.places])
    if wanted:
        torch.testing.assert_close(layer.dense_gradient, weight.grad)
    else:
        assert layer.dense_gradient is None


def test_convolutions_are_torchs_with_the_scattered_weight():
    layer = SparseBayesConv2d(4, 6, 3, pattern="2:4", stride=2, padding=1, dilation=2)
    x = torch.randn(2, 4, 9, 8)
    weight = layer.scatter(layer.mu).view(6, 4, 3, 3)
    expected = functional.conv2d(x, weight, layer.bias, stride=2, padding=1, dilation=2)
    torch.testing.assert_close(layer(x, sample=False), expected, atol=1e-5, rtol=1e-5)
    spread = layer.scatter(layer.sigma.square()).view(6, 4, 3, 3)
    exact = functional.conv2d(x.square(), spread, stride=2, padding=1, dilation=2).sqrt()
    with torch.no_grad():
        draws = torch.stack([layer(x) for _ in range(400)])
    assert float((draws.std(0) / exact).detach().mean()) == pytest.approx(1, abs=0.01)


def test_only_active_weights_are_stored():
    layer = SparseBayesLinear(64, 32, 0.05)
    assert sum(p.numel() for p in layer.parameters()) == 2 * round(0.05 * 64 * 32) + 32
    assert set(layer.state_dict()) == {"mu", "rho", "bias", "places"}
    layer(torch.randn(2, 64)).sum().backward()
    other = SparseBayesLinear(64, 32, 0.05)
    other.load_state_dict(copy.deepcopy(layer).state_dict())
    assert torch.equal(other.mask, layer.mask) and int(layer.mask.sum()) == 102


def test_a_pattern_runs_from_compact_copies():
    layer = nn.Sequential(SparseBayesLinear(32, 16, pattern="2:8", sigma_init=0.2))
    x = torch.randn(6, 32)
    plain = layer[0](x, sample=False)
    report = sat.sparsify_(layer, "srste", "2:8")
    assert sorted(row.pattern for row in report.layers if "product" in row.name) == ["2:8", "2:8"]
    torch.testing.assert_close(layer[0](x, sample=False), plain, atol=5e-3, rtol=5e-3)
    with sat.offload("golden") as report:
        layer[0](x).sum().backward()
    sizes = sorted(work.size for work in report)
    assert sizes.count("6 x 32 x 16 2:8") == 2


# ------------------------------------------------------------------------------------ updates


def interpret(weights, gradient, worth, count, m, columns):
    """Replace weights of one layer, by the rules, one by one: places to (mu, rho)."""
    weights = dict(weights)
    gone = sorted(weights, key=lambda place: worth[place])[:count]
    kept = {place: weights[place] for place in weights if place not in gone}
    free = [place for place in range(gradient.size) if place not in kept]
    free.sort(key=lambda place: -abs(gradient.flat[place]))
    if m is None:
        added = free[:count]
    else:
        added = []
        for group in {place // m for place in gone}:
            lost = sum(place // m == group for place in gone)
            added += [place for place in free if place // m == group][:lost]
    rho = np.mean([value[1] for value in kept.values()])
    return kept | {p: weights.get(p, (0.0, rho)) for p in added}


@given(st.sampled_from((None, "2:4", "2:8")), st.integers(0, 99), st.sampled_from(CRITERIA))
@settings(max_examples=25)
def test_an_update_is_the_interpreters(pattern, seed, criterion):
    torch.manual_seed(seed)
    options = {"density": 0.3} if pattern is None else {"pattern": pattern}
    layer = SparseBayesLinear(16, 6, **options)
    with torch.no_grad():
        layer.rho.normal_(-2, 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0, momentum=0.9)
    layer(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    search = SSVI(layer, delta=2, alpha=1.0, t_end=10, criterion=criterion, optimizer=optimizer)
    assert search.before_backward(2) and not search.before_backward(3)
    search.before_backward(2)
    layer(torch.randn(4, 16)).square().sum().backward()
    gradient = layer.dense_gradient.numpy().copy()
    places = layer.places.tolist()
    before = dict(zip(places, zip(layer.mu.tolist(), layer.rho.tolist(), strict=True), strict=True))
    momentum = dict(zip(places, optimizer.state[layer.mu]["momentum_buffer"].tolist(), strict=True))
    worth = dict(zip(places, removal_score(layer.mu, layer.sigma, criterion).tolist(), strict=True))
    count = int(replace_fraction(2, 10, 1.0) * len(places))
    m = None if pattern is None else int(pattern[2:])
    expected = interpret(before, gradient, worth, count, m, 16)
    report = search.update(2)
    after = dict(
        zip(
            layer.places.tolist(),
            zip(layer.mu.tolist(), layer.rho.tolist(), strict=True),
            strict=True,
        )
    )
    assert set(after) == set(expected) and len(after) == len(places)
    for place, value in expected.items():
        assert after[place] == pytest.approx(value, rel=1e-5), place
    left = dict(
        zip(
            layer.places.tolist(),
            optimizer.state[layer.mu]["momentum_buffer"].tolist(),
            strict=True,
        )
    )
    for place, value in left.items():
        assert value == (momentum[place] if place in before else 0.0)
    (row,) = report.layers
    assert row.active == len(places) and len(row.dropped) == len(row.added) == count
    assert report.dropped == count and report.added == len(set(after) - set(before))
    if m is not None:
        assert bool((layer.mask.view(-1, m).sum(1) == 2).all())


def test_new_deviations_and_gradients_of_means():
    layer = SparseBayesLinear(16, 8, 0.2, sigma_init=0.5)
    search = SSVI(layer, delta=1, alpha=1.0, t_end=10, growth="grad_mean", new_sigma="eps")
    search.before_backward(1)
    x = torch.randn(5, 16)
    out = layer(x)
    torch.testing.assert_close(out, layer(x, sample=False))  # no noise on a step that updates
    out.square().sum().backward()
    before = set(layer.places.tolist())
    search.update(1)
    new = torch.tensor([place not in before for place in layer.places.tolist()])
    assert bool(new.any()) and not bool(layer.mu[new].any())
    torch.testing.assert_close(layer.sigma[new], torch.full((int(new.sum()),), 1e-6))
    search.before_backward(11)
    assert layer.mode == "noise"


def test_a_step_that_updates_changes_no_value_and_others_no_place():
    data = load_digits(0)
    model = build(density=0.1)
    seen = []
    step = torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        seen.append(
            [module.places.clone() for module in model if isinstance(module, SparseBayesLinear)]
        )
        return step(self, *args, **kwargs)

    torch.optim.SGD.step = watched
    try:
        report = fit(model, data.train_x[:320], data.train_y[:320], epochs=4, delta=4, stop=1.0)
    finally:
        torch.optim.SGD.step = step
    assert len(report.losses) == 20 and len(seen) == 20 - len(report.updates) == 16
    assert [update.step for update in report.updates] == [4, 8, 12, 16]
    # Places change between a step and the next where there was an update, and only there.
    changed = [
        not all(torch.equal(a, b) for a, b in zip(x, y, strict=True))
        for x, y in zip(seen, seen[1:], strict=False)
    ]
    assert [i for i, change in enumerate(changed) if change] == [3, 6, 9, 12]


# ----------------------------------------------------------------------- training and figures


def test_training_learns_and_is_its_seed():
    data = load_digits(0)

    def trained(**options):
        torch.manual_seed(0)
        model = build(density=0.1)
        order = torch.Generator().manual_seed(0)
        return model, fit(model, data.train_x, data.train_y, epochs=4, generator=order, **options)

    model, report = trained()
    p = predict(model, data.test_x, 5)
    assert float((p.argmax(1) == data.test_y).double().mean()) > 0.8
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    still = trained(static=True)[1]
    assert report.losses == trained()[1].losses != still.losses
    assert still.updates == [] and report.sigma == pytest.approx(0.01, rel=0.1)
    assert trained(rho_lr=5.0)[1].sigma > 1.02 * report.sigma


def test_the_ramp_and_the_samples_weigh_the_divergence():
    x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    model = build(density=0.1, bayes=True)
    first = copy.deepcopy(model)
    kl = float(sum(m.kl() for m in model if isinstance(m, SparseBayesLinear)).detach())
    for scale, epochs in ((0.0, 4), (1.0, 4)):
        model = copy.deepcopy(first)
        torch.manual_seed(1)
        losses = fit(model, x, y, epochs=epochs, lr=1e-9, rho_lr=1e-9, kl_scale=scale).losses
        if scale == 0:
            plain = losses
    # One step an epoch: ramps 0, 0.5, 1, 1 times KL / 64.
    np.testing.assert_allclose(
        np.subtract(losses, plain), np.array([0, 0.5, 1, 1]) * kl / 64, rtol=1e-3
    )


@given(st.integers(0, 999), st.integers(1, 20))
@settings(max_examples=20)
def test_calibration_error_by_its_bins(seed, bins):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(4), 60)
    y = rng.integers(0, 4, 60)
    total = 0.0
    for b in range(bins):
        inside = (p.max(1) > b / bins) & (p.max(1) <= (b + 1) / bins)
        if inside.any():
            right = (p.argmax(1) == y)[inside].mean()
            total += inside.mean() * abs(right - p.max(1)[inside].mean())
    found = expected_calibration_error(torch.tensor(p), torch.tensor(y), bins)
    assert found == pytest.approx(total, abs=1e-9)
    nll = -np.log(p[range(60), y]).mean()
    assert negative_log_likelihood(torch.tensor(p), torch.tensor(y)) == pytest.approx(nll)


def test_flops_by_hand():
    model = nn.Sequential(SparseBayesLinear(10, 20, 0.1), SparseBayesLinear(20, 5, 1.0))
    # 6 products at 20 of 200 places, and a tenth of one at the other 180; 6 at 100 places.
    assert training_flops(model, steps=3, delta=10, batch=4) == pytest.approx(
        2 * 4 * 3 * (6 * 20 + 18 + 6 * 100)
    )
    assert training_flops(model, 1.0, batch=1) == 2 * 6 * 300


# ---------------------------------------------------------------------------------- bad input


def linear(**options):
    return SparseBayesLinear(16, 4, **options)


def _fit(**options):
    data = torch.randn(8, 16), torch.zeros(8, dtype=torch.int64)
    return fit(linear(density=0.5), *data, **{"batch": 4, "epochs": 1} | options)


P, Y = torch.full((2, 2), 0.5), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear(density=0.0), ValueError, "density=0.0: must be above 0, at most 1"),
        (lambda: linear(density=1.1), ValueError, "density=1.1: must be above 0, at most 1"),
        (lambda: linear(density=0.01), ValueError, "density=0.01: .* leave 4 x 16 places a weight"),
        (lambda: linear(), ValueError, "density=None: must be given without a pattern"),
        (lambda: linear(density=0.5, prior_std=0.0), ValueError, "prior_std=0.0: must be positive"),
        (lambda: linear(density=0.5, sigma_init=-1.0), ValueError, "sigma_init=-1.0: must be"),
        (lambda: linear(density=0.5, mu_init=-1.0), ValueError, "mu_init=-1.0: must be finite"),
        (lambda: SparseBayesLinear(12, 4, pattern="2:8"), ValueError, "must be a multiple of M"),
        (lambda: linear(density=0.5, pattern="2:8"), ValueError, "must be N/M = 0.25"),
        (lambda: SparseBayesLinear(0, 4, 1.0), ValueError, "inputs=0: must be a positive int"),
        (lambda: linear(density=0.5)(torch.zeros(2, 15)), ValueError, "last axis must be 16"),
        (lambda: SparseBayesConv2d(2, 2, 0, 1.0), ValueError, "kernel_size=0: must be an int"),
        (lambda: SparseBayesConv2d(2, 2, 3, 1.0)(torch.zeros(1, 2, 2, 2)), ValueError, "must hold"),
        (lambda: SparseBayesConv2d(2, 2, 3, 1.0)(torch.zeros(1, 3, 4, 4)), ValueError, "must be"),
        (lambda: SSVI(linear(density=0.5), delta=0, t_end=5), ValueError, "delta=0: must be"),
        (lambda: SSVI(linear(density=0.5), alpha=0.0, t_end=5), ValueError, "alpha=0.0: must be"),
        (lambda: SSVI(linear(density=0.5), t_end=0), ValueError, "t_end=0: must be positive"),
        (lambda: SSVI(linear(density=0.5), t_end=5, criterion="x"), ValueError, "one of snr_abs"),
        (lambda: SSVI(linear(density=0.5), t_end=5, growth="x"), ValueError, "growth='x': must"),
        (lambda: SSVI(linear(density=0.5), t_end=5, new_sigma="x"), ValueError, "new_sigma='x'"),
        (lambda: SSVI(linear(density=0.5), 0.1, t_end=5), ValueError, "layer '' has 0.5"),
        (lambda: SSVI(linear(density=1.0), t_end=5), ValueError, "nothing to update"),
        (lambda: SSVI(linear(density=0.5, bayes=False), t_end=5), ValueError, "choose 'mean'"),
        (lambda: SSVI(linear(density=0.5), t_end=5).update(1), RuntimeError, "no dense gradient"),
        (lambda: scores([1.0], [1.0], "x"), ValueError, "criterion='x': must be one of snr_abs"),
        (lambda: scores([1.0], [1.0], "snr", lam=0.0), ValueError, "lam=0.0: must be positive"),
        (lambda: scores([1.0], [1.0, 2.0], "snr"), ValueError, "must be the same"),
        (lambda: scores([1.0], [0.0], "snr"), FloatingPointError, "sigma positive"),
        (lambda: scores([math.nan], [1.0], "snr"), FloatingPointError, "must be finite"),
        (lambda: replace_fraction(-1, 5), ValueError, "step=-1: must not be negative"),
        (lambda: predict(linear(density=0.5), torch.zeros(1, 16), 0), ValueError, "samples=0"),
        (lambda: predict(nn.Linear(2, 2), torch.zeros(1, 2)), ValueError, "no SparseBayesLayer"),
        (lambda: expected_calibration_error(P, Y + 1), ValueError, "labels from 1 to 2: must be"),
        (lambda: expected_calibration_error(P, Y, 0), ValueError, "bins=0: must be"),
        (lambda: expected_calibration_error(P, Y[:1]), ValueError, r"p has shape \(2, 2\)"),
        (lambda: _fit(batch=9), ValueError, "at least batch=9"),
        (lambda: _fit(epochs=0), ValueError, "epochs=0: must be a positive int"),
        (lambda: _fit(stop=0.0), ValueError, "stop=0.0: must be above 0"),
        (lambda: _fit(kl_scale=-1.0), ValueError, "kl_scale=-1.0: must be finite"),
        (lambda: fit(linear(density=0.5), torch.zeros(4, 16), torch.full((4,), 4), batch=4),
         ValueError, "labels from 4 to 4: must be 0 to 3"),
        (lambda: training_flops(linear(density=0.5), 2.0), ValueError, "density=2.0: must be"),
        (lambda: training_flops(linear(density=0.5), delta=0), ValueError, "delta=0: must be"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_rule(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_layer_that_is_not_finite_is_named():
    model = build(density=0.1)
    with torch.no_grad():
        model[2].mu[0] = math.nan
    search = SSVI(model, delta=1, t_end=5)
    search.before_backward(1)
    model(torch.randn(4, 64)).sum().backward()
    with pytest.raises(FloatingPointError, match="layer '2': mu has infinities or NaNs"):
        search.update(1)
    with torch.no_grad():
        model[2].mu[0], model[4].rho[0] = 0, math.inf
    with pytest.raises(FloatingPointError, match="of 128 inputs and 10 outputs': sigma has"):
        model(torch.randn(4, 64))
