"""The report of `sat.offload`: at once, complete, and what rounding to float16 lost."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import sat
from sat.devices import GoldenDevice
from sat.devices.account import in_turn
from sat.devices.base import Device
from sat.devices.splitting import in_halves
from sat.offload.rounding import Lost, halves

FLOATS = [torch.float32, torch.float64, torch.bfloat16]


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator)


def wild(*shape, dtype=torch.float32, seed=0, decades=10):
    """Return numbers far beyond both ends of float16's range, zeros and what is not finite."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    sizes = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    x = torch.randn(*shape, dtype=torch.float64, generator=generator) * 10 ** (decades * sizes)
    flat = x.view(-1)
    for place, value in enumerate((0.0, -0.0, float("inf"), float("nan"), -float("inf"))):
        flat[place * 7 % flat.numel()] = value
    return x.to(dtype)


def lost(x):
    """Return (overflowed, vanished, subnormal) as torch rounds."""
    x = torch.view_as_real(x) if x.is_complex() else x
    half = x.half()
    return (
        int((half.isinf() & ~x.isinf()).sum()),
        int(((half == 0) & (x != 0)).sum()),
        int(((half != 0) & (half.double().abs() < 2.0**-14)).sum()),
    )


def counts(found):
    return found.overflowed, found.vanished, found.subnormal


# -------------------------------------------------------------------------------- float16's range


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(1,), (8,), (300,), (7, 9), (3, 5, 4), (64, 33), (0, 3)], ids=str
)
def test_rounding_is_torchs_and_counts_what_it_loses(shape, dtype):
    x = wild(*shape, dtype=dtype) if 0 not in shape else torch.zeros(shape, dtype=dtype)
    views = [x, x[::2], x[None].expand(3, *shape), x.flip(0)]
    views += [x.mT, x.mT[1:], x[..., 1:]] if x.ndim > 1 else []
    for view in views:
        found = Lost()
        half = torch.from_numpy(halves(view, found))
        assert half.shape == view.shape
        want = view.half()
        assert torch.equal(half.view(torch.int16) & 0x7FFF > 0x7C00, want.isnan())
        assert torch.equal(torch.nan_to_num(half, 7.0), torch.nan_to_num(want, 7.0))
        assert counts(found) == lost(view)


EDGES = [65504.0, 65519.99609375, 65520.0, 65536.0, 2.0**-14, 2.0**-14 - 2.0**-25, 2.0**-24]
EDGES += [2.0**-14 - 2.0**-25 - 2.0**-38, 2.0**-25, 2.0**-25 * (1 + 2.0**-23), 2.0**-149, 3.4e38]


@pytest.mark.parametrize("dtype", FLOATS)
def test_edges_of_the_range(dtype):
    for value in (*EDGES, 1e300, 1e-300, 5e-324):
        for sign in (1, -1):
            x = torch.tensor([sign * value], dtype=torch.float64).to(dtype)
            found = Lost()
            half = halves(x.repeat(9), found)
            assert torch.equal(torch.from_numpy(half), x.repeat(9).half())
            assert counts(found) == tuple(9 * count for count in lost(x))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_any_numbers(values):
    x, found = torch.tensor(values), Lost()
    assert torch.equal(torch.from_numpy(halves(x, found)), x.half())
    assert counts(found) == lost(x)


OPERATIONS = {
    "mm": (torch.mm, [(4, 6), (6, 5)]),
    "mv": (torch.mv, [(4, 6), (6,)]),
    "bmm": (torch.bmm, [(3, 4, 6), (3, 6, 5)]),
    "one right operand for a stack": (torch.matmul, [(3, 4, 6), (6, 5)]),
    "convolution": (functional.conv2d, [(2, 4, 5, 5), (6, 2, 3, 3)]),
    "transposed": (functional.conv_transpose1d, [(2, 4, 5), (4, 3, 2)]),
}


