"""Training, prediction, and figures of merit of networks of `SparseBayesLayer`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat.methods.ssvi.layers import SparseBayesLayer
from sat.methods.ssvi.search import SSVI, UpdateReport

LOSS_SCALE = 2.0**6
"""Gradients are taken of the loss times this, and divided by it: float16 keeps them then."""


@dataclass
class Fit:
    """How a training went.

    Attributes
    ----------
    losses : list of float
        Objective of each step, nats.
    updates : list of UpdateReport
    sigma : float
        Mean deviation of active weights at the end.
    seconds : float
        Processor time.
    """

    losses: list[float] = field(default_factory=list)
    updates: list[UpdateReport] = field(default_factory=list)
    sigma: float = 0.0
    seconds: float = 0.0


def sparse_layers(model: nn.Module) -> list[SparseBayesLayer]:
    """Return a model's layers of distributions.

    Raises
    ------
    ValueError
        If there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, SparseBayesLayer)]
    if not layers:
        raise ValueError(f"model {type(model).__name__} has no SparseBayesLayer: build it of some")
    return layers


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 60,
    batch: int = 64,
    lr: float = 0.05,
    rho_lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    kl_scale: float = 0.1,
    delta: int = 20,
    alpha: float = 0.3,
    stop: float = 0.75,
    static: bool = False,
    generator: torch.Generator | None = None,
    **search: Any,
) -> Fit:
    """Train by SGD under a cosine schedule, active weights updated every ``delta`` steps.

    The objective of a batch is its mean cross entropy plus kl_scale / samples times the sum of
    KL divergences of active weights, times min(2·epoch/epochs, 1).

    Parameters
    ----------
    model : nn.Module
        Logits of classes; trained in place.
    x, y : torch.Tensor
        (samples, ...) and (samples,) int64.
    epochs, batch : int
        Batches are full; what is left over sits out an epoch.
    lr, rho_lr : float
        Of means and of ``rho``, the same if not given; the latter does not decay.
    momentum, weight_decay, kl_scale : float
    delta, alpha : int, float
        See `SSVI`; updates end after a share ``stop`` of all steps.
    static : bool
        Whether the active weights stay those of the beginning.
    generator : torch.Generator, optional
        Source of the order; noise comes of torch's random state.
    **search
        For `SSVI`: ``criterion``, ``growth``, ``new_sigma``.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        If an argument breaks its rule, or a label is negative or above the logits.
    FloatingPointError
        If a parameter is no longer finite; names the layer.
    """
    layers = sparse_layers(model)
    for name, value in (("epochs", epochs), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a positive int; raise it")
    if len(x) != len(y) or len(x) < batch:
        raise ValueError(
            f"{len(x)} samples, {len(y)} labels: must be as many, at least batch={batch}; lower it"
        )
    for name, number in (("kl_scale", kl_scale), ("weight_decay", weight_decay)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}={number}: must be finite and not negative")
    if not 0 < stop <= 1:
        raise ValueError(f"stop={stop}: must be above 0 and at most 1, a share of the steps")
    with torch.no_grad(), using(model, "mean"):
        require_labels(y, model(x[:1]).shape[-1])
    rhos = [layer.rho for layer in layers if layer.rho is not None]
    slow = {id(rho) for rho in rhos}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) not in slow], "lr": lr}
    ]
    if rhos:
        own = lr if rho_lr is None else rho_lr
        groups.append({"params": rhos, "lr": own, "weight_decay": 0.0})
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    finder = None
    if not static and any(len(layer.places) < layer.rows * layer.depth for layer in layers):
        finder = SSVI(
            model, delta=delta, alpha=alpha, t_end=max(1, int(stop * steps)), optimizer=optimizer,
            **search,
        )  # fmt: skip
    result, step, began = Fit(), 0, time.process_time()
    for epoch in range(epochs):
        ramp = min(2 * epoch / epochs, 1.0) * kl_scale / len(x)
        order = torch.randperm(len(x), generator=generator)
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            updating = finder is not None and finder.before_backward(step)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[chosen]), y[chosen])
            if ramp:
                loss = loss + ramp * torch.stack([layer.kl() for layer in layers]).sum()
            (loss * LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
            if updating:
                assert finder is not None
                result.updates.append(finder.update(step))
            else:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.div_(LOSS_SCALE)
                optimizer.step()
            schedule.step()
            result.losses.append(float(loss.detach()))
            step += 1
        for name, module in model.named_modules():
            if isinstance(module, SparseBayesLayer):
                module.require_finite(name)
    result.seconds = time.process_time() - began
    if rhos:
        result.sigma = float(torch.cat([functional.softplus(rho.detach()) for rho in rhos]).mean())
    return result


@contextmanager
def using(model: nn.Module, mode: str) -> Iterator[None]:
    """Let all layers of a model be in a mode, and back in theirs afterwards."""
    layers = sparse_layers(model)
    before = [layer.mode for layer in layers]
    for layer in layers:
        layer.mode = mode
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.mode = mode


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, samples: int = 20) -> Tensor:
    """Return the mean of softmax over draws of all weights.

    Parameters
    ----------
    model : nn.Module
    x : torch.Tensor
        (samples, ...).
    samples : int
        Draws, from torch's random state.

    Returns
    -------
    torch.Tensor
        (samples, classes).

    Raises
    ------
    ValueError
        If ``samples`` is below 1.
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples={samples!r}: must be an int of at least 1; 20 serve")
    with using(model, "weights"):
        return torch.stack([model(x).softmax(-1) for _ in range(samples)]).mean(0)


def require_labels(y: Tensor, classes: int) -> None:
    """Raise ValueError unless labels are whole numbers from 0 to classes - 1."""
    if y.ndim != 1 or y.is_floating_point() or not len(y):
        raise ValueError(f"y is {y.dtype} of shape {tuple(y.shape)}: must be (samples,) int64")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"y has labels from {low} to {high}: must be 0 to {classes - 1}, one of the classes"
        )


def expected_calibration_error(p: Tensor, y: Tensor, bins: int = 15) -> float:
    """Return the mean distance of confidence and accuracy over bins of confidence of one width.

    Parameters
    ----------
    p : torch.Tensor
        (samples, classes) probabilities.
    y : torch.Tensor
        (samples,) int64.
    bins : int

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If shapes do not fit, labels are out of range, or there is no bin.
    """
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins={bins!r}: must be an int of at least 1; 15 is usual")
    if p.ndim != 2 or len(p) != len(y):
        raise ValueError(
            f"p has shape {tuple(p.shape)}, y {tuple(y.shape)}: must be (samples, classes) and "
            "(samples,)"
        )
    require_labels(y, p.shape[1])
    confidence, choice = p.double().max(1)
    right = (choice == y).double()
    # Bins hold their upper edge.
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, number, right - confidence)
    return float(gap.abs().sum() / len(y))


def negative_log_likelihood(p: Tensor, y: Tensor) -> float:
    """Return the mean of -log p of the right class, nats; arguments as above."""
    require_labels(y, p.shape[1])
    return float(-p.double().gather(1, y[:, None]).clamp(min=1e-12).log().mean())


def training_flops(
    model: nn.Module, density: float | None = None, steps: int = 1, delta: int = 100, *,
    batch: int = 1,
) -> float:  # fmt: skip
    """Return floating point operations of training linear layers, two a multiply and add.

    Two products of each layer, of means and of deviations, each forward and for both gradients, at
    active places; and every ``delta`` steps the gradient of the means at all places.

    Parameters
    ----------
    model : nn.Module
        Convolutions count one place of the picture.
    density : float, optional
        In place of the layers' own.
    steps, delta, batch : int

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If ``density`` is not above 0 and at most 1, or a count below 1.
    """
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density={density}: must be above 0 and at most 1")
    for name, value in (("steps", steps), ("delta", delta), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    total = 0.0
    for layer in sparse_layers(model):
        size, share = layer.rows * layer.depth, density or len(layer.places) / layer.mask.numel()
        products = 2 if layer.bayes else 1
        dense = (1 - share) / delta if share < 1 else 0.0
        total += 2 * batch * steps * size * (3 * products * share + dense)
    return total
