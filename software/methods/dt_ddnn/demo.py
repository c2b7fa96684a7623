"""Acceptance figures: sequences and features by other libraries, detection of weak jammers.

Registers are scipy's, transforms numpy's, wavelets PyWavelets', rates scikit-learn's.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import pywt
import torch
from numpy.typing import NDArray
from scipy.signal import correlate, max_len_seq
from sklearn.metrics import roc_curve
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

import sat
from sat.methods import Result
from sat.methods.dt_ddnn.detector import DTDDNN, choose_thresholds
from sat.methods.dt_ddnn.features import Correlation, dwt_features, epnre, features, pss_correlation
from sat.methods.dt_ddnn.figure import draw
from sat.methods.dt_ddnn.networks import EPOCHS, JammingDNN, train
from sat.methods.dt_ddnn.sequences import BLOCKS, CELLS, LENGTH, pbch_dmrs, pss, sss
from sat.methods.dt_ddnn.signal import (
    FIRST,
    GUARD,
    KINDS,
    SAMPLES,
    SSBRecords,
    ofdm_modulate,
    simulate_ssb,
    ssb_grid,
)  # fmt: skip
from sat.methods.problems.rounding import product_bound

Array = NDArray[np.float64]

SEEDS, TRAIN, TEST, STRONG, IQ_EPOCHS = 3, 4500, 3000, 1000, 5
WEAK = (15.0, 30.0)
CHECKED = 16
"""Records whose features are computed beside other libraries'."""
ALARMS = 0.05
"""The false-alarm rate at which detectors are compared."""
TRANSFORM = "products"
PATTERNS = ("2:4", "2:8")
SPANS = ((15, 20), (20, 25), (25, 30))
PY3GPP = {
    "PSS": "e11dd4ff18c509931c3657edc7652c8ef943b8db2277292ac18c8c44bcad42c6",
    "SSS": "a6bbe83cd4cd58e3f7b923d714538088b97a35403d1ba4dec5df2fc3e59d529e",
    "DMRS": "afdb1f7bedc1d20185ed633e02fafc8f7c05015ba76d7f6112c97264911fcaed",
}
"""SHA-256 of what py3gpp 0.6.0 gives: a byte a number, 1 where it is negative, real parts before
imaginary ones; all PSS, all cells' SSS, all cells' and blocks' DMRS. Computed once: it takes nine
minutes for them, and its licence (AGPL) is not one to depend on."""


