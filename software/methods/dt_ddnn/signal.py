"""Synchronisation signal blocks on the air: grid, OFDM, fading channel, jammers, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from sat.methods.dt_ddnn.fourier import POINTS, dft
from sat.methods.dt_ddnn.sequences import BLOCKS, CELLS, LENGTH, pbch_dmrs, pss, sss, within
from sat.methods.problems.arguments import require_counts

SYMBOLS, SUBCARRIERS = 4, 240
PREFIX = 18
"""Samples of a symbol's cyclic prefix."""
SYMBOL = PREFIX + POINTS
BLOCK = SYMBOLS * SYMBOL
"""Samples of a block, 1096."""
GUARD = 64
"""Samples before and after it."""
SAMPLES = BLOCK + 2 * GUARD
FIRST = 56
"""The subcarrier where PSS and SSS begin."""
OFFSET = 0.02
"""Of carriers, in subcarrier spacings, at most."""
STARTS = (48, 79)
"""Samples at which a jammer may begin; the block begins at 64."""
BAND = (12, 39)
"""Subcarriers of a narrow-band jammer, fewest and most."""
KINDS = ("barrage", "narrowband", "pss", "replay")
CHUNK = 500
"""Records that are made at once: a bound on memory."""

_SIDES = [*range(48), *range(192, SUBCARRIERS)]
_PBCH = torch.tensor(
    [SUBCARRIERS + k for k in range(SUBCARRIERS)]
    + [2 * SUBCARRIERS + k for k in _SIDES]
    + [3 * SUBCARRIERS + k for k in range(SUBCARRIERS)]
)
"""Where PBCH is, in a grid's order."""
_REFERENCE = _PBCH[_PBCH % 4 == 0]
"""Where its reference is in cells that 4 divides."""


@dataclass(frozen=True)
class SSBRecords:
    """Received blocks, one a row.

    Parameters
    ----------
    iq : torch.Tensor
        (n, 1224) complex64, of mean power 1 each, noise and jammer included.
    jammed : torch.Tensor
        (n,) bool.
    kind : torch.Tensor
        (n,) int64: place in the ``kinds`` asked for; -1 where there is no jammer.
    sjr_db : torch.Tensor
        (n,) float32: power of the signal over the jammer's, dB; infinite where there is none.
    snr_db : torch.Tensor
        (n,) float32: power of the signal over the noise's, dB.
    cell_id : torch.Tensor
        (n,) int64.
    """

    iq: Tensor
    jammed: Tensor
    kind: Tensor
    sjr_db: Tensor
    snr_db: Tensor
    cell_id: Tensor

    def __len__(self) -> int:
        return len(self.iq)

    def __getitem__(self, places: Tensor | slice) -> SSBRecords:
        """Return some records: a slice, a mask or places."""
        return SSBRecords(*(getattr(self, field.name)[places] for field in fields(self)))

    @staticmethod
    def cat(*parts: SSBRecords) -> SSBRecords:
        """Return the records of all parts, one after the other."""
        return SSBRecords(
            *(
                torch.cat([getattr(one, field.name) for one in parts])
                for field in fields(SSBRecords)
            )
        )


# ------------------------------------------------------------------------------------------ grid


def ssb_grid(cell_ids: Tensor, generator: torch.Generator) -> Tensor:
    """Return resource grids: PSS, SSS, PBCH with its reference signal; all elements of power 1.

    Parameters
    ----------
    cell_ids : torch.Tensor
        (B,) int64, 0 to 1007.
    generator : torch.Generator
        Of block indices and of the payload, random QPSK in place of a coded one.

    Returns
    -------
    torch.Tensor
        (B, 4, 240) complex64, symbols by subcarriers.

    Raises
    ------
    ValueError
        If ``cell_ids`` is not (B,) of such integers.

    Source
    ------
    3GPP TS 38.211, section 7.4.3.1, table 7.4.3.1-1.
    """
    if cell_ids.ndim != 1:
        raise ValueError(f"cell_ids has shape {tuple(cell_ids.shape)}: must be (B,), one a block")
    count = len(cell_ids)
    index = torch.randint(BLOCKS, (count,), generator=generator)
    reference = pbch_dmrs(cell_ids, index)
    grid = torch.zeros(count, SYMBOLS * SUBCARRIERS, dtype=torch.complex64)
    signs = 1.0 - 2.0 * torch.randint(2, (count, len(_PBCH), 2), generator=generator)
    grid[:, _PBCH] = torch.view_as_complex(signs * math.sqrt(0.5))
    grid.scatter_(1, _REFERENCE + cell_ids[:, None] % 4, reference)
    grid = grid.reshape(count, SYMBOLS, SUBCARRIERS)
    band = slice(FIRST, FIRST + LENGTH)
    n1, n2 = cell_ids.div(3, rounding_mode="floor"), cell_ids % 3
    grid[:, 0, band], grid[:, 2, band] = pss(n2), sss(n1, n2)
    return grid


