"""Dictionaries beside the learned one: batch l4 maximisation, principal components, the DCT."""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from sat.methods.odl_fw.oracle import polar
from sat.methods.problems.arguments import require_counts


def msp(y: Tensor, iterations: int, start: Tensor | None = None) -> Tensor:
    """Return a dictionary by matching, stretching, projecting: ``D <- polar(Yᵀ (Y D)³)``.

    The batch method: every iteration reads all samples.

    Parameters
    ----------
    y : torch.Tensor
        (samples, M), real floating point.
    iterations : int
    start : torch.Tensor, optional
        (M, M), orthogonal; made ``y``'s dtype. The identity without it.

    Returns
    -------
    torch.Tensor
        (M, M), of ``y``'s dtype, orthogonal, atoms in columns.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Source
    ------
    Zhai et al. 2020, "Complete Dictionary Learning via l4-Norm Maximization over the Orthogonal
    Group", arXiv 1906.02435, algorithm 2.
    """
    require_samples(y)
    require_counts(iterations=iterations)
    width = y.shape[1]
    if start is not None and start.shape != (width, width):
        raise ValueError(f"start has shape {tuple(start.shape)}: must be ({width}, {width})")
    d = torch.eye(width, dtype=y.dtype) if start is None else start.to(y.dtype)
    for _ in range(iterations):
        # Over the samples: a sum of cubes might leave what float16 holds.
        d = polar(y.mT @ (y @ d).pow(3) / len(y))
    return d


def pca_dictionary(y: Tensor) -> Tensor:
    """Return the eigenvectors of the second moments, the largest eigenvalue's first.

    Parameters
    ----------
    y : torch.Tensor
        (samples, M), real floating point; its mean is not taken out.

    Returns
    -------
    torch.Tensor
        (M, M), of ``y``'s dtype, orthogonal, atoms in columns.

    Raises
    ------
    TypeError, ValueError
        If ``y`` breaks its rule.
    """
    require_samples(y)
    return torch.linalg.eigh(y.mT @ y / len(y))[1].flip(1)


def dct_dictionary(side: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the cosine transform (type II) of side x side patches, atoms in columns.

    Parameters
    ----------
    side : int
        Of a patch; M is its square.
    dtype : torch.dtype

    Returns
    -------
    torch.Tensor
        (M, M), orthogonal; column ``side * a + b`` has frequencies a down and b across.

    Raises
    ------
    ValueError
        If ``side`` is no int of at least 1.
    """
    require_counts(side=side)
    lines = dct(np.eye(side), norm="ortho", axis=0).T
    return torch.from_numpy(np.kron(lines, lines)).to(dtype)


def require_samples(y: Tensor, width: int | None = None) -> None:
    """Raise unless y is (samples, M), real floating point, finite and not empty."""
    if not y.is_floating_point():
        raise TypeError(f"y has dtype {y.dtype}: must be real floating point; use y.float()")
    if y.ndim != 2 or not y.numel() or (width is not None and y.shape[1] != width):
        raise ValueError(
            f"y has shape {tuple(y.shape)}: must be (samples, {width or 'M'}), at least one sample"
        )
    if not bool(y.isfinite().all()):
        raise ValueError("y has entries that are not finite: refused; leave those samples out")
