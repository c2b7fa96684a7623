"""PNDM's levels, steps and samplers against mpmath, diffusers and closed forms; its network."""

from __future__ import annotations

import math
from copy import deepcopy

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import sat
from sat.methods.pndm import (
    ContinuousSchedule,
    DenoiserMLP,
    GaussianMixture,
    NoiseSchedule,
    add_noise,
    fit_average,
    load_digit_vectors,
    probability_flow,
    ring,
    sample,
    train_denoiser,
    transfer,
    velocity_loss,
)
from sat.methods.pndm.demo import exact_model, gaussian_flow, noise, ring_flow, rmse, sparsify

METHODS = ("ddim", "s-pndm", "f-pndm", "fon")
EXTRA = {"ddim": 0, "s-pndm": 1, "f-pndm": 9, "fon": 9}
FEWEST = {"ddim": 1, "s-pndm": 2, "f-pndm": 4, "fon": 4}
levels = st.floats(1e-5, 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("kind", ("linear", "quad", "cosine"))
def test_levels_are_products_of_what_steps_keep(kind):
    n, start, end = 50, 1e-3, 0.3
    if kind == "linear":
        betas = [start + (end - start) * i / (n - 1) for i in range(n)]
    elif kind == "quad":
        roots = [math.sqrt(start), math.sqrt(end)]
        betas = [(roots[0] + (roots[1] - roots[0]) * i / (n - 1)) ** 2 for i in range(n)]
    else:
        f = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = [min(1 - f[i + 1] / f[i], 0.999) for i in range(n)]
    kept = [math.prod(1 - b for b in betas[: t + 1]) for t in range(n)]
    made = {i: NoiseSchedule(kind, n, start, end, i) for i in ("exact", "diffusers", "official")}
    for t in range(n):
        assert float(made["exact"].alpha_bar(t)) == pytest.approx(kept[t], rel=1e-12)
        assert made["diffusers"].alpha_bar(t) == made["exact"].alpha_bar(t)
        if t + 1 < n:
            assert float(made["official"].alpha_bar(t)) == pytest.approx(kept[t + 1], rel=1e-12)
    assert float(made["exact"].alpha_bar(-1)) == 1
    for indexing in ("diffusers", "official"):
        assert float(made[indexing].alpha_bar(-1)) == pytest.approx(kept[0], rel=1e-14)
    # Between whole times log a is a line, or the level below.
    between = float(made["exact"].alpha_bar(7.25))
    assert between == pytest.approx(kept[7] ** 0.75 * kept[8] ** 0.25, rel=1e-12)
    assert made["official"].alpha_bar(7.75) == made["official"].alpha_bar(7)


def test_levels_are_those_of_diffusers():
    """alphas_cumprod of PNDMScheduler (diffusers 0.42.1), a float32 table, at four times."""
    times = torch.tensor([0, 10, 500, 999])
    for kind, theirs in (
        (
            "quad",
            (0.9998999834060669, 0.998749315738678, 0.3312746286392212, 0.0007334119873121381),
        ),
        ("cosine", (0.9999586939811707, 0.9992788434028625, 0.4922850430011749, 2.42873499e-09)),
    ):
        ours = NoiseSchedule(kind).alpha_bar(times)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1000 * 2.0**-24)


