"""ROM-net: the classifier recommends a basis, a Galerkin model solves in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.rom_net.bases import LocalBases
from sat.methods.rom_net.classifier import Classifier


class GalerkinProblem(Protocol):
    """A nonlinear problem R(u; x) = A(u; x) u - b(x) = 0 that can be asked for its projection."""

    def assemble(self, u: Tensor, x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Return Vᵀ A(u; x) V (modes, modes) and Vᵀ b(x) (modes,), for basis V (n, modes)."""
        ...

    def residual(self, u: Tensor, x: Tensor) -> Tensor:
        """Return R(u; x), (n,)."""
        ...


@dataclass(frozen=True)
class ROMSolution:
    """A reduced-order solution.

    Attributes
    ----------
    u : torch.Tensor
        (n,) float64.
    label : int
        The cluster whose basis it lies in.
    residual : float
        |R(u; x)| over |R(0; x)|, of the full problem.
    iterations : int
    converged : bool
        Whether the last step was as short as asked.
    """

    u: Tensor
    label: int
    residual: float
    iterations: int
    converged: bool


def galerkin(
    problem: GalerkinProblem,
    x: Tensor,
    basis: Tensor,
    *,
    label: int = 0,
    damping: float = 0.7,
    tolerance: float = 1e-10,
    most: int = 60,
) -> ROMSolution:
    """Solve Vᵀ R(V a; x) = 0 by damped Picard steps from a = 0.

    Parameters
    ----------
    problem : GalerkinProblem
    x : torch.Tensor
        The problem's input.
    basis : torch.Tensor
        (n, modes).
    label : int
        Written into the solution.
    damping : float
        Share of a step that is taken, within (0, 1].
    tolerance : float
        Change of a over a that ends the iteration.
    most : int
        Iterations.

    Returns
    -------
    ROMSolution
        Not converged, if so: that is no error.

    Raises
    ------
    ValueError
        If an argument breaks its rule.

    Source
    ------
    arXiv 2103.13683, section 2 (reduced problem).
    """
    if not 0 < damping <= 1 or not 0 < tolerance < math.inf:
        raise ValueError(
            f"damping={damping}, tolerance={tolerance}: must be within (0, 1], and positive"
        )
    require_counts(most=most)
    a = basis.new_zeros(basis.shape[1])
    converged, iterations = False, 0
    while not converged and iterations < most:
        matrix, load = problem.assemble((basis * a).sum(1), x, basis)
        solved, info = torch.linalg.solve_ex(matrix, load)
        if int(info) or not bool(solved.isfinite().all()):
            break
        step = damping * (solved - a)
        a, iterations = a + step, iterations + 1
        converged = float(step.norm()) <= tolerance * float(a.norm())
    u = (basis * a).sum(1)
    scale = problem.residual(torch.zeros_like(u), x).norm()
    residual = float(problem.residual(u, x).norm() / scale) if float(scale) else 0.0
    return ROMSolution(u, label, residual, iterations, converged)


class ROMNet:
    """Local bases, and the classifier that chooses among them.

    Parameters
    ----------
    local_bases : LocalBases
    classifier : Classifier

    Source
    ------
    Daniel et al. 2020, doi 10.1186/s40323-020-00153-6.
    """

    def __init__(self, local_bases: LocalBases, classifier: Classifier) -> None:
        self.local_bases, self.classifier = local_bases, classifier

    def fit(self, x: Tensor, u: Tensor) -> ROMNet:
        """Cluster solutions, make their bases, and train the classifier; return the net itself.

        Parameters
        ----------
        x : torch.Tensor
            (samples, …) inputs: fields, images or parameters.
        u : torch.Tensor
            (samples, n) solutions.

        Raises
        ------
        ValueError
            If there are not as many of both, or one breaks its rule.
        """
        if len(x) != len(u):
            raise ValueError(f"{len(x)} inputs and {len(u)} solutions: must be as many")
        self.local_bases.fit(u)
        self.classifier.fit(x, self.local_bases.labels, self.local_bases.k)
        return self

    def predict_label(self, x: Tensor) -> Tensor:
        """Return the recommended cluster (samples,) int64 of inputs (samples, …)."""
        return self.classifier.predict_proba(x).argmax(1)

    def solve(
        self,
        problem: GalerkinProblem,
        x: Tensor,
        top: int = 1,
        *,
        tolerance: float = 1e-10,
        most: int = 60,
    ) -> ROMSolution:
        """Solve for one input in the recommended basis.

        Parameters
        ----------
        problem : GalerkinProblem
        x : torch.Tensor
            One input, as in `fit` but without the axis of samples.
        top : int
            How many of the likeliest bases are tried; the least residual wins.
        tolerance, most
            As of `galerkin`.

        Raises
        ------
        ValueError
            If ``top`` is not within 1 and the number of bases.
        """
        if not isinstance(top, int) or not 1 <= top <= self.local_bases.k:
            raise ValueError(f"top={top!r}: must be an int within 1 and {self.local_bases.k}")
        order = self.classifier.predict_proba(x[None])[0].argsort(descending=True)[:top]
        tried = [
            galerkin(
                problem, x, self.local_bases.bases[label], label=label, tolerance=tolerance,
                most=most,
            )
            for label in order.tolist()
        ]  # fmt: skip
        return min(tried, key=lambda one: one.residual)
