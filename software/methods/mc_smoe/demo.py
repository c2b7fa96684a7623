"""MC-SMoE judged: planted experts whose merging error is known, and digits before and after.

Digits are easy: recovery closes most gaps, whatever was merged with what. So the planted experts
carry the claim on alignment, and the figures before recovery those on groups and weights.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
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
from sat.data import DataSet, load_data
from sat.methods import Result
from sat.methods.mc_smoe.compress import RowPruner, compact_model, compress_model
from sat.methods.mc_smoe.layer import MoELayer, moe_layers
from sat.methods.mc_smoe.matching import match_permutation, permute_expert
from sat.methods.mc_smoe.measure import macs, memory, stable_rank
from sat.methods.mc_smoe.merging import (
    MergeReport,
    group_experts,
    merge_experts,
    merge_model,
    router_similarity,
)
from sat.methods.mc_smoe.recovery import recover
from sat.methods.mc_smoe.statistics import routing_statistics
from sat.methods.problems.rounding import product_bound
from sat.methods.problems.scaling import scaled_backward

D, F, EXPERTS, KEPT = 32, 64, 16, 4
SEEDS, STEPS, RECOVERY, BATCH = 3, 700, 150, 64
QUICK_STEPS, QUICK_RECOVERY = 150, 60
LR, RECOVERY_LR = 3e-3, 1e-3
CALIBRATION = 256
RANK, FINAL, PRUNING_STEPS, PRUNING_WARMUP = 8, 0.10, 150, 16
NOISES = (0.0, 0.1, 0.3)
COUNTS = (1, 2, 4, 8, 12)
PATTERNS = ("2:4", "2:8")


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Judge permutations exactly, merging on planted experts, then all of it on digits.

    Parameters
    ----------
    seed : int
        First of three.
    quick : bool
        One seed; 150 steps of training and 60 of recovery instead of 700 and 150; without N:M, the
        curves and what compares accuracies.
    """
    result = Result()
    _permutations(result, seed)
    curves = _planted(result, seed, quick)
    _identical(result, seed)
    runs = [_digits(result, seed + i, quick, i == 0) for i in range(1 if quick else SEEDS)]
    if quick:
        result.left_out += [
            f"{QUICK_STEPS} steps of {STEPS}, {QUICK_RECOVERY} of recovery of {RECOVERY}",
            "two of three seeds; accuracies of merged models compared with others",
            "N:M, and accuracy by the number of experts",
        ]
    else:
        _judge(result, runs)
    result.figures["merging"] = _figure(result, runs, curves)
    return result


# ------------------------------------------------------------------------------- permutations


def planted_expert(generator: torch.Generator, d: int = D, f: int = F) -> tuple[Tensor, Tensor]:
    """Return normal float64 weights (f, d), (d, f), of deviation 1/sqrt(inputs)."""
    wi = torch.randn(f, d, generator=generator, dtype=torch.float64) / d**0.5
    return wi, torch.randn(d, f, generator=generator, dtype=torch.float64) / f**0.5


def _permutations(result: Result, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, D, generator=generator, dtype=torch.float64)
    apart, undone = 0.0, 0
    for _ in range(100):
        wi, wo = planted_expert(generator)
        perm = torch.randperm(F, generator=generator)
        moved = permute_expert(wi, wo, perm)
        outputs = [functional.relu(x @ a.mT) @ b.mT for a, b in ((wi, wo), moved)]
        apart = max(apart, float((outputs[0] - outputs[1]).abs().max()))
        undone += torch.equal(perm[match_permutation((wi, wo), moved)], torch.arange(F))
    # Outputs are about 1; two products follow one another.
    result.check("permuted experts' outputs, apart", apart, product_bound(1e-12, 16))
    result.check("permutations undone by matching, of 100", undone, 100, at_least=True)
    worse = 0.0
    for _ in range(10):
        experts = [planted_expert(generator, 5, 6) for _ in range(2)]
        (ri, ro), (ei, eo) = ((wi.numpy(), wo.numpy()) for wi, wo in experts)
        fits = [
            np.vdot(ri, ei[list(p)]) + np.vdot(ro, eo[:, list(p)])
            for p in itertools.permutations(range(6))
        ]
        found = match_permutation(*experts).tolist()
        worse = max(worse, max(fits) - np.vdot(ri, ei[found]) - np.vdot(ro, eo[:, found]))
    # Rounded products may choose another order, whose fit is as good but for their error.
    bound = product_bound(1e-12, 100)
    result.check("fit of the best of 720 permutations above matching's, 10 pairs", worse, bound)


