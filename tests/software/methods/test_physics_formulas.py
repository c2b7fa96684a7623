"""Central formulas of S3IM, DDSL, ROM-net, PI-GGN, SDGD and LPINN, written anew from their papers.

Nothing here is shared with the methods: closed forms, quadrature, scipy, Cauchy's integrals.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq, root
from scipy.signal import correlate2d
from scipy.special import erf
from scipy.stats import ncx2
from skfem import Basis, ElementTriP1, MeshTri

from sat.methods.lagrangian_pinn import (
    LagrangianPINN,
    burgers_cole_hopf,
    kolmogorov_n_width,
    lagrangian_residuals,
)
from sat.methods.nuft_ddsl import SimplexRaster, simplex_content, simplex_ft
from sat.methods.pi_gnn_galerkin import FemSpace, GalerkinProblem, elasticity, poisson
from sat.methods.problems.diffusion import NonlinearDiffusion1D
from sat.methods.problems.jets import Jet
from sat.methods.rom_net import LocalBases, efficiency_criterion, pod_basis
from sat.methods.rom_net.net import galerkin
from sat.methods.s3im import s3im
from sat.methods.sdgd import (
    AllenCahn,
    ConstrainedMLP,
    HJBLog,
    SineGordon,
    TwoBodyPoisson,
    laplacian_terms,
    sdgd_residual,
)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------ S3IM


def test_constant_rays_by_hand():
    """However rays are ordered, windows differ by what the border cuts off them alone.

    Their first row and column of windows begin one pixel outside, where the weight is g; of
    constants a and b a window of share s then has means a s, b s and covariances ·(s - s²).
    """
    a, b, repeats = 0.3, 0.8, 10
    weights = [math.exp(-4 / 4.5), math.exp(-1 / 4.5), 1, math.exp(-1 / 4.5)]
    g = weights[0] / sum(weights)

    def similarity(s):
        light = (2 * a * b * s**2 + 1e-4) / ((a**2 + b**2) * s**2 + 1e-4)
        rest = s - s**2
        return light * (2 * a * b * rest + 9e-4) / ((a**2 + b**2) * rest + 9e-4)

    cut = {1.0: 15 * 159, 1 - g: 15 + 159, (1 - g) ** 2: 1}
    exact = sum(count * similarity(s) for s, count in cut.items()) / (16 * 160)
    rays = torch.ones(4096, 3, dtype=torch.float64)
    assert float(s3im(a * rays, b * rays, repeats=repeats)) == pytest.approx(exact, abs=1e-13)
    # Each order alone: 16 x 16 windows.
    cut = {1.0: 15 * 15, 1 - g: 30, (1 - g) ** 2: 1}
    exact = sum(count * similarity(s) for s, count in cut.items()) / 256
    tiled = s3im(a * rays, b * rays, repeats=repeats, layout="tiled")
    assert float(tiled) == pytest.approx(exact, abs=1e-13)


@pytest.mark.parametrize(("size", "stride"), [(4, 4), (5, 2), (2, 3)])
def test_similarity_by_scipys_correlation(size, stride):
    """All orders in one image of rows w · R long, whole correlations, every stride-th kept."""
    h, w, repeats = 8, 6, 3
    pred, target = uniform(2, h * w, 3)
    draw = torch.Generator().manual_seed(5)
    orders = [np.arange(h * w)]
    orders += [torch.randperm(h * w, generator=draw).numpy() for _ in range(repeats - 1)]
    order = np.concatenate(orders)
    line = np.exp(-((np.arange(size) - size // 2) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(pred.numpy().T, target.numpy().T, strict=True):

        def mean(z):
            image = np.pad(z[order].reshape(h, w * repeats), (size - 1) // 2)
            return correlate2d(image, window, "valid")[::stride, ::stride]

        a, b = mean(x), mean(y)
        covariance, variances = mean(x * y) - a * b, mean(x**2) - a**2 + mean(y**2) - b**2
        light = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
        values.append(light * (2 * covariance + 9e-4) / (variances + 9e-4))
    found = s3im(pred, target, patch_shape=(h, w), kernel_size=size, stride=stride,
                 repeats=repeats, generator=torch.Generator().manual_seed(5))  # fmt: skip
    assert float(found) == pytest.approx(np.mean(values), abs=1e-13)


# ------------------------------------------------------------------------------------------ DDSL


@pytest.mark.parametrize(("j", "d"), [(1, 2), (2, 2), (1, 3), (2, 3), (3, 3)])
def test_transforms_by_gauss_points_of_the_elements(j, d):
    """∫ ρ exp(-i k x) over random elements and one along the axes, where phases coincide.

    Duffy: λ_1 = 1 - r_1, λ_2 = r_1 (1 - r_2), …, of Jacobian r_1^(j - 1) r_2^(j - 2) ….
    """
    nodes, weights = np.polynomial.legendre.leggauss(14)
    nodes, weights = (nodes + 1) / 2, weights / 2
    bary, size = [], []
    for index in itertools.product(range(14), repeat=j):
        left, weight, own = 1.0, 1.0, []
        for depth, i in enumerate(index):
            own.append(left * (1 - nodes[i]))
            weight *= weights[i] * nodes[i] ** (j - 1 - depth)
            left *= nodes[i]
        bary.append([*own, left])
        size.append(weight)
    axis = np.vstack([np.full(d, 0.2), *(np.full(d, 0.2) + 0.4 * np.eye(d)[:j])])
    period, res = (1.0, 1.5, 1.25)[:d], (4, 5, 6)[:d]
    corners = np.stack([axis, *uniform(3, j + 1, d, seed=j).numpy()])
    rho = uniform(4, 2, seed=7).numpy()
    modes = [np.fft.fftfreq(n, 1 / n) for n in res[:-1]] + [np.arange(res[-1] // 2 + 1)]
    k = np.stack(np.meshgrid(*modes, indexing="ij"), -1) * (2 * np.pi / np.array(period))
    wanted = np.zeros((*k.shape[:-1], 2), complex)
    for x, mass in zip(corners, rho, strict=True):
        spans = x[1:] - x[0]
        stretch = math.prod(np.linalg.svd(spans, compute_uv=False))  # of the unit simplex
        waves = np.exp(-1j * np.einsum("...d,qd->...q", k, np.array(bary) @ x))
        wanted += (waves @ np.array(size) * stretch)[..., None] * mass
    vertices = torch.from_numpy(corners.reshape(-1, d))
    elements = torch.arange(4 * (j + 1)).view(4, j + 1)
    made = simplex_ft(vertices, elements, torch.from_numpy(rho), res, period, mode="mass")
    np.testing.assert_allclose(made.numpy(), wanted, atol=1e-12)
    mass = simplex_content(vertices, elements).numpy() @ rho
    np.testing.assert_allclose(made.numpy()[(0,) * d], mass, atol=1e-14)


def test_rasters_of_rectangles_are_error_functions():
    """A box convolved with a Gaussian of deviation sigma t / (π res), at pixels i t / res.

    sigma = 8 leaves exp(-32) at the highest frequency, so nothing is cut off.
    """
    res, period, sigma = (24, 30), (2.0, 3.0), 8.0
    low, high, rho = (0.5, 0.6), (1.3, 2.5), 1.7
    wanted = np.array([[rho]])
    for n, t, a, b, turn in zip(res, period, low, high, (0, 1), strict=True):
        deviation = math.sqrt(2) * sigma * t / (math.pi * n)
        pixels = (np.arange(n) * t / n)[:, None] + t * np.arange(-3, 4)  # and its copies
        side = (erf((pixels - a) / deviation) - erf((pixels - b) / deviation)).sum(1) / 2
        wanted = wanted * (side if turn else side[:, None])
    box = torch.tensor([[low[0], low[1]], [high[0], low[1]], list(high), [low[0], high[1]]],
                       dtype=torch.float64)  # fmt: skip
    filled = SimplexRaster(res, period, j=2, sigma=sigma)(
        box,
        torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]]),
        torch.full((4, 1), rho, dtype=torch.float64),
    )
    halves = SimplexRaster(res, period, sigma=sigma)(
        box, torch.tensor([[0, 1, 2], [0, 2, 3]]), torch.full((2, 1), rho, dtype=torch.float64)
    )
    np.testing.assert_allclose(filled[..., 0].numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(halves[..., 0].numpy(), wanted, atol=1e-12)


# --------------------------------------------------------------------------------------- ROM-net


def test_galerkin_models_by_scipys_root():
    """Vᵀ R(V a; x) = 0 with R written point by point, solved by Powell's method."""
    problem = NonlinearDiffusion1D(30)
    data = problem.snapshots(25, 3)
    basis = pod_basis(data.solutions, 4)
    v, load = basis.numpy(), data.loads[2].numpy()

    def residual(u):
        h, out = 1 / 31, np.empty(30)
        padded = [0.0, *u, 0.0]
        for i in range(1, 31):
            west, here, east = padded[i - 1 : i + 2]
            right = (1 + (here**2 + east**2) / 2) * (east - here) / h
            left = (1 + (here**2 + west**2) / 2) * (here - west) / h
            out[i - 1] = -(right - left) / h - load[i - 1]
        return out

    exact = root(lambda a: v.T @ residual(v @ a), v.T @ data.solutions[2].numpy(), tol=1e-13)
    assert exact.success
    found = galerkin(problem, data.loads[2], basis, tolerance=1e-12)
    assert found.converged
    np.testing.assert_allclose(found.u.numpy(), v @ exact.x, atol=1e-9 * np.abs(v @ exact.x).max())
    relative = np.linalg.norm(residual(found.u.numpy())) / np.linalg.norm(load)
    assert found.residual == pytest.approx(relative, rel=1e-9)


