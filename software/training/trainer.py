"""Training with FP16 products and FP32 masters: dynamic loss scaling, SGD with momentum."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sat.data import DataSet
from sat.devices.base import Device
from sat.devices.context import (
    current_device,
    default_device,
    record_products,
    use_device,
)
from sat.devices.staged import StagedDevice
from sat.layers.convert import SparsityReport, sparsify_
from sat.layers.schemes import Scheme, get_scheme
from sat.sparsity.pattern import Pattern, Patterns
from sat.training.models import build_model, require_inputs
from sat.training.optim import DeviceSgd, LossScaler
from sat.training.parts import Parts, check_cut

_EVALUATION_BATCH = 512


@dataclass
class TrainResult:
    """What a training run did.

    Attributes
    ----------
    losses : list of float
        Loss of each step, without the scale.
    accuracies : list of float
        Share of the test set classified right, 0 to 1, after each epoch.
    steps, skipped : int
        Steps begun, and how many of them were left out for a gradient that was not finite.
    seconds : float
        Time spent training, in seconds, tests left out.
    report : SparsityReport
        What became of each layer.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0
    report: SparsityReport = field(default_factory=lambda: SparsityReport(()))

    @property
    def accuracy(self) -> float | None:
        """Accuracy at the end; None before the first test."""
        return self.accuracies[-1] if self.accuracies else None


