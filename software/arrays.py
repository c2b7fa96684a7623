"""Tensors of torch as numpy arrays and back, without binding a program's storages to numpy.

`Tensor.numpy` marks a storage as one that cannot be resized, for good, and `torch.from_numpy` makes
such a one; programs resize theirs (FSDP frees and refills parameters that way). So SAT looks at a
program's tensors through DLPack, and hands out tensors that have memory of torch's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _Exported:
    """A tensor with the two methods of DLPack alone: `Tensor`'s own take three times as long."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return torch._C._to_dlpack_versioned(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the host's memory


def array_of(x: Tensor) -> NDArray[Any]:
    """Return the numbers of a tensor as a numpy array, whatever its lazy bits and gradients.

    A view, to be used up at once: the program may free or resize what it looks at. A copy where
    the tensor is conjugated or negated only in name, or is one of autograd's zeros without memory.

    Parameters
    ----------
    x : Tensor
        In host memory, strided, of a type that numpy has.

    Raises
    ------
    BufferError, RuntimeError
        If it is none.
    """
    x = x.detach()
    if x.is_conj() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    if x._is_zerotensor():
        x = torch.zeros(x.shape, dtype=x.dtype)
    return np.from_dlpack(_Exported(x))


class _OfTensor(np.ndarray):
    """All of a tensor's memory as an array; views and copies of it are plain arrays of numpy's."""

    tensor: Tensor


def empty_array(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a new array of float32, not set, that `tensor_of` makes a tensor without copying."""
    tensor = torch.empty(shape)
    array = np.from_dlpack(_Exported(tensor)).view(_OfTensor)
    array.tensor = tensor
    return array


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Return a tensor of a numpy array's numbers, in memory that is not numpy's.

    That is a copy, but of what `empty_array` made.
    """
    made: Tensor | None = getattr(array, "tensor", None)
    return torch.from_numpy(array).clone() if made is None else made
