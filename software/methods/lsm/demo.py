"""LSM's acceptance figures: Darcy flow by LSM and by its U-Net, the block by loops, the series."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sat.methods import Result
from sat.methods.lsm.block import NeuralSpectralBlock
from sat.methods.lsm.model import LSM
from sat.methods.problems.darcy import darcy_2d, darcy_samples
from sat.methods.problems.fields import relative_l2
from sat.methods.problems.normalizer import FieldNormalizer
from sat.methods.problems.rounding import product_bound
from sat.methods.problems.training import fit

SIZE, TRAIN, TEST = 31, 200, 100
EPOCHS, BATCH, LR, DECAY, SEEDS = 30, 20, 2e-3, 1e-4, 3
MODEL: dict[str, Any] = {"d_model": 8, "heads": 4, "patch": (2, 2), "padding": (1, 1)}
QUICK_EPOCHS, QUICK_TRAIN = 5, 100


@dataclass
class Trained:
    """A model, the statistics it goes by, and what it does to the test set."""

    model: LSM
    inputs: FieldNormalizer
    outputs: FieldNormalizer
    errors: list[float]
    """Mean relative L2 on the test set after every fifth epoch."""

    @torch.no_grad()
    def __call__(self, a: Tensor) -> Tensor:
        """Return solutions (batch, size, size) for media of that shape."""
        self.model.eval()
        u = self.model(self.inputs.encode(a)[..., None])[..., 0]
        self.model.train()
        return self.outputs.decode(u)


def train(
    a: Tensor,
    u: Tensor,
    tests: tuple[Tensor, Tensor],
    seed: int,
    *,
    epochs: int,
    spectral: bool = True,
    options: dict[str, Any] = MODEL,
) -> Trained:
    """Train on media and solutions (samples, size, size); statistics are of these alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LSM(1, 1, spectral=spectral, **options)
    trained = Trained(model, FieldNormalizer(a), FieldNormalizer(u), [])
    x = trained.inputs.encode(a)[..., None]

    def loss(places: Tensor) -> Tensor:
        pred = trained.outputs.decode(model(x[places])[..., 0])
        return relative_l2(pred, u[places]).sum()

    def watch(epoch: int) -> None:
        if epoch % 5 == 0 or epoch == epochs:
            trained.errors.append(float(relative_l2(trained(tests[0]), tests[1]).mean()))

    optimizer = torch.optim.Adam(model.parameters(), LR, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(seed)
    fit(loss, len(a), optimizer, epochs=epochs, batch=BATCH, generator=generator, on_epoch=watch)
    return trained


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about seven minutes on one core.

    Parameters
    ----------
    seed : int
        Of the media; models are trained from this seed and the two that follow it.
    quick : bool
        One seed, 5 epochs on half of the training set, and no U-Net alone.
    """
    result = Result()
    _solver(result)
    _series(result)
    _cost(result)
    off = block_difference(seed)
    result.check("block off its loops over patches, heads, points", off, product_bound(1e-12, 16))
    a, u = darcy_samples(TRAIN + TEST, SIZE, seed)
    tests = a[TRAIN:], u[TRAIN:]
    number, epochs = (QUICK_TRAIN, QUICK_EPOCHS) if quick else (TRAIN, EPOCHS)
    mean = u[:number].mean(0).expand_as(tests[1])
    blind = float(relative_l2(mean, tests[1]).mean())
    result.metrics["mean training field as predictor: test relative L2"] = blind
    runs = {
        spectral: [
            train(a[:number], u[:number], tests, seed + i, epochs=epochs, spectral=spectral)
            for i in range(1 if quick else SEEDS)
        ]
        for spectral in ((True,) if quick else (True, False))
    }
    for spectral, trained in runs.items():
        text = "LSM" if spectral else "U-Net alone"
        for i, one in enumerate(trained):
            name = f"{text}, seed {seed + i}: test relative L2"
            result.metrics[name] = one.errors[-1]
            if len(one.errors) > 4:
                result.metrics[f"{name} after 20 epochs"] = one.errors[3]
        if len(trained) > 1:
            spread = stdev(one.errors[-1] for one in trained)
            result.metrics[f"{text}: standard deviation over seeds"] = spread
        parameters = sum(p.numel() for p in trained[0].model.parameters())
        result.metrics[f"{text}: parameters"] = parameters
    error = fmean(one.errors[-1] for one in runs[True])
    if quick:
        result.check("LSM, 5 epochs: test relative L2 over the mean field's", error / blind, 1.0)
        result.left_out += [
            "two of three seeds, the U-Net alone",
            f"{QUICK_EPOCHS} epochs of {EPOCHS}, {QUICK_TRAIN} media of {TRAIN}",
            "a bound on the test error, but for the mean field's",
        ]
    else:
        unet = fmean(one.errors[-1] for one in runs[False])
        result.metrics["U-Net alone: test relative L2, mean of 3 seeds"] = unet
        result.check("LSM: test relative L2, mean of 3 seeds", error, 0.045)
        result.check("LSM: test relative L2 over the mean field's", error / blind, 0.25)
    result.figures["darcy"] = _figure(runs[True][0], *tests)
    return result


# ------------------------------------------------------------------------------- exact figures


def _solver(result: Result) -> None:
    """Compare the data's solver at the centre with the double sine series of a = f = 1."""
    odd = np.arange(1, 2001, 2)
    sines = np.sin(np.pi * odd / 2)
    i, k = odd[:, None], odd
    exact = float((16 / (np.pi**4 * i * k * (i**2 + k**2)) * sines[:, None] * sines).sum())
    nodes = (17, 33, 65)
    errors = [abs(darcy_2d(np.ones((1, n, n)))[0, n // 2, n // 2] - exact) for n in nodes]
    for coarse, fine, n in zip(errors, errors[1:], nodes[1:], strict=False):
        order = float(np.log2(coarse / fine))
        result.check(f"data solver, {n} nodes: order", order, 1.9, at_least=True)


def series_error(num_basis: int, frequency: str) -> float:
    """Return the relative RMS of the best `solve` for tanh(3z) on [-2, 2], float64.

    Its weights by least squares on 2001 points. Of harmonics, singular values below 1e-6 of the
    largest are left out: else weights of 1e4 cancel, and products of fewer bits than float64 show
    nothing. Fractions of π need them all for what they can do: their figure is one of float64.
    """
    block = NeuralSpectralBlock(
        1, num_basis, (1, 1), num_token=2001, heads=1, frequency=frequency
    ).double()
    z = np.linspace(-2, 2, 2001)
    target = np.tanh(3 * z)
    angles = z[:, None] * block.frequencies.numpy()
    basis = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    cutoff = 1e-6 if frequency == "harmonic" else None
    weights, *_ = np.linalg.lstsq(basis, target - z, rcond=cutoff)
    with torch.no_grad():
        block.weight.copy_(torch.from_numpy(weights)[None])
        got = block.solve(torch.from_numpy(z).view(1, 1, -1)).flatten().numpy()
    return float(np.sqrt(np.mean((got - target) ** 2) / np.mean(target**2)))


def _series(result: Result) -> None:
    sizes = (4, 8, 16, 32)
    for frequency in ("harmonic", "fraction"):
        errors = [series_error(n, frequency) for n in sizes]
        for n, error in zip(sizes, errors, strict=True):
            result.metrics[f"solve ({frequency}) to tanh(3z), N = {n}: relative RMS"] = error
        if frequency == "harmonic":
            # Sizes of weights add up to at most 7, and tanh(3z) has a root mean square of 0.85.
            floor = product_bound(0.0, 8)
            grown = sum(b >= max(a, floor) for a, b in zip(errors, errors[1:], strict=False))
            result.check("solve (harmonic): RMS that did not fall with N doubled", grown, 0)
            bound = product_bound(1e-3, 8)
            result.check("solve (harmonic), N = 32: relative RMS", errors[-1], bound)


def block_macs(size: int) -> int:
    """Return the multiply-accumulates of a block on size x size points, as torch counts them."""
    with torch.device("meta"):
        block = NeuralSpectralBlock(8, 12, (2, 2), heads=4)
        x = torch.empty(1, 8, size, size)
    with FlopCounterMode(display=False) as counter:
        block(x)
    return counter.get_total_flops() // 2


def _cost(result: Result) -> None:
    ratio = block_macs(64) / block_macs(32)
    result.check("block's MACs, grid 2x finer: ratio off 4", abs(ratio - 4), 1e-3)


def block_by_loops(block: NeuralSpectralBlock, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a block's output of x (batch, C, height, width), number by number in float64."""
    p1, p2 = block.patch
    heads, tokens, width = block.heads, block.num_token, block.width
    each, n = width // heads, block.num_basis
    query = block.token.detach().numpy()
    weight = block.weight.detach().numpy()
    state = {name: value.numpy() for name, value in block.state_dict().items()}
    enc, enc0 = state["encoder.weight"][..., 0], state["encoder.bias"]
    dec, dec0 = state["decoder.weight"][..., 0], state["decoder.bias"]
    step = np.pi / n if block.frequency == "fraction" else 1.0
    out = x.copy()
    for sample in range(len(x)):
        for top in range(0, x.shape[2], p1):
            for left in range(0, x.shape[3], p2):
                points = [(top + i, left + j) for i in range(p1) for j in range(p2)]
                for head in range(heads):
                    z = np.zeros((tokens, each))
                    at = [x[sample, :, i, j] for i, j in points]
                    # Output 2 (head · each + c) is a key, the next one a value.
                    rows = [2 * (head * each + c) for c in range(each)]
                    keys = [[enc[r] @ v + enc0[r] for r in rows] for v in at]
                    values = [[enc[r + 1] @ v + enc0[r + 1] for r in rows] for v in at]
                    for t in range(tokens):
                        logits = [float(np.dot(query[head, t], key)) for key in keys]
                        weights = np.exp(np.array(logits) - max(logits))
                        weights /= weights.sum()
                        z[t] = weights @ np.array(values) + query[head, t]
                        for c in range(each):
                            value, w = z[t, c], weight[head * each + c]
                            for j in range(n):
                                z[t, c] += w[j] * np.sin(step * j * value)
                                z[t, c] += w[n + j] * np.cos(step * j * value)
                    for (i, j), v in zip(points, at, strict=True):
                        mine = range(head * each, (head + 1) * each)
                        asked = np.array([dec[c] @ v + dec0[c] for c in mine])
                        weights = np.exp(z @ asked - (z @ asked).max())
                        out[sample, head * each : (head + 1) * each, i, j] += (
                            weights / weights.sum() @ z
                        )
    return out


def block_difference(seed: int) -> float:
    """Return the largest difference of a float64 block from `block_by_loops`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = NeuralSpectralBlock(8, 5, (2, 3), num_token=3, heads=4).double()
        x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        got = block(x).numpy()
    return float(np.abs(got - block_by_loops(block, x.numpy())).max())


# ------------------------------------------------------------------------------------- picture


def _figure(trained: Trained, a: Tensor, u: Tensor) -> Figure:
    pred = trained(a)
    figure = Figure(figsize=(10, 7), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    upper, lower = halves
    panels = upper.subplots(1, 4)
    top = float(torch.maximum(u[0], pred[0]).max())
    fields: tuple[tuple[Tensor, str, dict[str, Any]], ...] = (
        (a[0], "medium a", {}),
        (u[0], "solution u", {"vmin": 0, "vmax": top}),
        (pred[0], "LSM's u", {"vmin": 0, "vmax": top}),
        ((pred - u)[0].abs(), "|error|", {"cmap": "magma"}),
    )
    for axes, (field, title, options) in zip(panels.flat, fields, strict=True):
        image = axes.imshow(field.numpy().T, origin="lower", extent=(0, 1, 0, 1), **options)
        upper.colorbar(image, ax=axes, location="bottom", ticks=MaxNLocator(3))
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=10)
    distances, errors = _by_distance(a, (pred - u).abs())
    left, right = lower.subfigures(1, 2)
    axes = left.subplots()
    axes.plot(distances, errors, "o-")
    axes.set(xlabel="distance from the nearest jump of a, nodes", ylabel="mean |error|, 100 tests")
    axes.set_ylim(bottom=0)
    with torch.no_grad():
        trained.model.eval()
        x = trained.model.finest(trained.inputs.encode(a[:1])[..., None])
        block = trained.model.blocks[0]
        assert isinstance(block, NeuralSpectralBlock)
        maps = block.attention(x)[0, : block.num_token, :SIZE, :SIZE]
    right.suptitle("what each token of the finest scale takes of a point", fontsize=10)
    for token, axes in enumerate(right.subplots(2, (len(maps) + 1) // 2).flat):
        low, high = (float(end) for end in maps.aminmax())
        image = axes.imshow(maps[token].numpy().T, origin="lower", vmin=low, vmax=high)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"token {token + 1}", fontsize=9)
    right.colorbar(image, ax=list(right.axes), shrink=0.7)
    return figure


def _by_distance(a: Tensor, error: Tensor) -> tuple[list[int], list[float]]:
    """Return distances from the jumps of a, in nodes, and the mean error there."""
    sums: dict[int, list[float]] = {}
    for field, wrong in zip(a.numpy(), error.numpy(), strict=True):
        upper = field == field.max()
        far = np.where(upper, distance_transform_edt(upper), distance_transform_edt(~upper))
        for distance in range(1, 9):
            sums.setdefault(distance, []).extend(wrong[far.round() == distance].tolist())
    return list(sums), [fmean(values) if values else float("nan") for values in sums.values()]
