"""Operations of torch that are made of others: what to take them apart with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

aten = torch.ops.aten


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operation is made of others wherever it runs."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


@functools.cache
def hidden_kernel(func: Any) -> DispatchKey | None:
    """Return the key of an operation's kernel that is made of others but taken as one."""
    keys = (
        DispatchKey.CompositeExplicitAutograd,
        DispatchKey.CompositeExplicitAutogradNonFunctional,
    )
    for key in keys:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key.name):
            return key
    return None


@functools.cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return torch's own decompositions of operations that hide a product."""
    from torch._decomp import get_decompositions

    made: dict[Any, Callable[..., Any]] = dict(get_decompositions([aten._euclidean_dist]))
    made[aten._trilinear.default] = _trilinear
    return made


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    """Return the sum of ``a * b * c`` (`nn.Bilinear`) as two products, a with b first.

    Parameters
    ----------
    expand_a, expand_b, expand_c : sequence of int
        Axes of the result that an operand has not.
    summed : sequence of int
        Axes to sum over.
    """
    axes = a.ndim + len(expand_a)
    each = (set(range(axes)) - set(absent) for absent in (expand_a, expand_b, expand_c))
    left, middle, right = map(sorted, each)
    out = [axis for axis in range(axes) if axis not in summed]
    return torch.einsum(a, left, b, middle, c, right, out)
