"""Acceptance figures: the chain's law against numpy's, isolation, memory; digits beside others.

Steps are conditioned in numpy from the joint law of all z; likelihoods are integrated there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

import sat
from sat.methods import Result
from sat.methods.noprop.blocks import DenoiseBlock, label_embedding
from sat.methods.noprop.continuous import TIME, NoPropCT, NoPropFM
from sat.methods.noprop.levels import DiffusionLevels
from sat.methods.noprop.model import NoPropDT
from sat.methods.noprop.training import saved_activation_bytes, train_backprop
from sat.methods.problems.rounding import product_bound
from sat.methods.problems.training import fit

Array = NDArray[np.float64]

T, D, HIDDEN, CLASSES, PIXELS = 10, 16, 64, 10, 64
TRAIN, EPOCHS, BATCH, LR, DECAY, SEEDS = 1347, 30, 128, 1e-3, 1e-3, 3
FLOW_EPOCHS, FLOW_STEPS = 100, 50
QUICK_EPOCHS = 12
PASSES = 10
"""Times that noise is drawn for the test: accuracies are means over it."""
WIDTHS = (384, 384, 128)
"""Of the perceptron that is trained by ordinary back-propagation, about as large."""
DEPTHS = (1, 2, 4, 8, 12, 16)
PATTERNS = ("2:4", "2:8")
MODELS, DRAWS, ERRORS = 100, 4000, 4
GRID = np.linspace(-9.0, 9.0, 701)


@dataclass(frozen=True)
class Digits:
    """Digits with pixels from 0 to 1, split by a seed."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    generator: torch.Generator
    """For all that is drawn after the split."""


