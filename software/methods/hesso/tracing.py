"""Which parameters make which channel: a trace of the model that follows channels by number.

Every channel that a layer makes gets a number, an atom; each value of the trace has a tensor of the
atoms of its elements, or -1. Reshapes act on that tensor as they do on the value, additions make
atoms one, and what a zero channel would not leave zero blocks them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional

from sat.methods.hesso.attention import SelfAttention
from sat.methods.hesso.groups import Entry, GroupSpec

_KEEP_ZERO = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Hardswish, nn.Hardtanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu,
    functional.silu, functional.mish, functional.tanh, functional.hardswish, functional.dropout,
    torch.relu, torch.tanh, torch.neg, operator.neg, "relu", "relu_", "tanh", "neg", "clone",
)  # fmt: skip
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d,
    functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
)  # fmt: skip
_SHAPES = (
    nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.transpose, torch.permute,
    torch.squeeze, torch.unsqueeze, torch.chunk, torch.split, torch.cat, torch.concat, torch.stack,
    torch.unbind, torch.movedim, operator.getitem,
    "flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split",
    "contiguous", "unflatten", "unbind", "movedim",
)  # fmt: skip
_JOINS = (
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    torch.add, torch.sub, torch.mul, "add", "add_", "sub", "mul", "mul_",
)  # fmt: skip
_MEANS = (torch.mean, torch.sum, torch.amax, "mean", "sum", "amax")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Groups(list[GroupSpec]):
    """Groups of a model, and what of it was left out.

    Attributes
    ----------
    skipped : dict of str to str
        Why, by layer or operation.
    example : tuple
        Arguments that the model was traced with.
    """

    def __init__(
        self, groups: Sequence[GroupSpec], skipped: dict[str, str], example: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(groups)
        self.skipped, self.example = skipped, example

    def __str__(self) -> str:
        layers: dict[str, int] = {}
        for group in self:
            layers[group.layer] = layers.get(group.layer, 0) + 1
        lines = [f"{layer}: {count} groups" for layer, count in layers.items()]
        lines += [f"{what}: not pruned, {why}" for what, why in self.skipped.items()]
        return "\n".join(lines)


def prunable_groups(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Groups:
    """Return the groups of a model whose zeros make its channels zero.

    Traced by ``torch.fx``: Linear, Conv1d and Conv2d (also depthwise), BatchNorm, activations that
    keep 0, pooling, reshapes, additions, products, concatenation, `SelfAttention`. Anything else
    keeps the channels that enter it, and is reported. Not pruned are inputs, outputs, and channels
    that a LayerNorm normalises: its statistics are over what would be cut.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    example : torch.Tensor, or tuple of arguments
        One batch of inputs, of any size.

    Returns
    -------
    Groups
        A list of `GroupSpec`, with ``skipped`` and a text.

    Raises
    ------
    ValueError
        If the model cannot be traced or does not take the example, with the module's name; or if it
        has no prunable group.
    """
    arguments = example if isinstance(example, tuple) else (example,)
    graph = _trace(model)
    training = {name: module.training for name, module in model.named_modules()}
    follower = _Follower(graph)
    try:
        model.eval()
        with torch.no_grad():
            follower.run(*arguments)
    except Exception as error:
        raise ValueError(
            f"example does not pass through {follower.place}: {error}; give one batch of the "
            "model's inputs"
        ) from error
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    groups = follower.groups()
    groups.example = arguments
    if not groups:
        reasons = "; ".join(f"{what}: {why}" for what, why in groups.skipped.items())
        raise ValueError(
            f"model {type(model).__name__} has no prunable groups ({reasons or 'no layer'}): it "
            "needs a layer whose outputs another layer takes"
        )
    return groups


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.entered: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SelfAttention) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Stays where it is if the module's own code fails: that one is to be named.
        self.entered.append(self.path_of_module(m))
        out = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return out


def _trace(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        name = tracer.entered[-1] if tracer.entered else type(model).__name__
        raise ValueError(
            f"module {name!r} cannot be traced by torch.fx ({error}): its forward must not depend "
            "on values; move what does out of it"
        ) from error
    return fx.GraphModule(model, graph)


class _Atoms:
    """Numbers of channels, which may turn out to be one, with what belongs to each."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.owner: list[str] = []
        # By the tensor's id, for tensors do not compare, axis and place.
        self.entries: list[dict[tuple[int, int, int], Tensor]] = []
        self.dependents: list[dict[tuple[int, int, int], Tensor]] = []
        self.blocked: dict[int, str] = {}

    def new(self, owner: str, count: int) -> Tensor:
        first = len(self.parent)
        self.parent += range(first, first + count)
        self.owner += [owner] * count
        self.entries += [{} for _ in range(count)]
        self.dependents += [{} for _ in range(count)]
        return torch.arange(first, first + count)

    def find(self, atom: int) -> int:
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def join(self, a: Tensor, b: Tensor, why: str) -> None:
        """Make pairs one; what is joined with no atom is blocked."""
        pairs = torch.stack([a.flatten(), b.flatten()], 1).unique(dim=0)
        for left, right in pairs.tolist():
            if min(left, right) < 0:
                self.block(torch.tensor([max(left, right)]), why)
            else:
                left, right = sorted((self.find(left), self.find(right)))
                self.parent[right] = left

    def block(self, atoms: Tensor, why: str) -> None:
        for atom in atoms.unique().tolist():
            if atom >= 0:
                self.blocked.setdefault(atom, why)


