"""Acceptance figures: samples of a known mixture by few evaluations, from chains and from noise.

The mixture is fitted to digits, so its score, the levels' posterior and its moments are exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ot
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import Tensor

import sat
from sat.methods import Result
from sat.methods.dmcmc.integrators import Integrator, Score, euler_maruyama, kar1, kar2
from sat.methods.dmcmc.levels import (
    ExactPosterior,
    LevelPosterior,
    NoiseClassifier,
    noise_levels,
    noisy_batch,
    train_classifier,
)
from sat.methods.dmcmc.sampler import DLG, Samples, dmcmc_sample, from_noise
from sat.methods.problems.frechet import frechet_distance, sample_moments
from sat.methods.problems.mixtures import GaussianMixtureVE, ring

Array = NDArray[np.float64]

PIXELS, COMPONENTS = 64, 10
SMIN, SMAX, LEVELS = 0.01, 5.0, 200
CHAINS, SAMPLES, SEEDS = 400, 2000, 3
QUICK_SAMPLES = 800
ETA, EM_ETA, WIDE_ETA = 0.02, 0.05, 0.2
STEPS, BATCH, PATTERNS = 1500, 256, ("2:4", "2:8")
"""Of the classifier's training."""
RING_LEVELS, RING_CHAINS, RING_WARM_UP, RING_STEPS = 60, 200, 80, 160
RADIUS = 0.15

KAR_BUDGETS = ((2, 4, ETA, 5), (4, 6, WIDE_ETA, 8), (4, 10, WIDE_ETA, 12))
"""Steps of a chain and of its integrator, eta; steps from noise with as many evaluations."""
EM_BUDGETS = ((3, 6, EM_ETA, 10), (4, 10, EM_ETA, 14), (4, 16, EM_ETA, 20))
KINDS: dict[str, Callable[..., Tensor]] = {"KAR1": kar1, "KAR2": kar2, "EM": euler_maruyama}


class Problem:
    """The mixture fitted to digits, and what judges samples of it."""

    def __init__(self) -> None:
        self.pixels: Array = load_digits().data / 16
        self.fitted = GaussianMixture(
            COMPONENTS, covariance_type="full", reg_covar=1e-3, random_state=0, max_iter=50
        ).fit(self.pixels)
        weights, means, covariances = (
            torch.from_numpy(part)
            for part in (self.fitted.weights_, self.fitted.means_, self.fitted.covariances_)
        )
        self.mixture = GaussianMixtureVE(weights / weights.sum(), means, covariances)
        self.moments = self.mixture.moments()
        self.levels = noise_levels(LEVELS, SMIN, SMAX)
        self.posterior = ExactPosterior(self.mixture, self.levels)
        self._started: dict[tuple[int, float], tuple[DLG, Tensor]] = {}
        """Chains where they start, and the state of their random numbers."""

    def distance(self, x: Tensor) -> float:
        """Return the Fréchet distance of samples' moments to the mixture's exact ones."""
        return frechet_distance(*sample_moments(x), *self.moments)

    def occupancy(self, x: Tensor) -> float:
        """Return the total variation of components that samples belong to, by scikit-learn."""
        counts = np.bincount(self.fitted.predict(x.numpy()), minlength=COMPONENTS)
        return float(np.abs(counts / len(x) - self.fitted.weights_).sum() / 2)

    def by_chain(
        self,
        seed: int,
        n_skip: int,
        integrator: Integrator,
        eta: float,
        samples: int,
        posterior: LevelPosterior | None = None,
        select: str = "sample",
    ) -> Samples:
        """Draw samples by chains; those with the exact posterior start once an eta and seed."""
        generator = torch.Generator().manual_seed(seed)
        exact = posterior is None and select == "sample"
        if exact and (seed, eta) in self._started:
            started, state = self._started[seed, eta]
            chains = copy.copy(started)
            generator.set_state(state)
        else:
            chains = DLG(self.mixture.score, posterior or self.posterior, self.levels, eta, select)
            chains.start(CHAINS, PIXELS, generator, integrator=partial(kar1, steps=20))
            if exact:
                self._started[seed, eta] = copy.copy(chains), generator.get_state()
        return dmcmc_sample(chains, integrator, samples, n_skip, SMIN, generator)

    def by_noise(self, seed: int, integrator: Integrator, samples: int) -> Samples:
        """Draw samples from pure noise."""
        generator = torch.Generator().manual_seed(seed)
        return from_noise(self.mixture.score, integrator, samples, PIXELS, SMAX, generator, SMIN)


