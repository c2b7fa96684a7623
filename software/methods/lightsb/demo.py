"""LightSB's acceptance figures: Gaussians against the closed form, Gaussian to Swiss roll."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import ot
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_swiss_roll
from torch import Tensor

from sat.methods import Result
from sat.methods.lightsb.bridge import LightSB
from sat.methods.lightsb.gaussian import gaussian_bridge

EPSILON = 0.1
POTENTIALS = 500
SAMPLES = 100_000  # of p0, and of p1
CHUNKS, CHUNK = 5, 4000  # runs of sinkhorn, and samples of each in one
DRAWS = {"process": 10, "data": 100}
QUICK_STEPS, QUICK_POTENTIALS = 600, 50


def swiss_roll(count: int, seed: int) -> Tensor:
    """Return samples of a Swiss roll in the plane, (count, 2) float32, of size about 2."""
    points, _ = make_swiss_roll(count, noise=0.8, random_state=seed)
    return torch.from_numpy(points[:, [0, 2]] / 7.5).float()


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the (squared) energy distance of two samples; positive for equal laws, about 1/n."""
    distances = [
        float(
            torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").mean()
        )
        for x, y in ((a, b), (a, a), (b, b))
    ]
    return 2 * distances[0] - distances[1] - distances[2]


def from_pool(pool: Tensor, generator: torch.Generator) -> Callable[[int], Tensor]:
    """Return a sampler that draws from a pool, with repeats."""
    return lambda count: pool[torch.randint(len(pool), (count,), generator=generator)]


