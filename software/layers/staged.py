"""Layers whose stages a device runs whole, as one program each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from sat.devices.staged import StagedDevice
from sat.layers.engine import Engine
from sat.layers.schemes import CONTRACTION, Prune, Scheme
from sat.offload.lowering import Geometry
from sat.sim.layer import Layer
from sat.sparsity.pattern import DENSE

WHOLE = {
    "FF": Prune("weight", CONTRACTION["FF"]),
    "BP": Prune("weight", CONTRACTION["BP"]),
    "WU": Prune("output_gradient", CONTRACTION["WU"]),
}
"""What a device prunes in stages that it runs whole."""


def staged_layer(
    engine: Engine, g: Geometry, x: Sequence[int], weight: Sequence[int], bias: bool
) -> Layer | None:
    """Return the layer whose stages the device runs whole, or None if it is sent products.

    Whole stages prune what `WHOLE` says, by magnitude; padding is the same on opposite sides.
    """
    device, plan = engine.device, engine.plan
    if not isinstance(device, StagedDevice):
        return None
    patterns = {}
    for stage in CONTRACTION:
        prune = plan.pruning(stage)
        if prune is not None and prune != WHOLE[stage]:
            return None
        pattern = DENSE if prune is None else plan.patterns.of(stage)
        patterns[stage] = pattern.n, pattern.m
    channels = {"FF": weight[3], "BP": weight[0] // g.groups}
    whole = all(count % patterns[stage][1] == 0 for stage, count in channels.items())
    even = all(low == high for low, high in g.padding)
    if not whole or not even or type(plan.scheme).select is not Scheme.select:
        return None
    layer = _layer(
        batch=x[0],
        lines=x[1],
        pixels=x[2],
        in_channels=x[3],
        out_channels=weight[0],
        kernel=cast(tuple[int, int], g.kernel),
        stride=cast(tuple[int, int], g.stride),
        padding=(g.padding[0][0], g.padding[1][0]),
        dilation=cast(tuple[int, int], g.dilation),
        groups=g.groups,
        ff=patterns["FF"],
        bp=patterns["BP"],
        wu=patterns["WU"],
        bias=bias,
    )
    return layer if device.runs_layer(layer) else None


@functools.lru_cache(maxsize=1024)
def _layer(**fields: Any) -> Layer:
    """Return the layer of such fields; each step asks for the same ones."""
    return Layer(**fields)


def staged_gradients(
    layer: Layer,
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return BP, float16, and WU, float32, from one program."""
    names = [name for name, needed in (("bp", needs_x), ("wu", needs_weight)) if needed]
    made = engine.stages(layer, names, {"x": x, "dy": grad, "w": weight.float()})
    return made.get("dx"), made.get("g")
