"""Images without a network: back-projection, Tikhonov's and the l1 solution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts


def as_measurements(y: Tensor, count: int) -> Tensor:
    """Return measurements as (…, count).

    Parameters
    ----------
    y : torch.Tensor
        (…, count) or (…, Nf, Nt, Nr) with Nf·Nt·Nr = count, complex.
    count : int
        Rows of A.

    Raises
    ------
    ValueError
        If shapes do not fit, or a number is not finite.
    TypeError
        If ``y`` is real: phases carry the distances.
    """
    if not y.is_complex():
        raise TypeError(f"y is {y.dtype}: measurements are complex; keep their phases")
    if y.ndim >= 3 and y.shape[-1] != count and math.prod(y.shape[-3:]) == count:
        y = y.flatten(-3)
    if y.ndim == 0 or y.shape[-1] != count:
        raise ValueError(
            f"y has shape {tuple(y.shape)}: must end in the {count} measurements that A has rows, "
            "or in frequencies, transmitters and receivers of that product"
        )
    if not bool(torch.view_as_real(y).isfinite().all()):
        raise ValueError("y has a number that is not finite: take that sample out")
    return y


def adjoint(A: Tensor, y: Tensor) -> Tensor:
    """Return Aᴴ y, the measurements back-projected: one product.

    Parameters
    ----------
    A : torch.Tensor
        (Nmeas, Nvox) complex.
    y : torch.Tensor
        (…, Nmeas) or (…, Nf, Nt, Nr), complex.

    Returns
    -------
    torch.Tensor
        (…, Nvox), of A's type. Its magnitude is the image; that of magnitudes is none.

    Raises
    ------
    ValueError, TypeError
        As `as_measurements`.
    """
    _require_matrix(A)
    return as_measurements(y, A.shape[0]).to(A.dtype) @ A.conj()


def tikhonov(A: Tensor, y: Tensor, mu: float) -> Tensor:
    """Return Aᴴ (A Aᴴ + mu I)⁻¹ y, the least of ‖A s - y‖² + mu ‖s‖².

    The Gram matrix is of the measurements, which are fewer than the voxels; its Cholesky factor is
    the host's.

    Parameters
    ----------
    A : torch.Tensor
        (Nmeas, Nvox) complex.
    y : torch.Tensor
        (…, Nmeas) or (…, Nf, Nt, Nr), complex.
    mu : float
        Positive, in units of |A|².

    Returns
    -------
    torch.Tensor
        (…, Nvox).

    Raises
    ------
    ValueError, TypeError
        As `as_measurements`, and if ``mu`` is not positive, or so small that A Aᴴ + mu I is not
        positive definite at the precision of its products.
    """
    _require_matrix(A)
    if not 0 < mu < math.inf:
        raise ValueError(f"mu={mu}: must be positive and finite; try the mean of |A|² times 10")
    y = as_measurements(y, A.shape[0]).to(A.dtype)
    gram = A @ A.mH
    gram.diagonal().add_(mu)
    factor, info = torch.linalg.cholesky_ex((gram + gram.mH) / 2)
    if int(info):
        raise ValueError(f"mu={mu}: A Aᴴ + mu I is not positive definite as rounded; raise it")
    rows = y.reshape(-1, A.shape[0])
    solved = torch.cholesky_solve(rows.mT, factor).mT
    return (solved @ A.conj()).reshape(*y.shape[:-1], A.shape[1])


def l1(A: Tensor, y: Tensor, weight: float, iterations: int = 50) -> Tensor:
    """Return nearly the least of ½ ‖A s - y‖² + w max|Aᴴ y| ‖s‖₁ by accelerated thresholding.

    Parameters
    ----------
    A : torch.Tensor
        (Nmeas, Nvox) complex.
    y : torch.Tensor
        (…, Nmeas) or (…, Nf, Nt, Nr), complex.
    weight : float
        w, in (0, 1): at 1 the solution is zero. Magnitudes of complex numbers make up the norm.
    iterations : int
        Two products each.

    Returns
    -------
    torch.Tensor
        (…, Nvox).

    Raises
    ------
    ValueError, TypeError
        As `as_measurements`, and if a number is out of its range.

    Source
    ------
    Beck, Teboulle 2009, section 4 (FISTA).
    """
    _require_matrix(A)
    require_counts(iterations=iterations)
    if not 0 < weight < 1:
        raise ValueError(f"weight={weight}: must be in (0, 1), 1 being where nothing is left")
    y = as_measurements(y, A.shape[0]).to(A.dtype)
    step = 1 / largest_eigenvalue(A)
    back = adjoint(A, y)
    threshold = step * weight * back.abs().amax(-1, keepdim=True)
    s = torch.zeros_like(back)
    ahead, t = s, 1.0
    for _ in range(iterations):
        moved = ahead - step * adjoint(A, ahead @ A.mT - y)
        size = moved.abs()
        new = moved * ((size - threshold).clamp_min(0) / size.clamp_min(1e-30))
        t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead = new + (t - 1) / t_new * (new - s)
        s, t = new, t_new
    return s


def largest_eigenvalue(A: Tensor, iterations: int = 30) -> float:
    """Return a bound on A Aᴴ's largest eigenvalue: power iterations, and 5 % more."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(A.shape[0], 2, generator=generator, dtype=torch.float64)
    v = torch.view_as_complex(start).to(A.dtype)
    value = 0.0
    for _ in range(iterations):
        v = v / v.norm()
        v = (v @ A.conj()) @ A.mT
        value = float(v.norm())
    return 1.05 * value


def normalize(b: Tensor, *, whole_batch: bool = False) -> Tensor:
    """Return volumes whose largest magnitude is 1.

    Parameters
    ----------
    b : torch.Tensor
        (batch, …), real or complex.
    whole_batch : bool
        Divide all by the batch's largest magnitude, as the released code does for Deep2S: what a
        sample gives then depends on what else is in its batch.

    Raises
    ------
    ValueError
        If a volume is all zero: nothing was measured.
    """
    peak = b.abs().flatten(1).amax(1)
    if bool((peak == 0).any()):
        raise ValueError(
            f"sample {int((peak == 0).nonzero()[0])} is all zero: cannot be normalised; take out "
            "what measured nothing"
        )
    if whole_batch:
        return b / peak.max()
    return b / peak.reshape(-1, *[1] * (b.ndim - 1))


def _require_matrix(A: Tensor) -> None:
    if A.ndim != 2 or not A.is_complex():
        raise ValueError(
            f"A has shape {tuple(A.shape)} and type {A.dtype}: must be a complex matrix "
            "(measurements, voxels); born_matrix makes one"
        )
