"""The right operand of a product, as devices take it: dense or compact, sent or resident."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.products import Product, StartShape
from sat.sparsity.pattern import DENSE, Pattern


@dataclass(frozen=True, eq=False)
class RightOperand:
    """Right operand of a product, checked; its arrays must not change.

    Parameters
    ----------
    values : (kept, cols) float16, C-contiguous
    indices : (kept, cols) uint8, C-contiguous; None for a dense operand
    pattern : Pattern
        ``DENSE`` exactly if ``indices`` is None.
    depth : int
        Rows of the operand before pruning.
    resident : bool
        Whether a device keeps it in its memory after its first product, as long as there is room
        and this object lives: later products find it there.
    """

    values: NDArray[np.float16]
    indices: NDArray[np.uint8] | None
    pattern: Pattern
    depth: int
    resident: bool = False

    @classmethod
    def dense(cls, values: NDArray[np.float16], *, resident: bool = False) -> RightOperand:
        """Return a dense operand, (depth, cols) float16."""
        return cls(np.ascontiguousarray(values), None, DENSE, len(values), resident)

    @property
    def cols(self) -> int:
        """Columns of the operand, and of the result."""
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the host sends of it."""
        return self.values.nbytes + (0 if self.indices is None else self.indices.nbytes)


def product_of(
    a: NDArray[np.float16], b: RightOperand, start: NDArray[np.float32] | None
) -> Product:
    """Return what a product of these is to the mapper.

    Parameters
    ----------
    a : (rows, depth) float16
    b : RightOperand
    start : (rows, cols) float32 or None
        One value per column comes as a view whose row stride is 0.
    """
    if start is None:
        shape = StartShape.ZERO
    else:
        shape = StartShape.ROW if len(start) == 1 or start.strides[0] == 0 else StartShape.MATRIX
    return Product(len(a), b.cols, a.shape[1], b.pattern.n, b.pattern.m, shape)


def bytes_passing(a: NDArray[np.float16], product: Product) -> int:
    """Return the bytes of a product's left operand and start values, and of its result."""
    start_rows = {StartShape.ZERO: 0, StartShape.ROW: 1, StartShape.MATRIX: product.rows}
    return a.nbytes + 4 * product.cols * (start_rows[product.start] + product.rows)
