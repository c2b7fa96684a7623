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

SOURCE = Path(__file__).resolve().with_suffix(".cpp")


@functools.cache
def _native() -> ctypes.CDLL:
    library = ctypes.CDLL(
        str(compile_library("layout", [SOURCE], include_dirs=[stce.SOURCE.parent]))
    )
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.turn_floats.argtypes = [pointer, *[number] * 3, pointer, *[number] * 3, pointer, number]
    library.turn_floats.restype = number
    library.turn_weight_floats.argtypes = [pointer, *[number] * 3, pointer, number, pointer, number]
    library.turn_weight_floats.restype = number
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
    _require(good, x)


def _require(good: int, x: Tensor) -> None:
    if not good:
        raise MemoryError(f"a tensor of shape {tuple(x.shape)}: threads ran out; use fewer threads")


def _has_short_way(x: Tensor) -> bool:
    return x.dtype is torch.float32 and x[:1, :1].numel() > 1 and x.is_contiguous()


def channels_last(x: Tensor, lost: Lost | None, space: Workspace, name: str) -> Tensor:
    """Return a picture with its channels last, perhaps in a workspace's memory.

    Parameters
    ----------
    x : (batch, channels, *sizes)
    lost : Lost or None
        Where to add what rounding to float16 loses; None to keep the type.
    space, name : Workspace, str

    Returns
    -------
    Tensor
        (batch, *sizes, channels).
    """
    x = x.detach()
    if _has_short_way(x):
        batch, channels, *sizes = x.shape
        made = space.tensor(name, (batch, *sizes, channels), _type(lost))
        _turn(x, channels, prod(sizes), made, False, lost)
        return made
    made = x if lost is None else torch.from_numpy(halves(x, lost))
    return made.movedim(1, -1)


def kernel_first(
    x: Tensor, lost: Lost | None, space: Workspace, name: str, *, swap: bool
) -> Tensor:
    """Return a weight with its kernel's axes first, perhaps in a workspace's memory.

    Parameters
    ----------
    x : (outs, ins, *kernel)
    lost, space, name
        As for `channels_last`.
    swap : bool
        Whether its first two axes change places.

    Returns
    -------
    Tensor
        (*kernel, outs, ins), or with ``swap`` (*kernel, ins, outs).
    """
    x = x.detach()
    outs, ins, *kernel = x.shape
    if _has_short_way(x):
        shape = (*kernel, ins, outs) if swap else (*kernel, outs, ins)
        made = space.tensor(name, shape, _type(lost))
        if not swap:
            _turn(x, ins, prod(kernel), made, True, lost)
            return made
        good = _native().turn_weight_floats(
            x.data_ptr(),
            outs,
            ins,
            prod(kernel),
            made.data_ptr(),
            lost is not None,
            None if lost is None else lost.counts,
            torch.get_num_threads(),
        )
        _require(good, x)
        return made
    made = x if lost is None else torch.from_numpy(halves(x, lost))
    made = made.movedim((0, 1), (-2, -1))
    return made.mT if swap else made


def _type(lost: Lost | None) -> torch.dtype:
    return torch.float32 if lost is None else torch.float16


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
