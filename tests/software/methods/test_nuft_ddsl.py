"""DDSL: integrals, transforms by closed forms and quadrature, boundaries, gradients, bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from sat.methods.nuft_ddsl import (
    SimplexFT,
    SimplexRaster,
    SpectralLeNet,
    SpectralResNet3d,
    boundary_to_simplices,
    normalize_vertices,
    polygon_ft,
    simplex_content,
    simplex_ft,
    simplex_integral,
)
from sat.methods.nuft_ddsl.demo import (
    CUBE_TETS,
    exact_rasters,
    green,
    lobes,
    pixel_rasters,
    polygons,
)

CUBE = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]).double()
FACES = torch.tensor([
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
])  # fmt: skip
"""The cube's surface, counterclockwise seen from outside."""


def rng_tensor(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(res, period=1.0):
    """Angular frequencies (…, d) by numpy."""
    axes = [2 * np.pi / period * np.fft.fftfreq(n, 1 / n) for n in res[:-1]]
    axes.append(2 * np.pi / period * np.fft.rfftfreq(res[-1], 1 / res[-1]))
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def ring(n, size=0.3, shift=0.0):
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n + shift
    return 0.5 + size * torch.stack([angle.cos(), angle.sin()], -1)


def edges(n, first=0):
    here = torch.arange(n)
    return torch.stack([here, here.roll(-1)], 1) + first


def ones(n):
    return torch.ones(n, 1, dtype=torch.float64)


# -------------------------------------------------------------------------------- the integral


def by_exponential(phases):
    """i^j times Opitz's formula: a corner of the exponential of a matrix with two diagonals."""
    mean, order = phases.mean(), len(phases) - 1
    matrix = -1j * (np.diag(phases - mean) + np.eye(order + 1, k=1))
    return 1j**order * np.exp(-1j * mean) * expm(matrix)[0, -1]


phases = st.lists(
    st.one_of(
        st.floats(-30, 30), st.floats(-1e-3, 1e-3), st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 2.0])
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=60)
@given(phases)
def test_integral_is_opitzs_formula_for_any_phases(values):
    got = complex(simplex_integral(torch.tensor(values, dtype=torch.float64)))
    assert got == pytest.approx(
        by_exponential(np.array(values)), abs=1e-12
    )  # scipy's own error is 1e-13
    back = complex(simplex_integral(torch.tensor(values[::-1], dtype=torch.float64)))
    assert got == back


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_integral_at_frequency_0_is_the_content(order):
    made = simplex_integral(torch.zeros(2, order + 1, dtype=torch.float64))
    assert made.tolist() == [1 / math.factorial(order)] * 2


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradients_are_right_where_phases_meet_and_nearly_do(order):
    values = rng_tensor(8, order + 1) * torch.tensor([0, 1e-9, 1e-4, 0.3, 1, 3, 10, 50])[:, None]
    values[4, 0] = values[4, 1]
    # Just above and below where the series takes over.
    values[5] = torch.linspace(0, 0.999999, order + 1)
    values[6] = torch.linspace(0, 1.000001, order + 1)
    values.requires_grad_()
    assert torch.autograd.gradcheck(simplex_integral, values)


# -------------------------------------------------------------------------------- the transform


@settings(max_examples=12, deadline=None)
@given(j=st.integers(0, 3), extra=st.integers(0, 2), seed=st.integers(0, 999))
def test_generic_meshes_are_the_sum_over_vertices(j, extra, seed):
    """The textbook's formula, which is sound where no two phases are near each other."""
    d = min(max(j, 1) + extra, 3)
    res, period = (4, 5, 6)[-d:], 1.3
    x = rng_tensor(6, d, seed=seed)
    elements = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(seed + i))
                            [: j + 1] for i in range(4)])  # fmt: skip
    rho = rng_tensor(4, 2, seed=seed + 1)
    made = simplex_ft(x, elements, rho, res, period, mode="mass", elem_batch=3).numpy()
    content = simplex_content(x, elements).numpy()
    phase = (x[elements].numpy()[:, :, None] * grid(res, period).reshape(-1, d)).sum(-1)
    wanted = np.zeros((phase.shape[-1], 2), complex)
    sure = np.ones(phase.shape[-1], bool)
    for e in range(4):
        for a in range(j + 1):
            gaps = phase[e, a] - np.delete(phase[e], a, 0)
            sure &= np.abs(gaps).min(0, initial=np.inf) > 0.2
            with np.errstate(all="ignore"):
                term = np.where(sure, np.exp(-1j * phase[e, a]) / np.prod(gaps, 0), 0)
            scale = math.factorial(j) * content[e] * 1j**j
            wanted += scale * term[:, None] * rho[e].numpy()
    made = made.reshape(-1, 2)
    np.testing.assert_allclose(made[sure], wanted[sure], atol=2e-12)
    np.testing.assert_allclose(made[0], content @ rho.numpy(), atol=1e-14)
    assert not made[0].imag.any()


