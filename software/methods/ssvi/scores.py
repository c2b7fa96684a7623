"""What a weight is worth, by mean and deviation, and how many are replaced."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CRITERIA = ("snr_abs", "snr", "mean", "e_abs", "e_exp", "snr_exp")


def removal_score(
    mu: Tensor, sigma: Tensor, criterion: str = "snr_abs", lam: float = 1.0
) -> Tensor:
    """Return scores of normal weights; those of the smallest are dropped.

    "snr_abs" and "snr" rank alike: with r = |μ|/σ the former rises from 1.3236 at r = 0, and tends
    to r. Its variance is taken as 1 − δ·(2·r + δ), δ = E|θ|/σ − r: nothing cancels.

    Parameters
    ----------
    mu, sigma : torch.Tensor
        Of one shape.
    criterion : str
        "snr_abs": E|θ| / √Var|θ|; "snr": |μ|/σ; "mean": |μ|; "e_abs": E|θ|; "e_exp": logarithm of
        E exp(λ·|θ|), which ranks alike and does not overflow; "snr_exp": the ratio of mean and
        deviation of exp(λ·|θ|).
    lam : float
        λ, positive.

    Returns
    -------
    torch.Tensor
        float64 of that shape.

    Raises
    ------
    ValueError
        If there is no such criterion, ``lam`` is not positive, or shapes differ.
    FloatingPointError
        If a mean is not finite, or a deviation not finite and positive.

    Source
    ------
    arXiv 2402.11025, and its code, whose direct formula loses float32's digits for large r.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r}: must be one of {', '.join(CRITERIA)}; choose")
    if not 0 < lam < math.inf:
        raise ValueError(f"lam={lam}: must be positive and finite; 1 is the authors'")
    if mu.shape != sigma.shape:
        raise ValueError(
            f"mu has shape {tuple(mu.shape)}, sigma {tuple(sigma.shape)}: must be the same; give "
            "one deviation a mean"
        )
    mu, sigma = mu.detach().double(), sigma.detach().double()
    if not bool(torch.isfinite(mu).all()) or not bool(
        (sigma > 0).all() & torch.isfinite(sigma).all()
    ):
        raise FloatingPointError(
            "mu or sigma: must be finite, and sigma positive; lower the learning rates"
        )
    size = mu.abs()
    r = size / sigma
    if criterion == "mean":
        return size
    if criterion == "snr":
        return r
    if criterion in ("e_exp", "snr_exp"):
        first = _log_exp(size, sigma, lam)
        if criterion == "e_exp":
            return first
        return torch.expm1(_log_exp(size, sigma, 2 * lam) - 2 * first).rsqrt()
    delta = math.sqrt(2 / math.pi) * torch.exp(-r * r / 2) - r * torch.erfc(r / math.sqrt(2))
    if criterion == "e_abs":
        return sigma * (r + delta)
    return (r + delta) / (1 - delta * (2 * r + delta)).sqrt()


def _log_exp(size: Tensor, sigma: Tensor, lam: float) -> Tensor:
    """Return log E exp(λ·|θ|)."""
    r, shift = size / sigma, lam * sigma
    tails = torch.logaddexp(
        lam * size + torch.special.log_ndtr(r + shift),
        -lam * size + torch.special.log_ndtr(shift - r),
    )
    return shift * shift / 2 + tails


def replace_fraction(step: int, t_end: int, alpha: float = 0.3) -> float:
    """Return the share of a layer's weights that an update replaces, (α/2)·(1 + cos(π·t/t_end)).

    Parameters
    ----------
    step : int
        From 0; from ``t_end`` on the share is 0.
    t_end : int
        Steps, positive.
    alpha : float
        Above 0, at most 1.

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be above 0 and at most 1; 0.3 is the authors'")
    if not t_end > 0:
        raise ValueError(f"t_end={t_end}: must be positive; give the step of the last update")
    if step < 0:
        raise ValueError(f"step={step}: must not be negative; count from 0")
    return alpha / 2 * (1 + math.cos(math.pi * min(step, t_end) / t_end))
