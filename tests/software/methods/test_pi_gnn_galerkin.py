"""Graph neural Galerkin networks: graphs by numpy, residuals by scikit-fem, exact states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev
from skfem import (
    Basis,
    ElementQuad2,
    ElementTriP1,
    ElementTriP2,
    ElementTriRT0,
    ElementVector,
    FacetBasis,
    LinearForm,
    MeshQuad,
    MeshTri,
    MeshTri2,
)
from skfem.helpers import ddot, div, dot, grad, mul
from skfem.models.poisson import laplace, unit_load

from sat.methods.pi_gnn_galerkin import (
    ChebConv,
    FemSpace,
    GalerkinProblem,
    GraphNet,
    MixedSpace,
    Observations,
    elasticity,
    fit,
    graph,
    navier_stokes,
    nonlinear_diffusion,
    poisson,
    scaled_laplacian,
)
from sat.methods.pi_gnn_galerkin.demo import (
    newton_diffusion,
    plate_mesh,
    plate_reference,
    residual_error,
)
from sat.methods.problems.poisson import solve_poisson

SQUARE = MeshTri().refined(2).with_boundaries({
    "left": lambda x: x[0] == 0, "right": lambda x: x[0] == 1, "bottom": lambda x: x[1] == 0,
})  # fmt: skip
SEEDS = st.integers(0, 2**31)
EDGE = {"boundary": 0.0}


def space(element=None, mesh=SQUARE, intorder=4) -> FemSpace:
    return FemSpace.from_skfem(Basis(mesh, element or ElementTriP1(), intorder=intorder))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("multiplicity", [False, True])
def test_operator_by_loops(multiplicity):
    one = space(ElementTriP2())
    counts = np.zeros((one.n, one.n))
    for cell in one.dofs.numpy():
        for i in cell:
            for j in cell:
                counts[i, j] += i != j
    a = counts if multiplicity else np.minimum(counts, 1)
    degree = a.sum(1)
    expected = -a / np.sqrt(np.outer(degree, degree))
    got = scaled_laplacian(one.dofs, one.n, multiplicity).numpy()
    assert np.abs(got - expected).max() < 1e-15
    values = np.linalg.eigvalsh(got)
    assert values[0] == pytest.approx(-1, abs=1e-12) and values[-1] < 1


def test_sparse_operator_is_the_dense_one(monkeypatch):
    one = space()
    dense = scaled_laplacian(one.dofs, one.n)
    monkeypatch.setattr(graph, "DENSE", 10)
    sparse = scaled_laplacian(one.dofs, one.n)
    assert sparse.is_sparse and torch.equal(sparse.to_dense(), dense)
    net = GraphNet((2, 4, 1), 3).double()
    assert torch.allclose(net(one.nodes, sparse), net(one.nodes, dense), atol=1e-14)


@settings(max_examples=10)
@given(SEEDS, st.integers(1, 6))
def test_convolution_by_eigenvectors_and_numpys_polynomials(seed, order):
    """Σ T_k(L̂) X W_k = Q Σ T_k(Λ) Qᵀ X W_k."""
    one = space(mesh=MeshTri().refined(1))
    lhat = scaled_laplacian(one.dofs, one.n)
    conv = ChebConv(3, 2, order).double()
    x = random(one.n, 3, seed=seed)
    values, vectors = np.linalg.eigh(lhat.numpy())
    expected = conv.mix.bias.detach().numpy() + np.zeros((one.n, 2))
    for k, weight in enumerate(conv.mix.weight.detach().split(3, 1)):
        polynomial = chebyshev.chebval(values, np.eye(order)[k])
        expected = expected + vectors * polynomial @ vectors.T @ x.numpy() @ weight.numpy().T
    assert np.abs(conv(x, lhat).detach().numpy() - expected).max() < 1e-12


def test_a_node_sees_as_far_as_the_order():
    """Nodes of a line: through ChebConv of order K information goes K - 1 edges."""
    lhat = scaled_laplacian(np.stack([np.arange(9), np.arange(1, 10)], 1), 10)
    conv = ChebConv(1, 1, 4).double()
    x = torch.zeros(10, 1, dtype=torch.float64)
    x[0] = 1
    seen = (conv(x, lhat) - conv(0 * x, lhat)).abs().flatten() > 1e-12
    assert seen.nonzero().max() == 3


def test_weights_start_orthogonal_as_vectors():
    conv = ChebConv(4, 6, 5)
    rows = conv.mix.weight.detach().mT.reshape(5, 24)
    assert torch.allclose(rows @ rows.mT, 2 * torch.eye(5), atol=1e-6)
    assert not conv.mix.bias.any()


# ------------------------------------------------------------------------------------- residuals


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nonlinear", [False, True])
def test_residuals_are_scikit_fems(order, nonlinear):
    assert residual_error(order, nonlinear, 3) < 1e-13


@pytest.mark.parametrize(
    "mesh, element",
    [(MeshQuad().refined(2), ElementQuad2()), (MeshTri2.init_circle(1), ElementTriP2())],
    ids=["quadrilaterals", "curved triangles"],
)
def test_other_cells(mesh, element):
    basis = Basis(mesh, element, intorder=6)
    u = random(basis.N)
    got = FemSpace.from_skfem(basis).residual(nonlinear_diffusion(lambda u: 1 + u**2, 3.0), u)
    expected = LinearForm(lambda v, w: (1 + w.u**2) * dot(grad(w.u), grad(v)) - 3 * v).assemble(
        basis, u=basis.interpolate(u.numpy())
    )
    assert np.abs(got.numpy() - expected).max() < 1e-12


def test_fluxes_through_boundaries():
    one = space(ElementTriP2())
    facets = FacetBasis(SQUARE, one.basis.elem, facets="right", intorder=4)
    expected = LinearForm(lambda v, w: w.x[1] ** 2 * v).assemble(facets)
    got = one.boundary("right", lambda x, params: x[..., 1] ** 2, {}, 1)
    assert np.abs(got.numpy() - expected).max() < 1e-14
    assert float(one.boundary("boundary", 1.0, {}, 1).sum()) == pytest.approx(4)
    both = one.boundary("right", (2.0, -1.0), {}, 2)
    assert both.sum(0).tolist() == pytest.approx([2, -1])


def test_coefficients_may_vary_and_be_sought():
    one, u = space(), random(25)
    form = poisson(lambda x: 1 + x[..., 0], "f")
    expected = LinearForm(lambda v, w: (1 + w.x[0]) * dot(grad(w.u), grad(v)) - 7 * v).assemble(
        one.basis, u=one.basis.interpolate(u.numpy())
    )
    assert np.abs(one.residual(form, u, f=7.0).numpy() - expected).max() < 1e-13
    with pytest.raises(ValueError, match="parameter 'f': has no value"):
        one.residual(form, u)


def test_gradient_of_the_loss_goes_through_the_assembled_residual():
    """dL/dU = Kᵀ R / ‖R‖ on free rows, K and R by scikit-fem; nothing at values that are set."""
    one = space(ElementTriP2())
    problem = GalerkinProblem(one, poisson(1.0, 2.0), EDGE)
    raw = random(one.n).requires_grad_()
    loss = problem.loss(problem.placed(raw))
    loss.backward()
    k, load = laplace.assemble(one.basis), 2 * unit_load.assemble(one.basis)
    free = np.setdiff1d(np.arange(one.n), one.basis.get_dofs().flatten())
    u = np.zeros(one.n)
    u[free] = raw.detach().numpy()[free]
    r = (k @ u - load)[free]
    expected = np.zeros(one.n)
    expected[free] = (k[free].T @ r)[free] / np.linalg.norm(r)
    assert float(loss.detach()) == pytest.approx(np.linalg.norm(r), rel=1e-12)
    assert np.abs(raw.grad.numpy() - expected).max() < 1e-12


def test_energy_by_scikit_fems_matrices():
    one, u = space(ElementTriP2()), random(81, seed=2)
    k, load = laplace.assemble(one.basis), 2 * unit_load.assemble(one.basis)
    expected = u.numpy() @ (k @ u.numpy()) / 2 - load @ u.numpy()
    problem = GalerkinProblem(one, poisson(1.0, 2.0), EDGE)
    problem.require_energy()
    assert float(problem.energy(u)) == pytest.approx(expected, rel=1e-12)
    for form in (
        nonlinear_diffusion(lambda u: 1 + u**2),
        lambda u, du, x, params: (du, du[..., 0]),  # linear, but not symmetric
    ):
        with pytest.raises(ValueError, match="not linear and symmetric"):
            GalerkinProblem(one, form, EDGE).require_energy()


def test_plates_keep_exact_states():
    """A rotation takes no force; a uniform pull by 1 is u = (x, -ν y) / E."""
    one = space()
    x, y = one.nodes.T
    turned = torch.stack([-y, x], 1)
    assert float(one.residual(elasticity(2.0, 0.3), turned).abs().max()) < 1e-14
    problem = GalerkinProblem(
        one, elasticity(2.0, 0.3), {"left.0": 0.0, "bottom.1": 0.0}, components=2,
        neumann={"right": (1.0, 0.0)},
    )  # fmt: skip
    pulled = torch.stack([x, -0.3 * y], 1).flatten() / 2
    assert torch.allclose(problem.placed(pulled), pulled)
    assert float(problem.loss(pulled)) < 1e-14
    weight = one.residual(elasticity(2.0, 0.3, (3.0, -4.0)), 0 * turned)
    assert weight.sum(0).tolist() == pytest.approx([-3, 4])


def test_plate_with_a_hole_is_in_balance_at_scikit_fems_solution():
    mesh = plate_mesh(6, 4)
    problem = GalerkinProblem(
        space(mesh=mesh), elasticity(1.0, 0.3), {"left.0": 0.0, "bottom.1": 0.0}, components=2,
        neumann={"right": (1.0, 0.0)},
    )  # fmt: skip
    assert float(problem.loss(torch.from_numpy(plate_reference(mesh)).flatten())) < 1e-13


def taylor_hood(mesh=SQUARE) -> MixedSpace:
    return MixedSpace({
        "velocity": (space(ElementTriP2(), mesh, 6), 2), "pressure": (space(None, mesh, 6), 1),
    })  # fmt: skip


def test_flow_residuals_are_scikit_fems():
    mixed = taylor_hood()
    (p2, _), (p1, _) = mixed.unknowns.values()
    u, p = random(p2.n, 2), random(p1.n, seed=1)
    got = mixed.residual(navier_stokes(50.0), {"velocity": u, "pressure": p})
    vector = Basis(SQUARE, ElementVector(ElementTriP2()), intorder=6)
    # Vector dofs: components of vertices, then of edges; those of the scalar space in that order.
    dofs = np.concatenate([vector.nodal_dofs.T, vector.facet_dofs.T])
    scalar = np.concatenate([p2.basis.nodal_dofs.T, p2.basis.facet_dofs.T])[:, 0]
    flat = np.zeros(vector.N)
    flat[dofs] = u.numpy()[scalar]
    known = {"u": vector.interpolate(flat), "p": p1.basis.interpolate(p.numpy())}
    momentum = LinearForm(
        lambda v, w: ddot(grad(w.u), grad(v)) / 50 - w.p * div(v) + dot(mul(grad(w.u), w.u), v)
    ).assemble(vector, **known)
    mass = LinearForm(lambda q, w: div(w.u) * q).assemble(p1.basis, **known)
    assert np.abs(got["velocity"].numpy()[scalar] - momentum[dofs]).max() < 1e-12
    assert np.abs(got["pressure"].numpy() - mass).max() < 1e-13


def test_channel_flow_is_exact():
    """u = (y (1 - y), 0), p = -2 x / Re is in these spaces, and its outflow takes no flux there."""
    mixed = taylor_hood()
    (p2, _), (p1, _) = mixed.unknowns.values()
    profile = {
        "velocity.boundary.0": lambda x: x[:, 1] * (1 - x[:, 1]), "velocity.boundary.1": 0.0,
        "pressure.node0": 0.0,
    }  # fmt: skip
    problem = GalerkinProblem(mixed, navier_stokes(50.0), profile)
    y = p2.nodes[:, 1]
    velocity = torch.stack([y * (1 - y), 0 * y], 1)
    pressure = -2 * (p1.nodes[:, 0] - p1.nodes[0, 0]) / 50
    flat = torch.cat([velocity.flatten(), pressure])
    assert torch.allclose(problem.placed(flat), flat)
    assert float(problem.loss(flat)) < 1e-14
    without = {place: value for place, value in profile.items() if "pressure" not in place}
    with pytest.raises(ValueError, match="of pressure is free up to a constant: .*'node0': 0.0"):
        GalerkinProblem(mixed, navier_stokes(50.0), without)


# -------------------------------------------------------------------------------------- training


def test_a_network_finds_the_solution_and_keeps_the_edge():
    one = space(mesh=MeshTri.init_circle(1))
    reference = torch.from_numpy(solve_poisson(one.basis, lambda x: 2 + 0 * x[0]))
    problem = GalerkinProblem(one, poisson(1.0, 2.0), EDGE)
    for loss in ("residual", "energy"):
        net = GraphNet((2, 16, 16, 1), 4)
        found = fit(problem, net, 200, 1e-2, loss, seed=0)
        assert float((found.U - reference).norm() / reference.norm()) < 0.02
        assert not found.U[one.where("boundary")].any()
        assert len(found.history["loss"]) == 200
        assert found.history["loss"][-1] < found.history["loss"][0]
    again = fit(problem, GraphNet((2, 16, 16, 1), 4), 200, 1e-2, "energy", seed=0)
    assert torch.equal(again.U, found.U)


def test_one_value_determines_the_load():
    one = space(mesh=MeshTri.init_circle(1))
    reference = solve_poisson(one.basis, lambda x: 2 + 0 * x[0])
    sensor = one.nearest((0.2, -0.1))
    seen = Observations([sensor], [reference[sensor]])
    problem = GalerkinProblem(one, poisson(1.0, "f"), EDGE, seen, {"f": 0.25})
    assert problem.held[sensor] and problem.rows[sensor]
    steps = []
    found = fit(
        problem, GraphNet((2, 16, 16, 1), 4), 300, 1e-2, param_lr=3e-2, seed=0,
        on_step=lambda step, u: steps.append((step, float(u[sensor]))),
    )  # fmt: skip
    assert found.params["f"] == pytest.approx(2, abs=0.02)
    assert found.history["f"][0] == 0.25 and float(found.U[sensor]) == reference[sensor]
    assert steps[0] == (0, reference[sensor]) and len(steps) == 300


def test_soft_observations_are_a_penalty():
    one = space()
    seen = Observations([12, 20], [3.0, 1.0], "soft", 10.0)
    problem = GalerkinProblem(one, poisson(1.0, "f"), EDGE, seen, {"f": 1.0})
    plain = GalerkinProblem(one, poisson(1.0, 1.0), EDGE)
    u = plain.placed(random(25))
    off = ((u[12] - 3) ** 2 + (u[20] - 1) ** 2) / 2
    assert float(problem.loss(u) - plain.loss(u)) == pytest.approx(10 * float(off), rel=1e-12)
    assert not problem.held[12]


def test_several_problems_share_a_network():
    """Loads 1 and 3, which the network is told: solutions are one another's triples."""
    one = space()
    problems = [
        GalerkinProblem(
            one, poisson(1.0, f), EDGE,
            features=torch.full((one.n, 1), f, dtype=torch.float64),
        )
        for f in (1.0, 3.0)
    ]  # fmt: skip
    found = fit(problems, GraphNet((3, 16, 16, 1), 4), 300, 1e-2, seed=0)
    reference = torch.from_numpy(solve_poisson(one.basis, lambda x: 1 + 0 * x[0]))
    for u, f in zip(found.U, (1, 3), strict=True):
        assert float((u - f * reference).norm() / (f * reference).norm()) < 0.1
    rows = sum(p.residual(u).abs() for p, u in zip(problems, found.U, strict=True))
    last = float(rows[problems[0].rows].norm())
    assert last == pytest.approx(found.history["loss"][-1], rel=0.02)


