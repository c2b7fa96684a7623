"""Test functions of compact support, of which weak residuals are made."""

from __future__ import annotations

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

SMALLEST_RADIUS = 1e-4
"""Below it, float32 places of a test function are not told apart well enough."""


def wendland(r: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return Wendland's function W(r) and W'(r) / r, which is finite at 0.

    With l = ⌊dim/2⌋ + 3: W = (1-r)₊^(l+2) [(l²+4l+3) r² + (3l+6) r + 3] / 3.

    Parameters
    ----------
    r : torch.Tensor
        Distances over the radius, not negative.
    dim : int
        Of space.

    Returns
    -------
    v, dv_over_r : torch.Tensor
        Of r's shape; 0 from r = 1 on.

    Raises
    ------
    ValueError
        If ``dim`` is no positive int.

    Source
    ------
    Wendland 1995, Advances in Computational Mathematics 4, table 1; the authors'
    ``Utils/TestFun_ParticleWNN.py``.
    """
    require_counts(dim=dim)
    p = dim // 2 + 3
    rest = (1 - r).clamp(min=0)
    v = rest ** (p + 2) * ((p**2 + 4 * p + 3) * r**2 + (3 * p + 6) * r + 3) / 3
    slope = (p**3 + 8 * p**2 + 19 * p + 12) * r + p**2 + 7 * p + 12
    return v, -(rest ** (p + 1)) * slope / 3


class WeakTest:
    """Test functions v_j(x) = W(|x - c_j| / R) and the places where their integrals are taken.

    Parameters
    ----------
    dim : int
        Of the unit cube.
    n_mesh : int
        Places an axis of the mesh over [-1, 1]^dim; those inside the open ball are used.
    radius : float
        R, with room for a ball in the cube: 2 R at most 1.

    Attributes
    ----------
    v : torch.Tensor
        (places,) float64: values of a test function at its places.
    gradient : torch.Tensor
        (places, dim) float64, of x, so divided by R.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or no place is inside the ball.
    """

    def __init__(self, dim: int, n_mesh: int, radius: float) -> None:
        require_counts(dim=dim, n_mesh=n_mesh)
        if not 0 < radius <= 0.5:
            raise ValueError(
                f"radius={radius}: must be positive and 2 · radius at most 1, for balls within the "
                "unit cube"
            )
        axis = torch.linspace(-1, 1, n_mesh, dtype=torch.float64)
        mesh = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
        self.dim, self.radius = dim, radius
        # The ends of an axis are on the ball, not in it: no rounding may decide that.
        self._mesh = mesh[mesh.norm(dim=1) < 1 - 1e-9]
        if len(self._mesh) == 0:
            raise ValueError(f"n_mesh={n_mesh}: no place is inside the ball; raise it to 3 or more")
        self.v, over_r = wendland(self._mesh.norm(dim=1), dim)
        self.gradient = over_r[:, None] * self._mesh / radius

    def sample(
        self, n_centers: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the places of random test functions.

        Centres are a Latin hypercube in [R, 1 - R]^dim: on each axis, one in each of n intervals.

        Parameters
        ----------
        n_centers : int
        generator : torch.Generator
        dtype : torch.dtype

        Returns
        -------
        torch.Tensor
            (n_centers, places, dim).

        Raises
        ------
        ValueError
            If ``n_centers`` is no positive int, or the radius is too small for float32.
        """
        require_counts(n_centers=n_centers)
        if self.radius < SMALLEST_RADIUS and dtype != torch.float64:
            raise ValueError(
                f"radius={self.radius}: must be at least {SMALLEST_RADIUS} in {dtype}, which else "
                "rounds the places of a ball away; raise it or use float64"
            )
        columns = [torch.randperm(n_centers, generator=generator) for _ in range(self.dim)]
        shift = torch.rand(n_centers, self.dim, generator=generator, dtype=torch.float64)
        unit = (torch.stack(columns, 1) + shift) / n_centers
        centers = self.radius + (1 - 2 * self.radius) * unit
        return (centers[:, None] + self.radius * self._mesh).to(dtype)

    def residual(self, flux: Tensor, f: float) -> Tensor:
        """Return the mean of s·∇v - f v over each ball: of -∇·s = f tested by v.

        Parameters
        ----------
        flux : torch.Tensor
            (batch, n_centers, places, dim): s.
        f : float

        Returns
        -------
        torch.Tensor
            (batch, n_centers).
        """
        weight = (self.gradient / len(self.v)).to(flux.dtype)
        return (flux * weight).sum((-2, -1)) - f * float(self.v.mean())
