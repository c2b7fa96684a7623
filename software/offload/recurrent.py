"""Recurrent layers, taken as a whole: LSTM, GRU and RNN, forward and backward.

Torch makes a step of one product and some ten operations on small tensors, each of which a dispatch
mode would be asked about, forward and backward; that takes longer than to compute them. Here the
steps of a layer run past the mode, which is handed their products alone. Operations, their order
and the layout of their operands are those of torch (ATen/native/RNN.cpp and its gradients), and so
are the bits; a weight's gradients are added up step by step, from the last one on.

What is not plain float32 in the host's memory, projections, packed sequences, and whatever is
traced, transformed or cast automatically, torch takes apart, step by step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.nn import functional

from sat.offload.handlers import PLAIN_TYPES, is_plain

aten = torch.ops.aten


class Taker(Protocol):
    """What takes products: a dispatch mode."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation."""

    def steady(self) -> contextlib.AbstractContextManager[None]:
        """Return what says that no code of the program's runs meanwhile."""


Current = Callable[[], Taker | None]
"""Returns the mode that takes the products of this thread, if it is the only one and may now."""


Step = tuple[Tensor, Any, tuple[Tensor, ...]]
"""Next state, next cell state or None, and what `Cell.backward` asks for."""


class Cell(Protocol):
    """A step of a layer after its product, and the step's gradients."""

    gates: int

    @staticmethod
    def forward(ig: Tensor, hg: Tensor, h: Tensor, c: Any) -> Step:
        """Return a step.

        Parameters
        ----------
        ig, hg : Tensor
            (batch, gates * hidden): products with the input and with the state. ``hg`` is lost.
        h, c : Tensor
            (batch, hidden): the state, and an LSTM's cell state.
        """

    @staticmethod
    def backward(g: Tensor, gc: Any, kept: Sequence[Tensor]) -> Gradients:
        """Return a step's gradients from those of its next state and cell state."""


class Gradients(NamedTuple):
    """Of a step: of ``hg``, of ``ig``, of the state past the product, of the cell state."""

    hg: Tensor
    ig: Tensor
    h: Tensor | None = None
    c: Tensor | None = None


class Lstm:
    """As torch's: input, forget, cell and output gates."""

    gates = 4

    @staticmethod
    def forward(ig: Tensor, hg: Tensor, h: Tensor, c: Any) -> Step:
        i, f, g, o = hg.add_(ig).unsafe_chunk(4, 1)
        i, f, g, o = i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
        new = (f * c).add_(i * g)
        t = new.tanh()
        return o * t, new, (i, f, g, o, c, t)

    @staticmethod
    def backward(g: Tensor, gc: Any, kept: Sequence[Tensor]) -> Gradients:
        i, f, cell, o, c, t = kept
        through = aten.tanh_backward(g * o, t)
        gc = through if gc is None else gc + through
        gates = torch.cat(
            [
                aten.sigmoid_backward(gc * cell, i),
                aten.sigmoid_backward(gc * c, f),
                aten.tanh_backward(gc * i, cell),
                aten.sigmoid_backward(g * t, o),
            ],
            1,
        )
        return Gradients(gates, gates, None, gc * f)


class Gru:
    """As torch's: reset, update and new gates."""

    gates = 3

    @staticmethod
    def forward(ig: Tensor, hg: Tensor, h: Tensor, c: Any) -> Step:
        (ir, iz, new), (r, z, state) = ig.unsafe_chunk(3, 1), hg.unsafe_chunk(3, 1)
        r, z = r.add_(ir).sigmoid_(), z.add_(iz).sigmoid_()
        n = new.add(state * r).tanh_()
        d = h - n
        return (d * z).add_(n), None, (r, z, n, d, state)

    @staticmethod
    def backward(g: Tensor, gc: Any, kept: Sequence[Tensor]) -> Gradients:
        r, z, n, d, state = kept
        gd = g * z
        gn = aten.tanh_backward(g + -gd, n)
        gz = aten.sigmoid_backward(g * d, z)
        gr = aten.sigmoid_backward(gn * state, r)
        return Gradients(torch.cat([gr, gz, gn * r], 1), torch.cat([gr, gz, gn], 1), gd)


class Tanh:
    """A plain layer of tanh."""

    gates = 1

    @staticmethod
    def forward(ig: Tensor, hg: Tensor, h: Tensor, c: Any) -> Step:
        new = hg.add_(ig).tanh()
        return new, None, (new,)

    @staticmethod
    def backward(g: Tensor, gc: Any, kept: Sequence[Tensor]) -> Gradients:
        gates = aten.tanh_backward(g, kept[0])
        return Gradients(gates, gates)


