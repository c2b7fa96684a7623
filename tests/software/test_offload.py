"""`sat.offload`: every operation against a scalar fold and float64, forward and backward."""

from __future__ import annotations

import contextlib
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sat
from sat.devices import FirstDevice, GoldenDevice
from sat.offload.handlers import HANDLED
from sat.offload.host_work import HOST
from sat.offload.report import OffloadReport

REALS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
BOUND = 2e-7
"""Of ``precision="fp32"``: times the square root of the depth."""


def randn(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    wide = torch.complex128 if dtype in COMPLEX else torch.float64
    return torch.randn(*shape, dtype=wide, generator=generator).to(dtype)


def bits(x):
    """Return a tensor's bits, every NaN the same."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return torch.where(torch.isnan(x), torch.full_like(x, float("nan")), x).contiguous()


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(torch.nan_to_num(bits(got), 1e4), torch.nan_to_num(bits(want), 1e4))
    assert torch.equal(torch.isnan(bits(got)), torch.isnan(bits(want)))


def fold(a, b, start=None):
    """Return start + a @ b by the rule: float16 operands, float32 sums in order of the depth."""
    a, b = a.half().numpy().astype(np.float32), b.half().numpy().astype(np.float32)
    total = np.zeros((len(a), b.shape[1]), np.float32)
    if start is not None:
        total = total + start.float().numpy()
    for k in range(a.shape[1]):
        total = total + a[:, k, None] * b[None, k]
    return torch.from_numpy(total)


def documented(a, b, start=None):
    """Return what docs/offload.md says of a @ b, in a's type; complex as one real product."""
    if not a.is_complex():
        if a.dtype is torch.float64 and start is not None:
            return fold(a, b).double() + start
        return fold(a, b, start).to(a.dtype)
    a, b = a.resolve_conj(), b.resolve_conj()
    left = torch.cat([a.real, a.imag], 1)
    right = torch.cat([torch.cat([b.real, b.imag], 1), torch.cat([-b.imag, b.real], 1)], 0)
    first = None if start is None else torch.cat([start.real, start.imag], -1)
    made = fold(left, right, first if a.dtype is torch.complex64 else None).to(a.real.dtype)
    if first is not None and a.dtype is torch.complex128:
        made = made + first
    cols = b.shape[1]
    return torch.complex(made[:, :cols].contiguous(), made[:, cols:].contiguous())


def stacked(a, b, start=None):
    return torch.stack(
        [
            documented(x, y, None if start is None else start[i])
            for i, (x, y) in enumerate(zip(a, b, strict=False))
        ]
    )


A, B, C = (6, 13), (13, 5), (6, 5)
SIZES = [(6, 13, 5), (1, 1, 1), (17, 40, 3)]
"""Rows, depth, cols."""


def operations(r, d, c):
    """Return shapes, operation and documented result by name; stacks are of three."""
    a, b, s = (r, d), (d, c), (r, c)
    return {
        "mm": ((a, b), torch.mm, documented),
        "mm of views": (
            ((d, r), (c, d)),
            lambda x, y: x.T @ y.T,
            lambda x, y: documented(x.T, y.T),
        ),
        "matmul of 3 and 2 axes": (
            ((2, *a), b),
            torch.matmul,
            lambda x, y: documented(x.reshape(2 * r, d), y).reshape(2, r, c),
        ),
        "mv": ((a, (d,)), torch.mv, lambda x, y: documented(x, y[:, None])[:, 0]),
        "dot": (((d,), (d,)), torch.dot, lambda x, y: documented(x[None], y[:, None])[0, 0]),
        "vdot": (
            ((d,), (d,)),
            torch.vdot,
            lambda x, y: documented(x.conj()[None], y[:, None])[0, 0],
        ),
        "bmm": (((3, *a), (3, *b)), torch.bmm, stacked),
        "addmm, row": (
            ((c,), a, b),
            torch.addmm,
            lambda z, x, y: documented(x, y, z.expand(r, c)),
        ),
        "addmm, matrix": ((s, a, b), torch.addmm, lambda z, x, y: documented(x, y, z)),
        "addmv": (
            ((r,), a, (d,)),
            torch.addmv,
            lambda z, x, y: documented(x, y[:, None], z[:, None])[:, 0],
        ),
        "baddbmm": (
            ((3, *s), (3, *a), (3, *b)),
            torch.baddbmm,
            lambda z, x, y: stacked(x, y, z),
        ),
        "addbmm": (
            (s, (3, *a), (3, *b)),
            torch.addbmm,
            lambda z, x, y: documented(x.transpose(0, 1).reshape(r, 3 * d), y.reshape(3 * d, c), z),
        ),
        "einsum": (
            ((3, *a), (3, *b)),
            lambda x, y: torch.einsum("bij,bjk->bik", x, y),
            stacked,
        ),
    }


def absolute_terms(op, tensors):
    """Return the sums of the terms' magnitudes: what an error is measured by."""
    return op(*(t.abs().double() for t in tensors))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [*REALS, *COMPLEX])
