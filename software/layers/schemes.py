"""Training schemes: which operand of which product is pruned, along which channels.

A layer takes three products a step. Named by what they contract:

====== =========================== ============ ================================
stage  result                      contraction  operands
====== =========================== ============ ================================
``FF`` output                      ``"in"``     ``"weight"``, ``"input"``
``BP`` gradient of the input       ``"out"``    ``"weight"``, ``"output_gradient"``
``WU`` gradient of the weight      batch        ``"input"``, ``"output_gradient"``
====== =========================== ============ ================================

A device gains from a pruned operand only if it is pruned along the contraction; pruned along
another axis it is masked, and the product is dense. The masters stay dense and take the
straight-through gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sat.sim.golden import sore
from sat.sparsity.pattern import Pattern

CONTRACTION = MappingProxyType({"FF": "in", "BP": "out", "WU": "batch"})
"""Axis that each stage's product sums over."""

_AXES = {"weight": ("in", "out"), "input": ("in",), "output_gradient": ("out", "batch")}
_OPERANDS = {
    "FF": ("weight", "input"),
    "BP": ("weight", "output_gradient"),
    "WU": ("input", "output_gradient"),
}


@dataclass(frozen=True)
class Prune:
    """How an operand is pruned.

    Parameters
    ----------
    operand : str
        ``"weight"``, ``"input"`` or ``"output_gradient"``.
    *axes : str
        ``"in"`` or ``"out"`` channels: groups of M of them, at a fixed position of the kernel or
        the picture; or ``"batch"``: groups of M positions of a channel, image after image, line
        after line, the last of which may be short. Several are applied one after another, each to
        what the previous one left.

    Raises
    ------
    ValueError
        If the operand is none or has no such axis.
    """

    operand: str
    axes: tuple[str, ...]

    def __init__(self, operand: str, *axes: str) -> None:
        if operand not in _AXES:
            raise ValueError(f"operand {operand!r}: must be one of {', '.join(_AXES)}; choose one")
        if not axes or any(axis not in _AXES[operand] for axis in axes):
            raise ValueError(
                f"axes {axes!r} of {operand}: must be one or more of {_AXES[operand]}; choose so"
            )
        object.__setattr__(self, "operand", operand)
        object.__setattr__(self, "axes", tuple(axes))


@dataclass(frozen=True)
class Scheme:
    """A training scheme.

    A subclass may override `select` to choose the kept elements by another criterion.

    Parameters
    ----------
    name : str
        What it is registered as.
    summary : str
        What it does, in one line.
    prunes : mapping of str to Prune
        Stage (``"FF"``, ``"BP"``, ``"WU"``) to the operand that is pruned in it; a stage that is
        not there is dense.
    srste_lambda : float
        Decay of the weights that FF prunes: their gradient grows by ``srste_lambda * weight``.

    Raises
    ------
    ValueError
        If a stage is none or does not have the operand, or the decay is negative, not finite, or
        without FF weights to prune.
    """

    name: str
    summary: str = ""
    prunes: Mapping[str, Prune] = field(default_factory=dict)
    srste_lambda: float = 0.0

    draws: ClassVar[bool] = False
    """Whether `select` draws at random, so that two calls differ."""

    def __post_init__(self) -> None:
        for stage, prune in self.prunes.items():
            if stage not in _OPERANDS:
                raise ValueError(f"stage {stage!r}: must be FF, BP or WU; choose one")
            if prune.operand not in _OPERANDS[stage]:
                raise ValueError(
                    f"{stage} prunes {prune.operand!r}: {stage} has {_OPERANDS[stage]}; "
                    "prune one of these"
                )
        if not (self.srste_lambda >= 0 and math.isfinite(self.srste_lambda)):
            raise ValueError(
                f"srste_lambda={self.srste_lambda}: must be finite and not negative; "
                "0 switches it off"
            )
        ff = self.prunes.get("FF")
        if self.srste_lambda and (ff is None or ff.operand != "weight"):
            raise ValueError(
                f"srste_lambda={self.srste_lambda}: decays the weights that FF prunes, and FF "
                "prunes none; set it to 0"
            )
        object.__setattr__(self, "prunes", MappingProxyType(dict(self.prunes)))

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled or deep-copied; models that hold a scheme are.
        state = {**self.__dict__, "prunes": dict(self.prunes)}
        return _restore, (type(self), state)

    def restarted(self) -> Scheme:
        """Return the scheme as at its start, for a model of its own: itself unless it draws."""
        return self

    def pruning(self, stage: str, operand: str) -> Prune | None:
        """Return how ``operand`` is pruned in ``stage``; None if it is dense there."""
        prune = self.prunes.get(stage)
        return prune if prune is not None and prune.operand == operand else None

    def select(
        self, x: NDArray[np.float16], pattern: Pattern, axis: int, stage: str
    ) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Return the kept elements of each group of M along ``axis``, and their places.

        Parameters
        ----------
        x : float16
            Weights, activations or gradients, rounded already: what the device would prune.
        pattern : Pattern
        axis : int
            Axis of ``x`` along which groups are taken.
        stage : str
            ``"FF"``, ``"BP"`` or ``"WU"``.

        Returns
        -------
        values, indices : float16 and uint8
            As `sat.sim.golden.sore.select`: the N largest magnitudes, ties to the lower index.
        """
        return sore.select(x, pattern.n, pattern.m, axis)


def _restore(kind: type[Scheme], state: dict[str, object]) -> Scheme:
    scheme = kind.__new__(kind)
    for name, value in state.items():
        object.__setattr__(scheme, name, value)
    object.__setattr__(scheme, "prunes", MappingProxyType(scheme.prunes))
    return scheme


_REGISTRY: dict[str, Scheme] = {}


def register_scheme(scheme: Scheme) -> Scheme:
    """Register a scheme under its name, and return it.

    Raises
    ------
    TypeError
        If it is no `Scheme`.
    ValueError
        If another scheme has the name.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(
            f"scheme is a {type(scheme).__name__}: must be a Scheme instance; make one with "
            "Scheme(name, prunes=...)"
        )
    if _REGISTRY.get(scheme.name, scheme) != scheme:
        raise ValueError(f"scheme {scheme.name!r}: the name is taken; choose another")
    _REGISTRY[scheme.name] = scheme
    return scheme