@given(st.integers(1, 200), st.integers(1, 200))
def test_times_fall_by_even_steps_to_the_data(n, steps):
    schedule = NoiseSchedule(steps=steps)
    if n > steps:
        with pytest.raises(ValueError, match=f"n={n}: must be at most {steps}"):
            schedule.timesteps(n)
        return
    times = schedule.timesteps(n).tolist()
    assert len(times) == n + 1 and times[-2:] == [0, -1] and times[0] <= steps - 1
    assert {a - b for a, b in zip(times[:-2], times[1:-1], strict=True)} <= {steps // n}


@given(st.floats(-1, 998), st.sampled_from(("exact", "diffusers")))
def test_a_level_tells_its_time(t, indexing):
    schedule = NoiseSchedule(indexing=indexing)
    if indexing == "diffusers" and t < 0:
        return  # a(-1) = a(0)
    found = schedule.time_of(math.log(float(schedule.alpha_bar(t))))
    # A level near 1 has few bits of its logarithm.
    assert found == pytest.approx(t, abs=1e-8)


def test_continuous_levels():
    schedule = ContinuousSchedule(lambda u: -3 * u, 1.0, 0.1)
    assert float(schedule.alpha_bar(0.5)) == pytest.approx(math.exp(-1.5), rel=1e-15)
    assert schedule.timesteps(3).tolist() == pytest.approx([1.0, 0.7, 0.4, 0.1], rel=1e-15)


# --------------------------------------------------------------------------------------- transfer


@settings(max_examples=40)
@given(levels, levels, st.floats(-5, 5), st.floats(-5, 5))
def test_transfer_against_fifty_digits(a, b, x, e):
    with mpmath.workdps(50):
        am, bm = mpmath.mpf(a), mpmath.mpf(b)
        noise = mpmath.sqrt(1 - bm) - mpmath.sqrt(bm * (1 - am) / am)
        exact = float(mpmath.sqrt(bm / am) * x + noise * e - x)
    moved = transfer(*torch.tensor([[x], [e]], dtype=torch.float64), a, b)
    size = 1e-15 * (1 + abs(x) + abs(e)) / math.sqrt(a) + 1e-13 * abs(exact)
    assert float(moved) - x == pytest.approx(exact, abs=4 * size)


def test_transfer_keeps_its_bits_between_near_levels():
    """The step itself, which the form with a difference of roots loses."""
    a, b = 0.3, 0.3 + 1e-12
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    with mpmath.workdps(50):
        am, bm = mpmath.mpf(a), mpmath.mpf(b)
        exact = float(mpmath.sqrt(1 - bm) - mpmath.sqrt(bm * (1 - am) / am))
    assert float(transfer(zero, one, a, b)) == pytest.approx(exact, rel=1e-14)
    plain = math.sqrt(1 - b) - math.sqrt(b * (1 - a) / a)
    assert abs(plain / exact - 1) > 1e-6
    assert torch.equal(transfer(one, zero, 1.0, 1.0), one)


@settings(max_examples=40)
@given(levels, levels, levels)
def test_transfers_compose_while_the_noise_is_the_same(a, b, c):
    x, e = noise(3, 2, 0), noise(3, 2, 1)
    two = transfer(transfer(x, e, a, b), e, b, c)
    scale = 1e-14 * max(1, math.sqrt(c / a), math.sqrt(c / b) * math.sqrt(b / a))
    torch.testing.assert_close(two, transfer(x, e, a, c), rtol=1e-12, atol=10 * scale)


# --------------------------------------------------------------------------------------- samplers


def mixture_of_three():
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.0, -1.5]], dtype=torch.float64)
    covariances = [
        [[0.04, 0.01], [0.01, 0.09]],
        [[0.02, 0], [0, 0.02]],
        [[0.1, -0.05], [-0.05, 0.05]],
    ]
    return GaussianMixture(weights, means, torch.tensor(covariances, dtype=torch.float64))


def test_samples_are_those_of_diffusers():
    """PNDMScheduler (skip_prk_steps=False) and DDIMScheduler (clip_sample=False,
    set_alpha_to_one=False) of diffusers 0.42.1: 20 steps, linear betas, the mixture's exact eps.
    Their tables are float32.
    """
    x = torch.tensor([[0.3, -1.2], [1.7, 0.4], [-0.8, 0.9], [-1.1, -0.6]], dtype=torch.float64)
    schedule = NoiseSchedule(indexing="diffusers")
    theirs = {
        "f-pndm": [
            [0.2991626981136136, -1.4929940241331559],
            [1.2682118967122116, 0.1508367630474228],
            [-0.5228561998353166, 1.0367226076929676],
            [-0.3627212263318956, -1.2868196788369228],
        ],
        "ddim": [
            [0.2483022319285913, -1.4834882594103407],
            [1.2023561064123731, 0.12444178111289171],
            [-0.5081318775210519, 1.0188639660878922],
            [-0.28572663325964975, -1.2005770971259548],
        ],
    }
    for method, expected in theirs.items():
        made = sample(exact_model(mixture_of_three(), schedule), x, schedule, 20, method)
        np.testing.assert_allclose(made.x.numpy(), expected, rtol=0, atol=2e-6)


class Recorder:
    """An eps of its own, which keeps the times it was asked for."""

    def __init__(self):
        self.times = []

    def __call__(self, x, t):
        assert t.shape == x.shape[:1] and bool((t == t[0]).all())
        self.times.append(float(t[0]))
        return torch.sin(x + t[0] / 100)