@dataclass
class Found:
    """What the picture shows beside the checks."""

    model: NoPropDT
    digits: Digits
    alone: list[tuple[Array, Array]] = field(default_factory=list)
    """Of each seed, accuracies (T,) of blocks by logits and by embedding, %."""
    chains: list[float] = field(default_factory=list)
    bytes_kept: dict[int, tuple[int, int]] = field(default_factory=dict)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about 80 seconds on one core.

    Parameters
    ----------
    seed : int
        Of weights and noise; digits are split and trained on by this seed and the two that follow.
    quick : bool
        12 epochs of digits with one seed and fixed embeddings; 10 chains for the bound.
    """
    result = Result()
    _law(result)
    _bound(result, seed, 10 if quick else MODELS)
    _flow(result, seed)
    found = _trained(result, seed, quick)
    _isolation(result, found)
    _memory(result, found)
    if quick:
        result.left_out += [
            f"{EPOCHS} epochs (here {QUICK_EPOCHS}), {SEEDS} seeds, and the bounds on accuracy",
            "learned and prototype embeddings, one block, N:M, the twin, CT and FM",
        ]
    else:
        _others(result, seed, found)
    result.figures["chain"] = _figure(found)
    return result


# ---------------------------------------------------------------------------------------- the law


def conditioned(abar: Array) -> tuple[Array, Array, Array, float]:
    """Return a, b, c (T,) of q(z_t | z_0 … z_{t-1}, y) by numpy, and the largest other weight.

    All z are written as sums of independent normal numbers, by q from z_T down; each is then
    regressed on all before it, by their covariance.
    """
    top = len(abar) - 1
    mean, load = np.zeros(top + 1), np.zeros((top + 1, top + 1))
    mean[top], load[top, top] = np.sqrt(abar[top]), np.sqrt(1 - abar[top])
    for t in range(top, 0, -1):
        alpha = abar[t - 1] / abar[t]
        mean[t - 1], load[t - 1] = np.sqrt(alpha) * mean[t], np.sqrt(alpha) * load[t]
        load[t - 1, t - 1] = np.sqrt(1 - alpha)
    covariance = load @ load.T
    rows, other = [], 0.0
    for t in range(1, top + 1):
        weights = np.linalg.solve(covariance[:t, :t], covariance[:t, t])
        left = covariance[t, t] - weights @ covariance[:t, t]
        rows.append((mean[t] - weights @ mean[:t], weights[-1], left))
        other = max(other, float(np.abs(weights[:-1]).max(initial=0)))
    a, b, c = np.array(rows).T
    return a, b, c, other


def _law(result: Result) -> None:
    steps = ratio = 0.0
    for count in (1, 2, 3, T):
        levels = DiffusionLevels(count)
        *theirs, other = conditioned(levels.abar.numpy())
        ours = (levels.a.numpy(), levels.b.numpy(), levels.c.numpy())
        off = max(float(np.abs(x - y).max()) for x, y in zip(ours, theirs, strict=True))
        steps = max(steps, off, other)
        snr = levels.abar.numpy() / (1 - levels.abar.numpy())
        weight = ours[0] ** 2 / ours[2]
        ratio = max(ratio, float(np.abs(weight / np.diff(snr) - 1).max()))
    result.check("a, b, c off numpy's conditioning of all z, T = 1, 2, 3, 10", steps, 1e-10)
    result.check("a² / c off SNR(t) - SNR(t - 1), of it", ratio, 1e-10)


def exact_loss(model: NoPropDT, x: Tensor, y: int) -> float:
    """Return -log p(y | x), nats, of a chain with d = 1, by the trapezium rule over every z."""
    a, b, c, _ = conditioned(model.levels.abar.numpy())
    z, h = GRID, GRID[1] - GRID[0]
    points = torch.from_numpy(z)[:, None]
    with torch.no_grad():
        value = model.labels.head(points).softmax(1)[:, y].numpy()
        for t in range(model.levels.T, 0, -1):
            shares = model.logits(t, points, x.expand(len(z), -1)).softmax(1)
            uhat = (shares * model.labels.W_embed[:, 0]).sum(1).numpy()
            mean, variance = a[t - 1] * uhat + b[t - 1] * z, c[t - 1]
            step = z - mean[:, None]
            step *= step
            step *= -1 / (2 * variance)
            np.exp(step, out=step)
            value = step @ value * h / np.sqrt(2 * np.pi * variance)
    start = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return -math.log(float(start @ value) * h)


def small_chain(generator: torch.Generator) -> NoPropDT:
    """Return a chain of two blocks with d = 1, two inputs, two classes and random weights."""
    blocks = [DenoiseBlock((2,), 1, 2, hidden=4) for _ in range(2)]
    model = NoPropDT(blocks, torch.zeros(2, 1), DiffusionLevels(2)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise)
    return model


def _bound(result: Result, seed: int, models: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    margins, below = [], 0
    for _ in range(models):
        model = small_chain(generator)
        x = torch.randn(1, 2, generator=generator, dtype=torch.float64)
        y = torch.zeros(DRAWS, dtype=torch.int64)
        bound = model.bound(x.expand(DRAWS, -1), y, generator)
        margins.append(float(bound.mean()) - exact_loss(model, x, 0))
        below += margins[-1] < -ERRORS * float(bound.std()) / math.sqrt(DRAWS)
    name = f"bounds below the exact -log p(y | x) by {ERRORS} standard errors, of {models} chains"
    result.check(name, below, 0)
    result.metrics["bound less exact -log p(y | x), nats, least"] = min(margins)
    result.metrics["… median"] = float(np.median(margins))


def _flow(result: Result, seed: int) -> None:
    """Integrate CT's flow where there is a single label: the answer is known."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    model = NoPropCT(DenoiseBlock((2,), 4, 1, time=TIME), u).double().eval()
    z, x = (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    with torch.no_grad():
        (first, last), _ = model.levels(torch.tensor([0.0, 1.0], dtype=torch.float64))
        got = model.integrate(z, x, 1000)
    shrink = ((1 - last) / (1 - first)).sqrt()
    known = last.sqrt() * u + shrink * (z - first.sqrt() * u)
    # The flow passes on an error of uhat once, whole. It is that of one product, not of a sum,
    # times u, which is 2 to 3 long.
    bound = product_bound(1e-5, 10)
    result.check("CT's flow to a single label off its closed form", _apart(got, known), bound)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------ digits


def load(seed: int) -> Digits:
    """Return digits, 1347 of them for training."""
    data = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.target), generator=generator)
    x, y = torch.from_numpy(data.data / 16).float()[order], torch.from_numpy(data.target)[order]
    return Digits(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], generator)


