"""Structure-preserving operator networks: encode, process, decode.

Source: Bouziani and Boullé 2024, arXiv 2410.01065. The paper's package was not found; what it
leaves open (smoother, lift and head of the multigrid processor, training) is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.spon.hierarchy import MeshHierarchy
from sat.methods.spon.space import FeFunction, FeSpace, Function, Operator


class ProjectionEncoder:
    """From functions to coefficients of a space.

    Parameters
    ----------
    space : FeSpace
    method : {"l2", "nodal"}
        L2 projection M c = b, b by quadrature of the function, or values at the dofs. Only the
        projection gives the same operator the same input on another mesh, up to h².

    Raises
    ------
    ValueError
        Another method; nodal values of an element that has none.
    """

    def __init__(self, space: FeSpace, method: str = "l2") -> None:
        if method not in ("l2", "nodal"):
            raise ValueError(f"method={method!r}: must be 'l2' or 'nodal'")
        if method == "nodal" and not _nodal(space):
            raise ValueError(
                f"method='nodal': dofs of {space.basis.elem} are no values at points; use 'l2'"
            )
        self.space, self.method = space, method
        self._solve = scipy.sparse.linalg.factorized(space.mass.tocsc())

    def __call__(self, f: Function | FeFunction | Tensor) -> Tensor:
        """Return coefficients (…, dofs) in float64, or those that are given as they are.

        Parameters
        ----------
        f : callable, FeFunction, or Tensor (…, dofs)
            A function on another mesh is one of points.

        Raises
        ------
        ValueError
            A wrong length or shape, or values that are not finite.
        """
        if isinstance(f, Tensor):
            self.space.check_coefficients(f)
            return f
        if isinstance(f, FeFunction):
            f = f.at
        if self.method == "nodal":
            return self.space.checked(f(self.space.points), self.space.dofs)
        load = self.space.load(f)
        flat = load.reshape(-1, self.space.dofs).numpy()
        return torch.from_numpy(np.stack([self._solve(b) for b in flat])).reshape(load.shape)


class FeDecoder:
    """From coefficients to functions that have the boundary values.

    At fixed dofs a coefficient is replaced by the value: selected, not penalised, so the error
    there is 0 for any parameters, and no gradient passes.

    Parameters
    ----------
    space : FeSpace
    boundary : float, callable, mapping, or Tensor
        Values at the fixed dofs: one for all, a function of points, by dof, or (fixed,).
    mean : float, optional
        Mean over the domain that a shift gives each function, as a pressure needs; only where
        nothing is fixed.

    Raises
    ------
    ValueError
        A value for a dof that is free, none for one that is fixed, a wrong number of values.
    """

    def __init__(
        self,
        space: FeSpace,
        boundary: float | Function | Mapping[int, float] | Tensor = 0.0,
        *,
        mean: float | None = None,
    ) -> None:
        self.space = space
        self.fixed = space.fixed.nonzero()[:, 0]
        self.boundary = self._values(boundary)
        self.mean = mean
        if mean is not None and (len(self.fixed) or space.components > 1):
            raise ValueError(
                f"mean={mean}: a shift would break the boundary values; use it on scalar spaces "
                "with no fixed dofs"
            )
        self._weights = torch.from_numpy(np.asarray(space.mass.sum(0)).ravel())

    def _values(self, boundary: Any) -> Tensor:
        count = len(self.fixed)
        if isinstance(boundary, Mapping):
            wanted = set(self.fixed.tolist())
            for dof in boundary:
                if dof not in wanted:
                    raise ValueError(
                        f"boundary value for dof {dof}: that dof is free; make the space with "
                        "dirichlet there, or leave the value out"
                    )
            missing = sorted(wanted - set(boundary))
            if missing:
                raise ValueError(f"boundary: no value for the fixed dof {missing[0]}")
            boundary = torch.tensor([boundary[dof] for dof in self.fixed.tolist()])
        elif callable(boundary):
            if not _nodal(self.space):
                raise ValueError(
                    f"boundary function: dofs of {self.space.basis.elem} are no values at points; "
                    "give the values by dof"
                )
            boundary = self.space.checked(boundary(self.space.points[self.fixed]), count)
        values = torch.as_tensor(boundary).to(torch.float64)
        if values.dim() == 0:
            return values.expand(count)
        if values.shape[-1] != count:
            raise ValueError(
                f"boundary of {values.shape[-1]} values: the space has {count} fixed dofs"
            )
        return values

    def __call__(
        self, y: Tensor, g: float | Function | Mapping[int, float] | Tensor | None = None
    ) -> FeFunction:
        """Return functions with coefficients y (…, dofs) and boundary values.

        Parameters
        ----------
        y : Tensor (…, dofs)
        g : optional
            Boundary values of these samples, in place of the decoder's: as ``boundary``, or a
            Tensor (…, fixed).
        """
        self.space.check_coefficients(y)
        if len(self.fixed):
            values = self.boundary if g is None else self._values(g)
            whole = y.new_zeros(*values.shape[:-1], self.space.dofs)
            whole[..., self.fixed] = values.to(y)
            y = torch.where(self.space.fixed, whole, y)
        elif g is not None:
            raise ValueError("g: this space has no fixed dofs to set")
        if self.mean is not None:
            weights = self._weights.to(y)
            y = y + (self.mean - (y * weights).sum(-1, keepdim=True) / weights.sum())
        return FeFunction(self.space, y)


def _nodal(space: FeSpace) -> bool:
    """Whether the dofs of a space are its values at points."""
    names = space.basis.elem.dofnames or []
    return space.components == 1 and all(name == "u" for name in names)


class LinearProcessor(nn.Module):
    """y = W c, from n coefficients to m.

    Parameters
    ----------
    n, m : int
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n, m, bias=False)

    def forward(self, c: Tensor) -> Tensor:
        """Return (…, m) for c (…, n)."""
        return self.linear(c)

    def solve(self, c: Tensor, y: Tensor) -> None:
        """Set W to the least-squares map from c (samples, n) to y (samples, m), in float64."""
        found = torch.linalg.lstsq(c.double(), y.double()).solution
        with torch.no_grad():
            self.linear.weight.copy_(found.T)


