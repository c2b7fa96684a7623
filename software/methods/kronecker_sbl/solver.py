"""Sparse Bayesian learning by EM: with a Kronecker prior, and the classic one beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.kronecker_sbl.dictionary import (
    DTYPES,
    KroneckerDictionary,
    kron,
    require_matrix,
    warn_of_parallel_columns,
)
from sat.methods.kronecker_sbl.posterior import posterior
from sat.methods.kronecker_sbl.updates import am_update, floored, normalized, svd_update
from sat.methods.problems.arguments import require_counts

PRUNE = {"svd": 1e-3, "am": 1e-2}
"""Least variance over the largest of its factor that is kept, as released."""
SUPPORT = 1e-3
"""Entries above this part of the largest are the support."""
NOISE_START, NOISE_FLOOR = 0.1, 1e-14


@dataclass(frozen=True)
class KroSBLResult:
    """What was recovered.

    Parameters
    ----------
    x : torch.Tensor
        (prod N_i,), the posterior mean; the last factor's index runs fastest.
    gammas : list of torch.Tensor
        (N_i,) real; 0 where an entry was pruned. Their Kronecker product is x's prior variance.
    support : torch.Tensor
        Places of x, int64, where \\|x\\| is above 1e-3 of the largest.
    n_iter : int
        EM steps taken.
    noise_var : float
        As given, or as estimated.
    cost_history : list of float
        log\\|Σ_y\\| + yᴴ Σ_y⁻¹ y of each step before its update, and at the end.
    converged : bool
        Whether variances came to rest before ``max_iter``.
    all_zero : bool
        Whether y was nothing but zeros: x and variances are then zeros, without a step.
    """

    x: Tensor
    gammas: list[Tensor]
    support: Tensor
    n_iter: int
    noise_var: float
    cost_history: list[float]
    converged: bool
    all_zero: bool = False


def kron_sbl(
    y: Tensor,
    factors: Sequence[Tensor],
    noise_var: float | None = None,
    method: str = "svd",
    *,
    max_iter: int = 150,
    tol: float = 1e-4,
    prune: float | None = None,
    init: float | None = 1.0,
    dtype: torch.dtype = torch.complex128,
) -> KroSBLResult:
    """Return x from y = (A_1 ⊗ … ⊗ A_I) x + noise, x's variances being a Kronecker product.

    Parameters
    ----------
    y : torch.Tensor
        (prod M_i,), real or complex.
    factors : sequence of torch.Tensor
        A_i, (M_i, N_i).
    noise_var : float, optional
        Mean of \\|noise\\|², linear; estimated if not given, from a tenth of y's variance.
    method : {"svd", "am"}
        How second moments become a Kronecker product: leading singular pairs, or the exact
        minimiser factor by factor, which never raises the cost.
    max_iter : int
        Of EM.
    tol : float
        EM ends once ‖g - g_old‖ is below this part of ‖g_old‖, over all of x.
    prune : float, optional
        Each step drops the entries of a factor below this part of its largest, and their columns
        of A_i; from 0 to below 1. Not given: 1e-3 for "svd", 1e-2 for "am".
    init : float or None
        Variance of all entries at the start, 1 as published. A step takes off no more than the
        part M / N of a variance that is too large, so 150 steps do not suffice for one that is
        orders above \\|x\\|². None: that with which A x has y's power; results then scale with y.
    dtype : torch.dtype
        Of the arithmetic, and of x: float32, float64, complex64 or complex128.

    Returns
    -------
    KroSBLResult

    Raises
    ------
    TypeError
        If an argument is no tensor of floating point.
    ValueError
        If an argument breaks its rule.
    ArithmeticError
        If variances stop being finite; says in which iteration. Else the largest are never pruned.

    Warns
    -----
    UserWarning
        If columns of a factor are parallel.

    Source
    ------
    He, Joseph 2023, arXiv 2307.14719, AM- and SVD-KroSBL.
    """
    if method not in PRUNE:
        raise ValueError(f"method={method!r}: must be one of {', '.join(PRUNE)}")
    prune = PRUNE[method] if prune is None else prune
    dictionary = KroneckerDictionary(factors)
    matrices = [_converted(f"factors[{i}]", a, dtype) for i, a in enumerate(factors)]
    y = _require_data(y, dictionary.shape[0], dtype)
    _require_options(noise_var, max_iter, tol, prune, init)
    for i, a in enumerate(matrices):
        warn_of_parallel_columns(f"factors[{i}]", a)
    tensor = y.reshape(dictionary.rows)
    real = y.real.dtype
    if not bool(y.any()):
        return _zeros(y, dictionary.columns, noise_var)
    start = _start(init, y, matrices)
    ones = [torch.ones(size, dtype=real) for size in dictionary.columns]
    gammas = normalized([*ones[:-1], start * ones[-1]])
    kept = [torch.arange(size) for size in dictionary.columns]
    noise, least = _noise_start(y, noise_var)
    costs: list[float] = []
    converged = False
    for iteration in range(1, max_iter + 1):
        before = _expand(gammas, kept, dictionary.columns)
        for i, g in enumerate(gammas):
            stays = g >= prune * g.max()
            gammas[i], kept[i] = g[stays], kept[i][stays]
            matrices[i] = matrices[i][:, stays]
        found = posterior(tensor, matrices, gammas, noise)
        costs.append(found.cost)
        moments = _moments(found.mean, found.variance, iteration)
        gammas = svd_update(moments) if method == "svd" else am_update(moments, gammas)
        if noise_var is None:
            noise = max((found.residual + noise * found.spent) / y.numel(), least)
        change = kron(_expand(gammas, kept, dictionary.columns)) - kron(before)
        if float(change.norm()) < tol * float(kron(before).norm()):
            converged = True
            break
    found = posterior(tensor, matrices, gammas, noise)
    x = y.new_zeros(dictionary.columns)
    x[torch.meshgrid(*kept, indexing="ij")] = found.mean
    full = _expand(gammas, kept, dictionary.columns)
    return _result(x.flatten(), full, iteration, noise, [*costs, found.cost], converged)


def sbl(
    y: Tensor,
    a: Tensor,
    noise_var: float | None = None,
    *,
    max_iter: int = 150,
    tol: float = 1e-4,
    prune: float = 1e-3,
    init: float | None = 1.0,
    dtype: torch.dtype = torch.complex128,
) -> KroSBLResult:
    """Return x from y = A x + noise by classic sparse Bayesian learning: a variance an entry.

    Parameters
    ----------
    y : torch.Tensor
        (M,).
    a : torch.Tensor
        (M, N).
    noise_var, max_iter, tol, prune, init, dtype
        As for `kron_sbl`.

    Returns
    -------
    KroSBLResult
        With one vector of variances.

    Raises
    ------
    TypeError, ValueError, ArithmeticError
        As `kron_sbl`.

    Source
    ------
    Tipping 2001, Journal of Machine Learning Research 1; Wipf, Rao 2004, IEEE Transactions on
    Signal Processing 52, the EM form. A step costs M² N: Σ_y's inverse by Cholesky's factor, then
    one product of it and A gives mean and variances.
    """
    require_matrix("a", a)
    a = _converted("a", a, dtype)
    y = _require_data(y, a.shape[0], dtype)
    _require_options(noise_var, max_iter, tol, prune, init)
    warn_of_parallel_columns("a", a)
    if not bool(y.any()):
        return _zeros(y, (a.shape[1],), noise_var)
    columns = a.shape[1]
    g = torch.full((columns,), _start(init, y, [a]), dtype=y.real.dtype)
    kept = torch.arange(columns)
    noise, least = _noise_start(y, noise_var)
    costs: list[float] = []
    converged = False
    for iteration in range(1, max_iter + 1):
        (before,) = _expand([g], [kept], (columns,))
        stays = g >= prune * g.max()
        g, kept, a = g[stays], kept[stays], a[:, stays]
        mean, variance, cost, residual = _classic(y, a, g, noise)
        costs.append(cost)
        spent = float((1 - variance / g).sum())
        g = floored(_moments(mean, variance, iteration))
        if noise_var is None:
            noise = max((residual + noise * spent) / y.numel(), least)
        (after,) = _expand([g], [kept], (columns,))
        if float((after - before).norm()) < tol * float(before.norm()):
            converged = True
            break
    mean, _, cost, _ = _classic(y, a, g, noise)
    x = y.new_zeros(columns)
    x[kept] = mean
    full = _expand([g], [kept], (columns,))
    return _result(x, full, iteration, noise, [*costs, cost], converged)


def _classic(y: Tensor, a: Tensor, g: Tensor, noise: float) -> tuple[Tensor, Tensor, float, float]:
    """Return mean, variances, cost and ‖y - A mean‖²."""
    root = a * g.sqrt()
    sigma = root @ root.mH
    sigma.diagonal().add_(noise)
    lower = torch.linalg.cholesky(sigma)
    weighted = torch.cholesky_inverse(lower) @ torch.cat([a, y[:, None]], 1)
    weights = weighted[:, -1]
    mean = g * (a.mH @ weights)
    explained = g * (a.conj() * weighted[:, :-1]).sum(0).real
    fit = float((y.conj() * weights).sum().real)
    cost = 2 * float(lower.diagonal().real.log().sum()) + fit
    residual = float((noise * weights).abs().square().sum())
    return mean, (g * (1 - explained)).clamp(min=0), cost, residual


# ------------------------------------------------------------------------------ what both share


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: must be one of {', '.join(map(str, DTYPES))}")
    if tensor.is_complex() and not dtype.is_complex:
        raise ValueError(f"{name} is complex, dtype={dtype} is not; take dtype=torch.complex128")
    return tensor.detach().to(dtype)


def _require_data(y: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return y in the dtype of the arithmetic, or raise."""
    if not isinstance(y, Tensor) or y.dtype not in DTYPES:
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y is {kind}: must be a tensor of floating point; convert it")
    if y.shape != (rows,):
        raise ValueError(f"y has shape {tuple(y.shape)}: must be ({rows},), as A has rows")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y has numbers that are not finite; take them out")
    return _converted("y", y, dtype)


