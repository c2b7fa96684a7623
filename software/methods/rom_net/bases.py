"""Bases by proper orthogonal decomposition: of all snapshots, and one of each cluster."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.rom_net.clustering import k_medoids
from sat.methods.rom_net.dissimilarity import (
    euclidean_dissimilarity,
    mass_factor,
    require_orthonormal,
    require_snapshots,
    sine_dissimilarity,
    unit_rows,
    whiten,
)

RANK = 1e-12
"""Singular values below this share of the largest are round-off."""

Dissimilarity = Callable[[Tensor, Tensor], Tensor]
"""Snapshots (samples, n) and (others, n) to (samples, others)."""


def pod_basis(
    u: Tensor,
    n_modes: int | None = None,
    tol: float | None = None,
    mass: Tensor | None = None,
    normalise: bool = False,
) -> Tensor:
    """Return the modes that hold most of the snapshots' energy; no mean is taken off.

    By snapshots: eigenvectors of the smaller Gram matrix. Its eigenvalues are squares, so small
    modes drown in the rounding of large ones; a second Gram matrix, of the rotated snapshots,
    brings them back.

    Parameters
    ----------
    u : torch.Tensor
        (samples, n).
    n_modes : int, optional
        Modes at most; fewer if snapshots span fewer.
    tol : float, optional
        Keep the fewest modes whose projection leaves at most this share of the root mean square.
    mass : torch.Tensor, optional
        (n, n) of the inner product; the identity if not given.
    normalise : bool
        Whether each snapshot counts with length 1.

    Returns
    -------
    torch.Tensor
        (n, modes) float64, orthonormal in ``mass``, by energy.

    Raises
    ------
    ValueError
        If neither or both of ``n_modes`` and ``tol`` are given, one breaks its rule, all
        snapshots are zero, or ``mass`` is no inner product.

    Source
    ------
    Sirovich 1987, Quarterly of Applied Mathematics 45 (snapshots).
    """
    _require_size(n_modes, tol)
    factor = mass_factor(mass, require_snapshots(u, "u").shape[1])
    rows = whiten(require_snapshots(u, "u"), factor)
    if normalise:
        rows = unit_rows(rows, "u")
    wide = rows.shape[0] <= rows.shape[1]
    rotated = rows if wide else rows.mT
    rotation = torch.eye(len(rotated), dtype=rotated.dtype)
    for _ in range(2):
        _, vectors = torch.linalg.eigh(rotated @ rotated.mT)
        vectors = vectors.flip(1)
        rotated, rotation = vectors.mT @ rotated, rotation @ vectors
    sizes, order = rotated.norm(dim=1).sort(descending=True)
    if float(sizes[0]) == 0:
        raise ValueError("u: all snapshots are zero, so there is no mode; leave them out")
    rank = int((sizes > RANK * sizes[0]).sum())
    if tol is not None:
        left = (sizes.square().flip(0).cumsum(0).flip(0) / sizes.square().sum()).sqrt()
        n_modes = int((left > tol).sum())
    kept = order[: min(n_modes or 1, rank)]
    modes = (
        (rotated[kept] / rotated[kept].norm(dim=1, keepdim=True)).mT if wide else rotation[:, kept]
    )
    modes, _ = torch.linalg.qr(modes)
    if factor is None:
        return modes
    return torch.linalg.solve_triangular(factor.mT, modes, upper=True)


def projection_error(u: Tensor, basis: Tensor, mass: Tensor | None = None) -> Tensor:
    """Return |u - V Vᵀ M u| / |u|, what a basis leaves of each snapshot.

    Parameters
    ----------
    u : torch.Tensor
        (samples, n), none of them zero.
    basis : torch.Tensor
        (n, modes), orthonormal in ``mass``.
    mass : torch.Tensor, optional
        (n, n); the identity if not given.

    Returns
    -------
    torch.Tensor
        (samples,) float64. Its largest is the set's empirical Kolmogorov width by this basis.

    Raises
    ------
    ValueError
        If sizes do not fit, the basis is not orthonormal, or a snapshot is zero.
    """
    rows = require_snapshots(u, "u")
    n = rows.shape[1]
    if basis.ndim != 2 or len(basis) != n:
        raise ValueError(f"basis of shape {tuple(basis.shape)}: must be ({n}, modes)")
    factor = mass_factor(mass, n)
    rows = unit_rows(whiten(rows, factor), "u")
    modes = whiten(basis.double().mT, factor)
    gram = modes @ modes.mT
    require_orthonormal((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().amax()[None])
    return (rows - (rows @ modes.mT) @ modes).norm(dim=1)


class LocalBases:
    """A dictionary: snapshots in k clusters, and a basis of each.

    Parameters
    ----------
    k : int
        Clusters.
    n_modes : int, optional
        Modes of each basis; fewer where a cluster has fewer members.
    dissimilarity : {"sine", "euclidean"} or callable
        What clusters are made by; a callable takes (samples, n) and (others, n).
    tol : float, optional
        In place of ``n_modes``, as of `pod_basis`.
    mass : torch.Tensor, optional
        (n, n) of the one inner product of dissimilarities and bases.
    normalise : bool
        As of `pod_basis`.
    overlap : int
        How many of the nearest outsiders a cluster's basis is made of, too.
    strict : bool
        Whether a cluster of fewer members than modes is an error; else a warning.
    n_starts, seed : int
        Of `k_medoids`.

    Attributes
    ----------
    bases : list of torch.Tensor
        (n, modes) float64 each, orthonormal in ``mass``.
    medoids, labels : torch.Tensor
        As of `KMedoids`, of the snapshots last fitted.
    cost : float

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    arXiv 2103.13683, section 3; Amsallem and Haasdonk 2016, doi 10.1186/s40323-016-0059-7.
    """

    def __init__(
        self,
        k: int,
        n_modes: int | None = None,
        dissimilarity: str | Dissimilarity = "sine",
        *,
        tol: float | None = None,
        mass: Tensor | None = None,
        normalise: bool = False,
        overlap: int = 0,
        strict: bool = False,
        n_starts: int = 10,
        seed: int = 0,
    ) -> None:
        require_counts(k=k)
        known = {"sine": sine_dissimilarity, "euclidean": euclidean_dissimilarity}
        if isinstance(dissimilarity, str) and dissimilarity not in known:
            raise ValueError(
                f"dissimilarity={dissimilarity!r}: must be one of {', '.join(known)}, or a function"
            )
        if not isinstance(overlap, int) or overlap < 0:
            raise ValueError(f"overlap={overlap!r}: must be an int of at least 0")
        _require_size(n_modes, tol)
        require_counts(n_starts=n_starts)
        self.k, self.n_modes, self.tol, self.mass = k, n_modes, tol, mass
        self.normalise, self.overlap, self.strict = normalise, overlap, strict
        self.n_starts, self.seed = n_starts, seed
        self._named = known[dissimilarity] if isinstance(dissimilarity, str) else None
        self._given = None if isinstance(dissimilarity, str) else dissimilarity
        self.bases: list[Tensor] = []

    def fit(self, u: Tensor, features: Tensor | None = None) -> LocalBases:
        """Cluster snapshots and make the bases; return the dictionary itself.

        Parameters
        ----------
        u : torch.Tensor
            (samples, n).
        features : torch.Tensor, optional
            (samples, numbers): what is clustered in place of the snapshots; no mass applies.

        Raises
        ------
        ValueError
            If there are fewer samples than clusters, sizes do not fit, or, if strict, a cluster
            has fewer members than modes.
        """
        u = require_snapshots(u, "u")
        what = u if features is None else require_snapshots(features, "features")
        if len(what) != len(u):
            raise ValueError(f"{len(what)} features of {len(u)} snapshots: must be as many")
        self._featured = features is not None
        generator = torch.Generator().manual_seed(self.seed)
        between = self._between(what, None)
        found = k_medoids(between, self.k, self.n_starts, generator)
        self.medoids, self.labels, self.cost = found.medoids, found.labels, found.cost
        self._representatives = what[found.medoids]
        self.bases = []
        for number, medoid in enumerate(found.medoids):
            mine = found.labels == number
            members = mine.nonzero()[:, 0]
            self._require_members(number, len(members))
            far = between[:, medoid].masked_fill(mine, torch.inf)
            near = far.argsort()[: min(self.overlap, len(u) - len(members))]
            chosen = u[torch.cat([members, near])]
            self.bases.append(pod_basis(chosen, self.n_modes, self.tol, self.mass, self.normalise))
        return self

    def assign(self, u: Tensor) -> Tensor:
        """Return the cluster (samples,) int64 of the nearest medoid.

        Parameters
        ----------
        u : torch.Tensor
            (samples, n) snapshots, or features if clusters were made by them.

        Raises
        ------
        ValueError
            If nothing was fitted, or sizes do not fit.
        """
        self._require_fitted()
        return self._between(u, self._representatives).argmin(1)

    def projection_error(self, u: Tensor, labels: Tensor) -> Tensor:
        """Return what the bases of the labels leave of snapshots, (samples,) float64.

        Parameters
        ----------
        u : torch.Tensor
            (samples, n).
        labels : torch.Tensor
            (samples,) int64, from 0 to k - 1.

        Raises
        ------
        ValueError
            If nothing was fitted, sizes do not fit, or there is no basis of a label.
        """
        self._require_fitted()
        k = len(self.bases)
        if labels.shape != (len(u),) or bool(((labels < 0) | (labels >= k)).any()):
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} for {len(u)} snapshots: must be one each, "
                f"from 0 to {k - 1}; take those of assign(u)"
            )
        error = torch.empty(len(u), dtype=torch.float64)
        for number, basis in enumerate(self.bases):
            mine = labels == number
            if bool(mine.any()):
                error[mine] = projection_error(u[mine], basis, self.mass)
        return error

    def _between(self, u: Tensor, others: Tensor | None) -> Tensor:
        if self._named is not None:
            return self._named(u, others, None if self._featured else self.mass)
        assert self._given is not None
        return self._given(u, u if others is None else others)

    def _require_members(self, number: int, members: int) -> None:
        if self.n_modes is not None and members < self.n_modes:
            text = (
                f"cluster {number} has {members} members, fewer than n_modes={self.n_modes}: its "
                "basis has no more modes than that; lower k or n_modes"
            )
            if self.strict:
                raise ValueError(text)
            warnings.warn(text, stacklevel=3)

    def _require_fitted(self) -> None:
        if not self.bases:
            raise ValueError("these bases are of no snapshots yet: call fit first")


def _require_size(n_modes: int | None, tol: float | None) -> None:
    """Raise ValueError unless one of both is given, and can be met."""
    if (n_modes is None) == (tol is None):
        raise ValueError(f"n_modes={n_modes}, tol={tol}: give one of them")
    if n_modes is not None:
        require_counts(n_modes=n_modes)
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol={tol}: must be between 0 and 1, a share of the snapshots")
