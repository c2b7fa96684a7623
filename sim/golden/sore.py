"""Golden model of the pruning engine: which N of every M consecutive elements are kept.

The rule: the N largest magnitudes of each group of M along an axis; equal magnitudes keep the
lower index; a NaN counts as larger than everything, and any two NaN as equal. The compact form
stores the kept elements with ascending index inside each group. A last group of fewer than M
elements stores all of them if they are at most N, else its N largest: padding is never stored.
"""

from __future__ import annotations

import numpy as np

from sat.sim.golden.stce import check_pattern, kept_count

_BITS = {
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(np.float32): np.dtype(np.uint32),
    np.dtype(np.float64): np.dtype(np.uint64),
}


def _magnitude_keys(x: np.ndarray) -> np.ndarray:
    """Return unsigned integers in the order of the magnitudes, all NaN equal and above infinity.

    Without its sign bit, a float of IEEE 754 orders as the integer with the same bits.
    """
    keys = np.abs(x).view(_BITS[x.dtype])
    keys[np.isnan(x)] = ~keys.dtype.type(0)
    return keys


def _kept(keys: np.ndarray, n: int) -> np.ndarray:
    """Return which elements of groups (..., size) are kept, as (..., size) bool.

    An element is kept if fewer than n others come before it: larger ones, and equal ones of lower
    index. Counting over pairs beats sorting, for a group is short and the groups are many.
    """
    size = keys.shape[-1]
    if n >= size:
        return np.ones(keys.shape, bool)
    members = np.ascontiguousarray(np.moveaxis(keys, -1, 0))
    before = np.zeros(members.shape, np.uint8)
    for low in range(size):
        for high in range(low + 1, size):
            higher_wins = members[high] > members[low]
            before[low] += higher_wins
            before[high] += ~higher_wins
    return np.moveaxis(before < n, 0, -1)


def _check(x: np.ndarray, name: str, axis: int) -> int:
    """Check an array of floats and return the axis counted from the front."""
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"{name} is a {type(x).__name__}: must be a numpy array; convert with np.asarray"
        )
    if x.dtype not in _BITS:
        raise TypeError(
            f"{name} has dtype {x.dtype}: must be float16, float32 or float64 of this machine's "
            f"byte order; convert with {name}.astype(np.float16)"
        )
    if x.size == 0 or not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"{name} has shape {x.shape} and axis is {axis}: the array must have an element and "
            "that axis; give another axis or array"
        )
    return axis % x.ndim


def mask(x: np.ndarray, n: int, m: int, axis: int = 0) -> np.ndarray:
    """Return which elements the pattern n:m keeps.

    Parameters
    ----------
    x : numpy.ndarray
        float16, float32 or float64, any shape with at least one element.
    n, m : int
        The pattern; 1:1 keeps everything.
    axis : int
        Axis along which groups of m are taken.

    Returns
    -------
    numpy.ndarray
        bool, the shape of ``x``.

    Raises
    ------
    TypeError
        If ``x`` is no array of floats.
    ValueError
        If n:m is no pattern, ``x`` is empty or has no such axis.
    """
    check_pattern(n, m)
    axis = _check(x, "x", axis)
    keys = _magnitude_keys(np.ascontiguousarray(np.moveaxis(x, axis, -1)))
    kept = np.empty(keys.shape, bool)
    full = keys.shape[-1] // m * m
    grouped = (*keys.shape[:-1], full // m, m)
    kept[..., :full] = _kept(keys[..., :full].reshape(grouped), n).reshape(kept[..., :full].shape)
    if full < keys.shape[-1]:
        kept[..., full:] = _kept(keys[..., full:], n)
    return np.moveaxis(kept, -1, axis)


def select(x: np.ndarray, n: int, m: int, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prune to the pattern n:m and return the compact form.

    Parameters
    ----------
    x : numpy.ndarray
        float16, float32 or float64, any shape with at least one element.
    n, m : int
        The pattern; 1:1 keeps everything.
    axis : int
        Axis along which groups of m are taken; its length L need not be a multiple of m.

    Returns
    -------
    values : numpy.ndarray
        The dtype and shape of ``x``, but along ``axis`` of length
        ``n * (L // m) + min(n, L % m)``: the kept elements, bit for bit.
    indices : numpy.ndarray
        uint8, the shape of ``values``: position of each element inside its group, 0 to m - 1.

    Raises
    ------
    TypeError
        If ``x`` is no array of floats.
    ValueError
        If n:m is no pattern, ``x`` is empty or has no such axis.
    """
    kept = np.moveaxis(mask(x, n, m, axis), axis, -1)
    # Every row keeps equally many elements, and nonzero lists them row by row in ascending order.
    stored = kept_count(kept.shape[-1], n, m)
    positions = np.nonzero(kept)[-1].reshape(*kept.shape[:-1], stored)
    positions = np.moveaxis(positions, -1, axis)
    values = np.take_along_axis(x, positions, axis)
    return np.ascontiguousarray(values), np.ascontiguousarray((positions % m).astype(np.uint8))


def expand(
    values: np.ndarray, indices: np.ndarray, n: int, m: int, length: int, axis: int = 0
) -> np.ndarray:
    """Return the dense array of a compact form, +0 where nothing is stored.

    Parameters
    ----------
    values : numpy.ndarray
        float16, float32 or float64: stored elements, as from `select`.
    indices : numpy.ndarray
        uint8, the shape of ``values``.
    n, m : int
        The pattern.
    length : int
        Length of the dense array along ``axis``.
    axis : int
        Axis of the groups.

    Returns
    -------
    numpy.ndarray
        The dtype and shape of ``values``, but along ``axis`` of the given length.

    Raises
    ------
    TypeError
        If ``values`` is no array of floats or ``indices`` none of uint8.
    ValueError
        If n:m is no pattern, shapes or length do not fit, or an index lies outside its group or
        does not rise inside it.
    """
    check_pattern(n, m)
    axis = _check(values, "values", axis)
    if getattr(indices, "dtype", None) != np.uint8:
        raise TypeError(
            f"indices has dtype {getattr(indices, 'dtype', type(indices).__name__)}: must be "
            "uint8; convert with indices.astype(np.uint8)"
        )
    stored = values.shape[axis]
    if indices.shape != values.shape or length < 1 or stored != kept_count(length, n, m):
        raise ValueError(
            f"values is {values.shape}, indices {indices.shape}, length {length}: pattern {n}:{m} "
            f"stores {kept_count(max(length, 0), n, m)} elements along axis {axis} in both; "
            "make them with select"
        )
    groups = np.arange(stored) // n * m
    along = [1] * values.ndim
    along[axis] = stored
    positions = indices + groups.reshape(along)
    sizes = np.minimum(m, length - groups).reshape(along)
    rising = np.diff(positions, axis=axis, prepend=-1) > 0
    if not ((indices < sizes) & rising).all():
        where = tuple(int(i) for i in np.argwhere(~((indices < sizes) & rising))[0])
        raise ValueError(
            f"indices{list(where)}={indices[where]}: indices must lie inside their group of {m} "
            "(fewer at the end) and rise inside it; make them with select"
        )
    dense = np.zeros((*values.shape[:axis], length, *values.shape[axis + 1 :]), values.dtype)
    np.put_along_axis(dense, positions, values, axis)
    return dense
