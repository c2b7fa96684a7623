"""L_orth: how far a convolution is from an orthogonal operator, as one number of its kernel.

Source: Achour, Malgouyres, Mamalet 2022, "Existence, Stability and Scalability of Orthogonal
Convolutional Neural Networks", JMLR 23 (22-0026).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sat.methods.problems.arguments import require_counts


def l_orth(weight: Tensor, stride: int = 1, dim: int = 2, transposed: bool = False) -> Tensor:
    """Return ``‖conv(K, K) - I‖² - max(out - S^dim in, 0)``, 0 where K is orthogonal.

    conv(K, K) correlates every output's kernel with every other's at all shifts that the stride
    makes and the kernel covers, up to k - 1 at stride 1; I is the identity at shift 0. Without the
    second term the least value would not be 0 where there are more outputs than inputs.

    Parameters
    ----------
    weight : torch.Tensor
        (out, in, k, k), or (out, in, k) for ``dim=1``, real floating point, k odd.
    stride : int
        S, the same along all axes.
    dim : int
        Axes, 1 or 2.
    transposed : bool
        Whether ``weight`` is (out, in, …) of a transposed convolution: the two are swapped, for it
        is the adjoint of a convolution the other way. torch's own layout of transposed ones,
        (in, out, …), is already that convolution's, and wants no flag.

    Returns
    -------
    torch.Tensor
        A scalar of ``weight``'s dtype, never negative but by rounding.

    Raises
    ------
    TypeError
        If ``weight`` is not real floating point.
    ValueError
        If it is no square kernel of odd size, or an argument breaks its rule.

    Source
    ------
    Achour et al. 2022, the definition of L_orth.
    """
    kernel = weight.transpose(0, 1) if transposed and weight.ndim > 1 else weight
    require_kernel(kernel, stride, dim)
    outputs, inputs, size = kernel.shape[:3]
    reach = (size - 1) // stride * stride
    convolve = functional.conv1d if dim == 1 else functional.conv2d
    residual = convolve(kernel, kernel, stride=stride, padding=reach).flatten(2).clone()
    middle = residual.shape[-1] // 2
    residual[..., middle] -= torch.eye(outputs, dtype=residual.dtype, device=residual.device)
    return residual.square().sum() - max(outputs - stride**dim * inputs, 0)


def dense_orth(weight: Tensor) -> Tensor:
    """Return ``‖W Wᵀ - I‖²`` of a matrix, the product taken on its smaller side.

    Parameters
    ----------
    weight : torch.Tensor
        (out, in), real floating point.

    Raises
    ------
    TypeError
        If ``weight`` is not real floating point.
    ValueError
        If it is no matrix.
    """
    require_real(weight)
    if weight.ndim != 2:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: must be (out, in); kernels have l_orth"
        )
    short = weight if weight.shape[0] <= weight.shape[1] else weight.mT
    eye = torch.eye(len(short), dtype=weight.dtype, device=weight.device)
    return (short @ short.mT - eye).square().sum()


def spectral_bound(weight: Tensor, stride: int = 1) -> Tensor:
    """Return eps: every singular value's square is within eps of 1, for every image size.

    So ``sqrt(1 - eps) ‖x‖ ≤ ‖K x‖ ≤ sqrt(1 + eps) ‖x‖``, on all x if there are no fewer outputs
    than inputs, else on those orthogonal to what K sends to 0.

    Parameters
    ----------
    weight : torch.Tensor
        (out, in, k, k) or (out, in, k), as for `l_orth`.
    stride : int

    Returns
    -------
    torch.Tensor
        A float64 scalar, ``sqrt(alpha · L_orth)``. Where out ≤ S^dim in, alpha is
        out · (2 ⌊(k - 1) / S⌋ + 1)^dim; where out ≥ S^dim in, in · (2k - 1)^dim; the smaller of
        both if equal.

    Raises
    ------
    TypeError, ValueError
        As `l_orth`.

    Source
    ------
    Achour et al. 2022, the bound on the spectral norm.
    """
    dim = weight.ndim - 2
    loss = l_orth(weight, stride, dim).double().clamp(min=0)
    outputs, inputs, size = weight.shape[:3]
    rows = outputs * (2 * ((size - 1) // stride) + 1) ** dim
    columns = inputs * (2 * size - 1) ** dim
    full = stride**dim * inputs
    alpha = rows if outputs < full else columns if outputs > full else min(rows, columns)
    return (alpha * loss).sqrt()


def require_real(weight: Tensor) -> None:
    """Raise TypeError unless a weight is real floating point."""
    if not weight.is_floating_point():
        raise TypeError(
            f"weight has dtype {weight.dtype}: must be real floating point; use weight.float()"
        )


def require_kernel(weight: Tensor, stride: int, dim: int) -> None:
    """Raise unless a kernel is one that the theory is about: square, of odd size, one group."""
    require_counts(stride=stride)
    require_real(weight)
    if dim not in (1, 2):
        raise ValueError(f"dim={dim!r}: must be 1 or 2; other kernels have no l_orth here")
    shape = tuple(weight.shape)
    if weight.ndim != dim + 2 or len(set(shape[2:])) != 1 or 0 in shape:
        axes = "(out, in, k)" if dim == 1 else "(out, in, k, k)"
        raise ValueError(f"weight has shape {shape}: must be {axes}, none of them 0; reshape it")
    if shape[2] % 2 == 0:
        raise ValueError(
            f"weight has shape {shape}: its size {shape[2]} must be odd; pad the kernel with zeros "
            f"to {shape[2] + 1}"
        )
