"""NeuralDEM's acceptance figures: a draining hopper, learned from discrete elements.

Runs come from `sat.methods.problems.granular`; a network is judged beside the nearest training run
and beside a second run of other discs, which no network can be better than.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from torch import Tensor

from sat.methods import Result
from sat.methods.neuraldem.models import BedModel, HopperModel
from sat.methods.neuraldem.particles import occupancy, residence_time, smooth, to_logscale
from sat.methods.problems.granular import HEIGHT, OUTLET_HEIGHT, WIDTH, Dem2d
from sat.methods.problems.training import fit

Array = NDArray[np.float64]

DISCS, ANGLE, GRID = 150, 60.0, (8, 12)
BOX = np.array([[0.0, 0.0], [WIDTH, HEIGHT]])
TIMES = np.arange(0.0, 15.0, 2.0)
OUTLETS, FRICTIONS = (6.5, 8.0, 9.5, 11.0), (0.15, 0.4, 0.65, 0.9)
VALIDATION = ((7.2, 0.3), (10.2, 0.8))
TESTS = ((7.6, 0.55), (9.1, 0.25), (8.3, 0.75), (10.6, 0.5))
SETTLING, SETTLED, LONGEST_SETTLING = (5.0, 10.0), 1.0, 40.0
FIELDS = {"occupancy": 1, "left": 1, "displacement": 2, "transport": 2, "residence": 1}
OF_DISCS = ("displacement", "transport", "residence")
SCALE = 200.0
"""What coordinates are brought to."""
SCALAR_SCALES = (200.0, 20.0)
"""What scalars are brought to, one of these: validation chooses."""
RANGES = {"time": (0.0, 1.0), "outlet": (0.0, 1.0), "friction": (0.0, 1.0)}
MODEL: dict[str, Any] = {"d": 48, "heads": 4, "tokens": 8, "depth": 1}
EPOCHS, BATCH, LR, DECAY, SEEDS = 110, 32, 2e-3, 0.05, 3
DISC_QUERIES = 24
"""Discs of each sample that a training step asks for; which ones is drawn anew."""
QUICK_EPOCHS, QUICK_BATCH = 40, 8


@dataclass(frozen=True)
class Run:
    """A hopper that drains; all at `TIMES`."""

    outlet: float
    friction: float
    positions: Array
    """(times, discs, 2)."""
    radii: Array
    settling: tuple[float, ...]
    """Kinetic energy at the times `SETTLING`, and before the outlet opened."""

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(times, discs)."""
        return self.positions[..., 1] > OUTLET_HEIGHT

    @property
    def left(self) -> Array:
        """Discs above the outlet (times,)."""
        return self.inside.sum(1).astype(np.float64)

    @property
    def occupancy(self) -> Array:
        """Smoothed share of cells that discs cover (times, 8, 12)."""
        fields = [occupancy(x, self.radii, GRID, BOX) for x in self.positions]
        return smooth(np.stack(fields))


@cache
def simulate(outlet: float, friction: float, seed: int, discs: int = DISCS) -> Run:
    """Fill a hopper, let it settle, open it and watch."""
    dem = Dem2d.hopper(outlet, ANGLE, friction, discs, seed)
    settling = []
    for time in SETTLING:
        dem.run(time)
        settling.append(dem.kinetic_energy)
    while dem.kinetic_energy > SETTLED and dem.time < LONGEST_SETTLING:
        dem.run(dem.time + 2)
    settling.append(dem.kinetic_energy)
    dem.open()
    frames = []
    for time in TIMES:
        dem.run(time)
        frames.append(dem.positions.copy())
    return Run(outlet, friction, np.stack(frames), dem.radii, tuple(settling))


def scalars(outlet: float, friction: float, times: Array = TIMES) -> Tensor:
    """Return (times, 3): time, outlet and friction, each scaled to 0 … 1."""
    low, high = OUTLETS[0], OUTLETS[-1]
    columns = (times / TIMES[-1], (outlet - low) / (high - low), friction)
    return torch.tensor(np.stack(np.broadcast_arrays(*columns), 1)).float()


def scaled(places: Array) -> Tensor:
    """Return coordinates, scaled to 0 … 200."""
    return torch.tensor(places / BOX[1] * SCALE).float()


