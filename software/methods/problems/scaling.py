"""Gradients that float16 can hold."""

from __future__ import annotations

import math

from torch import Tensor, nn

LOSS_SCALE = 2.0**10
"""Gradients are taken of the loss times this, and divided by it: float16 keeps them then, and
float32 keeps their bits."""


def scaled_backward(loss: Tensor, model: nn.Module, scale: float = LOSS_SCALE) -> None:
    """Add to the gradients of a model's parameters, by way of the loss times a power of two.

    Parameters
    ----------
    loss : torch.Tensor
    model : nn.Module
        Its gradients, if there are any, are multiplied by ``scale`` and divided again: exact.
    scale : float
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(scale)


def power_of_two(x: float) -> float:
    """Return the power of two nearest to a positive number, by its logarithm; 1 for others."""
    return 2.0 ** round(math.log2(x)) if 0 < x < math.inf else 1.0


def scaled_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, with operands that float16 can hold whatever their units.

    Each is divided by a power of two near its largest entry, and the product multiplied again: in
    float64 exact.

    Parameters
    ----------
    a, b : torch.Tensor
        As ``a @ b`` takes them, real or complex.
    """
    scales = [power_of_two(float(x.abs().max())) if x.numel() else 1.0 for x in (a, b)]
    return (a / scales[0]) @ (b / scales[1]) * (scales[0] * scales[1])
