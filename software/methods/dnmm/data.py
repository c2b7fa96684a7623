"""What data a mixture takes, and the clusters that it starts from."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from sat.methods.dnmm.integrators import BoxIntegrator

LEAST_ROWS, LEAST_CLUSTER = 10, 3


def clusters(z: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return k-means labels (N,) of z (N, d), every cluster of at least 3 rows.

    Raises
    ------
    ValueError
        If five times five starts find none.
    """
    for _ in range(5):
        seed = int(torch.randint(2**31, (), generator=generator))
        found = KMeans(k, n_init=5, random_state=seed).fit(z.double().numpy())
        labels = torch.from_numpy(found.labels_).long()
        if int(torch.bincount(labels, minlength=k).min()) >= LEAST_CLUSTER:
            return labels
    raise ValueError(
        f"n_components={k}: k-means leaves a cluster of fewer than {LEAST_CLUSTER} of {len(z)} "
        "rows; take fewer components"
    )


def require_rows(x: Tensor, dim: int) -> None:
    """Raise ValueError unless ``x`` is a finite (n, dim)."""
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: must be (n, {dim}); one column is x[:, None]"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has infinities or NaNs: must be finite; drop those rows")


def require_data(x: Tensor, dim: int, n_components: int) -> Tensor:
    """Return training data in float64; raise ValueError if there are too few or one is constant."""
    require_rows(x, dim)
    if len(x) < LEAST_ROWS * n_components:
        raise ValueError(
            f"{len(x)} rows for {n_components} components: must be at least {LEAST_ROWS} each; "
            "take fewer components"
        )
    still = (x.min(0).values == x.max(0).values).nonzero().flatten().tolist()
    if still:
        raise ValueError(f"column {still[0]} is constant: it has no density; drop it")
    return x.double()


def require_dimension(rule: BoxIntegrator, dim: int) -> None:
    """Raise ValueError unless the rule is of that dimension."""
    if rule.dim != dim:
        raise ValueError(f"integrator has {rule.dim} dimensions: must have {dim}, as the mixture")