@dataclass
class Found:
    """What the picture shows beside the checks."""

    problem: Problem
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Evaluations and distances, by integrator, from chains and from noise."""
    chain: Samples | None = None
    noise: Samples | None = None


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about 80 seconds on one core.

    Parameters
    ----------
    seed : int
        Of samples; where three seeds are asked for, this and the two that follow.
    quick : bool
        800 samples of one seed at 8 evaluations; neither the classifier nor curves.
    """
    result = Result()
    found = Found(Problem())
    _order(result)
    _ring(result, seed, quick)
    _few(result, seed, found, quick)
    if quick:
        result.left_out += [
            f"{SAMPLES} samples (here {QUICK_SAMPLES}), {SEEDS} seeds, Euler and Maruyama's steps",
            "the trained classifier, dense and N:M; the distance by evaluations",
        ]
    else:
        _euler(result, seed, found)
        _classifier(result, seed, found.problem)
        _curves(result, seed, found)
    result.figures["samples"] = _figure(found, seed)
    return result


# -------------------------------------------------------------------------------- known answers


def _order(result: Result) -> None:
    """KAR1 on a normal law, whose flow is known."""
    mean = torch.tensor([0.4, -0.3], dtype=torch.float64)
    variances = torch.tensor([0.72, 0.18], dtype=torch.float64)
    law = GaussianMixtureVE(torch.ones(1), mean[None], variances.diag()[None])
    start = mean + SMAX * torch.tensor([[1.0, -0.6], [-0.4, 1.2], [0.2, 0.3]], dtype=torch.float64)
    shrink = ((variances + SMIN**2) / (variances + SMAX**2)).sqrt()
    known = mean + shrink * (start - mean)
    sigma = torch.full((len(start),), SMAX, dtype=torch.float64)
    errors = {}
    for steps in (40, 80, 160):
        end = kar1(law.score, start, sigma, steps=steps, sigma_min=SMIN, to_zero=False)
        errors[steps] = float((end - known).abs().max())
    order = math.log2(errors[40] / errors[80])
    result.check("KAR1's order on a normal law, N = 40 to 80", order, 1.9, at_least=True)
    result.check("… at most", order, 2.25)
    result.metrics["… N = 80 to 160"] = math.log2(errors[80] / errors[160])
    result.metrics["… error, N = 80"] = errors[80]


def _ring(result: Result, seed: int, quick: bool) -> None:
    """Levels that chains over the ring visit: p(s) is log-uniform, 1/60 each."""
    settings: list[tuple[float, bool, str, float | None, bool]] = [
        (0.1, True, "sample", 0.04, False),
        (0.05, False, "sample", 0.08, True),
        (0.1, True, "argmax", 0.5, True),
    ]
    if not quick:
        settings += [(0.3, True, "sample", None, False), (0.2, False, "sample", None, False)]
    for eta, adaptive, select, bound, at_least in settings:
        generator = torch.Generator().manual_seed(seed)
        chains = ring_chains(eta, adaptive, select)
        chains.start(RING_CHAINS, 2, generator, warm_up=RING_WARM_UP)
        visited = []
        for _ in range(RING_STEPS):
            chains.run(1, generator)
            assert chains.s is not None
            visited.append(chains.s)
        levels = torch.cat(visited)
        counts = torch.isclose(levels[:, None], chains.levels).double().mean(0)
        off = float((counts - 1 / RING_LEVELS).abs().sum() / 2)
        name = f"ring, eta {eta:g}{' (s² + 0.15²)' if adaptive else ''}, {select}"
        if bound is None:
            result.metrics[f"{name}: levels off log-uniform, total variation"] = off
        else:
            name += ": levels off log-uniform, total variation"
            result.check(name, off, bound, at_least=at_least)
        result.metrics[f"… eta {eta:g}, {select}: median level (0.224 of the prior)"] = float(
            levels.median()
        )


def ring_chains(eta: float, adaptive: bool, select: str = "sample") -> DLG:
    """Return chains over eight points in a circle, 0.15 wide, not started."""
    law = ring(std=RADIUS).ve
    levels = noise_levels(RING_LEVELS, SMIN, SMAX)
    radius = RADIUS if adaptive else 0.0
    posterior = ExactPosterior(law, levels)
    return DLG(law.score, posterior, levels, eta, select, adaptive, radius=radius)


# -------------------------------------------------------------------------------- few evaluations


