"""Patterns, pruning and compact tensors, and what they say to bad input."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sat
from sat import DENSE, NMTensor, Pattern, prune

PATTERNS = [Pattern(n, m) for m in (2, 4, 8, 16) for n in range(1, m + 1)]


def test_parse_every_spelling():
    assert Pattern.parse("2:8") == Pattern(2, 8)
    assert Pattern.parse(" 16:16 ") == Pattern(16, 16)
    assert Pattern.parse(Pattern(1, 4)) == Pattern(1, 4)
    for dense in ("dense", "Dense", "1:1", None, DENSE):
        assert Pattern.parse(dense) is DENSE or Pattern.parse(dense) == DENSE
    for pattern in PATTERNS:
        assert Pattern.parse(str(pattern)) == pattern
        assert not pattern.dense
    assert str(DENSE) == "dense" and DENSE.dense


@pytest.mark.parametrize("n, m", [(0, 8), (9, 8), (-1, 2), (2, 3), (1, 32), (2, 1), (0, 1)])
def test_no_pattern_raises(n, m):
    with pytest.raises(ValueError, match=rf"pattern {n}:{m}: N must be from 1 to M .* choose"):
        Pattern(n, m)


@pytest.mark.parametrize("text", ["", "2", "2:", "2:8:1", "a:b", "-2:8", "2.0:8", "2/8"])
def test_text_that_is_no_pattern_raises(text):
    message = re.escape(f"pattern {text!r}: must be N:M or dense; write")
    with pytest.raises(ValueError, match=message):
        Pattern.parse(text)


def test_wrong_types_raise():
    with pytest.raises(TypeError, match=r"pattern 28 is a int: must be text such as '2:8'"):
        Pattern.parse(28)
    with pytest.raises(TypeError, match=r"n=2\.0 is a float: a pattern has two ints"):
        Pattern(2.0, 8)
    with pytest.raises(TypeError, match=r"m=True is a bool"):
        Pattern(1, True)


def test_pattern_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pattern(2, 8).n = 1


@given(st.sampled_from(PATTERNS), st.integers(1, 70))
def test_kept_counts_what_selection_stores(pattern, length):
    x = np.arange(1, length + 1, dtype=np.float32)[:, None]
    assert len(prune(x, pattern).values) == pattern.kept(length)


@given(
    st.sampled_from([DENSE, *PATTERNS]),
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.data(),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_pruned_tensor_keeps_the_largest_of_each_group(pattern, shape, data, dtype):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    seed = data.draw(st.integers(0, 99))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    w = prune(x, pattern, axis)
    assert w.dtype is dtype and w.indices.dtype is torch.uint8
    assert w.shape == x.shape and w.axis == axis % len(shape) and w.ndim == x.ndim
    dense = w.to_dense()
    lanes, kept = x.movedim(axis, -1), dense.movedim(axis, -1)
    for first in range(0, shape[axis], pattern.m):
        group, left = lanes[..., first : first + pattern.m], kept[..., first : first + pattern.m]
        size = min(pattern.n, group.shape[-1])
        expected = group.double().abs().topk(size, dim=-1).values.sort().values
        assert torch.equal(
            left.double().abs().sort().values[..., group.shape[-1] - size :], expected
        )
        assert bool(((left == 0) | (left == group)).all())


def test_numpy_and_torch_give_the_same_torch_tensors():
    x = np.random.default_rng(0).standard_normal((32, 5)).astype(np.float32)
    w, v = prune(x, "2:8"), prune(torch.from_numpy(x), "2:8")
    assert isinstance(w.values, torch.Tensor)
    assert torch.equal(w.values, v.values) and torch.equal(w.indices, v.indices)


def test_result_shares_no_memory_and_no_graph():
    for pattern in ("2:4", "dense"):
        x = torch.ones(8, 2, requires_grad=True)
        w = prune(x, pattern)
        assert not w.values.requires_grad
        dense = w.to_dense()
        with torch.no_grad():
            x.zero_()
            w.values.add_(1)
        assert bool((w.values == 2).all()) and not bool((dense == 2).any())


def test_half_rounds_values_and_keeps_the_selection():
    # In float16 both are 1, and the lower index would win: the selection was made before.
    x = torch.tensor([[1.0], [1.0 + 2.0**-20], [0.0], [0.0]])
    w = prune(x, "1:4").half()
    assert w.dtype is torch.float16
    assert w.values.tolist() == [[1.0]] and w.indices.tolist() == [[1]]


def test_ties_keep_the_lower_index_and_nan_wins():
    x = torch.tensor([1.0, -1.0, 1.0, float("nan")])
    assert prune(x, "2:4").indices.tolist() == [0, 3]


@pytest.mark.parametrize(
    "x, axis, kind, message",
    [
        (
            [1.0],
            0,
            TypeError,
            "x is a list: must be a torch.Tensor or a numpy.ndarray; convert with torch.as_tensor",
        ),
        (torch.ones(4, dtype=torch.int64), 0, TypeError, "x has dtype int64: must be float16"),
        (torch.ones(4).bfloat16(), 0, TypeError, "convert with x.float()"),
        (np.ones(4, np.int8), 0, TypeError, "convert with x.astype(np.float32)"),
        (np.ones(4, ">f4"), 0, TypeError, "of this machine's byte order"),
        (torch.ones(4, device="meta"), 0, ValueError, "x is on meta: must be in host memory"),
        (torch.ones(4, 4).to_sparse(), 0, ValueError, "x has layout torch.sparse_coo"),
        (torch.ones(4), 1, ValueError, "axis=1 of shape (4,): must be from -1 to 0"),
        (torch.ones(4), -2, ValueError, "axis=-2 of shape (4,)"),
        (torch.tensor(1.0), 0, ValueError, "axis=0 of shape ()"),
        (torch.ones(4, 0), 0, ValueError, "shape (4, 0): no axis may be empty"),
        (torch.ones(4), 0.0, TypeError, "axis=0.0 is a float: must be an int"),
    ],
)
def test_bad_input_names_value_rule_and_fix(x, axis, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        prune(x, "2:4", axis)


def corrupted(**changes):
    w = prune(torch.arange(1.0, 17.0).reshape(8, 2), "2:4")
    parts = {name: getattr(w, name) for name in ("values", "indices", "pattern", "axis", "shape")}
    return NMTensor(**(parts | changes))


def test_constructor_takes_what_prune_makes():
    assert corrupted().to_dense().shape == (8, 2)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"values": np.ones((4, 2))}, TypeError, "values is a ndarray: must be a torch.Tensor"),
        ({"values": torch.ones(4, 2).int()}, TypeError, "values has dtype int32"),
        ({"indices": torch.zeros(4, 2)}, TypeError, "indices has dtype float32: must be uint8"),
        ({"shape": (16, 2)}, ValueError, "pattern 2:4 of shape (16, 2) along axis 0 stores (8, 2)"),
        ({"values": torch.ones(3, 2)}, ValueError, "values is (3, 2) and indices (4, 2)"),
        ({"axis": 2}, ValueError, "axis=2 of shape (8, 2)"),
        (
            {"indices": torch.tensor([[2, 2], [4, 3], [2, 2], [3, 3]], dtype=torch.uint8)},
            ValueError,
            "indices[1, 0]=4: indices must lie inside their group of 4",
        ),
        (
            {"indices": torch.tensor([[2, 2], [3, 3], [2, 1], [3, 1]], dtype=torch.uint8)},
            ValueError,
            "indices[3, 1]=1: indices must lie inside their group of 4 (fewer at the end) and rise",
        ),
    ],
)
def test_corrupted_tensor_is_refused(changes, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        corrupted(**changes)


def test_index_beyond_a_short_last_group_is_refused():
    w = prune(torch.arange(1.0, 7.0), "1:4")
    with pytest.raises(ValueError, match=re.escape("indices[1]=2")):
        NMTensor(w.values, torch.tensor([3, 2], dtype=torch.uint8), w.pattern, 0, w.shape)


def test_repr_names_what_matters():
    text = repr(prune(torch.ones(8, 2), "2:4"))
    assert text == "NMTensor(shape=(8, 2), pattern=2:4, axis=0, dtype=float32)"


@pytest.mark.parametrize(
    ("spec", "each", "text"),
    [
        ("2:8", ("2:8", "2:8", "2:8"), "2:8"),
        ("2:8,wu=2:4", ("2:8", "2:8", "2:4"), "2:8,wu=2:4"),
        ("dense, WU=1:2", ("dense", "dense", "1:2"), "dense,wu=1:2"),
        ("2:8,ff=2:4", ("2:4", "2:8", "2:8"), "2:4,bp=2:8,wu=2:8"),
        (None, ("dense",) * 3, "dense"),
        (sat.Pattern(2, 4), ("2:4",) * 3, "2:4"),
    ],
)
def test_patterns_are_a_stages_own_or_alike(spec, each, text):
    patterns = sat.Patterns.parse(spec)
    assert tuple(str(patterns.of(stage)) for stage in ("FF", "BP", "WU")) == each
    assert str(patterns) == text and sat.Patterns.parse(text) == patterns
    assert sat.Patterns.parse(patterns) is patterns
    assert patterns.dense == (each == ("dense",) * 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("2:8,up=2:4", "'up=2:4' is no pattern of a stage; write for instance '2:8,wu=2:4'"),
        ("2:8,wu", "'wu' is no pattern of a stage"),
        ("2:8,wu=", "pattern '2:8,wu=': 'wu=' is no pattern of a stage"),
        ("2:8,wu=2:4,WU=2:8", "names wu twice; a stage has one pattern"),
        ("2:8,wu=9:8", "pattern 9:8: N must be from 1 to M"),
    ],
)
def test_patterns_that_are_none_are_told(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sat.Patterns.parse(spec)
