"""NoProp: levels by their algebra, losses by hand, isolation, chains by their law, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sat
from sat.methods.noprop import (
    DenoiseBlock,
    DiffusionLevels,
    LearnedLevels,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    label_embedding,
    saved_activation_bytes,
    train_backprop,
)
from sat.methods.noprop.demo import build, conditioned, exact_loss, load, small_chain

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


class Recorder(nn.Module):
    """A block that keeps what it was given, and answers by a fixed product."""

    def __init__(self, d, outputs, seed=0):
        super().__init__()
        self.weight = nn.Parameter(normal(d, outputs, seed=seed))
        self.seen = []

    def forward(self, z, x, time=None):
        self.seen.append((z.detach(), x, time))
        return torch.tanh(z @ self.weight) + x.mean(1, keepdim=True)


def recorded(T=3, d=4, classes=3, eta=0.1):
    blocks = [Recorder(d, classes, seed=t) for t in range(T)]
    model = NoPropDT(blocks, nn.Parameter(normal(classes, d, seed=9)), DiffusionLevels(T), eta)
    return model.double()


def small(T=3, **given):
    torch.manual_seed(0)
    blocks = [DenoiseBlock((5,), 4, 3, hidden=8) for _ in range(T)]
    embedding = label_embedding("learned", 3, 4, generator=seeded())
    return NoPropDT(blocks, embedding, DiffusionLevels(T), **given)


def batch(samples=12, seed=0):
    x = torch.randn(samples, 5, generator=seeded(seed))
    return x, torch.arange(samples) % 3


# ------------------------------------------------------------------------------------------ levels


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=8, unique=True))
def test_steps_are_the_conditional_law(abar):
    abar = np.sort(abar)
    if np.diff(abar).min() < 1e-3:
        return
    levels = DiffusionLevels.of(abar.tolist())
    a, b, c = (each.numpy() for each in (levels.a, levels.b, levels.c))
    *known, other = conditioned(abar)
    for ours, theirs in zip((a, b, c), known, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert other < 1e-9  # z_t depends on z_{t-1} alone
    # A step keeps the marginals: means sqrt(abar) u, variances 1 - abar.
    np.testing.assert_allclose(a + b * np.sqrt(abar[:-1]), np.sqrt(abar[1:]), atol=1e-12)
    np.testing.assert_allclose(b**2 * (1 - abar[:-1]) + c, 1 - abar[1:], atol=1e-12)
    np.testing.assert_allclose(a**2 / c, levels.snr_weight.numpy(), rtol=1e-9)


def test_cosine_is_clipped_at_its_ends():
    levels = DiffusionLevels(10)
    assert levels.abar.dtype == F64 and levels.abar.shape == (11,) and levels.a.shape == (10,)
    assert float(levels.abar[0]) == 1e-3 and float(levels.abar[-1]) == 0.99

    def cosine(left):
        return math.cos((left + 0.008) / 1.008 * math.pi / 2) ** 2

    assert float(levels.abar[4]) == pytest.approx(cosine(0.6) / cosine(0), rel=1e-14)
    assert float(levels.snr[-1]) == pytest.approx(99)
    assert float(levels.snr_weight.sum()) == pytest.approx(99 - 1e-3 / 0.999)


def test_noise_is_drawn_by_its_level_and_gradients_pass():
    levels, u = DiffusionLevels(4), torch.tensor([[2.0, -1.0]], dtype=F64).repeat(40_000, 1)
    u.requires_grad_()
    z = levels.posterior_sample(2, u, seeded())
    abar = float(levels.abar[2])
    error = 4 / math.sqrt(len(u))
    means, deviations = z.detach().mean(0), z.detach().std(0)
    for got, mean in zip(means.tolist(), (2 * math.sqrt(abar), -math.sqrt(abar)), strict=True):
        assert got == pytest.approx(mean, abs=error)
    for got in deviations.tolist():
        assert got == pytest.approx(math.sqrt(1 - abar), abs=error)
    z.sum().backward()
    torch.testing.assert_close(u.grad, torch.full_like(u, math.sqrt(abar)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99))
def test_learned_levels_increase_between_their_ends(seed):
    levels = LearnedLevels(5).double()
    with torch.no_grad():
        for name, parameter in levels.named_parameters():
            if name not in ("g0", "span"):
                parameter.copy_(2 * normal(*parameter.shape, seed=seed))
    t = torch.linspace(0, 1, 41, dtype=F64).requires_grad_()
    abar, slope = levels(t)
    assert bool((abar.diff() > 0).all())
    first, last = abar.detach()[[0, -1]].tolist()
    assert (first, last) == pytest.approx((1e-3, 0.99), rel=1e-5)  # kept in float32 at first
    (by_autograd,) = torch.autograd.grad((abar / (1 - abar)).sum(), t)
    torch.testing.assert_close(slope, by_autograd, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------- one block


@pytest.mark.parametrize("t", [1, 2, 3])
def test_loss_is_the_formula_on_level_t_minus_1(t):
    model, x, y = recorded(), normal(6, 2, seed=5), torch.tensor([0, 1, 2, 2, 0, 1])
    loss, parts = model.block_loss(t, x, y, seeded(3))
    draws = seeded(3)
    first, second = (torch.randn(6, 4, generator=draws, dtype=F64) for _ in range(2))
    u, abar = model.labels.W_embed.detach()[y], model.levels.abar
    noisy = abar[t - 1].sqrt() * u + (1 - abar[t - 1]).sqrt() * first
    (seen, *_), *more = model.blocks[t - 1].seen
    torch.testing.assert_close(seen, noisy)
    assert not more and all(not b.seen for i, b in enumerate(model.blocks, 1) if i != t)

    # The rest in numpy.
    w, rows = model.blocks[t - 1].weight.detach().numpy(), model.labels.W_embed.detach().numpy()
    logits = np.tanh(noisy.numpy() @ w) + x.numpy().mean(1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    square = ((shares @ rows - u.numpy()) ** 2).sum(1).mean()
    snr = abar.numpy() / (1 - abar.numpy())
    weight = 3 / 2 * 0.1 * (snr[t] - snr[t - 1])
    clean = (abar[3].sqrt() * u + (1 - abar[3]).sqrt() * second).numpy()
    head = model.labels.head
    out = clean @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    wrong = (np.log(np.exp(out).sum(1)) - out[range(6), y]).mean()
    start = float(abar[0])
    kl = (start * (u.numpy() ** 2).sum(1) - 4 * start - 4 * math.log(1 - start)).mean() / 2
    assert float(loss.detach()) == pytest.approx(wrong + kl + weight * square, rel=1e-12)
    expected = {"cross_entropy": wrong, "kl": kl, "square": square, "weight": weight}
    assert parts == pytest.approx(expected, rel=1e-12)


def test_kl_is_torchs():
    from sat.methods.noprop.model import prior_kl

    u, abar = normal(5, 3), 0.3
    q = torch.distributions.Normal(math.sqrt(abar) * u, math.sqrt(1 - abar))
    known = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(prior_kl(u, abar), known)


@pytest.mark.parametrize("device", [None, "golden"])
def test_a_step_leaves_other_blocks_bit_for_bit(device):
    model, (x, y) = small(), batch()
    optimizers = model.optimizers()
    model.train()
    for t in (1, 2, 3):
        model.step(t, x, y, optimizers, seeded())

    def bits(t):
        state = optimizers.blocks[t - 1].state_dict()["state"]
        kept = [*model.blocks[t - 1].state_dict().values()]
        kept += [value for moments in state.values() for value in moments.values()]
        return b"".join(tensor.numpy().tobytes() for tensor in kept)

    before, shared = [bits(t) for t in (1, 2, 3)], model.labels.W_embed.detach().clone()
    if device:
        with sat.offload(device) as report:
            model.step(2, x, y, optimizers, seeded(1))
        assert report.coverage == 1
    else:
        model.step(2, x, y, optimizers, seeded(1))
    assert [bits(t) == before[t - 1] for t in (1, 2, 3)] == [True, False, True]
    assert not torch.equal(model.labels.W_embed, shared)


def test_scaled_gradients_are_the_plain_ones():
    model, (x, y) = small().eval(), batch()
    for t in (1, 3):
        block = model.blocks[t - 1]
        model.step(t, x, y, model.optimizers(lr=0.0, weight_decay=0.0), seeded(t))
        got = [p.grad.clone() for p in block.parameters()]
        model.zero_grad()
        model.block_loss(t, x, y, seeded(t))[0].backward()
        for mine, parameter in zip(got, block.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-7)


def test_block_shapes_and_sizes():
    digits = load(0)
    chain = build(0, digits)
    assert sum(p.numel() for p in chain.parameters()) == 231_470
    picture = DenoiseBlock((1, 28, 28), 20, 10, hidden=32)
    assert picture(torch.randn(2, 20), torch.randn(2, 1, 28, 28)).shape == (2, 10)
    kernels = [layer.weight.shape for layer in picture.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)]
    timed = DenoiseBlock((5,), 4, 4, hidden=8, time=6)
    assert timed(torch.randn(3, 4), torch.randn(3, 5), torch.randn(3, 6)).shape == (3, 4)


# ------------------------------------------------------------------------------------------- chain


def test_chain_steps_by_a_b_c():
    model, x = recorded(), normal(5, 2)
    states, logits = model.chain(x, seeded(4))
    draws = seeded(4)
    z = torch.randn(5, 4, generator=draws, dtype=F64)
    for t in range(1, 4):
        torch.testing.assert_close(states[t - 1], z)
        uhat = logits[t - 1].softmax(1) @ model.labels.W_embed
        noise = torch.randn(5, 4, generator=draws, dtype=F64)
        a, b, c = (each[t - 1] for each in (model.levels.a, model.levels.b, model.levels.c))
        z = a * uhat + b * z + c.sqrt() * noise
    torch.testing.assert_close(states[3], z)
    torch.testing.assert_close(model(x, seeded(4)), model.labels.head(z))
    quiet, _ = model.chain(x, noise=False)
    assert not quiet[0].any()
    torch.testing.assert_close(model(x, noise=False), model.labels.head(quiet[-1]))


def test_a_chain_that_knows_the_label_ends_in_q():
    """With a single label uhat is u, and z_T has q's law but for the start, N(0, I) for q(z_0)."""
    u = torch.tensor([[1.5, -0.5]], dtype=F64)
    model = NoPropDT([Recorder(2, 1) for _ in range(4)], u, DiffusionLevels(4)).double()
    states, _ = model.chain(normal(40_000, 2), seeded())
    abar, carry = model.levels.abar, float(model.levels.b.prod())
    mean = abar[-1].sqrt() * u[0] - carry * abar[0].sqrt() * u[0]
    variance = float(1 - abar[-1]) + carry**2 * float(abar[0])
    error = 4 * math.sqrt(variance / 40_000)
    torch.testing.assert_close(states[-1].mean(0), mean, rtol=0, atol=error)
    for got in states[-1].var(0).tolist():
        assert got == pytest.approx(variance, rel=0.03)


