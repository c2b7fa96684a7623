"""Products of layers as operators that tracers take whole: export, make_fx, jit.trace, linearize.

A tracer sees operators, not what is computed inside them. While one looks on, layers go through
these; an operator names its `Call` by a number, so a graph runs only in the process that traced it,
on the device of that time.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from sat.layers.call import Call, Pair

_TRACERS = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)
_calls: dict[int, Call] = {}
_alike: dict[tuple[object, ...], int] = {}
_numbers = itertools.count()


def wanted(x: Tensor) -> bool:
    """Return whether a tracer looks on at what happens to a tensor."""
    return (
        isinstance(x, (FakeTensor, FunctionalTensor))
        or torch.jit.is_tracing()
        or any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)
    )


def output(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `Call.output`."""
    return _output(x, weight, bias, _number(call))


def gradients(
    call: Call, dy: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
) -> Pair:
    """Return `Call.gradients`."""
    made = iter(_gradients(dy, x, weight, _number(call), needs_x, needs_weight))
    return next(made) if needs_x else None, next(made) if needs_weight else None


def keeps(call: Call, stage: str, name: str, x: Tensor) -> Tensor:
    """Return `Call.keeps`."""
    return _keeps(x, stage, name, _number(call))


def _number(call: Call) -> int:
    """Return a number for a call; the same one for calls that are alike, as `torch.jit` checks."""
    engine = call.engine
    parts = (engine.owner, engine.plan, engine.device, engine.log)
    like = (*map(id, parts), call.geometry, call.pictures, call.result)
    if like not in _alike:
        _alike[like] = next(_numbers)
        _calls[_alike[like]] = call  # which keeps the parts, and so their ids
    return _alike[like]


def _call(number: int) -> Call:
    if number not in _calls:
        raise RuntimeError(
            f"call {number} of a SAT layer: there is none, for the graph was traced in another "
            "process; trace the model anew here, or sat.desparsify_ it before tracing"
        )
    return _calls[number]


@torch.library.custom_op("sat::output", mutates_args=())
def _output(x: Tensor, weight: Tensor, bias: Tensor | None, call: int) -> Tensor:
    return _call(call).output(x, weight, bias)


@_output.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, call: int) -> Tensor:
    return _call(call).empty_output(x, weight)


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.call = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = None if bias is None else bias.dtype


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    call = _call(ctx.call)
    dx, dw = gradients(call, dy, x, weight, needs_x, needs_weight)
    return dx, dw, call.bias_gradient(dy, ctx.bias) if needs_bias else None, None


_output.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op("sat::gradients", mutates_args=())
def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, call: int, needs_x: bool, needs_weight: bool
) -> list[Tensor]:
    made = _call(call).gradients(dy, x, weight, needs_x, needs_weight)
    return [part for part in made if part is not None]


@_gradients.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, call: int, needs_x: bool, needs_weight: bool
) -> list[Tensor]:
    made = []
    if needs_x:
        made.append(_call(call).empty_gradient(x, weight))
    if needs_weight:
        made.append(_call(call).empty_weight_gradient(x, weight))
    return made


@torch.library.custom_op("sat::keeps", mutates_args=())
def _keeps(x: Tensor, stage: str, name: str, call: int) -> Tensor:
    return _call(call).keeps(stage, name, x)


@_keeps.register_fake
def _(x: Tensor, stage: str, name: str, call: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)
