"""How a layer's products are taken: scheme, pattern and device; and the scale of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from sat.devices.base import Device
from sat.devices.use import Family
from sat.layers.schemes import Scheme
from sat.sparsity.pattern import Pattern

PLAN = "_sat_plan"
"""Attribute of a SAT layer that holds its plan."""

_loss_scale: ContextVar[float] = ContextVar("sat_loss_scale", default=1.0)


@contextlib.contextmanager
def loss_scale(scale: float) -> Iterator[None]:
    """Say that the loss is multiplied by ``scale``; wrap ``backward`` in it.

    SR-STE adds a decay to the gradient of a weight; it has to grow with the loss, so that it is
    right after the gradient was divided by the scale. Other schemes do not care.
    """
    token = _loss_scale.set(scale)
    try:
        yield
    finally:
        _loss_scale.reset(token)


def current_loss_scale() -> float:
    """Return what the loss is multiplied by here."""
    return _loss_scale.get()


@dataclass(frozen=True)
class LayerPlan:
    """How a layer's products are taken.

    Parameters
    ----------
    name : str
        The layer's name in its model.
    scheme : Scheme
    pattern : Pattern
        ``DENSE``: no operand is pruned, whatever the scheme.
    device : Device or None
        Where products run outside any `sat.use_device`; None for the default golden device.
    family : Family
        The layers that were made together with it.
    undecided : bool
        Whether the layer's first input decides if the pattern fits: a lazy layer's.
    """

    name: str
    scheme: Scheme
    pattern: Pattern
    device: Device | None
    family: Family = field(default_factory=Family, compare=False)
    undecided: bool = False
