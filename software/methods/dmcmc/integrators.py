"""From a noisy sample to a clean one: the reverse process, each sample from a level of its own.

A score is a callable: x (n, d) and levels s (n,) to the gradient of log p(x | s), (n, d). Levels
are deviations of the noise on x = x_0 + s z (variance-exploding). No gradients are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
Integrator = Callable[[Score, Tensor, Tensor, torch.Generator], Tensor]
"""A score, x (n, d), its levels (n,) and a generator to clean x; see `functools.partial`."""

RHO = 7.0
"""Of Karras' levels: larger ones lie closer at the low end."""
CHURN, CHURN_LOW, CHURN_HIGH, CHURN_NOISE = 80.0, 0.05, 1.0, 1.007
"""S_churn, S_tmin, S_tmax and S_noise of KAR2."""
SNR = 0.16


def karras_levels(sigma_max: Tensor, steps: int, sigma_min: float) -> Tensor:
    """Return levels (steps, n): steps - 1 from ``sigma_max`` (n,) to ``sigma_min``, then 0."""
    share = torch.arange(steps - 1, dtype=sigma_max.dtype) / (steps - 2)
    top, bottom = sigma_max ** (1 / RHO), sigma_min ** (1 / RHO)
    levels = (top + share[:, None] * (bottom - top)) ** RHO
    return torch.cat([levels, torch.zeros_like(levels[:1])])


def geometric_levels(sigma_max: Tensor, steps: int, sigma_min: float) -> Tensor:
    """Return levels (steps + 1, n) from ``sigma_max`` (n,) to ``sigma_min``, by equal ratios."""
    share = torch.arange(steps + 1, dtype=sigma_max.dtype) / steps
    return sigma_max * (sigma_min / sigma_max) ** share[:, None]


@torch.no_grad()
def kar1(
    score: Score,
    x: Tensor,
    sigma_max: Tensor,
    generator: torch.Generator | None = None,
    *,
    steps: int,
    sigma_min: float = 0.01,
    to_zero: bool = True,
) -> Tensor:
    """Integrate the probability flow by Heun's steps, the last, to 0, by Euler's.

    Parameters
    ----------
    score : callable
    x : torch.Tensor
        (n, d).
    sigma_max : torch.Tensor
        (n,), the level of each.
    generator : torch.Generator, optional
        Not used.
    steps : int
        N, at least 3: N - 1 levels and 0. It takes 2 (N - 1) - 1 evaluations.
    sigma_min : float
        The last level above 0.
    to_zero : bool
        Whether the last step is taken.

    Returns
    -------
    torch.Tensor
        (n, d).

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Karras et al. 2022, arXiv 2206.00364, algorithm 1.
    """
    levels = karras_levels(*_checked(x, sigma_max, steps, sigma_min))
    for now, then in zip(levels, levels[1:], strict=False):
        if bool((then > 0).all()) or to_zero:
            x = _heun(score, x, now, then)
    return x


@torch.no_grad()
def kar2(
    score: Score,
    x: Tensor,
    sigma_max: Tensor,
    generator: torch.Generator | None = None,
    *,
    steps: int,
    sigma_min: float = 0.01,
    churn: float = CHURN,
) -> Tensor:
    """Integrate as `kar1` does, the level raised by fresh noise before each step.

    By a factor ``1 + min(churn / N, sqrt(2) - 1)`` where it is within 0.05 to 1; ``churn`` must not
    be negative. Arguments, result and errors as of `kar1`; as many evaluations.

    Source
    ------
    Karras et al. 2022, arXiv 2206.00364, algorithm 2; N as the released code of the method counts.
    """
    levels = karras_levels(*_checked(x, sigma_max, steps, sigma_min))
    if not 0 <= churn < math.inf:
        raise ValueError(f"churn={churn}: must be finite and not negative; 0 adds no noise")
    most = min(churn / steps, math.sqrt(2) - 1)
    for now, then in zip(levels, levels[1:], strict=False):
        churned = (now >= CHURN_LOW) & (now <= CHURN_HIGH)
        raised = torch.where(churned, (1 + most) * now, now)
        noise = CHURN_NOISE * noise_like(x, generator)
        x = x + (raised.square() - now.square()).sqrt()[:, None] * noise
        x = _heun(score, x, raised, then)
    return x


