"""DNMM judged: densities of one and two dimensions that are known, beside scikit-learn's.

Peers are Gaussian mixtures, their number by BIC, and kernel estimates, their width by five-fold
likelihood. Errors are integrated squared ones. Integrals are judged by scipy's quadrature of the
networks written anew in numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import dblquad, quad
from scipy.special import expit
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.dnmm.figure import Shown, draw
from sat.methods.dnmm.integrators import TensorTrapezoid, Trapezoid1D
from sat.methods.dnmm.model import DNMM, dnmm_loss
from sat.methods.dnmm.selection import draw_candidates, select_dnmm
from sat.methods.dnmm.truths import GEVMixture, GumbelMixture, integrated_squared_error
from sat.methods.problems.rounding import product_bound

Array = NDArray[np.float64]
Density = Callable[[Tensor], Tensor]
RUNS, SEEDS, FEWER_SEEDS, STEPS = 200, 8, 4, 600
MANY, MANY_SEEDS, MANY_STEPS, MANY_DECAY = 1000, 3, 1000, 2e-4
WINDOW = ((-5.0,), (25.0,))
PLANE, PLANE_SEEDS, PLANE_STEPS, PLANE_TEST = 400, 3, 1200, 4000
PLANE_WINDOW = ((-3.0, -4.0), (14.0, 12.0))
CANDIDATES = 4
QUICK_STEPS, QUICK_PRETRAIN = 150, 150


@dataclass
class Found:
    """What the picture shows beside the checks."""

    data: Tensor
    model: DNMM
    peers: dict[str, Density]
    watched: list[tuple[float, list[float]]] = field(default_factory=list)
    plane: dict[str, Density] = field(default_factory=dict)
    plane_box: Tensor | None = None


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about two minutes on one core.

    Parameters
    ----------
    seed : int
        Of the first data set and mixture; others follow it.
    quick : bool
        One mixture of 150 steps after a start of 150.
    """
    result = Result()
    _integrators(result, seed)
    truth = GEVMixture()
    grid = Trapezoid1D(3001, torch.tensor(WINDOW))
    found = _line(result, truth, grid, seed, quick)
    if quick:
        result.left_out += [
            f"{SEEDS - 1} of {SEEDS} mixtures, most of their steps, and the bounds on their errors",
            "one component, one layer, 1,000 points, no integral term, two dimensions",
            "selection, N:M",
        ]
    else:
        _many(result, truth, grid, seed)
        _divergence(result, truth, seed)
        _selection(result, truth, grid, seed)
        _plane(result, found, seed)
        _patterns(result, seed)
    result.figures["densities"] = draw(
        Shown(truth, found.data, found.model, found.peers, found.watched, found.plane,
              found.plane_box)
    )  # fmt: skip
    return result


# --------------------------------------------------------------------------------- integrals


def in_numpy(model: DNMM) -> Callable[[Array], Array]:
    """Return φ_k (n, K) at standardised z (n, d), before normalisation: the networks in numpy."""
    k = model.n_components
    first = [p.detach().double().numpy() for p in (model.first.weight, model.first.bias)]
    deep = []
    for layer in model.deep:
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        deep.append((weight[:, :, 0, 0].reshape(k, -1, weight.shape[1]), bias.reshape(k, -1)))
    amplitude = model.log_amplitude.detach().double().exp().numpy()

    def phi(z: Array) -> Array:
        h = (z @ first[0].T + first[1]).reshape(len(z), k, -1)
        for weight, bias in deep:
            h = np.einsum("kij,nkj->nki", weight, np.tanh(h)) + bias
        values: Array = amplitude * expit(h[:, :, 0])
        return values

    return phi


