"""Orthogonal convolutions built by hand: what L_orth and singular values say of known operators.

Nothing here is shared with the method: kernels are products of reflections and delays (Vaidyanathan
1993, "Multirate Systems and Filter Banks", section 14.4), orthogonal by construction.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from sat.methods.orthogonal_conv import conv_orth_residual, conv_singular_values, l_orth


def lossless(channels, taps, rng):
    """A square orthogonal filter of 1-D as taps (channels, channels, taps)."""
    kernel = np.linalg.qr(rng.standard_normal((channels, channels)))[0][:, :, None]
    for _ in range(taps - 1):
        v = rng.standard_normal(channels)
        along = np.outer(v, v) / (v @ v)
        # I - v vᵀ now, v vᵀ a step later.
        kernel = np.pad(
            np.einsum("ij,jkt->ikt", np.eye(channels) - along, kernel), ((0, 0), (0, 0), (0, 1))
        ) + np.pad(np.einsum("ij,jkt->ikt", along, kernel), ((0, 0), (0, 0), (1, 0)))
    return kernel


def strided(kernel, stride):
    """(out, in · stride, taps) on interleaved phases as (out, in, stride · taps) of that stride."""
    out, full, taps = kernel.shape
    phases = kernel.reshape(out, full // stride, stride, taps)
    return phases.swapaxes(2, 3).reshape(out, full // stride, stride * taps)


def plane(down, across):
    """Two filters of 1-D, along one axis each, on pairs of channels."""
    both = np.einsum("abi,cdj->acbdij", down, across)
    return both.reshape(len(down) * len(across), down.shape[1] * across.shape[1], *both.shape[4:])


def cases():
    rng = np.random.default_rng(0)
    line = lossless(6, 3, rng)
    yield "1-D, stride 1", line, 1
    yield "1-D, stride 3", strided(line, 3), 3
    yield "2-D, stride 1", plane(lossless(2, 3, rng), lossless(3, 3, rng)), 1
    coarse = [strided(lossless(3, 3, rng), 3) for _ in range(2)]
    yield "2-D, stride 3", plane(*coarse), 3


def convolve(x, weight, stride):
    """Circular, in loops over outputs and taps."""
    out = np.zeros((len(weight), *[n // stride for n in x.shape[1:]]))
    for place in np.ndindex(*out.shape[1:]):
        for tap in np.ndindex(*weight.shape[2:]):
            at = tuple(
                (stride * p + t) % n for p, t, n in zip(place, tap, x.shape[1:], strict=True)
            )
            out[(slice(None), *place)] += weight[(..., *tap)] @ x[(slice(None), *at)]
    return out


@pytest.mark.parametrize(
    ("kernel", "stride"), [c[1:] for c in cases()], ids=[c[0] for c in cases()]
)
def test_kernels_made_of_reflections_are_orthogonal(kernel, stride):
    """All of them square: rows and columns; some rows or some inputs of them, one or the other."""
    rng = np.random.default_rng(1)
    dim, n = kernel.ndim - 2, -(-(2 * kernel.shape[2] - 1) // stride)
    x = rng.standard_normal((kernel.shape[1], *[stride * n] * dim))
    assert np.linalg.norm(convolve(x, kernel, stride)) == pytest.approx(np.linalg.norm(x))
    rows, columns = kernel[: len(kernel) // 2], kernel[:, : kernel.shape[1] // 2]
    parts = [kernel, rows] + ([columns] if columns.shape[1] else [])
    for part in parts:
        weight = torch.tensor(part)
        assert abs(float(l_orth(weight, stride, dim))) < 1e-12
        singular = conv_singular_values(weight, stride, n)
        np.testing.assert_allclose(singular, 1, atol=1e-12)
        assert max(map(float, conv_orth_residual(weight, stride, n))) < 1e-10
    # A gain g in one output: its row's square is g², so that ‖A Aᵀ - I‖² is (g² - 1)² a place.
    gained = kernel.copy()
    gained[0] *= 1.5
    assert float(l_orth(torch.tensor(gained), stride, dim)) == pytest.approx((1.5**2 - 1) ** 2)
    frobenius, spectral = conv_orth_residual(torch.tensor(gained), stride, n)
    assert float(frobenius) == pytest.approx(1.25 * n ** (dim / 2))
    assert float(spectral) == pytest.approx(1.25)
    # Delays are orthogonal, sums of a delay and none are not: shifts as far as k - 1 count.
    split = np.zeros_like(kernel)
    first, last = (0,) * dim, (kernel.shape[2] - 1,) * dim
    split[(0, 0, *first)] = split[(0, 0, *last)] = np.sqrt(0.5)
    reach = 0.5 if (kernel.shape[2] - 1) % stride == 0 else 0.0
    lost = len(kernel) - 1
    found = float(l_orth(torch.tensor(split), stride, dim))
    assert found == pytest.approx(lost + reach)


def test_torchs_layer_keeps_norms_with_such_a_kernel():
    """With its circular padding, whatever it centres on."""
    weight = plane(*(lossless(2, 3, np.random.default_rng(s)) for s in (2, 3)))
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    y = functional.conv2d(functional.pad(x, [1] * 4, "circular"), torch.tensor(weight))
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
