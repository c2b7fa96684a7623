"""A whole model pruned block by block, each fed with what the pruned ones before it give."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sat.methods.dsnot.masks import initial_mask
from sat.methods.dsnot.search import dsnot as exchange
from sat.methods.dsnot.statistics import ColumnStatistics

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class LayerPruning:
    """What became of one linear layer.

    Attributes
    ----------
    name : str
        In the model.
    shape : tuple of int
        Of its weight.
    kept : int
        Weights that are left.
    swaps : int
        Exchanges over all rows.
    error_before, error_after : float
        Mean over rows of the squared expected error of an output, before and after the exchanges;
        in units of a sample's sum over tokens. Equal without DSnoT.
    """

    name: str
    shape: tuple[int, int]
    kept: int
    swaps: int
    error_before: float
    error_after: float


@dataclass(frozen=True)
class PruningReport:
    """What `prune_model` did; printed as a table.

    Attributes
    ----------
    layers : tuple of LayerPruning
    calibration_seconds, search_seconds : float
        Processor time of forward passes with statistics, and of scores, masks and exchanges.
    """

    layers: tuple[LayerPruning, ...]
    calibration_seconds: float
    search_seconds: float

    def __str__(self) -> str:
        lines = ["layer  weight  kept  swaps  squared mean error before, after"]
        lines += [
            f"{r.name}  {r.shape[0]}x{r.shape[1]}  {r.kept}  {r.swaps}  "
            f"{r.error_before:.4g}  {r.error_after:.4g}"
            for r in self.layers
        ]
        return "\n".join(lines)


def prune_model(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Sequence[nn.Module] | None = None,
    skip: Iterable[str] = (),
    method: str = "wanda",
    ratio: float | None = None,
    n: int | None = None,
    m: int | None = None,
    dsnot: bool = True,
    **options: Any,
) -> PruningReport:
    """Prune the linear layers of a model's blocks, and repair their masks.

    Blocks are taken in their order: a pass with statistics of every layer's inputs, then its
    masks, then a pass of the pruned block, whose outputs feed the next. Nothing is differentiated
    and no weight changes: masks stand on the modules as those of ``torch.nn.utils.prune`` do
    (``weight_mask`` beside ``weight_orig``); `bake` writes the zeros into the weights, after which
    `sat.sparsify_` finds an N:M mask's weights as the largest of each group and runs them from
    their compact copies.

    Parameters
    ----------
    model : nn.Module
        Changed in place; in evaluation mode while this runs.
    batches : iterable
        Inputs: tensors, or tuples and dicts of arguments. A block's first argument must be
        (samples, tokens, channels).
    layers : sequence of nn.Module, optional
        Blocks, each called with what the one before returned (the first of a tuple) and the
        first's other arguments; those of the model's first ``nn.ModuleList``, or of the model
        itself if it is an ``nn.Sequential``, if not given.
    skip : iterable of str
        Layers whose names in the model contain one of these stay dense (the authors skip "mlp").
    method, ratio, n, m
        As `initial_mask`.
    dsnot : bool
        Whether masks are repaired.
    **options
        Of `sat.methods.dsnot.dsnot`: cycles, threshold, power, same_sign.

    Returns
    -------
    PruningReport

    Raises
    ------
    ValueError
        If there are no blocks, no batches or no linear layers, the blocks are no chain, or an
        argument breaks its rule; the model is as before then.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks = _blocks(model) if layers is None else list(layers)
    skipped = tuple(skip)
    chosen: list[dict[str, nn.Linear]] = []
    for block in blocks:
        if block not in names:
            raise ValueError("layers has a module that is not the model's; give its own blocks")
        linear = (x for x in block.modules() if type(x) is nn.Linear)
        found = {names[x]: x for x in linear}
        chosen.append(
            {name: x for name, x in found.items() if not any(word in name for word in skipped)}
        )
        for name, layer in chosen[-1].items():
            if prune.is_pruned(layer):
                raise ValueError(f"layer {name!r} has a mask already: call bake(model) first")
    if not any(chosen):
        raise ValueError("no nn.Linear in the blocks is left to prune; change layers or skip")
    training = model.training
    masked: list[nn.Linear] = []
    try:
        model.eval()
        with torch.no_grad():
            return _prune(
                model, blocks, chosen, batches, masked, dsnot,
                {"method": method, "ratio": ratio, "n": n, "m": m}, options,
            )  # fmt: skip
    except BaseException:
        for layer in masked:
            _unmask(layer)
        raise
    finally:
        model.train(training)


