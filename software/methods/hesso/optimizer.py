"""HESSO: train, and shrink the groups that matter least to exact zeros on the way."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sat.methods.hesso.groups import GroupSpec, GroupTable
from sat.methods.hesso.saliency import require_criteria, saliency
from sat.methods.problems.parameters import (
    require_gradients,
    require_momentum,
    require_options,
)

VARIANTS = ("sgd", "adam", "adamw")
MOST = 0.999
"""Largest share of the groups that is pruned."""

Loss = Tensor | float | None


class GroupOptimizer(torch.optim.Optimizer, ABC):
    """What HESSO and HESSO-CRIC share: directions, the choice of groups, exact zeros.

    Parameters
    ----------
    As `HESSO`.
    """

    def __init__(
        self, groups: Sequence[GroupSpec], model: nn.Module, lr: float, *, variant: str,
        momentum: float, dampening: float, betas: tuple[float, float], eps: float,
        weight_decay: float, target: float, start: int, divisible: int,
        criteria: Mapping[str, float] | None,
    ) -> None:  # fmt: skip
        self.groups = groups
        self.table = GroupTable(self.groups)
        self.criteria = require_criteria(criteria)
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: must be one of {', '.join(VARIANTS)}")
        if not 0 <= target < 1:
            raise ValueError(f"target={target}: must be a share in [0, 1); 0.5 prunes half")
        for name, number, least in (("start", start, 0), ("divisible", divisible, 1)):
            require_int(name, number, least)
        require_momentum("momentum", momentum)
        for beta in betas:
            require_momentum("betas", beta)
        self.variant, self.start, self.divisible = variant, start, divisible
        parameters = [p for p in model.parameters() if p.requires_grad]
        known = set(parameters)
        for group in self.groups:
            if any(entry.tensor not in known for entry in group.entries):
                raise ValueError(
                    f"group {group.name} has a parameter that is not one of the model's trainable "
                    "ones: must be of the model that prunable_groups was given; trace it again"
                )
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dampening": dampening,
            "betas": betas, "eps": eps,
        }  # fmt: skip
        super().__init__(parameters, defaults)
        require_options(self.param_groups[0])
        count = len(self.table)
        self.steps_taken = 0
        self.to_prune = int(count * min(target, MOST))
        self.pruned = torch.zeros(count, dtype=torch.bool)
        self.active = torch.zeros(count, dtype=torch.bool)
        per_layer = torch.bincount(self.table.layer_of)
        self._eligible = (per_layer > divisible)[self.table.layer_of]

    @property
    def redundant(self) -> Tensor:
        """Groups that were chosen: pruned, or on their way there, (groups,) bool."""
        return self.pruned | self.active

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all groups that will be pruned are zero."""

    def sparsity(self) -> float:
        """Return the share of groups that are exactly zero."""
        return float((self.table.norms() == 0).double().mean())

    def scores(self, directions: Mapping[Tensor, Tensor]) -> Tensor:
        """Return each group's score, (groups,) float64: the lowest are redundant."""
        return torch.stack(saliency(self.table, directions, self.criteria)).sum(0)

    # --------------------------------------------------------------------------------- steps

    @torch.no_grad()
    def step(self, loss: Loss | Callable[[], Loss] = None) -> Loss:  # type: ignore[override]
        """Take a step.

        Parameters
        ----------
        loss : torch.Tensor or float, or callable, optional
            The loss whose gradients these are; a callable computes both anew. HESSO only looks
            whether it is finite; HESSO-CRIC needs it.

        Returns
        -------
        torch.Tensor or float or None
            The loss.

        Raises
        ------
        ValueError
            If the loss or a gradient is not finite; nothing has changed then.
        """
        if callable(loss):
            with torch.enable_grad():
                loss = loss()
        number = self.steps_taken + 1
        value = float(loss.detach()) if isinstance(loss, Tensor) else loss
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"loss={value} at step {number}: must be finite; nothing was changed: lower the "
                "learning rate"
            )
        require_gradients(self.param_groups)
        self._require_loss(value, number)
        self.steps_taken = number
        self._advance(number, self._directions(), value)
        self.table.scale(self.pruned, 0)
        return loss

    def _require_loss(self, loss: float | None, number: int) -> None:
        """Raise if this step needs a loss that is not there."""

    @abstractmethod
    def _advance(self, number: int, directions: dict[Tensor, Tensor], loss: float | None) -> None:
        """Move the parameters, and choose and shrink groups as the schedule says."""

    def _descend(self, directions: Mapping[Tensor, Tensor]) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in directions:
                    parameter.add_(directions[parameter], alpha=-group["lr"])

    def _shrink(self, chosen: Tensor, length: int, t: int) -> None:
        """Shrink groups that were whole ``t`` steps ago, and are zero after ``length`` steps."""
        self.table.scale(chosen, (length - t - 1) / (length - t))

    def _directions(self) -> dict[Tensor, Tensor]:
        return {
            p: self._direction(p, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        }

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        assert p.grad is not None
        g, state, decay = p.grad, self.state[p], group["weight_decay"]
        if decay and self.variant != "adamw":
            g = g + decay * p
        if self.variant == "sgd":
            if "buffer" in state:
                buffer: Tensor = state["buffer"]
                buffer.mul_(group["momentum"]).add_(g, alpha=1 - group["dampening"])
            else:
                state["buffer"] = g.clone()
            return state["buffer"].clone()
        beta1, beta2 = group["betas"]
        if not state:
            state |= {"mean": torch.zeros_like(p), "square": torch.zeros_like(p), "count": 0}
        state["count"] += 1
        state["mean"].lerp_(g, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (state["square"] / (1 - beta2 ** state["count"])).sqrt_()
        direction: Tensor = state["mean"] / (1 - beta1 ** state["count"]) / root.add_(group["eps"])
        return direction + decay * p if decay and self.variant == "adamw" else direction

    # -------------------------------------------------------------------------------- choice

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """Return the ``count`` groups of lowest score that are not pruned, (groups,) bool.

        No layer is emptied, and what is left of each is rounded up to a multiple of ``divisible``,
        for which its candidates of highest score stay; so there may be fewer.
        """
        order = scores.masked_fill(self.pruned | ~self._eligible, math.inf).argsort(stable=True)
        open_ = int((~self.pruned & self._eligible).sum())
        candidates = order[: min(count, open_)]
        chosen = torch.zeros_like(self.pruned)
        chosen[candidates] = True
        for layer in range(len(self.table.layers)):
            inside = self.table.layer_of == layer
            left = int((inside & ~self.pruned).sum())
            kept = left - int((inside & chosen).sum())
            wanted = min(left, max(1, math.ceil(kept / self.divisible)) * self.divisible)
            if wanted > kept:
                mine = candidates[inside[candidates]]
                chosen[mine[len(mine) - (wanted - kept) :]] = False
        return chosen

    # --------------------------------------------------------------------------------- state

    _KEPT: tuple[str, ...] = ("steps_taken", "pruned", "active")

    def state_dict(self) -> dict[str, Any]:
        """Return torch's, and what the schedule has come to."""
        schedule = {name: copy.deepcopy(getattr(self, name)) for name in self._KEPT}
        return super().state_dict() | {"schedule": schedule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        state_dict = dict(state_dict)
        schedule = state_dict.pop("schedule")
        super().load_state_dict(state_dict)
        for name in self._KEPT:
            setattr(self, name, copy.deepcopy(schedule[name]))


class HESSO(GroupOptimizer):
    """SGD or Adam that also drives the groups of least saliency to zero, in a few periods.

    Parameters
    ----------
    groups : sequence of GroupSpec
        See `prunable_groups`.
    model : nn.Module
        All its trainable parameters are trained.
    lr : float
    variant : str
        ``"sgd"``, ``"adam"`` or ``"adamw"``, as those of ``torch.optim``.
    momentum, dampening : float
        SGD's.
    betas, eps
        Adam's.
    weight_decay : float
        Added to the gradient, or decoupled (``"adamw"``).
    target : float
        Share of the groups to prune, in [0, 1).
    start : int
        Ordinary steps at first.
    steps : int
        Steps of pruning; the groups of a period are zero at its end.
    periods : int
        Times that groups are chosen.
    divisible : int
        What the kept groups of each layer are a multiple of; layers of no more stay whole.
    criteria : mapping of str to float, optional
        Weights of `saliency`.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or a group's parameter is not the model's.

    Source
    ------
    Chen et al. 2024, arXiv 2409.09085, algorithm 1; ``optimizer/hesso.py`` of the authors' code.
    Adam starts its moments at zero, as torch's does, and pruned groups are left out of the ranking.
    """

    def __init__(
        self, groups: Sequence[GroupSpec], model: nn.Module, lr: float, *, variant: str = "sgd",
        momentum: float = 0.9, dampening: float = 0.0, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, target: float = 0.5, start: int = 0,
        steps: int, periods: int = 1, divisible: int = 1,
        criteria: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        require_int("periods", periods, 1)
        require_int("steps", steps, 1)
        if steps < periods:
            raise ValueError(f"steps={steps}: must be at least periods={periods}; raise it")
        self.periods, self.length = periods, steps // periods
        super().__init__(
            groups, model, lr, variant=variant, momentum=momentum, dampening=dampening,
            betas=betas, eps=eps, weight_decay=weight_decay, target=target, start=start,
            divisible=divisible, criteria=criteria,
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        return self.steps_taken >= self.start + self.periods * self.length

    def _advance(self, number: int, directions: dict[Tensor, Tensor], loss: float | None) -> None:
        period, place = divmod(number - self.start - 1, self.length)
        inside = 0 <= period < self.periods
        if inside and place == 0:
            count = self.to_prune // self.periods
            if period == self.periods - 1:
                count = self.to_prune - int(self.pruned.sum())
            self.active = self.choose(self.scores(directions), count)
        self._descend(directions)
        if not inside:
            return
        t = (number - self.start) % self.length
        self._shrink(self.active, self.length, t)
        if t == self.length - 1:
            self.pruned |= self.active
            self.active = torch.zeros_like(self.pruned)


def require_int(name: str, value: int, least: int) -> None:
    """Raise ValueError unless ``value`` is an int of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: must be an int of at least {least}; change it")
