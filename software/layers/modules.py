"""Layers whose products run on a device, forward and backward, under a sparse training scheme."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, fx, nested, nn
from torch._C._dynamo import eval_frame

from sat.devices.base import Device
from sat.devices.context import current_device, current_log
from sat.devices.use import watchers
from sat.layers import traced
from sat.layers.autograd import Forward
from sat.layers.call import Call
from sat.layers.engine import COPIES, Engine
from sat.layers.plan import PLAN, LayerPlan
from sat.layers.products import to_ohwi
from sat.layers.schemes import Scheme
from sat.layers.staged import staged_layer
from sat.offload.lowering import POINT, Geometry
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE, Pattern, Patterns

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CALL = nn.Module._call_impl.__code__


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function one that torch.compile leaves to Python, with all that it calls.

    As ``torch.compiler.disable`` would, but that takes seconds to import and time in each call.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        "a SAT layer's products run on a device: compile without fullgraph, export with "
        "strict=False, or sat.desparsify_(model) first"
    )
    skip = eval_frame._FrameAction.SKIP
    strategy = eval_frame._FrameExecStrategy(skip, skip)
    eval_frame.set_code_exec_strategy(function.__code__, strategy)
    return function


def unfused(layer: nn.Module, inputs: Any) -> None:
    """Do nothing: with a hook on a layer, torch calls it.

    Its fused kernels for encoder layers, which take weights past the layers that have them, are for
    modules without hooks.
    """


class SatLayer(nn.Module):
    """What the SAT layers share: how they meet tracers, and that they see who reads the weight."""

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not torch.compiler.is_compiling():
            self._note_read()
        return super().__getattr__(name)

    def __prepare_scriptable__(self) -> None:
        plan: LayerPlan = getattr(self, PLAN)
        raise TypeError(
            f"layer {plan.name!r} cannot be scripted: a SAT layer's products run on a device; use "
            "torch.jit.trace, torch.export or torch.compile, or sat.desparsify_(model) first"
        )

    def _own_weight(self) -> Tensor:
        """Return the weight, noted as used; made anew where it is parametrized."""
        plan: LayerPlan = getattr(self, PLAN)
        plan.family.called.add(plan.name)
        for watcher in watchers():
            watcher.note_call(plan.family, plan.name)
        weight = self._parameters.get("weight")
        return cast(Tensor, self.weight) if weight is None else weight

    def _note_read(self) -> None:
        """Note that somebody else reads the weight; warn if it is read instead of the layer called.

        A reader may want no more than the type. So the warning waits for the same place to read
        again, inside a module's forward pass, with the layer never called in between.
        """
        plan: LayerPlan | None = self.__dict__.get(PLAN)
        if plan is None:
            return
        family, name, watching = plan.family, plan.name, watchers()
        called = name in family.called
        if called and not watching:
            return
        frame = sys._getframe(2)
        code = frame.f_code
        place = f"{code.co_qualname}, {Path(code.co_filename).name}:{frame.f_lineno}"
        for watcher in watching:
            watcher.note_read(family, name, place)
        if called or family.reads.get(name) == _WARNED or not _in_forward(frame):
            return
        here = (code.co_filename, code.co_firstlineno, frame.f_lasti)
        if family.reads.get(name) != here:
            family.reads[name] = here
            return
        family.reads[name] = _WARNED
        warnings.warn(
            f"SAT layer {name!r} has never been called, but {place} reads its weight in a forward "
            "pass: what is computed with it is dense and not the layer's. Call the layer, or leave "
            "it out with filter_fn of sat.sparsify_",
            stacklevel=3,
        )


_WARNED = "warned"


def _in_forward(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _CALL:
        frame = frame.f_back
    return frame is not None


def _traced_as_leaf(layer: nn.Module, x: Any) -> Any:
    """Return what stands for the layer's result in a graph of `torch.fx` that is being traced."""
    if not isinstance(x, fx.Proxy):
        raise TypeError(
            f"layer {getattr(layer, PLAN).name!r}: input is a {type(x).__name__}: must be a "
            "torch.Tensor; convert with torch.as_tensor"
        )
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), (x,), {})


def _call(layer: nn.Module, x: Tensor, weight: Tensor, g: Geometry, pictures: bool) -> Call:
    """Return what takes the layer's products now; raise if its tensors are not fit for it."""
    plan = _plan(layer)
    where = f"layer {plan.name!r}: " if plan.name else ""
    if x.is_nested:
        raise TypeError(
            f"{where}input is a nested tensor: a convolution's pictures are of one size; call the "
            "layer for each part"
        )
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