class Relu:
    """A plain layer of ReLU."""

    gates = 1

    @staticmethod
    def forward(ig: Tensor, hg: Tensor, h: Tensor, c: Any) -> Step:
        new = hg.add_(ig).relu()
        return new, None, (new,)

    @staticmethod
    def backward(g: Tensor, gc: Any, kept: Sequence[Tensor]) -> Gradients:
        gates = aten.threshold_backward(g, kept[0], 0)
        return Gradients(gates, gates)


def _product(mode: Taker | None, *operands: Tensor | None) -> Tensor:
    """Return a @ b, or, of three operands the first of which is not None, that plus a row."""
    args = operands[1:] if len(operands) > 2 and operands[0] is None else operands
    func = aten.mm.default if len(args) == 2 else aten.addmm.default
    made: Tensor = func(*args) if mode is None else mode.__torch_dispatch__(func, (), args)
    return made


@contextlib.contextmanager
def _past(mode: Taker | None) -> Iterator[None]:
    """Run operations as they are below autograd and modes; as they come, if there is no mode."""
    if mode is None:
        yield
        return
    with (
        torch._C._DisableTorchDispatch(),
        torch._C._AutoDispatchBelowAutograd(),
        mode.steady(),
    ):
        yield


def _steps(
    cell: Cell,
    order: Sequence[int],
    operands: Sequence[Any],
    product: Callable[..., Tensor],
    keep: Callable[[tuple[Tensor, ...]], None],
) -> tuple[Any, ...]:
    """Return a layer's (outputs, last state), and of an LSTM its last cell state."""
    igates, h, c, w, b = operands
    inputs, outputs, columns = igates.unbind(0), [h] * len(order), w.t()
    for t in order:
        before = h
        h, c, kept = cell.forward(inputs[t], product(b, h, columns), h, c)
        keep((before, *kept))
        outputs[t] = h
    made = torch.stack(outputs), h
    return made if c is None else (*made, c)


class _Layer(torch.autograd.Function):
    """All steps of a layer in one direction."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, current: Current, cell: Cell, reverse: bool, *operands: Any
    ) -> tuple[Any, ...]:
        """Take (products with the inputs, state, cell state, weight, bias) to what `_steps` does.

        (steps, batch, gates * hidden), (batch, hidden) twice, (gates * hidden, hidden) and (gates *
        hidden,); the cell state and bias may be None.
        """
        mode = current()
        order = range(len(operands[0]))
        ctx.order = order[::-1] if reverse else order
        ctx.current, ctx.cell, ctx.operands = current, cell, len(operands)
        kept: list[Tensor] = []
        wanted = any(ctx.needs_input_grad)
        with _past(mode):
            made = _steps(
                cell,
                ctx.order,
                operands,
                lambda *of: _product(mode, *of),
                kept.extend if wanted else lambda _: None,
            )
        ctx.set_materialize_grads(False)
        if wanted:
            ctx.save_for_backward(*operands, *kept)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        operands, kept = saved[: ctx.operands], saved[ctx.operands :]
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            # These gradients will be differentiated themselves: by torch, step by step.
            def product(bias: Any, a: Tensor, b: Tensor) -> Tensor:
                return a.mm(b) if bias is None else torch.addmm(bias, a, b)

            made = _steps(ctx.cell, ctx.order, operands, product, lambda _: None)
            pairs = [(y, g) for y, g in zip(made, grads, strict=True) if g is not None]
            wanted = [x for x, need in zip(operands, needed, strict=True) if need]
            found = iter(
                torch.autograd.grad(
                    [y for y, _ in pairs],
                    wanted,
                    [g for _, g in pairs],
                    create_graph=True,
                    allow_unused=True,
                )
            )
            return None, None, None, *(next(found) if need else None for need in needed)
        mode = ctx.current()
        with _past(mode):
            return None, None, None, *_gradients(mode, ctx, operands, kept, needed, grads)


def _gradients(
    mode: Taker | None,
    ctx: Any,
    operands: Sequence[Any],
    kept: Sequence[Tensor],
    needed: Sequence[bool],
    grads: Sequence[Any],
) -> tuple[Any, ...]:
    """Return the gradients of a layer's operands, from the last step to the first."""
    outer, g, *cells = grads
    each = len(kept) // len(ctx.order)
    gc = cells[0] if cells else None
    dw = db = None
    gates: list[Any] = [None] * len(ctx.order)
    last = ctx.order[-1]
    if outer is not None:
        g = outer[last] if g is None else g + outer[last]
    elif g is None:
        g = torch.zeros_like(kept[0])  # only the last cell state was used
    for number in reversed(range(len(ctx.order))):
        h, *inner = kept[number * each : (number + 1) * each]
        made = ctx.cell.backward(g, gc, inner)
        gates[ctx.order[number]], g, gc = made.ig, made.h, made.c
        if number and outer is not None:
            ahead = outer[ctx.order[number - 1]]
            g = ahead if g is None else ahead + g
        if number or needed[1]:
            back = _product(mode, made.hg, operands[3])
            g = back if g is None else g + back
        if needed[3]:
            step = _product(mode, made.hg.t(), h)
            dw = step if dw is None else dw.add_(step)
        if needed[4]:
            total = made.hg.sum(0, keepdim=True).view(-1)
            db = total if db is None else db.add_(total)
    return torch.stack(gates) if needed[0] else None, g, gc if needed[2] else None, dw, db


