"""SAT layers: their bits, their gradients, what is pruned along which axis, and reversal."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sat
from sat import Prune, Scheme
from sat.layers.plan import loss_scale
from sat.sim.golden import sore, stce


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(x):
    return np.ascontiguousarray(x.detach().numpy() if isinstance(x, torch.Tensor) else x).view(
        np.uint32
    )


def half(x):
    return np.ascontiguousarray(x.numpy() if isinstance(x, torch.Tensor) else x).astype(np.float16)


def stored(x):
    """Return what the device stores of float32 sums: float16, as float32."""
    return np.asarray(x).astype(np.float16).astype(np.float32)


def masked(x, n, m, axis):
    """Return the float array with all but the n largest of each m, as float16, set to zero."""
    array = x.detach().numpy()
    return torch.from_numpy(np.where(sore.mask(half(x.detach()), n, m, axis), array, 0)).to(x.dtype)


def compact(x, n, m):
    """Return the right operand (depth, cols): rounded, then selected."""
    values, indices = sore.select(half(x.detach()), n, m, 0)
    return stce.NMOperand(values, indices, (n, m), len(x))


def linear(ins=24, outs=16, bias=True, scheme="bdwp", pattern="2:8", **options):
    torch.manual_seed(0)
    layer = nn.Linear(ins, outs, bias)
    sat.sparsify_(layer, scheme, pattern, **options)
    return layer


def step(layer, x, dy):
    """Return output and gradient of the input of one pass; parameters hold theirs."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad


# --- linear layers: exact bits by the explicit formulas -------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_linear_bdwp_is_three_products_with_defined_bits(bias):
    layer, x, dy = linear(bias=bias), randn(5, 24), randn(5, 16, seed=1)
    y, dx = step(layer, x, dy)
    w = layer.weight.detach()
    start = layer.bias.detach().numpy() if bias else None
    np.testing.assert_array_equal(
        bits(y), bits(stored(stce.matmul(half(x), compact(w.t(), 2, 8), start=start)))
    )
    np.testing.assert_array_equal(bits(dx), bits(stored(stce.matmul(half(dy), compact(w, 2, 8)))))
    np.testing.assert_array_equal(bits(layer.weight.grad), bits(stce.matmul(half(dy.t()), half(x))))
    if bias:
        assert torch.equal(layer.bias.grad, dy.sum(0))


def test_linear_dense_srste_sdgp_sdwp_bits():
    x, dy = randn(5, 24), randn(5, 16, seed=1)
    w = linear().weight.detach()
    w_f = masked(w, 2, 8, 1)
    forward = {
        "dense": stce.matmul(half(x), half(w.t())),
        "sparse": stce.matmul(half(x), compact(w.t(), 2, 8)),
    }
    backward = {
        "dense": stce.matmul(half(dy), half(w)),
        "srste": stce.matmul(half(dy), half(w_f)),
        "sdwp": stce.matmul(half(dy), compact(w, 2, 8)),
        "sdgp": stce.matmul(half(w.t()), compact(dy.t(), 2, 8)).T,
    }
    update = stce.matmul(half(dy.t()), half(x))
    for scheme in ("dense", "srste", "sdgp", "sdwp"):
        layer = linear(bias=False, scheme=scheme)
        y, dx = step(layer, x, dy)
        np.testing.assert_array_equal(
            bits(y), bits(stored(forward["sparse" if scheme == "srste" else "dense"])), scheme
        )
        np.testing.assert_array_equal(bits(dx), bits(stored(backward[scheme])), scheme)
        expected = update
        if scheme == "srste":
            expected = torch.from_numpy(update) + 2e-4 * (w - w_f)
            assert not torch.equal(expected, torch.from_numpy(update))
        np.testing.assert_array_equal(bits(layer.weight.grad), bits(expected), scheme)


def test_selection_is_made_after_rounding():
    layer = linear(2, 1, bias=False, pattern="1:2", filter_fn=lambda name, module: True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0 + 2.0**-20]]))
    y, _ = step(layer, torch.tensor([[3.0, 5.0]]), torch.ones(1, 1))
    assert y.item() == 3.0  # both weights are 1 as float16, and of equal ones the first stays


def test_srste_decay_grows_with_the_loss_scale():
    grads = []
    for scale in (1.0, 8.0):
        layer = linear(bias=False, scheme="srste")
        with loss_scale(scale):
            step(layer, randn(5, 24), torch.zeros(5, 16))
        grads.append(layer.weight.grad)
    assert bool((grads[0] != 0).any())
    assert torch.equal(grads[0] * 8, grads[1])


