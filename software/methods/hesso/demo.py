"""HESSO judged: exact extraction, digits at shares of pruned channels, and a trap for magnitudes.

The released code's loss term in CRIC leaves one channel of the largest layer on digits, which ours,
by marginal losses, does not; without any, CRIC does not see the trap. The metrics show the first.

At 70 % random choice is nearly as good as HESSO's; at 90 % the choice matters, and one of 16 first
channels is too few for anyone. Both are reported.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

import sat
from sat.data import load_data
from sat.methods import Result
from sat.methods.hesso.cric import HESSOCRIC
from sat.methods.hesso.extract import count, extract
from sat.methods.hesso.groups import GroupSpec
from sat.methods.hesso.networks import ResidualCNN, Transformer, make_cnn, make_trap
from sat.methods.hesso.optimizer import HESSO, GroupOptimizer
from sat.methods.hesso.saliency import CRITERIA, saliency
from sat.methods.hesso.tracing import prunable_groups
from sat.methods.problems.scaling import scaled_backward

SEEDS, STEPS, BATCH, LR = 3, 600, 64, 3e-3
START, PRUNING, PERIODS = 100, 200, 4
QUICK_STEPS, QUICK_START, QUICK_PRUNING = 180, 30, 80
SAMPLING = 20
CURVE = (0.3, 0.5, 0.7, 0.8, 0.9)
PATTERNS = ("2:4", "2:8")
TRAP_LR, TRAP_TARGET = 1e-8, 0.5

Make = Callable[[list[GroupSpec], nn.Module], GroupOptimizer]


class RandomHESSO(HESSO):
    """HESSO's schedule with random scores."""

    def scores(self, directions: Mapping[Tensor, Tensor]) -> Tensor:
        return torch.rand(len(self.table), dtype=torch.float64)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Judge scores and extraction exactly, then accuracies on digits, then the trap.

    Parameters
    ----------
    seed : int
        First of three.
    quick : bool
        One seed, 180 steps instead of 600, HESSO at 70 % alone; the trap and small networks in
        whole.
    """
    result = Result()
    _saliency(result, seed)
    _networks(result, seed)
    _trap(result, seed)
    figure = Figure(figsize=(10, 4.2 if quick else 7.2), layout="constrained")
    panels = figure.subplot_mosaic("nl" if quick else "nn;al")  # norms, layers, accuracy
    if quick:
        watch = Watch()
        trained = train(seed, _hesso(0.7, QUICK_START, QUICK_PRUNING), QUICK_STEPS, watch)
        _exact(result, trained, f"{QUICK_STEPS} steps, 70 %")
        result.check("digits, 70 %, one seed: accuracy", trained.accuracy, 0.5, at_least=True)
        result.left_out += [
            f"{QUICK_STEPS} steps of {STEPS}, and accuracies against each other",
            "two of three seeds, other shares, magnitudes, random choice, CRIC on digits, N:M",
        ]
        _draw_norms(panels["n"], watch, (QUICK_START, QUICK_START + QUICK_PRUNING))
        _draw_layers(panels["l"], {"HESSO": trained})
    else:
        watch = Watch()
        runs = _digits(result, seed, watch)
        _judge(result, runs)
        points = _patterns(result, seed, runs["dense", 0.0][0])
        _combined(result, seed)
        _draw_norms(panels["n"], watch, (START, START + PRUNING))
        _draw_accuracy(panels["a"], runs, points)
        shown = ("HESSO", "CRIC", "magnitude", "random")
        _draw_layers(panels["l"], {name: runs[name, 0.7][0] for name in shown})
    result.figures["pruning"] = figure
    return result


# ---------------------------------------------------------------------------------- training


@dataclass
class Watch:
    """The norm of every group after each fifth step of a run."""

    steps: list[int] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)

    def __call__(self, optimizer: GroupOptimizer) -> None:
        if optimizer.steps_taken % 5 == 0:
            self.steps.append(optimizer.steps_taken)
            self.norms.append(optimizer.table.norms())


@dataclass
class Trained:
    """A network that was pruned while it trained.

    Attributes
    ----------
    model, optimizer
    accuracy : float
        On the test digits, of the extracted network.
    small : nn.Module
        What `extract` returned.
    share : float
        Its multiplications over the whole network's.
    apart : float
        Largest difference of its outputs from those of the network with zeros, on 100 digits.
    """

    model: nn.Module
    optimizer: GroupOptimizer
    accuracy: float
    small: nn.Module
    share: float
    apart: float

    @property
    def left(self) -> list[int]:
        """Groups left of each layer."""
        table = self.optimizer.table
        kept = table.layer_of[~self.optimizer.pruned]
        return torch.bincount(kept, minlength=len(table.layers)).tolist()


def accuracy(model: nn.Module) -> float:
    """Return the share of the test digits that a model knows."""
    data = load_data("digits")
    model.eval()
    with torch.no_grad():
        return float((model(data.test_x).argmax(1) == data.test_y).double().mean())


def train(
    seed: int, make: Make, steps: int = STEPS, watch: Watch | None = None,
    network: Callable[[], nn.Module] = make_cnn,
) -> Trained:  # fmt: skip
    """Train a network on digits with an optimiser, and extract what is left.

    CRIC's cycles do not count as steps: it trains as long after its decision as HESSO does after
    its start.
    """
    data = load_data("digits")
    torch.manual_seed(seed)
    model = network()
    optimizer = make(prunable_groups(model, data.train_x[:2]), model)
    order = torch.Generator().manual_seed(seed)
    last = math.inf if isinstance(optimizer, HESSOCRIC) else steps
    while optimizer.steps_taken < last:
        for x, y in data.batches(BATCH, order):
            model.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            scaled_backward(loss, model)
            optimizer.step(loss)
            if watch is not None:
                watch(optimizer)
            if isinstance(optimizer, HESSOCRIC) and optimizer.decided_at >= 0:
                last = optimizer.decided_at + steps - optimizer.start
            if optimizer.steps_taken >= last:
                break
    small = extract(model, optimizer)
    sample = data.test_x[:100]
    model.eval()
    small.eval()
    with torch.no_grad():
        apart = float((small(sample) - model(sample)).abs().max())
    share = count(small, sample[:1])[1] / count(model, sample[:1])[1]
    return Trained(model, optimizer, accuracy(small), small, share, apart)


def _hesso(
    target: float, start: int = START, steps: int = PRUNING, periods: int = PERIODS,
    kind: type[HESSO] = HESSO, **options: Any,
) -> Make:  # fmt: skip
    return lambda groups, model: kind(
        groups, model, LR, variant="adam", target=target, start=start, steps=steps,
        periods=periods, **options,
    )  # fmt: skip


def _cric(target: float, loss_term: str = "marginal") -> Make:
    return lambda groups, model: HESSOCRIC(
        groups, model, LR, variant="adam", target=target, start=START, sampling_steps=SAMPLING,
        hybrid_steps=PRUNING, loss_term=loss_term,
    )  # fmt: skip


METHODS: dict[str, Callable[[float], Make]] = {
    "HESSO": _hesso,
    "CRIC": _cric,
    "magnitude": lambda target: _hesso(target, criteria={"magnitude": 1.0}),
    "random": lambda target: _hesso(target, kind=RandomHESSO),
}


# ------------------------------------------------------------------------------------- exact


def numpy_scores(groups: list[GroupSpec], directions: Mapping[Tensor, Tensor]) -> np.ndarray:
    """Return scores by an explicit loop over groups, in numpy."""
    rows = []
    for group in groups:
        parts: list[np.ndarray] = []
        moves: list[np.ndarray] = []
        for entry in group.entries:
            for place in range(entry.start, entry.stop, entry.step):
                for found, tensor in ((parts, entry.tensor), (moves, directions[entry.tensor])):
                    whole = tensor.detach().numpy().astype(np.float64)
                    found.append(np.take(whole, place, axis=entry.axis).ravel())
        x, d = np.concatenate(parts), np.concatenate(moves)
        lengths = np.sqrt((x**2).sum()), np.sqrt((d**2).sum())
        cosine = (x * d).sum() / ((lengths[0] + 1e-8) * (lengths[1] + 1e-8))
        dot = (x * d).sum()
        rows.append(
            [lengths[0], lengths[0] / (x.size + 1e-6), cosine + 1, abs(dot), dot**2 / 2]
        )  # fmt: skip
    table = np.array(rows)
    return 0.2 * (table / (np.sqrt((table**2).sum(0)) + 1e-8)).sum(1)


def _saliency(result: Result, seed: int) -> None:
    torch.manual_seed(seed)
    worst = 0.0
    for network in (make_cnn(), ResidualCNN(), Transformer(by="channel")):
        groups = prunable_groups(network, load_data("digits").train_x[:2])
        directions: dict[Tensor, Tensor] = {p: torch.randn_like(p) for p in network.parameters()}
        ours = torch.stack(saliency(groups, directions, CRITERIA)).sum(0).numpy()
        worst = max(worst, float(np.abs(ours - numpy_scores(groups, directions)).max()))
    result.check("scores off an explicit loop in numpy", worst, 1e-6)


def _networks(result: Result, seed: int) -> None:
    """Prune half of three networks within 40 steps, and compare what was cut with the zeros."""
    for name, network in (
        ("residual CNN", ResidualCNN), ("attention, by heads", Transformer),
        ("attention, by channels", lambda: Transformer(by="channel")),
    ):  # fmt: skip
        trained = train(seed, _hesso(0.5, 10, 20, 2), 40, network=network)
        _exact(result, trained, name)


def _exact(result: Result, trained: Trained, name: str) -> None:
    optimizer = trained.optimizer
    result.check(f"{name}: extracted network off the zeroed one", trained.apart, 1e-5)
    off = abs(int(optimizer.pruned.sum()) - optimizer.to_prune)
    # A layer that would be emptied keeps one.
    saved = sum(left == 1 for left in trained.left)
    result.check(f"{name}: groups pruned off {optimizer.to_prune}", off, saved)
    bits = 0
    for number in optimizer.pruned.nonzero()[:, 0].tolist():
        for entry in optimizer.groups[number].entries:
            bits += int((entry.view().contiguous().view(torch.int32) != 0).sum())
    result.check(f"{name}: numbers of pruned groups that are not zero, all bits", bits, 0)
    result.metrics[f"{name}: multiplications over the whole network's"] = trained.share


# ------------------------------------------------------------------------------------ digits


Runs = dict[tuple[str, float], list[Trained]]


def _digits(result: Result, seed: int, watch: Watch) -> Runs:
    runs: Runs = {}

    def add(name: str, target: float, make: Make, seeds: int, watch: Watch | None = None) -> None:
        found = [train(seed + i, make, watch=watch if i == 0 else None) for i in range(seeds)]
        runs[name, target] = found
        text = f"digits, {name}, {target:.0%}"
        for i, trained in enumerate(found):
            result.metrics[f"{text}, seed {seed + i}: accuracy"] = trained.accuracy
        result.metrics[f"{text}: accuracy, mean of {seeds}"] = mean(t.accuracy for t in found)
        result.metrics[f"{text}: multiplications over dense"] = mean(t.share for t in found)
        for layer, left in zip(("conv1", "conv2", "fc1"), found[0].left, strict=True):
            result.metrics[f"{text}, seed {seed}: groups left of {layer}"] = left

    add("dense", 0.0, _hesso(0.0), SEEDS)
    for name, make in METHODS.items():
        for target in CURVE:
            seeds = SEEDS if target == 0.7 or (target == 0.9 and name != "CRIC") else 1
            watched = watch if (name, target) == ("HESSO", 0.7) else None
            add(name, target, make(target), seeds, watched)
    at_once = START + PRUNING
    add("cut at once", 0.7, _hesso(0.7, at_once, 1, 1), SEEDS)
    add("CRIC, released loss term", 0.7, _cric(0.7, "layer"), 1)
    add("multiples of 8", 0.7, _hesso(0.7, divisible=8), 1)
    return runs


def _judge(result: Result, runs: Runs) -> None:
    for i, trained in enumerate(runs["HESSO", 0.7]):
        _exact(result, trained, f"digits, 70 %, run {i}")
    level = {key: mean(t.accuracy for t in found) for key, found in runs.items()}
    hesso, dense = level["HESSO", 0.7], level["dense", 0.0]
    text = f"digits, 70 %, {SEEDS} seeds, HESSO"
    result.check(f"{text}: accuracy", hesso, 0.98, at_least=True)
    for name, value, bound in (
        ("dense", hesso - dense, -0.015),
        ("magnitude alone", hesso - level["magnitude", 0.7], 0.2),
        ("random choice", hesso - level["random", 0.7], -0.005),
        ("random choice, 90 %", level["HESSO", 0.9] - level["random", 0.9], 0.03),
    ):
        result.check(f"{text} less {name}: accuracy", value, bound, at_least=True)
    result.check(
        f"{text}: multiplications over dense", mean(t.share for t in runs["HESSO", 0.7]), 0.35
    )
    cric = level["CRIC", 0.7] - hesso
    result.check("digits, 70 %, CRIC less HESSO: accuracy", cric, -0.01, at_least=True)
    fewest = min(min(t.left) for t in runs["CRIC", 0.7])
    result.check("digits, 70 %, CRIC: fewest groups left of a layer", fewest, 2, at_least=True)
    optimizer = runs["CRIC", 0.7][0].optimizer
    assert isinstance(optimizer, HESSOCRIC)
    for number, doubted in enumerate(optimizer.doubted, 1):
        result.metrics[f"digits, 70 %, CRIC, seed 0, cycle {number}: groups in doubt"] = doubted


def sparse_macs(model: nn.Module, pattern: str) -> float:
    """Return a CNN's multiplications a digit, with what ``pattern`` leaves of sparse layers."""
    n, m = (int(x) for x in pattern.split(":"))
    total = 0.0
    sizes: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, y: sizes.update({layer: y[0, 0].numel()}))
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        model(load_data("digits").test_x[:1])
    for hook in hooks:
        hook.remove()
    for layer, positions in sizes.items():
        rows, columns = layer.weight.shape[:2]  # type: ignore[union-attr, index]
        whole = rows % m == 0 and columns % m == 0
        total += layer.weight.numel() * positions * (n / m if whole else 1.0)  # type: ignore[union-attr, operator]
    return total


