"""BinaryDM's signs, codes and gradients against numpy, its plans, mimicking and costs by hand."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sat
from sat.methods.binarydm import (
    BinaryConv1d,
    BinaryConv2d,
    BinaryLinear,
    LowRankMimic,
    ProgressiveSchedule,
    binarize,
    binarize_model,
    cost_report,
    default_plan,
    initial_scales,
    middle_outward,
    quantize,
    train_binary,
)
from sat.methods.binarydm.binarize import initial_step
from sat.methods.binarydm.layers import BinaryLayer
from sat.methods.pndm import DenoiserMLP, add_noise, velocity_loss

seeds = st.integers(0, 10**6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def sign(v):
    return np.where(v >= 0, 1.0, -1.0)


# ----------------------------------------------------------------------------------------- weights


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from((1, 2)), seeds)
def test_weights_and_gradients_are_their_formulas(rows, inputs, bases, seed):
    rng = np.random.default_rng(seed)
    w, g = 1.5 * rng.standard_normal((2, rows, inputs))
    w[rng.random(w.shape) < 0.1] = 0
    a1, a2 = rng.uniform(0.1, 2, (2, rows, 1))
    if bases == 1:
        a2 = 0 * a2
    weight, alpha1, alpha2 = (torch.from_numpy(x).requires_grad_() for x in (w, a1, a2))
    got = binarize(weight, alpha1, alpha2 if bases == 2 else None)
    s1, e1 = sign(w), np.abs(w) <= 1
    rest = w - a1 * s1
    s2, e2 = sign(rest), np.abs(rest) <= 1
    np.testing.assert_allclose(got.detach().numpy(), a1 * s1 + a2 * s2, rtol=1e-14)
    got.backward(torch.from_numpy(g))
    expected = a1 * e1 * g * (1 - a2 * e2) + a2 * e2 * g
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-12, atol=1e-14)
    of_a1 = (s1 * g * (1 - a2 * e2)).sum(1, keepdims=True)
    np.testing.assert_allclose(alpha1.grad.numpy(), of_a1, rtol=1e-12, atol=1e-13)
    if bases == 2:
        of_a2 = (s2 * g).sum(1, keepdims=True)
        np.testing.assert_allclose(alpha2.grad.numpy(), of_a2, rtol=1e-12, atol=1e-13)


def test_there_is_no_third_value():
    """sign(0) is +1, in both bases, and in int8."""
    w, one = torch.tensor([[0.0, -0.0, 1.0, -1.0, 0.5]]), torch.ones(1, 1)
    assert binarize(w, one).tolist() == [[1, 1, 1, -1, 1]]
    assert binarize(w, one, one / 2).tolist() == [[0.5, 0.5, 1.5, -0.5, 0.5]]
    layer = BinaryLinear.from_float(linear(w), 2)
    _, _, b1, b2 = layer.codes(torch.ones(1, 5))
    assert set(b1.unique().tolist()) | set(b2.unique().tolist()) == {-1, 1}


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 9), seeds)
def test_first_scales_are_means(rows, inputs, seed):
    w = normal(rows, inputs, seed=seed)
    alpha1, alpha2 = initial_scales(w, 2)
    for row, a1, a2 in zip(w.tolist(), alpha1.flatten(), alpha2.flatten(), strict=True):
        assert float(a1) == pytest.approx(sum(map(abs, row)) / inputs, rel=1e-12)
        left = [abs(x - math.copysign(float(a1), x)) for x in row]
        assert float(a2) == pytest.approx(sum(left) / inputs, rel=1e-12, abs=1e-15)
    # The mean is the best scale of signs, and a second basis never hurts.
    lost = [float((w - binarize(w, *initial_scales(w, bases))).norm()) for bases in (1, 2)]
    assert lost[1] <= lost[0] + 1e-12
    for nearby in (0.9, 1.1):
        assert lost[0] <= float((w - binarize(w, nearby * alpha1)).norm())


def test_share_of_normal_weights_that_is_lost():
    """sqrt(1 - 2 / pi) by one basis; by two, from the mean of the half-normal's deviation."""
    w = normal(4000, 64)
    lost = [float((w - binarize(w, *initial_scales(w, b))).norm() / w.norm()) for b in (1, 2)]
    assert lost[0] == pytest.approx(math.sqrt(1 - 2 / math.pi), abs=0.01)
    z = np.linspace(0, 12, 2_000_001)
    density = np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) * (z[1] - z[0])
    away = np.abs(z - np.sqrt(2 / np.pi))
    second = np.sum(density * away)
    expected = math.sqrt(np.sum(density * (away - second) ** 2))
    assert expected == pytest.approx(0.3612, abs=1e-4)
    assert lost[1] == pytest.approx(expected, abs=0.01)


