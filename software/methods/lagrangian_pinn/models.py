"""Physics-informed networks that move with the flow, and their twin that does not.

Radians, seconds, rad/s; the line is periodic with period 2π.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.jets import Jet, JetMLP

PERIOD = 2 * math.pi
LABELS = 2048
"""Labels that a prediction on a grid interpolates between."""

Initial = Callable[[Tensor], Tensor]
"""Places (…) to values (…), each by itself."""
Speed = str | float | Callable[[Tensor, Tensor, Tensor], Tensor]
"""``"burgers"`` for u, a constant, or a function of u, x, t."""


class FoldError(RuntimeError):
    """The map of labels to places is no longer one to one."""


def embed(y: Tensor, t: Tensor) -> Jet:
    """Return (cos y, sin y, t) with derivatives by y, twice, and by t.

    Parameters
    ----------
    y, t : torch.Tensor
        (points,).
    """
    cosine, sine, zero, one = y.cos(), y.sin(), torch.zeros_like(y), torch.ones_like(y)
    return Jet(
        torch.stack([cosine, sine, t], 1),
        torch.stack([torch.stack([-sine, cosine, zero], 1), torch.stack([zero, zero, one], 1)]),
        torch.stack([-cosine, -sine, zero], 1)[None],
    )


def along_y(value: Tensor, slope: Tensor, curvature: Tensor) -> Jet:
    """Return a function of y alone, (points,) each, as a jet of one channel by y and t."""
    first = torch.stack([slope, torch.zeros_like(slope)])
    return Jet(value[:, None], first[..., None], curvature[None, :, None])


def constant_jet(value: float, y: Tensor) -> Jet:
    """Return a constant at points as a jet of one channel by y and t."""
    zeros = torch.zeros_like(y)
    return along_y(torch.full_like(y, value), zeros, zeros)


def time_jet(t: Tensor) -> Jet:
    """Return t as a jet of one channel by y and t."""
    first = torch.stack([torch.zeros_like(t), torch.ones_like(t)])
    return Jet(t[:, None], first[..., None], torch.zeros_like(t)[None, :, None])


def initial_jet(u0: Initial, y: Tensor) -> Jet:
    """Return the initial values at y with their derivatives."""

    def slope(at: Tensor) -> Tensor:
        change: Tensor = torch.func.jvp(u0, (at,), (torch.ones_like(at),))[1]
        return change

    pair = torch.func.jvp(slope, (y,), (torch.ones_like(y),))
    return along_y(u0(y), pair[0], pair[1])


def lagrangian_residuals(
    x: Jet, u: Jet, t: Tensor, nu: float, speed: Speed, *, jacobian: bool = True
) -> tuple[Tensor, Tensor]:
    """Return x_t - c and u_t - ν u_xx at labels.

    Parameters
    ----------
    x, u : Jet
        Of one channel, by the label, twice, and by t: `embed`.
    t : torch.Tensor
        (points,).
    nu : float
    speed : "burgers", float or callable
    jacobian : bool
        Whether u_xx is (1/J) ∂_ξ (u_ξ / J) with J = x_ξ; else u_ξξ, as in the released code, which
        is right only where all labels move alike.

    Returns
    -------
    tuple of torch.Tensor
        (points,) each.

    Raises
    ------
    FoldError
        If J is not positive somewhere, and the chain rule needs it.
    """
    place, value = x.value[:, 0], u.value[:, 0]
    stretch, x_t = x.first[..., 0]
    u_y, u_t = u.first[..., 0]
    u_yy = u.second[0, :, 0]
    if jacobian:
        require_unfolded(stretch, t)
        # (1/J) d/dξ (u_ξ / J), multiplied out.
        u_xx = (u_yy * stretch - u_y * x.second[0, :, 0]) / stretch**3
    else:
        u_xx = u_yy
    return x_t - speed_of(speed, value, place, t), u_t - nu * u_xx


def require_unfolded(stretch: Tensor, t: Tensor) -> None:
    """Raise FoldError unless x_ξ (points,) is positive."""
    least, at = stretch.detach().min(0)
    if not float(least) > 0:
        raise FoldError(
            f"J = dx/dlabel is {float(least):.4g} at t={float(t[at]):.4g}: must be positive, or "
            "places have several labels; a shock has formed, or training has left the map: raise "
            "nu, shorten the window, or lower lr"
        )


def speed_of(speed: Speed, u: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return c (points,)."""
    if callable(speed):
        return speed(u, x, t)
    return u if isinstance(speed, str) else torch.full_like(u, speed)


