"""How much work and memory a model is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, example: Tensor | tuple[Any, ...]) -> int:
    """Return the multiply-accumulates of all products of a forward pass.

    Parameters
    ----------
    model : nn.Module
        Run as it is in evaluation; its mode is left as it was.
    example : torch.Tensor, or tuple of arguments

    Returns
    -------
    int
        As ``torch.utils.flop_counter`` counts: products, convolutions, attention.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*arguments)
    finally:
        for module, was in training.items():
            module.training = was
    return int(counter.get_total_flops()) // 2


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters; shared ones count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
