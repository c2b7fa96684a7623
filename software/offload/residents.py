"""Right operands that a program multiplies again, unchanged: rounded and sent once."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sat.devices.operand import RightOperand
from sat.offload.rounding import Lost

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _same_bits(copy: Tensor, x: Tensor, bits: torch.dtype) -> bool:
    """Return whether a tensor is what its clone is: if that has its strides, there are no gaps."""
    if copy.stride() == x.stride():
        return _memcmp(copy.data_ptr(), x.data_ptr(), x.nbytes) == 0
    return torch.equal(copy.view(bits), x.view(bits))


@dataclass
class _Seen:
    """A tensor that was an operand: its version, and from the second time on what it was."""

    version: int
    copy: Tensor | None = None
    operand: RightOperand | None = None
    lost: Lost | None = None


class SeenOperands:
    """Operands of an offload's products, by where they lie.

    A weight of an inference, or of an LSTM's steps, is the same tensor each time. The first time a
    tensor is only noted; the second time, if torch's version counter says that nothing has changed,
    its operand is kept, and a copy of it. Later uses compare all bits with the copy: ``.data``
    writes go past the counter, and memory is used again for other tensors.
    """

    SMALLEST = 4096
    """Numbers of a tensor that is worth it."""

    LARGEST = 1 << 28
    """Bytes of all copies; the ones that were used least recently go."""

    def __init__(self) -> None:
        self._seen: OrderedDict[object, _Seen] = OrderedDict()
        self._bytes = 0

    def operand(
        self, x: Tensor, lost: Lost, make: Callable[[Tensor, Lost], RightOperand]
    ) -> RightOperand | None:
        """Return a tensor's operand if it is kept, or is to be kept from now on.

        Parameters
        ----------
        x : Tensor
            What the operand is made of.
        lost : Lost
            What rounding loses is added.
        make : callable
            Makes an operand of a tensor; is given where to add what is lost.
        """
        bits = _BITS.get(x.dtype)
        if bits is None or x.numel() < self.SMALLEST or x.is_inference():
            return None
        key = x.data_ptr(), x.shape, x.stride(), x.dtype
        seen = self._seen.get(key)
        if seen is None or seen.version != x._version:
            self._forget(key)
            self._seen[key] = _Seen(x._version)
            self._make_room()
            return None
        self._seen.move_to_end(key)
        if seen.operand is None or seen.lost is None or seen.copy is None:
            seen.lost, seen.copy = Lost(), x.clone()
            made = make(seen.copy, seen.lost)
            # Laid out row by row once, it need not be turned each time.
            values = np.ascontiguousarray(made.values)
            seen.operand = replace(made, values=values, resident=True)
            self._bytes += seen.copy.nbytes
            self._make_room()
        elif not _same_bits(seen.copy, x, bits):
            self._forget(key)
            return None
        if seen.lost:
            lost.add(seen.lost)
        return seen.operand

    def _forget(self, key: object) -> None:
        seen = self._seen.pop(key, None)
        if seen is not None and seen.copy is not None:
            self._bytes -= seen.copy.nbytes

    def _make_room(self) -> None:
        while self._bytes > self.LARGEST or len(self._seen) > 4096:
            self._forget(next(iter(self._seen)))
