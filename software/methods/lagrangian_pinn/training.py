"""Training on points that are new at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sat.methods.lagrangian_pinn.models import PERIOD, EulerianPINN, LagrangianPINN
from sat.methods.problems.arguments import require_counts
from sat.methods.problems.training import descend

RELEASED = {"x": 10.0, "u": 1.0, "ic": 1000.0}
"""Weights of the released code, whose losses are norms."""


def fit(
    model: LagrangianPINN | EulerianPINN,
    n_points: int = 1000,
    steps: int = 1000,
    lr: float = 3e-3,
    weights: dict[str, float] | None = None,
    *,
    last_lr: float = 1e-5,
    norms: bool = False,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train by Adam, its learning rate linear in the step; return the loss of each step.

    Parameters
    ----------
    model : LagrangianPINN or EulerianPINN
    n_points : int
        Points of a step, uniform in labels (places) and times.
    steps : int
    lr, last_lr : float
        Of the first step, and of the one after the last.
    weights : dict, optional
        Of the losses "x" and "u", and of "ic", which counts unless initial values are hard: 1, 1
        and 1000, if left out.
    norms : bool
        Whether losses are 2-norms of the residuals, as in the released code (with its weights
        `RELEASED`), instead of mean squares.
    seed : int
        Of the points.
    on_step : callable, optional
        Called after each step with its number, from 1.

    Returns
    -------
    list of float

    Raises
    ------
    ValueError
        If an argument breaks its rule.
    FoldError
        If the map of labels folds.
    FloatingPointError
        If a loss is not finite.
    """
    require_counts(n_points=n_points)
    given = {"x": 1.0, "u": 1.0, "ic": 1000.0, **(weights or {})}
    for name, weight in given.items():
        if name not in ("x", "u", "ic"):
            raise ValueError(f"weights has {name!r}: must be of 'x', 'u' and 'ic'")
        if not weight >= 0:
            raise ValueError(f"weights[{name!r}]={weight}: must not be negative")
    generator = torch.Generator().manual_seed(seed)

    def size(residual: Tensor) -> Tensor:
        return torch.linalg.vector_norm(residual) if norms else residual.square().mean()

    def losses(step: int) -> Iterator[Tensor]:
        y = PERIOD * torch.rand(n_points, generator=generator)
        t = model.t_max * torch.rand(n_points, generator=generator)
        of_x, of_u = model.residuals(y, t)
        loss = given["u"] * size(of_u)
        if isinstance(model, LagrangianPINN):
            loss = loss + given["x"] * size(of_x)
        if not model.hard_ic:
            for off in model.initial_residuals(y):
                loss = loss + given["ic"] * size(off)
        yield loss

    return descend(model, losses, steps=steps, lr=lr, last_lr=last_lr, on_step=on_step)
