"""Acceptance figures: identities, bases found again, a basis that changes, patches of photographs.

What judges is numpy's and scipy's, and shares no code with the method.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.linalg import polar as scipy_polar
from sklearn.datasets import load_sample_image
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor

from sat.methods import Result
from sat.methods.odl_fw.baselines import dct_dictionary, msp, pca_dictionary
from sat.methods.odl_fw.data import bernoulli_gaussian
from sat.methods.odl_fw.dictionary import OnlineODL, gradient, objective
from sat.methods.odl_fw.oracle import polar
from sat.methods.problems.rounding import product_bound

Array = NDArray[np.float64]

SEEDS, BATCH = 3, 20
SIDE, KEPT, NM = 8, 4, (2, 8)
"""Pixels of a patch's side; how many of its 64 codes are kept; or how many of every eight."""
MSP_PASSES = 50
SWITCH, FLOORS = 1500, (0.06, 0.02)


@dataclass(frozen=True)
class Case:
    """Samples to learn from; ``bound`` is on the error at the end."""

    atoms: int
    theta: float
    steps: int
    bound: float
    batch: int = BATCH
    noise: float = 0.0

    def __str__(self) -> str:
        words = f"M = {self.atoms}, theta {self.theta:g}, {self.steps:,} steps of {self.batch}"
        return words + (f", noise {self.noise:g}" if self.noise else "")

    @property
    def short(self) -> str:
        """A few words for it."""
        if self.batch == 1:
            return f"M = {self.atoms}, one a step"
        noise = f"noise {self.noise:g}" if self.noise else f"theta {self.theta:g}"
        return f"M = {self.atoms}, {noise}"


