"""`sat.offload`: convolutions against a scalar fold, forward and backward."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import sat

sys.path.insert(0, str(Path(__file__).parent))
from offload_folds import COMPLEX, documented, randn, same

CONVS = {
    "1d": {"x": (2, 3, 9), "w": (4, 3, 3), "padding": 1},
    "1d, stride, dilation": {
        "x": (2, 4, 11),
        "w": (6, 2, 3),
        "stride": 2,
        "dilation": 2,
        "groups": 2,
    },
    "2d": {"x": (2, 3, 5, 6), "w": (4, 3, 3, 3), "padding": 1},
    "2d, uneven": {"x": (1, 2, 7, 5), "w": (3, 2, 3, 2), "stride": (2, 3), "padding": (2, 1)},
    "2d, depthwise": {"x": (2, 4, 5, 4), "w": (4, 1, 3, 3), "padding": 1, "groups": 4},
    "2d, stride above kernel": {"x": (1, 2, 6, 6), "w": (2, 2, 1, 1), "stride": 3},
    "3d": {"x": (1, 2, 4, 3, 4), "w": (3, 2, 2, 2, 3), "padding": (1, 0, 1), "stride": (1, 2, 1)},
}


def scalar_convolution(x, w, bias, stride, padding, dilation, groups):
    """Yield (output index, input index or None, weight index) in the order of the fold."""
    axes = x.ndim - 2
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[2:], padding, dilation, w.shape[2:], stride, strict=False)
    ]
    outs = w.shape[0] // groups
    for batch, o in itertools.product(range(len(x)), range(len(w))):
        for place in itertools.product(*map(range, sizes)):
            for r in itertools.product(*map(range, w.shape[2:])):
                where = [
                    place[i] * stride[i] + r[i] * dilation[i] - padding[i] for i in range(axes)
                ]
                if all(0 <= h < n for h, n in zip(where, x.shape[2:], strict=False)):
                    for c in range(w.shape[1]):
                        group = o // outs
                        yield (
                            (batch, o, *place),
                            (batch, group * w.shape[1] + c, *where),
                            (o, c, *r),
                        )


def scalar_fold(triples, left, right, start):
    """Fold left[i] * right[j] into start[o], in the order given."""
    left, right = (t.half().float().numpy() for t in (left, right))
    out = start.float().numpy().copy()
    for o, i, j in triples:
        out[o] = np.float32(out[o] + np.float32(left[i] * right[j]))
    return torch.from_numpy(out)


def by_tap(triple):
    """Sort key of (output, input, weight) indices: position in the kernel, output channel."""
    output, _, weight = triple
    return (*weight[2:], output[1])


def by_sample(triple):
    """Sort key of (output, input, weight) indices: sample, output position."""
    return (triple[0][0], *triple[0][2:])


def full(case, axes):
    def each(value):
        return (value,) * axes if isinstance(value, int) else value

    return (
        each(case.get("stride", 1)),
        each(case.get("padding", 0)),
        each(case.get("dilation", 1)),
        case.get("groups", 1),
    )


@pytest.mark.parametrize("name", CONVS)
def test_convolution_and_its_gradients_are_scalar_folds(name):
    case = CONVS[name]
    x, w = randn(*case["x"]), randn(*case["w"], seed=1)
    bias = randn(len(w), seed=2)
    axes = x.ndim - 2
    stride, padding, dilation, groups = full(case, axes)
    conv = getattr(functional, f"conv{axes}d")
    leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
    with sat.offload("golden") as report:
        y = conv(*leaves, stride, padding, dilation, groups)
        dy = randn(*y.shape, seed=3)
        y.backward(dy)
    assert report.coverage == 1.0 and y.is_contiguous()
    triples = list(scalar_convolution(x, w, bias, stride, padding, dilation, groups))
    start = bias.reshape(1, -1, *[1] * axes).expand(y.shape).clone()
    same(y.detach(), scalar_fold(triples, x, w, start))
    # Input's gradient: taps of the kernel ascending, output channels of one tap inside.
    order = sorted(triples, key=by_tap)
    dx = scalar_fold([(i, o, j) for o, i, j in order], dy, w, torch.zeros_like(x))
    same(leaves[0].grad, dx)
    # Weight's gradient: samples ascending.
    order = sorted(triples, key=by_sample)
    dw = scalar_fold([(j, o, i) for o, i, j in order], dy, x, torch.zeros_like(w))
    same(leaves[1].grad, dw)
    same(leaves[2].grad, dy.sum([0, *range(2, dy.ndim)]))


TRANSPOSED = {
    "1d": {"x": (2, 4, 6), "w": (4, 3, 3), "stride": 2, "padding": 1, "output_padding": 1},
    "2d": {"x": (2, 4, 4, 3), "w": (4, 2, 3, 3), "stride": 2, "groups": 2},
    "2d, gaps": {"x": (1, 3, 3, 3), "w": (3, 2, 2, 2), "stride": 3},
    "3d": {"x": (1, 2, 3, 2, 2), "w": (2, 3, 2, 3, 2), "dilation": 2},
    # Torch allows output padding up to the stride or the dilation, whichever is more.
    "1d, padding of the stride": {
        "x": (2, 4, 3),
        "w": (4, 2, 2),
        "dilation": 4,
        "output_padding": 3,
        "padding": 1,
        "groups": 2,
    },
    "1d, one tap": {"x": (1, 2, 2), "w": (2, 3, 1), "dilation": 4, "output_padding": 2},
    "2d, padding of the stride": {
        "x": (2, 2, 4, 3),
        "w": (2, 1, 2, 3),
        "stride": (1, 2),
        "dilation": (2, 3),
        "output_padding": (1, 2),
        "padding": (0, 2),
        "groups": 2,
    },
    "3d, padding of the stride": {
        "x": (1, 2, 2, 3, 2),
        "w": (2, 2, 2, 1, 2),
        "dilation": 3,
        "output_padding": (2, 0, 1),
    },
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution_is_the_gradient_of_one(name):
    case = dict(TRANSPOSED[name])
    x, w = randn(*case.pop("x")), randn(*case.pop("w"), seed=1)
    axes = x.ndim - 2
    bias = randn(w.shape[1] * case.get("groups", 1), seed=2)
    op = getattr(functional, f"conv_transpose{axes}d")
    leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
    with sat.offload("golden") as report:
        y = op(*leaves, **case)
        dy = randn(*y.shape, seed=3)
        y.backward(dy)
    assert report.coverage == 1.0
    stride, padding, dilation, groups = full(case, axes)
    # The convolution runs over y here: its outputs are x, and what more y would have room for.
    triples = [
        (o, i, j)
        for o, i, j in scalar_convolution(y, w, None, stride, padding, dilation, groups)
        if all(place < size for place, size in zip(o[2:], x.shape[2:], strict=True))
    ]
    order = sorted(triples, key=by_tap)
    start = bias.reshape(1, -1, *[1] * axes).expand(y.shape).clone()
    same(y.detach(), scalar_fold([(i, o, j) for o, i, j in order], x, w, start))
    order = sorted(triples, key=by_sample)
    same(leaves[0].grad, scalar_fold(triples, dy, w, torch.zeros_like(x)))
    same(leaves[1].grad, scalar_fold([(j, o, i) for o, i, j in order], x, dy, torch.zeros_like(w)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_convolutions_keep_the_memory_format_of_torch(axes, transposed, dtype):
    precision = "fp32" if dtype is torch.float64 else "fp16"
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(axes, torch.contiguous_format)
    kind = getattr(torch.nn, f"Conv{'Transpose' * transposed}{axes}d")
    orders = itertools.product((torch.contiguous_format, last), repeat=3)
    for groups, (of_x, of_w, of_dy) in itertools.product((1, 2), orders):
        layer = kind(4, 6, 3, stride=2, groups=groups, dtype=dtype)
        layer.weight.data = layer.weight.data.contiguous(memory_format=of_w)
        x = randn(2, 4, *[5, 4, 6][:axes], dtype=dtype).contiguous(memory_format=of_x)
        x.requires_grad_()
        strides = []
        for where in (contextlib.nullcontext(), sat.offload("golden", precision=precision)):
            with where:
                y = layer(x)
                dy = randn(*y.shape, dtype=dtype).contiguous(memory_format=of_dy)
                grads = torch.autograd.grad(y, (x, layer.weight), dy)
            strides.append([t.stride() for t in (y, *grads)])
        assert strides[0] == strides[1]


EVERY_CONV = {
    **{f"conv{name}": ("conv", case) for name, case in CONVS.items()},
    **{f"conv_transpose{name}": ("conv_transpose", case) for name, case in TRANSPOSED.items()},
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", EVERY_CONV)
def test_other_types_of_convolution_round_their_results(name, dtype):
    kind_of, case = EVERY_CONV[name]
    case = dict(case)
    x, w = randn(*case.pop("x"), dtype=dtype), randn(*case.pop("w"), seed=1, dtype=dtype)
    conv = getattr(functional, f"{kind_of}{x.ndim - 2}d")
    found = []
    for kind in (dtype, torch.float32):
        leaves = [t.clone().to(kind).requires_grad_() for t in (x, w)]
        with sat.offload("golden") as report:
            y = conv(*leaves, None, **case)
            y.backward(torch.ones_like(y))
        assert report.coverage == 1.0
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for got, want in zip(*found, strict=True):
        same(got, want.to(dtype))
    exact = conv(x.double(), w.double(), None, **case)
    terms = conv(x.double().abs(), w.double().abs(), None, **case)
    assert ((found[1][0] - exact).abs() <= 2.0**-9 * terms).all()


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("name", EVERY_CONV)
def test_a_complex_convolution_is_three_real_ones(name, dtype):
    kind, case = EVERY_CONV[name]
    case = dict(case)
    x, w = randn(*case.pop("x"), dtype=dtype), randn(*case.pop("w"), seed=1, dtype=dtype)
    conv = getattr(functional, f"{kind}{x.ndim - 2}d")
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    with sat.offload("golden") as report:
        got = conv(*leaves, None, **case)
        got.backward(torch.ones_like(got))
        a = conv(x.real, w.real, None, **case)
        b = conv(x.imag, w.imag, None, **case)
        c = conv(x.real + x.imag, w.real + w.imag, None, **case)
    assert report.coverage == 1.0
    same(got.detach(), torch.complex(a - b, c - a - b))
    exact = [t.to(torch.complex128).requires_grad_() for t in (x, w)]
    want = conv(*exact, None, **case)
    want.backward(torch.ones_like(want))
    terms = conv(x.abs().double(), w.abs().double(), None, **case)
    depth = 2 * w[0].numel() * len(w)
    bound = 4 * (2.0**-10 + depth * 2.0**-24)
    assert ((got - want).abs() <= bound * terms).all()
    for leaf, reference in zip(leaves, exact, strict=True):
        # Each gradient is a sum of at most as many terms as there are of its other operand.
        scale = reference.grad.abs().max() + x.numel() ** 0.5 * 4
        assert (leaf.grad - reference.grad).abs().max() <= bound * scale


@pytest.mark.parametrize("dtype", COMPLEX)
def test_the_raw_complex_convolution_is_one_complex_product(dtype):
    x, w = randn(2, 3, 5, 4, dtype=dtype), randn(4, 3, 2, 3, dtype=dtype, seed=1)
    with sat.offload("golden") as report:
        got = torch.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    windows = x.unfold(2, 2, 1).unfold(3, 3, 1)  # (batch, in, lines, columns, *kernel)
    left = windows.permute(0, 2, 3, 4, 5, 1).reshape(-1, 18)
    want = documented(left, w.permute(2, 3, 1, 0).reshape(18, 4))
    same(got, want.reshape(2, 4, 2, 4).permute(0, 3, 1, 2))
    assert report.flops == 8 * 16 * 18 * 4
