"""ROM-net's acceptance figures: clusters, bases, the classifier, Galerkin models, criterion."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.problems.diffusion import NonlinearDiffusion1D, Snapshots
from sat.methods.problems.rounding import product_bound
from sat.methods.rom_net.bases import LocalBases, pod_basis, projection_error
from sat.methods.rom_net.classifier import Classifier, Network, mlp
from sat.methods.rom_net.clustering import k_medoids
from sat.methods.rom_net.criterion import efficiency_criterion
from sat.methods.rom_net.dissimilarity import sine_dissimilarity
from sat.methods.rom_net.net import ROMNet, galerkin

POINTS, TRAIN, TEST, SEEDS = 200, 400, 400, 3
CLUSTERS = MODES = 5
SIZES = ((5, 5), (3, 3), (8, 8))
GRIDS = {400: (2, 3, 5, 8, 12, 20, 30, 40), 80: (2, 3, 5, 8, 12)}
CASES, EPOCHS, MOST_MODES = 100, 300, 10
KINDS = ("sine", "euclidean", "parameters")
QUICK_TRAIN, QUICK_TEST, QUICK_CASES, QUICK_EPOCHS = 160, 100, 10, 100


@dataclass
class Found:
    """What the picture shows beside the checks."""

    train: Snapshots
    test: Snapshots
    basis: Tensor
    """Of all training snapshots; its first columns are the bases of fewer modes."""
    dictionaries: dict[str, LocalBases] = field(default_factory=dict)
    net: ROMNet | None = None
    galerkin: list[tuple[float, float]] = field(default_factory=list)
    """Errors of the local and of the global model, a test case each."""
    eta: dict[int, dict[int, float]] = field(default_factory=dict)


def dictionary(kind: str, k: int, n_modes: int, data: Snapshots, seed: int) -> LocalBases:
    """Return local bases of clusters by angle, distance, or distance of the parameters."""
    bases = LocalBases(k, n_modes, "sine" if kind == "sine" else "euclidean", seed=seed)
    with warnings.catch_warnings():
        # Small clusters are part of what is compared; their bases have fewer modes.
        warnings.simplefilter("ignore", UserWarning)
        return bases.fit(data.solutions, data.parameters if kind == "parameters" else None)


def labels_of(bases: LocalBases, kind: str, data: Snapshots) -> Tensor:
    """Return the clusters of unseen samples, by what clusters were made of."""
    return bases.assign(data.parameters if kind == "parameters" else data.solutions)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        Of the loads; the test set's is the next one. Clusters and nets are of this seed and the
        two that follow.
    quick : bool
        160 snapshots, 100 tests, one clustering and net of 100 epochs, ten Galerkin models, the
        criterion by two folds of 80.
    """
    result = Result()
    problem = NonlinearDiffusion1D(POINTS)
    data = problem.snapshots(QUICK_TRAIN if quick else TRAIN, seed)
    test = problem.snapshots(QUICK_TEST if quick else TEST, seed + 1)
    found = Found(data, test, pod_basis(data.solutions, CLUSTERS * MOST_MODES))
    _exact(result, problem, data)
    ratio = _projections(result, found, seed, quick)
    _online(result, problem, found, seed, quick)
    if quick:
        report = efficiency_criterion(data.solutions[:80], (2, 3, 5), MODES, 2, seed)
        found.eta[80] = report["eta"]
        result.check("criterion, K = 5 of 80 snapshots: below 1", report["eta"][5], 1.0)
        result.left_out += [
            f"{TRAIN - QUICK_TRAIN} of {TRAIN} snapshots, {TEST - QUICK_TEST} of {TEST} tests",
            "K = 3 and 8, two of three clusterings and nets, 200 of their 300 epochs",
            f"{CASES - QUICK_CASES} of {CASES} Galerkin models, N:M classifiers, digits",
            "the criterion's minimum",
        ]
    else:
        _criterion(result, found, ratio, seed)
        _patterns(result, found, seed)
        _digits(result, seed)
    result.figures["clusters"] = _figure(found)
    return result


# ------------------------------------------------------------------------------- exact figures


