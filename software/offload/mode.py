"""Send the matrix work of any PyTorch program to a device, and account for it.

Inside ``with sat.offload("rtl") as report:`` every product that torch would compute (mm, addmm,
bmm, convolutions and their gradients, attention, einsum, and what else decomposes to them) is
computed by the device. `docs/offload.md` states the arithmetic.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
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
from torch.utils._python_dispatch import TorchDispatchMode

from sat.arrays import array_of, tensor_of
from sat.devices import device as make_device
from sat.devices.base import Device
from sat.devices.context import use_device
from sat.devices.operand import RightOperand
from sat.devices.use import watch_layers
from sat.offload import convolutions, operations  # noqa: F401 (they fill HANDLERS)
from sat.offload import precision as fp32
from sat.offload.decompositions import (
    OF_TORCH,
    as_outside,
    decompositions,
    entering,
    hidden_kernel,
    is_composite,
    own_kernel,
)
from sat.offload.handlers import COMPLEX, FLOATS, HANDLED, HANDLERS, Handler
from sat.offload.host_work import host_work
from sat.offload.meter import Account, Array16, Meter
from sat.offload.nested import NESTED
from sat.offload.report import CLOCK_HZ, OWN, OffloadReport
from sat.offload.residents import SeenOperands
from sat.offload.rounding import Lost, halves
from sat.offload.switches import UNFUSED
from sat.sim.golden import sore
from sat.sparsity.pattern import DENSE, Pattern

aten = torch.ops.aten

PRECISIONS = ("fp16", "fp32")
"""One pass of float16 operands, or scaled passes that keep float32's bits."""

FLOAT64 = ("device", "host")
"""Where products of float64 operands are computed."""


_TAKEN = frozenset((*FLOATS, *COMPLEX))
_DOUBLE = frozenset((torch.float64, torch.complex128))
_SYMBOLIC = (FakeTensor, FunctionalTensor)
_TRACING = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


_NO_MATRIX_WORK = (None, None)
"""Of operations that were found to be none of all that the mode looks for."""

_ROUTES: dict[Any, tuple[Callable[..., Any] | None, Handler | None]] = {}
"""What takes an operation: of nested tensors, and of others."""


