"""KroSBL's posterior and updates, QMCPy's kernels and nets, ODL-FW's steps: built again by hand.

Nothing here is shared with the methods: joint distributions of dense matrices, derivatives by
torch, integrals by quadrature, Hurwitz' zeta function, Pascal's triangle, angles in the plane.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import linalg, special

from sat.methods.kronecker_sbl import am_update, kron_sbl, posterior, svd_update
from sat.methods.odl_fw import OnlineODL, dictionary_error, gradient, objective, polar
from sat.methods.qmcpy import (
    DigitalNet,
    DSIKernel,
    FastGram,
    Lattice,
    SIKernel,
    bayesian_mean,
    cbc_lattice,
)

SHAPES = ((2, 3), (3, 2), (2, 4))
NOISE = 0.3


def problem(seed):
    """y (12,), factors, variances of each: complex normal and uniform."""
    rng = np.random.default_rng(seed)
    y, *factors = (rng.standard_normal((*s, 2)) @ [1, 1j] for s in ((12,), *SHAPES))
    return y, factors, [rng.uniform(0.1, 2, s[1]) for s in SHAPES]


def whole(parts):
    return np.kron(np.kron(parts[0], parts[1]), parts[2])


def found_posterior(y, factors, gammas):
    return posterior(
        torch.tensor(y).reshape(2, 3, 2), [*map(torch.tensor, factors)],
        [*map(torch.tensor, gammas)], NOISE,
    )  # fmt: skip


def dense_cost(y, factors, log_gammas):
    """log|S| + y^H S^-1 y, of torch tensors, differentiable."""
    a, g = (torch.tensor(whole(factors)), torch.ones(1, dtype=torch.float64))
    for each in log_gammas:
        g = torch.kron(g, each.exp())
    sigma = a * g @ a.mH + NOISE * torch.eye(len(a), dtype=a.dtype)
    return torch.logdet(sigma).real + (y.conj() @ torch.linalg.solve(sigma, y)).real


def test_the_posterior_is_the_joint_distributions():
    """x and y are normal together: blocks of their precision give x's mean and covariance."""
    y, factors, gammas = problem(0)
    a, g = whole(factors), whole(gammas)
    joint = np.block([[np.diag(g), g[:, None] * a.conj().T], [a * g, a * g @ a.conj().T]])
    joint[24:, 24:] += NOISE * np.eye(12)
    precision = linalg.inv(joint)
    of_x = linalg.inv(precision[:24, :24])
    mean = -of_x @ precision[:24, 24:] @ y
    found = found_posterior(y, factors, gammas)
    np.testing.assert_allclose(found.mean.flatten(), mean, atol=1e-12)
    np.testing.assert_allclose(found.variance.flatten(), of_x.diagonal().real, atol=1e-12)
    assert found.residual == pytest.approx(np.linalg.norm(y - a @ mean) ** 2, rel=1e-11)


def test_moments_are_the_evidences_derivative():
    """d cost / d log g is 1 - d / g an entry (Fisher's identity), whatever the posterior's form."""
    y, factors, gammas = problem(1)
    logs = [torch.tensor(np.log(g)).requires_grad_() for g in gammas]
    cost = dense_cost(torch.tensor(y), factors, logs)
    slopes = torch.autograd.grad(cost, logs)
    found = found_posterior(y, factors, gammas)
    assert found.cost == pytest.approx(float(cost.detach()), rel=1e-12)
    moments = (found.variance + found.mean.abs() ** 2).numpy()
    share = 1 - moments / whole(gammas).reshape(3, 2, 4)
    for slope, others in zip(slopes, ((1, 2), (0, 2), (0, 1)), strict=True):
        np.testing.assert_allclose(slope, share.sum(others), atol=1e-11)


def test_am_ends_where_the_evidence_is_stationary():
    """Of all log g that were not pruned, early as their fall is slow, the cost has no slope."""
    y, factors, _ = problem(2)
    options = {"max_iter": 1000, "tol": 1e-8, "prune": 0.2}
    found = kron_sbl(torch.tensor(y), [*map(torch.tensor, factors)], NOISE, "am", **options)
    logs = [g.clamp(min=1e-300).log().requires_grad_() for g in found.gammas]
    slopes = torch.autograd.grad(dense_cost(torch.tensor(y), factors, logs), logs)
    alive = [g > 0 for g in found.gammas]
    assert found.converged
    assert max(float(s[a].abs().max()) for s, a in zip(slopes, alive, strict=True)) < 1e-6
    assert sum(int(a.sum()) for a in alive) > 3


