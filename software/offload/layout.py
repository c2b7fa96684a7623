"""Pictures with channels first, as torch has them, and with channels last, as products do.

What is common, float32 without gaps, is turned and rounded in one go by ``layout.cpp``, compiled on
first use; all else by torch.
"""

from __future__ import annotations

import ctypes
import functools
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sat.offload.rounding import Lost, halves
from sat.offload.workspace import Workspace
from sat.sim.build import compile_library
from sat.sim.golden import stce
from sat.sim.threads import share_threads

SOURCE = Path(__file__).resolve().with_suffix(".cpp")


@functools.cache
def _native() -> ctypes.CDLL:
    path = compile_library("layout", [SOURCE], include_dirs=[stce.SOURCE.parent])
    library = share_threads(ctypes.CDLL(str(path)))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.turn_floats.argtypes = [pointer, *[number] * 3, pointer, *[number] * 3, pointer, number]
    library.turn_floats.restype = number
    return library


def _turn(x: Tensor, rows: int, cols: int, made: Tensor, outside: bool, lost: Lost | None) -> None:
    """Turn (batch, rows, cols) into (batch, cols, rows), or (cols, batch, rows)."""
    batch = x.numel() // (rows * cols)
    good = _native().turn_floats(
        x.data_ptr(),
        batch,
        rows,
        cols,
        made.data_ptr(),
        made.dtype is torch.float16,
        rows if outside else rows * cols,
        batch * rows if outside else rows,
        None if lost is None else lost.counts,
        torch.get_num_threads(),
    )
    if not good:
        raise MemoryError(f"a tensor of shape {tuple(x.shape)}: threads ran out; use fewer threads")


def channels_last(
    x: Tensor, lost: Lost | None, space: Workspace, name: str, *, outside: bool = False
) -> Tensor:
    """Return a picture or a weight with its second axis last, perhaps in a workspace's memory.

    Parameters
    ----------
    x : (batch, channels, *sizes)
    lost : Lost or None
        Where to add what rounding to float16 loses; None to keep the type.
    space, name : Workspace, str
    outside : bool
        Whether the first axis, too, comes after the others.

    Returns
    -------
    Tensor
        (batch, *sizes, channels) or (*sizes, batch, channels).
    """
    x = x.detach()
    _, channels, *sizes = x.shape
    if x.dtype is torch.float32 and prod(sizes) > 1 and x.is_contiguous():
        shape = (*sizes, len(x), channels) if outside else (len(x), *sizes, channels)
        made = space.tensor(name, shape, torch.float32 if lost is None else torch.float16)
        _turn(x, channels, prod(sizes), made, outside, lost)
        return made
    made = x if lost is None else torch.from_numpy(halves(x, lost))
    made = made.movedim(1, -1)
    return made.movedim(0, -2) if outside else made


def channels_first(x: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Return (batch, *sizes, channels) as (batch, channels, *sizes), a copy.

    Of a type and memory format.
    """
    batch, *sizes, channels = x.shape
    plain = x.dtype is dtype is torch.float32 and layout is torch.contiguous_format
    if plain and prod(sizes) > 1 and x.is_contiguous():
        made = torch.empty(batch, channels, *sizes)
        _turn(x, prod(sizes), channels, made, False, None)
        return made
    return x.movedim(-1, 1).to(dtype, memory_format=layout, copy=True)
