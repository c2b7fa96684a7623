"""Generating vectors of lattices, component by component."""

from __future__ import annotations

import math

import torch

from sat.methods.problems.arguments import require_counts
from sat.methods.qmcpy.digits import require_power
from sat.methods.qmcpy.kernels import SIKernel

ROWS = 2**22
"""Kernel values that are looked up at a time."""


def cbc_lattice(n: int, d: int, alpha: int = 1, gamma: float = 1.0) -> list[int]:
    """Return a generating vector, each component the best after those before it.

    Parameters
    ----------
    n : int
        Points, a power of two from 2 on; the work is d n² / 2.
    d : int
    alpha : int
        Smoothness, from 1 to 5.
    gamma : float
        Weight of all dimensions, not negative.

    Returns
    -------
    list of int
        Odd, from 1 to n - 1; the first is 1. They make -1 + mean_i Π_j (1 + gamma K(x_ij)) least.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Sloan, Reztsov 2002, Mathematics of Computation 71, component by component.
    """
    m = require_power("n", n)
    require_counts(d=d)
    if m < 1:
        raise ValueError(f"n={n}: must be at least 2")
    if not 1 <= alpha <= 5:
        raise ValueError(f"alpha={alpha}: must be from 1 to 5")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma={gamma}: must be finite and not negative")
    i = torch.arange(n)
    kernel = SIKernel(alpha)
    table = kernel((i.double() / n)[:, None], torch.zeros(1, dtype=torch.float64)) - 1
    product = torch.ones(n, dtype=torch.float64)
    candidates = torch.arange(1, n, 2)
    chosen: list[int] = []
    for j in range(d):
        if j == 0:
            best = 1
        else:
            # All candidates' sums at once: a product of their kernel values and what came before.
            sums = torch.cat(
                [table[z[:, None] * i % n] @ product for z in candidates.split(max(ROWS // n, 1))]
            )
            best = int(candidates[sums.argmin()])
        chosen.append(best)
        product = product * (1 + gamma * table[best * i % n])
    return chosen