CASES = (
    Case(10, 0.3, 4000, 0.002),
    Case(20, 0.3, 4096, 0.003),
    Case(50, 0.3, 3000, 0.006),
    Case(50, 0.1, 3000, 0.005),
    Case(20, 0.3, 20_000, 0.01, batch=1),
    Case(20, 0.3, 4096, 0.005, noise=0.3),
)
FOLLOWED = CASES[1]
"""The case whose gap is fitted, and whose singular values are looked at after every step."""


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about two minutes on one core.

    Parameters
    ----------
    seed : int
        The first of those that samples and starts are drawn from.
    quick : bool
        One seed, one case of those with a known basis.
    """
    result = Result()
    _identities(result, seed)
    seeds = range(seed, seed + (1 if quick else SEEDS))
    cases = (FOLLOWED,) if quick else CASES
    runs = {str(case): [learn(case, one) for one in seeds] for case in cases}
    _recovery(result, cases, runs)
    _convergence(result, runs[str(FOLLOWED)])
    switched = _switched(result, seeds)
    pictures = _photographs(result, seeds, quick)
    if quick:
        result.left_out.append(
            f"{SEEDS} seeds, with the bound beside MSP; M = 10 and 50, one sample a step, noise; "
            "bases that are not orthogonal; scikit-learn"
        )
    else:
        _ablations(result, seed)
        _complete(result, seeds)
    result.figures["dictionaries"] = _figure(runs, switched, pictures)
    return result


# ------------------------------------------------------------------------------------ identities


def _identities(result: Result, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for exponent in (2.5, 3.0, 4.0):
        d, y = (torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        (expected,) = torch.autograd.grad(objective(d.requires_grad_(), y, exponent), d)
        off = gradient(d.detach(), y, exponent) - expected
        worst = max(worst, float(off.norm() / expected.norm()))
    result.check("gradient off autograd's, relative", worst, product_bound(1e-10, 10))
    oracle = newton = 0.0
    newton_bound = product_bound(1e-9)
    for size in (10, 50):
        g = torch.randn(size, size, generator=generator, dtype=torch.float64)
        values = np.linalg.svd(g.numpy(), compute_uv=False)
        s = -polar(g)
        oracle = max(oracle, abs(float((s * g).sum()) / values.sum() + 1))
        oracle = max(oracle, abs(float(np.linalg.norm(s.numpy(), 2)) - 1))
        off = polar(g, "newton_schulz").numpy() - scipy_polar(g.numpy())[0]
        newton = max(newton, float(np.abs(off).max()))
        # A perturbation of g is amplified by two over the sum of its two smallest singular values
        # (Higham 2008, theorem 8.10), one of the k-th iteration by (2/3)^k of that: 3 in all.
        sensitivity = 2 * values[0] / (values[-1] + values[-2])
        newton_bound = max(newton_bound, product_bound(1e-9, math.ceil(3 * sensitivity)))
    name = "oracle: <S, d> over the singular values' sum off -1, and norm off 1"
    result.check(name, oracle, product_bound(1e-10, 10))
    name = "20 iterations of Newton-Schulz off scipy's polar factor, M = 10 and 50, largest entry"
    result.check(name, newton, newton_bound)


# ----------------------------------------------------------------------------------- bases found


def error(d: Tensor, d_true: Tensor) -> float:
    """Return 1 - sum_ij (Dᵀ D*)_ij⁴ / M by numpy."""
    a, b = (x.double().numpy() for x in (d, d_true))
    return 1 - float(((a.T @ b) ** 4).sum()) / len(a)


@dataclass
class Run:
    """What a stream made of a start: errors at some steps, and gaps after all."""

    learner: OnlineODL
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    largest: float = 0.0

    def feed(self, d_true: Tensor, stream: Iterator[Tensor], steps: int, follow: bool) -> None:
        """Take some steps; look at the error at about 30, at singular values if asked to."""
        first = self.learner.steps
        at = {first + round(steps ** (i / 30)) for i in range(31)}
        for y in islice(stream, steps):
            self.learner.partial_fit(y)
            self.gaps.append(self.learner.gap)
            if follow:
                norm = float(np.linalg.norm(self.learner.relaxed.numpy(), 2))
                self.largest = max(self.largest, norm)
            if self.learner.steps in at:
                self.steps.append(self.learner.steps)
                self.errors.append(error(self.learner.dictionary, d_true))


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix, float64, by LAPACK's QR."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def learn(case: Case, seed: int, **options: object) -> Run:
    """Learn a random basis from a stream."""
    generator = torch.Generator().manual_seed(seed)
    d_true = orthogonal(case.atoms, generator)
    options = {"oracle": "newton_schulz"} | options
    found = Run(OnlineODL(case.atoms, generator=generator, dtype=torch.float64, **options))  # type: ignore[arg-type]
    stream = bernoulli_gaussian(d_true, case.theta, case.noise, case.batch, generator)
    found.feed(d_true, stream, case.steps, case == FOLLOWED)
    return found


def _recovery(result: Result, cases: tuple[Case, ...], runs: dict[str, list[Run]]) -> None:
    for case in cases:
        worst = max(one.errors[-1] for one in runs[str(case)])
        result.check(f"error, {case}, worst of {len(runs[str(case)])}", worst, case.bound)


def _convergence(result: Result, runs: list[Run]) -> None:
    """Slopes and singular values of the followed case."""
    slopes = []
    for one in runs:
        t = np.arange(32, FOLLOWED.steps + 1)
        slopes.append(float(np.polyfit(np.log(t), np.log(np.array(one.gaps)[t - 1]), 1)[0]))
    result.check(
        "gap: slope of its logarithm over ln t, 32 to 4096, shallowest", max(slopes), -0.25
    )
    result.metrics["gap: steepest slope"] = min(slopes)
    result.check("gap: least of all steps", min(min(one.gaps) for one in runs), 0, at_least=True)
    # Errors of an iteration's two products, entries by M of them: sqrt(M) times one's in the norm.
    bound = 1 + product_bound(1e-6, 2 * math.ceil(math.sqrt(FOLLOWED.atoms)))
    result.check("D's largest singular value, any step", max(r.largest for r in runs), bound)
    ends = [float(np.linalg.norm(one.learner.relaxed.numpy(), -2)) for one in runs]
    result.check("D's smallest singular value at the end", min(ends), 0.98, at_least=True)


def _switched(result: Result, seeds: range) -> dict[str, Run]:
    """Another basis from the middle on, with and without floors under the steps."""
    found: dict[str, list[Run]] = {}
    for name, floors in (("floors", FLOORS), ("no floors", (0.0, 0.0))):
        for one in seeds:
            generator = torch.Generator().manual_seed(one)
            bases = [orthogonal(20, generator) for _ in range(2)]
            now = Run(
                OnlineODL(
                    20, forgetting=floors, oracle="newton_schulz", generator=generator,
                    dtype=torch.float64,
                )
            )  # fmt: skip
            for d_true in bases:
                stream = bernoulli_gaussian(d_true, 0.3, 0.0, BATCH, generator)
                now.feed(d_true, stream, SWITCH, False)
            found.setdefault(name, []).append(now)
    ends = {name: [one.errors[-1] for one in runs] for name, runs in found.items()}
    name = f"basis changed after {SWITCH} of {2 * SWITCH} steps: error"
    result.check(name, max(ends["floors"]), 0.02)
    ratio = min(b / a for a, b in zip(ends["floors"], ends["no floors"], strict=True))
    result.check("… without floors, times that", ratio, 1, at_least=True)
    result.metrics["… without floors, least"] = min(ends["no floors"])
    return {name: runs[0] for name, runs in found.items()}


def _ablations(result: Result, seed: int) -> None:
    """What the schedule and the average are for."""
    textbook = {"rho": lambda t: min(1.0, 4 / (t + 8) ** (2 / 3)), "gamma": lambda t: 2 / (t + 8)}
    result.metrics["error, M = 50, textbook schedule"] = learn(CASES[2], seed, **textbook).errors[
        -1
    ]
    with warnings.catch_warnings():
        # A sample without codes is a direction of 0, if it is all of it.
        warnings.simplefilter("ignore", UserWarning)
        for oracle, rho in (("svd", 1.0), ("newton_schulz", 1.0), ("newton_schulz", 0.99)):
            alone = learn(CASES[4], seed, oracle=oracle, rho=lambda t, rho=rho: rho).errors[-1]
            result.metrics[f"error, one sample a step, rho {rho:g} throughout, {oracle}"] = alone


def _complete(result: Result, seeds: range) -> None:
    """A basis that is not orthogonal, by its whitened samples."""
    worst = 0.0
    for one in seeds:
        generator = torch.Generator().manual_seed(one)
        d_true = torch.randn(20, 20, generator=generator, dtype=torch.float64)
        learner = OnlineODL(
            20, oracle="newton_schulz", whiten=True, generator=generator, dtype=torch.float64
        )
        stream = bernoulli_gaussian(d_true, 0.3, 0.0, BATCH, generator)
        for y in islice(stream, FOLLOWED.steps):
            learner.partial_fit(y)
        # Codes of the true atoms: a scaled signed permutation if they are the learned ones.
        codes = np.linalg.solve(learner.dictionary.numpy(), d_true.numpy())
        codes /= np.linalg.norm(codes, axis=0)
        worst = max(worst, 1 - float((codes**4).sum()) / len(codes))
    result.check("error, Gaussian basis, M = 20, whitened, worst of 3", worst, 0.01)


# ----------------------------------------------------------------------------------- photographs


def luminance(name: str) -> Array:
    """Return a photograph's luminance, 0 to 255."""
    return np.asarray(load_sample_image(name) @ np.array([0.299, 0.587, 0.114]))


