"""A layer's products in autograd, differentiable as often as asked for.

`Forward` is FF, `Gradients` BP and WU; the derivatives of both are products of the same three kinds
and run on the device, too. Pruning is passed straight through: a derivative takes an operand as its
product took it, pruned, and hands its own result on unpruned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch.utils import unwrap_dead_wrappers

from sat.layers import traced
from sat.layers.call import Call, Pair


def _one_by_one(derivative: Callable[..., Any]) -> Callable[..., Any]:
    """Let a derivative take the batches of torch's older vmap, sample by sample.

    That of ``is_grads_batched`` and of `torch.autograd.functional` with ``vectorize=True``, which
    knows nothing of the rules that functions have for vmap.
    """

    @functools.wraps(derivative)
    def derive(ctx: Any, *args: Any) -> Any:
        batched = [isinstance(x, Tensor) and is_legacy_batchedtensor(x) for x in args]
        if not any(batched):
            return derivative(ctx, *args)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        whole = [
            torch._remove_batch_dim(x, level, 1, 0) if is_batch else x
            for x, is_batch in zip(args, batched, strict=True)
        ]
        count = len(whole[batched.index(True)])
        pairs = list(zip(whole, batched, strict=True))
        made = [
            derivative(ctx, *(x[i] if is_batch else x for x, is_batch in pairs))
            for i in range(count)
        ]

        def again(parts: Sequence[Any]) -> Any:
            if parts[0] is None:
                return None
            return torch._add_batch_dim(torch.stack(list(parts)), 0, level)

        if isinstance(made[0], tuple):
            return tuple(again(parts) for parts in zip(*made, strict=True))
        return again(made)

    return derive


class _Function(torch.autograd.Function):
    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Do as torch does, but for looking up the signature at each call, which takes longest."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        single: Any = super(torch.autograd.Function, cls)
        return single.apply(*unwrap_dead_wrappers(args))


class Forward(_Function):
    """FF of a `Call`: ``(x, weight, bias, call)`` to the output."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        compute = traced.output if traced.wanted(x) else Call.output
        return compute(call, x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, ctx.call = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.bias = None if bias is None else bias.dtype

    @staticmethod
    @_one_by_one
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = dw = None
        if needs_x or needs_weight:
            dx, dw = Gradients.apply(dy, x, weight, ctx.call, needs_x, needs_weight)
        return dx, dw, ctx.call.bias_gradient(dy, ctx.bias) if needs_bias else None, None

    @staticmethod
    @_one_by_one
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


class Gradients(_Function):
    """BP and WU of a `Call`: ``(dy, x, weight, call, BP wanted, WU wanted)`` to both, or None."""

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, weight: Tensor, call: Call, needs_x: bool, needs_weight: bool
    ) -> Pair:
        compute = traced.gradients if traced.wanted(dy) else Call.gradients
        return compute(call, dy, x, weight, needs_x, needs_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        dy, x, weight, ctx.call, ctx.needs_x, ctx.needs_weight = inputs
        ctx.save_for_backward(dy, x, weight)
        ctx.save_for_forward(dy, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    @_one_by_one
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
    @_one_by_one
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


class Pruned(_Function):
    """An operand as a stage takes it, ``(x, call, stage, name)``; its gradient is passed on."""

    @staticmethod
    def forward(x: Tensor, call: Call, stage: str, name: str) -> Tensor:
        return torch.where(_keeps(call, stage, name, x), x.detach(), 0)

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
        prune = call.engine.plan.pruning(stage, name)
        assert prune is not None
        if "batch" in prune.axes:  # each sample's own
            return _each(
                lambda t: Pruned.apply(t, call, stage, name), info.batch_size, (x,), in_dims
            ), 0
        # Channels are counted from the last axis.
        return Pruned.apply(x.movedim(in_dims[0], 0), call, stage, name), 0


class Kept(_Function):
    """What FF keeps of the weight, of another tensor of its shape: ``(x, weight, call)``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, call: Call) -> Tensor:
        return torch.where(_keeps(call, "FF", "weight", weight), x.detach(), 0)

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


def _keeps(call: Call, stage: str, name: str, x: Tensor) -> Tensor:
    return (traced.keeps if traced.wanted(x) else Call.keeps)(call, stage, name, x)


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