def test_the_criterion_of_lines_by_hand():
    """Three lines at right angles, one by far the largest: it is the one basis of one mode.

    That leaves nothing of its own third of snapshots and all of the others; three bases leave
    nothing. By angle all amplitudes of a line are one place: cost 0 for three, a third for two.
    """
    mass = torch.diag(torch.tensor([4.0, 1.0, 9.0], dtype=torch.float64))
    size = torch.tensor([1, -2, 3, 5, -7, 11, 13, -17], dtype=torch.float64)
    u = torch.cat([s * size[:, None] * torch.eye(3).double()[i] for i, s in enumerate((1e6, 1, 1))])
    report = efficiency_criterion(u, (1, 2, 3), 1, folds=4, mass=mass)
    assert report["global"] == pytest.approx(2 / 3, abs=1e-9)
    assert report["eta"][1] == pytest.approx(1, abs=1e-12)
    assert report["eta"][3] == pytest.approx(0, abs=1e-6)
    assert report["cost"][2] == pytest.approx(1 / 3, abs=1e-12) and report["cost"][3] < 1e-12
    assert report["smallest"] == {1: 24, 2: 8, 3: 8} and report["best"] == 3
    assert report["silhouette"][3] == pytest.approx(1, abs=1e-12)
    labels = LocalBases(3, 1, mass=mass).fit(u).labels.view(3, 8)
    assert (labels == labels[:, :1]).all() and len(labels.unique()) == 3