def cells(finer: int = 1) -> Tensor:
    """Return scaled centres (cells, 2) of the grid, or of one so many times finer."""
    axes = [
        (np.arange(n * finer) + 0.5) * length / (n * finer)
        for n, length in zip(GRID, BOX[1], strict=True)
    ]
    return scaled(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2))


@dataclass(frozen=True)
class Samples:
    """What a network is trained on: one row for each run and time."""

    scalars: Tensor
    places: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: dict[str, Tensor]


def samples(runs: list[Run]) -> Samples:
    """Return the fields of runs at all times."""
    parts: dict[str, dict[str, list[Tensor]]] = {
        kind: {name: [] for name in FIELDS} for kind in ("places", "targets", "weights")
    }

    def add(name: str, places: Tensor, target: Array, weight: Array | None = None) -> None:
        values = torch.tensor(target).float()
        parts["places"][name].append(places)
        parts["targets"][name].append(values)
        shown = np.ones(target.shape[:2]) if weight is None else weight
        parts["weights"][name].append(torch.tensor(shown).float())

    grid = cells()
    for run in runs:
        n = len(TIMES)
        whole = grid.expand(n, -1, -1)
        add("occupancy", whole, run.occupancy.reshape(n, -1, 1))
        middle = scaled(BOX[1:] / 2).expand(n, 1, 2)
        add("left", middle, run.left[:, None, None] / len(run.radii))
        start = scaled(run.positions[0]).expand(n, -1, -1)
        moved = run.positions - run.positions[0]
        shown = np.ones(moved.shape[:2])
        add("displacement", start, to_logscale(torch.tensor(moved)).numpy(), shown)
        at = scaled(np.clip(run.positions, 0, BOX[1]))
        speed = np.gradient(run.positions, TIMES, axis=0)
        add("transport", at, to_logscale(torch.tensor(speed)).numpy(), run.inside.astype(float))
        gone = residence_time(run.inside, TIMES) / TIMES[-1]
        add("residence", start, np.broadcast_to(gone[None, :, None], (n, len(gone), 1)), shown)
    joined = {
        kind: {name: torch.cat(v) for name, v in named.items()} for kind, named in parts.items()
    }
    rows = torch.cat([scalars(run.outlet, run.friction) for run in runs])
    return Samples(rows, joined["places"], joined["targets"], joined["weights"])


@dataclass
class Trained:
    """A model, and the means and deviations of its fields."""

    model: HopperModel
    mean: dict[str, Tensor]
    deviation: dict[str, Tensor]
    scale: float
    """Of scalars."""

    @torch.no_grad()
    def __call__(self, rows: Tensor, name: str, places: Tensor) -> Array:
        """Return a field (rows, places, channels) in its own units."""
        out = (
            self.model(self.scale * rows, {name: places})[name] * self.deviation[name]
            + self.mean[name]
        )
        return out.double().numpy()