@dataclass
class Trial:
    """What one seed gives: records, features, detectors' scores on the weak test set."""

    seed: int
    records: dict[str, SSBRecords]
    x: dict[str, Tensor]
    detector: DTDDNN
    scores: dict[str, Array] = field(default_factory=dict)
    """By detector, (n,)."""
    found: dict[str, Array] = field(default_factory=dict)
    """Decisions by detector, (n,) bool."""
    stage: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def jammed(self) -> NDArray[np.bool_]:
        """Which of the test set are."""
        return np.asarray(self.records["test"].jammed.numpy())

    def rates(self, name: str) -> tuple[float, float]:
        """Return detection and false alarms of a detector's decisions."""
        found = self.found[name]
        return float(found[self.jammed].mean()), float(found[~self.jammed].mean())

    def at_alarms(self, name: str) -> float:
        """Return detection at 5 % false alarms."""
        false, true, _ = roc_curve(self.jammed, self.scores[name], drop_intermediate=False)
        return float(true[false <= ALARMS + 1e-9].max())


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about two minutes on one core.

    Parameters
    ----------
    seed : int
        The first of those that records and networks are drawn from.
    quick : bool
        One seed; what is judged by the mean of seeds, and some peers, are left out.
    """
    result = Result()
    _sequences(result)
    _receiver(result, seed)
    trials = [_trial(one) for one in range(seed, seed + (1 if quick else SEEDS))]
    _detection(result, trials, quick)
    _features(result, trials)
    _leaks(result, trials[0])
    if quick:
        result.left_out.append(
            f"{SEEDS} seeds and what is judged by their mean; the network on raw IQ, N:M, cascade "
            "learning"
        )
    else:
        _peers(result, trials)
        _patterns(result, trials)
    result.figures["jammers"] = draw(trials[0])
    return result


# ------------------------------------------------------------------------------------ references


def _sequences(result: Result) -> None:
    cells = torch.arange(CELLS)
    ours = {
        "PSS": pss(torch.arange(3)).numpy(),
        "SSS": sss(cells // 3, cells % 3).numpy(),
        "DMRS": torch.view_as_real(
            pbch_dmrs(cells[:, None].expand(-1, BLOCKS), torch.arange(BLOCKS).expand(CELLS, -1))
        ).numpy(),
    }
    n = np.arange(LENGTH)
    one = [1, 0, 0, 0, 0, 0, 0]
    first = max_len_seq(7, [0, 1, 1, 0, 1, 1, 1], LENGTH, [4])[0]
    x0, x1 = max_len_seq(7, one, LENGTH, [4])[0], max_len_seq(7, one, LENGTH, [1])[0]
    theirs = {"PSS": 1.0 - 2 * first[(n + 43 * np.arange(3)[:, None]) % LENGTH]}
    signs = []
    for cell in range(CELLS):
        n1, n2 = divmod(cell, 3)
        m0, m1 = 15 * (n1 // 112) + 5 * n2, n1 % 112
        signs.append((1.0 - 2 * x0[(n + m0) % LENGTH]) * (1 - 2 * x1[(n + m1) % LENGTH]))
    theirs["SSS"] = np.stack(signs)
    long = max_len_seq(31, [1] + [0] * 30, 1600 + 288, [3])[0]
    rows = []
    for cell in range(CELLS):
        for i in range(1, BLOCKS + 1):
            start = (i * (cell // 4 + 1) << 11) + (i << 6) + cell % 4
            state = [start >> bit & 1 for bit in range(31)]
            rows.append((long ^ max_len_seq(31, state, 1600 + 288, [1, 2, 3])[0])[1600:])
    theirs["DMRS"] = (1.0 - 2 * np.stack(rows).reshape(CELLS, BLOCKS, 144, 2)) / math.sqrt(2)
    apart = sum(int((np.abs(ours[name] - theirs[name]) > 1e-6).sum()) for name in ours)
    name = "PSS, SSS of 1008 cells, DMRS of 8 blocks each: numbers unlike scipy's registers"
    result.check(name, apart, 0)
    digests = {
        name: hashlib.sha256((x < 0).astype(np.uint8).tobytes()).hexdigest()
        for name, x in ours.items()
    }
    name = "… of the three, how many have another SHA-256 than py3gpp's"
    result.check(name, sum(digests[name] != PY3GPP[name] for name in PY3GPP), 0)


def _receiver(result: Result, seed: int) -> None:
    """Modulation, correlation, EPNRE and wavelets beside numpy, scipy and PyWavelets, float64."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(CELLS, (CHECKED,), generator=generator)
    grid = ssb_grid(cells, generator)
    bins = np.zeros((CHECKED, 4, 256), complex)
    bins[:, :, (np.arange(240) - 120) % 256] = grid.numpy()
    body = np.fft.ifft(bins, axis=2) * 16
    air = np.concatenate([body[:, :, -18:], body], 2).reshape(CHECKED, -1)
    off = _relative(ofdm_modulate(grid, TRANSFORM).numpy(), air)
    result.check("OFDM by products off numpy's FFT, relative", off, product_bound(1e-5, 4))

    records = simulate_ssb(CHECKED, seed)
    iq = records.iq.numpy().astype(np.complex128)
    found = pss_correlation(records.iq, TRANSFORM)
    energy = np.sqrt((np.abs(iq) ** 2).sum(1))
    values = np.empty((CHECKED, 3, 256))
    for n2 in range(3):
        line = np.zeros(256, complex)
        line[(np.arange(FIRST, FIRST + LENGTH) - 120) % 256] = pss(n2).numpy()
        shape = np.fft.ifft(line)
        shape /= np.linalg.norm(shape)
        for row in range(CHECKED):
            values[row, n2] = np.abs(correlate(iq[row, :511], shape, "valid")) / energy[row]
    bound = product_bound(1e-5, 4)
    off = _relative(found.values.numpy(), values)
    result.check("correlation by products off scipy's, relative", off, bound)
    peaks = values[:, :, :160].reshape(CHECKED, -1).argmax(1)
    wrong = (found.n2.numpy() != peaks // 160) | (found.timing.numpy() != peaks % 160)
    result.check("… records with another peak", wrong.sum(), 0)

    ratios = epnre(records.iq, found.timing, TRANSFORM).numpy()
    null, occupied = [], []
    for row, t0 in enumerate(peaks % 160):
        powers = []
        for symbol in (0, 2):
            start = t0 - 2 + symbol * 274
            spectrum = np.fft.fft(iq[row, start : start + 256])
            powers.append(np.abs(spectrum[(np.arange(240) - 120) % 256]) ** 2)
        null.append([*powers[0][:56], *powers[0][183:], *powers[1][48:56], *powers[1][183:192]])
        occupied.append(np.mean([p[56:183].mean() for p in powers]))
    expected = np.array(null) / np.array(occupied)[:, None]
    # Amplitudes, in units of the occupied elements'. The magnitudes of the 512 terms of a real part
    # add up to about 12 of these, those of both parts to 16 in the norm.
    off = float(np.abs(np.sqrt(ratios) - np.sqrt(expected)).max())
    result.check("roots of EPNRE by products off numpy's, largest", off, product_bound(1e-5, 16))

    order = (peaks // 160)[:, None] + np.arange(3)
    logs = np.log10(np.pad(values, ((0, 0), (0, 0), (64, 0))) + 1e-4)
    lines = np.stack(
        [
            [logs[r, order[r, k] % 3, t0 : t0 + 128] for k in range(3)]
            for r, t0 in enumerate(peaks % 160)
        ]
    )
    # Before lag 0 correlations are none, 1e-4 in the logarithm.
    wavelet = [pywt.wavedec(lines, "db2", "periodization", level=2)[0].reshape(CHECKED, -1)]
    padded = np.pad(np.log10(expected + 1e-6), ((0, 0), (0, 2)), "edge")
    wavelet.append(pywt.wavedec(padded, "db2", "periodization", level=2)[0])
    exact = Correlation(
        torch.from_numpy(values).float(),
        torch.from_numpy(peaks // 160),
        torch.from_numpy(peaks % 160),
    )
    got = dwt_features(exact, torch.from_numpy(expected).float())
    off = _relative(got[:, :129].numpy(), np.concatenate(wavelet, 1))
    # Ten terms' errors cancel less than those of 64, by which the error of products is measured.
    result.check("wavelet features off PyWavelets', relative", off, product_bound(1e-5, 6))
    perfect = torch.zeros(CHECKED, SAMPLES, dtype=torch.complex64)
    perfect[:, GUARD : GUARD + 1096] = torch.from_numpy(air)
    floor = epnre(perfect, torch.full((CHECKED,), GUARD + 18), TRANSFORM).mean()
    # 20 dB below the weakest noise of the records.
    name = "EPNRE of blocks without noise and channel, by products, dB"
    result.check(name, 10 * math.log10(float(floor)), -57)


def _relative(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ------------------------------------------------------------------------------------- detection


def _trial(seed: int) -> Trial:
    first = 10 * seed
    records = {
        "wide": simulate_ssb(TRAIN, first),
        "weak": simulate_ssb(TRAIN, first + 1, WEAK),
        "test": simulate_ssb(TEST, first + 2, WEAK),
        "validation": simulate_ssb(TEST, first + 3),
        "strong": simulate_ssb(STRONG, first + 4, (-10.0, 10.0)),
    }
    x = {name: features(one.iq, TRANSFORM) for name, one in records.items()}
    trial = Trial(seed, records, x, fitted(records, x, seed))
    p, labels, stage = trial.detector(x["test"])
    single = trial.detector.first_probability(x["test"])
    trial.scores = {"single": single.numpy(), "DT-DDNN": p.numpy()}
    trial.scores["energy"] = x["test"][:, 129].double().numpy()
    trial.found = {"single": (single >= 0.5).numpy(), "DT-DDNN": labels.numpy()}
    trial.stage = stage.numpy()
    return trial


def fitted(
    records: dict[str, SSBRecords], x: dict[str, Tensor], seed: int, pattern: str = "dense",
    cascade: bool = False,
) -> DTDDNN:  # fmt: skip
    """Return a detector with the default thresholds, trained on features that are there."""
    detector = DTDDNN(transform=TRANSFORM, cascade=cascade)
    if pattern != "dense":
        sat.sparsify_(detector, "bdwp", pattern)
    wide, weak = records["wide"].jammed, records["weak"].jammed
    return detector.fit_features(x["wide"], wide, x["weak"], weak, seed=seed)


def _detection(result: Result, trials: list[Trial], quick: bool) -> None:
    gains, ahead, alarms, shares = [], [], [], []
    for one in trials:
        name = f"seed {one.seed}: "
        single, double = one.rates("single"), one.rates("DT-DDNN")
        gains.append(double[0] - single[0])
        alarms.append(double[1])
        shares.append(float((one.stage == 2).mean()))
        ahead.append(one.at_alarms("DT-DDNN") - one.at_alarms("single"))
        result.metrics |= {
            f"{name}single threshold: detection": single[0],
            f"{name}single threshold: false alarms": single[1],
            f"{name}DT-DDNN: detection": double[0],
            f"{name}DT-DDNN: false alarms": double[1],
            f"{name}DT-DDNN: share sent to DNN2": shares[-1],
            f"{name}detection at 5 % false alarms: DNN1": one.at_alarms("single"),
            f"{name}… DT-DDNN": one.at_alarms("DT-DDNN"),
            f"{name}… mean EPNRE": one.at_alarms("energy"),
        }
        p1 = one.detector.first_probability(one.x["validation"])
        low, high = choose_thresholds(p1, one.records["validation"].jammed)
        usual, one.detector.thresholds = one.detector.thresholds, (low, high)
        _, labels, stage = one.detector(one.x["test"])
        one.detector.thresholds = usual
        found = labels.numpy()
        result.metrics |= {
            f"{name}thresholds by purity: t_lo": low,
            f"{name}… t_hi": high,
            f"{name}… their detection": float(found[one.jammed].mean()),
            f"{name}… their false alarms": float(found[~one.jammed].mean()),
            f"{name}… their share sent to DNN2": float((stage == 2).double().mean()),
        }
    if not quick:
        name = f"15 to 30 dB: DT-DDNN's detection ahead of a single threshold's, mean of {SEEDS}"
        result.check(name, fmean(gains), 0.04, at_least=True)
        name = f"… at 5 % false alarms, mean of {SEEDS}"
        result.check(name, fmean(ahead), 0.01, at_least=True)
    result.check("15 to 30 dB: DT-DDNN's false alarms, most", max(alarms), 0.13)
    result.check("… share of records sent to DNN2, most", max(shares), 0.4)
    kinds, spans, strong = [], [], []
    for one in trials:
        test, found = one.records["test"], one.found["DT-DDNN"]
        kind, sjr = test.kind.numpy(), test.sjr_db.numpy()
        kinds.append([found[kind == place].mean() for place in range(len(KINDS))])
        spans.append([found[(sjr >= low) & (sjr < high)].mean() for low, high in SPANS])
        labels = one.detector(one.x["strong"])[1].numpy()
        there = one.records["strong"].jammed.numpy()
        strong.append((labels[there].mean(), labels[~there].mean()))
    for place, kind_name in enumerate(KINDS):
        result.metrics[f"DT-DDNN, {kind_name}: detection"] = fmean(row[place] for row in kinds)
    result.check("barrage: detection, least", min(row[0] for row in kinds), 0.9, at_least=True)
    name = "noise on the PSS: detection, least"
    result.check(name, min(row[2] for row in kinds), 0.95, at_least=True)
    for place, (low, high) in enumerate(SPANS):
        name = f"DT-DDNN, {low} to {high} dB: detection"
        result.metrics[name] = fmean(row[place] for row in spans)
    result.check("15 to 20 dB: detection, least", min(r[0] for r in spans), 0.9, at_least=True)
    falls = min(min(row[0] - row[1], row[1] - row[2]) for row in spans)
    result.check("… falls from span to span by, least", falls, 0, at_least=True)
    name = "-10 to 10 dB: detection, least"
    result.check(name, min(row[0] for row in strong), 0.99, at_least=True)
    result.metrics["DT-DDNN, -10 to 10 dB: false alarms"] = fmean(row[1] for row in strong)


def _network(
    x: Tensor, jammed: Tensor, test: Tensor, seed: int, epochs: int = EPOCHS
) -> tuple[Array, float]:
    """Train one network; return its logits on a test set, and CPU seconds."""
    start = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JammingDNN(x.shape[1])
        train(model, x, jammed, epochs=epochs, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(test).double().numpy(), time.process_time() - start


def _features(result: Result, trials: list[Trial]) -> None:
    """One network on all records, by correlation, by EPNRE and by both."""
    found: dict[str, list[float]] = {}
    for one in trials:
        both = torch.cat((one.x["wide"], one.x["weak"]))
        jammed = torch.cat((one.records["wide"].jammed, one.records["weak"].jammed))
        x, test = (one.detector.standardise(part) for part in (both, one.x["test"]))
        for name, columns in (
            ("correlation", slice(96)), ("EPNRE", slice(96, None)), ("one network", slice(None)),
        ):  # fmt: skip
            one.scores[name], _ = _network(x[:, columns], jammed, test[:, columns], one.seed)
            found.setdefault(name, []).append(one.at_alarms(name))
    for name, values in found.items():
        result.metrics[f"at 5 % false alarms, all records, {name}"] = fmean(values)
    for name in ("correlation", "EPNRE"):
        least = min(a - b for a, b in zip(found["one network"], found[name], strict=True))
        text = f"at 5 % false alarms: both features ahead of {name} alone, least"
        result.check(text, least, 0.05, at_least=True)


def _leaks(result: Result, trial: Trial) -> None:
    """What must not tell of a jammer: the level of a record, and labels that were shuffled."""
    accuracy = {}
    wide, test = trial.records["wide"], trial.records["test"]
    levels = [(one.iq.abs().double() ** 2).mean(1, keepdim=True).numpy() for one in (wide, test)]
    tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(levels[0], wide.jammed.numpy())
    accuracy["by power alone (a tree)"] = (tree.predict(levels[1]) == trial.jammed).mean(), 0.04
    order = torch.randperm(len(wide), generator=torch.Generator().manual_seed(trial.seed))
    x, seen = (trial.detector.standardise(trial.x[name]) for name in ("wide", "test"))
    logits, seconds = _network(x, wide.jammed[order], seen, trial.seed)
    accuracy["of DNN1 by shuffled labels"] = ((logits >= 0) == trial.jammed).mean(), 0.06
    result.metrics["CPU seconds of a network's training"] = seconds
    for name, (value, bound) in accuracy.items():
        result.check(f"accuracy {name}, off 0.5", abs(value - 0.5), bound)


def _peers(result: Result, trials: list[Trial]) -> None:
    """A network on raw samples; layers trained one after the other."""
    raw, cascade = [], []
    for one in trials:
        parts = [torch.view_as_real(one.records[name].iq).flatten(1) for name in ("wide", "weak")]
        jammed = torch.cat((one.records["wide"].jammed, one.records["weak"].jammed))
        test = torch.view_as_real(one.records["test"].iq).flatten(1)
        one.scores["raw IQ"], _ = _network(torch.cat(parts), jammed, test, one.seed, IQ_EPOCHS)
        raw.append(one.at_alarms("raw IQ"))
        one.scores["cascade"] = _score(fitted(one.records, one.x, one.seed, cascade=True), one)
        cascade.append(one.at_alarms("cascade"))
    result.check("at 5 % false alarms: network on raw IQ, most", max(raw), 0.15)
    result.metrics["at 5 % false alarms, DT-DDNN by cascade learning"] = fmean(cascade)


def _patterns(result: Result, trials: list[Trial]) -> None:
    for pattern in PATTERNS:
        found = []
        for one in trials:
            one.scores[pattern] = _score(fitted(one.records, one.x, one.seed, pattern), one)
            found.append(one.at_alarms(pattern))
        result.metrics[f"at 5 % false alarms, DT-DDNN {pattern}"] = fmean(found)
    dense = fmean(one.at_alarms("DT-DDNN") for one in trials)
    result.metrics["at 5 % false alarms, DT-DDNN dense"] = dense


def _score(detector: DTDDNN, trial: Trial) -> Array:
    p: Tensor = detector(trial.x["test"])[0]
    return np.asarray(p.numpy())
