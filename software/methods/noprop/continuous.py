"""NoProp in continuous time: one network that denoises at any time, and one that points the way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.noprop.blocks import LabelSpace, require_labels
from sat.methods.noprop.levels import LearnedLevels, noise_like
from sat.methods.noprop.model import (
    Parts,
    adamw,
    prior_kl,
    require_batch,
    require_batches,
    require_eta,
    require_output,
)
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.embedding import SinCosEmbedding
from sat.methods.problems.training import fit

TIME = 64
"""Width of time's embedding."""

INTEGRATORS = ("heun", "euler")
STEPS_A_UNIT = 1000.0
"""Times are embedded as so many steps: within the range that `SinCosEmbedding` tells apart."""

Slope = Callable[[Tensor, Tensor], Tensor]
"""dz/dt (batch, d) of z (batch, d) and times t (batch,)."""


class _Continuous(nn.Module, ABC):
    """A network over embeddings, inputs and times, its labels, training and integration."""

    def __init__(self, network: nn.Module, W_embed: Tensor, outputs: int | None) -> None:
        super().__init__()
        self.network, self.labels = network, LabelSpace(W_embed)
        self.outputs = outputs or self.labels.d
        self.times = SinCosEmbedding(TIME, 1)

    def output(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return what the network gives (batch, outputs) for z (batch, d), x, and times (batch,).

        Raises
        ------
        ValueError
            If it has another shape, or is to train on a single sample.
        """
        require_batch(self.network, x)
        out = self.network(z, x, self.times(STEPS_A_UNIT * t[:, None]))
        return require_output("the network", out, (len(x), self.outputs))

    @abstractmethod
    def loss(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Parts]:
        """Return the loss of a batch, and its parts."""

    @abstractmethod
    def slope(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return dz/dt (batch, d)."""

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        epochs: int = 100,
        batch: int = 128,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        generator: torch.Generator,
    ) -> list[float]:
        """Train by AdamW; return each epoch's mean loss. The model is left in evaluation mode.

        Parameters
        ----------
        x, y : torch.Tensor
            (samples, …), and (samples,) integers.
        epochs, batch : int
        lr, weight_decay : float
        generator : torch.Generator
            Of the order of samples, of times and of noise.

        Raises
        ------
        ValueError
            If an argument breaks its rule, or the last batch would have a single sample.
        RuntimeError
            If two embeddings have come closer than 1e-3.
        FloatingPointError
            If a loss is not finite.
        """
        require_labels(y, self.labels.classes, len(x))
        require_batches(len(x), batch)
        self.train()
        curve = fit(
            lambda places: self.loss(x[places], y[places], generator)[0],
            len(x), adamw(self, lr, weight_decay), epochs=epochs, batch=batch, generator=generator,
            schedule="constant", on_epoch=lambda _: self.labels.require_apart(),
        )  # fmt: skip
        self.eval()
        return curve

    def integrate(self, z: Tensor, x: Tensor, steps: int = 1000, method: str = "heun") -> Tensor:
        """Return z (batch, d) at t = 1 from z at t = 0.

        Parameters
        ----------
        z : torch.Tensor
            (batch, d).
        x : torch.Tensor
            (batch, …).
        steps : int
            Equal ones.
        method : {"heun", "euler"}
            Two evaluations a step, or one.

        Raises
        ------
        ValueError
            If an argument breaks its rule.
        """
        require_counts(steps=steps)
        if method not in INTEGRATORS:
            raise ValueError(f"method={method!r}: must be one of {', '.join(INTEGRATORS)}")
        h = 1 / steps
        for i in range(steps):
            now, then = (z.new_full((len(z),), (i + k) * h) for k in (0, 1))
            first = self.slope(z, x, now)
            step = first if method == "euler" else first + self.slope(z + h * first, x, then)
            z = z + (h if method == "euler" else h / 2) * step
        return z

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        steps: int = 1000,
        method: str = "heun",
    ) -> Tensor:
        """Return logits (batch, classes) at t = 1, from ``z_0 ~ N(0, I)``; see `integrate`."""
        noise = noise_like(self.labels.W_embed.new_empty(len(x), self.labels.d), generator)
        return self.read(self.integrate(noise, x, steps, method))

    def read(self, z: Tensor) -> Tensor:
        """Return logits (batch, classes) of clean z (batch, d)."""
        out: Tensor = self.labels.head(z)
        return out

    def _times_like(self, u: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.rand(len(u), generator=generator, dtype=u.dtype, device=u.device)


class NoPropCT(_Continuous):
    """One network that finds the embedding at any time in [0, 1], levels learned along.

    ``uhat(z, x, t) = softmax(f(z, x, t)) W_embed``; inference follows the probability flow
    ``dz/dt = SNR'(t) (1 - abar) (sqrt(abar) uhat - abar z) / (2 abar)``.

    Parameters
    ----------
    network : nn.Module
        z (batch, d), x (batch, …) and an embedding of time (batch, 64) to logits
        (batch, classes), as ``DenoiseBlock(…, time=64)``.
    W_embed : torch.Tensor
        (classes, d), see `label_embedding`.
    levels : LearnedLevels, optional
    eta : float

    Raises
    ------
    ValueError
        If eta is not positive and finite.

    Source
    ------
    Li, Teh, Pascanu 2025, arXiv 2503.24322, section 3 and appendix B.
    """

    def __init__(
        self,
        network: nn.Module,
        W_embed: Tensor,
        levels: LearnedLevels | None = None,
        eta: float = 1.0,
    ) -> None:
        require_eta(eta)
        super().__init__(network, W_embed, len(W_embed))
        self.levels, self.eta = levels or LearnedLevels(), eta

    def loss(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Parts]:
        """Return ``cross_entropy + kl + eta/2 E_t[SNR'(t) ||uhat - u||²]``, t uniform, and parts.

        Raises
        ------
        ValueError
            If labels or the network break their rules.
        """
        require_labels(y, self.labels.classes, len(x))
        u = self.labels.W_embed[y.long()]
        t = self._times_like(u, generator)
        ends, _ = self.levels(u.new_tensor([0.0, 1.0]))
        abar, snr_slope = self.levels(t)
        clean = self._noised(u, ends[1].expand(len(u)), generator)
        wrong = functional.cross_entropy(self.labels.head(clean), y.long())
        kl = prior_kl(u, ends[0]).mean()
        uhat = self.labels.expected(self.output(self._noised(u, abar, generator), x, t))
        denoising = self.eta / 2 * (snr_slope * (uhat - u).square().sum(1)).mean()
        parts = {"cross_entropy": wrong, "kl": kl, "denoising": denoising}
        return wrong + kl + denoising, {name: float(part.detach()) for name, part in parts.items()}

    def slope(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return dz/dt (batch, d): ``(abar' / abar) (sqrt(abar) uhat - abar z) / 2 (1 - abar)``."""
        uhat = self.labels.expected(self.output(z, x, t))
        abar, snr_slope = (each[:, None] for each in self.levels(t))
        # abar' / (1 - abar) is SNR' (1 - abar).
        return snr_slope * (1 - abar) / (2 * abar) * (abar.sqrt() * uhat - abar * z)

    @staticmethod
    def _noised(u: Tensor, abar: Tensor, generator: torch.Generator | None) -> Tensor:
        column = abar[:, None]
        return column.sqrt() * u + (1 - column).sqrt() * noise_like(u, generator)


class NoPropFM(_Continuous):
    """One network that points from noise to the embedding: flow matching.

    On the line ``z_t = t u + (1 - t) z_0`` the direction is ``u - z_0``; inference follows the
    network's from ``z_0 ~ N(0, I)``.

    Parameters
    ----------
    network : nn.Module
        z (batch, d), x (batch, …) and an embedding of time (batch, 64) to directions (batch, d),
        as ``DenoiseBlock(in_shape, d, d, time=64)``.
    W_embed : torch.Tensor
        (classes, d), see `label_embedding`. If it is trained, a head reads the label where the
        direction leads to; else the nearest embedding is the label.
    sigma : float
        Deviation of noise on z_t.

    Raises
    ------
    ValueError
        If sigma is negative or not finite.

    Source
    ------
    Li, Teh, Pascanu 2025, arXiv 2503.24322, section 3 and appendix C.
    """

    def __init__(self, network: nn.Module, W_embed: Tensor, sigma: float = 0.01) -> None:
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma={sigma}: must be finite and not negative; 0 switches it off")
        super().__init__(network, W_embed, None)
        self.sigma = sigma

    def loss(
        self, x: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Parts]:
        """Return ``||v - (u - z_0)||²``, plus the head's cross-entropy if embeddings are trained.

        The head reads ``z_t + (1 - t) v``, where the direction leads to.

        Raises
        ------
        ValueError
            If labels or the network break their rules.
        """
        require_labels(y, self.labels.classes, len(x))
        u = self.labels.W_embed[y.long()]
        t, start = self._times_like(u, generator), noise_like(u, generator)
        z = t[:, None] * u + (1 - t[:, None]) * start + self.sigma * noise_like(u, generator)
        v = self.output(z, x, t)
        square = (v - (u - start)).square().sum(1).mean()
        parts = {"square": float(square.detach())}
        if not self.labels.W_embed.requires_grad:
            return square, parts
        wrong = functional.cross_entropy(self.read(z + (1 - t[:, None]) * v), y.long())
        return square + wrong, {**parts, "cross_entropy": float(wrong.detach())}

    def slope(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return dz/dt (batch, d): the network's direction."""
        return self.output(z, x, t)

    def read(self, z: Tensor) -> Tensor:
        """Return logits (batch, classes) of clean z (batch, d): minus half squared distances, or a
        trained head's.
        """
        if self.labels.W_embed.requires_grad:
            return super().read(z)
        return -(z[:, None] - self.labels.W_embed).square().sum(2) / 2
