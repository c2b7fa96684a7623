"""The Schrödinger bridge between two Gaussians in closed form: what LightSB is held against."""

from __future__ import annotations

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
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def gaussian_bridge(
    covariance0: Tensor, mean1: Tensor, covariance1: Tensor, epsilon: float
) -> GaussianBridge:
    """Return the plan of the bridge between Gaussians with a Wiener prior of variance epsilon.

    Parameters
    ----------
    covariance0, covariance1 : (dim, dim), symmetric, positive definite
    mean1 : (dim,)
    epsilon : float

    Source
    ------
    Janati et al., "Entropic optimal transport between unbalanced Gaussian measures has a closed
    form", NeurIPS 2020, theorem 1; Bunne et al., "The Schrödinger bridge between Gaussian measures
    has a closed form", AISTATS 2023, theorem 3.
    """
    root = _root(covariance0)
    identity = torch.eye(len(root), dtype=root.dtype)
    middle = _root(root @ covariance1 @ root + epsilon**2 / 4 * identity)
    cross = root @ middle @ torch.linalg.inv(root) - epsilon / 2 * identity
    return GaussianBridge(mean1, covariance1, cross)
