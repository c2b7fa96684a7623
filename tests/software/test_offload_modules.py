"""`sat.offload`: layers, attention, recurrent networks, and what torch wraps around functions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import sat

sys.path.insert(0, str(Path(__file__).parent))
from offload_folds import COMPLEX, REALS, A, B, documented, fold, randn, same, stacked


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