def build(seed: int, digits: Digits, kind: str = "learned", blocks: int = T) -> NoPropDT:
    """Return a chain for digits, as it starts."""
    d = {"learned": D, "onehot": CLASSES, "prototype": PIXELS}[kind]
    embedding = label_embedding(
        kind, CLASSES, d, digits.train_x, digits.train_y, generator=digits.generator
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = [DenoiseBlock((PIXELS,), d, CLASSES, HIDDEN) for _ in range(blocks)]
        return NoPropDT(made, embedding, DiffusionLevels(blocks))


def train(
    seed: int, epochs: int, kind: str = "learned", blocks: int = T, pattern: str = "dense"
) -> tuple[NoPropDT, Digits]:
    """Train on digits, N:M weights pruned forward and backward."""
    digits = load(seed)
    model = build(seed, digits, kind, blocks)
    if pattern != "dense":
        sat.sparsify_(model, "bdwp", pattern)
    model.fit(
        digits.train_x, digits.train_y, epochs=epochs, batch=BATCH, lr=LR, weight_decay=DECAY,
        generator=digits.generator,
    )  # fmt: skip
    return model, digits


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Tensor], digits: Digits, passes: int = PASSES) -> float:
    """Return the share of right labels on the test set, %, mean over passes."""
    hits = [
        (predict(digits.test_x).argmax(1) == digits.test_y).double().mean() for _ in range(passes)
    ]
    return 100 * float(torch.stack(hits).mean())


def _trained(result: Result, seed: int, quick: bool) -> Found:
    epochs, kind = (QUICK_EPOCHS, "onehot") if quick else (EPOCHS, "learned")
    found: Found | None = None
    perceptrons, linear, apart = [], [], []
    for number in range(seed, seed + (1 if quick else SEEDS)):
        model, digits = train(number, epochs, kind)
        found = found or Found(model, digits)
        found.chains.append(accuracy(partial(model, generator=digits.generator), digits))
        quiet = accuracy(partial(model, noise=False), digits, 1)
        perceptrons.append(accuracy(perceptron(number, digits, epochs), digits, 1))
        linear.append(logistic(digits))
        apart.append(model.labels.closest()[0])
        alone = [
            100 * (model.block_predictions(digits.test_x, digits.generator, by) == digits.test_y)
            .double().mean(1).numpy() for by in ("logits", "embedding")
        ]  # fmt: skip
        found.alone.append((alone[0], alone[1]))
        name = f"digits, seed {number}"
        result.metrics |= {
            f"{name}: NoProp-DT, %": found.chains[-1],
            f"{name}: … without noise, %": quiet,
            f"{name}: perceptron by back-propagation, %": perceptrons[-1],
            f"{name}: logistic regression, %": linear[-1],
            f"{name}: block alone by its logits, least, %": float(alone[0].min()),
            f"{name}: block alone by its logits, most, %": float(alone[0].max()),
            f"{name}: block alone by its embedding, least, %": float(alone[1].min()),
            f"{name}: block alone by its embedding, most, %": float(alone[1].max()),
            f"{name}: least distance of two embeddings": apart[-1],
        }
    assert found is not None
    if quick:
        name = f"digits, fixed embeddings, {epochs} epochs: NoProp-DT, %"
        result.check(name, found.chains[0], 93, at_least=True)
    else:
        least = min(found.chains)
        result.check("digits: NoProp-DT, worst of 3 seeds, %", least, 96.5, at_least=True)
        behind = fmean(perceptrons) - fmean(found.chains)
        result.check("… behind back-propagation, mean, points", behind, 2)
        ahead = min(a - b for a, b in zip(found.chains, linear, strict=True))
        name = "… ahead of logistic regression, worst seed, points"
        result.check(name, ahead, 0.7, at_least=True)
        result.check("least distance of two embeddings", min(apart), 1, at_least=True)
    return found


def perceptron(seed: int, digits: Digits, epochs: int) -> nn.Module:
    """Return a network of about as many weights, trained by ordinary back-propagation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in zip((PIXELS, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Linear(WIDTHS[-1], CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=DECAY)
    fit(
        lambda p: functional.cross_entropy(net(digits.train_x[p]), digits.train_y[p]),
        TRAIN, optimizer, epochs=epochs, batch=BATCH, generator=digits.generator,
        schedule="constant",
    )  # fmt: skip
    return net.eval()


def logistic(digits: Digits) -> float:
    """Return scikit-learn's accuracy by a linear classifier, %."""
    judge = LogisticRegression(max_iter=2000).fit(digits.train_x.numpy(), digits.train_y.numpy())
    return 100 * float(judge.score(digits.test_x.numpy(), digits.test_y.numpy()))


