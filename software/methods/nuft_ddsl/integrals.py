"""The Fourier integral over a unit simplex, whatever its phases coincide in.

By Hermite and Genocchi it is a divided difference of exp(-i z) at the vertices' phases. The sum
over vertices that textbooks give divides by differences of phases, and fails wherever a frequency
is orthogonal to an edge; here nothing is ever divided by less than 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CLOSE = 1.0
"""Phases that spread less are summed as a power series."""

TERMS = 18
"""Of the series: the first one left out is below 1e-17 for any phases that are close."""


def simplex_integral(phases: Tensor) -> Tensor:
    """Return ``∫ exp(-i Σ λ_a σ_a) dλ`` over the unit simplex λ ≥ 0, Σ λ = 1.

    It is ``i^j`` times the divided difference of exp(-i z) at σ, 1 / j! where all σ are 0.
    Autograd's gradients are as exact.

    Parameters
    ----------
    phases : torch.Tensor
        (…, j + 1) float64: σ, a phase in radians of each vertex.

    Returns
    -------
    torch.Tensor
        (…) complex128, within some 1e-15 of the integral.

    Source
    ------
    Jiang et al. 2019, arXiv 1901.02070, equation 6; de Boor 2005, "Divided differences", for the
    identity. The way around coincident phases is ours.
    """
    flat = phases.sort(dim=-1).values.reshape(-1, phases.shape[-1])
    return _integral(flat).reshape(phases.shape[:-1])


def unit(phases: Tensor) -> Tensor:
    """Return exp(-i phases)."""
    return torch.complex(phases.cos(), -phases.sin())


def _integral(phases: Tensor) -> Tensor:
    """The same, of (count, j + 1) phases that rise."""
    order = phases.shape[-1] - 1
    if order == 0:
        return unit(phases[..., 0])
    spread = phases[..., -1] - phases[..., 0]
    close = spread < CLOSE
    lower = _integral(phases[..., 1:]) - _integral(phases[..., :-1])
    whole = 1j * lower / torch.where(close, 1.0, spread)
    return whole.index_put((close,), _series(phases[close]))


def _series(phases: Tensor) -> Tensor:
    """``exp(-i m) Σ_n (-i)^n h_n(σ - m) / (n + j)!``, h_n the complete homogeneous polynomials."""
    order = phases.shape[-1] - 1
    mean = phases.mean(-1)
    steps = (phases - mean[..., None]).unbind(-1)
    # h_n of the first a + 1 variables is h_n of the first a, plus the last times h_(n - 1).
    powers = [torch.ones_like(mean) for _ in steps]
    parts = [torch.zeros_like(mean), torch.zeros_like(mean)]
    for n in range(TERMS):
        term = powers[-1] / math.factorial(n + order)
        parts[n % 2] = parts[n % 2] + (term if n % 4 in (0, 3) else -term)
        rising = [powers[0] * steps[0]]
        for step, power in zip(steps[1:], powers[1:], strict=True):
            rising.append(rising[-1] + step * power)
        powers = rising
    return unit(mean) * torch.complex(parts[0], parts[1])
