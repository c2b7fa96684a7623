"""Operator networks of a trunk (places) and a branch (inputs) whose layers meet in products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts

Wave = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""An activation and its derivative."""


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _tanh_sin(x: Tensor) -> Tensor:
    return torch.tanh(torch.sin(math.pi * (x + 1))) + x


def _tanh_sin_slope(x: Tensor) -> Tensor:
    angle = math.pi * (x + 1)
    return (1 - torch.tanh(torch.sin(angle)).square()) * torch.cos(angle) * math.pi + 1


def _silu_sin(x: Tensor) -> Tensor:
    return functional.silu(torch.sin(math.pi * (x + 1))) + x


def _silu_sin_slope(x: Tensor) -> Tensor:
    angle = math.pi * (x + 1)
    return _silu_slope(torch.sin(angle)) * torch.cos(angle) * math.pi + 1


ACTIVATIONS: dict[str, Wave] = {
    "tanh_sin": (_tanh_sin, _tanh_sin_slope),
    "silu_sin": (_silu_sin, _silu_sin_slope),
    "silu_id": (lambda x: functional.silu(x) + x, lambda x: _silu_slope(x) + 1),
}
"""tanh(sin(π(x + 1))) + x, silu(sin(π(x + 1))) + x, silu(x) + x."""


