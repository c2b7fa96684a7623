"""How an operation of torch becomes products that a device computes.

`HANDLERS` has a function for each overload that is taken; `handles` puts one there. A handler takes
its operation apart into products and asks `Products`, the few verbs of the mode that it is handed,
to have them computed. `sat.offload.operations` and `sat.offload.convolutions` hold the handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from sat.devices.operand import Windows
from sat.offload.report import size_text
from sat.offload.rounding import Lost
from sat.offload.workspace import Workspace

aten = torch.ops.aten

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

_WIDE = frozenset((torch.float64, *COMPLEX))

Size = tuple[int, int, int, int]
"""(count, rows, depth, cols) of an operation's products."""


Form = tuple[object, ...]
"""What decides how an operation on plain tensors is taken: its name, shapes and types."""


class Products(Protocol):
    """What a handler may ask of the mode that caught an operation."""

    precision: str
    """``"fp16"`` or ``"fp32"``."""

    @property
    def lost(self) -> Lost:
        """What rounding loses of the operation at hand."""

    takes_windows: bool
    """Whether operands may be windows in pictures of float16, and results' columns turned."""

    space: Workspace
    """Memory for what a handler makes on its way."""

    def matmul(
        self,
        a: Tensor | Windows,
        b: Tensor | Windows,
        wide: torch.dtype,
        start: Tensor | None = None,
        *,
        passing: bool = False,
        lasting: bool = False,
        outer: int = 1,
    ) -> Tensor:
        """Return start + a @ b, as ``wide``; stacks have their number in front.

        ``passing`` if the operands were made just now, and the result is read before the next
        product, unless it is ``lasting``: the first are no weights to keep, and the other's memory
        is used again. ``outer`` as for `Arithmetic.matmul`.
        """

    def refusal(self, tensors: Sequence[Tensor], macs: int) -> str | None:
        """Return why a device cannot take a product of these, or None if it can."""

    def account(
        self, op: str, size: str, flops: int, form: Form | None
    ) -> AbstractContextManager[None]:
        """Book the products that are computed inside as one call of an operation.

        From now on, `recall` knows the form.
        """

    def recall(self, form: Form) -> AbstractContextManager[None] | None:
        """Return the `account` of a form that was taken before; None if it is not to be now."""

    def plainly(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Have torch compute an operation as it would outside."""

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


Handler = Callable[[Products, Any, Any, Any], Any]
HANDLERS: dict[Any, Handler] = {}
"""What is done for each operation of torch that a device computes."""

HANDLED: set[str] = set()
"""Their names."""


def handles(
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

    label = f"aten.{name}"

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        def handle(mode: Products, func: Any, args: Any, kwargs: Any) -> Any:
            form = None if kwargs else _form(label, args)
            booking = None if form is None else mode.recall(form)
            if booking is not None:
                with booking:
                    return compute(mode, *args)
            out, options = None, kwargs
            if kwargs:
                options = {key: value for key, value in kwargs.items() if key != "out"}
                out = kwargs.get("out")
            tensors = [x for x in (*args, out) if isinstance(x, Tensor)]
            for x in tensors:
                if x.is_nested:
                    return mode.plainly(func, args, kwargs)  # an error, which torch words
            found = size(*args, **options)
            if found is None or (out is not None and out.dtype != args[0].dtype):
                # Mostly an error, which torch words.
                return mode.stay(func, args, kwargs, "an unusual form", lambda _: 0, "")
            if 0 in found:
                return mode.plainly(func, args, kwargs)  # nothing to multiply
            count, rows, depth, cols = found
            text = size_text(count, rows, depth, cols)
            factor = 8 if any(map(Tensor.is_complex, tensors)) else 2
            factor *= 1 if passes is None else passes(*args, **options)
            flops = factor * count * rows * depth * cols
            reason = mode.refusal(tensors, rows * depth * cols)
            if reason is not None:
                return mode.stay(func, args, kwargs, reason, lambda _: flops, text)
            args = [_resolved(x) if isinstance(x, Tensor) else x for x in args]
            with mode.account(label, text, flops, form):
                result = compute(mode, *args, **options)
            if out is None:
                return result
            if out.shape != result.shape:
                out.resize_(result.shape)
            return out.copy_(result)

        def in_place(mode: Products, func: Any, args: Any, kwargs: Any) -> Any:
            result = handle(mode, func, args, kwargs)
            # A base that would have to grow is an error, which torch words.
            fits = result.shape == args[0].shape
            return args[0].copy_(result) if fits else mode.plainly(func, args, kwargs)

        packet = getattr(aten, name)
        for overload in packet.overloads():
            if overload in ("default", "out"):
                HANDLERS[getattr(packet, overload)] = handle
        if hasattr(aten, f"{name}_"):
            HANDLERS[getattr(aten, f"{name}_").default] = in_place
        HANDLED.add(name)
        return compute

    return register


_keys = torch._C._dispatch_keys


def _plain_keys() -> frozenset[int]:
    with torch.inference_mode():
        inference = torch.empty(0)
    return frozenset(_keys(x).raw_repr() for x in (torch.empty(0), inference))


PLAIN_TYPES = (Tensor, torch.nn.Parameter)

_PLAIN = _plain_keys()
"""Keys of tensors in the host's memory, strided, that are what their memory says."""


def is_plain(x: Tensor) -> bool:
    """Return whether a tensor lies in the host's memory, strided, and is what its memory says."""
    return _keys(x).raw_repr() in _PLAIN


def _form(label: str, args: Sequence[Any]) -> Form | None:
    """Return the form of an operation; None unless its arguments are plain tensors."""
    form: list[object] = [label]
    for x in args:
        if not isinstance(x, Tensor) or not is_plain(x):
            return None
        form.append(x.shape)
        form.append(x.dtype)
    return tuple(form)


def _resolved(x: Tensor) -> Tensor:
    """Return a tensor whose memory holds its numbers.

    Not so are those that are conjugated or negated in name, and forward-mode AD's zeros.
    """
    if x._is_zerotensor():
        return torch.zeros(x.shape, dtype=x.dtype)
    if x.is_conj() or x.is_neg():
        return x.resolve_conj().resolve_neg()
    return x


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor as a type; one that is of it at once, where `Tensor.to` takes a while."""
    return x if x.dtype is dtype else x.to(dtype)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which results of operands of a type are handed on."""
    return dtype if dtype in _WIDE else torch.float32
