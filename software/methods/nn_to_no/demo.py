"""Acceptance figures: layers against integrals by scipy, a CNN asked on grids it never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import quad
from torch import Tensor, nn

from sat.methods import Result
from sat.methods.nn_to_no.convert import to_operator
from sat.methods.nn_to_no.convolutions import DifferentialConv, InterpolatedConv, SpectralConv
from sat.methods.nn_to_no.integrals import quadrature_attention
from sat.methods.nn_to_no.mesh import QuadratureMesh
from sat.methods.nn_to_no.resample import fourier_resample, in_out_interpolation
from sat.methods.problems.fields import relative_l2
from sat.methods.problems.periodic import on_grid, reaction, waves
from sat.methods.problems.training import fit

BASE, TAPS, WIDTH = 16, 5, 12
WAVE = (0.2, -0.5, 1.0, 0.3, -0.1)
TRAIN, TEST, HIGHEST, SEEDS = 200, 100, 3, 3
EPOCHS, BATCH, LR = 50, 20, 3e-3
GRIDS = (16, 32, 64)
DRAWN_TOO, DRAWN_TESTS = 128, 20
QUICK_EPOCHS = 15


def network(seed: int) -> nn.Sequential:
    """Return the CNN 1-12-12-1 of 5 x 5 taps on a periodic square."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in ((1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)):
            padding = {"padding": TAPS // 2, "padding_mode": "circular"}
            layers += [nn.Conv2d(before, after, TAPS, **padding), nn.GELU()]  # type: ignore[arg-type]
        return nn.Sequential(*layers[:-1])


def samples(seed: int, grids: Iterable[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the same 300 f and u on each grid: (300, 1, n, n) float32 each."""
    values = waves(TRAIN + TEST, HIGHEST, np.random.default_rng(seed))
    out = {}
    for n in grids:
        f = on_grid(values, n)
        out[n] = tuple(torch.from_numpy(x).float()[:, None] for x in (f, reaction(f)))
    return out  # type: ignore[return-value]


def train(
    data: dict[int, tuple[Tensor, Tensor]], seed: int, *, epochs: int, grids: tuple[int, ...]
) -> nn.Module:
    """Train at the base resolution, or on a grid drawn for each batch (then as an operator)."""
    net = network(seed)
    model = net if grids == (BASE,) else to_operator(net, BASE)
    generator = torch.Generator().manual_seed(seed)

    def loss(places: Tensor) -> Tensor:
        choice = int(torch.randint(len(grids), (), generator=generator))
        f, u = data[grids[choice]]
        return relative_l2(model(f[places]), u[places]).mean()

    optimizer = torch.optim.Adam(net.parameters(), LR)
    fit(loss, TRAIN, optimizer, epochs=epochs, batch=BATCH, generator=generator, schedule="cosine")
    return net


@torch.no_grad()
def error(model: nn.Module, data: tuple[Tensor, Tensor], count: int = TEST) -> float:
    """Return the mean relative L2 on test fields, one at a time to spare memory."""
    f, u = (x[TRAIN : TRAIN + count] for x in data)
    parts = [relative_l2(model(a), b) for a, b in zip(f.split(10), u.split(10), strict=True)]
    return float(torch.cat(parts).mean())


@dataclass(frozen=True)
class Way:
    """How a network that was trained at 16 x 16 is asked on another grid."""

    text: str
    make: Callable[[nn.Module], nn.Module]


WAYS = {
    "plain": Way("plain", lambda net: net),
    "hat": Way("converted (hat)", lambda net: to_operator(net, BASE, "hat")),
    "authors": Way("converted (authors)", lambda net: to_operator(net, BASE, "authors")),
    "resampled": Way("inputs and outputs resampled", lambda net: in_out_interpolation(net, BASE)),
}


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        Of the fields; networks are trained from this seed and the two that follow it.
    quick : bool
        One seed, 15 epochs, no grid finer than 32 x 32, no training on two grids.
    """
    result = Result()
    limits = _limits(result)
    grids = GRIDS[:2] if quick else GRIDS
    data = samples(seed, grids)
    seeds = range(seed, seed + (1 if quick else SEEDS))
    epochs = QUICK_EPOCHS if quick else EPOCHS
    nets = [train(data, s, epochs=epochs, grids=(BASE,)) for s in seeds]
    errors: dict[tuple[str, int], float] = {}
    for name, way in WAYS.items():
        models = [way.make(net) for net in nets]
        for n in grids:
            each = [error(model, data[n]) for model in models]
            errors[name, n] = fmean(each)
            for s, value in zip(seeds, each, strict=True):
                result.metrics[f"{way.text}, seed {s}: relative L2 at {n}"] = value
    if quick:
        ratio = errors["plain", 32] / errors["hat", 32]
        result.check("plain over converted (hat), error at 32", ratio, 2.0, at_least=True)
        result.left_out += [
            f"two of three seeds, {QUICK_EPOCHS} epochs of {EPOCHS}, 64 x 64",
            "training on two grids, bounds on errors but for their ratio",
        ]
        result.figures["resolution"] = _figure(errors, limits, nets[0], data)
        return result
    both = [train(data, s, epochs=EPOCHS, grids=(16, 32)) for s in seeds]
    for n in grids:
        each = [error(to_operator(net, BASE), data[n]) for net in both]
        errors["both", n] = fmean(each)
        for s, value in zip(seeds, each, strict=True):
            result.metrics[f"trained at 16 and 32 (hat), seed {s}: relative L2 at {n}"] = value
    _judge(result, errors)
    fine = samples(seed, (DRAWN_TOO,))[DRAWN_TOO]
    for name in ("plain", "hat", "resampled", "both"):
        model = both[0] if name == "both" else nets[0]
        way = WAYS["hat" if name == "both" else name]
        value = error(way.make(model), fine, DRAWN_TESTS)
        errors[name, DRAWN_TOO] = value
        text = "trained at 16 and 32 (hat)" if name == "both" else way.text
        result.metrics[f"{text}, seed {seed}, {DRAWN_TESTS} fields: relative L2 at 128"] = value
    result.figures["resolution"] = _figure(errors, limits, nets[0], data)
    return result


def _judge(result: Result, errors: dict[tuple[str, int], float]) -> None:
    mean = "relative L2, mean of 3 seeds"
    result.check(f"trained at 16, asked at 16: {mean}", errors["plain", 16], 0.05)
    for name in ("authors", "hat"):
        for n, bound in ((32, 0.12), (64, 0.14)):
            text = WAYS[name].text
            result.check(f"{text} at {n}: {mean}", errors[name, n], bound)
            ratio, title = errors["plain", n] / errors[name, n], f"plain over {text}, error at {n}"
            if name == "authors":
                result.check(title, ratio, 5.0, at_least=True)
            else:  # about 5 at 32: a hat widens its kernels, and nothing was trained for that
                result.metrics[title] = ratio
    ratio = errors["both", 64] / errors["hat", 64]
    result.check("trained at 16 and 32 over trained at 16 (hat), error at 64", ratio, 1.0)


# ------------------------------------------------------------------------------- exact figures

Limits = dict[str, tuple[tuple[int, ...], list[float]]]


def _limits(result: Result) -> Limits:
    """Compare layers on ever finer grids with integrals and a derivative."""
    limits: Limits = {}
    grids: tuple[int, ...] = (16, 32, 64, 128, 256)
    exact = kernel_integral()
    distances = [abs(_at_quarter(InterpolatedConv(convolution(), BASE), n) - exact) for n in grids]
    _order(result, limits, "interpolated kernel (hat)", grids, distances, 1.9)
    plain = _at_quarter(convolution(), 256)
    result.check("plain convolution at 256 off (sum w) f", abs(plain - sum(WAVE) * math.e), 1e-3)
    result.metrics["plain convolution at 256: distance to the integral"] = abs(plain - exact)
    for s in (2, 4):
        total = InterpolatedConv(convolution(), BASE, "authors").kernel([s]).sum()
        result.metrics[f"authors' kernel, s = {s}: sum of weights (of {sum(WAVE):g})"] = float(
            total.detach()
        )
    slope = 2 * math.pi * math.cos(math.pi / 4) * math.exp(math.sin(math.pi / 4))
    exact = slope * sum((j - TAPS // 2) * w for j, w in enumerate(WAVE))
    grids = (512, 1024, 2048)
    layer = DifferentialConv(convolution())
    with torch.no_grad():
        distances = [abs(float(layer(_bump(n))[0, 0, n // 8]) - exact) for n in grids]
    _order(result, limits, "differential kernel", grids, distances, 0.6)
    grids = (16, 32, 64, 128, 256)
    exact = attention_ratio()
    distances = [abs(attention(n, True) - exact) for n in grids]
    _order(result, limits, "attention with weights", grids, distances, 1.9)
    blind = [abs(attention(n, False) - exact) for n in grids]
    limits["attention without weights"] = (grids, blind)
    result.metrics["attention without weights at 256: distance"] = blind[-1]
    ratio = blind[-1] / distances[-1]
    result.check("attention without weights over with, distance at 256", ratio, 50, at_least=True)
    result.check("spectral convolution, 16 against 64 points, off", spectral_difference(), 1e-5)
    return limits


def _order(
    result: Result, limits: Limits, name: str, grids: tuple[int, ...], distances: list[float],
    bound: float,
) -> None:  # fmt: skip
    limits[name] = (grids, distances)
    for n, distance in zip(grids, distances, strict=True):
        result.metrics[f"{name}, {n} points: distance to its limit"] = distance
    order = min(math.log2(a / b) for a, b in zip(distances, distances[1:], strict=False))
    result.check(f"{name}: lowest order", order, bound, at_least=True)


def convolution() -> nn.Conv1d:
    """Return the five taps w on a periodic line, float64."""
    conv = nn.Conv1d(
        1, 1, TAPS, padding=TAPS // 2, padding_mode="circular", bias=False, dtype=torch.float64
    )
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(WAVE, dtype=torch.float64))
    return conv


def _bump(n: int) -> Tensor:
    x = torch.arange(n, dtype=torch.float64) / n
    return torch.exp(torch.sin(2 * math.pi * x))[None, None]


@torch.no_grad()
def _at_quarter(layer: nn.Module, n: int) -> float:
    return float(layer(_bump(n))[0, 0, n // 4])


def kernel_integral() -> float:
    """Return ∫ κ(y) e^(sin 2π (1/4 + y)) dy, κ piecewise linear through w / h at taps of 1/16."""
    h = 1 / BASE
    knots = [(j - TAPS // 2) * h for j in range(-1, TAPS + 1)]
    heights = [0.0, *(w / h for w in WAVE), 0.0]

    def integrand(y: float) -> float:
        return float(np.interp(y, knots, heights)) * math.exp(math.sin(2 * math.pi * (0.25 + y)))

    return float(quad(integrand, knots[0], knots[-1], points=knots[1:-1], epsabs=1e-12)[0])


def attention_ratio() -> float:
    """Return ∫ e^(f(x) f(y)) f(y) dy / ∫ e^(f(x) f(y)) dy at x = 0.3 for f = sin 2πx + x."""

    def f(x: float) -> float:
        return math.sin(2 * math.pi * x) + x

    top, bottom = (
        quad(lambda y, p=p: math.exp(f(0.3) * f(y)) * f(y) ** p, 0, 1, epsabs=1e-12)[0]
        for p in (1, 0)
    )
    return float(top / bottom)


def attention(n: int, weighted: bool) -> float:
    """Return attention at x = 0.3 over n points that crowd at 0, (i / (n - 1))²."""
    x = torch.linspace(0, 1, n, dtype=torch.float64) ** 2
    f = (torch.sin(2 * math.pi * x) + x)[:, None]
    weights = QuadratureMesh.from_points_1d(x).weights
    asked = torch.tensor([[math.sin(0.6 * math.pi) + 0.3]], dtype=torch.float64)
    return float(quadrature_attention(asked, f, f, weights if weighted else torch.ones(n)))


def spectral_difference() -> float:
    """Return how far a spectral layer of a band-limited field is apart on two grids, float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SpectralConv(2, 3, (4, 4))
        field = torch.randn(1, 2, 7, 7)
    with torch.no_grad():
        coarse, fine = (layer(fourier_resample(field, n)) for n in (16, 64))
        return float((fine[..., ::4, ::4] - coarse).abs().max() / coarse.abs().max())


# ------------------------------------------------------------------------------------- picture


def _figure(
    errors: dict[tuple[str, int], float],
    limits: Limits,
    net: nn.Module,
    data: dict[int, tuple[Tensor, Tensor]],
) -> Figure:
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    upper, lower = halves
    left, right = upper.subplots(1, 2)
    texts = {name: way.text for name, way in WAYS.items()} | {"both": "trained at 16 and 32 (hat)"}
    for name, text in texts.items():
        points = sorted((n, value) for (way, n), value in errors.items() if way == name)
        if points:
            left.loglog(*zip(*points, strict=True), "o-", label=text)
    left.set(xlabel="points an axis", ylabel="relative L2, test")
    grids = sorted({n for _, n in errors})
    left.set_xticks(grids, [str(n) for n in grids])
    left.minorticks_off()
    left.set_ylim(top=12)  # room for the legend
    left.legend(fontsize=8)
    for name, (counts, distances) in limits.items():
        right.loglog(counts, distances, "o-", label=name)
    right.set(xlabel="points", ylabel="distance to the limit")
    right.set_ylim(top=0.5)
    right.legend(fontsize=8)
    n = max(data)
    f, u = (x[TRAIN : TRAIN + 1] for x in data[n])
    with torch.no_grad():
        fields = {
            f"u at {n} x {n}": u,
            "plain network": net(f),
            "converted (hat)": to_operator(net, BASE)(f),
        }
    reach = float(u.abs().max())
    panels: np.ndarray = lower.subplots(1, 3)
    for axes, (title, field) in zip(panels, fields.items(), strict=True):
        _draw_field(axes, field[0, 0], title, reach)
    lower.colorbar(panels[0].images[0], ax=list(panels))
    return figure


def _draw_field(axes: Axes, field: Tensor, title: str, reach: float) -> None:
    axes.imshow(
        field.numpy().T, origin="lower", extent=(0, 1, 0, 1), vmin=-reach, vmax=reach, cmap="RdBu_r"
    )
    axes.set_title(title, fontsize=10)