class MlpProcessor(nn.Module):
    """n → hidden → … → m with GELU between."""

    def __init__(self, n: int, hidden: int, m: int, layers: int = 2) -> None:
        super().__init__()
        sizes = [n, *(hidden,) * (layers - 1), m]
        parts: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
            parts += [nn.GELU()] * (i > 0) + [nn.Linear(before, after)]
        self.layers = nn.Sequential(*parts)

    def forward(self, c: Tensor) -> Tensor:
        """Return (…, m) for c (…, n)."""
        return self.layers(c)


class Smoother(nn.Module):
    """h + gelu(S h + N A h), S with a bias and N without, both channels x channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own = nn.Linear(channels, channels)
        self.near = nn.Linear(channels, channels, bias=False)

    def forward(self, h: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (batch, nodes, channels) for the same; ``average`` is A."""
        return h + functional.gelu(self.own(h) + self.near(average(h)))


class _OnNodes(Operator):
    """Takes (batch, n, channels) to (batch, m, channels)."""

    def forward(self, h: Tensor) -> Tensor:
        # Nodes last: one product with all samples and channels as rows.
        return super().forward(h.transpose(1, 2)).transpose(1, 2)


class _Lifted(nn.Module):
    """What processors on meshes share: (c, coordinates) → channels, and channels → 1."""

    points: Tensor

    def __init__(self, points: np.ndarray, channels: int) -> None:
        super().__init__()
        self.register_buffer("points", torch.from_numpy(points).float(), persistent=False)
        self.lift = nn.Linear(1 + points.shape[1], channels)
        self.head = nn.Linear(channels, 1)

    def lifted(self, c: Tensor) -> Tensor:
        """Return (batch, nodes, channels) for coefficients (batch, nodes)."""
        if c.dim() != 2 or c.shape[1] != len(self.points):
            raise ValueError(
                f"coefficients of shape {tuple(c.shape)}: must be (batch, {len(self.points)}), the "
                "nodes of the finest mesh"
            )
        return self.lift(torch.cat([c[..., None], self.points.expand(len(c), -1, -1)], -1))

    def headed(self, h: Tensor) -> Tensor:
        """Return (batch, nodes) for channels."""
        return self.head(h)[..., 0]


class GraphProcessor(_Lifted):
    """Message passing on the mesh's graph: the smoother, ``steps`` times on one level.

    Parameters
    ----------
    adjacency : scipy.sparse matrix (n, n)
        Rows sum to 1.
    channels, steps : int
    points : ndarray (n, dim)
    """

    def __init__(
        self, adjacency: scipy.sparse.spmatrix, channels: int, steps: int, points: np.ndarray
    ) -> None:
        super().__init__(points, channels)
        self.average = _OnNodes(adjacency)
        self.smoothers = nn.ModuleList(Smoother(channels) for _ in range(steps))

    def forward(self, c: Tensor) -> Tensor:
        """Return (batch, n) for coefficients (batch, n)."""
        h = self.lifted(c)
        for smoother in self.smoothers:
            h = smoother(h, self.average)
        return self.headed(h)


