"""`sat.offload` on nested tensors: jagged and strided, attention included, against each piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import sat

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

LENGTHS = (3, 5)


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def jagged(x):
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    return torch.nested.nested_tensor_from_jagged(x, ends)


def strided(x):
    return torch.nested.as_nested_tensor(list(x.split(LENGTHS)))


def heads(x):
    return jagged(x).transpose(1, 2)


def attention(q, k, v, **options):
    made = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v), **options)
    return made.transpose(1, 2).values()


def pieces_of_attention(q, k, v, **options):
    each = zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
    made = [
        functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in piece), **options
        )[0].transpose(0, 1)
        for piece in each
    ]
    return torch.cat(made)


def blocks(function):
    """Return what applies a function of two matrices to the pieces of both, padded."""

    def program(a, b):
        pairs = zip(a.split(LENGTHS), b.split(LENGTHS), strict=True)
        return torch.cat([function(x, y).flatten() for x, y in pairs])

    return program


def flat(x):
    return torch.cat([piece.flatten() for piece in x.unbind()])


Q = [(8, 4, 8)] * 3
PROGRAMS = {
    "attention": (attention, pieces_of_attention, Q, 12, 2 * 2 * 3 * 4 * 8 * (9 + 25)),
    "attention, scaled": (
        lambda *qkv: attention(*qkv, scale=0.3),
        lambda *qkv: pieces_of_attention(*qkv, scale=0.3),
        Q,
        12,
        2 * 2 * 3 * 4 * 8 * (9 + 25),
    ),
    "attention, one head": (
        attention,
        pieces_of_attention,
        [(8, 1, 8)] * 3,
        12,
        2 * 2 * 3 * 8 * (9 + 25),
    ),
    "jagged linear": (
        lambda x, w, b: functional.linear(jagged(x), w, b).values(),
        functional.linear,
        [(8, 4), (6, 4), (6,)],
        3,
        3 * 2 * 8 * 4 * 6,
    ),
    "jagged matmul": (
        lambda x, w: (jagged(x) @ w).values(),
        torch.matmul,
        [(8, 4), (4, 6)],
        None,
        3 * 2 * 8 * 4 * 6,
    ),
    "linear": (
        lambda x, w, b: flat(functional.linear(strided(x), w, b)),
        lambda x, w, b: functional.linear(x, w, b).flatten(),
        [(8, 4), (6, 4), (6,)],
        3,
        3 * 2 * 8 * 4 * 6,
    ),
    "linear of three axes": (
        lambda x, w: flat(functional.linear(strided(x), w)),
        lambda x, w: functional.linear(x, w).flatten(),
        [(8, 2, 4), (6, 4)],
        3,
        3 * 2 * 16 * 4 * 6,
    ),
    "matmul": (
        lambda a, b: flat(strided(a) @ strided(b).transpose(1, 2)),
        blocks(lambda x, y: x @ y.mT),
        [(8, 4), (8, 4)],
        6,
        3 * 2 * 4 * (9 + 25),
    ),
    "bmm": (
        lambda a, b: flat(torch.bmm(strided(a).transpose(1, 2), strided(b))),
        blocks(lambda x, y: x.mT @ y),
        [(8, 4), (8, 6)],
        6,
        3 * 2 * 4 * 6 * 8,
    ),
    "matmul of four axes": (
        lambda a, b: flat(strided(a).transpose(1, 2) @ strided(b).transpose(1, 2).transpose(2, 3)),
        blocks(lambda x, y: x.transpose(0, 1) @ y.permute(1, 2, 0)),
        [(8, 2, 4), (8, 2, 4)],
        6,
        3 * 2 * 2 * 4 * (9 + 25),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_nested_products_and_their_gradients_are_taken(name):
    program, reference, shapes, calls, flops = PROGRAMS[name]
    exact = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    leaves = [x.detach().float().requires_grad_() for x in exact]
    want = reference(*exact)
    cotangent = randn(*want.shape, seed=9)
    want.backward(cotangent)
    with sat.offload("golden", precision="fp32") as report:
        got = program(*leaves)
        got.backward(cotangent.float())
    assert (report.coverage, report.flops) == (1.0, flops)
    assert calls in (None, report.calls)
    assert (got - want).abs().max() < 1e-5
    for leaf, double in zip(leaves, exact, strict=True):
        assert (leaf.grad - double.grad).abs().max() < 1e-5


@pytest.mark.parametrize("name", PROGRAMS)
def test_nested_products_without_gradients(name):
    program, reference, shapes, _, flops = PROGRAMS[name]
    exact = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    for context in (torch.no_grad, torch.inference_mode):
        with context(), sat.offload("golden", precision="fp32") as report:
            got = program(*(x.float() for x in exact))
        assert (report.coverage, report.flops) == (1.0, flops / 3)
        assert (got - reference(*exact)).abs().max() < 1e-5


def test_multihead_attention_on_jagged_tensors_raises_as_torch_does():
    """Torch has no such path outside of its fused kernels, with or without a device."""
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), jagged(randn(8, 8).float())
    for context in (torch.no_grad(), sat.offload("golden")):
        with context, pytest.raises(AssertionError, match="fast path"):
            layer(x, x, x, need_weights=False)


WRONG = {
    "one nested": lambda x, y: x @ randn(4, 5).float(),
    "depths": lambda x, y: x @ y,
    "other nested": lambda x, y: randn(2, 4, 4).float() @ y,
    "weight": lambda x, y: functional.linear(x, randn(6, 5).float()),
    "bmm": lambda x, y: torch.bmm(x, y),
    "mm": lambda x, y: torch.mm(x, y),
    "fewer pieces": lambda x, y: x @ torch.nested.as_nested_tensor([randn(4, 2).float()]),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_of_nested_products_are_torchs_own(name):
    x, y = strided(randn(8, 4).float()), strided(randn(8, 6).float())
    with pytest.raises(RuntimeError) as plain:
        WRONG[name](x, y)
    with sat.offload("golden") as report, pytest.raises(RuntimeError) as ours:
        WRONG[name](x, y)
    assert str(ours.value) == str(plain.value)
    assert report.calls == 0
