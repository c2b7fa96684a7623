"""Stacks of products: one call of a device, with the bits of one call each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sat
from sat.dataflow.products import Product, StartShape
from sat.devices import ComparingDevice, FirstDevice, GoldenDevice, PoolDevice


def stack(count, rows, depth, cols, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((count, rows, depth)).astype(np.float16),
        rng.standard_normal((count, depth, cols)).astype(np.float16),
        rng.standard_normal((count, rows, cols)).astype(np.float32),
    )


def bits(x):
    return np.asarray(x).view(np.uint32)


def one_by_one(device, a, b, start):
    """Return the stack's products by a call each; b's groups lie along its depth."""
    made = []
    for i in range(len(a)):
        if isinstance(b, sat.NMTensor):
            right = sat.NMTensor(b.values[i], b.indices[i], b.pattern, 0, b.shape[1:])
        else:
            right = b[i]
        first = start
        if start is not None and start.ndim == 3:
            first = start[i] if start.shape[1] == len(a[i]) else start[i, 0]
        made.append(device.matmul(a[i], right, first))
    return np.stack([bits(x) for x in made])


@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from([None, "2:8", "1:2"]),
    st.sampled_from(["none", "one row", "a row each", "full"]),
)
def test_a_stack_has_the_bits_of_its_products(count, rows, depth, cols, pattern, start):
    a, b, s = stack(count, rows, depth, cols)
    first = {"none": None, "one row": s[0, 0], "a row each": s[:, :1], "full": s}[start]
    right = b
    if pattern is not None:
        right = sat.prune(torch.from_numpy(b), pattern, axis=1)
    with sat.device("golden") as device:
        got = device.matmul(a, right, first)
        run = device.last_run
        want = one_by_one(device, a, right, first)
    assert got.shape == (count, rows, cols) and type(got) is np.ndarray
    np.testing.assert_array_equal(bits(got), want)
    kept = depth if pattern is None else right.values.shape[1]
    assert run.macs == count * rows * kept * cols


def test_tensors_come_back_as_tensors_and_a_stack_may_be_resident():
    a, b, _ = stack(5, 3, 16, 4)
    weight = sat.resident(sat.prune(torch.from_numpy(b), "2:8", axis=1))
    with sat.device("golden") as device:
        first = device.matmul(torch.from_numpy(a), weight)
        assert device.last_run.bytes_kept == 0
        again = device.matmul(torch.from_numpy(a), weight)
        assert device.last_run.bytes_kept == weight.nbytes
    assert isinstance(first, torch.Tensor) and torch.equal(first, again)


@pytest.mark.parametrize(
    "a, b, start, message",
    [
        ((3, 4, 8), (2, 8, 5), None, r"a is \(3, 4, 8\) and b is \(2, 8, 5\)"),
        ((3, 4, 8), (8, 5), None, r"a is \(3, 4, 8\) and b is \(8, 5\)"),
        ((4, 8), (1, 8, 5), None, r"a is \(4, 8\) and b is \(1, 8, 5\)"),
        ((3, 4, 8), (3, 8, 5), (4, 5), r"start has shape \(4, 5\): must be \(3, 4, 5\) or"),
        ((2, 3, 4, 8), (3, 8, 5), None, r"a has shape \(2, 3, 4, 8\): must have two axes"),
        ((0, 4, 8), (0, 8, 5), None, r"a has shape \(0, 4, 8\)"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(a, b, start, message):
    given_start = None if start is None else torch.zeros(start)
    with sat.device("golden") as device, pytest.raises(ValueError, match=message):
        device.matmul(torch.zeros(a).half(), torch.zeros(b).half(), given_start)


def test_a_pool_shares_a_stack_by_products_or_by_rows():
    a, b, s = stack(5, 20, 16, 4)
    want = bits(GoldenDevice().matmul(a, b, s))
    with PoolDevice([GoldenDevice() for _ in range(2)]) as pool:
        np.testing.assert_array_equal(bits(pool.matmul(a, b, s)), want)
        slower = GoldenDevice().predict(Product(20, 4, 16, count=3))
        assert pool.predict(Product(20, 4, 16, count=5)) == slower
        kept = sat.resident(b)
        for _ in range(2):
            np.testing.assert_array_equal(bits(pool.matmul(a, kept, s)), want)
        assert pool.last_run.bytes_kept == 2 * kept.nbytes
    with PoolDevice([GoldenDevice() for _ in range(3)]) as pool:
        np.testing.assert_array_equal(bits(pool.matmul(a[:2], b[:2], s[:2])), want[:2])


def test_the_first_device_takes_its_part_of_a_stack():
    a, b, s = stack(6, 3, 8, 4)
    want = bits(GoldenDevice().matmul(a, b, s))
    first, then = GoldenDevice(), GoldenDevice()
    first.name, then.name = "one", "other"
    device = FirstDevice(first, then, 8)
    np.testing.assert_array_equal(bits(device.matmul(a, b, s)), want)
    assert device.left == 2
    np.testing.assert_array_equal(bits(device.matmul(a, b, s)), want)
    assert [(run.device, run.macs // (3 * 8 * 4)) for run in device.last_run.parts] == [
        ("one", 2),
        ("other", 4),
    ]
    with sat.offload(FirstDevice(first, then, 2)) as report:
        torch.bmm(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert {name: part.products for name, part in report.devices.items()} == {"one": 2, "other": 4}
    assert [work.calls for work in report] == [1]


def test_a_comparison_names_the_product_of_a_stack():
    class Wrong(GoldenDevice):
        def _matmul(self, *operands):
            result, run = super()._matmul(*operands)
            result[..., 1, 2] += result.ndim == 3
            return result, run

    a, b, _ = stack(4, 3, 8, 5)
    device = ComparingDevice(Wrong())
    device.matmul(a[0], b[0])
    device.matmul(a, b)
    assert (device.compared, device.mismatches) == (5 * 15, 4)
    assert (device.first.product, device.first.row, device.first.col) == (1, 1, 2)


def test_an_offloaded_stack_is_one_call_with_one_line():
    a, b = torch.randn(7, 6, 5), torch.randn(7, 5, 4)
    calls = []

    class Counting(GoldenDevice):
        def _matmul(self, a, *others):
            calls.append(a.shape)
            return super()._matmul(a, *others)

    depthwise = torch.nn.Conv2d(6, 6, 3, groups=6)
    with sat.offload(Counting()) as report:
        torch.bmm(a, b)
        torch.einsum("bij,bjk->bik", a, b)
        torch.nn.functional.scaled_dot_product_attention(a[None], a[None], a[None])
        depthwise(torch.randn(2, 6, 5, 5)).sum().backward()
    assert [shape[0] for shape in calls] == [7, 7, 7, 7, 6, 6]
    sizes = {(work.op, work.size): work.calls for work in report}
    assert sizes["aten.bmm", "7 * 6 x 5 x 4"] == 2
    assert report.devices["golden"].products == 4 * 7 + 2 * 6
    with sat.offload(Counting(), precision="fp32"):
        calls.clear()
        torch.bmm(a.half().float(), b.half().float())
    assert calls == [(7, 6, 5)]


@pytest.mark.xdist_group("4x4")
def test_a_stack_on_the_rtl_is_one_program_with_the_predicted_cycles():
    with sat.device("rtl", array="4x4") as rtl, sat.device("golden", array="4x4") as golden:
        for start in (None, "row", "full"):
            for pattern in (None, "2:8"):
                a, b, s = stack(6, 5, 24, 7)
                right = sat.prune(torch.from_numpy(b), pattern, axis=1) if pattern else b
                first = {None: None, "row": s[:, :1], "full": s}[start]
                got = rtl.matmul(a, right, first)
                np.testing.assert_array_equal(bits(got), bits(golden.matmul(a, right, first)))
                run, n, m = rtl.last_run, *((2, 8) if pattern else (1, 1))
                shape = {None: StartShape.ZERO, "row": StartShape.ROW, "full": StartShape.MATRIX}
                product = Product(5, 7, 24, n, m, shape[start], 6)
                assert run.cycles == run.predicted_cycles == golden.predict(product)
                one = Product(5, 7, 24, n, m, shape[start])
                assert run.cycles < 6 * golden.predict(one)
        weight = sat.resident(b)
        for kept in (0, weight.nbytes):
            np.testing.assert_array_equal(bits(rtl.matmul(a, weight)), bits(golden.matmul(a, b)))
            assert rtl.last_run.bytes_kept == kept