def ofdm_modulate(grid: Tensor, transform: str = "fft") -> Tensor:
    """Return the samples of grids: an inverse transform a symbol, after its cyclic prefix.

    Parameters
    ----------
    grid : torch.Tensor
        (B, symbols, 240) complex64; subcarrier k is at (k - 120) spacings of 30 kHz.
    transform : {"fft", "products"}

    Returns
    -------
    torch.Tensor
        (B, symbols · 274) complex64, at 7.68 MHz.

    Raises
    ------
    ValueError
        If ``grid`` has another shape or is not complex, or there is no such transform.
    """
    if grid.ndim != 3 or grid.shape[2] != SUBCARRIERS or not grid.is_complex():
        raise ValueError(
            f"grid is {grid.dtype} of shape {tuple(grid.shape)}: must be complex (B, symbols, 240)"
        )
    spectrum = functional.pad(grid, (0, POINTS - SUBCARRIERS)).roll(-SUBCARRIERS // 2, -1)
    body = dft(spectrum, transform, inverse=True)
    return torch.cat((body[..., -PREFIX:], body), -1).flatten(1)


# --------------------------------------------------------------------------------------- channel


def rayleigh_channel(
    x: Tensor, generator: torch.Generator, *, taps: int = 8, decay: float = 2.0
) -> Tensor:
    """Return signals after a Rayleigh fading channel each, of mean power 1.

    Parameters
    ----------
    x : torch.Tensor
        (B, L) complex64.
    generator : torch.Generator
    taps : int
        One sample apart, of mean power exp(-tap / decay).
    decay : float

    Returns
    -------
    torch.Tensor
        (B, L + taps - 1) complex64; the power is a mean over the first L samples, L of them in x.

    Raises
    ------
    ValueError
        If ``x`` is not complex (B, L), ``taps`` no int of at least 1, or ``decay`` not positive.
    """
    if x.ndim != 2 or not x.is_complex():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}: must be complex (B, L)")
    require_counts(taps=taps)
    if not 0 < decay < math.inf:
        raise ValueError(f"decay={decay}: must be positive and finite, in samples")
    count, length = x.shape
    profile = (-torch.arange(taps) / (2 * decay)).exp()
    gains = torch.randn(count, taps, dtype=torch.complex64, generator=generator) * profile
    y = torch.zeros(count, length + taps - 1, dtype=torch.complex64)
    for tap in range(taps):
        y[:, tap : tap + length].addcmul_(gains[:, tap, None], x)
    return y / _power(y[:, :length]).sqrt()


def _power(x: Tensor) -> Tensor:
    """Return the mean power of each row, (B, 1)."""
    return torch.view_as_real(x).square().sum(2).mean(1, keepdim=True)


