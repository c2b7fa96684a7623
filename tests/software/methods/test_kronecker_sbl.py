"""KroSBL: products by numpy.kron, posterior by dense solves, EM's laws, recovery, bad input."""

from __future__ import annotations

import math
import warnings
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import OrthogonalMatchingPursuit

import sat
from sat.methods.kronecker_sbl import (
    KroneckerDictionary,
    am_update,
    irs_mimo_problem,
    kron_omp,
    kron_sbl,
    kronecker_problem,
    nmse,
    omp,
    posterior,
    sbl,
    steering_dictionary,
    support_recovery_rate,
    svd_update,
)
from sat.methods.kronecker_sbl.demo import dense_posterior, whole_sbl
from sat.methods.kronecker_sbl.dictionary import kron

COMPLEX = torch.complex128


def draw(*shape, seed=0, dtype=COMPLEX):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gammas_of(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=generator, dtype=torch.float64) + 0.05 for n in sizes]


sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


# ----------------------------------------------------------------------------------- dictionary


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 99), st.sampled_from([torch.float64, COMPLEX]), st.integers(0, 3))
def test_products_are_those_of_the_matrix(shapes, seed, dtype, batch):
    factors = [draw(m, n, seed=seed + i, dtype=dtype) for i, (m, n) in enumerate(shapes)]
    a = reduce(np.kron, [f.numpy() for f in factors])
    dictionary = KroneckerDictionary(factors)
    assert dictionary.shape == a.shape
    x, y = draw(batch, a.shape[1], seed=seed), draw(batch, a.shape[0], seed=seed)
    np.testing.assert_allclose(dictionary.matvec(x).numpy(), x.numpy() @ a.T, atol=1e-12)
    np.testing.assert_allclose(dictionary.rmatvec(y).numpy(), y.numpy() @ a.conj(), atol=1e-12)
    assert dictionary.matvec(draw(a.shape[1])).shape == (a.shape[0],)


# ------------------------------------------------------------------------------------ posterior


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 99), st.sampled_from([1e-3, 0.1, 10.0]))
def test_posterior_is_the_dense_one(shapes, seed, noise):
    factors = [draw(m, n, seed=seed + i) for i, (m, n) in enumerate(shapes)]
    gammas = gammas_of([n for _, n in shapes], seed)
    a = reduce(np.kron, [f.numpy() for f in factors])
    g = reduce(np.kron, [g.numpy() for g in gammas])
    y = draw(len(a), seed=seed)
    found = posterior(y.reshape([m for m, _ in shapes]), factors, gammas, noise)
    mean, variance, cost = dense_posterior(y.numpy(), a, g, noise)
    np.testing.assert_allclose(found.mean.flatten().numpy(), mean, atol=1e-9 * abs(mean).max())
    np.testing.assert_allclose(found.variance.flatten().numpy(), variance, atol=1e-10)
    assert found.cost == pytest.approx(cost, rel=1e-9, abs=1e-9)
    assert found.residual == pytest.approx(np.linalg.norm(y.numpy() - a @ mean) ** 2, rel=1e-6)
    assert found.spent == pytest.approx(float((1 - variance / g).sum()), rel=1e-6)


def test_posterior_of_real_data_is_the_complex_ones():
    factors = [draw(m, 4, seed=m, dtype=torch.float64) for m in (2, 3)]
    y, gammas = draw(2, 3, dtype=torch.float64), gammas_of((4, 4))
    real = posterior(y, factors, gammas, 0.1)
    wide = posterior(y.to(COMPLEX), [f.to(COMPLEX) for f in factors], gammas, 0.1)
    assert real.mean.dtype == torch.float64
    torch.testing.assert_close(real.mean.to(COMPLEX), wide.mean)
    torch.testing.assert_close(real.variance, wide.variance)


def test_few_bits_spare_the_measurements_side_and_not_the_coefficients():
    p = kronecker_problem(0, 40.0, (6, 7), 8, 2)
    gammas = [torch.ones(8, dtype=torch.float64)] * 2
    a = reduce(torch.kron, p.factors)
    exact = posterior(p.y.reshape(6, 7), p.factors, gammas, p.noise_var).mean.flatten()
    covariance = torch.linalg.inv(a.mH @ a / p.noise_var + torch.eye(64))
    with sat.offload("golden", precision="fp16"):
        ours = posterior(p.y.reshape(6, 7), p.factors, gammas, p.noise_var).mean.flatten()
        coefficients = covariance @ (a.mH @ p.y) / p.noise_var
    assert nmse(ours, exact) < 1e-5 and nmse(coefficients, exact) > 100