# ----------------------------------------------------------------------------- planted experts


def planted_layer(nu: float, seed: int) -> tuple[MoELayer, Tensor, Tensor]:
    """Return 8 experts made of 2: with noise of relative size nu, and each randomly permuted.

    Returns
    -------
    layer : MoELayer
    labels : torch.Tensor
        (8,) int64: which of the two.
    frequency : torch.Tensor
        (8,) float64.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = MoELayer(D, F, 8)
    prototypes = [planted_expert(generator) for _ in range(2)]
    labels = torch.arange(8) % 2
    for expert, label in zip(layer.experts, labels.tolist(), strict=True):
        noise = planted_expert(generator)
        perm = torch.randperm(F, generator=generator)
        noisy = [w + nu * e for w, e in zip(prototypes[label], noise, strict=True)]
        wi, wo = noisy[0][perm], noisy[1][:, perm]
        with torch.no_grad():
            expert.wi.weight.copy_(wi)  # type: ignore[union-attr, operator]
            expert.wo.weight.copy_(wo)  # type: ignore[union-attr, operator]
    frequency = 0.1 + torch.rand(8, generator=generator, dtype=torch.float64)
    return layer, labels, frequency / frequency.sum()


def merging_error(nu: float, seed: int, *, align: str, uniform: bool = False) -> float:
    """Return the error of merged planted experts over their outputs' energy, weighted by use.

    In numpy, on 512 normal tokens that every expert is given.
    """
    layer, labels, frequency = planted_layer(nu, seed)
    x = np.random.default_rng(seed).standard_normal((512, D))

    def outputs() -> list[np.ndarray]:
        pairs = zip(layer.wi.detach().double(), layer.wo.detach().double(), strict=True)
        return [np.maximum(x @ wi.numpy().T, 0) @ wo.numpy().T for wi, wo in pairs]

    before = outputs()
    weights = torch.ones_like(frequency) if uniform else frequency
    merge_experts(layer, labels, weights, align=align)
    after = outputs()
    error = sum(
        f * ((a - b) ** 2).sum() for f, a, b in zip(frequency.tolist(), after, before, strict=True)
    )
    energy = sum(f * (b**2).sum() for f, b in zip(frequency.tolist(), before, strict=True))
    return float(error / energy)


VARIANTS = {
    "aligned, by frequency": ("group", False),
    "aligned, uniform": ("group", True),
    "aligned to expert 0, by frequency": ("first", False),
    "not aligned": ("none", False),
}


def _planted(result: Result, seed: int, quick: bool) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {}
    for name, (align, uniform) in VARIANTS.items():
        for nu in NOISES[1:2] if quick else NOISES:
            errors = [
                merging_error(nu, seed + i, align=align, uniform=uniform) for i in range(SEEDS)
            ]
            curves.setdefault(name, []).append(mean(errors))
            result.metrics[f"planted, noise {nu}, {name}: error"] = mean(errors)
    at = 0 if quick else 1
    aligned, uniform_, _, unaligned = (curves[name][at] for name in VARIANTS)
    result.check("planted, noise 0.1, aligned: error", aligned, 0.03)
    result.check("planted, noise 0.1, not aligned: error", unaligned, 0.3, at_least=True)
    result.check("planted, noise 0.1: by frequency less uniform", aligned - uniform_, 0)
    for name in ("group", "none"):
        layer, labels, frequency = planted_layer(0.1, seed)
        single = stable_rank(layer.wi[0])
        merge_experts(layer, labels, frequency, align=name)
        result.metrics["planted: stable rank, an expert"] = single
        text = "aligned" if name == "group" else "not aligned"
        result.metrics[f"planted: stable rank, merged, {text}"] = stable_rank(layer.wi[0])
    return curves


def _identical(result: Result, seed: int) -> None:
    """Merge a layer of 6 whose experts come in three equal pairs, one of them never used."""
    torch.manual_seed(seed)
    layer = MoELayer(D, F, 6)
    with torch.no_grad():
        for i in range(3):
            layer.experts[i + 3].load_state_dict(layer.experts[i].state_dict())
    generator = torch.Generator().manual_seed(seed)
    for expert in layer.experts[3:]:
        perm = torch.randperm(F, generator=generator)
        with torch.no_grad():
            expert.wi.weight.copy_(expert.wi.weight[perm])  # type: ignore[union-attr, index, operator]
            expert.wo.weight.copy_(expert.wo.weight[:, perm])  # type: ignore[union-attr, index, operator]
    x = torch.randn(200, D, generator=generator)
    frequency = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    with torch.no_grad():
        before = layer(x)
        merge_experts(layer, torch.arange(6) % 3, frequency, align="group")
        after = layer(x)
    apart = float((after - before).abs().max() / before.abs().max())
    name = "merged pairs of equal experts, relative difference"
    result.check(name, apart, product_bound(1e-6, 8))


# -------------------------------------------------------------------------------------- digits


class DigitsMoE(nn.Module):
    """Digits read row by row: 8 tokens of 8 pixels, two blocks of attention and `MoELayer`."""

    def __init__(self, width: int = D, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.02 * torch.randn(8, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(blocks)
        )
        self.mixtures = nn.ModuleList(MoELayer(width, F, EXPERTS) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (samples, 10) of pictures (samples, 1, 8, 8)."""
        h = self.embed(x[:, 0]) + self.place
        for i, (attention, mixture) in enumerate(zip(self.attention, self.mixtures, strict=True)):
            y = self.norms[2 * i](h)
            h = h + attention(y, y, y, need_weights=False)[0]
            h = h + mixture(self.norms[2 * i + 1](h))
        logits: Tensor = self.head(self.norm(h).mean(1))
        return logits


