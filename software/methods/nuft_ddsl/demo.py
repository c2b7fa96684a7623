"""Acceptance figures: transforms in closed form, polygons told apart, a shape found by descent.

References are scipy's and numpy's: products of sincs, a Bessel function, Green's formula edge by
edge, plain sums. Pixels that the method is compared with are matplotlib's point-in-polygon test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.path import Path
from numpy.typing import NDArray
from scipy.special import j1
from torch import Tensor
from torch.nn import functional

from sat.methods import Result
from sat.methods.nuft_ddsl.layers import SimplexRaster
from sat.methods.nuft_ddsl.models import SpectralLeNet
from sat.methods.nuft_ddsl.transform import polygon_ft, simplex_ft
from sat.methods.problems.rounding import product_bound
from sat.methods.problems.training import fit

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
SIDES, SIZES, JITTER = (3, 4, 5, 6, 8), (0.18, 0.40), 0.02
SAMPLES, TEST, EPOCHS, BATCH, LR, SEEDS = 4000, 1000, 20, 50, 2e-3, 2
QUICK_SAMPLES, QUICK_TEST, QUICK_EPOCHS = 2000, 500, 10
RASTERS = (8, 16)
MARGINS, QUICK_MARGIN = {8: 20.0, 16: 12.0}, 10.0
DESCENT, RATE, STARTS = 300, 4e-3, 5


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        Of shapes; networks are trained from this seed and the next.
    quick : bool
        Polygons at 8 x 8 alone, 2,000 of them, one seed and 10 epochs; one shape found.
    """
    result = Result()
    _exact(result, seed)
    scores = _polygons(result, seed, quick)
    found = _inverse(result, seed, 1 if quick else STARTS)
    result.figures["polygons"] = _figure(scores, found)
    if quick:
        result.left_out += [
            f"{SAMPLES} polygons, {EPOCHS} epochs, {SEEDS} seeds, 16 x 16, with their margins",
            f"{STARTS} starts of the inverse problem",
        ]
    return result


# --------------------------------------------------------------------------------- closed forms


def waves(n: int) -> tuple[Array, Array]:
    """Return numpy's angular frequencies of n modes: all, and the half from 0 up."""
    whole, half = np.fft.fftfreq(n, 1 / n), np.fft.rfftfreq(n, 1 / n)
    return np.asarray(2 * np.pi * whole, float), np.asarray(2 * np.pi * half, float)


def box(k: Array, low: float, size: float) -> Complex:
    """Return the transform of an interval."""
    return np.asarray(
        np.exp(-1j * k * (low + size / 2)) * size * np.sinc(k * size / 2 / np.pi), complex
    )


def green(ring: Array, n: int) -> Complex:
    """Return a polygon's transform by its edges, nothing at frequency 0."""
    kx, ky = np.meshgrid(*waves(n), indexing="ij")
    squares = kx**2 + ky**2
    out = np.zeros(kx.shape, complex)
    for a, b in zip(ring, np.roll(ring, -1, 0), strict=True):
        (x, y), (dx, dy) = (a + b) / 2, b - a
        wave = np.exp(-1j * (kx * x + ky * y)) * np.sinc((kx * dx + ky * dy) / 2 / np.pi)
        out += (kx * dy - ky * dx) * wave
    return 1j * out / np.where(squares, squares, 1)


def lobes(count: int = 5, points: int = 40) -> Array:
    """Return a star-shaped ring with as many lobes, not convex."""
    angle = 2 * np.pi * np.arange(points) / points
    radius = 0.25 + 0.1 * np.cos(count * angle)
    return np.stack([0.52 + radius * np.cos(angle), 0.47 + radius * np.sin(angle)], 1)


def off(got: Tensor, true: Complex, *, zero: bool = True) -> float:
    """Return the largest difference over the largest value."""
    difference = np.abs(got.numpy() - true)
    if not zero:
        difference[(0,) * difference.ndim] = 0
    return float(difference.max() / np.abs(true).max())


