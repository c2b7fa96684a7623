"""Frank-Wolfe's dictionaries: gradient, oracle, steps by hand, streams, codes, bad input."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from scipy.linalg import polar as scipy_polar
from sklearn.decomposition import PCA

import sat
from sat.methods.odl_fw import (
    OnlineODL,
    bernoulli_gaussian,
    dct_dictionary,
    dictionary_error,
    gradient,
    msp,
    objective,
    pca_dictionary,
    polar,
)
from sat.methods.odl_fw.demo import Case, learn, snr

ORACLES = ("svd", "newton_schulz")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def stream(d, batch=20, theta=0.3, noise=0.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return bernoulli_gaussian(d, theta, noise, batch, generator)


def fed(learner, batches, steps):
    for _ in range(steps):
        learner.partial_fit(next(batches))
    return learner


# ------------------------------------------------------------------------------------- gradient


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 9), st.floats(2.01, 4), st.integers(0, 999)
)  # fmt: skip
def test_gradient_is_the_sum_over_samples(m, samples, exponent, seed):
    d, y = normal(m, m, seed=seed), normal(samples, m, seed=seed + 1)
    total, value = np.zeros((m, m)), 0.0
    for sample in y.numpy():
        code = d.numpy().T @ sample
        total -= np.outer(sample, np.sign(code) * np.abs(code) ** (exponent - 1)) / samples
        value -= (np.abs(code) ** exponent).sum() / exponent / samples
    np.testing.assert_allclose(gradient(d, y, exponent).numpy(), total, rtol=1e-10, atol=1e-12)
    assert float(objective(d, y, exponent)) == pytest.approx(value, rel=1e-12)


# --------------------------------------------------------------------------------------- oracle


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 999), st.floats(-25, 25))
def test_polar_factor_is_scipys_and_the_furthest_of_the_ball(m, seed, exponent):
    g = normal(m, m, seed=seed) + 0.1 * torch.eye(m)
    expected = torch.from_numpy(scipy_polar(g.numpy())[0])
    scaled = g * 10.0**exponent
    torch.testing.assert_close(polar(scaled), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(polar(scaled, "newton_schulz", 60), expected, atol=1e-9, rtol=0)
    gain = float((expected * g).sum())
    assert gain == pytest.approx(float(torch.linalg.svdvals(g).sum()), rel=1e-10)
    other = normal(m, m, seed=seed + 1)
    assert float((other / torch.linalg.matrix_norm(other, 2) * g).sum()) <= gain * (1 + 1e-12)


def test_newton_schulz_rises_from_below_and_stops_when_told():
    g = normal(30, 30)
    norms = []
    for iterations in (1, 3, 6, 12, 25):
        values = torch.linalg.svdvals(polar(g, "newton_schulz", iterations))
        norms.append(float(values[0]))
        assert norms[-1] <= 1 + 1e-12
    assert norms == sorted(norms)
    early = polar(g, "newton_schulz", 60, tolerance=1e-3)
    full = polar(g, "newton_schulz", 60)
    assert 0 < float((early - full).norm()) < 3e-6  # 3/2 of the square of 1e-3
    # Huge and tiny ones neither overflow nor vanish.
    for scale in (1e30, 1e-30):
        small = (normal(5, 5, dtype=torch.float32) + torch.eye(5)) * scale
        torch.testing.assert_close(
            polar(small, "newton_schulz", 40), polar(small), atol=1e-5, rtol=0
        )


def test_both_oracles_are_optimal_where_a_direction_lacks():
    g = normal(6, 3) @ normal(3, 6, seed=1)
    total = float(torch.linalg.svdvals(g).sum())
    for oracle in ORACLES:
        s = polar(g, oracle, 60)
        assert float((s * g).sum()) == pytest.approx(total, rel=1e-9)
        assert float(torch.linalg.matrix_norm(s, 2)) <= 1 + 1e-9
    assert torch.equal(polar(torch.zeros(3, 3), "newton_schulz"), torch.zeros(3, 3))


# ---------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("exponent", [2.5, 3.0, 4.0])
def test_steps_are_the_algorithms(exponent):
    m, batches = 6, [normal(9, 6, seed=10 + i) for i in range(12)]
    learner = OnlineODL(m, exponent, dtype=torch.float64)
    d = learner.relaxed.numpy()
    assert np.abs(d.T @ d - np.eye(m)).max() < 1e-12
    direction = np.zeros((m, m))
    for t, y in enumerate(batches, 1):
        learner.partial_fit(y)
        a = y.numpy() @ d
        slope = -y.numpy().T @ (np.abs(a) ** (exponent - 2) * a) / len(y)
        rho, gamma = min(1, 2 / math.sqrt(t)), min(1, 2 / t**0.75)
        direction = (1 - rho) * direction + rho * slope
        s = -scipy_polar(direction)[0]
        gap = (direction * (d - s)).sum()
        d = (1 - gamma) * d + gamma * s
        np.testing.assert_allclose(learner.relaxed.numpy(), d, atol=1e-10)
        assert learner.gap == pytest.approx(gap, rel=1e-8) and learner.gap >= 0
    np.testing.assert_allclose(learner.dictionary.numpy(), scipy_polar(d)[0], atol=1e-10)
    assert learner.steps == 12


def test_floors_hold_from_where_schedules_fall_below_them():
    floored = OnlineODL(4, forgetting=(0.9, 0.8), dtype=torch.float64)
    told = OnlineODL(
        4, rho=lambda t: max(0.9, min(1, 2 * t**-0.5)),
        gamma=lambda t: max(0.8, min(1, 2 * t**-0.75)), dtype=torch.float64,
    )  # fmt: skip
    plain = OnlineODL(4, dtype=torch.float64)
    for t in range(1, 12):
        y = normal(8, 4, seed=t)
        for learner in (floored, told, plain):
            learner.partial_fit(y)
        assert torch.equal(floored.relaxed, told.relaxed)
        # 2 / sqrt(t) is above 0.9 up to 4, 2 / t^(3/4) above 0.8 up to 3.
        assert torch.equal(floored.relaxed, plain.relaxed) == (t <= 3)


@pytest.mark.parametrize("oracle", ORACLES)
def test_stays_in_the_ball_and_finds_the_basis(oracle):
    d = orthogonal(8)
    learner = OnlineODL(8, oracle=oracle, dtype=torch.float64)
    batches = stream(d)
    for _ in range(600):
        learner.partial_fit(next(batches))
        assert float(torch.linalg.matrix_norm(learner.relaxed, 2)) <= 1 + 1e-9
    assert dictionary_error(learner.dictionary, d) < 0.01
    assert float(torch.linalg.matrix_norm(learner.relaxed, -2)) > 0.98


def test_first_batches_smaller_than_the_basis_lose_nothing():
    """One sample's gradient has rank 1: by products alone D would be of rank 1 for ever."""
    d = orthogonal(6)
    learner = fed(OnlineODL(6, oracle="newton_schulz", dtype=torch.float64), stream(d, 1), 1500)
    assert float(torch.linalg.matrix_norm(learner.relaxed, -2)) > 0.9
    assert dictionary_error(learner.dictionary, d) < 0.05


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_d_completes_what_a_direction_lacks(noise):
    """As far along the direction as any, and along D where it lacks; rounding decides nothing."""
    m, rank = 6, 4
    learner = OnlineODL(m, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    d = learner.relaxed
    left, right = orthogonal(m, seed=1), orthogonal(m)
    values = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    direction = left[:, :rank] * values @ right[:, :rank].mT
    direction += noise * normal(m, m, seed=5) * (left[:, rank:] @ left[:, rank:].mT).norm()
    target = learner._furthest(direction)
    assert float((target * direction).sum()) == pytest.approx(-6.5, rel=10 * noise + 1e-12)
    assert float(torch.linalg.matrix_norm(target, 2)) <= 1 + 1e-9
    lacks = left[:, rank:].mT @ d @ right[:, rank:]
    expected = -left[:, :rank] @ right[:, :rank].mT
    expected += (
        left[:, rank:] @ torch.from_numpy(scipy_polar(lacks.numpy())[0]) @ right[:, rank:].mT
    )
    torch.testing.assert_close(target, expected, atol=20 * noise + 1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:step")  # samples without a code
@pytest.mark.parametrize("rho", [None, lambda t: 1.0])
def test_one_sample_a_step_is_enough(rho):
    """A sample's gradient has a rank of one; without D's completion chance would fill the rest."""
    assert learn(Case(8, 0.3, 1500, 0.0, batch=1), 0, oracle="svd", rho=rho).errors[-1] < 0.05


def test_stream_is_neither_kept_nor_changed():
    sizes = []
    learner = OnlineODL(5, dtype=torch.float64)
    for y in (normal(b, 5, seed=b) for b in (1, 200, 3, 50)):
        before = y.clone()
        learner.partial_fit(y)
        assert torch.equal(y, before)
        state = learner.state_dict()
        sizes.append(sum(x.numel() for x in state.values()))
        held = {x.untyped_storage().data_ptr() for x in state.values()}
        assert y.untyped_storage().data_ptr() not in held
    assert set(sizes) == {2 * 5 * 5 + 2}


def test_state_goes_on_where_it_was():
    d = orthogonal(5)
    for whiten in (False, True):
        whole = OnlineODL(5, whiten=whiten, dtype=torch.float64)
        fed(whole, stream(d), 20)
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        other = OnlineODL(
            5, whiten=whiten, generator=torch.Generator().manual_seed(7), dtype=torch.float64
        )
        other.load_state_dict(torch.load(file))
        y = next(stream(d, seed=5))
        assert torch.equal(whole.partial_fit(y).relaxed, other.partial_fit(y).relaxed)
        assert other.steps == 21 and other.gap == whole.gap


def test_whitened_samples_find_a_basis_that_is_not_orthogonal():
    d = normal(6, 6, seed=3)
    learner = OnlineODL(6, whiten=True, dtype=torch.float64)
    fed(learner, stream(d), 1500)
    mixed = torch.linalg.solve(learner.dictionary, d)
    assert dictionary_error(torch.eye(6), mixed) < 0.02
    assert dictionary_error(learner._relaxed, torch.linalg.qr(d)[0]) > 0.1
    y = next(stream(d, seed=9))
    torch.testing.assert_close(learner.inverse_transform(learner.transform(y)), y)


# ---------------------------------------------------------------------------------------- codes


def test_codes():
    learner = fed(OnlineODL(16), stream(orthogonal(16).float()), 5)
    y = normal(7, 16, dtype=torch.float32)
    codes = learner.transform(y)
    torch.testing.assert_close(codes, y @ learner.dictionary)
    torch.testing.assert_close(learner.inverse_transform(codes), y, atol=1e-5, rtol=1e-5)
    for k in (1, 5, 16):
        kept = learner.sparse_code(y, k)
        expected = torch.zeros_like(codes)
        for row in range(7):
            for place in sorted(range(16), key=lambda i, r=row: -abs(float(codes[r, i])))[:k]:
                expected[row, place] = codes[row, place]
        assert torch.equal(kept, expected)
    blocks = learner.sparse_code(y, nm=(2, 8)).reshape(7, 2, 8)
    wanted = codes.reshape(7, 2, 8).abs().topk(2, dim=2).values
    assert torch.equal((blocks != 0).sum(2), torch.full((7, 2), 2))
    assert torch.equal(blocks.abs().topk(2, dim=2).values, wanted)


def test_decoding_of_nm_codes_is_an_nm_product():
    learner = fed(OnlineODL(16), stream(orthogonal(16).float()), 5)
    codes = learner.sparse_code(normal(8, 16, dtype=torch.float32), nm=(2, 8))
    with sat.device("golden", array="4x4") as device:
        compact = sat.prune(codes.mT.half(), "2:8", axis=0)
        samples = device.matmul(learner.dictionary.half(), compact).mT
    torch.testing.assert_close(samples, learner.inverse_transform(codes), atol=5e-3, rtol=0)


# ------------------------------------------------------------------------------- data, baselines


def test_samples_have_the_models_moments():
    d = orthogonal(4)
    y = next(stream(d, 200_000, theta=0.2, noise=0.5))
    moments = y.mT @ y / len(y)
    torch.testing.assert_close(moments, 0.45 * torch.eye(4).double(), atol=0.01, rtol=0)
    codes = next(stream(d, 100_000, theta=0.2)) @ d
    assert float((codes.abs() > 1e-9).double().mean()) == pytest.approx(0.2, abs=0.005)
    # What the maximised norm is at the truth, theta 2 sqrt(2 / pi) an atom.
    gain = -3 * float(objective(d, next(stream(d, 200_000)))) / 4
    assert gain == pytest.approx(0.3 * 2 * math.sqrt(2 / math.pi), rel=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(0, 999))
def test_error_knows_signed_permutations(m, seed):
    rng = np.random.default_rng(seed)
    d = orthogonal(m, seed)
    signs = torch.from_numpy(rng.choice([-2.0, 3.0], m))
    moved = d[:, torch.from_numpy(rng.permutation(m))] * signs
    assert abs(dictionary_error(moved, d)) < 1e-12
    other = orthogonal(m, seed + 1)
    expected = 1 - float(((other.mT @ d) ** 4).sum()) / m
    assert dictionary_error(other, d) == pytest.approx(expected, abs=1e-12)


def test_baselines():
    picture = normal(4, 4)
    coded = picture.flatten() @ dct_dictionary(4, torch.float64)
    np.testing.assert_allclose(coded.reshape(4, 4), dctn(picture.numpy(), norm="ortho"), atol=1e-12)
    y = normal(500, 5) @ torch.diag(torch.arange(5.0, 0, -1).double()) @ orthogonal(5)
    y = y - y.mean(0)
    reference = PCA().fit(y.numpy()).components_.T
    torch.testing.assert_close(
        pca_dictionary(y).abs(), torch.from_numpy(reference).abs(), atol=1e-9, rtol=0
    )
    d = orthogonal(8)
    found = msp(next(stream(d, 4000)), 30, orthogonal(8, 1))
    assert dictionary_error(found, d) < 0.01
    torch.testing.assert_close(found.mT @ found, torch.eye(8).double(), atol=1e-12, rtol=0)


def test_ratio_counts_what_is_lost():
    y, d = normal(30, 64), orthogonal(64)
    codes = y @ d
    kept = codes.abs().topk(4, dim=1)
    sparse = torch.zeros_like(codes).scatter(1, kept.indices, codes.gather(1, kept.indices))
    lost = (y - sparse @ d.mT).square().sum()
    expected = 10 * math.log10(float(y.square().sum() / lost))
    assert snr(y.numpy(), d)[3] == pytest.approx(expected, rel=1e-10)


def test_a_small_case_of_the_demo_under_offload():
    case = Case(10, 0.3, 200, 0.0)
    plain = learn(case, 0).errors[-1]
    with sat.offload("golden") as report:
        rounded = learn(case, 0).errors[-1]
    assert plain < 0.05 and abs(rounded - plain) < 0.003
    assert report.coverage > 0.95


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: OnlineODL(0), ValueError, "n_atoms=0: must be an int of at least 1"),
        (lambda: OnlineODL(3, 2.0), ValueError, "exponent=2.0: must be above 2"),
        (lambda: OnlineODL(3, 4.5), ValueError, "exponent=4.5: must be above 2 and at most 4"),
        (lambda: OnlineODL(3, oracle="qr"), ValueError, "oracle='qr': must be one of svd, newton"),
        (lambda: OnlineODL(3, forgetting=(0, 1.5)), ValueError, r"forgetting=\(0, 1.5\): must be"),
        (lambda: OnlineODL(3, forgetting=(math.nan, 0)), ValueError, "forgetting=.*: must be"),
        (lambda: OnlineODL(3, dtype=torch.int32), TypeError, "dtype=torch.int32: must be torch.f"),
        (lambda: OnlineODL(3, dtype=torch.half), TypeError, "dtype=torch.float16: must be torch.f"),
        (lambda: OnlineODL(3).sparse_code(normal(2, 3)), ValueError, "give exactly one"),
        (lambda: OnlineODL(3).sparse_code(normal(2, 3), 1, nm=(1, 2)), ValueError, "exactly one"),
        (lambda: polar(normal(2, 3)), ValueError, r"shape \(2, 3\): must be \(M, M\)"),
        (lambda: polar(normal(2, 2).int()), TypeError, "dtype torch.int32: must be real"),
        (lambda: polar(normal(2, 2) / 0), ValueError, "g is not finite"),
        (lambda: polar(normal(2, 2), "svd", 0), ValueError, "iterations=0: must be"),
        (lambda: polar(normal(2, 2), tolerance=-1.0), ValueError, "tolerance=-1.0: must be"),
        (lambda: stream(normal(2, 3)), ValueError, r"d has shape \(2, 3\): must be"),
        (lambda: stream(normal(2, 2).int()), TypeError, "d has dtype torch.int32"),
        (lambda: stream(normal(2, 2), theta=0.0), ValueError, r"theta=0.0: must be in \(0, 1\]"),
        (lambda: stream(normal(2, 2), noise=-1.0), ValueError, "noise=-1.0: must be at least 0"),
        (lambda: stream(normal(2, 2), 0), ValueError, "batch=0: must be"),
        (lambda: dictionary_error(normal(2, 2), normal(3, 3)), ValueError, "both must be"),
        (
            lambda: dictionary_error(torch.zeros(2, 2), normal(2, 2)), ValueError,
            "d has a column that is 0",
        ),
        (lambda: msp(normal(3, 2), 0), ValueError, "iterations=0: must be"),
        (lambda: msp(normal(3, 2), 1, normal(3, 3)), ValueError, r"start has shape \(3, 3\): must"),
        (lambda: msp(normal(3, 2).int(), 1), TypeError, "y has dtype torch.int32"),
        (lambda: pca_dictionary(normal(0, 2)), ValueError, "at least one sample"),
        (lambda: dct_dictionary(0), ValueError, "side=0: must be"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "y,error,message",
    [
        (normal(3), ValueError, r"y has shape \(3,\): must be \(samples, 3\)"),
        (normal(2, 4), ValueError, r"y has shape \(2, 4\): must be \(samples, 3\)"),
        (normal(0, 3), ValueError, "at least one sample"),
        (torch.tensor([[1.0, math.nan, 0]]), ValueError, "not finite: refused"),
        (torch.tensor([[1.0, math.inf, 0]]), ValueError, "not finite: refused"),
        (torch.full((2, 3), 1e30), ValueError, "gradient is not finite: y, up to 1e\\+30"),
        (torch.full((2, 3), 1e200, dtype=torch.float64), ValueError, "gradient is not finite"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "y has dtype torch.int64"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "y has dtype torch.complex64"),
    ],
)
def test_refused_batches_change_nothing(y, error, message):
    learner = OnlineODL(3).partial_fit(normal(4, 3))
    before = {name: x.clone() for name, x in learner.state_dict().items()}
    with pytest.raises(error, match=message):
        learner.partial_fit(y)
    assert all(torch.equal(before[name], x) for name, x in learner.state_dict().items())
    if "gradient" not in message:
        with pytest.raises(error, match=message):
            learner.transform(y)
        with pytest.raises(error, match=message):
            learner.inverse_transform(y)


@pytest.mark.parametrize("value", [0.0, 1.5, math.nan, -1.0])
@pytest.mark.parametrize("name", ["rho", "gamma"])
def test_schedules_outside_their_range_are_refused(name, value):
    learner = OnlineODL(3, **{name: lambda t: value})
    with pytest.raises(ValueError, match=rf"{name}\(1\) is {value}: must be in \(0, 1\]"):
        learner.partial_fit(normal(4, 3))
    assert learner.steps == 0


def test_codes_asked_for_wrongly():
    learner = OnlineODL(3).partial_fit(normal(4, 3))
    for k in (0, 4, 1.5):
        with pytest.raises(ValueError, match=f"k={k}: must be an int from 1 to 3"):
            learner.sparse_code(normal(2, 3), k)
    with pytest.raises(ValueError, match="9:8"):
        learner.sparse_code(normal(2, 3), nm=(9, 8))


def test_nothing_seen_yet():
    learner = OnlineODL(3)
    assert math.isnan(learner.gap)
    with pytest.warns(UserWarning, match="no batch was seen"):
        codes = learner.transform(normal(2, 3))
    assert codes.shape == (2, 3)
    before = learner.relaxed
    with pytest.warns(UserWarning, match="step 1: its samples are all 0"):
        learner.partial_fit(torch.zeros(4, 3))
    assert learner.gap == 0 and torch.equal(learner.relaxed, before)
    learner.partial_fit(normal(4, 3))
    assert learner.gap > 0