class Mode(TorchDispatchMode):
    """Catches operations below autograd; `HANDLERS` says which."""

    supports_higher_order_operators = True

    def __init__(
        self,
        meter: Meter,
        precision: str,
        min_size: int,
        prune_left: Pattern,
        prune_right: Pattern,
        float64: str,
    ) -> None:
        super().__init__()
        self.meter, self.report = meter, meter.report
        self.precision, self.min_size = precision, min_size
        self.taken = _TAKEN if float64 == "device" else _TAKEN - _DOUBLE
        self.prune_left, self.prune_right = prune_left, prune_right
        self._space = fp32.Workspace()
        self._seen = SeenOperands()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if types and any(t not in (Tensor, torch.nn.Parameter) for t in types):
            if isinstance(func, HigherOrderOperator):
                with as_outside():
                    return self.higher_order(func, args, kwargs)
            if any(issubclass(t, _SYMBOLIC) for t in types):
                return self.plainly(func, args, kwargs)  # no numbers to compute with
            return NotImplemented  # the subclass takes itself apart, into what comes here again
        # One look at a table: an operator's hash is Python, and most operations are small.
        route = _ROUTES.get(func)
        if route is None:
            route = _ROUTES[func] = NESTED.get(func), HANDLERS.get(func)
        if route is _NO_MATRIX_WORK:
            with as_outside():
                return func(*args, **kwargs)
        nested, handler = route
        if nested is not None and any(isinstance(x, Tensor) and x.is_nested for x in args):
            with entering(func), self:
                result = nested(*args, **kwargs)
            return self.plainly(func, args, kwargs) if result is NotImplemented else result
        if handler is not None:
            return handler(self, func, args, kwargs)
        if isinstance(func, HigherOrderOperator):
            with as_outside():
                return self.higher_order(func, args, kwargs)
        if func.namespace not in OF_TORCH:
            return self.foreign(func, args, kwargs)
        name = func.overloadpacket.__name__
        stays = host_work(func.namespace, name)
        if stays is not None:
            reason, count = stays
            return self.stay(func, args, kwargs, reason, partial(count, args), "")
        if is_composite(func):
            with entering(func), self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        hidden = hidden_kernel(func)
        if hidden is not None:
            with entering(func), self:
                return func._op_dk(hidden, *args, **kwargs)
        decomposition = decompositions().get(func)
        if decomposition is not None:
            with entering(func), self:
                return decomposition(*args, **kwargs)
        if name in HANDLED:
            reason = f"overload {func._overloadname}: only plain forms are taken"
            return self.stay(func, args, kwargs, reason, lambda _: 0, "")
        if nested is None and not is_composite(func):
            _ROUTES[func] = _NO_MATRIX_WORK
        return self.plainly(func, args, kwargs)

    def plainly(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Have torch compute an operation as it would outside."""
        with as_outside():
            return func(*args, **kwargs)

    def foreign(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator of the program's own: what it has torch do comes here again."""
        if _tracing():
            return self.plainly(func, args, kwargs)
        kernel = own_kernel(func, args, kwargs)
        before, began = self.report.bookings, time.perf_counter()
        with entering(func):
            if kernel is None:
                result = func(*args, **kwargs)
            else:
                with self:
                    result = kernel(*args, **kwargs)
        if self.report.bookings == before:
            # No work that can be seen from here: how much there was, only the program knows.
            self._book(func, OWN, 0, "", time.perf_counter() - began)
        return result

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
        result = self.plainly(func, args, kwargs)
        self._book(func, reason, flops(result), size, time.perf_counter() - began)
        return result

    def _book(self, func: Any, reason: str, flops: int, size: str, seconds: float) -> None:
        """Book an operation of the host."""
        work = self.report.work(f"{func.namespace}.{func.overloadpacket.__name__}", size, reason)
        work.calls += 1
        work.flops += flops
        work.seconds += seconds
        self.report.event(work.op, size, "host", None, seconds)

    def account(self, op: str, size: str, flops: int) -> Account:
        """Book the products that are computed inside as one call of an operation."""
        return Account(self.meter, self.report.work(op, size, None), flops)

    def refusal(self, tensors: Sequence[Tensor], macs: int) -> str | None:
        """Return why a device cannot take a product of these, or None if it can."""
        for x in tensors:
            if not x.is_cpu:
                return f"tensors on {x.device.type}"
            if x.layout is not torch.strided:
                return "sparse layout of torch"
            if x.dtype not in self.taken:
                if x.dtype in _DOUBLE:
                    return "float64, left on the host as asked for"
                return f"dtype {str(x.dtype).removeprefix('torch.')}"
        if _tracing():
            return "traced into a graph"  # which would keep our results as constants
        return f"below min_size={self.min_size:,}" if macs < self.min_size else None

    # ------------------------------------------------------------------------- products

    def matmul(
        self, a: Tensor, b: Tensor, wide: torch.dtype, start: Tensor | None = None
    ) -> Tensor:
        """Return start + a @ b for matrices, or for stacks of as many.

        Parameters
        ----------
        a, b : Tensor
            (rows, depth) and (depth, cols), or with the number of products in front of both.
        wide : torch.dtype
            float32, float64 or complex: type of the result.
        start : Tensor, optional
            (cols,), or as the result: first value of each sum where the device computes in
            float32, else added at the end.
        """
        if wide in COMPLEX:
            return self._complex(a, b, wide, start)
        if b.ndim == 3 and b.stride(0) == 0 and len(b) > 1 and (start is None or start.ndim == 1):
            # One right operand for all: one product of many rows.
            flat = self.matmul(a.reshape(-1, a.shape[2]), b[0], wide, start)
            return flat.view(*a.shape[:2], -1)
        if self.precision == "fp32":
            left, right = (array_of(_exact(x)) for x in (a, b))
            total = fp32.matmul(
                left, right, self._product, threads=torch.get_num_threads(), workspace=self._space
            )
            result = torch.from_numpy(total)
            if start is not None:
                result += start
            return result.to(wide, copy=True)
        first = None
        if start is not None and wide is not torch.float64:
            first = array_of(start.float().expand(*a.shape[:-1], b.shape[-1]))
        left = self._halves(a)
        if self.prune_left.dense:
            assert self.meter.work is not None, "products are computed for an operation"
            kept = self._seen.operand(b, self.meter.work.lost, self._right)
            made = tensor_of(self.meter._matmul(left, kept, first, "auto")[0])
        else:
            made = tensor_of(self._product(left, self._halves(b), first))
        if wide is torch.float64:
            return made.double() if start is None else made.double() + start
        return made

    def _right(self, x: Tensor, lost: Lost) -> RightOperand:
        """Return a right operand, rounded, and pruned as asked for."""
        return _compact(halves(x, lost), self.prune_right)

    def rounded(self, x: Tensor) -> Tensor:
        """Return an operand rounded to float16; the report counts what is lost by it."""
        return torch.from_numpy(self._halves(x))

    def _halves(self, x: Tensor) -> Array16:
        work = self.meter.work
        assert work is not None, "products are computed for an operation"
        return halves(x, work.lost)

    def _complex(self, a: Tensor, b: Tensor, wide: torch.dtype, start: Tensor | None) -> Tensor:
        """Return a complex product as one of real operands, twice the depth and columns.

        ``[re a, im a] · [[re b, im b], [-im b, re b]]``; operands that are real count as such.
        """
        real = torch.float64 if wide is torch.complex128 else torch.float32
        a, b = (torch.view_as_real(x.detach().resolve_conj().to(wide)) for x in (a, b))
        if self.precision == "fp16":
            a, b = self.rounded(a), self.rounded(b)  # before there are two of each
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
        """Return the product of two matrices, or those of two stacks, pruned as asked for."""
        left, right = self.prune_left, self.prune_right
        if not left.dense and not right.dense:
            # A device takes one compact operand: the left one goes with zeros in it.
            a, left = _zeroed(a, left), DENSE
        # The meter is this block's alone: it need not wait for its turn, only for the device's.
        if left.dense:
            return self.meter._matmul(a, _compact(b, right), start, "auto")[0]
        operand = _compact(a.swapaxes(-1, -2), left)
        first = None if start is None else start.swapaxes(-1, -2)
        made = self.meter._matmul(b.swapaxes(-1, -2), operand, first, "auto")[0]
        return np.ascontiguousarray(made.swapaxes(-1, -2))


def _compact(b: Array16, pattern: Pattern) -> RightOperand:
    """Return a right operand, pruned along the depth."""
    if pattern.dense:
        return RightOperand.dense(b)
    values, indices = sore.select(b, pattern.n, pattern.m, -2)
    return RightOperand(values, indices, pattern, b.shape[-2])


def _tracing() -> bool:
    """Whether operations are being written down, for a graph."""
    return any(map(torch._C._get_dispatch_mode, _TRACING))


def _exact(x: Tensor) -> Tensor:
    """Return a tensor in the narrowest type that numpy knows and that holds it exactly."""
    return x if x.dtype is torch.float64 else x.float()


def _zeroed(a: Array16, pattern: Pattern) -> Array16:
    values, indices = sore.select(a, pattern.n, pattern.m, -1)
    return sore.expand(values, indices, pattern.n, pattern.m, a.shape[-1], -1)


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
    float64 : str
        ``"device"``: products of float64 and complex128 operands are computed as all others are,
        at the precision chosen (33 bits at most). ``"host"``: by torch, in full.
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
        float64: str = "device",
        clock_hz: float = CLOCK_HZ,
        trace: bool = False,
        **options: Any,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: must be 'fp16' or 'fp32'; choose one")
        if float64 not in FLOAT64:
            raise ValueError(f"float64={float64!r}: must be 'device' or 'host'; choose one")
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
        meter = Meter(self._device, report, max_cycles)
        self._mode = Mode(meter, precision, min_size, left, right, float64)
        self._report = report
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> OffloadReport:
        if self._stack is not None:
            raise RuntimeError("this offload is entered already: make another for a nested block")
        stack = contextlib.ExitStack()
        stack.enter_context(UNFUSED)
        stack.enter_context(use_device(self._mode.meter))
        stack.enter_context(self._mode)
        self._use = stack.enter_context(watch_layers())
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
        idle = self._use.describe()
        if idle is not None:
            # Nothing was computed by them; a row without operations says so.
            self._report.work("SAT layers", "-", idle)
        if self._owned:
            # Predictions of a golden device need no open device.
            self._device.close()


def _require_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name}={value!r}: must be an int of at least {least}; give one or leave it out"
        )