# ------------------------------------------------------------------------------------- activations


@settings(max_examples=40)
@given(st.integers(2, 8), st.floats(0.01, 2), seeds)
def test_codes_and_their_gradients(bits, step, seed):
    x = 3 * normal(40, seed=seed)
    given_x = x.clone().requires_grad_()
    given_step = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    codes = quantize(given_x, given_step, bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    expected = [min(max(round(v / step), low), high) for v in x.tolist()]
    assert codes.tolist() == expected
    (given_step * codes).sum().backward()
    inside = [low <= v / step <= high for v in x.tolist()]
    assert given_x.grad.tolist() == pytest.approx([float(i) for i in inside])
    # LSQ: code - x / step within the range, the code at its ends.
    slope = sum(
        q - (v / step if i else 0) for q, v, i in zip(expected, x.tolist(), inside, strict=True)
    )
    assert float(given_step.grad) == pytest.approx(slope, rel=1e-9, abs=1e-9)


def test_steps_start_by_the_mean_and_are_positive():
    x = normal(50)
    expected = 2 * float(x.abs().mean()) / math.sqrt(7)
    assert float(initial_step(x, 4)) == pytest.approx(expected, rel=1e-12)
    zeros = torch.zeros(3)
    assert quantize(zeros, initial_step(zeros, 4), 4).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------ layers


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


LAYERS = (
    lambda: (nn.Linear(6, 5), (3, 6), BinaryLinear),
    lambda: (nn.Linear(6, 5, bias=False), (2, 3, 6), BinaryLinear),
    lambda: (nn.Conv1d(4, 6, 3, 2, 1, groups=2), (2, 4, 9), BinaryConv1d),
    lambda: (nn.Conv2d(4, 6, 3, padding=1, dilation=2), (2, 4, 7, 8), BinaryConv2d),
    lambda: (
        nn.Conv2d(4, 4, (1, 3), groups=4, padding_mode="circular", padding=1),
        (1, 4, 5, 6),
        BinaryConv2d,
    ),
)


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("bases", (1, 2))
@pytest.mark.parametrize("bits", (4, None))
def test_layers_are_their_float_twins(make, bases, bits):
    """Values and gradients of a plain layer with binarised weights and quantised inputs."""
    torch.manual_seed(0)
    plain, shape, kind = make()
    plain = plain.double()
    layer = kind.from_float(plain, bases, bits)
    x = normal(*shape).requires_grad_()
    got = layer(x)
    twin = deepcopy(plain)
    w, a1 = plain.weight.detach().requires_grad_(), layer.alpha1.detach().requires_grad_()
    a2 = None if layer.alpha2 is None else layer.alpha2.detach().requires_grad_()
    del twin.weight
    twin.weight = binarize(w, a1, a2)
    y = x.detach().requires_grad_()
    step = initial_step(y, 4)
    expected = twin(y if bits is None else step * quantize(y, step, 4))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    g = normal(*got.shape, seed=1)
    got.backward(g)
    expected.backward(g)
    pairs = [(layer.weight.grad, w.grad), (layer.alpha1.grad, a1.grad), (x.grad, y.grad)]
    if a2 is not None:
        pairs.append((layer.alpha2.grad, a2.grad))
    if plain.bias is not None:
        pairs.append((layer.bias.grad, twin.bias.grad))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    layer.binary = False
    torch.testing.assert_close(layer(x), plain(x))


def test_products_are_integers_on_a_device():
    """Float16 operands hold codes and signs: all bits of the products are numpy's."""
    torch.manual_seed(0)
    for bits in (4, 8):
        layer = BinaryLinear.from_float(nn.Linear(200, 30), 2, bits)
        x = normal(50, 200, dtype=torch.float32)
        q, step, b1, b2 = layer.codes(x)
        assert q.dtype == b1.dtype == b2.dtype == torch.int8
        assert int(q.min()) >= -(2 ** (bits - 1)) and int(q.max()) <= 2 ** (bits - 1) - 1
        with sat.offload("golden") as report:
            products = [functional.linear(q.float(), b.float()) for b in (b1, b2)]
            whole = layer(x)
        assert report.coverage == 1 and report.flops == 2 * 2 * 2 * 50 * 200 * 30
        exact = [q.numpy().astype(int) @ b.numpy().astype(int).T for b in (b1, b2)]
        for product, integers in zip(products, exact, strict=True):
            assert (product.numpy() == integers).all()
        torch.testing.assert_close(whole, layer(x), rtol=0, atol=0)
        a1, a2 = (a.detach().double().flatten() for a in (layer.alpha1, layer.alpha2))
        sums = [torch.from_numpy(e).double() for e in exact]
        expected = step.double() * (a1 * sums[0] + a2 * sums[1]) + layer.bias.double()
        torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-6)


