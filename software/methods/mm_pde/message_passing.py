"""Graphs of nearest nodes, and networks on them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts

CONV_HIDDEN = 128
"""The states that the released decoder, three convolutions over them, is made for."""


def uniform_mesh(size: int, dim: int) -> Tensor:
    """Return the nodes (size^dim, dim) of a uniform mesh of [0, 1]^dim, float32, edges included."""
    axis = torch.linspace(0, 1, size)
    return torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), -1).flatten(0, -2)


def nearest(places: Tensor, queries: Tensor, k: int) -> Tensor:
    """Return the k nearest places of each query (batch, queries, k) int64, nearest first.

    Parameters
    ----------
    places, queries : torch.Tensor
        (batch, ·, dim).
    k : int

    Raises
    ------
    ValueError
        If there are fewer than k places.
    """
    require_counts(k=k)
    if places.shape[1] < k:
        raise ValueError(f"{places.shape[1]} nodes: must be at least {k}, as many are asked for")
    found = [
        cKDTree(source).query(target, k)[1].reshape(len(target), k)
        for source, target in zip(
            places.detach().double().numpy(), queries.detach().double().numpy(), strict=True
        )
    ]
    return torch.from_numpy(np.stack(found).astype(np.int64))


def nearest_others(places: Tensor, k: int) -> Tensor:
    """Return the k nearest other places of each (batch, places, k)."""
    return nearest(places, places, k + 1)[..., 1:]


def gather_nodes(values: Tensor, places: Tensor) -> Tensor:
    """Return (batch, …, channels): values (batch, nodes, channels) at nodes (batch, …) int64."""
    batch, nodes, _ = values.shape
    start = nodes * torch.arange(batch).view(-1, *[1] * (places.ndim - 1))
    return functional.embedding(places + start, values.flatten(0, 1))


class MessageLayer(nn.Module):
    """h + update(h, mean of messages, t), then batch norm.

    A message is two layers with ReLU of (h_i, h_j, u_i - u_j, x_i - x_j, t). Of the first, the part
    that knows only one end is a product over nodes, not over edges.

    Parameters
    ----------
    dim, hidden : int

    Source
    ------
    Brandstetter, Worrall, Welling, arXiv 2202.03376, equations 7 and 8; the authors'
    ``gnn_2d.py``.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        require_counts(dim=dim, hidden=hidden)
        self.receive, self.send = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.relate = nn.Linear(dim + 2, hidden, bias=False)
        self.message = nn.Linear(hidden, hidden)
        self.update_state = nn.Linear(2 * hidden, hidden)
        self.update_time = nn.Linear(1, hidden, bias=False)
        self.update_out = nn.Linear(hidden, hidden)
        self.norm = nn.BatchNorm1d(hidden)

    def forward(self, h: Tensor, u: Tensor, x: Tensor, t: Tensor, edges: Tensor) -> Tensor:
        """Return states (batch, nodes, hidden).

        Parameters
        ----------
        h : torch.Tensor
            (batch, nodes, hidden).
        u : torch.Tensor
            (batch, nodes).
        x : torch.Tensor
            (batch, nodes, dim).
        t : torch.Tensor
            (batch,).
        edges : torch.Tensor
            (batch, nodes, k) int64: who sends to each node.
        """
        both = torch.cat([u[..., None], x], -1)
        between = both[:, :, None] - gather_nodes(both, edges)
        time = t.to(h.dtype)[:, None, None]
        between = torch.cat([between, time[..., None].expand(*edges.shape, 1)], -1)
        first = self.receive(h)[:, :, None] + gather_nodes(self.send(h), edges)
        messages = torch.relu(self.message(torch.relu(first + self.relate(between)))).mean(2)
        inner = self.update_state(torch.cat([h, messages], -1)) + self.update_time(time)
        h = h + self.update_out(torch.relu(inner))
        out: Tensor = self.norm(h.flatten(0, 1)).view_as(h)
        return out


class MessagePassing(nn.Module):
    """Values on any nodes to what changes them, by messages between near nodes.

    Parameters
    ----------
    dim : int
        Of space.
    hidden, layers : int
    decoder : {"conv", "mlp"}, optional
        "conv": convolutions 1-4-8-1 over a node's state, for ``hidden`` of 128, and the default
        there; "mlp": two layers.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    As `MessageLayer`.
    """

    def __init__(
        self, dim: int, hidden: int = CONV_HIDDEN, layers: int = 6, decoder: str | None = None
    ) -> None:
        super().__init__()
        require_counts(dim=dim, hidden=hidden, layers=layers)
        chosen = decoder or ("conv" if hidden == CONV_HIDDEN else "mlp")
        if chosen not in ("conv", "mlp") or (chosen == "conv" and hidden != CONV_HIDDEN):
            raise ValueError(
                f"decoder={chosen!r}: must be 'conv' (hidden={CONV_HIDDEN} alone) or 'mlp'"
            )
        self.embed = nn.Sequential(
            nn.Linear(dim + 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.layers = nn.ModuleList(MessageLayer(dim, hidden) for _ in range(layers))
        self.decoder: nn.Module
        if chosen == "conv":
            self.decoder = nn.Sequential(
                nn.Unflatten(-1, (1, hidden)), nn.Conv1d(1, 4, 16, 3), nn.ReLU(),
                nn.Conv1d(4, 8, 12, 3), nn.ReLU(), nn.Conv1d(8, 1, 8, 2), nn.Flatten(1),
            )  # fmt: skip
        else:
            self.decoder = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, u: Tensor, x: Tensor, t: Tensor, edges: Tensor) -> Tensor:
        """Return (batch, nodes); arguments as `MessageLayer.forward`."""
        time = t.to(u.dtype)[:, None, None].expand(*u.shape, 1)
        h = self.embed(torch.cat([u[..., None], x, time], -1))
        for layer in self.layers:
            h = layer(h, u, x, t, edges)
        out: Tensor = self.decoder(h.flatten(0, 1)).view_as(u)
        return out