@settings(max_examples=30)
@given(st.sampled_from(METHODS), st.integers(4, 40))
def test_evaluations_are_counted_honestly(method, n):
    model, x = Recorder(), noise(3, 2, 0)
    made = sample(model, x, NoiseSchedule(steps=200), n, method, trajectory=True)
    assert made.evaluations == len(model.times) == n + EXTRA[method]
    assert made.path.shape == (n + 1, 3, 2)
    assert torch.equal(made.path[0], x) and torch.equal(made.path[-1], made.x)
    assert min(model.times) >= 0


def test_times_of_the_starts():
    for method, start in (
        ("ddim", [60]),
        ("s-pndm", [60, 45]),
        ("f-pndm", [60, 52.5, 52.5, 45, 45, 37.5, 37.5, 30, 30, 22.5, 22.5, 15]),
    ):
        model = Recorder()
        sample(model, noise(1, 1, 0), NoiseSchedule(steps=79), 5, method)
        assert model.times[: len(start)] == start
        assert model.times[len(start) :] == [t for t in (45, 30, 15, 0) if t <= start[-1]]
    model = Recorder()
    sample(model, noise(1, 1, 0), NoiseSchedule(steps=79, indexing="official"), 5, "f-pndm")
    assert model.times[:4] == [60, 52, 52, 45]


def by_hand(eps, x, schedule, method):
    """Five steps written out, of numbers."""
    t = schedule.timesteps(5).tolist()

    def level(u):
        return float(schedule.alpha_bar(u))

    def phi(x, e, t, u):
        a, b = level(t), level(u)
        return math.sqrt(b / a) * x + (math.sqrt(1 - b) - math.sqrt(b * (1 - a) / a)) * e

    def unit(x, t):
        return phi(x, eps(x, t), t, t - 1) - x

    seen = []
    for k in range(5):
        h, middle = t[k] - t[k + 1], (t[k] + t[k + 1]) / 2
        if method == "fon":
            d1 = unit(x, t[k])
            seen.append(d1)
            if k < 3:
                d2 = unit(x + h / 2 * d1, middle)
                d3 = unit(x + h / 2 * d2, middle)
                d4 = unit(x + h * d3, t[k + 1])
                x = x + h * (d1 + 2 * d2 + 2 * d3 + d4) / 6
            else:
                x = (
                    x
                    + h
                    * (55 * seen[k] - 59 * seen[k - 1] + 37 * seen[k - 2] - 9 * seen[k - 3])
                    / 24
                )
            continue
        e1 = eps(x, t[k])
        seen.append(e1)
        if method == "ddim":
            e = e1
        elif method == "s-pndm" and k == 0:
            e = (e1 + eps(phi(x, e1, t[0], t[1]), t[1])) / 2
        elif method == "s-pndm":
            e = (3 * e1 - seen[k - 1]) / 2
        elif k < 3:
            e2 = eps(phi(x, e1, t[k], middle), middle)
            e3 = eps(phi(x, e2, t[k], middle), middle)
            e = (e1 + 2 * e2 + 2 * e3 + eps(phi(x, e3, t[k], t[k + 1]), t[k + 1])) / 6
        else:
            e = (55 * e1 - 59 * seen[k - 1] + 37 * seen[k - 2] - 9 * seen[k - 3]) / 24
        x = phi(x, e, t[k], t[k + 1])
    return x


@settings(max_examples=25)
@given(st.sampled_from(METHODS), st.floats(-3, 3), st.sampled_from(("linear", "cosine")))
def test_samplers_by_hand(method, start, kind):
    schedule = NoiseSchedule(kind, 100)
    x = torch.tensor([[start]], dtype=torch.float64)

    def model(x, t):
        return torch.sin(2 * x) + x * t[:, None] / 100

    made = sample(model, x, schedule, 5, method)
    expected = by_hand(lambda x, t: math.sin(2 * x) + x * t / 100, start, schedule, method)
    assert float(made.x) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=20)
@given(
    st.sampled_from(("ddim", "s-pndm", "f-pndm")),
    st.integers(4, 60),
    st.sampled_from(("linear", "quad", "cosine")),
    st.sampled_from(("exact", "diffusers", "official")),
)
def test_a_single_point_is_found_exactly(method, n, kind, indexing):
    mean = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    point = GaussianMixture(torch.ones(1), mean, torch.zeros(1, 2, 2))
    schedule, x = NoiseSchedule(kind, 500, indexing=indexing), noise(5, 2, 0)
    made = sample(exact_model(point, schedule), x, schedule, n, method)
    a, b = (float(schedule.alpha_bar(t)) for t in schedule.timesteps(n)[[0, -1]])
    expected = math.sqrt(b) * mean + math.sqrt((1 - b) / (1 - a)) * (x - math.sqrt(a) * mean)
    torch.testing.assert_close(made.x, expected, rtol=0, atol=1e-10)