def test_updates_on_paper():
    """d = [[2, 1], [1, 2]]: singular values 3 and 1, so rank 1 is 3/2 throughout, and so is AM."""
    ones = [torch.ones(2, dtype=torch.float64)] * 2
    d = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    for u, v in (svd_update(d), am_update(d, ones)):
        np.testing.assert_allclose(np.outer(u, v), 1.5, atol=1e-12)
        assert float(u.norm()) == pytest.approx(1)
    # Criteria differ: AM wants means of d / g of 1 along both axes, SVD least squares.
    d = torch.tensor([[4.0, 1.0], [1.0, 9.0]], dtype=torch.float64)
    (a, b), (left, right) = am_update(d, ones, tol=1e-14), svd_update(d)
    # d is symmetric, so a is b but for length: q = b2 / b1 solves q = (1 + 9 / q) / (4 + 1 / q),
    # that is 4 q^2 = 9.
    assert float(b[1] / b[0]) == pytest.approx(1.5, rel=1e-10)
    np.testing.assert_allclose(a, np.array([2, 3]) / math.sqrt(13), rtol=1e-10)
    largest = (13 + math.sqrt(29)) / 2
    assert float(left.norm() * right.norm()) == pytest.approx(largest, rel=1e-12)
    assert float(right[1] / right[0]) == pytest.approx(largest - 4, rel=1e-12)


def test_a_step_of_the_noise_is_its_expectation():
    """x one number: E ||y - a x||^2 / 2 over its posterior, by Gauss-Hermite quadrature."""
    a, y = np.array([1.0, -0.5]), np.array([1.5, 0.25])
    start = 0.1 * y.var()
    variance = 1 / (a @ a / start + 1)
    mean = variance * (a @ y) / start
    nodes, weights = special.roots_hermitenorm(4)
    x = mean + math.sqrt(variance) * nodes
    wanted = weights @ ((y - np.outer(x, a)) ** 2).sum(1) / weights.sum() / 2
    found = kron_sbl(torch.tensor(y), [torch.tensor(a)[:, None]], max_iter=1, dtype=torch.float64)
    assert found.noise_var == pytest.approx(wanted, rel=1e-12)
    assert float(found.gammas[0][0]) == pytest.approx(mean**2 + variance, rel=1e-12)


@pytest.mark.parametrize("alpha", [2, 3, 4])
def test_si_kernels_reproduce(alpha):
    """f(z) less its mean is the integral of f^(alpha) and the kernel's, over (2 pi)^(2 alpha)."""
    n, z = 4096, 0.3
    x = np.arange(n) / n
    f = np.exp(np.sin(2 * np.pi * x))
    frequencies = 2j * np.pi * np.fft.fftfreq(n, 1 / n)
    # Midpoints: the derivative of order 2 alpha - 2 has a kink at z, on none of them.
    middle = torch.tensor(x + 0.5 / n + z)[:, None] % 1
    spectrum = np.fft.fft(f) * frequencies**alpha * (np.abs(frequencies) < 2 * np.pi * 60)
    at = np.exp(2j * np.pi * np.outer(middle.numpy().ravel(), np.arange(-60, 61)))
    derivative = (at @ np.roll(spectrum, 60)[:121]).real / n
    kernel = SIKernel(alpha)
    values = kernel(middle, torch.tensor([z]), order_x=alpha).numpy()
    reproduced = (values * derivative).mean() / (2 * np.pi) ** (2 * alpha)
    wanted = math.exp(math.sin(2 * np.pi * z)) - special.iv(0, 1)
    assert reproduced == pytest.approx(wanted, abs=1e-6)
    if alpha > 2:
        slope = kernel(middle, torch.tensor([z]), order_x=alpha, order_z=1).numpy()
        reproduced = (slope * derivative).mean() / (2 * np.pi) ** (2 * alpha)
        turn = 2 * np.pi * math.cos(2 * np.pi * z) * math.exp(math.sin(2 * np.pi * z))
        assert reproduced == pytest.approx(turn, abs=1e-5)


