"""K-medoids: the partition of samples by those of them that represent the others best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

DIAGONAL = 1e-6
"""Dissimilarity to oneself up to which it is round-off."""


@dataclass(frozen=True)
class KMedoids:
    """A partition.

    Attributes
    ----------
    medoids : torch.Tensor
        (k,) int64: places of the representatives, ascending.
    labels : torch.Tensor
        (samples,) int64: the cluster of each, by number of its medoid.
    cost : float
        Sum of dissimilarities to the medoids.
    """

    medoids: Tensor
    labels: Tensor
    cost: float


def k_medoids(
    dissimilarity: Tensor,
    k: int,
    n_starts: int = 10,
    generator: torch.Generator | None = None,
) -> KMedoids:
    """Minimise the sum of dissimilarities to the nearest of k medoids.

    Starts are drawn as k-means++ draws them, by squared dissimilarity. Then the exchange of a
    medoid for another sample that lowers the cost most is made, as long as one does (PAM); all
    exchanges are priced at once from the nearest and second nearest medoid of each sample.

    Parameters
    ----------
    dissimilarity : torch.Tensor
        (samples, samples), not negative, zero on the diagonal.
    k : int
        Clusters, 1 to samples.
    n_starts : int
        The best of them is returned.
    generator : torch.Generator, optional
        Of the starts; one of seed 0 if not given.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Kaufman and Rousseeuw 1990, "Finding groups in data", chapter 2; Schubert and Rousseeuw 2021,
    Information Systems 101, section 4 (the price of all exchanges).
    """
    matrix = dissimilarity.double()
    samples = _require_dissimilarity(matrix)
    require_counts(k=k, n_starts=n_starts)
    if k > samples:
        raise ValueError(f"k={k}: must be at most the number of samples, {samples}; lower it")
    generator = generator or torch.Generator().manual_seed(0)
    found = [_descend(matrix, _start(matrix, k, generator)) for _ in range(n_starts)]
    cost, medoids = min(found, key=lambda one: one[0])
    medoids = medoids.sort().values
    labels = matrix[:, medoids].argmin(1)
    labels[medoids] = torch.arange(k)  # where two medoids coincide, each still has itself
    return KMedoids(medoids, labels, cost)


def _require_dissimilarity(matrix: Tensor) -> int:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(
            f"dissimilarity of shape {tuple(matrix.shape)}: must be square, of all pairs of samples"
        )
    if not bool(matrix.isfinite().all()):
        raise ValueError("dissimilarity has NaNs or infinities: leave out the samples they are of")
    if float(matrix.min()) < 0:
        raise ValueError(f"dissimilarity {float(matrix.min()):g}: must not be negative")
    worst = float(matrix.diagonal().max())
    if worst > DIAGONAL:
        raise ValueError(
            f"dissimilarity {worst:g} on the diagonal: must be 0, of a sample to itself"
        )
    return len(matrix)


def _start(matrix: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw medoids, each with probability by squared dissimilarity to those before."""
    chosen = [int(torch.randint(len(matrix), (1,), generator=generator))]
    while len(chosen) < k:
        weight = matrix[:, chosen].min(1).values.square()
        weight[chosen] = 0
        if float(weight.sum()) == 0:  # all others coincide with a medoid
            weight = torch.ones_like(weight)
            weight[chosen] = 0
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
    return torch.tensor(chosen)


def _descend(matrix: Tensor, medoids: Tensor) -> tuple[float, Tensor]:
    """Make the best exchange until none lowers the cost; return it and the medoids."""
    medoids = medoids.clone()
    k = len(medoids)
    while True:
        near = torch.cat([matrix[:, medoids], matrix.new_full((len(matrix), 1), torch.inf)], 1)
        (first, second), (owner, _) = (part.unbind(1) for part in near.topk(2, 1, largest=False))
        cost = first.sum()
        # A new medoid draws those nearer to it; whose own medoid goes, falls to the second.
        gain = (matrix - first[:, None]).clamp(max=0)
        orphaned = torch.minimum(matrix, second[:, None]) - first[:, None] - gain
        change = matrix.new_zeros(k, len(matrix)).index_add_(0, owner, orphaned) + gain.sum(0)
        best = int(change.argmin())
        if not float(change.flatten()[best]) < -1e-12 * float(cost):
            return float(cost), medoids
        medoids[best // len(matrix)] = best % len(matrix)
