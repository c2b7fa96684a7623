"""Layers on points of any mesh: kernel integrals, attention and norms with quadrature weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat.methods.nn_to_no.mesh import QuadratureMesh, require_weights
from sat.methods.problems.arguments import require_counts

ATTENTIONS = ("softmax", "galerkin")


def pointwise(widths: Sequence[int]) -> nn.Sequential:
    """Return a perceptron of these widths with GELU between its layers."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class KernelIntegral(nn.Module):
    """y(x) = Σ_j w_j κ(x, x_j) f(x_j), κ a perceptron of both places: a dense layer over points.

    Parameters
    ----------
    mlp : nn.Module
        (…, 2 dim) to (…, c_out · c_in); of (…, 2 dim + c_in) if ``nonlinear``.
    c_in, c_out : int
    nonlinear : bool
        Whether κ sees f(x_j), too.

    Source
    ------
    Section 4.1; Li et al., arXiv 2003.03485.
    """

    def __init__(self, mlp: nn.Module, c_in: int, c_out: int, *, nonlinear: bool = False) -> None:
        super().__init__()
        require_counts(c_in=c_in, c_out=c_out)
        self.mlp, self.c_in, self.c_out, self.nonlinear = mlp, c_in, c_out, nonlinear

    def forward(self, f: Tensor, mesh: QuadratureMesh, query: Tensor | None = None) -> Tensor:
        """Return y (batch, others, c_out) for f (batch, points, c_in).

        Parameters
        ----------
        f : torch.Tensor
        mesh : QuadratureMesh
        query : torch.Tensor, optional
            (others, dim); the mesh's points if not given.

        Raises
        ------
        ValueError
            If f does not fit the mesh.
        """
        _require_values(f, mesh, self.c_in)
        here = mesh.points.to(f.dtype)
        there = here if query is None else query.to(f.dtype)
        shape = len(there), len(here), -1
        pairs = torch.cat([there[:, None].expand(shape), here.expand(shape)], -1)
        weighted = f * mesh.weights.to(f.dtype)[:, None]
        if not self.nonlinear:
            kernel = self.mlp(pairs).unflatten(-1, (self.c_out, self.c_in))
            return torch.einsum("qnoi,zni->zqo", kernel, weighted)
        batch = len(f)
        seen = f[:, None].expand(batch, len(there), -1, -1)
        pairs = torch.cat([pairs.expand(batch, -1, -1, -1), seen], -1)
        kernel = self.mlp(pairs).unflatten(-1, (self.c_out, self.c_in))
        return torch.einsum("zqnoi,zni->zqo", kernel, weighted)


class LowRankIntegral(nn.Module):
    """y(x) = Σ_r φ_r(x) Σ_j w_j ψ_r(x_j) f(x_j): linear in the points; DeepONet's encoder.

    Parameters
    ----------
    phi : nn.Module
        (others, dim) to (others, rank · c_out).
    psi : nn.Module
        (points, dim) to (points, rank · c_in).
    c_in, c_out : int

    Source
    ------
    Section 4.1.
    """

    def __init__(self, phi: nn.Module, psi: nn.Module, c_in: int, c_out: int) -> None:
        super().__init__()
        require_counts(c_in=c_in, c_out=c_out)
        self.phi, self.psi, self.c_in, self.c_out = phi, psi, c_in, c_out

    def forward(self, f: Tensor, mesh: QuadratureMesh, query: Tensor | None = None) -> Tensor:
        """As `KernelIntegral`."""
        _require_values(f, mesh, self.c_in)
        here = mesh.points.to(f.dtype)
        there = here if query is None else query.to(f.dtype)
        psi = (
            self.psi(here).unflatten(-1, (-1, self.c_in)) * mesh.weights.to(f.dtype)[:, None, None]
        )
        phi = self.phi(there).unflatten(-1, (-1, self.c_out))
        sums = torch.einsum("nri,zni->zr", psi, f)
        return torch.einsum("qro,zr->zqo", phi, sums)


def quadrature_attention(
    q: Tensor, k: Tensor, v: Tensor, weights: Tensor, kind: str = "softmax"
) -> Tensor:
    """Return attention whose sums over points are integrals.

    "softmax": Σ_j w_j e^(q·k_j/√d) v_j / Σ_j w_j e^(q·k_j/√d), by adding log w_j to the logits.
    "galerkin": q (Σ_j w_j k_jᵀ v_j), of keys and values that were normalised over points.

    Parameters
    ----------
    q : torch.Tensor
        (…, others, d).
    k, v : torch.Tensor
        (…, points, d).
    weights : torch.Tensor
        (points,), not negative.
    kind : {"softmax", "galerkin"}

    Returns
    -------
    torch.Tensor
        (…, others, d).

    Raises
    ------
    ValueError
        If weights are negative or not one a point, or there is no such kind.

    Source
    ------
    Section 4.3; "galerkin" is Cao, arXiv 2105.14995.
    """
    require_weights(weights, k.shape[-2])
    weights = weights.to(q.dtype)
    if kind == "softmax":
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        return torch.softmax(logits + weights.log(), -1) @ v
    if kind != "galerkin":
        raise ValueError(f"kind={kind!r}: must be 'softmax' or 'galerkin'; choose one")
    return q @ (k.mT @ (weights[:, None] * v))


