"""The device interface: results, accounts, and what it says to bad input."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sat
from sat.devices import ComparingDevice, account, available, current_device, make_config
from sat.rtl.config import SatConfig
from sat.sim.golden import sore, stce


@pytest.fixture
def golden():
    with sat.device("golden") as device:
        yield device


def matrices(rows=3, depth=16, cols=5, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rows, depth)).astype(np.float16),
        rng.standard_normal((depth, cols)).astype(np.float16),
        rng.standard_normal((rows, cols)).astype(np.float32),
    )


def bits(x):
    return np.asarray(x).view(np.uint32)


@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 20), st.sampled_from([None, 1, 2]))
def test_dense_product_has_the_bits_of_the_fold(rows, depth, cols, start_axes):
    a, b, start = matrices(rows, depth, cols)
    start = None if start_axes is None else start if start_axes == 2 else start[0]
    with sat.device("golden") as device:
        result = device.matmul(a, b, start=start)
    np.testing.assert_array_equal(bits(result), bits(stce.matmul(a, b, start)))
    assert result.dtype == np.float32 and isinstance(result, np.ndarray)


@given(st.integers(1, 40), st.sampled_from(["1:2", "2:4", "2:8", "3:16", "8:8"]))
def test_pruned_product_equals_the_dense_product_of_its_dense_form(depth, pattern):
    a, b, start = matrices(depth=depth)
    w = sat.prune(b, pattern)
    with sat.device("golden") as device:
        compact = device.matmul(a, w, start=start)
        dense = device.matmul(a, w.to_dense(), start=start)
    np.testing.assert_array_equal(bits(compact), bits(dense))


def test_torch_in_torch_out_and_any_memory_layout(golden):
    a, b, start = (torch.from_numpy(x) for x in matrices(4, 16, 6))
    expected = golden.matmul(a, b, start=start)
    assert isinstance(expected, torch.Tensor) and expected.dtype is torch.float32
    other = golden.matmul(a.t().contiguous().t(), b.t().contiguous().t(), start=start.numpy())
    assert torch.equal(expected, other)
    mixed = golden.matmul(a.numpy()[::-1][::-1], b, start=start)
    assert isinstance(mixed, np.ndarray)
    np.testing.assert_array_equal(expected.numpy(), mixed)
    expected.add_(1)  # the result is the caller's own


def test_dense_nm_tensor_is_a_dense_operand(golden):
    a, b, _ = matrices()
    np.testing.assert_array_equal(golden.matmul(a, sat.prune(b, "dense")), golden.matmul(a, b))


def test_last_run_accounts_for_the_stored_values(golden):
    assert golden.last_run is None
    a, b, _ = matrices(3, 16, 5)
    golden.matmul(a, b)
    assert golden.last_run.macs == 3 * 5 * 16
    golden.matmul(a, sat.prune(b, "2:8"))
    run = golden.last_run
    assert run.macs == 3 * 5 * 4
    assert run.cycles is None and run.utilisation is None and run.bytes_read is None
    assert run.wall_seconds > 0
    assert "macs=60" in repr(run)


def test_prediction_is_computed_once_and_only_when_asked():
    calls = []

    def predict():
        calls.append(1)
        return 42

    run = sat.Run(macs=1, predicted_cycles=predict)
    repr(run)
    assert not calls
    assert (run.predicted_cycles, run.predicted_cycles, len(calls)) == (42, 42, 1)


def test_of_a_bound_only_fewer_cycles_are_mispredicted():
    def mispredicted(cycles, bound):
        return sat.Run(macs=1, cycles=cycles, predicted_cycles=10, bound=bound).mispredicted

    assert [mispredicted(cycles, True) for cycles in (9, 10, 11, None)] == [
        True,
        False,
        False,
        False,
    ]
    assert [mispredicted(cycles, False) for cycles in (9, 10, 11)] == [True, False, True]
    parts = [sat.Run(macs=1, cycles=6, predicted_cycles=5, bound=bound) for bound in (True, False)]
    whole = account.in_turn(parts)
    assert whole.bound and (whole.cycles, whole.predicted_cycles) == (12, 10)


A, B, S = (torch.from_numpy(x) for x in matrices(3, 16, 5))


@pytest.mark.parametrize(
    "a, b, options, kind, message",
    [
        (
            A.float(),
            B,
            {},
            TypeError,
            "a has dtype float32: operands are float16; convert with a.h",
        ),
        (
            A,
            B.double(),
            {},
            TypeError,
            "b has dtype float64: operands are float16; convert with b.",
        ),
        (A.numpy().astype(int), B, {}, TypeError, "convert with a.astype(np.float16)"),
        (A.numpy().astype(">f2"), B, {}, TypeError, "a has dtype >f2"),
        (
            A,
            sat.prune(B.float(), "2:8"),
            {},
            TypeError,
            "b has dtype float32: operands are float16; convert with b.half()",
        ),
        (
            A.tolist(),
            B,
            {},
            TypeError,
            "a is a list: must be a torch.Tensor or numpy.ndarray; conv",
        ),
        (A, None, {}, TypeError, "b is a NoneType: must be a torch.Tensor or numpy.ndarray or NMT"),
        (A[0], B, {}, ValueError, "a has shape (16,): must have two axes of at least 1"),
        (A[:0], B, {}, ValueError, "a has shape (0, 16): must have two axes of at least 1"),
        (A, B[:, :0], {}, ValueError, "b has shape (16, 0)"),
        (A, B[:8], {}, ValueError, "a is (3, 16) and b is (8, 5): a must have as many columns"),
        (A, sat.prune(B[:8], "2:8"), {}, ValueError, "a is (3, 16) and b is (8, 5)"),
        (
            A,
            sat.prune(B.t(), "2:8", axis=1),
            {},
            ValueError,
            "b has shape (5, 16) and groups along axis 1: must have two axes and groups along axis",
        ),
        (A, sat.prune(B[:, 0], "2:8"), {}, ValueError, "b has shape (16,) and groups along axis 0"),
        (A.to("meta"), B, {}, ValueError, "a is on meta: must be in host memory; use a.cpu()"),
        (A, B.to_sparse(), {}, ValueError, "b has layout torch.sparse_coo: must be strided"),
        (
            A.clone().requires_grad_(),
            B,
            {},
            ValueError,
            "a requires grad: a device's product records no gradient; use a.detach()",
        ),
        (A, B, {"start": S.half()}, TypeError, "start has dtype float16: start values are float32"),
        (A, B, {"start": S.t()}, ValueError, "start has shape (5, 3): must be (3, 5) or (5,)"),
        (A, B, {"start": S[:, 0]}, ValueError, "start has shape (3,): must be (3, 5) or (5,)"),
        (A, B, {"start": 0.0}, TypeError, "start is a float: must be a torch.Tensor or numpy.nda"),
        (A, B, {"dataflow": "xs"}, ValueError, "dataflow='xs': must be 'auto', 'os' or 'ws'"),
        (A, B, {"dataflow": None}, ValueError, "dataflow=None: must be"),
    ],
)
def test_bad_operand_names_value_rule_and_fix(golden, a, b, options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        golden.matmul(a, b, **options)
    assert golden.last_run is None


def test_a_tensor_that_requires_grad_is_taken_without_autograd(golden):
    with torch.no_grad():
        assert golden.matmul(A.clone().requires_grad_(), B).shape == (3, 5)


def test_pattern_beyond_the_array_is_refused_by_hardware_only(golden, fake_rtl):
    w = sat.prune(B, "2:16")
    assert golden.matmul(A, w).shape == (3, 5)
    with (
        fake_rtl() as device,
        pytest.raises(ValueError, match=r"b has pattern 2:16: device rtl has M up to 8; make it"),
    ):
        device.matmul(A, w)
    with fake_rtl(max_m=16) as device:
        device.matmul(A, w)


def test_closed_device_raises(golden):
    golden.close()
    golden.close()
    assert golden.closed and "closed" in repr(golden)
    with pytest.raises(sat.DeviceClosedError, match=r"device golden is closed: .* make another"):
        golden.matmul(A, B)
    assert issubclass(sat.DeviceClosedError, sat.DeviceError)
    assert issubclass(sat.DeviceError, sat.SatError)


def test_a_model_with_a_device_is_copied_but_not_pickled(golden):
    assert copy.deepcopy(golden) is golden
    with pytest.raises(TypeError, match="device golden cannot be pickled"):
        pickle.dumps(golden)


@pytest.mark.parametrize(
    "spec, options, kind, message",
    [
        (
            "gold",
            {},
            ValueError,
            "device 'gold': there is no such device; choose 'golden' and 'rtl'",
        ),
        ("", {}, ValueError, "device '': there is no such device"),
        (None, {}, TypeError, "device None is a NoneType: must be text"),
        (
            "uart:/dev/ttyUSB0",
            {},
            sat.DeviceError,
            "the port cannot be opened",
        ),
        ("xdma:99", {}, sat.DeviceError, "xdma99_user: there is no such file"),
        ("golden", {"array": "8"}, ValueError, "array='8': must be ROWSxCOLS, such as 8x8"),
        ("golden", {"array": "0x8"}, ValueError, "rows=0: must be an integer 1 to 64"),
        ("golden", {"array": 8}, TypeError, "array=8: must be text such as '8x8'"),
        (
            "golden",
            {"lanes": 8},
            TypeError,
            "option 'lanes': a device takes config, array and a_wo",
        ),
        ("golden", {"config": 8}, TypeError, "config is a int: must be a SatConfig"),
        ("golden", {"threads": 0}, ValueError, "threads=0: must be an int of at least 1"),
    ],
)
def test_device_names_what_is_wrong(spec, options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        sat.device(spec, **options)


def test_options_make_the_configuration():
    assert make_config() == SatConfig()
    assert make_config(SatConfig(max_m=16), "4x2", b_words=64) == SatConfig(
        max_m=16, b_words=64
    ).with_array("4x2")
    with sat.device("golden", array="4x2") as device:
        assert device.config.array == "4x2" and "4x2" in repr(device)


def test_available_lists_what_device_takes():
    found = {info.spec: info for info in available()}
    assert list(found) == ["golden", "rtl", "uart:PORT", "xdma:N"]
    assert all(info.missing is None for spec, info in found.items() if spec != "xdma:N")
    assert (found["xdma:N"].missing is None) == bool(list(Path("/dev").glob("xdma*_user")))


def test_available_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = {info.spec: info.missing for info in available()}
    assert all("no-such-compiler is missing" in missing[spec] for spec in ("golden", "rtl"))
    assert missing["uart:PORT"] is None


def test_use_device_nests_and_refuses_others(golden, fake_rtl):
    outside = current_device()
    with fake_rtl() as inner, sat.use_device(golden):
        assert current_device() is golden
        with sat.use_device(inner):
            assert current_device() is inner
        assert current_device() is golden
    assert current_device() is outside and outside.name == "golden"
    with pytest.raises(TypeError, match="device is a str: must be a Device"), sat.use_device("rtl"):
        raise AssertionError("use_device took text")


def test_comparison_counts_results_and_cycles(golden, fake_rtl):
    with fake_rtl() as device:
        checked = ComparingDevice(device, golden, dense_twins=True)
        w = sat.prune(B, "2:8")
        result = checked.matmul(A, w, start=S[0])
        checked.matmul(A, B)
        assert torch.equal(result, golden.matmul(A, w, start=S[0]))
    assert (checked.compared, checked.mismatches, checked.mispredicted) == (3 * 15, 0, 0)
    (sparse, twin), (dense, same) = checked.runs
    assert (sparse.cycles, twin.cycles, dense.cycles) == (60, 240, 240) and same is dense
    assert checked.last_run is dense
    with pytest.raises(sat.DeviceClosedError, match="device rtl is closed"):
        checked.matmul(A, B)


def test_comparison_finds_one_wrong_bit_and_one_wrong_cycle(fake_rtl):
    with fake_rtl(wrong_product=1, late=1) as device:
        checked = ComparingDevice(device)
        checked.matmul(A, B)
        assert checked.mismatches == 0 and checked.first is None
        got = checked.matmul(A, B)
    expected = checked.reference.matmul(A, B)
    assert (checked.compared, checked.mismatches, checked.mispredicted) == (30, 1, 2)
    first = checked.first
    assert (first.product, first.row, first.col) == (1, 0, 0)
    assert first.got ^ first.expected == 1
    assert (first.got, first.expected) == (bits(got)[0, 0], bits(expected)[0, 0])
    assert re.fullmatch(
        r"product 1, element \[0, 0\]: got 0x\w{8} \(\S+\), expected 0x\w{8} \(\S+\)", str(first)
    )


def test_comparison_takes_nan_as_nan_but_zero_signs_apart(golden):
    class Other(type(golden)):
        def _matmul(self, *operands):
            result, run = super()._matmul(*operands)
            result.view(np.uint32)[0, 0] = self.change(int(bits(result)[0, 0]))
            return result, run

    a = A.clone()
    a[0, 0] = float("nan")
    other = Other()
    checked = ComparingDevice(other, golden)
    other.change = lambda old: 0xFFC00001
    checked.matmul(a, B)
    assert checked.mismatches == 0
    other.change = lambda old: old ^ 0x80000000
    checked.matmul(torch.zeros_like(A), B)
    assert checked.mismatches == 1


def test_golden_predicts_for_the_product_it_was_given(golden, monkeypatch):
    asked = []
    monkeypatch.setattr(account, "best_cycles", lambda *work: asked.append(work) or 7)
    for start, shape in ((None, "zero"), (S[0], "row"), (S, "matrix")):
        golden.matmul(A, sat.prune(B, "2:8"), start=start, dataflow="os")
        assert golden.last_run.predicted_cycles == 7
        product, config, memory, flow = asked[-1]
        assert (config, memory) == (golden.config, golden.memory_timing)
        assert (product.rows, product.cols, product.depth) == (3, 5, 16)
        assert (product.n, product.m, product.start.value, flow) == (2, 8, shape, "os")


def test_kept_positions_reach_the_device(fake_rtl):
    """A subclass gets the compact form itself, contiguous, and a bias as a view."""
    seen = []

    class Spy(fake_rtl):
        def _matmul(self, *operands):
            seen.append(operands)
            return super()._matmul(*operands)

    with Spy() as device:
        device.matmul(A, sat.prune(B, "2:8"), start=S[0])
    a, b, start, dataflow = seen[0]
    values, indices = b.values, b.indices
    expected = sore.select(B.numpy(), 2, 8)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(indices, expected[1])
    assert (b.pattern, b.depth, dataflow) == (sat.Pattern(2, 8), 16, "auto")
    assert start.shape == (3, 5) and start.strides[0] == 0
    assert a.flags.c_contiguous and values.flags.c_contiguous and indices.flags.c_contiguous
