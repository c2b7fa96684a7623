"""Digits read pixel by pixel: what models of sequences are trained on here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from sat.data import load_data
from sat.methods.s4d.layer import parameter_groups

EPOCHS, BATCH = 20, 64
LR, SSM_LR, CLIP = 1e-2, 1e-3, 1.0
D_MODEL, D_STATE, LAYERS, CLASSES = 32, 64, 2, 10


def train_digits(
    make: Callable[[], nn.Module], seed: int, *, epochs: int = EPOCHS
) -> tuple[nn.Module, list[float]]:
    """Train on digits, 64 pixels one after the other; one recipe for every model.

    Parameters
    ----------
    make : callable
        Returns a fresh model, (batch, 1, 64) to (batch, 10), from torch's random state.
    seed : int
        Of parameters and the order of samples; the split is always the same.
    epochs : int

    Returns
    -------
    model : torch.nn.Module
    curve : list of float
        Test accuracy after each epoch, 0 to 1.
    """
    data = load_data("digits")
    torch.manual_seed(seed)
    net, order = make(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(net, LR, ssm_lr=SSM_LR))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=epochs * data.steps(BATCH),
    )
    curve = []
    for _ in range(epochs):
        for x, y in data.batches(BATCH, order):
            optimizer.zero_grad()
            functional.cross_entropy(net(x.flatten(2)), y).backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            hits = net(data.test_x.flatten(2)).argmax(1) == data.test_y
        curve.append(float(hits.double().mean()))
    return net, curve
