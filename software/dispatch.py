"""Send the matrix work of any PyTorch program to a device, and account for it.

Inside ``with sat.offload("rtl") as report:`` every product that torch would compute (mm, addmm,
bmm, convolutions and their gradients, attention, einsum, and what else decomposes to them) is
computed by the device. `docs/offload.md` states the arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator, resolve_key
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from sat import precision as fp32
from sat.dataflow.products import Product
from sat.devices import device as make_device
from sat.devices.base import Device, Run
from sat.devices.context import current_label, use_device
from sat.devices.operand import RightOperand, product_of
from sat.errors import CycleBudgetError
from sat.lowering import (
    Geometry,
    at_positions,
    backward_phases,
    every_phase,
    forward_taps,
    front,
    pad,
    place,
    windows,
)
from sat.report import CLOCK_HZ, DeviceWork, OffloadReport, Work
from sat.sim.golden import sore
from sat.sparsity.pattern import DENSE, Pattern

aten = torch.ops.aten

PRECISIONS = ("fp16", "fp32")
"""One pass of float16 operands, or scaled passes that keep float32's bits."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

Array16 = NDArray[np.float16]

_SYMBOLIC = (FakeTensor, FunctionalTensor)
_TRACING = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


class _Meter(Device):
    """The offload's device, as its handlers and SAT layers see it: budget and account."""

    def __init__(self, inner: Device, report: OffloadReport, max_cycles: int | None) -> None:
        super().__init__(inner.config)
        self.name, self.any_pattern = inner.name, inner.any_pattern
        self.inner, self.report, self.max_cycles = inner, report, max_cycles
        self.cycles = 0  # spent of the budget
        self.work: Work | None = None  # the operation that is being computed

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        return self.inner.predict(product, dataflow)

    def _matmul(
        self,
        a: Array16,
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        product = product_of(a, b, start)
        if self.max_cycles is not None:
            self._spend(product, dataflow)
        if self.inner.closed:
            self.inner.matmul(a, b)  # says so
        began = time.perf_counter()
        result, run = self.inner._matmul(a, b, start, dataflow)
        seconds = time.perf_counter() - began
        self.inner.last_run = run
        size = f"{product.rows} x {product.depth} x {product.cols}"
        work = self.work
        if work is None:
            # A SAT layer's own product.
            size += "" if b.pattern.dense else f" {b.pattern}"
            work = self.report.work(current_label() or "product", size, None)
            work.calls += 1
            work.flops += 2 * run.macs
            work.seconds += seconds
        self.report.device_seconds += seconds
        name = run.device or self.name
        work.devices.setdefault(name, DeviceWork()).add(product, run)
        self.report.event(work.op, size, name, run, seconds)
        return result, run

    def _spend(self, product: Product, dataflow: str) -> None:
        need = self.inner.predict(product, dataflow)
        assert self.max_cycles is not None
        if self.cycles + need > self.max_cycles:
            raise CycleBudgetError(
                f"a product of {product.rows} x {product.depth} x {product.cols} takes {need:,} "
                f"cycles, after {self.cycles:,} already: more than max_cycles="
                f"{self.max_cycles:,}; raise it, shrink the problem, or use device 'golden' "
                "without a budget"
            )
        self.cycles += need


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which results of operands of a type are handed on."""
    return dtype if dtype in (torch.float64, *COMPLEX) else torch.float32


class _Mode(TorchDispatchMode):
    """Catches operations below autograd; `HANDLERS` says which."""

    supports_higher_order_operators = True

    def __init__(
        self,
        meter: _Meter,
        precision: str,
        min_size: int,
        prune_left: Pattern,
        prune_right: Pattern,
    ) -> None:
        super().__init__()
        self.meter, self.report = meter, meter.report
        self.precision, self.min_size = precision, min_size
        self.prune_left, self.prune_right = prune_left, prune_right

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self.higher_order(func, args, kwargs)
        if types and any(t not in (Tensor, torch.nn.Parameter) for t in types):
            if any(issubclass(t, _SYMBOLIC) for t in types):
                return func(*args, **kwargs)  # no numbers to compute with
            return NotImplemented  # the subclass takes itself apart, into what comes here again
        handler = HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        name = func.overloadpacket.__name__
        if func.namespace == "quantized" and _QUANTISED.match(name):
            count = _convolution_flops if name.startswith("conv") else _rows_flops
            return self.stay(func, args, kwargs, "integers", partial(count, args), "")
        if name in HOST:
            reason, count = HOST[name]
            return self.stay(func, args, kwargs, reason, partial(count, args), "")
        if name in NESTED and any(isinstance(x, Tensor) and x.is_nested for x in args):
            return self.stay(func, args, kwargs, "nested tensors", partial(NESTED[name], args), "")
        if _composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        hidden = _hidden_kernel(func) if name in HIDING else None
        if hidden is not None:
            with self:
                return func._op_dk(hidden, *args, **kwargs)
        decomposition = _decompositions().get(func)
        if decomposition is not None:
            with self:
                return decomposition(*args, **kwargs)
        if name in HANDLED:
            reason = f"overload {func._overloadname}: only plain forms are taken"
            return self.stay(func, args, kwargs, reason, lambda _: 0, "")
        return func(*args, **kwargs)

    def higher_order(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """Run flex attention, cond and the like: what they are made of comes here again."""
        kernel = func.py_kernels[resolve_key(func, DispatchKey.CPU)]
        if func.name().startswith("flex_attention"):
            with self:
                return kernel(*args, **kwargs)

        def inside(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*operands: Any) -> Any:
                with self:
                    return function(*operands)

            return call

        # Control flow insists on there being no mode around it; its branches have ours.
        return kernel(*(inside(x) if callable(x) else x for x in args), **kwargs)

    def stay(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        reason: str,
        flops: Callable[[Any], int],
        size: str,
    ) -> Any:
        """Compute an operation on the host; ``flops`` takes its result to its operations."""
        began = time.perf_counter()
        result = func(*args, **kwargs)
        seconds = time.perf_counter() - began
        work = self.report.work(f"{func.namespace}.{func.overloadpacket.__name__}", size, reason)
        work.calls += 1
        work.flops += flops(result)
        work.seconds += seconds
        self.report.event(work.op, size, "host", None, seconds)
        return result

    def refusal(self, tensors: Sequence[Tensor], macs: int) -> str | None:
        """Return why a device cannot take a product of these, or None if it can."""
        for x in tensors:
            if x.device.type != "cpu":
                return f"tensors on {x.device.type}"
            if x.layout is not torch.strided:
                return "sparse layout of torch"
            if x.dtype not in (*FLOATS, *COMPLEX):
                return f"dtype {str(x.dtype).removeprefix('torch.')}"
        if any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING):
            return "traced into a graph"  # which would keep our results as constants
        return f"below min_size={self.min_size:,}" if macs < self.min_size else None

    # ------------------------------------------------------------------------- products

    def matmul(
        self, a: Tensor, b: Tensor, wide: torch.dtype, start: Tensor | None = None
    ) -> Tensor:
        """Return start + a @ b for (count, rows, depth) and (count, depth, cols).

        Parameters
        ----------
        wide : torch.dtype
            float32, float64 or complex: type of the result.
        start : Tensor, optional
            (cols,), (rows, cols) or (count, rows, cols): first value of each sum where the device
            computes in float32, else added at the end.
        """
        if wide in COMPLEX:
            return self._complex(a, b, wide, start)
        a, b = a.detach().resolve_neg(), b.detach().resolve_neg()
        start = None if start is None else start.detach().resolve_neg()
        if b.shape[0] > 1 and b.stride(0) == 0 and (start is None or start.ndim == 1):
            # One right operand for all: one product of many rows.
            count, rows, _ = a.shape
            flat = self.matmul(a.reshape(1, count * rows, -1), b[:1], wide, start)
            return flat.view(count, rows, -1)
        if self.precision == "fp32":
            left, right = (_exact(x).numpy() for x in (a, b))
            result = torch.from_numpy(fp32.matmul(left, right, self._product))
            return (result if start is None else result + start.double()).to(wide)
        left16, right16 = (x.half().contiguous().numpy() for x in (a, b))
        if wide is torch.float64:
            made = torch.from_numpy(self._product(left16, right16)).double()
            return made if start is None else made + start
        first = None if start is None else start.float().contiguous().numpy()
        return torch.from_numpy(self._product(left16, right16, first))

    def _complex(self, a: Tensor, b: Tensor, wide: torch.dtype, start: Tensor | None) -> Tensor:
        """Return a complex product as one of real operands, twice the depth and columns.

        ``[re a, im a] · [[re b, im b], [-im b, re b]]``; operands that are real count as such.
        """
        real = torch.float64 if wide is torch.complex128 else torch.float32
        a, b = (torch.view_as_real(x.detach().resolve_conj().to(wide)) for x in (a, b))
        left = torch.cat([a[..., 0], a[..., 1]], -1)
        right = torch.cat(
            [
                torch.cat([b[..., 0], b[..., 1]], -1),
                torch.cat([-b[..., 1], b[..., 0]], -1),
            ],
            -2,
        )
        if start is not None:
            parts = torch.view_as_real(start.detach().resolve_conj().to(wide))
            start = torch.cat([parts[..., 0], parts[..., 1]], -1)
        made = self.matmul(left, right, real, start)
        cols = b.shape[-2]
        return torch.complex(made[..., :cols], made[..., cols:])

    def _product(
        self, a: Array16, b: Array16, start: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return the products of two stacks of matrices, one after the other."""
        if a.ndim == 2:
            return self._one(a, b, start)
        out = np.empty((len(a), a.shape[1], b.shape[2]), np.float32)
        for i in range(len(a)):
            first = start[i] if start is not None and start.ndim == 3 else start
            out[i] = self._one(a[i], b[i], first)
        return out

    def _one(
        self, a: Array16, b: Array16, start: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        if start is not None and start.ndim == 1:
            start = np.broadcast_to(start, (len(a), len(start)))
        left, right = self.prune_left, self.prune_right
        if not left.dense and not right.dense:
            # A device takes one compact operand: the left one goes with zeros in it.
            a, left = _zeroed(a, left), DENSE
        if not left.dense:
            first = None if start is None else np.ascontiguousarray(start.T)
            return np.ascontiguousarray(self._compact(b.T, a.T, left, first).T)
        return self._compact(a, b, right, start)

    def _compact(
        self, a: Array16, b: Array16, pattern: Pattern, start: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        right = RightOperand.dense(b)
        if not pattern.dense:
            right = RightOperand(*sore.select(b, pattern.n, pattern.m, 0), pattern, len(b))
        return self.meter._matmul(a, right, start, "auto")[0]


def _exact(x: Tensor) -> Tensor:
    """Return a tensor in the narrowest type that numpy knows and that holds it exactly."""
    return x if x.dtype is torch.float64 else x.float()


def _zeroed(a: Array16, pattern: Pattern) -> Array16:
    values, indices = sore.select(a, pattern.n, pattern.m, 1)
    return sore.expand(values, indices, pattern.n, pattern.m, a.shape[1], 1)


@functools.cache
def _composite(func: Any) -> bool:
    """Whether an operation is made of others wherever it runs."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


@functools.cache
def _hidden_kernel(func: Any) -> DispatchKey | None:
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
def _decompositions() -> dict[Any, Callable[..., Any]]:
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


# ------------------------------------------------------------------------------------ handlers

Handler = Callable[[_Mode, Any, Any, Any], Any]
HANDLERS: dict[Any, Handler] = {}
"""What is done for each operation of torch that a device computes."""

HANDLED: set[str] = set()
"""Their names."""

Size = tuple[int, int, int, int]
"""(count, rows, depth, cols) of an operation's products."""


def _handles(
    name: str, size: Callable[..., Size | None], passes: Callable[..., int] | None = None
) -> Callable[..., Any]:
    """Register a function for ``aten.<name>``, and for its forms with ``out`` and in place.

    Parameters
    ----------
    size : callable
        Takes the operation's arguments to the size of its products; to None if they do not fit
        together, which torch is left to say.
    passes : callable, optional
        Takes them to how many products of that size there are; one if not given.
    """

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        def handle(mode: _Mode, func: Any, args: Any, kwargs: Any) -> Any:
            options = {key: value for key, value in kwargs.items() if key != "out"}
            out = kwargs.get("out")
            tensors = [x for x in (*args, out) if isinstance(x, Tensor)]
            found = size(*args, **options)
            if found is None or (out is not None and out.dtype != args[0].dtype):
                # Mostly an error, which torch words.
                return mode.stay(func, args, kwargs, "an unusual form", lambda _: 0, "")
            if 0 in found:
                return func(*args, **kwargs)  # nothing to multiply
            count, rows, depth, cols = found
            text = f"{rows} x {depth} x {cols}"
            text = text if count == 1 else f"{count} * {text}"
            factor = 8 if any(x.is_complex() for x in tensors) else 2
            factor *= 1 if passes is None else passes(*args, **options)
            flops = factor * count * rows * depth * cols
            reason = mode.refusal(tensors, rows * depth * cols)
            if reason is not None:
                return mode.stay(func, args, kwargs, reason, lambda _: flops, text)
            args = [_written_out(x) if isinstance(x, Tensor) else x for x in args]
            work = mode.report.work(f"aten.{name}", text, None)
            began = time.perf_counter()
            outer, mode.meter.work = mode.meter.work, work
            try:
                result = compute(mode, *args, **options)
            finally:
                mode.meter.work = outer
            work.seconds += time.perf_counter() - began
            work.calls += 1
            work.flops += flops
            if out is None:
                return result
            if out.shape != result.shape:
                out.resize_(result.shape)
            return out.copy_(result)

        def in_place(mode: _Mode, func: Any, args: Any, kwargs: Any) -> Any:
            result = handle(mode, func, args, kwargs)
            # A base that would have to grow is an error, which torch words.
            fits = result.shape == args[0].shape
            return args[0].copy_(result) if fits else func(*args, **kwargs)

        packet = getattr(aten, name)
        for overload in packet.overloads():
            if overload in ("default", "out"):
                HANDLERS[getattr(packet, overload)] = handle
        if hasattr(aten, f"{name}_"):
            HANDLERS[getattr(aten, f"{name}_").default] = in_place
        HANDLED.add(name)
        return compute

    return register


def _written_out(x: Tensor) -> Tensor:
    """Return a tensor that has memory: forward-mode AD makes zeros that have none."""
    return torch.zeros(x.shape, dtype=x.dtype) if x._is_zerotensor() else x


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
    mode: _Mode, base: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any, shape: Sequence[int]
) -> Tensor:
    """Return beta * base + alpha * a @ b; with both 1 the sums start from ``base``."""
    wide = _wide(base.dtype)
    if beta == 1 and alpha == 1:
        one_row = base.ndim == 1 and base.shape[0] == shape[-1]
        start = base if one_row else base.expand(tuple(shape))
        return mode.matmul(a, b, wide, start).to(base.dtype)
    made = mode.matmul(a, b, wide) * alpha
    # As torch has it, a beta of 0 does not look at what it multiplies.
    made = made if beta == 0 else made + beta * base.to(wide)
    return made.to(base.dtype)


@_handles("mm", _matrices)
def _mm(mode: _Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None], b[None], _wide(a.dtype))[0].to(a.dtype)


@_handles("bmm", _stacks)
def _bmm(mode: _Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a, b, _wide(a.dtype)).to(a.dtype)


@_handles("mv", _column)
def _mv(mode: _Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None], b[None, :, None], _wide(a.dtype))[0, :, 0].to(a.dtype)