def walsh(k, x):
    """(-1)^(sum of k's binary digits, lowest first, times x's, highest first)."""
    places = [i for i in range(k.bit_length()) if k >> i & 1]
    return (-1.0) ** sum(np.floor(x * 2 ** (i + 1)).astype(int) for i in places)


@pytest.mark.parametrize("alpha", [1, 2, 3, 4])
def test_walsh_functions_are_eigenfunctions_of_dsi_kernels(alpha):
    """The integral of K wal_k is 2^-mu(k): by Gauss's rule on dyadic intervals, polynomials there.

    For alpha = 4, which has a sum over all digits, by midpoints.
    """
    if alpha == 4:
        u, weight = (np.arange(2**14) + 0.5) / 2**14, np.full(2**14, 2.0**-14)
    else:
        nodes, weights = np.polynomial.legendre.leggauss(3)
        edges = [*(2.0 ** -np.arange(50, 4, -1)), *(np.arange(2, 33) / 32)]
        low, high = np.array([0, *edges[:-1]]), np.array(edges)
        u = (low[:, None] + (high - low)[:, None] * (nodes + 1) / 2).ravel()
        weight = ((high - low)[:, None] * weights / 2).ravel()
    origin = torch.zeros(1, dtype=torch.float64)
    kernel = DSIKernel(alpha, bits=53)(torch.tensor(u)[:, None], origin).numpy() - 1
    for k in range(32):
        places = [i + 1 for i in range(k.bit_length()) if k >> i & 1][::-1]
        mu = sum(places[:alpha]) if alpha > 1 else 2 * k.bit_length() - 1
        wanted = 2.0**-mu if k else 0.0
        found = (weight * kernel * walsh(k, u)).sum()
        assert found == pytest.approx(wanted, abs=1e-12 if alpha < 4 else 1e-7)


@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_eigenvalues_on_a_line_are_hurwitz_zetas(alpha):
    """Frequencies that n points cannot tell apart add up: n sum over j = k mod n of |j|^(-2a)."""
    n, weight, scale = 16, 0.4, 2.5
    k = np.arange(1, n) / n
    both = special.zeta(2 * alpha, k) + special.zeta(2 * alpha, 1 - k)
    constant = n * (1 + weight * 2 * special.zeta(2 * alpha) / n ** (2 * alpha))
    wanted = scale * np.array([constant, *(weight * both * n ** (1.0 - 2 * alpha))])
    points = Lattice(1).sample(n, seed=4)[0]
    gram = FastGram(SIKernel(alpha, weight, scale), points)
    np.testing.assert_allclose(np.sort(gram.eigenvalues), np.sort(wanted), rtol=1e-10)
    assert float(gram.logdet()) == pytest.approx(np.log(wanted).sum(), rel=1e-10)
    # The function that is one frequency is an eigenvector: its interval in closed form.
    values = torch.cos(2 * np.pi * 3 * points[:, 0])
    variance = (values.numpy() ** 2).sum() / wanted[3] / n * scale * (1 - n * scale / wanted[0])
    made = bayesian_mean(gram, values, 0.95)
    assert made.mean == pytest.approx(0, abs=1e-12)
    assert made.half_width == pytest.approx(1.959963984540054 * math.sqrt(variance), rel=1e-8)


def test_component_by_component_finds_the_longest_dual_vectors():
    """For d = 2 its criterion is the sum over the dual lattice, brute force over frequencies."""
    n, alpha = 16, 2
    h = np.arange(-400, 401)
    weight = 1 / np.maximum(np.abs(h), 1.0) ** (2 * alpha)

    def criterion(z):
        dual = (h[:, None] + z * h) % n == 0
        return (np.outer(weight, weight) * dual).sum() - 1

    wanted = min(range(1, n, 2), key=criterion)
    found = cbc_lattice(n, 2, alpha)
    assert criterion(found[1]) == pytest.approx(criterion(wanted), rel=1e-12)
    assert criterion(1) > 5 * criterion(wanted)


