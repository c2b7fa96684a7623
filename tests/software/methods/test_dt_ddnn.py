"""DT-DDNN: sequences, blocks on the air, features, thresholds, two networks, bad input."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate
from sklearn.metrics import roc_curve

import sat
from sat.methods.dt_ddnn import (
    DTDDNN,
    KINDS,
    Correlation,
    JammingDNN,
    SSBRecords,
    cascade_train,
    choose_thresholds,
    detection_at_false_alarm,
    dwt_features,
    epnre,
    features,
    gold_sequence,
    jammer,
    ofdm_modulate,
    pbch_dmrs,
    pss,
    pss_correlation,
    rayleigh_channel,
    simulate_ssb,
    ssb_grid,
    sss,
    train,
    weak_records,
)
from sat.methods.dt_ddnn.demo import PY3GPP
from sat.methods.dt_ddnn.features import _approximation
from sat.methods.dt_ddnn.signal import SAMPLES


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def records():
    return simulate_ssb(600, 1)


@pytest.fixture(scope="module")
def fitted(records):
    return DTDDNN().fit(records, seed=3, epochs=6)


# ------------------------------------------------------------------------------------- sequences


def test_sequences_are_py3gpps():
    cells = torch.arange(1008)
    blocks = torch.arange(8).expand(1008, 8)
    for name, got in (
        ("PSS", pss(torch.arange(3))),
        ("SSS", sss(cells // 3, cells % 3)),
        ("DMRS", torch.view_as_real(pbch_dmrs(cells[:, None].expand(-1, 8), blocks))),
    ):
        assert got.dtype == torch.float32
        assert (
            hashlib.sha256((got.numpy() < 0).astype(np.uint8).tobytes()).hexdigest()
            == (PY3GPP[name])
        )
    assert set(pss(0).tolist()) == set(sss(7, 1).tolist()) == {1.0, -1.0}
    torch.testing.assert_close(pbch_dmrs(7, 3).abs(), torch.ones(144))


def test_primary_sequences_are_of_maximum_length():
    for n2 in range(3):
        spectrum = torch.fft.fft(pss(n2)).abs().square()
        # All cyclic autocorrelations but the first are -1.
        torch.testing.assert_close(spectrum[1:], torch.full((126,), 128.0), atol=1e-3, rtol=0)
        assert float(spectrum[0]) == pytest.approx(1, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 90))
def test_gold_sequence_is_its_recurrence(c_init, n):
    first, second = [1] + [0] * 30, [c_init >> i & 1 for i in range(31)]
    for i in range(1600 + n):
        first.append(first[i + 3] ^ first[i])
        second.append(second[i + 3] ^ second[i + 2] ^ second[i + 1] ^ second[i])
    expected = [a ^ b for a, b in zip(first[1600:], second[1600:], strict=True)][:n]
    assert gold_sequence(c_init, n).tolist() == expected


# ------------------------------------------------------------------------------------- on the air


def test_grid_has_the_standards_places():
    cells = torch.tensor([0, 5, 1007])
    grid = ssb_grid(cells, draw())
    full = grid.abs() > 0
    assert full[0].sum(1).tolist() == [127, 240, 96 + 127, 240]
    assert not full[0, 0, :56].any() and not full[0, 0, 183:].any()
    assert not full[0, 2, 48:56].any() and not full[0, 2, 183:192].any()
    torch.testing.assert_close(grid.abs()[full], torch.ones(int(full.sum())))
    for row, cell in enumerate(cells.tolist()):
        assert torch.equal(grid[row, 0, 56:183].real, pss(cell % 3))
        assert torch.equal(grid[row, 2, 56:183].real, sss(cell // 3, cell % 3))
        v = cell % 4
        there = [grid[row, s, v::4] for s in (1, 3)]
        middle = grid[row, 2, v::4]
        sent = torch.cat((there[0], middle[:12], middle[48:], there[1]))
        found = [i for i in range(8) if torch.allclose(sent, pbch_dmrs(cell, i))]
        assert len(found) == 1
    again = ssb_grid(cells, draw())
    other = ssb_grid(cells, draw(1))
    assert torch.equal(grid, again) and not torch.equal(grid, other)


@pytest.mark.parametrize("transform", ["fft", "products"])
def test_ofdm_is_numpys(transform):
    grid = ssb_grid(torch.tensor([3, 700]), draw())
    bins = np.zeros((2, 4, 256), complex)
    bins[:, :, (np.arange(240) - 120) % 256] = grid.numpy()
    body = np.fft.ifft(bins, axis=2, norm="ortho")
    expected = np.concatenate([body[..., -18:], body], 2).reshape(2, -1)
    np.testing.assert_allclose(ofdm_modulate(grid, transform).numpy(), expected, atol=1e-5)


def test_channel_is_a_convolution_of_power_one():
    x = torch.randn(300, 200, dtype=torch.complex64, generator=draw())
    y = rayleigh_channel(x, draw(1))
    assert y.shape == (300, 207)
    torch.testing.assert_close(y[:, :200].abs().square().mean(1), torch.ones(300))
    # Its taps come back from an impulse; their powers are the profile's in the mean.
    impulse = torch.zeros(20_000, 1, dtype=torch.complex64)
    impulse[:, 0] = 1
    gains = torch.randn(20_000, 8, dtype=torch.complex64, generator=draw(2))
    gains = gains * torch.exp(-torch.arange(8) / 4)
    faded = rayleigh_channel(impulse, draw(2))
    torch.testing.assert_close(faded, gains / gains[:, :1].abs())
    power = gains.abs().square().mean(0)
    torch.testing.assert_close(power, torch.exp(-torch.arange(8) / 2), atol=0.03, rtol=0)
    line = np.convolve(x[0].numpy(), (gains[0]).numpy())
    again = rayleigh_channel(x[:1], draw(5))
    one = torch.randn(1, 8, dtype=torch.complex64, generator=draw(5))[0]
    line = np.convolve(x[0].numpy(), (one * torch.exp(-torch.arange(8) / 4)).numpy())
    line /= np.sqrt((np.abs(line[:200]) ** 2).mean())
    np.testing.assert_allclose(again[0].numpy(), line, atol=1e-5)


def test_jammers_are_where_they_should_be():
    n2 = torch.arange(600) % 3
    grids = {kind: jammer(kind, n2, draw()) for kind in KINDS}
    on = {kind: grid.abs() > 0 for kind, grid in grids.items()}
    assert on["barrage"].all()
    assert on["pss"][:, 0].all() and not on["pss"][:, 1:].any()
    band = on["narrowband"]
    assert torch.equal(band[:, 0], band[:, 3])
    widths = band[:, 0].sum(1)
    assert widths.min() == 12 and widths.max() == 39
    for row in band[:, 0]:
        places = row.nonzero()[:, 0]
        assert len(places) == int(places[-1] - places[0]) + 1
    assert bool(band[:, 0, 0].any()) and bool(band[:, 0, 239].any())
    replay = grids["replay"]
    assert not replay[:, 1:].any() and not replay[:, 0, :56].any() and not replay[:, 0, 183:].any()
    sent = replay[:, 0, 56:183]
    shares = torch.stack([(sent * pss(k)).sum(1).abs() / 127 for k in range(3)], 1)
    assert bool((shares.argmax(1) != n2).all())
    torch.testing.assert_close(shares.amax(1), torch.ones(600))
    angles = (sent * pss(shares.argmax(1))).mean(1).angle()
    assert float(angles.min()) < -3 and float(angles.max()) > 3


def test_records(records):
    assert len(records) == 600 and int(records.jammed.sum()) == 300
    counts = [(records.kind == k).sum().item() for k in range(-1, 4)]
    assert counts == [300, 75, 75, 75, 75]
    assert torch.equal(records.kind >= 0, records.jammed)
    assert bool(records.sjr_db[~records.jammed].isinf().all())
    sjr = records.sjr_db[records.jammed]
    assert -10 <= float(sjr.min()) < -8 and 28 < float(sjr.max()) <= 30
    assert float(records.snr_db.min()) >= 33 and float(records.snr_db.max()) <= 37
    power = records.iq.abs().square().mean(1)
    torch.testing.assert_close(power, torch.ones(600))
    again = simulate_ssb(600, 1)
    assert torch.equal(records.iq, again.iq) and not torch.equal(
        records.iq, simulate_ssb(600, 2).iq
    )
    part = records[records.jammed]
    whole = SSBRecords.cat(part, records[~records.jammed])
    assert len(part) == 300 and len(whole) == 600 and bool(whole.jammed[:300].all())


def test_jammer_has_the_power_it_should_and_a_channel_of_its_own():
    """The same seed with a jammer at two powers: the difference is the jammer."""
    kinds = ("pss",)
    faint = simulate_ssb(200, 4, (300, 300), (300, 300), kinds)
    loud = simulate_ssb(200, 4, (0, 0), (300, 300), kinds)
    jammed = loud.jammed
    torch.testing.assert_close(faint.iq[~jammed], loud.iq[~jammed])
    # Levels are taken out at the end: find them by the part that no jammer reaches.
    signal, both = faint.iq[jammed], loud.iq[jammed]
    quiet = slice(64 + 2 * 274 + 30, 64 + 1096)
    scale = (both[:, quiet] * signal[:, quiet].conj()).sum(1) / (
        signal[:, quiet].abs().square().sum(1)
    )
    left = both / scale[:, None] - signal
    ratio = left.abs().square().sum(1) / signal.abs().square().sum(1)
    torch.testing.assert_close(ratio, torch.ones(100), atol=0.02, rtol=0)
    starts = (left.abs() > 1e-2 * left.abs().amax(1, keepdim=True)).int().argmax(1)
    assert 48 <= int(starts.min()) < 52 and 76 < int(starts.max()) <= 84
    # Symbol 1 of the signal says nothing of the jammer's channel.
    a = torch.fft.fft(signal[:, 80 : 80 + 256])[:, :40]
    b = torch.fft.fft(left[:, 80 : 80 + 256])[:, :40]
    share = (a * b.conj()).sum(1).abs() / (a.norm(dim=1) * b.norm(dim=1))
    assert float(share.mean()) < 0.3


# --------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("transform", ["fft", "products"])
def test_correlation_is_scipys(records, transform):
    some = records[:12]
    found = pss_correlation(some.iq, transform)
    for row, line in enumerate(some.iq.numpy().astype(complex)):
        for n2 in range(3):
            bins = np.zeros(256, complex)
            bins[(np.arange(56, 183) - 120) % 256] = pss(n2).numpy()
            shape = np.fft.ifft(bins)
            sums = correlate(line[:511], shape / np.linalg.norm(shape), "valid")
            expected = np.abs(sums) / np.linalg.norm(line)
            np.testing.assert_allclose(found.values[row, n2].numpy(), expected, atol=2e-6)
    peaks = found.values[:, :, :160].reshape(12, -1).argmax(1)
    assert torch.equal(found.n2 * 160 + found.timing, peaks)


def test_timing_and_cell_come_from_the_samples(records):
    clean = records[~records.jammed]
    found = pss_correlation(clean.iq)
    assert torch.equal(found.n2, clean.cell_id % 3)
    # 64 zeros, a prefix of 18, and one of 8 taps.
    assert int(found.timing.min()) >= 82 and int(found.timing.max()) <= 89
    # Later by some samples, everything follows: no timing is taken for known.
    late = clean.iq.roll(40, 1)
    moved = pss_correlation(late)
    assert torch.equal(moved.timing, found.timing + 40)
    torch.testing.assert_close(
        epnre(late, moved.timing), epnre(clean.iq, found.timing), rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("transform", ["fft", "products"])
def test_null_energy_is_numpys_and_the_noises(transform):
    records = simulate_ssb(300, 2, snr_db=(35, 35))
    clean = records[~records.jammed]
    timing = pss_correlation(clean.iq).timing
    ratios = epnre(clean.iq, timing, transform)
    assert ratios.shape == (150, 130)
    for row in (0, 77):
        powers = []
        for symbol in (0, 2):
            start = int(timing[row]) - 2 + 274 * symbol
            line = np.fft.fft(clean.iq[row, start : start + 256].numpy())
            powers.append(np.abs(line[(np.arange(240) - 120) % 256]) ** 2)
        null = np.concatenate(
            [powers[0][:56], powers[0][183:], powers[1][48:56], powers[1][183:192]]
        )
        occupied = np.concatenate([p[56:183] for p in powers]).mean()
        np.testing.assert_allclose(ratios[row].numpy(), null / occupied, rtol=2e-3, atol=1e-7)
    # Noise has 10^-3.5 of the block's power on 256 bins, signal 850 elements on 4 x 256.
    expected = 10**-3.5 * 850 / 1024
    assert float(ratios.median()) == pytest.approx(0.7 * expected, rel=0.35)


def test_features_are_pywavelets(records):
    some = records[:9]
    found = pss_correlation(some.iq)
    ratios = epnre(some.iq, found.timing)
    got = dwt_features(found, ratios)
    assert got.shape == (9, 134) and torch.equal(got, features(some.iq))
    for row in range(9):
        start, first = int(found.timing[row]) - 64, int(found.n2[row])
        for place in range(3):
            line = np.log10(found.values[row, (first + place) % 3].double().numpy() + 1e-4)
            window = line[start : start + 128]
            expected = pywt.wavedec(window, "db2", "periodization", level=2)[0]
            got_here = got[row, 32 * place : 32 * place + 32].numpy()
            np.testing.assert_allclose(got_here, expected, atol=2e-5)
        energies = ratios[row].double().numpy()
        padded = np.pad(np.log10(energies + 1e-6), (0, 2), "edge")
        expected = pywt.wavedec(padded, "db2", "periodization", level=2)[0]
        np.testing.assert_allclose(got[row, 96:129].numpy(), expected, atol=2e-5)
        means = [
            energies.mean(), energies[:113].mean(), energies[113:].mean(), energies.max(),
            np.sort(energies)[64],
        ]  # fmt: skip
        np.testing.assert_allclose(got[row, 129:].numpy(), np.log10(np.add(means, 1e-6)), atol=1e-5)


def test_wavelet_is_exact_wherever_it_was_made_first():
    """It is kept: rounded under an offload, it would stay so."""
    _approximation.cache_clear()
    with sat.offload("golden"):
        made = _approximation(128)
    _approximation.cache_clear()
    assert torch.equal(made, _approximation(128))
    expected = pywt.wavedec(np.eye(128), "db2", "periodization", level=2)[0]
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-7)


def test_window_before_the_first_lag_is_empty():
    values = torch.rand(1, 3, 256, generator=draw())
    early = Correlation(values, torch.tensor([1]), torch.tensor([10]))
    got = dwt_features(early, torch.rand(1, 130, generator=draw()))
    for place, n2 in enumerate((1, 2, 0)):
        line = np.concatenate([np.full(54, -4.0), np.log10(values[0, n2, :74].numpy() + 1e-4)])
        expected = pywt.wavedec(line, "db2", "periodization", level=2)[0]
        np.testing.assert_allclose(
            got[0, 32 * place : 32 * place + 32].numpy(), expected, atol=2e-5
        )


def test_no_level_is_in_the_features(records):
    some = records[:30].iq
    scale = torch.logspace(-3, 3, 30)[:, None]
    torch.testing.assert_close(features(some * scale), features(some), atol=1e-3, rtol=0)


def test_products_in_float16_leave_null_energies(records):
    """11 bits leave 75 dB below the signal, and noise is 35 dB below it."""
    grid = ssb_grid(torch.arange(20), draw())
    perfect = torch.zeros(20, SAMPLES, dtype=torch.complex64)
    perfect[:, 64:1160] = ofdm_modulate(grid)
    timing = torch.full((20,), 82)
    exact = epnre(perfect, timing).mean()
    with sat.offload("golden") as report:
        rounded = epnre(perfect, timing, "products").mean()
        seen = features(records.iq[:40], "products")
    assert 10 * math.log10(float(exact)) < -100
    assert -80 < 10 * math.log10(float(rounded)) < -65
    assert report.coverage == 1
    away = (seen - features(records.iq[:40])).abs()
    assert 0 < float(away.mean()) < 0.01


# --------------------------------------------------------------------------------------- networks


def test_network_is_its_layers():
    torch.manual_seed(0)
    model = JammingDNN(5, (4, 3)).eval()
    assert [p.shape for p in model.parameters()] == [(4, 8), (4,), (3, 4), (3,), (1, 3), (1,)]
    x = torch.randn(7, 5)
    weights = [p.detach().double().numpy() for p in model.parameters()]
    h = np.pad(x.numpy(), ((0, 0), (0, 3)))
    for place in (0, 2):
        h = np.maximum(h @ weights[place].T + weights[place + 1], 0)
    np.testing.assert_allclose(
        model(x).detach().numpy(), (h @ weights[4].T + weights[5])[:, 0], atol=1e-6
    )


def problem(n=256, width=6, seed=0):
    x = torch.randn(n, width, generator=draw(seed))
    return x, x[:, 0] * x[:, 1] > 0


def test_scaled_gradients_take_adams_steps():
    """Loss and constants times 1024: the bits of Adam without it."""
    x, y = problem()
    torch.manual_seed(0)
    ours = JammingDNN(6, (8,), dropout=0.0)
    torch.manual_seed(0)
    theirs = JammingDNN(6, (8,), dropout=0.0)
    curve = train(ours, x, y, epochs=3, generator=draw(5))
    optimizer = torch.optim.Adam(theirs.parameters(), 1e-3, weight_decay=1e-4)
    order, losses = draw(5), []
    for _ in range(3):
        for places in torch.randperm(256, generator=order).split(128):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                theirs(x[places]), y[places].float()
            )
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert curve == pytest.approx(np.reshape(losses, (3, 2)).mean(1).tolist(), rel=1e-6)


def test_cascade_freezes_what_is_trained():
    x, y = problem()
    torch.manual_seed(0)
    model = JammingDNN(6, (16, 8), dropout=0.0)
    start = [p.clone() for p in model.parameters()]
    seen = []
    first, second = model.hidden[0][0], model.hidden[1][0]
    for layer in (first, second):
        layer.register_forward_hook(
            lambda *_: seen.append([p.detach().clone() for p in model.parameters()])
        )
    cascade_train(model, x, y, epochs=4, generator=draw())
    # Two batches an epoch and stage, and what each layer gives after its own.
    assert len(seen) == 2 * (2 * 4 + 1)
    middle = seen[9]
    for place in (2, 3, 4, 5):
        assert torch.equal(middle[place], start[place])  # the first stage leaves these
    end = list(model.parameters())
    for place in (0, 1):
        assert torch.equal(end[place], middle[place])  # and the second those
        assert not torch.equal(end[place], start[place])
    for place in (2, 4):
        assert not torch.equal(end[place], start[place])


# --------------------------------------------------------------------------------------- detector


def test_second_network_sees_only_what_is_between(records, fitted):
    x = fitted.features(records.iq)
    p1 = fitted.first_probability(x)
    middle = float(p1.median())
    fitted.thresholds = (middle / 2, (middle + 1) / 2)
    given = []
    hook = fitted.second.register_forward_hook(lambda module, args, out: given.append(args[0]))
    try:
        p, labels, stage = fitted(x)
        low, high = fitted.thresholds
        between = (p1 > low) & (p1 < high)
        assert 0 < int(between.sum()) < 600
        assert len(given) == 1 and given[0].shape == (int(between.sum()), 135)
        torch.testing.assert_close(given[0][:, :134], fitted.standardise(x)[between])
        logit = (p1 / (1 - p1)).log().clamp(-10, 10)[between]
        torch.testing.assert_close(given[0][:, 134].double(), logit, atol=1e-4, rtol=1e-4)
        p2 = torch.sigmoid(fitted.second(given[0]).double())
    finally:
        hook.remove()
        fitted.thresholds = (0.02, 0.95)
    assert torch.equal(stage, torch.where(between, 2, 1))
    torch.testing.assert_close(p[between], p2)
    assert torch.equal(p[~between], p1[~between])
    assert torch.equal(labels, torch.where(between, p >= 0.5, p1 >= high))


def test_samples_and_features_give_the_same(records, fitted):
    some = records[:50]
    p, labels, stage = fitted(fitted.features(some.iq))
    assert torch.equal(fitted.predict_proba(some.iq), p)
    assert all(map(torch.equal, fitted.predict(some.iq), (labels, stage)))
    assert p.dtype == torch.float64 and labels.dtype == torch.bool


def test_finds_strong_jammers_and_begins_anew(records, fitted):
    test = simulate_ssb(200, 9, (-10, 5))
    labels, _ = fitted.predict(test.iq)
    assert float((labels == test.jammed).double().mean()) > 0.9
    again = DTDDNN()
    state = torch.random.get_rng_state()
    again.fit(records, seed=3, epochs=6)
    assert torch.equal(state, torch.random.get_rng_state())
    x = again.features(test.iq)
    assert torch.equal(again(x)[0], fitted(x)[0])
    again.fit(records, seed=4, epochs=6)
    assert not torch.equal(again(x)[0], fitted(x)[0])


def test_standardised_by_the_training_set_alone(records, fitted):
    x = fitted.standardise(fitted.features(records.iq))
    torch.testing.assert_close(x.mean(0), torch.zeros(134), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(134), atol=1e-3, rtol=0)
    before = fitted.mean.clone(), fitted.limits.clone()
    fitted.predict(simulate_ssb(70, 8).iq)
    assert torch.equal(fitted.mean, before[0]) and torch.equal(fitted.limits, before[1])


def test_state_goes_where_it_was(records, fitted):
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    other = DTDDNN()
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.predict_proba(records.iq[:20]), fitted.predict_proba(records.iq[:20]))
    narrow = {**fitted.state_dict(), "mean": torch.zeros(100)}
    with pytest.raises(RuntimeError, match="size mismatch for mean"):
        DTDDNN().load_state_dict(narrow)


def test_weak_records_are_even(records):
    weak = weak_records(records)
    assert int(weak.jammed.sum()) * 2 == len(weak) > 100
    assert float(weak.sjr_db.min()) >= 15
    expected = int((records.jammed & (records.sjr_db >= 15)).sum())
    assert int(weak.jammed.sum()) == expected


def test_thresholds_come_from_the_validation_set(records):
    validation = simulate_ssb(300, 6)
    detector = DTDDNN().fit(records, validation, epochs=3)
    p1 = detector.first_probability(detector.features(validation.iq))
    expected = choose_thresholds(p1, validation.jammed)
    assert detector.thresholds == pytest.approx(expected, rel=1e-6)
    cascade = DTDDNN(cascade=True).fit(records, epochs=2)
    assert cascade.thresholds == (0.02, 0.95)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 9999), st.floats(0.5, 1), st.floats(0.5, 1))
def test_thresholds_are_the_widest_pure_ones(n, seed, clean_purity, jammed_purity):
    rng = np.random.default_rng(seed)
    scores, jammed = rng.integers(1, 20, n) / 20, rng.random(n) < 0.5
    jammed[:2] = True, False
    low, high = choose_thresholds(
        torch.from_numpy(scores), torch.from_numpy(jammed), (clean_purity, jammed_purity)
    )
    highs = [t for t in scores if jammed[scores >= t].mean() >= jammed_purity]
    assert high == (min(highs) if highs else (scores.max() + 1) / 2)
    lows = [t for t in scores if t < high and (~jammed[scores <= t]).mean() >= clean_purity]
    assert low == (max(lows) if lows else scores.min() / 2)
    assert 0 < low < high < 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 9999), st.sampled_from([0.0, 0.05, 0.1, 0.5]))
def test_detection_is_scikit_learns(n, seed, fa):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 12, n) / 7, rng.random(n) < 0.5
    labels[:2] = True, False
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    got = detection_at_false_alarm(torch.from_numpy(scores), torch.from_numpy(labels), fa)
    assert got == pytest.approx(true[false <= fa + 1e-9].max())


def test_sparse_hidden_layers_under_offload(records):
    detector = DTDDNN(transform="products")
    report = sat.sparsify_(detector, "bdwp", "2:8")
    assert {row.name: row.pattern for row in report.layers} == {
        "first.hidden.0.0": "2:8", "first.hidden.1.0": "2:8", "first.output": "dense",
        "second.hidden.0.0": "2:8", "second.hidden.1.0": "2:8", "second.output": "dense",
    }  # fmt: skip
    with sat.offload("golden") as work:
        detector.fit(records[:400], epochs=1)
        labels, _ = detector.predict(records.iq[:20])
    assert work.coverage == 1 and labels.shape == (20,)
    (size,) = {one.size for one in work if one.op == "first.hidden.0.0 FF" and "20 x" in one.size}
    assert size == "20 x 136 x 128 2:8"


# -------------------------------------------------------------------------------------- bad input


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=draw(seed))


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: pss(3), ValueError, "n2=3: must be from 0 to 2"),
        (lambda: pss(torch.tensor([0, -1])), ValueError, "n2=-1: must be"),
        (lambda: pss(torch.tensor([0.5])), ValueError, "n2 has dtype torch.float32"),
        (lambda: sss(336, 0), ValueError, "n1=336: must be from 0 to 335"),
        (lambda: sss(0, 3), ValueError, "n2=3: must be"),
        (lambda: gold_sequence(2**31, 4), ValueError, "c_init=2147483648: must be"),
        (lambda: gold_sequence(1, 0), ValueError, "n=0: must be"),
        (lambda: pbch_dmrs(1008, 0), ValueError, "cell_id=1008: must be from 0 to 1007"),
        (lambda: pbch_dmrs(0, 8), ValueError, "issb=8: must be from 0 to 7"),
        (lambda: ssb_grid(torch.tensor(3), draw()), ValueError, r"cell_ids has shape \(\)"),
        (lambda: ofdm_modulate(torch.zeros(1, 4, 240)), ValueError, "grid is torch.float32"),
        (lambda: ofdm_modulate(noise(1, 4, 239)), ValueError, r"shape \(1, 4, 239\)"),
        (lambda: ofdm_modulate(noise(1, 4, 240), "dct"), ValueError, "transform='dct': must be"),
        (lambda: rayleigh_channel(torch.zeros(2, 3), draw()), ValueError, "x is torch.float32"),
        (lambda: rayleigh_channel(noise(2, 3), draw(), taps=0), ValueError, "taps=0: must be"),
        (lambda: rayleigh_channel(noise(2, 3), draw(), decay=0.0), ValueError, "decay=0.0: must"),
        (lambda: jammer("sweep", torch.tensor([0]), draw()), ValueError, "kind='sweep': must be"),
        (lambda: jammer("pss", torch.tensor(0), draw()), ValueError, r"n2 has shape \(\)"),
        (lambda: jammer("replay", torch.tensor([3]), draw()), ValueError, "n2=3: must be"),
        (lambda: simulate_ssb(0, 0), ValueError, "n=0: must be"),
        (lambda: simulate_ssb(4, 0, (30, -10)), ValueError, r"sjr_db=\(30, -10\): must be"),
        (lambda: simulate_ssb(4, 0, snr_db=(37, 33)), ValueError, r"snr_db=\(37, 33\): must be"),
        (lambda: simulate_ssb(4, 0, (math.nan, 1)), ValueError, "sjr_db=.nan, 1.: must be"),
        (lambda: simulate_ssb(4, 0, kinds=("tone",)), ValueError, "kinds=.'tone',.: must be"),
        (lambda: simulate_ssb(4, 0, kinds=()), ValueError, "kinds=..: must be"),
        (lambda: epnre(noise(2, 1224), torch.tensor([3])), ValueError, "must be int64 .2,"),
        (lambda: epnre(noise(1, 1224), torch.tensor([256])), ValueError, "must be from 0 to 255"),
        (lambda: JammingDNN(0), ValueError, "n_features=0: must be"),
        (lambda: JammingDNN(4, ()), ValueError, "hidden=.*at least one width"),
        (lambda: JammingDNN(4, (0,)), ValueError, "hidden=0: must be"),
        (lambda: JammingDNN(4, dropout=1.0), ValueError, "dropout=1.0: must be"),
        (lambda: JammingDNN(4)(torch.zeros(2, 5)), ValueError, r"x has shape \(2, 5\): must be"),
        (lambda: DTDDNN((0.5, 0.5)), ValueError, r"thresholds=\(0.5, 0.5\): must be 0 < t_lo"),
        (lambda: DTDDNN((0.9, 0.1)), ValueError, "thresholds=.*: must be"),
        (lambda: DTDDNN((0.0, 0.9)), ValueError, "thresholds=.*: must be"),
        (lambda: DTDDNN((0.1, 1.0)), ValueError, "thresholds=.*: must be"),
        (lambda: DTDDNN((0.1, math.nan)), ValueError, "thresholds=.*: must be"),
        (lambda: DTDDNN(transform="no"), ValueError, "transform='no': must be"),
        (lambda: DTDDNN().predict(noise(1, 1224)), RuntimeError, "call fit, or load"),
        (lambda: DTDDNN().predict_proba(noise(1, 1224)), RuntimeError, "call fit, or load"),
        (lambda: DTDDNN().fit(simulate_ssb(40, 0)), ValueError, "records: 40 records: must be"),
        (
            lambda: detection_at_false_alarm(torch.rand(3), torch.ones(3).bool(), 0.1), ValueError,
            "all records are jammed: must have both",
        ),
        (
            lambda: detection_at_false_alarm(torch.rand(2), torch.tensor([True, False]), 1.0),
            ValueError, "fa=1.0: must be in",
        ),
        (
            lambda: choose_thresholds(torch.full((2,), math.nan), torch.tensor([True, False])),
            ValueError, "scores has NaN",
        ),
        (
            lambda: choose_thresholds(torch.rand(2), torch.tensor([1, 0])), ValueError,
            "labels torch.int64",
        ),
        (
            lambda: train(JammingDNN(4), torch.zeros(3, 4), torch.zeros(3), generator=draw()),
            ValueError, "jammed is torch.float32",
        ),
        (
            lambda: train(JammingDNN(4), torch.zeros(3, 5), torch.zeros(3) > 0, generator=draw()),
            ValueError, r"x has shape \(0, 5\)",
        ),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "iq,error,message",
    [
        (torch.ones(2, 1224), TypeError, "iq has dtype torch.float32: must be complex"),
        (noise(1224), ValueError, r"iq has shape \(1224,\): must be \(n, 1224\)"),
        (noise(2, 1000), ValueError, r"iq has shape \(2, 1000\)"),
        (noise(0, 1224), ValueError, "at least one record"),
        (torch.zeros(2, 1224, dtype=torch.complex64), ValueError, "record 0 is all 0"),
        (noise(2, 1224) * torch.tensor([[1.0], [math.nan]]), ValueError, "record 1 is not finite"),
        (noise(2, 1224) * torch.tensor([[1.0], [math.inf]]), ValueError, "record 1 is not finite"),
    ],
)
def test_bad_records(fitted, iq, error, message):
    for call in (
        pss_correlation, features, lambda x: epnre(x, torch.zeros(len(x)).long()),
        fitted.predict, fitted.predict_proba,
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call(iq)


def test_sets_of_one_class_are_refused(records):
    jammed = records[records.jammed]
    with pytest.raises(ValueError, match="records: all records are jammed: must have both"):
        DTDDNN().fit(jammed)
    with pytest.raises(ValueError, match="validation: all records are clean: must have both"):
        DTDDNN().fit(records, records[~records.jammed])
    with pytest.raises(ValueError, match="weak: all records are jammed"):
        DTDDNN().fit(records, weak=jammed)
    detector = DTDDNN()
    with pytest.raises(ValueError, match="weak: 20 records: must be at least 64"):
        detector.fit(records, weak=records[:20])
    assert not bool(detector.fitted)
    with pytest.raises(ValueError, match=r"x has shape \(3, 100\): must be \(n, 134\)"):
        detector.standardise(torch.zeros(3, 100))