def _exact(result: Result, problem: NonlinearDiffusion1D, data: Snapshots) -> None:
    exact = problem.exact(data.parameters[:40].numpy())
    off = np.linalg.norm(data.solutions[:40].numpy() - exact, axis=1)
    worst = float((off / np.linalg.norm(exact, axis=1)).max())
    result.check("data solver off Kirchhoff's solution, worst of 40 loads", worst, 2e-3)

    some = data.solutions[:40]
    got = sine_dissimilarity(some).numpy()
    worst = 0.0
    for i, j in combinations(range(len(some)), 2):
        u, v = some[i].numpy(), some[j].numpy()
        _, rest, *_ = np.linalg.lstsq(v[:, None], u, rcond=None)
        worst = max(worst, abs(got[i, j] - np.sqrt(rest[0] / (u @ u))))
    # From 1 - c² = 0.05 on, an error of c enters δ up to 4.4 times as large. And c has 200 terms
    # of one sign: partial sums are as large as it is, and lose more than those of both signs.
    bound = product_bound(1e-12, 64)
    result.check("sine off what lstsq leaves of u on span(v), 780 pairs", worst, bound)

    between = sine_dissimilarity(data.solutions[:25])
    least = min(
        float(between[:, list(trio)].min(1).values.sum()) for trio in combinations(range(25), 3)
    )
    cost = k_medoids(between, 3).cost
    result.check("k-medoids' cost above the least of all 2300, 25 points", cost - least, 1e-12)


# ------------------------------------------------------------------------------------ projections


def _projections(result: Result, found: Found, seed: int, quick: bool) -> float:
    """Judge bases on unseen solutions; return sine's error over the global basis', K = N = 5."""
    train, test = found.train, found.test.solutions
    ratio = float("nan")
    for k, n_modes in SIZES[:1] if quick else SIZES:
        single = projection_error(test, found.basis[:, :n_modes])
        means: dict[str, float] = {"global": float(single.mean())}
        for kind in KINDS:
            errors = []
            for i in range(1 if quick else SEEDS):
                bases = dictionary(kind, k, n_modes, train, seed + i)
                errors.append(bases.projection_error(test, labels_of(bases, kind, found.test)))
                if i == 0 and k == CLUSTERS:
                    found.dictionaries[kind] = bases
            means[kind] = fmean(float(error.mean()) for error in errors)
            name = f"K = {k}, N = {n_modes}, {kind}: width of the test set"
            result.metrics[name] = max(float(error.max()) for error in errors)
        for kind, value in means.items():
            result.metrics[f"K = {k}, N = {n_modes}, {kind}: projection error"] = value
        sine = means.pop("sine")
        bounds = {
            5: {"euclidean": 0.5, "parameters": 0.85, "global": 0.4},
            3: {"euclidean": 1.0, "parameters": 1.0, "global": 0.6},
            8: {"euclidean": 0.5},
        }[k]
        for kind, bound in bounds.items():
            name = f"K = {k}, N = {n_modes}: error, sine over {kind}"
            result.check(name, sine / means[kind], bound)
        if k == CLUSTERS:
            ratio = sine / means["global"]
    many = projection_error(test, found.basis[:, : CLUSTERS * MODES])
    result.metrics["global basis of 25 modes: projection error"] = float(many.mean())
    return ratio


# ----------------------------------------------------------------------------------------- online


