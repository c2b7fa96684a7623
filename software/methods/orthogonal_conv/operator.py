"""A circular convolution's own singular values, frequency by frequency, in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sat.methods.orthogonal_conv.loss import require_kernel
from sat.methods.problems.arguments import require_counts


def conv_singular_values(
    weight: Tensor, stride: int, n: int, *, padding: str = "circular"
) -> Tensor:
    """Return all singular values of a convolution whose output has n positions an axis.

    A stride of S takes inputs apart into S^dim phases, each convolved at stride 1; the Fourier
    transform then leaves a matrix (out, in · S^dim) for each frequency, and its singular values
    together are the operator's.

    Parameters
    ----------
    weight : torch.Tensor
        (out, in, k, k) or (out, in, k), real floating point, k odd.
    stride : int
        S; inputs have S n positions an axis.
    n : int
        At least k / S, so that taps do not meet.
    padding : str
        Only ``"circular"`` convolutions are diagonal in frequencies.

    Returns
    -------
    torch.Tensor
        (n, n, min(out, in · S²)) or (n, min(out, in · S)) float64, falling along the last axis.

    Raises
    ------
    TypeError
        If ``weight`` is not real floating point.
    ValueError
        If an argument breaks its rule.

    Source
    ------
    Sedghi, Gupta, Long 2019, "The Singular Values of Convolutional Layers", for stride 1.
    """
    dim = weight.ndim - 2
    require_kernel(weight, stride, dim)
    require_counts(n=n)
    if padding != "circular":
        raise ValueError(
            f"padding={padding!r}: must be 'circular', other convolutions are no products of "
            "frequencies; take torch.linalg.svdvals of their matrix"
        )
    outputs, inputs, size = weight.shape[:3]
    side = stride * n
    if side < size:
        raise ValueError(
            f"n={n} at stride {stride}: {side} positions must be at least the kernel's {size}; "
            "raise n"
        )
    # Where a kernel is centred turns phases alone, so it may begin at the origin.
    grid = functional.pad(weight.double(), [0, side - size] * dim)
    phases = grid.reshape(outputs, inputs, *[n, stride] * dim)
    axes = tuple(range(2, 2 + 2 * dim, 2))
    spectrum = torch.fft.fftn(phases, dim=axes).permute(*axes, 0, 1, *[a + 1 for a in axes])
    return torch.linalg.svdvals(spectrum.flatten(dim + 1))


def conv_orth_residual(weight: Tensor, stride: int, n: int) -> tuple[Tensor, Tensor]:
    """Return how far a convolution's matrix A is from an isometry, in two norms.

    Of A Aᵀ - I if there are no more outputs than inputs, else of Aᵀ A - I. The first, squared, is
    n^dim · `l_orth`; the second keeps `spectral_bound`.

    Parameters
    ----------
    weight, stride, n
        As for `conv_singular_values`.

    Returns
    -------
    tuple of torch.Tensor
        Frobenius and spectral norm, float64 scalars.

    Raises
    ------
    TypeError, ValueError
        As `conv_singular_values`, and if S n < 2k - 1, where shifts meet around the circle and
        the law does not hold.

    Source
    ------
    Achour et al. 2022, the laws of both norms.
    """
    require_kernel(weight, stride, weight.ndim - 2)
    require_counts(n=n)
    side, least = stride * n, 2 * weight.shape[2] - 1
    if side < least:
        raise ValueError(
            f"n={n} at stride {stride}: {side} positions must be at least 2k - 1 = {least}, or "
            "shifts meet around the circle; raise n"
        )
    off = conv_singular_values(weight, stride, n).square() - 1
    return off.norm(), off.abs().max()
