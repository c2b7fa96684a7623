"""Central formulas of PNDM, BinaryDM, NoProp, DaPC, DNMM and DMCMC, written anew from their papers.

Nothing here is shared with the methods: closed forms, quadrature, brute force, mpmath, scipy.
"""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.signal import correlate
from scipy.special import expit, ndtri
from scipy.stats import norm
from torch import nn

from sat.methods.binarydm import BinaryConv2d, binarize, initial_scales
from sat.methods.dapc_nn import APCBasis, DaPCNN
from sat.methods.dmcmc import DLG, denoise, from_vp, kar1, kar2
from sat.methods.dnmm import DNMM, ImportancePool, Trapezoid1D, dnmm_loss
from sat.methods.noprop import DiffusionLevels, LearnedLevels, NoPropCT
from sat.methods.pndm import NoiseSchedule, sample
from sat.methods.problems.mixtures import GaussianMixture

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


# ------------------------------------------------------------------------------------------ PNDM


@pytest.mark.parametrize("method", ["ddim", "s-pndm", "f-pndm"])
@pytest.mark.parametrize(("kind", "steps"), [("linear", 20), ("quad", 7)])
def test_samplers_are_multistep_rules_in_the_plane_of_y_and_s(method, kind, steps):
    """Of N(0, v): E[z | x] = s y / (v + s²), so in y = x / √a each step is y + (s' - s) e.

    With 40 digits, levels by products of the betas; phi itself does not occur.
    """
    v, n = 0.37, 100
    with mpmath.workdps(40):
        low, high = mpmath.mpf(1e-4), mpmath.mpf(0.02)
        if kind == "quad":
            low, high = mpmath.sqrt(low), mpmath.sqrt(high)
        kept, levels = mpmath.mpf(1), {-1: mpmath.mpf(1)}
        for t in range(n):
            beta = low + (high - low) * t / (n - 1)
            kept *= 1 - (beta**2 if kind == "quad" else beta)
            levels[t] = kept

        def s(t):
            # Half way between two steps log a is linear.
            a = mpmath.sqrt(levels[math.floor(t)] * levels[math.ceil(t)])
            return mpmath.sqrt((1 - a) / a)

        def eps(y, t):
            return s(t) * y / (v + s(t) ** 2)

        times = [n // steps * k for k in range(steps - 1, -1, -1)] + [-1]
        y = 1 / mpmath.sqrt(levels[times[0]])
        seen = []
        for t, then in itertools.pairwise(times):
            seen.append(eps(y, t))
            if method == "ddim":
                e = seen[-1]
            elif method == "s-pndm" and len(seen) == 1:
                e = (seen[0] + eps(y + (s(then) - s(t)) * seen[0], then)) / 2
            elif method == "s-pndm":
                e = (3 * seen[-1] - seen[-2]) / 2
            elif len(seen) < 4:
                middle = mpmath.mpf(t + then) / 2
                half = s(middle) - s(t)
                k2 = eps(y + half * seen[-1], middle)
                k3 = eps(y + half * k2, middle)
                k4 = eps(y + (s(then) - s(t)) * k3, then)
                e = (seen[-1] + 2 * k2 + 2 * k3 + k4) / 6
            else:
                e = (55 * seen[-1] - 59 * seen[-2] + 37 * seen[-3] - 9 * seen[-4]) / 24
            y += (s(then) - s(t)) * e
        exact = float(y)
    schedule = NoiseSchedule(kind, n)

    def model(x, t):
        a = schedule.alpha_bar(t)[:, None]
        return (1 - a).sqrt() * x / (a * v + 1 - a)

    made = sample(model, torch.ones(1, 1, dtype=F64), schedule, steps, method)
    assert float(made.x) == pytest.approx(exact, rel=1e-12)


def test_cosine_levels_telescope():
    """Products of f((i + 1) / N) / f(i / N) are f((t + 1) / N) / f(0), until beta is cut off."""
    t = np.arange(-1, 999)
    f = np.cos(((t + 1) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    levels = NoiseSchedule("cosine").alpha_bar(torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(levels, f / f[0], rtol=1e-11)


@pytest.mark.parametrize("a", [0.02, 0.5, 0.97])
def test_noise_scores_and_clean_means_by_quadrature(a):
    """E[z | x] and E[x_0 | x] of three components by integrals over x_0; VP, VE and Tweedie."""
    weights, means, variances = (0.5, 0.2, 0.3), (-1.0, 0.4, 2.0), (0.3, 0.05, 0.8)
    law = GaussianMixture(
        torch.tensor(weights, dtype=F64), torch.tensor(means, dtype=F64)[:, None],
        torch.tensor(variances, dtype=F64)[:, None, None],
    )  # fmt: skip
    x = np.array([-2.0, 0.1, 1.3])
    x0 = np.linspace(-9, 11, 20_001)  # trapezia of what falls off: exact to rounding
    prior = sum(
        w * norm.pdf(x0, m, math.sqrt(v)) for w, m, v in zip(weights, means, variances, strict=True)
    )
    joint = prior * norm.pdf(x[:, None], math.sqrt(a) * x0, math.sqrt(1 - a))
    clean = (joint * x0).sum(1) / joint.sum(1)
    noise = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
    points = torch.from_numpy(x)[:, None]
    np.testing.assert_allclose(law.eps(points, a)[:, 0].numpy(), noise, rtol=1e-10)
    s = math.sqrt((1 - a) / a)
    spread = points / math.sqrt(a)
    np.testing.assert_allclose(denoise(law.ve.score, spread, s)[:, 0].numpy(), clean, rtol=1e-10)
    score = from_vp(law.eps)(spread, torch.full((3,), s, dtype=F64))
    np.testing.assert_allclose(score[:, 0].numpy(), -noise / s, rtol=1e-10)


# -------------------------------------------------------------------------------------- BinaryDM


def test_first_scales_are_the_best_there_are():
    """Over all signs of eight weights, each with its best scale; then again, of what is left."""
    w = normal(5, 8)
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    alpha1, alpha2 = initial_scales(w, 2)
    left = w.numpy()
    for made in (binarize(w, alpha1), binarize(w, alpha1, alpha2)):
        scales = left @ signs.T / 8
        losses = np.square(left[:, None] - scales[..., None] * signs).sum(2)
        best = losses.argmin(1)
        left = left - scales[np.arange(5), best, None] * signs[best]
        np.testing.assert_allclose((w - made).numpy(), left, atol=1e-14)


def test_share_of_normal_weights_lost_by_quadrature():
    w = torch.from_numpy(ndtri((np.arange(200_000) + 0.5) / 200_000))[None]
    a1 = 2 * quad(lambda x: x * norm.pdf(x), 0, 10)[0]
    a2 = 2 * quad(lambda x: abs(x - a1) * norm.pdf(x), 0, 10, points=[a1])[0]
    for bases, level in ((1, lambda x: a1), (2, lambda x: a1 + math.copysign(a2, x - a1))):
        lost = (
            2
            * quad(lambda x, level=level: (x - level(x)) ** 2 * norm.pdf(x), 0, 10, points=[a1])[0]
        )
        found = (w - binarize(w, *initial_scales(w, bases))).norm() / w.norm()
        assert float(found) == pytest.approx(math.sqrt(lost), abs=2e-5)
    assert math.sqrt(lost) == pytest.approx(0.3612, abs=1e-4)


def test_gradients_are_adjoint_to_changes_carried_forward():
    """A change of a sign is the change of what it is of, within the window; both signs in turn."""
    w, dw, g = 0.9 * normal(3, 40, 30).numpy()
    a1, da1, a2, da2 = np.abs(normal(4, 40, 1, seed=1).numpy()) + 0.1
    s1 = np.sign(w)
    rest = w - a1 * s1
    ds1 = dw * (np.abs(w) < 1)
    ds2 = (dw - a1 * ds1 - da1 * s1) * (np.abs(rest) < 1)
    change = a1 * ds1 + da1 * s1 + a2 * ds2 + da2 * np.sign(rest)
    inputs = [torch.from_numpy(x).requires_grad_() for x in (w, a1, a2)]
    binarize(*inputs).backward(torch.from_numpy(g))
    carried = sum(
        float((x.grad * torch.from_numpy(d)).sum())
        for x, d in zip(inputs, (dw, da1, da2), strict=True)
    )
    assert carried == pytest.approx(float((g * change).sum()), rel=1e-12)


def test_grouped_convolutions_of_codes_by_scipys_integers():
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    layer = BinaryConv2d.from_float(plain, 2, 4)
    x = normal(2, 4, 7, 9)
    made = layer(x).detach().numpy()
    w, values = plain.weight.detach().numpy(), x.numpy()
    step = 2 * np.abs(values).mean() / math.sqrt(7)
    codes = np.rint(np.clip(values / step, -8, 7)).astype(int)
    codes = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    a1 = np.abs(w).mean((1, 2, 3))
    rest = w - a1[:, None, None, None] * np.sign(w)
    a2 = np.abs(rest).mean((1, 2, 3))
    for batch, out in itertools.product(range(2), range(6)):
        own = codes[batch, 2 * (out // 3) : 2 * (out // 3) + 2]
        first, second = (
            correlate(own, np.sign(kernel[out]).astype(int), "valid", "direct")[0, ::2, ::2]
            for kernel in (w, rest)
        )
        wanted = step * (a1[out] * first + a2[out] * second) + float(plain.bias[out].detach())
        np.testing.assert_allclose(made[batch, out], wanted, atol=1e-13)


# ---------------------------------------------------------------------------------------- NoProp


def test_steps_are_bayes_rule_on_a_grid():
    """q(z_t | z_{t-1}, y) is q(z_{t-1} | z_t) q(z_t | y), made of sum 1; its KL is the weight."""
    levels, u, wrong, before = DiffusionLevels(4), 0.8, -0.3, 0.45
    z = np.linspace(-12, 12, 48_001)
    for t in range(1, 5):
        abar, last = (float(levels.abar[k]) for k in (t, t - 1))
        alpha = last / abar

        def law(label, abar=abar, alpha=alpha):
            p = norm.pdf(before, math.sqrt(alpha) * z, math.sqrt(1 - alpha))
            p = p * norm.pdf(z, math.sqrt(abar) * label, math.sqrt(1 - abar))
            return p / p.sum()

        p, q = law(u), law(wrong)
        mean = (p * z).sum()
        a, b, c = (float(v[t - 1]) for v in (levels.a, levels.b, levels.c))
        assert a * u + b * before == pytest.approx(mean, abs=1e-12)
        assert c == pytest.approx((p * (z - mean) ** 2).sum(), rel=1e-10)
        there = (p > 0) & (q > 0)
        kl = (p[there] * np.log(p[there] / q[there])).sum()
        weight = float(levels.snr_weight[t - 1])
        assert weight / 2 * (u - wrong) ** 2 == pytest.approx(kl, rel=1e-9)


def test_ct_flow_carries_probability():
    """With the exact posterior mean, dF/dt = -p v for the law of z_t, a mixture, F its integral."""
    u, h = torch.tensor([[-1.2], [0.3], [0.9]], dtype=F64), 1e-5
    levels = LearnedLevels().double()
    with torch.no_grad():
        for parameter in levels.parameters():
            parameter += 0.3 * normal(*parameter.shape)

    class Exact(nn.Module):
        def forward(self, z, x, time):
            abar = levels(x[:, 0])[0][:, None]
            return -((z - abar.sqrt() * u.mT) ** 2) / (2 * (1 - abar))

    model = NoPropCT(Exact(), u, levels)
    z = np.linspace(-2, 2, 9)

    def law(t):
        abar = float(levels(torch.tensor(t, dtype=F64))[0])
        each = norm(math.sqrt(abar) * u.numpy().T, math.sqrt(1 - abar))
        return each.cdf(z[:, None]).mean(1), each.pdf(z[:, None]).mean(1)

    with torch.no_grad():
        for t in (0.1, 0.5, 0.95):
            times = torch.full((9,), t, dtype=F64)
            v = model.slope(torch.from_numpy(z)[:, None], times[:, None], times)[:, 0].numpy()
            rate = (law(t + h)[0] - law(t - h)[0]) / (2 * h)
            np.testing.assert_allclose(-law(t)[1] * v, rate, atol=1e-8)


# ------------------------------------------------------------------------------------------ DaPC


def test_recurrences_know_the_points_by_golub_and_welsch():
    """Jacobi's matrix of m values has them for eigenvalues, and their shares for weights."""
    points, counts = np.array([-1.5, 0.2, 0.9, 4.0]), np.array([5, 1, 7, 3])
    basis = APCBasis(4).fit(torch.from_numpy(np.repeat(points, counts))[:, None])
    a, b = (c.numpy()[:, 0] for c in basis.coefficients())
    off = np.diag(np.sqrt(b[1:4]), 1)
    found, axes = np.linalg.eigh(np.diag(a[:4]) + off + off.T)
    np.testing.assert_allclose(found, points, atol=1e-12)
    np.testing.assert_allclose(axes[0] ** 2, counts / 16, atol=1e-12)
    assert b[4] == 0


def test_networks_by_qr_of_monomials():
    """A joint basis is Gram and Schmidt's of monomials by degree: √N Q, leading numbers positive.

    Through a hidden layer of tanh, in numpy; the output layer by normal equations of the target.
    """
    x = normal(60, 2) ** 2 + 3
    y = (x[:, 0] - 0.3 * x[:, 1]).sin()
    model = DaPCNN(2, (2,), degree=2, basis="joint")
    model.fit(x, y, steps=3, ridge=1e-3)

    def basis(signals):
        p, q = ((signals - signals.mean(0)) / signals.std(0)).T
        orthogonal, upper = np.linalg.qr(np.stack([p**0, p, q, p * p, p * q, q * q], 1))
        return math.sqrt(len(p)) * orthogonal * np.sign(np.diag(upper))

    hidden = model.layers[0].coefficients.detach().numpy()
    psi = basis(np.tanh(basis(x.numpy()) @ hidden))
    target = ((y - y.mean()) / y.std(correction=0)).numpy()
    w = psi.T @ target / 60 / (1 + 1e-3)  # Ψᵀ Ψ / N is I
    predicted = float(y.mean()) + float(y.std(correction=0)) * (psi @ w)
    np.testing.assert_allclose(model.predict(x)[:, 0].numpy(), predicted, atol=1e-8)
    assert float(model.variance()) == pytest.approx(predicted.var(), rel=1e-7)


# ------------------------------------------------------------------------------------------ DNMM


def test_pulls_on_weights_and_amplitudes_by_shares():
    """dL/dl_k = -mean r_k - α (1 - I_k) I_k, dL/dg_k = -(mean r_k - c_k) s'(g_k) / s(g_k).

    r_k is component k's share of p at a point; integrals by scipy's quad of a network in numpy.
    """
    model = DNMM(1, 2, (4,), generator=seeded()).double()
    with torch.no_grad():
        model.gate.copy_(torch.tensor([0.4, -0.8], dtype=F64))
        model.log_amplitude.copy_(torch.tensor([-0.3, 0.5], dtype=F64))
    x = normal(30, 1)
    rule = Trapezoid1D(40_001, torch.tensor([[-4.0], [3.0]]))
    dnmm_loss(model, x, rule, 7.0).backward()
    amplitude, gate = np.exp([-0.3, 0.5]), expit([0.4, -0.8])
    c, wave = gate / gate.sum(), model.deep[0].weight.detach().numpy().reshape(2, 4)
    weight, bias = (p.detach().numpy().reshape(2, 4) for p in model.first.parameters())
    last = model.deep[0].bias.detach().numpy()

    def phi(z):
        inner = np.tanh(np.multiply.outer(z, weight) + bias)
        return amplitude * expit((inner * wave).sum(-1) + last)

    integrals = np.array([quad(lambda z, k=k: phi(z)[k], -4, 3)[0] for k in (0, 1)])
    shares = c * phi(x[:, 0].numpy())
    shares = (shares / shares.sum(1, keepdims=True)).mean(0)
    pull = -shares - 7.0 * (1 - integrals) * integrals
    np.testing.assert_allclose(model.log_amplitude.grad.numpy(), pull, atol=1e-8)
    np.testing.assert_allclose(model.gate.grad.numpy(), (c - shares) * (1 - gate), atol=1e-8)


@pytest.mark.parametrize("n", [1000, 1001])
def test_pools_weights_are_the_densities_that_points_come_from(n):
    """n // 2 uniform points, the others normal about the data, cut off at the box, by scipy."""
    x = 0.5 * torch.rand(25, 2, generator=seeded(), dtype=F64) + 0.1
    box = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=F64)
    pool = ImportancePool(n, x, box, seeded(1))
    width = math.sqrt(float(x.var(0, correction=0).mean())) * 25 ** (-1 / 6)
    kernels = norm(x.numpy(), width)
    cut = (kernels.cdf(box[1].numpy()) - kernels.cdf(box[0].numpy())).prod(1).mean()
    around = norm.pdf(pool.points.numpy()[:, None], x.numpy(), width).prod(2).mean(1) / cut
    q = (n // 2) / n / 2 + (1 - (n // 2) / n) * around
    np.testing.assert_allclose(pool.weights.numpy(), 1 / (n * q), rtol=1e-5)


# ----------------------------------------------------------------------------------------- DMCMC


def test_langevins_steps_widen_a_normal_law_as_they_must():
    """x - η x / 2 V + √η z leaves N(0, V / (1 - η / 4 V)) as it is: the bias of a fixed step."""
    v, s, eta = 0.5, 0.7, 0.6

    class Still:
        levels = torch.tensor([s, s * (1 + 1e-9)], dtype=F64)

        def log_probs(self, x):
            return torch.tensor([0.0, -math.inf], dtype=F64).expand(len(x), 2)

    chains = DLG(lambda x, s: -x / (v + s[:, None] ** 2), Still(), Still.levels, eta)
    whole = v + s**2
    wide = whole / (1 - eta / (4 * whole))
    chains.x, chains.s = math.sqrt(whole) * normal(400, 500), torch.full((400,), s, dtype=F64)
    chains.run(12, seeded(1))
    error = math.sqrt(2 / chains.x.numel())
    assert float(chains.x.square().mean()) == pytest.approx(wide, rel=4 * error)


def test_heuns_steps_multiply_normal_samples():
    """On N(0, v) a step from s to t is x times a number, with 40 digits; churn raises s first."""
    v, starts, n, lowest = 0.3, (4.0, 0.9), 6, 0.02
    made, churned = [], []
    with mpmath.workdps(40):
        for start in starts:
            top, bottom = (mpmath.root(mpmath.mpf(s), 7) for s in (start, lowest))
            s = [(top + (bottom - top) * i / (n - 2)) ** 7 for i in range(n - 1)] + [mpmath.mpf(0)]
            for out, most in ((made, 0), (churned, mpmath.mpf("0.1"))):
                x = mpmath.mpf(1)
                for now, then in itertools.pairwise(s):
                    raised = now * (1 + most) if 0.05 <= now <= 1 else now
                    slope = raised / (v + raised**2) * x
                    end = x + (then - raised) * slope
                    if then > 0:
                        end = x + (then - raised) * (slope + then / (v + then**2) * end) / 2
                    x = end
                out.append(float(x))
    sigma = torch.tensor(starts, dtype=F64)
    ones = torch.ones(2, 1, dtype=F64)

    def score(x, s):
        return -x / (v + s[:, None] ** 2)

    found = kar1(score, ones, sigma, steps=n, sigma_min=lowest)
    np.testing.assert_allclose(found[:, 0].numpy(), made, rtol=1e-13)
    # x and -x under the same noise are as far apart as without it.
    pair = [
        kar2(score, side * ones, sigma, seeded(), steps=n, sigma_min=lowest, churn=0.1 * n)
        for side in (1, -1)
    ]
    np.testing.assert_allclose(((pair[0] - pair[1]) / 2)[:, 0].numpy(), churned, rtol=1e-12)