def _others(result: Result, seed: int, found: Found) -> None:
    """Fixed embeddings, prototypes, one block, N:M, the twin, and continuous time."""

    def chain(**given: object) -> tuple[NoPropDT, float]:
        model, digits = train(seed, EPOCHS, **given)  # type: ignore[arg-type]
        return model, accuracy(partial(model, generator=digits.generator), digits)

    fixed = chain(kind="onehot")[1]
    result.check("digits, fixed embeddings (onehot), %", fixed, 96.5, at_least=True)
    result.metrics["digits, prototypes, d = 64, %"] = chain(kind="prototype")[1]
    result.metrics["digits, one block, T = 1, %"] = chain(blocks=1)[1]
    for pattern in PATTERNS:
        result.metrics[f"digits, {pattern} weights, %"] = chain(pattern=pattern)[1]
    for number in range(seed, seed + SEEDS):
        digits = load(number)
        twin = build(number, digits)
        train_backprop(
            twin, digits.train_x, digits.train_y, epochs=EPOCHS, batch=BATCH, lr=LR,
            weight_decay=DECAY, generator=digits.generator,
        )  # fmt: skip
        name = f"digits, seed {number}: twin trained through the chain, %"
        result.metrics[name] = accuracy(partial(twin, generator=digits.generator), digits)
    for name, make in (("NoProp-CT", _ct), ("NoProp-FM", _fm)):
        digits = load(seed)
        embedding = label_embedding("learned", CLASSES, D, generator=digits.generator)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            flow = make(embedding)
        flow.fit(
            digits.train_x, digits.train_y, epochs=FLOW_EPOCHS, batch=BATCH, lr=LR,
            generator=digits.generator,
        )  # fmt: skip
        result.metrics[f"digits, {name}, one network, {FLOW_EPOCHS} epochs, %"] = accuracy(
            partial(flow, generator=digits.generator, steps=FLOW_STEPS), digits
        )


def _ct(embedding: Tensor) -> NoPropCT:
    return NoPropCT(DenoiseBlock((PIXELS,), D, CLASSES, HIDDEN, time=TIME), embedding)


def _fm(embedding: Tensor) -> NoPropFM:
    return NoPropFM(DenoiseBlock((PIXELS,), D, D, HIDDEN, time=TIME), embedding)


# ------------------------------------------------------------------------- what a step touches


def _isolation(result: Result, found: Found) -> None:
    """Count the bits of other blocks that a step changes: weights, buffers, Adam's moments."""
    model, digits = found.model, found.digits
    optimizers = model.optimizers(LR, DECAY)
    x, y = digits.train_x[:BATCH], digits.train_y[:BATCH]
    model.train()
    for t in range(1, T + 1):
        model.step(t, x, y, optimizers, digits.generator)

    def bits(t: int) -> Tensor:
        moments = optimizers.blocks[t - 1].state_dict()["state"]
        kept = [*model.blocks[t - 1].state_dict().values()]
        kept += [moment for state in moments.values() for moment in state.values()]
        raw = b"".join(tensor.numpy().tobytes() for tensor in kept)
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8)

    touched, still = 0, 0
    for t in range(1, T + 1):
        before = [bits(other) for other in range(1, T + 1)]
        model.step(t, x, y, optimizers, digits.generator)
        for other in range(1, T + 1):
            changed = int((bits(other) != before[other - 1]).sum())
            touched += changed if other != t else 0
            still += other == t and not changed
    model.eval()
    result.check("bytes of other blocks that a step changes, 10 steps", touched, 0)
    result.check("blocks that their own step leaves as they were", still, 0)


