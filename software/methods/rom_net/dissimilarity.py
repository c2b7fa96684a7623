"""How unlike two solutions are: by the angle between them, between their spans, or by distance."""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 0.05
"""1 - cos² below which it is taken from what a projection leaves: the difference would cancel."""

AT_ONCE = 2**22
"""Numbers of the projections that are refined together."""


def sine_dissimilarity(u: Tensor, v: Tensor | None = None, mass: Tensor | None = None) -> Tensor:
    """Return the sine of the angle between snapshots: what projecting one on the other leaves.

    δ(u, v) = sqrt(1 - <u, v>² / (|u|² |v|²)); neither scale nor sign matters.

    Parameters
    ----------
    u : torch.Tensor
        (samples, n), taken as float64.
    v : torch.Tensor, optional
        (others, n); u itself, with an exactly zero diagonal, if not given.
    mass : torch.Tensor, optional
        (n, n), symmetric positive definite, of the inner product; the identity if not given.

    Returns
    -------
    torch.Tensor
        (samples, others) float64 within [0, 1].

    Raises
    ------
    ValueError
        If a snapshot is zero, not finite or of another length, or ``mass`` no inner product.

    Source
    ------
    arXiv 2103.13683, section 3; 2108.12291.
    """
    factor = mass_factor(mass, require_snapshots(u, "u").shape[1])
    a = unit_rows(whiten(require_snapshots(u, "u"), factor), "u")
    if v is None:
        return _with_itself(a[:, None])
    b = unit_rows(whiten(require_snapshots(v, "v", u.shape[1]), factor), "v")
    return _chordal(a[:, None], b[:, None])


def subspace_dissimilarity(bases: Tensor, mass: Tensor | None = None) -> Tensor:
    """Return the chordal distance between families of snapshots, over its largest.

    δ = sqrt(Σ (1 - s²) / r) of the cosines s of the principal angles; their squares sum up to the
    squares of all entries of Aᵀ M B, so no singular values are taken. r = 1 is the sine.

    Parameters
    ----------
    bases : torch.Tensor
        (families, n, r), orthonormal in ``mass``.
    mass : torch.Tensor, optional
        As of `sine_dissimilarity`.

    Returns
    -------
    torch.Tensor
        (families, families) float64, zero on the diagonal.

    Raises
    ------
    ValueError
        If a basis is not orthonormal, or ``mass`` no inner product.

    Source
    ------
    Golub and Van Loan, "Matrix computations", section 6.4.3.
    """
    if bases.ndim != 3 or 0 in bases.shape:
        raise ValueError(f"bases of shape {tuple(bases.shape)}: must be (families, n, r)")
    rows = bases.double().mT
    families, r, n = rows.shape
    white = whiten(rows.reshape(-1, n), mass_factor(mass, n)).view(families, r, n)
    gram = white @ white.mT
    off = (gram - torch.eye(r, dtype=gram.dtype)).abs().amax((1, 2))
    require_orthonormal(off)
    return _with_itself(white)


def euclidean_dissimilarity(
    u: Tensor, v: Tensor | None = None, mass: Tensor | None = None
) -> Tensor:
    """Return |u - v|; arguments, shapes and errors as of `sine_dissimilarity`, zeros allowed."""
    factor = mass_factor(mass, require_snapshots(u, "u").shape[1])
    a = whiten(require_snapshots(u, "u"), factor)
    b = a if v is None else whiten(require_snapshots(v, "v", u.shape[1]), factor)
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.fill_diagonal_(0) if v is None else distance


# --------------------------------------------------------------------------------- inner products


def mass_factor(mass: Tensor | None, n: int) -> Tensor | None:
    """Return L (n, n) float64 with mass = L Lᵀ, or None: rows times L have the plain product.

    Raises
    ------
    ValueError
        If ``mass`` is not (n, n), symmetric and positive definite.
    """
    if mass is None:
        return None
    mass = mass.double()
    if mass.shape != (n, n):
        raise ValueError(f"mass of shape {tuple(mass.shape)}: must be ({n}, {n}), as snapshots are")
    if not torch.allclose(mass, mass.mT, rtol=1e-10, atol=0):
        raise ValueError("mass is not symmetric: an inner product is; give (mass + mass.T) / 2")
    factor, info = torch.linalg.cholesky_ex(mass)
    if int(info):
        raise ValueError(
            f"mass is not positive definite (its first {int(info)} rows and columns are not): some "
            "snapshot has no length; leave out degrees of freedom without support"
        )
    return factor


def whiten(rows: Tensor, factor: Tensor | None) -> Tensor:
    """Return rows (count, n) times the factor of the mass."""
    return rows if factor is None else rows @ factor


def require_snapshots(u: Tensor, name: str, length: int | None = None) -> Tensor:
    """Return snapshots as float64; raise ValueError unless (samples, length) and finite."""
    if u.ndim != 2 or 0 in u.shape or (length is not None and u.shape[1] != length):
        wanted = "n" if length is None else length
        raise ValueError(f"{name} of shape {tuple(u.shape)}: must be (samples, {wanted})")
    bad = (~u.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(f"{name}[{int(bad[0])}] has NaNs or infinities: leave it out")
    return u.double()


def require_orthonormal(off: Tensor) -> None:
    """Raise ValueError if a basis is farther off orthonormal, (bases,), than float16 makes it."""
    worst = int(off.argmax())
    if not float(off[worst]) < 1e-2:
        raise ValueError(
            f"basis {worst} is {float(off[worst]):.3g} off orthonormal: must be so in the inner "
            "product of mass; make it by pod_basis(..., mass=mass)"
        )


def unit_rows(rows: Tensor, name: str) -> Tensor:
    """Return rows over their lengths; raise ValueError for one of length 0."""
    length = rows.norm(dim=1, keepdim=True)
    bad = (length[:, 0] == 0).nonzero()
    if len(bad):
        raise ValueError(
            f"{name}[{int(bad[0])}] is zero: it has no direction, so no angle; leave it out"
        )
    return rows / length


# --------------------------------------------------------------------------------------- formulas


def _with_itself(a: Tensor) -> Tensor:
    distance = _chordal(a, a)
    # By round-off δ(u, v) and δ(v, u) may differ in their last bits.
    return ((distance + distance.mT) / 2).fill_diagonal_(0)


def _chordal(a: Tensor, b: Tensor) -> Tensor:
    """Return distances (families, others) of orthonormal rows (families, r, n), (others, r, n)."""
    r, n = a.shape[1:]
    cosines = (a.reshape(-1, n) @ b.reshape(-1, n).mT).view(len(a), r, len(b), r)
    squares = (1 - cosines.square().sum((1, 3)) / r).clamp(0, 1)
    i, j = (squares < NEAR).nonzero(as_tuple=True)
    step = max(1, AT_ONCE // (n * r * r))
    for first, second in zip(i.split(step), j.split(step), strict=True):
        # 1 - c² = |b - c a|²; an error of c enters that squared.
        weights = cosines[first, :, second]
        inside = (weights[..., None] * a[first][:, :, None]).sum(1)
        squares[first, second] = (b[second] - inside).square().sum((1, 2)) / r
    return squares.sqrt()
