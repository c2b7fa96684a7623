"""Products that are larger than a device, computed in parts: the same bits, as each sum is whole.

Rows, columns and the products of a stack are cut anywhere; the depth last, between groups of M: the
sums of the first half are then the start values of the second, so the fold is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sat.dataflow.products import Product, StartShape, kept_values
from sat.devices.operand import RightOperand
from sat.rtl.config import SatConfig


def cut(product: Product, config: SatConfig) -> tuple[str, int] | None:
    """Return the axis along which to halve a product, and where; None if nothing is left to halve.

    Parameters
    ----------
    product : Product
    config : SatConfig
        Cuts keep tiles of its array whole where they can.
    """
    if product.count > 1:
        return "count", product.count // 2
    sizes = {"rows": product.rows, "cols": product.cols}
    steps = {"rows": config.rows, "cols": config.cols}
    axis = max(sizes, key=lambda name: sizes[name] / steps[name])
    if sizes[axis] > steps[axis]:
        half = sizes[axis] // 2 // steps[axis] * steps[axis]
        return axis, max(half, steps[axis])
    step = max(config.max_m, product.m)
    if product.depth > step:
        return "depth", max(product.depth // 2 // step * step, step)
    axis = max(sizes, key=lambda name: sizes[name])
    return (axis, sizes[axis] // 2) if sizes[axis] > 1 else None


def halves(product: Product, axis: str, at: int) -> tuple[Product, Product]:
    """Return the two products that a cut makes."""
    if axis == "count":
        return replace(product, count=at), replace(product, count=product.count - at)
    whole = getattr(product, axis)
    sizes: list[dict[str, Any]] = [{axis: at}, {axis: whole - at}]
    first, second = (replace(product, **size) for size in sizes)
    if axis == "depth":
        second = replace(second, start=StartShape.MATRIX)
    return first, second


Part = tuple[NDArray[np.float16], RightOperand, NDArray[np.float32] | None]
Compute = Callable[
    [NDArray[np.float16], RightOperand, NDArray[np.float32] | None], NDArray[np.float32]
]


def in_halves(
    a: NDArray[np.float16],
    b: RightOperand,
    start: NDArray[np.float32] | None,
    axis: str,
    at: int,
    compute: Compute,
) -> NDArray[np.float32]:
    """Return a product of which ``compute`` is given the two halves, one after the other.

    Parameters
    ----------
    a : (…, rows, depth) float16
    b : RightOperand
    start : (…, rows, cols) float32 or None
    axis, at : str, int
        As `cut` returns them.
    """
    if axis == "count":
        parts = slice(0, at), slice(at, len(a))
        return np.concatenate(
            [compute(a[p], b.part(p), None if start is None else start[p]) for p in parts]
        )
    if axis == "rows":
        rows = slice(0, at), slice(at, a.shape[-2])
        made = [compute(a[..., p, :], b, None if start is None else start[..., p, :]) for p in rows]
        return np.concatenate(made, -2)
    if axis == "cols":
        cols = slice(0, at), slice(at, b.cols)
        made = [compute(a, _columns(b, p), None if start is None else start[..., p]) for p in cols]
        return np.concatenate(made, -1)
    upper, lower = _depths(b, at)
    return compute(a[..., at:], lower, compute(a[..., :at], upper, start))


def _columns(b: RightOperand, cols: slice) -> RightOperand:
    indices = None if b.indices is None else np.ascontiguousarray(b.indices[..., cols])
    return RightOperand(np.ascontiguousarray(b.values[..., cols]), indices, b.pattern, b.depth)


def _depths(b: RightOperand, at: int) -> tuple[RightOperand, RightOperand]:
    kept = at if b.indices is None else kept_values(at, b.pattern.n, b.pattern.m)
    made = []
    for part, depth in ((slice(0, kept), at), (slice(kept, None), b.depth - at)):
        indices = None if b.indices is None else np.ascontiguousarray(b.indices[..., part, :])
        values = np.ascontiguousarray(b.values[..., part, :])
        made.append(RightOperand(values, indices, b.pattern, depth))
    return made[0], made[1]
