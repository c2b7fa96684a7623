"""Make a module's layers SAT layers, say what became of each, and undo it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sat.devices.base import Device
from sat.devices.use import Family
from sat.layers.engine import COPIES
from sat.layers.modules import (
    SatConv2d,
    SatLazyConv2d,
    SatLazyLinear,
    SatLinear,
    channel_group,
    channel_rule,
    unfused,
)
from sat.layers.plan import PLAN, LayerPlan
from sat.layers.schemes import Scheme, get_scheme
from sat.layers.unbiased import UnbiasedGradients as UnbiasedGradients
from sat.sparsity.pattern import DENSE, Pattern, Patterns


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

_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SatLinear,
    nn.Conv2d: SatConv2d,
    nn.LazyLinear: SatLazyLinear,
    nn.LazyConv2d: SatLazyConv2d,
}
_ORIGINALS = {twin: original for original, twin in _TWINS.items()}
_WITH_PRODUCTS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)
_WITHOUT = (nn.LayerNorm, nn.RMSNorm)
"""Modules whose parameters may have several axes and multiply element by element."""


def sparsify_(
    module: nn.Module,
    scheme: str | Scheme = "bdwp",
    pattern: str | Pattern | Patterns | None = "2:8",
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
        ``"dense"``, ``"bdwp"``, ``"bdwp_wu"``, ``"bdwp_mvue"``, ``"srste"``, ``"sdgp"``,
        ``"sdwp"``, or your own.
    pattern : str or Pattern or Patterns or None
        Such as ``"2:8"``, or with another for a stage, ``"2:8,wu=2:4"``: see `Patterns.parse`.
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
    chosen, wanted = get_scheme(scheme).restarted(), Patterns.parse(pattern)
    rows: list[LayerReport] = []
    changes: list[tuple[nn.Module, LayerPlan]] = []
    family = Family()
    holders, inner = _holders(module), _inner(module)
    for name, layer in module.named_modules():
        if layer in inner:
            continue
        original = _original(layer)
        twin = _TWINS.get(original)
        if twin is None or _read_by_attention(name, module):
            reason = _why_not(layer, original, twin is not None)
            if reason is not None:
                shape = _shape(layer)
                rows.append(LayerReport(name, original.__name__, shape, "host", "dense", reason))
            continue
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(
                f"layer {name!r} has padding_mode={layer.padding_mode!r}: SAT pads with zeros; "
                "pad in a layer of its own, such as nn.ReflectionPad2d"
            )
        sparse, reason, undecided = _decide(name, layer, chosen, wanted, filter_fn)
        patterns = wanted if sparse else Patterns.parse(DENSE)
        plan = LayerPlan(name, chosen, patterns, device, family, undecided)
        changes.append((layer, plan))
        shown = chosen.name if sparse else "dense"
        reason += _shared(layer, holders)
        kind, shape = original.__name__, _shape(layer)
        rows.append(LayerReport(name, kind, shape, shown, str(patterns), reason))
    if not changes:
        raise ValueError(
            f"module {type(module).__name__} has no layer of class nn.Linear or nn.Conv2d: there "
            "is nothing to sparsify; give a module that has one"
        )
    for layer, plan in changes:
        _leave_family(layer)
        _become(layer, _TWINS[_original(layer)])
        setattr(layer, PLAN, plan)
        family.layers.add(plan.name)
        if unfused not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(unfused)
    return SparsityReport(tuple(rows))


def _original(layer: nn.Module) -> type[nn.Module]:
    """Return a layer's class without SAT and without parametrizations."""
    kind = parametrize.type_before_parametrizations(layer)
    return _ORIGINALS.get(kind, kind)


