"""Which device computes the layers' products here, and who listens."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from sat.devices.base import Device, Run
from sat.devices.golden import GoldenDevice
from sat.devices.use import LayerUse, watch_layers
from sat.sparsity.pattern import Pattern

_device: ContextVar[Device | None] = ContextVar("sat_device", default=None)
_label: ContextVar[str | None] = ContextVar("sat_product_label", default=None)
_log: ContextVar[ProductLog | None] = ContextVar("sat_product_log", default=None)


@dataclass(frozen=True)
class ProductRecord:
    """One product that a layer had computed, or a stack of them, one for each group.

    Parameters
    ----------
    layer : str
        The layer's name in its model.
    stage : str
        ``"FF"`` (forward), ``"BP"`` (gradient of the input), ``"WU"`` (gradient of the weight).
    rows, cols, depth : int
        C[rows, cols] = A[rows, depth] · B[depth, cols].
    pattern : Pattern
        Pattern of B.
    device : str
        Name of the device.
    run : Run
        The device's account.
    count : int
        Products of the stack.
    """

    layer: str
    stage: str
    rows: int
    cols: int
    depth: int
    pattern: Pattern
    device: str
    run: Run
    count: int = 1


@dataclass
class ProductLog:
    """Products in the order in which they were computed."""

    records: list[ProductRecord] = field(default_factory=list)
    use: LayerUse = field(default_factory=LayerUse, repr=False)

    @property
    def idle(self) -> dict[str, str]:
        """SAT layers of models at work here that never multiplied: name to who read the weight.

        An empty text where nobody read it.
        """
        return self.use.idle

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ProductRecord]:
        return iter(self.records)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all products."""
        return sum(r.run.macs for r in self.records)

    @property
    def cycles(self) -> int | None:
        """Cycles of all products; None if a device counted none for one of them, or for none."""
        counts = [r.run.cycles for r in self.records]
        known = [c for c in counts if c is not None]
        return sum(known) if known and len(known) == len(counts) else None


@functools.cache
def default_device() -> GoldenDevice:
    """Return the device that is used where none was chosen: one golden device per process."""
    return GoldenDevice()


def current_device(default: Device | None = None) -> Device:
    """Return the device of the innermost `use_device`, else ``default``, else a golden device."""
    return _device.get() or default or default_device()


def current_log() -> ProductLog | None:
    """Return the log of the innermost `record_products`, if there is one."""
    return _log.get()


def current_label() -> str | None:
    """Return what the product that is being computed is for: a layer's name and stage."""
    return _label.get()


@contextlib.contextmanager
def product_label(label: str) -> Iterator[None]:
    """Say what products inside this context are for."""
    token = _label.set(label)
    try:
        yield
    finally:
        _label.reset(token)


@contextlib.contextmanager
def use_device(device: Device) -> Iterator[Device]:
    """Compute the products of SAT layers on ``device`` inside this context.

    A forward pass binds the device: its backward pass runs there too, wherever it is called. The
    device is not closed at the end.

    Parameters
    ----------
    device : Device

    Raises
    ------
    TypeError
        If ``device`` is none.
    """
    if not isinstance(device, Device):
        raise TypeError(
            f"device is a {type(device).__name__}: must be a Device; make one with "
            "sat.device('golden')"
        )
    token = _device.set(device)
    try:
        yield device
    finally:
        _device.reset(token)


@contextlib.contextmanager
def record_products() -> Iterator[ProductLog]:
    """Record each product of the SAT layers called inside this context, backward included.

    A forward pass binds the log, as it binds the device.
    """
    log = ProductLog()
    token = _log.set(log)
    try:
        with watch_layers(log.use):
            yield log
    finally:
        _log.reset(token)
