"""NeuralDEM: the discrete elements against mechanics, blocks and models, fields of particles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sat.methods.neuraldem import (
    BedModel,
    CrossDitBlock,
    Dem2d,
    DitBlock,
    FieldDecoder,
    HopperModel,
    MultimodalDitBlock,
    ScalarConditioner,
    SinCosEmbedding,
    SupernodePooling,
    demo,
    from_logscale,
    mixing,
    occupancy,
    residence_time,
    sample_particles,
    to_logscale,
)
from sat.methods.neuraldem.particles import smooth
from sat.methods.problems.granular import OUTLET_HEIGHT, WIDTH, contact_time

BOX = np.array([[0.0, 0.0], [8.0, 6.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def disc(x, y, *, walls=(), friction=0.5, **options):
    return Dem2d(np.array([[x, y]]), np.ones(1), walls, friction, **options)


# ------------------------------------------------------------------------------ discrete elements


@pytest.mark.parametrize("damping", (1.0, 4.0, 10.0))
def test_collisions_by_an_integrator_of_their_equation(damping):
    """δ'' = -2 (k δ + γ δ') while the force pushes; the speed then over that before."""
    k, speed = 500.0, 1.0

    def ends(_, state):
        return k * state[0] + damping * state[1] if state[1] < 0 else 1.0

    ends.terminal = True
    course = solve_ivp(
        lambda _, s: (s[1], -2 * (k * s[0] + damping * s[1])), (0, 1), (0.0, speed),
        events=ends, rtol=1e-10, atol=1e-12, max_step=1e-3,
    )  # fmt: skip
    exact = -course.y[1, -1] / speed
    assert demo.restitution(damping) == pytest.approx(exact, rel=1e-6)
    _, after = demo.collide(damping)
    found = after.velocities[1, 0] - after.velocities[0, 0]
    assert found == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(("friction", "rolls"), ((0.5, True), (0.1, False)))
def test_a_disc_on_a_slope_rolls_or_slides(friction, rolls):
    """a = g sin θ / 1.5 without slip, which needs μ ≥ tan θ / 3; else g (sin θ - μ cos θ)."""
    angle = math.radians(30)
    down = np.array([math.cos(angle), -math.sin(angle)])
    up = np.array([math.sin(angle), math.cos(angle)])
    start = -40 * down
    wall = (*(-60 * down), *(60 * down))
    weight = math.cos(angle)
    place = start + up * (1 - weight / 500)
    dem = disc(*place, walls=[wall], friction=friction, dt=0.002)
    dem.run(2.0)
    first = dem.velocities[0] @ down
    dem.run(6.0)
    found = (dem.velocities[0] @ down - first) / 4
    exact = math.sin(angle) / 1.5 if rolls else math.sin(angle) - friction * math.cos(angle)
    assert found == pytest.approx(exact, rel=5e-3)
    turning = dem.spins[0] * -1.0  # clockwise, down the slope
    if rolls:
        assert turning == pytest.approx(dem.velocities[0] @ down, rel=2e-2)
    else:
        assert turning < 0.7 * (dem.velocities[0] @ down)


def test_free_collisions_keep_momentum_and_angular_momentum():
    before, after = demo.collide(4.0, 0.5, 1.0)

    def angular(dem):
        x, v = dem.positions, dem.velocities
        return float(
            (dem.masses * (x[:, 0] * v[:, 1] - x[:, 1] * v[:, 0])).sum()
            + (dem.inertia * dem.spins).sum()
        )

    assert np.abs(after.masses @ after.velocities).max() < 1e-12
    assert np.abs(after.spins).min() > 0.01
    assert angular(after) == pytest.approx(angular(before), rel=2e-2)
    before, after = demo.collide(0.0, 0.0, 1.0)
    assert after.kinetic_energy_of_all == pytest.approx(before.kinetic_energy_of_all, rel=1e-3)


def test_a_disc_falls_and_rests_on_the_lid():
    dem = Dem2d.hopper(8.0, 60.0, 0.5, 1, 0)
    y = dem.positions[0, 1]
    dem.run(1.0)
    assert dem.positions[0, 1] == pytest.approx(y - 0.5, abs=2e-2)
    dem.run(20.0)
    rest = OUTLET_HEIGHT + dem.radii[0] * (1 - dem.masses[0] / 500 / dem.radii[0])
    assert dem.positions[0, 1] == pytest.approx(rest, abs=1e-3)
    assert abs(dem.velocities[0, 1]) < 1e-3 and dem.inside == 1
    dem.open()
    dem.run(4.0)
    assert dem.inside == 0 and dem.time == 4.0
    assert (dem.positions[:, 0] > 0).all() and (dem.positions[:, 0] < WIDTH).all()


def test_contact_time_is_half_a_swing():
    assert contact_time(1.0, 500.0) == pytest.approx(math.pi / math.sqrt(2 * 500))


# ------------------------------------------------------------------------------------- particles


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
@settings(max_examples=20)
def test_log_scale_goes_there_and_back(values):
    x = torch.tensor(values, dtype=torch.float64)
    y = to_logscale(x)
    expected = [math.copysign(math.log1p(abs(v)), v) for v in values]
    torch.testing.assert_close(y, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(from_logscale(y), x)


def test_occupancy_is_the_discs_area():
    places, radii = np.array([[2.0, 2.0], [5.5, 3.5]]), np.array([1.0, 1.05])
    field = occupancy(places, radii, (8, 6), BOX)
    assert field.sum() == pytest.approx(math.pi * (radii**2).sum(), rel=5e-3)
    assert field[1, 1] == pytest.approx(math.pi / 4, abs=0.03) and field[7, 0] == 0
    one = np.zeros((3, 8, 6))
    one[:, 2, 3] = 1
    np.testing.assert_allclose(smooth(one).sum((1, 2)), 1, atol=1e-3)
    assert smooth(np.ones((4, 4))).min() == pytest.approx(1)


def test_residence_times_and_mixing_by_hand():
    inside = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1]], dtype=bool)
    assert residence_time(inside, np.array([0.0, 2.0, 4.0])).tolist() == [4, 2, 4]
    rng = np.random.default_rng(0)
    places = rng.uniform(BOX[0], BOX[1], (4000, 2))
    marked = places[:, 0] < 4
    share = mixing(places, marked, (8, 6), BOX)
    assert share[0].min() > 0.999 and share[-1].max() < 1e-3
    assert share[3:5].mean() == pytest.approx(0.5, abs=0.05)
    none = mixing(np.array([[0.1, 0.1]]), np.array([True]), (40, 30), BOX)
    assert none[0, 0] == 1 and none[-1, -1] == 0