# ---------------------------------------------------------------------------------------- PI-GGN


def crooked():
    """Triangles of a square, inner nodes moved."""
    mesh = MeshTri().refined(2)
    places = mesh.p + 0.04 * np.sin(7 * mesh.p[::-1] + 1) * np.prod(
        4 * mesh.p * (1 - mesh.p), axis=0
    )
    return MeshTri(places, mesh.t).with_boundaries({"right": lambda x: x[0] == 1})


def test_poissons_rows_by_cotangents():
    """K_ij = -(cot α + cot β) / 2 of the angles that face the edge; a third of areas · f."""
    mesh = crooked()
    space = FemSpace.from_skfem(Basis(mesh, ElementTriP1(), intorder=2))
    u, k, f = uniform(space.n), 1.7, 2.5
    wanted = np.zeros(space.n)
    place = {tuple(p): i for i, p in enumerate(space.nodes.numpy())}
    for triangle in mesh.t.T:
        corners = [mesh.p[:, i] for i in triangle]
        numbers = [place[tuple(p)] for p in corners]
        for turn in range(3):
            (o, a, b), (_, i, j) = (
                v[turn:] + v[:turn] for v in (corners, numbers)
            )  # o faces the edge
            p, q = a - o, b - o
            area = abs(p[0] * q[1] - p[1] * q[0]) / 2
            drop = k * (p @ q) / (2 * area) / 2 * float(u[i] - u[j])
            wanted[i] += drop
            wanted[j] -= drop
            wanted[numbers[turn]] -= f * area / 3
    found = space.residual(poisson(k, f), u).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-13)


