"""The Fréchet distance of two normal distributions, which judges samples by their moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]


def sample_moments(x: Tensor | ArrayLike) -> tuple[Array, Array]:
    """Return mean (d,) and covariance (d, d) of samples (n, d), divided by n - 1; float64.

    Raises
    ------
    ValueError
        If there are fewer than two samples, or one is not finite.
    """
    values = _numbers(x)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"samples of shape {values.shape}: must be (n, d), n at least 2, finite")
    return values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))


def frechet_distance(
    mean_a: Tensor | ArrayLike,
    cov_a: Tensor | ArrayLike,
    mean_b: Tensor | ArrayLike,
    cov_b: Tensor | ArrayLike,
) -> float:
    """Return ‖m_a - m_b‖² + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared 2-Wasserstein distance.

    Parameters
    ----------
    mean_a, mean_b : torch.Tensor or array
        (d,).
    cov_a, cov_b : torch.Tensor or array
        (d, d), symmetric and positive semidefinite.

    Raises
    ------
    ValueError
        If shapes differ.

    Source
    ------
    Dowson and Landau 1982, Journal of Multivariate Analysis 12; FID is this of a network's features
    (Heusel et al. 2017, arXiv 1706.08500, section 2).
    """
    means, covs = [_numbers(m) for m in (mean_a, mean_b)], [_numbers(c) for c in (cov_a, cov_b)]
    dim = len(means[0])
    if any(m.shape != (dim,) for m in means) or any(c.shape != (dim, dim) for c in covs):
        raise ValueError(
            f"means have shapes {means[0].shape}, {means[1].shape}, covariances {covs[0].shape}, "
            f"{covs[1].shape}: must be (d,) and (d, d) with one d"
        )
    # The trace by the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same eigenvalues.
    variances, axes = np.linalg.eigh(covs[0])
    root = axes * np.sqrt(variances.clip(min=0))
    shared = np.sqrt(np.linalg.eigvalsh(root.T @ covs[1] @ root).clip(min=0)).sum()
    apart = np.square(means[0] - means[1]).sum()
    return float(apart + np.trace(covs[0]) + np.trace(covs[1]) - 2 * shared)


def _numbers(x: Tensor | ArrayLike) -> Array:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x, dtype=np.float64)
