"""The picture: grids of jammed blocks, what a receiver sees of them, how well they are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from sat.methods.dt_ddnn.features import epnre, pss_correlation
from sat.methods.dt_ddnn.signal import KINDS, SSBRecords, simulate_ssb

if TYPE_CHECKING:
    from sat.methods.dt_ddnn.demo import Trial

NAMES = ("clean", "barrage", "narrow band", "noise on PSS", "replay")
SJR = 10.0
"""dB, of the blocks that are shown; the detector's are weaker."""


def draw(trial: Trial) -> Figure:
    """Return the picture of one seed's records and detectors."""
    figure = Figure(figsize=(10, 8.4), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=(1, 1.25, 1.35))
    shown = examples()
    _grids(parts[0], shown)
    correlation, energy, scores = parts[1].subplots(1, 3)
    _correlations(correlation, shown)
    _energies(energy, trial)
    _scores(scores, trial)
    curves, rates = parts[2].subplots(1, 2)
    _curves(curves, trial)
    _rates(rates, trial)
    return figure


def examples() -> SSBRecords:
    """Return a clean record and one of each jammer at 10 dB."""
    records = simulate_ssb(80, 5, (SJR, SJR))
    places = [int((records.kind == kind).nonzero()[0]) for kind in range(-1, len(KINDS))]
    return records[torch.tensor(places)]


def _grids(figure: Any, shown: SSBRecords) -> None:
    iq, timing = shown.iq.numpy(), pss_correlation(shown.iq).timing.numpy()
    axes = figure.subplots(1, len(NAMES), sharey=True)
    for row, (panel, name) in enumerate(zip(axes, NAMES, strict=True)):
        lines = []
        for symbol in range(4):
            start = timing[row] - 2 + symbol * 274
            spectrum = np.fft.fft(iq[row, start : start + 256])[(np.arange(240) - 120) % 256]
            lines.append(np.abs(spectrum) ** 2)
        power = np.array(lines).T
        picture = panel.imshow(
            10 * np.log10(power / power[56:183, [0, 2]].mean()), aspect="auto", origin="lower",
            vmin=-45, vmax=5, cmap="magma", interpolation="nearest",
        )  # fmt: skip
        panel.set_title(name, fontsize=9)
        panel.set(xticks=range(4), xlabel="symbol")
    axes[0].set_ylabel("subcarrier")
    figure.colorbar(picture, ax=list(axes), label="dB", pad=0.01)


def _correlations(axes: Axes, shown: SSBRecords) -> None:
    found = pss_correlation(shown.iq)
    for row in (0, 1, 3, 4):
        line = found.values[row, found.n2[row]].numpy()
        axes.semilogy(line, linewidth=0.8, color=f"C{row}", label=NAMES[row])
    other = (found.n2[4] + 1) % 3, (found.n2[4] + 2) % 3
    line = found.values[4, list(other)].amax(0).numpy()
    axes.semilogy(line, linewidth=0.8, linestyle=":", color="C4", label="replay, other PSS")
    axes.set(xlabel="lag, samples", title="correlation with the PSS", xlim=(20, 150))
    axes.set_ylim(3e-3, 1)
    axes.legend(fontsize=7)


def _energies(axes: Axes, trial: Trial) -> None:
    test = trial.records["test"]
    mean = epnre(test.iq, pss_correlation(test.iq).timing).mean(1).log10().mul(10).numpy()
    edges = np.linspace(-38, -5, 60).tolist()
    for kind, name in enumerate(NAMES, -1):
        values = mean[test.kind.numpy() == kind]
        axes.hist(values, edges, histtype="step", density=True, label=name, color=f"C{kind + 1}")
    axes.set(xlabel="mean EPNRE, dB", ylabel="density", title="15 to 30 dB", yscale="log")
    axes.set_ylim(2e-3, 3)
    axes.legend(fontsize=7)


def _scores(axes: Axes, trial: Trial) -> None:
    edges = np.linspace(0, 1, 41).tolist()
    for jammed, name in ((False, "clean"), (True, "jammed")):
        axes.hist(
            trial.scores["single"][trial.jammed == jammed], edges, histtype="step", label=name,
            color=f"C{int(jammed)}",
        )  # fmt: skip
    for threshold in trial.detector.thresholds:
        axes.axvline(threshold, color="k", linewidth=0.8, linestyle="--")
    axes.set(xlabel="DNN1's probability", ylabel="records", yscale="log", title="both thresholds")
    axes.legend(fontsize=8)


def _curves(axes: Axes, trial: Trial) -> None:
    for place, name in enumerate(
        name
        for name in ("DT-DDNN", "single", "one network", "EPNRE", "correlation", "energy", "raw IQ")
        if name in trial.scores
    ):
        false, true, _ = roc_curve(trial.jammed, trial.scores[name], drop_intermediate=False)
        axes.plot(false, true, linewidth=1, color=f"C{place}", label=name)
    axes.axvline(0.05, color="k", linewidth=0.8, linestyle=":")
    axes.set(xlabel="false alarms", ylabel="detection", title="15 to 30 dB", xlim=(0, 0.4))
    axes.legend(fontsize=7, loc="lower right")


def _rates(axes: Axes, trial: Trial) -> None:
    test, found = trial.records["test"], trial.found["DT-DDNN"]
    kind, sjr = test.kind.numpy(), test.sjr_db.numpy()
    edges = np.arange(15, 31, 3)
    for place, name in enumerate(NAMES[1:]):
        rates = [
            found[(kind == place) & (sjr >= low) & (sjr < low + 3)].mean() for low in edges[:-1]
        ]
        axes.plot(edges[:-1] + 1.5, rates, "o-", markersize=3, color=f"C{place + 1}", label=name)
    axes.axhline(
        found[~trial.jammed].mean(), color="C0", linestyle="--", linewidth=0.8, label="false alarms"
    )
    axes.set(xlabel="signal over jammer, dB", ylabel="DT-DDNN's detection", ylim=(0, 1.02))
    axes.legend(fontsize=7, loc="lower left")
