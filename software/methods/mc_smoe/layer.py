"""A sparse mixture of experts whose experts can be fewer than its router's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu,
}  # fmt: skip


class Expert(nn.Module):
    """``wo act(wi x)``, without biases.

    Weights start normal, of deviation 1/sqrt(inputs), as those of the Switch Transformers that the
    authors merge do; with `torch.nn.Linear`'s, smaller by sqrt(3), experts come to differ little.

    Parameters
    ----------
    d, f : int
        Channels of inputs and outputs, and of the hidden layer.
    activation : str
        One of `ACTIVATIONS`.
    """

    def __init__(self, d: int, f: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.wi: nn.Module = nn.Linear(d, f, bias=False)
        self.wo: nn.Module = nn.Linear(f, d, bias=False)
        for layer, inputs in ((self.wi, d), (self.wo, f)):
            nn.init.normal_(cast(Tensor, layer.weight), std=inputs**-0.5)

    def hidden(self, x: Tensor) -> Tensor:
        """Return hidden activations (tokens, f) of tokens (tokens, d)."""
        return ACTIVATIONS[self.activation](self.wi(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, d) for the same."""
        y: Tensor = self.wo(self.hidden(x))
        return y


class MoELayer(nn.Module):
    """Experts of which a router chooses one for each token, weighed by its probability.

    Parameters
    ----------
    d, f, experts : int
        Channels of tokens, hidden channels of an expert, experts.
    activation : str
        ``"relu"``, ``"gelu"`` or ``"silu"``: one that acts on each hidden channel alone, so that
        channels may change places.
    aux : float
        Weight of `load_balance`.
    top_k : int
        Experts a token is sent to.
    allow_top_k : bool
        Whether ``top_k`` may be more than 1: usage then counts all k, and merging is the same.

    Attributes
    ----------
    router : nn.Linear
        (experts, d) weight; stays whole when experts are merged.
    experts : nn.ModuleList of Expert
        Those that there are.
    map : torch.Tensor
        (experts,) int64: by the router's expert, its place in ``experts``.

    Raises
    ------
    ValueError
        If a size is below 1, the activation is another, or ``top_k`` is not allowed.

    Source
    ------
    Fedus, Zoph, Shazeer, "Switch Transformers", JMLR 2022, equations 1, 2, 4.
    """

    map: Tensor

    def __init__(
        self, d: int, f: int, experts: int, *, activation: str = "relu", aux: float = 0.01,
        top_k: int = 1, allow_top_k: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, size in (("d", d), ("f", f), ("experts", experts)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}={size!r}: must be an int of at least 1; change it")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation={activation!r}: must act on each hidden channel alone, one of "
                f"{', '.join(ACTIVATIONS)}; where a gate multiplies channels, both of its weights "
                "take one permutation (permute_expert of each), which this layer does not do"
            )
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k={top_k}: must be from 1 to experts={experts}; change it")
        if top_k > 1 and not allow_top_k:
            raise ValueError(
                f"top_k={top_k}: the method's routers choose one expert; allow_top_k=True takes "
                "more, counts all of them as use, and merges alike"
            )
        self.d, self.f, self.aux, self.top_k = d, f, aux, top_k
        self.router = nn.Linear(d, experts, bias=False)
        self.experts = nn.ModuleList(Expert(d, f, activation) for _ in range(experts))
        self.register_buffer("map", torch.arange(experts))
        self._balance: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Its graph could not be copied.
        return super().__getstate__() | {"_balance": None}  # type: ignore[no-any-return, misc]

    @property
    def wi(self) -> Tensor:
        """Input weights by the router's expert, (experts, f, d)."""
        return torch.stack([self.experts[i].wi.weight for i in self.map.tolist()])  # type: ignore[union-attr, arg-type]

    @property
    def wo(self) -> Tensor:
        """Output weights by the router's expert, (experts, d, f)."""
        return torch.stack([self.experts[i].wo.weight for i in self.map.tolist()])  # type: ignore[union-attr, arg-type]

    @property
    def load_balance(self) -> Tensor:
        """``aux · E · sum_e share_e · mean p_e`` of the last forward pass: to be added to the loss.

        Raises
        ------
        ValueError
            If there was no forward pass.
        """
        if self._balance is None:
            raise ValueError("load_balance is known after a forward pass: call the layer first")
        return self._balance

    def choices(self, logits: Tensor) -> Tensor:
        """Return the experts that tokens are sent to, (tokens, top_k), of logits (tokens, E)."""
        return logits.topk(self.top_k, dim=-1).indices

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., d) for the same; tokens are multiplied expert by expert."""
        tokens = x.reshape(-1, self.d)
        probabilities = self.router(tokens).softmax(-1)
        chosen = self.choices(probabilities)
        count = len(self.map)
        share = torch.bincount(chosen.flatten(), minlength=count) / max(1, chosen.numel())
        self._balance = self.aux * count * (share * probabilities.mean(0)).sum()
        weights = probabilities.gather(1, chosen)
        places = self.map[chosen]
        y = torch.zeros_like(tokens)
        for place, expert in enumerate(self.experts):
            mine, which = (places == place).nonzero(as_tuple=True)
            if len(mine):
                y = y.index_add(0, mine, weights[mine, which, None] * expert(tokens[mine]))
        return y.view(x.shape)


def moe_layers(model: nn.Module) -> dict[str, MoELayer]:
    """Return the mixtures of a model by name.

    Raises
    ------
    ValueError
        If there is none.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MoELayer)}
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no MoELayer: there is nothing to merge")
    return layers
