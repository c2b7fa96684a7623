"""What both low-rank optimisers share: matrices with their shorter side as columns, and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def working_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type of moments: float64 for float64 parameters, else float32."""
    return torch.float64 if parameter.dtype is torch.float64 else torch.float32


def tall(parameter: Tensor) -> bool:
    """Return whether rows, flattened from axis 1 on, are at least as many as columns."""
    return len(parameter) ** 2 >= parameter.numel()


def as_rows(x: Tensor, like: Tensor) -> Tensor:
    """Return a parameter's gradient as a matrix with its shorter side as columns."""
    matrix = x.flatten(1).to(working_dtype(like))
    return matrix if tall(like) else matrix.mT


def add_rows(parameter: Tensor, rows: Tensor, alpha: float) -> None:
    """Add ``alpha`` times what `as_rows` would make of it to a parameter."""
    update = rows if tall(parameter) else rows.mT
    parameter.add_(update.reshape(parameter.shape).to(parameter.dtype), alpha=alpha)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimiser's state: tensors, and 8 for each number besides.

    Bases, of which there is one a size for all layers, are no state: they are computed anew.
    """
    return sum(_nbytes(value) for value in optimizer.state.values())


def _nbytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_nbytes(part) for part in value.values())
    return 8 if isinstance(value, (int, float)) else 0


def index_dtype(n: int) -> torch.dtype:
    """Return the smallest type that holds places in n columns."""
    return torch.int16 if n <= 2**15 else torch.int32


def layers_of(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[int, int, Tensor, dict[str, Any]]]:
    """Yield each parameter as (group's number, place in it, parameter, group)."""
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            yield number, place, parameter, group
