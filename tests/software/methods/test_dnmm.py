"""DNMM: rules by scipy, the loss by loops, exact normalisation, sampling, selection, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import genextreme, kstest, norm

import sat
from sat.methods.dnmm import (
    DNMM,
    Candidate,
    GEVMixture,
    GumbelMixture,
    ImportancePool,
    TensorTrapezoid,
    Trapezoid1D,
    dnmm_loss,
    draw_candidates,
    integrated_squared_error,
    select_dnmm,
)
from sat.methods.dnmm.data import clusters
from sat.methods.dnmm.demo import in_numpy
from sat.methods.dnmm.integrators import kernel_log_density, silverman_width

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(n=60, k=2, dim=1, steps=15, **options):
    x = torch.randn(n, dim, generator=seeded(), dtype=DOUBLE)
    x[: n // 2] += 6
    model = DNMM(dim, k, (6, 6), generator=seeded(1))
    curve = model.fit(3 * x + 1, steps=steps, pretrain=40, **options)
    return model, 3 * x + 1, curve


# --------------------------------------------------------------------------------------- rules


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(0, 999))
def test_trapezoids_are_exact_for_products_of_lines(d, n, seed):
    rng = np.random.default_rng(seed)
    low = rng.normal(size=d)
    box = torch.tensor(np.stack([low, low + rng.uniform(0.1, 3, d)]))
    slope, offset = (torch.from_numpy(rng.normal(size=d)) for _ in range(2))
    for rule in (TensorTrapezoid(n, box), TensorTrapezoid(n, box).refined(3)):
        got = rule.integrate(lambda x: (x * slope + offset).prod(1))
        middle = slope * box.mean(0) + offset
        exact = (middle * (box[1] - box[0])).prod()
        torch.testing.assert_close(got, exact)
    assert len(rule.points) == (3 * (n - 1) + 1) ** d


def test_trapezoids_by_scipy():
    box = torch.tensor([[-1.0], [2.0]])
    got = Trapezoid1D(800, box).integrate(lambda x: torch.stack([x[:, 0].exp(), x[:, 0].cos()], 1))
    exact = [quad(np.exp, -1, 2)[0], quad(np.cos, -1, 2)[0]]
    np.testing.assert_allclose(got.numpy(), exact, rtol=3e-6)


def test_pool_is_unbiased_in_empty_regions_too():
    """A bump where no data are: only the uniform half sees it."""
    x = 0.1 * torch.randn(100, 2, generator=seeded(), dtype=DOUBLE) - 1
    box = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])

    def bumps(points):
        return torch.stack(
            [torch.from_numpy(norm.pdf(points.numpy(), m, 0.2).prod(1)) for m in (-1.0, 1.0)], 1
        )

    pool = ImportancePool(20_000, x, box, seeded(1))
    torch.testing.assert_close(
        pool.integrate(bumps), torch.ones(2, dtype=DOUBLE), rtol=0, atol=0.06
    )
    assert float(pool.weights.sum()) == pytest.approx(16, rel=0.03)
    assert bool(((pool.points >= box[0]) & (pool.points <= box[1])).all())
    assert len(pool.refined(2).points) == 40_000


def test_kernel_estimate_by_its_sum():
    x = torch.randn(20, 2, generator=seeded(), dtype=DOUBLE)
    points = torch.randn(7, 2, generator=seeded(1), dtype=DOUBLE)
    width = silverman_width(x)
    spread = math.sqrt(float(x.numpy().var(0).mean()))
    assert width == pytest.approx(spread * 20 ** (-1 / 6))
    z = ((points[:, None] - x) / width).square().sum(2)
    by_sum = ((-z / 2).exp() / (2 * math.pi * width**2)).mean(1).log()
    torch.testing.assert_close(kernel_log_density(x, width, points), by_sum, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------- model


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 999))
def test_components_by_numpy_one_network_at_a_time(dim, k, depth, seed):
    model = DNMM(dim, k, (5,) * depth, generator=seeded(seed)).double()
    with torch.no_grad():
        model.log_amplitude.copy_(torch.randn(k, generator=seeded(seed)))
        model.gate.copy_(torch.randn(k, generator=seeded(seed + 1)))
    z = torch.randn(9, dim, generator=seeded(seed), dtype=DOUBLE)
    phi = model.log_components(z).exp().detach()
    np.testing.assert_allclose(phi.numpy(), in_numpy(model)(z.numpy()), rtol=1e-12)
    assert float(model.weights.sum().detach()) == pytest.approx(1)
    assert float(model.weights.min().detach()) > 0 and float(phi.min()) > 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 1.0, 10.0]), st.sampled_from([0.0, 0.1]))
def test_loss_by_loops(seed, alpha, decay):
    model = DNMM(2, 3, (4, 4), generator=seeded(seed)).double()
    x = torch.randn(6, 2, generator=seeded(seed), dtype=DOUBLE)
    rule = TensorTrapezoid(5, torch.tensor([[-2.0, -2.0], [2.0, 2.0]]))
    phi, c = in_numpy(model), model.weights.detach().numpy()
    total = 0.0
    for row in x.numpy():
        total -= math.log(sum(c[k] * phi(row[None])[0, k] for k in range(3)) + 1e-12) / len(x)
    for k in range(3):
        integral = 0.0
        for point, weight in zip(rule.points.numpy(), rule.weights.numpy(), strict=True):
            integral += weight * phi(point[None])[0, k]
        total += alpha / 2 * (1 - integral) ** 2
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            total += decay * float(p.detach().square().sum())
    got = dnmm_loss(model, x, rule, alpha, decay)
    assert float(got.detach()) == pytest.approx(total, rel=1e-9)


def test_training_lowers_the_loss_and_normalises_exactly():
    watched = []
    model, x, curve = fitted(steps=80, watch=watched)
    assert curve[-1] < curve[0] and len(watched) == 80 and len(watched[0][1]) == 2
    assert model.gate.dtype == DOUBLE and float((model.before - 1).abs().max()) < 0.3
    torch.testing.assert_close(model.integrals(), torch.ones(2, dtype=DOUBLE))
    low, high = model.box[:, 0].tolist()
    reach = 0.3 * float(x.max() - x.min())
    assert low == pytest.approx(float(x.min()) - reach)
    ends = np.linspace(low, high, 21)

    def p(value):
        return float(model.pdf(torch.tensor([[value]], dtype=DOUBLE)).detach())

    whole = sum(quad(p, a, b)[0] for a, b in zip(ends, ends[1:], strict=False))
    assert whole == pytest.approx(1, abs=1e-5)
    mixed = (model.components(x) * model.weights).sum(1)
    torch.testing.assert_close(mixed, model.pdf(x))
    outside = torch.tensor([[low - 1e-6], [high + 1e-6], [low], [high]], dtype=DOUBLE)
    assert torch.isinf(model.log_prob(outside)).tolist() == [True, True, False, False]
    assert model.components(outside)[:2].count_nonzero() == 0
    rule = Trapezoid1D(3000, model.box)
    torch.testing.assert_close(
        model.integrals(rule), torch.ones(2, dtype=DOUBLE), rtol=0, atol=1e-5
    )


def test_units_of_the_data_are_divided_out():
    model, x, _ = fitted()
    other = DNMM(1, 2, (6, 6), generator=seeded(1))
    other.fit(100 * x - 7, steps=15, pretrain=40)
    shift = math.log(100)
    got = other.log_prob(100 * x - 7) + shift
    torch.testing.assert_close(got, model.log_prob(x), rtol=0, atol=1e-3)


def test_the_box_holds_all_data_and_all_of_the_density():
    """Without a margin, too, where rounding would put the outermost data outside."""
    for margin in (0.0, 0.3):
        for seed in range(3):
            x = 3 + 2 * torch.randn(40, 1, generator=seeded(seed), dtype=DOUBLE)
            model = DNMM(1, 2, (4,), margin, generator=seeded(seed))
            model.fit(x, steps=3, pretrain=10)
            low, high = float(x.min()), float(x.max())
            low, high = low - margin * (high - low), high + margin * (high - low)
            assert bool(model.log_prob(x).isfinite().all())
            beyond = torch.tensor([[low - 1e-9], [high + 1e-9]], dtype=DOUBLE)
            assert bool((model.log_prob(beyond) == -math.inf).all())
            with torch.no_grad():
                whole = quad(
                    lambda z, m=model: float(m.pdf(torch.tensor([[z]], dtype=DOUBLE))), low, high
                )[0]
            assert whole == pytest.approx(1, abs=1e-6)


def test_state_dict_keeps_the_density():
    model, x, _ = fitted()
    twin = DNMM(1, 2, (6, 6)).double()
    with pytest.raises(RuntimeError, match="no box: call fit"):
        twin.log_prob(x)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.log_prob(x), model.log_prob(x))
    with pytest.raises(RuntimeError, match="no rule from fit"):
        twin.sample(3, seeded())


def test_start_looks_at_the_clusters():
    """Weights are the clusters' shares, and the components already near their estimates."""
    x = torch.cat([torch.randn(90, 1, generator=seeded()), 12 + torch.randn(30, 1)]).double()
    model = DNMM(1, 2, generator=seeded(1))
    model.fit(x, steps=1, lr=1e-9)
    assert sorted(model.weights.tolist()) == pytest.approx([0.25, 0.75], abs=1e-6)
    labels = clusters(x, 2, seeded())
    assert sorted(torch.bincount(labels).tolist()) == [30, 90]
    for center in (0.0, 12.0):
        here = float(model.pdf(torch.tensor([[center]], dtype=DOUBLE)).detach())
        assert here > 0.5 * norm.pdf(0) * (0.75 if center == 0 else 0.25)


