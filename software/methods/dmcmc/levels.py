"""Levels of noise, and what tells a noisy sample's level: exactly, or by a classifier."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.mixtures import GaussianMixtureVE
from sat.methods.problems.training import fit

LEAST = 1e-3
"""Of the exponent: the lowest level is this share of the way up from smin, in logarithms."""
OFFSET = 0.05
"""Added to a sample's size before it is divided by."""


class LevelPosterior(Protocol):
    """What knows the levels (T,) of noise that a sample may have, and how likely each is."""

    levels: Tensor

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log p(s_j | x), (n, T), of x (n, d)."""


def noise_levels(T: int, smin: float, smax: float) -> Tensor:
    """Return levels (T,) float64, from smax down, equally far apart in logarithms.

    ``s_j = smin (smax / smin)^{u_j}``, u from 1 down to 0.001.

    Raises
    ------
    ValueError
        If T is below 2, or not 0 < smin < smax.

    Source
    ------
    Kim, Ye 2023, arXiv 2209.14593, and its released code.
    """
    require_counts(T=T)
    if T < 2:
        raise ValueError(f"T={T}: must be at least 2; a chain moves between levels")
    require_range(smin, smax)
    return smin * (smax / smin) ** torch.linspace(1, LEAST, T, dtype=torch.float64)


def require_range(smin: float, smax: float) -> None:
    """Raise ValueError unless 0 < smin < smax."""
    if not 0 < smin < smax < math.inf:
        raise ValueError(f"smin={smin}, smax={smax}: must be 0 < smin < smax, finite")


def require_levels(levels: Tensor) -> Tensor:
    """Return levels (T,) as float64, or raise ValueError unless they are positive and monotone."""
    levels = torch.as_tensor(levels, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"levels have shape {tuple(levels.shape)}: must be (T,), T at least 2")
    steps = levels.diff()
    if not bool(((levels > 0) & levels.isfinite()).all()):
        raise ValueError("levels: must be positive and finite; noise_levels makes such")
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError("levels: must rise or fall throughout; sort them, without repetition")
    return levels


class ExactPosterior:
    """p(s | x) of a mixture under noise, all levels equally likely.

    Parameters
    ----------
    mixture : GaussianMixtureVE
    levels : torch.Tensor
        (T,), positive and monotone.

    Raises
    ------
    ValueError
        If levels break their rule.
    """

    def __init__(self, mixture: GaussianMixtureVE, levels: Tensor) -> None:
        self.mixture, self.levels = mixture, require_levels(levels)

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log p(s_j | x), (n, T), of x (n, d)."""
        return self.mixture.level_log_prob(x, self.levels).log_softmax(1)


class NoiseClassifier(nn.Module):
    """A perceptron that reads the level off a sample: its direction, and the logarithm of its size.

    With r the root mean square of x - center: ``(x - center) / (r + 0.05)`` and ``log r`` pass two
    layers with SiLU.

    Parameters
    ----------
    dim : int
        d.
    levels : torch.Tensor
        (T,), positive and monotone.
    hidden : int
        Width.
    center : float
        About which clean samples lie: 0.5 for pixels from 0 to 1.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    levels: Tensor

    def __init__(self, dim: int, levels: Tensor, hidden: int = 128, *, center: float = 0.5) -> None:
        require_counts(dim=dim, hidden=hidden)
        super().__init__()
        self.dim, self.center = dim, center
        self.register_buffer("levels", require_levels(levels))
        self.layers = nn.Sequential(
            nn.Linear(dim + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, len(self.levels)),
        )  # fmt: skip

    def log_probs(self, x: Tensor) -> Tensor:
        """Return log p(s_j | x), (n, T), of x (n, d), in the weights' dtype.

        Raises
        ------
        ValueError
            If x has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}: must be (n, {self.dim})")
        apart = (x - self.center).to(next(self.parameters()).dtype)
        size = apart.square().mean(1, keepdim=True).sqrt()
        tiny = torch.finfo(size.dtype).tiny
        inputs = torch.cat([apart / (size + OFFSET), size.clamp(min=tiny).log()], 1)
        logits: Tensor = self.layers(inputs)
        return logits.log_softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `log_probs`."""
        return self.log_probs(x)


def train_classifier(
    classifier: NoiseClassifier,
    data: Tensor,
    *,
    steps: int = 2500,
    batch: int = 256,
    lr: float = 2e-3,
    generator: torch.Generator,
) -> list[float]:
    """Train on ``x_0 + s_j z``, j uniform, by cross-entropy and Adam, its rate falling as a cosine.

    Parameters
    ----------
    classifier : NoiseClassifier
    data : torch.Tensor
        Clean samples (n, d).
    steps, batch : int
    lr : float
    generator : torch.Generator
        Of samples, levels and noise.

    Returns
    -------
    list of float
        The loss of each step, nats.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    FloatingPointError
        If a loss is not finite.
    """
    require_counts(steps=steps, batch=batch)
    if data.ndim != 2 or not len(data):
        raise ValueError(f"data has shape {tuple(data.shape)}: must be (n, d), n at least 1")

    def loss(_: Tensor) -> Tensor:
        x, j = noisy_batch(data, classifier.levels, batch, generator)
        return nn.functional.nll_loss(classifier.log_probs(x), j)

    optimizer = torch.optim.Adam(classifier.parameters(), lr)
    # A step is an epoch of one batch: its samples are drawn anew.
    return fit(loss, 1, optimizer, epochs=steps, batch=1, generator=generator, schedule="cosine")


def noisy_batch(
    data: Tensor, levels: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return ``x_0 + s_j z`` (count, d) of random samples and levels, and j (count,)."""
    chosen = torch.randint(len(data), (count,), generator=generator)
    j = torch.randint(len(levels), (count,), generator=generator)
    z = torch.randn(count, data.shape[1], generator=generator, dtype=data.dtype)
    return data[chosen] + levels[j, None].to(data.dtype) * z, j