def test_plane_stress_by_triangles_of_constant_strain():
    """The engineer's A Bᵀ D B, with shear strain ε_xy + ε_yx, body forces and a pull on an edge."""
    mesh, young, ratio, body, pull = crooked(), 3.0, 0.27, (0.4, -0.9), (1.5, -0.5)
    space = FemSpace.from_skfem(Basis(mesh, ElementTriP1(), intorder=2))
    problem = GalerkinProblem(
        space, elasticity(young, ratio, body), {"node0": 0.0}, components=2,
        neumann={"right": pull},
    )  # fmt: skip
    u = uniform(space.n, 2)
    place = {tuple(p): i for i, p in enumerate(space.nodes.numpy())}
    d = young / (1 - ratio**2) * np.array(
        [[1, ratio, 0], [ratio, 1, 0], [0, 0, (1 - ratio) / 2]]
    )  # fmt: skip
    wanted, energy = np.zeros((space.n, 2)), 0.0
    for triangle in mesh.t.T:
        numbers = [place[tuple(mesh.p[:, i])] for i in triangle]
        whole = np.column_stack([np.ones(3), mesh.p[:, triangle].T])
        area, slopes = abs(np.linalg.det(whole)) / 2, np.linalg.inv(whole)[1:]
        b = np.zeros((3, 6))
        b[0, ::2], b[1, 1::2], b[2, ::2], b[2, 1::2] = slopes[0], slopes[1], slopes[1], slopes[0]
        strain = b @ u[numbers].numpy().ravel()
        energy += area * strain @ d @ strain / 2
        wanted[numbers] += (area * b.T @ d @ strain).reshape(3, 2) - area / 3 * np.array(body)
        energy -= area / 3 * float((u[numbers].numpy() @ body).sum())
    edge = sorted((p[1], i) for p, i in place.items() if p[0] == 1)
    for (low, i), (high, j) in itertools.pairwise(edge):
        for node in (i, j):
            wanted[node] -= (high - low) / 2 * np.array(pull)
            energy -= (high - low) / 2 * float(u[node].numpy() @ pull)
    flat = u.flatten()
    np.testing.assert_allclose(problem.residual(flat).numpy(), wanted.ravel(), atol=1e-12)
    assert float(problem.energy(flat)) == pytest.approx(energy, rel=1e-12)


# ------------------------------------------------------------------------------------------ SDGD


def perceptron(net, x):
    """Layers of tanh at a place, which may be complex; the last one has one output."""
    weights = [layer.weight.detach().numpy() for layer in net.layers]
    biases = [bias.detach().numpy() for bias in net.biases]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        x = np.tanh(w @ x + b)
    return (weights[-1] @ x + biases[-1])[0]


def cauchy(f, x, axis):
    """First and second derivative along an axis: means over a circle around x."""
    turns = np.exp(2j * np.pi * np.arange(24) / 24)
    ring = []
    for turn in turns:
        place = x.astype(complex)
        place[axis] += 0.1 * turn
        ring.append(f(place))
    return [((ring / turns**k).mean() * math.factorial(k) / 0.1**k).real for k in (1, 2)]


