"""DaPC NN: bases by exact moments, layers by loops, the solve, statistics, bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sat
from sat.methods.dapc_nn import (
    APCBasis,
    DaPCLayer,
    DaPCNN,
    borehole,
    fit_apc,
    ishigami,
    ishigami_moments,
    total_degree_indices,
)
from sat.methods.dapc_nn.demo import by_moments, inputs, off
from sat.methods.dapc_nn.network import solve_ridge

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gram(psi):
    return psi.mT @ psi / len(psi)


# --------------------------------------------------------------------------------------- bases


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-1000, 1000), min_size=6, max_size=30, unique=True),
    st.integers(1, 4), st.sampled_from([0.0, 1e3, -7.0]), st.sampled_from([1e-3, 1.0, 40.0]),
)  # fmt: skip
def test_polynomials_are_those_of_exact_moments(values, degree, offset, scale):
    x = torch.tensor(values, dtype=DOUBLE)[:, None] * scale + offset
    p = APCBasis(degree).fit(x).univariate(x)[:, :, 0]
    torch.testing.assert_close(gram(p), torch.eye(degree + 1, dtype=DOUBLE), rtol=0, atol=1e-9)
    exact = by_moments(x[:, 0].numpy(), degree)
    np.testing.assert_allclose(p.numpy(), exact, rtol=0, atol=1e-7 * np.abs(exact).max())


def test_recurrences_in_closed_form():
    """Of ±1 (Chebyshev's first step), and of Gauss-Legendre nodes, exact to degree 9."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    counts = np.round(weights / weights.sum() * 10_000).astype(int)
    a, b = APCBasis(3).fit(torch.from_numpy(np.repeat(nodes, counts))[:, None]).coefficients()
    k = torch.arange(1, 4, dtype=DOUBLE)
    torch.testing.assert_close(b[1:, 0], k**2 / (4 * k**2 - 1), rtol=0, atol=1e-3)
    assert a.shape == b.shape == (4, 1) and float(a.abs().max()) < 1e-12 and float(b[0, 0]) == 1
    basis = APCBasis(1).fit(torch.tensor([[-1.0, 0.0], [1.0, 4.0]], dtype=DOUBLE))
    assert basis.a.tolist() == [[0, 2], [0, 2]] and basis.b.tolist() == [[1, 1], [1, 4]]


def test_monomials_are_the_polynomials():
    x = draw(20, 2)
    basis = APCBasis(4).fit(x)
    powers = torch.stack([x**k for k in range(5)], 1)
    by_powers = torch.einsum("nkj,jdk->ndj", powers, basis.monomial_coefficients())
    torch.testing.assert_close(basis.univariate(x), by_powers, rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 999))
def test_few_distinct_values_have_few_polynomials(distinct, degree, seed):
    rng = np.random.default_rng(seed)
    levels = rng.permutation(50)[:distinct] * 0.37 - 5
    values = np.concatenate([levels, rng.choice(levels, 20)])
    basis = APCBasis(degree).fit(torch.from_numpy(values)[:, None])
    kept = min(degree, distinct - 1)
    p = basis.univariate(torch.from_numpy(values)[:, None])[:, :, 0]
    assert int(basis.degrees) == kept and bool(torch.isfinite(p).all())
    assert not bool(p[:, kept + 1 :].any())
    torch.testing.assert_close(
        gram(p[:, : kept + 1]), torch.eye(kept + 1, dtype=DOUBLE), rtol=0, atol=1e-8
    )


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 4))
def test_multi_indices(n, degree):
    indices = total_degree_indices(n, degree)
    assert indices.dtype == torch.int64 and len(indices) == math.comb(n + degree, degree)
    assert len({tuple(row) for row in indices.tolist()}) == len(indices)
    sums = indices.sum(1)
    assert bool((sums[1:] >= sums[:-1]).all()) and int(sums[0]) == 0 and int(sums[-1]) == degree


