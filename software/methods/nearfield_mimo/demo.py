"""Deep2S judged: the model and the network by numpy and scipy; images of scenes it never saw.

Measurements are numpy's, in float64, so that a training has the same data on every device.
"""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.nearfield_mimo import reference
from sat.methods.nearfield_mimo.figure import Shown, picture
from sat.methods.nearfield_mimo.geometry import MimoArray, VoxelGrid, born_matrix
from sat.methods.nearfield_mimo.imaging import adjoint, l1, normalize, tikhonov
from sat.methods.nearfield_mimo.models import (
    CVDeep2S,
    Deep2S,
    Deep2SPlus,
    DeepDI,
    TwoStage,
    fit,
)
from sat.methods.nearfield_mimo.targets import add_noise, random_extended_targets
from sat.methods.nearfield_mimo.unet import EPS, UNet3d, slice_convolutions
from sat.methods.problems.rounding import product_bound
from sat.methods.s3im.quality import ssim

SHAPE, ANTENNAS, APERTURE, FREQS, BAND = (16, 16, 16), 8, 0.3, 8, (4e9, 16e9)
SIDES, DEPTHS = (-0.15, 0.15), (0.35, 0.65)
TRAIN, TEST, SNR = 600, 40, 30.0
EPOCHS, BATCH, LR, BASE = 15, 16, 5e-3, 8
VARIANTS, SHORT = ("Deep2S", "CV-Deep2S", "Deep2S-2D", "Deep2S+", "DeepDI", "2:8 DeepDI"), 4
"""Trained beside each other, for fewer epochs; the last with its map pruned 2:8."""
QUICK_TRAIN, QUICK_EPOCHS = 192, 3
MUS, WEIGHTS = (0.01, 0.03, 0.1), (0.02, 0.05)
"""Of Tikhonov's, times the mean energy of A's rows; of the l1 norm. The best counts."""
SNRS = (0.0, 10.0, 20.0, 30.0, 40.0)
PATTERNS, LEAST, RETRAINED, RETRAINED_LR = ("2:4", "2:8"), 16, 2, 2e-3
"""From how many input channels on convolutions are pruned; a pruned network's epochs and rate."""


@dataclass
class Data:
    """Scenes and what is measured of them."""

    array: MimoArray
    grid: VoxelGrid
    A: Tensor
    clean: Tensor
    """(scenes, Nf, Nt, Nr) complex128, without noise."""
    y: Tensor
    """The same with noise, complex64."""
    magnitude: Tensor
    """(scenes, nx, ny, nz) float32."""
    train: slice
    test: slice

    @property
    def truth(self) -> reference.Real:
        """Magnitudes of the test set."""
        return self.magnitude[self.test].double().numpy()


def setting() -> tuple[MimoArray, VoxelGrid, Tensor]:
    """Return the demo's antennas, voxels and frequencies."""
    array = MimoArray.cross(ANTENNAS, ANTENNAS, APERTURE)
    grid = VoxelGrid.box(SHAPE, SIDES, SIDES, DEPTHS)
    return array, grid, torch.linspace(*BAND, FREQS, dtype=torch.float64)


def measured(array: MimoArray, grid: VoxelGrid, freqs: Tensor, scenes: Tensor) -> Tensor:
    """Return measurements (scenes, Nf, Nt, Nr) complex128 without noise, by numpy."""
    tx, rx, places, f = (x.numpy() for x in (array.tx, array.rx, grid.points, freqs))
    return torch.from_numpy(reference.measure(tx, rx, places, f, scenes.flatten(1).numpy()))


