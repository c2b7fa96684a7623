"""Levels of noise: how much of the data is left at each time, and which times a sampler visits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts

KINDS = ("linear", "quad", "cosine")
INDEXINGS = ("exact", "diffusers", "official")
ROUNDING = 1e-12


class Schedule(ABC):
    """Levels a(t) of x_t = sqrt(a) x_0 + sqrt(1 - a) z, falling with t, at times in a range.

    Attributes
    ----------
    first, last : float
        The range: samplers go from at most ``first`` down to at least ``last``.
    """

    first: float
    last: float

    @abstractmethod
    def alpha_bar(self, t: Tensor | float) -> Tensor:
        """Return a(t), float64, of the shape of t."""

    @abstractmethod
    def timesteps(self, n: int) -> Tensor:
        """Return the n + 1 times (float64, falling) that n steps visit."""

    def midpoint(self, t: float, t_next: float) -> float:
        """Return the time between two."""
        return (t + t_next) / 2

    def require_times(self, t: Tensor) -> None:
        """Raise ValueError unless all times are within the range."""
        if not bool(((t >= self.last) & (t <= self.first)).all()):
            raise ValueError(
                f"times from {float(t.min())} to {float(t.max())}: must be within "
                f"[{self.last:g}, {self.first:g}]"
            )


class NoiseSchedule(Schedule):
    """A chain of steps t = 0 ... N - 1 of variances beta_t, and t = -1, the data.

    Parameters
    ----------
    kind : {"linear", "quad", "cosine"}
        beta_t rises linearly, as the square of a line, or so that a follows a squared cosine
        (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17).
    steps : int
        N.
    beta_start, beta_end : float
        Of the first two kinds, within (0, 1).
    indexing : {"exact", "diffusers", "official"}
        a(t) = prod over 0 ... t of (1 - beta), and a(-1) is 1, or a(0) as in that library. The
        released code of PNDM reads a(t + 1) for a(t): one step off what the network was trained at.
        Between whole times log a is linear; ``"official"`` takes the time below.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    The authors' ``runner/schedule.py`` and ``runner/runner.py``.
    """

    def __init__(
        self,
        kind: str = "linear",
        steps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        indexing: str = "exact",
    ) -> None:
        require_counts(steps=steps)
        for name, given, known in (("kind", kind, KINDS), ("indexing", indexing, INDEXINGS)):
            if given not in known:
                raise ValueError(f"{name}={given!r}: must be one of {', '.join(known)}")
        for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not 0 < beta < 1:
                raise ValueError(f"{name}={beta}: must be between 0 and 1, a step's share of noise")
        self.kind, self.steps, self.indexing = kind, steps, indexing
        self.betas = _betas(kind, steps, beta_start, beta_end)
        whole = torch.log1p(-self.betas).cumsum(0)
        if indexing == "official":
            self._logs = whole
        else:
            start = whole[:1] if indexing == "diffusers" else whole.new_zeros(1)
            self._logs = torch.cat([start, whole])
        self.first, self.last = len(self._logs) - 2, -1

    def alpha_bar(self, t: Tensor | float) -> Tensor:
        """Return a(t), float64, at times within [-1, N - 1] (``"official"``: N - 2)."""
        places = torch.as_tensor(t, dtype=torch.float64)
        self.require_times(places)
        places = places + 1
        if self.indexing == "official":
            places = places.floor()
        below = places.floor().clamp(max=max(len(self._logs) - 2, 0)).long()
        above = (below + 1).clamp(max=len(self._logs) - 1)
        return torch.lerp(self._logs[below], self._logs[above], places - below).exp()

    def time_of(self, log_alpha_bar: float) -> float:
        """Return the time at which log a has a value, by the same lines between whole times.

        Raises
        ------
        ValueError
            If there is none.
        """
        falling = -self._logs
        least, most = float(falling[0]), float(falling[-1])
        # A level that was computed may leave the range by its rounding.
        if not least - ROUNDING <= -log_alpha_bar <= most * (1 + ROUNDING):
            raise ValueError(
                f"log_alpha_bar={log_alpha_bar}: must be within [{-most}, {-least}], the levels of "
                "the schedule's times"
            )
        value = min(max(-log_alpha_bar, least), most)
        above = int(torch.searchsorted(falling, falling.new_tensor(value)).clamp(min=1))
        low, high = float(falling[above - 1]), float(falling[above])
        share = (value - low) / (high - low) if high > low else 1.0
        return above - 2 + share

    def timesteps(self, n: int) -> Tensor:
        """Return (n - 1) k, ..., 2k, k, 0, -1 with k = N // n.

        Raises
        ------
        ValueError
            If n is no int within [1, N], or a time has no level.
        """
        require_counts(n=n)
        if n > self.steps:
            raise ValueError(f"n={n}: must be at most {self.steps}, the schedule's steps; lower it")
        times = self.steps // n * torch.arange(n - 1, -1, -1, dtype=torch.float64)
        if float(times[0]) > self.first:
            raise ValueError(
                f"n={n}: step {times[0]:g} has no level with indexing='official', which reads one "
                "further; take fewer steps, or indexing='exact'"
            )
        return torch.cat([times, times.new_tensor([-1.0])])

    def midpoint(self, t: float, t_next: float) -> float:
        """Return the time between two, a whole one with ``"official"``."""
        between = super().midpoint(t, t_next)
        return math.floor(between) if self.indexing == "official" else between


class ContinuousSchedule(Schedule):
    """Levels by a function of a real time.

    Parameters
    ----------
    log_alpha_bar : callable
        Of times, float64 tensors; negative, falling.
    first, last : float
        The range; samplers divide it evenly.

    Raises
    ------
    ValueError
        If ``first`` is not above ``last``, or levels there are not negative and falling.
    """

    def __init__(
        self, log_alpha_bar: Callable[[Tensor], Tensor], first: float = 1.0, last: float = 0.01
    ) -> None:
        if not -math.inf < last < first < math.inf:
            raise ValueError(f"first={first}, last={last}: first must be above, both finite")
        self.log_alpha_bar, self.first, self.last = log_alpha_bar, first, last
        ends = log_alpha_bar(torch.tensor([first, last], dtype=torch.float64)).tolist()
        if not -math.inf < ends[0] < ends[1] <= 0:
            raise ValueError(
                f"log_alpha_bar is {ends[0]:g} at first={first:g} and {ends[1]:g} at "
                f"last={last:g}: must be finite, at most 0, and fall with time"
            )

    def alpha_bar(self, t: Tensor | float) -> Tensor:
        """Return a(t), float64, within the range."""
        times = torch.as_tensor(t, dtype=torch.float64)
        self.require_times(times)
        return self.log_alpha_bar(times).exp()

    def timesteps(self, n: int) -> Tensor:
        """Return n + 1 even times from first to last."""
        require_counts(n=n)
        return torch.linspace(self.first, self.last, n + 1, dtype=torch.float64)


def _betas(kind: str, steps: int, start: float, end: float) -> Tensor:
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if kind == "quad":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)
