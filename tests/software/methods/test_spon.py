"""SPON's parts against exact values: spaces, encoders, decoders, transfers, the V-cycle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skfem import (
    Basis,
    ElementLineP1,
    ElementTriHHJ0,
    ElementTriP1,
    ElementTriP2,
    ElementTriRT0,
    ElementVector,
    LinearForm,
    MeshLine,
    MeshTri,
)

from sat.methods.problems.poisson import solve_poisson
from sat.methods.spon import (
    SPON,
    FeDecoder,
    FeFunction,
    FeSpace,
    GraphProcessor,
    LinearProcessor,
    MeshHierarchy,
    MlpProcessor,
    MultigridProcessor,
    ProjectionEncoder,
    fe_norm,
    fit,
    relative_fe_error,
)

MESH = MeshTri.init_lshaped().refined(1)


def space(element=None, dirichlet=None, mesh=MESH, **options) -> FeSpace:
    return FeSpace.from_skfem(Basis(mesh, element or ElementTriP1()), dirichlet, **options)


def test_solutions_converge_to_an_exact_one():
    """-Laplace u + u³ for u = sin(pi x) sin(pi y), which is 0 on the L-shape's edges."""

    def exact(x):
        return np.sin(np.pi * x[0]) * np.sin(np.pi * x[1])

    errors = []
    for refinements in (2, 3, 4):
        basis = Basis(MeshTri.init_lshaped().refined(refinements), ElementTriP1(), intorder=6)
        u = solve_poisson(basis, lambda x: 2 * np.pi**2 * exact(x) + exact(x) ** 3, cubic=1.0)
        off = np.asarray(basis.interpolate(u)) - exact(np.asarray(basis.global_coordinates()))
        errors.append(np.sqrt((off**2 * basis.dx).sum()))
    assert errors[0] / errors[1] > 3.4 and errors[1] / errors[2] > 3.7
    with pytest.raises(ValueError, match="cubic=-1"):
        solve_poisson(basis, exact, cubic=-1)


def test_norms_of_known_functions():
    p2, vector = space(ElementTriP2()), space(ElementVector(ElementTriP1()))
    x, y = p2.points.T
    # On three unit squares: ∫ x² = 1, |grad|² = 1 over the area of 3.
    assert fe_norm(x, p2).item() == pytest.approx(1, abs=1e-12)
    assert fe_norm(x, p2, "h1").item() == pytest.approx(2, abs=1e-12)
    both = ProjectionEncoder(vector)(lambda p: p)
    assert fe_norm(both, vector).item() == pytest.approx(np.sqrt(2), abs=1e-12)
    assert fe_norm(both, vector, "h1").item() == pytest.approx(np.sqrt(8), abs=1e-12)
    assert relative_fe_error(3 * x, x, p2).item() == pytest.approx(2, abs=1e-12)


def test_projection_keeps_what_the_space_holds_and_is_orthogonal_to_the_rest():
    p2 = space(ElementTriP2())
    c = ProjectionEncoder(p2)(lambda p: torch.stack([p[:, 0] * p[:, 1], p[:, 0] ** 2]))
    points = torch.tensor([[-0.3, 0.4], [0.2, -0.9]], dtype=torch.float64)
    assert torch.allclose(FeFunction(p2, c).at(points)[0], points.prod(1), atol=1e-12)
    p1 = space()
    c = ProjectionEncoder(p1)(lambda p: p[:, 0] ** 3)
    fine = Basis(MESH, ElementTriP1(), intorder=12)
    off = LinearForm(lambda v, w: (w.x[0] ** 3 - w.u) * v)
    assert np.abs(off.assemble(fine, u=fine.interpolate(c.numpy()))).max() < 1e-12


def test_the_same_function_on_another_mesh_is_the_same_input():
    """Projections of one function on two meshes agree up to h²; nodal values of a kink do not."""
    coarse, fine = space(mesh=MESH.refined(1)), space(mesh=MESH.refined(2))
    smooth = lambda p: torch.sin(3 * p[:, 0] + p[:, 1])  # noqa: E731
    there = FeFunction(coarse, ProjectionEncoder(coarse)(smooth))
    back = ProjectionEncoder(fine)(there)
    assert relative_fe_error(back, ProjectionEncoder(fine)(smooth), fine).item() < 0.03
    nodal = ProjectionEncoder(fine, "nodal")(there)
    assert torch.equal(nodal, there.at(fine.points))


