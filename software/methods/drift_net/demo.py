"""DRIFT-Net's acceptance figures: forecasts of a driven flow beside window attention's; exact ones.

The flow is solved by `sat.methods.problems.navier_stokes`, in numpy; errors are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sat.methods import Result
from sat.methods.drift_net.blocks import Block, ConvBlock, WindowAttentionBlock
from sat.methods.drift_net.network import DriftNet
from sat.methods.drift_net.spectral import RadialBandGate, SpectralMixing
from sat.methods.drift_net.training import frequency_weighted_loss, rollout
from sat.methods.problems.navier_stokes import navier_stokes_2d
from sat.methods.problems.rounding import product_bound
from sat.methods.problems.scaling import scaled_backward

SIZE, TRAIN, TEST, STEPS = 32, 72, 16, 10
FLOW: dict[str, float] = {"dt": 0.2, "nu": 2e-3, "forcing": 0.1, "step": 0.04}
MODEL: dict[str, Any] = {
    "patch": 2, "dim": 24, "depths": (2, 1), "skips": (0,), "time_conditioning": False,
    "increment": True,
}  # fmt: skip
UPDATES, BATCH, LR, SEEDS = 1000, 16, 4e-3, 2
QUICK_UPDATES, QUICK_TRAIN = 100, 16
LEADS = (1, 5, 10)


def _attention(dim: int, resolution: int, *, shifted: bool, **options: Any) -> Block:
    return WindowAttentionBlock(dim, resolution, shift=4 if shifted else 0, **options)


def _convolution(dim: int, resolution: int, *, shifted: bool, **options: Any) -> Block:
    return ConvBlock(dim, resolution, **options)


KINDS: dict[str, dict[str, Any]] = {
    "DRIFT": {"init": "identity"},
    "window attention": {"block": _attention},
    "convolution alone": {"block": _convolution},
}


def flows(count: int, seed: int) -> Tensor:
    """Return vorticity (count, 11, 1, 32, 32) float32, 0.2 apart, over its deviation of 0.7."""
    w = navier_stokes_2d(count, SIZE, STEPS, seed=seed, **FLOW)  # type: ignore[arg-type]
    return torch.from_numpy(w / 0.7).float()[:, :, None]


@dataclass
class Trained:
    """A network and its forecasts of the test flows."""

    model: DriftNet
    forecast: Tensor
    errors: NDArray[np.float64]
    """Mean relative L1 at each step."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def train(kind: str, data: Tensor, test: Tensor, seed: int, updates: int) -> Trained:
    """Train on pairs one step apart; forecast the test flows from their first fields."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DriftNet(1, 1, SIZE, **MODEL, **KINDS[kind])
    before, after = data[:, :-1].flatten(0, 1), data[:, 1:].flatten(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, updates)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        places = torch.randint(len(before), (BATCH,), generator=generator)
        optimizer.zero_grad()
        scaled_backward(frequency_weighted_loss(model(before[places]), after[places]), model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    model.eval()
    forecast = rollout(model, test[:, 0], STEPS)
    return Trained(model, forecast, errors_by_step(forecast, test[:, 1:]))


def errors_by_step(forecast: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Return the mean over flows of Σ|e| / Σ|u| at each step, by numpy."""
    e, u = (x.double().numpy() for x in (forecast - truth, truth))
    axes = (2, 3, 4)
    return np.asarray((np.abs(e).sum(axes) / np.abs(u).sum(axes)).mean(0))


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about eight minutes on one core.

    Parameters
    ----------
    seed : int
        Of the flows; networks are trained from this seed and the next.
    quick : bool
        One seed, 100 updates on 16 flows, nothing said of how good forecasts are.
    """
    result = Result()
    _exact(result, seed)
    data = flows(QUICK_TRAIN + TEST if quick else TRAIN + TEST, seed)
    training, test = data[:-TEST], data[-TEST:]
    still = errors_by_step(test[:, :1].expand_as(test[:, 1:]), test[:, 1:])
    for lead in LEADS:
        result.metrics[f"persistence: relative L1 at step {lead}"] = float(still[lead - 1])
    updates = QUICK_UPDATES if quick else UPDATES
    kinds = ["DRIFT"] if quick else list(KINDS)
    runs = {
        kind: [
            train(kind, training, test, seed + i, updates)
            for i in range(1 if quick or kind == "convolution alone" else SEEDS)
        ]
        for kind in kinds
    }
    for kind, trained in runs.items():
        for i, one in enumerate(trained):
            for lead in LEADS:
                name = f"{kind}, seed {seed + i}: relative L1 at step {lead}"
                result.metrics[name] = float(one.errors[lead - 1])
        result.metrics[f"{kind}: parameters"] = trained[0].parameters
    first = rollout(runs["DRIFT"][0].model, test[:, 0], 1)[:, 0]
    off = float((first - runs["DRIFT"][0].forecast[:, 0]).abs().max())
    result.check("rollout of one step off the first of ten", off, 0.0)
    if quick:
        untrained = train("DRIFT", training, test, seed, 1)
        ratio = float(runs["DRIFT"][0].errors[0] / untrained.errors[0])
        name = f"DRIFT, {QUICK_UPDATES} updates: relative L1 of a step, over that after one update"
        result.check(name, ratio, 0.8)
        result.left_out += [
            f"one of {SEEDS} seeds, window attention, convolution alone",
            f"{QUICK_UPDATES} updates of {UPDATES}, {QUICK_TRAIN} flows of {TRAIN}",
        ]
    else:
        for lead in (1, 5):
            drift, window = (
                fmean(t.errors[lead - 1] for t in runs[kind])
                for kind in ("DRIFT", "window attention")
            )
            name = f"DRIFT over window attention, relative L1 at step {lead}, mean of {SEEDS} seeds"
            result.check(name, drift / window, 0.8)
        fewer = runs["DRIFT"][0].parameters / runs["window attention"][0].parameters
        result.check("DRIFT over window attention, parameters", fewer, 1.0)
    result.figures["forecasts"] = _figure(runs, test, still)
    return result


# ------------------------------------------------------------------------------- exact figures


def _exact(result: Result, seed: int) -> None:
    """What the spectral branch does to fields for which it is known."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixing = SpectralMixing(4, 16, init="identity").double()
    x = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shifted = mixing(x.roll((3, -5), (2, 3)))
        off = float((shifted - mixing(x).roll((3, -5), (2, 3))).abs().max())
        result.check("spectral branch of a shifted field, off the shifted branch", off, _bound(8))
        gates = mixing.gates(x)
        inside = float(torch.minimum(gates, 1 - gates).min())
        result.check("gates: distance to 0 and 1", inside, 1e-6, at_least=True)
        _halve(mixing)
        off = float((mixing(x) - x / 2).abs().max())
    result.check("W = I and gates of 1/2: off half of the field", off, _bound(8))
    covered = RadialBandGate(16, 16).share.gt(0).sum(1)
    result.check("modes in none or two bands", float((covered != 1).sum()), 0.0)


