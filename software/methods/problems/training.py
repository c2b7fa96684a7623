"""The loop that trains a model on samples: shuffled batches, one learning rate schedule a step."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

SCHEDULES = ("onecycle", "cosine", "cuts")


def fit(
    loss: Callable[[Tensor], Tensor],
    samples: int,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch: int,
    generator: torch.Generator,
    schedule: str = "onecycle",
    on_epoch: Callable[[int], None] | None = None,
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
    schedule : {"onecycle", "cosine", "cuts"}
        Up within 30 % of the steps, then down; a half wave of a cosine down to 0; or constant,
        times 0.4 after 3/8, 5/8 and 7/8 of the steps.
    on_epoch : callable, optional
        Called after each epoch with its number, from 1.

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If a number is no positive int, or there is no such schedule.
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
    else:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    curve = []
    for epoch in range(1, epochs + 1):
        losses = []
        for places in torch.randperm(samples, generator=generator).split(batch):
            optimizer.zero_grad()
            now = loss(places)
            now.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            losses.append(float(now.detach()))
        curve.append(fmean(losses))
        if on_epoch is not None:
            on_epoch(epoch)
    return curve
