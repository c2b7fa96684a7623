"""Values with their first and second derivatives along directions, through networks of tanh.

Forward mode of order two: a product of a layer takes all streams of all points at once, so that it
is one matrix product, and one N:M mask serves every stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts


@dataclass(frozen=True)
class Jet:
    """Values of some channels at points, with derivatives along directions.

    Parameters
    ----------
    value : torch.Tensor
        (points, channels).
    first : torch.Tensor
        (directions, points, channels); axes of size 1 stand for what is the same everywhere.
    second : torch.Tensor
        (seconds, points, channels), twice along each of the first ``seconds`` directions; the
        others have no second derivative here.
    """

    value: Tensor
    first: Tensor
    second: Tensor

    def __add__(self, other: Jet) -> Jet:
        return Jet(self.value + other.value, self.first + other.first, self.second + other.second)

    def __mul__(self, other: Jet) -> Jet:
        """Return the product, channel by channel, by the product rule."""
        n = len(self.second)
        cross = 2 * self.first[:n] * other.first[:n]
        return Jet(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            self.second * other.value + cross + self.value * other.second,
        )

    def through(self, value: Tensor, slope: Tensor, curvature: Tensor) -> Jet:
        """Return a function of each channel: its value, f' and f'' there (points, channels)."""
        # Split, not sliced: the gradient of a slice is as large as the whole.
        n = len(self.second)
        bent, _ = self.first.split([n, len(self.first) - n])
        return Jet(value, slope * self.first, slope * self.second + curvature * bent.square())

    def tanh(self) -> Jet:
        """Return the hyperbolic tangent of each channel."""
        a = self.value.tanh()
        slope = 1 - a.square()
        return self.through(a, slope, -2 * a * slope)

    def linear(self, layer: nn.Module, bias: Tensor) -> Jet:
        """Return a linear layer (without bias) of all streams, as one product.

        Parameters
        ----------
        layer : nn.Module
            (rows, channels) to (rows, outputs).
        bias : torch.Tensor
            (outputs,), which only values get.
        """
        streams = (self.value, self.first, self.second)
        rows = layer(torch.cat([s.flatten(0, -2) for s in streams]))
        parts = rows.split([s.shape[:-1].numel() for s in streams])
        value, first, second = (
            part.view(*s.shape[:-1], -1) for part, s in zip(parts, streams, strict=True)
        )
        return Jet(value + bias, first, second)


class JetMLP(nn.Module):
    """A multilayer perceptron of tanh, with its derivatives as products.

    Initialised as ``nn.Linear`` does.

    Parameters
    ----------
    widths : sequence of int
        Inputs, hidden widths, outputs.

    Raises
    ------
    ValueError
        If there are fewer than two widths, or one is no positive int.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths={list(widths)}: must be inputs, hidden widths and outputs")
        for width in widths:
            require_counts(widths=width)
        self.layers, self.biases = nn.ModuleList(), nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            layer = nn.Linear(inputs, outputs)
            self.biases.append(layer.bias)
            layer.bias = None  # type: ignore[assignment]
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return (points, outputs) for x (points, inputs)."""
        *hidden, (layer, bias) = zip(self.layers, self.biases, strict=True)
        for inner, inner_bias in hidden:
            x = (inner(x) + inner_bias).tanh()
        out: Tensor = layer(x) + bias
        return out

    def jet(self, x: Jet) -> Jet:
        """Return outputs and their derivatives for inputs with theirs."""
        return self._after_first(x.linear(self.layers[0], self.biases[0]))

    def along(self, x: Tensor, axes: Tensor, seconds: int) -> Jet:
        """Return outputs, differentiated along axes of the input.

        Parameters
        ----------
        x : torch.Tensor
            (points, inputs).
        axes : torch.Tensor
            (directions,) int64.
        seconds : int
            Along how many of them, from the first, to differentiate twice.
        """
        layer = self.layers[0]
        if type(layer) is nn.Linear:
            value, columns = layer(x), layer.weight.T[axes]
        else:
            # A pruned weight is the layer's own affair: unit vectors make it give its columns.
            unit = x.new_zeros(len(axes), x.shape[1])
            unit[torch.arange(len(axes)), axes] = 1
            value, columns = layer(torch.cat([x, unit])).split([len(x), len(axes)])
        zeros = x.new_zeros(seconds, 1, 1)
        return self._after_first(Jet(value + self.biases[0], columns[:, None], zeros))

    def _after_first(self, jet: Jet) -> Jet:
        for layer, bias in list(zip(self.layers, self.biases, strict=True))[1:]:
            jet = jet.tanh().linear(layer, bias)
        return jet


def function_jet(
    function: Callable[[Tensor], Tensor], x: Tensor, axes: Tensor, seconds: int
) -> Jet:
    """Return any function's values and derivatives along axes, by `torch.func`.

    Parameters
    ----------
    function : callable
        (points, inputs) to (points,), each point by itself.
    x, axes, seconds
        As `JetMLP.along`.

    Returns
    -------
    Jet
        Of one channel.
    """

    def slope(direction: Tensor, at: Tensor) -> Tensor:
        change: Tensor = torch.func.jvp(function, (at,), (direction.expand_as(at),))[1]
        return change

    def bend(direction: Tensor) -> tuple[Tensor, Tensor]:
        pair = torch.func.jvp(lambda at: slope(direction, at), (x,), (direction.expand_as(x),))
        return pair[0], pair[1]

    unit = x.new_zeros(len(axes), x.shape[1])
    unit[torch.arange(len(axes)), axes] = 1
    first, second = [], []
    if seconds:
        twice, bent = torch.func.vmap(bend)(unit[:seconds])
        first.append(twice)
        second.append(bent)
    if seconds < len(axes):
        first.append(torch.func.vmap(lambda d: slope(d, x))(unit[seconds:]))
    empty = x.new_zeros(0, len(x))
    return Jet(
        function(x)[:, None],
        torch.cat([empty, *first])[..., None],
        torch.cat([empty, *second])[..., None],
    )
