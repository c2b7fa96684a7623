"""S4D judged: its kernel, its limit, and digits read pixel by pixel against a GRU.

Two random initialisations stand beside S4D-Lin. Standard normal imaginary parts, the "random" of
the authors' code, leave out all but low frequencies and do far worse. Uniform ones, that cover
S4D-Lin's range, do as well on sequences as short as these: reported, and not judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import mean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.signal import cont2discrete, dlsim
from torch import Tensor, nn

from sat.methods import Result
from sat.methods.s4d.digits import CLASSES, D_MODEL, D_STATE, EPOCHS, LAYERS, train_digits
from sat.methods.s4d.hippo import INITS, legs_basis, normal_basis
from sat.methods.s4d.kernel import DISCRETIZATIONS, S4DKernel
from sat.methods.s4d.layer import S4D, S4DModel

LENGTH = 1024
QUICK_LENGTH = 256
SEEDS = 5
QUICK_EPOCHS = 4
QUICK_ACCURACY = 0.4
"""Four times what guessing gives, at the end of a schedule of few epochs."""
STATES = (16, 64, 256)
STEP, WINDOW, BASES = 0.1, 30, 4
MODELS = {
    "lin": "S4D-Lin",
    "random": "normal imaginary parts",
    "uniform": "uniform imaginary parts",
    "gru": "GRU",
}


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Measure the kernel against two others, the LegS limit, and accuracies of five seeds.

    Quick: kernels of 256 samples, and S4D-Lin alone, one seed for a fifth of the epochs.
    """
    result = Result()
    _kernels(result, seed, QUICK_LENGTH if quick else LENGTH)
    _limit(result)
    if quick:
        _few_digits(result, seed)
    else:
        _digits(result, seed)
    return result


# ------------------------------------------------------------------------------------- kernels


def kernel_errors(
    init: str | Tensor, discretization: str, seed: int, length: int = LENGTH
) -> dict[str, float]:
    """Compare a float32 layer of 4 channels with its recurrence, and a float64 one with scipy.

    Returns
    -------
    dict
        Largest differences over the reference's largest magnitude in the channel: "kernel" (the
        response of `S4D.step` to an impulse), "output" (to noise), "scipy" (`dlsim` of the dense
        system, discretised by `cont2discrete`).
    """
    torch.manual_seed(seed)
    layer = S4D(4, init=init, discretization=discretization)
    impulse = torch.zeros(4, length)
    impulse[:, 0] = 1
    u = torch.stack([impulse, torch.randn(4, length)])
    with torch.no_grad():
        layer.d.zero_()
        state, outputs = layer.initial_state(2), []
        for sample in u.unbind(-1):
            y, state = layer.step(sample, state)
            outputs.append(y)
        stepped = torch.stack(outputs, -1)
        errors = {
            "kernel": _difference(layer.kernel(length), stepped[0]),
            "output": _difference(layer(u)[1], stepped[1]),
        }
        exact = layer.double().kernel(length)
    dense = np.stack([dense_kernel(layer.kernel, i, length) for i in range(4)])
    return errors | {"scipy": _difference(exact, torch.from_numpy(dense))}


def dense_kernel(kernel: S4DKernel, channel: int, length: int) -> NDArray[np.float64]:
    """Return one channel's kernel by scipy, from a dense real system of 2 states a mode.

    Returns
    -------
    numpy.ndarray
        (length,) float64.
    """
    with torch.no_grad():
        modes = kernel.a[channel].numpy()
        b, c = (torch.view_as_complex(x[channel].double()).numpy() for x in (kernel.b, kernel.c))
        dt = float(kernel.log_dt[channel].double().exp())
    real, imag = np.diag(modes.real), np.diag(modes.imag)
    a = np.block([[real, -imag], [imag, real]])
    inputs = np.concatenate([b.real, b.imag])[:, None]
    outputs = 2 * np.concatenate([c.real, -c.imag])[None]
    system = a, inputs, outputs, np.zeros((1, 1))
    discrete_a, discrete_b, *_ = cont2discrete(system, dt, kernel.discretization)
    # scipy puts out the state before the sample, and for "bilinear" a mean of states; the paper
    # the state after it.
    after = discrete_a, discrete_b, outputs @ discrete_a, outputs @ discrete_b, dt
    impulse = np.zeros(length)
    impulse[0] = 1
    response: NDArray[np.float64] = dlsim(after, impulse)[1][:, 0]
    return response


def _difference(value: Tensor, reference: Tensor) -> float:
    scale = reference.abs().amax(-1)
    return float(((value - reference).abs().amax(-1) / scale).max())


def _kernels(result: Result, seed: int, length: int) -> None:
    errors = [kernel_errors(i, d, seed, length) for d in DISCRETIZATIONS for i in INITS]
    worst = {name: max(error[name] for error in errors) for name in errors[0]}
    texts = {
        "kernel": ("kernel against recurrence, float32", 1e-5),
        "output": ("convolution against recurrence, float32", 1e-5),
        "scipy": ("kernel against scipy's dense system, float64", 1e-6),
    }
    for name, (text, bound) in texts.items():
        result.check(f"{text}, {length} samples, relative difference", worst[name], bound)


# --------------------------------------------------------------------------------------- limit


