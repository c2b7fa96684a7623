"""Weights as sums of scaled signs, and activations as integer codes, with gradients for both."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Sign(torch.autograd.Function):
    """+1 and -1, never 0; gradients pass where |v| <= 1."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return torch.where(v >= 0, torch.ones_like(v), -torch.ones_like(v))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradients[0] * (v.abs() <= 1)


class _Round(torch.autograd.Function):
    """The nearest integer; gradients pass as they are."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def weight_signs(weight: Tensor, alpha1: Tensor, second: bool) -> tuple[Tensor, ...]:
    """Return sign(w), and the sign of what is left, w - a1 sign(w), if there is a second basis.

    The gradient of the second goes on to w and to a1.

    Parameters
    ----------
    weight : torch.Tensor
        (out, in, ...).
    alpha1 : torch.Tensor
        (out, 1, ...).
    second : bool

    Raises
    ------
    FloatingPointError
        If a weight is not finite: its sign would hide it.
    """
    if not bool(weight.isfinite().all()):
        raise FloatingPointError(
            f"weights of shape {tuple(weight.shape)} have infinities or NaNs, which signs would "
            "hide; lower the learning rate"
        )
    first: Tensor = _Sign.apply(weight)  # type: ignore[no-untyped-call]
    if not second:
        return (first,)
    return first, _Sign.apply(weight - alpha1 * first)  # type: ignore[no-untyped-call]


def binarize(weight: Tensor, alpha1: Tensor, alpha2: Tensor | None = None) -> Tensor:
    """Return a1 sign(w) + a2 sign(w - a1 sign(w)), or the first term alone.

    With signs s1, s2, windows e = 1 where |v| <= 1 of what each sign is of, and G the gradient of
    the result: dL/dw = a1 e1 G (1 - a2 e2) + a2 e2 G, dL/da1 = sum s1 G (1 - a2 e2), dL/da2 =
    sum s2 G.

    Parameters
    ----------
    weight : torch.Tensor
        (out, in, ...).
    alpha1, alpha2 : torch.Tensor
        (out, 1, ...), a scale a row.

    Raises
    ------
    ValueError
        If scales have another shape.
    FloatingPointError
        If a weight is not finite.

    Source
    ------
    Section 3.2 of the paper; the authors' ``ours_util.py``.
    """
    shape = (weight.shape[0], *(1,) * (weight.ndim - 1))
    for name, alpha in (("alpha1", alpha1), ("alpha2", alpha2)):
        if alpha is not None and alpha.shape != shape:
            raise ValueError(f"{name} has shape {tuple(alpha.shape)}: must be {shape}, one a row")
    signs = weight_signs(weight, alpha1, alpha2 is not None)
    out = alpha1 * signs[0]
    return out if alpha2 is None else out + alpha2 * signs[1]


@torch.no_grad()
def initial_scales(
    weight: Tensor, bases: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return a1 = mean |w| and a2 = mean |w - a1 sign(w)| (or None) of each row, (out, 1, ...).

    Parameters
    ----------
    weight : torch.Tensor
        (out, in, ...).
    bases : int
        1 or 2.
    mask : torch.Tensor, optional
        Of the weight's shape, 1 for what counts.

    Raises
    ------
    ValueError
        If a row is all zeros, or ``bases`` is neither 1 nor 2.
    FloatingPointError
        If a weight is not finite.
    """
    if bases not in (1, 2):
        raise ValueError(f"bases={bases!r}: must be 1 or 2")
    kept = torch.ones_like(weight) if mask is None else mask
    across = tuple(range(1, weight.ndim))
    count = kept.sum(across, keepdim=True)
    size = (kept * weight.abs()).sum(across, keepdim=True)
    if bool((size == 0).any()):  # before it is divided by a count that may be 0, too
        row = int((size.flatten() == 0).nonzero()[0])
        raise ValueError(
            f"row {row} of weights {tuple(weight.shape)} is all zeros: it must have a scale; leave "
            "the layer out of the plan, or prune its channel"
        )
    alpha1 = size / count
    first = weight_signs(weight, alpha1, second=False)[0]
    if bases == 1:
        return alpha1, None
    return alpha1, (kept * (weight - alpha1 * first).abs()).sum(across, keepdim=True) / count


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


@torch.no_grad()
def initial_step(x: Tensor, bits: int) -> Tensor:
    """Return 2 mean|x| / sqrt(Qp), a step between codes that suits x; positive, 0-dimensional."""
    step = 2 * x.abs().mean() / math.sqrt(code_range(bits)[1])
    return step.clamp(min=torch.finfo(x.dtype).tiny)


def quantize(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return the codes clip(round(x / step)) of x, as numbers of its dtype, with gradients.

    Those of x pass within the range, and those of the step are LSQ's where codes are multiplied by
    it again.

    Parameters
    ----------
    x : torch.Tensor
    step : torch.Tensor
        One number, positive.
    bits : int

    Source
    ------
    Esser et al. 2020, arXiv 1902.08153, section 2.
    """
    low, high = code_range(bits)
    codes: Tensor = _Round.apply((x / step).clamp(low, high))  # type: ignore[no-untyped-call]
    return codes


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, whose gradient is multiplied by a factor."""
    return x.detach() + factor * (x - x.detach())
