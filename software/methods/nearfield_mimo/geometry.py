"""Antennas, voxels, and the matrix that takes reflectivities to stepped-frequency measurements."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

SPEED_OF_LIGHT = 299_792_458.0
"""In a vacuum, metres a second (exact: SI)."""

LEAST_WAVELENGTH, LARGEST_WAVELENGTH = 1e-3, 1.0
"""Wavelengths over the aperture beyond which units are likely to be mixed up."""


@dataclass(frozen=True)
class MimoArray:
    """Transmitters and receivers.

    Parameters
    ----------
    tx, rx : torch.Tensor
        (n_tx, 3) and (n_rx, 3), metres.

    Raises
    ------
    ValueError
        If they are no finite points.
    """

    tx: Tensor
    rx: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "tx", _points(self.tx, "tx"))
        object.__setattr__(self, "rx", _points(self.rx, "rx"))

    @classmethod
    def cross(cls, n_tx: int, n_rx: int, aperture_m: float) -> MimoArray:
        """Return a cross in the plane z = 0: transmitters along x, receivers along y.

        Parameters
        ----------
        n_tx, n_rx : int
            Equally spaced, the outermost at plus and minus half of the aperture; a single one is in
            the middle.
        aperture_m : float
            Length of either arm, metres.

        Raises
        ------
        ValueError
            If a count is no positive int, or the aperture not positive.
        """
        require_counts(n_tx=n_tx, n_rx=n_rx)
        if not 0 < aperture_m < math.inf:
            raise ValueError(f"aperture_m={aperture_m}: must be positive and finite, in metres")
        arms = []
        for axis, count in ((0, n_tx), (1, n_rx)):
            arm = torch.zeros(count, 3, dtype=torch.float64)
            if count > 1:
                arm[:, axis] = aperture_m * torch.linspace(-0.5, 0.5, count, dtype=torch.float64)
            arms.append(arm)
        return cls(*arms)


@dataclass(frozen=True)
class VoxelGrid:
    """Voxels at all places of three axes.

    Parameters
    ----------
    x, y, z : torch.Tensor
        Of 1 axis each, increasing, metres; kept as float64.

    Raises
    ------
    ValueError
        If an axis is not finite and increasing.
    """

    x: Tensor
    y: Tensor
    z: Tensor

    def __post_init__(self) -> None:
        for name in ("x", "y", "z"):
            axis = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            ok = axis.ndim == 1 and len(axis) and bool(axis.isfinite().all())
            if not ok or bool((axis.diff() <= 0).any()):
                raise ValueError(
                    f"{name}: an axis must be one row of finite, increasing places in metres; sort "
                    "it and take out what is not a number or there twice"
                )
            object.__setattr__(self, name, axis)

    @classmethod
    def box(
        cls,
        shape: tuple[int, int, int],
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
    ) -> VoxelGrid:
        """Return equally spaced voxels, the outermost on the faces of a box (metres)."""
        require_counts(nx=shape[0], ny=shape[1], nz=shape[2])
        axes = (
            torch.linspace(low, high, count, dtype=torch.float64)
            for count, (low, high) in zip(shape, (x, y, z), strict=True)
        )
        return cls(*axes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(nx, ny, nz)."""
        return len(self.x), len(self.y), len(self.z)

    @property
    def points(self) -> Tensor:
        """(nx·ny·nz, 3) float64, metres; z runs fastest."""
        return torch.cartesian_prod(self.x, self.y, self.z)


