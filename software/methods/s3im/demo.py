"""S3IM's acceptance figures: the loss against its definition by loops, and radiance fields by it.

Pictures are a formula's, rendered by numpy; errors and similarities are numpy's and scipy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sat.methods import Result
from sat.methods.problems.scaling import scaled_backward
from sat.methods.s3im import scene
from sat.methods.s3im.quality import psnr, ssim
from sat.methods.s3im.radiance import VoxelRadianceField, render_rays
from sat.methods.s3im.scene import FAR, NEAR, Views
from sat.methods.s3im.similarity import S3IMLoss, gaussian_window, s3im, ssim_map

Array = NDArray[np.float64]

SIZE, VIEWS, UNSEEN, TRUTH = 40, 10, 6, 192
"""Pixels of an axis, pictures to train on and held out, samples of a true ray."""
PATCH, SAMPLES, STEPS, SEEDS = 32, 48, 250, 3
GRID, FEAT, WIDTH = 40, 8, 64
GRID_LR, MLP_LR, DECAY = 0.03, 2e-3, 0.1
THRESHOLD = 1e-3
"""Of a sample's weight, below which its colour is not computed."""
NOISE, WEIGHT = 0.15, 0.1
QUICK = {"size": 24, "patch": 12, "samples": 24, "steps": 180}


@dataclass(frozen=True)
class Data:
    """Pictures to train on, with and without noise, and held-out ones."""

    clean: Views
    noisy: Views
    unseen: Views


def make_data(seed: int, size: int) -> Data:
    """Return pictures of size x size; noise of deviation 0.15, clipped as a picture's file does."""
    clean = scene.orbit(VIEWS, size, TRUTH)
    noise = NOISE * np.random.default_rng(seed).standard_normal(clean.colours.shape)
    noisy = Views(clean.origins, clean.dirs, np.clip(clean.colours + noise, 0, 1), size)
    return Data(clean, noisy, scene.orbit(UNSEEN, size, TRUTH, 0.5))


@dataclass(frozen=True)
class Run:
    """A trained field's pictures of the held-out views, and what they are worth.

    Attributes
    ----------
    images : ndarray (views, size, size, 3)
    psnr, ssim : float
        Means over views.
    losses : list of float
        Mean squared error of each batch.
    """

    images: Array
    psnr: float
    ssim: float
    losses: list[float]


def as_float(rays: Array) -> Tensor:
    """Return (…, 3) float64 as float32 rays (rays, 3)."""
    return torch.from_numpy(rays.reshape(-1, 3)).float()


