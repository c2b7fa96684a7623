"""Golden model of the tensor engine: matrix products as the fold that defines their bits.

Each element of the result is a left fold over the depth index, in ascending order, from its start
value: ``sum = round(sum + a[row, k] * b[k, col])`` in binary32, to nearest even, subnormals kept.
For a compact N:M operand the fold runs over the stored elements, in the same order. A product of
two binary16 numbers is exact in binary32 (22 significant bits, exponents -48 to 31), so a fused
multiply-add gives the same bits as a multiplication and an addition. Every NaN in the result is
the quiet NaN ``0x7fc00000``. Dataflow, tiling and array size are not arguments because the result
does not depend on them.

The fold is done by ``sim/native/golden_fold.cpp``, compiled on first use.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sat.sim.build import compile_library
from sat.sim.threads import Stopped, current_stop, share_threads, side_by_side

SOURCE = Path(__file__).resolve().parent.parent / "native" / "golden_fold.cpp"
FLAGS = ("-O3", "-march=native")

GROUP_SIZES = (2, 4, 8, 16)

LONG_MACS = 1 << 31
"""Multiply-accumulates that take 50 ms or more: such a product runs beside the calling thread,
which then sees a Ctrl-C."""


class CompactOperand(Protocol):
    """What `matmul` reads of an N:M operand; `NMOperand` is one."""

    @property
    def values(self) -> np.ndarray: ...
    @property
    def indices(self) -> np.ndarray: ...
    @property
    def pattern(self) -> tuple[int, int]: ...
    @property
    def depth(self) -> int: ...


@dataclass(frozen=True, eq=False)
class NMOperand:
    """Right operand of a product in compact N:M form, as `sat.sim.golden.sore.select` makes it.

    Parameters
    ----------
    values : numpy.ndarray
        (kept, cols) float16: stored elements, groups ascending, inside a group by index.
    indices : numpy.ndarray
        (kept, cols) uint8: position of each stored element inside its group.
    pattern : tuple of int
        ``(n, m)``: n elements of each m are stored, all of them in a last group of fewer than n.
    depth : int
        Number of rows of the dense operand.
    """

    values: np.ndarray
    indices: np.ndarray
    pattern: tuple[int, int]
    depth: int


def check_pattern(n: int, m: int) -> None:
    """Raise ValueError unless n:m is a pattern: m of `GROUP_SIZES` and 1 <= n <= m, or 1:1."""
    if not (1 <= n <= m) or (m not in GROUP_SIZES and (n, m) != (1, 1)):
        raise ValueError(
            f"pattern {n}:{m}: n must be from 1 to m, and m one of 2, 4, 8, 16 (1:1 is dense); "
            "choose such a pattern, for instance 2:8"
        )


def kept_count(length: int, n: int, m: int) -> int:
    """Return how many of ``length`` elements the pattern n:m stores, the ragged end included."""
    return length // m * n + min(n, length % m)


class _Strides(ctypes.Structure):
    """Elements from one product, row, column to the next."""

    _fields_ = [(name, ctypes.c_long) for name in ("stack", "row", "col")]


class _Tables(ctypes.Structure):
    """Where rows and columns lie that are no even distance apart."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("rows", "cols")]


class _Plan(ctypes.Structure):
    """What the kernel needs to know of operands, but for where they lie."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("count", "rows", "cols", "depth", "n", "m")),
        *((name, _Strides) for name in ("a", "b", "start", "c")),
        *((name, ctypes.c_long) for name in ("threads", "a_kind", "a_numbers")),
        *((name, ctypes.c_long) for name in ("b_kind", "b_numbers")),
        *((name, _Tables) for name in ("a_tables", "b_tables")),
        ("c_outer", ctypes.c_long),
    ]


def load_fold(path: Path) -> Callable[..., int]:
    """Return the function ``golden_fold`` of a compiled library, ready to be called."""
    function = share_threads(ctypes.CDLL(str(path))).golden_fold
    function.argtypes = [ctypes.c_void_p] * 8
    function.restype = ctypes.c_long
    return function


@functools.lru_cache(maxsize=1)
def _fold() -> Callable[..., int]:
    return load_fold(compile_library("golden_fold", [SOURCE], FLAGS))


@functools.lru_cache(maxsize=1)
def kernel() -> int:
    """Return where the function ``golden_fold`` is, for native code that calls it."""
    address = ctypes.cast(_fold(), ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None, "a loaded function has an address"
    return address


KINDS = {"float16": 0, "float32": 1, "float64": 2, "bfloat16": 3}
"""Types of operands, as native code knows them; all but float16 are rounded to it."""

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape, and elements from one to the next along each of two or three axes."""