def _memory(result: Result, found: Found) -> None:
    digits = found.digits
    x, y = digits.train_x[:BATCH], digits.train_y[:BATCH]
    for depth in DEPTHS if T in DEPTHS else sorted((*DEPTHS, T)):
        model = build(0, digits, blocks=depth).train()
        there = [*model.parameters(), *model.buffers(), x]
        through, apart = (
            saved_activation_bytes(fn, there)
            for fn in (
                lambda m=model: functional.cross_entropy(m(x, digits.generator), y),
                lambda m=model, t=depth: m.block_loss(t, x, y, digits.generator)[0],
            )
        )
        found.bytes_kept[depth] = (through, apart)
    through, apart = found.bytes_kept[T]
    result.metrics["bytes kept for a step's gradient, T = 10: through the chain"] = through
    result.metrics["… of a block"] = apart
    result.check("… the first over the second", through / apart, 8, at_least=True)


# ----------------------------------------------------------------------------------------- picture


@torch.no_grad()
def _figure(found: Found) -> Figure:
    model, digits = found.model, found.digits
    shown = torch.tensor([int((digits.test_y == label).nonzero()[0]) for label in range(8)])
    states, _ = model.chain(digits.test_x[shown], torch.Generator().manual_seed(1))
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    _draw_posteriors(left, model, states, digits.test_y[shown])
    plane, blocks, memory = right.subplots(3, 1, height_ratios=(1.6, 1, 1))
    _draw_plane(plane, model, states, digits.test_y[shown])
    steps = np.arange(1, T + 1)
    for number, (by_logits, by_embedding) in enumerate(found.alone):
        colour = f"C{number}"
        blocks.plot(steps, by_logits, "o--", color=colour, markersize=3, linewidth=0.8)
        blocks.plot(steps, by_embedding, "o-", color=colour, markersize=3)
        blocks.plot(T + 1, found.chains[number], "s", color=colour)
    blocks.plot([], [], "ko--", markersize=3, linewidth=0.8, label="a block's largest logit")
    blocks.plot([], [], "ko-", markersize=3, label="… nearest embedding")
    blocks.plot([], [], "ks", label="head, after the chain")
    blocks.set(xlabel="block t", ylabel="accuracy, %")
    blocks.legend(fontsize=7)
    depths = sorted(found.bytes_kept)
    for place, label in enumerate(("back-propagation through the chain", "NoProp")):
        kept = [found.bytes_kept[depth][place] / 1e6 for depth in depths]
        memory.plot(depths, kept, "o-", label=label)
    memory.set(xlabel="blocks T", ylabel="kept for a step, MB", ylim=(0, None))
    memory.legend(fontsize=7)
    return figure


def _draw_posteriors(figure: Figure, model: NoPropDT, states: list[Tensor], y: Tensor) -> None:
    """Draw what z_t alone says of the label, by the law of q, for every class and t."""
    u, abar = model.labels.W_embed, model.levels.abar
    shares = []
    for t, z in enumerate(states):
        off = (z[:, None] - abar[t].sqrt() * u).square().sum(2)
        shares.append((-off / (2 * (1 - abar[t]))).softmax(1))
    heat = torch.stack(shares, 2).numpy()  # (digits, classes, T + 1)
    panels = figure.subplots(4, 2, sharex=True, sharey=True)
    for axes, values, label in zip(panels.flat, heat, y.tolist(), strict=True):
        axes.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="Greys", origin="lower")
        axes.axhline(label, color="C3", linewidth=0.6)
        axes.set_title(f"a {label}", fontsize=8)
        axes.set(xticks=range(0, T + 1, 2), yticks=range(0, CLASSES, 3))
    figure.supxlabel("t", fontsize=9)
    figure.supylabel("class", fontsize=9)
    figure.suptitle("posterior of the class given z_t alone", fontsize=9)


def _draw_plane(axes: Axes, model: NoPropDT, states: list[Tensor], y: Tensor) -> None:
    u = model.labels.W_embed
    principal = torch.linalg.svd(u - u.mean(0)).Vh[:2]
    paths = ((torch.stack(states) - u.mean(0)) * principal[:, None, None]).sum(3)
    rows = ((u - u.mean(0)) * principal[:, None]).sum(2)
    for place, label in enumerate(y.tolist()):
        axes.plot(*paths[:, :, place], ".-", color=f"C{label}", linewidth=0.7, markersize=3)
    for label in range(CLASSES):
        axes.plot(*rows[:, label], "o", color=f"C{label}", markersize=11)
        axes.annotate(
            str(label), rows[:, label].tolist(), color="white", ha="center", va="center", fontsize=8
        )
    axes.set_title("z_t, and embeddings, along two principal axes of them", fontsize=9)
