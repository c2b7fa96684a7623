"""Stabilisation diagrams side by side, mode shapes, MAC matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import signal

from sat.methods.next_lf.beams import Structure
from sat.methods.next_lf.identify import OMAResult
from sat.methods.next_lf.modes import mac

RATE, SHOWN = 512.0, 5


def draw(
    beam: Structure,
    band: tuple[float, float],
    records: torch.Tensor,
    results: Sequence[tuple[str, OMAResult]],
) -> Figure:
    """Return the picture; shapes and MAC are of the first of the results."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2), squeeze=False)[:, 0]
    freq, power = signal.welch(records.numpy(), RATE, nperseg=4096)
    decibels = 10 * np.log10(power.sum(0))
    for number, (axes, (name, result)) in enumerate(
        zip(upper.subplots(1, len(results), sharey=True), results, strict=True)
    ):
        _diagram(axes, name, result, freq, decibels)
        axes.set_xlim(0, band[1])
        if not number:
            axes.set_ylabel("order")
            axes.legend(fontsize=7, loc=(0.49, 0.02))
    modes = results[0][1].modes
    *shapes, matrix = lower.subplots(1, SHOWN + 1)
    x = np.arange(beam.shapes.shape[1] + 1)
    for number, axes in enumerate(shapes):
        hz, shape = float(beam.freq_hz[number]), beam.shapes[number]
        axes.plot(x, [0, *(shape / shape[-1]).tolist()], color="grey", linewidth=3, label="beam")
        near = [m for m in modes if abs(m.freq_hz / hz - 1) < 0.05]
        if near:
            mode = min(near, key=lambda m: abs(m.freq_hz - hz))
            axes.plot(x, [0, *(mode.shape / mode.shape[-1]).tolist()], "o-", markersize=3,
                      linewidth=1, label=results[0][0])  # fmt: skip
            axes.set_title(f"{mode.freq_hz:.2f} Hz, {100 * mode.damping:.2f} %\n(beam {hz:.2f} Hz)",
                           fontsize=8)  # fmt: skip
        axes.set(xlabel="sensor", xticks=(0, 5, 10), yticks=())
        if not number:
            axes.legend(fontsize=7)
    table = mac(torch.stack([m.shape for m in modes])[:, None], beam.shapes[:SHOWN]).numpy()
    matrix.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        matrix.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6,
                    color="white" if value > 0.5 else "black")  # fmt: skip
    matrix.set(xticks=range(SHOWN), xticklabels=range(1, SHOWN + 1), yticks=range(len(modes)),
               yticklabels=[f"{m.freq_hz:.0f}" for m in modes], xlabel="beam's mode")  # fmt: skip
    matrix.set_title("MAC", fontsize=8)
    return figure


def _diagram(
    axes: Axes, name: str, result: OMAResult, freq: np.ndarray, decibels: np.ndarray
) -> None:
    behind = axes.twinx()
    behind.plot(freq, decibels, color="lightgrey", linewidth=0.7)
    behind.set_yticks(())
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for mode in result.modes:
        axes.axvline(mode.freq_hz, color="C1", linewidth=0.8, alpha=0.5)
    for stable, style, label in ((False, "x", "pole"), (True, "o", "stable")):
        points = [
            (hz, row.order)
            for row in result.diagram
            for hz in row.modes.freq_hz[row.stable == stable].tolist()
        ]
        axes.plot(*zip(*points, strict=True), style, markersize=3, label=label,
                  color="C0" if stable else "silver")  # fmt: skip
    axes.set(xlabel="Hz", title=f"{name}, 0 dB: {len(result.modes)} modes")