def test_orders_on_one_gaussian():
    mean, cov = torch.tensor([1.0, -0.5]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
    gaussian = GaussianMixture(torch.ones(1), mean[None], cov[None])
    schedule = ContinuousSchedule(lambda u: -(0.1 * u + 9.95 * u**2))
    x = noise(50, 2, 0)
    ends = (float(schedule.alpha_bar(u)) for u in (1.0, 0.01))
    exact = gaussian_flow(x, *ends, mean, cov)
    for method, order, off in (("ddim", 1, 0.05), ("s-pndm", 2, 0.1), ("f-pndm", 2, 0.2)):
        errors = [
            rmse(sample(exact_model(gaussian, schedule), x, schedule, n, method).x, exact)
            for n in (160, 320)
        ]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=off)


def test_the_flow_by_an_adaptive_solver():
    schedule, x = NoiseSchedule(), noise(30, 2, 0)
    model = exact_model(ring(), schedule)
    start = (float(schedule.alpha_bar(t)) for t in (950.0, 0.0))
    exact = ring_flow(x.numpy(), *start)
    made = probability_flow(model, x, schedule, 950.0, tolerance=1e-8)
    last = sample(model, torch.from_numpy(exact), schedule, 1, "ddim", torch.tensor([0, -1]))
    assert rmse(made.x, last.x) < 1e-6
    loose = probability_flow(model, x, schedule, 950.0)
    assert loose.evaluations < made.evaluations and rmse(loose.x, made.x) < 1e-3


def test_samples_keep_dtype_and_own_times():
    x, schedule = noise(4, 2, 0, torch.float32), NoiseSchedule()
    times = torch.tensor([800, 500.5, 100, 3, -1])
    made = sample(exact_model(ring(), schedule), x, schedule, 4, "f-pndm", times)
    assert made.x.dtype == torch.float32 and made.path is None
    model = Recorder()
    sample(model, x[..., None].expand(4, 2, 3), schedule, 4, "ddim", times)
    assert model.times == [800, 500.5, 100, 3]


# ---------------------------------------------------------------------------------------- network


def test_network_has_the_size_of_the_figures():
    model = DenoiserMLP(64)
    assert sum(p.numel() for p in model.parameters()) == 141_632
    blocks = [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    assert sum(m.weight.numel() for m in blocks) == 122_880


def test_right_velocities_make_right_noise():
    data, schedule = noise(7, 3, 0), NoiseSchedule("cosine", 40)
    noised = add_noise(data, schedule, generator())
    assert noised.t[:3].tolist() == [39 - t for t in noised.t[4:].tolist()]
    a = schedule.alpha_bar(noised.t)[:, None]
    z = (noised.x - a.sqrt() * data) / (1 - a).sqrt()
    torch.testing.assert_close(noised.velocity, a.sqrt() * z - (1 - a).sqrt() * data)
    model = DenoiserMLP(3, hidden=8, blocks=1, schedule=schedule).double()
    model.velocity = lambda x, t: noised.velocity
    torch.testing.assert_close(model(noised.x, noised.t), z)


def test_network_by_hand():
    torch.manual_seed(0)
    model = DenoiserMLP(3, hidden=8, blocks=2).double()
    x, t = noise(2, 3, 0), torch.tensor([10.5, 700.0])
    waves = torch.tensor([10000 ** (-j / 32) for j in range(32)], dtype=torch.float64)
    angles = t.double()[:, None] * waves
    time = torch.cat([angles.sin(), angles.cos()], 1)
    p = dict(model.named_parameters())

    def linear(name, h):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, h):
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return h * p[f"{name}.weight"] + p[f"{name}.bias"]

    h = linear("first", x)
    for k in (0, 1):
        inner = linear(f"blocks.{k}.inner", norm(f"blocks.{k}.norm", h))
        inner = inner + linear(f"blocks.{k}.time", time)
        h = h + linear(f"blocks.{k}.outer", inner / (1 + (-inner).exp()))
    torch.testing.assert_close(model.velocity(x, t), linear("last", norm("norm", h)))


