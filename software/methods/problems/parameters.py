"""What optimisers of matrices have in common: which parameters, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_BLOCKS = (nn.ModuleList, nn.Sequential)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices inside a model's blocks, and all its other parameters.

    Blocks are what lies in an ``nn.ModuleList`` or ``nn.Sequential``; a model that has none, or is
    one itself, counts as a block but for its last matrix, the head. Matrices are parameters of two
    axes that no ``nn.Embedding`` owns. One that is shared with something outside is no matrix.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    tuple of list of nn.Parameter
        Matrices and the rest, in the model's order; each parameter is in one of them.

    Raises
    ------
    ValueError
        If there is no matrix inside a block.
    """
    owned = [
        (f"{place}.{name}".lstrip("."), parameter, isinstance(module, nn.Embedding))
        for place, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False)
    ]
    inside = [f"{n}." for n, m in model.named_modules() if n and isinstance(m, _BLOCKS)]
    matrices = [name for name, parameter, table in owned if parameter.ndim == 2 and not table]
    if inside:
        matrices = [name for name in matrices if name.startswith(tuple(inside))]
    else:
        matrices = matrices[:-1]
    places = set(matrices)
    outside = {id(parameter) for name, parameter, _ in owned if name not in places}
    chosen = {id(p) for name, p, _ in owned if name in places} - outside
    if not chosen:
        raise ValueError(
            f"model {type(model).__name__} has no matrix inside a block (nn.ModuleList or "
            "nn.Sequential): there is nothing to split; give all parameters to one optimiser"
        )
    parameters = list(model.parameters())
    return (
        [p for p in parameters if id(p) in chosen],
        [p for p in parameters if id(p) not in chosen],
    )


def name_parameter(group: dict[str, Any], number: int, place: int) -> str:
    """Return words for a parameter: its group and place there, and its name if it came with one."""
    name = f" ({group['param_names'][place]!r})" if "param_names" in group else ""
    return f"parameter {place} of group {number}{name}"


def require_options(group: dict[str, Any]) -> None:
    """Raise unless learning rate and decay of a group are finite and not negative."""
    for option in ("lr", "weight_decay"):
        if not 0 <= group[option] < math.inf:
            raise ValueError(
                f"{option}={group[option]}: must be finite and not negative; 0 switches it off"
            )


def require_momentum(option: str, momentum: float) -> None:
    """Raise unless the share of the past is within [0, 1)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"{option}={momentum}: must be at least 0 and below 1; 0 switches it off")


def require_gradients(groups: Iterable[dict[str, Any]]) -> None:
    """Raise unless all gradients are dense, real and finite; nothing has changed then.

    Raises
    ------
    TypeError
        If a gradient is sparse or complex.
    ValueError
        If one is not finite.
    """
    for name, gradient in _gradients(groups):
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"{name}: its gradient has layout {gradient.layout}: must be dense; make its "
                "embedding with sparse=False, or give it to torch.optim.SparseAdam"
            )
        if not gradient.is_floating_point():
            raise TypeError(
                f"{name}: its gradient has dtype {gradient.dtype}: must be real floating point; "
                "give torch.view_as_real of it"
            )
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(
                f"{name}: its gradient has infinities or NaNs: must be finite; nothing was "
                "changed: skip this step, or lower the loss scale"
            )


def _gradients(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for number, group in enumerate(groups):
        for place, parameter in enumerate(group["params"]):
            if parameter.grad is not None:
                yield name_parameter(group, number, place), parameter.grad
