"""Groups of parameters that make one output channel, and how they are summed, scaled and zeroed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """A slice of a tensor: ``tensor[start:stop:step]`` along one axis.

    Parameters
    ----------
    tensor : torch.Tensor
        A parameter, or a buffer that is cut with it.
    axis, start, stop, step : int
    """

    tensor: Tensor = field(repr=False)
    axis: int
    start: int
    stop: int
    step: int = 1

    @property
    def places(self) -> range:
        """Indices along the axis."""
        return range(self.start, self.stop, self.step)

    def view(self) -> Tensor:
        """Return the slice, sharing memory."""
        index = [slice(None)] * self.axis + [slice(self.start, self.stop, self.step)]
        return self.tensor.detach()[tuple(index)]


@dataclass(frozen=True, eq=False)
class GroupSpec:
    """All parameters that make one output channel: all zero, and the channel is zero.

    Parameters
    ----------
    name : str
        The layer that makes the channel and its number there, such as ``"conv1[3]"``.
    entries : list of Entry
        Slices of parameters: rows of weights, biases, gamma and beta of normalisation.
    size : int
        Numbers in them.
    dependents : list of Entry
        What may be cut with the group: columns of consumers, running statistics.
    """

    name: str
    entries: Sequence[Entry]
    size: int
    dependents: Sequence[Entry] = field(default=())

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self.name.rpartition("[")[0]


class GroupTable:
    """The groups of a model as one number for each slice of each parameter.

    Parameters
    ----------
    groups : sequence of GroupSpec

    Attributes
    ----------
    layers : list of str
        Names, in the order of their first groups.
    layer_of : torch.Tensor
        (groups,) int64: places in ``layers``.
    sizes : torch.Tensor
        (groups,) int64: numbers in each group.

    Raises
    ------
    ValueError
        If there is no group, or two of them claim the same slice, or slices along two axes.
    """

    def __init__(self, groups: Sequence[GroupSpec]) -> None:
        if not groups:
            raise ValueError("groups is empty: there is nothing to prune; see prunable_groups")
        self.groups = list(groups)
        self.layers = list(dict.fromkeys(group.layer for group in groups))
        places = {layer: place for place, layer in enumerate(self.layers)}
        self.layer_of = torch.tensor([places[group.layer] for group in groups])
        self.sizes = torch.tensor([group.size for group in groups])
        self._parts: dict[Tensor, tuple[int, Tensor]] = {}
        for number, group in enumerate(groups):
            for entry in group.entries:
                self._claim(number, group, entry)

    def _claim(self, number: int, group: GroupSpec, entry: Entry) -> None:
        tensor, length = entry.tensor, entry.tensor.shape[entry.axis]
        axis, ids = self._parts.setdefault(
            tensor, (entry.axis, torch.full((length,), -1, dtype=torch.long))
        )
        places = torch.tensor(list(entry.places))
        if axis != entry.axis or bool((ids[places] != -1).any()):
            raise ValueError(
                f"group {group.name}: its slice {entry.start}:{entry.stop} along axis "
                f"{entry.axis} of a {tuple(tensor.shape)} parameter belongs to another group, of "
                "another number of channels: each slice must be in one group; leave one out"
            )
        ids[places] = number

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def parameters(self) -> Iterable[Tensor]:
        """All parameters with slices in groups."""
        return self._parts.keys()

    def sums(self, values: Mapping[Tensor, Tensor]) -> Tensor:
        """Return the sum over each group, (groups,) float64.

        Parameters
        ----------
        values : mapping of torch.Tensor to torch.Tensor
            By parameter, a tensor of its shape.
        """
        out = torch.zeros(len(self), dtype=torch.float64)
        for tensor, (axis, ids) in self._parts.items():
            others = [i for i in range(tensor.ndim) if i != axis]
            value = values[tensor].double()
            rows = value.sum(others) if others else value
            inside = ids >= 0
            out.index_add_(0, ids[inside], rows[inside])
        return out

    @torch.no_grad()
    def scale(self, chosen: Tensor, factor: float) -> None:
        """Multiply the parameters of chosen groups, (groups,) bool; 0 leaves exact zeros."""
        if not bool(chosen.any()):
            return
        for tensor, (axis, ids) in self._parts.items():
            places = ((ids >= 0) & chosen[ids.clamp(min=0)]).nonzero()[:, 0]
            if not len(places):
                continue
            if factor == 0:
                tensor.index_fill_(axis, places, 0.0)
            else:
                tensor.index_copy_(axis, places, tensor.index_select(axis, places) * factor)

    def norms(self) -> Tensor:
        """Return the Euclidean norm of each group, (groups,) float64."""
        return self.sums({p: p.detach().double().square() for p in self.parameters}).sqrt()