@pytest.mark.parametrize(
    "name, dtype",
    [
        *((name, dtype) for name in OPERATIONS for dtype in FLOATS),
        # A complex convolution is three real ones, of parts and their sums.
        *((name, torch.complex64) for name in ("mm", "mv", "bmm")),
    ],
)
def test_operands_that_float16_cannot_hold_are_counted(name, dtype):
    operation, shapes = OPERATIONS[name]
    options = {"groups": 2} if name == "convolution" else {}
    real = torch.float32 if dtype.is_complex else dtype
    tensors = [wild(*shape, dtype=real, seed=i) for i, shape in enumerate(shapes)]
    if dtype.is_complex:
        tensors = [torch.complex(x, x.flip(0)) for x in tensors]
    with sat.offload("golden") as report:
        operation(*tensors, **options)
        operation(*tensors, **options)
    want = tuple(2 * sum(each) for each in zip(*map(lost, tensors), strict=True))
    assert counts(report.lost) == want and all(want)
    assert tuple(report.to_json()["lost"].values()) == want
    (work,) = report
    assert counts(work.lost) == want
    text = f"{want[0]:,} overflowed, {want[1]:,} vanished, {want[2]:,} became subnormal"
    assert f"operands rounded to float16: {text}" in str(report)


def test_counts_are_by_operation_and_only_of_what_is_rounded():
    big, small, fine = torch.full((4, 4), 1e6), torch.full((4, 4), 1e-9), torch.eye(4)
    with sat.offload("golden") as report:
        big @ fine
        torch.bmm(small[None], fine[None])
        torch.addmm(big, fine, fine)  # the addend is not rounded
        fine @ fine
        big.half() @ fine.half()  # infinite before
    found = {(work.op, work.size): counts(work.lost) for work in report}
    assert found[("aten.mm", "4 x 4 x 4")] == (16, 0, 0)
    assert found[("aten.bmm", "4 x 4 x 4")] == (0, 16, 0)
    assert found[("aten.addmm", "4 x 4 x 4")] == (0, 0, 0)
    assert "became" not in str(report) and "; 16 overflowed" in str(report)
    with sat.offload("golden", precision="fp32") as exact:
        big @ small
    assert not exact.lost and "rounded" not in str(exact)
    with sat.offload("golden", min_size=1000) as host:
        big @ fine
    assert not host.lost


# ------------------------------------------------------------------------------------ at once


class Unwilling(GoldenDevice):
    """Counts how often it is asked for cycles."""

    asked = 0

    def predict(self, product, dataflow="auto"):
        Unwilling.asked += 1
        return 1000 + product.rows


@pytest.fixture
def reported(monkeypatch):
    monkeypatch.setattr(Unwilling, "asked", 0)
    device = Unwilling()
    with sat.offload(device) as report:
        for rows in range(1, 9):
            randn(rows, 8) @ randn(8, 8)
    return report


def test_text_and_json_ask_for_no_predictions(reported):
    assert "8 products" in str(reported) and "cycles on request" in str(reported)
    made = json.loads(json.dumps(reported.to_json()))
    assert made["devices"]["golden"]["cycles"] is None
    assert made["devices"]["golden"]["cycles_are"] is None
    assert repr(reported) and reported.coverage == 1.0
    assert reported.devices["golden"].products == 8
    assert Unwilling.asked == 0


def test_counted_cycles_are_always_there(fake_rtl):
    with sat.offload(fake_rtl()) as report:
        randn(4, 8) @ randn(8, 8)
    assert f"{4 * 8 * 8:,} cycles counted" in str(report)
    assert report.to_json()["devices"]["rtl"]["cycles"] == 4 * 8 * 8


