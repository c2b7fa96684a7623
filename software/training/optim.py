"""What an FP16 training steps with: a dynamic loss scale, and SGD on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat.arrays import array_of, tensor_of
from sat.dataflow.compile.step import Sgd
from sat.devices.base import Device
from sat.devices.staged import StagedDevice
from sat.layers.modules import staged_update_layer, weight_layers
from sat.layers.plan import loss_scale
from sat.layers.products import from_ohwi, to_ohwi
from sat.sim.golden.update import Rates, sgd

# Scales that FP32 gradients can live with, whatever happens.
_TOO_LARGE, _SMALLEST = 2.0**120, 2.0**-24


class LossScaler:
    """Dynamic loss scale, so that small gradients survive FP16.

    The loss is multiplied by ``scale``. When a gradient comes out infinite or NaN, the step is
    left out whole and the scale is multiplied by ``backoff``; after ``interval`` rounds in a row
    without that it is multiplied by ``growth``.

    A round begins with `backward` and holds the steps of all optimizers up to the next `backward`
    or `update`: within it every gradient is divided by the same scale, and the scale changes once,
    whichever optimizer met an infinity. Where losses are differentiated in turn between the steps
    of one round, as in a GAN whose losses share parameters, call `update` at its end: from the
    first call on, nothing else ends a round.

    Parameters
    ----------
    scale : float
        First scale.
    growth, backoff : float
        Factors: growth at least 1, backoff between 0 and 1. Powers of two keep gradients exact.
    interval : int
        Good rounds between growths.

    Attributes
    ----------
    scale : float
        What the next round's loss is multiplied by. May be set.
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
        self._set(scale=scale, growth=growth, backoff=backoff, interval=interval)
        self.skipped = 0
        self._explicit = False  # `update` ends rounds, nothing else

    def _set(self, *, scale: float, growth: float, backoff: float, interval: int) -> None:
        for name, value, good, rule in (
            ("scale", scale, 0 < scale < math.inf, "positive and finite"),
            ("growth", growth, 1 <= growth < math.inf, "finite and at least 1"),
            ("backoff", backoff, 0 < backoff < 1, "between 0 and 1"),
            ("interval", interval, interval >= 1, "at least 1"),
        ):
            if not good:
                raise ValueError(f"{name}={value}: must be {rule}; leave it out for the default")
        self.growth = growth
        self.backoff = backoff
        self.interval = interval
        self._begin(float(scale), 0)

    def _begin(self, scale: float, good: int) -> None:
        """Begin a round, after ``good`` rounds without an infinity."""
        self._round_scale, self._round_good = scale, good
        self._scale, self._good = scale, good
        # By optimizer: whether its gradients, divided, are finite. Who has stepped.
        self._finite: dict[int, bool] = {}
        self._stepped: set[int] = set()

    @property
    def scale(self) -> float:
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._set(scale=value, growth=self.growth, backoff=self.backoff, interval=self.interval)

    def backward(self, loss: Tensor, parts: int = 1) -> None:
        """Compute the gradients of ``loss * scale``.

        Parameters
        ----------
        loss : torch.Tensor
        parts : int
            Products whose gradients are added up for each weight, in this process and others:
            shards or ranks. Each brings its part of SR-STE's decay.
        """
        if self._stepped and not self._explicit:
            self._begin(self._scale, self._good)
        with loss_scale(self._round_scale / parts):
            (loss * self._round_scale).backward()  # type: ignore[no-untyped-call]

    def unscale_(self, optimizer: torch.optim.Optimizer) -> bool:
        """Divide an optimizer's gradients by the scale, to clip or look at them before `step`.

        Returns
        -------
        bool
            Whether all of them are finite.

        Raises
        ------
        RuntimeError
            If they were divided in this round already.
        ValueError
            If a gradient is float16: small ones would be lost.
        """
        key = id(optimizer)
        if key in self._finite:
            raise RuntimeError(
                "unscale_: these gradients were divided by the scale already; call it once, after "
                "backward and before step"
            )
        grads = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        for grad in grads:
            if grad.dtype is torch.float16:
                raise ValueError(
                    "a gradient is float16, in which small numbers are lost when they are divided "
                    "by the scale: keep the parameters in float32"
                )
        inverse = 1.0 / self._round_scale
        for grad in grads:
            grad.mul_(inverse)
        dense = (grad.coalesce().values() if grad.is_sparse else grad for grad in grads)
        self._finite[key] = all(bool(torch.isfinite(grad).all()) for grad in dense)
        return self._finite[key]

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Divide the gradients by the scale and step; return whether the step was taken.

        Nothing of the optimizer or its parameters changes when it is not; the gradients are then
        those that were not finite.

        Raises
        ------
        RuntimeError
            If the optimizer has stepped in this round already, where `update` ends rounds.
        ValueError
            As `unscale_`.
        """
        key = id(optimizer)
        if key in self._stepped:
            if self._explicit:
                raise RuntimeError("step: this optimizer has stepped already; call update first")
            self._begin(self._scale, self._good)
        finite = self._finite[key] if key in self._finite else self.unscale_(optimizer)
        if finite:
            optimizer.step()
        else:
            self.skipped += 1
        self._stepped.add(key)
        self._decide()
        return finite

    def _decide(self) -> None:
        """Set what the next round begins with, by what this one has met so far."""
        scale, good = self._round_scale, self._round_good + 1
        if not all(self._finite.values()):
            # A gradient that is NaN at any scale must not drive the scale to zero.
            scale, good = max(scale * self.backoff, _SMALLEST), 0
        elif good % self.interval == 0:
            good = 0
            # A scale that FP32 cannot hold would make every gradient infinite.
            if scale * self.growth < _TOO_LARGE:
                scale *= self.growth
        self._scale, self._good = scale, good

    def update(self) -> None:
        """End the round: the next gradients are of the new scale."""
        self._explicit = True
        if self._finite:
            self._decide()
        self._begin(self._scale, self._good)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs to go on as this one; take it between rounds."""
        return {
            "scale": self._scale,
            "growth": self.growth,
            "backoff": self.backoff,
            "interval": self.interval,
            "good": self._good,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises
        ------
        ValueError
            If it is none, or a value breaks its rule: nothing is changed then.
        """
        known = self.state_dict()
        if state.keys() != known.keys():
            raise ValueError(
                f"state has {', '.join(map(str, state)) or 'nothing'}: must have "
                f"{', '.join(known)}; give what LossScaler.state_dict returned"
            )
        self._set(**{name: state[name] for name in ("scale", "growth", "backoff", "interval")})
        self._begin(self._scale, state["good"])
        self.skipped = state["skipped"]


class DeviceSgd(torch.optim.SGD):
    """SGD whose steps on the weights of SAT layers are UPDATEs of the device, pruning included.

    For layers whose stages the device runs whole (`sat.devices.staged.StagedDevice`) the
    masters' step is WUVE's; for other SAT layers the golden model's on the host, which has the same
    bits; other parameters take torch's. The state is torch's own.

    Parameters
    ----------
    groups : list of dict
        As for ``torch.optim.SGD``. What the device steps has ``lr``, ``momentum`` and
        ``weight_decay``, and no other option.
    lr, momentum : float
    model : nn.Module
        Sparsified already.

    Attributes
    ----------
    device : Device or None
        Where steps are taken; torch takes them all if there is none.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float, model: nn.Module
    ) -> None:
        super().__init__(groups, lr=lr, momentum=momentum)
        self.device: Device | None = None
        self._layers = weight_layers(model)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; gradients are finite, and divided by the loss scale already.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss, and the gradients that the step then takes.

        Returns
        -------
        object
            The closure's loss, or None.

        Raises
        ------
        ValueError
            If a group has an option that the device has not: no parameter is changed then.
        DeviceError
            If the device fails: no parameter is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        made = self._made_on_device()
        grads = {parameter: parameter.grad for parameter in made}
        try:
            for parameter, (weight, momentum) in made.items():
                parameter.grad = None
                parameter.copy_(weight)
                if momentum is not None:
                    self.state[parameter]["momentum_buffer"] = momentum
            # Hooks around steps are those of this step: torch hangs them on its own, too.
            plain = torch.optim.SGD.step
            getattr(plain, "__wrapped__", plain)(self)
        finally:
            for parameter, grad in grads.items():
                parameter.grad = grad
        return loss

    def _made_on_device(self) -> dict[nn.Parameter, tuple[Tensor, Tensor | None]]:
        """Return what the device makes of its weights: each with its momentum, if it has one."""
        if self.device is None:
            return {}
        staged = self.device if isinstance(self.device, StagedDevice) else None
        mine = [
            (number, parameter, staged_update_layer(self._layers[parameter], self.device))
            for number, group in enumerate(self.param_groups)
            for parameter in group["params"]
            if parameter.grad is not None
            and parameter.dtype is torch.float32
            and parameter in self._layers
        ]
        for number in {number for number, _, layer in mine if layer is not None}:
            _require_known(self.param_groups[number], number)
        made: dict[nn.Parameter, tuple[Tensor, Tensor | None]] = {}
        for number, parameter, layer in mine:
            group = self.param_groups[number]
            if _unknown(group) is not None:
                continue  # torch's own step, where no device takes it
            buffer = self.state[parameter].get("momentum_buffer") if group["momentum"] else None
            rates = Sgd(
                learning_rate=float(group["lr"]),
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
            )
            tensors = {
                "w": parameter.data,
                "v": torch.zeros_like(parameter) if buffer is None else buffer,
                "g": parameter.grad,
            }
            arrays = {name: array_of(to_ohwi(t).contiguous()) for name, t in tensors.items()}
            if layer is not None and staged is not None:
                owner = self._layers[parameter]
                results, _ = staged.stages(("update",), layer, arrays, rates, owner)
            else:
                nowhere = np.zeros(arrays["w"].shape, bool)  # SR-STE is in the gradient already
                numbers = Rates(**rates.fields())
                made_here = sgd(**arrays, pruned=nowhere, rates=numbers)
                results = dict(zip("wv", made_here, strict=True))
            weight, momentum = (from_ohwi(tensor_of(results[n]), parameter) for n in ("w", "v"))
            made[parameter] = weight, momentum if group["momentum"] else None
        return made


def _unknown(group: dict[str, Any]) -> str | None:
    """Return the name of an option that the device's update has not; None if there is none."""
    names = ("dampening", "nesterov", "maximize", "foreach", "differentiable", "fused")
    return next((name for name in names if group.get(name)), None)


def _require_known(group: dict[str, Any], number: int) -> None:
    name = _unknown(group)
    if name is not None:
        raise ValueError(
            f"group {number} has {name}={group[name]!r}: the device's update knows lr, "
            "momentum and weight_decay; leave it out, or let torch step: set the optimizer's "
            "device to None"
        )
