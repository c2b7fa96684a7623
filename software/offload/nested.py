"""Products of torch's nested tensors, strided layout: by their pieces, or over all of their rows.

Jagged ones take themselves apart, attention on them by way of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _pairs(*tensors: Tensor) -> list[tuple[Tensor, ...]] | None:
    """Return the pieces of nested tensors side by side; None if there are none that fit."""
    if not all(x.is_nested for x in tensors):
        return None
    pieces = [x.unbind() for x in tensors]
    if not pieces[0] or len({len(each) for each in pieces}) > 1:
        return None
    return list(zip(*pieces, strict=True))


def _matmul(a: Tensor, b: Tensor) -> Any:
    pairs = _pairs(a, b)
    if pairs is None or any(
        x.ndim != y.ndim or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2]
        for x, y in pairs
    ):
        return NotImplemented
    return torch.nested.as_nested_tensor([x @ y for x, y in pairs])


def _matmul_backward(dy: Tensor, a: Tensor, b: Tensor, mask: Sequence[bool]) -> Any:
    pairs = _pairs(dy, a, b)
    if pairs is None:
        return NotImplemented
    da = [g @ y.mT for g, _, y in pairs] if mask[0] else None
    db = [x.mT @ g for g, x, _ in pairs] if mask[1] else None
    return tuple(None if x is None else torch.nested.as_nested_tensor(x) for x in (da, db))


def _rows(x: Tensor) -> Tensor:
    """Return all rows of a nested tensor as a matrix."""
    return torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in x.unbind()])


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """Return a matrix's rows with the pieces of a nested tensor, each with the matrix's columns."""
    shapes = [piece.shape[:-1] for piece in x.unbind()]
    parts = rows.split([prod(shape) for shape in shapes])
    pieces = [part.reshape(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]
    return torch.nested.as_nested_tensor(pieces)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    fits = x.is_nested and x.is_contiguous() and not weight.is_nested and weight.ndim == 2
    if not fits or not x.size(0) or x.size(-1) != weight.shape[1]:
        return NotImplemented
    return _like(torch.nn.functional.linear(_rows(x), weight, bias), x)


def _linear_backward(x: Tensor, dy: Tensor, weight: Tensor, mask: Sequence[bool]) -> Any:
    if not (x.is_nested and dy.is_nested and x.size(0)):
        return NotImplemented
    gradient = _rows(dy)
    dx = _like(gradient @ weight, x) if mask[0] else None
    dw = gradient.t() @ _rows(x) if mask[1] else None
    return dx, dw, gradient.sum(0) if mask[2] else None


NESTED: dict[Any, Callable[..., Any]] = {
    aten.bmm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.matmul_backward.default: _matmul_backward,
    aten.linear.default: _linear,
    aten.linear_backward.default: _linear_backward,
}
"""What is done for operations that have kernels for nested tensors; `NotImplemented` leaves one to
torch, mostly for an error that it words."""