def test_three_dimensions_by_a_pool():
    model, x, curve = fitted(n=60, dim=3, steps=10)
    assert math.isfinite(curve[-1]) and isinstance(model.finest, ImportancePool)
    torch.testing.assert_close(model.integrals(), torch.ones(2, dtype=DOUBLE))
    drawn = model.sample(50, seeded())
    assert drawn.shape == (50, 3) and bool(torch.isfinite(model.log_prob(drawn)).all())


def test_samples_follow_the_density():
    model, _, _ = fitted(steps=60)
    drawn = model.sample(4000, seeded(3))[:, 0]
    grid = Trapezoid1D(2001, model.box)
    with torch.no_grad():
        mass = model.pdf(grid.points)
    cdf = torch.cumulative_trapezoid(mass, grid.points[:, 0]).numpy()
    found = kstest(drawn.numpy(), lambda v: np.interp(v, grid.points[1:, 0].numpy(), cdf))
    assert found.pvalue > 1e-3
    drawn = fitted(dim=2, steps=5)[0].sample(20, seeded())
    assert drawn.shape == (20, 2)


def test_components_are_groups_of_products():
    model = DNMM(2, 2, (32, 32), generator=seeded())
    layers = sat.sparsify_(model, "bdwp", "2:8").layers
    assert [layer.pattern for layer in layers] == ["dense", "2:8", "dense"]
    with sat.offload("golden") as report:
        model.log_components(torch.randn(7, 2)).sum().backward()
    assert report.coverage == 1
    assert any("2:8" in work.size for work in report)