def train_sparsely(seed: int, pattern: str, model: nn.Module, steps: int = STEPS) -> float:
    """Train a network with N:M weights (BDWP) in FF and BP by Adam; return its accuracy."""
    data = load_data("digits")
    sat.sparsify_(model, "bdwp", pattern)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    order, taken = torch.Generator().manual_seed(seed), 0
    model.train()
    while taken < steps:
        for x, y in data.batches(BATCH, order):
            model.zero_grad()
            scaled_backward(functional.cross_entropy(model(x), y), model)
            optimizer.step()
            taken += 1
            if taken >= steps:
                break
    return accuracy(model)


def _patterns(result: Result, seed: int, dense: Trained) -> dict[str, tuple[float, float]]:
    points = {}
    for pattern in PATTERNS:
        found = []
        for i in range(SEEDS):
            torch.manual_seed(seed + i)
            model = make_cnn()
            found.append(train_sparsely(seed + i, pattern, model))
        share = sparse_macs(model.eval(), pattern) / sparse_macs(dense.model, "8:8")
        points[pattern] = share, mean(found)
        name = f"digits, {pattern} of all channels"
        result.metrics[f"{name}: accuracy, mean of {SEEDS}"] = mean(found)
        result.metrics[f"{name}: multiplications over dense"] = share
    return points