# -------------------------------------------------------------------------------------- updates


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_updates_return_a_kronecker_products_factors(shape, seed):
    gammas = gammas_of(shape, seed)
    moments = kron(gammas)
    for made in (svd_update(moments), am_update(moments, [torch.ones_like(g) for g in gammas])):
        torch.testing.assert_close(kron(made), moments, rtol=1e-11, atol=0)
        for new, old in zip(made[:-1], gammas[:-1], strict=True):
            torch.testing.assert_close(new, old / old.norm(), rtol=1e-11, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99))
def test_am_lowers_its_sum_to_a_stationary_point(shape, seed):
    moments = 0.01 + draw(*shape, seed=seed).abs().square()
    start = gammas_of(shape, seed)

    def cost(gammas):
        g = kron(gammas)
        return float((g.log() + moments / g).sum())

    last = cost(start)
    for sweeps in range(1, 6):
        now = cost(am_update(moments, start, tol=0.0, max_sweeps=sweeps))
        assert now <= last + 1e-11
        last = now
    logs = [g.log().requires_grad_() for g in am_update(moments, start, tol=0.0, max_sweeps=300)]
    g = kron([x.exp() for x in logs])
    (g.log() + moments / g).sum().backward()
    assert max(float(x.grad.abs().max()) for x in logs) < 1e-6


def test_svd_update_of_two_factors_is_numpys():
    moments = draw(5, 7).abs().square()
    u, s, v = np.linalg.svd(moments.numpy())
    left, right = svd_update(moments)
    np.testing.assert_allclose(left.numpy(), abs(u[:, 0]), rtol=1e-12)
    np.testing.assert_allclose(right.numpy(), s[0] * abs(v[0]), rtol=1e-12)


def test_moments_of_zero_keep_variances_positive():
    moments = torch.zeros(3, 4, dtype=torch.float64)
    moments[1, 2] = 2.0
    for made in (svd_update(moments), am_update(moments, gammas_of((3, 4)))):
        assert all(bool((g >= 0).all() and g.isfinite().all()) for g in made)
        assert float(kron(made)[1, 2]) > 0


# -------------------------------------------------------------------------------------- solvers


@pytest.mark.parametrize("rows", [(3, 4), (2, 2, 3)])
def test_am_never_raises_the_cost(rows):
    p = kronecker_problem(3, 15.0, rows, 5, 2)
    found = kron_sbl(p.y, p.factors, p.noise_var, "am", prune=0.0, max_iter=25)
    assert len(found.cost_history) == found.n_iter + 1
    assert max(b - a for a, b in zip(found.cost_history, found.cost_history[1:], strict=False)) < 0


def test_one_factor_is_classic_sbl_and_that_is_numpys():
    p = kronecker_problem(1, 20.0, (20,), 40, 4)
    expected = whole_sbl(p.y.numpy(), p.factors[0].numpy(), p.noise_var)
    classic = sbl(p.y, p.factors[0], p.noise_var)
    np.testing.assert_allclose(classic.x.numpy(), expected, atol=1e-8)
    for method in ("svd", "am"):
        one = kron_sbl(p.y, p.factors, p.noise_var, method, prune=1e-3)
        torch.testing.assert_close(one.x, classic.x, atol=1e-9, rtol=0)
        assert one.n_iter == classic.n_iter
        assert one.cost_history == pytest.approx(classic.cost_history, rel=1e-9)
    estimated = kron_sbl(p.y, p.factors), sbl(p.y, p.factors[0])
    assert estimated[0].noise_var == pytest.approx(estimated[1].noise_var, rel=1e-8)


@pytest.mark.parametrize("method", ["svd", "am"])
def test_pruned_entries_stay_in_their_places(method):
    p = kronecker_problem(0, 35.0, (5, 6, 7), 8, 2)
    found = kron_sbl(p.y, p.factors, p.noise_var, method)
    true = p.x.reshape(8, 8, 8).nonzero()
    for g, places in zip(found.gammas, true.T, strict=True):
        assert len(g) == 8 and g.nonzero().flatten().tolist() == sorted(set(places.tolist()))
    assert torch.equal(found.support, p.x.nonzero().flatten())
    assert found.converged and nmse(found.x, p.x) < 1e-3
    assert support_recovery_rate(found.x, p.x) == 1
    prior = kron(found.gammas).flatten()
    assert bool((found.x[prior == 0] == 0).all())


