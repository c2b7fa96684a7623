"""Orthogonal bases for gradients, the choice of their columns, and what the choice leaves out."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

BASES = ("dct2", "dct3", "random", "identity")
NORMS = (1, 2)


def dct_matrix(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the orthonormal DCT-II matrix Q, computed in float64.

    ``Q[k, j] = sqrt(2 / n) cos(pi k (2 j + 1) / (2 n))``, row 0 times ``sqrt(1 / 2)``:
    ``Q @ x`` is the transform of x.

    Parameters
    ----------
    n : int
        At least 1.
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    torch.Tensor
        (n, n).

    Raises
    ------
    ValueError
        If ``n`` is no int of at least 1.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n={n!r}: must be an int of at least 1; give the length of a row")
    k = torch.arange(n, dtype=torch.float64)[:, None]
    # k (2j + 1) is exact, and modulo the period 4n the cosine's argument stays small.
    phase = (k * (2 * k.mT + 1)) % (4 * n)
    q = math.sqrt(2 / n) * torch.cos(math.pi * phase / (2 * n))
    q[0] *= math.sqrt(0.5)
    return q.to(dtype)


def dct(x: Tensor) -> Tensor:
    """Return the orthonormal DCT-II along the last axis, by one FFT of its length.

    Parameters
    ----------
    x : torch.Tensor
        (..., n) float32 or float64, n at least 1.

    Returns
    -------
    torch.Tensor
        (..., n).

    Raises
    ------
    ValueError
        If ``x`` has no such axis, or another dtype.

    Source
    ------
    Makhoul 1980, "A fast cosine transform in one and two dimensions".
    """
    if x.dtype not in (torch.float32, torch.float64) or not x.ndim or not x.shape[-1]:
        raise ValueError(
            f"x is {tuple(x.shape)} of {x.dtype}: must be (..., n) float32 or float64; convert it"
        )
    n = x.shape[-1]
    turned = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    angle = torch.arange(n, dtype=torch.float64) * (-math.pi / (2 * n))
    weight = torch.polar(torch.full((n,), math.sqrt(2 / n), dtype=torch.float64), angle)
    weight[0] *= math.sqrt(0.5)
    wide = torch.complex128 if x.dtype is torch.float64 else torch.complex64
    return (torch.fft.fft(turned) * weight.to(wide)).real


@lru_cache(maxsize=64)
def basis_matrix(basis: str, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the basis D whose columns are chosen from: one a size, shared, not to be changed.

    Parameters
    ----------
    basis : str
        ``"dct2"``: the transposed `dct_matrix`, so that ``a @ D`` is the DCT-II of each row;
        ``"dct3"``: that matrix itself; ``"random"``: Q of a Gaussian matrix, the same one each
        time; ``"identity"``.
    n : int
    dtype : torch.dtype

    Returns
    -------
    torch.Tensor
        (n, n), orthogonal.

    Raises
    ------
    ValueError
        If there is no such basis.
    """
    if basis == "dct2":
        return dct_matrix(n, dtype).mT.contiguous()
    if basis == "dct3":
        return dct_matrix(n, dtype)
    if basis == "random":
        gaussian = torch.randn(
            n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64
        )
        return torch.linalg.qr(gaussian)[0].to(dtype)
    if basis == "identity":
        return torch.eye(n, dtype=dtype)
    raise ValueError(f"basis={basis!r}: must be one of {', '.join(BASES)}; choose one")


def power_of_two(x: Tensor) -> float:
    """Return the largest power of two not above the largest magnitude; 1 for zeros.

    Operands divided by it have entries below 2, which float16 holds, and lose no bits.
    """
    top = float(x.abs().max()) if x.numel() else 0.0
    return 2.0 ** (math.frexp(top)[1] - 1) if 0 < top < math.inf else 1.0


def transform_rows(a: Tensor, basis: str | Tensor, transform: str = "product") -> Tensor:
    """Return ``a @ D``: as a product, after a scaling by a power of two, or by FFT.

    Parameters
    ----------
    a : torch.Tensor
        (rows, n) float32 or float64.
    basis : str or torch.Tensor
        A name of `basis_matrix`, or (n, n) orthogonal.
    transform : str
        ``"product"``, or ``"fft"`` (for ``"dct2"`` only), which is no product.
    """
    if isinstance(basis, str):
        if transform == "fft":
            return dct(a)
        if basis == "identity":
            return a
        basis = basis_matrix(basis, a.shape[-1], a.dtype)
    scale = power_of_two(a)
    return (a / scale) @ basis * scale


