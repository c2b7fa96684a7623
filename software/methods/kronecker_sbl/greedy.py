"""Greedy baselines: orthogonal matching pursuit, of entries and of Kronecker blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sat.methods.kronecker_sbl.dictionary import (
    KroneckerDictionary,
    kron,
    mode_products,
    require_matrix,
)
from sat.methods.problems.arguments import require_counts


def omp(y: Tensor, a: Tensor, k: int) -> Tensor:
    """Return x with k entries, each the one that fits what the ones before leave best.

    Parameters
    ----------
    y : torch.Tensor
        (M,), of a's dtype.
    a : torch.Tensor
        (M, N), real or complex; columns are compared at unit length.
    k : int
        At most M and N. Fewer entries if y is fitted exactly before.

    Returns
    -------
    torch.Tensor
        (N,).

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Source
    ------
    Pati, Rezaiifar, Krishnaprasad 1993; least squares anew after each choice.
    """
    require_matrix("a", a)
    require_counts(k=k)
    if k > min(a.shape):
        raise ValueError(f"k={k}: must be at most rows and columns of a, {tuple(a.shape)}")
    _require_like("y", y, a, a.shape[0])
    lengths = torch.linalg.vector_norm(a, dim=0)
    chosen: list[int] = []
    left, values = y, y.new_zeros(0)
    for _ in range(k):
        fit = (a.mH @ left).abs() / lengths
        fit[chosen] = 0
        if not bool(fit.max() > 0):
            break
        chosen.append(int(fit.argmax()))
        values = torch.linalg.lstsq(a[:, chosen], y[:, None]).solution[:, 0]
        left = y - a[:, chosen] @ values
    x = y.new_zeros(a.shape[1])
    x[chosen] = values
    return x


def kron_omp(y: Tensor, factors: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return x on a Kronecker product of chosen places, by greedy choice of blocks.

    Parameters
    ----------
    y : torch.Tensor
        (prod M_i,), of the factors' dtype.
    factors : sequence of torch.Tensor
        (M_i, N_i).
    sizes : sequence of int
        How many places are chosen of each factor, at most M_i and N_i.

    Returns
    -------
    torch.Tensor
        (prod N_i,). Each step adds, to each factor that is not full, its place of the largest
        correlation with what is left; all coefficients of the block are then least squares,
        factor by factor. Ends when all are full, or when the best places are all chosen already.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Source
    ------
    Caiafa, Cichocki 2013, Neural Computation 25, Kronecker-OMP.
    """
    dictionary = KroneckerDictionary(factors)
    if len(sizes) != len(factors):
        raise ValueError(f"sizes has {len(sizes)} entries: must be {len(factors)}, one a factor")
    for i, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        require_counts(**{f"sizes[{i}]": size})
        if size > min(factor.shape):
            raise ValueError(
                f"sizes[{i}]={size}: must be at most rows and columns of its factor, "
                f"{tuple(factor.shape)}"
            )
    _require_like("y", y, factors[0], dictionary.shape[0])
    tensor = y.reshape(dictionary.rows)
    chosen: list[list[int]] = [[] for _ in factors]
    lengths = kron([torch.linalg.vector_norm(a, dim=0) for a in factors])
    left = tensor
    x = y.new_zeros(dictionary.columns)
    while any(len(c) < size for c, size in zip(chosen, sizes, strict=True)):
        fit = mode_products(left, [a.mH for a in factors]).abs() / lengths
        if not bool(fit.max() > 0):
            break
        place = torch.unravel_index(fit.argmax(), fit.shape)
        grown = False
        for places, index, size in zip(chosen, map(int, place), sizes, strict=True):
            if index not in places and len(places) < size:
                places.append(index)
                grown = True
        if not grown:
            break
        blocks = [a[:, places] for a, places in zip(factors, chosen, strict=True)]
        values = mode_products(tensor, [torch.linalg.pinv(b) for b in blocks])
        left = tensor - mode_products(values, blocks)
        x[torch.meshgrid(*map(torch.tensor, chosen), indexing="ij")] = values
    return x.flatten()


def _require_like(name: str, y: Tensor, a: Tensor, rows: int) -> None:
    if not isinstance(y, Tensor) or y.dtype != a.dtype:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{name} is {kind}: must be a tensor of {a.dtype}, as the matrix; convert")
    if y.shape != (rows,):
        raise ValueError(f"{name} has shape {tuple(y.shape)}: must be ({rows},)")
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"{name} has numbers that are not finite; take them out")