RECTANGLE = ((0.2, 0.3), (0.7, 0.3), (0.7, 0.55), (0.2, 0.55))
CUBE_TETS = (
    (0, 1, 3, 7), (0, 1, 5, 7), (0, 2, 3, 7), (0, 2, 6, 7), (0, 4, 5, 7), (0, 4, 6, 7),
)  # fmt: skip


def _exact(result: Result, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Sums over elements are products. Of few terms, each rounded: nothing averages out.
    bound = product_bound(1e-12, 4)
    one = torch.ones(2, 1, dtype=torch.float64)
    corners = torch.tensor(RECTANGLE, dtype=torch.float64)
    pair = torch.tensor([[0, 1, 2], [0, 2, 3]])
    whole, half = waves(32)
    true = box(whole, 0.2, 0.5)[:, None] * box(half, 0.3, 0.25)
    made = simplex_ft(corners, pair, one, 32, mode="mass")[..., 0]
    result.check("rectangle, all 544 modes, against sincs", off(made, true), bound)
    phases = (corners.numpy()[None, None] * np.stack(np.meshgrid(whole, half, indexing="ij"), -1)
              [:, :, None]).sum(-1)  # fmt: skip
    naive = np.stack([_divided(phases[..., list(three)]) for three in ((0, 1, 2), (0, 2, 3))])
    bad = (~np.isfinite(naive)).any(0).sum()
    result.metrics["… modes that the sum over vertices leaves not finite"] = float(bad)

    made = simplex_ft(_cube(), torch.tensor(CUBE_TETS), torch.ones(6, 1), 8, mode="mass")[..., 0]
    whole, half = waves(8)
    x, y, z = box(whole, 0.1, 0.5), box(whole, 0.2, 0.5), box(half, 0.3, 0.5)
    true = x[:, None, None] * y[:, None] * z
    result.check("cube of six tetrahedra against sincs", off(made, true), bound)

    angle = 2 * np.pi * np.arange(2000) / 2000
    ring = torch.from_numpy(0.5 + 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1))
    kx, ky = np.meshgrid(*waves(32), indexing="ij")
    k = np.hypot(kx, ky)
    safe = np.where(k, k, 1)
    disc = np.where(k, 2 * np.pi * 0.3 * j1(safe * 0.3) / safe, np.pi * 0.09)
    true = disc * np.exp(-0.5j * (kx + ky))
    made = polygon_ft([ring], 32, mode="mass")[..., 0]
    # The polygon's own area is short of the disc's by (2 pi / 2000)² / 6, 1.6e-6.
    result.check("2000-gon against the disc's Bessel function", off(made, true), max(1e-5, bound))

    ring = torch.from_numpy(lobes())
    filled = polygon_ft([ring], 32, mode="mass")[..., 0]
    true = green(lobes(), 32)
    name = "polygon of five lobes, filled, against Green's formula"
    result.check(name, off(filled, true, zero=False), bound)
    fan = torch.tensor([[40, i, (i + 1) % 40] for i in range(40)])
    center = torch.tensor([[0.52, 0.47]], dtype=torch.float64)
    parts = simplex_ft(torch.cat([ring, center]), fan, torch.ones(40, 1), 32, mode="mass")
    name = "… against its triangles"
    result.check(name, off(filled, parts[..., 0].numpy()), bound)

    points, masses = rng.random((200, 3)), rng.standard_normal((200, 2))
    made = simplex_ft(
        torch.from_numpy(points), torch.arange(200)[:, None], torch.from_numpy(masses), (6, 7, 8)
    )
    axes = [2 * np.pi * np.fft.fftfreq(n, 1 / n) for n in (6, 7)]
    axes.append(2 * np.pi * np.fft.rfftfreq(8, 1 / 8))
    factors = [np.exp(-1j * np.outer(points[:, i], axis)) for i, axis in enumerate(axes)]
    true = np.einsum("nx,ny,nz,nc->xyzc", *factors, masses)
    # Over the largest sum; |A|·|B| is larger than it by about the root of 200.
    result.check("200 points against their sum", off(made, true), product_bound(1e-12, 14))
    _moved(result, seed)