def train(
    data: Samples, seed: int, epochs: int, batch: int = BATCH, scale: float = SCALAR_SCALES[-1]
) -> Trained:
    """Train on all fields at once: the sum of their mean squares, normalised."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ranges = {name: (low * scale, high * scale) for name, (low, high) in RANGES.items()}
        model = HopperModel(FIELDS, tuple(RANGES), ranges=ranges, **MODEL)
    mean = {name: t.mean((0, 1)) for name, t in data.targets.items()}
    deviation = {name: t.flatten(0, 1).std(0) + 1e-6 for name, t in data.targets.items()}
    wanted = {name: (t - mean[name]) / deviation[name] for name, t in data.targets.items()}

    generator = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        chosen = {
            name: torch.randperm(p.shape[1], generator=generator)[:DISC_QUERIES]
            if name in OF_DISCS
            else torch.arange(p.shape[1])
            for name, p in data.places.items()
        }
        places = {name: data.places[name][rows][:, some] for name, some in chosen.items()}
        out = model(scale * data.scalars[rows], places)
        total = out["occupancy"].new_zeros(())
        for name, field in out.items():
            off = (field - wanted[name][rows][:, chosen[name]]).square().mean(-1)
            weight = data.weights[name][rows][:, chosen[name]]
            total = total + (off * weight).sum() / weight.sum().clamp(min=1)
        return total

    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=DECAY)
    fit(loss, len(data.scalars), optimizer, epochs=epochs, batch=batch, generator=generator)
    return Trained(model, mean, deviation, scale)


def off(found: Array, true: Array) -> float:
    """Return ‖found - true‖ / ‖true‖ over all times and cells, by numpy."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about four minutes on one core.

    Parameters
    ----------
    seed : int
        Of the discs; networks are trained from this seed and the two that follow it.
    quick : bool
        Two training runs of 40 discs and one test, 40 epochs; nothing said of tests.
    """
    result = Result()
    _collisions(result)
    _queries(result, seed)
    if quick:
        runs = [simulate(outlet, 0.4, seed, 40) for outlet in (8.0, 11.0)]
        trained = [train(samples(runs), seed, QUICK_EPOCHS, QUICK_BATCH)]
        blind = np.mean([r.occupancy for r in runs], (0, 1))
        found = _occupancy(trained[0], runs[0])
        whole = off(np.broadcast_to(blind, found.shape), runs[0].occupancy)
        ratio = off(found, runs[0].occupancy) / whole
        result.check(
            f"training run, {QUICK_EPOCHS} epochs: error over the mean field's", ratio, 1.0
        )
        result.left_out += [
            "15 of 16 training runs, 110 of 150 discs, tests, two of three seeds",
            f"{QUICK_EPOCHS} epochs of {EPOCHS}, any bound on the error of a test",
        ]
        result.figures["hopper"] = _figure(runs[0], runs[1], runs[1], trained[0], None)
        return result
    runs = [simulate(outlet, friction, seed) for outlet in OUTLETS for friction in FRICTIONS]
    tests = [[simulate(*place, seed + 100 + i) for i in (0, 1)] for place in TESTS]
    _flow(result, runs, tests)
    data = samples(runs)
    first = _choose(result, data, seed)
    trained = [first, *(train(data, seed + i, EPOCHS, scale=first.scale) for i in range(1, SEEDS))]
    _judge(result, runs, tests, trained)
    nearest = _nearest(runs, tests[0][0])
    result.figures["hopper"] = _figure(tests[0][0], tests[0][1], nearest, trained[0], trained[0])
    return result


def _choose(result: Result, data: Samples, seed: int) -> Trained:
    """Return the network whose scale of scalars is best for hoppers that are no tests."""
    runs = [simulate(*place, seed + 200) for place in VALIDATION]
    found = []
    for scale in SCALAR_SCALES:
        one = train(data, seed, EPOCHS, scale=scale)
        error = fmean(off(_occupancy(one, r), r.occupancy) for r in runs)
        result.metrics[f"validation occupancy, scalars to {scale:g}"] = error
        found.append((error, one))
    return min(found, key=lambda pair: pair[0])[1]


def _occupancy(trained: Trained, like: Run) -> Array:
    rows = scalars(like.outlet, like.friction)
    return trained(rows, "occupancy", cells()).reshape(len(TIMES), *GRID)


def _left(trained: Trained, outlet: float, friction: float, times: Array = TIMES) -> Array:
    rows = scalars(outlet, friction, times)
    return trained(rows, "left", scaled(BOX[1:] / 2))[:, 0, 0] * DISCS


def _nearest(runs: list[Run], test: Run) -> Run:
    """Return the training run whose scaled outlet and friction are nearest."""
    here = scalars(test.outlet, test.friction)[0]
    return min(runs, key=lambda r: float((scalars(r.outlet, r.friction)[0] - here).norm()))


def _judge(result: Result, runs: list[Run], tests: list[list[Run]], trained: list[Trained]) -> None:
    pairs = [(test, _nearest(runs, test)) for both in tests for test in both]
    blind = np.mean([r.occupancy for r in runs], 0)
    nearest = fmean(off(near.occupancy, test.occupancy) for test, near in pairs)
    seeds = fmean(off(b.occupancy, a.occupancy) for a, b in tests)
    time_mean = fmean(off(blind, test.occupancy) for test, _ in pairs)
    result.metrics["test occupancy: nearest training run"] = nearest
    result.metrics["test occupancy: mean training field of that time"] = time_mean
    result.metrics["test occupancy: discrete elements, seed against seed"] = seeds
    errors, counts = [], []
    for i, one in enumerate(trained):
        errors.append(fmean(off(_occupancy(one, t), t.occupancy) for t, _ in pairs))
        counts.append(
            fmean(float(np.abs(_left(one, t.outlet, t.friction) - t.left).mean()) for t, _ in pairs)
        )
        result.metrics[f"test occupancy, network, seed {i}"] = errors[-1]
        result.metrics[f"test discs left off, network's field, seed {i}"] = counts[-1]
    cell = float(np.prod(BOX[1]) / np.prod(GRID))
    whole = []
    for test, _ in pairs:
        area = _occupancy(trained[0], test).sum((1, 2)) * cell
        discs = area / (math.pi * float((test.radii**2).mean()))
        whole.append(float(np.abs(discs - test.left).mean()))
    result.metrics["test discs left off, integral of the occupancy"] = fmean(whole)
    result.metrics["test discs left off, nearest run"] = fmean(
        float(np.abs(near.left - test.left).mean()) for test, near in pairs
    )
    result.metrics["test discs left off, seed against seed"] = fmean(
        float(np.abs(a.left - b.left).mean()) for a, b in tests
    )
    error = fmean(errors)
    result.check(f"test occupancy, network, mean of {SEEDS} seeds", error, 0.125)
    result.check("… over the nearest training run's", error / nearest, 0.95)
    result.check("… over the mean training field's of that time", error / time_mean, 1.0)
    result.check(f"test discs left off, network's field, mean of {SEEDS} seeds", fmean(counts), 4.5)


# ------------------------------------------------------------------------------- exact figures


def restitution(damping: float, stiffness: float = 500.0) -> float:
    """Return the speed after over before a collision of two discs of mass 1.

    The force is never a pull, so the contact ends where it would become one: Schwager and Pöschel
    2007, arXiv 0711.1024, equation 16.
    """
    w2 = 2 * stiffness - damping**2
    w = math.sqrt(w2)
    turn = math.pi - math.atan2(2 * damping * w, w2 - damping**2)
    return math.exp(-damping / w * turn)


def collide(damping: float, friction: float = 0.0, offset: float = 0.0) -> tuple[Dem2d, Dem2d]:
    """Return two discs before and after they meet, without gravity."""
    places = np.array([[0.0, 0.0], [math.sqrt(4 - offset**2) + 1e-6, offset]])
    speeds = np.array([[0.5, 0.0], [-0.5, 0.0]])
    made = [
        Dem2d(places, np.ones(2), (), friction, velocities=speeds, damping=damping, gravity=0.0,
              dt=1e-4)
        for _ in range(2)
    ]  # fmt: skip
    made[1].run(0.3)
    return made[0], made[1]


def _collisions(result: Result) -> None:
    for damping, bound in ((1.0, 1e-3), (4.0, 1e-3), (10.0, 2e-3)):
        _, after = collide(damping)
        found = float(after.velocities[1, 0] - after.velocities[0, 0])
        exact = restitution(damping)
        name = f"restitution at damping {damping:g} off the closed form, relative"
        result.check(name, abs(found / exact - 1), bound)
    _, after = collide(4.0, 0.5, 1.0)
    result.check(
        "momentum after a free collision",
        float(np.abs(after.masses @ after.velocities).max()),
        1e-10,
    )
    before, after = collide(0.0, 0.0, 1.0)
    change = abs(after.kinetic_energy_of_all / before.kinetic_energy_of_all - 1)
    result.check("energy without damping and friction, relative change", change, 1e-3)


def _flow(result: Result, runs: list[Run], tests: list[list[Run]]) -> None:
    every = [*runs, *(t for both in tests for t in both)]
    energies = np.array([r.settling for r in every])
    falls = (energies[:, 1:] / energies[:, :-1]).max()
    name = "kinetic energy while settling: at 10 over 5, before opening over 10, worst of all runs"
    result.check(name, falls, 1.0)
    result.check("kinetic energy before opening, worst", energies[:, -1].max(), SETTLED)
    out = {(r.outlet, r.friction): DISCS - r.left[-1] for r in runs}
    wide = [fmean(out[d, f] for f in FRICTIONS) for d in OUTLETS]
    rough = [fmean(out[d, f] for d in OUTLETS) for f in FRICTIONS]
    for name, places, values in (("outlet", OUTLETS, wide), ("friction", FRICTIONS, rough)):
        for place, value in zip(places, values, strict=True):
            result.metrics[f"discs out after 14, {name} {place}"] = value
    steps = [b - a for a, b in zip(wide, wide[1:], strict=False)]
    steps += [a - b for a, b in zip(rough, rough[1:], strict=False)]
    result.check("more discs out for wider, fewer for rougher: least step", min(steps), 0.0,
                 at_least=True)  # fmt: skip


def _queries(result: Result, seed: int) -> None:
    """Ask at more places, and follow the auxiliary loss's gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HopperModel({"occupancy": 1}, ("time",), 2, **MODEL)
        bed = BedModel((4, 4), 2, ("inflow",), box=(1.0, 1.0), d=16, heads=2, depth=2,
                       supernodes=6, radius=0.3, norms=(1,))  # fmt: skip
        places, moved = torch.rand(2, 20, 2), 0.1 * torch.randn(2, 20, 2)
        fluid, mixed = torch.randn(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    rows = torch.tensor([[0.0], [100.0]])
    few, many = cells(), torch.cat([cells(), cells(2)])
    with torch.no_grad():
        a, b = (model(rows, {"occupancy": p})["occupancy"] for p in (few, many))
    result.check(
        "decoder at five times the places, common ones",
        float((a - b[:, : len(few)]).abs().max()),
        1e-5,
    )
    out = bed(torch.tensor([[1.0], [2.0]]), places, moved, fluid, mixed, places,
              torch.Generator().manual_seed(seed))  # fmt: skip
    main = [
        p for name, p in bed.named_parameters()
        if ("particles" in name or "fluid" in name or name.startswith(("pool", "after_pool")))
    ]  # fmt: skip
    grads = torch.autograd.grad(out["mixing"].square().sum(), main, allow_unused=True)
    worst = max((float(g.abs().max()) for g in grads if g is not None), default=0.0)
    result.check("gradient of the auxiliary loss by main weights", worst, 0.0)


# ------------------------------------------------------------------------------------- picture


def _figure(
    test: Run, other: Run, nearest: Run, trained: Trained, mapped: Trained | None
) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 6)
    shown = [0, 2, 4, 7]
    predicted = _occupancy(trained, test)
    for column, k in enumerate(shown):
        discs, field = panels[0, column], panels[1, column]
        circles = [Circle(tuple(p), r) for p, r in zip(test.positions[k], test.radii, strict=True)]
        discs.add_collection(
            PatchCollection(circles, facecolor="0.6", edgecolor="k", linewidth=0.3)
        )
        discs.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal", xticks=[], yticks=[])
        drawn = field.imshow(
            predicted[k].T, origin="lower", extent=(0, WIDTH, 0, HEIGHT), vmin=0, vmax=0.9
        )
        discs.set_title(f"discs, t = {TIMES[k]:g}", fontsize=10)
        field.set(xticks=[], yticks=[])
        field.set_title("network", fontsize=10)
    figure.colorbar(drawn, ax=panels[1, :4], shrink=0.7, label="occupancy")
    for ax in panels[:, 4:].flat:
        ax.remove()
    grid = panels[0, 0].get_gridspec()
    curve = figure.add_subplot(grid[0 if mapped else slice(None), 4:])
    for run, text, style in (
        (test, "discrete elements", "k-"), (other, "… other discs", "k--"),
        (nearest, "nearest training run", "C1:"),
    ):  # fmt: skip
        curve.plot(TIMES, run.left / len(run.radii), style, label=text)
    fine = np.linspace(0, TIMES[-1], 57)
    curve.plot(
        fine, _left(trained, test.outlet, test.friction, fine) / DISCS, "C0", label="network"
    )
    title = f"outlet {test.outlet:g}, friction {test.friction:g}"
    curve.set(xlabel="time", ylabel="share left", ylim=(0, 1.05))
    curve.set_title(title, fontsize=10)
    curve.legend(fontsize=8)
    if mapped is not None:
        _map(figure, grid, mapped)
    return figure


def _map(figure: Figure, grid: Any, trained: Trained) -> None:
    axes = figure.add_subplot(grid[1, 4:])
    outlets, frictions = np.linspace(6.5, 11, 19), np.linspace(0.15, 0.9, 16)
    fine = np.linspace(0, TIMES[-1], 57)
    half = np.full((len(frictions), len(outlets)), np.nan)
    for i, friction in enumerate(frictions):
        for j, outlet in enumerate(outlets):
            below = _left(trained, outlet, friction, fine) < DISCS / 2
            if below.any():
                half[i, j] = fine[below.argmax()]
    drawn = axes.pcolormesh(outlets, frictions, half, shading="nearest")
    axes.set(xlabel="outlet", ylabel="friction")
    axes.set_title("time to half drained (white: never)", fontsize=10)
    figure.colorbar(drawn, ax=axes)
