"""Layers whose weights are signs and whose inputs are integer codes.

y = step (a1 (B1 q) + a2 (B2 q)) + b: the products are of integers, exact wherever operands have 11
bits and sums 24; scales are applied to what they give. Full precision until `binary` is set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

import sat
from sat.methods.binarydm.binarize import (
    code_range,
    initial_scales,
    initial_step,
    quantize,
    scale_gradient,
    weight_signs,
)

ACT_SCALES = ("dynamic", "learned")


class BinaryLayer(nn.Module, ABC):
    """What binary layers have in common; beside a layer of torch, whose weight is the latent one.

    Attributes
    ----------
    binary : bool
        Whether products are binary. Scales start at the first binary pass, from what the weights
        are then.
    bases, act_bits, act_scale
        As given to `from_float`.
    alpha1, alpha2 : nn.Parameter
        (out, 1, ...) scales; the second None with one basis.
    step : nn.Parameter or None
        Between codes, where it is learned.
    mask : torch.Tensor or None
        1 for weights that an N:M pattern keeps.
    """

    weight: Tensor
    bias: Any  # a parameter or None; layers of torch type it each in its own way
    alpha1: nn.Parameter
    alpha2: nn.Parameter | None
    step: nn.Parameter | None
    mask: Tensor | None
    bases: int
    act_bits: int | None
    act_scale: str
    binary: bool
    started: Tensor

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        bases: int = 1,
        act_bits: int | None = 4,
        act_scale: str = "dynamic",
        pattern: str | None = None,
    ) -> Self:
        """Return a binary layer with a layer's weights and bias.

        Parameters
        ----------
        layer : nn.Linear, nn.Conv1d or nn.Conv2d
            Its parameters are copied.
        bases : {1, 2}
        act_bits : int or None
            From 2 to 8; None leaves inputs as they are.
        act_scale : {"dynamic", "learned"}
            The step between codes: 2 mean|x| / sqrt(Qp) of each batch, as the released code has
            it, or a parameter that starts there.
        pattern : str, optional
            N:M along the inputs: the smaller weights of each group are 0, for good.

        Raises
        ------
        ValueError
            If an argument breaks its rule, or a row of weights is all zeros.
        FloatingPointError
            If a weight is not finite.
        """
        if bases not in (1, 2):
            raise ValueError(f"bases={bases!r}: must be 1 or 2")
        if act_bits is not None and act_bits not in range(2, 9):
            raise ValueError(f"act_bits={act_bits!r}: must be from 2 to 8, or None for floats")
        if act_scale not in ACT_SCALES:
            raise ValueError(f"act_scale={act_scale!r}: must be one of {', '.join(ACT_SCALES)}")
        made = cls._like(layer)
        made.load_state_dict(layer.state_dict())
        made.bases, made.act_bits, made.act_scale = bases, act_bits, act_scale
        made.binary = True
        mask = None
        if pattern is not None:
            kept = sat.prune(made.weight.detach(), pattern, axis=1).to_dense()
            mask = (torch.as_tensor(kept) != 0).to(made.weight.dtype)
        made.register_buffer("mask", mask)
        alpha1, alpha2 = initial_scales(made.weight, bases, mask)
        made.alpha1 = nn.Parameter(alpha1)
        made.alpha2 = None if alpha2 is None else nn.Parameter(alpha2)
        learned = act_bits is not None and act_scale == "learned"
        made.step = nn.Parameter(torch.ones((), dtype=alpha1.dtype)) if learned else None
        made.register_buffer("started", torch.tensor(False))
        return made

    @classmethod
    @abstractmethod
    def _like(cls, layer: nn.Module) -> Self:
        """Return a layer of the same sizes."""

    @abstractmethod
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's product, without its bias."""

    @abstractmethod
    def _outputs(self, x: Tensor) -> Tensor:
        """Return numbers of output channels, in the shape that spreads over outputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of x, binary or not.

        Raises
        ------
        FloatingPointError
            If a latent weight is not finite.
        ValueError
            If a row of them is all zeros at the first binary pass.
        """
        if self.binary:
            if not bool(self.started):
                self._start(x)
            q, step = self._codes(x)
            signs = self._signs()
            out = self._outputs(self.alpha1) * self._product(q, signs[0])
            if self.alpha2 is not None:
                out = out + self._outputs(self.alpha2) * self._product(q, signs[1])
            out = out if step is None else step * out
        else:
            out = self._product(x, self.weight)
        return out if self.bias is None else out + self._outputs(self.bias)

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return codes q of x, the step, and signs B1 and B2 (or None); int8 but the step.

        Raises
        ------
        ValueError
            If inputs are not quantised.
        FloatingPointError
            If an input is not finite: integers would hide it.
        """
        if not bool(x.isfinite().all()):
            raise FloatingPointError(
                f"inputs {tuple(x.shape)} have infinities or NaNs: must be finite to have codes"
            )
        if not bool(self.started):
            self._start(x)
        q, step = self._codes(x)
        if step is None:
            raise ValueError("act_bits=None: must be from 2 to 8 for x to have codes")
        first, *second = (signs.to(torch.int8) for signs in self._signs())
        return q.to(torch.int8), step, first, second[0] if second else None

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        alpha1, alpha2 = initial_scales(self.weight, self.bases, self.mask)
        self.alpha1.copy_(alpha1)
        if self.alpha2 is not None and alpha2 is not None:
            self.alpha2.copy_(alpha2)
        if self.step is not None and self.act_bits is not None:
            self.step.copy_(initial_step(x, self.act_bits))
        self.started.fill_(True)

    def _signs(self) -> tuple[Tensor, ...]:
        signs = weight_signs(self.weight, self.alpha1, self.alpha2 is not None)
        return signs if self.mask is None else tuple(self.mask * each for each in signs)

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.act_bits is None:
            return x, None
        if self.step is None:
            step = initial_step(x, self.act_bits)
        else:
            factor = 1 / math.sqrt(x.numel() * code_range(self.act_bits)[1])
            least = torch.finfo(x.dtype).tiny
            step = scale_gradient(self.step, factor).clamp(min=least)
        return quantize(x, step, self.act_bits), step


class BinaryLinear(BinaryLayer, nn.Linear):
    """`BinaryLayer` beside nn.Linear."""

    @classmethod
    def _like(cls, layer: nn.Module) -> Self:
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"layer is a {type(layer).__name__}: must be an nn.Linear")
        return cls(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            dtype=layer.weight.dtype,
        )

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)

    def _outputs(self, x: Tensor) -> Tensor:
        return x.flatten()


class _BinaryConv(BinaryLayer):
    """What convolutions have in common."""

    @classmethod
    def _like(cls, layer: nn.Module) -> Self:
        kind = next(base for base in cls.__mro__ if base in (nn.Conv1d, nn.Conv2d))
        if not isinstance(layer, kind):
            raise ValueError(f"layer is a {type(layer).__name__}: must be an nn.{kind.__name__}")
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        options: dict[str, Any] = {name: getattr(layer, name) for name in names}
        options |= {"bias": layer.bias is not None, "dtype": layer.weight.dtype}
        return cls(layer.in_channels, layer.out_channels, **options)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, weight, None)  # type: ignore[operator]
        return out

    def _outputs(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *(1,) * (self.weight.ndim - 2))


class BinaryConv1d(_BinaryConv, nn.Conv1d):
    """`BinaryLayer` beside nn.Conv1d; groups have scales of their own outputs."""


class BinaryConv2d(_BinaryConv, nn.Conv2d):
    """`BinaryLayer` beside nn.Conv2d; groups have scales of their own outputs."""
