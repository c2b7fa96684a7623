"""DMCMC: integrators on known laws, chains step by step, levels by Bayes, counts, bad input."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import sat
from sat.methods.dmcmc import (
    DLG,
    CheckedScore,
    ExactPosterior,
    GaussianMixtureVE,
    NoiseClassifier,
    denoise,
    dmcmc_sample,
    euler_maruyama,
    from_noise,
    from_vp,
    geometric_levels,
    kar1,
    kar2,
    karras_levels,
    noise_levels,
    predictor_corrector,
    probability_flow,
    train_classifier,
)
from sat.methods.dmcmc.demo import ring_chains
from sat.methods.problems.mixtures import GaussianMixture

F64 = torch.float64
VARIANCES = torch.tensor([0.72, 0.18], dtype=F64)
MEAN = torch.tensor([0.4, -0.3], dtype=F64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_law():
    return GaussianMixtureVE(torch.ones(1), MEAN[None], VARIANCES.diag()[None])


def two_points():
    means = torch.tensor([[-1.0], [1.0]], dtype=F64)
    return GaussianMixtureVE(
        torch.tensor([0.3, 0.7], dtype=F64), means, torch.full((2, 1, 1), 0.01)
    )


def flow(x, above, below):
    """The normal law's probability flow, level to level: the exact answer."""
    shrink = (VARIANCES + below[:, None] ** 2) / (VARIANCES + above[:, None] ** 2)
    return MEAN + shrink.sqrt() * (x - MEAN)


def starts(n=40, seed=0):
    """Samples of the normal law, each at a level of its own."""
    sigma = 0.1 + 4.9 * torch.rand(n, generator=seeded(seed), dtype=F64)
    z = torch.randn(n, 2, generator=seeded(seed + 1), dtype=F64)
    return MEAN + (VARIANCES + sigma[:, None] ** 2).sqrt() * z, sigma


# ------------------------------------------------------------------------------------------ levels


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 50), st.floats(1e-3, 1.0), st.floats(1.1, 1e3))
def test_levels_are_log_uniform(T, smin, ratio):
    levels = noise_levels(T, smin, smin * ratio)
    assert levels.dtype == F64 and levels.shape == (T,)
    known = smin * ratio ** np.linspace(1, 1e-3, T)
    np.testing.assert_allclose(levels.numpy(), known, rtol=1e-12)
    assert bool((levels.diff() < 0).all()) and float(levels[-1]) > smin


def test_exact_posterior_is_bayes_by_scipy():
    law, levels = two_points(), noise_levels(7, 0.05, 2.0)
    x = torch.linspace(-3, 3, 11, dtype=F64)[:, None]
    got = ExactPosterior(law, levels).log_probs(x).numpy()
    densities = np.zeros((11, 7))
    for weight, mean in ((0.3, -1), (0.7, 1)):
        deviations = np.sqrt(0.01 + levels.numpy() ** 2)
        densities += weight * stats.norm.pdf(x.numpy(), mean, deviations)
    np.testing.assert_allclose(got, np.log(densities / densities.sum(1, keepdims=True)), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.integers(0, 9))
def test_integrators_levels_reach_from_each_samples_own(steps, seed):
    sigma = 0.01 + torch.rand(5, generator=seeded(seed), dtype=F64)
    karras = karras_levels(sigma, steps, 0.01)
    assert karras.shape == (steps, 5) and not karras[-1].any()
    torch.testing.assert_close(karras[0], sigma)
    torch.testing.assert_close(karras[-2], torch.full_like(sigma, 0.01))
    roots = karras[:-1] ** (1 / 7)
    even = roots.diff(dim=0)
    torch.testing.assert_close(even, even[:1].expand_as(even))
    geometric = geometric_levels(sigma, steps, 0.01)
    assert geometric.shape == (steps + 1, 5)
    logs = geometric.log().diff(dim=0)
    torch.testing.assert_close(logs, logs[:1].expand_as(logs))
    torch.testing.assert_close(geometric[-1], torch.full_like(sigma, 0.01))


# ------------------------------------------------------------------------------------- integrators


