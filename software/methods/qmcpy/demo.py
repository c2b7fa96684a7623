"""Acceptance figures: sequences by scipy and by counting, randomizations, kernels, rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import kstest, qmc
from torch import Tensor

from sat.methods import Result
from sat.methods.problems.rounding import product_bound, product_error
from sat.methods.qmcpy.digits import to_digits
from sat.methods.qmcpy.gram import FastGram, kernel_interpolate
from sat.methods.qmcpy.integration import bayesian_mean, cubature, replicated_mean
from sat.methods.qmcpy.kernels import DSIKernel, ProductKernel, SIKernel
from sat.methods.qmcpy.sequences import DigitalNet, Halton, Lattice, PointSequence

NETS = ("lms_ds", "lms", "ds", "nus", None)
HALTONS = ("lms_dp", "lms_ds", "lms", "dp", "ds", "nus", None)
DRAWS, QUICK_DRAWS = 2000, 300
WALSH = 2**16
GRAM_POINTS = 256
REPLICATIONS, QUICK_REPLICATIONS = 40, 10
LINE = range(4, 10)
CUBE, QUICK_CUBE = range(4, 13), range(4, 10)
SMOOTH_CUBE = range(4, 11)
"""Of a = 3, whose least eigenvalue falls by 2^6 a doubling and is rounding beyond 2^11 points."""
RUNS, RUN_REPLICATIONS, RUN_POINTS = 300, 16, 64
SEEDS = 3
WEIGHT = 0.05
SHORT_BITS = 32
"""Digits where many randomizations are drawn: enough for every bound here."""


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        Of randomizations; others derive from it.
    quick : bool
        Fewer randomizations and points, no rates.
    """
    result = Result()
    _sequences(result, seed)
    _randomizations(result, seed, QUICK_DRAWS if quick else DRAWS)
    _walsh(result)
    _grams(result, seed)
    rates = _rates(result, seed, quick)
    _interpolation(result, seed, quick)
    if not quick:
        _intervals(result, seed)
    _estimators(result, seed)
    times = _times(result, seed, 9 if quick else 11)
    result.figures["points"] = _figure(seed, rates, times)
    if quick:
        result.left_out += [
            f"{DRAWS} randomizations (here {QUICK_DRAWS}); intervals that cover",
            f"rates up to 2^{CUBE[-1]} points by {REPLICATIONS} replications, with their bounds",
        ]
    return result


# ------------------------------------------------------------------------------------- sequences


def _sequences(result: Result, seed: int) -> None:
    """Against scipy's, and by counting points in boxes."""
    ours = DigitalNet(8, randomize=None, order="gray").sample(256)[0].numpy()
    theirs = qmc.Sobol(8, scramble=False, bits=30).random(256)
    name = "net in Gray order, 8 x 256, off scipy's Sobol"
    result.check(name, float(np.abs(ours - theirs).max()), 0)
    ours = Halton(6, randomize=None).sample(300)[0].numpy()
    theirs = qmc.Halton(6, scramble=False).random(300)
    name = "Halton, 6 x 300, off scipy's"
    result.check(name, float(np.abs(ours - theirs).max()), 1e-15)
    bad = 0
    for kind in NETS:
        net = DigitalNet(2, randomize=kind)
        digits = net.sample(256, 3 if kind else 1, seed=seed, digits=True)
        bad += sum(bad_boxes(points, (2, 2), (net.bits,) * 2, 8) for points in digits)
    result.check("(0, 8, 2)-nets, 5 randomizations: boxes without their point", bad, 0)
    bad = 0
    for kind in HALTONS:
        halton = Halton(2, randomize=kind)
        digits = halton.sample(2**4 * 3**3, 3 if kind else 1, seed=seed, digits=True)
        bad += sum(bad_boxes(points, (2, 3), halton.digits, (4, 3)) for points in digits)
    name = "Halton, 7 randomizations, 2^4 3^3 points: boxes without their points"
    result.check(name, bad, 0)


