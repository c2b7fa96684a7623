"""How much a group matters: five criteria of its parameters and the optimiser's direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sat.methods.hesso.groups import GroupSpec, GroupTable

CRITERIA = {
    "magnitude": 0.2,
    "mean_magnitude": 0.2,
    "cosine": 0.2,
    "taylor1": 0.2,
    "taylor2": 0.2,
}
"""The criteria's weights."""

_FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "magnitude": lambda x, d, dot, size: x,
    "mean_magnitude": lambda x, d, dot, size: x / (size + 1e-6),
    "cosine": lambda x, d, dot, size: dot / ((x + 1e-8) * (d + 1e-8)) + 1,
    "taylor1": lambda x, d, dot, size: dot.abs(),
    "taylor2": lambda x, d, dot, size: dot.square() / 2,
}


def saliency(
    groups: Sequence[GroupSpec] | GroupTable,
    directions: Mapping[Tensor, Tensor],
    criteria: Mapping[str, float] | None = None,
) -> list[Tensor]:
    """Return each criterion of all groups, normalised and weighted; their sum is the score.

    With x a group's parameters as one vector and d its direction: ‖x‖; ‖x‖ / size; the cosine of x
    and d, plus 1; |x·d|; (x·d)²/2. Each is divided by its Euclidean norm over all groups.

    Parameters
    ----------
    groups : sequence of GroupSpec, or GroupTable
    directions : mapping of torch.Tensor to torch.Tensor
        What the optimiser subtracts, over its learning rate: by parameter, of its shape. Parameters
        that are not there have none.
    criteria : mapping of str to float, optional
        Weights; `CRITERIA` if not given.

    Returns
    -------
    list of torch.Tensor
        (groups,) float64 for each criterion, in the order of ``criteria``.

    Raises
    ------
    ValueError
        If ``criteria`` is empty, or has an unknown name.

    Source
    ------
    Chen et al. 2024, arXiv 2409.09085; ``importance_score`` of the authors' code.
    """
    table = groups if isinstance(groups, GroupTable) else GroupTable(groups)
    criteria = require_criteria(criteria)
    x = {p: p.detach().double() for p in table.parameters}
    d = {p: directions.get(p, torch.zeros_like(p)).double() for p in table.parameters}
    norm_x = table.sums({p: v.square() for p, v in x.items()}).sqrt()
    norm_d = table.sums({p: v.square() for p, v in d.items()}).sqrt()
    dot = table.sums({p: v * d[p] for p, v in x.items()})
    scores = []
    for name, weight in criteria.items():
        score = _FORMULAS[name](norm_x, norm_d, dot, table.sizes)
        scores.append(weight * score / (score.square().sum().sqrt() + 1e-8))
    return scores


def require_criteria(criteria: Mapping[str, float] | None) -> dict[str, float]:
    """Return the weights; raise ValueError if there is none, or one of an unknown name."""
    if criteria is None:
        return dict(CRITERIA)
    for name in criteria:
        if name not in _FORMULAS:
            known = ", ".join(_FORMULAS)
            raise ValueError(f"criteria has {name!r}: must be of {known}; leave it out")
    if not criteria:
        raise ValueError("criteria is empty: must weigh at least one; leave it out for all five")
    return dict(criteria)