class MultigridProcessor(_Lifted):
    """A V-cycle whose smoothers are learned; prolongations and restrictions are the meshes'.

    Parameters
    ----------
    hierarchy : MeshHierarchy
    channels : int
    smooth : int
        Smoothings on each level and way.
    """

    def __init__(self, hierarchy: MeshHierarchy, channels: int, smooth: int = 2) -> None:
        super().__init__(hierarchy.points[-1], channels)
        levels = len(hierarchy)

        def smoothers() -> nn.ModuleList:
            return nn.ModuleList(Smoother(channels) for _ in range(smooth))

        self.down = nn.ModuleList(smoothers() for _ in range(levels - 1))
        self.coarse = smoothers()
        self.up = nn.ModuleList(smoothers() for _ in range(levels - 1))
        self._lay(hierarchy)

    def _lay(self, hierarchy: MeshHierarchy) -> None:
        self.average = nn.ModuleList(_OnNodes(a) for a in hierarchy.adjacency)
        self.prolong = nn.ModuleList(_OnNodes(p) for p in hierarchy.prolongation)
        self.restrict = nn.ModuleList(_OnNodes(r) for r in hierarchy.restriction)

    def on(self, hierarchy: MeshHierarchy) -> MultigridProcessor:
        """Return the same weights on a hierarchy of as many levels, or more.

        Levels are counted from the coarsest; finer ones than there were take the weights of the
        finest.

        Raises
        ------
        ValueError
            Fewer levels.
        """
        missing = len(hierarchy) - 1 - len(self.down)
        if missing < 0:
            raise ValueError(
                f"a hierarchy of {len(hierarchy)} levels: these weights are of "
                f"{len(self.down) + 1}; give as many or more"
            )
        made = copy.deepcopy(self)
        for way in (made.down, made.up):
            for _ in range(missing):
                way.append(way[-1] if len(way) else made.coarse)
        made.points = torch.from_numpy(hierarchy.points[-1]).float()
        made._lay(hierarchy)
        return made

    def forward(self, c: Tensor) -> Tensor:
        """Return (batch, n) for coefficients (batch, n) on the finest mesh."""
        h = self.lifted(c)
        stored = []
        for level in range(len(self.down), 0, -1):
            h = self._smooth(self.down[level - 1], h, level)
            stored.append(h)
            h = self.restrict[level](h)
        h = self._smooth(self.coarse, h, 0)
        for level in range(1, len(self.up) + 1):
            h = stored.pop() + self.prolong[level](h)
            h = self._smooth(self.up[level - 1], h, level)
        return self.headed(h)

    def _smooth(self, smoothers: nn.Module, h: Tensor, level: int) -> Tensor:
        for smoother in smoothers.children():
            h = smoother(h, self.average[level])
        return h


class SPON(nn.Module):
    """decode ∘ process ∘ encode.

    Parameters
    ----------
    encoder : ProjectionEncoder
    processor : nn.Module
        (batch, n) to (batch, m).
    decoder : FeDecoder
    scales : (float, float)
        Typical size of input and output coefficients: the processor works on their quotients.

    Raises
    ------
    ValueError
        The spaces of encoder and decoder lie on other domains; a scale is not positive.
    """

    scales: Tensor

    def __init__(
        self,
        encoder: ProjectionEncoder,
        processor: nn.Module,
        decoder: FeDecoder,
        scales: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        if not encoder.space.same_domain(decoder.space):
            raise ValueError("encoder and decoder: their meshes cover other domains")
        if not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales={scales}: must be positive and finite")
        self.encoder, self.processor, self.decoder = encoder, processor, decoder
        self.register_buffer("scales", torch.tensor(scales, dtype=torch.float64))

    def forward(self, f: Function | FeFunction | Tensor, g: Any = None) -> FeFunction:
        """Return the solution for f: a function, or coefficients (batch, n).

        Parameters
        ----------
        g : optional
            Boundary values of these samples, as `FeDecoder` takes them.
        """
        weight = next((p for p in self.processor.parameters()), None)
        c = self.encoder(f)
        alone = c.dim() == 1
        c = (c.to(torch.float64) / self.scales[0]).to(torch.float32 if weight is None else weight)
        y = self.processor(c[None] if alone else c) * self.scales[1].to(c)
        return self.decoder(y[0] if alone else y, g)
