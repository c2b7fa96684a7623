"""What several methods are judged on: text, the small GPT and its training, Newton-Schulz."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sat
from sat.methods.problems.gpt import (
    GPT,
    cross_entropy,
    held_out_loss,
    make_gpt,
    schedule,
    train_gpt,
)
from sat.methods.problems.orthogonal import newton_schulz
from sat.methods.problems.parameters import split_parameters
from sat.methods.problems.rounding import FLOAT64_PRODUCTS, product_bound, product_error
from sat.methods.problems.scaling import LOSS_SCALE, scaled_backward
from sat.methods.problems.text import TEST_SHARE, Text, load_text
from sat.methods.problems.training import fit

# ------------------------------------------------------------------------------------ text


def test_text_is_ascii_and_its_end_is_held_out():
    from pydoc_data.topics import topics

    text = load_text()
    whole = "".join(c for topic in topics.values() for c in topic if ord(c) < 128)
    numbers = torch.cat([text.train, text.test])
    assert "".join(text.symbols[n] for n in numbers.tolist()) == whole
    assert list(text.symbols) == sorted(set(whole))
    assert len(text.test) == int(TEST_SHARE * len(whole)) and len(text.train) > 300_000
    assert load_text() is text


def test_batches_follow_the_text():
    numbers = torch.arange(50)
    text = Text(numbers[:30], numbers[30:], "")
    x, y = text.batch(200, 7, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (200, 7)
    assert torch.equal(y, x + 1) and int(x.min()) == 0 and int(y.max()) == 29
    again, _ = text.batch(200, 7, torch.Generator().manual_seed(0))
    assert torch.equal(x, again)
    tests = list(text.test_batches(2, 6))
    assert [len(x) for x, _ in tests] == [2, 1]
    assert torch.cat([x for x, _ in tests]).flatten().tolist() == list(range(30, 48))
    assert all(torch.equal(y, x + 1) for x, y in tests)


# ------------------------------------------------------------------------------------- GPT


def test_normalisations_have_biases_where_asked():
    """They give what the matrices read a mean, and no matrix a bias."""
    plain, biased = (make_gpt(0, width=8, heads=2, norm_bias=given) for given in (False, True))
    names = {name for name, _ in biased.named_parameters()}
    assert names - {name for name, _ in plain.named_parameters()} == {
        "norm.bias", *(f"blocks.{i}.norm{k}.bias" for i in (0, 1) for k in (1, 2))
    }  # fmt: skip
    x = torch.arange(12).view(2, 6)
    assert torch.equal(plain(x), biased(x))  # biases start at 0
    nn.init.constant_(biased.blocks[0].norm1.bias, 0.5)
    read = []
    biased.blocks[0].query.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    biased(x)
    assert torch.allclose(read[0].mean(), torch.tensor(0.5), atol=1e-6)


def test_gpt_is_causal_and_has_the_matrices_it_should():
    torch.manual_seed(0)
    model = GPT(11, width=16, layers=2, heads=4, context=12)
    matrices, rest = split_parameters(model)
    assert len(matrices) == 12 and len(rest) == 8
    assert sum(p.numel() for p in matrices) == 2 * 12 * 16**2
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    x = torch.randint(11, (3, 12))
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 11
    a, b = model(x), model(changed)
    assert a.shape == (3, 12, 11)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])
    torch.testing.assert_close(model(x[:, :5]), a[:, :5])
    with pytest.raises(ValueError, match="width=10: must be a multiple of heads=4"):
        GPT(11, width=10)


def test_gpt_starts_as_asked():
    """Deviations of all matrices within 4 standard errors; embeddings alike with either."""

    def off(weight, std):
        return abs(float(weight.std()) / std - 1) * math.sqrt(2 * weight.numel())

    for init in ("gpt2", "linear"):
        torch.manual_seed(0)
        model = GPT(90, init=init)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                continue
            if name in ("token.weight", "place.weight"):
                std = 0.02
            elif init == "gpt2":
                std = 0.02 / (2 if name.endswith(("out.weight", "down.weight")) else 1)
            else:
                std = 1 / math.sqrt(3 * weight.shape[1])
                assert float(weight.detach().abs().max()) <= 1 / math.sqrt(weight.shape[1])
            assert off(weight.detach(), std) < 4, name
    with pytest.raises(ValueError, match="init='normal': must be one of gpt2, linear"):
        GPT(11, init="normal")


def test_gpt_against_numpy():
    """One block by hand: norms, heads, mask, gelu, residuals, in float64."""
    torch.manual_seed(1)
    model = GPT(9, width=8, layers=1, heads=2, context=6).double()
    x = torch.randint(9, (1, 5))
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    h = w["token.weight"][x[0].numpy()] + w["place.weight"][:5]

    def norm(h, scale):
        centred = h - h.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale

    y = norm(h, w["blocks.0.norm1.weight"])
    mixed = np.zeros((5, 8))
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = (y @ w[f"blocks.0.{n}.weight"].T[:, head] for n in ("query", "key", "value"))
        for t in range(5):
            scores = np.exp(k[: t + 1] @ q[t] / 2)
            mixed[t, head] = scores / scores.sum() @ v[: t + 1]
    h = h + mixed @ w["blocks.0.out.weight"].T
    up = norm(h, w["blocks.0.norm2.weight"]) @ w["blocks.0.up.weight"].T
    gelu = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
    h = h + gelu @ w["blocks.0.down.weight"].T
    logits = norm(h, w["norm.weight"]) @ w["head.weight"].T
    np.testing.assert_allclose(model(x)[0].detach().numpy(), logits, rtol=1e-10, atol=1e-12)


def test_schedule_has_its_corners():
    assert schedule(0, 300) == 1 / 20 and schedule(19, 300) == 1
    assert schedule(20, 300) == schedule(165, 300) == 1
    assert schedule(300, 300) == pytest.approx(0.1)
    assert schedule(232, 300) == pytest.approx(1 - 0.9 * (232 - 165) / 135)
    assert schedule(5, 10, warmup=0, flat=0.5, final=0.0) == 1
    assert schedule(9, 10, warmup=0, flat=0.5, final=0.0) == pytest.approx(0.2)


def test_training_is_plain_and_repeats():
    """The loop against one written out, whose optimisers see the same gradients."""
    sizes = {"width": 16, "layers": 1, "heads": 2, "context": 16}

    def make(matrices):
        return torch.optim.SGD(matrices, lr=0.5)

    trained = train_gpt(
        make, seed=3, steps=4, batch=2, context=16, model=make_gpt(3, **sizes), curve_every=2
    )
    model, text, order = make_gpt(3, **sizes), load_text(), torch.Generator().manual_seed(3)
    matrices, rest = split_parameters(model)
    adamw = torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0)
    losses = []
    for step in range(4):
        x, y = text.batch(2, 16, order)
        for parameter in model.parameters():
            parameter.grad = None
        loss = cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        adamw.param_groups[0]["lr"] = 3e-3 * schedule(step, 4)
        adamw.step()
        with torch.no_grad():
            for matrix in matrices:
                matrix -= 0.5 * schedule(step, 4) * matrix.grad
    torch.testing.assert_close(trained.losses, losses, rtol=1e-6, atol=0)
    for ours, theirs in zip(trained.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert [step for step, _ in trained.curve] == [2, 4]
    assert trained.loss == held_out_loss(trained.model, text, context=16)
    assert trained.curve[-1][1] == held_out_loss(trained.model, text, context=16, every=8)
    assert trained.seconds > trained.optimizer_seconds > 0


def test_held_out_loss_of_a_known_model():
    text = load_text()
    frequencies = torch.bincount(text.train, minlength=len(text.symbols)) + 1.0
    logits = (frequencies / frequencies.sum()).log()

    class Constant(nn.Module):
        def forward(self, x):
            return logits.expand(*x.shape, -1)

    seen = text.test[1 : 1 + (len(text.test) - 1) // 64 * 64]
    assert held_out_loss(Constant(), text) == pytest.approx(-float(logits[seen].mean()), rel=1e-5)


def test_loss_scale_keeps_float16_products_of_gradients():
    """Under fp16 offload gradients are those of float32 but for rounding."""
    assert math.log2(LOSS_SCALE).is_integer()
    model, text = make_gpt(0), load_text()
    x, y = text.batch(4, 64, torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        scaled_backward(cross_entropy(model(x), y), model)
        return [p.grad.clone() for p in split_parameters(model)[0]]

    exact = gradients()
    with sat.offload("golden") as report:
        rounded = gradients()
    assert report.coverage == 1
    for a, b in zip(exact, rounded, strict=True):
        assert float((a - b).norm() / a.norm()) < 5e-3


# -------------------------------------------------------------------------------- parameters


def test_a_loss_that_is_not_finite_stops_training_and_changes_nothing():
    model = nn.Linear(1, 1)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    with pytest.raises(FloatingPointError, match="epoch 1: the loss is inf: must be finite"):
        fit(
            lambda places: model.weight.sum() * math.inf, 4, optimizer, epochs=2, batch=2,
            generator=torch.Generator(),
        )  # fmt: skip
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_training_ends_when_it_is_told_to():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    seen: list[int] = []

    def watch(epoch):
        seen.append(epoch)
        return epoch == 3

    curve = fit(
        lambda places: model.weight.square().sum(), 4, optimizer, epochs=9, batch=2,
        generator=torch.Generator(), on_epoch=watch,
    )  # fmt: skip
    assert seen == [1, 2, 3] and len(curve) == 3


def test_split_finds_matrices_of_other_models():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    )
    matrices, rest = split_parameters(encoder)
    assert {p.ndim for p in matrices} == {2} and {p.ndim for p in rest} == {1}
    assert len(matrices) == 8
    plain = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    matrices, rest = split_parameters(plain)
    assert [tuple(p.shape) for p in matrices] == [(7, 6)]
    assert len(rest) == 4
    tied = nn.Module()
    tied.blocks = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 4)])
    tied.head = nn.Linear(4, 5)
    tied.head.weight = tied.blocks[0].weight
    matrices, rest = split_parameters(tied)
    assert len(matrices) == 1 and matrices[0] is tied.blocks[1].weight
    assert any(p is tied.head.weight for p in rest) and len(rest) == 4
    with pytest.raises(ValueError, match="no matrix inside a block"):
        split_parameters(nn.Linear(3, 3))


# ----------------------------------------------------------------------------- Newton-Schulz


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_newton_schulz_acts_on_singular_values_alone(rows, cols, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    u, s, v = np.linalg.svd(g.numpy() / (np.linalg.norm(g) + 1e-7), full_matrices=False)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    before = g.clone()
    np.testing.assert_allclose(newton_schulz(g, steps).numpy(), u @ np.diag(s) @ v, atol=1e-9)
    assert torch.equal(g, before)


def test_newton_schulz_at_its_ends():
    assert not newton_schulz(torch.zeros(3, 4)).any()
    huge = torch.full((3, 4), 1e30)
    torch.testing.assert_close(newton_schulz(huge), newton_schulz(torch.ones(3, 4)))
    cubic = newton_schulz(torch.eye(2, dtype=torch.float64), 1, (1.5, -0.5, 0.0))
    s = math.sqrt(0.5)
    torch.testing.assert_close(cubic, torch.eye(2).double() * (1.5 * s - 0.5 * s**3))
    for bad, error in (
        (torch.ones(3), "must be .rows, cols."),
        (torch.ones(2, 2, 2), "must be .rows, cols."),
        (torch.ones(2, 2, dtype=torch.int64), "real floating point"),
        (torch.ones(2, 2, dtype=torch.complex64), "real floating point"),
    ):
        with pytest.raises((ValueError, TypeError), match=error):
            newton_schulz(bad)
    for steps in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="steps="):
            newton_schulz(torch.ones(2, 2), steps)


def test_product_error_knows_where_products_run():
    assert product_error() < FLOAT64_PRODUCTS and product_bound(1e-12, 100) == 1e-12
    for precision, low, high in (("fp16", 1e-5, 1e-3), ("fp32", 1e-9, 2e-6)):
        with sat.offload("golden", precision=precision):
            assert low < product_error() < high
            assert product_bound(1e-10, 4) == pytest.approx(4 * product_error())
            assert product_bound(1.0, 4) == 1.0
