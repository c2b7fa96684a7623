"""The short ways of an offload to the golden model: the same bits and account as the long ones."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sat
from sat.dataflow.products import StartShape
from sat.devices.operand import RightOperand
from sat.offload import precision
from sat.offload.layout import channels_first, channels_last
from sat.offload.lowering import Geometry, forward_taps, pad
from sat.offload.precision import HEADERS
from sat.offload.rounding import Lost, halves
from sat.offload.workspace import Workspace
from sat.sim.build import compile_library
from sat.sim.golden import stce

SPECIAL = [0.0, -0.0, 6e-8, 1e-9, -3e-5, 70000.0, 65519.9, float("inf"), float("nan")]


def wild(shape, seed):
    """Return float32 of many magnitudes, some of them special."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=made)
    x *= 10.0 ** torch.randint(-8, 6, shape, generator=made)
    flat = x.view(-1)
    for i, value in enumerate(SPECIAL):
        if flat.numel() > 7 * i:
            flat[7 * i] = value
    return x


def same(a, b):
    """Whether two arrays or tensors have the same numbers, NaNs and signs included."""
    a, b = (np.asarray(x).view(f"u{np.asarray(x).itemsize}") for x in (a, b))
    return np.array_equal(a, b)


class Long(sat.devices.golden.GoldenDevice):
    """A golden device that is given float16, as any other."""

    def _matmul(self, *operands):
        return super()._matmul(*operands)


sizes = st.integers(1, 40)
layouts = st.sampled_from(["rows", "columns", "gaps", "expanded"])


def laid_out(x, layout):
    """Return the same numbers, or repeated rows, laid out in another way."""
    if layout == "columns":
        return x.mT.contiguous().mT
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    return x[..., :1, :].expand(x.shape) if layout == "expanded" else x


@given(st.lists(sizes, min_size=4, max_size=4), layouts, layouts, st.sampled_from([0, 1, 2]))
def test_a_product_that_rounds_is_one_of_rounded_operands(size, left, right, starts):
    count, rows, depth, cols = size
    stack = (count,) if count < 4 else ()
    a = laid_out(wild((*stack, rows, depth), rows), left)
    b = laid_out(wild((*stack, depth, cols), cols), right)
    start = [None, torch.randn(cols), torch.randn(*stack, rows, cols)][starts]
    lost, want_lost = (ctypes.c_long * 3)(), Lost()
    device = sat.device("golden")
    got, product, run = device.multiply(a, b, start, lost)
    a16, b16 = (halves(x, want_lost).copy() for x in (a, b))
    first = None if start is None else start.numpy()
    want, want_run = device.matmul_run(a16, b16, first)
    assert same(got, want) and list(lost) == list(want_lost.counts)
    assert (
        product.macs == run.macs
        and product.start is list(StartShape)[starts if rows > 1 else bool(starts)]
    )
    for name in ("macs", "bytes_host", "bytes_kept", "predicted_cycles"):
        assert getattr(run, name) == getattr(want_run, name)


def test_a_compact_operand_and_one_that_stays():
    a, b = torch.randn(5, 64), torch.randn(64, 9)
    device = sat.device("golden")
    w = sat.resident(sat.prune(b.half(), "2:8"))
    for kept in (0, w.nbytes, w.nbytes):
        got, _, run = device.multiply(a, w, None, (ctypes.c_long * 3)())
        assert same(got, device.matmul(a.half(), sat.prune(b.half(), "2:8")))
        assert run.bytes_kept == kept


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_reports_are_those_of_the_long_way(precision):
    def program(device):
        torch.manual_seed(0)
        layer = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 25, 4)
        )
        x, w = torch.randn(2, 3, 5, 5), torch.randn(70, 80) * 1e-6
        with sat.offload(device, precision=precision) as report:
            layer(x).sum().backward()
            made = [torch.randn(3, 70) @ w for _ in range(3)]
        report.seconds = report.device_seconds = 0.0
        found = report.to_json(cycles=True)
        for work in found["work"]:
            work["seconds"] = 0.0
        return found, [p.grad for p in layer.parameters()] + made

    (want_report, want), (got_report, got) = program(Long()), program("golden")
    assert got_report == want_report
    assert all(map(torch.equal, got, want))


doubles = st.sampled_from([torch.float32, torch.float64])


@given(
    st.lists(sizes, min_size=4, max_size=4),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.lists(st.sampled_from(["rows", "columns"]), min_size=2, max_size=2),
    st.lists(doubles, min_size=3, max_size=3),
    st.sampled_from([1, 2]),
)
def test_products_of_precision_fp32_in_one_call(size, starts, bands, layouts, types, threads):
    count, rows, depth, cols = size
    stack = (count,) if count < 4 else ()
    scale = 10.0 ** torch.arange(depth).remainder(9) if bands else torch.ones(depth)
    a, b = torch.randn(*stack, rows, depth) * scale, torch.randn(*stack, depth, cols)
    a[..., 0] = 0 if depth % 3 == 0 else a[..., 0]  # a place of the depth that is left out
    *kinds, wide = types
    a, b = (laid_out(x.to(k), how) for x, k, how in zip((a, b), kinds, layouts, strict=True))
    start = [None, torch.randn(cols), torch.randn(*stack, rows, cols)][starts]
    start = None if start is None else start.to(wide)
    sent = []

    def product(left, right):
        sent.append((*left.shape[-2:], right.shape[-1]))
        return stce.matmul(left, right)

    want = torch.from_numpy(precision.matmul(a.numpy(), b.numpy(), product))
    want = (want if start is None else want + start).to(wide)
    found = precision.whole(a, b, start, wide, stce.kernel(), threads)
    assert found is not None
    got, products = found
    assert torch.equal(got, want) and got.dtype is wide
    assert [one[1:] for one in products] == sent


