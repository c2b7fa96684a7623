"""Loops that train a model: on shuffled samples, or on points that are new at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import LOSS_SCALE, scaled_backward

SCHEDULES = ("onecycle", "cosine", "cuts", "constant")


def fit(
    loss: Callable[[Tensor], Tensor],
    samples: int,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    generator: torch.Generator,
    schedule: str = "onecycle",
    on_epoch: Callable[[int], bool | None] | None = None,
) -> list[float]:
    """Train for some epochs; return the mean loss of each.

    Parameters
    ----------
    loss : callable
        Of places (batch,) int64 in the training set; its gradient is taken.
    samples : int
        Of the training set; a last short batch is used, too.
    optimizer : torch.optim.Optimizer
        Its learning rates are the schedule's highest.
    epochs, batch : int
    generator : torch.Generator
        Of the order of samples.
    schedule : {"onecycle", "cosine", "cuts", "constant"}
        Up within 30 % of the steps, then down; a half wave of a cosine down to 0; constant, times
        0.4 after 3/8, 5/8 and 7/8 of the steps; or constant.
    on_epoch : callable, optional
        Called after each epoch with its number, from 1; True stops.

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If a number is no positive int, or there is no such schedule.
    FloatingPointError
        If a loss is not finite; that step changed nothing.
    """
    require_counts(samples=samples, epochs=epochs, batch=batch)
    steps = epochs * -(-samples // batch)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps)
    elif schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    elif schedule == "cuts":
        cuts = [round(steps * share / 8) for share in (3, 5, 7)]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, cuts, 0.4)
    elif schedule == "constant":
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    else:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    curve = []
    for epoch in range(1, epochs + 1):
        losses = []
        for places in torch.randperm(samples, generator=generator).split(batch):
            optimizer.zero_grad()
            now = loss(places)
            value = float(now.detach())
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"epoch {epoch}: the loss is {value}: must be finite; lower the learning rate, "
                    "or look for infinities in the data"
                )
            now.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            losses.append(value)
        curve.append(fmean(losses))
        if on_epoch is not None and on_epoch(epoch):
            break
    return curve


def descend(
    model: nn.Module,
    losses: Callable[[int], Iterable[Tensor]],
    *,
    steps: int,
    lr: float,
    last_lr: float = 0.0,
    scale: Callable[[float], float] = lambda _: LOSS_SCALE,
    on_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train by Adam, its learning rate linear in the step; return the loss of each step.

    Parameters
    ----------
    model : nn.Module
        Its parameters are trained.
    losses : callable
        Of the step's number, from 0. The gradients of all that it gives are added up, one after the
        other, so that no more than one graph is kept.
    steps : int
    lr, last_lr : float
        Of the first step, and of the one after the last.
    scale : callable
        Takes a loss to what it is multiplied by for its gradient, a power of two.
    on_step : callable, optional
        Called after each step with its number, from 1.

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If ``steps`` is no positive int, or ``lr`` not positive.
    FloatingPointError
        If a loss is not finite; that step changed nothing.
    """
    require_counts(steps=steps)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr}: must be positive and finite; 1e-3 is Adam's usual one")
    optimizer = torch.optim.Adam(model.parameters(), lr)
    curve = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr + (last_lr - lr) * step / steps
        optimizer.zero_grad()
        total = 0.0
        for loss in losses(step):
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"step {step}: the loss is {value}: must be finite; lower lr={lr}, or look for "
                    "points outside the domain"
                )
            scaled_backward(loss, model, scale(value))
            total += value
        optimizer.step()
        curve.append(total)
        if on_step is not None:
            on_step(step + 1)
    return curve
