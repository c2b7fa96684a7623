"""AuON judged: what its scalar can do, and how much of Muon's gain it keeps on a small GPT.

The answer is not flattering, and the checks say so: AuON is momentum SGD with normalised steps,
behind AdamW here; one Newton-Schulz step gives part of Muon's gain, five give it all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, median
from unittest import mock

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.auon.optimizer import AuON, HybridAuON, auon_direction, hybrid_direction
from sat.methods.auon.scalar import cosh_rms, cosh_rms_bounds, orthogonality
from sat.methods.problems.gpt import BETAS, STEPS, Training, make_gpt, train_gpt
from sat.methods.problems.orthogonal import COEFFICIENTS, newton_schulz
from sat.methods.problems.rounding import product_bound

SEEDS, CURVE_EVERY = 3, 25
QUICK_STEPS = 60
LAYER = "blocks.1.up.weight"
PATTERNS = ("2:4", "2:8")
MOMENTUM = 0.95

Make = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


class Watch:
    """What one layer's optimiser held: r of every step, and momentum after ``middle`` of them.

    Called by `train_gpt` after each step; optimisers without r leave it empty.
    """

    def __init__(self, middle: int) -> None:
        self.middle = middle
        self.scalars: list[float] = []
        self.momentum = torch.empty(0)

    def __call__(self, step: int, training: Training) -> None:
        state = training.optimizer.state[training.model.get_parameter(LAYER)]
        if "rms" in state:
            self.scalars.append(state["rms"])
            if step == self.middle:
                self.momentum = state["momentum"].clone()


@dataclass
class Contender:
    """An optimiser of the blocks' matrices, the learning rates it is tried with, and its runs.

    Attributes
    ----------
    text : str
    rates : tuple of float
        The best one's neighbours among them.
    make : callable
    losses : dict of float to float
        Test loss of the first seed by learning rate.
    runs : list of Training
        A run a seed at the best learning rate.
    watches : dict of float to Watch
        Of the first seed's runs, by learning rate.
    """

    text: str
    rates: tuple[float, ...]
    make: Make
    losses: dict[float, float] = field(default_factory=dict)
    runs: list[Training] = field(default_factory=list)
    watches: dict[float, Watch] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The learning rate of the lowest test loss."""
        return min(self.losses, key=lambda rate: self.losses[rate])

    @property
    def loss(self) -> float:
        """Mean test loss over the seeds, in nats a character."""
        return mean(run.loss for run in self.runs)