def test_axis_aligned_rectangle_is_a_product_of_sincs():
    x = torch.tensor([[0.2, 0.3], [0.7, 0.3], [0.7, 0.55], [0.2, 0.55]], dtype=torch.float64)
    k = grid((7, 8))

    def side(k, low, size):
        return np.exp(-1j * k * (low + size / 2)) * size * np.sinc(k * size / 2 / np.pi)

    wanted = side(k[..., 0], 0.2, 0.5) * side(k[..., 1], 0.3, 0.25)
    pair = torch.tensor([[0, 1, 2], [0, 2, 3]])
    made = simplex_ft(x, pair, ones(2), (7, 8), mode="mass")[..., 0]
    np.testing.assert_allclose(made.numpy(), wanted, atol=1e-15)
    np.testing.assert_allclose(polygon_ft([x], (7, 8), mode="mass")[..., 0], wanted, atol=1e-15)


def test_filled_surface_is_its_tetrahedra_and_the_cube():
    x = 0.2 + 0.5 * CUBE
    filled = simplex_ft(x, FACES, ones(12), 6, j=3, mode="mass")
    whole = simplex_ft(x, torch.tensor(CUBE_TETS), ones(6), 6, mode="mass")
    torch.testing.assert_close(filled, whole, atol=1e-14, rtol=0)
    k = grid((6, 6, 6))
    sides = np.exp(-0.45j * k) * 0.5 * np.sinc(k / 4 / np.pi)
    np.testing.assert_allclose(filled[..., 0].numpy(), sides.prod(-1), atol=1e-14)


def test_holes_and_lobes_fill_as_greens_formula_says():
    outer, hole = torch.from_numpy(lobes()), ring(7, 0.1).flip(0)
    made = polygon_ft([outer, hole], 9, mode="mass")[..., 0].numpy()
    wanted = green(lobes(), 9) + green(hole.numpy(), 9)
    made[0, 0] = 0
    np.testing.assert_allclose(made, wanted, atol=1e-14)


def test_points_lines_and_faces_mix_by_adding():
    x = rng_tensor(5, 2)
    parts = [torch.tensor([[0], [1]]), torch.tensor([[1, 2]]), torch.tensor([[2, 3, 4]])]
    made = sum(simplex_ft(x, part, ones(len(part)), 6, mode="mass") for part in parts)
    mass = sum(float(simplex_content(x, part).sum()) for part in parts)
    assert complex(made[0, 0, 0]) == pytest.approx(mass, abs=1e-14)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_points_are_their_sum_in_any_dimension_and_batch(d):
    res = (4, 5, 6)[-d:]
    x, rho = rng_tensor(2, 9, d), rng_tensor(9, 3, seed=1)
    made = simplex_ft(x, torch.arange(9)[:, None], rho, res).numpy()
    k = grid(res).reshape(-1, d)
    for b in range(2):
        wanted = np.exp(-1j * k @ x[b].numpy().T) @ rho.numpy()
        np.testing.assert_allclose(made[b].reshape(-1, 3), wanted, atol=1e-13)


def test_a_batch_is_its_shapes_one_by_one():
    x = torch.stack([ring(5), ring(5, 0.2, 1.0)])
    made = simplex_ft(x, edges(5), ones(5), 8, j=2)
    for one, whole in zip(x, made, strict=True):
        torch.testing.assert_close(simplex_ft(one, edges(5), ones(5), 8, j=2), whole)


