"""QMCPy: digits by definition, nets by counting, kernels by series, fast Gram by dense, errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm, qmc
from scipy.stats import t as student

import sat
from sat.methods.qmcpy import (
    DigitalNet,
    DSIKernel,
    FastGram,
    Halton,
    Lattice,
    SIKernel,
    bayesian_mean,
    cbc_lattice,
    cubature,
    fftbr,
    fwht,
    gaussian,
    ifftbr,
    interlace,
    kernel_interpolate,
    linear_matrix_scramble,
    replicated_mean,
    truncated_exponential,
    uniform,
)
from sat.methods.qmcpy.demo import HALTONS, NETS, bad_boxes, smooth, walsh_sum
from sat.methods.qmcpy.digits import digit_product, from_digits, nested_scramble, to_digits

DOUBLE = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=DOUBLE)


# ------------------------------------------------------------------------------------- sequences


def van_der_corput(i, base):
    x, scale = 0.0, 1.0
    while i:
        i, digit = divmod(i, base)
        scale /= base
        x += digit * scale
    return x


def test_lattice_by_its_definition():
    z = [1, 3, 5]
    plain = Lattice(3, 64, z, randomize=None)
    for i, x in enumerate(plain.sample(64)[0].tolist()):
        assert x == [van_der_corput(i, 2) * c % 1 for c in z]
    linear = Lattice(3, 64, z, randomize=None, order="linear").sample(20)[0]
    expected = torch.arange(20)[:, None] * torch.tensor(z) % 20
    assert torch.equal(linear, expected.double() / 20)
    turned = Lattice(3, 64, z, randomize=None, order="gray").sample(64)[0]
    assert sorted(turned.tolist()) == sorted(plain.sample(64)[0].tolist())
    assert turned[2].tolist() == plain.sample(4)[0][3].tolist()
    shifted = Lattice(3).sample(16, 2, seed=3)
    steps = (shifted - Lattice(3, randomize=None).sample(16)) % 1
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    assert float((steps[0] - steps[1]).abs().min()) > 1e-6


def test_net_is_scipys_sobol_and_halton_scipys():
    ours = DigitalNet(8, randomize=None, order="gray").sample(256)[0].numpy()
    assert np.array_equal(ours, qmc.Sobol(8, scramble=False, bits=30).random(256))
    ours = Halton(6, randomize=None).sample(300)[0].numpy()
    np.testing.assert_allclose(ours, qmc.Halton(6, scramble=False).random(300), atol=1e-15)


@pytest.mark.parametrize("kind", NETS)
def test_nets_hold_a_point_in_each_box(kind):
    net = DigitalNet(2, bits=40, randomize=kind)
    for points in net.sample(64, 2 if kind else 1, seed=1, digits=True):
        assert bad_boxes(points, (2, 2), (40, 40), 6) == 0
    wrong = net.sample(64, seed=1, digits=True)[0]
    wrong[0] = wrong[1]
    assert bad_boxes(wrong, (2, 2), (40, 40), 6) > 0


@pytest.mark.parametrize("kind", HALTONS)
def test_haltons_boxes(kind):
    halton = Halton(2, kind)
    for points in halton.sample(72, 2 if kind else 1, digits=True):
        assert bad_boxes(points, (2, 3), halton.digits, (3, 2)) == 0


SEQUENCES = [
    Lattice(3), Lattice(3, order="gray"), Halton(3), Halton(3, "nus"), DigitalNet(3),
    DigitalNet(3, 2), DigitalNet(3, randomize="nus"), DigitalNet(3, 2, randomize="nus"),
    DigitalNet(3, bits=30, order="gray"),
]  # fmt: skip


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_points_go_on_and_replications_differ(sequence):
    points = sequence.sample(128, 3, seed=5)
    assert points.shape == (3, 128, 3) and points.dtype == DOUBLE
    assert bool(((points >= 0) & (points < 1)).all())
    assert torch.equal(points[:, :64], sequence.sample(64, 3, seed=5))
    assert torch.equal(points[:, 64:], sequence.sample(64, 3, start=64, seed=5))
    assert not torch.equal(points, sequence.sample(128, 3, seed=6))
    assert len({float(row[7, 1]) for row in points}) == 3


def test_first_point_is_the_origin():
    for sequence in (
        Lattice(2, randomize=None), DigitalNet(2, 2, randomize=None), Halton(2, None),
    ):  # fmt: skip
        assert not sequence.sample(4)[0, 0].any()


def test_points_stay_below_one():
    # All digits set: float64 would round 1 - 2^-63 up to 1.
    ones = torch.full((1, 1), 2**62)
    top = DigitalNet(1, matrices=ones, matrix_bits=63, randomize=None).sample(2)[0, 1]
    assert top.item() == 0.5
    full = torch.full((1, 1), 2**63 - 1)
    assert DigitalNet(1, matrices=full, matrix_bits=63, randomize=None).sample(2).max() < 1


# --------------------------------------------------------------------------------------- digits


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 999))
def test_digits_there_and_back(base, count, seed):
    values = torch.randint(base**count, (3, 5), generator=generator(seed))
    digits = to_digits(values, base, count)
    assert digits.shape == (3, count, 5) and bool(((digits >= 0) & (digits < base)).all())
    assert torch.equal(from_digits(digits, base), values)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([2, 3, 5, 11]), st.integers(1, 5), st.integers(0, 4), st.integers(0, 99))
def test_linear_matrix_scrambles_are_lower_triangular(base, t, more, seed):
    identity = torch.eye(t, dtype=torch.int64)[None]
    made = linear_matrix_scramble(identity, base, t + more, generator(seed), 4)
    assert made.shape == (4, 1, t + more, t)
    assert bool(((made >= 0) & (made < base)).all())
    assert bool((made.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert not made.triu(1).any()
    columns = torch.randint(base, (1, t, 3), generator=generator(seed + 1))
    scrambled = linear_matrix_scramble(columns, base, t + more, generator(seed), 4)
    assert torch.equal(scrambled, made @ columns % base)


def test_rows_beyond_the_digits_are_random():
    made = linear_matrix_scramble(torch.eye(3, dtype=torch.int64)[None], 2, 20, generator(), 50)
    assert abs(float(made[:, 0, 3:].double().mean()) - 0.5) < 0.05


def test_digit_products_are_exact_under_float16():
    for base in (2, 11, 2039):
        a = torch.randint(base, (4, 3), generator=generator(base))
        b = torch.randint(base, (3, 5), generator=generator(base + 1))
        with sat.offload("golden", precision="fp16") as report:
            made = digit_product(a, b, base)
        assert torch.equal(made, a @ b % base) and report.coverage == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 20), st.integers(0, 99))
def test_interlacing_takes_digits_in_turn(alpha, bits_in, bits_out, seed):
    values = torch.randint(2**bits_in, (2 * alpha, 4), generator=generator(seed))
    made = interlace(values, alpha, bits_in, bits_out)
    for j, point in itertools.product(range(2), range(4)):
        bits = ""
        for q in range(bits_out):
            word = format(int(values[alpha * j + q % alpha, point]), f"0{bits_in}b")
            bits += word[q // alpha] if q // alpha < bits_in else "0"
        assert int(made[j, point]) == int(bits, 2)


def test_higher_order_nets_are_interlaced_ones():
    plain = DigitalNet(4, bits=30, randomize=None).sample(64, digits=True)[0]
    higher = DigitalNet(2, 2, bits=60, randomize=None).sample(64, digits=True)[0]
    assert torch.equal(interlace(plain.mT, 2, 30, 60).mT, higher)
    # A shift acts after interlacing: it is one XOR of all points.
    shifted = DigitalNet(2, 2, bits=60, randomize="ds").sample(64, digits=True)[0]
    assert torch.equal(shifted ^ shifted[:1], higher)


@pytest.mark.parametrize("base", [2, 3, 5])
def test_nested_scrambles_are_trees(base):
    digits = to_digits(torch.arange(base**3), base, 3)[None]
    keys = torch.arange(1, 9)[:, None]
    made = nested_scramble(digits, base, keys, 5)
    assert made.shape == (8, 1, 5, base**3)
    for tree in made[:, 0]:
        for depth in (1, 2, 3):
            # Points with the same first digits keep them the same; others get others: a bijection.
            before = from_digits(digits[0, :depth], base)
            after = from_digits(tree[:depth], base)
            pairs = set(zip(before.tolist(), after.tolist(), strict=True))
            assert len(pairs) == base**depth == len({b for _, b in pairs})
    # Permutations of a digit differ between branches: no matrix does that.
    second = from_digits(made[:, 0, 1:2], base).reshape(8, base, base, base)[..., 0]
    assert any(not torch.equal(tree[0], tree[1]) for tree in second)
    counts = torch.bincount(made[:, 0, 4].flatten(), minlength=base).double()
    assert float((counts / counts.sum() - 1 / base).abs().max()) < 0.12


@pytest.mark.parametrize("sequence", [DigitalNet(2), DigitalNet(2, 2), Halton(2, "nus")])
def test_a_coordinate_is_uniform(sequence):
    points = sequence.sample(4, 500, seed=2)
    for i, j in itertools.product(range(4), range(2)):
        assert kstest(points[:, i, j].numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("kind,factor", [("lms_ds", 1), ("nus", 1), ("ds", 8)])
def test_variance_of_a_mean(kind, factor):
    means = DigitalNet(1, bits=30, randomize=kind).sample(8, 4000, seed=1)[..., 0].mean(1)
    assert 12 * 8**3 * float(means.var()) == pytest.approx(factor, rel=0.12)


# ----------------------------------------------------------------------------------- transforms


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(0, 99), st.sampled_from(["fft", "products"]))
def test_transforms_are_orthonormal_and_have_inverses(m, seed, transform):
    x = draw(2, 2**m, seed=seed)
    walsh = fwht(x, transform)
    torch.testing.assert_close(walsh.norm(), x.norm())
    torch.testing.assert_close(fwht(walsh, transform), x)
    turned = fftbr(x, transform)
    torch.testing.assert_close(ifftbr(turned, transform).real, x)
    order = [int(format(i, f"0{m}b")[::-1], 2) if m else 0 for i in range(2**m)]
    np.testing.assert_allclose(
        turned.numpy(), np.fft.fft(x.numpy()[:, order], norm="ortho"), atol=1e-12
    )
    if m < 6:
        hadamard = torch.ones(1, 1, dtype=DOUBLE)
        for _ in range(m):
            hadamard = torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=DOUBLE), hadamard)
        torch.testing.assert_close(walsh, x @ hadamard * 2 ** (-m / 2))


def test_transforms_have_gradients():
    x = draw(8).requires_grad_()
    for transform in ("fft", "products"):
        assert torch.autograd.gradcheck(lambda x, t=transform: fwht(x, t), x)
        assert torch.autograd.gradcheck(lambda x, t=transform: fftbr(x, t).abs(), x)


# -------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("alpha", [1, 2, 3, 4, 5])
def test_si_kernels_are_their_fourier_series(alpha):
    u = torch.arange(16, dtype=DOUBLE)[:, None] / 16
    found = SIKernel(alpha, 0.5, 2.0)(u, torch.zeros(1, dtype=DOUBLE))
    h = torch.arange(1, 20000, dtype=DOUBLE)
    series = 2 * ((2 * math.pi * u * h).cos() / h ** (2 * alpha)).sum(1)
    torch.testing.assert_close(
        found, 2 * (1 + 0.5 * series), atol=2e-4 if alpha == 1 else 1e-9, rtol=0
    )


@pytest.mark.parametrize("alpha,orders", [(2, (1, 0)), (2, (0, 1)), (2, (1, 1)), (3, (2, 1))])
def test_derivatives_of_si_kernels_by_differences(alpha, orders):
    kernel, h = SIKernel(alpha, 0.7), 1e-3
    x, z = (
        torch.rand(20, 1, generator=generator(), dtype=DOUBLE),
        torch.tensor([0.37], dtype=DOUBLE),
    )
    lower = (orders[0] - 1, orders[1]) if orders[0] else (orders[0], orders[1] - 1)
    step = (h, 0) if orders[0] else (0, h)
    ahead = kernel(x + step[0], z + step[1], *lower)
    behind = kernel(x - step[0], z - step[1], *lower)
    found = kernel(x, z, *orders)
    torch.testing.assert_close(found, (ahead - behind) / (2 * h), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("alpha", [1, 2, 3, 4])
def test_dsi_kernels_are_their_walsh_sums(alpha):
    x = torch.arange(32)
    found = DSIKernel(alpha, bits=5)(x[:, None], torch.zeros(1, 1, dtype=torch.int64)) - 1
    torch.testing.assert_close(found, walsh_sum(x, 5, alpha), atol=2e-4, rtol=0)
    assert float(found[0]) == pytest.approx([1, 3 / 2, 25 / 18, 407 / 294][alpha - 1])


@pytest.mark.parametrize("alpha", [3, 4])
def test_digital_derivatives_by_differences(alpha):
    # Between dyadic numbers beta stands still, and the derivative is the ordinary one; a = 4's sum
    # over digits moves by less than the tolerance.
    bits, h = 53, 2**30
    kernel = DSIKernel(alpha, 0.3, bits=bits)
    x = torch.tensor([[0.3], [0.55], [0.11]], dtype=DOUBLE).mul(2.0**bits).long()
    zero = torch.zeros(1, 1, dtype=torch.int64)
    slope = (kernel(x + h, zero) - kernel(x - h, zero)) / (2 * h * 2.0**-bits)
    for orders in ((1, 0), (0, 1)):
        torch.testing.assert_close(kernel(x, zero, *orders), slope, rtol=1e-4, atol=1e-4)


def test_dsi_kernels_know_integers_of_63_bits():
    kernel = DSIKernel(1, bits=63)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    # 2^62 - 1 is below 1/2: float64 rounds it up to 1/2, whose value is another.
    below, half = torch.tensor([[2**62 - 1]]), torch.tensor([[2**62]])
    assert float(kernel(half, zero)) == 1 + 1 - 1.5 and float(kernel(below, zero)) == 2 - 0.75
    x = DigitalNet(2, bits=53).sample(16, digits=True)[0]
    floats = DSIKernel(2, bits=53)(x.double() * 2.0**-53, x[:1].double() * 2.0**-53)
    assert torch.equal(floats, DSIKernel(2, bits=53)(x, x[:1]))


def test_products_have_weights_and_smoothness_of_their_own():
    x, z = torch.rand(5, 2, generator=generator(), dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    both = SIKernel([1, 3], [0.2, 0.4], 3.0)(x, z)
    parts = [SIKernel(a, w)(x[:, [j]], z[[j]]) for j, (a, w) in enumerate([(1, 0.2), (3, 0.4)])]
    torch.testing.assert_close(both, 3 * parts[0] * parts[1])


# ----------------------------------------------------------------------------------------- gram

CASES = [
    *(SIKernel(a, 0.5) for a in (1, 2)), *(DSIKernel(a, 0.5, bits=63) for a in (1, 2, 3, 4)),
    SIKernel([1, 2], [0.3, 0.6], 2.0),
]  # fmt: skip


def points_for(kernel, n, start=0):
    if isinstance(kernel, SIKernel):
        return Lattice(2).sample(n, start=start, seed=4)[0]
    return DigitalNet(2, 2).sample(n, start=start, seed=4, digits=True)[0]


@pytest.mark.parametrize("kernel", CASES)
@pytest.mark.parametrize("transform", ["fft", "products"])
def test_fast_gram_is_the_dense_one(kernel, transform):
    points = points_for(kernel, 128)
    dense = kernel(points[:, None], points).numpy()
    gram = FastGram(kernel, points, transform)
    y = draw(3, 128)
    np.testing.assert_allclose(gram.matvec(y).numpy(), y.numpy() @ dense, atol=1e-11)
    np.testing.assert_allclose(
        gram.eigenvalues.sort().values, np.linalg.eigvalsh(dense), atol=1e-10
    )
    solved = np.linalg.solve(dense, y.numpy().T).T
    np.testing.assert_allclose(
        gram.solve(y).numpy(), solved, rtol=1e-6, atol=1e-8 * abs(solved).max()
    )
    assert float(gram.logdet()) == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-8)
    doubled = FastGram(kernel, points[:64], transform).extend(points[64:])
    torch.testing.assert_close(doubled.eigenvalues, gram.eigenvalues, rtol=1e-9, atol=1e-11)
    assert len(doubled) == 128 and torch.equal(doubled.points, points)


def test_nets_in_gray_order_and_unscrambled_are_digital_nets_too():
    kernel = DSIKernel(2, bits=63)
    for net in (DigitalNet(2, order="gray"), DigitalNet(2, randomize=None)):
        points = net.sample(32, digits=True)[0]
        dense = kernel(points[:, None], points)
        y = draw(32)
        torch.testing.assert_close(FastGram(kernel, points).matvec(y), dense @ y)


def test_interpolants_have_their_values():
    kernel = SIKernel(2, 0.1)
    points = Lattice(2).sample(64, seed=1)[0]
    values = torch.stack([(2 * math.pi * points[:, 0]).sin(), points.sum(1)])
    made = kernel_interpolate(kernel, points, values, "products")
    torch.testing.assert_close(made(points), values, atol=1e-9, rtol=0)
    torch.testing.assert_close(kernel_interpolate(kernel, points, values[0])(points), values[0])
    at = torch.rand(50, 2, generator=generator(), dtype=DOUBLE)
    assert float((made(at)[0] - (2 * math.pi * at[:, 0]).sin()).abs().max()) < 0.01


# ------------------------------------------------------------------------------------ estimators


def test_replicated_means_are_students():
    values = draw(9, 5)
    found = replicated_mean(values, 0.95)
    low, high = student.interval(0.95, 8, values.mean(1).mean(), values.mean(1).std() / 3)
    assert found.mean - found.half_width == pytest.approx(float(low))
    assert found.mean + found.half_width == pytest.approx(float(high))


@pytest.mark.parametrize("sequence", [DigitalNet(2), Lattice(2), Halton(2)])
def test_cubature_keeps_its_tolerance_or_says_so(sequence):
    found = cubature(smooth, sequence, abs_tol=2e-3, seed=1)
    assert found.converged and found.half_width <= 2e-3 and abs(found.mean - 1) < 2e-3
    loose = cubature(smooth, sequence, rel_tol=0.1, seed=1)
    assert loose.n <= found.n
    assert not cubature(smooth, sequence, abs_tol=1e-9, n_max=128).converged


def test_bayesian_cubature_is_the_dense_process():
    kernel, level = SIKernel(1, 0.4, 2.0), 0.9
    points = Lattice(2).sample(32, seed=2)[0]
    y = smooth(points)
    found = bayesian_mean(FastGram(kernel, points), y, level)
    dense = kernel(points[:, None], points).numpy()
    ones = np.full(32, kernel.scale)
    weights = np.linalg.solve(dense, ones)
    assert found.mean == pytest.approx(float(weights @ y.numpy() / weights.sum()), rel=1e-10)
    centred = y.numpy() - found.mean
    scale = centred @ np.linalg.solve(dense, centred) / 32
    variance = scale * (kernel.scale - ones @ weights)
    width = norm.ppf(0.95) * math.sqrt(variance)
    assert found.half_width == pytest.approx(width, rel=1e-6)


def test_other_measures():
    points = DigitalNet(3, bits=53).sample(4096, seed=1)[0]
    mean = torch.tensor([1.0, -2, 0], dtype=DOUBLE)
    half = draw(3, 3)
    cov = half @ half.mT
    normal = gaussian(points, mean, cov)
    torch.testing.assert_close(normal.mean(0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(normal.mT.cov(), cov, atol=0.1, rtol=0)
    box = uniform(points, torch.tensor([-1.0, 0, 2]), torch.tensor([1.0, 5, 3]))
    torch.testing.assert_close(
        box.mean(0), torch.tensor([0, 2.5, 2.5], dtype=DOUBLE), atol=1e-2, rtol=0
    )
    x = truncated_exponential(points[:, 0], 2.0, 1.5)
    assert float(x.min()) >= 0 and float(x.max()) < 1.5
    grown = lambda t: -math.expm1(-2 * t) / -math.expm1(-3.0)  # noqa: E731
    assert float((x < 0.4).double().mean()) == pytest.approx(grown(0.4), abs=1e-3)


@pytest.mark.parametrize("n,d", [(16, 2), (32, 3)])
def test_component_by_component_is_the_best_of_all_candidates(n, d):
    chosen = cbc_lattice(n, d, 1, 0.5)
    kernel = SIKernel(1, 0.5)

    def worst_case(z):
        points = torch.arange(n, dtype=DOUBLE)[:, None] * torch.tensor(z, dtype=DOUBLE) / n % 1
        return float(kernel(points, torch.zeros(len(z), dtype=DOUBLE)).mean() - 1)

    assert chosen[0] == 1
    for j in range(1, d):
        best = min(worst_case([*chosen[:j], z]) for z in range(1, n, 2))
        assert worst_case(chosen[: j + 1]) == pytest.approx(best, rel=1e-12)
    assert Lattice(d, n, chosen).sample(n).shape == (1, n, d)


# ------------------------------------------------------------------------------------- bad input

LATTICE = Lattice(2).sample(16)[0]
NET = DigitalNet(2).sample(16, digits=True)[0]
SI, DSI = SIKernel(1), DSIKernel(1, bits=63)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: Lattice(0), ValueError, "dim=0: must be an int of at least 1"),
        (lambda: Lattice(17), ValueError, "dim=17: generating_vector has 16 components"),
        (lambda: Lattice(2, 100), ValueError, "n_max=100: must be a power of two"),
        (lambda: Lattice(2, 2**21), ValueError, "must be at most 2\\^31, 2\\^20 with the vector"),
        (lambda: Lattice(2, randomize="ds"), ValueError, "randomize='ds': must be one of shift"),
        (lambda: Lattice(2, order="natural"), ValueError, "order='natural': must be one of rad"),
        (lambda: Lattice(2).sample(4, digits=True), ValueError, "a lattice has no digits"),
        (lambda: Lattice(2, order="linear").sample(4, start=4), ValueError, "all points come at"),
        (lambda: Lattice(2).sample(48), ValueError, "start \\+ n=48: must be a power of two"),
        (lambda: Lattice(2).sample(13, start=3), ValueError, "start=3: must be a power of two"),
        (lambda: Lattice(2).sample(0), ValueError, "n=0"),
        (lambda: Lattice(2).sample(4, start=-4), ValueError, "start=-4"),
        (lambda: Lattice(2).sample(4, 0), ValueError, "replications=0"),
        (lambda: Lattice(2).sample(2**21), ValueError, "must be at most n_max=1048576"),
        (lambda: DigitalNet(2, randomize=None).sample(4, 2), ValueError, "would all be equal"),
        (lambda: DigitalNet(2, randomize="owen"), ValueError, "one of lms_ds, lms, ds, nus, None"),
        (lambda: DigitalNet(2, bits=64), ValueError, "bits=64, matrix_bits=30: must be at most 63"),
        (lambda: DigitalNet(11000, 2), ValueError, "alpha dim = 22000: the table has 21201"),
        (lambda: DigitalNet(2, matrices=torch.ones(1, 3).long()), ValueError, "matrices has sh"),
        (lambda: DigitalNet(1, matrices=torch.ones(1, 3)), ValueError, "must be integers"),
        (lambda: DigitalNet(1, matrices=torch.full((1, 3), 8), matrix_bits=3), ValueError, "3 b"),
        (lambda: DigitalNet(2, alpha=0), ValueError, "alpha=0"),
        (lambda: Halton(310), ValueError, "dim=310: must be at most 309"),
        (lambda: Halton(2, "shift"), ValueError, "randomize='shift'"),
        (lambda: Halton(2, n_max=2**32), ValueError, "n_max=4294967296"),
        (lambda: interlace(NET, 3, 8, 8), ValueError, "alpha=3 must divide its axis -2"),
        (lambda: interlace(NET, 2, 64, 8), ValueError, "must be at most 63"),
        (
            lambda: linear_matrix_scramble(torch.ones(1, 4, 2).long(), 2, 3, generator()),
            ValueError, "bits=3: must be at least the 4 digits",
        ),
        (lambda: digit_product(NET, NET, 2040), ValueError, "sums must stay below 2\\^24"),
        (lambda: SIKernel(6), ValueError, "alpha=6: must be from 1 to 5"),
        (lambda: DSIKernel(5), ValueError, "alpha=5: must be from 1 to 4"),
        (lambda: SIKernel(1, -1.0), ValueError, "weights=-1.0"),
        (lambda: SIKernel(1, 1.0, 0.0), ValueError, "scale=0.0"),
        (lambda: SIKernel([1, 2, 3])(LATTICE, LATTICE), ValueError, "alpha has 3 entries: points"),
        (lambda: SI(LATTICE, LATTICE[:, :1]), ValueError, "must have the same dimensions"),
        (lambda: SI(LATTICE, LATTICE, 1), ValueError, "must be at least 2; raise alpha"),
        (lambda: SIKernel(2)(LATTICE, LATTICE, -1), ValueError, "must not be negative"),
        (lambda: DSIKernel(3, bits=63)(NET, NET, 1, 1), ValueError, "alpha - order_x - order_z"),
        (lambda: SI(NET, NET), TypeError, "points are torch.int64"),
        (lambda: DSIKernel(1)(NET, NET), ValueError, "bits=None: say how many digits"),
        (lambda: DSI(LATTICE, LATTICE), ValueError, "bits=63: points in floating point have at m"),
        (lambda: DSIKernel(1, bits=53)(LATTICE + 1, LATTICE), ValueError, r"must lie in \[0, 1\)"),
        (lambda: DSIKernel(1, bits=53)(LATTICE * math.nan, LATTICE), ValueError, "must lie in"),
        (lambda: gaussian(LATTICE * math.nan, torch.zeros(2), torch.eye(2)), ValueError, "reach 0"),
        (lambda: Lattice(2, 16, [1, 2.5]), TypeError, "integer"),
        (lambda: DSIKernel(1, bits=9)(NET, NET), ValueError, "from 0 to below 2\\^9"),
        (lambda: DSIKernel(1, bits=64), ValueError, "bits=64"),
        (lambda: FastGram(SI, LATTICE[:12]), ValueError, "number of points=12: must be a power"),
        (lambda: FastGram(SI, LATTICE[None]), ValueError, "must be \\(n, d\\)"),
        (lambda: FastGram(None, LATTICE), TypeError, "kernel is NoneType"),
        (lambda: FastGram(SI, LATTICE).matvec(torch.ones(8)), ValueError, "last axis must be 16"),
        (lambda: FastGram(SI, LATTICE[:4]).extend(LATTICE[4:6]), ValueError, "2 given, 4 needed"),
        (lambda: FastGram(SI, LATTICE[:4]).extend(LATTICE[8:12]), ValueError, "points: the first"),
        (lambda: FastGram(SIKernel(5), Lattice(1).sample(2048)[0]).solve(torch.ones(2048)),
         ArithmeticError, "singular in float64"),
        (lambda: fwht(torch.ones(3)), ValueError, "length of the last axis=3"),
        (lambda: fftbr(torch.ones(4), "dft"), ValueError, "transform='dft': must be one of fft"),
        (lambda: ifftbr(torch.tensor(1.0)), ValueError, "x is a scalar"),
        (lambda: replicated_mean(torch.ones(1, 4)), ValueError, "at least 2 replications"),
        (lambda: replicated_mean(torch.ones(3, 4), 1.0), ValueError, "level=1.0"),
        (lambda: cubature(smooth, Lattice(2)), ValueError, "abs_tol and rel_tol are 0"),
        (lambda: cubature(smooth, Lattice(2), -1.0), ValueError, "abs_tol=-1.0"),
        (lambda: cubature(smooth, Lattice(2), 1.0, replications=1), ValueError, "replications=1"),
        (lambda: cubature(smooth, Lattice(2), 1.0, n_start=3), ValueError, "n_start=3"),
        (lambda: cubature(lambda x: x, Lattice(2), 1.0), ValueError, "f returned shape"),
        (
            lambda: cubature(lambda x: x[..., 0] / 0, Lattice(2), 1.0), ValueError,
            "f returned values that are not finite",
        ),
        (lambda: bayesian_mean(FastGram(SI, LATTICE), torch.ones(4)), ValueError, r"be \(16,\)"),
        (lambda: gaussian(LATTICE * 0, torch.zeros(2), torch.eye(2)), ValueError, "reach 0 or 1"),
        (lambda: gaussian(LATTICE, torch.zeros(3), torch.eye(2)), ValueError, r"must be \(2,\)"),
        (lambda: gaussian(LATTICE, torch.zeros(2), -torch.eye(2)), ValueError, "no negative eig"),
        (lambda: uniform(LATTICE, torch.ones(2), torch.ones(2)), ValueError, "must be below"),
        (lambda: truncated_exponential(LATTICE, 0.0, 1.0), ValueError, "rate=0.0"),
        (lambda: cbc_lattice(12, 2), ValueError, "n=12: must be a power of two"),
        (lambda: cbc_lattice(1, 2), ValueError, "n=1: must be at least 2"),
        (lambda: cbc_lattice(8, 2, 6), ValueError, "alpha=6"),
        (lambda: cbc_lattice(8, 2, 1, -1.0), ValueError, "gamma=-1.0"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "kernel,points",
    [
        (DSI, DigitalNet(2, randomize="nus").sample(32, digits=True)[0]),
        (DSI, DigitalNet(2).sample(8, 2, digits=True).flatten(0, 1)),
        (DSIKernel(1, bits=53), Halton(2).sample(32)[0]),
        (SI, Halton(2).sample(32)[0]),
        (SI, Lattice(2, order="linear").sample(32)[0]),
        (SI, Lattice(2, order="gray").sample(32)[0]),
        (SI, Lattice(2).sample(16, 2).flatten(0, 1)),
    ],
)
def test_points_without_the_structure_are_refused(kernel, points):
    with pytest.raises(ValueError, match="no fast Gram matrix, form it whole"):
        FastGram(kernel, points)
