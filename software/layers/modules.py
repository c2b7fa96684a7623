"""Layers whose products run on a device, forward and backward, under a sparse training scheme."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sat.devices.base import Device
from sat.devices.context import (
    ProductLog,
    ProductRecord,
    current_device,
    current_log,
    product_label,
)
from sat.devices.operand import RightOperand
from sat.devices.staged import StagedDevice, stages_name
from sat.layers.schemes import CONTRACTION, Scheme, get_scheme
from sat.offload.lowering import (
    POINT,
    Geometry,
    Phase,
    at_positions,
    backward_phases,
    every_phase,
    forward_taps,
    front,
    pad,
    place,
    windows,
)
from sat.sim.golden import sore
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE, Pattern

_PLAN = "_sat_plan"
_loss_scale: ContextVar[float] = ContextVar("sat_loss_scale", default=1.0)


@contextlib.contextmanager
def loss_scale(scale: float) -> Iterator[None]:
    """Say that the loss is multiplied by ``scale``; wrap ``backward`` in it.

    SR-STE adds a decay to the gradient of a weight; it has to grow with the loss, so that it is
    right after the gradient was divided by the scale. Other schemes do not care.
    """
    token = _loss_scale.set(scale)
    try:
        yield
    finally:
        _loss_scale.reset(token)


@dataclass(frozen=True)
class LayerPlan:
    """How a layer's products are taken.

    Parameters
    ----------
    name : str
        The layer's name in its model.
    scheme : Scheme
    pattern : Pattern
        ``DENSE``: no operand is pruned, whatever the scheme.
    device : Device or None
        Where products run outside any `sat.use_device`; None for the default golden device.
    """

    name: str
    scheme: Scheme
    pattern: Pattern
    device: Device | None


@dataclass(frozen=True, eq=False)
class _Operand:
    """An operand of a product by lanes, rows of A or columns of B: (lanes, kept) each.

    ``indices`` is None for a dense one; ``depth`` is the length of a lane before pruning. One that
    is used again is ``resident``: devices keep it, where it is the right one.
    """

    values: Tensor
    indices: Tensor | None
    depth: int
    pattern: Pattern
    resident: bool = False

    @functools.cached_property
    def right(self) -> RightOperand:
        """The operand as columns of B."""
        values = self.values.t().contiguous().numpy()
        if self.indices is None:
            return RightOperand.dense(values, resident=self.resident)
        indices = self.indices.t().contiguous().numpy()
        return RightOperand(values, indices, self.pattern, self.depth, self.resident)


@dataclass(frozen=True)
class _Copy:
    """FP16 copy of a weight, compact or dense, and the FP32 weight and plan that it is of.

    ``operands`` are those made of it so far, by what they take of the weight.
    """

    plan: LayerPlan
    source: Tensor
    values: Tensor
    indices: Tensor | None
    operands: dict[Any, _Operand] = field(default_factory=dict)

    def operand(self, part: Any, lanes: Callable[[Tensor], Tensor], depth: int) -> _Operand:
        """Return a part of the copy as an operand, the same one each time.

        Parameters
        ----------
        part : hashable
            Names the part.
        lanes : callable
            Takes values, and indices, to (lanes, kept).
        depth : int
            Length of a lane before pruning.
        """
        if part not in self.operands:
            indices = None if self.indices is None else lanes(self.indices)
            self.operands[part] = _Operand(
                lanes(self.values), indices, depth, self.plan.pattern, resident=True
            )
        return self.operands[part]


Copies = dict[tuple[str, int], _Copy]
"""By stage and group."""

# Apart from the modules, so that copying, pickling and saving one does not take them along.
_copies: WeakKeyDictionary[nn.Module, Copies] = WeakKeyDictionary()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


@dataclass(frozen=True)
class _Engine:
    """Takes the products of one layer: its plan, and the device and log of its forward pass."""

    plan: LayerPlan
    device: Device
    log: ProductLog | None
    copies: Copies = field(default_factory=dict)
    owner: nn.Module | None = None

    def weight(self, stage: str, group: int, w: Tensor, axes: dict[str, int]) -> _Copy:
        """Return a group's weight, pruned and rounded as by `operand`.

        It is the same copy as long as the weight is the same. So a weight is pruned once after
        each update and sent to a device once, however often it is used. Bits are compared, not
        version counters, which ``weight.data`` gets around.
        """
        held = self.copies.get((stage, group))
        now = w.detach()
        if held is not None and held.plan == self.plan and _same_bits(held.source, now):
            return held
        made = _Copy(self.plan, now.clone(), *self.operand(stage, "weight", w, axes))
        self.copies[stage, group] = made
        return made

    def compact(self, stage: str) -> bool:
        """Whether an operand of the stage is stored in N:M form."""
        prune = None if self.plan.pattern.dense else self.plan.scheme.prunes.get(stage)
        return prune is not None and prune.axes[-1] == CONTRACTION[stage]

    def operand(
        self, stage: str, name: str, x: Tensor, axes: dict[str, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Prune ``x`` as the scheme says, then round it to FP16.

        Parameters
        ----------
        stage, name : str
            As in `sat.layers.schemes`.
        x : float32
            The selection is made on these, before they are rounded.
        axes : dict
            Axis of the input channels ("in"), of the output channels ("out").

        Returns
        -------
        values : float16
            Stored values; all of them for a dense operand, masked ones +0.
        indices : uint8 or None
        """
        plan = self.plan
        prune = None if plan.pattern.dense else plan.scheme.pruning(stage, name)
        indices = None
        if prune is not None:
            array = x.detach().numpy()
            for axis in prune.axes:
                along = axes[axis]
                kept, places = plan.scheme.select(array, plan.pattern, along)
                if axis == CONTRACTION[stage] and axis == prune.axes[-1]:
                    array, indices = kept, torch.from_numpy(places)
                else:
                    n, m, length = plan.pattern.n, plan.pattern.m, array.shape[along]
                    array = sore.expand(kept, places, n, m, length, along)
            x = torch.from_numpy(array)
        return x.half(), indices

    def product(
        self, stage: str, left: _Operand, right: _Operand, start: Tensor | None = None
    ) -> Tensor:
        """Return (left lanes, right lanes) float32; ``start`` has one value per right lane."""
        if left.indices is not None:
            # The device takes a compact operand on its right: compute the transpose.
            if start is not None:
                start = start[:, None].expand(-1, len(left.values))
            return self._matmul(stage, right, left, start).t()
        return self._matmul(stage, left, right, start)

    def stages(
        self, layer: Layer, names: Sequence[str], tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run stages of the layer as one program and note it; None of them is a product."""
        device = self.device
        assert isinstance(device, StagedDevice), "only such a device is given layers"
        arrays = {name: t.detach().contiguous().numpy() for name, t in tensors.items()}
        results, run = device.stages(names, layer, arrays, owner=self.owner)
        if self.log is not None:
            self.log.records.append(
                ProductRecord(
                    self.plan.name,
                    stages_name(names),
                    layer.out_positions,
                    layer.out_channels,
                    layer.taps * layer.in_per_group,
                    self.plan.pattern,
                    device.name,
                    run,
                )
            )
        return {name: torch.from_numpy(array) for name, array in results.items()}

    def _matmul(self, stage: str, left: _Operand, right: _Operand, start: Tensor | None) -> Tensor:
        a = left.values.contiguous()
        with product_label(f"{self.plan.name or 'layer'} {stage}"):
            result = self.device.matmul(a, right.right, start)
        if self.log is not None:
            run = self.device.last_run
            assert run is not None, "a product that succeeded leaves its account"
            self.log.records.append(
                ProductRecord(
                    self.plan.name,
                    stage,
                    len(a),
                    len(right.values),
                    right.depth,
                    right.right.pattern,
                    self.device.name,
                    run,
                )
            )
        return result


def _widen(x: Tensor, channels: int) -> Tensor:
    """Return ``x`` with zeros behind its last axis, up to ``channels``."""
    extra = channels - x.shape[-1]
    return functional.pad(x, (0, extra)) if extra else x


class _Products(torch.autograd.Function):
    """The three products of a layer.

    Pictures are (batch, height, width, channels) float32, the weight is (out, kernel rows, kernel
    columns, in) float32: channels are fastest in all of them, and so in the depth of FF and BP.
    Groups of M lie at one position: where a kernel has several and M does not divide the
    channels, the channels are filled up with zeros, which lose every tie against real ones.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, engine: _Engine
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.engine = g, engine
        ctx.layer = layer = staged_layer(engine, g, x.shape, weight.shape, bias is not None)
        if layer is not None:
            tensors = {"x": x.half(), "w": weight}
            if bias is not None:
                tensors["bias"] = bias
            return engine.stages(layer, ("ff",), tensors)["y"].float()
        taps = forward_taps(g, x.shape[1:-1])
        reads = [[t] for t in taps]
        outs, ins = len(weight) // g.groups, weight.shape[-1]
        channels = _lane_channels(engine, "FF", g, ins)
        low = front(reads)
        parts = []
        for group in range(g.groups):
            x_part = _widen(x[..., group * ins : (group + 1) * ins], channels)
            w_part = _widen(weight[group * outs : (group + 1) * outs], channels)
            values, indices = engine.operand("FF", "input", pad(x_part, reads), {"in": -1})
            depth = g.taps * channels
            left = _Operand(
                windows(values, taps, low),
                None if indices is None else windows(indices, taps, low),
                depth,
                engine.plan.pattern,
            )
            copy = engine.weight("FF", group, w_part, {"out": 0, "in": -1})
            right = copy.operand("all", lambda x: x.flatten(1), depth)
            start = None if bias is None else bias[group * outs : (group + 1) * outs]
            parts.append(engine.product("FF", left, right, start))
        y = parts[0] if g.groups == 1 else torch.cat(parts, 1)
        return y.reshape(len(x), *(t.outputs for t in taps), len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g, engine = ctx.geometry, ctx.engine
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grad.float()
        if ctx.layer is not None and (needs_x or needs_weight):
            dx, dw = _staged_gradients(ctx.layer, engine, grad, x, weight, needs_x, needs_weight)
            return dx, dw, grad.sum((0, 1, 2)) if needs_bias else None, None, None
        dx = _input_gradient(engine, g, grad, weight, x.shape) if needs_x else None
        dw = _weight_gradient(engine, g, grad, x, weight) if needs_weight else None
        db = grad.sum((0, 1, 2)) if needs_bias else None
        return dx, dw, db, None, None


def staged_layer(
    engine: _Engine, g: Geometry, x: Sequence[int], weight: Sequence[int], bias: bool
) -> Layer | None:
    """Return the layer whose stages the device runs whole, or None if it is sent products.

    Whole stages prune weights, along the contraction, by magnitude; padding is the same on
    opposite sides.
    """
    device, plan = engine.device, engine.plan
    if not isinstance(device, StagedDevice):
        return None
    patterns = {"FF": (1, 1), "BP": (1, 1)}
    prunes = {} if plan.pattern.dense else plan.scheme.prunes
    for stage, prune in prunes.items():
        if prune.operand != "weight" or prune.axes != (CONTRACTION[stage],):
            return None
        patterns[stage] = (plan.pattern.n, plan.pattern.m)
    channels = {"FF": weight[3], "BP": weight[0] // g.groups}
    whole = all(channels[stage] % patterns[stage][1] == 0 for stage in patterns)
    even = all(low == high for low, high in g.padding)
    if not whole or not even or type(plan.scheme).select is not Scheme.select:
        return None
    layer = Layer(
        batch=x[0],
        lines=x[1],
        pixels=x[2],
        in_channels=x[3],
        out_channels=weight[0],
        kernel=cast(tuple[int, int], g.kernel),
        stride=cast(tuple[int, int], g.stride),
        padding=(g.padding[0][0], g.padding[1][0]),
        dilation=cast(tuple[int, int], g.dilation),
        groups=g.groups,
        ff=patterns["FF"],
        bp=patterns["BP"],
        bias=bias,
    )
    return layer if device.runs_layer(layer) else None


def _staged_gradients(
    layer: Layer,
    engine: _Engine,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return BP and WU, and the scheme's decay, from one program."""
    names = [name for name, needed in (("bp", needs_x), ("wu", needs_weight)) if needed]
    tensors = {"x": x.half(), "dy": grad.half(), "w": weight}
    made = engine.stages(layer, names, tensors)
    dw = made.get("g")
    if dw is not None:
        dw = _decayed(engine.plan, dw, weight)
    return made["dx"].float() if needs_x else None, dw


def _lanes_at(phases: Sequence[Phase], w: Tensor) -> Tensor:
    """Return what phases take of (lanes, *kernel, channels) as (lanes, kept)."""
    return at_positions(w, phases).flatten(1)


def _lane_channels(engine: _Engine, stage: str, g: Geometry, channels: int) -> int:
    """Return the channels at one position of a lane, filled up where groups would cross."""
    m = engine.plan.pattern.m
    return -(-channels // m) * m if engine.compact(stage) and g.taps > 1 else channels


def _input_gradient(
    engine: _Engine, g: Geometry, grad: Tensor, weight: Tensor, shape: torch.Size
) -> Tensor:
    """Return BP: (batch, height, width, in) float32."""
    phases = backward_phases(g, shape[1:-1])
    reads = [[phase.taps for phase in axis] for axis in phases]
    outs, ins = len(weight) // g.groups, weight.shape[-1]
    channels = _lane_channels(engine, "BP", g, outs)
    low = front(reads)
    dx = grad.new_zeros(shape)
    for group in range(g.groups):
        grad_part = _widen(grad[..., group * outs : (group + 1) * outs], channels)
        w_part = weight[group * outs : (group + 1) * outs].permute(3, 1, 2, 0)
        grad_values, grad_indices = engine.operand(
            "BP", "output_gradient", pad(grad_part, reads), {"out": -1}
        )
        copy = engine.weight("BP", group, _widen(w_part, channels), {"in": 0, "out": -1})
        dx_part = dx[..., group * ins : (group + 1) * ins]
        # Inputs that no phase reaches feed no output: their gradient is zero.
        for chosen in every_phase(phases):
            taps = [phase.taps for phase in chosen]
            depth = prod(t.count for t in taps) * channels
            left = _Operand(
                windows(grad_values, taps, low),
                None if grad_indices is None else windows(grad_indices, taps, low),
                depth,
                engine.plan.pattern,
            )
            positions = tuple(tuple(phase.positions) for phase in chosen)
            right = copy.operand(positions, functools.partial(_lanes_at, chosen), depth)
            target = place(dx_part, chosen, g.stride)
            target.copy_(engine.product("BP", left, right).reshape(target.shape))
    return dx


def _weight_gradient(
    engine: _Engine, g: Geometry, grad: Tensor, x: Tensor, weight: Tensor
) -> Tensor:
    """Return WU, and the scheme's decay: (out, kernel rows, kernel columns, in) float32."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    outs, ins = len(weight) // g.groups, weight.shape[-1]
    samples = prod(grad.shape[:-1])
    parts = []
    for group in range(g.groups):
        grad_part = grad[..., group * outs : (group + 1) * outs].reshape(samples, outs)
        values, _ = engine.operand("WU", "output_gradient", grad_part, {"out": -1})
        left = _Operand(values.t(), None, samples, DENSE)
        x_part = x[..., group * ins : (group + 1) * ins]
        values, _ = engine.operand("WU", "input", x_part, {"in": -1})
        right = _Operand(windows(pad(values, reads), taps, front(reads)).t(), None, samples, DENSE)
        parts.append(engine.product("WU", left, right).reshape(outs, *g.kernel, ins))
    dw = parts[0] if g.groups == 1 else torch.cat(parts)
    return _decayed(engine.plan, dw, weight)


def _decayed(plan: LayerPlan, dw: Tensor, weight: Tensor) -> Tensor:
    """Return WU with the scheme's decay of the weights that FF prunes (SR-STE)."""
    if plan.scheme.srste_lambda and not plan.pattern.dense:
        decay = plan.scheme.srste_lambda * _loss_scale.get()
        dw = dw + decay * (weight - _forward_pruned(plan, weight))
    return dw


def _forward_pruned(plan: LayerPlan, weight: Tensor) -> Tensor:
    """Return the FP32 weight (out, rows, columns, in) with what FF prunes set to zero."""
    array = weight.detach().numpy()
    n, m = plan.pattern.n, plan.pattern.m
    for axis in plan.scheme.prunes["FF"].axes:
        along = {"out": 0, "in": -1}[axis]
        kept, places = plan.scheme.select(array, plan.pattern, along)
        array = sore.expand(kept, places, n, m, array.shape[along], along)
    return torch.from_numpy(array)


def _engine(layer: nn.Module, x: Tensor, weight: Tensor) -> _Engine:
    """Return what takes the layer's products now; raise if its tensors are not fit for it."""
    plan: LayerPlan = getattr(layer, _PLAN)
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
    copies = _copies.setdefault(layer, {})
    return _Engine(plan, current_device(plan.device), current_log(), copies, layer)


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
        y = cast(Tensor, _Products.apply(x, weight, self.bias, POINT, engine))
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
        y = cast(Tensor, _Products.apply(x, weight, self.bias, g, engine)).permute(0, 3, 1, 2)
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
        if isinstance(module, (SatLinear, SatConv2d)) and hasattr(module, _PLAN)
    }


def staged_update_layer(module: nn.Module, device: Device) -> Layer | None:
    """Return what a weight update of a SAT layer needs to know of it, or None if it stays here."""
    plan: LayerPlan = getattr(module, _PLAN)
    assert isinstance(module, (SatLinear, SatConv2d))
    g = _conv_geometry(module) if isinstance(module, SatConv2d) else POINT
    weight = to_ohwi(module.weight).shape
    # The update does not depend on the pictures: any that the kernel fits will do.
    spans = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel, strict=True)]
    x = (1, *spans, weight[3] * g.groups)
    return staged_layer(_Engine(plan, device, None), g, x, weight, False)


def to_ohwi(weight: Tensor) -> Tensor:
    """Return a weight of a SAT layer as (out, kernel rows, kernel columns, in): a view."""
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight[:, None, None, :]


def from_ohwi(weight: Tensor, like: Tensor) -> Tensor:
    """Return (out, kernel rows, kernel columns, in) in the order of ``like``: a view."""
    return weight.permute(0, 3, 1, 2) if like.ndim == 4 else weight[:, 0, 0, :]


@dataclass(frozen=True)
class LayerReport:
    """What `sparsify_` decided about one layer.

    Parameters
    ----------
    name, kind : str
        Its name in the model, its class before.
    shape : tuple of int
        Shape of its weight; empty if it has none of its own.
    scheme, pattern : str
        What its products follow; ``"host"`` and ``"dense"`` if they stay in torch.
    reason : str
        Why.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    scheme: str
    pattern: str
    reason: str


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify_` decided about each layer; printed as a table."""

    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        head = ("layer", "kind", "weight", "scheme", "pattern", "reason")
        rows = [
            (r.name or "-", r.kind, "x".join(map(str, r.shape)) or "-", r.scheme, r.pattern)
            + (r.reason,)
            for r in self.layers
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        )


Filter = Callable[[str, nn.Module], bool | None]

_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SatLinear, nn.Conv2d: SatConv2d}
_ORIGINALS = {twin: original for original, twin in _TWINS.items()}
_WITH_PRODUCTS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


def sparsify_(
    module: nn.Module,
    scheme: str | Scheme = "bdwp",
    pattern: str | Pattern | None = "2:8",
    filter_fn: Filter | None = None,
    device: Device | None = None,
) -> SparsityReport:
    """Make the linear and convolution layers of a module compute on a device, sparse in training.

    The layers stay where they are and keep their parameters, names and hooks; optimizers and
    ``state_dict`` do not notice. All layers of class ``nn.Linear`` and ``nn.Conv2d`` run on the
    device. Sparse are those whose input and output channels (per group) M divides, unless
    ``filter_fn`` decides. Called again, it replaces the earlier decision. `desparsify_` undoes it.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    scheme : str or Scheme
        ``"dense"``, ``"bdwp"``, ``"srste"``, ``"sdgp"``, ``"sdwp"``, or your own.
    pattern : str or Pattern or None
        Such as ``"2:8"``.
    filter_fn : callable, optional
        ``filter_fn(name, layer)`` returns True to make a layer sparse, False to keep it dense,
        None to leave it to the rule.
    device : Device, optional
        Where products run outside any `sat.use_device`; a golden device if not given.

    Returns
    -------
    SparsityReport
        One row a layer, also for layers whose products stay in torch.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If there is no such scheme or pattern, nothing to convert, or a convolution pads with
        something else than zeros. The module is then as before.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module is a {type(module).__name__}: must be an nn.Module; to prune a tensor use "
            "sat.prune"
        )
    if device is not None and not isinstance(device, Device):
        raise TypeError(
            f"device is a {type(device).__name__}: must be a Device; make one with "
            "sat.device('golden')"
        )
    chosen, wanted = get_scheme(scheme), Pattern.parse(pattern)
    rows: list[LayerReport] = []
    changes: list[tuple[nn.Module, LayerPlan]] = []
    for name, layer in module.named_modules():
        kind = _ORIGINALS.get(type(layer), type(layer))
        shape = tuple(getattr(layer, "weight", torch.empty(())).shape)
        if kind not in _TWINS:
            if isinstance(layer, _WITH_PRODUCTS):
                reason = f"no SAT layer for class {kind.__name__}"
                rows.append(LayerReport(name, kind.__name__, shape, "host", "dense", reason))
            continue
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(
                f"layer {name!r} has padding_mode={layer.padding_mode!r}: SAT pads with zeros; "
                "pad in a layer of its own, such as nn.ReflectionPad2d"
            )
        sparse, reason = _decide(name, layer, chosen, wanted, filter_fn)
        plan = LayerPlan(name, chosen, wanted if sparse else DENSE, device)
        changes.append((layer, plan))
        shown = chosen.name if sparse else "dense"
        rows.append(LayerReport(name, kind.__name__, shape, shown, str(plan.pattern), reason))
    if not changes:
        raise ValueError(
            f"module {type(module).__name__} has no layer of class nn.Linear or nn.Conv2d: there "
            "is nothing to sparsify; give a module that has one"
        )
    for layer, plan in changes:
        layer.__class__ = _TWINS.get(type(layer), type(layer))
        setattr(layer, _PLAN, plan)
    return SparsityReport(tuple(rows))


def _decide(
    name: str, layer: nn.Module, scheme: Scheme, pattern: Pattern, filter_fn: Filter | None
) -> tuple[bool, str]:
    """Return whether a layer is sparse, and why."""
    if pattern.dense or not scheme.prunes:
        return False, "asked for" if pattern.dense else f"scheme {scheme.name} prunes nothing"
    verdict = None if filter_fn is None else filter_fn(name, layer)
    if verdict is not None:
        if not isinstance(verdict, bool):
            raise TypeError(
                f"filter_fn returned {verdict!r} for layer {name!r}: must be True (sparse), False "
                "(dense) or None (by the rule)"
            )
        return verdict, "filter_fn"
    if isinstance(layer, nn.Linear):
        channels = {"in_features": layer.in_features, "out_features": layer.out_features}
    else:
        conv = cast(nn.Conv2d, layer)
        per_group = "" if conv.groups == 1 else " per group"
        channels = {
            f"in_channels{per_group}": conv.in_channels // conv.groups,
            f"out_channels{per_group}": conv.out_channels // conv.groups,
        }
    for what, count in channels.items():
        if count % pattern.m:
            return False, f"{what} {count} is no multiple of {pattern.m}"
    return True, f"channels are multiples of {pattern.m}"


def desparsify_(module: nn.Module) -> nn.Module:
    """Undo `sparsify_`: the layers are plain torch layers again, with their dense masters.

    Parameters
    ----------
    module : nn.Module
        Changed in place; layers that were not sparsified stay as they are.

    Returns
    -------
    nn.Module
        ``module``.

    Raises
    ------
    TypeError
        If it is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}: must be an nn.Module")
    for layer in module.modules():
        if type(layer) in _ORIGINALS:
            layer.__class__ = _ORIGINALS[type(layer)]
            _copies.pop(layer, None)
            delattr(layer, _PLAN)
    return module
