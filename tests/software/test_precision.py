"""fp32 offload: what a device is sent, and what comes of it, against exact arithmetic."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat.offload import precision
from sat.offload.precision import HEADERS
from sat.sim.build import compile_library
from sat.sim.golden import stce

BOUND = 2e-7
"""Of docs/offload.md: times the square root of the depth."""

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def product(a, b):
    """Return the golden product of matrices, or of stacks of them."""
    if a.ndim == 2:
        return stce.matmul(a, b)
    return np.stack([product(*pair) for pair in zip(a, b, strict=True)])


class Recorder:
    """A device that keeps the operands it is sent."""

    def __init__(self):
        self.sent = []

    def __call__(self, a, b):
        assert a.dtype == b.dtype == np.float16
        assert a.flags.c_contiguous and b.flags.c_contiguous
        self.sent.append((a, b))
        return product(a, b)

    @property
    def depths(self):
        return [a.shape[-1] for a, _ in self.sent]


def wild(rng, shape, low, high, dtype=np.float32):
    """Return numbers of both signs, their magnitudes from 10**low to 10**high; a tenth zeros."""
    signs = rng.choice([-1.0, 0.0, 1.0], shape, p=[0.45, 0.1, 0.45])
    return (signs * 10 ** rng.uniform(low, high, shape)).astype(dtype)


def check(a, b, got):
    """Hold a product against float64, by the bound."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = np.abs(a) @ np.abs(b)
    assert got.dtype == np.float64 and got.shape == scale.shape
    assert (np.abs(got - a @ b) <= BOUND * a.shape[-1] ** 0.5 * scale).all()


# ------------------------------------------------------------------------------- a reference


def bands(line):
    """Cut a line of numbers into bands by the rule, exactly: [(exponent, {place: parts})]."""
    rest = {k: Fraction(float(x)) for k, x in enumerate(line) if x}
    found = []
    while rest:
        top = int(np.frexp(float(max(map(abs, rest.values()))))[1])
        taken = {k: x for k, x in rest.items() if abs(x) >= Fraction(2) ** (top - 16)}
        parts = {}
        for k, x in taken.items():
            left = x / Fraction(2) ** (top - 15)
            parts[k] = []
            for _ in range(3):
                parts[k].append(np.float16(np.float32(float(left))))
                left -= Fraction(float(parts[k][-1]))
        found.append((top - 15, parts))
        rest = {k: x for k, x in rest.items() if k not in taken}
    return found


def reference(a, b):
    """Return the dot product of two lines: the passes of all pairs of bands, folded one by one."""
    total = 0.0
    for e, left in bands(a):
        for f, right in bands(b):
            places = sorted(left.keys() & right.keys())
            terms = (
                np.float32(left[k][i]) * np.float32(right[k][j])
                for i, j in ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0))
                for k in places
            )
            total += float(np.ldexp(np.float64(sum(terms, np.float32(0))), e + f))
    return total


@given(st.lists(st.tuples(FLOAT32, FLOAT32), min_size=1, max_size=12))
def test_a_dot_product_has_the_bits_of_the_rule(pairs):
    a, b = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    assert precision.matmul(a[None], b[:, None], product)[0, 0] == reference(a, b)


@pytest.mark.parametrize("low, high", [(-1, 1), (-8, 8), (-45, 38)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lines_of_a_stack_have_the_bits_of_their_own_products(low, high, dtype):
    rng = np.random.default_rng(0)
    a, b = wild(rng, (2, 5, 19), low, high, dtype), wild(rng, (2, 19, 300), low, high, dtype)
    got = precision.matmul(a, b, product)
    for n, row, col in rng.integers(0, (2, 5, 300), (20, 3)):
        assert got[n, row, col] == reference(a[n, row], b[n, :, col])


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([4, 12, 35]),
    st.integers(0, 2**32),
)
def test_products_of_a_stack_with_bands_of_their_own(count, rows, depth, cols, reach, seed):
    rng = np.random.default_rng(seed)
    a = wild(rng, (count, rows, depth), -reach, reach)
    b = wild(rng, (count, depth, cols), -reach, reach)
    got = precision.matmul(a, b, product)
    for n, row, col in itertools.product(range(count), range(rows), range(cols)):
        assert got[n, row, col] == reference(a[n, row], b[n, :, col])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 300, 400, 500), (40, 60, 70, 50)], ids=str)
def test_threads_do_not_matter(shape, dtype):
    count, rows, depth, cols = shape
    rng = np.random.default_rng(4)
    a = rng.standard_normal((count, rows, depth)).astype(dtype)
    b = rng.standard_normal((count, depth, cols)).astype(dtype)
    want = precision.matmul(a, b, product)
    for threads in (2, 3):
        assert np.array_equal(precision.matmul(a, b, product, threads=threads), want)


# --------------------------------------------------------------------------------- the contract


@given(st.lists(FLOAT32, min_size=1, max_size=40), st.booleans())
def test_every_float32_is_represented_exactly(numbers, left):
    x = np.array(numbers, np.float32)
    one = np.ones((1, 1), np.float32)
    if left:
        got = precision.matmul(x[:, None], one, product)[:, 0]
    else:
        got = precision.matmul(one, x[None], product)[0]
    assert np.array_equal(got, x.astype(np.float64))
    # In one line, where they need bands: each by itself, picked out by the other operand.
    eye = np.eye(len(x), dtype=np.float32)
    lines = (x[None], eye) if left else (eye, x[:, None])
    assert np.array_equal(precision.matmul(*lines, product).ravel(), x.astype(np.float64))