def _become(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Change the class of a layer, below its parametrizations if it has any."""
    if parametrize.is_parametrized(layer):
        # The class that torch made for this layer, with its properties, on top of another one. A
        # new one, as copies of the layer share theirs.
        own = {
            name: value
            for name, value in vars(type(layer)).items()
            if name not in ("__dict__", "__weakref__", "__module__", "__doc__")
        }
        kind = type(f"Parametrized{kind.__name__}", (kind,), own)
    layer.__class__ = kind


def _leave_family(layer: nn.Module) -> None:
    plan: LayerPlan | None = layer.__dict__.get(PLAN)
    if plan is not None:
        plan.family.layers.discard(plan.name)


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, or of its first parameter that may multiply."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    if isinstance(layer, nn.Conv2d):
        per_group = layer.in_channels // layer.groups
        return (layer.out_channels, per_group, *layer.kernel_size)
    known = [p for p in layer._parameters.values() if p is not None and not is_lazy(p)]
    weight = layer._parameters.get("weight")
    if weight is not None and not is_lazy(weight):
        return tuple(weight.shape)
    return next((tuple(p.shape) for p in known if p.ndim > 1), ())


def _inner(module: nn.Module) -> set[nn.Module]:
    """Return what belongs to parametrizations: no layers."""
    return {
        part
        for layer in module.modules()
        if parametrize.is_parametrized(layer)
        for part in layer.parametrizations.modules()  # type: ignore[union-attr]
    }


def _read_by_attention(name: str, module: nn.Module) -> bool:
    """Return whether a layer is one whose weight ``nn.MultiheadAttention`` takes past it."""
    parent, _, own = name.rpartition(".")
    return own == "out_proj" and isinstance(module.get_submodule(parent), nn.MultiheadAttention)


def _why_not(layer: nn.Module, kind: type[nn.Module], read: bool) -> str | None:
    """Return why a module's products stay in torch; None if it can have none of its own."""
    if read or issubclass(kind, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention multiplies by its weight itself"
    if isinstance(layer, _WITH_PRODUCTS):
        return f"no SAT layer for class {kind.__name__}"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return "a table to look up; where its weight multiplies, it is dense"
    wide = [
        name
        for name, p in layer._parameters.items()
        if p is not None and (is_lazy(p) or p.ndim > 1)
    ]
    if not wide or isinstance(layer, _WITHOUT):
        return None
    return f"not recognised: what {', '.join(wide)} multiplies is dense"


def _holders(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return which modules hold each parameter."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, layer in module.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                found.setdefault(parameter, []).append(f"{name!r} ({_original(layer).__name__})")
    return found


def _shared(layer: nn.Module, holders: dict[nn.Parameter, list[str]]) -> str:
    """Return with whom a layer shares its weight, for its report."""
    weight = layer._parameters.get("weight")
    names = [] if weight is None else holders[weight]
    return f"; weight shared by {', '.join(names)}" if len(names) > 1 else ""


def _decide(
    name: str, layer: nn.Module, scheme: Scheme, patterns: Patterns, filter_fn: Filter | None
) -> tuple[bool, str, bool]:
    """Return whether a layer is sparse, why, and whether that is open until its first input."""
    if patterns.dense or not scheme.prunes:
        reason = "asked for" if patterns.dense else f"scheme {scheme.name} prunes nothing"
        return False, reason, False
    verdict = None if filter_fn is None else filter_fn(name, layer)
    if verdict is not None:
        if not isinstance(verdict, bool):
            raise TypeError(
                f"filter_fn returned {verdict!r} for layer {name!r}: must be True (sparse), False "
                "(dense) or None (by the rule)"
            )
        return verdict, "filter_fn", False
    if isinstance(layer, (nn.LazyLinear, nn.LazyConv2d)):
        m = channel_group(scheme, patterns).m
        return True, f"if the first input's channels are multiples of {m}", True
    return *channel_rule(layer, scheme, patterns), False


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
        twin = parametrize.type_before_parametrizations(layer)
        if twin not in _ORIGINALS:
            continue
        _become(layer, _ORIGINALS[twin])
        COPIES.pop(layer, None)
        _leave_family(layer)
        delattr(layer, PLAN)
        for number, hook in list(layer._forward_pre_hooks.items()):
            if hook is unfused:
                del layer._forward_pre_hooks[number]
    return module