class MultiONet(nn.Module):
    """G(x, β) = (1/l) Σ_k w_k ⟨t_k(x), b_k(β)⟩ + c over the last l layers of trunk and branch.

    Both have an input layer and ``depth`` more, each followed by its activation. The trunk runs
    once for all samples of a batch; then values are one product T·Bᵀ.

    Parameters
    ----------
    in_x, in_a : int
        Numbers that make a place, and an input.
    width : int or sequence of int
        Of the trunk's depth + 1 layers.
    depth : int
        Layers after the input layer, L.
    sum_layers : int
        Layers that meet in products, l; at most L.
    act_trunk, act_branch : {"tanh_sin", "silu_sin", "silu_id"}
        As `ACTIVATIONS`.
    branch_width : int or sequence of int, optional
        The trunk's if not given.

    Attributes
    ----------
    weight : torch.nn.Parameter
        (l,): w, from 0, so that an untrained net is 0 everywhere.
    bias : torch.nn.Parameter
        (): c, from 0.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.2; details from the authors' ``Networks/MultiONets.py``.
    """

    def __init__(
        self,
        in_x: int,
        in_a: int,
        width: int | Sequence[int],
        depth: int = 4,
        sum_layers: int = 4,
        act_trunk: str = "tanh_sin",
        act_branch: str = "tanh_sin",
        *,
        branch_width: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_counts(in_x=in_x, in_a=in_a, depth=depth, sum_layers=sum_layers)
        if sum_layers > depth:
            raise ValueError(
                f"sum_layers={sum_layers}: must be at most depth={depth}; the input layers do not "
                "meet"
            )
        for name, act in (("act_trunk", act_trunk), ("act_branch", act_branch)):
            if act not in ACTIVATIONS:
                raise ValueError(f"{name}={act!r}: must be one of {', '.join(ACTIVATIONS)}")
        trunk = _widths("width", width, depth)
        branch = trunk if branch_width is None else _widths("branch_width", branch_width, depth)
        if trunk[-sum_layers:] != branch[-sum_layers:]:
            raise ValueError(
                f"trunk widths {trunk} and branch widths {branch}: must be the same in the last "
                f"{sum_layers} layers, which meet in products"
            )
        self.in_x, self.in_a, self.sum_layers = in_x, in_a, sum_layers
        self.act_trunk, self.act_branch = act_trunk, act_branch
        self.trunk = _layers(in_x, trunk)
        self.branch = _layers(in_a, branch)
        self.weight = nn.Parameter(torch.zeros(sum_layers))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        """Return values at places.

        Parameters
        ----------
        x : torch.Tensor
            (places, in_x), the same for all samples.
        a : torch.Tensor
            (batch, in_a).

        Returns
        -------
        torch.Tensor
            (batch, places).

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        self._require(x, a)
        layers: list[Tensor] = []
        act = ACTIVATIONS[self.act_trunk][0]
        for layer in self.trunk:
            x = act(layer(x))
            layers.append(x)
        out: Tensor = self._branch(a) @ self._meeting(layers).mT + self.bias
        return out

    def with_gradient(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and their derivatives by place, carried forward through the trunk.

        Parameters
        ----------
        x, a : torch.Tensor
            As `forward`.

        Returns
        -------
        value : torch.Tensor
            (batch, places).
        gradient : torch.Tensor
            (batch, places, in_x).

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        self._require(x, a)
        act, slope = ACTIVATIONS[self.act_trunk]
        # (places, 1 + in_x, ·): the value and, below it, its derivative in each direction. One
        # product a layer does both, so pruned weights (`sat.sparsify_`) are pruned in both.
        eye = torch.eye(self.in_x, dtype=x.dtype, device=x.device)
        rows = torch.cat([x[:, None], eye.expand(len(x), -1, -1)], 1)
        values: list[Tensor] = []
        slopes: list[Tensor] = []
        for layer in self.trunk:
            out = layer(rows)
            before, along = out[:, 0], out[:, 1:] - layer.bias
            values.append(act(before))
            slopes.append(along * slope(before)[:, None])
            rows = torch.cat([values[-1][:, None], slopes[-1]], 1)
        branch = self._branch(a)
        value = branch @ self._meeting(values).mT + self.bias
        flat = self._meeting(slopes).flatten(0, 1)
        return value, (branch @ flat.mT).unflatten(1, (len(x), self.in_x))

    def _meeting(self, layers: list[Tensor]) -> Tensor:
        return torch.cat(layers[-self.sum_layers :], -1)

    def _branch(self, a: Tensor) -> Tensor:
        """Return (batch, l · width): w_k b_k / l."""
        act = ACTIVATIONS[self.act_branch][0]
        layers: list[Tensor] = []
        for layer in self.branch:
            a = act(layer(a))
            layers.append(a)
        met = layers[-self.sum_layers :]
        return torch.cat(
            [w * b for w, b in zip(self.weight / self.sum_layers, met, strict=True)], -1
        )

    def _require(self, x: Tensor, a: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.in_x or a.ndim != 2 or a.shape[1] != self.in_a:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and a {tuple(a.shape)}: must be (places, "
                f"{self.in_x}) and (batch, {self.in_a})"
            )


class DeepONet(MultiONet):
    """The product of the last layers alone, over ``sum_layers`` and without weights to learn.

    The same arguments and calls as `MultiONet`, to be compared with it.

    Source
    ------
    Lu, Jin, Pang, Zhang, Karniadakis, arXiv 1910.03193.
    """

    def __init__(
        self,
        in_x: int,
        in_a: int,
        width: int | Sequence[int],
        depth: int = 4,
        sum_layers: int = 4,
        act_trunk: str = "tanh_sin",
        act_branch: str = "tanh_sin",
        *,
        branch_width: int | Sequence[int] | None = None,
    ) -> None:
        require_counts(sum_layers=sum_layers)
        super().__init__(
            in_x, in_a, width, depth, 1, act_trunk, act_branch, branch_width=branch_width
        )
        del self.weight
        self.register_buffer("weight", torch.full((1,), 1 / sum_layers))


def _widths(name: str, width: int | Sequence[int], depth: int) -> list[int]:
    widths = [width] * (depth + 1) if isinstance(width, int) else list(width)
    if len(widths) != depth + 1:
        raise ValueError(
            f"{name}={width}: must have depth + 1 = {depth + 1} numbers, the input layer's first"
        )
    require_counts(**{f"{name}[{place}]": value for place, value in enumerate(widths)})
    return widths


def _layers(source: int, widths: list[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Linear(before, after) for before, after in zip([source, *widths], widths, strict=False)
    )
