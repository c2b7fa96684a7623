"""PNDM judged: against closed forms, a fine integration of a mixture's flow, and on digits.

Whatever is compared, is so at equal evaluations of the network, which are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import sat
from sat.methods import Result
from sat.methods.pndm.denoiser import (
    DenoiserMLP,
    Digits,
    load_digit_vectors,
    train_denoiser,
    velocity_loss,
)
from sat.methods.pndm.sampler import WEIGHTS, EpsModel, SampleResult, probability_flow, sample
from sat.methods.pndm.schedule import ContinuousSchedule, NoiseSchedule, Schedule
from sat.methods.problems.frechet import frechet_distance, sample_moments
from sat.methods.problems.mixtures import GaussianMixture, ring
from sat.methods.problems.rounding import product_bound

Array = NDArray[np.float64]

NAMES = {"ddim": "DDIM", "s-pndm": "S-PNDM", "f-pndm": "F-PNDM", "fon": "FON"}
POINTS, SEEDS, STD = 400, 5, 0.15
STEPS, QUICK_STEPS, BATCH, LR, SPARSE_STEPS = 5000, 100, 128, 1e-3, 800
SAMPLES, NOISE_SEEDS = 512, (3, 4, 5)
SAMPLERS = (
    ("ddim", 1000), ("ddim", 250), ("ddim", 50), ("ddim", 20),
    ("f-pndm", 50), ("f-pndm", 20), ("s-pndm", 50), ("s-pndm", 20),
)  # fmt: skip
Runs = Mapping[tuple[str, int], SampleResult]


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Check samplers where the flow is known, then on a network trained on digits.

    Parameters
    ----------
    seed : int
        Of points, data, network and training.
    quick : bool
        One seed of the ring, a barely trained network, no N:M.
    """
    result = Result()
    _one_point(result, seed)
    _one_gaussian(result, seed)
    _ring(result, seed, 1 if quick else SEEDS)
    digits = load_digit_vectors(seed)
    model = train(digits, seed, QUICK_STEPS if quick else STEPS)
    result.metrics["digits: parameters"] = sum(p.numel() for p in model.parameters())
    result.metrics["digits: loss of v, unseen"] = velocity_loss(model, digits.test)
    if quick:
        result.left_out += [
            f"{SEEDS - 1} of {SEEDS} seeds of the ring",
            f"{STEPS - QUICK_STEPS:,} of {STEPS:,} steps of the network; digits by its samplers",
            "N:M",
        ]
    else:
        _judge_digits(result, model, digits)
        _sparse(result, model, digits, seed)
    result.figures["samplers"] = _picture(model, seed)
    return result


