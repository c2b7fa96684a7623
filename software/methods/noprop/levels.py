"""How much of a label is left at each level: fixed for blocks, learned for continuous time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts

OFFSET = 0.008
"""Of the cosine, so that its last levels are not all but equal (Nichol and Dhariwal 2021)."""


class DiffusionLevels:
    """Levels 0 to T of noise about a label's embedding u, from nearly all noise to nearly none.

    ``q(z_t | y) = N(sqrt(abar_t) u, (1 - abar_t) I)``, and towards more noise
    ``q(z_{t-1} | z_t) = N(sqrt(alpha_{t-1}) z_t, (1 - alpha_{t-1}) I)``,
    ``alpha_{t-1} = abar_{t-1} / abar_t``. So
    ``q(z_t | z_{t-1}, y) = N(a_t u + b_t z_{t-1}, c_t I)``.

    Parameters
    ----------
    T : int
        Blocks.
    kind : {"cosine"}
        ``abar_t = cos²((T - t) / T)``, its argument moved by 0.008 and scaled to end at pi / 2,
        over its value at T, clipped.
    low, high : float
        What abar is clipped to: the ends of the levels. ``high`` sets the largest weight.

    Attributes
    ----------
    T : int
    abar : torch.Tensor
        (T + 1,) float64, as all of these.
    a, b, c : torch.Tensor
        (T,), of the steps 1 to T.
    snr : torch.Tensor
        (T + 1,), ``abar / (1 - abar)``.
    snr_weight : torch.Tensor
        (T,), ``SNR(t) - SNR(t - 1) = a_t² / c_t``.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or clipping leaves levels that are equal.

    Source
    ------
    Li, Teh, Pascanu 2025, arXiv 2503.24322, section 2.
    """

    def __init__(
        self, T: int, kind: str = "cosine", *, low: float = 1e-3, high: float = 0.99
    ) -> None:
        require_counts(T=T)
        if kind != "cosine":
            raise ValueError(
                f"kind={kind!r}: must be 'cosine'; give other levels to DiffusionLevels.of"
            )
        _require_ends(low, high)
        left = torch.arange(T, -1, -1, dtype=torch.float64) / T
        cosine = torch.cos((left + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
        self._set((cosine / cosine[-1]).clamp(low, high))

    @classmethod
    def of(cls, abar: Sequence[float] | Tensor) -> DiffusionLevels:
        """Return levels of these abar (T + 1,), increasing and within (0, 1)."""
        levels = cls.__new__(cls)
        levels._set(torch.as_tensor(abar, dtype=torch.float64))
        return levels

    def _set(self, abar: Tensor) -> None:
        if abar.ndim != 1 or len(abar) < 2:
            raise ValueError(f"abar has shape {tuple(abar.shape)}: must be (T + 1,), T at least 1")
        if not bool(((abar > 0) & (abar < 1)).all()):
            raise ValueError(
                f"abar from {float(abar.min()):g} to {float(abar.max()):g}: must lie within "
                "(0, 1); move its ends inside"
            )
        if not bool((abar.diff() > 0).all()):
            at = int((abar.diff() <= 0).nonzero()[0])
            raise ValueError(
                f"abar_{at} = {float(abar[at]):g}, abar_{at + 1} = {float(abar[at + 1]):g}: must "
                "increase; take fewer levels, or ends closer to 0 and 1"
            )
        self.T, self.abar = len(abar) - 1, abar
        before, after = abar[:-1], abar[1:]
        alpha = before / after
        self.snr = abar / (1 - abar)
        self.snr_weight = self.snr.diff()
        self.a = after.sqrt() * (1 - alpha) / (1 - before)
        self.b = alpha.sqrt() * (1 - after) / (1 - before)
        self.c = (1 - after) * (1 - alpha) / (1 - before)

    def require_step(self, t: int) -> None:
        """Raise IndexError unless ``t`` is the number of a block, 1 to T."""
        if not 1 <= t <= self.T:
            raise IndexError(f"t={t}: must be within 1 to {self.T}, the blocks of the levels")

    def posterior_sample(self, level: int, u: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw z of ``q(z_level | y)`` for embeddings u (batch, d), gradients passing to u.

        Raises
        ------
        IndexError
            If there is no such level, 0 to T.
        """
        if not 0 <= level <= self.T:
            raise IndexError(f"level={level}: must be within 0 to {self.T}")
        abar = float(self.abar[level])
        return math.sqrt(abar) * u + math.sqrt(1 - abar) * noise_like(u, generator)


class LearnedLevels(nn.Module):
    """Levels of continuous time, learned: ``abar(t) = sigmoid(-g(t))``, t in [0, 1].

    ``g(t) = g1 - (g1 - g0) (m(t) - m(0)) / (m(1) - m(0))`` falls from g1 to g0;
    ``m(t) = t + sum_j v_j sigmoid(w_j t + b_j)`` increases, for v and w are positive.

    Parameters
    ----------
    hidden : int
        Sigmoids of m.
    low, high : float
        abar(0) and abar(1) at first.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """

    def __init__(self, hidden: int = 16, *, low: float = 1e-3, high: float = 0.99) -> None:
        require_counts(hidden=hidden)
        _require_ends(low, high)
        super().__init__()
        first, last = (-math.log(abar / (1 - abar)) for abar in (high, low))
        self.g0 = nn.Parameter(torch.tensor(first))
        # The distance to g1 is softplus of this, and positive.
        self.span = nn.Parameter(torch.tensor(math.log(math.expm1(last - first))))
        places = torch.linspace(0, 1, hidden)
        self.height = nn.Parameter(torch.full((hidden,), math.log(math.expm1(0.1))))
        self.slope = nn.Parameter(torch.full((hidden,), math.log(math.expm1(4.0))))
        self.offset = nn.Parameter(-4.0 * places)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return abar(t) and the derivative of the signal-to-noise ratio, SNR'(t), of t's shape.

        The ratio is ``abar / (1 - abar) = exp(-g)``, so ``SNR' = -g' SNR``, and
        ``abar' = SNR' (1 - abar)²``.
        """
        height, slope = functional.softplus(self.height), functional.softplus(self.slope)
        span = functional.softplus(self.span)

        def m(t: Tensor) -> tuple[Tensor, Tensor]:
            s = torch.sigmoid(slope * t[..., None] + self.offset)
            return t + (height * s).sum(-1), 1 + (height * slope * s * (1 - s)).sum(-1)

        ends, _ = m(t.new_tensor([0.0, 1.0]))
        reach = ends[1] - ends[0]
        value, derivative = m(t)
        g = self.g0 + span * (1 - (value - ends[0]) / reach)
        return torch.sigmoid(-g), span * derivative / reach * torch.exp(-g)


def _require_ends(low: float, high: float) -> None:
    if not 0 < low < high < 1:
        raise ValueError(
            f"low={low}, high={high}: must be 0 < low < high < 1; 0.001 and 0.99 are usual"
        )


def noise_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal numbers of a tensor's shape and dtype."""
    return torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
