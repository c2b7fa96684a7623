"""SSVI judged: scores against Monte Carlo and quadrature, noise against its law, digits.

Two settings of the deviations stand side by side. With one learning rate for means and deviations,
the authors' choice, deviations hardly leave where they start, and what is gained under a shift
comes of the prior; with a larger one they are learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import sklearn.datasets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.ssvi.layers import SparseBayesLayer, SparseBayesLinear
from sat.methods.ssvi.scores import removal_score
from sat.methods.ssvi.training import (
    expected_calibration_error,
    fit,
    negative_log_likelihood,
    predict,
    training_flops,
    using,
)

TRAIN = 1347
WIDTHS = (64, 128, 128, 10)
EPOCHS, QUICK_EPOCHS, DELTA = 60, 12, 20
SAMPLES = 20
SEEDS = 3
DENSITIES = (0.02, 0.05, 0.1, 0.25)
SHOWN = (0, 300, 900)
METHODS = {"ssvi": "SSVI", "static": "static mask", "rigl": "RigL, no deviations"}
WIDE: dict[str, Any] = {"sigma_init": 0.05, "rho_lr": 5.0, "kl_scale": 0.3}
WIDE_PRIOR: dict[str, Any] = {"sigma_init": 0.05, "rho_lr": 5.0, "prior_std": 0.2}
LAYER_OPTIONS = ("sigma_init", "prior_std")


@dataclass(frozen=True)
class Digits:
    """Digits, standardised by the training part, and the test part under noise."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    shifted_x: Tensor


@dataclass(frozen=True)
class Figures:
    """What a trained network is worth: accuracy, nats and calibration error, clean and shifted."""

    accuracy: float
    nll: float
    ece: float
    shifted_accuracy: float
    shifted_nll: float
    shifted_ece: float


def load_digits(seed: int) -> Digits:
    """Return 1347 and 450 digits, split by the seed; pixels (x - mean) / (deviation + 0.1).

    Pixels are in units of the brightest, so that those that are nearly always dark stay small.
    """
    bunch = sklearn.datasets.load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(bunch.target), generator=generator)
    x, y = (torch.tensor(part)[order] for part in (bunch.data / 16, bunch.target))
    x, count = x.float(), TRAIN
    center, width = x[:count].mean(0), x[:count].std(0) + 0.1
    x = (x - center) / width
    noise = torch.randn(len(x) - count, x.shape[1], generator=generator)
    return Digits(x[:count], y[:count], x[count:], y[count:], x[count:] + noise)


