"""Layers whose products run on a device, forward and backward, under a sparse training scheme."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sat.devices.base import Device
from sat.devices.context import current_device, current_log
from sat.layers.autograd import Call, Forward
from sat.layers.engine import COPIES, Engine
from sat.layers.plan import PLAN, LayerPlan
from sat.layers.products import to_ohwi
from sat.layers.staged import staged_layer
from sat.offload.lowering import POINT, Geometry
from sat.sim.layer import Layer

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _call(layer: nn.Module, x: Tensor, weight: Tensor, g: Geometry, pictures: bool) -> Call:
    """Return what takes the layer's products now; raise if its tensors are not fit for it."""
    plan: LayerPlan = getattr(layer, PLAN)
    where = f"layer {plan.name!r}: " if plan.name else ""
    for name, tensor in (("input", x), ("weight", weight)):
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"{where}{name} has dtype {str(tensor.dtype).removeprefix('torch.')}: must be "
                "float32, float16, bfloat16 or float64; convert with .float()"
            )
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{where}{name} is on {tensor.device}: must be in host memory; use .cpu()"
            )
    result = weight.dtype
    if torch.is_autocast_enabled("cpu") and x.dtype is not torch.float64:
        result = torch.get_autocast_dtype("cpu")
    copies = COPIES.setdefault(layer, {})
    engine = Engine(plan, current_device(plan.device), current_log(), copies, layer)
    return Call(engine, g, pictures, result)


class SatLinear(nn.Linear):
    """A linear layer whose products run on a device; made by `sparsify_`.

    FF is ``x · W_fᵀ + bias`` (the bias starts the sums), BP ``dy · W_b``, WU ``dyᵀ · x``, where
    W_f and W_b are the weights as the scheme prunes them. Operands are rounded to FP16 and then
    pruned, sums are FP32; outputs and gradients of inputs are rounded to FP16, as the device stores
    them, masters and their gradients stay FP32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features) of any floating point.

        The result has the weight's type, float32, or autocast's; its values are those of float16.
        """
        weight = self.weight  # once: a parametrization computes it anew each time
        call = _call(self, input, weight, POINT, False)
        if input.ndim < 1 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"layer {call.engine.plan.name!r}: input has shape {tuple(input.shape)}: its last "
                f"axis must be in_features, {self.in_features}; reshape it"
            )
        return cast(Tensor, Forward.apply(input, weight, self.bias, call))


class SatConv2d(nn.Conv2d):
    """A convolution whose products run on a device; made by `sparsify_`.

    As `SatLinear`, after im2col on the host with the depth in the order (kernel row, kernel
    column, channel). BP is the convolution of the output's gradient with the turned kernel, one
    for each phase of the stride, so that no zeros are multiplied.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return (batch, out, height, width), or without batch, as ``nn.Conv2d``.

        Types as of `SatLinear`, memory format as of ``nn.Conv2d``.
        """
        weight, g = self.weight, _conv_geometry(self)
        call = _call(self, input, weight, g, True)
        name = call.engine.plan.name
        if input.ndim not in (3, 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"layer {name!r}: input has shape {tuple(input.shape)}: must be "
                f"(batch, {self.in_channels}, height, width) or without batch; reshape it"
            )
        if min(g.outputs(0, input.shape[-2]), g.outputs(1, input.shape[-1])) < 1:
            raise ValueError(
                f"layer {name!r}: input is {input.shape[-2]} x {input.shape[-1]}: "
                f"smaller than the kernel {self.kernel_size} with dilation {self.dilation}; "
                "pad it or give a larger picture"
            )
        return cast(Tensor, Forward.apply(input, weight, self.bias, call))


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
