"""What a mover sees of a field: its samples to one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat.methods.mm_pde.message_passing import MessageLayer, nearest_others, uniform_mesh
from sat.methods.problems.arguments import require_counts


class Branch(nn.Module):
    """(batch, size, size) to (batch, width).

    Attributes
    ----------
    size : int
        Nodes of an axis of the samples.
    width : int
    """

    size: int
    width: int


class MlpBranch(Branch):
    """Samples through layers with tanh after each.

    Parameters
    ----------
    size : int
    widths : sequence of int
        Of the layers; the last is the branch's.
    """

    def __init__(self, size: int, widths: Sequence[int]) -> None:
        super().__init__()
        require_counts(size=size, **{f"widths[{i}]": w for i, w in enumerate(widths)})
        self.size, self.width = size, widths[-1]
        layers: list[nn.Module] = []
        for before, after in zip([size**2, *widths], widths, strict=False):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.net(u.flatten(1))
        return out


class ArrayBranch(Branch):
    """Four 5 x 5 convolutions, the first's output added to the third's, then two layers.

    Parameters
    ----------
    size : int
        A multiple of 4, as the first and the last convolution halve it.
    width, hidden : int

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    The authors' ``mesh/dmm_model.py``, mode "array".
    """

    def __init__(self, size: int = 48, width: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        require_counts(size=size, width=width, hidden=hidden)
        if size % 4:
            raise ValueError(f"size={size}: must be a multiple of 4; sample the field anew")
        self.size, self.width = size, width
        channels = ((1, 8, 2), (8, 16, 1), (16, 8, 1), (8, 1, 2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 5, stride, 2) for before, after, stride in channels
        )
        self.dense = nn.Sequential(
            nn.Linear((size // 4) ** 2, hidden), nn.Tanh(), nn.Linear(hidden, width), nn.Tanh()
        )

    def forward(self, u: Tensor) -> Tensor:
        first, second, third, last = self.convolutions
        a = torch.tanh(first(u[:, None]))
        b = torch.tanh(third(torch.tanh(second(a)))) + a
        out: Tensor = self.dense(torch.tanh(last(b)).flatten(1))
        return out


class GraphBranch(Branch):
    """Messages between near nodes, then all nodes' states through three layers.

    Parameters
    ----------
    size, width, hidden, layers, neighbours : int
        ``hidden`` is a node's state; ``neighbours`` as many nearest nodes send.

    Source
    ------
    The authors' ``mesh/dmm_model.py``, mode "graph".
    """

    edges: Tensor
    mesh: Tensor

    def __init__(
        self, size: int = 48, width: int = 512, hidden: int = 4, layers: int = 3,
        neighbours: int = 35,
    ) -> None:  # fmt: skip
        super().__init__()
        require_counts(size=size, width=width, hidden=hidden, layers=layers)
        self.size, self.width = size, width
        mesh = uniform_mesh(size, 2)
        self.register_buffer("mesh", mesh, persistent=False)
        self.register_buffer("edges", nearest_others(mesh[None], neighbours), persistent=False)
        self.embed = nn.Linear(3, hidden)
        self.layers = nn.ModuleList(MessageLayer(2, hidden) for _ in range(layers))
        self.dense = nn.Sequential(
            nn.Linear(size**2 * hidden, 512), nn.Tanh(), nn.Linear(512, 256), nn.Tanh(),
            nn.Linear(256, width), nn.Tanh(),
        )  # fmt: skip

    def forward(self, u: Tensor) -> Tensor:
        values = u.flatten(1)
        x = self.mesh.to(u.dtype).expand(len(u), -1, -1)
        edges, time = self.edges.expand(len(u), -1, -1), u.new_zeros(len(u))
        h = self.embed(torch.cat([values[..., None], x], -1))
        for layer in self.layers:
            h = layer(h, values, x, time, edges)
        out: Tensor = self.dense(h.flatten(1))
        return out