def test_sampled_particles_follow_the_solid_fraction():
    field = torch.tensor([[0.2, 0.8], [-1.0, 1.5]])
    box = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    x = sample_particles(field, 6000, box, generator())
    counts = torch.zeros(2, 2)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        here = (x[:, 0] >= 1 + i) & (x[:, 0] < 2 + i) & (x[:, 1] >= 2 * j) & (x[:, 1] < 2 * j + 2)
        counts[i, j] = here.float().mean()
    torch.testing.assert_close(counts, torch.tensor([[0.1, 0.4], [0.0, 0.5]]), atol=0.03, rtol=0)


def test_supernodes_take_the_mean_of_their_neighbours_messages():
    torch.manual_seed(0)
    pool = SupernodePooling(8, 2, 2, 30.0, max_degree=4).double()
    features, places = torch.randn(15, 2).double(), 100 * torch.rand(15, 2).double()
    nodes = torch.tensor([3, 0, 9])
    x = pool.lift(features) + pool.place(places)
    found = pool(features, places, nodes)
    for row, node in enumerate(nodes.tolist()):
        apart = (places - places[node]).norm(dim=1)
        near = [j for j in apart.argsort().tolist() if apart[j] <= 30][:4]
        assert near[0] == node
        messages = [pool.message(torch.cat([x[j], x[node]])) for j in near]
        torch.testing.assert_close(found[row], torch.stack(messages).mean(0))


# ----------------------------------------------------------------------------- blocks and models


def test_embedding_axis_by_axis():
    embed = SinCosEmbedding(11, 2)
    x = torch.tensor([[3.0, 150.0]])
    waves = [10000 ** (-2 * j / 4) for j in range(2)]
    expected = [f(v * w) for v in (3.0, 150.0) for f in (math.sin, math.cos) for w in waves]
    torch.testing.assert_close(embed(x)[0], torch.tensor([*expected, 0.0, 0.0, 0.0]))


def test_conditions_warn_outside_their_ranges():
    condition = ScalarConditioner(8, ("time", "friction"), {"friction": (0.0, 1.0)})
    assert condition(torch.tensor([[5.0, 0.5]])).shape == (1, 32)
    with pytest.warns(
        UserWarning, match="scalar 'friction' reaches from 0.5 to 2: trained on 0 to"
    ):
        condition(torch.tensor([[5.0, 0.5], [5.0, 2.0]]))


@pytest.mark.parametrize("kind", (DitBlock, CrossDitBlock))
def test_blocks_of_zeros_are_the_identity(kind):
    torch.manual_seed(0)
    x, c = torch.randn(2, 3, 8), torch.randn(2, 32)
    tokens = () if kind is DitBlock else (torch.randn(2, 5, 8),)
    assert torch.equal(kind(8, 2, zero_init=True)(x, *tokens, c), x)
    assert not torch.allclose(kind(8, 2)(x, *tokens, c), x, atol=1e-3)