@pytest.mark.parametrize(
    "name, size",
    # torch multiplies elementwise where einsum has a single term: that is no product.
    [(n, s) for n in operations(*SIZES[0]) for s in SIZES if (n, s) != ("einsum", (1, 1, 1))],
)
def test_op_equals_the_documented_arithmetic(name, size, dtype, grad):
    shapes, op, want = operations(*size)[name]
    tensors = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    leaves = [t.clone().requires_grad_(grad) for t in tensors]
    with sat.offload("golden") as report:
        got = op(*leaves)
        if grad:
            got.backward(torch.ones_like(got))
    same(got.detach(), want(*tensors))
    assert report.coverage == 1.0
    assert report.calls >= (1 + (2 if grad and name in ("mm", "bmm") else 0))
    wide = torch.complex128 if dtype in COMPLEX else torch.float64
    exact = [t.to(wide).requires_grad_() for t in tensors]
    value = op(*exact)
    # docs/offload.md: operands round to 11 bits, sums to 24, results to their type.
    depth = 3 * 2 * size[1]
    bound = (2.0**-10 + 2.0**-22 + depth * 2.0**-24) * absolute_terms(op, tensors)
    step = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0.0)
    bound = bound * (2 if dtype in COMPLEX else 1) + step * value.detach().abs() * 1.01
    assert ((got.detach().to(wide) - value.detach()).abs() <= bound + 1e-7).all()
    if grad:
        value.backward(torch.ones_like(value))
        for leaf, reference in zip(leaves, exact, strict=True):
            error = (leaf.grad.to(wide) - reference.grad).abs().max()
            assert error <= (2.0**-6 if dtype is torch.bfloat16 else 2.0**-9) * 3 * max(size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("alpha, beta", [(2, 1), (1, 0), (0.5, -3)])
def test_alpha_and_beta_apply_to_the_finished_product(dtype, alpha, beta):
    s, a, b = (randn(*shape, dtype=dtype) for shape in (C, A, B))
    if beta == 0:
        s[0, 0] = float("nan")  # torch does not look at it
    wide = {torch.float16: torch.float32}.get(dtype, dtype)
    with sat.offload("golden"):
        got = torch.addmm(s, a, b, alpha=alpha, beta=beta)
    product = documented(a.to(wide), b.to(wide)) * alpha
    want = product if beta == 0 else product + beta * s.to(wide)
    same(got, want.to(dtype))


def test_out_and_in_place_forms():
    a, b, s = randn(*A), randn(*B), randn(*C)
    with sat.offload("golden") as report:
        out = torch.empty(0)
        assert torch.mm(a, b, out=out) is out
        same(out, fold(a, b))
        into = s.clone()
        assert into.addmm_(a, b) is into
        same(into, fold(a, b, s))
    assert report.calls == 2


def test_conjugate_views_and_transposes_are_read_as_they_mean():
    a, b = randn(6, 13, dtype=torch.complex64), randn(5, 13, dtype=torch.complex64)
    with sat.offload("golden"):
        got = a.conj() @ b.mH
    same(got, documented(a.conj().resolve_conj(), b.mH.resolve_conj().contiguous()))


# ------------------------------------------------------------------------------ convolutions

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


def test_a_sat_layer_without_pruning_and_an_offloaded_one_have_the_same_bits():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    layers.load_state_dict(plain.state_dict())
    sat.sparsify_(layers, scheme="dense", pattern="dense")
    x, terms = randn(2, 3, 4, 4), {}
    for name in ("0", "3"):
        plain[int(name)].register_full_backward_hook(
            lambda layer, _, dy, name=name: terms.update({name: dy[0].abs()})
        )
    with sat.offload("golden") as report:
        plain(x.requires_grad_()).square().sum().backward()
        layers(x).square().sum().backward()
    for name in terms:
        ours, theirs = layers[int(name)], plain[int(name)]
        same(ours.weight.grad, theirs.weight.grad)
        # A bias' gradient is a sum of output gradients, which SAT layers have as float16.
        axes = [axis for axis in range(terms[name].ndim) if axis != 1]
        apart = (ours.bias.grad - theirs.bias.grad).abs()
        assert (apart <= 2.0**-10 * terms[name].sum(axes)).all()
    assert {"0 FF", "0 WU", "3 FF", "3 BP", "3 WU"} <= {work.op for work in report}
    assert report.coverage == 1.0


def test_sparse_layers_send_their_compact_operands():
    torch.manual_seed(0)
    model = nn.Linear(32, 16)
    sat.sparsify_(model, scheme="bdwp", pattern="2:8")
    x = randn(4, 32).requires_grad_()
    with sat.offload("golden") as report:
        model(x).sum().backward()
    sizes = {work.op: work.size for work in report}
    assert sizes == {
        "layer FF": "4 x 32 x 16 2:8",
        "layer BP": "4 x 16 x 32 2:8",
        "layer WU": "16 x 4 x 32",
    }
    assert report.flops == 2 * (4 * 8 * 16 + 4 * 4 * 32 + 16 * 4 * 32)


def test_a_weight_is_pruned_once_after_each_change(monkeypatch):
    from sat.layers.schemes import Scheme

    pruned = []
    select = Scheme.select
    monkeypatch.setattr(
        Scheme, "select", lambda self, *args: pruned.append(1) or select(self, *args)
    )
    torch.manual_seed(0)
    model = nn.Conv2d(16, 16, 3)
    sat.sparsify_(model, scheme="bdwp", pattern="2:8")
    x = randn(1, 16, 4, 4)
    with sat.offload("golden"):
        first = model(x.requires_grad_())
        for _ in range(3):
            first.sum().backward(retain_graph=True)
            same(model(x), first)
        assert len(pruned) == 2  # FF and BP
        model.weight.data.neg_()  # goes past torch's version counter
        want = functional.conv2d(x, -_pruned(-model.weight), model.bias).detach()
        same(model(x).detach(), want.half().float())  # layers store their outputs as float16
    assert len(pruned) == 3


def _pruned(w):
    """Return a weight (out, in, *kernel) as FF prunes it at 2:8: its float16 copy."""
    return sat.prune(w.detach().half(), "2:8", axis=1).to_dense().float()


# ------------------------------------------------------------------- larger pieces of programs


def in_float64(function, *tensors):
    return function(*(t.double() for t in tensors))


def test_attention_decomposes_forward_and_backward():
    q, k, v = (randn(2, 3, 7, 8, seed=i).requires_grad_() for i in range(3))
    with sat.offload("golden", precision="fp32") as report:
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y.sum().backward()
    assert report.coverage == 1.0 and report.calls == 6
    want = in_float64(
        lambda *t: functional.scaled_dot_product_attention(*t, is_causal=True), q, k, v
    )
    assert (y - want).abs().max() < 1e-6
    fused = torch.nn.attention.SDPBackend.FLASH_ATTENTION
    with sat.offload("golden") as report, torch.nn.attention.sdpa_kernel(fused):
        functional.scaled_dot_product_attention(q, k, v)
    assert report.coverage == 0.0 and report.flops == 2 * 2 * 3 * 7 * 7 * 16
    assert next(iter(report)).reason.startswith("fused attention")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "groups of queries"])
