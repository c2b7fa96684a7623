"""Acceptance figures: the laws against numpy's matrices, what exists, digits under attack.

Matrices of convolutions are written down tap by tap in numpy; exactly orthogonal kernels are made
of projections (Xiao et al. 2018), with no optimisation and none of the method's code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import structural_rank
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import sat
from sat.data import load_data
from sat.methods import Result
from sat.methods.orthogonal_conv.existence import orth_conv_exists
from sat.methods.orthogonal_conv.layers import OrthConv2d, orth_regularizer
from sat.methods.orthogonal_conv.loss import l_orth, spectral_bound
from sat.methods.orthogonal_conv.operator import conv_orth_residual, conv_singular_values
from sat.methods.problems.rounding import product_bound
from sat.methods.problems.training import fit

Array = NDArray[np.float64]
Shape = tuple[int, int, int, int]
"""Channels before and after, kernel size, stride."""

LAWS: tuple[tuple[Shape, int], ...] = (
    ((3, 2, 3, 1), 5), ((2, 5, 3, 1), 6), ((3, 5, 3, 2), 3), ((1, 6, 3, 2), 4),
    ((1, 3, 3, 3), 2), ((1, 11, 3, 3), 2), ((2, 3, 5, 2), 5), ((1, 2, 5, 1), 9),
)  # fmt: skip
EXISTING: tuple[Shape, ...] = ((3, 5, 3, 2), (8, 4, 3, 1), (4, 8, 3, 1), (4, 8, 3, 2))
IMPOSSIBLE: tuple[Shape, ...] = ((1, 4, 1, 2), (1, 11, 3, 4), (2, 36, 3, 4), (1, 5, 1, 2))
SQUARE: tuple[Shape, ...] = ((4, 4, 3, 1), (2, 8, 3, 2))
STEPS, QUICK_STEPS, STARTS, RATE = 2000, 300, 5, 1e-2
KERNELS, QUICK_KERNELS = 1000, 60
SIDES, QUICK_SIDES = (8, 12, 32, 128), (8, 12)
WEIGHTS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
CHANNELS, STRIDES = (1, 8, 16, 32), (1, 2, 2)
EPOCHS, BATCH, LR, SEEDS, ATTACK = 20, 32, 3e-3, 3, 0.5
QUICK_EPOCHS = 4
PATTERNS = ("2:4", "2:8")


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about a minute on one core.

    Parameters
    ----------
    seed : int
        Of kernels; networks are trained from this seed and the two that follow it.
    quick : bool
        Kernels of 300 steps, one seed and 4 epochs of digits with weights 0 and 1.
    """
    result = Result()
    _laws(result, seed, QUICK_KERNELS if quick else KERNELS)
    _known(result, seed)
    curves = _existence(result, seed, quick)
    trained = _digits(result, seed, quick)
    result.figures["orthogonality"] = _figure(curves, trained, QUICK_SIDES if quick else SIDES)
    if quick:
        result.left_out += [
            f"{STEPS} steps a kernel (here {QUICK_STEPS}) and their bounds, squares' restarts",
            f"{SEEDS} seeds, {EPOCHS} epochs and all weights of digits, with their bounds; N:M",
        ]
    return result


# ------------------------------------------------------------------------------------ exact laws


def matrix(weight: Array, stride: int, n: int) -> Array:
    """Return the matrix (out n², in (S n)²) of a circular convolution, one tap after the other."""
    outputs, inputs, size, _ = weight.shape
    side, centre = stride * n, size // 2
    out = np.zeros((outputs, n, n, inputs, side, side))
    for y in range(n):
        for x in range(n):
            for i in range(size):
                for j in range(size):
                    at = (y * stride + i - centre) % side, (x * stride + j - centre) % side
                    out[:, y, x, :, at[0], at[1]] += weight[:, :, i, j]
    return out.reshape(outputs * n * n, inputs * side * side)


def residual(a: Array) -> float:
    """Return ‖A Aᵀ - I‖ or ‖Aᵀ A - I‖, of the smaller side."""
    small = a if len(a) <= a.shape[1] else a.T
    return float(np.linalg.norm(small @ small.T - np.eye(len(small))))