class _Follower(fx.Interpreter):
    """Runs the graph, and follows the atoms of every value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.atoms = _Atoms()
        self.of: dict[fx.Node, Any] = {}
        self.place = "the model"
        self.skipped: dict[str, str] = {}
        self._made: dict[nn.Module, Tensor] = {}
        self._taken: dict[nn.Module, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.place = f"{n.target!r}" if n.op != "output" else "the output"
        value = super().run_node(n)
        if n.op == "output":
            for tensor in _tensors(map_arg(n.args, lambda node: self.of.get(node))):
                self.atoms.block(tensor, "makes outputs of the model")
        else:
            self.of[n] = self._follow(n, value)
        return value

    def _follow(self, n: fx.Node, value: Any) -> Any:
        """Return the atoms of a node's value: a tensor of its shape, a tuple of such, or None."""
        if not _tensors(value):
            return None
        if n.op in ("placeholder", "get_attr"):
            return _nothing(value)
        kind: Any = n.target
        module: nn.Module | None = None
        if n.op == "call_module":
            module = self.fetch_attr(n.target)  # type: ignore[arg-type]
            kind = type(module)
        name = str(n.target) if module is not None else n.name
        first: Any = self.of.get(n.args[0]) if n.args and isinstance(n.args[0], fx.Node) else None
        if isinstance(module, nn.Linear):
            return self._weighted(name, module, first, -1, value)
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1:
            return self._weighted(name, module, first, 1, value)
        if isinstance(module, nn.Conv1d | nn.Conv2d) and _is_depthwise(module):
            return self._depthwise(name, module, first, value)
        if isinstance(module, SelfAttention):
            return self._attention(name, module, first, value)
        if kind in _NORMS:
            return self._batch_norm(name, module, first)  # type: ignore[arg-type]
        if kind in _KEEP_ZERO:
            if isinstance(module, nn.PReLU) and module.weight.numel() > 1:
                self._follow_channels(module.weight, self._channels(first, 1, name), False)
            return first
        if kind in _POOLS:
            channels = self._channels(first, 1, name)
            return channels.view(1, -1, *[1] * (value.ndim - 2)).expand_as(value)
        if kind in _SHAPES:
            return self._reshaped(n, value)
        if kind in _JOINS:
            return self._joined(n, value, name)
        if kind in _MEANS:
            return self._reduced(n, name)
        return self._unknown(n, value, name)

    # -------------------------------------------------------------------------------- layers

    def _channels(self, atoms: Tensor, axis: int, name: str) -> Tensor:
        """Return the atom of each place along an axis; where they differ, they are blocked."""
        flat = atoms.movedim(axis, -1).reshape(-1, atoms.shape[axis])
        same = (flat == flat[0]).all(0)
        if not bool(same.all()):
            self.atoms.block(flat[:, ~same], f"{name} mixes it with other channels")
        return torch.where(same, flat[0], -1)

    def _follow_channels(
        self, tensor: Tensor | None, channels: Tensor, part: bool, axis: int = 0
    ) -> None:
        """Attach places of a tensor to the atoms of channels: as part of their groups, or not."""
        if tensor is None:
            return
        lists = self.atoms.entries if part else self.atoms.dependents
        for place, atom in enumerate(channels.tolist()):
            if atom >= 0:
                lists[atom][id(tensor), axis, place] = tensor

    def _takes(self, module: nn.Module, weight: Tensor, channels: Tensor, name: str) -> None:
        """Note that columns of a weight take channels; in all calls of the module the same."""
        if module in self._taken:
            self.atoms.join(self._taken[module], channels, f"{name} takes other inputs, too")
        self._taken.setdefault(module, channels)
        self._follow_channels(weight, channels, False, axis=1)

    def _makes(self, name: str, module: nn.Module, count: int, *tensors: Tensor | None) -> Tensor:
        """Return new atoms for the rows of tensors; the same ones for a module called again."""
        if module not in self._made:
            self._made[module] = self.atoms.new(name, count)
            for tensor in tensors:
                self._follow_channels(tensor, self._made[module], True)
        return self._made[module]

    def _weighted(self, name: str, module: Any, first: Tensor, axis: int, value: Tensor) -> Tensor:
        self._takes(module, module.weight, self._channels(first, axis, name), name)
        made = self._makes(name, module, len(module.weight), module.weight, module.bias)
        return _spread(made, axis, value)

    def _depthwise(self, name: str, module: Any, first: Tensor, value: Tensor) -> Tensor:
        channels = self._channels(first, 1, name)
        for tensor in (module.weight, module.bias):
            self._follow_channels(tensor, channels, True)
        if module in self._taken:
            self.atoms.join(self._taken[module], channels, f"{name} takes other inputs, too")
        self._taken.setdefault(module, channels)
        return _spread(channels, 1, value)

    def _batch_norm(self, name: str, module: nn.BatchNorm2d, first: Tensor) -> Tensor:
        channels = self._channels(first, 1, name)
        if module.weight is None:
            self.atoms.block(channels, f"{name} has no gamma and beta to make it zero")
        for parameter in (module.weight, module.bias):
            self._follow_channels(parameter, channels, True)
        for buffer in (module.running_mean, module.running_var):
            self._follow_channels(buffer, channels, False)
        if module in self._taken:
            self.atoms.join(self._taken[module], channels, f"{name} takes other inputs, too")
        self._taken.setdefault(module, channels)
        return first

    def _attention(self, name: str, module: SelfAttention, first: Tensor, value: Tensor) -> Tensor:
        channels = self._channels(first, -1, name)
        inner = (module.query, module.key, module.value)
        for layer in inner:
            self._takes(layer, layer.weight, channels, name)
        width = len(module.query.weight)
        places = torch.arange(width).view(module.heads, -1)
        count = module.heads if module.by == "head" else places.shape[1]
        if module not in self._made:
            self._made[module] = self.atoms.new(name, count)
        made = self._made[module]
        rows = (made[:, None] if module.by == "head" else made).expand_as(places).flatten()
        for layer in inner:
            for tensor in (layer.weight, layer.bias):
                self._follow_channels(tensor, rows, True)
        self._follow_channels(module.out.weight, rows, False, axis=1)
        out = self._makes(
            f"{name}.out", module.out, len(module.out.weight), module.out.weight, module.out.bias
        )
        return _spread(out, -1, value)

    # ---------------------------------------------------------------------------- operations

    def _apply(self, n: fx.Node) -> Any:
        """Do a node's operation on atoms instead of values."""
        args, kwargs = map_arg((n.args, n.kwargs), self._atoms_or_value)
        if n.op == "call_module":
            return self.fetch_attr(n.target)(*args, **kwargs)  # type: ignore[arg-type, operator]
        if n.op == "call_method":
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        return n.target(*args, **kwargs)  # type: ignore[operator]

    def _atoms_or_value(self, node: fx.Node) -> Any:
        followed = self.of.get(node)
        return self.env[node] if followed is None else followed

    def _reshaped(self, n: fx.Node, value: Any) -> Any:
        followed = self._apply(n)
        shapes = [[x.shape for x in _tensors(each)] for each in (followed, value)]
        assert shapes[0] == shapes[1]
        return followed

    def _joined(self, n: fx.Node, value: Tensor, name: str) -> Tensor:
        numbers = [x for x in n.args if not isinstance(x, fx.Node)]
        parts = [self.of[x] for x in n.args if isinstance(x, fx.Node) and self.of[x] is not None]
        product = n.target in (operator.mul, operator.imul, torch.mul, "mul", "mul_")
        if len(parts) == 1:
            if not product and (numbers or len(n.args) > 1):
                self.atoms.block(parts[0], f"{name} adds a number to it")
            spread: Tensor = parts[0].expand_as(value)
            return spread
        left, right = (x.expand_as(value) for x in parts)
        self.atoms.join(left, right, f"{name} adds what is not pruned to it")
        return torch.maximum(left, right)

    def _reduced(self, n: fx.Node, name: str) -> Tensor:
        (source, *args), kwargs = n.args, dict(n.kwargs)
        atoms = self.of[source]  # type: ignore[index]
        axes = args[0] if args else kwargs.get("dim", tuple(range(atoms.ndim)))
        keep = args[1] if len(args) > 1 else kwargs.get("keepdim", False)
        high, low = atoms.amax(axes, keepdim=keep), atoms.amin(axes, keepdim=keep)
        if bool((high != low).any()):
            self.atoms.block(atoms, f"{name} takes it together with other channels")
            return torch.full_like(high, -1)
        return high

    def _unknown(self, n: fx.Node, value: Any, name: str) -> Any:
        followed = [self.of.get(node) for node in n.all_input_nodes]
        module = f" ({type(self.fetch_attr(n.target)).__name__})" if n.op == "call_module" else ""  # type: ignore[arg-type]
        why = f"{name}{module} takes it"
        if any(bool((x >= 0).any()) for each in followed for x in _tensors(each)):
            reason = "normalises over channels" if "LayerNorm" in module else "not known"
            self.skipped[f"{name}{module}"] = f"{reason}: channels that enter it are kept"
        for each in followed:
            for tensor in _tensors(each):
                self.atoms.block(tensor, why)
        return _nothing(value)

    # -------------------------------------------------------------------------------- groups

    def groups(self) -> Groups:
        """Return the groups of what was followed."""
        atoms = self.atoms
        members: dict[int, list[int]] = {}
        for atom in range(len(atoms.parent)):
            members.setdefault(atoms.find(atom), []).append(atom)
        reasons = {atoms.find(atom): why for atom, why in atoms.blocked.items()}
        groups, counts = [], dict.fromkeys(atoms.owner, 0)
        for root, chosen in members.items():
            owner = atoms.owner[root]
            number = counts[owner]
            counts[owner] += 1
            entries = list(_slices([atoms.entries[atom] for atom in chosen]))
            cut = list(_slices([atoms.dependents[atom] for atom in chosen]))
            fixed = [e.tensor for e in entries if not e.tensor.requires_grad]
            if root in reasons:
                self.skipped.setdefault(owner, reasons[root])
            elif fixed:
                self.skipped.setdefault(owner, "its parameters are frozen")
            else:
                size = sum(entry.view().numel() for entry in entries)
                groups.append(GroupSpec(f"{owner}[{number}]", entries, size, cut))
        return Groups(groups, self.skipped)