def test_fields_of_raviart_thomas_are_continuous_across_edges():
    rt = space(ElementTriRT0())
    u = FeFunction(rt, torch.randn(3, rt.dofs, dtype=torch.float64))
    # The edge between (-1, 0) and (0, 0) has normal (0, 1).
    below, above = (
        u.at(torch.tensor([[-0.6, -eps], [-0.2, -eps]], dtype=torch.float64))
        for eps in (1e-9, -1e-9)
    )
    assert below.shape == (3, 2, 2)
    assert torch.allclose(below[..., 1], above[..., 1], atol=1e-6)
    assert not torch.allclose(below[..., 0], above[..., 0], atol=1e-2)
    with pytest.raises(ValueError, match="no H1 norm"):
        fe_norm(u.dofs, rt, "h1")


def test_boundary_values_are_selected():
    v = space(dirichlet=True)
    y = torch.randn(2, v.dofs, requires_grad=True)
    g = torch.randn(2, int(v.fixed.sum()))
    for decoded, want in (
        (FeDecoder(v)(y), torch.zeros_like(g)),
        (FeDecoder(v)(y, g), g),
        (FeDecoder(v, lambda p: p[:, 0])(y), v.points[v.fixed, 0].float().expand(2, -1)),
        (FeDecoder(v, {int(d): float(d) for d in v.fixed.nonzero()})(y),
         v.fixed.nonzero()[:, 0].float().expand(2, -1)),
    ):  # fmt: skip
        assert torch.equal(decoded.dofs[:, v.fixed], want)
        assert torch.equal(decoded.dofs[:, ~v.fixed], y[:, ~v.fixed])
    FeDecoder(v)(y).dofs.sum().backward()
    assert torch.equal(y.grad, (~v.fixed).float().expand(2, -1))


