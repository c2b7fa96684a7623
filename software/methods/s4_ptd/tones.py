"""Digits read pixel by pixel, clean and under tones: S4D and S5 by where their modes start."""

from __future__ import annotations

import copy
import math
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import sat
from sat.data import load_data
from sat.methods import Result
from sat.methods.s4_ptd.diagonalize import Diagonalization, diagonalize_legs, legs_input
from sat.methods.s4_ptd.layer import S4PTDModel
from sat.methods.s4_ptd.s5 import S5, S5Model
from sat.methods.s4d import S4DBlock, S4DModel
from sat.methods.s4d.digits import CLASSES, D_MODEL, D_STATE, LAYERS, train_digits

SEEDS, FREQUENCIES, AMPLITUDE = 3, 33, 0.3 * math.sqrt(2)
"""A tone has three tenths of the pixels' standard deviation, which is 1."""
BLOCKS = 4
QUICK_EPOCHS = 3
QUICK_ACCURACY = 0.3
MODELS = {"lin": "S4D-Lin", "legs": "S4D-LegS", "ptd": "S4-PTD", "s5": "S5-PTD"}
BOUNDS = {"ptd": 0.85, "s5": 0.80}
PATTERNS = ("2:4", "2:8")


def optimised(n: int) -> Diagonalization:
    """Return HiPPO-LegS of n states, diagonalised with an optimised E of torch's random state."""
    return diagonalize_legs(n, legs_input(n), 0.1, "optimised")


def build(model: str) -> nn.Module:
    """Return a fresh model from torch's random state: a key of `MODELS`.

    All have 32 channels, 64 states and two layers, which share an optimised E.
    """
    sizes: dict[str, Any] = {"d_model": D_MODEL, "d_state": D_STATE}
    if model in ("lin", "legs"):
        return S4DModel(1, CLASSES, LAYERS, init=model, **sizes)
    start = optimised(D_STATE // BLOCKS if model == "s5" else D_STATE)
    e: dict[str, Any] = {"eps": start.norm, "perturbation": start.perturbation}
    if model == "s5":
        return S5Model(1, CLASSES, LAYERS, blocks=BLOCKS, **sizes, **e)
    return S4PTDModel(1, CLASSES, LAYERS, **sizes, **e)


def tones() -> Tensor:
    """Return frequencies from 0 to π radians a sample, (33,) float64."""
    return torch.linspace(0, math.pi, FREQUENCIES, dtype=torch.float64)


@torch.no_grad()
def accuracy(model: nn.Module, omega: float | None = None) -> float:
    """Return the test accuracy, 0 to 1, under a tone of random phases or without one.

    Parameters
    ----------
    model : torch.nn.Module
    omega : float, optional
        Radians a sample; the phases are the same for every model and frequency.
    """
    data = load_data("digits")
    x = data.test_x.flatten(2)
    if omega is not None:
        phase = 2 * math.pi * torch.rand(len(x), 1, 1, generator=torch.Generator().manual_seed(0))
        x = x + AMPLITUDE * torch.cos(omega * torch.arange(x.shape[-1]) + phase)
    return float((model(x).argmax(1) == data.test_y).double().mean())


def judge_quickly(result: Result, seed: int) -> None:
    """Train S4-PTD for a few epochs."""
    _, curve = train_digits(lambda: build("ptd"), seed, epochs=QUICK_EPOCHS)
    name = f"S4-PTD, test accuracy after {QUICK_EPOCHS} epochs, one seed"
    result.check(name, curve[-1], QUICK_ACCURACY, at_least=True)


def judge(result: Result, seed: int) -> None:
    """Train all models, on three seeds; judge them clean, report and draw them under tones."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    trained = None
    for model, text in MODELS.items():
        clean, rows = [], []
        for i in range(SEEDS):
            net, curve = train_digits(partial(build, model), seed + i)
            clean.append(curve[-1])
            rows.append([accuracy(net, float(omega)) for omega in tones()])
            if model == "s5":
                trained = trained or net
        result.metrics |= {
            f"{text}, test accuracy, mean": mean(clean),
            f"{text}, test accuracy, deviation": stdev(clean),
            f"{text}, under tones, mean": mean(mean(row) for row in rows),
            f"{text}, under the worst tone, mean of seeds": mean(min(row) for row in rows),
        }
        if model in BOUNDS:
            name = f"{text}, test accuracy, {SEEDS} seeds"
            result.check(name, mean(clean), BOUNDS[model], at_least=True)
        lines = torch.tensor(rows)
        (line,) = axes.plot(tones() / math.pi, lines.mean(0), label=text)
        axes.fill_between(
            tones() / math.pi, lines.amin(0), lines.amax(0), color=line.get_color(), alpha=0.2
        )
        axes.axhline(mean(clean), color=line.get_color(), linewidth=0.7, linestyle=":")
    axes.set(xlabel="frequency of the tone over the highest", ylabel="test accuracy")
    axes.set_title(f"mean and range of {SEEDS} seeds; dotted: without a tone", fontsize=10)
    axes.legend()
    result.figures["tones"] = figure
    assert trained is not None
    _prune(result, trained, seed)


@torch.no_grad()
def prune_system(layer: S5, pattern: str) -> S5:
    """Return a copy whose B and C are pruned to N:M along the depths of their products."""
    layer = copy.deepcopy(layer)
    layer.b.copy_(sat.prune(layer.b, pattern, axis=1).to_dense())
    outputs = torch.cat([layer.c[..., 0], layer.c[..., 1]], 1)
    outputs = sat.prune(outputs, pattern, axis=1).to_dense()
    layer.c.copy_(torch.stack(outputs.chunk(2, 1), -1))
    return layer


@torch.no_grad()
def _prune(result: Result, model: nn.Module, seed: int) -> None:
    """Report what N:M pruning of S5's B and C does, after training and before."""
    torch.manual_seed(seed)
    fresh = build("s5")
    u = torch.randn(8, D_MODEL, 64, generator=torch.Generator().manual_seed(seed))
    dense = [layer(u) for layer in _systems(fresh)]
    for pattern in PATTERNS:
        start = [prune_system(layer, pattern)(u) for layer in _systems(fresh)]
        off = max(float((a - b).norm() / b.norm()) for a, b in zip(start, dense, strict=True))
        result.metrics[f"S5-PTD, {pattern} of B and C at the start: change of outputs"] = off
    for pattern in PATTERNS:
        pruned = copy.deepcopy(model)
        for block in list(pruned.modules()):
            if isinstance(block, S4DBlock):
                assert isinstance(block.layer, S5)
                block.layer = prune_system(block.layer, pattern)
        name = f"S5-PTD, {pattern} of B and C once trained: test accuracy, seed {seed}"
        result.metrics[name] = accuracy(pruned)


def _systems(model: nn.Module) -> list[S5]:
    return [module for module in model.modules() if isinstance(module, S5)]