def batches(data: DataSet, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches without end."""
    order = torch.Generator().manual_seed(seed)
    while True:
        yield from data.batches(BATCH, order)


def accuracy(model: nn.Module) -> float:
    """Return the share of the test digits that a model knows."""
    data = load_data("digits")
    model.eval()
    with torch.no_grad():
        return float((model(data.test_x).argmax(1) == data.test_y).double().mean())


def train_full(seed: int, steps: int = STEPS) -> DigitsMoE:
    """Return a trained model of 16 experts a layer."""
    torch.manual_seed(seed)
    model = DigitsMoE()
    optimizer = torch.optim.AdamW(model.parameters(), LR)
    for _, (x, y) in zip(range(steps), batches(load_data("digits"), seed), strict=False):
        model.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        balance = [layer.load_balance for layer in moe_layers(model).values()]
        scaled_backward(loss + torch.stack(balance).sum(), model)
        optimizer.step()
    return model


def calibration() -> list[Tensor]:
    """Return 256 digits of the training part."""
    return [load_data("digits").train_x[:CALIBRATION]]


def merge_randomly(model: DigitsMoE, seed: int) -> None:
    """Merge into 4 random groups a layer, by the plain average, not aligned."""
    generator = torch.Generator().manual_seed(seed)
    for layer in moe_layers(model).values():
        labels = torch.arange(EXPERTS)[torch.randperm(EXPERTS, generator=generator)] % KEPT
        merge_experts(layer, labels, torch.ones(EXPERTS), align="none")
        layer.router.weight.requires_grad_(False)


def drop_others(model: DigitsMoE) -> None:
    """Keep the 4 most used experts a layer; tokens of others go to the one most like theirs."""
    for name, stats in routing_statistics(model, calibration()).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, MoELayer)
        labels, dominant = group_experts(stats.frequency, router_similarity(stats.logits), KEPT)
        layer.experts = nn.ModuleList(layer.experts[int(i)] for i in dominant)
        layer.map.copy_(labels)
        layer.router.weight.requires_grad_(False)


@dataclass
class Run:
    """What one seed gave.

    Attributes
    ----------
    full : float
        Accuracy of the full model.
    before, after : dict of str to float
        Accuracies of merged models, before recovery and after it.
    report : MergeReport
        M-SMoE's.
    bytes : dict of str to int
        Of the experts, by model.
    by_count : dict of str to list of float
        Accuracy before recovery by `COUNTS`, of one seed.
    """

    full: float
    report: MergeReport = field(default_factory=MergeReport)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    by_count: dict[str, list[float]] = field(default_factory=dict)


MERGED, RANDOM = "M-SMoE", "random groups, plain average"


def _digits(result: Result, seed: int, quick: bool, first: bool) -> Run:
    data = load_data("digits")
    full = train_full(seed, QUICK_STEPS if quick else STEPS)
    run = Run(accuracy(full))
    experts = list(moe_layers(full))
    steps = QUICK_RECOVERY if quick else RECOVERY

    def expert_bytes(model: nn.Module) -> int:
        return sum(memory(model.get_submodule(f"{name}.experts")) for name in experts)

    def after(model: DigitsMoE, name: str) -> DigitsMoE:
        run.before[name] = accuracy(model)
        run.bytes[name] = expert_bytes(model)
        model.train()
        recover(model, full, batches(data, 1000 + seed), steps=steps, lr=RECOVERY_LR)
        run.after[name] = accuracy(model)
        return model

    run.bytes["full"] = expert_bytes(full)
    merged = copy.deepcopy(full)
    # By one threshold on use in all layers, ties may leave fewer than a quarter.
    run.report = merge_model(merged, calibration(), KEPT, global_=False)
    untrained = copy.deepcopy(merged)
    merged = after(merged, MERGED)
    if not quick:
        others: dict[str, dict[str, Any]] = {"not aligned": {"align": "none", "global_": False}}
        if first:
            others |= {
                "as many a layer as its use asks for": {},
                "aligned in groups": {"align": "group", "global_": False},
                "aligned by activations": {"matching": "activation", "global_": False},
            }
        for name, options in others.items():
            model = copy.deepcopy(full)
            merge_model(model, calibration(), KEPT, **options)
            after(model, f"{MERGED}, {name}")
        model = copy.deepcopy(full)
        merge_randomly(model, seed)
        after(model, RANDOM)
        model = copy.deepcopy(full)
        drop_others(model)
        after(model, "dominant experts alone")
    if first and not quick:
        _sparse(run, full, untrained, seed)
        _by_count(run, full)
    _compress(result, run, full, merged, seed, expert_bytes)
    name = f"digits, seed {seed}"
    result.metrics[f"{name}, full: accuracy"] = run.full
    for text, value in run.before.items():
        result.metrics[f"{name}, {text}, before recovery: accuracy"] = value
    for text, value in run.after.items():
        result.metrics[f"{name}, {text}: accuracy"] = value
    for row in run.report.layers:
        result.metrics[f"{name}, {row.name}: experts kept"] = len(row.dominant)
        result.metrics[f"{name}, {row.name}: stable rank before"] = row.ranks[0]
        result.metrics[f"{name}, {row.name}: stable rank after"] = row.ranks[1]
    result.check(
        f"{name}: experts' bytes, merged over full, off a quarter",
        abs(run.bytes[MERGED] / run.bytes["full"] - KEPT / EXPERTS), 0,
    )  # fmt: skip
    if quick:
        # Of ten classes, after a fifth of the training.
        result.check(f"{name}, {MERGED} recovered: accuracy", run.after[MERGED], 0.4, at_least=True)
    return run


def _sparse(run: Run, full: DigitsMoE, merged: DigitsMoE, seed: int) -> None:
    """Recover with N:M weights in the merged experts."""
    for pattern in PATTERNS:
        model = copy.deepcopy(merged)
        for name in moe_layers(model):
            sat.sparsify_(model.get_submodule(f"{name}.experts"), "bdwp", pattern)
        model.train()
        recover(
            model, full, batches(load_data("digits"), 1000 + seed), steps=RECOVERY, lr=RECOVERY_LR
        )
        run.after[f"{MERGED}, {pattern} experts"] = accuracy(model)


def _by_count(run: Run, full: DigitsMoE) -> None:
    for name, options in (
        ("aligned, by frequency", {}),
        ("aligned, uniform", {"weighting": "uniform"}),
        ("not aligned", {"align": "none"}),
        ("random groups", {"similarity": "random"}),
    ):
        for count in COUNTS:
            model = copy.deepcopy(full)
            merge_model(model, calibration(), count, **options)  # type: ignore[arg-type]
            run.by_count.setdefault(name, []).append(accuracy(model))


def _compress(
    result: Result, run: Run, full: DigitsMoE, merged: DigitsMoE, seed: int, expert_bytes: object
) -> None:
    """Split, prune rows while training, store what is left."""
    data, name = load_data("digits"), f"digits, seed {seed}"
    model = copy.deepcopy(merged)
    # What the layers are given: routers then choose alike, however products are rounded.
    inputs = {n: s.inputs for n, s in routing_statistics(model, [data.test_x]).items()}
    before = outputs(model, inputs)
    splits = compress_model(model, RANK)
    start = apart(outputs(model, inputs), before)
    pruner = RowPruner(splits, PRUNING_STEPS, PRUNING_WARMUP, FINAL)
    model.train()
    recover(
        model, full, batches(data, 2000 + seed), steps=PRUNING_STEPS, lr=RECOVERY_LR, pruner=pruner
    )
    text = "merged and compressed"
    run.after[text] = accuracy(model)
    rows = sum(len(split.s) for split in splits)
    kept = sum(int(split.kept.sum()) for split in splits)
    masked = outputs(model, inputs)
    stored = apart(outputs(compact_model(model), inputs), masked)
    run.bytes[text] = expert_bytes(model)  # type: ignore[operator]
    # Up to four products follow one another.
    result.check(
        f"{name}: split experts' outputs, apart at the start", start, product_bound(1e-5, 32)
    )
    result.check(f"{name}: rows kept off a tenth of {rows}", abs(kept - FINAL * rows), 1)
    result.check(f"{name}: stored rows against masked ones", stored, product_bound(1e-6, 32))
    result.metrics[f"{name}, {text}: experts' bytes over full"] = (
        run.bytes[text] / run.bytes["full"]
    )
    sample = data.test_x[:64]
    result.metrics[f"{name}, {text}: multiplications over full"] = macs(model, sample) / macs(
        full, sample
    )


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what each mixture of a model makes of its tokens."""
    with torch.no_grad():
        return {name: model.get_submodule(name)(x) for name, x in inputs.items()}


def apart(values: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Return the largest difference over the largest magnitude, worst of all."""
    return max(
        float((values[name] - y).abs().max() / y.abs().max()) for name, y in reference.items()
    )


def _judge(result: Result, runs: list[Run]) -> None:
    full = mean(run.full for run in runs)
    result.metrics["digits, full: accuracy, mean"] = full
    before = {name: mean(run.before[name] for run in runs) for name in runs[-1].before}
    after = {name: mean(run.after[name] for run in runs) for name in runs[-1].after}
    for name, value in before.items():
        result.metrics[f"digits, {name}, before recovery: accuracy, mean"] = value
    for name, value in after.items():
        result.metrics[f"digits, {name}: accuracy, mean"] = value
    text = f"digits, {len(runs)} seeds"
    for name, value, bound in (
        (f"{MERGED} recovered less full", after[MERGED] - full, -0.02),
        (f"{MERGED} less random groups, before recovery", before[MERGED] - before[RANDOM], 0.01),
        (f"{MERGED} less random groups, recovered", after[MERGED] - after[RANDOM], -0.005),
        (
            "merged and compressed less merged",
            after["merged and compressed"] - after[MERGED],
            -0.03,
        ),
    ):
        result.check(f"{text}, {name}: accuracy", value, bound, at_least=True)


# ------------------------------------------------------------------------------------- picture


def _figure(result: Result, runs: list[Run], curves: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplot_mosaic([["use", "use"], ["middle", "memory"]])
    middle = panels["middle"]
    _draw_use(panels["use"], runs[0].report)
    if runs[0].by_count:
        for name, values in runs[0].by_count.items():
            middle.plot(COUNTS, values, "o-", label=name)
        middle.axhline(runs[0].full, color="grey", linestyle=":", label="full")
        middle.set(xlabel="experts a layer, in the mean", ylabel="test accuracy before recovery")
    else:
        names = list(curves)
        places = range(len(names))
        middle.barh(places, [curves[name][0] for name in names])
        middle.set_yticks(
            places, [name.replace(", ", ",\n").replace(" to ", "\nto ") for name in names]
        )
        middle.set(xlabel="planted experts, noise 0.1: relative error")
    if runs[0].by_count:
        middle.legend(fontsize=8)
    _draw_memory(panels["memory"], runs)
    return figure


def _draw_use(axes: Axes, report: MergeReport) -> None:
    for number, row in enumerate(report.layers):
        order = row.frequency.argsort(descending=True)
        places = np.arange(len(order)) + number * (len(order) + 2)
        colours = [f"C{int(row.labels[i])}" for i in order]
        edges = ["black" if bool((row.dominant == i).any()) else "none" for i in order]
        axes.bar(
            places, row.frequency[order], color=colours, edgecolor=edges, linewidth=1.8
        )  # fmt: skip
        axes.text(places.mean(), float(row.frequency.max()) * 1.03, row.name, ha="center")
    axes.margins(y=0.12)
    axes.set(
        xlabel="experts by use, coloured by group; dominant ones outlined",
        ylabel="share of tokens", xticks=[],
    )  # fmt: skip


def _draw_memory(axes: Axes, runs: list[Run]) -> None:
    points = {"full": [(run.bytes["full"], run.full) for run in runs]}
    for name in (MERGED, "dominant experts alone", "merged and compressed"):
        if name in runs[0].after:
            points[name] = [(run.bytes[name], run.after[name]) for run in runs]
    for name, found in points.items():
        sizes, values = zip(*found, strict=True)
        axes.plot(np.array(sizes) / 1024, values, "o", label=name, alpha=0.8)
    axes.set(xlabel="experts' weights, KiB", ylabel="test accuracy, recovered", xscale="log")
    axes.set_xticks([32, 64, 128, 256, 512], ["32", "64", "128", "256", "512"])
    axes.minorticks_off()
    axes.legend(fontsize=8)
