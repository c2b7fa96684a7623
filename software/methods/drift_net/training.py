"""What is trained on, and how long forecasts are made and judged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": nn.functional.l1_loss,
    "mse": nn.functional.mse_loss,
}


def frequency_weighted_loss(
    pred: Tensor, target: Tensor, base: str = "l1", weight: float = 0.3, power: float = 1.5
) -> Tensor:
    """Return a loss of fields plus weight · mean(|ê|² (r / r_max)^power), ê the error's spectrum.

    The spectrum is that of rfft2 over the number of points, r = |k|.

    Parameters
    ----------
    pred, target : torch.Tensor
        (batch, channels, height, width).
    base : {"l1", "relative", "mse"}
        Mean absolute error; that of each channel over its target's; or mean square.
    weight, power : float

    Raises
    ------
    ValueError
        If shapes differ, or there is no such base.

    Source
    ------
    Section 3.4; the authors' ``driftnet/model.py``.
    """
    if pred.shape != target.shape or pred.ndim != 4:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}: must be one "
            "shape (batch, channels, height, width)"
        )
    if base == "relative":
        sizes = target.abs().mean((0, 2, 3)).clamp(min=1e-10)
        loss = ((pred - target).abs().mean((0, 2, 3)) / sizes).mean()
    elif base in BASES:
        loss = BASES[base](pred, target)
    else:
        raise ValueError(f"base={base!r}: must be one of {', '.join((*BASES, 'relative'))}")
    spectrum = torch.fft.rfft2(pred - target, norm="forward")
    height, width = pred.shape[2:]
    place = {"dtype": spectrum.real.dtype, "device": pred.device}
    rows = torch.fft.fftfreq(height, 1 / height, **place)
    cols = torch.fft.rfftfreq(width, 1 / width, **place)
    radius = torch.hypot(rows[:, None], cols)
    share = (radius / radius.max()).pow(power)
    power_of = torch.view_as_real(spectrum).square().sum(-1)
    return loss + weight * (power_of * share).mean()


def relative_lp_error(pred: Tensor, target: Tensor, p: int = 1) -> Tensor:
    """Return (Σ |pred - target|^p / Σ |target|^p)^(1/p) of each sample (batch,).

    Raises
    ------
    ValueError
        If shapes differ, or p is no positive number.
    """
    if pred.shape != target.shape or pred.ndim < 2:
        raise ValueError(
            f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}: must be one "
            "shape (batch, ...)"
        )
    if not p > 0:
        raise ValueError(f"p={p}: must be positive")
    sums = [x.abs().pow(p).flatten(1).sum(1) for x in (pred - target, target)]
    return (sums[0] / sums[1]).pow(1 / p)


@torch.no_grad()
def rollout(model: Callable[[Tensor], Tensor], u0: Tensor, steps: int) -> Tensor:
    """Return forecasts (batch, steps, …): each step's output is the next one's input.

    Parameters
    ----------
    model : callable
        Fields (batch, …) to those one step on.
    u0 : torch.Tensor
        (batch, …).
    steps : int

    Raises
    ------
    ValueError
        If there are no steps.
    RuntimeError
        If a forecast is not finite; the step is named.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    out = []
    for step in range(1, steps + 1):
        u0 = model(u0)
        if not bool(u0.isfinite().all()):
            raise RuntimeError(f"step {step} of {steps}: the forecast is not finite; train longer")
        out.append(u0)
    return torch.stack(out, 1)
