"""BinaryDM judged: its formulas exactly, then digits by 1-bit weights and 4-bit inputs.

All binary networks start from one trained in full precision; samples come from one noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from sat.methods import Result
from sat.methods.binarydm.binarize import binarize, initial_scales
from sat.methods.binarydm.cost import CostReport, cost_report
from sat.methods.binarydm.layers import BinaryLinear
from sat.methods.binarydm.mimic import LowRankMimic
from sat.methods.binarydm.plan import (
    ProgressiveSchedule,
    binarize_model,
    blocks_of,
    default_plan,
    middle_outward,
)
from sat.methods.binarydm.training import BinaryTraining, train_binary
from sat.methods.pndm import DenoiserMLP, Digits, add_noise, load_digit_vectors, velocity_loss
from sat.methods.pndm.demo import STEPS, distance_to, noise, sample_digits, train

BITS, BINARY_STEPS, BATCH, LR, SEEDS = 4, 800, 128, 1e-3, 3
QUICK_STEPS, QUICK_BINARY_STEPS = 300, 60
MIMIC_WEIGHT, INTERVAL, SAMPLER, NOISE_SEED = 0.1, 100, ("s-pndm", 50), 3
ROWS, INPUTS = 2000, 128


@dataclass
class Trained:
    """A binary network, its losses, and what it is judged by."""

    model: DenoiserMLP
    training: BinaryTraining
    excess: float
    distance: float


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Check formulas, then train digits by one and two bases.

    Parameters
    ----------
    seed : int
        Of data and networks; binary trainings take this one and the next two.
    quick : bool
        A barely trained network, one seed, no mimicking, no N:M.
    """
    result = Result()
    _gradients(result, seed)
    _levels(result, seed)
    _integers(result, seed)
    digits = load_digit_vectors(seed)
    teacher = train(digits, seed, QUICK_STEPS if quick else STEPS).eval()
    loss, distance = velocity_loss(teacher, digits.test), _distance(teacher, digits)
    result.metrics["full precision: loss of v, unseen"] = loss
    result.metrics["full precision: FD"] = distance
    plans = {
        "two bases": default_plan(teacher),
        "one basis": dict.fromkeys(default_plan(teacher), 1),
    }
    costs = {name: _cost(result, name, teacher, plan) for name, plan in plans.items()}
    steps, seeds = (QUICK_BINARY_STEPS, 1) if quick else (BINARY_STEPS, SEEDS)
    found: dict[str, list[Trained]] = {name: [] for name in plans}
    for each in range(seed, seed + seeds):
        for name, plan in plans.items():
            made = train_one(teacher, digits, plan, each, steps)
            found[name].append(made)
            result.metrics[f"{name}, seed {each}: loss of v above full precision"] = made.excess
            result.metrics[f"{name}, seed {each}: FD"] = made.distance
    _judge(result, found, quick=quick)
    shown = {name: made[0] for name, made in found.items()}
    if quick:
        result.left_out += [
            f"{STEPS - QUICK_STEPS:,} of {STEPS:,} steps of the full-precision network",
            f"{BINARY_STEPS - QUICK_BINARY_STEPS} of {BINARY_STEPS} steps of the binary ones",
            f"{SEEDS - 1} of {SEEDS} seeds; Fréchet distances, not judged on such networks",
            "mimicking, progressive start, N:M",
        ]
    else:
        shown |= _mimicking(result, teacher, digits, shown["two bases"], seed)
        sparse = train_one(teacher, digits, plans["two bases"], seed, steps, pattern="2:4")
        result.metrics["two bases, 2:4: loss of v above full precision"] = sparse.excess
        result.metrics["two bases, 2:4: FD"] = sparse.distance
    result.figures["digits"] = _picture(teacher, distance, shown, found, costs)
    return result


# ------------------------------------------------------------------------------------ formulas


def _gradients(result: Result, seed: int) -> None:
    """Hold autograd against the formulas of `binarize`, written out in numpy."""
    rng = np.random.default_rng(seed)
    w, g = rng.standard_normal((2, 40, 30))
    a1, a2 = rng.uniform(0.3, 1.5, (2, 40, 1))
    weight, alpha1, alpha2 = (torch.from_numpy(x).requires_grad_() for x in (w, a1, a2))
    binarize(weight, alpha1, alpha2).backward(torch.from_numpy(g))  # type: ignore[no-untyped-call]
    s1 = np.where(w >= 0, 1, -1)
    s2 = np.where(w - a1 * s1 >= 0, 1, -1)
    e1, e2 = np.abs(w) <= 1, np.abs(w - a1 * s1) <= 1
    expected = (
        a1 * e1 * g * (1 - a2 * e2) + a2 * e2 * g,
        (s1 * g * (1 - a2 * e2)).sum(1, keepdims=True),
        (s2 * g).sum(1, keepdims=True),
    )
    off = max(
        float(np.abs(given.grad.numpy() - formula).max())  # type: ignore[union-attr]
        for given, formula in zip((weight, alpha1, alpha2), expected, strict=True)
    )
    result.check("gradients of weights and scales off their formulas", off, 1e-10)


