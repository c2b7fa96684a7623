"""What a router does with calibration samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.mc_smoe.layer import moe_layers


@dataclass(frozen=True)
class RoutingStats:
    """A router's use and logits.

    Parameters
    ----------
    frequency : torch.Tensor
        (experts,) float64: share of the tokens (times their choices) sent to each; sums to 1.
    logits : torch.Tensor
        (tokens, experts).
    inputs : torch.Tensor
        (tokens, d): what the layer was given.
    """

    frequency: Tensor
    logits: Tensor
    inputs: Tensor


def routing_statistics(
    model: nn.Module, batches: Iterable[Tensor | tuple[Any, ...]]
) -> dict[str, RoutingStats]:
    """Return the statistics of all mixtures of a model, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    batches : iterable of torch.Tensor, or of tuples of arguments
        Calibration samples; the paper has 256.

    Returns
    -------
    dict of str to RoutingStats
        By the layer's name.

    Raises
    ------
    ValueError
        If the model has no mixture, or one saw no token.
    """
    layers = moe_layers(model)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    hooks = [
        layer.router.register_forward_hook(
            lambda _, args, out, found=seen[name]: found.append((args[0].detach(), out.detach()))  # type: ignore[misc]
        )
        for name, layer in layers.items()
    ]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(*(batch if isinstance(batch, tuple) else (batch,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    found = {}
    for name, layer in layers.items():
        if not sum(len(x) for x, _ in seen[name]):
            raise ValueError(f"layer {name!r} saw no token: batches must reach it; give some")
        inputs, logits = (torch.cat(parts) for parts in zip(*seen[name], strict=True))
        counts = torch.bincount(layer.choices(logits).flatten(), minlength=logits.shape[1])
        found[name] = RoutingStats(counts.double() / counts.sum(), logits, inputs)
    return found
