"""Gradients that float16 can hold."""

from __future__ import annotations

from torch import Tensor, nn

LOSS_SCALE = 2.0**10
"""Gradients are taken of the loss times this, and divided by it: float16 keeps them then, and
float32 keeps their bits."""


def scaled_backward(loss: Tensor, model: nn.Module) -> None:
    """Fill in the gradients of a model's parameters, by way of the loss times `LOSS_SCALE`."""
    (loss * LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.div_(LOSS_SCALE)