def _levels(result: Result, seed: int) -> None:
    """Normal weights: sqrt(1 - 2 / pi) of them is lost by one basis, 0.3612 by two."""
    w = noise(ROWS, INPUTS, seed)
    for bases, low, high in ((1, 0.595, 0.609), (2, 0.352, 0.368)):
        left = float((w - binarize(w, *initial_scales(w, bases))).norm() / w.norm())
        name = f"normal weights: share lost by {'one basis' if bases == 1 else 'two bases'}"
        result.metrics[name] = left
        middle = (low + high) / 2
        result.check(f"{name}, off {middle:.3f}", abs(left - middle), (high - low) / 2)


def _integers(result: Result, seed: int) -> None:
    """Products of codes and signs, wherever they run, against numpy's integers."""
    torch.manual_seed(seed)
    layer = BinaryLinear.from_float(torch.nn.Linear(INPUTS, 96), 2, BITS)
    x = noise(200, INPUTS, seed, torch.float32)
    q, step, b1, b2 = layer.codes(x)
    assert b2 is not None and layer.alpha2 is not None
    exact = [q.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T for b in (b1, b2)]
    apart = sum(
        int((functional.linear(q.float(), b.float()).numpy() != e).sum())
        for b, e in zip((b1, b2), exact, strict=True)
    )
    result.check("products of codes and signs: differences from integers", apart, 0)
    scales = [alpha.detach().double().numpy().T for alpha in (layer.alpha1, layer.alpha2)]
    whole = float(step) * (scales[0] * exact[0] + scales[1] * exact[1])
    whole = whole + layer.bias.detach().double().numpy()
    off = np.abs(layer(x).detach().double().numpy() - whole).max() / np.abs(whole).max()
    result.check("a layer of two bases off integers and scales, relative", off, 1e-6)


def _cost(result: Result, name: str, teacher: DenoiserMLP, plan: Mapping[str, int]) -> CostReport:
    model = binarize_model(deepcopy(teacher), plan, BITS)
    report = cost_report(model, (torch.zeros(1, teacher.dim), torch.zeros(1)))
    weights, bits = report.binary_weight_bits
    result.metrics[f"{name}: bits a binary weight, scales included"] = bits / weights
    result.metrics[f"{name}: bits, full precision over"] = report.bit_ratio
    result.metrics[f"{name}: operations, full precision over"] = report.operation_ratio
    if name == "two bases":
        result.check(
            f"{name}: bits of {weights:,} binary weights off 266,240", abs(bits - 266_240), 0
        )
        ratio = 32 * weights / bits
        result.check(f"{name}: 32 bits over those of a weight", ratio, 14.7, at_least=True)
    return report


# ------------------------------------------------------------------------------------- digits


def train_one(
    teacher: DenoiserMLP,
    digits: Digits,
    plan: Mapping[str, int],
    seed: int,
    steps: int,
    *,
    mimic: bool = False,
    progressive: bool = False,
    pattern: str | None = None,
) -> Trained:
    """Return a binary network trained from the teacher's weights."""
    model = deepcopy(teacher).train()
    binarize_model(model, plan, BITS, pattern=pattern)
    schedule = ProgressiveSchedule(middle_outward(model), INTERVAL) if progressive else None
    training = train_binary(
        model, digits.train, steps, BATCH, LR, torch.Generator().manual_seed(seed),
        schedule=schedule, mimic=make_mimic(teacher, model, MIMIC_WEIGHT) if mimic else None,
    )  # fmt: skip
    above = velocity_loss(model, digits.test) - velocity_loss(teacher, digits.test)
    return Trained(model, training, above, _distance(model, digits))


def make_mimic(teacher: DenoiserMLP, model: DenoiserMLP, weight: float) -> LowRankMimic:
    """Return what holds the outputs of a model's blocks to the teacher's."""
    names = [f"blocks.{i}" for i in range(len(blocks_of(teacher)))]

    def velocity(net: torch.nn.Module, x: Tensor, t: Tensor) -> Tensor:
        assert isinstance(net, DenoiserMLP)
        return net.velocity(x, t)

    return LowRankMimic(teacher, model, names, weight=weight, call=velocity)


def _samples(model: DenoiserMLP, count: int) -> Tensor:
    return sample_digits(model, NOISE_SEED, [SAMPLER], count)[SAMPLER].x


def _distance(model: DenoiserMLP, digits: Digits) -> float:
    return distance_to(digits.whole, _samples(model, 512))