def bake(model: nn.Module) -> nn.Module:
    """Write the zeros of masks into the weights, and take the masks away; return the model."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and prune.is_pruned(module):
            prune.remove(module, "weight")
    return model


def _prune(
    model: nn.Module, blocks: list[nn.Module], chosen: list[dict[str, nn.Linear]],
    batches: Iterable[Any], masked: list[nn.Linear], repair: bool, rule: dict[str, Any],
    options: dict[str, Any],
) -> PruningReport:  # fmt: skip
    hessian = rule["method"] == "sparsegpt"
    began = time.process_time()
    calls = _first_calls(model, blocks, batches)
    calibration, search = time.process_time() - began, 0.0
    rows = []
    for block, layers in zip(blocks, chosen, strict=True):
        began = time.process_time()
        gathered = {
            name: ColumnStatistics(layer.in_features, hessian=hessian)
            for name, layer in layers.items()
        }
        hooks = [layers[name].register_forward_pre_hook(_adder(gathered[name])) for name in layers]
        try:
            for args, kwargs in calls:
                block(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        calibration += time.process_time() - began
        began = time.process_time()
        for name, layer in layers.items():
            rows.append(_prune_layer(name, layer, gathered[name], repair, rule, options))
            masked.append(layer)
        search += time.process_time() - began
        began = time.process_time()
        if block is not blocks[-1]:
            calls = [((_first(block(*a, **k)), *a[1:]), k) for a, k in calls]
        calibration += time.process_time() - began
    return PruningReport(tuple(rows), calibration, search)


def _prune_layer(
    name: str, layer: nn.Linear, stats: ColumnStatistics, repair: bool, rule: dict[str, Any],
    options: dict[str, Any],
) -> LayerPruning:  # fmt: skip
    try:
        mask = initial_mask(layer.weight, stats, **rule)
        swaps = 0
        expected = (layer.weight.double() * stats.total * ~mask).sum(1)
        before = after = float(expected.square().mean())
        if repair:
            pattern = {"n": rule["n"], "m": rule["m"], "initial": rule["method"]}
            result = exchange(layer.weight, stats, mask, **pattern, **options)
            mask, swaps = result.mask, int(result.swaps.sum())
            after = float(result.error_after.square().mean())
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error
    prune.custom_from_mask(layer, "weight", mask)
    shape = (layer.out_features, layer.in_features)
    return LayerPruning(name, shape, int(mask.sum()), swaps, before, after)


def _unmask(layer: nn.Linear) -> None:
    """Take a mask away and leave the weight as it was before it."""
    dense = cast(Tensor, layer.weight_orig).data
    prune.remove(layer, "weight")
    layer.weight.data = dense


def _adder(stats: ColumnStatistics) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: stats.add(inputs[0])


def _blocks(model: nn.Module) -> list[nn.Module]:
    lists = [x for x in model.modules() if isinstance(x, nn.ModuleList)]
    if isinstance(model, nn.Sequential) or not lists:
        if not isinstance(model, nn.Sequential) or not len(model):
            raise ValueError(
                f"model {type(model).__name__} has no nn.ModuleList, and is no nn.Sequential: name "
                "its blocks in layers=[...]"
            )
        return list(model)
    return list(lists[0])


class _Stop(Exception):
    """Ends a forward pass that has given what was wanted of it."""


def _first_calls(model: nn.Module, blocks: list[nn.Module], batches: Iterable[Any]) -> list[Call]:
    """Return what the first block is called with for each batch; check that blocks are a chain."""
    calls: list[Call] = []
    outputs: list[Any] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args or not isinstance(args[0], Tensor):
            raise ValueError("the first block's first argument must be a tensor, by position")
        calls.append((args, kwargs))
        if len(calls) > 1:
            raise _Stop

    def follow(place: int) -> Callable[..., None]:
        def check(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if place and (not args or args[0] is not outputs[-1]):
                raise ValueError(
                    f"block {place} is not called with what block {place - 1} returned: they are "
                    "no chain; name blocks that are in layers=[...]"
                )
            outputs.append(_first(output))

        return check

    hooks = [blocks[0].register_forward_pre_hook(keep, with_kwargs=True)]
    hooks += [block.register_forward_hook(follow(i)) for i, block in enumerate(blocks)]
    try:
        for batch in batches:
            _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise ValueError("batches is empty: give calibration inputs")
    return calls


def _call(model: nn.Module, batch: Any) -> None:
    try:
        if isinstance(batch, dict):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch)
        else:
            model(batch)
    except _Stop:
        pass


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def masks(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and mask of each masked linear layer, (outputs, inputs) bool."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and prune.is_pruned(module):
            yield name, cast(Tensor, module.weight_mask).bool()
