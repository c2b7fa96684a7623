"""LPINN's residuals on exact maps and by autodiff, its rules, and its references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import iv
from torch import nn

import sat
from sat.methods.lagrangian_pinn import (
    RELEASED,
    EulerianPINN,
    FoldError,
    LagrangianPINN,
    burgers_cole_hopf,
    convection_diffusion,
    fit,
    kolmogorov_n_width,
    lagrangian_residuals,
)
from sat.methods.lagrangian_pinn.models import PERIOD, along_y, embed, initial_jet, time_jet
from sat.methods.problems.jets import Jet, JetMLP


def points(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y, t = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return PERIOD * y, t


def waves(x):
    return 3 + x.sin() + 0.3 * (2 * x).cos()


def waken(model):
    """Give a model's last layers weights: they start at 0."""
    for net in (module for module in model.modules() if isinstance(module, JetMLP)):
        with torch.no_grad():
            net.layers[-1].weight.normal_(std=0.2)
            net.biases[-1].normal_(std=0.2)
    return model


def by_reverse_mode(value, y, t):
    """Return f_y, f_t, f_yy of values (points,)."""
    by_y, by_t = torch.autograd.grad(value.sum(), (y, t), create_graph=True)
    (by_yy,) = torch.autograd.grad(by_y.sum(), y, create_graph=True)
    return by_y, by_t, by_yy


# --------------------------------------------------------------------------------- residuals


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["burgers", 4.0, "own"]))
def test_residuals_by_reverse_mode(seed, hard, speed):
    torch.manual_seed(seed)
    if speed == "own":
        speed = lambda u, x, t: u * (1 - u) + x.cos() + t  # noqa: E731
    y, t = (v.requires_grad_() for v in points(seed=seed))
    model = LagrangianPINN(waves, 0.2, speed, 8, 2, 1, hard_ic=hard).double()
    x, u = waken(model)(y, t)
    stretch, x_t, bend = by_reverse_mode(x, y, t)
    if float(stretch.detach().min()) <= 0:
        with pytest.raises(FoldError, match="J = dx/dlabel is"):
            model.residuals(y, t)
        return
    u_y, u_t, u_yy = by_reverse_mode(u, y, t)
    u_xx = (u_yy - u_y * bend / stretch) / stretch**2
    c = {"burgers": u, 4.0: 4.0}[speed] if not callable(speed) else u * (1 - u) + x.cos() + t
    of_x, of_u = model.residuals(y, t)
    torch.testing.assert_close(of_x, x_t - c, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(of_u, u_t - 0.2 * u_xx, rtol=1e-10, atol=1e-10)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.booleans(), st.floats(-5, 5))
def test_eulerian_residual_by_reverse_mode(seed, hard, frame):
    torch.manual_seed(seed)
    x, t = (v.requires_grad_() for v in points(seed=seed))
    model = waken(EulerianPINN(waves, 0.2, width=8, depth_u=2, hard_ic=hard, frame=frame).double())
    _, u = model(x, t)
    u_x, u_t, u_xx = by_reverse_mode(u, x, t)
    zero, got = model.residuals((x - frame * t).detach(), t.detach())
    torch.testing.assert_close(got, u_t + u * u_x - 0.2 * u_xx, rtol=1e-10, atol=1e-10)
    assert not zero.any()


def test_chain_rule_on_a_known_map():
    """u = cos x seen from labels x = ξ + 0.4 sin ξ: u_xx = -cos x, and not u_ξξ."""
    y, t = points()
    place = along_y(y + 0.4 * y.sin(), 1 + 0.4 * y.cos(), -0.4 * y.sin())
    x = place.value[:, 0]
    u = place.through(x.cos()[:, None], -x.sin()[:, None], -x.cos()[:, None])
    _, with_rule = lagrangian_residuals(place, u, t, 1.0, 0.0)
    torch.testing.assert_close(with_rule, x.cos(), rtol=0, atol=1e-12)
    _, without = lagrangian_residuals(place, u, t, 1.0, 0.0, jacobian=False)
    assert float((without - x.cos()).norm() / x.cos().norm()) > 0.3


def test_simple_wave_has_no_residual_and_folds_at_its_shock():
    y, t = points()
    label = along_y(y, torch.ones_like(y), torch.zeros_like(y))
    wave = along_y(y.sin(), y.cos(), -y.sin())
    for r in lagrangian_residuals(label + time_jet(0.9 * t) * wave, wave, t, 0.0, "burgers"):
        assert float(r.abs().max()) < 1e-14
    late = torch.full_like(t, 1.5)  # characteristics meet at t = 1
    y[0] = math.pi
    wave = along_y(y.sin(), y.cos(), -y.sin())
    with pytest.raises(FoldError, match=r"J = dx/dlabel is -0.5 at t=1.5: must be positive"):
        lagrangian_residuals(label + time_jet(late) * wave, wave, late, 0.0, "burgers")