@settings(max_examples=10, deadline=None)
@given(st.floats(-0.15, 0.15), st.floats(-0.15, 0.15), st.integers(0, 99))
def test_moves_turn_modes(dx, dy, seed):
    x = 0.2 + 0.6 * rng_tensor(6, 2, seed=seed)
    elements = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 2, 4]])
    here, there = (
        simplex_ft(v, elements, ones(3), (6, 5), mode="mass")[..., 0].numpy()
        for v in (x, x + torch.tensor([dx, dy], dtype=torch.float64))
    )
    turn = np.exp(-1j * grid((6, 5)) @ np.array([dx, dy]))
    np.testing.assert_allclose(there, here * turn, atol=1e-14)


def test_period_scales_units():
    x, wide = ring(6), (2.0, 3.0)
    stretched = x * torch.tensor(wide, dtype=torch.float64)
    made = polygon_ft([stretched], (6, 8), wide, mode="mass")
    torch.testing.assert_close(made, 6 * polygon_ft([x], (6, 8), mode="mass"))
    torch.testing.assert_close(polygon_ft([stretched], (6, 8), wide), polygon_ft([x], (6, 8)))


@pytest.mark.parametrize("j,fill", [(1, False), (2, False), (2, True), (0, False)])
def test_gradients(j, fill):
    x = ring(4, 0.2, math.pi / 4).requires_grad_()  # axis-aligned: phases coincide
    elements = edges(4) if fill else torch.tensor([[0, 1, 2, 3][: j + 1], [1, 2, 3, 0][: j + 1]])
    rho = ones(len(elements)) if fill else rng_tensor(2, 2).requires_grad_()
    wrt = (x,) if fill else (x, rho)

    def transform(x, rho=rho):
        return simplex_ft(x, elements, rho, (4, 5), j=j, mode="mass")

    assert torch.autograd.gradcheck(transform, wrt)


# ---------------------------------------------------------------------------------- rasters


def test_raster_is_the_density_inside_and_its_sum_the_mass():
    square = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], dtype=torch.float64)
    picture = SimplexRaster(32, j=2)(square, edges(4), 3 * ones(4))[..., 0]
    assert picture.shape == (32, 32)
    assert float(picture[16, 16]) == pytest.approx(3, abs=0.02)
    assert float(picture[0, 0]) == pytest.approx(0, abs=0.02)
    mass = SimplexRaster(32, j=2, mode="mass")(square, edges(4), 3 * ones(4))
    assert float(mass.sum()) == pytest.approx(3 * 0.64, rel=1e-12)


def test_raster_without_smoothing_has_the_spectrum_and_its_energy():
    x, facets = ring(5), edges(5)
    spectrum = SimplexFT((7, 9), j=2)(x, facets, ones(5))[..., 0]
    picture = SimplexRaster((7, 9), j=2, smoothing="none")(x, facets, ones(5))[..., 0]
    torch.testing.assert_close(torch.fft.rfft2(picture), spectrum)
    twice = torch.tensor([1.0, 2, 2, 2, 2], dtype=torch.float64)
    energy = float((spectrum.abs().square() * twice).sum()) / 63
    assert float(picture.square().sum()) == pytest.approx(energy, rel=1e-12)


def test_smoothing_is_the_gaussian_of_modes():
    x, facets = ring(5), edges(5)
    plain, smooth = (
        torch.fft.rfft2(SimplexRaster(9, j=2, smoothing=s)(x, facets, ones(5))[..., 0])
        for s in ("none", "gaussian")
    )
    m = grid((9, 9)) / (2 * np.pi)
    factor = np.exp(-0.5 * (2.0 * 2 * np.linalg.norm(m, axis=-1) / 9) ** 2)
    np.testing.assert_allclose(smooth.numpy(), plain.numpy() * factor, atol=1e-13)