# -------------------------------------------------------------------------------------- layers


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 999))
def test_features_are_products_of_polynomials(n, degree, seed):
    x = draw(60, n, seed=seed)
    layer = DaPCLayer(n, 2, degree)
    layer.refresh(x)
    p = layer.polynomials.univariate(x)
    w = draw(len(layer.indices), 2, seed=seed + 1)
    layer.set_coefficients(w)
    z = torch.zeros(60, 2, dtype=DOUBLE)
    for alpha, row in zip(layer.indices.tolist(), w, strict=True):
        term = torch.ones(60, dtype=DOUBLE)
        for signal, k in enumerate(alpha):
            term = term * p[:, k, signal]
        z += term[:, None] * row
    torch.testing.assert_close(layer(x), z)
    torch.testing.assert_close(layer.coefficients, w)


def test_joint_basis_is_gram_schmidt():
    """Orthonormal for signals that depend on each other, and triangular: numpy's QR."""
    x = draw(80, 2)
    x = torch.cat([x, x[:, :1] + 0.2 * draw(80, 1, seed=1)], 1)
    product, joint = DaPCLayer(3, 1, 2), DaPCLayer(3, 1, 2, "joint")
    product.refresh(x)
    joint.refresh(x)
    assert float((product.gram(x) - torch.eye(10)).abs().max()) > 0.5
    torch.testing.assert_close(joint.gram(x), torch.eye(10, dtype=DOUBLE), rtol=0, atol=1e-8)
    q, r = np.linalg.qr(product.features(x).numpy())
    q *= np.sign(np.diag(r)) * math.sqrt(80)
    torch.testing.assert_close(joint.features(x), torch.from_numpy(q), rtol=0, atol=1e-6)


def test_gradients_see_statistics_as_constants():
    x = draw(30, 2).requires_grad_()
    for basis in ("product", "joint"):
        layer = DaPCLayer(2, 1, 2, basis)
        layer.refresh(x)
        assert not any(buffer.requires_grad for buffer in layer.buffers())
        # One sample's output must not depend on the others.
        (slope,) = torch.autograd.grad(layer(x)[3, 0], x)
        assert bool(slope[3].any()) and not bool(slope[[0, 1, 2, *range(4, 30)]].any())


def test_state_dict_keeps_statistics():
    x, y = inputs(60, 0)
    model = DaPCNN(3, (3,), basis="joint")
    model.fit(x, y, steps=3)
    twin = DaPCNN(3, (3,), basis="joint")
    with pytest.raises(RuntimeError, match="no statistics"):
        twin.predict(x)
    # Loaded ones are row-major: were these in another order, products might round differently.
    assert all(buffer.is_contiguous() for buffer in model.buffers())
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.predict(x), model.predict(x))
    assert torch.equal(twin.variance(), model.variance())


def test_signals_are_held_outside_their_range():
    x = torch.linspace(0, 1, 50, dtype=DOUBLE)[:, None]
    model = fit_apc(x, x[:, 0] ** 2, 2)
    far = torch.tensor([[-5.0], [1.05], [9.0]], dtype=DOUBLE)
    held = torch.tensor([0.01, 1.1025, 1.21], dtype=DOUBLE)
    torch.testing.assert_close(model.predict(far)[:, 0], held)
    torch.testing.assert_close(model.predict(far, clamp=False)[:, 0], far[:, 0] ** 2)


# ------------------------------------------------------------------------------------ training


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 1e-3, 0.5]))
def test_ridge_by_stacked_rows(seed, ridge):
    psi, y = draw(40, 6, seed=seed), draw(40, 2, seed=seed + 1)
    rows = np.concatenate([psi.numpy(), math.sqrt(40 * ridge) * np.eye(6)])
    exact, *_ = np.linalg.lstsq(rows, np.concatenate([y.numpy(), np.zeros((6, 2))]))
    torch.testing.assert_close(solve_ridge(psi, y, ridge), torch.from_numpy(exact))


