"""HiPPO-LegS, its normal part, and the diagonal initialisations drawn from them.

All of it is float64: eigenvalues and bases are computed once, and compared with theory.
"""

from __future__ import annotations

from math import inf, pi

import torch
from torch import Tensor

INITS = ("lin", "inv", "legs", "real")
"""S4D-Lin, S4D-Inv, S4D-LegS and S4D-Real."""


def hippo_legs(n: int) -> Tensor:
    """Return the state matrix of HiPPO-LegS (section 4).

    Parameters
    ----------
    n : int
        State size.

    Returns
    -------
    torch.Tensor
        (n, n) float64, lower triangular; the input matrix that belongs to it is √(2i + 1).

    Raises
    ------
    ValueError
        If ``n`` is not a positive int.
    """
    root = (2 * _indices("n", n) + 1).sqrt()
    return -(torch.outer(root, root).tril(-1) + torch.diag(_indices("n", n) + 1))


def normal_part(n: int) -> Tensor:
    """Return HiPPO-LegS plus P·Pᵀ with P_i = √(i + 1/2): −1/2 on the diagonal, else skew.

    Parameters and errors as for `hippo_legs`; section 4.

    Returns
    -------
    torch.Tensor
        (n, n) float64.
    """
    p = (_indices("n", n) + 0.5).sqrt()
    return hippo_legs(n) + torch.outer(p, p)


def initial_modes(init: str, d_state: int) -> Tensor:
    """Return the modes that a kernel starts from, one of each conjugate pair (section 4).

    Parameters
    ----------
    init : {"lin", "inv", "legs", "real"}
    d_state : int
        State size, with both modes of each pair.

    Returns
    -------
    torch.Tensor
        (d_state/2,) complex128.

    Raises
    ------
    ValueError
        If there is no such initialisation, or ``d_state`` is odd or not positive.
    """
    if init not in INITS:
        raise ValueError(f"init={init!r}: must be one of {', '.join(INITS)}, or a tensor of modes")
    require_even("d_state", d_state)
    n = torch.arange(d_state // 2, dtype=torch.float64)
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n))
    if init == "lin":
        imag = pi * n
    elif init == "inv":
        imag = d_state / pi * (d_state / (2 * n + 1) - 1)
    else:
        imag = normal_eigenvectors(d_state)[0][d_state // 2 :]
    return torch.complex(torch.full_like(n, -0.5), imag)


def legs_basis(count: int, dt: float, length: int) -> Tensor:
    """Return the first basis kernels of HiPPO-LegS, e_nᵀ·exp(t·A)·B, averaged over steps.

    The matrix is triangular, so they do not depend on the state size.

    Parameters
    ----------
    count : int
        Number of kernels.
    dt : float
        Step, in the system's unit of time.
    length : int
        Number of steps; column l is the mean over l·dt … (l + 1)·dt, as of a zero-order hold.

    Returns
    -------
    torch.Tensor
        (count, length) float64.

    Raises
    ------
    ValueError
        If ``count`` or ``length`` is not a positive int, or ``dt`` not positive.
    """
    _require_step(dt)
    a, b = hippo_legs(count), (2 * _indices("count", count) + 1).sqrt()
    over_step = torch.linalg.matrix_exp(a * dt) - torch.eye(count, dtype=torch.float64)
    first = torch.linalg.solve(a, over_step @ b) / dt
    times = dt * _indices("length", length)
    basis: Tensor = torch.linalg.matrix_exp(times[:, None, None] * a) @ first
    return basis.mT


def normal_basis(d_state: int, count: int, dt: float, length: int) -> Tensor:
    """Return the first basis kernels of the normal part with input B/2, averaged over steps.

    As ``d_state`` grows they tend to `legs_basis` (theorem 3): weakly, that is in the response to
    any input that a step can hold. Point by point the kernels swing about the limit ever faster,
    but no less (the response to an impulse diverges: Yu et al. 2023, arXiv 2310.01698, section
    3.3), hence the averages.

    Parameters
    ----------
    d_state : int
        State size, at least ``count``.
    count, dt, length
        As for `legs_basis`.

    Returns
    -------
    torch.Tensor
        (count, length) float64.

    Raises
    ------
    ValueError
        If ``d_state`` is below ``count``, or for the reasons of `legs_basis`.
    """
    if d_state < _positive("count", count):
        raise ValueError(f"d_state={d_state}: must be at least count={count}; raise it")
    _require_step(dt)
    frequencies, vectors = normal_eigenvectors(d_state)
    a = torch.complex(torch.full_like(frequencies, -0.5), frequencies)
    b = (2 * _indices("d_state", d_state) + 1).sqrt() / 2
    first = (vectors.mH @ b.to(vectors.dtype)) * (torch.exp(a * dt) - 1) / (a * dt)
    powers = torch.exp(a[:, None] * (dt * _indices("length", length)))
    return ((vectors[:count] * first) @ powers).real


def require_even(name: str, value: int) -> None:
    """Raise ValueError unless the value is a positive even int."""
    if not isinstance(value, int) or value < 2 or value % 2:
        raise ValueError(
            f"{name}={value!r}: must be a positive even int, for modes come in conjugate pairs; "
            "use 64, say"
        )


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a positive int; raise it")
    return value


def _require_step(dt: float) -> None:
    if not 0 < dt < inf:
        raise ValueError(f"dt={dt}: must be positive and finite; give a step, as 0.1")


def _indices(name: str, count: int) -> Tensor:
    return torch.arange(_positive(name, count), dtype=torch.float64)


def normal_eigenvectors(n: int) -> tuple[Tensor, Tensor]:
    """Diagonalise `normal_part`, whose eigenvalues all have real part −1/2.

    Parameters and errors as for `hippo_legs`.

    Returns
    -------
    frequencies : torch.Tensor
        (n,) float64: imaginary parts of the eigenvalues, ascending.
    vectors : torch.Tensor
        (n, n) complex128, unitary.
    """
    # Half the identity aside the matrix is skew: i times it is Hermitian, and exactly solvable.
    skew = normal_part(n) + torch.eye(n, dtype=torch.float64) / 2
    frequencies, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), -skew))
    return frequencies, vectors
