"""The layers' products in autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sat.layers import products
from sat.layers.engine import Engine
from sat.layers.staged import staged_gradients, staged_layer
from sat.offload.lowering import Geometry


class Products(torch.autograd.Function):
    """The three products of a layer.

    Of shapes as in `sat.layers.products`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, engine: Engine
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.engine = g, engine
        ctx.layer = layer = staged_layer(engine, g, x.shape, weight.shape, bias is not None)
        if layer is not None:
            tensors = {"x": x.half(), "w": weight}
            if bias is not None:
                tensors["bias"] = bias
            return engine.stages(layer, ("ff",), tensors)["y"].float()
        return products.output(engine, g, x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, engine = ctx.geometry, ctx.engine
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.float()
        if ctx.layer is not None and (needs_x or needs_weight):
            dx, dw = staged_gradients(ctx.layer, engine, grad, x, weight, needs_x, needs_weight)
            return dx, dw, grad.sum((0, 1, 2)) if needs_bias else None, None, None
        dx = products.input_gradient(engine, g, grad, weight, x.shape) if needs_x else None
        dw = products.weight_gradient(engine, g, grad, x, weight) if needs_weight else None
        db = grad.sum((0, 1, 2)) if needs_bias else None
        return dx, dw, db, None, None
