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

from sat.arrays import array_of, tensor_of
from sat.data import DataSet
from sat.dataflow.compile.step import Sgd
from sat.devices.base import Device
from sat.devices.context import (
    current_device,
    default_device,
    record_products,
    use_device,
)
from sat.devices.staged import StagedDevice
from sat.layers.convert import SparsityReport, sparsify_
from sat.layers.modules import staged_update_layer, weight_layers
from sat.layers.plan import loss_scale
from sat.layers.products import from_ohwi, to_ohwi
from sat.layers.schemes import Scheme
from sat.sparsity.pattern import Pattern
from sat.training.models import build_model
from sat.training.parts import Parts, check_cut

_EVALUATION_BATCH = 512


class LossScaler:
    """Dynamic loss scale, so that small gradients survive FP16.

    The loss is multiplied by ``scale``. When a gradient comes out infinite or NaN, the step is
    left out whole and the scale is multiplied by ``backoff``; after ``interval`` good steps in a
    row it is multiplied by ``growth``.

    Parameters
    ----------
    scale : float
        First scale.
    growth, backoff : float
        Factors: growth at least 1, backoff between 0 and 1. Powers of two keep gradients exact.
    interval : int
        Good steps between growths.

    Attributes
    ----------
    skipped : int
        Steps left out so far.

    Raises
    ------
    ValueError
        If a value breaks its rule.

    Source
    ------
    Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2; the rule is that of
    ``torch.amp.GradScaler``.
    """

    def __init__(
        self,
        scale: float = 2.0**12,
        *,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 200,
    ) -> None:
        for name, value, good, rule in (
            ("scale", scale, 0 < scale < math.inf, "positive and finite"),
            ("growth", growth, 1 <= growth < math.inf, "finite and at least 1"),
            ("backoff", backoff, 0 < backoff < 1, "between 0 and 1"),
            ("interval", interval, interval >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"{name}={value}: must be {rule}; leave it out for the default")
        self.scale = scale
        self.growth = growth
        self.backoff = backoff
        self.interval = interval
        self.skipped = 0
        self._good = 0

    def backward(self, loss: Tensor, parts: int = 1) -> None:
        """Compute the gradients of ``loss * scale``.

        Parameters
        ----------
        loss : torch.Tensor
        parts : int
            Products whose gradients are added up for each weight, in this process and others:
            shards or ranks. Each brings its part of SR-STE's decay.
        """
        with loss_scale(self.scale / parts):
            (loss * self.scale).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Divide the gradients by the scale and step; return whether the step was taken.

        Nothing of the optimizer or its parameters changes when it is not; the gradients are then
        those that were not finite.
        """
        grads = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        inverse = 1.0 / self.scale
        for grad in grads:
            grad.mul_(inverse)
        if all(bool(torch.isfinite(grad).all()) for grad in grads):
            optimizer.step()
            self._good += 1
            # A scale that FP32 cannot hold would make every gradient infinite.
            if self._good % self.interval == 0 and self.scale * self.growth < 2.0**120:
                self.scale *= self.growth
            return True
        self.skipped += 1
        self._good = 0
        # A gradient that is NaN at any scale must not drive the scale to zero.
        self.scale = max(self.scale * self.backoff, 2.0**-24)
        return False


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


class DeviceSgd(torch.optim.SGD):
    """SGD whose steps on the weights of SAT layers are UPDATEs of the device, pruning included.

    For layers whose stages the device runs whole (`sat.devices.staged.StagedDevice`) the
    masters' step is WUVE's; other parameters take torch's. The state is torch's own.

    Parameters
    ----------
    groups : list of dict
        As for ``torch.optim.SGD``; no dampening, no Nesterov.
    lr, momentum : float
    model : nn.Module
        Sparsified already.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, model: nn.Module
    ) -> None:
        super().__init__(groups, lr=lr, momentum=momentum)
        self.device: Device | None = None
        self._layers = weight_layers(model)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; gradients are finite, and divided by the loss scale already."""
        taken: list[tuple[nn.Parameter, Tensor]] = []
        if isinstance(self.device, StagedDevice):
            for group in self.param_groups:
                for parameter in group["params"]:
                    grad = parameter.grad
                    if grad is not None and self._on_device(group, parameter, grad):
                        taken.append((parameter, grad))
                        parameter.grad = None
        result = super().step(closure)
        for parameter, grad in taken:
            parameter.grad = grad
        return result

    def _on_device(self, group: dict[str, Any], parameter: nn.Parameter, grad: Tensor) -> bool:
        """Step a weight on the device; return False if its layer does not run there whole."""
        assert isinstance(self.device, StagedDevice)
        if parameter not in self._layers:
            return False
        module = self._layers[parameter]
        layer = staged_update_layer(module, self.device)
        if layer is None:
            return False
        state = self.state[parameter]
        momentum = state.get("momentum_buffer")
        if momentum is None:
            momentum = torch.zeros_like(parameter)
        rates = Sgd(
            learning_rate=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )
        tensors = {"w": parameter.data, "v": momentum, "g": grad}
        arrays = {name: array_of(to_ohwi(t).contiguous()) for name, t in tensors.items()}
        made, _ = self.device.stages(("update",), layer, arrays, rates, module)
        parameter.copy_(from_ohwi(tensor_of(made["w"]), parameter))
        state["momentum_buffer"] = from_ohwi(tensor_of(made["v"]), parameter)
        return True


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
    pattern : str or Pattern or None
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
        If a number breaks its rule, the model or scheme is none, or the model cannot be trained
        in parts.
    """

    def __init__(
        self,
        model: nn.Module | str,
        data: DataSet,
        *,
        scheme: str | Scheme = "bdwp",
        pattern: str | Pattern | None = "2:8",
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
        self.model = build_model(model, data.classes, seed) if isinstance(model, str) else model
        self.result = TrainResult(report=sparsify_(self.model, scheme, pattern))
        self.device = device if device is not None else current_device()
        self.scaler = scaler if scaler is not None else LossScaler()
        self.batch = batch
        per_epoch = len(data.train_x) // batch
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

    def _plan(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield (inputs, classes, whether an epoch or all ends with it) for each step."""
        per_epoch = len(self.data.train_x) // self.batch
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
