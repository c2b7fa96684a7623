"""Mixtures under noise against scipy's densities and autodiff; moments and their distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import sat
from sat.methods.problems.frechet import frechet_distance, sample_moments
from sat.methods.problems.mixtures import GaussianMixture, GaussianMixtureVE, ring

seeds = st.integers(0, 10**6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(components, dim, seed):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(components, 3.0))
    roots = rng.standard_normal((components, dim, dim)) / 2
    covariances = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(dim)
    means = 2 * rng.standard_normal((components, dim))
    return tuple(map(torch.from_numpy, (weights, means, covariances)))


def scipy_log_prob(weights, means, covariances, x):
    each = [
        math.log(w) + np.atleast_1d(multivariate_normal(m, c).logpdf(x))
        for w, m, c in zip(weights.numpy(), means.numpy(), covariances.numpy(), strict=True)
    ]
    return logsumexp(each, axis=0)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), seeds)
def test_densities_under_noise_are_scipys(components, dim, seed):
    w, m, c = parameters(components, dim, seed)
    x = 3 * torch.randn(4, dim, generator=generator(seed), dtype=torch.float64)
    mixture = GaussianMixture(w, m, c)
    levels = torch.tensor([0.0, 0.3, 2.0, 50.0], dtype=torch.float64)
    eye = torch.eye(dim, dtype=torch.float64)
    wide = [c + s**2 * eye for s in levels]
    expected = [scipy_log_prob(w, m, each, x.numpy()) for each in wide]
    got = mixture.ve.level_log_prob(x, levels)
    np.testing.assert_allclose(got.numpy(), np.stack(expected, 1), rtol=1e-10, atol=1e-10)
    # The same by one level a sample, and by one level for all.
    torch.testing.assert_close(mixture.ve.log_prob(x, levels), got.diagonal(), rtol=0, atol=1e-9)
    torch.testing.assert_close(mixture.ve.log_prob(x, 0.3), got[:, 1], rtol=0, atol=1e-9)
    for a in (1.0, 0.7, 1e-3):
        kept = a * c + (1 - a) * eye
        expected = scipy_log_prob(w, math.sqrt(a) * m, kept, x.numpy())
        np.testing.assert_allclose(mixture.log_prob(x, a).numpy(), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), seeds)
def test_scores_are_slopes_of_log_densities(components, dim, seed):
    mixture = GaussianMixture(*parameters(components, dim, seed))
    x = 3 * torch.randn(4, dim, generator=generator(seed), dtype=torch.float64)
    x.requires_grad_()
    s = torch.tensor([0.0, 0.3, 2.0, 50.0], dtype=torch.float64)
    a = torch.tensor([1.0, 0.9, 0.3, 1e-3], dtype=torch.float64)
    for log_prob, score in (
        (mixture.ve.log_prob(x, s), mixture.ve.score(x, s)),
        (mixture.log_prob(x, a), mixture.score(x, a)),
    ):
        (slope,) = torch.autograd.grad(log_prob.sum(), x)
        torch.testing.assert_close(score, slope, rtol=1e-9, atol=1e-10)
    # eps = -sqrt(1 - a) score, what the best denoiser predicts.
    expected = -(1 - a).sqrt()[:, None] * mixture.score(x, a)
    torch.testing.assert_close(mixture.eps(x, a), expected, rtol=1e-9, atol=1e-12)


def test_noise_predicted_is_the_mean_of_the_noise():
    """E[z | x] by weighing a million draws of the data by p(x | x_0)."""
    mixture, a = ring(3, std=0.3), 0.6
    data = mixture.sample(10**6, generator())
    for point in ([0.2, -0.4], [0.9, 0.3]):
        x = torch.tensor(point, dtype=torch.float64)
        z = (x - math.sqrt(a) * data) / math.sqrt(1 - a)
        weights = (-z.square().sum(1) / 2).exp()
        expected = (weights[:, None] * z).sum(0) / weights.sum()
        torch.testing.assert_close(mixture.eps(x[None], a)[0], expected, rtol=0, atol=5e-3)


def test_points_as_data_pull_straight_back():
    """A covariance of zeros: the noise is known exactly."""
    m = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(1), m, torch.zeros(1, 2, 2))
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    for a in (0.9, 0.1):
        expected = (x - math.sqrt(a) * m) / math.sqrt(1 - a)
        torch.testing.assert_close(mixture.eps(x, a), expected, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match=r"sigma=0.0: a covariance is singular.*raise sigma"):
        mixture.eps(x, 1.0)


@settings(max_examples=5)
@given(st.integers(1, 3), st.integers(1, 3), seeds)
def test_draws_have_the_moments(components, dim, seed):
    mixture = GaussianMixtureVE(*parameters(components, dim, seed))
    for sigma in (0.0, 1.5):
        mean, cov = mixture.moments(sigma)
        x = mixture.sample(40_000, generator(seed), sigma)
        got_mean, got_cov = sample_moments(x)
        spread = float(cov.diagonal().max())
        np.testing.assert_allclose(got_mean, mean.numpy(), atol=5 * math.sqrt(spread / 40_000))
        np.testing.assert_allclose(got_cov, cov.numpy(), atol=0.06 * spread)


def test_answers_have_the_dtype_of_x_and_bits_of_float64():
    mixture = ring()
    assert mixture.ve.weights.dtype == torch.float64 and len(mixture.ve.means) == 8
    x = torch.randn(6, 2, generator=generator())
    for function in (mixture.eps, mixture.score, mixture.log_prob):
        got = function(x, 0.999)
        assert got.dtype == torch.float32
        assert torch.equal(got, function(x.double(), 0.999).float())
    assert mixture.ve.level_log_prob(x, torch.ones(3)).dtype == torch.float32


def test_its_products_are_offloaded():
    mixture = ring()
    x = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    exact = mixture.eps(x, 0.5)
    with sat.offload("golden", precision="fp32") as report:
        got = mixture.eps(x, 0.5)
    assert report.coverage == 1 and report.flops == 2 * 2 * 50 * 8 * 2 * 2
    assert 0 < float((got - exact).abs().max()) < 1e-6
    with sat.offload("golden", precision="fp32") as report:
        mixture.ve.level_log_prob(x, torch.linspace(0.1, 1, 20))
    assert report.coverage == 1 and report.flops == 2 * 50 * 8 * 2 * (2 + 20)


# ----------------------------------------------------------------------------------- distance


@settings(max_examples=20)
@given(st.integers(1, 5), seeds)
def test_frechet_distance_by_square_roots_of_products(dim, seed):
    _, m, c = (each.numpy() for each in parameters(2, dim, seed))
    expected = np.square(m[0] - m[1]).sum() + np.trace(c[0] + c[1] - 2 * sqrtm(c[0] @ c[1]).real)
    got = frechet_distance(m[0], c[0], torch.from_numpy(m[1]), c[1])
    assert got == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert frechet_distance(m[0], c[0], m[0], c[0]) == pytest.approx(0, abs=1e-10)
    # Moved by v: |v|²; two multiples of one matrix: (sqrt a - sqrt b)² of its trace.
    assert frechet_distance(m[0], c[0], m[0] + 2, c[0]) == pytest.approx(4 * dim, rel=1e-10)
    scaled = frechet_distance(m[0], 4 * c[0], m[0], c[0])
    assert scaled == pytest.approx(np.trace(c[0]), rel=1e-9)


def test_frechet_distance_of_points():
    zero = np.zeros((2, 2))
    assert frechet_distance([0.0, 0.0], zero, [3.0, 4.0], zero) == 25
    mean, cov = sample_moments(torch.tensor([[0.0], [2.0]], requires_grad=True))
    assert mean == [1.0] and cov == [[2.0]]


# ----------------------------------------------------------------------------------- bad input

HALVES, TWO, EYES = torch.tensor([0.5, 0.5]), torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: GaussianMixture(torch.ones(2), TWO, EYES), r"sum 2.0: must be positive and of su"),
        (lambda: GaussianMixture(torch.tensor([1.5, -0.5]), TWO, EYES), "must be positive"),
        (lambda: GaussianMixture(torch.ones(3), TWO, EYES), r"shapes \(3,\), \(2, 3\)"),
        (lambda: GaussianMixture(HALVES, TWO, EYES[:, :2]), r"must be \(K,\), \(K, d\), \(K, d, d"),
        (lambda: GaussianMixture(HALVES, TWO[0], EYES), r"must be \(K,\), \(K, d\)"),
        (lambda: GaussianMixture(HALVES, TWO / 0, EYES), "must be finite"),
        (lambda: GaussianMixture(HALVES, TWO, -EYES), "covariance 0 has eigenvalue -1.0"),
        (
            lambda: GaussianMixture(HALVES, TWO, EYES + torch.ones(3, 3).triu(1)),
            "covariance 0 is off its transpose by 1.0: must be symmetric",
        ),
        (lambda: ring().eps(torch.zeros(4, 3), 0.5), r"x has shape \(4, 3\).*must be \(n, 2\)"),
        (lambda: ring().eps(torch.zeros(4, 2).long(), 0.5), "floating point"),
        (lambda: ring().eps(torch.zeros(4, 2), 0.0), "above 0 and at most 1"),
        (lambda: ring().eps(torch.zeros(4, 2), 1.5), r"alpha_bar of shape \(\), \[1.5\]"),
        (lambda: ring().eps(torch.zeros(4, 2), torch.full((3,), 0.5)), r"one number or \(4,\)"),
        (lambda: ring().ve.score(torch.zeros(4, 2), torch.ones(4, 1)), r"sigma has shape \(4, 1\)"),
        (lambda: ring().ve.score(torch.zeros(4, 2), -1.0), "finite and not negative"),
        (lambda: ring().ve.level_log_prob(torch.zeros(4, 2), torch.ones(1, 1)), r"must be \(T,\)"),
        (lambda: ring().sample(0, generator()), "n=0: must be an int of at least 1"),
        (lambda: ring(0), "components=0: must be an int"),
        (lambda: sample_moments(torch.zeros(1, 3)), "n at least 2"),
        (lambda: sample_moments(torch.full((3, 3), math.nan)), "finite"),
        (
            lambda: frechet_distance([0.0], np.eye(2), [0.0], np.eye(1)),
            r"must be \(d,\) and \(d, d\) with one d",
        ),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