def test_a_flow_trains_by_one_network_a_component():
    problem = GalerkinProblem(
        taylor_hood(MeshTri().refined(1)), navier_stokes(10.0),
        {"velocity.boundary.0": lambda x: x[:, 1], "velocity.boundary.1": 0.0,
         "pressure.node0": 0.0},
    )  # fmt: skip
    nets = {
        "velocity": [GraphNet((2, 8, 1), 3), GraphNet((2, 8, 1), 3)],
        "pressure": [GraphNet((2, 8, 1), 3)],
    }
    found = fit(problem, nets, 150, 1e-2, seed=0)
    assert found.U["velocity"].shape == (25, 2) and found.U["pressure"].shape == (9,)
    assert found.history["loss"][-1] < 0.1 * found.history["loss"][0]
    with pytest.raises(ValueError, match="need networks each"):
        fit(problem, GraphNet((2, 3), 2), 1)
    with pytest.raises(ValueError, match="'velocity' of 2 components: must have one network"):
        fit(problem, {**nets, "velocity": nets["velocity"] * 2}, 1)


def test_newtons_solution_has_no_residual():
    one = space(ElementTriP2(), intorder=8)
    u = torch.from_numpy(newton_diffusion(one.basis, 10.0))
    problem = GalerkinProblem(one, nonlinear_diffusion(lambda u: 1 + u**2, 10.0), EDGE)
    assert float(problem.loss(u)) < 1e-12


