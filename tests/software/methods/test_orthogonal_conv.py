"""L_orth: by its definition, laws by matrices, singular values, existence, layers, bad input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

import sat
from sat.methods.orthogonal_conv import (
    OrthConv2d,
    OrthLinear,
    conv_orth_residual,
    conv_singular_values,
    dense_orth,
    l_orth,
    orth_conv_exists,
    orth_regularizer,
    spectral_bound,
)
from sat.methods.orthogonal_conv.demo import Mask, exact_kernel, minimise


def kernel(outputs, inputs, size, *, dim=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(outputs, inputs, *[size] * dim, generator=generator, dtype=dtype)
    return w / math.sqrt(inputs * size**dim)


def by_definition(w, stride, correction=True):
    """L_orth as sums over pairs of kernels and shifts, in numpy: nothing but slices."""
    w = w.numpy() if w.ndim == 4 else w.numpy()[:, :, None, :]
    outputs, inputs, rows, size = w.shape
    total = 0.0
    reach = (size - 1) // stride
    shifts_y = [0] if rows == 1 else range(-reach, reach + 1)
    for dy in shifts_y:
        for dx in range(-reach, reach + 1):
            y, x = dy * stride, dx * stride
            a = w[:, :, max(y, 0) : rows + min(y, 0), max(x, 0) : size + min(x, 0)]
            b = w[:, :, max(-y, 0) : rows + min(-y, 0), max(-x, 0) : size + min(-x, 0)]
            gram = np.einsum("ochw,pchw->op", a, b)
            total += np.square(gram - np.eye(outputs) * (dy == dx == 0)).sum()
    full = inputs * stride ** (1 if rows == 1 else 2)
    return total - max(outputs - full, 0) * correction


def operator(w, stride, n, *, transposed=False):
    """The convolution's matrix, by torch's own layers on every unit vector."""
    dim = w.ndim - 2
    size = w.shape[2]
    if transposed:
        inputs = w.shape[0]
        eye = torch.eye(inputs * n**dim, dtype=w.dtype).reshape(-1, inputs, *[n] * dim)
        made = functional.conv_transpose2d(eye, w, stride=stride)
        side = stride * n
        # Wrap what leaves the picture around the circle.
        out = w.new_zeros(len(eye), w.shape[1], side, side)
        for i in range(made.shape[2]):
            for j in range(made.shape[3]):
                out[:, :, i % side, j % side] += made[:, :, i, j]
        return out.flatten(1).mT
    inputs, side = w.shape[1], stride * n
    eye = torch.eye(inputs * side**dim, dtype=w.dtype).reshape(-1, inputs, *[side] * dim)
    padded = functional.pad(eye, [size // 2] * 2 * dim, mode="circular")
    return {1: functional.conv1d, 2: functional.conv2d}[dim](padded, w, stride=stride).flatten(1).mT


shapes = st.tuples(
    st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 3, 5]), st.integers(1, 4),
    st.sampled_from([1, 2]), st.integers(0, 999),
)  # fmt: skip


# ------------------------------------------------------------------------------------- the loss


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_loss_is_its_definition(shape):
    outputs, inputs, size, stride, dim, seed = shape
    w = kernel(outputs, inputs, size, dim=dim, seed=seed)
    assert float(l_orth(w, stride, dim)) == pytest.approx(by_definition(w, stride), abs=1e-12)
    swapped = l_orth(w.transpose(0, 1), stride, dim, transposed=True)
    assert float(swapped) == pytest.approx(by_definition(w, stride), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_frobenius_law_and_spectral_bound_by_the_matrix(shape):
    outputs, inputs, size, stride, dim, seed = shape
    w = kernel(outputs, inputs, size, dim=dim, seed=seed)
    n = -(-(2 * size - 1) // stride)
    a = operator(w, stride, n)
    small = a if len(a) <= a.shape[1] else a.mT
    off = small @ small.mT - torch.eye(len(small), dtype=a.dtype)
    frobenius, spectral = conv_orth_residual(w, stride, n)
    loss = float(l_orth(w, stride, dim))
    assert float(off.square().sum()) == pytest.approx(n**dim * loss, rel=1e-10, abs=1e-12)
    assert float(frobenius) == pytest.approx(float(off.norm()), rel=1e-10)
    assert float(spectral) == pytest.approx(float(torch.linalg.matrix_norm(off, 2)), rel=1e-9)
    bound = float(spectral_bound(w, stride))
    assert float(spectral) <= bound * (1 + 1e-12)
    if outputs >= stride**dim * inputs and bound < 1:
        x = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(seed), dtype=a.dtype)
        ratio = float((a @ x).norm() / x.norm())
        assert math.sqrt(1 - bound) <= ratio <= math.sqrt(1 + bound)


def test_law_does_not_hold_where_shifts_meet():
    w = kernel(2, 2, 3)
    a = operator(w, 1, 4)
    off = (a @ a.mT - torch.eye(len(a), dtype=a.dtype)).square().sum()
    assert abs(float(off) / (16 * float(l_orth(w))) - 1) > 1e-3
    with pytest.raises(
        ValueError, match=r"n=4 at stride 1: 4 positions must be at least 2k - 1 = 5"
    ):
        conv_orth_residual(w, 1, 4)


def test_shortcuts_are_not_it():
    line = torch.tensor([[[1.0, 0.0, 1.0]]], dtype=torch.float64) / math.sqrt(2)
    assert float(l_orth(line, dim=1)) == pytest.approx(0.5, abs=1e-15)
    near = functional.conv1d(line, line, padding=1).flatten()
    assert near.tolist() == pytest.approx([0, 1, 0], abs=1e-15)  # blind to the shift by 2
    rows = torch.linalg.qr(kernel(8, 4, 3).flatten(1).mT)[0].mT
    assert float(dense_orth(rows)) < 1e-24 and float(l_orth(rows.reshape(8, 4, 3, 3))) > 1
    # More outputs than inputs: without its second term the least value is not 0.
    w = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double())[0]
    assert float(l_orth(w[..., None, None])) == pytest.approx(0, abs=1e-13)
    assert by_definition(w[..., None, None], 1, correction=False) == pytest.approx(2)


def test_dense_matrices_are_kernels_of_one_tap():
    for outputs, inputs in ((3, 5), (5, 3)):
        w = kernel(outputs, inputs, 1)
        assert float(dense_orth(w[..., 0, 0])) == pytest.approx(float(l_orth(w)), rel=1e-12)


@pytest.mark.parametrize("channels", [4, 9])
def test_known_kernels_are_orthogonal(channels):
    w = exact_kernel(channels, np.random.default_rng(1))
    a = operator(w, 1, 5)
    torch.testing.assert_close(a @ a.mT, torch.eye(len(a), dtype=a.dtype), atol=1e-12, rtol=0)
    assert abs(float(l_orth(w))) < 1e-24 and float(spectral_bound(w)) < 1e-10
    assert float(l_orth(1.1 * w)) > 0.01


def test_loss_passes_gradcheck():
    for shape, stride in (((2, 2, 3, 3), 1), ((5, 1, 3, 3), 2)):
        w = kernel(*shape[:3]).requires_grad_()
        assert torch.autograd.gradcheck(lambda w, s=stride: l_orth(w, s), w)
    assert torch.autograd.gradcheck(dense_orth, kernel(3, 2, 1)[..., 0, 0].requires_grad_())


# ------------------------------------------------------------------------------- singular values


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 2))
def test_singular_values_are_the_matrixs(shape, more):
    outputs, inputs, size, stride, dim, seed = shape
    w = kernel(outputs, inputs, size, dim=dim, seed=seed)
    n = -(-size // stride) + more
    got = conv_singular_values(w, stride, n)
    assert got.shape == (n,) * dim + (min(outputs, inputs * stride**dim),)
    assert bool((got[..., :-1] >= got[..., 1:]).all())
    expected = torch.linalg.svdvals(operator(w, stride, n))
    got = got.flatten().sort(descending=True).values
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)


def test_transposed_layers_have_the_singular_values_of_their_weight():
    layer = nn.ConvTranspose2d(3, 2, 3, stride=2).double()
    w = layer.weight.detach()
    expected = torch.linalg.svdvals(operator(w, 2, 3, transposed=True))
    got = conv_singular_values(w, 2, 3).flatten().sort(descending=True).values
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    assert float(l_orth(w.transpose(0, 1), 2, transposed=True)) == float(l_orth(w, 2))


# ------------------------------------------------------------------------------------- existence


@pytest.mark.parametrize(
    "shape,kind,exists,floor",
    [
        ((1, 9, 3, 3), "RO", True, 0), ((1, 4, 1, 2), "RO", False, 3),
        ((1, 11, 3, 4), "RO", False, 2), ((4, 8, 3, 1), "CO", True, 0),
        ((2, 36, 3, 4), "CO", False, 14), ((1, 5, 1, 2), "CO", False, 3),
        ((2, 18, 3, 3), "RO", True, 0), ((2, 19, 3, 3), "CO", True, 0),
    ],
)  # fmt: skip
def test_circular_kernels_exist_or_stop_at_their_floor(shape, kind, exists, floor):
    report = orth_conv_exists(*shape)
    assert (report.kind, report.exists, report.floor) == (kind, exists, floor)
    inputs, outputs, size, stride = shape
    if stride >= size:  # windows do not overlap: a matrix, whose best one is known
        flat = torch.linalg.qr(kernel(outputs, inputs, size, seed=3).flatten(1))[0]
        rank = min(outputs, inputs * size**2)
        best = flat if outputs >= rank and flat.shape[1] == rank else None
        if best is None:
            best = torch.linalg.qr(kernel(outputs, inputs, size).flatten(1).mT)[0].mT
        w = best.reshape(outputs, inputs, size, size)
        assert float(l_orth(w, stride)) == pytest.approx(floor, abs=1e-12)
        w = w + 0.01 * kernel(outputs, inputs, size, seed=5)
        assert float(l_orth(w, stride)) > floor


def test_descent_stops_at_the_floor_or_goes_to_zero():
    stuck = minimise((1, 4, 1, 2), 0, 300)
    assert stuck.last == pytest.approx(3, abs=1e-6) and stuck.losses[0] > 3.01
    free = minimise((4, 8, 3, 2), 0, 300)
    assert free.last < 1e-3 < free.losses[0]


def test_other_paddings():
    assert orth_conv_exists(3, 2, 3, 1, "valid").exists
    for shape in ((2, 3, 3, 1), (1, 20, 3, 2)):
        report = orth_conv_exists(*shape, "valid")
        assert (report.kind, report.exists, report.floor) == ("CO", False, None)
    patches = orth_conv_exists(1, 10, 3, 3, "valid")
    assert patches.kind == "CO" and patches.exists
    # The columns of a convolution by patches are orthonormal, none of those that overlap can be.
    w = torch.linalg.qr(kernel(10, 1, 3).flatten(1))[0].reshape(10, 1, 3, 3)
    eye = torch.eye(81, dtype=w.dtype).reshape(81, 1, 9, 9)
    a = functional.conv2d(eye, w, stride=3).flatten(1).mT
    torch.testing.assert_close(a.mT @ a, torch.eye(81, dtype=w.dtype), atol=1e-12, rtol=0)
    assert orth_conv_exists(1, 99, 3, 5, "valid") == orth_conv_exists(1, 99, 3, 5)
    assert orth_conv_exists(3, 3, 3, 1, "same").exists


# ---------------------------------------------------------------------------------------- layers


def test_layers_start_as_glorots_and_pad_as_asked():
    torch.manual_seed(0)
    layer = OrthConv2d(16, 32, 3, 2)
    limit = math.sqrt(6 / (9 * 48))
    assert float(layer.weight.detach().abs().max()) == pytest.approx(limit, rel=0.01)
    x = torch.randn(2, 16, 8, 8)
    padded = functional.pad(x, [1] * 4, mode="circular")
    assert torch.equal(layer(x), functional.conv2d(padded, layer.weight, layer.bias, 2))
    assert OrthConv2d(2, 1, 3, padding="valid")(x[:, :2]).shape == (2, 1, 6, 6)
    zeros = OrthConv2d(2, 1, 3, padding="same", bias=False)
    expected = functional.conv2d(x[:, :2], zeros.weight, padding=1)
    assert torch.equal(zeros(x[:, :2]), expected)
    assert torch.equal(layer.orth_loss(), l_orth(layer.weight, 2))
    dense = OrthLinear(24, 48)
    assert float(dense.weight.detach().abs().max()) == pytest.approx(math.sqrt(6 / 72), rel=0.01)
    assert torch.equal(dense.orth_loss(), dense_orth(dense.weight))


def test_regulariser_is_the_sum_over_layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        OrthConv2d(1, 8, 3), nn.Conv1d(2, 3, 3, stride=2), nn.ConvTranspose2d(4, 2, 3, stride=2),
        nn.Linear(6, 3), nn.BatchNorm2d(3),
    )  # fmt: skip
    conv, line, back, dense = model[0], model[1], model[2], model[3]
    parts = [
        l_orth(conv.weight), l_orth(line.weight, 2, 1), l_orth(back.weight, 2),
        dense_orth(dense.weight),
    ]  # fmt: skip
    torch.testing.assert_close(orth_regularizer(model, 0.5), 0.5 * sum(parts))
    torch.testing.assert_close(orth_regularizer(model, 1, skip=["3"]), sum(parts[:3]))
    orth_regularizer(model, 1.0).backward()
    assert all(layer.weight.grad is not None for layer in (conv, line, back, dense))


def test_regulariser_sees_masked_kernels():
    torch.manual_seed(0)
    layer = OrthConv2d(8, 4, 3)
    mask = sat.prune(layer.weight.detach(), "2:8", axis=1).to_dense() != 0
    parametrize.register_parametrization(layer, "weight", Mask(mask))
    assert float(mask.double().mean()) == 0.25
    masked = (layer.parametrizations.weight.original * mask).detach()
    assert float(orth_regularizer(layer, 1.0).detach()) == float(l_orth(masked))


def test_dense_products_of_the_loss_stay_dense_beside_sparse_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.CircularPad2d(1), nn.Conv2d(8, 8, 3))
    expected = float(orth_regularizer(model, 1.0).detach())
    sat.sparsify_(model, "bdwp", "2:8")
    with sat.offload("golden", precision="fp32") as report:
        loss = orth_regularizer(model, 1.0)
        model(torch.randn(1, 8, 4, 4))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    sizes = [work.size for work in report]
    assert any("2:8" in size for size in sizes) and any("2:8" not in size for size in sizes)


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda w: l_orth(w[..., :2, :2]), ValueError, "size 2 must be odd"),
        (lambda w: l_orth(w[..., :1]), ValueError, r"must be \(out, in, k, k\)"),
        (lambda w: l_orth(w[..., 0]), ValueError, r"must be \(out, in, k, k\)"),
        (lambda w: l_orth(w, dim=1), ValueError, r"must be \(out, in, k\)"),
        (lambda w: l_orth(w, dim=3), ValueError, "dim=3: must be 1 or 2"),
        (lambda w: l_orth(w[:0]), ValueError, "none of them 0"),
        (lambda w: l_orth(w, stride=0), ValueError, "stride=0: must be an int of at least 1"),
        (lambda w: l_orth(w.int()), TypeError, "dtype torch.int32: must be real"),
        (lambda w: l_orth(w.to(torch.complex64)), TypeError, "complex64: must be real"),
        (lambda w: dense_orth(w), ValueError, r"must be \(out, in\)"),
        (lambda w: dense_orth(w[..., 0, 0].int()), TypeError, "must be real"),
        (lambda w: conv_singular_values(w, 1, 0), ValueError, "n=0: must be"),
        (lambda w: conv_singular_values(w, 1, 2), ValueError, "2 positions must be at least the"),
        (
            lambda w: conv_singular_values(w, 1, 5, padding="zeros"), ValueError,
            "padding='zeros': must be 'circular'",
        ),
        (lambda w: conv_orth_residual(w, 2, 2), ValueError, "4 positions must be at least 2k - 1"),
        (lambda w: orth_conv_exists(1, 1, 2), ValueError, "kernel_size=2: must be odd"),
        (lambda w: orth_conv_exists(1, 1, 0), ValueError, "kernel_size=0: must be"),
        (lambda w: orth_conv_exists(1, 1, 3, 1, "reflect"), ValueError, "padding='reflect'"),
        (lambda w: orth_conv_exists(1, 1, 3, 2, "same"), ValueError, "known for stride 1 alone"),
        (lambda w: OrthConv2d(1, 1, 4), ValueError, "kernel_size=4: must be odd"),
        (
            lambda w: OrthConv2d(2, 36, 3, 4, strict=True), ValueError,
            "S <= k, here 4 <= 3, is needed; the least L_orth is 14",
        ),
        (
            lambda w: OrthConv2d(1, 4, 1, 2, strict=True), ValueError,
            r"out <= k\^2 in, here 4 <= 1, is needed; the least L_orth is 3",
        ),
        (
            lambda w: OrthConv2d(2, 3, 3, padding="valid", strict=True), ValueError,
            "S = k without padding, here 1 = 3, is needed; no L_orth is enough",
        ),
        (lambda w: orth_regularizer(nn.Linear(2, 2), -1.0), ValueError, "lam=-1.0: must be"),
        (lambda w: orth_regularizer(nn.Linear(2, 2), math.nan), ValueError, "lam=nan: must be"),
        (lambda w: orth_regularizer(nn.ReLU(), 1.0), ValueError, "ReLU has no convolution"),
        (
            lambda w: orth_regularizer(nn.Sequential(nn.Linear(2, 2)), 1.0, skip=["1"]), ValueError,
            "skip: '1' is no layer; there are 0",
        ),
        (
            lambda w: orth_regularizer(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), 1.0),
            ValueError, "layer '0' has groups=2",
        ),
        (
            lambda w: orth_regularizer(nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2)), 1.0),
            ValueError, r"dilation=\(2, 2\)",
        ),
        (
            lambda w: orth_regularizer(nn.Sequential(nn.Conv2d(2, 2, 2)), 1.0),
            ValueError, "layer '0': weight has shape .* must be odd.*or skip it",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(kernel(2, 2, 3))


def test_layers_warn_of_hard_and_impossible_architectures():
    with pytest.warns(UserWarning, match="no orthogonal kernel exists: S <= k, here 4 <= 3"):
        OrthConv2d(2, 36, 3, 4)
    with pytest.warns(UserWarning, match="descent often stalls"):
        OrthConv2d(4, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OrthConv2d(4, 5, 3)
        OrthConv2d(2, 18, 3, 3)  # a matrix: not hard
