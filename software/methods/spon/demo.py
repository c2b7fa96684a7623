"""SPON judged on the L-shape: -Laplace u + u³ = f, data by scikit-fem and Newton's method.

Errors are those of numpy with a mass matrix that scikit-fem assembles; the method's own norms and
projections take no part in the judgement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from skfem import Basis, ElementTriP1, MeshTri
from skfem.models.poisson import mass
from torch import Tensor, nn

import sat
from sat.methods import Result
from sat.methods.problems.poisson import Field, Source, plane_waves, solve_poisson
from sat.methods.spon.hierarchy import MeshHierarchy
from sat.methods.spon.network import (
    SPON,
    FeDecoder,
    GraphProcessor,
    LinearProcessor,
    MlpProcessor,
    MultigridProcessor,
    ProjectionEncoder,
)
from sat.methods.spon.space import FeSpace, Function
from sat.methods.spon.training import fit

REFINEMENTS, LEVELS, CHANNELS, SMOOTHINGS = 3, 3, 16, 10
TRAINING, TEST, EPOCHS, SEEDS = 200, 40, 100, 3
QUICK_TRAINING, QUICK_EPOCHS = 60, 8
PATTERNS = ("2:4", "2:8")


def domain(refinements: int) -> MeshTri:
    """Return the L-shape of three unit squares, refined."""
    return MeshTri.init_lshaped().refined(refinements)


def as_function(source: Source) -> Function:
    """Return a source of numpy points (2, P) as a function of tensors (P, 2)."""
    return lambda x: torch.from_numpy(source(x.T.numpy()))


@dataclass
class Data:
    """Sources and solutions on the working mesh.

    Attributes
    ----------
    space : FeSpace
    sources : list
    solutions : ndarray (samples, dofs)
        scikit-fem's.
    inputs : Tensor (samples, dofs)
        L2 projections of the sources.
    mass : sparse matrix
        scikit-fem's own.
    """

    space: FeSpace
    sources: list[Source]
    solutions: Field
    inputs: Tensor
    mass: Any

    def errors(self, y: Tensor, of: slice) -> Field:
        """Return relative L2 errors of coefficients (samples, dofs)."""
        made, true = y.detach().double().numpy(), self.solutions[of]
        return self._norm(made - true) / self._norm(true)

    def _norm(self, y: Field) -> Field:
        return np.sqrt(np.einsum("bi,ib->b", y, self.mass @ y.T))


@cache
def make_data(seed: int, samples: int) -> Data:
    """Return samples of the nonlinear problem."""
    basis = Basis(domain(REFINEMENTS), ElementTriP1(), intorder=4)
    space = FeSpace.from_skfem(basis, dirichlet=True)
    encoder = ProjectionEncoder(space)
    rng = np.random.default_rng(seed)
    sources = [plane_waves(rng) for _ in range(samples)]
    solutions = np.stack([solve_poisson(basis, f, cubic=1.0) for f in sources])
    inputs = torch.stack([encoder(as_function(f)) for f in sources])
    return Data(space, sources, solutions, inputs, mass.assemble(basis))


def hierarchy() -> MeshHierarchy:
    """Return the meshes of 21, 65 and 225 nodes."""
    return MeshHierarchy.from_skfem(domain(REFINEMENTS - LEVELS + 1), LEVELS)


def processors() -> dict[str, Callable[[], nn.Module]]:
    """Return what is compared; the first two have the same number of parameters."""
    meshes = hierarchy()
    n = len(meshes.points[-1])
    return {
        "multigrid": lambda: MultigridProcessor(meshes, CHANNELS),
        "single level": lambda: GraphProcessor(
            meshes.adjacency[-1], CHANNELS, SMOOTHINGS, meshes.points[-1]
        ),
        "MLP": lambda: MlpProcessor(n, 64, n),
    }


@dataclass
class Run:
    """One training: its test error, CPU seconds, and the network."""

    error: float
    seconds: float
    model: SPON

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(p.numel() for p in self.model.parameters())


def train(
    data: Data, make: Callable[[], nn.Module], seed: int, epochs: int, training: int,
    pattern: str | None = None,
) -> Run:  # fmt: skip
    """Train one processor; ``pattern`` prunes its layers N:M in FF and BP."""
    torch.manual_seed(seed)
    model = SPON(ProjectionEncoder(data.space), make(), FeDecoder(data.space))
    if pattern is not None:
        sat.sparsify_(model.processor, "bdwp", pattern)
    inputs, outputs = data.inputs[:training], torch.from_numpy(data.solutions[:training])
    began = time.process_time()
    fit(model, inputs, outputs, epochs=epochs, seed=seed)
    seconds = time.process_time() - began
    with torch.no_grad():
        made = model(data.inputs[-TEST:].float()).dofs
    return Run(float(data.errors(made, slice(-TEST, None)).mean()), seconds, model)


def run(*, seed: int = 0, quick: bool = False) -> Result:
    """Check the structure exactly, then train three processors on 200 solutions.

    Parameters
    ----------
    seed : int
        Of the data, and the first of three of the networks.
    quick : bool
        60 solutions, 8 epochs, one seed; no N:M, and no comparison of processors.
    """
    result = Result()
    training, epochs, seeds = TRAINING, EPOCHS, SEEDS
    if quick:
        training, epochs, seeds = QUICK_TRAINING, QUICK_EPOCHS, 1
        result.left_out += [
            "140 of 200 training samples, 92 of 100 epochs, two of three seeds",
            "the comparison of processors, N:M",
        ]
    data = make_data(seed, training + TEST)
    _projection(result)
    _transfers(result)
    _discretisation(result, data)
    _linear(result, data, seed)
    runs = {
        name: [train(data, make, seed + i, epochs, training) for i in range(seeds)]
        for name, make in processors().items()
    }
    _boundary(result, data, runs["multigrid"][0].model)
    for name, trained in runs.items():
        text = f"{name}, {trained[0].parameters:,} parameters"
        for i, one in enumerate(trained):
            result.metrics[f"{text}: test error, seed {seed + i}"] = one.error
        result.metrics[f"{text}: CPU seconds a training"] = mean(one.seconds for one in trained)
    if not quick:
        _compare(result, runs)
        for pattern in PATTERNS:
            sparse = train(data, processors()["multigrid"], seed, epochs, training, pattern)
            result.metrics[f"multigrid, {pattern}: test error, seed {seed}"] = sparse.error
        _refined(result, data, runs["multigrid"][0].model)
    result.figures["solutions"] = _picture(data, runs)
    return result


def _compare(result: Result, runs: dict[str, list[Run]]) -> None:
    errors = {name: mean(one.error for one in trained) for name, trained in runs.items()}
    seconds = {name: mean(one.seconds for one in trained) for name, trained in runs.items()}
    ratio = errors["multigrid"] / errors["single level"]
    result.check(f"multigrid over single level, test error, mean of {SEEDS} seeds", ratio, 0.85)
    worst = max(one.error for one in runs["multigrid"])
    result.check(f"multigrid, test error, worst of {SEEDS} seeds", worst, 0.14)
    result.check(
        "multigrid over single level, CPU time of training",
        seconds["multigrid"] / seconds["single level"], 1.0,
    )  # fmt: skip


# ------------------------------------------------------------------------------- exact figures


def _projection(result: Result) -> None:
    errors = []
    for refinements in (1, 2, 3, 4):
        basis = Basis(domain(refinements), ElementTriP1(), intorder=10)
        encoder = ProjectionEncoder(FeSpace.from_skfem(basis))
        c = encoder(lambda x: torch.sin(3 * x[:, 0]) * torch.cos(2 * x[:, 1]))
        x = np.asarray(basis.global_coordinates())
        off = np.sin(3 * x[0]) * np.cos(2 * x[1]) - np.asarray(basis.interpolate(c.numpy()))
        errors.append(float(np.sqrt((off**2 * basis.dx).sum())))
        name = f"L2 projection of sin(3x) cos(2y), refined {refinements} times: error"
        result.metrics[name] = errors[-1]
    orders = [np.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    result.check("L2 projection, least order", min(orders), 1.8, at_least=True)


def _transfers(result: Result) -> None:
    meshes = hierarchy()
    off = 0.0
    for level in range(1, LEVELS):
        up, down = meshes.prolongation[level], meshes.restriction[level]
        coarse, fine = meshes.points[level - 1], meshes.points[level]
        linear = np.array([0.3, -1.7])
        off = max(off, np.abs(up.sum(1) - 1).max(), np.abs(down.sum(1) - 1).max())
        off = max(off, np.abs(up @ (coarse @ linear + 2) - (fine @ linear + 2)).max())
    result.check("prolongation: rows off 1, linear functions off", float(off), 1e-6)


def _discretisation(result: Result, data: Data) -> None:
    """The error of the finite-element solution itself, which no network is free of."""
    coarse = data.space.basis
    fine = Basis(domain(REFINEMENTS + 1), ElementTriP1(), intorder=4)
    probe = coarse.probes(fine.doflocs)
    gram = mass.assemble(fine)
    found = []
    for f, u in zip(data.sources[:6], data.solutions[:6], strict=True):
        finer = solve_poisson(fine, f, cubic=1.0)
        off = finer - probe @ u
        found.append(np.sqrt(off @ gram @ off) / np.sqrt(finer @ gram @ finer))
    result.metrics["discretisation: solutions against the once refined mesh"] = float(mean(found))


def _linear(result: Result, data: Data, seed: int) -> None:
    """The linear problem has an exact map K⁻¹ M: the linear processor finds it."""
    basis, space = data.space.basis, data.space
    generator = torch.Generator().manual_seed(seed)
    c = torch.randn(1000 + TEST, space.dofs, generator=generator, dtype=torch.float64)

    def solution(coefficients: Field) -> Field:
        return solve_poisson(
            basis, lambda x: np.asarray(basis.interpolate(coefficients)), cubic=0.0
        )

    u = torch.from_numpy(np.stack([solution(row.numpy()) for row in c[: space.dofs + TEST]]))
    processor = LinearProcessor(space.dofs, space.dofs)
    # As many pairs as unknowns determine the map; the rest follow from it.
    processor.solve(c[: space.dofs], u[: space.dofs])
    network = SPON(ProjectionEncoder(space), processor, FeDecoder(space))
    with torch.no_grad():
        made = network(c[space.dofs : space.dofs + TEST]).dofs.double().numpy()
    true = u[space.dofs :].numpy()
    off = np.sqrt(np.einsum("bi,ib->b", made - true, data.mass @ (made - true).T))
    size = np.sqrt(np.einsum("bi,ib->b", true, data.mass @ true.T))
    result.check("linear processor on -Laplace u = f: test error", float((off / size).mean()), 1e-3)


def _boundary(result: Result, data: Data, trained: SPON) -> None:
    edge = np.asarray(data.space.basis.get_dofs().flatten())
    x = data.space.basis.doflocs[:, edge]
    torch.manual_seed(1)
    untrained = SPON(
        ProjectionEncoder(data.space), processors()["multigrid"](), FeDecoder(data.space)
    )
    worst = 0.0
    for model in (untrained, trained):
        for g, values in ((None, np.zeros(len(edge))), (lambda p: p[:, 0] - p[:, 1], x[0] - x[1])):
            y = model(data.inputs[:4].float(), g=g).dofs.detach().numpy()[:, edge]
            worst = max(worst, float(np.abs(y - values.astype(np.float32)).max()))
    result.check("values on the boundary, trained and not, g = 0 and x - y: error", worst, 0.0)


def _refined(result: Result, data: Data, trained: SPON) -> None:
    """The same weights on a mesh refined once more, against scikit-fem there."""
    processor = trained.processor
    assert isinstance(processor, MultigridProcessor)
    meshes = MeshHierarchy.from_skfem(domain(REFINEMENTS - LEVELS + 1), LEVELS + 1)
    fine = Basis(domain(REFINEMENTS + 1), ElementTriP1(), intorder=4)
    space = FeSpace.from_skfem(fine, dirichlet=True)
    scales = float(trained.scales[0]), float(trained.scales[1])
    model = SPON(ProjectionEncoder(space), processor.on(meshes), FeDecoder(space), scales)
    gram = mass.assemble(fine)
    errors = []
    for f in data.sources[-6:]:
        true = solve_poisson(fine, f, cubic=1.0)
        with torch.no_grad():
            off = model(as_function(f)).dofs.double().numpy() - true
        errors.append(np.sqrt(off @ gram @ off) / np.sqrt(true @ gram @ true))
    name = "multigrid's weights on the mesh refined once more, untrained there: test error"
    result.metrics[name] = float(mean(errors))


# ------------------------------------------------------------------------------------- picture


def _picture(data: Data, runs: dict[str, list[Run]]) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 3)
    basis = data.space.basis
    triangles = (*basis.mesh.p, basis.mesh.t.T)
    model, true = runs["multigrid"][0].model, data.solutions[-1]
    with torch.no_grad():
        made = model(data.inputs[-1:].float()).dofs[0].double().numpy()
    largest = float(np.abs(true).max())
    panels = (
        ("f", data.inputs[-1].numpy(), None),
        ("u, finite elements", true, largest),
        ("u, SPON (multigrid)", made, largest),
        ("difference", made - true, None),
    )
    for ax, (title, values, limit) in zip(axes.flat, panels, strict=False):
        limit = limit or float(np.abs(values).max())
        drawn = ax.tripcolor(
            *triangles, values, shading="gouraud", cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        ax.triplot(*triangles, color="k", linewidth=0.2, alpha=0.5)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
        figure.colorbar(drawn, ax=ax, shrink=0.8)
    ax = axes[1, 1]
    for name, trained in runs.items():
        for one in trained:
            label = f"{name}, {one.parameters:,} parameters" if one is trained[0] else None
            colour = f"C{list(runs).index(name)}"
            ax.plot(one.seconds, 100 * one.error, "o", color=colour, label=label)
    worst = max(one.error for trained in runs.values() for one in trained)
    ax.set(xlabel="CPU seconds of training", ylabel="test error, %", ylim=(0, 140 * worst))
    ax.legend(fontsize=7)
    edge = np.asarray(basis.get_dofs().flatten())
    edge = edge[np.argsort(np.arctan2(*(basis.doflocs[::-1, edge] + 0.4)))]
    free = model.processor(data.inputs[-1:].float() / model.scales[0].float())
    free = free[0].detach().double().numpy() * float(model.scales[1])
    axes[1, 2].plot(free[edge], label="processor alone")
    axes[1, 2].plot(made[edge], label="SPON")
    axes[1, 2].set(xlabel="node along the boundary", ylabel="u")
    axes[1, 2].legend(fontsize=7)
    return figure
