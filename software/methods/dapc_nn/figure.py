"""The demo's picture: signals and their polynomials, Gram matrices, errors, Sobol indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sat.methods.dapc_nn.functions import Moments, ishigami_moments
from sat.methods.dapc_nn.layer import DaPCLayer
from sat.methods.dapc_nn.network import DaPCNN


@dataclass
class Shown:
    """What is drawn: a network before and after training on x (N, 3), and what was measured."""

    start: DaPCNN
    trained: DaPCNN
    x: Tensor
    moments: Moments
    sizes: Sequence[int]
    errors: dict[str, list[float]]


def draw(shown: Shown) -> Figure:
    """Return the picture; without errors, their panel is left out."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grams = ["monomials", "product", "joint"]
    if shown.errors:
        lower = [name for name in [*grams, "sobol"] for _ in range(3)]
    else:
        lower = [name for name in grams for _ in range(4)]
    right = "errors" if shown.errors else "sobol"
    rows: list[Any] = [["before"] * 4 + ["after"] * 4 + [right] * 4, lower]
    panels: Any = figure.subplot_mosaic(rows)
    for name, model in (("before", shown.start), ("after", shown.trained)):
        _polynomials(panels[name], model, shown.x)
        panels[name].set_title(f"a hidden signal, {name} training", fontsize=9)
    _grams(panels, shown.trained, shown.x)
    if shown.errors:
        axes = panels["errors"]
        for name, values in shown.errors.items():
            axes.loglog(shown.sizes, values, "o-", markersize=3, label=name)
        axes.set_xticks(list(shown.sizes), [str(size) for size in shown.sizes])
        axes.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
        axes.minorticks_off()
        axes.set(xlabel="runs N", ylabel="error")
        axes.legend(fontsize=7)
    axes = panels["sobol"]
    exact, places = ishigami_moments(), np.arange(3)
    for shift, kind in ((-0.2, "first"), (0.2, "total")):
        axes.bar(places + shift, getattr(shown.moments, kind), 0.36, label=kind)
        axes.plot(places + shift, getattr(exact, kind), "k_", markersize=14)
    axes.set_xticks(places, ["x1", "x2", "x3"])
    axes.set_title("Sobol indices; lines: exact", fontsize=9)
    axes.legend(fontsize=7)
    return figure


@torch.no_grad()
def _polynomials(axes: Axes, model: DaPCNN, x: Tensor) -> None:
    signal = model.activation(model.layers[0](x))[:, :1]
    basis = type(model.last.polynomials)(4).fit(signal)
    axes.hist(signal[:, 0].numpy(), 40, density=True, color="0.85")
    low, high = float(basis.low), float(basis.high)
    line = torch.linspace(low, high, 200, dtype=torch.float64)[:, None]
    for k, values in enumerate(basis.univariate(line)[:, 1:, 0].mT, 1):
        axes.plot(line[:, 0], values, label=f"P{k}", linewidth=1)
    axes.set(ylim=(-4, 5), xlabel="x")
    axes.legend(fontsize=7, ncol=4, loc="upper center")


@torch.no_grad()
def _grams(panels: Any, model: DaPCNN, x: Tensor) -> None:
    """Draw mean Ψ Ψᵀ of the hidden signals: of monomials, of both bases."""
    signals = model.activation(model.layers[0](x))
    n = signals.shape[1]
    plain = DaPCLayer(n, 1, 2)
    plain.refresh(signals)
    monomials = torch.stack([(signals**alpha).prod(1) for alpha in plain.indices.double()], 1)
    grams = {
        "monomials": monomials.mT @ monomials / len(x),
        "product": plain.gram(signals),
        "joint": model.last.gram(signals),
    }
    for name, gram in grams.items():
        panels[name].imshow(gram, vmin=-1, vmax=1, cmap="RdBu_r")
        panels[name].set_title(f"mean of Ψ Ψᵀ, {name}", fontsize=9)
        panels[name].set(xticks=[], yticks=[], xlabel="red 1, white 0, blue -1")