def _require_options(
    noise_var: float | None, max_iter: int, tol: float, prune: float, init: float | None
) -> None:
    require_counts(max_iter=max_iter)
    if noise_var is not None and not 0 < noise_var < math.inf:
        raise ValueError(f"noise_var={noise_var}: must be positive and finite; or None, estimated")
    if init is not None and not 0 < init < math.inf:
        raise ValueError(f"init={init}: must be positive and finite, or None")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol={tol}: must be finite and not negative")
    if not 0 <= prune < 1:
        raise ValueError(f"prune={prune}: must be from 0 to below 1")


def _start(init: float | None, y: Tensor, factors: Sequence[Tensor]) -> float:
    """Return the variance of all entries to begin with."""
    if init is not None:
        return init
    power = math.prod(float(a.abs().square().sum()) for a in factors)
    return float(y.abs().square().sum()) / power


def _noise_start(y: Tensor, noise_var: float | None) -> tuple[float, float]:
    """Return the noise to begin with, and the least that an estimate may become."""
    least = NOISE_FLOOR * float(y.abs().square().mean())
    if noise_var is not None:
        return noise_var, least
    spread = float((y - y.mean()).abs().square().mean())
    if spread <= least:
        raise ValueError("y is constant: there is no variance to begin from; give noise_var")
    return NOISE_START * spread, least