def test_blocks_name_labels_by_logit_or_embedding():
    """A label whose embedding is the mean of others is never the largest logit."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])

    class Middle(nn.Module):
        def forward(self, z, x):
            return torch.tensor([2.0, 2.0, 0.0]).expand(len(x), 3)

    model = NoPropDT([Middle()], rows, DiffusionLevels(1))
    x = torch.zeros(4, 1)
    assert model.block_predictions(x).tolist() == [[0] * 4]
    assert model.block_predictions(x, by="embedding").tolist() == [[2] * 4]


def test_exact_loss_is_what_chains_do_on_average():
    model = small_chain(seeded(2))
    x = normal(1, 2)
    with torch.no_grad():
        share = model(x.expand(40_000, -1), seeded()).softmax(1)[:, 0]
    error = float(share.std()) / math.sqrt(len(share)) / float(share.mean())
    assert exact_loss(model, x, 0) == pytest.approx(-math.log(float(share.mean())), abs=4 * error)


def test_bound_is_above_the_exact_loss_and_the_mean_of_blocks():
    generator = seeded(1)
    for _ in range(3):
        model, x = small_chain(generator), normal(1, 2)
        y = torch.zeros(4000, dtype=torch.int64)
        bound = model.bound(x.expand(4000, -1), y, generator)
        assert float(bound.mean()) > exact_loss(model, x, 0)
        model.eta = 1.0
        many = x.expand(4000, -1)
        losses = [float(model.block_loss(t, many, y, generator)[0].detach()) for t in (1, 2)]
        error = 5 * float(bound.std()) / math.sqrt(4000)
        assert sum(losses) / 2 == pytest.approx(float(bound.mean()), abs=error + 1e-12)
    twice = model.bound(x, y[:1], seeded(), draws=2)
    assert twice.shape == (1,) and bool(twice.isfinite())


# ------------------------------------------------------------------------------------- embeddings


def test_embeddings_start_as_named():
    fixed = label_embedding("onehot", 4, 4)
    assert torch.equal(fixed, torch.eye(4)) and not fixed.requires_grad
    learned = label_embedding("learned", 4, 9, generator=seeded())
    torch.testing.assert_close(learned @ learned.mT, torch.eye(4), atol=1e-6, rtol=0)
    assert learned.requires_grad
    assert torch.equal(learned, label_embedding("learned", 4, 9, generator=seeded()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=0, max_size=12), st.integers(0, 50))
def test_prototypes_are_the_middle_of_their_class(labels, seed):
    y = torch.tensor([0, 1, 2, *labels])
    x = torch.randn(len(y), 3, generator=seeded(seed))
    rows = label_embedding("prototype", 3, 3, x, y)
    for label in range(3):
        own = x[y == label].numpy()
        medians = [
            np.median([np.linalg.norm(p - q) for j, q in enumerate(own) if j != i])
            if len(own) > 1 else 0.0
            for i, p in enumerate(own)
        ]  # fmt: skip
        chosen = [i for i, p in enumerate(own) if np.array_equal(p, rows[label].detach().numpy())]
        assert chosen and medians[chosen[0]] == pytest.approx(min(medians), abs=1e-5)


# ---------------------------------------------------------------------------------------- training


def separable(samples=60):
    y = torch.arange(samples) % 3
    x = torch.randn(samples, 5, generator=seeded()) * 0.3
    x[torch.arange(samples), y] += 2
    return x, y


def test_both_trainings_learn():
    x, y = separable()
    for train in (lambda m: m.fit, lambda m: lambda *a, **k: train_backprop(m, *a, **k)):
        model, seen = small(), []
        more = {"on_epoch": seen.append} if model is not None and train(model) == model.fit else {}
        curve = train(model)(x, y, epochs=40, batch=20, lr=5e-3, generator=seeded(), **more)
        assert len(curve) == 40 and curve[-1] < curve[0] and not model.training
        with torch.no_grad():
            hits = (model(x, seeded()).argmax(1) == y).double().mean()
        assert hits > 0.9 and seen in ([], list(range(1, 41)))


def test_fixed_embeddings_stay():
    torch.manual_seed(0)
    blocks = [DenoiseBlock((5,), 3, 3, hidden=8)]
    model = NoPropDT(blocks, label_embedding("onehot", 3, 3), DiffusionLevels(1))
    model.fit(*separable(), epochs=1, batch=20, generator=seeded())
    assert torch.equal(model.labels.W_embed, torch.eye(3))


def test_collapse_is_named():
    model = small()
    with torch.no_grad():
        model.labels.W_embed[2] = model.labels.W_embed[1]
    with pytest.raises(RuntimeError, match="labels 1 and 2 are .* apart"):
        model.fit(*separable(), epochs=1, batch=20, lr=0.0, generator=seeded())


def test_infinite_losses_change_no_weight():
    model, (x, y) = small(), batch()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="block 2: the loss is nan"):
        model.step(2, x * math.inf, y, model.optimizers(), seeded())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_kept_bytes_are_counted_once():
    a = torch.randn(100, requires_grad=True)
    assert saved_activation_bytes(lambda: a.exp().sum()) == 400
    assert saved_activation_bytes(lambda: a.exp().exp().sum()) == 800
    b = torch.randn(100)
    assert saved_activation_bytes(lambda: (a * b).sum() + (a * b[:50].repeat(2)).sum(), [b]) == 400
    assert saved_activation_bytes(lambda: (a * b).sum(), [b]) == 0


def test_memory_of_a_step_does_not_grow_with_the_chain():
    kept = []
    for T in (2, 8):
        model, (x, y) = small(T), batch()
        there = [*model.parameters(), *model.buffers(), x]
        through = saved_activation_bytes(
            lambda m=model, x=x, y=y: functional.cross_entropy(m(x, seeded()), y), there
        )
        one = saved_activation_bytes(
            lambda m=model, x=x, y=y: m.block_loss(2, x, y, seeded())[0], there
        )
        kept.append((through, one))
    assert kept[0][1] == kept[1][1] and kept[1][0] > 3.5 * kept[0][0]


def test_hidden_layers_can_be_sparse():
    digits = load(0)
    model = build(0, digits, blocks=1)
    layers = {r.name: r.pattern for r in sat.sparsify_(model, "bdwp", "2:8").layers}
    pruned = [name for name, pattern in layers.items() if pattern == "2:8"]
    assert len(pruned) == 5  # input twice, z twice, joined
    assert layers["labels.head"] == "dense" and layers["blocks.0.join.3"] == "dense"


# ------------------------------------------------------------------------------- continuous time


class Timed(Recorder):
    """Answers as its parent, time's embedding added up."""

    def forward(self, z, x, time=None):
        return super().forward(z, x, time) + time.mean(1, keepdim=True)