def test_the_second_coordinate_of_sobols_net_is_pascals_triangle():
    """Its matrix is binomial coefficients modulo 2 (Faure 1982, base 2); the first is identity."""
    points = DigitalNet(2, randomize=None, bits=30).sample(64)[0].numpy()
    for i, (first, second) in enumerate(points):
        digits = [i >> j & 1 for j in range(6)]
        turned = [sum(math.comb(j, r) * digits[j] for j in range(6)) % 2 for r in range(6)]
        assert first == sum(d / 2 ** (r + 1) for r, d in enumerate(digits))
        assert second == sum(d / 2 ** (r + 1) for r, d in enumerate(turned))


def test_objective_and_gradient_in_expectation():
    """p = 4, Bernoulli-Gaussian x: moments by hand; samples whose means are those of x, exactly.

    A normal number has the moments up to the fifth of 0, 0, 0, 0, -3^1/2, 3^1/2; of a chance of 1/2
    as many zeros more.
    """
    values = [0.0] * 4 + [-math.sqrt(3), math.sqrt(3)] + [0.0] * 6
    x = torch.tensor([*itertools.product(values, repeat=3)], dtype=torch.float64)
    truth, d = (
        torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(s)).double())[0]
        for s in (0, 1)
    )
    theta, y, r = 0.5, x @ truth.mT, truth.mT @ d
    gain = 3 * (theta * (1 - theta) * r.pow(4).sum(0) + theta**2 * r.square().sum(0) ** 2)
    assert float(objective(d, y, 4.0)) == pytest.approx(-float(gain.sum()) / 4, rel=1e-12)
    assert float(objective(truth, y, 4.0)) == pytest.approx(-9 * theta / 4, rel=1e-12)
    slope = -3 * truth @ (theta * (1 - theta) * r.pow(3) + theta**2 * r * r.square().sum(0))
    torch.testing.assert_close(gradient(d, y, 4.0), slope, atol=1e-12, rtol=0)


def plane(angle, mirrored=False):
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s], [s, -c]] if mirrored else [[c, -s], [s, c]])


def nearest(g):
    """The orthogonal matrix of the plane of largest <S, g>: of all turns, or of all mirrors."""
    turn = plane(math.atan2(g[1, 0] - g[0, 1], g[0, 0] + g[1, 1]))
    mirror = plane(math.atan2(g[1, 0] + g[0, 1], g[0, 0] - g[1, 1]), mirrored=True)
    return max((turn, mirror), key=lambda s: (s * g).sum())


def test_polar_factors_in_the_plane_are_angles():
    for g in np.random.default_rng(0).standard_normal((20, 2, 2)):
        for oracle in ("svd", "newton_schulz"):
            np.testing.assert_allclose(polar(torch.tensor(g), oracle, 60), nearest(g), atol=1e-9)


def test_steps_in_the_plane():
    """Averaged gradients, angles of them, and steps part of the way: all five by hand."""
    learner = OnlineODL(2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    d, direction = learner.relaxed.numpy(), np.zeros((2, 2))
    rng = np.random.default_rng(5)
    for t in range(1, 6):
        y = rng.standard_normal((4, 2))
        slope = np.zeros((2, 2))
        for sample, atom in itertools.product(y, range(2)):
            code = sample @ d[:, atom]
            slope[:, atom] -= np.sign(code) * code**2 * sample / len(y)
        rho, gamma = min(1, 2 / math.sqrt(t)), min(1, 2 / t**0.75)
        direction = (1 - rho) * direction + rho * slope
        target = nearest(-direction)
        gap = (direction * (d - target)).sum()
        d = (1 - gamma) * d + gamma * target
        learner.partial_fit(torch.tensor(y))
        np.testing.assert_allclose(learner.relaxed, d, atol=1e-12)
        assert learner.gap == pytest.approx(gap, rel=1e-9)
        np.testing.assert_allclose(learner.dictionary, nearest(d), atol=1e-9)


def test_error_of_a_turn_is_its_angles():
    """1 - cos^4 - sin^4 = sin^2(2 angle) / 2, at most 1/2 in the plane."""
    for angle in (0.0, 0.2, math.pi / 4, 1.3, math.pi / 2):
        found = dictionary_error(torch.tensor(plane(angle)), torch.eye(2, dtype=torch.float64))
        assert found == pytest.approx(math.sin(2 * angle) ** 2 / 2, abs=1e-12)