@dataclass(frozen=True)
class Loops:
    """Rows or columns that lie as nested loops over memory, the last one fastest.

    Parameters
    ----------
    sizes, steps : tuple of int
        Of each loop; steps in elements.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]

    def places(self) -> NDArray[np.int64]:
        """Return where each lies, in elements from the first one."""
        at = np.zeros(1, np.int64)
        for size, step in zip(self.sizes, self.steps, strict=True):
            at = np.add.outer(at, step * np.arange(size)).ravel()
        return at


@dataclass(frozen=True)
class LoopLayout:
    """How a dense float16 operand lies whose rows and columns are nested loops over memory.

    Parameters
    ----------
    count, step : int
        Products of the stack, and elements from one to the next.
    rows, cols : Loops
    """

    count: int
    step: int
    rows: Loops
    cols: Loops

    @property
    def shape(self) -> tuple[int, int, int]:
        """(count, rows, cols)."""
        return self.count, prod(self.rows.sizes), prod(self.cols.sizes)


def _strides(layout: Layout) -> _Strides:
    return _Strides(*([0] * (3 - len(layout[1])) + list(layout[1])))


def _placed(
    layout: Layout | LoopLayout,
) -> tuple[tuple[int, ...], _Strides, _Tables, list[NDArray[np.int64]]]:
    """Return an operand's shape, strides and tables, and the arrays that hold the tables."""
    if not isinstance(layout, LoopLayout):
        return layout[0], _strides(layout), _Tables(), []
    steps, kept = [layout.step], []
    tables: list[int | None] = []
    for loops in (layout.rows, layout.cols):
        at = loops.places()
        step = int(at[1]) if len(at) > 1 else 1
        steps.append(step)
        if (np.diff(at) == step).all():
            tables.append(None)
        else:
            kept.append(at)
            tables.append(at.ctypes.data)
    return layout.shape, _Strides(*steps), _Tables(*tables), kept


class Plan:
    """What the kernel needs to know of a product, or of a stack of them, but for the numbers.

    Parameters
    ----------
    a, b : Layout or LoopLayout
        (rows, depth) or (count, rows, depth), and (…, depth, cols) or, of pattern n:m,
        (…, kept, cols). An operand whose kind is not float16's fills its memory without gaps.
    start : Layout or None
        (…, rows, cols).
    n, m, threads : int
    kinds : tuple of int
        Types of both operands, of `KINDS`.
    outer : int
        Columns are (outer, others), and the result's are (others, outer); without a start.

    Attributes
    ----------
    shape : tuple of int
        (…, rows, cols), of the result.
    """

    def __init__(
        self,
        a: Layout | LoopLayout,
        b: Layout | LoopLayout,
        start: Layout | None = None,
        n: int = 1,
        m: int = 1,
        threads: int = 1,
        kinds: tuple[int, int] = (0, 0),
        outer: int = 1,
    ) -> None:
        a_shape, a_strides, a_tables, held = _placed(a)
        b_shape, b_strides, b_tables, also = _placed(b)
        self._tables = held + also
        *stack, self.rows, self.depth = a_shape
        self.n, self.m, self.threads = n, m, threads
        kept, self.cols = b_shape[-2:]
        self.shape = (*stack, self.rows, self.cols)
        self.long = prod(self.shape) * kept >= LONG_MACS
        self._struct = _Plan(
            prod(stack),
            self.rows,
            self.cols,
            self.depth,
            n,
            m,
            a_strides,
            b_strides,
            _Strides() if start is None else _strides(start),
            _Strides(self.rows * self.cols, self.cols, 1),
            threads,
            kinds[0],
            prod(a_shape),
            kinds[1],
            prod(b_shape),
            a_tables,
            b_tables,
            outer,
        )
        self._address = ctypes.addressof(self._struct)

    def run(
        self,
        a: int,
        b: int,
        indices: int | None,
        start: int | None,
        out: int,
        lost: ctypes.Array[ctypes.c_long] | None = None,
    ) -> int:
        """Compute the product of what lies at these addresses.

        Parameters
        ----------
        a, b, indices, start, out : int or None
            As the plan says; ``out`` is C-contiguous float32.
        lost : array of three c_long, needed where an operand is not float16
            How many numbers became infinite, zero and subnormal by rounding is added.

        Returns
        -------
        int
            -1, or the position of a bad index.

        Raises
        ------
        MemoryError
            If there is not enough memory, or no more threads can be started.
        Stopped
            If the work of this thread was asked to end.
        """
        kernel, stop = _fold(), current_stop
        if self.long:
            # It looks for the stop of its own thread.
            jobs = [lambda: kernel(self._address, a, b, indices, start, out, stop().address, lost)]
            status = side_by_side(jobs)[0]
        else:
            status = kernel(self._address, a, b, indices, start, out, stop().address, lost)
        if status == -3:
            raise Stopped
        if status == -2:
            raise MemoryError(
                f"product of {self.rows} x {self.depth} x {self.cols} with {self.threads} threads: "
                "memory or threads ran out; use fewer threads or smaller operands"
            )
        return status