# ------------------------------------------------------------------------------------- bad input


def test_bad_graphs_and_layers():
    lhat = torch.eye(3, dtype=torch.float64)
    for call, message in (
        (lambda: scaled_laplacian([[0, 1]], 3), "node 2 has no neighbour"),
        (lambda: scaled_laplacian([[0, 5]], 3), "0 to 2"),
        (lambda: scaled_laplacian([0, 1], 3), "must be"),
        (lambda: ChebConv(2, 2, 0), "order=0: must be an int of at least 1"),
        (lambda: GraphNet((2,)), "input and output at least"),
        (lambda: ChebConv(2, 2)(torch.zeros(3, 3), lhat), r"must be \(n, 2\), \(n, n\)"),
        (lambda: ChebConv(2, 2)(torch.zeros(4, 2), lhat), "must be"),
        (lambda: elasticity(0.0), "E=0.0: must be positive"),
        (lambda: elasticity(1.0, 0.5), "nu=0.5: must be within"),
        (lambda: navier_stokes(-1.0), "re=-1.0: must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_spaces():
    one = space()
    with pytest.raises(ValueError, match="must be a scalar Lagrange element"):
        FemSpace.from_skfem(Basis(SQUARE, ElementVector(ElementTriP1())))
    with pytest.raises(ValueError, match="must be a scalar Lagrange element"):
        FemSpace.from_skfem(Basis(SQUARE, ElementTriRT0()))
    with pytest.raises(ValueError, match=r"must be \(25, …\)"):
        one.interpolate(random(24))
    for form in (
        lambda u, du, x, params: (du[..., 0], u),
        lambda u, du, x, params: (du, u[:, :1]),
    ):
        with pytest.raises(ValueError, match="form returned flux"):
            one.residual(form, random(25))
    with pytest.raises(ValueError, match="no such boundary; it has"):
        one.where("top")
    with pytest.raises(ValueError, match="its flux has shape"):
        one.boundary("right", (1.0, 2.0), {}, 1)
    with pytest.raises(ValueError, match="pressure: has another quadrature"):
        MixedSpace({"velocity": (space(ElementTriP2()), 2), "pressure": (space(intorder=2), 1)})
    with pytest.raises(ValueError, match="needs unknowns"):
        MixedSpace({})
    mixed = taylor_hood()
    values = {"velocity": random(81, 2), "pressure": random(25)}
    for form, message in (
        (lambda u, du, x, params: {"pressure": (du["pressure"], u["pressure"])}, "must be of the"),
        (
            lambda u, du, x, params: {n: (du[n], u["pressure"]) for n in u},
            "returned source .* of velocity",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            mixed.residual(form, values)


@pytest.mark.parametrize(
    "dirichlet, options, message",
    [
        ({}, {}, "free up to a constant: set a value on a boundary, or pin one node"),
        ({"top": 0.0}, {}, "'top': the mesh has no such boundary"),
        ({"boundary.1": 0.0}, {}, "component 1: the field has 1"),
        ({"boundary.x": 0.0}, {}, "component 'x' must be a number"),
        ({"node99": 0.0}, {}, "nodes 99 to 99: the space has 25"),
        ({"left": [1.0, 2.0]}, {}, r"values of shape \(2,\): must be a number or \(5,\)"),
        ({"left": np.nan}, {}, "dirichlet values have NaNs"),
        (EDGE, {"params": {"f": 1.0}}, "are sought without data"),
        (EDGE, {"observed": Observations([0], [1.0])}, "node 0: observed 1, but set to 0"),
        (EDGE, {"observed": Observations([12], [np.inf])}, "observed values have NaNs"),
        (EDGE, {"observed": Observations([12, 12], [0, 1])}, "node 12: observed twice, with"),
        (EDGE, {"observed": Observations([12], [])}, "1 nodes and 0 values observed"),
        (EDGE, {"observed": Observations([25], [0.0])}, "nodes 25 to 25: the space has 25"),
        (EDGE, {"observed": Observations([12], [0.0], "exact")}, "kind='exact': must be one of"),
        (EDGE, {"observed": Observations([12], [0.0], "soft", 0.0)}, "penalty=0.0"),
        (EDGE, {"observed": Observations([12], [0.0], component=1)}, "component 1"),
        (
            EDGE,
            {"observed": Observations([12], [0.0]), "params": {"f": np.nan}},
            "f=nan must be finite",
        ),
        (EDGE, {"features": torch.zeros(3, 1)}, r"must be \(25, k\)"),
    ],
)
def test_bad_problems(dirichlet, options, message):
    with pytest.raises(ValueError, match=message):
        GalerkinProblem(space(), poisson(1.0, 1.0), dirichlet, **options)


def test_a_reaction_needs_no_pin():
    GalerkinProblem(space(), lambda u, du, x, params: (du, u), {})


def test_soft_observations_pin():
    """Of -Δu = 1 with as much flowing out, the level is what was seen."""
    seen = Observations([12, 12], [3.0, 4.0], "soft")
    problem = GalerkinProblem(space(), poisson(1.0, 1.0), {}, seen, neumann={"boundary": -0.25})
    flat = torch.from_numpy(np.full(25, 3.5))
    assert float(problem.penalty(flat)) == 0.25


def test_later_places_hold_where_they_meet():
    one = space()
    problem = GalerkinProblem(one, poisson(1.0, 1.0), {"left": 1.0, "bottom": 2.0})
    corner = one.nearest((0.0, 0.0))
    assert float(problem.placed(torch.zeros(25, dtype=torch.float64))[corner]) == 2


def test_bad_unknowns():
    with pytest.raises(ValueError, match=r"'boundary': must begin with an unknown and a dot"):
        GalerkinProblem(taylor_hood(), navier_stokes(1.0), EDGE)
    with pytest.raises(ValueError, match="unknown None: must be one of"):
        GalerkinProblem(
            taylor_hood(), navier_stokes(1.0),
            {"velocity.boundary": 0.0, "pressure.node0": 0.0}, Observations([0], [0.0]),
        )  # fmt: skip


def test_bad_trainings():
    problem = GalerkinProblem(space(), poisson(1.0, 1.0), EDGE)
    net = GraphNet((2, 1), 2)
    for options, message in (
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, "lr=0.0: must be positive"),
        ({"param_lr": -1.0}, "param_lr=-1.0"),
        ({"loss": "square"}, "loss='square': must be one of residual, energy"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(problem, net, **{"steps": 1, **options})
    with pytest.raises(ValueError, match=r"the network of the field gave \(25, 2\)"):
        fit(problem, GraphNet((2, 2), 2), 1)
    with pytest.raises(ValueError, match="the loss is .*; lower lr=1e\\+200"):
        fit(problem, net, 5, 1e200)
    with pytest.raises(ValueError, match="all with as many rows"):
        fit([problem, GalerkinProblem(space(), poisson(1.0, 1.0), {"left": 0.0})], net, 1)
    with pytest.raises(ValueError, match="NoReset has no reset"):
        fit(problem, {"": [NoReset()]}, 1, seed=0)
    seen = GalerkinProblem(space(), poisson(1.0, "f"), EDGE, Observations([12], [1.0]), {"f": 1.0})
    with pytest.raises(ValueError, match="no meaning for sought parameters"):
        fit(seen, net, 1, loss="energy")
    fine = GalerkinProblem(space(mesh=MeshTri().refined(5)), poisson(1.0, 1.0), EDGE)
    with pytest.warns(UserWarning, match="use float64"):
        fit(fine, GraphNet((2, 1), 2), 1, dtype=torch.float32)


class NoReset(torch.nn.Module):
    def forward(self, x, lhat):
        return x[:, :1]
