"""A network made an operator: layer by layer, its parameters shared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sat.methods.nn_to_no.convolutions import (
    MODES,
    InterpolatedConv,
    PatchIntegral,
    ResampledLayer,
    paddings,
)
from sat.methods.nn_to_no.resample import WAYS
from sat.methods.problems.arguments import require_counts

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_GRID_CHANGING = (
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.LPPool1d, nn.LPPool2d,
)  # fmt: skip
# Maps of values alone, and means over the domain, which uniform points leave as they are. A batch
# norm's own statistics are such means in training and numbers a channel in evaluation.
_KEPT = (
    nn.Identity, nn.GELU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardtanh, nn.ReLU6, nn.Mish, nn.Dropout1d, nn.Dropout2d, nn.BatchNorm1d, nn.BatchNorm2d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.GroupNorm, nn.Upsample, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
)  # fmt: skip
_REASONS: dict[type[nn.Module], str] = {
    nn.Flatten: "what follows it has weights for grid points; use FunctionPool or a mean first",
    nn.Linear: "a dense layer may have weights for grid points; use a convolution of kernel 1 for "
    "channels, KernelIntegral for points",
    nn.Embedding: "a table by index knows grid points; give coordinates as channels",
    nn.Dropout: "it draws for each grid point; use nn.Dropout2d, which draws for channels",
    nn.LayerNorm: "it has parameters or means by position on the grid; use nn.GroupNorm",
    nn.MultiheadAttention: "its sums have no quadrature weights; use QuadratureAttention",
}


def to_operator(
    module: nn.Module,
    base_res: int,
    mode: str = "hat",
    *,
    how: str = "fourier",
    example: Tensor | None = None,
) -> nn.Module:
    """Return an operator: the network's functions, on grids s times finer than it was trained on.

    Convolutions become `InterpolatedConv` (those that make patches `PatchIntegral`), strided and
    transposed ones and pooling `ResampledLayer`; pointwise layers (kernel 1), norms over the domain
    and whatever only holds other layers stay. At ``base_res`` it computes what the network does.

    Parameters
    ----------
    module : nn.Module
        (batch, channels, *grid) to the same. Left as it is; parameters and buffers are shared.
    base_res : int
        Points of each axis that it was trained on.
    mode : {"hat", "authors"}
        As `InterpolatedConv`.
    how : {"fourier", "linear"}
        How layers that change the grid are resampled around: "fourier" for periodic functions.
    example : torch.Tensor, optional
        An input at ``base_res``. Needed if a layer changes the grid, as those after it then see
        another one; the network is run on it once.

    Returns
    -------
    nn.Module

    Raises
    ------
    TypeError
        If a layer has no counterpart on functions; named.
    ValueError
        If an argument breaks its rule, or ``example`` is needed.

    Source
    ------
    Section 4.
    """
    require_counts(base_res=base_res)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be 'hat' or 'authors'; choose one")
    if how not in WAYS:
        raise ValueError(f"how={how!r}: must be 'fourier' or 'linear'; choose one")
    for name, layer in module.named_modules():
        _require_layer(name, layer)
    grids = _grids(module, base_res, example)
    # The copy shares parameters and buffers, so that training one trains both.
    memo = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, memo)
    if isinstance(twin, (*_CONVOLUTIONS, *_GRID_CHANGING)):
        return _convert(twin, grids[""], mode, how)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, (*_CONVOLUTIONS, *_GRID_CHANGING)):
            parent, _, last = name.rpartition(".")
            setattr(twin.get_submodule(parent), last, _convert(layer, grids[name], mode, how))
    return twin


def _convert(layer: nn.Module, grid: int, mode: str, how: str) -> nn.Module:
    if isinstance(layer, _CONVOLUTIONS):
        if set(layer.kernel_size) | set(layer.stride) == {1}:
            return layer  # a map of values, point by point
        if set(layer.stride) == {1} and set(layer.dilation) == {1}:
            return InterpolatedConv(layer, grid, mode)
        if layer.stride == layer.kernel_size and not any(paddings(layer)):
            return PatchIntegral(layer, grid)
    return ResampledLayer(layer, grid, how)


def _changes_grid(layer: nn.Module) -> bool:
    if isinstance(layer, _CONVOLUTIONS):
        return set(layer.stride) != {1}
    return isinstance(layer, (*_GRID_CHANGING, nn.Upsample))


def _grids(module: nn.Module, base_res: int, example: Tensor | None) -> dict[str, int]:
    """Return the points an axis that each layer sees at the base resolution."""
    names = dict(module.named_modules())
    grids = dict.fromkeys(names, base_res)
    changing = [name for name, layer in names.items() if _changes_grid(layer)]
    if not changing or changing == [""]:
        return grids
    if example is None:
        raise ValueError(
            f"example is None: must be an input at base_res={base_res}, as layer {changing[0]!r} "
            "changes the grid for those after it"
        )
    if set(example.shape[2:]) != {base_res}:
        raise ValueError(
            f"example has shape {tuple(example.shape)}: must have base_res={base_res} points an "
            "axis"
        )

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            grids[name] = inputs[0].shape[-1]

        return layer.register_forward_pre_hook(note)

    training = module.training
    hooks = [watch(name, layer) for name, layer in names.items() if isinstance(layer, _LAYERS)]
    try:
        module.eval()
        with torch.no_grad():
            module(example)
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return grids


_LAYERS = (*_CONVOLUTIONS, *_GRID_CHANGING)


def _require_layer(name: str, layer: nn.Module) -> None:
    where = f"layer {name!r}" if name else "module"
    if isinstance(layer, (*_CONVOLUTIONS, *_GRID_CHANGING, *_KEPT)):
        return
    for kind, reason in _REASONS.items():
        if isinstance(layer, kind):
            raise TypeError(f"{where} is a {type(layer).__name__}: {reason}")
    own = [own_name for own_name, _ in layer.named_parameters(recurse=False)]
    if own:
        raise TypeError(
            f"{where} is a {type(layer).__name__} with parameters of its own ({own[0]!r}): whether "
            "they know grid points cannot be told (a position table does); write it of known layers"
        )
    if not list(layer.children()):
        raise TypeError(
            f"{where} is a {type(layer).__name__}: it has no known counterpart on functions; "
            "write it of known layers"
        )
