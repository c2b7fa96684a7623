"""S4-PTD: transfer functions, perturbations, real modes, both layers, a tone, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import Legendre
from scipy.integrate import quad
from scipy.linalg import expm, solve

import sat
from sat.data import load_data
from sat.methods.s4_ptd import (
    S4PTD,
    S5,
    S4PTDModel,
    S5Model,
    diagonal_transfer,
    legs_transfer,
    perturb_then_diagonalize,
    tone_gain,
    transfer,
)
from sat.methods.s4_ptd.demo import first_order, held_gain, s5_errors, tone_layers
from sat.methods.s4_ptd.diagonalize import diagonalize_normal_part, legs_input
from sat.methods.s4_ptd.tones import accuracy, build, prune_system
from sat.methods.s4d import hippo_legs, normal_part, parameter_groups


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def diagonalize(n, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return perturb_then_diagonalize(hippo_legs(n), legs_input(n), generator=generator, **options)


def respond(layer, u):
    """Step through a sequence."""
    state, outputs = layer.initial_state(len(u)), []
    with torch.no_grad():
        for sample in u.unbind(-1):
            y, state = layer.step(sample, state)
            outputs.append(y)
    return torch.stack(outputs, -1)


# ----------------------------------------------------------------------- transfer functions


@given(st.integers(0, 8), st.floats(0.01, 3), st.floats(-200, 200))
@settings(max_examples=25)
def test_closed_form_is_the_dense_systems_and_legendres_transform(k, real, imag):
    s = complex(real, imag)
    exact = solve(s * np.eye(12) - hippo_legs(12).numpy(), legs_input(12).numpy())[k]
    assert abs(complex(legs_transfer(k, s)) - exact) < 1e-12
    if abs(imag) < 20:
        legendre = math.sqrt(2 * k + 1) * Legendre.basis(k)

        def kernel(t):
            return math.exp(-t * (1 + real)) * legendre(2 * math.exp(-t) - 1)

        parts = [
            quad(lambda t, f=f: kernel(t) * f(imag * t), 0, 60, limit=400)[0]
            for f in (math.cos, math.sin)
        ]
        assert abs(complex(parts[0], -parts[1]) - exact) < 1e-7


@given(st.integers(2, 20), st.integers(0, 99))
@settings(max_examples=20)
def test_diagonalized_system_is_a_plus_e(n, seed):
    start = diagonalize(n, seed)
    dense = hippo_legs(n) + start.perturbation
    again = (start.vectors * start.modes) @ torch.linalg.inv(start.vectors)
    torch.testing.assert_close(again.real, dense, atol=1e-7, rtol=1e-9)
    assert float(again.imag.abs().max()) < 1e-7
    torch.testing.assert_close(start.vectors.norm(dim=0), torch.ones(n, dtype=torch.float64))
    assert (
        start.norm == pytest.approx(0.1) == float(torch.linalg.matrix_norm(start.perturbation, 2))
    )
    assert start.condition == pytest.approx(np.linalg.cond(start.vectors.numpy()), rel=1e-6)
    b = (start.vectors @ start.b).real
    torch.testing.assert_close(b, legs_input(n), atol=1e-9, rtol=1e-9)
    # Transfer functions of A + E by scipy.
    k = n // 2
    weights = start.outputs(torch.eye(n, dtype=torch.float64)[k]) * start.b
    for omega in (0.3, 5.0, 1e3):
        exact = solve(1j * omega * np.eye(n) - dense.numpy(), legs_input(n).numpy())[k]
        assert abs(complex(transfer(start.modes, weights, 1j * omega)) - exact) < 1e-9


def test_normal_part_errs_by_two_over_pi_and_ptd_does_not():
    for n in (16, 64):
        normal = diagonalize_normal_part(n, legs_input(n))
        torch.testing.assert_close(
            (normal.vectors * normal.modes) @ normal.vectors.mH,
            normal_part(n).to(torch.complex128), atol=1e-9, rtol=1e-9,
        )  # fmt: skip
        top = 1j * float(normal.modes.imag.max())
        g = float((diagonal_transfer(n, 0, top) - legs_transfer(0, top)).abs())
        assert g == pytest.approx(2 / math.pi, abs=0.003)
        start = diagonalize(n)
        weights = start.outputs(torch.eye(n, dtype=torch.float64)[0]) * start.b
        assert float((transfer(start.modes, weights, top) - legs_transfer(0, top)).abs()) < 1e-3


def test_woodbury_relates_the_normal_parts_transfer_to_the_exact_one():
    """G_D = (1 + g)/2 · G with g = Pᵀ·(s − A_N)⁻¹·P."""
    n, k = 20, 3
    p = np.sqrt(np.arange(n) + 0.5)
    for omega in (0.1, 7.0, 90.0, 2e3):
        g = p @ solve(1j * omega * np.eye(n) - normal_part(n).numpy(), p)
        expected = (1 + g) / 2 * complex(legs_transfer(k, 1j * omega))
        assert abs(complex(diagonal_transfer(n, k, 1j * omega)) - expected) < 1e-11


def test_error_is_of_first_order_in_e():
    omega = torch.logspace(-2, 5, 700, dtype=torch.float64)
    s = torch.complex(torch.zeros_like(omega), omega)
    for seed in (0, 1):
        e = torch.from_numpy(np.random.default_rng(seed).standard_normal((16, 16)))
        worst = []
        for eps in (0.1, 0.01):
            start = diagonalize(16, eps=eps, perturbation=e)
            c = torch.eye(16, dtype=torch.float64)[[0, 1, 5]]
            found = transfer(start.modes, start.outputs(c) * start.b, s)
            exact = torch.stack([legs_transfer(k, s) for k in (0, 1, 5)])
            worst.append(float((found - exact).abs().max()))
        assert worst[1] / 0.01 == pytest.approx(float(first_order(16, seed)[0]), rel=0.02)
        assert 8 < worst[0] / worst[1] < 12


def test_optimised_perturbation_is_conditioned_better_and_keeps_its_objective():
    start = diagonalize(16, perturbation="optimised", steps=60)
    plain = diagonalize(16)
    same = diagonalize(16, eps=start.norm)
    assert start.condition * 3 < min(plain.condition, same.condition)
    assert start.condition + 1e3 * start.norm < plain.condition + 1e3 * plain.norm
    assert float(start.modes.real.max()) < 0
    nothing = diagonalize(16, perturbation="optimised", steps=0)
    assert torch.equal(nothing.perturbation, plain.perturbation)


def test_an_optimisation_whose_products_overflow_says_so():
    with (
        sat.offload("golden", precision="fp16"),
        pytest.raises(FloatingPointError, match="the gradient of the condition, .* is not finite"),
    ):
        diagonalize(64, perturbation="optimised", steps=20)


def test_a_complex_perturbation_is_diagonalised_but_has_no_pairs():
    e = torch.complex(*torch.randn(2, 8, 8, dtype=torch.float64))
    start = diagonalize(8, perturbation=e)
    assert start.perturbation.is_complex() and start.norm == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"A \+ E is complex: the modes of a system of real"):
        start.kept()
    with pytest.raises(ValueError, match="give a real matrix and a real perturbation"):
        S4PTD(2, 8, perturbation=e)


def test_a_normal_matrix_is_warned_about():
    with pytest.warns(UserWarning, match="a is normal: there is nothing to perturb"):
        perturb_then_diagonalize(normal_part(8), legs_input(8))


# ----------------------------------------------------------------------------------- S4-PTD


@given(st.integers(2, 24), st.integers(0, 99))
@settings(max_examples=20)
def test_the_kernel_is_the_dense_systems_with_real_modes_halved(n, seed):
    torch.manual_seed(seed)
    layer = S4PTD(3, n, perturbation=torch.randn(n, n)).double()
    start, kernel = layer.diagonalization, layer.kernel
    real = int((start.modes.imag == 0).sum())
    assert kernel.d_state == n + real
    c = torch.randn(3, n, dtype=torch.float64)
    c[:, (n + 1) // 2 :] = 0
    with torch.no_grad():
        chosen, _ = start.kept()
        kernel.log_neg_real.copy_(torch.log(-start.modes.real[chosen]))
        kernel.imag.copy_(start.modes.imag[chosen])
        kernel.log_dt.fill_(math.log(0.02))
    layer.set_outputs(c)
    dense = (hippo_legs(n) + start.perturbation).numpy()
    step = expm(0.02 * dense)
    held = solve(dense, (step - np.eye(n)) @ legs_input(n).numpy())
    expected = []
    for _ in range(30):
        expected.append(c.numpy() @ held)
        held = step @ held
    np.testing.assert_allclose(kernel(30).detach().T, expected, atol=1e-9)


def test_a_layer_starts_on_half_the_states_with_each_modes_size_in_b():
    layer = S4PTD(200, 32)
    kernel, start = layer.kernel, layer.diagonalization
    b = torch.view_as_complex(kernel.b.detach())
    c = torch.view_as_complex(kernel.c.detach())
    assert not b.imag.any() and torch.equal(b, b[:1].expand_as(b))
    torch.testing.assert_close(c.abs().square().mean(0), torch.ones(b.shape[1]))
    # What is drawn is c of the states: solve for it.
    chosen, factor = start.kept()
    outputs = (c * b).to(torch.complex128) / (start.b[chosen] * factor)
    rows = torch.cat([start.vectors[:, chosen].real, start.vectors[:, chosen].imag], 1)
    drawn = torch.linalg.lstsq(rows[:16].mT, torch.cat([outputs.real, outputs.imag], 1).mT).solution
    assert drawn.shape == (16, 200) and float(drawn.std()) == pytest.approx(1, abs=0.05)
    again = start.outputs(torch.nn.functional.pad(drawn.mT, (0, 16)))[:, chosen]
    torch.testing.assert_close(again, outputs, atol=1e-4, rtol=1e-4)
    assert f"condition={start.condition:.3g}" in str(layer)
    kernel_length = 500
    single = kernel(kernel_length).detach()
    double = layer.double().kernel(kernel_length).detach()
    assert float((single - double).abs().max() / double.abs().max()) < 1e-4


def test_both_modes_agree():
    layer, u = S4PTD(3, 16, perturbation="optimised"), torch.randn(2, 3, 128)
    y = layer(u).detach()
    assert float((y - respond(layer, u)).abs().max()) < 1e-5 * float(y.abs().max())


@torch.no_grad()
def test_a_tone_at_the_largest_eigenfrequency():
    ptd, legs, omega = tone_layers(64, 0)
    assert omega == pytest.approx(1303.3, abs=0.1)
    exact = held_gain(omega)
    assert exact == pytest.approx(0.00080, abs=5e-6)
    assert abs(tone_gain(ptd.kernel(8192)[0], 1.0) - exact) < 1e-5
    assert tone_gain(legs.kernel(8192)[0], 1.0) > 0.5


@torch.no_grad()
def test_tone_gain_is_that_of_the_steady_response():
    kernel = torch.randn(50, dtype=torch.float64)
    place = torch.arange(200, dtype=torch.float64)
    both = [np.convolve(f(0.7 * place), kernel)[150] for f in (torch.cos, torch.sin)]
    assert tone_gain(kernel, 0.7) == pytest.approx(math.hypot(*both), rel=1e-12)


# --------------------------------------------------------------------------------------- S5


@pytest.mark.parametrize("blocks", (1, 4))
@pytest.mark.parametrize("tied", (False, True))
def test_s5_is_its_recurrence_and_scipys_dense_system(blocks, tied):
    errors = s5_errors(1, blocks=blocks, tied=tied, length=40)
    assert errors["step"] < 1e-5 and errors["scipy"] < 1e-9


@given(st.integers(1, 40), st.integers(2, 9), st.sampled_from(("ptd", "normal", "lin")))
@settings(max_examples=25)
def test_states_by_chunks_are_the_recurrence(length, chunk, init):
    layer = S5(3, 8, init=init, chunk=chunk).double()
    u = torch.randn(2, 3, length, dtype=torch.float64)
    torch.testing.assert_close(layer(u).detach(), respond(layer, u), atol=1e-10, rtol=1e-8)


def test_s5_starts_real_and_normal_with_scales_shared():
    layer = S5(50, 32, blocks=2)
    assert layer.diagonalization.condition > 100
    b, c = (torch.view_as_complex(x.detach()) for x in (layer.b, layer.c))
    size_b, size_c = b.abs().square().mean(1).sqrt(), c.abs().square().mean(0).sqrt()
    torch.testing.assert_close(size_b, size_c)
    assert S5(4, 8, init="lin").diagonalization is None
    odd = S5(2, 5, init="normal")
    assert len(odd.imag) == 3 and float(odd.imag[0].detach()) == 0
    assert math.log(1e-3) <= float(layer.log_dt.detach().min()) <= math.log(1e-1)
    with pytest.raises(ValueError, match="init='lin': has no basis but its modes"):
        S5(4, 8, init="lin").set_system(torch.zeros(8, 4), torch.zeros(4, 8))


def test_pruned_systems_hold_n_of_m_along_their_depths():
    layer = S5(16, 32)
    pruned = prune_system(layer, "2:8")
    assert int((pruned.b.view(-1, 2, 8, 2) != 0).sum(2).max()) == 2
    outputs = torch.cat([pruned.c[..., 0], pruned.c[..., 1]], 1)
    assert int((outputs[:, :32].unflatten(1, (-1, 8)) != 0).sum(-1).max()) == 2
    assert torch.equal(pruned.b[pruned.b != 0], layer.b[pruned.b != 0])


# ----------------------------------------------------------------------------------- models


@pytest.mark.parametrize("model", (S4PTDModel, S5Model))
def test_models_learn_every_parameter_slowly_or_not(model):
    net = model(2, 5, 2, d_model=8, d_state=8, eps=0.2)
    net(torch.randn(3, 2, 20)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name
        assert float(p.grad.abs().max()) > 0, name
    slow, rest = parameter_groups(net, 1e-2)
    names = {id(p): name for name, p in net.named_parameters()}
    assert sorted({names[id(p)].rsplit(".", 1)[1] for p in slow["params"]}) == [
        "b", "imag", "log_dt", "log_neg_real",
    ]  # fmt: skip
    assert len(slow["params"]) == 8 and len(rest["params"]) == len(names) - 8


def test_the_products_of_s5_are_offloaded():
    net = S5Model(2, 3, 1, d_model=8, d_state=8)
    with sat.offload("golden", precision="fp32") as report:
        found = net(torch.randn(2, 2, 40))
        found.sum().backward()
    assert report.coverage > 0.99 and report.calls > 10


def test_the_accuracy_of_models_under_tones():
    data = load_data("digits")
    means = torch.stack([data.train_x[data.train_y == k].mean(0).flatten() for k in range(10)])

    class Nearest(torch.nn.Module):
        def forward(self, x):
            return -torch.cdist(x.flatten(1), means)

    clean = float((Nearest()(data.test_x).argmax(1) == data.test_y).double().mean())
    assert accuracy(Nearest()) == clean > 0.85
    assert clean > accuracy(Nearest(), 0.5) == accuracy(Nearest(), 0.5) > 0.5
    assert {type(build(m).blocks[0].layer).__name__ for m in ("lin", "legs")} == {"S4D"}


# -------------------------------------------------------------------------------- bad input


A, B = hippo_legs(8), legs_input(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perturb_then_diagonalize(A[:1, :1], B[:1]), r"a has shape \(1, 1\): must be"),
        (lambda: perturb_then_diagonalize(A[:4], B), r"a has shape \(4, 8\): must be \(n, n\)"),
        (lambda: perturb_then_diagonalize(A, B[:7]), r"b has shape \(7,\): must be \(8,\)"),
        (lambda: perturb_then_diagonalize(A * math.nan, B), "a has infinities or NaNs"),
        (lambda: perturb_then_diagonalize(A, B * math.inf), "b has infinities or NaNs"),
        (lambda: perturb_then_diagonalize(A, B, eps=0.0), "eps=0.0: must be positive and finite"),
        (lambda: perturb_then_diagonalize(A, B, eps=math.inf), "eps=inf: must be positive"),
        (lambda: perturb_then_diagonalize(A, B, eps=math.nan), "eps=nan: must be positive"),
        (lambda: perturb_then_diagonalize(A, B, gamma=-1.0), "gamma=-1.0: must be finite and not"),
        (lambda: perturb_then_diagonalize(A, B, steps=-1), "steps=-1: must be an int of at least"),
        (lambda: perturb_then_diagonalize(A, B, perturbation="no"), "perturbation='no': must be"),
        (lambda: perturb_then_diagonalize(A, B, perturbation=B), r"has shape \(8,\): must be"),
        (lambda: perturb_then_diagonalize(A, B, perturbation=0 * A), "perturbation is 0: it must"),
        (lambda: diagonalize(16, eps=60.0), r"eps=60.0: a mode of A \+ E has real part"),
        (lambda: diagonalize(64, eps=1e-9), "eps=1e-09: the eigenvectors' condition is"),
        (lambda: diagonalize(8).outputs(B[:3]), "its last axis must be the state size 8"),
        (lambda: diagonalize(8).inputs(B[:3]), "its first axis must be the state size 8"),
        (lambda: legs_transfer(-1, 1j), "k=-1: must be an int of at least 0"),
        (lambda: transfer(B, B[:3], 1j), r"weights have shape \(3,\), modes \(8,\): must be"),
        (lambda: diagonal_transfer(8, 8, 1j), "k=8: must be an int from 0 to n - 1 = 7"),
        (lambda: diagonal_transfer(1, 0, 1j), "d_state=1: must be an int of at least 2"),
        (lambda: tone_gain(torch.zeros(0), 1.0), r"kernel has shape \(0,\): must be \(length,\)"),
        (lambda: tone_gain(torch.zeros(3), math.inf), "omega=inf: must be finite"),
        (lambda: S4PTD(2, 1), "d_state=1: must be an int of at least 2"),
        (lambda: S4PTD(0, 8), "d_model=0: must be a positive int"),
        (lambda: S4PTD(2, 8, eps=-1.0), "eps=-1.0: must be positive"),
        (lambda: S4PTD(2, 8)(torch.zeros(1, 2, 0)), "length=0: must be a positive int"),
        (lambda: S4PTD(2, 8).set_outputs(torch.zeros(2, 7)), r"must be real of \(2, 8\)"),
        (lambda: S5(2, 9, blocks=2), "d_state=9: must be a multiple of blocks=2"),
        (lambda: S5(2, 4, blocks=4), "d_state=4: must be a multiple of blocks=4 with two"),
        (lambda: S5(2, 8, blocks=0), "blocks=0: must be an int of at least 1"),
        (lambda: S5(2, 8, chunk=1), "chunk=1: must be an int of at least 2"),
        (lambda: S5(2, 8, init="inv"), "init='inv': must be one of ptd, normal, lin"),
        (lambda: S5(2, 8, dt_min=1.0, dt_max=0.5), "dt_min=1.0, dt_max=0.5: must be"),
        (lambda: S5(2, 8)(torch.zeros(1, 2, 0)), "length=0: must be a positive int"),
        (lambda: S5(2, 8)(torch.zeros(1, 3, 4)), "with d_model=2"),
        (lambda: S5(2, 8).step(torch.zeros(1, 2), torch.zeros(1, 4)), "state is torch.float32"),
        (lambda: S5(2, 8).set_system(torch.zeros(8, 3), torch.zeros(2, 8)), "b is torch.float32"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()