def test_leading_axes_and_float16_input():
    layer, x = linear(), randn(2, 3, 4, 24)
    y = layer(x)
    assert y.shape == (2, 3, 4, 16) and y.dtype is torch.float32
    assert torch.equal(y.reshape(24, 16), layer(x.reshape(24, 24)))
    assert torch.equal(layer(x[0, 0, 0]), layer(x[0, 0, :1])[0])
    low = x.half().requires_grad_()
    result = layer(low)
    assert result.dtype is torch.float32
    result.sum().backward()
    assert low.grad.dtype is torch.float16


def test_only_wanted_gradients_are_computed():
    layer = linear()
    layer.weight.requires_grad_(False)
    with sat.record_products() as log:
        layer(randn(5, 24)).sum().backward()
    assert [r.stage for r in log] == ["FF"] and layer.weight.grad is None
    layer.weight.requires_grad_(True)
    with sat.record_products() as log:
        layer(randn(5, 24)).sum().backward()
    assert [r.stage for r in log] == ["FF", "WU"]


def test_a_changed_weight_is_caught_before_backward():
    layer = linear()
    y = layer(randn(5, 24))
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# --- convolutions ---------------------------------------------------------------------------------


def conv(scheme="bdwp", pattern="2:8", ins=16, outs=24, kernel=3, filter_fn=None, **options):
    torch.manual_seed(0)
    layer = nn.Conv2d(ins, outs, kernel, **options)
    sat.sparsify_(layer, scheme, pattern, filter_fn)
    return layer


def columns(x, kernel, padding):
    """Return im2col of (batch, height, width, channels), stride 1, by explicit loops."""
    batch, height, width, channels = x.shape
    wide = np.zeros((batch, height + 2 * padding, width + 2 * padding, channels), np.float32)
    wide[:, padding : padding + height, padding : padding + width] = x
    outs = [height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1]
    rows = [
        [wide[b, i + r, j + s] for r in range(kernel) for s in range(kernel)]
        for b in range(batch)
        for i in range(outs[0])
        for j in range(outs[1])
    ]
    return np.array(rows).reshape(len(rows), -1)


def test_conv_bdwp_is_three_products_with_defined_bits():
    layer, x, dy = conv(padding=1), randn(2, 16, 5, 4), randn(2, 24, 5, 4, seed=1)
    y, dx = step(layer, x, dy)
    w = layer.weight.detach()
    x_last, dy_last = x.permute(0, 2, 3, 1).numpy(), dy.permute(0, 2, 3, 1).numpy()
    x_columns = half(columns(x_last, 3, 1))
    # The depth runs over kernel row, kernel column, input channel.
    w_f = compact(w.permute(2, 3, 1, 0).reshape(-1, 24), 2, 8)
    expected = stored(stce.matmul(x_columns, w_f, start=layer.bias.detach().numpy()))
    np.testing.assert_array_equal(bits(y.permute(0, 2, 3, 1)), bits(expected.reshape(2, 5, 4, 24)))
    # BP is the convolution with the turned kernel: depth over the kernel's positions as they are
    # in FF, so over the picture's backwards, then over output channels.
    lanes = w.permute(2, 3, 0, 1).reshape(-1, 16)
    turned = columns(dy_last, 3, 1).reshape(-1, 9, 24)[:, ::-1].reshape(-1, 9 * 24)
    expected = stored(stce.matmul(half(turned), compact(lanes, 2, 8)))
    np.testing.assert_array_equal(bits(dx.permute(0, 2, 3, 1)), bits(expected.reshape(2, 5, 4, 16)))
    expected = stce.matmul(half(dy_last.reshape(-1, 24).T), x_columns).reshape(24, 3, 3, 16)
    np.testing.assert_array_equal(bits(layer.weight.grad.permute(0, 2, 3, 1)), bits(expected))
    assert torch.allclose(layer.bias.grad, dy.sum((0, 2, 3)))


