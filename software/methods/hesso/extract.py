"""Cut what is zero out of a model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.hesso.attention import SelfAttention
from sat.methods.hesso.groups import Entry
from sat.methods.hesso.optimizer import GroupOptimizer
from sat.methods.hesso.tracing import Groups
from sat.methods.problems.counting import count_macs

ROUNDING = 1e-3
"""How far, of their largest, outputs may be apart, as products may be of float16 operands."""

_COUNTS: dict[type[nn.Module], tuple[str, str]] = {
    nn.Linear: ("out_features", "in_features"),
    nn.Conv1d: ("out_channels", "in_channels"),
    nn.Conv2d: ("out_channels", "in_channels"),
}


def extract(model: nn.Module, optimizer: GroupOptimizer, *, force: bool = False) -> nn.Module:
    """Return a smaller model that computes what the pruned one does.

    Rows of pruned groups are left out, and the columns of what takes them: through flattening,
    concatenation, additions and normalisation, as they were traced.

    Parameters
    ----------
    model : nn.Module
        That the optimiser trained; it is not changed.
    optimizer : HESSO or HESSOCRIC
    force : bool
        Also before its schedule has ended: what is pruned by then is cut.

    Returns
    -------
    nn.Module
        A copy of ``model`` with smaller layers, compared with it on the example it was traced with.

    Raises
    ------
    ValueError
        If the schedule has not ended, pruned groups are not zero, the model is another, or its
        ``forward`` splits channels by numbers that do not fit the smaller layers.
    """
    if not optimizer.finished and not force:
        raise ValueError(
            f"the schedule has not ended after {optimizer.steps_taken} steps: groups are still "
            "being shrunk; train on, or pass force=True to cut what is zero already"
        )
    places = {id(t): (path, name) for path, m in model.named_modules() for name, t in _tensors(m)}
    cut: dict[tuple[str, str], dict[int, Tensor]] = {}

    def mark(group: str, entry: Entry) -> None:
        if id(entry.tensor) not in places:
            raise ValueError(
                f"group {group} is not of this model {type(model).__name__}: extract the model "
                "that the optimiser was given"
            )
        axes = cut.setdefault(places[id(entry.tensor)], {})
        length = entry.tensor.shape[entry.axis]
        kept = axes.setdefault(entry.axis, torch.ones(length, dtype=torch.bool))
        kept[list(entry.places)] = False

    for number in optimizer.pruned.nonzero()[:, 0].tolist():
        group = optimizer.groups[number]
        for entry in group.entries:
            if bool((entry.view() != 0).any()):
                raise ValueError(
                    f"group {group.name} is pruned, but not zero: something else has changed its "
                    "parameters; take a step of the optimiser first"
                )
        for entry in (*group.entries, *group.dependents):
            mark(group.name, entry)
    small = copy.deepcopy(model)
    for (path, name), axes in cut.items():
        module = small.get_submodule(path)
        tensor = getattr(module, name).detach()
        for axis, kept in axes.items():
            tensor = tensor.index_select(axis, kept.nonzero()[:, 0])
        _put(module, name, tensor.clone())
    for module in small.modules():
        _count_channels(module)
    if isinstance(optimizer.groups, Groups):
        _compare(model, small, optimizer.groups.example)
    return small


def _compare(model: nn.Module, small: nn.Module, example: tuple[Any, ...]) -> None:
    """Raise ValueError unless both networks have the same outputs, but for rounding."""
    training = {module: module.training for each in (model, small) for module in each.modules()}
    try:
        with torch.no_grad():
            whole, cut = model.eval()(*example), small.eval()(*example)
        apart = float((whole - cut).abs().max() / (whole.abs().max() + 1e-30))
        why = f"its outputs are {apart:.2g} off" if not apart <= ROUNDING else ""
    except RuntimeError as error:
        why = str(error)
    finally:
        for module, was in training.items():
            module.training = was
    if why:
        raise ValueError(
            f"the extracted {type(model).__name__} does not compute what the pruned one does "
            f"({why}): its forward splits channels by numbers; use sizes of tensors and flatten"
        )


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(getattr(module, name), nn.Parameter):
        tensor = nn.Parameter(tensor)
    setattr(module, name, tensor)


def _count_channels(module: nn.Module) -> None:
    """Make a module's attributes say what its tensors' shapes do."""
    for kind, names in _COUNTS.items():
        if isinstance(module, kind):
            rows, columns = module.weight.shape[:2]  # type: ignore[index, union-attr]
            groups = getattr(module, "groups", 1)
            if groups > 1:
                columns = module.groups = rows  # type: ignore[assignment]
            for name, count in zip(names, (rows, columns), strict=True):
                setattr(module, name, count)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.weight is not None:
        module.num_features = len(module.weight)
    if isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    if isinstance(module, SelfAttention) and module.by == "head":
        # Heads were cut whole: their channels are those that they were made with.
        module.heads = round(len(module.query.weight) * module.scale**2)


def count(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> tuple[int, int]:
    """Return a model's parameters, and its multiplications in a forward pass of an example.

    Parameters
    ----------
    model : nn.Module
    example : torch.Tensor, or tuple of arguments

    Returns
    -------
    parameters, macs : int
        MACs of products and convolutions, as ``torch.utils.flop_counter`` counts them.
    """
    return sum(p.numel() for p in model.parameters()), count_macs(model, example)
