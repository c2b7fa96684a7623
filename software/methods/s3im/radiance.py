"""Radiance fields and how rays see them."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.problems.arguments import require_counts


class RadianceField(Protocol):
    """What `render_rays` looks at."""

    def density(self, points: Tensor) -> Tensor:
        """Return (points,), not negative, per unit of length, at (points, 3)."""

    def colour(self, points: Tensor, dirs: Tensor) -> Tensor:
        """Return (points, 3) in [0, 1] at (points, 3), seen along unit vectors (points, 3)."""


class VoxelRadianceField(nn.Module):
    """Grids of density and of features in [-1, 1]³, trilinear; colours by a network of features.

    Density is softplus(gain · grid + start) / voxel; there is none outside the box.

    Parameters
    ----------
    grid : int
        Nodes of an axis, at least 2; node [i, j, k] lies at -1 + 2 (i, j, k) / (grid - 1).
    feat : int
        Features of a node.
    mlp_width : int
        Of the network: features and direction, two hidden layers, colour.
    alpha : float
        Opacity of a voxel to start with.
    gain : float
        A grid's numbers move by about the learning rate a step; opacity from 0 to 1 takes some
        ten units of softplus.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Sun, Sun, Chen 2022 (DVGO), arXiv 2111.11215, sections 4 and 5.
    """

    def __init__(
        self, grid: int = 40, feat: int = 8, mlp_width: int = 64, *, alpha: float = 0.01,
        gain: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        require_counts(grid=grid, feat=feat, mlp_width=mlp_width)
        if grid < 2:
            raise ValueError(f"grid={grid}: must be at least 2 nodes, the ends of an axis")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha}: must be between 0 and 1")
        if not 0 < gain < math.inf:
            raise ValueError(f"gain={gain}: must be positive and finite")
        self.voxel, self.gain = 2 / (grid - 1), gain
        # softplus(start) = -log(1 - alpha), the opacity of one voxel.
        self.start = math.log(math.expm1(-math.log1p(-alpha)))
        self.raw = nn.Parameter(torch.zeros(1, 1, grid, grid, grid))
        self.features = nn.Parameter(0.1 * torch.randn(1, feat, grid, grid, grid))
        self.mlp = nn.Sequential(
            nn.Linear(feat + 3, mlp_width), nn.ReLU(), nn.Linear(mlp_width, mlp_width), nn.ReLU(),
            nn.Linear(mlp_width, 3),
        )  # fmt: skip

    def density(self, points: Tensor) -> Tensor:
        """Return (points,) at (points, 3)."""
        inside = (points.abs() <= 1).all(-1).nonzero()[:, 0]
        raw = _sample(self.raw, points[inside])[:, 0]
        found = functional.softplus(self.gain * raw + self.start) / self.voxel
        return found.new_zeros(len(points)).index_put((inside,), found)

    def colour(self, points: Tensor, dirs: Tensor) -> Tensor:
        """Return (points, 3) at (points, 3), seen along dirs (points, 3)."""
        seen = torch.cat([_sample(self.features, points), dirs], -1)
        return torch.sigmoid(self.mlp(seen))

    def forward(self, points: Tensor, dirs: Tensor) -> tuple[Tensor, Tensor]:
        """Return density and colour."""
        return self.density(points), self.colour(points, dirs)


def _sample(grid: Tensor, points: Tensor) -> Tensor:
    """Return (points, channels) of a grid (1, channels, x, y, z) at (points, 3)."""
    # grid_sample takes the last axis first.
    taken = functional.grid_sample(
        grid, points.flip(-1)[None, :, None, None], padding_mode="border", align_corners=True
    )
    return taken[0, :, :, 0, 0].T


def render_rays(
    field: RadianceField,
    origins: Tensor,
    dirs: Tensor,
    near: float,
    far: float,
    n_samples: int,
    *,
    background: float = 1.0,
    threshold: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return colours (rays, 3): Σ Tᵢ (1 - exp(-σᵢ δ)) cᵢ, and the background where it is seen.

    Parameters
    ----------
    field : RadianceField
    origins, dirs : torch.Tensor
        (rays, 3): starts and unit vectors.
    near, far : float
        Where rays begin and end, from their origins.
    n_samples : int
        Sections of a ray, each looked at in its middle.
    background : float
        Its grey, in [0, 1].
    threshold : float
        Samples of no more weight than this are left black, and no colour is computed there; what
        is not computed is no more than ``n_samples`` · ``threshold`` of a colour.
    generator : torch.Generator, optional
        Places are drawn uniformly within their sections, to train.

    Raises
    ------
    ValueError
        If shapes or numbers do not fit, or dirs are no unit vectors.

    Source
    ------
    Mildenhall et al. 2020 (NeRF), equation 3; Max 1995.
    """
    require_counts(n_samples=n_samples)
    if origins.ndim != 2 or origins.shape[1] != 3 or origins.shape != dirs.shape:
        raise ValueError(
            f"origins have shape {tuple(origins.shape)} and dirs {tuple(dirs.shape)}: must both "
            "be (rays, 3)"
        )
    if not 0 <= near < far < math.inf:
        raise ValueError(f"near={near}, far={far}: must be 0 <= near < far, and finite")
    off = float((torch.linalg.vector_norm(dirs, dim=-1) - 1).abs().max()) if len(dirs) else 0.0
    if not off < 1e-4:
        raise ValueError(f"dirs: lengths are up to {off:g} off 1: must be unit vectors; divide")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold}: must be at least 0 and below 1")
    if not 0 <= background <= 1:
        raise ValueError(f"background={background}: must be a grey from 0 (black) to 1 (white)")
    rays, delta = len(origins), (far - near) / n_samples
    section = torch.arange(n_samples, dtype=origins.dtype, device=origins.device)
    within = 0.5 if generator is None else torch.rand(rays, n_samples, generator=generator)
    t = near + delta * (section + within).expand(rays, n_samples)
    points = (origins[:, None] + t[..., None] * dirs[:, None]).flatten(0, 1)
    depth = field.density(points).view(rays, n_samples) * delta
    before = functional.pad(depth.cumsum(1), (1, 0))[:, :-1]
    weights = torch.exp(-before) * -torch.expm1(-depth)
    seen = (weights.detach().flatten() > threshold).nonzero()[:, 0]
    colour = field.colour(points[seen], dirs[seen // n_samples])
    parts = weights.flatten()[seen, None] * colour
    total = parts.new_zeros(rays, 3).index_add(0, seen // n_samples, parts)
    return total + background * torch.exp(-depth.sum(1))[:, None]
