"""Central formulas of neural operators, written anew from their papers, in numpy and loops.

Nothing here is shared with a method: what is compared was read off the papers alone.
"""

from __future__ import annotations

import cmath
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from scipy.signal import correlate
from skfem import Basis, ElementTriP1, MeshTri
from torch import nn

from sat.methods.dgno import MultiONet, WeakTest, wendland
from sat.methods.dgno.inversion import posterior_covariance
from sat.methods.drift_net import DriftBlock, frequency_weighted_loss
from sat.methods.lsm import LSM
from sat.methods.nn_to_no import InterpolatedConv, QuadratureAttention
from sat.methods.spon import (
    SPON,
    FeDecoder,
    FeSpace,
    MeshHierarchy,
    MultigridProcessor,
    ProjectionEncoder,
    relative_fe_error,
)


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.flat]).reshape(x.shape)


# ----------------------------------------------------------------------------------- nn_to_no


@pytest.mark.parametrize("s", (1, 2, 3))
def test_stretched_kernels_of_the_released_code(s):
    """Bilinear between centres of taps, k² over the new size², s times the padding."""
    torch.manual_seed(s)
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    base, k = 4, 3
    size = s * (k - 1) + 1
    w, b = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    rows = np.zeros((size, k))
    for i in range(size):
        place = min(max((i + 0.5) * k / size - 0.5, 0), k - 1)
        low = min(int(place), k - 2)
        rows[i, low], rows[i, low + 1] = 1 - (place - low), place - low
    taps = np.einsum("pi,oaij,qj->oapq", rows, w, rows) * k**2 / size**2
    x = torch.randn(1, 2, s * base, s * base, dtype=torch.float64)
    padded = np.pad(x[0].numpy(), ((0, 0), (s, s), (s, s)))
    expected = [
        sum(correlate(padded[a], taps[o, a], "valid", "direct") for a in range(2)) + b[o]
        for o in range(3)
    ]
    got = InterpolatedConv(conv, base, "authors")(x)[0].detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize("kind", ("softmax", "galerkin"))
def test_attention_with_weights_and_places(kind):
    """Queries and keys turned as complex numbers, sums over points one by one."""
    torch.manual_seed(5)
    heads, each, n = 2, 4, 7
    layer = QuadratureAttention(heads * each, heads, kind, space=1, wavelength=0.25).double()
    x = torch.randn(1, n, heads * each, dtype=torch.float64)
    places = torch.rand(n, 1, dtype=torch.float64)
    weights = torch.rand(n, dtype=torch.float64) + 0.1
    w, state = weights.numpy(), arrays(layer)
    total = np.zeros((n, heads * each))
    for head in range(heads):
        rows = slice(head * each, (head + 1) * each)
        q, k, v = (
            x[0].numpy() @ state[f"{name}.weight"][rows].T + state[f"{name}.bias"][rows]
            for name in ("query", "key", "value")
        )
        for y in (q, k):
            for i, place in enumerate(places[:, 0].tolist()):
                for c, wavelength in enumerate((0.25, 0.5)):
                    turned = complex(y[i, c], y[i, c + 2]) * cmath.exp(
                        2j * math.pi * place / wavelength
                    )
                    y[i, c], y[i, c + 2] = turned.real, turned.imag
        if kind == "galerkin":
            for y in (k, v):
                mean = sum(a * row for a, row in zip(w, y, strict=True)) / w.sum()
                y -= mean
                y /= np.sqrt(sum(a * row**2 for a, row in zip(w, y, strict=True)) / w.sum() + 1e-5)
        for i in range(n):
            if kind == "softmax":
                parts = [w[j] * math.exp(q[i] @ k[j] / math.sqrt(each)) for j in range(n)]
                total[i, rows] = sum(p * v[j] for j, p in enumerate(parts)) / sum(parts)
            else:
                total[i, rows] = sum(w[j] * (q[i] @ k[j]) * v[j] for j in range(n))
    expected = total @ state["out.weight"].T + state["out.bias"]
    got = layer(x, weights, points=places)[0].detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)


# ---------------------------------------------------------------------------------------- LSM