def patches(name: str, stride: int) -> Array:
    """Return patches (count, 64) of a photograph's luminance, their means taken out.

    In units of the photograph's standard deviation.
    """
    grey = luminance(name)
    windows = np.lib.stride_tricks.sliding_window_view(grey, (SIDE, SIDE))[::stride, ::stride]
    flat = windows.reshape(-1, SIDE * SIDE)
    return np.asarray((flat - flat.mean(1, keepdims=True)) / grey.std())


def snr(y: Array, d: Tensor) -> Array:
    """Return the ratio in dB of y to what is lost, for 1, 2, … 63 codes kept of an orthogonal d."""
    energy = np.sort((y @ d.double().numpy()) ** 2, axis=1)[:, ::-1].sum(0)
    return np.asarray(10 * np.log10(energy.sum() / (energy.sum() - energy.cumsum()[:-1])))


@dataclass
class Pictures:
    """Bases of a photograph and their ratios over the codes kept."""

    bases: dict[str, Tensor] = field(default_factory=dict)
    curves: dict[str, Array] = field(default_factory=dict)


def _photographs(result: Result, seeds: range, quick: bool) -> Pictures:
    train, test, other = patches("china.jpg", 3), patches("china.jpg", 8), patches("flower.jpg", 8)
    samples = torch.from_numpy(train).float()
    learned: dict[str, list[OnlineODL]] = {"FW": [], "FW, Newton-Schulz": []}
    seconds = 0.0
    for one in seeds:
        for name, oracle in zip(learned, ("svd", "newton_schulz"), strict=True):
            generator = torch.Generator().manual_seed(one)
            learner = OnlineODL(SIDE**2, oracle=oracle, generator=generator)
            start = time.process_time()
            for places in torch.randperm(len(samples), generator=generator).split(BATCH):
                learner.partial_fit(samples[places])
            seconds += (time.process_time() - start) / learner.steps / (2 * len(seeds))
            learned[name].append(learner)
    result.metrics["CPU milliseconds a step, M = 64"] = 1e3 * seconds
    bases = {name: [one.dictionary for one in ones] for name, ones in learned.items()}
    starts = (orthogonal(SIDE**2, torch.Generator().manual_seed(one)).float() for one in seeds)
    bases["MSP"] = [msp(samples, MSP_PASSES, start) for start in starts]
    bases["DCT"], bases["PCA"] = [dct_dictionary(SIDE)], [pca_dictionary(samples)]
    bases["random"] = [orthogonal(SIDE**2, torch.Generator().manual_seed(seeds[0]))]
    found = {
        (name, where): [snr(y, d)[KEPT - 1] for d in ds]
        for name, ds in bases.items() for where, y in (("china", test), ("flower", other))
    }  # fmt: skip
    for (name, where), values in found.items():
        result.metrics[f"{where}, {KEPT} of 64 codes, {name}: dB"] = fmean(values)
    least = min(found["FW", "china"] + found["FW, Newton-Schulz", "china"])
    for name in ("DCT", "PCA"):
        ahead = least - found[name, "china"][0]
        result.check(
            f"china: FW, both oracles, least, ahead of {name}, dB", ahead, 0, at_least=True
        )
    if not quick:
        ahead = fmean(found["FW", "china"]) - fmean(found["MSP", "china"])
        name = f"china: FW, mean of {len(seeds)}, ahead of MSP's {MSP_PASSES} passes, dB"
        result.check(name, ahead, -0.05, at_least=True)
    ahead = min(found["FW", "flower"]) - found["PCA", "flower"][0]
    result.check("flower by china's bases: FW, least, ahead of PCA, dB", ahead, 0, at_least=True)
    few = fmean(snr(test, msp(samples, 10, b))[KEPT - 1] for b in bases["random"])
    result.metrics[f"china, {KEPT} of 64 codes, MSP of 10 passes: dB"] = few
    if not quick:
        _peer(result, train, test)
    _structured(result, learned["FW"][0], test)
    shown = {name: bases[name][0] for name in ("FW", "DCT", "PCA", "MSP")}
    return Pictures(shown, {name: snr(test, d) for name, d in shown.items()})


