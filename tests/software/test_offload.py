"""`sat.offload`: products of all kinds against a scalar fold, and those of `precision="fp32"`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sat

sys.path.insert(0, str(Path(__file__).parent))
from offload_folds import BOUND, COMPLEX, REALS, A, B, C, documented, fold, randn, same, stacked

SIZES = [(6, 13, 5), (1, 1, 1), (17, 40, 3)]
"""Rows, depth, cols."""


def operations(r, d, c):
    """Return shapes, operation and documented result by name; stacks are of three."""
    a, b, s = (r, d), (d, c), (r, c)
    return {
        "mm": ((a, b), torch.mm, documented),
        "mm of views": (
            ((d, r), (c, d)),
            lambda x, y: x.T @ y.T,
            lambda x, y: documented(x.T, y.T),
        ),
        "matmul of 3 and 2 axes": (
            ((2, *a), b),
            torch.matmul,
            lambda x, y: documented(x.reshape(2 * r, d), y).reshape(2, r, c),
        ),
        "mv": ((a, (d,)), torch.mv, lambda x, y: documented(x, y[:, None])[:, 0]),
        "dot": (((d,), (d,)), torch.dot, lambda x, y: documented(x[None], y[:, None])[0, 0]),
        "vdot": (
            ((d,), (d,)),
            torch.vdot,
            lambda x, y: documented(x.conj()[None], y[:, None])[0, 0],
        ),
        "bmm": (((3, *a), (3, *b)), torch.bmm, stacked),
        "addmm, row": (
            ((c,), a, b),
            torch.addmm,
            lambda z, x, y: documented(x, y, z.expand(r, c)),
        ),
        "addmm, matrix": ((s, a, b), torch.addmm, lambda z, x, y: documented(x, y, z)),
        "addmv": (
            ((r,), a, (d,)),
            torch.addmv,
            lambda z, x, y: documented(x, y[:, None], z[:, None])[:, 0],
        ),
        "baddbmm": (
            ((3, *s), (3, *a), (3, *b)),
            torch.baddbmm,
            lambda z, x, y: stacked(x, y, z),
        ),
        "addbmm": (
            (s, (3, *a), (3, *b)),
            torch.addbmm,
            lambda z, x, y: documented(x.transpose(0, 1).reshape(r, 3 * d), y.reshape(3 * d, c), z),
        ),
        "einsum": (
            ((3, *a), (3, *b)),
            lambda x, y: torch.einsum("bij,bjk->bik", x, y),
            stacked,
        ),
    }


def absolute_terms(op, tensors):
    """Return the sums of the terms' magnitudes: what an error is measured by."""
    return op(*(t.abs().double() for t in tensors))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [*REALS, *COMPLEX])
