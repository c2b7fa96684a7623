"""Right operands that a program multiplies again, unchanged: rounded and sent once."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.devices.operand import RightOperand
from sat.offload.rounding import Lost, halves, rounds_to

_KEPT = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

Array16 = NDArray[np.float16]


def _is_still(rounded: Tensor, x: Tensor, lost: Lost) -> bool:
    if rounded.stride() == x.stride():
        return rounds_to(x, rounded, lost)
    # It has gaps, or elements in several places.
    again = torch.from_numpy(halves(x, lost))
    return torch.equal(again.view(torch.int16), rounded.view(torch.int16))


@dataclass
class _Seen:
    """A tensor that was an operand: its version, and from the second time on what it was.

    ``steady`` is when it was last compared, and ``lost`` what rounding it loses.
    """

    version: int
    rounded: Tensor | None = None
    operand: RightOperand | None = None
    steady: object = None
    lost: Lost = field(default_factory=Lost)


class SeenOperands:
    """Operands of an offload's products, by where they lie.

    A weight of an inference, or of an LSTM's steps, is the same tensor each time. The first time a
    tensor is only noted; the second time, if torch's version counter says that nothing has changed,
    its operand is kept. Later uses compare all bits with what they round to: ``.data`` writes go
    past the counter, and memory is used again for other tensors.
    """

    SMALLEST = 4096
    """Numbers of a tensor that is worth it."""

    LARGEST = 1 << 28
    """Bytes of all rounded tensors; the ones that were used least recently go."""

    def __init__(self) -> None:
        self._seen: OrderedDict[object, _Seen] = OrderedDict()
        self._bytes = 0
        self._steady: object = None

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """While no code of a program's runs: what was compared once is not compared again."""
        before, self._steady = self._steady, object()
        try:
            yield
        finally:
            self._steady = before

    def operand(
        self, x: Tensor, lost: Lost, make: Callable[[Array16], RightOperand]
    ) -> RightOperand | None:
        """Return a tensor's operand if it is kept, or is to be kept from now on.

        Parameters
        ----------
        x : Tensor
            What the operand is made of.
        lost : Lost
            What rounding loses is added.
        make : callable
            Makes an operand of the tensor's numbers, rounded.
        """
        if x.dtype not in _KEPT or x.numel() < self.SMALLEST or x.is_inference():
            return None
        key = x.data_ptr(), x.shape, x.stride(), x.dtype
        seen = self._seen.get(key)
        if seen is None or seen.version != x._version:
            self._forget(key)
            self._seen[key] = _Seen(x._version)
            self._make_room()
            return None
        self._seen.move_to_end(key)
        if seen.operand is None or seen.rounded is None:
            rounded = torch.from_numpy(halves(x, lost))
            if x.dtype is torch.float16:
                rounded = rounded.clone()
            seen.rounded = rounded
            seen.operand = replace(make(rounded.numpy()), resident=True)
            self._bytes += rounded.nbytes
            self._make_room()
            return seen.operand
        if self._steady is None or seen.steady is not self._steady:
            seen.lost, seen.steady = Lost(), self._steady
            if not _is_still(seen.rounded, x, seen.lost):
                self._forget(key)
                return None
        if seen.lost:
            lost.add(seen.lost)
        return seen.operand

    def _forget(self, key: object) -> None:
        seen = self._seen.pop(key, None)
        if seen is not None and seen.rounded is not None:
            self._bytes -= seen.rounded.nbytes

    def _make_room(self) -> None:
        while self._bytes > self.LARGEST or len(self._seen) > 4096:
            self._forget(next(iter(self._seen)))