# ----------------------------------------------------------------------------------- selection


def test_selection_prefers_what_is_held_out():
    x = GEVMixture().sample(90, seeded())
    candidates = [Candidate(1, (4,), steps=5), Candidate(3, (8, 8), steps=150)]
    model, scores = select_dnmm(x, candidates, folds=1)
    assert model.n_components == 3 and scores[0].candidate is candidates[1]
    assert scores[0].log_likelihood > scores[1].log_likelihood
    # 2·3·8 of the first layer, 3·(8·8 + 8), 3·(8 + 1), and 3 + 3.
    assert scores[0].parameters == 48 + 216 + 27 + 6
    assert len({str(one) for one in draw_candidates(20, seeded())}) == 20


# -------------------------------------------------------------------------------------- truths


def test_extreme_values_by_scipy():
    truth = GEVMixture()
    x = truth.sample(3000, seeded())
    assert x.shape == (3000, 1)

    def cdf(v):
        return sum(
            w * genextreme.cdf(v, c, loc=m, scale=s)
            for w, (c, m, s) in zip(truth.weights.tolist(), truth.parts, strict=True)
        )

    assert kstest(x[:, 0].numpy(), cdf).pvalue > 1e-3
    rule = Trapezoid1D(20_001, torch.tensor([[-10.0], [200.0]]))
    assert float(rule.integrate(truth.pdf)) == pytest.approx(1, abs=1e-5)
    flat = integrated_squared_error(truth.pdf, lambda x: 0 * x[:, 0], rule)
    assert flat == pytest.approx(float((rule.weights * truth.pdf(rule.points) ** 2).sum()))


def test_plane_integrates_to_one_and_follows_its_draws():
    truth = GumbelMixture()
    rule = TensorTrapezoid(401, torch.tensor([[-8.0, -8.0], [22.0, 22.0]]))
    assert float(rule.integrate(truth.pdf)) == pytest.approx(1, abs=1e-3)
    x = truth.sample(20_000, seeded())
    mean = rule.integrate(lambda points: points * truth.pdf(points)[:, None])
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.06)
    assert float(truth.log_prob(x).mean()) == pytest.approx(-3.145, abs=0.03)