def test_training_averages_what_adam_makes():
    """Three steps against Adam and an average written out."""
    torch.manual_seed(0)
    model, x = nn.Linear(2, 1).double(), noise(5, 2, 0)
    twin = deepcopy(model)
    losses = fit_average(model, lambda k: (k + 1) * model(x).square().mean(), 3, 0.1, average=0.25)
    w, mean = torch.cat([twin.weight.detach()[0], twin.bias.detach()]), None
    inputs, first, second = torch.cat([x, torch.ones(5, 1)], 1), 0, 0
    for k in range(3):
        value = (inputs @ w).square().mean() * (k + 1)
        assert losses[k] == pytest.approx(float(value), rel=1e-12)
        g = 2 * (k + 1) * (inputs @ w) @ inputs / 5
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        rate = 0.1 * (1 + math.cos(math.pi * k / 3)) / 2
        corrected = first / (1 - 0.9 ** (k + 1))
        w = w - rate * corrected / ((second / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
        # The average starts where it is first taken.
        mean = w if mean is None else mean + 0.25 * (w - mean)
    torch.testing.assert_close(torch.cat([model.weight[0], model.bias]).detach(), mean)


def test_training_reaches_the_best_there_is():
    """Normal data: the best loss of v is its variance given x."""
    spread, schedule = 0.25, NoiseSchedule()
    data = spread**0.5 * noise(4000, 2, 0, torch.float32)
    a = schedule.alpha_bar(torch.arange(1000))
    joint = (a * (1 - a)).sqrt() * (1 - spread)
    best = float((a + (1 - a) * spread - joint**2 / (a * spread + 1 - a)).mean())
    torch.manual_seed(0)
    model = DenoiserMLP(2, hidden=32, blocks=1, schedule=schedule)
    train_denoiser(model, data, 300, 256, 1e-2, generator(), average=0.05)
    found = velocity_loss(model, spread**0.5 * noise(4000, 2, 1, torch.float32), repeats=4)
    assert 0.97 * best < found < 1.06 * best


def test_digits_are_split_once():
    digits = load_digit_vectors()
    assert digits.train.shape == (1500, 64) and digits.test.shape == (297, 64)
    assert float(digits.whole.min()) == -1 and float(digits.whole.max()) == 1
    assert len(digits.whole.unique(dim=0)) == len(load_digit_vectors(1).whole.unique(dim=0)) == 1797


# --------------------------------------------------------------------------------------- offload


def test_sampling_is_offloaded_and_sparse_on_request():
    torch.manual_seed(0)
    model, x = DenoiserMLP(16, hidden=32, blocks=2), noise(8, 16, 0, torch.float32)
    exact = sample(model, x, model.schedule, 5)
    for precision, most in (("fp16", 3e-2), ("fp32", 1e-5)):
        with sat.offload("golden", precision=precision) as report:
            made = sample(model, x, model.schedule, 5)
        each = 2 * 16 * 32 + 2 * (2 * 32 * 32 + 64 * 32)
        assert report.coverage == 1 and report.flops == 14 * 2 * 8 * each
        assert 0 < float((made.x - exact.x).abs().max()) < most
    pruned = sparsify(model, "2:8")
    with sat.offload("golden") as report:
        pruned(x, torch.full((8,), 300))
    sparse = [work.op for work in report if work.size.endswith("2:8")]
    assert len(sparse) == 4 and all("inner" in op or "outer" in op for op in sparse)
    functional.mse_loss(pruned(x, torch.full((8,), 3)), x).backward()


# --------------------------------------------------------------------------------------- bad input

PLAIN, X = NoiseSchedule(), torch.zeros(3, 2)


def eps(x, t):
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: NoiseSchedule("sigmoid"), "kind='sigmoid': must be one of linear, quad, cosine"),
        (lambda: NoiseSchedule(indexing="0"), "indexing='0': must be one of exact, diffusers, of"),
        (lambda: NoiseSchedule(beta_end=1.0), "beta_end=1.0: must be between 0 and 1"),
        (lambda: NoiseSchedule(beta_start=0.0), "beta_start=0.0"),
        (lambda: NoiseSchedule(steps=0), "steps=0: must be an int of at least 1"),
        (lambda: PLAIN.timesteps(1001), "n=1001: must be at most 1000"),
        (lambda: PLAIN.timesteps(0), "n=0: must be an int of at least 1"),
        (lambda: NoiseSchedule(indexing="official").timesteps(1000), "step 999 has no level"),
        (lambda: PLAIN.alpha_bar(1000), r"times from 1000.0 to 1000.0: must be within \[-1, 999\]"),
        (lambda: PLAIN.alpha_bar(-1.5), r"must be within \[-1, 999\]"),
        (lambda: PLAIN.alpha_bar(math.nan), r"must be within \[-1, 999\]"),
        (lambda: PLAIN.time_of(0.1), "log_alpha_bar=0.1: must be within"),
        (lambda: ContinuousSchedule(torch.neg, 0.0, 1.0), "first must be above"),
        (
            lambda: ContinuousSchedule(lambda u: u - 2),
            "log_alpha_bar is -1 at first=1 and -1.99 at last=0.01: must be finite, at most 0, and",
        ),
        (lambda: ContinuousSchedule(lambda u: 1 - u), "at last=0.01: must be finite, at most 0"),
        (lambda: transfer(X, X, 0.0, 0.5), "alpha=0.0: must be above 0"),
        (lambda: transfer(X, X, 0.5, 1.5), "alpha_next=1.5: must be above 0 and at most 1"),
        (
            lambda: sample(eps, X, PLAIN, 5, "heun"),
            "method='heun': must be one of ddim, s-pndm, f-",
        ),
        (lambda: sample(eps, X, PLAIN, 3), "steps=3: must be an int of at least 4 with f-pndm"),
        (
            lambda: sample(eps, X, PLAIN, 1, "s-pndm"),
            "steps=1: must be an int of at least 2 with s",
        ),
        (lambda: sample(eps, X, PLAIN, 0, "ddim"), "steps=0: must be an int of at least 1"),
        (
            lambda: sample(eps, X, ContinuousSchedule(torch.neg), 5, "fon"),
            "method='fon': takes steps of one index; must have a NoiseSchedule",
        ),
        (
            lambda: sample(eps, X, PLAIN, 2, "ddim", torch.tensor([5, 5, 0])),
            r"timesteps of shape \(3,\): must be \(3,\), strictly falling",
        ),
        (
            lambda: sample(eps, X, PLAIN, 2, "ddim", torch.tensor([5, 0])),
            r"timesteps of shape \(2,\): must be \(3,\)",
        ),
        (
            lambda: sample(eps, X, PLAIN, 2, "ddim", torch.tensor([1200, 5, 0])),
            r"times from 0.0 to 1200.0: must be within \[-1, 999\]",
        ),
        (
            lambda: sample(lambda x, t: x[:, :1], X, PLAIN, 4),
            r"eps_model returned \(3, 1\) torch.float32 for x of \(3, 2\)",
        ),
        (lambda: sample(lambda x, t: x.double(), X, PLAIN, 4), "torch.float64 for x of"),
        (lambda: probability_flow(eps, X, PLAIN, 1000.0), r"start=1000.0: must be within \(0, 999"),
        (lambda: DenoiserMLP(0), "dim=0: must be an int"),
        (
            lambda: DenoiserMLP(2)(torch.zeros(4, 3), torch.zeros(4)),
            r"must be \(batch, 2\) and \(b",
        ),
        (lambda: DenoiserMLP(2)(torch.zeros(4, 2), torch.zeros(1)), r"shapes \(4, 2\) and \(1,\)"),
        (lambda: fit_average(nn.Linear(1, 1), None, 0, 0.1, average=1), "steps=0: must be an int"),
        (lambda: fit_average(nn.Linear(1, 1), None, 1, 0.0, average=1), "lr=0.0: must be positive"),
        (lambda: fit_average(nn.Linear(1, 1), None, 1, 0.1, average=0), "average=0: must be above"),
        (
            lambda: train_denoiser(DenoiserMLP(2), torch.zeros(2), 1, 1, 0.1, generator()),
            r"data of shape \(2,\): must be \(samples, dim\), finite",
        ),
        (
            lambda: train_denoiser(DenoiserMLP(2), X, 1, 0, 0.1, generator()),
            "batch=0: must be an int of at least 1",
        ),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_not_finite_stops():
    def breaks(x, t):
        return x / 0 if t[0] < 800 else x

    with pytest.raises(FloatingPointError, match="step 1, t = 750: eps has infinities or NaNs"):
        sample(breaks, torch.ones(2, 2), PLAIN, 5, "ddim", torch.tensor([900, 750, 600, 3, 2, -1]))
    model = nn.Linear(1, 1)
    before = deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan: lower lr=0.1"):
        fit_average(model, lambda _: model.weight.sum() * math.nan, 2, 0.1, average=1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