def _integrators(result: Result, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    line = DNMM(1, 3, generator=generator)
    box = torch.tensor([[-3.0], [4.0]])
    phi = in_numpy(line)
    exact = [quad(lambda x, k=k: phi(np.array([[x]]))[0, k], -3, 4)[0] for k in range(3)]
    with torch.no_grad():
        got = Trapezoid1D(800, box).integrate(lambda z: line.double().log_components(z).exp())
    worst = float(np.abs(got.numpy() / exact - 1).max())
    # Values rest on three layers whose logarithm is taken to a density.
    result.check("800 trapezoids off scipy's quad, 3 networks", worst, product_bound(1e-5, 12))
    plane = DNMM(2, 2, (16, 16), generator=generator)
    phi = in_numpy(plane)
    exact = [
        dblquad(lambda y, x, k=k: phi(np.array([[x, y]]))[0, k], -3, 4, -2, 3, epsabs=1e-6)[0]
        for k in range(2)
    ]
    rule = TensorTrapezoid(40, torch.tensor([[-3.0, -2.0], [4.0, 3.0]]))
    with torch.no_grad():
        got = rule.integrate(lambda z: plane.double().log_components(z).exp())
    worst = float(np.abs(got.numpy() / exact - 1).max())
    name = "40 x 40 trapezoids off scipy's dblquad, 2 networks"
    result.check(name, worst, product_bound(1e-3, 12))


# ------------------------------------------------------------------------------ one dimension


def mixture(
    x: Tensor, seed: int, n_components: int = 3, hidden: tuple[int, ...] = (8, 8), **options: Any
) -> DNMM:
    """Return a mixture trained on x (N, d)."""
    model = DNMM(x.shape[1], n_components, hidden, generator=torch.Generator().manual_seed(seed))
    model.fit(x, **options)
    return model


def peers(x: Tensor, seed: int) -> dict[str, Density]:
    """Return scikit-learn's densities of x (N, d)."""
    data = x.numpy()
    gaussians = [GaussianMixture(k, n_init=3, random_state=seed).fit(data) for k in range(1, 9)]
    widths = data.std(0).mean() * np.geomspace(0.02, 0.5, 20)
    search = GridSearchCV(KernelDensity(rtol=1e-6), {"bandwidth": widths}, cv=5)
    made = {
        "Gaussian mixture": min(gaussians, key=lambda one: float(one.bic(data))),
        "kernel estimate": search.fit(data).best_estimator_,
    }
    return {name: _density(one) for name, one in made.items()}


def _density(estimate: GaussianMixture | KernelDensity) -> Density:
    return lambda x: torch.from_numpy(np.exp(estimate.score_samples(x.numpy())))


def draw_data(truth: GEVMixture | GumbelMixture, n: int, seed: int) -> Tensor:
    """Return n points (n, d) of a truth."""
    return truth.sample(n, torch.Generator().manual_seed(seed))


def _line(result: Result, truth: GEVMixture, grid: Trapezoid1D, seed: int, quick: bool) -> Found:
    watched: list[tuple[float, list[float]]] = []
    options: dict[str, Any] = {"steps": STEPS}
    if quick:
        options = {"steps": QUICK_STEPS, "pretrain": QUICK_PRETRAIN}
    seeds = range(seed, seed + (1 if quick else SEEDS))
    sets = [draw_data(truth, RUNS, s) for s in seeds]
    models = [
        mixture(x, s, watch=watched if s == seed else None, **options)
        for s, x in zip(seeds, sets, strict=True)
    ]
    others = [peers(x, s) for s, x in zip(seeds, sets, strict=True)]
    errors = {"DNMM": [1e3 * integrated_squared_error(m.pdf, truth.pdf, grid) for m in models]}
    for name in others[0]:
        errors[name] = [1e3 * integrated_squared_error(o[name], truth.pdf, grid) for o in others]
    for name, values in errors.items():
        for s, value in zip(seeds, values, strict=True):
            result.metrics[f"N = 200, seed {s}, {name}: ISE x 1000"] = value
        result.metrics[f"N = 200, {name}: mean ISE x 1000"] = fmean(values)
    _normalised(result, models, truth, grid)
    mean = fmean(errors["DNMM"])
    if quick:
        return Found(sets[0], models[0], others[0], watched)
    result.check("N = 200, 8 seeds: mean ISE x 1000", mean, 6)
    for name in others[0]:
        result.check(f"N = 200: mean ISE over {name}'s", mean / fmean(errors[name]), 1)
    own = fmean(errors["DNMM"][:FEWER_SEEDS])
    for text, k, hidden in (("one component (12, 12)", 1, (12, 12)), ("one layer (8)", 3, (8,))):
        less = [
            1e3 * integrated_squared_error(mixture(x, s, k, hidden).pdf, truth.pdf, grid)
            for s, x in zip(seeds[:FEWER_SEEDS], sets, strict=False)
        ]
        for s, value in zip(seeds, less, strict=False):
            result.metrics[f"N = 200, seed {s}, {text}: ISE x 1000"] = value
        result.check(f"N = 200, 4 seeds: mean ISE over that of {text}", own / fmean(less), 1)
    order = models[0].components(sets[0]).detach()
    places = (order * sets[0]).sum(0) / order.sum(0)
    weights = models[0].weights.detach()[places.argsort()]
    worst = float((weights - truth.weights).abs().max())
    result.check("weights of seed 0 off the true ones", worst, 0.08)
    return Found(sets[0], models[0], others[0], watched)


def _normalised(result: Result, models: list[DNMM], truth: GEVMixture, grid: Trapezoid1D) -> None:
    worst, before = 0.0, torch.cat([model.before for model in models])
    for model in models:
        worst = max(worst, abs(_whole(model) - 1))
    # As above; and a normalised density is a quotient.
    result.check(
        "integral of p over the box by scipy's quad, off 1", worst, product_bound(1e-4, 24)
    )
    result.check("integrals before normalisation, least", float(before.min()), 0.9, at_least=True)
    result.check("integrals before normalisation, largest", float(before.max()), 1.12)
    with torch.no_grad():
        result.metrics["mass of p on [-5, 25]"] = float(grid.integrate(models[0].pdf))
        result.metrics["mass of the truth on [-5, 25]"] = float(grid.integrate(truth.pdf))


def _whole(model: DNMM) -> float:
    """Return the integral of a mixture in one dimension over its box, by scipy and numpy."""
    phi, c = in_numpy(model), (model.weights.detach() / model.before).numpy()
    low, high = ((model.box[:, 0] - model.center) / model.scale).tolist()
    ends = np.linspace(low, high, 41)  # in pieces, so that no peak is stepped over
    return sum(
        float(quad(lambda z: float(phi(np.array([[z]]))[0] @ c), a, b)[0])
        for a, b in zip(ends, ends[1:], strict=False)
    )


def _many(result: Result, truth: GEVMixture, grid: Trapezoid1D, seed: int) -> None:
    errors: dict[str, list[float]] = {}
    for s in range(seed, seed + MANY_SEEDS):
        x = draw_data(truth, MANY, s)
        model = mixture(x, s, steps=MANY_STEPS, weight_decay=MANY_DECAY)
        for name, density in {"DNMM": model.pdf, **peers(x, s)}.items():
            value = 1e3 * integrated_squared_error(density, truth.pdf, grid)
            errors.setdefault(name, []).append(value)
    for name, values in errors.items():
        result.metrics[f"N = 1000, {name}: mean ISE x 1000"] = fmean(values)
    result.check("N = 1000, 3 seeds: mean ISE x 1000", fmean(errors["DNMM"]), 3)


def _divergence(result: Result, truth: GEVMixture, seed: int) -> None:
    """Train on without the integrals' term: the likelihood of what is no density any more."""
    x = draw_data(truth, RUNS, seed)
    model = mixture(x, seed, steps=1)
    rule = model.finest
    z = model.standardise(x)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        dnmm_loss(model, z, rule, 0.0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        sums = rule.integrate(lambda points: model.log_components(points).exp())
        log_p = model.log_mixture(model.log_components(z)).mean() - model.scale.log().sum()
    true = float(truth.pdf(x).log().mean())
    name = "without the integrals' term, 300 steps: log-likelihood above the truth's, nats"
    result.check(name, float(log_p) - true, 0, at_least=True)
    result.metrics["without the integrals' term, 300 steps: largest integral"] = float(sums.max())


def _selection(result: Result, truth: GEVMixture, grid: Trapezoid1D, seed: int) -> None:
    x = draw_data(truth, RUNS, seed)
    candidates = draw_candidates(CANDIDATES, torch.Generator().manual_seed(seed))
    model, scores = select_dnmm(x, candidates, folds=1, seed=seed)
    for score in scores:
        one = score.candidate
        text = f"K = {one.n_components}, {one.hidden}, r = {one.weight_decay or 0.2 / RUNS:g}"
        result.metrics[f"selection, {text}: held-out log-likelihood"] = score.log_likelihood
    name = "selection: ISE x 1000 of the chosen"
    result.metrics[name] = 1e3 * integrated_squared_error(model.pdf, truth.pdf, grid)


# ----------------------------------------------------------------------------- two dimensions


def likelihood(model: DNMM, test: Tensor) -> tuple[float, int]:
    """Return the mean log-likelihood of points (n, 2), and how many lie outside the box.

    Those would be impossible; they count with the density at the box's nearest point.
    """
    held = torch.clamp(test, model.box[0], model.box[1])
    with torch.no_grad():
        return float(model.log_prob(held).mean()), int((held != test).any(1).sum())


def _plane(result: Result, found: Found, seed: int) -> None:
    truth = GumbelMixture()
    test = draw_data(truth, PLANE_TEST, 10_000 + seed)
    grid = TensorTrapezoid(121, torch.tensor(PLANE_WINDOW))
    result.metrics["plane, the truth: log-likelihood"] = float(truth.log_prob(test).mean())
    errors: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    for s in range(seed, seed + PLANE_SEEDS):
        x = draw_data(truth, PLANE, s)
        model = mixture(x, s, 2, (16, 16), steps=PLANE_STEPS)
        score, outside = likelihood(model, test)
        result.metrics[f"plane, seed {s}: test points outside the box"] = outside
        others = peers(x, s)
        for name, density in {"DNMM": model.pdf, **others}.items():
            error = 1e3 * integrated_squared_error(density, truth.pdf, grid)
            errors.setdefault(name, []).append(error)
            value = score if name == "DNMM" else float(density(test).log().mean())
            scores.setdefault(name, []).append(value)
            result.metrics[f"plane, seed {s}, {name}: ISE x 1000"] = error
            result.metrics[f"plane, seed {s}, {name}: log-likelihood"] = value
        if s == seed:
            found.plane = {"truth": truth.pdf, "DNMM": model.pdf, **others}
            found.plane_box = model.box
            short = mixture(x, s, 2, (16, 16), steps=PLANE_STEPS // 4)
            error = 1e3 * integrated_squared_error(short.pdf, truth.pdf, grid)
            result.metrics["plane, seed 0, 300 steps: ISE x 1000"] = error
            whole = errors["DNMM"][0]
            result.check("plane, seed 0: ISE of 1200 steps over that of 300", whole / error, 1)
            result.metrics["plane, seed 0, 300 steps: log-likelihood"] = likelihood(short, test)[0]
    for name, values in errors.items():
        result.metrics[f"plane, {name}: mean ISE x 1000"] = fmean(values)
        result.metrics[f"plane, {name}: mean log-likelihood"] = fmean(scores[name])
    name = "plane, 3 seeds: least mean test log-likelihood"
    result.check(name, min(scores["DNMM"]), -3.35, at_least=True)
    result.check("plane, 3 seeds: mean ISE x 1000", fmean(errors["DNMM"]), 10)


def _patterns(result: Result, seed: int) -> None:
    """Train 32 x 32 hidden layers dense and N:M, on a rule of 24 x 24 points."""
    truth = GumbelMixture()
    x, test = draw_data(truth, PLANE, seed), draw_data(truth, PLANE_TEST, 10_000 + seed)
    for pattern in ("dense", "2:4", "2:8"):
        model = DNMM(2, 2, (32, 32), generator=torch.Generator().manual_seed(seed))
        if pattern != "dense":
            sat.sparsify_(model, "bdwp", pattern, filter_fn=lambda _, one: _square(one))
        rule = TensorTrapezoid(24, model.standard_box(x))
        model.fit(x, steps=STEPS, integrator=rule)
        name = f"plane, 32 x 32, 600 steps, {pattern}: log-likelihood"
        result.metrics[name] = likelihood(model, test)[0]


def _square(layer: nn.Module) -> bool:
    """Return whether a layer is a hidden one."""
    return isinstance(layer, nn.Conv2d) and layer.out_channels == layer.in_channels
