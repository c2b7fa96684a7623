"""Simplex meshes: contents, boundaries that close, and what is refused."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import torch
from torch import Tensor


def simplex_content(vertices: Tensor, elements: Tensor, signed: bool = False) -> Tensor:
    """Return lengths, areas or volumes of simplices; 1 for points.

    Parameters
    ----------
    vertices : torch.Tensor
        (…, n, d) floating point.
    elements : torch.Tensor
        (elements, j + 1) int64, places of vertices, j ≤ d.
    signed : bool
        By the determinant, positive where vertices turn as the axes do; needs j = d. Else by
        Gram's, the root of which has gradient 0 where the content is 0.

    Returns
    -------
    torch.Tensor
        (…, elements) of ``vertices``' dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.
    """
    require_vertices(vertices)
    require_elements(elements, vertices.shape[-2])
    order, dim = elements.shape[1] - 1, vertices.shape[-1]
    if order > dim or (signed and order < dim):
        need = "j = d" if signed else "j <= d"
        raise ValueError(
            f"elements of {order + 1} vertices in {dim} dimensions, signed={signed}: {need} is "
            "needed; give other elements"
        )
    corners = vertices[..., elements, :]
    edges = corners[..., 1:, :] - corners[..., :1, :]
    if order == 0:
        return torch.ones_like(corners[..., 0, 0])
    if signed:
        return _determinant(edges) / math.factorial(order)
    gram = _determinant((edges[..., :, None, :] * edges[..., None, :, :]).sum(-1))
    flat = gram <= 0
    return torch.where(flat, 1.0, gram).sqrt() * ~flat / math.factorial(order)


def _determinant(a: Tensor) -> Tensor:
    """Of (…, n, n), n ≤ 3, written out: gradients exist for singular ones, too."""
    if a.shape[-1] == 1:
        return a[..., 0, 0]
    if a.shape[-1] == 2:
        return a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]
    return (a[..., 0, :] * torch.linalg.cross(a[..., 1, :], a[..., 2, :])).sum(-1)


def boundary_to_simplices(vertices: Tensor, facets: Tensor) -> tuple[Tensor, Tensor]:
    """Return a closed boundary as signed simplices: each facet joined to a vertex at the origin.

    Signed contents add up to what is inside, wherever the origin lies; holes run the other way.

    Parameters
    ----------
    vertices : torch.Tensor
        (…, n, d) floating point, d 2 or 3.
    facets : torch.Tensor
        (facets, d) int64: edges of polygons, counterclockwise, or triangles, seen so from outside.

    Returns
    -------
    vertices : torch.Tensor
        (…, n + 1, d), the origin last.
    elements : torch.Tensor
        (facets, d + 1) int64, the origin first.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule, or the boundary has one: it does not close.
    """
    require_vertices(vertices)
    require_elements(facets, vertices.shape[-2])
    dim = vertices.shape[-1]
    if facets.shape[1] != dim or dim == 1:
        raise ValueError(
            f"facets of {facets.shape[1]} vertices in {dim} dimensions: must be edges in 2 or "
            "triangles in 3; give elements of one more vertex"
        )
    _require_closed(facets)
    origin = torch.zeros_like(vertices[..., :1, :])
    last = torch.full_like(facets[:, :1], vertices.shape[-2])
    return torch.cat([vertices, origin], -2), torch.cat([last, facets], 1)


def _require_closed(facets: Tensor) -> None:
    """Raise unless every end of an edge, or side of a triangle, is met once from each side."""
    count: Counter[tuple[int, ...]] = Counter()
    for facet in facets.tolist():
        if len(facet) == 2:
            count[(facet[0],)] -= 1
            count[(facet[1],)] += 1
        else:
            for a, b in ((facet[0], facet[1]), (facet[1], facet[2]), (facet[2], facet[0])):
                count[(min(a, b), max(a, b))] += 1 if a < b else -1
    for side, sum_ in count.items():
        if sum_:
            kind = f"vertex {side[0]}" if len(side) == 1 else f"side {side}"
            raise ValueError(
                f"facets: the boundary is open at {kind}; close it, turn facets that run the wrong "
                "way, and give vertices at one place one number"
            )


def normalize_vertices(vertices: Tensor, margin: float = 0.2) -> Tensor:
    """Return vertices moved and scaled, all axes alike, into the middle of the unit cube.

    Parameters
    ----------
    vertices : torch.Tensor
        (n, d) floating point, not all at one place.
    margin : float
        Left free on each side of the longest axis, from 0 to below 0.5.

    Returns
    -------
    torch.Tensor
        (n, d), within ``[margin, 1 - margin]``.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.
    """
    require_vertices(vertices)
    if vertices.ndim != 2:
        raise ValueError(
            f"vertices have shape {tuple(vertices.shape)}: must be (n, d), one shape at a time"
        )
    if not 0 <= margin < 0.5:
        raise ValueError(f"margin={margin}: must be from 0 to below 0.5; 0.2 leaves room for tails")
    low, high = vertices.amin(-2), vertices.amax(-2)
    size = (high - low).amax()
    if not size > 0:
        raise ValueError("vertices: all lie at one place, there is no size to scale; give others")
    return (vertices - (low + high) / 2) / size * (1 - 2 * margin) + 0.5


def require_vertices(vertices: Tensor) -> None:
    """Raise unless vertices are finite points (…, n, d), d from 1 to 3."""
    if not vertices.is_floating_point():
        raise TypeError(
            f"vertices have dtype {vertices.dtype}: must be floating point; use vertices.double()"
        )
    if vertices.ndim < 2 or vertices.shape[-1] not in (1, 2, 3) or 0 in vertices.shape:
        raise ValueError(
            f"vertices have shape {tuple(vertices.shape)}: must be (..., n, d) with d 1, 2 or 3"
        )
    if not bool(torch.isfinite(vertices).all()):
        raise ValueError("vertices have infinities or NaNs: must be finite; leave those points out")


def require_elements(elements: Tensor, count: int) -> None:
    """Raise unless elements (elements, columns) name vertices."""
    if elements.dtype != torch.int64:
        raise TypeError(f"elements have dtype {elements.dtype}: must be int64; use elements.long()")
    if elements.ndim != 2 or 0 in elements.shape or elements.shape[1] > 4:
        raise ValueError(
            f"elements have shape {tuple(elements.shape)}: must be (elements, vertices of one), at "
            "least one element of 1 to 4"
        )
    low, high = int(elements.min()), int(elements.max())
    if low < 0 or high >= count:
        raise ValueError(
            f"elements name vertices {low} to {high}: must be from 0 to {count - 1}; renumber them"
        )


def warn_of_flat(contents: Tensor) -> None:
    """Warn of elements without content, which add nothing."""
    flat = int((contents == 0).sum())
    if flat:
        warnings.warn(
            f"{flat} elements have content 0 and add nothing; leave them out, or merge their "
            "vertices",
            stacklevel=3,
        )