def _combined(result: Result, seed: int) -> None:
    """Cut half of the groups in eights, then train what is left with 2:4 weights."""
    trained = train(seed, _hesso(0.5, divisible=8))
    small = copy.deepcopy(trained.small)
    dense = sparse_macs(trained.model, "8:8")
    found = train_sparsely(seed, "2:4", small, 200)
    name = "digits, half of the channels in eights"
    result.metrics[f"{name}: accuracy"] = trained.accuracy
    result.metrics[f"{name}: multiplications over dense"] = trained.share
    result.metrics[f"{name}, then 200 steps at 2:4: accuracy"] = found
    share = sparse_macs(small.eval(), "2:4") / dense
    result.metrics[f"{name}, then 2:4: multiplications over dense"] = share


# -------------------------------------------------------------------------------------- trap


def indispensable(seed: int) -> Tensor:
    """Return which units of the trap's first layer more than double its loss if they are zero.

    By masking the plain network's activations, (16,) bool.
    """
    trap = make_trap(seed)
    x, y = trap.batch(4096, torch.Generator().manual_seed(seed + 1))
    first, rest = trap.plain[:2], trap.plain[2:]
    with torch.no_grad():
        hidden = first(x)
        whole = float((rest(hidden) - y).square().mean())
        losses = []
        for unit in range(hidden.shape[1]):
            without = hidden.clone()
            without[:, unit] = 0
            losses.append(float((rest(without) - y).square().mean()))
    return torch.tensor(losses) > 2 * whole