def build(**options: Any) -> nn.Sequential:
    """Return 64-128-128-10 of `SparseBayesLinear` from torch's random state."""
    parts: list[nn.Module] = []
    for inputs, outputs in zip(WIDTHS, WIDTHS[1:], strict=False):
        parts += [SparseBayesLinear(inputs, outputs, **options), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def train(
    seed: int, method: str = "ssvi", *, density: float | None = None, pattern: str | None = None,
    epochs: int = EPOCHS, **options: Any,
) -> tuple[nn.Sequential, Figures]:  # fmt: skip
    """Train on digits and judge; a key of `METHODS`, dense VI if the density is 1.

    Returns
    -------
    model : nn.Sequential
    figures : Figures
        Of 20 draws of the weights.
    """
    data = load_digits(seed)
    torch.manual_seed(seed)
    layer = {key: options.pop(key) for key in LAYER_OPTIONS if key in options}
    model = build(density=density, pattern=pattern, bayes=method != "rigl", **layer)
    if method == "rigl":
        options["criterion"] = "mean"
    fit(
        model, data.train_x, data.train_y, epochs=epochs, delta=DELTA, static=method == "static",
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip
    return model, judge(model, data)


def judge(model: nn.Module, data: Digits) -> Figures:
    """Return the figures of a trained network."""
    found = []
    for x in (data.test_x, data.shifted_x):
        p = predict(model, x, SAMPLES)
        hits = float((p.argmax(1) == data.test_y).double().mean())
        nll = negative_log_likelihood(p, data.test_y)
        found += [hits, nll, expected_calibration_error(p, data.test_y)]
    return Figures(*found)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Judge scores, noise, bookkeeping, and digits.

    Quick: 12 epochs of 60, SSVI, a static mask and dense VI, of one seed and density.
    """
    result = Result()
    _scores(result, seed)
    _noise(result, seed)
    _count(result, seed)
    if quick:
        _few(result, seed)
    else:
        _digits(result, seed)
    result.figures["masks"] = _draw_masks(seed)
    return result


# ------------------------------------------------------------------------------ scores and noise


def _scores(result: Result, seed: int, draws: int = 4_000_000) -> None:
    generator = torch.Generator().manual_seed(seed)
    theta = (0.3 + 0.4 * torch.randn(draws, generator=generator, dtype=torch.float64)).abs()
    mu, sigma = torch.tensor([0.3]), torch.tensor([0.4])
    size = float(removal_score(mu, sigma, "e_abs"))
    snr = float(removal_score(mu, sigma, "snr_abs"))
    off = abs(size / float(theta.mean()) - 1)
    result.check("E|theta| off Monte Carlo, mu 0.3, sigma 0.4, relative", off, 0.005)
    off = abs(snr / float(theta.mean() / theta.std()) - 1)
    result.check("SNR(|theta|) off Monte Carlo, relative", off, 0.005)
    sigma = torch.rand(10_000, generator=generator, dtype=torch.float64) + 0.01
    mu = sigma * 10 ** torch.empty_like(sigma).uniform_(-2, math.log10(30), generator=generator)
    ranks = [removal_score(mu, sigma, name).argsort() for name in ("snr", "snr_abs")]
    wrong = int((removal_score(mu, sigma, "snr_abs")[ranks[0]].diff() < 0).sum())
    result.check("inversions of snr_abs in the order of snr, 10,000 weights", wrong, 0)
    result.metrics["places where the two orders differ"] = int((ranks[0] != ranks[1]).sum())
    large = removal_score(torch.tensor([1e3, 1e4]), torch.ones(2), "snr_abs")
    off = float((large / torch.tensor([1e3, 1e4]) - 1).abs().max())
    result.check("SNR(|theta|) off r at r = 1e3 and 1e4, float32 weights", off, 1e-6)


@torch.no_grad()
def _noise(result: Result, seed: int, draws: int = 20_000) -> None:
    """Hold outputs of one input against mean and deviation by sums over its weights."""
    torch.manual_seed(seed)
    layer = SparseBayesLinear(64, 8, 0.25, sigma_init=0.3)
    x = torch.randn(64)
    weights = [(int(p) // 64, int(p) % 64) for p in layer.places]
    center, variance = [0.0] * 8, [1e-8] * 8
    for (row, column), mu, sigma in zip(
        weights, layer.mu.tolist(), layer.sigma.tolist(), strict=True
    ):
        center[row] += mu * float(x[column])
        variance[row] += (sigma * float(x[column])) ** 2
    out = layer(x.expand(draws, 64), sample=True)
    exact = torch.tensor(variance).sqrt()
    off = (out.mean(0) - torch.tensor(center)).abs() / (exact / math.sqrt(draws))
    result.check("mean of noisy outputs off, standard errors", float(off.max()), 3)
    off = (out.std(0) - exact).abs() / (exact / math.sqrt(2 * draws))
    result.check("deviation of noisy outputs off, standard errors", float(off.max()), 3)


def _count(result: Result, seed: int) -> None:
    """Train a little: counts stay, N:M groups stay full, and all else is 0."""
    data = load_digits(seed)
    wrong = touched = 0
    for options in ({"density": 0.1}, {"pattern": "2:8"}):
        torch.manual_seed(seed)
        model = build(**options)
        layers = [module for module in model if isinstance(module, SparseBayesLayer)]
        counts = [len(layer.places) for layer in layers]
        report = fit(model, data.train_x, data.train_y, epochs=3, delta=5)
        for layer, count in zip(layers, counts, strict=True):
            wrong += int(layer.mask.sum()) != count
            if layer.pattern is not None:
                wrong += int((layer.mask.view(-1, 8).sum(1) != 2).sum())
            touched += int((layer.scatter(layer.mu.detach())[~layer.mask] != 0).sum())
        wrong += any(len(u.dropped) != len(u.added) for r in report.updates for u in r.layers)
    result.check("layers and groups whose count of weights changed", wrong, 0)
    result.check("inactive weights that are not 0", touched, 0)


# --------------------------------------------------------------------------------------- digits


def _few(result: Result, seed: int) -> None:
    found = {}
    for name, method, density in (
        ("ssvi", "ssvi", 0.1), ("static", "static", 0.1), ("dense", "ssvi", 1.0)
    ):  # fmt: skip
        _, found[name] = train(seed, method, density=density, epochs=QUICK_EPOCHS)
        result.metrics |= {f"{name}, {QUICK_EPOCHS} epochs: test accuracy": found[name].accuracy}
    text = f"accuracy after {QUICK_EPOCHS} epochs, density 0.1, points"
    behind = 100 * (found["dense"].accuracy - found["ssvi"].accuracy)
    result.check(f"{text}: dense VI less SSVI", behind, 3)
    ahead = 100 * (found["ssvi"].accuracy - found["static"].accuracy)
    result.check(f"{text}: SSVI less a static mask", ahead, 1, at_least=True)
    result.left_out += [
        f"{QUICK_EPOCHS} epochs of {EPOCHS}, one seed of {SEEDS}, density 0.1 alone",
        "RigL, N:M patterns, calibration under shift, learned deviations",
    ]


def _digits(result: Result, seed: int) -> None:
    found: dict[tuple[str, float], list[Figures]] = {}
    models: dict[str, tuple[nn.Module, Digits]] = {}
    for density in DENSITIES:
        for method in METHODS:
            for i in range(SEEDS if density == 0.1 else SEEDS - 1):
                model, figures = train(seed + i, method, density=density)
                found.setdefault((method, density), []).append(figures)
                if density == 0.1 and i == 0:
                    models[METHODS[method]] = model, load_digits(seed)
    for i in range(SEEDS):
        model, figures = train(seed + i, density=1.0)
        found.setdefault(("dense", 1.0), []).append(figures)
        if i == 0:
            models["dense VI"] = model, load_digits(seed)
    _report(result, found)
    dense = [each.accuracy for each in found["dense", 1.0]]
    _judge_means(result, found, dense)
    _judge_shift(result, found)
    _patterns(result, seed, dense)
    _learned(result, seed)
    result.figures["densities"] = _draw_densities(found)
    result.figures["reliability"] = _draw_reliability(models)


def _report(result: Result, found: dict[tuple[str, float], list[Figures]]) -> None:
    for (method, density), rows in found.items():
        text = f"{METHODS.get(method, 'dense VI')}, density {density:g}, {len(rows)} seeds"
        for name in Figures.__annotations__:
            values = [getattr(row, name) for row in rows]
            result.metrics[f"{text}: {name.replace('_', ' ')}"] = mean(values)
            result.metrics[f"{text}: {name.replace('_', ' ')}, deviation"] = stdev(values)
    steps = EPOCHS * (TRAIN // 64)
    flops = [
        training_flops(build(density=d), steps=steps, delta=DELTA, batch=64) for d in (0.1, 1.0)
    ]
    result.metrics["FLOPs of training, density 0.1 over dense"] = flops[0] / flops[1]


def _judge_means(
    result: Result, found: dict[tuple[str, float], list[Figures]], dense: list[float]
) -> None:
    tenth = [each.accuracy for each in found["ssvi", 0.1]]
    behind = 100 * (mean(dense) - mean(tenth))
    result.check(f"accuracy: dense VI less SSVI at 0.1, mean of {SEEDS}, points", behind, 3)
    pairs = zip(tenth, [each.accuracy for each in found["static", 0.1]], strict=True)
    ahead = [100 * (a - b) for a, b in pairs]
    name = f"accuracy: SSVI less a static mask, 0.1, least of {SEEDS} seeds, points"
    result.check(name, min(ahead), 1, at_least=True)
    ahead = [100 * (found["ssvi", 0.05][0].accuracy - found["static", 0.05][0].accuracy)]
    name = "accuracy: SSVI less a static mask, 0.05, first seed, points"
    result.check(name, ahead[0], 2, at_least=True)


def _judge_shift(result: Result, found: dict[tuple[str, float], list[Figures]]) -> None:
    pairs = list(zip(found["rigl", 0.1], found["ssvi", 0.1], strict=True))
    nats = min(a.shifted_nll / b.shifted_nll for a, b in pairs)
    name = f"under shift, 0.1: nats of RigL over SSVI's, least of {SEEDS} seeds"
    result.check(name, nats, 1.8, at_least=True)
    errors = max(b.shifted_ece / a.shifted_ece for a, b in pairs)
    name = f"under shift, 0.1: calibration error of SSVI over RigL's, largest of {SEEDS} seeds"
    result.check(name, errors, 0.6)


def _patterns(result: Result, seed: int, dense: list[float]) -> None:
    behind = []
    for pattern, seeds in (("2:8", 2), ("2:4", 1)):
        for i in range(seeds):
            model, figures = train(seed + i, pattern=pattern)
            result.metrics[f"SSVI {pattern}, seed {seed + i}: accuracy"] = figures.accuracy
            if pattern == "2:8":
                behind.append(100 * (dense[i] - figures.accuracy))
        if pattern == "2:8":
            data = load_digits(seed + i)
            with torch.no_grad(), using(model, "mean"):
                plain = model(data.test_x)
                sat.sparsify_(model, "srste", pattern)
                compact = model(data.test_x)
            off = float((compact - plain).norm() / plain.norm())
            result.check("2:8: logits from compact copies off the masked model's", off, 2e-3)
    name = "accuracy: dense VI less SSVI 2:8, largest of 2 seeds, points"
    result.check(name, max(behind), 1)


def _learned(result: Result, seed: int) -> None:
    dense, sparse = (train(seed, density=d, **WIDE)[1] for d in (1.0, 0.1))
    name = "learned deviations, under shift: nats of SSVI 0.1 over dense VI's"
    result.check(name, sparse.shifted_nll / dense.shifted_nll, 1.15)
    own, plain = train(seed, density=0.1, **WIDE_PRIOR)[1], train(seed, "rigl", density=0.1)[1]
    name = "learned deviations, prior 0.2, in distribution: nats of SSVI 0.1 over RigL's"
    result.check(name, own.nll / plain.nll, 1)
    for text, figures in (("dense VI", dense), ("SSVI 0.1", sparse), ("SSVI, prior 0.2", own)):
        for key in ("accuracy", "nll", "ece", "shifted_nll", "shifted_ece"):
            text_key = f"learned deviations, {text}: {key.replace('_', ' ')}"
            result.metrics[text_key] = getattr(figures, key)


# ------------------------------------------------------------------------------------- pictures


def _draw_densities(found: dict[tuple[str, float], list[Figures]]) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (name, text) in zip(
        figure.subplots(1, 3),
        (("accuracy", "test accuracy"), ("shifted_nll", "nats under shift"),
         ("shifted_ece", "calibration error under shift")), strict=True,
    ):  # fmt: skip
        for method, label in METHODS.items():
            rows = [[getattr(r, name) for r in found[method, d]] for d in DENSITIES]
            axes.errorbar(
                DENSITIES, [mean(r) for r in rows], [stdev(r) for r in rows],
                marker="o", markersize=3, capsize=2, label=label,
            )  # fmt: skip
        values = [getattr(r, name) for r in found["dense", 1.0]]
        axes.errorbar(
            [1.0], [mean(values)], [stdev(values)], color="k", marker="s", label="dense VI"
        )
        axes.set(xscale="log", xlabel="density", ylabel=text)
        axes.set_xticks((*DENSITIES, 1), [f"{d:g}" for d in (*DENSITIES, 1)])
        axes.minorticks_off()
    axes.legend(fontsize=8)
    return figure


def _draw_masks(seed: int) -> Figure:
    """Draw how many weights each pixel has in the first layer, at three steps."""
    data = load_digits(seed)
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for axes, step in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        torch.manual_seed(seed)
        model = build(density=0.1)
        if step:
            epochs = max(1, step // (len(data.train_x) // 64))
            fit(model, data.train_x, data.train_y, epochs=epochs, delta=DELTA)
        first = model[0]
        assert isinstance(first, SparseBayesLinear)
        picture = axes.imshow(first.mask.sum(0).view(8, 8), vmin=0, vmax=25, cmap="viridis")
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"trained for {step} steps", fontsize=9)
    figure.colorbar(picture, ax=figure.axes, label="weights of a pixel, of 128")
    return figure


def _draw_reliability(models: dict[str, tuple[nn.Module, Digits]]) -> Figure:
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "k:", lw=0.8)
    for text, (model, data) in models.items():
        _draw_curve(axes, text, predict(model, data.shifted_x, SAMPLES), data.test_y)
    axes.set(xlabel="confidence under shift", ylabel="accuracy")
    axes.legend(fontsize=8)
    return figure


def _draw_curve(axes: Axes, text: str, p: Tensor, y: Tensor, bins: int = 10) -> None:
    confidence, choice = p.max(1)
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    points = [
        (float(confidence[number == b].mean()), float((choice == y)[number == b].double().mean()))
        for b in range(bins)
        if int((number == b).sum()) >= 5
    ]
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=text)
