"""Solvers that methods are judged by, against exact solutions; random fields; the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.methods.problems.darcy import darcy_1d, darcy_2d, darcy_samples, two_phases
from sat.methods.problems.fields import neumann_field, relative_l2
from sat.methods.problems.periodic import on_grid, reaction, waves
from sat.methods.problems.training import fit

# ---------------------------------------------------------------------------------- Darcy flow


@settings(max_examples=20)
@given(
    a=st.lists(st.floats(0.1, 10), min_size=2, max_size=8),
    load=st.floats(-5, 5),
)
def test_darcy_1d_against_quadrature(a, load):
    """u' = (C - f x) / a integrated by a fine midpoint rule, C from u(1) = 0."""
    a = np.array(a)
    u, flux = darcy_1d(a[None], load)
    fine = 200
    x = (np.arange(fine * len(a)) + 0.5) / (fine * len(a))
    slow = 1 / np.repeat(a, fine)
    constant = (load * x * slow).sum() / slow.sum()
    steps = (constant - load * x) * slow / (fine * len(a))
    expected = np.concatenate([[0], np.cumsum(steps)[fine - 1 :: fine]])
    np.testing.assert_allclose(u[0], expected, atol=1e-10)
    ends = np.arange(len(a) + 1) / len(a)
    np.testing.assert_allclose(flux[0], constant - load * ends, atol=1e-10)
    assert u[0, 0] == 0 and abs(u[0, -1]) < 1e-12


def test_darcy_1d_of_a_load_by_cells():
    """f of one half alone: u is a parabola there and a line in the other half."""
    u, flux = darcy_1d(np.ones((1, 4)), [2.0, 2.0, 0.0, 0.0])
    x = np.linspace(0, 1, 5)
    expected = np.where(x <= 0.5, 0.75 * x - x**2, (1 - x) / 4)
    np.testing.assert_allclose(u[0], expected, atol=1e-15)
    np.testing.assert_allclose(flux[0], [0.75, 0.25, -0.25, -0.25, -0.25], atol=1e-15)


def test_darcy_2d_has_order_two():
    """-∇·(a ∇u) = f with a = 1 + x y and u = sin(πx) sin(2πy)."""
    errors = []
    for nodes in (17, 33, 65):
        axis = np.linspace(0, 1, nodes)
        x, y = np.meshgrid(axis, axis, indexing="ij")
        a = 1 + x * y
        u = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        ux = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        uy = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        load = 5 * np.pi**2 * a * u - y * ux - x * uy
        errors.append(np.abs(darcy_2d(a[None], load)[0] - u).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders.min() > 1.9 and errors[-1] < 2e-3


def test_darcy_2d_of_layers_is_darcy_1d():
    """Layers across x, far from the other edges of a long box: the harmonic mean is exact flux.

    Of one axis alone the two solvers agree; the square is made one by copying rows of a solution.
    """
    layers = np.where(np.arange(33) < 16, 1.0, 4.0)
    a = np.repeat(layers[:, None], 33, 1)[None]
    u = darcy_2d(a, 1.0)[0]
    assert np.abs(u - u[:, ::-1]).max() < 1e-12
    # Fluxes into each inner node add up to the load of its cell.
    h = 1 / 32
    east = 2 / (1 / a[0, 1:] + 1 / a[0, :-1]) * (u[1:] - u[:-1])
    north = 2 / (1 / a[0, :, 1:] + 1 / a[0, :, :-1]) * (u[:, 1:] - u[:, :-1])
    balance = (east[1:] - east[:-1])[:, 1:-1] + (north[:, 1:] - north[:, :-1])[1:-1]
    np.testing.assert_allclose(balance, -(h**2), atol=1e-14)
    assert not u[0].any() and not u[:, 0].any() and not u[-1].any() and not u[:, -1].any()


def test_darcy_samples_are_two_phases_and_solved():
    a, u = darcy_samples(3, 9, 5, a=(2.0, 7.0), f=3.0)
    assert a.dtype == u.dtype == torch.float32 and a.shape == u.shape == (3, 9, 9)
    assert set(a.unique().tolist()) <= {2.0, 7.0}
    np.testing.assert_allclose(u.numpy(), darcy_2d(a.numpy(), 3.0), rtol=1e-6, atol=1e-8)
    again, _ = darcy_samples(3, 9, 5, a=(2.0, 7.0))
    assert torch.equal(a, again) and not torch.equal(a, darcy_samples(3, 9, 6, a=(2.0, 7.0))[0])
    np.testing.assert_array_equal(two_phases(np.array([-1.0, 0.0, 2.0]), (5, 3)), [3, 5, 5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: darcy_samples(0, 9, 0), "n=0: must be an int of at least 1"),
        (lambda: darcy_samples(1, 2, 0), "size=2: must be an int of at least 3"),
        (lambda: darcy_samples(1, 9, 0, a=(0.0, 3.0)), "both phases must be positive"),
        (lambda: darcy_1d(np.ones(3)), "must be .samples, cells."),
        (lambda: darcy_1d([[1.0, -2.0]]), "a=-2.0: must be positive and finite"),
        (lambda: darcy_2d(np.ones((1, 4, 5))), "at least 3 nodes an axis"),
        (lambda: darcy_2d(np.full((1, 4, 4), np.nan)), "a=nan: must be positive"),
    ],
)
def test_bad_darcy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("mean", [True, False])
def test_field_has_its_covariance(mean):
    """Σ_k φ_k(x) φ_k(y) / (π² k² + shift)² over the modes, from 40,000 samples."""
    points = np.linspace(0, 1, 6)
    rng = np.random.default_rng(0)
    modes = [np.ones(6)] + [np.sqrt(2) * np.cos(np.pi * k * points) for k in range(1, 6)]
    eigen = [(1 / 9) ** 2 * mean] + [1 / (np.pi**2 * k**2 + 9) ** 2 for k in range(1, 6)]
    expected = sum(e * np.outer(m, m) for e, m in zip(eigen, modes, strict=True))
    one = neumann_field(40_000, points, 1, rng, mean=mean)
    np.testing.assert_allclose(one.T @ one / len(one), expected, atol=4e-4)
    two = neumann_field(40_000, points, 2, rng, mean=mean)
    pairs = [
        (np.outer(a, b), i**2 + j**2) for i, a in enumerate(modes) for j, b in enumerate(modes)
    ]
    variance = sum(m**2 / (np.pi**2 * k + 9) ** 2 for m, k in pairs if k or mean)
    np.testing.assert_allclose((two**2).mean(0), variance, rtol=0.05, atol=2e-4)


