"""The host's side of a compiled product: put its matrices into device memory, take the result."""

from __future__ import annotations

import numpy as np

from sat.dataflow.compile import MemoryMap, Region
from sat.dataflow.program import Program


def _rows(memory: np.ndarray, region: Region) -> np.ndarray:
    """Return the region as a writable view of (rows, row_bytes) uint8."""
    return np.lib.stride_tricks.as_strided(
        memory[region.address :], (region.rows, region.row_bytes), (region.pitch, 1)
    )


def _put(memory: np.ndarray, region: Region, matrix: np.ndarray) -> None:
    _rows(memory, region)[:] = np.ascontiguousarray(matrix).view(np.uint8)


def pack_indices(indices: np.ndarray) -> np.ndarray:
    """Return 4-bit indices packed in pairs along the last axis, the first in the low bits.

    Parameters
    ----------
    indices : (…, kept) uint8, each below 16

    Returns
    -------
    (…, ceil(kept / 2)) uint8
    """
    padded = np.zeros((*indices.shape[:-1], -(-indices.shape[-1] // 2) * 2), np.uint8)
    padded[..., : indices.shape[-1]] = indices
    return padded[..., 0::2] | padded[..., 1::2] << 4


def write_product(
    memory: np.ndarray,
    where: MemoryMap,
    program: Program,
    a: np.ndarray,
    values: np.ndarray,
    indices: np.ndarray | None,
    start: np.ndarray | None,
) -> None:
    """Put a program and the matrices it reads into device memory.

    Parameters
    ----------
    memory : flat uint8, at least ``where.end`` bytes
    a : (rows, depth) float16
    values : (kept, cols) float16
    indices : (kept, cols) uint8, or None for a dense B
    start : (rows, cols) or (cols,) float32, or None, as the memory map has it
    """
    raw = np.frombuffer(program.encode(), np.uint8)
    memory[where.program.address : where.program.address + len(raw)] = raw
    _put(memory, where.a, a)
    _put(memory, where.b, values.T)
    if where.indices is not None:
        assert indices is not None
        _put(memory, where.indices, pack_indices(np.ascontiguousarray(indices.T)))
    if where.start is not None:
        assert start is not None
        _put(memory, where.start, np.atleast_2d(start))


def read_result(memory: np.ndarray, where: MemoryMap) -> np.ndarray:
    """Return a copy of the result, (rows, cols) float32."""
    return _rows(memory, where.result).copy().view(np.float32)