def draw(shape: Shape, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Return a kernel (out, in, k, k) float64 of normal numbers, rows of about unit length."""
    inputs, outputs, size, _ = shape
    w = torch.randn(outputs, inputs, size, size, generator=generator, dtype=torch.float64)
    return scale * w / math.sqrt(inputs) / size


def _laws(result: Result, seed: int, kernels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    law = values = 0.0
    for shape, n in LAWS:
        weight, stride = draw(shape, generator), shape[3]
        a = matrix(weight.numpy(), stride, n)
        ratio = residual(a) ** 2 / (n * n * float(l_orth(weight, stride)))
        law = max(law, abs(ratio - 1))
        ours = conv_singular_values(weight, stride, n).flatten().sort(descending=True).values
        theirs = np.linalg.svd(a, compute_uv=False)
        values = max(values, float(np.abs(ours.numpy() - theirs).max() / theirs[0]))
    bound = product_bound(1e-12, 10)
    result.check("‖A Aᵀ - I‖² over n² L_orth, off 1, numpy's matrices, worst of 8", law, bound)
    result.check("singular values off numpy's, over the largest, worst of 8", values, 1e-12)
    above = 0
    largest = 0.0
    for number in range(kernels):
        shape, n = LAWS[number % len(LAWS)]
        weight = draw(shape, generator, scale=float(torch.rand((), generator=generator)) + 0.5)
        found = float(conv_orth_residual(weight, shape[3], n)[1])
        bound = float(spectral_bound(weight, shape[3]))
        above += found > bound
        largest = max(largest, found / bound)
    result.check(f"kernels above the spectral bound, of {kernels}", above, 0)
    result.metrics["largest spectral residual over its bound"] = largest


def exact_kernel(channels: int, rng: np.random.Generator) -> Tensor:
    """Return an orthogonal kernel (channels, channels, 3, 3) float64, made of four projections.

    A product of ``P + (I - P) z`` is orthogonal at every frequency z, as ``‖P x‖² + ‖x - P x‖²``
    is ``‖x‖²``: two along each axis make 3 x 3 taps (Xiao et al. 2018, "Dynamical Isometry and a
    Mean Field Theory of CNNs").
    """
    taps = np.linalg.qr(rng.standard_normal((channels, channels)))[0][:, :, None, None]
    for axis in (2, 3, 2, 3):
        basis = np.linalg.qr(rng.standard_normal((channels, channels // 2)))[0]
        stays = basis @ basis.T
        goes = np.eye(channels) - stays
        before, after = [(0, 0)] * 4, [(0, 0)] * 4
        before[axis], after[axis] = (0, 1), (1, 0)
        taps = np.einsum("oi,ichw->ochw", stays, np.pad(taps, before)) + np.einsum(
            "oi,ichw->ochw", goes, np.pad(taps, after)
        )
    return torch.from_numpy(taps)


def _known(result: Result, seed: int) -> None:
    """Kernels whose answer is known, and what two shortcuts make of them."""
    weight = exact_kernel(64, np.random.default_rng(seed))
    loss = float(l_orth(weight))
    result.check("L_orth of an exactly orthogonal kernel, 64-64", loss, product_bound(1e-12))
    rounded = weight.half().double()
    result.metrics["… rounded to float16: L_orth"] = float(l_orth(rounded))
    off = conv_singular_values(exact_kernel(16, np.random.default_rng(seed)), 1, 6) - 1
    result.check("… of one, 16-16: singular values off 1", float(off.abs().max()), 1e-12)
    line = torch.tensor([[[1.0, 0.0, 1.0]]], dtype=torch.float64) / math.sqrt(2)
    loss = float(l_orth(line, dim=1))
    result.check("L_orth of (1, 0, 1) / sqrt 2 off 1/2", abs(loss - 0.5), product_bound(1e-12, 4))
    near = functional.conv1d(line, line, padding=1)[0, 0]
    short = float((near - torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)).norm() ** 2)
    result.metrics["… by shifts of at most 1, as padding=1 has them"] = short
    flat = torch.linalg.qr(draw((4, 8, 3, 1), torch.Generator().manual_seed(seed)).flatten(1).mT)[0]
    kernel = flat.mT.reshape(8, 4, 3, 3)
    spread = conv_singular_values(kernel, 1, 12)
    result.metrics["orthonormal rows of the flattened kernel, 4-8: L_orth"] = float(l_orth(kernel))
    for name, value in (("smallest", spread.min()), ("largest", spread.max())):
        result.metrics[f"… {name} singular value"] = float(value)


# --------------------------------------------------------------------------------- what exists


@dataclass
class Curve:
    """A kernel's descent."""

    shape: Shape
    floor: float
    losses: list[float]
    weight: Tensor

    @property
    def last(self) -> float:
        """L_orth at the end."""
        return float(l_orth(self.weight, self.shape[3]))


def minimise(shape: Shape, seed: int, steps: int) -> Curve:
    """Minimise L_orth from Glorot's start by Adam, its rate falling as a cosine."""
    inputs, outputs, size, stride = shape
    weight = torch.empty(outputs, inputs, size, size, dtype=torch.float64)
    nn.init.xavier_uniform_(weight, generator=torch.Generator().manual_seed(seed))
    weight.requires_grad_()
    optimizer = torch.optim.Adam([weight], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = l_orth(weight, stride)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    floor = orth_conv_exists(inputs, outputs, size, stride).floor
    assert floor is not None
    return Curve(shape, floor, losses, weight.detach())


def _existence(result: Result, seed: int, quick: bool) -> list[Curve]:
    steps = QUICK_STEPS if quick else STEPS
    curves = [minimise(shape, seed, steps) for shape in EXISTING + IMPOSSIBLE]
    possible, impossible = curves[: len(EXISTING)], curves[len(EXISTING) :]
    for curve in curves:
        result.metrics[f"{title(curve.shape)}: L_orth (floor {curve.floor:g})"] = curve.last
    worst = max(abs(curve.last - curve.floor) for curve in impossible)
    name = "no orthogonal kernel: L_orth off its floor (3, 2, 14, 3), worst of 4"
    # A sum over as many rows as there are outputs, each with the errors of its products.
    result.check(name, worst, product_bound(1e-6, max(shape[1] for shape in IMPOSSIBLE)))
    largest = max(curve.last for curve in possible)
    if quick:
        result.check(f"kernels that can be orthogonal, {steps} steps: L_orth", largest, 0.05)
        return curves
    result.check("kernels that can be orthogonal: L_orth, worst of 4", largest, 1e-4)
    ends = {n: [_ends(curve, n) for curve in possible] for n in SIDES}
    low, high = min(low for low, _ in ends[12]), max(high for _, high in ends[12])
    result.check("… smallest singular value at n = 12", low, 0.998, at_least=True)
    result.check("… largest singular value at n = 12", high, 1.0025)
    moves = [
        abs(ends[n][which][end] - ends[m][which][end])
        for which in range(len(possible)) for end in (0, 1) for n in SIDES for m in SIDES
    ]  # fmt: skip
    result.check("… their range from n = 8 to 128 moves by", max(moves), 0.01)
    for shape in SQUARE:
        losses = [minimise(shape, seed + start, steps).last for start in range(STARTS)]
        reached = sum(loss < 1e-4 for loss in losses)
        result.metrics[f"{title(shape)}, square: of {STARTS} starts below 1e-4"] = reached
        result.metrics[f"{title(shape)}, square: highest L_orth"] = max(losses)
    return curves


def _ends(curve: Curve, n: int) -> tuple[float, float]:
    values = conv_singular_values(curve.weight, curve.shape[3], n)
    return float(values.min()), float(values.max())


def title(shape: Shape) -> str:
    """Return words for a shape."""
    inputs, outputs, size, stride = shape
    return f"{inputs}-{outputs}, {size} x {size}, stride {stride}"


# -------------------------------------------------------------------------------------- digits


def network(seed: int) -> nn.Sequential:
    """Return three circular convolutions and a head, for digits."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after, stride in zip(CHANNELS, CHANNELS[1:], STRIDES, strict=False):
        layers += [OrthConv2d(before, after, 3, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * CHANNELS[-1], 10))


HEAD = "7"
"""The head's name: not regularised, so that logits have the scale that the loss likes."""


class Mask(nn.Module):
    """A parametrisation that keeps some weights alone."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = nn.Buffer(mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros outside the mask."""
        return weight * self.mask


def convolutions(net: nn.Sequential) -> list[OrthConv2d]:
    """Return the three."""
    return [layer for layer in net if isinstance(layer, OrthConv2d)]


def mask_by(net: nn.Sequential, pattern: str) -> None:
    """Keep the N largest of every M inputs of the second and third convolution, from now on."""
    for layer in convolutions(net)[1:]:
        mask = sat.prune(layer.weight.detach(), pattern, axis=1).to_dense() != 0
        parametrize.register_parametrization(layer, "weight", Mask(mask))


@dataclass
class Trained:
    """What digits and an attack make of a network."""

    net: nn.Sequential
    clean: float
    attacked: float

    @cached_property
    def values(self) -> list[Tensor]:
        """Return the convolutions' singular values at 8 positions an axis."""
        return [
            conv_singular_values(layer.weight.detach(), layer.stride[0], 8)
            for layer in convolutions(self.net)
        ]

    def losses(self) -> list[float]:
        """Return the convolutions' L_orth."""
        return [float(layer.orth_loss().detach()) for layer in convolutions(self.net)]


def pixels() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return digits with pixels from 0 to 1: pictures, classes, and those of the test."""
    data = load_data("digits")
    low, high = data.train_x.min(), data.train_x.max()
    train, test = ((x - low) / (high - low) for x in (data.train_x, data.test_x))
    return train, data.train_y, test, data.test_y


def train(lam: float, seed: int, epochs: int, pattern: str = "dense") -> Trained:
    """Train on digits."""
    train_x, train_y, *_ = pixels()
    net = network(seed)
    if pattern != "dense":
        mask_by(net, pattern)

    def loss(places: Tensor) -> Tensor:
        wrong = functional.cross_entropy(net(train_x[places]), train_y[places])
        return wrong + orth_regularizer(net, lam, skip=[HEAD]) if lam else wrong

    fit(
        loss, len(train_x), torch.optim.Adam(net.parameters(), LR), epochs=epochs, batch=BATCH,
        generator=torch.Generator().manual_seed(seed), schedule="cosine",
    )  # fmt: skip
    return judge(net)


def judge(net: nn.Sequential) -> Trained:
    """Test, as it is and attacked along the gradient, 0.5 in the Euclidean norm."""
    *_, test_x, test_y = pixels()
    x = test_x.clone().requires_grad_()
    functional.cross_entropy(net(x), test_y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    step = x.grad / x.grad.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    with torch.no_grad():
        clean, attacked = (
            float((net(each).argmax(1) == test_y).double().mean())
            for each in (test_x, test_x + ATTACK * step)
        )
    return Trained(net, 100 * clean, 100 * attacked)


@dataclass
class Digits:
    """All networks, by the weight of their regulariser."""

    runs: dict[float, list[Trained]] = field(default_factory=dict)

    def mean(self, lam: float, what: str) -> float:
        """Return the mean over seeds of ``clean`` or ``attacked``."""
        return fmean(getattr(one, what) for one in self.runs[lam])


def _digits(result: Result, seed: int, quick: bool) -> Digits:
    digits = Digits()
    epochs, seeds = (QUICK_EPOCHS, 1) if quick else (EPOCHS, SEEDS)
    for lam in (WEIGHTS[0], WEIGHTS[-1]) if quick else WEIGHTS:
        digits.runs[lam] = [train(lam, seed + i, epochs) for i in range(seeds)]
        for what in ("clean", "attacked"):
            result.metrics[f"digits, weight {lam:g}: {what}, %"] = digits.mean(lam, what)
        for place, values in enumerate(digits.runs[lam][0].values, 1):
            name = f"digits, weight {lam:g}, layer {place}"
            result.metrics[f"{name}: smallest singular value"] = float(values.min())
            result.metrics[f"{name}: largest singular value"] = float(values.max())
    ends = [values for one in digits.runs[1.0] for values in one.values]
    low, high = (float(f(torch.cat([v.flatten() for v in ends]))) for f in (torch.min, torch.max))
    if quick:
        spread = [v for one in digits.runs[0.0] for v in one.values]
        wide = float(torch.cat([v.flatten() for v in spread]).max())
        name = f"digits, {epochs} epochs: largest singular value, weight 0 over weight 1"
        result.check(name, wide / high, 1.5, at_least=True)
        return digits
    robust = [digits.mean(lam, "attacked") for lam in WEIGHTS]
    rises = min(b - a for a, b in zip(robust, robust[1:], strict=False))
    result.check("digits attacked: least rise, weight by weight, points", rises, 0, at_least=True)
    gain = robust[-1] - robust[0]
    result.check("digits attacked: gain by weight 1, points", gain, 15, at_least=True)
    lost = digits.mean(0.0, "clean") - digits.mean(1.0, "clean")
    result.check("digits clean: lost by weight 1, points", lost, 5)
    result.check("digits, weight 1, all layers: smallest singular value", low, 0.9, at_least=True)
    result.check("digits, weight 1, all layers: largest singular value", high, 1.25)
    _patterns(result, seed, digits.runs[1.0][0])
    return digits


def _patterns(result: Result, seed: int, dense: Trained) -> None:
    """Masks of the second and third layer: put on at the end, or there from the start."""
    for pattern in PATTERNS:
        net = copy.deepcopy(dense.net)
        mask_by(net, pattern)
        cut = judge(net)
        for place, layer in enumerate(convolutions(net)[1:], 2):
            kept = layer.weight.detach().flatten(1).numpy() != 0
            rank = structural_rank(csr_matrix(kept))
            result.metrics[f"{pattern}, layer {place}: rank that its mask allows"] = float(rank)
        free, held = (train(lam, seed, EPOCHS, pattern) for lam in (0.0, 1.0))
        for text, one in (("masked once trained", cut), ("trained masked", held),
                          ("trained masked, weight 0", free)):  # fmt: skip
            name = f"{pattern}, {text}"
            for place, (loss, values) in enumerate(zip(one.losses(), one.values, strict=True), 1):
                if place > 1:
                    result.metrics[f"{name}, layer {place}: L_orth"] = loss
                    result.metrics[f"{name}, layer {place}: smallest"] = float(values.min())
                    result.metrics[f"{name}, layer {place}: largest"] = float(values.max())
            result.metrics[f"{name}: clean, %"] = one.clean
            result.metrics[f"{name}: attacked, %"] = one.attacked


# ------------------------------------------------------------------------------------- picture


def _figure(curves: Sequence[Curve], digits: Digits, at: Sequence[int]) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    descent, sides, trade, spread = axes.flat
    for number, curve in enumerate(curves):
        above = np.maximum(np.array(curve.losses) - curve.floor, 1e-16)
        style = "-" if curve.floor == 0 else "--"
        label = f"{title(curve.shape)}, floor {curve.floor:g}"
        descent.semilogy(above, style, color=f"C{number}", label=label)
    descent.set(xlabel="step", ylabel="L_orth above its floor")
    descent.legend(fontsize=7)
    for number, curve in enumerate(curves[: len(EXISTING)]):
        low, high = zip(*(_ends(curve, n) for n in at), strict=True)
        sides.semilogx(at, low, "v-", color=f"C{number}")
        sides.semilogx(at, high, "^-", color=f"C{number}")
    sides.set(
        xlabel="positions an axis", ylabel="smallest and largest singular value",
        title="the four kernels of floor 0",
    )  # fmt: skip
    sides.set_xticks(at, [str(n) for n in at])
    sides.minorticks_off()
    places = range(len(digits.runs))
    for what in ("clean", "attacked"):
        trade.plot(places, [digits.mean(lam, what) for lam in digits.runs], "o-", label=what)
        for place, runs in enumerate(digits.runs.values()):
            trade.plot([place] * len(runs), [getattr(r, what) for r in runs], "k.", markersize=3)
    trade.set_xticks(places, [f"{lam:g}" for lam in digits.runs])
    trade.set(xlabel="weight of the regulariser", ylabel="digits, test accuracy, %")
    trade.legend()
    for lam, runs in digits.runs.items():
        values = runs[0].values[1].flatten().sort(descending=True).values
        spread.plot(values.numpy(), label=f"weight {lam:g}")
    spread.set(xlabel="rank", ylabel="singular values, second layer", ylim=(0, None))
    spread.legend(fontsize=8)
    return figure