def _cube() -> Tensor:
    places = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    return 0.5 * torch.tensor(places, dtype=torch.float64) + torch.tensor(
        [0.1, 0.2, 0.3], dtype=torch.float64
    )


def _divided(phases: Array) -> Complex:
    """Return the textbook's sum over vertices, which divides by differences of phases."""
    with np.errstate(all="ignore"):
        total = np.zeros(phases.shape[:-1], complex)
        for a in range(phases.shape[-1]):
            others = np.delete(phases, a, -1)
            total += np.exp(-1j * phases[..., a]) / np.prod(phases[..., a, None] - others, -1)
    return total


def _moved(result: Result, seed: int) -> None:
    """What a move does is known: a factor of each mode, and so its derivative."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.tensor([0.07, -0.05], dtype=torch.float64)
    ring = torch.from_numpy(lobes())
    facets = torch.tensor([[i, (i + 1) % 40] for i in range(40)])
    density = torch.ones(40, 1, dtype=torch.float64)
    here = simplex_ft(ring, facets, density, 16, j=2, mode="mass")[..., 0]
    there = simplex_ft(ring + shift, facets, density, 16, j=2, mode="mass")[..., 0]
    kx, ky = np.meshgrid(*waves(16), indexing="ij")
    turned = here.numpy() * np.exp(-1j * (kx * 0.07 - ky * 0.05))
    name = "moved polygon against its turned modes (so the origin's place is no matter)"
    result.check(name, off(there, turned), product_bound(1e-12, 4))
    wanted = torch.randn(16, 9, dtype=torch.complex128, generator=generator)
    ring.requires_grad_()
    made = simplex_ft(ring, facets, density, 16, j=2, mode="mass")[..., 0]
    (made * wanted.conj()).real.sum().backward()  # type: ignore[no-untyped-call]
    assert ring.grad is not None
    k = np.stack([kx, ky])
    true = (-1j * k * here.numpy() * wanted.numpy().conj()).real.sum((1, 2))
    error = np.abs(ring.grad.sum(0).numpy() - true).max() / np.abs(true).max()
    # Gradients of single vertices are larger than their sum.
    name = "gradient of all vertices together against -i k F"
    result.check(name, float(error), product_bound(1e-12, 40))


# ---------------------------------------------------------------------------- polygons told apart


@dataclass
class Shapes:
    """Random polygons, by the number of their sides, in one random order."""

    rings: dict[int, Tensor]
    labels: Tensor
    order: Tensor

    def raster(self, res: int, way: str) -> Tensor:
        """Return pictures (samples, res, res, 1) float32 of zeros to about ones."""
        paint = {"exact": exact_rasters, "pixels": pixel_rasters}[way]
        return torch.cat([paint(ring, res) for ring in self.rings.values()])[self.order]


def polygons(count: int, seed: int) -> Shapes:
    """Return regular polygons of random size, place and angle, corners moved by 2 % of the size."""
    generator = torch.Generator().manual_seed(seed)
    rings, labels = {}, []
    for label, sides in enumerate(SIDES):
        many = count // len(SIDES)
        draw = torch.rand(4, many, 1, generator=generator, dtype=torch.float64)
        size = SIZES[0] + (SIZES[1] - SIZES[0]) * draw[0]
        angle = 2 * math.pi * (torch.arange(sides, dtype=torch.float64) / sides + draw[1])
        around = torch.stack([angle.cos(), angle.sin()], -1)
        noise = torch.randn(many, sides, 2, generator=generator, dtype=torch.float64)
        room = 1 - 2 * 1.1 * size  # so that no corner leaves the unit square
        centre = torch.stack([0.5 + room * (draw[i] - 0.5) for i in (2, 3)], -1)
        rings[sides] = (centre + size[..., None] * (around + JITTER * noise)).clamp(0, 1)
        labels.append(torch.full((many,), label))
    order = torch.randperm(count // len(SIDES) * len(SIDES), generator=generator)
    return Shapes(rings, torch.cat(labels)[order], order)


def ring_facets(sides: int) -> Tensor:
    """Return the edges of a ring."""
    here = torch.arange(sides)
    return torch.stack([here, here.roll(-1)], 1)


@torch.no_grad()
def exact_rasters(rings: Tensor, res: int) -> Tensor:
    """Return the method's rasters of rings (samples, sides, 2)."""
    layer = SimplexRaster(res, j=2)
    facets = ring_facets(rings.shape[1])
    density = torch.ones(len(facets), 1)
    return torch.cat([layer(part, facets, density).float() for part in rings.split(100)])