def _in_elements(layout: Layout, itemsize: int) -> Layout:
    return layout[0], tuple(step // itemsize for step in layout[1])


@functools.lru_cache(maxsize=4096)
def _plan(a: Layout, b: Layout, start: Layout | None, n: int, m: int, threads: int) -> Plan:
    """Return the plan for arrays of numpy's, whose strides are in bytes."""
    first = None if start is None else _in_elements(start, 4)
    return Plan(_in_elements(a, 2), _in_elements(b, 2), first, n, m, threads)


def fold(
    a: np.ndarray,
    values: np.ndarray,
    indices: np.ndarray | None,
    start: np.ndarray | None,
    n: int = 1,
    m: int = 1,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return what `matmul` does, of operands that are known to fit each other.

    Parameters
    ----------
    a : numpy.ndarray
        (rows, depth) or (count, rows, depth) float16; any strides.
    values, indices : numpy.ndarray
        (…, depth, cols) float16, any strides, and None; or the compact form of pattern n:m,
        (…, kept, cols) float16 and uint8, both C-contiguous.
    start : numpy.ndarray or None
        (…, rows, cols) float32, any strides.
    out : numpy.ndarray, optional
        (…, rows, cols) float32, C-contiguous, for the result; a new array if not given.
    """
    where = None if start is None else (start.shape, start.strides)
    plan = _plan((a.shape, a.strides), (values.shape, values.strides), where, n, m, threads)
    result = np.empty(plan.shape, np.float32) if out is None else out
    status = plan.run(
        a.ctypes.data,
        values.ctypes.data,
        None if indices is None else indices.ctypes.data,
        None if start is None else start.ctypes.data,
        result.ctypes.data,
    )
    if status == -1:
        return result
    assert indices is not None, "only indices can be wrong"
    where_bad = [int(i) for i in np.unravel_index(status, indices.shape)]
    raise ValueError(
        f"b.indices{where_bad}={indices[tuple(where_bad)]}: indices must lie inside their group of "
        f"{m} (of {plan.depth - where_bad[-2] // n * m} at the end of depth) and rise inside it; "
        "make them with sore.select"
    )


def _operand(name: str, array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name} is a {type(array).__name__}: must be a numpy array; convert with np.asarray"
        )
    if array.dtype != dtype:
        wanted = np.dtype(dtype).name
        raise TypeError(
            f"{name} has dtype {array.dtype}: must be {wanted}; convert with "
            f"{name}.astype(np.{wanted})"
        )
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}: must have two dimensions of at least 1, or three "
            "for a stack of products; reshape it"
        )
    return array


def matmul(
    a: np.ndarray,
    b: np.ndarray | CompactOperand,
    start: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Return the matrix product ``start + a @ b`` with the bits that every device must give.

    Parameters
    ----------
    a : numpy.ndarray
        (rows, depth) float16, or (count, rows, depth) for a stack of products.
    b : numpy.ndarray or NMOperand
        (…, depth, cols) float16, or the compact form of such matrices with groups along depth.
    start : numpy.ndarray, optional
        (…, rows, cols) or (cols,) float32: first value of each sum; +0 if not given.
    threads : int
        Number of threads; the result does not depend on it.

    Returns
    -------
    numpy.ndarray
        (…, rows, cols) float32.

    Raises
    ------
    TypeError
        If an operand has another type.
    ValueError
        If shapes do not fit or are empty, the pattern is none, an index lies outside its group or
        does not rise inside it, or ``threads`` is below 1.
    MemoryError
        If there is not enough memory, or no more threads can be started.
    sat.sim.build.BuildError
        If the kernel has to be compiled and cannot be.
    """
    a = _operand("a", a, np.float16)
    *stack, rows, depth = a.shape
    if isinstance(b, np.ndarray):
        values, indices, n, m = _operand("b", b, np.float16), None, 1, 1
        if values.shape[:-1] != (*stack, depth):
            raise ValueError(
                f"a is {a.shape} and b is {b.shape}: a must have as many columns as b has rows, "
                "and stacks as many products; check which operand is transposed"
            )
    else:
        values = np.ascontiguousarray(_operand("b.values", b.values, np.float16))
        indices = np.ascontiguousarray(_operand("b.indices", b.indices, np.uint8))
        n, m = b.pattern
        check_pattern(n, m)
        if b.depth != depth:
            raise ValueError(
                f"a is {a.shape} and b has depth {b.depth}: a must have as many columns as the "
                "depth of b; check which operand is transposed"
            )
        stored = (*stack, kept_count(depth, n, m))
        if values.shape[:-1] != stored or indices.shape != values.shape:
            raise ValueError(
                f"b.values is {values.shape} and b.indices {indices.shape}: pattern {n}:{m} of "
                f"depth {depth} stores {stored[-1]} rows in both, for each of a's products; make "
                "them with sore.select"
            )
    shape = (*stack, rows, values.shape[-1])
    if start is not None:
        if np.shape(start) not in (shape, shape[-1:]):
            raise ValueError(
                f"start has shape {np.shape(start)}: must be {shape} or {shape[-1:]}; reshape it"
            )
        start = np.broadcast_to(_operand("start", np.atleast_2d(start), np.float32), shape)
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1; leave it out for one thread")
    return fold(a, values, indices, start, n, m, threads)