def test_dofs_that_are_one_and_means():
    basis = Basis(MeshLine().refined(3), ElementLineP1())
    ends = [int(basis.get_dofs(lambda x, at=at: x[0] == at).flatten()[0]) for at in (0.0, 1.0)]
    circle = FeSpace.from_skfem(basis, periodic=[(ends[0], ends[1])])
    assert circle.dofs == basis.N - 1
    u = FeFunction(circle, torch.randn(circle.dofs, dtype=torch.float64))
    left, right = u.at(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert left == right
    assert fe_norm(torch.ones(circle.dofs), circle).item() == pytest.approx(1)
    shifted = FeDecoder(circle, mean=0.5)(torch.randn(4, circle.dofs)).dofs.double()
    means = shifted @ torch.from_numpy(np.asarray(circle.mass.sum(0)).ravel())
    assert torch.allclose(means, torch.full_like(means, 0.5), atol=1e-6)


def test_transfers_between_nested_meshes():
    meshes = MeshHierarchy.from_skfem(MeshTri.init_lshaped(), 3)
    for level in (1, 2):
        up, down = meshes.prolongation[level].toarray(), meshes.restriction[level].toarray()
        coarse = Basis(meshes.meshes[level - 1], ElementTriP1())
        by_hand = coarse.probes(meshes.points[level].T).toarray()
        assert np.allclose(up, by_hand, atol=1e-12)
        assert np.allclose(down, up.T / up.sum(0)[:, None], atol=1e-12)
    near = meshes.adjacency[0].toarray()
    assert np.allclose(near.sum(1), 1) and (near.diagonal() > 0).all()


def test_the_v_cycle_by_hand():
    """The whole processor, written out with dense matrices in float64."""
    torch.manual_seed(0)
    meshes = MeshHierarchy.from_skfem(MeshTri.init_lshaped(), 2)
    net = MultigridProcessor(meshes, 4, smooth=1).double()
    c = torch.randn(3, len(meshes.points[1]), dtype=torch.float64)
    a = [torch.from_numpy(m.toarray()) for m in meshes.adjacency]
    up = torch.from_numpy(meshes.prolongation[1].toarray())
    down = torch.from_numpy(meshes.restriction[1].toarray())

    def smooth(part, h, near):
        inner = h @ part.own.weight.T + part.own.bias + (near @ h) @ part.near.weight.T
        return h + 0.5 * inner * (1 + torch.erf(inner / 2**0.5))

    for sample, got in zip(c, net(c), strict=True):
        x = torch.cat([sample[:, None], torch.from_numpy(meshes.points[1])], 1)
        h = x @ net.lift.weight.T + net.lift.bias
        stored = smooth(net.down[0][0], h, a[1])
        h = smooth(net.coarse[0], down @ stored, a[0])
        h = smooth(net.up[0][0], stored + up @ h, a[1])
        want = (h @ net.head.weight.T + net.head.bias)[:, 0]
        assert torch.allclose(got, want, atol=1e-12)


def test_weights_serve_finer_meshes():
    torch.manual_seed(0)
    two, three = (MeshHierarchy.from_skfem(MeshTri.init_lshaped(), levels) for levels in (2, 3))
    net = MultigridProcessor(two, 4)
    c = torch.randn(2, len(two.points[1]))
    assert torch.equal(net.on(two)(c), net(c))
    finer = net.on(three)
    assert finer(torch.randn(2, len(three.points[2]))).shape == (2, len(three.points[2]))
    assert finer.up[1][0].own.weight is finer.up[0][0].own.weight
    with pytest.raises(ValueError, match="levels: these weights are of 3"):
        MultigridProcessor(three, 4).on(two)


def test_parameters_of_the_processors():
    meshes = MeshHierarchy.from_skfem(MESH, 3)
    nodes = len(meshes.points[-1])
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert count(MultigridProcessor(meshes, 16)) == 5361
    assert count(GraphProcessor(meshes.adjacency[-1], 16, 10, meshes.points[-1])) == 5361
    assert count(MlpProcessor(nodes, 64, nodes)) == nodes * 64 + 64 + 64 * nodes + nodes


def test_training_lowers_the_error_and_finds_a_linear_map():
    v = space(dirichlet=True)
    torch.manual_seed(0)
    c = torch.randn(60, v.dofs)
    y = c.roll(1, 1) * ~v.fixed
    net = SPON(ProjectionEncoder(v), MlpProcessor(v.dofs, 32, v.dofs), FeDecoder(v))
    losses = fit(net, c, y, epochs=40, lr=1e-2)
    assert len(losses) == 40 and losses[-1] < 0.6 * losses[0]
    linear = LinearProcessor(v.dofs, v.dofs)
    linear.solve(c, y)
    off = FeDecoder(v)(linear(c)).dofs - y
    assert off.abs().max() < 1e-4


def bad(call, said, error=ValueError):
    with pytest.raises(error, match=said):
        call()


def test_bad_input_says_what_is_wrong():
    v, w = space(dirichlet=True), space(mesh=MeshTri().refined(2))
    encoder, decoder = ProjectionEncoder(v), FeDecoder(v)
    linear = LinearProcessor(v.dofs, v.dofs)
    net = SPON(encoder, linear, decoder)
    c = torch.randn(4, v.dofs)
    free = int((~v.fixed).nonzero()[0])
    bad(lambda: SPON(ProjectionEncoder(w), linear, decoder), "other domains")
    bad(lambda: SPON(encoder, linear, decoder, (0.0, 1.0)), "scales=")
    bad(lambda: MeshHierarchy([MESH, MeshTri.init_symmetric().refined(1)]), "not nested, node")
    bad(lambda: MeshHierarchy.from_skfem(MESH, 0), "at least one level")
    bad(lambda: FeDecoder(v, {free: 1.0}), f"dof {free}: that dof is free")
    bad(lambda: FeDecoder(v, {}), "no value for the fixed dof")
    bad(lambda: FeDecoder(v, torch.zeros(2)), "boundary of 2 values")
    bad(lambda: FeDecoder(w)(torch.zeros(w.dofs), 1.0), "no fixed dofs")
    bad(lambda: FeDecoder(v, mean=0.0), "mean=0.0")
    bad(lambda: encoder(lambda p: p), "must end in")
    bad(lambda: encoder(lambda p: p[:, 0] / 0), "NaN or infinite")
    bad(lambda: encoder(c[:, 1:]), f"this space has n={v.dofs} dofs")
    bad(lambda: ProjectionEncoder(v, "mean"), "method='mean'")
    bad(lambda: ProjectionEncoder(space(ElementTriRT0()), "nodal"), "no values at points")
    bad(lambda: FeFunction(v, c).at(torch.tensor([[0.5, 0.5]])), "outside the mesh")
    bad(lambda: FeFunction(v, c).at(torch.zeros(2, 3)), "must be")
    bad(lambda: fe_norm(c, v, "h2"), "kind='h2'")
    bad(lambda: space(dirichlet="left"), "no boundary of that name")
    bad(lambda: space(dirichlet=[10**6]), "the basis has")
    bad(lambda: space(periodic=[(0, 10**6)]), "periodic dof")
    with np.errstate(all="ignore"):
        flat = MeshTri(np.array([[0, 1, 0, 0.5], [0, 0, 1, 0]]), np.array([[0, 0], [1, 3], [2, 1]]))
        basis = Basis(flat, ElementTriP1())
    bad(lambda: FeSpace.from_skfem(basis), "singular at dof 3")
    bad(lambda: fit(net, c, c[1:]), "must be as many")
    bad(lambda: fit(net, c, 0 * c), "0 everywhere")
    bad(lambda: fit(net, c, c, epochs=0), "epochs=0")
    meshes = MeshHierarchy.from_skfem(MESH, 1)
    bad(lambda: MultigridProcessor(meshes, 4)(c[:, 1:]), "must be \\(batch")
    bad(lambda: space(ElementTriHHJ0()), "has no Gram matrix")
