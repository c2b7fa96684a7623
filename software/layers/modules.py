"""Layers whose products run on a device, forward and backward, under a sparse training scheme."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sat.devices.base import Device
from sat.devices.context import current_device, current_log
from sat.layers.autograd import Products
from sat.layers.engine import COPIES, Engine
from sat.layers.plan import PLAN, LayerPlan
from sat.layers.staged import staged_layer
from sat.offload.lowering import POINT, Geometry
from sat.sim.layer import Layer


def _engine(layer: nn.Module, x: Tensor, weight: Tensor) -> Engine:
    """Return what takes the layer's products now; raise if its tensors are not fit for it."""
    plan: LayerPlan = getattr(layer, PLAN)
    where = f"layer {plan.name!r}: " if plan.name else ""
    if x.dtype not in (torch.float32, torch.float16):
        raise TypeError(
            f"{where}input has dtype {str(x.dtype).removeprefix('torch.')}: must be float32 or "
            "float16; convert with x.float()"
        )
    if weight.dtype is not torch.float32:
        raise TypeError(
            f"{where}weight has dtype {str(weight.dtype).removeprefix('torch.')}: master weights "
            "are float32; convert with model.float()"
        )
    for name, tensor in (("input", x), ("weight", weight)):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{where}{name} is on {tensor.device}: must be in host memory; use .cpu()"
            )
    copies = COPIES.setdefault(layer, {})
    return Engine(plan, current_device(plan.device), current_log(), copies, layer)


class SatLinear(nn.Linear):
    """A linear layer whose products run on a device; made by `sparsify_`.

    FF is ``x · W_fᵀ + bias`` (the bias starts the sums), BP ``dy · W_b``, WU ``dyᵀ · x``, where
    W_f and W_b are the weights as the scheme prunes them. Operands are rounded to FP16, sums are
    FP32, and so are the masters and what passes between layers.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) float32 for (..., in_features) float32 or float16."""
        engine = _engine(self, input, self.weight)
        if input.ndim < 1 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"layer {engine.plan.name!r}: input has shape {tuple(input.shape)}: its last axis "
                f"must be in_features, {self.in_features}; reshape it"
            )
        x = input.float().reshape(-1, 1, 1, self.in_features)
        weight = self.weight[:, None, None, :]
        y = cast(Tensor, Products.apply(x, weight, self.bias, POINT, engine))
        return y.reshape(*input.shape[:-1], self.out_features)


class SatConv2d(nn.Conv2d):
    """A convolution whose products run on a device; made by `sparsify_`.

    As `SatLinear`, after im2col on the host with the depth in the order (kernel row, kernel
    column, channel). BP is the convolution of the output's gradient with the turned kernel, one
    for each phase of the stride, so that no zeros are multiplied.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (batch, out, height, width) float32, or without batch, as ``nn.Conv2d``."""
        engine = _engine(self, input, self.weight)
        if input.ndim not in (3, 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"layer {engine.plan.name!r}: input has shape {tuple(input.shape)}: must be "
                f"(batch, {self.in_channels}, height, width) or without batch; reshape it"
            )
        g = _conv_geometry(self)
        if min(g.outputs(0, input.shape[-2]), g.outputs(1, input.shape[-1])) < 1:
            raise ValueError(
                f"layer {engine.plan.name!r}: input is {input.shape[-2]} x {input.shape[-1]}: "
                f"smaller than the kernel {self.kernel_size} with dilation {self.dilation}; "
                "pad it or give a larger picture"
            )
        x = (input if input.ndim == 4 else input[None]).float().permute(0, 2, 3, 1)
        weight = self.weight.permute(0, 2, 3, 1)
        y = cast(Tensor, Products.apply(x, weight, self.bias, g, engine)).permute(0, 3, 1, 2)
        return y if input.ndim == 4 else y[0]


def _conv_geometry(layer: nn.Conv2d) -> Geometry:
    kernel, dilation = layer.kernel_size, layer.dilation
    if layer.padding == "valid":
        sides = [(0, 0), (0, 0)]
    elif layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(p), int(p)) for p in layer.padding]
    return Geometry(
        cast(tuple[int, int], kernel),
        cast(tuple[int, int], layer.stride),
        (sides[0], sides[1]),
        cast(tuple[int, int], dilation),
        layer.groups,
    )


def weight_layers(model: nn.Module) -> dict[Tensor, nn.Module]:
    """Return the SAT layer of each weight of a model."""
    return {
        module.weight: module
        for module in model.modules()
        if isinstance(module, (SatLinear, SatConv2d)) and hasattr(module, PLAN)
    }


def staged_update_layer(module: nn.Module, device: Device) -> Layer | None:
    """Return what a weight update of a SAT layer needs to know of it, or None if it stays here."""
    plan: LayerPlan = getattr(module, PLAN)
    assert isinstance(module, (SatLinear, SatConv2d))
    g = _conv_geometry(module) if isinstance(module, SatConv2d) else POINT
    weight = to_ohwi(module.weight).shape
    # The update does not depend on the pictures: any that the kernel fits will do.
    spans = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel, strict=True)]
    x = (1, *spans, weight[3] * g.groups)
    return staged_layer(Engine(plan, device, None), g, x, weight, False)


def to_ohwi(weight: Tensor) -> Tensor:
    """Return a weight of a SAT layer as (out, kernel rows, kernel columns, in): a view."""
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight[:, None, None, :]


def from_ohwi(weight: Tensor, like: Tensor) -> Tensor:
    """Return (out, kernel rows, kernel columns, in) in the order of ``like``: a view."""
    return weight.permute(0, 3, 1, 2) if like.ndim == 4 else weight[:, 0, 0, :]