def pixel_rasters(rings: Tensor, res: int) -> Tensor:
    """Return 1 where a sample point lies inside, as matplotlib says; the same points."""
    axis = np.arange(res) / res
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    inside = [Path(ring).contains_points(points) for ring in rings.numpy()]
    return torch.from_numpy(np.stack(inside)).float().reshape(-1, res, res, 1)


def accuracy(pictures: Tensor, labels: Tensor, test: int, seed: int, epochs: int) -> float:
    """Train a `SpectralLeNet`'s layers on pictures; return its accuracy on the last ones, %."""
    torch.manual_seed(seed)
    net = SpectralLeNet(len(SIDES), pictures.shape[1])
    train = len(pictures) - test

    def loss(places: Tensor) -> Tensor:
        return functional.cross_entropy(net.classify(pictures[places]), labels[places])

    fit(
        loss, train, torch.optim.Adam(net.parameters(), LR), epochs=epochs, batch=BATCH,
        generator=torch.Generator().manual_seed(seed), schedule="onecycle",
    )  # fmt: skip
    net.eval()
    with torch.no_grad():
        hits = net.classify(pictures[train:]).argmax(1) == labels[train:]
    return 100 * float(hits.double().mean())


WAYS = {"exact": "NUFT raster", "pixels": "pixels in or out"}


@dataclass
class Scores:
    """Accuracies by resolution and way, one a seed, and what the shapes were."""

    shapes: Shapes
    by: dict[tuple[int, str], list[float]] = field(default_factory=dict)


def _polygons(result: Result, seed: int, quick: bool) -> Scores:
    count, test, epochs = (
        (QUICK_SAMPLES, QUICK_TEST, QUICK_EPOCHS) if quick else (SAMPLES, TEST, EPOCHS)
    )
    scores = Scores(polygons(count, seed))
    for res in RASTERS[:1] if quick else RASTERS:
        for way, text in WAYS.items():
            pictures = scores.shapes.raster(res, way)
            each = [
                accuracy(pictures, scores.shapes.labels, test, seed + i, epochs)
                for i in range(1 if quick else SEEDS)
            ]
            scores.by[res, way] = each
            result.metrics[f"polygons at {res} x {res}, {text}: accuracy, %"] = fmean(each)
        ahead = fmean(scores.by[res, "exact"]) - fmean(scores.by[res, "pixels"])
        bound = QUICK_MARGIN if quick else MARGINS[res]
        name = f"polygons at {res} x {res}: NUFT raster ahead of pixels, points"
        result.check(name, ahead, bound, at_least=True)
    return scores


# -------------------------------------------------------------------------------- a shape found


@dataclass
class Found:
    """Where descent began, ended and should have: rings (n, 2), and the way there."""

    start: Array
    end: Array
    true: Array
    errors: list[float]
    picture: Array


