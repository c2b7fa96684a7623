"""Kronecker products of matrices, applied mode by mode and never formed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from sat.methods.problems.scaling import power_of_two

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
PARALLEL = 1 - 1e-12
"""Cosine of an angle of about 1e-6, below which two columns are the same direction."""


def mode_products(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Return a tensor with each of its last axes multiplied by a matrix.

    Parameters
    ----------
    x : torch.Tensor
        (…, n_1, …, n_I); axes before the last I are a batch, which makes the products taller.
    matrices : sequence of torch.Tensor
        I of them, (m_i, n_i), of x's dtype.

    Returns
    -------
    torch.Tensor
        (…, m_1, …, m_I): with rows in row-major order, ``(A_1 ⊗ … ⊗ A_I) vec(x)``.

    Notes
    -----
    Each is one product of all other axes by n_i by m_i. The tensor is divided by a power of two
    first and multiplied again after, which is exact: float16 then holds it.
    """
    batch = x.ndim - len(matrices)
    scale = power_of_two(float(x.abs().max())) if x.numel() else 1.0
    x = x / scale
    for matrix in reversed(matrices):
        # The last axis becomes the first behind the batch: after I turns, all are in place.
        x = (x @ matrix.mT).movedim(-1, batch)
    return x * scale


def kron(vectors: Sequence[Tensor]) -> Tensor:
    """Return the Kronecker product of I vectors (n_i,) as a tensor (n_1, …, n_I)."""
    return reduce(lambda a, b: a[..., None] * b, vectors)


class KroneckerDictionary:
    """The matrix A = A_1 ⊗ … ⊗ A_I, by its factors.

    Parameters
    ----------
    factors : list of torch.Tensor
        (M_i, N_i), real or complex floating point, of one dtype.

    Raises
    ------
    TypeError
        If a factor is no tensor of floating point, or their dtypes differ.
    ValueError
        If there is no factor, or one is not 2-D, has no columns or one of zeros only, or a number
        in it is not finite.
    """

    def __init__(self, factors: Sequence[Tensor]) -> None:
        if len(factors) == 0:
            raise ValueError("factors is empty: give at least one matrix")
        for i, factor in enumerate(factors):
            require_matrix(f"factors[{i}]", factor)
            if factor.dtype != factors[0].dtype:
                raise TypeError(
                    f"factors[{i}] has dtype {factor.dtype}, factors[0] {factors[0].dtype}: they "
                    "must agree; convert one"
                )
        self.factors = list(factors)
        self.rows = tuple(factor.shape[0] for factor in factors)
        """M_i."""
        self.columns = tuple(factor.shape[1] for factor in factors)
        """N_i."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of A: prod M_i, prod N_i."""
        return math.prod(self.rows), math.prod(self.columns)

    def matvec(self, x: Tensor) -> Tensor:
        """Return A x of x (…, prod N_i), as (…, prod M_i); the last factor's index runs fastest.

        Raises
        ------
        ValueError
            If the last axis has another length.
        """
        return self._apply("x", x, self.columns, self.factors)

    def rmatvec(self, y: Tensor) -> Tensor:
        """Return Aᴴ y of y (…, prod M_i), as (…, prod N_i).

        Raises
        ------
        ValueError
            If the last axis has another length.
        """
        return self._apply("y", y, self.rows, [factor.mH for factor in self.factors])

    def _apply(
        self, name: str, x: Tensor, sizes: tuple[int, ...], matrices: list[Tensor]
    ) -> Tensor:
        if x.ndim == 0 or x.shape[-1] != math.prod(sizes):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}: its last axis must be {math.prod(sizes)} = "
                f"{' x '.join(map(str, sizes))} long"
            )
        dtype = torch.promote_types(x.dtype, self.factors[0].dtype)
        tensor = x.to(dtype).unflatten(-1, sizes)
        made = mode_products(tensor, [matrix.to(dtype) for matrix in matrices])
        return made.flatten(-len(sizes))


def require_matrix(name: str, matrix: Tensor) -> None:
    """Raise unless this is a finite matrix of floating point without empty or zero columns."""
    if not isinstance(matrix, Tensor) or matrix.dtype not in DTYPES:
        kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(
            f"{name} is {kind}: must be a tensor, one of {', '.join(map(str, DTYPES))}; convert it"
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            f"{name} has shape {tuple(matrix.shape)}: must be 2-D with at least one row and column"
        )
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} has numbers that are not finite; take them out")
    zero = (matrix == 0).all(0).nonzero().flatten().tolist()
    if zero:
        raise ValueError(
            f"{name} has zeros only in columns {zero}: their entries never reach y; drop them"
        )


def warn_of_parallel_columns(name: str, matrix: Tensor) -> None:
    """Warn if two columns are equal up to a factor: their entries cannot be told apart."""
    # numpy's product: a rounded one would find columns parallel that are not.
    columns = matrix.detach().cpu().numpy().astype(np.complex128)
    columns /= np.linalg.norm(columns, axis=0)
    cosines = np.triu(np.abs(columns.conj().T @ columns), 1)
    pairs = np.argwhere(cosines > PARALLEL)
    if len(pairs):
        first, second = pairs[0]
        warnings.warn(
            f"{name}: {len(pairs)} pairs of columns are parallel, the first {first} and {second}; "
            "which of them carries an entry cannot be told, drop one of each",
            stacklevel=3,
        )