def test_decoders_answer_each_place_alone():
    torch.manual_seed(0)
    model = HopperModel({"occupancy": 1, "left": 2}, ("time", "outlet"), d=16, heads=2, tokens=3)
    rows, few = torch.tensor([[0.0, 100.0], [50.0, 20.0]]), 200 * torch.rand(2, 6, 2)
    many = torch.cat([200 * torch.rand(2, 18, 2), few], 1)
    with torch.no_grad():
        a, b = (model(rows, {"left": p})["left"] for p in (few, many))
        both = model(rows, {"occupancy": few[0], "left": few})
    assert a.shape == (2, 6, 2) and both["occupancy"].shape == (2, 6, 1)
    torch.testing.assert_close(a, b[:, 18:], rtol=0, atol=1e-5)
    torch.testing.assert_close(both["left"], a, rtol=0, atol=1e-6)
    whole = model(rows, {"occupancy": few})["occupancy"].square().sum()
    grads = torch.autograd.grad(whole, list(model.parameters()), allow_unused=True)
    unused = {n for (n, _), g in zip(model.named_parameters(), grads, strict=True) if g is None}
    assert unused == {n for n, _ in model.named_parameters() if ".left." in n or n == "tokens.left"}


def bed(**options):
    torch.manual_seed(0)
    made = {"box": (1.0, 2.0), "d": 16, "heads": 2, "depth": 2, "supernodes": 5, "radius": 0.4}
    return BedModel((4, 8), 2, ("inflow",), **made | {"norms": (1,)} | options)


def bed_input(batch=2):
    torch.manual_seed(1)
    return {
        "positions": torch.rand(batch, 12, 2) * torch.tensor([1.0, 2.0]),
        "displacements": 0.1 * torch.randn(batch, 12, 2),
        "fluid": torch.rand(batch, 3, 4, 8), "mixing": torch.rand(batch, 1, 4, 8),
    }  # fmt: skip


def test_patches_are_put_back_where_they_were():
    model, field = bed(), torch.randn(2, 3, 4, 8)
    patches = model._patches(field)
    assert patches.shape == (2, 8, 12)
    assert torch.equal(patches[0, 1], field[0, :, :2, 2:4].flatten())
    assert torch.equal(model._fields(patches), field)
    assert model._centers()[1].tolist() == pytest.approx([0.25, 0.75])


def test_auxiliary_modality_only_looks_on():
    model, state = bed(), bed_input()
    out = model(torch.tensor([[1.0], [2.0]]), *state.values(), state["positions"], generator())
    assert {n: tuple(v.shape) for n, v in out.items()} == {
        "particles": (2, 12, 2), "fluid": (2, 3, 4, 8), "mixing": (2, 1, 4, 8),
    }  # fmt: skip
    names, parameters = zip(*model.named_parameters(), strict=True)

    def moved(output):
        grads = torch.autograd.grad(
            out[output].square().sum(), parameters, allow_unused=True, retain_graph=True
        )
        return {n for n, g in zip(names, grads, strict=True) if g is not None and bool(g.any())}

    by_mixing, by_fluid = moved("mixing"), moved("fluid")
    own = {n for n in names if ".mixing." in n}
    shared = {n for n in names if n.startswith("condition.")}
    assert own - by_mixing == set() and by_mixing <= own | shared
    assert any("qkv.particles" in n for n in by_fluid) and not any(
        ".mixing." in n for n in by_fluid
    )
    other = dict(state)
    other["fluid"] = state["fluid"] + 1
    seen = model(torch.tensor([[1.0], [2.0]]), *other.values(), state["positions"], generator())
    assert not torch.allclose(seen["mixing"], out["mixing"], atol=1e-4)


def test_main_modalities_attend_jointly():
    torch.manual_seed(0)
    block = MultimodalDitBlock(8, 2, ("a", "b"), ("c",)).double()
    x = {n: torch.randn(1, k, 8).double() for n, k in (("a", 3), ("b", 2), ("c", 4))}
    condition = torch.randn(1, 32).double()
    found = block(x, condition)

    def normed(y, s, b):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return y * (1 + s) + b

    parts = {n: block.modulation[n](condition)[:, None].chunk(6, -1) for n in x}
    qkv = {n: block.qkv[n](normed(x[n], *parts[n][:2]))[0] for n in x}
    seen = {"a": ("a", "b"), "b": ("a", "b"), "c": ("c", "a", "b")}
    for name in x:
        out = torch.zeros(x[name].shape[1], 8, dtype=torch.float64)
        for h in (0, 1):
            part = slice(4 * h, 4 * h + 4)
            q = qkv[name][:, :8][:, part]
            k, v = (torch.cat([qkv[n][:, 8 * i : 8 * i + 8][:, part] for n in seen[name]])
                    for i in (1, 2))  # fmt: skip
            out[:, part] = torch.softmax(q @ k.T / 2, -1) @ v
        y = x[name] + parts[name][2] * block.out[name](out)
        y = y + parts[name][5] * block.mlp[name](normed(y, *parts[name][3:5]))
        torch.testing.assert_close(found[name], y)


