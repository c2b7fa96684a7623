"""Memory that one product after the other uses."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Workspace:
    """Memory for one product after the other: to touch fresh memory takes longer than to fill it.

    Not for products at the same time.
    """

    LARGEST = 1 << 26
    """Bytes of an array that is kept."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[NDArray[Any], int]] = {}

    def array(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> tuple[NDArray[Any], int]:
        """Return an array that is not set, and its address.

        It holds until the next of its name, which is of the same type.
        """
        count = prod(shape)
        held = self._kept.get(name)
        if held is None or held[0].size < count:
            fresh = np.empty(count, dtype)
            held = fresh, fresh.ctypes.data
            if fresh.nbytes <= self.LARGEST:
                self._kept[name] = held
        array, address = held
        return array[:count].reshape(shape), address

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return what `array` does, for float16 or float32, as a tensor."""
        array, _ = self.array(name, shape, _OF_NUMPY[dtype])
        return torch.from_numpy(array)


_OF_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float16: np.float16,
    torch.float32: np.float32,
}