def _few(result: Result, seed: int, found: Found, quick: bool) -> None:
    """KAR1 at 8 evaluations."""
    problem, samples = found.problem, QUICK_SAMPLES if quick else SAMPLES
    equal, more, modes = [], [], []
    for number in range(seed, seed + (1 if quick else SEEDS)):
        chain = problem.by_chain(number, 2, partial(kar1, steps=4), ETA, samples)
        noise = problem.by_noise(number, partial(kar1, steps=5), samples)
        longer = problem.by_noise(number, partial(kar1, steps=6), samples)
        at, at_noise, at_longer = (each.evaluations_per_sample for each in (chain, noise, longer))
        fd, fd_noise, fd_longer = (problem.distance(each.x) for each in (chain, noise, longer))
        equal.append(fd / fd_noise)
        more.append(fd / fd_longer)
        modes.append(problem.occupancy(chain.x))
        result.metrics |= {
            f"seed {number}, {at} evaluations, chain: FD": fd,
            f"seed {number}, {at_noise} evaluations, noise: FD": fd_noise,
            f"seed {number}, {at_longer} evaluations, noise: FD": fd_longer,
        }
        if number == seed:
            found.chain, found.noise = chain, noise
            exact = problem.mixture.sample(samples, torch.Generator().manual_seed(seed))
            result.metrics["evaluations to start a chain, once"] = chain.start_evaluations
            result.metrics["exact samples: FD"] = problem.distance(exact)
            result.metrics["exact samples: total variation of components"] = problem.occupancy(
                exact
            )
            for name, each in (("chain", chain), ("noise", noise)):
                apart = ot.sliced_wasserstein_distance(each.x.numpy(), exact.numpy(), seed=seed)
                result.metrics[f"8 evaluations, {name}: sliced Wasserstein distance"] = float(apart)
    name = f"KAR1: FD, chain at {at} evaluations over noise at"
    result.check(f"{name} {at_noise}, worst", max(equal), 0.3)
    result.check(f"{name} {at_longer}, worst", max(more), 0.7)
    result.check("… components off their weights, total variation, worst", max(modes), 0.09)


def _euler(result: Result, seed: int, found: Found) -> None:
    problem = found.problem
    for (n_skip, steps), noise_steps, bound in (((3, 6), 10, 0.4), ((3, 11), 20, 0.7)):
        chain = problem.by_chain(
            seed, n_skip, partial(euler_maruyama, steps=steps), EM_ETA, SAMPLES
        )
        noise = problem.by_noise(seed, partial(euler_maruyama, steps=noise_steps), SAMPLES)
        name = (
            f"Euler-Maruyama: FD, chain at {chain.evaluations_per_sample} evaluations over noise "
            f"at {noise.evaluations_per_sample}"
        )
        result.check(name, problem.distance(chain.x) / problem.distance(noise.x), bound)


