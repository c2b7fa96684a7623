"""Functions that surrogates are judged on, and what is known about them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

A, B = 7.0, 0.1
"""Ishigami's constants."""

BOREHOLE = (
    (0.05, 0.15), (100, 50_000), (63_070, 115_600), (990, 1110), (63.1, 116), (700, 820),
    (1120, 1680), (9855, 12_045),
)  # fmt: skip
"""Ranges of r_w, r (m), T_u (m²/a), H_u (m), T_l (m²/a), H_l, L (m), K_w (m/a)."""


@dataclass(frozen=True)
class Moments:
    """Mean, variance, first-order and total Sobol indices of a function of random inputs.

    Parameters
    ----------
    mean, variance : float
    first, total : torch.Tensor
        (inputs,) float64.
    """

    mean: float
    variance: float
    first: Tensor
    total: Tensor


def ishigami(x: Tensor) -> Tensor:
    """Return ``sin x1 + 7 sin² x2 + 0.1 x3⁴ sin x1`` (N,) for x (N, 3), in its dtype.

    Raises
    ------
    ValueError
        If ``x`` has another shape.

    Source
    ------
    Ishigami and Homma 1990; the inputs are uniform on [-π, π].
    """
    _require("x", x, 3)
    return x[:, 0].sin() * (1 + B * x[:, 2] ** 4) + A * x[:, 1].sin().square()


def ishigami_moments() -> Moments:
    """Return Ishigami's moments in closed form: integrals of sines and powers over [-π, π]."""
    fourth, eighth = math.pi**4 / 5, math.pi**8 / 9
    of_1 = (1 + B * fourth) ** 2 / 2
    of_2 = A**2 / 8
    of_13 = B**2 * (eighth - fourth**2) / 2
    variance = of_1 + of_2 + of_13
    first = torch.tensor([of_1, of_2, 0.0], dtype=torch.float64) / variance
    total = torch.tensor([of_1 + of_13, of_2, of_13], dtype=torch.float64) / variance
    return Moments(A / 2, variance, first, total)


def borehole(u: Tensor) -> Tensor:
    """Return the flow through a borehole in m³ a year (N,) for u (N, 8) in [0, 1].

    Raises
    ------
    ValueError
        If ``u`` has another shape or leaves the unit cube.

    Source
    ------
    Harper and Gupta 1983; all inputs uniform on `BOREHOLE`'s ranges.
    """
    _require("u", u, 8)
    if len(u) and not bool(((u >= 0) & (u <= 1)).all()):
        raise ValueError(
            f"u has entries {float(u.min()):g} to {float(u.max()):g}: must be within 0 to 1; "
            "they are scaled to the ranges of BOREHOLE"
        )
    ranges = torch.tensor(BOREHOLE, dtype=u.dtype, device=u.device)
    r_w, r, t_u, h_u, t_l, h_l, length, k_w = (
        ranges[:, 0] + u * (ranges[:, 1] - ranges[:, 0])
    ).unbind(1)
    log = (r / r_w).log()
    leak = 2 * length * t_u / (log * r_w.square() * k_w)
    return 2 * math.pi * t_u * (h_u - h_l) / (log * (1 + leak + t_u / t_l))


def _require(name: str, x: Tensor, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: must be (N, {width})")