def double_conv(state, name, x):
    """Twice: 3 x 3 with zeros around, batch norm of an untrained net, ReLU."""
    for place in (0, 3):
        w = state[f"{name}.{place}.weight"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        x = np.stack(
            [
                sum(correlate(c, k, "valid", "direct") for c, k in zip(padded, o, strict=True))
                for o in w
            ]
        )
        x = np.maximum(x / math.sqrt(1 + 1e-5), 0)
    return x


def doubled(x):
    """Bilinear to twice the size, corners on corners."""
    for axis in (1, 2):
        n = x.shape[axis]
        at = np.arange(2 * n) * (n - 1) / (2 * n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, n - 1)
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


def spectral_block(state, name, x, patch, heads):
    token, weight = state[f"{name}.token"], state[f"{name}.weight"]
    enc, enc0 = state[f"{name}.encoder.weight"][..., 0], state[f"{name}.encoder.bias"]
    dec, dec0 = state[f"{name}.decoder.weight"][..., 0], state[f"{name}.decoder.bias"]
    width, basis = len(x), weight.shape[1] // 2
    each, out = width // heads, x.copy()
    for i, j in itertools.product(*(range(0, n, patch) for n in x.shape[1:])):
        points = x[:, i : i + patch, j : j + patch].reshape(width, -1)
        both = (enc @ points + enc0[:, None]).reshape(heads, each, 2, -1)
        asked = (dec @ points + dec0[:, None]).reshape(heads, each, -1)
        read = np.zeros((heads, each, points.shape[1]))
        for h in range(heads):
            keys, values = both[h, :, 0], both[h, :, 1]
            score = np.exp(token[h] @ keys)
            z = (score / score.sum(1, keepdims=True)) @ values.T + token[h]
            series = np.zeros_like(z)
            for n in range(basis):
                w = weight[h * each : (h + 1) * each]
                angle = math.pi * n / basis * z
                series += w[:, n] * np.sin(angle) + w[:, basis + n] * np.cos(angle)
            z = z + series
            score = np.exp(z @ asked[h])
            read[h] = z.T @ (score / score.sum(0))
        shape = width, patch, patch
        out[:, i : i + patch, j : j + patch] += read.reshape(shape)
    return out


@pytest.mark.parametrize("spectral", (True, False))
def test_lsm_layer_by_layer(spectral):
    """The whole network of one field, 30 x 32 points with two rows of padding, patches of 2 x 2."""
    torch.manual_seed(0)
    heads, width = 2, 4
    model = LSM(
        1, 2, width, num_token=3, num_basis=3, patch=(2, 2), padding=(2, 0), heads=heads,
        spectral=spectral,
    ).double().eval()  # fmt: skip
    field = torch.randn(1, 30, 32, 1, dtype=torch.float64)
    state = arrays(model)
    rows, cols = np.meshgrid(np.arange(30) / 29, np.arange(32) / 31, indexing="ij")
    h = np.stack([field[0, ..., 0].numpy(), rows, cols], -1)
    h = (h @ state["lift.weight"].T + state["lift.bias"]).transpose(2, 0, 1)
    scales = [double_conv(state, "first", np.pad(h, ((0, 0), (0, 2), (0, 0))))]
    for i in range(4):
        x = scales[-1]
        pooled = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
        scales.append(double_conv(state, f"down.{i}.1", pooled))
    if spectral:
        scales = [spectral_block(state, f"blocks.{i}", x, 2, heads) for i, x in enumerate(scales)]
    y = scales[4]
    for i, skip in enumerate(reversed(scales[:4])):
        y = double_conv(state, f"up.{i}.conv", np.concatenate([skip, doubled(y)]))
    y = np.einsum("oi,ixy->xyo", state["out.weight"][..., 0, 0], y) + state["out.bias"]
    y = gelu(y[:30] @ state["hidden.weight"].T + state["hidden.bias"])
    expected = y @ state["head.weight"].T + state["head.bias"]
    np.testing.assert_allclose(model(field)[0].detach().numpy(), expected, atol=1e-12)


# --------------------------------------------------------------------------------------- DGNO


@pytest.mark.parametrize("dim", (1, 2, 3, 4))
def test_wendlands_functions_by_integration(dim):
    """(1 - r)^l, l = ⌊dim/2⌋ + 3, and twice the integral from r to 1 of t times it; 1 at 0."""
    p = Polynomial([1, -1]) ** (dim // 2 + 3)
    for _ in range(2):
        whole = (Polynomial([0, 1]) * p).integ()
        p = whole(1) - whole
    p = p / p(0)
    r = np.linspace(0, 1, 41)
    v, over_r = wendland(torch.tensor(r), dim)
    np.testing.assert_allclose(v, p(r), atol=1e-13)
    np.testing.assert_allclose(over_r[1:], p.deriv()(r[1:]) / r[1:], atol=1e-11)
    assert float(over_r[0]) == pytest.approx(p.deriv(2)(0))
    assert not wendland(torch.tensor([1.0, 1.5]), dim)[0].any()


@pytest.mark.parametrize("dim", (1, 2))
def test_weak_residuals_are_minus_the_divergence_by_parts(dim):
    """∫ (s·∇v - f v) = ∫ (-∇·s - f) v for v that is 0 around; fine mesh, mean over the ball."""
    radius, f = 0.1, 3.0
    test = WeakTest(dim, 4001 if dim == 1 else 201, radius)
    x = test.sample(4, torch.Generator().manual_seed(0), torch.float64)
    matrix = torch.tensor([[0.7, 1.3], [-0.4, 2.1]], dtype=torch.float64)[:dim, :dim]
    flux = (x @ matrix)[None]
    divergence = float(matrix.trace())
    share = test.v.mean()
    expected = (-divergence - f) * share
    got = test.residual(flux, f)
    torch.testing.assert_close(got, expected.expand_as(got), rtol=2e-3, atol=0)


def test_multionet_term_by_term():
    torch.manual_seed(1)
    net = MultiONet(2, 3, [5, 4, 3, 6], 3, 2, "silu_sin", "silu_id", branch_width=[2, 7, 3, 6])
    net = net.double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([0.3, -1.2]))
        net.bias.fill_(0.4)
    x, a = torch.randn(5, 2).double(), torch.randn(4, 3).double()
    state = arrays(net)
    expected = np.full((4, 5), 0.4)
    for i, k in itertools.product(range(4), range(5)):
        t, b = x[k].numpy(), a[i].numpy()
        for layer in range(4):
            t = state[f"trunk.{layer}.weight"] @ t + state[f"trunk.{layer}.bias"]
            t = silu(np.sin(np.pi * (t + 1))) + t
            b = state[f"branch.{layer}.weight"] @ b + state[f"branch.{layer}.bias"]
            b = silu(b) + b
            if layer >= 2:
                expected[i, k] += (0.3, -1.2)[layer - 2] * (t @ b) / 2
    np.testing.assert_allclose(net(x, a).detach().numpy(), expected, atol=1e-13)


def test_posterior_covariance_is_bayes_by_the_joint_gaussian():
    """Of β ~ N(0, P) and y = J β + noise: P - P Jᵀ (J P Jᵀ + σ²)⁻¹ J P."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    prior, j, noise = root @ root.T + np.eye(4), rng.standard_normal((3, 4)), 0.3
    joint = j @ prior @ j.T + noise**2 * np.eye(3)
    expected = prior - prior @ j.T @ np.linalg.solve(joint, j @ prior)
    got = posterior_covariance(torch.tensor(j), noise, torch.tensor(prior))
    np.testing.assert_allclose(got, expected, atol=1e-12)


# ---------------------------------------------------------------------------------- DRIFT-Net


def waves(height, width):
    """Phases (rows, cols, height, width) of a transform, by its definition."""
    row, col, y, x = np.ogrid[:height, : width // 2 + 1, :height, :width]
    return np.exp(-2j * np.pi * (row * y / height + col * x / width))


def normed(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_drift_block_by_sums_over_waves():
    """No fft: modes are sums over points, the field one over waves, most columns counted twice."""
    torch.manual_seed(2)
    size, dim, bands = 6, 3, 4
    block = DriftBlock(dim, size, bands, 5, time_conditioning=False).double()
    with torch.no_grad():
        block.spectral.weight.mul_(40)
    state = arrays(block)
    x = np.random.default_rng(0).standard_normal((size, size, dim))
    phase = waves(size, size)
    modes = np.einsum("klyx,yxc->klc", phase, x) / size**2

    k, half = np.array([0, 1, 2, 3, 2, 1])[:, None], np.arange(size // 2 + 1)
    radius = np.sqrt(k**2 + half**2) / (size / 2 * math.sqrt(2))
    band = np.minimum(np.floor(radius * bands), bands - 1)
    fraction = 1 / (1 + math.exp(-0.25))
    most = math.floor(fraction * (size / 2 + 1))
    low = (k < most) & (half < most)
    means = np.stack([np.abs(modes)[band == b].mean(0) for b in range(bands)], -1)
    hidden = np.maximum(
        means @ state["spectral.gate.mlp.0.weight"].T + state["spectral.gate.mlp.0.bias"], 0
    )
    gates = 1 / (
        1
        + np.exp(
            -(hidden @ state["spectral.gate.mlp.2.weight"].T + state["spectral.gate.mlp.2.bias"])
        )
    )
    matrix = state["spectral.weight"] @ np.array([1, 1j])
    fused = np.zeros_like(modes)
    for row, col in np.ndindex(*band.shape):
        alpha, mode = gates[:, int(band[row, col])], modes[row, col]
        fused[row, col] = alpha * (matrix @ mode) if low[row, col] else (1 - alpha) * mode
    twice = np.where(half % (size // 2) == 0, 1, 2)[:, None]
    spectral = np.einsum("klyx,klc->yxc", phase.conj(), fused * twice).real

    local = np.zeros_like(x)
    for dy, dx in np.ndindex(3, 3):
        taps = state["local.1.weight"][:, 0, dy, dx]
        local += taps * np.roll(x, (1 - dy, 1 - dx), (0, 1))
    mixed = spectral + local + x @ state["linear.weight"].T + state["linear.bias"]
    y = x + normed(mixed)
    inner = gelu(y @ state["mlp.0.weight"].T + state["mlp.0.bias"])
    y = y + normed(inner @ state["mlp.2.weight"].T + state["mlp.2.bias"])
    found = block(torch.tensor(x)[None])[0].detach().numpy()
    np.testing.assert_allclose(found, y, rtol=0, atol=1e-12)


def test_weighted_spectrum_by_sums_over_waves():
    rng = np.random.default_rng(1)
    pred, target = rng.standard_normal((2, 2, 3, 6, 8))
    modes = np.einsum("klyx,bcyx->bckl", waves(6, 8), pred - target) / 48
    row, col = np.array([0, 1, 2, 3, 2, 1])[:, None], np.arange(5)
    share = (np.sqrt(row**2 + col**2) / 5) ** 1.5
    expected = np.abs(pred - target).mean() + 0.3 * (np.abs(modes) ** 2 * share).mean()
    found = frequency_weighted_loss(torch.tensor(pred), torch.tensor(target))
    assert float(found) == pytest.approx(expected, rel=1e-12)


# --------------------------------------------------------------------------------------- SPON


def moment(area, *corners):
    """∫ of a product of barycentric coordinates over a triangle: 2 A Π nᵢ! / (Σ nᵢ + 2)!."""
    powers = [corners.count(i) for i in range(3)]
    top = math.prod(math.factorial(p) for p in powers)
    return 2 * area * top / math.factorial(sum(powers) + 2)


def triangles(mesh):
    for corners in mesh.t.T:
        a, b, c = mesh.p.T[corners]
        yield corners, abs(np.linalg.det([b - a, c - a])) / 2


def test_projection_and_norms_by_moments():
    """x y is Σ x_p y_q λ_p λ_q on a triangle; mass and loads are moments of such products."""
    mesh = MeshTri.init_lshaped().refined(1)
    n = mesh.p.shape[1]
    gram, load = np.zeros((n, n)), np.zeros(n)
    for corners, area in triangles(mesh):
        x, y = mesh.p[:, corners]
        for i, k in itertools.product(range(3), range(3)):
            gram[corners[i], corners[k]] += moment(area, i, k)
            for q in range(3):
                load[corners[i]] += x[k] * y[q] * moment(area, i, k, q)
    space = FeSpace.from_skfem(Basis(mesh, ElementTriP1()))
    got = ProjectionEncoder(space)(lambda x: x[:, 0] * x[:, 1]).numpy()
    np.testing.assert_allclose(got, np.linalg.solve(gram, load), atol=1e-13)
    y, t = np.random.default_rng(1).standard_normal((2, 3, n))
    errors = [
        math.sqrt((a - b) @ gram @ (a - b)) / math.sqrt(b @ gram @ b)
        for a, b in zip(y, t, strict=True)
    ]
    got = relative_fe_error(torch.tensor(y), torch.tensor(t), space)
    np.testing.assert_allclose(got, errors, rtol=1e-12)


def test_spon_node_by_node():
    """A V-cycle of three levels: averages over neighbours and midpoints, found in the meshes."""
    torch.manual_seed(3)
    channels, smooth = 3, 2
    meshes = [MeshTri.init_lshaped().refined(i) if i else MeshTri.init_lshaped() for i in range(3)]
    processor = MultigridProcessor(MeshHierarchy.from_skfem(meshes[0], 3), channels, smooth)
    space = FeSpace.from_skfem(Basis(meshes[-1], ElementTriP1()), dirichlet=True)
    scales = 2.0, 0.5
    model = SPON(ProjectionEncoder(space), processor.double(), FeDecoder(space), scales)
    state = arrays(processor)

    near, halves = [], []
    for mesh in meshes:
        around = [set() for _ in range(mesh.p.shape[1])]
        for corners in mesh.t.T.tolist():
            for node in corners:
                around[node] |= set(corners)
        near.append([sorted(nodes) for nodes in around])
    for coarse, fine, around in zip(meshes, meshes[1:], near, strict=False):
        place = {tuple(p): node for node, p in enumerate(fine.p.T.tolist())}
        share = np.zeros((fine.p.shape[1], coarse.p.shape[1]))
        for a, nodes in enumerate(around):
            for b in nodes:
                middle = (coarse.p[:, a] + coarse.p[:, b]) / 2
                share[place[tuple(middle.tolist())], [a, b]] = 1 if a == b else 0.5
        halves.append(share)

    def smoothed(h, level, name):
        for step in range(smooth):
            own, bias = state[f"{name}.{step}.own.weight"], state[f"{name}.{step}.own.bias"]
            beside = np.array([h[nodes].mean(0) for nodes in near[level]])
            h = h + gelu(h @ own.T + bias + beside @ state[f"{name}.{step}.near.weight"].T)
        return h

    c = np.random.default_rng(0).standard_normal(space.dofs)
    h = np.column_stack([c / scales[0], meshes[-1].p.T])
    h = h @ state["lift.weight"].T + state["lift.bias"]
    stored = []
    for level in (2, 1):
        stored.append(smoothed(h, level, f"down.{level - 1}"))
        down = halves[level - 1].T
        h = down @ stored[-1] / down.sum(1, keepdims=True)
    h = smoothed(h, 0, "coarse")
    for level in (1, 2):
        h = smoothed(stored.pop() + halves[level - 1] @ h, level, f"up.{level - 1}")
    y = (h @ state["head.weight"].T + state["head.bias"])[:, 0] * scales[1]
    # The L-shape is [-1, 1]² without a quadrant; a node inside has triangles all around.
    turns = np.zeros(space.dofs)
    for corners, _ in triangles(meshes[-1]):
        for i in range(3):
            a, b = (
                meshes[-1].p[:, corners[k]] - meshes[-1].p[:, corners[i]] for k in (i - 1, i - 2)
            )
            turns[corners[i]] += math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    y[turns < 2 * math.pi - 1e-6] = 0
    got = model(torch.tensor(c)).dofs.detach().numpy()
    np.testing.assert_allclose(got, y, atol=1e-12)