class SatLinear(SatLayer, nn.Linear):
    """A linear layer whose products run on a device; made by `sparsify_`.

    FF is ``x · W_fᵀ + bias`` (the bias starts the sums), BP ``dy · W_b``, WU ``dyᵀ · x``, where
    W_f and W_b are the weights as the scheme prunes them. Operands are rounded to FP16 and then
    pruned, sums are FP32; outputs and gradients of inputs are rounded to FP16, as the device stores
    them, masters and their gradients stay FP32.
    """

    @_uncompiled
    def forward(self, input: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features) of any floating point.

        The result has the weight's type, float32, or autocast's; its values are those of float16.
        """
        if not isinstance(input, Tensor):
            return cast(Tensor, _traced_as_leaf(self, input))
        if input.is_nested:
            return self._nested(input)
        weight = self._own_weight()
        call = _call(self, input, weight, POINT, False)
        if torch.jit.is_tracing():
            return traced.output(call, input, weight, self.bias)
        if input.ndim < 1 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"layer {call.engine.plan.name!r}: input has shape {tuple(input.shape)}: its last "
                f"axis must be in_features, {self.in_features}; reshape it"
            )
        return cast(Tensor, Forward.apply(input, weight, self.bias, call))

    def _nested(self, input: Tensor) -> Tensor:
        """Return a nested tensor of the results for all its parts, computed as one product."""
        if input.layout is torch.jagged:
            made = self(input.values())
            jagged: Any = input
            offsets, lengths = jagged.offsets(), jagged.lengths()
            return nested.nested_tensor_from_jagged(made, offsets, lengths)
        parts = [part.flatten(0, -2) for part in input.unbind()]
        rows = self(torch.cat(parts)).split([len(part) for part in parts])
        shapes = [(*part.shape[:-1], self.out_features) for part in input.unbind()]
        made = [part.reshape(shape) for part, shape in zip(rows, shapes, strict=True)]
        return nested.as_nested_tensor(made)


class SatConv2d(SatLayer, nn.Conv2d):
    """A convolution whose products run on a device; made by `sparsify_`.

    As `SatLinear`, after im2col on the host with the depth in the order (kernel row, kernel
    column, channel). BP is the convolution of the output's gradient with the turned kernel, one
    for each phase of the stride, so that no zeros are multiplied.
    """

    @_uncompiled
    def forward(self, input: Tensor) -> Tensor:
        """Return (batch, out, height, width), or without batch, as ``nn.Conv2d``.

        Types as of `SatLinear`, memory format as of ``nn.Conv2d``.
        """
        if not isinstance(input, Tensor):
            return cast(Tensor, _traced_as_leaf(self, input))
        weight, g = self._own_weight(), _conv_geometry(self)
        call = _call(self, input, weight, g, True)
        name = call.engine.plan.name
        if torch.jit.is_tracing():
            return traced.output(call, input, weight, self.bias)
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


class SatLazyLinear(SatLayer, nn.LazyLinear):
    """An ``nn.LazyLinear`` that its first input makes a `SatLinear`."""

    cls_to_become = SatLinear
    forward = SatLinear.forward


class SatLazyConv2d(SatLayer, nn.LazyConv2d):  # type: ignore[misc]
    """An ``nn.LazyConv2d`` that its first input makes a `SatConv2d`."""

    cls_to_become = SatConv2d
    forward = SatConv2d.forward


def channel_group(scheme: Scheme, patterns: Patterns) -> Pattern:
    """Return the widest of the patterns along channels; positions of a batch may be any number."""
    along_channels = [
        patterns.of(stage)
        for stage, prune in scheme.prunes.items()
        if any(axis != "batch" for axis in prune.axes)
    ]
    return max(along_channels, key=lambda pattern: pattern.m, default=DENSE)


def channel_rule(layer: nn.Module, scheme: Scheme, patterns: Patterns) -> tuple[bool, str]:
    """Return whether a layer is sparse if nobody decides otherwise, and why."""
    if isinstance(layer, nn.Linear):
        channels = {"in_features": layer.in_features, "out_features": layer.out_features}
    else:
        conv = cast(nn.Conv2d, layer)
        per_group = "" if conv.groups == 1 else " per group"
        channels = {
            f"in_channels{per_group}": conv.in_channels // conv.groups,
            f"out_channels{per_group}": conv.out_channels // conv.groups,
        }
    return channel_group(scheme, patterns).fits(channels)


def _plan(layer: nn.Module) -> LayerPlan:
    """Return a layer's plan; that of a layer that was lazy is decided now."""
    plan: LayerPlan = getattr(layer, PLAN)
    if plan.undecided:
        sparse, _ = channel_rule(layer, plan.scheme, plan.patterns)
        patterns = plan.patterns if sparse else Patterns.parse(DENSE)
        plan = replace(plan, patterns=patterns, undecided=False)
        setattr(layer, PLAN, plan)
    return plan


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
    """Return the SAT layer of each weight of a model; not of those that are parametrized."""
    return {
        weight: module
        for module in model.modules()
        if isinstance(module, SatLayer) and (weight := module._parameters.get("weight")) is not None
    }


def staged_update_layer(module: nn.Module, device: Device) -> Layer | None:
    """Return what a weight update of a SAT layer needs to know of it, or None if it stays here."""
    plan: LayerPlan = getattr(module, PLAN)
    assert isinstance(module, SatLayer)
    weight = cast(Tensor, module._parameters["weight"])
    g = _conv_geometry(module) if isinstance(module, SatConv2d) else POINT
    if weight.dtype is not torch.float32:
        return None
    lanes = to_ohwi(weight).shape
    # The update does not depend on the pictures: any that the kernel fits will do.
    spans = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel, strict=True)]
    x = (1, *spans, lanes[3] * g.groups)
    return staged_layer(Engine(plan, device, None), g, x, lanes, False)
