"""Operands rounded to float16, and what is lost by it: overflow to infinity, underflow to zero.

Rounding to nearest, ties to even, is no more than half a unit in the last place off in float16's
normal range. Outside of it a product may be wrong altogether, so the report counts such operands.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat.arrays import array_of
from sat.sim.build import compile_library
from sat.sim.golden import stce

SOURCE = Path(__file__).resolve().with_suffix(".cpp")

_KINDS = {getattr(torch, name): kind for name, kind in stce.KINDS.items()}


class Lost:
    """Operands that were rounded to float16, and lost more by it than digits.

    Attributes
    ----------
    overflowed : int
        Finite ones that became infinite: from 65,520 on.
    vanished : int
        Others than zero that became zero: up to 2^-25.
    subnormal : int
        Those that became subnormal, and kept fewer than 11 bits: below 2^-14.
    """

    NAMES = ("overflowed", "vanished", "subnormal")

    def __init__(self) -> None:
        self.counts = (ctypes.c_long * 3)()  # native code adds to them

    def __getstate__(self) -> list[int]:
        # Native arrays cannot be sent to other processes.
        return list(self.counts)

    def __setstate__(self, counts: list[int]) -> None:
        self.counts = (ctypes.c_long * 3)(*counts)

    @property
    def overflowed(self) -> int:
        return self.counts[0]

    @property
    def vanished(self) -> int:
        return self.counts[1]

    @property
    def subnormal(self) -> int:
        return self.counts[2]

    def __bool__(self) -> bool:
        return any(self.counts)

    def add(self, other: Lost) -> None:
        """Count another's, too."""
        into, counts = self.counts, other.counts
        into[0] += counts[0]
        into[1] += counts[1]
        into[2] += counts[2]

    def clear(self) -> None:
        """Count from zero again."""
        self.counts[:] = [0, 0, 0]

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return dict(zip(self.NAMES, self.counts, strict=True))

    def __str__(self) -> str:
        texts = ("overflowed", "vanished", "became subnormal")
        pairs = zip(self.counts, texts, strict=True)
        return ", ".join(f"{count:,} {text}" for count, text in pairs if count)

    def __repr__(self) -> str:
        return f"Lost({str(self) or 'nothing'})"


@functools.cache
def _native() -> ctypes.CDLL:
    library = ctypes.CDLL(
        str(compile_library("rounding", [SOURCE], include_dirs=[stce.SOURCE.parent]))
    )
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.round_operand.argtypes = [pointer, number, number, pointer, pointer]
    library.round_operand.restype = None
    library.rounds_to.argtypes = library.round_operand.argtypes
    library.rounds_to.restype = number
    return library


def halves(x: Tensor, lost: Lost) -> NDArray[np.float16]:
    """Return a tensor's numbers rounded to float16.

    Parameters
    ----------
    x : Tensor
        Of a real floating-point type, strided, in the host's memory, not negated only in name.
        The numbers of one of float16 are looked at where they are (`array_of`).
    lost : Lost
        What was lost is added.

    Raises
    ------
    sat.sim.build.BuildError
        If ``rounding.cpp`` has to be compiled and cannot be.
    """
    if x.dtype is torch.float16:
        return array_of(x)
    made = torch.empty_like(x, dtype=torch.float16)
    if made.stride() != x.stride():
        # It has gaps, or elements in several places.
        x = x.contiguous()
        made = torch.empty_like(x, dtype=torch.float16)
    _native().round_operand(x.data_ptr(), _KINDS[x.dtype], x.numel(), made.data_ptr(), lost.counts)
    array: NDArray[np.float16] = made.numpy()  # nobody else's: numpy may have its memory
    return array


def rounds_to(x: Tensor, rounded: Tensor, lost: Lost) -> bool:
    """Return whether a tensor's numbers round to float16 ones that are given.

    Parameters
    ----------
    x : Tensor
        As for `halves`, without gaps.
    rounded : Tensor
        float16, of the same shape and strides.
    lost : Lost
        What was lost is added; part of it, if the answer is no.
    """
    number = _native().rounds_to(
        x.data_ptr(), _KINDS[x.dtype], x.numel(), rounded.data_ptr(), lost.counts
    )
    return bool(number)
