"""How a layer's products are taken: scheme, pattern and device; and the scale of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from sat.devices.base import Device
from sat.devices.use import Family
from sat.layers.schemes import Prune, Scheme
from sat.sparsity.pattern import Patterns

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
    patterns : Patterns
        Where a stage's is dense no operand is pruned in it, whatever the scheme.
    device : Device or None
        Where products run outside any `sat.use_device`; None for the default golden device.
    family : Family
        The layers that were made together with it.
    undecided : bool
        Whether the layer's first input decides if the pattern fits: a lazy layer's.
    """

    name: str
    scheme: Scheme
    patterns: Patterns
    device: Device | None
    family: Family = field(default_factory=Family, compare=False)
    undecided: bool = False

    def pruning(self, stage: str, operand: str | None = None) -> Prune | None:
        """Return how a stage prunes, or None; asked for an operand, only if it is that one."""
        prune = None if self.patterns.of(stage).dense else self.scheme.prunes.get(stage)
        return prune if prune is None or operand in (None, prune.operand) else None
