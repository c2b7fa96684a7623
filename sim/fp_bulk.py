"""Arithmetic units by the million: each Verilated by itself behind a loop over arrays."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from amaranth.lib import wiring

from sat.rtl.fp.adder import Adder
from sat.rtl.fp.convert import Fp16ToFp32, Fp32ToFp16
from sat.rtl.fp.multiplier import Multiplier
from sat.rtl.fp.multiplier32 import Multiplier32
from sat.rtl.fp.operand import OperandDecoder
from sat.rtl.verilog import emit
from sat.sim.verilator import verilate

DRIVER = Path(__file__).parent / "native" / "fp_bulk.cpp"

UNITS: dict[str, tuple[Callable[..., wiring.Component], tuple[str, ...], str]] = {
    "adder": (Adder, ("a", "b"), "total"),
    "multiplier": (Multiplier, ("a", "b"), "product"),
    "multiplier32": (Multiplier32, ("a", "b"), "product"),
    "decoder": (OperandDecoder, ("i",), "o"),
    "widen": (Fp16ToFp32, ("i",), "o"),
    "narrow": (Fp32ToFp16, ("i",), "o"),
}
"""Each unit: its component, its inputs, its output."""


@functools.lru_cache(maxsize=32)
def verilog(unit: str, **options: int) -> str:
    """Return a unit's Verilog, emitted once a process."""
    return emit(UNITS[unit][0](**options))


@functools.lru_cache(maxsize=32)
def _library(text: str, inputs: tuple[str, ...], output: str, clocked: bool) -> ctypes.CDLL:
    defines: dict[str, str | int] = {
        "OUTPUT": output,
        "CLOCKED": int(clocked),
        "A": inputs[0],
        "B": inputs[-1],
    }
    library = ctypes.CDLL(str(verilate(text, "top", DRIVER, defines=defines, name="fp_bulk")))
    pointer = np.ctypeslib.ndpointer(np.uint32, flags="C_CONTIGUOUS")
    library.run.argtypes = [pointer, pointer, pointer, ctypes.c_long, ctypes.c_long]
    library.run.restype = None
    return library


def run(
    unit: str, a: np.ndarray, b: np.ndarray | None = None, text: str | None = None, **options: int
) -> np.ndarray:
    """Return a unit's outputs for arrays of inputs, one a cycle.

    Parameters
    ----------
    unit : str
        A name in `UNITS`.
    a, b : (count,) uint32
        ``b`` for the units that have two inputs.
    text : str, optional
        Verilog in place of the unit's own: how tests plant faults.
    **options
        The component's, such as ``stages``.

    Returns
    -------
    (count,) uint32

    Raises
    ------
    TypeError
        If an array holds anything but ``uint32``.
    ValueError
        If there is no such unit, or the arrays do not fit the unit or each other.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r}: must be one of {', '.join(UNITS)}")
    component, inputs, output = UNITS[unit]
    arrays = [a] if b is None else [a, b]
    if len(arrays) != len(inputs):
        raise ValueError(f"{len(arrays)} arrays: unit {unit!r} takes {len(inputs)}")
    for array in arrays:
        if array.dtype != np.uint32:
            raise TypeError(f"array has dtype {array.dtype}: must be bits as uint32")
        if array.shape != a.shape or a.ndim != 1:
            raise ValueError(f"shapes {[x.shape for x in arrays]}: must be (count,), all the same")
    latency = getattr(component(**options), "latency", 0)
    text = verilog(unit, **options) if text is None else text
    library = _library(text, inputs, output, latency > 0)
    out = np.empty(len(a), np.uint32)
    first, last = (np.ascontiguousarray(x) for x in (arrays[0], arrays[-1]))
    library.run(first, last, out, len(a), latency)
    return out
