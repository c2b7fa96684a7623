"""AuON: its scalar, both forms, the hybrid, momentum's order, what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

import sat
from sat.methods import Result
from sat.methods.auon import (
    AuON,
    HybridAuON,
    auon_direction,
    cosh_rms,
    cosh_rms_bounds,
    demo,
    hybrid_direction,
    newton_schulz,
    orthogonality,
    split_parameters,
)
from sat.methods.problems.gpt import GPT

OPTIMISERS = (AuON, HybridAuON)
every = pytest.mark.parametrize("optimiser", OPTIMISERS)


def matrix(rows, cols, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(dtype)


def one(value, gradient, optimiser=AuON, **options):
    """A parameter after one step."""
    weight = nn.Parameter(value.clone())
    weight.grad = gradient.clone()
    optimiser([weight], options.pop("lr", 0.1), **options).step()
    return weight.detach()


# ------------------------------------------------------------------------------------ scalar


@given(st.integers(1, 60), st.floats(0.05, 3), st.floats(0, 6), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_cosh_rms_is_its_formula_and_keeps_its_bounds(n, gamma, power, seed):
    x = matrix(1, n, seed)
    x = x.sign() * x.abs() ** power
    x = gamma * x / x.norm()
    r = cosh_rms(x)
    assert r == pytest.approx(math.sqrt(np.mean(np.cosh(x.numpy()) ** 2)), rel=1e-14)
    low, high = cosh_rms_bounds(n, gamma)
    assert low - 1e-14 <= r <= high + 1e-14


def test_cosh_rms_in_numbers():
    """The figures of a 4 x 4 and a 64 x 64 matrix; a sum in float64 for float32 entries."""
    np.testing.assert_allclose(cosh_rms_bounds(16), (1.0314, 1.0423), atol=5e-5)
    np.testing.assert_allclose(cosh_rms_bounds(4096), (1.000122, 1.000169), atol=5e-7)
    assert cosh_rms_bounds(1, 2.0) == pytest.approx((math.cosh(2), math.cosh(2)), rel=1e-15)
    flat = torch.full((1024, 1024), 1 / 1024)
    assert cosh_rms(flat) - 1 == pytest.approx(math.sinh(1 / 1024) ** 2 / 2, rel=1e-6)
    # A uniform variable on [-1, 1], by quadrature.
    x = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    mean = quad(lambda t: math.cosh(t) ** 2 / 2, -1, 1)[0]
    assert cosh_rms(x) == pytest.approx(math.sqrt(mean), rel=1e-5)


def test_orthogonality_in_numbers():
    q = torch.linalg.qr(matrix(7, 4))[0]
    assert orthogonality(3 * q) < 1e-14 and orthogonality(q.mT) < 1e-14
    assert orthogonality(matrix(5, 1) * matrix(1, 9)) == pytest.approx(2.0)
    diagonal = torch.diag(torch.tensor([3.0, 1.0]))
    assert orthogonality(diagonal) == pytest.approx(math.sqrt(2 * 0.8**2) / math.sqrt(2))


# --------------------------------------------------------------------------------- directions


def test_directions_of_a_matrix_by_hand():
    g = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    norm = 5 + 1e-7
    r = math.sqrt((math.cosh(3 / norm) ** 2 + math.cosh(4 / norm) ** 2 + 2) / 4)
    u, got = auon_direction(g)
    assert got == pytest.approx(r, rel=1e-14)
    torch.testing.assert_close(u, g / norm / (r + 1e-8), rtol=1e-14, atol=0)
    r = math.sqrt((math.cosh(4.5 / norm) ** 2 + math.cosh(6 / norm) ** 2 + 2) / 4)
    u, got = auon_direction(g, "code")
    assert got == pytest.approx(r, rel=1e-14)
    torch.testing.assert_close(u, g / (r + 1e-8), rtol=1e-14, atol=0)

    def f(s):
        return 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5

    p, q = f(3 / norm), f(4 / norm)
    r = math.sqrt((math.cosh(p) ** 2 + math.cosh(q) ** 2 + 2) / 4)
    u, got = hybrid_direction(g)
    assert got == pytest.approx(r, rel=1e-14)
    expected = torch.tensor([[p, 0], [0, q]], dtype=torch.float64) / (r + 1e-8)
    torch.testing.assert_close(u, expected, rtol=1e-13, atol=0)
    scale = 1.5 / math.hypot(p, q)
    r = math.sqrt((math.cosh(p * scale) ** 2 + math.cosh(q * scale) ** 2 + 2) / 4)
    assert hybrid_direction(g, brake="code")[1] == pytest.approx(r, rel=1e-6)
    assert hybrid_direction(g, ns_steps=5)[0][0, 0] == pytest.approx(
        f(f(f(f(p)))) / hybrid_direction(g, ns_steps=5)[1], rel=1e-7
    )


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999), st.floats(-6, 6))
@settings(max_examples=40, deadline=None)
def test_paper_form_keeps_direction_and_length(rows, cols, seed, power):
    g = matrix(rows, cols, seed) * 10**power
    u, r = auon_direction(g)
    assert float(u.norm()) == pytest.approx(1 / r, rel=1e-6 + 1e-7 / float(g.norm()))
    assert float(torch.linalg.svdvals(u)[0]) <= 1
    cosine = float((u / u.norm() * (g / g.norm())).sum())
    assert cosine == pytest.approx(1, abs=1e-12)
    code, r_code = auon_direction(g, "code", 0.7)
    torch.testing.assert_close(code, g / (r_code + 1e-8), rtol=1e-13, atol=0)
    h, r_hybrid = hybrid_direction(g)
    s = np.linalg.svd(g.numpy() / (np.linalg.norm(g.numpy()) + 1e-7), compute_uv=False)
    expected = np.abs(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) / r_hybrid
    got = np.linalg.svd(h.numpy(), compute_uv=False)
    np.testing.assert_allclose(got, np.sort(expected)[::-1], atol=1e-8 + 1e-10)
    assert got.max() <= 1.2025


@given(st.lists(st.floats(1e-4, 1), min_size=2, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_one_step_hardly_reconditions(values, seed):
    """By 3.4445 over a + b + c at the most, which one large and one small value come near to."""
    k = len(values)
    left, right = (torch.linalg.qr(matrix(k, k, seed + i))[0] for i in range(2))
    g = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right
    before, after = (np.linalg.cond(x.numpy()) for x in (g, hybrid_direction(g)[0]))
    assert after >= before / (3.4445 / 0.701) * (1 - 1e-6)
    extreme = torch.diag(torch.tensor([1.0, 0.01], dtype=torch.float64))
    assert np.linalg.cond(hybrid_direction(extreme)[0].numpy()) < 100 / 4.9


# ---------------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("form", ["paper", "code"])
def test_steps_are_the_papers(form, nesterov):
    """Decay, momentum, Nesterov, scalar, in that order, against numpy."""
    options = {"momentum": 0.9, "weight_decay": 0.1, "form": form, "nesterov": nesterov}
    weight = nn.Parameter(matrix(4, 3))
    w, m = weight.detach().numpy().copy(), np.zeros((4, 3))
    optimizer = AuON([weight], 0.2, **options)
    for step in range(4):
        g = matrix(4, 3, seed=step + 1)
        weight.grad = g.clone()
        optimizer.step()
        assert torch.equal(weight.grad, g)
        g = g.numpy()
        w *= 1 - 0.2 * 0.1
        m = 0.9 * m + 0.1 * g
        ahead = 0.1 * g + 0.9 * m if nesterov else m
        norm = np.linalg.norm(ahead) + 1e-7
        gamma = 1.0 if form == "paper" else 1.5
        r = np.sqrt(np.mean(np.cosh(gamma * ahead / norm) ** 2))
        w -= 0.2 * (ahead / norm if form == "paper" else ahead) / (r + 1e-8)
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12)
        assert optimizer.state[weight]["rms"] == pytest.approx(r, rel=1e-12)


@pytest.mark.parametrize("brake", ["paper", "code"])
@pytest.mark.parametrize("steps", [1, 5])
def test_hybrid_steps(brake, steps):
    g, w = matrix(3, 5, 1), matrix(3, 5)
    options = {"weight_decay": 0.5, "ns_steps": steps, "brake": brake}
    after = one(w, g, HybridAuON, **options)
    # From a zero buffer Nesterov's form is a multiple of the gradient.
    ahead = (0.05 + 0.95 * 0.05) * g
    expected = w * (1 - 0.1 * 0.5) - 0.1 * hybrid_direction(ahead, steps, brake)[0]
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-12)


def test_only_the_paper_form_forgets_the_scale():
    assert float((demo.trajectory(1e3, "paper") - demo.trajectory(1, "paper")).abs().max()) < 1e-6
    assert float((demo.trajectory(1e3, "code") - demo.trajectory(1, "code")).abs().max()) > 1


@every
def test_zero_gradients_leave_decay_alone(optimiser):
    w = matrix(3, 4)
    after = one(w, torch.zeros(3, 4).double(), optimiser, weight_decay=0.5)
    torch.testing.assert_close(after, w * 0.95)
    # Momentum still carries a matrix whose gradient has become zero.
    weight = nn.Parameter(w.clone())
    optimizer = optimiser([weight], 0.1)
    for g in (matrix(3, 4, 1), torch.zeros(3, 4).double()):
        before = weight.detach().clone()
        weight.grad = g
        optimizer.step()
        assert not torch.equal(weight, before)


def test_masked_gradients_leave_pruned_weights_alone():
    weight = nn.Parameter(matrix(4, 8))
    mask = (torch.arange(8) % 4 < 2).expand(4, 8).double()
    weight.data *= mask
    weight.register_hook(lambda g: g * mask)
    optimizer = AuON([weight], 0.1)
    for step in range(3):
        optimizer.zero_grad()
        (weight * matrix(4, 8, step)).sum().backward()
        optimizer.step()
    assert bool((weight.detach()[mask == 0] == 0).all())


@every
def test_extremes_of_float32_stay_finite(optimiser):
    for size in (1e-42, 1e-30, 1e30):
        after = one(torch.zeros(4, 6), size * matrix(4, 6, dtype=torch.float32), optimiser)
        assert bool(torch.isfinite(after).all())
    huge = one(torch.zeros(4, 6), 1e30 * matrix(4, 6, dtype=torch.float32), optimiser)
    torch.testing.assert_close(
        huge,
        one(torch.zeros(4, 6), matrix(4, 6, dtype=torch.float32), optimiser),
        rtol=1e-5,
        atol=1e-6,
    )


@every
def test_more_axes_are_flattened_on_request(optimiser):
    kernel = matrix(4, 12, dtype=torch.float32).reshape(4, 3, 2, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        value = torch.zeros(4, 3, 2, 2).to(memory_format=layout)
        after = one(value, kernel, optimiser, flatten=True)
        flat = one(torch.zeros(4, 12), kernel.flatten(1), optimiser)
        torch.testing.assert_close(after.flatten(1), flat)
    with pytest.raises(ValueError, match="must have two axes .more with flatten=True"):
        optimiser([nn.Parameter(kernel)], 0.1)


@every
def test_state_survives_a_round_trip(optimiser):
    def fresh():
        weight = nn.Parameter(matrix(3, 4, dtype=torch.float32))
        return weight, optimiser([weight], 0.1, weight_decay=0.1)

    def steps(weight, optimizer, seeds):
        for seed in seeds:
            weight.grad = matrix(3, 4, seed, torch.float32)
            optimizer.step()

    weight, optimizer = fresh()
    steps(weight, optimizer, (1, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    other, resumed = fresh()
    other.data.copy_(weight.data)
    resumed.load_state_dict(saved)
    steps(weight, optimizer, (3,))
    steps(other, resumed, (3,))
    assert torch.equal(weight, other)


@every
def test_closures_and_groups(optimiser):
    a, b = nn.Parameter(matrix(3, 4)), nn.Parameter(matrix(4, 3))
    optimizer = optimiser([{"params": [a], "lr": 0.0}, {"params": [b]}], 0.1)
    began = a.detach().clone(), b.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (a.square().sum() + b.square().sum()) / 2
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert torch.equal(a, began[0]) and not torch.equal(b, began[1])


# ------------------------------------------------------------------------------------ bad input


@every
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"gamma": math.inf}, "gamma=inf"),
    ],
)
def test_options_are_checked(optimiser, options, words):
    with pytest.raises(ValueError, match=words):
        optimiser([nn.Parameter(torch.zeros(2, 2))], **({"lr": 0.1} | options))


def test_words_are_checked():
    weight = [nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(ValueError, match="form='muon': must be one of paper, code"):
        AuON(weight, 0.1, form="muon")
    with pytest.raises(ValueError, match="brake='hard': must be one of paper, code"):
        HybridAuON(weight, 0.1, brake="hard")
    for steps in (0, 2.0, True):
        with pytest.raises(ValueError, match="ns_steps="):
            HybridAuON(weight, 0.1, ns_steps=steps)
    for call in (
        lambda: auon_direction(torch.ones(2, 2), "muon"),
        lambda: cosh_rms_bounds(0),
        lambda: cosh_rms_bounds(2.5),
        lambda: cosh_rms_bounds(3, -1.0),
        lambda: cosh_rms(torch.empty(0)),
        lambda: cosh_rms(torch.ones(2, dtype=torch.complex64)),
        lambda: orthogonality(torch.zeros(2, 2)),
        lambda: orthogonality(torch.ones(2)),
        lambda: split_parameters(nn.LayerNorm(3)),
    ):
        with pytest.raises(ValueError, match="must|no matrix|is zero"):
            call()


@every
def test_vectors_are_sent_to_adamw(optimiser):
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"parameter 1 of group 0 .*split_parameters"):
        optimiser(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"\('0.bias'\) has shape \(4,\)"):
        optimiser(model.named_parameters(), 0.1)
    optimizer = optimiser([model[0].weight], 0.1)
    with pytest.raises(ValueError, match="parameter 0 of group 1"):
        optimizer.add_param_group({"params": [model[0].bias]})
    assert len(optimizer.param_groups) == 1


@every
def test_bad_gradients_change_nothing(optimiser):
    good, bad = nn.Parameter(matrix(3, 4)), nn.Parameter(matrix(3, 4))
    optimizer = optimiser([good, bad], 0.1, weight_decay=0.1)
    good.grad = matrix(3, 4)
    for value in (math.nan, math.inf, -math.inf):
        bad.grad = matrix(3, 4)
        bad.grad[1, 2] = value
        before = good.detach().clone(), bad.detach().clone()
        with pytest.raises(ValueError, match="parameter 1 of group 0: .* nothing was changed"):
            optimizer.step()
        assert torch.equal(good, before[0]) and torch.equal(bad, before[1])
        assert not optimizer.state
    table = nn.Embedding(5, 4, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="layout torch.sparse_coo: must be dense"):
        optimiser([table.weight], 0.1).step()
    twisted = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    twisted.grad = torch.ones(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="must be real floating point"):
        optimiser([twisted], 0.1).step()
    bad.grad = matrix(3, 4)
    optimizer.step()


# --------------------------------------------------------------------------------------- demo


def test_muon_is_torchs_to_bfloat16_and_sgd_is_auon():
    result = Result()
    demo._spectra(result, 1)
    demo._scalar(result, 1)
    demo._muon_agrees(result, 1)
    assert result.passed, [str(check) for check in result.checks if not check.passed]


def test_hybrid_is_a_client_of_offload():
    """Its products are those of the formula: 3 a matrix and step, all of them on the device."""
    model = GPT(7, width=16, layers=1, heads=2, context=8)
    matrices, _ = split_parameters(model)
    optimizer = HybridAuON(matrices, 0.1)
    for matrix_ in matrices:
        matrix_.grad = torch.randn(matrix_.shape)
    with sat.offload("golden") as report:
        optimizer.step()
    k = [min(m.shape) for m in matrices]
    long = [max(m.shape) for m in matrices]
    assert report.coverage == 1 and report.calls == 3 * len(matrices)
    assert sum(work.flops for work in report) == sum(
        2 * k * k * (2 * n + k) for k, n in zip(k, long, strict=True)
    )
    with sat.offload("golden", precision="fp16"):
        u = newton_schulz(matrices[0].grad)
    exact = newton_schulz(matrices[0].grad)
    assert float((u - exact).norm() / exact.norm()) < 1e-2