def test_relative_l2():
    true = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(relative_l2(2 * true, true), torch.ones(2))
    off = relative_l2(torch.tensor([[3.0, 4.5], [1.0, 2.0]]), true)
    torch.testing.assert_close(off, torch.tensor([0.1, 0.5]))
    with pytest.raises(ValueError, match="must be one shape"):
        relative_l2(true, true[0])


# -------------------------------------------------------------------------------- training loop


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_loop_is_a_plain_one(schedule):
    x = torch.linspace(-1, 1, 10)

    def train(by_hand):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        order = torch.Generator().manual_seed(2)

        def loss(places):
            return (weight * x[places] - x[places]).square().mean()

        if not by_hand:
            losses = fit(
                loss, 10, optimizer, epochs=3, batch=4, generator=order, schedule=schedule,
                on_epoch=seen.append,
            )  # fmt: skip
            return weight, losses
        schedulers = {
            "onecycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 9),
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9),
        }
        scheduler = schedulers.get(schedule, lambda: None)()
        losses = []
        for _ in range(3):
            order_now, now = torch.randperm(10, generator=order), []
            for places in (order_now[:4], order_now[4:8], order_now[8:]):
                weight.grad = None
                value = loss(places)
                value.backward()
                optimizer.step()
                if scheduler:
                    scheduler.step()
                now.append(float(value.detach()))
            losses.append(sum(now) / 3)
        return weight, losses

    seen = []
    (ours, curve), (theirs, expected) = train(False), train(True)
    assert torch.equal(ours, theirs) and curve == pytest.approx(expected) and seen == [1, 2, 3]
    assert curve[-1] < curve[0]


def test_bad_training():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    common = {"epochs": 1, "batch": 1, "generator": torch.Generator()}
    with pytest.raises(ValueError, match="epochs=0: must be an int of at least 1"):
        fit(lambda p: p.sum(), 1, optimizer, **(common | {"epochs": 0}))
    with pytest.raises(ValueError, match="schedule='linear': must be"):
        fit(lambda p: p.sum(), 1, optimizer, **common, schedule="linear")


# ------------------------------------------------------------------------------------- periodic


def test_waves_are_band_limited_and_of_variance_one():
    values = waves(4000, 3, np.random.default_rng(0))
    assert values.shape == (4000, 7, 7)
    assert abs(values.mean()) < 1e-12 and values.var() == pytest.approx(1, rel=0.02)
    fine = on_grid(values[:5], 20)
    spectrum = np.abs(np.fft.fft2(fine))
    number = np.fft.fftfreq(20, 1 / 20)
    length = np.hypot(number[:, None], number)
    assert spectrum[:, length > 3].max() < 1e-12 and spectrum[:, (length <= 3) & (length > 0)].min()
    np.testing.assert_allclose(on_grid(fine[:, :19, :19] * 0 + 2.0, 24), 2.0)
    np.testing.assert_allclose(on_grid(values[:2], 21)[:, ::3, ::3], values[:2], atol=1e-12)
    with pytest.raises(ValueError, match="n=6: must be at least"):
        on_grid(values, 6)


def test_reaction_of_one_wave_and_on_every_grid():
    """f = sin 2πx: f²/2 = (1 - cos 4πx)/4, each wave divided by its symbol."""
    x = np.arange(16) / 16
    f = np.repeat(np.sin(2 * np.pi * x)[:, None], 16, 1)
    u = np.sin(2 * np.pi * x) / (1 + 0.04 * np.pi**2) + 0.25
    u = u - np.cos(4 * np.pi * x) / 4 / (1 + 0.16 * np.pi**2)
    np.testing.assert_allclose(reaction(f), np.repeat(u[:, None], 16, 1), atol=1e-14)
    values = waves(3, 3, np.random.default_rng(1))
    coarse, fine = (reaction(on_grid(values, n)) for n in (16, 64))
    np.testing.assert_allclose(fine[:, ::4, ::4], coarse, atol=1e-12)
