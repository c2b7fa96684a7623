"""Quantisation-aware training of a binary denoiser."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from sat.methods.binarydm.mimic import LowRankMimic
from sat.methods.binarydm.plan import ProgressiveSchedule
from sat.methods.pndm import DenoiserMLP, add_noise, fit_average
from sat.methods.problems.arguments import require_counts


@dataclass
class BinaryTraining:
    """Losses of each step: of the denoiser, of mimicking (0 without, weighted)."""

    diffusion: list[float] = field(default_factory=list)
    mimic: list[float] = field(default_factory=list)


def train_binary(
    model: DenoiserMLP,
    data: Tensor,
    steps: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    *,
    average: float = 0.01,
    schedule: ProgressiveSchedule | None = None,
    mimic: LowRankMimic | None = None,
) -> BinaryTraining:
    """Train all parameters, latent weights and scales among them, to predict noise.

    Adam moves full-precision weights; they end as their average (`fit_average`).

    Parameters
    ----------
    model : DenoiserMLP
        With binary layers.
    data : torch.Tensor
        (samples, dim).
    steps, batch : int
    lr, average : float
    generator : torch.Generator
        Of samples, times and noise.
    schedule : ProgressiveSchedule, optional
        Switches groups of layers; without, all are binary from the first step.
    mimic : LowRankMimic, optional
        Its student is ``model``, its ``call`` must give velocities.

    Raises
    ------
    ValueError
        If a number breaks its rule, or the mimic's student is another model.
    FloatingPointError
        If a loss or a latent weight is not finite.
    """
    require_counts(batch=batch)
    if mimic is not None and mimic.student is not model:
        raise ValueError("mimic: its student is another model: must be the one that is trained")
    made = BinaryTraining()

    def loss(step: int) -> Tensor:
        if schedule is not None:
            schedule.step(step)
        chosen = torch.randint(len(data), (batch,), generator=generator)
        noised = add_noise(data[chosen], model.schedule, generator)
        if mimic is None:
            velocity, extra = model.velocity(noised.x, noised.t), data.new_zeros(())
        else:
            velocity, extra = mimic.run(noised.x, noised.t)
        own = functional.mse_loss(velocity, noised.velocity)
        made.diffusion.append(float(own.detach()))
        made.mimic.append(float(extra.detach()))
        return own + extra

    fit_average(model, loss, steps, lr, average=average)
    return made