class Released(nn.Module):
    """What the released class computes: shared layers, one used again, x of (cos, sin, t)."""

    def __init__(self, width, depth):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, width), *(nn.Linear(width, width) for _ in "12")])
        self.output, self.depth = nn.Linear(width, 1), depth

    def forward(self, y, t):
        z = torch.stack([y.cos(), y.sin(), t], 1)
        first, second, third = self.inner
        x = second(first(z).tanh()).tanh()
        u = third(x).tanh()
        for _ in range(self.depth - 3):
            u = third(u).tanh()
        return self.output(u)[:, 0], self.output(x)[:, 0]


@pytest.mark.parametrize("depth", (3, 5))
def test_same_as_the_released_class_with_its_weights_and_no_jacobian(depth):
    torch.manual_seed(0)
    released = Released(10, depth).double()
    inner = [*released.inner, *[released.inner[2]] * (depth - 3)]
    ours = []
    for layers in (inner, inner[:2]):
        net = JetMLP([3, *[10] * len(layers), 1]).double()
        for i, layer in enumerate((*layers, released.output)):
            net.layers[i].weight, net.biases[i] = layer.weight, layer.bias
        ours.append(net)
    y, t = (v.requires_grad_() for v in points())
    u, x = released(y, t)
    _, u_t, u_yy = by_reverse_mode(u, y, t)
    _, x_t, _ = by_reverse_mode(x, y, t)
    jets = [net.jet(embed(y, t)) for net in ours]
    torch.testing.assert_close(jets[0].value[:, 0], u, rtol=0, atol=1e-14)
    torch.testing.assert_close(jets[1].value[:, 0], x, rtol=0, atol=1e-14)
    of_x, of_u = lagrangian_residuals(jets[1], jets[0], t, 0.01, 7.0, jacobian=False)
    torch.testing.assert_close(of_x, x_t - 7, rtol=0, atol=1e-12)
    torch.testing.assert_close(of_u, u_t - 0.01 * u_yy, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------ models


def test_branches_share_nothing_and_start_as_pure_translation():
    model = LagrangianPINN(waves, 0.0, 50.0).double()
    assert not {id(p) for p in model.u_net.parameters()} & {id(p) for p in model.x_net.parameters()}
    y, t = points()
    x, u = model(y, t)
    torch.testing.assert_close(x, y + 50 * t)
    torch.testing.assert_close(u, waves(y))
    assert all(float(r.detach().abs().max()) < 1e-12 for r in model.residuals(y, t))
    widths = [[layer.out_features for layer in net.layers] for net in (model.u_net, model.x_net)]
    assert widths == [[50] * 5 + [1], [50] * 2 + [1]]


def test_reference_speed_is_the_mean_or_what_is_known():
    assert LagrangianPINN(waves, 0.1).u_ref == pytest.approx(3, abs=1e-12)
    assert LagrangianPINN(waves, 0.1, 7).u_ref == 7
    assert LagrangianPINN(waves, 0.1, u_ref=1.5).u_ref == 1.5


@given(st.floats(0, 1), st.integers(-3, 3), st.booleans())
def test_maps_are_periodic_up_to_the_period(t, turns, hard):
    torch.manual_seed(0)
    model = waken(LagrangianPINN(waves, 0.1, hard_ic=hard, width=8).double())
    y, _ = points()
    time = torch.full_like(y, t)
    (x, u), (far, same) = model(y, time), model(y + turns * PERIOD, time)
    torch.testing.assert_close(far - x, torch.full_like(x, turns * PERIOD))
    torch.testing.assert_close(same, u)
    if hard:
        x, u = model(y, torch.zeros_like(y))
        torch.testing.assert_close(x, y, rtol=0, atol=0)
        torch.testing.assert_close(u, waves(y), rtol=0, atol=0)
        assert not any(off.any() for off in model.initial_residuals(y))


def test_loss_is_galilean_invariant():
    y, t = points()
    losses = []
    for c in (0.0, 50.0):
        torch.manual_seed(1)
        model = waken(LagrangianPINN(lambda x, c=c: c + x.sin(), 0.3, width=8).double())
        losses.append([float(r.detach().square().mean()) for r in model.residuals(y, t)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)


def test_prediction_inverts_the_map():
    torch.manual_seed(2)
    model = LagrangianPINN(waves, 0.1, width=8).double()
    with torch.no_grad():
        model.x_net.layers[-1].weight.normal_(std=0.1)
        model.u_net.layers[-1].weight.normal_(std=0.5)
    y, _ = points(50)
    x, u = model(y, torch.full_like(y, 0.7))
    torch.testing.assert_close(model.predict(x.detach(), 0.7), u.detach(), rtol=0, atol=1e-5)
    shifted = model.predict(x.detach() - 4 * PERIOD, 0.7)
    torch.testing.assert_close(shifted, u.detach(), rtol=0, atol=1e-5)
    half, _ = model(torch.linspace(0.1, 3, 9).double(), torch.full((9,), 0.7).double())
    model.predict(half.detach(), 0.7, labels=(0.0, math.pi))
    with pytest.raises(ValueError, match="x_grid has places that no label from 0 to 3.142 is at"):
        model.predict(x.detach(), 0.7, labels=(0.0, math.pi))
    with pytest.raises(ValueError, match="must grow, by at most"):
        model.predict(x.detach(), 0.7, labels=(0.0, 7.0))


def test_initial_values_by_forward_mode():
    y, _ = points()
    jet = initial_jet(waves, y)
    torch.testing.assert_close(jet.value[:, 0], waves(y))
    torch.testing.assert_close(jet.first[0, :, 0], y.cos() - 0.6 * (2 * y).sin())
    torch.testing.assert_close(jet.second[0, :, 0], -y.sin() - 1.2 * (2 * y).cos())
    assert not jet.first[1].any()


@pytest.mark.parametrize("options", ({}, {"hard_ic": False}, {"hard_ic": False, "norms": True}))
def test_training_learns(options):
    torch.manual_seed(0)
    options = dict(options)
    norms = options.pop("norms", False)
    model = LagrangianPINN(lambda x: 30 + x.sin(), 0.3, width=16, depth_u=2, **options)
    steps = []
    weights = RELEASED if norms else None
    curve = fit(model, 100, 120, 1e-2, weights, norms=norms, on_step=steps.append)
    assert len(steps) == 120 and np.mean(curve[-10:]) < 0.3 * curve[0]


def test_pruned_layers_train_and_are_offloaded():
    torch.manual_seed(0)
    model = LagrangianPINN(lambda x: x.sin(), 0.3, width=16, depth_u=2)
    wide = {"filter_fn": lambda _, layer: layer.in_features == layer.out_features}
    sat.sparsify_(model, "bdwp", "2:8", **wide)
    with sat.offload("golden") as report:
        curve = fit(model, 50, 3)
    assert report.coverage == 1 and all(math.isfinite(v) for v in curve)
    assert any("2:8" in work.size for work in report)


# -------------------------------------------------------------------------------- references


@pytest.mark.parametrize("nu", (0.3, 0.1))
@pytest.mark.parametrize("t", (0.0, 0.2, 1.0))
def test_cole_hopf_by_its_bessel_series(nu, t):
    x, n = np.linspace(0, 2 * np.pi, 50), np.arange(1, 60)
    weights = iv(n, 1 / (2 * nu)) * np.exp(-(n**2) * nu * t)
    phi = iv(0, 1 / (2 * nu)) + 2 * (weights * np.cos(np.outer(x, n))).sum(1)
    slope = -2 * (n * weights * np.sin(np.outer(x, n))).sum(1)
    got = burgers_cole_hopf(x + 5 * t, t, nu, 5.0)
    np.testing.assert_allclose(got, 5 - 2 * nu * slope / phi, atol=1e-11)


def test_cole_hopf_solves_burgers_down_to_small_diffusion():
    """By differences, at the least ν that its documentation names."""
    x, h, nu = np.linspace(0, 2 * np.pi, 101), 1e-3, 0.02
    for t in (0.5, 0.99):
        u, right, left = (burgers_cole_hopf(x + s * h, t, nu, 1.0) for s in (0, 1, -1))
        after, before = (burgers_cole_hopf(x, t + s * h, nu, 1.0) for s in (1, -1))
        by_x, by_xx = (right - left) / (2 * h), (right + left - 2 * u) / h**2
        off = (after - before) / (2 * h) + u * by_x - nu * by_xx
        assert np.abs(off).max() < 1e-3 * np.abs(u * by_x).max()


def test_convection_and_diffusion_by_fourier_series():
    x, t, c, nu = np.arange(64) * 2 * np.pi / 64, 0.37, 11.0, 0.05
    k = np.fft.fftfreq(64, 1 / 64)
    spectrum = np.fft.fft(np.sin(x)) * np.exp(-(nu * k**2 + 1j * c * k) * t)
    np.testing.assert_allclose(
        convection_diffusion(x, t, c, nu), np.fft.ifft(spectrum).real, atol=1e-13
    )


def test_n_width_of_known_snapshots():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((20, 3)))
    v, _ = np.linalg.qr(rng.standard_normal((8, 3)))
    snapshots = q @ np.diag([4.0, 2.0, 1.0]) @ v.T
    got = [kolmogorov_n_width(snapshots, n) for n in range(4)]
    np.testing.assert_allclose(got, [1, (5 / 21) ** 0.5, (1 / 21) ** 0.5, 0], atol=1e-12)
    for bad in (
        (0 * snapshots, 1),
        (np.nan * snapshots, 1),
        (snapshots[0], 1),
        (snapshots, 9),
        (snapshots, -1),
    ):
        with pytest.raises(ValueError, match="must be"):
            kolmogorov_n_width(*bad)


# --------------------------------------------------------------------------------- bad input


def test_bad_input_is_named():
    def bad(make, text, error=ValueError):
        with pytest.raises(error, match=text):
            make()

    bad(lambda: LagrangianPINN(3.0, 0.1), "u0 is a float: must be a function", TypeError)
    bad(lambda: LagrangianPINN(waves, -0.1), "nu=-0.1: must be finite and not negative")
    bad(lambda: LagrangianPINN(waves, math.nan), "nu=nan")
    bad(lambda: LagrangianPINN(waves, 0.1, math.nan), "speed=nan: must be finite")
    bad(lambda: LagrangianPINN(waves, 0.1, "euler"), "speed='euler'")
    bad(lambda: LagrangianPINN(waves, 0.1, u_ref=math.inf), "u_ref=inf")
    bad(lambda: LagrangianPINN(lambda x: x, 0.1), "u0 differs by 6.283 between 0 and 2π")
    bad(lambda: LagrangianPINN(waves, 0.1, length=1.0), "length=1.0: must be 2π; rescale x")
    bad(lambda: LagrangianPINN(waves, 0.1, t_max=0.0), "t_max=0.0")
    bad(lambda: LagrangianPINN(waves, 0.1, depth_x=0), "depth_x=0")
    model = LagrangianPINN(waves, 0.1, width=4)
    y = torch.zeros(3)
    bad(lambda: model(y, y - 1), "t has -1.0: must not be negative")
    bad(lambda: model.predict(y, -1.0), "must not be negative")
    with pytest.warns(UserWarning, match="t up to 2 is outside the training window of 1 s"):
        model(y, y + 2)
    bad(lambda: fit(model, 0), "n_points=0")
    bad(lambda: fit(model, 10, 1, weights={"bc": 1.0}), "weights has 'bc'")
    bad(lambda: fit(model, 10, 1, weights={"x": -1.0}), r"weights\['x'\]=-1.0")
    bad(lambda: burgers_cole_hopf(np.zeros(2), 0.1, 0.0), "nu=0.0: must be positive")
    bad(lambda: burgers_cole_hopf(np.zeros(2), -0.1, 1.0), "t has -0.1: must not be negative")
    bad(lambda: LagrangianPINN(lambda x: 3.0, 0.1), r"u0 gave \(\) for places")
    bad(lambda: LagrangianPINN(lambda x: x.sin().sum(), 0.1), "must be a tensor of a value at each")
    with torch.no_grad():
        model.x_net.layers[-1].weight.copy_(torch.tensor([[50.0, -50.0, 50.0, 50.0]]))
    bad(lambda: fit(model, 200, 1), "J = dx/dlabel is", FoldError)
    bad(lambda: model.predict(y, 1.0), "J = dx/dlabel is", FoldError)


def test_jets_of_the_embedding():
    y, t = (v.requires_grad_() for v in points())
    jet = embed(y, t)
    assert isinstance(jet, Jet)
    for channel in range(3):
        value = (y.cos(), y.sin(), t)[channel]
        by_y, by_t = torch.autograd.grad(value.sum(), (y, t), create_graph=True, allow_unused=True)
        zero = torch.zeros_like(y)
        torch.testing.assert_close(jet.first[0, :, channel], zero if by_y is None else by_y)
        torch.testing.assert_close(jet.first[1, :, channel], zero if by_t is None else by_t)


def test_eulerian_predictions_take_any_grid():
    torch.manual_seed(0)
    model = waken(EulerianPINN(waves, 0.1, width=8))
    grid, _ = points()
    got = model.predict(grid, 0.5)
    assert got.dtype == torch.float32 and torch.equal(got, model.predict(grid.float(), 0.5))


def test_a_network_that_folds_for_want_of_the_jacobian_is_infinitely_far_off(monkeypatch):
    """Its demo goes on: with other rounding the same training may fold, or not."""
    from sat.methods.lagrangian_pinn import demo

    def fold(*_, **__):
        raise demo.FoldError("J is -0.05")

    monkeypatch.setattr(demo.LagrangianPINN, "predict", fold)
    assert demo.error_or_folded(0.0, 0.3, 1, 0, jacobian=False) == float("inf")
    monkeypatch.undo()
    assert 0.1 < demo.error_or_folded(0.0, 0.3, 1, 0, jacobian=False) < 1