def make_data(seed: int, train: int = TRAIN, test: int = TEST) -> Data:
    """Return scenes of a seed, and noisy measurements of them."""
    array, grid, freqs = setting()
    scenes = random_extended_targets(train + test, grid, seed)
    clean = measured(array, grid, freqs, scenes)
    y = add_noise(clean, SNR, torch.Generator().manual_seed(seed))
    return Data(
        array, grid, born_matrix(array.tx, array.rx, grid, freqs), clean,
        y.to(torch.complex64), scenes.abs().float(), slice(train), slice(train, train + test),
    )  # fmt: skip


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Compute the acceptance figures; about six minutes on one core.

    Parameters
    ----------
    seed : int
        Of scenes, noise, networks and the order of samples.
    quick : bool
        A few scenes and epochs of Deep2S alone, judged beside the adjoint.
    """
    result = Result()
    _solvers(result, seed)
    _network(result, seed)
    _matrix(result, seed)
    _focus(result, seed)
    data = make_data(seed, QUICK_TRAIN if quick else TRAIN)
    _noise(result, data)
    images = _baselines(result, data)
    epochs = QUICK_EPOCHS if quick else EPOCHS
    model = untrained(data, seed)
    curve = train(data, seed, model, epochs)
    _judge(result, data, images, model, quick)
    if quick:
        result.left_out += [
            f"{TRAIN - QUICK_TRAIN} of {TRAIN} scenes, {EPOCHS - QUICK_EPOCHS} of {EPOCHS} epochs",
            "bounds beside Tikhonov's solution and the empty volume",
            "what is lost by leaving parts out, N:M, other inputs and first stages",
        ]
    else:
        _ablations(result, data, model, seed)
        _sparse(result, data, model, seed)
        _variants(result, data, seed)
    result.figures["images"] = picture(_shown(data, images, model, curve, seed))
    return result


# ------------------------------------------------------------------------------- exact figures


def _matrix(result: Result, seed: int) -> None:
    """A against the Born sum in numpy, one voxel at a time; and its adjoint."""
    array, grid, freqs = setting()
    a = born_matrix(array.tx, array.rx, grid, freqs, dtype=torch.complex128)
    rng = np.random.default_rng(seed)
    worst = 0.0
    for n in rng.choice(len(grid.points), 8, replace=False):
        one = torch.ones(1, 1, dtype=torch.complex128)
        place = VoxelGrid(*(c[None] for c in grid.points[n]))
        y = measured(array, place, freqs, one).flatten()
        worst = max(worst, float((a[:, n] - y).abs().max() / y.abs().max()))
    result.check("A's columns off the Born sum of one voxel, 8 of them", worst, 1e-12)
    x, y = (
        torch.from_numpy(rng.standard_normal((1, n, 2))).flatten(0, 1) for n in reversed(a.shape)
    )
    x, y = torch.view_as_complex(x), torch.view_as_complex(y)
    forward, backward = x @ a.mT, adjoint(a, y)
    left, right = np.vdot(y.numpy(), forward.numpy()), np.vdot(backward.numpy(), x.numpy())
    off = abs(left - right) / (np.linalg.norm(forward) * np.linalg.norm(y))
    result.check("<A x, y> off <x, Aᴴ y>, over their norms", float(off), product_bound(1e-12, 4))


def down_range(array: MimoArray, freqs: int) -> tuple[reference.Real, reference.Real]:
    """Return places (metres) along z through a scatterer in the middle, and |Aᴴ a| there."""
    z = np.linspace(-0.05, 0.05, 2001)
    line = VoxelGrid(torch.zeros(1), torch.zeros(1), torch.from_numpy(z) + fmean(DEPTHS))
    f = torch.linspace(*BAND, freqs, dtype=torch.float64)
    a = born_matrix(array.tx, array.rx, line, f, dtype=torch.complex128).numpy()
    image = np.abs(a.conj().T @ a[:, len(z) // 2])
    return z, image / image[len(z) // 2]


def _focus(result: Result, seed: int) -> None:
    array, grid, freqs = setting()
    a = born_matrix(array.tx, array.rx, grid, freqs)
    places = np.random.default_rng(seed).choice(len(grid.points), 64, replace=False)
    scenes = torch.zeros(len(places), len(grid.points), dtype=torch.complex128)
    scenes[torch.arange(len(places)), torch.from_numpy(places)] = 1
    image = adjoint(a, measured(array, grid, freqs, scenes)).abs().numpy()
    lost = int((image.argmax(1) != places).sum())
    result.metrics["points of 64 whose image is brightest elsewhere"] = lost
    # Eight frequencies repeat a point every 87 mm, and what is nearer is brighter by its spreading.
    lost = int(((image / np.linalg.norm(a.numpy(), axis=0)).argmax(1) != places).sum())
    result.check("… by columns of norm 1", lost, 0)
    z, image = down_range(array, 64)
    level = np.sinc(0.5)
    inside = np.flatnonzero(image < level)
    middle = len(z) // 2
    width = z[inside[inside > middle][0]] - z[inside[inside < middle][-1]]
    theory = reference.LIGHT / (2 * (BAND[1] - BAND[0]))
    result.metrics["down-range width at -3.9 dB, mm"] = 1e3 * width
    result.check("… off c / 2B = 12.5 mm, relative", abs(width / theory - 1), 0.1)


def _solvers(result: Result, seed: int) -> None:
    """Tikhonov's solution against LAPACK's least squares of stacked rows."""
    rng = np.random.default_rng(seed)
    a, y = (x[..., 0] + 1j * x[..., 1] for x in (
        rng.standard_normal((40, 60, 2)), rng.standard_normal((40, 2))
    ))  # fmt: skip
    mu = 10.0
    got = tikhonov(torch.from_numpy(a), torch.from_numpy(y), mu).numpy()
    expected = reference.ridge(a, y, mu)
    condition = (np.linalg.norm(a, 2) ** 2 + mu) / mu
    off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    bound = product_bound(1e-10, 4 * math.ceil(condition))
    result.check("Tikhonov's solution off least squares on stacked rows", float(off), bound)


def network_difference(seed: int, shape: tuple[int, int, int], *, flat: bool = False) -> float:
    """Return how far a float64 U-Net of two channels is from scipy's, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNet3d(1, 2, flat=flat).double()
        u = torch.rand(1, 1, *shape, dtype=torch.float64)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm3d):
                for value in (module.running_mean, module.running_var, module.weight, module.bias):
                    if value is not None:
                        nn.init.uniform_(value, 0.5, 1.5)
        nn.init.constant_(net.out.bias, 0.0)  # type: ignore[arg-type]
    state = {name: value.double().numpy() for name, value in net.state_dict().items()}
    with torch.no_grad():
        got = net.eval()(u)[0].numpy()
    return float(np.abs(got - reference.unet(state, u[0].numpy(), EPS)).max())