def test_a_bed_goes_on_step_by_step():
    model, state = bed(), bed_input(1)
    states = model.rollout(torch.tensor([[1.0]]), state, 2, generator(3))
    assert len(states) == 2
    one = model.step(torch.tensor([[1.0]]), state, generator(3))
    assert torch.equal(one["fluid"], states[0]["fluid"])
    assert bool((states[1]["positions"] >= 0).all())
    assert bool((states[1]["positions"] <= torch.tensor([1.0, 2.0])).all())


def test_training_learns_a_draining_hopper():
    runs = [demo.simulate(outlet, 0.4, 0, 8) for outlet in (8.0, 11.0)]
    data = demo.samples(runs)
    assert data.targets["left"][0, 0, 0] == 1 and data.targets["left"].min() < 0.5
    assert data.places["displacement"].shape == (16, 8, 2)
    few, more = (demo.train(data, 0, epochs, 8) for epochs in (1, 15))
    errors = [demo.off(demo._occupancy(t, runs[0]), runs[0].occupancy) for t in (few, more)]
    assert errors[1] < 0.7 * errors[0]


# ----------------------------------------------------------------------------------- bad input

TWO = np.array([[0.0, 0.0], [1.5, 0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: Dem2d.hopper(30.0), "outlet=30.0: must be between 2.1"),
        (lambda: Dem2d.hopper(2.0), "outlet=2.0: must be between 2.1"),
        (lambda: Dem2d.hopper(8.0, 90.0), "angle=90.0: must be between 0 and 90"),
        (
            lambda: Dem2d.hopper(8.0, friction=-0.1),
            "friction=-0.1: must be finite and not negative",
        ),
        (lambda: disc(0, 0, dt=0.02), r"dt=0.02: must be positive and at most 0.009935"),
        (lambda: disc(0, 0, stiffness=0.0), "stiffness=0.0: must be positive"),
        (lambda: Dem2d(TWO, np.ones(2)), "discs overlap by 0.5 at the start"),
        (
            lambda: disc(0, 0.5, walls=[(-5.0, 0.0, 5.0, 0.0)]),
            r"a disc reaches 0.5 into the wall \(-5.0, 0.0, 5.0, 0.0\)",
        ),
        (lambda: Dem2d(TWO, np.ones(3)), r"shape \(2, 2\): must be \(3, 2\)"),
        (lambda: Dem2d(TWO * 3, np.array([1.0, -1.0])), "radii: -1 must be positive"),
        (lambda: SinCosEmbedding(3, 2), "dim=3: must be at least 2 for each of 2 axes"),
        (lambda: SinCosEmbedding(4, 1)(torch.zeros(1, 2)), r"x has shape \(1, 2\): must end in 1"),
        (lambda: ScalarConditioner(8, ()), "must have at least one scalar"),
        (lambda: ScalarConditioner(8, ("a",), {"b": (0, 1)}), "ranges: 'b' is none of a"),
        (lambda: ScalarConditioner(8, ("a", "b"))(torch.zeros(1, 1)), r"\(batch, 2\), of a, b"),
        (
            lambda: ScalarConditioner(8, ("a",))(torch.full((1, 1), math.nan)),
            "scalar 'a' is not finite",
        ),
        (lambda: DitBlock(8, 3), "heads=3: must divide d=8"),
        (lambda: FieldDecoder(8, 2, 0, 2), "out=0: must be an int of at least 1"),
        (lambda: HopperModel({}, ("a",)), "must have at least one field"),
        (
            lambda: HopperModel({"x": 1}, ("a",), d=8, heads=2)(torch.zeros(1, 1), {"y": None}),
            r"field 'y': there is none; fields are \['x'\]",
        ),
        (lambda: bed(box=(1.0,)), r"box=\(1.0,\): must have as many axes"),
        (lambda: BedModel((5, 8), 2, ("a",), box=(1, 1)), r"grid\[0\]=5: must be a multiple of"),
        (lambda: SupernodePooling(8, 1, 2, 0.0), "radius=0.0: must be positive and finite"),
        (
            lambda: sample_particles(torch.zeros(2, 2), 3, torch.zeros(2, 2), generator()),
            "solid_fraction is 0 everywhere",
        ),
        (
            lambda: sample_particles(torch.ones(2, 2), 3, torch.zeros(2, 3), generator()),
            r"box has shape \(2, 3\): must be \(2, 2\)",
        ),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