def born_matrix(
    tx: Tensor,
    rx: Tensor,
    voxels: Tensor | VoxelGrid,
    freqs: Tensor,
    *,
    spreading: bool = True,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Return the matrix A of the first Born approximation, y = A s.

    A[(k, t, r), n] = exp(-j k (R_t + R_r)) / (4π R_t R_r) with the wavenumber k = 2π f / c and the
    distances R_t, R_r from the antennas to voxel n: spherical waves there and back. Distances and
    phases (hundreds of radians) are float64 whatever ``dtype`` is.

    Parameters
    ----------
    tx, rx : torch.Tensor
        (Nt, 3) and (Nr, 3), metres.
    voxels : torch.Tensor or VoxelGrid
        (Nvox, 3), metres.
    freqs : torch.Tensor
        (Nf,), Hz, positive and increasing.
    spreading : bool
        False leaves the denominator out, as delay and sum does.
    dtype : torch.dtype
        complex64 or complex128.

    Returns
    -------
    torch.Tensor
        (Nf·Nt·Nr, Nvox): receivers run fastest, frequencies slowest.

    Raises
    ------
    ValueError
        If points or frequencies are not as above, or an antenna lies on a voxel.
    TypeError
        If ``dtype`` is not complex64 or complex128.

    Warns
    -----
    UserWarning
        If a wavelength is beyond the aperture or below a thousandth of it, or no voxel is in the
        near field, up to 2 D² / λ: metres and millimetres, or Hz and GHz, may be mixed up.

    Source
    ------
    arXiv 2312.16959, section 2.
    """
    if dtype not in (torch.complex64, torch.complex128):
        raise TypeError(f"dtype={dtype}: must be torch.complex64 or torch.complex128")
    tx, rx = _points(tx, "tx"), _points(rx, "rx")
    places = _points(voxels.points if isinstance(voxels, VoxelGrid) else voxels, "voxels")
    freqs = torch.as_tensor(freqs, dtype=torch.float64)
    if freqs.ndim != 1 or not len(freqs) or not bool(freqs.isfinite().all()):
        raise ValueError(f"freqs of shape {tuple(freqs.shape)}: must be a row of finite numbers")
    if bool((freqs <= 0).any()) or bool((freqs.diff() <= 0).any()):
        raise ValueError(
            f"freqs from {float(freqs.min()):g} to {float(freqs.max()):g}: must be positive and "
            "increasing, in Hz; sort them"
        )
    to_tx, to_rx = _distances(tx, places), _distances(rx, places)
    for name, distances in (("tx", to_tx), ("rx", to_rx)):
        if float(distances.min()) == 0:
            antenna, voxel = divmod(int(distances.argmin()), len(places))
            raise ValueError(
                f"{name}[{antenna}] lies on voxel {voxel}: the field is infinite there; move the "
                "grid away from the antennas"
            )
    _doubt_units(torch.cat([tx, rx]), torch.cat([to_tx, to_rx]), freqs)
    length = to_tx[:, None] + to_rx
    weight = 1 / (4 * math.pi * to_tx[:, None] * to_rx) if spreading else torch.ones_like(length)
    a = torch.empty(len(freqs), *length.shape, dtype=dtype)
    for row, f in zip(a, freqs.tolist(), strict=True):
        row.copy_(torch.polar(weight, -2 * math.pi * f / SPEED_OF_LIGHT * length))
    return a.reshape(-1, len(places))


def _points(points: Tensor, name: str) -> Tensor:
    points = torch.as_tensor(points)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or points.is_complex():
        raise ValueError(f"{name} has shape {tuple(points.shape)}: must be real points (count, 3)")
    points = points.double()
    if not bool(points.isfinite().all()):
        raise ValueError(f"{name} has a coordinate that is not finite: must be metres; take it out")
    return points


def _distances(antennas: Tensor, places: Tensor) -> Tensor:
    """Return (antennas, voxels), by differences: torch's cdist multiplies, and cancels."""
    return (antennas[:, None] - places).norm(dim=2)


def _doubt_units(antennas: Tensor, distances: Tensor, freqs: Tensor) -> None:
    aperture = float((antennas.amax(0) - antennas.amin(0)).norm())
    longest, shortest = (SPEED_OF_LIGHT / float(f) for f in (freqs[0], freqs[-1]))
    if aperture == 0:
        return
    if longest > LARGEST_WAVELENGTH * aperture or shortest < LEAST_WAVELENGTH * aperture:
        warnings.warn(
            f"wavelengths of {shortest:g} to {longest:g} m at an aperture of {aperture:g} m: are "
            "positions in metres and frequencies in Hz?",
            stacklevel=3,
        )
    elif float(distances.min()) > 2 * aperture**2 / shortest:
        warnings.warn(
            f"all voxels are {float(distances.min()):g} m away or more, in the far field of an "
            f"aperture of {aperture:g} m: are voxels in metres, too?",
            stacklevel=3,
        )