def jammer(kind: str, n2: Tensor, generator: torch.Generator) -> Tensor:
    """Return the grids of a jammer, which is modulated and sent as a block is.

    Parameters
    ----------
    kind : {"barrage", "narrowband", "pss", "replay"}
        Noise on all elements; on 12 to 39 neighbouring subcarriers; on all of symbol 0; or another
        PSS than the cell's, with a random phase.
    n2 : torch.Tensor
        (B,) int64, the cells' PSS.
    generator : torch.Generator

    Returns
    -------
    torch.Tensor
        (B, 4, 240) complex64.

    Raises
    ------
    ValueError
        If there is no such kind, or ``n2`` is not (B,) of 0 to 2.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if n2.ndim != 1:
        raise ValueError(f"n2 has shape {tuple(n2.shape)}: must be (B,), one a block")
    count, n2 = len(n2), within("n2", n2, 3)
    if kind == "replay":
        grid = torch.zeros(count, SYMBOLS, SUBCARRIERS, dtype=torch.complex64)
        other = (n2 + torch.randint(1, 3, (count,), generator=generator)) % 3
        phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
        grid[:, 0, FIRST : FIRST + LENGTH] = torch.polar(pss(other), phase.expand(-1, LENGTH))
        return grid
    noise = torch.randn(count, SYMBOLS, SUBCARRIERS, dtype=torch.complex64, generator=generator)
    if kind == "pss":
        noise[:, 1:] = 0
    if kind == "narrowband":
        width = torch.randint(BAND[0], BAND[1] + 1, (count, 1), generator=generator)
        first = (torch.rand(count, 1, generator=generator) * (SUBCARRIERS - width + 1)).long()
        k = torch.arange(SUBCARRIERS)
        noise *= ((k >= first) & (k < first + width))[:, None]
    return noise


def _received(grid: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
    """Return records (B, 1224), power 1 over a block: each by its own channel and carrier."""
    faded = rayleigh_channel(ofdm_modulate(grid), generator)
    y = torch.zeros(len(grid), SAMPLES, dtype=torch.complex64)
    y.scatter_(1, start[:, None] + torch.arange(faded.shape[1]), faded)
    offset = OFFSET * (2 * torch.rand(len(grid), 1, generator=generator) - 1)
    angle = 2 * math.pi / POINTS * offset * torch.arange(SAMPLES)
    return y * torch.polar(torch.ones_like(angle), angle)


# --------------------------------------------------------------------------------------- records


def simulate_ssb(
    n: int,
    seed: int,
    sjr_db: tuple[float, float] = (-10.0, 30.0),
    snr_db: tuple[float, float] = (33.0, 37.0),
    kinds: tuple[str, ...] = KINDS,
) -> SSBRecords:
    """Return received blocks, half of them (rounded down) jammed, in random order.

    Clean records take the same way as jammed ones, with a jammer of power 0. Signal and jammer have
    channels and carrier offsets of their own; a jammer begins up to 16 samples early or 15 late.
    Every record is divided by the root of its own power in the end, so no level tells of a jammer.

    Parameters
    ----------
    n : int
    seed : int
    sjr_db, snr_db : (float, float)
        Ranges, dB, from which ratios of powers are drawn evenly. Powers of signal and jammer are
        means over the 1096 samples of a block, whatever symbols a jammer is on.
    kinds : tuple of str
        Jammers, in equal shares.

    Returns
    -------
    SSBRecords

    Raises
    ------
    ValueError
        If a range is reversed or not finite, a kind is unknown, there is none, or ``n`` is no int
        of at least 1.
    """
    require_counts(n=n)
    for name, (low, high) in (("sjr_db", sjr_db), ("snr_db", snr_db)):
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"{name}=({low}, {high}): must be finite, the lower first, in dB")
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds={kinds}: must be some of {', '.join(KINDS)}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    jammed = order < n // 2
    kind = torch.where(jammed, order % len(kinds), -1)
    cell = torch.randint(CELLS, (n,), generator=generator)
    ratios = [
        low + (high - low) * torch.rand(n, generator=generator) for low, high in (sjr_db, snr_db)
    ]
    sjr, snr = torch.where(jammed, ratios[0], math.inf), ratios[1]
    iq = torch.cat(
        [
            _chunk(cell[at], kind[at], kinds, sjr[at], snr[at], generator)
            for at in torch.arange(n).split(CHUNK)
        ]
    )
    return SSBRecords(iq, jammed, kind, sjr, snr, cell)


def _chunk(
    cell: Tensor, kind: Tensor, kinds: tuple[str, ...], sjr: Tensor, snr: Tensor,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    count = len(cell)
    signal = _received(ssb_grid(cell, generator), torch.full((count,), GUARD), generator)
    # Clean records have the grid of the first kind, and a gain of 0.
    grid = torch.empty(count, SYMBOLS, SUBCARRIERS, dtype=torch.complex64)
    for number, name in enumerate(kinds):
        rows = kind.clamp(min=0) == number
        grid[rows] = jammer(name, cell[rows] % 3, generator)
    start = torch.randint(STARTS[0], STARTS[1] + 1, (count,), generator=generator)
    interference = _received(grid, start, generator)
    noise = torch.randn(count, SAMPLES, dtype=torch.complex64, generator=generator)
    iq = signal + _amplitude(sjr) * interference + _amplitude(snr) * noise
    return iq / _power(iq).sqrt()


def _amplitude(ratio_db: Tensor) -> Tensor:
    """Return amplitudes (B, 1) of what is ``ratio_db`` below power 1; infinitely far: 0."""
    return (10.0 ** (-ratio_db / 20))[:, None]
