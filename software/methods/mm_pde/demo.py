"""MM-PDE's acceptance figures: meshes against exact ones, what they gain, forecasts on them.

Interpolation is scipy's on its own triangulation, trajectories are spectral, errors numpy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.optimize import brentq
from torch import Tensor

from sat.methods import Result
from sat.methods.mm_pde.branches import ArrayBranch, MlpBranch
from sat.methods.mm_pde.message_passing import uniform_mesh
from sat.methods.mm_pde.monitor import (
    GridFields,
    determinant,
    equidistribution,
    monitor,
    move_1d,
    sample_points,
)
from sat.methods.mm_pde.mover import MeshMover, refine_last_layer, train_mover
from sat.methods.mm_pde.solver import MMPDE, rollout, train_solver
from sat.methods.problems.burgers import burgers_2d
from sat.methods.problems.rounding import product_bound

Array = NDArray[np.float64]

WIDTH, STRENGTH, SAMPLES, NODES, FINE = 0.08, 4.0, 9, 25, 160
FIELDS, UNSEEN, EPOCHS, BATCH, LR, SEEDS = 320, 12, 25, 16, 5e-3, 3
QUICK_EPOCHS = 3
OVERSAMPLE = 1
"""Uniform places: drawn by the monitor, 40 to 1 as released, meshes gain less here."""
SIZE, TRAIN, TEST, STEPS, DT = 24, 20, 6, 10, 0.03
MOVER_EPOCHS, SOLVER_EPOCHS, SOLVER_BATCH, SOLVER_LR, WARM_UP = 25, 7, 5, 4e-3, 6
SOLVER: dict[str, Any] = {
    "size": SIZE, "dt": DT, "gain": 1.0, "layers": 3, "neighbours": 8, "k": 12,
    "interpolation": (64, 64), "weights": "softmax",
}  # fmt: skip
HIDDEN = 24


@dataclass(frozen=True)
class Ridges:
    """u = exp(-(q - c)² / (2 s²)), q the distance from the centre along a direction; `Fields`."""

    angle: Tensor
    offset: Tensor

    def _along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction (fields, 1, 2), and q - c (fields, nodes)."""
        way = torch.stack([self.angle.cos(), self.angle.sin()], -1).to(x.dtype)[:, None]
        return way, ((x - 0.5) * way).sum(-1) - self.offset.to(x.dtype)[:, None]

    def value(self, x: Tensor) -> Tensor:
        """Return u (fields, nodes) at places (fields, nodes, 2)."""
        q = self._along(x)[1]
        return torch.exp(-(q**2) / (2 * WIDTH**2))

    def gradient(self, x: Tensor) -> Tensor:
        way, q = self._along(x)
        return (-q / WIDTH**2 * torch.exp(-(q**2) / (2 * WIDTH**2)))[..., None] * way

    @property
    def samples(self) -> Tensor:
        return self.value(self._all(uniform_mesh(SAMPLES, 2))).view(-1, SAMPLES, SAMPLES)

    @property
    def alpha(self) -> Tensor:
        middles = (uniform_mesh(64, 2) * 63 + 0.5) / 64
        return torch.linalg.vector_norm(self.gradient(self._all(middles)), dim=-1).mean(1)

    def _all(self, x: Tensor) -> Tensor:
        return x.expand(len(self), -1, -1)

    def __len__(self) -> int:
        return len(self.angle)

    def __getitem__(self, places: Tensor) -> Ridges:
        return Ridges(self.angle[places], self.offset[places])


def ridges(count: int, seed: int, *, one_way: bool = False) -> Ridges:
    """Return random ridges, all along x with ``one_way``."""
    generator = torch.Generator().manual_seed(seed)
    angle, offset = torch.rand(2, count, generator=generator)
    return Ridges(math.pi * angle * (not one_way), 0.4 * offset - 0.2)