def make_field(seed: int) -> VoxelRadianceField:
    """Return an untrained field."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VoxelRadianceField(GRID, FEAT, WIDTH)


def crop(views: int, size: int, patch: int, generator: torch.Generator) -> Tensor:
    """Return the places of patch x patch neighbouring pixels of one picture."""
    view, row, col = (
        int(torch.randint(most, (), generator=generator))
        for most in (views, size - patch + 1, size - patch + 1)
    )
    line = torch.arange(patch)
    return ((view * size + row + line[:, None]) * size + col + line).flatten()


def train(
    views: Views, unseen: Views, seed: int, weight: float, *, crops: bool = False,
    patch: int = PATCH, samples: int = SAMPLES, steps: int = STEPS,
) -> Run:  # fmt: skip
    """Train a field by mean square + weight · (1 - S3IM); look at the held-out views.

    Parameters
    ----------
    views, unseen : Views
    seed : int
        Of the field, batches and orders; batches do not depend on the weight.
    weight : float
    crops : bool
        Batches are crops of one picture, and SSIM looks at them as they are.
    patch, samples, steps : int
        Rays of a batch are patch².
    """
    field = make_field(seed)
    origins, dirs, colours = map(as_float, (views.origins, views.dirs, views.colours))
    optimizer = torch.optim.Adam([
        {"params": [field.raw, field.features], "lr": GRID_LR},
        {"params": list(field.mlp.parameters()), "lr": MLP_LR},
    ])  # fmt: skip
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY ** (1 / steps))
    batches, orders = (torch.Generator().manual_seed(seed + i) for i in (0, 1))
    structure = S3IMLoss(
        weight, patch_shape=(patch, patch), repeats=1 if crops else 10, generator=orders
    )
    losses = []
    for _ in range(steps):
        if crops:
            places = crop(len(views.colours), views.size, patch, batches)
        else:
            places = torch.randperm(len(colours), generator=batches)[: patch**2]
        optimizer.zero_grad()
        seen = render_rays(
            field, origins[places], dirs[places], NEAR, FAR, samples,
            threshold=THRESHOLD, generator=batches,
        )  # fmt: skip
        square = (seen - colours[places]).square().mean()
        loss = square + structure(seen, colours[places]) if weight else square
        scaled_backward(loss, field)
        optimizer.step()
        schedule.step()
        losses.append(float(square.detach()))
    images = look(field, unseen, samples)
    pairs = list(zip(images, unseen.images, strict=True))
    return Run(
        images, fmean(psnr(a, b) for a, b in pairs), fmean(ssim(a, b) for a, b in pairs), losses
    )


@torch.no_grad()
def look(field: VoxelRadianceField, views: Views, samples: int) -> Array:
    """Return a field's pictures (views, size, size, 3)."""
    pictures = [
        render_rays(
            field, as_float(o), as_float(d), NEAR, FAR, samples, threshold=THRESHOLD
        ).double().numpy().reshape(views.size, views.size, 3)
        for o, d in zip(views.origins, views.dirs, strict=True)
    ]  # fmt: skip
    return np.stack(pictures)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; 200 seconds on one core.

    Parameters
    ----------
    seed : int
        Of pictures' noise; fields are trained from this seed and the two that follow it.
    quick : bool
        One short training on small pictures; nothing said of what the loss gains.
    """
    result = Result()
    _definition(result, seed)
    _permuted(result, seed)
    _gradient(result, seed)
    _renderer(result)
    data = make_data(seed, QUICK["size"] if quick else SIZE)
    if quick:
        runs = _quick(result, data, seed)
    else:
        runs = _noisy(result, data, seed)
        _others(result, data, seed)
    result.figures["views"] = _figure(data, runs)
    return result


# ------------------------------------------------------------------------------- exact figures


def colours(rays: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return random colours (rays, 3), and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(rays, 3, generator=generator, dtype=dtype)
    noise = 0.1 * torch.randn(rays, 3, generator=generator, dtype=dtype)
    return (target + noise).clamp(0, 1), target


def by_loops(
    pred: Array, target: Array, orders: Array, height: int, width: int, size: int
) -> float:
    """Return S3IM by its definition, window by window; its stride is its size."""
    line = [math.exp(-((i - size // 2) ** 2) / 4.5) for i in range(size)]
    weights = np.outer(line, line) / sum(line) ** 2
    margin, found = (size - 1) // 2, []
    for channel in range(pred.shape[1]):
        x, y = (
            np.pad(
                np.concatenate([v[order, channel] for order in orders]).reshape(height, -1), margin
            )
            for v in (pred, target)
        )
        for row in range(0, x.shape[0] - size + 1, size):
            for col in range(0, x.shape[1] - size + 1, size):
                a, b = (v[row : row + size, col : col + size] for v in (x, y))
                mean, other = (weights * a).sum(), (weights * b).sum()
                var, var_other = (
                    (weights * v * v).sum() - m * m for v, m in ((a, mean), (b, other))
                )
                both = (weights * a * b).sum() - mean * other
                found.append(
                    (2 * mean * other + 1e-4) * (2 * both + 9e-4)
                    / ((mean**2 + other**2 + 1e-4) * (var + var_other + 9e-4))
                )  # fmt: skip
    return fmean(found)


def _definition(result: Result, seed: int) -> None:
    """4,096 rays, ten orders, as released: by loops, of equal rays, of float16 rays."""
    pred, target = colours(4096, seed)

    def found(a: Tensor, b: Tensor) -> Tensor:
        return s3im(a, b, generator=torch.Generator().manual_seed(seed))

    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(4096, generator=generator).numpy() for _ in range(9)]
    exact = by_loops(pred.numpy(), target.numpy(), np.array([np.arange(4096), *drawn]), 64, 64, 4)
    result.metrics["S3IM of colours with noise 0.1"] = exact
    result.check("S3IM off its definition by loops", abs(float(found(pred, target)) - exact), 1e-12)
    off = abs(float(found(pred.float(), target.float())) - exact)
    result.check("S3IM off its definition by loops, float32", off, 1e-6)
    off = abs(float(found(target.float(), target.float())) - 1)
    result.check("S3IM of equal rays off 1", off, 0)
    off = abs(float(found(pred.half(), target.half())) - exact)
    result.check("S3IM of colours rounded to float16 off that of exact ones", off, 1e-5)
    x, y = (v.numpy().reshape(64, 64, 3) for v in (pred, target))
    a, b = (v.T.reshape(1, 3, 64, 64) for v in (pred, target))
    inside = float(ssim_map(a, b, gaussian_window(11, torch.float64)).mean())
    result.check("SSIM's map, 11 x 11, off scipy's filters", abs(inside - ssim(x, y)), 1e-12)


def _permuted(result: Result, seed: int, draws: int = 300) -> None:
    """Permuting all rays alike moves the mean by what their own order, one of ten, is worth."""
    pred, target = colours(256, seed)
    shuffle = torch.randperm(256, generator=torch.Generator().manual_seed(seed + 1))
    # A trend along the rays, so that their own order matters.
    trend = torch.linspace(0, 0.5, 256, dtype=torch.float64)[:, None]
    pred, target = pred / 2 + trend, target / 2 + trend
    generator = torch.Generator().manual_seed(seed)
    means, alone, variance = [], [], 0.0
    for a, b in ((pred, target), (pred[shuffle], target[shuffle])):
        values = [
            float(s3im(a, b, patch_shape=(16, 16), generator=generator, layout="tiled"))
            for _ in range(draws)
        ]
        means.append(fmean(values))
        variance += float(np.var(values, ddof=1)) / draws
        alone.append(float(s3im(a, b, patch_shape=(16, 16), repeats=1)))
    result.metrics["rays permuted alike: change of their own order's similarity"] = (
        alone[1] - alone[0]
    )
    off = abs(means[1] - means[0] - (alone[1] - alone[0]) / 10) / math.sqrt(variance)
    result.check("rays permuted alike: mean off what it must be, in standard errors", off, 4)


def _gradient(result: Result, seed: int) -> None:
    """By differences of fourth order, of rays one by one."""
    pred, target = colours(64, seed)
    pred.requires_grad_()

    def value(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return s3im(x, target, patch_shape=(8, 8), generator=generator)

    (slope,) = torch.autograd.grad(value(pred), pred)
    off, h = 0.0, 1e-3
    for ray in range(0, 64, 7):
        step = torch.zeros(64, 3, dtype=torch.float64)
        step[ray, ray % 3] = h
        with torch.no_grad():
            near, wide = (float(value(pred + k * step) - value(pred - k * step)) for k in (1, 2))
        off = max(off, abs((8 * near - wide) / (12 * h) - float(slope[ray, ray % 3])))
    result.check("gradient off differences, over the largest", off / float(slope.abs().max()), 1e-7)


class _Known:
    """The scene, for torch."""

    def density(self, points: Tensor) -> Tensor:
        return torch.from_numpy(scene.density(points.numpy()))

    def colour(self, points: Tensor, dirs: Tensor) -> Tensor:
        return torch.from_numpy(scene.colour(points.numpy()))


def _renderer(result: Result) -> None:
    origins, dirs = scene.camera(0.3, 0.5, 16)
    exact = scene.render(origins, dirs, SAMPLES)
    rays = torch.from_numpy(origins), torch.from_numpy(dirs)
    found = render_rays(_Known(), *rays, NEAR, FAR, SAMPLES).numpy()
    result.check("rendered colours off numpy's", float(np.abs(found - exact).max()), 1e-12)


# ------------------------------------------------------------------------------ radiance fields


def _quick(result: Result, data: Data, seed: int) -> dict[str, list[Run]]:
    """Train twice, shortly: the loss falls."""
    runs = {
        name: [
            train(
                data.noisy, data.unseen, seed, weight,
                patch=QUICK["patch"], samples=QUICK["samples"], steps=QUICK["steps"],
            )
        ]
        for name, weight in (("mean square", 0.0), (f"S3IM {WEIGHT}", WEIGHT))
    }  # fmt: skip
    third = QUICK["steps"] // 3
    for name, (found,) in runs.items():
        _report(result, f"{QUICK['steps']} steps, {name}", [found])
        fall = fmean(found.losses[-third:]) / fmean(found.losses[:third])
        text = f"{QUICK['steps']} steps, {name}: squared error of the last third over the first's"
        result.check(text, fall, 0.7)
    small = ", ".join(f"{name} {number}" for name, number in QUICK.items())
    result.left_out += [
        f"{STEPS} steps of {PATCH**2} rays of {SIZE} x {SIZE} pixels; here {small}",
        f"two of {SEEDS} seeds, and what S3IM gains",
        "pictures without noise, crops in place of random rays, a weight of 1",
    ]
    return runs


def _noisy(result: Result, data: Data, seed: int) -> dict[str, list[Run]]:
    """Noise of 0.15 on the pictures trained on: S3IM beside none, and beside SSIM of crops."""
    kinds = {
        "mean square": (0.0, False), f"S3IM {WEIGHT}": (WEIGHT, False),
        "crops, mean square": (0.0, True), f"crops, SSIM {WEIGHT}": (WEIGHT, True),
    }  # fmt: skip
    runs = {
        name: [train(data.noisy, data.unseen, seed + i, w, crops=c) for i in range(SEEDS)]
        for name, (w, c) in kinds.items()
    }
    for name, found in runs.items():
        _report(result, f"noise {NOISE}, {name}", found)
    plain, ours, *_ = runs.values()
    text = f"noise {NOISE}, S3IM {WEIGHT} less mean square alone, mean of {SEEDS} seeds: held-out"
    gains = [b.ssim - a.ssim for a, b in zip(plain, ours, strict=True)]
    result.check(f"{text} SSIM", fmean(gains), 0.003, at_least=True)
    result.metrics["… least of a seed"] = min(gains)
    gains = [b.psnr - a.psnr for a, b in zip(plain, ours, strict=True)]
    result.check(f"{text} PSNR, dB", fmean(gains), -0.15, at_least=True)
    return runs


def _others(result: Result, data: Data, seed: int) -> None:
    """Report, without a bound: a weight of 1, and pictures without noise."""
    _report(result, f"noise {NOISE}, S3IM 1", [train(data.noisy, data.unseen, seed, 1.0)])
    for weight in (0.0, WEIGHT):
        name = f"no noise, S3IM {weight}" if weight else "no noise, mean square"
        found = [train(data.clean, data.unseen, seed + i, weight) for i in range(SEEDS)]
        _report(result, name, found)


def _report(result: Result, name: str, runs: list[Run]) -> None:
    result.metrics[f"{name}: held-out PSNR, dB"] = fmean(r.psnr for r in runs)
    result.metrics[f"{name}: held-out SSIM"] = fmean(r.ssim for r in runs)


def _figure(data: Data, runs: dict[str, list[Run]]) -> Figure:
    columns = {"true": data.unseen.images} | {name: found[0].images for name, found in runs.items()}
    width = len(columns)
    figure = Figure(figsize=(10, 20 / width + 3), layout="constrained")
    parts = figure.add_gridspec(2, 1, height_ratios=(20 / width, 3))
    upper, lower = (figure.add_subfigure(parts[i, 0]) for i in range(2))
    grid = upper.add_gridspec(2, width)
    for row, view in enumerate((0, 2)):
        for col, (name, images) in enumerate(columns.items()):
            axes = upper.add_subplot(grid[row, col])
            axes.imshow(np.clip(images[view], 0, 1))
            axes.set(xticks=[], yticks=[], title="" if row else name)
            if col == 0:
                axes.set_ylabel(f"held-out view {view + 1}")
    grid = lower.add_gridspec(1, 2, width_ratios=(1, 2))
    axes = lower.add_subplot(grid[0, 0])
    axes.imshow(data.noisy.images[0])
    axes.set(title=f"trained on: noise {NOISE}", xticks=[], yticks=[])
    axes = lower.add_subplot(grid[0, 1])
    for name, found in runs.items():
        axes.plot([r.psnr for r in found], [r.ssim for r in found], "o", label=name)
    axes.set(xlabel="held-out PSNR, dB", ylabel="held-out SSIM")
    axes.legend()
    return figure