def _online(
    result: Result, problem: NonlinearDiffusion1D, found: Found, seed: int, quick: bool
) -> None:
    train, test = found.train, found.test
    single = found.basis[:, :MODES]
    # A fixed point of products that carry fewer bits trembles by these.
    tolerance = product_bound(1e-10, 10)
    accuracy, through, local = [], [], []
    for i in range(1 if quick else SEEDS):
        net = recommender(train, seed + i, epochs=QUICK_EPOCHS if quick else EPOCHS)
        label, true = net.predict_label(test.loads), net.local_bases.assign(test.solutions)
        accuracy.append(float((label == true).double().mean()))
        errors = [
            float(net.local_bases.projection_error(test.solutions, by).mean())
            for by in (label, true)
        ]
        through.append(errors[0] / errors[1])
        name = f"classifier, seed {seed + i}"
        result.metrics[f"{name}: accuracy"] = accuracy[-1]
        result.metrics[f"{name}: projection error through it"] = errors[0]
        pairs, steps, late, both = [], 0, 0, []
        for case in range(QUICK_CASES if quick else CASES):
            x, u = test.loads[case], test.solutions[case]
            mine = net.solve(problem, x, tolerance=tolerance)
            other = galerkin(problem, x, single, tolerance=tolerance)
            pairs.append((_off(mine.u, u), _off(other.u, u)))
            steps = max(steps, mine.iterations, other.iterations)
            late += (not mine.converged) + (not other.converged)
            if i == 0:
                both.append(_off(net.solve(problem, x, 2, tolerance=tolerance).u, u))
        means = [fmean(column) for column in zip(*pairs, strict=True)]
        local.append(means[0] / means[1])
        result.metrics[f"Galerkin, seed {seed + i}: error, local; N = 5"] = means[0]
        if i == 0:
            found.net, found.galerkin = net, pairs
            result.metrics["Galerkin: error, global, N = 5"] = means[1]
            result.metrics["Galerkin: error, better of two bases (top=2)"] = fmean(both)
            result.metrics["Galerkin: most iterations"] = steps
            result.check("Galerkin models that did not converge", late, 0)
    result.check("classifier's accuracy, worst seed", min(accuracy), 0.93, at_least=True)
    result.check("projection error through it over by true labels, worst", max(through), 1.1)
    result.check("Galerkin error, local over global, worst", max(local), 0.6)


def recommender(
    data: Snapshots, seed: int, *, epochs: int = EPOCHS, network: Network | None = None
) -> ROMNet:
    """Return a ROM-net of 5 clusters and 5 modes, whose classifier sees the load's logarithm."""
    classifier = Classifier(network, log1p=True, epochs=epochs, seed=seed)
    bases = LocalBases(CLUSTERS, MODES, seed=seed)
    return ROMNet(bases, classifier).fit(data.loads, data.solutions)


def _off(u: Tensor, true: Tensor) -> float:
    return float((u - true).norm() / true.norm())


def _patterns(result: Result, found: Found, seed: int) -> None:
    for pattern in ("2:4", "2:8"):

        def pruned(shape: tuple[int, ...], classes: int, pattern: str = pattern) -> nn.Module:
            model = mlp()(shape, classes)
            sat.sparsify_(model, "bdwp", pattern)
            return model

        net = recommender(found.train, seed, network=pruned)
        label = net.predict_label(found.test.loads)
        right = label == net.local_bases.assign(found.test.solutions)
        result.metrics[f"classifier, {pattern} weights: accuracy"] = float(right.double().mean())


# -------------------------------------------------------------------------------------- criterion


def _criterion(result: Result, found: Found, ratio: float, seed: int) -> None:
    lowest = {}
    for count, ks in GRIDS.items():
        report = efficiency_criterion(found.train.solutions[:count], ks, MODES, seed=seed)
        eta = found.eta[count] = report["eta"]
        for k in ks:
            result.metrics[f"criterion, n = {count}, K = {k}"] = eta[k]
            result.metrics[f"silhouette, n = {count}, K = {k}"] = report["silhouette"][k]
            result.metrics[f"mean sine to the medoid, n = {count}, K = {k}"] = report["cost"][k]
            result.metrics[f"smallest cluster, n = {count}, K = {k}"] = report["smallest"][k]
        lowest[count] = ks.index(report["lowest"])
        result.metrics[f"criterion, n = {count}: K of the least"] = report["lowest"]
        name = f"criterion, n = {count}: K of the least with 15 members a cluster"
        result.metrics[name] = report["best"] or float("nan")
        falling = [eta[k] for k in ks[: lowest[count] + 1]]
        rises = sum(b >= a for a, b in zip(falling, falling[1:], strict=False))
        result.check(f"criterion, n = {count}: rises before its minimum", rises, 0)
        inside = 0 < lowest[count] < len(ks) - 1
        result.check(f"criterion, n = {count}: minimum inside", inside, 1, at_least=True)
    small, large = (GRIDS[count][lowest[count]] for count in (80, 400))
    result.check("criterion: K of the least, 400 over 80", large / small, 1.01, at_least=True)
    off = abs(found.eta[400][CLUSTERS] / ratio - 1)
    result.check("criterion, K = 5: off the ratio on unseen tests", off, 0.2)