def noise(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers (count, dim)."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact_model(mixture: GaussianMixture, schedule: Schedule) -> EpsModel:
    """Return a mixture's own noise prediction, at a schedule's times."""
    return lambda x, t: mixture.eps(x, schedule.alpha_bar(t))


# ------------------------------------------------------------------------------ closed forms


def gaussian_flow(x: Tensor, a: float, b: float, mean: Tensor, cov: Tensor) -> Tensor:
    """Return where the flow of N(mean, cov) takes x (n, d) from level a to level b."""
    spread, axes = np.linalg.eigh(cov.numpy())
    along = (x.numpy() - math.sqrt(a) * mean.numpy()) @ axes
    along = along * np.sqrt((b * spread + 1 - b) / (a * spread + 1 - a))
    return torch.from_numpy(math.sqrt(b) * mean.numpy() + along @ axes.T)


def _one_point(result: Result, seed: int) -> None:
    """The noise of a single point is the same all the way: phi is exact, FON is not."""
    mean, cov = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.zeros(2, 2)
    point, schedule = GaussianMixture(torch.ones(1), mean[None], cov[None]), NoiseSchedule()
    x = noise(POINTS, 2, seed)
    for method, name in NAMES.items():
        errors = {}
        for n in (5, 10, 50):
            made = sample(exact_model(point, schedule), x, schedule, n, method)
            a = float(schedule.alpha_bar(schedule.timesteps(n)[0]))
            exact = gaussian_flow(x, a, 1.0, mean, cov.double())
            errors[n] = float((made.x - exact).abs().max())
        if method == "fon":
            for n, error in errors.items():
                result.metrics[f"one point, {n} steps: error of FON"] = error
            continue
        # Two products make eps, of up to 4 deviations, and a step's weights add up the errors of
        # its answers. An error of x before a step that goes most of the way to s = 0, as the last
        # two of 5 do, stays by the newest weight less 1, for eps answers to it.
        weights = WEIGHTS[method]
        sensitivity = 2 * 4 * sum(map(abs, weights)) * max(1.0, weights[0] - 1) ** 2
        bound = product_bound(1e-10, math.ceil(sensitivity))
        result.check(f"one point, 5, 10, 50 steps: error of {name}", max(errors.values()), bound)


def _one_gaussian(result: Result, seed: int) -> None:
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    gaussian = GaussianMixture(torch.ones(1), mean[None], cov[None])
    schedule = ContinuousSchedule(lambda u: -(0.1 * u + 9.95 * u**2))
    x = noise(POINTS, 2, seed)
    a, b = (float(schedule.alpha_bar(u)) for u in (schedule.first, schedule.last))
    exact = gaussian_flow(x, a, b, mean, cov)
    for method, order, off in (("ddim", 1, 0.05), ("s-pndm", 2, 0.1), ("f-pndm", 2, 0.15)):
        errors = [
            rmse(sample(exact_model(gaussian, schedule), x, schedule, n, method).x, exact)
            for n in (320, 640)
        ]
        measured = math.log2(errors[0] / errors[1])
        name = f"one Gaussian, 320 to 640 steps: order of {NAMES[method]}"
        result.metrics[name] = measured
        result.check(f"{name} off {order}", abs(measured - order), off)


def rmse(x: Tensor, exact: Tensor | Array) -> float:
    """Return the root of the mean square difference of all coordinates."""
    return float((x - torch.as_tensor(exact)).square().mean().sqrt())


# -------------------------------------------------------------------------------------- the ring


def ring_flow(x: Array, a: float, b: float, path: int = 0) -> Array:
    """Return where the ring's flow takes x (n, 2) from level a to b, by scipy to 1e-9.

    In y = x / sqrt(a), s = sqrt((1 - a) / a): dy/dlog s = s² (y - m) / (std² + s²), where m is the
    mean of the centres by their shares. With ``path`` points on the way, (path, n, 2).
    """
    angles = 2 * np.pi * np.arange(8) / 8
    centres = np.stack([np.cos(angles), np.sin(angles)], 1)

    def slope(log_s: float, y: Array) -> Array:
        square = math.exp(2 * log_s)
        y = y.reshape(-1, 2)
        distances = np.square(y[:, None] - centres).sum(-1) / (STD**2 + square)
        shares = np.exp(-(distances - distances.min(1, keepdims=True)) / 2)
        shares /= shares.sum(1, keepdims=True)
        return np.asarray(square * (y - shares @ centres) / (STD**2 + square)).ravel()

    ends = math.log((1 - a) / a) / 2, math.log((1 - b) / b) / 2
    times = np.linspace(ends[0], ends[1], max(path, 2))
    found = solve_ivp(
        slope, ends, (x / math.sqrt(a)).ravel(), "DOP853", times, rtol=1e-9, atol=1e-10
    )
    # sqrt(a) = 1 / sqrt(1 + s²).
    whole = found.y.T.reshape(len(times), -1, 2) / np.sqrt(1 + np.exp(2 * times))[:, None, None]
    return np.asarray(whole if path else whole[-1])


def ring_error(x: Tensor, steps: int, method: str, schedule: NoiseSchedule) -> tuple[float, int]:
    """Return a sampler's RMSE on the ring from x (n, 2), and its evaluations."""
    made = sample(exact_model(ring(std=STD), schedule), x, schedule, steps, method)
    a, b = (float(schedule.alpha_bar(t)) for t in schedule.timesteps(steps)[[0, -1]])
    return rmse(made.x, ring_flow(x.numpy(), a, b)), made.evaluations


def _ring(result: Result, seed: int, seeds: int) -> None:
    schedule = NoiseSchedule(indexing="official")
    pairs = (("f-pndm", 50, 250, 1.0), ("f-pndm", 100, 500, 0.4), ("s-pndm", 50, 50, 0.5))
    runs = {(m, n) for method, n, slow, _ in pairs for m, n in ((method, n), ("ddim", slow))}
    errors: dict[tuple[str, int], list[float]] = {key: [] for key in sorted(runs)}
    for each in range(seed, seed + seeds):
        x = noise(POINTS, 2, each)
        for (method, n), found in errors.items():
            error, evaluations = ring_error(x, n, method, schedule)
            found.append(error)
            name = f"ring: RMSE of {NAMES[method]}, {evaluations} evaluations, mean of {seeds}"
            result.metrics[name] = float(np.mean(found))
    for method, n, slow, bound in pairs:
        ratios = np.divide(errors[method, n], errors["ddim", slow])
        name = f"ring: RMSE of {NAMES[method]} {n} over DDIM's {slow}, worst of {seeds} seeds"
        result.check(name, ratios.max(), bound)
    x, start = noise(POINTS, 2, seed), float(schedule.timesteps(50)[0])
    flow = probability_flow(exact_model(ring(std=STD), schedule), x, schedule, start)
    a, b = (float(schedule.alpha_bar(t)) for t in (start, -1))
    result.metrics["ring: RMSE of RK45 along the flow"] = rmse(flow.x, ring_flow(x.numpy(), a, b))
    result.metrics["ring: evaluations of RK45"] = flow.evaluations


# ---------------------------------------------------------------------------------------- digits


def train(digits: Digits, seed: int, steps: int) -> DenoiserMLP:
    """Return the network of the figures, trained."""
    torch.manual_seed(seed)
    model = DenoiserMLP(digits.train.shape[1])
    train_denoiser(model, digits.train, steps, BATCH, LR, torch.Generator().manual_seed(seed))
    return model


def sample_digits(
    model: DenoiserMLP, seed: int, samplers: Sequence[tuple[str, int]], count: int = SAMPLES
) -> dict[tuple[str, int], SampleResult]:
    """Return samples by each sampler and number of steps, all from one noise."""
    x = noise(count, model.dim, seed, torch.float32)
    return {(m, n): sample(model, x, model.schedule, n, m) for m, n in samplers}


def distance_to(data: Tensor, x: Tensor) -> float:
    """Return the Fréchet distance of samples' moments to data's."""
    return frechet_distance(*sample_moments(x), *sample_moments(data))


def _judge_digits(result: Result, model: DenoiserMLP, digits: Digits) -> None:
    found: dict[tuple[str, int], list[float]] = {key: [] for key in SAMPLERS}
    for seed in NOISE_SEEDS:
        for key, made in sample_digits(model, seed, SAMPLERS).items():
            found[key].append(distance_to(digits.whole, made.x))
            name = f"digits: FD of {NAMES[key[0]]} {key[1]}, {made.evaluations} evaluations"
            result.metrics[f"{name}, noise {seed}"] = found[key][-1]
    ours = np.array(found["f-pndm", 50])
    worst = len(NOISE_SEEDS)
    for slow, bound in ((1000, 0.02), (250, 0.01)):
        above = (ours - found["ddim", slow]).max()
        name = f"digits: FD of F-PNDM 50 above DDIM's {slow}, worst of {worst} noises"
        result.check(name, above, bound)
    gain = (np.array(found["ddim", 50]) - ours).min()
    name = f"digits: FD of DDIM 50 above F-PNDM's 50, least of {worst} noises"
    result.check(name, gain, 0.04, at_least=True)


def sparsify(model: DenoiserMLP, pattern: str) -> DenoiserMLP:
    """Return a copy whose hidden layers are pruned; first, last and time layers stay dense."""
    made, hidden = deepcopy(model), ("inner", "outer")
    sat.sparsify_(made, "bdwp", pattern, filter_fn=lambda name, _: name.endswith(hidden))
    return made


def _sparse(result: Result, model: DenoiserMLP, digits: Digits, seed: int) -> None:
    """Train on, dense and N:M alike, and compare samples from one noise."""
    samples: dict[str, Tensor] = {}
    for pattern in ("dense", "2:4", "2:8"):
        trained = deepcopy(model) if pattern == "dense" else sparsify(model, pattern)
        generator = torch.Generator().manual_seed(seed + 1)
        train_denoiser(trained, digits.train, SPARSE_STEPS, BATCH, LR, generator)
        key = ("s-pndm", 50)
        samples[pattern] = sample_digits(trained, NOISE_SEEDS[0], [key])[key].x
        name = f"digits, {SPARSE_STEPS} steps more, {pattern}"
        result.metrics[f"{name}: loss of v, unseen"] = velocity_loss(trained, digits.test)
        result.metrics[f"{name}: FD of S-PNDM 50"] = distance_to(digits.whole, samples[pattern])
        if pattern != "dense":
            moved = rmse(samples[pattern], samples["dense"])
            result.metrics[f"{name}: samples moved, RMS"] = moved


# --------------------------------------------------------------------------------------- picture


def _picture(model: DenoiserMLP, seed: int) -> Figure:
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplot_mosaic(
        [["error", "ten", "fifty"], ["digits"] * 3], height_ratios=(1.2, 1)
    )
    _draw_errors(axes["error"], seed)
    _draw_paths(axes["ten"], 10, seed)
    _draw_paths(axes["fifty"], 50, seed)
    _draw_digits(axes["digits"], model)
    return figure


def _draw_errors(axes: Axes, seed: int) -> None:
    schedule, x = NoiseSchedule(indexing="official"), noise(POINTS, 2, seed)
    for method, name in NAMES.items():
        sizes = [n for n in (5, 10, 20, 50, 100, 200) if n >= len(WEIGHTS[method])]
        errors = [ring_error(x, n, method, schedule) for n in sizes]
        axes.loglog([e for _, e in errors], [e for e, _ in errors], ".-", label=name)
    ends = np.array([40.0, 200.0])
    for order, height, side in ((1, 0.05, "left"), (2, 0.0015, "right")):
        axes.loglog(ends, height * (ends[0] / ends) ** order, "k:", linewidth=1)
        axes.annotate(f" order {order} ", (ends[0], height), fontsize=8, ha=side)
    axes.set(xlabel="evaluations", ylabel="RMSE", title="ring: error")
    axes.legend(fontsize=8)


def _draw_paths(axes: Axes, n: int, seed: int) -> None:
    schedule, x = NoiseSchedule(indexing="official"), noise(20, 2, seed)
    a, b = (float(schedule.alpha_bar(t)) for t in schedule.timesteps(n)[[0, -1]])
    exact = ring_flow(x.numpy(), a, b, path=200)
    axes.plot(*exact.transpose(2, 0, 1), color="0.6", linewidth=2.5)
    for method, style in (("ddim", "C0:"), ("f-pndm", "C2-")):
        made = sample(exact_model(ring(std=STD), schedule), x, schedule, n, method, None, True)
        assert made.path is not None
        lines = axes.plot(*made.path.numpy().transpose(2, 0, 1), style, linewidth=1)
        lines[0].set_label(f"{NAMES[method]}, {made.evaluations}")
    axes.plot([], [], color="0.6", linewidth=2.5, label="exact")
    axes.set(title=f"ring: {n} steps", aspect="equal", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
    axes.legend(fontsize=7, loc="lower right")


def _draw_digits(axes: Axes, model: DenoiserMLP) -> None:
    """Rows of digits: the same noise by two samplers at equal evaluations."""
    columns, options = 17, dict[str, Any](cmap="gray_r", vmin=-1, vmax=1)
    rows, names = [], []
    for evaluations in (13, 20, 50):
        for method, steps in (("ddim", evaluations), ("f-pndm", evaluations - 9)):
            made = sample_digits(model, NOISE_SEEDS[0], [(method, steps)], columns)
            pictures = made[method, steps].x.view(columns, 8, 8)
            rows.append(torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=-1))
            names.append(f"{NAMES[method]}, {made[method, steps].evaluations}")
    image = torch.stack(rows).permute(0, 2, 1, 3).reshape(10 * len(rows), 10 * columns)
    axes.imshow(image.numpy(), **options)
    axes.set_yticks([10 * i + 4.5 for i in range(len(rows))], names, fontsize=8)
    axes.set_xticks([])
    axes.set_title("digits from the same noise, by evaluations")
