"""Masks before DSnoT: by magnitude, Wanda's or SparseGPT's score, by row or N:M."""

from __future__ import annotations

import torch
from torch import Tensor

from sat.methods.dsnot.statistics import ColumnStatistics

METHODS = ("magnitude", "wanda", "sparsegpt")
DAMPING = 0.01


def score(weight: Tensor, stats: ColumnStatistics | None, method: str = "wanda") -> Tensor:
    """Return how much each weight matters, float64.

    ``"magnitude"``: ``|W|``; ``"wanda"``: ``|W| sqrt(norm2)``; ``"sparsegpt"``: ``W² / d²``, d the
    diagonal of the upper Cholesky factor of ``(H + 0.01 mean(diag H) I)⁻¹``.

    Parameters
    ----------
    weight : torch.Tensor
        (outputs, inputs).
    stats : ColumnStatistics or None
        Of the inputs; ``"magnitude"`` needs none.
    method : str

    Returns
    -------
    torch.Tensor
        (outputs, inputs) float64.

    Raises
    ------
    ValueError
        If there is no such method, the weight is no finite matrix, or the statistics are missing,
        empty, of another width, or lack what the method needs.

    Source
    ------
    Sun et al. 2023 (Wanda); Frantar and Alistarh 2023 (SparseGPT).
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be one of {', '.join(METHODS)}; choose one")
    require_weight(weight)
    wide = weight.detach().double()
    if method == "magnitude":
        return wide.abs()
    stats = require_statistics(weight, stats)
    if method == "wanda":
        return wide.abs() * stats.norm2.sqrt()
    h = stats.hessian
    damping = DAMPING * float(h.diagonal().mean())
    if not damping > 0:
        raise ValueError("the calibration inputs are all zero: SparseGPT has nothing to go by")
    h.diagonal().add_(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    d = torch.linalg.cholesky(inverse, upper=True).diagonal()
    return wide.square() / d.square()


def initial_mask(
    weight: Tensor,
    stats: ColumnStatistics | None,
    *,
    method: str = "wanda",
    ratio: float | None = None,
    n: int | None = None,
    m: int | None = None,
) -> Tensor:
    """Return which weights are kept: of each row all but a share, or n of every m inputs.

    Of equal scores the first are pruned.

    Parameters
    ----------
    weight, stats, method
        As `score`.
    ratio : float
        Share that is pruned of each row, rounded down; within [0, 1).
    n, m : int
        Instead: how many are kept of every m consecutive inputs, 1 <= n < m.

    Returns
    -------
    torch.Tensor
        (outputs, inputs) bool, True where kept.

    Raises
    ------
    ValueError
        As `score`; if not just one of ``ratio`` and ``n, m`` is given, or it breaks its rule.
    """
    scores = score(weight, stats, method)
    if ratio is None:
        n, m = require_pattern(weight, n, m)
        groups = scores.view(len(scores), -1, m)
        pruned = groups.sort(dim=-1, stable=True).indices[..., : m - n]
        kept = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, pruned, False)
        return kept.view(scores.shape)
    if n is not None or m is not None:
        raise ValueError(f"ratio={ratio} with n={n}, m={m}: give either ratio or both n and m")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio}: must be at least 0 and below 1; 0.6 prunes 60 %")
    pruned = scores.sort(dim=-1, stable=True).indices[:, : int(ratio * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, pruned, False)


def require_weight(weight: Tensor) -> None:
    """Raise unless a weight is a finite matrix."""
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(
            f"weight is {tuple(weight.shape)} of {weight.dtype}: must be (outputs, inputs) of real "
            "floating point; flatten it"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight has NaNs or infinities: must be finite; repair the model first")


def require_statistics(weight: Tensor, stats: ColumnStatistics | None) -> ColumnStatistics:
    """Return statistics; raise unless they fit a weight."""
    if stats is None:
        raise ValueError("stats=None: only method='magnitude' needs none; give ColumnStatistics")
    if stats.columns != weight.shape[1]:
        raise ValueError(
            f"stats have {stats.columns} columns: must be {weight.shape[1]}, the inputs of weight; "
            "gather those of its own layer"
        )
    return stats


def require_pattern(weight: Tensor, n: int | None, m: int | None) -> tuple[int, int]:
    """Return n and m; raise unless 1 <= n < m and m divides the inputs of a weight."""
    for name, value in (("n", n), ("m", m)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{name}={value!r}: must be an int of at least 1; give ratio, or both n and m"
            )
    assert n is not None and m is not None
    if n >= m:
        raise ValueError(f"n={n}, m={m}: n must be below m; 2 and 8 keep 2 of 8")
    if weight.shape[1] % m:
        raise ValueError(
            f"m={m}: must divide the {weight.shape[1]} inputs of weight; choose another, or skip "
            "this layer"
        )
    return n, m