def _bound(products: int) -> float:
    return product_bound(1e-12, products)


def _halve(mixing: SpectralMixing) -> None:
    """Set W to the identity, and all gates to sigmoid(0)."""
    mixing.weight.zero_()
    mixing.weight[..., 0].copy_(torch.eye(mixing.dim))
    last = mixing.gate.mlp[2]
    assert isinstance(last, torch.nn.Linear)
    last.weight.zero_()
    last.bias.zero_()


# ------------------------------------------------------------------------------------- picture


def _figure(runs: dict[str, list[Trained]], test: Tensor, still: NDArray[np.float64]) -> Figure:
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    fields, curves = np.asarray(figure.subfigures(1, 2, width_ratios=[1.6, 1]))
    rows: list[tuple[str, Callable[[int], Tensor]]] = [("solver", lambda k: test[0, k])]
    for kind in list(runs)[:2]:
        forecast = runs[kind][0].forecast
        rows.append((kind, lambda k, f=forecast: f[0, k - 1]))  # type: ignore[misc]
    panels = fields.subplots(len(rows), len(LEADS), squeeze=False)
    top = float(test[0].abs().max())
    for line, (name, field) in zip(panels, rows, strict=True):
        for axes, lead in zip(line, LEADS, strict=True):
            drawn = axes.imshow(
                field(lead)[0].T, origin="lower", cmap="RdBu_r", vmin=-top, vmax=top
            )
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{name}, step {lead}", fontsize=10)
    fields.colorbar(drawn, ax=panels, shrink=0.6, label="vorticity over 0.7")
    axes = curves.subplots()
    steps = np.arange(1, STEPS + 1)
    axes.plot(steps, still, "k:", label="persistence")
    for place, (kind, trained) in enumerate(runs.items()):
        for one in trained:
            label = f"{kind}, {one.parameters:,} parameters" if one is trained[0] else None
            axes.plot(steps, one.errors, "o-", color=f"C{place}", label=label)
    axes.set(xlabel="step of the forecast", ylabel="relative L1, mean of 16 flows", ylim=(0, None))
    axes.legend(fontsize=8)
    return figure
