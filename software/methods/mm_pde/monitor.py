"""What a mesh should do: monitors, how evenly a mesh spreads them, and the exact mesh of a line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sat.methods.problems.arguments import require_counts

Array = NDArray[np.float64]

LINE_CELLS = 4096
"""Of the quadrature of `move_1d`, with five Gauss points each."""


def require_strength(strength: float) -> None:
    """Raise ValueError for a strength that is negative or not finite."""
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength={strength}: must be finite and not negative; 0 moves nothing")


def monitor(grad_norm: Tensor, alpha: Tensor, strength: float) -> Tensor:
    """Return m = 1 + strength · |∇u| / α.

    Parameters
    ----------
    grad_norm : torch.Tensor
        (…): |∇u|.
    alpha : torch.Tensor
        Its mean over the domain, broadcast to it; where it is 0, m is 1.
    strength : float
        100 in the released code.

    Raises
    ------
    ValueError
        If the strength is negative or not finite.

    Source
    ------
    The authors' ``mesh/dmm.py``.
    """
    require_strength(strength)
    rough = alpha > 0
    return 1 + strength * grad_norm / torch.where(rough, alpha, torch.ones_like(alpha)) * rough


def equidistribution(x: Tensor, jacobian: Tensor, m: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the deviation of m det J / θ over the nodes of each mesh (batch,); 0 is a perfect one.

    θ is the mean of m det J, which is ∫ m dx by the nodes.

    Parameters
    ----------
    x : torch.Tensor
        (batch, nodes, 2): moved nodes, of a uniform mesh.
    jacobian : torch.Tensor
        (batch, nodes, 2, 2): ∂x/∂ξ.
    m : callable
        Places (batch, nodes, 2) to the monitor there (batch, nodes).
    """
    share = m(x) * determinant(jacobian)
    return share.std(1, correction=0) / share.mean(1)


def determinant(jacobian: Tensor) -> Tensor:
    """Return (…) of (…, 2, 2)."""
    a, b = jacobian[..., 0, 0] * jacobian[..., 1, 1], jacobian[..., 0, 1] * jacobian[..., 1, 0]
    return a - b


def move_1d(m: Callable[[Array], Array], n: int) -> Array:
    """Return the nodes (n,) of [0, 1] between which m has equal integrals, exactly.

    The integral from 0 on, over the whole one, is inverted by Newton's method.

    Parameters
    ----------
    m : callable
        Places (…) float64 to values (…), positive; smooth over 1/4096.
    n : int
        Nodes, at least 2; those at the ends stay there.

    Raises
    ------
    ValueError
        If n is too small, or m is not positive and finite.
    """
    if not isinstance(n, int) or n < 2:
        raise ValueError(f"n={n!r}: must be an int of at least 2, the ends")
    points, weights = np.polynomial.legendre.leggauss(5)
    ends = np.linspace(0, 1, LINE_CELLS + 1)

    def integral(start: Array, stop: Array) -> Array:
        """Return ∫ m from start to stop (…), within a cell."""
        half = (stop - start) / 2
        places = (start + half)[..., None] + half[..., None] * points
        values = np.asarray(m(places), dtype=np.float64)
        if not ((values > 0) & (values < np.inf)).all():
            raise ValueError("m is not positive and finite everywhere: no mesh spreads it evenly")
        return np.asarray(half * (values @ weights))

    below = np.concatenate([[0.0], np.cumsum(integral(ends[:-1], ends[1:]))])
    wanted = np.linspace(0, 1, n) * below[-1]
    cell = np.clip(np.searchsorted(below, wanted, "right") - 1, 0, LINE_CELLS - 1)
    start = ends[cell]
    x = start + (wanted - below[cell]) / (below[cell + 1] - below[cell]) / LINE_CELLS
    for _ in range(4):
        x = x - (below[cell] + integral(start, x) - wanted) / np.asarray(m(x))
    return np.clip(x, 0, 1)


class Fields(Protocol):
    """Scalar fields on the unit square, as a mover is trained on them."""

    @property
    def samples(self) -> Tensor:
        """What the mover sees: (fields, size, size), node [i, j] at (i, j) / (size - 1)."""

    @property
    def alpha(self) -> Tensor:
        """(fields,): the mean of |∇u| over the square."""

    def gradient(self, x: Tensor) -> Tensor:
        """Return ∇u (fields, nodes, 2) at places of that shape, differentiable in them."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Tensor) -> Fields:
        """Return some of the fields, by their numbers (int64)."""


class GridFields:
    """Fields given at the nodes of a grid; ∇u by central differences, linear between nodes.

    Parameters
    ----------
    values : torch.Tensor
        (fields, size, size) real, node [i, j] at (i, j) / (size - 1); size at least 3.

    Raises
    ------
    ValueError
        If shapes do not fit or values are not finite.
    """

    def __init__(self, values: Tensor) -> None:
        if values.ndim != 3 or values.shape[1] != values.shape[2] or values.shape[1] < 3:
            raise ValueError(
                f"values have shape {tuple(values.shape)}: must be (fields, size, size) of at "
                "least 3 nodes an axis"
            )
        if not bool(values.isfinite().all()):
            raise ValueError("values: there are infinities or NaNs; a mesh needs finite fields")
        self.samples = values
        slopes = torch.gradient(values, spacing=1 / (values.shape[1] - 1), dim=(1, 2))
        self._slopes = torch.stack(slopes, 1)
        self.alpha = torch.linalg.vector_norm(self._slopes, dim=1).mean((1, 2))

    def gradient(self, x: Tensor) -> Tensor:
        """Return ∇u (fields, nodes, 2) at places of that shape."""
        # grid_sample takes the last axis first, and coordinates from -1 to 1.
        grid = (2 * x.flip(-1) - 1)[:, :, None]
        taken = functional.grid_sample(
            self._slopes.to(x.dtype), grid, padding_mode="border", align_corners=True
        )
        return taken[..., 0].mT

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, places: Tensor) -> GridFields:
        return GridFields(self.samples[places])


def sample_points(
    fields: Fields, n: int, strength: float, generator: torch.Generator, oversample: int = 40
) -> Tensor:
    """Return places (fields, n, 2) drawn in proportion to the monitor, so that fronts are seen.

    Parameters
    ----------
    fields : Fields
    n : int
        Places of each field, drawn from ``oversample`` times as many uniform ones.
    strength : float
        As `monitor`.
    generator : torch.Generator
    oversample : int
    """
    require_counts(n=n, oversample=oversample)
    many = torch.rand(len(fields), oversample * n, 2, generator=generator)
    size = torch.linalg.vector_norm(fields.gradient(many), dim=-1)
    m = monitor(size, fields.alpha[:, None], strength)
    chosen = torch.multinomial(m, n, generator=generator)
    return many.gather(1, chosen[..., None].expand(-1, -1, 2))


def warn_constant(constant: Tensor) -> None:
    """Warn if any field (fields,) is constant, whose mesh stays uniform."""
    if bool(constant.any()):
        number = int(constant.nonzero()[0])
        warnings.warn(f"field {number} is constant: its mesh stays uniform", stacklevel=3)
