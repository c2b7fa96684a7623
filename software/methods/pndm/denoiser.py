"""A small noise-prediction network, its training, and the digits it is trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sat.methods.pndm.schedule import NoiseSchedule
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.embedding import SinCosEmbedding
from sat.methods.problems.scaling import scaled_backward

TIME_WIDTH, TRAINED = 64, 1500


class DenoiserBlock(nn.Module):
    """h + W2 silu(W1 norm(h) + Wt time)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.time = nn.Linear(TIME_WIDTH, hidden)
        self.outer = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Return (batch, hidden) of the same and time (batch, TIME_WIDTH)."""
        inner = self.inner(self.norm(h)) + self.time(time)
        out: Tensor = h + self.outer(functional.silu(inner))
        return out


class DenoiserMLP(nn.Module):
    """Predicts the noise in vectors, by way of v = sqrt(a) z - sqrt(1 - a) x_0.

    eps = sqrt(1 - a) x + sqrt(a) v. A network with normalisation that predicts eps itself cannot
    pass x through well, and samples spread too far.

    Parameters
    ----------
    dim : int
        Of the vectors.
    hidden, blocks : int
    schedule : NoiseSchedule, optional
        Of its times; the linear one by default.

    Raises
    ------
    ValueError
        If a number is no positive int.

    Source
    ------
    v: Salimans and Ho 2022, arXiv 2202.00512, section 4.
    """

    def __init__(
        self, dim: int, hidden: int = 128, blocks: int = 3, schedule: NoiseSchedule | None = None
    ) -> None:
        super().__init__()
        require_counts(dim=dim, hidden=hidden, blocks=blocks)
        self.dim = dim
        self.schedule = NoiseSchedule() if schedule is None else schedule
        self.embed = SinCosEmbedding(TIME_WIDTH, 1)
        self.first = nn.Linear(dim, hidden)
        self.blocks = nn.ModuleList(DenoiserBlock(hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, dim)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return v (batch, dim) of x (batch, dim) at times (batch,), whole or not.

        Raises
        ------
        ValueError
            If a shape is wrong.
        """
        if x.ndim != 2 or x.shape[1] != self.dim or t.shape != x.shape[:1]:
            raise ValueError(
                f"x and t have shapes {tuple(x.shape)} and {tuple(t.shape)}: must be "
                f"(batch, {self.dim}) and (batch,)"
            )
        time = self.embed(t.double()[:, None]).to(x.dtype)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, time)
        out: Tensor = self.last(self.norm(h))
        return out

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return eps (batch, dim); arguments and errors as of `velocity`."""
        v = self.velocity(x, t)
        a = self.schedule.alpha_bar(t)[:, None]
        return (1 - a).sqrt().to(x.dtype) * x + a.sqrt().to(x.dtype) * v


@dataclass(frozen=True)
class NoisedBatch:
    """Data with noise added, and what a network shall say of it.

    Attributes
    ----------
    x, velocity : torch.Tensor
        (batch, dim).
    t : torch.Tensor
        (batch,) int64.
    """

    x: Tensor
    t: Tensor
    velocity: Tensor


def add_noise(data: Tensor, schedule: NoiseSchedule, generator: torch.Generator) -> NoisedBatch:
    """Return data (batch, dim) at random times, the second half's opposite to the first's.

    Parameters
    ----------
    data : torch.Tensor
    schedule : NoiseSchedule
    generator : torch.Generator
        Of times, then noise.

    Source
    ------
    Opposite times: the authors' ``runner/runner.py``.
    """
    half = torch.randint(schedule.steps, (-(-len(data) // 2),), generator=generator)
    t = torch.cat([half, schedule.steps - 1 - half])[: len(data)]
    z = torch.randn(data.shape, generator=generator, dtype=data.dtype)
    a = schedule.alpha_bar(t)[:, None]
    kept, noise = a.sqrt().to(data.dtype), (1 - a).sqrt().to(data.dtype)
    return NoisedBatch(kept * data + noise * z, t, kept * z - noise * data)


def fit_average(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    *,
    average: float,
) -> list[float]:
    """Train by Adam, its learning rate half a wave of a cosine; parameters end as their average.

    Parameters
    ----------
    model : nn.Module
    loss : callable
        Of the step's number, from 0.
    steps : int
    lr : float
        Of the first step.
    average : float
        How far the exponential average goes to the parameters at each step, within (0, 1].

    Returns
    -------
    list of float
        The loss of each step.

    Raises
    ------
    ValueError
        If a number breaks its rule.
    FloatingPointError
        If a loss is not finite; that step changed nothing.
    """
    require_counts(steps=steps)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: must be positive and finite; 1e-3 is Adam's usual one")
    if not 0 < average <= 1:
        raise ValueError(f"average={average}: must be above 0 and at most 1, which keeps the last")
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - average))
    curve = []
    for step in range(steps):
        optimizer.zero_grad()
        now = loss(step)
        value = float(now.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"step {step}: the loss is {value}: lower lr={lr}")
        scaled_backward(now, model)
        optimizer.step()
        scheduler.step()
        mean.update_parameters(model)
        curve.append(value)
    with torch.no_grad():
        for parameter, averaged in zip(model.parameters(), mean.module.parameters(), strict=True):
            parameter.copy_(averaged)
    return curve


def train_denoiser(
    model: DenoiserMLP,
    data: Tensor,
    steps: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    *,
    average: float = 0.005,
) -> list[float]:
    """Train on the mean square of v, by `fit_average`.

    Parameters
    ----------
    model : DenoiserMLP
    data : torch.Tensor
        (samples, dim).
    steps, batch : int
    lr, average : float
    generator : torch.Generator
        Of samples, times and noise.

    Returns
    -------
    list of float
        The loss of each step.

    Raises
    ------
    ValueError
        If a number breaks its rule, or data are not finite.
    """
    require_counts(batch=batch)
    if data.ndim != 2 or not len(data) or not bool(data.isfinite().all()):
        raise ValueError(f"data of shape {tuple(data.shape)}: must be (samples, dim), finite")

    def loss(_: int) -> Tensor:
        chosen = torch.randint(len(data), (batch,), generator=generator)
        noised = add_noise(data[chosen], model.schedule, generator)
        return functional.mse_loss(model.velocity(noised.x, noised.t), noised.velocity)

    return fit_average(model, loss, steps, lr, average=average)


@torch.no_grad()
def velocity_loss(model: DenoiserMLP, data: Tensor, repeats: int = 20, seed: int = 0) -> float:
    """Return the mean square error of v on data (samples, dim), at the same noise for all models.

    Parameters
    ----------
    model : DenoiserMLP
    data : torch.Tensor
    repeats : int
        How often each sample is used.
    seed : int
    """
    generator = torch.Generator().manual_seed(seed)
    noised = add_noise(data.repeat(repeats, 1), model.schedule, generator)
    return float(functional.mse_loss(model.velocity(noised.x, noised.t), noised.velocity))


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's digits as vectors (count, 64) float32 from -1 to 1, in a random order."""

    train: Tensor
    test: Tensor

    @property
    def whole(self) -> Tensor:
        """All 1797."""
        return torch.cat([self.train, self.test])


def load_digit_vectors(seed: int = 0) -> Digits:
    """Return 1500 digits for training and 297 others."""
    data = load_digits().data / 8 - 1
    order = np.random.default_rng(seed).permutation(len(data))
    vectors = torch.from_numpy(data[order]).float()
    return Digits(vectors[:TRAINED], vectors[TRAINED:])
