"""What a model takes: bits of its parameters, and operations, with all that is not binary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.binarydm.layers import BinaryLayer

FLOAT_BITS = 32
WORD = 64
"""Products of one bit by one bit that count as one multiply-accumulate of floats (Bi-Real Net,
Liu et al. 2018, arXiv 1808.00278): W1A4 by one basis is 16 times fewer."""


@dataclass(frozen=True)
class LayerCost:
    """Of a layer with weights.

    Attributes
    ----------
    weights : int
        How many.
    bases : int
        0 for full precision.
    weight_bits : int
        Of weights and their scales, without the bias.
    macs : int
        Multiply-accumulates of the example, in all calls.
    operations : float
        In multiply-accumulates of floats.
    """

    weights: int
    bases: int
    weight_bits: int
    macs: int
    operations: float


@dataclass(frozen=True)
class CostReport:
    """Of a model.

    Attributes
    ----------
    bits : int
        Of all parameters, scales and biases included.
    operations : float
        Of the example, in multiply-accumulates of floats.
    bit_ratio, operation_ratio : float
        Of the same model in full precision over these.
    layers : dict of str to LayerCost
    """

    bits: int
    operations: float
    bit_ratio: float
    operation_ratio: float
    layers: dict[str, LayerCost]

    @property
    def binary_weight_bits(self) -> tuple[int, int]:
        """Weights of binary layers, and their bits with scales."""
        binary = [layer for layer in self.layers.values() if layer.bases]
        return sum(layer.weights for layer in binary), sum(layer.weight_bits for layer in binary)


def cost_report(model: nn.Module, example: Tensor | tuple[Any, ...]) -> CostReport:
    """Return bits and operations of a model.

    A binary layer has a bit a weight and basis, and 32 a scale; an N:M mask saves operations, and
    no bits. An operation by binary weights is bases x act_bits / 64 of a float one, inputs of 32
    bits where they are not quantised.

    Parameters
    ----------
    model : nn.Module
        Run once, on the example, as it is in evaluation.
    example : torch.Tensor, or tuple of arguments
    """
    layers: dict[str, LayerCost] = {}

    def watch(name: str) -> Any:
        def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
            now = _layer_cost(layer, output)
            if name in layers:  # called again: its weights are the same, its work is not
                before = layers[name]
                now = replace(
                    now, macs=before.macs + now.macs, operations=before.operations + now.operations
                )
            layers[name] = now

        return keep

    watched = (nn.Linear, nn.Conv1d, nn.Conv2d)
    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, watched)
    ]
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    latent, bits = 0, 0
    for module in model.modules():
        own = {name: p.numel() for name, p in module.named_parameters(recurse=False)}
        if not isinstance(module, BinaryLayer):
            latent += sum(own.values())
            bits += FLOAT_BITS * sum(own.values())
            continue
        bias = own.get("bias", 0)
        latent += own["weight"] + bias
        bits += _weight_bits(module) + FLOAT_BITS * (bias + own.get("step", 0))
    operations = sum(layer.operations for layer in layers.values())
    dense = sum(layer.macs for layer in layers.values())
    return CostReport(bits, operations, FLOAT_BITS * latent / bits, dense / operations, layers)


def _weight_bits(layer: BinaryLayer) -> int:
    if not layer.binary:
        return FLOAT_BITS * layer.weight.numel()
    return layer.bases * (layer.weight.numel() + FLOAT_BITS * layer.weight.shape[0])


def _layer_cost(layer: nn.Module, output: Tensor) -> LayerCost:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    outputs = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
    macs = output.numel() // outputs * weight.numel()
    if not isinstance(layer, BinaryLayer) or not layer.binary:
        return LayerCost(weight.numel(), 0, FLOAT_BITS * weight.numel(), macs, macs)
    share = layer.bases * (layer.act_bits or FLOAT_BITS) / WORD
    if layer.mask is not None:
        share *= float(layer.mask.mean())
    return LayerCost(weight.numel(), layer.bases, _weight_bits(layer), macs, macs * share)