@pytest.mark.parametrize(
    ("kind", "reaction"),
    [
        (TwoBodyPoisson, lambda u: 0), (SineGordon, np.sin), (AllenCahn, lambda u: u - u**3),
    ],
)  # fmt: skip
def test_two_body_problems_by_cauchys_integrals(kind, reaction):
    """Right-hand sides, second derivatives and sampled losses; gradients by the last bias.

    Of u = (1 - |x|²) (N + b), u_jj by b is -2 and u by b is 1 - |x|², whatever the network.
    """
    d, pde = 4, kind(4, 5)
    torch.manual_seed(0)
    model = ConstrainedMLP(pde, 6, 2).double()
    x = pde.sample(3).double()
    c = np.random.RandomState(5).standard_normal(d - 1)

    def exact(z):
        pairs = zip(c, z, z[1:], strict=False)
        return (1 - z @ z) * sum(w * np.sin(a + np.cos(b) + b * np.cos(a)) for w, a, b in pairs)

    def network(z):
        return (1 - z @ z) * perceptron(model.net, z)

    u, bends = (
        [np.array(v) for v in zip(*((f(z), [cauchy(f, z, i)[1] for i in range(d)])
                                    for z in x.numpy()), strict=True)]
        for f in (exact, network)
    )  # fmt: skip
    right = u[1].sum(1) + reaction(u[0])
    np.testing.assert_allclose(pde.rhs(x).numpy(), right, atol=1e-11)
    u, second = bends
    one, other = torch.tensor([3, 0]), torch.tensor([1])
    found = laplacian_terms(model, x, one).detach().numpy()
    np.testing.assert_allclose(found, second[:, [3, 0]], atol=1e-11)
    residual = d / 2 * second[:, [3, 0]].sum(1) + reaction(u) - right
    for mode, idx in (("shared", (one, None)), ("alg2", (one, other))):
        loss = sdgd_residual(model, x, pde, *idx, mode)
        assert float(loss.detach()) == pytest.approx((residual**2).mean() / 2, rel=1e-10)
        (by_bias,) = torch.autograd.grad(loss, model.net.biases[-1])
        step = 1e-6
        slope = (reaction(u + step) - reaction(u - step)) / (2 * step)
        moved = -2 * d + slope * (1 - (x.numpy() ** 2).sum(1))
        assert float(by_bias) == pytest.approx((residual * moved).mean(), rel=1e-7)
    residual = second.sum(1) + reaction(u) - right
    loss = sdgd_residual(model, x, pde, None, other, "alg1")
    assert float(loss.detach()) == pytest.approx((residual**2).mean() / 2, rel=1e-10)


@pytest.mark.parametrize("sampled", [True, False])
def test_hjbs_operator_and_solution(sampled):
    """The operator by Cauchy; the solution by the law of |x + s W|² / s², noncentral χ²."""
    d, pde = 3, HJBLog(3, 0, sample_gradient=sampled, draws=40_000)
    torch.manual_seed(0)
    model = ConstrainedMLP(pde, 6, 2).double()
    x, idx = pde.sample(4).double(), torch.tensor([2, 0])

    def network(z):
        lift = np.log((1 + z[:-1] @ z[:-1]) / 2)
        return (1 - z[-1]) * perceptron(model.net, z) + lift

    losses = []
    for point in x.numpy():
        slopes, bends = np.array([cauchy(network, point, i) for i in range(d + 1)]).T
        terms = bends[:d] - (slopes[:d] ** 2 if sampled else 0)
        rest = slopes[d] - (0 if sampled else (slopes[:d] ** 2).sum())
        losses.append((d / 2 * terms[[2, 0]].sum() + rest) ** 2 / 2)
    loss = sdgd_residual(model, x, pde, idx, mode="shared")
    assert float(loss.detach()) == pytest.approx(np.mean(losses), rel=1e-10)
    for point, found in zip(x.numpy(), pde.solution(x).tolist(), strict=True):
        spread = 2 * (1 - point[-1])
        law = ncx2(d, point[:-1] @ point[:-1] / spread)
        mean = quad(lambda q, law=law, spread=spread: law.pdf(q) * 2 / (1 + spread * q), 0, np.inf)
        assert found == pytest.approx(-math.log(mean[0]), abs=0.015)