def make_mover(seed: int) -> MeshMover:
    """Return an untrained mover for ridges."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        branch = MlpBranch(SAMPLES, (64, 64))
        return MeshMover(branch, 64, monitor_strength=STRENGTH, trunk=(64,), head=(128, 64))


def trained_mover(fields: Ridges, seed: int, epochs: int) -> MeshMover:
    """Return a mover trained on ridges."""
    mover = make_mover(seed)
    generator = torch.Generator().manual_seed(seed)
    train_mover(
        mover, fields, epochs=epochs, batch=BATCH, lr=LR, oversample=OVERSAMPLE, generator=generator
    )
    return mover


@dataclass(frozen=True)
class Moved:
    """Meshes of some ridges, and how well they carry them."""

    fields: Ridges
    x: Tensor
    jacobian: Tensor

    def monitor(self, x: Tensor) -> Tensor:
        """Return m (fields, nodes) at places."""
        size = torch.linalg.vector_norm(self.fields.gradient(x), dim=-1)
        return monitor(size, self.fields.alpha[:, None], STRENGTH)

    @property
    def unevenness(self) -> Array:
        """Deviation of m det / θ of each field, over all nodes."""
        return equidistribution(self.x, self.jacobian, self.monitor).double().numpy()

    def errors(self) -> Array:
        """Return what linear interpolation is off (fields, 160, 160), exact less interpolated."""
        middles = (np.arange(FINE) + 0.5) / FINE
        places = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2)
        wide = torch.from_numpy(places).expand(len(self.fields), -1, -1)
        exact = self.fields.value(wide).numpy()
        values = self.fields.value(self.x.double()).numpy()
        found = [
            LinearNDInterpolator(x, u)(places)
            for x, u in zip(self.x.double().numpy(), values, strict=True)
        ]
        return np.asarray((exact - np.stack(found)).reshape(-1, FINE, FINE))


@torch.no_grad()
def move(mover: MeshMover, fields: Ridges) -> tuple[Moved, Moved]:
    """Return the moved and the uniform meshes of 25 x 25 nodes."""
    mesh = uniform_mesh(NODES, 2)
    still = torch.eye(2).expand(len(fields), len(mesh), 2, 2)
    return (
        Moved(fields, *mover.move(fields.samples, mesh)),
        Moved(fields, mesh.expand(len(fields), -1, -1), still),
    )


def rms(errors: Array) -> float:
    """Return the mean over fields of the root mean square."""
    return float(np.sqrt((errors**2).mean((1, 2))).mean())


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about four minutes on one core.

    Parameters
    ----------
    seed : int
        Of fields and trajectories; networks are trained from this seed and the two that follow it.
    quick : bool
        One seed, 3 epochs of ridges, one of Burgers' equation on few trajectories; nothing said of
        what is gained.
    """
    result = Result()
    _line(result)
    _derivatives(result, seed)
    epochs = QUICK_EPOCHS if quick else EPOCHS
    fields, unseen = ridges(FIELDS, seed), ridges(UNSEEN, seed + 1000)
    movers = [trained_mover(fields, seed + i, epochs) for i in range(1 if quick else SEEDS)]
    _edge(result, movers[0], unseen)
    pairs = [move(mover, unseen) for mover in movers]
    if quick:
        _quick(result, fields, unseen, movers[0], seed)
    else:
        _one_direction(result, seed)
        _ridges(result, pairs)
        _refined(result, movers[0], fields, unseen, seed)
    curves = _burgers(result, seed, quick)
    result.figures["meshes"] = _figure(*pairs[0], curves)
    return result


# ------------------------------------------------------------------------------- exact figures


def _line(result: Result) -> None:
    """m = 1 + 9 sech²(20 (x - 0.4)): its integral is known, and inverted by scipy."""

    def integral(x: float) -> float:
        return x + 9 / 20 * (math.tanh(20 * (x - 0.4)) - math.tanh(-8))

    nodes = move_1d(lambda x: 1 + 9 / np.cosh(20 * (x - 0.4)) ** 2, 41)
    exact = [
        brentq(lambda x, s=s: integral(x) - s * integral(1), 0, 1, xtol=1e-14)
        for s in np.linspace(0, 1, 41)
    ]
    off = float(np.abs(nodes - exact).max())
    result.check("exact mesh of a line off the inverted integral", off, 1e-6)


