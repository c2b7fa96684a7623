"""What a receiver sees of a block: correlation with the PSS, energy of null elements, wavelets."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sat.methods.dt_ddnn.fourier import POINTS, dft, require_transform
from sat.methods.dt_ddnn.sequences import LENGTH, pss
from sat.methods.dt_ddnn.signal import (
    FIRST,
    PREFIX,
    SAMPLES,
    SUBCARRIERS,
    SYMBOL,
    ofdm_modulate,
)  # fmt: skip

LAGS, SEARCHED, WINDOW = 256, 160, 128
"""Lags of the correlation, of the search for its peak, and round the peak in the features."""
EARLY = 2
"""Samples of the prefix that a symbol's transform begins before the peak."""
NULLS = 130
"""Null elements: 113 of symbol 0 and 17 of symbol 2."""
FEATURES = 134
FLOORS = (1e-4, 1e-6)
"""Added to correlation and EPNRE before their logarithms."""
CHUNK = 32
"""Records that are correlated at once: what they take stays in the cache."""

_BAND = torch.arange(FIRST, FIRST + LENGTH)
_NULL = (
    torch.tensor([k for k in range(SUBCARRIERS) if not FIRST <= k < FIRST + LENGTH]),
    torch.tensor([*range(48, FIRST), *range(FIRST + LENGTH, 192)]),
)
"""Null subcarriers of symbols 0 and 2."""


class Correlation(NamedTuple):
    """What `pss_correlation` finds.

    Parameters
    ----------
    values : torch.Tensor
        (n, 3, 256) float32, 0 to 1: magnitudes by PSS and lag.
    n2 : torch.Tensor
        (n,) int64: the PSS of the largest one.
    timing : torch.Tensor
        (n,) int64, 0 to 159: its lag, where symbol 0 begins after its prefix.
    """

    values: Tensor
    n2: Tensor
    timing: Tensor


def require_iq(iq: Tensor) -> None:
    """Raise unless iq is complex (n, 1224), at least one record, finite, none of them all 0."""
    if not iq.is_complex():
        raise TypeError(f"iq has dtype {iq.dtype}: must be complex; use torch.complex(i, q)")
    if iq.ndim != 2 or iq.shape[1] != SAMPLES or not len(iq):
        raise ValueError(
            f"iq has shape {tuple(iq.shape)}: must be (n, {SAMPLES}), at least one record of "
            f"{SAMPLES} samples at 7.68 MHz"
        )
    power = torch.view_as_real(iq).square().sum((1, 2))
    for what, wrong in (("not finite", ~power.isfinite()), ("all 0", power == 0)):
        if bool(wrong.any()):
            raise ValueError(f"iq: record {int(wrong.nonzero()[0])} is {what}; leave it out")


# ----------------------------------------------------------------------------------- correlation


@cache
def _references() -> Tensor:
    """Return the three PSS in time, (3, 256) complex64 of energy 1."""
    grid = torch.zeros(3, 1, SUBCARRIERS, dtype=torch.complex64)
    grid[:, 0, _BAND] = pss(torch.arange(3)).to(torch.complex64)
    body = ofdm_modulate(grid)[:, PREFIX:]
    return body / body.norm(dim=1, keepdim=True)


def pss_correlation(iq: Tensor, transform: str = "fft") -> Correlation:
    """Correlate with the three PSS; the largest peak gives PSS and timing.

    Parameters
    ----------
    iq : torch.Tensor
        (n, 1224) complex.
    transform : {"fft", "products"}
        By FFT, or as a real convolution of 2 to 6 channels, n · 256 x 512 x 6 as a product.

    Returns
    -------
    Correlation
        Magnitudes over the root of a record's whole energy, so that no level is in them.

    Raises
    ------
    TypeError, ValueError
        If ``iq`` is not complex, of another shape, or has a record that is all 0 or not finite;
        if there is no such transform.
    """
    require_iq(iq)
    require_transform(transform)
    iq = iq.to(torch.complex64)
    energy = torch.view_as_real(iq).square().sum((1, 2))
    # A level near 1 before a product, which may be one of float16.
    level = iq / (energy / SAMPLES).sqrt()[:, None]
    found = torch.cat([_correlate(part, transform) for part in level.split(CHUNK)])
    values = found / math.sqrt(SAMPLES)
    peak = values[:, :, :SEARCHED].flatten(1).argmax(1)
    return Correlation(values, peak.div(SEARCHED, rounding_mode="floor"), peak % SEARCHED)


def _correlate(level: Tensor, transform: str) -> Tensor:
    """Return |sum over t of conj(reference(t)) x(lag + t)|, (n, 3, 256)."""
    references = _references()
    seen = level[:, : LAGS + POINTS - 1]
    if transform == "fft":
        length = LAGS + POINTS
        spectra = torch.fft.fft(seen, length)[:, None] * torch.fft.fft(references, length).conj()
        return torch.fft.ifft(spectra)[:, :, :LAGS].abs()
    real, imaginary = references.real, references.imag
    weight = torch.cat((torch.stack((real, imaginary), 1), torch.stack((-imaginary, real), 1)))
    parts = torch.stack((seen.real, seen.imag), 1)
    sums = functional.conv1d(parts, weight)
    return torch.hypot(sums[:, :3], sums[:, 3:])


# ----------------------------------------------------------------------------------------- EPNRE