class Trainer:
    """Trains a classifier; the same arguments give the same bits.

    (With the same number of torch threads: torch may split the sums of normalisation and loss.)

    SGD with momentum and weight decay in the order of ``torch.optim.SGD`` (the decay joins the
    gradient, then the momentum buffer takes both), learning rate falling along half a cosine.

    Parameters
    ----------
    model : nn.Module or str
        Changed in place; a name of `sat.training.models` builds one from the seed.
    data : DataSet
    scheme : str or Scheme
    pattern : str or Pattern or Patterns or None
    device : Device, optional
        Where products run; may be set anew between steps. The current device if not given.
    epochs : int
        At least 1.
    steps : int, optional
        Stop after so many, at least 1; the cosine then ends there.
    batch : int
        Samples in a step, from 1 to the training set.
    rate, momentum, decay : float
        Of SGD. Weight decay spares parameters with one axis (biases, normalisation).
    seed : int
        Of initial weights (if built here) and order of samples.
    scaler : LossScaler, optional
    shards : int
        Parts of the batch that are computed one after the other; at least 1, and a divisor of
        the batch. R shards have the bits of R ranks (`sat.training.parts`).
    distributed : bool
        Whether this is one rank of a process group (`sat.training.distributed`); ``batch`` is that
        of all.

    Raises
    ------
    ValueError
        If a number breaks its rule, the model or scheme is none, the model is not for these data,
        or model or scheme cannot be trained in parts.
    """

    def __init__(
        self,
        model: nn.Module | str,
        data: DataSet,
        *,
        scheme: str | Scheme = "bdwp",
        pattern: str | Pattern | Patterns | None = "2:8",
        device: Device | None = None,
        epochs: int = 20,
        steps: int | None = None,
        batch: int = 32,
        rate: float = 0.05,
        momentum: float = 0.9,
        decay: float = 5e-4,
        seed: int = 0,
        scaler: LossScaler | None = None,
        shards: int = 1,
        distributed: bool = False,
    ) -> None:
        for name, value in (("epochs", epochs), ("steps", steps), ("batch", batch)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1; leave it out")
        if batch > len(data.train_x):
            raise ValueError(
                f"batch={batch}: must not exceed the {len(data.train_x)} training samples of "
                f"{data.name}; choose a smaller one"
            )
        for name, number in (("rate", rate), ("momentum", momentum), ("decay", decay)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}={number}: must be finite and not negative")
        self.data = data
        self._whole = shards == 1 and not distributed
        self._check_draws(scheme)
        if isinstance(model, str):
            self.model = build_model(model, data.classes, seed)
            require_inputs(model, data.train_x.shape[1:], data.name)
        else:
            self.model = model
        self.result = TrainResult(report=sparsify_(self.model, scheme, pattern))
        self.device = device if device is not None else current_device()
        self.scaler = scaler if scaler is not None else LossScaler()
        self.batch = batch
        per_epoch = data.steps(batch)
        self.total_steps = epochs * per_epoch if steps is None else min(steps, epochs * per_epoch)
        self._generator = torch.Generator().manual_seed(seed)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = DeviceSgd(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=rate,
            momentum=momentum,
            model=self.model,
        )
        self._parts = Parts(self.model, shards, distributed)
        check_cut(batch, self._parts.count, "ranks" if distributed else "shards")
        self._rate = rate
        self._batches = self._plan()

    def _check_draws(self, scheme: str | Scheme) -> None:
        if get_scheme(scheme).draws and not self._whole:
            raise ValueError(
                f"scheme {get_scheme(scheme).name!r} draws what it keeps: parts of a batch would "
                "draw otherwise as shards than as ranks; train it whole, or prune by magnitude "
                "('bdwp_wu')"
            )

    def switch(self, scheme: str | Scheme, pattern: str | Pattern | Patterns | None) -> None:
        """Train on under another scheme or pattern, from the next step; nothing else changes.

        Raises
        ------
        ValueError
            As the constructor; the trainer is then as before.
        """
        self._check_draws(scheme)
        self.result.report = sparsify_(self.model, scheme, pattern)

    def _plan(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield (inputs, classes, whether an epoch or all ends with it) for each step."""
        per_epoch = self.data.steps(self.batch)
        for step in range(self.total_steps):
            if step % per_epoch == 0:
                epoch = self.data.batches(self.batch, self._generator)
            x, y = next(epoch)
            yield x, y, (step + 1) % per_epoch == 0 or step + 1 == self.total_steps

    def step(self, x: Tensor, y: Tensor) -> float:
        """Take one step on a batch (of all ranks); return its loss."""
        began = time.perf_counter()
        done = self.result.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * 0.5 * (1 + math.cos(math.pi * done / self.total_steps))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._parts
        with use_device(self.device):
            losses = parts.losses(parts.share(x), parts.share(y))
            self.scaler.backward(losses.sum(), parts.count)
        parts.add_gradients()
        mean = float(parts.total(losses.detach().double()))
        self.optimizer.device = self.device
        self.scaler.step(self.optimizer)
        self.result.steps += 1
        self.result.skipped = self.scaler.skipped
        self.result.losses.append(mean)
        self.result.seconds += time.perf_counter() - began
        return self.result.losses[-1]

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the share of the test set that is classified right, and note it.

        Computed on a golden device, whatever trains: the bits are the same and come sooner. A log
        of products around the training does not see them.
        """
        self.model.eval()
        right = 0
        device: Device = default_device()
        if isinstance(self.device, StagedDevice):
            device = StagedDevice(device)
        with use_device(device), record_products():
            for x, y in zip(
                self.data.test_x.split(_EVALUATION_BATCH),
                self.data.test_y.split(_EVALUATION_BATCH),
                strict=True,
            ):
                right += int((self.model(x).argmax(1) == y).sum())
        self.result.accuracies.append(right / len(self.data.test_y))
        return self.result.accuracies[-1]

    def fit(
        self, steps: int | None = None, *, progress: bool = False, title: str = "training"
    ) -> TrainResult:
        """Take steps from where the last call stopped, testing after each epoch.

        Parameters
        ----------
        steps : int, optional
            How many; all that are left if not given, or if fewer are.
        progress : bool
            Whether to show a bar on standard error.
        title : str
            Text in front of the bar.
        """
        left = self.total_steps - self.result.steps
        count = left if steps is None else min(steps, left)
        with progress_bar(count, title, "step", progress) as bar:
            for x, y, ends in itertools.islice(self._batches, count):
                shown = {"loss": f"{self.step(x, y):.3f}"}
                if ends:
                    self.evaluate()
                if self.result.accuracy is not None:
                    shown["test"] = f"{self.result.accuracy:.2%}"
                bar.set_postfix(shown, refresh=False)
                bar.update()
        return self.result


def progress_bar(total: int | None, title: str, unit: str, shown: bool = True) -> tqdm[Any]:
    """Return a bar on standard error; where that is no terminal, it writes a line now and then.

    Without a ``total`` it shows what was done and how fast.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, unit=unit, disable=not shown, mininterval=interval)


def train(
    model: nn.Module | str,
    data: DataSet,
    scheme: str | Scheme = "bdwp",
    pattern: str | Pattern | None = "2:8",
    device: Device | None = None,
    epochs: int = 20,
    seed: int = 0,
    progress: bool = False,
    *,
    steps: int | None = None,
    batch: int = 32,
) -> TrainResult:
    """Train a classifier with the defaults of `Trainer`; return what was done.

    Examples
    --------
    >>> from sat.data import load_data
    >>> train("mlp", load_data("digits"), epochs=1, steps=2).steps
    2
    """
    return Trainer(
        model,
        data,
        scheme=scheme,
        pattern=pattern,
        device=device,
        epochs=epochs,
        steps=steps,
        batch=batch,
        seed=seed,
    ).fit(progress=progress)
