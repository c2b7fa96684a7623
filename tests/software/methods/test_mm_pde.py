"""MM-PDE: monitors and exact meshes, movers and their derivatives, the solver, Burgers' data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import RegularGridInterpolator

from sat.methods.mm_pde import (
    MMPDE,
    ArrayBranch,
    GraphBranch,
    GridFields,
    LearnedInterpolation,
    MeshMover,
    MessageLayer,
    MessagePassing,
    MlpBranch,
    burgers_2d,
    demo,
    determinant,
    equidistribution,
    monitor,
    move_1d,
    nearest,
    refine_last_layer,
    rollout,
    sample_points,
    train_mover,
    train_solver,
    uniform_mesh,
)
from sat.methods.mm_pde.message_passing import gather_nodes
from sat.methods.mm_pde.mover import TanhLayer
from sat.methods.problems.burgers import evolve, on_nodes
from sat.methods.problems.training import fit

SOLVER = {
    "hidden": 8, "layers": 1, "size": 8, "dt": 0.05, "gain": 1.0, "neighbours": 4, "k": 6,
    "interpolation": (8,), "weights": "softmax",
}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_mover(boundary="cos", seed=0, size=8, std=0.05, strength=4.0):
    torch.manual_seed(seed)
    mover = MeshMover(MlpBranch(size, (8, 8)), 8, boundary, strength, trunk=(8,), head=(16, 8))
    torch.nn.init.normal_(mover.last.weight, std=std)
    return mover


def random_fields(count=3, size=8, seed=0):
    return torch.rand(count, size, size, generator=generator(seed))


# --------------------------------------------------------------------------- monitors and lines


def test_monitor_holds_one_plus_strength():
    norm, alpha = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 1.0]]), torch.tensor([[2.0], [0.0]])
    assert monitor(norm, alpha, 3.0).tolist() == [[1, 4, 7], [1, 1, 1]]


@settings(max_examples=15)
@given(
    height=st.floats(0, 50), width=st.floats(0.02, 0.5), centre=st.floats(-0.2, 1.2),
    nodes=st.integers(2, 30),
)  # fmt: skip
def test_exact_meshes_hold_equal_integrals(height, width, centre, nodes):
    def m(x):
        return 1 + height * np.exp(-(((np.asarray(x) - centre) / width) ** 2))

    x = move_1d(m, nodes)
    assert x[0] == 0 and x[-1] == 1 and (np.diff(x) > 0).all()
    whole = quad(m, 0, 1, epsabs=1e-12, points=[min(max(centre, 0), 1)])[0]
    for a, b in zip(x, x[1:], strict=False):
        assert quad(m, a, b, epsabs=1e-13)[0] == pytest.approx(whole / (nodes - 1), rel=1e-8)


def test_exact_mesh_of_the_specifications_monitor():
    x = move_1d(lambda x: 1 + 9 / np.cosh(20 * (x - 0.4)) ** 2, 21)
    expected = [0.189799, 0.353551, 0.410122, 0.529948, 0.810000]
    np.testing.assert_allclose(x[[2, 5, 10, 15, 18]], expected, atol=1e-6)


def test_equidistribution_of_an_exact_mesh_is_zero():
    """x by an exact line mesh, its derivative θ / m; a uniform mesh: the deviation of m."""

    def m(x):
        return 1 + 9 / np.cosh(20 * (x - 0.4)) ** 2

    line = move_1d(m, 400)
    theta = 1 + 9 / 20 * (math.tanh(12) + math.tanh(8))
    x = torch.tensor(np.stack([line, np.full(400, 0.3)], -1))[None]
    jacobian = torch.eye(2, dtype=torch.float64).expand(1, 400, 2, 2).clone()
    jacobian[..., 0, 0] = torch.tensor(theta / m(line))

    def of_nodes(x):
        return torch.tensor(m(x[..., 0].numpy()))

    assert float(equidistribution(x, jacobian, of_nodes)) < 1e-12
    still = uniform_mesh(50, 2).double()[None]
    eye = torch.eye(2, dtype=torch.float64).expand(1, 2500, 2, 2)
    values = m(still[0, :, 0].numpy())
    assert float(equidistribution(still, eye, of_nodes)) == pytest.approx(
        values.std() / values.mean()
    )


def test_grid_fields_give_slopes_of_planes_and_what_numpy_says():
    axis = torch.linspace(0, 1, 9, dtype=torch.float64)
    plane = (2 * axis[:, None] - 3 * axis)[None]
    fields = GridFields(torch.cat([plane, plane * plane]))
    x = torch.rand(2, 30, 2, generator=generator(), dtype=torch.float64)
    slopes = fields.gradient(x)
    torch.testing.assert_close(slopes[0], torch.tensor([2.0, -3.0]).double().expand(30, 2))
    assert float(fields.alpha[0]) == pytest.approx(math.sqrt(13))
    for axis_number, slope in enumerate(np.gradient((plane * plane)[0].numpy(), 1 / 8)):
        exact = RegularGridInterpolator((axis, axis), slope)(x[1].numpy())
        np.testing.assert_allclose(slopes[1, :, axis_number], exact, atol=1e-12)
    assert len(fields[torch.tensor([1])]) == 1


def test_points_are_drawn_in_proportion_to_the_monitor():
    """A field that is flat but for its last cells: m is 1 there, 1 + b elsewhere in proportion."""
    values = torch.zeros(1, 11, 11)
    values[:, 8:] = torch.tensor([0.0, 1.0, 2.0])[:, None]
    fields = GridFields(values)
    points = sample_points(fields, 1000, 8.0, generator())
    mesh = uniform_mesh(200, 2)[None]
    m = monitor(torch.linalg.vector_norm(fields.gradient(mesh), dim=-1), fields.alpha[:, None], 8.0)
    steep = mesh[0, :, 0] > 0.7
    share = float(m[0, steep].sum() / m.sum())
    assert float((points[..., 0] > 0.7).float().mean()) == pytest.approx(share, abs=0.04)


# --------------------------------------------------------------------------------------- movers


@pytest.mark.parametrize("boundary", ("cos", "soft"))
def test_derivatives_are_autograds(boundary):
    mover = small_mover(boundary, std=0.5).double()
    u = random_fields().double()
    xi = torch.rand(3, 5, 2, generator=generator(1), dtype=torch.float64).requires_grad_()
    phi = mover.potential(u, xi)
    (first,) = torch.autograd.grad(phi.sum(), xi, create_graph=True)
    rows = [torch.autograd.grad(first[..., i].sum(), xi, retain_graph=True)[0] for i in (0, 1)]
    x, jacobian = mover.move(u, xi)
    torch.testing.assert_close(x, xi + first)
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(jacobian, torch.stack(rows, -2) + eye)
    shared, _ = mover.move(u, xi[0])
    torch.testing.assert_close(shared[0], x[0])


def test_trunk_and_branch_meet_as_one_layer_of_both():
    mover = small_mover().double()
    u, xi = random_fields(2).double(), torch.rand(4, 2, dtype=torch.float64)
    t = torch.cos(math.pi * xi)
    for layer in mover.trunk:
        t = torch.tanh(t @ layer.linear.weight.T + layer.bias)
    b = mover.branch(u)
    both = torch.cat([b[:, None].expand(-1, 4, -1), t.expand(2, -1, -1)], -1)
    weight = torch.cat([mover.meet_branch.weight, mover.meet.linear.weight], 1)
    h = torch.tanh(both @ weight.T + mover.meet.bias)
    for layer in mover.head:
        h = torch.tanh(h @ layer.linear.weight.T + layer.bias)
    torch.testing.assert_close(mover.potential(u, xi), h @ mover.last.weight[0])


def test_nodes_slide_along_their_sides():
    mover = small_mover(std=1.0)
    axis = torch.linspace(0, 1, 11)
    for end in (0.0, 1.0):
        side = torch.stack([torch.full_like(axis, end), axis], -1)
        x, _ = mover.move(random_fields(), side)
        assert bool((x[..., 0] == end).all()) and not torch.equal(x[..., 1], axis.expand(3, -1))
        assert bool((x[:, 0] == side[0]).all() and (x[:, -1] == side[-1]).all())
    soft = small_mover("soft", std=1.0)
    with torch.no_grad():
        x, _ = soft.move(random_fields(), side)
    assert float((x[..., 0] - 1).abs().max()) > 1e-3


def test_a_mover_starts_uniform_and_leaves_constant_fields_alone():
    torch.manual_seed(0)
    fresh = MeshMover(MlpBranch(8, (8,)), 8, trunk=(8,), head=(8,))
    mesh = uniform_mesh(5, 2)
    x, jacobian = fresh.move(random_fields(), mesh)
    assert torch.equal(x, mesh.expand(3, -1, -1)) and bool((determinant(jacobian) == 1).all())
    u = random_fields()
    u[1] = 0.7
    with pytest.warns(UserWarning, match="field 1 is constant: its mesh stays uniform"):
        x, jacobian = small_mover(std=1.0).move(u, mesh)
    assert torch.equal(x[1], mesh) and torch.equal(jacobian[1], torch.eye(2).expand(25, 2, 2))
    assert not torch.equal(x[0], mesh)


def test_losses_are_their_formulas():
    """A map that is known: φ = a cos πξ₁ cos πξ₂, put in by hand."""
    fields = GridFields(random_fields(2).double())
    xi = torch.rand(2, 40, 2, generator=generator(2), dtype=torch.float64)
    c, s = torch.cos(math.pi * xi), torch.sin(math.pi * xi)
    a, p = 0.2, math.pi
    rows = torch.stack([
        c.prod(-1), -p * s[..., 0] * c[..., 1], -p * c[..., 0] * s[..., 1],
        -p * p * c.prod(-1), p * p * s.prod(-1), -p * p * c.prod(-1),
    ], -1) * a  # fmt: skip
    for gradient in ("physical", "computational"):
        found = small_mover(strength=3.0)._terms(rows, rows[:, :0], fields, xi, gradient)
        x = (xi + rows[..., 1:3]).clamp(0, 1)
        j = torch.stack([1 + rows[..., 3], rows[..., 4], rows[..., 4], 1 + rows[..., 5]], -1)
        j = j.unflatten(-1, (2, 2))
        slope = fields.gradient(x)
        if gradient == "computational":
            slope = torch.einsum("bnij,bni->bnj", j, slope)
        m = 1 + 3 * slope.square().sum(-1).sqrt() / fields.alpha[:, None]
        interior = (m * torch.linalg.det(j) / 4 - 1).square().mean()
        diagonal = torch.diagonal(j, dim1=-2, dim2=-1)
        convex = torch.minimum(diagonal, torch.zeros(())).square().mean((0, 1)).sum()
        torch.testing.assert_close(found["interior"], interior)
        torch.testing.assert_close(found["convex"], convex)
        torch.testing.assert_close(found["loss"], interior + convex)
        assert float(convex) > 0
    soft = small_mover("soft", std=0.5)
    xi = torch.rand(3, 6, 2, generator=generator())
    terms = soft.losses(GridFields(random_fields()), xi)
    normal = []
    for axis in (0, 1):
        for end in (0.0, 1.0):
            side = xi.clone()
            side[..., axis] = end
            normal.append((soft.move(random_fields(), side)[0] - side)[..., axis])
    torch.testing.assert_close(terms["boundary"], torch.stack(normal).square().mean())
    whole = terms["interior"] + 1000 * terms["boundary"] + terms["convex"]
    torch.testing.assert_close(terms["loss"], whole)


def test_training_and_refining_spread_the_monitor():
    fields = demo.ridges(24, 3)
    mover = demo.make_mover(0)
    curve = train_mover(
        mover, fields, epochs=30, batch=8, points=32, lr=5e-3, oversample=1, generator=generator()
    )  # fmt: skip
    assert curve[-1] < 0.8 * curve[0]
    before = {n: p.clone() for n, p in mover.named_parameters()}
    (start, end), again = refine_last_layer(
        mover, fields, points=32, rounds=2, iterations=20, generator=generator()
    )
    assert end < start and again[1] < again[0]
    changed = {n for n, p in mover.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"last.weight"}


@pytest.mark.parametrize(
    "branch", (ArrayBranch(8, 16, 12), GraphBranch(8, 16, neighbours=5), MlpBranch(8, (4, 16)))
)
def test_branches_see_samples(branch):
    with torch.no_grad():
        out = branch(random_fields(4))
    assert out.shape == (4, 16) and float(out.std(0).max()) > 1e-4
    assert float(out.abs().max()) <= 1


def test_array_branch_adds_the_first_output_to_the_third():
    torch.manual_seed(0)
    branch = ArrayBranch(8, 4, 6)
    u = random_fields(2)
    conv = [
        lambda x, c=c: torch.tanh(
            torch.nn.functional.conv2d(x, c.weight, c.bias, c.stride, c.padding)
        )
        for c in branch.convolutions
    ]
    a = conv[0](u[:, None])
    assert a.shape == (2, 8, 4, 4)
    torch.testing.assert_close(branch(u), branch.dense(conv[3](a + conv[2](conv[1](a))).flatten(1)))


# --------------------------------------------------------------------------------------- solver


def test_messages_edge_by_edge():
    torch.manual_seed(0)
    layer = MessageLayer(2, 3).double().eval()
    h, u, x = (torch.randn(*s, dtype=torch.float64) for s in ((2, 5, 3), (2, 5), (2, 5, 2)))
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    edges = nearest(x, x, 3)[..., 1:]
    first = torch.cat([layer.receive.weight, layer.send.weight, layer.relate.weight], 1)
    update = torch.cat([layer.update_state.weight, layer.update_time.weight], 1)
    found = layer(h, u, x, t, edges)
    for b, i in np.ndindex(2, 5):
        total = torch.zeros(3, dtype=torch.float64)
        for j in edges[b, i].tolist():
            seen = torch.cat([h[b, i], h[b, j], (u[b, i] - u[b, j])[None], x[b, i] - x[b, j],
                              t[b][None]])  # fmt: skip
            total += torch.relu(layer.message(torch.relu(first @ seen + layer.receive.bias))) / 2
        inner = update @ torch.cat([h[b, i], total, t[b][None]]) + layer.update_state.bias
        out = h[b, i] + layer.update_out(torch.relu(inner))
        scale = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
        torch.testing.assert_close(found[b, i], out * scale)


def test_neighbours_are_the_nearest():
    x, y = torch.rand(2, 20, 2, generator=generator()), torch.rand(2, 7, 2)
    expected = torch.cdist(y.double(), x.double()).argsort(-1)[..., :4]
    assert torch.equal(nearest(x, y, 4), expected)
    values = torch.randn(2, 20, 3)
    taken = gather_nodes(values, expected)
    assert torch.equal(taken[1, 2, 3], values[1, expected[1, 2, 3]])


def test_interpolation_weighs_its_neighbours():
    torch.manual_seed(0)
    nodes, queries = uniform_mesh(6, 2)[None], torch.rand(1, 9, 2)
    near = nearest(nodes, queries, 4)
    values = torch.randn(1, 36)
    free = LearnedInterpolation(4, 2, (8,))
    weights = free.net(torch.cat([nodes[0, near[0]].flatten(1), queries[0]], -1))
    expected = (weights * values[0, near[0]]).sum(-1)
    torch.testing.assert_close(free(values, nodes, queries, near)[0], expected)
    soft = LearnedInterpolation(4, 2, (8,), "softmax")
    torch.testing.assert_close(
        soft(torch.full((1, 36), 0.3), nodes, queries, near), torch.full((1, 9), 0.3)
    )


def test_solver_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    model = MMPDE(small_mover(), **SOLVER).eval()
    u, t = random_fields(2), torch.tensor([0.0, 0.1])
    g = model.geometry(u)
    mesh = uniform_mesh(8, 2).expand(2, -1, -1)
    x, _ = model.mover.move(u, mesh)
    torch.testing.assert_close(g.x, x)
    moved = model.there(u.flatten(1), mesh, x, nearest(mesh, x, 6))
    change = model.back(0.05 * model.moved(moved, x, t, g.edges), x, mesh, nearest(x, mesh, 6))
    change = change + 0.05 * model.uniform(u.flatten(1), mesh, t, nearest(mesh, mesh, 5)[..., 1:])
    expected = u + change.view_as(u) + model.cut(u[:, None])[:, 0]
    torch.testing.assert_close(model(u, t), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(u, t, g), model(u, t))
    assert not any(p.requires_grad for p in model.mover.parameters())
    alone = MMPDE(small_mover(), branches=1, **SOLVER)
    assert alone.uniform is None and alone.moved is not None
    bare = MMPDE(small_mover(), keep=False, **SOLVER).eval()
    bare.load_state_dict(model.state_dict())
    torch.testing.assert_close(bare(u, t) + u, model(u, t), rtol=1e-5, atol=1e-6)


def test_forecasts_are_steps_and_training_helps():
    torch.manual_seed(0)
    data = torch.from_numpy(burgers_2d(3, 8, 4, 0.05, 0.02, solver_size=32, step=5e-3)).float()
    model = MMPDE(small_mover(std=0.01), **SOLVER)
    moved = {n: p.clone() for n, p in model.mover.named_parameters()}
    curve = train_solver(model, data, epochs=6, batch=4, lr=1e-2, generator=generator())
    assert curve[-1] < 0.5 * curve[0]
    assert all(torch.equal(p, moved[n]) for n, p in model.mover.named_parameters())
    out = rollout(model, data[:, 0], 2)
    one = model(data[:, 0], torch.zeros(3))
    torch.testing.assert_close(out[:, 0], one)
    torch.testing.assert_close(out[:, 1], model(one, torch.full((3,), 0.05)))
    line = MMPDE(None, 1, **SOLVER | {"size": 12})
    assert line(torch.rand(2, 12), torch.zeros(2)).shape == (2, 12)
    assert MessagePassing(2)(
        torch.rand(1, 9), uniform_mesh(3, 2)[None], torch.zeros(1), nearest(
            uniform_mesh(3, 2)[None], uniform_mesh(3, 2)[None], 4)
    ).shape == (1, 9)  # fmt: skip


def test_rates_are_cut_three_times():
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], 1.0)
    rates = []
    fit(
        lambda places: 0 * p.sum(), 4, optimizer, epochs=8, batch=4, generator=generator(),
        schedule="cuts", on_epoch=lambda _: rates.append(optimizer.param_groups[0]["lr"]),
    )  # fmt: skip
    assert rates == pytest.approx([1, 1, 0.4, 0.4, 0.16, 0.16, 0.064, 0.064])
    with pytest.raises(ValueError, match="schedule='up': must be one of onecycle, cosine, cuts"):
        fit(lambda _: p, 4, optimizer, epochs=1, batch=4, generator=generator(), schedule="up")


def test_a_folded_mesh_stops_the_solver():
    model = MMPDE(small_mover(std=3.0), **SOLVER)
    with pytest.raises(RuntimeError, match=r"field \d is folded at node \d+, \[.*train the mover"):
        model(random_fields(), torch.zeros(3))


# ------------------------------------------------------------------------------ Burgers' equation


def test_burgers_by_cole_and_hopf():
    """Along s = x + y: u = -2ν φ_s / φ with φ = 1 + a exp(-2ν (2π)² t) cos 2πs."""
    n, nu = 48, 0.05
    s = np.add.outer(np.arange(n), np.arange(n)) / n

    def exact(t):
        e = 0.6 * math.exp(-2 * nu * 4 * math.pi**2 * t)
        return 4 * math.pi * nu * e * np.sin(2 * math.pi * s) / (1 + e * np.cos(2 * math.pi * s))

    found = [evolve(exact(0), 0.2, viscosity=nu, step=h) for h in (0.02, 0.01)]
    errors = [np.abs(u - exact(0.2)).max() for u in found]
    assert errors[1] < 1e-6 and errors[0] > 8 * errors[1]
    np.testing.assert_allclose(evolve(np.full((8, 8), 0.4), 1, viscosity=0.1, step=0.1), 0.4)


def test_fields_on_nodes_and_trajectories():
    fine = np.arange(32) / 32
    waves = np.cos(2 * np.pi * (3 * fine[:, None] - 2 * fine)) + np.sin(4 * np.pi * fine)
    at = np.linspace(0, 1, 7)
    exact = np.cos(2 * np.pi * (3 * at[:, None] - 2 * at)) + np.sin(4 * np.pi * at)
    np.testing.assert_allclose(on_nodes(waves, 7), exact, atol=1e-13)
    u = burgers_2d(2, 9, 2, 0.02, seed=1, solver_size=64)
    half = burgers_2d(2, 9, 2, 0.02, seed=1, solver_size=64, step=1e-3)
    np.testing.assert_allclose(u, half, atol=1e-5)
    assert np.abs(u[:, :, 0]).max() < 0.05 * np.abs(u).max()


# ----------------------------------------------------------------------------------- bad input

FIELD = torch.rand(1, 8, 8)
MESH = uniform_mesh(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: monitor(FIELD, FIELD, -1.0), "strength=-1.0: must be finite and not negative"),
        (lambda: move_1d(np.cos, 1), "n=1: must be an int of at least 2"),
        (lambda: move_1d(lambda x: x - 0.5, 4), "m is not positive and finite"),
        (lambda: GridFields(FIELD[..., :4]), r"shape \(1, 8, 4\): must be \(fields, size, size\)"),
        (lambda: GridFields(FIELD / 0), "there are infinities or NaNs"),
        (lambda: small_mover().move(FIELD[:, :4, :4], MESH), r"\(1, 4, 4\): must be \(batch, 8, 8"),
        (lambda: small_mover().move(FIELD * math.nan, MESH), "u has infinities or NaNs"),
        (lambda: small_mover().move(FIELD, MESH + 0.1), r"xi reaches from 0.1 to 1.1: must be in"),
        (lambda: small_mover().move(FIELD, MESH[:, :1]), r"xi has shape \(16, 1\): must be"),
        (lambda: small_mover("hard"), "boundary='hard': must be one of cos, soft, none"),
        (lambda: small_mover(strength=-2.0), "strength=-2.0: must be finite and not negative"),
        (
            lambda: small_mover().losses(GridFields(FIELD), MESH[None], gradient="u"),
            "gradient='u': must be one of physical, computational",
        ),
        (lambda: MeshMover(MlpBranch(8, (4,)), 8), "width=8: must be the branch's, 4"),
        (lambda: ArrayBranch(10), "size=10: must be a multiple of 4"),
        (lambda: nearest(MESH[None], MESH[None], 17), "16 nodes: must be at least 17"),
        (lambda: MMPDE(None, 3), "dim=3: must be 2, or 1 without a mover"),
        (lambda: MMPDE(None, branches=3), "branches=3: must be 1, the moved mesh alone, or 2"),
        (lambda: MMPDE(None, dt=0.0), "dt=0.0: must be positive and finite"),
        (lambda: MMPDE(small_mover(), size=9), "size=9: must be that of the mover's samples, 8"),
        (
            lambda: MMPDE(None, **SOLVER)(FIELD[:, :4], torch.zeros(1)),
            r"u has shape \(1, 4, 8\) and t \(1,\): must be \(batch, 8, 8\)",
        ),
        (lambda: MessagePassing(2, 32, decoder="conv"), r"decoder='conv': must be 'conv' \(hidden"),
        (lambda: LearnedInterpolation(weights="near"), "weights='near': must be one of free"),
        (lambda: evolve(np.zeros((7, 7)), 1, viscosity=1, step=1), r"shape \(7, 7\): must be"),
        (lambda: evolve(np.zeros((8, 8)), 0, viscosity=1, step=1), "time=0: must be positive"),
        (lambda: evolve(np.zeros((8, 8)), 1, viscosity=-1, step=1), "viscosity=-1: must not be"),
        (lambda: burgers_2d(0, 8, 1, 1), "n=0: must be an int of at least 1"),
    ),
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_has_no_mover_says_so():
    alone = MMPDE(None, **SOLVER)
    with pytest.raises(RuntimeError, match="there is no mover"):
        alone.geometry(FIELD)
    with pytest.raises(RuntimeError, match="there is no mover"):
        alone.there_and_back(FIELD, None)
    with (
        np.errstate(all="ignore"),
        pytest.raises(RuntimeError, match="step=1: too long"),
    ):
        evolve(1e6 * np.random.default_rng(0).standard_normal((16, 16)), 9, viscosity=0, step=1)


def test_a_layer_of_values_is_tanh():
    layer = TanhLayer(3, 2)
    x = torch.randn(4, 1, 3)
    torch.testing.assert_close(layer(x), torch.tanh(x @ layer.linear.weight.T + layer.bias))
