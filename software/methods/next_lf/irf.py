"""Impulse responses from vibration alone (NExT), and their spectra as rational functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import signal
from torch import Tensor

from sat.methods.problems.arguments import require_counts
from sat.methods.problems.scaling import scaled_product

DOMAINS = ("z", "s")


def require_records(y: Tensor) -> None:
    """Raise unless y is (channels, samples), real, finite, and each channel moves."""
    if not y.is_floating_point():
        raise TypeError(f"y has dtype {y.dtype}: must be real floating point; use y.double()")
    if y.ndim != 2 or len(y) < 2 or not y.shape[1]:
        raise ValueError(f"y has shape {tuple(y.shape)}: must be (channels, samples), 2 or more")
    for channel, line in enumerate(y):
        if not bool(line.isfinite().all()):
            raise ValueError(
                f"y, channel {channel}: has samples that are not finite; cut or fill them"
            )
        if bool((line == line[0]).all()):
            raise ValueError(f"y, channel {channel}: is constant, a dead sensor; leave it out")


def require_references(refs: Sequence[int], channels: int) -> list[int]:
    """Return the references as a list; raise ValueError unless they are some of the channels."""
    chosen = list(refs)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(channels)):
        raise ValueError(
            f"refs={chosen}: must be one or more channels from 0 to {channels - 1}, each once"
        )
    return chosen


def correlation_irf(
    y: Tensor,
    refs: Sequence[int],
    n_lags: int = 1024,
    method: str = "direct",
    nperseg: int | None = None,
    *,
    transform: str = "products",
) -> Tensor:
    """Return correlations E y_i(t + lag) y_ref(t) at lags from 0 on.

    Under white excitation those from lag 1 on are sums of the structure's own decaying
    sinusoids, as an impulse response is. Lag 0 has the noise of the measurement, too.

    Parameters
    ----------
    y : torch.Tensor
        (P, n), real floating point: channels in rows. Means are taken out.
    refs : sequence of int
        M channels that all others are correlated with.
    n_lags : int
        N, below n.
    method : {"direct", "welch"}
        Sums over the whole record, each divided by its number of terms; or averages over segments
        under a Hann window that overlap by half, divided by what the window makes of each lag.
        Neither is biased.
    nperseg : int, optional
        Samples of a segment for "welch", above N; 4 N without it, n at most.
    transform : {"products", "fft"}
        How "direct" sums: as matrix products (see `_by_products`), or by Fourier transforms, which
        are the fewer operations and no matrix work.

    Returns
    -------
    torch.Tensor
        (P, M, N + 1) float64.

    Raises
    ------
    TypeError
        If ``y`` is not real floating point.
    ValueError
        If it has less than 2 channels, one that is constant or not finite, or an argument breaks
        its rule.

    Source
    ------
    James, Carne, Lauffer 1995, "The Natural Excitation Technique (NExT)".
    """
    require_records(y)
    chosen = require_references(refs, len(y))
    require_counts(n_lags=n_lags)
    n = y.shape[1]
    if n_lags >= n:
        raise ValueError(f"n_lags={n_lags}: must be below {n}, the samples; record for longer")
    y = y.detach().double()
    y = y - y.mean(1, keepdim=True)
    if method == "welch":
        return _welch(y, chosen, n_lags, min(4 * n_lags, n) if nperseg is None else nperseg)
    if method != "direct":
        raise ValueError(f"method={method!r}: must be 'direct' or 'welch'")
    if nperseg is not None:
        raise ValueError(f"nperseg={nperseg}: is of method='welch'; 'direct' has no segments")
    require_transform(transform)
    sums = (_by_products if transform == "products" else _by_fft)(y, y[chosen], n_lags)
    return sums / (n - torch.arange(n_lags + 1, dtype=torch.float64))


def _by_fft(y: Tensor, references: Tensor, n_lags: int) -> Tensor:
    """Return (P, M, N + 1) sums over all samples, zeros beyond the ends."""
    size = 2 ** math.ceil(math.log2(y.shape[1] + n_lags))
    of_y, of_refs = torch.fft.rfft(y, size), torch.fft.rfft(references, size)
    lines = [torch.fft.irfft(line * of_refs.conj(), size)[:, : n_lags + 1] for line in of_y]
    return torch.stack(lines)


def _by_products(y: Tensor, references: Tensor, n_lags: int) -> Tensor:
    """Return the same by products: a reference in blocks, times windows of a channel.

    Sample a of a block meets sample b of the window that starts where the block does: summed over
    all blocks, an (L x n/L) (n/L x (L + N)) product, and a lag is a diagonal of it. A product of
    every lag's shifted copy would have as many operations, and N / L times the operands.
    """
    block = max(16, n_lags // 8)
    count = math.ceil(y.shape[1] / block)
    end = count * block - y.shape[1]
    m, width = len(references), block + n_lags
    blocks = torch.nn.functional.pad(references, (0, end)).reshape(m, count, block)
    left = blocks.mT.reshape(m * block, count)
    windows = torch.nn.functional.pad(y, (0, end + n_lags)).unfold(1, width, block)
    sums = y.new_empty(len(y), m, n_lags + 1)
    for i, window in enumerate(windows):
        table = scaled_product(left, window).contiguous()
        strides = (block * width, width + 1, 1)
        sums[i] = table.as_strided((m, block, n_lags + 1), strides).sum(1)
    return sums


def _welch(y: Tensor, chosen: list[int], n_lags: int, nperseg: int) -> Tensor:
    if not isinstance(nperseg, int) or not n_lags < nperseg <= y.shape[1]:
        raise ValueError(
            f"nperseg={nperseg}: must be an int above {n_lags}, the lags, and at most "
            f"{y.shape[1]}, the samples"
        )
    window = signal.get_window("hann", nperseg)
    # Twice the length: products of a segment's ends would fall on lags of their own otherwise.
    options = {"window": window, "nfft": 2 * nperseg, "detrend": False, "return_onesided": False}
    seen = signal.correlate(window, window)[nperseg - 1 :][: n_lags + 1] / (window @ window)
    lines = y.numpy()
    correlations = np.empty((len(lines), len(chosen), n_lags + 1))
    for j, reference in enumerate(chosen):
        cross = signal.csd(lines[reference], lines, **options)[1]
        correlations[:, j] = np.fft.ifft(cross).real[:, : n_lags + 1] / seen
    return torch.from_numpy(correlations)


class Spectrum(NamedTuple):
    """A one-sided transform of impulse responses, line by line.

    Parameters
    ----------
    points : torch.Tensor
        (K,) complex128: z = exp(i w dt), or s = i w in rad/s.
    values : torch.Tensor
        (P, M, K) complex128, F at the points.
    freq_hz : torch.Tensor
        (K,) float64.
    nyquist_hz : float
    """

    points: Tensor
    values: Tensor
    freq_hz: Tensor
    nyquist_hz: float

    def band(self, f_min: float, f_max: float) -> Spectrum:
        """Return the lines from f_min to f_max, in Hz.

        Raises
        ------
        ValueError
            If the band is not within (0, Nyquist frequency), or has no line.
        """
        if not 0 < f_min < f_max < self.nyquist_hz:
            raise ValueError(
                f"band=({f_min}, {f_max}): must rise, within (0, {self.nyquist_hz:g}) Hz, half the "
                "sampling rate"
            )
        kept = (self.freq_hz >= f_min) & (self.freq_hz <= f_max)
        if not bool(kept.any()):
            raise ValueError(
                f"band=({f_min}, {f_max}): has no line; widen it, or take more lags, whose lines "
                f"are closer than {float(self.freq_hz[0]):g} Hz"
            )
        return self._replace(
            points=self.points[kept], values=self.values[..., kept], freq_hz=self.freq_hz[kept]
        )


def irf_spectrum(
    irf: Tensor,
    dt: float,
    domain: str = "z",
    window_decay: float = 0.0,
    *,
    transform: str = "products",
) -> Spectrum:
    """Return the one-sided transform of impulse responses at the lines of N samples.

    With ``domain="z"`` it is ``X(z) = sum_{k=1..N} R[k] z^-k``. There z^N = 1, so a mode r e^{l t}
    gives exactly ``r e^{l dt} (1 - e^{l N dt}) / (z - e^{l dt})``, however short the response is
    cut; lag 0, and the noise in it, has no part. With ``domain="s"`` it is
    ``X(i w) = dt sum_{k<N} R[k] e^{-i w k dt}``, which is rational in s but roughly.

    Parameters
    ----------
    irf : torch.Tensor
        (P, M, N + 1), real floating point, of lags 0 to N.
    dt : float
        Seconds between lags.
    domain : {"z", "s"}
    window_decay : float
        a, in 1/s: responses are multiplied by exp(-a t), which adds -a to each pole.
    transform : {"products", "fft"}
        How lines are summed: as one product, or by a Fourier transform.

    Returns
    -------
    Spectrum
        Of all lines but 0 Hz and the Nyquist frequency; `Spectrum.band` keeps some.

    Raises
    ------
    TypeError
        If ``irf`` is not real floating point.
    ValueError
        If its shape is another, an entry is not finite, or an argument breaks its rule.

    Source
    ------
    arXiv 2603.01359 ("s"); "z" is ours.
    """
    if not irf.is_floating_point():
        raise TypeError(f"irf has dtype {irf.dtype}: must be real floating point; use irf.double()")
    if irf.ndim != 3 or not irf.numel() or irf.shape[2] < 4:
        raise ValueError(f"irf has shape {tuple(irf.shape)}: must be (P, M, N + 1), N at least 3")
    if not bool(irf.isfinite().all()):
        raise ValueError("irf has entries that are not finite: refused; look at the records")
    require_domain(domain)
    require_transform(transform)
    if not 0 < dt < math.inf:
        raise ValueError(f"dt={dt}: must be positive and finite, the seconds between lags")
    if not 0 <= window_decay < math.inf:
        raise ValueError(f"window_decay={window_decay}: must be at least 0 and finite, in 1/s")
    p, m, size = irf.shape
    n = size - 1
    lags = torch.arange(size, dtype=torch.float64)
    seen = irf.detach().double() * torch.exp(-window_decay * dt * lags)
    # z^-N = 1: lag N takes the place of lag 0.
    seen = torch.cat((seen[..., n:], seen[..., 1:n]), 2) if domain == "z" else dt * seen[..., :n]
    lines = torch.arange(1, (n + 1) // 2)
    angles = 2 * math.pi / n * torch.arange(n, dtype=torch.float64)
    if transform == "fft":
        values = torch.fft.rfft(seen)[..., lines]
    else:
        phases = torch.outer(torch.arange(n), lines) % n
        waves = torch.cat((angles.cos()[phases], -angles.sin()[phases]), 1)
        parts = scaled_product(seen.reshape(p * m, n), waves).reshape(p, m, 2, len(lines))
        values = torch.complex(parts[:, :, 0], parts[:, :, 1])
    freq = lines.double() / (n * dt)
    turned = angles[lines]
    if domain == "z":
        points = torch.polar(torch.ones_like(turned), turned)
    else:
        points = torch.complex(torch.zeros_like(freq), 2 * math.pi * freq)
    return Spectrum(points, values, freq, 0.5 / dt)


def require_domain(domain: str) -> None:
    """Raise ValueError for a domain that there is not."""
    if domain not in DOMAINS:
        raise ValueError(f"domain={domain!r}: must be one of {', '.join(DOMAINS)}")


def require_transform(transform: str) -> None:
    """Raise ValueError for a way to sum that there is not."""
    if transform not in ("products", "fft"):
        raise ValueError(f"transform={transform!r}: must be 'products' or 'fft'")