def _limit(result: Result) -> None:
    limit = legs_basis(BASES, STEP, WINDOW)
    bases = {n: normal_basis(n, BASES, STEP, WINDOW) for n in STATES}
    gaps = {n: float((basis - limit).abs().max()) for n, basis in bases.items()}
    result.metrics |= {f"LegS basis, difference at state size {n}": gaps[n] for n in STATES}
    for small, large in zip(STATES, STATES[1:], strict=False):
        name = f"LegS basis, difference at state size {large} over that at {small}"
        result.check(name, gaps[large] / gaps[small], 1 - 1e-3)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    times = STEP * (np.arange(WINDOW) + 0.5)
    for n, basis in bases.items():
        left.plot(times, basis[-1], label=f"normal part, {n} states", lw=1)
    left.plot(times, limit[-1], "k--", label="HiPPO-LegS")
    left.set(xlabel="time", ylabel=f"basis kernel {BASES - 1}, mean over {STEP}")
    left.set_ylim(top=1.9)
    left.legend(fontsize=8)
    right.loglog(list(gaps), list(gaps.values()), "o-")
    right.set_xticks(STATES, [str(n) for n in STATES])
    right.minorticks_off()
    right.set_ylim(1e-2, 1)
    right.set(xlabel="state size", ylabel=f"largest difference, {BASES} kernels")
    result.figures["legs_limit"] = figure


# -------------------------------------------------------------------------------------- digits


class GRUModel(nn.Module):
    """GRU layers and a decoder of their last state: (batch, 1, length) to (batch, classes)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, hidden, LAYERS, batch_first=True)
        self.decoder = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        # The mean over time, which serves S4D, costs a GRU accuracy.
        scores: Tensor = self.decoder(self.gru(x.mT)[0][:, -1])
        return scores


def build(model: str) -> nn.Module:
    """Return a fresh model from torch's random state.

    Parameters
    ----------
    model : str
        "random": as S4D-Lin, but imaginary parts standard normal; "uniform": or uniform in
        S4D-Lin's range 0 … π·d_state/2. "gru": the largest `GRUModel` of no more parameters than
        S4D. Else an ``init`` of S4D.
    """
    shape = D_MODEL, D_STATE // 2
    imags: dict[str, Callable[[], Tensor]] = {
        "random": lambda: torch.randn(shape),
        "uniform": lambda: math.pi * D_STATE / 2 * torch.rand(shape),
    }
    init: str | Tensor = "lin" if model == "gru" else model
    if model in imags:
        init = torch.complex(torch.full(shape, -0.5), imags[model]())
    made: nn.Module = S4DModel(1, CLASSES, LAYERS, d_model=D_MODEL, d_state=D_STATE, init=init)
    if model == "gru":
        budget, hidden = count_parameters(made), 1
        while count_parameters(GRUModel(hidden + 1)) <= budget:
            hidden += 1
        made = GRUModel(hidden)
    return made


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def train(seed: int, model: str = "lin", *, epochs: int = EPOCHS) -> list[float]:
    """Return the test accuracy after each epoch of `train_digits` of `build`."""
    return train_digits(lambda: build(model), seed, epochs=epochs)[1]


def accuracy(seed: int, model: str = "lin", *, epochs: int = EPOCHS) -> float:
    """Return the test accuracy at the end of `train`."""
    return train(seed, model, epochs=epochs)[-1]


def _few_digits(result: Result, seed: int) -> None:
    curve = train(seed, epochs=QUICK_EPOCHS)
    name = f"S4D-Lin, test accuracy after {QUICK_EPOCHS} epochs, one seed"
    result.check(name, curve[-1], QUICK_ACCURACY, at_least=True)
    result.left_out += [
        f"kernels of {QUICK_LENGTH} samples, not {LENGTH}",
        f"digits: one seed of {SEEDS}, {QUICK_EPOCHS} epochs of {EPOCHS}; accuracy of the whole",
        "the GRU and the two random initialisations, and how S4D-Lin compares with them",
    ]


def _digits(result: Result, seed: int) -> None:
    curves: dict[str, list[list[float]]] = {}
    for model, text in MODELS.items():
        began = time.perf_counter()
        curves[model] = [train(seed + i, model) for i in range(SEEDS)]
        finals = [curve[-1] for curve in curves[model]]
        result.metrics |= {
            f"{text}, test accuracy, mean": mean(finals),
            f"{text}, test accuracy, deviation": stdev(finals),
            f"{text}, parameters": count_parameters(build(model)),
            f"{text}, seconds a training": (time.perf_counter() - began) / SEEDS,
        }
    last = {model: mean(curve[-1] for curve in curves[model]) for model in MODELS}
    result.check(f"S4D-Lin, test accuracy, {SEEDS} seeds", last["lin"], 0.93, at_least=True)
    for model in ("random", "gru"):
        name = f"S4D-Lin's accuracy less that of {MODELS[model]}"
        result.check(name, last["lin"] - last[model], 0.005, at_least=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, EPOCHS + 1)
    for model, text in MODELS.items():
        runs = np.array(curves[model])
        (line,) = axes.plot(epochs, runs.mean(0), label=text)
        axes.fill_between(epochs, runs.min(0), runs.max(0), color=line.get_color(), alpha=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=f"test accuracy: mean and range of {SEEDS} seeds")
    axes.legend()
    result.figures["training"] = figure
