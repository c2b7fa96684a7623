"""Train a merged model back to what the full one knew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.mc_smoe.compress import RowPruner
from sat.methods.problems.scaling import scaled_backward

KL_WEIGHT, TEMPERATURE = 0.2, 2.0
BETAS, EPS, DECAY, WARMUP = (0.9, 0.98), 1e-6, 0.01, 16


def recovery_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, weight: float = KL_WEIGHT
) -> Tensor:
    """Return the cross entropy, plus ``weight`` times the divergence from the teacher.

    The divergence is that of ``F.kl_div``, the teacher's distribution from the student's, both at
    temperature 2; without a factor of its square, as in the authors' code.

    Parameters
    ----------
    student, teacher : torch.Tensor
        (samples, classes) logits.
    targets : torch.Tensor
        (samples,) int64.
    """
    far = functional.kl_div(
        (student / TEMPERATURE).log_softmax(-1), (teacher.detach() / TEMPERATURE).log_softmax(-1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return functional.cross_entropy(student, targets) + weight * far


def recover(
    model: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, steps: int,
    lr: float, weight: float = KL_WEIGHT, pruner: RowPruner | None = None,
) -> list[float]:  # fmt: skip
    """Train a model by `recovery_loss`: AdamW, 16 steps of warm-up, then linear to zero.

    Parameters
    ----------
    model, teacher : nn.Module
        Merged, and full; called with inputs, they return logits. Frozen parameters stay.
    batches : iterable of tuple of torch.Tensor
        (inputs, targets), at least ``steps``.
    steps : int
    lr : float
        The highest.
    weight : float
        Of the divergence.
    pruner : RowPruner, optional
        Called after each step.

    Returns
    -------
    list of float
        The loss of each step.

    Raises
    ------
    ValueError
        If there are fewer batches than steps.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr, betas=BETAS, eps=EPS, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min((k + 1) / WARMUP, max(0.0, (steps - k) / max(1, steps - WARMUP)))
    )
    losses: list[float] = []
    for k, (x, y) in zip(range(1, steps + 1), batches, strict=False):
        model.zero_grad()
        with torch.no_grad():
            taught = teacher(x)
        loss = recovery_loss(model(x), taught, y, weight=weight)
        scaled_backward(loss, model)
        optimizer.step()
        schedule.step()
        if pruner is not None:
            pruner.step(k)
        losses.append(float(loss.detach()))
    if len(losses) < steps:
        raise ValueError(f"batches has {len(losses)}: must have at least {steps=}; repeat them")
    return losses