def _moments(mean: Tensor, variance: Tensor, iteration: int) -> Tensor:
    """Return second moments; or raise if no variance could be kept of them."""
    moments = variance + mean.abs().square()
    if not bool(torch.isfinite(moments).all()):
        raise ArithmeticError(
            f"iteration {iteration}: variances are not finite, none can be kept; scale y to about "
            "1, or take a wider dtype"
        )
    return moments


def _expand(gammas: Sequence[Tensor], kept: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Return vectors with zeros where entries were pruned."""
    return [
        g.new_zeros(size).index_copy(0, places, g)
        for g, places, size in zip(gammas, kept, sizes, strict=True)
    ]


def _zeros(y: Tensor, sizes: Sequence[int], noise_var: float | None) -> KroSBLResult:
    return KroSBLResult(
        y.new_zeros(math.prod(sizes)), [y.real.new_zeros(size) for size in sizes],
        torch.arange(0), 0, 0.0 if noise_var is None else noise_var, [], True, all_zero=True,
    )  # fmt: skip


def _result(
    x: Tensor, gammas: list[Tensor], steps: int, noise: float, costs: list[float], converged: bool
) -> KroSBLResult:
    support = find_support(x)
    return KroSBLResult(x, gammas, support, steps, noise, costs, converged)


def find_support(x: Tensor, threshold: float = SUPPORT) -> Tensor:
    """Return places, int64, where \\|x\\| (N,) is above a part of its largest."""
    size = x.abs()
    return (size > threshold * size.max()).nonzero().flatten()