def test_learned_steps_follow_lsq():
    torch.manual_seed(0)
    layer = BinaryLinear.from_float(nn.Linear(8, 4).double(), 1, 4, "learned")
    x, g = normal(5, 8), normal(5, 4, seed=1)
    layer(x).backward(g)
    step = initial_step(x, 4)
    assert float(layer.step.detach()) == pytest.approx(float(step), rel=1e-12)
    v = x / step
    q = v.round().clamp(-8, 7)
    inside = (v >= -8) & (v <= 7)
    of_inputs = g @ binarize(layer.weight, layer.alpha1).detach()
    slope = (of_inputs * (q - torch.where(inside, v, 0))).sum() / math.sqrt(40 * 7)
    assert float(layer.step.grad) == pytest.approx(float(slope), rel=1e-9)
    before = float(layer.step.detach())
    layer(10 * x)
    assert float(layer.step.detach()) == before  # a parameter: no batch sets it again
    with pytest.raises(ValueError, match="act_bits=None: must be from 2 to 8 for x to have codes"):
        BinaryLinear.from_float(nn.Linear(2, 2), 1, None).codes(torch.ones(1, 2))


def test_scales_start_at_the_first_binary_pass():
    torch.manual_seed(0)
    layer = BinaryLinear.from_float(nn.Linear(8, 4), 2)
    layer.binary = False
    layer(torch.ones(1, 8))
    with torch.no_grad():
        layer.weight.mul_(3)
    old = layer.alpha1.detach().clone()
    layer.binary = True
    layer(torch.ones(1, 8))
    torch.testing.assert_close(layer.alpha1.detach(), 3 * old)
    with torch.no_grad():
        layer.weight.mul_(3)
    layer(torch.ones(1, 8))
    torch.testing.assert_close(layer.alpha1.detach(), 3 * old)


def test_patterns_leave_zeros_for_good():
    torch.manual_seed(0)
    plain = nn.Linear(16, 6).double()
    layer = BinaryLinear.from_float(plain, 1, None, pattern="2:8")
    with torch.no_grad():
        values = (layer(torch.eye(16).double()) - layer.bias).T
    size = plain.weight.detach().abs().view(6, 2, 8)
    kept = (size >= size.topk(2, -1).values[..., 1:]).view(6, 16)
    assert torch.equal(values != 0, kept)
    for row, w, k in zip(values, plain.weight.detach(), kept, strict=True):
        torch.testing.assert_close(row[k], w[k].sign() * w[k].abs().mean())
    layer(normal(3, 16)).sum().backward()
    assert bool((layer.weight.grad[~kept] == 0).all())


# ------------------------------------------------------------------------------------------- plans


def denoiser(blocks=3, dim=8, hidden=16):
    torch.manual_seed(0)
    return DenoiserMLP(dim, hidden, blocks)