@_handles("dot", _vectors)
def _dot(mode: _Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None, None], b[None, :, None], _wide(a.dtype))[0, 0, 0].to(a.dtype)


@_handles("vdot", _vectors)
def _vdot(mode: _Mode, a: Tensor, b: Tensor) -> Tensor:
    return _dot(mode, a.conj(), b)


@_handles("addmm", _plus(_matrices, lambda size: (size[1], size[3])))
def _addmm(
    mode: _Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    shape = (1, len(a), b.shape[1])
    return _added(mode, base, a[None], b[None], beta, alpha, shape)[0]


@_handles("_addmm_activation", _plus(_matrices, lambda size: (size[1], size[3])))
def _addmm_activation(
    mode: _Mode,
    base: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    use_gelu: bool = False,
) -> Tensor:
    made = _addmm(mode, base, a, b, beta=beta, alpha=alpha)
    return torch.nn.functional.gelu(made, approximate="tanh") if use_gelu else made.relu()


@_handles("addmv", _plus(_column, lambda size: (size[1],)))
def _addmv(
    mode: _Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    column = base.expand(len(a))[:, None]
    return _added(mode, column, a[None], b[None, :, None], beta, alpha, (1, len(a), 1))[0, :, 0]


@_handles("baddbmm", _plus(_stacks, lambda size: (size[0], size[1], size[3])))
def _baddbmm(
    mode: _Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    return _added(mode, base, a, b, beta, alpha, (*a.shape[:2], b.shape[2]))


@_handles("addbmm", _plus(_one_product, lambda size: (size[1], size[3])))
def _addbmm(
    mode: _Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    # The sum over the stack is more depth: one fold over all of it.
    count, rows, depth = a.shape
    left = a.transpose(0, 1).reshape(1, rows, count * depth)
    right = b.reshape(1, count * depth, -1)
    return _added(mode, base, left, right, beta, alpha, (1, rows, b.shape[2]))[0]


# --------------------------------------------------------------------------------- convolution


def _geometry(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    axes = weight.ndim - 2

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) * axes if len(value) == 1 else tuple(value)

    return Geometry(
        tuple(weight.shape[2:]),
        each(stride),
        tuple((p, p) for p in each(padding)),
        each(dilation),
        groups,
    )


def _groups(x: Tensor, groups: int, axis: int = -1) -> list[Tensor]:
    return list(x.chunk(groups, axis)) if groups > 1 else [x]


def _correlate(
    mode: _Mode, x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry, wide: torch.dtype
) -> Tensor:
    """Return a convolution: x (batch, *sizes, in), w (out, *kernel, in per group)."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    biases = [None] * g.groups if bias is None else _groups(bias, g.groups)
    made = []
    for x_part, w_part, start in zip(
        _groups(x, g.groups), _groups(w, g.groups, 0), biases, strict=True
    ):
        left = windows(pad(x_part, reads), taps, front(reads))
        right = w_part.reshape(len(w_part), -1).t()
        made.append(mode.matmul(left[None], right[None], wide, start)[0])
    y = made[0] if g.groups == 1 else torch.cat(made, 1)
    return y.reshape(len(x), *(t.outputs for t in taps), -1)


def _scatter(
    mode: _Mode,
    dy: Tensor,
    w: Tensor,
    bias: Tensor | None,
    g: Geometry,
    sizes: Sequence[int],
    wide: torch.dtype,
) -> Tensor:
    """Return the adjoint of `_correlate`: dy (batch, *outputs, out) to (batch, *sizes, in)."""
    phases = backward_phases(g, sizes)
    reads = [[phase.taps for phase in axis] for axis in phases]
    low = front(reads)
    ins = w.shape[-1]
    dx = torch.zeros(len(dy), *sizes, ins * g.groups, dtype=wide)
    if bias is not None:
        dx += bias.detach()
    for number, (dy_part, w_part) in enumerate(
        zip(_groups(dy, g.groups), _groups(w, g.groups, 0), strict=True)
    ):
        channels = slice(number * ins, (number + 1) * ins)
        padded = pad(dy_part, reads)
        lanes = w_part.movedim(-1, 0).movedim(1, -1)  # (in, *kernel, out)
        for chosen in every_phase(phases):
            left = windows(padded, [phase.taps for phase in chosen], low)
            right = at_positions(lanes, chosen).reshape(ins, -1).t()
            start = None if bias is None else bias[channels]
            target = place(dx[..., channels], chosen, g.stride)
            made = mode.matmul(left[None], right[None], wide, start)
            target.copy_(made.view(target.shape))
    return dx


def _weight_gradient(mode: _Mode, x: Tensor, dy: Tensor, g: Geometry, wide: torch.dtype) -> Tensor:
    """Return (out, *kernel, in per group) from x (batch, *sizes, in), dy (batch, *outputs, out)."""
    taps = forward_taps(g, x.shape[1:-1])
    reads = [[t] for t in taps]
    made = []
    for x_part, dy_part in zip(_groups(x, g.groups), _groups(dy, g.groups), strict=True):
        left = dy_part.reshape(-1, dy_part.shape[-1]).t()
        right = windows(pad(x_part, reads), taps, front(reads))
        part = mode.matmul(left[None], right[None], wide)[0]
        made.append(part.reshape(len(part), *g.kernel, -1))
    return torch.cat(made) if len(made) > 1 else made[0]


def _last(mode: _Mode, x: Tensor) -> Tensor:
    """Return a picture or weight with its second axis last, rounded now if it will be anyway."""
    x = x.detach()
    early = mode.precision == "fp16" and not x.is_complex()
    return (x.half() if early else x).movedim(1, -1)


def _first(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.movedim(-1, 1).to(dtype).contiguous()


def _conv_size(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Size | None:
    axes = x.ndim - 2
    options = (stride, padding, dilation, output_padding)
    if x.ndim != weight.ndim or axes < 1 or x.dtype != weight.dtype or groups < 1:
        return None
    if any(len(option) not in (1, axes) for option in options):
        return None
    least = zip(options, (1, 0, 1, 0), strict=True)
    if any(min(option) < bound for option, bound in least) or len(weight) % groups:
        return None
    ins, outs = weight.shape[1] * groups, len(weight)
    if transposed:
        ins, outs = outs, ins
    if x.shape[1] != ins or not (bias is None or (bias.shape == (outs,) and bias.dtype == x.dtype)):
        return None
    g = _geometry(weight, stride, padding, dilation, groups)
    made = _outputs(x, g, transposed, output_padding)
    if made is None:
        return None
    rows = len(x) * prod(x.shape[2:] if transposed else made)
    return groups, rows, prod(weight.shape[1:]), len(weight) // groups


def _outputs(x: Tensor, g: Geometry, transposed: bool, output_padding: Any) -> list[int] | None:
    """Return the sizes of a convolution's output by axis, or None if there is none."""
    sizes = x.shape[2:]
    if not transposed:
        made = [g.outputs(axis, size) for axis, size in enumerate(sizes)]
        return made if min(made) > 0 else None
    extra = tuple(output_padding) * len(sizes) if len(output_padding) == 1 else output_padding
    made = [
        (size - 1) * s - sum(p) + d * (k - 1) + e + 1
        for size, s, p, d, k, e in zip(
            sizes, g.stride, g.padding, g.dilation, g.kernel, extra, strict=True
        )
    ]
    steps = map(max, g.stride, g.dilation)
    fits = min(made) > 0 and all(e < step for e, step in zip(extra, steps, strict=True))
    return made if fits else None


@_handles("convolution", _conv_size)
def _convolution(
    mode: _Mode,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    g, wide = _geometry(weight, stride, padding, dilation, groups), _wide(x.dtype)
    pictures, lanes = _last(mode, x), _last(mode, weight)
    if not transposed:
        return _first(_correlate(mode, pictures, lanes, bias, g, wide), x.dtype)
    sizes = _outputs(x, g, True, output_padding)
    assert sizes is not None
    return _first(_scatter(mode, pictures, lanes, bias, g, sizes, wide), x.dtype)


def _backward_size(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Any,
) -> Size | None:
    return _conv_size(
        x, weight, None, stride, padding, dilation, transposed, output_padding, groups
    )


@_handles("convolution_backward", _backward_size, lambda *args: sum(map(bool, args[-1][:2])))
def _convolution_backward(
    mode: _Mode,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    g, wide = _geometry(weight, stride, padding, dilation, groups), _wide(x.dtype)
    gradient, pictures, lanes = (_last(mode, t) for t in (dy, x, weight))
    dx = dw = db = None
    if output_mask[0]:
        if transposed:
            made = _correlate(mode, gradient, lanes, None, g, wide)
        else:
            made = _scatter(mode, gradient, lanes, None, g, x.shape[2:], wide)
        dx = _first(made, x.dtype)
    if output_mask[1]:
        pair = (gradient, pictures) if transposed else (pictures, gradient)
        dw = _first(_weight_gradient(mode, *pair, g, wide), weight.dtype)
    if output_mask[2]:
        db = dy.detach().sum([0, *range(2, dy.ndim)])
    return dx, dw, db


# ------------------------------------------------------------------------ what stays on the host

Count = Callable[[Any, Any], int]
"""Takes the arguments and the result of a call to its floating-point operations."""


def _factor(count: Callable[[int, int], float]) -> Count:
    """Return what counts operations for the first argument: (…, rows, cols)."""

    def flops(args: Any, result: Any) -> int:
        x = next(a for a in args if isinstance(a, Tensor))
        if x.ndim < 2:
            return 0
        scale = 4 if x.is_complex() else 1
        return int(scale * prod(x.shape[:-2]) * count(x.shape[-2], x.shape[-1]))

    return flops


def _first_result(result: Any) -> Tensor:
    made: Tensor = result if isinstance(result, Tensor) else result[0]
    return made


def _solve(matrix: int, recursions: int, factored: bool = False) -> Count:
    """Return what counts triangular solves, of the matrix in one of the arguments."""

    def flops(args: Any, result: Any) -> int:
        a, x = args[matrix], _first_result(result)
        n = a.shape[-1]
        made = recursions * n * x.numel() + (prod(a.shape[:-2]) * 2 * n**3 / 3 if factored else 0)
        return int((4 if x.is_complex() else 1) * made)

    return flops


def _rows(first: int) -> Count:
    """Return what counts a product by its result and the depth of one argument's rows."""

    def flops(args: Any, result: Any) -> int:
        made = _first_result(result)
        return (8 if made.is_complex() else 2) * made.numel() * args[first].shape[-1]

    return flops


_rows_flops = _rows(0)


def _convolution_flops(args: Any, result: Any) -> int:
    weight = args[1] if isinstance(args[1], Tensor) else args[1].unpack()[0]
    return 2 * result.numel() * prod(weight.shape[1:])


def _transposed_flops(args: Any, result: Any) -> int:
    x, weight = args[:2]
    return 2 * x.numel() * prod(weight.shape[1:])


def _convolution_backward_flops(args: Any, result: Any) -> int:
    dy, _, weight = args[:3]
    return 2 * dy.numel() * prod(weight.shape[1:]) * sum(x is not None for x in result[:2])


def _attention_flops(factor: int) -> Count:
    def flops(args: Any, result: Any) -> int:
        q, k, v = args[:3] if factor == 2 else args[1:4]
        pairs = prod(q.shape[:-1]) * k.shape[-2]
        return int(factor * pairs * (q.shape[-1] + v.shape[-1]))

    return flops


def _encoder_flops(args: Any, result: Any) -> int:
    """Count projections, attention and, in a whole layer, its feed-forward part."""
    src = args[0]
    weights = sum(x.numel() for x in args if isinstance(x, Tensor) and x is not src and x.ndim == 2)
    tokens = src.numel() // src.shape[-1]
    return int(2 * tokens * weights + 4 * src.numel() * src.shape[-2])


def _recurrent(passes: int) -> Count:
    """Return what counts a fused recurrent layer: each step multiplies both weights."""

    def flops(args: Any, result: Any) -> int:
        steps = prod(args[0].shape[:-1])
        return int(2 * passes * steps * (args[1].numel() + args[2].numel()))

    return flops


def _nested_products(a: Tensor, b: Tensor) -> int:
    pairs = zip(a.unbind(), b.unbind(), strict=True)
    return sum(2 * x.numel() * y.shape[-1] for x, y in pairs)


def _unknown(args: Any, result: Any) -> int:
    return 0


_FACTORED = "a factorisation, not a product"
_RECURSION = "a recursion, not a product"
_FUSED = "torch fuses products that cannot be taken apart"
_CHOSEN = "fused attention, chosen by sdpa_kernel inside the offload"
_SPARSE = "sparse layout of torch"
_KERNEL = "a kernel that the program itself asks for"
_NO_PRODUCT = "distances without a product"
HOST: dict[str, tuple[str, Count]] = {
    # Counts as in Golub and Van Loan, Matrix Computations, to leading order.
    "linalg_cholesky_ex": (_FACTORED, _factor(lambda n, m: n**3 / 3)),
    "cholesky": (_FACTORED, _factor(lambda n, m: n**3 / 3)),
    "linalg_ldl_factor_ex": (_FACTORED, _factor(lambda n, m: n**3 / 3)),
    "linalg_lu_factor_ex": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "linalg_lu": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "_linalg_det": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "_linalg_slogdet": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "_linalg_solve_ex": (_FACTORED, _solve(0, 2, factored=True)),
    "linalg_inv_ex": (_FACTORED, _factor(lambda n, m: 2 * n**3)),
    "cholesky_inverse": (_FACTORED, _factor(lambda n, m: 2 * n**3 / 3)),
    "linalg_qr": (_FACTORED, _factor(lambda n, m: 2 * min(n, m) ** 2 * (max(n, m)))),
    "geqrf": (_FACTORED, _factor(lambda n, m: 2 * min(n, m) ** 2 * (max(n, m)))),
    "linalg_householder_product": (_FACTORED, _factor(lambda n, m: 2 * m**2 * n)),
    "ormqr": (_FACTORED, lambda args, made: 4 * made.numel() * args[1].shape[-1]),
    "_linalg_svd": (_FACTORED, _factor(lambda n, m: 14 * max(n, m) * min(n, m) ** 2)),
    "_linalg_eigh": (_FACTORED, _factor(lambda n, m: 9 * n**3)),
    "linalg_eig": (_FACTORED, _factor(lambda n, m: 25 * n**3)),
    "_linalg_eigvals": (_FACTORED, _factor(lambda n, m: 10 * n**3)),
    "linalg_lstsq": (_FACTORED, _factor(lambda n, m: 2 * m**2 * n)),
    "linalg_matrix_exp": (_FUSED, _factor(lambda n, m: 12 * n**3)),
    "linalg_solve_triangular": (_RECURSION, _solve(0, 1)),
    "triangular_solve": (_RECURSION, _solve(1, 1)),
    "cholesky_solve": (_RECURSION, _solve(1, 2)),
    "linalg_lu_solve": (_RECURSION, _solve(0, 2)),
    "linalg_ldl_solve": (_RECURSION, _solve(0, 2)),
    "_scaled_dot_product_flash_attention_for_cpu": (_CHOSEN, _attention_flops(2)),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (_CHOSEN, _attention_flops(5)),
    "_native_multi_head_attention": (_FUSED, _encoder_flops),
    "_transformer_encoder_layer_fwd": (_FUSED, _encoder_flops),
    "mkldnn_rnn_layer": (_FUSED, _recurrent(1)),
    "mkldnn_rnn_layer_backward": (_FUSED, _recurrent(2)),
    "_cdist_forward": (_NO_PRODUCT, _unknown),
    "_cdist_backward": (_NO_PRODUCT, _unknown),
    "_pdist_forward": (_NO_PRODUCT, _unknown),
    "_pdist_backward": (_NO_PRODUCT, _unknown),
    "_int_mm": ("integers", _rows_flops),
    "_weight_int8pack_mm": ("integers", _rows_flops),
    "_weight_int4pack_mm_for_cpu": ("integers", _rows_flops),
    "_dyn_quant_matmul_4bit": ("integers", _rows_flops),
    "fbgemm_linear_int8_weight": ("integers", _rows_flops),
    "fbgemm_linear_int8_weight_fp32_activation": ("integers", _rows_flops),
    "quantized_lstm": ("integers", _unknown),
    "quantized_gru": ("integers", _unknown),
    "_scaled_mm": ("floats of 8 bits", _rows_flops),
    "_scaled_mm_v2": ("floats of 8 bits", _rows_flops),
    "fbgemm_linear_fp16_weight": (_KERNEL, _rows_flops),
    "fbgemm_linear_fp16_weight_fp32_activation": (_KERNEL, _rows_flops),
    "mkldnn_linear": (_KERNEL, _rows_flops),
    "mkldnn_convolution": (_KERNEL, _convolution_flops),
    "_nnpack_spatial_convolution": (_KERNEL, _convolution_flops),
    "_slow_conv2d_forward": (_KERNEL, _convolution_flops),
    "_slow_conv2d_backward": (_KERNEL, _convolution_backward_flops),
    "slow_conv3d_forward": (_KERNEL, _convolution_flops),
    "slow_conv_dilated2d": (_KERNEL, _convolution_flops),
    "slow_conv_dilated3d": (_KERNEL, _convolution_flops),
    "slow_conv_transpose2d": (_KERNEL, _transposed_flops),
    "slow_conv_transpose3d": (_KERNEL, _transposed_flops),
    "_sparse_mm_reduce_impl": (_SPARSE, _rows_flops),
    "_sparse_sparse_matmul": (_SPARSE, _rows_flops),
    "hspmm": (_SPARSE, _rows_flops),
    "sspaddmm": (_SPARSE, _rows(1)),
    "sparse_sampled_addmm": (_SPARSE, _rows(1)),
}
"""Matrix work that a device does not take: reason, and operations of a call (as if dense)."""

_QUANTISED = re.compile(r"(linear|conv)(?!.*(pack|params))")
"""Operations of torch's namespace ``quantized`` that multiply matrices."""

NESTED: dict[str, Count] = {
    "linear": lambda args, made: 2 * made.numel() * args[1].shape[-1],
    "linear_backward": lambda args, _: (
        2 * args[1].numel() * args[2].shape[-1] * sum(map(bool, args[3][:2]))
    ),
    "matmul": lambda args, _: _nested_products(*args),
    "matmul_backward": lambda args, _: _nested_products(*args[1:3]) * sum(map(bool, args[3])),
}
"""Operations that nested tensors do not take apart: operations of a call."""

HIDING = {
    "linalg_pinv",
    "conv_tbc",
    "affine_grid_generator",
    "_grouped_mm",
    "_foreach_mm",
    "_sparse_addmm",
}
"""Operations whose kernel, the same on every device, is made of others, products among them."""


class _Unfused:
    """Attention, RNNs, encoder layers and compiled code as single operations, not as fused ones.

    Torch's switches are global: the first block to be entered throws them, the last one to be left
    throws them back, whichever thread and order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            before = torch.backends.mkldnn.set_flags(False)
            self._stack.callback(torch.backends.mkldnn.set_flags, before[0])
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            self._stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            # What is compiled has no operations to see; and torch refuses whole graphs inside.
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stack.close()


_UNFUSED = _Unfused()


class offload:
    """Send the matrix work of torch to a device, inside a ``with`` block.

    Forward and backward, in any program: SAT layers too, with their compact operands. A backward
    pass is offloaded if it is called inside. Results have torch's types and shapes; their numbers
    are the device's (docs/offload.md). Blocks may be nested: the inner one takes the work.

    Parameters
    ----------
    device : str or Device
        What to compute on; a string as for `sat.device`, closed at the end.
    precision : str
        ``"fp16"``: operands are rounded to float16, sums are float32. ``"fp32"``: about
        float32's accuracy, for six times the work.
    min_size : int
        Products of fewer multiply-accumulates stay on the host.
    max_cycles : int, optional
        Cycles that all products may take by the cycle model; one that does not fit raises
        `CycleBudgetError` before it runs.
    prune_left, prune_right : str or Pattern, optional
        N:M pattern for every product's left operand (activations, for layers) or right one,
        along the depth. Only with ``"fp16"``.
    clock_hz : float
        Clock that the report's simulated times are for.
    trace : bool
        Whether the report keeps every product, for a Perfetto trace.
    **options
        For `sat.device`, if ``device`` is a string.

    Returns
    -------
    OffloadReport
        From ``with offload(...) as report``; grows while the block runs.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Examples
    --------
    >>> with offload("golden") as report:
    ...     y = torch.nn.functional.linear(torch.ones(4, 8), torch.ones(2, 8))
    >>> report.coverage, report.flops
    (1.0, 128)
    """

    def __init__(
        self,
        device: str | Device = "golden",
        *,
        precision: str = "fp16",
        min_size: int = 0,
        max_cycles: int | None = None,
        prune_left: str | Pattern | None = None,
        prune_right: str | Pattern | None = None,
        clock_hz: float = CLOCK_HZ,
        trace: bool = False,
        **options: Any,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: must be 'fp16' or 'fp32'; choose one")
        _require_count("min_size", min_size, 0)
        if max_cycles is not None:
            _require_count("max_cycles", max_cycles, 1)
        number = isinstance(clock_hz, (int, float)) and not isinstance(clock_hz, bool)
        if not number or not 0 < clock_hz < float("inf"):
            raise ValueError(
                f"clock_hz={clock_hz!r}: must be a positive number of hertz; give one such as 100e6"
            )
        if not isinstance(trace, bool):
            raise TypeError(f"trace={trace!r}: must be a bool; give True to keep events")
        left, right = Pattern.parse(prune_left), Pattern.parse(prune_right)
        if precision == "fp32" and not (left.dense and right.dense):
            raise ValueError(
                f"prune_left={prune_left!r}, prune_right={prune_right!r}: operands are pruned only "
                "with precision='fp16'; leave them out or change the precision"
            )
        if isinstance(device, Device):
            if options:
                raise TypeError(
                    f"options {sorted(options)} are for a device that is made here; give them to "
                    "sat.device, or name the device by a string"
                )
            self._device, self._owned = device, False
        else:
            if device == "golden":
                options.setdefault("threads", torch.get_num_threads())
            self._device, self._owned = make_device(device, **options), True
        report = OffloadReport(self._device.name, precision, float(clock_hz), trace)
        meter = _Meter(self._device, report, max_cycles)
        self._mode = _Mode(meter, precision, min_size, left, right)
        self._report = report
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> OffloadReport:
        if self._stack is not None:
            raise RuntimeError("this offload is entered already: make another for a nested block")
        stack = contextlib.ExitStack()
        stack.enter_context(_UNFUSED)
        stack.enter_context(use_device(self._mode.meter))
        stack.enter_context(self._mode)
        self._stack = stack
        self._began = time.perf_counter()
        return self._report

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stack is not None
        self._report.seconds += time.perf_counter() - self._began
        stack, self._stack = self._stack, None
        stack.close()
        if self._owned:
            # Predictions of a golden device need no open device.
            self._device.close()


def _require_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name}={value!r}: must be an int of at least {least}; give one or leave it out"
        )