def test_attention_is_two_stacks_of_products(kind, dtype, grad):
    heads = 1 if kind == "groups of queries" else 2
    q = randn(2, 2, 5, 8, dtype=dtype)
    k, v = (randn(2, heads, 6, n, dtype=dtype, seed=n) for n in (8, 7))
    options = {"is_causal": kind == "causal", "enable_gqa": heads == 1}
    mask = randn(5, 6, dtype=dtype) if kind == "mask" else None
    leaves = [t.clone().requires_grad_(grad) for t in (q, k, v)]
    with sat.offload("golden") as report:
        got = functional.scaled_dot_product_attention(*leaves, attn_mask=mask, **options)
        if grad:
            got.backward(torch.ones_like(got))
    assert report.coverage == 1.0 and report.calls == (6 if grad else 2)
    # Torch's definition: both operands take the root of the scale, in float32 at least.
    wide = dtype if dtype is torch.float64 else torch.float32
    root = 8.0**-0.25
    keys, values = (t.to(wide).expand(2, 2, 6, -1) for t in (k, v))
    queries, keys = q.to(wide) * root, keys * root
    scores = stacked(queries.flatten(0, 1), keys.flatten(0, 1).mT).reshape(2, 2, 5, 6)
    if kind == "causal":
        scores = scores + torch.zeros(5, 6).masked_fill(torch.ones(5, 6).triu(1) > 0, -torch.inf)
    if mask is not None:
        scores = scores + mask.to(wide)
    weights = torch.softmax(scores, -1)
    want = stacked(weights.flatten(0, 1), values.flatten(0, 1)).reshape(2, 2, 5, 7)
    same(got.detach(), want.to(dtype))
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    wide_mask = None if mask is None else mask.double()
    value = functional.scaled_dot_product_attention(*exact, attn_mask=wide_mask, **options)
    step = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(dtype, 0.0)
    # Scores err by 2**-10 of their terms' magnitudes, weights by e to twice that; then one product.
    terms = (q.double().abs() @ k.double().abs().mT).max() / 8**0.5
    bound = (2 * terms + 2) * 2.0**-10 + step
    assert ((got - value).abs() <= bound * v.abs().max()).all()
    if grad:
        value.backward(torch.ones_like(value))
        for leaf, reference in zip(leaves, exact, strict=True):
            error = (leaf.grad.double() - reference.grad).abs().max()
            assert error <= (2.0**-6 if dtype is torch.bfloat16 else 2.0**-8) * 10