def choose(s: Tensor, rank: int, norm: int = 1) -> Tensor:
    """Return the places of the ``rank`` columns with the largest norms, ascending.

    Of equal norms the first columns win, so that the choice depends on nothing else.

    Parameters
    ----------
    s : torch.Tensor
        (rows, n).
    rank, norm : int
        At most n; 1 or 2.

    Returns
    -------
    torch.Tensor
        (rank,) int64.
    """
    scores = torch.linalg.vector_norm(s, norm, dim=0)
    return scores.sort(descending=True, stable=True).indices[:rank].sort().values


def select_columns(
    a: Tensor, basis: str | Tensor, rank: int, norm: int = 1
) -> tuple[Tensor, Tensor]:
    """Choose the columns of a basis that a matrix has most of itself in.

    With ``norm=2`` the kept energy is at least ``rank / n`` of the matrix's, for every matrix and
    every orthogonal basis; it is never above that of the leading singular vectors.

    Parameters
    ----------
    a : torch.Tensor
        (rows, n) float32 or float64.
    basis : str or torch.Tensor
        A name of `basis_matrix`, or (n, n) with orthonormal columns.
    rank : int
        1 to n.
    norm : int
        1 or 2: norm of the columns of ``a @ D`` that decides.

    Returns
    -------
    indices : torch.Tensor
        (rank,) int64, ascending.
    low : torch.Tensor
        (rows, rank): these columns of ``a @ D``.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    arXiv 2505.17967, section 3 (dynamic column selection).
    """
    _require(a, basis, rank, norm)
    s = transform_rows(a, basis)
    indices = choose(s, rank, norm)
    return indices, s[:, indices]


def projection_error(a: Tensor, basis: str | Tensor, rank: int, norm: int = 1) -> float:
    """Return ``‖A - a Pᵀ‖_F / ‖A‖_F`` for the columns of `select_columns`; 0 for a zero matrix.

    Computed from the columns that are left out, which loses no digits: the basis is orthogonal.
    """
    _require(a, basis, rank, norm)
    s = transform_rows(a, basis)
    left = torch.ones(s.shape[1], dtype=torch.bool)
    left[choose(s, rank, norm)] = False
    whole = float(torch.linalg.vector_norm(s, dtype=torch.float64))
    return (
        float(torch.linalg.vector_norm(s[:, left], dtype=torch.float64)) / whole if whole else 0.0
    )


def svd_error(a: Tensor, rank: int) -> float:
    """Return the least relative Frobenius error of any matrix of that rank; 0 for a zero matrix."""
    _require(a, "identity", rank, 1)
    values = torch.linalg.svdvals(a.double())
    whole = float(values.norm())
    return float(values[rank:].norm()) / whole if whole else 0.0


def require_rank(rank: int) -> None:
    """Raise unless ``rank`` is an int of at least 1."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank={rank!r}: must be an int of at least 1; a quarter of n is usual")


def require_norm(norm: int) -> None:
    """Raise unless ``norm`` is 1 or 2."""
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: must be 1 or 2; 1 is the paper's")


def _require(a: Tensor, basis: str | Tensor, rank: int, norm: int) -> None:
    if a.ndim != 2 or a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"a is {tuple(a.shape)} of {a.dtype}: must be (rows, n) float32 or float64; flatten "
            "it, or use a.float()"
        )
    n = a.shape[1]
    if isinstance(basis, Tensor):
        if basis.shape != (n, n):
            raise ValueError(
                f"basis is {tuple(basis.shape)}: must be {(n, n)}, as a has {n} columns"
            )
    elif basis not in BASES:
        raise ValueError(f"basis={basis!r}: must be one of {', '.join(BASES)}; choose one")
    require_rank(rank)
    if rank > n:
        raise ValueError(f"rank={rank}: must be at most {n}, the columns of a; lower it")
    require_norm(norm)
