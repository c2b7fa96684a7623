"""-Laplace u + reaction(u) = f with u = 0 on the boundary, by scikit-fem and Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skfem import Basis, BilinearForm, LinearForm, condense, solve
from skfem.helpers import dot, grad

Field = NDArray[np.float64]
Source = Callable[[Field], Field]
"""Points (2, …) to values (…)."""


def solve_poisson(
    basis: Basis,
    source: Source,
    *,
    cubic: float = 0.0,
    tolerance: float = 1e-10,
    most: int = 20,
) -> Field:
    """Return the coefficients (dofs,) of -Laplace u + cubic · u³ = source, u = 0 on the boundary.

    Parameters
    ----------
    basis : skfem.Basis
        Scalar.
    source : callable
    cubic : float
        Not negative; 0 is the linear problem.
    tolerance : float
        Largest Newton step, relative to the largest value.
    most : int
        Newton steps.

    Raises
    ------
    ValueError
        ``cubic`` is negative.
    RuntimeError
        Newton's method did not converge.
    """
    if not cubic >= 0:
        raise ValueError(f"cubic={cubic}: must not be negative, or there may be no solution")
    fixed = basis.get_dofs()
    load = LinearForm(lambda v, w: source(w.x) * v).assemble(basis)
    u = np.zeros(basis.N)
    for _ in range(most):
        known = basis.interpolate(u)

        def tangent(du, v, w):  # type: ignore[no-untyped-def]
            return dot(grad(du), grad(v)) + 3 * cubic * w.known**2 * du * v

        def residual(v, w):  # type: ignore[no-untyped-def]
            return dot(grad(w.known), grad(v)) + cubic * w.known**3 * v

        matrix = BilinearForm(tangent).assemble(basis, known=known)
        right = load - LinearForm(residual).assemble(basis, known=known)
        step = solve(*condense(matrix, right, D=fixed))
        u = u + step
        if np.abs(step).max() <= tolerance * max(1e-30, np.abs(u).max()):
            return u
    raise RuntimeError(f"Newton's method did not converge in {most} steps; a smaller source would")


def plane_waves(rng: np.random.Generator, waves: int = 6) -> Source:
    """Return a sum of plane waves: amplitudes N(0, 12²), wave vectors N(0, 3²), random phases."""
    amplitude = 12 * rng.standard_normal(waves)
    vector = 3 * rng.standard_normal((waves, 2))
    phase = 2 * np.pi * rng.random(waves)

    def source(x: Field) -> Field:
        total = np.zeros(x.shape[1:])
        for a, k, p in zip(amplitude, vector, phase, strict=True):
            total += a * np.cos(k[0] * x[0] + k[1] * x[1] + p)
        return total

    return source