def test_kar1_is_of_second_order_from_every_samples_level():
    x, sigma = starts()
    known = flow(x, sigma, torch.full_like(sigma, 0.01))
    errors = [
        float((kar1(normal_law().score, x, sigma, steps=n, to_zero=False) - known).abs().max())
        for n in (40, 80)
    ]
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.3 and errors[1] < 1e-3


def test_kar1_by_hand():
    """Two levels: a step of Heun's, then Euler's to 0."""
    law, (x, sigma) = normal_law(), starts(4)
    low = torch.full_like(sigma, 0.2)
    first = -sigma[:, None] * law.score(x, sigma)
    moved = x + (low - sigma)[:, None] * first
    second = -low[:, None] * law.score(moved, low)
    x1 = x + (low - sigma)[:, None] * (first + second) / 2
    expected = x1 + low[:, None] ** 2 * law.score(x1, low)
    got = kar1(law.score, x, sigma.clamp(min=0.2), steps=3, sigma_min=0.2)
    torch.testing.assert_close(got[sigma >= 0.2], expected[sigma >= 0.2])


@pytest.mark.parametrize(
    "integrator,evaluations",
    [
        (partial(kar1, steps=5), 7), (partial(kar2, steps=5), 7), (partial(kar1, steps=3), 3),
        (partial(kar1, steps=5, to_zero=False), 6),
        (partial(euler_maruyama, steps=6), 6), (partial(predictor_corrector, steps=6), 12),
    ],
)  # fmt: skip
def test_evaluations_are_as_said(integrator, evaluations):
    score = CheckedScore(normal_law().score)
    x, sigma = starts(3)
    integrator(score, x, sigma, seeded())
    assert score.evaluations == evaluations


@pytest.mark.parametrize(
    "integrator",
    [
        partial(kar1, steps=25), partial(kar2, steps=25), partial(kar2, steps=25, churn=20.0),
        partial(euler_maruyama, steps=200), partial(predictor_corrector, steps=100),
        probability_flow,
    ],
)  # fmt: skip
def test_integrators_end_in_the_law(integrator):
    """From its own noised law at a level each, samples end with its mean and variances."""
    x, sigma = starts(4000)
    end = integrator(normal_law().score, x, sigma, seeded(5))
    error = 4.5 / math.sqrt(4000)
    for got, mean, variance in zip(end.T, MEAN, VARIANCES, strict=True):
        deviation = math.sqrt(float(variance))
        assert float(got.mean()) == pytest.approx(float(mean), abs=error * deviation)
        assert float(got.var()) == pytest.approx(float(variance), rel=0.1)


