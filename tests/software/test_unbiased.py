"""Unbiased pruning: mean, variance, exactly N of M, reproducible draws, what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sat
from sat.data import load_data
from sat.layers.schemes import BDWP_WU, get_scheme
from sat.layers.unbiased import UnbiasedGradients, draw, inclusion
from sat.sim.golden import sore
from sat.sparsity.pattern import Pattern
from sat.training.distributed import train_ranks
from sat.training.trainer import Trainer

PATTERNS = [(1, 2), (2, 4), (1, 4), (2, 8), (4, 8), (2, 16)]
halves = st.floats(-4, 4, width=16)


@st.composite
def groups(draw_):
    n, m = draw_(st.sampled_from(PATTERNS))
    return draw_(hnp.arrays(np.float16, (draw_(st.integers(1, 6)), m), elements=halves)), n


@given(groups(), st.integers(0, 2**32))
def test_exactly_n_of_m_are_kept_and_zeros_last(case, seed):
    x, n = case
    grown, kept = draw(x, n, np.random.default_rng(seed))
    assert (kept.sum(-1) == n).all()
    lost = ~kept & (x != 0)
    few = (x != 0).sum(-1) <= n
    assert not lost[few].any()
    assert np.array_equal(np.sign(grown[kept & (x != 0)]), np.sign(x[kept & (x != 0)]))


@given(groups())
def test_chances_are_in_proportion_to_magnitudes_where_none_is_certain(case):
    x, n = case
    x = x.astype(np.float64)
    chance = inclusion(x, n)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert chance.sum(-1) == pytest.approx(n)
    for row, each in zip(np.abs(x), chance, strict=True):
        open_ = (each < 1) & (row > 0)
        if open_.any():
            ratio = each[open_] / row[open_]
            assert ratio == pytest.approx(ratio[0])
            # What is certain would have had a chance of 1 or more.
            assert (row[each == 1] * ratio[0] >= 1 - 1e-9).all()


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_mean_is_the_gradient_and_the_variance_is_the_theory(n, m):
    """10,000 draws of 8 groups; five deviations of the mean, and of its estimated variance."""
    count, rng = 10_000, np.random.default_rng(0)
    x = rng.standard_normal((8, m)).astype(np.float16)
    grown, kept = draw(np.broadcast_to(x, (count, *x.shape)), n, rng)
    seen, wide = np.where(kept, grown, 0).astype(np.float64), x.astype(np.float64)
    chance = inclusion(wide, n)
    variance = wide**2 * (1 / chance - 1)
    # Rounding to FP16 moves each value by 2**-11 of it at the most.
    slack = 2.0**-11 * np.abs(wide) / chance
    assert (np.abs(seen.mean(0) - wide) <= 5 * np.sqrt(variance / count) + slack).all()
    squares = ((seen - wide) ** 2).mean(0)
    assert squares.sum() == pytest.approx(variance.sum(), rel=0.03)


def test_one_of_m_is_chmiels_rule():
    """1:2 keeps a with chance |a| / (|a| + |b|), as sign(a) (|a| + |b|): exact in FP16 here."""
    x = np.array([[3.0, -1.0]] * 4000, np.float16)
    grown, kept = draw(x, 1, np.random.default_rng(1))
    assert grown.tolist() == [[4.0, -4.0]] * 4000
    assert kept[:, 0].mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / 4000))


def test_groups_with_numbers_that_are_not_finite_keep_the_largest_as_they_are():
    x = np.array([[1.0, np.inf, 2.0, -1.0], [np.nan, 1.0, 5.0, 0.0]], np.float16)
    grown, kept = draw(x, 2, np.random.default_rng(0))
    assert np.array_equal(kept, sore.mask(x, 2, 4, axis=-1))
    assert np.array_equal(grown[kept], x[kept], equal_nan=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_short_last_group_stores_what_the_pattern_says(axis):
    scheme = UnbiasedGradients("mine", prunes=BDWP_WU)
    x = np.random.default_rng(0).standard_normal((13, 13)).astype(np.float16)
    for n, m in PATTERNS:
        pattern = Pattern(n, m)
        values, places = scheme.select(x, pattern, axis, "WU")
        dense = sore.expand(values, places, n, m, 13, axis)  # checks places, too
        assert (np.sign(dense) * np.sign(x) >= 0).all()
        assert values.shape[axis] == pattern.kept(13)


def test_other_stages_prune_by_magnitude():
    scheme = UnbiasedGradients("mine", prunes=BDWP_WU)
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float16)
    for got, want in zip(
        scheme.select(x, Pattern(2, 8), 1, "FF"), sore.select(x, 2, 8, 1), strict=True
    ):
        assert np.array_equal(got, want)


def gradient(seed):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(16, 8)), torch.randn(64, 16)
    sat.sparsify_(model, UnbiasedGradients("mine", prunes=BDWP_WU, seed=seed), "2:8")
    model(x).square().sum().backward()
    return model[0].weight.grad, model


def test_draws_are_the_seeds():
    first, model = gradient(3)
    assert torch.equal(first, gradient(3)[0])
    assert not torch.equal(first, gradient(4)[0])
    twin = copy.deepcopy(model)
    x = torch.ones(64, 16)
    for each in (model, twin):
        each.zero_grad()
        each(x).square().sum().backward()
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)


def test_each_training_draws_from_the_start():
    """Of one scheme object, too, which is what a registered name is: the same arguments, the same
    bits."""
    scheme = UnbiasedGradients("mine", prunes=BDWP_WU, seed=5)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model, x = torch.nn.Sequential(torch.nn.Linear(16, 8)), torch.randn(64, 16)
        sat.sparsify_(model, scheme, "2:8")
        model(x).square().sum().backward()
        made.append(model[0].weight.grad)
    assert torch.equal(*made)
    assert scheme.restarted() == scheme and get_scheme("bdwp").restarted() is get_scheme("bdwp")


def test_parts_of_a_batch_are_refused():
    data = load_data("digits")
    with pytest.raises(ValueError, match="'bdwp_mvue' draws what it keeps: .* train it whole"):
        Trainer("mlp", data, scheme="bdwp_mvue", batch=16, shards=2)
    with pytest.raises(ValueError, match="train it whole"):
        train_ranks(2, data="digits", model="mlp", scheme="bdwp_mvue", batch=16)


def test_mean_of_many_layers_gradients_is_the_dense_one():
    torch.manual_seed(0)
    x, dy = torch.randn(32, 16), torch.randn(32, 8)
    layer = torch.nn.Linear(16, 8, bias=False)
    dense = (dy.half().double().T @ x.half().double()).numpy()
    sat.sparsify_(torch.nn.Sequential(layer), UnbiasedGradients("m", prunes=BDWP_WU), "2:8")
    draws = []
    for _ in range(400):
        layer.weight.grad = None
        layer(x).backward(dy)
        draws.append(layer.weight.grad.double().numpy())
    off = np.mean(draws, 0) - dense
    assert (np.abs(off) <= 5 * np.std(draws, 0) / np.sqrt(400) + 1e-3).all()
    assert np.abs(off).mean() < 0.2 * np.std(draws, 0).mean()


def test_higher_derivatives_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8))
    sat.sparsify_(model, "bdwp_mvue", "2:8")
    x = torch.randn(16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), model[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="draws what WU keeps"):
        grad.sum().backward()