def test_outer_blocks_have_two_bases_and_ends_stay():
    model = denoiser(4)
    plan = default_plan(model)
    assert len(plan) == 12
    assert {name for name, bases in plan.items() if bases == 2} == {
        f"blocks.{i}.{name}" for i in (0, 3) for name in ("inner", "time", "outer")
    }
    assert set(default_plan(model, 2).values()) == {2}
    binarize_model(model, plan)
    binary = [name for name, m in model.named_modules() if isinstance(m, BinaryLayer)]
    assert binary == list(plan)
    for layer in (model.first, model.last):
        assert type(layer) is nn.Linear
    assert model(torch.zeros(2, 8), torch.zeros(2)).shape == (2, 8)
    chain = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)])
    assert default_plan(chain) == {"0": 2, "1.0": 1, "2": 2}


@pytest.mark.parametrize(
    ("blocks", "order"), ((1, [[0]]), (3, [[1], [0, 2]]), (4, [[1, 2], [0, 3]]))
)
def test_layers_switch_from_the_middle_outward(blocks, order):
    model = denoiser(blocks)
    binarize_model(model, default_plan(model))
    groups = middle_outward(model)
    names = ("inner", "time", "outer")
    expected = [
        [model.get_submodule(f"blocks.{i}.{name}") for i in ends for name in names]
        for ends in order
    ]
    assert all(set(map(id, a)) == set(map(id, b)) for a, b in zip(groups, expected, strict=True))
    schedule = ProgressiveSchedule(groups, 5)
    assert not any(layer.binary for group in groups for layer in group)
    for i in range(5 * len(groups)):
        assert schedule.step(i) == i // 5 + 1
        assert [group[0].binary for group in groups] == [k <= i // 5 for k in range(len(groups))]


def test_a_plan_that_fails_changes_nothing():
    model = denoiser()
    for name, found in (("blocks.9.inner", "nothing"), ("norm", "LayerNorm"), ("", "DenoiserMLP")):
        with pytest.raises(KeyError, match=f"is {found}: must name an nn.Linear, nn.Conv1d"):
            binarize_model(model, {"blocks.0.inner": 1, name: 2})
    assert not any(isinstance(m, BinaryLayer) for m in model.modules())


# ------------------------------------------------------------------------------------------- mimic


class Convs(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, channels, 3), nn.Conv2d(channels, 4, 3)

    def forward(self, x, t):
        return self.b(self.a(x) * t[:, None, None, None])


@pytest.mark.parametrize(("axis", "rank"), (("channel", 2), ("width", 2)))
def test_mimicking_projects_on_the_teachers_directions(axis, rank):
    torch.manual_seed(0)
    teacher, student = Convs().double().eval(), Convs().double()
    mimic = LowRankMimic(teacher, student, ["a"], ratio=4, weight=0.5, axis=axis)
    x, t = normal(3, 2, 6, 7), normal(3, seed=1)
    loss = mimic.loss(x, t)
    features = [model.a(x).detach() for model in (teacher, student)]
    if axis == "channel":
        features = [f.permute(0, 2, 3, 1) for f in features]
    theirs, ours = (f.reshape(-1, f.shape[-1]).numpy() for f in features)
    values, vectors = np.linalg.eigh(np.cov(theirs, rowvar=False))
    e = vectors[:, np.argsort(values)[::-1][:rank]]
    assert float(loss.detach()) == pytest.approx(
        0.5 * np.mean(((ours - theirs) @ e) ** 2), rel=1e-10
    )
    found = mimic.directions["a"]
    torch.testing.assert_close(found.mT @ found, torch.eye(rank).double(), rtol=0, atol=1e-12)
    loss.backward()
    assert student.a.weight.grad is not None and teacher.a.weight.grad is None
    mimic.loss(3 * x + 1, t)
    assert mimic.directions["a"] is found
    out, again = mimic.run(x, t)
    torch.testing.assert_close(out, student(x, t))
    torch.testing.assert_close(again, loss)


def test_mimicking_pulls_features_together():
    """Trained with a heavy weight, they are nearer than without."""
    teacher = denoiser(1).eval()
    data = normal(200, 8, dtype=torch.float32)
    noised = add_noise(data, teacher.schedule, generator(5))

    def call(model, x, t):
        return model.velocity(x, t)

    def trained(weight):
        model = binarize_model(deepcopy(teacher).train(), default_plan(teacher))
        mimic = LowRankMimic(teacher, model, ["blocks.0"], weight=weight, call=call)
        record = train_binary(model, data, 40, 32, 1e-2, generator(), average=1, mimic=mimic)
        assert len(record.diffusion) == len(record.mimic) == 40
        judge = LowRankMimic(teacher, model, ["blocks.0"], weight=1, call=call)
        return float(judge.loss(noised.x, noised.t).detach())

    assert trained(10.0) < 0.5 * trained(0.0)


# ---------------------------------------------------------------------------------- training, costs


def test_training_keeps_scales_and_lowers_the_loss():
    """The average replaces parameters alone: what says that scales have started stays."""
    model, data = denoiser(2), 0.3 * normal(300, 8, dtype=torch.float32)
    binarize_model(model, default_plan(model))
    schedule = ProgressiveSchedule(middle_outward(model), 20)
    before = velocity_loss(model, data)
    record = train_binary(model, data, 120, 64, 5e-3, generator(), average=0.1, schedule=schedule)
    layers = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    assert all(layer.binary and bool(layer.started) for layer in layers)
    scales = [layer.alpha1.detach().clone() for layer in layers]
    after = velocity_loss(model, data)
    assert after < 0.9 * before and record.mimic == [0] * 120
    assert all(torch.equal(s, layer.alpha1) for s, layer in zip(scales, layers, strict=True))
    assert any(
        not torch.equal(s, initial_scales(layer.weight.detach(), layer.bases)[0])
        for s, layer in zip(scales, layers, strict=True)
    )


def test_costs_by_hand():
    model = DenoiserMLP(64)
    example = (torch.zeros(3, 64), torch.zeros(3))
    binarize_model(model, default_plan(model))
    report = cost_report(model, example)
    assert report.binary_weight_bits == (122_880, 266_240)
    # Float: first, last and norms, biases of hidden layers.
    floats = 64 * 128 + 128 + 128 * 64 + 64 + 4 * 256 + 9 * 128
    assert report.bits == 266_240 + 32 * floats
    assert report.bit_ratio == pytest.approx(32 * 141_632 / report.bits, rel=1e-12)
    block = 2 * 128 * 128 + 64 * 128
    dense = 3 * (2 * 64 * 128 + 3 * block)
    operations = 3 * (2 * 64 * 128 + (2 + 1 + 2) * block * 4 / 64)
    assert report.operations == operations
    assert report.operation_ratio == pytest.approx(dense / operations, rel=1e-12)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU())
    pictures = torch.zeros(1, 2, 6, 5)
    assert cost_report(conv, pictures).operations == 4 * 4 * 3 * 1 * 9
    binarize_model(conv, {"0": 1}, 4)
    assert cost_report(conv, pictures).operation_ratio == 16  # as the paper counts W1A4
    binarize_model(other := nn.Sequential(nn.Linear(8, 4)), {"0": 1}, None, pattern="2:8")
    assert cost_report(other, torch.zeros(1, 8)).operations == 32 * 0.5 / 4
    other[0].binary = False
    assert cost_report(other, torch.zeros(1, 8)).bit_ratio == 1
    again = nn.Linear(8, 8)
    twice = cost_report(nn.Sequential(again, nn.ReLU(), again), torch.zeros(3, 8))
    assert twice.operations == twice.layers["0"].macs == 2 * 3 * 64 and twice.bits == 32 * 72