def _network(result: Result, seed: int) -> None:
    off = max(network_difference(seed, (9, 8, 17)), network_difference(seed, (8, 9, 8), flat=True))
    # Eleven layers follow one another, each of sums of up to 216 terms of either sign.
    result.check("U-Net, cubic and flat, off scipy's correlations", off, product_bound(1e-12, 40))


def _noise(result: Result, data: Data) -> None:
    noise = data.y.to(torch.complex128) - data.clean
    powers = (x.abs().square().flatten(1).mean(1) for x in (data.clean, noise))
    snr = 10 * float(torch.div(*powers).log10().mean())
    result.check("noise: ratio off 30 dB, mean of all scenes, dB", abs(snr - SNR), 0.05)
    parts = float(noise.real.square().mean() / noise.imag.square().mean())
    result.check("noise: power of real over imaginary parts, off 1", abs(parts - 1), 0.05)


# ------------------------------------------------------------------------------------- baselines


def images_of(b: Tensor) -> reference.Real:
    """Return magnitudes (…, nx, ny, nz) of largest value 1."""
    return normalize(b.abs()).unflatten(-1, SHAPE).double().numpy()


def _baselines(result: Result, data: Data) -> dict[str, reference.Real]:
    """Images of the test set, as the solver gives them and by the best factor for all of them."""
    y, truth = data.y[data.test], data.truth
    energy = float(data.A.abs().square().sum()) / len(data.A)
    found = {"adjoint": [images_of(adjoint(data.A, y))]}
    found["Tikhonov"] = [images_of(tikhonov(data.A, y, mu * energy)) for mu in MUS]
    found["l1"] = [images_of(l1(data.A, y, weight)) for weight in WEIGHTS]
    result.metrics["empty volume: PSNR, dB"] = reference.psnr(0 * truth, truth)
    best = {"empty": np.zeros_like(truth)}
    for name, images in found.items():
        scaled = [reference.best_scale(one, truth) * one for one in images]
        at = max(range(len(scaled)), key=lambda i: reference.psnr(scaled[i], truth))
        result.metrics[f"{name}: PSNR, dB"] = reference.psnr(images[at], truth)
        result.metrics[f"{name}, by the best factor: PSNR, dB"] = reference.psnr(scaled[at], truth)
        result.metrics[f"{name}, by the best factor: SSIM"] = similarity(scaled[at], truth)
        best[name], best[f"{name}, largest 1"] = scaled[at], images[at]
    a, flat = data.A.numpy().astype(complex), y.flatten(1).numpy().astype(complex)
    exact = _image_quality(flat @ a.conj(), truth)
    rounded = _image_quality(reference.half_adjoint(a, flat), truth)
    own = reference.psnr(found["adjoint"][0], truth)
    change = max(abs(rounded - exact), abs(own - exact))
    result.check("adjoint in float16, numpy's or ours: PSNR changes by, dB", change, 0.05)
    return best