def unregister_scheme(name: str) -> None:
    """Forget a registered scheme.

    Raises
    ------
    ValueError
        If there is no such scheme.
    """
    get_scheme(name)
    del _REGISTRY[name]


def schemes() -> dict[str, Scheme]:
    """Return the registered schemes by name."""
    return dict(_REGISTRY)


def get_scheme(spec: str | Scheme) -> Scheme:
    """Return the scheme of that name; a scheme for itself.

    Raises
    ------
    TypeError
        If ``spec`` is neither text nor a scheme.
    ValueError
        If there is no such scheme.
    """
    if isinstance(spec, Scheme):
        return spec
    if not isinstance(spec, str):
        raise TypeError(
            f"scheme {spec!r} is a {type(spec).__name__}: must be a name or a Scheme; "
            "choose for instance 'bdwp'"
        )
    if spec not in _REGISTRY:
        raise ValueError(
            f"scheme {spec!r}: there is no such scheme; choose one of {', '.join(_REGISTRY)} or "
            "register yours with sat.register_scheme"
        )
    return _REGISTRY[spec]


_FF_WEIGHT = Prune("weight", "in")

register_scheme(Scheme("dense", "nothing is pruned"))
register_scheme(
    Scheme(
        "bdwp",
        "weights pruned in FF along input channels and in BP along output channels "
        "(Fang et al. 2023)",
        {"FF": _FF_WEIGHT, "BP": Prune("weight", "out")},
    )
)
register_scheme(
    Scheme(
        "srste",
        "weights pruned in FF, the same masked weights in BP at dense cost, decay of the pruned "
        "ones (Zhou et al. 2021)",
        {"FF": _FF_WEIGHT, "BP": _FF_WEIGHT},
        srste_lambda=2e-4,
    )
)
register_scheme(
    Scheme(
        "sdgp",
        "output gradients pruned in BP along output channels (McDanel et al. 2022)",
        {"BP": Prune("output_gradient", "out")},
    )
)
register_scheme(
    Scheme("sdwp", "weights pruned in BP only", {"BP": Prune("weight", "out")}),
)
BDWP_WU = {
    "FF": _FF_WEIGHT,
    "BP": Prune("weight", "out"),
    "WU": Prune("output_gradient", "batch"),
}
"""Every product of a step sparse: BDWP, and the output gradient pruned in WU."""

register_scheme(
    Scheme(
        "bdwp_wu",
        "BDWP, and output gradients pruned in WU along the positions of the batch, by magnitude",
        BDWP_WU,
    )
)