def _derivatives(result: Result, seed: int) -> None:
    """First and second derivatives of φ against differences of φ, fourth order, float64."""
    mover = make_mover(seed).double()
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(mover.last.weight, std=0.1, generator=generator)
    fields = ridges(3, seed)
    u, h = fields.samples.double(), 2e-3
    xi = 0.1 + 0.8 * torch.rand(20, 2, generator=generator).double()
    steps = (-2, -1, 0, 1, 2)
    shifts = torch.cartesian_prod(torch.tensor(steps), torch.tensor(steps)).double() * h
    places = (xi[:, None] + shifts).flatten(0, 1)
    with torch.no_grad():
        grid = mover.potential(u, places).view(3, 20, 5, 5)
        x, jacobian = mover.move(u, xi)
    first = torch.tensor([1.0, -8, 0, 8, -1]).double() / (12 * h)
    second = torch.tensor([-1.0, 16, -30, 16, -1]).double() / (12 * h**2)
    middle = torch.tensor([0.0, 0, 1, 0, 0]).double()
    found = {"11": (second, middle), "22": (middle, second), "12": (first, first)}
    worst = max(
        float((torch.einsum("buij,i,j->bu", grid, a, b) - exact).abs().max())
        for (a, b), exact in [
            *((found[name], jacobian[..., i, j] - float(i == j))
              for name, i, j in (("11", 0, 0), ("22", 1, 1), ("12", 0, 1))),
            ((first, middle), x[..., 0] - xi[:, 0]), ((middle, first), x[..., 1] - xi[:, 1]),
        ]
    )  # fmt: skip
    # A difference of products is divided by h²: so is their error.
    bound = product_bound(1e-6, round(16 / h**2))
    result.check("derivatives of the potential off differences of it, float64", worst, bound)


@torch.no_grad()
def _edge(result: Result, mover: MeshMover, fields: Ridges) -> None:
    axis = torch.linspace(0, 1, NODES)
    off = 0.0
    for side in (0, 1):
        for end in (0.0, 1.0):
            xi = torch.stack([axis, torch.full_like(axis, end)], -1)
            xi = xi if side else xi.flip(-1)
            x, _ = mover.move(fields.samples, xi)
            off = max(off, float((x[..., side] - end).abs().max()))
    result.check("nodes of the edge off their side", off, 1e-6)


def _one_direction(result: Result, seed: int) -> None:
    """Ridges along x alone: the mover's first coordinate against the line's exact mesh."""
    mover = trained_mover(ridges(FIELDS, seed, one_way=True), seed, EPOCHS)
    unseen = ridges(UNSEEN, seed + 1000, one_way=True)
    moved, _ = move(mover, unseen)
    x = moved.x[..., 0].view(UNSEEN, NODES, NODES).double().numpy()
    off = []
    for i, centre in enumerate(unseen.offset.double().numpy() + 0.5):
        off.append(np.abs(x[i] - move_1d(_line_monitor(float(centre)), NODES)[:, None]))
    result.metrics["one direction: nodes off the exact mesh, mean"] = float(np.mean(off))
    result.metrics["one direction: nodes off the exact mesh, largest"] = float(np.max(off))
    rms_off = float(np.sqrt(np.mean(np.square(off))))
    result.check("one direction: nodes off the exact mesh, root mean square", rms_off, 0.02)


def _line_monitor(centre: float) -> Callable[[Array], Array]:
    """Return the monitor of a ridge along x, by x."""

    def slope(at: Array) -> Array:
        q = at - centre
        return np.asarray(np.abs(q) / WIDTH**2 * np.exp(-(q**2) / (2 * WIDTH**2)))

    alpha = slope((np.arange(4096) + 0.5) / 4096).mean()
    return lambda at: 1 + STRENGTH * slope(at) / alpha


def _ridges(result: Result, pairs: list[tuple[Moved, Moved]]) -> None:
    uneven, gained, least = [], [], []
    for i, (moved, still) in enumerate(pairs):
        uneven.append(float(moved.unevenness.mean() / still.unevenness.mean()))
        here, there = rms(moved.errors()), rms(still.errors())
        gained.append(here / there)
        least.append(float(determinant(moved.jacobian).min()))
        result.metrics[f"ridges, seed {i}: deviation of m det / θ"] = float(moved.unevenness.mean())
        result.metrics[f"ridges, seed {i}: interpolation RMS"] = here
        result.metrics[f"ridges, seed {i}: least det"] = least[-1]
        result.metrics["ridges, uniform: deviation of m det / θ"] = float(still.unevenness.mean())
        result.metrics["ridges, uniform: interpolation RMS"] = there
    name = f"ridges: deviation of m det / θ over the uniform mesh's, mean of {len(pairs)} seeds"
    result.check(name, fmean(uneven), 0.8)
    name = f"ridges: interpolation RMS over the uniform mesh's, mean of {len(pairs)} seeds"
    result.check(name, fmean(gained), 0.75)
    result.check("ridges: least det, worst of all seeds", min(least), 1e-6, at_least=True)