def swiss_roll_samples(seed: int) -> tuple[Tensor, Tensor]:
    """Return what a bridge learns from: samples of the Gaussian and of the roll, (count, 2)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SAMPLES, 2, generator=generator), swiss_roll(SAMPLES, seed)


def train_swiss_roll(
    seed: int = 0, steps: int = 8000, *, n_potentials: int = POTENTIALS, batch: int = 128
) -> tuple[LightSB, list[float]]:
    """Train Gaussian to Swiss roll in two dimensions; return the bridge and its losses."""
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = swiss_roll_samples(seed)
    bridge = LightSB(2, n_potentials, EPSILON)
    bridge.initialise(x1, generator)
    losses = bridge.fit(
        from_pool(x0, generator),
        from_pool(x1, generator),
        steps,
        batch=batch,
        lr=1e-2,
        decay=True,
    )
    return bridge, losses


def gaussian_errors(dim: int, epsilon: float, seed: int, steps: int = 3000) -> dict[str, float]:
    """Train one full Gaussian; return relative errors of mean, covariance, cross-covariance.

    Trained on samples alone; its moments are computed from its parameters and p0's moments.
    """
    generator = torch.Generator().manual_seed(1000 * seed + dim)

    def law() -> tuple[Tensor, Tensor]:
        basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator).double())[0]
        values = torch.linspace(0.5, 2.0, dim, dtype=torch.float64)
        return torch.randn(dim, generator=generator).double(), (basis * values) @ basis.mT

    (mean0, cov0), (mean1, cov1) = law(), law()

    def sampler(mean: Tensor, cov: Tensor) -> Callable[[int], Tensor]:
        factor = torch.linalg.cholesky(cov)
        return lambda count: (
            mean + torch.randn(count, dim, generator=generator).double() @ factor.mT
        )

    sample0, sample1 = sampler(mean0, cov0), sampler(mean1, cov1)
    bridge = LightSB(dim, 1, epsilon, "full").double()
    bridge.initialise(sample1(1000), generator)
    bridge.fit(sample0, sample1, steps, batch=1024, lr=0.1, decay=True)
    with torch.no_grad():
        factor = bridge.cholesky()[0]
        s = factor @ factor.mT
        learned = {
            "mean": bridge.r[0] + s @ mean0,
            "covariance": s @ cov0 @ s + epsilon * s,
            "cross": cov0 @ s,
        }
    exact = gaussian_bridge(cov0, mean1, cov1, epsilon)
    return {
        name: float((got - getattr(exact, name)).norm() / getattr(exact, name).norm())
        for name, got in learned.items()
    }


def sinkhorn_means(x: Tensor, x0: Tensor, x1: Tensor, epsilon: float) -> Tensor:
    """Return E[x1 | x] of the entropic plan between samples (POT): (batch, dim) float64.

    At an x of x0 the plan's barycentric projection; elsewhere, too, as the plan's potential of x1
    extends it.
    """
    a, b = x0.double().numpy(), x1.double().numpy()
    options = {"numItermax": 3000, "stopThr": 1e-7, "log": True}
    _, log = ot.sinkhorn(ot.unif(len(a)), ot.unif(len(b)), ot.dist(a, b) / 2, epsilon, **options)
    cost = torch.from_numpy(ot.dist(x.double().numpy(), b) / 2)
    weights = torch.softmax(torch.from_numpy(log["v"]).log() - cost / epsilon, 1)
    return weights @ x1.double()


def end_point_ratios(
    bridge: LightSB, seed: int, generator: torch.Generator, count: int = 1000
) -> dict[str, float]:
    """Return energy distances of end points, over that of two draws of what they should be.

    Means over draws of ``count`` samples each, as that of one draw scatters by half.

    Returns
    -------
    dict
        "bridge" and "euler" against the plan, "data": the plan against held-out data.
    """

    def start() -> Tensor:
        return torch.randn(count, 2, generator=generator)

    def plan() -> Tensor:
        return bridge.sample(start(), 1, generator)[0]

    def arrive(method: str, steps: int) -> Tensor:
        return bridge.trajectory(start(), steps, method, generator)[-1]

    held = iter(range(10_000 + 1000 * seed, 11_000 + 1000 * seed))

    def roll() -> Tensor:
        return swiss_roll(count, next(held))

    def apart(first: Callable[[], Tensor], second: Callable[[], Tensor], draws: int) -> float:
        return float(np.mean([energy_distance(first(), second()) for _ in range(draws)]))

    many, few = DRAWS["data"], DRAWS["process"]
    twice = apart(plan, plan, many)
    ratios = {"data": apart(plan, roll, many) / apart(roll, roll, many)}
    for method, steps in (("bridge", 100), ("euler", 200)):
        end = partial(arrive, method, steps)
        ratios[method] = apart(end, plan, few) / twice
    return ratios


def _quick(result: Result, seed: int) -> None:
    """Check one Gaussian, and a short training's process against its plan."""
    epsilon, dim = 10.0, 2
    for name, value in gaussian_errors(dim, epsilon, seed, QUICK_STEPS).items():
        title = f"Gaussian, dim {dim}, epsilon {epsilon:g}, {QUICK_STEPS} steps: {name} off by"
        result.check(title, value, 0.1)
    bridge, losses = train_swiss_roll(seed, QUICK_STEPS, n_potentials=QUICK_POTENTIALS)
    fall = float(np.mean(losses[:20]) - np.mean(losses[-20:]))
    result.check("swiss roll: what the loss falls by", fall, 0.0, at_least=True)
    generator = torch.Generator().manual_seed(seed + 1)
    start = torch.randn(1000, 2, generator=generator)
    end = bridge.trajectory(start, 100, "bridge", generator)[-1]
    plans = [bridge.sample(start, 1, generator)[0] for _ in range(3)]
    ratio = energy_distance(end, plans[0]) / energy_distance(plans[1], plans[2])
    result.metrics["swiss roll: bridge against the plan, over two draws of it, once"] = ratio
    result.left_out += [
        f"Gaussians: eight of nine, and {QUICK_STEPS} steps of 3000 with a bound of 0.1, not 0.02",
        f"swiss roll: {QUICK_STEPS} steps of 8000, {QUICK_POTENTIALS} potentials of {POTENTIALS}",
        "means over draws, held-out data, sinkhorn's conditional means",
    ]
    result.figures = _figures(bridge, losses, generator)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about two and a half minutes on one core."""
    result = Result()
    if quick:
        _quick(result, seed)
        return result
    for epsilon in (0.1, 1.0, 10.0):
        for dim in (2, 8, 16):
            errors = gaussian_errors(dim, epsilon, seed)
            for name, value in errors.items():
                title = f"Gaussian, dim {dim}, epsilon {epsilon:g}: {name} off by"
                result.check(title, value, 0.02)

    began = time.perf_counter()
    steps = 8000
    bridge, losses = train_swiss_roll(seed, steps)
    seconds = time.perf_counter() - began
    result.metrics["swiss roll, training seconds"] = seconds
    result.metrics["swiss roll, steps a second"] = steps / seconds
    result.metrics["swiss roll, loss at the end (KL up to a constant)"] = float(
        np.mean(losses[-200:])
    )

    generator = torch.Generator().manual_seed(seed + 1)
    ratios = end_point_ratios(bridge, seed, generator)
    for name in ("bridge", "euler"):
        title = f"swiss roll: {name} against the plan, over two draws of it"
        result.check(title, ratios[name], 2.0)
    title = "swiss roll: end points against held-out data, over data against data"
    result.check(title, ratios["data"], 1.2)
    # Of the samples of training. The mean over chunks: single ones differ by 6 % from each other.
    starts, ends = (x[: CHUNKS * CHUNK].view(CHUNKS, CHUNK, 2) for x in swiss_roll_samples(seed))
    x0 = starts[0]
    runs = [sinkhorn_means(x0, *pair, EPSILON) for pair in zip(starts, ends, strict=True)]
    reference = torch.stack(runs).mean(0)
    with torch.no_grad():
        means = bridge.conditional_mean(x0).double()
    off = float((means - reference).norm() / reference.norm())
    result.check("swiss roll: conditional means against sinkhorn's, off by", off, 0.05)
    result.figures = _figures(bridge, losses, generator)
    return result


def _figures(bridge: LightSB, losses: list[float], generator: torch.Generator) -> dict[str, Figure]:
    curve = Figure(figsize=(5, 3), layout="constrained")
    axes = curve.subplots()
    width = max(1, len(losses) // 200)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(np.arange(len(smooth)), smooth)
    axes.set(xlabel="step", ylabel="loss: KL up to a constant")
    paths = Figure(figsize=(5, 5), layout="constrained")
    axes = paths.subplots()
    x0 = torch.randn(300, 2, generator=generator)
    path = bridge.trajectory(x0, 50, "euler", generator).numpy()
    axes.plot(path[:, :40, 0], path[:, :40, 1], color="0.7", linewidth=0.6)
    axes.plot(*path[0].T, ".", markersize=3, label="t = 0")
    axes.plot(*path[-1].T, ".", markersize=3, label="t = 1")
    axes.set_aspect("equal")
    axes.legend()
    return {"loss": curve, "paths": paths}