GEOMETRIES = {
    "plain": {},
    "stride 2": {"stride": 2, "padding": 1},
    "stride 3 skips inputs": {"stride": 3, "kernel": 2},
    "1x1 stride 2": {"kernel": 1, "stride": 2},
    "dilation shares a factor with stride": {"stride": 2, "dilation": 2, "padding": 2},
    "dilation prime to stride": {"stride": 2, "dilation": 3, "padding": 3},
    "same, even kernel": {"padding": "same", "kernel": (3, 2)},
    "valid": {"padding": "valid"},
    "uneven": {"kernel": (3, 1), "stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    "groups": {"groups": 2, "padding": 1, "outs": 16},
    "groups, stride": {"groups": 2, "padding": 1, "outs": 16, "stride": 2, "bias": False},
}


def reference(layer, x, dy, w_f, w_b, dy_b):
    """Return y, dx, dw in float64, by torch's own convolutions."""
    double = torch.nn.grad
    same = layer.padding == "same"
    options = {
        "stride": layer.stride,
        "padding": 0 if layer.padding == "valid" or same else layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    x, dy, dy_b, w_f, w_b = (t.double() for t in (x, dy, dy_b, w_f, w_b))
    bias = None if layer.bias is None else layer.bias.detach().double()
    sides = [0, 0, 0, 0]
    if same:
        for axis in (0, 1):  # the last side of an odd total gets the extra zero
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides[2 * (1 - axis)] = total // 2
            sides[2 * (1 - axis) + 1] = total - total // 2
    wide = functional.pad(x, sides)
    y = functional.conv2d(wide, w_f, bias, **options)
    dx = double.conv2d_input(wide.shape, w_b, dy_b, **options)
    dx = functional.pad(dx, [-side for side in sides])
    dw = double.conv2d_weight(wide, w_f.shape, dy, **options)
    return y, dx, dw


def near(got, expected):
    scale = expected.abs().max()
    assert got.shape == expected.shape
    assert float((got.double() - expected).abs().max() / scale) < 1e-2


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("scheme", ["dense", "bdwp", "srste", "sdgp", "sdwp"])
def test_conv_matches_torch_for_every_geometry_and_scheme(name, scheme):
    layer = conv(scheme, **GEOMETRIES[name])
    x = randn(2, 16, 9, 8)
    dy = randn(*layer(x).shape, seed=1)
    y, dx = step(layer, x, dy)
    w = layer.weight.detach()
    # Groups of 8 never straddle convolution groups here: both have multiples of 8 channels.
    w_f = masked(w, 2, 8, 1) if scheme in ("bdwp", "srste") else w
    w_b = masked(w, 2, 8, 0) if scheme in ("bdwp", "sdwp") else w_f if scheme == "srste" else w
    dy_b = masked(dy, 2, 8, 1) if scheme == "sdgp" else dy
    expected = reference(layer, x, dy, w_f, w_b, dy_b)
    near(y, expected[0])
    near(dx, expected[1])
    near(layer.weight.grad, expected[2])


@pytest.mark.parametrize("scheme", ["bdwp", "sdgp", "sdwp", "srste"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_forced_layer_prunes_short_groups_at_each_position(scheme, kernel):
    """Channels that M does not divide: a short last group, never across kernel positions."""
    layer = conv(
        scheme, ins=11, outs=13, kernel=kernel, padding=1, filter_fn=lambda name, module: True
    )
    x = randn(2, 11, 6, 6)
    dy = randn(*layer(x).shape, seed=1)
    y, dx = step(layer, x, dy)
    w = layer.weight.detach()
    w_f = masked(w, 2, 8, 1) if scheme in ("bdwp", "srste") else w
    w_b = masked(w, 2, 8, 0) if scheme in ("bdwp", "sdwp") else w_f if scheme == "srste" else w
    dy_b = masked(dy, 2, 8, 1) if scheme == "sdgp" else dy
    expected = reference(layer, x, dy, w_f, w_b, dy_b)
    near(y, expected[0])
    near(dx, expected[1])
    near(layer.weight.grad, expected[2])


def test_products_have_the_pattern_on_the_contracted_axis():
    """What reaches the device under BDWP: N:M right operands in FF and BP, dense ones in WU."""
    layer, x = conv(ins=16, outs=24, padding=1), randn(2, 16, 4, 4)
    with sat.record_products() as log:
        step(layer, x, randn(2, 24, 4, 4))
    table = [(r.stage, r.rows, r.depth, r.cols, str(r.pattern)) for r in log]
    assert table == [
        ("FF", 32, 9 * 16, 24, "2:8"),
        ("BP", 32, 9 * 24, 16, "2:8"),
        ("WU", 24, 32, 9 * 16, "dense"),
    ]
    assert log.macs == 32 * 144 * 24 // 4 + 32 * 216 * 16 // 4 + 24 * 32 * 144
    assert log.cycles is None and len(log) == 3


def test_stride_costs_no_product_with_inserted_zeros():
    layer, x = conv(stride=2, padding=1), randn(2, 16, 8, 8)
    with sat.record_products() as log:
        step(layer, x, randn(2, 24, 4, 4))
    macs = {stage: sum(r.run.macs for r in log if r.stage == stage) for stage in ("FF", "BP")}
    # Every input position of the padded edge costs what the inner ones do.
    assert macs["FF"] == macs["BP"] == 2 * 16 * 144 * 24 // 4


def test_pictures_without_batch():
    layer, x = conv(padding=1), randn(16, 5, 5)
    assert torch.equal(layer(x), layer(x[None])[0])


# --- user-defined schemes -------------------------------------------------------------------------


def test_scheme_that_prunes_twice_and_scheme_that_prunes_inputs():
    x, dy = randn(5, 24), randn(5, 16, seed=1)
    twice = Scheme("twice", prunes={"BP": Prune("weight", "in", "out")})
    layer = linear(bias=False, scheme=twice)
    _, dx = step(layer, x, dy)
    w_f = masked(layer.weight.detach(), 2, 8, 1)
    np.testing.assert_array_equal(bits(dx), bits(stored(stce.matmul(half(dy), compact(w_f, 2, 8)))))

    inputs = Scheme("inputs", prunes={"FF": Prune("input", "in")})
    layer = linear(scheme=inputs)
    y, _ = step(layer, x, dy)
    w, bias = layer.weight.detach(), layer.bias.detach()
    start = bias[:, None].expand(-1, 5).contiguous().numpy()
    expected = stored(stce.matmul(half(w), compact(x.t(), 2, 8), start=start).T)
    np.testing.assert_array_equal(bits(y), bits(expected))


def test_scheme_that_prunes_operands_of_the_update_masks_them():
    x, dy = randn(5, 24), randn(5, 16, seed=1)
    layer = linear(bias=False, scheme=Scheme("wu", prunes={"WU": Prune("input", "in")}))
    step(layer, x, dy)
    expected = stce.matmul(half(dy.t()), half(masked(x, 2, 8, 1)))
    np.testing.assert_array_equal(bits(layer.weight.grad), bits(expected))


def test_subclass_chooses_by_its_own_criterion():
    class First(Scheme):
        """Keeps the first n of each group."""

        def select(self, x, pattern, axis, stage):
            rank = np.arange(x.shape[axis], 0, -1, dtype=np.float32)
            shape = [1] * x.ndim
            shape[axis] = -1
            _, places = super().select(
                np.broadcast_to(rank.reshape(shape), x.shape), pattern, axis, stage
            )
            group = np.arange(places.shape[axis]) // pattern.n * pattern.m
            return np.take_along_axis(x, places + group.reshape(shape), axis), places

    layer = linear(bias=False, scheme=First("first", prunes={"FF": Prune("weight", "in")}))
    x = randn(5, 24)
    kept = torch.zeros(24)
    kept[[0, 1, 8, 9, 16, 17]] = 1
    expected = x.half().float() @ (layer.weight * kept).half().float().t()
    assert torch.allclose(layer(x), expected, rtol=2**-10, atol=1e-6)


def test_device_of_the_layer_of_the_context_and_of_the_backward_pass(fake_rtl):
    with fake_rtl() as own, fake_rtl() as other:
        layer = linear(device=own)
        y = layer(randn(5, 24).requires_grad_())
        assert (own.products, other.products) == (1, 0)
        with sat.use_device(other), sat.record_products() as log:
            z = layer(randn(5, 24).requires_grad_())
            y.sum().backward()  # bound to its own device and to no log
        assert (own.products, other.products) == (3, 1)
        z.sum().backward()  # bound to the other device and to the log
        assert (own.products, other.products) == (3, 3)
        assert [r.stage for r in log] == ["FF", "BP", "WU"]
        assert {r.device for r in log} == {"rtl"}
        assert log.cycles == log.macs


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (
            lambda: linear()(randn(5, 23)),
            ValueError,
            "layer '': input has shape (5, 23): its last axis must be in_features, 24",
        ),
        (
            lambda: linear()(randn(5, 24).int()),
            TypeError,
            "input has dtype int32: must be float32,",
        ),
        (
            lambda: linear()(randn(5, 24).to(torch.complex64)),
            TypeError,
            "input has dtype complex64: must be float32, float16, bfloat16 or float64; convert",
        ),
        (lambda: linear()(randn(5, 24).to("meta")), ValueError, "input is on meta: must be in ho"),
        (lambda: conv()(randn(5, 5)), ValueError, "must be (batch, 16, height, width) or without"),
        (lambda: conv()(randn(2, 15, 5, 5)), ValueError, "input has shape (2, 15, 5, 5)"),
        (lambda: conv()(randn(2, 16, 2, 5)), ValueError, "input is 2 x 5: smaller than the kernel"),
    ],
)
def test_bad_input_names_value_rule_and_fix(make, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        make()
