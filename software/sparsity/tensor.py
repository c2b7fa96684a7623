"""Compact N:M tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sat.arrays import array_of, tensor_of
from sat.sim.golden import sore
from sat.sparsity.pattern import Pattern

_DTYPES = (torch.float16, torch.float32, torch.float64)


def _dtype_name(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _require_plain(x: torch.Tensor, name: str) -> None:
    """Raise unless ``x`` is a dense tensor in host memory."""
    if x.device.type != "cpu":
        raise ValueError(f"{name} is on {x.device}: must be in host memory; use {name}.cpu()")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} has layout {x.layout}: must be strided; use {name}.to_dense()")


@dataclass(frozen=True, eq=False)
class NMTensor:
    """A tensor that stores at most n of every m consecutive elements along one axis.

    Made by `prune`. In each group of m the stored elements stand in ascending order of their
    place; a last group of e < m elements stores min(n, e).

    Parameters
    ----------
    values : torch.Tensor
        float16, float32 or float64: stored elements; as the dense tensor, but along ``axis`` of
        length ``pattern.kept(shape[axis])``.
    indices : torch.Tensor
        uint8, the shape of ``values``: place of each inside its group, 0 to m - 1.
    pattern : Pattern
    axis : int
        Axis of the groups; may count from the end.
    shape : torch.Size
        Shape of the dense tensor.

    Raises
    ------
    TypeError
        If values or indices have another type.
    ValueError
        If shapes do not fit, or an index lies outside its group or does not rise inside it.
    """

    values: torch.Tensor
    indices: torch.Tensor
    pattern: Pattern
    axis: int
    shape: torch.Size

    def __post_init__(self) -> None:
        for name, x, dtypes in (
            ("values", self.values, _DTYPES),
            ("indices", self.indices, (torch.uint8,)),
        ):
            if not isinstance(x, torch.Tensor):
                raise TypeError(
                    f"{name} is a {type(x).__name__}: must be a torch.Tensor; "
                    "make an NMTensor with sat.prune"
                )
            if x.dtype not in dtypes:
                wanted = "uint8" if name == "indices" else "float16, float32 or float64"
                raise TypeError(
                    f"{name} has dtype {_dtype_name(x)}: must be {wanted}; "
                    "make an NMTensor with sat.prune"
                )
            _require_plain(x, name)
        object.__setattr__(self, "shape", torch.Size(self.shape))
        object.__setattr__(self, "axis", _axis(self.axis, self.shape))
        stored = list(self.shape)
        stored[self.axis] = self.pattern.kept(self.shape[self.axis])
        if list(self.values.shape) != stored or self.indices.shape != self.values.shape:
            raise ValueError(
                f"values is {tuple(self.values.shape)} and indices {tuple(self.indices.shape)}: "
                f"pattern {self.pattern} of shape {tuple(self.shape)} along axis {self.axis} "
                f"stores {tuple(stored)} in both; make an NMTensor with sat.prune"
            )
        self._check_indices()

    def _check_indices(self) -> None:
        n, m = self.pattern.n, self.pattern.m
        indices = np.moveaxis(array_of(self.indices), self.axis, 0)
        group = np.arange(len(indices)) // n
        size = np.minimum(m, self.shape[self.axis] - group * m).astype(np.uint8)
        bad = indices >= size.reshape(-1, *[1] * (indices.ndim - 1))
        same_group = group[1:] == group[:-1]
        bad[1:][same_group] |= indices[1:][same_group] <= indices[:-1][same_group]
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(np.moveaxis(bad, 0, self.axis))[0])
            raise ValueError(
                f"indices{list(where)}={int(self.indices[where])}: indices must lie inside their "
                f"group of {m} (fewer at the end) and rise inside it; "
                "make an NMTensor with sat.prune"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def half(self) -> NMTensor:
        """Return this tensor with its values rounded to float16; the selection stays."""
        return NMTensor(self.values.half(), self.indices, self.pattern, self.axis, self.shape)

    def to_dense(self) -> torch.Tensor:
        """Return the dense tensor, +0 where nothing is stored."""
        if self.pattern.dense:
            return self.values.detach().clone()
        dense = sore.expand(
            array_of(self.values),
            array_of(self.indices),
            self.pattern.n,
            self.pattern.m,
            self.shape[self.axis],
            self.axis,
        )
        return tensor_of(dense)

    def __repr__(self) -> str:
        return (
            f"NMTensor(shape={tuple(self.shape)}, pattern={self.pattern}, axis={self.axis}, "
            f"dtype={_dtype_name(self.values)})"
        )


def _axis(axis: int, shape: torch.Size) -> int:
    """Return ``axis`` counted from the front; raise unless ``shape`` has it and elements."""
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TypeError(f"axis={axis!r} is a {type(axis).__name__}: must be an int; give axis=0")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"axis={axis} of shape {tuple(shape)}: must be from {-len(shape)} to "
            f"{len(shape) - 1}; choose the axis that the product contracts"
        )
    if 0 in shape:
        raise ValueError(f"shape {tuple(shape)}: no axis may be empty; give a tensor with elements")
    return axis % len(shape)


def prune(
    x: torch.Tensor | NDArray[np.floating], pattern: str | Pattern | None, axis: int = 0
) -> NMTensor:
    """Keep the N largest magnitudes of every M consecutive elements along an axis.

    Equal magnitudes keep the lower index; a NaN counts as larger than everything. The dtype is
    kept: a device selects among float16, so prune ``x.half()`` for what it and SAT layers keep.

    Parameters
    ----------
    x : torch.Tensor or numpy.ndarray
        float16, float32 or float64, any shape with elements. The result does not share its
        memory and carries no gradient.
    pattern : str or Pattern or None
        ``"2:8"``, or ``"dense"`` to keep everything.
    axis : int
        Axis that the matrix product contracts: 0 for a right operand.

    Returns
    -------
    NMTensor
        Holds torch tensors, whatever the kind of ``x``.

    Raises
    ------
    TypeError
        If ``x`` is no such array.
    ValueError
        If the pattern is none, or ``x`` is empty or has no such axis.

    Examples
    --------
    >>> w = prune(np.array([[1.0], [-3.0], [2.0], [0.5]], np.float32), "2:4")
    >>> w.values.ravel().tolist(), w.indices.ravel().tolist()
    ([-3.0, 2.0], [1, 2])
    """
    chosen = Pattern.parse(pattern)
    if isinstance(x, torch.Tensor):
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"x has dtype {_dtype_name(x)}: must be float16, float32 or float64; "
                "convert with x.float()"
            )
        _require_plain(x, "x")
        array = array_of(x)
    elif isinstance(x, np.ndarray):
        if x.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"x has dtype {x.dtype}: must be float16, float32 or float64 of this machine's "
                "byte order; convert with x.astype(np.float32)"
            )
        array = x
    else:
        raise TypeError(
            f"x is a {type(x).__name__}: must be a torch.Tensor or a numpy.ndarray; "
            "convert with torch.as_tensor(x)"
        )
    shape = torch.Size(array.shape)
    axis = _axis(axis, shape)
    if chosen.dense:
        values, indices = array.copy(), np.zeros(array.shape, np.uint8)
    else:
        values, indices = sore.select(array, chosen.n, chosen.m, axis)
    return NMTensor(tensor_of(values), tensor_of(indices), chosen, axis, shape)
