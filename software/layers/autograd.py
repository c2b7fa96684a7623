"""A layer's products in autograd, differentiable as often as asked for.

`Forward` is FF, `Gradients` BP and WU; the derivatives of both are products of the same three kinds
and run on the device, too. Pruning is passed straight through: a derivative takes an operand as its
product took it, pruned, and hands its own result on unpruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sat.arrays import array_of
from sat.layers import products
from sat.layers.engine import Engine, kept
from sat.layers.plan import current_loss_scale
from sat.layers.products import from_ohwi, to_ohwi
from sat.layers.staged import staged_gradients, staged_layer
from sat.offload.lowering import Geometry, result_format
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE

Pair = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer: the products of tensors in the layer's own layout.

    Parameters
    ----------
    engine : Engine
    geometry : Geometry
    pictures : bool
        Whether tensors are (batch, channels, height, width), or without batch, as of a convolution;
        else (..., channels).
    result : torch.dtype
        Of the output.
    """

    engine: Engine
    geometry: Geometry
    pictures: bool
    result: torch.dtype

    @property
    def dense(self) -> Call:
        """The same call with nothing pruned and nothing kept on the device."""
        plan = replace(self.engine.plan, pattern=DENSE)
        return replace(self, engine=Engine(plan, self.engine.device, self.engine.log))

    @property
    def passing(self) -> Call:
        """The same call with nothing kept on the device."""
        engine = self.engine
        return replace(self, engine=Engine(engine.plan, engine.device, engine.log))

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return FF, in the result's type; each value is one of float16."""
        shape = self._output_shape(x, len(weight))
        if 0 in (*x.shape, *weight.shape):
            made = torch.zeros(shape)
            if bias is not None:
                made += bias.detach()[:, None, None] if self.pictures else bias.detach()
            return self._give(made.half(), shape, self.result, x, weight)
        pictures, lanes = self._last(x).half(), to_ohwi(weight)
        start = None if bias is None else bias.float()
        layer = self._staged(x, weight, bias is not None)
        if layer is not None:
            tensors = {"x": pictures, "w": lanes.float()}
            if start is not None:
                tensors["bias"] = start
            y = self.engine.stages(layer, ("ff",), tensors)["y"]
        else:
            y = products.output(self.engine, self.geometry, pictures, lanes, start).half()
        return self._give(self._first(y, shape), shape, self.result, x, weight)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
    ) -> Pair:
        """Return BP, each value one of float16, and WU with the scheme's decay, if wanted."""
        g, engine = self.geometry, self.engine
        lanes = to_ohwi(weight)
        if 0 in (*dy.shape, *x.shape, *weight.shape):
            dx = torch.zeros(x.shape) if needs_x else None
            dw = torch.zeros(lanes.shape) if needs_weight else None
            return dx if dx is None else dx.to(x.dtype), self._weight_gradient(dw, weight)
        pictures, grad = self._last(x).half(), self._last(dy).half()
        layer = self._staged(x, weight, False)
        made: Pair
        if layer is not None:
            made = staged_gradients(layer, engine, grad, pictures, lanes, needs_x, needs_weight)
        else:
            made = (
                products.input_gradient(engine, g, grad, lanes, pictures.shape)
                if needs_x
                else None,
                products.weight_gradient(engine, g, grad, pictures, lanes)
                if needs_weight
                else None,
            )
        dx, dw = made
        if dx is not None:
            dx = self._give(self._first(dx.half(), x.shape), x.shape, x.dtype, x, weight)
        return dx, self._weight_gradient(dw, weight)

    @property
    def decay(self) -> float:
        """Factor of the scheme's decay of the weights that FF prunes (SR-STE), or 0."""
        plan = self.engine.plan
        return 0.0 if plan.pattern.dense else plan.scheme.srste_lambda * current_loss_scale()

    def keeps(self, stage: str, name: str, x: Tensor) -> Tensor:
        """Return which elements of an operand a stage keeps: bool; more axes may stand in front."""
        plan, array = self.engine.plan, array_of(x.detach().half())
        prune = plan.scheme.pruning(stage, name)
        assert prune is not None
        mask = np.ones(array.shape, bool)
        for channels in prune.axes:
            axis = self._axis(name, channels) + array.ndim
            # Groups of M do not reach from one group of a convolution into the next.
            count = 1 if (name, channels) == ("weight", "in") else self.geometry.groups
            cut = (*array.shape[:axis], count, -1, *array.shape[axis + 1 :])
            seen = np.where(mask, array, np.float16(0)).reshape(cut)
            mask &= kept(plan, seen, axis + 1).reshape(array.shape)
        return torch.from_numpy(mask)

    def prunes(self, stage: str, name: str) -> bool:
        """Return whether a stage prunes an operand."""
        plan = self.engine.plan
        return not plan.pattern.dense and plan.scheme.pruning(stage, name) is not None

    def bias_gradient(self, dy: Tensor, bias: torch.dtype) -> Tensor:
        """Return the sum of the output's gradient over all but the channels."""
        channels = (-3 if self.pictures else -1) + dy.ndim
        axes = [axis for axis in range(dy.ndim) if axis != channels]
        wide = torch.float64 if torch.float64 in (dy.dtype, bias) else torch.float32
        return (dy.to(wide).sum(axes) if axes else dy).to(bias)

    def over_channels(self, bias: Tensor) -> Tensor:
        """Return one value a channel so that it can be added to an output."""
        return bias[..., None, None] if self.pictures else bias

    def _axis(self, name: str, channels: str) -> int:
        """Return where an operand's channels are, counted from its last axis."""
        if name != "weight":
            return -3 if self.pictures else -1
        return {"out": -2, "in": -1}[channels] - (2 if self.pictures else 0)

    def _staged(self, x: Tensor, weight: Tensor, bias: bool) -> Layer | None:
        shape = self._last(x).shape
        return staged_layer(self.engine, self.geometry, shape, to_ohwi(weight).shape, bias)

    def _last(self, x: Tensor) -> Tensor:
        """Return a tensor as (batch, height, width, channels)."""
        x = x.detach()
        if not self.pictures:
            return x.reshape(-1, 1, 1, x.shape[-1])
        return (x if x.ndim == 4 else x[None]).permute(0, 2, 3, 1)

    def _first(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return (batch, height, width, channels) as a tensor of this shape."""
        return (x.permute(0, 3, 1, 2) if self.pictures else x).reshape(shape)

    def _output_shape(self, x: Tensor, channels: int) -> tuple[int, ...]:
        if not self.pictures:
            return (*x.shape[:-1], channels)
        g = self.geometry
        return (*x.shape[:-3], channels, g.outputs(0, x.shape[-2]), g.outputs(1, x.shape[-1]))

    def _give(
        self, made: Tensor, shape: Sequence[int], dtype: torch.dtype, x: Tensor, weight: Tensor
    ) -> Tensor:
        """Return a tensor of its own, no view, laid out as torch's convolution would have it."""
        if not self.pictures:
            return torch.empty(shape, dtype=dtype).copy_(made)
        layout = result_format(x if x.ndim == 4 else x[None], weight)
        full = torch.empty((1,) * (4 - len(shape)) + tuple(shape), device="meta", dtype=dtype)
        strides = torch.empty_like(full, memory_format=layout).stride()
        return torch.empty_strided(shape, strides[-len(shape) :], dtype=dtype).copy_(made)

    def _weight_gradient(self, dw: Tensor | None, weight: Tensor) -> Tensor | None:
        """Return WU, with the scheme's decay, in the layout and type of the weight."""
        if dw is None:
            return None
        made = from_ohwi(dw, weight)
        if self.decay and weight.numel():
            lost = torch.where(self.keeps("FF", "weight", weight), 0, weight.detach())
            made = made + self.decay * lost
        return torch.empty_like(weight).copy_(made)


class Forward(torch.autograd.Function):
    """FF of a `Call`: ``(x, weight, bias, call)`` to the output."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        return call.output(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, ctx.call = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.bias = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = dw = None
        if needs_x or needs_weight:
            dx, dw = Gradients.apply(dy, x, weight, ctx.call, needs_x, needs_weight)
        return dx, dw, ctx.call.bias_gradient(dy, ctx.bias) if needs_bias else None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dw: Any, db: Any, _: Any) -> Tensor | None:
        x, weight = ctx.saved_tensors
        call = ctx.call
        parts = []
        if dx is not None:
            w = _seen(call, "FF", "weight", weight)
            parts.append(Forward.apply(dx, w, None, call.dense))
        if dw is not None:
            parts.append(Forward.apply(_seen(call, "FF", "input", x), dw, None, call.dense))
        if db is not None:
            parts.append(call.over_channels(db))
        return _total(parts)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, weight: Any, bias: Any, call: Call) -> Any:
        dims = in_dims[:3]
        if dims[1] is None and dims[2] is None:
            made = _folded(lambda t: Forward.apply(t, weight, bias, call), call, (x,), dims[:1])
        else:
            made = _each(
                lambda *parts: Forward.apply(*parts, call.passing),
                info.batch_size,
                (x, weight, bias),
                dims,
            )
        return made, 0


class Gradients(torch.autograd.Function):
    """BP and WU of a `Call`: ``(dy, x, weight, call, BP wanted, WU wanted)`` to both, or None."""

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, weight: Tensor, call: Call, needs_x: bool, needs_weight: bool
    ) -> Pair:
        return call.gradients(dy, x, weight, needs_x, needs_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, weight, ctx.call, ctx.needs_x, ctx.needs_weight = inputs
        ctx.save_for_backward(dy, x, weight)
        ctx.save_for_forward(dy, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, along_x: Any, along_w: Any) -> tuple[Tensor | None, ...]:
        dy, x, weight = ctx.saved_tensors
        call, dense = ctx.call, replace(ctx.call.dense, result=dy.dtype)
        needs_dy, needs_x, needs_weight = ctx.needs_input_grad[:3]
        for_dy, for_x, for_weight = [], [], []
        if along_x is not None:
            if needs_dy:
                w = _seen(call, "BP", "weight", weight)
                for_dy.append(Forward.apply(along_x, w, None, dense))
            if needs_weight:
                seen = _seen(call, "BP", "output_gradient", dy)
                for_weight.append(Gradients.apply(seen, along_x, weight, dense, False, True)[1])
        if along_w is not None:
            if needs_dy:
                seen = _seen(call, "WU", "input", x)
                for_dy.append(Forward.apply(seen, along_w, None, dense))
            if needs_x:
                seen = _seen(call, "WU", "output_gradient", dy)
                for_x.append(Gradients.apply(seen, x, along_w, dense, True, False)[0])
            if needs_weight and call.decay:
                for_weight.append(call.decay * (along_w - Kept.apply(along_w, weight, call)))
        return _total(for_dy), _total(for_x), _total(for_weight), None, None, None

    @staticmethod
    def jvp(ctx: Any, ddy: Any, dx: Any, dw: Any, *_: Any) -> Any:
        dy, x, weight = ctx.saved_tensors
        call, dense = ctx.call, ctx.call.dense
        along_x, along_w = [], []
        if ddy is not None and ctx.needs_x:
            w = _seen(call, "BP", "weight", weight)
            along_x.append(Gradients.apply(ddy, x, w, dense, True, False)[0])
        if dw is not None and ctx.needs_x:
            seen = _seen(call, "BP", "output_gradient", dy)
            along_x.append(Gradients.apply(seen, x, dw, dense, True, False)[0])
        if ddy is not None and ctx.needs_weight:
            seen = _seen(call, "WU", "input", x)
            along_w.append(Gradients.apply(ddy, seen, weight, dense, False, True)[1])
        if dx is not None and ctx.needs_weight:
            seen = _seen(call, "WU", "output_gradient", dy)
            along_w.append(Gradients.apply(seen, dx, weight, dense, False, True)[1])
        if dw is not None and ctx.needs_weight and call.decay:
            along_w.append(call.decay * (dw - Kept.apply(dw, weight, call)))
        return (
            (_total(along_x) if along_x else torch.zeros_like(x)) if ctx.needs_x else None,
            (_total(along_w) if along_w else torch.zeros_like(weight))
            if ctx.needs_weight
            else None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        dy: Any,
        x: Any,
        weight: Any,
        call: Call,
        needs_x: bool,
        needs_weight: bool,
    ) -> Any:
        tensors, dims, passing = (dy, x, weight), in_dims[:3], call.passing
        made: list[Tensor | None] = [None, None]
        if needs_x and dims[2] is None:
            made[0] = _folded(
                lambda a, b: Gradients.apply(a, b, weight, call, True, False)[0],
                call,
                (dy, x),
                dims[:2],
            )
        elif needs_x:
            made[0] = _each(
                lambda *parts: Gradients.apply(*parts, passing, True, False)[0],
                info.batch_size,
                tensors,
                dims,
            )
        if needs_weight:
            made[1] = _each(
                lambda *parts: Gradients.apply(*parts, passing, False, True)[1],
                info.batch_size,
                tensors,
                dims,
            )
        return tuple(made), tuple(None if part is None else 0 for part in made)


class Pruned(torch.autograd.Function):
    """An operand as a stage takes it, ``(x, call, stage, name)``; its gradient is passed on."""

    @staticmethod
    def forward(x: Tensor, call: Call, stage: str, name: str) -> Tensor:
        return torch.where(call.keeps(stage, name, x), x.detach(), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, *_: Any) -> Any:
        return dx

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, call: Call, stage: str, name: str) -> Any:
        # Channels are counted from the last axis.
        return Pruned.apply(x.movedim(in_dims[0], 0), call, stage, name), 0


class Kept(torch.autograd.Function):
    """What FF keeps of the weight, of another tensor of its shape: ``(x, weight, call)``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, call: Call) -> Tensor:
        return torch.where(call.keeps("FF", "weight", weight), x.detach(), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, weight, ctx.call = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return Kept.apply(grad, *ctx.saved_tensors, ctx.call), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, *_: Any) -> Any:
        return None if dx is None else Kept.apply(dx, *ctx.saved_tensors, ctx.call)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, weight: Any, call: Call) -> Any:
        made = _each(lambda *parts: Kept.apply(*parts, call), info.batch_size, (x, weight), in_dims)
        return made, 0


def _seen(call: Call, stage: str, name: str, x: Tensor) -> Tensor:
    return cast(Tensor, Pruned.apply(x, call, stage, name)) if call.prunes(stage, name) else x


def _total(parts: Sequence[Tensor]) -> Tensor | None:
    return sum(parts[1:], parts[0]) if parts else None


def _each(
    function: Callable[..., Tensor], count: int, tensors: Sequence[Any], dims: Sequence[Any]
) -> Tensor:
    """Return the results for every sample of a batch, one after the other."""
    parts = [
        [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=False)]
        for i in range(count)
    ]
    return torch.stack([function(*part) for part in parts])


def _folded(
    function: Callable[..., Tensor], call: Call, tensors: Sequence[Tensor], dims: Sequence[Any]
) -> Tensor:
    """Return the results for every sample of a batch, taken as more pictures or lanes."""
    count = next(t.shape[d] for t, d in zip(tensors, dims, strict=True) if d is not None)
    fronts = [
        t.expand(count, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, dims, strict=True)
    ]
    if not call.pictures or fronts[0].ndim == 4:
        return function(*fronts)
    made = function(*(t.flatten(0, 1) for t in fronts))
    return made.unflatten(0, fronts[0].shape[:2])
