"""Which layers of a model become binary, by how many bases, and in what order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from sat.methods.binarydm.layers import BinaryConv1d, BinaryConv2d, BinaryLayer, BinaryLinear
from sat.methods.problems.arguments import require_counts

KINDS: dict[type[nn.Module], type[BinaryLayer]] = {
    nn.Linear: BinaryLinear,
    nn.Conv1d: BinaryConv1d,
    nn.Conv2d: BinaryConv2d,
}


def binarize_model(
    model: nn.Module,
    plan: Mapping[str, int],
    act_bits: int | None = 4,
    act_scale: str = "dynamic",
    pattern: str | None = None,
) -> nn.Module:
    """Put binary layers in the place of those that a plan names; return the model.

    Parameters
    ----------
    model : nn.Module
        Changed; its other layers stay as they are.
    plan : mapping of str to int
        Bases, 1 or 2, by the layer's name.
    act_bits, act_scale, pattern
        As of `BinaryLayer.from_float`.

    Raises
    ------
    KeyError
        If a name is no layer's, or the layer's kind is no linear one or convolution. Nothing has
        changed then.
    ValueError
        If another argument breaks its rule. Nothing has changed then, either.
    """
    modules = dict(model.named_modules())
    made: dict[str, BinaryLayer] = {}
    for name, bases in plan.items():
        kind = KINDS.get(type(modules[name])) if name in modules else None
        if kind is None:
            found = type(modules[name]).__name__ if name in modules else "nothing"
            raise KeyError(
                f"{name!r} is {found}: must name an nn.Linear, nn.Conv1d or nn.Conv2d of the model"
            )
        made[name] = kind.from_float(modules[name], bases, act_bits, act_scale, pattern)
    for name, layer in made.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return model


def default_plan(model: nn.Module, outer: int = 1) -> dict[str, int]:
    """Return bases by layer: two in the outer blocks, where much is lost, one between them.

    Blocks are the children of the model's longest nn.ModuleList, from input to output, as the
    levels of a U-Net are. All outside them stays in full precision: embeddings of the time, the
    first and the last layer.

    Parameters
    ----------
    model : nn.Module
    outer : int
        Blocks with two bases, at each end.

    Raises
    ------
    ValueError
        If there are no blocks, or ``outer`` is no positive int.

    Source
    ------
    The authors' ``openaimodel_ours.py``: two bases in the outer two levels of both sides.
    """
    require_counts(outer=outer)
    chain = blocks_of(model)
    ends = len(chain) - outer
    return {
        name: 2 if place < outer or place >= ends else 1
        for place, names in enumerate(chain)
        for name in names
    }


def blocks_of(model: nn.Module) -> list[list[str]]:
    """Return names of the linear layers and convolutions of each block of `default_plan`.

    Raises
    ------
    ValueError
        If there is no nn.ModuleList.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no nn.ModuleList of blocks; give a plan of your own"
        )
    path, chain = max(lists, key=lambda found: len(found[1]))
    kinds: tuple[type, ...] = (*KINDS, BinaryLayer)
    return [
        [
            ".".join(filter(None, (path, str(i), name)))
            for name, module in block.named_modules()
            if isinstance(module, kinds)
        ]
        for i, block in enumerate(chain)
    ]


def middle_outward(model: nn.Module) -> list[list[BinaryLayer]]:
    """Return groups of a model's binary layers: the middle block, then those around it, in pairs.

    Raises
    ------
    ValueError
        If there are no blocks, or none of their layers is binary.
    """
    chain = blocks_of(model)
    groups: list[list[BinaryLayer]] = []
    for distance in range(len(chain) % 2 == 0, len(chain), 2):
        ends = {(len(chain) - 1 - distance) // 2, (len(chain) - 1 + distance) // 2}
        layers = [model.get_submodule(name) for end in sorted(ends) for name in chain[end]]
        groups.append([layer for layer in layers if isinstance(layer, BinaryLayer)])
    groups = [group for group in groups if group]
    if not groups:
        raise ValueError(f"{type(model).__name__} has no binary layers; call binarize_model first")
    return groups


class ProgressiveSchedule:
    """Groups of layers that become binary one after the other.

    Parameters
    ----------
    groups : sequence of sequence of BinaryLayer
        In their order; all become full precision here.
    interval : int
        Steps from one to the next, the first at step 0.

    Raises
    ------
    ValueError
        If ``interval`` is no positive int, or there are no groups.

    Source
    ------
    Section 3.3 of the paper; the released code takes an interval of 1.
    """

    def __init__(self, groups: Sequence[Sequence[BinaryLayer]], interval: int) -> None:
        require_counts(interval=interval)
        if not groups:
            raise ValueError("groups=[]: must have at least one; see middle_outward")
        self.groups, self.interval = [list(group) for group in groups], interval
        for group in self.groups:
            for layer in group:
                layer.binary = False

    def step(self, i: int) -> int:
        """Switch what is due at step i, from 0; return how many groups are binary."""
        due = min(i // self.interval + 1, len(self.groups))
        for group in self.groups[:due]:
            for layer in group:
                layer.binary = True
        return due