def test_noise_is_estimated():
    # 240 measurements of 8 entries: the noise's own mean is known to 1 / √240.
    p = kronecker_problem(2, 20.0, (6, 5, 8), 8, 2)
    found = kron_sbl(p.y, p.factors)
    assert found.noise_var == pytest.approx(p.noise_var, rel=0.25)
    assert nmse(found.x, p.x) < 0.02


def test_results_scale_with_y_if_the_start_does():
    p = kronecker_problem(4, 25.0, (4, 5), 6, 2)
    one = kron_sbl(p.y, p.factors, p.noise_var, init=None)
    small = kron_sbl(1e-9 * p.y, p.factors, 1e-18 * p.noise_var, init=None)
    torch.testing.assert_close(1e9 * small.x, one.x, rtol=1e-7, atol=1e-9)
    assert nmse(one.x, p.x) < 0.02


def test_no_noise_and_full_rank_is_least_squares():
    p = kronecker_problem(5, 200.0, (5, 6), 4, 4)
    a = reduce(np.kron, [f.numpy() for f in p.factors])
    best = np.linalg.lstsq(a, p.y.numpy(), rcond=None)[0]
    for method in ("svd", "am"):
        x = kron_sbl(p.y, p.factors, 1e-11, method, prune=0.0).x
        np.testing.assert_allclose(x.numpy(), best, atol=1e-8)


def test_real_data_and_other_types():
    p = kronecker_problem(6, 25.0, (5, 6), 6, 2)
    factors = [f.real.contiguous() for f in p.factors]
    x = p.x.real
    y = KroneckerDictionary(factors).matvec(x)
    real = kron_sbl(y, factors, 1e-4, dtype=torch.float64)
    wide = kron_sbl(y, factors, 1e-4)
    assert real.x.dtype == torch.float64 and wide.x.dtype == COMPLEX
    torch.testing.assert_close(real.x.to(COMPLEX), wide.x, atol=1e-8, rtol=0)
    promoted = kron_sbl(y, p.factors, 1e-4, dtype=torch.complex64)
    assert promoted.x.dtype == torch.complex64


def test_zeros_give_zeros_and_say_so():
    p = kronecker_problem(0, 20.0, (3, 4), 5)
    for found in (
        kron_sbl(0 * p.y, p.factors),
        sbl(0 * p.y, reduce(torch.kron, p.factors), 0.1),
    ):
        assert found.all_zero and not found.x.any() and len(found.x) == 25
        assert found.n_iter == 0 and len(found.support) == 0
    assert not kron_sbl(p.y, p.factors, max_iter=1).all_zero


def test_kronecker_prior_beats_the_classic_one_and_greedy_search():
    errors = {"svd": 0.0, "sbl": 0.0, "omp": 0.0}
    for seed in range(22, 26):
        p = kronecker_problem(seed, 30.0)
        a = reduce(torch.kron, p.factors)
        errors["svd"] += nmse(kron_sbl(p.y, p.factors, p.noise_var).x, p.x)
        errors["sbl"] += nmse(sbl(p.y, a, p.noise_var).x, p.x)
        errors["omp"] += nmse(omp(p.y, a, 8), p.x)
    assert 10 * errors["svd"] < errors["sbl"] < errors["omp"]


# --------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("seed", range(3))
def test_omp_is_scikit_learns(seed):
    a = draw(12, 30, seed=seed, dtype=torch.float64)
    a /= a.norm(dim=0)
    y = draw(12, seed=seed + 9, dtype=torch.float64)
    theirs = OrthogonalMatchingPursuit(n_nonzero_coefs=5, fit_intercept=False)
    np.testing.assert_allclose(omp(y, a, 5).numpy(), theirs.fit(a, y).coef_, atol=1e-10)


def test_omp_stops_where_nothing_is_left():
    a = torch.eye(4, dtype=COMPLEX)
    assert omp(torch.tensor([0, 2.0, 0, 0], dtype=COMPLEX), a, 3).nonzero().tolist() == [[1]]
    zero = torch.zeros(4, dtype=COMPLEX)
    assert not omp(zero, a, 2).any() and not kron_omp(zero, [a[:2, :2], a[:2, :2]], (1, 1)).any()


