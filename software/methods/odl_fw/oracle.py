"""The linear minimisation oracle of the spectral ball: the polar factor of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.orthogonal import frobenius_norm

ORACLES = ("svd", "newton_schulz")


def polar(g: Tensor, oracle: str = "svd", iterations: int = 20, tolerance: float = 0.0) -> Tensor:
    """Return the polar factor U Vᵀ of ``g = U diag(s) Vᵀ``, which maximises <S, g> in the ball.

    Newton-Schulz, ``X + (X - X Xᵀ X) / 2``, is products alone, two an iteration. Singular values
    rise to 1 from below: by 3/2 an iteration while small, quadratically at the end, so the result
    is in the ball whenever it stops. Directions that ``g`` has not stay 0 there; the SVD completes
    them arbitrarily. Both are optimal.

    Parameters
    ----------
    g : torch.Tensor
        (M, M), real floating point.
    oracle : {"svd", "newton_schulz"}
    iterations : int
        The most that Newton-Schulz takes.
    tolerance : float
        It stops after an iteration that changed X by less, in the Frobenius norm; what is left then
        is of the order of its square. 0: never.

    Returns
    -------
    torch.Tensor
        (M, M), of ``g``'s dtype; zeros for a zero ``g`` by Newton-Schulz.

    Raises
    ------
    TypeError
        If ``g`` is not real floating point.
    ValueError
        If it is not square or not finite, or an argument breaks its rule.

    Source
    ------
    Björck, Bowie 1971; Higham, "Functions of Matrices", 2008, section 8.3.
    """
    if not g.is_floating_point():
        raise TypeError(f"g has dtype {g.dtype}: must be real floating point; use g.float()")
    if g.ndim != 2 or g.shape[0] != g.shape[1] or not len(g):
        raise ValueError(f"g has shape {tuple(g.shape)}: must be (M, M), M at least 1")
    if not bool(g.isfinite().all()):
        raise ValueError("g is not finite: has no polar factor; look for overflow before it")
    require_oracle(oracle)
    require_counts(iterations=iterations)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: must be at least 0 and finite; 0 never stops")
    if oracle == "svd":
        u, _, vh = torch.linalg.svd(g)
        return u @ vh
    return _newton_schulz(g, iterations, tolerance)


def require_oracle(oracle: str) -> None:
    """Raise ValueError for an oracle that there is not."""
    if oracle not in ORACLES:
        raise ValueError(f"oracle={oracle!r}: must be one of {', '.join(ORACLES)}")


def _newton_schulz(g: Tensor, iterations: int, tolerance: float) -> Tensor:
    norm = frobenius_norm(g)
    if norm == 0:
        return torch.zeros_like(g)
    # In two steps, as a product of norms below 1e-38 would be 0 in float32.
    x = g / g.abs().max()
    x = x / frobenius_norm(x)
    gram = x @ x.mT
    # ‖X‖₂² = ‖X Xᵀ‖₂ is at most its largest absolute row sum: closer than the Frobenius norm, and
    # the first iteration wants X Xᵀ anyhow.
    largest = float(gram.abs().sum(1).max())
    x, gram = x / math.sqrt(largest), gram / largest
    for _ in range(iterations):
        change = torch.addmm(x, gram, x, alpha=-1).mul_(0.5)
        x = x + change
        if float(change.norm()) <= tolerance:
            break
        gram = x @ x.mT
    return x