def test_ct_loss_is_the_formula():
    network = Timed(4, 3)
    model = NoPropCT(network, nn.Parameter(normal(3, 4, seed=9)), eta=0.7).double()
    x, y = normal(5, 2), torch.tensor([0, 1, 2, 1, 0])
    loss, parts = model.loss(x, y, seeded(8))
    draws = seeded(8)
    t = torch.rand(5, generator=draws, dtype=F64)
    clean, noise = (torch.randn(5, 4, generator=draws, dtype=F64) for _ in range(2))
    u = model.labels.W_embed.detach()[y]
    with torch.no_grad():
        abar, slope = model.levels(t)
        (first, last), _ = model.levels(torch.tensor([0.0, 1.0], dtype=F64))
        z = abar.sqrt()[:, None] * u + (1 - abar).sqrt()[:, None] * noise
        uhat = network(z, x, model.times(1000 * t[:, None])).softmax(1) @ model.labels.W_embed
        denoising = 0.35 * (slope * (uhat - u).square().sum(1)).mean()
        out = model.labels.head(last.sqrt() * u + (1 - last).sqrt() * clean)
        wrong = functional.cross_entropy(out, y)
        kl = (first * u.square().sum(1) - 4 * first - 4 * (1 - first).log()).mean() / 2
    torch.testing.assert_close(network.seen[0][0], z)
    expected = {"cross_entropy": float(wrong), "kl": float(kl), "denoising": float(denoising)}
    assert parts == pytest.approx(expected, rel=1e-9)
    assert float(loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-9)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.levels.parameters())