def test_kronecker_omp_finds_blocks_of_orthogonal_dictionaries():
    factors = [torch.linalg.qr(draw(n, n, seed=n))[0] for n in (4, 5, 6)]
    x = torch.zeros(4, 5, 6, dtype=COMPLEX)
    x[torch.meshgrid(*map(torch.tensor, ([0, 3], [2], [1, 5])), indexing="ij")] = draw(2, 1, 2)
    y = KroneckerDictionary(factors).matvec(x.flatten())
    torch.testing.assert_close(kron_omp(y, factors, (2, 1, 2)), x.flatten(), atol=1e-12, rtol=0)
    # One place too few a factor: as many as are asked for, and least squares on them.
    part = kron_omp(y, factors, (1, 1, 2)).reshape(4, 5, 6)
    assert len(part.nonzero()) == 2
    torch.testing.assert_close(part[part != 0], x[part != 0])


# ------------------------------------------------------------------------------------- problems


def test_steering_vectors_are_unit_and_of_one_phase_a_step():
    a = steering_dictionary(6, 9)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(9, dtype=torch.float64))
    u = -1 + 2 * torch.arange(9, dtype=torch.float64) / 9
    torch.testing.assert_close((a[1:] / a[:-1]).angle().cos(), (math.pi * u).cos().expand(5, 9))
    # As many antennas as angles: orthogonal.
    square = steering_dictionary(9, 9)
    torch.testing.assert_close(square.mH @ square, torch.eye(9, dtype=COMPLEX), atol=1e-14, rtol=0)


@pytest.mark.parametrize("n_grid,spread", [(18, 3), (7, 2)])
def test_channel_over_a_surface_is_the_dictionarys(n_grid, spread):
    p = irs_mimo_problem(
        3, 300.0, n_user=3, n_base=4, n_surface=10, n_grid=n_grid, n_patterns=5, spread=spread
    )
    for pattern in range(5):
        channel = p.surface_to_base @ torch.diag(p.patterns[:, pattern]) @ p.user_to_surface
        torch.testing.assert_close(p.channels[pattern], channel)
        torch.testing.assert_close(p.channels_of(p.x)[pattern], channel)
        seen = p.y.reshape(5, 3, 4)[pattern].mT
        torch.testing.assert_close(seen, channel @ p.pilots)
    assert p.x.count_nonzero() == spread**2
    assert set((p.patterns * math.sqrt(10)).real.flatten().tolist()) <= {1.0, -1.0}


def test_noise_has_the_power_that_is_asked_for():
    p = kronecker_problem(0, 10.0, (20, 20), 30, 3)
    clean = KroneckerDictionary(p.factors).matvec(p.x)
    assert float(clean.abs().square().mean()) / p.noise_var == pytest.approx(10)
    assert float((p.y - clean).abs().square().mean()) == pytest.approx(p.noise_var, rel=0.2)


def test_scores():
    truth = torch.tensor([1.0, 0, 2, 0], dtype=COMPLEX)
    estimate = torch.tensor([1.0, 0.01, 0.001, 0], dtype=COMPLEX)
    assert support_recovery_rate(estimate, truth) == pytest.approx(1 / 3)
    assert support_recovery_rate(estimate, truth, 1e-4) == pytest.approx(2 / 3)
    assert nmse(truth / 2, truth) == pytest.approx(0.25)


# ------------------------------------------------------------------------------------ bad input


