"""LightSB's acceptance figures: Gaussians against the closed form, Gaussian to Swiss roll."""

from __future__ import annotations

import time
from collections.abc import Callable

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


def train_swiss_roll(
    seed: int = 0, steps: int = 8000, *, n_potentials: int = POTENTIALS, batch: int = 128
) -> tuple[LightSB, list[float]]:
    """Train Gaussian to Swiss roll in two dimensions; return the bridge and its losses."""
    generator = torch.Generator().manual_seed(seed)
    pool = swiss_roll(20_000, seed)
    bridge = LightSB(2, n_potentials, EPSILON)
    bridge.initialise(pool, generator)
    losses = bridge.fit(
        lambda count: torch.randn(count, 2, generator=generator),
        from_pool(pool, generator),
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


def sinkhorn_means(x0: Tensor, x1: Tensor, epsilon: float) -> Tensor:
    """Return E[x1 | x0] of the entropic plan between samples (POT)."""
    a, b = x0.double().numpy(), x1.double().numpy()
    cost = ot.dist(a, b) / 2
    weights = ot.sinkhorn(
        ot.unif(len(a)), ot.unif(len(b)), cost, epsilon, numItermax=3000, stopThr=1e-7
    )
    return torch.from_numpy(weights @ b / weights.sum(1, keepdims=True))


def run(*, seed: int = 0) -> Result:
    """Compute the acceptance figures; about two minutes on one core."""
    result = Result()
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
    count, draws = 1000, 10
    kinds = ("plan", "bridge", "euler")
    apart = dict.fromkeys((*kinds, "data", "data twice", "plan twice"), 0.0)
    for draw in range(draws):
        x0 = torch.randn(count, 2, generator=generator)
        ends = {
            "plan": bridge.sample(x0, 1, generator)[0],
            "bridge": bridge.trajectory(x0, 100, "bridge", generator)[-1],
            "euler": bridge.trajectory(x0, 200, "euler", generator)[-1],
        }
        again = [
            bridge.sample(torch.randn(count, 2, generator=generator), 1, generator)[0]
            for _ in range(2)
        ]
        held, other = (swiss_roll(count, 10_000 + 2 * draw + i + 1000 * seed) for i in (0, 1))
        for name in kinds[1:]:
            apart[name] += energy_distance(ends[name], again[0]) / draws
        apart["plan twice"] += energy_distance(*again) / draws
        apart["data"] += energy_distance(ends["plan"], held) / draws
        apart["data twice"] += energy_distance(other, held) / draws
    for name in kinds[1:]:
        ratio = apart[name] / apart["plan twice"]
        result.check(f"swiss roll: {name} against the plan, over two draws of it", ratio, 2.0)
    result.check(
        "swiss roll: end points against held-out data, over data against data",
        apart["data"] / apart["data twice"],
        1.2,
    )
    x0 = torch.randn(2000, 2, generator=generator)
    reference = sinkhorn_means(x0, swiss_roll(4000, 77 + seed), EPSILON)
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