def _judge(result: Result, found: Mapping[str, list[Trained]], *, quick: bool) -> None:
    two, one = found["two bases"], found["one basis"]
    ratio = max(a.excess / b.excess for a, b in zip(two, one, strict=True))
    name = "loss above full precision, two bases over one"
    if quick:
        result.check(f"{name}, {QUICK_BINARY_STEPS} steps", ratio, 1)
        return
    result.check(f"{name}, worst of {SEEDS} seeds", ratio, 0.85)
    gap = float(np.mean([a.distance - b.distance for a, b in zip(two, one, strict=True)]))
    result.check(f"FD, two bases less one, mean of {SEEDS} seeds", gap, 0)
    worst = max(made.distance for made in two)
    result.check(f"FD of two bases, worst of {SEEDS} seeds", worst, 1.0)


def _mimicking(
    result: Result, teacher: DenoiserMLP, digits: Digits, plain: Trained, seed: int
) -> dict[str, Trained]:
    """Train with mimicking, then progressively, too; hold features without it against theirs."""
    plan, made = default_plan(teacher), {}
    for name, progressive in (("two bases, LRM", False), ("two bases, LRM, progressive", True)):
        made[name] = train_one(
            teacher, digits, plan, seed, BINARY_STEPS, mimic=True, progressive=progressive
        )
        result.metrics[f"{name}: loss of v above full precision"] = made[name].excess
        result.metrics[f"{name}: FD"] = made[name].distance
    noised = add_noise(digits.whole, teacher.schedule, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        losses = [
            float(make_mimic(teacher, each.model, 1.0).loss(noised.x, noised.t))
            for each in (made["two bases, LRM"], plain)
        ]
    result.metrics["distance of features by LRM, without it"] = losses[1]
    result.check("distance of features, with LRM over without", losses[0] / losses[1], 0.7)
    return made


# ------------------------------------------------------------------------------------ picture


def _picture(
    teacher: DenoiserMLP,
    distance: float,
    shown: Mapping[str, Trained],
    found: Mapping[str, list[Trained]],
    costs: Mapping[str, CostReport],
) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(2.4, 1))
    top, bottom = (figure.add_subfigure(grid[row]) for row in (0, 1))
    losses, levels, bits = top.subplots(1, 3)
    for name, made in shown.items():
        curve = np.array(made.training.diffusion)
        width = max(1, len(curve) // 20)
        smooth = np.convolve(curve, np.ones(width) / width, "valid")
        losses.plot(np.arange(len(smooth)) + width, smooth, label=name, linewidth=1)
    losses.set(xlabel="step", ylabel="loss of v", title="training")
    losses.legend(fontsize=8)
    _draw_levels(levels, shown["two bases"].model)
    for name, report in costs.items():
        weights, used = report.binary_weight_bits
        bits.plot([used / weights] * len(found[name]), [m.distance for m in found[name]], "o")
        bits.annotate(name, (used / weights, found[name][0].distance), (7, 0), fontsize=8,
                      textcoords="offset points", va="center")  # fmt: skip
    bits.axhline(distance, color="0.5", linestyle=":", linewidth=1)
    bits.annotate("full precision, 32 bits", (1, distance), (0, 3), fontsize=8,
                  textcoords="offset points")  # fmt: skip
    bits.set(xlabel="bits a binary weight, with scales", ylabel="FD to digits", xlim=(0.9, 3))
    bits.set(title="bits against FD")
    panels = bottom.subplots(1, len(shown) + 1)
    for axes, (name, model) in zip(
        panels,
        [("full precision", teacher), *((name, made.model) for name, made in shown.items())],
        strict=True,
    ):
        pictures = functional.pad(_samples(model, 50).view(5, 10, 8, 8), (1, 1, 1, 1), value=-1)
        image = pictures.permute(0, 2, 1, 3).reshape(50, 100)
        axes.imshow(image.numpy(), cmap="gray_r", vmin=-1, vmax=1)
        axes.set_title(name, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _draw_levels(axes: Axes, model: DenoiserMLP) -> None:
    """Latent weights of a row, and the values that stand for them."""
    layer = model.get_submodule("blocks.0.inner")
    assert isinstance(layer, BinaryLinear) and layer.alpha2 is not None
    axes.hist(layer.weight[0].detach().numpy(), 30, color="0.8")
    one, _ = initial_scales(layer.weight[:1], 1)
    a1, a2 = (float(alpha[0].detach()) for alpha in (layer.alpha1, layer.alpha2))
    for place, (values, text) in enumerate(
        (
            ([float(one) * s for s in (-1, 1)], "one basis"),
            ([s * a1 + r * a2 for s in (-1, 1) for r in (-1, 1)], "two bases"),
        )
    ):
        for value in values:
            line = axes.axvline(value, color=f"C{1 - place}", linestyle=("--", "-")[place])
        line.set_label(text)
    axes.set(xlabel="weight", ylabel="count", title="a row of the first hidden layer")
    axes.legend(fontsize=8)
