"""How exact the products are that a demo's float64 checks rest on."""

from __future__ import annotations

import math

import torch

FLOAT64_PRODUCTS = 1e-15
"""What `product_error` stays below where products are float64's."""


def product_error() -> float:
    """Return the largest error of a float64 product of 16 x 64 x 16, over ``|A|·|B|``.

    Against ``math.fsum`` of its terms. About 1e-17 in plain PyTorch; products that run elsewhere
    may carry fewer bits, and a bound on float64 arithmetic then is one on those.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    product = a @ b.mT
    worst = 0.0
    for i in range(16):
        for j in range(16):
            terms = (a[i] * b[j]).tolist()
            scale = math.fsum(map(abs, terms))
            worst = max(worst, abs(float(product[i, j]) - math.fsum(terms)) / scale)
    return worst


def product_bound(bound: float, products: int = 1) -> float:
    """Return a bound for float64 arithmetic, or what fewer bits of its products allow.

    Parameters
    ----------
    bound : float
        What float64 keeps.
    products : int
        How many products follow one another, with some room for how they pass on errors.

    Returns
    -------
    float
        ``bound`` where products are float64's; else at least ``products`` times their error.
    """
    error = product_error()
    return bound if error < FLOAT64_PRODUCTS else max(bound, products * error)
