"""From particles to tokens and fields, and back."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.embedding import SinCosEmbedding

Array = NDArray[np.float64]


def to_logscale(x: Tensor) -> Tensor:
    """Return sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def from_logscale(y: Tensor) -> Tensor:
    """Return sign(y) (e^|y| - 1): undo `to_logscale`."""
    return y.sign() * y.abs().expm1()


class SupernodePooling(nn.Module):
    """Particles to tokens: each of some supernodes takes the mean of messages of its neighbours.

    Parameters
    ----------
    d : int
    in_dim : int
        Features of a particle.
    ndim : int
    radius : float
        Within which neighbours lie; itself is one.
    max_degree : int
        The nearest so many.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Alkin et al., "Universal physics transformers", arXiv 2402.12365, section 3.2.
    """

    def __init__(self, d: int, in_dim: int, ndim: int, radius: float, max_degree: int = 32) -> None:
        super().__init__()
        require_counts(d=d, in_dim=in_dim, ndim=ndim, max_degree=max_degree)
        if not 0 < radius < math.inf:
            raise ValueError(f"radius={radius}: must be positive and finite")
        self.radius, self.max_degree = radius, max_degree
        self.lift = nn.Linear(in_dim, d)
        self.place = SinCosEmbedding(d, ndim)
        self.message = nn.Sequential(nn.Linear(2 * d, d), nn.GELU(), nn.Linear(d, d))

    def forward(self, features: Tensor, positions: Tensor, supernodes: Tensor) -> Tensor:
        """Return tokens (supernodes, d) of one sample.

        Parameters
        ----------
        features : torch.Tensor
            (particles, in_dim).
        positions : torch.Tensor
            (particles, ndim).
        supernodes : torch.Tensor
            (supernodes,) int64: which particles they are.
        """
        places = positions.detach().cpu().double().numpy()
        tree = cKDTree(places)
        most = min(self.max_degree, len(places))
        _, near = tree.query(
            places[supernodes.cpu().numpy()], most, distance_upper_bound=self.radius * (1 + 1e-12)
        )
        near = near.reshape(len(supernodes), most)
        node, column = np.nonzero(near < len(places))
        source = torch.from_numpy(near[node, column])
        target = torch.from_numpy(node)
        x = self.lift(features) + self.place(positions)
        messages = self.message(torch.cat([x[source], x[supernodes[target]]], -1))
        sums = x.new_zeros(len(supernodes), x.shape[1]).index_add(0, target, messages)
        counts = torch.bincount(target, minlength=len(supernodes))
        return sums / counts[:, None]


def sample_particles(
    solid_fraction: Tensor, n: int, box: Tensor, generator: torch.Generator
) -> Tensor:
    """Return n places drawn with a density that follows a field, by rejection.

    Parameters
    ----------
    solid_fraction : torch.Tensor
        (*grid): clamped to [0, 1].
    n : int
    box : torch.Tensor
        (2, ndim): lower and upper ends of the grid.
    generator : torch.Generator

    Returns
    -------
    torch.Tensor
        (n, ndim).

    Raises
    ------
    ValueError
        If the field is 0 everywhere or not finite, or shapes do not fit.
    """
    require_counts(n=n)
    if box.shape != (2, solid_fraction.ndim):
        raise ValueError(f"box has shape {tuple(box.shape)}: must be (2, {solid_fraction.ndim})")
    share = solid_fraction.clamp(0, 1)
    top = float(share.max())
    if not top > 0:
        raise ValueError("solid_fraction is 0 everywhere: no place to put particles")
    sizes = torch.tensor(share.shape)
    found: list[Tensor] = []
    count = 0
    while count < n:
        unit = torch.rand(4 * n, share.ndim, generator=generator, dtype=torch.float64)
        cell = (unit * sizes).long().clamp(max=sizes - 1)
        kept = torch.rand(4 * n, generator=generator) < share[tuple(cell.T)] / top
        found.append(unit[kept])
        count += int(kept.sum())
    unit = torch.cat(found)[:n].to(box.dtype)
    return box[0] + unit * (box[1] - box[0])


def occupancy(positions: Array, radii: Array, grid: tuple[int, int], box: Array) -> Array:
    """Return the share of each cell's area that discs cover, (*grid), by 8 x 8 places a cell.

    Parameters
    ----------
    positions : numpy.ndarray
        (n, 2).
    radii : numpy.ndarray
        (n,).
    grid : tuple of int
        Cells along x and y.
    box : numpy.ndarray
        (2, 2): lower and upper ends.
    """
    fine = 8
    axes = [
        np.linspace(low, high, fine * cells, endpoint=False) + (high - low) / (2 * fine * cells)
        for low, high, cells in zip(*box, grid, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    tree = cKDTree(positions)
    # The nearest few: with radii alike, one that covers a place is among them.
    distance, disc = tree.query(places, min(3, len(radii)))
    distance, disc = distance.reshape(len(places), -1), disc.reshape(len(places), -1)
    covered = (distance < radii[disc]).any(1)
    shape = grid[0], fine, grid[1], fine
    return np.asarray(covered.reshape(shape).mean((1, 3)))


def smooth(field: Array) -> Array:
    """Return (…, cells x, cells y) under a Gaussian of one cell; edges reflect, mass stays."""
    return np.asarray(gaussian_filter(field, (0,) * (field.ndim - 2) + (1, 1), mode="reflect"))


def residence_time(inside: NDArray[np.bool_], times: Array) -> Array:
    """Return when each disc left (n,), of whether it is inside (times, n); the end if never."""
    gone = ~inside
    first = np.where(gone.any(0), gone.argmax(0), len(times) - 1)
    return np.asarray(times[first])


def mixing(positions: Array, marked: NDArray[np.bool_], grid: tuple[int, int], box: Array) -> Array:
    """Return the share of marked particles by cell, smoothed by a Gaussian of one cell; (*grid).

    0 where there are none.
    """
    low, high = box
    edges = [np.linspace(a, b, cells + 1) for a, b, cells in zip(low, high, grid, strict=True)]

    def counts(x: Array) -> Array:
        return smooth(np.histogramdd(x, bins=edges)[0])

    whole, part = counts(positions), counts(positions[marked])
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 1e-12)
