"""The arithmetic of an offload: a product as docs/offload.md states it, made of a device's.

Operands are rounded to float16, or cut into parts for ``precision="fp32"``; complex ones become
real, patterns are pruned, and what a program multiplies again is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.arrays import array_of, tensor_of
from sat.devices.operand import RightOperand, Windows
from sat.offload import precision as fp32
from sat.offload.handlers import COMPLEX, as_type
from sat.offload.meter import Array16, Meter
from sat.offload.residents import SeenOperands
from sat.offload.rounding import Lost, halves
from sat.offload.workspace import Workspace
from sat.sim.golden import sore
from sat.sparsity.pattern import DENSE, Pattern


class Arithmetic:
    """Products of tensors, on the device of a meter.

    Parameters
    ----------
    meter : Meter
    precision : str
        ``"fp16"`` or ``"fp32"``.
    prune_left, prune_right : Pattern
        Along the depth, after rounding; with ``"fp16"``.
    """

    def __init__(
        self, meter: Meter, precision: str, prune_left: Pattern, prune_right: Pattern
    ) -> None:
        self.meter, self.precision = meter, precision
        self.prune_left, self.prune_right = prune_left, prune_right
        dense = prune_left.dense and prune_right.dense
        self.takes_windows = meter.takes_windows and dense and precision == "fp16"
        self.space = Workspace()
        self._seen = SeenOperands()
        self.steady = self._seen.steady

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
        """Return start + a @ b for matrices, or for stacks of as many.

        Parameters
        ----------
        a, b : Tensor or Windows
            (rows, depth) and (depth, cols), or with the number of products in front of both.
            Windows if ``takes_windows``.
        wide : torch.dtype
            float32, float64 or complex: type of the result.
        start : Tensor, optional
            (cols,), or as the result: first value of each sum where the device computes in
            float32, else added at the end.
        passing : bool
            Whether the operands are no weights to keep, and the result is read before the next
            product.
        lasting : bool
            Whether the result is kept, though operands are passing.
        outer : int
            Columns are (outer, others), and the result's are (others, outer); 1 unless
            ``takes_windows``, and without a start.
        """
        if isinstance(a, Windows) or isinstance(b, Windows) or outer > 1:
            space = None if lasting else self.space
            first = as_type(start, torch.float32) if start is not None else None
            if wide is not torch.float64:
                return self.meter.multiply(a, b, first, space, outer)
            made = self.meter.multiply(a, b, None, space, outer).double()
            return made if start is None else made + start
        if wide in COMPLEX:
            return self._complex(a, b, wide, start)
        if b.ndim == 3 and b.stride(0) == 0 and len(b) > 1 and (start is None or start.ndim == 1):
            # One right operand for all: one product of many rows.
            flat = self.matmul(a.reshape(-1, a.shape[2]), b[0], wide, start, passing=passing)
            return flat.view(*a.shape[:2], -1)
        if self.precision == "fp32":
            first = as_type(start, wide) if start is not None else None
            short = self.meter.multiply_precisely(_exact(a), _exact(b), first, wide)
            if short is not None:
                return short
            left, right = (array_of(_exact(x)) for x in (a, b))
            total = fp32.matmul(
                left, right, self._product, threads=torch.get_num_threads(), workspace=self.space
            )
            result = torch.from_numpy(total)
            if start is not None:
                result += start
            return result.to(wide, copy=True)
        first = None
        if start is not None and wide is not torch.float64:
            first = as_type(start, torch.float32)
        if self.prune_left.dense:
            kept = None if passing else self._seen.operand(b, self.lost, self._pruned)
            if kept is None and not self.prune_right.dense:
                kept = self._pruned(self._halves(b))
            brief = passing and not lasting and wide is torch.float32
            space = self.space if brief else None
            made = self.meter.multiply(a, b if kept is None else kept, first, space)
        else:
            if first is not None:
                first = first.expand(*a.shape[:-1], b.shape[-1])
            starts = None if first is None else array_of(first)
            made = tensor_of(self._product(self._halves(a), self._halves(b), starts))
        if wide is torch.float64:
            return made.double() if start is None else made.double() + start
        return made

    @property
    def lost(self) -> Lost:
        """What rounding loses of the operation at hand."""
        work = self.meter.work
        assert work is not None, "products are computed for an operation"
        return work.lost

    def _pruned(self, b: Array16) -> RightOperand:
        """Return a right operand, pruned as asked for."""
        return _compact(b, self.prune_right)

    def _halves(self, x: Tensor) -> Array16:
        return halves(x, self.lost)

    def _complex(self, a: Tensor, b: Tensor, wide: torch.dtype, start: Tensor | None) -> Tensor:
        """Return a complex product as one of real operands, twice the depth and columns.

        ``[re a, im a] · [[re b, im b], [-im b, re b]]``; operands that are real count as such.
        """
        real = torch.float64 if wide is torch.complex128 else torch.float32
        a, b = (torch.view_as_real(x.detach().resolve_conj().to(wide)) for x in (a, b))
        if self.precision == "fp16":
            # Before there are two of each.
            a, b = (torch.from_numpy(self._halves(x)) for x in (a, b))
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


def _exact(x: Tensor) -> Tensor:
    """Return a tensor in the narrowest type that numpy knows and that holds it exactly."""
    return x if x.dtype is torch.float64 else x.float()


def _zeroed(a: Array16, pattern: Pattern) -> Array16:
    values, indices = sore.select(a, pattern.n, pattern.m, -1)
    return sore.expand(values, indices, pattern.n, pattern.m, a.shape[-1], -1)