class QuadratureNorm(nn.Module):
    """Each channel of each sample to mean 0 and variance 1 over the domain, not over the points.

    Parameters
    ----------
    channels : int
    eps : float
    affine : bool
        Whether a factor and an offset are learned.
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        require_counts(channels=channels)
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels)) if affine else None
        self.shift = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return (batch, points, channels) for x of that shape and weights (points,)."""
        require_weights(weights, x.shape[-2])
        share = (weights / weights.sum()).to(x.dtype)[:, None]
        centred = x - (share * x).sum(-2, keepdim=True)
        variance = (share * centred.square()).sum(-2, keepdim=True)
        out = centred / (variance + self.eps).sqrt()
        if self.scale is None or self.shift is None:
            return out
        return out * self.scale + self.shift


class QuadratureAttention(nn.Module):
    """Attention over functions: on any mesh, and asked at any points.

    Parameters
    ----------
    dim : int
        Channels; a multiple of ``heads``.
    heads : int
    kind : {"softmax", "galerkin"}
        As `quadrature_attention`.
    space : int
        Dimension of places that rotate queries and keys; 0 for none. Each axis turns its share of
        a head's channels, by angles proportional to the place in physical units.
    wavelength : float
        The shortest, in units of the domain.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 4.3.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: str = "softmax",
        *,
        space: int = 0,
        wavelength: float = 0.125,
    ) -> None:
        super().__init__()
        require_counts(dim=dim, heads=heads)
        if dim % heads:
            raise ValueError(f"heads={heads}: must divide dim={dim}; choose another number")
        if kind not in ATTENTIONS:
            raise ValueError(f"kind={kind!r}: must be 'softmax' or 'galerkin'; choose one")
        if space and dim // heads % (2 * space):
            raise ValueError(
                f"space={space}: {dim // heads} channels of a head must be pairs for each axis; "
                "widen the heads"
            )
        self.heads, self.kind, self.space = heads, kind, space
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        each = dim // heads
        self.norms = nn.ModuleList(
            QuadratureNorm(each, affine=False) for _ in range(2 if kind == "galerkin" else 0)
        )
        pairs = each // (2 * space) if space else 0
        octaves = 2.0 ** torch.arange(pairs, dtype=torch.float64)
        self.register_buffer("waves", 2 * math.pi / (wavelength * octaves), persistent=False)

    waves: Tensor

    def forward(
        self,
        x: Tensor,
        weights: Tensor,
        query: Tensor | None = None,
        *,
        points: Tensor | None = None,
        query_points: Tensor | None = None,
    ) -> Tensor:
        """Return (batch, others, dim).

        Parameters
        ----------
        x : torch.Tensor
            (batch, points, dim).
        weights : torch.Tensor
            (points,): of the mesh, not negative.
        query : torch.Tensor, optional
            (batch, others, dim); x if not given.
        points, query_points : torch.Tensor, optional
            (points, space) and (others, space), if places rotate.

        Raises
        ------
        ValueError
            If weights do not fit, or places are missing.
        """
        asked = x if query is None else query
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, asked), (self.key, x), (self.value, x))
        )
        if self.space:
            if query is None:
                query_points = points
            if points is None or query_points is None:
                raise ValueError("points is None: must be given, as places rotate (space > 0)")
            q, k = self._rotate(q, query_points), self._rotate(k, points)
        if self.kind == "galerkin":
            k, v = (norm(y, weights) for norm, y in zip(self.norms, (k, v), strict=True))
        mixed = quadrature_attention(q, k, v, weights, self.kind)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _rotate(self, y: Tensor, points: Tensor) -> Tensor:
        angle = (points.double()[:, :, None] * self.waves.double()).flatten(1)
        cos, sin = angle.cos().to(y.dtype), angle.sin().to(y.dtype)
        a, b = y.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def _require_values(f: Tensor, mesh: QuadratureMesh, channels: int) -> None:
    if f.ndim != 3 or f.shape[1:] != (len(mesh), channels):
        raise ValueError(
            f"f has shape {tuple(f.shape)}: must be (batch, {len(mesh)}, {channels}), values at "
            "the mesh's points"
        )
