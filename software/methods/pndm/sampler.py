"""Samplers of a noise-prediction network: how its answers are averaged, and how x moves.

With y = x / sqrt(a) and s = sqrt((1 - a) / a) the flow of the network's eps is dy/ds = eps, and
the transfer part phi is a step of it with eps held fixed: exact where eps does not change along the
way, as with a single point for data. The gradient part averages eps as classical rules do: DDIM
takes it where x is, S-PNDM by two-step and F-PNDM by four-step Adams-Bashforth, started by the
improved Euler and Runge-Kutta rules. They average over t where phi asks for s, which differ by
second order: F-PNDM is of order two, and looks like four on coarse grids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sat.methods.pndm.schedule import NoiseSchedule, Schedule

EpsModel = Callable[[Tensor, Tensor], Tensor]
"""Of x (batch, ...) and times (batch,) float64: the noise in x, of x's shape and dtype."""

WEIGHTS = {
    "ddim": (1.0,),
    "s-pndm": (3 / 2, -1 / 2),
    "f-pndm": (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    "fon": (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Of each method's steps, the newest answer first; the start makes all but one of them."""


@dataclass(frozen=True)
class SampleResult:
    """What a sampler made.

    Attributes
    ----------
    x : torch.Tensor
        (batch, ...).
    evaluations : int
        Of the network, on the whole batch.
    path : torch.Tensor or None
        (steps + 1, batch, ...): x at each time, where asked for.
    """

    x: Tensor
    evaluations: int
    path: Tensor | None = None


def transfer(x: Tensor, eps: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """Return phi(x, eps; a, b), x at level b if eps is the noise all the way from level a.

    It is sqrt(b / a) x + (sqrt(1 - b) - sqrt(b (1 - a) / a)) eps, written so that nothing cancels
    where a and b are near.

    Parameters
    ----------
    x, eps : torch.Tensor
        Of one shape.
    alpha, alpha_next : float
        a and b, within (0, 1].

    Raises
    ------
    ValueError
        If a level is out of range.

    Source
    ------
    Equation 11 of the paper; the authors' ``runner/method.py``.
    """
    for name, level in (("alpha", alpha), ("alpha_next", alpha_next)):
        if not 0 < level <= 1:
            raise ValueError(f"{name}={level}: must be above 0 and at most 1, the share of data")
    change = alpha_next - alpha
    if change == 0:
        return x
    root, root_next = math.sqrt(alpha), math.sqrt(alpha_next)
    noise = math.sqrt((1 - alpha_next) * alpha) + math.sqrt((1 - alpha) * alpha_next)
    return x + change * (x / (root * (root + root_next)) - eps / (root * noise))


@torch.no_grad()
def sample(
    eps_model: EpsModel,
    x: Tensor,
    schedule: Schedule,
    steps: int,
    method: str = "f-pndm",
    timesteps: Tensor | None = None,
    trajectory: bool = False,
) -> SampleResult:
    """Bring noise to data along the flow of a network.

    Nothing is clipped on the way: that would destroy the order.

    Parameters
    ----------
    eps_model : callable
        `EpsModel`.
    x : torch.Tensor
        (batch, ...), the noise at the first time; its dtype is that of all but the levels.
    schedule : Schedule
    steps : int
        n. Evaluations are n (DDIM), n + 1 (S-PNDM), n + 9 (F-PNDM, FON).
    method : {"f-pndm", "s-pndm", "ddim", "fon"}
        FON is the classical fourth-order rule on x itself, by unit steps of phi as its slope.
    timesteps : torch.Tensor, optional
        (n + 1,) falling times for the schedule's own.
    trajectory : bool
        Whether to return ``path``.

    Raises
    ------
    ValueError
        If an argument breaks its rule, or the network's answer has another shape or dtype.
    FloatingPointError
        If the network's answer is not finite.
    """
    if method not in WEIGHTS:
        raise ValueError(f"method={method!r}: must be one of {', '.join(WEIGHTS)}")
    if method == "fon" and not isinstance(schedule, NoiseSchedule):
        raise ValueError("method='fon': takes steps of one index; must have a NoiseSchedule")
    weights = WEIGHTS[method]
    if not isinstance(steps, int) or steps < len(weights):
        raise ValueError(
            f"steps={steps!r}: must be an int of at least {len(weights)} with {method}, which "
            f"starts by {len(weights) - 1} steps of its own; raise it, or take 'ddim'"
        )
    grid = _grid(schedule, steps, timesteps)
    flow = (_UnitFlow if method == "fon" else _Flow)(eps_model, schedule)
    start = {0: None, 1: _improved_euler, 3: _runge_kutta}[len(weights) - 1]
    history: list[Tensor] = []
    path = [x]
    for flow.step, (t, t_next) in enumerate(pairwise(grid)):
        history = [flow.slope(x, t), *history[: len(weights) - 1]]
        if start is not None and len(history) < len(weights):
            slope = start(flow, x, history[0], t, t_next)
        else:
            slope = torch.stack([w * e for w, e in zip(weights, history, strict=True)]).sum(0)
        x = flow.move(x, slope, t, t_next)
        if trajectory:
            path.append(x)
    return SampleResult(x, flow.evaluations, torch.stack(path) if trajectory else None)


@torch.no_grad()
def probability_flow(
    eps_model: EpsModel,
    x: Tensor,
    schedule: NoiseSchedule,
    start: float,
    *,
    tolerance: float = 1e-5,
) -> SampleResult:
    """Bring noise to data by scipy's adaptive RK45 along dy/ds = eps, down to t = 0, then phi.

    Parameters
    ----------
    eps_model : callable
    x : torch.Tensor
        (batch, ...), the noise at time ``start``.
    schedule : NoiseSchedule
    start : float
        Within (0, N - 1].
    tolerance : float
        Relative and absolute, as in the released code.

    Raises
    ------
    ValueError
        If ``start`` is out of range, or the network's answer has another shape or dtype.
    FloatingPointError
        If the network's answer is not finite.
    """
    if not 0 < start <= schedule.first:
        raise ValueError(f"start={start}: must be within (0, {schedule.first:g}]")
    flow = _Flow(eps_model, schedule)

    def slope(s: float, y: np.ndarray) -> np.ndarray:
        log_alpha = -math.log1p(s * s)
        here = torch.from_numpy(y).to(x.dtype).view_as(x) * math.exp(log_alpha / 2)
        flow.step += 1
        return flow.slope(here, schedule.time_of(log_alpha)).double().flatten().numpy()

    logs = [math.log(float(schedule.alpha_bar(t))) for t in (0.0, start)]
    first, last = (math.sqrt(math.expm1(-log)) for log in (logs[1], logs[0]))
    began = (x.double() / math.exp(logs[1] / 2)).flatten().numpy()
    found = solve_ivp(slope, (first, last), began, rtol=tolerance, atol=tolerance)
    if not found.success:
        raise FloatingPointError(f"probability flow from t = {start}: {found.message}")
    end = torch.from_numpy(found.y[:, -1]).to(x.dtype).view_as(x) * math.exp(logs[0] / 2)
    return SampleResult(flow.move(end, flow.slope(end, 0.0), 0.0, -1.0), flow.evaluations)


def _grid(schedule: Schedule, steps: int, timesteps: Tensor | None) -> list[float]:
    if timesteps is None:
        return [float(t) for t in schedule.timesteps(steps)]
    times = torch.as_tensor(timesteps, dtype=torch.float64)
    if times.shape != (steps + 1,) or not bool((times.diff() < 0).all()):
        raise ValueError(
            f"timesteps of shape {tuple(times.shape)}: must be ({steps + 1},), strictly falling"
        )
    schedule.require_times(times)
    return [float(t) for t in times]


class _Flow:
    """A network along a schedule: what pulls at x, and where x goes."""

    def __init__(self, eps_model: EpsModel, schedule: Schedule) -> None:
        self.eps_model, self.schedule = eps_model, schedule
        self.evaluations = self.step = 0

    def slope(self, x: Tensor, t: float) -> Tensor:
        """Return eps at a time, checked and counted."""
        eps = self.eps_model(x, torch.full((len(x),), t, dtype=torch.float64, device=x.device))
        self.evaluations += 1
        if eps.shape != x.shape or eps.dtype != x.dtype:
            raise ValueError(
                f"eps_model returned {tuple(eps.shape)} {eps.dtype} for x of {tuple(x.shape)} "
                f"{x.dtype}: must be alike"
            )
        if not bool(eps.isfinite().all()):
            raise FloatingPointError(
                f"step {self.step}, t = {t:g}: eps has infinities or NaNs; look at the network at "
                "this time, or at x before it"
            )
        return eps

    def move(self, x: Tensor, slope: Tensor, t: float, t_next: float) -> Tensor:
        """Return x at the next time."""
        return transfer(x, slope, *(float(self.schedule.alpha_bar(u)) for u in (t, t_next)))


class _UnitFlow(_Flow):
    """The classical form: x changes by a slope, which is a unit step of phi, times the steps."""

    def slope(self, x: Tensor, t: float) -> Tensor:
        return super().move(x, super().slope(x, t), t, t - 1) - x

    def move(self, x: Tensor, slope: Tensor, t: float, t_next: float) -> Tensor:
        return x + (t - t_next) * slope


def _improved_euler(flow: _Flow, x: Tensor, e1: Tensor, t: float, t_next: float) -> Tensor:
    return (e1 + flow.slope(flow.move(x, e1, t, t_next), t_next)) / 2


def _runge_kutta(flow: _Flow, x: Tensor, e1: Tensor, t: float, t_next: float) -> Tensor:
    middle = flow.schedule.midpoint(t, t_next)
    e2 = flow.slope(flow.move(x, e1, t, middle), middle)
    e3 = flow.slope(flow.move(x, e2, t, middle), middle)
    e4 = flow.slope(flow.move(x, e3, t, t_next), t_next)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6