def _heun(score: Score, x: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """Take a step of dx/ds = -s S(x, s), to a level that is 0 for all or for none."""
    h = (then - now)[:, None]
    first = -now[:, None] * score(x, now)
    moved = x + h * first
    if bool((then == 0).all()):
        return moved
    second = -then[:, None] * score(moved, then)
    return x + h * (first + second) / 2


@torch.no_grad()
def euler_maruyama(
    score: Score,
    x: Tensor,
    sigma_max: Tensor,
    generator: torch.Generator | None = None,
    *,
    steps: int,
    sigma_min: float = 0.01,
) -> Tensor:
    """Follow the reverse diffusion on geometric levels, down to ``sigma_min``.

    ``x + v S(x, s_i) + sqrt(v) z``, ``v = s_i² - s_{i+1}²``; ``steps`` evaluations. Arguments and
    errors as of `kar1`.

    Source
    ------
    Song et al. 2021, arXiv 2011.13456, appendix E.
    """
    levels = geometric_levels(*_checked(x, sigma_max, steps, sigma_min))
    for now, then in zip(levels, levels[1:], strict=False):
        x = _reverse(score, x, now, then, generator)
    return x


@torch.no_grad()
def predictor_corrector(
    score: Score,
    x: Tensor,
    sigma_max: Tensor,
    generator: torch.Generator | None = None,
    *,
    steps: int,
    sigma_min: float = 0.01,
    snr: float = SNR,
) -> Tensor:
    """Follow each step of `euler_maruyama` by one of Langevin's at its level; 2 steps evaluations.

    Langevin's step is ``2 (snr |z| / |S|)²``, both sizes means over the samples, S's in units of
    1 / s, for levels differ. Arguments and errors as of `kar1`.

    Source
    ------
    Song et al. 2021, arXiv 2011.13456, algorithm 4; 0.16 for CIFAR-10, 0.075 for CelebA-HQ.
    """
    levels = geometric_levels(*_checked(x, sigma_max, steps, sigma_min))
    if not 0 < snr < math.inf:
        raise ValueError(f"snr={snr}: must be positive and finite; 0.16 is usual")
    for now, then in zip(levels, levels[1:], strict=False):
        x = _reverse(score, x, now, then, generator)
        s, z = score(x, then), noise_like(x, generator)
        sizes = z.norm(dim=1).mean() / (then * s.norm(dim=1)).mean()
        step = 2 * (snr * then * sizes)[:, None] ** 2
        x = x + step * s + (2 * step).sqrt() * z
    return x


def _reverse(
    score: Score, x: Tensor, now: Tensor, then: Tensor, generator: torch.Generator | None
) -> Tensor:
    v = (now.square() - then.square())[:, None]
    return x + v * score(x, now) + v.sqrt() * noise_like(x, generator)


@torch.no_grad()
def probability_flow(
    score: Score,
    x: Tensor,
    sigma_max: Tensor,
    generator: torch.Generator | None = None,
    *,
    sigma_min: float = 0.01,
    tolerance: float = 1e-5,
) -> Tensor:
    """Integrate the probability flow down to ``sigma_min`` by scipy's adaptive RK45, all at once.

    The logarithm of every sample's level falls in one unit of time; ``tolerance`` is relative and
    absolute. Arguments and errors as of `kar1`.

    Raises
    ------
    FloatingPointError
        If scipy gives up.
    """
    sigma_max = _checked(x, sigma_max, 3, sigma_min)[0]
    fall = (sigma_min / sigma_max).log()

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        now = sigma_max * (t * fall).exp()
        s = score(torch.from_numpy(flat).view(x.shape).to(x.dtype), now)
        # dx/ds = -s S, ds/dt = s log(sigma_min / sigma_max).
        change = -(now.square() * fall)[:, None] * s
        return np.asarray(change.double().numpy().ravel())

    solved = solve_ivp(
        slope, (0.0, 1.0), x.double().numpy().ravel(), rtol=tolerance, atol=tolerance
    )
    if not solved.success:
        raise FloatingPointError(f"probability flow down to {sigma_min:g}: {solved.message}")
    return torch.from_numpy(solved.y[:, -1]).view(x.shape).to(x.dtype)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal numbers of a tensor's shape and dtype."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _checked(
    x: Tensor, sigma_max: Tensor, steps: int, sigma_min: float
) -> tuple[Tensor, int, float]:
    if not isinstance(steps, int) or steps < 3:
        raise ValueError(f"steps={steps!r}: must be an int of at least 3; raise it")
    if sigma_max.shape != x.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(sigma_max.shape)}: must be ({len(x)},), a level a sample; "
            "use sigma.expand(len(x))"
        )
    if not 0 < sigma_min <= float(sigma_max.min()) <= float(sigma_max.max()) < math.inf:
        raise ValueError(
            f"sigma from {float(sigma_max.min()):g} to {float(sigma_max.max()):g}, "
            f"sigma_min={sigma_min:g}: must be 0 < sigma_min <= sigma, finite; lower sigma_min"
        )
    return sigma_max.to(x.dtype), steps, sigma_min
