"""Pruning: the selection against a plain reading of its rule, and torch where no ties are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sat.sim.golden import sore

PATTERNS = [(n, m) for m in (2, 4, 8, 16) for n in range(1, m + 1)] + [(1, 1)]

# Few magnitudes, so that ties are the rule; both zeros, subnormals, infinities, NaN of both signs.
SPECIALS = np.array(
    [0x0000, 0x8000, 0x0001, 0x8001, 0x3C00, 0xBC00, 0x4000, 0x7BFF, 0x7C00, 0xFC00, 0x7E00]
    + [0xFE00, 0x7C01, 0xFDFF],
    np.uint16,
).view(np.float16)


def brute_force(group, n):
    """Return the kept positions of a list of Python floats, by repeatedly taking the largest."""

    def beats(x, y):
        if x != x:
            return y == y
        return y == y and abs(x) > abs(y)

    left = list(range(len(group)))
    taken = []
    while left and len(taken) < n:
        best = left[0]
        for i in left[1:]:
            if beats(group[i], group[best]):
                best = i
        taken.append(best)
        left.remove(best)
    return sorted(taken)


def same_bits(x, y):
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("length", [1, 15, 16, 37])
def test_select_agrees_with_brute_force_on_ties_and_specials(dtype, n, m, length):
    rng = np.random.default_rng([n, m, length])
    x = rng.choice(SPECIALS, (length, 9)).astype(dtype)
    values, indices = sore.select(x, n, m)
    expected_rows, expected_values = [], []
    for col in x.T:
        rows = []
        for first in range(0, length, m):
            group = [float(v) for v in col[first : first + m]]
            rows += [first + i for i in brute_force(group, n)]
        expected_rows.append(rows)
        expected_values.append(col[rows])
    assert np.array_equal(indices, np.array(expected_rows).T % m)
    assert same_bits(values, np.ascontiguousarray(np.array(expected_values).T))
    assert indices.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_mask_agrees_with_topk_without_ties(dtype, n, m):
    rng = np.random.default_rng(m)
    # Distinct magnitudes by construction, exact in float16.
    x = np.stack([rng.permutation(np.arange(1, 65)) for _ in range(20)]).astype(dtype)
    x *= rng.choice([-1, 1], x.shape).astype(dtype)
    groups = torch.from_numpy(x).reshape(20, 64 // m, m)
    top = groups.abs().topk(n, dim=-1).indices
    expected = torch.zeros(groups.shape, dtype=torch.bool).scatter(-1, top, True).reshape(20, 64)
    assert np.array_equal(sore.mask(x, n, m, axis=1), expected.numpy())


@settings(deadline=None)
@given(
    x=hnp.arrays(np.float16, hnp.array_shapes(min_dims=1, max_dims=3, max_side=40)),
    pattern=st.sampled_from(PATTERNS),
    data=st.data(),
)
def test_expand_restores_what_the_mask_keeps(x, pattern, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    values, indices = sore.select(x, *pattern, axis=axis)
    length = x.shape[axis]
    n, m = pattern
    assert values.shape[axis] == n * (length // m) + min(n, length % m)
    dense = sore.expand(values, indices, *pattern, length, axis=axis)
    expected = np.where(sore.mask(x, *pattern, axis=axis), x, np.float16(0))
    assert np.array_equal(dense.view(np.uint16), expected.view(np.uint16))
    # Pruning what is pruned already changes nothing.
    again = sore.expand(*sore.select(dense, *pattern, axis=axis), *pattern, length, axis=axis)
    assert np.array_equal(dense.view(np.uint16), again.view(np.uint16))


def test_ties_keep_the_lowest_index_and_nan_beats_infinity():
    x = np.array([1, -1, 1, -1, np.inf, np.nan, -np.inf, -np.nan, -0.0, 0.0, -0.0, 0.0], np.float16)
    values, indices = sore.select(x, 2, 4)
    assert indices.tolist() == [0, 1, 1, 3, 0, 1]
    assert values.view(np.uint16).tolist() == [0x3C00, 0xBC00, 0x7E00, 0xFE00, 0x8000, 0x0000]


def test_ragged_tail_stores_only_real_elements():
    values, indices = sore.select(np.zeros((9, 1), np.float16), 2, 8)
    assert (values.shape, indices[:, 0].tolist()) == ((3, 1), [0, 1, 0])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_expand_differs_when_an_index_is_off_by_one(row):
    x = np.arange(1, 12, dtype=np.float32)
    x[[0, 3, 8]] = 100, 99, 98
    values, indices = sore.select(x, 1, 4)
    right = sore.expand(values, indices, 1, 4, 11)
    wrong = indices.copy()
    wrong[row] = wrong[row] ^ 1
    assert not np.array_equal(sore.expand(values, wrong, 1, 4, 11), right)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sore.select([1.0], 1, 2), TypeError, "x is a list"),
        (lambda: sore.select(np.ones(4, int), 1, 2), TypeError, "x has dtype int64"),
        (lambda: sore.select(np.ones(4, ">f2"), 1, 2), TypeError, "byte order"),
        (lambda: sore.select(np.ones((4, 0), np.float16), 1, 2), ValueError, "must have an elem"),
        (lambda: sore.mask(np.ones(4, np.float16), 1, 2, axis=1), ValueError, "axis is 1"),
        (lambda: sore.mask(np.ones(4, np.float16), 3, 2), ValueError, "pattern 3:2"),
        (lambda: sore.mask(np.ones(4, np.float16), 0, 4), ValueError, "pattern 0:4"),
        (lambda: sore.mask(np.ones(4, np.float16), 1, 3), ValueError, "pattern 1:3"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("indices", "length", "message"),
    [
        ([0, 4, 0], 9, r"indices\[1\]=4"),
        ([1, 1, 0], 9, r"indices\[1\]=1"),
        ([2, 1, 0], 9, r"indices\[1\]=1"),
        ([0, 1, 1], 5, r"indices\[2\]=1"),
        ([0, 1, 0], 10, "stores 6 elements"),
        ([0, 1], 5, "values is"),
        ([0, 1, 0], 0, "length 0"),
    ],
)
def test_expand_rejects_what_select_cannot_make(indices, length, message):
    values = np.ones(5 if length == 9 else 3, np.float16)
    indices = np.array(indices, np.uint8)
    if length == 9:
        indices = np.concatenate([indices[:2], [0, 1], indices[2:]]).astype(np.uint8)
    with pytest.raises(ValueError, match=message):
        sore.expand(values, indices, 2, 4, length)


def test_expand_rejects_indices_of_another_dtype():
    with pytest.raises(TypeError, match="indices has dtype int64"):
        sore.expand(np.ones(1, np.float16), np.zeros(1, int), 1, 2, 2)
