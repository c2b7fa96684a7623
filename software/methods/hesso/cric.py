"""HESSO-CRIC: look at redundant groups again after their competitors were shrunk, then decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sat.methods.hesso.groups import GroupSpec
from sat.methods.hesso.optimizer import GroupOptimizer, require_int

SHARES = (0.25, 0.5, 0.75)
"""Of each layer's groups that its trials set to zero."""
LOSS_WEIGHT = 1.0
UNTRIED = 2.0
"""What a group that no trial set to zero costs, over the most that one of its layer's did."""


def tried(share: float, groups: int) -> int:
    """Return how many groups of a layer a trial sets to zero."""
    return max(1, int(share * groups))


class HESSOCRIC(GroupOptimizer):
    """HESSO's training with a corrective cycle before any group is given up.

    After ``start`` steps come trials: a quarter, a half and three quarters of each layer's lowest
    groups are zero for a step, and its loss over that of the start is noted (two steps a trial).
    Then cycles of ``sampling_steps``: the groups in doubt are shrunk to zero while the others
    train, those that then come up as lowest are in doubt next, all parameters go back. Once no
    more than ``tolerance`` are in doubt, the lowest by the mean of all scores, and by what their
    layer's trials cost, are shrunk over ``hybrid_steps``.

    Parameters
    ----------
    groups, model, lr, variant, momentum, dampening, betas, eps, weight_decay, target, start
        As `HESSO`; ``start`` is at least 1.
    divisible, criteria
        As `HESSO`.
    sampling_steps, hybrid_steps : int
        Steps of a cycle, and of the last shrinking.
    max_cycles : int
        The last cycle that begins ends it all.
    tolerance : int
        Groups that may still be in doubt.
    loss_term : str
        What trials add to the scores. ``"marginal"``: the rise of the loss from one trial of a
        layer to the next, shared by the groups that only the next set to zero; those that none did
        cost twice the most of these; normalised as the criteria are. ``"layer"``, the released
        code's: all groups of a layer get the mean of its losses over their number; where layers are
        small, the largest one is then emptied.

    Attributes
    ----------
    cycle : int
        The cycle that runs, from 1; 0 before.
    doubted : list of int
        How many groups were in doubt in each cycle.

    Raises
    ------
    ValueError
        If an argument breaks its rule; at a step without its loss.

    Source
    ------
    Chen et al. 2024, arXiv 2409.09085, algorithm 2; ``optimizer/hesso_cric.py`` of the authors'
    code. Parameters and buffers (running statistics) go back.
    """

    _KEPT = (
        *GroupOptimizer._KEPT, "cycle", "doubted", "doubt", "history", "trial", "decided_at",
        "_began", "_reference", "_saved", "_sum", "_collected", "_ratios",
    )  # fmt: skip

    def __init__(
        self, groups: Sequence[GroupSpec], model: nn.Module, lr: float, *, variant: str = "sgd",
        momentum: float = 0.9, dampening: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, target: float = 0.5, start: int = 1,
        sampling_steps: int, hybrid_steps: int, max_cycles: int = 10, tolerance: int = 0,
        divisible: int = 1, criteria: Mapping[str, float] | None = None,
        loss_term: str = "marginal",
    ) -> None:  # fmt: skip
        if loss_term not in ("marginal", "layer"):
            raise ValueError(f"loss_term={loss_term!r}: must be 'marginal' or 'layer'; choose one")
        for name, number, least in (
            ("start", start, 1), ("sampling_steps", sampling_steps, 1),
            ("hybrid_steps", hybrid_steps, 1), ("max_cycles", max_cycles, 1),
            ("tolerance", tolerance, 0),
        ):  # fmt: skip
            require_int(name, number, least)
        super().__init__(
            groups, model, lr, variant=variant, momentum=momentum, dampening=dampening,
            betas=betas, eps=eps, weight_decay=weight_decay, target=target, start=start,
            divisible=divisible, criteria=criteria,
        )  # fmt: skip
        self.sampling_steps, self.hybrid_steps = sampling_steps, hybrid_steps
        self.max_cycles, self.tolerance = max_cycles, tolerance
        self.model, self.loss_term = model, loss_term
        nothing = torch.zeros(len(self.table), dtype=torch.bool)
        self.cycle, self.doubted = 0, list[int]()
        self.doubt, self.history, self.trial = nothing, nothing, nothing
        self.decided_at = -1
        self._began = 0
        self._reference = 0.0
        self._saved: dict[str, Tensor] = {}
        self._sum = torch.zeros(len(self.table), dtype=torch.float64)
        self._collected = 0
        self._ratios: list[list[float]] = [[] for _ in self.table.layers]

    @property
    def finished(self) -> bool:
        return 0 <= self.decided_at <= self.steps_taken - self.hybrid_steps

    def _require_loss(self, loss: float | None, number: int) -> None:
        if loss is None and self.decided_at < 0:
            raise ValueError(
                f"step {number} has no loss: HESSO-CRIC compares losses; call step(loss)"
            )

    def _advance(self, number: int, directions: dict[Tensor, Tensor], loss: float | None) -> None:
        if self.decided_at >= 0:
            self._finish(number, directions)
            return
        if number < self.start:
            self._descend(directions)
            return
        assert loss is not None
        if number == self.start:
            self._reference = loss
            self._saved = {k: v.clone() for k, v in self.model.state_dict().items()}
        scores = self.scores(directions)
        self._sum += scores
        self._collected += 1
        trials = 2 * len(SHARES) * len(self.table.layers)
        if number < self.start + trials:
            self._try(number - self.start, scores, loss)
        else:
            self._cycle(number - self.start - trials, scores, directions)

    def _restore(self) -> None:
        for name, value in self.model.state_dict().items():
            value.copy_(self._saved[name])

    def _try(self, place: int, scores: Tensor, loss: float) -> None:
        """Set a share of a layer's lowest groups to zero, or note what that cost."""
        which, measure = divmod(place, 2)
        layer, share = divmod(which, len(SHARES))
        if measure:
            self._ratios[layer].append(loss / self._reference)
            self._restore()
            return
        inside = (self.table.layer_of == layer).nonzero()[:, 0]
        count = tried(SHARES[share], len(inside))
        lowest = torch.zeros_like(self.pruned)
        lowest[inside[scores[inside].argsort(stable=True)[:count]]] = True
        self.table.scale(lowest, 0)

    def _lowest(self, scores: Tensor) -> Tensor:
        lowest = torch.zeros_like(self.pruned)
        lowest[scores.argsort(stable=True)[: self.to_prune]] = True
        return lowest

    def _cycle(self, place: int, scores: Tensor, directions: dict[Tensor, Tensor]) -> None:
        t = place % self.sampling_steps
        if t == 0:
            self.cycle += 1
            self.doubt = self._lowest(scores) if self.cycle == 1 else self.trial & ~self.history
            self.doubted.append(int(self.doubt.sum()))
            self.history = self.history | self.doubt
            self.trial = torch.zeros_like(self.doubt)
            self._restore()
            if self.cycle >= self.max_cycles or self.doubted[-1] <= self.tolerance:
                self._decide()
                return
        self.trial = self.trial | (self._lowest(scores) & ~self.doubt & ~self.history)
        self._descend(directions)
        self._shrink(self.doubt, self.sampling_steps, t)

    def _decide(self) -> None:
        scores = self._sum / self._collected
        self.active = self.choose(scores + LOSS_WEIGHT * self._costs(scores), self.to_prune)
        self.decided_at = self.steps_taken
        self._saved = {}

    def _costs(self, scores: Tensor) -> Tensor:
        """Return what each group costs by the trials of its layer, (groups,) float64."""
        costs = torch.zeros_like(scores)
        for layer, ratios in enumerate(self._ratios):
            inside = (self.table.layer_of == layer).nonzero()[:, 0]
            if self.loss_term == "layer":
                costs[inside] = sum(ratios) / len(ratios) / len(inside)
                continue
            order = inside[scores[inside].argsort(stable=True)]
            before, first = 1.0, 0
            for share, ratio in zip(SHARES, ratios, strict=True):
                last = tried(share, len(inside))
                if last > first:
                    costs[order[first:last]] = max(0.0, ratio - before) / (last - first)
                    first = last
                before = max(before, ratio)
            costs[order[first:]] = UNTRIED * costs[inside].max()
        if self.loss_term == "layer":
            return costs
        return costs / (costs.square().sum().sqrt() + 1e-8)

    def _finish(self, number: int, directions: dict[Tensor, Tensor]) -> None:
        self._descend(directions)
        t = number - self.decided_at - 1
        if t < self.hybrid_steps:
            self._shrink(self.active, self.hybrid_steps, t)
        if t == self.hybrid_steps - 1:
            self.pruned = self.active
            self.active = torch.zeros_like(self.pruned)
