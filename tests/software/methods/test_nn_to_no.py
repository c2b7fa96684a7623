"""Networks as operators: kernels by integrals, layers by quadrature, conversion, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad, quad
from scipy.signal import resample as scipy_resample
from torch import nn
from torch.nn import functional

import sat
from sat.methods.nn_to_no import (
    DifferentialConv,
    FunctionPool,
    InterpolatedConv,
    KernelIntegral,
    LocalIntegralConv,
    LowRankIntegral,
    PatchIntegral,
    QuadratureAttention,
    QuadratureMesh,
    QuadratureNorm,
    ResampledLayer,
    SpectralConv,
    fourier_resample,
    in_out_interpolation,
    l2,
    quadrature_attention,
    to_operator,
)
from sat.methods.nn_to_no.integrals import pointwise
from sat.methods.nn_to_no.resample import linear_resample

WAVE = torch.tensor([0.2, -0.5, 1.0, 0.3, -0.1], dtype=torch.float64)


def bump(x):
    return torch.exp(torch.sin(2 * math.pi * x))


def line(n):
    return torch.arange(n, dtype=torch.float64) / n


def circular(weight, **options):
    """A convolution with these taps, float64; (taps,) is of one channel."""
    weight = weight.view(1, 1, -1) if weight.ndim == 1 else weight
    kind = nn.Conv1d if weight.ndim == 3 else nn.Conv2d
    groups = options.get("groups", 1)
    conv = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), bias=False,
        padding=tuple(k // 2 for k in weight.shape[2:]), padding_mode="circular", **options,
    ).double()  # fmt: skip
    with torch.no_grad():
        conv.weight.copy_(weight)
    return conv


# --------------------------------------------------------------------------- interpolated kernels


@settings(max_examples=12)
@given(
    axes=st.integers(1, 2), taps=st.sampled_from([1, 3, 5]), s=st.integers(1, 4),
    padding_mode=st.sampled_from(["circular", "zeros", "replicate", "reflect"]),
    groups=st.sampled_from([1, 2]), seed=st.integers(0, 99),
)  # fmt: skip
def test_hat_kernel_is_its_formula_whole_or_factored(axes, taps, s, padding_mode, groups, seed):
    torch.manual_seed(seed)
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    conv = kind(2, 4, taps, padding=taps // 2, padding_mode=padding_mode, groups=groups).double()
    base = 6
    layer = InterpolatedConv(conv, base)
    got = layer.kernel([s] * axes).detach().numpy()
    w = conv.weight.detach().numpy()
    size = s * (taps + 1) - 1
    assert got.shape == w.shape[:2] + (size,) * axes
    hat = np.array([
        [max(0.0, 1 - abs(m / s - j)) / s for m in range(1 - s, s * taps)] for j in range(taps)
    ])  # fmt: skip
    expected = (
        np.einsum("oij,jm->oim", w, hat)
        if axes == 1
        else np.einsum("oijk,jm,kn->oimn", w, hat, hat)
    )
    np.testing.assert_allclose(got, expected, atol=1e-14)
    np.testing.assert_allclose(
        got.sum(tuple(range(2, 2 + axes))), w.sum(tuple(range(2, 2 + axes))), atol=1e-13
    )
    x = torch.randn(2, 2, *[base * s] * axes, dtype=torch.float64)
    whole = InterpolatedConv(conv, base, dense=True)(x)
    assert whole.shape == (2, 4, *[base * s] * axes)
    torch.testing.assert_close(layer(x), whole)
    if s == 1:
        assert torch.equal(layer(x), conv(x))


def test_hat_converges_to_the_integral_with_order_two():
    h = 1 / 16
    centres = [(j - 2) * h for j in range(5)]

    def kernel(y):
        return sum(
            float(w) * max(0.0, 1 - abs(y - c) / h) / h for w, c in zip(WAVE, centres, strict=True)
        )

    exact = quad(
        lambda y: kernel(y) * math.exp(math.sin(2 * math.pi * (0.25 + y))), -3 * h, 3 * h,
        points=[j * h for j in range(-3, 4)], epsabs=1e-12,
    )[0]  # fmt: skip
    assert exact == pytest.approx(2.3874578, abs=1e-7)
    layer = InterpolatedConv(circular(WAVE), 16)
    errors = [
        abs(layer(bump(line(n))[None, None])[0, 0, n // 4].item() - exact) for n in (32, 64, 128)
    ]
    assert min(np.log2(np.array(errors[:-1]) / errors[1:])) > 1.95


def test_authors_kernels():
    """Sums are those of the released code's rule, which torch's interpolation and factor give."""
    conv = circular(WAVE)
    layer = InterpolatedConv(conv, 16, "authors")
    for s, size in ((2, 9), (4, 17)):
        kernel = layer.kernel([s])
        assert kernel.shape[-1] == size
        x = torch.randn(1, 1, 16 * s, dtype=torch.float64)
        pads = functional.pad(x, (2 * s, 2 * s), mode="circular")
        torch.testing.assert_close(layer(x), functional.conv1d(pads, kernel))
    assert torch.equal(layer(x[..., :16]), conv(x[..., :16]))
    # Coarser grids: half as many points, a kernel of 3.
    assert layer(x[..., :8]).shape[-1] == 8
    with pytest.raises(ValueError, match="stretched padding would have 0.666667 points"):
        InterpolatedConv(circular(WAVE), 12, "authors")(x[..., :4])


def test_pruned_weights_are_pruned_on_every_grid():
    """With 2:8 weights (`sat.sparsify_`) a finer grid sees the pruned kernel, interpolated."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    operator = to_operator(nn.Sequential(conv), 8)
    sat.sparsify_(operator, "srste", "2:8")
    pruned = nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        # Of 8 input channels at a tap, the largest two.
        groups = conv.weight.abs().argsort(1, descending=True)[:, :2]
        mask = torch.zeros_like(conv.weight).scatter(1, groups, 1.0)
        pruned.weight.copy_(mask * conv.weight)
        pruned.bias.copy_(conv.bias)
        x = torch.randn(2, 8, 16, 16)
        got, expected = operator(x), InterpolatedConv(pruned, 8, dense=True)(x)
        dense = InterpolatedConv(conv, 8, dense=True)(x)
    assert float((got - expected).norm() / expected.norm()) < 2e-3  # fp16 products
    assert float((dense - expected).norm() / expected.norm()) > 0.1


