"""What products must be by the documented arithmetic, and how results are compared."""

from __future__ import annotations

import numpy as np
import torch

REALS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
BOUND = 2e-7
"""Of ``precision="fp32"``: times the square root of the depth."""


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    wide = torch.complex128 if dtype in COMPLEX else torch.float64
    return torch.randn(*shape, dtype=wide, generator=generator).to(dtype)


def bits(x):
    """Return a tensor's bits, every NaN the same."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return torch.where(torch.isnan(x), torch.full_like(x, float("nan")), x).contiguous()


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(torch.nan_to_num(bits(got), 1e4), torch.nan_to_num(bits(want), 1e4))
    assert torch.equal(torch.isnan(bits(got)), torch.isnan(bits(want)))


def fold(a, b, start=None):
    """Return start + a @ b by the rule: float16 operands, float32 sums in order of the depth."""
    a, b = a.half().numpy().astype(np.float32), b.half().numpy().astype(np.float32)
    total = np.zeros((len(a), b.shape[1]), np.float32)
    if start is not None:
        total = total + start.float().numpy()
    for k in range(a.shape[1]):
        total = total + a[:, k, None] * b[None, k]
    return torch.from_numpy(total)


def documented(a, b, start=None):
    """Return what docs/offload.md says of a @ b, in a's type; complex as one real product."""
    if not a.is_complex():
        if a.dtype is torch.float64 and start is not None:
            return fold(a, b).double() + start
        return fold(a, b, start).to(a.dtype)
    a, b = a.resolve_conj(), b.resolve_conj()
    left = torch.cat([a.real, a.imag], 1)
    right = torch.cat([torch.cat([b.real, b.imag], 1), torch.cat([-b.imag, b.real], 1)], 0)
    first = None if start is None else torch.cat([start.real, start.imag], -1)
    made = fold(left, right, first if a.dtype is torch.complex64 else None).to(a.real.dtype)
    if first is not None and a.dtype is torch.complex128:
        made = made + first
    cols = b.shape[1]
    return torch.complex(made[:, :cols].contiguous(), made[:, cols:].contiguous())


def stacked(a, b, start=None):
    return torch.stack(
        [
            documented(x, y, None if start is None else start[i])
            for i, (x, y) in enumerate(zip(a, b, strict=False))
        ]
    )


A, B, C = (6, 13), (13, 5), (6, 5)
