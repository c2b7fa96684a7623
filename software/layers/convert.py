"""Make a module's layers SAT layers, say what became of each, and undo it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from sat.devices.base import Device
from sat.layers.engine import COPIES
from sat.layers.modules import SatConv2d, SatLinear
from sat.layers.plan import PLAN, LayerPlan
from sat.layers.schemes import Scheme, get_scheme
from sat.sparsity.pattern import DENSE, Pattern


@dataclass(frozen=True)
class LayerReport:
    """What `sparsify_` decided about one layer.

    Parameters
    ----------
    name, kind : str
        Its name in the model, its class before.
    shape : tuple of int
        Shape of its weight; empty if it has none of its own.
    scheme, pattern : str
        What its products follow; ``"host"`` and ``"dense"`` if they stay in torch.
    reason : str
        Why.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    scheme: str
    pattern: str
    reason: str


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify_` decided about each layer; printed as a table."""

    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        head = ("layer", "kind", "weight", "scheme", "pattern", "reason")
        rows = [
            (r.name or "-", r.kind, "x".join(map(str, r.shape)) or "-", r.scheme, r.pattern)
            + (r.reason,)
            for r in self.layers
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        )


Filter = Callable[[str, nn.Module], bool | None]

_TWINS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SatLinear, nn.Conv2d: SatConv2d}
_ORIGINALS = {twin: original for original, twin in _TWINS.items()}
_WITH_PRODUCTS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


def sparsify_(
    module: nn.Module,
    scheme: str | Scheme = "bdwp",
    pattern: str | Pattern | None = "2:8",
    filter_fn: Filter | None = None,
    device: Device | None = None,
) -> SparsityReport:
    """Make the linear and convolution layers of a module compute on a device, sparse in training.

    The layers stay where they are and keep their parameters, names and hooks; optimizers and
    ``state_dict`` do not notice. All layers of class ``nn.Linear`` and ``nn.Conv2d`` run on the
    device. Sparse are those whose input and output channels (per group) M divides, unless
    ``filter_fn`` decides. Called again, it replaces the earlier decision. `desparsify_` undoes it.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    scheme : str or Scheme
        ``"dense"``, ``"bdwp"``, ``"srste"``, ``"sdgp"``, ``"sdwp"``, or your own.
    pattern : str or Pattern or None
        Such as ``"2:8"``.
    filter_fn : callable, optional
        ``filter_fn(name, layer)`` returns True to make a layer sparse, False to keep it dense,
        None to leave it to the rule.
    device : Device, optional
        Where products run outside any `sat.use_device`; a golden device if not given.

    Returns
    -------
    SparsityReport
        One row a layer, also for layers whose products stay in torch.

    Raises
    ------
    TypeError
        If an argument has another type.
    ValueError
        If there is no such scheme or pattern, nothing to convert, or a convolution pads with
        something else than zeros. The module is then as before.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module is a {type(module).__name__}: must be an nn.Module; to prune a tensor use "
            "sat.prune"
        )
    if device is not None and not isinstance(device, Device):
        raise TypeError(
            f"device is a {type(device).__name__}: must be a Device; make one with "
            "sat.device('golden')"
        )
    chosen, wanted = get_scheme(scheme), Pattern.parse(pattern)
    rows: list[LayerReport] = []
    changes: list[tuple[nn.Module, LayerPlan]] = []
    for name, layer in module.named_modules():
        kind = _ORIGINALS.get(type(layer), type(layer))
        shape = tuple(getattr(layer, "weight", torch.empty(())).shape)
        if kind not in _TWINS:
            if isinstance(layer, _WITH_PRODUCTS):
                reason = f"no SAT layer for class {kind.__name__}"
                rows.append(LayerReport(name, kind.__name__, shape, "host", "dense", reason))
            continue
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(
                f"layer {name!r} has padding_mode={layer.padding_mode!r}: SAT pads with zeros; "
                "pad in a layer of its own, such as nn.ReflectionPad2d"
            )
        sparse, reason = _decide(name, layer, chosen, wanted, filter_fn)
        plan = LayerPlan(name, chosen, wanted if sparse else DENSE, device)
        changes.append((layer, plan))
        shown = chosen.name if sparse else "dense"
        rows.append(LayerReport(name, kind.__name__, shape, shown, str(plan.pattern), reason))
    if not changes:
        raise ValueError(
            f"module {type(module).__name__} has no layer of class nn.Linear or nn.Conv2d: there "
            "is nothing to sparsify; give a module that has one"
        )
    for layer, plan in changes:
        layer.__class__ = _TWINS.get(type(layer), type(layer))
        setattr(layer, PLAN, plan)
    return SparsityReport(tuple(rows))


def _decide(
    name: str, layer: nn.Module, scheme: Scheme, pattern: Pattern, filter_fn: Filter | None
) -> tuple[bool, str]:
    """Return whether a layer is sparse, and why."""
    if pattern.dense or not scheme.prunes:
        return False, "asked for" if pattern.dense else f"scheme {scheme.name} prunes nothing"
    verdict = None if filter_fn is None else filter_fn(name, layer)
    if verdict is not None:
        if not isinstance(verdict, bool):
            raise TypeError(
                f"filter_fn returned {verdict!r} for layer {name!r}: must be True (sparse), False "
                "(dense) or None (by the rule)"
            )
        return verdict, "filter_fn"
    if isinstance(layer, nn.Linear):
        channels = {"in_features": layer.in_features, "out_features": layer.out_features}
    else:
        conv = cast(nn.Conv2d, layer)
        per_group = "" if conv.groups == 1 else " per group"
        channels = {
            f"in_channels{per_group}": conv.in_channels // conv.groups,
            f"out_channels{per_group}": conv.out_channels // conv.groups,
        }
    for what, count in channels.items():
        if count % pattern.m:
            return False, f"{what} {count} is no multiple of {pattern.m}"
    return True, f"channels are multiples of {pattern.m}"


def desparsify_(module: nn.Module) -> nn.Module:
    """Undo `sparsify_`: the layers are plain torch layers again, with their dense masters.

    Parameters
    ----------
    module : nn.Module
        Changed in place; layers that were not sparsified stay as they are.

    Returns
    -------
    nn.Module
        ``module``.

    Raises
    ------
    TypeError
        If it is no module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}: must be an nn.Module")
    for layer in module.modules():
        if type(layer) in _ORIGINALS:
            layer.__class__ = _ORIGINALS[type(layer)]
            COPIES.pop(layer, None)
            delattr(layer, PLAN)
    return module