# ----------------------------------------------------------------------------------------- LPINN


def test_lagrangian_equations_carry_burgers_solution():
    """Labels moved by Runge and Kutta, derivatives by Fourier series: u stays Cole and Hopf's.

    u_t along labels is then taken from that solution, so that the diffusion is no assumption.
    """
    nu, c, step, count = 0.3, 2.0, 1e-3, 64
    xi = np.arange(count) * 2 * np.pi / count
    k = np.fft.fftfreq(count, 1 / count)
    k[count // 2] = 0

    def slope(y):
        return np.fft.ifft(1j * k * np.fft.fft(y)).real

    def change(state):
        shift, u = state
        stretch = 1 + slope(shift)
        return np.array([u, nu * slope(slope(u) / stretch) / stretch])

    state, kept = np.array([0 * xi, c + np.sin(xi)]), {}
    for i in range(520):
        if i % 10 == 0:
            kept[i] = state
        a = change(state)
        b = change(state + step / 2 * a)
        e = change(state + step / 2 * b)
        state = state + step / 6 * (a + 2 * b + 2 * e + change(state + step * e))
    kept[520] = state
    carried = {i: burgers_cole_hopf(xi + s[0], i * step, nu, c) for i, s in kept.items()}
    np.testing.assert_allclose(kept[500][1], carried[500], atol=1e-9)

    def rate(values):
        ahead, far = values[510] - values[490], values[520] - values[480]
        return (8 * ahead - far) / (12 * 10 * step)

    def jet(label, moved, by_t):
        value, first = label + moved, slope(moved) + (label is xi)
        parts = (
            value[:, None],
            np.stack([first, by_t])[..., None],
            slope(slope(moved))[None, :, None],
        )
        return Jet(*map(torch.from_numpy, parts))

    t = torch.full((count,), 0.5, dtype=torch.float64)
    place = jet(xi, kept[500][0], rate({i: s[0] for i, s in kept.items()}))
    value = jet(0 * xi, carried[500], rate(carried))
    for residual in lagrangian_residuals(place, value, t, nu, "burgers"):
        assert float(residual.abs().max()) < 1e-7
    _, without = lagrangian_residuals(place, value, t, nu, "burgers", jacobian=False)
    assert float(without.abs().max()) > 0.05


def test_predictions_by_inverting_the_map_with_brent():
    torch.manual_seed(3)
    model = LagrangianPINN(lambda x: 4 + (x - 1).sin(), 0.1, width=7, depth_u=3).double()
    with torch.no_grad():
        for net in (model.x_net, model.u_net):
            net.layers[-1].weight.normal_(std=0.15)
    t = 0.8

    def place(xi):
        moved = perceptron(model.x_net, np.array([np.cos(xi), np.sin(xi), t]))
        return xi + t * (4 + moved)

    grid = np.linspace(0.05, 6.2, 9)
    for x, found in zip(grid, model.predict(torch.from_numpy(grid), t).tolist(), strict=True):
        turns = 2 * np.pi * np.ceil((place(0) - x) / (2 * np.pi))
        xi = brentq(lambda y, at=x + turns: place(y) - at, 0, 2 * np.pi, xtol=1e-13)
        exact = (
            4 + np.sin(xi - 1) + t * perceptron(model.u_net, np.array([np.cos(xi), np.sin(xi), t]))
        )
        assert found == pytest.approx(exact, abs=1e-5)


def test_a_wave_takes_two_modes_at_rest_and_one_as_it_moves():
    x, t = np.arange(32)[:, None] * 2 * np.pi / 32, np.arange(20) / 20
    seen, carried = np.sin(x - 2 * np.pi * t), np.sin(x) * np.exp(-t)
    assert kolmogorov_n_width(seen, 1) == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert kolmogorov_n_width(seen, 2) < 1e-14 and kolmogorov_n_width(carried, 1) < 1e-14
