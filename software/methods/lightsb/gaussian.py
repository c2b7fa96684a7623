"""The Schrödinger bridge between two Gaussians in closed form: what LightSB is held against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianBridge:
    """Moments of a plan: the joint distribution of (x0, x1).

    Attributes
    ----------
    mean : (dim,) of x1
    covariance : (dim, dim) of x1
    cross : (dim, dim), E[(x0 - m0) (x1 - m1)ᵀ]
    """

    mean: Tensor
    covariance: Tensor
    cross: Tensor


def _root(x: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(x)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return root


def gaussian_bridge(
    covariance0: Tensor, mean1: Tensor, covariance1: Tensor, epsilon: float
) -> GaussianBridge:
    """Return the plan of the bridge between Gaussians with a Wiener prior of variance epsilon.

    Parameters
    ----------
    covariance0, covariance1 : (dim, dim), symmetric, positive definite
    mean1 : (dim,)
    epsilon : float
        Positive.

    Raises
    ------
    ValueError
        If epsilon is not positive and finite, shapes differ, or a covariance is none.

    Source
    ------
    Janati et al., "Entropic optimal transport between unbalanced Gaussian measures has a closed
    form", NeurIPS 2020, theorem 1; Bunne et al., "The Schrödinger bridge between Gaussian measures
    has a closed form", AISTATS 2023, theorem 3.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon}: must be positive and finite; it is a variance")
    shape = (len(mean1), len(mean1))
    for name, x in (("covariance0", covariance0), ("covariance1", covariance1)):
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: must be {shape}, as mean1 has it")
        skew = float((x - x.mT).abs().max())
        if not skew <= 1e-5 * float(x.abs().max()):
            raise ValueError(f"{name} is not symmetric, by {skew:.3g}; use (x + x.mT) / 2")
        if bool(torch.linalg.cholesky_ex(x)[1]):
            raise ValueError(f"{name} is not positive definite: add a little to its diagonal")
    root = _root(covariance0)
    identity = torch.eye(len(root), dtype=root.dtype)
    middle = _root(root @ covariance1 @ root + epsilon**2 / 4 * identity)
    cross = root @ middle @ torch.linalg.inv(root) - epsilon / 2 * identity
    return GaussianBridge(mean1, covariance1, cross)