@pytest.mark.parametrize(
    "name, size",
    # torch multiplies elementwise where einsum has a single term: that is no product.
    [(n, s) for n in operations(*SIZES[0]) for s in SIZES if (n, s) != ("einsum", (1, 1, 1))],
)
def test_op_equals_the_documented_arithmetic(name, size, dtype, grad):
    shapes, op, want = operations(*size)[name]
    tensors = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    leaves = [t.clone().requires_grad_(grad) for t in tensors]
    with sat.offload("golden") as report:
        got = op(*leaves)
        if grad:
            got.backward(torch.ones_like(got))
    same(got.detach(), want(*tensors))
    assert report.coverage == 1.0
    assert report.calls >= (1 + (2 if grad and name in ("mm", "bmm") else 0))
    wide = torch.complex128 if dtype in COMPLEX else torch.float64
    exact = [t.to(wide).requires_grad_() for t in tensors]
    value = op(*exact)
    # docs/offload.md: operands round to 11 bits, sums to 24, results to their type.
    depth = 3 * 2 * size[1]
    bound = (2.0**-10 + 2.0**-22 + depth * 2.0**-24) * absolute_terms(op, tensors)
    step = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0.0)
    bound = bound * (2 if dtype in COMPLEX else 1) + step * value.detach().abs() * 1.01
    assert ((got.detach().to(wide) - value.detach()).abs() <= bound + 1e-7).all()
    if grad:
        value.backward(torch.ones_like(value))
        for leaf, reference in zip(leaves, exact, strict=True):
            error = (leaf.grad.to(wide) - reference.grad).abs().max()
            assert error <= (2.0**-6 if dtype is torch.bfloat16 else 2.0**-9) * 3 * max(size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("alpha, beta", [(2, 1), (1, 0), (0.5, -3)])
def test_alpha_and_beta_apply_to_the_finished_product(dtype, alpha, beta):
    s, a, b = (randn(*shape, dtype=dtype) for shape in (C, A, B))
    if beta == 0:
        s[0, 0] = float("nan")  # torch does not look at it
    wide = {torch.float16: torch.float32}.get(dtype, dtype)
    with sat.offload("golden"):
        got = torch.addmm(s, a, b, alpha=alpha, beta=beta)
    product = documented(a.to(wide), b.to(wide)) * alpha
    want = product if beta == 0 else product + beta * s.to(wide)
    same(got, want.to(dtype))


def test_out_and_in_place_forms():
    a, b, s = randn(*A), randn(*B), randn(*C)
    with sat.offload("golden") as report:
        out = torch.empty(0)
        assert torch.mm(a, b, out=out) is out
        same(out, fold(a, b))
        into = s.clone()
        assert into.addmm_(a, b) is into
        same(into, fold(a, b, s))
    assert report.calls == 2


def test_conjugate_views_and_transposes_are_read_as_they_mean():
    a, b = randn(6, 13, dtype=torch.complex64), randn(5, 13, dtype=torch.complex64)
    with sat.offload("golden"):
        got = a.conj() @ b.mH
    same(got, documented(a.conj().resolve_conj(), b.mH.resolve_conj().contiguous()))


# ------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("depth", [1, 2, 17, 128, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_fp32_precision_keeps_its_bound(depth, dtype):
    a, b = randn(24, depth, dtype=dtype), randn(depth, 20, dtype=dtype, seed=1)
    with sat.offload("golden", precision="fp32"):
        got = a @ b
    wide = torch.complex128 if dtype is torch.complex64 else torch.float64
    exact = a.to(wide) @ b.to(wide)
    scale = a.to(wide).abs() @ b.to(wide).abs()
    folded = 2 * depth if dtype is torch.complex64 else depth
    assert ((got - exact).abs() / scale).max() <= BOUND * folded**0.5


@pytest.mark.parametrize("depth", [1, 16, 256, 2048])
def test_fp32_precision_in_relative_errors_of_results(depth):
    """Where no terms cancel, element by element; where they do, against the largest result."""
    generator = torch.Generator().manual_seed(depth)
    positive = [
        torch.rand(*shape, generator=generator) + 0.5 for shape in ((24, depth), (depth, 20))
    ]
    mixed = [randn(24, depth), randn(depth, 20, seed=1)]
    with sat.offload("golden", precision="fp32"):
        sums, differences = (a @ b for a, b in (positive, mixed))
    exact = positive[0].double() @ positive[1].double()
    assert ((sums - exact).abs() / exact).max() <= BOUND * depth**0.5
    exact = mixed[0].double() @ mixed[1].double()
    assert (differences - exact).abs().max() / exact.abs().max() <= BOUND * depth**0.5


def test_fp32_precision_on_the_full_range_of_float32():
    rng = np.random.default_rng(0)

    def wild(*shape):
        sign = rng.choice([-1.0, 1.0], shape)
        return torch.from_numpy((sign * 10 ** rng.uniform(-30, 30, shape)).astype(np.float32))

    a, b = wild(16, 24), wild(24, 12)
    with sat.offload("golden", precision="fp32"):
        got = a @ b
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    fits = exact.abs() < torch.finfo(torch.float32).max
    assert fits.any() and not fits.all()
    assert ((got - exact).abs() / scale)[fits].max() <= BOUND * 24**0.5
    assert torch.equal(got[~fits], exact[~fits].float())  # infinities of the right sign
    # Terms that float32 could not hold, and a sum that it can.
    huge = torch.tensor([[3e38, 3e38, -3e38]])
    with sat.offload("golden", precision="fp32"):
        assert (huge @ torch.tensor([[2.0], [1.0], [3.0]])).item() == 0.0
        tiny = torch.full((1, 1), 1e-45)
        assert (tiny @ torch.ones(1, 1)).item() == tiny.item()


def test_fp32_precision_handles_what_is_not_finite_as_ieee_says():
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([[inf, 1.0, -2.0], [1.0, 2.0, 3.0], [0.0, nan, 1.0]])
    b = torch.tensor([[1.0, 0.0, -1.5, inf], [2.0, 3.0, 1.0, 1.0], [1.0, 1.0, 1.0, -inf]])
    with sat.offload("golden", precision="fp32"):
        got = a @ b
    same(got, (a.double() @ b.double()).float())


# --------------------------------------------------------------------- report, budget, refusals
