"""The demo's picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from sat.methods.nearfield_mimo.reference import Real


@dataclass
class Shown:
    """What is drawn.

    Parameters
    ----------
    views : dict
        Volumes (nx, ny, nz) of one scene, by name.
    snrs : list of float
        Decibels.
    over : dict
        PSNR in dB at these, by name.
    empty : float
        PSNR of the empty volume.
    responses : dict
        Places (metres) and the image of a point there, by the number of frequencies.
    curve : list of float
        Deep2S's error by epoch.
    extent : tuple
        x's (and y's) and z's ends, metres.
    """

    views: dict[str, Real]
    snrs: list[float]
    over: dict[str, list[float]]
    empty: float
    responses: dict[int, tuple[Real, Real]]
    curve: list[float]
    extent: tuple[tuple[float, float], tuple[float, float]]


def picture(shown: Shown) -> Figure:
    """Draw projections of one scene, and quality over noise, a point's image, training."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    upper, lower = np.atleast_1d(figure.subfigures(2, 1, height_ratios=[1.25, 1]))  # type: ignore[arg-type]
    sides, depths = shown.extent
    grid = upper.subplots(2, len(shown.views))
    for column, (name, volume) in enumerate(shown.views.items()):
        for row, (axis, label, high) in enumerate(((2, "y, m", sides), (1, "z, m", depths))):
            axes = grid[row, column]
            image = axes.imshow(
                volume.max(axis).T, origin="lower", extent=(*sides, *high), aspect="auto",
                vmin=0, vmax=1, cmap="magma",
            )  # fmt: skip
            axes.set(xticks=[-0.1, 0, 0.1], xlabel="x, m" if row else "")
            if column:
                axes.set_yticks([])
            else:
                axes.set_ylabel(label)
        grid[0, column].set_title(name)
    upper.colorbar(image, ax=grid, shrink=0.6, label="magnitude, largest along a line")
    noise, response, training = lower.subplots(1, 3)
    for name, values in shown.over.items():
        noise.plot(shown.snrs, values, "o-", label=name)
    noise.axhline(shown.empty, color="k", linestyle=":", label="empty")
    noise.set(xlabel="SNR, dB (trained at 30)", ylabel="PSNR, dB")
    noise.legend(fontsize=8)
    for freqs, (z, image) in shown.responses.items():
        response.plot(1e3 * z, 20 * np.log10(image), label=f"{freqs} frequencies")
    response.axvspan(-6.25, 6.25, color="k", alpha=0.1, label="c / 2B")
    response.set(xlabel="z off the point, mm", ylabel="its image, dB", ylim=(-40, 14))
    response.legend(fontsize=8, loc="upper right")
    text = f"Deep2S, {len(shown.curve)} epochs"
    training.semilogy(range(1, len(shown.curve) + 1), shown.curve, label=text)
    training.set(xlabel="epoch", ylabel="squared error a voxel, training")
    training.legend(fontsize=7)
    return figure
