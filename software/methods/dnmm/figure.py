"""The demo's picture: densities on a line, the training, contours in the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from sat.methods.dnmm.model import DNMM
from sat.methods.dnmm.truths import GEVMixture

Density = Callable[[Tensor], Tensor]
LEVELS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.14)


@dataclass
class Shown:
    """What is drawn: a mixture of x (N, 1) beside others, its training, densities of the plane."""

    truth: GEVMixture
    x: Tensor
    model: DNMM
    peers: dict[str, Density]
    watched: Sequence[tuple[float, list[float]]]
    plane: dict[str, Density]
    plane_box: Tensor | None


def draw(shown: Shown) -> Figure:
    """Return the picture; without densities of the plane, its upper row."""
    rows: list[Any] = [["line", "line", "likelihood", "integrals"]]
    if shown.plane:
        rows.append(list(shown.plane))
    figure = Figure(figsize=(10, 3.2 * len(rows)), layout="constrained")
    panels: Any = figure.subplot_mosaic(rows)
    _line(panels["line"], shown)
    likelihoods, integrals = zip(*shown.watched, strict=True)
    # Of the data as they are, not standardised.
    shift = float(shown.model.scale.log().sum())
    panels["likelihood"].plot([value - shift for value in likelihoods])
    panels["likelihood"].set(xlabel="step", ylabel="log-likelihood, before division")
    panels["integrals"].plot(list(integrals))
    panels["integrals"].axhline(1, color="0.5", linewidth=0.8)
    panels["integrals"].set(xlabel="step", ylabel="integrals of the components")
    for name, density in shown.plane.items():
        _contours(panels[name], name, density, shown.plane_box)
    return figure


@torch.no_grad()
def _line(axes: Axes, shown: Shown) -> None:
    line = torch.linspace(-3, 18, 800, dtype=torch.float64)[:, None]
    x = line[:, 0]
    axes.hist(shown.x[:, 0].numpy(), 60, density=True, color="0.88")
    parts = shown.model.components(line) * shown.model.weights
    for k, part in enumerate(parts.T):
        axes.fill_between(x, part, alpha=0.25, color=f"C{k + 4}", linewidth=0)
    for name, density in shown.peers.items():
        axes.plot(x, density(line), linewidth=1, label=name)
    axes.plot(x, shown.model.pdf(line), linewidth=1.4, color="C3", label="DNMM, its components")
    axes.plot(x, shown.truth.pdf(line), "k--", linewidth=1, label="truth")
    axes.set(xlabel="x", ylabel="density", xlim=(-3, 18), ylim=(0, 0.4))
    axes.set_title(f"{len(shown.x)} points", fontsize=9)
    axes.legend(fontsize=8)


@torch.no_grad()
def _contours(axes: Axes, name: str, density: Density, box: Tensor | None) -> None:
    side_x = torch.linspace(-3.5, 11, 120, dtype=torch.float64)
    side_y = torch.linspace(-4, 10, 120, dtype=torch.float64)
    values = density(torch.cartesian_prod(side_x, side_y)).view(120, 120)
    axes.contour(side_x, side_y, values.T, levels=LEVELS, linewidths=0.9)
    if box is not None and name == "DNMM":
        low, high = box.tolist()
        corner, sides = (low[0], low[1]), (high[0] - low[0], high[1] - low[1])
        axes.add_patch(Rectangle(corner, *sides, fill=False, linestyle=":", edgecolor="0.4"))
        axes.set(xlim=(low[0] - 1, high[0] + 1), ylim=(low[1] - 1, high[1] + 1))
        axes.set_title("DNMM; dotted: the box", fontsize=9)
    else:
        axes.set_title(name, fontsize=9)
