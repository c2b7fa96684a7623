"""Operations that are made of others: what to take them apart with, and in which state of torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# fmt: off
OF_TORCH = frozenset({
    "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "_inductor_test", "_native",
    "_quantized", "_test", "aten", "c10d", "c10d_functional", "cuda", "debug_mode_ops",
    "debugprims", "export", "flex_lib", "fsdp", "inductor", "inductor_prims", "mkl", "mkldnn",
    "mkldnn_prepacked", "onednn", "onnx", "onnx_symbolic", "prepacked", "prim", "prims",
    "profiler", "quantization", "quantized", "quantized_decomposed", "rngprims", "sparse",
    "static_runtime", "streams", "symm_mem", "xnnpack",
})
# fmt: on
"""Namespaces of the operators that come with torch; others are a program's or a library's own."""


def _keys(*keys: DispatchKey) -> DispatchKeySet:
    return functools.reduce(DispatchKeySet.add, keys, DispatchKeySet.from_raw_repr(0))


_LAZY = _keys(DispatchKey.Conjugate, DispatchKey.Negative, DispatchKey.ZeroTensor)
_AUTOCAST = _keys(DispatchKey.AutocastCPU)
_AUTOGRAD = _keys(DispatchKey.AutogradCPU, DispatchKey.AutogradOther, DispatchKey.ADInplaceOrView)


def as_outside() -> AbstractContextManager[Any]:
    """Have torch do what a dispatch mode passes on as it would without the mode.

    While a mode has the word, torch leaves out whatever comes before modes; so kernels would read
    the memory of tensors that are conjugated or negated only in name, or are zeros without memory.
    """
    c = torch._C
    left_out = c._dispatch_tls_local_exclude_set() - _LAZY
    guard: AbstractContextManager[Any] = c._ForceDispatchKeyGuard(
        c._dispatch_tls_local_include_set(), left_out
    )
    return guard


def any_lazy(args: Iterable[Any]) -> bool:
    """Return whether a tensor among arguments, or in lists of them, is other than its memory says.

    Conjugated or negated only in name, or one of autograd's zeros without memory.
    """
    for x in args:
        kind = type(x)
        if kind in _NUMBERS:
            continue
        if kind is Tensor or isinstance(x, Tensor):
            if x.is_neg() or x.is_conj() or x._is_zerotensor():
                return True
        elif isinstance(x, (list, tuple)) and any_lazy(x):
            return True
    return False


_NUMBERS = frozenset((int, float, bool, type(None)))


@contextlib.contextmanager
def entering(func: Any) -> Iterator[None]:
    """Have an operation's kernel run as it would without a mode, on others that the mode takes.

    What torch leaves out before modes is as the program left it: autocasting, unless the operation
    itself casts its arguments, and for a program's own operators differentiation, unless they have
    a formula for their gradient.
    """
    c = torch._C
    left_out = c._dispatch_tls_local_exclude_set() - _LAZY
    included = c._dispatch_tls_local_include_set()
    # What is called in here notes its own state, not that where the program called torch.
    with c._RestorePythonTLSSnapshot():  # type: ignore[attr-defined]
        left_by_program = c._dispatch_tls_local_exclude_set()
        as_left = _as_left(func)
        left_out = (left_out - as_left) | (left_by_program & as_left)
        with c._ForceDispatchKeyGuard(included, left_out):
            yield


def _as_left(func: Any) -> DispatchKeySet:
    """Return what nothing changes between a program's call of torch and an operation's kernel."""
    if func.namespace not in OF_TORCH:
        return (_AUTOCAST | _AUTOGRAD) - _own_keys(func)
    called = _hides(func) and func.overloadpacket is not aten.linalg_pinv
    if func in decompositions() or not (called or torch.is_inference_mode_enabled()):
        # It may come from the inside of another one, which has cast.
        return _keys()
    return _AUTOCAST - _own_keys(func)


@functools.cache
def _own_keys(func: Any) -> DispatchKeySet:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    own, name = _keys(), func.name()
    if has(name, "AutocastCPU"):
        own = own | _AUTOCAST
    if has(name, "Autograd") or has(name, "AutogradCPU"):
        own = own | _AUTOGRAD
    return own


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operation is made of others wherever it runs."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


HIDING = {
    "linalg_pinv",
    "conv_tbc",
    "affine_grid_generator",
    "_grouped_mm",
    "_foreach_mm",
    "_sparse_addmm",
}
"""Operations whose kernel, the same on every device, is made of others, products among them."""


def _hides(func: Any) -> bool:
    return func.overloadpacket.__name__ in HIDING


@functools.cache
def hidden_kernel(func: Any) -> DispatchKey | None:
    """Return the key of an operation's kernel that is made of others but taken as one."""
    return _first_key(func, _EXPLICIT) if _hides(func) else None


_EXPLICIT = (
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
)


def _first_key(func: Any, keys: Sequence[DispatchKey]) -> DispatchKey | None:
    """Return the first of some keys for which an operation has a kernel."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return next((key for key in keys if has(func.name(), key.name)), None)


def own_kernel(func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    """Return what a program's own operator does with tensors of the host; None if not known."""
    if is_composite(func):
        decompose: Callable[..., Any] = func.decompose
        return decompose
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    plain = all(
        x.device.type == "cpu" and x.layout is torch.strided and not x.is_nested for x in tensors
    )
    key = _first_key(func, (DispatchKey.CPU, *_EXPLICIT))
    return functools.partial(func._op_dk, key) if tensors and plain and key else None


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