# --------------------------------------------------------------------------------------- bad input

PLAIN = nn.Linear(4, 2)


def shared():
    model = Convs()
    return LowRankMimic(model.eval(), model, ["a"])


def two(**options):
    return LowRankMimic(Convs().eval(), Convs(), **{"names": ["a"], **options})


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: BinaryLinear.from_float(PLAIN, 3), "bases=3: must be 1 or 2"),
        (lambda: initial_scales(torch.ones(2, 3), 0), "bases=0: must be 1 or 2"),
        (lambda: BinaryLinear.from_float(PLAIN, 1, 1), "act_bits=1: must be from 2 to 8, or None"),
        (lambda: BinaryLinear.from_float(PLAIN, 1, 9), "act_bits=9"),
        (
            lambda: BinaryLinear.from_float(PLAIN, 1, 4, "ema"),
            "act_scale='ema': must be one of dyn",
        ),
        (
            lambda: BinaryLinear.from_float(nn.Conv1d(1, 1, 1)),
            "layer is a Conv1d: must be an nn.Li",
        ),
        (lambda: BinaryConv2d.from_float(PLAIN), "layer is a Linear: must be an nn.Conv2d"),
        (
            lambda: BinaryLinear.from_float(linear(torch.eye(3)[:, :2])),
            r"row 2 of weights \(3, 2\) is all zeros: it must have a scale",
        ),
        (
            lambda: BinaryLinear.from_float(linear(torch.eye(5)[:, :4]), 2, pattern="2:4"),
            r"row 4 of weights \(5, 4\) is all zeros",
        ),
        (
            lambda: binarize(torch.ones(2, 3), torch.ones(2)),
            r"alpha1 has shape \(2,\): must be \(2, ",
        ),
        (
            lambda: binarize(torch.ones(2, 3), torch.ones(2, 1), torch.ones(1, 1)),
            "alpha2 has shape",
        ),
        (lambda: default_plan(nn.Sequential(PLAIN)), "has no nn.ModuleList of blocks"),
        (lambda: default_plan(denoiser(), 0), "outer=0: must be an int of at least 1"),
        (lambda: middle_outward(denoiser()), "has no binary layers; call binarize_model"),
        (lambda: ProgressiveSchedule([[]], 0), "interval=0: must be an int of at least 1"),
        (lambda: ProgressiveSchedule([], 1), r"groups=\[\]: must have at least one"),
        (lambda: two(ratio=0), "ratio=0: must be an int of at least 1"),
        (
            lambda: two(ratio=9).loss(torch.ones(2, 2, 6, 6), torch.ones(2)),
            "must be at most 8, chan",
        ),
        (lambda: two(weight=-1.0), "weight=-1.0: must not be negative"),
        (lambda: two(axis="height"), "axis='height': must be one of channel, width"),
        (lambda: two(names=[]), r"names=\[\]: must name at least one"),
        (lambda: LowRankMimic(Convs(), Convs(), ["a"]), "teacher is in training mode"),
        (shared, "teacher and student share parameters"),
        (
            lambda: LowRankMimic(Convs().eval(), Convs(6), ["a"]).loss(
                torch.ones(1, 2, 6, 6), torch.ones(1)
            ),
            r"a: features have shape \(1, 6, 4, 4\) of the student and \(1, 8, 4, 4\)",
        ),
        (
            lambda: LowRankMimic(denoiser(1).eval(), denoiser(1), ["first"]).loss(
                torch.ones(2, 8), torch.ones(2)
            ),
            "first: 2 feature vectors have no 4 directions",
        ),
        (
            lambda: train_binary(
                denoiser(), torch.zeros(4, 8), 1, 1, 0.1, generator(), mimic=two()
            ),
            "mimic: its student is another model",
        ),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_names_and_numbers():
    with pytest.raises(KeyError, match="'c': is no module of the teacher"):
        two(names=["c"])
    layer = BinaryLinear.from_float(nn.Linear(4, 2))
    with torch.no_grad():
        layer.weight[0, 1] = math.nan
    with pytest.raises(FloatingPointError, match=r"weights of shape \(2, 4\) have infinities"):
        layer(torch.ones(1, 4))
    with pytest.raises(FloatingPointError, match=r"inputs \(1, 4\) have infinities or NaNs"):
        BinaryLinear.from_float(nn.Linear(4, 2)).codes(torch.full((1, 4), math.nan))
    with pytest.raises(FloatingPointError, match="have infinities or NaNs"):
        BinaryLinear.from_float(linear(torch.full((1, 2), math.inf)))
