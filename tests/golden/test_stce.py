"""The fold kernel against a plain loop in numpy that adds one product after the other."""

import platform
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sat.sim import build
from sat.sim.golden import sore, stce

PATTERNS = [(n, m) for m in (2, 4, 8, 16) for n in range(1, m + 1)] + [(1, 1)]


def fold(a, b, start=None, stored=None):
    """Return the fold by definition: (rows, cols) float32 sums, one step of depth at a time.

    ``stored`` (depth, cols) bool says which elements of b take part. Multiplication and addition
    are numpy's, rounded apart; only NaN is made canonical here.
    """
    total = np.zeros((len(a), b.shape[1]), np.float32)
    if start is not None:
        total[:] = start
    a32, b32 = a.astype(np.float32), b.astype(np.float32)
    with np.errstate(all="ignore"):
        for k in range(a.shape[1]):
            after = total + a32[:, k, None] * b32[k]
            total = after if stored is None else np.where(stored[k], after, total)
    total[np.isnan(total)] = np.uint32(0x7FC00000).view(np.float32)
    return total


def same_bits(x, y):
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def compact(b, n, m):
    return stce.NMOperand(*sore.select(b, n, m), (n, m), len(b))


def corner_weighted(rng, shape):
    """Return float16 of every kind: all bit patterns, and runs near 1, subnormal and special."""
    x = rng.integers(0, 1 << 16, shape, np.uint16).view(np.float16)
    near = rng.standard_normal(shape).astype(np.float16)
    tiny = (rng.integers(0, 64, shape) * 2.0**-24).astype(np.float16)
    special = rng.choice(
        np.array([0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 1, 0x7BFF], np.uint16), shape
    )
    kind = rng.integers(0, 100, shape)
    x = np.where(kind < 60, near, np.where(kind < 80, tiny, x))
    # Few specials, or every long sum would be NaN.
    return np.where(rng.random(shape) < 1 / 150, special.view(np.float16), x)


def corner_start(rng, shape):
    start = rng.standard_normal(shape).astype(np.float32)
    special = [0x80000000, 1, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0xFFC00001, 0x7F800001]
    kind = rng.integers(0, 40, shape)
    for i, bits in enumerate(special):
        start[kind == i] = np.uint32(bits).view(np.float32)
    return start