def test_projected_loss_has_the_gradient_through_the_solve():
    """Of a whole network, against autograd through the linear solve and differences."""
    x, y = inputs(50, 1)
    y = y[:, None]
    model = DaPCNN(3, (4,), basis="joint")
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.refresh(x)
    weight = model.layers[0].linear.weight

    def loss(through):
        psi = model.features(x)
        used = psi if through else psi.detach()
        right = used.mT @ y / len(x)
        w = torch.linalg.solve(gram(used) + 1e-3 * torch.eye(used.shape[1], dtype=DOUBLE), right)
        return (psi @ w - y).square().sum() / len(x) + 1e-3 * w.square().sum()

    whole, short = (torch.autograd.grad(loss(through), weight)[0] for through in (True, False))
    torch.testing.assert_close(short, whole, rtol=0, atol=1e-10 * float(whole.abs().max()))
    with torch.no_grad():
        weight[1, 4] += 1e-6
        above = loss(True)
        weight[1, 4] -= 2e-6
        slope = float(above - loss(True)) / 2e-6
    assert float(whole[1, 4]) == pytest.approx(slope, rel=1e-4)


def test_training_learns_and_refreshes():
    x, y = inputs(120, 0)
    test = inputs(500, 1)
    model = DaPCNN(3, (4,), basis="joint")
    curve = model.fit(x, y, steps=60)
    assert len(curve) == 60 and curve[-1] < 0.5 * curve[0]
    assert off(model.predict(test[0]), test[1]) < 0.75 * off(
        fit_apc(x, y, 2).predict(test[0]), test[1]
    )
    hidden = model.activation(model.layers[0](x)).detach()
    torch.testing.assert_close(model.last.polynomials.a[0], hidden.mean(0))
    torch.testing.assert_close(
        model.last.gram(hidden), torch.eye(15, dtype=DOUBLE), rtol=0, atol=1e-6
    )
    again = DaPCNN(3, (4,), basis="joint")
    assert again.fit(x, y, steps=60) == curve
    other = DaPCNN(3, (4,), basis="joint")
    assert other.fit(x, y, steps=60, refresh=10) != curve


@pytest.mark.parametrize("activation", ("tanh", "sigmoid"))
def test_adam_trains_all_weights(activation):
    x, y = inputs(80, 0)
    model = DaPCNN(3, (4,), activation=activation)
    curve = model.fit(x, y, steps=80, solver="adam", lr=2e-2)
    assert curve[-1] < 0.6 * curve[0]
    with torch.no_grad():
        scale, mean = torch.std_mean(y, correction=0)
        error = ((model(x)[:, 0] - y) / scale).square().mean()
        penalty = 1e-3 * model.last.coefficients.square().sum()
        penalty += 1e-4 * model.layers[0].coefficients.square().sum()
    # The last step changed weights by a rate near 0.
    assert float(error + penalty) == pytest.approx(curve[-1], rel=1e-2)