def _image_quality(b: reference.Complex, truth: reference.Real) -> float:
    """Return the PSNR of magnitudes of largest value 1."""
    image = np.abs(b)
    return reference.psnr((image / image.max(1, keepdims=True)).reshape(truth.shape), truth)


def similarity(images: reference.Real, truth: reference.Real) -> float:
    """Return the mean SSIM of slices of constant z, windows of 11 x 11."""
    return fmean(ssim(a, b) for a, b in zip(images, truth, strict=True))


# -------------------------------------------------------------------------------------- training


def untrained(data: Data, seed: int, kind: str = "Deep2S") -> TwoStage:
    """Return one of `VARIANTS` with the weights of a seed."""
    pattern, _, name = kind.rpartition(" ")
    count, shape = len(data.A), data.grid.shape
    model: TwoStage
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet3d(2 if name == "CV-Deep2S" else 1, BASE, flat=name == "Deep2S-2D")
        if name == "DeepDI":
            model = DeepDI(count, shape, network)
        elif name == "Deep2S+":
            model = Deep2SPlus(count, shape, network, data.A)
        else:
            model = (CVDeep2S if name == "CV-Deep2S" else Deep2S)(data.A, shape, network)
    if pattern:
        sat.sparsify_(model, "bdwp", pattern)
    return model


