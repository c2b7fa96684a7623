"""The right operand of a product, as devices take it: dense or compact, sent or resident."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sat.dataflow.products import Product, StartShape
from sat.sim.golden.stce import LoopLayout
from sat.sparsity.pattern import DENSE, Pattern


@dataclass(eq=False)
class RightOperand:
    """Right operand of a product or of a stack of products, checked; its arrays must not change.

    Parameters
    ----------
    values : (kept, cols) or (count, kept, cols) float16; C-contiguous unless it is dense
    indices : uint8 of the same shape, C-contiguous; None for a dense operand
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
        """Return a dense operand, (depth, cols) or (count, depth, cols) float16."""
        return cls(values, None, DENSE, values.shape[-2], resident)

    @property
    def cols(self) -> int:
        """Columns of the operand, and of the result."""
        return self.values.shape[-1]

    @property
    def count(self) -> int | None:
        """Products of the stack that it is for; None if it is for a single product."""
        return len(self.values) if self.values.ndim == 3 else None

    def part(self, products: slice) -> RightOperand:
        """Return the operand of some products of its stack, not resident."""
        indices = None if self.indices is None else self.indices[products]
        return RightOperand(self.values[products], indices, self.pattern, self.depth)

    @functools.cached_property
    def addresses(self) -> tuple[int, int | None]:
        """Where its values and indices lie."""
        return self.values.ctypes.data, None if self.indices is None else self.indices.ctypes.data

    @functools.cached_property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape of its values, and elements from one to the next along each axis."""
        return self.values.shape, tuple(step // 2 for step in self.values.strides)

    @property
    def nbytes(self) -> int:
        """Bytes that the host sends of it."""
        return self.values.nbytes + (0 if self.indices is None else self.indices.nbytes)


@dataclass(frozen=True, eq=False)
class Windows:
    """A dense operand whose rows and columns are nested loops over memory, not copied.

    As are what a convolution's taps read of a picture.

    Parameters
    ----------
    memory : Tensor
        float16, what they lie in.
    first : int
        Elements from its first one to theirs.
    layout : LoopLayout
    """

    memory: Tensor
    first: int
    layout: LoopLayout

    @property
    def shape(self) -> tuple[int, int, int]:
        """(count, rows, columns)."""
        return self.layout.shape

    @property
    def address(self) -> int:
        """Where the first number lies."""
        return self.memory.data_ptr() + 2 * self.first


def product_of(
    a: NDArray[np.float16], b: RightOperand, start: NDArray[np.float32] | None
) -> Product:
    """Return what a product of these is to the mapper.

    Parameters
    ----------
    a : (rows, depth) or (count, rows, depth) float16
    b : RightOperand
    start : (…, rows, cols) float32 or None
        One value per column comes as a view whose row stride is 0.
    """
    row_step = None if start is None else start.strides[-2] if start.shape[-2] > 1 else 0
    return product_between(a.shape, b.cols, b.pattern.n, b.pattern.m, row_step)


@functools.lru_cache(maxsize=4096)
def product_between(a: tuple[int, ...], cols: int, n: int, m: int, row_step: int | None) -> Product:
    """Return what a product of operands of these sizes is to the mapper.

    Parameters
    ----------
    a : tuple of int
        Shape of the left operand.
    cols, n, m : int
        Of the right one.
    row_step : int or None
        From one row of the start values to the next, 0 if all are the same; None without any.
    """
    shape = StartShape.MATRIX if row_step else StartShape.ROW
    if row_step is None:
        shape = StartShape.ZERO
    *stack, rows, depth = a
    return Product(rows, cols, depth, n, m, shape, prod(stack))


@functools.lru_cache(maxsize=4096)
def bytes_passing(product: Product) -> int:
    """Return the bytes of a product's left operand and start values, and of its result."""
    start_rows = {StartShape.ZERO: 0, StartShape.ROW: 1, StartShape.MATRIX: product.rows}
    left = 2 * product.rows * product.depth
    sums = 4 * product.cols * (start_rows[product.start] + product.rows)
    return product.count * (left + sums)
