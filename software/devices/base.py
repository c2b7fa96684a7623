"""What every device is: matrix products with defined bits, and an account of the last one."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import wraps
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    overload,
    runtime_checkable,
)

import numpy as np
import torch
from numpy.typing import NDArray

from sat.arrays import array_of, tensor_of
from sat.devices.account import Run
from sat.devices.operand import RightOperand, Windows
from sat.errors import DeviceClosedError, DeviceError
from sat.rtl.config import SatConfig
from sat.sim.threads import Turn
from sat.sparsity.tensor import NMTensor

if TYPE_CHECKING:
    from sat.dataflow.compile.step import Sgd
    from sat.dataflow.products import Product
    from sat.sim.layer import Layer

DATAFLOWS = ("auto", "os", "ws")
"""Output stationary, weight stationary, or whichever the scheduler expects to be faster."""

Tensors = dict[str, NDArray[Any]]
"""Tensors of a layer by name: x, dy, y, dx (float16), w, v, g, bias (float32)."""

Array = TypeVar("Array", torch.Tensor, NDArray[Any])


@runtime_checkable
class StageRunner(Protocol):
    """A device that runs whole stages of a layer's training step as one program."""

    def run_stages(
        self,
        names: tuple[str, ...],
        layer: Layer,
        tensors: Tensors,
        rates: Sgd | None,
        owner: object = None,
    ) -> tuple[Tensors, Run]:
        """Run stages (of `sat.dataflow.compile.step.STAGES`); see `StagedDevice.stages`."""
        ...


@runtime_checkable
class RoundingDevice(Protocol):
    """A device that may take tensors of any real floating-point type, and round them itself.

    Attributes
    ----------
    rounds : bool
        Whether it does.
    """

    rounds: bool

    def multiply(
        self,
        a: torch.Tensor | Windows,
        b: torch.Tensor | Windows | RightOperand,
        start: torch.Tensor | None,
        lost: ctypes.Array[ctypes.c_long],
        out: torch.Tensor | None = None,
        outer: int = 1,
    ) -> tuple[torch.Tensor, Product, Run]:
        """Return ``start + a @ b`` of operands rounded to float16, in turn, and the account.

        Parameters
        ----------
        a : (rows, depth) or (count, rows, depth) tensor, or Windows
            Of a real floating-point type, strided, in the host's memory, no number lazy.
        b : (…, depth, cols) tensor, Windows or RightOperand
        start : (…, rows, cols) or (cols,) float32 tensor, or None
        lost : array of three c_long
            How many numbers became infinite, zero and subnormal by rounding is added; of a
            `RightOperand` none did.
        out : (…, rows, cols) float32 tensor, contiguous, optional
            For the result.
        outer : int
            Columns are (outer, others), and the result's are (others, outer). Without a start,
            dense operands only, unless it is 1.

        Returns
        -------
        result : (…, rows, cols) float32
        product : Product
        run : Run
        """
        ...

    def threads_for(self, macs: int) -> int:
        """Return how many threads a product of so many multiply-accumulates uses."""
        ...

    def computed(self, product: Product, seconds: float) -> Run:
        """Return the account of a dense product whose bits the golden kernel made elsewhere.

        Raises
        ------
        DeviceClosedError
            If the device was closed.
        """
        ...


def make_config(
    config: SatConfig | None = None, array: str | None = None, **options: Any
) -> SatConfig:
    """Return the configuration that a device's options describe.

    Parameters
    ----------
    config : SatConfig, optional
        What to start from; the default device if not given.
    array : str, optional
        The array's shape, such as ``"8x8"``.
    **options
        Further fields of `SatConfig`.

    Raises
    ------
    TypeError
        If an option has no such name or type.
    ValueError
        If a value breaks its rule.
    """
    if config is not None and not isinstance(config, SatConfig):
        raise TypeError(
            f"config is a {type(config).__name__}: must be a SatConfig; "
            "give sat.rtl.config.SatConfig(...)"
        )
    known = {f.name for f in fields(SatConfig)}
    for name in options:
        if name not in known:
            raise TypeError(
                f"option {name!r}: a device takes config, array and {', '.join(sorted(known))}; "
                "correct the name or leave it out"
            )
    made = replace(config or SatConfig(), **options)
    if array is None:
        return made
    if not isinstance(array, str):
        raise TypeError(f"array={array!r}: must be text such as '8x8'")
    return made.with_array(array)


P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", bound="Device")


