"""Whether a dictionary of local bases pays, from training data alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.rom_net.bases import pod_basis, projection_error
from sat.methods.rom_net.clustering import k_medoids
from sat.methods.rom_net.dissimilarity import require_snapshots, sine_dissimilarity

MEMBERS_A_MODE = 3
"""A cluster has at least this many members a mode, or its basis fits them alone."""


def efficiency_criterion(
    u: Tensor,
    ks: Sequence[int],
    n_modes: int,
    folds: int = 4,
    seed: int = 0,
    mass: Tensor | None = None,
) -> dict[str, Any]:
    """Return η(K): error of K local bases over that of one basis of as many modes, held out.

    η < 1: a dictionary pays. Snapshots of a fold are projected on the basis of the medoid nearest
    in angle, all from the other folds. The paper's own formula is not public; this one is ours.

    Parameters
    ----------
    u : torch.Tensor
        (samples, n): what can be afforded.
    ks : sequence of int
        Numbers of clusters.
    n_modes : int
        Modes of every basis.
    folds : int
        Of the cross-validation, 2 to samples.
    seed : int
        Of the folds and of the clusters.
    mass : torch.Tensor, optional
        As of `sine_dissimilarity`.

    Returns
    -------
    dict
        By K: ``"eta"``; of all snapshots together ``"smallest"`` (members of a cluster),
        ``"cost"`` (mean dissimilarity to the medoid) and ``"silhouette"`` (NaN for K = 1 or K =
        samples). ``"global"``: the one basis' error. ``"lowest"``: K of the least η; ``"best"``:
        the same among those of at least 3 members a mode, or None.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Purpose: arXiv 2103.13683, abstract.
    """
    u = require_snapshots(u, "u")
    require_counts(n_modes=n_modes, folds=folds, **{f"ks[{i}]": k for i, k in enumerate(ks)})
    if not ks or not 2 <= folds <= len(u):
        raise ValueError(f"ks={ks}, folds={folds}: must be one K at least, and 2 to {len(u)} folds")
    fewest = len(u) - -(-len(u) // folds)
    if max(ks) > fewest:
        raise ValueError(f"ks={ks}: must be at most the {fewest} samples outside a fold; lower it")
    between = sine_dissimilarity(u, mass=mass)
    shuffled = torch.randperm(len(u), generator=torch.Generator().manual_seed(seed))
    fold = torch.empty(len(u), dtype=torch.int64)
    fold[shuffled] = torch.arange(len(u)) % folds
    single = torch.empty(len(u), dtype=torch.float64)
    local = torch.empty(len(ks), len(u), dtype=torch.float64)
    for number in range(folds):
        out, kept = (fold == number).nonzero()[:, 0], (fold != number).nonzero()[:, 0]
        single[out] = projection_error(u[out], pod_basis(u[kept], n_modes, mass=mass), mass)
        for row, k in enumerate(ks):
            generator = torch.Generator().manual_seed(seed)
            found = k_medoids(between[kept][:, kept], k, generator=generator)
            labels = between[out][:, kept[found.medoids]].argmin(1)
            for cluster in labels.unique():
                asked = out[labels == cluster]
                members = kept[found.labels == cluster]
                basis = pod_basis(u[members], n_modes, mass=mass)
                local[row, asked] = projection_error(u[asked], basis, mass)
    eta = dict(zip(ks, (local.mean(1) / single.mean()).tolist(), strict=True))
    report: dict[str, Any] = {"eta": eta, "smallest": {}, "cost": {}, "silhouette": {}}
    for k in ks:
        found = k_medoids(between, k, generator=torch.Generator().manual_seed(seed))
        report["smallest"][k] = int(found.labels.bincount(minlength=k).min())
        report["cost"][k] = found.cost / len(u)
        report["silhouette"][k] = (
            float(silhouette_score(between.numpy(), found.labels.numpy(), metric="precomputed"))
            if 1 < k < len(u)
            else float("nan")
        )
    fair = [k for k in ks if report["smallest"][k] >= MEMBERS_A_MODE * n_modes]
    report["global"] = float(single.mean())
    report["lowest"] = min(ks, key=lambda k: eta[k])
    report["best"] = min(fair, key=lambda k: eta[k]) if fair else None
    return report