def test_rasters_agree_with_pixels_away_from_edges():
    rings = polygons(50, 0).rings[4]
    exact, pixels = exact_rasters(rings, 32), pixel_rasters(rings, 32)
    assert float((exact - pixels).abs().mean()) < 0.05
    assert float(exact.sum()) == pytest.approx(float(pixels.sum()), rel=0.02)


def test_networks_learn_from_vertices():
    torch.manual_seed(0)
    net = SpectralLeNet(3, 8, channels=(4, 8), hidden=8, j=2)
    x = ring(5).float().expand(4, 5, 2).clone().requires_grad_()
    net(x, edges(5), torch.ones(5, 1)).square().sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all()) and float(x.grad.norm()) > 0
    body = SpectralResNet3d(4, 8, channels=(4, 8), j=3)
    x = (0.2 + 0.5 * CUBE).expand(2, 8, 3).clone().requires_grad_()
    logits = body(x, FACES, ones(12))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert float(x.grad.norm()) > 0


# ------------------------------------------------------------------------------------- meshes


@settings(max_examples=30)
@given(j=st.integers(1, 3), extra=st.integers(0, 2), seed=st.integers(0, 999))
def test_content_is_cayleys_and_mengers(j, extra, seed):
    d = min(j + extra, 3)
    x = rng_tensor(j + 1, d, seed=seed)
    square = torch.cdist(x, x).square()
    matrix = torch.ones(j + 2, j + 2, dtype=torch.float64)
    matrix[0, 0], matrix[1:, 1:] = 0, square
    scale = (-1) ** (j + 1) / (2**j * math.factorial(j) ** 2)
    wanted = math.sqrt(max(scale * float(torch.linalg.det(matrix)), 0))
    element = torch.arange(j + 1)[None]
    assert float(simplex_content(x, element)) == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    if j == d:
        assert abs(float(simplex_content(x, element, True))) == pytest.approx(wanted, rel=1e-6)
        swapped = simplex_content(x, element[:, [1, 0, *range(2, j + 1)]], signed=True)
        torch.testing.assert_close(swapped, -simplex_content(x, element, signed=True))


def test_boundaries_become_signed_simplices():
    x, elements = boundary_to_simplices(0.3 + CUBE, FACES)
    assert x.shape == (9, 3) and elements.shape == (12, 4) and not x[-1].any()
    contents = simplex_content(x, elements, signed=True)
    assert float(contents.sum()) == pytest.approx(1) and bool((contents < 0).any())


def test_normalised_vertices_keep_their_shape():
    x = rng_tensor(9, 2) * torch.tensor([4.0, 1.0]) - 7
    made = normalize_vertices(x, 0.1)
    assert [float(made[:, 0].min()), float(made[:, 0].max())] == pytest.approx([0.1, 0.9])
    scale = 0.8 / float(x[:, 0].max() - x[:, 0].min())
    torch.testing.assert_close(torch.cdist(made, made), scale * torch.cdist(x, x))


def test_flat_elements_add_nothing_and_no_nan():
    x = torch.tensor([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9], [0.9, 0.1]], dtype=torch.float64)
    x.requires_grad_()
    with pytest.warns(UserWarning, match="1 elements have content 0"):
        made = simplex_ft(x, torch.tensor([[0, 1, 2], [0, 3, 1]]), ones(2), 4)
    torch.testing.assert_close(made, simplex_ft(x, torch.tensor([[0, 3, 1]]), ones(1), 4))
    made.abs().square().sum().backward()
    assert bool(torch.isfinite(x.grad).all())


# ----------------------------------------------------------------------------------- bad input