def test_batches_with_statistics_of_all():
    """The layers as ordinary modules in a loop of the user's."""
    x, y = inputs(100, 0)
    model = DaPCNN(3, (4,))
    model.reset_parameters(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        model.refresh(x)
        means = model.last.polynomials.a.clone()
        for rows in torch.arange(100).split(25):
            optimizer.zero_grad()
            loss = (model(x[rows])[:, 0] - y[rows]).square().mean()
            loss.backward()
            optimizer.step()
        assert torch.equal(model.last.polynomials.a, means)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_float32_network():
    x, y = inputs(80, 0)
    single = DaPCNN(3, (4,), basis="joint", dtype=torch.float32)
    single.fit(x.float(), y.float(), steps=20)
    double = DaPCNN(3, (4,), basis="joint")
    double.fit(x, y, steps=20)
    assert single.predict(x.float()).dtype == torch.float32
    assert single.last.polynomials.a.dtype == torch.float64
    torch.testing.assert_close(
        single.predict(x.float()).double(), double.predict(x), rtol=0, atol=0.05
    )
    assert double.float().last.polynomials.b.dtype == torch.float64


def test_a_dropped_term_changes_nothing():
    """A binary input next to others: finite, and as good as with what can be expanded."""
    x = draw(60, 2)
    x[:, 1] = (x[:, 1] > 0).double()
    y = x[:, 0] ** 2 + 3 * x[:, 1] * x[:, 0]
    with pytest.warns(
        UserWarning, match="signal 1 has 2 distinct values, to rounding: its terms above degree 1"
    ):
        model = fit_apc(x, y, 2)
    torch.testing.assert_close(model.predict(x)[:, 0], y)
    with pytest.warns(UserWarning, match="signal 1 is constant"):
        model = fit_apc(
            torch.stack([x[:, 0], torch.ones(60, dtype=DOUBLE)], 1), x[:, 0], 2, 0, "joint"
        )
    torch.testing.assert_close(model.predict(torch.cat([x[:, :1], x[:, :1]], 1))[:, 0], x[:, 0])


def test_pruned_terms_are_a_layers_sparse_weight():
    x, y = inputs(60, 0)
    model = DaPCNN(3, (16,))
    layers = sat.sparsify_(
        model, "srste", "2:8", filter_fn=lambda _, layer: layer.in_features % 8 == 0
    ).layers
    assert {layer.name: layer.pattern for layer in layers} == {
        "layers.0.linear": "dense", "layers.1.linear": "2:8",
    }  # fmt: skip
    model.fit(x, y, steps=2, solver="adam")
    psi = model.features(x).detach()
    w = model.last.coefficients.detach()[:, 0]
    groups = w[1:].view(-1, 8)
    kept = torch.zeros_like(groups).scatter(1, groups.abs().topk(2, 1).indices, 1)
    z = psi[:, 1:] @ (groups * kept).flatten() + w[0]
    got = ((model(x).detach() - model.y_mean) / model.y_scale)[:, 0]
    assert float((got - z).norm()) < 2e-3 * float(z.norm())


# ---------------------------------------------------------------------------------- statistics


def test_moments_of_coefficients():
    x, y = inputs(200, 2)
    model = DaPCNN(3, (4,), basis="joint")
    model.fit(x, y, steps=5)
    assert float(model.mean()) == pytest.approx(float(y.mean()), abs=1e-8)
    assert float(model.variance()) == pytest.approx(
        float(model.predict(x).var(correction=0)), rel=1e-7
    )
    product = DaPCNN(3, (4,))
    product.fit(x, y, steps=5)
    for what in (product.mean, product.variance):
        with pytest.raises(ValueError, match="not orthonormal for hidden signals"):
            what()
    with pytest.raises(ValueError, match="1 hidden layers"):
        model.sobol()


def test_sobol_indices_of_a_polynomial():
    """2 x1 + x2 + 3 x1 x2 of a full grid of ±1: variances 4, 1, 9."""
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 2).repeat(3, 1)
    y = 5 + 2 * grid[:, 0] + grid[:, 1] + 3 * grid.prod(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = fit_apc(grid, y, 2).sobol()
    assert found.mean == pytest.approx(5) and found.variance == pytest.approx(14)
    torch.testing.assert_close(found.first, torch.tensor([4 / 14, 1 / 14], dtype=DOUBLE))
    torch.testing.assert_close(found.total, torch.tensor([13 / 14, 10 / 14], dtype=DOUBLE))


def test_functions_by_quadrature():
    """Ishigami's moments by Gauss-Legendre on a grid; the borehole by its formula."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    grid = np.stack(np.meshgrid(*[nodes * math.pi] * 3, indexing="ij"), -1)
    values = ishigami(torch.from_numpy(grid.reshape(-1, 3))).numpy().reshape(24, 24, 24)
    w = weights / 2
    exact = ishigami_moments()
    mean = np.einsum("ijk,i,j,k", values, w, w, w)
    of_1 = np.einsum("ijk,j,k->i", values, w, w) - mean
    of_23 = np.einsum("ijk,i->jk", values, w) - mean
    variance = np.einsum("ijk,i,j,k", (values - mean) ** 2, w, w, w)
    assert mean == pytest.approx(exact.mean) and variance == pytest.approx(exact.variance)
    assert variance == pytest.approx(13.844588, abs=1e-6)
    assert (w @ of_1**2) / variance == pytest.approx(float(exact.first[0]))
    total = 1 - np.einsum("jk,j,k", of_23**2, w, w) / variance
    assert total == pytest.approx(float(exact.total[0]))
    middle = borehole(torch.full((1, 8), 0.5, dtype=DOUBLE))
    log = math.log(25_050 / 0.1)
    top = 2 * math.pi * 89_335 * (1050 - 760)
    leak = 2 * 1400 * 89_335 / (log * 0.1**2 * 10_950)
    assert float(middle) == pytest.approx(top / (log * (1 + leak + 89_335 / 89.55)))


# ----------------------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    x, y = inputs(30, 0)

    def bad(make, text, error=ValueError):
        with pytest.raises(error, match=text):
            make()

    bad(lambda: APCBasis(0), "degree=0")
    bad(lambda: DaPCLayer(3, 2, 0), "degree=0")
    bad(lambda: DaPCLayer(3, 2, basis="pc"), "basis='pc': must be one of product, joint")
    bad(lambda: DaPCLayer(3, 2, dtype=torch.float16), "dtype=torch.float16")
    bad(lambda: total_degree_indices(60, 3), "39711 terms, must be at most 5000")
    bad(lambda: DaPCNN(3, (100,)), "5151 terms")
    bad(lambda: DaPCNN(3, (4,), activation="relu"), "activation='relu'")
    bad(lambda: DaPCNN(3, (0,)), "n_out=0")
    bad(lambda: APCBasis(2).coefficients(), "no statistics: call fit", RuntimeError)
    bad(lambda: DaPCNN(3, ()).predict(x), "no statistics", RuntimeError)
    bad(lambda: APCBasis(2).fit(x.long()), "torch.int64: must be a float32 or float64", TypeError)
    bad(lambda: APCBasis(2).fit(x.to(torch.complex128)), "complex128", TypeError)
    bad(lambda: APCBasis(2).fit(x[:, 0]), r"x has shape \(30,\)")
    bad(lambda: APCBasis(2).fit(x[:0]), r"shape \(0, 3\)")
    bad(lambda: APCBasis(2).fit(x / 0), "infinities or NaNs")
    model = fit_apc(x, y, 1)
    bad(lambda: model.predict(x[:, :2]), r"must be \(N, 3\)")
    bad(lambda: model.predict(x * float("nan")), "infinities or NaNs")
    bad(lambda: fit_apc(x, y, 4), "30 samples for 35 terms with ridge=0")
    twins = torch.ones(4, 2, dtype=torch.float64)
    bad(lambda: solve_ridge(twins, twins, 0.0), "ridge=0.0: term 1 of 2 is a combination of those")
    bad(lambda: DaPCNN(3, (4,)).fit(x, y, ridge=-1), "ridge=-1")
    bad(lambda: DaPCNN(3, (4,)).fit(x, y, lr=0), "lr=0")
    bad(lambda: DaPCNN(3, (4,)).fit(x, y, steps=0), "steps=0")
    bad(
        lambda: DaPCNN(3, (4,)).fit(x, y, solver="sgd"), "solver='sgd': must be one of varpro, adam"
    )
    bad(lambda: DaPCNN(3, (4,), 2).fit(x, y[:, None]), r"y has shape \(30, 1\): must be \(N, 2\)")
    bad(lambda: DaPCNN(3, (4,)).fit(x, y[:9]), "must have as many rows")
    bad(lambda: DaPCNN(3, (4,)).fit(x.float(), y), "the network's dtype")
    bad(lambda: DaPCNN(3, (4,)).fit(x, 0 * y), "output 0 is constant")
    bad(lambda: DaPCNN(3, (), 1, 4, basis="joint").refresh(x), "30 samples for 35 terms: the Gram")
    twice = torch.cat([x[:, :1], x[:, :1] * 2 + 1], 1)
    bad(lambda: DaPCLayer(2, 1, 1, "joint").refresh(twice), r"term \(0, 1\) is a combination")
    dead = DaPCNN(3, (4,))
    with torch.no_grad():
        dead.layers[0].linear.weight[2] = 0
    bad(lambda: dead.refresh(x), "node 2 of hidden layer 1 is constant")
    bad(lambda: ishigami(x[:, :2]), r"must be \(N, 3\)")
    bad(lambda: borehole(2 * torch.ones(1, 8)), "must be within 0 to 1")