@pytest.mark.parametrize("dtype", [*REALS, *COMPLEX])
@pytest.mark.parametrize(
    "equation, shapes, order",
    [
        ("ab,bc,cd->ad", [(3, 4), (4, 5), (5, 6)], lambda x, y, z: [[x, y], z]),
        ("aij,kj->aik", [(2, 3, 4), (5, 4)], lambda x, y: [x, y.T]),
        ("ij,ij->", [(3, 4), (3, 4)], lambda x, y: [x.reshape(1, 12), y.reshape(12, 1)]),
        ("ba,ca", [(3, 4), (2, 4)], lambda x, y: [x, y.T]),
    ],
)
def test_einsums_are_their_products(equation, shapes, order, dtype):
    tensors = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]

    def evaluate(x):
        if not isinstance(x, list):
            return x
        left, right = map(evaluate, x)
        return documented(left.reshape(-1, left.shape[-1]), right)

    with sat.offload("golden") as report:
        got = torch.einsum(equation, *tensors)
    same(got, evaluate(order(*tensors)).reshape(got.shape))
    assert report.coverage == 1.0 and report.calls == len(shapes) - 1


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_decompose(make):
    torch.manual_seed(0)
    layer, x = make(6, 8), randn(5, 3, 6)
    with sat.offload("golden", precision="fp32") as report:
        y, _ = layer(x)
        y.sum().backward()
    assert report.coverage == 1.0
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[make.__name__]
    # Forward, and about twice that backward (no gradient of x, none of the first state).
    forward = 2 * gates * 8 * 3 * 5 * (6 + 8)
    assert 2 * forward <= report.flops <= 3 * forward
    with torch.no_grad():
        want, _ = layer.double()(x.double())
    assert (y - want).abs().max() < 1e-6


def test_encoder_layer_in_inference_is_taken_apart():
    torch.manual_seed(0)
    layer, x = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), randn(2, 5, 16)
    with torch.inference_mode(), sat.offload("golden", precision="fp32") as report:
        y = layer(x)
        assert report.coverage == 1.0 and report.calls >= 5
    assert (y - layer.double()(x.double())).abs().max() < 2e-6


def test_function_transforms():
    w, x = randn(5, 4), randn(3, 4)

    def loss(w, x):
        return (torch.tanh(w @ x) ** 2).sum()

    with sat.offload("golden", precision="fp32") as report:
        grad = torch.func.grad(loss)(w, x[0])
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)
        value, tangent = torch.func.jvp(lambda z: loss(w, z), (x[0],), (x[1],))
        hessian = torch.func.hessian(lambda z: loss(w, z))(x[0])
    assert report.calls >= 6
    exact = torch.func.vmap(torch.func.grad(loss), (None, 0))(w.double(), x.double())
    assert (each - exact).abs().max() < 1e-5 and (grad - exact[0]).abs().max() < 1e-5
    assert abs(value - loss(w.double(), x[0].double())) < 1e-5
    want = torch.func.hessian(lambda z: loss(w.double(), z))(x[0].double())
    assert (hessian - want).abs().max() < 1e-4
    slope = torch.func.grad(lambda z: loss(w.double(), z))(x[0].double()) @ x[1].double()
    assert abs(tangent - slope) < 1e-4