def _slices(found: list[dict[tuple[int, int, int], Tensor]]) -> Iterator[Entry]:
    """Yield entries for places of tensors; evenly spaced ones together."""
    places: dict[tuple[int, int], set[int]] = {}
    tensors: dict[int, Tensor] = {}
    for atom in found:
        for (number, axis, place), tensor in atom.items():
            tensors[number] = tensor
            places.setdefault((number, axis), set()).add(place)
    for (number, axis), chosen in places.items():
        ordered = sorted(chosen)
        steps = {b - a for a, b in zip(ordered, ordered[1:], strict=False)}
        if len(steps) <= 1:
            step = steps.pop() if steps else 1
            yield Entry(tensors[number], axis, ordered[0], ordered[-1] + 1, step)
        else:
            for place in ordered:
                yield Entry(tensors[number], axis, place, place + 1)


def _is_depthwise(module: nn.Conv1d | nn.Conv2d) -> bool:
    return module.groups == module.in_channels == module.out_channels


def _spread(channels: Tensor, axis: int, value: Tensor) -> Tensor:
    shape = [1] * value.ndim
    shape[axis] = -1
    return channels.view(shape).expand_as(value)


def _nothing(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.full(value.shape, -1)
    if isinstance(value, tuple | list):
        return tuple(_nothing(each) for each in value)
    return None


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in _tensors(each)]
    return []
