"""ROM-net: angles by scipy, medoids by brute force, bases, the classifier, Galerkin models."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sat.methods.rom_net import (
    Classifier,
    LocalBases,
    NonlinearDiffusion1D,
    ROMNet,
    cnn,
    efficiency_criterion,
    euclidean_dissimilarity,
    k_medoids,
    mlp,
    pod_basis,
    projection_error,
    sine_dissimilarity,
    subspace_dissimilarity,
)
from sat.methods.rom_net.net import galerkin

PROBLEM = NonlinearDiffusion1D(40)
DATA, UNSEEN = PROBLEM.snapshots(80, 0), PROBLEM.snapshots(40, 1)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_mass(n: int, seed: int = 0) -> torch.Tensor:
    a = random(n, n, seed=seed)
    return a @ a.mT / n + torch.eye(n, dtype=torch.float64)


SEEDS = st.integers(0, 2**31)


# ------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("n, bound", [(50, 6.5e-3), (100, 1.7e-3), (200, 4.2e-4)])
def test_solver_approaches_kirchhoffs_solution_with_order_2(n, bound):
    problem = NonlinearDiffusion1D(n)
    data = problem.snapshots(20, 0)
    exact = problem.exact(data.parameters.numpy())
    off = np.linalg.norm(data.solutions.numpy() - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert bound / 8 < off.max() < bound


def test_kirchhoffs_solution_has_the_loads_curvature():
    problem = NonlinearDiffusion1D(2000)
    parameters = np.array([[0.3, 0.8, 0.5]])
    u = problem.exact(parameters)[0]
    w = u + u**3 / 3
    curvature = np.diff(w, 2) * 2001**2
    load = problem.load(parameters)[0]
    assert np.abs(curvature + load[1:-1]).max() < 1e-3 * load.max()
    assert abs(2 * w[0] - w[1]) < 1e-4 and abs(2 * w[-1] - w[-2]) < 1e-4  # w = 0 beyond the ends


def test_galerkin_model_of_all_points_is_the_solver():
    x, u = DATA.loads[3], DATA.solutions[3]
    whole = galerkin(PROBLEM, x, torch.eye(40, dtype=torch.float64))
    assert whole.converged and whole.residual < 1e-9
    assert float((whole.u - u).abs().max()) < 1e-6 * float(u.abs().max())
    assert float(PROBLEM.residual(u, x).norm() / x.norm()) < 1e-5


# ------------------------------------------------------------------------------- dissimilarities


@settings(max_examples=20)
@given(SEEDS, st.booleans())
def test_sine_is_the_smallest_principal_angles(seed, weighted):
    u, v = random(5, 7, seed=seed), random(4, 7, seed=seed + 1)
    mass = random_mass(7, seed) if weighted else None
    root = scipy.linalg.sqrtm(mass.numpy()).real if weighted else np.eye(7)
    got = sine_dissimilarity(u, v, mass)
    for i, j in np.ndindex(5, 4):
        angle = scipy.linalg.subspace_angles(
            root @ u[i : i + 1].numpy().T, root @ v[j : j + 1].numpy().T
        )
        assert got[i, j].item() == pytest.approx(np.sin(angle[0]), abs=1e-10)


@settings(max_examples=20)
@given(SEEDS, st.floats(1e-6, 1e6), st.booleans())
def test_sine_knows_no_scale_and_no_sign(seed, scale, flip):
    u = random(6, 5, seed=seed)
    factor = torch.ones(6, 1, dtype=torch.float64)
    factor[2] = -scale if flip else scale
    assert torch.allclose(sine_dissimilarity(u), sine_dissimilarity(factor * u), atol=1e-12)


def test_near_directions_are_told_apart_where_the_difference_of_squares_is_not():
    u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert sine_dissimilarity(u, v).item() == pytest.approx(1e-9, rel=1e-6)
    both = sine_dissimilarity(torch.cat([u, v, -v]))
    assert torch.equal(both.diagonal(), torch.zeros(3, dtype=torch.float64))
    assert both[1, 2].item() == 0 and torch.equal(both, both.mT)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 3), st.booleans())
def test_subspaces_by_scipys_principal_angles(seed, r, weighted):
    n = 7
    mass = random_mass(n, seed) if weighted else None
    root = scipy.linalg.sqrtm(mass.numpy()).real if weighted else np.eye(n)
    bases = torch.stack([pod_basis(random(r, n, seed=seed + i), r, mass=mass) for i in range(3)])
    got = subspace_dissimilarity(bases, mass)
    for i, j in np.ndindex(3, 3):
        angles = scipy.linalg.subspace_angles(root @ bases[i].numpy(), root @ bases[j].numpy())
        expected = np.sqrt((np.sin(angles) ** 2).sum() / r)
        assert got[i, j].item() == pytest.approx(expected, abs=1e-7)


def test_distances_by_the_mass():
    u, mass = random(4, 6), random_mass(6)
    difference = (u[0] - u[2]).numpy()
    expected = np.sqrt(difference @ mass.numpy() @ difference)
    assert euclidean_dissimilarity(u, mass=mass)[0, 2].item() == pytest.approx(expected, rel=1e-12)
    assert euclidean_dissimilarity(u).diagonal().max() == 0


# -------------------------------------------------------------------------------------- clusters


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 4))
def test_medoids_cost_the_least_of_all(seed, k):
    between = euclidean_dissimilarity(random(12, 2, seed=seed))
    found = k_medoids(between, k, 20, torch.Generator().manual_seed(seed))
    least = min(between[:, list(c)].min(1).values.sum().item() for c in combinations(range(12), k))
    assert found.cost == pytest.approx(least, rel=1e-12)
    assert torch.equal(found.labels, between[:, found.medoids].argmin(1))
    assert torch.equal(found.labels[found.medoids], torch.arange(k))


def test_equal_samples_make_as_many_clusters_as_asked():
    found = k_medoids(torch.zeros(5, 5), 3)
    assert found.cost == 0 and len(found.labels.unique()) == 3


def test_amplitudes_belong_together_by_angle_alone():
    directions = random(3, 8)
    sizes = torch.tensor([0.01, 0.1, 1.0, 10.0, -3.0], dtype=torch.float64)
    u = (directions[:, None] * sizes[:, None]).reshape(15, 8)
    family = torch.arange(3).repeat_interleave(5)
    labels = LocalBases(3, 1).fit(u).labels
    assert all(len(labels[family == i].unique()) == 1 for i in range(3))
    assert len(labels.unique()) == 3
    distances = LocalBases(3, 1, "euclidean").fit(u)
    assert any(len(distances.labels[family == i].unique()) > 1 for i in range(3))


# ----------------------------------------------------------------------------------------- bases


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 12), st.integers(1, 5), st.booleans())
def test_bases_leave_what_the_svd_leaves(seed, samples, modes, weighted):
    n = 7
    u = random(samples, n, seed=seed) * 10.0 ** torch.arange(0, -n, -1)
    mass = random_mass(n, seed) if weighted else None
    basis = pod_basis(u, modes, mass=mass)
    rank = min(samples, n, modes)
    weight = mass if weighted else torch.eye(n, dtype=torch.float64)
    assert basis.shape == (n, rank)
    identity = torch.eye(rank, dtype=torch.float64)
    assert torch.allclose(basis.mT @ weight @ basis, identity, atol=1e-10)
    size = (u @ weight * u).sum(1).sqrt()
    left = (projection_error(u, basis, mass) * size).square().sum().sqrt().item()
    root = scipy.linalg.cholesky(weight.numpy(), lower=True)
    values = np.linalg.svd(u.numpy() @ root, compute_uv=False)
    expected = np.sqrt((values[rank:] ** 2).sum())
    assert left == pytest.approx(expected, rel=1e-3, abs=1e-12 * values[0])


def test_small_modes_come_out_of_large_ones():
    """A Gram matrix holds squares: of values 1 and 1e-10 it keeps nothing of the second."""
    left, right = np.linalg.qr(random(6, 6).numpy())[0], np.linalg.qr(random(9, 6).numpy())[0]
    u = torch.from_numpy(left * 10.0 ** -np.arange(0.0, 12, 2) @ right.T)
    basis = pod_basis(u, 6)
    off = np.abs(basis.numpy().T @ right) - np.eye(6)
    assert np.abs(off[:5, :5]).max() < 1e-4


def test_tolerance_keeps_the_fewest_modes():
    u = DATA.solutions
    for tol in (0.1, 1e-3):
        basis = pod_basis(u, tol=tol)
        for modes, enough in ((basis.shape[1], True), (basis.shape[1] - 1, False)):
            left = (projection_error(u, pod_basis(u, modes)) * u.norm(dim=1)).norm() / u.norm()
            assert (float(left) <= tol) == enough


def test_rank_bounds_modes_and_normalised_snapshots_weigh_alike():
    u = random(1, 6) * torch.tensor([[1.0], [2.0], [-3.0]])
    assert pod_basis(u, 3).shape == (6, 1)
    two = torch.eye(2, dtype=torch.float64) * torch.tensor([[1.0], [100.0]])
    three = torch.cat([two, two[:1], two[:1]])
    assert pod_basis(three, 1)[1].abs() == 1 and pod_basis(three, 1, normalise=True)[0].abs() == 1


def test_overlap_adds_the_nearest_outsiders():
    plain, wide = (LocalBases(3, 6, overlap=q, seed=1).fit(DATA.solutions) for q in (0, 5))
    assert torch.equal(plain.labels, wide.labels)
    between = sine_dissimilarity(DATA.solutions)
    for number, medoid in enumerate(plain.medoids):
        outside = (plain.labels != number).nonzero()[:, 0]
        near = outside[between[outside, medoid].argsort()[:5]]
        chosen = torch.cat([(plain.labels == number).nonzero()[:, 0], near])
        expected = pod_basis(DATA.solutions[chosen], 6)
        assert torch.allclose(expected @ expected.mT, wide.bases[number] @ wide.bases[number].mT)


def test_small_clusters_warn_or_raise():
    u = torch.cat([random(1, 6), 10 + random(9, 6)])
    with pytest.warns(UserWarning, match="has 1 members, fewer than n_modes=3"):
        bases = LocalBases(2, 3).fit(u)
    assert sorted(basis.shape[1] for basis in bases.bases) == [1, 3]
    with pytest.raises(ValueError, match="lower k or n_modes"):
        LocalBases(2, 3, strict=True).fit(u)


def test_criterion_sees_families():
    """Three planes in 12 dimensions: three bases of two modes hold all, one holds a third."""
    planes = random(3, 2, 12)
    u = torch.cat([random(30, 2, seed=i) @ planes[i] for i in range(3)])
    bases = torch.stack([pod_basis(plane, 2) for plane in planes])
    assert subspace_dissimilarity(bases).fill_diagonal_(1).min() > 0.5
    report = efficiency_criterion(DATA.solutions, (1, 2, 4, 30), 4)
    assert report["eta"][1] == pytest.approx(1, abs=1e-12)  # one cluster is the one basis
    assert report["eta"][4] < report["eta"][2] < 1 and report["lowest"] in (4, 30)
    assert report["best"] == 4 and report["smallest"][30] < 12 <= report["smallest"][4]
    assert np.isnan(report["silhouette"][1]) and report["silhouette"][2] > 0.3
    assert report["cost"][30] < report["cost"][4]
    crowd = efficiency_criterion(u, (1, 30), 2, folds=2)
    assert crowd["global"] > 0.3 and crowd["best"] == 1


# ------------------------------------------------------------------------------- net and models


def test_recommended_bases_beat_one_basis_on_unseen_loads():
    net = ROMNet(LocalBases(3, 4), Classifier(log1p=True, epochs=150)).fit(
        DATA.loads, DATA.solutions
    )
    label = net.predict_label(UNSEEN.loads)
    true = net.local_bases.assign(UNSEEN.solutions)
    assert float((label == true).double().mean()) > 0.9
    single = pod_basis(DATA.solutions, 4)
    local = net.local_bases.projection_error(UNSEEN.solutions, label)
    assert local.mean() < 0.7 * projection_error(UNSEEN.solutions, single).mean()
    x, u = UNSEEN.loads[0], UNSEEN.solutions[0]
    one, best = net.solve(PROBLEM, x), net.solve(PROBLEM, x, top=3)
    assert one.converged and one.label == int(label[0]) and best.residual <= one.residual
    # Galerkin's solution is no better than the projection, and not far from it.
    off = float((one.u - u).norm() / u.norm())
    assert float(local[0]) <= off * (1 + 1e-9) and off < 4 * float(local[0])


def test_unconverged_models_are_flagged():
    solution = galerkin(PROBLEM, DATA.loads[0], pod_basis(DATA.solutions, 3), most=2)
    assert not solution.converged and solution.iterations == 2

    class Singular:
        def assemble(self, u, x, basis):
            return torch.zeros(1, 1, dtype=torch.float64), basis.mT @ x

        def residual(self, u, x):
            return -x

    solution = galerkin(
        Singular(), torch.ones(3, dtype=torch.float64), torch.eye(3).double()[:, :1]
    )
    assert not solution.converged and solution.iterations == 0 and solution.residual == 1


def test_images_choose_too():
    data = load_digits()
    chosen = np.flatnonzero(data.target < 2)[:200]
    images = torch.from_numpy(data.images[chosen])
    labels = torch.from_numpy(data.target[chosen])
    classifier = Classifier(cnn((4,)), epochs=15, lr=1e-2)
    losses = classifier.fit(images[:150], labels[:150], 2)
    assert losses[-1] < 0.2 * losses[0]
    assert (classifier.predict_proba(images[150:]).argmax(1) == labels[150:]).double().mean() > 0.9
    assert cnn((4, 4))((3, 8, 12), 5)(torch.zeros(2, 3, 8, 12)).shape == (2, 5)


def test_a_single_cluster_needs_no_network():
    net = ROMNet(LocalBases(1, 3), Classifier()).fit(DATA.loads, DATA.solutions)
    assert net.classifier.model is None
    assert torch.equal(net.predict_label(UNSEEN.loads), torch.zeros(40, dtype=torch.int64))
    assert net.solve(PROBLEM, UNSEEN.loads[0]).label == 0


# ------------------------------------------------------------------------------------- bad input


def test_bad_snapshots():
    zero = random(3, 4)
    zero[1] = 0
    bad = [
        (lambda: sine_dissimilarity(zero), r"u\[1\] is zero: it has no direction"),
        (lambda: sine_dissimilarity(random(3, 4), zero), r"v\[1\] is zero"),
        (lambda: sine_dissimilarity(random(3, 4), random(3, 5)), r"v of shape \(3, 5\): .*, 4\)"),
        (lambda: sine_dissimilarity(zero / 0), r"u\[0\] has NaNs or infinities"),
        (lambda: sine_dissimilarity(random(4)), r"must be \(samples, n\)"),
        (lambda: pod_basis(torch.zeros(2, 3), 1), "all snapshots are zero"),
        (lambda: pod_basis(random(2, 3)), "n_modes=None, tol=None: give one"),
        (lambda: pod_basis(random(2, 3), 1, 0.1), "give one"),
        (lambda: pod_basis(random(2, 3), 0), "n_modes=0: must be an int of at least 1"),
        (lambda: pod_basis(random(2, 3), tol=1.0), "tol=1.0: must be between 0 and 1"),
        (lambda: projection_error(random(2, 3), torch.ones(3, 2)), "off orthonormal"),
        (lambda: projection_error(random(2, 3), torch.eye(2)), r"must be \(3, modes\)"),
        (lambda: subspace_dissimilarity(random(2, 3)), r"must be \(families, n, r\)"),
        (lambda: subspace_dissimilarity(random(2, 4, 2)), "basis . is .* off orthonormal"),
        (lambda: PROBLEM.solve(np.ones(3)), r"must be \(40,\) and finite"),
        (lambda: PROBLEM.snapshots(0), "count=0"),
        (lambda: NonlinearDiffusion1D(0), "n=0"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_masses():
    u = random(3, 4)
    skew = torch.eye(4)
    skew[0, 1] = 1
    for mass, message in (
        (torch.eye(3), r"mass of shape \(3, 3\): must be \(4, 4\)"),
        (skew, "mass is not symmetric"),
        (torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])), r"not positive definite \(its first 3"),
    ):
        for call in (sine_dissimilarity, euclidean_dissimilarity):
            with pytest.raises(ValueError, match=message):
                call(u, mass=mass)
        with pytest.raises(ValueError, match=message):
            pod_basis(u, 1, mass=mass)


def test_bad_clusters():
    far = 1 - torch.eye(4)
    for matrix, k, message in (
        (torch.zeros(2, 3), 1, "must be square"),
        (-far, 2, "dissimilarity -1: must not be negative"),
        (far + 1e-3, 2, "0.001 on the diagonal: must be 0"),
        (far * torch.nan, 2, "NaNs or infinities"),
        (far, 5, "k=5: must be at most the number of samples, 4"),
        (far, 0, "k=0"),
    ):
        with pytest.raises(ValueError, match=message):
            k_medoids(matrix, k)
    with pytest.raises(ValueError, match="dissimilarity='cosine': must be one of sine, euclidean"):
        LocalBases(2, 2, "cosine")
    with pytest.raises(ValueError, match="overlap=-1"):
        LocalBases(2, 2, overlap=-1)
    with pytest.raises(ValueError, match="call fit first"):
        LocalBases(2, 2).assign(DATA.solutions)
    for options, message in (
        ({}, "n_modes=None, tol=None: give one of them"),
        ({"n_modes": 2, "tol": 0.1}, "n_modes=2, tol=0.1: give one of them"),
        ({"n_modes": 0}, "n_modes=0"),
        ({"n_modes": 2, "n_starts": 0}, "n_starts=0"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalBases(2, **options)
    fitted = LocalBases(2, 2).fit(DATA.solutions)
    for labels in (fitted.labels + 1, fitted.labels - 1, fitted.labels[:-1]):
        with pytest.raises(ValueError, match="must be one each, from 0 to 1; take"):
            fitted.projection_error(DATA.solutions, labels)
    with pytest.raises(ValueError, match="3 features of 80 snapshots"):
        LocalBases(2, 2).fit(DATA.solutions, DATA.parameters[:3])
    for ks, folds, message in (
        ((), 4, "one K at least"),
        ((2,), 81, "2 to 80 folds"),
        ((70,), 2, "at most the 40 samples outside a fold"),
        ((0,), 2, r"ks\[0\]=0"),
    ):
        with pytest.raises(ValueError, match=message):
            efficiency_criterion(DATA.solutions, ks, 2, folds)


def test_bad_nets():
    net = ROMNet(LocalBases(2, 2), Classifier(mlp((4,)), epochs=1))
    with pytest.raises(ValueError, match="79 inputs and 80 solutions"):
        net.fit(DATA.loads[:79], DATA.solutions)
    with pytest.raises(ValueError, match="call fit first"):
        net.predict_label(DATA.loads)
    net.fit(DATA.loads, DATA.solutions)
    with pytest.raises(ValueError, match="top=3: must be an int within 1 and 2"):
        net.solve(PROBLEM, DATA.loads[0], top=3)
    with pytest.raises(ValueError, match="as in fit"):
        net.predict_label(DATA.loads[:, :5])
    labels = torch.arange(80) % 2
    for classifier, x, y, classes, message in (
        (Classifier(log1p=True), DATA.loads - 2, labels, 2, "log1p=True needs them above -1"),
        (Classifier(), DATA.loads / 0, labels, 2, "NaNs or infinities"),
        (Classifier(), DATA.loads, labels, 1, "labels must be 0 to 0"),
        (Classifier(), DATA.loads, labels[:5], 2, "80 inputs and 5 labels"),
        (Classifier(cnn()), DATA.loads, labels, 2, "must be images"),
        (Classifier(cnn()), DATA.loads.view(80, 20, 2), labels, 2, "need 4 pixels each way"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.fit(x, y, classes)
    for options, message in (({"epochs": 0}, "epochs=0"), ({"lr": 0.0}, "lr=0.0")):
        with pytest.raises(ValueError, match=message):
            Classifier(**options)
    with pytest.raises(ValueError, match=r"hidden\[1\]=0"):
        mlp((4, 0))
    for options in ({"damping": 0.0}, {"tolerance": 0.0}, {"most": 0}):
        with pytest.raises(ValueError, match="must be"):
            galerkin(PROBLEM, DATA.loads[0], pod_basis(DATA.solutions, 2), **options)
