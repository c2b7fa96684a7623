"""DGNO's acceptance figures: MultiONet against DeepONet, learning without solutions, inversion."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from sat.methods import Result
from sat.methods.dgno.inversion import Inversion, invert
from sat.methods.dgno.model import DGNO, fit
from sat.methods.dgno.onet import DeepONet, MultiONet
from sat.methods.dgno.weak import WeakTest
from sat.methods.problems.darcy import darcy_1d, two_phases
from sat.methods.problems.fields import neumann_field, relative_l2
from sat.methods.problems.training import fit as fit_loop

CELLS, PHASES, LOAD = 64, (5.0, 10.0), 10.0
TRAIN, TEST, SEEDS = 1000, 200, 3
WIDTH, SUPERVISED_EPOCHS, SUPERVISED_BATCH = 64, 150, 100
EPOCHS, BATCH, LR = 150, 50, 1e-3  # 3000 steps
MODEL: dict[str, Any] = {
    "latent": 32, "dim": 1, "hidden": (128, 64), "input_width": 64, "width": 64, "centers": 50,
    "n_mesh": 7, "radius": 1e-2,
}  # fmt: skip
QUICK_EPOCHS, QUICK_TRAIN = 10, 300
NODES = torch.linspace(0, 1, CELLS + 1)[:, None]


@dataclass(frozen=True)
class Media:
    """Two-phase media of 64 cells, and their exact solutions at the 65 ends of cells."""

    a: Tensor
    u: Tensor

    def __getitem__(self, places: slice) -> Media:
        return Media(self.a[places], self.u[places])


def media(count: int, seed: int) -> Media:
    """Return media whose phases follow the sign of a Gaussian field; float32."""
    centres = (np.arange(CELLS) + 0.5) / CELLS
    field = neumann_field(count, centres, 1, np.random.default_rng(seed))
    a = two_phases(field, PHASES)
    u, _ = darcy_1d(a, LOAD)
    return Media(torch.from_numpy(a).float(), torch.from_numpy(u).float())


def supervised(
    kind: type[MultiONet], train: Media, test: Media, seed: int, *, width: int, epochs: int
) -> tuple[float, int]:
    """Train an operator net on solutions; return its test error and its parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = kind(1, CELLS, width)
    middle, half = (PHASES[1] + PHASES[0]) / 2, (PHASES[1] - PHASES[0]) / 2

    def predict(a: Tensor) -> Tensor:
        out: Tensor = net(NODES, (a - middle) / half)
        return out

    fit_loop(
        lambda places: relative_l2(predict(train.a[places]), train.u[places]).mean(),
        len(train.a), torch.optim.Adam(net.parameters(), LR), epochs=epochs,
        batch=SUPERVISED_BATCH, generator=torch.Generator().manual_seed(seed), schedule="cosine",
    )  # fmt: skip
    with torch.no_grad():
        error = float(relative_l2(predict(test.a), test.u).mean())
    return error, sum(p.numel() for p in net.parameters())


