"""NExT-LF: correlations by loops, Loewner matrices by definition, exact responses, bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

import sat
from sat.methods.next_lf import (
    Modes,
    Pencil,
    StateSpace,
    cantilever_beam,
    correlation_irf,
    era_modes,
    irf_spectrum,
    lf_modes,
    loewner_pencil,
    mac,
    next_era,
    next_lf,
    poles_to_modes,
    simulate_ambient,
    ssi_cov,
    ssi_modes,
    stabilise,
    stable_poles,
)
from sat.methods.next_lf.demo import EXACT_DAMPING, EXACT_HZ, FS, Known, fem_frequencies
from sat.methods.next_lf.identify import _hankel_pencil, _whitened, strongest

KNOWN = Known.draw(EXACT_HZ, 4, 2, 0)
RANK = 2 * len(EXACT_HZ)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def records(p=3, n=400, seed=0):
    return torch.randn(p, n, generator=seeded(seed), dtype=torch.float64)


def pencil_of(irf, domain="z", decay=0.0, **options):
    spectrum = irf_spectrum(irf, 1 / FS, domain, decay)
    return loewner_pencil(spectrum.points, spectrum.values, seeded(), **options)


def rank(x, tolerance=1e-9):
    values = torch.linalg.svdvals(x)
    return int((values > tolerance * values[0]).sum())


def assert_exact(modes, places=slice(None)):
    assert len(modes) == len(EXACT_HZ)
    np.testing.assert_allclose(modes.freq_hz, EXACT_HZ, rtol=1e-9)
    np.testing.assert_allclose(modes.damping, EXACT_DAMPING, rtol=1e-8)
    left = torch.from_numpy(KNOWN.left[:, places])
    np.testing.assert_allclose(mac(modes.shapes, left), 1, rtol=1e-9)


# --------------------------------------------------------------------------------- correlations


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(2, 90), st.integers(1, 89), st.integers(0, 9))
def test_correlations_are_sums_over_all_samples(p, n, lags, seed):
    lags = min(lags, n - 1)
    y = records(p, n, seed) + 3
    centred = (y - y.mean(1, keepdim=True)).numpy()
    wanted = [
        [[centred[i, lag:] @ centred[r, : n - lag] / (n - lag) for lag in range(lags + 1)]
         for r in (1, 0)]
        for i in range(p)
    ]  # fmt: skip
    for transform in ("products", "fft"):
        found = correlation_irf(y, (1, 0), lags, transform=transform)
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_welch_is_freed_from_its_window():
    n = 64
    y = records(2, n)
    window = np.sin(np.pi * np.arange(n) / n) ** 2
    a, b = ((y - y.mean(1, keepdim=True)).numpy() * window)[:, :n]
    found = correlation_irf(y, [1], 20, "welch", n)
    for lag in range(21):
        seen = window[lag:] @ window[: n - lag]
        assert float(found[0, 0, lag]) == pytest.approx(a[lag:] @ b[: n - lag] / seen, rel=1e-10)
    # A moving average of 3 has correlations 3, 2, 1 and none beyond.
    long = records(1, 60_002)[0]
    moved = torch.stack((long[2:] + long[1:-1] + long[:-2], long[2:]))
    found = correlation_irf(moved, [0], 5, "welch", 64)[0, 0]
    np.testing.assert_allclose(found, [3, 2, 1, 0, 0, 0], atol=0.1)


# -------------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("n", [16, 17])
@pytest.mark.parametrize("decay", [0.0, 7.0])
def test_spectra_are_sums_at_their_points(n, decay):
    irf, dt = torch.randn(3, 2, n + 1, generator=seeded(), dtype=torch.float64), 0.25
    seen = irf.numpy() * np.exp(-decay * dt * np.arange(n + 1))
    for domain, lags in (("z", range(1, n + 1)), ("s", range(n))):
        spectrum = irf_spectrum(irf, dt, domain, decay)
        assert len(spectrum.points) == (n - 1) // 2
        for i, hz in enumerate(spectrum.freq_hz.tolist()):
            turned = 2j * math.pi * hz
            point = np.exp(turned * dt) if domain == "z" else turned
            assert complex(spectrum.points[i]) == pytest.approx(point, abs=1e-12)
            wanted = sum(seen[..., k] * np.exp(-turned * k * dt) for k in lags)
            wanted = wanted if domain == "z" else wanted * dt
            np.testing.assert_allclose(spectrum.values[..., i], wanted, atol=1e-12)
        other = irf_spectrum(irf, dt, domain, decay, transform="fft")
        np.testing.assert_allclose(other.values, spectrum.values, atol=1e-12)


def test_a_cut_response_is_rational_in_z_at_the_lines():
    spectrum = irf_spectrum(KNOWN.responses(40), 1 / FS)
    for point, value in zip(spectrum.points, spectrum.values.permute(2, 0, 1), strict=True):
        np.testing.assert_allclose(value, KNOWN.transfer(complex(point), 40), rtol=1e-10)


def test_a_band_keeps_its_lines():
    spectrum = irf_spectrum(KNOWN.responses(64), 1 / FS)
    kept = spectrum.band(20.0, 40.0)
    assert kept.freq_hz.tolist() == [24.0, 32.0, 40.0] and kept.values.shape == (4, 2, 3)
    assert torch.equal(kept.points, spectrum.points[2:5])


# --------------------------------------------------------------------------------------- pencil


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_pencils_are_as_defined(k, p, m, seed):
    points = torch.from_numpy(np.exp(1j * np.linspace(0.3, 2.8, k)))
    values = torch.randn(p, m, k, generator=seeded(seed), dtype=torch.complex128)
    made = loewner_pencil(points, values, seeded(seed), real=False)
    mu, lam = (np.repeat(x.numpy(), 2) for x in (points[::2], points[1::2]))
    mu[1::2], lam[1::2] = mu[1::2].conj(), lam[1::2].conj()
    ll, sll, v, w = (x.numpy() for x in (made.LL, made.sLL, made.V, made.W))
    # Directions are real: drawn a row a point, left and right in turn.
    directions = torch.randn(k, max(p, m), generator=seeded(seed), dtype=torch.float64).numpy()
    left, right = np.repeat(directions[::2, :p], 2, 0), np.repeat(directions[1::2, :m], 2, 0)
    f = values.numpy()
    for i in range(len(mu)):
        data = left[i] @ f[:, :, 2 * (i // 2)]
        np.testing.assert_allclose(v[i], data.conj() if i % 2 else data, atol=1e-12)
        for j in range(len(lam)):
            data = f[:, :, 2 * (j // 2) + 1] @ right[j]
            np.testing.assert_allclose(w[:, j], data.conj() if j % 2 else data, atol=1e-12)
            vr, lw = v[i] @ right[j], left[i] @ w[:, j]
            gap = mu[i] - lam[j]
            assert ll[i, j] == pytest.approx((vr - lw) / gap, abs=1e-9)
            assert sll[i, j] == pytest.approx((mu[i] * vr - lam[j] * lw) / gap, abs=1e-9)
    turn = np.array([[1, 1], [-1j, 1j]]) / math.sqrt(2)
    rows, columns = (
        linalg.block_diag(*[x] * (n // 2)) for x, n in ((turn, len(mu)), (turn, len(lam)))
    )
    real = loewner_pencil(points, values, seeded(seed))
    for found, wanted in (
        (real.LL, rows @ ll @ columns.conj().T), (real.sLL, rows @ sll @ columns.conj().T),
        (real.V, rows @ v), (real.W, w @ columns.conj().T),
    ):  # fmt: skip
        assert found.dtype == torch.float64 and abs(wanted.imag).max() < 1e-9
        np.testing.assert_allclose(found, wanted.real, atol=1e-9)
    sums = loewner_pencil(points, values, seeded(seed), products=False)
    np.testing.assert_allclose(sums.sLL, real.sLL, atol=1e-9)


def test_the_rank_is_the_order_and_models_are_exact():
    pencil = pencil_of(KNOWN.responses(128))
    assert rank(pencil.LL) == rank(pencil.sLL) == RANK
    model = pencil.realise(RANK)
    left, _, right = torch.linalg.svd(pencil.LL)
    e = left[:, :RANK].mT @ pencil.LL @ right[:RANK].mT
    np.testing.assert_allclose(model.E.abs(), e.abs(), atol=1e-9 * float(e.max()))
    z = np.exp(1j * np.array([0.3, 1.7, 3.0]))
    for point, value in zip(z, model.evaluate(torch.tensor(z)).permute(2, 0, 1), strict=True):
        np.testing.assert_allclose(value, KNOWN.transfer(point, 128), rtol=1e-9, atol=1e-9)
    lower, same = pencil.realise_all([4, RANK])
    assert torch.equal(same.A, model.A) and torch.equal(lower.A, model.A[:4, :4])
    assert lower.B.shape == (4, 2) and lower.C.shape == (4, 4)


def test_lag_0_has_no_part_and_would_add_a_pole():
    irf = KNOWN.responses(128)
    noisy = irf.clone()
    noisy[..., 0] += 5
    assert torch.equal(pencil_of(noisy).sLL, pencil_of(irf).sLL)
    spectrum = irf_spectrum(irf, 1 / FS)
    with_lag_0 = loewner_pencil(spectrum.points, spectrum.values + irf[..., :1], seeded())
    # A constant leaves LL alone (its rank says 2n) and adds l D r to sLL.
    assert rank(with_lag_0.LL) == RANK and rank(with_lag_0.sLL) > RANK


def test_two_sided_spectra_double_the_poles():
    irf = KNOWN.responses(128)[:, :1]
    spectrum = irf_spectrum(irf, 1 / FS)
    both = spectrum.values + spectrum.values.conj()
    assert rank(loewner_pencil(spectrum.points, both, seeded()).LL) == 2 * RANK


# ---------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("decay", [0.0, 10.0])
@pytest.mark.parametrize("real", [True, False])
def test_modes_of_exact_responses(decay, real):
    pencil = pencil_of(KNOWN.responses(256), decay=decay, real=real)
    assert_exact(poles_to_modes(pencil.realise(RANK), 1 / FS, window_decay=decay))
    if decay:
        wrong = poles_to_modes(pencil.realise(RANK), 1 / FS)
        assert float(wrong.damping.min()) > EXACT_DAMPING * 1.5


def test_modes_in_s_are_nearly_those():
    pencil = pencil_of(KNOWN.responses(1024), "s", 2.5)
    modes = poles_to_modes(pencil.realise(12), domain="s", window_decay=2.5)
    off = [float((modes.freq_hz / hz - 1).abs().min()) for hz in EXACT_HZ]
    assert 1e-9 < max(off) < 1e-3


def test_what_does_not_decay_is_left_out():
    poles = np.array([-1 + 30j, 0.5 + 40j, -30 + 40j, -20 + 0j, -2 + 70j])
    every = np.concatenate((poles, poles.conj()))
    system = StateSpace(*(torch.from_numpy(x) for x in (
        np.eye(10) + 0j, np.diag(every), np.ones((10, 1)) + 0j, np.arange(20).reshape(2, 10) + 0j
    )))  # fmt: skip
    modes = poles_to_modes(system, domain="s")
    np.testing.assert_allclose(modes.freq_hz * 2 * math.pi, abs(poles[[0, 4]]), rtol=1e-12)
    np.testing.assert_allclose(modes.damping, -poles[[0, 4]].real / abs(poles[[0, 4]]))
    ratio = (modes.shapes[:, 1] / modes.shapes[:, 0])[1]
    assert complex(ratio) == pytest.approx(14 / 4)
    assert len(poles_to_modes(system, domain="s", max_damping=0.7)) == 3


@pytest.mark.parametrize("peer", ["era", "ssi"])
def test_peers_find_exact_responses(peer):
    irf = KNOWN.responses(200)
    if peer == "ssi":
        both = Known(KNOWN.poles, KNOWN.left, KNOWN.left[:, ::-1])
        result = ssi_modes(both.responses(40), FS, (RANK,))
    else:
        result = era_modes(irf, FS, (RANK,), 20, 100)
    assert_exact(result.diagram[0].modes)


@pytest.fixture(autouse=True)
def nothing_stable_is_no_matter(request):
    """Two orders cannot agree eight times."""
    with warnings.catch_warnings():
        if "exact" in request.node.name:
            warnings.filterwarnings("ignore", "no mode is stable")
        yield


def test_mac_is_a_cosine():
    a = torch.randn(3, 4, generator=seeded(), dtype=torch.complex128)
    b = torch.randn(2, 4, generator=seeded(1), dtype=torch.float64)
    found = mac(a[:, None], b)
    for i, x in enumerate(a.numpy()):
        for j, y in enumerate(b.numpy()):
            cosine = abs(np.vdot(x, y)) / linalg.norm(x) / linalg.norm(y)
            assert float(found[i, j]) == pytest.approx(cosine**2)
    assert float(mac(a[0], 2j * a[0])) == pytest.approx(1)
    with pytest.raises(ValueError, match="a shape is 0 or not finite"):
        mac(a, torch.zeros(4))
    with pytest.raises(ValueError, match=r"both must be \(…, P\)"):
        mac(a, torch.ones(3))


def modes_at(*freq, damping=0.01, shape=(1.0, 0.0)):
    n = len(freq)
    return Modes(
        torch.tensor(freq, dtype=torch.float64),
        torch.full((n,), damping, dtype=torch.float64),
        torch.tensor(shape, dtype=torch.complex128).expand(n, 2),
    )


def test_stable_poles_are_in_the_order_below():
    lower = modes_at(10.0, 20.0, 30.0)
    for upper, wanted in (
        (modes_at(10.05, 20.3), [True, False]),
        (modes_at(10.0, damping=0.0112), [False]),
        (modes_at(10.0, damping=0.0109), [True]),
        (modes_at(10.0, shape=(1.0, 0.3)), [False]),
        (modes_at(10.0, shape=(2j, 0.1)), [True]),
        (modes_at(), []),
    ):
        first, second = stable_poles([lower, upper])
        assert not first.any() and second.tolist() == wanted


def test_groups_of_enough_orders_are_modes():
    drift = [modes_at(10 + 0.05 * k, damping=0.01 + 1e-4 * k) for k in range(9)]
    (mode,) = stabilise(drift)
    assert mode.members == 8 and mode.freq_hz == pytest.approx(10.225)
    assert mode.damping == pytest.approx(0.01045)
    assert mode.shape.dtype == torch.float64 and mode.shape.tolist() == [1, 0]
    # The last frequency is 4 % from the first: only neighbours are compared.
    with pytest.warns(UserWarning, match="no mode is stable over 8 orders"):
        assert stabilise(drift[:8]) == []
    double = [modes_at(10.0, 10.01, 50.0, shape=(1j, -2j)) for _ in range(9)]
    near, far = stabilise(double)
    assert (near.members, far.members) == (8, 8) and far.freq_hz == 50
    np.testing.assert_allclose(far.shape, [-0.5, 1], atol=1e-15)


# ----------------------------------------------------------------------------- beam and records


def test_the_beam_is_scikit_fems():
    for elements in (1, 4, 10):
        beam = cantilever_beam(elements, 3.0, 0.03)
        assert beam.shapes.shape == (2 * elements, elements) and float(beam.damping[-1]) == 0.03
        wanted = 3 * fem_frequencies(elements)
        np.testing.assert_allclose(beam.freq_hz, wanted, rtol=1e-7)
    # A cantilever of unit mass: the tip of mode 1 moves 2 for a modal mass of 1.
    assert abs(float(beam.shapes[0, -1])) == pytest.approx(2, rel=1e-5)


def test_records_are_the_state_equations():
    beam, fs, n = cantilever_beam(2, 5.0, 0.1), 200.0, 300
    y = simulate_ambient(beam, fs, n / fs, n_modes=2, seed=3)
    omega = 2 * math.pi * beam.freq_hz[:2].numpy()
    warm_up = math.ceil(10 * fs / (0.1 * omega).min())
    forces = np.random.default_rng(3).standard_normal((2, warm_up + n))
    shapes = beam.shapes[:2].numpy()
    a = np.block([[np.zeros((2, 2)), np.eye(2)], [-np.diag(omega**2), -0.2 * np.diag(omega)]])
    b = np.vstack((np.zeros((2, 2)), shapes))
    whole = linalg.expm(np.block([[a, b], [np.zeros((2, 6))]]) / fs)
    state, wanted = np.zeros(4), []
    for force in forces.T:
        wanted.append(shapes.T @ (a[2:] @ state + b[2:] @ force))
        state = whole[:4, :4] @ state + whole[:4, 4:] @ force
    np.testing.assert_allclose(y, np.array(wanted)[warm_up:].T, atol=1e-8)
    noisy = simulate_ambient(beam, fs, 50.0, 6.0, 2, seed=3)
    clean = simulate_ambient(beam, fs, 50.0, None, 2, seed=3)
    ratio = clean.var(1) / (noisy - clean).var(1)
    np.testing.assert_allclose(10 * ratio.log10(), 6, atol=0.2)


@pytest.fixture(scope="module")
def shaken():
    beam = cantilever_beam(4, 10.0, 0.02)
    return beam, simulate_ambient(beam, 256.0, 120.0, 20.0, 2, seed=1)


def test_modes_of_records(shaken):
    beam, y = shaken
    assert strongest(y) == (3,)
    options = {"n_lags": 256, "band": (2.0, 120.0), "orders": range(4, 32, 2)}
    found = {
        "lf": next_lf(y, 256.0, **options),
        "welch": next_lf(y, 256.0, **options, method="welch", transform="fft"),
        "era": next_era(y, 256.0, orders=range(4, 32, 2), block_columns=100),
        "ssi": ssi_cov(y, 256.0, range(4, 32, 2), block_rows=30),
        "cva": ssi_cov(y, 256.0, range(4, 32, 2), block_rows=30, weighting="cva"),
    }
    for name, result in found.items():
        assert [row.order for row in result.diagram] == list(range(4, 32, 2)), name
        for i in range(2):
            hz = float(beam.freq_hz[i])
            mode = min(result.modes, key=lambda m: abs(m.freq_hz - hz))
            assert mode.freq_hz == pytest.approx(hz, rel=0.01), name
            assert mode.damping == pytest.approx(0.02, rel=0.5), name
            assert float(mac(mode.shape, beam.shapes[i])) > 0.98, name


def test_scale_and_units_are_no_matter(shaken):
    _, y = shaken
    irf = correlation_irf(y, [3], 128)
    one, other = (
        lf_modes(irf * scale, 256.0, orders=range(4, 26, 2)).modes for scale in (1.0, 2.0**-60)
    )
    assert [m.freq_hz for m in one] == pytest.approx([m.freq_hz for m in other], rel=1e-9)
    with sat.offload("golden", precision="fp16") as report:
        lf_modes(irf * 2.0**-60, 256.0, orders=range(4, 26, 2))
    assert report.lost.overflowed == 0


def test_whitened_hankel_matrices_hold_canonical_correlations(shaken):
    irf = correlation_irf(shaken[1], range(4), 20)
    pencil = _hankel_pencil(irf, 10, 10, 10)
    made = _whitened(pencil, irf[..., :10])
    assert float(pencil.singular_values[0]) > 1
    assert 0.5 < float(made.singular_values[0]) < 1
    np.testing.assert_allclose(pencil.LL[:4, :4], irf[..., 1], atol=0)
    np.testing.assert_allclose(pencil.sLL[4:8, 8:12], irf[..., 5], atol=0)


def test_nothing_stable_is_a_warning():
    with pytest.warns(UserWarning, match="no mode is stable over 8 orders"):
        result = next_lf(records(2, 2000), 100.0, n_lags=64, orders=(2, 4))
    assert result.modes == [] and len(result.diagram) == 2


# ------------------------------------------------------------------------------------ bad input

Y = records()
BAD = Y.clone()
BAD[1, 5] = math.nan
DEAD = Y.clone()
DEAD[2] = 4.0
IRF = torch.ones(2, 1, 65, dtype=torch.float64)
BEAM = cantilever_beam(2)
ONE = StateSpace(*[torch.eye(2)] * 4)
POINTS = torch.tensor([1j, 2j, 3j], dtype=torch.complex128)
VALUES = torch.ones(2, 1, 3, dtype=torch.complex128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correlation_irf(Y[0], [0]), r"y has shape \(400,\): must be \(channels"),
        (lambda: correlation_irf(Y[:1], [0]), r"y has shape \(1, 400\)"),
        (lambda: correlation_irf(BAD, [0]), "y, channel 1: has samples that are not finite"),
        (lambda: correlation_irf(DEAD, [0]), "y, channel 2: is constant, a dead sensor"),
        (lambda: correlation_irf(Y, [0], 400), "n_lags=400: must be below 400"),
        (lambda: correlation_irf(Y, [0], 0), "n_lags=0: must be an int of at least 1"),
        (lambda: correlation_irf(Y, [3], 10), r"refs=\[3\]: must be one .* from 0 to 2"),
        (lambda: correlation_irf(Y, [], 10), r"refs=\[\]"),
        (lambda: correlation_irf(Y, [1, 1], 10), r"refs=\[1, 1\]"),
        (lambda: correlation_irf(Y, [0], 10, "burg"), "method='burg': must be"),
        (lambda: correlation_irf(Y, [0], 10, transform="dct"), "transform='dct': must be"),
        (lambda: correlation_irf(Y, [0], 10, "welch", 10), "nperseg=10: must be an int above 10"),
        (lambda: correlation_irf(Y, [0], 10, "welch", 401), "nperseg=401"),
        (lambda: correlation_irf(Y, [0], 10, nperseg=50), "nperseg=50: is of method='welch'"),
        (lambda: irf_spectrum(IRF[0], 1.0), r"irf has shape \(1, 65\): must be \(P, M, N \+ 1\)"),
        (lambda: irf_spectrum(IRF / 0, 1.0), "irf has entries that are not finite"),
        (lambda: irf_spectrum(IRF, 1.0, "w"), "domain='w': must be one of z, s"),
        (lambda: irf_spectrum(IRF, 0.0), "dt=0.0: must be positive"),
        (lambda: irf_spectrum(IRF, 1.0, window_decay=-1.0), "window_decay=-1.0"),
        (lambda: irf_spectrum(IRF, 0.01).band(0.0, 9.0), r"band=\(0.0, 9.0\): must rise, within"),
        (lambda: irf_spectrum(IRF, 0.01).band(9.0, 50.0), r"within \(0, 50\) Hz"),
        (lambda: irf_spectrum(IRF, 0.01).band(1.6, 2.0), r"band=\(1.6, 2.0\): has no line"),
        (lambda: loewner_pencil(POINTS, VALUES[0], seeded()), r"values \(1, 3\): must be \(K,\)"),
        (lambda: loewner_pencil(POINTS[:2], VALUES, seeded()), r"points have shape \(2,\)"),
        (lambda: loewner_pencil(POINTS.real + 0j, VALUES, seeded()), "points: one is real"),
        (lambda: loewner_pencil(POINTS[[0, 0, 1]], VALUES, seeded()), "left one coincides"),
        (lambda: loewner_pencil(POINTS, VALUES / 0, seeded()), "not finite"),
        (lambda: pencil_of(IRF).realise(200), "order 200: must be an int from 1 to"),
        (lambda: pencil_of(IRF).realise_all([]), "orders: there are none"),
        (lambda: poles_to_modes(ONE), "dt=None: must be positive"),
        (lambda: poles_to_modes(ONE, 1.0, max_damping=2.0), "max_damping"),
        (lambda: stabilise([], min_members=0), "min_members=0"),
        (lambda: stabilise([], freq_tol=0.0), "freq_tol=0.0: must be positive"),
        (lambda: next_lf(Y, 0.0), "fs=0.0: must be positive"),
        (lambda: next_lf(Y, 9.0, n_lags=64, orders=(3, 4)), r"orders=\[3, 4\]: must be even"),
        (lambda: next_lf(Y, 9.0, n_lags=64, orders=(20,)), "want 40 lines, and the band has 31"),
        (lambda: next_lf(Y, 9.0, band=(1.0, 9.0), n_lags=64, orders=(2,)), "within"),
        (lambda: next_lf(Y, 9.0, n_lags=64, orders=(2,), window=-1.0), "window=-1.0"),
        (lambda: next_era(Y, 9.0, block_rows=5, block_columns=9), "order 60: above 9"),
        (lambda: era_modes(IRF, 9.0, (2,), 60, 10), "64 lags: too few for 60 block rows"),
        (lambda: ssi_cov(Y, 9.0, weighting="pls"), "weighting='pls': must be"),
        (lambda: ssi_cov(Y, 9.0, block_rows=0), "block_rows=0"),
        (lambda: ssi_modes(IRF.expand(2, 2, 65), 9.0, (2,), "cva"), "covariance is not positive"),
        (lambda: cantilever_beam(0), "n_elements=0"),
        (lambda: cantilever_beam(2, 0.0), "f1_hz=0.0"),
        (lambda: cantilever_beam(2, 1.0, 1.0), "damping=1.0: must be in"),
        (lambda: simulate_ambient(BEAM, 0.0, 1.0), "fs=0.0, seconds=1.0"),
        (lambda: simulate_ambient(BEAM, 9.0, 0.1), "two samples or more"),
        (lambda: simulate_ambient(BEAM, 9.0, 9.0, n_modes=5), "n_modes=5: must be from 1 to 4"),
        (lambda: simulate_ambient(BEAM, 9.0, 9.0), "n_modes=4: mode 4, at .* aliases at fs=9.0"),
        (lambda: simulate_ambient(BEAM, 9.0, 9.0, math.inf, 1), "snr_db=inf"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_types_are_named():
    with pytest.raises(TypeError, match=r"y has dtype torch.int64: must be real floating point"):
        next_lf(Y.long(), 9.0)
    with pytest.raises(TypeError, match="irf has dtype torch.complex128"):
        irf_spectrum(IRF + 0j, 1.0)
    assert isinstance(pencil_of(IRF), Pencil)