@pytest.mark.parametrize("method,order", [("euler", 1), ("heun", 2)])
def test_ct_flow_to_a_single_label_converges(method, order):
    u = normal(1, 3, seed=2)
    model = NoPropCT(Timed(3, 1), u).double()
    z, x = normal(6, 3), normal(6, 2)
    with torch.no_grad():
        (first, last), _ = model.levels(torch.tensor([0.0, 1.0], dtype=F64))
        shrink = ((1 - last) / (1 - first)).sqrt()
        known = last.sqrt() * u + shrink * (z - first.sqrt() * u)
        errors = [float((model.integrate(z, x, n, method) - known).abs().max()) for n in (100, 200)]
    assert errors[1] < 0.05 and math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_fm_loss_is_the_formula_and_straight_lines_are_followed():
    network = Timed(4, 4)
    model = NoPropFM(network, nn.Parameter(normal(3, 4, seed=9)), sigma=0.2).double()
    x, y = normal(5, 2), torch.tensor([0, 1, 2, 1, 0])
    loss, parts = model.loss(x, y, seeded(8))
    draws = seeded(8)
    t = torch.rand(5, generator=draws, dtype=F64)[:, None]
    start, small = (torch.randn(5, 4, generator=draws, dtype=F64) for _ in range(2))
    u = model.labels.W_embed.detach()[y]
    z = t * u + (1 - t) * start + 0.2 * small
    with torch.no_grad():
        v = network(z, x, model.times(1000 * t))
        square = (v - (u - start)).square().sum(1).mean()
        wrong = functional.cross_entropy(model.labels.head(z + (1 - t) * v), y)
    expected = {"square": float(square), "cross_entropy": float(wrong)}
    assert parts == pytest.approx(expected, rel=1e-12)
    assert float(loss.detach()) == pytest.approx(float(square + wrong), rel=1e-12)

    class Straight(nn.Module):
        def forward(self, z, x, time):
            return x

    rows = torch.eye(4, dtype=F64)
    fixed = NoPropFM(Straight(), rows)
    for method in ("euler", "heun"):
        end = fixed.integrate(torch.zeros(3, 4, dtype=F64), 0.9 * rows[:3], 7, method)
        torch.testing.assert_close(end, 0.9 * rows[:3])
    assert fixed.read(0.9 * rows).argmax(1).tolist() == [0, 1, 2, 3]
    assert set(fixed.loss(normal(2, 4), torch.tensor([0, 1]))[1]) == {"square"}