def test_checkpointing_recomputes_on_the_device():
    w = randn(6, 6).requires_grad_()
    x = randn(4, 6)
    with sat.offload("golden") as report:
        y = torch.utils.checkpoint.checkpoint(lambda z: torch.tanh(z @ w), x, use_reentrant=False)
        y.sum().backward()
    assert report.calls == 3  # forward, forward again, gradient of w
    plain = randn(6, 6).requires_grad_()
    with sat.offload("golden"):
        torch.tanh(x @ plain).sum().backward()
    same(w.grad, plain.grad)


def test_compiled_functions_run_eagerly_inside():
    def step(a, b):
        return torch.relu(a @ b).sum()

    compiled = torch.compile(step, backend="aot_eager")
    a, b = randn(*A), randn(*B)
    outside = compiled(a, b)
    with sat.offload("golden") as report:
        got = compiled(a, b)
    assert report.calls == 1
    assert torch.equal(compiled(a, b), outside)
    same(got, torch.relu(fold(a, b)).sum())


def test_distances_by_products_are_taken():
    x, y = randn(40, 3), randn(30, 3)
    with sat.offload("golden", precision="fp32") as report:
        d = torch.cdist(x, y)
    assert report.calls == 1 and (d - torch.cdist(x.double(), y.double())).abs().max() < 1e-3


# -------------------------------------------------------------------------------- fp32 precision


@pytest.mark.parametrize("depth", [1, 2, 17, 128, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_fp32_precision_keeps_its_bound(depth, dtype):
    a, b = randn(24, depth, dtype=dtype), randn(depth, 20, dtype=dtype, seed=1)
    with sat.offload("golden", precision="fp32"):
        got = a @ b
    wide = torch.complex128 if dtype is torch.complex64 else torch.float64
    exact = a.to(wide) @ b.to(wide)
    scale = a.to(wide).abs() @ b.to(wide).abs()
    folded = 2 * depth if dtype is torch.complex64 else depth
    assert ((got - exact).abs() / scale).max() <= BOUND * folded**0.5


@pytest.mark.parametrize("depth", [1, 16, 256, 2048])
def test_fp32_precision_in_relative_errors_of_results(depth):
    """Where no terms cancel, element by element; where they do, against the largest result."""
    generator = torch.Generator().manual_seed(depth)
    positive = [
        torch.rand(*shape, generator=generator) + 0.5 for shape in ((24, depth), (depth, 20))
    ]
    mixed = [randn(24, depth), randn(depth, 20, seed=1)]
    with sat.offload("golden", precision="fp32"):
        sums, differences = (a @ b for a, b in (positive, mixed))
    exact = positive[0].double() @ positive[1].double()
    assert ((sums - exact).abs() / exact).max() <= BOUND * depth**0.5
    exact = mixed[0].double() @ mixed[1].double()
    assert (differences - exact).abs().max() / exact.abs().max() <= BOUND * depth**0.5


def test_fp32_precision_on_the_full_range_of_float32():
    rng = np.random.default_rng(0)

    def wild(*shape):
        sign = rng.choice([-1.0, 1.0], shape)
        return torch.from_numpy((sign * 10 ** rng.uniform(-30, 30, shape)).astype(np.float32))

    a, b = wild(16, 24), wild(24, 12)
    with sat.offload("golden", precision="fp32"):
        got = a @ b
    exact = a.double() @ b.double()
    scale = a.double().abs() @ b.double().abs()
    fits = exact.abs() < torch.finfo(torch.float32).max
    assert fits.any() and not fits.all()
    assert ((got - exact).abs() / scale)[fits].max() <= BOUND * 24**0.5
    assert torch.equal(got[~fits], exact[~fits].float())  # infinities of the right sign
    # Terms that float32 could not hold, and a sum that it can.
    huge = torch.tensor([[3e38, 3e38, -3e38]])
    with sat.offload("golden", precision="fp32"):
        assert (huge @ torch.tensor([[2.0], [1.0], [3.0]])).item() == 0.0
        tiny = torch.full((1, 1), 1e-45)
        assert (tiny @ torch.ones(1, 1)).item() == tiny.item()


def test_fp32_precision_handles_what_is_not_finite_as_ieee_says():
    inf, nan = float("inf"), float("nan")
    a = torch.tensor([[inf, 1.0, -2.0], [1.0, 2.0, 3.0], [0.0, nan, 1.0]])
    b = torch.tensor([[1.0, 0.0, -1.5, inf], [2.0, 3.0, 1.0, 1.0], [1.0, 1.0, 1.0, -inf]])
    with sat.offload("golden", precision="fp32"):
        got = a @ b
    same(got, (a.double() @ b.double()).float())


# --------------------------------------------------------------------- report, budget, refusals


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