KINDS: dict[str, Cell] = {"lstm": Lstm, "gru": Gru, "rnn_tanh": Tanh, "rnn_relu": Relu}


def _fits(
    cell: Cell, x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], *options: Any
) -> bool:
    """Return whether a call is taken here; if not, torch says what is wrong, if anything is."""
    has_biases, layers, bidirectional, batch_first = options
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.jit.is_tracing():
        return False
    if torch.is_autocast_enabled("cpu") or torch.autograd.forward_ad._current_level >= 0:
        return False
    tensors = (x, *hx, *params)
    if any(type(t) not in PLAIN_TYPES or not is_plain(t) or t.is_inference() for t in tensors):
        return False
    if any(t.dtype is not torch.float32 or not t.is_contiguous() for t in (*hx, *params)):
        return False
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    hidden = hx[0].shape[-1] if hx[0].ndim else 0
    if x.dtype is not torch.float32 or x.ndim != 3 or not x.numel() or hidden < 2:
        return False
    batch = x.shape[0 if batch_first else 1]
    if len(params) != layers * directions * each:
        return False
    if any(h.shape != (layers * directions, batch, hidden) for h in hx):
        return False
    rows = cell.gates * hidden
    for number in range(layers * directions):
        ins = x.shape[2] if number < directions else hidden * directions
        shapes = [(rows, ins), (rows, hidden), (rows,), (rows,)][:each]
        found = params[number * each : (number + 1) * each]
        if any(p.shape != shape for p, shape in zip(found, shapes, strict=True)):
            return False
    return True


def _layers(
    current: Current,
    cell: Cell,
    x: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Return what torch's operation does: outputs, last states, and an LSTM's last cell states."""
    x = x.transpose(0, 1) if batch_first else x
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    starts = [h.unbind(0) for h in hx]
    ends: list[list[Tensor]] = [[] for _ in hx]
    for layer in range(layers):
        outputs = []
        for reverse in range(directions):
            number = layer * directions + reverse
            w_in, w, *biases = params[number * each : (number + 1) * each]
            b_in, b = biases if biases else (None, None)
            h, c = starts[0][number], starts[1][number] if len(starts) == 2 else None
            igates = functional.linear(x, w_in, b_in)
            made = _Layer.apply(current, cell, bool(reverse), igates, h, c, w, b)
            outputs.append(made[0])
            for to, end in zip(ends, made[1:], strict=True):
                to.append(end)
        x = outputs[0] if directions == 1 else torch.cat(outputs, 2)
        if dropout and train and layer < layers - 1:
            x = torch.dropout(x, dropout, True)
    x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(end) for end in ends)


def _kernel(current: Current, name: str) -> Callable[..., tuple[Tensor, ...]]:
    op, cell = getattr(aten, name).input, KINDS[name]

    def compute(x: Tensor, hx: Any, params: Any, *options: Any) -> tuple[Tensor, ...]:
        states = hx if isinstance(hx, (list, tuple)) else [hx]
        has_biases, layers, _, _, bidirectional, batch_first = options
        if current() is not None and _fits(
            cell, x, states, params, has_biases, layers, bidirectional, batch_first
        ):
            return _layers(current, cell, x, states, params, *options)
        made: tuple[Tensor, ...] = op._op_dk(
            DispatchKey.CompositeImplicitAutograd, x, hx, params, *options
        )
        return made

    return compute


@contextlib.contextmanager
def whole_layers(current: Current) -> Iterator[None]:
    """Take recurrent layers as a whole, in the threads for which ``current`` returns a mode."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name in KINDS:
            library.impl(f"{name}.input", _kernel(current, name), "AutogradCPU")
        yield
    finally:
        library._destroy()
