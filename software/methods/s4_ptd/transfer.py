"""Transfer functions, exact and of diagonal systems; the gain of a kernel at a frequency."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sat.methods.s4_ptd.diagonalize import diagonalize_normal_part, legs_input


def legs_transfer(k: int, s: Tensor | complex) -> Tensor:
    """Return e_kᵀ·(s·I − A)⁻¹·b of HiPPO-LegS, whatever its size, in closed form.

    √(2k + 1)·Π_{j<k} (s − j) / Π_{j≤k+1} (s + j): the Laplace transform of the kernel
    √(2k + 1)·e^{−t}·P_k(2·e^{−t} − 1), P_k Legendre's polynomial.

    Parameters
    ----------
    k : int
        Output, from 0.
    s : torch.Tensor or complex
        Radians per unit of time on the imaginary axis; any shape.

    Returns
    -------
    torch.Tensor
        complex128 of s's shape.

    Raises
    ------
    ValueError
        If ``k`` is negative or no int.
    """
    if not isinstance(k, int) or k < 0:
        raise ValueError(f"k={k!r}: must be an int of at least 0, an output of the state")
    s = torch.as_tensor(s, dtype=torch.complex128)
    value = math.sqrt(2 * k + 1) / (s + 1)
    for j in range(k):
        value = value * (s - j) / (s + j + 2)
    return value


def transfer(modes: Tensor, weights: Tensor, s: Tensor | complex) -> Tensor:
    """Return Σ weights_n / (s − modes_n), over all modes, conjugates included.

    Parameters
    ----------
    modes : torch.Tensor
        (n,) complex.
    weights : torch.Tensor
        (..., n): products of c̃ and b̃.
    s : torch.Tensor or complex
        Any shape.

    Returns
    -------
    torch.Tensor
        (*weights.shape[:-1], *s.shape) complex128.

    Raises
    ------
    ValueError
        If there are not as many weights as modes.
    """
    if modes.ndim != 1 or weights.shape[-1:] != modes.shape:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}, modes {tuple(modes.shape)}: must be "
            "(..., n) and (n,); give c̃·b̃ of every mode"
        )
    s = torch.as_tensor(s, dtype=torch.complex128)
    cauchy = 1 / (s.flatten()[:, None] - modes.to(torch.complex128))
    rows = weights.to(torch.complex128).reshape(-1, len(modes))
    # Not written as a product: it cancels, and needs all 53 bits.
    values = torch.stack([(row * cauchy).sum(-1) for row in rows])
    return values.reshape((*weights.shape[:-1], *s.shape))


def diagonal_transfer(n: int, k: int, s: Tensor | complex) -> Tensor:
    """Return e_kᵀ·(s·I − A_N)⁻¹·b/2 of the normal part of HiPPO-LegS: what S4D-LegS starts as.

    Parameters
    ----------
    n : int
        State size.
    k : int
        Output, below n.
    s : torch.Tensor or complex

    Returns
    -------
    torch.Tensor
        complex128 of s's shape.

    Raises
    ------
    ValueError
        If ``n`` is below 2 or ``k`` not one of its states.
    """
    b = legs_input(n)
    if not isinstance(k, int) or not 0 <= k < n:
        raise ValueError(f"k={k!r}: must be an int from 0 to n - 1 = {n - 1}, a state's number")
    normal = diagonalize_normal_part(n, b / 2)
    return transfer(normal.modes, normal.vectors[k] * normal.b, s)


def tone_gain(kernel: Tensor, omega: float) -> float:
    """Return the steady gain of a discrete kernel for a tone.

    Parameters
    ----------
    kernel : torch.Tensor
        (length,) real.
    omega : float
        Radians a sample.

    Returns
    -------
    float
        |Σ K_l·e^{−iωl}|.

    Raises
    ------
    ValueError
        If the kernel is not one row of at least one sample, or ``omega`` not finite.
    """
    if kernel.ndim != 1 or not len(kernel):
        raise ValueError(
            f"kernel has shape {tuple(kernel.shape)}: must be (length,), length at least 1; "
            "give one channel"
        )
    if not math.isfinite(omega):
        raise ValueError(f"omega={omega}: must be finite, in radians a sample")
    place = torch.arange(len(kernel), dtype=torch.float64)
    turn = torch.polar(torch.ones_like(place), -omega * place)
    return float((kernel.detach().double() * turn).sum().abs())
