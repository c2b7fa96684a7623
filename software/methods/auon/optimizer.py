"""AuON and Hybrid-AuON: momentum matrices rescaled by a scalar, after no or few products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sat.methods.auon.scalar import cosh_rms, require_gamma
from sat.methods.problems.optimizer import CheckedOptimizer
from sat.methods.problems.orthogonal import TINY, frobenius_norm, newton_schulz, require_steps
from sat.methods.problems.parameters import name_parameter, require_momentum

FORMS = ("paper", "code")
_BRAKE = 1e-8
_GAMMA = 1.5


def auon_direction(
    g: Tensor, form: str = "paper", gamma: float | None = None
) -> tuple[Tensor, float]:
    """Return AuON's update of a matrix before the learning rate, and its scalar r.

    With X = gamma g / (‖g‖_F + 1e-7) and r = `cosh_rms` (X), the update is
    ``g / (‖g‖_F + 1e-7) / (r + 1e-8)`` in ``form="paper"`` and ``g / (r + 1e-8)`` in
    ``form="code"``, whose size therefore is that of g.

    Parameters
    ----------
    g : torch.Tensor
        (rows, cols): momentum; it is not changed.
    form : str
        ``"paper"`` or ``"code"``.
    gamma : float, optional
        1 in the paper's form, 1.5 in the code's if not given.

    Returns
    -------
    tuple of torch.Tensor and float

    Source
    ------
    Maity 2025, arXiv 2509.24320, first version; ``auon/optimizer.py`` of the authors.
    """
    factor, r = _auon_factor(g, form, _gamma(form, gamma))
    return g * factor, r


def hybrid_direction(
    g: Tensor, ns_steps: int = 1, brake: str = "paper", gamma: float = _GAMMA
) -> tuple[Tensor, float]:
    """Return Hybrid-AuON's update of a matrix before the learning rate, and its scalar r.

    X is g after ``ns_steps`` of `newton_schulz`; r is `cosh_rms` of X as it is
    (``brake="paper"``) or of gamma X / ‖X‖_F (``"code"``); the update is ``X / (r + 1e-8)``.

    Parameters
    ----------
    g : torch.Tensor
        (rows, cols): momentum; it is not changed.
    ns_steps : int
        At least 1: 1 in the paper, 5 in the released code.
    brake : str
        ``"paper"`` or ``"code"``.
    gamma : float
        Of the code's brake.
    """
    x = newton_schulz(g, ns_steps)
    if brake == "code":
        r = cosh_rms(x * (gamma / (frobenius_norm(x) + TINY)))
    else:
        r = cosh_rms(x)
    return x / (r + _BRAKE), r


class AuON(CheckedOptimizer):
    """Momentum SGD on matrices, each step divided by a norm and by `cosh_rms`.

    Per matrix, in this order: ``W *= 1 - lr weight_decay``; ``M = momentum M + (1 - momentum) g``;
    G = ``momentum M + (1 - momentum) g`` (``nesterov``) or M; ``W -= lr U`` with U of
    `auon_direction`. A zero G moves nothing. The scalar r of each matrix stands in its state as
    ``"rms"``. To train masked weights, mask their gradients
    (``weight.register_hook(lambda g: g * mask)``), else their momentum enters the norm.

    The scalar hardly matters: r is within `cosh_rms_bounds`, which for 64 x 64 are
    1.000122 and 1.000169. The paper's form is momentum SGD with steps of Frobenius norm lr, the
    code's is plain momentum SGD; neither changes the ratios of singular values.

    Parameters
    ----------
    params : iterable
        Parameters of two axes, or groups of them; see `split_parameters`.
    lr : float
        Not negative. The authors train with 0.055 (paper) and 0.08 (code).
    momentum, weight_decay : float
        Within [0, 1); not negative.
    form, gamma
        As `auon_direction`.
    nesterov : bool
    flatten : bool
        Whether parameters of more axes are taken, flattened from axis 1 on.

    Raises
    ------
    ValueError
        If an argument breaks its rule; in `step`, if a gradient is not finite: nothing has
        changed then.
    TypeError
        In `step`, if a gradient is complex or sparse.

    Source
    ------
    Maity 2025, arXiv 2509.24320, first version; ``auon/optimizer.py`` of the authors.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        form: str = "paper",
        gamma: float | None = None,
        nesterov: bool = True,
        flatten: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "form": form,
            "gamma": gamma, "nesterov": nesterov, "flatten": flatten,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _check(self, number: int) -> None:
        group = self.param_groups[number]
        require_momentum("momentum", group["momentum"])
        self._check_kind(group)
        for place, parameter in enumerate(group["params"]):
            if parameter.ndim < 2 or (parameter.ndim > 2 and not group["flatten"]):
                raise ValueError(
                    f"{name_parameter(group, number, place)} has shape {tuple(parameter.shape)}: "
                    "must have two axes (more with flatten=True); give it to AdamW: "
                    "split_parameters(model) parts the matrices from the rest"
                )

    def _check_kind(self, group: dict[str, Any]) -> None:
        group["gamma"] = _gamma(group["form"], group["gamma"])

    def _update(self, g: Tensor, group: dict[str, Any]) -> tuple[Tensor, float, float]:
        """Return a matrix and what to multiply it by for the update of g, and r."""
        factor, r = _auon_factor(g, group["form"], group["gamma"])
        return g, factor, r

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["rms"] = 1.0
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        beta, grad, momentum = group["momentum"], parameter.grad, state["momentum"]
        momentum.lerp_(grad, 1 - beta)
        g = grad.lerp(momentum, beta) if group["nesterov"] else momentum
        if bool(g.any()):
            update, factor, state["rms"] = self._update(g.flatten(1), group)
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * factor)


class HybridAuON(AuON):
    """As `AuON`, with the update of `hybrid_direction`: few Newton-Schulz steps, then the scalar.

    A step multiplies each singular value s of G / ‖G‖_F by a + b s² + c s⁴: from 3.4445 where s
    is small down to 0.701 where it is 1, so a condition number falls by at most 4.91.

    Parameters
    ----------
    params, lr, momentum, weight_decay, flatten
        As for `AuON`; the momentum is Nesterov's.
    ns_steps, brake, gamma
        As `hybrid_direction`.

    Raises
    ------
    ValueError, TypeError
        As `AuON`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 1,
        brake: str = "paper",
        gamma: float = _GAMMA,
        flatten: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps,
            "brake": brake, "gamma": gamma, "nesterov": True, "flatten": flatten,
        }  # fmt: skip
        CheckedOptimizer.__init__(self, params, defaults)

    def _check_kind(self, group: dict[str, Any]) -> None:
        require_steps("ns_steps", group["ns_steps"])
        _require_one("brake", group["brake"])
        require_gamma(group["gamma"])

    def _update(self, g: Tensor, group: dict[str, Any]) -> tuple[Tensor, float, float]:
        update, r = hybrid_direction(g, group["ns_steps"], group["brake"], group["gamma"])
        return update, 1.0, r


def _auon_factor(g: Tensor, form: str, gamma: float) -> tuple[float, float]:
    """Return what AuON multiplies g by, and r."""
    norm = frobenius_norm(g) + TINY
    r = cosh_rms(g * (gamma / norm))
    return 1 / ((r + _BRAKE) * (norm if form == "paper" else 1)), r


def _gamma(form: str, gamma: float | None) -> float:
    _require_one("form", form)
    if gamma is None:
        return 1.0 if form == "paper" else _GAMMA
    require_gamma(gamma)
    return gamma


def _require_one(name: str, value: str) -> None:
    if value not in FORMS:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(FORMS)}; choose one")