def _peer(result: Result, train: Array, test: Array) -> None:
    """scikit-learn's learner, one pass: 64 atoms, not orthogonal, codes by matching pursuit."""
    peer = MiniBatchDictionaryLearning(
        SIDE**2, max_iter=1, batch_size=256, fit_algorithm="cd", random_state=0,
        transform_algorithm="omp", transform_n_nonzero_coefs=KEPT,
    )  # fmt: skip
    start = time.process_time()
    peer.fit(train)
    seconds = time.process_time() - start
    with warnings.catch_warnings():
        # Matching pursuit tells of a sample that fewer atoms hold than it may take.
        warnings.simplefilter("ignore", RuntimeWarning)
        lost = test - peer.transform(test) @ peer.components_
    ratio = 10 * math.log10((test**2).sum() / (lost**2).sum())
    result.metrics[f"china, {KEPT} of 64 codes, MiniBatchDictionaryLearning and OMP: dB"] = ratio
    result.metrics["… CPU microseconds a sample"] = 1e6 * seconds / len(train)


def _structured(result: Result, learner: OnlineODL, test: Array) -> None:
    """Two of every eight codes beside the largest quarter, by the pixels they give back."""
    y = torch.from_numpy(test).float()
    peak = 255 / luminance("china.jpg").std()
    quarter = SIDE**2 * NM[0] // NM[1]
    for name, codes in (
        (f"{quarter} of 64", learner.sparse_code(y, quarter)),
        (f"{NM[0]} of every {NM[1]}", learner.sparse_code(y, nm=NM)),
    ):
        lost = float((learner.inverse_transform(codes) - y).square().mean())
        result.metrics[f"china, {name} codes, FW: PSNR, dB"] = 10 * math.log10(peak**2 / lost)