def test_cycles_on_request():
    with sat.offload("golden") as report:
        for _ in range(3):
            randn(4, 8) @ randn(8, 8)
    want = 3 * GoldenDevice().predict(sat.dataflow.products.Product(4, 8, 8))
    assert report.cycles == want
    assert f"{want:,} cycles predicted" in report.table(cycles=True)
    part = report.to_json(cycles=True)["devices"]["golden"]
    assert (part["cycles"], part["cycles_are"]) == (want, "predicted")


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("way", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_reports_can_be_copied_and_sent(way, trace, tmp_path):
    with sat.offload("golden", trace=trace) as report:
        wild(4, 8) @ wild(8, 8)
        torch.linalg.cholesky(torch.eye(4))
        sat.sparsify_(layer := torch.nn.Linear(8, 8))
        layer(randn(2, 8)).sum().backward()
    made = way(report)
    assert made.to_json(cycles=True) == report.to_json(cycles=True)
    assert made.cycles == report.cycles and str(made) == str(report)
    if trace:
        for name, one in (("a", made), ("b", report)):
            one.to_perfetto(tmp_path / name)
        assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


# ------------------------------------------------------------------------------------- float64


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_float64_may_stay_on_the_host(dtype, precision):
    def program(a, b, x, w):
        y = torch.addmm(b, a, a.mT) @ a
        return torch.cat([y.flatten(), functional.conv1d(x, w).flatten()])

    shapes = ((4, 6), (4, 4), (1, 2, 8), (3, 2, 3))
    leaves = [randn(*shape).to(dtype).requires_grad_() for shape in shapes]
    before = torch.backends.mkldnn.set_flags(False)  # as inside
    want = program(*leaves)
    grads = torch.autograd.grad(want.abs().sum(), leaves)
    torch.backends.mkldnn.set_flags(before[0])
    with sat.offload("golden", precision=precision, float64="host") as report:
        got = program(*leaves)
        ours = torch.autograd.grad(got.abs().sum(), leaves)
        single = randn(4, 6) @ randn(6, 4)
    assert torch.equal(got, want) and all(map(torch.equal, ours, grads))
    assert single.dtype is torch.float32
    reasons = report.host_reasons()
    assert set(reasons) == {"float64, left on the host as asked for"}
    assert report.calls == 1 and report.flops_offloaded == 2 * 4 * 6 * 4
    assert sum(flops for _, flops in reasons.values()) == report.flops - 2 * 4 * 6 * 4


@pytest.mark.parametrize("value", ["cpu", "fp64", None, True, 64, ["host"]])
def test_other_places_for_float64_are_refused(value):
    with pytest.raises(ValueError, match=r"float64=.*: must be 'device' or 'host'; choose one"):
        sat.offload("golden", float64=value)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_layers_operands_are_counted_where_they_are_rounded(kind):
    layer = torch.nn.Linear(8, 8) if kind == "linear" else torch.nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight.view(-1)[:5] = 1e-9
    model = torch.nn.Sequential(layer)
    sat.sparsify_(model, pattern="2:4")
    x = torch.ones(3, 8) if kind == "linear" else torch.ones(1, 8, 3, 1)
    x.view(-1)[:7] = 1e6
    with sat.offload("golden") as report:
        y = model(x.requires_grad_())
        forward = counts(report.lost)
        y.backward(torch.full_like(y, 1e-10))
    assert forward == (7, 5, 0)
    found = {work.op: counts(work.lost) for work in report}
    assert found["0 FF"] == (7, 5, 0)
    # The gradient, 24 numbers, and the weight's other copy; the activations once more.
    assert counts(report.lost) == (7 + 7, 5 + 24 + 5, 0)
    with sat.offload("golden") as later:
        model(torch.ones_like(x))
    assert not later.lost  # the copy of the weight is still good


class InHalves(Device):
    """Computes products in two parts, one after the other, as boards do what they cannot hold."""

    name = "halves"

    def __init__(self, inner, axis):
        super().__init__(inner.config)
        self.inner, self.axis = inner, axis

    def predict(self, product, dataflow="auto"):
        return self.inner.predict(product, dataflow)

    def _matmul(self, a, b, start, dataflow):
        runs = []

        def compute(*operands):
            made, run = self.inner.compute(*operands, dataflow)
            runs.append(run)
            return made

        return in_halves(a, b, start, self.axis, 8, compute), in_turn(runs)


@pytest.mark.parametrize("axis", ["rows", "cols", "depth"])
def test_a_product_in_parts_is_one_product(axis):
    a, b = randn(16, 16), randn(16, 16, seed=1)
    with sat.device("golden") as golden:
        whole = golden.matmul(a.half(), b.half())
        with sat.offload(InHalves(golden, axis)) as report:
            assert torch.equal(a @ b, whole)
    (work,) = report
    done = work.devices["halves"]
    assert (done.products, done.macs, report.coverage) == (1, 16**3, 1.0)
