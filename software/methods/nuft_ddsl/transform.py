"""Exact Fourier coefficients of simplex meshes on a uniform grid of frequencies.

Source: Jiang, Lansigan, Marcus, Nießner 2019, arXiv 1901.11082 (DDSL); Jiang, Wang, Huang, Marcus,
Nießner 2019, arXiv 1901.02070 (non-uniform geometric signals).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from sat.methods.nuft_ddsl.integrals import simplex_integral
from sat.methods.nuft_ddsl.meshes import (
    boundary_to_simplices,
    require_elements,
    require_vertices,
    simplex_content,
    warn_of_flat,
)
from sat.methods.problems.arguments import require_counts

MODES = ("density", "mass")


def frequencies(res: Sequence[int], period: Sequence[float]) -> list[Tensor]:
    """Return angular frequencies of each axis, radians a unit: all, and half of the last one's.

    Parameters
    ----------
    res : sequence of int
        Modes of each axis.
    period : sequence of float
        Of each axis, in units of the vertices.

    Returns
    -------
    list of torch.Tensor
        (res,) float64 in the order of ``fftfreq``; of the last axis (res // 2 + 1,).
    """
    numbers = [torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in res[:-1]]
    numbers.append(torch.fft.rfftfreq(res[-1], 1 / res[-1], dtype=torch.float64))
    return [2 * math.pi / t * m for m, t in zip(numbers, period, strict=True)]


def simplex_ft(
    vertices: Tensor,
    elements: Tensor,
    densities: Tensor,
    res: int | Sequence[int],
    period: float | Sequence[float] = 1.0,
    j: int | None = None,
    mode: str = "density",
    elem_batch: int = 100,
) -> Tensor:
    """Return ``Σ ρ ∫ exp(-i k x) dx`` over the elements, at every frequency k of the grid.

    Parameters
    ----------
    vertices : torch.Tensor
        (…, n, d) floating point; leading axes are shapes of one topology. Phases are float64.
    elements : torch.Tensor
        (elements, j + 1) int64: points, lines, triangles, tetrahedra. If ``j`` is given as d, and
        elements have as many vertices: a closed boundary that is filled (`boundary_to_simplices`),
        of one density.
    densities : torch.Tensor
        (elements, channels) floating point: mass by content.
    res : int or sequence of int
        Modes an axis.
    period : float or sequence of float
        Length of the domain an axis.
    j : int, optional
        Order of the elements, by default one less than their vertices.
    mode : {"density", "mass"}
        ``"mass"``: the integral. ``"density"``: times the j-th power of grid points a unit, so that
        a raster's pixels inside are about ρ.
    elem_batch : int
        Elements at a time: without gradients, memory is batch · (j + 1) · modes.

    Returns
    -------
    torch.Tensor
        (…, res[0], …, res[-1] // 2 + 1, channels) complex128, differentiable in vertices and
        densities. At frequency 0 it is the mass, real.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Warns
    -----
    UserWarning
        If vertices lie outside of the period, where they wrap, or elements have no content.
    """
    require_vertices(vertices)
    require_elements(elements, vertices.shape[-2])
    dim = vertices.shape[-1]
    res, period = _grid(res, period, dim)
    columns = elements.shape[1]
    order = columns - 1 if j is None else j
    fill = order == columns == dim
    if not fill and order != columns - 1:
        raise ValueError(
            f"elements of {columns} vertices with j={j}: must have j + 1, or j = d = {dim} to fill "
            "a boundary"
        )
    if order > dim:
        raise ValueError(f"j={order} in {dim} dimensions: must be at most d; drop vertices")
    _require_densities(densities, len(elements), fill)
    require_counts(elem_batch=elem_batch)
    scale = _scale(res, period, order, mode)
    if bool((vertices < 0).any()) or bool((vertices > vertices.new_tensor(period)).any()):
        warnings.warn(
            f"vertices lie outside of the period {period} and wrap; move them, or raise the period",
            stacklevel=2,
        )
    x = vertices.double()
    if fill:
        x, elements = boundary_to_simplices(x, elements)
    contents = simplex_content(x, elements, signed=fill)
    if fill and bool((contents.detach().sum(-1) <= 0).any()):
        raise ValueError(
            "facets: the boundary has no content or a negative one; let it run counterclockwise, "
            "seen from outside, and holes the other way"
        )
    if not fill:
        warn_of_flat(contents.detach())
    masses = math.factorial(order) * contents[..., None] * densities.double()
    waves = frequencies(res, period)
    if order == 0:
        return scale * point_ft(x[..., elements[:, 0], :], masses, waves)
    parts = (
        _part(x[..., chosen, :], mass, waves)
        for chosen, mass in zip(
            elements.split(elem_batch), masses.split(elem_batch, dim=-2), strict=True
        )
    )
    return scale * reduce(torch.add, parts)


def polygon_ft(
    rings: Sequence[Tensor],
    res: int | Sequence[int],
    period: float | Sequence[float] = 1.0,
    density: float = 1.0,
    mode: str = "density",
    elem_batch: int = 100,
) -> Tensor:
    """Return the transform of polygons: rings counterclockwise, holes the other way.

    Parameters
    ----------
    rings : sequence of torch.Tensor
        (n, 2) floating point each, n at least 3, closed by itself: the first point is not
        repeated.
    res, period, mode, elem_batch
        As for `simplex_ft`.
    density : float

    Returns
    -------
    torch.Tensor
        (res[0], res[1] // 2 + 1, 1) complex128.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.
    """
    if not rings:
        raise ValueError("rings=[]: must be at least one ring (n, 2)")
    edges, first = [], 0
    for ring in rings:
        require_vertices(ring)
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
            raise ValueError(f"ring of shape {tuple(ring.shape)}: must be (n, 2), n at least 3")
        if torch.equal(ring[0], ring[-1]):
            raise ValueError("ring: its last point repeats the first; leave it out")
        here = torch.arange(len(ring))
        edges.append(torch.stack([here, here.roll(-1)], 1) + first)
        first += len(ring)
    facets = torch.cat(edges)
    densities = torch.full((len(facets), 1), float(density), dtype=torch.float64)
    return simplex_ft(torch.cat(list(rings)), facets, densities, res, period, 2, mode, elem_batch)


def point_ft(points: Tensor, masses: Tensor, waves: Sequence[Tensor]) -> Tensor:
    """Return ``Σ m exp(-i k x)``: waves separate by axis, so it is one real product.

    Its rows are cosines and sines of all axes but the last, times masses, its columns those of the
    last.

    Parameters
    ----------
    points : torch.Tensor
        (…, n, d) float64.
    masses : torch.Tensor
        (…, n, channels) float64.
    waves : sequence of torch.Tensor
        `frequencies`.

    Returns
    -------
    torch.Tensor
        (…, modes of each axis, channels) complex128.
    """
    batch, channels = points.shape[:-2], masses.shape[-1]
    *leading, last = [points[..., axis, None] * k for axis, k in enumerate(waves)]  # (…, n, modes)
    phases = points.new_zeros(*points.shape[:-1], 1)
    for one in leading:
        phases = (phases[..., :, None] + one[..., None, :]).flatten(-2)
    heavy = torch.stack([phases.cos(), phases.sin()], -2)[..., None] * masses[..., None, None, :]
    rows = heavy.flatten(-3).mT
    columns = torch.cat([last.cos(), last.sin()], -1)
    product = (rows @ columns).unflatten(-1, (2, -1)).unflatten(-3, (2, -1, channels))
    cos, sin = product.unbind(-5)  # (…, rows, channels, 2, columns)
    real = cos[..., 0, :] - sin[..., 1, :]
    imaginary = -sin[..., 0, :] - cos[..., 1, :]
    made = torch.complex(real, imaginary).movedim(-2, -1)
    return made.reshape(*batch, *[len(k) for k in waves], channels)


def _part(corners: Tensor, masses: Tensor, waves: Sequence[Tensor]) -> Tensor:
    """Sum elements (…, e, j + 1, d) with masses (…, e, channels).

    Phases are sums of an axis's each, no product: rounded operands would shift them by more than
    all that is gained. The sum over elements is a product.
    """
    phases = torch.zeros_like(corners[..., :1])
    for axis, k in enumerate(waves):
        own = corners[..., axis, None] * k
        phases = (phases[..., :, None] + own[..., None, :]).flatten(-2)
    integrals = simplex_integral(phases.mT)  # (…, e, modes)
    product = masses.mT @ torch.view_as_real(integrals).flatten(-2)
    made = torch.view_as_complex(product.unflatten(-1, (-1, 2)).contiguous())
    return made.mT.unflatten(-2, [len(k) for k in waves])


def _grid(
    res: int | Sequence[int], period: float | Sequence[float], dim: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    sizes = (res,) * dim if isinstance(res, int) else tuple(res)
    lengths = (period,) * dim if isinstance(period, (int, float)) else tuple(period)
    if len(sizes) != dim or len(lengths) != dim:
        raise ValueError(
            f"res={res} and period={period}: must be one number, or one for each of {dim} axes"
        )
    for n in sizes:
        require_counts(res=n)
    for length in lengths:
        if not 0 < length < math.inf:
            raise ValueError(f"period={length}: must be positive and finite; 1.0 is the unit cube")
    return sizes, tuple(float(length) for length in lengths)


def _scale(res: tuple[int, ...], period: tuple[float, ...], order: int, mode: str) -> float:
    """The j-th power of grid points a unit; of unequal ones, where j = d, their product."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    if mode == "mass" or order == 0:
        return 1.0
    per_unit = [n / t for n, t in zip(res, period, strict=True)]
    if order == len(res):
        return math.prod(per_unit)
    if not all(math.isclose(n, per_unit[0]) for n in per_unit):
        raise ValueError(
            f"res={res} over period={period} in mode 'density': a unit of content below the "
            "dimension needs as many grid points a unit on every axis; use mode='mass'"
        )
    return float(per_unit[0] ** order)


def _require_densities(densities: Tensor, count: int, fill: bool) -> None:
    if not densities.is_floating_point():
        raise TypeError(
            f"densities have dtype {densities.dtype}: must be floating point; use "
            "densities.double()"
        )
    if densities.ndim != 2 or len(densities) != count or densities.shape[1] == 0:
        raise ValueError(
            f"densities have shape {tuple(densities.shape)}: must be ({count}, channels), a row "
            "for each element"
        )
    if not bool(torch.isfinite(densities).all()):
        raise ValueError("densities have infinities or NaNs: must be finite; use 0 for nothing")
    if fill and not bool((densities == densities[0]).all()):
        raise ValueError(
            "densities differ between facets of a boundary that is filled: must be one; fill each "
            "part by a call of its own, and add the results"
        )
