"""`sat.offload` as a block: its report, its options, its errors, its devices."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import sat
from sat.devices import FirstDevice, GoldenDevice
from sat.offload.handlers import HANDLED
from sat.offload.host_work import HOST
from sat.offload.report import OffloadReport

sys.path.insert(0, str(Path(__file__).parent))
from offload_folds import A, B, C, fold, randn, same


def small_step(report_options=None, device="golden", **options):
    w = randn(8, 8).requires_grad_()
    with sat.offload(device, **options) as report:
        torch.relu(randn(4, 8) @ w).sum().backward()
    return report


def test_report_counts_what_was_done(tmp_path):
    report = small_step(trace=True)
    assert isinstance(report, OffloadReport)
    assert (report.calls, report.flops, report.flops_offloaded) == (2, 1024, 1024)
    part = report.devices["golden"]
    assert (part.products, part.macs, part.counted) == (2, 512, None)
    device = GoldenDevice()
    from sat.dataflow.products import Product

    want = device.predict(Product(4, 8, 8)) + device.predict(Product(8, 8, 4))
    assert report.cycles == part.cycles == want
    # Two operands of float16, a result of float32 each.
    assert part.bytes_host == (4 * 8 + 64) * 2 + 32 * 4 + (8 * 4 + 32) * 2 + 64 * 4
    made = json.loads(json.dumps(report.to_json(cycles=True)))
    assert made["coverage"] == 1.0 and made["devices"]["golden"]["cycles"] == want
    assert made["devices"]["golden"]["simulated_seconds"] == want / 100e6
    assert "100.0% of 1,024 matrix FLOPs" in str(report)
    report.to_perfetto(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = [event for event in trace if event["ph"] == "X"]
    assert [event["name"] for event in slices] == ["aten.mm", "aten.mm"]
    assert sum(event["dur"] for event in slices) == pytest.approx(want / 100e6 * 1e6)
    assert slices[1]["ts"] == pytest.approx(slices[0]["dur"])
    with pytest.raises(ValueError, match="trace=True"):
        small_step().to_perfetto(tmp_path / "none.json")


def test_small_products_and_other_types_stay_and_say_why():
    with sat.offload("golden", min_size=100) as report:
        randn(4, 4) @ randn(4, 4)
        randn(*A) @ randn(*B)
        torch.ones(3, 3, dtype=torch.int32) @ torch.ones(3, 3, dtype=torch.int32)
        (randn(4, 4).to_sparse() @ randn(4, 4)).sum()
        torch.linalg.cholesky(torch.eye(6))
        torch.linalg.inv(torch.eye(6))
    reasons = report.host_reasons()
    assert reasons["below min_size=100"] == (1, 128)
    assert reasons["dtype int32"] == (1, 54)
    assert reasons["a factorisation, not a product"] == (2, 72 + 432)
    assert report.flops_offloaded == 2 * 6 * 13 * 5
    assert 0 < report.coverage < 1
    assert report.coverage == report.flops_offloaded / report.flops


def test_a_budget_stops_before_the_product_that_breaks_it():
    product_cycles = small_step().cycles
    assert product_cycles is not None
    assert small_step(max_cycles=product_cycles).calls == 2
    with pytest.raises(sat.CycleBudgetError, match=r"max_cycles=.*raise it"):
        small_step(max_cycles=product_cycles - 1)
    with sat.device("golden") as device:
        with pytest.raises(sat.CycleBudgetError), sat.offload(device, max_cycles=1):
            randn(*A) @ randn(*B)
        with sat.offload(device):
            same(randn(*A) @ randn(*B), fold(randn(*A), randn(*B)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_operands_are_pruned_on_request(side):
    a, b, s = randn(6, 16), randn(16, 5), randn(6, 5)
    with sat.offload("golden", **{f"prune_{side}": "2:8"}) as report:
        got = torch.addmm(s, a, b)
    a16, b16 = a.half(), b.half()
    if side == "left":
        a16 = sat.prune(a16, "2:8", axis=1).to_dense()
    else:
        b16 = sat.prune(b16, "2:8", axis=0).to_dense()
    same(got, fold(a16, b16, s))
    assert report.devices["golden"].macs == 6 * 4 * 5
    with sat.offload("golden", prune_left="2:8", prune_right="2:8"):
        both = torch.addmm(s, a, b)
    want = fold(
        sat.prune(a.half(), "2:8", axis=1).to_dense(),
        sat.prune(b.half(), "2:8", axis=0).to_dense(),
        s,
    )
    same(both, want)


def test_everything_is_as_before_after_the_block():
    flags = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="boom"), sat.offload("golden"):
        raise RuntimeError("boom")
    assert flags == (torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled())
    a, b = randn(*A), randn(*B)
    assert torch.equal(a @ b, torch.mm(a, b))


def test_nested_blocks_send_work_to_the_inner_one():
    with sat.offload("golden") as outer:
        randn(*A) @ randn(*B)
        with sat.offload("golden") as inner:
            randn(*A) @ randn(*B)
    assert (outer.calls, inner.calls) == (1, 1)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"precision": "fp8"}, ValueError, "precision='fp8': must be"),
        ({"min_size": -1}, ValueError, "min_size=-1: must be an int of at least 0; give one"),
        ({"max_cycles": 0}, ValueError, "max_cycles=0: must be an int of at least 1; give one"),
        ({"clock_hz": 0}, ValueError, "clock_hz=0: must be a positive number of hertz; give one"),
        ({"clock_hz": float("nan")}, ValueError, "clock_hz=nan"),
        ({"clock_hz": True}, ValueError, "clock_hz=True"),
        ({"trace": "yes"}, TypeError, "trace='yes': must be a bool; give True"),
        ({"device": "tpu"}, ValueError, "there is no such device"),
        ({"device": "golden*0"}, ValueError, "name\\*count"),
        ({"device": 3}, TypeError, "must be text"),
        ({"prune_left": "3:5"}, ValueError, "3:5"),
        ({"prune_right": "2:8", "precision": "fp32"}, ValueError, "only with precision='fp16'"),
        ({"colour": "red"}, TypeError, "option 'colour'"),
    ],
)
def test_bad_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        sat.offload(**arguments)


def test_errors_of_operands_are_torchs_own_and_spare_the_device():
    with sat.offload("golden") as report:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            randn(*A) @ randn(6, 5)
        with pytest.raises(RuntimeError):
            torch.mm(randn(*A), randn(*B).double())
        with pytest.raises(RuntimeError):
            functional.conv2d(randn(1, 3, 4, 4), randn(2, 4, 3, 3))
        same(randn(*A) @ randn(*B), fold(randn(*A), randn(*B)))
    assert report.calls == 1


def test_a_closed_device_says_so():
    device = sat.device("golden")
    device.close()
    with pytest.raises(sat.DeviceClosedError, match="is closed"), sat.offload(device):
        randn(*A) @ randn(*B)


def test_names_in_the_tables_are_operations_of_torch():
    for name in (*HANDLED, *HOST):
        assert hasattr(torch.ops.aten, name), name
    assert not HANDLED & set(HOST)


# ----------------------------------------------------------------------------- several devices


def test_a_pool_has_the_bits_of_one_device():
    a, b, s = randn(37, 24), randn(24, 11), randn(37, 11)
    with sat.offload("golden*3") as report:
        got = torch.addmm(s, a, b)
        conv = functional.conv2d(randn(1, 3, 6, 6), randn(4, 3, 3, 3))
    same(got, fold(a, b, s))
    with sat.offload("golden"):
        same(conv, functional.conv2d(randn(1, 3, 6, 6), randn(4, 3, 3, 3)))
    assert report.devices["golden,golden,golden"].macs == 37 * 24 * 11 + 16 * 27 * 4
    with pytest.raises(ValueError, match="one configuration"):
        sat.devices.PoolDevice([GoldenDevice(), GoldenDevice(array="4x4")])


@pytest.mark.xdist_group("4x4")
def test_rtl_has_golden_bits_on_every_kind_of_operation():
    tensors = [randn(*A), randn(*B), randn(3, *A), randn(3, *B), randn(*C)]

    def program():
        a, b, aa, bb, s = (t.clone().requires_grad_() for t in tensors)
        found = [
            a @ b,
            aa @ bb,
            torch.addmm(s, a, b),
            torch.mv(a, b[:, 0]),
            torch.dot(a[0], b[:, 1]),
        ]
        x, w = randn(2, 3, 5, 4).requires_grad_(), randn(4, 3, 3, 3).requires_grad_()
        found.append(functional.conv2d(x, w, padding=1, stride=2))
        found.append(functional.conv_transpose2d(randn(1, 4, 3, 3), w, stride=2))
        found.append(functional.conv1d(randn(1, 2, 7), randn(3, 2, 3)))
        found.append(functional.conv3d(randn(1, 2, 3, 3, 3), randn(2, 2, 2, 2, 2)))
        found.append(torch.vdot(a[0], b[:, 2]))
        found.append(torch.addmv(s[:, 0], a, b[:, 0]))
        found.append(torch.baddbmm(s.expand(3, 6, 5), aa, bb))
        found.append(torch.addbmm(s, aa, bb))
        found.append(torch.einsum("ij,jk->ik", a.to(torch.complex64), b.to(torch.complex64)))
        found += [torch.mm(a.to(t), b.to(t)).float() for t in (torch.bfloat16, torch.float64)]
        found.append(functional.conv2d(x[:, :2], w[:, :1], padding=1, dilation=2, groups=2))
        for axes, conv in ((1, functional.conv_transpose1d), (3, functional.conv_transpose3d)):
            sides = (2,) * axes
            found.append(conv(randn(1, 2, *sides), randn(2, 1, *sides), stride=2, groups=2))
        picture, lanes = (randn(*s, dtype=torch.complex64) for s in ((1, 2, 5), (2, 2, 3)))
        found.append(functional.conv1d(picture, lanes))
        found.append(functional.bilinear(a, a, randn(2, 13, 13)))
        found.append(torch.einsum("ab,bc,dc->ad", a, b, s))
        found.append(torch.linalg.multi_dot([a, b, s.T]))
        found.append(torch.linalg.matrix_power(a @ a.T, 3))
        found.append(torch.cdist(randn(30, 2), randn(28, 2)))
        q = randn(1, 2, 5, 4).requires_grad_()
        found.append(functional.scaled_dot_product_attention(q, q, q))
        torch.stack([f.abs().sum() for f in found]).sum().backward()
        return found + [t.grad for t in (a, b, aa, bb, s, x, w, q)]

    for precision in ("fp16", "fp32"):
        with sat.offload("golden", precision=precision, array="4x4") as golden:
            want = program()
        with sat.offload("rtl", precision=precision, array="4x4") as rtl:
            got = program()
        for ours, theirs in zip(got, want, strict=True):
            same(ours.detach(), theirs.detach())
        assert rtl.coverage == golden.coverage == 1.0
        counted, predicted = rtl.devices["rtl"], golden.devices["golden"]
        assert counted.counted == predicted.cycles
        assert counted.bytes_read > 0 and counted.bytes_written > 0


@pytest.mark.xdist_group("4x4")
def test_first_products_on_rtl_the_rest_on_golden():
    rtl, golden = (sat.device(name, array="4x4") for name in ("rtl", "golden"))
    with rtl, golden, sat.offload(FirstDevice(rtl, golden, 2)) as report:
        for _ in range(5):
            got = randn(*A) @ randn(*B)
            same(got, fold(randn(*A), randn(*B)))
    assert {name: part.products for name, part in report.devices.items()} == {"rtl": 2, "golden": 3}
    assert report.devices["rtl"].counted is not None
    with pytest.raises(ValueError, match="count=0"):
        FirstDevice(rtl, golden, 0)


@pytest.mark.xdist_group("4x4")
def test_two_simulated_devices_share_a_product():
    a, b = randn(21, 16), randn(16, 9)
    with sat.offload("rtl*2", array="4x4") as report:
        same(a @ b, fold(a, b))
    part = report.devices["rtl,rtl"]
    device = GoldenDevice(array="4x4")
    from sat.dataflow.products import Product

    shares = [device.predict(Product(rows, 9, 16)) for rows in (12, 9)]
    assert part.counted == max(shares)
