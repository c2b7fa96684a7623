"""Weak forms: functions of u (e, q, …), du (e, q, …, dim), x (e, q, dim) and parameters.

They return (flux, source) of R_i = ∫ flux · ∇φ_i + source φ_i. A coefficient is a number, a
function, or the name of a parameter, which may be sought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Coefficient = float | str | Callable[[Tensor], Tensor]


def poisson(k: Coefficient = 1.0, f: Coefficient = 1.0) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the form of -∇·(k ∇u) = f.

    Parameters
    ----------
    k, f : float, str, or callable
        A callable takes x (e, q, dim) to (e, q).
    """

    def form(u: Tensor, du: Tensor, x: Tensor, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        conductivity, load = (_value(c, x, params) for c in (k, f))
        return conductivity.unsqueeze(-1) * du, -load.expand(u.shape)

    return form


def nonlinear_diffusion(
    k: Callable[[Tensor], Tensor], f: Coefficient = 1.0
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the form of -∇·(k(u) ∇u) = f.

    Parameters
    ----------
    k : callable
        Values u (e, q) to (e, q).
    f : float, str, or callable
        As of `poisson`.
    """

    def form(u: Tensor, du: Tensor, x: Tensor, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return k(u).unsqueeze(-1) * du, -_value(f, x, params).expand(u.shape)

    return form


def elasticity(
    E: float | str = 1.0, nu: float | str = 0.3, body: tuple[float, float] = (0.0, 0.0)
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the form of linear elasticity in plane stress, -∇·σ = body.

    σ = E / (1 - ν²) ((1 - ν) ε + ν tr ε I), ε the symmetric gradient of displacements (n, 2).

    Parameters
    ----------
    E, nu : float or str
        Young's modulus and Poisson's ratio, or names of parameters.
    body : tuple of float
        Force a volume.

    Raises
    ------
    ValueError
        If E is not positive, or ν not within (-1, 0.5).
    """
    if not isinstance(E, str) and not 0 < E < math.inf:
        raise ValueError(f"E={E}: must be positive and finite")
    if not isinstance(nu, str) and not -1 < nu < 0.5:
        raise ValueError(f"nu={nu}: must be within -1 and 0.5, or energy is not positive")

    def form(u: Tensor, du: Tensor, x: Tensor, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        young, ratio = (_value(c, x, params) for c in (E, nu))
        force = torch.tensor(body, dtype=du.dtype)
        return plane_stress(du, young, ratio), -force.expand(u.shape)

    return form


def plane_stress(du: Tensor, young: Tensor, ratio: Tensor) -> Tensor:
    """Return σ (…, 2, 2) of gradients of displacements (…, component, dim)."""
    strain = (du + du.mT) / 2
    trace = strain.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    young, ratio = (c[..., None, None] if c.ndim else c for c in (young, ratio))
    identity = torch.eye(2, dtype=du.dtype)
    return young / (1 - ratio**2) * ((1 - ratio) * strain + ratio * trace * identity)


def navier_stokes(re: float | str) -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
    """Return the form of steady flow, u·∇u - ∇·(∇u / Re - p I) = 0 and ∇·u = 0.

    For a `MixedSpace` of ``"velocity"`` (2 components) and ``"pressure"``, one order lower.

    Parameters
    ----------
    re : float or str
        Reynolds' number, or the name of a parameter.

    Raises
    ------
    ValueError
        If it is not positive.

    Source
    ------
    arXiv 2107.12146, section 3 (Taylor-Hood).
    """
    if not isinstance(re, str) and not 0 < re < math.inf:
        raise ValueError(f"re={re}: must be positive and finite")

    def form(
        u: Mapping[str, Tensor], du: Mapping[str, Tensor], x: Tensor, params: Mapping[str, Any]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        velocity, slope, pressure = u["velocity"], du["velocity"], u["pressure"]
        identity = torch.eye(2, dtype=slope.dtype)
        flux = slope / _value(re, x, params) - pressure[..., None, None] * identity
        convection = (slope * velocity.unsqueeze(-2)).sum(-1)
        divergence = slope.diagonal(dim1=-2, dim2=-1).sum(-1)
        return {
            "velocity": (flux, convection),
            "pressure": (torch.zeros_like(du["pressure"]), divergence),
        }

    return form


def _value(coefficient: Coefficient, x: Tensor, params: Mapping[str, Any]) -> Tensor:
    if isinstance(coefficient, str):
        if coefficient not in params:
            raise ValueError(
                f"parameter {coefficient!r}: has no value; give params={{{coefficient!r}: …}}"
            )
        coefficient = params[coefficient]
    value = coefficient(x) if callable(coefficient) else coefficient
    return torch.as_tensor(value, dtype=x.dtype)