def train(
    data: Data, seed: int, model: TwoStage, epochs: int = EPOCHS, lr: float = LR
) -> list[float]:
    """Train a model in place; return its error by epoch."""
    return fit(
        model, data.y[data.train], data.magnitude[data.train], epochs=epochs, batch=BATCH, lr=lr,
        schedule="onecycle", generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def sparsify(model: TwoStage, pattern: str) -> None:
    """Prune convolutions of many channels in FF and BP."""
    layers = slice_convolutions(model, LEAST)
    sat.sparsify_(model, "bdwp", pattern, filter_fn=lambda name, _: name in layers)


def quality(model: TwoStage, y: Tensor, truth: reference.Real) -> float:
    """Return a model's PSNR."""
    return reference.psnr(model.predict(y, BATCH).double().numpy(), truth)


def latency(model: TwoStage, y: Tensor) -> float:
    """Return the least CPU milliseconds of five that one volume takes from its measurements."""
    taken = []
    for _ in range(5):
        start = time.process_time()
        model.predict(y)
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


def _judge(
    result: Result, data: Data, images: dict[str, reference.Real], model: TwoStage, quick: bool
) -> None:
    y, truth = data.y[data.test], data.truth
    made = model.predict(y, BATCH).double().numpy()
    got = reference.psnr(made, truth)
    result.metrics["Deep2S: parameters"] = sum(p.numel() for p in model.parameters())
    result.metrics["Deep2S: PSNR, dB"] = got
    result.metrics["Deep2S: SSIM"] = similarity(made, truth)
    beside = {name: got - reference.psnr(image, truth) for name, image in images.items()}
    if quick:
        name = f"Deep2S, {QUICK_EPOCHS} epochs: ahead of the adjoint, largest value 1, dB"
        result.check(name, beside["adjoint, largest 1"], 4, at_least=True)
    else:
        for name, against, bound in (
            ("the adjoint, largest value 1", "adjoint, largest 1", 8),
            ("Tikhonov's solution, best factor", "Tikhonov", 3),
            ("the empty volume", "empty", 4),
        ):
            result.check(f"Deep2S: ahead of {name}, dB", beside[against], bound, at_least=True)
    result.check("Deep2S: CPU ms a volume", latency(model, y[:1]), 50)


def _ablations(result: Result, data: Data, model: TwoStage, seed: int) -> None:
    """What the trained model loses without what is easily left out."""
    y, truth = data.y[data.test], data.truth
    batch = Deep2S(data.A, data.grid.shape, model.network, whole_batch=True)
    result.metrics["Deep2S, divided by the batch's largest: PSNR, dB"] = quality(batch, y, truth)
    lively = deepcopy(model).train()
    with torch.no_grad():
        made = torch.cat([lively(part) for part in y.split(BATCH)]).double().numpy()
    result.metrics["Deep2S, batch statistics: PSNR, dB"] = reference.psnr(made, truth)
    for pattern in PATTERNS:
        pruned = Deep2S(prune_matrix(data.A, pattern), data.grid.shape, model.network)
        name = f"A pruned {pattern} along the measurements"
        result.metrics[f"Deep2S, {name}: PSNR, dB"] = quality(pruned, y, truth)
        image = images_of(adjoint(pruned.A, y))
        image *= reference.best_scale(image, truth)
        result.metrics[f"adjoint, {name}, best factor: PSNR, dB"] = reference.psnr(image, truth)
    array, grid, freqs = setting()
    smooth = random_extended_targets(TEST, grid, seed + 1, random_phase=False)
    image = images_of(adjoint(data.A, measured(array, grid, freqs, smooth)))
    scenes = smooth.abs().numpy()
    image *= reference.best_scale(image, scenes)
    ahead = reference.psnr(image, scenes) - reference.psnr(0 * scenes, scenes)
    result.metrics["adjoint, one phase for all voxels, ahead of empty, dB"] = ahead


def prune_matrix(A: Tensor, pattern: str) -> Tensor:
    """Return A with its real and imaginary parts pruned N:M along the measurements."""
    parts = (sat.prune(part.contiguous(), pattern, axis=0).to_dense() for part in (A.real, A.imag))
    real, imag = (torch.as_tensor(part) for part in parts)
    return torch.complex(real, imag)


def _sparse(result: Result, data: Data, model: TwoStage, seed: int) -> None:
    """The trained network pruned N:M, and trained on so; dense trained on as far, to compare."""
    for pattern in ("dense", *PATTERNS):
        made = deepcopy(model)
        if pattern != "dense":
            sparsify(made, pattern)
            name = f"Deep2S, pruned {pattern}: PSNR, dB"
            result.metrics[name] = quality(made, data.y[data.test], data.truth)
        train(data, seed, made, RETRAINED, RETRAINED_LR)
        name = f"Deep2S, {pattern}, trained on for {RETRAINED} epochs: PSNR, dB"
        result.metrics[name] = quality(made, data.y[data.test], data.truth)


def short_training(data: Data, seed: int, kind: str) -> float:
    """Return the PSNR of one of `VARIANTS`, trained for a few epochs."""
    model = untrained(data, seed, kind)
    train(data, seed, model, SHORT)
    return quality(model, data.y[data.test], data.truth)


def _variants(result: Result, data: Data, seed: int) -> None:
    for kind in VARIANTS:
        name = f"{kind}, {SHORT} epochs: PSNR, dB"
        result.metrics[name] = short_training(data, seed, kind)


# --------------------------------------------------------------------------------------- picture


def _shown(
    data: Data,
    images: dict[str, reference.Real],
    model: TwoStage,
    curve: list[float],
    seed: int,
) -> Shown:
    """Gather what is drawn: a scene with several objects, noise, the response of a point."""
    truth = data.truth
    made = model.predict(data.y[data.test], BATCH).double().numpy()
    at = int(np.argsort((truth**2).sum((1, 2, 3)))[-4])
    energy = float(data.A.abs().square().sum()) / len(data.A)
    over: dict[str, list[float]] = {"Deep2S": [], "Tikhonov": [], "adjoint": []}
    for snr in SNRS:
        generator = torch.Generator().manual_seed(seed + 1)
        y = add_noise(data.clean[data.test], snr, generator).to(torch.complex64)
        over["Deep2S"].append(quality(model, y, truth))
        for name, image in (
            ("Tikhonov", images_of(tikhonov(data.A, y, MUS[-1] * energy))),
            ("adjoint", images_of(adjoint(data.A, y))),
        ):
            over[name].append(reference.psnr(reference.best_scale(image, truth) * image, truth))
    views = {
        "scene": truth[at], "|Aᴴ y|": images["adjoint, largest 1"][at],
        "Tikhonov": images["Tikhonov, largest 1"][at], "l1": images["l1"][at], "Deep2S": made[at],
    }  # fmt: skip
    empty = reference.psnr(0 * truth, truth)
    responses = {freqs: down_range(data.array, freqs) for freqs in (FREQS, 64)}
    return Shown(views, list(SNRS), over, empty, responses, curve, (SIDES, DEPTHS))
