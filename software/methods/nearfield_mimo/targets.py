"""Random extended objects, and noise on what is measured of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sat.methods.nearfield_mimo.geometry import VoxelGrid
from sat.methods.problems.arguments import require_counts

MOST_OBJECTS = 3
HALF_AXES = (0.07, 0.16)
"""Of an object, in extents of the grid."""
AMPLITUDES = (0.4, 1.0)


def random_extended_targets(
    n: int, grid: VoxelGrid, seed: int, *, random_phase: bool = True
) -> Tensor:
    """Return scenes of one to three ellipsoids and boxes, turned at random, with soft edges.

    Magnitudes fall from an object's amplitude to 0 linearly over a voxel; where objects overlap,
    the larger one counts.

    Parameters
    ----------
    n : int
    grid : VoxelGrid
        Of at least two voxels an axis.
    seed : int
    random_phase : bool
        Uniform phases, independent from voxel to voxel, as rough surfaces have. False makes all
        reflectivities real and positive, which back-projection finds far too easily.

    Returns
    -------
    torch.Tensor
        (n, nx, ny, nz) complex128, magnitudes in [0, 1].

    Raises
    ------
    ValueError
        If ``n`` is no positive int, or an axis of the grid has one voxel.
    """
    require_counts(n=n)
    if min(grid.shape) < 2:
        raise ValueError(f"grid of {grid.shape} voxels: must have two an axis at least")
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    axes = (grid.x, grid.y, grid.z)
    low = torch.stack([axis[0] for axis in axes])
    extent = torch.stack([axis[-1] - axis[0] for axis in axes])
    # Lengths are in extents of the grid, so that boxes of any shape hold objects that fill them.
    places = (grid.points - low) / extent
    pitch = 1 / min(count - 1 for count in grid.shape)
    scenes = torch.zeros(n, len(places), dtype=torch.float64)
    for scene in scenes:
        for _ in range(int(torch.randint(1, MOST_OBJECTS + 1, (), generator=generator))):
            half = uniform(3, low=HALF_AXES[0], high=HALF_AXES[1])
            centre = uniform(3, low=HALF_AXES[1], high=1 - HALF_AXES[1])
            turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
            # By sums, no product: a scene is the same wherever products are computed.
            scaled = ((places - centre)[:, None] * turn).sum(2).abs() / half
            box = float(uniform(1)) < 0.5
            radius = scaled.amax(1) if box else scaled.norm(dim=1)
            outside = (radius - 1) * float(half.min())
            amplitude = float(uniform(1, low=AMPLITUDES[0], high=AMPLITUDES[1]))
            torch.maximum(scene, amplitude * (0.5 - outside / pitch).clamp(0, 1), out=scene)
    phases = uniform(*scenes.shape, high=2 * math.pi) if random_phase else torch.zeros_like(scenes)
    return torch.polar(scenes, phases).reshape(n, *grid.shape)


def add_noise(y: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """Return measurements with complex Gaussian noise of a signal-to-noise ratio.

    Its variance is each sample's mean |y|² over 10^(snr_db / 10), one half in the real and one in
    the imaginary part.

    Parameters
    ----------
    y : torch.Tensor
        (batch, …) complex, without noise.
    snr_db : float
        Decibels.
    generator : torch.Generator

    Raises
    ------
    ValueError
        If ``snr_db`` is not finite, or ``y`` has no axis beside the batch.
    TypeError
        If ``y`` is real.
    """
    if not math.isfinite(snr_db):
        raise ValueError(f"snr_db={snr_db}: must be finite; for no noise, add none")
    if not y.is_complex():
        raise TypeError(f"y is {y.dtype}: measurements are complex; keep their phases")
    if y.ndim < 2:
        raise ValueError(f"y has shape {tuple(y.shape)}: must be (batch, …); add an axis")
    power = y.abs().square().flatten(1).mean(1)
    deviation = (power / 10 ** (snr_db / 10) / 2).sqrt().reshape(-1, *[1] * (y.ndim - 1))
    parts = torch.randn(*y.shape, 2, generator=generator, dtype=deviation.dtype)
    return y + deviation * torch.view_as_complex(parts)