def _digits(result: Result, seed: int) -> None:
    pixels = torch.from_numpy(load_digits().data)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    train, test = pixels[order[:700]], pixels[order[700:]]
    single = projection_error(test, pod_basis(train, 8))
    result.metrics["digits, N = 8, global: projection error"] = float(single.mean())
    for kind in KINDS[:2]:
        bases = LocalBases(10, 8, kind, n_starts=3, seed=seed).fit(train)
        error = float(bases.projection_error(test, bases.assign(test)).mean())
        result.metrics[f"digits, K = 10, N = 8, {kind}: projection error"] = error


# ---------------------------------------------------------------------------------------- picture


def _figure(found: Found) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels: Any = figure.subplot_mosaic(
        [["sine", "euclidean", "modes"], ["criterion", "plane", "galerkin"]]
    )
    for kind in KINDS[:2]:
        _draw_clusters(panels[kind], found, kind)
    _draw_modes(panels["modes"], found)
    _draw_criterion(panels["criterion"], found)
    _draw_plane(panels["plane"], found)
    axes = panels["galerkin"]
    local, single = zip(*found.galerkin, strict=True)
    axes.loglog(single, local, ".")
    ends = [min(local + single), max(local + single)]
    axes.loglog(ends, ends, color="0.5", linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="Galerkin error, one basis, N = 5", ylabel="… recommended basis, N = 5")
    return figure


def _draw_clusters(axes: Axes, found: Found, kind: str) -> None:
    bases = found.dictionaries[kind]
    text = "angle" if kind == "sine" else "distance"
    x = np.linspace(0, 1, POINTS + 2)[1:-1]
    for i, u in enumerate(found.train.solutions[:120]):
        axes.semilogy(x, u, color=f"C{int(bases.labels[i])}", linewidth=0.6)
    axes.set(xlabel="x", ylabel="u", ylim=(1e-3, 4))
    axes.set_title(f"120 snapshots, clustered by {text}", fontsize=9)


def _draw_modes(axes: Axes, found: Found) -> None:
    """Draw errors over N; bases of fewer modes are the first of larger ones."""
    train, test = found.train, found.test
    numbers = range(1, MOST_MODES + 1)
    for kind in KINDS:
        bases = dictionary(kind, CLUSTERS, MOST_MODES, train, 0)
        labels, full = labels_of(bases, kind, test), bases.bases
        errors = []
        for n in numbers:
            bases.bases = [basis[:, :n] for basis in full]
            errors.append(float(bases.projection_error(test.solutions, labels).mean()))
        axes.semilogy(numbers, errors, "o-", markersize=3, label=f"5 bases, {kind}")
    for factor, text in ((1, "one basis"), (CLUSTERS, "one basis of 5 N modes")):
        errors = [
            float(projection_error(test.solutions, found.basis[:, : factor * n]).mean())
            for n in numbers
        ]
        axes.semilogy(numbers, errors, "--", label=text)
    axes.set(xlabel="modes N", ylabel="projection error, unseen")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 300)  # room for the legend
    axes.legend(fontsize=7, loc="lower left")


def _draw_criterion(axes: Axes, found: Found) -> None:
    for count, eta in found.eta.items():
        axes.loglog(list(eta), list(eta.values()), "o-", label=f"{count} snapshots")
    ticks = max(found.eta.values(), key=len)
    axes.set_xticks(list(ticks), [str(k) for k in ticks])
    axes.minorticks_off()
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set(xlabel="clusters K", ylabel="criterion, N = 5: below 1 it pays")
    axes.legend(fontsize=8)


def _draw_plane(axes: Axes, found: Found) -> None:
    assert found.net is not None
    label = found.net.predict_label(found.test.loads)
    true = found.net.local_bases.assign(found.test.solutions)
    place, size, _ = NonlinearDiffusion1D.shape(found.test.parameters.numpy())
    colours = [f"C{int(one)}" for one in label]
    axes.scatter(place, size, c=colours, s=9)
    wrong = (label != true).numpy()
    axes.scatter(
        place[wrong], size[wrong], s=50, facecolors="none", edgecolors="black", label="wrong"
    )
    axes.set(xlabel="place p of the load", ylabel="size A", yscale="log")
    axes.set_title("recommended basis", fontsize=9)
    axes.legend(fontsize=8, loc="upper right")