X, E = ring(4), torch.tensor([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: simplex_ft(X.int(), E, ones(2), 4), TypeError, "vertices have dtype torch.int32"),
        (lambda: simplex_ft(X[0], E, ones(2), 4), ValueError, r"must be \(..., n, d\)"),
        (lambda: simplex_ft(X / 0, E, ones(2), 4), ValueError, "infinities or NaNs"),
        (lambda: simplex_ft(X, E.int(), ones(2), 4), TypeError, "must be int64"),
        (lambda: simplex_ft(X, E + 2, ones(2), 4), ValueError, "vertices 2 to 5: must be from 0"),
        (lambda: simplex_ft(X, E - 1, ones(2), 4), ValueError, "vertices -1 to 2"),
        (lambda: simplex_ft(X, E[0], ones(2), 4), ValueError, r"elements have shape \(3,\)"),
        (lambda: simplex_ft(X, E, ones(2), 4, j=1), ValueError, "3 vertices with j=1: must have"),
        (lambda: simplex_ft(X, E[:, :2], ones(2), 4, j=3), ValueError, "2 vertices with j=3"),
        (
            lambda: simplex_ft(X[:, :1], E, ones(2), 4), ValueError,
            "j=2 in 1 dimensions: must be at most d",
        ),
        (lambda: simplex_ft(X, E, ones(3), 4), ValueError, r"must be \(2, channels\)"),
        (lambda: simplex_ft(X, E, ones(2).int(), 4), TypeError, "densities have dtype"),
        (lambda: simplex_ft(X, E, ones(2) / 0, 4), ValueError, "densities have infinities"),
        (lambda: simplex_ft(X, E, ones(2), 0), ValueError, "res=0: must be an int of at least 1"),
        (lambda: simplex_ft(X, E, ones(2), (4, 4, 4)), ValueError, "one for each of 2 axes"),
        (lambda: simplex_ft(X, E, ones(2), 4, 0.0), ValueError, "period=0.0: must be positive"),
        (lambda: simplex_ft(X, E, ones(2), 4, mode="sum"), ValueError, "mode='sum': must be one"),
        (lambda: simplex_ft(X, E, ones(2), 4, elem_batch=0), ValueError, "elem_batch=0: must be"),
        (
            lambda: simplex_ft(X, edges(4), ones(4), (4, 6)), ValueError,
            "below the dimension needs as many grid points",
        ),
        (
            lambda: simplex_ft(X, edges(4), rng_tensor(4, 1), 4, j=2), ValueError,
            "densities differ between facets",
        ),
        (
            lambda: simplex_ft(X, edges(4)[:3], ones(3), 4, j=2), ValueError,
            "the boundary is open at vertex 0",
        ),
        (
            lambda: simplex_ft(X, edges(4).flip(1), ones(4), 4, j=2), ValueError,
            "no content or a negative one; let it run counterclockwise",
        ),
        (
            lambda: boundary_to_simplices(CUBE, FACES[1:]), ValueError,
            r"the boundary is open at side",
        ),
        (lambda: boundary_to_simplices(CUBE, FACES[:, :2]), ValueError, "2 vertices in 3 dim"),
        (lambda: simplex_content(X, edges(4), signed=True), ValueError, "j = d is needed"),
        (lambda: simplex_content(X[:, :1], E), ValueError, "j <= d is needed"),
        (lambda: polygon_ft([], 4), ValueError, "at least one ring"),
        (lambda: polygon_ft([X[:2]], 4), ValueError, "n at least 3"),
        (lambda: polygon_ft([torch.cat([X, X[:1]])], 4), ValueError, "last point repeats"),
        (lambda: normalize_vertices(X, 0.5), ValueError, "margin=0.5: must be"),
        (lambda: normalize_vertices(X.expand(4, 4, 2)), ValueError, "one shape at a time"),
        (lambda: normalize_vertices(X[:1]), ValueError, "all lie at one place"),
        (lambda: SimplexFT(4, mode="x"), ValueError, "mode='x': must be one of"),
        (lambda: SimplexRaster(4, smoothing="box"), ValueError, "smoothing='box'"),
        (lambda: SimplexRaster(4, sigma=-1.0), ValueError, "sigma=-1.0: must be finite"),
        (lambda: SpectralLeNet(0, 8), ValueError, "classes=0: must be"),
        (lambda: SpectralResNet3d(2, 8, channels=()), ValueError, "blocks=0: must be"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_vertices_outside_of_the_period_warn_and_wrap():
    with pytest.warns(UserWarning, match="outside of the period"):
        made = simplex_ft(X + 1, E, ones(2), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(made, simplex_ft(X, E, ones(2), 4), atol=1e-12, rtol=0)
