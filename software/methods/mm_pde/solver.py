"""One time step on a moved and on the uniform mesh at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sat.methods.mm_pde.message_passing import (
    MessagePassing,
    gather_nodes,
    nearest,
    nearest_others,
    uniform_mesh,
)
from sat.methods.mm_pde.monitor import determinant
from sat.methods.mm_pde.mover import MeshMover
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.training import fit

WEIGHTS = ("free", "softmax")


class LearnedInterpolation(nn.Module):
    """Values from nodes to other places: weights of the k nearest nodes, by where all of them are.

    Parameters
    ----------
    k : int
        Nearest nodes.
    dim : int
    hidden : sequence of int
        Widths of the network.
    weights : {"free", "softmax"}
        "free": what the network says, as released. "softmax" of that minus the square of distance
        over spacing, the network told where nodes are from the query: constants stay, and it is
        sensible before it has learned anything.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    The authors' ``interpolate.py``; the softmax is ours.
    """

    def __init__(
        self, k: int = 30, dim: int = 2, hidden: Sequence[int] = (128, 64), weights: str = "free"
    ) -> None:
        super().__init__()
        require_counts(k=k, dim=dim, **{f"hidden[{i}]": w for i, w in enumerate(hidden)})
        if weights not in WEIGHTS:
            raise ValueError(f"weights={weights!r}: must be one of {', '.join(WEIGHTS)}")
        self.k, self.weights = k, weights
        layers: list[nn.Module] = []
        widths = [(k + 1) * dim, *hidden]
        for before, after in zip(widths, hidden, strict=False):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], k))

    def forward(self, values: Tensor, nodes: Tensor, queries: Tensor, near: Tensor) -> Tensor:
        """Return (batch, queries).

        Parameters
        ----------
        values : torch.Tensor
            (batch, nodes).
        nodes, queries : torch.Tensor
            (batch, ·, dim).
        near : torch.Tensor
            (batch, queries, k) int64: `nearest` nodes of each query.
        """
        around = gather_nodes(nodes, near)
        if self.weights == "free":
            weights = self.net(torch.cat([around.flatten(2), queries], -1))
        else:
            spacing = nodes.shape[1] ** (-1 / nodes.shape[2])
            around = (around - queries[:, :, None]) / spacing
            weights = self.net(torch.cat([around.flatten(2), queries], -1))
            # Squared, so that a node falls off within a spacing or two.
            weights = torch.softmax(weights - around.square().sum(-1), -1)
        return (weights * gather_nodes(values[..., None], near)[..., 0]).sum(-1)


@dataclass(frozen=True)
class Geometry:
    """Where the nodes of a batch are, and who is near whom; nothing here is learned.

    Attributes
    ----------
    x : torch.Tensor
        (batch, nodes, dim): the moved mesh.
    edges : torch.Tensor
        (batch, nodes, neighbours): of the moved mesh.
    there, back : torch.Tensor
        (batch, nodes, k): uniform nodes near moved ones; moved nodes near uniform ones.
    """

    x: Tensor
    edges: Tensor
    there: Tensor
    back: Tensor

    def __getitem__(self, places: Tensor) -> Geometry:
        return Geometry(self.x[places], self.edges[places], self.there[places], self.back[places])


class MMPDE(nn.Module):
    """u at the next time: u + back(network on the moved mesh) + cut(u) + network(u).

    The mover is frozen. On the moved mesh alone the interpolations limit what can be reached, hence
    two branches.

    Parameters
    ----------
    mover : MeshMover or None
        None: the network on the uniform mesh alone, to compare with.
    dim : int
        2 with a mover.
    hidden, layers : int
        Of `MessagePassing`.
    branches : {1, 2}
        1: the moved mesh alone.
    size : int
        Nodes of an axis of the uniform mesh, edges included.
    dt : float
        Time step.
    gain : float
        Networks' outputs are taken times dt · gain; 0.1 as released.
    neighbours, k : int
        Of the graph, and of interpolations.
    interpolation : sequence of int
        Hidden widths of `LearnedInterpolation`.
    weights : str
        As there.
    keep : bool
        Whether u itself is added, so that little has to be learned to keep it; the released code
        leaves that to the cut network.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3.2; the authors' ``mmpde.py``.
    """

    mesh: Tensor
    uniform_edges: Tensor

    def __init__(
        self,
        mover: MeshMover | None,
        dim: int = 2,
        hidden: int = 128,
        layers: int = 6,
        branches: int = 2,
        *,
        size: int = 48,
        dt: float = 0.1,
        gain: float = 0.1,
        neighbours: int = 35,
        k: int = 30,
        interpolation: Sequence[int] = (128, 64),
        weights: str = "free",
        keep: bool = True,
    ) -> None:
        super().__init__()
        require_counts(size=size, neighbours=neighbours)
        if dim not in (1, 2) or (mover is not None and dim != 2):
            raise ValueError(f"dim={dim}: must be 2, or 1 without a mover")
        if branches not in (1, 2):
            raise ValueError(f"branches={branches}: must be 1, the moved mesh alone, or 2")
        for name, value in (("dt", dt), ("gain", gain)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value}: must be positive and finite")
        if mover is not None and mover.branch.size != size:
            raise ValueError(
                f"size={size}: must be that of the mover's samples, {mover.branch.size}"
            )
        self.dim, self.size, self.dt, self.gain, self.keep = dim, size, dt, gain, keep
        self.neighbours = neighbours
        mesh = uniform_mesh(size, dim)
        self.register_buffer("mesh", mesh, persistent=False)
        edges = nearest_others(mesh[None], neighbours)
        self.register_buffer("uniform_edges", edges, persistent=False)
        self.mover = None if mover is None else mover.eval().requires_grad_(False)
        self.moved = self.there = self.back = None
        if mover is not None:
            self.moved = MessagePassing(dim, hidden, layers)
            self.there, self.back = (
                LearnedInterpolation(k, dim, interpolation, weights) for _ in range(2)
            )
        still = mover is None or branches == 2
        self.uniform = MessagePassing(dim, hidden, layers) if still else None
        conv = nn.Conv1d if dim == 1 else nn.Conv2d
        cut: list[nn.Module] = []
        for before, after in ((1, 4), (4, 16), (16, 4), (4, 1)):
            cut += [conv(before, after, 5, padding=2), nn.Tanh()]
        self.cut = nn.Sequential(*cut)

    @torch.no_grad()
    def geometry(self, u: Tensor) -> Geometry:
        """Return the moved meshes of fields (batch, size, size), and what is near what.

        Raises
        ------
        RuntimeError
            If a mesh is folded; the node is named.
        """
        if self.mover is None or self.there is None or self.back is None:
            raise RuntimeError("there is no mover: a network on the uniform mesh has no geometry")
        x, jacobian = self.mover.move(u, self.mesh)
        det = determinant(jacobian)
        if not float(det.min()) > 0:
            place = int(det.flatten().argmin())
            field, node = divmod(place, det.shape[1])
            raise RuntimeError(
                f"the mesh of field {field} is folded at node {node}, "
                f"{[round(v, 4) for v in self.mesh[node].tolist()]}: det = {float(det.min()):g}; "
                "train the mover longer, or with a smaller monitor_strength"
            )
        whole = self.mesh.expand(len(u), -1, -1)
        return Geometry(
            x, nearest_others(x, self.neighbours), nearest(whole, x, self.there.k),
            nearest(x, whole, self.back.k),
        )  # fmt: skip

    def forward(self, u: Tensor, t: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Return fields one step on.

        Parameters
        ----------
        u : torch.Tensor
            (batch, size[, size]): node [i, j] at (i, j) / (size - 1).
        t : torch.Tensor
            (batch,): the time of u.
        geometry : Geometry, optional
            That of u, if it is at hand.

        Raises
        ------
        ValueError
            If shapes do not fit.
        RuntimeError
            As `geometry`.
        """
        if tuple(u.shape[1:]) != (self.size,) * self.dim or t.shape != (len(u),):
            raise ValueError(
                f"u has shape {tuple(u.shape)} and t {tuple(t.shape)}: must be (batch, "
                f"{', '.join([str(self.size)] * self.dim)}) and (batch,)"
            )
        flat, mesh = u.flatten(1), self.mesh.expand(len(u), -1, -1)
        change = self.cut(u[:, None])[:, 0].flatten(1)
        factor = self.dt * self.gain
        if self.moved is not None and self.there is not None and self.back is not None:
            g = self.geometry(u) if geometry is None else geometry
            values = self.there(flat, mesh, g.x, g.there)
            change = change + self.back(
                factor * self.moved(values, g.x, t, g.edges), g.x, mesh, g.back
            )
        if self.uniform is not None:
            edges = self.uniform_edges.expand(len(u), -1, -1)
            change = change + factor * self.uniform(flat, mesh, t, edges)
        return (flat + change if self.keep else change).view_as(u)

    def there_and_back(self, u: Tensor, geometry: Geometry) -> Tensor:
        """Return u (batch, size, size) after both interpolations, and nothing else."""
        if self.there is None or self.back is None:
            raise RuntimeError("there is no mover: nothing is interpolated")
        mesh = self.mesh.expand(len(u), -1, -1)
        values = self.there(u.flatten(1), mesh, geometry.x, geometry.there)
        return self.back(values, geometry.x, mesh, geometry.back).view_as(u)


