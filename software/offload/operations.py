"""Products of matrices, vectors and stacks: what `sat.offload` does for each of torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sat.offload.handlers import Products, Size, as_type, handles, wide_type


def _fit(a: Tensor, b: Tensor, axes: tuple[int, int]) -> Size | None:
    """Return the size of the products of stacks, matrices or vectors; None if they do not fit.

    By shapes alone: torch's sparse layouts have no views.
    """
    if (a.ndim, b.ndim) != axes or a.dtype != b.dtype:
        return None
    left, right = tuple(a.shape), tuple(b.shape)
    count, rows, depth = (1,) * (3 - len(left)) + left
    others, inner, cols = right if len(right) == 3 else (1, *right, 1)[:3]
    return (count, rows, depth, cols) if (count, depth) == (others, inner) else None


def _stacks(a: Tensor, b: Tensor) -> Size | None:
    return _fit(a, b, (3, 3))


def _matrices(a: Tensor, b: Tensor) -> Size | None:
    return _fit(a, b, (2, 2))


def _column(a: Tensor, b: Tensor) -> Size | None:
    return _fit(a, b, (2, 1))


def _vectors(a: Tensor, b: Tensor) -> Size | None:
    return _fit(a, b, (1, 1))


def _one_product(a: Tensor, b: Tensor) -> Size | None:
    """Return the size of two stacks' products added up: one product, of more depth."""
    size = _stacks(a, b)
    return None if size is None else (1, size[1], size[0] * size[2], size[3])


def _plus(
    product: Callable[[Tensor, Tensor], Size | None], shape: Callable[[Size], tuple[int, ...]]
) -> Callable[..., Size | None]:
    """Return the size function of what adds a tensor to a product of some shape."""

    def size(
        base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1, **_: Any
    ) -> Size | None:
        found = product(a, b)
        if found is None or base.dtype != a.dtype:
            return None
        if not a.is_complex() and any(isinstance(factor, complex) for factor in (alpha, beta)):
            return None
        wanted = shape(found)
        pairs = zip(reversed(base.shape), reversed(wanted), strict=False)
        fits = base.ndim <= len(wanted) and all(has in (1, wants) for has, wants in pairs)
        return found if fits else None

    return size


def _added(
    mode: Products, base: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any, shape: Sequence[int]
) -> Tensor:
    """Return beta * base + alpha * a @ b; with both 1 the sums start from ``base``."""
    wide = wide_type(base.dtype)
    if beta == 1 and alpha == 1:
        one_row = base.ndim == 1 and base.shape[0] == shape[-1]
        start = base if one_row else base.expand(tuple(shape))
        return as_type(mode.matmul(a, b, wide, start), base.dtype)
    made = mode.matmul(a, b, wide) * alpha
    # As torch has it, a beta of 0 does not look at what it multiplies.
    made = made if beta == 0 else made + beta * base.to(wide)
    return as_type(made, base.dtype)


@handles("mm", _matrices)
def _mm(mode: Products, a: Tensor, b: Tensor) -> Tensor:
    return as_type(mode.matmul(a, b, wide_type(a.dtype)), a.dtype)


@handles("bmm", _stacks)
def _bmm(mode: Products, a: Tensor, b: Tensor) -> Tensor:
    return as_type(mode.matmul(a, b, wide_type(a.dtype)), a.dtype)


@handles("mv", _column)
def _mv(mode: Products, a: Tensor, b: Tensor) -> Tensor:
    return as_type(mode.matmul(a, b[:, None], wide_type(a.dtype))[:, 0], a.dtype)


@handles("dot", _vectors)
def _dot(mode: Products, a: Tensor, b: Tensor) -> Tensor:
    return as_type(mode.matmul(a[None], b[:, None], wide_type(a.dtype))[0, 0], a.dtype)


@handles("vdot", _vectors)
def _vdot(mode: Products, a: Tensor, b: Tensor) -> Tensor:
    return _dot(mode, a.conj(), b)


@handles("addmm", _plus(_matrices, lambda size: (size[1], size[3])))
def _addmm(
    mode: Products, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    return _added(mode, base, a, b, beta, alpha, (a.shape[0], b.shape[1]))


@handles("_addmm_activation", _plus(_matrices, lambda size: (size[1], size[3])))
def _addmm_activation(
    mode: Products,
    base: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    use_gelu: bool = False,
) -> Tensor:
    made = _addmm(mode, base, a, b, beta=beta, alpha=alpha)
    return torch.nn.functional.gelu(made) if use_gelu else made.relu()


@handles("addmv", _plus(_column, lambda size: (size[1],)))
def _addmv(
    mode: Products, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    column = base.expand(len(a))[:, None]
    return _added(mode, column, a, b[:, None], beta, alpha, (len(a), 1))[:, 0]


@handles("baddbmm", _plus(_stacks, lambda size: (size[0], size[1], size[3])))
def _baddbmm(
    mode: Products, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    return _added(mode, base, a, b, beta, alpha, (*a.shape[:2], b.shape[2]))


@handles("addbmm", _plus(_one_product, lambda size: (size[1], size[3])))
def _addbmm(
    mode: Products, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    # The sum over the stack is more depth: one fold over all of it.
    count, rows, depth = a.shape
    left = a.transpose(0, 1).reshape(rows, count * depth)
    right = b.reshape(count * depth, -1)
    return _added(mode, base, left, right, beta, alpha, (rows, b.shape[2]))