# ------------------------------------------------------------------------ other kinds of kernels


def test_differential_converges_to_the_derivative():
    slope = 2 * math.pi * math.cos(math.pi / 4) * math.exp(math.sin(math.pi / 4))
    exact = sum((j - 2) * float(w) for j, w in enumerate(WAVE)) * slope
    assert exact == pytest.approx(1.8021355, abs=1e-7)

    def errors(weight, exact):
        layer = DifferentialConv(circular(weight))
        return [
            abs(layer(bump(line(n))[None, None])[0, 0, n // 8].item() - exact) for n in (2048, 4096)
        ]

    first = errors(WAVE, exact)
    assert 1.8 < first[0] / first[1] < 2.3
    odd = torch.tensor([-0.3, 0.8, 0.0, -0.8, 0.3], dtype=torch.float64)
    second = errors(odd, 2 * (2 * 0.3 - 0.8) * slope)
    assert 3.8 < second[0] / second[1] < 4.2


def test_differential_of_a_plane_is_exact():
    """Inside, with replicated edges: f = 3 x - 2 y, any taps, bias and groups."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate", groups=2).double()
    n = 12
    axis = torch.arange(n, dtype=torch.float64) / n * 5
    plane = 3 * axis[:, None] - 2 * axis
    out = DifferentialConv(conv, 5.0)(torch.stack([plane, 2 * plane])[None])[0, :, 4, 4]
    j = torch.arange(-1.0, 2).double()
    w = conv.weight
    slope = 3 * (w * j[:, None]).sum((1, 2, 3)) - 2 * (w * j).sum((1, 2, 3))
    factor = torch.tensor([1.0, 1, 2, 2]).double()
    torch.testing.assert_close(out, slope * factor + conv.bias)


def test_local_integral_converges_to_its_disc():
    torch.manual_seed(0)
    layer = LocalIntegralConv(1, 1, 0.2).double()
    assert layer.weight.shape == (5, 1, 1)
    theta = layer.weight.detach()[:, 0, 0]

    def value(x, y):
        return math.exp(math.sin(2 * math.pi * x)) * (1 + math.cos(2 * math.pi * y))

    def polar(r, phi):
        offset = torch.tensor([r * math.cos(phi), r * math.sin(phi)], dtype=torch.float64)
        there = value(0.25 + float(offset[0]), 0.5 + float(offset[1]))
        return float(theta @ layer.basis(offset)) * there * r

    exact = sum(
        dblquad(polar, q * math.pi / 2, (q + 1) * math.pi / 2, ends[0], ends[1], epsabs=1e-6)[0]
        for q in range(4)
        for ends in ((0, 0.1), (0.1, 0.2))
    )
    errors = []
    for n in (32, 64, 128):
        x, y = torch.meshgrid(line(n), line(n), indexing="ij")
        f = bump(x) * (1 + torch.cos(2 * math.pi * y))
        errors.append(abs(layer(f[None, None])[0, 0, n // 4, n // 2].item() - exact))
    assert errors[2] < 0.3 * errors[0] and errors[2] < 1e-3 * abs(exact) + 1e-4


def test_local_integral_on_a_mesh_is_that_on_a_grid():
    torch.manual_seed(1)
    layer = LocalIntegralConv(2, 3, 0.2, (3, 5)).double()
    n = 16
    mesh = QuadratureMesh.uniform(n, 2)
    f = torch.randn(2, 2, n, n, dtype=torch.float64)
    whole = layer(f)
    inside = 8 * n + 8
    got = layer.on_mesh(f.flatten(2).mT, mesh, mesh.points[inside : inside + 1])
    torch.testing.assert_close(got[:, 0], whole.flatten(2)[..., inside])
    ring = LocalIntegralConv(1, 1, 1.0, (2, 1))
    far = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.75], [1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(ring.basis(far), expected)


@pytest.mark.parametrize("axes", [1, 2])
def test_spectral_convolution(axes):
    """Weights do not know n; each mode is multiplied by its matrix, against numpy."""
    torch.manual_seed(0)
    layer = SpectralConv(2, 3, [3] * axes).double()
    coarse = fourier_resample(torch.randn(1, 2, *[5] * axes).double(), [16] * axes)
    fine = fourier_resample(coarse, [64] * axes)
    step = (..., *[slice(None, None, 4)] * axes)
    torch.testing.assert_close(layer(fine)[step], layer(coarse))
    spectrum = np.fft.fftn(coarse[0].numpy(), axes=range(1, 1 + axes))
    weight = torch.view_as_complex(layer.weight).detach().numpy()
    out = np.zeros((3, *[16] * axes), complex)
    for place in np.ndindex(*weight.shape[:axes]):
        k = place if axes == 1 else (place[0] - 2, place[1])
        out[(slice(None), *k)] = weight[place].T @ spectrum[(slice(None), *k)]
    # The half that rfft leaves out; of column 0 both halves are there, and irfft takes their mean.
    half = np.fft.irfftn(out[..., :9], [16] * axes, axes=range(1, 1 + axes))
    np.testing.assert_allclose(layer(coarse)[0].detach().numpy(), half, atol=1e-12)


# ------------------------------------------------------------------------- meshes and resampling


def test_meshes_integrate():
    x = torch.linspace(0, 1, 40, dtype=torch.float64) ** 2
    mesh = QuadratureMesh.from_points_1d(x)
    lines = torch.stack([x, 1 - 3 * x], -1)
    torch.testing.assert_close(mesh.integrate(lines), torch.tensor([0.5, -0.5]).double())
    square = QuadratureMesh.uniform(9, 2, periodic=False)
    plane = (square.points[:, :1] + 2 * square.points[:, 1:])[None]
    torch.testing.assert_close(square.integrate(plane), torch.tensor([[1.5]]).double())
    ring = QuadratureMesh.uniform(8)
    assert len(ring) == 8 and ring.points[1].item() == 1 / 8
    p, t = torch.sin(2 * math.pi * ring.points)[None], torch.ones(1, 8, 1).double()
    assert l2(p + t, t, ring).item() == pytest.approx(math.sqrt(0.5))
    assert l2(p + 2 * t, 2 * t, ring, relative=True).item() == pytest.approx(math.sqrt(0.125))


@settings(max_examples=30)
@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 99))
def test_fourier_resampling_is_scipys(n, m, seed):
    x = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = fourier_resample(x, m)
    np.testing.assert_allclose(got.numpy(), scipy_resample(x.numpy(), m, axis=-1), atol=1e-12)
    both = fourier_resample(x[:, :, None].expand(-1, -1, 4, -1), [6, m])
    torch.testing.assert_close(both[:, :, 5], got)


def test_linear_resampling_and_pooling():
    x = torch.tensor([[[0.0, 1.0, 4.0, 1.0]]])
    assert linear_resample(x, 8).flatten().tolist() == [0, 0.5, 1, 2.5, 4, 2.5, 1, 0.5]
    assert linear_resample(x, 2).flatten().tolist() == [0, 4]
    x = torch.sin(2 * math.pi * line(32))[None, None]
    for n in (32, 64):
        pooled = FunctionPool(8)(fourier_resample(x, n))
        torch.testing.assert_close(pooled, x[..., ::4])
    assert FunctionPool([4, 6], "linear")(torch.zeros(1, 2, 8, 8)).shape == (1, 2, 4, 6)


# ------------------------------------------------------------------------- attention and integrals


def test_attention_is_a_ratio_of_integrals():
    def f(x):
        return math.sin(2 * math.pi * x) + x

    q = f(0.3)
    top = quad(lambda x: math.exp(q * f(x)) * f(x), 0, 1)[0]
    exact = top / quad(lambda x: math.exp(q * f(x)), 0, 1)[0]
    x = torch.linspace(0, 1, 256, dtype=torch.float64) ** 2
    values = (torch.sin(2 * math.pi * x) + x)[:, None]
    mesh = QuadratureMesh.from_points_1d(x)
    asked = torch.tensor([[q]], dtype=torch.float64)
    right = quadrature_attention(asked, values, values, mesh.weights).item()
    assert abs(right - exact) < 1e-4
    wrong = quadrature_attention(asked, values, values, torch.ones(256)).item()
    assert abs(wrong - exact) > 0.01
    plain = functional.scaled_dot_product_attention(asked[None], values[None], values[None])
    assert wrong == pytest.approx(plain.item())


def test_attention_does_not_mind_points_that_are_cut_in_two():
    """A point of weight w is two of w/2: softmax, galerkin, norms and places alike."""
    torch.manual_seed(0)
    x, points = torch.randn(2, 6, 16).double(), torch.rand(6, 2).double()
    weights = torch.rand(6).double()
    twice = torch.cat([torch.arange(6), torch.tensor([2])])
    halves = weights[twice].clone()
    halves[[2, 6]] /= 2
    for kind in ("softmax", "galerkin"):
        layer = QuadratureAttention(16, 2, kind, space=2).double()
        plain = layer(x, weights / weights.sum(), points=points)
        cut = layer(x[:, twice], halves / weights.sum(), x, points=points[twice],
                    query_points=points)  # fmt: skip
        torch.testing.assert_close(cut, plain)
        if kind == "softmax":  # only differences of places count
            moved = layer(x, weights / weights.sum(), points=points + 0.1)
            torch.testing.assert_close(moved, plain)
            apart = layer(x, weights / weights.sum(), points=2 * points)
            assert not torch.allclose(apart, plain)
    norm = QuadratureNorm(16).double()
    torch.testing.assert_close(norm(x[:, twice], halves)[:, :6], norm(x, weights))
    out = norm(x, weights)
    share = weights / weights.sum()
    torch.testing.assert_close(share @ out, torch.zeros(2, 16).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(share @ out.square(), torch.ones(2, 16).double(), atol=1e-3, rtol=0)


def test_attention_module_is_torchs_on_even_points():
    torch.manual_seed(0)
    ours = QuadratureAttention(8, 2).double()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([p.weight for p in (ours.query, ours.key, ours.value)])
        )
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(3, 5, 8).double()
    asked = torch.randn(3, 2, 8).double()
    torch.testing.assert_close(ours(x, torch.ones(5), asked), theirs(asked, x, x)[0])


def test_kernel_integrals():
    """κ(x, y) = x y + 1 and f = y²: ∫ = x / 4 + 1 / 3, whole or of low rank; κ of f, too."""

    class Product(nn.Module):
        def forward(self, pair):
            return pair[..., :1] * pair[..., 1:2] + 1

    class Powers(nn.Module):
        def forward(self, x):
            return torch.cat([x, torch.ones_like(x)], -1)

    mesh = QuadratureMesh.from_points_1d(torch.linspace(0, 1, 2001, dtype=torch.float64))
    f = mesh.points[None] ** 2
    query = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    expected = query[None] / 4 + 1 / 3
    got = KernelIntegral(Product(), 1, 1)(f, mesh, query)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    low = LowRankIntegral(Powers(), Powers(), 1, 1)(f, mesh, query)
    torch.testing.assert_close(low, expected, atol=1e-6, rtol=0)

    class Squares(nn.Module):
        def forward(self, triple):
            return triple[..., 2:]

    squared = KernelIntegral(Squares(), 1, 1, nonlinear=True)(f, mesh, query)
    torch.testing.assert_close(squared, torch.full((1, 2, 1), 0.2).double(), atol=1e-6, rtol=0)
    layer = KernelIntegral(pointwise([2, 4, 6]), 2, 3)
    small = QuadratureMesh.uniform(5)
    assert layer(torch.randn(2, 5, 2), small).shape == (2, 5, 3)


# ----------------------------------------------------------------------------------- conversion


def network():
    """A U-Net of one level with every kind of layer that is converted."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            wide = {"padding": 2, "padding_mode": "circular"}
            self.inn = nn.Sequential(nn.Conv2d(2, 4, 5, **wide), nn.BatchNorm2d(4), nn.GELU())
            self.down = nn.AvgPool2d(2)
            self.low = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
                                     nn.InstanceNorm2d(4), nn.GELU())  # fmt: skip
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
            self.out = nn.Conv2d(8, 1, 1)

        def forward(self, x):
            x = self.inn(x)
            return self.out(torch.cat([x, self.up(self.low(self.down(x)))], 1))

    torch.manual_seed(0)
    return Net().double().eval()


def test_conversion_keeps_the_network_and_shares_its_weights():
    net = network()
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    for mode in ("hat", "authors"):
        operator = to_operator(net, 16, mode, example=x)
        torch.testing.assert_close(operator(x), net(x), rtol=0, atol=1e-12)
        ours, theirs = list(operator.parameters()), list(net.parameters())
        assert len(ours) == len(theirs)
        assert all(a is b for a, b in zip(ours, theirs, strict=True))
        assert operator(fourier_resample(x, 48)).shape == (2, 1, 48, 48)
    assert isinstance(net.inn[0], nn.Conv2d) and isinstance(operator.inn[0], InterpolatedConv)
    assert type(operator.out) is nn.Conv2d  # of kernel 1
    assert operator.low[0].base_res == 8 and isinstance(operator.up, ResampledLayer)
    single = to_operator(nn.Conv1d(1, 1, 3, padding=1), 8).double()
    assert isinstance(single, InterpolatedConv)


def test_converted_networks_converge_and_plain_ones_do_not():
    net = network()
    with torch.no_grad():
        net.out.weight[:, 4:] = 0  # what went through the coarse grid is the same on all
    operator = to_operator(net, 16, example=torch.randn(1, 2, 16, 16).double())
    field = fourier_resample(torch.randn(1, 2, 7, 7, dtype=torch.float64), 16)
    outs, plain = [], []
    with torch.no_grad():
        for n in (32, 64, 128, 256):
            x = fourier_resample(field, n)
            outs.append(operator(x)[..., :: n // 32, :: n // 32])
            plain.append(net(x)[..., :: n // 32, :: n // 32])
    steps = [float((b - a).norm()) for a, b in zip(outs, outs[1:], strict=False)]
    assert steps[1] < 0.3 * steps[0] and steps[2] < 0.3 * steps[1]
    assert float((plain[-1] - outs[-1]).norm()) > 10 * steps[0]


def test_patches_keep_their_size():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 4, stride=4).double()
    layer = to_operator(conv, 8)
    assert isinstance(layer, PatchIntegral)
    x = torch.randn(1, 2, 8, 8).double()
    torch.testing.assert_close(layer(x), conv(x))
    fine = x.repeat_interleave(3, -1).repeat_interleave(3, -2)
    torch.testing.assert_close(layer(fine), conv(x))


def test_in_and_out_interpolation():
    net = network()
    x = fourier_resample(torch.randn(1, 2, 7, 7, dtype=torch.float64), 16)
    model = in_out_interpolation(net, 16)
    fine = model(fourier_resample(x, 48))
    torch.testing.assert_close(fourier_resample(fine, 16), net(x))
    assert in_out_interpolation(nn.AvgPool2d(2), 16, "linear")(x.repeat(1, 1, 2, 2)).shape[-1] == 16


# ------------------------------------------------------------------------------------ bad input


def conv1d(**options):
    return nn.Conv1d(1, 1, **{"kernel_size": 3, "padding": 1, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InterpolatedConv(conv1d(), 8)(torch.zeros(1, 1, 12)), "multiple of base_res=8"),
        (lambda: InterpolatedConv(conv1d(), 8)(torch.zeros(1, 1, 4)), "at least base_res=8"),
        (lambda: InterpolatedConv(conv1d(), 8, "cubic"), "mode='cubic'"),
        (lambda: InterpolatedConv(conv1d(stride=2), 8), "stride=.2,.: must be 1"),
        (lambda: InterpolatedConv(conv1d(dilation=2), 8), "dilation"),
        (
            lambda: InterpolatedConv(conv1d(kernel_size=4, padding="same"), 8),
            "kernel_size=4 on axis 0 with padding='same': must be odd",
        ),
        (lambda: PatchIntegral(conv1d(), 8), "must make patches"),
        (lambda: DifferentialConv(conv1d()), "padding_mode='zeros'"),
        (lambda: DifferentialConv(conv1d(kernel_size=4)), "must be odd"),
        (lambda: LocalIntegralConv(1, 1, 0.0), "radius=0.0"),
        (lambda: LocalIntegralConv(1, 1, 0.1)(torch.zeros(1, 1, 8, 8)), "more than one spacing"),
        (lambda: SpectralConv(1, 1, 5)(torch.zeros(1, 1, 8)), "modes=5 on axis 0 of 8 points"),
        (lambda: SpectralConv(1, 1, (2, 2, 2)), "one or two axes"),
        (
            lambda: QuadratureMesh(torch.zeros(2, 1), torch.tensor([1.5, -0.5])),
            "weights has -0.5: must not be negative",
        ),
        (lambda: QuadratureMesh(torch.zeros(2, 1), torch.ones(2)), "add up to 2: .* measure 1"),
        (lambda: QuadratureMesh(torch.zeros(2, 1), torch.ones(3) / 3), r"must be \(2,\)"),
        (
            lambda: QuadratureMesh.from_points_1d(torch.tensor([0.0, 0.5, 0.5])),
            r"x\[1\]=0.5 and x\[2\]=0.5: points must ascend",
        ),
        (lambda: QuadratureMesh.from_points_1d(torch.tensor([0.0, 0.5, 0.2])), "must ascend"),
        (lambda: QuadratureMesh.uniform(0), "n=0"),
        (lambda: QuadratureAttention(8, 3), "heads=3: must divide dim=8"),
        (lambda: QuadratureAttention(8, 2, "linear"), "kind='linear'"),
        (lambda: QuadratureAttention(8, 2)(torch.zeros(1, 4, 8), torch.ones(3)), r"be \(4,\)"),
        (
            lambda: QuadratureAttention(8, 2, space=1)(torch.zeros(1, 4, 8), torch.ones(4)),
            "points is None",
        ),
        (lambda: FunctionPool(0), "size=0"),
        (lambda: FunctionPool(4, "cubic"), "how='cubic'"),
        (lambda: fourier_resample(torch.zeros(1, 1, 4), [4, 4]), "one number an axis"),
        (lambda: in_out_interpolation(nn.Identity(), 8, "cubic"), "how='cubic'"),
        (
            lambda: to_operator(nn.Sequential(nn.AvgPool1d(2), conv1d()), 8),
            "example is None: must be an input",
        ),
        (
            lambda: to_operator(nn.Sequential(nn.AvgPool1d(2)), 8, example=torch.zeros(1, 1, 9)),
            "must have base_res=8 points",
        ),
        (
            lambda: KernelIntegral(nn.Identity(), 1, 1)(
                torch.zeros(1, 3, 1), QuadratureMesh.uniform(4)
            ),
            r"must be \(batch, 4, 1\)",
        ),
        (
            lambda: l2(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), QuadratureMesh.uniform(4)),
            r"must both be \(batch, 4, channels\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, 8, 16))

    def forward(self, x):
        return x + self.place


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv1d(1, 1, 3), nn.Flatten(), nn.Linear(14, 1)], "layer '1' is a Flatten"),
        ([nn.Conv1d(1, 1, 3), nn.Linear(14, 14)], "layer '1' is a Linear"),
        ([Table()], "layer '0' is a Table with parameters of its own .'place'."),
        ([nn.Dropout(0.1)], "layer '0' is a Dropout: .* nn.Dropout2d"),
        ([nn.LayerNorm(16)], "layer '0' is a LayerNorm"),
        ([nn.PixelShuffle(2)], "layer '0' is a PixelShuffle: it has no known counterpart"),
    ],
)
def test_layers_without_a_counterpart(layers, message):
    with pytest.raises(TypeError, match=message):
        to_operator(nn.Sequential(*layers), 16)
    with pytest.raises(TypeError, match="conv is a Linear"):
        InterpolatedConv(nn.Linear(1, 1), 8)
