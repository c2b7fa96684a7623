"""Training in the norm of the output space."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sat.methods.problems.scaling import scaled_backward
from sat.methods.spon.network import SPON
from sat.methods.spon.space import fe_norm, relative_fe_error


def fit(
    model: SPON,
    dofs_in: Tensor,
    dofs_out: Tensor,
    *,
    epochs: int = 100,
    batch: int = 20,
    lr: float = 8e-3,
    kind: str = "l2",
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a network's processor by Adam under a one-cycle rate; return losses by epoch.

    The loss is the relative error in the norm of the output space, by its Gram matrix, averaged
    over samples. The scales of input and output are set to the root mean square of the data.

    Parameters
    ----------
    model : SPON
    dofs_in, dofs_out : Tensor
        (samples, n) and (samples, m).
    epochs, batch : int
    lr : float
        Largest rate.
    kind : {"l2", "h1"}
    seed : int
        Of the order of samples.
    on_epoch : callable, optional
        Called with each epoch's number and loss.

    Raises
    ------
    ValueError
        Sizes that do not fit, a sample of norm 0, or a number that breaks its rule.
    """
    if epochs < 1 or batch < 1 or not lr > 0:
        raise ValueError(f"epochs={epochs}, batch={batch}, lr={lr}: must be at least 1, 1, above 0")
    space = model.decoder.space
    model.encoder.space.check_coefficients(dofs_in, "dofs_in")
    space.check_coefficients(dofs_out, "dofs_out")
    if len(dofs_in) != len(dofs_out):
        raise ValueError(f"{len(dofs_in)} inputs and {len(dofs_out)} outputs: must be as many")
    if not (fe_norm(dofs_out.double(), space) > 0).all():
        raise ValueError("dofs_out: a sample is 0 everywhere, so it has no relative error")
    root = [float(x.double().square().mean().sqrt()) for x in (dofs_in, dofs_out)]
    model.scales.copy_(torch.tensor(root))
    # Fixed dofs are not the processor's to learn.
    dofs_in, dofs_out = dofs_in.float(), dofs_out.float()
    optimizer = torch.optim.Adam(model.processor.parameters(), lr)
    steps = -(-len(dofs_in) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(dofs_in), generator=generator).split(batch):
            optimizer.zero_grad()
            made = model(dofs_in[chosen]).dofs
            errors = relative_fe_error(made / root[1], dofs_out[chosen] / root[1], space, kind)
            scaled_backward(errors.mean(), model.processor)
            optimizer.step()
            schedule.step()
            total += float(errors.detach().sum())
        losses.append(total / len(dofs_in))
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    return losses