def spring_trap(seed: int, make: Make) -> float:
    """Return the share of the indispensable units that an optimiser keeps of the trap."""
    trap = make_trap(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make(prunable_groups(trap.model, torch.randn(2, 16)), trap.model)
    while not optimizer.finished:
        x, y = trap.batch(BATCH, generator)
        trap.model.zero_grad()
        loss = (trap.model(x) - y).square().mean()
        scaled_backward(loss, trap.model)
        optimizer.step(loss)
    first = optimizer.table.layer_of == 0
    needed = indispensable(seed)
    return float((~optimizer.pruned[first])[needed].double().mean())


def _trap(result: Result, seed: int) -> None:
    """Scale a layer by 1e-3 and the next by 1e3: CRIC is not misled, magnitudes are."""
    options: dict[str, Any] = {"variant": "sgd", "target": TRAP_TARGET}
    cycles: dict[str, Any] = {"start": 10, "sampling_steps": 10, "hybrid_steps": 20}
    kept: dict[str, list[float]] = {}
    for i in range(SEEDS):
        makes: dict[str, Make] = {
            "CRIC": lambda g, m: HESSOCRIC(g, m, TRAP_LR, **cycles, **options),
            "CRIC, released loss term": lambda g, m: HESSOCRIC(
                g, m, TRAP_LR, loss_term="layer", **cycles, **options
            ),
            "HESSO": lambda g, m: HESSO(
                g, m, TRAP_LR, start=10, steps=40, periods=4, **options
            ),
            "magnitude": lambda g, m: HESSO(
                g, m, TRAP_LR, start=10, steps=40, periods=4, criteria={"magnitude": 1.0}, **options
            ),
        }  # fmt: skip
        for name, make in makes.items():
            kept.setdefault(name, []).append(spring_trap(seed + i, make))
    for name, shares in kept.items():
        result.metrics[f"trap: {name} keeps of the indispensable units"] = mean(shares)
    result.check(
        "trap: CRIC keeps of the indispensable units, worst of 3", min(kept["CRIC"]), 0.9,
        at_least=True,
    )  # fmt: skip
    # The trap is one: what looks at magnitudes falls into it.
    result.check("trap: magnitude keeps of them", max(kept["magnitude"]), 0.5)


# ----------------------------------------------------------------------------------- picture


def _draw_norms(axes: Axes, watch: Watch, moments: tuple[int, int]) -> None:
    norms = torch.stack(watch.norms).numpy()
    gone = norms[-1] == 0
    axes.plot(watch.steps, norms[:, ~gone], color="grey", linewidth=0.6, alpha=0.6)
    axes.plot(watch.steps, norms[:, gone], color="tab:red", linewidth=0.6, alpha=0.6)
    start, end = moments
    for step in np.linspace(start, end, PERIODS + 1):
        inner = step not in (start, end)
        axes.axvline(step, color="black", linestyle=":" if inner else "--", linewidth=0.8)
    axes.plot([], [], color="grey", label=f"kept, {int((~gone).sum())}")
    axes.plot([], [], color="tab:red", label=f"redundant, {int(gone.sum())}")
    axes.set(xlabel="step (dashed: start and end; dotted: periods)", ylabel="norm of a group")
    axes.legend(fontsize=8)


def _draw_accuracy(axes: Axes, runs: Runs, points: dict[str, tuple[float, float]]) -> None:
    dense = mean(t.accuracy for t in runs["dense", 0.0])
    for name in METHODS:
        line = [(1.0, dense)]
        for target in CURVE:
            found = runs[name, target]
            line.append((mean(t.share for t in found), mean(t.accuracy for t in found)))
        axes.plot(*zip(*line, strict=True), "o-", label=name, markersize=4)
    for (pattern, (share, value)), marker in zip(points.items(), ("s", "D"), strict=True):
        axes.plot(share, value, marker, color="black", label=f"{pattern} of all channels")
    axes.set(xscale="log", xlabel="multiplications over dense", ylabel="test accuracy")
    axes.set_title("pruned " + ", ".join(f"{t:.0%}" for t in CURVE), fontsize=10)
    axes.legend(fontsize=8)


def _draw_layers(axes: Axes, found: dict[str, Trained]) -> None:
    first = next(iter(found.values())).optimizer.table
    whole = torch.bincount(first.layer_of)
    width = 0.8 / len(found)
    for number, (name, trained) in enumerate(found.items()):
        share = np.array(trained.left) / whole.numpy()
        axes.bar(np.arange(len(whole)) + number * width, share, width, label=name)
    places = np.arange(len(whole)) + 0.4 - width / 2
    axes.set_xticks(places, [f"layer {n}, {w}" for n, w in zip(first.layers, whole, strict=True)])
    axes.set(ylabel="channels left at 70 %, share", ylim=(0, 1.05))
    axes.legend(fontsize=8)