@given(st.floats(1e-290, 1e290) | st.floats(-1e290, -1e-290))
def test_float64_keeps_33_bits(number):
    device = Recorder()
    precision.matmul(np.array([[number]]), np.ones((1, 1)), device)
    ((parts, ones),) = device.sent
    assert np.array_equal(ones.ravel() * np.float64(2.0**-14), np.ones(parts.size))
    scale = Fraction(2) ** (int(np.frexp(number)[1]) - 15)
    kept = sum(Fraction(float(p)) for p in parts.ravel()) * scale
    assert abs(kept - Fraction(number)) <= abs(Fraction(number)) / 2**33


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(-30, 0),
    st.integers(0, 30),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 99),
)
def test_the_error_is_bounded_over_the_range_of_float32(rows, depth, cols, low, high, dtype, seed):
    rng = np.random.default_rng(seed)
    a, b = wild(rng, (rows, depth), low, high, dtype), wild(rng, (depth, cols), low, high, dtype)
    check(a, b, precision.matmul(a, b, product))


def test_operands_of_different_types_and_memory_orders():
    rng = np.random.default_rng(1)
    a, b = wild(rng, (3, 7, 33), -9, 9), wild(rng, (3, 33, 10), -9, 9, np.float64)
    want = precision.matmul(a, b, product)
    check(a, b, want)
    turned = a.swapaxes(1, 2).copy().swapaxes(1, 2)
    every_other = np.repeat(b, 2, -1)[..., ::2]
    assert not turned.flags.c_contiguous and not every_other.flags.c_contiguous
    assert np.array_equal(precision.matmul(turned, every_other, product), want)


def test_scales_far_beyond_float32():
    a, b = np.array([[1e300, 1e-300, 5e-324]]), np.array([[1e-300], [1e300], [1e308]])
    check(a, b, precision.matmul(a, b, product))
    assert np.isinf(precision.matmul(a, 1 / b, product)).all()


def test_the_device_is_sent_no_more_than_is_needed():
    def depths(a, b):
        device = Recorder()
        precision.matmul(np.array(a, np.float32), np.array(b, np.float32), device)
        return device.depths

    third = np.float32(1 / 3)
    assert depths([[third, third]], [[third], [third]]) == [12]  # six passes
    assert depths([[1, 2]], [[3], [4]]) == [2]  # float16 numbers: one
    assert depths([[third, third]], [[3], [4]]) == [6]  # three parts and one
    assert depths([[1, 2.0**-15]], [[3], [4]]) == [2]  # the end of a band
    assert depths([[1, 2.0**-16]], [[3], [4]]) == [1, 1]  # two bands, a place each
    assert depths([[1, 2.0**-40, 2.0**40]], [[3], [4], [0]]) == [1, 1]  # no place where b is zero
    assert depths([[0, 0]], [[3], [4]]) == []
    assert depths([[1, 0]], [[0], [1]]) == []


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 0, 6), (2, 4, 5, 0)], ids=str)
def test_empty_operands_make_zeros(shape):
    count, rows, depth, cols = shape
    a, b = np.ones((count, rows, depth), np.float32), np.ones((count, depth, cols), np.float32)
    got = precision.matmul(a, b, None)
    assert got.shape == (count, rows, cols) and not got.any()


def test_what_is_not_finite_gives_what_ieee_says():
    rng = np.random.default_rng(2)
    for dtype in (np.float32, np.float64):
        a, b = wild(rng, (6, 9), -3, 3, dtype), wild(rng, (9, 300), -3, 3, dtype)
        a[0, 3], a[1, 2], a[3, 1:3] = np.inf, np.nan, (np.inf, -np.inf)
        b[4, 5], b[2, 280] = -np.inf, np.inf
        with np.errstate(invalid="ignore"):
            want = a.astype(np.float64) @ b.astype(np.float64)
        got = precision.matmul(a, b, product)
        finite = np.isfinite(want)
        assert np.array_equal(got[~finite], want[~finite], equal_nan=True)
        assert finite.any() and np.allclose(got[finite], want[finite], rtol=1e-4)
        assert np.isnan(want).any() and np.isinf(want).any()


def test_subnormals_are_kept_where_the_caller_flushes_them():
    a, b = np.full((1, 3), 1e-42, np.float32), np.full((3, 1), 3e38, np.float32)
    want = precision.matmul(a, b, product)
    check(a, b, want)
    assert torch.set_flush_denormal(True)
    try:
        got = precision.matmul(a, b, product)
    finally:
        torch.set_flush_denormal(False)
    assert got == want


def test_compilers_and_processors_do_not_matter(monkeypatch):
    def sent():
        rng, device = np.random.default_rng(3), Recorder()
        for dtype in (np.float32, np.float64):
            operands = wild(rng, (5, 33), -44, 38, dtype), wild(rng, (33, 21), -44, 38, dtype)
            yield precision.matmul(*operands, device)
        yield from itertools.chain.from_iterable(device.sent)

    want = [x.tobytes() for x in sent()]
    # Without a flag for this processor, conversions are done without its instructions.
    plain = compile_library("precision", [precision.SOURCE], ["-O1"], include_dirs=[HEADERS])
    monkeypatch.setattr(precision, "_native", lambda: precision.load(plain))
    assert [x.tobytes() for x in sent()] == want


def test_a_device_that_fails_is_heard():
    def fail(a, b):
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        precision.matmul(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32), fail)
