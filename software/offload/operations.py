"""What `sat.offload` does for each operation of torch that a device computes.

`HANDLERS` has a function for each overload. It takes the operation apart into products, which the
mode (`sat.offload.mode.Mode`) has the device compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sat.offload.lowering import (
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

if TYPE_CHECKING:
    from sat.offload.mode import Mode

aten = torch.ops.aten

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)

Handler = Callable[["Mode", Any, Any, Any], Any]
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
        def handle(mode: Mode, func: Any, args: Any, kwargs: Any) -> Any:
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

        def in_place(mode: Mode, func: Any, args: Any, kwargs: Any) -> Any:
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
    mode: Mode, base: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any, shape: Sequence[int]
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
def _mm(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None], b[None], _wide(a.dtype))[0].to(a.dtype)


@_handles("bmm", _stacks)
def _bmm(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a, b, _wide(a.dtype)).to(a.dtype)


@_handles("mv", _column)
def _mv(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None], b[None, :, None], _wide(a.dtype))[0, :, 0].to(a.dtype)


@_handles("dot", _vectors)
def _dot(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    return mode.matmul(a[None, None], b[None, :, None], _wide(a.dtype))[0, 0, 0].to(a.dtype)


@_handles("vdot", _vectors)
def _vdot(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    return _dot(mode, a.conj(), b)


@_handles("addmm", _plus(_matrices, lambda size: (size[1], size[3])))
def _addmm(
    mode: Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    shape = (1, len(a), b.shape[1])
    return _added(mode, base, a[None], b[None], beta, alpha, shape)[0]


@_handles("_addmm_activation", _plus(_matrices, lambda size: (size[1], size[3])))
def _addmm_activation(
    mode: Mode,
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
    mode: Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    column = base.expand(len(a))[:, None]
    return _added(mode, column, a[None], b[None, :, None], beta, alpha, (1, len(a), 1))[0, :, 0]


@_handles("baddbmm", _plus(_stacks, lambda size: (size[0], size[1], size[3])))
def _baddbmm(
    mode: Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    return _added(mode, base, a, b, beta, alpha, (*a.shape[:2], b.shape[2]))


@_handles("addbmm", _plus(_one_product, lambda size: (size[1], size[3])))
def _addbmm(
    mode: Mode, base: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
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
    mode: Mode, x: Tensor, w: Tensor, bias: Tensor | None, g: Geometry, wide: torch.dtype
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
    mode: Mode,
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


def _weight_gradient(mode: Mode, x: Tensor, dy: Tensor, g: Geometry, wide: torch.dtype) -> Tensor:
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


def _last(mode: Mode, x: Tensor) -> Tensor:
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
    mode: Mode,
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
    mode: Mode,
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


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which results of operands of a type are handed on."""
    return dtype if dtype in (torch.float64, *COMPLEX) else torch.float32