def exclusive(method: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """Let one thread at a time into such methods of a device, and nobody once it is closed."""

    @wraps(method)
    def taking_turns(self: D, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turn():
            self._require_open()
            return method(self, *args, **kwargs)

    return taking_turns


class Device(ABC):
    """Matrix products with the same bits on every device.

    A context manager. Operands are checked here, once for all devices; a subclass implements
    `_matmul` and may extend `close`. Threads may share a device: their products are computed one
    after the other.

    Parameters
    ----------
    config : SatConfig
        Array, patterns, buffers.

    Attributes
    ----------
    name : str
        What the device is called in messages and reports.
    last_run : Run or None
        Account of the last product that succeeded, whichever thread it was for.
    """

    name: str = "device"

    any_pattern = False
    """Whether patterns with an M above ``config.max_m`` are computed, too."""

    def __init__(self, config: SatConfig) -> None:
        self.config = config
        self.last_run: Run | None = None
        self._closed = False
        self._turn = Turn()

    @abstractmethod
    def _matmul(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        """Compute one product, or a stack of them; the operands are checked.

        Parameters
        ----------
        a : (rows, depth) or (count, rows, depth) float16
            Any strides.
        b : RightOperand
            For a stack exactly if ``a`` is one.
        start : (…, rows, cols) float32 or None
            First value of each sum. One value per column comes as a view whose row stride is 0:
            ``start.strides[-2] == 0``.
        dataflow : str
            One of `DATAFLOWS`.

        Returns
        -------
        result : (rows, cols) or (count, rows, cols) float32
            A new array; every NaN is 0x7fc00000.
        run : Run
        """

    def predict(self, product: Product, dataflow: str = "auto") -> int:
        """Return the cycles that a product takes, by the cycle model.

        Raises
        ------
        DeviceError
            If the device has no cycle model.
        ValueError
            If its array has no mapping for the product.
        """
        raise DeviceError(
            f"device {self.name} predicts no cycles of {product}: it has no cycle model; "
            "use 'golden' or 'rtl'"
        )

    @overload
    def matmul(
        self, a: torch.Tensor, b: Any, start: Any = None, dataflow: str = "auto"
    ) -> torch.Tensor: ...
    @overload
    def matmul(
        self, a: NDArray[Any], b: Any, start: Any = None, dataflow: str = "auto"
    ) -> NDArray[np.float32]: ...
    def matmul(self, a: Any, b: Any, start: Any = None, dataflow: str = "auto") -> Any:
        """Return ``start + a @ b``: FP16 operands, FP32 sums in ascending order of depth.

        Parameters
        ----------
        a : torch.Tensor or numpy.ndarray
            (rows, depth) float16; (count, rows, depth) for a stack of products, which the device
            computes in one go.
        b : torch.Tensor, numpy.ndarray, NMTensor or RightOperand
            (depth, cols), of a stack (count, depth, cols), float16; an `NMTensor` has its groups
            along the depth. What `resident` returned stays in the device's memory.
        start : torch.Tensor or numpy.ndarray, optional
            First value of each sum, float32: one for each, as the result; (cols,); or, of a stack,
            (count, 1, cols). +0 if not given.
        dataflow : str
            ``"auto"``, ``"os"`` or ``"ws"``; the result does not depend on it.

        Returns
        -------
        torch.Tensor or numpy.ndarray
            (rows, cols) or (count, rows, cols) float32, of the kind of ``a``.

        Raises
        ------
        TypeError
            If an operand has another type.
        ValueError
            If shapes do not fit, are empty, or the pattern or dataflow is none of this device.
        DeviceClosedError
            If the device was closed.
        DeviceError
            If the device fails.
        """
        return self.matmul_run(a, b, start, dataflow)[0]

    @overload
    def matmul_run(
        self, a: torch.Tensor, b: Any, start: Any = None, dataflow: str = "auto"
    ) -> tuple[torch.Tensor, Run]: ...
    @overload
    def matmul_run(
        self, a: NDArray[Any], b: Any, start: Any = None, dataflow: str = "auto"
    ) -> tuple[NDArray[np.float32], Run]: ...
    def matmul_run(
        self, a: Any, b: Any, start: Any = None, dataflow: str = "auto"
    ) -> tuple[Any, Run]:
        """Return what `matmul` does, and the account of just this product.

        `last_run` may be of another thread's product by the time it is read.
        """
        self._require_open()
        left, right, first = self._check(a, b, start, dataflow)
        result, run = self.compute(left, right, first, dataflow)
        return tensor_of(result) if isinstance(a, torch.Tensor) else np.asarray(result), run

    @exclusive
    def compute(
        self,
        a: NDArray[np.float16],
        b: RightOperand,
        start: NDArray[np.float32] | None,
        dataflow: str,
    ) -> tuple[NDArray[np.float32], Run]:
        """Compute one product of checked operands, in turn: how devices use each other.

        Parameters and returns are those of `_matmul`.
        """
        result, run = self._matmul(a, b, start, dataflow)
        self.last_run = run
        return result, run

    def _require_open(self) -> None:
        if self._closed:
            raise DeviceClosedError(
                f"device {self.name} is closed: a closed device computes nothing; "
                "make another with sat.device"
            )

    def _check(
        self, a: Any, b: Any, start: Any, dataflow: Any
    ) -> tuple[NDArray[np.float16], RightOperand, NDArray[np.float32] | None]:
        """Return (a, b, start) as `_matmul` takes them, or raise."""
        if not isinstance(dataflow, str) or dataflow not in DATAFLOWS:
            raise ValueError(f"dataflow={dataflow!r}: must be 'auto', 'os' or 'ws'; choose one")
        left = _matrix("a", a, np.float16)
        *stack, rows, depth = left.shape
        right = b if isinstance(b, RightOperand) else _right(b)
        if (right.depth, right.values.shape[:-2]) != (depth, tuple(stack)):
            found = (*right.values.shape[:-2], right.depth, right.cols)
            raise ValueError(
                f"a is {left.shape} and b is {found}: a must have as many columns as b has rows, "
                "and a stack as many products as the other; check which operand is transposed"
            )
        if right.pattern.m > self.config.max_m and not self.any_pattern:
            raise ValueError(
                f"b has pattern {right.pattern}: device {self.name} has M up to "
                f"{self.config.max_m}; make it with max_m={right.pattern.m}"
            )
        first = None
        if start is not None:
            first = _array("start", start, np.float32)
            shape = (*stack, rows, right.cols)
            one_row = (*stack, 1, right.cols) if stack else shape[-1:]
            if first.shape not in (shape, one_row, shape[-1:]):
                raise ValueError(
                    f"start has shape {first.shape}: must be {shape} or {one_row}, as the result "
                    "or as one of its rows; reshape it"
                )
            first = np.broadcast_to(first, shape)
        return left, right, first

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give back what the device holds; later calls of `matmul` raise. May be called twice."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except DeviceError:
            # The first error says more.
            if kind is None:
                raise

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__} {self.name}, array {self.config.array}{state}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # A copied model runs on the same device.
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"device {self.name} cannot be pickled: it stands for hardware or for a simulator; "
            "sparsify the model without device= and compute inside `with sat.use_device(...)`"
        )


def resident(b: Any) -> RightOperand:
    """Return a right operand that devices keep: it is sent with its first product only.

    A device holds it for as long as the returned object lives and there is room in its memory;
    what was used least recently goes first, and is sent again when it is needed.

    Parameters
    ----------
    b : torch.Tensor, numpy.ndarray or NMTensor
        As for `Device.matmul`; copied.

    Raises
    ------
    TypeError, ValueError
        As `Device.matmul`.

    Examples
    --------
    >>> import sat
    >>> w = resident(np.eye(8, dtype=np.float16))
    >>> with sat.device("golden") as dev:
    ...     for _ in range(2):
    ...         c = dev.matmul(np.ones((1, 8), np.float16), w)
    >>> dev.last_run.bytes_kept
    128
    """
    right = b if isinstance(b, RightOperand) else _right(b)
    indices = None if right.indices is None else right.indices.copy()
    return replace(right, values=right.values.copy(), indices=indices, resident=True)


def _right(b: Any) -> RightOperand:
    """Return a right operand that is checked but for its depth and the device's patterns."""
    if not isinstance(b, NMTensor):
        return RightOperand.dense(_matrix("b", b, np.float16))
    if b.ndim not in (2, 3) or b.axis != b.ndim - 2:
        raise ValueError(
            f"b has shape {tuple(b.shape)} and groups along axis {b.axis}: must have two axes and "
            "groups along axis 0, its depth, or, for a stack, three axes and groups along axis 1; "
            "prune with sat.prune(b, pattern, axis=-2)"
        )
    values = _matrix("b", b.values, np.float16)
    if b.pattern.dense:
        return RightOperand.dense(values)
    values = np.ascontiguousarray(values)
    return RightOperand(values, np.ascontiguousarray(array_of(b.indices)), b.pattern, b.shape[-2])


_FIXES: Mapping[Any, tuple[str, str]] = {
    np.float16: ("operands are float16", "half"),
    np.float32: ("start values are float32", "float"),
}


def _array(name: str, x: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """Return ``x`` as a numpy array of ``dtype``, not copied; raise unless it is one."""
    rule, method = _FIXES[dtype]
    wanted = np.dtype(dtype)
    if isinstance(x, torch.Tensor):
        found = str(x.dtype).removeprefix("torch.")
        if found != wanted.name:
            raise TypeError(f"{name} has dtype {found}: {rule}; convert with {name}.{method}()")
        if x.device.type != "cpu":
            raise ValueError(f"{name} is on {x.device}: must be in host memory; use {name}.cpu()")
        if x.layout is not torch.strided:
            raise ValueError(
                f"{name} has layout {x.layout}: must be strided or an NMTensor; "
                f"use {name}.to_dense()"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires grad: a device's product records no gradient; use "
                f"{name}.detach(), or train through sat.sparsify_"
            )
        return array_of(x)
    if isinstance(x, np.ndarray):
        if x.dtype != wanted:
            raise TypeError(
                f"{name} has dtype {x.dtype}: {rule}; convert with {name}.astype(np.{wanted})"
            )
        return x
    raise TypeError(
        f"{name} is a {type(x).__name__}: must be a torch.Tensor or numpy.ndarray"
        + (" or NMTensor" if name == "b" else "")
        + f"; convert with torch.as_tensor({name})"
    )


def _matrix(name: str, x: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """Return ``x`` as a matrix of ``dtype``, or a stack; raise unless it is one, not empty."""
    array = _array(name, x, dtype)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}: must have two axes of at least 1, or three for a "
            "stack; reshape it"
        )
    return array
