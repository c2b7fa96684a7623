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

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator, resolve_key
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode

from sat.devices import device as make_device
from sat.devices.base import Device
from sat.devices.context import use_device
from sat.devices.use import watch_layers
from sat.offload import convolutions, operations  # noqa: F401 (they fill HANDLERS)
from sat.offload.arithmetic import Arithmetic
from sat.offload.decompositions import (
    OF_TORCH,
    any_lazy,
    as_outside,
    decompositions,
    entering,
    hidden_kernel,
    is_composite,
    own_kernel,
)
from sat.offload.handlers import COMPLEX, FLOATS, HANDLED, HANDLERS, PLAIN_TYPES, Form
from sat.offload.host_work import host_work
from sat.offload.meter import Account, Meter
from sat.offload.nested import NESTED
from sat.offload.recurrent import whole_layers
from sat.offload.report import CLOCK_HZ, OWN, OffloadReport, Work
from sat.offload.rounding import Lost
from sat.offload.switches import UNFUSED, Switch
from sat.sparsity.pattern import Pattern

aten = torch.ops.aten

PRECISIONS = ("fp16", "fp32")
"""One pass of float16 operands, or scaled passes that keep float32's bits."""

FLOAT64 = ("device", "host")
"""Where products of float64 operands are computed."""

FORMS = 4096
"""Sizes and types of operations that a mode knows by heart."""

_TAKEN = frozenset((*FLOATS, *COMPLEX))
_DOUBLE = frozenset((torch.float64, torch.complex128))
_SYMBOLIC = (FakeTensor, FunctionalTensor)
_TRACING = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


class Route:
    """What takes an operation, by one look at a table.

    Attributes
    ----------
    func : OpOverload or HigherOrderOperator
        Kept: its `id` is the key.
    kernel : callable
        What ``func`` calls.
    nested, handler : callable or None
        For nested tensors, and for others.
    plain : bool
        Whether it was found to be none of all that the mode looks for.
    """

    __slots__ = ("func", "handler", "kernel", "nested", "plain")

    def __init__(self, func: Any) -> None:
        self.func, self.kernel = func, getattr(func, "_op", func)
        self.nested, self.handler = NESTED.get(func), HANDLERS.get(func)
        self.plain = False


_ROUTES: dict[int, Route] = {}


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
        self.min_size = min_size
        self.taken = _TAKEN if float64 == "device" else _TAKEN - _DOUBLE
        self.arithmetic = Arithmetic(meter, precision, prune_left, prune_right)
        # What handlers ask for, without a step between.
        self.precision, self.space = precision, self.arithmetic.space
        self.matmul = self.arithmetic.matmul
        self.takes_windows = self.arithmetic.takes_windows
        self.steady = self.arithmetic.steady
        self._known: dict[Form, tuple[Work, int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled inside (`UNFUSED`): torch need not see to it at every operation.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An operator's own hash is Python, and most operations are small.
        route = _ROUTES.get(id(func))
        if route is None:
            route = _ROUTES[id(func)] = Route(func)
        if route.plain and not types:
            if any_lazy(args) or (kwargs and any_lazy(kwargs.values())):
                return self.plainly(func, args, kwargs or {})
            return route.kernel(*args, **kwargs) if kwargs else route.kernel(*args)
        kwargs = kwargs or {}
        if types and any(t not in PLAIN_TYPES for t in types):
            if isinstance(func, HigherOrderOperator):
                with as_outside():
                    return self.higher_order(func, args, kwargs)
            if any(issubclass(t, _SYMBOLIC) for t in types):
                return self.plainly(func, args, kwargs)  # no numbers to compute with
            return NotImplemented  # the subclass takes itself apart, into what comes here again
        if route.plain:
            return self.plainly(func, args, kwargs)
        nested, handler = route.nested, route.handler
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
            route.plain = True
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

    @property
    def lost(self) -> Lost:
        """What rounding loses of the operation at hand."""
        return self.arithmetic.lost

    def account(self, op: str, size: str, flops: int, form: Form | None) -> Account:
        """Book the products that are computed inside as one call of an operation."""
        work = self.report.work(op, size, None)
        if form is not None:
            if len(self._known) >= FORMS:
                self._known.clear()
            self._known[form] = work, flops
        return Account(self.meter, work, flops)

    def recall(self, form: Form) -> Account | None:
        """Return the account of a form that was taken before, if it is to be now."""
        known = self._known.get(form)
        if known is None or _tracing():
            return None
        self.report.bookings += 1
        return Account(self.meter, *known)

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


def _tracing() -> bool:
    """Whether operations are being written down, for a graph."""
    return any(map(torch._C._get_dispatch_mode, _TRACING))


def _current() -> Mode | None:
    """Return this thread's innermost mode, if there are none but ours and nothing is traced."""
    c = torch._C
    modes = [c._get_dispatch_stack_at(i) for i in range(c._len_torch_dispatch_stack())]
    if not modes or _tracing() or not all(isinstance(mode, Mode) for mode in modes):
        return None
    found: Mode = modes[-1]
    return found


RECURRENT = Switch(partial(whole_layers, _current))
"""Enter it for as long as recurrent layers are to be taken as a whole."""


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
        stack.enter_context(RECURRENT)
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