class Network(nn.Module):
    """The score of a standard normal law, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x, s):
        return -self.weight * x / (1 + s[:, None] ** 2)


@pytest.mark.parametrize(
    "integrator", [partial(kar1, steps=3), partial(kar2, steps=3), partial(euler_maruyama, steps=3),
                   partial(predictor_corrector, steps=3), probability_flow],
)  # fmt: skip
def test_networks_leave_no_graph_behind(integrator):
    """A chain that kept it would hold all of its past in memory."""
    score, levels = Network(), noise_levels(20, 0.05, 4.0)
    chains = DLG(score, ExactPosterior(normal_law(), levels), levels, 0.1)
    chains.start(3, 2, seeded(), warm_up=1)
    made = dmcmc_sample(chains, integrator, 5, 2, generator=seeded())
    plain = from_noise(score, integrator, 4, 2, 4.0, seeded())
    integrated = integrator(score, torch.ones(2, 2, dtype=F64), torch.ones(2, dtype=F64), seeded())
    for x in (chains.x, made.x, plain.x, integrated):
        assert not x.requires_grad


def test_an_adaptive_integrator_that_fails_says_so_and_is_counted_in_full():
    def wall(x, s):
        return torch.where(s[:, None] > 0.5, -x, 1e300 * x)

    with (
        pytest.raises(FloatingPointError, match="probability flow down to 0.01: "),
        np.errstate(all="ignore"),
    ):
        probability_flow(wall, torch.ones(1, 1, dtype=F64), torch.ones(1, dtype=F64))
    rounds = []

    def varying(score, x, s, generator):
        rounds.append(None)
        for _ in rounds:
            x = x + 0 * score(x, s)
        return x

    dlg = started(normal_law().score)
    made = dmcmc_sample(dlg, varying, 6, 1, generator=seeded())
    assert dlg.score.evaluations == 1 + 1 + 1 + 1 + 2 + 1 and made.evaluations_per_sample == 4


def test_probability_flow_follows_the_exact_one():
    x, sigma = starts(10)
    got = probability_flow(normal_law().score, x, sigma, tolerance=1e-8)
    torch.testing.assert_close(got, flow(x, sigma, torch.full_like(sigma, 0.01)), atol=1e-6, rtol=0)


def test_euler_maruyama_and_reverse_noise_by_hand():
    law, (x, sigma) = normal_law(), starts(4)
    got = euler_maruyama(law.score, x, sigma, seeded(3), steps=3, sigma_min=0.05)
    draws, levels = seeded(3), geometric_levels(sigma, 3, 0.05)
    for now, then in zip(levels, levels[1:], strict=False):
        v = (now**2 - then**2)[:, None]
        z = torch.randn(4, 2, generator=draws, dtype=F64)
        x = x + v * law.score(x, now) + v.sqrt() * z
    torch.testing.assert_close(got, x)


def test_churn_raises_levels_within_its_range_alone():
    seen = []

    def score(x, s):
        seen.append(s.clone())
        return -x

    sigma = torch.tensor([5.0, 0.9, 0.04], dtype=F64)
    x = torch.zeros(3, 2, dtype=F64)
    kar2(score, x, sigma, seeded(), steps=3, sigma_min=0.01)
    torch.testing.assert_close(seen[0], sigma * torch.tensor([1, math.sqrt(2), 1], dtype=F64))
    seen.clear()
    kar2(score, x, sigma, seeded(), steps=3, sigma_min=0.01, churn=0.3)
    torch.testing.assert_close(seen[0], sigma * torch.tensor([1, 1.1, 1], dtype=F64))


def test_variance_preserving_models_are_read_as_exploding_ones():
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-1.0], [1.0]], dtype=F64),
        torch.full((2, 1, 1), 0.01),
    )  # fmt: skip
    x, s = torch.linspace(-2, 2, 9, dtype=F64)[:, None], torch.linspace(0.05, 3, 9, dtype=F64)
    torch.testing.assert_close(from_vp(mixture.eps)(x, s), two_points().score(x, s))


def test_tweedie_is_the_posterior_mean():
    x = torch.tensor([[0.9, 0.2]], dtype=F64)
    t = 0.3
    known = MEAN + VARIANCES / (VARIANCES + t**2) * (x - MEAN)
    torch.testing.assert_close(denoise(normal_law().score, x, t), known)


# ------------------------------------------------------------------------------------------ chains


def chains(select="sample", eta=0.05, **given):
    law, levels = normal_law(), noise_levels(20, 0.05, 4.0)
    return DLG(law.score, ExactPosterior(law, levels), levels, eta, select, **given)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("select", ["sample", "argmax"])
def test_a_step_is_langevins_then_a_level(select, adaptive):
    dlg, (x, s) = chains(select, adaptive=adaptive, radius=0.1), starts(6)
    got, level = dlg.step(x, s, seeded(7))
    draws = seeded(7)
    z = torch.randn(6, 2, generator=draws, dtype=F64)
    eta = (0.05 * (s**2 + 0.01) if adaptive else torch.full_like(s, 0.05))[:, None]
    expected = x + eta / 2 * normal_law().score(x, s) + eta.sqrt() * z
    torch.testing.assert_close(got, expected)
    shares = dlg.level_posterior.log_probs(expected).exp()
    if select == "argmax":
        chosen = shares.argmax(1)
    else:
        chosen = torch.multinomial(shares, 1, generator=draws)[:, 0]
    assert torch.equal(level, dlg.levels[chosen])


def test_levels_are_drawn_by_their_posterior():
    dlg = chains()
    x = torch.tensor([[1.5, -0.2]], dtype=F64)
    drawn = dlg.draw_level(x.expand(20_000, -1), seeded())
    shares = torch.isclose(drawn[:, None], dlg.levels).double().mean(0)
    known = dlg.level_posterior.log_probs(x).exp()[0]
    assert float((shares - known).abs().sum() / 2) < 0.02


class Scripted(DLG):
    """Chains whose levels are given beforehand; x counts steps."""

    def step(self, x, s, generator=None):
        return x + 1, self.script[int(x[0, 0])]


def test_the_least_level_of_a_window_and_the_chain_goes_on():
    dlg = Scripted(*(lambda d: (d.score, d.level_posterior, d.levels, 0.1))(chains()))
    dlg.script = torch.tensor([[0.5, 2.0], [0.9, 3.0], [0.1, 0.7], [0.8, 0.9]], dtype=F64)
    dlg.x, dlg.s = torch.zeros(2, 2, dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)
    x, s, x_min, s_min = dlg.run(2)
    assert x[:, 0].tolist() == [2, 2] and s.tolist() == [0.9, 3.0]
    assert s_min.tolist() == [0.5, 1.0] and x_min[:, 0].tolist() == [1, 0]
    x, s, x_min, s_min = dlg.run(2)  # from its last state, not from the least one
    assert x[:, 0].tolist() == [4, 4] and s_min.tolist() == [0.1, 0.7]
    assert x_min[:, 0].tolist() == [3, 3] and torch.equal(dlg.s, s)


def test_samples_are_counted_and_cut():
    dlg, began = chains(), []
    dlg.start(5, 2, seeded(), integrator=partial(kar1, steps=20, sigma_min=0.05), warm_up=3)
    assert dlg.start_evaluations == 37 + 3
    assert dlg.x.shape == (5, 2) and dlg.s.shape == (5,)

    def integrator(score, x, s, generator):
        began.append(s)
        return kar1(score, x, s, generator, steps=4)

    samples = dmcmc_sample(dlg, integrator, 12, 3, 0.01, seeded(1))
    assert samples.x.shape == (12, 2) and samples.evaluations_per_sample == 3 + 5 + 1
    assert samples.start_evaluations == 40
    assert torch.equal(samples.level_trace, torch.stack(began)) and len(began) == 3
    assert len(samples.level_trace.unique()) > 3  # each chain at a level of its own
    plain = from_noise(normal_law().score, partial(kar1, steps=4), 7, 2, 4.0, seeded())
    assert plain.x.shape == (7, 2) and plain.evaluations_per_sample == 6


def test_chains_start_from_noise_by_kar2():
    dlg = chains()
    dlg.start(400, 2, seeded(), warm_up=20)
    assert dlg.start_evaluations == 37 + 20
    assert float((dlg.x.mean(0) - MEAN).abs().max()) < 1  # near the data, not at 4 z
    assert bool(torch.isin(dlg.s, dlg.levels).all())


def test_chains_have_the_joint_law_and_least_levels_are_too_low():
    """From (x, s) the exact flow gives the law; the least of some levels is too low for its x."""
    dlg, low = chains(eta=0.1, adaptive=True, radius=0.4), torch.full((400,), 0.01, dtype=F64)
    dlg.start(400, 2, seeded(), integrator=partial(kar1, steps=20, sigma_min=0.05), warm_up=60)
    fair, least = [], []
    for _ in range(25):
        x, s, x_min, s_min = dlg.run(4, seeded(len(fair) + 1))
        fair.append(flow(x, s, low))
        least.append(flow(x_min, s_min, low))
    torch.testing.assert_close(torch.cat(fair).mean(0), MEAN, atol=0.12, rtol=0)
    torch.testing.assert_close(torch.cat(fair).var(0), VARIANCES, atol=0, rtol=0.12)
    assert bool((torch.cat(least).var(0) > 1.2 * VARIANCES).all())


def test_adaptive_steps_visit_all_levels_and_fixed_ones_do_not():
    off = {}
    for adaptive, eta in ((True, 0.1), (False, 0.2)):
        dlg = ring_chains(eta, adaptive)
        dlg.start(200, 2, seeded(), warm_up=40)
        visited = []
        for _ in range(60):
            dlg.run(1, seeded(len(visited)))
            visited.append(dlg.s)
        seen = torch.isclose(torch.cat(visited)[:, None], dlg.levels).double().mean(0)
        off[adaptive] = float((seen - 1 / 60).abs().sum() / 2)
    assert off[True] < 0.06 and off[False] > 0.3


# ------------------------------------------------------------------------------------- classifier


def test_classifier_learns_levels():
    law, levels = two_points(), noise_levels(10, 0.05, 5.0)
    torch.manual_seed(0)
    classifier = NoiseClassifier(1, levels, 32, center=0.0)
    data = law.sample(2000, seeded()).float()
    curve = train_classifier(classifier, data, steps=300, batch=128, lr=5e-3, generator=seeded())
    assert len(curve) == 300 and np.mean(curve[-30:]) < np.mean(curve[:30]) - 0.2
    x = data[:50]
    out = classifier.log_probs(x)
    assert out.shape == (50, 10) and out.dtype == torch.float32
    torch.testing.assert_close(out.exp().sum(1), torch.ones(50))
    # As good as Bayes to a fifth of a nat, on samples of its own.
    j = torch.randint(10, (3000,), generator=seeded(3))
    noisy = law.sample(3000, seeded(1)) + levels[j, None] * torch.randn(
        3000, 1, generator=seeded(2), dtype=F64
    )
    with torch.no_grad():
        mine = -classifier.log_probs(noisy)[torch.arange(3000), j].mean()
    known = -ExactPosterior(law, levels).log_probs(noisy)[torch.arange(3000), j].mean()
    assert float(known) - 0.02 < float(mine) < float(known) + 0.2


def test_classifier_takes_what_has_no_size():
    classifier = NoiseClassifier(3, noise_levels(4, 0.1, 1.0), 8)
    assert bool(classifier.log_probs(torch.full((2, 3), 0.5)).isfinite().all())


def test_classifier_serves_a_chain_under_offload():
    levels = noise_levels(8, 0.05, 4.0)
    torch.manual_seed(0)
    classifier = NoiseClassifier(16, levels, 16)
    layers = {r.name: r.pattern for r in sat.sparsify_(classifier, "bdwp", "2:8").layers}
    assert layers["layers.2"] == "2:8"
    law = GaussianMixtureVE(torch.ones(1), torch.zeros(1, 16), torch.eye(16)[None])
    dlg = DLG(law.score, classifier, levels, 0.05)
    with sat.offload("golden", precision="fp32") as report:
        dlg.start(4, 16, seeded(), warm_up=2)
        made = dmcmc_sample(dlg, partial(kar1, steps=3), 4, 2, 0.01, seeded())
    assert report.coverage == 1 and bool(made.x.isfinite().all())


# --------------------------------------------------------------------------------------- bad input


class Nan(nn.Module):
    def forward(self, x, s):
        return x * math.nan


def started(score):
    law, levels = normal_law(), noise_levels(20, 0.05, 4.0)
    dlg = DLG(score, ExactPosterior(law, levels), levels, 0.1)
    dlg.x, dlg.s = torch.zeros(3, 2, dtype=F64), torch.full((3,), 0.7, dtype=F64)
    return dlg


ONE = torch.ones(3, dtype=F64)
ZERO = torch.zeros(3, 2, dtype=F64)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: noise_levels(1, 0.1, 1.0), ValueError, "T=1: must be at least 2"),
        (lambda: noise_levels(3, 0.0, 1.0), ValueError, "smin=0.0, smax=1.0: must be 0 < smin"),
        (lambda: noise_levels(3, 1.0, 1.0), ValueError, "smin=1.0, smax=1.0: must be 0 < smin"),
        (
            lambda: ExactPosterior(two_points(), torch.tensor([1.0, 2.0, 1.5])), ValueError,
            "must rise or fall throughout",
        ),
        (
            lambda: ExactPosterior(two_points(), torch.tensor([1.0, 0.0])), ValueError,
            "levels: must be positive and finite",
        ),
        (lambda: ExactPosterior(two_points(), torch.ones(1)), ValueError, r"must be \(T,\)"),
        (lambda: chains(eta=0.0), ValueError, "eta=0.0: must be positive"),
        (lambda: chains(eta=-1.0), ValueError, "eta=-1.0: must be positive"),
        (lambda: chains(select="mean"), ValueError, "select='mean': must be one of"),
        (lambda: chains(radius=-1.0), ValueError, "radius=-1.0"),
        (
            lambda: DLG(
                Nan(), NoiseClassifier(2, noise_levels(5, 0.1, 1.0)), noise_levels(6, 0.1, 1.0), 1.0
            ), ValueError, "level_posterior has 5 levels, levels 6: must be the same",
        ),
        (lambda: chains().start(3, 2, seeded(), kick=-0.5), ValueError, "kick=-0.5: must be"),
        (lambda: chains().start(3, 2, seeded(), warm_up=-1), ValueError, "warm_up=-1: must be"),
        (lambda: kar2(Nan(), ZERO, ONE, steps=4, churn=-1.0), ValueError, "churn=-1.0: must be"),
        (
            lambda: from_noise(Nan(), partial(kar1, steps=4), 5, 2, -1.0, seeded()), ValueError,
            "smax=-1.0: must be positive",
        ),
        (lambda: chains().run(1), RuntimeError, "call start first"),
        (lambda: started(normal_law().score).run(0), ValueError, "n_skip=0: must be"),
        (lambda: chains().start(0, 2, seeded()), ValueError, "n_chains=0"),
        (lambda: chains().step(ZERO, ONE[:1]), ValueError, r"s has shape \(1,\): must be \(3,\)"),
        (
            lambda: started(Nan()).run(1), FloatingPointError,
            "evaluation 1: the score has NaNs or infinities, smallest s 0.7.*lower eta",
        ),
        (
            lambda: started(lambda x, s: x[:1]).run(1), FloatingPointError,
            r"the score has shape \(1, 2\)",
        ),
        (
            lambda: dmcmc_sample(chains(), partial(kar1, steps=4), 0, 1), ValueError,
            "n_samples=0: must be",
        ),
        (
            lambda: dmcmc_sample(chains(), partial(kar1, steps=4), 5, 0), ValueError,
            "n_skip=0: must be",
        ),
        (
            lambda: dmcmc_sample(chains(), partial(kar1, steps=4), 5, 1, 0.0), ValueError,
            "tweedie=0.0: must be positive",
        ),
        (
            lambda: from_noise(Nan(), partial(kar1, steps=4), 5, 2, 1.0, seeded()),
            FloatingPointError, "NaNs",
        ),
        (lambda: kar1(Nan(), ZERO, ONE, steps=2), ValueError, "steps=2: must be an int of at"),
        (lambda: kar2(Nan(), ZERO, ONE, steps=2), ValueError, "steps=2: must be an int of at"),
        (lambda: euler_maruyama(Nan(), ZERO, ONE, steps=0), ValueError, "steps=0: must be"),
        (
            lambda: kar1(Nan(), ZERO, ONE[0], steps=4), ValueError,
            r"sigma has shape \(\): must be \(3,\)",
        ),
        (
            lambda: probability_flow(Nan(), ZERO, ONE[:2]), ValueError,
            r"sigma has shape \(2,\): must be \(3,\)",
        ),
        (
            lambda: kar1(Nan(), ZERO, ONE, steps=4, sigma_min=2.0), ValueError,
            "sigma_min=2: must be 0 < sigma_min <= sigma",
        ),
        (lambda: kar1(Nan(), ZERO, 0 * ONE, steps=4), ValueError, "sigma from 0 to 0"),
        (
            lambda: predictor_corrector(Nan(), ZERO, ONE, steps=4, snr=0.0), ValueError,
            "snr=0.0: must be positive",
        ),
        (lambda: NoiseClassifier(0, noise_levels(3, 0.1, 1.0)), ValueError, "dim=0"),
        (
            lambda: NoiseClassifier(2, noise_levels(3, 0.1, 1.0)).log_probs(torch.zeros(2, 3)),
            ValueError, r"x has shape \(2, 3\): must be \(n, 2\)",
        ),
        (
            lambda: train_classifier(
                NoiseClassifier(2, noise_levels(3, 0.1, 1.0)), ZERO, steps=0, generator=seeded()
            ), ValueError, "steps=0: must be",
        ),
        (
            lambda: train_classifier(
                NoiseClassifier(2, noise_levels(3, 0.1, 1.0)), ZERO[:0], generator=seeded()
            ), ValueError, r"data has shape \(0, 2\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