def train_solver(
    model: MMPDE,
    trajectories: Tensor,
    *,
    epochs: int = 80,
    batch: int = 6,
    lr: float = 6e-4,
    warm_up: int = 1,
    generator: torch.Generator,
) -> list[float]:
    """Train on pairs one step apart, mean square; AdamW, the rate cut by 0.4 three times.

    Parameters
    ----------
    model : MMPDE
    trajectories : torch.Tensor
        (samples, times, size[, size]), ``model.dt`` apart, the first at time 0.
    epochs, batch : int
    lr : float
        Cut at 3/8, 5/8 and 7/8 of the epochs: 30, 50 and 70 of 80.
    warm_up : int
        Epochs before, for the interpolations alone: u there and back is to be u.
    generator : torch.Generator

    Returns
    -------
    list of float
        Mean loss of each epoch, without those before.
    """
    before, after = trajectories[:, :-1].flatten(0, 1), trajectories[:, 1:].flatten(0, 1)
    steps = trajectories.shape[1] - 1
    time = model.dt * torch.arange(steps).repeat(len(trajectories))
    g = None
    if model.mover is not None and model.there is not None and model.back is not None:
        parts = [model.geometry(some) for some in before.split(64)]
        g = Geometry(*(torch.cat([getattr(p, name) for p in parts])
                       for name in ("x", "edges", "there", "back")))  # fmt: skip
        whole = g
        nets = [*model.there.parameters(), *model.back.parameters()]
        if warm_up:
            fit(
                lambda p: (model.there_and_back(before[p], whole[p]) - before[p]).square().mean(),
                len(before), torch.optim.AdamW(nets, lr), epochs=warm_up, batch=batch,
                generator=generator,
            )  # fmt: skip
    rates = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(rates, lr)

    def loss(places: Tensor) -> Tensor:
        out = model(before[places], time[places], None if g is None else g[places])
        return (out - after[places]).square().mean()

    model.train()
    if model.mover is not None:
        model.mover.eval()
    curve = fit(
        loss, len(before), optimizer, epochs=epochs, batch=batch, generator=generator,
        schedule="cuts",
    )  # fmt: skip
    model.eval()
    return curve


@torch.no_grad()
def rollout(model: MMPDE, u0: Tensor, steps: int) -> Tensor:
    """Return forecasts (batch, steps, size[, size]) from fields at time 0.

    Raises
    ------
    ValueError
        If there are no steps.
    RuntimeError
        If a forecast is not finite, or its mesh folded.
    """
    require_counts(steps=steps)
    out = []
    for step in range(steps):
        u0 = model(u0, u0.new_full((len(u0),), step * model.dt))
        if not bool(u0.isfinite().all()):
            raise RuntimeError(f"step {step + 1} of {steps}: the forecast is not finite")
        out.append(u0)
    return torch.stack(out, 1)