def _classifier(result: Result, seed: int, problem: Problem) -> None:
    generator = torch.Generator().manual_seed(seed)
    data = problem.mixture.sample(20_000, generator).float()
    held, j = noisy_batch(problem.mixture.sample(2000, generator), problem.levels, 4000, generator)
    exact = problem.posterior.log_probs(held)
    noise = [
        problem.distance(problem.by_noise(number, partial(kar1, steps=5), SAMPLES).x)
        for number in range(seed, seed + SEEDS)
    ]

    def judge(log_probs: Tensor) -> tuple[float, float]:
        """Return the mean error of log s, and the cross-entropy."""
        logs = problem.levels.log()
        off = (logs[log_probs.argmax(1)] - logs[j]).abs().mean()
        return float(off), -float(log_probs[torch.arange(len(j)), j].mean())

    known = judge(exact)
    result.metrics["exact posterior, likeliest level: error of log s"] = known[0]
    for pattern in ("dense", *PATTERNS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            classifier = NoiseClassifier(PIXELS, problem.levels)
        if pattern != "dense":
            sat.sparsify_(classifier, "bdwp", pattern)
        train_classifier(
            classifier, data, steps=STEPS, batch=BATCH,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        with torch.no_grad():
            off, wrong = judge(classifier.log_probs(held))
        if pattern == "dense":
            result.check("classifier, likeliest level: error of log s", off, 0.5)
            result.check("… cross-entropy above the exact posterior's, nats", wrong - known[1], 0.7)
        else:
            result.metrics[f"classifier, {pattern}: error of log s"] = off
            result.metrics[f"… cross-entropy above the exact posterior's, {pattern}"] = (
                wrong - known[1]
            )
        for select in ("sample", "argmax") if pattern == "dense" else ("sample",):
            ratios = []
            for place in range(SEEDS if pattern == "dense" else 1):
                number = seed + place
                drawn = problem.by_chain(
                    number, 2, partial(kar1, steps=4), ETA, SAMPLES, classifier, select
                )
                ratios.append(problem.distance(drawn.x) / noise[place])
            name = f"8 evaluations, levels by classifier, {select}: FD, chain over noise"
            if pattern == "dense":
                result.check(f"{name}, worst", max(ratios), 0.3)
            else:
                result.metrics[f"{name}, {pattern}"] = ratios[0]


def _curves(result: Result, seed: int, found: Found) -> None:
    problem = found.problem
    for kind, integrate in KINDS.items():
        chained, plain = [], []
        for n_skip, steps, eta, noise_steps in EM_BUDGETS if kind == "EM" else KAR_BUDGETS:
            chain = problem.by_chain(seed, n_skip, partial(integrate, steps=steps), eta, SAMPLES)
            noise = problem.by_noise(seed, partial(integrate, steps=noise_steps), SAMPLES)
            chained.append((chain.evaluations_per_sample, problem.distance(chain.x)))
            plain.append((noise.evaluations_per_sample, problem.distance(noise.x)))
        found.curves[f"{kind}, chain"], found.curves[f"{kind}, noise"] = chained, plain
    for name, curve in found.curves.items():
        for evaluations, fd in curve:
            result.metrics[f"{name}, {evaluations} evaluations: FD"] = fd
    wild = problem.by_chain(seed, 2, partial(kar1, steps=3), 0.5, SAMPLES)
    result.metrics["KAR1, chain, 6 evaluations, eta 0.5: FD"] = problem.distance(wild.x)


# ----------------------------------------------------------------------------------------- picture


def _figure(found: Found, seed: int) -> Figure:
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    top, bottom = halves
    plane, curves = top.subplots(1, 2)
    _draw_plane(plane, seed)
    for number, kind in enumerate(KINDS):
        for way, style in (("chain", "o-"), ("noise", "o--")):
            points = found.curves.get(f"{kind}, {way}", [])
            if points:
                label = f"{kind}, {'chain' if way == 'chain' else 'from noise'}"
                curves.loglog(*zip(*points, strict=True), style, color=f"C{number}", label=label)
    if found.curves:
        ticks = (8, 10, 14, 22)
        curves.set_xticks(ticks, [str(tick) for tick in ticks])
        curves.minorticks_off()
        curves.set(xlabel="evaluations a sample", ylabel="Fréchet distance of moments")
        curves.legend(fontsize=8)
    else:
        curves.set_axis_off()
    assert found.chain is not None and found.noise is not None
    panels = bottom.subplots(1, 2)
    for axes, samples, title in zip(
        panels, (found.chain, found.noise), ("from chains", "from noise"), strict=True
    ):
        shown = samples.x[: 5 * 10].view(5, 10, 8, 8)
        sheet = torch.nn.functional.pad(shown, (0, 1, 0, 1), value=1.0)
        sheet = sheet.permute(0, 2, 1, 3).reshape(5 * 9, 10 * 9)
        axes.imshow(sheet.numpy(), cmap="Greys", vmin=0, vmax=1)
        axes.set_title(f"8 evaluations a sample, {title}", fontsize=9)
        axes.set_axis_off()
    return figure


def _draw_plane(axes: Axes, seed: int) -> None:
    """Draw three chains over the ring by x₁ and the level, and integrations on their way."""
    chains = ring_chains(EM_ETA, adaptive=False)
    generator = torch.Generator().manual_seed(seed)
    chains.start(3, 2, generator)
    paths, tails = [], []
    for _ in range(12):
        for _ in range(3):
            x, s, *_ = chains.run(1, generator)
            paths.append((x, s))
        seen: list[tuple[Tensor, Tensor]] = []
        end = kar1(_recorded(chains.score, seen), x, s, steps=5)
        tails.append([*seen[::2], (end, torch.full_like(s, SMIN / 2))])
    for number in range(3):
        axes.semilogy(
            [float(x[number, 0]) for x, _ in paths], [float(s[number]) for _, s in paths],
            ".-", color=f"C{number}", linewidth=0.6, markersize=3,
        )  # fmt: skip
        for tail in tails:
            axes.semilogy(
                [float(x[number, 0]) for x, _ in tail], [float(s[number]) for _, s in tail],
                color="0.6", linewidth=0.6, zorder=0,
            )  # fmt: skip
            axes.plot(float(tail[-1][0][number, 0]), SMIN / 2, "k|", markersize=5)
    axes.set(xlabel="x₁", ylabel="level s")
    axes.set_title("three chains over the ring; integrations to samples, grey", fontsize=9)


def _recorded(score: Score, seen: list[tuple[Tensor, Tensor]]) -> Score:
    def recorded(x: Tensor, s: Tensor) -> Tensor:
        seen.append((x, s))
        return score(x, s)

    return recorded