def epnre(iq: Tensor, timing: Tensor, transform: str = "fft") -> Tensor:
    """Return the energy of each null element over the mean energy of PSS' and SSS' elements.

    Symbols 0 and 2 are transformed from ``timing - 2`` on: what a carrier offset and a channel leak
    into null elements is there, as it is in a receiver.

    Parameters
    ----------
    iq : torch.Tensor
        (n, 1224) complex.
    timing : torch.Tensor
        (n,) int64, of `pss_correlation`.
    transform : {"fft", "products"}

    Returns
    -------
    torch.Tensor
        (n, 130) float32, linear; 113 elements of symbol 0, then 17 of symbol 2.

    Raises
    ------
    TypeError, ValueError
        If ``iq`` is not as `pss_correlation` wants it, or ``timing`` not (n,) of 0 to 255; if there
        is no such transform.
    """
    require_iq(iq)
    require_transform(transform)
    if timing.shape != (len(iq),) or timing.is_floating_point():
        raise ValueError(
            f"timing is {timing.dtype} of shape {tuple(timing.shape)}: must be int64 ({len(iq)},)"
        )
    if bool(((timing < 0) | (timing >= LAGS)).any()):
        raise ValueError(f"timing: must be from 0 to {LAGS - 1}, a lag of pss_correlation")
    iq = iq.to(torch.complex64)
    begin = (timing - EARLY).clamp(min=0)[:, None]
    power = []
    for symbol in (0, 2):
        # A record's power is 1 or near it, and so is its transform's: float16 holds both.
        body = iq.gather(1, begin + symbol * SYMBOL + torch.arange(POINTS))
        body = body / torch.view_as_real(iq).square().sum(2).mean(1, keepdim=True).sqrt()
        spectrum = dft(body, transform).roll(SUBCARRIERS // 2, -1)[:, :SUBCARRIERS]
        power.append(torch.view_as_real(spectrum).square().sum(2))
    occupied = torch.cat([p[:, _BAND] for p in power], 1).mean(1, keepdim=True)
    null = torch.cat([p[:, places] for p, places in zip(power, _NULL, strict=True)], 1)
    return null / occupied


# -------------------------------------------------------------------------------------- wavelets


@cache
def _approximation(length: int) -> Tensor:
    """Return two levels of db2's periodised low pass, (length, length / 4) float32.

    Daubechies 1988: (1 + r, 3 + r, 3 - r, 1 - r) / (4 sqrt 2), r = sqrt 3.
    """
    root = math.sqrt(3)
    taps = [(1 + root), (3 + root), (3 - root), (1 - root)]

    def level(size: int) -> Tensor:
        matrix = torch.zeros(size, size // 2, dtype=torch.float64)
        for column in range(size // 2):
            for shift, tap in enumerate(taps):
                matrix[(2 * column + shift - 1) % size, column] += tap / (4 * math.sqrt(2))
        return matrix

    # A sum, not a product: it is made once, and a product may be rounded where it is computed.
    first, second = level(length), level(length // 2)
    return (first[:, :, None] * second).sum(1).float()


def dwt_features(correlation: Correlation, ratios: Tensor) -> Tensor:
    """Return a record's features: logarithms, coarse by a wavelet, and five means of EPNRE.

    Parameters
    ----------
    correlation : Correlation
        Of n records.
    ratios : torch.Tensor
        (n, 130), of `epnre`.

    Returns
    -------
    torch.Tensor
        (n, 134) float32: 3 x 32 of 128 lags round the peak, the found PSS first; 33 of EPNRE; and
        log10 of its mean, those of symbols 0 and 2, its maximum and its median.

    Raises
    ------
    ValueError
        If ``ratios`` has another shape.
    """
    count = len(correlation.values)
    if ratios.shape != (count, NULLS):
        raise ValueError(f"ratios has shape {tuple(ratios.shape)}: must be ({count}, {NULLS})")
    order = (correlation.n2[:, None] + torch.arange(3)) % 3
    rows = correlation.values.gather(1, order[:, :, None].expand(-1, -1, LAGS))
    rows = functional.pad(rows, (WINDOW // 2, 0))  # before lag 0 there is nothing
    lags = correlation.timing[:, None] + torch.arange(WINDOW)
    window = rows.gather(2, lags[:, None].expand(-1, 3, -1))
    peaks = (window + FLOORS[0]).log10() @ _approximation(WINDOW)
    logs = (ratios + FLOORS[1]).log10()
    padded = torch.cat((logs, logs[:, -1:].expand(-1, -NULLS % 4)), 1)
    nulls = padded @ _approximation(padded.shape[1])
    first = len(_NULL[0])
    means = torch.stack(
        (
            ratios.mean(1), ratios[:, :first].mean(1), ratios[:, first:].mean(1), ratios.amax(1),
            ratios.median(1).values,
        ),
        1,
    )  # fmt: skip
    return torch.cat((peaks.flatten(1), nulls, (means + FLOORS[1]).log10()), 1)


def features(iq: Tensor, transform: str = "fft") -> Tensor:
    """Return `dwt_features` of records, from their samples alone.

    Parameters
    ----------
    iq : torch.Tensor
        (n, 1224) complex.
    transform : {"fft", "products"}
        Of correlation and EPNRE.

    Returns
    -------
    torch.Tensor
        (n, 134) float32.

    Raises
    ------
    TypeError, ValueError
        If ``iq`` is not as `pss_correlation` wants it, or there is no such transform.
    """
    found = pss_correlation(iq, transform)
    return dwt_features(found, epnre(iq, found.timing, transform))