@settings(deadline=None)
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 70),
    depth=st.integers(1, 70),
    pattern=st.sampled_from([None, *PATTERNS]),
    start_shape=st.sampled_from(["none", "row", "full"]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_matmul_is_the_fold(rows, cols, depth, pattern, start_shape, threads, seed):
    rng = np.random.default_rng(seed)
    a, b = corner_weighted(rng, (rows, depth)), corner_weighted(rng, (depth, cols))
    start = {"none": None, "row": (cols,), "full": (rows, cols)}[start_shape]
    start = None if start is None else corner_start(rng, start)
    operand = b if pattern is None else compact(b, *pattern)
    stored = None if pattern is None else sore.mask(b, *pattern)
    got = stce.matmul(a, operand, start, threads)
    assert same_bits(got, fold(a, b, start, stored))


@pytest.mark.parametrize("pattern", [None, (1, 1), (1, 2), (3, 4), (2, 8), (5, 16)])
@pytest.mark.parametrize(("rows", "cols", "depth"), [(203, 1100, 530), (70, 33, 1601), (3, 2, 777)])
def test_matmul_is_the_fold_across_blocks(rows, cols, depth, pattern):
    rng = np.random.default_rng(rows)
    a = rng.standard_normal((rows, depth)).astype(np.float16)
    b = rng.standard_normal((depth, cols)).astype(np.float16)
    start = rng.standard_normal((rows, cols)).astype(np.float32)
    operand = b if pattern is None else compact(b, *pattern)
    stored = None if pattern is None else sore.mask(b, *pattern)
    expected = fold(a, b, start, stored)
    for threads in (1, 2):
        assert same_bits(stce.matmul(a, operand, start, threads), expected)


def laid_out(x, order):
    """Return a view of a copy whose axes lie in memory in another order, with gaps."""
    gaps = np.zeros([n + 1 for n in x.transpose(order).shape], x.dtype)
    inner = gaps[tuple(slice(0, n) for n in x.transpose(order).shape)]
    inner[:] = x.transpose(order)
    return inner.transpose(np.argsort(order))


@settings(deadline=None)
@given(
    count=st.sampled_from([1, 2, 7, 16, 21, 40]),
    rows=st.integers(1, 40),
    cols=st.integers(1, 40),
    depth=st.integers(1, 40),
    pattern=st.sampled_from([None, (2, 8), (1, 4)]),
    start_shape=st.sampled_from(["none", "row", "full"]),
    orders=st.lists(st.permutations([0, 1, 2]), min_size=3, max_size=3),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_stack_is_its_products_one_by_one_however_it_lies(
    count, rows, cols, depth, pattern, start_shape, orders, threads, seed
):
    rng = np.random.default_rng(seed)
    a = laid_out(corner_weighted(rng, (count, rows, depth)), orders[0])
    b = laid_out(corner_weighted(rng, (count, depth, cols)), orders[1])
    start = {"none": None, "row": (cols,), "full": (count, rows, cols)}[start_shape]
    if start is not None:
        start = corner_start(rng, start)
        start = laid_out(start, orders[2]) if start.ndim == 3 else start
    right = b
    if pattern is not None:
        right = stce.NMOperand(*sore.select(b, *pattern, 1), pattern, depth)
    got = stce.matmul(a, right, start, threads)
    for i in range(count):
        first = start[i] if start_shape == "full" else start
        stored = None if pattern is None else sore.mask(b[i], *pattern)
        assert same_bits(got[i], fold(a[i], b[i], first, stored))


def spread_out(rng, count, rows, cols):
    """Return memory, where its first number is, and a layout of nested loops over it."""
    loops = []
    for sizes in (rows, cols):
        steps = rng.integers(-9, 40, len(sizes))
        steps[-1] = rng.choice([1, 1, 3, -2])
        loops.append(stce.Loops(tuple(sizes), tuple(int(step) for step in steps)))
    layout = stce.LoopLayout(count, int(rng.integers(50)), *loops)
    at = np.add.outer(layout.step * np.arange(count), np.add.outer(*(x.places() for x in loops)))
    return corner_weighted(rng, (int(at.max() - at.min()) + 1,)), at - at.min(), layout


@settings(deadline=None)
@given(
    count=st.sampled_from([1, 2, 17]),
    rows=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    depth=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    cols=st.tuples(st.integers(1, 10), st.integers(1, 40)),
    spread=st.sampled_from(["left", "right", "both"]),
    turn=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
@example(1, [2, 100], [300], (9, 70), "right", True, 1, 0)
@example(1, [2, 100], [3, 100], (9, 70), "both", True, 2, 0)
@example(1, [2, 100], [3, 100], (9, 140), "both", False, 2, 0)
def test_rows_and_columns_may_be_nested_loops(
    count, rows, depth, cols, spread, turn, threads, seed
):
    rng = np.random.default_rng(seed)
    (a, a_at, left), (b, b_at, right) = (
        spread_out(rng, count, *sizes) for sizes in ((rows, depth), (depth, cols))
    )
    whole_a, whole_b = a[a_at], b[b_at]
    if spread != "both":
        array = whole_a if spread == "right" else whole_b
        lies = array.shape, tuple(step // 2 for step in array.strides)
        if spread == "right":
            a, a_at, left = array, np.zeros((1, 1, 1), int), lies
        else:
            b, b_at, right = array, np.zeros((1, 1, 1), int), lies
    outer = cols[0] if turn else 1
    plan = stce.Plan(left, right, threads=threads, outer=outer)
    made = np.empty(plan.shape, np.float32)
    first = [x.ctypes.data + 2 * int(at[0, 0, 0]) for x, at in ((a, a_at), (b, b_at))]
    assert plan.run(*first, None, None, made.ctypes.data) == -1
    want = stce.matmul(whole_a, whole_b)
    if turn:
        want = want.reshape(*want.shape[:2], *cols).swapaxes(2, 3).reshape(want.shape)
    assert same_bits(made, want)


def other_flags():
    """Return flag sets for lesser processors that this one can run: each takes other paths."""
    features = set()
    if platform.machine() == "x86_64":
        with open("/proc/cpuinfo") as lines:
            features = set(next(line for line in lines if line.startswith("flags")).split())
    variants = [(), ("avx", "f16c"), ("avx2", "fma")]
    return [tuple(f"-m{name}" for name in needed) for needed in variants if set(needed) <= features]


@pytest.mark.parametrize("flags", other_flags(), ids=lambda flags: "plain" + "".join(flags))
def test_kernels_for_other_processors_give_the_same_bits(flags, monkeypatch):
    strict = ("-O2", "-Wall", "-Wextra", "-Werror", *flags)
    other = stce.load_fold(build.compile_library("golden_fold", [stce.SOURCE], strict))
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    rng = np.random.default_rng(5)
    finite = np.where(np.isfinite(every), every, np.float16(1))
    b = corner_weighted(rng, (256, 41))
    cases = [(finite, b), (every, np.eye(256, dtype=np.float16)), (finite, compact(b, 3, 8))]
    expected = [stce.matmul(*case) for case in cases]
    monkeypatch.setattr(stce, "_fold", lambda: other)
    for case, bits in zip(cases, expected, strict=True):
        assert same_bits(stce.matmul(*case), bits)


def test_every_half_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    got = stce.matmul(every[:, None], np.ones((1, 1), np.float16), np.full(1, -0.0, np.float32))
    expected = torch.from_numpy(every).float().numpy()
    expected[np.isnan(expected)] = np.uint32(0x7FC00000).view(np.float32)
    assert same_bits(got[:, 0], expected)


def test_order_of_additions_is_ascending_depth():
    # 2^24 absorbs a 1 that comes after it, so each order gives another sum.
    a = np.array([[1, 1, 4096, -4096]], np.float16)
    b = np.array([[1], [1], [4096], [4096]], np.float16)
    orders = {
        (0, 1, 2, 3): 2.0,
        (2, 0, 1, 3): 0.0,
        (0, 2, 1, 3): 0.0,
        (2, 3, 0, 1): 2.0,
    }
    for order, expected in orders.items():
        assert stce.matmul(a[:, order], b[list(order)])[0, 0] == expected
    start = np.array([2.0**24], np.float32)
    assert stce.matmul(a[:, :2], b[:2], start)[0, 0] == 2.0**24
    assert stce.matmul(a[:, :2], b[:2])[0, 0] == 2


@pytest.mark.parametrize("sparse", [False, True])
def test_signed_zeros_survive(sparse):
    a = np.full((5, 4), -0.0, np.float16)
    b = np.ones((4, 3), np.float16)
    operand = compact(b, 1, 2) if sparse else b
    minus = np.full(3, -0.0, np.float32)
    assert np.signbit(stce.matmul(a, operand, minus)).all()
    assert not np.signbit(stce.matmul(a, operand)).any()
    assert np.signbit(stce.matmul(-a, -operand if not sparse else compact(-b, 1, 2), minus)).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_nan_is_canonical_whatever_it_comes_from(sparse):
    a = np.array([[np.inf, 0], [np.inf, np.inf], [0, 1]], np.float16)
    b = np.array([[0, 1], [1, -1]], np.float16)
    b[1, 0] = np.uint16(0xFE01).view(np.float16)
    operand = compact(b, 2, 2) if sparse else b
    start = np.uint32([0xFF812345, 0]).view(np.float32)
    bits = stce.matmul(a, operand, start).view(np.uint32)
    assert bits.tolist() == [
        [0x7FC00000, 0x7F800000],
        [0x7FC00000, 0x7FC00000],
        [0x7FC00000, 0xBF800000],
    ]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormals_are_kept_when_the_caller_flushes_them(sparse, threads):
    rng = np.random.default_rng(1)
    # Products down to 2^-48 are normal in binary32: only a start value reaches its subnormals.
    a = np.full((80, 2), 2.0**-24, np.float16)
    b = np.zeros((2, 80), np.float16)
    start = rng.integers(1, 1 << 23, (80, 80), np.uint32).view(np.float32)
    operand = compact(b, 1, 2) if sparse else b
    expected = fold(a, b, start)
    assert torch.set_flush_denormal(True)
    try:
        got = stce.matmul(a, operand, start, threads)
        # The caller's setting is in force again: its own arithmetic still flushes.
        flushed = torch.full((1,), 2.0**-126) * 0.5
        still_flushing = flushed.view(torch.int32).item() == 0
    finally:
        torch.set_flush_denormal(False)
    assert still_flushing
    assert same_bits(got, expected)
    assert np.array_equal(got.view(np.uint32), start.view(np.uint32))


def test_a_wrong_index_changes_the_result():
    rng = np.random.default_rng(2)
    a = rng.standard_normal((20, 40)).astype(np.float16)
    operand = compact(rng.standard_normal((40, 6)).astype(np.float16), 1, 8)
    right = stce.matmul(a, operand)
    for row, col in np.ndindex(operand.indices.shape):
        wrong = operand.indices.copy()
        wrong[row, col] ^= 1
        got = stce.matmul(a, stce.NMOperand(operand.values, wrong, (1, 8), 40))
        assert not same_bits(got, right)
        others = np.arange(6) != col
        assert np.array_equal(got[:, others], right[:, others])


def test_views_and_read_only_arrays_are_taken_as_they_are():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((18, 12)).astype(np.float16).T[::2, ::-1]
    b = rng.standard_normal((7, 18)).astype(np.float16).T
    start = np.broadcast_to(np.arange(7, dtype=np.float32), (6, 7))
    for x in (a, b):
        x.flags.writeable = False
    before = a.tobytes(), b.tobytes()
    assert same_bits(stce.matmul(a, b, start), fold(a, b, start))
    assert same_bits(stce.matmul(a, b, start[0]), fold(a, b, start))
    assert (a.tobytes(), b.tobytes()) == before


HALF = np.ones((4, 4), np.float16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (HALF.astype(np.float32), HALF),
            TypeError,
            r"a has dtype float32.*a\.astype\(np\.float16",
        ),
        ((HALF, HALF.astype(float)), TypeError, "b has dtype float64: must be float16"),
        ((HALF.tolist(), HALF), TypeError, "a is a list"),
        ((HALF, HALF, np.ones(4)), TypeError, "start has dtype float64: must be float32"),
        ((HALF[0], HALF), ValueError, r"a has shape \(4,\)"),
        ((HALF[:0], HALF), ValueError, r"a has shape \(0, 4\)"),
        ((HALF[:, :0], HALF[:0]), ValueError, r"a has shape \(4, 0\)"),
        ((HALF, HALF[:, :0]), ValueError, r"b has shape \(4, 0\)"),
        ((HALF[:, :3], HALF), ValueError, r"a is \(4, 3\) and b is \(4, 4\)"),
        ((HALF, HALF, np.ones(3, np.float32)), ValueError, r"start has shape \(3,\)"),
        ((HALF, HALF, np.ones((1, 4), np.float32)), ValueError, r"start has shape \(1, 4\)"),
        ((HALF, HALF, None, 0), ValueError, "threads=0"),
    ],
)
def test_bad_operands_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        stce.matmul(*arguments)


@pytest.mark.parametrize(
    ("values", "indices", "pattern", "depth", "error", "message"),
    [
        ((2, 3), [[0, 0, 0], [4, 0, 0]], (1, 4), 7, ValueError, r"indices\[1, 0\]=4"),
        ((2, 3), [[0, 0, 3], [0, 0, 3]], (1, 4), 7, ValueError, r"indices\[1, 2\]=3"),
        ((4, 3), [[1] * 3, [1] * 3] * 2, (2, 4), 7, ValueError, r"indices\[1, 0\]=1"),
        ((2, 3), [[0] * 3] * 2, (2, 4), 7, ValueError, "stores 4 rows"),
        ((2, 3), [[0] * 2] * 2, (1, 4), 7, ValueError, "stores 2 rows"),
        ((2, 3), [[0] * 3] * 2, (1, 4), 8, ValueError, "b has depth 8"),
        ((2, 3), [[0] * 3] * 2, (1, 5), 7, ValueError, "pattern 1:5"),
        ((2, 3), [[0] * 3] * 2, (5, 4), 7, ValueError, "pattern 5:4"),
    ],
)
def test_bad_compact_operands_are_named(values, indices, pattern, depth, error, message):
    operand = stce.NMOperand(
        np.ones(values, np.float16), np.array(indices, np.uint8), pattern, depth
    )
    with pytest.raises(error, match=message):
        stce.matmul(np.ones((4, 7), np.float16), operand)


def test_indices_of_another_dtype_are_named():
    operand = stce.NMOperand(HALF, np.zeros((4, 4), int), (1, 1), 4)
    with pytest.raises(TypeError, match=r"b\.indices has dtype int64: must be uint8"):
        stce.matmul(HALF, operand)


def test_a_small_tile_costs_no_more_than_its_call():
    a, b = np.ones((8, 40), np.float16), np.ones((40, 64), np.float16)
    best = min(_seconds(lambda: stce.matmul(a, b)) for _ in range(200))
    # Measured 8 microseconds on an idle core; the bound holds on a busy one.
    assert best < 200e-6


def _seconds(call):
    before = time.perf_counter()
    call()
    return time.perf_counter() - before