# --------------------------------------------------------------------------------------- picture


def _figure(runs: dict[str, list[Run]], switched: dict[str, Run], pictures: Pictures) -> Figure:
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    upper, lower = np.atleast_1d(figure.subfigures(2, 1))  # type: ignore[arg-type]
    errors, gaps, change = upper.subplots(1, 3)
    for number, case in enumerate(case for case in CASES if str(case) in runs):
        one = runs[str(case)][0]
        errors.loglog(one.steps, one.errors, color=f"C{number}", label=case.short)
        at = np.unique(np.geomspace(1, len(one.gaps), 200).astype(int))
        gaps.loglog(at, np.array(one.gaps)[at - 1], color=f"C{number}", linewidth=0.8)
    span = np.array([4.0, 4096.0])
    gaps.loglog(span, 8 * span**-0.25, "k--", label="t^(-1/4)")
    errors.set(xlabel="step t", ylabel="error")
    errors.legend(fontsize=7, loc="lower left")
    gaps.set(xlabel="step t", ylabel="Frank-Wolfe gap")
    gaps.legend(fontsize=8)
    for name, one in switched.items():
        change.semilogy(one.steps, one.errors, label=name)
    change.axvline(SWITCH, color="k", linewidth=0.8, linestyle=":")
    change.set(xlabel="step t", ylabel="error to the basis of the time", title="another basis")
    change.legend(fontsize=8)
    *tiles, curve = lower.subplots(1, 4)
    for axes, name in zip(tiles, ("FW", "DCT", "PCA"), strict=True):
        _tiles(axes, pictures.bases[name])
        axes.set_title(name)
    # The difference is what can be seen: all curves rise from 0 to 20 dB.
    for name in ("FW", "PCA", "MSP"):
        over = pictures.curves[name] - pictures.curves["DCT"]
        curve.plot(np.arange(1, 33), over[:32], label=name)
    curve.axhline(0, color="k", linewidth=0.8)
    curve.set(xlabel="codes kept of 64", ylabel="SNR over the DCT's, dB", title="china")
    curve.legend(fontsize=8)
    return figure


def _tiles(axes: Axes, d: Tensor) -> None:
    """Draw 64 atoms, the smoothest first, each by its own grey scale."""
    atoms = d.double().T.reshape(-1, SIDE, SIDE).numpy()
    rough = [np.square(np.diff(a, axis=0)).sum() + np.square(np.diff(a)).sum() for a in atoms]
    page = np.zeros((8 * (SIDE + 1), 8 * (SIDE + 1)))
    for place, which in enumerate(np.argsort(rough)):
        row, column = divmod(place, 8)
        tile = atoms[which] / np.abs(atoms[which]).max()
        page[row * (SIDE + 1) :, column * (SIDE + 1) :][:SIDE, :SIDE] = tile
    axes.imshow(page, cmap="gray", vmin=-1, vmax=1)
    axes.axis("off")