def contenders() -> dict[str, Contender]:
    """Return the optimisers that are compared; each one's grid has steps of about 3."""
    return {
        "muon": Contender(
            "Muon, 5 steps", (0.01, 0.03, 0.1),
            lambda m, lr: torch.optim.Muon(m, lr=lr, weight_decay=0.0, momentum=MOMENTUM),
        ),
        "hybrid": Contender(
            "Hybrid-AuON (paper), 1 step", (0.01, 0.03, 0.1),
            lambda m, lr: HybridAuON(m, lr),
        ),
        "adamw": Contender(
            "AdamW", (1e-3, 3e-3, 6e-3),
            lambda m, lr: torch.optim.AdamW(m, lr, betas=BETAS, weight_decay=0.0),
        ),
        "paper": Contender(
            "AuON (paper)", (0.01, 0.02, 0.05), lambda m, lr: AuON(m, lr, form="paper")
        ),
        "code": Contender(
            "AuON (code)", (0.03, 0.1, 0.3), lambda m, lr: AuON(m, lr, form="code")
        ),
    }  # fmt: skip


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Check the scalar and the spectra exactly, then train a GPT with five optimisers.

    Parameters
    ----------
    seed : int
        First of three; the learning rates are chosen on it.
    quick : bool
        Leave out the learning rates but one, two of the seeds, N:M and the comparison of losses;
        60 steps a run instead of 300.
    """
    result = Result()
    _spectra(result, seed)
    _scalar(result, seed)
    _scale(result)
    _muon_agrees(result, seed)
    compared = _compare(result, seed, quick)
    _against_sgd(result, seed, compared["paper"], quick)
    if quick:
        result.left_out += [
            "all learning rates but one, two of three seeds; 60 steps a run instead of 300",
            "N:M, and the comparison of losses",
        ]
    else:
        _judge(result, compared)
        _sparse(result, seed, compared)
    _cost(result)
    result.figures["losses"] = _figure(result, compared)
    return result


# ------------------------------------------------------------------------------- exact figures


def _scalar(result: Result, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outside = ends = 0.0
    for _ in range(1000):
        rows, cols = (int(n) for n in torch.randint(1, 40, (2,), generator=generator))
        g = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
        # Powers of the entries: from nearly flat to nearly one-hot.
        g = g.sign() * g.abs() ** float(4 * torch.rand((), generator=generator))
        # The 1e-7 in the norm is of no account then.
        g *= 1e6 / g.norm()
        r = _numpy_rms(g / g.norm())
        low, high = cosh_rms_bounds(rows * cols)
        ours = auon_direction(g)[1]
        outside = max(outside, low - ours, ours - high, abs(ours - r))
    for n in (1, 16, 4096):
        for gamma in (1.0, 1.5):
            flat = torch.full((n,), gamma / math.sqrt(n), dtype=torch.float64)
            hot = torch.zeros(n, dtype=torch.float64)
            hot[n // 2] = gamma
            bounds = cosh_rms_bounds(n, gamma)
            for x, bound in zip((flat, hot), bounds, strict=True):
                ends = max(ends, abs(cosh_rms(x) - bound), abs(_numpy_rms(x) - bound))
    result.check("r outside its bounds or off numpy's, worst of 1000 matrices", outside, 1e-12)
    result.check("r of flat and one-hot matrices off its bounds", ends, 1e-12)


def _numpy_rms(x: Tensor) -> float:
    return float(np.sqrt(np.mean(np.cosh(x.numpy()) ** 2)))


def trajectory(factor: float, form: str, steps: int = 20) -> Tensor:
    """Return the way of two float64 matrices under AuON, gradients multiplied by ``factor``.

    The loss, of bounded slope, has no products, so that nothing rounds but float64; it is large,
    for what is left of the scale is 1e-7 over the norm of the gradient.

    Returns
    -------
    torch.Tensor
        (steps, numbers): how far each is from where it began.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((12, 20), (20, 5))
    ]
    curvature = [torch.rand(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    began = [w.detach().clone() for w in weights]
    optimizer = AuON(weights, 0.3, form=form)
    way = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(
            (100 * c * (1 + w**2).sqrt()).sum() for c, w in zip(curvature, weights, strict=True)
        )
        loss.backward()  # type: ignore[union-attr]
        for w in weights:
            assert w.grad is not None
            w.grad *= factor
        optimizer.step()
        moves = [(w.detach() - b).flatten() for w, b in zip(weights, began, strict=True)]
        way.append(torch.cat(moves))
    return torch.stack(way)


def _scale(result: Result) -> None:
    for form, at_least in (("paper", False), ("code", True)):
        middle = trajectory(1.0, form)
        gaps = [
            float((trajectory(factor, form) - middle).norm() / middle.norm())
            for factor in (1e-3, 1e3)
        ]
        name = f"AuON ({form}), 20 steps with gradients x 1e-3 and 1e3, relative difference"
        value = min(gaps) if at_least else max(gaps)
        result.check(name, value, 0.1 if at_least else 1e-4, at_least=at_least)


def _spectra(result: Result, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    length = angle = condition = hybrid = 0.0
    for rows, cols in ((8, 24), (24, 8), (16, 16), (1, 5)):
        g = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
        rank_one = g[:, :1] * g[:1, :]
        for matrix in (g, 1e3 * g, 1e-3 * g, rank_one):
            u, _ = auon_direction(matrix)
            length = max(length, float(torch.linalg.svdvals(u)[0]))
            cosine = float((u * matrix).sum() / u.norm() / matrix.norm())
            angle = max(angle, 1 - cosine)
        before, after = (torch.linalg.svdvals(x) for x in (g, auon_direction(g)[0]))
        ratio = (after[0] / after[-1]) / (before[0] / before[-1])
        condition = max(condition, abs(float(ratio) - 1))
        s = torch.linalg.svdvals(g / (g.norm() + 1e-7)).numpy()
        a, b, c = COEFFICIENTS
        x, r = hybrid_direction(g)
        expected = np.sort(np.abs(a * s + b * s**3 + c * s**5))[::-1] / (r + 1e-8)
        hybrid = max(hybrid, float(np.abs(torch.linalg.svdvals(x).numpy() - expected).max()))
    result.check("AuON (paper): largest singular value of its update", length, 1.0)
    result.check("AuON (paper): 1 - cosine of update and momentum", angle, 1e-12)
    result.check("AuON (paper): condition number, relative change", condition, 1e-9)
    result.check(
        "Hybrid (paper): singular values off a s + b s^3 + c s^5 over r", hybrid,
        product_bound(1e-10, 16),
    )  # fmt: skip


def _muon_agrees(result: Result, seed: int) -> None:
    """Compare with torch's Muon, which casts to bfloat16; and with its code where it does not."""
    apart = muon_difference(seed)
    result.metrics["torch.optim.Muon's step (bfloat16), relative difference"] = apart
    with mock.patch.object(Tensor, "bfloat16", Tensor.clone):
        apart = muon_difference(seed)
    result.check("torch.optim.Muon's step without its cast, relative difference", apart, 1e-2)


def muon_difference(seed: int) -> float:
    """Return the largest relative difference of three steps of torch's Muon from ours."""
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for rows, cols in ((64, 64), (256, 64), (64, 256)):
        weight = nn.Parameter(torch.zeros(rows, cols))
        weight.grad = torch.randn(rows, cols, generator=generator)
        torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=MOMENTUM).step()
        # From a zero buffer, momentum and Nesterov leave a multiple of the gradient.
        ours = -newton_schulz(weight.grad) * math.sqrt(max(1, rows / cols))
        worst = max(worst, float((weight.detach() - ours).norm() / ours.norm()))
    return worst


# ------------------------------------------------------------------------------------ training


def _train(contender: Contender, seed: int, quick: bool) -> None:
    """Try the learning rates on the first seed, then the best one on the others."""
    steps = QUICK_STEPS if quick else STEPS

    def train(rate: float, seed: int, watch: Watch | None = None) -> Training:
        return train_gpt(
            lambda matrices: contender.make(matrices, rate),
            seed=seed, steps=steps, curve_every=10 if quick else CURVE_EVERY, on_step=watch,
        )  # fmt: skip

    trials = {}
    for rate in contender.rates[1:2] if quick else contender.rates:
        contender.watches[rate] = Watch(steps // 2)
        trials[rate] = train(rate, seed, contender.watches[rate])
    contender.losses = {rate: trial.loss for rate, trial in trials.items()}
    contender.runs = [trials[contender.best]]
    if not quick:
        contender.runs += [train(contender.best, seed + i) for i in range(1, SEEDS)]


def _compare(result: Result, seed: int, quick: bool) -> dict[str, Contender]:
    compared = contenders()
    for contender in compared.values():
        _train(contender, seed, quick)
        text, runs = contender.text, contender.runs
        for rate, loss in contender.losses.items():
            result.metrics[f"{text}, lr {rate:g}: test loss, seed {seed}"] = loss
        for i, trained in enumerate(runs[1:], 1):
            name = f"{text}, lr {contender.best:g}: test loss, seed {seed + i}"
            result.metrics[name] = trained.loss
        result.metrics[f"{text}: seconds a run"] = mean(run.seconds for run in runs)
        within = mean(run.optimizer_seconds for run in runs)
        result.metrics[f"{text}: seconds of them in the optimiser"] = within
    return compared


def _judge(result: Result, compared: dict[str, Contender]) -> None:
    loss = {name: contender.loss for name, contender in compared.items()}
    for name, contender in compared.items():
        result.metrics[f"{contender.text}: test loss, mean of {SEEDS} seeds"] = loss[name]
    for better, worse, gap in (("muon", "hybrid", 0.2), ("hybrid", "adamw", 0.03)):
        name = f"{compared[better].text} below {compared[worse].text}, nats"
        result.check(name, loss[worse] - loss[better], gap, at_least=True)
    result.check("AuON (paper): test loss, nats", loss["paper"], 2.25)
    result.check("AuON (paper) above AdamW, nats", loss["paper"] - loss["adamw"], 0.15)


def normalised_sgd_loss(rate: float, seed: int, steps: int) -> float:
    """Return the test loss of a GPT trained by ``torch.optim.SGD`` on normalised momentum.

    Momentum, Nesterov's form and the norm are written out here; r is left out.
    """

    class Normalised(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                grad = parameter.grad
                average = averages.setdefault(parameter, torch.zeros_like(grad))
                average += (1 - MOMENTUM) * (grad - average)
                ahead = (1 - MOMENTUM) * grad + MOMENTUM * average
                parameter.grad = ahead / ahead.square().sum().sqrt()
            super().step()

    averages: dict[nn.Parameter, Tensor] = {}
    return train_gpt(lambda m: Normalised(m, lr=rate), seed=seed, steps=steps).loss


def _against_sgd(result: Result, seed: int, paper: Contender, quick: bool) -> None:
    theirs = normalised_sgd_loss(paper.best, seed, QUICK_STEPS if quick else STEPS)
    gap = abs(paper.runs[0].loss - theirs)
    result.check("AuON (paper) against normalised SGD: test loss, nats apart", gap, 0.01)


def _sparse(result: Result, seed: int, compared: dict[str, Contender]) -> None:
    """Train with N:M weights in FF and BP; the optimisers see straight-through gradients."""
    for name in ("hybrid", "paper"):
        contender = compared[name]
        for pattern in PATTERNS:
            model = make_gpt(seed)
            sat.sparsify_(model.blocks, "bdwp", pattern)
            trained = train_gpt(
                lambda matrices, c=contender: c.make(matrices, c.best),  # type: ignore[misc]
                seed=seed, model=model,
            )  # fmt: skip
            text = f"{contender.text}, weights {pattern}: test loss, seed {seed}"
            result.metrics[text] = trained.loss


# ---------------------------------------------------------------------------------------- cost


def step_seconds(size: int = 1024) -> tuple[float, float]:
    """Return processor seconds of AuON's step and of five Newton-Schulz steps on one matrix."""
    weight = nn.Parameter(torch.zeros(size, size))
    weight.grad = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    optimizer = AuON([weight], 0.1)
    gradient = weight.grad

    def seconds(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
        return median(taken)

    return seconds(optimizer.step, 9), seconds(lambda: newton_schulz(gradient), 3)


def _cost(result: Result) -> None:
    ours, theirs = step_seconds()
    result.metrics["AuON's step on 1024 x 1024, milliseconds"] = 1e3 * ours
    result.metrics["Newton-Schulz, 5 steps on 1024 x 1024, milliseconds"] = 1e3 * theirs
    result.check("AuON's step over 5 Newton-Schulz steps, 1024 x 1024, time", ours / theirs, 0.1)


# ------------------------------------------------------------------------------------- picture


def _figure(result: Result, compared: dict[str, Contender]) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplot_mosaic([["top", "top"], ["left", "right"]])
    top = panels["top"]
    for contender in compared.values():
        steps = [step for step, _ in contender.runs[0].curve]
        losses = np.array([[loss for _, loss in run.curve] for run in contender.runs])
        (line,) = top.plot(steps, losses.mean(0), label=f"{contender.text}, lr {contender.best:g}")
        top.fill_between(steps, losses.min(0), losses.max(0), color=line.get_color(), alpha=0.2)
    top.set(xlabel="step", ylabel="nats a character, an eighth of the test")
    top.set_title(f"test loss: mean and range, seeds: {len(contender.runs)}", fontsize=10)
    top.legend(fontsize=9)
    paper = compared["paper"]
    _draw_spectra(result, panels["left"], paper.watches[paper.best].momentum)
    _draw_scalar(panels["right"], paper.watches[paper.best].scalars)
    return figure


def _draw_spectra(result: Result, axes: Axes, momentum: Tensor) -> None:
    updates = {
        "momentum": momentum / momentum.norm(),
        "AuON (paper)": auon_direction(momentum)[0],
        "Hybrid (paper), 1 step": hybrid_direction(momentum)[0],
        "Muon, 5 steps": newton_schulz(momentum),
    }
    for (text, update), style in zip(updates.items(), ("o", "-", "-", "-"), strict=True):
        values = torch.linalg.svdvals(update).numpy()
        axes.semilogy(np.arange(1, len(values) + 1), values, style, label=text, markersize=3)
        result.metrics[f"{text}: off orthogonal, {LAYER}"] = orthogonality(update)
        result.metrics[f"{text}: condition number, {LAYER}"] = float(values[0] / values[-1])
    axes.set(xlabel="number", ylabel="singular value")
    axes.set_title(f"{LAYER}, mid-training", fontsize=10)
    axes.legend(fontsize=8)


def _draw_scalar(axes: Axes, scalars: list[float]) -> None:
    low, high = cosh_rms_bounds(256 * 64)
    axes.plot(np.arange(1, len(scalars) + 1), 1e5 * (np.array(scalars) - 1))
    for bound, text in ((low, "flat"), (high, "one entry alone")):
        axes.axhline(1e5 * (bound - 1), color="black", linestyle="--", linewidth=0.8)
        axes.annotate(text, (1, 1e5 * (bound - 1)), va="bottom", fontsize=8)
    axes.set(xlabel="step", ylabel="1e5 (r - 1)")
    axes.set_title(f"the scalar of {LAYER} and its bounds", fontsize=10)