# ----------------------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    def bad(make, text, error=ValueError):
        with pytest.raises(error, match=text):
            make()

    x = torch.randn(40, 2, generator=seeded())
    model = DNMM(2, 2, (4,), generator=seeded())
    bad(lambda: DNMM(0, 1), "dim=0")
    bad(lambda: DNMM(1, 0), "n_components=0")
    bad(lambda: DNMM(1, 1, ()), "at least one layer")
    bad(lambda: DNMM(1, 1, (4, 0)), r"hidden\[1\]=0")
    bad(lambda: DNMM(1, 1, margin=-1), "margin=-1")
    bad(lambda: model.fit(x[:, 0]), r"x has shape \(40,\)")
    bad(lambda: model.fit(x[:, :1]), r"must be \(n, 2\)")
    bad(lambda: model.fit(x[:19]), "19 rows for 2 components: must be at least 10 each")
    bad(lambda: model.fit(x / 0), "infinities or NaNs")
    bad(lambda: model.fit(x.long()), "torch.int64: must be floating point")
    bad(lambda: model.fit(x * torch.tensor([1.0, 0.0])), "column 1 is constant")
    for alpha in (0, -1.0):
        bad(lambda alpha=alpha: model.fit(x, alpha=alpha), f"alpha={alpha}: must be positive")
    bad(lambda: model.fit(x, lr=0), "lr=0")
    bad(lambda: model.fit(x, steps=0), "steps=0")
    bad(lambda: model.fit(x, weight_decay=-1), "weight_decay=-1")
    bad(lambda: model.fit(x, integrator="gauss"), "integrator='gauss'")
    line = Trapezoid1D(5, torch.tensor([[0.0], [1.0]]))
    bad(lambda: model.fit(x, integrator=line), "integrator has 1 dimensions: must have 2")
    part = TensorTrapezoid(9, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    bad(lambda: model.fit(x, integrator=part), r"integrator's box \[\[-1.0, -1.0\], .*standard_box")
    bad(lambda: dnmm_loss(model, x[:, :1], line, 1.0), r"must be \(n, 2\)")
    bad(lambda: dnmm_loss(DNMM(1, 1), x[:, :1], line, -1.0), "alpha=-1.0")
    bad(lambda: Trapezoid1D(1, line.box), "n=1: must be at least 2")
    bad(lambda: Trapezoid1D(5, torch.zeros(2, 1)), "every lower end below")
    bad(lambda: Trapezoid1D(5, torch.tensor([[0.0], [math.inf]])), "must be finite")
    bad(lambda: Trapezoid1D(5, torch.tensor([[0.0, 0.0], [1.0, 1.0]])), "box has 2 dimensions")
    cube = torch.tensor([[0.0] * 4, [1.0] * 4])
    bad(lambda: TensorTrapezoid(40, cube), "in 4 dimensions are 2,560,000: at most 3")
    bad(lambda: ImportancePool(1, x, cube[:, :2], seeded()), "n=1: must be at least 2")
    bad(lambda: ImportancePool(10, x, cube, seeded()), r"must be \(N, 4\)")
    bad(lambda: ImportancePool(10, x, cube[:, :2], seeded()), "points outside the box")
    with pytest.warns(UserWarning, match="are worth [0-9]+ of equal weight"):
        ImportancePool(60, x.double() / 100 + 0.5, cube[:, :2], seeded())
    far = torch.cat([torch.zeros(19, 1), torch.full((1, 1), 9.0)]) + 0.01 * torch.randn(20, 1)
    bad(lambda: clusters(far, 2, seeded()), "a cluster of fewer than 3 of 20 rows")
    model.fit(x, steps=1, pretrain=1)
    bad(lambda: model.log_prob(x[:, :1]), r"must be \(n, 2\)")
    bad(lambda: model.integrals(line), "integrator has 1 dimensions")
    bad(lambda: model.sample(0, seeded()), "n=0")
    bad(lambda: select_dnmm(x, [], 2), "at least one")
    bad(lambda: select_dnmm(x, [Candidate(1)], 0), "folds=0")
    bad(lambda: draw_candidates(49, seeded()), "there are 48 candidates")
    bad(lambda: GEVMixture(weights=(0.5, 0.6, 0.1)), "of sum 1")
    bad(lambda: GEVMixture(scales=(1, 0, 1)), r"scales=\(1, 0, 1\): must be positive")
    bad(lambda: GEVMixture(shapes=(0.0,)), "equally many")
