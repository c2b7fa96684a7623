"""M-steps: variances of Kronecker form from second moments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sat.methods.kronecker_sbl.dictionary import kron

FLOOR = 1e-14
"""Least second moment over the largest, so that 1 / g stays finite."""
SWEEP_TOL, MAX_SWEEPS = 1e-5, 100


def normalized(gammas: Sequence[Tensor]) -> list[Tensor]:
    """Return the same product with all factors but the last of unit length."""
    lengths = [g.norm() for g in gammas[:-1]]
    scaled = [g / length for g, length in zip(gammas, lengths, strict=False)]
    return [*scaled, gammas[-1] * math.prod(lengths)]


def floored(moments: Tensor) -> Tensor:
    """Return second moments, none below 1e-14 of the largest."""
    return moments.clamp(min=FLOOR * float(moments.max()))


def am_update(
    moments: Tensor,
    gammas: Sequence[Tensor],
    *,
    tol: float = SWEEP_TOL,
    max_sweeps: int = MAX_SWEEPS,
) -> list[Tensor]:
    """Return a stationary point of Σ log g + Σ d / g over g = g_1 ⊗ … ⊗ g_I, factor by factor.

    Parameters
    ----------
    moments : torch.Tensor
        d, (N_1, …, N_I), real, positive.
    gammas : sequence of torch.Tensor
        Where to start, (N_i,), positive. No sweep raises the sum above its value there.
    tol : float
        Stops once ‖g - g_old‖ is below this part of ‖g_old‖.
    max_sweeps : int

    Returns
    -------
    list of torch.Tensor
        (N_i,); all but the last of unit length.

    Source
    ------
    He, Joseph 2023, arXiv 2307.14719, AM-KroSBL: each factor in turn is the mean of d over all
    other axes, divided by the other factors.
    """
    moments = floored(moments)
    new = list(gammas)
    old = kron(new)
    for _ in range(max_sweeps):
        for i in range(len(new)):
            others = [g if j != i else torch.ones_like(g) for j, g in enumerate(new)]
            axes = [j for j in range(len(new)) if j != i]
            ratio = moments / kron(others)
            new[i] = ratio.mean(axes) if axes else ratio
        new = normalized(new)
        product = kron(new)
        moved = float((product - old).norm())
        if moved < tol * float(old.norm()):
            break
        old = product
    return new


def svd_update(moments: Tensor) -> list[Tensor]:
    """Return vectors whose Kronecker product is near d, by leading singular pairs.

    Parameters
    ----------
    moments : torch.Tensor
        d, (N_1, …, N_I), real, not negative. For two factors the product is d's best one; for
        more, pairs are split off one after the other, and the order of axes matters unless d is a
        product itself.

    Returns
    -------
    list of torch.Tensor
        (N_i,), not negative; all but the last of unit length.

    Source
    ------
    He, Joseph 2023, arXiv 2307.14719, SVD-KroSBL.
    """
    rest, gammas = floored(moments), []
    for size in moments.shape[:-1]:
        rest = rest.reshape(size, -1)
        scale = rest.max()
        # The Gram matrix is as small as the factor; of its eigenvectors only those of small values
        # are worse than singular vectors, and the last one is of the largest.
        left = torch.linalg.eigh((rest / scale) @ (rest / scale).mT)[1][:, -1].abs()
        gammas.append(left)
        rest = scale * (left @ (rest / scale))
    return [*gammas, rest.flatten()]
