"""One call of a layer: tensors laid out for its products, results laid out as torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.arrays import array_of
from sat.layers import products
from sat.layers.engine import Engine, kept
from sat.layers.plan import current_loss_scale
from sat.layers.products import from_ohwi, to_ohwi
from sat.layers.staged import staged_gradients, staged_layer
from sat.offload.lowering import Geometry, result_format
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE, Patterns

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
        plan = replace(self.engine.plan, patterns=Patterns.parse(DENSE))
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
            return self.empty_output(x, weight).copy_(made.half())
        pictures, lanes = self.engine.rounded(self._last(x)), to_ohwi(weight)
        start = None if bias is None else bias.float()
        layer = self._staged(x, weight, bias is not None)
        if layer is not None:
            tensors = {"x": pictures, "w": lanes.float()}
            if start is not None:
                tensors["bias"] = start
            y = self.engine.stages(layer, ("ff",), tensors)["y"]
        else:
            y = products.output(self.engine, self.geometry, pictures, lanes, start).half()
        return self.empty_output(x, weight).copy_(self._first(y, shape))

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool
    ) -> Pair:
        """Return BP, each value one of float16, and WU with the scheme's decay, if wanted."""
        g, engine = self.geometry, self.engine
        lanes = to_ohwi(weight)
        if 0 in (*dy.shape, *x.shape, *weight.shape):
            dx = torch.zeros(x.shape) if needs_x else None
            dw = torch.zeros(lanes.shape) if needs_weight else None
            return dx if dx is None else dx.to(x.dtype), self._weight_gradient(dw, x, weight)
        pictures, grad = engine.rounded(self._last(x)), engine.rounded(self._last(dy))
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
            dx = self.empty_gradient(x, weight).copy_(self._first(dx.half(), x.shape))
        return dx, self._weight_gradient(dw, x, weight)

    @property
    def decay(self) -> float:
        """Factor of the scheme's decay of the weights that FF prunes (SR-STE), or 0."""
        plan = self.engine.plan
        if plan.pruning("FF") is None:
            return 0.0
        return plan.scheme.srste_lambda * current_loss_scale()

    def keeps(self, stage: str, name: str, x: Tensor) -> Tensor:
        """Return which elements of an operand a stage keeps: bool; more axes may stand in front."""
        plan, array = self.engine.plan, array_of(x.detach().half())
        prune = plan.pruning(stage, name)
        assert prune is not None
        if plan.scheme.draws:
            raise RuntimeError(
                f"scheme {plan.scheme.name!r} draws what {stage} keeps: no other product can take "
                "the same; use a scheme that prunes by magnitude for higher derivatives"
            )
        mask = np.ones(array.shape, bool)
        for channels in prune.axes:
            if channels == "batch":
                mask &= self._kept_positions(stage, np.where(mask, array, np.float16(0)))
                continue
            axis = self._axis(name, channels) + array.ndim
            # Groups of M do not reach from one group of a convolution into the next.
            count = 1 if (name, channels) == ("weight", "in") else self.geometry.groups
            cut = (*array.shape[:axis], count, -1, *array.shape[axis + 1 :])
            seen = np.where(mask, array, np.float16(0)).reshape(cut)
            mask &= kept(plan, stage, seen, axis + 1).reshape(array.shape)
        return torch.from_numpy(mask)

    def _kept_positions(self, stage: str, x: NDArray[np.float16]) -> NDArray[np.bool_]:
        """Return what a stage keeps of each channel along the positions of the batch."""
        last = np.moveaxis(x, self._axis("output_gradient", "out"), -1)
        flat = last.reshape(-1, last.shape[-1])
        made = kept(self.engine.plan, stage, flat, 0).reshape(last.shape)
        return np.moveaxis(made, -1, self._axis("output_gradient", "out"))

    def prunes(self, stage: str, name: str) -> bool:
        """Return whether a stage prunes an operand."""
        return self.engine.plan.pruning(stage, name) is not None

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

    def empty_output(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return a tensor for FF, no view, laid out as torch's layer would have it."""
        return self._empty(self._output_shape(x, len(weight)), self.result, x, weight)

    def empty_gradient(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return a tensor for BP, laid out as torch's layer would have it."""
        return self._empty(x.shape, x.dtype, x, weight)

    def empty_weight_gradient(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return a tensor for WU, laid out as torch's layer would have it."""
        return self._empty(weight.shape, weight.dtype, x, weight)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype, x: Tensor, weight: Tensor) -> Tensor:
        if not self.pictures:
            return x.new_empty(shape, dtype=dtype)
        layout = result_format(x if x.ndim == 4 else x[None], weight)
        full = torch.empty((1,) * (4 - len(shape)) + tuple(shape), device="meta", dtype=dtype)
        strides = torch.empty_like(full, memory_format=layout).stride()
        return x.new_empty_strided(tuple(shape), strides[-len(shape) :], dtype=dtype)

    def _weight_gradient(self, dw: Tensor | None, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return WU, with the scheme's decay, in the layout and type of the weight."""
        if dw is None:
            return None
        made = from_ohwi(dw, weight)
        if self.decay and weight.numel():
            lost = torch.where(self.keeps("FF", "weight", weight), 0, weight.detach())
            made = made + self.decay * lost
        return self.empty_weight_gradient(x, weight).copy_(made)