def _refined(result: Result, mover: MeshMover, fields: Ridges, unseen: Ridges, seed: int) -> None:
    """Report what BFGS on the last layer adds."""
    generator = torch.Generator().manual_seed(seed)
    some = fields[torch.arange(48)]
    start, end = refine_last_layer(
        mover, some, points=128, rounds=1, iterations=60, oversample=OVERSAMPLE, generator=generator
    )[0]
    result.check("BFGS on the last layer: loss after over before", end / start, 1.0)
    moved, still = move(mover, unseen)
    name = "BFGS on the last layer, seed 0: interpolation RMS over the uniform mesh's"
    result.metrics[name] = rms(moved.errors()) / rms(still.errors())


def _quick(result: Result, fields: Ridges, unseen: Ridges, mover: MeshMover, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    xi = sample_points(unseen, 64, STRENGTH, generator)
    with torch.no_grad():
        before, after = (float(m.losses(unseen, xi)["interior"]) for m in (make_mover(seed), mover))
    name = f"ridges, {QUICK_EPOCHS} epochs: loss of unseen ones, over an untrained mover's"
    result.check(name, after / before, 0.95)
    result.left_out += [
        f"{QUICK_EPOCHS} epochs of {EPOCHS} on ridges, two of {SEEDS} seeds, what meshes gain",
        "ridges of one direction, BFGS on the last layer",
        f"one epoch of {SOLVER_EPOCHS} on Burgers' equation, and its bound",
    ]


# ------------------------------------------------------------------------------ Burgers' equation


def _burgers(result: Result, seed: int, quick: bool) -> dict[str, list[Array]]:
    """Forecast by MM-PDE and by its network on the uniform mesh alone; return errors by step."""
    train, test = (2, 1) if quick else (TRAIN, TEST)
    data = torch.from_numpy(burgers_2d(train + test, SIZE, STEPS, DT, seed=seed)).float()
    training, unseen = data[:train], data[train:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        branch = ArrayBranch(SIZE, 64, 128)
        mover = MeshMover(branch, 64, monitor_strength=STRENGTH, trunk=(64,), head=(128, 64))
    train_mover(
        mover, GridFields(training.flatten(0, 1)), epochs=1 if quick else MOVER_EPOCHS,
        batch=BATCH, lr=LR, oversample=OVERSAMPLE, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    curves: dict[str, list[Array]] = {"MM-PDE": [], "uniform mesh alone": []}
    for i in range(1 if quick else SEEDS):
        parameters: dict[str, int] = {}
        for name, found in curves.items():
            with torch.random.fork_rng():
                torch.manual_seed(seed + i)
                if name == "MM-PDE":
                    model = MMPDE(mover, hidden=HIDDEN, **SOLVER)
                else:
                    model = MMPDE(None, hidden=_as_large(parameters["MM-PDE"]), **SOLVER)
            parameters[name] = learned(model)
            result.metrics[f"Burgers, {name}: parameters"] = parameters[name]
            train_solver(
                model, training, epochs=1 if quick else SOLVER_EPOCHS, batch=SOLVER_BATCH,
                lr=SOLVER_LR, warm_up=1 if quick else WARM_UP,
                generator=torch.Generator().manual_seed(seed + i),
            )  # fmt: skip
            forecast = rollout(model, unseen[:, 0], STEPS)
            found.append(relative_errors(forecast, unseen[:, 1:]))
            result.metrics[f"Burgers, {name}, seed {seed + i}: error at step 1"] = float(
                found[-1][0]
            )
            result.metrics[f"Burgers, {name}, seed {seed + i}: error, all steps"] = float(
                found[-1].mean()
            )
    still = relative_errors(unseen[:, :1].expand(-1, STEPS, -1, -1), unseen[:, 1:])
    result.metrics["Burgers, persistence: error, all steps"] = float(still.mean())
    if quick:
        with torch.no_grad():
            _, jacobian = mover.move(unseen[:, 0], uniform_mesh(SIZE, 2))
        least = float(determinant(jacobian).min())
        result.check("Burgers, one epoch: least det", least, 1e-6, at_least=True)
        return curves
    ours, theirs = (np.array([c.mean() for c in curves[name]]) for name in curves)
    ratios = (ours / theirs).tolist()
    result.metrics["Burgers: error over the uniform mesh's alone, deviation"] = stdev(ratios)
    name = f"Burgers: rollout error over the uniform mesh's alone, mean of {SEEDS} seeds"
    result.check(name, float(ours.mean() / theirs.mean()), 1.0)
    return curves


def learned(model: MMPDE) -> int:
    """Return how many parameters are trained; the mover's are not."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _as_large(parameters: int) -> int:
    """Return the least width of a network alone that has as many parameters."""
    hidden = HIDDEN
    while learned(MMPDE(None, hidden=hidden, **SOLVER)) < parameters:
        hidden += 1
    return hidden


def relative_errors(forecast: Tensor, truth: Tensor) -> Array:
    """Return ‖e‖ / ‖u‖ at each step (steps,), mean over trajectories; by numpy."""
    e, u = ((x.double().numpy()) for x in (forecast - truth, truth))
    axes = (2, 3)
    return np.asarray(np.sqrt((e**2).sum(axes) / (u**2).sum(axes)).mean(0))


# ------------------------------------------------------------------------------------- picture


def _figure(moved: Moved, still: Moved, curves: dict[str, list[Array]]) -> Figure:
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(4, 5)
    theirs, ours = still.errors(), moved.errors()
    share = moved.monitor(moved.x) * determinant(moved.jacobian)
    share = share / share.mean(1, keepdim=True)
    fine = torch.linspace(0, 1, 101)
    places = torch.stack(torch.meshgrid(fine, fine, indexing="ij"), -1).flatten(0, 1)
    values = moved.fields.value(places.expand(len(moved.fields), -1, -1)).view(-1, 101, 101)
    common: dict[str, Any] = {"origin": "lower", "extent": (0, 1, 0, 1)}
    for row, line in enumerate(panels[:3]):
        for axes, x, text in zip(line, (still.x, moved.x), ("uniform", "moved"), strict=False):
            axes.imshow(values[row].T, cmap="Blues", **common)
            lines = x[row].view(NODES, NODES, 2).numpy()
            for k in range(NODES):
                axes.plot(*lines[k].T, "k", linewidth=0.4)
                axes.plot(*lines[:, k].T, "k", linewidth=0.4)
            axes.set(xlim=(0, 1), ylim=(0, 1))
            axes.set_title(f"{text} mesh over u", fontsize=9)
        drawn = line[2].imshow(
            share[row].view(NODES, NODES).T, vmin=0, vmax=2, cmap="RdBu_r", **common
        )
        line[2].set_title("m det / θ", fontsize=9)
        figure.colorbar(drawn, ax=line[2], shrink=0.7)
        top = float(np.abs(theirs[row]).max())
        for axes, errors, text in zip(line[3:], (theirs, ours), ("uniform", "moved"), strict=True):
            drawn = axes.imshow(errors[row].T, vmin=-top, vmax=top, cmap="RdBu_r", **common)
            axes.set_title(f"error, {text} mesh", fontsize=9)
        figure.colorbar(drawn, ax=line[4], shrink=0.7)
        for axes in line:
            axes.set(xticks=[], yticks=[])
    grid = panels[3, 0].get_gridspec()
    for axes in panels[3]:
        axes.remove()
    curve = figure.add_subplot(grid[3, :])
    for place, (name, found) in enumerate(curves.items()):
        for i, errors in enumerate(found):
            label = name if i == 0 else None
            steps = DT * np.arange(1, STEPS + 1)
            curve.plot(steps, errors, "o-", color=f"C{place}", label=label)
    curve.set(xlabel="time", ylabel="relative L2", ylim=(0, None))
    curve.set_title("forecasts of Burgers' equation", fontsize=10)
    curve.legend(fontsize=8)
    return figure