def _network(width: int, depth: int) -> JetMLP:
    """Return a network whose output is 0 at first: labels start as they are, the map unfolded."""
    net = JetMLP([3, *[width] * depth, 1])
    nn.init.zeros_(net.layers[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net.biases[-1])
    return net


class _PINN(nn.Module):
    """What both frames share: the problem, its rules, and the u-network."""

    def __init__(
        self, u0: Initial, nu: float, speed: Speed, width: int, depth: int, u_ref: float | None,
        hard_ic: bool, t_max: float, length: float,
    ) -> None:  # fmt: skip
        super().__init__()
        require_counts(width=width, depth=depth)
        if not callable(u0):
            raise TypeError(f"u0 is a {type(u0).__name__}: must be a function of places (tensors)")
        if not 0 <= nu < math.inf:
            raise ValueError(f"nu={nu}: must be finite and not negative; diffusion only smooths")
        if isinstance(speed, str) and speed != "burgers":
            raise ValueError(
                f"speed={speed!r}: must be 'burgers', a number or a function of u, x, t"
            )
        if isinstance(speed, (int, float)) and not math.isfinite(speed):
            raise ValueError(f"speed={speed}: must be finite")
        if not math.isclose(length, PERIOD):
            raise ValueError(
                f"length={length}: must be 2π; rescale x by 2π / length, speeds alike, and nu by "
                "its square"
            )
        if not 0 < t_max < math.inf:
            raise ValueError(f"t_max={t_max}: must be positive and finite, in seconds")
        places = torch.linspace(0, PERIOD, 257, dtype=torch.float64)
        values = u0(places)
        if not isinstance(values, Tensor) or values.shape != places.shape:
            raise ValueError(
                f"u0 gave {tuple(getattr(values, 'shape', ()))} for places (257,): must be a "
                "tensor of a value at each place; torch.full_like(x, c) is a constant"
            )
        gap, size = float((values[-1] - values[0]).abs()), float(values.abs().max())
        if not gap <= 1e-6 * max(size, 1.0):
            raise ValueError(
                f"u0 differs by {gap:.4g} between 0 and 2π: must be periodic; choose a periodic one"
            )
        self.u_mean = float(values[:-1].mean())
        if u_ref is None:
            u_ref = float(speed) if isinstance(speed, (int, float)) else self.u_mean
        if not math.isfinite(u_ref):
            raise ValueError(f"u_ref={u_ref}: must be finite")
        self.u0, self.nu, self.speed, self.u_ref = u0, float(nu), speed, u_ref
        self.hard_ic, self.t_max = hard_ic, float(t_max)
        self.u_net = _network(width, depth)

    def _u(self, y: Tensor, t: Tensor) -> Tensor:
        """Return u (points,) from the network's output at y."""
        out = self.u_net(torch.stack([y.cos(), y.sin(), t], 1))[:, 0]
        return self.u0(y) + t * out if self.hard_ic else self.u_mean + out

    def _u_jet(self, y: Tensor, t: Tensor, inputs: Jet) -> Jet:
        out = self.u_net.jet(inputs)
        if self.hard_ic:
            return initial_jet(self.u0, y) + time_jet(t) * out
        return constant_jet(self.u_mean, y) + out

    def _require_times(self, t: Tensor) -> None:
        if not bool((t >= 0).all()):
            raise ValueError(f"t has {float(t.min())}: must not be negative; time starts at 0")
        if bool((t > self.t_max).any()):
            warnings.warn(
                f"t up to {float(t.max()):.4g} is outside the training window of "
                f"{self.t_max:.4g} s",
                stacklevel=3,
            )


class LagrangianPINN(_PINN):
    """u_t + c u_x = ν u_xx along its characteristics: labels ξ move by x_t = c, u by u_t = ν u_xx.

    Two networks of (cos ξ, sin ξ, t) without a parameter in common: x = ξ + t (U + X), so that the
    displacement is periodic and x is not; u = u0(ξ) + t V.

    Parameters
    ----------
    u0 : callable
        Initial values of places (tensors), periodic with 2π; a function that `torch.func` can
        differentiate.
    nu : float
        Diffusion, rad²/s, not negative.
    speed : "burgers", float or callable
        c: u itself, a constant in rad/s, or a function of u, x, t.
    width : int
    depth_u, depth_x : int
        Hidden layers.
    u_ref : float, optional
        U. The constant speed, or else the mean of u0: what is left to X is as small as u's
        deviations, whatever the mean speed.
    hard_ic : bool
        Whether x = ξ and u = u0 hold exactly at t = 0; else x = ξ + U t + X, u = mean(u0) + V, and
        `initial_residuals` says how far off they are.
    jacobian : bool
        As `lagrangian_residuals`.
    t_max : float
        Training window, seconds.
    length : float
        Period; only 2π.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.

    Source
    ------
    Section 3. The paper's code shares layers between the branches, gives x itself by a periodic
    network, and takes u_ξξ for u_xx; these are ours.
    """

    def __init__(
        self, u0: Initial, nu: float, speed: Speed = "burgers", width: int = 50, depth_u: int = 5,
        depth_x: int = 2, u_ref: float | None = None, hard_ic: bool = True, *,
        jacobian: bool = True, t_max: float = 1.0, length: float = PERIOD,
    ) -> None:  # fmt: skip
        super().__init__(u0, nu, speed, width, depth_u, u_ref, hard_ic, t_max, length)
        require_counts(depth_x=depth_x)
        self.jacobian = jacobian
        self.x_net = _network(width, depth_x)

    def jets(self, xi: Tensor, t: Tensor) -> tuple[Jet, Jet]:
        """Return x and u of labels (points,) at times (points,), by ξ, twice, and by t."""
        inputs, time = embed(xi, t), time_jet(t)
        moved = self.x_net.jet(inputs)
        steady = constant_jet(self.u_ref, xi)
        shift = time * (steady + moved) if self.hard_ic else time * steady + moved
        label = along_y(xi, torch.ones_like(xi), torch.zeros_like(xi))
        return label + shift, self._u_jet(xi, t, inputs)

    def forward(self, xi: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and u (points,) of labels at times (points,); x is not wrapped.

        Raises
        ------
        ValueError
            If a time is negative. Later than ``t_max`` is a warning.
        """
        self._require_times(t)
        moved = self.x_net(torch.stack([xi.cos(), xi.sin(), t], 1))[:, 0]
        shift = t * (self.u_ref + moved) if self.hard_ic else self.u_ref * t + moved
        return xi + shift, self._u(xi, t)

    def residuals(self, xi: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t - c and u_t - ν u_xx (points,) of labels at times.

        Raises
        ------
        FoldError
            If the map has folded.
        """
        x, u = self.jets(xi, t)
        return lagrangian_residuals(x, u, t, self.nu, self.speed, jacobian=self.jacobian)

    def initial_residuals(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return x - ξ and u - u0 at t = 0, (points,) each."""
        x, u = self(y, torch.zeros_like(y))
        return x - y, u - self.u0(y)

    @torch.no_grad()
    def predict(
        self, x_grid: Tensor, t: float, labels: tuple[float, float] | None = None
    ) -> Tensor:
        """Return u at places, by interpolation between labels' places.

        Parameters
        ----------
        x_grid : torch.Tensor
            (points,) radians, anywhere: the line is periodic.
        t : float
        labels : tuple of float, optional
            Only labels from the first to the second, less than a period, are known.

        Raises
        ------
        FoldError
            If places do not grow with labels.
        ValueError
            If a place is none of a known label, or the time is negative.
        """
        low, high = labels or (0.0, PERIOD)
        if not 0 < high - low <= PERIOD * (1 + 1e-6):
            raise ValueError(f"labels={labels}: must grow, by at most 2π")
        xi = torch.linspace(low, high, LABELS + 1, dtype=torch.float64)
        dtype = self.u_net.biases[0].dtype
        x, u = self(xi.to(dtype), torch.full_like(xi, t, dtype=dtype))
        # The shift that all share would take bits of the differences.
        places, values = x.double(), u.double()
        steps = places.diff()
        require_unfolded(steps * LABELS / (high - low), torch.full_like(steps, t))
        wrapped = places[0] + (x_grid.double() - places[0]) % PERIOD
        if bool((wrapped > places[-1] + 1e-4).any()):
            raise ValueError(
                f"x_grid has places that no label from {low:.4g} to {high:.4g} is at: must be "
                "covered; give more labels"
            )
        right = torch.searchsorted(places, wrapped).clamp(1, LABELS)
        left = right - 1
        share = (wrapped - places[left]) / (places[right] - places[left])
        return (values[left] + share * (values[right] - values[left])).to(dtype)


class EulerianPINN(_PINN):
    """u_t + c u_x = ν u_xx by one network of (cos x, sin x, t): the usual PINN, the baseline.

    Parameters
    ----------
    u0, nu, speed, width, depth_u, hard_ic, t_max, length
        As `LagrangianPINN`; u = u0(x) + t V, or mean(u0) + V.
    frame : float
        Speed of the frame: the network is one of x - frame · t. 0 is the usual one.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks its rule.
    """

    def __init__(
        self, u0: Initial, nu: float, speed: Speed = "burgers", width: int = 50, depth_u: int = 5,
        hard_ic: bool = True, *, frame: float = 0.0, t_max: float = 1.0, length: float = PERIOD,
    ) -> None:  # fmt: skip
        super().__init__(u0, nu, speed, width, depth_u, frame, hard_ic, t_max, length)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and u (points,) at places and times (points,)."""
        self._require_times(t)
        return x, self._u(x - self.u_ref * t, t)

    def residuals(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0 and u_t + c u_x - ν u_xx (points,) at places y of the frame."""
        jet = self._u_jet(y, t, embed(y, t))
        u, u_y, u_t = jet.value[:, 0], jet.first[0, :, 0], jet.first[1, :, 0]
        c = speed_of(self.speed, u, y + self.u_ref * t, t)
        return torch.zeros_like(u), u_t + (c - self.u_ref) * u_y - self.nu * jet.second[0, :, 0]

    def initial_residuals(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return u - u0 at t = 0 (points,)."""
        _, u = self(y, torch.zeros_like(y))
        return (u - self.u0(y),)

    @torch.no_grad()
    def predict(self, x_grid: Tensor, t: float) -> Tensor:
        """Return u (points,) at places, in the network's dtype."""
        x = x_grid.to(self.u_net.biases[0].dtype)
        u: Tensor = self(x, torch.full_like(x, t))[1]
        return u
