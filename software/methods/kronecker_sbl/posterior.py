"""The posterior of x under a Kronecker prior, in the space of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.kronecker_sbl.dictionary import kron, mode_products
from sat.methods.problems.scaling import power_of_two


@dataclass(frozen=True)
class Posterior:
    """x given y.

    Parameters
    ----------
    mean : torch.Tensor
        (N_1, …, N_I), y's dtype.
    variance : torch.Tensor
        (N_1, …, N_I), real; not negative.
    cost : float
        log|Σ_y| + yᴴ Σ_y⁻¹ y, Σ_y = A diag(g) Aᴴ + noise: what EM lowers, twice (real) or once
        (complex) the negative log evidence but for a constant.
    residual : float
        ‖y - A mean‖².
    spent : float
        Degrees of freedom that the fit spends, sum of 1 - variance / g.
    """

    mean: Tensor
    variance: Tensor
    cost: float
    residual: float
    spent: float


def posterior(
    y: Tensor, factors: Sequence[Tensor], gammas: Sequence[Tensor], noise_var: float
) -> Posterior:
    """Return mean and variances of x given y = (A_1 ⊗ … ⊗ A_I) x + noise, x ~ N(0, diag(g)).

    Parameters
    ----------
    y : torch.Tensor
        (M_1, …, M_I), real or complex.
    factors : sequence of torch.Tensor
        (M_i, N_i), y's dtype.
    gammas : sequence of torch.Tensor
        (N_i,), positive, real: g = g_1 ⊗ … ⊗ g_I.
    noise_var : float
        Mean of |noise|², linear.

    Notes
    -----
    Of each G_i = A_i diag(g_i) A_iᴴ = U_i L_i U_iᴴ, M_i x M_i, all else follows: with
    D = 1 / (L_1 ⊗ … ⊗ L_I + noise_var) and B_i = A_iᴴ U_i the mean is g ∘ (⊗ B_i) D (⊗ U_iᴴ) y and
    the variance g - g² ∘ (⊗ |B_i|²) D. So ‖y - A mean‖² is noise_var² ‖D Uᴴ y‖², and what is spent
    the sum of L D: neither is a difference. The mean over the coefficients' side, Σ Aᴴ y / noise,
    divides one that cancels by the noise, and is lost to few bits.

    Source
    ------
    He, Joseph 2023, arXiv 2307.14719, section on complexity.
    """
    spectra, rotations = zip(
        *(_decompose(a, g) for a, g in zip(factors, gammas, strict=True)), strict=True
    )
    eigenvalues = kron(spectra)
    inverse = 1 / (eigenvalues + noise_var)
    turned = mode_products(y, [u.mH for u in rotations])
    weighted = inverse * turned
    back = [a.mH @ u for a, u in zip(factors, rotations, strict=True)]
    g = kron(gammas)
    mean = g * mode_products(weighted, back)
    explained = g * mode_products(inverse, [b.abs().square() for b in back])
    cost = (eigenvalues + noise_var).log().sum() + (turned.abs().square() * inverse).sum()
    return Posterior(
        mean,
        # Rounding may take more away than there is.
        (g * (1 - explained)).clamp(min=0),
        float(cost),
        float((noise_var * weighted).abs().square().sum()),
        float((eigenvalues * inverse).sum()),
    )


def _decompose(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (M_i,) and eigenvectors (M_i, M_i) of A diag(g) Aᴴ."""
    scale = power_of_two(float(g.max()))
    root = a * (g / scale).sqrt()
    # Both operands are rounded alike, so the product stays Hermitian and not negative.
    values, vectors = torch.linalg.eigh(root @ root.mH)
    return scale * values.clamp(min=0), vectors