@pytest.mark.parametrize("kind", [NoPropCT, NoPropFM])
def test_continuous_models_learn(kind):
    x, y = separable()
    torch.manual_seed(0)
    outputs = 3 if kind is NoPropCT else 4
    network = DenoiseBlock((5,), 4, outputs, hidden=16, time=64)
    model = kind(network, label_embedding("learned", 3, 4, generator=seeded()))
    curve = model.fit(x, y, epochs=60, batch=20, lr=5e-3, generator=seeded())
    assert curve[-1] < curve[0] and not model.training
    with torch.no_grad():
        hits = model(x, seeded(), steps=20).argmax(1) == y
    assert float(hits.double().mean()) > 0.9


# --------------------------------------------------------------------------------------- bad input


class Wide(nn.Module):
    def forward(self, z, x, time=None):
        return torch.zeros(len(x), 7)


def wide():
    return NoPropDT([Wide()], torch.eye(3), DiffusionLevels(1))


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: DiffusionLevels(0), ValueError, "T=0: must be"),
        (
            lambda: NoPropDT([Wide()], torch.eye(3) / 0, DiffusionLevels(1)), ValueError,
            "W_embed has infinities or NaNs",
        ),
        (lambda: DiffusionLevels(3, "linear"), ValueError, "kind='linear': must be 'cosine'"),
        (lambda: DiffusionLevels(40), ValueError, "abar_38 = 0.99, .*must increase; take fewer"),
        (lambda: DiffusionLevels(3, low=0.0), ValueError, "low=0.0, high=0.99: must be 0 < low"),
        (lambda: DiffusionLevels(3, high=1.0), ValueError, "low=0.001, high=1.0: must be 0 < low"),
        (lambda: DiffusionLevels.of([0.2, 1.0]), ValueError, r"must lie within \(0, 1\)"),
        (lambda: DiffusionLevels.of([0.2, 0.1]), ValueError, "abar_0 = 0.2, abar_1 = 0.1: must"),
        (lambda: DiffusionLevels.of([0.2, math.nan]), ValueError, "must lie within"),
        (lambda: DiffusionLevels.of([0.2]), ValueError, r"must be \(T \+ 1,\)"),
        (
            lambda: DiffusionLevels(3).posterior_sample(4, torch.zeros(1, 2), None), IndexError,
            "level=4: must be within 0 to 3",
        ),
        (lambda: LearnedLevels(low=0.5, high=0.5), ValueError, "must be 0 < low < high < 1"),
        (lambda: small(eta=0.0), ValueError, "eta=0.0: must be positive"),
        (lambda: small(eta=math.inf), ValueError, "eta=inf: must be positive"),
        (lambda: NoPropDT([], torch.eye(2), DiffusionLevels(1)), ValueError, "0 blocks for T=1"),
        (lambda: NoPropCT(Wide(), torch.eye(2), eta=-1.0), ValueError, "eta=-1.0"),
        (lambda: NoPropFM(Wide(), torch.eye(2), sigma=-1.0), ValueError, "sigma=-1.0"),
        (lambda: NoPropFM(Wide(), torch.arange(3)), ValueError, "must be .classes, d. of floats"),
        (lambda: small().block_loss(0, *batch()), IndexError, "t=0: must be within 1 to 3"),
        (lambda: small().block_loss(4, *batch()), IndexError, "t=4: must be within 1 to 3"),
        (
            lambda: small().step(4, *batch(), small().optimizers()), IndexError,
            "t=4: must be within 1 to 3",
        ),
        (lambda: small().optimizers(lr=-1.0), ValueError, "lr=-1.0: must be finite"),
        (
            lambda: small().block_loss(1, batch()[0], batch()[1] + 1), ValueError,
            "labels from 1 to 3: must be 0 to 2",
        ),
        (
            lambda: small().block_loss(1, batch()[0], batch()[1].float()), ValueError,
            "y has dtype torch.float32: labels must be integers",
        ),
        (
            lambda: small().block_loss(1, batch()[0], batch()[1][:3]), ValueError,
            r"y has shape \(3,\): must be \(12,\)",
        ),
        (lambda: small().block_loss(1, *batch(1)), ValueError, "a batch of one in training"),
        (
            lambda: small().fit(*batch(), batch=11, generator=seeded()), ValueError,
            "12 samples in batches of 11 leave a batch of one",
        ),
        (
            lambda: train_backprop(small(), *batch(), batch=11, generator=seeded()), ValueError,
            "leave a batch of one",
        ),
        (lambda: small().fit(*batch(), epochs=0, generator=seeded()), ValueError, "epochs=0"),
        (lambda: small().bound(*batch(), draws=0), ValueError, "draws=0"),
        (lambda: small().block_predictions(batch()[0], by="x"), ValueError, "by='x': must be"),
        (
            lambda: wide().block_loss(1, *batch()), ValueError,
            r"block 1 returns \(12, 7\): must be \(12, 3\)",
        ),
        (lambda: wide()(batch()[0]), ValueError, r"block 1 returns \(12, 7\)"),
        (
            lambda: NoPropCT(Wide(), torch.eye(3)).loss(*batch()), ValueError,
            r"the network returns \(12, 7\): must be \(12, 3\)",
        ),
        (
            lambda: NoPropCT(Wide(), torch.eye(3))(batch()[0], method="rk4"), ValueError,
            "method='rk4': must be one of heun, euler",
        ),
        (lambda: NoPropCT(Wide(), torch.eye(3))(batch()[0], steps=0), ValueError, "steps=0"),
        (lambda: label_embedding("onehot", 3, 4), ValueError, "d=4 with onehot: must be .* 3"),
        (lambda: label_embedding("zeros", 3, 4), ValueError, "kind='zeros': must be one of"),
        (lambda: label_embedding("prototype", 3, 4), ValueError, "give x and y"),
        (
            lambda: label_embedding("prototype", 3, 4, *batch()), ValueError,
            "d=4 with prototype: must be the size of an input, 5",
        ),
        (
            lambda: label_embedding("prototype", 4, 5, *batch()), ValueError,
            "class 3 has no training input",
        ),
        (lambda: DenoiseBlock((4, 4), 2, 2), ValueError, r"in_shape=\(4, 4\): must be"),
        (lambda: DenoiseBlock((1, 7, 9), 2, 2), ValueError, "sides of at least 8"),
        (lambda: DenoiseBlock((0,), 2, 2), ValueError, r"in_shape\[0\]=0"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