def find(seed: int) -> Found:
    """Find a polygon's corners from its raster at 16 x 16, from one turned and moved by 10 %."""
    generator = torch.Generator().manual_seed(seed)
    size, sides = 0.3, 5
    spokes = size * (0.7 + 0.6 * torch.rand(sides, generator=generator, dtype=torch.float64))
    angle = 2 * math.pi * torch.arange(sides, dtype=torch.float64) / sides
    true = 0.5 + spokes[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    way = 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    turn = torch.tensor(0.1, dtype=torch.float64)
    matrix = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    # Turned by 0.1 and moved by 0.1 of the size, written out: no product to be rounded.
    moved = ((true - 0.5)[:, None, :] * matrix).sum(-1) + 0.5
    ring = moved + 0.1 * size * torch.stack([way.cos(), way.sin()])
    layer, facets = SimplexRaster(16, j=2), ring_facets(sides)
    density = torch.ones(sides, 1, dtype=torch.float64)
    with torch.no_grad():
        wanted = layer(true, facets, density)
    start = ring.clone()
    ring.requires_grad_()
    optimizer = torch.optim.Adam([ring], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DESCENT)
    errors = []
    for _ in range(DESCENT):
        optimizer.zero_grad()
        (layer(ring, facets, density) - wanted).square().sum().backward()
        optimizer.step()
        schedule.step()
        distance = (ring.detach() - true).square().sum(-1).mean().sqrt()
        errors.append(float(distance) / size)
    return Found(start.numpy(), ring.detach().numpy(), true.numpy(), errors, wanted[..., 0].numpy())


def _inverse(result: Result, seed: int, starts: int) -> list[Found]:
    found = [find(seed + i) for i in range(starts)]
    first = max(float(np.sqrt(((f.start - f.true) ** 2).sum(-1).mean())) / 0.3 for f in found)
    result.metrics["shapes to be found: largest error of a start, of the size"] = first
    name = f"shapes found from 16 x 16 pixels, worst of {starts}: error of corners, of the size"
    result.check(name, max(f.errors[-1] for f in found), 0.02)
    return found


# ------------------------------------------------------------------------------------- picture


def _figure(scores: Scores, found: Sequence[Found]) -> Figure:
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    ring = scores.shapes.rings[5][0]
    paints: dict[str, Callable[[Tensor, int], Tensor]] = {
        WAYS["exact"]: exact_rasters, WAYS["pixels"]: pixel_rasters,
    }  # fmt: skip
    for ax, (text, paint) in zip(axes[0], paints.items(), strict=False):
        _draw(ax, paint(ring[None], 8)[0, ..., 0].numpy(), f"{text}, 8 x 8")
        _outline(ax, ring.numpy(), "C3", None)
    bars = axes[0, 2]
    for place, (way, text) in enumerate(WAYS.items()):
        sizes = [res for res in RASTERS if (res, way) in scores.by]
        where = np.arange(len(sizes)) + 0.4 * place
        bars.bar(where, [fmean(scores.by[res, way]) for res in sizes], 0.38, label=text)
        for x, res in zip(where, sizes, strict=True):
            bars.plot([x] * len(scores.by[res, way]), scores.by[res, way], "k.", markersize=4)
    bars.set_xticks(np.arange(len(sizes)) + 0.2, [f"{res} x {res}" for res in sizes])
    bars.set(ylabel="accuracy, %", ylim=(0, 100), title="3, 4, 5, 6 or 8 sides?")
    bars.legend(fontsize=8, loc="lower right")
    one = found[0]
    _draw(axes[1, 0], one.picture, "the picture, 16 x 16")
    _outline(axes[1, 0], one.true, "C3", None)
    for points, colour, label in (
        (one.true, "C3", "true"), (one.start, "C7", "start"), (one.end, "C0", "found"),
    ):  # fmt: skip
        _outline(axes[1, 1], points, colour, label)
    axes[1, 1].set(aspect="equal", xticks=[], yticks=[], title="corners")
    axes[1, 1].legend(fontsize=8)
    for each in found:
        axes[1, 2].semilogy(each.errors, color="C0", alpha=0.6)
    axes[1, 2].axhline(0.02, color="k", linewidth=0.8, linestyle=":")
    axes[1, 2].set(xlabel="step", ylabel="error of corners, of the size", title="descent")
    return figure


def _draw(ax, picture: Array, title: str) -> None:  # type: ignore[no-untyped-def]
    half = 0.5 / len(picture)
    ax.imshow(
        picture.T, origin="lower", extent=(-half, 1 - half, -half, 1 - half), vmin=-0.1, vmax=1.1,
        cmap="Greys",
    )  # fmt: skip
    ax.set(title=title, xticks=[], yticks=[])


def _outline(ax, ring: Array, colour: str, label: str | None) -> None:  # type: ignore[no-untyped-def]
    closed = np.concatenate([ring, ring[:1]])
    ax.plot(closed[:, 0], closed[:, 1], "-", color=colour, label=label, linewidth=1.5)