def unsupervised(train: Media, seed: int, epochs: int) -> DGNO:
    """Train the generative operator on media alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DGNO(CELLS, phases=PHASES, **MODEL)
    generator = torch.Generator().manual_seed(seed)
    fit(model, train.a, LOAD, epochs=epochs, batch=BATCH, lr=LR, generator=generator)
    return model


@torch.no_grad()
def judge(model: DGNO, test: Media) -> tuple[float, float]:
    """Return the mean relative error of u, and the share of cells of a decoded right."""
    beta = model.encode(test.a)
    error = float(relative_l2(model.solution(NODES, beta), test.u).mean())
    upper = model.decode_input(model.cells, beta) > 0
    return error, float((upper == (test.a == PHASES[1])).float().mean())


@dataclass(frozen=True)
class Recovered:
    """One inverted medium: what was measured, what came of it."""

    truth: Media
    x_obs: Tensor
    y: Tensor
    noise: float
    found: Inversion

    @property
    def error(self) -> float:
        """Relative error of u at all nodes."""
        return float(relative_l2(self.found.u[None], self.truth.u))

    @property
    def right(self) -> float:
        """Share of cells whose phase is right."""
        return float((self.found.a == self.truth.a[0]).float().mean())

    @property
    def majority(self) -> float:
        """Share of the commoner phase."""
        share = float((self.truth.a == PHASES[1]).float().mean())
        return max(share, 1 - share)


def recover(
    model: DGNO, train: Media, truth: Media, snr: float, sensors: int, seed: int, steps: int = 500
) -> Recovered:
    """Invert one medium (1, cells) from noisy values at evenly spread sensors."""
    generator = torch.Generator().manual_seed(seed)
    x_obs = ((torch.arange(sensors) + 0.5) / sensors)[:, None]
    exact = torch.from_numpy(
        _between_nodes(truth.a[0].double().numpy(), x_obs[:, 0].double().numpy())
    ).float()
    noise = float((truth.u.square().mean() / 10 ** (snr / 10)).sqrt())
    y = exact + noise * torch.randn(sensors, generator=generator)
    with torch.no_grad():
        codes = model.encode(train.a)
    found = invert(
        model, x_obs, y, noise, codes=codes, f=LOAD, places=NODES, steps=steps, generator=generator
    )
    return Recovered(truth, x_obs, y, noise, found)


def _between_nodes(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return exact u at any x: a parabola in each cell, from its left end on."""
    u, flux = darcy_1d(a[None], LOAD)
    cell = np.minimum((x * CELLS).astype(int), CELLS - 1)
    step = x - cell / CELLS
    return np.asarray(u[0, cell] + step * (flux[0, cell] - LOAD * step / 2) / a[cell])


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about eight minutes on one core.

    Parameters
    ----------
    seed : int
        Of the media; nets are trained from this seed and the two that follow it.
    quick : bool
        One seed, 10 epochs on 300 media, one inversion, nothing said of how good they are.
    """
    result = Result()
    _weak_residual(result, seed)
    whole = media(TRAIN + TEST, seed)
    train, test = whole[: QUICK_TRAIN if quick else TRAIN], whole[TRAIN:]
    blind = float(relative_l2(train.u.mean(0).expand_as(test.u), test.u).mean())
    result.metrics["mean training solution as predictor: relative error of u"] = blind
    curves = _supervised(result, train, test, seed, quick)
    epochs = QUICK_EPOCHS if quick else EPOCHS
    models = [unsupervised(train, seed + i, epochs) for i in range(1 if quick else SEEDS)]
    errors, shares = zip(*(judge(model, test) for model in models), strict=True)
    for i, (error, share) in enumerate(zip(errors, shares, strict=True)):
        result.metrics[f"DGNO, seed {seed + i}: test error of u, no solutions seen"] = error
        result.metrics[f"DGNO, seed {seed + i}: cells of decoded a right"] = share
    with torch.no_grad():
        ends = torch.tensor([[0.0], [1.0]])
        edge = float(models[0].solution(ends, models[0].encode(test.a)).abs().max())
    result.check("DGNO: |u| on the edge", edge, 1e-6)
    few = [
        recover(models[0], train, test[i : i + 1], 25, 20, seed + i, 50 if quick else 500)
        for i in range(1 if quick else 3)
    ]
    _report(result, few, "SNR 25 dB, 20 sensors")
    if quick:
        result.check("DGNO: cells of decoded a right", shares[0], 0.7, at_least=True)
        result.left_out += [
            f"{QUICK_EPOCHS} epochs of {EPOCHS} (on solutions: of {SUPERVISED_EPOCHS})",
            f"{QUICK_TRAIN} media of {TRAIN}, one of {SEEDS} seeds, any bound on errors of u",
            "inversions but one, of 50 steps",
        ]
    else:
        name = "DGNO: test error of u, no solutions seen, median of 3 seeds"
        result.check(name, median(errors), 0.12)
        name = "DGNO: cells of decoded a right, unseen a, median of 3 seeds"
        result.check(name, median(shares), 0.94, at_least=True)
        name = "inversion, SNR 25 dB, 20 sensors: error of u, median of 3"
        result.check(name, median(r.error for r in few), 0.1)
        many = [recover(models[0], train, test[i : i + 1], 50, 40, seed + i) for i in range(3, 8)]
        _report(result, many, "SNR 50 dB, 40 sensors")
        gain = fmean(r.right for r in many) - fmean(r.majority for r in many)
        name = "inversion, SNR 50 dB, 40 sensors: right cells above the commoner phase, mean of 5"
        result.check(name, gain, 0.0, at_least=True)
    result.figures["inversion"] = _figure(few[0], curves)
    return result


def _weak_residual(result: Result, seed: int) -> None:
    """Test the exact flux of a random medium: s = C - f x in one dimension, linear between ends."""
    a = two_phases(
        neumann_field(1, (np.arange(CELLS) + 0.5) / CELLS, 1, np.random.default_rng(seed)), PHASES
    )
    _, flux = darcy_1d(a, LOAD)
    test = WeakTest(1, 2001, 1e-2)
    x = test.sample(50, torch.Generator().manual_seed(seed), torch.float64)
    ends = np.linspace(0, 1, CELLS + 1)
    s = torch.from_numpy(np.interp(x.numpy().ravel(), ends, flux[0])).view(1, *x.shape)
    worst = float(test.residual(s, LOAD).abs().max())
    result.check("weak residual of the exact flux, float64, 50 test functions", worst, 1e-6)


Curves = dict[str, list[tuple[int, float]]]


def _supervised(result: Result, train: Media, test: Media, seed: int, quick: bool) -> Curves:
    """Compare the operator nets on solutions; return errors by parameters, for the picture."""
    curves: Curves = {}
    means = {}
    for kind in (MultiONet, DeepONet):
        name = kind.__name__
        runs = [
            supervised(
                kind, train, test, seed + i, width=WIDTH,
                epochs=QUICK_EPOCHS if quick else SUPERVISED_EPOCHS,
            )
            for i in range(1 if quick else SEEDS)
        ]  # fmt: skip
        for i, (error, _) in enumerate(runs):
            result.metrics[f"{name} on solutions, seed {seed + i}: test error"] = error
        parameters = runs[0][1]
        means[name] = fmean(error for error, _ in runs)
        result.metrics[f"{name}: parameters"] = parameters
        small = () if quick else (16, 32)
        curves[name] = [
            supervised(kind, train, test, seed, width=width, epochs=SUPERVISED_EPOCHS)[::-1]
            for width in small
        ]
        curves[name].append((parameters, means[name]))
    if not quick:
        result.check(
            "MultiONet on solutions: test error, mean of 3 seeds", means["MultiONet"], 0.026
        )
        ratio = means["DeepONet"] / means["MultiONet"]
        result.check("DeepONet's test error over MultiONet's", ratio, 1.2, at_least=True)
    return curves


def _report(result: Result, recovered: list[Recovered], text: str) -> None:
    for i, one in enumerate(recovered):
        name = f"inversion, {text}, medium {i}"
        result.metrics[f"{name}: error of u"] = one.error
        result.metrics[f"{name}: noise over y"] = one.noise / float(one.y.square().mean().sqrt())
        result.metrics[f"{name}: right cells (commoner phase {one.majority:.2f})"] = one.right
        wrong = one.found.a != one.truth.a[0]
        for where, cells in (("wrong", wrong), ("right", ~wrong)):
            spread = float(one.found.spread[cells].mean()) if bool(cells.any()) else float("nan")
            result.metrics[f"{name}: spread of a in {where} cells"] = spread


# ------------------------------------------------------------------------------------- picture


def _figure(one: Recovered, curves: Curves) -> Figure:
    figure = Figure(figsize=(10, 6.8), layout="constrained")
    (medium, solution), (spread, errors) = figure.subplots(2, 2)
    x = (np.arange(CELLS) + 0.5) / CELLS
    low, high = PHASES
    medium.step(x, one.truth.a[0], where="mid", color="black", label="true")
    for i, draw in enumerate(one.found.draws[:8]):
        medium.plot(x, draw, color="0.75", linewidth=0.7, label="draws" if i == 0 else None)
    medium.plot(x, low + (high - low) * one.found.a_prob, label="mean of the draws")
    medium.step(x, one.found.a, where="mid", linestyle="--", label="recovered")
    medium.set(xlabel="x", ylabel="a")
    medium.legend(fontsize=8, loc="center left")
    solution.plot(NODES[:, 0], one.truth.u[0], color="black", label="true")
    solution.plot(NODES[:, 0], one.found.u, "--", label="recovered")
    solution.errorbar(one.x_obs[:, 0], one.y, one.noise, fmt=".", label="sensors, ± noise")
    solution.set(xlabel="x", ylabel="u")
    solution.legend(fontsize=8)
    spread.plot(x, one.found.spread, label="spread of a")
    spread.plot(x, (one.found.a - one.truth.a[0]).abs(), ":", label="|error|")
    spread.set(xlabel="x", ylabel="a")
    spread.legend(fontsize=8)
    _draw_errors(errors, curves)
    return figure


def _draw_errors(axes: Axes, curves: Curves) -> None:
    for name, points in curves.items():
        axes.loglog(*zip(*points, strict=True), "o-", label=name)
    sizes = [next(zip(*points, strict=True)) for points in curves.values()][0]
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="parameters", ylabel="test error, trained on solutions")
    axes.legend(fontsize=8)