P = kronecker_problem(0, 20.0, (3, 4), 5)
A = reduce(torch.kron, P.factors)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: kron_sbl(P.y[:-1], P.factors), ValueError, r"y has shape \(11,\): must be \(12,"),
        (lambda: kron_sbl(P.y * math.nan, P.factors), ValueError, "y has numbers that are not fin"),
        (lambda: kron_sbl(P.y.real.int(), P.factors), TypeError, "y is torch.int32"),
        (lambda: kron_sbl([1.0], P.factors), TypeError, "y is list"),
        (lambda: kron_sbl(P.y, []), ValueError, "factors is empty"),
        (lambda: kron_sbl(P.y, [P.y, P.y]), ValueError, r"factors\[0\] has shape \(12,\): must be"),
        (lambda: kron_sbl(P.y, [A[:, :0]]), ValueError, "at least one row and column"),
        (lambda: kron_sbl(P.y, [A * 0]), ValueError, "zeros only in columns"),
        (lambda: kron_sbl(P.y, [A * math.inf]), ValueError, "numbers that are not finite"),
        (lambda: kron_sbl(P.y, [A.real.int()]), TypeError, r"factors\[0\] is torch.int32"),
        (lambda: kron_sbl(P.y, [P.factors[0], P.factors[1].real]), TypeError, "they must agree"),
        (lambda: kron_sbl(P.y, P.factors, 0.0), ValueError, "noise_var=0.0: must be positive"),
        (lambda: kron_sbl(P.y, P.factors, -1.0), ValueError, "noise_var=-1.0"),
        (lambda: kron_sbl(P.y, P.factors, method="em"), ValueError, "method='em': must be one of"),
        (lambda: kron_sbl(P.y, P.factors, max_iter=0), ValueError, "max_iter=0: must be an int"),
        (lambda: kron_sbl(P.y, P.factors, prune=1.0), ValueError, "prune=1.0: must be from 0"),
        (lambda: kron_sbl(P.y, P.factors, tol=-1.0), ValueError, "tol=-1.0"),
        (lambda: kron_sbl(P.y, P.factors, init=0.0), ValueError, "init=0.0"),
        (lambda: kron_sbl(P.y, P.factors, dtype=torch.half), ValueError, "dtype=torch.float16"),
        (lambda: kron_sbl(P.y, P.factors, dtype=torch.float64), ValueError, "is complex, dtype="),
        (
            lambda: kron_sbl(torch.ones(12, dtype=COMPLEX), P.factors), ValueError,
            "y is constant: .* give noise_var",
        ),
        (
            lambda: kron_sbl(1e25 * P.y, P.factors, 1.0, dtype=torch.complex64), ArithmeticError,
            "iteration 1: variances are not finite, none can be kept",
        ),
        (
            lambda: sbl(1e25 * P.y, A, 1.0, dtype=torch.complex64), ArithmeticError, "iteration 1:",
        ),
        (lambda: sbl(P.y, A[0]), ValueError, "a has shape"),
        (lambda: sbl(P.y, A, max_iter=0), ValueError, "max_iter=0"),
        (lambda: omp(P.y, A, 13), ValueError, "k=13: must be at most rows and columns"),
        (lambda: omp(P.y, A, 0), ValueError, "k=0"),
        (lambda: omp(P.y.real, A, 2), TypeError, "must be a tensor of torch.complex128"),
        (lambda: omp(P.y[1:], A, 2), ValueError, r"must be \(12,\)"),
        (lambda: omp(P.y / 0, A, 2), ValueError, "not finite"),
        (lambda: kron_omp(P.y, P.factors, (2,)), ValueError, "sizes has 1 entries: must be 2"),
        (lambda: kron_omp(P.y, P.factors, (4, 1)), ValueError, r"sizes\[0\]=4: must be at most"),
        (lambda: kron_omp(P.y, P.factors, (0, 1)), ValueError, r"sizes\[0\]=0"),
        (lambda: KroneckerDictionary(P.factors).matvec(P.y), ValueError, "last axis must be 25"),
        (lambda: KroneckerDictionary(P.factors).rmatvec(P.x), ValueError, "last axis must be 12"),
        (lambda: steering_dictionary(0, 3), ValueError, "n_ant=0"),
        (lambda: kronecker_problem(0, math.nan), ValueError, "snr_db=nan"),
        (lambda: kronecker_problem(0, 1.0, nonzeros=11), ValueError, "nonzeros=11: must be at"),
        (lambda: irs_mimo_problem(0, 1.0, spread=19), ValueError, "spread=19: must be at most"),
        (lambda: irs_mimo_problem(0, 1.0, n_pilots=0), ValueError, "n_pilots=0"),
        (lambda: support_recovery_rate(P.x, 0 * P.x), ValueError, "truth is zero"),
        (lambda: support_recovery_rate(P.x, P.y), ValueError, "must agree"),
        (lambda: support_recovery_rate(P.x, P.x, 1.0), ValueError, "threshold=1.0"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_parallel_columns_are_warned_of():
    twice = P.factors[1].clone()
    twice[:, 3] = 2j * twice[:, 1]
    with pytest.warns(UserWarning, match=r"factors\[1\]: 1 pairs of columns are parallel, the fi"):
        kron_sbl(P.y, [P.factors[0], twice], 0.1, max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kron_sbl(P.y, P.factors, 0.1, max_iter=2)
