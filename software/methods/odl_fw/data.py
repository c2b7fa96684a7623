"""Samples that are sparse in a known basis, and how far a learned basis is from it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts


def bernoulli_gaussian(
    d: Tensor, theta: float, noise: float, batch: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield batches y = D x + noise without end, each entry of x normal with chance ``theta``.

    Parameters
    ----------
    d : torch.Tensor
        (M, M), real floating point, atoms in columns.
    theta : float
        In (0, 1]; other entries of x are 0.
    noise : float
        Standard deviation of what is added to each entry of y.
    batch : int
        Samples of a batch.
    generator : torch.Generator
        Of codes and noise.

    Yields
    ------
    torch.Tensor
        (batch, M), of ``d``'s dtype, samples in rows.

    Raises
    ------
    TypeError
        If ``d`` is not real floating point.
    ValueError
        If it is not square, or an argument breaks its rule.
    """
    if not d.is_floating_point():
        raise TypeError(f"d has dtype {d.dtype}: must be real floating point; use d.float()")
    if d.ndim != 2 or d.shape[0] != d.shape[1] or not len(d):
        raise ValueError(f"d has shape {tuple(d.shape)}: must be (M, M), M at least 1")
    if not 0 < theta <= 1:
        raise ValueError(f"theta={theta}: must be in (0, 1], the share of entries that are not 0")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise}: must be at least 0 and finite, a standard deviation")
    require_counts(batch=batch)
    return _samples(d, theta, noise, batch, generator)


def _samples(
    d: Tensor, theta: float, noise: float, batch: int, generator: torch.Generator
) -> Iterator[Tensor]:
    shape = batch, len(d)
    while True:
        here = torch.rand(shape, generator=generator, dtype=d.dtype) < theta
        x = here * torch.randn(shape, generator=generator, dtype=d.dtype)
        y = x @ d.mT
        if noise:
            y = y + noise * torch.randn(shape, generator=generator, dtype=d.dtype)
        yield y


def dictionary_error(d: Tensor, d_true: Tensor) -> float:
    """Return ``1 - sum_ij (Dᵀ D*)_ij⁴ / M`` of normalised columns: 0 at a signed permutation.

    For orthogonal matrices. In float64 and by sums: a product may be rounded where it is computed,
    and a fourth power shows that.

    Parameters
    ----------
    d, d_true : torch.Tensor
        (M, M), real, atoms in columns.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If they are not square, of two shapes, or have a column that is 0 or not finite.
    """
    if d.shape != d_true.shape or d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise ValueError(
            f"d has shape {tuple(d.shape)} and d_true {tuple(d_true.shape)}: both must be (M, M)"
        )
    a, b = (_normalised(name, x) for name, x in (("d", d), ("d_true", d_true)))
    cosines = (a[:, :, None] * b[:, None, :]).sum(0)
    return 1 - float(cosines.pow(4).sum()) / len(a)


def _normalised(name: str, d: Tensor) -> Tensor:
    d = d.detach().double()
    norms = d.norm(dim=0)
    if not bool((norms.isfinite() & (norms > 0)).all()):
        raise ValueError(f"{name} has a column that is 0 or not finite: it is no atom; learn on")
    return d / norms