@pytest.mark.parametrize("flags", [None, ["-O1"]], ids=["native", "plain"])
@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ((13, 700, 70), 0.002),  # few elements in further bands, of a line none or some
        ((70, 300, 130), 0.3),
        ((126, 400, 1), 0.7),  # most of them: multiplied as if dense
        ((40, 4200, 33), 0.01),  # deep, few rows
        ((150, 1500, 20), 0.05),  # deep, more
        ((3, 1, 90), 0.4),
    ],
    ids=str,
)
def test_elements_far_below_others_of_their_line(shape, share, flags, monkeypatch):
    if flags is not None:
        plain = compile_library("precision", [precision.SOURCE], flags, include_dirs=[HEADERS])
        library = precision.load(plain)
        monkeypatch.setattr(precision, "_native", lambda: library)
    rows, depth, cols = shape
    rng = torch.Generator().manual_seed(rows)

    def numbers(*size):
        x = torch.randn(size, generator=rng)
        for low in (1e-6, 1e-12):  # two further bands
            x = torch.where(torch.rand(size, generator=rng) < share, x * low, x)
        return x

    for left, right in (("rows", "columns"), ("columns", "rows")):
        a, b = laid_out(numbers(rows, depth), left), laid_out(numbers(depth, cols), right)
        a[:, : depth // 2] = 0  # places that are left out
        sent = []

        def product(x, y, sent=sent):
            sent.append((*x.shape[-2:], y.shape[-1]))
            return stce.matmul(x, y)

        want = torch.from_numpy(precision.matmul(a.numpy(), b.numpy(), product)).float()
        got, products = precision.whole(a, b, None, torch.float32, stce.kernel())
        assert same(got, want) and [one[1:] for one in products] == sent
        assert len(sent) > 1 or depth == 1


def test_what_one_call_does_not_take():
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    a[0, 0] = float("inf")
    assert precision.whole(a, b, None, torch.float32, stce.kernel()) is None
    zeros = precision.whole(torch.zeros(2, 3), b, None, torch.float32, stce.kernel())
    assert zeros is not None and zeros[1] == [] and not zeros[0].any()


pictures = st.lists(st.integers(1, 40), min_size=3, max_size=4)


@pytest.mark.parametrize("threads", [1, 2])
@given(pictures, st.booleans(), st.booleans())
def test_channels_are_turned_and_rounded_as_by_torch(threads, shape, rounded, outside):
    x, lost, want_lost = wild(shape, len(shape)), Lost(), Lost()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = channels_last(x, lost if rounded else None, Workspace(), "x", outside=outside).clone()
        back = channels_first(
            channels_last(x, None, Workspace(), "x").contiguous(),
            torch.float32,
            torch.contiguous_format,
        )
    finally:
        torch.set_num_threads(before)
    want = torch.from_numpy(halves(x, want_lost)) if rounded else x
    want = want.movedim(1, -1)
    want = want.movedim(0, -2) if outside else want
    assert same(got.nan_to_num(7).contiguous(), want.nan_to_num(7).contiguous())
    assert torch.equal(got.isnan(), want.isnan())
    assert list(lost.counts) == list(want_lost.counts)
    assert same(back, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_picture_is_padded_in_a_workspace_as_without(dtype):
    space = Workspace()
    for sizes, padding in (((5, 7), ((1, 2), (0, 3))), ((3, 2), ((0, 1), (2, 0)))):
        g = Geometry((2, 3), (1, 1), padding, (2, 1))
        x = torch.randn(2, 4, *sizes).to(dtype).movedim(1, -1)
        reads = [[t] for t in forward_taps(g, sizes)]
        got = pad(x, reads, space)
        assert torch.equal(got, pad(x, reads)) and got.shape[1:3] == (
            sizes[0] + sum(padding[0]),
            sizes[1] + sum(padding[1]),
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_result_is_made_in_blocks_with_the_same_bits(threads):
    rng = np.random.default_rng(0)
    a, b = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((2, 150, 20), (2, 20, 1100))
    )
    made = precision.whole(
        torch.from_numpy(a), torch.from_numpy(b), None, torch.float64, stce.kernel(), threads
    )
    assert made is not None and same(made[0], precision.matmul(a, b, stce.matmul))


def test_operands_that_cannot_be_wrong_are_not_copied():
    values = torch.randn(8, 8).half()
    operand = RightOperand.dense(values.numpy())
    assert operand.addresses == (values.data_ptr(), None)
    assert operand.layout == ((8, 8), (8, 1))


@pytest.mark.parametrize("scheme", ["bdwp", "sdgp", "srste"])
@pytest.mark.parametrize("groups", [2, 8])
def test_groups_of_a_sat_layer_are_one_stack(scheme, groups):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    layer = torch.nn.Sequential(plain)
    sat.sparsify_(layer, scheme=scheme, pattern="2:4", filter_fn=lambda *_: True)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    with sat.offload("golden") as report, sat.record_products() as log:
        layer(x).square().sum().backward()
    assert [record.stage for record in log] == ["FF", "BP", "WU"]
    assert [record.count for record in log] == [groups] * 3
    assert all(record.rows * record.cols * record.depth > 0 for record in log)
    assert report.devices["golden"].products == 3 * groups