def bad_boxes(
    points: Tensor, bases: tuple[int, int], digits: Sequence[int], deepest: int | tuple[int, int]
) -> int:
    """Return how many elementary boxes in two dimensions do not hold their share of the points.

    Parameters
    ----------
    points : torch.Tensor
        (n, 2) int64, base^digits times the points.
    bases, digits : pair of int
    deepest : int or pair of int
        Sides are base^-k with k's of this sum, or all up to these.
    """
    if isinstance(deepest, int):
        shapes = [(k, deepest - k) for k in range(deepest + 1)]
    else:
        shapes = [(i, j) for i in range(deepest[0] + 1) for j in range(deepest[1] + 1)]
    bad = 0
    for shape in shapes:
        boxes = torch.zeros(len(points), dtype=torch.int64)
        for j, k in enumerate(shape):
            if k:
                boxes = boxes * bases[j] ** k + points[:, j] // bases[j] ** (digits[j] - k)
        count = bases[0] ** shape[0] * bases[1] ** shape[1]
        held = torch.bincount(boxes, minlength=count)
        bad += int((held != len(points) // count).sum())
    return bad


def _randomizations(result: Result, seed: int, draws: int) -> None:
    """Whether coordinates are uniform, and how the mean of f(x) = x varies."""
    worst = 1.0
    sequences: list[PointSequence] = [Lattice(2)]
    sequences += [DigitalNet(2, 1, None, SHORT_BITS, kind) for kind in ("lms_ds", "ds", "nus")]
    sequences += [DigitalNet(2, 2, None, SHORT_BITS, kind) for kind in ("lms_ds", "nus")]
    sequences += [Halton(2, kind) for kind in ("lms_dp", "lms_ds", "dp", "ds", "nus")]
    for sequence in sequences:
        points = sequence.sample(8, draws, seed=seed)
        worst = min(worst, float(kstest(points[:, 5, 1].numpy(), "uniform").pvalue))
    result.check("a coordinate of 11 randomizations: p of KS, least", worst, 1e-3, at_least=True)
    for kind, expected, bound in (("lms_ds", 1, 0.15), ("nus", 1, 0.15), ("ds", 8, 1)):
        points = DigitalNet(1, 1, None, SHORT_BITS, kind).sample(8, 2 * draws, seed=seed)
        ratio = 12 * 8**3 * float(points[..., 0].mean(1).var())
        name = f"variance of the mean of x, 8 points, {kind}: 12 n³ times it, off {expected}"
        # Of normal means, (2 / draws)^(1/2) of it is chance: a bound wider than three of them.
        wide = max(bound, expected * 3 * math.sqrt(1 / draws))
        result.check(name, abs(ratio - expected), wide)


# --------------------------------------------------------------------------------------- kernels


def walsh_sum(x: Tensor, bits: int, alpha: int) -> Tensor:
    """Return Σ wal_k(x) over k < 2^16 with the kernel's coefficients, of integers x (n,)."""
    k = torch.arange(1, WALSH)
    top = (to_digits(k, 2, 16).long().argmax(0) - 16).neg()
    mu, rest = torch.zeros_like(k), k
    for _ in range(alpha):
        place = torch.where(rest > 0, 16 - to_digits(rest, 2, 16).argmax(0), 0)
        mu += place
        rest = rest - torch.where(rest > 0, 1 << (place - 1).clamp(min=0), 0)
    falls = 2.0 ** -(mu if alpha > 1 else 2 * (top - 1) + 1).double()
    # Digit i of k, lowest first, meets digit i of x, highest first.
    signs = torch.zeros(len(x), len(k), dtype=torch.int64)
    for i in range(min(bits, 16)):
        signs ^= (x[:, None] >> (bits - 1 - i) & 1) & (k >> i & 1)
    return ((1 - 2 * signs) * falls).sum(1)


def _walsh(result: Result) -> None:
    """Closed forms against sums, which stop at 2^16."""
    x = torch.arange(64)
    off = 0.0
    for alpha in range(1, 5):
        closed = DSIKernel(alpha, bits=6)(x[:, None], torch.zeros(1, 1, dtype=torch.int64)) - 1
        off = max(off, float((closed - walsh_sum(x, 6, alpha)).abs().max()))
    result.check("closed DSI kernels, a = 1 to 4, off Walsh sums, k < 2^16", off, 2e-4)


def matching(kernel: ProductKernel, n: int, d: int, seed: int) -> Tensor:
    """Return points (n, d) on which a kernel's Gram matrix is fast."""
    if isinstance(kernel, SIKernel):
        return Lattice(d).sample(n, seed=seed)[0]
    return DigitalNet(d).sample(n, seed=seed, digits=True)[0]


def kernels() -> list[ProductKernel]:
    """Return all seven."""
    return [*(SIKernel(a) for a in (1, 2, 3)), *(DSIKernel(a, bits=63) for a in (1, 2, 3, 4))]


def _grams(result: Result, seed: int) -> None:
    """Fast transforms, as products, against numpy's dense matrices."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(GRAM_POINTS, generator=generator, dtype=torch.float64)
    product = values = 0.0
    solved: dict[str, tuple[float, float]] = {}
    for kernel in kernels():
        points = matching(kernel, GRAM_POINTS, 2, seed)
        dense = kernel(points[:, None], points).numpy()
        gram = FastGram(kernel, points, "products")
        expected = dense @ y.numpy()
        product = max(product, _relative(gram.matvec(y), expected))
        spectrum = np.linalg.eigvalsh(dense)
        values = max(values, _relative(gram.eigenvalues.sort().values, spectrum))
        name = f"{'SI' if isinstance(kernel, SIKernel) else 'DSI'}, a = {kernel.alpha}"
        condition = float(spectrum[-1] / spectrum[0])
        result.metrics[f"{name}, 256 points: condition"] = condition
        if name != "SI, a = 3":
            off = _relative(gram.solve(y), np.linalg.solve(dense, y.numpy()))
            solved[name] = off, condition
    bound = product_bound(1e-12, 10)
    result.check("K y of 7 kernels off dense, 256 points", product, bound)
    result.check("… eigenvalues off dense", values, bound)
    digital = [f"DSI, a = {a}" for a in (1, 2, 3, 4)]
    for names, host in ((["SI, a = 1"], 1e-9), (["SI, a = 2"], 1e-6), (digital, 1e-9)):
        off, condition = max(solved[name] for name in names)
        # What a transform rounds is divided by the least eigenvalue: its error times the condition.
        bound = host if product_bound(0.0) == 0 else max(host, product_error() * condition)
        title = names[0] if len(names) == 1 else "DSI, a = 1 to 4"
        result.check(f"K⁻¹ y, {title}, off dense", off, bound)


def _relative(found: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


# ----------------------------------------------------------------------------------------- rates


def smooth(points: Tensor) -> Tensor:
    """Return Π (1 + (x e^x - 1) / 2), of integral 1."""
    return (1 + (points * points.exp() - 1) / 2).prod(-1)


def periodic(points: Tensor) -> Tensor:
    """Return Π (1 + K_2(x) / 20), of integral 1 and square summable derivatives of order 3."""
    return SIKernel(2, WEIGHT)(points, torch.zeros(points.shape[-1], dtype=torch.float64))


def errors(
    f: Callable[[Tensor], Tensor], points: Tensor, levels: range
) -> tuple[list[int], list[float]]:
    """Return the root mean square error over replications of the first 2^m points' means."""
    off = f(points) - 1
    sizes = [2**m for m in levels]
    return sizes, [float(off[:, :n].mean(1).square().mean().sqrt()) for n in sizes]


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the exponent of n that fits best."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


Curves = dict[str, tuple[list[int], list[float]]]


def _rates(result: Result, seed: int, quick: bool) -> Curves:
    count = QUICK_REPLICATIONS if quick else REPLICATIONS
    levels = QUICK_CUBE if quick else CUBE
    n = 2 ** levels[-1]
    generator = torch.Generator().manual_seed(seed)
    iid = torch.rand(count, n, 3, generator=generator, dtype=torch.float64)
    curves: Curves = {}
    for name, points in (
        ("independent", iid),
        ("lattice", Lattice(3).sample(n, count, seed=seed)),
        ("net, LMS + DS", DigitalNet(3, bits=SHORT_BITS).sample(n, count, seed=seed)),
        ("net of order 2", DigitalNet(3, 2).sample(n, count, seed=seed)),
        ("Halton, LMS + DP", Halton(3).sample(n, count, seed=seed)),
    ):
        curves[name] = errors(smooth, points, levels)
    line = 2 ** LINE[-1]
    for name, net in (
        ("d = 1, NUS", DigitalNet(1, randomize="nus")),
        ("d = 1, NUS of order 2", DigitalNet(1, 2, randomize="nus")),
    ):
        curves[name] = errors(smooth, net.sample(line, REPLICATIONS, seed=seed), LINE)
    curves["lattice, periodic"] = errors(periodic, Lattice(3).sample(n, count, seed=seed), levels)
    slopes = {name: slope(*curve) for name, curve in curves.items()}
    for name, value in slopes.items():
        result.metrics[f"rate: {name}"] = value
    for name, bound in (("d = 1, NUS", -1.3), ("d = 1, NUS of order 2", -2.0)):
        result.check(f"rate, {name}", slopes[name], bound)
    if quick:
        return curves
    result.check("rate, independent points", slopes["independent"], -0.4)
    result.check("… at least", slopes["independent"], -0.6, at_least=True)
    for name, bound in (
        ("lattice", -0.75), ("net, LMS + DS", -1.1), ("net of order 2", -1.35),
        ("Halton, LMS + DP", -0.8), ("lattice, periodic", -2.5),
    ):  # fmt: skip
        result.check(f"rate, {name}", slopes[name], bound)
    return curves


def wave(points: Tensor) -> Tensor:
    """Return Π (1 + K_4(x) / 20), a periodic product."""
    return SIKernel(4, WEIGHT)(points, torch.zeros(points.shape[-1], dtype=torch.float64))


def _interpolation(result: Result, seed: int, quick: bool) -> None:
    """Kernel interpolation on lattices: solves in float64, predictions as products."""
    at = torch.rand(500, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = wave(at)
    for alpha, bound in ((1, -1.1), (2, -2.7), (3, -3.4)):
        levels = QUICK_CUBE if quick else SMOOTH_CUBE if alpha == 3 else CUBE
        kernel = SIKernel(alpha, WEIGHT)
        squares, floors = np.zeros(len(levels)), np.zeros(len(levels))
        for shift in range(SEEDS):
            points = Lattice(2).sample(2 ** levels[-1], seed=seed + shift)[0]
            values = wave(points)
            for place, m in enumerate(levels):
                n = 2**m
                made = kernel_interpolate(kernel, points[:n], values[:n])
                squares[place] += float((made(at) - wanted).square().mean()) / SEEDS
                size = float(made.coefficients.abs().sum() * kernel(at[:1], at[:1]).max())
                # product_error is of 64 terms; the errors of more add up as their root.
                floors[place] = max(floors[place], product_error() * size * math.sqrt(n / 64))
        # Where products carry fewer bits, an error below what they resolve says nothing of n.
        kept = squares**0.5 > floors
        sizes = np.array([2**m for m in levels])[kept]
        rate = slope(list(sizes), list(squares[kept] ** 0.5)) if len(sizes) > 1 else math.nan
        result.metrics[f"interpolation, a = {alpha}: rate"] = rate
        name = f"interpolation, a = {alpha}: error, {2 ** levels[-1]} points"
        result.metrics[name] = float(squares[-1] ** 0.5)
        if not quick:
            result.check(f"interpolation of a periodic product, a = {alpha}: rate", rate, bound)


# ------------------------------------------------------------------------------------ estimators


def _intervals(result: Result, seed: int) -> None:
    """How often Student's intervals cover the integral."""
    net = DigitalNet(3, bits=SHORT_BITS)
    for name, sequence in (("LMS + DS", net), ("lattice", Lattice(3)), ("Halton", Halton(3))):
        points = sequence.sample(RUN_POINTS, RUNS * RUN_REPLICATIONS, seed=seed)
        covered = 0
        for values in smooth(points).split(RUN_REPLICATIONS):
            found = replicated_mean(values)
            covered += abs(found.mean - 1) <= found.half_width
        share = covered / RUNS
        result.check(f"intervals of 0.99 that cover, {name}", share, 0.96, at_least=True)


def _estimators(result: Result, seed: int) -> None:
    """Doubling until a tolerance is kept, and an error from one randomization."""
    found = cubature(smooth, DigitalNet(3, bits=SHORT_BITS), abs_tol=1e-3, seed=seed)
    result.check("cubature to 1e-3: error", abs(found.mean - 1), 1e-3)
    result.metrics["cubature to 1e-3: points of each of 16 replications"] = found.n
    points = Lattice(3).sample(1024, seed=seed)[0]
    gram = FastGram(SIKernel(1, WEIGHT), points)
    bayes = bayesian_mean(gram, periodic(points))
    result.metrics["Bayesian cubature, periodic, 1024 points: half-width"] = bayes.half_width
    result.check("… error over half-width", abs(bayes.mean - 1) / bayes.half_width, 1)


def _times(result: Result, seed: int, highest: int) -> dict[str, tuple[list[int], list[float]]]:
    """CPU seconds of K⁻¹ y, dense by numpy and by transforms."""
    kernel = DSIKernel(2, bits=63)
    points = matching(kernel, 2**highest, 2, seed)
    y = torch.ones(2**highest, dtype=torch.float64)
    sizes = [2**m for m in range(5, highest + 1)]
    dense, fast = [], []
    for n in sizes:
        start = time.process_time()
        matrix = kernel(points[:n, None], points[:n]).numpy()
        np.linalg.solve(matrix, y[:n].numpy())
        middle = time.process_time()
        FastGram(kernel, points[:n]).solve(y[:n])
        dense.append(middle - start)
        fast.append(time.process_time() - middle)
    result.metrics[f"CPU time of K⁻¹ y, {sizes[-1]} points, dense over fast"] = dense[-1] / fast[-1]
    return {"dense, numpy": (sizes, dense), "fast": (sizes, fast)}


# --------------------------------------------------------------------------------------- picture


def _figure(seed: int, rates: Curves, times: Curves) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    n = 64
    generator = torch.Generator().manual_seed(seed)
    sets: list[tuple[str, Tensor, tuple[int, int] | None]] = [
        ("independent", torch.rand(n, 2, generator=generator), None),
        ("lattice", Lattice(2).sample(n, seed=seed)[0], None),
        ("net, LMS + DS", DigitalNet(2).sample(n, seed=seed)[0], (8, 8)),
        ("net, NUS", DigitalNet(2, randomize="nus").sample(n, seed=seed)[0], (8, 8)),
        ("net of order 2", DigitalNet(2, 2).sample(n, seed=seed)[0], (8, 8)),
        ("Halton, 72 points", Halton(2).sample(72, seed=seed)[0], (8, 9)),
    ]
    for place, (name, points, boxes) in enumerate(sets):
        axes = figure.add_subplot(grid[place // 3, place % 3])
        _scatter(axes, name, points, boxes)
    error = figure.add_subplot(grid[0, 3:])
    for number, name in enumerate(name for name in rates if not name.startswith("d = 1")):
        sizes, values = rates[name]
        error.loglog(sizes, values, "o-", markersize=3, color=f"C{number}", label=name)
    sizes = rates["independent"][0]
    for power, style in ((-0.5, ":"), (-1, "-."), (-1.5, "--")):
        line = [rates["independent"][1][0] * (n / sizes[0]) ** power for n in sizes]
        error.loglog(sizes, line, style, color="grey", linewidth=1, label=f"n^{power:g}")
    error.set(xlabel="points", ylabel="RMSE of the mean, d = 3")
    error.legend(fontsize=6, ncols=2)
    cost = figure.add_subplot(grid[1, 3:])
    for name, (sizes, seconds) in times.items():
        cost.loglog(sizes, seconds, "o-", markersize=3, label=name)
    cost.set(xlabel="points", ylabel="CPU seconds of K⁻¹ y")
    cost.legend(fontsize=8)
    return figure


def _scatter(axes: Axes, name: str, points: Tensor, boxes: tuple[int, int] | None) -> None:
    axes.plot(*points.numpy().T, ".", markersize=4)
    for count, line in zip(boxes or (), (axes.axvline, axes.axhline), strict=False):
        for k in range(1, count):
            line(k / count, color="grey", linewidth=0.4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(), yticks=(), aspect="equal")
    axes.set_title(name, fontsize=9)
