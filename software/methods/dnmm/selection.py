"""Which mixture: by the likelihood of data held out, for the model is a density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from sklearn.model_selection import KFold, ShuffleSplit
from torch import Tensor

from sat.methods.dnmm.data import require_data
from sat.methods.dnmm.model import DNMM
from sat.methods.problems.arguments import require_counts

TIE = 1e-3
"""Nats that tell nothing apart."""


@dataclass(frozen=True)
class Candidate:
    """A mixture that may be chosen.

    Parameters
    ----------
    n_components : int
    hidden : tuple of int
    weight_decay : float, optional
        As `DNMM.fit`.
    steps : int
    """

    n_components: int
    hidden: tuple[int, ...] = (8, 8)
    weight_decay: float | None = None
    steps: int = 600

    def parameters(self, dim: int) -> int:
        """Return how many numbers are trained."""
        model = DNMM(dim, self.n_components, self.hidden, generator=torch.Generator())
        return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class Score:
    """A candidate, its mean held-out log-likelihood a point in nats, and its parameters."""

    candidate: Candidate
    log_likelihood: float
    parameters: int


def draw_candidates(count: int, generator: torch.Generator, steps: int = 600) -> list[Candidate]:
    """Return different random candidates: 1 to 4 components, hidden sizes and decays.

    Raises
    ------
    ValueError
        If ``count`` is no positive int, or above the 48 that there are.
    """
    every = [
        Candidate(k, hidden, decay, steps)
        for k in (1, 2, 3, 4)
        for hidden in ((8,), (8, 8), (12, 12), (16, 16))
        for decay in (None, 1e-4, 5e-3)
    ]
    require_counts(count=count)
    if count > len(every):
        raise ValueError(f"count={count}: there are {len(every)} candidates; take at most those")
    order = torch.randperm(len(every), generator=generator)[:count]
    return [every[place] for place in order.tolist()]


def select_dnmm(
    x: Tensor, candidates: Sequence[Candidate], folds: int = 5, seed: int = 0
) -> tuple[DNMM, list[Score]]:
    """Return the best candidate, trained on all of x (N, d), and all scores, best first.

    A score is the mean log-likelihood of data that were not trained on; within 1e-3 nats of the
    best, fewer parameters win. A held-out point outside the box of the others is impossible by the
    model, and no score would be left; such points count with the box's edge, for all candidates.

    Parameters
    ----------
    x : torch.Tensor
    candidates : sequence of Candidate
    folds : int
        Of a cross-validation; 1 holds out a fifth once.
    seed : int
        Of splits and trainings.

    Raises
    ------
    ValueError
        If there are no candidates, or an argument breaks its rule.
    """
    require_counts(folds=folds)
    if not candidates:
        raise ValueError("candidates=(): must have at least one; draw_candidates makes some")
    x = require_data(x, x.shape[-1], max(one.n_components for one in candidates))
    if folds == 1:
        splits = list(ShuffleSplit(1, test_size=0.2, random_state=seed).split(x.numpy()))
    else:
        splits = list(KFold(folds, shuffle=True, random_state=seed).split(x.numpy()))
    scores = []
    for candidate in candidates:
        held = []
        for train, test in splits:
            model = train_candidate(candidate, x[train], seed)
            inside = torch.clamp(x[test], model.box[0], model.box[1])
            with torch.no_grad():
                held.append(float(model.log_prob(inside).mean()))
        scores.append(Score(candidate, fmean(held), candidate.parameters(x.shape[1])))
    scores.sort(key=lambda score: -score.log_likelihood)
    best = min(
        (s for s in scores if s.log_likelihood >= scores[0].log_likelihood - TIE),
        key=lambda score: score.parameters,
    )
    scores.sort(key=lambda score: score is not best)
    return train_candidate(best.candidate, x, seed), scores


def train_candidate(candidate: Candidate, x: Tensor, seed: int) -> DNMM:
    """Return a candidate trained on x (N, d)."""
    generator = torch.Generator().manual_seed(seed)
    model = DNMM(x.shape[1], candidate.n_components, candidate.hidden, generator=generator)
    model.fit(x, steps=candidate.steps, weight_decay=candidate.weight_decay)
    return model
